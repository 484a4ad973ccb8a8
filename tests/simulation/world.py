"""A gateway, a sink and the link between them in one process: the real Outbox, Machine and frames, all else simulated.

What is modelled after the shells (`gateway.shell.link`, `sinkd.shell.link_server`, `sinkd.shell.group`):

- A link is two byte streams that deliver any number of bytes at any time. When one end is gone, the other may still
  read what was on its way, up to any byte, and for as long as the scheduler likes: also after a newer link is open.
- The sink answers appends when their command is committed; that it is full, or does not lead, it says at once. Commands
  go before appends. A crash keeps what was committed, and any prefix of what was handed over.
- A gateway notices the end of its link late. It may be replaced by one of the same name that knows nothing; or, with a
  spool, by one that knows what the killed one has written: files that end at any byte of the last write.
"""

import random
from collections import deque
from collections.abc import Callable

import msgspec

from gateway.core.outbox import Outbox
from gateway.core.spool import Spool
from gateway.core.spool_format import Head, Owner, pack_head
from gateway.core.spool_recovery import Recovery
from protocol import link as frames
from protocol.envelope import Envelope
from protocol.limits import BATCHES_IN_FLIGHT_MAX
from protocol.publish import may_ask
from protocol.streams import StreamDefinition, StreamState
from simulation.audit import PARTITIONS, Audit, Publish, Violation
from sinkd.core import commands
from sinkd.core.appending import append_command
from sinkd.core.commands import Configure, OpenProducer
from sinkd.core.machine import Machine, Result
from sinkd.shell.link_server import _checked

WALL_MS = 1_700_000_000_000
SETTLE_STEPS_MAX = 400
OWNER = Owner("mesh", "zone", "gateway", 0)
SPOOL_FILE_BYTES = 3_000
SUBJECTS = ("orders.new", "orders.paid", "metrics.cpu", "metrics.disk", "metrics.net", "a.b")
LATE_PART = 0.9  # how often nothing arrives of what an older link still carries


def definition(name: str, subject: str, key: str, **settings: object) -> StreamDefinition:
    fields = {
        "ack": "quorum", "reply": "always", "dedup_window_ms": 2_000, "dedup_ids_max": 1_000, "outbox_bytes": 20_000,
        "outbox_overflow": "gap", "outbox_stall_ms": 30_000, "retention_age_ms": 0, "retention_bytes": 0,
    } | settings  # fmt: skip
    return StreamDefinition(
        name=name, incarnation=name.encode() * 2, subjects=(subject,), partitions=PARTITIONS[name], key=key, **fields
    )


class Link:
    """Two byte streams. An end that is gone neither reads nor writes."""

    def __init__(self) -> None:
        self.to_sink, self.to_gateway = bytearray(), bytearray()
        self.sink_reader, self.gateway_reader = frames.FrameReader(), frames.FrameReader()
        self.sink_there = self.gateway_there = True
        self.is_open = self.is_ending = False

    def gateway_leaves(self, rng: random.Random) -> None:
        self.gateway_there = False
        del self.to_sink[rng.randint(0, len(self.to_sink)) :]
        self.to_gateway.clear()

    def sink_leaves(self, rng: random.Random) -> None:
        self.sink_there = False
        del self.to_gateway[rng.randint(0, len(self.to_gateway)) :]
        self.to_sink.clear()


