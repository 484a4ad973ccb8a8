"""The outbox of one partition: events that wait, batches that are on their way, and the sequences that they spend.

It holds and forms; what an answer means is decided by `gateway.core.outbox`.

Events that ask nothing stand together in a *run*: encoded as they come, nothing is kept of each but the reply subject
of those whose publisher waits. Everything else is an *entry*. A batch is made of entries and runs in their order. What
comes back from a batch that was refused comes back as entries: that is rare, and then each is looked at again.
"""

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple, TypeAlias

import msgspec

from gateway.core.acks import Asker
from gateway.core.coverage import NOBODY, Account, Unaccounted
from gateway.core.lanes import Lane, Replies, Room
from protocol import envelope, subjects
from protocol.engine import BEST
from protocol.envelope import Envelope
from protocol.gaps import Gap, encode_gap
from protocol.limits import BATCH_BYTES_TARGET, BATCH_LINGER_MS, BATCHES_IN_FLIGHT_MAX
from protocol.publish import PublishHeaders
from protocol.records import Event, read_header, record_bytes_max
from protocol.streams import StreamState

NO_HEADERS = PublishHeaders()


class Entry:
    """One event in the outbox; `replies` are those who wait for its outcome.

    Or, with `gap`, the events that were given up at this place.
    """

    __slots__ = ("event", "gap", "headers", "replies", "replies_bytes", "size_bytes", "taken_ms")

    def __init__(self, event: Event, headers: PublishHeaders, taken_ms: int, gap: Gap | None = None) -> None:
        self.event, self.headers, self.taken_ms, self.gap = event, headers, taken_ms, gap
        self.size_bytes = event_bytes_max(event)
        self.replies_bytes = 0
        self.replies: list[Asker] = []

    @property
    def held_bytes(self) -> int:
        return self.size_bytes + self.replies_bytes

    def wait(self, reply: str, *, duplicate: bool, geo: bool = False) -> int:
        """`reply` is told the outcome too; returns what that costs in bytes."""
        asker = Asker(reply, duplicate, geo)
        self.replies.append(asker)
        self.replies_bytes += asker.size_bytes
        return asker.size_bytes

    @property
    def stands_alone(self) -> bool:
        """Whether it needs a batch of its own."""
        headers = self.headers
        return self.gap is not None or headers.expect_last_sequence is not None or headers.expect_last_id is not None

    @property
    def sequences(self) -> int:
        """How many sequences of its producer it spends."""
        return 1 if self.gap is None else self.gap.events

    @property
    def events(self) -> int:
        """How many events it stands for in the log."""
        return 1 if self.gap is None else 0

    records = 1  # in its batch


class Run:
    """Events side by side that ask nothing. `taken_ms` is the first one's; `waiting` are those who want an answer."""

    __slots__ = ("builder", "first_record", "records", "size_bytes", "taken_ms", "waiting")
    headers = NO_HEADERS
    gap = None
    stands_alone = False

    def __init__(self, taken_ms: int, waiting: Replies) -> None:
        self.builder = BEST.builder()
        self.taken_ms, self.waiting = taken_ms, waiting
        self.records = self.size_bytes = 0  # known when it is closed
        self.first_record = 0  # where it stands in its batch

    def close(self) -> None:
        """Nothing more is added."""
        self.records, self.size_bytes = self.builder.count, self.builder.size_bytes

    @property
    def held_bytes(self) -> int:
        return self.size_bytes + self.waiting.size_bytes

    @property
    def sequences(self) -> int:
        return self.records

    @property
    def events(self) -> int:
        return self.records

    def split(self, batch: bytes | None = None) -> list[Entry]:
        """Its events as entries: from the batch that it went into, or, while it waits, from itself."""
        data = self.builder.seal() if batch is None else batch
        records = list(BEST.read_records(data))[self.first_record : self.first_record + self.records]
        entries = [
            Entry(Event(subject, key, at_ms, block, payload), NO_HEADERS, self.taken_ms)
            for _, at_ms, key, subject, block, payload in records
        ]
        for number, reply in self.waiting.items():
            entries[number].wait(subjects.decode(reply), duplicate=False)
        return entries


Held: TypeAlias = Entry | Run


