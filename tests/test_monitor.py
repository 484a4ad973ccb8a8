"""The monitor port, and what the gateway shows on it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter
from support.gateway import make_plane

from gateway.core import reports
from gateway.core.identity import UserEntry
from mesh.monitor import Monitor

HOUR_MS = 3_600_000


class Health:
    problem: str | None = None


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
async def get(health: Health) -> AsyncIterator[Any]:
    registry = CollectorRegistry()
    Counter("things", "Things that happened", registry=registry).inc(3)
    monitor = Monitor(
        "127.0.0.1", 0, lambda: {"in_msgs": 5}, lambda: health.problem, registry, {"/connz": lambda: {"total": 2}}
    )
    host, port = await monitor.start()
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:

        async def request(path: str) -> tuple[int, str, Any]:
            async with session.get(path) as answer:
                is_json = answer.content_type == "application/json"
                return answer.status, answer.content_type, await (answer.json() if is_json else answer.text())

        yield request
    await monitor.stop()


async def test_pages(get: Any) -> None:
    assert await get("/varz") == (200, "application/json", {"in_msgs": 5})
    assert await get("/connz") == (200, "application/json", {"total": 2})
    status, kind, text = await get("/metrics")
    assert (status, kind) == (200, "text/plain")
    assert "\nthings_total 3.0\n" in text
    status, kind, text = await get("/")
    assert (status, kind) == (200, "text/html")
    assert [path in text for path in ("/varz", "/connz", "/healthz", "/metrics")] == [True] * 4
    assert (await get("/other"))[0] == 404


async def test_health(get: Any, health: Health) -> None:
    assert await get("/healthz") == (200, "application/json", {"status": "ok"})
    health.problem = "no sink"
    expected = {"status": "unavailable", "status_code": 503, "error": "no sink"}
    assert await get("/healthz") == (503, "application/json", expected)


async def test_an_address_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monitor = Monitor("127.0.0.1", port, dict, lambda: None, CollectorRegistry())
        with pytest.raises(OSError, match="in use"):
            await monitor.start()
        await asyncio.wait_for(monitor.stop(), 1)


# -- what the gateway shows -------------------------------------------------------------------------------------------


def test_reports_have_nats_servers_names() -> None:
    plane = make_plane(users=(UserEntry("u", "p"),), max_subscriptions=7, ping_interval_ms=2_000)
    session = plane.connect("10.0.0.1", 50_000, 1_000)
    connect = b'CONNECT {"user":"u","pass":"p","name":"me","lang":"python3","version":"2.0"}\r\n'
    plane.receive(session, connect + b"SUB a.* 1\r\nSUB b q s\r\nUNSUB s 9\r\nPUB a.b 2\r\nhi\r\n", 2_000)

    varz = reports.varz(plane, started_ms=0, now_ms=26 * HOUR_MS + 61_000, wall_ms=1_700_000_000_123)
    assert varz["uptime"] == "1d2h1m1s"
    assert varz["now"] == "2023-11-14T22:13:20.123Z"
    assert (varz["in_msgs"], varz["in_bytes"], varz["out_msgs"], varz["subscriptions"]) == (1, 2, 1, 2)
    assert (varz["connections"], varz["max_subscriptions"], varz["auth_required"]) == (1, 7, True)
    assert varz["ping_interval"] == 2_000_000_000

    connz = reports.connz(plane, now_ms=11_000, wall_ms=1_700_000_000_000)
    assert (connz["num_connections"], connz["total"]) == (1, 1)
    (shown,) = connz["connections"]  # type: ignore[misc]
    assert (shown["cid"], shown["ip"], shown["port"], shown["idle"], shown["uptime"]) == (
        1,
        "10.0.0.1",
        50_000,
        "9s",
        "10s",
    )
    assert (shown["start"], shown["authorized_user"], shown["lang"]) == ("2023-11-14T22:13:10.000Z", "u", "python3")
    assert (shown["subscriptions"], shown["in_msgs"], shown["out_bytes"]) == (2, 1, 2)

    subsz = reports.subsz(plane, wall_ms=1_700_000_000_000)
    assert (subsz["num_subscriptions"], subsz["num_inserts"], subsz["num_removes"]) == (2, 2, 0)
    details = sorted(subsz["subscriptions_list"], key=lambda detail: detail["subject"])  # type: ignore[call-overload]
    assert details == [
        {"subject": "a.*", "sid": "1", "msgs": 1, "cid": 1},
        {"subject": "b", "qgroup": "q", "sid": "s", "msgs": 0, "max": 9, "cid": 1},
    ]


def test_lists_are_bounded() -> None:
    plane = make_plane()
    for _ in range(5):
        plane.receive(plane.connect("10.0.0.1", 1, 0), b"SUB a 1\r\n", 0)
    connz = reports.connz(plane, now_ms=0, wall_ms=0, limit=3)
    subsz = reports.subsz(plane, wall_ms=0, limit=3)
    assert (connz["num_connections"], connz["total"], len(subsz["subscriptions_list"])) == (3, 5, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("elapsed_ms", "text"), [(0, "0s"), (59_999, "59s"), (60_000, "1m0s"), (24 * HOUR_MS, "1d0h0m0s")]
)
def test_duration(elapsed_ms: int, text: str) -> None:
    assert reports.duration(elapsed_ms) == text