class Sink:
    """One member that leads whenever it can."""

    def __init__(self, world: "World") -> None:
        self.world, self.rng = world, world.rng
        self.machine, self.shadow = Machine(), Machine()
        self.checkpoint = (0, self.machine.snapshot())
        self.committed: list[bytes] = []
        self.is_up = self.leads = True
        self.is_full = False
        self.links: list[Link] = []
        self.commands: deque[tuple[bytes, Callable[[Result], None]]] = deque()
        self.appends: deque[tuple[bytes, Envelope, Link]] = deque()
        self.handed: deque[tuple[bytes, Callable[[Result], None]]] = deque()

    # -- link server --------------------------------------------------------------------------------------------------

    def receive(self, link: Link, data: bytes) -> None:
        for frame in link.sink_reader.feed(data):
            self.take(link, frame)

    def take(self, link: Link, frame: frames.Frame) -> None:
        message = frame.message
        if isinstance(message, frames.Hello):
            self.send(link, frames.Welcome("mesh", "zone", "sink", self.leads, "disk"))
            self.send_streams(link)
        elif isinstance(message, frames.Open):
            request = OpenProducer(message.node, message.worker, message.nonce)
            self.submit(commands.OPEN, request, lambda opened: self.send(link, opened))
        elif isinstance(message, frames.Append):
            self.append(link, _checked(frame.tail), frame.tail)

    def append(self, link: Link, head: Envelope, parcel: bytes) -> None:
        if self.leads and not self.is_full:
            self.appends.append((parcel, head, link))
        else:
            self.refuse(link, head, "STORAGE_FULL" if self.leads else "NOT_LEADER")

    def refuse(self, link: Link, head: Envelope, reason: str) -> None:
        self.world.audit.seen[reason] += 1
        names = head.stream, head.incarnation, head.partition
        self.send(link, frames.Refused(head.producer_id, head.epoch, *names, head.first_sequence, reason))

    def send(self, link: Link, message: frames.Message) -> None:
        if link.sink_there and link.gateway_there:
            link.to_gateway += frames.pack(message)

    def send_streams(self, link: Link) -> None:
        self.send(link, frames.Streams(self.machine.state.revision, self.machine.stream_states()))

    # -- group --------------------------------------------------------------------------------------------------------

    def submit(self, kind: int, body: msgspec.Struct, decided: Callable[[Result], None]) -> None:
        self.commands.append((commands.encode(kind, self.world.sink_ms, body), decided))

    def hand_over(self) -> None:
        if not self.leads:
            return
        self.handed += self.commands
        self.commands.clear()
        while self.appends:
            taken = [self.appends.popleft() for _ in range(min(len(self.appends), self.rng.randint(1, 4)))]
            if self.is_full and self.rng.random() < 0.5:
                for _, head, link in taken:
                    self.refuse(link, head, "STORAGE_FULL")
                continue
            heads, parcels = [head for _, head, _ in taken], [parcel for parcel, _, _ in taken]
            command = append_command(self.machine.state, self.world.sink_ms, heads, parcels)
            self.handed.append((command, lambda result, taken=taken: self.answer(taken, result)))

    def answer(self, taken: list[tuple[bytes, Envelope, Link]], result: Result) -> None:
        for (_, _, link), one in zip(taken, result, strict=True):
            self.send(link, one.answer)

    def commit(self, count: int) -> None:
        for _ in range(min(count, len(self.handed))):
            command, decided = self.handed.popleft()
            decided(self.apply(command))

    def apply(self, command: bytes) -> Result:
        result = self.machine.apply(command)
        self.shadow.apply(command)
        self.committed.append(command)
        time_ms = self.machine.state.now_ms
        if isinstance(result, list):
            for taken in result:
                self.world.audit.seen[getattr(taken.answer, "reason", "taken")] += 1
                if taken.placement is not None:
                    self.world.audit.committed(taken.placement, command, time_ms)
        return result

    def write_checkpoint(self) -> None:
        self.checkpoint = len(self.committed), self.machine.snapshot()

    def crash(self) -> None:
        """Ends, and comes back from its checkpoint and journal with nobody connected."""
        survive = self.rng.randint(0, len(self.handed))
        unanswered = [command for command, _ in list(self.handed)[:survive]]
        for queue in (self.commands, self.appends, self.handed):
            queue.clear()
        for link in self.links:
            link.sink_leaves(self.rng)
        self.links.clear()
        index, snapshot = self.checkpoint
        self.machine = Machine(snapshot)
        for command in self.committed[index:]:
            self.machine.apply(command)
        if self.machine.snapshot() != self.shadow.snapshot():
            raise Violation("after a restart the state is another one")
        for command in unanswered:
            self.apply(command)


