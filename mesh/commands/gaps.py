"""`mesh gaps`: what a log itself says that it lacks.

The log is asked for events on a subject that none can have: what comes are its gaps alone.
"""

from contextlib import aclosing
from typing import Any, Final

import click
import msgspec

from mesh.connection import connect
from mesh.log_reader import Gap, LogReader, Partition
from mesh.merging import logs_of
from mesh.settings import ClientSettings

_NO_EVENT: Final = "$GAPS"  # subjects that begin so are never kept


async def run(settings: ClientSettings, stream: str, as_json: bool) -> None:
    """A line for each gap, and how many there are."""
    connection = await connect(settings)
    count = 0
    try:
        reader = LogReader(connection)
        for log in await logs_of(reader, stream):
            for row in await reader.partitions(log):
                partition = Partition(log, row.partition)
                span = row.log_start_offset, row.high_watermark
                async with aclosing(reader.read(partition, *span, filter=_NO_EVENT)) as results:
                    async for result in results:
                        for gap in result.gaps:
                            count += 1
                            click.echo(
                                msgspec.json.encode(_fields(partition, gap)) if as_json else _line(partition, gap)
                            )
    finally:
        await connection.close()
    if not as_json and not count:
        click.echo(f"{stream} has no gaps")


def _fields(partition: Partition, gap: Gap) -> dict[str, Any]:
    return {"log": partition.stream, "partition": partition.partition, **gap._asdict()}


def _line(partition: Partition, gap: Gap) -> str:
    where = f"offset {gap.first}" if gap.first == gap.last else f"offsets {gap.first} to {gap.last}"
    return f"{partition.stream}/{partition.partition} {where}: {gap.how_many}, {gap.reason}"
