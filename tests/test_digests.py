"""Sinks tell each other the roots of their logs; which of them has something else is named, found and mended."""

import hashlib

import pytest
from msgspec import structs
from support.disk import flip
from support.zones import MIRROR
from test_elsewhere import filled as two_zones
from test_giving_up import altered, audited, batches
from test_scrubbing import filled, scrub, scrubber, segments
from test_sink_group import publish

from protocol import audit, coverage
from protocol.coverage import Root, Roots
from protocol.limits import DIGESTS_SAID_MAX, ROOTS_OF_EVENT_MAX
from sinkd.core.digests import Comparable, Digests, Speaker, place_of

PLACE = ("aa", 0)
S2 = Speaker("eu", "s2")


def root(end: int, text: str = "x", *, partition: int = 0, begin: int = 0, size: int | None = None) -> Root:
    return Root(
        log="orders@eu", incarnation="aa", partition=partition, begin_offset=begin,
        size=end if size is None else size, end_offset=end, root=hashlib.sha256(text.encode()).hexdigest(),
    )  # fmt: skip


def roots(*rows: Root, node: str = "s2", zone: str = "eu") -> Roots:
    return Roots(mesh="acme", zone=zone, node=node, time=1, roots=rows)


# -- pure -------------------------------------------------------------------------------------------------------------


def test_what_was_said_is_not_said_again():
    digests = Digests()
    assert digests.news([root(5), root(7, partition=1)]) == [(root(5), root(7, partition=1))]
    assert digests.news([root(5), root(7, partition=1)]) == []
    assert digests.news([root(5), root(8, partition=1)]) == [(root(8, partition=1),)]
    assert digests.news([root(5, "other"), root(8, partition=1)]) == [(root(5, "other"),)]
    many = [root(5, partition=number) for number in range(ROOTS_OF_EVENT_MAX + 1)]
    assert [len(part) for part in Digests().news(many)] == [ROOTS_OF_EVENT_MAX, 1]


def test_what_is_beyond_the_end_here_waits_and_the_latest_word_counts():
    digests = Digests()
    digests.hear(roots(root(9)))
    digests.hear(roots(root(12)))
    digests.hear(roots(root(12), node="s3"))
    assert digests.due({PLACE: Comparable(0, 11)}) == []
    assert digests.due({PLACE: Comparable(0, 12)}) == [(S2, root(12)), (Speaker("eu", "s3"), root(12))]
    assert digests.due({PLACE: Comparable(0, 12)}) == []


@pytest.mark.parametrize("here", [{}, {PLACE: Comparable(3, 50)}, {("bb", 0): Comparable(0, 50)}])
def test_what_says_nothing_about_each_other_is_not_compared(here):
    digests = Digests()
    digests.hear(roots(root(9)))
    assert digests.due(here) == []
    assert digests.due({PLACE: Comparable(0, 50)}) == []


def test_a_difference_is_told_once_until_they_are_equal_again():
    digests = Digests()
    found = digests.compare(S2, root(9), 9, root(9, "other").root)
    assert (found.speaker, found.log, found.partition, found.end_offset) == (S2, "orders@eu", 0, 9)
    assert root(9).root in found.why
    assert root(9, "other").root in found.why
    assert digests.compare(S2, root(10), 10, root(10, "other").root) is None
    assert list(digests.differing) == [(S2, PLACE)]
    assert digests.compare(S2, root(11), 11, root(11).root) is None
    assert digests.differing == {}
    assert digests.compare(S2, root(11), 10, root(11).root) is not None
    assert digests.compared == 4


def test_what_is_heard_has_a_bound():
    digests = Digests()
    for at in range(0, DIGESTS_SAID_MAX + 10, 10):
        digests.hear(roots(*(root(5, partition=number) for number in range(at, at + 10))))
    here = {place_of(root(5, partition=number)): Comparable(0, 9) for number in range(DIGESTS_SAID_MAX + 20)}
    assert len(digests.due(here)) == DIGESTS_SAID_MAX


# -- a group ----------------------------------------------------------------------------------------------------------


def digests_of(zone, name: str) -> Digests:
    return zone.sinks[name].comparing.digests


async def told(zone) -> None:
    """Each sink tells what it has, and all of them hear it."""
    for sink in zone.sinks.values():
        await sink.comparing.look()
    at = {name: len(digests_of(zone, name)._heard) for name in zone.sinks}
    await zone.until(lambda: not any(sink.coverage.notes.waiting for sink in zone.sinks.values()), "it is in the log")

    def all_has_been_read() -> bool:
        for sink in zone.sinks.values():
            home = sink.coverage.notes.home()
            end = home[0].store.partition(coverage.STREAM, 0).high_watermark
            if sink.coverage._offset < end or end < max(other.coverage._offset for other in zone.sinks.values()):
                return False
        return True

    await zone.until(all_has_been_read, f"it was heard {at}")


async def compared(zone) -> None:
    """What was told is compared, too."""
    await told(zone)
    for sink in zone.sinks.values():
        await sink.comparing.look()


async def test_replicas_that_are_equal_say_so_and_nothing_when_nothing_has_changed(tmp_path):
    async with filled(tmp_path) as zone:
        await zone.until(lambda: all(sink.coverage._is_live for sink in zone.sinks.values()), "they follow")
        await compared(zone)
        assert all(digests_of(zone, name).compared >= 2 for name in zone.names)
        assert not any(digests_of(zone, name).differing for name in zone.names)
        await told(zone)
        end = zone.sinks["s1"].store.partition(coverage.STREAM, 0).high_watermark
        await told(zone)
        assert zone.sinks["s1"].store.partition(coverage.STREAM, 0).high_watermark == end
        await publish(zone, [b"more"])
        await zone.level()
        await told(zone)
        assert zone.sinks["s1"].store.partition(coverage.STREAM, 0).high_watermark > end
        assert zone.status("s1")["digests"]["differing"] == []


