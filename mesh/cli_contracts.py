"""`mesh contracts` on the command line."""

from typing import Any

import click

from mesh.cli_options import Command, Parsed, client_settings, global_options, header, publishable, wants_json
from mesh.cli_running import body_of, load_client, run


def _owner_option(command: Command) -> Command:
    what = "Whose it is, where clients do not say who they are."
    return click.option("--owner", metavar="NAME", help=what)(command)


@click.group(invoke_without_command=True)
@global_options(on_group=False)
@click.pass_context
def contracts(context: click.Context) -> None:
    """Show, check and register what the events on some subjects have to look like."""
    if context.invoked_subcommand is None:
        commands = _commands(context)
        run(commands.show(client_settings(context), wants_json(context)))


def _commands(context: click.Context) -> Any:
    load_client(context)
    from mesh.commands import contracts as commands

    return commands


@contracts.command("register")
@global_options(on_group=False)
@click.argument("file")
@_owner_option
@click.pass_context
def register(context: click.Context, file: str, owner: str | None) -> None:
    """Put the contract in FILE (JSON) in force, or change it."""
    run(_commands(context).register(client_settings(context), file, owner, wants_json(context)))


@contracts.command("remove")
@global_options(on_group=False)
@click.argument("name")
@_owner_option
@click.pass_context
def remove(context: click.Context, name: str, owner: str | None) -> None:
    """Contract NAME is in force no longer."""
    run(_commands(context).remove(client_settings(context), name, owner, wants_json(context)))


@contracts.command("check")
@global_options(on_group=False)
@click.argument("what", metavar="FILE|SUBJECT")
@click.argument("payload", required=False)
@click.option(
    "-H", "--header", "headers", multiple=True, type=Parsed("header", header), metavar="'NAME: VALUE'",
    help="Of the event. May be repeated.",
)  # fmt: skip
@click.pass_context
def check(context: click.Context, what: str, payload: str | None, headers: tuple[tuple[str, str], ...]) -> None:
    """Say whether FILE is a contract, or whether an event keeps that of SUBJECT. Nothing is published.

    With - for PAYLOAD, stdin is the payload. Exit status 1 if it is not, or does not.
    """
    commands = _commands(context)
    if payload is None:
        run(commands.check_file(what))
        return
    try:
        publishable(what)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    run(commands.check_event(client_settings(context), what, list(headers), body_of(payload)))
