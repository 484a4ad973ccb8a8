"""Two zones that mirror a third one, and complete each other: what `simulation.zones` has, and a wire between the two.

    Origin ── Wire ──► us ◄── PeerWire ──► ap ◄── Wire ── Origin

The links to the origin are cut for a while, and in every second world for ever in the end. What a zone says that it
holds arrives late. `sinkd.core.completing` chooses; what a peer serves goes through the same `Pull` and `Feed`.

Beyond what holds for each mirror alone: what came from a peer is in that peer's mirror for good; and two zones that
hold the same log have the longer one of it in the end, though its origin never comes back.

Publishers of the origin wait until one of the two holds their events, in every second world until both do
(`simulation.zones_geo`). Now and then one of the two is lost for ever and begun anew, and in the end the origin may be.
"""

import random

from protocol import link
from protocol.errors import FrameError
from protocol.records import CONTROL, read_header, split_batches
from simulation.zones import FRAME_BATCHES_MAX, NAME, WINDOW_BYTES, Audit, Origin, Receiver, Violation, Wire, World
from simulation.zones_geo import Publishers, is_same
from sinkd.core import commands
from sinkd.core.commands import MirroredHead
from sinkd.core.completing import Offer, source_of
from sinkd.core.mirroring import Feed, SubscriptionRefused, check_end, check_last, pack_batches

LOSSES = 0.001  # in a step
QUIET_MOVES = 60  # in which nothing comes any more: then nothing ever will


class PeerWire(Wire):
    """To the other zone that mirrors, for the mirror of one incarnation."""

    def __init__(self, name: str, incarnation: bytes) -> None:
        super().__init__(-1)
        self.name, self.incarnation = name, incarnation


class Completed(Receiver):
    """A zone that also pulls from its peer."""

    def connect_peer(self, name: str, incarnation: bytes) -> None:
        self.wire, self.pull = PeerWire(name, incarnation), None
        self._subscribe(self.machine.state.mirrors[name])
        self.head = MirroredHead(name, incarnation, 0)

    def take(self, message, tail) -> None:
        if not isinstance(message, link.Mirrored) or self.pull is None:
            if isinstance(self.wire, PeerWire):  # refused: whether it has diverged only its origin can say
                self.world.refused[self.wire.incarnation] = self.world.told.get(self.wire.incarnation, 0)
                self.wire = self.pull = None
            else:
                super().take(message, tail)
            return
        due = self.pull.next_offset
        if message.start_offset > due and self.world.offered(message.incarnation) > due:
            self.world.begins_at[message.incarnation] = message.start_offset
            self.wire = self.pull = None
            return
        super().take(message, tail)

    def _propose(self, command: bytes, incarnation: bytes) -> None:
        super()._propose(command, incarnation)
        if isinstance(self.wire, PeerWire):
            self.world.from_peer.add(command)

    def commit(self) -> None:
        command, incarnation, _ = self.pending[0]
        taken = self.world.audit.took.setdefault(incarnation, [])
        before = len(taken)
        super().commit()
        if command in self.world.from_peer:
            self.world.from_peer.discard(command)
            held = self.world.peer.audit.took.get(incarnation, [])
            if not all(_is_among(batch, held) or _within_gap(batch, held) for batch in taken[before:]):
                raise Violation("a mirror goes beyond what the zone that it came from has for good")
            self.world.completed += len(taken) - before


