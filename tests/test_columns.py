"""Batches in columns: put together they are the same, byte for byte; what is no columns is refused.

Whether the compiled twin does the same as its reference, damaged or not, is in test_record_twins.py.
"""

import struct
from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batches import SUBJECT, batch_of, events, on_both, record_with, text, varint

from protocol.errors import FrameError
from protocol.gaps import missing
from protocol.records import Event, encode_batch, place_batch

ENOUGH = 16  # alike records, from which on columns are smaller
EVENT = Event(b"orders.new", b"new", 1_700_000_000_000, b"", b"payload")


def batches_of(*batches: list[Event]) -> bytes:
    placed, offset = [], 7
    for taken in batches:
        placed.append(place_batch(encode_batch(taken), offset, 3))
        offset += len(taken)
    return b"".join(placed)


def columns_of(codec, batches: bytes) -> bytes:
    apart = codec.take_apart(batches)
    assert apart is not None
    return apart


@on_both
@given(st.lists(st.lists(events, min_size=1, max_size=4), min_size=1, max_size=3), st.sampled_from([1, 40]))
def test_any_batches_come_back_byte_for_byte(codec, taken, repeated):
    if repeated == 40:
        taken = [sorted(some * repeated, key=attrgetter("timestamp_ms")) for some in taken]
    batches = batches_of(*taken)
    apart = codec.take_apart(memoryview(batches))
    assert apart is not None or repeated < 40  # of few events, or times that leap, columns are not smaller
    if apart is not None:
        assert len(apart) < len(batches)
        assert codec.put_together(memoryview(apart), len(batches)) == batches


@on_both
def test_gap_records_stand_among_others(codec):
    (gap,) = missing(7, 500, "trimmed", "eu")
    batches = gap + batches_of([EVENT] * ENOUGH)
    assert codec.put_together(columns_of(codec, batches), len(batches)) == batches


@on_both
def test_what_is_alike_stands_together(codec):
    batches = batches_of([EVENT] * ENOUGH, [EVENT] * ENOUGH)
    apart = columns_of(codec, batches)
    assert b"payload" * 2 * ENOUGH in apart
    assert (b"new" + varint(1) + SUBJECT[:13]) in apart
    assert struct.unpack_from("<6I", apart) == (2, 32, 32, 32, 32, 32 * (3 + 1 + 13 + 11))


@on_both
@pytest.mark.parametrize("batches", [b"", batches_of([EVENT]), batches_of([EVENT] * 3)], ids=["none", "one", "three"])
def test_few_events_stay_as_they_are(codec, batches):
    assert codec.take_apart(batches) is None


def with_last(record: bytes, length: bytes = b"", behind: bytes = b"") -> bytes:
    """A batch of many records that can be taken apart and, last, of this one."""
    good = [record_with(index=index) for index in range(ENOUGH)]
    sound = [varint(len(each)) + each for each in good]
    return batch_of(*sound, (length or varint(len(record))) + record, behind=behind)


LAST = record_with(index=ENOUGH)
LONG = 2**62 - 1
ODD = {
    "a length that is longer than it has to be": with_last(LAST, bytes((varint(len(LAST))[0] | 0x80, 0))),
    "a number that is": with_last(record_with(index=ENOUGH, time=b"\x80\x00")),
    "the length of a key that is": with_last(record_with(index=ENOUGH, key=b"\x82\x00k")),
    "the length of a value that is": with_last(record_with(index=ENOUGH, value=b"\x82\x00v")),
    "Kafka's null": with_last(record_with(index=ENOUGH, key=b"\x01")),
    "a hole between offsets": with_last(record_with(index=ENOUGH + 1)),
    "attributes": with_last(b"\x01" + LAST[1:]),
    "a time far ahead": with_last(record_with(index=ENOUGH, time=varint(LONG + 1))),
    "a time far back": with_last(record_with(index=ENOUGH, time=varint(-LONG - 1))),
    "a record of nothing": with_last(b""),
    "a value beyond its record": with_last(record_with(index=ENOUGH, value=varint(99) + b"v", headers=b"")),
    "something behind the last record": with_last(LAST, behind=b"\0"),
    "another batch that ends too early": with_last(LAST) + with_last(LAST)[:-1],
    "another batch of a few bytes": with_last(LAST) + b"\0" * 60,
    "another batch with a negative size": with_last(LAST) + b"\0" * 8 + b"\xff" * 4 + b"\0" * 60,
    "what is no batch": bytes(range(256)) * 4,
}


