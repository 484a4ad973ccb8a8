"""Parcels: what stands back to back comes apart again, and anything else is named."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.envelope import Envelope, pack, unpack
from protocol.errors import FrameError

numbers = st.integers(0, 2**63 - 1)
envelopes = st.builds(
    Envelope,
    producer_id=numbers,
    epoch=numbers,
    stream=st.text(max_size=20),
    incarnation=st.binary(max_size=16),
    partition=numbers,
    first_sequence=numbers,
    sequence_count=numbers,
    revision=numbers,
    ids=st.lists(st.tuples(numbers, st.binary(max_size=10)), max_size=4).map(tuple),
    expect_last_sequence=st.none() | numbers,
    expect_last_id=st.none() | st.binary(max_size=10),
)
HEAD = Envelope(
    producer_id=1, epoch=1, stream="orders", incarnation=b"i", partition=0, first_sequence=41, sequence_count=3,
    revision=1,
)  # fmt: skip


def test_a_span_ends_with_its_last_sequence():
    assert HEAD.last_sequence == 43


@given(st.lists(st.tuples(envelopes, st.binary(max_size=50)), max_size=4), st.binary(max_size=12))
def test_parcels_come_apart_as_they_were_put_together(parcels, before):
    data = before + b"".join(pack(head, batch) for head, batch in parcels)
    found = list(unpack(data, len(before)))
    assert [(parcel.envelope, parcel.batch) for parcel in found] == parcels
    for parcel in found:
        assert data[parcel.batch_position : parcel.batch_position + len(parcel.batch)] == parcel.batch


def test_every_cut_is_refused():
    data = pack(HEAD, b"batch")
    for size in range(1, len(data)):
        with pytest.raises(FrameError, match="append envelope"):
            list(unpack(data[:size]))


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_refused_by_name_alone(data):
    with pytest.raises(FrameError):
        list(unpack(b"\x10\0\0\0\0\0\0\0" + data[:15]))
    try:
        list(unpack(data))
    except FrameError:
        return


def test_another_version_is_refused_by_its_number():
    newer = msgspec.structs.replace(HEAD, version=2)
    with pytest.raises(FrameError, match="version 2, ours is 1"):
        list(unpack(pack(newer, b"")))


def test_an_envelope_of_other_fields_is_refused():
    wrong = msgspec.msgpack.encode([1, "no number"])
    with pytest.raises(FrameError, match="append envelope"):
        list(unpack(len(wrong).to_bytes(4, "little") + bytes(4) + wrong))
