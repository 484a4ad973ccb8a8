"""Gateways of one zone in this process: who is let in, and what clients of different ones see of each other."""

import asyncio
import contextlib
import json
import ssl

import pytest
from nats.errors import NoRespondersError
from support.audits import until_audited
from support.certificates import Authority
from support.cli import invoked
from support.gateways import gateways_of, make_gateway, url_of, zone_text
from support.processes import client, free_ports, settle, until

from gateway.core import reports
from gateway.shell.gateway import Gateway
from mesh import node_tls
from mesh.daemon import Node
from mesh.metrics import GatewayMetrics
from protocol import config, routes
from sinkd.shell.sink import Sink

PING_ROUNDS = 200
EVENTS = 300


@pytest.fixture(autouse=True)
def short_wait(monkeypatch) -> None:
    """For gateways that a test leaves out; `gateways_of` waits for those that it begins."""
    monkeypatch.setattr("gateway.shell.gateway_links.GATEWAY_WAIT_MS_MAX", 50)


@contextlib.asynccontextmanager
async def clients_of(*gateways: Gateway):
    """A client of each."""
    async with contextlib.AsyncExitStack() as opened:
        urls = [url_of(gateway.configuration, gateway.node.name) for gateway in gateways]
        yield [await opened.enter_async_context(client(url)) for url in urls]


# -- what clients see -------------------------------------------------------------------------------------------------


async def test_clients_of_all_gateways_hear_each_other() -> None:
    async with gateways_of(zone_text()) as gateways, clients_of(*gateways) as clients:
        assert [gateway.mesh.missing for gateway in gateways] == [[], [], []]
        subscriptions = [await each.subscribe("news.*") for each in clients]
        for each in clients:
            await settle(each)
        for number, each in enumerate(clients):
            await each.publish(f"news.{number}", b"x", reply="answers", headers={"Tag": "a"})
        for subscription in subscriptions:
            got = [await subscription.next_msg(60) for _ in clients]
            assert sorted(message.subject for message in got) == ["news.0", "news.1", "news.2"]
            assert {(message.reply, message.headers["Tag"]) for message in got} == {("answers", "a")}
        await asyncio.sleep(0.05)
        assert [subscription.pending_msgs for subscription in subscriptions] == [0, 0, 0]


async def test_routing_by_broadcast_looks_the_same_to_clients() -> None:
    """What nobody there wants crosses too, and is counted."""
    text = zone_text().replace("mode =", 'routing = "broadcast"\nmode =')
    async with gateways_of(text) as gateways, clients_of(*gateways, gateways[0]) as (*subscribers, publisher):
        plain = await subscribers[1].subscribe("news")
        members = [await each.subscribe("news", "crew") for each in subscribers[1:]]
        for each in subscribers:
            await settle(each)
        for number in range(EVENTS):
            await publisher.publish("news", b"%d" % number)
            await publisher.publish("other", b"x")
        assert [int((await plain.next_msg(60)).data) for _ in range(EVENTS)] == list(range(EVENTS))
        await until(lambda: sum(member.pending_msgs for member in members) >= EVENTS, "one of each group")
        links = [gateway.mesh.links["gw1"].session for gateway in gateways[1:]]
        await until(lambda: all(link.in_msgs == 2 * EVENTS for link in links), "all have come")
        got = [int((await member.next_msg(60)).data) for member in members for _ in range(member.pending_msgs)]
        assert sorted(got) == list(range(EVENTS))
        assert links[0].unwanted_msgs == EVENTS  # there the other half had a subscriber
        assert links[1].unwanted_msgs == 2 * EVENTS - members[1].delivered
        second = gateways[1].mesh
        lost = second.links["gw1"]
        lost.transport.abort()
        await until(lambda: second.links.get("gw1", lost) is not lost, "there is another link")
        assert second.dropped["gw1", "unwanted"] >= EVENTS  # the count outlives the link
        links_of_first = gateways[0].plane.peers.links
        await until(lambda: [each.learned.is_stale for each in links_of_first.values()] == [False] * 2, "all is known")
        with pytest.raises(NoRespondersError):
            await publisher.request("other", b"x", timeout=60)


