"""What an acknowledgement means, what a full outbox does, and that one client never harms another."""

import asyncio
import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import bcrypt
import nats.errors
import pytest
from nats.aio.client import Client
from support.events import Publisher, everything, fetch, published, readable
from support.processes import Folder, client

from mesh import daemon
from protocol import config
from sinkd.shell.journal import Journal

STREAM = "--stream", "text=text.>"
MIB = 1024 * 1024
LOOPBACK_BYTES = 16 * MIB  # what the kernel holds of a connection that is not read, at most
ROUND_TRIP_MS_MAX = 3_000  # a client that is held up would wait for longer


@contextlib.asynccontextmanager
async def raw(port: int, **options: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that says CONNECT, and of itself says and reads nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64 * 1024)
    connect = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True} | options
    writer.write(b"CONNECT %b\r\n" % json.dumps(connect).encode())
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def round_trip_ms(connection: Client) -> float:
    """How long a live event takes from this connection to itself."""
    inbox = connection.new_inbox()
    subscription = await connection.subscribe(inbox)
    begun = time.monotonic()
    await connection.publish(inbox, b"")
    await subscription.next_msg(60)
    await subscription.unsubscribe()
    return (time.monotonic() - begun) * 1000


# -- acknowledged means synced ----------------------------------------------------------------------------------------


async def test_every_acknowledgement_outlives_a_kill_at_that_very_moment(folder: Folder) -> None:
    expected = []
    for life in range(5):
        daemon_ = await folder.up(*STREAM)
        async with client(folder.url) as connection:
            assert [event.payload for event in await everything(connection, "text")] == expected
            publisher = await Publisher(connection, "text.a", window=1).open()
            for number in range(3):
                expected.append(b"%d/%d" % (life, number))
                await publisher.send(number, expected[-1])
            await publisher.settle()
            daemon_.kill()
    await folder.up(*STREAM)
    async with client(folder.url) as connection:
        assert [event.payload for event in await everything(connection, "text")] == expected


async def test_nothing_is_acknowledged_or_shown_before_it_is_synced(tmp_path: Path) -> None:
    """In this process, with a disk that takes its time."""
    may_sync, sync = threading.Event(), Journal.sync
    may_sync.set()

    def slow_sync(journal: Journal) -> None:
        assert may_sync.wait(60)
        sync(journal)

    with mock.patch.object(Journal, "sync", slow_sync):
        async with _embedded(tmp_path) as url, client(url) as connection:
            assert (await published(connection, "text.a", b"one"))["offset"] == 0
            publisher = await Publisher(connection, "text.a").open()
            may_sync.clear()
            try:
                await publisher.send(0, b"two")
                assert (await fetch(connection, "text", offset=1, max_wait_ms=300)).events == []
                assert (await fetch(connection, "text", offset=0)).high_watermark == 1
                assert publisher.answers == {}
            finally:
                may_sync.set()
            await publisher.settle()
            assert publisher.answers[0]["offset"] == 1
            assert [event.payload for event in await everything(connection, "text")] == [b"one", b"two"]


@contextlib.asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[str]:
    """What `mesh up` runs, here."""
    configuration = config.embedded(
        client=config.Address("127.0.0.1", 0),
        monitor=None,
        data=str(folder / "data"),
        mode="event-sinks",
        streams={"text": ["text.>"]},
        disk_reserve_bytes=MIB,
    )
    node = daemon._embedded(configuration)
    try:
        await node.start()
        assert node.clients is not None
        yield f"nats://127.0.0.1:{node.clients[1]}"
    finally:
        await node.stop()


# -- back-pressure ----------------------------------------------------------------------------------------------------


async def test_a_publisher_that_outruns_a_stopped_sink_is_paused_and_loses_nothing(folder: Folder) -> None:
    """The sink stops for longer than its link may be silent; the outbox is small, the publisher is not."""
    folder.write_config('[streams.text]\nsubjects = ["text.>"]\noutbox = { bytes = "1MiB" }')
    gateway, sink = await folder.both()
    payloads = [b"%05d" % number + bytes(100_000) for number in range(600)]
    async with client(folder.url) as other, raw(folder.client_port) as (_, writer):
        assert (await published(other, "text.a", b"first"))["offset"] == 0
        before_bytes = gateway.memory_bytes()
        sink.send(signal.SIGSTOP)
        stopped_at = time.monotonic()
        publishing = asyncio.create_task(_publish(writer, payloads))
        sent = await _until_it_stands_still(writer, publishing)
        assert sent * 100_000 < MIB + LOOPBACK_BYTES
        assert gateway.memory_bytes() - before_bytes < 12 * MIB
        answer = await published(other, "text.a", b"refused")
        assert (answer["error"]["code"], answer["error"]["err_code"]) == (429, 10167)
        while time.monotonic() - stopped_at < 6.5:
            assert await round_trip_ms(other) < ROUND_TRIP_MS_MAX
            await asyncio.sleep(0.1)
        assert not publishing.done()
        sink.send(signal.SIGCONT)
        await asyncio.wait_for(publishing, 60)
        await _until_end(other, 1 + len(payloads))
        assert [event.payload for event in await everything(other, "text")] == [b"first", *payloads]
        assert gateway.memory_bytes() - before_bytes < 24 * MIB
    assert await gateway.stop() == 0


