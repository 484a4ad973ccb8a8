"""What all disks have spoilt: an operator has readers pass over it, on every sink, until it is found again."""

import json
import os
from pathlib import Path

import msgspec
import pytest
from support import cli
from support.disk import Crash, DyingProcess, flip
from support.sinks import SinkZone
from test_scrubbing import filled, scrub, scrubber, segments
from test_segments import fill, read_all, reopen
from test_sink_group import PAYLOADS, publish

from mesh.commands import giving_up
from mesh.commands.failure import Failure
from mesh.commands.sinks import Zone
from protocol import audit
from protocol.coverage import digest_of
from protocol.errors import DamagedFile
from protocol.gaps import DAMAGED, Gap, leaf_digest, read_gap
from protocol.merkle import root_of
from protocol.records import CONTROL, Event, encode_batch, place_batch, read_header, read_records, split_batches
from sinkd.core.state import Damaged
from sinkd.shell.leaves import Digests, leaves_of, pack
from sinkd.shell.mending import Copy, gap_of
from sinkd.shell.segment_files import Segment
from sinkd.shell.segments import PartitionLog


async def batches(zone: SinkZone, name: str, log: str = "orders") -> list[bytes]:
    """All that a sink serves of a log."""
    store = zone.sinks[name].store
    partition, found = store.partition(log, 0), []
    offset = partition.start_offset
    while data := await store.read(partition, offset, 1 << 20):
        found += [bytes(batch) for batch in split_batches(data)]
        offset = read_header(found[-1]).next_offset
    return found


def gaps(found: list[bytes]) -> list[tuple[int, Gap]]:
    return [read_gap(batch) for batch in found if read_header(batch).attributes == CONTROL]


async def roots(zone: SinkZone, name: str) -> tuple[bytes, bytes]:
    """(of what its disk has, of what the group has committed), of `orders`."""
    partition = zone.sinks[name].store.partition("orders", 0)
    tree = partition.replicated.tree
    at = await zone.sinks[name].store.tree_at(partition, partition.high_watermark)
    return root_of(at.frontier), root_of(tree.frontier)


async def audited(zone: SinkZone, kind: str) -> list[audit.Event]:
    await zone.until(lambda: not any(sink.audit.waiting for sink in zone.sinks.values()), "it is in the audit stream")
    found = [record for batch in await batches(zone, zone.leader, audit.STREAM) for record in read_records(batch)]
    events = [msgspec.json.decode(bytes(record.payload), type=audit.Event) for record in found]
    return [event for event in events if event.kind == kind]


def given_up_on(zone: SinkZone, name: str) -> list[list[int]]:
    return next(log["given_up"] for log in zone.status(name)["logs"] if log["stream"] == "orders")


async def repair(zone: SinkZone, *more: str) -> cli.Ran:
    file = zone.folder / "mesh.toml"
    file.write_text(zone.text())
    return await cli.mesh("repair", "--accept-loss", "orders", "0", "--config", str(file), *more)


def spoil(path: Path) -> None:
    """Payload of one batch, the whole head of another one."""
    flip(path, 20_000)
    with path.open("r+b") as file:
        file.seek(64 + 20 * 2_090)
        file.write(os.urandom(200))


