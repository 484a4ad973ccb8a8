"""`mesh replay`: what a stream holds, from one place to another, or from one place on for ever.

`--from T --until U` shows exactly the events with T <= time < U, in the order of their offsets. Times in a log need not
rise with its offsets (several gateways, clocks that are set), so the log is asked for a range of offsets in which all
of them lie, and each event's own time decides.

`orders@*` is the log of every zone that can be read here, as one, by time (`mesh.merging`).
"""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from mesh.client import LogConsumer
from mesh.commands.failure import Failure, notice
from mesh.connection import connect
from mesh.log_reader import Gap, LogReader, Partition, PartitionInfo, Record
from mesh.merging import ALL_ZONES, Span, logs_of, merged
from mesh.positions import Position
from mesh.render import Form, byte_output, has_colours, record_line
from mesh.settings import ClientSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    stream: str
    start: Position
    until: Position
    partition: int | None
    filter: str | None
    follow: bool
    count: int | None
    form: Form


class _Output:
    """Shows the events whose time is wanted, `count` of them at most."""

    def __init__(self, options: ReplayOptions, *, partitions: bool) -> None:
        self._write, self._colours = byte_output(), has_colours(sys.stdout)
        self._form, self._partitions = options.form, partitions
        self._left = options.count
        self._from_ms = options.start.value if options.start.kind == "time" else None
        self._until_ms = options.until.value if options.until.kind == "time" else None

    @property
    def is_full(self) -> bool:
        return self._left == 0

    def show(self, records: list[Record]) -> None:
        for record in records:
            if self.is_full:
                break
            if self._is_wanted(record.timestamp):
                self._write(record_line(record, self._form, colours=self._colours, partitions=self._partitions))
                if self._left is not None:
                    self._left -= 1
        sys.stdout.flush()

    def _is_wanted(self, timestamp_ms: int) -> bool:
        if self._from_ms is not None and timestamp_ms < self._from_ms:
            return False
        return self._until_ms is None or timestamp_ms < self._until_ms


async def run(settings: ClientSettings, options: ReplayOptions) -> None:
    for position in (options.start, options.until):
        if position.note:
            notice(position.note)
    connection = await connect(settings, notice=notice)
    try:
        reader = LogReader(connection)
        rows, ranges = 0, []
        logs = await logs_of(reader, options.stream)
        for name in logs:
            found = await reader.partitions(name, options.partition)
            rows += len(found)
            each_log = replace(options, stream=name)
            ranges += await _ranges(reader, each_log, _partitions(found, each_log, several=len(logs) > 1))
        output = _Output(options, partitions=rows > 1)
        if options.follow:
            await _follow(LogConsumer(connection, filter=options.filter, on_gap=_tell_gap), ranges, output)
        elif options.stream.endswith(ALL_ZONES):
            await _show_merged(reader, ranges, options.filter, output)
        else:
            for each in ranges:
                await _show(reader, each, options.filter, output)
    finally:
        await connection.close()


async def _show(reader: LogReader, each: Span, filter: str | None, output: _Output) -> None:
    async with aclosing(reader.read(*each, filter=filter)) as batches:
        async for result in batches:
            for gap in result.gaps:
                _tell_gap(each.partition, gap)
            output.show(result.records)
            if output.is_full:
                return


async def _show_merged(reader: LogReader, ranges: list[Span], filter: str | None, output: _Output) -> None:
    async with aclosing(merged(reader, ranges, _tell_gap, filter)) as records:
        async for record in records:
            output.show([record])
            if output.is_full:
                return


def _tell_gap(partition: Partition, gap: Gap) -> None:
    verb = "is" if gap.events == 1 else "are"
    where = f"offset {gap.first}" if gap.first == gap.last else f"offsets {gap.first} to {gap.last}"
    notice(f"gap: {gap.how_many} {verb} missing at {where} of {partition.stream}/{partition.partition}: {gap.reason}")


async def _follow(consumer: LogConsumer, ranges: list[Span], output: _Output) -> None:
    async with consumer:
        consumer.assign(each.partition for each in ranges)
        for each in ranges:
            consumer.seek(each.partition, each.start)
        while not output.is_full:
            for records in (await consumer.poll(timeout_ms=1_000)).values():
                output.show(records)
            await asyncio.sleep(0)  # a full pipe must not keep Ctrl-C out


# -- which offsets ----------------------------------------------------------------------------------------------------


def _partitions(rows: Sequence[PartitionInfo], options: ReplayOptions, *, several: bool) -> list[PartitionInfo]:
    if several and "offset" in (options.start.kind, options.until.kind):
        raise Failure(f"an offset belongs to one log: name its zone, like {options.stream}")
    if options.partition is not None:
        found = [row for row in rows if row.partition == options.partition]
        if not found:
            last = len(rows) - 1
            raise Failure(f"{options.stream} has partitions 0 to {last}, not {options.partition}")
        return found
    if len(rows) > 1 and "offset" in (options.start.kind, options.until.kind):
        raise Failure(f"an offset belongs to one partition: add --partition (0 to {len(rows) - 1})")
    return sorted(rows, key=lambda row: row.partition)


async def _ranges(reader: LogReader, options: ReplayOptions, wanted: list[PartitionInfo]) -> list[Span]:
    """Taken once: what comes in later is not in them."""
    numbers = [row.partition for row in wanted]
    starts = await _offsets(reader, options.stream, options.start, "timestamp", numbers)
    ends = await _offsets(reader, options.stream, options.until, "until", numbers)
    return [
        Span(
            Partition(options.stream, row.partition),
            _start(options, row, starts.get(row.partition)),
            _end(options, row, ends.get(row.partition)),
        )
        for row in wanted
    ]


async def _offsets(
    reader: LogReader, stream: str, position: Position, at: str, partitions: list[int]
) -> dict[int, int]:
    """By partition, if `position` is a time."""
    if position.kind != "time":
        return {}
    found = await reader.offsets(stream, at, position.value, partitions)
    return {partition: row.offset for partition, row in found.items()}


def _start(options: ReplayOptions, row: PartitionInfo, at_time: int | None) -> int:
    match options.start.kind:
        case "earliest":
            return row.log_start_offset
        case "latest":
            return row.high_watermark
        case "time":
            return row.high_watermark if at_time is None or at_time < 0 else at_time
    offset = options.start.value
    if not row.log_start_offset <= offset <= row.high_watermark:
        raise Failure(
            f"offset {offset} does not exist: {options.stream}/{row.partition} holds {row.log_start_offset} to "
            f"{row.high_watermark} (exclusive)"
        )
    return offset


def _end(options: ReplayOptions, row: PartitionInfo, at_time: int | None) -> int:
    match options.until.kind:
        case "earliest":
            return row.log_start_offset
        case "time" if at_time is not None:
            return min(at_time, row.high_watermark)
        case "offset":
            return min(options.until.value, row.high_watermark)
    return row.high_watermark
