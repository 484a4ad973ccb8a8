"""Lanes: what they take, and that events by lane and events by the long way end up in the log as one sequence."""

import random

import pytest
from support.gateway import ENGINES, PlaneClient
from support.lanes import BLOCK, CONNECT, EVENTS, ID, Keeping, ack, answers, sent
from support.streams import state

from gateway.core.lanes import REPLY_BYTES, Lane
from protocol import engine as record_engine
from protocol import link
from protocol.limits import BATCH_BYTES_TARGET
from protocol.link import Opened
from protocol.records import Event, record_bytes_max

on_both = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)


def open_lane(engine, room_bytes: int = 10_000) -> Lane:
    lane = engine.lane(engine.room())
    lane.room.bytes_max = room_bytes
    lane.builder, lane.replies = record_engine.BEST.builder(), lane.new_replies()
    return lane


# -- one lane ---------------------------------------------------------------------------------------------------------


@on_both
def test_a_lane_encodes_what_it_takes(engine):
    lane = open_lane(engine)
    events = [Event(b"a.b", b"a", 5, b"", b"1"), Event(b"a.b", b"a", 3, BLOCK, b"")]
    for subject, key, time, block, payload in events:
        assert lane.take(subject, key, time, block, payload)
    bound = sum(record_bytes_max(event.subject, event.key, event.header_block, event.payload) for event in events)
    assert (lane.taken, lane.room.used_bytes, lane.builder.size_bytes) == (2, bound, bound)
    assert lane.builder.seal() == record_engine.REFERENCE.encode_batch(events)


@on_both
def test_a_closed_lane_takes_nothing(engine):
    lane = open_lane(engine)
    lane.builder = None
    assert not lane.take(b"a", b"a", 1, b"", b"")
    assert (lane.taken, lane.room.used_bytes) == (0, 0)


@on_both
def test_a_lane_leaves_room(engine):
    """The event that fills the room goes the long way, which stops its publisher."""
    size_bytes = record_bytes_max(b"a", b"a", b"", b"x")
    lane = open_lane(engine, 2 * size_bytes)
    assert lane.take(b"a", b"a", 1, b"", b"x")
    assert not lane.take(b"a", b"a", 1, b"", b"x")
    lane.room.bytes_max += 1
    assert lane.take(b"a", b"a", 1, b"", b"x")


@on_both
def test_a_lane_remembers_who_waits(engine):
    lane = open_lane(engine)
    replies = lane.replies
    for reply in (b"", b"in.1", b"", b"\xff"):
        assert lane.take(b"a", b"a", 1, b"", b"", reply)
    assert (replies.items(), len(replies)) == ([(1, b"in.1"), (3, b"\xff")], 2)
    assert replies.size_bytes == 2 * REPLY_BYTES + 5
    assert lane.room.used_bytes == lane.builder.size_bytes + replies.size_bytes
    assert not lane.take(b"a", b"a", 1, b"", b"", b"$LOG.x")
    lane.replies = None
    assert not lane.take(b"a", b"a", 1, b"", b"", b"in.2")
    assert lane.take(b"a", b"a", 1, b"", b"")
    lane.answers = False
    assert lane.take(b"a", b"a", 1, b"", b"", b"in.2")
    assert (lane.taken, lane.builder.count, len(replies)) == (6, 6, 2)


@on_both
def test_who_waits_needs_room_too(engine):
    size_bytes = record_bytes_max(b"a", b"a", b"", b"")
    lane = open_lane(engine, size_bytes + REPLY_BYTES + 2)
    assert not lane.take(b"a", b"a", 1, b"", b"", b"in")
    assert len(lane.replies) == lane.builder.count == 0
    lane.room.bytes_max += 1
    assert lane.take(b"a", b"a", 1, b"", b"", b"in")


@on_both
def test_a_lane_does_not_make_a_batch_too_big(engine):
    lane = open_lane(engine, 10 * BATCH_BYTES_TARGET)
    rest = BATCH_BYTES_TARGET - record_bytes_max(b"a", b"a", b"", b"")
    assert not lane.take(b"a", b"a", 1, b"", bytes(rest + 1))
    assert lane.take(b"a", b"a", 1, b"", bytes(rest))
    assert not lane.take(b"a", b"a", 1, b"", b"")


