"""What stands behind the monitor port: the HTTP application, with aiohttp and the Prometheus client.

It is loaded when somebody looks for the first time (`mesh.monitor`): the two take longer to load than a gateway.
The callables that it is handed run in the event loop for every request and only read state; a page that takes long
takes turns, and one page is made at a time.

Source: nats-server `server/monitor.go` (HandleRoot, HandleHealthz, ResponseHandler).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from html import escape
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from gateway.core.nats_values import BadQuery, Building, Page
from mesh.monitor import Maker, Sources, Unavailable
from mesh.query import Query
from protocol.limits import MONITOR_INDENTED_BYTES_MAX

STOP_GRACE_S = 1.0  # for requests under way
A = TypeVar("A")
Handler = Callable[[web.Request], Awaitable[web.Response]]

_ALIASES: Final = {"/subscriptionsz": "/subsz"}
_SCOPES: Final = ("js-enabled", "js-enabled-only", "js-server-only", "js-meta-only")
_EVERYBODY: Final = {"Access-Control-Allow-Origin": "*"}


class Application:
    """Serves `sources`, and counts in `requests`. `accept` makes the protocol of a connection."""

    def __init__(self, sources: Sources, requests: Counter[str]) -> None:
        self._sources, self._requests = sources, requests
        self._making = asyncio.Lock()
        application = web.Application()
        handlers: dict[str, Handler] = {"/": self._index, "/healthz": self._health, "/metrics": self._metrics}
        handlers |= {path: self._show(path, maker) for path, maker in sources.pages.items()}
        handlers |= {alias: handlers[path] for alias, path in _ALIASES.items() if path in handlers}
        for path, handler in handlers.items():
            application.router.add_route("*", path, handler)
        application.router.add_route("*", "/{path:.*}", _not_found)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=STOP_GRACE_S)

    async def start(self) -> None:
        await self._runner.setup()

    def accept(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        return self._runner.server()

    async def stop(self) -> None:
        """Requests under way are answered."""
        await self._runner.cleanup()

    # -- pages --------------------------------------------------------------------------------------------------------

    def _show(self, path: str, maker: Maker) -> Handler:
        async def show(request: web.Request) -> web.Response:
            self._requests[path] += 1
            try:
                async with self._making:
                    made = maker(Query(request.query))
                    page = await (_in_turns(made) if isinstance(made, Generator) else _awaited(made))
            except BadQuery as refusal:
                return web.Response(status=400, text=str(refusal))
            except Unavailable as reason:
                return web.Response(status=503, text=str(reason))
            return _json(page)

        return show

    async def _health(self, request: web.Request) -> web.Response:
        """nats-server's parameters narrow down what of JetStream is looked at: here it is always all."""
        self._requests["/healthz"] += 1
        query = Query(request.query)
        try:
            details = [query.boolean(name) for name in (*_SCOPES, "details")][-1]
        except BadQuery as refusal:
            return web.Response(status=400, text=str(refusal))
        misfit = _misfit(query)
        if misfit is not None:
            return _unhealthy(400, "error", misfit, "BAD_REQUEST", details)
        problem = await _awaited(self._sources.healthz())
        if problem is not None:
            return _unhealthy(503, "unavailable", problem, "JETSTREAM", details)
        return _json({"status": "ok"}, indents=False)

    async def _metrics(self, request: web.Request) -> web.Response:
        self._requests["/metrics"] += 1
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        registry = await _awaited(self._sources.registry())
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def _index(self, request: web.Request) -> web.Response:
        self._requests["/"] += 1
        paths = [*self._sources.pages, "/healthz", "/metrics"]
        links = "".join(f'<li><a href=".{escape(path)}">{escape(path)}</a></li>' for path in paths)
        page = f'<!DOCTYPE html><html lang="en"><title>Event Mesh</title><h1>Event Mesh</h1><ul>{links}</ul></html>'
        return web.Response(text=page, content_type="text/html")


async def _awaited(value: A | Awaitable[A]) -> A:
    return await value if isinstance(value, Awaitable) else value


async def _in_turns(building: Building) -> Page:
    while True:
        try:
            next(building)
        except StopIteration as end:
            page: Page = end.value
            return page
        await asyncio.sleep(0)


def _misfit(query: Query) -> str | None:
    """What a question for the health of a stream or consumer lacks."""
    for asked, needed in (("stream", "account"), ("consumer", "stream")):
        if query.text(asked) and not query.text(needed):
            return f'"{needed}" must not be empty when checking {asked} health'
    return None


def _unhealthy(status: int, word: str, problem: str, kind: str, details: bool) -> web.Response:
    if details:
        return _json({"status": "error", "errors": [{"type": kind, "error": problem}]}, status, indents=False)
    return _json({"status": word, "error": problem}, status, indents=False)


async def _not_found(request: web.Request) -> web.Response:
    return web.Response(status=404, text="404 page not found\n")


def _json(values: Mapping[str, Any], status: int = 200, *, indents: bool = True) -> web.Response:
    body = msgspec.json.encode(values)
    if indents and len(body) <= MONITOR_INDENTED_BYTES_MAX:
        body = msgspec.json.format(body, indent=2)
    return web.Response(body=body, status=status, content_type="application/json", headers=_EVERYBODY)