class SpoolDisk:
    """What `gateway.shell.spool` does, on files that are bytes."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.files: dict[int, bytes] = {}
        self.spool = Spool()
        self.moves = self.restored = 0

    def restart(self, outbox: Callable[[Spool], Outbox], streams: list[StreamState], now_ms: int) -> Outbox:
        """A new process: reads, and writes what it has read into a file of its own."""
        recovery = Recovery(OWNER, now_ms, WALL_MS + now_ms)
        for number, data in self.files.items():
            recovery.read(str(number), data, is_last=number == max(self.files))
        if recovery.problems:
            raise Violation(f"a killed process left a damaged spool: {recovery.problems}")
        self.spool = Spool()
        self.spool.begin(max(self.files, default=0) + 1)
        made = outbox(self.spool)
        known = {stream.name: stream for stream in recovery.streams}
        made.set_streams([known.get(stream.name, stream) for stream in streams])
        for each in recovery.partitions():
            self.spool.restore(*each)
            made.restore(each.partition)
            self.restored += len(each.numbers)
        self.files = {self.spool.file: pack_head(Head(OWNER, True)) + self.spool.finish()}
        self.spool.written()
        return made

    def write(self, held_bytes: int) -> None:
        self.files[self.spool.file] += self.spool.finish()
        self.spool.written()
        for number in list(self.files)[:-1]:
            if self.spool.held(number):
                break
            del self.files[number]
        if len(self.files[self.spool.file]) > SPOOL_FILE_BYTES:
            self.files[self.spool.file + 1] = pack_head(Head(OWNER, False))
            self.spool.begin(self.spool.file + 1)
        oldest = next(iter(self.files))
        if sum(map(len, self.files.values())) > 2 * held_bytes + 2 * SPOOL_FILE_BYTES and oldest != self.spool.file:
            self.spool.move(oldest, 1_000)
            self.moves += 1

    def kill(self) -> None:
        """Any part of what was to be written has been."""
        unwritten = self.spool.finish()
        if unwritten and self.files:
            self.files[self.spool.file] += unwritten[: self.rng.randint(0, len(unwritten))]


class SimulatedGateway:
    """The outbox and what `SinkLink` does with it; `Gateway`'s part of it, too, where there is a spool."""

    def __init__(self, world: "World", life: int) -> None:
        self.world, self.rng, self.life = world, world.rng, life
        self.held_answers: list[tuple[str, str, bytes]] = []
        streams = [
            msgspec.structs.replace(state, incarnation=b"?" + state.name.encode(), revision=0, retired=False)
            for state in world.sink.machine.stream_states()
        ]
        if world.spool_disk is None:
            self.outbox = Outbox("zone", world.audit.answered)
            self.outbox.set_streams(streams)
        else:
            self.outbox = world.spool_disk.restart(self._spooled, streams, world.now_ms)
        self.outbox.link_down(world.now_ms)
        self.link: Link | None = None
        self.paused: dict[int, StreamState] = {}

    def _spooled(self, spool: Spool) -> Outbox:
        hold = self.held_answers.append
        return Outbox("zone", self.world.audit.answered, spool=spool, answer_when_kept=lambda *answer: hold(answer))

    def connect(self) -> None:
        if self.link is None and self.world.sink.is_up:
            self.link = Link()
            self.world.sink.links.append(self.link)
            self.send(frames.Hello("mesh", "zone", "gateway"))

    def send(self, message: frames.Message) -> None:
        self.write([frames.pack(message)])

    def write(self, data: list[bytes]) -> None:
        if self.link is not None and self.link.sink_there:
            self.link.to_sink += b"".join(data)

    def flush(self) -> None:
        self.outbox.flush(self.world.now_ms)
        self.keep()
        ready = self.outbox.take_frames()
        self.write(ready)
        for partition in self.outbox._partitions.values():
            if len(partition.in_flight) > BATCHES_IN_FLIGHT_MAX:
                raise Violation(f"{len(partition.in_flight)} batches in flight")

    def keep(self) -> None:
        """What was promised may leave when it is written."""
        if self.world.spool_disk is not None:
            self.world.spool_disk.write(self.outbox.size_bytes)
            self.world.audit.kept()
            held, self.held_answers[:] = list(self.held_answers), []
            for answer in held:
                self.world.audit.answered(*answer)

    def receive(self, data: bytes) -> None:
        assert self.link is not None
        for frame in self.link.gateway_reader.feed(data):
            self.take(self.link, frame.message)

    def take(self, link: Link, message: frames.Message) -> None:
        if isinstance(message, frames.Appended):
            self.outbox.appended(message)
        elif isinstance(message, frames.Refused):
            self.outbox.refused(message, self.world.now_ms)
            link.is_ending = link.is_ending or message.reason in ("FENCED", "NOT_LEADER")
        elif isinstance(message, frames.Streams):
            self.outbox.set_streams(message.streams)
        elif isinstance(message, frames.Opened):
            self.outbox.link_up(message)
            link.is_open = True
        elif isinstance(message, frames.Welcome) and message.leads:
            self.send(frames.Open("gateway", 0, self.world.nonce(self.life)))
        elif isinstance(message, frames.Welcome):
            link.is_ending = True

    def lose_link(self) -> None:
        if self.link is not None:
            self.link.gateway_leaves(self.rng)
            self.link = None
            self.outbox.link_down(self.world.now_ms)

    def publish(self, publish: Publish, *, gives_up: bool) -> None:
        self.world.audit.published(publish)
        if self._goes_by_lane(publish):
            publish.had_room = True
            return
        given_up = self.outbox.counters.given_up
        answers, has_room = self.outbox.publish(
            "$G", publish.subject, publish.reply, publish.header_block, publish.payload, self.world.now_ms,
            publish.timestamp_ms, gives_up=gives_up,
        )  # fmt: skip
        publish.will_be_answered, publish.had_room = answers, has_room
        publish.is_given_up = self.outbox.counters.given_up > given_up
        if not has_room:
            self.paused[publish.connection] = self.outbox.routes.plan("$G", publish.subject, b"")[0]

    def _goes_by_lane(self, publish: Publish) -> bool:
        """As the forwarder does it with what asks nothing."""
        way = self.outbox.lane("$G", publish.subject)
        if way is None or may_ask(publish.header_block):
            return False
        lane, key = way
        if publish.header_block and not lane.takes_headers:
            return False
        event = publish.subject.encode(), key, publish.timestamp_ms, publish.header_block, publish.payload
        taken = lane.take(*event, publish.reply.encode())
        publish.will_be_answered = taken and lane.answers and bool(publish.reply)
        self.world.awaited_by_lane += publish.will_be_answered
        return taken

    def may_publish(self, connection: int) -> bool:
        stream = self.paused.get(connection)
        if stream is not None and self.outbox.has_room(stream):
            del self.paused[connection]
        return connection not in self.paused