async def test_what_a_flush_confirms_is_never_missed() -> None:
    async with gateways_of(zone_text()) as gateways, clients_of(gateways[0], gateways[2]) as (subscriber, publisher):
        for number in range(PING_ROUNDS):
            subscription = await subscriber.subscribe(f"once.{number}", max_msgs=1)
            await settle(subscriber)
            await publisher.publish(f"once.{number}", b"x")
            assert (await subscription.next_msg(60)).data == b"x"


async def test_a_queue_group_over_all_gateways_gets_each_message_once() -> None:
    async with gateways_of(zone_text()) as gateways, clients_of(*gateways, gateways[0]) as (*members, publisher):
        got: list[tuple[int, bytes]] = []

        def note(number: int):
            async def noted(message) -> None:
                got.append((number, message.data))

            return noted

        held = [await each.subscribe("jobs", "crew", cb=note(number)) for number, each in enumerate(members)]
        for each in members:
            await settle(each)
        for number in range(EVENTS):
            await publisher.publish("jobs", b"%d" % number)
        await until(lambda: len(got) >= EVENTS, "all of them")
        assert {number for number, _ in got} == {0}  # local members come first
        await held[0].unsubscribe()
        await settle(members[0])
        for number in range(EVENTS, 2 * EVENTS):
            await publisher.publish("jobs", b"%d" % number)
        await until(lambda: len(got) >= 2 * EVENTS, "all of them")
        await asyncio.sleep(0.05)
        assert sorted(int(data) for _, data in got) == list(range(2 * EVENTS))
        assert {number for number, _ in got[EVENTS:]} == {1, 2}


async def test_a_request_is_answered_across_and_refused_only_if_nobody_is_there() -> None:
    async with gateways_of(zone_text()) as gateways, clients_of(gateways[0], gateways[2]) as (requester, service):
        with pytest.raises(NoRespondersError):
            await requester.request("work", b"x", timeout=60)

        async def answer(message) -> None:
            await message.respond(b"done " + message.data)

        subscription = await service.subscribe("work", cb=answer)
        await settle(service)
        assert (await requester.request("work", b"1", timeout=60)).data == b"done 1"
        await subscription.unsubscribe()
        await settle(service)
        with pytest.raises(NoRespondersError):
            await requester.request("work", b"x", timeout=60)


async def test_clients_are_told_where_else_they_can_go() -> None:
    async with gateways_of(zone_text()) as gateways, clients_of(gateways[1]) as (connection,):
        addresses = {str(gateway.node.client) for gateway in gateways}
        assert {server.netloc for server in connection.discovered_servers} | {
            connection.connected_url.netloc
        } == addresses
        await gateways[2].stop()
        await until(lambda: gateways[1].mesh.missing == ["gw3"], "the link is down")
        await gateways[2].stop()


async def test_links_are_shown_and_counted() -> None:
    async with gateways_of(zone_text()) as gateways, clients_of(gateways[0], gateways[1]) as (publisher, subscriber):
        subscription = await subscriber.subscribe("a")
        await settle(subscriber)
        await publisher.publish("a", b"12345")
        await subscription.next_msg(60)
        page = reports.routez(gateways[0].plane, gateways[0].moment())
        assert page["num_routes"] == 2
        route = next(route for route in page["routes"] if route["remote_name"] == "gw2")
        assert (route["out_msgs"], route["out_bytes"], route["in_msgs"]) == (1, 5, 0)
        assert (route["did_solicit"], route["ip"], route["subscriptions"]) == (True, "127.0.0.1", 1)
        assert (route["stale"], route["idle"], route["interest_repairs"]) == (False, "0s", 0)
        assert route["start"] <= route["last_activity"] <= page["now"]
        assert route["dropped"] == {"behind": 0, "unwanted": 0}
        samples = {
            (sample.name, sample.labels.get("gateway")): sample.value
            for family in GatewayMetrics(gateways[0]).collect()
            for sample in family.samples
        }
        assert samples["mesh_gateway_link_up", "gw2"] == 1
        assert samples["mesh_gateway_link_bytes_out_total", "gw2"] == 5
        assert samples["mesh_gateway_link_interest", "gw2"] == 1
        assert samples["mesh_gateway_link_stale", "gw2"] == 0
        assert samples["mesh_gateway_link_interest_repairs_total", "gw2"] == 0
        await until(lambda: gateways[0].mesh.links["gw2"].session.rtt_ms >= 0, "a round trip")


