"""Clients that behave badly, many at a time, while others want to be served: these are, and nothing is left behind."""

import asyncio
import contextlib
import gc
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority
from support.gateway import Served, serve
from support.natsraw import RawClient

from gateway.core.session import Closed
from gateway.shell.tls import ClientTls
from protocol.config import TlsClients

CONNECT = b'CONNECT {"verbose":false}\r\n'
ROUND_TRIP_S_MAX = 10.0
RESET = struct.pack("ii", 1, 0)


async def eventually(condition: Callable[[], Any], wait_s: float = 60.0) -> None:
    async with asyncio.timeout(wait_s):
        while not condition():  # noqa: ASYNC110  what is waited for is no event of ours
            await asyncio.sleep(0.005)


async def round_trip_s(client: RawClient) -> float:
    begun = time.monotonic()
    await client.send(b"PING\r\n")
    await client.until(b"PONG\r\n")
    return time.monotonic() - begun


@contextlib.asynccontextmanager
async def good_client(served: Served) -> AsyncIterator[RawClient]:
    """Somebody who is owed an answer in time, all along."""
    async with RawClient(served.port) as client:
        await client.send(CONNECT)
        assert await round_trip_s(client) < ROUND_TRIP_S_MAX
        yield client
        assert await round_trip_s(client) < ROUND_TRIP_S_MAX


def leftovers(served: Served) -> tuple[int, ...]:
    """What a connection that has gone must not leave: in the plane, in the server, in the loop."""
    plane, server = served.plane, served.server
    counted = len(plane.sessions), plane.stats.connections, plane.stats.subscriptions, len(server.clients())
    return *counted, len(server._blocked), len(server._handshakes), len(asyncio.all_tasks())


async def test_a_thousand_come_and_go_under_load() -> None:
    async with serve() as served, good_client(served) as good:
        before = leftovers(served)
        load = asyncio.ensure_future(_publish(served.port))
        for turn in range(50):
            await asyncio.gather(*(_come_and_go(served.port, turn * 20 + number) for number in range(20)))
            assert await round_trip_s(good) < ROUND_TRIP_S_MAX
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        await eventually(lambda: leftovers(served) == before)
        assert served.plane.stats.total_connections == 1_002
        gc.collect()
        assert not [thing for thing in gc.get_objects() if type(thing).__name__ == "Connection"][1:]


async def _publish(port: int) -> None:
    async with RawClient(port) as client:
        await client.send(CONNECT)
        while True:
            await client.send(b"PUB load 100\r\n%b\r\n" % bytes(100) * 50)
            await asyncio.sleep(0)


async def _come_and_go(port: int, number: int) -> None:
    """One that is polite, one that is reset in the middle of a message, one that says nothing."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    if number % 3 == 0:
        writer.write(CONNECT + b"SUB load 1\r\nSUB other.* 2\r\nPING\r\n")
    elif number % 3 == 1:
        writer.write(CONNECT + b"SUB load 1\r\nPUB load 100\r\nhalf")
        await asyncio.sleep(0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_one_byte_at_a_time_holds_nobody_up() -> None:
    async with serve() as served, good_client(served) as good, RawClient(served.port) as drip:
        sent = CONNECT + b"SUB a 1\r\nPUB a 5\r\nhello\r\n"
        for number in range(len(sent)):
            await drip.send(sent[number : number + 1])
            if number % 10 == 0:
                assert await round_trip_s(good) < ROUND_TRIP_S_MAX
        assert await drip.until(b"hello\r\n") == b"MSG a 1 5\r\nhello\r\n"


async def test_who_falls_silent_is_noticed() -> None:
    async with serve(ping_interval_ms=100, ping_max=2) as served, RawClient(served.port, shows_pings=True) as silent:
        await silent.send(CONNECT + b"SUB a 1\r\n")
        assert (await silent.until_closed()).endswith(b"PING\r\nPING\r\n-ERR 'Stale Connection'\r\n")
        assert served.plane.stats.stale_connections == 1
        assert served.plane.stats.subscriptions == 0


async def test_slow_readers_cost_what_they_may_and_are_cut() -> None:
    limit = 1 << 20
    async with serve(max_pending_bytes=limit) as served, good_client(served), RawClient(served.port) as publisher:
        slow = [RawClient(served.port) for _ in range(10)]
        for client in slow:
            await client.__aenter__()
            await client.send(CONNECT + b"SUB flood 1\r\nPING\r\n")
            await client.until(b"PONG\r\n")
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await publisher.send(CONNECT)
        message = b"PUB flood 65536\r\n%b\r\n" % bytes(65_536)
        async with asyncio.timeout(60):
            while served.plane.stats.slow_consumers < 10:
                await publisher.send(message)
                pending = [session.pending_bytes for session in served.plane.sessions.values()]
                assert max(pending) <= limit + len(message)
        assert {session.closing for session in served.hooks.closed} <= {Closed.SLOW_PENDING}
        for client in slow:
            await client.__aexit__()
        await eventually(lambda: len(served.plane.sessions) == 2)


async def test_handshakes_that_never_end_are_ended_and_leave_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.server
    rules = TlsClients(
        cert=str(pair.cert), key=str(pair.key), ca=None, verify=False, first=False, map=False, timeout_ms=3_000,
        allow_non_tls=True, first_fallback_ms=0,
    )  # fmt: skip
    async with serve(tls=ClientTls(rules), tls_available=True) as served, good_client(served) as good:
        before = leftovers(served)
        writers = [(await asyncio.open_connection("127.0.0.1", served.port))[1] for _ in range(100)]
        for writer in writers:
            writer.write(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
        await eventually(lambda: len(served.plane.sessions) == 101)
        assert await round_trip_s(good) < ROUND_TRIP_S_MAX
        await eventually(lambda: leftovers(served) == before)
        assert {session.closing for session in served.hooks.closed} == {Closed.TLS_HANDSHAKE}
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize("live", [False, True])
async def test_history_may_be_taken_as_slowly_as_a_reader_likes(live: bool) -> None:
    """The write deadline is for live messages: where these are behind history, it begins when that is taken."""
    async with serve(write_deadline_ms=1_000) as served, RawClient(served.port) as reader:
        await reader.send(CONNECT + b"SUB inbox 1\r\nSUB live 2\r\nPING\r\n")
        await reader.until(b"PONG\r\n")
        reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (session,) = served.plane.sessions.values()
        for _ in range(400):  # more than the sockets between them hold
            served.plane.deliver(session, "inbox", "inbox", "", b"", bytes(65_536))
            served.server.flush_history(session)
        if live:
            for _ in range(400):
                served.plane.publish("live", "", b"", bytes(65_536))
            served.server.flush()
        await asyncio.sleep(2)
        assert session.closing is None
        reader.writer.transport.resume_reading()  # type: ignore[attr-defined]
        left_bytes = 400 * len(b"MSG inbox 1 65536\r\n\r\n" + bytes(65_536))
        async with asyncio.timeout(60):
            while left_bytes > 0:
                left_bytes -= len(await reader.reader.readexactly(min(left_bytes, 65_536)))
        if live:
            reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await eventually(lambda: session.closing is Closed.SLOW_DEADLINE)
        else:
            assert session.closing is None
