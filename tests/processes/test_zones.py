"""Two zones as programs, three gateways and two, with a relay of ours on every way between them and nats-py around.

Each zone goes by a file in which the gateways of the other one are behind the relay. The gateway that holds the link
between the zones is killed under load; what was published is in the sinks afterwards, and events cross again.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from support.events import everything
from support.processes import Daemon, Folder, client, folder_at, free_ports, until
from support.proxy import Wire

from protocol.routes import rank

GATEWAYS = {"eu": ("e1", "e2", "e3"), "us": ("u1", "u2")}
EVENTS, UNDER_WAY, AFTERWARDS = 400, 16, 100
ANSWER_WAIT_S = 2.0
DELAY_S, BYTES_PER_S = 0.01, 10e6


class Zones:
    """Ports of all nodes, and the file by which a zone goes."""

    def __init__(self) -> None:
        names = [name for gateways in GATEWAYS.values() for name in gateways]
        ports = free_ports(3 * len(names) + 2)
        self.client, self.mesh, self.relayed = (
            dict(zip(names, ports[number * len(names) :], strict=False)) for number in range(3)
        )
        self.link = dict(zip(GATEWAYS, ports[-2:], strict=True))

    def file(self, own: str) -> str:
        text = '[mesh]\nname = "acme"\n[streams.orders]\nsubjects = ["orders.>"]\n'
        for zone, names in GATEWAYS.items():
            mesh = self.mesh if zone == own else self.relayed
            for name in names:
                text += f'[zones.{zone}.gateways.{name}]\nclient = "127.0.0.1:{self.client[name]}"\n'
                text += f'mesh = "127.0.0.1:{mesh[name]}"\n'
            text += f'[zones.{zone}.sinks.s-{zone}]\nlink = "127.0.0.1:{self.link[zone]}"\ndata = "s-{zone}"\n'
            text += 'disk_reserve = "1MiB"\n'
        return text

    def urls(self, zone: str) -> list[str]:
        return [self.url(name) for name in GATEWAYS[zone]]

    def url(self, name: str) -> str:
        return f"nats://127.0.0.1:{self.client[name]}"


@contextlib.asynccontextmanager
async def relayed(zones: Zones) -> AsyncIterator[list[Wire]]:
    async with contextlib.AsyncExitStack() as opened:
        made = [
            Wire(zones.relayed[name], zones.mesh[name], delay_s=DELAY_S, bytes_per_s=BYTES_PER_S) for name in zones.mesh
        ]
        for wire in made:
            await opened.enter_async_context(wire)
        yield made


async def test_events_outlive_the_gateway_that_links_two_zones_and_cross_again(tmp_path: Path) -> None:
    zones = Zones()
    holder, stays = sorted(GATEWAYS["eu"], key=lambda name: rank("eu", "us", name))[:2]
    async with contextlib.AsyncExitStack() as opened:
        folder = opened.enter_context(folder_at(tmp_path))
        wires = await opened.enter_async_context(relayed(zones))
        daemons = await started(folder, zones)
        clients = [await opened.enter_async_context(client(zones.url(name))) for name in (stays, "u2")]
        here, there = [await Side(each, zone).subscribe() for each, zone in zip(clients, GATEWAYS, strict=True)]
        await until_events_cross(here, there)
        assert any(wire.passed_bytes for wire in wires)
        publishers = [Publisher("eu", [zones.url(holder), zones.url(stays)]), Publisher("us", zones.urls("us"))]
        publishing = [asyncio.create_task(publisher.run()) for publisher in publishers]
        await until(lambda: all(publisher.kept > EVENTS // 4 for publisher in publishers), "events are kept", 10)
        killed = daemons.pop(holder)
        assert " zone=us" in killed.complaints
        killed.kill()
        for wire in wires:
            wire.cut()
        await asyncio.gather(*publishing)
        await until_events_cross(here, there)
        await all_cross_once(here, there)
        await all_cross_once(there, here)
        for reader, publisher in zip(clients, publishers, strict=True):
            log = [event for event in await everything(reader, "orders") if event.subject == publisher.subject]
            assert sorted(int(event.payload) for event in log) == list(range(EVENTS))
        assert set(await asyncio.gather(*(daemon.stop() for daemon in daemons.values()))) == {0}


async def started(folder: Folder, zones: Zones) -> dict[str, Daemon]:
    daemons = {}
    for zone, names in GATEWAYS.items():
        (folder.path / f"{zone}.toml").write_text(zones.file(zone))
        for command, name in [("sinkd", f"s-{zone}"), *(("gateway", name) for name in names)]:
            daemons[name] = folder.run(command, "--config", f"{zone}.toml", "--node", name)
    await asyncio.gather(*(daemon.serving() for daemon in daemons.values()))
    return daemons


class Publisher:
    """Publishes numbers under acknowledgement, each until it is kept; by its id it is one event, however often sent.

    It begins at the first of `urls`, and goes on at another one.
    """

    def __init__(self, zone: str, urls: list[str]) -> None:
        self.subject, self._urls = f"orders.{zone}", urls
        self.kept = 0

    async def run(self) -> None:
        numbers = iter(range(EVENTS))
        options = {"allow_reconnect": True, "dont_randomize": True, "reconnect_time_wait": 0.05}
        async with client(self._urls, **options, max_reconnect_attempts=-1) as connection:
            await asyncio.gather(*(self._publish(connection, numbers) for _ in range(UNDER_WAY)))

    async def _publish(self, connection: Client, numbers: Iterator[int]) -> None:
        for number in numbers:
            headers = {"Nats-Msg-Id": f"{self.subject}.{number}"}
            while True:
                with contextlib.suppress(nats.errors.Error):  # it was on its way to the one that is gone
                    answer = await connection.request(self.subject, b"%d" % number, ANSWER_WAIT_S, headers=headers)
                    if "error" not in json.loads(answer.data):
                        break
                await asyncio.sleep(0.02)
            self.kept += 1


class Side:
    """A client of one zone that has subscribed to what a client of the other one sends it."""

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
        async with asyncio.timeout(20):
            while not receiver.got:
                await sender.connection.publish(receiver.subject, b"probe")
                await sender.connection.flush()
                await asyncio.sleep(0.02)


async def all_cross_once(sender: Side, receiver: Side) -> None:
    for number in range(AFTERWARDS):
        await sender.connection.publish(receiver.subject, b"%d" % number)
    await sender.connection.publish(receiver.subject, b"end")
    await until(lambda: b"end" in receiver.got, "the last one has crossed", 10)
    assert [payload for payload in receiver.got if payload.isdigit()] == [
        b"%d" % number for number in range(AFTERWARDS)
    ]
