"""`geo` over real sockets and files: a gateway of us, its sinks, and sinks of eu that hold copies, or are away."""

import asyncio
import contextlib
import json
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from support.processes import client
from support.zones import TwoZones

GEO = {"Mesh-Ack": "geo"}
PATIENT = 'ack = "geo"\ngeo = { timeout = "60s" }'
HASTY = """
[streams.late]
subjects = ["late.>"]
ack = "geo"
geo = { timeout = "200ms", on_timeout = "degrade" }
[streams.silent]
subjects = ["silent.>"]
geo = { timeout = "200ms" }
[streams.alone]
subjects = ["alone.>"]
replicate = []
"""
ANSWER_WAIT_S = 60.0


async def asked(connection: Client, subject: str, headers: dict[str, str] | None = None) -> dict[str, object]:
    message = await connection.request(subject, b"x", ANSWER_WAIT_S, headers=headers)
    answer: dict[str, object] = json.loads(message.data)
    return answer


@pytest.fixture
def zones(tmp_path: Path) -> TwoZones:
    return TwoZones(tmp_path, stream=PATIENT, more=HASTY)


async def test_publishers_hear_of_other_zones_or_what_the_stream_says_of_late_ones(zones: TwoZones) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(zones.stop)
        await zones.start()
        connection = await stack.enter_async_context(client(await stack.enter_async_context(zones.reading_in_us())))
        answers = await asyncio.gather(*(asked(connection, "orders.a") for _ in range(20)))
        assert {(answer["ack"], *answer["zones"]) for answer in answers} == {("geo", "eu")}  # type: ignore[misc]
        assert sorted(int(str(answer["offset"])) for answer in answers) == list(range(20))
        assert zones.end("e1", "orders@us") == 20
        refused = await asked(connection, "alone.a", GEO)
        assert refused["error"]["description"] == "geo is not available: no other zone keeps alone"  # type: ignore[index]
        assert (await asked(connection, "alone.a"))["offset"] == 0

        await zones.stop("e1")
        late = await asked(connection, "late.a")
        assert (late["offset"], late["ack"], late["geo"]) == (0, "quorum", False)
        geo = zones.us_gateway.outbox.geo
        silent = asyncio.ensure_future(connection.request("silent.a", b"x", 0.5, headers=GEO))
        await zones.until(lambda: geo.timeouts == 2, "given up")
        with pytest.raises(nats.errors.TimeoutError):
            await silent
        waiting = asyncio.ensure_future(asked(connection, "orders.a"))
        await zones.until(lambda: geo.waiting == 1, "committed here")
        await zones.start("e1")
        assert ((await waiting)["ack"], geo.waiting, geo.answered) == ("geo", 0, 21)


async def test_another_leader_answers_who_has_waited_under_the_old_one(tmp_path: Path) -> None:
    zones = TwoZones(tmp_path, sinks=3, stream=PATIENT)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(zones.stop)
        await zones.start()
        connection = await stack.enter_async_context(client(await stack.enter_async_context(zones.reading_in_us())))
        assert (await asked(connection, "orders.a"))["ack"] == "geo"
        await zones.stop("e1")
        waiting = [asyncio.ensure_future(asked(connection, "orders.a")) for _ in range(5)]
        await zones.until(lambda: zones.us_gateway.outbox.geo.waiting == 5, "committed here")
        await zones.stop(zones.leader)
        await zones.start("e1")
        answers = await asyncio.gather(*waiting)
        assert {answer["ack"] for answer in answers} == {"geo"}
        assert sorted(int(str(answer["offset"])) for answer in answers) == [1, 2, 3, 4, 5]
