"""Retention: how much of a partition's history is over, by age and by size.

Whole segments go, oldest first; the segment that is being written stays. The leader decides by its own clock and
proposes a trim, so that every member lets go of the same offsets.

What another zone has not got yet stays longer, within the bounds of `hold_for_zones`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from protocol.streams import StreamState
from sinkd.core.commands import Trim


class SegmentFacts(NamedTuple):
    """A segment holds offsets [base_offset, next_offset); its youngest record is of `max_timestamp_ms`."""

    base_offset: int
    next_offset: int
    size_bytes: int
    max_timestamp_ms: int


def trims(
    stream: StreamState,
    partition: int,
    start_offset: int,
    segments: Sequence[SegmentFacts],
    now_ms: int,
    held_through: int | None = None,
) -> Trim | None:
    """The trim that `stream`'s retention asks for, or None. `segments` are in offset order, the last one is active.

    All zones that get a copy hold what lies below `held_through`; None: there are none. The last batch of that stays
    too: by it a mirror is compared with its origin.
    """
    to_offset, size_bytes = start_offset, sum(segment.size_bytes for segment in segments)
    for segment in segments[:-1]:
        too_old = stream.retention_age_ms and segment.max_timestamp_ms < now_ms - stream.retention_age_ms
        too_much = stream.retention_bytes and size_bytes > stream.retention_bytes
        if not (too_old or too_much):
            break
        if (
            held_through is not None
            and segment.next_offset >= held_through
            and _is_kept(stream, segment, size_bytes, now_ms)
        ):
            break
        to_offset = segment.next_offset
        size_bytes -= segment.size_bytes
    if to_offset <= start_offset:
        return None
    return Trim(stream.name, stream.incarnation, partition, to_offset)


def _is_kept(stream: StreamState, segment: SegmentFacts, size_bytes: int, now_ms: int) -> bool:
    """Whether a segment that some zone lacks is within the bounds of what is held for it."""
    return segment.max_timestamp_ms >= now_ms - stream.hold_age_ms and size_bytes <= stream.hold_bytes
