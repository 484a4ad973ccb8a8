"""Gap records: events that are known to be missing are written down in the log, where they would have stood.

A gap is a control batch of one record. Kafka consumers pass over it; our readers are told, as a `206 Gap` status among
the messages of a fetch. The record's key is Kafka's control record key: i16 version 0, i16 type (ours is 100, which no
Kafka type has; big endian); its value is JSON. What a gateway gave up takes one offset. Where offsets themselves are
missing, because a mirror's origin no longer has them, the batch spans exactly those.
"""

import struct

import msgspec

from protocol.coverage import digest_of
from protocol.errors import UNREADABLE, FrameError
from protocol.merkle import HASH_BYTES
from protocol.records import CONTROL, BatchHeader, encode_control, place_batch, read_control

GAP_OFFSETS_MAX = 2**31 - 1  # of one record: Kafka counts them in 32 bits
_KEY = struct.pack(">hh", 0, 100)


class Gap(msgspec.Struct, frozen=True, omit_defaults=True):
    """`events` were taken in from `from_ms` to `to_ms` and are not in the log; `reason` is one of REASONS.

    Of offsets that are missing nobody knows the times (0), and `events` is how many there were at most. `source` is who
    says so: the zone whose log it is, "" for a gateway of this one, or of what sinks find missing the gateway's name.
    After an accepted loss nobody knows how many there were (0): they had stood at this offset and behind it. It was
    accepted at `to_ms` by the operator at `source`. So it is with what the disks of all sinks have spoilt: each record
    is of one batch then, whose `digest` (hexadecimal digits) stays its leaf in the tree of the log.
    """

    reason: str
    events: int
    from_ms: int
    to_ms: int
    source: str = ""
    digest: str = ""


ACCEPTED_LOSS = "accepted_loss"
TRIMMED = "trimmed"
DAMAGED = "damaged"
LOST, GATEWAY_LOST = "lost", "gateway_lost"
REASONS = {
    DAMAGED: "the disks of all sinks that held these offsets have spoilt them, and an operator had readers go on",
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


def lost_batch(first: int, end_offset: int, digest: bytes, time_ms: int, who: str) -> bytes:
    """The control batch in the place of one that all disks have spoilt. Its own time says nothing, so that no search
    by time finds it.
    """
    gap = Gap(DAMAGED, end_offset - first, 0, time_ms, who, digest.hex())
    return place_batch(encode_control(_KEY, msgspec.json.encode(gap), 0, end_offset - first), first, 0)


def is_of_damage(header: BatchHeader, batch: bytes | memoryview) -> bool:
    """Whether this whole batch stands in the place of one that all disks have spoilt."""
    return header.attributes == CONTROL and _reason(batch) == DAMAGED


def _reason(batch: bytes | memoryview) -> str:
    try:
        return read_gap(batch)[1].reason
    except FrameError:
        return ""


def leaf_digest(header: BatchHeader, batch: bytes | memoryview) -> bytes:
    """What the tree of the log has of a whole batch: its digest, or that of the one in whose place it stands."""
    if header.attributes != CONTROL or not is_of_damage(header, batch):
        return digest_of(batch)
    try:
        digest = bytes.fromhex(read_gap(batch)[1].digest)
    except ValueError:
        digest = b""
    return digest if len(digest) == HASH_BYTES else digest_of(batch)


def read_gap(batch: bytes | memoryview) -> tuple[int, Gap]:
    """(offset, gap) of a control batch. FrameError: it is no gap record."""
    offset, _, key, value = read_control(batch)
    if key != _KEY:
        raise FrameError(f"control record: key {key.hex()}, that of a gap is {_KEY.hex()}")
    try:
        return offset, msgspec.json.decode(value, type=Gap)
    except UNREADABLE as error:
        raise FrameError(f"gap record: {error}") from error