async def test_mesh_status_shows_the_links_as_each_gateway_sees_them(tmp_path) -> None:
    """Of gateways that have a monitor: one is linked with another, one is away, one cannot be asked."""
    monitors, (sink_port,) = free_ports(2), free_ports(1)
    text = zone_text(more=f'[zones.eu.sinks.s1]\nlink = "127.0.0.1:{sink_port}"\ndata = "{tmp_path}/data"\n')
    text = text.replace('mode = "delivery-fabric"', "") + 'disk_reserve = "1MiB"\n'
    for name, port in zip(("gw1", "gw3"), monitors, strict=True):
        text = text.replace(f"gateways.{name}]\n", f'gateways.{name}]\nmonitor = "127.0.0.1:{port}"\n')
    (tmp_path / "mesh.toml").write_text(text)
    configuration = config.parse(text, "mesh.toml")
    sink = Sink(configuration, "s1")
    nodes = [Node(make_gateway(configuration, name), None) for name in ("gw1", "gw2")]
    await sink.start()
    await asyncio.gather(*(node.start() for node in nodes))
    try:
        await until(
            lambda: all(node.gateway.plane.peers.agreed(near=False) for node in nodes), "the two know each other"
        )
        async with clients_of(nodes[0].gateway, nodes[1].gateway) as (publisher, subscriber):
            subscription = await subscriber.subscribe("a")
            await settle(subscriber)
            await publisher.publish("a", b"12345")
            await subscription.next_msg(60)
            shown = await invoked("status", "--config", str(tmp_path / "mesh.toml"))
            as_json = await invoked("--json", "status", "--config", str(tmp_path / "mesh.toml"))
        table = shown.out.decode().split("GATEWAY")[1].splitlines()
        assert table[1].split()[:3] == ["gw1", "gw2", "up"]
        assert table[1].split()[-9:] == ["1", "0", "1", "0", "B", "5", "B", "0", "0"]
        assert table[2].split() == ["gw1", "gw3", "down"]
        assert table[3].startswith("gw3 ")
        assert "unknown: " in table[3]
        told = json.loads(as_json.out)["gateways"]
        assert list(told) == ["gw1", "gw3"]
        assert [route["remote_name"] for route in told["gw1"]["routes"]] == ["gw2"]
        assert list(told["gw3"]) == ["error"]
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))
        await sink.stop()


# -- who is let in ----------------------------------------------------------------------------------------------------

HELLO = {"mesh": "acme", "zone": "eu", "node": "gw3", "server_id": "X", "version": 3}


def hello(**changes) -> bytes:
    return b"HELLO " + json.dumps(HELLO | changes).encode() + b"\r\n"


def test_the_first_line_of_a_link() -> None:
    line = routes.hello_line(routes.Hello("acme", "eu", "gw1", "M1", revision=7, digests={"mesh": "00ff"}))
    assert line == (
        b'HELLO {"mesh":"acme","zone":"eu","node":"gw1","server_id":"M1","version":3,"compression":"","revision":7,'
        b'"digests":{"mesh":"00ff"},"worker":0,"workers":1}\r\n'
    )


