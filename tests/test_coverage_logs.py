"""Trees and accounts of running sinks: they are those of the batches on the disk, whatever becomes of a zone."""

import contextlib

from support.sinks import SinkZone
from support.zones import MIRROR, TwoZones

from mesh.commands import repair, sinks
from protocol.coverage import CHAIN_START, chained, digest_of
from protocol.gaps import ACCEPTED_LOSS, LOST, Gap, read_gap
from protocol.merkle import frontier_of, leaf_hash
from protocol.records import CONTROL, read_header, split_batches
from sinkd.core.commands import RecordGap
from sinkd.core.state import Account, Recorded, Tree
from sinkd.shell.sink import Sink

OLD = MIRROR + "~1"


def tree_of(sink: Sink, log: str = "orders") -> Tree:
    return sink.machine.log(log).partitions[0].tree


async def from_disk(sink: Sink, log: str = "orders") -> list[bytes]:
    """Every batch that its segments hold, the hot ones too."""
    await sink.main.flush()
    partition = sink.store.partition(log, 0)
    offset, found = partition.start_offset, []
    while offset < partition.high_watermark:
        found += [bytes(batch) for batch in split_batches(partition.log.read(offset, 1 << 20))]
        offset = read_header(found[-1]).next_offset
    return found


async def is_of_its_disk(sink: Sink, log: str = "orders") -> None:
    """Of a log that has all of its offsets: made anew from its batches, and from what lies beside them."""
    tree, partition = tree_of(sink, log), sink.store.partition(log, 0)
    for _ in range(2):  # as it was written, and once more when all is in segments
        at = await sink.store.tree_at(partition, partition.high_watermark)
        assert (at.begin_offset, at.size, list(at.frontier)) == (tree.begin_offset, tree.size, tree.frontier)
        batches = await from_disk(sink, log)
    batches = [batch for batch in batches if read_header(batch).base_offset >= tree.begin_offset]
    leaves = [leaf_hash(read_header(batch).base_offset, digest_of(batch)) for batch in batches]
    assert (tree.size, tree.frontier) == (len(leaves), frontier_of(leaves))
    control = [batch for batch in batches if read_header(batch).attributes == CONTROL]
    assert tree.control == sum(read_header(batch).next_offset - read_header(batch).base_offset for batch in control)


def account_of(sink: Sink) -> Account:
    incarnation = sink.machine.log("orders").state.incarnation
    return sink.machine.state.producer_of("gw1", 0).progress[incarnation, 0].account


async def record(sink: Sink, run: bytes, events: int) -> Recorded:
    head = RecordGap("gw1", 0, "orders", sink.machine.log("orders").state.incarnation, 0, run, LOST)
    return (await sink.group.record_gap(head, Gap(LOST, events, 1, 2, "gw1"))).recorded


