"""The monitor port: one small HTTP server that shows what its owner hands it.

    /healthz   200 {"status": "ok"}, or 503 {"status": "unavailable", "error": ...}
    /metrics   the Prometheus registry
    /          an index of these, and of the pages given
    any page   what it is called by, as JSON

It knows neither gateway nor sink, so one serves a process that runs either or both. Names, shapes and refusals are
nats-server's, so its exporters and dashboards work; like it there is no JSONP: `callback` is ignored. A supervisor of
several workers has to ask them first: what it hands over may be awaited.

    listens ──first connection──▶ loads `mesh.monitor_pages`, on a thread ──▶ hands over those that wait ──▶ serves

An HTTP server takes longer to load than a gateway, and many processes are never looked at.
"""

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from gateway.core.nats_values import Building, Page
from mesh.query import Query

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from mesh.monitor_pages import Application

_PAGES: Final = "mesh.monitor_pages"
Maker = Callable[[Query], Page | Building | Awaitable[Page]]


class Unavailable(Exception):
    """Nobody is there who could make the page; the text says why."""


class Sources(NamedTuple):
    """What is shown: `healthz` says what is wrong, or None; `registry` holds the metrics; `pages` are made by path."""

    healthz: "Callable[[], str | Awaitable[str | None] | None]"
    registry: "Callable[[], CollectorRegistry | Awaitable[CollectorRegistry]]"
    pages: Mapping[str, Maker]


class Monitor:
    """Listens on `host`:`port` (0: any free one), or on a socket named `path` instead.

    `requests` counts those for each page.
    """

    def __init__(self, host: str, port: int, sources: Sources, *, path: str = "") -> None:
        self._host, self._port, self._path = host, port, path
        self._sources = sources
        self._server: asyncio.Server | None = None
        self._application: Application | None = None
        self._loading: asyncio.Task[None] | None = None
        self._waiting: set[_Waiting] = set()
        self.requests: Counter[str] = Counter()

    async def start(self) -> tuple[str, int]:
        """Serve; the address that is listened on ("" and 0 for a path). OSError when it cannot be had."""
        loop = asyncio.get_running_loop()
        if self._path:
            self._server = await loop.create_unix_server(self._accept, self._path)
            return "", 0
        self._server = await loop.create_server(self._accept, self._host, self._port)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def stop(self) -> None:
        """Stop serving; requests under way are answered."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._loading is not None:
            await self._loading
        if self._application is not None:
            await self._application.stop()

    def _accept(self) -> asyncio.Protocol:
        if self._application is not None:
            return self._application.accept()
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._load())
        return _Waiting(self._waiting)

    async def _load(self) -> None:
        is_new = _PAGES not in sys.modules
        module = await asyncio.to_thread(import_module, _PAGES)
        if is_new:
            gc.freeze()  # as what was there at the start: no full collection need look at it again
        application = cast("Application", module.Application(self._sources, self.requests))
        await application.start()
        self._application = application
        for waiting in tuple(self._waiting):
            waiting.hand_over(application.accept())


class _Waiting(asyncio.Protocol):
    """A connection that is there before the application is: what has come is kept, and no more is read."""

    def __init__(self, waiting: "set[_Waiting]") -> None:
        self._waiting = waiting
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._waiting.add(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._waiting.discard(self)

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        self._waiting.discard(self)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if self._received:
            protocol.data_received(self._received)
            self._transport.resume_reading()
