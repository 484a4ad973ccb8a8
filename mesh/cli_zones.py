"""`mesh zones` on the command line."""

from pathlib import Path
from typing import Any

import click

from mesh.cli_options import client_settings, global_options, wants_json
from mesh.cli_running import run
from mesh.commands.failure import Failure


@click.group(invoke_without_command=True)
@global_options(on_group=False)
@click.option("--config", metavar="FILE", help="The mesh's configuration.")
@click.option("--zone", metavar="ZONE", help="Which, if there are several.")
@click.pass_context
def zones(context: click.Context, config: str | None, zone: str | None) -> None:
    """Show how far mirrors of other zones' logs are behind. Exit status 1 if one stands still or has diverged."""
    from mesh.commands import zones as asking

    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise click.UsageError("Missing option '--config'.")

    async def show() -> None:
        await asking.run(_zones(context, config, zone), wants_json(context))

    run(show())


@zones.command("rebuild")
@global_options(on_group=False)
@click.argument("zone")
@click.option("--from", "source", required=True, metavar="ZONE", help="The zone that mirrors its logs.")
@click.option("--config", required=True, metavar="FILE", help="The mesh's configuration.")
@click.pass_context
def rebuild(context: click.Context, zone: str, source: str, config: str) -> None:
    """Bring back the logs of ZONE, which was destroyed and began anew: read-only, beside the new ones."""
    from mesh.commands import rebuild as rebuilding

    async def bring_back() -> None:
        (asked,) = _zones(context, config, zone)
        await rebuilding.run(asked, source, wants_json(context))

    run(bring_back())


def _zones(context: click.Context, file: str, zone: str | None) -> Any:
    from mesh.commands.zones import zones_of
    from protocol import config

    try:
        text = Path(file).read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error
    return zones_of(config.parse(text, file), zone, client_settings(context).timeout_ms / 1000)
