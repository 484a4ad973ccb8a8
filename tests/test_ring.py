"""The latest events of a gateway without sinks: offsets, what makes room for what, and `$LOG` on it."""

import asyncio
import json

import pytest
from nats.errors import NoRespondersError
from support.events import fetch
from support.gateways import gateways_of, url_of, zone_text
from support.processes import client, settle

from gateway.core.engine import BEST
from gateway.core.ring import Rings
from mesh.advice import advice
from protocol import config
from protocol.config import Config
from protocol.errors import LogError
from protocol.limits import BATCH_BYTES_MAX, BATCH_BYTES_TARGET
from protocol.records import read_records, split_batches


def configuration(more: str = "") -> Config:
    return config.parse(zone_text(("gw1",), more), "mesh.toml")


def rings(bytes_max: int, accounts: str = "") -> Rings:
    made = configuration(accounts)
    return Rings(bytes_max, (made.catch_all, *made.account_catch_alls), BEST)


def read(ring, offset: int, bytes_max: int = 1 << 20) -> list[tuple[int, bytes]]:
    batches = split_batches(ring.read(offset, bytes_max))
    return [(record.offset, bytes(record.payload)) for batch in batches for record in read_records(batch)]


def test_offsets_are_dense_whichever_way_events_come():
    held = rings(1 << 20)
    ring = held.by_account["$G"]
    for number in range(5):
        held.add("$G", "a", b"", b"%d" % number, 1_000 + number)
    lane, key = held.lane("$G", "b")
    assert lane.take(b"b", key, 1_005, b"", b"5", b"_INBOX.1")
    assert (ring.start_offset, ring.end_offset) == (0, 6)
    assert read(ring, 0) == [(number, b"%d" % number) for number in range(6)]
    assert lane.take(b"b", key, 1_006, b"", b"6", b"")
    assert read(ring, 6) == [(6, b"6")]
    assert ring.read(7, 1 << 20) == b""


