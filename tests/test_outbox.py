"""The outbox: what it takes, sends, takes back, and tells publishers, one promise at a time.

`tests/simulation` shows that the promises hold together under faults.
"""

import json
from collections.abc import Iterator

import msgspec
import pytest
from support.streams import state

from gateway.core.outbox import RETRY_PAUSE_MS, Outbox
from protocol import envelope, link
from protocol.envelope import Envelope
from protocol.limits import BATCH_BYTES_MAX, BATCH_BYTES_TARGET, BATCHES_IN_FLIGHT_MAX, NEVER_SENT_REFUSE_MS
from protocol.link import Answer, Appended, Opened, Reached, Refused
from protocol.records import read_header, read_records
from protocol.streams import StreamState

ORDERS, EVENTS = state("orders"), state("events", subjects=(">",), reply="header")
WALL_MS = 1_700_000_000_000


class Bench:
    """An outbox with a hand-driven sink at its other end; time stands still unless a test moves it."""

    def __init__(self, *streams: StreamState, is_up: bool = True) -> None:
        self.answers: dict[str, dict] = {}
        self.accounts: dict[str, str] = {}  # that the answers went to
        self.now_ms = 10_000
        self.epoch = 0
        self.outbox = Outbox("eu", self.answer)
        self.outbox.set_streams(streams or (ORDERS, EVENTS))
        self.outbox.link_down(self.now_ms)
        if is_up:
            self.link_up()

    def answer(self, account: str, reply: str, body: bytes) -> None:
        assert reply not in self.answers
        self.answers[reply] = json.loads(body)
        self.accounts[reply] = account

    def publish(
        self,
        payload: bytes,
        reply: str = "",
        subject: str = "orders.new",
        *,
        account: str = "$G",
        gives_up: bool = False,
        **headers: str,
    ) -> tuple[bool, bool]:
        block = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        header_block = f"NATS/1.0\r\n{block}\r\n".encode() if headers else b""
        event = subject, reply, header_block, payload
        return self.outbox.publish(account, *event, self.now_ms, WALL_MS, gives_up=gives_up)

    def link_up(self, *reached: Reached) -> None:
        self.epoch += 1
        self.outbox.link_up(Opened(1, self.epoch, b"n%d" % self.epoch, reached))

    def link_down(self) -> None:
        self.outbox.link_down(self.now_ms)

    def sent(self) -> list[tuple[Envelope, list[bytes]]]:
        """(envelope, payloads) of every batch that the outbox now wants to send."""
        self.outbox.flush(self.now_ms)
        data = b"".join(self.outbox.take_frames())
        parcels = [parcel for frame in link.FrameReader().feed(data) for parcel in envelope.unpack(frame.tail)]
        self.crcs = [read_header(parcel.batch).crc for parcel in parcels]
        return [(parcel.envelope, [record.payload for record in read_records(parcel.batch)]) for parcel in parcels]

    def payloads(self) -> list[list[bytes]]:
        return [payloads for _, payloads in self.sent()]

    def each_alone(self, *payloads: bytes, reply: bool = True) -> list[Envelope]:
        """Sends each payload in a batch of its own; the reply subject of `x` is `r-x`."""
        heads = []
        for payload in payloads:
            self.now_ms += 1
            self.publish(payload, f"r-{payload.decode()}" if reply else "")
            self.now_ms += 1
            ((head, found),) = self.sent()
            assert found == [payload]
            heads.append(head)
        return heads

    def appended(self, head: Envelope, base_offset: int) -> None:
        names = head.stream, head.incarnation, head.partition
        self.outbox.appended(Appended(head.producer_id, head.epoch, *names, head.first_sequence, base_offset))

    def refused(self, head: Envelope, reason: str, found: str = "", known: tuple[tuple[int, int], ...] = ()) -> None:
        names = head.stream, head.incarnation, head.partition
        message = Refused(head.producer_id, head.epoch, *names, head.first_sequence, reason, found, known)
        self.outbox.refused(message, self.now_ms)

    def offsets(self) -> dict[str, int]:
        return {reply: answer["offset"] for reply, answer in self.answers.items() if "offset" in answer}

    def errors(self) -> dict[str, int]:
        return {reply: answer["error"]["err_code"] for reply, answer in self.answers.items() if "error" in answer}


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- forming batches --------------------------------------------------------------------------------------------------


