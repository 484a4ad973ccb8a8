"""Three sinks of a zone as one group: who leads, what a lost disk costs, how members come and go."""

import asyncio
import errno
import shutil
import threading
from contextlib import asynccontextmanager

import msgspec
import pytest
import structlog
from support.disk import flip
from support.sinks import SinkZone

from protocol.errors import LogError
from sinkd.core.birth import ACTIVE, CHOSEN, Step
from sinkd.shell import peers
from sinkd.shell.folder import DataFolder, GroupFolder, boot_id
from sinkd.shell.replica import Replica
from sinkd.shell.segments import PartitionLog

PAYLOADS = [b"%04d" % number * 500 for number in range(400)]  # of 2 kB: 800 kB in all, several files


@asynccontextmanager
async def running(zone):
    await zone.start()
    try:
        await zone.led()
        yield zone
    finally:
        await zone.stop()


@pytest.fixture
def muted(monkeypatch):
    """Why members may not vote, as they write it down: they may be whole again soon."""
    reasons, update = [], GroupFolder.update

    def noting(self, **fields):
        reasons.extend(filter(None, [fields.get("muted")]))
        update(self, **fields)

    monkeypatch.setattr(GroupFolder, "update", noting)
    return reasons


async def publish(zone, payloads):
    gateway = await (await zone.gateway()).open()
    await gateway.append(*payloads)
    await gateway.close()


async def all_have(zone, payloads):
    await zone.level()
    for name in zone.sinks:
        assert await zone.contents(name) == payloads, name


async def wiped(zone):
    """A follower that has stopped, with an empty disk; the journals no longer hold all that it will lack."""
    victim = next(name for name in zone.names if name != zone.leader)
    for at in range(0, 400, 20):
        await publish(zone, PAYLOADS[at : at + 20])
    await zone.level()
    await zone.until(lambda: zone.sinks[zone.leader].journal.first_index > 2, "the journal is cut")
    await zone.stop(victim)
    zone.wipe(victim)
    return victim


async def test_what_is_acknowledged_is_on_all_three(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:50])
        await all_have(zone, PAYLOADS[:50])
        assert len({zone.sinks[name].identity.group for name in zone.names}) == 1
        states = sorted(zone.status(name)["state"] for name in zone.names)
        assert states == ["follower", "follower", "leader"]


async def test_a_leader_that_stops_hands_over_first(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:10])
        old, term = zone.leader, zone.sinks[zone.leader].group.term
        await zone.stop(old)
        assert zone.leader  # at once: nobody had to miss it first
        assert zone.sinks[zone.leader].group.term == term + 1
        await publish(zone, PAYLOADS[10:20])
        await zone.start(old)
        await all_have(zone, PAYLOADS[:20])


async def test_two_of_three_go_on_and_one_alone_does_not(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:5])
        first, second = (name for name in zone.names if name != zone.leader)
        await zone.stop(first)
        await publish(zone, PAYLOADS[5:10])
        await zone.stop(second)
        await zone.until(lambda: not zone.leader, "the last one gives up leading")
        health = zone.sinks[next(iter(zone.sinks))].health()
        assert "1 of 3 members are up and whole, 2 are needed to go on" in health
        assert f"down: {', '.join(sorted((first, second)))}: start them with the disks that they had" in health
        await zone.start(first, second)
        await zone.led()
        await publish(zone, PAYLOADS[10:15])
        await all_have(zone, PAYLOADS[:15])


