"""Acknowledgement by other zones: who is told when, what the room for those who wait is, and what a late zone means."""

import json

import msgspec
import pytest
from support.streams import state

from gateway.core.geo import LATENCY_BOUNDS_S
from gateway.core.outbox import Outbox
from protocol import envelope, link
from protocol.link import Answer, Appended, Copies, Opened, Reached, Refused
from protocol.records import read_header
from protocol.streams import StreamState

GEO = state("orders", ack="geo")
QUORUM = state("orders")
TIMEOUT_MS = GEO.geo_timeout_ms


class Bench:
    """An outbox of zone eu, whose sink is driven by hand; each event goes into a batch of its own."""

    def __init__(self, stream: StreamState = GEO, zones: tuple[str, ...] = ("us", "ap")) -> None:
        self.answers: dict[str, dict] = {}
        self.now_ms, self.epoch = 10_000, 0
        self.outbox = Outbox("eu", self.answer, other_zones=zones)
        self.outbox.set_streams([stream])
        self.watched: list[tuple[bytes, int]] = []
        self.link_up()

    def answer(self, account: str, reply: str, body: bytes) -> None:
        assert reply not in self.answers
        self.answers[reply] = json.loads(body)

    def link_up(self, *reached: Reached) -> None:
        self.epoch += 1
        self.outbox.link_up(Opened(1, self.epoch, b"n", reached))

    def publish(self, *replies: str, **headers: str) -> list[envelope.Envelope]:
        for reply in replies:
            lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
            block = f"NATS/1.0\r\n{lines}\r\n".encode() if headers else b""
            self.outbox.publish("$G", "orders.new", reply, block, b"x", self.now_ms, 5)
        return self.sent()

    def sent(self) -> list[envelope.Envelope]:
        self.now_ms += 2
        self.outbox.flush(self.now_ms)
        frames = link.FrameReader().feed(b"".join(self.outbox.take_frames()))
        heads = []
        for frame in frames:
            if isinstance(frame.message, link.WatchCopies):
                self.watched.append((frame.message.incarnation, frame.message.partition))
            else:
                heads += [parcel.envelope for parcel in envelope.unpack(frame.tail)]
                self.crc = read_header(next(iter(envelope.unpack(frame.tail))).batch).crc
        return heads

    def appended(self, head: envelope.Envelope, base_offset: int) -> None:
        names = head.stream, head.incarnation, head.partition
        self.outbox.appended(Appended(head.producer_id, head.epoch, *names, head.first_sequence, base_offset))
        assert not self.sent()

    def kept(self, *replies: str, at: int = 0, **headers: str) -> None:
        """Published in one batch, and committed here from offset `at` on."""
        (head,) = self.publish(*replies, **headers)
        self.appended(head, at)

    def copied(self, start_offset: int = 0, **zones: int) -> None:
        told = tuple(sorted(zones.items()))
        self.outbox.copies_told(Copies(GEO.incarnation, 0, start_offset, told), self.now_ms)

    def wait(self, ms: int) -> None:
        self.now_ms += ms
        self.outbox.tick(self.now_ms)


def geo(offset: int, *zones: str, **more: object) -> dict:
    place = {"stream": "orders", "seq": offset + 1, "domain": "eu", "partition": 0, "offset": offset, "zone": "eu"}
    return place | ({"ack": "geo", "zones": list(zones)} if zones else {}) | more


def test_an_answer_waits_until_another_zone_holds_the_event_and_says_which():
    bench = Bench()
    bench.kept("a", "b", "c")
    assert (bench.answers, bench.watched, bench.outbox.geo.waiting) == ({}, [(b"orders", 0)], 3)
    bench.copied(us=2)  # a batch is held whole or not at all
    assert not bench.answers
    bench.copied(us=3, ap=2)
    assert bench.answers == {reply: geo(number, "us") for number, reply in enumerate("abc")}
    assert (bench.outbox.geo.waiting, bench.outbox.geo.answered, bench.outbox.size_bytes) == (0, 3, 0)


def test_the_outbox_lets_go_of_events_at_quorum_and_keeps_only_who_waits():
    bench = Bench()
    (head,) = bench.publish("r" * 50, *[""] * 100)
    before = bench.outbox.size_bytes
    bench.appended(head, 0)
    assert bench.outbox.is_empty
    assert 0 < bench.outbox.size_bytes < before / 10