def test_the_oldest_make_room_and_cannot_be_read_any_more():
    held = rings(4 * BATCH_BYTES_TARGET)
    ring = held.by_account["$G"]
    for number in range(100):
        held.add("$G", "a", b"", b"%d " % number + bytes(BATCH_BYTES_TARGET // 4), 1_000)
    assert held.size_bytes <= 4 * BATCH_BYTES_TARGET
    assert ring.end_offset == 100
    assert held.events == 100 - ring.start_offset == 100 - held.events_dropped
    assert 8 < held.events < 20
    with pytest.raises(LogError) as caught:
        ring.read(ring.start_offset - 1, 1)
    assert caught.value.name == "OFFSET_OUT_OF_RANGE"
    assert caught.value.details == {"start_offset": ring.start_offset, "high_watermark": 100}
    first = read(ring, ring.start_offset, 1)
    assert first[0][0] == ring.start_offset
    assert first[0][1].startswith(b"%d " % ring.start_offset)


def test_accounts_have_rings_of_their_own_and_share_the_room():
    held = rings(2 * BATCH_BYTES_TARGET, "[accounts]\nACME = {}\n")
    held.add("ACME", "a", b"", b"theirs", 1_000)
    held.by_account["ACME"].seal()
    for _ in range(20):
        held.add("$G", "a", b"", bytes(BATCH_BYTES_TARGET // 2), 1_000)
    theirs = held.by_account["ACME"]
    assert (theirs.state.name, theirs.start_offset, theirs.end_offset) == ("events-ACME", 1, 1)
    assert held.size_bytes <= 2 * BATCH_BYTES_TARGET


def test_a_large_event_stands_alone_and_one_that_is_too_large_is_counted():
    held = rings(64 << 20)
    held.add("$G", "a", b"", b"small", 1_000)
    held.add("$G", "a", b"", bytes(BATCH_BYTES_TARGET), 1_000)
    held.add("$G", "a", b"", bytes(BATCH_BYTES_MAX), 1_000)
    ring = held.by_account["$G"]
    assert (ring.end_offset, held.events_too_large) == (2, 1)
    assert [len(payload) for _, payload in read(ring, 0)] == [5, BATCH_BYTES_TARGET]


def test_an_event_that_is_larger_than_the_ring_leaves_it_empty():
    held = rings(1_000)
    held.add("$G", "a", b"", bytes(BATCH_BYTES_TARGET), 1_000)
    ring = held.by_account["$G"]
    assert (ring.start_offset, ring.end_offset, held.size_bytes) == (1, 1, 0)


def test_places_by_time():
    held = rings(1 << 20)
    ring = held.by_account["$G"]
    for at_ms in (1_000, 1_010, 1_020):
        held.add("$G", "a", b"", b"", at_ms)
        ring.seal()
    assert [ring.offset_for_time(at) for at in (0, 1_010, 1_011, 1_021)] == [
        (0, 1_000), (1, 1_010), (2, 1_020), (-1, -1),
    ]  # fmt: skip
    assert [ring.offset_until_time(at) for at in (0, 1_010, 1_011, 9_000)] == [0, 1, 2, 3]


# -- over `$LOG` ------------------------------------------------------------------------------------------------------


def with_buffer(names: tuple[str, ...], more: str = "") -> str:
    return zone_text(names, more).replace('mode = "delivery-fabric"', 'mode = "delivery-fabric"\nbuffer = "1MiB"')


async def error_of(connection, subject: str, body: bytes = b"") -> dict:
    return json.loads((await connection.request(subject, body, timeout=60)).data)["error"]


async def test_each_gateway_has_what_its_own_clients_have_published():
    text = with_buffer(("gw1", "gw2"))
    made = config.parse(text, "mesh.toml")
    async with (
        gateways_of(text, ("gw1", "gw2")),
        client(url_of(made, "gw1")) as one,
        client(url_of(made, "gw2")) as other,
    ):
        seen = await other.subscribe("a.>")
        await settle(other)
        for number in range(3):
            await one.publish("a.b", b"%d" % number, headers={"Of": "one"})
        await other.publish("c", b"there")
        assert [(await seen.next_msg(timeout=60)).data for _ in range(3)] == [b"0", b"1", b"2"]
        shown = await fetch(one, "events@gw1", 0, offset=0)
        assert [event[::2] for event in shown.events] == [(number, "a.b") for number in range(3)]
        assert [event.payload for event in shown.events] == [b"0", b"1", b"2"]
        assert [event.payload for event in (await fetch(other, "events", 0, offset=0)).events] == [b"there"]
        wrong = await fetch(one, "events@gw2", 0, offset=0)
        assert (wrong.status, wrong.headers["Description"]) == ("404", "UNKNOWN_STREAM")
        assert wrong.headers["Log-Error"] == "no log 'events@gw2' of 'gw2' is kept here; this ring is 'gw1'"
        metadata = json.loads((await one.request("$LOG.METADATA", b"", timeout=60)).data)
        (stream,) = metadata["streams"]
        assert (metadata["zone"], stream["stream"], stream["zone"], stream["reply"]) == (
            "gw1",
            "events",
            "gw1",
            "never",
        )
        assert (stream["partitions"][0]["leader"], stream["partitions"][0]["high_watermark"]) == ("gw1", 3)
        assert (await error_of(one, "$LOG.OFFSETS.events", b'{"at": "latest", "partitions": [1]}'))["name"] == (
            "UNKNOWN_PARTITION"
        )


async def test_requests_find_nobody_as_without_a_ring_and_are_in_it():
    text = with_buffer(("gw1",))
    async with gateways_of(text, ("gw1",)) as (gateway,), client(url_of(config.parse(text, "m"), "gw1")) as connection:
        for _ in range(3):
            with pytest.raises(NoRespondersError):
                await connection.request("nobody", b"asks", timeout=60)
        assert gateway.rings.events == 3
        await connection.publish("$JS.API.INFO", b"no event")
        await connection.publish("_INBOX.x", b"no event")
        await settle(connection)
        assert gateway.rings.events == 3


async def test_who_waits_at_the_end_is_told_what_comes():
    text = with_buffer(("gw1",))
    async with gateways_of(text, ("gw1",)), client(url_of(config.parse(text, "m"), "gw1")) as connection:
        waiting = asyncio.ensure_future(fetch(connection, "events", 0, offset=0, max_wait_ms=10_000))
        await settle(connection)
        for number in range(2):  # the second goes by the lane
            await connection.publish("a", b"%d" % number)
        assert [event.payload for event in (await waiting).events][:1] == [b"0"]
        await connection.publish("a", b"late")
        assert (await fetch(connection, "events", 0, offset=2, max_wait_ms=10_000)).events[0].payload == b"late"
        assert not (await fetch(connection, "events", 0, offset=3, max_wait_ms=20)).events


async def test_without_a_buffer_there_is_no_log():
    text = zone_text(("gw1",))
    async with gateways_of(text, ("gw1",)), client(url_of(config.parse(text, "m"), "gw1")) as connection:
        assert (await fetch(connection, "events", 0, offset=0)).headers["Description"] == "NO_LOG"


def test_a_buffer_that_nothing_uses_is_told():
    text = with_buffer(("gw1",))
    assert advice(config.parse(text, "mesh.toml")) == []
    kept = text.replace("delivery-fabric", "event-sinks") + (
        '[zones.eu.sinks.s1]\nlink = "127.0.0.1:1"\nraft = "127.0.0.1:2"\ndata = "d"\n'
    )
    assert [line[:11] for line in advice(config.parse(kept, "mesh.toml"))] == ["mesh.buffer"]