async def test_readers_pass_over_what_nobody_has_and_every_sink_says_the_same(tmp_path):
    async with filled(tmp_path) as zone:
        before = await batches(zone, "s1")
        for name in zone.names:
            spoil(segments(zone, name)[1])
        looked = await repair(zone)
        assert (looked.status, len(looked.lines)) == (0, 4), looked
        assert "Nothing was done; with --yes they get a gap and go on." in looked.out.decode()
        rows = json.loads((await repair(zone, "--yes", "--json")).out)
        assert [row["given_up"] for row in rows] == [True, True]
        for name in zone.names:
            await zone.until(lambda name=name: not scrubber(zone, name).damaged, "it is written anew")
        after = [await batches(zone, name) for name in zone.names]
        assert after[0] == after[1] == after[2]
        assert [read_header(batch).base_offset for batch in after[0]] == list(range(len(PAYLOADS)))
        lost = {row["first"]: row["digest"] for row in rows}
        assert {offset: gap.digest for offset, gap in gaps(after[0])} == lost
        assert {gap.reason for _, gap in gaps(after[0])} == {DAMAGED}
        assert [one for one in after[0] if read_header(one).base_offset not in lost] == [
            one for one in before if read_header(one).base_offset not in lost
        ]
        assert {offset: digest_of(before[offset]).hex() for offset in lost} == lost
        for name in zone.names:
            of_disk, committed = await roots(zone, name)
            assert of_disk == committed
            (row,) = [log for log in zone.status(name)["logs"] if log["stream"] == "orders"]
            assert row["given_up"] == [[offset, offset] for offset in lost]
        (accepted,) = await audited(zone, audit.LOSS_ACCEPTED)
        assert accepted.what.startswith(f"orders/0: offsets {min(lost)} to {min(lost)}, ")
        assert "there is nothing to repair" in (await repair(zone)).out.decode()


async def test_it_stays_so_after_a_restart_and_on_a_sink_that_is_filled(tmp_path):
    async with filled(tmp_path) as zone:
        for name in zone.names:
            spoil(segments(zone, name)[1])
        assert (await repair(zone, "--yes")).status == 0
        for name in zone.names:
            await zone.until(lambda name=name: not scrubber(zone, name).damaged, "it is written anew")
        expected = await batches(zone, "s1")
        assert len(gaps(expected)) == 2
        await publish(zone, [b"goes on"])
        await zone.level()
        await zone.stop("s2", "s3")
        zone.wipe("s3")
        await zone.start("s2", "s3")
        await zone.level()
        for name in zone.names:
            assert (await batches(zone, name))[:-1] == expected
            await scrub(zone, name)
            assert scrubber(zone, name).damaged == {}
            of_disk, committed = await roots(zone, name)
            assert of_disk == committed


async def test_what_is_found_again_takes_its_place_again(tmp_path):
    async with filled(tmp_path) as zone:
        before = await batches(zone, "s1")
        files = {name: segments(zone, name)[1].read_bytes() for name in zone.names}
        away = next(name for name in zone.names if name != zone.leader)
        here = [name for name in zone.names if name != away]
        await zone.stop(away)
        for name in here:
            spoil(segments(zone, name)[1])
        assert (await repair(zone, "--yes")).status == 0
        for name in here:
            await zone.until(lambda name=name: not scrubber(zone, name).damaged, "it is written anew")
            assert len(gaps(await batches(zone, name))) == 2
        await zone.start(away)
        await zone.level()
        assert await batches(zone, away) == before
        for name in here:
            await scrub(zone, name)
            assert await batches(zone, name) == before
            assert segments(zone, name)[1].read_bytes() == files[name]
            of_disk, committed = await roots(zone, name)
            assert of_disk == committed
        await scrub(zone, zone.leader)
        await zone.until(lambda: all(not given_up_on(zone, name) for name in zone.names), "that is forgotten")


async def test_what_is_found_again_is_put_back_batch_by_batch(tmp_path):
    """Of two batches that were given up, one stands in the only copy that has come back."""
    async with filled(tmp_path) as zone:
        before = await batches(zone, "s1")
        away = next(name for name in zone.names if name != zone.leader)
        here = [name for name in zone.names if name != away]
        await zone.stop(away)
        for name in here:
            spoil(segments(zone, name)[1])
        rows = json.loads((await repair(zone, "--yes", "--json")).out)
        flip(segments(zone, away)[1], 20_000)
        await zone.start(away)
        await zone.level()
        for name in (away, *here, zone.leader):
            await scrub(zone, name)
        lost = [offset for offset, _ in gaps(await batches(zone, away))]
        assert len(lost) == 1
        assert lost[0] in [row["first"] for row in rows]
        for name in zone.names:
            found = await batches(zone, name)
            assert [offset for offset, _ in gaps(found)] == lost
            assert [offset for offset, (one, was) in enumerate(zip(found, before, strict=True)) if one != was] == lost
            await zone.until(
                lambda name=name: given_up_on(zone, name) == [[lost[0], lost[0]]], "the other is forgotten"
            )


