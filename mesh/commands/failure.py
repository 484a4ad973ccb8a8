"""How a command fails: with one clear line on stderr and exit status 1."""

import sys

import click


class Failure(click.ClickException):
    """Ends the command. The message is a sentence without a full stop, or one problem per line."""

    exit_code = 1

    def show(self, file: object = None) -> None:
        for line in self.message.splitlines():
            notice(line)


def notice(text: str) -> None:
    """Tells the person something beside the output."""
    click.echo(f"mesh: {text}", file=sys.stderr)
