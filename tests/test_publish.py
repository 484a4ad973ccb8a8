"""What publishers ask of the log, and its answers, word for word as JetStream's clients know them."""

import json

import pytest

from protocol import publish
from protocol.publish import PublishHeaders, Refusal, read_publish_headers


def block(*lines: bytes) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def test_headers_that_ask_for_nothing():
    for one in (b"", block(), block(b"Colour: blue"), block(b"X-Nats-Msg-Id: 1"), block(b"a: Nats-Msg-Id: 1")):
        assert read_publish_headers(one) == PublishHeaders()
    assert (
        read_publish_headers(block(b"Nats-Unknown: 1", b"Nats-Msg-Id:", b"Nats-Expected-Stream: ")) == PublishHeaders()
    )


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        (b"Nats-Msg-Id: a-1", "msg_id", b"a-1"),
        (b"Nats-Msg-Id:a-1", "msg_id", b"a-1"),
        (b"Nats-Msg-Id: \t a 1 \t", "msg_id", b"a 1"),
        (b"Nats-Msg-Id: \xff", "msg_id", b"\xff"),
        (b"Nats-Expected-Stream: orders", "expect_stream", b"orders"),
        (b"Nats-Expected-Last-Sequence: 0", "expect_last_sequence", 0),
        (b"Nats-Expected-Last-Sequence: 12", "expect_last_sequence", 12),
        (b"Nats-Expected-Last-Sequence: 18446744073709551615", "expect_last_sequence", 2**64 - 1),
        (b"Nats-Expected-Last-Msg-Id: a-0", "expect_last_id", b"a-0"),
        (b"Mesh-Ack: quorum", "ack", "quorum"),
        (b"Mesh-Ack: logged", "ack", "logged"),
        (b"Mesh-Ack: geo", "ack", "geo"),
    ],
)
def test_each_publish_header_asks_the_log_to_answer(line, field, value):
    expected = PublishHeaders(asks=True, **{field: value})
    assert read_publish_headers(block(b"Colour: blue", line)) == expected
    assert read_publish_headers(block(line, b"Colour: blue")) == expected


def test_names_are_case_sensitive_and_the_first_counts():
    assert read_publish_headers(block(b"nats-msg-id: 1", b"NATS-TTL: 5", b"mesh-ack: logged")) == PublishHeaders()
    assert read_publish_headers(block(b"Nats-Msg-Id: 1", b"Nats-Msg-Id: 2")).msg_id == b"1"