async def _publish(writer: asyncio.StreamWriter, payloads: list[bytes]) -> None:
    writer.transport.set_write_buffer_limits(1)
    for payload in payloads:
        writer.write(b"PUB text.a %d\r\n%b\r\n" % (len(payload), payload))
        writer.sent = getattr(writer, "sent", 0) + 1
        await writer.drain()


async def _until_it_stands_still(writer: asyncio.StreamWriter, publishing: asyncio.Task[None]) -> int:
    """How many events were sent when no more were taken for a while."""
    sent = -1
    while (now := getattr(writer, "sent", 0)) == 0 or sent != now:
        sent = now
        await asyncio.sleep(1)
    assert not publishing.done(), "it was never paused"
    return sent


async def _until_end(connection: Client, end: int) -> None:
    async with asyncio.timeout(60):
        while True:
            fetched = await fetch(connection, "text", offset=0, max_records=1)
            if fetched.status == "204" and fetched.high_watermark >= end:
                return
            await asyncio.sleep(0.05)


# -- a slow reader ----------------------------------------------------------------------------------------------------


async def test_a_reader_who_does_not_read_costs_little_and_gets_everything_in_the_end(folder: Folder) -> None:
    server = await folder.up(*STREAM)
    payloads = [b"%05d" % number + bytes(100_000) for number in range(800)]
    async with client(folder.url) as other, raw(folder.client_port) as (reader, writer):
        publisher = await Publisher(other, "text.a", window=50).open()
        for number, payload in enumerate(payloads):
            await publisher.send(number, payload)
        await publisher.settle()
        before_bytes = server.memory_bytes()
        fetches = 40
        writer.write(b"SUB inbox.* 1\r\n")
        for number in range(fetches):
            request = json.dumps({"offset": number, "max_bytes": 8_000_000, "max_records": 79}).encode()
            writer.write(b"PUB $LOG.FETCH.text.0 inbox.%d %d\r\n%b\r\n" % (number, len(request), request))
        await writer.drain()
        most_bytes = 0
        until_s = time.monotonic() + 3
        while time.monotonic() < until_s:
            assert await round_trip_ms(other) < ROUND_TRIP_MS_MAX
            most_bytes = max(most_bytes, server.memory_bytes() - before_bytes)
            await asyncio.sleep(0.05)
        assert most_bytes < 120 * MIB, "of 300 MiB that were asked for"
        assert (await published(other, "text.a", b"unharmed"))["offset"] == len(payloads)
        await asyncio.wait_for(_read_all(reader, fetches, 79), 60)
    assert await server.stop() == 0


async def _read_all(reader: asyncio.StreamReader, fetches: int, records: int) -> None:
    """Reads `fetches` answers, interleaved, and checks each: its events in order, then its end."""
    shown: dict[bytes, list[int]] = {}
    ended = 0
    while ended < fetches:
        line = await reader.readline()
        if not line.startswith(b"HMSG"):
            assert line.startswith((b"INFO", b"PING")), line
            continue
        subject, *_, header_bytes, size_bytes = line.split()[1:]
        message = await reader.readexactly(int(size_bytes) + 2)
        if message.startswith(b"NATS/1.0 204"):
            ended += 1
        else:
            payload = message[int(header_bytes) :]
            assert int(re.search(rb"Log-Offset: (\d+)", message)[1]) == int(payload[:5])
            shown.setdefault(subject, []).append(int(payload[:5]))
    for subject, numbers in shown.items():
        first = int(subject.split(b".")[1])
        assert numbers == list(range(first, first + records))
    assert len(shown) == fetches


# -- users ------------------------------------------------------------------------------------------------------------

