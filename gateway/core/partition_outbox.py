"""The outbox of one partition: events that wait, batches that are on their way, and the sequences that they spend.

It holds and forms; what an answer means is decided by `gateway.core.outbox`.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from protocol import envelope
from protocol.envelope import Envelope
from protocol.gaps import Gap, encode_gap
from protocol.limits import BATCH_BYTES_TARGET, BATCH_LINGER_MS, BATCHES_IN_FLIGHT_MAX
from protocol.publish import PublishHeaders
from protocol.records import Event, encode_batch, read_header, record_bytes_max
from protocol.streams import StreamState

REPLY_BYTES = 100  # of memory for one who waits, beside the reply subject itself


class Entry:
    """One event in the outbox; `replies` are those who wait for its outcome, as (reply subject, is a duplicate).

    Or, with `gap`, the events that were given up at this place.
    """

    __slots__ = ("event", "gap", "headers", "replies", "replies_bytes", "size_bytes", "taken_ms")

    def __init__(self, event: Event, headers: PublishHeaders, taken_ms: int, gap: Gap | None = None) -> None:
        self.event, self.headers, self.taken_ms, self.gap = event, headers, taken_ms, gap
        self.size_bytes = record_bytes_max(event.subject, event.key, event.header_block, event.payload)
        self.replies_bytes = 0
        self.replies: list[tuple[str, bool]] = []

    @property
    def held_bytes(self) -> int:
        return self.size_bytes + self.replies_bytes

    def wait(self, reply: str, *, duplicate: bool) -> int:
        """`reply` is told the outcome too; returns what that costs in bytes."""
        self.replies.append((reply, duplicate))
        self.replies_bytes += REPLY_BYTES + len(reply)
        return REPLY_BYTES + len(reply)

    @property
    def stands_alone(self) -> bool:
        """Whether it needs a batch of its own."""
        headers = self.headers
        return self.gap is not None or headers.expect_last_sequence is not None or headers.expect_last_id is not None

    @property
    def sequences(self) -> int:
        """How many sequences of its producer it spends."""
        return 1 if self.gap is None else self.gap.events


class Batch(NamedTuple):
    first_sequence: int
    entries: list[Entry]
    data: bytes
    crc: int


class PartitionOutbox:
    """The outbox of one partition of one stream incarnation."""

    def __init__(self, stream: StreamState, number: int, next_sequence: int) -> None:
        self.stream, self.number = stream, number
        self.pending: deque[Entry] = deque()
        self.pending_bytes = 0
        self.in_flight: deque[Batch] = deque()
        self.awaited = 0  # answers that the link still owes us
        self.rewinding = False
        self.is_gone = False  # its stream takes nothing any more
        self.next_sequence = next_sequence
        self.not_before_ms = 0
        self.ids: dict[bytes, Entry] = {}

    def add(self, entry: Entry) -> None:
        self.pending.append(entry)
        self.pending_bytes += entry.size_bytes
        self._know(entry)

    def hold(self, batch: Batch) -> None:
        """A batch that an earlier process of this gateway has sent, as the next one on its way."""
        self.in_flight.append(batch)
        for entry in batch.entries:
            self._know(entry)

    def _know(self, entry: Entry) -> None:
        if entry.headers.msg_id is not None:
            self.ids[entry.headers.msg_id] = entry

    def entries(self) -> Iterator[Entry]:
        """All that it holds, in order: what is on its way, then what waits."""
        for batch in self.in_flight:
            yield from batch.entries
        yield from self.pending

    def drop(self, entry: Entry) -> None:
        """The entry's outcome is known: its id may be used again."""
        if entry.headers.msg_id is not None and self.ids.get(entry.headers.msg_id) is entry:
            del self.ids[entry.headers.msg_id]

    def may_form(self, now_ms: int) -> bool:
        if not self.pending or self.is_held(now_ms):
            return False
        old_enough = now_ms - self.pending[0].taken_ms >= BATCH_LINGER_MS
        return not self.in_flight or self.pending_bytes >= BATCH_BYTES_TARGET or old_enough

    def is_held(self, now_ms: int) -> bool:
        """Whether only an answer, or the end of a pause, lets the next batch go."""
        full = len(self.in_flight) >= BATCHES_IN_FLIGHT_MAX
        return self.rewinding or self.is_gone or full or now_ms < self.not_before_ms

    def form(self) -> Batch:
        """The next batch: up to its target size, a conditional event alone."""
        entries = [self._pop()]
        size_bytes = entries[0].size_bytes
        while self.pending and not entries[0].stands_alone and not self.pending[0].stands_alone:
            if size_bytes + self.pending[0].size_bytes > BATCH_BYTES_TARGET:
                break
            entries.append(self._pop())
            size_bytes += entries[-1].size_bytes
        gap = entries[0].gap
        data = encode_batch([entry.event for entry in entries]) if gap is None else encode_gap(gap)
        batch = Batch(self.next_sequence, entries, data, read_header(data).crc)
        self.next_sequence += sum(entry.sequences for entry in entries)
        self.in_flight.append(batch)
        return batch

    def _pop(self) -> Entry:
        entry = self.pending.popleft()
        self.pending_bytes -= entry.size_bytes
        return entry

    def take_back(self) -> int:
        """Everything in flight is known not to be in the log: back to pending, in order. The number of batches."""
        count = len(self.in_flight)
        while self.in_flight:
            batch = self.in_flight.pop()
            self.next_sequence = batch.first_sequence
            self.pending.extendleft(reversed(batch.entries))
            self.pending_bytes += sum(entry.size_bytes for entry in batch.entries)
        self.rewinding = False
        return count

    def parcel(self, batch: Batch, producer_id: int, epoch: int) -> bytes:
        first = batch.entries[0].headers
        head = Envelope(
            producer_id=producer_id,
            epoch=epoch,
            stream=self.stream.name,
            incarnation=self.stream.incarnation,
            partition=self.number,
            first_sequence=batch.first_sequence,
            sequence_count=sum(entry.sequences for entry in batch.entries),
            revision=self.stream.revision,
            ids=tuple((i, e.headers.msg_id) for i, e in enumerate(batch.entries) if e.headers.msg_id is not None),
            expect_last_sequence=first.expect_last_sequence,
            expect_last_id=first.expect_last_id,
        )
        return envelope.pack(head, batch.data)
