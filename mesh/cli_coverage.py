"""`mesh coverage` on the command line."""

from pathlib import Path
from typing import Any

import click

from mesh.cli_options import client_settings, global_options, wants_json
from mesh.cli_running import run
from mesh.commands.failure import Failure

_VIEW = "show"


class _Group(click.Group):
    """Without the name of one of its commands it is the view: `mesh coverage`, `mesh coverage orders`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else [_VIEW, *args])


@click.group(cls=_Group)
def coverage() -> None:
    """Show what gateways took in and where it is held (`mesh coverage [STREAM]`), and prove it."""


@coverage.command(_VIEW)
@global_options(on_group=False)
@click.argument("stream", required=False)
@click.option("--config", required=True, metavar="FILE", help="The mesh's configuration.")
@click.option("--zone", metavar="ZONE", help="What was taken in there, not in all zones.")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option("--known-gaps", is_flag=True, help="Gaps that stand in the log are known: they are not exit status 1.")
@click.pass_context
def show(
    context: click.Context, stream: str | None, config: str, zone: str | None, watch: bool, known_gaps: bool
) -> None:
    """Show what gateways took in, of all streams or of one, and where it is held.

    Exit status 1 unless all of it is held everywhere that it should be.
    """
    from mesh.commands import coverage as asking

    async def look() -> None:
        zones = _zones(context, config)
        await asking.run(zones, stream, zone, wants_json(context), watch=watch, known_gaps=known_gaps)

    run(look())


def _zones(context: click.Context, file: str) -> Any:
    from mesh.commands.zones import zones_of
    from protocol import config

    try:
        text = Path(file).read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error
    return zones_of(config.parse(text, file), None, client_settings(context).timeout_ms / 1000)
