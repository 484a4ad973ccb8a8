"""The client port over real sockets: nats-py as it is, and raw clients for what nats-py would never do."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import bcrypt
import nats
import pytest
import structlog
import uvloop
from blockbuster import blockbuster_ctx
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from support.gateway import Served, make_plane, serve
from support.natsraw import RawClient
from support.natsserver import nats_server
from support.processes import free_ports, settle

from gateway.core.identity import UserEntry, Verification
from gateway.core.session import Closed, Session
from gateway.shell.server import ClientServer, check_password
from protocol.limits import READ_BYTES

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'
FAST = {"connect_timeout": 60, "reconnect_time_wait": 0.02, "max_reconnect_attempts": -1}


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve() as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[NatsClient]:
    connected = await nats.connect(served.url, **FAST)
    yield connected
    await connected.close()


async def eventually(condition: Callable[[], Any], wait_s: float = 60.0) -> None:
    async with asyncio.timeout(wait_s):
        while not condition():  # noqa: ASYNC110  what is waited for is no event of ours
            await asyncio.sleep(0.005)


# -- nats-py ----------------------------------------------------------------------------------------------------------


async def test_publish_subscribe_wildcards_and_headers(client: NatsClient) -> None:
    subscription = await client.subscribe("orders.*.new")
    await client.publish("orders.7.new", b"one", headers={"A": "b", "C": "d"})
    await client.publish("orders.7.old", b"no")
    await client.publish("orders.8.new", b"")
    first, second = await subscription.next_msg(60), await subscription.next_msg(60)
    assert (first.subject, first.data, first.headers) == ("orders.7.new", b"one", {"A": "b", "C": "d"})
    assert (second.subject, second.data, second.headers) == ("orders.8.new", b"", None)
    assert subscription.pending_msgs == 0


async def test_a_queue_group_gets_each_message_once(served: Served, client: NatsClient) -> None:
    members = [await nats.connect(served.url) for _ in range(3)]
    got: list[bytes] = []

    async def take(message: Msg) -> None:
        got.append(message.data)

    for member in members:
        await member.subscribe("jobs", "workers", cb=take)
        await settle(member)
    for number in range(100):
        await client.publish("jobs", b"%d" % number)
    await eventually(lambda: len(got) >= 100)
    for member in members:
        await member.drain()
    assert sorted(map(int, got)) == list(range(100))


async def test_request_reply_and_no_responders(served: Served, client: NatsClient) -> None:
    service = await nats.connect(served.url)

    async def answer(message: Msg) -> None:
        await message.respond(message.data[::-1])

    await service.subscribe("reverse", cb=answer)
    await settle(service)
    answers = await asyncio.gather(*(client.request("reverse", b"%03d" % number, 60) for number in range(50)))
    assert [answer.data[::-1] for answer in answers] == [b"%03d" % number for number in range(50)]
    with pytest.raises(nats.errors.NoRespondersError):
        await client.request("nobody", b"", timeout=60)
    await service.close()


async def test_maximum_flush_and_drain(served: Served, client: NatsClient) -> None:
    limited = await client.subscribe("a")
    await limited.unsubscribe(limit=2)
    got: list[Msg] = []

    async def take(message: Msg) -> None:
        await asyncio.sleep(0)
        got.append(message)

    other = await nats.connect(served.url)
    await other.subscribe("a", cb=take)
    await settle(other)
    for number in range(200):
        await client.publish("a", b"%d" % number)
    await settle(client)
    await other.drain()
    assert [int(message.data) for message in got] == list(range(200))
    assert [(await limited.next_msg(60)).data for _ in range(2)] == [b"0", b"1"]
    with pytest.raises(nats.errors.Error):
        await limited.next_msg(timeout=0.05)


async def test_large_and_too_large_payloads(served: Served, client: NatsClient) -> None:
    subscription = await client.subscribe("big")
    payload = bytes(range(256)) * 4096
    await client.publish("big", payload)
    assert (await subscription.next_msg(60)).data == payload
    with pytest.raises(nats.errors.MaxPayloadError):
        await client.publish("big", payload + b"!")


async def test_credentials_and_permissions() -> None:
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    users = (
        UserEntry("shop", hashed, publish_allow=("orders.>",), subscribe_allow=("_INBOX.>",)),
        UserEntry(token="tok"),
    )
    problems: list[Exception] = []

    async def remember(error: Exception) -> None:
        problems.append(error)

    async with serve(users=users) as served:
        shop = await nats.connect(served.url, user="shop", password="secret", error_cb=remember)
        await shop.publish("other", b"")
        await shop.subscribe("orders.new")
        await settle(shop)
        assert 'permissions violation for publish to "other"' in str(problems[0]).lower()
        assert 'permissions violation for subscription to "orders.new"' in str(problems[1]).lower()
        await shop.close()
        await (await nats.connect(served.url, token="tok")).close()
        for wrong in ({}, {"user": "shop", "password": "x"}, {"token": "shop"}):
            stranger = NatsClient()
            with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
                await stranger.connect(served.url, **wrong, allow_reconnect=False, error_cb=remember)
            await stranger.close()


async def test_a_client_reconnects_when_the_server_comes_back() -> None:
    (port,) = free_ports(1)
    async with serve(port=port) as first:
        client = await nats.connect(first.url, **FAST)
        subscription = await client.subscribe("a")
        await settle(client)
    await eventually(lambda: client.is_reconnecting)
    async with serve(port=port):
        await eventually(lambda: client.is_connected)
        await client.publish("a", b"back")
        assert (await subscription.next_msg(timeout=60)).data == b"back"
        await client.close()


# -- raw --------------------------------------------------------------------------------------------------------------


async def test_info_tells_where_and_who(served: Served) -> None:
    async with RawClient(served.port) as client:
        info = client.info
    assert (info["port"], info["host"], info["headers"], info["proto"]) == (served.port, "127.0.0.1", True, 1)
    assert (info["client_id"], info["client_ip"], info["server_name"]) == (1, "127.0.0.1", "test")
    assert "auth_required" not in info


async def test_one_clients_mistakes_do_not_touch_another(served: Served, client: NatsClient) -> None:
    subscription = await client.subscribe(">")
    await settle(client)
    for mistake in (
        b"NONSENSE\r\n",
        b"PUB a 99999999\r\n",
        b"PUB a 2\r\nxxxx",
        b"\x00\xff" * 500,
        b"SUB " + b"a" * 9000,
    ):
        async with RawClient(served.port) as bad:
            await bad.send(mistake)
            assert (await bad.until_closed()).startswith(b"-ERR '")
    async with RawClient(served.port) as rude:
        await rude.send(CONNECT + b"PUB a 5\r\nhel")
    await client.publish("fine", b"")
    assert (await subscription.next_msg(timeout=60)).subject == "fine"
    await eventually(lambda: served.plane.stats.connections == 1)


async def test_what_was_sent_before_the_end_is_still_acted_on(served: Served, client: NatsClient) -> None:
    subscription = await client.subscribe("a")
    await settle(client)
    async with RawClient(served.port) as quick:
        await quick.send(CONNECT + b"PUB a 4\r\nlast\r\n")
    assert (await subscription.next_msg(timeout=60)).data == b"last"


async def test_a_reader_that_does_not_read_is_cut_and_others_go_on() -> None:
    async with (
        serve(max_pending_bytes=1 << 20) as served,
        RawClient(served.port) as slow,
        RawClient(served.port) as fast,
    ):
        await slow.send(CONNECT + b"SUB a 1\r\nPING\r\n")
        await slow.until(b"PONG")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        session = next(iter(served.plane.sessions.values()))
        message = b"PUB a 65536\r\n" + b"x" * 65_536 + b"\r\n"
        async with asyncio.timeout(60):
            while session.closing is None:
                await fast.send(message)
        assert session.closing == Closed.SLOW_PENDING
        await fast.send(b"PING\r\n")
        await fast.until(b"PONG")
        stats = served.plane.stats
        assert (stats.slow_consumers, stats.connections, stats.subscriptions) == (1, 1, 0)
        assert stats.stalled_clients > 0


def test_a_client_that_sends_without_end_leaves_others_their_turn() -> None:
    """On the loop of production, which reads on for as long as there is something to read."""
    turns: list[int] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_count_turns_of_big_reads(turns))
    assert len(turns) > 10
    assert len(set(turns)) == len(turns)


async def _count_turns_of_big_reads(turns: list[int]) -> None:
    """In which turns of the loop something big was read from a client that sends 8 MB as fast as it can."""
    loop, turn = asyncio.get_running_loop(), 0

    def count() -> None:
        nonlocal turn, counting
        turn += 1
        counting = loop.call_later(0.001, count)

    counting = loop.call_soon(count)
    async with serve() as served:
        receive = served.plane.receive

        def slowly(session: Session, data: bytes, now_ms: int) -> bool:
            has_more = receive(session, data, now_ms)
            if has_more or len(data) >= READ_BYTES:
                turns.append(turn)
                time.sleep(0.01)  # the client is faster
            return has_more

        served.plane.receive = slowly  # type: ignore[method-assign]
        message = b"PUB a 1000\r\n%b\r\n" % bytes(1000)
        await asyncio.to_thread(_send_all, served.port, CONNECT + message * 8_000)
        assert served.plane.stats.in_msgs == 8_000
    counting.cancel()


def _send_all(port: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client, client.makefile("rb") as answers:
        client.sendall(data + b"PING\r\n")
        while answers.readline() != b"PONG\r\n":
            pass


async def test_the_write_deadline_cuts_a_socket_that_takes_nothing() -> None:
    async with serve(write_deadline_ms=150) as served, RawClient(served.port) as slow:
        slow.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await slow.send(CONNECT + b"SUB a 1\r\nPING\r\n")
        await slow.until(b"PONG")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        session = next(iter(served.plane.sessions.values()))
        for _ in range(160):
            served.plane.publish("a", "", b"", b"x" * 65_536)
        served.server.flush()
        assert session.pending_bytes > 0
        await eventually(lambda: session.closing is not None)
        assert session.closing == Closed.SLOW_DEADLINE
        await eventually(lambda: served.plane.stats.connections == 0)
        assert served.plane.stats.slow_consumers == 1


async def test_a_pause_reaches_the_socket_and_is_undone(served: Served, client: NatsClient) -> None:
    async with RawClient(served.port) as publisher:
        await publisher.send(CONNECT + b"PING\r\n")
        await publisher.until(b"PONG")
        session = list(served.plane.sessions.values())[-1]
        served.plane.pause(session)
        served.server.flush()
        await publisher.send(b"PUB a 1\r\nx\r\nPING\r\n")
        assert await publisher.until_quiet(0.1) == b""
        assert served.hooks.captured == []
        served.plane.resume(session)
        served.server.flush()
        await publisher.until(b"PONG")
        assert served.hooks.captured == [("a", "", b"", b"x")]


async def test_timers_run() -> None:
    async with serve(auth_timeout_ms=100, users=(UserEntry("u", "p"),)) as served, RawClient(served.port) as silent:
        assert await silent.until_closed() == b"-ERR 'Authentication Timeout'\r\n"


async def test_a_slow_password_does_not_hold_up_others(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def slowly(verification: Verification) -> UserEntry | None:
        assert may_end.wait(60)
        return check_password(verification)

    monkeypatch.setattr("gateway.shell.server.check_password", slowly)
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    users = (UserEntry("slow", hashed), UserEntry("fast", "p"))
    async with serve(users=users) as served, RawClient(served.port) as slow, RawClient(served.port) as fast:
        session = served.plane.sessions[1]
        await slow.send(b'CONNECT {"user":"slow","pass":"secret","verbose":false}\r\nPING\r\n')
        await eventually(lambda: session.verifying is not None)
        await fast.send(b'CONNECT {"user":"fast","pass":"p","verbose":false}\r\nPING\r\n')
        await fast.until(b"PONG")
        assert session.verifying is not None
        may_end.set()
        await slow.until(b"PONG")


async def test_stop_sends_what_waits_then_closes() -> None:
    async with serve() as served, RawClient(served.port) as client:
        await client.send(CONNECT + b"SUB a 1\r\nPING\r\n")
        await client.until(b"PONG")
        served.server.stop_reading()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", served.port)
        await client.send(b"PING\r\n")
        served.plane.publish("a", "", b"", b"bye")
        await served.server.stop()
        assert await client.until_closed() == b"MSG a 1 3\r\nbye\r\n"


async def test_stop_aborts_what_does_not_go_out_in_time() -> None:
    async with serve() as served, RawClient(served.port) as client:
        await client.send(CONNECT + b"SUB a 1\r\nPING\r\n")
        await client.until(b"PONG")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(200):
            served.plane.publish("a", "", b"", b"x" * 65_536)
        async with asyncio.timeout(60):
            await served.server.stop(grace_ms=50)
        assert served.plane.stats.connections == 0


async def test_last_words_arrive_though_the_client_goes_on_sending(served: Served) -> None:
    async with RawClient(served.port) as client:
        await client.send(b"NONSENSE\r\n" + b"x" * 1_000_000)
        assert await client.until_closed() == b"-ERR 'Unknown Protocol Operation'\r\n"


async def test_an_address_in_use_is_an_error(served: Served) -> None:
    second = ClientServer(served.plane, host="127.0.0.1", port=served.port, now_ms=lambda: 0)
    with pytest.raises(OSError, match="in use"):
        await second.start()
    await second.stop()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_it_runs_on_both_loops_and_blocks_neither(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def tour() -> None:
        async with serve() as served, RawClient(served.port) as client:
            await client.send(CONNECT + b"SUB a 1\r\nPUB a 2\r\nhi\r\nPING\r\n")
            assert b"MSG a 1 2\r\nhi\r\n" in await client.until(b"PONG")

    with blockbuster_ctx(), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(tour())


# -- logs and passwords -----------------------------------------------------------------------------------------------


async def test_logs_name_the_connection_and_the_reason() -> None:
    with structlog.testing.capture_logs() as logs:
        async with serve(users=(UserEntry("u", "p"),)) as served, RawClient(served.port) as client:
            await client.send(b'CONNECT {"user":"u","pass":"wrong","name":"me"}\r\n')
            await client.until_closed()
            await eventually(lambda: served.plane.stats.connections == 0)
    opened, failed = logs
    assert (opened["event"], opened["log_level"], opened["connection"]) == ("connection_opened", "debug", 1)
    assert (failed["event"], failed["log_level"]) == ("authentication_failed", "warning")
    assert (failed["user"], failed["name"], failed["reason"]) == ("u", "me", "Authentication Failure")
    assert "wrong" not in str(logs)


def test_check_password() -> None:
    entry, other = UserEntry("u"), UserEntry("v")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    candidates = ((bcrypt.hashpw(b"other", bcrypt.gensalt(4)).decode(), other), (hashed, entry))
    assert check_password(Verification("secret", candidates)) is entry
    assert check_password(Verification("wrong", candidates)) is None
    for refused in ("s" * 73, "sec\0ret", "\ud800" * 20):
        assert check_password(Verification(refused, candidates)) is None
    assert check_password(Verification("secret", (("$2b$99$unusable", other), (hashed, entry)))) is entry


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_every_address_of_the_machine_is_listened_on_as_in_nats_server(host: str) -> None:
    """Go, and so nats-server, listens on both families for either; here beside the real one."""
    server = ClientServer(make_plane(), host=host, port=0, now_ms=lambda: time.monotonic_ns() // 1_000_000)
    _, port = await server.start()
    try:
        async with nats_server("-a", host) as oracle:
            for where in ("127.0.0.1", "::1"):
                greetings = [await _greeting(where, each) for each in (oracle.port, port)]
                assert [json.loads(greeting[5:])["client_ip"] for greeting in greetings] == [where, where]
    finally:
        await server.stop()

    for where in ("127.0.0.1", "::1"):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(where, port)


async def _greeting(host: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    line = await asyncio.wait_for(reader.readline(), 60)
    writer.close()
    await writer.wait_closed()
    return line
