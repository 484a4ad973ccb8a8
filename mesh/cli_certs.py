"""`mesh certs` on the command line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from mesh.cli_options import Command, global_options, wants_json
from mesh.commands.failure import Failure
from protocol.errors import MeshError

_DAYS: Final = 365
_DAYS_MAX: Final = 36_500


def _config_option(command: Command) -> Command:
    return click.option("--config", required=True, metavar="FILE", help="The mesh's configuration.")(command)


def _days_option(command: Command) -> Command:
    days = click.IntRange(1, _DAYS_MAX)
    return click.option("--days", type=days, default=_DAYS, show_default=True, help="How long they last.")(command)


def _force_option(command: Command) -> Command:
    return click.option("--force", is_flag=True, help="Overwrite what is there.")(command)


def _configuration(file: str) -> Any:
    from protocol import config

    return config.parse(Path(file).read_text("utf-8", "surrogateescape"), file)


def _told(run: Callable[[], Any]) -> Any:
    """What a person can do something about becomes a Failure."""
    try:
        return run()
    except BrokenPipeError:
        raise
    except MeshError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


@click.group()
def certs() -> None:
    """Make, show and renew the certificates of links between nodes ([tls.nodes])."""


@certs.command()
@global_options(on_group=False)
@_config_option
@_days_option
@_force_option
def init(config: str, days: int, force: bool) -> None:
    """Make an authority, and a certificate for every node of FILE.

    It is for development: who has the authority's key can be any node, so keep it off the nodes.
    """
    from mesh.commands import certs as making

    _told(lambda: making.init(_configuration(config), days, force=force))


@certs.command()
@global_options(on_group=False)
@click.argument("node")
@_config_option
@_days_option
@_force_option
def issue(node: str, config: str, days: int, force: bool) -> None:
    """Make a key and a certificate for NODE."""
    from mesh.commands import certs as making

    _told(lambda: making.issue(_configuration(config), node, days, force=force))


@certs.command()
@global_options(on_group=False)
@click.argument("nodes", nargs=-1, metavar="[NODE]...")
@_config_option
@_days_option
def renew(nodes: Sequence[str], config: str, days: int) -> None:
    """Make new certificates for the keys of NODEs, or of all whose certificates are here."""
    from mesh.commands import certs as making

    _told(lambda: making.renew(_configuration(config), nodes, days))


@certs.command()
@global_options(on_group=False)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--config", metavar="FILE", help="The mesh's configuration: show those that it names.")
@click.pass_context
def show(context: click.Context, files: Sequence[str], config: str | None) -> None:
    """Show who certificates are for and until when. Exit status 1 if one is of no use."""
    from mesh.commands import certs as showing

    if bool(files) == bool(config):
        raise click.UsageError("give FILEs, or --config to show those that it names")
    as_json = wants_json(context)
    context.exit(_told(lambda: showing.show(_configuration(config) if config else None, files, as_json)))
