"""The monitor port: one small HTTP server that shows what its owner hands it.

    /healthz   200 {"status": "ok"}, or 503 {"status": "unavailable", "error": ...}
    /varz      what `varz()` returns, as JSON; the same for every other route given
    /metrics   the Prometheus registry
    /          an index of these

It knows neither gateway nor sink, so one serves a process that runs either or both. The callables run in the event loop
for every request and only read state. Names and shapes are nats-server's, so its exporters and dashboards work.
"""

from collections.abc import Awaitable, Callable, Mapping
from html import escape
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

STOP_GRACE_S = 1.0  # for requests under way
Page = Callable[[], Mapping[str, Any]]


class Monitor:
    """Listens on `host`:`port` (0: any free one). `healthz` says what is wrong, or None."""

    def __init__(
        self,
        host: str,
        port: int,
        varz: Page,
        healthz: Callable[[], str | None],
        registry: CollectorRegistry,
        routes: Mapping[str, Page] | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._healthz = healthz
        self._registry = registry
        self._pages: dict[str, Page] = {"/varz": varz, **(routes or {})}
        self._runner: web.AppRunner | None = None

    async def start(self) -> tuple[str, int]:
        """Serve; the address that is listened on. OSError when it cannot be had."""
        application = web.Application()
        application.router.add_get("/", self._index)
        application.router.add_get("/healthz", self._health)
        application.router.add_get("/metrics", self._metrics)
        for path, page in self._pages.items():
            application.router.add_get(path, _json_page(page))
        runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=STOP_GRACE_S)
        await runner.setup()
        self._runner = runner
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError:
            await self.stop()
            raise
        host, port = runner.addresses[0][:2]
        return host, port

    async def stop(self) -> None:
        """Stop serving; requests under way are answered."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        problem = self._healthz()
        if problem is None:
            return _json({"status": "ok"})
        return _json({"status": "unavailable", "status_code": 503, "error": problem}, status=503)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _index(self, request: web.Request) -> web.Response:
        paths = [*self._pages, "/healthz", "/metrics"]
        links = "".join(f'<li><a href="{escape(path)}">{escape(path)}</a></li>' for path in paths)
        page = f"<!DOCTYPE html><title>Event Mesh</title><h1>Event Mesh</h1><ul>{links}</ul>"
        return web.Response(text=page, content_type="text/html")


def _json_page(page: Page) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def show(request: web.Request) -> web.Response:
        return _json(page())

    return show


def _json(values: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(values), status=status, content_type="application/json")
