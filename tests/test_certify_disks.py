"""Certificates while a disk has spoilt what is to be certified: who cannot read it does not sign, whoever it is."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from support import cli
from support.disk import flip
from support.secured import SecuredZone, secured
from test_certify import certify, fill

from protocol import certificate, link
from protocol.errors import DamagedFile, LogError
from sinkd.shell import attesting
from sinkd.shell.store import Partition

Later = Callable[[Partition, DamagedFile], Awaitable[str]]


def spoil(zone: SecuredZone, name: str) -> Path:
    """A bit of an event in the second segment."""
    path = sorted((zone.folder / name / "log").glob("orders-*/0/*.segment"))[1]
    flip(path, 20_000)
    return path


@contextlib.asynccontextmanager
async def zone_with_segments(folder: Path, mend: Later | None = None) -> AsyncIterator[SecuredZone]:
    """Nobody looks at segments before they are certified; what is found then, `mend` mends, else nobody."""

    async def later(partition: Partition, damage: DamagedFile) -> str:
        return ""

    async with secured(folder, more="scrub_rate = 0") as (zone, url):
        await fill(url, 400)
        await zone.level()
        for sink in zone.sinks.values():
            await sink.main.flush()
            sink.main.scrubber.mend_later = mend or later
        yield zone


async def verify(zone: SecuredZone, name: str, *options: str) -> cli.Ran:
    return await cli.invoked("coverage", "verify", str(zone.folder / name), "--ca", str(zone.ca), *options)


async def test_a_sink_whose_disk_has_spoilt_a_bit_does_not_sign_and_names_it(tmp_path):
    found = []

    async def later(partition: Partition, damage: DamagedFile) -> str:
        found.append(damage.file)
        return ""

    async with zone_with_segments(tmp_path, later) as zone:
        followers = [name for name in zone.names if name != zone.leader]
        path = spoil(zone, followers[0])
        ran = await certify(zone, "one.json")
        assert ran.status == 0, ran.err
        assert f"sink {followers[0]}: partition 0 of orders: the batch at offset" in ran.err
        assert str(path) in ran.err
        assert str(path) in found
        ran = await verify(zone, "one.json")
        assert (ran.status, "signed in zone eu by 2 of 3 sinks" in ran.out.decode()) == (0, True)
        ran = await verify(zone, "one.json", "--data", str(tmp_path / followers[0]))
        assert (ran.status, "the root of the data is" in ran.err) == (1, True)
        other = spoil(zone, followers[1])
        ran = await certify(zone, "two.json")
        assert ran.status == 1
        assert "zone eu: 1 of 3 sinks would sign, no majority" in ran.err
        assert str(path) in ran.err
        assert str(other) in ran.err
        assert not (tmp_path / "two.json").exists()


async def test_where_the_leader_s_disk_has_spoilt_a_bit_another_sink_says_what_was_stated(tmp_path):
    async with zone_with_segments(tmp_path) as zone:
        leader = zone.leader
        one, other = (name for name in zone.names if name != leader)
        path = spoil(zone, leader)
        ran = await certify(zone, "one.json")
        assert ran.status == 0, ran.err
        assert f"zone eu: sink {leader}: partition 0 of orders: the batch at offset" in ran.err
        assert str(path) in ran.err
        ran = await verify(zone, "one.json", "--data", str(tmp_path / one))
        assert (ran.status, f"signed in zone eu by 2 of 3 sinks: {one}, {other}" in ran.out.decode()) == (0, True)
        shown = certificate.decode((tmp_path / "one.json").read_bytes())
        stated = {sink.machine.state.statements[-1].statement_id.hex() for sink in zone.sinks.values()}
        assert stated == {shown.accounts[0].statement}
        ran = await certify(zone, "two.json", "--previous", str(tmp_path / "one.json"))
        assert ran.status == 0, ran.err
        paths = [path, spoil(zone, one), spoil(zone, other)]
        ran = await certify(zone, "three.json")
        assert ran.status == 1
        for name, spoilt in zip((leader, one, other), paths, strict=True):
            assert f"sink {name}: partition 0 of orders: the batch at offset" in ran.err
            assert str(spoilt) in ran.err


async def test_a_sink_whose_disk_is_mended_meanwhile_signs_too(tmp_path):
    async with zone_with_segments(tmp_path) as zone:
        for sink in zone.sinks.values():
            sink.main.scrubber.mend_later = sink.main.scrubber.mend  # at once
        spoil(zone, zone.leader)
        ran = await certify(zone, "one.json")
        assert (ran.status, ran.err) == (0, "")
        assert "signed by eu: s1, s2, s3" in ran.out.decode()


async def test_a_sink_that_does_not_lead_tells_of_no_statement_that_was_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(attesting, "STATEMENT_WAIT_MS_MAX", 100)
    streams = '[streams.orders]\nsubjects = ["orders.>"]\n[streams.wide]\nsubjects = ["wide.>"]\npartitions = 2'
    async with secured(tmp_path, streams=streams) as (zone, url):
        await fill(url, 20)
        leader, asked = zone.sinks[zone.leader], next(zone.sinks[name] for name in zone.names if name != zone.leader)
        question = link.Statement(1, "orders", 0, b"s" * 16)
        with pytest.raises(LogError, match="here that statement is not known") as caught:
            await asked.attesting.state(asked.main, question)
        assert caught.value.name == "LEADER_NOT_AVAILABLE"
        made = await leader.attesting.state(leader.main, question)
        await zone.level()
        assert await asked.attesting.state(asked.main, question) == made
        with pytest.raises(LogError, match="is not of partition 1 of wide"):
            await asked.attesting.state(asked.main, link.Statement(1, "wide", 1, b"s" * 16))