@pytest.mark.parametrize(
    ("line", "code", "err_code", "description"),
    [
        (b"Nats-TTL: 5s", 400, 10166, "per-message TTL is disabled"),
        (b"Nats-Rollup: sub", 500, 10111, "rollup not permitted"),
        (b"Nats-Incr: 1", 400, 10168, "message counters is disabled"),
        (b"Nats-Batch-Id: x", 400, 10174, "atomic publish is disabled"),
        (b"Nats-Schedule: @at 2030-01-01T00:00:00Z", 400, 10188, "message schedules is disabled"),
    ],
)
def test_guarantees_that_we_do_not_give_are_refused_in_jetstreams_words(line, code, err_code, description):
    headers = read_publish_headers(block(b"Nats-Msg-Id: 1", line))
    assert headers.refusal == Refusal(code, err_code, description)
    assert headers.asks


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"Nats-Expected-Last-Sequence: x", "must be a number of 64 bits, got 'x'"),
        (b"Nats-Expected-Last-Sequence: -1", "must be a number of 64 bits, got '-1'"),
        (b"Nats-Expected-Last-Sequence: 1.0", "must be a number"),
        (b"Nats-Expected-Last-Sequence: " + b"9" * 20, "must be a number"),
        (b"Nats-Expected-Last-Sequence: \xc2\xb2", "must be a number"),
        (b"Mesh-Ack: all", "must be one of logged, quorum, geo, got 'all'"),
        (b"Mesh-Ack: \xff", "must be one of logged, quorum, geo"),
        (b"Nats-Expected-Last-Subject-Sequence: 3", "use Nats-Expected-Last-Sequence"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(line, says):
    refusal = read_publish_headers(block(line)).refusal
    assert refusal is not None
    assert refusal.code == 400
    assert says in refusal.description
    json.loads(publish.error_answer("orders", refusal))


@pytest.mark.parametrize(
    ("refusal", "code", "err_code", "description"),
    [
        (publish.WRONG_STREAM, 400, 10060, "expected stream does not match"),
        (publish.TOO_LARGE, 400, 10054, "message size exceeds maximum allowed"),
        (publish.OUTBOX_FULL, 429, 10167, "too many requests"),
        (publish.wrong_last_sequence("12"), 400, 10071, "wrong last sequence: 12"),
        (publish.wrong_last_id("a-0"), 400, 10070, "wrong last msg ID: a-0"),
    ],
)
def test_refusals_in_jetstreams_words(refusal, code, err_code, description):
    assert json.loads(publish.error_answer("orders", refusal)) == {
        "error": {"code": code, "err_code": err_code, "description": description}, "stream": "orders", "seq": 0,
    }  # fmt: skip


@pytest.mark.parametrize("refusal", [publish.NO_LEADER, publish.RETIRED, publish.STORAGE_FULL])
def test_refusals_that_say_that_the_event_is_not_in_the_log(refusal):
    assert (refusal.code, refusal.err_code) == (503, 10077)
    assert "storage full" in refusal.description or "not in the log" in refusal.description


def test_several_partitions_are_named():
    refusal = publish.several_partitions("Nats-Expected-Last-*", "orders", 3)
    assert refusal.description == "Nats-Expected-Last-* needs a stream of one partition; orders has 3"


def test_a_pub_ack():
    assert json.loads(publish.pub_ack("orders", "eu", 0, 1, 41)) == {
        "stream": "orders", "seq": 42, "domain": "eu", "partition": 0, "offset": 41, "zone": "eu",
    }  # fmt: skip
    assert json.loads(publish.pub_ack("orders", "eu", 2, 3, 5, duplicate=True)) == {
        "stream": "orders", "seq": 18, "duplicate": True, "domain": "eu", "partition": 2, "offset": 5, "zone": "eu",
    }  # fmt: skip


def test_seq_is_unique_over_partitions_and_rises_in_each():
    seen = {
        json.loads(publish.pub_ack("s", "z", partition, 3, offset))["seq"]
        for partition in range(3)
        for offset in range(10)
    }
    assert seen == set(range(1, 31))


@pytest.mark.parametrize("name", ["orders", 'a"b\\c', "\u00e9\u4e16", "x" * 300])
@pytest.mark.parametrize(("partition", "partitions"), [(0, 1), (2, 3), (1023, 1024)])
@pytest.mark.parametrize("copies", [None, (), ("ap", "us")])
def test_the_form_of_pub_acks_makes_the_same_bytes(name, partition, partitions, copies):
    form = publish.ack_form(name, name, partition, partitions, copies=copies)
    for offset in (0, 9, 10, 123_456, 2**50):
        assert form.ack(offset) == publish.pub_ack(name, name, partition, partitions, offset, copies=copies)


def test_a_geo_pub_ack_names_the_zones_or_says_that_they_were_late():
    place = {"stream": "orders", "seq": 42, "domain": "eu", "partition": 0, "offset": 41, "zone": "eu"}
    found = [json.loads(publish.pub_ack("orders", "eu", 0, 1, 41, copies=copies)) for copies in (("ap", "us"), ())]
    assert found == [place | {"ack": "geo", "zones": ["ap", "us"]}, place | {"ack": "quorum", "geo": False}]


def test_a_logged_pub_ack_promises_no_place():
    assert json.loads(publish.logged_ack("orders", "eu", 2)) == {
        "stream": "orders", "seq": 0, "domain": "eu", "partition": 2, "zone": "eu", "ack": "logged",
    }  # fmt: skip
