"""What is measured of copies between zones: the rows of the table, each with its goals."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.children import Child
from bench.processes import BenchError
from bench.rows import Values
from bench.sinks.load import Publishing
from bench.zones.load import Watch, lag_ms, p50_ms, publish_all, publish_paced, random_events, text_events
from bench.zones.pairs import RATE, Compressed, Ours, Pair, Theirs

EVENT_BYTES: Final = 1024
CATCH_UP_S: Final = 6.0  # of a full link
LOOPBACK_BYTES: Final = 192 << 20
TEXT_BYTES: Final = 6 << 20
LAG_S: Final = 5.0
LOAD_S: Final = 4.0
LOCAL_WINDOW: Final = 512
GEO_EVENTS: Final = 30
SETTLE_S: Final = 1.0
LEVEL_WAIT_S_MAX: Final = 120.0
POLL_S: Final = 0.01


class Bare(Pair):
    """The relay alone: a socket that sends as much as it can, and one that reads."""

    name = "relay"

    def start_origin(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.origin_link))

    def start_copy(self) -> None:
        self.reader = socket.create_connection(("127.0.0.1", self.relay_port))
        self.sender, _ = self._listener.accept()

    def start(self) -> None:
        self._relay.wait_until_it_listens(self.relay_port)
        self.start_origin()
        probe, _ = self._listener.accept()  # by which the relay was seen to listen
        self.start_copy()
        probe.close()

    def stop(self) -> None:
        for each in ("sender", "reader", "_listener"):
            if (opened := getattr(self, each, None)) is not None:
                opened.close()
        super().stop()


@dataclass(frozen=True)
class Metric:
    """One figure of a row. `own` is a goal for our value, `beside` one for the ratio ours / JetStream's."""

    key: str
    unit: str  # "/s", "ms", "MB", "%", "MB/s"
    title: str = ""
    own: float | None = None
    beside: float | None = None
    more: bool = False  # is better


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    metrics: tuple[Metric, ...]
    run: Callable[[Pair], Values]
    delay_ms: float = 0
    rate: float = 0
    contenders: tuple[type[Pair], ...] = (Ours, Theirs)


# -- catching up ------------------------------------------------------------------------------------------------------


def _catch_up(count: int) -> Callable[[Pair], Values]:
    def run(pair: Pair) -> Values:
        if isinstance(pair, Bare):
            return {"share": _through(pair, int(RATE * CATCH_UP_S)) / RATE * 100}
        pair.stop_copy()
        publish_all(pair, random_events(count, EVENT_BYTES))
        pair.start_copy()
        return _level(pair, count)

    return run


def _level(pair: Pair, count: int) -> Values:
    """From when a tenth is there until all is. BenchError: it does not come."""
    seen: list[tuple[float, int, int]] = []  # when, relayed bytes, memory in bytes
    began, used_s = 0, 0.0
    deadline = time.monotonic() + LEVEL_WAIT_S_MAX
    with Watch(*pair.watched) as watch:
        while (copied := watch.look()) < count:
            if copied >= count // 10:
                if not began:
                    began, used_s = copied, pair.moving_cpu_s()
                seen.append((time.monotonic(), pair.relayed_bytes(), pair.memory_bytes()))
            if time.monotonic() > deadline:
                raise BenchError(f"{pair.name}: {copied} of {count} events after {LEVEL_WAIT_S_MAX:g} s")
            time.sleep(POLL_S)
        seen.append((time.monotonic(), pair.relayed_bytes(), pair.memory_bytes()))
    if len(seen) < 4:
        raise BenchError(f"{pair.name}: all was there at once: nothing to measure")
    seconds, relayed_bytes = seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]
    memory, third = [each[2] for each in seen], len(seen) // 3
    return {
        "share": relayed_bytes / seconds / RATE * 100,
        "rate": (count - began) / seconds,
        "cpu": (pair.moving_cpu_s() - used_s) / (count - began) * 1e6,
        "memory": max(memory) / 1e6,
        "grown": (max(memory[third:]) - max(memory[: third + 1])) / 1e6,
    }


def _through(pair: Bare, size_bytes: int) -> float:
    """Bytes a second of the relay alone, from a tenth on."""
    block = bytes(1 << 18)
    count = size_bytes // len(block)
    thread = threading.Thread(target=lambda: pair.sender.sendall(block * count))
    thread.start()
    got, begin, counted_from = 0, 0.0, 0
    while got < count * len(block):
        got += len(pair.reader.recv(1 << 18))
        if not counted_from and got > size_bytes // 10:
            begin, counted_from = time.monotonic(), got
    thread.join()
    return (got - counted_from) / (time.monotonic() - begin)


# -- bytes ------------------------------------------------------------------------------------------------------------


def _text(pair: Pair) -> Values:
    events = text_events(TEXT_BYTES)
    pair.stop_copy()
    before_bytes = pair.relayed_bytes()
    count = publish_all(pair, events)
    pair.start_copy()
    deadline = time.monotonic() + LEVEL_WAIT_S_MAX
    while (pair.copied() or 0) < count:
        if time.monotonic() > deadline:
            raise BenchError(f"{pair.name}: {pair.copied()} of {count} lines after {LEVEL_WAIT_S_MAX:g} s")
        time.sleep(POLL_S)
    relayed_bytes = pair.relayed_bytes() - before_bytes
    text_bytes, kept_bytes = sum(map(len, events)), pair.kept_bytes()
    return {
        "part": relayed_bytes / text_bytes * 100,
        "of-log": relayed_bytes / kept_bytes * 100,
        "bytes": relayed_bytes / 1e6,
    }


