"""Other zones' logs read in this one: by name, all zones as one by time, with gaps, and what the commands say."""

import asyncio
import json

import pytest
from nats.aio.client import Client
from support.cli import invoked
from support.events import fetch, published
from support.processes import client
from support.zones import TwoZones

from mesh import merging
from mesh.log_reader import FetchResult, Gap, LogReader, Partition, Record
from protocol.errors import LogError
from sinkd.core import commands
from sinkd.core.commands import Trim


async def test_the_log_of_another_zone_is_read_by_its_name(tmp_path):
    zones = TwoZones(tmp_path)
    try:
        await zones.start("e1")
        gateway = await zones.gateway()
        await gateway.append(*(b"%d" % number for number in range(5)))
        await gateway.close()
        origin = zones.sinks["e1"]
        incarnation = origin.machine.log("orders").state.incarnation
        await origin.group.submit(commands.TRIM, Trim("orders", incarnation, 0, 2))
        await zones.start("u1")
        await zones.level()
        async with zones.reading_in_us() as url:
            await reads(url)
            await shows(zones, url, tmp_path)
    finally:
        await zones.stop()


async def reads(url: str) -> None:
    async with client(url) as connection:
        await reads_through(connection)


async def reads_through(connection: Client) -> None:
    await published(connection, "orders.us", b"here")
    shown = await fetch(connection, "orders@eu", 0, offset=2)
    assert [event.payload for event in shown.events] == [b"2", b"3", b"4"]
    reader = LogReader(connection)
    result = await reader.fetch(Partition("orders@eu"), offset=0)
    assert result.gaps == (Gap(0, 1, 2, "trimmed"),)
    assert {(record.stream, record.zone) for record in result.records} == {("orders", "eu")}
    assert (result.high_watermark, result.next_offset) == (5, 5)
    metadata = await reader.metadata()
    assert ("orders", "eu") in [(info.stream, info.zone) for info in metadata.streams]
    assert (await reader.offsets("orders@eu", "latest"))[0].offset == 5
    with pytest.raises(LogError, match=r"no log 'orders@ap' of 'ap' is kept here"):
        await reader.metadata("orders@ap")


async def said(*arguments: str) -> tuple[int, list[str], str]:
    """Status, lines and remarks of a command, without what the zones of this process log meanwhile."""
    ran = await invoked(*arguments)
    return ran.status, [line for line in ran.lines if not line.startswith("20")], ran.err


async def shows(zones: TwoZones, url: str, folder) -> None:
    _, lines, remarks = await said("replay", "orders@*", "--raw", "-s", url)
    assert lines == ["2", "3", "4", "here"]  # those of eu are from 1970
    assert "gap: 2 events are missing at offsets 0 to 1 of orders@eu/0: trimmed" in remarks
    status, _, remarks = await said("replay", "orders@*", "--from", "3", "-s", url)
    assert (status, "an offset belongs to one log" in remarks) == (1, True)
    assert (await said("gaps", "orders@*", "-s", url))[1] == ["orders@eu/0 offsets 0 to 1: 2 events, trimmed"]
    assert (await said("gaps", "orders", "-s", url))[1] == ["orders has no gaps"]
    assert any("orders@eu" in line for line in (await said("streams", "-s", url))[1])
    file = folder / "mesh.toml"
    file.write_text(zones.text("us"))
    for name in "u1", "e1":  # zones mirror each other, and either may still be dialling
        rows = zones.sinks[name].mirroring.rows
        await zones.until(lambda rows=rows: {row["state"] for row in rows()} == {"tail"}, f"{name} follows")
    status, lines, remarks = await said("zones", "--config", str(file))
    assert status == 0, remarks
    assert any(line.split()[:4] == ["us", "orders@eu", "0", "tail"] for line in lines)
    await zones.stop("e1")
    await zones.until(lambda: zones.row()["state"] == "stalled", "stalled")
    status, (told,), _ = await said("--json", "zones", "--zone", "us", "--config", str(file))
    (row,) = [row for row in json.loads(told)["us"] if row["stream"] == "orders@eu"]
    assert (status, row["state"], row["end_offset"]) == (1, "stalled", 5)


class Logs:
    """Stands for a reader: what each partition holds, as (timestamp, payload)."""

    def __init__(self, **logs: list[int]) -> None:
        self._logs = logs

    async def read(self, partition, offset, end_offset, *, filter):
        for number, timestamp in enumerate(self._logs[partition.stream]):
            record = Record(partition.stream, "", 0, number, timestamp, "s", {}, b"")
            yield FetchResult([record], number + 1, end_offset, 0, (Gap(9, 9, 1, "why"),) if timestamp == 5 else ())


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ({"a": [1, 4, 6], "b": [2, 3, 7]}, ["a1", "b2", "b3", "a4", "a6", "b7"]),
        ({"a": [1, 1], "b": [1]}, ["a1", "a1", "b1"]),
        ({"a": [9, 2, 3], "b": [4]}, ["b4", "a9", "a2", "a3"]),  # the order of a log is kept
        ({"a": [], "b": []}, []),
    ],
)
def test_logs_are_merged_by_time_and_each_keeps_its_order(logs, expected):
    async def go() -> list[str]:
        spans = [merging.Span(Partition(name), 0, len(times)) for name, times in logs.items()]
        return [
            f"{record.stream}{record.timestamp}"
            async for record in merging.merged(Logs(**logs), spans, lambda *_: None)
        ]

    assert asyncio.run(go()) == expected


def test_gaps_are_told_while_logs_are_merged():
    told = []

    async def go() -> None:
        spans = [merging.Span(Partition("a"), 0, 2)]
        async for _ in merging.merged(Logs(a=[1, 5]), spans, lambda *gap: told.append(gap)):
            pass

    asyncio.run(go())
    assert told == [(Partition("a"), Gap(9, 9, 1, "why"))]
