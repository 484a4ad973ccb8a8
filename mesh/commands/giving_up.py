"""`mesh repair --accept-loss LOG PARTITION`: has readers pass over what the disks of all sinks have spoilt.

The leader reads what it holds, has mended what anybody has, and tells which batches nobody has. With `yes` those that
were told become gap records, on all sinks of the zone; what has come to be bad meanwhile is left for the next time.
"""

import itertools
from typing import Any

import click
import msgspec
from rich.table import Table

from mesh import terminal
from mesh.commands.failure import Failure
from mesh.commands.sinks import Zone, leader_of, where
from protocol import link

READ_S_MAX = 3_600.0  # for the leader to read all segments of the partition, and to ask others
_numbers = itertools.count(1)


async def run(zone: Zone, log: str, partition: int, *, yes: bool, as_json: bool) -> None:
    """Failure: it cannot be done, or not all of it was."""
    number, leader = await _leader(zone, log, partition)
    asked = link.GiveUp(next(_numbers), log, partition)
    rows = await zone.give_up(leader, asked, number, READ_S_MAX)
    offsets = tuple(row["first"] for row in rows)
    if yes and rows:
        asked = link.GiveUp(next(_numbers), log, partition, offsets)
        again = {row["first"]: row for row in await zone.give_up(leader, asked, number, READ_S_MAX)}
        rows = [again.get(row["first"], {**row, "given_up": False}) for row in rows]
    if as_json:
        click.echo(msgspec.json.encode(rows))
    else:
        _print(rows, log, partition, leader, yes=yes)
    if yes and not all(row["given_up"] for row in rows):
        raise Failure("not all of it was given up: it has been mended meanwhile; look once more")


async def _leader(zone: Zone, log: str, partition: int) -> tuple[int, str]:
    """(group, sink) that leads the partition. Failure: nobody does, or there is none."""
    groups = await zone.groups()
    for number, told in enumerate(groups):
        logs = {(one["stream"], one["partition"]) for status in told.values() for one in status.get("logs", ())}
        if (log, partition) not in logs:
            continue
        leader = leader_of(told)
        if leader is None:
            raise Failure(f"no sink leads {where(zone, number, groups)}: `mesh status` says why")
        return number, str(leader["node"])
    raise Failure(
        f"zone {zone.name} has no partition {partition} of a log {log}; `mesh status` shows those that it has"
    )


def _print(rows: list[dict[str, Any]], log: str, partition: int, leader: str, *, yes: bool) -> None:
    name = f"{log}/{partition}"
    if not rows:
        click.echo(f"{name}: sink {leader} has all of it whole, or gap records stand there; there is nothing to repair")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("FROM", "TO"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("WHY NOBODY HAS IT", overflow="fold")
    for row in rows:
        table.add_row(str(row["first"]), str(row["last"]), row["why"])
    console = terminal.console()
    console.print(table)
    if yes:
        click.echo(f"{name}: gap records stand there from now on, on every sink of the zone")
    else:
        click.echo(f"{name}: readers get an error there. Nothing was done; with --yes they get a gap and go on.")