class Side(World):
    """One of the zones that mirror; `peer` is the other one, `is_cut` the link to the origin."""

    receiver_class = Completed
    offers_what_may_be_lost, peers_compare = False, True

    publishers: Publishers

    def __init__(self, name: str, chance: random.Random, origin: Origin) -> None:
        self.name, self.chance, self.origin, self.audit = name, chance, origin, Audit()
        self.receiver = self.receiver_class(self)
        self._fed: dict[Wire, bytes] = {}  # the log that is fed over it
        self.peer: Side = self
        self.is_cut = False
        self.begins_at: dict[bytes, int] = {}
        self.from_peer: set[bytes] = set()
        self.told: dict[bytes, int] = {}  # what the peer has said that it holds
        self.refused: dict[bytes, int] = {}  # ... when it did not give it
        self.held: dict[bytes, int] = {}  # what this zone has told the origin
        self.completed = 0

    def lose_all(self) -> None:
        """The zone is lost for ever, and another one begins in its place. What its peer had from it it has."""
        self.publishers.copies_lost(self.name, origin_is_whole=not self.origin.is_rolled_back)
        self.receiver.lose_all()
        self.audit.note_loss()
        for known in (self.begins_at, self.from_peer, self.told, self.refused, self.held, self.peer.from_peer):
            known.clear()
        if isinstance(self.peer.receiver.wire, PeerWire):
            self.peer.receiver.wire = self.peer.receiver.pull = None

    # -- what is here -------------------------------------------------------------------------------------------------

    def batches(self, incarnation: bytes) -> list[bytes]:
        found = list(self.audit.took.get(incarnation, []))
        if self.offers_what_may_be_lost:
            found += [batch for each in self.receiver.pending if each[1] == incarnation for batch in _batches(each[0])]
        return found

    def tell(self) -> None:
        """The peer learns what this zone holds, where its mirror has not diverged."""
        diverged = {each.state.incarnation for each in self.receiver.machine.state.mirrors.values() if each.diverged}
        ends = {each: _end(self.batches(each)) for each in self.audit.took.keys() - diverged}
        self.peer.told = ends

    def offered(self, incarnation: bytes) -> int:
        end = self.told.get(incarnation, 0)
        return end if self.refused.get(incarnation) != end else 0

    # -- who is pulled from -------------------------------------------------------------------------------------------

    def source(self, name: str) -> str:
        mirror = self.receiver.machine.state.mirrors[name]
        incarnation, end = mirror.state.incarnation, mirror.partitions[0].end_offset
        if mirror.diverged:
            return ""
        answers = not self.is_cut and incarnation == self.origin.log.incarnation
        offers = [Offer("peer", 0, self.offered(incarnation))]
        origin, begins_at = "eu" if answers else "", self.begins_at.get(incarnation, 0)
        return source_of(end, offers, origin=origin, begins_at=begins_at, is_over="~" in name)

    def move(self, sink: int) -> None:
        receiver = self.receiver
        if isinstance(receiver.wire, PeerWire):
            self._move_peer(receiver.wire)
            return
        completable = [name for name in receiver.machine.state.mirrors if self.source(name) == "peer"]
        lacks = NAME in completable and receiver.mirror.state.incarnation == self.origin.log.incarnation
        is_turn = self.is_cut or lacks or self.chance.random() < 0.2  # there is but one wire at a time
        if completable and not receiver.pending and is_turn:
            name = self.chance.choice(completable)
            receiver.connect_peer(name, receiver.machine.state.mirrors[name].state.incarnation)
        elif not self.is_cut:
            super().move(sink)

    def _move_peer(self, wire: PeerWire) -> None:
        receiver, mirrors = self.receiver, self.receiver.machine.state.mirrors
        named = mirrors.get(wire.name)
        if named is None or named.state.incarnation != wire.incarnation or self.source(wire.name) != "peer":
            receiver.wire = receiver.pull = None
            return
        if receiver.pull is None:
            receiver.wire = None
            return
        while wire.to_origin:
            self._serve_peer(wire, wire.to_origin.popleft())
        self._feed_peer(wire)
        while wire.to_receiver and self.chance.random() < 0.7 and receiver.wire is wire:
            receiver.take(*self.damaged(*wire.to_receiver.popleft()))

    def _serve_peer(self, wire: PeerWire, message: link.Message) -> None:
        held = self.peer.batches(wire.incarnation)
        if isinstance(message, link.Durable):
            if wire.feed is not None and message.subscription == wire.fed:
                wire.feed.durable_through(message.through)
            return
        try:
            check_end(message.offset, _end(held), leads=False)
            if self.peers_compare and message.digest:
                last = next(batch for batch in held if read_header(batch).next_offset > message.last_offset)
                if read_header(last).attributes != CONTROL:  # else the peer lacks what it is compared by
                    check_last(message.last_offset, message.digest, last)
        except SubscriptionRefused as refusal:
            wire.to_receiver.append((link.Failed(message.subscription, refusal.name, str(refusal)), b""))
        else:
            wire.feed, wire.fed = Feed("peer", message.offset, WINDOW_BYTES), message.subscription

    def _feed_peer(self, wire: PeerWire) -> None:
        feed, held = wire.feed, self.peer.batches(wire.incarnation)
        while feed is not None and feed.has_room and feed.offset < _end(held):
            due = [batch for batch in held if read_header(batch).next_offset > feed.offset][:FRAME_BATCHES_MAX]
            data = b"".join(due)
            packed = pack_batches(data, columns=True)
            tree = self.peer.receiver.machine.mirror_of_incarnation(wire.incarnation).partitions[0].tree
            begin = read_header(due[0]).base_offset
            facts = begin, len(data), packed.compressed, 0, _end(held), tree.begin_offset, packed.columns
            wire.to_receiver.append((link.Mirrored(wire.fed, wire.incarnation, *facts), bytes(packed.tail)))
            feed.sent(_end(due), len(data))

    def serve(self, wire: Wire, message: link.Message) -> None:
        """The origin keeps what either of the two lacks."""
        incarnation = self.origin.log.incarnation
        if not isinstance(message, link.Durable):
            super().serve(wire, message)
            self._fed = {wire: incarnation}
        elif wire.feed is not None and message.subscription == wire.fed:
            wire.feed.durable_through(message.through)
            self.publishers.heard(wire.sink, wire.feed, wire.incarnation)
            if self._fed.get(wire) == incarnation:
                self.held[incarnation] = message.through
                self.origin.held = min(side.held.get(incarnation, 0) for side in (self, self.peer))


