"""A whole sink in this process, reached by a link over a socket pair: history, restarts, retention, configuration."""

import asyncio
import shutil
import socket

import msgspec
import pytest

from protocol import config, envelope, link, records
from protocol.envelope import Envelope
from protocol.errors import DamagedFile, DataError
from sinkd.shell.sink import Sink

ADDRESS = config.Address.parse("127.0.0.1:4222")


class Peer:
    """A gateway's end of a link."""

    def __init__(self, reader, writer):
        self._reader, self._writer, self._frames, self._seen = reader, writer, link.FrameReader(), []

    @classmethod
    async def of(cls, sink, zone="local"):
        ours, theirs = socket.socketpair()
        await sink.connect(theirs)
        peer = cls(*await asyncio.open_connection(sock=ours))
        peer.send(link.Hello("local", zone, "gw1"))
        return peer

    def send(self, message, tail=b""):
        self._writer.write(link.pack(message, tail))

    async def get(self, *kinds):
        while True:
            for position, frame in enumerate(self._seen):
                if isinstance(frame.message, kinds):
                    return self._seen.pop(position)
            data = await asyncio.wait_for(self._reader.read(1 << 16), 60)
            if not data:
                raise EOFError
            self._seen += self._frames.feed(data)

    async def open(self, nonce=b"n"):
        self.stream = (await self.get(link.Streams)).message.streams[0]
        self.send(link.Open("gw1", 0, nonce))
        self.opened = (await self.get(link.Opened)).message
        self.sequence = max((reached.last_sequence for reached in self.opened.last), default=0) + 1
        return self

    async def append(self, *payloads, timestamp_ms=5_000):
        events = [records.Event(b"orders.a", b"orders.a", timestamp_ms, b"", payload) for payload in payloads]
        head = Envelope(
            producer_id=self.opened.producer_id, epoch=self.opened.epoch, stream="orders", partition=0,
            incarnation=self.stream.incarnation, first_sequence=self.sequence, sequence_count=len(events),
            revision=self.stream.revision,
        )  # fmt: skip
        self.send(link.Append(), envelope.pack(head, records.encode_batch(events)))
        answer = (await self.get(link.Appended, link.Refused)).message
        if isinstance(answer, link.Appended):
            self.sequence += len(events)
        return answer

    async def ask(self, message):
        self.send(message)
        return await self.get(link.Fetched, link.OffsetsAre, link.Described, link.Failed)

    async def payloads(self, offset=0):
        frame = await self.ask(link.Fetch(1, "orders", 0, offset, 1 << 20, 0))
        batches = records.split_batches(frame.tail)
        return [record.payload for batch in batches for record in records.read_records(batch)]

    async def close(self):
        self._writer.close()
        await self._writer.wait_closed()


class Running:
    def __init__(self, folder, *, now_ms=lambda: 10_000, **stream):
        self.folder, self.now_ms = folder, now_ms
        self.options, self.is_stopped = stream, False

    async def __aenter__(self):
        self.sink = Sink(
            _configuration(self.folder, **self.options), "sink1", embedded=True, now_ms=self.now_ms,
            journal_file_bytes=1 << 20, segment_bytes=1 << 12,
        )  # fmt: skip
        await self.sink.start()
        self.peer = await (await Peer.of(self.sink)).open(nonce=str(id(self)).encode())
        return self

    async def __aexit__(self, *exception):
        await self.peer.close()
        if not self.is_stopped:
            await self.sink.stop()


def _configuration(folder, partitions=1, revision=1, age="0", size="0"):
    return config.parse(
        f"""
        [mesh]
        name = "local"
        revision = {revision}
        [zones.local.gateways.gw1]
        client = "127.0.0.1:4222"
        [zones.local.sinks.sink1]
        link = "127.0.0.1:0"
        data = "{folder}"
        disk_reserve = "0"
        [streams.orders]
        subjects = ["orders.>"]
        partitions = {partitions}
        retention = {{ age = "{age}", bytes = "{size}" }}
        """,
        "mesh.toml",
    )


async def test_what_is_appended_is_read_back_before_and_after_it_is_flushed_and_after_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr("protocol.limits.FLUSH_INTERVAL_MS", 3_600_000)  # nothing is flushed but here
    async with Running(tmp_path) as running:
        assert (await running.peer.append(b"1", b"2")).base_offset == 0
        assert (await running.peer.append(b"3")).base_offset == 2
        assert await running.peer.payloads() == [b"1", b"2", b"3"]
        await running.sink.main.flush()
        assert running.sink.store.hot_bytes == 0
        assert (await running.peer.append(b"4")).base_offset == 3
        assert await running.peer.payloads() == [b"1", b"2", b"3"]  # whole batches of the segments
        assert await running.peer.payloads(3) == [b"4"]
    async with Running(tmp_path) as running:
        assert await running.peer.payloads() == [b"1", b"2", b"3", b"4"]
        assert (await running.peer.append(b"5")).base_offset == 4


