"""Gap records: events that are known to be missing are written down in the log, where they would have stood.

A gap is a control batch of one record. Kafka consumers pass over it; our readers are told, as a `206 Gap` status among
the messages of a fetch. The record's key is Kafka's control record key: i16 version 0, i16 type (ours is 100, which no
Kafka type has; big endian); its value is JSON.
"""

import struct

import msgspec

from protocol.errors import UNREADABLE, FrameError
from protocol.records import encode_control, read_control

_KEY = struct.pack(">hh", 0, 100)


class Gap(msgspec.Struct, frozen=True):
    """`events` were taken in from `from_ms` to `to_ms` and are not in the log; `reason` is one of REASONS."""

    reason: str
    events: int
    from_ms: int
    to_ms: int


REASONS = {
    "outbox_overflow": "a gateway's outbox was full for longer than outbox.stall",
    "spool_damaged": "a gateway's spool was damaged; counted are all events whose outcome it cannot tell any more",
}


def encode_gap(gap: Gap) -> bytes:
    """The control batch of `gap`, at base offset 0."""
    return encode_control(_KEY, msgspec.json.encode(gap), gap.to_ms)


def read_gap(batch: bytes | memoryview) -> tuple[int, Gap]:
    """(offset, gap) of a control batch. FrameError: it is no gap record."""
    offset, _, key, value = read_control(batch)
    if key != _KEY:
        raise FrameError(f"control record: key {key.hex()}, that of a gap is {_KEY.hex()}")
    try:
        return offset, msgspec.json.decode(value, type=Gap)
    except UNREADABLE as error:
        raise FrameError(f"gap record: {error}") from error
