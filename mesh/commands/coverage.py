"""`mesh coverage`: what gateways took in, and where it is held, as the sinks of all zones say."""

import asyncio

import click
import msgspec

from mesh.commands.sinks import Zone


async def run(
    zones: list[Zone], stream: str | None, zone: str | None, as_json: bool, *, watch: bool, known_gaps: bool
) -> None:
    """Prints it. Failure: not all is held everywhere that it should be."""
    told = await asyncio.gather(*(one.groups() for one in zones))
    click.echo(msgspec.json.encode({one.name: groups for one, groups in zip(zones, told, strict=True)}))
