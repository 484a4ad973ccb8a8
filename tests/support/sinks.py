"""The sinks of one zone in this process, over real sockets and files, and a gateway that speaks to whoever leads."""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from gateway.shell.gateway import Gateway
from mesh.daemon import dial_sinks
from protocol import config, envelope, link
from protocol.coverage import RUN_BYTES
from protocol.records import Event, encode_batch, read_records, split_batches
from sinkd.shell.sink import Sink
from support.processes import free_ports

FILE_BYTES = 256 * 1024  # small files: they roll, are cut and are filled within a test


class SinkZone:
    """Sinks s1 to sN of zone eu, each with a data folder below `folder`; `s4` and so on may come later."""

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *,
        revision: int = 1,
        streams: str = "",
        more: str = "",
        groups: int = 1,
        contracts: str = "off",
    ) -> None:
        self.folder, self.names = folder, [f"s{number}" for number in range(1, count + 1)]
        self._ports = iter(free_ports(2 * count + 8))
        self._addresses = {name: (next(self._ports), next(self._ports)) for name in self.names}
        self._revision, self._streams, self._more = (
            revision,
            streams or '[streams.orders]\nsubjects = ["orders.>"]',
            more,
        )
        self.groups, self._contracts = groups, contracts
        self.sinks: dict[str, Sink] = {}
        self.files: dict[str, config.Config] = {}

    def file(self, names: list[str] | None = None, *, revision: int | None = None, streams: str = "") -> config.Config:
        """The configuration that names these sinks."""
        return config.parse(self.text(names, revision=revision, streams=streams), "mesh.toml")

    def text(self, names: list[str] | None = None, *, revision: int | None = None, streams: str = "") -> str:
        lines = ["[mesh]", 'name = "acme"', f"revision = {revision or self._revision}"]
        lines += [f'contracts = "{self._contracts}"', "[zones.eu]", f"groups = {self.groups}"]
        lines += ["[zones.eu.gateways.gw1]", 'client = "127.0.0.1:1"', 'mesh = "127.0.0.1:2"']
        for name in names or self.names:
            if name not in self._addresses:
                self._addresses[name] = next(self._ports), next(self._ports)
            at_link, at_raft = self._addresses[name]
            lines += [f"[zones.eu.sinks.{name}]", f'link = "127.0.0.1:{at_link}"', f'raft = "127.0.0.1:{at_raft}"']
            lines += [f'data = "{self.folder / name}"', 'disk_reserve = "1MiB"', self._more]
        return "\n".join([*lines, streams or self._streams])

    async def start(self, *names: str, file: config.Config | None = None) -> None:
        """All sinks, or these."""
        for name in names or self.names:
            configuration = file or self.files.get(name) or self.file()
            self.files[name] = configuration
            sink = Sink(configuration, name, journal_file_bytes=FILE_BYTES, segment_bytes=FILE_BYTES)
            self.sinks[name] = sink
            await sink.start()

    async def stop(self, *names: str) -> None:
        for name in names or list(self.sinks):
            await self.sinks.pop(name).stop()

    def wipe(self, name: str) -> None:
        shutil.rmtree(self.folder / name)

    def status(self, name: str) -> dict[str, Any]:
        return self.sinks[name].links.operator.status()

    @property
    def leader(self) -> str:
        return self.leader_of(0)

    def leader_of(self, group: int) -> str:
        return next((name for name, sink in self.sinks.items() if sink.replicas[group].group.leads), "")

    async def until(self, condition: Callable[[], object], what: str, within_s: float = 60.0) -> None:
        end = time.monotonic() + within_s
        while not condition():
            failed = {name: sink.last_error for name, sink in self.sinks.items() if sink.failed.done()}
            assert not failed, failed
            if time.monotonic() > end:
                raise AssertionError(f"not within {within_s} s: {what}: {[self.status(name) for name in self.sinks]}")
            await asyncio.sleep(0.02)

    async def led(self) -> str:
        """The leader, once there is one that knows the stream."""
        await self.until(lambda: self.leader and self.sinks[self.leader].machine.state.streams, "a leader")
        return self.leader

    async def level(self) -> None:
        """All that run are whole and have applied the same."""

        def is_level() -> bool:
            whole = all(not sink.group.member.muted for sink in self.sinks.values())
            applied = {sink.group.applied_index for sink in self.sinks.values()}
            return bool(self.leader) and whole and len(applied) == 1

        await self.until(is_level, "level")

    async def gateway(self, name: str = "") -> "LinkedGateway":
        """A gateway that is linked to sink `name`, or to the leader."""
        return await LinkedGateway.of(self._addresses[name or await self.led()][0])

    async def contents(self, name: str) -> list[bytes]:
        """The payloads of `orders`, as sink `name` serves them."""
        gateway = await self.gateway(name)
        payloads = await gateway.payloads()
        await gateway.close()
        return payloads


