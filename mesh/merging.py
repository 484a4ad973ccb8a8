"""Several logs read as one, by time: what `orders@*` means.

    logs, each in the order of its offsets ─► the record with the smallest time among their next ones ─► ...

The order of each log is kept, so a clock that was set back in one zone does not move its events before each other: they
come when those before them have. Of equal times the log that is named first comes first.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Final, NamedTuple

from mesh.log_reader import Gap, LogReader, Partition, Record
from protocol.errors import LogError

ALL_ZONES: Final = "@*"


class Span(NamedTuple):
    """Offsets `start` to `end` (exclusive) of one partition."""

    partition: Partition
    start: int
    end: int


async def logs_of(reader: LogReader, stream: str) -> list[str]:
    """The names of all logs that `stream` means: `orders@*` is that of each zone that can be read here, the own first.

    LogError UNKNOWN_STREAM: there is none.
    """
    if not stream.endswith(ALL_ZONES):
        return [stream]
    name = stream.removesuffix(ALL_ZONES)
    metadata = await reader.metadata()
    zones = [info.zone for info in metadata.streams if info.stream == name and "~" not in info.zone]
    if not zones:
        known = ", ".join(sorted({info.stream for info in metadata.streams})) or "none"
        raise LogError("UNKNOWN_STREAM", f"no stream {name!r} in any zone; streams are {known}")
    return [f"{name}@{zone}" for zone in sorted(zones, key=lambda zone: (zone != metadata.zone, zone))]


async def merged(
    reader: LogReader,
    spans: Sequence[Span],
    on_gap: Callable[[Partition, Gap], None],
    filter: str | None = None,
) -> AsyncGenerator[Record, None]:
    """The records of all `spans`, by time. `on_gap` is told of gaps when they are met. LogError, NoAnswer."""
    async with AsyncExitStack() as stack:
        sources = [await stack.enter_async_context(aclosing(_records(reader, span, on_gap, filter))) for span in spans]
        waiting = [(source, await anext(source, None)) for source in sources]
        while True:
            due = [(record.timestamp, position) for position, (_, record) in enumerate(waiting) if record is not None]
            if not due:
                return
            _, position = min(due)
            source, record = waiting[position]
            assert record is not None
            yield record
            waiting[position] = source, await anext(source, None)


async def _records(
    reader: LogReader, span: Span, on_gap: Callable[[Partition, Gap], None], filter: str | None
) -> AsyncGenerator[Record, None]:
    async with aclosing(reader.read(*span, filter=filter)) as results:
        async for result in results:
            for gap in result.gaps:
                on_gap(span.partition, gap)
            for record in result.records:
                yield record
