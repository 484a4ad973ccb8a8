"""Record batches against themselves (round trips, damage) and against aiokafka, which we did not write.

The same tests for the reference and its compiled twin.
"""

import contextlib

import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import MISCOUNTED, NULL, batch_of, events, framed, on_both, record_with, varint

from protocol.errors import FrameError
from protocol.records import (
    Event,
    Record,
    check_batch,
    iterate_records,
    place_batch,
    read_control,
    read_header,
    record_bytes_max,
    split_batches,
)


def bytes_max(event: Event) -> int:
    return record_bytes_max(event.subject, event.key, event.header_block, event.payload)


@on_both
@given(st.lists(events, min_size=1, max_size=8), st.integers(0, 2**60), st.integers(0, 2**31 - 1))
def test_what_goes_in_comes_back_byte_for_byte(codec, taken, base_offset, epoch):
    batch = codec.encode_batch(taken)
    assert len(batch) <= 61 + sum(bytes_max(event) for event in taken)
    placed = place_batch(batch, base_offset, epoch)
    header = check_batch(placed)
    assert (header.base_offset, header.leader_epoch, header.record_count) == (base_offset, epoch, len(taken))
    assert header.base_timestamp_ms == min(event.timestamp_ms for event in taken)
    assert header.max_timestamp_ms == max(event.timestamp_ms for event in taken)
    for delta, (event, record) in enumerate(zip(taken, codec.read_records(placed), strict=True)):
        assert record.offset == base_offset + delta
        assert record[1:] == (event.timestamp_ms, event.key, event.subject, event.header_block, event.payload)


@on_both
@given(st.lists(events, min_size=1, max_size=4), st.integers(0, 2**60))
def test_kafka_clients_read_our_batches(codec, taken, base_offset):
    kafka = DefaultRecordBatch(bytearray(place_batch(codec.encode_batch(taken), base_offset, 7)))
    assert kafka.validate_crc()
    for event, record in zip(taken, kafka, strict=True):
        assert (record.timestamp, record.key, record.value) == (event.timestamp_ms, event.key, event.payload)
        assert record.headers[0] == ("nats-subject", event.subject.decode("utf-8", "replace")) or record.headers[0] == (
            "nats-subject",
            event.subject,
        )


@on_both
def test_nats_headers_become_record_headers_in_order(codec):
    block = b"NATS/1.0\r\nB: 1\r\na: 2\r\nB: 3\r\nEmpty: \r\n\r\n"
    kafka = DefaultRecordBatch(bytearray(codec.encode_batch([Event(b"s", b"k", 5, block, b"p")])))
    (record,) = kafka
    assert record.headers == [("nats-subject", b"s"), ("B", b"1"), ("a", b"2"), ("B", b"3"), ("Empty", b"")]


@on_both
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
def test_a_block_that_is_not_plain_lines_is_kept_whole(codec, block):
    (record,) = codec.read_records(codec.encode_batch([Event(b"s", b"k", 5, block, b"p")]))
    assert record.header_block == block


