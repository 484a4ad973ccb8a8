"""The sink tier's table, and its section of docs/performance.md. Results are kept beside those of the gateway."""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

from rich.table import Table

from bench.report import Result, bounds
from bench.sinks.rows import Metric, Row
from bench.sinks.tiers import ALWAYS, DEFAULT, UNCOVERED, ZONE

KEY_PREFIX: Final = "sinks/"  # of a row among the kept results
HEADS = ("work", ZONE, ALWAYS, "ratio (min..max)", DEFAULT, "ratio (min..max)", "goal", "reached", "CPU per event")


@dataclass(frozen=True)
class Line:
    """One line of the table, in words."""

    work: str
    ours: str
    always: str
    to_always: str
    default: str
    to_default: str
    goal: str
    verdict: str
    cpu: str


def lines(row: Row, result: Result) -> list[Line]:
    names = {kind.name for kind in row.contenders}
    return [_line(row, metric, result, names) for metric in row.metrics]


def _line(row: Row, metric: Metric, result: Result, names: set[str]) -> Line:
    other = UNCOVERED if UNCOVERED in names else DEFAULT  # in the last column
    shown = {name: _shown(result.of(name, metric.key), metric.unit) for name in (ZONE, ALWAYS, other)}
    missing = {name: f"n/a: {result.missing[name]}" for name in names if name in result.missing}
    compared = (ZONE, UNCOVERED) if other == UNCOVERED else (ZONE, ALWAYS, DEFAULT)
    cpu = [result.of(name, "cpu") for name in compared] if metric is row.metrics[0] else []
    default = missing.get(other, shown[other])
    return Line(
        work=f"{row.title}: {metric.title}" if metric.title else row.title,
        ours=missing.get(ZONE, shown[ZONE]),
        always=missing.get(ALWAYS, shown[ALWAYS]),
        to_always=_ratio(metric, result, ALWAYS),
        default=f"coverage off: {default}" if default and other == UNCOVERED else default,
        to_default=_ratio(metric, result, other),
        goal=_goal(metric),
        verdict=verdict(metric, result),
        cpu=" / ".join(f"{median(part) / 1e3:.1f}" for part in cpu) + " µs" if cpu and all(cpu) else "",
    )


def _ratio(metric: Metric, result: Result, name: str) -> str:
    ours, theirs = result.of(ZONE, metric.key), result.of(name, metric.key)
    ratios = [one / other for one, other in zip(ours, theirs, strict=False) if other]
    if not ratios or not median(theirs):
        return ""
    return f"{median(ours) / median(theirs):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"


def _goal(metric: Metric) -> str:
    word = "at least" if metric.more_is_better else "at most"
    parts = [f"{word} {goal:g} of {name}" for name, goal in metric.goals.items()]
    if metric.bound is not None:
        parts.append(f"{word} {_figure(metric.bound, metric.unit)}")
    return ", ".join(parts)


def verdict(metric: Metric, result: Result) -> str:
    """`yes`, `no`, or nothing when there is no goal."""
    ours = result.of(ZONE, metric.key)
    reached = [(median(ours), metric.bound)] if ours and metric.bound is not None else []
    for name, goal in metric.goals.items():
        if ours and (theirs := result.of(name, metric.key)):
            reached.append((median(ours) / median(theirs), goal))
    if len(reached) < len(metric.goals) + (metric.bound is not None):
        return "not measured"
    if not reached:
        return ""
    return "yes" if all(value >= goal if metric.more_is_better else value <= goal for value, goal in reached) else "no"


def _shown(values: list[float], unit: str) -> str:
    return _figure(median(values), unit) if values else ""


def _figure(value: float, unit: str) -> str:
    if unit == "/s":
        return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.3g} k/s"
    if unit in ("x", "part"):
        return f"{value:.2f}"
    if unit == "events":
        return f"{value:.0f}"
    return (
        f"{value:.3g} {'µs' if unit == 'us' else unit}" if value < 1000 else f"{value:.0f} {unit}".replace("us", "µs")
    )


def table(shown: list[Line]) -> Table:
    """For the terminal."""
    made = Table(*HEADS)
    for line in shown:
        colour = {"yes": "green", "no": "red"}.get(line.verdict, "yellow" if line.goal else None)
        made.add_row(*asdict(line).values(), style=colour)
    return made


# -- the section ------------------------------------------------------------------------------------------------------