# -- lanes of an outbox, behind a plane -------------------------------------------------------------------------------


@on_both
def test_only_the_first_of_many_goes_the_long_way(engine):
    hooks = Keeping(engine)
    client = PlaneClient(hooks.plane, CONNECT + b"SUB orders.> 1\r\n")
    got = client.send(b"".join(sent(b"orders.new", b"%d" % n) for n in range(200)))
    assert (hooks.long_way, hooks.kept_reads) == (1, 1)
    assert got.count(b"MSG orders.new 1 ") == 200
    assert hooks.outbox.counters.captured == 200
    hooks.carry()
    assert [event.payload for event in hooks.log] == [b"%d" % n for n in range(200)]
    assert {event[:4] for event in hooks.log} == {(b"orders.new", b"orders.new", 1_000, b"")}
    assert (hooks.outbox.size_bytes, hooks.outbox.counters.appended) == (0, 200)


@on_both
def test_what_asks_goes_the_long_way(engine):
    hooks = Keeping(engine)
    client = PlaneClient(hooks.plane, CONNECT + b"SUB in.* 1\r\n")
    plain = sent(b"orders.new", b"") + sent(b"orders.new", b"", BLOCK) + sent(b"orders.new", b"", b"", b"in.1")
    for what, long_way in (
        (plain, 1),
        (sent(b"orders.new", b"", ID % 1), 2),
        (sent(b"orders.new", b"", b"NATS/1.0\r\nMesh-Ack: quorum\r\n\r\n"), 3),
        (plain, 4),
        (sent(b"x", b"") + sent(b"x", b"", b"", b"in.2") + sent(b"x", b"", ID % 2, b"in.3"), 6),
    ):
        client.send(what)
        assert hooks.long_way == long_way
    hooks.carry()
    assert answers(client.take()).keys() == {b"1", b"3"}


@on_both
def test_what_no_log_takes_is_counted_by_whatever_way_it_comes(engine):
    hooks = Keeping(engine, state("orders", outbox_bytes=20_000_000))
    client = PlaneClient(hooks.plane, CONNECT + b"SUB other.> 1\r\n")
    stats = hooks.plane.stats
    client.send(b"".join(sent(b"orders.new", b"1234") for _ in range(3)))
    client.send(sent(b"_INBOX.a", b"12") + sent(b"$LOG.METADATA", b"12") + sent(b"$AUDIT.x", b"12"))
    assert (stats.unkept_msgs, stats.unkept_bytes) == (0, 0)
    client.send(b"".join(sent(b"other.a", b"1234") for _ in range(5)) + sent(b"nobody.hears", b"12", BLOCK))
    assert (stats.unkept_msgs, stats.unkept_bytes) == (6, 22 + len(BLOCK))
    client.send(sent(b"other.a", b"1234")[:-3])  # in two reads
    client.send(sent(b"other.a", b"1234")[-3:])
    assert stats.unkept_msgs == 7
    hooks.plane.routes_changed(keeps_log=False)  # what is kept is kept in memory
    client.send(b"".join(sent(b"orders.new", b"1234") for _ in range(3)) + sent(b"_INBOX.a", b"12"))
    assert stats.unkept_msgs == 10
    hooks.plane.routes_changed(keeps_events=False, keeps_log=False)
    client.send(sent(b"orders.new", b"1234") + sent(b"_INBOX.a", b"12"))
    assert (stats.unkept_msgs, stats.in_msgs) == (11, 19)


@on_both
def test_a_request_that_nobody_hears_is_told_so_and_kept(engine):
    hooks = Keeping(engine, EVENTS)
    client = PlaneClient(hooks.plane, CONNECT + b"SUB in 1\r\n")
    got = client.send(sent(b"x", b"1") + sent(b"x", b"2", b"", b"in"))
    assert (hooks.long_way, got.count(b"NATS/1.0 503")) == (1, 1)
    hooks.carry()
    assert [event.payload for event in hooks.log] == [b"1", b"2"]


