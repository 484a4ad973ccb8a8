"""What a sink knows of other zones' copies: its own feeds' word, what it passes on, and what a new leader believes."""

from support.streams import state

from protocol.frames import FrameReader
from sinkd.core.mirroring import Feed
from sinkd.core.raft_messages import CODEC, Held
from sinkd.shell.holding import Holding

STREAM = state("orders")
PLACE = STREAM.incarnation, 0


class Bench:
    def __init__(self, *zones: str) -> None:
        self.calls = 0
        self.changed: list[tuple[bytes, int]] = []
        self.holding = Holding(zones, self.tell_soon)
        self.holding.changed = lambda incarnation, partition: self.changed.append((incarnation, partition))

    def tell_soon(self) -> None:
        self.calls += 1

    def told(self, *, again: bool = False) -> dict[str, int]:
        """What the leader hears, by zone."""
        frames: list[Held] = []

        def send(leader, parts):
            frames.extend(frame.message for frame in FrameReader(CODEC).feed(b"".join(parts)))

        self.holding.tell("s2", send, again=again)
        return {held.zone: held.through for held in frames}

    def feed(self, zone: str, offset: int) -> Feed:
        feed = Feed(zone, offset, 1_000)
        self.holding.note(feed, *PLACE)
        return feed

    def durable(self, feed: Feed, offset: int) -> None:
        feed.sent(offset, 10)
        feed.durable_through(offset)
        self.holding.note(feed, *PLACE)


def test_a_leader_tells_whoever_watches_and_nobody_else():
    bench = Bench("us", "ap")
    bench.holding.leads(True)
    bench.durable(bench.feed("us", 3), 5)
    assert bench.holding.copies(*PLACE) == (("us", 5),)
    assert (bench.changed, bench.calls) == ([PLACE] * 2, 0)
    bench.holding.take(Held("ap", *PLACE, 4))
    bench.holding.take(Held("ap", *PLACE, 4))
    assert bench.holding.copies(*PLACE) == (("ap", 4), ("us", 5))
    assert len(bench.changed) == 3


def test_who_does_not_lead_passes_on_the_latest_at_once_and_all_of_it_again():
    bench = Bench("us", "ap")
    bench.feed("ap", 2)
    us = bench.feed("us", 3)
    bench.durable(us, 5)
    bench.durable(us, 7)
    assert bench.calls == 4
    assert bench.told() == {"ap": 2, "us": 7}
    assert bench.told() == {}
    assert bench.told(again=True) == {"ap": 2, "us": 7}


def test_a_feed_that_has_ended_says_nothing_more_unless_another_goes_on_for_it():
    bench = Bench("us")
    first, second = bench.feed("us", 3), bench.feed("us", 0)
    bench.holding.ended(first, *PLACE)
    assert bench.told(again=True) == {"us": 0}
    bench.holding.note(second, *PLACE)
    bench.holding.ended(second, *PLACE)
    assert (bench.told(), bench.told(again=True)) == ({}, {})


def test_who_begins_to_lead_believes_only_its_own_feeds():
    bench = Bench("us", "ap")
    bench.feed("us", 3)
    bench.holding.take(Held("ap", *PLACE, 9))
    bench.holding.leads(True)
    assert bench.holding.copies(*PLACE) == (("us", 3),)
    bench.holding.take(Held("ap", *PLACE, 8))
    bench.holding.leads(True)  # still
    assert bench.holding.copies(*PLACE) == (("ap", 8), ("us", 3))
    assert bench.told() == {}


def test_a_zone_that_keeps_no_logs_counts_for_nothing():
    bench = Bench("us")
    bench.holding.take(Held("edge", *PLACE, 9))
    assert (bench.holding.copies(*PLACE), bench.changed) == ((), [])


def test_retention_goes_by_the_zone_that_holds_least_and_unheard_ones_hold_nothing():
    bench = Bench("us", "ap")
    bench.feed("us", 9)
    assert bench.holding.through(STREAM, 0) == 0
    bench.feed("ap", 4)
    assert bench.holding.through(STREAM, 0) == 4
    assert bench.holding.through(state("orders", replicate=("us",)), 0) == 9
    assert bench.holding.through(state("orders", replicate=()), 0) is None
    assert bench.holding.through(state("orders@eu"), 0) is None
