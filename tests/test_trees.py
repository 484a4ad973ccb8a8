"""The sinks of a zone know the Merkle tree of their logs at each end, trimmed or not, filled by others or not."""

import contextlib

import pytest
from support.sinks import SinkZone
from test_sink_group import PAYLOADS, publish, running

from protocol.errors import LogError
from protocol.merkle import root_of
from protocol.records import read_header, split_batches
from sinkd.shell.store import tree_start

TRIMMED = '[streams.orders]\nsubjects = ["orders.>"]\nretention = { bytes = "400KiB" }'


def partition(zone: SinkZone, name: str):
    return next(each for each in zone.sinks[name].store.partitions if each.stream.name == "orders")


async def trees(zone: SinkZone, name: str):
    """(at every end that the sink holds: number of leaves and root, tree where its log begins)."""
    store, log = zone.sinks[name].store, partition(zone, name)
    offset, ends = log.start_offset, [log.start_offset]
    while offset < log.high_watermark:
        for batch in split_batches(await store.read(log, offset, 1 << 20)):
            offset = read_header(batch).next_offset
            ends.append(offset)
    found = {}
    for end in ends:
        at = await store.tree_at(log, end)
        found[end] = at.size, root_of(at.frontier)
    return found, tree_start(log)


async def trees_of_all(zone: SinkZone):
    """By sink, while nothing is trimmed."""
    while True:
        begins = [partition(zone, name).start_offset for name in zone.names]
        with contextlib.suppress(LogError):  # trimmed meanwhile
            told = {name: await trees(zone, name) for name in zone.names}
            if len({*begins, *(partition(zone, name).start_offset for name in zone.names)}) == 1:
                return told


async def test_all_sinks_know_the_same_tree_which_is_the_replicated_one(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        for at in range(0, 200, 20):
            await publish(zone, PAYLOADS[at : at + 20])
        await zone.level()
        expected, _ = await trees(zone, "s1")
        assert len(expected) > 10
        for name in zone.names:
            found, start = await trees(zone, name)
            assert found == expected
            assert start == (0, 0, 0, ())
            tree = partition(zone, name).replicated.tree
            assert found[partition(zone, name).high_watermark] == (tree.size, root_of(tree.frontier))
        store, log = zone.sinks["s1"].store, partition(zone, "s1")
        with pytest.raises(LogError, match=r"the tree of partition 0 of orders is known from offset 0 to \d+, not at"):
            await store.tree_at(log, log.high_watermark + 1)
        await zone.sinks["s1"].main.flush()
        await publish(zone, PAYLOADS[:20])  # part of it is in the journal alone
        size, root = (await trees(zone, "s1"))[0][log.high_watermark]
        assert (size, root) == (log.replicated.tree.size, root_of(log.replicated.tree.frontier))


async def test_what_is_trimmed_stays_under_the_root_and_a_sink_that_is_filled_knows_it(tmp_path):
    async with running(SinkZone(tmp_path, streams=TRIMMED)) as zone:
        victim = next(name for name in zone.names if name != zone.leader)
        for at in range(0, 400, 20):
            await publish(zone, PAYLOADS[at : at + 20])
        await zone.until(lambda: partition(zone, zone.leader).start_offset > 100, "history is over")
        await zone.level()
        await zone.until(lambda: zone.sinks[zone.leader].journal.first_index > 2, "the journal is cut")
        await zone.stop(victim)
        zone.wipe(victim)
        await zone.start(victim)
        await zone.until(lambda: not zone.sinks[victim].identity.muted, "it is filled")
        await publish(zone, PAYLOADS[:20])
        await zone.level()
        told = await trees_of_all(zone)
        expected, start = told[zone.leader]
        assert start.size > 0
        assert len(start.frontier) == start.size.bit_count()
        for name, (found, begin) in told.items():
            assert (found, begin) == (expected, start)
            tree = partition(zone, name).replicated.tree
            assert found[partition(zone, name).high_watermark] == (tree.size, root_of(tree.frontier))


async def test_a_log_that_is_not_covered_has_no_tree(tmp_path):
    streams = '[coverage]\nenabled = false\n[streams.orders]\nsubjects = ["orders.>"]'
    async with running(SinkZone(tmp_path, streams=streams)) as zone:
        await publish(zone, PAYLOADS[:20])
        await zone.level()
        with pytest.raises(LogError, match="partition 0 of orders is not covered"):
            await zone.sinks["s1"].store.tree_at(partition(zone, "s1"), 1)
        await zone.sinks["s1"].main.flush()
        assert not list(tmp_path.glob("*/log/orders-*/0/*.leaves"))


async def test_where_it_is_not_known_how_the_tree_was_nothing_is_said(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, PAYLOADS[:40])
        await zone.level()
        log = partition(zone, "s1")
        log.replicated.start_offset = 20  # as a trim that could not say it would have left it
        with pytest.raises(LogError, match="what was trimmed of partition 0 of orders below offset 20 is not known"):
            await zone.sinks["s1"].store.tree_at(log, log.high_watermark)
        log.replicated.start_offset = 0
