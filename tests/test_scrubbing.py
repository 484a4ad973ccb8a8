"""Segments that a disk has spoilt are found and made whole from other sinks, while the log is read and written."""

import json
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support import cli
from support.disk import flip
from support.sinks import SinkZone
from test_segments import fill, read_all, reopen
from test_sink_group import PAYLOADS, publish, running

from mesh.commands import scrub as scrubbing
from mesh.commands.failure import Failure
from mesh.commands.sinks import Zone
from sinkd.shell.leaves import Digests
from sinkd.shell.mending import Copy


@asynccontextmanager
async def filled(folder, **options):
    """A zone whose sinks all have the same segments."""
    async with running(SinkZone(folder, **options)) as zone:
        await publish(zone, PAYLOADS)
        await zone.level()
        await zone.until(lambda: not any(sink.store.hot_bytes for sink in zone.sinks.values()), "all is in segments")
        yield zone


def segments(zone, name: str) -> list[Path]:
    """The finished ones of `orders`."""
    return sorted((zone.folder / name / "log").glob("orders-*/0/*.segment"))[:-1]


def scrubber(zone, name: str):
    return zone.sinks[name].main.scrubber


async def scrub(zone, name: str) -> None:
    """A whole round."""
    it = scrubber(zone, name)
    rounds = it.progress.rounds
    it.begin()
    await zone.until(lambda: it.progress.rounds > rounds and not it.progress.is_under_way, "a round")


def zero(path: Path, begin: int, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(size_bytes))


DAMAGES = {
    "a byte of a batch": lambda path: flip(path, 20_000),
    "a byte of the file's header": lambda path: flip(path, 20),
    "a byte of the first batch's header": lambda path: flip(path, 64 + 8),
    "pages of zeros": lambda path: zero(path, 40_960, 65_536),
    "its end is cut": lambda path: os.truncate(path, path.stat().st_size - 5_000),
    "nothing is left of it": lambda path: os.truncate(path, 0),
    "it is gone": lambda path: path.unlink(),
}


async def test_a_round_finds_what_the_disk_has_spoilt_and_peers_mend_it(tmp_path):
    async with filled(tmp_path) as zone:
        victim = next(name for name in zone.names if name != zone.leader)
        path = segments(zone, victim)[1]
        before = path.read_bytes()
        for mended, (what, damage) in enumerate(DAMAGES.items(), 1):
            damage(path)
            await scrub(zone, victim)
            assert path.read_bytes() == before, what
            assert (scrubber(zone, victim).mended, scrubber(zone, victim).damaged) == (mended, {})
        assert await zone.contents(victim) == PAYLOADS
        assert path.with_suffix(".damaged").exists()
        audit = zone.sinks[victim].audit
        await zone.until(lambda: not audit.waiting, "it is in the audit stream")
        await zone.stop(victim)
        await zone.start(victim)
        await zone.level()
        assert await zone.contents(victim) == PAYLOADS


async def test_the_command_says_what_was_mended_and_what_could_not_be(tmp_path):
    async with filled(tmp_path) as zone:
        file = tmp_path / "mesh.toml"
        file.write_text(zone.text())
        command = "scrub", "--config", str(file)
        path = segments(zone, "s1")[0]
        flip(path, 20_000)
        ran = await cli.mesh(*command, "--json")
        rows = {row["sink"]: row for row in json.loads(ran.out)}
        assert (ran.status, [rows[name]["mended"] for name in zone.names]) == (0, [1, 0, 0])
        assert all(row["read_bytes"] > 500_000 and row["damaged"] == [] for row in rows.values())
        for name in zone.names:
            flip(segments(zone, name)[0], 20_000)
        ran = await cli.mesh(*command, "s2")
        assert ran.status == 1
        assert f"s2: {segments(zone, 's2')[0]}" in ran.err
        (row,) = [line.split() for line in ran.lines if line.startswith("s2")]
        assert (row[1], row[4:]) == ("0", ["0", "1"])
        assert "s1" not in ran.out.decode()
        assert zone.status("s2")["damaged"] == list(scrubber(zone, "s2").damaged.values())
        await zone.stop("s3")
        ran = await cli.mesh(*command, "s3")
        assert (ran.status, "s3: " in ran.err) == (1, True)
        with pytest.raises(Failure, match="zone eu has no sink s9; there are: s1, s2, s3"):
            await scrubbing.run(Zone(zone.file(), None, 30.0), ("s9",), False)