def test_a_lone_publisher_never_waits(bench):
    bench.publish(b"a", "r")
    ((head, payloads),) = bench.sent()
    assert payloads == [b"a"]
    assert head == Envelope(
        producer_id=1, epoch=1, stream="orders", incarnation=b"orders", partition=0, first_sequence=1,
        sequence_count=1, revision=1,
    )  # fmt: skip


def test_while_a_batch_is_in_flight_others_gather_for_a_moment(bench):
    bench.each_alone(b"a")
    bench.publish(b"b")
    bench.publish(b"c")
    assert bench.outbox.flush(bench.now_ms) is True
    assert bench.payloads() == []
    bench.now_ms += 1
    ((head, payloads),) = bench.sent()
    assert (head.first_sequence, head.sequence_count, payloads) == (2, 2, [b"b", b"c"])
    assert bench.outbox.flush(bench.now_ms) is False


def test_a_batch_that_is_big_enough_goes_at_once_and_is_not_bigger(bench):
    bench.each_alone(b"a")
    for _ in range(5):
        bench.publish(b"." * (BATCH_BYTES_TARGET // 2 - 1_000))
    assert [len(payloads) for payloads in bench.payloads()] == [2, 2]
    assert bench.outbox.flush(bench.now_ms) is True


def test_no_more_than_eight_batches_are_in_flight(bench):
    heads = bench.each_alone(*(b"%d" % number for number in range(BATCHES_IN_FLIGHT_MAX)))
    bench.publish(b"x")
    bench.publish(b"y")
    bench.now_ms += 100
    assert bench.payloads() == []
    assert bench.outbox.flush(bench.now_ms) is False  # only an answer lets it go on
    bench.appended(heads[0], 0)
    assert bench.payloads() == [[b"x", b"y"]]


def test_an_event_with_an_expectation_travels_alone(bench):
    bench.publish(b"a")
    bench.publish(b"b", Nats_Expected_Last_Sequence="1", Nats_Msg_Id="b")
    bench.publish(b"c")
    bench.publish(b"d", Nats_Expected_Last_Msg_Id="c")
    bench.publish(b"e", Nats_Msg_Id="e")
    bench.publish(b"f")
    bench.now_ms += 1
    sent = bench.sent()
    assert [payloads for _, payloads in sent] == [[b"a"], [b"b"], [b"c"], [b"d"], [b"e", b"f"]]
    assert [head.expect_last_sequence for head, _ in sent] == [None, 1, None, None, None]
    assert [head.expect_last_id for head, _ in sent] == [None, None, None, b"c", None]
    assert [head.ids for head, _ in sent] == [(), ((0, b"b"),), (), (), ((0, b"e"),)]


def test_partitions_go_their_own_ways():
    bench = Bench(state("wide", partitions=3, key="token:2"))
    for number in range(12):
        bench.publish(b"%d" % number, subject=f"wide.{number}")
    sent = bench.sent()
    assert sorted(head.partition for head, _ in sent) == [0, 1, 2]
    assert sorted(payload for _, payloads in sent for payload in payloads) == sorted(b"%d" % n for n in range(12))
    assert all(head.first_sequence == 1 for head, _ in sent)


def test_without_a_link_nothing_is_sent():
    bench = Bench(is_up=False)
    bench.publish(b"a")
    assert bench.outbox.flush(bench.now_ms) is False
    assert bench.payloads() == []
    bench.link_up(Reached("orders", b"orders", 0, 7, ()))
    ((head, _),) = bench.sent()
    assert head.first_sequence == 8  # a gateway of our name was here before


# -- who is answered --------------------------------------------------------------------------------------------------


def test_a_pub_ack_comes_when_the_log_has_the_event_and_not_before(bench):
    assert bench.publish(b"a", "r-a") == (True, True)
    bench.publish(b"b", "r-b")
    ((head, _),) = bench.sent()
    assert bench.answers == {}
    bench.appended(head, 41)
    assert bench.answers["r-a"] == {
        "stream": "orders", "seq": 42, "domain": "eu", "partition": 0, "offset": 41, "zone": "eu",
    }  # fmt: skip
    assert bench.offsets() == {"r-a": 41, "r-b": 42}


def test_a_stream_may_answer_only_those_who_ask():
    bench = Bench(EVENTS)
    assert bench.publish(b"a", "r-a") == (False, True)
    assert bench.publish(b"b", "r-b", Nats_Msg_Id="b") == (True, True)
    assert bench.publish(b"c", "r-c", Mesh_Ack="quorum") == (True, True)
    assert bench.publish(b"d", "r-d", Nats_Expected_Stream="events") == (True, True)
    ((head, payloads),) = bench.sent()
    bench.appended(head, 0)
    assert payloads == [b"a", b"b", b"c", b"d"]
    assert bench.offsets() == {"r-b": 1, "r-c": 2, "r-d": 3}


def test_logged_is_answered_at_once_unless_more_is_asked_for():
    bench = Bench(state("orders", ack="logged"))
    bench.publish(b"a", "r-a")
    bench.publish(b"b", "r-b", Nats_Msg_Id="b")
    assert list(bench.answers) == ["r-a"]
    assert (bench.answers["r-a"]["seq"], bench.answers["r-a"]["ack"]) == (0, "logged")
    ((head, _),) = bench.sent()
    bench.appended(head, 0)
    assert bench.offsets() == {"r-b": 1}


def test_what_no_stream_takes_is_not_our_business():
    bench = Bench(ORDERS)
    assert bench.publish(b"a", "r", "elsewhere") == (False, True)
    assert (bench.answers, bench.outbox.is_empty, bench.outbox.size_bytes) == ({}, True, 0)


# -- refused before they enter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "err_code"),
    [
        ({"Nats_Expected_Stream": "events"}, 10060),
        ({"Nats_TTL": "5"}, 10166),
        ({"Nats_Rollup": "sub"}, 10111),
        ({"Nats_Expected_Last_Sequence": "x"}, 10003),
        ({"Mesh_Ack": "all"}, 10003),
    ],
)
def test_what_can_never_be_taken_is_refused_and_counted(bench, headers, err_code):
    assert bench.publish(b"a", "r", **headers) == (True, True)
    assert bench.publish(b"a", **headers) == (False, True)
    assert bench.errors() == {"r": err_code}
    assert bench.outbox.counters.refused == {err_code: 2}
    assert (bench.payloads(), bench.outbox.size_bytes) == ([], 0)


def test_an_event_that_no_batch_can_hold_is_refused(bench):
    bench.publish(b"." * BATCH_BYTES_MAX, "r")
    assert bench.errors() == {"r": 10054}


def test_expectations_need_one_partition():
    bench = Bench(state("orders", partitions=3))
    bench.publish(b"a", "r", Nats_Expected_Last_Sequence="0")
    assert bench.errors() == {"r": 10003}
    assert "orders has 3" in bench.answers["r"]["error"]["description"]


def test_a_full_outbox_refuses_those_who_wait_and_slows_the_others():
    bench = Bench(state("orders", outbox_bytes=1_000), EVENTS)
    assert bench.publish(b"." * 2_000) == (False, False)
    assert not bench.outbox.has_room(bench.outbox.routes.by_name["orders"])
    assert bench.publish(b"a", "r-a") == (True, True)
    assert bench.errors() == {"r-a": 10167}
    assert bench.publish(b"b") == (False, False)  # taken all the same: its connection stops now
    assert bench.publish(b"c", subject="other") == (False, True)
    assert sorted(bench.payloads()) == [[b"." * 2_000, b"b"], [b"c"]]


def test_a_repeated_id_is_not_refused_while_the_first_is_on_its_way():
    """An error would say that the event is not in the log, and it may be."""
    bench = Bench(state("orders", outbox_bytes=1_000))
    bench.publish(b"." * 700, "r-1", Nats_Msg_Id="a")
    bench.publish(b"." * 700)
    bench.publish(b"a", "r-2", Nats_Msg_Id="a")
    bench.link_down()
    bench.now_ms += NEVER_SENT_REFUSE_MS
    bench.publish(b"a", "r-3", Nats_Msg_Id="a")
    assert bench.answers == {}


def test_without_a_leader_for_long_those_who_wait_are_refused():
    bench = Bench(is_up=False)
    bench.now_ms += NEVER_SENT_REFUSE_MS - 1
    assert bench.publish(b"a", "r-a") == (True, True)
    bench.publish(b"silent")
    bench.now_ms += 1
    bench.publish(b"b", "r-b")
    bench.outbox.tick(bench.now_ms)
    assert bench.errors() == {"r-b": 10077}
    bench.now_ms += NEVER_SENT_REFUSE_MS
    bench.outbox.tick(bench.now_ms)
    assert bench.errors() == {"r-a": 10077, "r-b": 10077}
    bench.link_up()
    assert bench.payloads() == [[b"silent"]]


def test_what_was_sent_is_not_refused_however_long_it_takes(bench):
    bench.each_alone(b"a")
    bench.link_down()
    bench.now_ms += 10 * NEVER_SENT_REFUSE_MS
    bench.outbox.tick(bench.now_ms)
    assert bench.answers == {}


# -- refused by the log -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "found", "err_code", "description"),
    [
        ("WRONG_LAST_SEQUENCE", "12", 10071, "wrong last sequence: 12"),
        ("WRONG_LAST_ID", "a-0", 10070, "wrong last msg ID: a-0"),
    ],
)
def test_an_expectation_that_failed_is_told_and_its_sequence_is_spent(bench, reason, found, err_code, description):
    bench.publish(b"a", "r-a", Nats_Expected_Last_Sequence="3")
    bench.publish(b"b", "r-b")
    bench.now_ms += 1
    (first, _), (second, _) = bench.sent()
    bench.refused(first, reason, found)
    assert bench.errors() == {"r-a": err_code}
    assert bench.answers["r-a"]["error"]["description"] == description
    bench.appended(second, 12)
    assert bench.offsets() == {"r-b": 12}
    bench.publish(b"c")
    assert [head.first_sequence for head, _ in bench.sent()] == [3]