# -- the tail ---------------------------------------------------------------------------------------------------------


def _lag(pair: Pair) -> Values:
    """At half of the link's rate."""
    per_second = round(RATE / 2 / EVENT_BYTES / 100) * 100
    publishing = Child(lambda: publish_paced(pair, per_second, EVENT_BYTES, LAG_S))
    seen = []
    try:
        end = time.monotonic() + LAG_S
        with Watch(*pair.watched) as watch:
            while time.monotonic() < end:
                copied = watch.look()
                seen.append((time.monotonic(), copied))
                time.sleep(POLL_S)
        sent = [(when, count) for when, count in publishing.result()]
    finally:
        publishing.end()
    settled = [each for each in seen if each[0] > sent[0][0] + SETTLE_S]
    lags = sorted(lag_ms(sent, settled))
    return {"p50": lags[len(lags) // 2], "p99": lags[len(lags) * 99 // 100]}


def _geo(delay_ms: float) -> Callable[[Pair], Values]:
    def run(pair: Pair) -> Values:
        p50_ms(pair, "geo", 3)
        quorum, geo = p50_ms(pair, "quorum", GEO_EVENTS), p50_ms(pair, "geo", GEO_EVENTS)
        return {"p50": geo, "quorum": quorum, "over": geo - 2 * delay_ms - 2 * quorum}

    return run


def _publish(pair: Pair) -> Values:
    """Local publishing alone, then while the copy catches up with what came meanwhile and before."""
    pair.stop_copy()
    backlog = publish_all(pair, random_events(int(RATE * (LOAD_S + 2)) // EVENT_BYTES, EVENT_BYTES))
    alone = _published(pair, backlog)
    pair.start_copy()
    before = pair.copied() or 0
    during = _published(pair, pair.kept())
    if (pair.copied() or 0) <= before:
        raise BenchError(f"{pair.name}: the copy did not catch up meanwhile")
    return {"alone": alone, "during": during, "part": during / alone * 100}


def _published(pair: Pair, first: int) -> float:
    publishing = Publishing(pair, 128, LOCAL_WINDOW, LOAD_S, first=first)  # type: ignore[arg-type]
    try:
        return publishing.result().per_second
    finally:
        publishing.end()


def rows() -> list[Row]:
    """All of them, in the order of the table."""
    catching_up = (
        Metric("share", "%", "of the link's rate", own=90, more=True),
        Metric("rate", "/s", "events", more=True),
        Metric("cpu", "µs", "CPU time of those that copy, per event"),
        Metric("memory", "MB", "memory of those that copy, most"),
        Metric("grown", "MB", "memory, more than after a third", own=16),
    )
    count = int(RATE * CATCH_UP_S) // EVENT_BYTES
    limited = (Ours, Theirs, Bare)
    title = "catch-up, 1 KiB, 100 Mbit/s and {} ms each way"
    return [
        Row("catch-up-50", title.format(50), catching_up, _catch_up(count), 50, RATE, limited),
        Row("catch-up-150", title.format(150), catching_up, _catch_up(count), 150, RATE, limited),
        Row("loopback", "catch-up, 1 KiB, loopback without a limit",
            (Metric("rate", "/s", "events", beside=3, more=True),
             Metric("cpu", "µs", "CPU time of those that copy, per event")), _catch_up(LOOPBACK_BYTES // EVENT_BYTES)),
        Row("text", "lines of text, an event each",
            (Metric("part", "%", "on the link, of the text's bytes", own=100 / 3),
             Metric("of-log", "%", "on the link, of what the log keeps of it"),
             Metric("bytes", "MB", "on the link", beside=0.5)),
            _text, contenders=(Ours, Theirs, Compressed)),
        Row("lag", "half of 100 Mbit/s, 1 KiB, 50 ms each way: lag",
            (Metric("p50", "ms", "p50"), Metric("p99", "ms", "p99", own=200, beside=1)), _lag, 50, RATE),
        Row("geo", "an event that another zone has, 50 ms each way",
            (Metric("p50", "ms", "acknowledged, p50"), Metric("quorum", "ms", "acknowledged by its own zone, p50"),
             Metric("over", "ms", "p50 beyond the round trip and twice its own zone's", own=5)),
            _geo(50), 50, RATE, (Ours,)),
        Row("publish", f"publishing at the origin, 128 B, {LOCAL_WINDOW} unanswered",
            (Metric("alone", "/s", "alone", more=True),
             Metric("during", "/s", "while a copy catches up at 100 Mbit/s", more=True),
             Metric("part", "%", "of that", own=85, more=True)), _publish, 50, RATE),
    ]  # fmt: skip


def turn(kind: type[Pair], row: Row, folder: Path) -> Values:
    """One run, in an empty folder. BenchError: it does not count."""
    pair = kind(folder, row.delay_ms, row.rate)
    try:
        pair.start()
        values = row.run(pair)
        ended = [node.name for node in (*pair.origin, *pair.copy) if node.has_ended()]
        if ended:
            raise BenchError(f"{pair.name}: {', '.join(ended)} ended: {pair.complaints()}")
        return values
    finally:
        pair.stop()
