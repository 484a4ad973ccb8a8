"""Lame duck mode: who is told, who is closed when, and that a process ends by itself when nobody is left."""

import asyncio
import json
import signal
import time
from pathlib import Path

import nats
import pytest
from support.gateway import Served, serve
from support.natsraw import RawClient
from support.processes import folder_at, until

from gateway.core.session import Closed
from gateway.shell.lame_duck import retire

KNOWS_INFO = b'CONNECT {"verbose":false,"protocol":1}\r\nPING\r\n'
KNOWS_NOTHING = b'CONNECT {"verbose":false}\r\nPING\r\n'
LIMITS = '[limits]\nlame_duck_duration = "300s"\nlame_duck_grace_period = "100s"'


async def retiring(served: Served, *, duration_ms: int = 400, grace_period_ms: int = 200) -> None:
    await retire(
        served.server, duration_ms=duration_ms, grace_period_ms=grace_period_ms, choose=lambda least, most: most
    )


async def greeted(client: RawClient, connect: bytes) -> None:
    await client.send(connect)
    answer = await client.until(b"PONG\r\n")
    if connect is KNOWS_INFO and b"INFO" not in answer:
        await client.until(b"connect_info")


async def test_clients_are_told_if_they_understand_it_and_served_until_they_are_closed() -> None:
    async with serve() as served, RawClient(served.port) as modern, RawClient(served.port) as old:
        await greeted(modern, KNOWS_INFO)
        await greeted(old, KNOWS_NOTHING)
        task = asyncio.ensure_future(retiring(served, grace_period_ms=2_000))
        told = await modern.until(b"\r\n")
        assert told.startswith(b"INFO ")
        info = json.loads(told[5:])
        assert (info["ldm"], info["client_id"], "connect_info" in info) == (True, 1, False)
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", served.port)
        await old.send(b"SUB a 1\r\nPING\r\n")
        await old.until(b"PONG\r\n")
        await modern.send(b"PUB a 2\r\nhi\r\n")
        assert await old.until(b"hi\r\n") == b"MSG a 1 2\r\nhi\r\n"
        assert (await modern.until_closed(), await old.until_closed()) == (b"", b"")
        await task
        await until(lambda: len(served.hooks.closed) == 2, "both are gone")
        assert {session.closing for session in served.hooks.closed} == {Closed.SHUTDOWN}


async def test_clients_are_closed_one_by_one_after_the_grace_period() -> None:
    async with serve() as served:
        clients = [RawClient(served.port) for _ in range(4)]
        for client in clients:
            await client.__aenter__()
        task, begun = asyncio.ensure_future(retiring(served, duration_ms=600)), time.monotonic()
        closed_after = []
        for client in clients:
            await client.until_closed()
            closed_after.append(time.monotonic() - begun)
            await client.__aexit__()
        await task
        assert closed_after[0] >= 0.2
        assert closed_after[3] >= closed_after[0] + 0.25


async def test_it_is_over_when_the_clients_have_gone_by_themselves() -> None:
    async with serve() as served:
        async with asyncio.timeout(60):
            await retiring(served, duration_ms=60_000, grace_period_ms=60_000)
    async with serve() as served, RawClient(served.port) as client:
        await greeted(client, KNOWS_INFO)
        task = asyncio.ensure_future(retiring(served, duration_ms=60_000, grace_period_ms=60_000))
        await client.until(b'"ldm":true')
        client.writer.close()
        async with asyncio.timeout(60):
            await task


async def test_nats_py_hears_of_other_servers_and_goes_there() -> None:
    async with serve() as leaving, serve() as staying:
        client = await nats.connect(leaving.url, reconnect_time_wait=0.02)
        await client.flush()
        leaving.plane.set_connect_urls((f"127.0.0.1:{staying.port}",))
        leaving.server.flush()
        await until(lambda: len(client.discovered_servers) == 1, "it has heard of the other")
        await retiring(leaving, duration_ms=10, grace_period_ms=10)
        await until(lambda: staying.plane.stats.connections == 1, "it has gone there")
        await client.close()


async def test_other_servers_are_named_to_those_that_come_later() -> None:
    async with serve() as served:
        served.plane.set_connect_urls(("one:4222", "two:4222"))
        async with RawClient(served.port) as client:
            assert client.info["connect_urls"] == ["one:4222", "two:4222"]
        served.plane.set_connect_urls(())
        async with RawClient(served.port) as client:
            assert "connect_urls" not in client.info


async def test_a_process_retires_at_sigusr2(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        folder.write_config(LIMITS, mesh='name = "acme"\nmode = "delivery-fabric"')
        gateway = await folder.gateway()
        async with RawClient(folder.client_port) as client:
            await greeted(client, KNOWS_INFO)
            gateway.send(signal.SIGUSR2)
            await client.until(b'"ldm":true')
            gateway.send(signal.SIGUSR2)  # once is enough
            await client.send(b"PING\r\n")
            await client.until(b"PONG\r\n")
            assert not gateway.has_ended
        assert await gateway.ended() == 0


async def test_a_process_that_retires_still_ends_at_sigterm(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        folder.write_config(LIMITS, mesh='name = "acme"\nmode = "delivery-fabric"')
        gateway = await folder.gateway()
        async with RawClient(folder.client_port) as client:
            await greeted(client, KNOWS_INFO)
            gateway.send(signal.SIGUSR2)
            await client.until(b'"ldm":true')
            assert await gateway.stop() == 0
            assert await client.until_closed() == b""