async def test_a_fetch_at_the_high_watermark_waits_for_the_next_event(tmp_path):
    async with Running(tmp_path) as running:
        running.peer.send(link.Fetch(7, "orders", 0, 0, 1 << 20, 60_000))
        await asyncio.sleep(0.05)
        await running.peer.append(b"late")
        frame = await running.peer.get(link.Fetched)
        assert (frame.message.request, frame.message.high_watermark) == (7, 1)
        assert frame.tail
        empty = await running.peer.ask(link.Fetch(8, "orders", 0, 1, 1 << 20, 20))
        assert (empty.message.request, empty.tail) == (8, b"")


async def test_a_cancelled_fetch_is_not_answered(tmp_path):
    async with Running(tmp_path) as running:
        running.peer.send(link.Fetch(7, "orders", 0, 0, 1 << 20, 60_000))
        running.peer.send(link.Cancel(7))
        await running.peer.append(b"late")
        assert (await running.peer.ask(link.Fetch(8, "orders", 0, 0, 1 << 20, 0))).message.request == 8


async def test_a_read_too_many_is_refused_and_the_link_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("sinkd.shell.link_server.LINK_REQUESTS_MAX", 2)
    async with Running(tmp_path) as running:
        for number in (7, 8, 9):
            running.peer.send(link.Fetch(number, "orders", 0, 0, 1 << 20, 60_000))
        failed = (await running.peer.get(link.Failed)).message
        assert (failed.request, failed.name) == (9, "THROTTLING_QUOTA_EXCEEDED")
        await running.peer.append(b"late")
        answered = {(await running.peer.get(link.Fetched)).message.request for _ in range(2)}
        assert answered == {7, 8}
        assert (await running.peer.ask(link.Fetch(10, "orders", 0, 0, 1 << 20, 0))).message.request == 10


