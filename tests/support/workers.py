"""Workers of one gateway: in this process, each with a client port of its own; and clients of certain real ones."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from nats.aio.client import Client

from gateway.core.plane import Plane
from gateway.shell.peers import PeerLinks, Worker
from gateway.shell.server import ClientServer
from support.gateway import Hooks, make_plane
from support.processes import client

CONNECTS_MAX = 64


class Silent(Hooks):
    """Hooks of a gateway that keeps nothing."""

    def keeps(self, account: str, subject: str) -> bool:
        return False


@dataclass
class Running:
    """One worker. `links` and `server` are started; `stop` ends it as a gateway does."""

    plane: Plane
    server: ClientServer
    links: PeerLinks
    port: int = 0

    async def start(self) -> "Running":
        await self.links.start()
        _, self.port = await self.server.start()
        return self

    async def stop(self) -> None:
        self.server.stop_reading()
        await self.links.finish()
        await self.server.stop()
        await self.links.stop()


def make_worker(number: int, count: int, folder: Path, **options: Any) -> Running:
    """Not started yet; `options` are those of `PlaneOptions`."""
    plane = make_plane(Silent(), first_id=number + 1, id_step=count, **options)
    server = ClientServer(plane, host="127.0.0.1", port=0, now_ms=lambda: time.monotonic_ns() // 1_000_000)
    worker = Worker(number, count, "SERVER", 0, str(folder))
    return Running(plane, server, PeerLinks(server, worker, Random(number).random))


@contextlib.asynccontextmanager
async def client_of(url: str, worker: int, count: int, **options: Any) -> AsyncIterator[Client]:
    """A client that the worker of that number serves: the kernel chooses one for each connection, until it is that."""
    for _ in range(CONNECTS_MAX):
        async with client(url, **options) as connection:
            if (connection.client_id - 1) % count == worker:
                yield connection
                return
    raise AssertionError(f"no connection of {CONNECTS_MAX} came to worker {worker}")