async def test_only_what_nobody_has_is_given_up(tmp_path):
    async with filled(tmp_path) as zone:
        before = await batches(zone, "s1")
        for name in zone.names:
            flip(segments(zone, name)[1], 20_000)
        flip(segments(zone, "s1")[1], 60_000)
        flip(segments(zone, "s2")[0], 60_000)
        rows = json.loads((await repair(zone, "--yes", "--json")).out)
        assert len(rows) == 1
        for name in zone.names:
            await scrub(zone, name)
            found = await batches(zone, name)
            assert [offset for offset, _ in gaps(found)] == [rows[0]["first"]]
            assert [read_header(one).base_offset for one, was in zip(found, before, strict=True) if one != was] == [
                rows[0]["first"]
            ]


async def test_where_a_batch_ends_has_to_be_known(tmp_path):
    """The leaves are gone on all sinks too."""
    async with filled(tmp_path) as zone:
        for name in zone.names:
            flip(segments(zone, name)[1], 20_000)
            segments(zone, name)[1].with_suffix(".leaves").write_bytes(b"")
        ran = await repair(zone, "--yes")
        assert (ran.status, "is not known any more" in ran.err) == (1, True)


async def test_bad_input_is_named(tmp_path):
    async with filled(tmp_path) as zone:
        operated = Zone(zone.file(), None, 30.0)
        with pytest.raises(Failure, match="zone eu has no partition 7 of a log orders"):
            await giving_up.run(operated, "orders", 7, yes=False, as_json=False)
        with pytest.raises(Failure, match="zone eu has no partition 0 of a log orrders"):
            await giving_up.run(operated, "orrders", 0, yes=False, as_json=False)
        assert (await repair(zone, "--gone", "s1")).status == 2


def altered(path: Path) -> int:
    """Another payload in the third batch of a segment, under a right CRC: its offset."""
    data = path.read_bytes()
    batch = list(split_batches(memoryview(data)[64:]))[2]
    header, (record,) = read_header(batch), read_records(batch)
    event = Event(bytes(record.subject), bytes(record.key), record.timestamp_ms, b"", bytes(record.payload)[::-1])
    other = place_batch(encode_batch([event]), header.base_offset, header.leader_epoch)
    assert len(other) == len(batch)
    assert other != batch
    path.write_bytes(data.replace(bytes(batch), other))
    return header.base_offset


async def test_what_was_altered_under_a_right_crc_is_found_named_and_mended(tmp_path):
    async with filled(tmp_path) as zone:
        victim = next(name for name in zone.names if name != zone.leader)
        path = segments(zone, victim)[1]
        before = path.read_bytes()
        offset = altered(path)
        await scrub(zone, victim)
        assert path.read_bytes() == before
        assert (scrubber(zone, victim).altered, scrubber(zone, victim).mended) == (1, 1)
        (event,) = await audited(zone, audit.REPLICA_DIFFERS)
        assert event.node == victim
        assert event.what == f"orders/0: sink {victim}"
        assert f"the batch at offset {offset} is whole, and its digest " in event.why