class ThreeZones:
    """Steps until `run` is over; then everything is well again, but for the origin perhaps."""

    side_class, publishers_class = Side, Publishers

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self._losses, self._covers = random.Random(seed + 1), random.Random(seed + 2)
        self.origin = Origin(self.chance)
        self.sides = [self.side_class(name, self.chance, self.origin) for name in ("us", "ap")]
        copied = {side.name: side.audit.copied for side in self.sides}
        self.publishers = self.publishers_class(self.origin.log, copied, seed, geo_zones=1 + seed % 2)
        for side, peer in zip(self.sides, reversed(self.sides), strict=True):
            side.peer, side.publishers = peer, self.publishers
            side.audit.branches, side.audit.starts = self.sides[0].audit.branches, self.sides[0].audit.starts

    def run(self, steps: int = 600) -> "ThreeZones":
        for _ in range(steps):
            self._step()
            self.publishers.step()
            if self._losses.random() < LOSSES:
                self._losses.choice(self.sides).lose_all()
            if self._covers.random() < 0.005:
                self.origin.cover_anew()
        self.publishers.origin_lost()  # if it were lost now
        self._settle()
        self.publishers.origin_lost()
        return self

    def _step(self) -> None:
        chance, origin, side = self.chance.random(), self.origin, self.chance.choice(self.sides)
        if chance < 0.2:
            end = origin.log.end
            origin.write()
            self.publishers.publish(end)
        elif chance < 0.3:
            origin.catch_up()
        elif chance < 0.33:
            origin.trim(beyond=self.chance.random() < 0.2)
        elif chance < 0.333:
            origin.make_anew()
            self.publishers.begin_anew(origin.log)
        elif chance < 0.34:
            origin.save()
        elif chance < 0.343:
            self._roll_back()
        elif chance < 0.36:
            side.receiver.lead_anew(self.chance)
        elif chance < 0.38:
            side.receiver.wire = None
        elif chance < 0.40:
            self._cut(side, self.chance.random() < 0.6)
        elif chance < 0.44:
            side.tell()
        elif chance < 0.60 and side.receiver.pending:
            side.receiver.commit()
        else:
            side.move(self.chance.randrange(3))
        side.audit.note_origin(origin.log)

    @staticmethod
    def _cut(side: Side, is_cut: bool) -> None:
        side.is_cut = is_cut
        if is_cut and not isinstance(side.receiver.wire, PeerWire):
            side.receiver.wire = None

    def _roll_back(self) -> None:
        end = self.origin.log.end
        self.origin.roll_back()
        if self.origin.log.end == end:
            return
        self.sides[0].audit.note_roll_back(self.origin.log)
        self.publishers.begin_anew(self.origin.log)
        for side in self.sides:
            side.held.clear()
            if not isinstance(side.receiver.wire, PeerWire):
                side.receiver.wire = None

    # -- the end ------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """The origin is lost for ever, or answers; both zones go on until nothing moves any more."""
        is_lost = self.chance.random() < 0.5
        self.origin.before, self.origin.applied = None, [self.origin.log.end] * 3
        for side in self.sides:
            side.damaged = lambda message, tail: (message, tail)
            self._cut(side, is_lost)
        quiet, took = 0, 0
        while quiet < QUIET_MOVES:
            for side in self.sides:
                while side.receiver.pending:
                    side.receiver.commit()
                side.tell()
                side.move(0)
            now = sum(len(batches) for side in self.sides for batches in side.audit.took.values())
            quiet, took = (quiet + 1 if now == took else 0), now
        self._check_level(is_lost)

    def _check_level(self, is_lost: bool) -> None:
        here, there = self.sides
        for incarnation in here.audit.took.keys() & there.audit.took.keys():
            if is_lost or incarnation != self.origin.log.incarnation:
                self._check_same(here, there, incarnation)
        for side in () if is_lost else self.sides:
            mirror = side.receiver.mirror
            is_it = mirror is not None and mirror.state.incarnation == self.origin.log.incarnation
            if not is_it or not (mirror.diverged or mirror.partitions[0].end_offset == self.origin.log.end):
                raise Violation(f"a mirror does not become level with an origin that ends at {self.origin.log.end}")
            if not self.origin.is_rolled_back and not mirror.diverged:
                side.audit.check_begin(mirror, self.origin.log)

    @staticmethod
    def _check_same(here: Side, there: Side, incarnation: bytes) -> None:
        """One of the two has no more than the other, unless they hold different bytes, or one is known to."""
        ends = [_end(side.audit.took[incarnation]) for side in (here, there)]
        mirrors = [side.receiver.machine.mirror_of_incarnation(incarnation) for side in (here, there)]
        if ends[0] != ends[1] and not any(mirror.diverged for mirror in mirrors) and _agree(here, there, incarnation):
            raise Violation(f"a zone ends at offset {min(ends)} of {incarnation.hex()[:8]}, the other at {max(ends)}")


