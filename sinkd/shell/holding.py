"""What other zones have got of this zone's logs, so that retention keeps the rest for them (`hold_for_zones`).

    a feed of this sink hears `Durable` ─► this sink leads the group: noted here
                                         └► another leads it: it is told (`Held`), once a second

It is not replicated: a leader that has not heard of a zone keeps everything for it, within the bounds of the stream,
until that zone speaks again.
"""

from collections.abc import Callable, Collection

from protocol.frames import Parts
from protocol.streams import StreamState
from sinkd.core.raft_messages import CODEC, Held


class Holding:
    """Of one group; `zones` are the others that keep logs."""

    def __init__(self, zones: Collection[str]) -> None:
        self._zones = frozenset(zones)
        self._held: dict[tuple[bytes, int], dict[str, int]] = {}
        self._untold: dict[tuple[bytes, int, str], int] = {}

    def note(self, zone: str, incarnation: bytes, partition: int, through: int) -> None:
        """Zone `zone` holds all below `through`."""
        self._held.setdefault((incarnation, partition), {})[zone] = through
        self._untold[incarnation, partition, zone] = through

    def take(self, told: Held) -> None:
        """What another sink of the group has heard."""
        self._held.setdefault((told.incarnation, told.partition), {})[told.zone] = told.through

    def tell(self, leader: str, send: Callable[[str, Parts], None]) -> None:
        """Tells `leader`, another sink, what this one has heard."""
        untold, self._untold = self._untold, {}
        for (incarnation, partition, zone), through in untold.items():
            send(leader, CODEC.pack_parts(Held(zone, incarnation, partition, through)))

    def leads(self) -> None:
        """This sink leads: there is nobody to tell."""
        self._untold.clear()

    def through(self, stream: StreamState, partition: int) -> int | None:
        """Up to where every zone holds it that gets a copy; None where none does."""
        if stream.is_mirror:
            return None
        zones = [zone for zone in self._zones if stream.is_for(zone)]
        held = self._held.get((stream.incarnation, partition), {})
        return min((held.get(zone, 0) for zone in zones), default=None)
