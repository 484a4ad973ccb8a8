"""A gateway whose leading sink hands over, is stopped, and comes back, among three: every event is in the log once."""

import asyncio

from support.events import Publisher, everything
from support.processes import client
from support.sinks import zone_with_gateway


async def test_events_go_on_with_whoever_leads(tmp_path):
    async with zone_with_gateway(tmp_path) as (zone, gateway, url), client(url) as connection:
        publisher = await Publisher(connection, "orders.a").open()
        for first in (0, 400, 800):
            await zone.until(lambda: gateway.links[0].sink == zone.leader != "", "a link to the leader")
            gone = zone.leader
            await publish(publisher, range(first, first + 200))
            await asyncio.gather(zone.stop(gone), publish(publisher, range(first + 200, first + 400)))
            await publisher.settle()
            assert gateway.links[0].sink not in ("", gone)
            await zone.start(gone)
        assert len(publisher.acknowledged) == 1_200
        assert [event.payload for event in await everything(connection, "orders")] == list(publisher.sent.values())


async def publish(publisher, numbers):
    for number in numbers:
        await publisher.send(number, b"%d" % number)
        await asyncio.sleep(0)
