"""Who speaks to the sinks of a simulated zone: gateways that publish, and readers that look at what they are given."""

import asyncio
import contextlib

from gateway.core.outbox import Outbox
from gateway.shell.link import SinkDial, SinkLink
from protocol import link
from protocol.errors import LogError
from simulation.virtual import Process
from simulation.zone_nodes import SUBJECTS, WALL_MS, World
from sinkd.core import commands
from sinkd.core.commands import OpenProducer
from sinkd.shell.group import Group, UnknownOutcome

READ_BYTES = 4 * 1024


class Publisher:
    """A gateway with some connections of clients that publish."""

    def __init__(self, zone: World, name: str) -> None:
        self.zone, self.name = zone, name
        self.life = 0
        self.start()

    def start(self) -> None:
        self.life += 1
        self.process = Process(self.name, self.zone.loop)
        self.process.run(self._start)

    def _start(self) -> None:
        zone = self.zone
        self.outbox = Outbox("z", self._answered)
        self.incarnations: dict[str, bytes] = {}
        dials = [
            SinkDial(name, lambda factory, at=at.link: zone.loop.create_connection(factory, at.host, at.port))
            for name, at in zone.configuration.zones["z"].sinks.items()
        ]
        opening = lambda: link.Open(self.name, 0, zone.rng.randbytes(16))  # noqa: E731
        hellos = [link.Hello("m", "z", self.name, group) for group in range(zone.groups)]
        self.links = [SinkLink(dials, hello, opening, self.outbox, self.now_ms, self._flush) for hello in hellos]
        for each in self.links:
            self.process.spawn(each.run())
        self._tick()

    def replace(self) -> None:
        """Killed, with all that it had not sent, and started with the files as they are now."""
        self.process.is_alive = False
        self.process.kill()
        self.zone.network.died(self.process)
        self.start()

    def now_ms(self) -> int:
        return int(self.zone.loop.now * 1000)

    def _tick(self) -> None:
        self.outbox.tick(self.now_ms())
        self._flush()
        self.zone.loop.call_later(0.02, self._tick)

    def _flush(self) -> None:
        self.outbox.flush(self.now_ms())
        for each in self.links:
            each.send_outbox()

    def publish(self, count: int) -> None:
        self.process.run(self._publish, count)

    def _publish(self, count: int) -> None:
        rng = self.zone.rng
        for _ in range(count):
            subject = rng.choice(SUBJECTS)
            plan = self.outbox.routes.plan("$G", subject, b"")
            if plan is None or not self.outbox.has_room(plan[0]):
                continue  # the connection waits
            event = self.zone.audit.published((self.name, self.life, rng.randrange(2)), asks=rng.random() < 0.8)
            payload = b"%d " % event.number + b"." * rng.choice((0, 10, 100, 1_000))
            self.outbox.publish("$G", subject, event.reply, b"", payload, self.now_ms(), WALL_MS + self.now_ms())
        self._flush()

    def _answered(self, account: str, reply: str, body: bytes) -> None:
        incarnations = {stream.name: stream.incarnation for stream in self.outbox.routes.by_name.values()}
        self.zone.audit.answered(reply, body, incarnations)
        self.zone.faults.something_happened()


class Prober:
    """Has whoever believes to lead, however many there are, take a small command, again and again."""

    def __init__(self, zone: World) -> None:
        self.zone, self.rng = zone, zone.rng
        self.every_s = self.rng.choice((0.015, 0.04, 0.2))

    def begin(self) -> None:
        """Until the world is healed."""
        if self.zone.is_healed:
            return
        for node in self.zone.nodes.values():
            for replica in node.sink.replicas if node.is_running and not node.process.is_paused else ():
                if replica.group.leads:
                    node.process.spawn(self._probe(replica.group))
        self.zone.loop.call_later(self.every_s, self.begin, context=self.zone.network.nowhere)

    async def _probe(self, group: Group) -> None:
        with contextlib.suppress(LogError, UnknownOutcome):
            body = OpenProducer("prober", self.rng.randrange(4), self.rng.randbytes(16))
            await group.submit(commands.OPEN, body)
            self.zone.audit.probes += 1
            self.zone.faults.something_happened()


class Reader:
    """Asks some sink for some log from some offset on, again and again: it has to be given what was committed."""

    def __init__(self, zone: World) -> None:
        self.zone, self.rng = zone, zone.rng
        self.failures = 0
        self.process = Process("reader", zone.loop)
        self.process.spawn(self._read_for_ever())

    async def _read_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.rng.random() * 0.3)
            name = self.rng.choice(list(self.zone.nodes))
            at = self.zone.configuration.sink(name).link
            try:
                async with asyncio.timeout(1):
                    _, connection = await self.zone.loop.create_connection(_Reading, at.host, at.port)
                    await self._read(name, connection)
            except (OSError, TimeoutError):
                self.failures += 1

    async def _read(self, name: str, connection: "_Reading") -> None:
        group = self.rng.randrange(self.zone.groups) if self.zone.groups > 1 else 0
        connection.send(link.Hello("m", "z", "reader", group))
        streams = (await connection.get(link.Streams)).message.streams
        try:
            for number, stream in enumerate(streams, 1):
                partition = self.rng.randrange(stream.partitions)
                if partition not in stream.partitions_of(group):
                    continue
                log = self.zone.audit.logs.get((stream.incarnation, partition))
                offset = self.rng.choice(log).base_offset if log else 0
                connection.send(link.Fetch(number, stream.name, partition, offset, READ_BYTES, 0))
                fetched = await connection.get(link.Fetched, link.Failed)
                if isinstance(fetched.message, link.Fetched):
                    self.zone.audit.check_batches(name, (stream.incarnation, partition), fetched.tail)
        finally:
            connection.transport.abort()


class _Reading(asyncio.Protocol):
    def __init__(self) -> None:
        self._reader = link.FrameReader()
        self._frames: asyncio.Queue[link.Frame] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            self._frames.put_nowait(frame)

    def send(self, message: link.Message) -> None:
        self.transport.write(link.pack(message))

    async def get(self, *kinds: type[link.Message]) -> link.Frame:
        while True:
            frame = await self._frames.get()
            if isinstance(frame.message, kinds):
                return frame
