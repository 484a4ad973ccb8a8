"""What is measured of the sink tier: the rows of its table, each with its goals."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.processes import BenchError
from bench.sinks.load import Publishing, fill, publish, read
from bench.sinks.readers import read_in_python
from bench.sinks.tiers import (
    ALWAYS,
    DEFAULT,
    UNCOVERED,
    JetStream,
    JetStreamAlways,
    Tier,
    UncoveredZone,
    Zone,
    forget_cached,
    wait_for,
)

WINDOW = 4096  # events that wait for their acknowledgement at a time
WARM_UP_PART = 0.25
SETTLE_S = 2.0  # after the loss of a follower
FAILOVER_WINDOW = 64
FAILOVER_S = 15.0
FAILOVER_AT_S = 2.0
PATIENCE_MS = 250  # then the publisher goes on with another event
PYTHON_PART = 0.25  # of the history that the readers in C read: they are that much slower
KIB = 1024

Values = dict[str, float]
"""Of one run: metric to value. `cpu` = nanoseconds of CPU time of all processes of the tier, per event."""


@dataclass(frozen=True)
class Settings:
    """How much is done. `sinks` and `replicas` are the sizes of the tiers."""

    seconds: float = 5.0
    history_bytes: int = 256 * KIB**2
    restart_bytes: int = 1 * KIB**3
    sinks: int = 3
    replicas: int = 3


@dataclass(frozen=True)
class Metric:
    """One figure of a row. `goals` are ratios ours / theirs, by whose; `bound` is for our own value."""

    key: str
    unit: str  # "/s", "us", "s", "MB", "x", "part", "events"
    title: str = ""
    goals: Mapping[str, float] = field(default_factory=dict)
    bound: float | None = None

    @property
    def more_is_better(self) -> bool:
        return self.unit in ("/s", "part")


@dataclass(frozen=True)
class Row:
    """`run` gets a tier that has just been started, with nothing in it."""

    key: str
    title: str
    metrics: tuple[Metric, ...]
    run: Callable[[Tier, Settings], Values]
    contenders: tuple[type[Tier], ...] = (Zone, JetStreamAlways, JetStream)
    rounds_max: int = 100


# -- acknowledged publish ---------------------------------------------------------------------------------------------


def _acked(key: str, title: str, payload_bytes: int, always: float, default: float) -> Row:
    goals = {ALWAYS: always, DEFAULT: default}
    return Row(key, title, (Metric("rate", "/s", goals=goals),), _publishing(payload_bytes))


def _covered(key: str, title: str, payload_bytes: int) -> Row:
    """With digests, accounts, trees, beacons and all that looks at them, beside the same zone without."""
    rate = Metric("rate", "/s", goals={UNCOVERED: 0.95})
    return Row(key, title, (rate,), _publishing(payload_bytes), (Zone, UncoveredZone))


def _publishing(payload_bytes: int) -> Callable[[Tier, Settings], Values]:
    def run(tier: Tier, settings: Settings) -> Values:
        warm = publish(tier, payload_bytes, WINDOW, settings.seconds * WARM_UP_PART)
        acked = publish(tier, payload_bytes, WINDOW, settings.seconds, first=warm.events)
        return {"rate": acked.per_second, "cpu": acked.cpu_ns}

    return run


def _one_at_a_time(tier: Tier, settings: Settings) -> Values:
    warm = publish(tier, 128, 1, settings.seconds * WARM_UP_PART)
    acked = publish(tier, 128, 1, settings.seconds, first=warm.events)
    return {"p50": acked.p50_us, "p99": acked.p99_us, "cpu": acked.cpu_ns}


# -- loss of a node ---------------------------------------------------------------------------------------------------


def _without_a_follower(tier: Tier, settings: Settings) -> Values:
    lost = tier.follower()
    warm = publish(tier, 128, WINDOW, settings.seconds * WARM_UP_PART)
    whole = publish(tier, 128, WINDOW, settings.seconds, first=warm.events)
    lost.kill()
    time.sleep(SETTLE_S)
    less = publish(tier, 128, WINDOW, settings.seconds, first=warm.events + whole.events)
    return {"rate": less.per_second, "kept": less.per_second / whole.per_second, "cpu": less.cpu_ns}


def _without_the_leader(tier: Tier, settings: Settings) -> Values:
    """The publisher is connected to a node that stays, so what it sees is the group's own way to a new leader."""
    tier.follower()  # or there is nobody who could take over
    publishing = Publishing(tier, 128, FAILOVER_WINDOW, FAILOVER_S, patience_ms=PATIENCE_MS, leads=False)
    try:
        time.sleep(FAILOVER_AT_S)
        tier.sure_leader().kill()
        acked = publishing.result()
    finally:
        publishing.end()
    return {"gap": acked.longest_gap_s, "refused": acked.refused, "given_up": acked.given_up - acked.late}


# -- history ----------------------------------------------------------------------------------------------------------


def _history(key: str, title: str, payload_bytes: int) -> Row:
    def run(tier: Tier, settings: Settings) -> Values:
        count = settings.history_bytes // payload_bytes
        _fill_and_start_anew(tier, payload_bytes, count)
        if isinstance(tier, Zone):
            return {how: read(tier, "fetch", payload_bytes, count) for how in ("cold", "hot")}
        cold = read(tier, "pull", payload_bytes, count)
        return {"cold": cold, "hot": max(read(tier, how, payload_bytes, count) for how in ("pull", "push"))}

    return Row(key, title, _COLD_AND_HOT, run, (Zone, JetStream))


