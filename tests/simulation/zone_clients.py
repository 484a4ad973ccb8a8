"""Who speaks to the sinks of a simulated zone: gateways that publish, and readers that look at what they are given."""

import asyncio
import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.coverage import Account
from gateway.shell.beacons import Speaker, Unkept
from gateway.shell.link import SinkDial, SinkLink
from protocol import link
from protocol.certificate import Partition as Stated
from protocol.coverage import RUN_BYTES, Beacon
from protocol.errors import LogError
from protocol.limits import STATEMENT_ID_BYTES
from protocol.streams import StreamState
from simulation.audit import Violation
from simulation.virtual import Process
from simulation.zone_audit import is_promised
from simulation.zone_nodes import SUBJECTS, WALL_MS, Node, World
from simulation.zone_tampering import Lying, Tampered
from sinkd.core import commands
from sinkd.core.commands import OpenProducer
from sinkd.shell.group import Group, UnknownOutcome
from sinkd.shell.replica import Replica
from sinkd.shell.store import Partition

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
        self.outbox = Tampered(self, "z", self._answered, new_run=lambda: zone.rng.randbytes(RUN_BYTES))
        self.process_name = f"{self.name}-{self.life}"
        self.beacons = self._beacons(self.process_name)
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

    def _beacons(self, process: str) -> Lying:
        speaker = Speaker("m", "z", self.name, 0, process, spool=False)
        clocks = self.now_ms, lambda: WALL_MS + self.now_ms()
        said = self._said, lambda: Unkept(0, 0)
        return Lying(self, self.outbox, speaker, *said, *clocks, self._flush, keeps_log=True)

    def _said(self, payload: bytes) -> Any:
        """A beacon is written; it is not signed, for no node has a certificate."""
        self.zone.audit.ledger.said(msgspec.json.decode(payload, type=Beacon))

    def check_accounts(self) -> None:
        """All is sent: the chain of each partition is that of what is committed."""
        for partition in self.outbox._partitions.values():
            account = partition.account
            if isinstance(account, Account) and account.run:
                self.zone.audit.ledger.check_account(self.name, account.run, account.acknowledged, account.chain)

    def _tick(self) -> None:
        self.outbox.tick(self.now_ms())
        self.beacons.tick()
        self._flush()
        self.zone.loop.call_later(0.02, self._tick)

    def _flush(self) -> None:
        self.outbox.flush(self.now_ms())
        for each in self.links:
            each.send_outbox()

    def publish(self, count: int) -> None:
        self.process.run(self._publish, [self.zone.rng.choice(SUBJECTS) for _ in range(count)])

    def publish_to_all(self) -> None:
        """Something for each partition."""
        self.process.run(self._publish, SUBJECTS)

    def _publish(self, subjects: Sequence[str]) -> None:
        rng = self.zone.rng
        for subject in subjects:
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


class Auditor:
    """Has whoever leads state what a partition holds, as for a certificate, again and again.

    What a sink states is what is committed, and what its disk has at that moment.
    """

    def __init__(self, zone: World) -> None:
        self.zone, self.rng = zone, random.Random(zone.seed + 2)
        self.every_s = self.rng.choice((0.2, 0.5, 1.0))

    def begin(self) -> None:
        """Until the world is healed."""
        if self.zone.is_healed:
            return
        for node, replica, partitions in self._leading():
            node.process.spawn(self._ask(node, replica, self.rng.choice(partitions)))
        again_s = self.every_s * 2 * self.rng.random()
        self.zone.loop.call_later(again_s, self.begin, context=self.zone.network.nowhere)

    def ask_all(self) -> list[asyncio.Task[None]]:
        """Of every partition."""
        return [
            node.process.spawn(self._ask(node, replica, each))
            for node, replica, partitions in self._leading()
            for each in partitions
        ]

    def _leading(self) -> Iterator[tuple[Node, Replica, list[Partition]]]:
        for node in self.zone.nodes.values():
            for replica in node.sink.replicas if node.is_running and not node.process.is_paused else ():
                partitions = [each for each in replica.store.partitions if self._may_ask(each.stream)]
                if replica.group.leads and partitions:
                    yield node, replica, partitions

    @staticmethod
    def _may_ask(stream: StreamState) -> bool:
        return stream.covered and not stream.is_mirror

    async def _ask(self, node: Node, replica: Replica, partition: Partition) -> None:
        name, damages = partition.stream.name, node.disk.damages
        asked = link.Statement(1, name, partition.number, self.rng.randbytes(STATEMENT_ID_BYTES))
        try:
            stated = (await node.sink.attesting.state(replica, asked)).partition
        except (LogError, UnknownOutcome) as error:
            self.zone.seen["statement refused" if "spoilt" in str(error) else "no statement"] += 1
            return
        self.zone.audit.statements += 1
        key, where = (partition.stream.incarnation, partition.number), f"{node.who} states {name}/{partition.number}"
        try:
            self.zone.audit.ledger.stated(where, key, stated)
            if damages == node.disk.damages:  # else it may have been there when it was read
                self._look_at_disk(where, key, stated, partition.log.folder)
        except Violation as violation:
            self.zone.violation = self.zone.violation or violation

    def _look_at_disk(self, where: str, key: tuple[bytes, int], stated: Stated, folder: Path) -> None:
        data = b"".join(path.read_bytes() for path in sorted(folder.glob("*.segment")))
        for placed in self.zone.audit.logs.get(key, ()):
            if stated.from_ <= placed.base_offset < stated.to:
                is_promised(placed.data in data, f"{where} up to {stated.to}, its disk lacks {placed.base_offset}")


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
