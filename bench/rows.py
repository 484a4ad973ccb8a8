"""What is measured: the rows of the table, each with its goal."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.requests import ask
from bench.servers import BenchError, NatsServer, Server, Setup
from bench.standing import Others, idle_connections, others, steady_memory_bytes
from bench.stream import Running, Stream, measure
from bench.traffic import SUBJECT, Traffic

WARM_UP_PART = 0.25
IN_FLIGHT = 512  # requests
OTHERS_STEPS = (1, 1_000, 100_000, 1_000_000)
LOAD_PART = 0.5
LOAD_REACHED_PART = 0.9
SETTLE_S = 0.2
PLAIN = Setup()

Values = dict[str, float]
"""Of one run: metric to value. `cpu` = nanoseconds of the server's CPU time per message."""


@dataclass(frozen=True)
class Metric:
    """One figure of a row. `goal` is a ratio gateway / nats-server; with `is_absolute` a value of the gateway's own."""

    key: str
    unit: str  # "/s", "us", "MB", "ns", "x"
    title: str = ""
    goal: float | None = None
    is_absolute: bool = False

    @property
    def more_is_better(self) -> bool:
        return self.unit == "/s"


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    metrics: tuple[Metric, ...]
    run: Callable[[Server, float], Values]
    setup: Setup = PLAIN
    has_relay: bool = False
    rounds_max: int = 100


# -- one-way traffic --------------------------------------------------------------------------------------------------


def _stream(
    key: str,
    title: str,
    goal: float,
    stream: Stream,
    *,
    setup: Setup = PLAIN,
    standing: int = 0,
    pattern: str = "other.{}",
    has_relay: bool = True,
) -> Row:
    def run(server: Server, seconds: float) -> Values:
        with others(server, standing if server.wire == "nats" else 0, pattern):
            if not stream.traffic.once:
                measure(server, stream, seconds * WARM_UP_PART)
            rate = measure(server, stream, seconds)
        return {"rate": rate.per_second, "cpu": rate.server_ns}

    return Row(key, title, (Metric("rate", "/s", goal=goal),), run, setup, has_relay)


def _streams() -> list[Row]:
    wild = Traffic(128, tuple(f"bench.{number:02}.eu.created" for number in range(64)))
    small, common = Stream(Traffic(16)), Stream(Traffic(128))
    headers = b"NATS/1.0\r\nTrace-Id: 4bf92f3577b34da6\r\nContent-Type: application/json\r\n\r\n"
    distinct = Stream(Traffic(16, [f"bench.d.{number:07}" for number in range(1_000_000)], once=True))
    return [
        _stream("publish-16", "publish only, 16 B", 5, replace(small, receivers=0)),
        _stream("1to1-16", "1:1, 16 B", 5, small),
        _stream("1to1-128", "1:1, 128 B", 5, common),
        _stream("1to1-1k", "1:1, 1 KiB", 2, Stream(Traffic(1024))),
        _stream("1to1-16k", "1:1, 16 KiB", 2, Stream(Traffic(16 * 1024))),
        _stream("fan-8", "fan-out 1:8, 16 B, deliveries", 3, replace(small, receivers=8)),
        _stream("fan-100", "fan-out 1:100, 16 B, deliveries", 3, replace(small, receivers=100)),
        _stream("4to1", "4:1, 16 B", 3, replace(small, publishers=4)),
        _stream("4to4", "4:4 (each gets all), 16 B, deliveries", 3, replace(small, publishers=4, receivers=4)),
        _stream("queue-8", "queue group of 8, 128 B", 2, replace(common, receivers=8, queue="q"), has_relay=False),
        _stream(
            "wildcards", "wildcard subscription, 64 subjects, beside 1,000 others with wildcards, 128 B", 2,
            Stream(wild, subscription="bench.*.eu.>"), standing=1_000, pattern="bench.*.us.{}.>",
        ),
        _stream("others-100k", "100,000 other subscriptions present, 128 B", 2, common, standing=100_000),
        _stream("permissions", "permissions on (allow and deny, both ways), 128 B", 2, common,
                setup=Setup(permissions=True)),
        _stream("headers", "headers (HPUB, HMSG), 128 B + 73 B", 2, Stream(Traffic(128, headers=headers))),
        _stream("tls", "TLS 1.3, 1:1, 128 B", 2, common, setup=Setup(tls=True), has_relay=False),
        _stream("distinct", "1,000,000 distinct subjects, each once, one wildcard subscriber, 16 B", 1,
                replace(distinct, subscription="bench.d.*")),
        _stream("distinct-none", "1,000,000 distinct subjects, each once, no subscriber, 16 B", 1,
                replace(distinct, receivers=0)),
        _stream("across-16", "workers 2: 1:1 across, 16 B", 2, small, setup=Setup(nodes=2), has_relay=False),
        _stream("across-128", "workers 2: 1:1 across, 128 B", 2, common, setup=Setup(nodes=2), has_relay=False),
    ]  # fmt: skip


