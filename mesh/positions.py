"""Places in a log as people write them, for `--from` and `--until`.

earliest, latest                  the log's ends
1234                              an offset
2026-11-25T01:00:00Z              a time: RFC 3339; without a zone it is local time, a date alone is its midnight
10m, 2h30m, 7d (ago)              a time so long ago
@1764032400000                    a time in milliseconds since 1970, as `--json` shows it
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from protocol.config_units import parse_duration

FORMS: Final = "earliest, latest, an offset, a time like 2026-11-25T01:00:00Z, 10m (ago), or @MILLISECONDS since 1970"
_MILLISECONDS_LEAST: Final = 100_000_000_000  # 1973; a smaller number was meant as seconds
_AGO = re.compile(r"(?P<duration>[0-9][0-9a-z]*)(?: ?ago)?")


@dataclass(frozen=True, slots=True)
class Position:
    """`value` is an offset or a time in ms, 0 for the ends. `note` says how an ambiguous text was understood."""

    kind: Literal["earliest", "latest", "offset", "time"]
    value: int = 0
    note: str | None = None


def parse_position(text: str, now_ms: int) -> Position:
    """ValueError says what would be right."""
    if text in ("earliest", "latest"):
        return Position("earliest" if text == "earliest" else "latest")
    if text.isascii() and text.isdigit():
        if len(text) > 18:
            raise ValueError(f"{text} is too large for an offset")
        return Position("offset", int(text))
    if text.startswith("@"):
        return Position("time", _milliseconds(text[1:]))
    ago = _AGO.fullmatch(text)
    if ago is not None:
        try:
            return Position("time", max(0, now_ms - parse_duration(ago["duration"])))
        except ValueError as error:
            raise ValueError(f"a time so long ago {error}") from error
    return _moment(text)


def _milliseconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ValueError(f"@ takes milliseconds since 1970, like @1764032400000, got {text!r}")
    if 0 < int(text) < _MILLISECONDS_LEAST:
        raise ValueError(f"@ takes milliseconds since 1970; did you mean @{int(text) * 1000}?")
    return int(text)


def _moment(text: str) -> Position:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not one of: {FORMS}") from error
    note = None
    if moment.tzinfo is None:
        moment = moment.astimezone()
        note = f"{text} has no time zone; it is taken as {moment.isoformat()}"
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    # The first whole millisecond at or after the moment: "from" and "until" both mean that.
    value = -((-since.days * 86_400_000_000 - since.seconds * 1_000_000 - since.microseconds) // 1_000)
    if value < 0:
        raise ValueError(f"{text} is before 1970")
    return Position("time", value, note)
