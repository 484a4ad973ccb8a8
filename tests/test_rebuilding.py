"""A zone that lost its disks gets its old logs back from another one, read-only, at the same offsets, byte for byte."""

import contextlib

import msgspec
import pytest
from support.streams import definition, state
from support.zones import MIRROR, TwoZones

from protocol import audit
from protocol.errors import FrameError, LogError
from protocol.records import read_records
from protocol.streams import StreamState
from sinkd.core import commands
from sinkd.core.commands import BeginRebuild, Configure, EndRebuild
from sinkd.core.machine import Machine
from sinkd.core.rebuilding import RebuildChanged, missing_logs
from sinkd.core.state import COVERAGE_VERSION, REBUILD_VERSION

T = 1_700_000_000_000
ONE, TWO, THREE = b"1" * 16, b"2" * 16, b"3" * 16
OLD = MIRROR + "~1"


def told(name: str, incarnation: bytes) -> StreamState:
    return state(name, incarnation=incarnation)


@pytest.fixture
def machine() -> Machine:
    """Of eu, which began anew."""
    machine = Machine()
    machine.apply(commands.encode(commands.CONFIGURE, T, Configure(1, (definition(incarnation=THREE),), 2)))
    return machine


def begin(machine: Machine, *logs: StreamState, source: str = "us", replaces: str = "") -> RebuildChanged:
    return machine.apply(commands.encode(commands.BEGIN_REBUILD, T, BeginRebuild("eu", source, logs, replaces)))


# -- the state machine ------------------------------------------------------------------------------------------------


def test_what_is_missing_is_what_is_not_here_of_this_zone_oldest_first(machine):
    offered = [
        told("orders@eu", TWO), told("orders@eu~1", ONE), told("orders@ap", b"4" * 16), told("orders@eu~2", THREE)
    ]  # fmt: skip
    assert [log.incarnation for log in missing_logs(machine.state, "eu", offered)] == [ONE, TWO]


def test_old_logs_come_back_read_only_under_numbers_in_the_groups_of_this_zone(machine):
    begun = begin(machine, told("orders@eu~1", ONE), told("orders@eu", TWO))
    assert (begun.refusal, begun.rebuild.source, begun.rebuild.incarnations) == ("", "us", [ONE, TWO])
    made = {name: mirror.state for name, mirror in machine.state.mirrors.items()}
    assert {name: each.incarnation for name, each in made.items()} == {"orders@eu~1": ONE, "orders@eu~2": TWO}
    assert all(each.retired and each.groups == 2 for each in made.values())
    again = Machine(machine.snapshot())
    assert (again.state.rebuild, again.state.version) == (machine.state.rebuild, REBUILD_VERSION)


def test_one_rebuild_at_a_time_unless_it_replaces_one_whose_source_is_gone(machine):
    first = begin(machine, told("orders@eu", ONE)).rebuild
    assert begin(machine, told("orders@eu", TWO), source="ap").refusal == "a rebuild from zone us is under way"
    assert machine.state.rebuild == first
    assert begin(machine, told("orders@eu", TWO), source="ap", replaces="us").rebuild.source == "ap"
    assert set(machine.state.mirrors) == {"orders@eu~1", "orders@eu~2"}


def test_nothing_is_brought_back_twice(machine):
    begin(machine, told("orders@eu", ONE))
    machine.apply(commands.encode(commands.END_REBUILD, T, EndRebuild(T, 5, 100)))
    assert begin(machine, told("orders@eu", ONE)).refusal == "nothing is to be brought back any more"
    assert set(machine.state.mirrors) == {"orders@eu~1"}


def test_the_end_is_of_the_rebuild_that_it_names(machine):
    begin(machine, told("orders@eu", ONE))

    def end(begun_ms: int) -> RebuildChanged:
        return machine.apply(commands.encode(commands.END_REBUILD, T + 5, EndRebuild(begun_ms, 7, 70)))

    assert end(T - 1).refusal == "it is not under way"
    ended = end(T).rebuild
    assert (ended.ended_ms, ended.events, ended.size_bytes) == (T + 5, 7, 70)
    assert end(T).refusal == "it is not under way"


def test_a_state_of_a_later_version_is_refused(machine):
    machine.state.version = COVERAGE_VERSION + 1
    with pytest.raises(FrameError, match="ours are 1 to 4"):
        Machine(machine.snapshot())


def test_a_mirror_that_is_left_stays_in_its_groups():
    mirror = state("orders@eu", partitions=8, groups=3)
    left = state("orders@eu~7", partitions=8, groups=3)
    assert [left.group_of(number) for number in range(8)] == [mirror.group_of(number) for number in range(8)]


