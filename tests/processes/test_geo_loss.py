"""A zone is lost whole under load: what `geo` acknowledged is in the other zone, and comes back at the same offsets.

Copies come slowly, so that much is committed in eu which us does not hold yet: an answer that came too early would be
for one of these.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
from pathlib import Path

from nats.aio.client import Client
from support import cli
from support.events import Lost, Publisher, Shown, everything, fetch, published
from support.processes import Daemon, Folder, client, folder_at, free_ports

EU_SINKS = ("eu1", "eu2", "eu3")
EVENT_BYTES = 10_000
ACKNOWLEDGED = 150
BEHIND = 200  # events; two seconds of `copy_rate`
WINDOW = 400
OLD = "orders@eu~1"
WAIT_S = 60


def write_file(folder: Folder) -> dict[str, str]:
    """The URLs of the gateways, by zone."""
    ports = iter(free_ports(10))

    def address() -> str:
        return f'"127.0.0.1:{next(ports)}"'

    lines = ["[mesh]", 'name = "acme"']
    for zone, sinks in {"eu": EU_SINKS, "us": ("us1",)}.items():
        for name in sinks:
            lines += [f"[zones.{zone}.sinks.{name}]", f"link = {address()}", f'data = "{name}"']
            lines += ['disk_reserve = "1MiB"', *([f"raft = {address()}"] if len(sinks) > 1 else [])]
    clients = {"eu": folder.client_port, "us": next(ports)}
    for zone, port in clients.items():
        lines += [f"[zones.{zone}.gateways.{zone}gw]", f'client = "127.0.0.1:{port}"', f"mesh = {address()}"]
    lines += ["[streams.orders]", 'subjects = ["orders.>"]', 'ack = "geo"', f'geo = {{ timeout = "{WAIT_S}s" }}']
    lines += ["[links.eu.us]", 'copy_rate = "1MB/s"']
    (folder.path / "mesh.toml").write_text("\n".join(lines))
    return {zone: f"nats://127.0.0.1:{port}" for zone, port in clients.items()}


async def start(folder: Folder, zone: str, sinks: tuple[str, ...]) -> list[Daemon]:
    nodes = [("sinkd", name) for name in sinks] + [("gateway", f"{zone}gw")]
    daemons = [folder.run(program, "--config", "mesh.toml", "--node", name) for program, name in nodes]
    await asyncio.gather(*(daemon.serving() for daemon in daemons))
    return daemons


async def publish_until_lost(publisher: Publisher) -> None:
    with contextlib.suppress(Lost):
        for number in itertools.count():
            await publisher.send(number, b"%d " % number + os.urandom(EVENT_BYTES))


async def until_kept(connection: Client, log: str) -> None:
    """Until the zone has the log, and a leader."""
    async with asyncio.timeout(WAIT_S):
        while (await fetch(connection, log, offset=0, max_records=1)).status != "204":  # noqa: ASYNC110 - not our state
            await asyncio.sleep(0.05)


async def end(connection: Client, log: str) -> int:
    return (await fetch(connection, log, offset=0, max_records=1)).high_watermark


async def until_much_is_not_copied(publisher: Publisher, eu: Client, us: Client) -> int:
    """Where the log of eu ends, at least, when many are acknowledged and many committed ones are in eu alone."""
    async with asyncio.timeout(WAIT_S):
        while True:
            held, committed = await end(us, "orders@eu"), await end(eu, "orders")
            if len(publisher.acknowledged) >= ACKNOWLEDGED and committed - held >= BEHIND:
                return committed
            await asyncio.sleep(0.05)


def unlike(due: dict[int, bytes], log: list[Shown]) -> list[int]:
    """Offsets at which the log has something else than is due, or nothing."""
    there = {event.offset: event.payload for event in log}
    return [offset for offset, payload in due.items() if there.get(offset) != payload]


async def test_what_geo_acknowledged_outlives_its_zone_and_comes_back(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        urls = write_file(folder)
        nodes, _ = await asyncio.gather(start(folder, "eu", EU_SINKS), start(folder, "us", ("us1",)))
        async with client(urls["us"]) as us:
            async with client(urls["eu"]) as eu:
                await until_kept(eu, "orders")
                first = await published(eu, "orders.new", b"first")
                assert (first["ack"], first["zones"], first["offset"]) == ("geo", ["us"], 0)
                await until_kept(us, "orders@eu")
                publisher = await Publisher(eu, "orders.new", WINDOW).open()
                load = asyncio.create_task(publish_until_lost(publisher))
                committed = await until_much_is_not_copied(publisher, eu, us)
                for node in nodes:
                    node.send(signal.SIGKILL)
                await asyncio.gather(*(node.ended() for node in nodes), asyncio.wait_for(load, WAIT_S))
            for name in EU_SINKS:
                shutil.rmtree(tmp_path / name)

            answers = publisher.answers.values()
            assert {(answer["ack"], *answer["zones"]) for answer in answers} == {("geo", "us")}
            due = {answer["offset"]: publisher.sent[number] for number, answer in publisher.answers.items()}
            assert len(due) == len(answers)
            due[0] = b"first"
            held = await everything(us, "orders@eu")
            assert unlike(due, held) == []
            assert len(held) < committed, "nothing was lost with eu, so nothing is shown"

            await start(folder, "eu", EU_SINKS)
            async with client(urls["eu"]) as eu:
                await until_kept(eu, "orders@us")
                asked = "zones", "rebuild", "eu", "--from", "us", "--config", f"{tmp_path}/mesh.toml"
                rebuilt = await cli.mesh(*asked)
                assert rebuilt.status == 0, rebuilt
                answer = await published(eu, "orders.new", b"goes on")
                assert (answer["ack"], answer["zones"], answer["offset"]) == ("geo", ["us"], 0)
                await asyncio.gather(until_kept(eu, OLD), until_kept(us, OLD))
                back, kept = [await everything(connection, OLD) for connection in (eu, us)]
                assert [event.offset for event in back] == list(range(len(kept)))
                assert [here.offset for here, there in zip(back, kept, strict=True) if here != there] == []
                assert unlike(due, back) == []
                for connection, log in ((eu, "orders"), (us, "orders@eu")):
                    assert [event.payload for event in await everything(connection, log)] == [b"goes on"]