async def test_only_what_is_bad_crosses_the_network(tmp_path):
    async with filled(tmp_path) as zone:
        victim = next(name for name in zone.names if name != zone.leader)
        path = segments(zone, victim)[0]
        flip(path, 50_000)
        with capture_logs() as logs:
            await scrub(zone, victim)
        (pulled,) = [line["pulled_bytes"] for line in logs if line["event"] == "segment_mended"]
        assert 2_000 < pulled < 3_000  # the batch of one payload


async def test_a_reader_who_meets_damage_gets_what_was_written_and_the_sink_goes_on(tmp_path):
    async with filled(tmp_path) as zone:
        victim = zone.leader
        flip(segments(zone, victim)[1], 20_000)
        assert await zone.contents(victim) == PAYLOADS
        assert scrubber(zone, victim).mended == 1
        assert not zone.sinks[victim].failed.done()
        assert zone.leader == victim


async def test_two_damaged_copies_mend_each_other(tmp_path):
    async with filled(tmp_path) as zone:
        follower, *_, third = sorted(zone.names, key=lambda name: (name == zone.leader, name))[::-1]
        await zone.stop(third)
        flip(segments(zone, zone.leader)[1], 20_000)
        flip(segments(zone, follower)[1], 80_000)
        for name in zone.sinks:
            await scrub(zone, name)
        for name in zone.sinks:
            assert await zone.contents(name) == PAYLOADS


async def test_what_nobody_has_is_refused_by_name_until_somebody_has_it_again(tmp_path):
    async with filled(tmp_path) as zone:
        for name in zone.names:
            flip(segments(zone, name)[1], 20_000)
        leader = zone.leader
        gateway = await zone.gateway(leader)
        with pytest.raises(AssertionError, match="STORAGE_ERROR"):
            await gateway.payloads()
        await gateway.close()
        assert list(scrubber(zone, leader).damaged) == [str(segments(zone, leader)[1])]
        await publish(zone, [b"goes on"])
        assert not any(sink.failed.done() for sink in zone.sinks.values())
        good = next(name for name in zone.names if name != leader)
        flip(segments(zone, good)[1], 20_000)
        await scrub(zone, leader)
        assert await zone.contents(leader) == [*PAYLOADS, b"goes on"]


async def test_a_sink_alone_tells_of_damage_and_goes_on(tmp_path):
    async with filled(tmp_path, count=1) as zone:
        path = segments(zone, "s1")[0]
        flip(path, 20_000)
        await scrub(zone, "s1")
        assert list(scrubber(zone, "s1").damaged) == [str(path)]
        await publish(zone, [b"goes on"])
        assert not zone.sinks["s1"].failed.done()
        flip(path, 20_000)
        await scrub(zone, "s1")
        assert scrubber(zone, "s1").damaged == {}


def test_a_copy_takes_no_more_than_its_segment_has(tmp_path):
    """Peers begin their segments elsewhere: what they send goes on behind the end of this one."""
    log = reopen(tmp_path, segment_bytes=2_000)
    batches = fill(log, 12)
    log.sync()
    segment = log.finished()[1]
    whole = segment.path.read_bytes()
    os.truncate(segment.path, 100)
    copy = Copy(log, segment, Digests(b""), {})
    assert not copy.take_own()
    copy.take(b"".join(batches), "s2")
    assert copy.is_complete
    copy.put_in_place()
    copy.close()
    assert segment.path.read_bytes() == whole
    assert read_all(log) == batches
    log.close()
