"""Answers that wait for other zones: events of this zone's log whose publishers asked for `geo`.

    the outbox: committed here ─► `wait` ─► the sink that leads says what others hold (`Copies`) ─► told
                                    └─────► too late: silence, or an answer that says so

The outbox lets go of an event when this zone's sinks have it; what stays is who waits, and that still takes up room of
the stream's outbox. So it is bounded, and a change of the sink that leads costs nothing: the next one says what it
knows, and the answers are here. An offset that the log has let go of is never taken as copied: where a mirror was not
quick enough it holds a gap there. And a log that was replaced by an old copy no longer holds what was committed: that
is seen by the producer's sequences when the next link opens, and nobody is told of copies of what stands there then.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from gateway.core.acks import Askers, Place, PubAcks
from protocol import publish
from protocol.link import Copies
from protocol.publish import Refusal
from protocol.streams import StreamState

LATENCY_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
UNKNOWN: Final = 2**64
_end = attrgetter("end_offset")


class Waiting(NamedTuple):
    """Those who wait for the outcome of the events [`offset`, `end_offset`), of which `sequence` is the last one spent.

    Of an event that the log knew already the sequence is UNKNOWN.
    """

    offset: int
    end_offset: int
    askers: Askers
    sequence: int
    size_bytes: int
    taken_ms: int
    due_ms: int


class _Copied:
    """What is known of a partition's copies, and who waits, in the order of offsets."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.copies: Copies | None = None
        self.is_watched = False
        self.waiting: list[Waiting] = []

    def holders(self, waiting: Waiting) -> list[str]:
        """The zones that hold it, if they are enough."""
        copies, stream = self.copies, self.place.stream
        if copies is None or waiting.offset < copies.start_offset:
            return []
        found = [zone for zone, through in copies.zones if through >= waiting.end_offset and stream.is_for(zone)]
        return sorted(found) if len(found) >= stream.geo_zones else []


class GeoAnswers:
    """`zones` are the others that keep logs; `free(stream, bytes)` is told of room that nobody needs any more."""

    def __init__(self, zones: Collection[str], acks: PubAcks, free: Callable[[StreamState, int], None]) -> None:
        self._zones, self._acks, self._free = tuple(sorted(zones)), acks, free
        self._copied: dict[tuple[bytes, int], _Copied] = {}
        self.answered = self.timeouts = 0  # events
        self.latencies = [0] * (len(LATENCY_BOUNDS_S) + 1)  # answers by LATENCY_BOUNDS_S, from publish to answer
        self.latency_s = 0.0  # their sum

    @property
    def waiting(self) -> int:
        """How many answers wait."""
        return sum(len(each.askers) for copied in self._copied.values() for each in copied.waiting)

    def refusal(self, stream: StreamState) -> Refusal | None:
        """Why nothing that `stream` holds can be acknowledged `geo`; None if it can."""
        keepers = [zone for zone in self._zones if stream.is_for(zone)]
        if len(keepers) >= stream.geo_zones:
            return None
        return publish.too_few_zones(stream.name, stream.geo_zones, keepers)

    def wait(self, place: Place, waiting: Waiting, now_ms: int) -> bool:
        """Answers now or later; whether the partition has to be watched for that, which it is not yet."""
        key = place.stream.incarnation, place.number
        copied = self._copied.get(key)
        if copied is None:
            copied = self._copied[key] = _Copied(place)
        if holders := copied.holders(waiting):
            self._answer(copied, waiting, holders, now_ms)
            return False
        insort(copied.waiting, waiting, key=_end)
        is_new, copied.is_watched = not copied.is_watched, True
        return is_new

    def told(self, message: Copies, now_ms: int) -> None:
        """The sink that leads has said what other zones hold."""
        copied = self._copied.get((message.incarnation, message.partition))
        if copied is None:
            return
        copied.copies = message
        farthest = max((through for _, through in message.zones), default=0)
        end = bisect_left(copied.waiting, farthest + 1, key=_end)
        left: list[Waiting] = []
        for waiting in copied.waiting[:end]:
            if holders := copied.holders(waiting):
                self._answer(copied, waiting, holders, now_ms)
            else:
                left.append(waiting)
        copied.waiting[:end] = left

    def _answer(self, copied: _Copied, waiting: Waiting, holders: Sequence[str], now_ms: int) -> None:
        count, latency_s = len(waiting.askers), (now_ms - waiting.taken_ms) / 1000
        self.answered += count
        self.latencies[bisect_left(LATENCY_BOUNDS_S, latency_s)] += count
        self.latency_s += latency_s * count
        self._tell(copied.place, waiting, holders)

    def _tell(self, place: Place, waiting: Waiting, holders: Sequence[str]) -> None:
        self._acks.tell(place, waiting.askers, waiting.offset, holders)
        self._free(place.stream, waiting.size_bytes)

    def expire(self, now_ms: int) -> None:
        """Ends what has waited for too long."""
        for copied in self._copied.values():
            due = [waiting for waiting in copied.waiting if waiting.due_ms <= now_ms]
            if not due:
                continue
            copied.waiting = [waiting for waiting in copied.waiting if waiting.due_ms > now_ms]
            for waiting in due:
                self.timeouts += len(waiting.askers)
                if copied.place.stream.geo_on_timeout == "degrade":
                    self._tell(copied.place, waiting, ())
                else:
                    self._free(copied.place.stream, waiting.size_bytes)

    def link_down(self, group: int) -> None:
        """Nothing is known of its partitions until they are watched again."""
        for copied in self._copied.values():
            if copied.place.group == group:
                copied.copies, copied.is_watched = None, False

    def link_up(self, group: int, last_sequences: Mapping[tuple[bytes, int], int]) -> Iterable[tuple[bytes, int]]:
        """(incarnation, partition) of those that are to be watched, because somebody waits.

        Of what was committed the log still has what it says of our sequences.
        """
        for key, copied in self._copied.items():
            if copied.place.group != group:
                continue
            last_sequence = last_sequences.get(key, 0)
            lost = [each for each in copied.waiting if each.sequence > last_sequence]
            copied.waiting = [each for each in copied.waiting if each.sequence <= last_sequence]
            for waiting in lost:
                self.timeouts += len(waiting.askers)
                self._free(copied.place.stream, waiting.size_bytes)
            if copied.waiting and not copied.is_watched:
                copied.is_watched = True
                yield key