async def test_a_batch_that_was_altered_elsewhere_is_not_taken(tmp_path):
    """The leader, which is asked first, has other bytes than what was committed."""
    async with filled(tmp_path) as zone:
        leader = zone.leader
        victim, third = (name for name in zone.names if name != leader)
        path = segments(zone, victim)[1]
        before = path.read_bytes()
        altered(segments(zone, leader)[1])
        flip(path, 64 + 2 * 2_090 + 500)
        await scrub(zone, victim)
        assert path.read_bytes() == before
        assert scrubber(zone, victim).refused == 1
        events = await audited(zone, audit.REPLICA_DIFFERS)
        assert [(event.node, event.what) for event in events] == [(victim, f"orders/0: sink {leader}")]
        await scrub(zone, leader)
        assert await batches(zone, leader) == await batches(zone, third)


async def test_leaves_that_are_spoilt_are_made_anew(tmp_path):
    async with filled(tmp_path) as zone:
        path = segments(zone, "s1")[1].with_suffix(".leaves")
        before = path.read_bytes()
        for damage in (lambda: flip(path, 100), path.unlink, lambda: os.truncate(path, 50)):
            damage()
            await scrub(zone, "s1")
            assert path.read_bytes() == before
        assert scrubber(zone, "s1").damaged == {}


def opened(folder: Path) -> PartitionLog:
    log = reopen(folder, segment_bytes=2_000)
    log.keeps_leaves = True
    return log


def given_up(log: PartitionLog, segment: Segment, lost: Damaged) -> Copy:
    """The segment written anew, up to its being put in place."""
    copy = Copy(log, segment, Digests(leaves_of(log.files, segment)), {lost.base_offset: lost})
    while not copy.is_complete:
        assert copy.take_own() or copy.give_up()
    return copy


def test_a_crash_leaves_the_damaged_segment_or_the_one_with_the_gap_record(tmp_path):
    outcomes = set()
    for last_call in range(1, 40):
        folder = tmp_path / str(last_call)
        log = opened(folder)
        batches = fill(log, 12)
        log.sync()
        segment = log.finished()[1]
        leaves = leaves_of(log.files, segment)
        number = next(at for at, one in enumerate(batches) if read_header(one).base_offset > segment.base_offset)
        header = read_header(batches[number])
        at = 64 + sum(len(one) for one in batches[:number] if read_header(one).base_offset >= segment.base_offset)
        flip(segment.path, at + 70)
        lost = Damaged(header.base_offset, header.next_offset, digest_of(batches[number]), 5_000, "192.0.2.7")
        copy = given_up(log, segment, lost)
        died = False
        try:
            with DyingProcess(last_call).running():
                copy.put_in_place()
        except Crash:
            died = True
        log.close()
        log = opened(folder)
        expected = [*batches[:number], gap_of(lost), *batches[number + 1 :]]
        try:
            assert read_all(log) == expected
            outcomes.add("the gap record")
        except DamagedFile:
            assert died
            outcomes.add("the damage")
        assert leaves_of(log.files, next(one for one in log.finished() if one.path == segment.path)) == leaves
        log.close()
        if not died:
            break
    assert outcomes == {"the damage", "the gap record"}
    assert not died


def test_digests_are_found_in_any_order():
    has = {offset: bytes([offset]) * 32 for offset in (3, 5, 9, 10)}
    digests = Digests(b"".join(pack(offset, digest) for offset, digest in has.items()))
    assert dict(digests) == has
    for offset in (9, 3, 10, 5, 5, 3, 9):
        assert digests[offset] == has[offset]
    assert [digests.get(offset) for offset in (0, 4, 11)] == [None] * 3
    assert [digests.behind(offset) for offset in (0, 3, 9, 10)] == [3, 5, 10, None]
    assert not Digests(b"")


def test_the_leaf_of_a_gap_record_is_that_of_the_batch_in_whose_place_it_stands():
    digest = bytes(range(32))
    gap = gap_of(Damaged(7, 9, digest, 5_000, "192.0.2.7"))
    header = read_header(gap)
    assert (header.base_offset, header.next_offset, header.max_timestamp_ms) == (7, 9, 0)
    assert leaf_digest(header, gap) == digest
    assert leaf_digest(header, gap_of(Damaged(7, 9, b"", 5_000, ""))) != digest