async def told(gateway: Gateway, said: bytes) -> bytes:
    """What a peer hears that dials and says `said`, until the gateway closes the link, its HELLO aside."""
    reader, writer = await asyncio.open_connection(gateway.node.mesh.host, gateway.node.mesh.port)
    assert routes.read_hello((await reader.readline()).rstrip()).node == gateway.node.name
    writer.write(said)
    try:
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("said", "kind", "heard"),
    [
        (b"GET / HTTP/1.1\r\n", "protocol", b"-ERR 'the peer does not begin with HELLO'\r\n"),
        (b"HELLO {}\r\n", "protocol", b"-ERR 'the peer's HELLO is not readable: "),
        (b"x" * 5_000, "protocol", b"-ERR 'the peer says no HELLO within 4096 B'\r\n"),
        (b"-ERR 'no'\r\n", "by_peer", b""),
        (hello(version=9), "version", b"-ERR 'gw3 speaks version 9 of HELLO, this is 3'\r\n"),
        (hello(mesh="other"), "mesh", b"-ERR 'gw3 is of mesh other, gw1 of mesh acme'\r\n"),
        (hello(zone="us"), "zone", b"-ERR 'gw3 is of zone us, gw1 of zone eu'\r\n"),
        (hello(node="gw9"), "name", b"-ERR 'the file of gw1 has no gateway gw9 in zone eu'\r\n"),
        (hello(node="gw1"), "name", b"-ERR 'another gateway is called gw1, too'\r\n"),
        (hello(node="gw2"), "name", b"-ERR 'another gateway is called gw2, too, and linked to gw1'\r\n"),
        (hello(workers=2), "workers", b"-ERR 'gw3 runs as workers = 2, the file of gw1 says 1'\r\n"),
        (hello(worker=1), "workers", b"-ERR 'gw3 is worker 1 of 1'\r\n"),
        (hello(worker=-1, workers=0), "workers", b"-ERR 'gw3 is worker -1 of 0'\r\n"),
        (hello(worker="1"), "protocol", b"-ERR 'the peer's HELLO is not readable: "),
    ],
)
async def test_a_link_that_is_not_wanted_is_refused_by_name_and_no_other_notices(said, kind, heard) -> None:
    async with gateways_of(zone_text(), ["gw1", "gw2"]) as gateways, clients_of(*gateways) as (publisher, subscriber):
        link = gateways[0].mesh.links["gw2"]
        assert (await told(gateways[0], said)).startswith(heard)
        assert gateways[0].mesh.refused == {kind: 1}
        subscription = await subscriber.subscribe("a")
        await settle(subscriber)
        await publisher.publish("a", b"x")
        assert (await subscription.next_msg(60)).data == b"x"
        assert gateways[0].mesh.links == {"gw2": link}


async def test_garbage_behind_hello_ends_that_link_alone() -> None:
    async with gateways_of(zone_text(), ["gw1", "gw2"]) as gateways:
        heard = await told(gateways[0], hello() + b"PUB a 1\r\nx\r\n")
        assert b"-ERR" in heard
        await until(lambda: list(gateways[0].mesh.links) == ["gw2"], "it is gone")
        assert gateways[0].mesh.links["gw2"].session.closing is None


async def test_who_says_nothing_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr("gateway.shell.gateway_links.GATEWAY_HELLO_MS_MAX", 50)
    async with gateways_of(zone_text(), ["gw1", "gw2"]) as gateways:
        assert await told(gateways[0], b"HEL") == b"-ERR 'the peer says no HELLO within 50 ms'\r\n"


async def test_a_silent_peer_is_sent_everything_then_given_up_and_let_in_again(monkeypatch) -> None:
    for module in ("gateway_links", "channel_connection"):
        monkeypatch.setattr(f"gateway.shell.{module}.GATEWAY_PING_INTERVAL_MS", 20)
    monkeypatch.setattr("gateway.shell.channel_connection.GATEWAY_STALE_MS", 60_000)
    async with gateways_of(zone_text(), ["gw1", "gw2"]) as gateways:
        mesh = gateways[0].mesh
        await until(lambda: mesh.links["gw2"].session.rtt_ms >= 0, "both are there")
        reader, writer = await asyncio.open_connection(gateways[0].node.mesh.host, gateways[0].node.mesh.port)
        writer.write(hello() + b"RSALL 1\r\nRSSUM 1 0 0000000000000000\r\nPONG\r\n")
        await until(lambda: "gw3" in mesh.links, "the silent one is in")
        links, silent = gateways[0].plane.peers.links, mesh.links["gw3"].session
        await until(lambda: not links[silent].learned.is_stale, "it has told what it wants")
        monkeypatch.setattr("gateway.shell.channel_connection.GATEWAY_STALE_MS", 200)
        await until(lambda: links[silent].learned.is_stale, "it is not heard")
        assert not links[mesh.links["gw2"].session].is_silent
        monkeypatch.setattr("gateway.shell.channel_connection.GATEWAY_SILENCE_MS_MAX", 400)
        await until(lambda: "gw3" not in mesh.links, "it is given up")
        assert "gw2" in mesh.links
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()