# -- requests ---------------------------------------------------------------------------------------------------------


def _requests(key: str, title: str, inbox: str) -> Row:
    def run(server: Server, seconds: float) -> Values:
        ask(server, inbox, seconds * WARM_UP_PART, IN_FLIGHT)
        asked = ask(server, inbox, seconds, IN_FLIGHT)
        return {"rate": asked.per_second, "cpu": asked.server_ns}

    return Row(key, title, (Metric("rate", "/s", goal=1),), run)


def _round_trips(key: str, title: str, load: Callable[[Server, float], float] | None, *, has_goal: bool = True) -> Row:
    def run(server: Server, seconds: float) -> Values:
        if load is None:
            ask(server, "one", seconds * WARM_UP_PART, 1)
            asked = ask(server, "one", seconds, 1)
            return {"p50": asked.p50_us, "p99": asked.p99_us, "cpu": asked.server_ns}
        rate = load(server, seconds)
        with Running(server, Stream(Traffic(128), rate=rate), seconds + 60) as running:
            time.sleep(SETTLE_S)
            asked = ask(server, "one", seconds, 1)
            running.stop()
            reached = running.result().per_second
        if reached < LOAD_REACHED_PART * rate:
            raise BenchError(f"{server.name}: the load was {reached:.0f}/s instead of {rate:.0f}/s")
        return {"p50": asked.p50_us, "p99": asked.p99_us, "load": reached}

    goal = 1.0 if has_goal else None
    metrics = [Metric("p50", "us", "p50", goal), Metric("p99", "us", "p99", goal)]
    if load is not None:
        metrics.append(Metric("load", "/s", "the load, 128 B 1:1"))
    return Row(key, title, tuple(metrics), run)


def _half_of_its_own(server: Server, seconds: float) -> float:
    return LOAD_PART * measure(server, Stream(Traffic(128)), seconds / 2).per_second


def _half_of_nats_servers(server: Server, seconds: float) -> float:
    return LOAD_PART * _most_of_nats_server(seconds)


@cache
def _most_of_nats_server(seconds: float) -> float:
    with TemporaryDirectory(prefix="bench-") as folder:
        server = NatsServer(Path(folder), PLAIN)
        try:
            measure(server, Stream(Traffic(128)), seconds * WARM_UP_PART)
            return measure(server, Stream(Traffic(128)), seconds).per_second
        finally:
            server.stop()


# -- memory and growth ------------------------------------------------------------------------------------------------


def _memory_of_connections(server: Server, seconds: float) -> Values:
    with idle_connections(server, 10_000):
        return {"memory": steady_memory_bytes(server) / 1e6}


def _memory_of_subscriptions(server: Server, seconds: float) -> Values:
    with others(server, 1_000_000, "bench.other.{}.changed"):
        return {"memory": steady_memory_bytes(server) / 1e6}


def _memory_of_nothing(server: Server, seconds: float) -> Values:
    return {"memory": steady_memory_bytes(server) / 1e6}


def _growth(server: Server, seconds: float) -> Values:
    values: Values = {}
    stream = Stream(Traffic(128), subscription=SUBJECT)
    measure(server, stream, seconds * WARM_UP_PART)
    with Others(server) as standing:
        for count in OTHERS_STEPS:
            standing.grow_to(count)
            values[f"at-{count}"] = 1e9 / measure(server, stream, seconds).per_second
    values["growth"] = values[f"at-{OTHERS_STEPS[-1]}"] / values[f"at-{OTHERS_STEPS[0]}"]
    return values


def _memory(key: str, title: str, run: Callable[[Server, float], Values], goal: float | None) -> Row:
    return Row(key, title, (Metric("memory", "MB", goal=goal),), run)


def rows() -> list[Row]:
    """All of them, in the order of the table."""
    at_steps = [Metric(f"at-{count}", "ns", f"beside {count:,}") for count in OTHERS_STEPS]
    growth = Metric("growth", "x", f"at {OTHERS_STEPS[-1]:,} / at 1", goal=1.2, is_absolute=True)
    return [
        *_streams(),
        _requests("request-mux", f"requests, {IN_FLIGHT} in flight, a new inbox each, under one wildcard", "mux"),
        _requests("request-own", f"requests, {IN_FLIGHT} in flight, a new inbox and SUB, UNSUB each", "own"),
        _round_trips("trip-idle", "round trip, idle", None),
        _round_trips("trip-load", "round trip beside 50 % of the server's own most", _half_of_its_own),
        _round_trips(
            "trip-same", "round trip beside 50 % of nats-server's most", _half_of_nats_servers, has_goal=False
        ),
        _memory("memory-none", "memory without clients", _memory_of_nothing, None),
        _memory("memory-connections", "memory with 10,000 idle connections", _memory_of_connections, 1),
        _memory("memory-subscriptions", "memory with 1,000,000 subscriptions", _memory_of_subscriptions, 1),
        Row("growth", "time per message 1:1, 128 B, with other subscriptions", (*at_steps, growth), _growth),
    ]
