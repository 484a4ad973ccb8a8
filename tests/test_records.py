"""Record batches against themselves (round trips, damage) and against aiokafka, which we did not write."""

import contextlib
import struct

import fastcrc
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FrameError
from protocol.records import (
    Event,
    Record,
    check_batch,
    encode_batch,
    iterate_records,
    place_batch,
    read_control,
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
times = st.integers(0, 2**45)
events = st.builds(
    Event,
    subject=st.binary(min_size=1, max_size=30),
    key=st.binary(max_size=30),
    timestamp_ms=times,
    header_block=st.one_of(st.just(b""), plain_blocks, st.binary(min_size=1, max_size=60)),
    payload=st.binary(max_size=300),
)


def bytes_max(event: Event) -> int:
    return record_bytes_max(event.subject, event.key, event.header_block, event.payload)


@given(st.lists(events, min_size=1, max_size=8), st.integers(0, 2**60), st.integers(0, 2**31 - 1))
def test_what_goes_in_comes_back_byte_for_byte(taken, base_offset, epoch):
    batch = encode_batch(taken)
    assert len(batch) <= 61 + sum(bytes_max(event) for event in taken)
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


def test_a_batch_has_at_least_one_event():
    with pytest.raises(ValueError, match="at least one"):
        encode_batch([])


# -- batches whose CRC is right and whose records are not -------------------------------------------------------------


def varint(value: int) -> bytes:
    value = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes((value,))


def text(value: bytes) -> bytes:
    return varint(len(value)) + value


SUBJECT = text(b"nats-subject") + text(b"s")


def record(
    *, index: int = 0, time: bytes = varint(0), key: bytes = text(b"k"), value: bytes = text(b"v"),
    headers: bytes = varint(1) + SUBJECT,
) -> bytes:  # fmt: skip
    return b"\0" + time + varint(index) + key + value + headers


def batch_of(*records: bytes, base_ms: int = 1_000, behind: bytes = b"") -> bytes:
    """A batch of these records, each with its length in front; header and CRC are as they should be."""
    body, count = b"".join(records) + behind, len(records)
    head = struct.pack(">hiqqqhii", 0, count - 1, base_ms, base_ms, -1, -1, -1, count) + body
    start = struct.pack(">qiibI", 0, 49 + len(body), 0, 2, fastcrc.crc32.iscsi(head))
    batch = start + head
    check_batch(batch)
    return batch


def framed(content: bytes) -> bytes:
    return varint(len(content)) + content


NULL, WRONG = varint(-1), varint(-2)
TEN = b"\xff" * 9
MISCOUNTED = {
    "more content than its length says": (
        varint(9) + record(),
        "record 0, byte 71: 12 bytes, 0 are left of the record",
    ),
    "less content than its length says": (framed(record() + b"!"), "record 0, byte 85: 1 bytes behind its last header"),
    "a negative length": (varint(-5) + record(), "record 0, byte 62: its length is -5, 23 bytes are left"),
    "no length at all": (varint(0), "record 0, byte 62: its length is 0, 0 bytes are left"),
    "a length beyond the batch": (varint(99) + record(), "record 0, byte 63: its length is 99, 23 bytes are left"),
    "a key beyond its record": (framed(record(key=varint(99))), "99 bytes, 18 are left of the record"),
    "a payload beyond its record": (framed(record(value=varint(99))), "99 bytes, 16 are left of the record"),
    "a key of a negative length": (framed(record(key=WRONG)), "-2 bytes, "),
    "a payload of a negative length": (framed(record(value=WRONG)), "-2 bytes, "),
    "a header name of a negative length": (framed(record(headers=varint(1) + WRONG)), "-2 bytes, "),
    "a header value of a negative length": (framed(record(headers=varint(1) + text(b"a") + WRONG)), "-2 bytes, "),
    "a negative number of headers": (framed(record(headers=varint(-1))), "record 0, byte 70: -1 headers"),
    "more headers than there are": (framed(record(headers=varint(2) + SUBJECT)), "it ends within a number"),
    "a number that the record ends within": (framed(b"\0\x80"), "record 0, byte 64: it ends within a number"),
    "a number of 65 bits": (framed(record(time=TEN + b"\x02")), "record 0, byte 73: a number of more than 64 bits"),
    "a number of eleven bytes": (framed(record(time=TEN + b"\x81\x00")), "byte 73: a number of more than 64 bits"),
    "a time of 65 bits": (framed(record(time=varint(2**63 - 1))), "a time of more than 64 bits"),
    "an offset out of its order": (framed(record(index=1)), "offset delta 1; offsets have no holes"),
    "no headers": (framed(record(headers=varint(0))), "record 0 is without its nats-subject header"),
    "another first header": (framed(record(headers=varint(1) + text(b"a") + text(b""))), "record 0 is without its"),
}


@pytest.mark.parametrize("what", MISCOUNTED)
def test_a_record_that_contradicts_itself_is_refused_with_its_place(what):
    content, message = MISCOUNTED[what]
    with pytest.raises(FrameError, match=message):
        read_records(batch_of(content))


def test_a_bad_record_among_good_ones_is_named_by_its_number():
    good = framed(record()), framed(record(index=1))
    with pytest.raises(FrameError, match="record 2, byte 110: its length is -5"):
        read_records(batch_of(*good, varint(-5)))


def test_what_stands_behind_the_last_record_is_refused():
    with pytest.raises(FrameError, match="3 bytes behind its last record"):
        read_records(batch_of(framed(record()), behind=b"abc"))


def test_a_batch_that_is_cut_or_followed_by_something_is_refused():
    batch = batch_of(framed(record()))
    for other in (batch[:-1], batch + b"x"):
        with pytest.raises(FrameError, match=f"{len(other)} bytes, its header says {len(batch)}"):
            read_records(other)


def test_records_before_a_bad_one_can_be_had():
    records = iterate_records(batch_of(framed(record()), varint(-5)))
    assert next(records).payload == b"v"
    with pytest.raises(FrameError, match="record 1, byte"):
        next(records)


def test_unusual_numbers_are_read():
    """What our encoder does not write, and Kafka's might: long forms of small numbers, null for empty."""
    long_zero = b"\x80" * 9 + b"\0"
    (read,) = read_records(batch_of(framed(record(time=long_zero, key=NULL, value=NULL)), base_ms=-7))
    assert read == Record(0, -7, b"", b"s", b"", b"")


def test_a_control_batch_has_one_record():
    two = bytearray(batch_of(framed(record()), framed(record(index=1))))
    two[22] = 0x20
    with pytest.raises(FrameError, match="2 records; a control batch has one"):
        read_control(bytes(two))


@given(st.lists(events, min_size=1, max_size=4), st.data())
def test_no_damage_ends_in_another_error(taken, data):
    batch = bytearray(encode_batch(taken))
    for _ in range(data.draw(st.integers(1, 3))):
        batch[data.draw(st.integers(0, len(batch) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        read_records(bytes(batch))
