"""Several gateways of several zones in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from gateway.shell.gateway import Gateway
from protocol import config
from support.gateways import make_gateway
from support.processes import free_ports, until

ZONES = {"eu": ("eu1", "eu2"), "us": ("us1", "us2")}


def mesh_text(zones: Mapping[str, Sequence[str]] = ZONES, more: str = "") -> str:
    """A configuration; each call has other ports."""
    lines = ['[mesh]\nname = "acme"\nmode = "delivery-fabric"\n']
    for zone, names in zones.items():
        for name in names:
            client, mesh = free_ports(2)
            lines.append(f'[zones.{zone}.gateways.{name}]\nclient = "127.0.0.1:{client}"\nmesh = "127.0.0.1:{mesh}"\n')
    return "".join(lines) + more


@contextlib.asynccontextmanager
async def zones_of(text: str, *left_out: str) -> AsyncIterator[dict[str, Gateway]]:
    """All gateways but those left out, by name, when all zones that have to are linked."""
    configuration = config.parse(text, "mesh.toml")
    names = [name for zone in configuration.zones.values() for name in zone.gateways if name not in left_out]
    made = {name: make_gateway(configuration, name) for name in names}
    await asyncio.gather(*(gateway.start() for gateway in made.values()))
    try:
        await until(lambda: is_whole(made.values()), "zones are linked, and all is known")
        yield made
    finally:
        await asyncio.gather(*(gateway.stop() for gateway in made.values()))


def is_whole(gateways) -> bool:
    """Whether each gateway has a way to each zone that it should have, and knows what is wanted there."""
    return all(_knows_all(gateway) for gateway in gateways)


def _knows_all(gateway: Gateway) -> bool:
    links = gateway.plane.peers.links.values()
    ways = {link.session.zone for link in links if link.session.zone and not link.session.spare}
    known = all(link.learned.is_whole and not link.is_silent for link in links if link.session.scope != 3)
    return ways == set(gateway.plane.options.zones) and known


def holders(gateways: Mapping[str, Gateway]) -> dict[str, list[str]]:
    """By gateway that holds a link to another zone: the gateways at its other ends."""
    held = {name: [border.name for border in gateway.mesh.borders.values()] for name, gateway in gateways.items()}
    return {name: others for name, others in held.items() if others}