@on_both
@given(st.data())
def test_a_flipped_bit_behind_the_crc_is_found(codec, data):
    batch = bytearray(
        codec.encode_batch([Event(b"a.b", b"a.b", 1, b"", b"payload"), Event(b"a.c", b"a.c", 2, b"", b"x")])
    )
    bit = data.draw(st.integers(17 * 8, len(batch) * 8 - 1))
    batch[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        check_batch(bytes(batch))


@on_both
def test_batches_back_to_back_are_split_and_a_part_is_refused(codec):
    one, two = (codec.encode_batch([Event(b"s", b"s", 1, b"", payload)]) for payload in (b"1", b"22"))
    assert [bytes(batch) for batch in split_batches(one + two)] == [one, two]
    with pytest.raises(FrameError, match="bytes of"):
        list(split_batches(one + two[:-1]))


@on_both
def test_old_message_formats_are_refused_by_name(codec):
    batch = bytearray(codec.encode_batch([Event(b"s", b"s", 1, b"", b"1")]))
    batch[16] = 1
    with pytest.raises(FrameError, match="magic is 1"):
        read_header(bytes(batch))


@on_both
def test_a_batch_has_at_least_one_event(codec):
    with pytest.raises(ValueError, match="at least one"):
        codec.encode_batch([])


# -- batches whose CRC is right and whose records are not -------------------------------------------------------------


@on_both
@pytest.mark.parametrize("what", MISCOUNTED)
def test_a_record_that_contradicts_itself_is_refused_with_its_place(codec, what):
    content, message = MISCOUNTED[what]
    with pytest.raises(FrameError, match=message):
        codec.read_records(batch_of(content))


@on_both
def test_a_bad_record_among_good_ones_is_named_by_its_number(codec):
    good = framed(record_with()), framed(record_with(index=1))
    with pytest.raises(FrameError, match="record 2, byte 110: its length is -5"):
        codec.read_records(batch_of(*good, varint(-5)))


@on_both
def test_what_stands_behind_the_last_record_is_refused(codec):
    with pytest.raises(FrameError, match="3 bytes behind its last record"):
        codec.read_records(batch_of(framed(record_with()), behind=b"abc"))


@on_both
def test_a_batch_that_is_cut_or_followed_by_something_is_refused(codec):
    batch = batch_of(framed(record_with()))
    for other in (batch[:-1], batch + b"x"):
        with pytest.raises(FrameError, match=f"{len(other)} bytes, its header says {len(batch)}"):
            codec.read_records(other)


def test_records_before_a_bad_one_can_be_had():
    records = iterate_records(batch_of(framed(record_with()), varint(-5)))
    assert next(records).payload == b"v"
    with pytest.raises(FrameError, match="record 1, byte"):
        next(records)


@on_both
def test_unusual_numbers_are_read(codec):
    """What our encoder does not write, and Kafka's might: long forms of small numbers, null for empty."""
    long_zero = b"\x80" * 9 + b"\0"
    (read,) = codec.read_records(batch_of(framed(record_with(time=long_zero, key=NULL, value=NULL)), base_ms=-7))
    assert read == Record(0, -7, b"", b"s", b"", b"")


def test_a_control_batch_has_one_record():
    two = bytearray(batch_of(framed(record_with()), framed(record_with(index=1))))
    two[22] = 0x20
    with pytest.raises(FrameError, match="2 records; a control batch has one"):
        read_control(bytes(two))


@on_both
@given(st.lists(events, min_size=1, max_size=4), st.data())
def test_no_damage_ends_in_another_error(codec, taken, data):
    batch = bytearray(codec.encode_batch(taken))
    for _ in range(data.draw(st.integers(1, 3))):
        batch[data.draw(st.integers(0, len(batch) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        codec.read_records(bytes(batch))


# -- a batch made event by event --------------------------------------------------------------------------------------


@on_both
@given(st.lists(events, min_size=1, max_size=8))
def test_a_builder_makes_the_batch_of_its_events_whatever_their_times(codec, taken):
    builder = codec.builder()
    for _ in range(2):  # it is empty again when it has been sealed
        for event in taken:
            builder.add(*event)
        assert (builder.count, builder.size_bytes) == (len(taken), sum(bytes_max(event) for event in taken))
        assert builder.seal() == codec.encode_batch(taken)
        assert (builder.count, builder.size_bytes) == (0, 0)


@on_both
def test_a_builder_without_events_makes_no_batch(codec):
    builder = codec.builder()
    with pytest.raises(ValueError, match="at least one"):
        builder.seal()


@on_both
def test_a_builder_that_is_given_up_leaves_nothing(codec):
    builder = codec.builder()
    builder.add(b"s", b"s", 1, b"", bytes(100_000))
    del builder
    builder = codec.builder()
    builder.add(b"s", b"s", 1, b"", b"x")
    assert len(builder.seal()) < 200
