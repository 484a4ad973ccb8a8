"""`mesh.positions`: what `--from` and `--until` understand."""

import time

import pytest

from mesh.positions import Position, parse_position

NOW_MS = 1_764_032_400_000


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("earliest", Position("earliest")),
        ("latest", Position("latest")),
        ("0", Position("offset", 0)),
        ("20261125", Position("offset", 20_261_125)),
        ("2025-11-25T01:00:00Z", Position("time", 1_764_032_400_000)),
        ("2025-11-25T01:00:00+01:00", Position("time", 1_764_028_800_000)),
        ("2025-11-25 01:00:00.5Z", Position("time", 1_764_032_400_500)),
        ("10m", Position("time", NOW_MS - 600_000)),
        ("2h30m ago", Position("time", NOW_MS - 9_000_000)),
        ("1000ms", Position("time", NOW_MS - 1_000)),
        ("@1764032400123", Position("time", 1_764_032_400_123)),
        ("@0", Position("time", 0)),
    ],
)
def test_forms(text: str, position: Position) -> None:
    assert parse_position(text, NOW_MS) == position


def test_a_moment_between_two_milliseconds_is_the_later_one() -> None:
    """An event's time is at or after the moment exactly when it is at or after that millisecond."""
    assert parse_position("2025-11-25T01:00:00.000001Z", NOW_MS).value == 1_764_032_400_001


def test_a_time_without_a_zone_is_local_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        position = parse_position("2025-11-25 02:00", NOW_MS)
        date = parse_position("2025-11-25", NOW_MS)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert position == Position(
        "time",
        1_764_032_400_000,
        "2025-11-25 02:00 has no time zone; it is taken as 2025-11-25T02:00:00+01:00",
    )
    assert date.value == 1_764_025_200_000


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is not one of: earliest, latest, an offset"),
        ("yesterday", "is not one of"),
        ("-5", "is not one of"),
        ("2025-13-01", "is not one of"),
        ("10x", 'must be a duration such as "500ms"'),
        ("@1764032400", "did you mean @1764032400000?"),
        ("@now", "@ takes milliseconds since 1970"),
        ("1969-01-01T00:00:00Z", "before 1970"),
        ("9" * 19, "too large for an offset"),
    ],
)
def test_errors_say_what_would_be_right(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what.replace("?", r"\?")):
        parse_position(text, NOW_MS)
