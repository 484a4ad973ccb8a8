"""Gateways of two zones in this process: what clients on both sides of a border see of each other."""

import asyncio
import contextlib
import dataclasses
import io
import json
import os
from collections import Counter

import pytest
from nats.errors import NoRespondersError
from rich.console import Console
from support.borders import holders, mesh_text, zones_of
from support.cli import invoked
from support.gateways import url_of
from support.processes import client, settle, until

from gateway.core import reports
from gateway.shell.borders import BorderStream
from gateway.shell.gateway import Gateway
from mesh import node_tls
from mesh.commands import links
from mesh.metrics import GatewayMetrics
from protocol import config, routes
from protocol.errors import FrameError

EVENTS = 100


@contextlib.asynccontextmanager
async def clients_of(*gateways: Gateway):
    async with contextlib.AsyncExitStack() as opened:
        urls = [url_of(gateway.configuration, gateway.node.name) for gateway in gateways]
        yield [await opened.enter_async_context(client(url)) for url in urls]


async def until_known(gateways, pattern: str, zone: str) -> None:
    """Until all gateways of other zones know that `zone` wants it."""
    far = [gateway for gateway in gateways.values() if gateway.zone != zone]
    await until(lambda: all(_wants(gateway, pattern, zone) for gateway in far), f"{pattern} is known")


def _wants(gateway: Gateway, pattern: str, zone: str) -> bool:
    sessions = [session for session in gateway.plane.peers.links if session.zone == zone and not session.spare]
    return any(each.pattern == pattern for session in sessions for each in session.subscriptions.values())


# -- what clients see -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ["interest", "broadcast"])
async def test_an_event_reaches_each_subscriber_of_both_zones_once(routing: str) -> None:
    text = mesh_text().replace("mode =", f'routing = "{routing}"\nmode =')
    async with zones_of(text) as gateways, clients_of(*gateways.values()) as clients:
        subscriptions = [await each.subscribe("news.*") for each in clients]
        members = [await each.subscribe("news.*", "crew") for each in clients[2:]]  # in zone us alone
        for each in clients:
            await settle(each)
        for zone in ("eu", "us"):
            await until_known(gateways, "news.*", zone)
        for number, each in enumerate(clients):
            for event in range(EVENTS):
                await each.publish(f"news.{number}", b"%d" % event, reply="answers", headers={"Tag": "a"})
        for subscription in subscriptions:
            got = [await subscription.next_msg(60) for _ in range(EVENTS * len(clients))]
            assert Counter(message.subject for message in got) == {f"news.{n}": EVENTS for n in range(4)}
            assert {(message.reply, message.headers["Tag"]) for message in got} == {("answers", "a")}
        await until(lambda: sum(member.pending_msgs for member in members) >= 4 * EVENTS, "one of the group")
        await asyncio.sleep(0.05)
        assert [subscription.pending_msgs for subscription in subscriptions] == [0] * 4
        assert sum(member.pending_msgs for member in members) == 4 * EVENTS
        held = holders(gateways)
        assert sorted(gateways[name].zone for name in held) == ["eu", "us"]
        for name in held:
            [border] = gateways[name].mesh.borders.values()
            assert border.session.in_msgs == border.session.out_msgs == 2 * EVENTS


async def test_a_request_finds_its_service_and_the_answer_its_way_back_between_any_two_gateways() -> None:
    """Over both holders, and the inbox is known nowhere before the request."""
    async with zones_of(mesh_text()) as gateways, clients_of(*gateways.values()) as clients:
        names, held = list(gateways), holders(gateways)
        by_name = dict(zip(names, clients, strict=True))
        service = next(name for name in names if name.startswith("us") and name not in held)
        asker = next(name for name in names if name.startswith("eu") and name not in held)

        async def answers(message) -> None:
            await message.respond(b"yes")

        await by_name[service].subscribe("svc", cb=answers)
        await until_known(gateways, "svc", "us")
        for name in (asker, *held):
            for _ in range(20):
                assert (await by_name[name].request("svc", b"?", timeout=60)).data == b"yes"
        with pytest.raises(NoRespondersError):
            await by_name[asker].request("other", b"?", timeout=60)


