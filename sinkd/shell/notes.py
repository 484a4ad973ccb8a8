"""What the sinks of a zone write into a stream of the nodes: `$AUDIT`, `$COVERAGE`. Each note stands there once.

    every sink that knows it ─► notes ─┬─► this sink leads the group of the stream: it appends them
                                       └─► another leads it: it is told (`Note`) what only this sink knows

A note is under way until it stands in the log, and it stands there once, whoever leads meanwhile: each has an id, which
the leader appends with it, and what the deduplication window of the stream knows is done with. The window is
replicated: every sink looks at its own. Notes older than half the window are given up.

A leader appends as a producer of its own, one for each stream. In a stream that is covered it names its runs, as
gateways do, so that the log's accounts are those of all that stands there.
"""

import asyncio
import contextlib
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from protocol.coverage import RUN_BYTES
from protocol.envelope import Envelope, pack
from protocol.errors import LogError
from protocol.limits import AUDIT_NOTE_MS_MAX, FLUSH_INTERVAL_MS, LINK_REQUEST_MS_MAX
from protocol.link import Appended, Opened, Refused
from protocol.records import Event, encode_batch
from protocol.streams import StreamState
from sinkd.core import commands
from sinkd.core.commands import OpenProducer
from sinkd.core.raft_messages import CODEC, Note
from sinkd.shell.group import UnknownOutcome

if TYPE_CHECKING:
    from sinkd.shell.replica import Replica
    from sinkd.shell.sink import Sink


class Noted(NamedTuple):
    """An event for the stream: `time_ms` is when it happened, since 1970; `block` its header block, if any."""

    time_ms: int
    subject: str
    payload: bytes
    block: bytes = b""

    @property
    def kind(self) -> str:
        """`$AUDIT.<kind>`, `$COVERAGE.<kind>.<node>`"""
        return self.subject.split(".")[1]


class _Producer(NamedTuple):
    """Leave to append, for one leadership. `run` is named with the first sequence."""

    term: int
    producer_id: int
    epoch: int
    next_sequence: int
    run: bytes


