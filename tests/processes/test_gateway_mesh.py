"""Three gateways of a zone as programs, with clients of nats-py, while one of them is killed and comes back."""

import asyncio
import contextlib
from pathlib import Path

from support.gateways import NAMES, url_of, write_zone, zone_text
from support.processes import client, folder_at, settle, until

EVENTS_BETWEEN = 500


async def test_a_gateway_that_is_killed_under_load_harms_no_other_and_is_back_soon(tmp_path: Path) -> None:
    configuration = write_zone(tmp_path, zone_text())
    with folder_at(tmp_path) as folder:
        daemons = {name: folder.run("gateway", "--config", "mesh.toml", "--node", name) for name in NAMES}
        await asyncio.gather(*(daemon.serving() for daemon in daemons.values()))
        async with contextlib.AsyncExitStack() as opened:
            clients = [await opened.enter_async_context(client(url_of(configuration, name))) for name in NAMES]
            publisher, killed, other = clients
            plain, shares = [], ([], [])
            await other.subscribe("a", cb=into(plain))
            for each, share in zip((killed, other), shares, strict=True):
                await each.subscribe("a", "crew", cb=into(share))
            for each in clients:
                await settle(each)
            publishing = asyncio.create_task(publish(publisher))
            await until(lambda: bool(shares[0]), "one member has some")
            daemons["gw2"].kill()
            await asyncio.sleep(0.2)
            daemons["gw2"] = folder.run("gateway", "--config", "mesh.toml", "--node", "gw2")
            await daemons["gw2"].serving()
            async with client(url_of(configuration, "gw2")) as back:
                late: list[int] = []
                await back.subscribe("a", cb=into(late))
                await settle(back)
                await until(lambda: len(late) >= EVENTS_BETWEEN, "it is in again")
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            await publisher.flush()
            await other.flush()
            sent = publisher.stats["out_msgs"]
            await until(lambda: len(plain) >= sent, "what was published")
            assert plain == list(range(sent))
            had = shares[0] + shares[1]
            assert len(had) == len(set(had))  # at most once, and those on their way to the killed one are lost
            assert len(had) > sent / 2
        assert [await daemon.stop() for daemon in daemons.values()] == [0, 0, 0]


def into(numbers: list[int]):
    async def note(message) -> None:
        numbers.append(int(message.data))

    return note


async def publish(publisher) -> None:
    """Numbers, until it is cancelled."""
    number = 0
    while True:
        for _ in range(20):
            await publisher.publish("a", b"%d" % number)
            number += 1
        await asyncio.sleep(0.005)
