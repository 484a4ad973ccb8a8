"""Gateways of several workers beside others, as programs, with clients of each process."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from nats.aio.client import Client

from support.processes import Daemon, Folder, free_ports
from support.workers import client_of

WAIT_S = 60
ZONE = {"gw1": ("eu", 2), "gw2": ("eu", 2), "gw3": ("eu", 1)}
ZONES = {"eu1": ("eu", 2), "eu2": ("eu", 2), "us1": ("us", 2), "us2": ("us", 2)}


class Mesh:
    """Gateways by name, each with its zone and its number of workers; they keep nothing, and run in `folder`."""

    def __init__(self, folder: Folder, gateways: Mapping[str, tuple[str, int]], more: str = "") -> None:
        self.folder, self.gateways = folder, gateways
        self.clients, self.monitors, self.daemons = dict[str, int](), dict[str, int](), dict[str, Daemon]()
        self.text = '[mesh]\nname = "acme"\nmode = "delivery-fabric"\n'
        taken = set[int]()
        for name, (zone, workers) in gateways.items():
            self.clients[name], self.monitors[name] = ports_in_a_row(1, taken), ports_in_a_row(1, taken)
            self.text += (
                f'[zones.{zone}.gateways.{name}]\nclient = "127.0.0.1:{self.clients[name]}"\n'
                f'monitor = "127.0.0.1:{self.monitors[name]}"\nmesh = "127.0.0.1:{ports_in_a_row(workers, taken)}"\n'
                f"workers = {workers}\n"
            )
        self.text += more
        self.file.write_text(self.text)

    @property
    def file(self) -> Path:
        return self.folder.path / "mesh.toml"

    async def start(self) -> None:
        """They serve, and are linked, when this returns."""
        for name in self.gateways:
            self.daemons[name] = self.folder.run("gateway", "--config", "mesh.toml", "--node", name)
        await asyncio.gather(*(daemon.serving() for daemon in self.daemons.values()))
        await self.until_linked()

    async def page(self, name: str, path: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(await self.shown(name, path))
        return shown

    async def shown(self, name: str, path: str) -> str:
        """A page of the gateway's monitor; on a busy machine workers may answer late."""
        url = f"http://127.0.0.1:{self.monitors[name]}/{path}"
        async with asyncio.timeout(WAIT_S):
            while True:
                async with aiohttp.ClientSession() as session, session.get(url) as answer:
                    if answer.status == 200:
                        return await answer.text()
                await asyncio.sleep(0.1)

    async def until_linked(self) -> None:
        """Every process with each of the other gateways of its zone, and the zones by one link."""
        async with asyncio.timeout(WAIT_S):
            while not await self._is_linked():  # noqa: ASYNC110 - other processes' state
                await asyncio.sleep(0.05)

    async def _is_linked(self) -> bool:
        borders = list[str]()
        for name, (zone, workers) in self.gateways.items():
            others = sum(count for other, (its, count) in self.gateways.items() if its == zone and other != name)
            routes = (await self.page(name, "routez")).get("routes", [])
            borders += [route["zone"] for route in routes if route["zone"] != zone]
            if len(routes) - sum(route["zone"] != zone for route in routes) != workers * others:
                return False
            if any(route["stale"] for route in routes):
                return False
        zones = sorted({zone for zone, _ in self.gateways.values()})
        return sorted(borders) == (zones if len(zones) > 1 else [])

    async def holder(self, zone: str) -> tuple[str, int]:
        """The gateway and worker of `zone` that link it with another one."""
        for name in (name for name, (its, _) in self.gateways.items() if its == zone):
            for route in (await self.page(name, "routez"))["routes"]:
                if route["zone"] != zone:
                    return name, route["worker"]
        raise AssertionError(f"nobody links {zone}")

    async def process_id(self, name: str, worker: int) -> int:
        """Of a worker that serves; it is waited for."""
        async with asyncio.timeout(WAIT_S):
            while not (found := (await self.page(name, "varz"))["workers"][worker]["pid"]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return int(found)

    @contextlib.asynccontextmanager
    async def clients_of_all(self, **options: Any) -> AsyncIterator[dict[tuple[str, int], Client]]:
        """A client of each process, by gateway and worker."""
        async with contextlib.AsyncExitStack() as opened:
            yield {
                (name, worker): await opened.enter_async_context(self.client(name, worker, **options))
                for name, (_, workers) in self.gateways.items()
                for worker in range(workers)
            }

    def client(self, name: str, worker: int, **options: Any) -> contextlib.AbstractAsyncContextManager[Client]:
        """One of that process."""
        return client_of(f"nats://127.0.0.1:{self.clients[name]}", worker, self.gateways[name][1], **options)


def ports_in_a_row(count: int, taken: set[int]) -> int:
    """The first of so many that are free and not `taken`; they are then."""
    while True:
        [first] = free_ports(1)
        ports = range(first, first + count)
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in ports:
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            if taken.isdisjoint(ports):
                taken.update(ports)
                return first
