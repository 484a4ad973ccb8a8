"""Gateways of two zones in this process: what clients on both sides of the border see of each other."""

import asyncio
import contextlib

from support.gateways import url_of
from support.processes import client
from support.borders import holders, mesh_text, zones_of

EVENTS = 100


@contextlib.asynccontextmanager
async def clients_of(*gateways):
    async with contextlib.AsyncExitStack() as opened:
        urls = [url_of(gateway.configuration, gateway.node.name) for gateway in gateways]
        yield [await opened.enter_async_context(client(url)) for url in urls]


async def test_an_event_reaches_each_subscriber_in_each_zone_once() -> None:
    async with zones_of(mesh_text()) as gateways, clients_of(*gateways.values()) as clients:
        held = holders(gateways)
        print(held)
        subscriptions = [await each.subscribe("news.*") for each in clients]
        for each in clients:
            await each.flush()
        await asyncio.sleep(0.3)
        for number, each in enumerate(clients):
            for event in range(EVENTS):
                await each.publish(f"news.{number}", b"%d" % event, reply="answers", headers={"Tag": "a"})
        for subscription in subscriptions:
            got = [await subscription.next_msg(5) for _ in range(EVENTS * len(clients))]
            print(len(got))
        await asyncio.sleep(0.05)
        assert [subscription.pending_msgs for subscription in subscriptions] == [0, 0, 0, 0]
