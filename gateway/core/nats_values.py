"""How nats-server writes values into the JSON of its monitoring pages, and how long lists are made.

Dates are RFC 3339 in UTC, here with milliseconds; a length of time is `1d2h3m4s` in most fields and Go's own notation
(`1.5s`, `12ms`) in `rtt`; a number that is asked for with nonsense is refused in the words of Go's `strconv`.

A list can be long, and whoever makes it holds the event loop. So a page is made by a *building*: a generator that hands
nothing out but turns, and returns the page. What it walks over it copies first: the world goes on between two turns.

Source: nats-server `server/monitor.go`; Go `time.Duration.String`.
"""

from collections.abc import Callable, Collection, Generator
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from protocol import subjects
from protocol.limits import MONITOR_LIST_DEFAULT, MONITOR_LIST_MAX, MONITOR_TURN_ITEMS

Page = dict[str, Any]
Building = Generator[None, None, Page]
A = TypeVar("A")
B = TypeVar("B")

CALENDAR_JITTER_MS = 50  # two clocks that are read one after the other do not agree on the millisecond
_UNITS = (("y", 365 * 86_400), ("d", 86_400), ("h", 3_600), ("m", 60))


class BadQuery(ValueError):
    """What was asked for makes no sense. The text is nats-server's, and the whole answer."""


class Moment(NamedTuple):
    """Now, by the clock of the plane and by the calendar (milliseconds since 1970)."""

    now_ms: int
    wall_ms: int

    def at(self, now_ms: int, wall_ms: int) -> "Moment":
        """A later moment, when the clocks show this: by the same calendar, unless somebody has set it."""
        expected_ms = self.wall_ms + now_ms - self.now_ms
        return Moment(now_ms, expected_ms if abs(wall_ms - expected_ms) <= CALENDAR_JITTER_MS else wall_ms)

    def date(self, at_ms: int) -> str:
        """When the clock of the plane showed `at_ms`."""
        since_1970_ms = self.wall_ms - self.now_ms + at_ms
        text = datetime.fromtimestamp(since_1970_ms / 1_000, UTC).isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z")

    def today(self) -> str:
        """The date of now."""
        return self.date(self.now_ms)


class Window(NamedTuple):
    """Which part of a list is shown."""

    offset: int
    limit: int

    @classmethod
    def of(cls, offset: int, limit: int) -> "Window":
        """From what was asked for: what is not above 0 is the default, and nobody gets more than the maximum."""
        return cls(max(offset, 0), min(limit, MONITOR_LIST_MAX) if limit > 0 else MONITOR_LIST_DEFAULT)

    def of_list(self, items: list[A]) -> list[A]:
        return items[self.offset : self.offset + self.limit]


def paced(items: Collection[A], build: Callable[[A], B]) -> Generator[None, None, list[B]]:
    """`build` of each of `items`, with a turn for the others now and then. `items` may not change meanwhile."""
    built: list[B] = []
    for number, item in enumerate(items, 1):
        built.append(build(item))
        if number % MONITOR_TURN_ITEMS == 0:
            yield
    return built


def duration(elapsed_ms: int) -> str:
    """`elapsed_ms` as 1y2d3h4m5s, from the first unit that is not zero."""
    seconds = elapsed_ms // 1_000
    text = ""
    for unit, size in _UNITS:
        count, seconds = divmod(seconds, size)
        if count or text:
            text += f"{count}{unit}"
    return f"{text}{seconds}s"


def go_duration(elapsed_ms: int) -> str:
    """`elapsed_ms` in Go's notation: 0s, 12ms, 1.5s, 2m3.004s, 1h0m0s."""
    if 0 < elapsed_ms < 1_000:
        return f"{elapsed_ms}ms"
    minutes, rest_ms = divmod(elapsed_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest_ms / 1_000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def readable(subject: str) -> str:
    """`subject` for JSON, which knows no bytes that are not UTF-8: they become question marks, as in Go."""
    return subjects.encode(subject).decode("utf-8", "replace")
