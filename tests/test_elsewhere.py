"""A segment that is bad on all sinks of a zone is mended from another zone, which holds the same bytes there."""

import contextlib
from pathlib import Path

import msgspec
import pytest
from support.disk import flip
from support.sinks import LinkedGateway
from support.zones import MIRROR, TwoZones

from protocol import audit, link
from protocol.errors import FrameError, LogError
from protocol.gaps import ACCEPTED_LOSS, Gap, encode_gap, missing
from protocol.records import read_header, read_records, split_batches
from sinkd.core.mirroring import unpack_batches
from sinkd.shell.elsewhere import Elsewhere, check_is_there

PAYLOADS = [b"%04d" % number * 500 for number in range(400)]


@contextlib.asynccontextmanager
async def filled(folder, **options):
    """Zones whose sinks all have several finished segments of `orders`."""
    zones = TwoZones(folder, **options)
    await zones.start()
    try:
        gateway = await zones.gateway()
        await gateway.append(*PAYLOADS)
        await gateway.close()
        if "replicate" not in options.get("stream", ""):
            await zones.level()
        if options.get("third"):
            await zones.level("a1")
        await zones.until(lambda: not any(sink.store.hot_bytes for sink in zones.sinks.values()), "all is in segments")
        yield zones
    finally:
        await zones.stop()


def segment(zones: TwoZones, name: str) -> Path:
    """A finished one of `orders`, or of its mirror."""
    return sorted((zones.folder / name / "log").glob("orders*/0/*.segment"))[:-1][1]


def scrubber(zones: TwoZones, name: str):
    return zones.sinks[name].main.scrubber


async def scrub(zones: TwoZones, name: str) -> None:
    """A whole round."""
    it = scrubber(zones, name)
    rounds = it.progress.rounds
    it.begin()
    await zones.until(lambda: it.progress.rounds > rounds and not it.progress.is_under_way, "a round")


async def mended(zones: TwoZones, name: str) -> list[str]:
    """What the audit log of its zone says of segments that were mended: from whom."""
    await zones.until(lambda: not zones.sinks[name].audit.waiting, "it is in the audit stream")
    store = zones.sinks[name].store
    partition, offset, found = store.partition(audit.STREAM, 0), 0, []
    while data := await store.read(partition, offset, 1 << 20):
        for batch in split_batches(data):
            offset = read_header(batch).next_offset
            found += [msgspec.json.decode(bytes(record.payload), type=audit.Event) for record in read_records(batch)]
    return [event.why for event in found if event.kind == audit.SEGMENT_MENDED and event.node == name]


async def test_a_log_of_ones_own_is_mended_from_a_zone_that_mirrors_it(tmp_path):
    async with filled(tmp_path) as zones:
        before = segment(zones, "e1").read_bytes()
        for count, position in enumerate((20_000, 80_000), 1):
            flip(segment(zones, "e1"), position)
            await scrub(zones, "e1")
            assert segment(zones, "e1").read_bytes() == before
            assert (scrubber(zones, "e1").mended, scrubber(zones, "e1").damaged) == (count, {})
        assert [why.split()[-5:] for why in await mended(zones, "e1")] == [["sink", "u1", "of", "zone", "us"]] * 2


async def test_who_reads_what_is_bad_on_all_sinks_gets_what_was_written(tmp_path):
    async with filled(tmp_path, sinks=3) as zones:
        for name in ("u1", "u2", "u3"):
            flip(segment(zones, name), 20_000)
        origin = await zones.batches("e1", "orders")
        assert await zones.batches(zones.leader, MIRROR) == origin
        assert await mended(zones, zones.leader)
        for name in ("u1", "u2", "u3"):
            await scrub(zones, name)
            assert scrubber(zones, name).damaged == {}
            assert await zones.batches(name, MIRROR) == origin


async def test_a_mirror_whose_origin_is_gone_is_mended_from_another_one(tmp_path):
    async with filled(tmp_path, third=True) as zones:
        before = segment(zones, "u1").read_bytes()
        await zones.stop("e1")
        path = segment(zones, "u1")
        path.write_bytes(b"")
        await scrub(zones, "u1")
        assert path.read_bytes() == before
        assert all(why.endswith("from sink a1 of zone ap") for why in await mended(zones, "u1"))


async def test_what_is_bad_everywhere_stays_bad_and_the_zones_do_not_wait_for_each_other(tmp_path):
    async with filled(tmp_path) as zones:
        for name in ("e1", "u1"):
            flip(segment(zones, name), 20_000)
        for name in ("e1", "u1"):
            await scrub(zones, name)
            assert list(scrubber(zones, name).damaged) == [str(segment(zones, name))]
        with pytest.raises(LogError, match=r"of zone us: .*has to be mended first"):
            await zones.batches("e1", "orders")
        assert not zones.sinks["e1"].failed.done()
        flip(segment(zones, "u1"), 20_000)
        await scrub(zones, "e1")
        assert scrubber(zones, "e1").damaged == {}


