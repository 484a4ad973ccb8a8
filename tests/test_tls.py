"""TLS on the client port: nats-py, Python's own ssl and our command as clients, nats-server as the oracle."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.certificates import Authority, Pair
from support.cli import invoked
from support.gateway import Served, serve
from support.natsraw import RawClient, nats_server

from gateway.core.encryption import Encryption, PeerCertificate
from gateway.core.identity import UserEntry
from gateway.core.session import Closed, Session
from gateway.shell.tls import ClientTls, cipher_name
from protocol.config import TlsClients
from protocol.errors import ConfigError
from protocol.limits import READ_BYTES

CONNECT = b'CONNECT {"verbose":false,"protocol":1}\r\n'


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def person(authority: Authority) -> Pair:
    return authority.client("ada", x509.RFC822Name("ada@acme.example"), x509.DNSName("ada.acme.example"))


def settings(authority: Authority, **more: Any) -> TlsClients:
    plain = TlsClients(
        cert=str(authority.server.cert),
        key=str(authority.server.key),
        ca=str(authority.cert),
        verify=False,
        first=False,
        first_fallback_ms=0,
        map=False,
        timeout_ms=10_000,
        allow_non_tls=False,
    )
    return replace(plain, **more)


@contextlib.asynccontextmanager
async def served(authority: Authority, **more: Any) -> AsyncIterator[Served]:
    """A client port with these settings of `[tls.clients]`, others being `PlaneOptions`."""
    rules = settings(authority, **{key: more.pop(key) for key in list(more) if hasattr(TlsClients, key)})
    info = {
        "tls_required": not rules.allow_non_tls,
        "tls_verify": rules.verify,
        "tls_available": rules.allow_non_tls,
    }
    async with serve(tls=ClientTls(rules), **info, **more) as running:
        yield running


def client_context(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.cert)
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    return context


class TlsClient(RawClient):
    """A raw client that makes the handshake, after INFO or `first`."""

    def __init__(self, port: int, context: ssl.SSLContext, *, first: bool = False) -> None:
        super().__init__(port)
        self._context, self._first = context, first

    async def __aenter__(self) -> "TlsClient":
        if self._first:
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self._context, server_hostname="localhost"
            )
            self.info = json.loads((await self.reader.readline())[5:])
        else:
            await super().__aenter__()
            await self.writer.start_tls(self._context, server_hostname="localhost")
        return self

    async def __aexit__(self, *problem: object) -> None:
        with contextlib.suppress(ssl.SSLError):  # messages that were under way when it said goodbye
            await super().__aexit__(*problem)


def only_session(running: Served) -> Session:
    (session,) = running.plane.sessions.values()
    return session


async def eventually(condition: Callable[[], Any], wait_s: float = 60.0) -> None:
    async with asyncio.timeout(wait_s):
        while not condition():  # noqa: ASYNC110  what is waited for is no event of ours
            await asyncio.sleep(0.005)


# -- the three ways in ------------------------------------------------------------------------------------------------


async def test_a_new_certificate_is_for_those_that_come_later(authority: Authority) -> None:
    renewed = authority.issue("renewed", (x509.DNSName("localhost"),), usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    async with served(authority) as running, TlsClient(running.port, client_context(authority)) as early:
        running.server.go_by(ClientTls(settings(authority, cert=str(renewed.cert), key=str(renewed.key))), 10_000)
        async with TlsClient(running.port, client_context(authority)) as late:
            shown = [each.writer.get_extra_info("ssl_object").getpeercert(True) for each in (early, late)]
            await early.send(CONNECT + b"PING\r\n")
            await early.until(b"PONG\r\n")
    of_files = [pair.cert.read_bytes() for pair in (authority.server, renewed)]
    assert shown == [x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER) for pem in of_files]


@pytest.mark.parametrize("first", [False, True])
async def test_nats_py_talks_encrypted(authority: Authority, first: bool) -> None:
    async with served(authority, first=first) as running:
        client = await nats.connect(
            f"tls://localhost:{running.port}", tls=client_context(authority), tls_handshake_first=first
        )
        subscription = await client.subscribe("a")
        payload = bytes(range(256)) * 4_000
        await client.publish("a", payload, headers={"A": "b"})
        message = await subscription.next_msg(timeout=60)
        assert (message.data, message.headers) == (payload, {"A": "b"})
        tls = only_session(running).tls
        assert isinstance(tls, Encryption)
        assert (tls.version, tls.first, tls.certificate) == ("1.3", first, None)
        assert tls.cipher.startswith("TLS_")
        await client.close()


async def test_info_says_what_the_port_wants(authority: Authority) -> None:
    for rules, expected in (
        ({}, {"tls_required": True}),
        ({"verify": True}, {"tls_required": True, "tls_verify": True}),
        ({"allow_non_tls": True}, {"tls_available": True}),
    ):
        async with served(authority, **rules) as running, RawClient(running.port) as client:
            assert {key: value for key, value in client.info.items() if key.startswith("tls")} == expected


async def test_with_first_nothing_is_said_before_the_handshake(authority: Authority) -> None:
    async with served(authority, first=True) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        writer.close()
        await writer.wait_closed()
        async with TlsClient(running.port, client_context(authority), first=True) as client:
            assert client.info["tls_required"] is True
            await client.send(CONNECT + b"PING\r\n")
            assert (await client.until(b"PONG\r\n")).startswith(b"PONG\r\n")


async def test_with_a_fallback_who_says_nothing_is_greeted_after_a_while(authority: Authority) -> None:
    async with served(authority, first=True, first_fallback_ms=1_000) as running:
        async with TlsClient(running.port, client_context(authority), first=True) as at_once:
            await at_once.send(CONNECT + b"PING\r\n")
            await at_once.until(b"PONG\r\n")
            first = only_session(running).tls
            assert isinstance(first, Encryption)
            assert first.first
        await eventually(lambda: not running.plane.sessions)
        started = asyncio.get_running_loop().time()
        async with TlsClient(running.port, client_context(authority)) as after_info:
            assert asyncio.get_running_loop().time() - started >= 1.0
            await after_info.send(CONNECT + b"PING\r\n")
            await after_info.until(b"PONG\r\n")
            second = only_session(running).tls
            assert isinstance(second, Encryption)
            assert not second.first


async def test_a_fallback_leaves_all_of_the_time_for_the_handshake(authority: Authority) -> None:
    async with (
        served(authority, first=True, first_fallback_ms=1_000, timeout_ms=1_000) as running,
        RawClient(running.port) as client,
    ):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.15)
        assert await asyncio.wait_for(client.reader.read(1), 60) == b""  # and then it is over


async def test_where_both_are_allowed_the_first_byte_decides(authority: Authority) -> None:
    async with (
        served(authority, allow_non_tls=True, timeout_ms=1_000) as running,
        RawClient(running.port) as plain,
        RawClient(running.port) as late,
        TlsClient(running.port, client_context(authority)) as encrypted,
    ):
        await encrypted.send(CONNECT + b"SUB a 1\r\nPING\r\n")
        await encrypted.until(b"PONG\r\n")
        await plain.send(CONNECT + b"PUB a 2\r\nhi\r\nPING\r\n")
        await plain.until(b"PONG\r\n")
        assert await encrypted.until(b"hi\r\n") == b"MSG a 1 2\r\nhi\r\n"
        assert [session.tls is None for session in running.plane.sessions.values()] == [True, True, False]
        await asyncio.sleep(1.2)  # the handshake's time is over
        await late.send(CONNECT + b"PING\r\n")
        await late.until(b"PONG\r\n")


async def test_tls_1_2_is_enough_and_1_1_is_not(authority: Authority) -> None:
    async with served(authority) as running:
        context = client_context(authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with TlsClient(running.port, context) as client:
            await client.send(CONNECT + b"PING\r\n")
            await client.until(b"PONG\r\n")
            tls = only_session(running).tls
            assert isinstance(tls, Encryption)
            assert tls.version == "1.2"
            assert tls.cipher == "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
        old = client_context(authority)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with TlsClient(running.port, old):
                pass


@pytest.mark.parametrize(
    ("openssl", "iana"),
    [
        ("TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
        ("ECDHE-RSA-AES128-GCM-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
        ("ECDHE-RSA-CHACHA20-POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    ],
)
def test_ciphers_have_ianas_names(openssl: str, iana: str) -> None:
    assert cipher_name(openssl) == iana


# -- client certificates ----------------------------------------------------------------------------------------------


async def test_a_certificate_that_is_demanded_is_checked_and_handed_on(authority: Authority, person: Pair) -> None:
    async with served(authority, verify=True) as running:
        async with TlsClient(running.port, client_context(authority, person)) as client:
            await client.send(CONNECT + b"PING\r\n")
            await client.until(b"PONG\r\n")
            tls = only_session(running).tls
        assert isinstance(tls, Encryption)
        assert tls.certificate == PeerCertificate(("ada@acme.example",), ("ada.acme.example",), (), "CN=ada")


async def test_the_subject_is_written_as_rfc_4514_has_it(authority: Authority) -> None:
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme, Inc"), x509.NameAttribute(NameOID.COMMON_NAME, "bo")]
    )
    pair = authority.client("bo", x509.UniformResourceIdentifier("mesh://bo"), subject=subject)
    async with served(authority, verify=True) as running:
        async with TlsClient(running.port, client_context(authority, pair)) as client:
            await client.send(CONNECT + b"PING\r\n")
            await client.until(b"PONG\r\n")
            tls = only_session(running).tls
        assert isinstance(tls, Encryption)
        assert tls.certificate == PeerCertificate((), (), ("mesh://bo",), r"CN=bo,O=Acme\, Inc")


async def test_without_a_good_certificate_there_is_no_way_in(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "other").client("eve")
    async with served(authority, verify=True) as running:
        for pair in (None, stranger):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await _greet(running.port, client_context(authority, pair))
        await eventually(lambda: running.plane.stats.connections == 0)
        assert [session.closing for session in running.hooks.closed] == [Closed.TLS_HANDSHAKE] * 2
        assert "peer did not return a certificate" in running.hooks.closed[0].closing_detail.lower()


async def _greet(port: int, context: ssl.SSLContext) -> None:
    async with TlsClient(port, context) as client:
        await client.send(CONNECT + b"PING\r\n")
        await client.reader.readuntil(b"PONG\r\n")


# -- what is no handshake ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "sent", [CONNECT + b"PING\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05nonsense", b"\x16" + bytes(300)]
)
async def test_who_sends_anything_else_is_closed_without_a_word(authority: Authority, sent: bytes, first: bool) -> None:
    async with served(authority, first=first) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        if not first:
            assert (await reader.readline()).startswith(b"INFO")
        writer.write(sent)
        rest = await asyncio.wait_for(reader.read(), 60)
        assert rest == b"" or (sent[0] == 0x16 and rest[0] == 0x15)  # an alert for what claimed to be TLS
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: running.plane.stats.connections == 0)
        assert running.hooks.closed[0].closing == Closed.TLS_HANDSHAKE


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_a_handshake_that_does_not_end_is_ended(authority: Authority, sent: bytes, first: bool) -> None:
    async with served(authority, first=first, timeout_ms=150) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        if not first:
            assert (await reader.readline()).startswith(b"INFO")
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: running.plane.stats.connections == 0)
        assert running.hooks.closed[0].closing == Closed.TLS_HANDSHAKE


async def some(reader: asyncio.StreamReader) -> bytes:
    """What comes next; the end is none."""
    data = await asyncio.wait_for(reader.read(65_536), 60)
    assert data, "the server has closed the connection"
    return data


async def test_a_broken_record_closes_one_connection(authority: Authority) -> None:
    async with served(authority) as running, TlsClient(running.port, client_context(authority)) as good:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        await reader.readline()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secured = client_context(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await some(reader))
        writer.write(outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
        assert not await _ends(reader)
        writer.close()
        await writer.wait_closed()
        await good.send(CONNECT + b"PING\r\n")
        await good.until(b"PONG\r\n")
        await eventually(lambda: running.plane.stats.connections == 1)


async def _ends(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(60):
            while await reader.read(65_536):
                pass
    except ConnectionError:
        pass
    return b""


async def test_the_time_to_authenticate_begins_after_the_handshake(authority: Authority) -> None:
    async with served(authority, auth_timeout_ms=150, users=(UserEntry("u", "p"),)) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        await reader.readline()
        await asyncio.sleep(0.4)
        await writer.start_tls(client_context(authority), server_hostname="localhost")
        assert await asyncio.wait_for(reader.read(), 60) == b"-ERR 'Authentication Timeout'\r\n"
        writer.close()
        await writer.wait_closed()


async def test_a_certificate_names_the_user(authority: Authority, person: Pair) -> None:
    users = UserEntry("ada@acme.example", publish_allow=("orders.>",)), UserEntry("bo", "secret")
    async with served(authority, verify=True, map=True, users=users, maps_certificates=True) as running:
        async with TlsClient(running.port, client_context(authority, person)) as client:
            await client.send(CONNECT + b"PUB orders.1 0\r\n\r\nPUB other 0\r\n\r\nPING\r\n")
            answer = await client.until(b"PONG\r\n")
            assert b"-ERR 'Permissions Violation for Publish to \"other\"'\r\n" in answer
            assert only_session(running).user == "ada@acme.example"
        stranger = authority.client("eve", x509.RFC822Name("eve@acme.example"))
        async with TlsClient(running.port, client_context(authority, stranger)) as client:
            await client.send(CONNECT)
            assert b"-ERR 'Authorization Violation'\r\n" in await client.until_closed()


# -- the oracle --------------------------------------------------------------------------------------------------------

RULES = {
    "plain greeting": ({}, ""),
    "certificates": ({"verify": True}, "verify: true"),
    "first": ({"first": True}, "handshake_first: true"),
    "either": ({"allow_non_tls": True}, ""),
    "first, or a greeting": ({"first": True, "first_fallback_ms": 100}, 'handshake_first: "100ms"'),
    "first, or either": (
        {"first": True, "first_fallback_ms": 100, "allow_non_tls": True},
        'handshake_first: "100ms"',
    ),
}


@pytest.mark.parametrize("name", list(RULES))
async def test_nats_server_does_the_same(authority: Authority, person: Pair, name: str) -> None:
    rules, line = RULES[name]
    pair = authority.server
    more = "allow_non_tls: true" if "allow_non_tls" in rules else ""
    files = f'cert_file: "{pair.cert}"\nkey_file: "{pair.key}"\nca_file: "{authority.cert}"'
    file = f"tls {{\n{files}\ntimeout: 0.3\n{line}\n}}\n{more}"
    async with served(authority, timeout_ms=300, **rules) as running:
        with nats_server(file) as port:
            for _ in range(5):  # a machine that does not get to it for 0.3 s lets a handshake end on either side
                seen, expected = [await _tours(each, authority, person, rules) for each in (running.port, port)]
                if seen == expected:
                    break
    assert seen == expected


async def _tours(port: int, authority: Authority, person: Pair, rules: dict[str, Any]) -> list[object]:
    """With a fallback there are clients that begin with the handshake, and others that wait for the greeting."""
    ways = [True, False] if "first_fallback_ms" in rules else ["first" in rules]
    return [seen for first in ways for seen in await _tour(port, authority, person, first=first)]


async def _tour(port: int, authority: Authority, person: Pair, *, first: bool) -> list[object]:
    """What clients of all kinds see: the greeting, what follows it, and whether they are closed."""
    seen: list[object] = []
    for sent in (b"", CONNECT + b"PING\r\n", b"\x16\x03\x01\x02\x00\x01\xfc"):  # the last begins a ClientHello
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        greeting = b"" if first else await reader.readline()
        writer.write(sent)
        rest = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.7):
                while more := await reader.read(4_096):
                    rest += more
        seen.append((_tls_fields(greeting), re.sub(rb"INFO .*?\r\n", b"INFO\r\n", rest), reader.at_eof()))
        writer.close()
        await writer.wait_closed()
    for pair in (person, None):
        try:
            async with TlsClient(port, client_context(authority, pair), first=first) as client:
                await client.send(CONNECT + b"PING\r\n")
                answer = await client.until(b"PONG\r\n")
                seen.append((answer[:6], {key: client.info[key] for key in client.info if key.startswith("tls")}))
        except (ssl.SSLError, ConnectionError, AssertionError) as error:
            seen.append(getattr(error, "reason", type(error).__name__))
    return seen


def _tls_fields(line: bytes) -> dict[str, object]:
    info = json.loads(line[5:] or b"{}")
    return {key: value for key, value in info.items() if key.startswith("tls")}


# -- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_much_goes_through_both_ways_on_both_loops(
    authority: Authority, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def tour() -> None:
        async with (
            served(authority) as running,
            TlsClient(running.port, client_context(authority)) as subscriber,
            TlsClient(running.port, client_context(authority)) as publisher,
        ):
            await subscriber.send(CONNECT + b"SUB a 1\r\nPING\r\n")
            await subscriber.until(b"PONG\r\n")
            payloads = [bytes([number]) * size for number, size in enumerate((0, 1, 16_383, 16_384, 900_000))]
            sent = b"".join(b"PUB a %d\r\n%b\r\n" % (len(payload), payload) for payload in payloads)
            await publisher.send(CONNECT + sent * 3 + b"PUB a 3\r\nend\r\n")
            got = await subscriber.until(b"\r\nend\r\n", 60)
            expected = b"".join(b"MSG a 1 %d\r\n%b\r\n" % (len(payload), payload) for payload in payloads)
            assert got == expected * 3 + b"MSG a 1 3\r\nend\r\n"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(tour())


async def test_one_byte_at_a_time_is_enough(authority: Authority) -> None:
    async with served(authority, timeout_ms=60_000) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        await reader.readline()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secured = client_context(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")

        async def drip() -> None:
            for byte in outgoing.read():
                writer.write(bytes([byte]))
                await asyncio.sleep(0)

        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                await drip()
                incoming.write(await some(reader))
        secured.write(CONNECT + b"PING\r\n")
        await drip()
        plain = b""
        async with asyncio.timeout(60):
            while b"PONG\r\n" not in plain:
                incoming.write(await some(reader))
                try:
                    plain += secured.read(65_536)
                except ssl.SSLWantReadError:
                    continue
        writer.close()
        await writer.wait_closed()


async def test_a_slow_reader_is_cut_and_what_waits_is_bounded(authority: Authority) -> None:
    async with (
        served(authority, max_pending_bytes=1 << 20) as running,
        TlsClient(running.port, client_context(authority)) as slow,
        TlsClient(running.port, client_context(authority)) as fast,
    ):
        await slow.send(CONNECT + b"SUB a 1\r\nPING\r\n")
        await slow.until(b"PONG")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        session = next(iter(running.plane.sessions.values()))
        message = b"PUB a 65536\r\n" + b"x" * 65_536 + b"\r\n"
        async with asyncio.timeout(60):
            while session.closing is None:
                assert session.pending_bytes <= (1 << 20) + 2 * READ_BYTES
                await fast.send(message)
        assert session.closing == Closed.SLOW_PENDING
        await fast.send(CONNECT + b"PING\r\n")
        await fast.until(b"PONG")


async def test_last_words_and_a_goodbye_arrive(authority: Authority) -> None:
    async with served(authority) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as raw:
            said = await asyncio.to_thread(_talk_until_goodbye, raw, client_context(authority))
    assert said == b"-ERR 'Unknown Protocol Operation'\r\n"


def _talk_until_goodbye(raw: socket.socket, context: ssl.SSLContext) -> bytes:
    raw.recv(4_096)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # a connection that just ends is an error then
    with context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as secured:
        secured.sendall(b"NONSENSE\r\n")
        said = b""
        while data := secured.recv(4_096):
            said += data
        return said


async def test_a_client_that_says_goodbye_is_gone(authority: Authority) -> None:
    async with served(authority) as running:
        async with TlsClient(running.port, client_context(authority)) as client:
            await client.send(CONNECT + b"PUB a 4\r\nlast\r\n")
        await eventually(lambda: running.plane.stats.connections == 0)
        assert running.hooks.captured == [("a", "", b"", b"last")]
        assert running.hooks.closed[0].closing == Closed.CLIENT


# -- files ------------------------------------------------------------------------------------------------------------


def test_bad_files_are_named_with_what_would_be_right(authority: Authority, person: Pair, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no PEM")
    locked = tmp_path / "locked.pem"
    key = serialization.load_pem_private_key(person.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    missing = tmp_path / "missing.pem"
    for wrong, expected in (
        ({"cert": missing}, f"tls.clients.cert: {missing}: no such file or directory"),
        ({"cert": tmp_path}, f"tls.clients.cert: {tmp_path}: is a directory"),
        ({"cert": junk}, f"tls.clients.cert: {junk}: holds no certificate; expected PEM with BEGIN CERTIFICATE"),
        ({"ca": junk}, f"tls.clients.ca: {junk}: holds no certificate; expected PEM with BEGIN CERTIFICATE"),
        ({"key": person.cert}, f"tls.clients.key: {person.cert}: holds no private key"),
        ({"key": locked}, f"tls.clients.key: {locked}: the key is encrypted with a passphrase"),
        ({"key": person.key}, f"tls.clients.key: {person.key} is not the key of the first certificate in"),
    ):
        with pytest.raises(ConfigError) as failed:
            ClientTls(settings(authority, **{name: str(path) for name, path in wrong.items()}))
        (problem,) = failed.value.problems
        assert problem.startswith(expected)


def test_all_bad_files_are_named_at_once(authority: Authority, tmp_path: Path) -> None:
    wrong = {name: str(tmp_path / name) for name in ("cert", "key", "ca")}
    with pytest.raises(ConfigError) as failed:
        ClientTls(settings(authority, **wrong))
    assert len(failed.value.problems) == 3


# -- our own command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
async def test_the_command_line_publishes_with_a_certificate(authority: Authority, person: Pair, first: bool) -> None:
    async with served(authority, verify=True, first=first) as running:
        ran = await invoked(
            "pub", "--no-ack", "-s", f"tls://localhost:{running.port}", "--tlsca", str(authority.cert), "--tlscert",
            str(person.cert), "--tlskey", str(person.key), *(["--tlsfirst"] if first else []), "a", "hello",
        )  # fmt: skip
        assert ran.status == 0, ran.err
        await eventually(lambda: running.hooks.captured)
        assert running.hooks.captured[0][0] == "a"


async def test_the_command_line_refuses_a_server_that_it_cannot_trust(authority: Authority) -> None:
    async with served(authority) as running:
        ran = await invoked("pub", "-s", f"tls://localhost:{running.port}", "--timeout", "2s", "a", "hello")
    assert ran.status != 0
    assert "certificate" in ran.err.lower()