def _history_in_python(tier: Tier, settings: Settings) -> Values:
    count = int(settings.history_bytes * PYTHON_PART) // KIB
    _fill_and_start_anew(tier, KIB, count)
    return {how: read_in_python(tier, KIB, count) for how in ("cold", "hot")}


def _fill_and_start_anew(tier: Tier, payload_bytes: int, count: int) -> None:
    """In fresh processes, from a disk whose pages are not cached."""
    fill(tier, payload_bytes, count)
    tier.stop()
    forget_cached(tier.folder)
    tier.start()
    wait_for(lambda: tier.end_offset() == count, f"all {count} events", tier.complaints)


_COLD_AND_HOT = (
    Metric("cold", "/s", "nothing cached", goals={DEFAULT: 5}),
    Metric("hot", "/s", "a second time", goals={DEFAULT: 5}),
)

# -- restart, disk ----------------------------------------------------------------------------------------------------


def _restart(tier: Tier, settings: Settings) -> Values:
    count = settings.restart_bytes // KIB
    fill(tier, KIB, count)
    for node in tier.processes():
        node.kill()
    values = {"killed": _time_to_serve(tier, count)}
    values["memory"] = max(node.memory_bytes_max() for node in tier.nodes) / 1e6
    tier.stop()
    values["stopped"] = _time_to_serve(tier, count + 1)
    return values


def _time_to_serve(tier: Tier, count: int) -> float:
    """Seconds from the start of the processes until an event was acknowledged, and the first of `count` read back."""
    forget_cached(tier.folder)
    began_s = time.monotonic()
    tier.start()
    wait_for(lambda: tier.end_offset() == count, f"all {count} events", tier.complaints)
    _publish_one(tier, count)
    read(tier, "fetch" if isinstance(tier, Zone) else "pull", KIB, 1)
    return time.monotonic() - began_s


def _publish_one(tier: Tier, number: int) -> None:
    publishing = Publishing(tier, KIB, 1, 60.0, count=1, first=number)
    try:
        publishing.result()
    finally:
        publishing.end()


def _written(tier: Tier, settings: Settings) -> Values:
    count = settings.history_bytes // KIB
    before = [node.written_bytes() for node in tier.nodes]
    journals = tier.journal_bytes() if isinstance(tier, Zone) else []
    fill(tier, KIB, count)
    if isinstance(tier, Zone):
        wait_for(lambda: tier.unflushed_bytes() == 0, "all events in segments", tier.complaints)
    written = [node.written_bytes() - bytes_ for node, bytes_ in zip(tier.nodes, before, strict=True)]
    values = {"written": max(written) / (count * KIB)}
    if isinstance(tier, Zone):
        kept = tier.kept_bytes()
        if kept < count * KIB:
            raise BenchError(f"{tier.name}: counts {kept} B of log for {count * KIB} B of payload")
        journaled = [end - begin for end, begin in zip(tier.journal_bytes(), journals, strict=True)]
        values |= {"journal": max(journaled) / kept, "segments": max(tier.segments_bytes()) / kept}
    return values


# -- all of them ------------------------------------------------------------------------------------------------------


def rows() -> list[Row]:
    """In the order of the table."""
    trips = (Metric("p50", "us", "p50", {ALWAYS: 1}), Metric("p99", "us", "p99", {ALWAYS: 1}))
    less = (Metric("rate", "/s"), Metric("kept", "part", "part of all up", bound=0.8))
    gap = (
        Metric("gap", "s", "longest time without an acknowledgement", bound=3),
        Metric("refused", "events", "refused"),
        Metric("given_up", "events", "never answered"),
    )
    restart = (
        Metric("killed", "s", "after SIGKILL of all, until served", bound=5),
        Metric("stopped", "s", "after a stop, until served", bound=5),
        Metric("memory", "MB", "most memory of a node until then", bound=300 * KIB**2 / 1e6),
    )
    written = (
        Metric("written", "x", "written to the disk / payload"),
        Metric("journal", "x", "journal / batches", bound=1.1),
        Metric("segments", "x", "segments / batches", bound=1.1),
    )
    return [
        _acked("ack-128", f"acknowledged publish, {WINDOW} under way, 128 B", 128, 8, 5),
        _acked("ack-1k", f"acknowledged publish, {WINDOW} under way, 1 KiB", KIB, 4, 2),
        Row("ack-one", "acknowledged publish, one at a time, 128 B", trips, _one_at_a_time),
        Row("node-down", f"acknowledged publish without a follower, {WINDOW} under way, 128 B", less,
            _without_a_follower),
        Row("leader-killed", "SIGKILL of the leader", gap, _without_the_leader),
        _history("history-128", "history of one partition by raw socket, 128 B", 128),
        _history("history-1k", "history of one partition by raw socket, 1 KiB", KIB),
        Row("history-python", "history of one partition by NATS client (Python), 1 KiB", _COLD_AND_HOT,
            _history_in_python, (Zone, JetStream)),
        Row("restart", "restart with a large log, 1 KiB", restart, _restart, (Zone, JetStream), rounds_max=1),
        Row("written", "disk writes per node, 1 KiB", written, _written),
        _covered("covered-128", f"coverage on against off: acknowledged publish, {WINDOW} under way, 128 B", 128),
        _covered("covered-1k", f"coverage on against off: acknowledged publish, {WINDOW} under way, 1 KiB", KIB),
    ]  # fmt: skip
