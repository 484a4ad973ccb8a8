"""TLS between nodes: who may link to whom, by certificates, and what is said about files and peers that are wrong."""

import asyncio
import contextlib
import json
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.certificates import Authority
from support.processes import client, free_ports, until

from gateway.shell.gateway import Gateway
from mesh import node_tls
from mesh.commands.sinks import Zone
from mesh.daemon import dial_sinks
from mesh.node_tls import NodeName, contexts, name_in
from protocol import config, link
from protocol.config import TlsNodes
from protocol.errors import ConfigError, FrameError
from sinkd.shell.sink import Sink

SINK = NodeName("acme", "eu", "sink", "eu-sink1")
GATEWAY = NodeName("acme", "eu", "gateway", "eu-gw1")
OTHERS = [
    NodeName("acme", "eu", "sink", "eu-sink2"),
    NodeName("acme", "eu", "gateway", "eu-sink1"),
    NodeName("acme", "us", "sink", "eu-sink1"),
    NodeName("other", "eu", "sink", "eu-sink1"),
]


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def settings(authority: Authority) -> TlsNodes:
    folder = authority.cert.parent
    return TlsNodes(ca=str(authority.cert), cert=f"{folder}/{{node}}-cert.pem", key=f"{folder}/{{node}}-key.pem")


def issued(authority: Authority, name: NodeName) -> node_tls.Contexts:
    authority.node(name.node, str(name))
    return contexts(settings(authority), name)


# -- names ------------------------------------------------------------------------------------------------------------


def der(authority: Authority, *uris: str) -> bytes:
    pair = authority.node("any", *uris)
    return x509.load_pem_x509_certificate(pair.cert.read_bytes()).public_bytes(Encoding.DER)


def test_a_certificate_names_its_node(authority):
    uris = "https://example.org/", "mesh://acme/eu/sink/eu-sink1"
    assert name_in(der(authority, *uris)) == SINK
    assert str(SINK) == uris[1]


@pytest.mark.parametrize(
    ("uris", "says"),
    [
        ([], "the certificate names no nodes of a mesh; expected one URI mesh://MESH/ZONE/ROLE/NODE"),
        (["https://acme/eu/sink/eu-sink1"], "names no nodes"),
        ([str(SINK), str(GATEWAY)], "names 2 nodes"),
        (["mesh://acme/eu/sink"], "names mesh://acme/eu/sink; expected mesh://MESH/ZONE/gateway|sink/NODE"),
        (["mesh://acme/eu/broker/eu-sink1"], "names mesh://acme/eu/broker/eu-sink1; expected"),
        (["mesh://acme/eu/sink/eu-sink1/"], "expected mesh://MESH"),
        (["mesh://acme/eu/sink/eu-sink1%0A"], "expected mesh://MESH"),
        (["mesh://acme//sink/eu-sink1"], "expected mesh://MESH"),
        (["mesh://acme/eu/sink/eu-sink1?x"], "expected mesh://MESH"),
    ],
)
def test_other_certificates_name_nobody(authority, uris, says):
    with pytest.raises(FrameError) as refused:
        name_in(der(authority, *uris))
    assert says in str(refused.value)


# -- files ------------------------------------------------------------------------------------------------------------


def test_all_files_that_are_missing_are_named(tmp_path):
    nowhere = TlsNodes(ca=f"{tmp_path}/ca.pem", cert=f"{tmp_path}/{{node}}.pem", key=f"{tmp_path}/{{node}}.key")
    with pytest.raises(ConfigError) as refused:
        contexts(nowhere, SINK)
    assert refused.value.problems == [
        f"tls.nodes.cert: {tmp_path}/eu-sink1.pem: no such file or directory",
        f"tls.nodes.key: {tmp_path}/eu-sink1.key: no such file or directory",
        f"tls.nodes.ca: {tmp_path}/ca.pem: no such file or directory",
    ]


@pytest.mark.parametrize("other", OTHERS)
def test_the_certificate_of_another_node_is_no_use(authority, other):
    pair = authority.node("eu-sink1", str(other))
    with pytest.raises(ConfigError) as refused:
        contexts(settings(authority), SINK)
    what = f"the certificate is that of {other}, this node is {SINK}"
    assert refused.value.problems == [f"tls.nodes.cert: {pair.cert}: {what}"]


def test_a_certificate_without_a_node_and_a_key_of_another_are_named(authority):
    pair = authority.node("eu-sink1")
    with pytest.raises(ConfigError, match=f"{pair.cert}: the certificate names no nodes of a mesh.*; this node is"):
        contexts(settings(authority), SINK)
    pair.key.write_bytes(authority.node("another").key.read_bytes())
    with pytest.raises(ConfigError, match=r"tls.nodes.key: .* is not the key of the first certificate"):
        contexts(settings(authority), SINK)


# -- both ends --------------------------------------------------------------------------------------------------------


