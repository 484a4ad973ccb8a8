"""A log in memory that answers `$LOG` and publishes over a real NATS server, with the encoders of `protocol`.

It is for tests of clients: it can hold answers back, refuse publishes and lose connections at will. What it stores and
answers is what `protocol.history` and `protocol.publish` say; the real log has its own tests.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.protocol import command

from mesh.connection import Connection, Headers, connect
from mesh.settings import ClientSettings
from protocol import history, publish, subjects
from protocol.errors import LogError
from protocol.history import FetchRequest, MetadataRequest, OffsetsRequest
from protocol.records import Record
from support.processes import POLL_S, settle

ZONE = "local"


class FakeStream:
    def __init__(self, name: str, pattern: str, partitions: int = 1) -> None:
        self.name, self.pattern = name, pattern
        self.logs: list[list[Record]] = [[] for _ in range(partitions)]
        self.start_offsets = [0] * partitions
        self.ids: dict[str, int] = {}
        self.gaps: dict[int, tuple[int, str]] = {}  # at an offset: so many events are missing, and why

    def add(
        self, subject: str, payload: bytes, *, partition: int = 0, timestamp_ms: int | None = None, block: bytes = b""
    ) -> int:
        log = self.logs[partition]
        when = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        offset = len(log)
        log.append(Record(offset, when, b"", subjects.encode(subject), block, payload))
        return offset


class FakeLog:
    """`refuse(subject, payload)` may return a Refusal; `silent` counts requests that get no answer at all.

    `silent_acks` counts publishes that are kept and not answered, `lost` those that are neither.
    """

    def __init__(self, connection: Connection, streams: list[FakeStream]) -> None:
        self._connection = connection
        self.streams = {stream.name: stream for stream in streams}
        self.refuse: Callable[[str, bytes], publish.Refusal | None] = lambda subject, payload: None
        self.fail: list[LogError] = []
        self.silent = self.silent_acks = self.lost = 0
        self.leaderless = 0  # so many of the next answers about a stream have no leader of partition 0
        self.cut_after: int | None = None  # of the next fetch: so many records, then silence
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.grown = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._connection.subscribe("$LOG.>", cb=self._on_request)
        for stream in self.streams.values():
            await self._connection.subscribe(stream.pattern, cb=self._on_publish)
        await settle(self._connection)

    async def is_back(self) -> None:
        """Once its server has its subscriptions again."""
        while True:
            with contextlib.suppress(nats.errors.Error):
                return await settle(self._connection, 1)
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.close()

    # -- publishes ----------------------------------------------------------------------------------------------------

    async def _on_publish(self, message: Msg) -> None:
        stream = next(each for each in self.streams.values() if subjects.matches(each.pattern, message.subject))
        if self.lost > 0:
            self.lost -= 1
            return
        refusal = self.refuse(message.subject, message.data)
        if refusal is not None:
            await self._connection.publish(message.reply, publish.error_answer(stream.name, refusal))
            return
        headers = message.headers or {}
        msg_id = headers.get("Nats-Msg-Id", "")
        known = stream.ids.get(msg_id) if msg_id else None
        block = headers.block if isinstance(headers, Headers) else b""
        offset = stream.add(message.subject, message.data, block=block) if known is None else known
        stream.ids[msg_id] = offset
        async with self.grown:
            self.grown.notify_all()
        if self.silent_acks > 0:
            self.silent_acks -= 1
        elif message.reply:
            answer = publish.pub_ack(stream.name, ZONE, 0, 1, offset, duplicate=known is not None)
            await self._connection.publish(message.reply, answer)

    # -- $LOG ---------------------------------------------------------------------------------------------------------

    async def _on_request(self, message: Msg) -> None:
        self.requests.append((message.subject, msgspec.json.decode(message.data or b"{}")))
        if self.silent > 0:
            self.silent -= 1
            return
        verb = message.subject.split(".")[1]
        task = asyncio.get_running_loop().create_task(
            self._fetch(message) if verb == "FETCH" else self._facts(message, verb)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _facts(self, message: Msg, verb: str) -> None:
        try:
            answer = self._metadata(message) if verb == "METADATA" else self._offsets(message)
            await self._connection.publish(message.reply, msgspec.json.encode(answer))
        except LogError as error:
            await self._connection.publish(message.reply, history.error_json(error))

    def _stream(self, name: str) -> FakeStream:
        if self.fail:
            raise self.fail.pop(0)
        stream, zone = history.stream_and_zone(name, ZONE)
        if stream not in self.streams or zone != ZONE:
            raise LogError("UNKNOWN_STREAM", f"no stream {name!r}; streams are {', '.join(self.streams)}")
        return self.streams[stream]

    def _metadata(self, message: Msg) -> dict[str, Any]:
        history.read_request(MetadataRequest, message.data)
        names = message.subject.split(".")[2:] or list(self.streams)
        return {"zone": ZONE, "streams": [self._row(self._stream(name)) for name in names]}

    def _row(self, stream: FakeStream) -> dict[str, Any]:
        partitions: list[dict[str, Any]] = [
            {
                "partition": number,
                "leader": "sink1",
                "leader_epoch": 1,
                "log_start_offset": stream.start_offsets[number],
                "high_watermark": len(log),
                "size_bytes": sum(len(record.payload) for record in log),
            }
            for number, log in enumerate(stream.logs)
        ]
        if self.leaderless > 0:
            self.leaderless -= 1
            numbers = dict.fromkeys(("leader_epoch", "log_start_offset", "high_watermark", "size_bytes"), -1)
            partitions[0] |= {"leader": None, "error": "LEADER_NOT_AVAILABLE", **numbers}
        return {
            "stream": stream.name, "zone": ZONE, "subjects": [stream.pattern], "partitions": partitions,
            "key": "subject", "ack": "quorum", "reply": "always", "retired": False,
        }  # fmt: skip

    def _offsets(self, message: Msg) -> dict[str, Any]:
        request = history.read_request(OffsetsRequest, message.data)
        stream = self._stream(message.subject.split(".")[2])
        numbers = range(len(stream.logs)) if request.partitions is None else request.partitions
        rows = [
            {"partition": number, "offset": offset, "timestamp": timestamp}
            for number in numbers
            for offset, timestamp in [self._offset(stream, number, request)]
        ]
        return {"stream": stream.name, "zone": ZONE, "offsets": rows}

    def _offset(self, stream: FakeStream, number: int, request: OffsetsRequest) -> tuple[int, int]:
        log, when = stream.logs[number], request.timestamp or 0
        if request.at == "earliest":
            return stream.start_offsets[number], -1
        if request.at == "latest":
            return len(log), -1
        if request.at == "until":
            below = [record.offset for record in log if record.timestamp_ms < when]
            return (below[-1] + 1 if below else stream.start_offsets[number]), -1
        found = [record for record in log if record.timestamp_ms >= when]
        return (found[0].offset, found[0].timestamp_ms) if found else (-1, -1)

    async def _fetch(self, message: Msg) -> None:
        try:
            await self._show(message)
        except LogError as error:
            await self._send(message.reply, history.error_headers(error), b"")

    async def _show(self, message: Msg) -> None:
        request = history.read_request(FetchRequest, message.data)
        name, number = message.subject.split(".")[2], int(message.subject.split(".")[3])
        stream = self._stream(name)
        log, start = stream.logs[number], stream.start_offsets[number]
        offset = request.offset
        if offset is None:
            at = OffsetsRequest(at="timestamp", timestamp=request.timestamp)
            offset = self._offset(stream, number, at)[0]
            offset = len(log) if offset < 0 else offset
        if not start <= offset <= len(log):
            text = f"offset {offset} does not exist; the log holds {start} to {len(log)} (exclusive)"
            raise LogError("OFFSET_OUT_OF_RANGE", text, start_offset=start, high_watermark=len(log))
        if offset == len(log):
            await self._wait_for_more(log, offset, request.max_wait_ms)
        await self._show_from(message.reply, (stream, number), request, offset)

    async def _wait_for_more(self, log: list[Record], offset: int, wait_ms: int) -> None:
        async with self.grown:
            try:
                await asyncio.wait_for(self.grown.wait_for(lambda: len(log) > offset), wait_ms / 1000)
            except TimeoutError:
                return

    async def _show_from(self, inbox: str, place: tuple[FakeStream, int], request: FetchRequest, offset: int) -> None:
        stream, number = place
        log = stream.logs[number]
        shown = size_bytes = 0
        end = len(log) if request.end_offset is None else min(len(log), request.end_offset)
        while offset < end and shown < request.max_records:
            record = log[offset]
            if offset in stream.gaps:
                events, reason = stream.gaps[offset]
                await self._send(inbox, history.gap_headers(offset, offset, reason, events), b"")
            elif request.filter is None or subjects.matches(request.filter, subjects.decode(record.subject)):
                size_bytes += len(record.payload) + 100
                if shown and size_bytes > request.max_bytes:
                    break
                if self.cut_after is not None and shown >= self.cut_after:
                    self.cut_after = None
                    return
                await self._send(
                    inbox, history.shown_headers(history.log_lines(stream.name, ZONE, number), record), record.payload
                )
                shown += 1
            offset += 1
        await self._send(inbox, history.end_of_batch(offset, len(log), stream.start_offsets[number]), b"")

    async def _send(self, inbox: str, block: bytes, payload: bytes) -> None:
        """nats-py publishes no status lines, and no headers that it has not made itself."""
        await self._connection._send_command(command.hpub_cmd(inbox, "", block, payload))
        await self._connection._flush_pending()


@asynccontextmanager
async def fake_log(url: str, *streams: FakeStream) -> AsyncIterator[FakeLog]:
    fake = FakeLog(await connect(ClientSettings(server=url)), list(streams))
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()