class Batch(NamedTuple):
    """It spans so many `sequences`. `is_marked`: the sinks are to remember the chain behind it.

    Of one that an earlier process has sent nothing is known but what comes first.
    """

    first_sequence: int
    entries: list[Held]
    data: bytes
    crc: int
    sequences: int = 0
    records: int = 0
    is_gap: bool = False
    is_marked: bool = False

    @property
    def events(self) -> int:
        return sum(held.events for held in self.entries)

    def by_record(self) -> dict[int, Entry]:
        """The entries by the number of their record in the batch, as long as none was taken out."""
        places, number = {}, 0
        for held in self.entries:
            if isinstance(held, Entry):
                places[number] = held
            number += held.records
        return places

    def split_awaited(self) -> list[Entry]:
        """Those whose publishers wait, each by itself from now on."""
        self.entries[:] = chain.from_iterable(
            held.split(self.data) if isinstance(held, Run) and held.waiting else [held] for held in self.entries
        )
        return [held for held in self.entries if isinstance(held, Entry) and held.replies]


class PartitionOutbox:
    """The outbox of one partition of one stream incarnation. `account` is told what becomes of its batches."""

    def __init__(self, stream: StreamState, number: int, next_sequence: int, lane: Lane | None = None) -> None:
        """`lane` leads to it, if there is one."""
        self.stream, self.number, self.group = stream, number, stream.group_of(number)
        self.lane = lane or Lane(Room())
        self._pending: deque[Held] = deque()
        self._pending_bytes = self._pending_sequences = 0
        self._run: Run | None = None  # behind those in `_pending`: events may still be added to it
        self.in_flight: deque[Batch] = deque()
        self.awaited = 0  # answers that the link still owes us
        self.rewinding = False
        self.is_gone = False  # its stream takes nothing any more
        self.next_sequence = next_sequence
        self.not_before_ms = 0
        self.ids: dict[bytes, Entry] = {}
        self.account: Account | Unaccounted = NOBODY

    # -- what waits ---------------------------------------------------------------------------------------------------

    def add(self, held: Held) -> None:
        """At the end."""
        self.close_run()
        self._push(held)
        self._know(held)

    def _push(self, held: Held) -> None:
        self._pending.append(held)
        self._pending_bytes += held.size_bytes
        self._pending_sequences += held.sequences

    def widen_gap(self, gap: Entry, timestamp_ms: int) -> None:
        """One event more is given up where `gap` waits; it happened at that time."""
        assert gap.gap is not None
        gap.gap = msgspec.structs.replace(gap.gap, events=gap.gap.events + 1, to_ms=timestamp_ms)
        self._pending_sequences += 1

    def hold(self, batch: Batch) -> None:
        """A batch that an earlier process of this gateway has sent, as the next one on its way."""
        self.in_flight.append(batch)
        for held in batch.entries:
            self._know(held)

    def _know(self, held: Held) -> None:
        if held.headers.msg_id is not None and isinstance(held, Entry):
            self.ids[held.headers.msg_id] = held

    def entries(self) -> Iterator[Entry]:
        """All that it holds, in order: what is on its way, then what waits. With a spool it holds no runs."""
        for held in chain(*(batch.entries for batch in self.in_flight), self.pending):
            assert isinstance(held, Entry)
            yield held

    def append(
        self, event: Event, reply: str, size_bytes: int, now_ms: int, *, opens: bool, takes_replies: bool
    ) -> None:
        """An event that asks nothing, at the end, and who waits for it.

        `opens`: more of the kind may come by the lane; `takes_replies`: also such that somebody waits for.
        """
        run = self._run
        if run is None or run.builder.size_bytes + size_bytes > BATCH_BYTES_TARGET:
            self.close_run()
            run = self._run = Run(now_ms, self.lane.new_replies())
        if reply:
            run.waiting.add(run.builder.count, subjects.encode(reply))
        run.builder.add(*event)
        self.lane.builder = run.builder if opens else None
        self.lane.replies = run.waiting if takes_replies else None

    def close_run(self) -> None:
        """Nothing more is added to the last run: something else comes behind it, or it goes."""
        self.lane.builder = self.lane.replies = None
        run, self._run = self._run, None
        if run is not None:
            run.close()
            self._push(run)

    @property
    def pending(self) -> deque[Held]:
        """All that waits."""
        self.close_run()
        return self._pending

    @pending.setter
    def pending(self, pending: deque[Held]) -> None:
        self.close_run()
        self._pending = pending
        self._pending_bytes = sum(held.size_bytes for held in pending)
        self._pending_sequences = sum(held.sequences for held in pending)

    @property
    def waits(self) -> bool:
        """Whether anything waits."""
        return bool(self._pending) or self._run is not None

    @property
    def next_waiting_sequence(self) -> int:
        """The sequence of the next event that comes, if all that wait get theirs."""
        return self.next_sequence + self._pending_sequences + (self._run.builder.count if self._run is not None else 0)

    def split_runs(self, *, awaited: bool = False) -> None:
        """Makes every event that waits an entry, to be looked at by itself; with `awaited` where publishers wait."""
        held_now = self.pending
        if any(isinstance(held, Run) and (held.waiting or not awaited) for held in held_now):
            self.pending = deque(
                chain.from_iterable(
                    held.split() if isinstance(held, Run) and (held.waiting or not awaited) else [held]
                    for held in held_now
                )
            )

    def drop(self, held: Held) -> None:
        """The outcome is known: an id may be used again."""
        if held.headers.msg_id is not None and self.ids.get(held.headers.msg_id) is held:
            del self.ids[held.headers.msg_id]

    # -- batches ------------------------------------------------------------------------------------------------------

    def may_form(self, now_ms: int) -> bool:
        first = self._pending[0] if self._pending else self._run
        if first is None or self.is_held(now_ms):
            return False
        if not self.in_flight or now_ms - first.taken_ms >= BATCH_LINGER_MS:
            return True
        open_bytes = self._run.builder.size_bytes if self._run is not None else 0
        return self._pending_bytes + open_bytes >= BATCH_BYTES_TARGET

    def is_held(self, now_ms: int) -> bool:
        """Whether only an answer, or the end of a pause, lets the next batch go."""
        full = len(self.in_flight) >= BATCHES_IN_FLIGHT_MAX
        return self.rewinding or self.is_gone or full or now_ms < self.not_before_ms

    def form(self) -> Batch:
        """The next batch: up to its target size, a conditional event alone."""
        self._reach_run(0)
        entries = [self._pop()]
        size_bytes = entries[0].size_bytes
        while not entries[0].stands_alone:
            self._reach_run(size_bytes)
            if not self._pending or self._pending[0].stands_alone:
                break
            if size_bytes + self._pending[0].size_bytes > BATCH_BYTES_TARGET:
                break
            entries.append(self._pop())
            size_bytes += entries[-1].size_bytes
        gap = entries[0].gap
        data = _encode(entries) if gap is None else encode_gap(gap)
        header, is_marked = read_header(data), self.account.formed(self.next_sequence)
        sequences = sum(held.sequences for held in entries)
        counts = sequences, header.record_count, gap is not None
        batch = Batch(self.next_sequence, entries, data, header.crc, *counts, is_marked)
        self.next_sequence += sequences
        self.in_flight.append(batch)
        return batch

    def _reach_run(self, size_bytes: int) -> None:
        """Closes the run that is still open, if it is the next thing and fits behind so many bytes."""
        run = self._run
        if run is not None and not self._pending and size_bytes + run.builder.size_bytes <= BATCH_BYTES_TARGET:
            self.close_run()

    def _pop(self) -> Held:
        held = self._pending.popleft()
        self._pending_bytes -= held.size_bytes
        self._pending_sequences -= held.sequences
        return held

    def take_back(self) -> int:
        """Everything in flight is known not to be in the log: back to pending, in order. The number of batches."""
        count, is_marked = len(self.in_flight), False
        while self.in_flight:
            batch = self.in_flight.pop()
            self.next_sequence = batch.first_sequence
            is_marked = is_marked or batch.is_marked
            for held in reversed(batch.entries):
                entries = held.split(batch.data) if isinstance(held, Run) else [held]
                self._pending.extendleft(reversed(entries))
                self._pending_bytes += held.size_bytes
                self._pending_sequences += held.sequences
        self.rewinding = False
        self.account.taken_back(self.next_sequence, is_marked=is_marked)
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
            sequence_count=batch.sequences,
            revision=self.stream.revision,
            ids=tuple((n, e.headers.msg_id) for n, e in batch.by_record().items() if e.headers.msg_id is not None),
            expect_last_sequence=first.expect_last_sequence,
            expect_last_id=first.expect_last_id,
            run=self.account.run_of(batch.first_sequence),
            mark=batch.is_marked,
        )
        return envelope.pack(head, batch.data)


def event_bytes_max(event: Event) -> int:
    """What `event` takes up in the outbox and in a batch, at most."""
    return record_bytes_max(event.subject, event.key, event.header_block, event.payload)


def _encode(entries: list[Held]) -> bytes:
    """The batch of these. A run at its beginning is encoded already; those behind it are encoded anew."""
    first = entries[0]
    builder = first.builder if isinstance(first, Run) else BEST.builder()
    for held in entries:
        if isinstance(held, Entry):
            builder.add(*held.event)
        elif held is not first:
            held.first_record = builder.count
            for _, at_ms, key, subject, block, payload in BEST.read_records(held.builder.seal()):
                builder.add(subject, key, at_ms, block, payload)
    return builder.seal()