async def test_members_of_the_zone_come_before_those_of_another() -> None:
    async with zones_of(mesh_text()) as gateways, clients_of(*gateways.values()) as (publisher, near, far, _):
        away = await far.subscribe("jobs", "crew")
        await until_known(gateways, "jobs", "us")
        await publisher.publish("jobs", b"1")
        assert (await away.next_msg(60)).data == b"1"
        close = await near.subscribe("jobs", "crew")
        await settle(near)
        for _ in range(EVENTS):
            await publisher.publish("jobs", b"2")
        assert [(await close.next_msg(60)).data for _ in range(EVENTS)] == [b"2"] * EVENTS
        assert away.pending_msgs == 0


async def test_when_the_holder_goes_another_gateway_takes_over() -> None:
    async with zones_of(mesh_text()) as gateways:
        [holder] = [name for name in holders(gateways) if name.startswith("eu")]
        [other] = {"eu1", "eu2"} - {holder}
        async with clients_of(gateways[other], gateways["us1"], gateways["us2"]) as (publisher, *subscribers):
            subscriptions = [await each.subscribe("a") for each in subscribers]
            for each in subscribers:
                await settle(each)
            await gateways[holder].stop()
            await until(lambda: other in holders({other: gateways[other]}), "it is taken over")
            await until_known({other: gateways[other]}, "a", "us")
            await publisher.publish("a", b"x")
            for subscription in subscriptions:
                assert (await subscription.next_msg(60)).data == b"x"
            await asyncio.sleep(0.05)
            assert [subscription.pending_msgs for subscription in subscriptions] == [0, 0]


async def test_pages_tables_and_metrics_say_who_links_zones_and_what_goes_over_it() -> None:
    async with zones_of(mesh_text()) as gateways, clients_of(gateways["eu1"], gateways["us1"]) as (publisher, far):
        subscription = await far.subscribe("a")
        await until_known(gateways, "a", "us")
        await publisher.publish("a", bytes(9_000))
        await subscription.next_msg(60)
        told = {
            name: reports.routez(gateway.plane, gateway.moment(), gateway.mesh.report())
            for name, gateway in gateways.items()
        }
        held = {gateways[name].zone: name for name in holders(gateways)}
        for name, page in told.items():
            zone = gateways[name].zone
            other = "us" if zone == "eu" else "eu"
            assert page["zones"] == {other: [held[zone]]}
        [route] = [route for route in told[held["eu"]]["routes"] if route["zone"] == "us"]
        assert (route["remote_name"], route["did_solicit"], route["stale"]) == (held["us"], True, False)
        assert route["wire"]["plain_out"] > 9_000 > 2_000 > route["wire"]["wire_out"] > 0
        [spare] = {"eu1", "eu2"} - {held["eu"]}
        console = Console(width=200, file=io.StringIO())
        console.print(links.table(told))
        rows = [line.split()[:4] for line in console.file.getvalue().splitlines()]
        assert [spare, "(us)", "by", held["eu"]] in rows
        assert [held["eu"], held["us"], "(us)", "up"] in rows
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in GatewayMetrics(gateways[held["eu"]]).collect()
            for sample in family.samples
        }
        assert samples["mesh_gateway_border_held", "us"] == samples["mesh_gateway_border_up", "us"] == 1
        assert samples["mesh_gateway_border_bytes_total", "us", "out", "plain"] == route["wire"]["plain_out"]


async def test_a_link_that_is_lost_is_dialled_anew() -> None:
    async with zones_of(mesh_text()) as gateways:
        [holder] = [name for name in holders(gateways) if name.startswith("eu")]
        lost = gateways[holder].mesh.borders["us"]
        lost.transport.abort()
        await until(lambda: holders(gateways) and lost not in _borders(gateways), "there is another")


