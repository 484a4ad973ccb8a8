"""How a command fails: with one clear line on stderr and an exit status."""

import sys

import click


class Failure(click.ClickException):
    """Ends the command. The message is a sentence without a full stop, or one problem per line."""

    exit_code = 1

    def show(self, file: object = None) -> None:
        for line in self.message.splitlines():
            notice(line)


class BadInput(Failure):
    """What was asked for, or given, is no such thing: nothing was looked at."""

    exit_code = 2


def notice(text: str) -> None:
    """Tells the person something beside the output."""
    click.echo(f"mesh: {text}", file=sys.stderr)
