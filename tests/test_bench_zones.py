"""bench/zones measures what it says: a way that is late, slow and counted, and lags as old as the oldest event."""

import asyncio
import contextlib
import os

import pytest
from support.processes import free_ports

from bench.report import Result
from bench.zones import report
from bench.zones.load import lag_ms, text_events
from bench.zones.pairs import OURS, THEIRS
from bench.zones.relay import Counts, read_counts, serve
from bench.zones.rows import Metric, rows


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As soon as somebody listens."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.01)


async def test_the_relay_passes_every_byte_on_late_and_no_faster_than_its_rate_and_counts_them(tmp_path):
    counts = tmp_path / "counts"
    counts.write_bytes(bytes(16))
    port, to_port = free_ports(2)
    got, gone = bytearray(), asyncio.Event()
    data = os.urandom(100_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(got) < len(data):
            got.extend(await reader.read(65_536))
        writer.write(b"all")
        await reader.read()  # until who has sent it goes, and the relay with it
        writer.close()
        await writer.wait_closed()
        gone.set()

    behind = await asyncio.start_server(answer, "127.0.0.1", to_port)
    relaying = asyncio.create_task(serve(port, to_port, 0.05, 1e6, Counts(counts)))
    try:
        reader, writer = await connected(port)
        begin = asyncio.get_running_loop().time()
        writer.write(data)
        assert await asyncio.wait_for(reader.readexactly(3), 30) == b"all"
        assert asyncio.get_running_loop().time() - begin >= 2 * 0.05 + 100_000 / 1e6
        assert got == data
        assert read_counts(counts) == (100_000, 3)
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(gone.wait(), 30)
    finally:
        relaying.cancel()
        behind.close()
        await asyncio.gather(relaying, behind.wait_closed(), return_exceptions=True)


def test_a_lag_is_the_age_of_the_oldest_event_that_was_not_seen():
    sent = [(1.0, 10), (2.0, 20), (3.0, 30)]
    assert lag_ms(sent, [(2.5, 10), (2.75, 20), (3.5, 25), (4.0, 30)]) == [500, 0, 500, 0]


def test_the_text_is_text_and_the_same_each_time():
    lines = text_events(10_000)
    assert sum(map(len, lines)) >= 10_000
    assert lines == text_events(10_000)


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "expected"),
    [
        (Metric("v", "%", own=90, more=True), [95, 91, 80], [10], "yes"),
        (Metric("v", "%", own=90, more=True), [89], [10], "no"),
        (Metric("v", "ms", own=200, beside=1), [150], [150], "yes"),
        (Metric("v", "ms", own=200, beside=1), [150], [140], "no"),
        (Metric("v", "ms", own=200, beside=1), [210], [300], "no"),
        (Metric("v", "ms", own=200, beside=1), [150], [], "not measured"),
        (Metric("v", "/s", beside=3, more=True), [30], [10], "yes"),
        (Metric("v", "/s"), [30], [10], ""),
    ],
)
def test_verdicts_stand_on_medians_and_on_all_goals(metric, ours, theirs, expected):
    made = Result("r", "2026-01-01", "ours 1", "2", 1.0, 0.0)
    for server, values in ((OURS, ours), (THEIRS, theirs)):
        for value in values:
            made.add(server, {"v": value})
    assert report.verdict(metric, made) == expected


def test_the_section_has_a_line_for_each_figure_of_a_row_that_was_measured():
    lag = next(row for row in rows() if row.key == "lag")
    made = Result("zones/lag", "2026-01-01", "ours 1", "2", 1.0, 0.0)
    made.add(OURS, {"p50": 61.0, "p99": 80.0})
    made.add(THEIRS, {"p50": 60.0, "p99": 90.0})
    text = report.section(rows(), {"zones/lag": made})
    assert (
        f"| {lag.title}: p99 | 80 ms | 90 ms | 0.89 (0.89..0.89) |  |  | at most 200 ms, ratio at most 1 | yes |"
        in text
    )
    assert "catch-up, 1 KiB, 100 Mbit/s" not in text
    assert report.section(rows(), {}) == ""
