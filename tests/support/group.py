"""A zone as a person runs it: `sinkd` and `gateway` processes, and clients that publish meanwhile.

Between any two nodes there is a wire of ours (`support.proxy`), so that a test can part the network: a sink finds the
others at ports of this process, and so does a gateway. Each node therefore reads a file of its own; `mesh.toml`, with
the true addresses, is the operator's.
"""

import asyncio
import bisect
import contextlib
import itertools
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.errors import Error

from mesh.commands.sinks import Zone
from protocol import config
from support.processes import POLL_S, Daemon, Folder, client, free_ports
from support.proxy import Wire
from support.sinks import LinkedGateway

GATEWAYS = ("gw1", "gw2")
STATUS_S_MAX = 2.0
ANSWER_S_MAX = 2.0  # then a publisher asks again
LAG_ENTRIES_MAX = 20  # of a follower that keeps up with a load
PADDING_BYTES = 1_000


class ProcessZone:
    """Sinks s1 to s3 of zone eu, two gateways, and room for sink s4. Use `running`."""

    def __init__(self, path: Path, groups: int = 1, partitions: int = 1) -> None:
        self.folder, self.names = Folder(path), ["s1", "s2", "s3"]
        self._groups, self._partitions = groups, partitions
        everybody = [*self.names, "s4"]
        pairs = [*itertools.combinations(everybody, 2), *itertools.product(GATEWAYS, everybody)]
        ports = iter(free_ports(3 * len(everybody) + len(pairs) + len(GATEWAYS)))
        self.client_ports = {name: next(ports) for name in GATEWAYS}
        self.link, self.raft, self.monitor = ({name: next(ports) for name in everybody} for _ in range(3))
        self._wire_ports = {pair: next(ports) for pair in pairs}
        self.wires = {
            (one, other): Wire(port, (self.link if one in GATEWAYS else self.raft)[other])
            for (one, other), port in self._wire_ports.items()
        }
        self.daemons: dict[str, Daemon] = {}
        self.data = {name: path / name for name in everybody}
        self.write_files()

    # -- files --------------------------------------------------------------------------------------------------------

    def write_files(self) -> None:
        """A file for each node, and the operator's."""
        for node in ("mesh", *GATEWAYS, *self.names):
            (self.folder.path / f"{node}.toml").write_text(self._file(node))

    def _file(self, reader: str) -> str:
        gateway = reader if reader in GATEWAYS else GATEWAYS[0]
        lines = ["[mesh]", 'name = "acme"', "revision = 1", "[zones.eu]", f"groups = {self._groups}"]
        lines += [f"[zones.eu.gateways.{gateway}]"]
        lines += [f'client = "127.0.0.1:{self.client_ports[gateway]}"']
        for name in self.names:
            link = self._wire_ports.get((reader, name), 0) if reader in GATEWAYS else 0
            raft = self._wire_ports.get((reader, name), 0) if reader not in GATEWAYS else 0
            lines += [f"[zones.eu.sinks.{name}]", f'link = "127.0.0.1:{link or self.link[name]}"']
            lines += [f'raft = "127.0.0.1:{raft or self.raft[name]}"', f'monitor = "127.0.0.1:{self.monitor[name]}"']
            lines += [f'data = "{self.data[name]}"', 'disk_reserve = "1MiB"']
        lines += ["[streams.orders]", 'subjects = ["orders.>"]', f"partitions = {self._partitions}"]
        return "\n".join([*lines, ""])

    # -- processes ----------------------------------------------------------------------------------------------------

    async def start(self, *names: str) -> None:
        """These sinks, or all; they serve when it returns."""
        for name in names or self.names:
            self.daemons[name] = self.folder.run("sinkd", "--config", f"{name}.toml", "--node", name)
        for name in names or self.names:
            await self.daemons[name].serving()

    async def start_gateway(self, name: str) -> None:
        self.daemons[name] = self.folder.run("gateway", "--config", f"{name}.toml", "--node", name)
        await self.daemons[name].serving()

    def url(self, gateway: str) -> str:
        return f"nats://127.0.0.1:{self.client_ports[gateway]}"

    def kill(self, name: str) -> None:
        self.daemons[name].kill()

    async def stop(self, name: str) -> None:
        assert await self.daemons[name].stop() == 0, self.daemons[name].complaints[-2000:]

    def wipe(self, name: str) -> None:
        for path in self.data[name].iterdir():  # not the folder itself: it may be a file system of its own
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextlib.contextmanager
    def parted(self, name: str, *, from_gateways: bool = True) -> Iterator[None]:
        """Sink `name` hears nobody and is heard by nobody."""
        wires = [
            wire for pair, wire in self.wires.items() if name in pair and (from_gateways or pair[0] not in GATEWAYS)
        ]
        for wire in wires:
            wire.hold()
        try:
            yield
        finally:
            for wire in wires:
                wire.let_go()

    # -- how they are -------------------------------------------------------------------------------------------------

    async def status(self, group: int = 0) -> dict[str, dict[str, Any]]:
        """As `mesh status --json` shows it."""
        text = (self.folder.path / "mesh.toml").read_text()
        return await Zone(config.parse(text, "mesh.toml"), None, STATUS_S_MAX).status(group)

    async def until(
        self, true: Callable[[dict[str, dict[str, Any]]], bool], what: str, within_s: float = 60.0
    ) -> dict[str, dict[str, Any]]:
        """The status, once it is `true`; a sink that has ended by itself fails the test."""
        deadline = time.monotonic() + within_s
        while not true(status := await self.status()):
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}: {status}"
            await asyncio.sleep(POLL_S * 5)
        return status

    async def whole(self) -> dict[str, dict[str, Any]]:
        """Once every sink is up, may vote, and holds what the leader does."""
        return await self.until(are_whole, "every sink is whole")

    async def leader(self) -> str:
        return leader_of(await self.until(lambda status: leader_of(status) != "", "a leader"))

    async def follower(self) -> str:
        leader = await self.leader()
        return next(name for name in self.names if name != leader)

    async def contents(self, name: str) -> list[bytes]:
        """The payloads of `orders`, as sink `name` serves them; their offsets are checked."""
        reader = await LinkedGateway.of(self.link[name])
        try:
            return await reader.payloads()
        finally:
            await reader.close()


