"""`mesh certs`: what it makes is what nodes check, overwrites nothing, and is taken up while nodes run."""

import asyncio
import contextlib
import json
import os
import ssl
import stat
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from support.cli import Ran, invoked
from support.processes import client, free_ports

from gateway.shell.gateway import Gateway
from mesh import authority, node_tls
from mesh.daemon import dial_sinks
from protocol import config
from protocol.node_names import NodeName
from sinkd.shell.sink import Sink

NODES = {
    "eu-gw1": NodeName("acme", "eu", "gateway", "eu-gw1"),
    "eu-sink1": NodeName("acme", "eu", "sink", "eu-sink1"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration whose certificates are not there yet."""
    client_port, link_port = free_ports(2)
    file = tmp_path / "mesh.toml"
    file.write_text(
        f"""
        [mesh]
        name = "acme"
        [zones.eu.gateways.eu-gw1]
        client = "localhost:{client_port}"
        [zones.eu.sinks.eu-sink1]
        link = "127.0.0.1:{link_port}"
        data = "{tmp_path}/data"
        disk_reserve = "1MiB"
        [streams.orders]
        subjects = ["orders.>"]
        [tls.nodes]
        ca = "{tmp_path}/pki/ca.pem"
        cert = "{tmp_path}/pki/{{node}}.pem"
        key = "{tmp_path}/pki/{{node}}.key"
        """
    )
    return file


def loaded(file: Path) -> config.Config:
    return config.parse(file.read_text(), str(file))


async def certs(file: Path, *arguments: str) -> Ran:
    return await invoked("certs", *arguments, "--config", str(file))


def certificate(file: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((file.parent / "pki" / f"{name}.pem").read_bytes())


def replace(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


def contents(file: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (file.parent / "pki").iterdir()}


# -- making -----------------------------------------------------------------------------------------------------------


async def test_init_makes_an_authority_and_what_every_node_needs(file: Path) -> None:
    ran = await certs(file, "init", "--days", "30")
    assert ran.status == 0, ran.err
    assert sorted(contents(file)) == ["ca.key", "ca.pem", "eu-gw1.key", "eu-gw1.pem", "eu-sink1.key", "eu-sink1.pem"]
    for name, node in NODES.items():
        found = certificate(file, name)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(node)]
        assert 29 <= (found.not_valid_after_utc - authority.now()).days <= 30
        found.verify_directly_issued_by(certificate(file, "ca"))
    hosts = certificate(file, "eu-gw1").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["localhost"]


async def test_keys_can_be_read_by_their_owner_alone(file: Path) -> None:
    before = os.umask(0)
    try:
        await certs(file, "init")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (file.parent / "pki").iterdir()}
    assert {mode for name, mode in modes.items() if name.endswith(".key")} == {0o600}
    assert {mode for name, mode in modes.items() if name.endswith(".pem")} == {0o644}


async def test_nothing_is_overwritten_unless_that_is_asked_for(file: Path) -> None:
    await certs(file, "init")
    before = contents(file)
    ran = await certs(file, "init")
    assert ran.status == 1
    assert ran.err.endswith("eu-sink1.key: there already, nothing was written; --force writes anew\n")
    ran = await certs(file, "issue", "eu-gw1")
    assert (ran.status, contents(file)) == (1, before)
    assert (await certs(file, "init", "--force")).status == 0
    assert all(content != before[name] for name, content in contents(file).items())


async def test_issue_adds_a_node_and_renew_keeps_its_key(file: Path) -> None:
    await certs(file, "init")
    (file.parent / "pki" / "eu-sink1.pem").unlink()
    (file.parent / "pki" / "eu-sink1.key").unlink()
    assert (await certs(file, "renew", "eu-sink1")).status == 1
    assert (await certs(file, "issue", "eu-sink1")).status == 0
    before = contents(file)
    ran = await certs(file, "renew", "eu-sink1", "--days", "7")
    assert ran.status == 0, ran.err
    changed = {name for name, content in contents(file).items() if content != before[name]}
    assert changed == {"eu-sink1.pem"}
    node_tls.contexts(loaded(file).tls_nodes, NODES["eu-sink1"])  # raises where the files do not fit


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("{node}.pem", "node.pem", "would be that of eu-sink1 and of eu-gw1; write {node}"),
        ("ca.pem", "{node}-ca.pem", "one authority is one file; write a path without {node}"),
        ("ca.pem", "ca.key", "its key would have the same name; write a path with .pem"),
        ("{node}.key", "{node}.pem", "would be that of eu-gw1 and of eu-gw1"),
        ("[tls.nodes]", "[tls.none]", "unknown key 'none'"),
    ],
)
async def test_paths_that_cannot_work_are_refused(file: Path, old: str, new: str, says: str) -> None:
    replace(file, old, new)
    ran = await certs(file, "init")
    assert ran.status == 1
    assert says in ran.err
    assert not (file.parent / "pki").exists()


async def test_what_is_missing_is_named(file: Path) -> None:
    ran = await certs(file, "issue", "eu-gw1")
    assert ran == (1, b"", f"mesh: {file.parent}/pki/ca.pem: no such file or directory\n")
    await certs(file, "init")
    ran = await certs(file, "issue", "eu-gw7", "--force")
    assert "there is no node 'eu-gw7'" in ran.err
    (file.parent / "pki" / "ca.key").write_bytes((file.parent / "pki" / "eu-gw1.key").read_bytes())
    ran = await certs(file, "renew")
    assert ran.err == f"mesh: {file.parent}/pki/ca.key is not the key of {file.parent}/pki/ca.pem\n"


# -- showing ----------------------------------------------------------------------------------------------------------


async def test_show_says_who_a_certificate_is_for_and_what_is_wrong_with_it(file: Path) -> None:
    await certs(file, "init")
    ran = await certs(file, "show", "--json")
    assert ran.status == 0
    assert [row["node"] for row in json.loads(ran.out)] == [None, *map(str, NODES.values())]
    pki = file.parent / "pki"
    (pki / "eu-gw1.pem").write_text("nothing")
    ran = await invoked("certs", "show", str(pki / "eu-gw1.pem"), str(pki / "eu-sink1.pem"))
    assert ran.status == 1
    assert ran.err == f"mesh: {pki}/eu-gw1.pem: holds no certificate; expected PEM with BEGIN CERTIFICATE\n"
    assert ran.lines[0].startswith(
        f"{pki}/eu-sink1.pem: mesh://acme/eu/sink/eu-sink1, by CN=acme mesh authority, until"
    )
    assert (await invoked("certs", "show")).status == 2


@pytest.fixture
def log_lines():
    with structlog.testing.capture_logs() as lines:
        yield lines


# -- in use -----------------------------------------------------------------------------------------------------------


async def test_a_gateway_and_its_sink_link_with_them(file: Path) -> None:
    await certs(file, "init")
    configuration = loaded(file)
    sink = Sink(configuration, "eu-sink1", tls=node_tls.for_sink(configuration, "eu-sink1"))
    await sink.start()
    gateway = Gateway(configuration, "eu-gw1", dial_sinks(configuration, configuration.gateway("eu-gw1")), "test")
    host, port = await gateway.start()
    try:
        async with client(f"nats://{host}:{port}") as connection:
            await asyncio.wait_for(gateway.linked(), 60)
            answer = json.loads((await connection.request("orders.1", b"x", timeout=60)).data)
            assert answer["offset"] == 0
    finally:
        await gateway.stop()
        await sink.stop()


@contextlib.asynccontextmanager
async def listening(context: ssl.SSLContext):
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def shown_by(port: int, context: ssl.SSLContext) -> int:
    """The serial number of what a listener shows now."""
    connecting = asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port, ssl=context)
    transport, _ = await asyncio.wait_for(connecting, 60)
    certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    transport.abort()
    return x509.load_der_x509_certificate(certificate).serial_number


async def test_renewed_certificates_are_taken_up_at_the_next_handshake(file: Path) -> None:
    await certs(file, "init")
    settings = loaded(file).tls_nodes
    sink = node_tls.contexts(settings, NODES["eu-sink1"])
    gateway = node_tls.contexts(settings, NODES["eu-gw1"])
    async with listening(sink.server) as port:
        first = certificate(file, "eu-sink1").serial_number
        assert await shown_by(port, gateway.client) == first
        await certs(file, "renew")
        second = certificate(file, "eu-sink1").serial_number
        assert second != first
        assert await shown_by(port, gateway.client) == second
        await certs(file, "init", "--force")  # another authority: both sides need it, and have it
        assert await shown_by(port, gateway.client) == certificate(file, "eu-sink1").serial_number


async def test_what_is_of_no_use_is_not_taken_up(file: Path, log_lines) -> None:
    await certs(file, "init")
    settings = loaded(file).tls_nodes
    sink = node_tls.contexts(settings, NODES["eu-sink1"])
    gateway = node_tls.contexts(settings, NODES["eu-gw1"])
    first, pki = certificate(file, "eu-sink1").serial_number, file.parent / "pki"
    async with listening(sink.server) as port:
        (pki / "eu-sink1.pem").write_bytes((pki / "eu-gw1.pem").read_bytes())
        assert await shown_by(port, gateway.client) == first
        assert [line["event"] for line in log_lines] == ["certificates_not_renewed"]
        await certs(file, "issue", "eu-sink1", "--force")
        assert await shown_by(port, gateway.client) == certificate(file, "eu-sink1").serial_number
