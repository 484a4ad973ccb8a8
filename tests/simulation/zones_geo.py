"""Publishers of zone eu who wait until other zones hold their events, beside the simulations of two and three zones.

Real are what a gateway knows of them (`GeoAnswers`) and what eu's sinks know of other zones (`Holding`); what these say
to each other arrives late, and in part never:

    a feed hears `Durable` ─► its sink ─ `Held` ─► the one that leads ─ `Copies` ─► the gateway: they are told

Whoever is told is promised that eu may be lost for ever, or any of the zones that the answer names. So at that moment
each of these has the very batch, or had it before it was lost itself; and from then on it is there as long as that zone
is, whatever becomes of eu: its log trimmed, rolled back, made anew or gone. If one of them is lost, it is in eu.
"""

import json
import random
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from support.streams import state

from gateway.core.acks import Asker, PubAcks
from gateway.core.geo import GeoAnswers, Waiting
from protocol.frames import FrameReader
from protocol.link import Copies
from protocol.records import read_header
from protocol.streams import StreamState
from simulation.audit import Violation
from sinkd.core.mirroring import Feed
from sinkd.core.raft_messages import CODEC, Held
from sinkd.shell.holding import Holding

NEVER_MS = 2**40


class OriginLog(Protocol):
    incarnation: bytes
    batches: dict[int, bytes]
    start: int
    end: int


@dataclass
class Place:
    """The partition in the gateway's outbox."""

    stream: StreamState
    number: int = 0
    group: int = 0


class Published(NamedTuple):
    incarnation: bytes
    offset: int
    batch: bytes


class Copied:
    """Which batches a zone has, and had before it was lost."""

    def __init__(self) -> None:
        self.batches: dict[tuple[bytes, int], bytes] = {}
        self.before: dict[tuple[bytes, int], bytes] = {}

    def took(self, incarnation: bytes, batch: bytes) -> None:
        self.batches[incarnation, read_header(batch).base_offset] = batch

    def lost(self) -> None:
        self.before |= self.batches
        self.batches = {}

    def has(self, published: Published) -> bool:
        return is_same(self.batches.get(published[:2], b""), published.batch)

    def had(self, published: Published) -> bool:
        return is_same(self.before.get(published[:2], b""), published.batch)


def is_same(one: bytes, other: bytes) -> bool:
    """In all that a CRC or their place vouches for: a bit of the leader's epoch may flip on its way."""
    return one[:12] + one[16:] == other[:12] + other[16:]


