"""`mesh coverage` on the command line."""

from pathlib import Path
from typing import Any

import click

from mesh.cli_options import client_settings, global_options, wants_json
from mesh.cli_running import run
from mesh.commands.failure import BadInput, Failure
from protocol.errors import MeshError

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

    Exit status 0 only if all of it is held everywhere that it should be; 1: not, and what, where; 2: there is no such
    stream, zone or file.
    """
    from mesh.commands import coverage as asking

    async def look() -> None:
        try:
            zones = _zones(context, config)
        except (Failure, MeshError) as error:
            raise BadInput(str(error)) from error
        asked = asking.Asked(zones, stream, zone)
        await asking.run(asked, as_json=wants_json(context), watch=watch, known_gaps=known_gaps)

    run(look())


@coverage.command("certify")
@global_options(on_group=False)
@click.argument("stream")
@click.option("--output", "-o", required=True, metavar="FILE", help="Where the certificate is written.")
@click.option("--config", required=True, metavar="FILE", help="The mesh's configuration.")
@click.option("--zone", metavar="ZONE", help="Whose log it is, if several zones keep logs.")
@click.option("--previous", metavar="FILE", help="The certificate that this one goes on from.")
@click.option(
    "--mirrors", metavar="ZONES", help="Other zones that sign too, with commas; '' for none. [all that mirror it]"
)
@click.pass_context
def certify(
    context: click.Context, stream: str, output: str, config: str, zone: str | None, previous: str | None,
    mirrors: str | None,
) -> None:  # fmt: skip
    """Have the sinks read STREAM again and sign what they hold: a certificate, for `mesh coverage verify`.

    A majority of the sinks of each zone has to sign; else there is none, and it is said who did not, and why.
    """
    from mesh.commands import certify as certifying

    configuration = _configuration(config)
    zones = {one.name: one for one in _zones(context, config)}
    names = tuple(filter(None, mirrors.split(","))) if mirrors is not None else None
    earlier = Path(previous) if previous is not None else None
    run(certifying.run(zones, _origin(zones, zone), configuration, stream, names, Path(output), earlier))


@coverage.command("verify")
@click.argument("file")
@click.option("--ca", required=True, metavar="FILE", help="The authority of the mesh's nodes (tls.nodes.ca), PEM.")
@click.option("--data", metavar="FOLDER", help="A sink's data folder, or segments from one: their roots are computed.")
@click.option("--server", metavar="HOST:PORT", help="A sink's link address: its batches are fetched and compared.")
@click.option("--config", metavar="FILE", help="With --server: how to be let in there (tls.nodes).")
@click.option("--previous", metavar="FILE", help="The certificate that it goes on from.")
@click.option("--proof", metavar="FILE", help="By `mesh coverage prove`: that one event is in the certified log.")
@click.option("--json", "as_json", is_flag=True, help="Output for machines.")
def verify(
    file: str, ca: str, data: str | None, server: str | None, config: str | None, previous: str | None,
    proof: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Check the certificate FILE, without any node of the mesh. Exit status 0: proved; 1: not; 2: bad input."""
    from mesh.commands import verify as verifying

    paths = (Path(one) if one is not None else None for one in (data, previous, proof))
    at_data, at_previous, at_proof = paths
    asked = None
    if server is not None:
        if config is None:
            raise click.UsageError("--server needs --config: which sinks there are, and how they are reached")
        asked = verifying.server_of(_configuration(config), server)
    verifying.run(Path(file), Path(ca), at_data, asked, at_previous, at_proof, as_json)


@coverage.command("prove")
@global_options(on_group=False)
@click.argument("stream")
@click.argument("partition", type=int)
@click.argument("offset", type=int)
@click.option("--config", required=True, metavar="FILE", help="The mesh's configuration.")
@click.option("--zone", metavar="ZONE", help="Whose sinks are asked, if several zones keep logs.")
@click.option("--certificate", metavar="FILE", help="Prove it under the root of this one.")
@click.option("--ca", metavar="FILE", help="Check that certificate with this authority.")
@click.option("--output", "-o", metavar="FILE", help="Where the proof is written, for `mesh coverage verify --proof`.")
@click.pass_context
def prove(
    context: click.Context, stream: str, partition: int, offset: int, config: str, zone: str | None,
    certificate: str | None, ca: str | None, output: str | None,
) -> None:  # fmt: skip
    """Prove that the event at OFFSET is in the log, as it was taken in."""
    from mesh.commands import prove as proving
    from mesh.commands import verify as verifying

    zones = {one.name: one for one in _zones(context, config)}
    asked = zones[_origin(zones, zone)]
    authorities = verifying.read_authorities(Path(ca)) if ca is not None else None
    file, under = (Path(one) if one is not None else None for one in (output, certificate))
    run(proving.run(asked, stream, partition, offset, file, under, authorities, wants_json(context)))


def _origin(zones: dict[str, Any], zone: str | None) -> str:
    names = ", ".join(zones) or "none"
    if zone is not None and zone not in zones:
        raise Failure(f"no zone {zone!r} with sinks; there are: {names}")
    if zone is None and len(zones) != 1:
        raise Failure(f"which zone? --zone one of {names}")
    return zone or next(iter(zones))


def _zones(context: click.Context, file: str) -> Any:
    from mesh.commands.zones import zones_of

    return zones_of(_configuration(file), None, client_settings(context).timeout_ms / 1000)


def _configuration(file: str) -> Any:
    from protocol import config
    from protocol.errors import ConfigError

    try:
        return config.parse(Path(file).read_text("utf-8", "surrogateescape"), file)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error
    except ConfigError as error:
        raise Failure(str(error)) from error