def leader_of(status: dict[str, dict[str, Any]]) -> str:
    return next((name for name, one in status.items() if one.get("state") == "leader"), "")


def are_whole(status: dict[str, dict[str, Any]]) -> bool:
    if not leader_of(status) or any(one.get("error") for one in status.values()):
        return False
    if any(one["muted"] or one["waits"] or one["busy"] or one["filling"] for one in status.values()):
        return False
    followers = [peer for peer in status[leader_of(status)]["peers"] if peer["member"]]
    return all(peer["connected"] and peer.get("lag_entries", LAG_ENTRIES_MAX) < LAG_ENTRIES_MAX for peer in followers)


@contextlib.asynccontextmanager
async def running(
    path: Path, disks: dict[str, Path] | None = None, *, groups: int = 1, partitions: int = 1
) -> AsyncIterator[ProcessZone]:
    """Whole groups and their gateways. `disks` are data folders that stand elsewhere."""
    zone = ProcessZone(path, groups, partitions)
    zone.data |= disks or {}
    zone.write_files()
    async with contextlib.AsyncExitStack() as stack:
        for wire in zone.wires.values():
            await stack.enter_async_context(wire)
        stack.callback(zone.folder.close)
        await zone.start()
        for name in GATEWAYS:
            await zone.start_gateway(name)
        await zone.whole()
        yield zone