async def test_a_mirror_that_begins_later_has_the_gap_records_of_its_origin_and_the_same_root(tmp_path):
    """Its only copy was lost before; when the origin has the batches again, the mirror gets them too."""
    async with filled(tmp_path) as zones:
        whole = await zones.batches("e1", "orders")
        await zones.stop("u1")
        zones.wipe("u1")
        flip(segment(zones, "e1"), 20_000)
        giving_up = zones.sinks["e1"].main.giving_up
        (row,) = await giving_up.answer(link.GiveUp(1, "orders", 0), "192.0.2.7")
        assert not row["given_up"]
        (row,) = await giving_up.answer(link.GiveUp(2, "orders", 0, (row["first"],)), "192.0.2.7")
        assert row["given_up"]
        await zones.until(lambda: not scrubber(zones, "e1").damaged, "it is written anew")
        await zones.start("u1")
        await zones.until(lambda: zones.end("u1") == zones.end("e1", "orders"), "level")
        assert await zones.batches("u1", MIRROR) == await zones.batches("e1", "orders") != whole
        trees = [
            zones.sinks[name].machine.log(log).partitions[0].tree for name, log in (("e1", "orders"), ("u1", MIRROR))
        ]
        assert (trees[0].size, trees[0].frontier) == (trees[1].size, trees[1].frontier)
        await zones.until(lambda: not any(sink.store.hot_bytes for sink in zones.sinks.values()), "all is in segments")
        (aside,) = segment(zones, "e1").parent.glob("*.damaged")
        flip(aside, 20_000)  # somebody saves it from the disk
        aside.rename(segment(zones, "e1"))
        segment(zones, "e1").with_suffix(".index").unlink()
        await zones.stop("e1")
        await zones.start("e1")
        await zones.until(lambda: zones.sinks["e1"].group.leads, "it leads")
        for name in ("e1", "u1"):
            await scrub(zones, name)
        assert await zones.batches("e1", "orders") == await zones.batches("u1", MIRROR) == whole
        await zones.until(lambda: not zones.sinks["e1"].machine.log("orders").partitions[0].damaged, "it is forgotten")


async def test_what_is_not_replicated_is_asked_of_nobody_and_given_to_nobody(tmp_path):
    async with filled(tmp_path, stream="replicate = []") as zones:
        flip(segment(zones, "e1"), 20_000)
        await scrub(zones, "e1")
        assert list(scrubber(zones, "e1").damaged) == [str(segment(zones, "e1"))]
        hello = link.Hello("acme", "us", "u1", role=link.MIRROR_ROLE)
        asking = await LinkedGateway.of(zones.links["e1"], hello)
        streams = (await asking.get(link.Streams)).message.streams
        (orders,) = [stream for stream in streams if stream.name == "orders"]
        assert Elsewhere(zones.sinks["e1"]).zones(orders) == []
        asking.send(link.Subscribe(1, "orders", orders.incarnation, 0, 0, 1_000, once=True))
        failed = (await asking.get(link.Failed)).message
        assert (failed.request, failed.name) == (1, "NOT_REPLICATED")
        await asking.close()


async def test_once_means_one_frame_under_the_rate_of_copies_and_leaves_no_trace(tmp_path):
    async with filled(tmp_path) as zones:
        sink = zones.sinks["e1"]
        orders = sink.machine.log("orders").state
        copies, limited, bucket = sink.main.holding.copies(orders.incarnation, 0), [], sink.bucket_of("us")
        bucket.wait_s = lambda size_bytes, now: limited.append(size_bytes) or 0.0
        asking = await LinkedGateway.of(zones.links["e1"], link.Hello("acme", "us", "u1", role=link.MIRROR_ROLE))
        asking.send(link.Subscribe(1, "orders", orders.incarnation, 0, 7, 1, once=True))
        frame = await asking.get(link.Mirrored)
        (batch,) = split_batches(unpack_batches(frame.message, frame.tail))
        assert read_header(batch).base_offset == 7
        assert limited == [len(frame.tail)]
        asking.send(link.Subscribe(2, "orders", orders.incarnation, 0, len(PAYLOADS), 1, once=True))
        assert (await asking.get(link.Failed)).message.name == "NOT_CAUGHT_UP"
        asking.send(link.Subscribe(3, "orders", orders.incarnation, 0, len(PAYLOADS) + 1, 1, once=True))
        assert (await asking.get(link.Failed)).message.name == "OFFSET_OUT_OF_RANGE"
        assert sink.main.holding.copies(orders.incarnation, 0) == copies
        await asking.close()


async def test_a_sink_that_answers_otherwise_than_it_should_is_passed_over(tmp_path):
    """The next one of its zone is asked."""
    async with filled(tmp_path, sinks=3) as zones:
        for name in ("u1", "u2"):
            flip(segment(zones, name), 20_000)
        flip(segment(zones, "e1"), 20_000)
        for name in ("u1", "u2", "u3"):
            zones.sinks[name].main.scrubber.damaged[str(segment(zones, name))] = "is mended by nobody in this test"
        await scrub(zones, "e1")
        assert (await mended(zones, "e1"))[-1].endswith("from sink u3 of zone us")


def test_a_gap_that_says_that_offsets_are_missing_there_too_is_no_batch():
    (gap,) = missing(3, 9, "trimmed", "eu")
    with pytest.raises(FrameError, match="lacks that too"):
        check_is_there(memoryview(gap))
    check_is_there(memoryview(encode_gap(Gap(ACCEPTED_LOSS, 0, 0, 0, "127.0.0.1"))))
