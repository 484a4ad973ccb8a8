"""What the sinks of a zone write into the audit stream: what changed, who asked for it, and links that were refused.

    a command is applied, on every sink ───────┐
    an operator asks, a link is refused, here ─┴─► notes ─┬─► this sink leads the group of `$AUDIT`: it appends them
                                                          └─► another leads it: it is told (`Note`) what it cannot know

A note is under way until it stands in the log, and it stands there once, whoever leads meanwhile: each has an id, which
the leader appends with it, and what the deduplication window of `$AUDIT` knows is done with. The window is replicated:
every sink looks at its own. The id of what was applied is its place in the Raft log, the same on every sink, so whoever
comes to lead goes on. Notes older than half the window are given up; after a restart those are the old entries of the
journal, which were written when they were new.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from protocol import audit
from protocol.envelope import Envelope, pack
from protocol.errors import UNREADABLE, LogError
from protocol.limits import AUDIT_NOTE_MS_MAX, AUDIT_NOTES_MAX, FLUSH_INTERVAL_MS, LINK_REQUEST_MS_MAX
from protocol.link import Appended, Opened, Refused
from protocol.records import Event, encode_batch
from protocol.streams import StreamState
from sinkd.core import commands
from sinkd.core.commands import MembersAre, OpenProducer
from sinkd.core.machine import Configured, LossAccepted
from sinkd.core.membership import Members
from sinkd.core.raft_messages import CODEC, Note
from sinkd.core.rebuilding import RebuildChanged, described
from sinkd.shell.group import Change, UnknownOutcome

if TYPE_CHECKING:
    from sinkd.shell.replica import Replica
    from sinkd.shell.sink import Sink

log = structlog.get_logger()


class _Producer(NamedTuple):
    """Leave to append, for one leadership."""

    term: int
    producer_id: int
    epoch: int
    next_sequence: int


class AuditNotes:
    """Of one sink. `written` counts what it has appended, by kind; `lost` what it had to give up."""

    def __init__(self, sink: "Sink") -> None:
        self._sink = sink
        self._notes: OrderedDict[bytes, audit.Event] = OrderedDict()
        self._own: set[bytes] = set()  # of those: what no other sink knows
        self._summary = audit.Summary()
        self._producer: _Producer | None = None
        self._wake = asyncio.Event()
        self._asked_by = ""
        self.written: Counter[str] = Counter()
        self.lost = 0

    @property
    def waiting(self) -> int:
        """How many are not in the log yet."""
        return len(self._notes)

    # -- what there is to note ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def asked_by(self, source: str) -> Iterator[None]:
        """What is applied meanwhile was asked for by somebody at this address."""
        self._asked_by = source
        try:
            yield
        finally:
            self._asked_by = ""

    def applied(self, group: int, change: Change) -> None:
        """A command has changed the configuration or the members; every sink of the group notes the same."""
        result, at = change.result, f"{group}:{change.log_index}:{change.time_ms}".encode()
        if isinstance(result, Configured) and group == 0 and result.revision != change.revision_before:
            streams = sum(not state.retired for state in self._sink.machine.stream_states())
            what, why = f"revision {result.revision} is in force, {streams} streams", f"was {change.revision_before}"
            self._add(at, self._event(audit.CONFIGURATION_CHANGED, change.time_ms, what=what, why=why))
        elif isinstance(result, MembersAre) and (what := _changes(change.members_before, result)):
            source, what = self._asked_by, f"group {group}: {what}"
            self._add(at, self._event(audit.MEMBERSHIP_CHANGED, change.time_ms, source=source, what=what))
        elif isinstance(result, RebuildChanged) and result.rebuild is not None and not result.refusal:
            kind = audit.REBUILD_ENDED if result.rebuild.ended_ms else audit.REBUILD_BEGUN
            what = described(result.rebuild)
            self._add(at, self._event(kind, change.time_ms, source=self._asked_by, what=what))
        elif isinstance(result, LossAccepted):
            what = f"group {group}: goes on with what {', '.join(result.members)} held"
            why = f"members were {', '.join(change.members_before)}"
            self._add(at, self._event(audit.LOSS_ACCEPTED, change.time_ms, source=result.who, what=what, why=why))

    def configuration_problems(self, sink: str, revision: int, in_force: int, problems: tuple[str, ...]) -> None:
        """The file of `sink` (this one: "") is not in force, or not all of it. Said once within the window."""
        kind = audit.CONFIGURATION_REFUSED if revision > in_force else audit.CONFIGURATION_DIFFERS
        what = f"revision {revision} of the file of {sink or self._sink.node.name}, {in_force} is in force"
        why = "; ".join(problems)
        self._add_own(f"{what}: {why}", self._event(kind, self._sink.now_ms(), what=what, why=why))

    def leadership_moved(self, group: int, to: str, source: str) -> None:
        """An operator has asked for it."""
        what = f"group {group}: from {self._sink.node.name} to {to or 'the member that is furthest'}"
        event = self._event(audit.LEADERSHIP_MOVED, self._sink.now_ms(), source=source, what=what)
        self._add_own(f"{event.time}: {what}", event)

    def segment_mended(self, what: str, why: str) -> None:
        """Something that this disk had spoilt is whole again."""
        event = self._event(audit.SEGMENT_MENDED, self._sink.now_ms(), what=what, why=why)
        self._add_own(f"{event.time}: {what}", event)

    def link_refused(self, host: str, what: str, why: str) -> None:
        event = self._event(audit.LINK_REFUSED, self._sink.now_ms(), source=host, what=what, why=why)
        if (first := self._summary.note(event, self._clock_ms())) is not None:
            self._add_refused(first)
        self._wake.set()

    def _add_refused(self, event: audit.Event) -> None:
        self._add_own(f"{event.time}: {event.kind} {event.source} {event.times}", event)

    def _event(self, kind: str, time_ms: int, *, source: str = "", what: str, why: str = "") -> audit.Event:
        node, what, why = self._sink.node, audit.plain(what), audit.plain(why)
        return audit.Event(time=time_ms, zone=node.zone, node=node.name, kind=kind, source=source, what=what, why=why)

    def _add_own(self, id: str, event: audit.Event) -> None:
        key = f"{self._sink.node.name}: {id}".encode()
        self._own.add(key)
        self._add(key, event)

    def take(self, note: Note) -> None:
        """What another sink knows."""
        try:
            event = msgspec.json.decode(note.event, type=audit.Event)
        except UNREADABLE as error:
            log.warning("audit_note_unreadable", error=str(error))
        else:
            self._add(note.id, event)

    def _add(self, id: bytes, event: audit.Event) -> None:
        if id in self._notes:
            return
        if self._sink.now_ms() - event.time > AUDIT_NOTE_MS_MAX:
            self._own.discard(id)
            return
        self._notes[id] = event
        if len(self._notes) > AUDIT_NOTES_MAX:
            self._drop(next(iter(self._notes)))
            self.lost += 1
        self._wake.set()

    def _drop(self, id: bytes) -> None:
        del self._notes[id]
        self._own.discard(id)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_INTERVAL_MS / 1000 if self._notes or self._summary.is_open else None):
                    await self._wake.wait()
            self._wake.clear()
            for event in self._summary.due(self._clock_ms()):
                self._add_refused(event)
            try:
                await self._write()
            except (LogError, UnknownOutcome, TimeoutError):  # another leads, or will: once more in a second
                self._producer = None

    def _clock_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    async def _write(self) -> None:
        self._forget_old()
        home = self._home()
        if home is None:
            return
        replica, stream = home
        for id, event in list(self._notes.items()):
            if self._is_in_log(replica, id):
                self._drop(id)
            elif replica.group.leads:
                await self._append(replica, stream, id, event)
            elif id in self._own and replica.peers is not None:
                replica.peers.links.send(replica.group.leader, CODEC.pack_parts(Note(id, event.encoded())))

    def _forget_old(self) -> None:
        now_ms = self._sink.now_ms()
        for id, event in list(self._notes.items()):
            if now_ms - event.time > AUDIT_NOTE_MS_MAX:
                self._drop(id)
                self.lost += 1

    def _home(self) -> "tuple[Replica, StreamState] | None":
        """The replica that has the log, if the stream is in force there."""
        known = self._sink.machine.state.streams.get(audit.STREAM)
        number = known.state.group_of(0) if known is not None else 0
        if known is None or number >= len(self._sink.replicas):
            return None
        replica = self._sink.replicas[number]
        stream = replica.machine.state.streams.get(audit.STREAM)
        return None if stream is None or stream.state.retired else (replica, stream.state)

    @staticmethod
    def _is_in_log(replica: "Replica", id: bytes) -> bool:
        state = replica.machine.state
        stream = state.streams[audit.STREAM]
        return stream.partitions[0].find(id, state.now_ms, stream.state.dedup_window_ms) is not None

    async def _append(self, replica: "Replica", stream: StreamState, id: bytes, event: audit.Event) -> None:
        """LogError, UnknownOutcome, TimeoutError: it is not known to be in the log."""
        if self._sink.is_storage_full():
            raise LogError("STORAGE_ERROR", "storage full")
        producer = self._producer
        if producer is None or producer.term != replica.group.term:
            producer = await self._open(replica, stream)
        head = Envelope(
            producer_id=producer.producer_id, epoch=producer.epoch, stream=stream.name, incarnation=stream.incarnation,
            partition=0, first_sequence=producer.next_sequence, sequence_count=1, revision=stream.revision,
            ids=((0, id),),
        )  # fmt: skip
        subject = event.subject.encode()
        batch = encode_batch([Event(subject, subject, event.time, b"", event.encoded())])
        decided: asyncio.Future[Appended | Refused] = asyncio.get_running_loop().create_future()

        def answer(message: Appended | Refused) -> None:
            if not decided.done():
                decided.set_result(message)

        replica.group.append(head, pack(head, batch), answer)
        async with asyncio.timeout(LINK_REQUEST_MS_MAX / 1000):
            message = await decided
        if isinstance(message, Appended):
            self._producer = producer._replace(next_sequence=producer.next_sequence + 1)
            self.written[event.kind] += 1
        elif message.reason != "DUPLICATE_IDS":
            raise LogError("LEADER_NOT_AVAILABLE", message.reason)
        self._drop(id)

    async def _open(self, replica: "Replica", stream: StreamState) -> _Producer:
        """Under a nonce that no leadership before has had: older ones are fenced."""
        term = replica.group.term
        nonce = f"{self._sink.now_ms()}:{term}".encode()
        opened = await replica.group.submit(commands.OPEN, OpenProducer(self._sink.node.name, 0, nonce))
        assert isinstance(opened, Opened)
        reached = (each.last_sequence for each in opened.last if each.incarnation == stream.incarnation)
        self._producer = _Producer(term, opened.producer_id, opened.epoch, next(reached, 0) + 1)
        return self._producer


def _changes(before: Members, now: MembersAre) -> str:
    """What became of the members, in words."""
    names = {name for name, _ in now.members}
    if not before:
        return ""  # the group has begun
    parts = [f"added {name}" for name in sorted(names - before.keys())]
    parts += [f"removed {name}" for name in sorted(before.keys() - names)]
    return ", ".join(parts)
