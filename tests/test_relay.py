"""The wire that tests put between processes (`support.proxy`): what it does is what a test then relies on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from support.processes import free_ports, until
from support.proxy import Wire

DELAY_S = 0.15


@contextlib.asynccontextmanager
async def ends_of(**options: float) -> AsyncIterator[tuple[Wire, "Ends"]]:
    """A wire, and a connection through it."""
    port, to_port = free_ports(2)
    arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *end: arrived.put_nowait(end), "127.0.0.1", to_port)
    async with Wire(port, to_port, **options) as wire:
        here = await asyncio.open_connection("127.0.0.1", port)
        there = await arrived.get()
        yield wire, (here, there)
        while not arrived.empty():
            there[1].transport.abort()
            there = await arrived.get()
        for _, writer in (here, there):
            writer.transport.abort()
    server.close()


Ends = tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter], tuple[asyncio.StreamReader, asyncio.StreamWriter]]


async def test_it_passes_all_that_was_sent_before_the_end() -> None:
    async with ends_of(delay_s=0.01) as (wire, (here, there)):
        data = bytes(range(256)) * 4_000
        here[1].write(data)
        here[1].write_eof()
        assert await there[0].read() == data
        assert wire.passed_bytes == len(data)


async def test_a_delay_holds_for_each_byte() -> None:
    async with ends_of(delay_s=DELAY_S) as (_, (here, there)):
        clock = asyncio.get_running_loop().time
        began_s = clock()
        for _ in range(20):
            here[1].write(b"x")
            await asyncio.sleep(0.01)
        await there[0].readexactly(20)
        assert clock() - began_s >= 0.19 + DELAY_S  # the last one was sent no earlier


async def test_a_bandwidth_is_not_exceeded() -> None:
    async with ends_of(bytes_per_s=400_000) as (_, (here, there)):
        clock = asyncio.get_running_loop().time
        began_s = clock()
        here[1].write(bytes(200_000))
        await there[0].readexactly(200_000)
        assert clock() - began_s >= (200_000 - 65_536) / 400_000  # the last piece is paid for afterwards


@pytest.mark.parametrize("answers_only", [False, True])
async def test_what_is_held_comes_in_order_when_it_is_let_go(answers_only: bool) -> None:
    async with ends_of() as (wire, (here, there)):
        wire.hold(answers_only=answers_only)
        here[1].write(b"to")
        there[1].write(b"back")
        if answers_only:
            assert await there[0].readexactly(2) == b"to"
        await asyncio.sleep(0.05)
        assert wire.passed_bytes == (2 if answers_only else 0)
        wire.let_go()
        there[1].write(b"!")
        assert await here[0].readexactly(5) == b"back!"


async def test_a_cut_ends_connections_and_takes_new_ones() -> None:
    async with ends_of() as (wire, (here, there)):
        wire.cut()
        for reader, _ in (here, there):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        _, writer = await asyncio.open_connection(*wire.address)
        writer.write(b"again")
        await until(lambda: wire.passed_bytes == 5, "it passes on what comes anew")
        writer.transport.abort()