class Load:
    """Writers that each wait for the acknowledgement of an event before they publish the next.

    What is not acknowledged is published again under its id, so that in the end everything is, and nothing is there
    twice. The writers take turns in choosing one of `connections`. Use `publishing`.
    """

    def __init__(self, connections: list[Client], writers: int, pause_s: float) -> None:
        self._streams = [connection.jetstream(timeout=ANSWER_S_MAX) for connection in connections]
        self._pause_s = pause_s
        self._is_over = False
        self.acknowledged: dict[bytes, int] = {}  # payload → offset
        self._acknowledged_at = [[time.monotonic()] for _ in connections]
        self.repeated = 0
        self._writers = [asyncio.create_task(self._write(number)) for number in range(writers)]

    async def _write(self, writer: int) -> None:
        for number in itertools.count():
            if self._is_over:
                return
            payload = b"%d/%d " % (writer, number)
            payload += b"." * (PADDING_BYTES - len(payload))
            self.acknowledged[payload] = await self._publish(writer, number, payload)
            self._acknowledged_at[writer % len(self._streams)].append(time.monotonic())
            await asyncio.sleep(self._pause_s)

    async def _publish(self, writer: int, number: int, payload: bytes) -> int:
        """The offset; asked for until it is known."""
        headers, stream = {"Nats-Msg-Id": f"{writer}/{number}"}, self._streams[writer % len(self._streams)]
        while True:
            try:
                answer = await stream.publish(f"orders.{writer}", payload, stream="orders", headers=headers)
            except (Error, TimeoutError):
                self.repeated += 1
                await asyncio.sleep(POLL_S)
            else:
                return answer.seq - 1

    async def goes_on(self, count: int = 25, within_s: float = 60.0) -> None:
        """Until `count` more events are acknowledged by each gateway."""
        deadline = time.monotonic() + within_s
        for times in self._acknowledged_at:
            wanted = len(times) + count
            while len(times) < wanted:
                ended = [writer.exception() for writer in self._writers if writer.done()]
                assert not ended, ended
                assert time.monotonic() < deadline, f"no {count} acknowledgements within {within_s} s"
                await asyncio.sleep(POLL_S)

    def gap_s(self, since: float) -> float:
        """The longest time without any acknowledgement of one gateway since that moment of the monotonic clock."""
        return max(_longest_gap_s(times, since) for times in self._acknowledged_at)

    async def finish(self) -> None:
        self._is_over = True
        async with asyncio.timeout(60):
            await asyncio.gather(*self._writers)


def _longest_gap_s(times: list[float], since: float) -> float:
    until_now = [since, *times[bisect.bisect_right(times, since) :], time.monotonic()]
    return max(later - earlier for earlier, later in itertools.pairwise(until_now))


@contextlib.asynccontextmanager
async def publishing(zone: ProcessZone, writers: int = 8, pause_s: float = 0.01) -> AsyncIterator[Load]:
    """By all gateways. Ends with every event acknowledged."""
    again = {"allow_reconnect": True, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.05}
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(client(zone.url(name), **again)) for name in GATEWAYS]
        load = Load(connections, writers, pause_s)
        await load.goes_on()
        yield load
        await load.finish()


async def nothing_is_lost(zone: ProcessZone, load: Load) -> int:
    """Every sink serves the same log: each acknowledged event at its offset, nothing twice. Its length."""
    await zone.whole()
    await zone.until(_are_level, "all have applied the same")
    logs = {name: await zone.contents(name) for name in zone.names}
    log = logs[zone.names[0]]
    assert all(other == log for other in logs.values()), {name: len(other) for name, other in logs.items()}
    missing = {offset: payload[:20] for payload, offset in load.acknowledged.items() if log[offset] != payload}
    assert not missing, missing
    assert len(set(log)) == len(log) == len(load.acknowledged)
    _in_order(log)
    return len(log)


def _are_level(status: dict[str, dict[str, Any]]) -> bool:
    return len({one.get("applied_index") for one in status.values()}) == 1


def _in_order(log: list[bytes]) -> None:
    """Each writer's events stand in the order in which it published them."""
    next_numbers: dict[bytes, int] = {}
    for payload in log:
        writer, _, number = payload.partition(b" ")[0].partition(b"/")
        assert int(number) == next_numbers.get(writer, 0), payload[:20]
        next_numbers[writer] = int(number) + 1