def test_known_ids_are_answered_and_the_rest_is_sent_again_in_order(bench):
    for name in "abc":
        bench.publish(name.encode(), f"r-{name}", Nats_Msg_Id=name)
    ((first, _),) = bench.sent()
    (second,) = bench.each_alone(b"d")
    bench.refused(first, "DUPLICATE_IDS", known=((1, 7),))
    assert bench.answers == {
        "r-b": {
            "stream": "orders", "seq": 8, "duplicate": True, "domain": "eu", "partition": 0, "offset": 7, "zone": "eu",
        }
    }  # fmt: skip
    assert bench.payloads() == []  # the answer to the second batch is still to come
    bench.refused(second, "OUT_OF_ORDER", "1")
    ((head, payloads),) = bench.sent()
    assert (head.first_sequence, head.sequence_count, payloads) == (1, 3, [b"a", b"c", b"d"])
    assert head.ids == ((0, b"a"), (1, b"c"))
    bench.appended(head, 8)
    assert bench.offsets() == {"r-b": 7, "r-a": 8, "r-c": 9, "r-d": 10}
    assert bench.outbox.counters.duplicates == 1


def test_a_batch_of_nothing_but_known_ids_is_gone(bench):
    bench.publish(b"a", "r-a", Nats_Msg_Id="a")
    ((head, _),) = bench.sent()
    bench.refused(head, "DUPLICATE_IDS", known=((0, 3),))
    assert bench.offsets() == {"r-a": 3}
    assert (bench.outbox.is_empty, bench.outbox.size_bytes) == (True, 0)
    bench.publish(b"b")
    assert [head.first_sequence for head, _ in bench.sent()] == [1]


