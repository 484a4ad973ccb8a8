"""The table about copies between zones, and its section of docs/performance.md. Results are kept beside the others."""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

from rich.table import Table

from bench.report import Result, bounds, facts
from bench.zones.pairs import COMPRESSED, OURS, THEIRS
from bench.zones.rows import CATCH_UP_S, LAG_S, LOOPBACK_BYTES, TEXT_BYTES, Bare, Metric, Row
from protocol.config_units import format_size

KEY_PREFIX: Final = "zones/"  # of a row among the kept results
HEADS: Final = ("work", OURS, THEIRS, "ratio (min..max)", COMPRESSED, "relay alone", "goal", "reached")

HEAD = """
## Copies between zones beside JetStream's mirrors

Two sides with one node each, on 127.0.0.1, and between them one relay that delays what passes, in each direction, and
lets no more pass than 100 Mbit/s, where the row says so. The same relay for all.

    .venv/bin/python -m bench --group zones --rounds 2 --write docs/performance.md

- {gateway}; nats-server {nats_server}
- Measured: {dates}; {rounds} rounds; load average before it: {load:.1f}

"""

HOW = """
### How copies are measured

- Ours: a gateway and a sink on each side, `fsync` as by default: a copy is on the disk before it counts. JetStream: a
  nats-server on each side, the copy's as a leaf of the origin's in a JetStream domain of its own, with a mirror of the
  origin's stream; `sync_interval` as by default, two minutes. The leaf link is not compressed, but for the column that
  says so: there `compression: s2_fast`.
- The relay (`bench/zones/relay.py`) is a pipe for each direction of a connection: rate, then delay; it holds what the
  pipe holds and 1 MiB more. It counts bytes above TCP, both ways. "relay alone": a socket that sends what it can.
- Catch-up: the copy's side is stopped, events of random bytes are published, as many as a full link takes in
  {catch_up_s:g} s (for loopback {loopback}), and the copy's side is started. Time counts from when a tenth is there
  until all is. The share of the link is that of the relayed bytes. Memory is what is resident in the processes that
  copy and are copied from.
- Text: lines of 60 bytes and more of the sources of Python's library, {text} of them, each an event; the copy catches
  up with them.
- Lag: events come for {lag_s:g} s at a steady pace; a hundred times a second the copy's side is asked what it has, and
  the lag is the age of the oldest event that it lacks, by the time of the answer. The first second does not count.
- Events that another zone has: one at a time, header `Mesh-Ack: geo`. JetStream has nothing of the kind.
- Publishing: alone with the copy's side stopped, then beside its catching up with what was published until then.
"""


@dataclass(frozen=True)
class Line:
    """One line of the table, in words."""

    work: str
    ours: str
    theirs: str
    ratio: str
    compressed: str
    relay: str
    goal: str
    verdict: str


def lines(row: Row, result: Result) -> list[Line]:
    return [_line(row, metric, result) for metric in row.metrics]


def _line(row: Row, metric: Metric, result: Result) -> Line:
    shown = {
        kind.name: _shown(result.of(kind.name, metric.key), metric.unit)
        or (f"n/a: {result.missing[kind.name]}" if kind.name in result.missing else "")
        for kind in row.contenders
    }
    return Line(
        work=f"{row.title}: {metric.title}" if metric.title else row.title,
        ours=shown[OURS],
        theirs=shown.get(THEIRS, ""),
        ratio=_ratio(metric, result),
        compressed=shown.get(COMPRESSED, ""),
        relay=shown.get(Bare.name, ""),
        goal=_goal(metric),
        verdict=verdict(metric, result),
    )


def _shown(values: list[float], unit: str) -> str:
    if not values:
        return ""
    value = median(values)
    if unit == "/s":
        return f"{value / 1e3:.1f} k/s"
    return f"{value:.0f} {unit}" if abs(value) >= 10 else f"{value:.1f} {unit}"


def _ratio(metric: Metric, result: Result) -> str:
    ours, theirs = result.of(OURS, metric.key), result.of(THEIRS, metric.key)
    ratios = [one / other for one, other in zip(ours, theirs, strict=False) if other > 0]
    if not ratios or median(theirs) <= 0:
        return ""
    return f"{median(ours) / median(theirs):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"


def _goal(metric: Metric) -> str:
    word = "at least" if metric.more else "at most"
    parts = [f"{word} {metric.own:.0f} {metric.unit}"] if metric.own is not None else []
    parts += [f"ratio {word} {metric.beside:g}"] if metric.beside is not None else []
    return ", ".join(parts)


def verdict(metric: Metric, result: Result) -> str:
    """`yes`, `no`, or nothing when there is no goal."""
    ours, theirs = result.of(OURS, metric.key), result.of(THEIRS, metric.key)
    if metric.own is None and metric.beside is None:
        return ""
    if not ours or (metric.beside is not None and not theirs):
        return "not measured"
    reached = [(median(ours), metric.own)] if metric.own is not None else []
    reached += [(median(ours) / median(theirs), metric.beside)] if metric.beside is not None else []
    good = all(value >= goal if metric.more else value <= goal for value, goal in reached)
    return "yes" if good else "no"


def table(shown: list[Line]) -> Table:
    """For the terminal."""
    made = Table(*HEADS)
    for line in shown:
        colour = {"yes": "green", "no": "red"}.get(line.verdict, "yellow" if line.goal else None)
        made.add_row(*asdict(line).values(), style=colour)
    return made


def section(rows: list[Row], results: dict[str, Result]) -> str:
    """Of docs/performance.md; rows without a result are left out, and without any it is empty."""
    measured = [(row, results[KEY_PREFIX + row.key]) for row in rows if KEY_PREFIX + row.key in results]
    if not measured:
        return ""
    text = HEAD.format(**facts([result for _, result in measured]))
    text += "| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS) + "\n"
    for row, result in measured:
        for line in lines(row, result):
            text += "| " + " | ".join(asdict(line).values()) + " |\n"
    below = [row for row, result in measured if any(verdict(metric, result) == "no" for metric in row.metrics)]
    text += bounds([(KEY_PREFIX + row.key, row.title) for row in below], "###")
    sizes = {"loopback": format_size(LOOPBACK_BYTES), "text": format_size(TEXT_BYTES)}
    return text + HOW.format(catch_up_s=CATCH_UP_S, lag_s=LAG_S, **sizes)
