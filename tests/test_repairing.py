"""A group that has lost too many disks goes on with what one of its members holds, if an operator says so."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from support.disk import flip
from support.sinks import SinkZone

from mesh.commands import repair, sinks
from mesh.commands.failure import Failure
from protocol import link
from protocol.errors import LogError, Superseded
from protocol.gaps import ACCEPTED_LOSS, read_gap
from protocol.records import CONTROL, read_header, read_records, split_batches
from sinkd.shell.folder import GroupFolder

PAYLOADS = [b"%04d" % number * 500 for number in range(200)]
SURE_S = 60.0


@asynccontextmanager
async def running(zone):
    await zone.start()
    try:
        await zone.led()
        yield zone
    finally:
        await zone.stop()


async def publish(zone, payloads):
    gateway = await (await zone.gateway()).open()
    await gateway.append(*payloads)
    await gateway.close()


async def until(zone, condition, what):
    await zone.until(condition, what, SURE_S)


def operated(zone):
    return sinks.Zone(zone.file(), None, 10.0)


async def accept(zone, *gone, yes=True, group=None):
    await repair.run(operated(zone), group, gone, yes=yes)


async def left_with(zone, survivor):
    """All have the same; then the other two lose their disks, and are started with empty ones."""
    await zone.level()
    others = [name for name in zone.names if name != survivor]
    await zone.stop(*others)
    await until(zone, lambda: not zone.leader, "it has stopped")
    for name in others:
        zone.wipe(name)
    await zone.start(*others)
    told = lambda: zone.sinks[survivor].main.peers.hellos.values()  # noqa: E731
    await until(zone, lambda: sum(bool(one.muted) for one in told()) == 2, "they know that they have lost their disks")
    return others


async def come_back(zone, *names):
    """Their processes are started again, when they have found out that their group is over."""
    over = [zone.sinks.pop(name) for name in names]
    for sink in over:
        assert isinstance(await asyncio.wait_for(sink.failed, SURE_S), Superseded)
        await sink.stop()
    await zone.start(*names)
    identities = lambda: [zone.sinks[name].identity for name in names]  # noqa: E731
    await until(zone, lambda: all(one.state and not one.muted for one in identities()), "they are whole")


def log_of(zone, name, stream="orders"):
    """What sink `name` has of the stream: payloads, and (reason, events, who) of gaps."""
    store = zone.sinks[name].store
    partition = store.partition(stream, 0)
    assert not partition.hot
    found = []
    offset = partition.start_offset
    while offset < partition.high_watermark:
        for batch in split_batches(partition.log.read(offset, 1 << 20)):
            header = read_header(batch)
            assert header.base_offset == offset
            if header.attributes == CONTROL:
                gap = read_gap(batch)[1]
                found.append((gap.reason, gap.events, gap.source))
            else:
                found += [bytes(record.payload) for record in read_records(batch)]
            offset = header.next_offset
    return found


async def logs_are(zone, wanted, names=None):
    await zone.level()
    for name in names or zone.names:
        await zone.sinks[name].main.flush()
        assert log_of(zone, name) == wanted, name


GAP = (ACCEPTED_LOSS, 0, "127.0.0.1")


async def test_who_is_slow_to_lead_says_so_and_goes_on(tmp_path, monkeypatch):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:5])
        survivor = zone.leader
        await left_with(zone, survivor)
        monkeypatch.setattr("sinkd.shell.repairing.GOES_ON_S_MAX", 0.0)
        with pytest.raises(Failure, match="still applies its journal"):
            await accept(zone)
        await until(zone, lambda: zone.leader == survivor, "it leads")  # and has not ended by that


async def test_a_group_goes_on_with_what_one_of_three_holds(tmp_path, capsys):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:50])
        survivor = zone.leader
        old_group, others = zone.sinks[survivor].identity.group, await left_with(zone, survivor)
        assert "mesh repair" in zone.sinks[survivor].health()
        await accept(zone, yes=False)
        said = capsys.readouterr().out
        assert f"Sink {survivor} holds most" in said
        assert "orders/0: at offset " in said
        assert "Nothing was done" in said
        assert not zone.leader
        assert zone.sinks[survivor].identity.group == old_group
        await accept(zone)
        assert f"sink {survivor} leads zone eu, and is its only member" in capsys.readouterr().out
        assert list(zone.status(survivor)["members"]) == [survivor]
        assert zone.sinks[survivor].group.losses_accepted == 1
        identity = zone.sinks[survivor].identity
        assert (identity.succeeds, identity.group != old_group) == (old_group, True)
        await publish(zone, PAYLOADS[50:60])
        await come_back(zone, *others)
        for name in others:
            await sinks.change(operated(zone), name, "")
        wanted = [*PAYLOADS[:50], GAP, *PAYLOADS[50:60]]
        await logs_are(zone, wanted)
        await until(zone, lambda: zone.sinks[survivor].audit.written["loss_accepted"], "it is audited")
        # What one disk holds is enough no more, and what two hold is again.
        await zone.stop(survivor)
        await zone.led()
        await publish(zone, PAYLOADS[60:65])
        await zone.start(survivor)
        await logs_are(zone, [*wanted, *PAYLOADS[60:65]])


async def test_an_old_member_with_more_puts_it_aside(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:20])
        await zone.level()
        first, second, third = zone.leader, *(name for name in zone.names if name != zone.leader)
        await zone.stop(third)
        await publish(zone, PAYLOADS[20:40])
        await zone.stop(first, second)
        zone.wipe(second)
        (tmp_path / first).rename(tmp_path / "elsewhere")
        await zone.start(second, third)
        told = lambda: zone.sinks[third].main.peers.hellos.values()  # noqa: E731
        await until(zone, lambda: any(one.muted for one in told()), "the wiped one knows it")
        with pytest.raises(Failure, match=f"one that will never come back is named with --gone {first}"):
            await accept(zone)
        await accept(zone, first)
        await publish(zone, PAYLOADS[100:120])
        await come_back(zone, second)
        wanted = [*PAYLOADS[:20], GAP, *PAYLOADS[100:120]]
        await logs_are(zone, wanted, (second, third))
        (tmp_path / "elsewhere").rename(tmp_path / first)
        await zone.start(first)
        await come_back(zone, first)
        await logs_are(zone, wanted)
        aside = tmp_path / first / "damaged" / "1"
        assert any(aside.glob("journal/*.journal"))
        assert any(aside.glob("log/*/*/*.segment"))


async def test_what_is_damaged_is_not_gone_on_with(tmp_path, capsys):
    """The one that holds most cannot read all of it: the next one is taken, a part of a log as it may be."""
    async with running(SinkZone(tmp_path, 5)) as zone:
        await publish(zone, PAYLOADS[:20])
        await zone.level()
        late = next(name for name in zone.names if name != zone.leader)
        await zone.stop(late)
        await publish(zone, PAYLOADS[20:40])
        best, *lost = [name for name in zone.names if name != late]
        await until(zone, lambda: len({sink.journal.last_index for sink in zone.sinks.values()}) == 1, "all have it")
        await zone.stop(*lost)
        await until(zone, lambda: not zone.leader, "it has stopped")
        for name in lost:
            zone.wipe(name)
        await zone.start(late)
        await until(zone, lambda: best in zone.sinks[late].main.peers.hellos, "the two meet")
        journal = zone.sinks[best].journal
        await zone.sinks[best].main.flush()
        journal._recent.truncate(0)
        position = journal.locate(journal.last_index - 1)
        flip(next((tmp_path / best / "journal").glob(f"{position.file:016x}.journal")), position.position + 1)
        await accept(zone, *lost)
        said = capsys.readouterr().out
        assert f"passed over: sink {best}: " in said
        assert f"sink {late} leads zone eu" in said


async def test_it_is_refused_where_it_is_not_needed_or_too_little_is_known(tmp_path, monkeypatch):
    async with running(SinkZone(tmp_path)) as zone:
        await zone.level()
        leader = zone.leader
        with pytest.raises(Failure, match=f"zone eu goes on: sink {leader} leads it; there is nothing to repair"):
            await accept(zone)
        with pytest.raises(Failure, match="zone eu has no group 1"):
            await accept(zone, group=1)
        with pytest.raises(Failure, match="no zone 'us' with sinks"):
            sinks.Zone(zone.file(), "us", 10.0)
        follower = next(name for name in zone.names if name != leader)
        operator = zone.sinks[follower].links.operator
        asked = link.AcceptLoss(1, 1, zone.sinks[follower].journal.last_index, (), False)
        with pytest.raises(LogError, match=f"the group goes on: sink {leader} leads it"):
            await operator.accept_loss(asked)
        other = next(name for name in zone.names if name not in (leader, follower))
        await zone.stop(leader, other)
        await until(zone, lambda: not zone.sinks[follower].group.leader, "nobody leads")
        with pytest.raises(
            LogError, match=f"not connected to {', '.join(sorted((leader, other)))}, which may hold more"
        ):
            await operator.accept_loss(asked)
        with pytest.raises(LogError, match="ends at entry "):
            await operator.accept_loss(link.AcceptLoss(1, 1, 1, (leader, other), False))
        with pytest.raises(Failure, match=f"sink {follower} is said to be gone, and answers"):
            await accept(zone, leader, other, follower)
        with pytest.raises(Failure, match="sink s9 is no member of zone eu"):
            await accept(zone, "s9")
        await zone.start(other)
        await zone.led()


async def test_a_crash_between_the_new_id_and_its_entry_is_repaired_once_more(tmp_path, monkeypatch):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:10])
        survivor = zone.leader
        old_group, others = zone.sinks[survivor].identity.group, await left_with(zone, survivor)
        update = GroupFolder.update

        def dies(self, **fields):
            update(self, **fields)
            if fields.get("succeeds"):
                raise OSError("it ends here")

        monkeypatch.setattr(GroupFolder, "update", dies)
        sink, accepting = zone.sinks.pop(survivor), asyncio.create_task(accept(zone))
        await asyncio.wait_for(sink.failed, SURE_S)
        await sink.stop()
        with pytest.raises(Failure):
            await accepting
        monkeypatch.undo()
        interim = sink.identity.group
        for name in others:
            await zone.stop(name)
        await zone.start(survivor)
        assert zone.sinks[survivor].group.member.members.keys() == set(zone.names)
        await accept(zone, *others)
        assert zone.sinks[survivor].identity.succeeds.split() == [old_group, interim]
        await publish(zone, PAYLOADS[10:20])
        await logs_are(zone, [*PAYLOADS[:10], GAP, *PAYLOADS[10:20]], (survivor,))