def test_an_id_on_its_way_is_not_sent_twice(bench):
    bench.publish(b"a", "r-1", Nats_Msg_Id="a")
    bench.publish(b"a again", "r-2", Nats_Msg_Id="a")
    ((head, payloads),) = bench.sent()
    bench.publish(b"a once more", "r-3", Nats_Msg_Id="a")
    bench.publish(b"a for nobody", Nats_Msg_Id="a")
    assert payloads == [b"a"]
    bench.appended(head, 4)
    assert bench.offsets() == {"r-1": 4, "r-2": 4, "r-3": 4}
    assert [bench.answers[reply].get("duplicate") for reply in ("r-1", "r-2", "r-3")] == [None, True, True]
    assert bench.payloads() == []
    assert bench.outbox.size_bytes == 0
    bench.publish(b"a anew", "r-4", Nats_Msg_Id="a")
    assert bench.payloads() == [[b"a anew"]]  # the window is the log's business


def test_those_who_wait_for_a_repeated_id_share_its_refusal(bench):
    bench.publish(b"a", "r-1", Nats_Msg_Id="a", Nats_Expected_Last_Sequence="9")
    bench.publish(b"a", "r-2", Nats_Msg_Id="a")
    ((head, _),) = bench.sent()
    bench.refused(head, "WRONG_LAST_SEQUENCE", "0")
    assert bench.errors() == {"r-1": 10071, "r-2": 10071}