def test_events_of_one_partition_are_answered_as_far_as_they_are_held():
    bench = Bench()
    for offset, reply in enumerate("abc"):
        bench.kept(reply, at=offset)
    bench.copied(us=2)
    assert list(bench.answers) == ["a", "b"]
    bench.copied(us=9, ap=9)
    assert bench.answers["c"] == geo(2, "ap", "us")
    assert bench.watched == [(b"orders", 0)]


def test_what_is_held_already_is_answered_at_once():
    bench = Bench()
    bench.kept("a")
    bench.copied(us=9)
    bench.kept("b", at=5)
    assert bench.answers["b"] == geo(5, "us")


def test_a_message_can_ask_for_more_than_its_stream_and_never_for_less():
    quorum = Bench(QUORUM)
    quorum.kept("plain", at=0)
    quorum.kept("raised", at=1, Mesh_Ack="geo")
    assert quorum.answers == {"plain": geo(0)}
    quorum.copied(us=2)
    assert quorum.answers["raised"] == geo(1, "us")
    for weaker in ("logged", "quorum"):
        bench = Bench()
        bench.kept("a", Mesh_Ack=weaker)
        assert not bench.answers, weaker


def test_a_stream_that_says_logged_can_be_raised_too():
    bench = Bench(state("orders", ack="logged"))
    bench.kept("a", Mesh_Ack="geo")
    assert not bench.answers
    bench.copied(us=1)
    assert bench.answers["a"] == geo(0, "us")


def test_as_many_zones_as_the_stream_says_and_only_those_that_get_copies():
    bench = Bench(state("orders", ack="geo", geo_zones=2, replicate=("us", "ap")), zones=("ap", "us", "za"))
    bench.kept("a")
    bench.copied(us=1, za=1)
    assert not bench.answers
    bench.copied(ap=1, us=1, za=1)
    assert bench.answers["a"] == geo(0, "ap", "us")


def test_who_is_late_is_told_nothing_and_is_counted():
    bench = Bench()
    bench.kept("a")
    bench.wait(TIMEOUT_MS - 3)
    assert bench.outbox.geo.waiting == 1
    bench.wait(3)
    bench.copied(us=1)
    geos = bench.outbox.geo
    assert (bench.answers, geos.waiting, geos.timeouts, geos.answered) == ({}, 0, 1, 0)
    assert bench.outbox.size_bytes == 0


def test_a_stream_may_say_that_late_zones_are_done_without():
    bench = Bench(state("orders", ack="geo", geo_on_timeout="degrade"))
    bench.kept("a", "b")
    bench.wait(TIMEOUT_MS)
    assert bench.answers == {reply: geo(number, ack="quorum", geo=False) for number, reply in enumerate("ab")}
    assert (bench.outbox.geo.timeouts, bench.outbox.size_bytes) == (2, 0)


def test_the_time_begins_when_this_zone_holds_the_event():
    bench = Bench()
    (head,) = bench.publish("a")
    bench.wait(TIMEOUT_MS * 2)
    bench.appended(head, 0)
    bench.wait(TIMEOUT_MS - 100)
    bench.copied(us=1)
    assert bench.answers["a"] == geo(0, "us")


def test_another_leader_answers_what_was_committed_under_the_old_one():
    bench = Bench()
    bench.kept("a")
    bench.outbox.link_down(bench.now_ms)
    bench.link_up(Reached("orders", GEO.incarnation, 0, 1, (Answer(1, bench.crc, 0),)))
    bench.sent()
    assert bench.watched == [(b"orders", 0)] * 2
    bench.copied(us=1)
    assert bench.answers == {"a": geo(0, "us")}


def test_what_the_log_no_longer_has_after_a_change_of_leader_is_not_answered():
    """Its disks were replaced by an old copy: what is copied now is something else at the same offset."""
    bench = Bench()
    bench.kept("a")
    bench.kept("b", at=1)
    bench.outbox.link_down(bench.now_ms)
    bench.link_up(Reached("orders", GEO.incarnation, 0, 1, ()))
    bench.copied(us=9)
    assert (list(bench.answers), bench.outbox.geo.timeouts, bench.outbox.size_bytes) == (["a"], 1, 0)


