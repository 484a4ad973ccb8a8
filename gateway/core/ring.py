"""The latest events of one gateway, in its memory: what `mesh.buffer` keeps where no sink does.

    publish ─► lane or `add` ─► batch in the making ─► sealed, numbered ─► read by offset
                                                            │ more bytes than `buffer`
                                                            ▼ the oldest batch goes

An event goes in where its publisher is connected, so each gateway has other events, under offsets of its own, and they
are gone when it ends. Each account has a ring; together they hold at most so many bytes, and the oldest batch of all
makes room. What is in the making, at most 512 KiB of each account, comes on top; it is sealed when somebody reads.

Offsets of a ring are dense and begin at 0. Batches are those of the log (`protocol.records`), so that history is served
from both by the same code, and events go into them by the same lanes (`gateway.core.lanes`).
"""

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import NamedTuple

from gateway.core.engine import Engine
from gateway.core.lanes import Lane
from protocol import subjects
from protocol.config import Stream
from protocol.engine import BEST
from protocol.errors import LogError
from protocol.limits import BATCH_BYTES_MAX, BATCH_BYTES_TARGET, RING_BATCH_BYTES
from protocol.records import BatchHeader, Event, place_batch, read_header, record_bytes_max
from protocol.streams import StreamDefinition, StreamState


class _Batch(NamedTuple):
    header: BatchHeader
    data: bytes

    @property
    def base_offset(self) -> int:
        return self.header.base_offset

    @property
    def held_bytes(self) -> int:
        return len(self.data) + RING_BATCH_BYTES


class Rings:
    """Those of all accounts; `streams` are their catch-alls, under whose names they are read."""

    def __init__(self, bytes_max: int, streams: Iterable[Stream], engine: Engine) -> None:
        self._bytes_max, self._oldest = bytes_max, deque[Ring]()  # of each sealed batch, whose it is
        self.by_account = {stream.account: Ring(stream, engine, self._sealed) for stream in streams}
        self.size_bytes = 0
        self.events_dropped = self.events_too_large = 0

    def add(self, account: str, subject: str, header_block: bytes, payload: bytes, timestamp_ms: int) -> None:
        """An event that has come the long way."""
        key = subjects.encode(subject)
        if not self.by_account[account].add(Event(key, key, timestamp_ms, header_block, payload)):
            self.events_too_large += 1

    def lane(self, account: str, subject: str) -> tuple[Lane, bytes]:
        """The lane for events on `subject`, and their key."""
        return self.by_account[account].lane, subjects.encode(subject)

    @property
    def events(self) -> int:
        """How many there are now."""
        return sum(ring.end_offset - ring.start_offset for ring in self.by_account.values())

    def _sealed(self, ring: "Ring", size_bytes: int) -> None:
        self._oldest.append(ring)
        self.size_bytes += size_bytes
        while self.size_bytes > self._bytes_max:
            batch = self._oldest.popleft().drop_oldest()
            self.size_bytes -= batch.held_bytes
            self.events_dropped += batch.header.record_count


class Ring:
    """The events of one account: [start_offset, end_offset)."""

    def __init__(self, stream: Stream, engine: Engine, sealed: Callable[["Ring", int], None]) -> None:
        """`sealed(ring, bytes)` is told of each batch; it may drop the oldest."""
        self.state = _state(stream)
        self._sealed, self._batches = sealed, deque[_Batch]()
        self._builder = BEST.builder()
        self.start_offset = self._sealed_offset = 0
        room = engine.room()
        room.bytes_max = sys.maxsize
        self.lane = engine.lane(room)
        self.lane.answers = False  # nothing is ever acknowledged
        self.lane.builder = self._builder

    @property
    def end_offset(self) -> int:
        return self._sealed_offset + self._builder.count

    @property
    def size_bytes(self) -> int:
        return sum(len(batch.data) for batch in self._batches) + self._builder.size_bytes

    def add(self, event: Event) -> bool:
        """At the end. False: it is larger than a batch may be, and is not kept."""
        size_bytes = record_bytes_max(event.subject, event.key, event.header_block, event.payload)
        if size_bytes > BATCH_BYTES_MAX:
            return False
        if self._builder.size_bytes + size_bytes > BATCH_BYTES_TARGET:
            self.seal()
        self._builder.add(*event)
        if size_bytes > BATCH_BYTES_TARGET:
            self.seal()
        return True

    def seal(self) -> None:
        """What is in the making is a batch from now on."""
        if not self._builder.count:
            return
        data = place_batch(self._builder.seal(), self._sealed_offset, 0)
        batch = _Batch(read_header(data), data)
        self._sealed_offset = batch.header.next_offset
        self._batches.append(batch)
        self._sealed(self, batch.held_bytes)

    def drop_oldest(self) -> _Batch:
        batch = self._batches.popleft()
        self.start_offset = batch.header.next_offset
        return batch

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, offset: int, bytes_max: int) -> bytes:
        """Whole batches from the one that holds `offset` on, at least one; b"" at the end.

        LogError OFFSET_OUT_OF_RANGE.
        """
        self.seal()
        if not self.start_offset <= offset <= self.end_offset:
            raise LogError(
                "OFFSET_OUT_OF_RANGE",
                f"offset {offset} of {self.state.name} partition 0 does not exist; "
                f"the ring holds {self.start_offset} to {self.end_offset} (exclusive)",
                start_offset=self.start_offset,
                high_watermark=self.end_offset,
            )
        parts: list[bytes] = []
        size_bytes = 0
        at = bisect_right(self._batches, offset, key=attrgetter("base_offset")) - 1
        for number in range(max(at, 0), len(self._batches) if offset < self.end_offset else 0):
            data = self._batches[number].data
            if parts and size_bytes + len(data) > bytes_max:
                break
            parts.append(data)
            size_bytes += len(data)
        return b"".join(parts)

    def offset_for_time(self, timestamp_ms: int) -> tuple[int, int]:
        """(offset, time) of the first event at or after `timestamp_ms`; (-1, -1) if there is none."""
        self.seal()
        for batch in self._batches:
            if batch.header.max_timestamp_ms >= timestamp_ms:
                for record in BEST.read_records(batch.data):
                    if record.timestamp_ms >= timestamp_ms:
                        return record.offset, record.timestamp_ms
        return -1, -1

    def offset_until_time(self, timestamp_ms: int) -> int:
        """An offset below which every event before `timestamp_ms` lies: behind the last batch that holds one."""
        self.seal()
        for batch in reversed(self._batches):
            if batch.header.base_timestamp_ms < timestamp_ms:
                return batch.header.next_offset
        return self.start_offset


def _state(stream: Stream) -> StreamState:
    """As a reader is told it: one partition, whatever the file says of logs, and no answers."""
    definition = StreamDefinition.of(stream, b"ring")
    return StreamState(
        **{name: getattr(definition, name) for name in definition.__struct_fields__}
        | {"partitions": 1, "key": "subject", "subjects": (">",), "ack": "none", "reply": "never", "revision": 0}
    )
