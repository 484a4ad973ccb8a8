"""The monitor port as an HTTP server: what it serves, refuses and counts."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from gateway.core.nats_values import BadQuery, Building
from mesh.monitor import Monitor, Sources
from mesh.query import Query
from protocol.limits import MONITOR_INDENTED_BYTES_MAX

Get = Callable[[str], Awaitable[tuple[int, str, Any]]]
WAIT_S = 60.0


class State:
    """What the pages show; `long_page` waits in its second turn until it is let go."""

    problem: str | None = None
    items = 2
    goes_on = True

    def __init__(self) -> None:
        self.begun = asyncio.Event()


def echo(query: Query) -> dict[str, Any]:
    return {"name": query.text("name"), "number": query.integer("number")}


def refuse(query: Query) -> Building:
    yield
    raise BadQuery("not like this")


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
async def monitor(state: State) -> AsyncIterator[Monitor]:
    def long_page(query: Query) -> Building:
        state.begun.set()
        while not state.goes_on:
            yield
        return {"items": ["x" * 100] * state.items}

    registry = CollectorRegistry()
    Counter("things", "Things that happened", registry=registry).inc(3)
    pages = {"/varz": echo, "/connz": long_page, "/subsz": refuse}
    monitor = Monitor("127.0.0.1", 0, Sources(lambda: state.problem, lambda: registry, pages))
    yield monitor
    await monitor.stop()


@pytest.fixture
async def http(monitor: Monitor) -> AsyncIterator[aiohttp.ClientSession]:
    host, port = await monitor.start()
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        yield session


@pytest.fixture
async def get(http: aiohttp.ClientSession) -> Get:
    async def request(path: str) -> tuple[int, str, Any]:
        async with http.get(path) as answer:
            is_json = answer.content_type == "application/json"
            return answer.status, answer.content_type, await (answer.json() if is_json else answer.text())

    return request


async def test_pages(get: Get) -> None:
    assert await get("/varz") == (200, "application/json", {"name": "", "number": 0})
    assert await get("/connz") == (200, "application/json", {"items": ["x" * 100] * 2})
    status, kind, text = await get("/metrics")
    assert (status, kind) == (200, "text/plain")
    assert "\nthings_total 3.0\n" in text
    status, kind, text = await get("/")
    assert (status, kind) == (200, "text/html")
    assert [f'href=".{path}"' in text for path in ("/varz", "/connz", "/healthz", "/metrics")] == [True] * 4
    assert await get("/nothing") == (404, "text/plain", "404 page not found\n")


async def test_parameters(get: Get) -> None:
    assert (await get("/varz?number=%2B5&name=a%20b&name=c&callback=f"))[2] == {"name": "a b", "number": 5}
    refusal = "Error decoding int for 'number': strconv.Atoi: parsing \"x\": invalid syntax"
    assert await get("/varz?number=x") == (400, "text/plain", refusal)
    assert await get("/subsz") == (400, "text/plain", "not like this")


async def test_requests_are_counted(get: Get, monitor: Monitor) -> None:
    for path in ("/varz", "/subscriptionsz", "/varz?number=x", "/healthz", "/nothing", "/metrics", "/"):
        await get(path)
    assert monitor.requests == {"/varz": 2, "/subsz": 1, "/healthz": 1, "/metrics": 1, "/": 1}


async def test_every_method_gets_the_page(http: aiohttp.ClientSession) -> None:
    async with http.post("/varz") as answer:
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
    async with http.head("/varz") as answer:
        assert (answer.status, await answer.text()) == (200, "")


async def test_a_short_page_is_laid_out_and_a_long_one_is_not(http: aiohttp.ClientSession, state: State) -> None:
    async with http.get("/connz") as answer:
        assert '{\n  "items": [\n    "' in await answer.text()
    state.items = MONITOR_INDENTED_BYTES_MAX // 100
    async with http.get("/connz") as answer:
        assert '{"items":["' in await answer.text()


async def test_a_page_that_takes_long_leaves_room_for_others(get: Get, state: State) -> None:
    state.goes_on = False
    slow = asyncio.ensure_future(get("/connz"))
    async with asyncio.timeout(WAIT_S):
        await state.begun.wait()
        assert (await get("/healthz"))[0] == 200
        assert not slow.done()
        state.goes_on = True
        assert (await slow)[0] == 200


async def test_health(get: Get, state: State) -> None:
    assert await get("/healthz") == (200, "application/json", {"status": "ok"})
    assert await get("/healthz?details=1&js-enabled-only=true") == (200, "application/json", {"status": "ok"})
    state.problem = "no sink"
    assert await get("/healthz") == (503, "application/json", {"status": "unavailable", "error": "no sink"})
    expected = {"status": "error", "errors": [{"type": "JETSTREAM", "error": "no sink"}]}
    assert await get("/healthz?details=true") == (503, "application/json", expected)


async def test_an_address_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monitor = Monitor("127.0.0.1", port, Sources(lambda: None, CollectorRegistry, {}))
        with pytest.raises(OSError, match="in use"):
            await monitor.start()
        await asyncio.wait_for(monitor.stop(), WAIT_S)


async def test_who_comes_before_the_application_is_loaded_is_served(monitor: Monitor) -> None:
    address = await monitor.start()
    readers = [await asyncio.open_connection(*address) for _ in range(3)]
    (first, asks_first), (second, asks_second), (_, goes) = readers
    for piece in (b"GET /varz?name=a HTTP/1.1\r\n", b"Host: x\r\n\r\n"):
        asks_first.write(piece)
    goes.close()
    assert (await asyncio.wait_for(first.readline(), WAIT_S)).startswith(b"HTTP/1.1 200")
    asks_second.write(b"GET /varz HTTP/1.0\r\n\r\n")
    assert (await asyncio.wait_for(second.read(), WAIT_S)).startswith(b"HTTP/1.0 200")
    for writer in (asks_first, asks_second):
        writer.close()


async def test_it_stops_while_the_application_is_being_loaded(monitor: Monitor) -> None:
    address = await monitor.start()
    reader, writer = await asyncio.open_connection(*address)
    await asyncio.wait_for(monitor.stop(), WAIT_S)
    assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
    writer.close()