def _agree(here: Side, there: Side, incarnation: bytes) -> bool:
    """Whether the last batch of the shorter one is in the longer one too."""
    short, long = sorted((side.audit.took[incarnation] for side in (here, there)), key=_end)
    return not short or _is_among(short[-1], long) or read_header(short[-1]).attributes == CONTROL


def _is_among(batch: bytes, held: list[bytes]) -> bool:
    return any(is_same(batch, each) for each in held)


def _within_gap(batch: bytes, held: list[bytes]) -> bool:
    """Whether it is a gap that is part of one in `held`."""
    own, headers = read_header(batch), [read_header(each) for each in held]
    return own.attributes == CONTROL and any(
        each.attributes == CONTROL and each.base_offset < own.base_offset and own.next_offset <= each.next_offset
        for each in headers
    )


def _batches(command: bytes) -> list[bytes]:
    decoded = commands.decode(command)
    if decoded.kind != commands.MIRRORED:
        return []
    _, begin = commands.read_head(decoded, MirroredHead)
    return [bytes(batch) for batch in split_batches(decoded.body[begin:])]


def _end(batches: list[bytes]) -> int:
    return read_header(batches[-1]).next_offset if batches else 0


def simulate(seed: int, world: type[ThreeZones] = ThreeZones) -> ThreeZones:
    """Violation, with the seed that shows it again."""
    try:
        return world(seed).run()
    except (Violation, FrameError) as error:
        raise Violation(f"seed {seed}: {error}") from error