async def test_an_address_that_cannot_be_had_is_named_with_its_purpose() -> None:
    text = zone_text()
    async with gateways_of(text, ["gw1"]):
        second = config.parse(text.replace("gw1]", "gw0]"), "mesh.toml")
        node = Node(make_gateway(second, "gw0"), None)
        with pytest.raises(OSError, match=r"cannot listen on .* for other gateways: address already in use"):
            await node.start()
        await node.stop()


async def test_a_gateway_that_begins_anew_is_linked_again() -> None:
    text = zone_text()
    async with gateways_of(text, ["gw1", "gw2"]) as gateways, clients_of(gateways[0]) as (subscriber,):
        subscription = await subscriber.subscribe("a")
        await settle(subscriber)
        for _ in range(2):
            third = make_gateway(config.parse(text, "mesh.toml"), "gw3")
            await third.start()
            await until(lambda third=third: third.mesh.missing == [], "it is linked")
            async with clients_of(third) as (publisher,):
                await publisher.publish("a", b"x")
                assert (await subscription.next_msg(60)).data == b"x"
            await third.stop()
            await until(lambda: gateways[0].mesh.missing == ["gw3"], "the link is down")


# -- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def secured(tmp_path) -> str:
    """A configuration whose nodes have certificates."""
    tables = (
        f'[tls.nodes]\nca = "{tmp_path}/ca.pem"\ncert = "{tmp_path}/{{node}}.pem"\nkey = "{tmp_path}/{{node}}.key"\n'
    )
    text = zone_text(more=tables)
    file = tmp_path / "mesh.toml"
    file.write_text(text)
    ran = await invoked("certs", "init", "--config", str(file))
    assert ran.status == 0, ran.err
    return text


async def test_links_are_encrypted_where_nodes_have_certificates(secured: str) -> None:
    async with gateways_of(secured) as gateways, clients_of(*gateways) as (publisher, *subscribers):
        subscriptions = [await each.subscribe("a") for each in subscribers]
        for each in subscribers:
            await settle(each)
        payload = bytes(500_000)
        for _ in range(4):
            await publisher.publish("a", payload)
        for subscription in subscriptions:
            assert [(await subscription.next_msg(60)).data for _ in range(4)] == [payload] * 4
        reader, writer = await asyncio.open_connection(gateways[0].node.mesh.host, gateways[0].node.mesh.port)
        writer.write(hello())
        with contextlib.suppress(ConnectionError):
            assert b"HELLO" not in await asyncio.wait_for(reader.read(), 60)
        writer.close()
        assert gateways[0].mesh.missing == []


async def test_a_peer_with_the_certificate_of_another_is_refused(secured: str) -> None:
    configuration = config.parse(secured, "mesh.toml")
    async with gateways_of(secured, ["gw1", "gw2"]) as gateways:
        own = node_tls.contexts(configuration.tls_nodes, node_tls.name_of(configuration, "gw2"))
        address = gateways[0].node.mesh
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=own.client)
        writer.write(hello())
        heard = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        assert heard.endswith(b"-ERR 'gw3 has shown the certificate of gw2'\r\n")
        assert gateways[0].mesh.refused == {"certificate": 1}
        assert list(gateways[0].mesh.links) == ["gw2"]


