"""The outbox with two Raft groups: each partition goes its own way, and only its own way can be closed."""

import json

import pytest
from support.streams import state

from gateway.core.outbox import Outbox
from gateway.core.partition_outbox import event_bytes_max
from gateway.core.spool_format import Owner
from gateway.shell.spool import SpoolFolder
from protocol import envelope, link
from protocol.limits import NEVER_SENT_REFUSE_MS
from protocol.link import Appended, Opened, Reached, Streams
from protocol.records import Event, read_records
from protocol.streams import StreamState

WIDE = state("wide", partitions=4, groups=2, key="token:2")


def subject_of(group: int, stream: StreamState = WIDE) -> str:
    """A subject whose partition is in this group."""
    routes = Outbox("eu", lambda *_: None)
    routes.set_streams([stream])
    for number in range(100):
        plan = routes.routes.plan("$G", f"wide.{number}", b"")
        assert plan is not None
        if stream.group_of(plan[2]) == group:
            return f"wide.{number}"
    raise AssertionError(group)


SUBJECTS = [subject_of(group) for group in (0, 1)]


class Bench:
    """An outbox whose links are moved by hand."""

    def __init__(self, *streams: StreamState, spool: SpoolFolder | None = None) -> None:
        self.answers: dict[str, dict] = {}
        self.now_ms = 10_000
        more = {"spool": spool.spool, "answer_when_kept": spool.hold} if spool is not None else {}
        self.outbox = Outbox("eu", self.answer, **more)
        self.outbox.set_streams(streams or (WIDE,))
        for group in (0, 1):
            self.outbox.link_down(self.now_ms, group)

    def answer(self, account: str, reply: str, body: bytes) -> None:
        self.answers[reply] = json.loads(body)

    def publish(self, group: int, payload: bytes, reply: str = "") -> tuple[bool, bool]:
        return self.outbox.publish("$G", SUBJECTS[group], reply, b"", payload, self.now_ms, 5)

    def link_up(self, group: int, epoch: int = 1, *reached: Reached) -> None:
        self.outbox.link_up(Opened(10 + group, epoch, b"n", reached), group)

    def sent(self, group: int) -> list[tuple[envelope.Envelope, list[bytes]]]:
        self.now_ms += 2
        self.outbox.flush(self.now_ms)
        frames = link.FrameReader().feed(b"".join(self.outbox.take_frames(group)))
        parcels = [parcel for frame in frames for parcel in envelope.unpack(frame.tail)]
        return [(parcel.envelope, [record.payload for record in read_records(parcel.batch)]) for parcel in parcels]

    def appended(self, head: envelope.Envelope, base_offset: int = 0) -> None:
        names = head.stream, head.incarnation, head.partition
        self.outbox.appended(Appended(head.producer_id, head.epoch, *names, head.first_sequence, base_offset))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_each_event_goes_to_the_group_of_its_partition_under_its_producer(bench):
    for group in (0, 1):
        bench.link_up(group)
        bench.publish(group, b"to %d" % group, f"r{group}")
    for group in (0, 1):
        ((head, payloads),) = bench.sent(group)
        assert (payloads, head.producer_id) == ([b"to %d" % group], 10 + group)
        assert WIDE.group_of(head.partition) == group
        bench.appended(head, 7)
        assert bench.answers[f"r{group}"]["offset"] == 7
    assert (bench.outbox.is_empty, bench.outbox.size_bytes) == (True, 0)


def test_a_group_without_a_link_holds_up_its_own_events_alone(bench):
    bench.link_up(0)
    bench.publish(1, b"waits", "r1")
    bench.publish(0, b"goes", "r0")
    assert bench.sent(1) == []
    ((head, _),) = bench.sent(0)
    bench.appended(head)
    bench.now_ms += NEVER_SENT_REFUSE_MS
    bench.publish(0, b"goes too", "r0 too")
    bench.publish(1, b"is refused", "r1 too")
    bench.outbox.tick(bench.now_ms)
    assert {reply for reply, answer in bench.answers.items() if "error" in answer} == {"r1", "r1 too"}
    ((head, payloads),) = bench.sent(0)
    assert payloads == [b"goes too"]
    bench.publish(1, b"nobody waits")
    bench.link_up(1)
    assert [payloads for _, payloads in bench.sent(1)] == [[b"nobody waits"]]