# -- over real sockets and files --------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def destroyed(folder, payloads, *, anew="", **options):
    """eu was destroyed when us had all of it, and began anew, with `anew` in its file; yields what it held."""
    zones = TwoZones(folder, **options)
    await zones.start()
    try:
        gateway = await zones.gateway()
        await gateway.append(*payloads)
        await zones.level()
        lost = await zones.batches("u1", MIRROR)
        await gateway.close()
        await zones.stop("e1")
        zones.wipe("e1")
        zones._more += anew
        await zones.start("e1")
        yield zones, lost
    finally:
        await zones.stop()


async def rebuilt(zones: TwoZones) -> None:
    await zones.until(lambda: zones.sinks["e1"].machine.state.rebuild.ended_ms, "rebuilt", 60)


async def events_of(zones: TwoZones, name: str, stream: str) -> list[tuple[str, str]]:
    """(kind, what) of the audit events there."""
    records = [record for batch in await zones.batches(name, stream) for record in read_records(batch)]
    events = [msgspec.json.decode(record.payload, type=audit.Event) for record in records]
    return [(event.kind, event.what) for event in events]


async def test_a_destroyed_zone_gets_its_old_logs_back_and_goes_on_under_a_new_incarnation(tmp_path):
    async with destroyed(tmp_path, [b"x" * 20_000] * 60) as (zones, lost):
        gateway = await zones.gateway()
        await gateway.append(b"new")
        operator = zones.sinks["e1"].links.operator
        await operator.rebuild("us", "127.0.0.1")
        await operator.rebuild("us")  # once more: it is the same one
        await rebuilt(zones)
        assert await zones.batches("e1", OLD) == lost
        await gateway.append(b"newer")
        await zones.level()
        assert await zones.batches("u1", OLD) == lost
        facts = operator.status()["rebuild"]
        assert (facts["source"], facts["held_offsets"], facts["seconds_left"]) == ("us", facts["wanted_offsets"], 0)
        assert facts["logs"] == ["$AUDIT@eu~1", "$COVERAGE@eu~1", "events@eu~1", OLD]
        assert facts["events"] >= 60
        rows = {row["stream"]: row for row in zones.sinks["e1"].mirroring.rows()}
        assert (rows[OLD]["state"], rows[OLD]["end_offset"]) == ("recreated", 60)
        with pytest.raises(LogError, match=r"zone eu still has all that zone us mirrors of it: .*orders \(2 events\)"):
            await operator.rebuild("us")
        await zones.until(lambda: zones.sinks["e1"].audit.written["rebuild_ended"], "audited")
        found = dict(await events_of(zones, "e1", "$AUDIT"))
        assert found["rebuild_begun"] == "4 logs from zone us"
        assert found["rebuild_ended"].startswith("4 logs from zone us: 6")
        await gateway.close()
        await zones.stop("e1")
        await zones.start("e1")
        assert await zones.batches("e1", OLD) == lost


async def test_what_is_asked_in_vain_is_refused_with_what_was_found(tmp_path):
    zones = TwoZones(tmp_path)
    await zones.start("e1")
    try:
        operator = zones.sinks["e1"].links.operator
        with pytest.raises(LogError, match="no other zone 'mars' keeps logs; there are: us"):
            await operator.rebuild("mars")
        await zones.start("u1")
        await zones.until(lambda: zones.end("u1") == 0, "mirrored")
        with pytest.raises(LogError, match=r"zone eu still has all that zone us mirrors of it: .*orders \(0 events\)"):
            await operator.rebuild("us")
    finally:
        await zones.stop()


async def test_the_groups_of_a_zone_share_what_is_brought_back(tmp_path):
    groups = "[zones.eu]\ngroups = 2"
    async with destroyed(tmp_path, [b"1", b"2"], stream="partitions = 4", anew=groups) as (zones, _):
        await zones.sinks["e1"].links.operator.rebuild("us")
        await rebuilt(zones)
        machines = [replica.machine for replica in zones.sinks["e1"].replicas]
        old = [machine.log(OLD) for machine in machines]
        assert [old[0].state.partitions_of(number) for number in (0, 1)] in ([[0, 2], [1, 3]], [[1, 3], [0, 2]])
        home = old[0].state.group_of(0)
        assert [each.partitions[0].end_offset for each in old] == ([2, 0] if home == 0 else [0, 2])
        assert zones.sinks["e1"].links.operator.status()["rebuild"]["events"] >= 2
