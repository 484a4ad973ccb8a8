"""Gap records: events that are known to be missing are written down in the log, where they would have stood.

A gap is a control batch of one record. Kafka consumers pass over it; our readers are told, as a `206 Gap` status among
the messages of a fetch. The record's key is Kafka's control record key: i16 version 0, i16 type (ours is 100, which no
Kafka type has; big endian); its value is JSON. What a gateway gave up takes one offset. Where offsets themselves are
missing, because a mirror's origin no longer has them, the batch spans exactly those.
"""

import struct

import msgspec

from protocol.errors import UNREADABLE, FrameError
from protocol.records import encode_control, place_batch, read_control

GAP_OFFSETS_MAX = 2**31 - 1  # of one record: Kafka counts them in 32 bits
_KEY = struct.pack(">hh", 0, 100)


class Gap(msgspec.Struct, frozen=True, omit_defaults=True):
    """`events` were taken in from `from_ms` to `to_ms` and are not in the log; `reason` is one of REASONS.

    Of offsets that are missing nobody knows the times (0), and `events` is how many there were at most. `source` is who
    says so: the zone whose log it is, "" for a gateway of this one, or of what sinks find missing the gateway's name.
    After an accepted loss nobody knows how many there were (0): they had stood at this offset and behind it. It was
    accepted at `to_ms` by the operator at `source`.
    """

    reason: str
    events: int
    from_ms: int
    to_ms: int
    source: str = ""


ACCEPTED_LOSS = "accepted_loss"
TRIMMED = "trimmed"
LOST, GATEWAY_LOST = "lost", "gateway_lost"
REASONS = {
    ACCEPTED_LOSS: "too few sinks were whole, and an operator had the log go on with what one of them held",
    "outbox_overflow": "a gateway's outbox was full for longer than outbox.stall",
    TRIMMED: "the origin of a mirror had let go of these offsets before the mirror had them",
    "spool_damaged": "a gateway's spool was damaged; counted are all events whose outcome it cannot tell any more",
    LOST: "a gateway has an acknowledgement for them, and the log does not hold them",
    GATEWAY_LOST: "a gateway that has ended had taken in so many at most, and never got an acknowledgement",
}


def encode_gap(gap: Gap, offsets: int = 1) -> bytes:
    """The control batch of `gap`, at base offset 0, which takes so many offsets."""
    return encode_control(_KEY, msgspec.json.encode(gap), gap.to_ms, offsets)


def missing(first: int, end_offset: int, reason: str, source: str) -> list[bytes]:
    """The control batches, in their places, which say that offsets `first` to before `end_offset` are missing."""
    batches = []
    while first < end_offset:
        span = min(end_offset - first, GAP_OFFSETS_MAX)
        batches.append(place_batch(encode_gap(Gap(reason, span, 0, 0, source), span), first, 0))
        first += span
    return batches


def read_gap(batch: bytes | memoryview) -> tuple[int, Gap]:
    """(offset, gap) of a control batch. FrameError: it is no gap record."""
    offset, _, key, value = read_control(batch)
    if key != _KEY:
        raise FrameError(f"control record: key {key.hex()}, that of a gap is {_KEY.hex()}")
    try:
        return offset, msgspec.json.decode(value, type=Gap)
    except UNREADABLE as error:
        raise FrameError(f"gap record: {error}") from error
