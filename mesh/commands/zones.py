"""`mesh zones`: how far a zone's mirrors of other zones' logs are behind, as the sinks say that pull them."""

import asyncio
from typing import Any

import click
import msgspec
from rich.table import Table

from mesh import terminal
from mesh.commands.failure import Failure
from mesh.commands.sinks import Zone
from mesh.sizes import size
from protocol import config

_WELL = ("tail", "recreated")


async def run(zones: list[Zone], as_json: bool) -> None:
    """Prints the mirrors of these zones; Failure at the end if any stands still or has diverged."""
    found = dict(zip((zone.name for zone in zones), await asyncio.gather(*map(_rows, zones)), strict=True))
    if as_json:
        click.echo(msgspec.json.encode(found))
    elif any(found.values()):
        console = terminal.console()
        console.print(_table(found))
    else:
        click.echo(f"no mirrors are led in {', '.join(found)}")
    unwell = [
        f"{zone}: {row['stream']}/{row['partition']}: {row['state']}: {row['why']}"
        for zone, rows in found.items()
        for row in rows
        if row["state"] in ("stalled", "diverged")
    ]
    if unwell:
        raise Failure("\n".join(unwell))


async def _rows(zone: Zone) -> list[dict[str, Any]]:
    """In the order of their names. Whoever leads a group speaks for it."""
    groups = await zone.groups()
    rows = [row for told in groups for one in told.values() for row in one.get("mirrors", ())]
    return sorted(rows, key=lambda row: (row["stream"], row["partition"]))


def zones_of(configuration: config.Config, zone: str | None, timeout_s: float) -> list[Zone]:
    """Those that keep logs, or the one that is asked for. Failure: there is none of that name."""
    names = [zone] if zone is not None else [name for name, one in configuration.zones.items() if one.sinks]
    return [Zone(configuration, name, timeout_s) for name in names]


def _table(found: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ZONE", "LOG"):
        table.add_column(name, no_wrap=True)
    table.add_column("PARTITION", justify="right", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    for name in ("HELD TO", "EVENTS BEHIND", "BYTES", "SECONDS", "TIME LEFT"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("REMARKS", overflow="fold")
    for zone, rows in found.items():
        for row in rows:
            behind = str(row["lag_events"]), size(row["lag_bytes"]), f"{row['lag_seconds']:.1f}", _left(row)
            place = zone, row["stream"], str(row["partition"]), row["state"], str(row["end_offset"])
            table.add_row(*place, *behind, row["why"])
    return table


def _left(row: dict[str, Any]) -> str:
    if row["state"] in _WELL:
        return "-"
    return "?" if row["seconds_left"] < 0 else f"{row['seconds_left']:.0f} s"