def test_those_who_wait_are_counted_and_bounded():
    bench = Bench(state("orders", outbox_bytes=5_000))
    bench.publish(b"a", "r", Nats_Msg_Id="a")
    for number in range(1_000):
        bench.publish(b"a", f"r-{number}", Nats_Msg_Id="a")
    assert 5_000 <= bench.outbox.size_bytes < 5_200
    ((head, _),) = bench.sent()
    bench.appended(head, 0)
    assert 1 < len(bench.answers) < 100
    assert bench.outbox.size_bytes == 0


def test_a_full_disk_is_told_to_those_who_wait_and_mended_for_the_others(bench):
    bench.publish(b"a", "r-a")
    bench.publish(b"b")
    ((head, _),) = bench.sent()
    bench.refused(head, "STORAGE_FULL")
    assert bench.errors() == {"r-a": 10077}
    assert "storage full" in bench.answers["r-a"]["error"]["description"]
    bench.now_ms += RETRY_PAUSE_MS - 1
    assert bench.payloads() == []
    bench.now_ms += 1
    ((head, payloads),) = bench.sent()
    assert (head.first_sequence, payloads) == (1, [b"b"])


def test_a_full_disk_is_said_ahead_of_older_answers(bench):
    first, second, third = bench.each_alone(b"a", b"b", b"c")
    bench.refused(second, "STORAGE_FULL")
    bench.refused(third, "OUT_OF_ORDER", "2")
    assert bench.errors() == {"r-b": 10077}
    bench.now_ms += RETRY_PAUSE_MS
    assert bench.payloads() == []  # whether the first batch is taken is not known yet
    bench.appended(first, 0)
    ((head, payloads),) = bench.sent()
    assert (head.first_sequence, payloads) == (2, [b"c"])
    assert bench.offsets() == {"r-a": 0}


