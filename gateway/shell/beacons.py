"""What a gateway says of what it took in: beacons, into `$COVERAGE` (`protocol.coverage`).

    Outbox: rows of its partitions, refusals ─┐
    forwarder, rings: what no stream takes ───┴─► Beacon ─► signed ─► Outbox ─► `$COVERAGE`, as any event

Once a second, if a row has changed; whole once a minute; at least once in five seconds. No state is kept of rows but
what was told last: each beacon is read from the partitions. So none is made while the link to the log of beacons is
down, or there is no room for it: the first one behind that says where everything stands then. Until it is there, the
sinks see a gateway that is silent, which is what it is.

At its end a gateway says a last one, `closing` and whole, when all that it holds is in the log or given up.

Workers speak each for itself. Where no log is kept there are no beacons, only counters (docs/metrics.md).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from gateway.core.coverage import DELIVERY_FABRIC, NO_STREAM
from gateway.core.outbox import Outbox
from protocol import coverage
from protocol.coverage import Beacon, Row, Sign, Uncovered, header_block
from protocol.limits import BEACON_INTERVAL_MS, BEACON_ROWS_MAX, BEACON_SILENCE_MS_MAX, BEACON_WHOLE_MS
from protocol.publish import SPENT_CODES
from protocol.streams import StreamState


class Speaker(NamedTuple):
    """Who speaks: a gateway worker, in the `process` of its present start. `spool`: what is under way outlives it."""

    mesh: str
    zone: str
    node: str
    worker: int
    process: str
    spool: bool


class Unkept(NamedTuple):
    """Events that no stream takes, since the start: how many, and the bytes of their headers and payloads."""

    events: int
    bytes: int


class Beacons:
    """Of one gateway worker. `written` counts beacons by kind."""

    def __init__(
        self,
        outbox: Outbox,
        speaker: Speaker,
        sign: Sign | None,
        unkept: Callable[[], Unkept],
        now_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        kept: Callable[[], None],
        *,
        keeps_log: bool,
    ) -> None:
        """`kept` is called when the outbox has taken something; the two clocks as everywhere.

        `keeps_log` is False in a zone of the delivery fabric.
        """
        self._outbox, self._speaker, self._sign = outbox, speaker, sign
        self._unkept, self._keeps_log = unkept, keeps_log
        self._now_ms, self._wall_ms, self._kept = now_ms, wall_ms, kept
        self._due_ms = self._whole_due_ms = self._silence_ms = now_ms()
        self._number = 0
        self._told: tuple[tuple[Uncovered, ...], dict[str, int]] = ((), {})
        self._is_closed = False
        self.written: Counter[str] = Counter()

    def uncovered(self) -> tuple[Uncovered, ...]:
        """Events that no partition accounts for, by why."""
        return (*self._outbox.accounts.uncovered(), *self._unkept_row())

    def _unkept_row(self) -> Iterator[Uncovered]:
        unkept = self._unkept()
        if unkept.events:
            why = NO_STREAM if self._keeps_log else DELIVERY_FABRIC
            yield Uncovered(why=why, events=unkept.events, bytes=unkept.bytes)

    def refused(self) -> dict[str, int]:
        """Events that were refused before they had a sequence, by code."""
        counted = sorted(self._outbox.counters.refused.items())
        return {str(code): count for code, count in counted if code not in SPENT_CODES}

    def tick(self) -> None:
        """Often enough for one beacon each second."""
        now_ms, stream = self._now_ms(), self._stream()
        if now_ms < self._due_ms or stream is None:
            return
        self._due_ms = now_ms + BEACON_INTERVAL_MS
        whole = now_ms >= self._whole_due_ms
        rows = self._outbox.coverage_rows(whole=whole)
        if rows or whole or now_ms >= self._silence_ms or self._told != (self.uncovered(), self.refused()):
            self._write(rows, now_ms, whole=whole)

    def close(self) -> bool:
        """All is over but this last beacon; whether it is on its way."""
        stream = self._stream()
        if stream is None:
            return False
        rows = self._outbox.coverage_rows(whole=True, closing=True)
        self._write(rows, self._now_ms(), whole=True, closing=True)
        self._is_closed = True
        return True

    def _stream(self) -> StreamState | None:
        """That of beacons, if one can leave now."""
        outbox = self._outbox
        stream = None if self._is_closed else outbox.routes.by_name.get(coverage.STREAM)
        return stream if stream is not None and outbox.is_linked(stream) and outbox.has_room(stream) else None

    def _write(self, rows: list[Row], now_ms: int, *, whole: bool, closing: bool = False) -> None:
        """One beacon, or several if there are too many rows for one; none of those is whole."""
        self._silence_ms = now_ms + BEACON_SILENCE_MS_MAX
        if whole:
            self._whole_due_ms = now_ms + BEACON_WHOLE_MS
        parts = [rows[at : at + BEACON_ROWS_MAX] for at in range(0, len(rows), BEACON_ROWS_MAX)] or [[]]
        for number, part in enumerate(parts, 1):
            self._say(part, now_ms, whole=whole and len(parts) == 1, closing=closing and number == len(parts))
        self._kept()

    def _say(self, rows: list[Row], now_ms: int, *, whole: bool, closing: bool) -> None:
        speaker, time_ms = self._speaker, self._wall_ms()
        self._number += 1
        self._told = self.uncovered(), self.refused()
        beacon = Beacon(
            mesh=speaker.mesh, zone=speaker.zone, node=speaker.node, worker=speaker.worker, process=speaker.process,
            number=self._number, time=time_ms, rows=tuple(rows), uncovered=self._told[0], refused=self._told[1],
            whole=whole, closing=closing, spool=speaker.spool,
        )  # fmt: skip
        payload = msgspec.json.encode(beacon)
        block = header_block(self._sign(payload) if self._sign is not None else None)
        subject = f"{coverage.STREAM}.{coverage.BEACON}.{speaker.node}"
        self._outbox.publish(coverage.ACCOUNT, subject, "", block, payload, now_ms, time_ms, gives_up=True)
        self.written["closing" if closing else "whole" if whole else "changes"] += 1
