"""Two zones as programs, three gateways and two, each node as on a machine of its own; a relay of ours joins the zones.

The machines are network namespaces (`support.machines`), so cables can be pulled, and all links are under mutual TLS.
nats-py and clients of other languages run beside it. `support.machines_chaos` does the like for longer, and at random.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from support.audits import audited
from support.machines import (
    BACKLOG_BYTES,
    GATEWAYS,
    MESH,
    WAIT_S,
    Machines,
    Side,
    all_is_in_both,
    keep_backlog,
    publishing,
    running,
    until_events_cross,
)
from support.namespaces import NetworkRefused
from support.processes import client, until
from support.toolchains import ToolchainMissing, program

from mesh.node_tls import contexts, name_of
from protocol.routes import Hello, hello_line, rank

AFTERWARDS = 100
BACKLOG = 24
COPIED_MAX = 1.4  # times the backlog: with either kill forgetting what was held, it would be more
COPY_RATE = "400kB/s"
OTHER_CLIENTS = {"go": (), "js": ("transport-node",)}
TOUR = ("publish-subscribe", "headers", "queue-group-of-zone", "request-reply")


@pytest.fixture
async def zones(tmp_path: Path) -> AsyncIterator[Machines]:
    try:
        async with running(tmp_path, copy_rate=COPY_RATE, delay_s=0.01, bytes_per_s=10e6) as made:
            yield made
    except NetworkRefused as reason:
        pytest.skip(f"no network namespaces here: {reason}")


async def test_zones_outlive_kills_silence_and_cuts_and_lose_no_event(zones: Machines) -> None:
    """A gateway is killed under load while the cable of the one that it is linked with is pulled."""
    killed, stays, third = sorted(GATEWAYS["eu"], key=lambda name: rank("eu", "us", name))
    silent, speaks = sorted(GATEWAYS["us"], key=lambda name: rank("us", "eu", name))
    async with contextlib.AsyncExitStack() as opened:
        by_name = {name: await opened.enter_async_context(client(zones.url(name))) for name in (stays, third, speaks)}
        here, there = [await Side(by_name[name], name).subscribe() for name in (third, speaks)]
        await until_events_cross(here, there)
        await a_stranger_is_refused_and_audited(zones, by_name[speaks], by_name[third])
        await other_clients_meet(zones.url(third), zones.url(speaks))
        ways = {"eu": [killed, stays], "us": [speaks]}
        loads = {zone: await opened.enter_async_context(publishing(zones, way)) for zone, way in ways.items()}
        await keep_backlog(by_name[stays], loads["eu"], BACKLOG)
        zones.kill(killed)
        zones.unplug(silent)
        await sinks_are_killed_while_they_copy(zones)
        for load in loads.values():
            await load.goes_on(within_s=WAIT_S)
        await until_events_cross(here, there)
        zones.plug(silent)
        await zones.start(killed)
        for wire in zones.wires.values():
            wire.cut()
        back = await opened.enter_async_context(client(zones.url(silent)))
        late = await Side(back, silent).subscribe()
        await until_events_cross(here, late)
        await until_events_cross(here, there)
        await all_cross_once(here, there)
        await all_cross_once(there, here)
        for load in loads.values():
            await load.finish()
        copied = zones.wires["es1"].passed_bytes
        assert copied < COPIED_MAX * BACKLOG * BACKLOG_BYTES, f"{copied} bytes: some of it came again"
        await all_is_in_both({"eu": by_name[stays], "us": by_name[speaks]}, loads)
        assert set(await asyncio.gather(*(daemon.stop() for daemon in zones.daemons.values()))) == {0}


async def sinks_are_killed_while_they_copy(zones: Machines) -> None:
    """The one that mirrors, then the one that is mirrored; what was held by then does not come again."""
    [origin], [mirror] = zones.sinks["eu"], zones.sinks["us"]
    wire = zones.wires[origin]
    for part, killed in ((0.5, mirror), (0.75, origin)):
        bytes_min = part * BACKLOG * BACKLOG_BYTES
        await until(lambda least=bytes_min: wire.passed_bytes > least, "a part of it is copied", WAIT_S)
        zones.kill(killed)
        await zones.start(killed)
    await until(lambda: wire.passed_bytes > BACKLOG * BACKLOG_BYTES, "all of it is copied", WAIT_S)


async def other_clients_meet(near: str, far: str) -> None:
    """Those of which the toolchain is here: `test_clients.py` says of the others what is missing."""
    for folder, arguments in OTHER_CLIENTS.items():
        with contextlib.suppress(ToolchainMissing):
            command = await asyncio.to_thread(program, folder)
            pipe = asyncio.subprocess.PIPE
            taken = await asyncio.create_subprocess_exec(
                *command, *arguments, near, "zones", far, stdout=pipe, stderr=pipe
            )
            out, complaints = await asyncio.wait_for(taken.communicate(), WAIT_S)
            assert out.decode().splitlines() == [f"ok {step}" for step in TOUR], complaints.decode()


async def a_stranger_is_refused_and_audited(zones: Machines, reader: Client, far_reader: Client) -> None:
    """With e2's certificate it says that it is e1; the audit log of us has that, and eu a copy of it."""
    file = zones.file("eu")
    context = contexts(file.tls_nodes, name_of(file, "e2")).client
    connection, sends = await asyncio.open_connection(zones.networks["us"].address["u1"], MESH, ssl=context)
    sends.write(hello_line(Hello("acme", "eu", "e1", "M1")))
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert b"e1 has shown the certificate of e2" in await asyncio.wait_for(connection.read(), WAIT_S)
    sends.close()
    line = {"node": "u1", "from": zones.networks["us"].host, "why": "e1 has shown the certificate of e2"}
    for log, of in (("$AUDIT", reader), ("$AUDIT@us", far_reader)):
        async with asyncio.timeout(WAIT_S):
            while not any(line.items() <= each.items() for each in await audited(of, "link_refused", log)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def all_cross_once(sender: Side, receiver: Side) -> None:
    for number in range(AFTERWARDS):
        await sender.connection.publish(receiver.subject, b"%d" % number)
    await sender.connection.publish(receiver.subject, b"end")
    await until(lambda: b"end" in receiver.got, "the last one has crossed", WAIT_S)
    assert [payload for payload in receiver.got if payload.isdigit()] == [
        b"%d" % number for number in range(AFTERWARDS)
    ]