@pytest.mark.parametrize("reason", ["STALE_CONFIG", "NOT_LEADER", "FENCED", "UNKNOWN_STREAM"])
def test_other_refusals_are_tried_again_after_a_pause(bench, reason):
    (head,) = bench.each_alone(b"a")
    bench.refused(head, reason)
    assert bench.payloads() == []
    bench.now_ms += RETRY_PAUSE_MS
    assert bench.payloads() == [[b"a"]]
    assert bench.answers == {}


def test_answers_that_are_not_for_us_change_nothing(bench):
    (head,) = bench.each_alone(b"a")
    for other in ({"epoch": 9}, {"producer_id": 9}, {"incarnation": b"x"}, {"partition": 5}):
        bench.appended(msgspec.structs.replace(head, **other), 3)
        bench.refused(msgspec.structs.replace(head, **other), "OUT_OF_ORDER")
    assert bench.answers == {}
    bench.appended(head, 3)
    bench.appended(head, 4)
    assert bench.offsets() == {"r-a": 3}


# -- a lost link ------------------------------------------------------------------------------------------------------


def reached(last_sequence: int, *answers: Answer) -> Reached:
    return Reached("orders", b"orders", 0, last_sequence, answers)


def test_the_next_link_tells_what_has_arrived_and_the_rest_goes_again(bench):
    crcs = []
    for payload in (b"a", b"b", b"c", b"d"):
        bench.each_alone(payload)
        crcs += bench.crcs
    bench.link_down()
    assert bench.answers == {}
    bench.link_up(reached(2, Answer(1, crcs[0], 5), Answer(2, crcs[1], -1, "WRONG_LAST_SEQUENCE", "6")))
    assert bench.offsets() == {"r-a": 5}
    assert bench.errors() == {"r-b": 10071}
    ((head, payloads),) = bench.sent()
    assert (head.epoch, head.first_sequence, payloads) == (2, 3, [b"c", b"d"])
    assert bench.outbox.counters.batches_sent_again == 2
    bench.appended(head, 6)
    assert bench.outbox.size_bytes == 0


def test_nothing_is_sent_or_answered_on_a_link_that_is_down(bench):
    (head,) = bench.each_alone(b"a")
    bench.link_down()
    bench.appended(head, 0)
    bench.publish(b"b", "r-b")
    assert (bench.answers, bench.payloads()) == ({}, [])


def test_a_batch_of_another_gateway_under_our_sequences_is_not_taken_for_ours(bench):
    heads = bench.each_alone(b"a", b"b")
    bench.link_down()
    bench.link_up(reached(1, Answer(1, 12345, 5)))
    assert bench.answers == {}  # what became of it cannot be known: silence
    ((head, payloads),) = bench.sent()
    assert (head.first_sequence, payloads) == (2, [b"b"])
    bench.appended(head, 6)
    assert bench.offsets() == {"r-b": 6}
    assert (len(heads), bench.outbox.size_bytes) == (2, 0)


def test_a_refusal_before_the_link_was_lost_still_counts(bench):
    bench.publish(b"a", "r-a", Nats_Msg_Id="a")
    bench.publish(b"b", "r-b")
    ((head, _),) = bench.sent()
    bench.each_alone(b"c")
    bench.refused(head, "DUPLICATE_IDS", known=((0, 3),))
    bench.link_down()
    bench.link_up()
    ((head, payloads),) = bench.sent()
    assert (head.first_sequence, payloads) == (1, [b"b", b"c"])


def test_events_keep_their_order_over_lost_links(bench):
    bench.each_alone(b"1", b"2", reply=False)
    for _ in range(3):
        bench.link_down()
        bench.publish(b"x")
        bench.link_up()
        payloads = [payload for batch in bench.payloads() for payload in batch]
        assert payloads[:2] == [b"1", b"2"]
        assert set(payloads[2:]) == {b"x"}


# -- streams that change ----------------------------------------------------------------------------------------------


def retired(stream: StreamState, revision: int = 2) -> StreamState:
    return msgspec.structs.replace(stream, retired=True, revision=revision)