@contextlib.asynccontextmanager
async def zone_with_gateway(
    folder: Path, *, groups_of_gateway: int = 0, **options: Any
) -> AsyncIterator[tuple[SinkZone, Gateway, str]]:
    """(zone, gateway, url): three sinks of which one leads, and a gateway; `options` are the zone's.

    With `groups_of_gateway` its file is an older one, from when there were so many.
    """
    zone = SinkZone(folder, **options)
    configuration = zone.file()
    eu = configuration.zones["eu"]
    own = dataclasses.replace(eu.gateways["gw1"], client=config.Address("127.0.0.1", 0))
    zones = {"eu": dataclasses.replace(eu, gateways={"gw1": own}, groups=groups_of_gateway or eu.groups)}
    configuration = dataclasses.replace(configuration, zones=zones)
    gateway = Gateway(configuration, "gw1", dial_sinks(configuration, own), "test")
    await zone.start()
    try:
        await zone.led()
        host, port = await gateway.start()
        await asyncio.wait_for(gateway.linked(), 60)
        yield zone, gateway, f"nats://{host}:{port}"
    finally:
        await gateway.stop()
        await zone.stop()


class LinkedGateway:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._frames = reader, writer, link.FrameReader()
        self._seen: list[link.Frame] = []
        self._requests = iter(range(1, 1_000_000))

    @classmethod
    async def of(cls, port: int, hello: link.Hello | None = None) -> "LinkedGateway":
        gateway = cls(*await asyncio.open_connection("127.0.0.1", port))
        gateway.send(hello or link.Hello("acme", "eu", "gw1"))
        return gateway

    def send(self, message: link.Message, tail: bytes = b"") -> None:
        self._writer.write(link.pack(message, tail))

    async def get(self, *kinds: type[link.Message]) -> link.Frame:
        """The next frame of these kinds. ConnectionError: the sink has closed the link."""
        while True:
            for position, frame in enumerate(self._seen):
                if isinstance(frame.message, kinds):
                    return self._seen.pop(position)
            data = await asyncio.wait_for(self._reader.read(1 << 20), 60)
            if not data:
                raise ConnectionError("the sink has closed the link")
            self._seen += self._frames.feed(data)

    async def open(self) -> "LinkedGateway":
        """Opens the producer, and goes on where it was."""
        streams = (await self.get(link.Streams)).message.streams
        self.stream = next(stream for stream in streams if stream.name == "orders")
        self.send(link.Open("gw1", 0, os.urandom(16)))
        self.opened = (await self.get(link.Opened)).message
        self.sequence = max((r.last_sequence for r in self.opened.last if r.stream == "orders"), default=0)
        self.run, self.base = os.urandom(RUN_BYTES), self.sequence
        return self

    async def append(self, *payloads: bytes) -> None:
        """Each in a batch of its own; all are acknowledged when it returns."""
        for payload in payloads:
            self.sequence += 1
            head = envelope.Envelope(
                producer_id=self.opened.producer_id, epoch=self.opened.epoch, stream="orders", partition=0,
                incarnation=self.stream.incarnation, first_sequence=self.sequence, sequence_count=1,
                revision=self.stream.revision, run=self.run if self.sequence == self.base + 1 else b"",
            )  # fmt: skip
            batch = encode_batch([Event(b"orders.a", b"orders.a", 5_000, b"", payload)])
            self.send(link.Append(), envelope.pack(head, batch))
        for _ in payloads:
            answer = (await self.get(link.Appended, link.Refused)).message
            assert isinstance(answer, link.Appended), answer

    async def payloads(self) -> list[bytes]:
        found: list[bytes] = []
        while True:
            self.send(link.Fetch(next(self._requests), "orders", 0, len(found), 1 << 20, 0))
            frame = await self.get(link.Fetched, link.Failed)
            assert isinstance(frame.message, link.Fetched), frame.message
            if not frame.tail:
                return found
            for batch in split_batches(frame.tail):
                for record in read_records(batch):
                    assert record.offset == len(found)
                    found.append(bytes(record.payload))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()
