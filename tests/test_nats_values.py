"""Dates, lengths of time and long lists, as the monitoring pages have them."""

import pytest

from gateway.core.nats_values import Moment, Window, duration, go_duration, paced, readable
from protocol.limits import MONITOR_LIST_DEFAULT, MONITOR_LIST_MAX, MONITOR_TURN_ITEMS

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@pytest.mark.parametrize(
    ("elapsed_ms", "text"),
    [
        (0, "0s"),
        (59_999, "59s"),
        (60_000, "1m0s"),
        (DAY_MS, "1d0h0m0s"),
        (26 * HOUR_MS + 61_000, "1d2h1m1s"),
        (367 * DAY_MS, "1y2d0h0m0s"),
    ],
)
def test_duration(elapsed_ms: int, text: str) -> None:
    assert duration(elapsed_ms) == text


@pytest.mark.parametrize(
    ("elapsed_ms", "text"),
    [
        (0, "0s"),
        (12, "12ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (1_500, "1.5s"),
        (60_000, "1m0s"),
        (123_004, "2m3.004s"),
        (HOUR_MS, "1h0m0s"),
        (100 * HOUR_MS + 10, "100h0m0.01s"),
    ],
)
def test_go_duration(elapsed_ms: int, text: str) -> None:
    assert go_duration(elapsed_ms) == text


def test_dates_are_counted_from_now() -> None:
    moment = Moment(now_ms=5_000, wall_ms=1_700_000_000_123)
    assert moment.today() == "2023-11-14T22:13:20.123Z"
    assert moment.date(0) == "2023-11-14T22:13:15.123Z"


def test_dates_stand_still_until_the_clock_is_set() -> None:
    before = Moment(1_000, 1_700_000_000_000)
    later = before.at(61_000, 1_700_000_060_003)
    assert later.date(1_000) == before.date(1_000)
    assert before.at(61_000, 1_700_003_660_000).date(61_000) == "2023-11-14T23:14:20.000Z"


def test_nobody_gets_more_than_the_maximum() -> None:
    assert Window.of(-5, 0) == (0, MONITOR_LIST_DEFAULT)
    assert Window.of(3, -1) == (3, MONITOR_LIST_DEFAULT)
    assert Window.of(0, 10**9) == (0, MONITOR_LIST_MAX)
    assert Window.of(1, 2).of_list([10, 11, 12, 13]) == [11, 12]


def test_a_long_list_takes_turns() -> None:
    building = paced(range(3 * MONITOR_TURN_ITEMS + 1), str)
    turns = [next(building), next(building), next(building)]
    assert turns == [None] * 3
    with pytest.raises(StopIteration) as end:
        next(building)
    assert end.value.value == [str(number) for number in range(3 * MONITOR_TURN_ITEMS + 1)]


def test_what_is_no_text_is_readable_all_the_same() -> None:
    assert readable("a.\udcff.é") == "a.�.é"
