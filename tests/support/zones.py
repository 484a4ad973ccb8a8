"""Two zones in this process: sinks over real sockets and files, of which those of `us` mirror what `eu` keeps."""

import asyncio
import contextlib
import dataclasses
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from gateway.shell.gateway import Gateway
from mesh import node_tls
from mesh.daemon import dial_sinks
from protocol import config
from protocol.records import split_batches
from sinkd.shell.sink import Sink
from support.processes import free_ports
from support.sinks import FILE_BYTES, LinkedGateway

MIRROR = "orders@eu"


class TwoZones:
    """Sink e1 of eu, and u1 to uN of us, which has so many `groups`; `more` are lines of the file.

    With a `third` zone sink a1 of ap.
    """

    def __init__(
        self, folder: Path, sinks: int = 1, *, stream: str = "", more: str = "", groups: int = 1, third: bool = False
    ) -> None:
        self.folder, self._stream, self._more, self._groups = folder, stream, more, groups
        self.zones = {"eu": ["e1"], "us": [f"u{number}" for number in range(1, sinks + 1)]}
        self.zones |= {"ap": ["a1"]} if third else {}
        self.names = [name for names in self.zones.values() for name in names]
        ports = iter(free_ports(2 * len(self.names)))
        self.links = {name: next(ports) for name in self.names}
        self._rafts = {name: next(ports) for name in self.names}
        self.dialled = dict(self.links)  # where `us` finds a sink of eu: a test may put something in between
        self.sinks: dict[str, Sink] = {}

    def file(self, reader: str = "eu") -> config.Config:
        return config.parse(self.text(reader), "mesh.toml")

    def text(self, reader: str) -> str:
        lines = ["[mesh]", 'name = "acme"', "revision = 1"]
        lines += ["[zones.us]", f"groups = {self._groups}"]
        for zone, names in self.zones.items():
            for name in names:
                port = self.dialled[name] if reader != zone else self.links[name]
                lines += [f"[zones.{zone}.sinks.{name}]", f'link = "127.0.0.1:{port}"', 'disk_reserve = "1MiB"']
                lines += [f'raft = "127.0.0.1:{self._rafts[name]}"'] if len(names) > 1 else []
                lines += [f'data = "{self.folder / name}"']
        lines += ["[zones.us.gateways.ugw]", 'client = "127.0.0.1:1"', 'mesh = "127.0.0.1:2"']
        lines += ["[streams.orders]", 'subjects = ["orders.>"]', self._stream, self._more]
        return "\n".join(lines)

    async def start(self, *names: str) -> None:
        for name in names or self.names:
            file = self.file(next(zone for zone, names in self.zones.items() if name in names))
            sizes = {"journal_file_bytes": FILE_BYTES, "segment_bytes": FILE_BYTES}
            self.sinks[name] = Sink(file, name, tls=node_tls.for_sink(file, name), **sizes)
            await self.sinks[name].start()

    async def stop(self, *names: str) -> None:
        for name in names or list(self.sinks):
            await self.sinks.pop(name).stop()

    def wipe(self, name: str) -> None:
        shutil.rmtree(self.folder / name)

    async def gateway(self) -> LinkedGateway:
        """One of eu, with its producer."""
        return await (await LinkedGateway.of(self.links["e1"])).open()

    @contextlib.asynccontextmanager
    async def reading_in_us(self) -> AsyncIterator[str]:
        """The URL of a gateway of us, which `us_gateway` is meanwhile."""
        configuration = self.file("us")
        us = configuration.zones["us"]
        own = dataclasses.replace(us.gateways["ugw"], client=config.Address("127.0.0.1", 0))
        zones = {**configuration.zones, "us": dataclasses.replace(us, gateways={"ugw": own})}
        configuration = dataclasses.replace(configuration, zones=zones)
        self.us_gateway = gateway = Gateway(configuration, "ugw", dial_sinks(configuration, own), "test")
        try:
            host, port = await gateway.start()
            await asyncio.wait_for(gateway.linked(), 60)
            yield f"nats://{host}:{port}"
        finally:
            await gateway.stop()

    @property
    def leader(self) -> str:
        """Of us."""
        return next((name for name in self.zones["us"] if name in self.sinks and self.sinks[name].group.leads), "")

    def row(self, name: str = MIRROR) -> dict[str, Any]:
        """What the leader of us says of the mirror."""
        rows = self.sinks[self.leader].mirroring.rows() if self.leader else []
        return next((row for row in rows if row["stream"] == name), {})

    def end(self, name: str, stream: str = MIRROR) -> int:
        """Where the log ends at one sink; -1 if it has none."""
        found = self.sinks[name].machine.log(stream)
        return found.partitions[0].end_offset if found is not None else -1

    async def until(self, condition: Callable[[], object], what: str, within_s: float = 60.0) -> None:
        end = time.monotonic() + within_s
        while not condition():
            failed = {name: sink.last_error for name, sink in self.sinks.items() if sink.failed.done()}
            assert not failed, failed
            if time.monotonic() > end:
                raise AssertionError(f"not within {within_s} s: {what}: {self.row()}")
            await asyncio.sleep(0.02)

    async def level(self, name: str = "") -> None:
        """The mirror ends where the origin does, at every sink of us that runs, or at this one."""
        names = [name] if name else [each for each in self.zones["us"] if each in self.sinks]
        await self.until(lambda: {self.end(each) for each in names} == {self.end("e1", "orders")}, "level")

    async def batches(self, name: str, stream: str) -> list[bytes]:
        """All that a sink has of a log."""
        store = self.sinks[name].store
        partition, found = store.partition(stream, 0), []
        offset = partition.start_offset
        while data := await store.read(partition, offset, 1 << 20):
            batches = [bytes(batch) for batch in split_batches(data)]
            found += batches
            offset = _end(batches[-1])
        return found


def _end(batch: bytes) -> int:
    return int.from_bytes(batch[:8], "big") + int.from_bytes(batch[23:27], "big") + 1