HEAD = """
## The sink tier beside JetStream

A zone of sinks behind one gateway beside a cluster of nats-servers with a replicated stream in files, on one machine,
one after the other. Once the cluster runs with `sync_interval: always`, as our acknowledgement means, and once with its
default, where an event is acknowledged before it is synced.

    .venv/bin/python -m bench --group sinks                     # all rows, on the terminal only
    .venv/bin/python -m bench --group sinks --restart-bytes 10GiB --write docs/performance.md

- {versions}
- Measured: {dates}; {rounds}; load average before it: {load:.1f}
- {settings}

"""

HOW = """
### How the sink tier is measured

- The rounds alternate, each tier in another order, each in fresh processes with new data folders; only one tier runs at
  a time. Figures are medians over the rounds; behind a ratio stand the smallest and the largest of the rounds.
- All nodes of a tier, the gateway and the load generators share this one machine and its disk. Nothing is pinned to a
  CPU.
- Payloads: half of their bytes are random. What is read back is compared with what was published, byte for byte (in
  Python: size, number and order).
- Acknowledged publish: one connection, a program in C, a new inbox for each event. Each acknowledgement has to be a
  success with the sequence that its event must have. JetStream's publisher is connected to the stream's leader, ours to
  the gateway.
- Without a follower: the same on the same tier after SIGKILL of one node that does not lead. 'Part of all up' compares
  with the run before it.
- SIGKILL of the leader: {window} events under way; what has no answer for {patience_ms} ms is given up and another
  event is published; the longest time without any acknowledgement counts. The publisher's own server is not the one
  that is killed. 'Never answered' are the events given up that were not acknowledged later either.
- History: 'nothing cached' means fresh processes, and the data's pages were taken out of the kernel's cache
  (`posix_fadvise`). By raw socket: a program in C that reads frames from one connection and compares every payload,
  with one `$LOG.FETCH` for all of it; JetStream's ordered consumer pulls (for 'a second time': pulls or is pushed to,
  whichever is faster). By NATS client: `mesh.client`; nats-py's ordered consumer.
- Restart: all processes of the tier at once, from their start until all events are there, another one was acknowledged
  and the first one was read. The pages of the data are not cached.
- Written to the disk is the kernel's count for a process (`write_bytes` in `/proc/PID/io`), of the node with the most:
  whole pages, each time that they become dirty anew. So a page that grows over many syncs counts many times; and where
  the kernel keeps large folios, all of a folio counts, up to a MiB, of which only the part that changed is written. The
  shares of journal and segments are bytes of their files; a journal file is also filled with zeros when it is made
  anew, which is not in them.
- Coverage on against off: two zones of ours, of which one has `[coverage] enabled = false`: no digests, no accounts and
  trees, no beacons, nobody who compares them. The last columns are of that one.
- "CPU per event" is the CPU time of all processes of a tier, per acknowledged event: {names}.
"""


def section(rows: list[Row], results: dict[str, Result], how: dict[str, object]) -> str:
    """The section of the page; rows without a result are left out, and without any it is empty."""
    measured = [(row, results[KEY_PREFIX + row.key]) for row in rows if KEY_PREFIX + row.key in results]
    if not measured:
        return ""
    text = HEAD.format(**_facts([result for _, result in measured]))
    text += "| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS) + "\n"
    for row, result in measured:
        for line in lines(row, result):
            text += "| " + " | ".join(asdict(line).values()) + " |\n"
    below = [row for row, result in measured if any(verdict(metric, result) == "no" for metric in row.metrics)]
    named = " / ".join((ZONE, ALWAYS, DEFAULT))
    return text + bounds([(KEY_PREFIX + row.key, row.title) for row in below], "###") + HOW.format(names=named, **how)


def _facts(results: list[Result]) -> dict[str, object]:
    dates = sorted({result.date for result in results})
    rounds = sorted({len(next(iter(of.values()))) for result in results for of in result.values.values()})
    return {
        "versions": "; ".join(sorted({f"{result.gateway}; nats-server {result.nats_server}" for result in results})),
        "dates": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        "rounds": f"{'..'.join(str(number) for number in sorted({rounds[0], rounds[-1]}))} rounds"
        if rounds
        else "none",
        "load": max(result.load for result in results),
        "settings": "\n- ".join(sorted({result.setting for result in results})),
    }
