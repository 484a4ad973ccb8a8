"""Record batches against themselves (round trips, damage) and against aiokafka, which we did not write."""

import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FrameError
from protocol.records import (
    Event,
    check_batch,
    encode_batch,
    place_batch,
    read_header,
    read_records,
    record_bytes_max,
    split_batches,
)

names = st.text(st.characters(blacklist_characters=":\r\n", blacklist_categories=("Cs",)), min_size=1, max_size=12)
values = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), max_size=20)
plain_blocks = st.lists(st.tuples(names, values), min_size=1, max_size=5).map(
    lambda pairs: b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in pairs) + b"\r\n"
)
events = st.builds(
    Event,
    subject=st.binary(min_size=1, max_size=30),
    key=st.binary(max_size=30),
    timestamp_ms=st.integers(0, 2**45),
    header_block=st.one_of(st.just(b""), plain_blocks, st.binary(min_size=1, max_size=60)),
    payload=st.binary(max_size=300),
)


@given(st.lists(events, min_size=1, max_size=8), st.integers(0, 2**60), st.integers(0, 2**31 - 1))
def test_what_goes_in_comes_back_byte_for_byte(taken, base_offset, epoch):
    batch = encode_batch(taken)
    assert len(batch) <= 61 + sum(record_bytes_max(event) for event in taken)
    placed = place_batch(batch, base_offset, epoch)
    header = check_batch(placed)
    assert (header.base_offset, header.leader_epoch, header.record_count) == (base_offset, epoch, len(taken))
    assert header.base_timestamp_ms == min(event.timestamp_ms for event in taken)
    assert header.max_timestamp_ms == max(event.timestamp_ms for event in taken)
    for delta, (event, record) in enumerate(zip(taken, read_records(placed), strict=True)):
        assert record.offset == base_offset + delta
        assert record[1:] == (event.timestamp_ms, event.key, event.subject, event.header_block, event.payload)


@given(st.lists(events, min_size=1, max_size=4), st.integers(0, 2**60))
def test_kafka_clients_read_our_batches(taken, base_offset):
    kafka = DefaultRecordBatch(bytearray(place_batch(encode_batch(taken), base_offset, 7)))
    assert kafka.validate_crc()
    for event, record in zip(taken, kafka, strict=True):
        assert (record.timestamp, record.key, record.value) == (event.timestamp_ms, event.key, event.payload)
        assert record.headers[0] == ("nats-subject", event.subject.decode("utf-8", "replace")) or record.headers[0] == (
            "nats-subject",
            event.subject,
        )


def test_nats_headers_become_record_headers_in_order():
    block = b"NATS/1.0\r\nB: 1\r\na: 2\r\nB: 3\r\nEmpty: \r\n\r\n"
    kafka = DefaultRecordBatch(bytearray(encode_batch([Event(b"s", b"k", 5, block, b"p")])))
    (record,) = kafka
    assert record.headers == [("nats-subject", b"s"), ("B", b"1"), ("a", b"2"), ("B", b"3"), ("Empty", b"")]


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0\r\nnospace:x\r\n\r\n",
        b"NATS/1.0\r\nnats-header-block: mine\r\n\r\n",
        b"NATS/1.0\r\nA: \xff\r\n\r\n",
        b"garbage",
    ],
)
def test_a_block_that_is_not_plain_lines_is_kept_whole(block):
    (record,) = read_records(encode_batch([Event(b"s", b"k", 5, block, b"p")]))
    assert record.header_block == block


@given(st.data())
def test_a_flipped_bit_behind_the_crc_is_found(data):
    batch = bytearray(encode_batch([Event(b"a.b", b"a.b", 1, b"", b"payload"), Event(b"a.c", b"a.c", 2, b"", b"x")]))
    bit = data.draw(st.integers(17 * 8, len(batch) * 8 - 1))
    batch[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        check_batch(bytes(batch))


def test_batches_back_to_back_are_split_and_a_part_is_refused():
    one, two = (encode_batch([Event(b"s", b"s", 1, b"", payload)]) for payload in (b"1", b"22"))
    assert [bytes(batch) for batch in split_batches(one + two)] == [one, two]
    with pytest.raises(FrameError, match="bytes of"):
        list(split_batches(one + two[:-1]))


def test_old_message_formats_are_refused_by_name():
    batch = bytearray(encode_batch([Event(b"s", b"s", 1, b"", b"1")]))
    batch[16] = 1
    with pytest.raises(FrameError, match="magic is 1"):
        read_header(bytes(batch))
