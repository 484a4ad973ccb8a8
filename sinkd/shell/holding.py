"""What other zones have got of this zone's logs: retention keeps the rest for them (`hold_for_zones`), and publishers
who asked for `geo` wait for it (`gateway.core.geo`).

    a feed of this sink hears `Durable` ─► this sink leads the group: noted here ─► gateways that watch are told
                                         └► another leads it: it is told (`Held`), at once and once a second

It is not replicated: a leader that has not heard of a zone since it began to lead keeps everything for it, within the
bounds of the stream, until that zone speaks again; and nothing is acknowledged for it. What was told to an earlier
leader does not count, for since then that zone may have lost it and begun anew.
"""

from collections.abc import Callable, Collection

from protocol.frames import Parts
from protocol.streams import StreamState
from sinkd.core.mirroring import Feed
from sinkd.core.raft_messages import CODEC, Held

_Place = tuple[bytes, int]  # incarnation of the stream, number of the partition


class Holding:
    """Of one group; `zones` are the others that keep logs. `tell_soon` is called when there is something to `tell`."""

    def __init__(self, zones: Collection[str], tell_soon: Callable[[], None]) -> None:
        self._zones, self._tell_soon = frozenset(zones), tell_soon
        self._held: dict[_Place, dict[str, int]] = {}
        self._fed: dict[tuple[_Place, str], Feed] = {}  # those of this sink that go on
        self._untold: set[tuple[_Place, str]] = set()
        self._leads = False
        self.changed: Callable[[bytes, int], None] = lambda incarnation, partition: None  # who watches is told

    def note(self, feed: Feed, incarnation: bytes, partition: int) -> None:
        """The feed has heard how much its zone holds."""
        place = incarnation, partition
        self._fed[place, feed.zone] = feed
        self._set(place, feed.zone, feed.durable)
        if not self._leads:
            self._untold.add((place, feed.zone))
            self._tell_soon()

    def ended(self, feed: Feed, incarnation: bytes, partition: int) -> None:
        """The feed will hear nothing more."""
        key = (incarnation, partition), feed.zone
        if self._fed.get(key) is feed:
            del self._fed[key]
            self._untold.discard(key)

    def take(self, told: Held) -> None:
        """What another sink of the group has heard."""
        self._set((told.incarnation, told.partition), told.zone, told.through)

    def _set(self, place: _Place, zone: str, through: int) -> None:
        held = self._held.setdefault(place, {})
        if zone in self._zones and held.get(zone) != through:
            held[zone] = through
            self.changed(*place)

    def tell(self, leader: str, send: Callable[[str, Parts], None], *, again: bool = False) -> None:
        """Tells `leader`, another sink, what this one has heard; `again` what it may have been told already."""
        untold, self._untold = self._fed.keys() if again else self._untold, set()
        for place, zone in untold:
            send(leader, CODEC.pack_parts(Held(zone, *place, self._fed[place, zone].durable)))

    def leads(self, leads: bool) -> None:
        """Whether this sink leads: then there is nobody to tell, and only what is heard from now on counts."""
        if leads and not self._leads:
            self._held = {}
            for (place, zone), feed in self._fed.items():
                self._set(place, zone, feed.durable)
            self._untold.clear()
        self._leads = leads

    def through(self, stream: StreamState, partition: int) -> int | None:
        """Up to where every zone holds it that gets a copy; None where none does."""
        if stream.is_mirror:
            return None
        zones = [zone for zone in self._zones if stream.is_for(zone)]
        held = self._held.get((stream.incarnation, partition), {})
        return min((held.get(zone, 0) for zone in zones), default=None)

    def copies(self, incarnation: bytes, partition: int) -> tuple[tuple[str, int], ...]:
        """(zone, offset below which it holds all) of those that have spoken."""
        return tuple(sorted(self._held.get((incarnation, partition), {}).items()))
