"""`mesh scrub`: has sinks read their finished segments again, and waits until that is done.

Each Raft group of each sink is asked for a round (`sinkd.shell.scrubbing`) and then for its status, until the round is
over. Damage is mended on the way; what could not be is listed, and is the exit status.
"""

import asyncio
import sys
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from mesh import terminal
from mesh.commands.failure import Failure
from mesh.commands.sinks import Zone, why
from mesh.sizes import size

_LOOK_S = 0.25  # between two looks
Place = tuple[str, int]
"""(sink, group)"""


async def run(zone: Zone, names: tuple[str, ...], as_json: bool) -> None:
    """Prints what was read and mended. Failure: something is damaged still, or a sink could not be asked."""
    unknown = sorted(set(names) - zone.sinks.keys())
    if unknown:
        raise Failure(f"zone {zone.name} has no sink {unknown[0]}; there are: {', '.join(zone.sinks)}")
    before = {
        (name, number): told
        for number, group in enumerate(await zone.groups())
        for name, told in group.items()
        if not names or name in names
    }
    problems = await _begin(zone, before)
    after = await _until_over(zone, {place: told for place, told in before.items() if place not in problems})
    _print(before, after, as_json)
    for (name, number), told in after.items():
        lines = [told["error"]] if "error" in told else told["damaged"]
        if lines:
            problems[name, number] = "\n".join(lines)
    if problems:
        raise Failure("\n".join(f"{name}: {problem}" for (name, _), problem in problems.items()))


async def _begin(zone: Zone, places: dict[Place, dict[str, Any]]) -> dict[Place, str]:
    """Asks each for a round; why not, of those that cannot be asked."""
    problems = {place: str(told["error"]) for place, told in places.items() if "error" in told}
    for name, number in places.keys() - problems.keys():
        try:
            await zone.scrub(name, number)
        except (OSError, TimeoutError, Failure) as error:
            problems[name, number] = why(error)
    return problems


async def _until_over(zone: Zone, before: dict[Place, dict[str, Any]]) -> dict[Place, dict[str, Any]]:
    """The status of each when its round is over, or `{"error": ...}` when it cannot be asked any more."""
    after: dict[Place, dict[str, Any]] = {}
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks = {place: bars.add_task(f"{place[0]}", total=None) for place in before}
        while len(after) < len(before):
            groups = {number for _, number in before.keys() - after.keys()}
            told = {number: await zone.status(number) for number in groups}
            for name, number in before.keys() - after.keys():
                one = told[number][name]
                if "error" in one or _is_over(before[name, number]["scrub"], one["scrub"]):
                    after[name, number] = one
                else:
                    scrub = one["scrub"]
                    bars.update(tasks[name, number], total=scrub["of_bytes"], completed=scrub["read_bytes"])
            await asyncio.sleep(_LOOK_S * (len(after) < len(before)))
    return {place: after[place] for place in before}


def _is_over(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """A round has ended since, or the sink has been started anew."""
    return now["rounds"] != before["rounds"] and not now["is_under_way"]


def _print(before: dict[Place, dict[str, Any]], after: dict[Place, dict[str, Any]], as_json: bool) -> None:
    rows = [
        {
            "sink": name,
            "group": number,
            "read_bytes": told["scrub"]["of_bytes"],
            "mended": max(0, told["scrub"]["mended"] - before[name, number]["scrub"]["mended"]),
            "damaged": told["damaged"],
        }
        for (name, number), told in after.items()
        if "error" not in told
    ]
    if as_json:
        click.echo(msgspec.json.encode(rows))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("SINK", no_wrap=True)
    for heading in ("GROUP", "READ", "MENDED", "DAMAGED"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        numbers = row["mended"], len(row["damaged"])
        table.add_row(row["sink"], str(row["group"]), size(row["read_bytes"]), *map(str, numbers))
    terminal.console().print(table)
