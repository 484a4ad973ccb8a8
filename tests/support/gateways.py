"""Several gateways of one zone, in this process or as programs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from gateway.shell.gateway import Gateway
from mesh import node_tls
from mesh.daemon import dial_sinks, gateway_signs
from protocol import config
from support.processes import free_ports, until

NAMES = ("gw1", "gw2", "gw3")


def zone_text(names: Sequence[str] = NAMES, more: str = "") -> str:
    """A configuration; each call has other ports."""
    ports = free_ports(2 * len(names))
    lines = ['[mesh]\nname = "acme"\nmode = "delivery-fabric"\n']
    for number, name in enumerate(names):
        client, mesh = ports[2 * number : 2 * number + 2]
        lines.append(f'[zones.eu.gateways.{name}]\nclient = "127.0.0.1:{client}"\nmesh = "127.0.0.1:{mesh}"\n')
    return "".join(lines) + more


def url_of(configuration: config.Config, name: str) -> str:
    return f"nats://{configuration.gateway(name).client}"


def make_gateway(configuration: config.Config, name: str) -> Gateway:
    """Not started yet."""
    settings = configuration.gateway(name)
    sinks, sign = dial_sinks(configuration, settings), gateway_signs(configuration, settings)
    return Gateway(configuration, name, sinks, "test", link_tls=node_tls.for_gateway(configuration, name), sign=sign)


@contextlib.asynccontextmanager
async def gateways_of(text: str, names: Sequence[str] = NAMES) -> AsyncIterator[list[Gateway]]:
    configuration = config.parse(text, "mesh.toml")
    made = [make_gateway(configuration, name) for name in names]
    await asyncio.gather(*(gateway.start() for gateway in made))
    try:
        for gateway in made:
            others = gateway.plane.peers
            await until(lambda others=others: others.agreed(near=False) == len(made) - 1, "all know each other")
        yield made
    finally:
        await asyncio.gather(*(gateway.stop() for gateway in made))


def write_zone(folder: Path, text: str) -> config.Config:
    (folder / "mesh.toml").write_text(text)
    return config.parse(text, "mesh.toml")
