"""`mesh streams`: what is kept, a row per partition."""

import click
import msgspec
from rich.table import Table

from mesh import terminal
from mesh.connection import connect
from mesh.log_reader import LogReader, PartitionInfo, StreamInfo
from mesh.settings import ClientSettings
from mesh.sizes import size

_WIDTH_COMFORTABLE = 100


async def run(settings: ClientSettings, stream: str | None, as_json: bool) -> None:
    connection = await connect(settings)
    try:
        metadata = await LogReader(connection).metadata(stream)
    finally:
        await connection.close()
    if as_json:
        click.echo(msgspec.json.encode(metadata))
    elif not metadata.streams:
        click.echo(f"zone {metadata.zone} keeps no streams")
    else:
        console = terminal.console()
        console.print(_table(metadata.streams, is_narrow=console.width < _WIDTH_COMFORTABLE))


def _numbers(row: PartitionInfo) -> tuple[str, ...]:
    """Partition, earliest and latest offset, events, size."""
    if row.error:
        return str(row.partition), "no leader", "-", "-", "-"
    ends = row.log_start_offset, row.high_watermark, row.high_watermark - row.log_start_offset
    return str(row.partition), *map(str, ends), size(row.size_bytes)


def _table(streams: tuple[StreamInfo, ...], *, is_narrow: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=is_narrow)
    table.add_column("STREAM", no_wrap=True)
    table.add_column("SUBJECTS", overflow="fold")
    for name in ("PARTITION", "EARLIEST", "LATEST", "EVENTS", "SIZE"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("ACK", "REPLY"):
        table.add_column(name, no_wrap=True)
    for info in streams:
        name = f"{info.stream}@{info.zone}" + (" (retired)" if info.retired else "")
        first = (name, ", ".join(info.subjects)), (info.ack, info.reply)
        for row in info.partitions:
            left, right = first if row is info.partitions[0] else (("", ""), ("", ""))
            table.add_row(*left, *_numbers(row), *right)
    return table
