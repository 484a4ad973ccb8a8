"""Roots of logs that sinks tell each other, and which of them differ.

    every minute, of each log that is covered:  root of what the disk has ─► Roots, if the log has grown
    what another sink says, of the zone or of another one ─► the root here at that end ─► equal, or named

Roots at the same end are equal if both trees began at the same offset and nothing was missing on the way: a mirror that
has gap records of its own says nothing, and is told nothing. What is said of an end that is not reached here is kept
until it is, the latest word of each sink on each partition.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from protocol.coverage import Root, Roots
from protocol.limits import DIGESTS_SAID_MAX, ROOTS_OF_EVENT_MAX

Place = tuple[str, int]
"""(incarnation in hexadecimal digits, partition)"""


class Speaker(NamedTuple):
    """A sink."""

    zone: str
    node: str


class Comparable(NamedTuple):
    """A log here whose roots can be compared: its tree began at an offset, and the log ends at another."""

    begin_offset: int
    end_offset: int


class Difference(NamedTuple):
    """Another sink has a root of `log` that this one has not at that end; `why` has both."""

    speaker: Speaker
    log: str
    partition: int
    end_offset: int
    why: str


class Digests:
    """Of one sink: what it has said, what it has heard and not compared yet, and what differs."""

    def __init__(self) -> None:
        self._said: dict[Place, tuple[int, str]] = {}  # by this sink: end, root
        self._heard: OrderedDict[tuple[Speaker, Place], Root] = OrderedDict()
        self.differing: dict[tuple[Speaker, Place], Difference] = {}
        self.compared = 0

    def news(self, roots: Iterable[Root]) -> list[tuple[Root, ...]]:
        """What of `roots`, which is all that there is, was not said before, in as many parts as events are needed."""
        roots = list(roots)
        said = {place_of(root): (root.end_offset, root.root) for root in roots}
        new = [root for root in roots if self._said.get(place_of(root)) != said[place_of(root)]]
        self._said = said
        return [tuple(new[at : at + ROOTS_OF_EVENT_MAX]) for at in range(0, len(new), ROOTS_OF_EVENT_MAX)]

    def hear(self, roots: Roots) -> None:
        """What another sink has."""
        for root in roots.roots:
            key = Speaker(roots.zone, roots.node), place_of(root)
            self._heard[key] = root
            self._heard.move_to_end(key)
        while len(self._heard) > DIGESTS_SAID_MAX:
            self._heard.popitem(last=False)

    def due(self, here: dict[Place, Comparable]) -> list[tuple[Speaker, Root]]:
        """What can be compared now, with the logs that are `here`; what never can be is forgotten."""
        due = []
        for (speaker, place), root in list(self._heard.items()):
            log = here.get(place)
            if log is not None and log.begin_offset == root.begin_offset and log.end_offset < root.end_offset:
                continue
            del self._heard[speaker, place]
            if log is not None and log.begin_offset == root.begin_offset:
                due.append((speaker, root))
        self.differing = {key: one for key, one in self.differing.items() if key[1] in here}
        return due

    def compare(self, speaker: Speaker, root: Root, size: int, own_root: str) -> Difference | None:
        """The difference if there is one, and it was none before: at that end this sink has `size` leaves."""
        self.compared += 1
        key = speaker, place_of(root)
        if (size, own_root) == (root.size, root.root):
            self.differing.pop(key, None)
            return None
        why = (
            f"at offset {root.end_offset} {root.size} batches are under root {root.root}, here {size} under {own_root}"
        )
        is_new = key not in self.differing
        self.differing[key] = Difference(speaker, root.log, root.partition, root.end_offset, why)
        return self.differing[key] if is_new else None


def place_of(root: Root) -> Place:
    return root.incarnation, root.partition