def test_a_new_revision_goes_into_what_is_sent_from_now_on(bench):
    bench.outbox.set_streams((state("orders", revision=4), EVENTS))
    (head,) = bench.each_alone(b"a")
    assert head.revision == 4


def test_events_of_a_stream_that_is_gone_are_routed_anew():
    bench = Bench(state("orders", key="token:2"), EVENTS, is_up=False)
    bench.publish(b"a", "r-a")
    bench.outbox.set_streams((retired(ORDERS), EVENTS))
    bench.link_up()
    bench.outbox.flush(bench.now_ms)
    (frame,) = link.FrameReader().feed(b"".join(bench.outbox.take_frames()))
    (parcel,) = envelope.unpack(frame.tail)
    (record,) = read_records(parcel.batch)
    assert (parcel.envelope.stream, record.payload, record.key) == ("events", b"a", b"orders.new")
    bench.appended(parcel.envelope, 0)
    assert bench.answers["r-a"]["stream"] == "events"
    assert bench.outbox.size_bytes == 0


ACME_ORDERS = state("acme-orders", subjects=("orders.>",), account="ACME")
ACME_EVENTS = state("events-ACME", subjects=(">",), account="ACME")


def test_answers_go_to_the_account_that_the_event_came_from():
    bench = Bench(ORDERS, ACME_ORDERS, state("acme-logged", account="ACME", ack="logged"))
    bench.publish(b"a", "r-a")
    bench.publish(b"b", "r-b", account="ACME")
    bench.publish(b"c", "r-c", account="ACME", Nats_Expected_Stream="orders")
    bench.publish(b"d", "r-d", "acme-logged.x", account="ACME")
    assert bench.publish(b"e", "r-e", account="EMPTY") == (False, True)
    for head, _ in bench.sent():
        bench.appended(head, 0)
    assert {reply: answer["stream"] for reply, answer in bench.answers.items() if "error" not in answer} == {
        "r-a": "orders", "r-b": "acme-orders", "r-d": "acme-logged"
    }  # fmt: skip
    assert bench.errors() == {"r-c": 10060}
    assert bench.accounts == {"r-a": "$G", "r-b": "ACME", "r-c": "ACME", "r-d": "ACME"}


def test_what_is_routed_anew_stays_in_its_account():
    bench = Bench(ORDERS, EVENTS, ACME_ORDERS, ACME_EVENTS)
    ((head, _),) = [bench.publish(b"a", "r-a"), *bench.sent()][1:]
    bench.publish(b"b", "r-b")
    bench.outbox.set_streams((retired(ORDERS), EVENTS, ACME_ORDERS, ACME_EVENTS))
    bench.publish(b"c", "r-c", account="ACME")  # does not wait behind what leaves another account
    ((acme, payloads),) = bench.sent()
    assert (acme.stream, payloads) == ("acme-orders", [b"c"])
    bench.outbox.set_streams((retired(ORDERS), EVENTS, retired(ACME_ORDERS), ACME_EVENTS))
    bench.refused(head, "STALE_CONFIG", "2")
    bench.refused(acme, "STALE_CONFIG", "2")
    assert sorted((head.stream, payloads) for head, payloads in bench.sent()) == [
        ("events", [b"a", b"b"]), ("events-ACME", [b"c"])
    ]  # fmt: skip


def test_what_the_file_said_is_replaced_by_what_is_committed():
    bench = Bench(state("orders", incarnation=b"?orders", revision=0), is_up=False)
    bench.publish(b"a", "r-a", Nats_Expected_Last_Sequence="0")
    bench.outbox.set_streams((ORDERS, EVENTS))
    bench.link_up()
    ((head, payloads),) = bench.sent()
    assert (head.incarnation, head.expect_last_sequence, payloads) == (b"orders", 0, [b"a"])