async def test_a_replica_that_was_altered_with_its_leaves_is_named_by_all_and_mended(tmp_path):
    """Under right CRCs, while it was down, and the leaves and the tree were taken away: only roots tell."""
    async with filled(tmp_path) as zone:
        victim = next(name for name in zone.names if name != zone.leader)
        others = [name for name in zone.names if name != victim]
        expected = await batches(zone, victim)
        path = segments(zone, victim)[1]
        before = path.read_bytes()
        await zone.stop(victim)
        altered(path)
        path.with_suffix(".leaves").unlink()
        (path.parent / "tree").unlink(missing_ok=True)
        await zone.start(victim)
        await zone.level()
        await zone.until(lambda: all(sink.coverage._is_live for sink in zone.sinks.values()), "they follow")
        asked = {name: scrubber(zone, name).progress.rounds for name in zone.names}
        await compared(zone)
        for name in others:
            assert {speaker.node for speaker, _ in digests_of(zone, name).differing} == {victim}
        for name in zone.names:
            it = scrubber(zone, name)
            await zone.until(lambda it=it, name=name: it.progress.rounds > asked[name], "each was asked for a round")
        await zone.until(lambda: path.read_bytes() == before, "it is mended")
        assert await batches(zone, victim) == expected
        named = await audited(zone, audit.REPLICA_DIFFERS)
        own = [event.why for event in named if event.what == f"orders/0: sink {victim}"]
        assert "its root at offset" in own[0]
        assert "is whole, and its digest" in own[1]
        assert {event.node for event in named if event.what == f"orders@eu/0: sink {victim}"} == set(others)
        await scrub(zone, victim)
        assert scrubber(zone, victim).suspected == {}
        await publish(zone, [b"more"])
        await zone.level()
        await compared(zone)
        assert not any(digests_of(zone, name).differing for name in zone.names)


async def test_where_nobody_leads_to_the_committed_root_all_stays_as_it_is(tmp_path):
    async with filled(tmp_path) as zone:
        for name in zone.names:
            path = segments(zone, name)[1]
            altered(path)
            path.with_suffix(".leaves").unlink()
        await scrub(zone, zone.leader)
        (why,) = zone.status(zone.leader)["suspected"]
        assert "was committed" in why
        assert scrubber(zone, zone.leader).damaged == {}


async def test_a_damaged_segment_does_not_hide_what_it_was(tmp_path):
    """Its leaves are there: the root is known while nobody has its bytes."""
    async with filled(tmp_path) as zone:
        for name in zone.names:
            flip(segments(zone, name)[1], 20_000)
        await zone.until(lambda: all(sink.coverage._is_live for sink in zone.sinks.values()), "they follow")
        await compared(zone)
        assert all(digests_of(zone, name).compared >= 2 for name in zone.names)
        assert not any(digests_of(zone, name).differing for name in zone.names)


async def test_zones_compare_what_they_hold_of_each_other(tmp_path):
    async with two_zones(tmp_path) as zones:
        eu, us = zones.sinks["e1"], zones.sinks["u1"]
        mirrors = {"e1": f"{coverage.STREAM}@us", "u1": f"{coverage.STREAM}@eu"}
        await zones.until(lambda: all(zones.end(name, log) >= 0 for name, log in mirrors.items()), "they are mirrored")
        for sink in (eu, us):
            await sink.comparing._hear_other_zones()  # the first time what comes from now on
        for sink in (eu, us, eu, us):
            await sink.comparing.look()
        ends = lambda: {  # noqa: E731
            name: zones.end(name, log) - zones.sinks[other].machine.log(coverage.STREAM).partitions[0].end_offset
            for (name, log), other in zip(mirrors.items(), ("u1", "e1"), strict=True)
        }
        await zones.until(lambda: not (eu.coverage.notes.waiting or us.coverage.notes.waiting), "it is said")
        await zones.until(lambda: set(ends().values()) == {0}, "it is mirrored")
        for sink in (eu, us):
            await sink.comparing.look()
            assert sink.comparing.digests.compared > 0
            assert sink.comparing.digests.differing == {}
        place = (us.machine.log(MIRROR).state.incarnation.hex(), 0)
        (mine,) = [one for one in await us_roots(us) if place_of(one) == place]
        us.comparing.digests.hear(roots(structs.replace(mine, root="00" * 32), node="e1", zone="eu"))
        await us.comparing.look()
        assert [one.speaker for one in us.comparing.digests.differing.values()] == [Speaker("eu", "e1")]


async def us_roots(sink) -> list[Root]:
    found = [await sink.comparing._root(sink.main, partition) for partition in sink.store.partitions]
    return [one for one in found if one is not None]


async def test_a_segment_that_is_gone_with_its_leaves_says_nothing_and_comes_back(tmp_path):
    async with filled(tmp_path) as zone:
        victim = next(name for name in zone.names if name != zone.leader)
        path = segments(zone, victim)[1]
        before = path.read_bytes()
        path.unlink()
        path.with_suffix(".leaves").unlink()
        (path.parent / "tree").unlink(missing_ok=True)
        partition = zone.sinks[victim].store.partition("orders", 0)
        partition.log.tree.forget()
        await zone.sinks[victim].comparing.look()
        assert not zone.sinks[victim].failed.done()
        await scrub(zone, victim)
        assert path.read_bytes() == before
        assert scrubber(zone, victim).suspected == {}
