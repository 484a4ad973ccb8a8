"""Two zones of nodes as processes, each node as on a machine of its own, with a relay of ours between the zones.

A zone is a network of the kernel's (`support.namespaces`), with a bridge that is the only way for its nodes; what the
other zone has is found at ports of this process, which delay, narrow and cut what passes (`support.proxy`). All links
between nodes are under mutual TLS. Use `running`.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh.commands import certs
from mesh.commands.sinks import Zone
from protocol import config
from support.events import everything, published
from support.group import STATUS_S_MAX, Load, leader_of
from support.namespaces import Network
from support.processes import BIN, Daemon, Folder, client
from support.proxy import Wire

GATEWAYS = {"eu": ("e1", "e2", "e3"), "us": ("u1", "u2")}
CLIENT, MESH, LINK, RAFT = 4222, 6222, 6333, 6334
RELAYED = 20_000  # the first port of the relay in each network
BACKLOG_BYTES = 100_000
WAIT_S = 60.0  # for what takes a moment, on a machine that has much else to do


def other(zone: str) -> str:
    return "us" if zone == "eu" else "eu"


class Machines:
    """Three gateways of eu and two of us, and in each zone so many `sinks`: es1, ... and us1, ..."""

    def __init__(self, path: Path, networks: Mapping[str, Network], sinks: Mapping[str, list[str]], rate: str) -> None:
        self.folder, self.networks, self.sinks, self._rate = Folder(path), networks, sinks, rate
        self.daemons: dict[str, Daemon] = {}
        self.wires: dict[str, Wire] = {}  # by the node that they lead to
        self._pki = path / "pki"
        self._relayed = {name: RELAYED + number for number, name in enumerate(self.names)}
        for zone, network in networks.items():
            for name in (*GATEWAYS[other(zone)], *sinks[other(zone)]):
                port, to = MESH if name in self.gateways else LINK, networks[other(zone)].address[name]
                self.wires[name] = Wire(self._relayed[name], port, host=network.host, to_host=to)

    @property
    def gateways(self) -> list[str]:
        return [name for names in GATEWAYS.values() for name in names]

    @property
    def names(self) -> list[str]:
        return [*self.gateways, *(name for names in self.sinks.values() for name in names)]

    def zone_of(self, name: str) -> str:
        return next(zone for zone in GATEWAYS if name in (*GATEWAYS[zone], *self.sinks[zone]))

    # -- files --------------------------------------------------------------------------------------------------------

    def write_files(self) -> None:
        """A file for each zone, in which the other one is behind the relay, and the certificates."""
        self._pki.mkdir()
        for zone in GATEWAYS:
            (self.folder.path / f"{zone}.toml").write_text(self._file(zone))
        certs.init(self.file("eu"), 1, force=False)

    def file(self, zone: str) -> config.Config:
        return config.parse((self.folder.path / f"{zone}.toml").read_text(), f"{zone}.toml")

    def _file(self, reader: str) -> str:
        lines = ['[mesh]\nname = "acme"\nrevision = 1', '[streams.orders]\nsubjects = ["orders.>"]']
        lines += [f'[links.eu.us]\ncopy_rate = "{self._rate}"']
        lines += [f"[tls.nodes]\nca = '{self._pki}/ca.pem'"]
        lines += [f"cert = '{self._pki}/{{node}}.pem'\nkey = '{self._pki}/{{node}}.key'"]
        for zone, network in self.networks.items():
            for name in GATEWAYS[zone]:
                lines += [f'[zones.{zone}.gateways.{name}]\nclient = "{network.address[name]}:{CLIENT}"']
                lines += [f'mesh = "{self._address(reader, name, MESH)}"']
            for name in self.sinks[zone]:
                lines += [f'[zones.{zone}.sinks.{name}]\nlink = "{self._address(reader, name, LINK)}"']
                lines += [f'raft = "{network.address[name]}:{RAFT}"', f"data = '{self.folder.path / name}'"]
                lines += ['disk_reserve = "1MiB"']
        return "\n".join([*lines, ""])

    def _address(self, reader: str, name: str, port: int) -> str:
        if self.zone_of(name) == reader:
            return f"{self.networks[reader].address[name]}:{port}"
        return f"{self.networks[reader].host}:{self._relayed[name]}"

    # -- processes ----------------------------------------------------------------------------------------------------

    async def start(self, *names: str) -> None:
        """These nodes; they serve when it returns."""
        for name in names:
            zone, command = self.zone_of(name), "gateway" if name in self.gateways else "sinkd"
            before = self.networks[zone].command(name)
            self.daemons[name] = self.folder.run(
                *before, str(BIN / command), "--config", f"{zone}.toml", "--node", name
            )
        await asyncio.gather(*(self.daemons[name].serving() for name in names))

    def kill(self, name: str) -> None:
        self.daemons[name].kill()

    def unplug(self, name: str) -> None:
        self.networks[self.zone_of(name)].unplug(name)

    def plug(self, name: str) -> None:
        self.networks[self.zone_of(name)].plug(name)

    def url(self, gateway: str) -> str:
        return f"nats://{self.networks[self.zone_of(gateway)].address[gateway]}:{CLIENT}"

    # -- how they are -------------------------------------------------------------------------------------------------

    async def status(self, zone: str) -> dict[str, dict[str, Any]]:
        """Of its sinks, as `mesh status --json` shows it."""
        return await Zone(self.file(zone), zone, STATUS_S_MAX).status(0)

    async def leader(self, zone: str) -> str:
        deadline = time.monotonic() + WAIT_S
        while not (leader := leader_of(status := await self.status(zone))):
            assert time.monotonic() < deadline, f"no sink leads in {zone}: {status}"
            await asyncio.sleep(0.05)
        return leader


@contextlib.asynccontextmanager
async def running(path: Path, *, sinks: int = 1, copy_rate: str = "0", **relay: float) -> AsyncIterator[Machines]:
    """All nodes serve. `relay` are `delay_s` and `bytes_per_s` of each way between the zones. NetworkRefused."""
    names = {zone: [f"{zone[0]}s{number + 1}" for number in range(sinks)] for zone in GATEWAYS}
    async with contextlib.AsyncExitStack() as opened:
        networks = {
            zone: opened.enter_context(Network(zone, [*gateways, *names[zone]])) for zone, gateways in GATEWAYS.items()
        }
        zones = Machines(path, networks, names, copy_rate)
        zones.write_files()
        for wire in zones.wires.values():
            wire.delay_s, wire.bytes_per_s = relay.get("delay_s", 0.0), relay.get("bytes_per_s", 0.0)
            await opened.enter_async_context(wire)
        opened.callback(zones.folder.close)
        for together in (names["eu"] + names["us"], *GATEWAYS.values()):  # a slow machine has time for each
            await zones.start(*together)
        yield zones


class Side:
    """A client of one gateway that has subscribed to what others send it."""

    def __init__(self, connection: Client, name: str) -> None:
        self.connection, self.subject = connection, f"live.{name}"
        self.got: list[bytes] = []

    async def subscribe(self) -> "Side":
        async def note(message: Msg) -> None:
            self.got.append(message.data)

        await self.connection.subscribe(self.subject, cb=note)
        return self


async def until_events_cross(here: Side, there: Side) -> None:
    """Both ways: each sends until something has come."""
    for sender, receiver in ((here, there), (there, here)):
        receiver.got.clear()
        async with asyncio.timeout(WAIT_S):
            while not receiver.got:
                await sender.connection.publish(receiver.subject, b"probe")
                await sender.connection.flush()
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def publishing(zones: Machines, *ways: list[str], writers: int = 2) -> AsyncIterator[Load]:
    """A writer's connection is to the first gateway of its way, and to the others when that is gone.

    Ends with every event acknowledged.
    """
    again = {"allow_reconnect": True, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.05}
    notices = {"ping_interval": 1, "max_outstanding_pings": 2, "connect_timeout": 2}  # that a cable is out
    async with contextlib.AsyncExitStack() as opened:
        connections = []
        for way in ways:
            urls = [zones.url(name) for name in way]
            connections.append(await opened.enter_async_context(client(urls, dont_randomize=True, **again, **notices)))
        load = Load(connections, writers, 0.02)
        await load.goes_on(within_s=WAIT_S)
        yield load
        await load.finish()


async def keep_backlog(connection: Client, load: Load, count: int) -> None:
    """So many events of random bytes, which no compression makes less, each in a batch of its own."""
    for _ in range(count):
        payload = os.urandom(BACKLOG_BYTES)
        load.acknowledged[payload] = (await published(connection, "orders.backlog", payload))["offset"]


async def all_is_in_both(readers: Mapping[str, Client], loads: Mapping[str, Load]) -> dict[str, int]:
    """Each zone's sinks have what was acknowledged there, once and at its offset, and the other zone's the very same.

    Events in each zone's log.
    """
    counts = {}
    for zone, load in loads.items():
        log = await everything(readers[zone], "orders")
        payloads = [event.payload for event in log]
        assert [event.offset for event in log] == list(range(len(log)))
        lost = {offset: payload[:20] for payload, offset in load.acknowledged.items() if payloads[offset] != payload}
        assert not lost, lost
        assert len(set(payloads)) == len(payloads)
        assert await level(readers[other(zone)], f"orders@{zone}", len(log)) == log
        counts[zone] = len(log)
    return counts


async def level(reader: Client, mirror: str, length: int, within_s: float = 3 * WAIT_S) -> list[Any]:
    """The events of a mirror, once it holds so many."""
    deadline = time.monotonic() + within_s
    while len(log := await everything(reader, mirror)) < length:
        assert time.monotonic() < deadline, f"{mirror} has {len(log)} of {length}"
        await asyncio.sleep(0.2)
    return log
