"""What a gateway has an acknowledgement for, and an accepted loss has taken, is found by its word and written down."""

import asyncio

from nats.aio.client import Client
from support.events import published
from support.processes import client
from support.sinks import SinkZone, zone_with_gateway

from mesh.commands import repair, sinks
from protocol.coverage import GapReport
from protocol.errors import Superseded
from protocol.gaps import ACCEPTED_LOSS, LOST, Gap, read_gap
from protocol.records import CONTROL, read_header, split_batches
from sinkd.core.state import Progress
from sinkd.shell.sink import Sink

STREAMS = '[streams.orders]\nsubjects = ["orders.>"]\n[coverage]\ngap_grace = "2s"'
SURE_S = 60.0


async def publish(connection: Client, first: int, last: int) -> None:
    """All are acknowledged when it returns."""
    for number in range(first, last + 1):
        await published(connection, "orders.new", b"%d" % number)


def progress_of(sink: Sink) -> Progress:
    incarnation = sink.machine.log("orders").state.incarnation
    return sink.machine.state.producer_of("gw1", 0).progress[incarnation, 0]


def gaps_of(sink: Sink) -> list[Gap]:
    partition = sink.store.partition("orders", 0)
    found, offset = [], partition.start_offset
    while offset < partition.high_watermark:
        for batch in split_batches(partition.log.read(offset, 1 << 20)):
            header = read_header(batch)
            offset = header.next_offset
            if header.attributes == CONTROL:
                found.append(read_gap(batch)[1])
    return found


def open_gaps(sink: Sink) -> list[GapReport]:
    keeper = sink.coverage.keeper
    return [each for each in (*keeper.open.values(), *keeper.reported.values()) if each.stream == "orders"]


async def lose_two(zone: SinkZone, survivor: str) -> None:
    """The other two have empty disks, and the survivor goes on by an operator's word."""
    others = [name for name in zone.names if name != survivor]
    await zone.stop(*others)
    for name in others:
        zone.wipe(name)
    await zone.start(*zone.names)
    told = lambda: zone.sinks[survivor].main.peers.hellos.values()  # noqa: E731
    await zone.until(lambda: sum(bool(one.muted) for one in told()) == 2, "they know that they have lost their disks")
    await repair.run(sinks.Zone(zone.file(), None, 10.0), None, (), yes=True)
    for name in others:
        sink = zone.sinks.pop(name)
        assert isinstance(await asyncio.wait_for(sink.failed, SURE_S), Superseded)
        await sink.stop()


async def test_what_was_acknowledged_and_is_lost_stands_in_the_log_as_a_gap_record(tmp_path):
    async with zone_with_gateway(tmp_path, streams=STREAMS) as (zone, _, url), client([url]) as connection:
        await publish(connection, 1, 20)
        await zone.level()
        survivor = next(name for name in zone.names if name != zone.leader)
        await zone.stop(survivor)
        await zone.led()
        await publish(connection, 21, 30)  # which two of three hold
        await lose_two(zone, survivor)
        sink = zone.sinks[survivor]
        await asyncio.wait_for(publish(connection, 31, 35), SURE_S)
        await zone.until(lambda: progress_of(sink).lost, "it is recorded", SURE_S)
        await sink.main.flush()
        gaps = [(gap.reason, gap.events, gap.source) for gap in gaps_of(sink)]
        assert gaps == [(ACCEPTED_LOSS, 0, "127.0.0.1"), (LOST, 10, "gw1")]
        account = progress_of(sink).account
        assert (account.held, account.before.held, progress_of(sink).lost) == (5, 20, 10)  # of 35 taken in
        (recorded,) = progress_of(sink).recorded
        assert (recorded.reason, recorded.run != account.run) == (LOST, True)
        await zone.until(lambda: not open_gaps(sink), "nothing is open any more", SURE_S)


async def test_a_gateway_that_outlives_all_disks_of_its_zone_begins_a_run_in_each_new_log_and_raises_no_alarm(tmp_path):
    """What the disks held is no gap of the new log: the old one comes back from another zone, or never."""
    async with zone_with_gateway(tmp_path, streams=STREAMS) as (zone, _, url), client([url]) as connection:
        await publish(connection, 1, 20)
        before = progress_of(zone.sinks[zone.leader]).account
        await zone.stop()
        for name in zone.names:
            zone.wipe(name)
        await zone.start()
        await zone.led()
        await asyncio.wait_for(publish(connection, 21, 25), SURE_S)
        await beacons_come(zone, connection, 5)  # longer than the grace
        await zone.level()
        for sink in zone.sinks.values():
            account = progress_of(sink).account
            assert (account.run != before.run, account.before.held, progress_of(sink).lost) == (True, 0, 0)
            assert account.held == sink.machine.log("orders").partitions[0].end_offset
            assert not open_gaps(sink)
            assert not sink.coverage.refused


async def beacons_come(zone: SinkZone, connection: Client, count: int) -> None:
    """So many, and each has something to tell, in front of which something was published."""
    for _ in range(count):
        heard = {name: last_number(sink) for name, sink in zone.sinks.items()}
        await publish(connection, 1, 1)
        await zone.until(
            lambda heard=heard: all(last_number(zone.sinks[name]) > number for name, number in heard.items()),
            "a beacon is heard",
            SURE_S,
        )


def last_number(sink: Sink) -> int:
    speaker = sink.coverage.keeper.speakers.by_name.get(("gw1", 0))
    return speaker.uttered.number if speaker is not None else 0


async def test_coverage_begins_and_ends_in_a_zone_that_runs(tmp_path):
    """A file says so, and a restart of nobody: accounts begin with a run of their own each time."""
    streams = '[streams.orders]\nsubjects = ["orders.>"]'
    off, on = f"{streams}\n[coverage]\nenabled = false", STREAMS
    async with zone_with_gateway(tmp_path, streams=off) as (zone, _, url), client([url]) as connection:
        await publish(connection, 1, 10)
        runs = set()
        for revision, says in ((2, on), (3, off), (4, on)):
            for name in zone.names:
                await zone.stop(name)
                await zone.start(name, file=zone.file(revision=revision, streams=says))
                await zone.led()
            leader = zone.sinks[await zone.led()]
            await zone.until(lambda leader=leader, n=revision: leader.machine.state.revision == n, "it is in force")
            begun = leader.machine.log("orders").partitions[0].end_offset
            await publish(connection, 1, 10)
            await zone.level()
            for sink in zone.sinks.values():
                partition, account = sink.machine.log("orders").partitions[0], progress_of(sink).account
                if says == off:
                    assert (partition.tree, account) == (None, None)
                    continue
                assert (partition.tree.begin_offset, account.held) == (begun, 10)
                runs.add(account.run)
            await beacons_come(zone, connection, 4) if says == on else None
            assert not any(open_gaps(sink) for sink in zone.sinks.values())
        assert len(runs) == 2