async def test_a_sink_that_was_away_for_long_is_filled_from_segments(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        late = next(name for name in zone.names if name != zone.leader)
        await publish(zone, PAYLOADS[:20])
        await zone.level()
        had = zone.sinks[late].journal.last_index
        await zone.stop(late)
        for at in range(20, 400, 20):
            await publish(zone, PAYLOADS[at : at + 20])
        journal = zone.sinks[zone.leader].journal
        await zone.until(lambda: journal.first_index > had, "the journal is cut")
        await zone.start(late)
        await all_have(zone, PAYLOADS)
        assert zone.sinks[late].main.filling.pulled_bytes > 0
        assert zone.sinks[late].checkpoint_index > had


async def test_a_sink_that_has_no_space_to_be_filled_waits_for_it(tmp_path, monkeypatch):
    async with running(SinkZone(tmp_path)) as zone:
        victim = await wiped(zone)
        append, refusals = PartitionLog.append, iter(range(2))

        def full(self, *arguments):
            if victim in str(self.folder) and next(refusals, None) is not None:
                raise OSError(errno.ENOSPC, "no space left on device")
            append(self, *arguments)

        monkeypatch.setattr(PartitionLog, "append", full)
        await zone.start(victim)
        await zone.until(lambda: zone.status(victim)["busy"] == "no space to be filled", "it waits")
        await all_have(zone, PAYLOADS)


async def test_a_sink_stops_in_the_middle_of_being_filled_and_goes_on_from_there(tmp_path, monkeypatch):
    """Its journal begins anew behind the checkpoint, its state is not there yet: neither is saved without the other."""
    async with running(SinkZone(tmp_path)) as zone:
        victim = await wiped(zone)
        is_installing, may_end, install = threading.Event(), threading.Event(), Replica._write_installed

        def slow(self, saved):
            install(self, saved)
            is_installing.set()
            assert may_end.wait(60)

        monkeypatch.setattr(Replica, "_write_installed", slow)
        await zone.start(victim)
        await zone.until(is_installing.is_set, "a checkpoint is installed")
        stopping = asyncio.create_task(zone.stop(victim))
        await zone.until(zone.sinks[victim].main._being_filled.done, "the stop has given up filling")
        may_end.set()
        await asyncio.wait_for(stopping, 60)
        await zone.start(victim)
        await all_have(zone, PAYLOADS)


@pytest.mark.parametrize("loss", ["wiped", "flipped", "rolled back"])
async def test_a_lost_or_damaged_disk_is_filled_and_does_not_vote_before(tmp_path, loss, muted):
    async with running(SinkZone(tmp_path)) as zone:
        victim = next(name for name in zone.names if name != zone.leader)
        await publish(zone, PAYLOADS[:100])
        await zone.level()
        await zone.stop(victim)
        if loss == "wiped":
            zone.wipe(victim)
        else:
            newest = max((tmp_path / victim / "journal").glob("*.journal"))
            if loss == "flipped":
                flip(newest, 100)
            else:
                newest.unlink()
        await zone.start(victim)
        assert loss == "wiped" or muted
        await publish(zone, PAYLOADS[100:120])
        await all_have(zone, PAYLOADS[:120])
        assert zone.sinks[victim].identity.muted == ""
        # The others know: they may be filled by it.
        others = [name for name in zone.names if name != victim]
        told = lambda name: next(p["muted"] for p in zone.status(name)["peers"] if p["node"] == victim)  # noqa: E731
        await zone.until(lambda: not any(map(told, others)), "the others hear of it")
        # It counts again: with another one gone, the group goes on.
        await zone.stop(next(name for name in zone.names if name not in (victim, zone.leader)))
        await publish(zone, PAYLOADS[120:125])


async def test_a_folder_that_was_set_back_is_found_by_what_others_saw_in_it(tmp_path, muted):
    async with running(SinkZone(tmp_path)) as zone:
        victim = next(name for name in zone.names if name != zone.leader)
        await publish(zone, PAYLOADS[:5])
        await zone.level()
        await zone.stop(victim)
        shutil.copytree(tmp_path / victim, tmp_path / "copy")
        await zone.start(victim)
        await publish(zone, PAYLOADS[5:10])
        await zone.level()
        await zone.stop(victim)
        zone.wipe(victim)
        (tmp_path / "copy").rename(tmp_path / victim)
        await zone.start(victim)
        rolled_back = zone.sinks.pop(victim)
        error = await asyncio.wait_for(rolled_back.failed, 60)
        assert "it was rolled back" in str(error)
        assert f"sink {zone.leader} saw" in str(error)
        await rolled_back.stop()
        await zone.start(victim)
        assert "rolled back" in muted[-1]
        await all_have(zone, PAYLOADS[:10])


async def test_damage_to_what_is_still_written_is_never_served(tmp_path, muted):
    async with running(SinkZone(tmp_path)) as zone:
        victim = next(name for name in zone.names if name != zone.leader)
        await publish(zone, PAYLOADS)
        await zone.level()
        await zone.until(lambda: not zone.sinks[victim].store.hot_bytes, "everything is in segments")
        flip(max((tmp_path / victim / "log").glob("orders-*/0/*.segment")), 20_000)
        gateway = await zone.gateway(victim)
        with pytest.raises((AssertionError, ConnectionError), match=r"STORAGE_ERROR|closed"):
            await gateway.payloads()
        await gateway.close()
        failed = zone.sinks.pop(victim)
        assert failed.failed.done()
        await failed.stop()
        await zone.start(victim)
        assert "damaged" in muted[-1]
        await all_have(zone, PAYLOADS)


async def test_a_sink_is_added_once_it_is_filled_and_another_removed(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:200])
        operator = zone.sinks[zone.leader].links.operator
        with pytest.raises(LogError, match="sink s4 is not connected to the leader: it has never been seen"):
            await operator.change_members("s4", "")
        file = zone.file([*zone.names, "s4", "s5"])
        await zone.stop()
        await zone.start(*zone.names, file=file)
        await zone.led()
        await zone.start("s4", file=file)
        operator = zone.sinks[zone.leader].links.operator
        peer = lambda: next(peer for peer in operator.status()["peers"] if peer["node"] == "s4")  # noqa: E731
        await zone.until(lambda: peer().get("lag_entries") == 0 and not peer()["muted"], "s4 is filled")
        assert not peer()["member"]
        hellos = zone.sinks[zone.leader].replicas[0].peers.hellos
        told, hellos["s4"] = hellos["s4"], msgspec.structs.replace(hellos["s4"], muted="not whole")
        with pytest.raises(LogError, match=r"sink s4 is still being filled \(not whole\); try again when it is whole"):
            await operator.change_members("s4", "")
        hellos["s4"] = told
        await operator.change_members("s4", "")
        await zone.until(lambda: "s4" in zone.sinks["s4"].group.member.members, "s4 knows")
        await all_have(zone, PAYLOADS[:200])
        with pytest.raises(LogError, match="sink s4 is a member already"):
            await operator.change_members("s4", "")
        gone = next(name for name in zone.names if name != zone.leader)
        await operator.change_members("", gone)
        assert sorted(zone.status(zone.leader)["members"]) == sorted({"s1", "s2", "s3", "s4"} - {gone})
        with pytest.raises(LogError, match=f"sink {gone} is no member"):
            await operator.change_members("", gone)
        # It neither votes nor leads any more.
        await zone.until(lambda: not zone.status(gone)["member"], "it knows")
        await asyncio.sleep(1.5)  # longer than a member waits for a leader
        assert zone.status(gone)["state"] == "follower"