@pytest.mark.parametrize(
    ("request_", "name", "text"),
    [
        (link.Fetch(1, "orders", 0, 9, 100, 0), "OFFSET_OUT_OF_RANGE", "the log holds 0 to 1"),
        (link.Fetch(1, "orders", 4, 0, 100, 0), "UNKNOWN_PARTITION", "partitions 0 to 0, not 4"),
        (link.Fetch(1, "nope", 0, 0, 100, 0), "UNKNOWN_STREAM", "streams are $AUDIT, $COVERAGE, events, orders"),
        (link.Offsets(1, "nope", (0,), "latest"), "UNKNOWN_STREAM", "nope"),
        (link.Offsets(1, "orders", (0,), "sometime"), "INVALID_REQUEST", "sometime"),
        (link.Describe(1, "nope"), "UNKNOWN_STREAM", "nope"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(tmp_path, request_, name, text):
    async with Running(tmp_path) as running:
        await running.peer.append(b"1")
        failed = (await running.peer.ask(request_)).message
        assert (failed.request, failed.name) == (1, name)
        assert text in failed.message


async def test_offsets_by_time(tmp_path):
    async with Running(tmp_path) as running:
        for timestamp_ms in (1_000, 3_000, 2_000, 4_000):
            await running.peer.append(b"x", timestamp_ms=timestamp_ms)

        async def offset(at, timestamp_ms=0):
            return (await running.peer.ask(link.Offsets(1, "orders", (0,), at, timestamp_ms))).message.offsets[0][1]

        for _ in ("in the journal", "in segments"):
            assert await offset("earliest") == 0
            assert await offset("latest") == 4
            assert [await offset("timestamp", t) for t in (0, 1_001, 3_001, 4_001)] == [0, 1, 3, -1]
            assert [await offset("until", t) for t in (1_000, 1_001, 2_001, 9_000)] == [0, 1, 3, 4]
            await running.sink.main.flush()


async def test_retention_by_size_and_age_moves_the_start(tmp_path):
    now_ms = 10_000
    async with Running(tmp_path, age="60s", now_ms=lambda: now_ms) as running:
        for _ in range(12):
            await running.peer.append(bytes(1_000), timestamp_ms=now_ms)
        await running.sink.main.flush()
        await running.sink.main.retain()
        assert running.sink.store.partition("orders", 0).start_offset == 0
        now_ms += 61_000
        await running.sink.main.retain()
        start_offset = running.sink.store.partition("orders", 0).start_offset
        assert 0 < start_offset < 12
        failed = (await running.peer.ask(link.Fetch(1, "orders", 0, 0, 100, 0))).message
        assert failed.details == {"start_offset": start_offset, "high_watermark": 12}
        assert len(await running.peer.payloads(start_offset)) > 0
    async with Running(tmp_path, age="60s", now_ms=lambda: now_ms) as running:
        assert running.sink.store.partition("orders", 0).start_offset == start_offset
        assert (await running.peer.append(b"goes on")).base_offset == 12


async def test_a_changed_stream_is_in_force_with_a_higher_revision_and_reported_without(tmp_path):
    async with Running(tmp_path):
        pass
    async with Running(tmp_path, size="1GiB") as running:
        assert any("streams.orders" in problem for problem in running.sink.config_problems)
        assert running.peer.stream.retention_bytes == 0
    async with Running(tmp_path, size="1GiB", revision=2) as running:
        assert running.sink.config_problems == ()
        assert running.peer.stream.retention_bytes == 1 << 30
    async with Running(tmp_path, partitions=2, revision=3) as running:
        assert "never changes in place" in running.sink.config_problems[0]
        assert running.peer.stream.partitions == 1


async def test_a_gateway_of_another_zone_is_refused_in_words(tmp_path):
    async with Running(tmp_path) as running:
        other = await Peer.of(running.sink, zone="us")
        failed = (await other.get(link.Failed)).message
        assert failed.message == "this is sink sink1 of local/local, not of local/us"
        with pytest.raises(EOFError):
            await other.get(link.Welcome)
        await other.close()


@pytest.mark.parametrize("change", [lambda parcel: parcel[:-1], lambda parcel: parcel[:-5] + b"\0" + parcel[-4:]])
async def test_a_batch_that_is_not_what_its_gateway_made_closes_the_link(tmp_path, change):
    async with Running(tmp_path) as running:
        bad = await (await Peer.of(running.sink)).open(b"another")
        real_pack = envelope.pack
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(envelope, "pack", lambda head, batch: change(real_pack(head, batch)))
            with pytest.raises(EOFError):
                await bad.append(b"payload")
        await bad.close()
        assert (await running.peer.ask(link.Describe(1))).message.streams[0][1][0].high_watermark == 0


@pytest.mark.parametrize(
    "wrong",
    [{"sequence_count": 2**32}, {"sequence_count": 0}, {"first_sequence": 0}, {"run": b"1234567"}, {"run": bytes(9)}],
)
async def test_an_envelope_that_no_gateway_would_send_closes_the_link(tmp_path, wrong):
    async with Running(tmp_path) as running:
        bad = await (await Peer.of(running.sink)).open(b"another")
        real_pack = envelope.pack
        with pytest.MonkeyPatch.context() as patch:
            wrongly = lambda head, batch: real_pack(msgspec.structs.replace(head, **wrong), batch)  # noqa: E731
            patch.setattr(envelope, "pack", wrongly)
            with pytest.raises(EOFError):
                await bad.append(b"payload")
        await bad.close()
        assert (await running.peer.ask(link.Describe(1))).message.streams[0][1][0].high_watermark == 0


async def test_a_full_disk_refuses_until_there_is_space_again(tmp_path, monkeypatch):
    async with Running(tmp_path) as running:
        monkeypatch.setattr(running.sink, "is_storage_full", lambda: True)
        monkeypatch.setattr(running.sink.links, "storage_full", lambda: True)
        assert (await running.peer.append(b"1")).reason == "STORAGE_FULL"
        assert "storage full" in running.sink.health()
        monkeypatch.undo()
        assert (await running.peer.append(b"1")).base_offset == 0


async def test_a_group_that_fails_while_its_sink_stops_does_not_hold_it_up(tmp_path, monkeypatch):
    async with Running(tmp_path) as running:
        await running.peer.append(b"1")
        group, flush = running.sink.main.group, running.sink.main.flush

        async def flush_and_fail():
            await flush()
            group.halt()  # as if the disk had failed it
            while not group._has_ended:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        monkeypatch.setattr(running.sink.main, "flush", flush_and_fail)
        running.is_stopped = True
        await asyncio.wait_for(running.sink.stop(), 60)
    async with Running(tmp_path) as running:
        assert await running.peer.payloads() == [b"1"]


async def test_segments_without_journal_and_checkpoint_are_not_taken_for_a_fresh_folder(tmp_path):
    async with Running(tmp_path) as running:
        await running.peer.append(b"1")
    shutil.rmtree(tmp_path / "journal")
    for file in tmp_path.glob("*checkpoint*"):
        file.unlink()
    sink = Sink(_configuration(tmp_path), "sink1", embedded=True)
    with pytest.raises(DamagedFile, match="neither journal nor checkpoint"):
        await sink.start()
    await sink.stop()


async def test_a_folder_in_use_is_refused(tmp_path):
    async with Running(tmp_path):
        second = Sink(_configuration(tmp_path), "sink1", embedded=True)
        with pytest.raises(DataError, match="in use"):
            await second.start()
        await second.stop()


async def test_a_segment_that_says_otherwise_than_the_journal_is_damage(tmp_path):
    folder = tmp_path / "data"
    async with Running(folder) as running:
        await running.peer.append(b"one")
        await running.sink.main.flush()
        shutil.copytree(folder, tmp_path / "copy")  # as a kill would leave it: in segments, behind no checkpoint
    (segment,) = (tmp_path / "copy").glob("log/orders-*/0/*.segment")
    data = segment.read_bytes()
    size_bytes = len(records.encode_batch([records.Event(b"orders.a", b"orders.a", 5_000, b"", b"one")]))
    other = records.encode_batch([records.Event(b"orders.a", b"orders.a", 5_000, b"", b"two")])
    segment.write_bytes(data[:-size_bytes] + records.place_batch(other, 0, 1))
    sink = Sink(_configuration(tmp_path / "copy"), "sink1", embedded=True)
    with pytest.raises(DamagedFile, match="offset 0 holds another batch"):
        await sink.start()
    await sink.stop()