def test_the_end_of_one_link_takes_back_nothing_of_the_other(bench):
    for group in (0, 1):
        bench.link_up(group)
        bench.publish(group, b"%d" % group)
        bench.sent(group)
    bench.outbox.link_down(bench.now_ms, 1)
    bench.link_up(1, 2)
    assert [payloads for _, payloads in bench.sent(1)] == [[b"1"]]
    assert bench.sent(0) == []  # it is on its way still
    assert bench.outbox.counters.batches_sent_again == 1


def test_an_answer_of_one_group_says_nothing_of_the_other_ones_batches(bench):
    for group in (0, 1):
        bench.link_up(group)
        bench.publish(group, b"%d" % group, f"r{group}")
    ((head, _),) = bench.sent(1)
    names = head.stream, head.incarnation, head.partition
    bench.outbox.appended(Appended(10, 1, *names, head.first_sequence, 0))  # under the producer of group 0
    assert bench.answers == {}
    bench.appended(head)
    assert list(bench.answers) == ["r1"]


def test_the_room_of_a_stream_is_for_all_groups_together():
    payload = b"x" * 500
    size_bytes = event_bytes_max(Event(SUBJECTS[0].encode(), b"0", 5, b"", payload))
    bench = Bench(state("wide", partitions=4, groups=2, key="token:2", outbox_bytes=3 * size_bytes))
    assert bench.publish(0, payload) == (False, True)
    assert bench.publish(1, payload) == (False, True)
    assert bench.publish(0, payload)[1] is False


def test_the_newest_streams_that_a_link_tells_count(bench):
    def told(revision: int, *names: str, group: int) -> list[str]:
        bench.outbox.streams_told(Streams(revision, tuple(state(name) for name in names)), group)
        return list(bench.outbox.routes.by_name)

    assert told(0, group=1) == ["wide"]  # it has not heard of any yet
    assert told(5, "a", "b", group=0) == ["a", "b"]
    assert told(4, "a", group=1) == ["a", "b"]
    assert told(6, "a", "b", "c", group=1) == ["a", "b", "c"]
    assert told(5, "a", "b", group=0) == ["a", "b", "c"]
    for group in (0, 1):  # all disks of the zone were lost: it begins anew
        bench.outbox.link_down(bench.now_ms, group)
    assert told(1, "new", group=0) == ["new"]


def test_lanes_of_a_group_without_a_link_take_nothing_that_somebody_waits_for(bench):
    lanes = []
    for group in (0, 1):
        bench.link_up(group)
        bench.publish(group, b"opens")
        lane, key = bench.outbox.lane("$G", SUBJECTS[group])
        assert lane.take(SUBJECTS[group].encode(), key, 5, b"", b"by the lane", b"reply")
        lanes.append((lane, key))
    bench.outbox.link_down(bench.now_ms, 1)
    for group, (lane, key) in enumerate(lanes):
        assert lane.take(SUBJECTS[group].encode(), key, 5, b"", b"more", b"reply too") == (group == 0)


def test_a_spool_has_what_was_held_for_every_group(tmp_path):
    owner = Owner("acme", "eu", "gw1", 0)

    def folder() -> SpoolFolder:
        return SpoolFolder(tmp_path, owner, 1, lambda *_: None)

    spool = folder()
    bench = Bench(spool=spool)
    spool.open(bench.outbox, [WIDE], 10_000, 5)
    bench.link_up(0)
    for group in (0, 1):
        bench.publish(group, b"%d" % group)
    ((sent, _),) = bench.sent(0)
    assert spool.write()
    spool.close()

    spool = folder()
    again = Bench(spool=spool)
    spool.open(again.outbox, [WIDE], 10_000, 5)
    again.link_up(1)
    assert [payloads for _, payloads in again.sent(1)] == [[b"1"]]
    assert again.sent(0) == []
    again.link_up(0, 2, Reached("wide", b"wide", sent.partition, 0, ()))
    assert [payloads for _, payloads in again.sent(0)] == [[b"0"]]
    spool.close()
