"""`mesh coverage`: what gateways took in, and where it is held, as the sinks of all zones say.

Every sink of every zone is asked, as `mesh status` does. What is under way at the first look is waited for, a few
seconds at most; what the exit status is about is said in `mesh.covering`.
"""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import click
import msgspec
from rich.table import Table

from mesh import terminal
from mesh.commands.failure import BadInput, Failure
from mesh.commands.sinks import Zone
from mesh.covering import Groups, View, Wanted, look, streams_in
from mesh.sizes import size

_LOOKS = 8  # at most, until what the first one found under way is there
_PAUSE_S = 0.5  # between them
_WATCH_S = 1.0


class Asked:
    """What is looked at: all zones with sinks, and of those one, or one stream, if they are given."""

    def __init__(self, zones: list[Zone], stream: str | None, zone: str | None) -> None:
        """BadInput: there is no such zone, or none at all."""
        if not zones:
            raise BadInput("no zone has sinks: nothing is kept")
        self._zones, self._stream = {each.name: each for each in zones}, stream
        if zone is not None and zone not in self._zones:
            raise BadInput(f"no zone {zone!r} with sinks; there are: {', '.join(self._zones) or 'none'}")
        self._looked_at = [zone] if zone is not None else list(self._zones)
        self._copied = {
            (each.name, name)
            for each in zones[0].configuration.kept_streams()
            for name in self._zones
            if each.replicate == ("*",) or name in each.replicate
        }

    async def look(self, wanted: Wanted | None, *, known_gaps: bool) -> View:
        """BadInput: there is no such stream."""
        answers = await asyncio.gather(*(zone.groups() for zone in self._zones.values()))
        told: dict[str, Groups] = dict(zip(self._zones, answers, strict=True))
        known = streams_in(told)
        if self._stream is not None and known and self._stream not in known:
            raise BadInput(f"no stream {self._stream!r}; streams are {', '.join(known)}")
        return look(told, self._looked_at, self._stream, self._is_copied, wanted, known_gaps=known_gaps)

    def _is_copied(self, stream: str, zone: str) -> bool:
        return (stream, zone) in self._copied


async def run(asked: Asked, *, as_json: bool, watch: bool, known_gaps: bool) -> None:
    """Prints it. Failure: not all is held everywhere that it should be; a line says what, and where."""
    while True:
        view = await asked.look(None, known_gaps=known_gaps)
        if watch:
            _show(view, as_json, clear=sys.stdout.isatty())
            await asyncio.sleep(_WATCH_S)
            continue
        for _ in range(_LOOKS - 1):
            if not view.open or view.problems:
                break
            await asyncio.sleep(_PAUSE_S)
            view = await asked.look(view.wanted, known_gaps=known_gaps)
        _show(view, as_json, clear=False)
        if view.problems or view.open:
            raise Failure("\n".join([*view.problems, *view.open]))
        return


def _show(view: View, as_json: bool, *, clear: bool) -> None:
    problems = [*view.problems, *view.open]
    if as_json:
        click.echo(msgspec.json.encode({"covered": not problems, "problems": problems, "zones": view.zones}))
        return
    console = terminal.console()
    if clear:
        console.clear()
    for name, zone in view.zones.items():
        for part in _parts(name, zone):
            console.print(part, highlight=False, markup=False)
        console.print()
    if clear:
        for problem in problems:
            console.print(problem, highlight=False, markup=False)


def _parts(name: str, zone: dict[str, Any]) -> Iterator[Table | str]:
    """Of one zone, with empty lines between them."""
    yield _headline(name, zone)
    if zone["rows"]:
        yield _rows(zone)
        yield ""
    yield _logs(zone)
    if zone["gateways"]:
        yield ""
        yield _gateways(zone)
    if zone["uncovered"]:
        yield ""
        yield _uncovered(zone)


def _headline(name: str, zone: dict[str, Any]) -> str:
    totals = zone["totals"]
    parts = [f"{totals[key]} {words}" for key, words in (
        ("held", "held"), ("duplicates", "duplicates"), ("refused", "refused by the log"), ("gaps", "given up"),
        ("lost", "lost"), ("under_way", "under way"),
    ) if totals[key] or key == "held"]  # fmt: skip
    return f"zone {name}: {totals['taken_in']} events taken in: {', '.join(parts)}"


