"""Frames of the sink link: any chunking gives the same ones, and garbage ends the connection by FrameError alone."""

import json
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import link
from protocol.errors import FrameError
from protocol.limits import (
    BATCHES_IN_FLIGHT_MAX,
    LINK_BLOCK_BYTES,
    LINK_FRAME_BYTES_MAX,
    LINK_READ_BYTES,
    PRODUCER_RESULTS_KEPT,
)

FRAMES = [
    bytes.fromhex(row["hex"])
    for row in json.loads((Path(__file__).parent / "data" / "vectors" / "link.json").read_text())
]


def feed(data: bytes, sizes: list[int]) -> list[link.Frame]:
    reader, frames, position = link.FrameReader(), [], 0
    for size in sizes:
        frames += reader.feed(data[position : position + size])
        position += size
    return frames + list(reader.feed(data[position:]))


@given(st.lists(st.sampled_from(FRAMES), max_size=6), st.lists(st.integers(0, 90), max_size=20))
def test_any_chunking_gives_the_same_frames(frames, sizes):
    data = b"".join(frames)
    assert feed(data, sizes) == [frame for one in frames for frame in feed(one, [])]
    assert feed(data, [1] * len(data)) == feed(data, [])


def test_a_frame_is_known_only_when_it_is_whole():
    reader, data = link.FrameReader(), link.pack(link.Append(), b"parcel")
    assert list(reader.feed(data[:-1])) == []
    assert list(reader.feed(data[-1:] + data)) == [(link.Append(), b"parcel")] * 2


def take(data: bytes, sizes: list[int]) -> list[link.FrameView]:
    """As a socket is read: no more at a time than there is room for."""
    reader, frames, position = link.FrameReader(), [], 0
    while position < len(data):
        room = reader.room()
        count = min(len(room), len(data) - position, sizes.pop(0) if sizes else len(data))
        room[:count] = data[position : position + count]
        frames += reader.took(count)
        position += count
    return frames


@given(
    st.lists(st.sampled_from([0, 1, 9_000, LINK_READ_BYTES - 8, LINK_READ_BYTES, 150_000, 2_500_000]), max_size=5),
    st.lists(st.integers(1, 100_000), max_size=20),
)
@settings(max_examples=30)
def test_frames_that_are_read_in_place_stay_as_they_were_when_others_follow(tails, sizes):
    """However large, and however they are cut."""
    data = b"".join(link.pack(link.Append(), bytes([65 + n]) * size) for n, size in enumerate(tails))
    found = take(data, sizes)
    assert [bytes(frame.tail) for frame in found] == [bytes([65 + n]) * size for n, size in enumerate(tails)]


def test_a_frame_that_claims_to_be_large_takes_little_memory_until_it_comes():
    reader = link.FrameReader()
    start = prefix(LINK_FRAME_BYTES_MAX, kind=6)
    reader.room()[: len(start)] = start
    assert list(reader.took(len(start))) == []
    assert len(reader.room()) <= LINK_BLOCK_BYTES


@given(st.binary(max_size=300), st.lists(st.integers(0, 50), max_size=8))
def test_garbage_is_refused_by_name_alone(data, sizes):
    try:
        feed(data, sizes)
    except FrameError:
        return


@given(st.sampled_from(FRAMES), st.data())
def test_a_damaged_frame_is_refused_by_name_alone(frame, data):
    position, value = data.draw(st.integers(4, len(frame) - 1)), data.draw(st.integers(0, 255))
    damaged = frame[:position] + bytes([value]) + frame[position + 1 :]
    try:
        found = feed(damaged, [])
    except FrameError:
        return
    assert len(found) == 1


def prefix(size: int, version: int = 1, kind: int = 17, head_bytes: int = 1) -> bytes:
    return struct.pack("<IBBI", size, version, kind, head_bytes)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (prefix(7, version=2) + b"\x90", "version 2, ours is 1"),
        (prefix(LINK_FRAME_BYTES_MAX + 1), "at most 16777216"),
        (prefix(7, kind=0) + b"\x90", "kind 0"),
        (prefix(7, kind=99) + b"\x90", "kind 99"),
        (prefix(7, head_bytes=2) + b"\x90", "head of 2 bytes"),
        (prefix(7, kind=1) + b"\x90", "Hello"),
        (prefix(7) + b"\xc1", "Ping"),
        (prefix(5) + b"\x90", "kind 17 with a head of 1 bytes"),
        (prefix(0) + b"\x90", "kind 17 with a head of 1 bytes"),
    ],
)
def test_what_is_wrong_is_named(data, says):
    with pytest.raises(FrameError, match=says):
        feed(data, [])


def test_frames_before_the_bad_one_count():
    reader, found = link.FrameReader(), []
    with pytest.raises(FrameError):
        found.extend(frame.message for frame in reader.feed(link.pack(link.Ping()) + prefix(7, version=9)))
    frames = reader_until_error(link.pack(link.Ping()) + link.pack(link.Pong()) + prefix(7, version=9))
    assert frames == [link.Ping(), link.Pong()]


def reader_until_error(data: bytes) -> list[link.Message]:
    found = []
    try:
        for frame in link.FrameReader().feed(data):
            found.append(frame.message)
    except FrameError:
        return found
    raise AssertionError("no error")


def test_the_largest_frame_passes():
    tail = bytes(LINK_FRAME_BYTES_MAX - 6 - 1)
    (frame,) = feed(link.pack(link.Append(), tail), [])
    assert frame.tail == tail


def test_kinds_and_reasons_are_complete():
    assert {structure.kind for structure in link.KINDS.values()} == set(link.KINDS)
    for structure in link.KINDS.values():
        assert issubclass(structure, msgspec.Struct)
    assert all(text for text in link.REASONS.values())


def test_the_sink_remembers_the_answer_to_everything_that_can_be_in_flight():
    assert PRODUCER_RESULTS_KEPT >= BATCHES_IN_FLIGHT_MAX
