"""How a command fails: with one clear line on stderr and an exit status."""

import sys

import click


class Failure(click.ClickException):
    """Ends the command. The message is a sentence without a full stop, or one problem per line."""

    exit_code = 1

    def show(self, file: object = None) -> None:
        for line in self.message.splitlines():
            notice(line)


class Refused(Failure):
    """A sink has refused what it was asked; `name` is that of `protocol.errors.LOG_ERRORS`."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class BadInput(Failure):
    """What was asked for, or given, is no such thing: nothing was looked at."""

    exit_code = 2


def notice(text: str) -> None:
    """Tells the person something beside the output."""
    click.echo(f"mesh: {text}", file=sys.stderr)
