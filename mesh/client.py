"""History for applications: an async client on top of nats-py, with the names of Kafka's consumers.

    async with await mesh.client.connect("nats://127.0.0.1:4222") as consumer:
        orders = Partition("orders", 0)
        consumer.assign([orders])
        await consumer.seek_to_beginning()
        async for record in consumer:
            print(record.offset, record.subject, record.value)

`LogConsumer(connection)` does the same over a connection that the application has already. Where Kafka's own library
(aiokafka) awaits, this one awaits; positions are the reader's own and nothing is stored for it.

A consumer fetches ahead, one fetch of at most `max_bytes` per partition, and survives a reconnect: what was cut short
is asked for again from the same position, so every record comes once and in order.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Literal, Self

from nats.aio.client import Client

from mesh import connection as connections
from mesh.connection import ConnectError
from mesh.log_reader import (
    FetchResult,
    Gap,
    LogReader,
    Metadata,
    NoAnswer,
    OffsetAndTimestamp,
    Partition,
    PartitionInfo,
    Record,
    StreamInfo,
)
from mesh.merging import logs_of
from mesh.settings import DEFAULT_TIMEOUT_MS, ClientSettings
from protocol.errors import LogError
from protocol.limits import CLIENT_FETCH_BYTES, CLIENT_FETCHES_MAX, FETCH_RECORDS_DEFAULT

__all__ = [
    "ConnectError",
    "FetchResult",
    "Gap",
    "LogConsumer",
    "LogError",
    "Metadata",
    "NoAnswer",
    "OffsetAndTimestamp",
    "Partition",
    "PartitionInfo",
    "Record",
    "StreamInfo",
    "connect",
]

Reset = Literal["error", "earliest", "latest"]

_ITERATION_WAIT_MS = 1_000
_CROWDED_WAIT_MS = 100  # of a fetch when there are more partitions than fetches at a time


async def connect(
    server: str = "nats://127.0.0.1:4222",
    *,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    creds: str | None = None,
    nkey: str | None = None,
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
    auto_offset_reset: Reset = "error",
    filter: str | None = None,
) -> "LogConsumer":
    """A consumer with a connection of its own, which it closes with itself. ConnectError.

    On such a connection headers come back with all their values and every byte; nats-py's own connections keep the
    last value of a name. `creds` and `nkey` name files.
    """
    settings = ClientSettings(
        server=server, user=user, password=password, token=token, creds=creds, nkey=nkey, timeout_ms=timeout_ms
    )
    connection = await connections.connect(settings)
    consumer = LogConsumer(connection, auto_offset_reset=auto_offset_reset, filter=filter)
    consumer._owns_connection = True
    return consumer


class _Assigned:
    """One partition: `position` is of the next record to hand out, `fetch_offset` of the next to ask for."""

    def __init__(self) -> None:
        self.position: int | None = None
        self.fetch_offset: int | None = None
        self.start_at: Literal["earliest", "latest"] = "earliest"
        self.records: deque[Record] = deque()
        self.fetch: asyncio.Task[FetchResult] | None = None
        self.paused = False
        self.high_watermark: int | None = None

    def move(self, offset: int | None) -> asyncio.Task[FetchResult] | None:
        """Goes to `offset`, or to where `start_at` says. Returns the fetch that is not wanted any more."""
        self.position = self.fetch_offset = offset
        self.records.clear()
        unwanted, self.fetch = self.fetch, None
        if unwanted is not None:
            unwanted.cancel()
        return unwanted

    def pop(self) -> Record:
        record = self.records.popleft()
        self.position = record.offset + 1 if self.records else self.fetch_offset
        return record


class LogConsumer:
    """Reads partitions of streams over `connection` (nats-py's), which stays the application's.

    `auto_offset_reset` says what to do when a position does not exist (any more): raise LogError OFFSET_OUT_OF_RANGE
    from `poll`, or go on at the earliest or latest offset. A partition without a `seek` begins at the latest offset
    with "latest", else at the earliest. `filter` is a subject pattern: other events are passed over. `on_gap` is called
    where the log says that events are missing, before the records behind it are handed out. Every coroutine may raise
    LogError (named as in `protocol.errors`), NoAnswer, and nats-py's errors of a closed connection.
    """

    def __init__(
        self,
        connection: Client,
        *,
        auto_offset_reset: Reset = "error",
        filter: str | None = None,
        max_bytes: int = CLIENT_FETCH_BYTES,
        max_wait_ms: int = 500,
        on_gap: Callable[[Partition, Gap], None] | None = None,
    ) -> None:
        self.connection = connection
        self._reader = LogReader(connection)
        self._reset, self._filter, self._on_gap = auto_offset_reset, filter, on_gap
        self._max_bytes, self._max_wait_ms = max_bytes, max_wait_ms
        self._assigned: dict[Partition, _Assigned] = {}
        self._unwanted: set[asyncio.Task[FetchResult]] = set()
        self._owns_connection = self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Gives up what is under way, and the connection if it is the consumer's own. May be called twice."""
        self._closed = True
        self.assign([])
        await asyncio.gather(*self._unwanted, return_exceptions=True)  # they were cancelled: nothing to tell
        if self._owns_connection:
            await self.connection.close()

    # -- what there is ------------------------------------------------------------------------------------------------

    async def metadata(self, stream: str | None = None) -> Metadata:
        """All streams that this user may read, or one."""
        return await self._reader.metadata(stream)

    async def partitions_for(self, stream: str) -> set[Partition]:
        """All partitions of `stream` (`name`, `name@zone`, or `name@*` for those of every zone)."""
        found: set[Partition] = set()
        for name in await logs_of(self._reader, stream):
            (info,) = (await self._reader.metadata(name)).streams
            found |= {Partition(name, row.partition) for row in info.partitions}
        return found

    async def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Where each log begins."""
        return await self._ends(partitions, "earliest")

    async def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offset that the next event of each will get."""
        return await self._ends(partitions, "latest")

    async def offsets_for_times(self, times: Mapping[Partition, int]) -> dict[Partition, OffsetAndTimestamp | None]:
        """The first record at or after the time (ms) that is given for its partition; None where there is none."""
        found: dict[Partition, OffsetAndTimestamp | None] = {}
        for partition, timestamp in times.items():
            answer = await self._reader.offsets(partition.stream, "timestamp", timestamp, [partition.partition])
            at = answer[partition.partition]
            found[partition] = at if at.offset >= 0 else None
        return found

    async def _ends(self, partitions: Iterable[Partition], at: str) -> dict[Partition, int]:
        numbers: dict[str, list[int]] = {}
        for partition in partitions:
            numbers.setdefault(partition.stream, []).append(partition.partition)
        ends: dict[Partition, int] = {}
        for stream, wanted in numbers.items():
            answer = await self._reader.offsets(stream, at, partitions=wanted)
            ends |= {Partition(stream, number): row.offset for number, row in answer.items()}
        return ends

    async def fetch(
        self,
        partition: Partition,
        *,
        offset: int | None = None,
        timestamp: int | None = None,
        max_records: int = FETCH_RECORDS_DEFAULT,
        max_bytes: int = CLIENT_FETCH_BYTES,
        max_wait_ms: int = 0,
        end_offset: int | None = None,
        filter: str | None = None,
    ) -> FetchResult:
        """One fetch beside all positions: from `offset` or from the first record at or after `timestamp` (ms)."""
        return await self._reader.fetch(
            partition,
            offset=offset,
            timestamp=timestamp,
            max_records=max_records,
            max_bytes=max_bytes,
            max_wait_ms=max_wait_ms,
            end_offset=end_offset,
            filter=filter,
        )

    # -- what is read, and from where ---------------------------------------------------------------------------------

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Reads these from now on. Those that were assigned before keep their position."""
        wanted = list(dict.fromkeys(partitions))
        for partition in self._assigned.keys() - wanted:
            self._move(self._assigned[partition], None)
        self._assigned = {partition: self._assigned.get(partition) or self._new() for partition in wanted}

    def assignment(self) -> set[Partition]:
        return set(self._assigned)

    def seek(self, partition: Partition, offset: int) -> None:
        """The next record of `partition` is the one at `offset`, or the first behind it that passes the filter."""
        if offset < 0:
            raise ValueError(f"an offset is 0 or more, got {offset}")
        self._move(self._of(partition), offset)

    async def seek_to_beginning(self, *partitions: Partition) -> None:
        """To where the logs of `partitions` (all assigned ones without) begin now."""
        await self._seek_to(partitions, "earliest")

    async def seek_to_end(self, *partitions: Partition) -> None:
        """Behind the last event of `partitions` (all assigned ones without) as of now."""
        await self._seek_to(partitions, "latest")

    async def _seek_to(self, partitions: Sequence[Partition], at: str) -> None:
        for partition, offset in (await self._ends(partitions or list(self._assigned), at)).items():
            self.seek(partition, offset)

    async def position(self, partition: Partition) -> int:
        """The offset of the next record that `poll` will hand out, unless events are passed over."""
        assigned = self._of(partition)
        if assigned.position is None:
            (offset,) = (await self._ends([partition], assigned.start_at)).values()
            if assigned.position is None:
                self._move(assigned, offset)
                return offset
        return assigned.position

    def highwater(self, partition: Partition) -> int | None:
        """The high watermark as the last fetch saw it; None before there was one."""
        return self._of(partition).high_watermark

    def pause(self, *partitions: Partition) -> None:
        """`poll` leaves these out until `resume`; their positions stay."""
        for partition in partitions:
            self._of(partition).paused = True

    def resume(self, *partitions: Partition) -> None:
        for partition in partitions:
            self._of(partition).paused = False

    def paused(self) -> set[Partition]:
        return {partition for partition, assigned in self._assigned.items() if assigned.paused}

    def _new(self) -> _Assigned:
        assigned = _Assigned()
        assigned.start_at = "latest" if self._reset == "latest" else "earliest"
        return assigned

    def _of(self, partition: Partition) -> _Assigned:
        if partition not in self._assigned:
            raise ValueError(f"{partition} is not assigned")
        return self._assigned[partition]

    def _move(self, assigned: _Assigned, offset: int | None) -> None:
        unwanted = assigned.move(offset)
        if unwanted is not None:
            self._unwanted.add(unwanted)
            unwanted.add_done_callback(self._forget)

    def _forget(self, fetch: asyncio.Task[FetchResult]) -> None:
        self._unwanted.discard(fetch)
        if not fetch.cancelled():
            fetch.exception()  # of a position that was left: nobody is told

    # -- records ------------------------------------------------------------------------------------------------------

    async def poll(self, *, timeout_ms: int = 0, max_records: int = 500) -> dict[Partition, list[Record]]:
        """Up to `max_records` records by partition, in offset order; {} if none came within `timeout_ms`."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_ms / 1000
        self._check_assigned()
        while True:
            handed_out = self._take(max_records)
            wait_s = give_up_at - loop.time()
            if handed_out or wait_s <= 0:
                return handed_out
            await self._wait_for_records(wait_s)

    def __aiter__(self) -> AsyncIterator[Record]:
        return self

    async def __anext__(self) -> Record:
        """The next record of any assigned partition, however long it takes."""
        self._check_assigned()
        while True:
            for assigned in self._assigned.values():
                if assigned.records and not assigned.paused:
                    return assigned.pop()
            for batch in self._take(1).values():
                return batch[0]
            await self._wait_for_records(_ITERATION_WAIT_MS / 1000)

    def _check_assigned(self) -> None:
        if self._closed:
            raise RuntimeError("the consumer is closed")
        if not self._assigned:
            raise RuntimeError("no partition is assigned: call assign([Partition(stream, number)]) first")

    def _take(self, max_records: int) -> dict[Partition, list[Record]]:
        """What is here already, at most `max_records`, and the next fetches on their way."""
        handed_out: dict[Partition, list[Record]] = {}
        for partition, assigned in list(self._assigned.items()):
            if max_records <= 0:
                break
            if not assigned.paused:
                self._collect(partition, assigned)
            if assigned.records and not assigned.paused:
                batch = [assigned.pop() for _ in range(min(max_records, len(assigned.records)))]
                handed_out[partition] = batch
                max_records -= len(batch)
                self._assigned[partition] = self._assigned.pop(partition)  # the others come first next time
        self._start_fetches()
        return handed_out

    def _collect(self, partition: Partition, assigned: _Assigned) -> None:
        """Takes over a finished fetch once all records before it are handed out. Raises what it raised."""
        if assigned.records or assigned.fetch is None or not assigned.fetch.done():
            return
        fetch, assigned.fetch = assigned.fetch, None
        try:
            result = fetch.result()
        except LogError as error:
            if error.name != "OFFSET_OUT_OF_RANGE" or self._reset == "error":
                raise
            assigned.start_at = self._reset
            self._move(assigned, None)
            return
        if self._on_gap is not None:
            for gap in result.gaps:
                self._on_gap(partition, gap)
        assigned.records.extend(result.records)
        assigned.fetch_offset = result.next_offset
        assigned.high_watermark = result.high_watermark
        assigned.position = result.records[0].offset if result.records else result.next_offset

    def _start_fetches(self) -> None:
        under_way = sum(assigned.fetch is not None for assigned in self._assigned.values())
        for partition, assigned in list(self._assigned.items()):
            if under_way >= CLIENT_FETCHES_MAX:
                return
            if assigned.fetch is None and not assigned.paused:
                fetch = self._fetch_next(partition, assigned.fetch_offset, assigned.start_at)
                assigned.fetch = asyncio.get_running_loop().create_task(fetch)
                under_way += 1
                self._assigned[partition] = self._assigned.pop(partition)  # every partition has its turn

    async def _fetch_next(self, partition: Partition, offset: int | None, start_at: str) -> FetchResult:
        if offset is None:
            (offset,) = (await self._ends([partition], start_at)).values()
        crowded = len(self._assigned) > CLIENT_FETCHES_MAX
        return await self._reader.fetch(
            partition,
            offset=offset,
            max_bytes=self._max_bytes,
            max_wait_ms=_CROWDED_WAIT_MS if crowded else self._max_wait_ms,
            filter=self._filter,
        )

    async def _wait_for_records(self, wait_s: float) -> None:
        fetches = [row.fetch for row in self._assigned.values() if row.fetch is not None and not row.paused]
        if fetches:
            await asyncio.wait(fetches, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(min(wait_s, _CROWDED_WAIT_MS / 1000))