async def test_a_log_and_its_mirror_have_the_same_tree_also_after_a_restart(tmp_path):
    zones = TwoZones(tmp_path)
    try:
        for size in (302, 604):  # several segments, and several files of the journal
            await zones.start()
            gateway = await zones.gateway()
            await gateway.append(*([b"x" * 2_000] * 300))
            assert (await record(zones.sinks["e1"], gateway.run, 7)).offset == size - 2
            await gateway.append(b"behind it")
            await gateway.close()
            await zones.level()
            tree = tree_of(zones.sinks["e1"])
            assert (tree.size, tree.control) == (size, size // 302)
            for name, log in (("e1", "orders"), ("u1", MIRROR)):
                assert tree_of(zones.sinks[name], log) == tree
                await is_of_its_disk(zones.sinks[name], log)
            await check_account(zones.sinks["e1"], gateway.run, size - 302)
            await zones.stop()
    finally:
        await zones.stop()


async def check_account(sink: Sink, run: bytes, begin: int) -> None:
    """It is that of the batches from offset `begin` on, each of one event."""
    batches = [one for one in await from_disk(sink) if read_header(one).base_offset >= begin]
    events = [one for one in batches if read_header(one).attributes != CONTROL]
    assert [read_gap(one)[1] for one in batches if one not in events] == [Gap(LOST, 7, 1, 2, "gw1")]
    account, sequence, chain = account_of(sink), account_of(sink).base, CHAIN_START
    for batch in events:
        sequence += 1
        chain = chained(chain, sequence, 1, digest_of(batch))
    size_bytes = sum(map(len, events))
    assert (account.run, account.chain, account.size_bytes) == (run, chain, size_bytes)
    assert (account.held, account.batches, account.gaps, account.before.held) == (301, 301, 0, account.base)


async def test_old_logs_come_back_with_the_tree_that_they_had(tmp_path):
    """And what was known of their producers is over: the new log has accounts of its own."""
    zones = TwoZones(tmp_path)
    await zones.start()
    try:
        gateway = await zones.gateway()
        await gateway.append(*([b"x" * 20_000] * 60))
        await record(zones.sinks["e1"], gateway.run, 7)
        await zones.level()
        tree, old_run = tree_of(zones.sinks["e1"]), gateway.run
        await gateway.close()
        await zones.stop("e1")
        zones.wipe("e1")
        await zones.start("e1")
        gateway = await zones.gateway()
        await gateway.append(b"new")
        await zones.sinks["e1"].links.operator.rebuild("us", "127.0.0.1")
        await zones.until(lambda: zones.sinks["e1"].machine.state.rebuild.ended_ms, "rebuilt")
        await zones.level()
        for name in ("e1", "u1"):
            assert tree_of(zones.sinks[name], OLD) == tree
            await is_of_its_disk(zones.sinks[name], OLD)
        await is_of_its_disk(zones.sinks["e1"])
        assert tree_of(zones.sinks["u1"], MIRROR) == tree_of(zones.sinks["e1"])
        account = account_of(zones.sinks["e1"])
        assert (account.run, account.held, account.before.held) == (gateway.run, 1, 0)
        # A gap of the old run is one of the old log: nothing is written into that any more, and once into the new one.
        assert (await record(zones.sinks["e1"], old_run, 3)).offset == 1
        await gateway.close()
    finally:
        await zones.stop()


async def test_coverage_begins_at_the_same_offset_in_all_zones_of_a_log_that_is_there(tmp_path):
    zones = TwoZones(tmp_path, more="[coverage]\nenabled = false")
    await zones.start()
    try:
        gateway = await zones.gateway()
        await gateway.append(b"a", b"b", b"c")
        await gateway.close()
        await zones.level()
        await zones.stop("e1")
        text = zones.text
        zones.text = lambda reader: text(reader).replace("revision = 1", "revision = 2").replace("= false", "= true")
        await zones.start("e1")
        e1, u1 = zones.sinks["e1"], zones.sinks["u1"]
        await zones.until(lambda: e1.machine.state.revision == 2, "in force")
        gateway = await zones.gateway()
        await gateway.append(b"d", b"e")
        await gateway.close()
        await zones.level()
        assert (tree_of(e1).begin_offset, tree_of(e1).size) == (3, 2)
        assert tree_of(u1, MIRROR) == tree_of(e1)
        await zones.until(lambda: u1.machine.log(MIRROR).state.covered, "its settings have come")
        assert tree_of(u1, MIRROR) == tree_of(e1)
        await is_of_its_disk(e1)
        await is_of_its_disk(u1, MIRROR)
    finally:
        await zones.stop()


async def test_an_origin_that_had_let_go_has_a_mirror_that_says_what_it_lacks(tmp_path):
    stream = 'retention = { bytes = "300KiB" }\nhold_for_zones = { bytes = "1B", age = "1s" }'
    zones = TwoZones(tmp_path, stream=stream)
    await zones.start("e1")
    try:
        gateway = await zones.gateway()
        await gateway.append(*([b"x" * 50_000] * 30))
        e1 = zones.sinks["e1"]
        await zones.until(lambda: e1.machine.log("orders").partitions[0].start_offset, "trimmed")
        await zones.start("u1")
        await zones.level()
        tree, mirrored = tree_of(e1), tree_of(zones.sinks["u1"], MIRROR)
        assert (tree.trimmed, tree.size, tree.control) == (0, 30, 0)
        assert mirrored.trimmed == mirrored.control > 0
        assert mirrored.size == 31 - mirrored.trimmed
        await gateway.close()
    finally:
        await zones.stop()


async def test_after_an_accepted_loss_the_account_and_the_tree_are_those_of_what_is_left(tmp_path):
    """The survivor lacks what the two others had acknowledged; what it lacks is recorded by the gateway's word."""
    async with contextlib.AsyncExitStack() as opened:
        zone = SinkZone(tmp_path)
        opened.push_async_callback(zone.stop)
        await zone.start()
        await zone.led()
        gateway = await (await zone.gateway()).open()
        await gateway.append(*([b"x" * 1_000] * 20))
        await zone.level()
        survivor = next(name for name in zone.names if name != zone.leader)
        await zone.stop(survivor)
        await gateway.append(*([b"y" * 1_000] * 10))  # which two of three hold
        run = gateway.run
        await gateway.close()
        others = [name for name in zone.names if name != survivor]
        await zone.stop(*others)
        for name in others:
            zone.wipe(name)
        await zone.start(*zone.names)
        told = lambda: zone.sinks[survivor].main.peers.hellos.values()  # noqa: E731
        await zone.until(
            lambda: sum(bool(one.muted) for one in told()) == 2, "they know that they have lost their disks"
        )
        await repair.run(sinks.Zone(zone.file(), None, 10.0), None, (), yes=True)
        sink = zone.sinks[survivor]
        await is_of_its_disk(sink)
        assert (tree_of(sink).size, tree_of(sink).control) == (21, 1)
        account = account_of(sink)
        assert (account.run, account.held, account.gaps) == (run, 20, 0)
        gateway = await (await zone.gateway(survivor)).open()
        assert gateway.sequence == 20  # it was told 30
        assert await record(sink, run, 10) == Recorded(run, LOST, 10, 21)
        assert await record(sink, run, 10) == Recorded(run, LOST, 10, 21)
        await gateway.append(b"anew")
        account = account_of(sink)
        assert (account.run, account.base, account.held, account.before.held) == (gateway.run, 20, 1, 20)
        await gateway.close()
        await is_of_its_disk(sink)
        gaps = [read_gap(one)[1].reason for one in await from_disk(sink) if read_header(one).attributes == CONTROL]
        assert gaps == [ACCEPTED_LOSS, LOST]
