"""The outbox: events on their way from this gateway to the log, and the answers on their way back.

    publish ─► pending ─► batch (sequences given) ─► sent, in flight ─► appended: PubAck
                  ▲                                        │
                  └──────── refused, nothing spent ────────┘

Per partition. A batch is formed when it can be sent: at once when nothing is in flight, else when it is big or old
enough; at most eight are in flight. What is sent and not answered has an unknown outcome: after a lost link it is sent
again, byte for byte under the same sequences, and the log answers a second time. A refusal that spends nothing (ids
that the log knows, a newer configuration, a full disk) makes everything behind it `OUT_OF_ORDER`; when all that was
sent is answered, the events go back to `pending` and are batched anew from the refused sequence on.

Events whose stream is gone (retired, or made again under another incarnation) are routed anew, as if just taken.

When a stream's part of the outbox is full, its publishers wait; those who have waited for too long go on, and what
there is still no room for is counted in a gap record, which takes its place in the log.

A deduplication id that is on its way already is not sent twice: the second publish waits for the first one's answer.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from gateway.core.routes import StreamRoutes
from protocol import envelope, link, publish, subjects
from protocol.envelope import Envelope
from protocol.gaps import Gap, encode_gap
from protocol.limits import (
    BATCH_BYTES_MAX,
    BATCH_BYTES_TARGET,
    BATCH_LINGER_MS,
    BATCHES_IN_FLIGHT_MAX,
    NEVER_SENT_REFUSE_MS,
)
from protocol.publish import PublishHeaders, Refusal
from protocol.records import Event, encode_batch, record_bytes_max
from protocol.streams import StreamState

RETRY_PAUSE_MS = 200  # before a batch is tried again that was refused for a reason that time may mend

Answer = Callable[[str, bytes], None]
"""answer(reply subject, JSON)"""


class _Entry:
    """One event in the outbox; `replies` are those who wait for its outcome, as (reply subject, is a duplicate).

    Or, with `gap`, the events that were given up at this place.
    """

    __slots__ = ("event", "gap", "headers", "replies", "size_bytes", "taken_ms")

    def __init__(self, event: Event, headers: PublishHeaders, taken_ms: int, gap: Gap | None = None) -> None:
        self.event, self.headers, self.taken_ms, self.gap = event, headers, taken_ms, gap
        self.size_bytes = record_bytes_max(event)
        self.replies: list[tuple[str, bool]] = []

    @property
    def stands_alone(self) -> bool:
        """Whether it needs a batch of its own."""
        headers = self.headers
        return self.gap is not None or headers.expect_last_sequence is not None or headers.expect_last_id is not None

    @property
    def sequences(self) -> int:
        """How many sequences of its producer it spends."""
        return 1 if self.gap is None else self.gap.events


class _Batch(NamedTuple):
    first_sequence: int
    entries: list[_Entry]
    data: bytes


class Counters:
    """What has become of events since the start; `refused` by error code."""

    def __init__(self) -> None:
        self.captured = self.appended = self.duplicates = self.given_up = 0
        self.batches_sent = self.batches_sent_again = 0
        self.refused: dict[int, int] = {}

    def refuse(self, refusal: Refusal) -> None:
        self.refused[refusal.err_code] = self.refused.get(refusal.err_code, 0) + 1


class _Partition:
    """The outbox of one partition of one stream incarnation."""

    def __init__(self, stream: StreamState, number: int, next_sequence: int) -> None:
        self.stream, self.number = stream, number
        self.pending: deque[_Entry] = deque()
        self.pending_bytes = 0
        self.in_flight: deque[_Batch] = deque()
        self.awaited = 0  # answers that the link still owes us
        self.rewinding = False
        self.next_sequence = next_sequence
        self.not_before_ms = 0
        self.ids: dict[bytes, _Entry] = {}

    def add(self, entry: _Entry) -> None:
        self.pending.append(entry)
        self.pending_bytes += entry.size_bytes
        if entry.headers.msg_id is not None:
            self.ids[entry.headers.msg_id] = entry

    def drop(self, entry: _Entry) -> None:
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
        return self.rewinding or len(self.in_flight) >= BATCHES_IN_FLIGHT_MAX or now_ms < self.not_before_ms

    def form(self) -> _Batch:
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
        batch = _Batch(self.next_sequence, entries, data)
        self.next_sequence += sum(entry.sequences for entry in entries)
        self.in_flight.append(batch)
        return batch

    def _pop(self) -> _Entry:
        entry = self.pending.popleft()
        self.pending_bytes -= entry.size_bytes
        return entry

    def take_back(self) -> None:
        """Everything in flight is known not to be in the log: back to pending, in order."""
        while self.in_flight:
            batch = self.in_flight.pop()
            self.next_sequence = batch.first_sequence
            self.pending.extendleft(reversed(batch.entries))
            self.pending_bytes += sum(entry.size_bytes for entry in batch.entries)
        self.rewinding = False

    def parcel(self, batch: _Batch, producer_id: int, epoch: int) -> bytes:
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


class Outbox:
    """Everything between `publish` and the sink link. Frames pile up in `frames`; answers go out through `answer`."""

    def __init__(self, zone: str, answer: Answer) -> None:
        self._zone, self._answer = zone, answer
        self._partitions: dict[tuple[bytes, int], _Partition] = {}
        self._stream_bytes: dict[bytes, int] = {}
        self._producer: tuple[int, int] | None = None  # while the link is up
        self._opened: tuple[int, int] | None = None  # the latest, also while it is down
        self._last_sequences: dict[tuple[bytes, int], int] = {}
        self._link_down_since_ms: int | None = None
        self.routes = StreamRoutes()
        self.frames: list[bytes] = []
        self.counters = Counters()

    # -- from clients -------------------------------------------------------------------------------------------------

    def publish(
        self,
        subject: str,
        reply: str,
        header_block: bytes,
        payload: bytes,
        now_ms: int,
        timestamp_ms: int,
        *,
        gives_up: bool = False,
    ) -> tuple[bool, bool]:
        """Takes an event if a stream wants it: (whether the log answers `reply`, whether the stream has room left).

        With `gives_up` an event that nobody waits for becomes part of a gap when there is no room: its connection has
        waited for as long as the stream's `outbox.stall` says.

        `timestamp_ms` is the wall clock's, for the record; `now_ms`, here and elsewhere, a clock that never jumps.
        """
        plan = self.routes.plan(subject, header_block)
        if plan is None:
            return False, True
        stream, key, number = plan
        headers = publish.read_publish_headers(header_block) if header_block else PublishHeaders()
        wanted = reply if headers.asks or stream.reply == "always" else ""
        event = Event(subjects.encode(subject), key, timestamp_ms, header_block, payload)
        entry = _Entry(event, headers, now_ms)
        refusal = self._refusal(stream, entry, wanted, now_ms)
        if refusal is not None:
            self.counters.refuse(refusal)
            self._tell(wanted, publish.error_answer(stream.name, refusal))
            return bool(wanted), True
        partition = self._partition(stream, number)
        if gives_up and not wanted and not self.has_room(stream):
            self._give_up(partition, now_ms, timestamp_ms)
            return False, True
        self._take(partition, entry, wanted)
        return bool(wanted), self.has_room(stream)

    def _give_up(self, partition: _Partition, now_ms: int, timestamp_ms: int) -> None:
        """Counts an event that is not taken, in the gap where it would have stood."""
        self.counters.given_up += 1
        last = partition.pending[-1] if partition.pending else None
        if last is not None and last.gap is not None:
            last.gap = msgspec.structs.replace(last.gap, events=last.gap.events + 1, to_ms=timestamp_ms)
            return
        gap = Gap("outbox_overflow", 1, timestamp_ms, timestamp_ms)
        self._put(partition, _Entry(Event(b"", b"", timestamp_ms, b"", b""), PublishHeaders(), now_ms, gap))

    def _refusal(self, stream: StreamState, entry: _Entry, wanted: str, now_ms: int) -> Refusal | None:
        headers = entry.headers
        if headers.refusal is not None:
            return headers.refusal
        if headers.expect_stream is not None and headers.expect_stream != stream.name.encode():
            return publish.WRONG_STREAM
        if entry.size_bytes > BATCH_BYTES_MAX:
            return publish.TOO_LARGE
        if entry.stands_alone and stream.partitions > 1:
            return publish.several_partitions("Nats-Expected-Last-*", stream.name, stream.partitions)
        if wanted and not self.has_room(stream):
            return publish.OUTBOX_FULL
        down = self._link_down_since_ms
        if wanted and down is not None and now_ms - down >= NEVER_SENT_REFUSE_MS:
            return publish.NO_LEADER
        return None

    def _take(self, partition: _Partition, entry: _Entry, wanted: str) -> None:
        stream, message_id = partition.stream, entry.headers.msg_id
        on_its_way = partition.ids.get(message_id) if message_id is not None else None
        if on_its_way is not None:
            if wanted:
                on_its_way.replies.append((wanted, True))
            return
        self.counters.captured += 1
        if wanted and stream.ack == "logged" and not entry.headers.asks:
            self._tell(wanted, publish.logged_ack(stream.name, self._zone, partition.number))
        elif wanted:
            entry.replies.append((wanted, False))
        self._put(partition, entry)

    def _put(self, partition: _Partition, entry: _Entry) -> None:
        incarnation = partition.stream.incarnation
        partition.add(entry)
        self._stream_bytes[incarnation] = self._stream_bytes.get(incarnation, 0) + entry.size_bytes

    def _partition(self, stream: StreamState, number: int) -> _Partition:
        key = stream.incarnation, number
        if key not in self._partitions:
            self._partitions[key] = _Partition(stream, number, self._last_sequences.get(key, 0) + 1)
        return self._partitions[key]

    def has_room(self, stream: StreamState) -> bool:
        return self._stream_bytes.get(stream.incarnation, 0) < stream.outbox_bytes

    def stream_has_room(self, name: str) -> bool:
        """Whether a connection that waits for room in this stream may go on."""
        stream = self.routes.by_name.get(name)
        return stream is None or self.has_room(stream)

    @property
    def size_bytes(self) -> int:
        return sum(self._stream_bytes.values())

    @property
    def is_empty(self) -> bool:
        return not any(partition.pending or partition.in_flight for partition in self._partitions.values())

    # -- towards the sink ---------------------------------------------------------------------------------------------

    def flush(self, now_ms: int) -> bool:
        """Forms and sends what may be sent; returns whether something lingers and wants another flush soon."""
        if self._producer is None:
            return False
        lingers = False
        for partition in self._partitions.values():
            while partition.may_form(now_ms):
                self._send(partition, partition.form())
                self.counters.batches_sent += 1
            lingers = lingers or (bool(partition.pending) and not partition.is_held(now_ms))
        return lingers

    def _send(self, partition: _Partition, batch: _Batch) -> None:
        if self._producer is None:
            return
        partition.awaited += 1
        self.frames.append(link.pack(link.Append(), partition.parcel(batch, *self._producer)))

    def link_up(self, opened: link.Opened) -> None:
        """The sink leads and knows us: everything in flight is sent again, then new batches may follow."""
        producer = opened.producer_id, opened.epoch
        is_new, self._opened = self._opened != producer, producer
        self._producer, self._link_down_since_ms = producer, None
        self._last_sequences = {(incarnation, number): last for _, incarnation, number, last in opened.last}
        for key, partition in self._partitions.items():
            if partition.rewinding:
                partition.take_back()
            if is_new:
                self._renumber(partition, self._last_sequences.get(key, 0))
            for batch in partition.in_flight:
                self._send(partition, batch)
                self.counters.batches_sent_again += 1

    def _renumber(self, partition: _Partition, last_sequence: int) -> None:
        """Another epoch: what it says is committed is (at offsets that nobody can tell us), the rest goes again."""
        while partition.in_flight and partition.in_flight[0].first_sequence <= last_sequence:
            for entry in partition.in_flight.popleft().entries:
                self._forget(partition, entry)
        partition.take_back()
        partition.next_sequence = last_sequence + 1

    def link_down(self, now_ms: int) -> None:
        """Nothing can be sent until `link_up`; answers that were on their way will not come."""
        if self._link_down_since_ms is None:
            self._link_down_since_ms = now_ms
        self._producer = None
        self.frames.clear()
        for partition in self._partitions.values():
            partition.awaited = 0

    def tick(self, now_ms: int) -> None:
        """Refuses what waits for an answer, was never sent, and has had no leader for too long."""
        down = self._link_down_since_ms
        if down is None or now_ms - down < NEVER_SENT_REFUSE_MS:
            return
        for partition in self._partitions.values():
            hopeless = [e for e in partition.pending if e.replies and now_ms - e.taken_ms >= NEVER_SENT_REFUSE_MS]
            self._refuse_pending(partition, hopeless, publish.NO_LEADER)

    def set_streams(self, streams: Iterable[StreamState]) -> None:
        """The zone's committed streams have changed."""
        self.routes = StreamRoutes(streams)
        current = {stream.incarnation: stream for stream in streams}
        for (incarnation, _), partition in list(self._partitions.items()):
            partition.stream = current.get(incarnation, partition.stream)
            if not partition.in_flight:
                self._route_again_if_gone(partition)

    def _route_again_if_gone(self, partition: _Partition) -> None:
        present = self.routes.by_name.get(partition.stream.name)
        if present is not None and present.incarnation == partition.stream.incarnation:
            return
        entries, partition.pending, partition.pending_bytes = list(partition.pending), deque(), 0
        for entry in entries:
            if entry.gap is not None:
                self._forget(partition, entry)
                if present is not None and partition.number < present.partitions:
                    self._put(self._partition(present, partition.number), entry)
                continue
            plan = self.routes.plan(subjects.decode(entry.event.subject), entry.event.header_block)
            if plan is None:
                self._refuse(partition, [entry], publish.RETIRED)
                continue
            self._forget(partition, entry)
            stream, key, number = plan
            entry.event = entry.event._replace(key=key)
            self._put(self._partition(stream, number), entry)

    # -- from the sink ------------------------------------------------------------------------------------------------

    def appended(self, message: link.Appended) -> None:
        """The batch is committed and fsynced."""
        found = self._answered(message)
        if found is None:
            return
        partition, batch = found
        self.counters.appended += sum(entry.gap is None for entry in batch.entries)
        for index, entry in enumerate(batch.entries):
            self._acknowledge(partition, entry, message.base_offset + index)
        partition.in_flight.popleft()

    def refused(self, message: link.Refused, now_ms: int) -> None:
        """The batch is not in the log."""
        found = self._answered(message)
        if found is None:
            return
        partition, batch = found
        if message.reason in ("WRONG_LAST_SEQUENCE", "WRONG_LAST_ID"):
            partition.in_flight.popleft()
            wrong = publish.wrong_last_sequence if message.reason == "WRONG_LAST_SEQUENCE" else publish.wrong_last_id
            self._refuse(partition, batch.entries, wrong(message.found))
        else:
            partition.rewinding = True
            if message.reason == "DUPLICATE_IDS":
                self._take_out_known(partition, batch, message.known)
            elif message.reason != "OUT_OF_ORDER":
                partition.not_before_ms = now_ms + RETRY_PAUSE_MS
            if message.reason == "STORAGE_FULL":
                self._take_out_waiting(partition, batch)
        self._rewind_if_settled(partition)

    def _answered(self, message: link.Appended | link.Refused) -> tuple[_Partition, _Batch] | None:
        """The batch that `message` answers. Answers come in order, so it is the first in flight, or one behind a
        refused one, which is then out of order itself."""
        partition = self._partitions.get((message.incarnation, message.partition))
        if partition is None or self._producer != (message.producer_id, message.epoch):
            return None
        partition.awaited -= 1
        for batch in partition.in_flight:
            if batch.first_sequence == message.first_sequence:
                return partition, batch
        return None

    def _rewind_if_settled(self, partition: _Partition) -> None:
        if partition.rewinding and partition.awaited == 0:
            partition.take_back()
            self._route_again_if_gone(partition)

    def _acknowledge(self, partition: _Partition, entry: _Entry, offset: int, *, known: bool = False) -> None:
        stream = partition.stream
        for reply, follows in entry.replies:
            place = stream.name, self._zone, partition.number, stream.partitions, offset
            self._tell(reply, publish.pub_ack(*place, duplicate=known or follows))
        self._forget(partition, entry)

    def _take_out_known(self, partition: _Partition, batch: _Batch, known: Iterable[tuple[int, int]]) -> None:
        taken_out = []
        for index, offset in known:
            entry = batch.entries[index]
            self.counters.duplicates += 1
            self._acknowledge(partition, entry, offset, known=True)
            taken_out.append(entry)
        _remove(batch.entries, taken_out)

    def _take_out_waiting(self, partition: _Partition, batch: _Batch) -> None:
        """Whoever waits for an answer is told that there is no space; the other events wait for it."""
        entries = [entry for entry in batch.entries if entry.replies]
        self._refuse(partition, entries, publish.STORAGE_FULL)
        _remove(batch.entries, entries)

    def _refuse_pending(self, partition: _Partition, entries: list[_Entry], refusal: Refusal) -> None:
        if not entries:
            return
        self._refuse(partition, entries, refusal)
        gone = {id(entry) for entry in entries}
        partition.pending = deque(entry for entry in partition.pending if id(entry) not in gone)
        partition.pending_bytes = sum(entry.size_bytes for entry in partition.pending)

    def _refuse(self, partition: _Partition, entries: list[_Entry], refusal: Refusal) -> None:
        for entry in entries:
            self.counters.refuse(refusal)
            for reply, _ in entry.replies:
                self._tell(reply, publish.error_answer(partition.stream.name, refusal))
            self._forget(partition, entry)

    def _forget(self, partition: _Partition, entry: _Entry) -> None:
        partition.drop(entry)
        self._stream_bytes[partition.stream.incarnation] -= entry.size_bytes

    def _tell(self, reply: str, answer: bytes) -> None:
        if reply:
            self._answer(reply, answer)


def _remove(entries: list[_Entry], gone: list[_Entry]) -> None:
    ids = {id(entry) for entry in gone}
    entries[:] = [entry for entry in entries if id(entry) not in ids]