class Notes:
    """Of one sink, for one stream. `written` counts what it has appended, by kind; `lost` what it had to give up."""

    def __init__(self, sink: "Sink", stream: str, worker: int, notes_max: int) -> None:
        """`worker` tells apart the producers that this sink is, one for each such stream."""
        self._sink, self._stream, self._worker, self._notes_max = sink, stream, worker, notes_max
        self._notes: OrderedDict[bytes, Noted] = OrderedDict()
        self._own: set[bytes] = set()  # of those: what no other sink knows
        self._producer: _Producer | None = None
        self._wake = asyncio.Event()
        self.written: Counter[str] = Counter()
        self.lost = 0

    @property
    def waiting(self) -> int:
        """How many are not in the log yet."""
        return len(self._notes)

    @property
    def leads(self) -> bool:
        """Whether this sink is the one that appends."""
        home = self.home()
        return home is not None and home[0].group.leads

    def add(self, id: bytes, note: Noted) -> None:
        """Every sink of the group notes the same under this id."""
        if id in self._notes:
            return
        if self._sink.now_ms() - note.time_ms > AUDIT_NOTE_MS_MAX:
            self._own.discard(id)
            return
        self._notes[id] = note
        if len(self._notes) > self._notes_max:
            self._drop(next(iter(self._notes)))
            self.lost += 1
        self._wake.set()

    def add_own(self, id: str, note: Noted) -> None:
        """No other sink knows of it; `id` is unique among those of this sink."""
        key = f"{self._sink.node.name}: {id}".encode()
        self._own.add(key)
        self.add(key, note)

    def _drop(self, id: bytes) -> None:
        del self._notes[id]
        self._own.discard(id)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def run(self, before: Callable[[], None] = lambda: None, ticks: Callable[[], bool] = lambda: False) -> None:
        """Until it is cancelled. `before` is called before each look at what waits: every second while something does,
        or while `ticks` says so."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_INTERVAL_MS / 1000 if self._notes or ticks() else None):
                    await self._wake.wait()
            self._wake.clear()
            before()
            try:
                await self._write()
            except (LogError, UnknownOutcome, TimeoutError):  # another leads, or will: once more in a second
                self._producer = None

    def wake(self) -> None:
        """There is something that `before` should see."""
        self._wake.set()

    async def _write(self) -> None:
        self._forget_old()
        home = self.home()
        if home is None:
            return
        replica, stream = home
        for id, note in list(self._notes.items()):
            if self._is_in_log(replica, id):
                self._drop(id)
            elif replica.group.leads:
                await self._append(replica, stream, id, note)
            elif id in self._own and replica.peers is not None:
                message = Note(id, note.payload, self._stream, note.subject, note.time_ms, note.block)
                replica.peers.links.send(replica.group.leader, CODEC.pack_parts(message))

    def _forget_old(self) -> None:
        now_ms = self._sink.now_ms()
        for id, note in list(self._notes.items()):
            if now_ms - note.time_ms > AUDIT_NOTE_MS_MAX:
                self._drop(id)
                self.lost += 1

    def home(self) -> "tuple[Replica, StreamState] | None":
        """The replica that has the log, if the stream is in force there."""
        known = self._sink.machine.state.streams.get(self._stream)
        number = known.state.group_of(0) if known is not None else 0
        if known is None or number >= len(self._sink.replicas):
            return None
        replica = self._sink.replicas[number]
        stream = replica.machine.state.streams.get(self._stream)
        return None if stream is None or stream.state.retired else (replica, stream.state)

    def _is_in_log(self, replica: "Replica", id: bytes) -> bool:
        state = replica.machine.state
        stream = state.streams[self._stream]
        return stream.partitions[0].find(id, state.now_ms, stream.state.dedup_window_ms) is not None

    async def _append(self, replica: "Replica", stream: StreamState, id: bytes, note: Noted) -> None:
        """LogError, UnknownOutcome, TimeoutError: it is not known to be in the log."""
        if self._sink.is_storage_full():
            raise LogError("STORAGE_ERROR", "storage full")
        producer = self._producer
        if producer is None or producer.term != replica.group.term:
            producer = await self._open(replica, stream)
        head = Envelope(
            producer_id=producer.producer_id, epoch=producer.epoch, stream=stream.name, incarnation=stream.incarnation,
            partition=0, first_sequence=producer.next_sequence, sequence_count=1, revision=stream.revision,
            ids=((0, id),), run=producer.run if stream.covered else b"",
        )  # fmt: skip
        subject = note.subject.encode()
        batch = encode_batch([Event(subject, subject, note.time_ms, note.block, note.payload)])
        decided: asyncio.Future[Appended | Refused] = asyncio.get_running_loop().create_future()

        def answer(message: Appended | Refused) -> None:
            if not decided.done():
                decided.set_result(message)

        replica.group.append(head, pack(head, batch), answer)
        async with asyncio.timeout(LINK_REQUEST_MS_MAX / 1000):
            message = await decided
        if isinstance(message, Appended):
            self._producer = producer._replace(next_sequence=producer.next_sequence + 1, run=b"")
            self.written[note.kind] += 1
        elif message.reason != "DUPLICATE_IDS":
            raise LogError("LEADER_NOT_AVAILABLE", message.reason)
        self._drop(id)

    async def _open(self, replica: "Replica", stream: StreamState) -> _Producer:
        """Under a nonce that no leadership before has had: older ones are fenced."""
        term, node = replica.group.term, self._sink.node.name
        nonce = f"{self._sink.now_ms()}:{term}".encode()
        opened = await replica.group.submit(commands.OPEN, OpenProducer(node, self._worker, nonce))
        assert isinstance(opened, Opened)
        reached = (each.last_sequence for each in opened.last if each.incarnation == stream.incarnation)
        run = hashlib.sha256(b"%b %d %b" % (node.encode(), self._worker, nonce)).digest()[:RUN_BYTES]
        self._producer = _Producer(term, opened.producer_id, opened.epoch, next(reached, 0) + 1, run)
        return self._producer
