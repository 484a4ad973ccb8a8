"""`mesh.connection`: what nats-py would drop is kept, and failing to connect is one sentence."""

import asyncio
import socket
from pathlib import Path

import nkeys
import pytest
from support.natsserver import NatsServer, free_port, nats_server
from support.processes import settle, until

from mesh.connection import ConnectError, HeaderPairs, Headers, connect, without_secrets
from mesh.log_reader import header_lists
from mesh.settings import ClientSettings


async def test_headers_keep_every_value_and_their_bytes() -> None:
    async with nats_server() as server:
        connection = await connect(ClientSettings(server=server.url))
        subscription = await connection.subscribe("a")
        await connection.publish("a", b"x", headers=HeaderPairs([("Tag", "one"), ("Other", "ü"), ("Tag", "two")]))
        message = await subscription.next_msg(timeout=60)
        await connection.close()
    assert isinstance(message.headers, Headers)
    assert message.headers.block == "NATS/1.0\r\nTag: one\r\nOther: ü\r\nTag: two\r\n\r\n".encode()
    assert header_lists(message) == {"Tag": ["one", "two"], "Other": ["ü"]}


async def test_a_subject_that_is_not_utf8_does_not_end_the_connection() -> None:
    async with nats_server() as server:
        connection = await connect(ClientSettings(server=server.url))
        subscription = await connection.subscribe("a.>")
        await settle(connection)
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"CONNECT {}\r\nPUB a.\xff 1\r\nx\r\nPUB a.b 1\r\ny\r\n")
        await writer.drain()
        received = [await subscription.next_msg(timeout=60) for _ in range(2)]
        writer.close()
        await writer.wait_closed()
        await connection.close()
    assert [message.subject for message in received] == ["a.\udcff", "a.b"]


async def test_nobody_listens() -> None:
    url = f"nats://u:secret@127.0.0.1:{free_port()}"
    with pytest.raises(ConnectError) as caught:
        await connect(ClientSettings(server=url))
    assert "connection refused; is `mesh up` running? (--server, NATS_URL)" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = ClientSettings(server=f"127.0.0.1:{silent.getsockname()[1]}", timeout_ms=100)
        with pytest.raises(ConnectError, match="no answer in time"):
            await connect(settings)


async def test_a_handshake_with_a_server_without_tls_ends_in_time() -> None:
    async with nats_server() as server:
        settings = ClientSettings(server=server.url, tls_first=True, timeout_ms=2_000)
        async with asyncio.timeout(60):
            with pytest.raises(ConnectError, match="TLS: "):
                await connect(settings)


async def test_a_handshake_that_is_never_answered_ends_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = ClientSettings(server=f"127.0.0.1:{silent.getsockname()[1]}", tls_first=True, timeout_ms=100)
        async with asyncio.timeout(60):
            with pytest.raises(ConnectError, match="no answer in time"):
                await connect(settings)


@pytest.mark.parametrize("server", ["http://u:secret@127.0.0.1:4222", "nats://127.0.0.1:4222,amqp://127.0.0.1"])
async def test_an_address_of_another_protocol_is_refused(server: str) -> None:
    with pytest.raises(
        ConnectError, match=r"(http|amqp):// is no address of NATS clients; write nats://, tls://"
    ) as caught:
        await connect(ClientSettings(server=server))
    assert "secret" not in str(caught.value)


async def test_the_next_server_is_tried() -> None:
    async with nats_server() as server:
        both = f"nats://127.0.0.1:{free_port()}, {server.url}"
        connection = await connect(ClientSettings(server=both))
        assert connection.is_connected
        await connection.close()


async def test_wrong_and_right_password_and_a_user_alone_as_token() -> None:
    async with nats_server("--user", "u", "--pass", "p") as server:
        with pytest.raises(ConnectError, match=r"Authorization Violation.*--user"):
            await connect(ClientSettings(server=server.url, user="u", password="wrong"))
        connection = await connect(ClientSettings(server=server.url, user="u", password="p"))
        await connection.close()
    async with nats_server("--auth", "t0ken") as server:
        connection = await connect(ClientSettings(server=server.url, user="t0ken"))
        await connection.close()


async def test_nkey_from_a_file(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    (tmp_path / "seed").write_bytes(seed)
    (tmp_path / "server.conf").write_text(f"authorization {{ users = [ {{ nkey: {public} }} ] }}")
    async with nats_server("-c", str(tmp_path / "server.conf")) as server:
        connection = await connect(ClientSettings(server=server.url, nkey=str(tmp_path / "seed")))
        assert connection.is_connected
        await connection.close()


@pytest.mark.parametrize("option", ["creds", "nkey", "tls_ca"])
async def test_a_file_of_no_use_is_refused(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("nothing of the kind")
    async with nats_server() as server:
        settings = ClientSettings(server=server.url, **{option: str(tmp_path / "file")})  # type: ignore[arg-type]
        with pytest.raises(ConnectError):
            await connect(settings)


@pytest.mark.parametrize("option", ["creds", "nkey", "tls_ca"])
async def test_a_file_that_is_not_there_is_named(option: str, tmp_path: Path) -> None:
    async with nats_server() as server:
        settings = ClientSettings(server=server.url, **{option: str(tmp_path / "missing")})  # type: ignore[arg-type]
        with pytest.raises(ConnectError, match="No such file"):
            await connect(settings)


async def test_losing_and_finding_the_connection_is_told() -> None:
    told: list[str] = []
    server = NatsServer()
    await server.start()
    connection = await connect(ClientSettings(server=server.url), notice=told.append)
    await server.stop()
    await server.start()
    await until(lambda: "connected again" in told, "it is told")
    await connection.close()
    await server.stop()
    assert told == ["the connection was lost; connecting again", "connected again"]


def test_without_secrets() -> None:
    assert without_secrets("nats://u:p@host:1") == "nats://host:1"
    assert without_secrets(" host:1") == "nats://host:1"