def test_what_the_old_leader_had_committed_without_an_answer_waits_for_zones_too():
    bench = Bench()
    bench.publish("a")
    bench.outbox.link_down(bench.now_ms)
    bench.link_up(Reached("orders", GEO.incarnation, 0, 1, (Answer(1, bench.crc, 7),)))
    bench.sent()
    assert (bench.answers, bench.watched) == ({}, [(b"orders", 0)])
    bench.copied(us=8)
    assert bench.answers == {"a": geo(7, "us")}


def test_what_an_old_leader_has_said_does_not_count_any_more():
    bench = Bench()
    bench.kept("a")
    bench.copied(us=9)
    bench.outbox.link_down(bench.now_ms)
    bench.link_up(Reached("orders", GEO.incarnation, 0, 1, ()))
    bench.kept("b", at=1)
    assert list(bench.answers) == ["a"]
    assert len(bench.watched) == 2


def test_a_zone_that_has_begun_anew_does_not_hold_what_it_held():
    bench = Bench()
    bench.kept("a")
    bench.copied(us=9)
    bench.copied(us=0)
    bench.kept("b", at=5)
    assert list(bench.answers) == ["a"]


def test_what_the_log_has_let_go_of_is_nobodys_copy():
    bench = Bench()
    bench.kept("a")
    bench.copied(start_offset=1, us=1)
    assert not bench.answers
    bench.wait(TIMEOUT_MS)
    assert (bench.answers, bench.outbox.geo.timeouts) == ({}, 1)


def test_a_duplicate_gets_its_answer_when_the_event_is_held():
    bench = Bench()
    (head,) = bench.publish("a", Nats_Msg_Id="1")
    place = head.producer_id, head.epoch, head.stream, head.incarnation, head.partition
    bench.outbox.refused(Refused(*place, head.first_sequence, "DUPLICATE_IDS", known=((0, 4),)), bench.now_ms)
    bench.copied(us=4)
    assert not bench.answers
    bench.copied(us=5)
    assert bench.answers["a"] == geo(4, "us", duplicate=True)


def test_of_two_with_one_id_each_gets_the_answer_that_it_asked_for():
    bench = Bench(QUORUM)
    bench.outbox.publish("$G", "orders.new", "a", b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n", b"x", bench.now_ms, 5)
    (head,) = bench.publish("b", Nats_Msg_Id="1", Mesh_Ack="geo")
    bench.appended(head, 0)
    assert bench.answers == {"a": geo(0)}
    bench.copied(us=1)
    assert bench.answers["b"] == geo(0, "us", duplicate=True)


def test_waiting_answers_take_room_and_who_finds_none_is_refused():
    bench = Bench(msgspec.structs.replace(GEO, outbox_bytes=2_000))
    for number in range(100):
        for head in bench.publish(f"r{number}"):
            bench.appended(head, number)
        if bench.answers:
            break
    assert {answer["error"]["err_code"] for answer in bench.answers.values()} == {10167}
    waiting = bench.outbox.geo.waiting
    assert 0 < waiting < 100
    bench.copied(us=100)
    assert sum("error" not in answer for answer in bench.answers.values()) == waiting
    assert bench.outbox.size_bytes == 0


@pytest.mark.parametrize(
    ("stream", "zones", "says"),
    [
        (GEO, (), "geo is not available: no other zone keeps orders"),
        (state("orders", replicate=()), ("us",), "geo is not available: no other zone keeps orders"),
        (state("orders", geo_zones=2), ("us",), "geo needs 2 other zones that keep orders; there is us"),
    ],
)
def test_where_no_zone_could_answer_it_is_said_at_once(stream, zones, says):
    bench = Bench(stream, zones)
    assert not bench.publish("a", Mesh_Ack="geo")
    assert bench.answers["a"]["error"] == {"code": 400, "err_code": 10003, "description": says}


def test_who_waits_for_nothing_is_kept_on_such_a_stream_and_who_waits_is_refused():
    bench = Bench(GEO, ())
    assert len(bench.publish("")) == 1
    assert not bench.publish("a")
    assert "error" in bench.answers["a"]


def test_latencies_are_counted_from_the_publish():
    bench = Bench()
    bench.kept("a", "b")
    bench.now_ms += 298
    bench.copied(us=2)
    geos = bench.outbox.geo
    assert (LATENCY_BOUNDS_S[6], geos.latencies[6], sum(geos.latencies)) == (0.5, 2, 2)
    assert geos.latency_s == pytest.approx(0.6, abs=0.01)