class Listening(asyncio.Protocol):
    """Greets; notes who has come."""

    peers: list[NodeName | str]

    def connection_made(self, transport):
        try:
            self.peers.append(node_tls.peer_name(transport.get_extra_info("ssl_object")))
        except FrameError as error:
            self.peers.append(str(error))
        transport.write(b"welcome")


class Dialling(asyncio.Protocol):
    def __init__(self):
        self.heard, self.lost = asyncio.Event(), asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.heard.set()

    def connection_lost(self, error):
        self.lost.set_result(error)


@contextlib.asynccontextmanager
async def listening(context, port=0):
    Listening.peers = []
    server = await asyncio.get_running_loop().create_server(Listening, "127.0.0.1", port, ssl=context)
    try:
        yield config.Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        await ended(server)


async def ended(server):
    """And all that it had accepted has gone: before Python 3.12 `wait_closed` does not wait for that."""
    server.close()
    await server.wait_closed()
    await until(lambda: not getattr(server, "_active_count", 0), "all have gone")


async def test_two_nodes_of_a_mesh_know_each_other(authority):
    sink, gateway = issued(authority, SINK), issued(authority, GATEWAY)
    async with listening(sink.server) as address:
        transport, protocol = await node_tls.connect(address, gateway.client, SINK, Dialling)
        await asyncio.wait_for(protocol.heard.wait(), 60)
        transport.abort()
        assert Listening.peers == [GATEWAY]


@pytest.mark.parametrize("expected", OTHERS)
async def test_who_dials_a_node_and_reaches_another_lets_go(authority, expected):
    sink, gateway = issued(authority, SINK), issued(authority, GATEWAY)
    async with listening(sink.server) as address:
        with pytest.raises(ConnectionError, match=f"the peer is {SINK}, expected {expected}"):
            await node_tls.connect(address, gateway.client, expected, Dialling)


async def test_an_authority_of_others_counts_for_nothing(authority, tmp_path):
    """Neither with who is dialled, nor with who dials."""
    (tmp_path / "others").mkdir()
    sink, foreign = issued(authority, SINK), Authority(tmp_path / "others")
    stranger = issued(foreign, GATEWAY)
    async with listening(sink.server) as address:
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await node_tls.connect(address, stranger.client, SINK, Dialling)
        stranger.client.load_verify_locations(authority.cert)
        with contextlib.suppress(OSError):  # with TLS 1.3 it hears of the refusal only later
            _, protocol = await node_tls.connect(address, stranger.client, SINK, Dialling)
            await asyncio.wait_for(protocol.lost, 60)
            assert not protocol.heard.is_set()
        assert Listening.peers == []


async def test_who_shows_no_certificate_is_not_let_in(authority):
    sink, anonymous = issued(authority, SINK), ssl.create_default_context(cafile=authority.cert)
    anonymous.check_hostname = False
    async with listening(sink.server) as address:
        with contextlib.suppress(OSError):
            _, protocol = await node_tls.connect(address, anonymous, SINK, Dialling)
            await asyncio.wait_for(protocol.lost, 60)
            assert not protocol.heard.is_set()
        assert Listening.peers == []


@pytest.mark.parametrize("peer", [*OTHERS, GATEWAY])
async def test_a_sink_takes_only_sinks_of_its_zone_for_peers(authority, peer):
    dialling = issued(authority, peer).client
    authority.node(SINK.node, str(SINK))
    tls = node_tls.for_sink(parsed(authority), SINK.node)
    identified = []

    class Identifying(asyncio.Protocol):
        def connection_made(self, transport):
            try:
                identified.append(tls.identify(transport.get_extra_info("ssl_object")))
            except FrameError as error:
                identified.append(str(error))

    server = await asyncio.get_running_loop().create_server(Identifying, "127.0.0.1", 0, ssl=tls.server)
    address = config.Address("127.0.0.1", server.sockets[0].getsockname()[1])
    transport, _ = await node_tls.connect(address, dialling, SINK, Dialling)
    await until(lambda: bool(identified), "a peer")
    transport.abort()
    await ended(server)
    is_peer = peer[:3] == SINK[:3]
    assert identified == [peer.node if is_peer else f"the peer is {peer}, no sink of zone eu of mesh acme"]


# -- operators ---------------------------------------------------------------------------------------------------------


async def test_an_operator_asks_with_the_certificate_of_a_node_that_is_here(authority):
    async with sink_of(authority, SINK) as configuration:
        told = await Zone(configuration, None, 5).status()
        assert told["eu-sink1"]["state"] == "leader"


async def test_an_operator_hears_that_a_sink_is_another_or_has_another_authority(authority, tmp_path):
    authority.node(GATEWAY.node, str(GATEWAY))
    configuration = parsed(authority)
    zone, port = Zone(configuration, "eu", 5), configuration.sink("eu-sink1").link.port
    async with listening(issued(authority, OTHERS[0]).server, port):
        told = await zone.status()
    assert told["eu-sink1"]["error"] == f"the peer is {OTHERS[0]}, expected {SINK}"
    (tmp_path / "others").mkdir()
    async with listening(issued(Authority(tmp_path / "others"), SINK).server, port):
        told = await zone.status()
    assert told["eu-sink1"]["error"].startswith("TLS: ")