async def test_a_leader_that_is_removed_hands_over(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        leader = zone.leader
        with pytest.raises(LogError, match="it hands over first"):
            await zone.sinks[leader].links.operator.change_members("", leader)
        await zone.until(lambda: zone.leader not in ("", leader), "another leads")
        await zone.sinks[zone.leader].links.operator.change_members("", leader)
        await publish(zone, PAYLOADS[:5])


async def test_leadership_goes_where_it_is_asked_to(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:5])
        await zone.level()
        to = next(name for name in zone.names if name != zone.leader)
        with pytest.raises(LogError, match="member s9 is not connected"):
            zone.sinks[zone.leader].links.operator.transfer("s9")
        zone.sinks[zone.leader].links.operator.transfer(to)
        await zone.until(lambda: zone.leader == to, f"{to} leads")


async def test_a_newer_file_on_any_sink_comes_into_force_everywhere(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        follower = next(name for name in zone.names if name != zone.leader)
        await zone.level()
        newer = zone.file(
            revision=2, streams='[streams.orders]\nsubjects = ["orders.>"]\n[streams.taxes]\nsubjects = ["taxes.>"]'
        )
        await zone.stop(follower)
        await zone.start(follower, file=newer)
        known = lambda: [sink.machine.state.revision for sink in zone.sinks.values()]  # noqa: E731
        await zone.until(lambda: known() == [2, 2, 2], "revision 2 everywhere")
        assert all("taxes" in sink.machine.state.streams for sink in zone.sinks.values())
        older = zone.leader if zone.leader != follower else next(name for name in zone.names if name != follower)
        await zone.until(lambda: zone.status(older)["configuration_problems"], "the older file is reported")
        assert "taxes" in zone.status(older)["configuration_problems"][0]


async def test_a_follower_below_its_reserve_acknowledges_no_more_until_there_is_space(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:5])
        await zone.level()
        full = next(name for name in zone.names if name != zone.leader)
        zone.sinks[full].group.is_below_reserve = True
        zone.sinks[full].main._look_at_disk = lambda: None
        await publish(zone, [b"a" * 200_000])
        peer = lambda: next(one for one in zone.status(zone.leader)["peers"] if one["node"] == full)  # noqa: E731
        await zone.until(lambda: peer()["why"] == "its disk is below its reserve", "the leader knows")
        assert peer()["lag_entries"] >= 1
        zone.sinks[full].group.is_below_reserve = False
        await all_have(zone, [*PAYLOADS[:5], b"a" * 200_000])