async def test_refused_certificates_are_counted_and_read_back_from_the_audit_stream(secured: str, tmp_path) -> None:
    """One of another authority, and one whose owner lies about its name; the handshake of the first already fails."""
    sink = f'[zones.eu.sinks.s1]\nlink = "127.0.0.1:{free_ports(1)[0]}"\ndata = "{tmp_path}/data"\n'
    text = secured.replace('mode = "delivery-fabric"', "").replace("[tls", sink + 'disk_reserve = "1MiB"\n[tls', 1)
    (tmp_path / "mesh.toml").write_text(text)
    assert (await invoked("certs", "issue", "--config", str(tmp_path / "mesh.toml"), "s1")).status == 0
    configuration = config.parse(text, "mesh.toml")
    kept = Sink(configuration, "s1", tls=node_tls.for_sink(configuration, "s1"))
    await kept.start()
    try:
        async with gateways_of(text, ["gw1", "gw2"]) as gateways, clients_of(gateways[1]) as (operator,):
            await asyncio.gather(*(asyncio.wait_for(gateway.linked(), 60) for gateway in gateways))
            foreign = tmp_path / "foreign"
            foreign.mkdir()
            pair = Authority(foreign).node("gw3", "mesh://acme/eu/gateway/gw3")
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            context.check_hostname = False
            context.load_cert_chain(pair.cert, pair.key)
            own = node_tls.contexts(configuration.tls_nodes, node_tls.name_of(configuration, "gw2")).client
            address = gateways[0].node.mesh
            for dials in (context, own):
                reader, writer = await asyncio.open_connection(address.host, address.port, ssl=dials)
                writer.write(hello())
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    await asyncio.wait_for(reader.read(), 60)
                writer.close()
            await until(lambda: gateways[0].mesh.refused == {"tls": 1, "certificate": 1}, "both are counted")
            gateways[0].audit.finish()  # the second came from the same address in the same minute
            events = await until_audited(operator, "link_refused", 2)
            assert {(each["node"], each["from"], each["what"]) for each in events} == {
                ("gw1", "127.0.0.1", "link from gateway")
            }
            assert [each["why"] for each in events] == [
                "TLS: unable to get local issuer certificate",
                "gw3 has shown the certificate of gw2",
            ]
            assert gateways[0].mesh.missing == ["gw3"]
    finally:
        await kept.stop()


# -- the log ----------------------------------------------------------------------------------------------------------


async def test_an_event_is_kept_once_by_the_gateway_of_its_publisher(tmp_path) -> None:
    sink_port = free_ports(1)[0]
    text = zone_text(more=f'[zones.eu.sinks.s1]\nlink = "127.0.0.1:{sink_port}"\ndata = "{tmp_path}/data"\n')
    text = (
        text.replace('mode = "delivery-fabric"', "")
        + 'disk_reserve = "1MiB"\n[streams.orders]\nsubjects = ["orders.>"]\n'
    )
    configuration = config.parse(text, "mesh.toml")
    sink = Sink(configuration, "s1")
    await sink.start()
    try:
        async with gateways_of(text) as gateways, clients_of(*gateways) as clients:
            await asyncio.gather(*(asyncio.wait_for(gateway.linked(), 60) for gateway in gateways))
            subscriptions = [await each.subscribe("orders.*") for each in clients]
            for each in clients:
                await settle(each)
            offsets = []
            for number in range(30):
                answer = await clients[number % 3].request(f"orders.{number}", b"x", timeout=60)
                offsets.append(json.loads(answer.data)["offset"])
            assert offsets == list(range(30))
            await until(lambda: all(each.pending_msgs == 30 for each in subscriptions), "live delivery")
            # One of each is of the audit stream: its client has come.
            beacons = [sum(gateway.beacons.written.values()) for gateway in gateways]
            captured = [gateway.outbox.counters.captured for gateway in gateways]
            assert [count - own for count, own in zip(captured, beacons, strict=True)] == [11, 11, 11]
    finally:
        await sink.stop()