def _table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=column != "REMARKS")
    return table


def _rows(zone: dict[str, Any]) -> Table:
    """A row for each gateway worker in each partition."""
    on = [f"HELD ON {sink}" for sink in zone["sinks"]]
    counts = ("TAKEN IN", "ACKNOWLEDGED", *on, "UNDER WAY", "REFUSED", "DUPLICATE", "GAPS")
    table = _table("LOG", "GATEWAY", *counts, "REMARKS", left=("LOG", "GATEWAY", "REMARKS"))
    for row in zone["rows"]:
        held = ["?" if sink in zone["down"] else str(row["held_by"][sink]) for sink in zone["sinks"]]
        acknowledged = "-" if row["acknowledged"] is None else str(row["acknowledged"])
        gateway = f"{row['node']}/{row['worker']}" + (" (sink)" if row["by_sink"] else "")
        numbers = (row["under_way"], row["refused"], row["duplicates"], row["gaps"] + row["lost"])
        table.add_row(
            f"{row['stream']}/{row['partition']}", gateway, str(row["taken_in"]), acknowledged, *held,
            *map(str, numbers), "; ".join(_remarks(row, zone)),
        )  # fmt: skip
    return table


def _remarks(row: dict[str, Any], zone: dict[str, Any]) -> Iterator[str]:
    whose = ("stream", "partition", "node", "worker")
    for gap in zone["gaps"]:
        if all(gap[name] == row[name] for name in whose):
            bound = "at most " if gap["why"] == "unclosed" else ""
            yield f"{gap['why']}: {bound}{gap['events']} events"


def _logs(zone: dict[str, Any]) -> Table:
    """A row for each partition: where it ends on each sink, and how far other zones have it."""
    others = sorted({other for log in zone["logs"] for other in log["copies"]})
    ends = [f"END ON {sink}" for sink in zone["sinks"]]
    copies = [heading for other in others for heading in (f"END IN {other}", f"LAG {other}")]
    table = _table("LOG", *ends, *copies, left=("LOG",))
    for log in zone["logs"]:
        cells = [str(log["ends"].get(sink, "?")) for sink in zone["sinks"]]
        for other in others:
            copy = log["copies"].get(other)
            cells += ["-", "-"] if copy is None else [_known(copy["end_offset"]), _lag(copy)]
        table.add_row(f"{log['stream']}/{log['partition']}", *cells)
    return table


def _known(offset: int | None) -> str:
    return "?" if offset is None else str(offset)


def _lag(copy: dict[str, Any]) -> str:
    if copy["lag_events"] is None:
        return "?"
    return f"{copy['lag_events']} events, {copy['lag_seconds']:.1f} s" if copy["lag_events"] else "0"


def _gateways(zone: dict[str, Any]) -> Table:
    table = _table("GATEWAY", "STATE", "HEARD", "SIGNED", "REFUSED", "REMARKS", left=("GATEWAY", "STATE", "REMARKS"))
    for each in zone["gateways"]:
        remarks = [f"{each['unclosed']} earlier processes without a last beacon"] if each["unclosed"] else []
        refused = ", ".join(f"{count} with {code}" for code, count in each["refused"].items()) or "0"
        heard, signed = f"{each['silent_ms'] / 1000:.1f} s ago", "yes" if each["signed"] else "no"
        table.add_row(f"{each['node']}/{each['worker']}", each["state"], heard, signed, refused, "; ".join(remarks))
    return table


def _uncovered(zone: dict[str, Any]) -> Table:
    """Events that nobody accounts for: they were counted, and that is all."""
    table = _table("NOT COVERED", "WHY", "STREAM", "EVENTS", "BYTES", left=("NOT COVERED", "WHY", "STREAM"))
    for row in zone["uncovered"]:
        events = str(row["events"]), size(row["bytes"])
        table.add_row(f"{row['node']}/{row['worker']}", row["why"], row.get("stream", ""), *events)
    return table