@on_both
def test_a_key_that_stands_in_a_header_is_looked_up(engine):
    hooks = Keeping(engine, state("orders", key="header:A"))
    client = PlaneClient(hooks.plane, CONNECT)
    client.send(sent(b"orders.new", b"1") + sent(b"orders.new", b"2", BLOCK) + sent(b"orders.new", b"3"))
    assert hooks.long_way == 2
    hooks.carry()
    assert [event.key for event in hooks.log] == [b"orders.new", b"b", b"orders.new"]


@on_both
def test_a_full_outbox_stops_who_publishes_by_lane(engine):
    hooks = Keeping(engine, state("orders", outbox_bytes=2_000))
    client = PlaneClient(hooks.plane, CONNECT)
    client.send(b"".join(sent(b"orders.new", b"%02d" % n) for n in range(50)))
    assert client.session.paused
    size_bytes = record_bytes_max(b"orders.new", b"orders.new", b"", b"00")
    assert 2_000 <= hooks.outbox.size_bytes < 2_000 + size_bytes
    while client.session.paused:
        hooks.carry()
        hooks.plane.resume(client.session)
        client.send(b"")
    hooks.carry()
    assert [event.payload for event in hooks.log] == [b"%02d" % n for n in range(50)]


@on_both
def test_when_streams_change_events_go_where_they_belong_now(engine):
    hooks = Keeping(engine)
    client = PlaneClient(hooks.plane, CONNECT)
    client.send(sent(b"orders.new", b"1") + sent(b"orders.new", b"2"))
    hooks.outbox.flush(hooks.now_ms)  # on its way to `orders`
    hooks.outbox.set_streams([state("orders", retired=True, revision=2), EVENTS])
    client.send(sent(b"orders.new", b"3") + sent(b"orders.new", b"4"))  # the plane has not been told
    hooks.plane.routes_changed()
    client.send(sent(b"orders.new", b"5") + sent(b"orders.new", b"6"))
    assert hooks.long_way == 5  # behind what is on its way, all of them
    hooks.carry()
    assert [event.payload for event in hooks.log] == [b"%d" % n for n in range(1, 7)]
    client.send(sent(b"orders.new", b"7") + sent(b"orders.new", b"8"))
    assert hooks.long_way == 6


@on_both
def test_no_event_is_lost_doubled_or_overtaken(engine):
    """Any mixture of ways, with the clock going back, batches that fill, and flushes in between."""
    for seed in range(20):
        chance = random.Random(seed)
        hooks = Keeping(engine, state("orders", outbox_bytes=10_000_000), EVENTS)
        client = PlaneClient(hooks.plane, CONNECT + b"SUB in.* 1\r\n")
        published, waiting, got = [], set(), b""
        for _ in range(60):
            read = b""
            for _ in range(chance.randrange(1, 30)):
                number = len(published)
                published.append(b"%d" % number + b"." * chance.choice((0, 10, 3_000)))
                block = chance.choice((b"", b"", b"", BLOCK, ID % number, b"NATS/1.0\r\nnot plain\r\n\r\n"))
                reply = chance.choice((b"", b"", b"", b"in.%d" % number, b"in.%d" % number))
                waiting |= {number} if reply else set()
                read += sent(chance.choice((b"orders.a", b"orders.b")), published[-1], block, reply)
            hooks.clock_ms += chance.randrange(-3, 5)
            hooks.now_ms += chance.randrange(3)
            got += client.send(read)
            if chance.random() < 0.3:
                hooks.outbox.flush(hooks.now_ms)
            if chance.random() < 0.2:
                hooks.carry()
            if chance.random() < 0.02:
                hooks.outbox.tick(hooks.now_ms)
            if chance.random() < 0.1:  # a link that is lost: all that was sent has to be sent again
                hooks.outbox.link_down(hooks.now_ms)
                hooks.outbox.link_up(Opened(1, 1, b"n", _reached(hooks)))
        hooks.carry()
        assert [event.payload for event in hooks.log] == published, seed
        told = answers(got + client.take())
        assert told == {b"%d" % number: ack(number) for number in waiting}
        assert hooks.outbox.counters.captured == hooks.outbox.counters.appended == len(published)
        assert hooks.outbox.size_bytes == 0
        assert hooks.long_way < len(published)


def _reached(hooks: Keeping) -> tuple[link.Reached, ...]:
    """What the sink knows: everything in the log, nothing else."""
    return (link.Reached("orders", b"orders", 0, len(hooks.log), ()),)
