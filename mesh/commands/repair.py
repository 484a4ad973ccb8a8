"""`mesh repair --accept-loss`: has a Raft group that has stopped for good go on with what one of its members holds.

It looks, says what it would do, and does it only with `yes`. What the members say is compared here, for a sink does not
know what the others hold; whether the group has stopped, and that nobody is missing who may hold more, the sink that is
to go on looks at once more (`sinkd.shell.repairing`).
"""

import itertools
from typing import Any

import click
from rich.table import Table

from mesh import terminal
from mesh.commands.failure import Failure
from mesh.commands.sinks import Told, Zone, leader_of, where
from protocol import link

READ_S_MAX = 3_600.0  # for a sink to read all that it holds
_numbers = itertools.count(1)


async def run(zone: Zone, group: int | None, gone: tuple[str, ...], *, yes: bool) -> None:
    """Failure: it cannot be done, and nothing was."""
    groups = await zone.groups()
    if group is None and len(groups) > 1:
        raise Failure(f"which group? zone {zone.name} has {len(groups)}: --group 0 to {len(groups) - 1}")
    number = group or 0
    if number >= len(groups):
        raise Failure(f"zone {zone.name} has no group {number}: it has {len(groups)}, from 0 on")
    told, its_name = groups[number], where(zone, number, groups)
    _look(told, its_name, gone)
    chosen = await _chosen(zone, told, number, gone)
    _say(told, its_name, chosen, gone)
    if not yes:
        click.echo("Nothing was done. With --yes it is.")
        return
    await zone.accept_loss(chosen["node"], _question(chosen, gone, only_check=False), number, READ_S_MAX)
    click.echo(f"sink {chosen['node']} leads {its_name}, and is its only member")


def _question(one: dict[str, Any], gone: tuple[str, ...], *, only_check: bool) -> link.AcceptLoss:
    return link.AcceptLoss(next(_numbers), one["last_term"], one["last_index"], gone, only_check)


def _look(told: Told, its_name: str, gone: tuple[str, ...]) -> None:
    """Failure: the group has not stopped, or it is not known what all of its members hold."""
    leader = leader_of(told)
    if leader is not None:
        raise Failure(f"{its_name} goes on: sink {leader['node']} leads it; there is nothing to repair")
    members = {name for one in told.values() for name in one.get("members", ())}
    if not members:
        errors = "; ".join(f"{name}: {one.get('error') or one['waits']}" for name, one in told.items())
        raise Failure(f"no sink knows the members of {its_name}: {errors}")
    for name in gone:
        if name not in members:
            raise Failure(f"sink {name} is no member of {its_name}; members are {', '.join(sorted(members))}")
        if "error" not in told.get(name, {"error": ""}):
            raise Failure(f"sink {name} is said to be gone, and answers")
    missing = sorted(name for name in members - set(gone) if "error" in told.get(name, {"error": ""}))
    if missing:
        why = "; ".join(f"{name}: {told.get(name, {}).get('error', 'it is not in the file')}" for name in missing)
        raise Failure(
            f"what all members hold has to be known, and some cannot be asked: {why}. Start them, with an empty folder "
            f"where the disk is lost; one that will never come back is named with --gone {missing[0]}"
        )


async def _chosen(zone: Zone, told: Told, number: int, gone: tuple[str, ...]) -> dict[str, Any]:
    """The member that holds most, of those that can read all that they hold. Failure: none can."""
    asked = [one for one in told.values() if one.get("member") and one["last_index"]]
    problems = []
    for one in sorted(asked, key=lambda one: (one["last_term"], one["last_index"], not one["muted"]), reverse=True):
        try:
            await zone.accept_loss(one["node"], _question(one, gone, only_check=True), number, READ_S_MAX)
        except Failure as failure:
            problems.append(failure.message)
        else:
            for problem in problems:
                click.echo(f"passed over: {problem}")
            return one
    raise Failure(
        "; ".join(problems) or "no member holds anything: with empty folders everywhere the group begins anew"
    )


def _say(told: Told, its_name: str, chosen: dict[str, Any], gone: tuple[str, ...]) -> None:
    """What would be done."""
    console = terminal.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SINK", "HOLDS UP TO ENTRY", "OF TERM", "REMARKS"):
        table.add_column(
            name, no_wrap=name != "REMARKS", justify="right" if name in ("HOLDS UP TO ENTRY", "OF TERM") else "left"
        )
    for name, one in told.items():
        if name in gone:
            table.add_row(name, "", "", "said to be gone for good")
        elif one.get("member"):
            table.add_row(
                name, str(one["last_index"]), str(one["last_term"]), one["muted"] and f"muted: {one['muted']}"
            )
    console.print(f"{its_name} has stopped: {chosen['waits']}", highlight=False, markup=False)
    console.print(table)
    node = chosen["node"]
    click.echo(f"Sink {node} holds most, and has read all of it: it would go on alone, as the only member.")
    click.echo("What only others held is lost, acknowledged or not; how much that is nobody knows. Gap records say so:")
    for log in chosen["logs"]:
        if "@" not in log["stream"]:
            click.echo(f"  {log['stream']}/{log['partition']}: at offset {log['end_offset']} or a later one")
    click.echo(
        f"Sinks of the old group put aside what they have when they meet {node}, and are filled. When they are whole, "
        "make them members again: mesh sinks add."
    )