@on_both
@pytest.mark.parametrize("batches", ODD.values(), ids=ODD.keys())
def test_what_would_not_come_back_as_it_was_stays_as_it_is(codec, batches):
    assert codec.take_apart(batches) is None


@on_both
@pytest.mark.parametrize(
    "last",
    [
        LAST,
        record_with(index=ENOUGH, time=varint(LONG)),
        record_with(index=ENOUGH, time=varint(-LONG)),
        record_with(index=ENOUGH, headers=b""),
        record_with(index=ENOUGH, headers=text(b"whatever stands there")),
    ],
    ids=["an ordinary one", "a time ahead", "a time back", "no headers at all", "headers that are none"],
)
def test_what_comes_back_is_taken_apart_whatever_it_is(codec, last):
    batches = with_last(last)
    assert codec.put_together(columns_of(codec, batches), len(batches)) == batches


# -- what is no columns -----------------------------------------------------------------------------------------------


def changed(columns: bytes, place: int, by: int) -> bytes:
    """Another number in the directory."""
    numbers = list(struct.unpack_from("<6I", columns))
    numbers[place] = (numbers[place] + by) % 2**32
    return struct.pack("<6I", *numbers) + columns[24:]


@on_both
@pytest.mark.parametrize("by", [1, -1, 2**31, 2**32 - 100])
@pytest.mark.parametrize("place", range(6))
def test_a_directory_of_something_else_is_refused(codec, place, by):
    batches = batches_of([EVENT] * ENOUGH, [EVENT] * ENOUGH)
    with pytest.raises(FrameError, match=f"^columns that do not make {len(batches)} bytes of batches$"):
        codec.put_together(changed(columns_of(codec, batches), place, by), len(batches))


@on_both
@pytest.mark.parametrize("by", [-1, 1, 1_000])
def test_another_size_than_is_told_is_refused(codec, by):
    batches = batches_of([EVENT] * ENOUGH)
    with pytest.raises(FrameError):
        codec.put_together(columns_of(codec, batches), len(batches) + by)


@on_both
def test_whatever_was_cut_off_is_missed(codec):
    batches = batches_of([EVENT] * ENOUGH)
    apart = columns_of(codec, batches)
    for size in range(len(apart)):
        with pytest.raises(FrameError):
            codec.put_together(apart[:size], len(batches))


@on_both
@pytest.mark.parametrize(
    "delta", [2**62, -(2**62), 2**63 - 1, -(2**63)], ids=["ahead", "back", "the most", "the least"]
)
def test_times_that_nobody_takes_apart_are_refused(codec, delta):
    batches = with_last(LAST)
    apart = columns_of(codec, batches)
    times = struct.unpack_from("<6I", apart)[1]
    begin = 24 + 61
    long = apart[: begin + times - 1] + varint(delta) + apart[begin + times :]
    numbers = struct.unpack_from("<6I", apart)
    long = struct.pack("<6I", numbers[0], numbers[1] - 1 + len(varint(delta)), *numbers[2:]) + long[24:]
    with pytest.raises(FrameError):
        codec.put_together(long, len(batches) - 1 + len(varint(delta)))


@on_both
@given(st.binary(max_size=200), st.integers(0, 500))
def test_random_bytes_are_refused_or_make_so_many(codec, data, size_bytes):
    try:
        made = codec.put_together(data, size_bytes)
    except FrameError:
        return
    assert len(made) == size_bytes