class World:
    """`run()` lets chance act for a while, then heals everything and checks what is there."""

    def __init__(self, seed: int, *, calm: bool = False, spool: bool = False) -> None:
        self.rng = random.Random(seed)
        self.spool_disk = SpoolDisk(self.rng) if spool else None
        self.calm = calm
        self.awaited_by_lane = 0  # events that went by a lane and whose publisher waits
        self.now_ms = 1_000
        self.audit = Audit(survives=spool)
        self.sink = Sink(self)
        self.revision = 0
        self.configure()
        self.sink.hand_over()
        self.sink.commit(1)
        self.life = 1
        self.gateway = SimulatedGateway(self, self.life)
        self.dialing_from_ms = 0

    @property
    def sink_ms(self) -> int:
        return WALL_MS + self.now_ms + self.rng.randint(-20, 20)

    def nonce(self, life: int) -> bytes:
        return self.rng.randbytes(16)

    # -- what may happen ----------------------------------------------------------------------------------------------

    def run(self, steps: int = 400) -> None:
        actions = list(ACTIONS.items())
        if self.calm:
            actions = [(action, weight) for action, weight in actions if action not in FAULTS]
        names, weights = zip(*actions, strict=True)
        for name in self.rng.choices(names, weights, k=steps):
            getattr(self, name)()
            if self.rng.random() < 0.5:
                self.gateway.flush()
        self.heal()

    def publish(self, subject: str = "") -> None:
        """Anything; on a given `subject`, what asks for nothing."""
        connection = self.rng.randrange(3)
        gives_up = not self.gateway.may_publish(connection)
        if gives_up and self.rng.random() < 0.8:
            return
        number = len(self.audit.publishes)
        headers, message_id = {}, None
        if not subject:
            subject = self.rng.choice(SUBJECTS)
            headers, message_id = self.publish_headers(subject)
        expected = headers.get(b"Nats-Expected-Last-Sequence")
        lines = b"".join(b"%b: %b\r\n" % header for header in headers.items())
        publish = Publish(
            number,
            self.life,
            connection,
            subject,
            f"_INBOX.{number}" if self.rng.random() < 0.6 else "",
            b"NATS/1.0\r\n" + lines + b"\r\n" if headers else b"",
            b"%d " % number + b"." * self.rng.choice((0, 0, 0, 0, 2_000)),
            WALL_MS + self.now_ms,
            message_id,
            int(expected) if expected is not None else None,
            is_plain=not headers.keys() - {b"Colour"},
        )
        self.gateway.publish(publish, gives_up=gives_up)

    def publish_headers(self, subject: str) -> tuple[dict[bytes, bytes], bytes | None]:
        headers: dict[bytes, bytes] = {}
        chance = self.rng.random()
        message_id = b"id-%d" % self.rng.randrange(12) if chance < 0.3 else None
        if message_id is not None:
            headers[b"Nats-Msg-Id"] = message_id
        end = self.sink.machine.state.streams["orders"].partitions[0]
        if 0.25 < chance < 0.35:
            headers[b"Nats-Expected-Last-Sequence"] = b"%d" % (end.end_offset + self.rng.choice((0, 0, 0, 1, 2)))
        if 0.35 < chance < 0.4:
            headers[b"Nats-Expected-Last-Msg-Id"] = end.last_id if self.rng.random() < 0.7 and end.last_id else b"id-1"
        if 0.4 < chance < 0.5:
            headers[b"Nats-Expected-Stream"] = subject.split(".")[0].encode()
        if 0.5 < chance < 0.6:
            headers[b"Colour"] = b"blue"
        return headers, message_id

    def series(self) -> None:
        """Of one publisher's usual events: those that go by lanes."""
        subject = self.rng.choice(SUBJECTS)
        for _ in range(self.rng.randint(2, 12)):
            self.publish(subject)

    def burst(self) -> None:
        for _ in range(self.rng.randint(5, 20)):
            self.publish()
            if self.rng.random() < 0.5:
                self.now_ms += 1
                self.gateway.flush()

    def wait(self) -> None:
        self.now_ms += self.rng.choice((0, 1, 1, 2, 5, 20, 100, 300))
        self.gateway.outbox.tick(self.now_ms)

    def long_wait(self) -> None:
        self.now_ms += self.rng.choice((1_000, 2_500))

    def rounds(self) -> None:
        """For a moment all goes well, and quickly."""
        for _ in range(self.rng.randint(1, 4)):
            self.gateway.flush()
            self.to_sink()
            self.sink.hand_over()
            self.sink.commit(len(self.sink.handed))
            self.to_gateway()

    def to_sink(self) -> None:
        for link in list(self.sink.links):
            is_late = not link.gateway_there and self.rng.random() < LATE_PART
            data = take(link.to_sink, self.rng) if not is_late else b""
            if link.sink_there and data:
                self.sink.receive(link, data)
            if not link.gateway_there and not link.to_sink:
                link.sink_there = False
                self.sink.links.remove(link)

    def to_gateway(self) -> None:
        link = self.gateway.link
        if link is None:
            if self.now_ms >= self.dialing_from_ms:
                self.gateway.connect()
            return
        data = take(link.to_gateway, self.rng)
        if data:
            self.gateway.receive(data)
        if (link.is_ending and self.rng.random() < 0.5) or (not link.sink_there and not link.to_gateway):
            self.gateway.lose_link()

    def sink_works(self) -> None:
        self.sink.hand_over()

    def sink_commits(self) -> None:
        self.sink.commit(self.rng.randint(0, len(self.sink.handed)))

    def sink_checkpoint(self) -> None:
        self.sink.write_checkpoint()

    def sink_crashes(self) -> None:
        self.sink.crash()

    def disk(self) -> None:
        self.sink.is_full = not self.sink.is_full

    def leadership(self) -> None:
        self.sink.leads = not self.sink.leads

    def cut(self) -> None:
        self.gateway.lose_link()

    def cut_in_full_flow(self) -> None:
        self.burst()
        self.gateway.flush()
        self.gateway.lose_link()

    def outage(self) -> None:
        self.gateway.lose_link()
        self.dialing_from_ms = self.now_ms + 6_000

    def replace_gateway(self) -> None:
        if self.spool_disk is not None:
            self.gateway.outbox.flush(self.now_ms)
            self.spool_disk.kill()
            self.audit.killed()
        self.gateway.lose_link()
        self.life += 1
        self.gateway = SimulatedGateway(self, self.life)

    def configure(self) -> None:
        """A new revision: streams go and come back, settings change; the catch-all stays."""
        self.revision += 1
        self.audit.streams_changed = self.revision > 1
        streams = [
            definition("orders", "orders.>", "subject", retention_bytes=self.rng.choice((0, 1))),
            definition("metrics", "metrics.*", "token:2", ack=self.rng.choice(("quorum", "quorum", "logged"))),
        ]
        keep = [stream for stream in streams if self.revision == 1 or self.rng.random() < 0.7]
        keep.append(definition("events", ">", "subject", reply="header"))
        self.sink.submit(commands.CONFIGURE, Configure(self.revision, tuple(keep)), self.configured)

    def configured(self, _: Result) -> None:
        for link in self.sink.links:
            self.sink.send_streams(link)

    # -- the end ------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """No faults any more: within a bounded time everything is answered and in the log."""
        self.sink.is_full, self.sink.leads, self.dialing_from_ms = False, True, 0
        for _ in range(SETTLE_STEPS_MAX):
            self.now_ms += 50
            self.gateway.flush()
            self.to_sink()
            self.sink.hand_over()
            self.sink.commit(len(self.sink.handed))
            self.to_gateway()
            if self.is_quiet():
                break
        else:
            raise Violation(f"it does not settle: {self.gateway.outbox.size_bytes} bytes in the outbox")
        if self.gateway.outbox.size_bytes:
            raise Violation(f"an empty outbox of {self.gateway.outbox.size_bytes} bytes")
        self.audit.settled(self.life)

    def is_quiet(self) -> bool:
        link, sink = self.gateway.link, self.sink
        waiting = sink.commands or sink.appends or sink.handed or len(sink.links) > 1
        quiet = link is not None and link.is_open and not link.to_sink and not link.to_gateway
        return quiet and not waiting and self.gateway.outbox.is_empty and not self.gateway.held_answers


def take(stream: bytearray, rng: random.Random) -> bytes:
    """Some of what is on its way: nothing, a few bytes, or all."""
    count = rng.choice((0, rng.randint(0, len(stream)), len(stream), len(stream)))
    data = bytes(stream[:count])
    del stream[:count]
    return data


ACTIONS = {
    "publish": 30, "series": 8, "burst": 6, "rounds": 20, "wait": 20, "long_wait": 1, "to_sink": 25, "to_gateway": 30,
    "sink_works": 20, "sink_commits": 20, "sink_checkpoint": 2, "sink_crashes": 1.5, "disk": 2,
    "leadership": 1, "cut": 2, "cut_in_full_flow": 2, "outage": 0.3, "replace_gateway": 0.5, "configure": 1.5,
}  # fmt: skip
FAULTS = {"sink_crashes", "disk", "leadership", "cut", "cut_in_full_flow", "outage", "replace_gateway", "configure"}
