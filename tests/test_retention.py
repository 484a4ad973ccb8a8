"""What retention lets go of: whole segments, the oldest first, never the active one."""

import pytest
from support.streams import state

from sinkd.core.commands import Trim
from sinkd.core.retention import SegmentFacts, trims

NOW_MS = 1_000_000
SEGMENTS = [
    SegmentFacts(0, 10, 100, NOW_MS - 900),
    SegmentFacts(10, 20, 100, NOW_MS - 600),
    SegmentFacts(20, 30, 100, NOW_MS - 300),
    SegmentFacts(30, 35, 50, NOW_MS - 900),
]


def trimmed_to(segments: list[SegmentFacts] = SEGMENTS, start_offset: int = 0, **retention: int) -> int | None:
    stream = state("orders", **retention)
    trim = trims(stream, 0, start_offset, segments, NOW_MS)
    assert trim is None or trim == Trim("orders", stream.incarnation, 0, trim.to_offset)
    return trim.to_offset if trim else None


@pytest.mark.parametrize(
    ("age_ms", "expected"), [(0, None), (901, None), (900, None), (899, 10), (600, 10), (599, 20), (1, 30)]
)
def test_by_age_of_the_youngest_record(age_ms, expected):
    assert trimmed_to(retention_age_ms=age_ms) == expected


@pytest.mark.parametrize(
    ("size_bytes", "expected"), [(0, None), (350, None), (349, 10), (250, 10), (249, 20), (150, 20), (149, 30), (1, 30)]
)
def test_by_size_until_the_rest_fits(size_bytes, expected):
    assert trimmed_to(retention_bytes=size_bytes) == expected


def test_what_either_asks_for_goes():
    assert trimmed_to(retention_age_ms=700, retention_bytes=200) == 20
    assert trimmed_to(retention_age_ms=400, retention_bytes=340) == 20


def test_an_old_segment_behind_a_young_one_stays():
    young_first = [SegmentFacts(0, 10, 100, NOW_MS), SegmentFacts(10, 20, 100, 0), SegmentFacts(20, 21, 1, NOW_MS)]
    assert trimmed_to(young_first, retention_age_ms=500) is None


def test_the_active_segment_stays_however_old_and_large():
    assert trimmed_to(SEGMENTS[-1:], retention_age_ms=1, retention_bytes=1) is None
    assert trimmed_to([], retention_age_ms=1) is None


def test_what_is_over_already_is_not_trimmed_again():
    assert trimmed_to(start_offset=10, retention_age_ms=899) is None
    assert trimmed_to(start_offset=12, retention_age_ms=899) is None
    assert trimmed_to(start_offset=12, retention_age_ms=599) == 20