def test_an_operator_without_a_certificate_hears_which_ones_would_do(authority):
    folder = authority.cert.parent
    with pytest.raises(ConfigError) as refused:
        Zone(parsed(authority), "eu", 5)
    files = f"{folder}/{{node}}-cert.pem and {folder}/{{node}}-key.pem"
    assert refused.value.problems == [f"tls.nodes: {files} can be read here for no node; be where those of one are"]


# -- a gateway and its sink -------------------------------------------------------------------------------------------


def parsed(authority: Authority) -> config.Config:
    ports = free_ports(2)
    folder = authority.cert.parent
    return config.parse(
        f"""
        [mesh]
        name = "acme"
        [zones.eu.gateways.eu-gw1]
        client = "127.0.0.1:{ports[0]}"
        [zones.eu.sinks.eu-sink1]
        link = "127.0.0.1:{ports[1]}"
        data = "{folder}/data"
        disk_reserve = "1MiB"
        [streams.orders]
        subjects = ["orders.>"]
        [tls.nodes]
        ca = "{authority.cert}"
        cert = "{folder}/{{node}}-cert.pem"
        key = "{folder}/{{node}}-key.pem"
        """,
        "mesh.toml",
    )


@contextlib.asynccontextmanager
async def sink_of(authority: Authority, *names: NodeName):
    """The configuration of a sink that runs; the nodes `names` have certificates."""
    for name in names:
        authority.node(name.node, str(name))
    configuration = parsed(authority)
    sink = Sink(configuration, "eu-sink1", tls=node_tls.for_sink(configuration, "eu-sink1"))
    await sink.start()
    try:
        yield configuration
    finally:
        await sink.stop()


@contextlib.asynccontextmanager
async def gateway_of(configuration: config.Config):
    dials = dial_sinks(configuration, configuration.gateway("eu-gw1"))
    gateway = Gateway(configuration, "eu-gw1", dials, "test")
    host, port = await gateway.start()
    try:
        yield gateway, f"nats://{host}:{port}"
    finally:
        await gateway.stop()


async def test_a_gateway_keeps_events_on_a_sink_over_tls(authority):
    async with (
        sink_of(authority, SINK, GATEWAY) as configuration,
        gateway_of(configuration) as (gateway, url),
        client(url) as connection,
    ):
        await asyncio.wait_for(gateway.linked(), 60)
        answers = [
            json.loads((await connection.request("orders.1", b"x" * 500_000, timeout=60)).data) for _ in range(3)
        ]
        assert [answer["offset"] for answer in answers] == [0, 1, 2]


async def test_a_sink_refuses_a_gateway_that_shows_the_certificate_of_another_node(authority):
    async with sink_of(authority, SINK, GATEWAY) as configuration:
        own = node_tls.contexts(configuration.tls_nodes, GATEWAY)
        address = configuration.sink("eu-sink1").link
        for node, answer in (("eu-gw1", link.Welcome), ("eu-gw2", link.Failed)):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=own.client)
            writer.write(link.pack(link.Hello("acme", "eu", node)))
            frame = next(link.FrameReader().feed(await asyncio.wait_for(reader.read(65_536), 60)))
            assert isinstance(frame.message, answer)
            writer.close()
        assert frame.message.message == "eu-gw2 has shown the certificate of eu-gw1"


async def test_a_gateway_says_who_a_sink_is_that_should_be_another(authority):
    impostor = issued(authority, OTHERS[0])
    authority.node(GATEWAY.node, str(GATEWAY))
    configuration = parsed(authority)
    async with (
        listening(impostor.server, configuration.sink("eu-sink1").link.port),
        gateway_of(configuration) as (gateway, _),
    ):
        await until(lambda: gateway.links[0].failed_attempts > 0, "an attempt")
        expected = "eu-sink1: the peer is mesh://acme/eu/sink/eu-sink2, expected mesh://acme/eu/sink/eu-sink1"
        assert gateway.health() == f"no sink of zone eu leads: {expected}"


async def test_a_gateway_without_tls_does_not_reach_a_sink_with_it_and_says_so(authority):
    sink = issued(authority, SINK)
    async with listening(sink.server) as address:
        authority.node(GATEWAY.node, str(GATEWAY))
        text = '[mesh]\nname = "acme"\n[zones.eu.gateways.eu-gw1]\nclient = "127.0.0.1:0"\n'
        text += f'[zones.eu.sinks.eu-sink1]\nlink = "{address}"\ndata = "d"\n'
        async with gateway_of(config.parse(text, "mesh.toml")) as (gateway, _):
            await until(lambda: gateway.links[0].failed_attempts > 0, "an attempt")
            assert "no sink of zone eu leads: eu-sink1: " in gateway.health()
    assert Listening.peers == []