def _borders(gateways) -> list[object]:
    return [border for gateway in gateways.values() for border in gateway.mesh.borders.values()]


async def test_where_no_live_events_pass_there_is_no_link_and_no_service() -> None:
    text = mesh_text(more="[links.eu.us]\nlive = false\n")
    async with zones_of(text) as gateways, clients_of(gateways["eu1"], gateways["us1"]) as (asker, service):
        await service.subscribe("svc")
        await settle(service)
        with pytest.raises(NoRespondersError):
            await asker.request("svc", b"?", timeout=60)
        assert holders(gateways) == {}
        heard = await told(gateways["us1"], hello(zone="eu", node="eu1"))
        assert heard == b"-ERR 'eu1 is of zone eu, us1 of zone us'\r\n"


# -- who is let in ----------------------------------------------------------------------------------------------------


def hello(**changes: str) -> bytes:
    own = {"mesh": "acme", "zone": "us", "node": "us2", "server_id": "X", "version": routes.HELLO_VERSION}
    return b"HELLO " + json.dumps(own | changes).encode() + b"\r\n"


async def told(gateway: Gateway, said: bytes, context=None) -> bytes:
    """What a peer hears that dials and says `said`, its HELLO aside."""
    address = gateway.node.mesh
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    await reader.readline()
    writer.write(said)
    try:
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("said", "kind", "heard"),
    [
        (hello(), "zone", b"-ERR 'zone eu dials zone us, not the other way round'\r\n"),
        (hello(node="us9"), "name", b"-ERR 'the file of eu1 has no gateway us9 in zone us'\r\n"),
        (hello(zone="asia"), "zone", b"-ERR 'us2 is of zone asia, eu1 of zone eu'\r\n"),
    ],
)
async def test_a_gateway_of_another_zone_that_is_not_wanted_is_refused_by_name(said, kind, heard) -> None:
    async with zones_of(mesh_text({"eu": ["eu1"], "us": ["us1", "us2"]}), "us2") as gateways:
        assert await told(gateways["eu1"], said) == heard
        assert gateways["eu1"].mesh.refused == {kind: 1}
        assert list(gateways["eu1"].mesh.borders) == ["us"]


async def test_the_certificate_of_a_gateway_names_its_zone(tmp_path) -> None:
    tables = (
        f'[tls.nodes]\nca = "{tmp_path}/ca.pem"\ncert = "{tmp_path}/{{node}}.pem"\nkey = "{tmp_path}/{{node}}.key"\n'
    )
    text = mesh_text({"eu": ["eu1"], "us": ["us1", "us2"]}, more=tables)
    (tmp_path / "mesh.toml").write_text(text)
    assert (await invoked("certs", "init", "--config", str(tmp_path / "mesh.toml"))).status == 0
    configuration = config.parse(text, "mesh.toml")
    async with zones_of(text, "us2") as gateways, clients_of(*gateways.values()) as (publisher, subscriber):
        subscription = await subscriber.subscribe("a")
        await until_known(gateways, "a", "us")
        payload = bytes(500_000)
        for _ in range(4):
            await publisher.publish("a", payload)
        assert [(await subscription.next_msg(60)).data for _ in range(4)] == [payload] * 4
        own = node_tls.contexts(configuration.tls_nodes, node_tls.name_of(configuration, "eu1")).client
        heard = await told(gateways["us1"], hello(), own)
        assert heard == b"-ERR 'us2 has shown the certificate of eu1 of zone eu'\r\n"
        assert gateways["us1"].mesh.refused == {"certificate": 1}


# -- the stream -------------------------------------------------------------------------------------------------------


class Wire:
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


def received(stream: BorderStream, data: bytes) -> bytes:
    got: list[bytes] = []

    def hand_on(piece: bytes) -> bool:
        got.append(piece)
        return False

    assert not stream.receive(data, hand_on)
    return b"".join(got)


