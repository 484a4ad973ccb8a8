"""A gateway whose leading sink hands over, is stopped, and comes back, among three: every event is in the log once."""

import asyncio
import contextlib
import dataclasses

from support.events import Publisher, everything
from support.processes import client
from support.sinks import SinkZone

from gateway.shell.gateway import Gateway
from mesh.daemon import dial_sinks
from protocol import config


@contextlib.asynccontextmanager
async def zone_with_gateway(folder):
    """(zone, gateway, url) of three sinks of which one leads."""
    zone = SinkZone(folder)
    configuration = zone.file()
    eu = configuration.zones["eu"]
    own = dataclasses.replace(eu.gateways["gw1"], client=config.Address("127.0.0.1", 0))
    zones = {"eu": dataclasses.replace(eu, gateways={"gw1": own})}
    configuration = dataclasses.replace(configuration, zones=zones)
    gateway = Gateway(configuration, "gw1", dial_sinks(configuration, own), "test")
    await zone.start()
    try:
        await zone.led()
        host, port = await gateway.start()
        await asyncio.wait_for(gateway.linked(), 15)
        yield zone, gateway, f"nats://{host}:{port}"
    finally:
        await gateway.stop()
        await zone.stop()


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