async def test_a_leader_whose_disk_is_full_lets_another_one_lead(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:5])
        await zone.level()
        full = zone.leader
        zone.sinks[full].is_storage_full = lambda: True
        await zone.until(lambda: zone.leader not in ("", full), "another leads")
        await publish(zone, PAYLOADS[5:10])
        await all_have(zone, PAYLOADS[:10])


async def test_fsync_at_intervals_syncs_less_and_keeps_what_a_killed_process_had(tmp_path):
    async with running(SinkZone(tmp_path, more='fsync = "interval"')) as zone:
        syncs = zone.sinks[zone.leader].group.syncs
        for payload in PAYLOADS[:50]:
            await publish(zone, [payload])
        assert zone.sinks[zone.leader].group.syncs - syncs < 25
        await all_have(zone, PAYLOADS[:50])
        assert zone.status(zone.leader)["fsync"] == "interval"


async def test_after_a_power_cut_all_are_waited_for(tmp_path, monkeypatch):
    """Two whose machines were started anew elect nobody without the third: one may lack the end of its journal."""
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:10])
        await zone.level()
        await zone.stop()
        for name in zone.names:
            folder = DataFolder.open(tmp_path / name, mesh="acme", zone="eu", node=name)
            assert folder.identity.boot == ""  # closed in order
            folder.update(boot="an earlier run")
            folder.close()
        *two, third = zone.names
        await zone.start(*two)
        met = lambda: all(len(zone.sinks[name].main.peers.hellos) == 1 for name in two)  # noqa: E731
        await zone.until(met, "they meet")
        assert "was started anew" in zone.sinks[two[0]].health()
        assert not zone.leader
        await zone.start(third)
        await zone.led()
        await all_have(zone, PAYLOADS[:10])
        noted = lambda: {sink.identity.boot for sink in zone.sinks.values()} == {boot_id()}  # noqa: E731
        await zone.until(noted, "nothing is in doubt any more")


async def test_what_is_damaged_while_a_group_begins_is_not_forgotten(tmp_path, monkeypatch):
    """It has chosen, then its journal was spoilt: it is a member, and may not vote until it is filled."""
    steps, may_begin = peers.next_step, False

    def held(own, hellos):
        step = steps(own, hellos)
        return step if may_begin or step.state != ACTIVE else Step(waits="the test holds it")

    monkeypatch.setattr(peers, "next_step", held)
    zone = SinkZone(tmp_path)
    await zone.start()
    try:
        chosen = lambda: all(sink.identity.state == CHOSEN for sink in zone.sinks.values())  # noqa: E731
        await zone.until(chosen, "all have chosen")
        await zone.stop("s1")
        flip(next((tmp_path / "s1" / "journal").glob("*.journal")), 100)
        may_begin = True
        with structlog.testing.capture_logs() as logs:
            await zone.start("s1")
            await publish(zone, PAYLOADS[:5])
            await all_have(zone, PAYLOADS[:5])
        (born,) = [one for one in logs if one["event"] == "group_birth" and one["node"] == "s1"]
        assert (born["state"], "damaged" in born["muted"]) == (ACTIVE, True)
    finally:
        await zone.stop()