@pytest.mark.parametrize("compresses", [True, False])
async def test_what_is_written_comes_out_at_the_other_end(compresses: bool) -> None:
    wire = Wire()
    here, there = (BorderStream(wire, 0, lambda: 0, compresses) for _ in range(2))
    for lines, messages in (([b"a"], []), ([], [b"b" * 9_000]), ([b"c"], [b"d", b"e"])):
        wire.written.clear()
        here.write(lines, messages)
        assert received(there, b"".join(wire.written)) == b"".join(lines + messages)
    assert (here.plain_out, here.wire_out) == (there.plain_in, there.wire_in)
    assert here.plain_out == 9_004
    assert (here.wire_out < 200) == compresses


async def test_who_hands_on_may_stop_and_goes_on_where_it_was() -> None:
    wire = Wire()
    here, there = (BorderStream(wire, 0, lambda: 0, False) for _ in range(2))
    here.write([], [bytes(range(256)) * 20])
    got: list[bytes] = []

    def hand_on(piece: bytes) -> bool:
        got.append(piece)
        return bool(piece)

    calls, data = 1, wire.written[0]
    while there.receive(data, hand_on):
        calls, data = calls + 1, b""
    assert (b"".join(got), calls) == (wire.written[0], 6)


async def test_what_is_not_compressed_as_agreed_is_refused() -> None:
    stream = BorderStream(Wire(), 0, lambda: 0, True)
    with pytest.raises(FrameError, match="cannot be decompressed"):
        received(stream, b"RSALL 1\r\n")


async def test_a_rate_holds_messages_back_and_lets_lines_pass() -> None:
    """1,000 B/s: a tenth of a second's worth may have been saved, and one piece may overdraw it."""
    clock, wire = [0], Wire()
    stream = BorderStream(wire, 1_000, lambda: clock[0], False)
    stream._timer = asyncio.get_running_loop().call_later(99, lambda: None)  # this test says when time passes
    clock[0] = 1_000
    for _ in range(4):
        stream.write([], [b"m" * 100])
    assert (wire.written, stream.waiting_bytes) == ([b"m" * 100], 300)
    stream.write([b"line"], [])
    assert wire.written[1:] == [b"line"]
    written = []
    for clock[0] in range(1_050, 1_300, 50):
        stream._go_on()
        written.append(sum(map(len, wire.written)))
    assert written == [204, 204, 304, 304, 404]
    assert stream.waiting_bytes == 0
    stream.close()


async def test_what_a_rate_holds_back_is_dropped_at_the_bound_and_counted_and_no_publisher_waits() -> None:
    text = mesh_text({"eu": ["eu1"], "us": ["us1"]}, '[links.eu.us]\nlive_rate = "20kB/s"\n[limits]\n')
    text += 'max_pending = "256KiB"\nmax_payload = "64KiB"\n'
    async with zones_of(text) as gateways, clients_of(*gateways.values(), gateways["eu1"]) as (publisher, far, near):
        subscription, own = await far.subscribe("a"), await near.subscribe("a")
        await settle(near)
        await until_known(gateways, "a", "us")
        for _ in range(200):
            await publisher.publish("a", os.urandom(5_000))
            await own.next_msg(60)
        border = gateways["eu1"].mesh.borders["us"]
        dropped = gateways["eu1"].mesh.dropped["us1", "behind"]
        assert 120 < dropped < 180  # 256 KiB of the 1 MB may wait
        assert gateways["eu1"].plane.stats.stalled_clients == 0
        assert border.border.waiting_bytes > 100_000
        await until(lambda: subscription.pending_msgs > 0, "what comes first comes")
        eu1 = gateways["eu1"]
        eu1.take_rates(dataclasses.replace(eu1.configuration, links=()))
        assert (border.border.rate_bytes, eu1.mesh.far["us"].rate_bytes) == (0, 0)
        await until(lambda: border.border.waiting_bytes == 0, "nothing is held back any more", 60)
