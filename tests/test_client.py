"""`mesh.client`: history with the names of Kafka's consumers, over a connection that may be lost at any time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import nats
import pytest
from support.fakelog import FakeLog, FakeStream, fake_log
from support.natsserver import NatsServer, nats_server

from mesh import client, log_reader
from mesh.client import LogConsumer, LogError, NoAnswer, Partition, Record
from mesh.connection import connect
from mesh.log_reader import LogReader
from mesh.settings import ClientSettings

ORDERS = Partition("orders", 0)


def orders(count: int = 10, partitions: int = 1) -> FakeStream:
    """Event `n` of a partition: subject orders.eu or orders.us by turns, time 1000 + 10 n, payload `n`."""
    stream = FakeStream("orders", "orders.>", partitions)
    for partition in range(partitions):
        for number in range(count):
            subject = "orders.eu" if number % 2 == 0 else "orders.us"
            stream.add(subject, f"{number}".encode(), partition=partition, timestamp_ms=1000 + 10 * number)
    return stream


@asynccontextmanager
async def consumer_of(
    *streams: FakeStream, reset: client.Reset = "error", filter: str | None = None
) -> AsyncIterator[tuple[LogConsumer, FakeLog, NatsServer]]:
    async with nats_server() as server, fake_log(server.url, *streams) as log:
        async with await client.connect(server.url, auto_offset_reset=reset, filter=filter) as consumer:
            yield consumer, log, server
        await log.stop()  # before its server


async def take(consumer: LogConsumer, count: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(60):
        async for record in consumer:
            records.append(record)
            if len(records) == count:
                return records
    raise AssertionError("the iteration ended")


def offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


async def test_who_needs_all_partitions_waits_until_each_has_a_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "CLIENT_RETRY_PAUSE_MS", 1)
    async with consumer_of(orders(partitions=2)) as (consumer, log, _):
        reader = LogReader(consumer.connection)
        log.leaderless = 4
        (info,) = (await reader.metadata("orders")).streams
        assert [(row.leader, row.error) for row in info.partitions] == [(None, "LEADER_NOT_AVAILABLE"), ("sink1", "")]
        assert (await reader.partitions("orders", needed=1))[0].error
        assert [row.high_watermark for row in await reader.partitions("orders")] == [10, 10]
        assert log.leaderless == 0
        log.leaderless = 1_000
        monkeypatch.setattr(log_reader, "CLIENT_RETRY_MS", 1)
        with pytest.raises(LogError, match="nobody leads partition 0 of orders"):
            await reader.partitions("orders")


async def test_a_record_is_what_was_published() -> None:
    stream = FakeStream("orders", "orders.>")
    block = b"NATS/1.0\r\nTag: one\r\nLog-Offset: 99\r\nTag:two\r\nOriginal-Tag: x\r\nRaw: \xff\r\n\r\n"
    stream.add("orders.new", b"\x00\xff\r\n", timestamp_ms=1234, block=block)
    async with consumer_of(stream) as (consumer, _, _):
        (record,) = (await consumer.fetch(ORDERS, offset=0)).records
    headers = {"Tag": ["one", "two"], "Log-Offset": ["99"], "Original-Tag": ["x"], "Raw": ["\udcff"]}
    assert record == Record("orders", "local", 0, 0, 1234, "orders.new", headers, b"\x00\xff\r\n")


async def test_headers_over_a_connection_of_nats_py() -> None:
    stream = FakeStream("orders", "orders.>")
    stream.add("orders.new", b"x", timestamp_ms=1, block=b"NATS/1.0\r\nTag: one\r\nNats-Subject: forged\r\n\r\n")
    async with nats_server() as server, fake_log(server.url, stream) as log:
        connection = await nats.connect(server.url)
        async with LogConsumer(connection) as consumer:
            (record,) = (await consumer.fetch(ORDERS, offset=0)).records
        assert connection.is_connected, "it is the application's"
        await connection.close()
        await log.stop()
    assert (record.subject, record.headers) == ("orders.new", {"Tag": ["one"], "Nats-Subject": ["forged"]})


async def test_fetch_says_where_to_go_on() -> None:
    async with consumer_of(orders()) as (consumer, _, _):
        result = await consumer.fetch(ORDERS, offset=2, end_offset=8, filter="orders.us", max_records=2)
        assert (offsets(result.records), result.next_offset) == ([3, 5], 6)
        assert (result.high_watermark, result.start_offset) == (10, 0)
        assert offsets((await consumer.fetch(ORDERS, timestamp=1071)).records) == [8, 9]
        assert (await consumer.fetch(ORDERS, offset=10)).records == []


async def test_kafkas_questions() -> None:
    stream = orders(10, partitions=2)
    stream.start_offsets[1] = 3
    async with consumer_of(stream) as (consumer, _, _):
        one, other = sorted(await consumer.partitions_for("orders"))
        assert (one, other) == (ORDERS, Partition("orders", 1))
        assert await consumer.beginning_offsets([one, other]) == {one: 0, other: 3}
        assert await consumer.end_offsets([one, other]) == {one: 10, other: 10}
        times = await consumer.offsets_for_times({one: 1001, other: 2000})
        assert times == {one: client.OffsetAndTimestamp(1, 1010), other: None}
        (info,) = (await consumer.metadata("orders")).streams
        assert [row.log_start_offset for row in info.partitions] == [0, 3]
        assert [each.stream for each in (await consumer.metadata()).streams] == ["orders"]


async def test_seek_position_poll() -> None:
    async with consumer_of(orders()) as (consumer, _, _):
        consumer.assign([ORDERS])
        assert consumer.assignment() == {ORDERS}
        consumer.seek(ORDERS, 4)
        assert await consumer.position(ORDERS) == 4
        records = (await consumer.poll(timeout_ms=5_000, max_records=3))[ORDERS]
        assert (offsets(records), await consumer.position(ORDERS)) == ([4, 5, 6], 7)
        await consumer.seek_to_end()
        assert await consumer.poll(timeout_ms=50) == {}
        await consumer.seek_to_beginning(ORDERS)
        assert offsets(await take(consumer, 10)) == list(range(10))
        assert consumer.highwater(ORDERS) == 10


async def test_where_a_partition_without_seek_begins() -> None:
    stream = orders()
    stream.start_offsets[0] = 2
    async with consumer_of(stream) as (consumer, _, _):
        consumer.assign([ORDERS])
        assert await consumer.position(ORDERS) == 2
        assert offsets(await take(consumer, 1)) == [2]
    async with consumer_of(stream, reset="latest") as (consumer, _, _):
        consumer.assign([ORDERS])
        assert await consumer.position(ORDERS) == 10


async def test_new_events_come_as_they_are_published() -> None:
    async with consumer_of(orders(2)) as (consumer, _, server):
        consumer.assign([ORDERS])
        await consumer.seek_to_end()
        waiting = asyncio.create_task(take(consumer, 3))
        publisher = await connect(ClientSettings(server=server.url))
        for number in range(3):
            await publisher.publish("orders.eu", str(number).encode())
        assert [record.value for record in await waiting] == [b"0", b"1", b"2"]
        await publisher.close()


async def test_a_filter_moves_the_position_past_what_it_leaves_out() -> None:
    async with consumer_of(orders(), filter="orders.none") as (consumer, _, _):
        consumer.assign([ORDERS])
        assert await consumer.poll(timeout_ms=100) == {}
        assert await consumer.position(ORDERS) == 10


async def test_a_gap_is_told_and_passed() -> None:
    stream = orders(4)
    stream.gaps[2] = (7, "outbox full")
    async with consumer_of(stream) as (consumer, _, _):
        result = await consumer.fetch(ORDERS, offset=0)
        assert (offsets(result.records), result.next_offset) == ([0, 1, 3], 4)
        assert result.gaps == (client.Gap(2, 2, 7, "outbox full"),)
        told: list[tuple[Partition, client.Gap]] = []
        other = LogConsumer(consumer.connection, on_gap=lambda partition, gap: told.append((partition, gap)))
        other.assign([ORDERS])
        assert offsets(await take(other, 3)) == [0, 1, 3]
        assert told == [(ORDERS, client.Gap(2, 2, 7, "outbox full"))]
        await other.close()


async def test_paused_partitions_keep_their_position() -> None:
    async with consumer_of(orders(4, partitions=2)) as (consumer, _, _):
        one, other = partitions = sorted(await consumer.partitions_for("orders"))
        consumer.assign(partitions)
        consumer.pause(one)
        assert consumer.paused() == {one}
        records = await take(consumer, 4)
        assert {record.partition for record in records} == {other.partition}
        assert await consumer.poll(timeout_ms=50) == {}
        consumer.resume(one)
        assert [(record.partition, record.offset) for record in await take(consumer, 4)] == [
            (one.partition, n) for n in range(4)
        ]


async def test_every_partition_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CLIENT_FETCHES_MAX", 2)
    async with consumer_of(orders(3, partitions=7)) as (consumer, _, _):
        consumer.assign(await consumer.partitions_for("orders"))
        records = await take(consumer, 21)
    for partition in range(7):
        assert [record.offset for record in records if record.partition == partition] == [0, 1, 2]


async def test_out_of_range_is_raised_or_reset() -> None:
    stream = orders()
    stream.start_offsets[0] = 5
    async with consumer_of(stream) as (consumer, _, _):
        consumer.assign([ORDERS])
        consumer.seek(ORDERS, 1)
        for _ in range(2):
            with pytest.raises(LogError, match="the log holds 5 to 10") as caught:
                await consumer.poll(timeout_ms=5_000)
        assert (caught.value.name, caught.value.details) == (
            "OFFSET_OUT_OF_RANGE",
            {"start_offset": 5, "high_watermark": 10},
        )
        consumer.seek(ORDERS, 8)
        assert offsets(await take(consumer, 2)) == [8, 9]
    async with consumer_of(stream, reset="earliest") as (consumer, _, _):
        consumer.assign([ORDERS])
        consumer.seek(ORDERS, 1)
        assert offsets(await take(consumer, 5)) == [5, 6, 7, 8, 9]


async def test_errors_have_names() -> None:
    async with consumer_of(orders()) as (consumer, _, _):
        with pytest.raises(LogError, match="no stream 'nope'") as caught:
            await consumer.metadata("nope")
        assert caught.value.name == "UNKNOWN_STREAM"
        with pytest.raises(LogError, match="not the name of a stream"):
            await consumer.metadata("no.such stream")
        with pytest.raises(LogError, match="max_records must be from 1") as caught:
            await consumer.fetch(ORDERS, offset=0, max_records=0)
        assert caught.value.name == "INVALID_REQUEST"
        with pytest.raises(RuntimeError, match="no partition is assigned"):
            await consumer.poll()
        with pytest.raises(ValueError, match="is not assigned"):
            consumer.seek(ORDERS, 1)


async def test_a_server_without_a_log_is_named() -> None:
    async with nats_server() as server, await client.connect(server.url) as consumer:
        for question in (consumer.metadata(), consumer.fetch(ORDERS, offset=0)):
            with pytest.raises(LogError, match=f"at 127.0.0.1:{server.port}: is it an Event Mesh gateway") as caught:
                await question
            assert caught.value.name == "NO_LOG"


async def test_a_request_that_may_not_be_sent(tmp_path: Path) -> None:
    file = tmp_path / "server.conf"
    file.write_text('authorization { users = [ { user: u, password: p, permissions: { publish: "x" } } ] }')
    async with (
        nats_server("-c", str(file)) as server,
        await client.connect(server.url, user="u", password="p") as consumer,
    ):
        with pytest.raises(LogError, match="permissions violation for publish") as caught:
            await consumer.fetch(ORDERS, offset=0)
    assert caught.value.name == "AUTHORIZATION_FAILED"


# -- asking again -----------------------------------------------------------------------------------------------------


async def test_a_missing_leader_is_waited_for() -> None:
    async with consumer_of(orders()) as (consumer, log, _):
        log.fail = [LogError("LEADER_NOT_AVAILABLE", "electing"), LogError("THROTTLING_QUOTA_EXCEEDED", "wait")]
        assert offsets((await consumer.fetch(ORDERS, offset=8)).records) == [8, 9]


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "CLIENT_RETRY_MS", 300)
    monkeypatch.setattr(log_reader, "CLIENT_ANSWER_MS", 100)
    async with consumer_of(orders()) as (consumer, log, _):
        log.silent = 1_000
        with pytest.raises(NoAnswer, match=r"no answer to \$LOG.FETCH.orders.0"):
            await consumer.fetch(ORDERS, offset=0)
        log.silent, log.fail = 0, [LogError("LEADER_NOT_AVAILABLE", "electing")] * 100
        with pytest.raises(LogError, match="electing"):
            await consumer.metadata("orders")


async def test_an_answer_that_breaks_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "CLIENT_ANSWER_MS", 200)
    async with consumer_of(orders()) as (consumer, log, _):
        log.cut_after = 4
        consumer.assign([ORDERS])
        assert offsets(await take(consumer, 10)) == list(range(10))


async def test_every_record_once_though_the_server_dies_again_and_again() -> None:
    stream = orders(400)
    server = NatsServer()
    await server.start()
    async with fake_log(server.url, stream) as log:
        connection = await connect(ClientSettings(server=server.url))
        consumer = LogConsumer(connection, max_bytes=3_000)
        consumer.assign([ORDERS])
        records: list[Record] = []
        for round_ in range(3):
            records += await take(consumer, 100)
            await server.stop()
            await asyncio.sleep(0.02 * round_)
            await server.start()
        records += await take(consumer, 100)
        assert offsets(records) == list(range(400))
        await consumer.close()
        await connection.close()
        await log.stop()
    await server.stop()


async def test_nothing_is_left_behind() -> None:
    async with nats_server() as server, fake_log(server.url, orders()) as log:
        connection = await connect(ClientSettings(server=server.url))
        async with LogConsumer(connection) as consumer:
            consumer.assign([ORDERS])
            await take(consumer, 10)
            await consumer.poll(timeout_ms=10)
        await consumer.close()
        assert not connection._subs, "inboxes are given up"
        with pytest.raises(RuntimeError, match="closed"):
            await consumer.poll()
        await connection.close()
        with pytest.raises(nats.errors.ConnectionClosedError):
            await consumer.fetch(ORDERS, offset=0)
        await log.stop()


async def test_read_goes_from_offset_to_offset_one_fetch_ahead() -> None:
    async with nats_server() as server, fake_log(server.url, orders(2_500)) as log:
        connection = await connect(ClientSettings(server=server.url))
        reader = LogReader(connection)
        results = [result async for result in reader.read(ORDERS, 3, 2_400)]
        assert offsets([record for result in results for record in result.records]) == list(range(3, 2_400))
        starts = [request["offset"] for subject, request in log.requests if "FETCH" in subject]
        assert starts == [3, 1_003, 2_003]
        async with aclosing(reader.read(ORDERS, 0, 2_400)) as some:
            async for _ in some:
                break
        with pytest.raises(NoAnswer, match="ends at 2500, before 2600"):
            [result async for result in reader.read(ORDERS, 2_400, 2_600)]
        await connection.close()
        await log.stop()
    assert all(one < other for one, other in pairwise(starts))