USERS = """
    [streams.text]
    subjects = ["text.>"]
    [streams.notes]
    subjects = ["notes.>"]
    [[users]]
    user = "boss"
    password = "plain"
    [[users]]
    user = "shop"
    password = "HASH"
    permissions = { publish = ["text.>", "$LOG.>"], subscribe = ["_INBOX.>", "text.open.>"], history = ["text"] }
    [[users]]
    token = "t0ken"
    permissions = { publish = ["$LOG.>"], history = [] }
"""


@pytest.fixture
async def guarded(folder: Folder) -> Folder:
    folder.write_config(USERS.replace("HASH", bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()))
    await folder.both()
    async with client(folder.url, user="boss", password="plain") as boss:
        await readable(boss, "text")
    return folder


async def test_who_does_not_know_the_secret_is_turned_away(guarded: Folder) -> None:
    for credentials in (
        {},
        {"user": "boss", "pass": "no"},
        {"user": "shop", "pass": "no"},
        {"auth_token": "no"},
        {"user": "nobody", "pass": "plain"},
    ):
        async with raw(guarded.client_port, **credentials) as (reader, writer):
            writer.write(b"PUB text.a 3\r\nbad\r\nPING\r\n")
            said = await asyncio.wait_for(reader.read(-1), 60)
            assert said.startswith(b"INFO ")
            assert said.endswith(b"\r\n-ERR 'Authorization Violation'\r\n")
    async with client(guarded.url, user="boss", password="plain") as boss:
        assert await everything(boss, "text") == []


async def test_history_shows_what_its_reader_may_subscribe_to(guarded: Folder) -> None:
    async with client(guarded.url, user="boss", password="plain") as boss:
        for subject in ("text.open.a", "text.closed.a", "text.open.b", "text.closed.b", "notes.a"):
            assert "error" not in await published(boss, subject, subject.encode())
        assert len(await everything(boss, "text")) == 4
    async with client(guarded.url, user="shop", password="secret") as shop:
        assert [event.subject for event in await everything(shop, "text")] == ["text.open.a", "text.open.b"]
        assert (await fetch(shop, "text", offset=3)).next_offset == 4
        assert (await published(shop, "text.closed.c"))["offset"] == 4
        denied = await fetch(shop, "notes", offset=0)
        assert (denied.status, denied.headers["Description"]) == ("403", "AUTHORIZATION_FAILED")
        assert await _streams(shop) == ["text"]
        with pytest.raises(nats.errors.TimeoutError):
            await shop.request("notes.a", b"not allowed", 0.3)
    async with client(guarded.url, token="t0ken") as reader:
        assert (await fetch(reader, "text", offset=0)).headers["Description"] == "AUTHORIZATION_FAILED"
        assert await _streams(reader) == []
    async with client(guarded.url, user="boss", password="plain") as boss:
        assert [event.payload for event in await everything(boss, "notes")] == [b"notes.a"]
        assert set(await _streams(boss)) == {"text", "notes", "events"}


async def _streams(connection: Client) -> list[str]:
    answer = json.loads((await connection.request("$LOG.METADATA", b"", 60)).data)
    return [stream["stream"] for stream in answer["streams"]]


async def test_no_number_in_a_request_stays_without_an_answer(folder: Folder) -> None:
    await folder.up(*STREAM)
    async with client(folder.url) as reader:
        enormous = 2**64
        denied = await fetch(reader, "text", enormous, offset=0)
        assert (denied.status, denied.headers["Description"]) == ("404", "UNKNOWN_REQUEST")
        for request in ({"at": "timestamp", "timestamp": enormous}, {"at": "latest", "partitions": [enormous]}):
            answer = await reader.request("$LOG.OFFSETS.text", json.dumps(request).encode(), 60)
            assert json.loads(answer.data)["error"]["name"] == "INVALID_REQUEST"


async def test_requests_that_nobody_listens_to_leave_room_for_others(folder: Folder) -> None:
    await folder.up(*STREAM)
    async with client(folder.url) as reader:
        for number in range(64):
            await reader.publish("$LOG.FETCH.text.0", b'{"offset": 0, "max_wait_ms": 60000}', f"given.up.{number}")
        assert (await fetch(reader, "text", offset=0)).status == "204"
        inbox = await reader.subscribe("wanted.*")
        for number in range(65):
            await reader.publish("$LOG.FETCH.text.0", b'{"offset": 0, "max_wait_ms": 60000}', f"wanted.{number}")
        refused = await inbox.next_msg(60)
        assert (refused.subject, (refused.headers or {})["Description"]) == ("wanted.64", "THROTTLING_QUOTA_EXCEEDED")
