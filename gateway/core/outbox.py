"""The outbox: events on their way from this gateway to the log, and the answers on their way back.

    publish ─► pending ─► batch (sequences given) ─► sent, in flight ─► appended: PubAck
                  ▲                                        │
                  └──────── refused, nothing spent ────────┘

Per partition. A batch is formed when it can be sent: at once when nothing is in flight, else when it is big or old
enough; at most eight are in flight. A batch is sent once. Its outcome is unknown until it is answered, or until the
next link is open: that one has a new nonce, so copies from older links are fenced, and the sink tells what has arrived.
What has not goes back to `pending` and is batched anew.

A refusal that spends nothing (ids that the log knows, a newer configuration, a full disk) makes everything behind it
`OUT_OF_ORDER`; when all that was sent is answered, the events go back too, from the refused sequence on.

Events whose stream is gone (retired, or made again under another incarnation) are routed anew once the outcome of all
that was sent to it is known; what is published meanwhile on its subjects waits behind them, so that order is kept.

When a stream's part of the outbox is full, its publishers wait; those who have waited for too long go on, and what
there is still no room for is counted in a gap record, which takes its place in the log.

A deduplication id that is on its way already is not sent twice: the second publish waits for the first one's answer.

Who asked for `geo` goes on waiting when the event is committed here, without holding it (`gateway.core.geo`).

With a `spool` every step is noted there (`gateway.core.spool`), and whatever a step promises leaves when it is noted: a
`logged` answer when the event is, a refusal when it is noted that the event is gone, a batch when its sequences are.

Each of the zone's Raft groups has its own link, under a producer of its own, and some of the partitions. While a link
is down, the partitions of its group wait, and those of the others go on; the room of a stream is one for all of them.

Without a spool, most events take a shorter way: they ask nothing but to be kept, so after the first has come here, the
next come by a lane (`gateway.core.lanes`), until something else comes or a batch is formed. Those whose publisher waits
do so only while the link is up: for how long they have waited is then told by the link, and not kept for each.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence

from gateway.core.acks import Answer, AnswerMany, Askers, PubAcks, held_bytes
from gateway.core.coverage import Accounts, NewRun
from gateway.core.engine import BEST, Engine
from gateway.core.geo import UNKNOWN, GeoAnswers, Waiting
from gateway.core.lanes import REPLY_BYTES, Lane, Room
from gateway.core.partition_outbox import (
    NO_HEADERS,
    Batch,
    Entry,
    Held,
    PartitionOutbox,
    event_bytes_max,
)
from gateway.core.routes import StreamRoutes, place
from gateway.core.spool import Spool
from protocol import link, publish, subjects
from protocol.coverage import RUN_BYTES, Row
from protocol.gaps import Gap
from protocol.limits import (
    BATCH_BYTES_MAX,
    BATCH_BYTES_TARGET,
    BATCHES_HASHED_AHEAD_MAX,
    NEVER_SENT_REFUSE_MS,
)
from protocol.publish import Refusal
from protocol.records import Event
from protocol.streams import StreamState

RETRY_PAUSE_MS = 200  # before a batch is tried again that was refused for a reason that time may mend

_Place = tuple[bytes, int]  # incarnation of the stream, number of the partition


class Counters:
    """What has become of events since the start; `refused` by error code."""

    def __init__(self) -> None:
        self.captured = self.appended = self.duplicates = self.given_up = 0
        self.batches_sent = self.batches_sent_again = 0
        self.refused: dict[int, int] = {}

    def refuse(self, refusal: Refusal, events: int = 1) -> None:
        self.refused[refusal.err_code] = self.refused.get(refusal.err_code, 0) + events


class _Way:
    """The way to one Raft group: its `producer` (id, epoch) while the link is up, and the frames that are to leave."""

    __slots__ = ("down_since_ms", "frames", "last_sequences", "producer", "streams")

    def __init__(self) -> None:
        self.producer: tuple[int, int] | None = None
        self.down_since_ms: int | None = None
        self.last_sequences: dict[_Place, int] = {}
        self.streams: int | None = None  # the revision of those that the link has told, while it is up
        self.frames: list[bytes] = []


class Outbox:
    """Everything between `publish` and the sink links, of which there is one for each Raft group, by its number.

    Frames for a link wait until it takes them (`take_frames`); answers go out through `answer`.
    """

    def __init__(
        self,
        zone: str,
        answer: Answer,
        *,
        spool: Spool | None = None,
        answer_when_kept: Answer | None = None,
        answer_many: AnswerMany | None = None,
        engine: Engine = BEST,
        other_zones: Collection[str] = (),
        new_run: NewRun = lambda: bytes(RUN_BYTES),
    ) -> None:
        """`other_zones` keep logs too, and so may hold copies. `new_run` makes names for runs (`protocol.coverage`).

        With `spool`, `answer_when_kept` gets answers that may leave only when what is noted there is written.

        Without `answer_many`, `answer` is called for each. Lanes are of `engine`, that of the plane.
        """
        self._acks = PubAcks(zone, answer, answer_many)
        self._zone, self._answer, self._answer_when_kept = zone, answer, answer_when_kept or answer
        self._spool, self._engine = spool, engine
        self.is_shut = False  # while nothing more can be kept: as if every stream's part of the outbox were full
        self._partitions: dict[_Place, PartitionOutbox] = {}
        self._ways: dict[int, _Way] = {}
        self._rooms: dict[bytes, Room] = {}
        self._accounts = Accounts(new_run)
        self.geo = GeoAnswers(other_zones, self._acks, self._free)
        self._now_ms = 0  # as of the last call that told it
        self._unhashed: deque[tuple[PartitionOutbox, Batch]] = deque(maxlen=BATCHES_HASHED_AHEAD_MAX)
        self._leaving: list[PartitionOutbox] = []  # gone, and something of theirs is in flight
        self.routes = StreamRoutes()
        self._counters = Counters()

    @property
    def counters(self) -> Counters:
        for partition in self._partitions.values():
            self._counters.captured += partition.lane.taken
            partition.lane.taken = 0
        return self._counters

    # -- from clients -------------------------------------------------------------------------------------------------

    def publish(
        self,
        account: str,
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
        plan = self.routes.plan(account, subject, header_block)
        if plan is None:
            return False, True
        stream = plan[0]
        headers = publish.read_publish_headers(header_block) if header_block else NO_HEADERS
        wanted = reply if headers.asks or stream.reply == "always" else ""
        partition, key = self._destination(plan, subject, header_block)
        event = Event(subjects.encode(subject), key, timestamp_ms, header_block, payload)
        if not headers.asks and self._append(partition, event, wanted, now_ms, stream, gives_up=gives_up):
            return bool(wanted), self.has_room(stream)
        entry = Entry(event, headers, now_ms)
        refusal = self._unfit(stream, entry, is_awaited=bool(wanted))
        if refusal is None and self._follows(partition, entry, wanted, stream):
            return bool(wanted), self.has_room(stream)
        refusal = refusal or self._not_now(partition, stream, wanted, now_ms)
        if refusal is not None:
            self._counters.refuse(refusal)
            self._tell(stream, wanted, publish.error_answer(stream.name, refusal))
            return bool(wanted), True
        if gives_up and not wanted and not self.has_room(stream):
            self._give_up(self._partition(*plan[::2]), now_ms, timestamp_ms)
            return False, True
        self._take(partition, entry, wanted, stream)
        return bool(wanted), self.has_room(stream)

    def _append(
        self, partition: PartitionOutbox, event: Event, wanted: str, now_ms: int, stream: StreamState, *, gives_up: bool
    ) -> bool:
        """Takes an event that asks nothing, unless it needs a closer look."""
        size_bytes = event_bytes_max(event)
        takes_replies = self._way_of(partition).producer is not None and stream.ack != "logged"
        if stream.ack == "geo" and self.geo.refusal(stream) is not None:
            takes_replies = False
        if self._spool is not None or size_bytes > BATCH_BYTES_TARGET or (wanted and not takes_replies):
            return False
        if (gives_up or wanted) and not self.has_room(stream):
            return False
        if wanted.startswith("$"):  # perhaps a system subject: `answer` knows
            return False
        self._counters.captured += 1
        partition.append(event, wanted, size_bytes, now_ms, opens=not self._leaving, takes_replies=takes_replies)
        reply_bytes = REPLY_BYTES + len(subjects.encode(wanted)) if wanted else 0
        self._room(partition.stream).used_bytes += size_bytes + reply_bytes
        return True

    def lane(self, account: str, subject: str) -> tuple[Lane, bytes] | None:
        """The lane for events on `subject`, and their key; None: they have to come here. Valid until streams change."""
        plan = self.routes.plan(account, subject, b"")
        if plan is None or self._spool is not None:
            return None
        stream, key, number = plan
        return self._partition(stream, number).lane, key

    def _give_up(self, partition: PartitionOutbox, now_ms: int, timestamp_ms: int) -> None:
        """Counts an event that is not taken, in the gap where it would have stood."""
        self._counters.given_up += 1
        last = partition.pending[-1] if partition.pending else None
        if isinstance(last, Entry) and last.gap is not None:
            partition.widen_gap(last, timestamp_ms)
            if self._spool is not None:
                self._spool.add(partition, last)
            return
        gap = Gap("outbox_overflow", 1, timestamp_ms, timestamp_ms)
        self._put(partition, Entry(Event(b"", b"", timestamp_ms, b"", b""), NO_HEADERS, now_ms, gap))

    def _destination(
        self, plan: tuple[StreamState, bytes, int], subject: str, header_block: bytes
    ) -> tuple[PartitionOutbox, bytes]:
        """Where an event waits, and its key: behind the ones before it, if their stream is leaving."""
        for partition in self._leaving:
            stream = partition.stream
            if stream.account == plan[0].account and any(subjects.matches(one, subject) for one in stream.subjects):
                key, number = place(stream, subject, header_block)
                if number == partition.number:
                    return partition, key
        stream, key, number = plan
        return self._partition(stream, number), key

    def _not_now(self, partition: PartitionOutbox, stream: StreamState, wanted: str, now_ms: int) -> Refusal | None:
        """Why an event that somebody waits for cannot be taken at the moment."""
        if not wanted:
            return None
        if not self.has_room(stream):
            return publish.OUTBOX_FULL
        return publish.NO_LEADER if self._is_leaderless(partition, now_ms) else None

    def _is_leaderless(self, partition: PartitionOutbox, now_ms: int) -> bool:
        """Whether there has been no leader for it for too long."""
        down = self._way_of(partition).down_since_ms
        return down is not None and now_ms - down >= NEVER_SENT_REFUSE_MS

    def _unfit(self, stream: StreamState, entry: Entry, *, is_awaited: bool = False) -> Refusal | None:
        """Why `stream` can never take this event, or answer whoever awaits it as it says."""
        headers = entry.headers
        if headers.refusal is not None:
            return headers.refusal
        if headers.expect_stream is not None and headers.expect_stream != stream.name.encode():
            return publish.WRONG_STREAM
        if entry.size_bytes > BATCH_BYTES_MAX:
            return publish.TOO_LARGE
        if entry.stands_alone and stream.partitions > 1:
            return publish.several_partitions("Nats-Expected-Last-*", stream.name, stream.partitions)
        if headers.ack == "geo" or (is_awaited and stream.ack == "geo"):
            return self.geo.refusal(stream)
        return None

    def _unfit_elsewhere(self, gone: StreamState, stream: StreamState, entry: Entry) -> Refusal | None:
        """Why an event for a stream that is gone cannot go to `stream`: expectations were about that one."""
        if entry.stands_alone and gone.name != stream.name:
            return publish.RETIRED
        return self._unfit(stream, entry)

    def _follows(self, partition: PartitionOutbox, entry: Entry, wanted: str, stream: StreamState) -> bool:
        """Whether an event of this id is on its way: then nothing is taken, and `wanted` gets that one's answer.

        Where there is no room even to remember who waits, there will be silence: the outcome may be either.
        """
        message_id = entry.headers.msg_id
        first = partition.ids.get(message_id) if message_id is not None else None
        if first is None:
            return False
        if wanted and self.has_room(stream):
            used_bytes = first.wait(wanted, duplicate=True, geo=entry.headers.ack == "geo")
            self._room(partition.stream).used_bytes += used_bytes
        return True

    def _take(self, partition: PartitionOutbox, entry: Entry, wanted: str, stream: StreamState) -> None:
        self._counters.captured += 1
        if wanted and stream.ack == "logged" and not entry.headers.asks:
            self._tell_when_kept(stream, wanted, publish.logged_ack(stream.name, self._zone, partition.number))
        elif wanted:
            entry.wait(wanted, duplicate=False, geo=entry.headers.ack == "geo")
        self._put(partition, entry)

    def _put(self, partition: PartitionOutbox, entry: Entry) -> None:
        partition.add(entry)
        self._room(partition.stream).used_bytes += entry.held_bytes
        if self._spool is not None:
            self._spool.add(partition, entry)

    def _partition(self, stream: StreamState, number: int) -> PartitionOutbox:
        key = stream.incarnation, number
        partition = self._partitions.get(key)
        if partition is None:
            lane = self._engine.lane(self._room(stream))
            last_sequence = self._way(stream.group_of(number)).last_sequences.get(key, 0)
            partition = PartitionOutbox(stream, number, last_sequence + 1, lane)
            partition.account = self._accounts.of(stream, number)
            self._partitions[key] = partition
            _configure(lane, stream)
        return partition

    def _way(self, group: int) -> _Way:
        way = self._ways.get(group)
        if way is None:
            way = self._ways[group] = _Way()
        return way

    def _way_of(self, partition: PartitionOutbox) -> _Way:
        return self._way(partition.group)

    def _room(self, stream: StreamState) -> Room:
        room = self._rooms.get(stream.incarnation)
        if room is None:
            room = self._rooms[stream.incarnation] = self._engine.room()
            room.bytes_max = stream.outbox_bytes
        return room

    def has_room(self, stream: StreamState) -> bool:
        incarnations = {stream.incarnation, *(partition.stream.incarnation for partition in self._leaving)}
        rooms = [self._rooms[incarnation] for incarnation in incarnations if incarnation in self._rooms]
        return sum(room.used_bytes for room in rooms) < stream.outbox_bytes and not self.is_shut

    def holds(self, stream: str) -> bool:
        """Whether it holds anything of this one."""
        own = (each for each in self._partitions.values() if each.stream.name == stream)
        return any(partition.waits or partition.in_flight for partition in own)

    def is_linked(self, stream: StreamState) -> bool:
        """Whether what is published to its first partition now can leave at once."""
        return self._way(stream.group_of(0)).producer is not None

    @property
    def size_bytes(self) -> int:
        return sum(room.used_bytes for room in self._rooms.values())

    @property
    def is_empty(self) -> bool:
        return self.is_empty_but()

    def is_empty_but(self, *streams: str) -> bool:
        """Whether it holds nothing of other streams than these."""
        others = (each for each in self._partitions.values() if each.stream.name not in streams)
        return not any(partition.waits or partition.in_flight for partition in others)

    def restore(self, partition: PartitionOutbox) -> None:
        """Goes on with what an earlier process of this gateway held, as if the link had just been lost."""
        self._partitions[partition.stream.incarnation, partition.number] = partition
        partition.account = self._accounts.of(partition.stream, partition.number)
        self._room(partition.stream).used_bytes += sum(entry.held_bytes for entry in partition.entries())

    # -- what is accounted for ----------------------------------------------------------------------------------------

    @property
    def accounts(self) -> Accounts:
        return self._accounts

    def coverage_rows(self, *, whole: bool, closing: bool = False) -> list[Row]:
        """For the next beacon: of the partitions that have changed since the one before, or of all."""
        return self._accounts.rows(self._partitions.values(), whole=whole, closing=closing)

    def hash_sent(self) -> None:
        """For the accounts, when what was sent has left, and its answers take a moment yet."""
        while self._unhashed:
            partition, batch = self._unhashed.popleft()
            if any(each is batch for each in partition.in_flight):
                partition.account.hash(batch)

    # -- towards the sink ---------------------------------------------------------------------------------------------

    def flush(self, now_ms: int) -> bool:
        """Forms and sends what may be sent; returns whether something lingers and wants another flush soon."""
        lingers, self._now_ms = False, now_ms
        for partition in self._partitions.values():
            if not partition.waits or self._way_of(partition).producer is None:
                continue
            while partition.may_form(now_ms):
                self._send(partition, partition.form())
                self._counters.batches_sent += 1
            lingers = lingers or (partition.waits and not partition.is_held(now_ms))
        return lingers

    def _send(self, partition: PartitionOutbox, batch: Batch) -> None:
        way = self._way_of(partition)
        if way.producer is None:
            return
        if self._spool is not None:
            self._spool.sent(partition, batch)
        partition.awaited += 1
        way.frames.append(link.pack(link.Append(), partition.parcel(batch, *way.producer)))
        self._unhashed.append((partition, batch))

    def take_frames(self, group: int = 0) -> list[bytes]:
        """What is ready to leave on the link to this group."""
        way = self._way(group)
        frames, way.frames = way.frames, []
        return frames

    def link_up(self, opened: link.Opened, group: int = 0) -> None:
        """The sink leads the group and knows us, under an epoch that no older link has had."""
        way = self._way(group)
        way.producer, way.down_since_ms = (opened.producer_id, opened.epoch), None
        reached = {(one.incarnation, one.partition): one for one in opened.last}
        way.last_sequences = {key: one.last_sequence for key, one in reached.items()}
        for key, partition in self._of_group(group):
            one = reached.get(key)
            if one is not None:
                self._settle(partition, one)
            self._counters.batches_sent_again += partition.take_back()
            partition.next_sequence = one.last_sequence + 1 if one is not None else 1
            partition.account.reached(partition.next_sequence - 1)
        self._let_go()
        for incarnation, number in self.geo.link_up(group, way.last_sequences):
            way.frames.append(link.pack(link.WatchCopies(incarnation, number)))

    def _of_group(self, group: int) -> list[tuple[_Place, PartitionOutbox]]:
        return [(key, partition) for key, partition in self._partitions.items() if partition.group == group]

    def _settle(self, partition: PartitionOutbox, reached: link.Reached) -> None:
        """The outcome of what was in flight when an older link ended, as far as the sink has heard of it."""
        answers = {(answer.first_sequence, answer.crc): answer for answer in reached.answers}
        while partition.in_flight and partition.in_flight[0].first_sequence <= reached.last_sequence:
            batch = partition.in_flight[0]
            answer = answers.get((batch.first_sequence, batch.crc))
            if answer is None:
                # Another gateway has our name and went on under our sequences: nobody can say what became of ours.
                partition.account.unknown(batch)
                for held in partition.in_flight.popleft().entries:
                    self._forget(partition, held)
            elif answer.reason:
                self._refuse_for_good(partition, batch, answer.reason, answer.found)
            else:
                self._acknowledge_batch(partition, batch, answer.base_offset)

    def link_down(self, now_ms: int, group: int = 0) -> None:
        """Nothing can be sent to this group until `link_up`; answers that were on their way will not come."""
        way = self._way(group)
        if way.down_since_ms is None:
            way.down_since_ms = now_ms
        way.producer = way.streams = None
        way.frames.clear()
        self.geo.link_down(group)
        for _, partition in self._of_group(group):
            partition.awaited = 0
            partition.lane.replies = None

    def tick(self, now_ms: int) -> None:
        """Refuses what waits for an answer, was never sent, and has had no leader for too long; ends long waits."""
        self._now_ms = now_ms
        self.geo.expire(now_ms)
        for partition in self._partitions.values():
            if not self._is_leaderless(partition, now_ms):
                continue
            partition.split_runs(awaited=True)
            hopeless = [
                held
                for held in partition.pending
                if isinstance(held, Entry) and held.replies and now_ms - held.taken_ms >= NEVER_SENT_REFUSE_MS
            ]
            self._refuse_pending(partition, hopeless, publish.NO_LEADER)

    def streams_told(self, message: link.Streams, group: int = 0) -> None:
        """What a group knows of the zone's streams; the newest of what the open links have told counts.

        Groups learn of a change one after the other. One that has not learnt of any stream yet does not count.
        """
        others = [way.streams for way in self._ways.values() if way.streams is not None]
        if message.revision >= max(others, default=1):
            self.set_streams(message.streams)
        self._way(group).streams = message.revision

    @property
    def revision(self) -> int:
        """Of the streams in force, as the open links have told; 0 while none has."""
        return max((way.streams for way in self._ways.values() if way.streams is not None), default=0)

    def set_streams(self, streams: Iterable[StreamState]) -> None:
        """The zone's committed streams have changed."""
        current = {stream.incarnation: stream for stream in streams}
        self.routes = StreamRoutes(current.values())
        for partition in self._partitions.values():
            partition.stream = stream = current.get(partition.stream.incarnation, partition.stream)
            partition.lane.builder = None  # an event may have to go another way from now on
            partition.lane.room.bytes_max = stream.outbox_bytes
            _configure(partition.lane, stream)
            self._accounts.follow(partition)
            present = self.routes.by_name.get(partition.stream.name)
            partition.is_gone = present is None or present.incarnation != partition.stream.incarnation
        self._let_go()

    def _let_go(self) -> None:
        """Routes anew what waits for streams that are gone and owe us no answer."""
        gone = [partition for partition in self._partitions.values() if partition.is_gone]
        self._leaving = [partition for partition in gone if partition.in_flight]
        for partition in gone:
            if partition.waits and not partition.in_flight:
                self._route_again(partition)

    def _route_again(self, partition: PartitionOutbox) -> None:
        partition.split_runs()
        entries = [held for held in partition.pending if isinstance(held, Entry)]
        partition.pending = deque()
        for entry in entries:
            if entry.gap is not None:
                self._move_gap(partition, entry)
                continue
            subject, header_block = subjects.decode(entry.event.subject), entry.event.header_block
            plan = self.routes.plan(partition.stream.account, subject, header_block)
            refusal = publish.RETIRED if plan is None else self._unfit_elsewhere(partition.stream, plan[0], entry)
            if refusal is not None:
                self._refuse(partition, [entry], refusal)
            elif plan is not None:
                self._forget(partition, entry)
                target, key = self._destination(plan, subject, header_block)
                entry.event = entry.event._replace(key=key)
                self._join(target, entry)

    def _move_gap(self, partition: PartitionOutbox, entry: Entry) -> None:
        self._forget(partition, entry)
        present = self.routes.by_name.get(partition.stream.name)
        if present is not None and partition.number < present.partitions:
            self._put(self._partition(present, partition.number), entry)

    def _join(self, target: PartitionOutbox, entry: Entry) -> None:
        """Puts the entry there, unless one of its id is there already: then its publishers wait for that one."""
        first = target.ids.get(entry.headers.msg_id) if entry.headers.msg_id is not None else None
        if first is None:
            self._put(target, entry)
            return
        for asker in entry.replies:
            self._room(target.stream).used_bytes += first.wait(asker.reply, duplicate=True, geo=asker.geo)

    # -- from the sink ------------------------------------------------------------------------------------------------

    def appended(self, message: link.Appended) -> None:
        """The batch is committed and fsynced."""
        found = self._answered(message)
        if found is None:
            return
        self._acknowledge_batch(*found, message.base_offset)
        self._rewind_if_settled(found[0])

    def refused(self, message: link.Refused, now_ms: int) -> None:
        """The batch is not in the log."""
        found = self._answered(message)
        if found is None:
            return
        partition, batch = found
        if message.reason in ("WRONG_LAST_SEQUENCE", "WRONG_LAST_ID"):
            self._refuse_for_good(partition, batch, message.reason, message.found)
        else:
            partition.rewinding = True
            if message.reason == "DUPLICATE_IDS":
                self._take_out_known(partition, batch, message.known)
            elif message.reason != "OUT_OF_ORDER":
                partition.not_before_ms = now_ms + RETRY_PAUSE_MS
            if message.reason == "STORAGE_FULL":
                self._take_out_waiting(partition, batch)
        self._rewind_if_settled(partition)

    def _answered(self, message: link.Appended | link.Refused) -> tuple[PartitionOutbox, Batch] | None:
        """The batch that `message` answers. That a disk is full is said at once, ahead of older batches' answers."""
        partition = self._partitions.get((message.incarnation, message.partition))
        if partition is None or self._way_of(partition).producer != (message.producer_id, message.epoch):
            return None
        partition.awaited -= 1
        for batch in partition.in_flight:
            if batch.first_sequence == message.first_sequence:
                return partition, batch
        return None

    def _rewind_if_settled(self, partition: PartitionOutbox) -> None:
        if partition.rewinding and partition.awaited == 0:
            self._counters.batches_sent_again += partition.take_back()
        if partition.is_gone and not partition.in_flight:
            self._let_go()

    def _refuse_for_good(self, partition: PartitionOutbox, batch: Batch, reason: str, found: str) -> None:
        """An expectation has failed; the batch's sequence is spent."""
        partition.in_flight.remove(batch)
        partition.account.spent(batch)
        batch.split_awaited()
        wrong = publish.wrong_last_sequence if reason == "WRONG_LAST_SEQUENCE" else publish.wrong_last_id
        self._refuse(partition, batch.entries, wrong(found))

    def _acknowledge_batch(self, partition: PartitionOutbox, batch: Batch, base_offset: int) -> None:
        partition.in_flight.remove(batch)
        partition.account.appended(batch)
        sequence = batch.first_sequence - 1
        for held in batch.entries:
            self._counters.appended += held.events
            sequence += held.sequences
            self._acknowledge(partition, held, base_offset, sequence)
            base_offset += held.records

    def _acknowledge(self, partition: PartitionOutbox, held: Held, offset: int, sequence: int = UNKNOWN) -> None:
        """It stands in the log at `offset`, under our `sequence`, or UNKNOWN: the log knew it before."""
        is_geo = partition.stream.ack == "geo"
        if isinstance(held, Entry):
            is_known = sequence == UNKNOWN
            askers = [asker._replace(is_duplicate=is_known or asker.is_duplicate) for asker in held.replies]
            self._acks.tell(partition, [each for each in askers if not (is_geo or each.geo)], offset)
            later = [each for each in askers if is_geo or each.geo]
            self._wait_for_zones(partition, held, offset, sequence, later)
        elif held.waiting and is_geo:
            self._wait_for_zones(partition, held, offset, sequence, held.waiting)
        elif held.waiting:
            self._acks.tell(partition, held.waiting, offset)
        self._forget(partition, held)

    def _wait_for_zones(
        self, partition: PartitionOutbox, held: Held, offset: int, sequence: int, askers: Askers
    ) -> None:
        if not askers:
            return
        stream = partition.stream
        size_bytes = held_bytes(askers)
        self._room(stream).used_bytes += size_bytes
        due_ms = self._now_ms + stream.geo_timeout_ms
        waiting = Waiting(offset, offset + held.records, askers, sequence, size_bytes, held.taken_ms, due_ms)
        if self.geo.wait(partition, waiting, self._now_ms):
            watch = link.WatchCopies(stream.incarnation, partition.number)
            self._way_of(partition).frames.append(link.pack(watch))

    def _free(self, stream: StreamState, size_bytes: int) -> None:
        self._room(stream).used_bytes -= size_bytes

    def copies_told(self, message: link.Copies, now_ms: int) -> None:
        """How far other zones hold a partition."""
        self.geo.told(message, now_ms)

    def _take_out_known(self, partition: PartitionOutbox, batch: Batch, known: Iterable[tuple[int, int]]) -> None:
        taken_out, entries = [], batch.by_record()
        for index, offset in known:
            entry = entries[index]
            self._counters.duplicates += 1
            self._acknowledge(partition, entry, offset)
            taken_out.append(entry)
        _remove(batch.entries, taken_out)

    def _take_out_waiting(self, partition: PartitionOutbox, batch: Batch) -> None:
        """Whoever waits for an answer is told that there is no space; the other events wait for it."""
        entries = batch.split_awaited()
        self._refuse(partition, entries, publish.STORAGE_FULL)
        _remove(batch.entries, entries)

    def _refuse_pending(self, partition: PartitionOutbox, entries: Sequence[Held], refusal: Refusal) -> None:
        if not entries:
            return
        self._refuse(partition, entries, refusal)
        gone = {id(entry) for entry in entries}
        partition.pending = deque(held for held in partition.pending if id(held) not in gone)

    def _refuse(self, partition: PartitionOutbox, entries: Sequence[Held], refusal: Refusal) -> None:
        for held in entries:
            self._counters.refuse(refusal, held.events)
            for asker in held.replies if isinstance(held, Entry) else ():
                self._tell_when_kept(
                    partition.stream, asker.reply, publish.error_answer(partition.stream.name, refusal)
                )
            self._forget(partition, held)

    def _forget(self, partition: PartitionOutbox, held: Held) -> None:
        partition.drop(held)
        self._room(partition.stream).used_bytes -= held.held_bytes
        if self._spool is not None and isinstance(held, Entry):
            self._spool.gone(held)

    def _tell_when_kept(self, stream: StreamState, reply: str, answer: bytes) -> None:
        if reply:
            self._answer_when_kept(stream.account, reply, answer)

    def _tell(self, stream: StreamState, reply: str, answer: bytes) -> None:
        if reply:
            self._answer(stream.account, reply, answer)


def _remove(entries: list[Held], gone: Sequence[Held]) -> None:
    ids = {id(held) for held in gone}
    entries[:] = [held for held in entries if id(held) not in ids]


def _configure(lane: Lane, stream: StreamState) -> None:
    lane.answers = stream.reply == "always"
    lane.takes_headers = not stream.key.startswith("header:")