class Publishers:
    """All of them, in one gateway; sink 0 of eu leads. They wait for `geo_zones` of the zones of `copied`."""

    answers_at_quorum = believes_gaps = believes_sequences = False

    def __init__(self, log: OriginLog, copied: dict[str, Copied], seed: int, geo_zones: int = 1) -> None:
        self.copied, self.chance, self.geo_zones = copied, random.Random(seed), geo_zones
        self.geo = GeoAnswers(copied, PubAcks("eu", self._answered, None), lambda stream, size_bytes: None)
        self._published: list[Published] = []
        self._told: dict[str, list[Published]] = {zone: [] for zone in copied}  # by who holds it, since that was there
        self._places: dict[bytes, Place] = {}
        self._watched: set[bytes] = set()
        self.answers = 0
        self.begin_anew(log)

    # -- the gateway --------------------------------------------------------------------------------------------------

    def publish(self, offset: int) -> None:
        """The batch at `offset` is committed in eu: the publisher of its events waits for the others."""
        log = self._log
        stream = state("orders", incarnation=log.incarnation, geo_zones=self.geo_zones)
        place = self._places.setdefault(log.incarnation, Place(stream))
        asker = Asker(str(len(self._published)), is_duplicate=False)
        self._published.append(Published(log.incarnation, offset, log.batches[offset]))
        if self.geo.wait(place, Waiting(offset, log.end, [asker], log.end, 0, 0, NEVER_MS), 0):
            self._watch(log.incarnation)
        if self.answers_at_quorum:
            self.geo.told(Copies(log.incarnation, 0, log.start, tuple((zone, log.end) for zone in self.copied)), 0)

    def _answered(self, account: str, reply: str, body: bytes) -> None:
        published = self._published[int(reply)]
        where = f"offset {published.offset} of {published.incarnation.hex()[:8]}"
        zones = json.loads(body).get("zones", [])
        if len(zones) < self.geo_zones or not self.copied.keys() >= set(zones):
            raise Violation(f"{where}: {body!r}")
        self.answers += 1
        for zone in zones:
            if self.copied[zone].has(published):
                self._told[zone].append(published)
            elif not self.copied[zone].had(published):
                raise Violation(f"{where} was acknowledged geo, and {zone} does not hold it")

    def _relink(self) -> None:
        """The gateway finds the one that leads now."""
        self.to_gateway.clear()
        self._watched.clear()
        self.geo.link_down(0)
        last_sequence = NEVER_MS if self.believes_sequences else self._log.end
        for incarnation, _ in self.geo.link_up(0, {(self._log.incarnation, 0): last_sequence}):
            self._watch(incarnation)

    # -- the sinks of eu ----------------------------------------------------------------------------------------------

    def begin_anew(self, log: OriginLog) -> None:
        """They are other processes now, and this is the log that they have."""
        self._log = log
        self.to_leader: deque[Held] = deque()
        self.to_gateway: deque[Copies] = deque()
        self.holdings = [Holding(self.copied, lambda: None) for _ in range(3)]
        self.lead_anew()

    def lead_anew(self) -> None:
        """Another one leads, which knows only what it hears from now on."""
        leader = self.holdings[0]
        leader.changed = self._changed
        leader.leads(False)
        leader.leads(True)
        self._relink()

    def heard(self, sink: int, feed: Feed, incarnation: bytes) -> None:
        """A feed of this sink has begun, or heard `Durable`."""
        self.holdings[sink].note(feed, incarnation, 0)

    def _watch(self, incarnation: bytes) -> None:
        self._watched.add(incarnation)
        self._changed(incarnation, 0)

    def _changed(self, incarnation: bytes, partition: int) -> None:
        if incarnation in self._watched and incarnation == self._log.incarnation:
            self.to_gateway.append(self._copies(incarnation, partition))

    def _copies(self, incarnation: bytes, partition: int) -> Copies:
        start_offset = 0 if self.believes_gaps else self._log.start
        return Copies(incarnation, partition, start_offset, self.holdings[0].copies(incarnation, partition))

    def step(self) -> None:
        """Some of what is on its way arrives; one word in ten between sinks is lost, and is said again some time."""
        for holding in self.holdings[1:]:
            if self.chance.random() < 0.5:
                holding.tell("", self._send, again=self.chance.random() < 0.1)
        while self.to_leader and self.chance.random() < 0.6:
            self.holdings[0].take(self.to_leader.popleft())
        while self.to_gateway and self.chance.random() < 0.6:
            self.geo.told(self.to_gateway.popleft(), 0)
        if self.chance.random() < 0.01:
            self.lead_anew()

    def _send(self, leader: str, parts: list[bytes]) -> None:
        for frame in FrameReader(CODEC).feed(b"".join(parts)):
            if self.chance.random() < 0.9:
                assert isinstance(frame.message, Held)
                self.to_leader.append(frame.message)

    # -- a zone is lost for ever --------------------------------------------------------------------------------------

    def origin_lost(self) -> None:
        """Violation: something that was acknowledged is not in a zone that the answer named."""
        for zone, told in self._told.items():
            for published in told:
                if not self.copied[zone].has(published):
                    raise Violation(f"offset {published.offset} was acknowledged geo by {zone}, and is lost with eu")

    def copies_lost(self, zone: str, *, origin_is_whole: bool) -> None:
        """A zone is lost. Violation: something acknowledged is not in eu, which has not lost anything itself."""
        log, told, self._told[zone] = self._log, self._told[zone], []
        self.copied[zone].lost()
        for published in told if origin_is_whole else ():
            is_due = published.incarnation == log.incarnation and published.offset >= log.start
            if is_due and log.batches.get(published.offset) != published.batch:
                raise Violation(f"offset {published.offset} was acknowledged geo, and is lost with {zone}")
