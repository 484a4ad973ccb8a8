"""Ports that close while somebody dials: whoever was accepted is let go, at whichever turn of the loop that was."""

import asyncio
import gc
import socket
import ssl
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.certificates import Authority
from support.secured import SecuredZone
from support.sinks import SinkZone

from mesh import tls_port
from protocol.config import Address
from sinkd.shell.raft_links import NodeTls, RaftPort

TURNS = range(-4, 8)  # of the loop, from the beginning of the end on
Loop = Callable[[], asyncio.AbstractEventLoop]


def run(loop: Loop, scenario: Awaitable[None]) -> None:
    """As a process would; nothing that is forgotten escapes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(scenario)
        gc.collect()
    assert [str(one.message) for one in caught if one.category is ResourceWarning] == []


def dialled(address: tuple[Any, ...]) -> socket.socket | None:
    """None: nobody listens there any more."""
    try:
        client = socket.create_connection(address[:2], timeout=60)
    except ConnectionError:
        return None
    client.setblocking(False)
    return client


async def is_let_go(client: socket.socket | None) -> bool:
    """It hears the end of the connection, which the loop that goes on has made."""
    if client is None:
        return False
    with client:
        async with asyncio.timeout(60):
            try:
                while await asyncio.get_running_loop().sock_recv(client, 4096):
                    pass
            except ConnectionError:
                pass
    return True


async def dialled_while(closing: Awaitable[None], address: tuple[Any, ...], turns: int) -> bool:
    """Whether somebody was there to be let go, who had dialled so many turns after the closing began, or before it."""
    client = dialled(address) if turns < 0 else None
    for _ in range(-turns):
        await asyncio.sleep(0)
    task = asyncio.ensure_future(closing)
    for _ in range(turns):
        await asyncio.sleep(0)
    client = client or dialled(address)
    await task
    return await is_let_go(client)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("is_secured", [False, True], ids=["plain", "tls"])
def test_a_port_for_sinks_closes_what_it_accepts_meanwhile(tmp_path: Path, loop: Loop, is_secured: bool) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server.cert, authority.server.key)
    tls = NodeTls(context, context, str, str, tls_port.listen) if is_secured else None

    async def close_at_each_turn() -> None:
        met = 0
        for turns in TURNS:
            port = RaftPort(tls, lambda host, why: None, lambda host, what, why: None)
            await port.start(Address("127.0.0.1", 0))
            assert port._server is not None
            address = port._server.sockets[0].getsockname()
            met += await dialled_while(port.close(), address, turns)
            assert port.connections == set()
        assert met > 1

    run(loop, close_at_each_turn())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", [SinkZone, SecuredZone])
def test_a_sink_that_stops_closes_what_it_accepts_meanwhile(tmp_path: Path, loop: Loop, kind: type[SinkZone]) -> None:
    zone = kind(tmp_path, count=1)

    async def stop_at_each_turn() -> None:
        met = 0
        for turns in TURNS:
            await zone.start("s1")
            sink = zone.sinks["s1"]
            assert sink.listening is not None
            met += await dialled_while(zone.stop("s1"), sink.listening, turns)
            assert sink.links.connections == set()
        assert met > 0

    run(loop, stop_at_each_turn())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_handshake_under_way_ends_with_its_port(tmp_path: Path, loop: Loop) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server.cert, authority.server.key)

    async def close_within() -> None:
        failed = []
        port = await tls_port.listen(
            asyncio.Protocol, Address("127.0.0.1", 0), context, lambda *why: failed.append(why)
        )
        client = dialled(port.sockets[0].getsockname())
        while not port._securing:  # noqa: ASYNC110  it has been accepted
            await asyncio.sleep(0)
        port.close()
        assert await is_let_go(client)
        assert (failed, port._securing) == ([], set())

    run(loop, close_within())