@pytest.mark.parametrize(
    ("headers", "others", "err_code"),
    [
        ({}, (), 10077),
        ({"Nats_Expected_Stream": "orders"}, (EVENTS,), 10060),
        ({"Nats_Expected_Last_Sequence": "0"}, (EVENTS,), 10077),
    ],
)
def test_an_event_that_fits_no_other_stream_is_refused(headers, others, err_code):
    bench = Bench(is_up=False)
    bench.publish(b"a", "r-a", **headers)
    bench.outbox.set_streams((retired(ORDERS), *others))
    assert bench.errors() == {"r-a": err_code}
    assert (bench.outbox.is_empty, bench.outbox.size_bytes) == (True, 0)


def test_what_is_published_while_a_stream_leaves_waits_behind_what_was_sent_to_it(bench):
    (head,) = bench.each_alone(b"a")
    bench.publish(b"b", "r-b")
    bench.outbox.set_streams((retired(ORDERS), EVENTS))
    bench.publish(b"c", "r-c", Nats_Msg_Id="c")
    bench.now_ms += 100
    assert bench.payloads() == []
    bench.publish(b"other", subject="a.b")
    assert bench.payloads() == [[b"other"]]
    bench.refused(head, "STALE_CONFIG", "2")
    ((head, payloads),) = bench.sent()
    assert (head.stream, payloads) == ("events", [b"a", b"b", b"c"])
    bench.appended(head, 1)
    assert bench.offsets() == {"r-a": 1, "r-b": 2, "r-c": 3}


def test_what_waits_behind_a_stream_that_leaves_is_bounded():
    events = state("events", subjects=(">",), outbox_bytes=1_000)
    bench = Bench(ORDERS, events)
    bench.each_alone(b"." * 600, reply=False)
    bench.outbox.set_streams((retired(ORDERS), events))
    assert bench.publish(b"." * 600) == (False, False)
    bench.publish(b"x", "r-x")
    assert bench.errors() == {"r-x": 10167}


def test_a_stream_that_comes_back_takes_what_waited(bench):
    (head,) = bench.each_alone(b"a")
    bench.outbox.set_streams((retired(ORDERS), EVENTS))
    bench.publish(b"b")
    bench.outbox.set_streams((state("orders", revision=3), EVENTS))
    bench.appended(head, 0)
    ((head, payloads),) = bench.sent()
    assert (head.stream, head.revision, head.first_sequence, payloads) == ("orders", 3, 2, [b"b"])


def test_an_id_that_waits_in_two_streams_is_kept_once_when_they_become_one():
    bench = Bench(state("orders"), state("returns"), is_up=False)
    bench.publish(b"a", "r-1", "orders.x", Nats_Msg_Id="a")
    bench.publish(b"a", "r-2", "returns.x", Nats_Msg_Id="a")
    bench.outbox.set_streams((EVENTS,))
    bench.link_up()
    ((head, payloads),) = bench.sent()
    assert payloads == [b"a"]
    bench.appended(head, 0)
    assert bench.offsets() == {"r-1": 0, "r-2": 0}
    assert bench.outbox.size_bytes == 0


# -- gaps -------------------------------------------------------------------------------------------------------------


def test_a_gap_spends_the_sequences_of_what_it_counts():
    bench = Bench(state("orders", outbox_bytes=1_000))
    bench.publish(b"." * 2_000)
    for _ in range(3):
        assert bench.publish(b"x", gives_up=True) == (False, True)
    heads = list(envelopes(bench))
    assert [(head.first_sequence, head.sequence_count) for head in heads] == [(1, 1), (2, 3)]
    bench.appended(heads[0], 0)
    bench.appended(heads[1], 1)
    bench.publish(b"y")
    assert [head.first_sequence for head in envelopes(bench)] == [5]


def envelopes(bench: Bench) -> Iterator[Envelope]:
    bench.now_ms += 1
    bench.outbox.flush(bench.now_ms)
    data = b"".join(bench.outbox.take_frames())
    for frame in link.FrameReader().feed(data):
        for parcel in envelope.unpack(frame.tail):
            yield parcel.envelope
