"""A zone is killed and its disk wiped; `mesh zones rebuild` brings back every event that was acknowledged.

Sinks of both zones are killed while it is under way.
"""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

from support import cli
from support.events import Publisher, everything, published, readable
from support.processes import Daemon, Folder, client, folder_at, free_ports

EVENTS, EVENT_BYTES = 40, 50_000
OLD = "orders@eu~1"


def write_file(folder: Folder) -> None:
    links = dict(zip(("eu", "us"), free_ports(2), strict=True))
    sinks = [
        f'[zones.{zone}.sinks.{zone}1]\nlink = "127.0.0.1:{port}"\ndata = "{zone}"\ndisk_reserve = "1MiB"'
        for zone, port in links.items()
    ]
    gateway = (
        f'[zones.eu.gateways.gw]\nclient = "127.0.0.1:{folder.client_port}"\nmesh = "127.0.0.1:{free_ports(1)[0]}"'
    )
    parts = [
        '[mesh]\nname = "acme"', *sinks, gateway, '[streams.orders]\nsubjects = ["orders.>"]\nack = "quorum"',
        '[links.eu.us]\ncopy_rate = "1MB/s"',
    ]  # fmt: skip
    (folder.path / "mesh.toml").write_text("\n".join(parts))


async def sink(folder: Folder, node: str) -> Daemon:
    daemon = folder.run("sinkd", "--config", "mesh.toml", "--node", node)
    await daemon.serving()
    return daemon


async def rows(folder: Folder, zone: str) -> dict[str, Any]:
    """What `mesh zones` shows of the mirrors of a zone, by their names."""
    shown = await cli.invoked("zones", "--config", f"{folder.path}/mesh.toml", "--zone", zone, "--json")
    return {row["stream"]: row for row in json.loads(shown.out)[zone]} if shown.out else {}


async def until_held(folder: Folder, zone: str, name: str, events: int) -> None:
    async with asyncio.timeout(60):
        while (await rows(folder, zone)).get(name, {}).get("end_offset", 0) < events:  # noqa: ASYNC110 - not our state
            await asyncio.sleep(0.1)


async def test_a_zone_that_was_destroyed_has_every_event_again(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        write_file(folder)
        eu, us = await asyncio.gather(sink(folder, "eu1"), sink(folder, "us1"))
        gateway = folder.run("gateway", "--config", "mesh.toml", "--node", "gw")
        await gateway.serving()
        async with client(folder.url) as connection:
            publisher = await Publisher(connection, "orders.new").open()
            for number in range(EVENTS):
                await publisher.send(number, os.urandom(EVENT_BYTES))
            await publisher.settle()
            assert len(publisher.acknowledged) == EVENTS
            await until_held(folder, "us", "orders@eu", EVENTS)
            eu.kill()
            shutil.rmtree(tmp_path / "eu")
            await sink(folder, "eu1")
            asked = "zones", "rebuild", "eu", "--from", "us", "--config", f"{tmp_path}/mesh.toml"
            rebuilding = await cli.start(*asked)
            await until_held(folder, "eu", OLD, 1)
            us.kill()
            await sink(folder, "us1")
            folder.daemons[-2].kill()  # eu1
            await sink(folder, "eu1")
            out, err = await asyncio.wait_for(rebuilding.communicate(), 90)
            again = await cli.invoked(*asked)
            assert (rebuilding.returncode, again.status) == (0, 1), (out, err, again)
            assert f"$AUDIT@eu~1, $COVERAGE@eu~1, events@eu~1, {OLD}: " in out.decode()
            assert "offsets are back from zone us" in err.decode()
            assert "zone eu still has all that zone us mirrors of it" in again.err
            await readable(connection, OLD)
            events = await everything(connection, OLD)
            assert [event.offset for event in events] == list(range(EVENTS))
            offsets = {number: answer["offset"] for number, answer in publisher.answers.items()}
            assert {offset: publisher.sent[number] for number, offset in offsets.items()} == {
                event.offset: event.payload for event in events
            }
            answer = await published(connection, "orders.new", b"goes on")
            assert (answer["zone"], answer["offset"]) == ("eu", 0)
            assert [event.payload for event in await everything(connection, "orders")] == [b"goes on"]
            assert (await rows(folder, "eu"))[OLD]["state"] == "recreated"
