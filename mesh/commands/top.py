"""`mesh top`: a mesh as it is now, and again every second, until Ctrl-C.

Gateways are asked on their monitor ports, sinks on their `link` addresses, as `mesh status` does.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import click
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from mesh import terminal
from mesh.commands import links
from mesh.commands.sinks import Zone
from mesh.sizes import size
from mesh.top import Look, Told, figures
from protocol import config
from protocol.config_units import Address


class Watched:
    """The nodes to ask: the gateways of a file and the sinks of its zones, or what is behind one monitor port."""

    def __init__(self, monitors: Mapping[str, Address | None], zones: list[Zone], timeout_s: float) -> None:
        self._monitors, self._zones, self._timeout_s = monitors, zones, timeout_s

    @property
    def gateways(self) -> list[str]:
        return list(self._monitors)

    async def look(self) -> Look:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s)) as session:
            varz, routes, groups = await asyncio.gather(
                self._pages(session, "varz"),
                self._pages(session, "routez"),
                asyncio.gather(*(zone.groups() for zone in self._zones)),
            )
        return Look(time.monotonic(), varz, routes, [told for zone in groups for told in zone])

    async def _pages(self, session: aiohttp.ClientSession, path: str) -> Told:
        async def ask(address: Address | None) -> dict[str, Any]:
            if address is None:
                return {"error": "it has no `monitor` in the file"}
            return await links.page(session, str(address), path)

        pages = await asyncio.gather(*(ask(address) for address in self._monitors.values()))
        return dict(zip(self._monitors, pages, strict=True))


def watched(file: str | None, monitor: str, timeout_s: float) -> Watched:
    """All nodes of the configuration in `file`; without one, the gateway whose monitor is there."""
    if file is None:
        return Watched({monitor: Address.parse(monitor)}, [], timeout_s)
    configuration = config.parse(Path(file).read_text("utf-8", "surrogateescape"), file)
    gateways = [gateway for zone in configuration.zones.values() for gateway in zone.gateways.values()]
    zones = [Zone(configuration, name, timeout_s) for name, zone in configuration.zones.items() if zone.sinks]
    return Watched({gateway.name: gateway.monitor for gateway in gateways}, zones, timeout_s)


async def run(watched: Watched, interval_s: float, *, once: bool, as_json: bool) -> None:
    """Shows it again and again, or once. Figures are of the time between two looks, so the first takes an interval."""
    before = await watched.look()
    console = terminal.console()
    live = (
        Live(console=console, screen=True, auto_refresh=False)
        if console.is_terminal and not (once or as_json)
        else None
    )
    if live is not None:
        live.start()
        live.update(_screen(figures(before, before), watched.gateways), refresh=True)
    try:
        while True:
            await asyncio.sleep(interval_s)
            now = await watched.look()
            seen, before = figures(before, now), now
            if as_json:
                click.echo(msgspec.json.encode(seen))
                sys.stdout.flush()
            elif live is not None:
                live.update(_screen(seen, watched.gateways), refresh=True)
            else:
                console.print(_screen(seen, watched.gateways))
            if once:
                return
    finally:
        if live is not None:
            live.stop()


def _screen(seen: dict[str, Any], gateways: list[str]) -> RenderableType:
    parts: list[RenderableType] = [_gateways(seen["gateways"])]
    if len(gateways) > 1:
        parts += ["", links.table(seen["links"])]
    for number, told in enumerate(seen["groups"]):
        parts += ["", _sinks(told, number)]
    if seen["logs"]:
        parts += ["", _logs(seen["logs"])]
    return Group(*parts)


def _table(names: tuple[str, ...], numbers: tuple[str, ...], remarks: str = "") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    if remarks:
        table.add_column(remarks, overflow="fold")
    return table


def _gateways(told: Told) -> Table:
    numbers = "CONNECTIONS", "SUBSCRIPTIONS", "MSGS IN/S", "OUT/S", "BYTES IN/S", "OUT/S", "SLOW", "MEMORY"
    table = _table(("GATEWAY",), numbers, "REMARKS")
    for name, one in told.items():
        if "error" in one:
            table.add_row(name, *[""] * len(numbers), f"unknown: {one['error']}")
            continue
        messages = _rate(one["msgs_in_per_s"]), _rate(one["msgs_out_per_s"])
        sizes = _sizes(one["bytes_in_per_s"]), _sizes(one["bytes_out_per_s"])
        counted = str(one["connections"]), str(one["subscriptions"])
        table.add_row(name, *counted, *messages, *sizes, str(one["slow_consumers"]), size(one["mem"]), "")
    return table


def _sinks(told: Told, number: int) -> Table:
    table = _table((f"SINKS OF GROUP {number}", "STATE"), ("TERM", "COMMITTED", "LAG", "FREE"), "REMARKS")
    for name, one in told.items():
        if "error" in one:
            table.add_row(name, "down", *[""] * 4, one["error"])
            continue
        lag = "?" if one["lag_entries"] is None else str(one["lag_entries"])
        counted = str(one["term"]), str(one["commit_index"]), lag, size(one["free_bytes"])
        table.add_row(name, one["state"], *counted, f"muted: {one['muted']}" if one["muted"] else "")
    return table


def _logs(rows: list[dict[str, Any]]) -> Table:
    table = _table(("LOG",), ("EVENTS/S", "END", "RETAINED", "SIZE"))
    for row in rows:
        counted = str(row["end_offset"]), str(row["retained"]), size(row["bytes"])
        table.add_row(f"{row['stream']}/{row['partition']}", _rate(row["events_per_s"]), *counted)
    return table


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _sizes(value: float | None) -> str:
    return "-" if value is None else size(round(value))
