"""Gateways that are in no file find each other, and let go of those that have gone."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

import pytest
from support.gateways import url_of
from support.natsraw import RawClient
from support.processes import client, free_ports, settle, until

from gateway.shell import discovery
from gateway.shell.discovery import Cluster
from gateway.shell.gateway import Gateway
from protocol import config
from protocol.config import Address
from protocol.limits import GATEWAY_HELLO_BYTES_MAX, GATEWAY_KNOWN_MAX, GATEWAY_MEETINGS_MAX
from protocol.routes import Hello, Meeting, hello_line


def address(port: int) -> Address:
    return Address("127.0.0.1", port)


class Members:
    """Gateways of a cluster by name; they are stopped at the end."""

    def __init__(self) -> None:
        self.gateways: dict[str, Gateway] = {}

    def make(
        self, name: str, mesh: int, *routes: int, cluster: str = "acme", client: int | None = None, **options: object
    ) -> Gateway:
        text = f'[mesh]\nname = "{cluster}"\nmode = "delivery-fabric"\ninsecure = true\n[zones.local.gateways.{name}]\n'
        client = free_ports(1)[0] if client is None else client
        text += f'client = "0.0.0.0:{client}"\nmesh = "0.0.0.0:{mesh}"\n'
        options = {"routes": [address(port) for port in routes], **options}
        made = Gateway(config.parse(text, "mesh.toml"), name, (), "test", cluster=Cluster(**options))
        self.gateways[name] = made
        return made

    async def start(self, *names: str) -> None:
        await asyncio.gather(*(self.gateways[name].start() for name in names or self.gateways))

    async def stop(self, name: str) -> None:
        await self.gateways.pop(name).stop()

    def is_whole(self) -> bool:
        """Each is linked with all others, and no other is known."""
        names = set(self.gateways)
        return all(
            set(gateway.mesh.others) == set(gateway.mesh.links) == names - {name}
            and gateway.plane.peers.agreed(near=False) == len(names) - 1
            for name, gateway in self.gateways.items()
        )

    async def whole(self) -> None:
        await until(self.is_whole, f"all are linked: { {n: list(g.mesh.links) for n, g in self.gateways.items()} }")


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator[Members]:
    members = Members()
    try:
        yield members
    finally:
        await asyncio.gather(*(gateway.stop() for gateway in members.gateways.values()))


@pytest.mark.parametrize("seed", ["a", "c", "e"], ids="the seed's name is {}".format)
async def test_all_who_know_one_find_each_other_though_they_start_at_once(seed: str) -> None:
    """Whichever name comes first: who dials is another question than who knows whom."""
    port, *others = free_ports(4)
    async with cluster() as members:
        members.make(seed, port)
        for name, own in zip("bdf", others, strict=True):
            members.make(name, own, port, own)  # as with nats-server, one's own address may be among them
        await members.start()
        await members.whole()


async def test_events_cross_and_clients_are_told_of_the_others() -> None:
    ports = free_ports(3)
    async with cluster() as members:
        one = members.make("one", ports[0])
        two = members.make("two", ports[1], ports[0])
        members.make("three", ports[2], ports[0], tells_clients=False)
        await members.start()
        await members.whole()
        urls = [url_of(each.configuration, name) for each, name in ((one, "one"), (two, "two"))]
        async with client(urls[0]) as here, client(urls[1]) as there:
            got = await there.subscribe("news")
            await settle(there)
            await here.publish("news", b"first")
            assert (await got.next_msg(60)).data == b"first"
        client_ports = {name: each.node.client.port for name, each in members.gateways.items()}
        assert f"127.0.0.1:{client_ports['two']}" in one.plane.connect_urls
        assert all(str(client_ports["three"]) not in url for url in one.plane.connect_urls)


async def test_a_client_port_that_is_any_free_one_is_told_when_it_is_known() -> None:
    ports = free_ports(2)
    async with cluster() as members:
        one = members.make("one", ports[0])
        two = members.make("two", ports[1], ports[0], client=0)
        await members.start("one")
        async with RawClient(one.plane.port) as early:
            assert "connect_urls" not in early.info  # there is nobody else
            await early.send(b'CONNECT {"verbose":false,"protocol":1}\r\nPING\r\n')
            await members.start("two")
            told = await early.until(b'"connect_urls"')
        both = [f"{host}:{each.plane.port}" for host, each in (("0.0.0.0", one), ("127.0.0.1", two))]
        assert list(one.plane.connect_urls) == both
        assert told.count(b"INFO ") == 2  # the one after PONG, and what is news: not before the port is known
        await until(lambda: len(two.plane.connect_urls) == 2, "the other one tells its own port, too")


async def test_who_comes_at_the_address_of_another_takes_its_place() -> None:
    seed, *ports = free_ports(3)
    async with cluster() as members:
        members.make("b", seed)
        members.make("a", ports[0], seed)
        members.make("c", ports[1], seed)
        await members.start()
        await members.whole()
        await members.stop("a")
        members.make("z", ports[0], seed)
        await members.start("z")
        await members.whole()


async def test_who_has_gone_for_long_is_forgotten_and_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "GATEWAY_FORGET_MS", 100)
    monkeypatch.setattr(discovery, "GATEWAY_MEET_AGAIN_MS", 200)
    seed, *ports = free_ports(3)
    async with cluster() as members:
        members.make("b", seed)
        members.make("a", ports[0], seed)
        await members.start()
        await members.whole()
        await members.stop("b")
        await until(members.is_whole, "the other one is alone")
        members.make("b", seed)
        await members.start("b")
        await members.whole()


async def test_a_peer_cannot_make_a_gateway_dial_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    dialled = []

    async def dial(address: Address, connection: object) -> None:
        if address.host.startswith("10."):
            dialled.append(address)
        await asyncio.sleep(60)

    async with cluster() as members:
        one = members.make("one", port)
        await members.start()
        monkeypatch.setattr(one.mesh, "_dial", dial)
        for number in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await reader.readline()
            known = tuple(f"10.0.{number}.{host}:1" for host in range(GATEWAY_KNOWN_MAX))
            meeting = Meeting("127.0.0.1:1", "", known, introduces=True)
            writer.write(hello_line(Hello("acme", "local", "x", "M", meeting=meeting)))
            assert b"know each other" in await asyncio.wait_for(reader.read(), 60)
            writer.close()
        assert 0 < len(dialled) <= GATEWAY_MEETINGS_MAX
        assert len(one.mesh.others) == 1


async def test_long_addresses_do_not_make_a_hello_that_is_refused() -> None:
    (port,) = free_ports(1)
    async with cluster() as members:
        one = members.make("one", port)
        await members.start()
        for number in range(GATEWAY_KNOWN_MAX):
            name, host = f"n{number}", f"{number:0200}.example"
            one.mesh.others[name] = dataclasses.replace(one.node, name=name, mesh=Address(host, 6222))
        line = hello_line(one.mesh.hello(one.mesh._accepted()))
        assert GATEWAY_HELLO_BYTES_MAX // 2 - 300 < len(line) < GATEWAY_HELLO_BYTES_MAX
        one.mesh.others.clear()


async def test_a_gateway_of_another_cluster_is_no_member() -> None:
    ports = free_ports(2)
    async with cluster() as members:
        one = members.make("one", ports[0])
        two = members.make("two", ports[1], ports[0], cluster="other")
        await members.start()
        await until(lambda: one.mesh.refused["mesh"] > 0, "it was refused")
        assert one.mesh.others == two.mesh.others == {}


async def test_a_meeting_without_addresses_is_refused_by_name() -> None:
    (port,) = free_ports(1)
    async with cluster() as members:
        one = members.make("one", port)
        await members.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readline()
        writer.write(hello_line(Hello("acme", "local", "x", "M", meeting=Meeting("nowhere"))))
        assert b"has no address in 'nowhere'" in await asyncio.wait_for(reader.read(), 60)
        writer.close()
        assert one.mesh.refused["protocol"] == 1
        assert not one.mesh.others
