"""Two zones in one thread: an origin that writes, trims, is made anew and rolled back, and a zone that mirrors it.

Real are the state machine of the zone that mirrors, both ends of a subscription, and what decides about retention; the
links, the leaders and the logs of the origin stand for theirs:

    Origin: sinks that lag ── Wire: slow, cut, one bit flipped ── Receiver: proposals that commit late, or never

A leader's proposals are committed in order, some later; when another leads, what was not is gone, and the new leader
subscribes from where the mirror ends. Everything is chosen by the seed.

What must hold is in `Audit`: at every moment each mirror is a prefix of what its origin wrote under that incarnation,
at the same offsets, but for gaps, and those only where the origin had nothing any more; its tree is that of its
batches, and says how many of its offsets are such gaps. What a mirror has called durable is in it. And publishers of
the origin wait until the other zone holds their events (`simulation.zones_geo`): then either zone may be lost for ever.
"""

import hashlib
import itertools
import random
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from support.streams import event, state

from protocol import link
from protocol.coverage import digest_of
from protocol.errors import FrameError
from protocol.gaps import read_gap
from protocol.link import Message
from protocol.records import CONTROL, BatchHeader, check_batch, encode_batch, place_batch, read_header
from protocol.streams import StreamState
from simulation.audit import Violation
from simulation.zones_geo import Copied, Publishers, is_same
from sinkd.core import commands
from sinkd.core.commands import Diverged, MakeMirror, MirroredHead
from sinkd.core.machine import Machine, Mirrored
from sinkd.core.mirroring import (
    BadFrame,
    Feed,
    Pull,
    SubscriptionRefused,
    check_end,
    check_last,
    pack_batches,
)
from sinkd.core.mirrors import mirror_of, was_left
from sinkd.core.state import Mirror

NAME = "orders@eu"
FRAME_BATCHES_MAX = 4
WINDOW_BYTES = 1_200
ANOTHER = encode_batch([event(b"another")])  # what an origin has in the place of a batch that it no longer has


@dataclass
class Log:
    """The origin's log under one incarnation: batches by base offset, of which those below `start` are gone.

    Its tree began anew at each of `begins`.
    """

    incarnation: bytes
    batches: dict[int, bytes] = field(default_factory=dict)
    start: int = 0
    end: int = 0
    begins: list[int] = field(default_factory=lambda: [0])

    def write(self, payload: bytes, records: int) -> None:
        batch = place_batch(encode_batch([event(payload)] * records), self.end, 3)
        self.batches[self.end] = batch
        self.end += records

    def read(self, offset: int, end: int) -> list[bytes]:
        bases = sorted(base for base in self.batches if offset <= base < end)
        return [self.batches[base] for base in bases[:FRAME_BATCHES_MAX]]

    def tree_begin(self, applied: int) -> int:
        """As a sink says that has come so far."""
        return max(begin for begin in self.begins if begin <= applied)

    def trim(self, to_offset: int) -> None:
        self.start = max([base for base in (*self.batches, self.end) if base <= to_offset], default=self.start)
        self.batches = {base: batch for base, batch in self.batches.items() if base >= self.start}


class Origin:
    """Zone eu; `applied` is how far each of its sinks has come, the first of them leads."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.log = self._new_log()
        self.before: Log | None = None  # what a sink that lags still says after the origin was made anew
        self.applied = [0, 0, 0]
        self.held = 0  # durable in the mirror of this incarnation, as it was told
        self.copy: Log | None = None
        self.is_rolled_back = False

    def _new_log(self) -> Log:
        return Log(self._chance.randbytes(16))

    def write(self) -> None:
        self.log.write(self._chance.randbytes(self._chance.randint(1, 200)), self._chance.randint(1, 3))
        self.applied[0] = self.log.end

    def cover_anew(self) -> None:
        """Coverage is switched off and on."""
        self.log.begins.append(self.log.end)

    def catch_up(self) -> None:
        for number in (1, 2):
            self.applied[number] = self._chance.choice((self.applied[number], self.log.end))

    def trim(self, *, beyond: bool) -> None:
        """What retention may: up to the last batch that is held, or `beyond` where the bounds of holding are passed.

        An origin that has let go of a mirror's last batch cannot compare it: such a one is not rolled back.
        """
        if beyond and not self.is_rolled_back:
            self.copy = None
            self.log.trim(self.log.end)
        else:
            self.log.trim(self.held - 1)

    def make_anew(self) -> None:
        self.before, self.log = self.log, self._new_log()
        self.applied, self.held, self.copy, self.is_rolled_back = [0, 0, 0], 0, None, False

    def save(self) -> None:
        log = self.log
        self.copy = Log(log.incarnation, dict(log.batches), log.start, log.end, list(log.begins))

    def roll_back(self) -> None:
        """All disks of the origin are replaced by an old copy: the same incarnation holds less, then other bytes."""
        if self.copy is not None and self.copy.end < self.log.end:
            self.log = self.copy
            self.applied = [self.log.end] * 3
            self.copy, self.is_rolled_back, self.held = None, True, 0

    def stream(self, sink: int) -> StreamState:
        """What a sink says that the zone has; one that lags may say what was."""
        log = self.before if sink and self.before is not None and self._chance.random() < 0.5 else self.log
        return state("orders", incarnation=log.incarnation, covered=True)


class Wire:
    """One link: frames both ways, in order; `deliver` takes some of those that wait."""

    def __init__(self, sink: int) -> None:
        self.sink, self.number = sink, 0
        self.incarnation = b""  # of the log that is fed
        self.feed: Feed | None = None
        self.fed = 0  # the subscription that it is for
        self.to_origin: deque[Message] = deque()
        self.to_receiver: deque[tuple[Message, bytes]] = deque()


class Audit:
    """What each mirror took, and what the origin ever wrote."""

    def __init__(self) -> None:
        self.starts: dict[bytes, int] = {}  # the furthest that each has let go
        self.branches: dict[bytes, list[dict[int, bytes]]] = {}
        self.took: dict[bytes, list[bytes]] = {}
        self._leaves: dict[bytes, list[tuple[int, bytes]]] = {}
        self.gaps = self.refused = self.anew = self.diverged = self.answers = self.lost = 0
        self.copied = Copied()

    def note_origin(self, log: Log) -> None:
        """After every write: the branch that the origin is on holds these."""
        branches = self.branches.setdefault(log.incarnation, [{}])
        branches[-1].update(log.batches)
        self.starts[log.incarnation] = max(log.start, self.starts.get(log.incarnation, 0))

    def note_roll_back(self, log: Log) -> None:
        before = self.branches[log.incarnation][-1]
        kept = {base: batch for base, batch in before.items() if base < log.end}
        self.branches[log.incarnation].append(kept)

    def took_batch(self, incarnation: bytes, batch: bytes) -> None:
        taken = self.took.setdefault(incarnation, [])
        end = read_header(taken[-1]).next_offset if taken else 0
        header = check_batch(batch)
        if header.base_offset != end:
            raise Violation(f"a batch at {header.base_offset} in a mirror that ends at {end}")
        taken.append(batch)
        leaf = b"\x00" + struct.pack(">Q", header.base_offset) + hashlib.sha256(batch[21:]).digest()
        self._leaves.setdefault(incarnation, []).append((header.base_offset, hashlib.sha256(leaf).digest()))
        self.copied.took(incarnation, batch)
        if header.attributes == CONTROL:
            self.gaps += 1
            self._check_gap(incarnation, batch)
        elif not any(self._is_prefix(taken, branch) for branch in self.branches.get(incarnation, ())):
            raise Violation(f"offset {header.base_offset} of {incarnation.hex()[:8]} is not what its origin wrote")

    def _check_gap(self, incarnation: bytes, batch: bytes) -> None:
        _, gap = read_gap(batch)
        header = read_header(batch)
        if gap.events != header.next_offset - header.base_offset:
            raise Violation(f"a gap of {gap.events} events spans {header.next_offset - header.base_offset} offsets")
        if header.next_offset > self.starts.get(incarnation, 0):
            raise Violation(f"a gap up to {header.next_offset}, the origin begins at {self.starts.get(incarnation, 0)}")

    def check_trees(self, mirrors: Iterable[Mirror]) -> None:
        """Each is made of the batches that its mirror took, and all of what it lacks is known to it."""
        for mirror in mirrors:
            name, tree = mirror.state.name, mirror.partitions[0].tree
            if tree is None:
                raise Violation(f"{name} has no tree")
            leaves = [
                leaf for base, leaf in self._leaves.get(mirror.state.incarnation, ()) if base >= tree.begin_offset
            ]
            gaps = self._gaps(mirror.state.incarnation, tree.begin_offset)
            wanted = len(leaves), _root(leaves), sum(gap.next_offset - gap.base_offset for gap in gaps)
            if (tree.size, _root_of(tree.frontier), tree.trimmed) != wanted:
                raise Violation(f"the tree of {name} is {tree}, not {wanted}")

    def _gaps(self, incarnation: bytes, begin: int) -> list[BatchHeader]:
        taken = map(read_header, self.took.get(incarnation, []))
        return [header for header in taken if header.attributes == CONTROL and header.base_offset >= begin]

    def check_begin(self, mirror: Mirror, log: Log) -> None:
        """Of a mirror that is level and lacks nothing the tree began where its origin's did, once that has a batch."""
        due, tree = log.begins[-1], mirror.partitions[0].tree
        if due < log.end and not self._gaps(log.incarnation, 0) and (tree is None or tree.begin_offset != due):
            raise Violation(f"the tree of {mirror.state.name} is {tree}, that of its origin began at {due}")

    def note_loss(self) -> None:
        """All that us had is lost."""
        self.took, self._leaves = {}, {}
        self.lost += 1

    @staticmethod
    def _is_prefix(taken: list[bytes], branch: dict[int, bytes]) -> bool:
        whole = [batch for batch in taken if read_header(batch).attributes != CONTROL]
        return all(is_same(branch.get(read_header(batch).base_offset, b""), batch) for batch in whole)


def _root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, over hashes of leaves."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + _root(leaves[:half]) + _root(leaves[half:])).digest()


def _root_of(frontier: list[bytes]) -> bytes:
    root = frontier[-1] if frontier else hashlib.sha256().digest()
    for left in reversed(frontier[:-1]):
        root = hashlib.sha256(b"\x01" + left + root).digest()
    return root


class Receiver:
    """Zone us: its state machine, and the one who leads it."""

    pull_class = Pull
    tells_at_receipt = any_sink_makes = False

    def __init__(self, world: "World") -> None:
        self.world = world
        self.machine = Machine()
        self._numbers = itertools.count(1)
        self.pending: deque[tuple[bytes, bytes, int]] = deque()  # (command, incarnation, wire's number)
        self.wire: Wire | None = None
        self.pull: Pull | None = None
        self.head = MirroredHead(NAME, b"", 0)

    @property
    def mirror(self):
        return self.machine.state.mirrors.get(NAME)

    # -- the leader ---------------------------------------------------------------------------------------------------

    def connect(self, sink: int) -> None:
        """A new link; the mirror is made, or made anew, as this sink says."""
        self.wire, self.pull = Wire(sink), None
        self.look(self.world.origin.stream(sink))

    def look(self, stream: StreamState) -> None:
        wanted = mirror_of("eu", stream)
        mirror = self.mirror
        if mirror is None or mirror.state.incarnation != wanted.incarnation:
            if self.wire.sink and not self.any_sink_makes:  # only the leader's word makes a mirror
                self.wire = None
            elif not was_left(self.machine.state, wanted):
                self._propose(commands.encode(commands.MIRROR, 1, MakeMirror(wanted)), b"")
        elif not mirror.diverged:
            self._subscribe(mirror)

    def told(self, stream: StreamState) -> None:
        """The origin has said anew what streams it has."""
        if stream.incarnation != self.head.incarnation:
            self.pull = None

    def _subscribe(self, mirror) -> None:
        end, last_offset, digest = mirror.partitions[0].end_offset, -1, b""
        taken = self.world.audit.took.get(mirror.state.incarnation, [])
        if taken and read_header(taken[-1]).attributes != CONTROL:
            last_offset, digest = read_header(taken[-1]).base_offset, digest_of(taken[-1])
        self.pull = self.pull_class("eu", mirror.state.incarnation, end, mirror.last_crcs.get(0, 0))
        self.head = MirroredHead(NAME, mirror.state.incarnation, 0)
        self.wire.number = next(self._numbers)
        asked = link.Subscribe(
            self.wire.number, "orders", mirror.state.incarnation, 0, end, WINDOW_BYTES, last_offset, digest
        )
        self.wire.to_origin.append(asked)

    def take(self, message: Message, tail: bytes) -> None:
        if isinstance(message, link.Failed):
            self.pull = None
            if message.name == "DIVERGED":
                body = Diverged(NAME, self.head.incarnation, 0, message.message)
                self._propose(commands.encode(commands.DIVERGED, 1, body), b"")
            elif message.name == "NOT_CAUGHT_UP":
                self.wire = None
        elif self.pull is not None and message.subscription == self.wire.number:
            head = msgspec.structs.replace(self.head, after=self.pull.last_crc, tree_begin=message.tree_begin)
            try:
                data, end = self.pull.take(message, tail)
            except BadFrame:
                self.world.audit.refused += 1
                self.wire = None
                return
            if data:
                self._propose(commands.encode_mirrored(1, head, data), head.incarnation)
            if self.tells_at_receipt:
                self._tell(self.head.incarnation, end)

    def _propose(self, command: bytes, incarnation: bytes) -> None:
        self.pending.append((command, incarnation, self.wire.number if self.wire is not None else 0))

    def commit(self) -> None:
        """The oldest proposal is committed and applied."""
        command, incarnation, number = self.pending.popleft()
        before = self.mirror.state.incarnation if self.mirror is not None else b""
        result = self.machine.apply(command)
        audit = self.world.audit
        audit.anew += bool(before) and self.mirror.state.incarnation != before
        if not isinstance(result, Mirrored):
            return
        for place in result.placements:
            batch = command[place.position : place.position + place.header.size_bytes]
            audit.took_batch(place.stream.incarnation, batch)
        audit.check_trees(self.machine.state.mirrors.values())
        is_current = self.wire is not None and self.pull is not None and self.wire.number == number
        if result.refusal and is_current:
            self.pull = None  # subscribes anew
        elif not result.refusal and is_current and not self.tells_at_receipt:
            self._tell(incarnation, result.end_offset)

    def _tell(self, incarnation: bytes, through: int) -> None:
        mirror = self.mirror
        held = mirror.partitions[0].end_offset if mirror.state.incarnation == incarnation else through
        if held < through:
            raise Violation(f"durable through {through} was told, the mirror ends at {held}")
        self.wire.to_origin.append(link.Durable(self.wire.number, through))

    def lead_anew(self, chance: random.Random) -> None:
        """Another sink leads: of what was proposed the first few are committed, the rest is gone."""
        for _ in range(chance.randint(0, len(self.pending))):
            self.commit()
        self.pending.clear()
        self.machine = Machine(self.machine.snapshot())
        self.wire = self.pull = None

    def lose_all(self) -> None:
        """All sinks of the zone have empty disks."""
        self.machine = Machine()
        self.pending.clear()
        self.wire = self.pull = None


class World:
    """Steps until `run` is over; then everything is well again, and the mirror has to become level."""

    receiver_class, publishers_class = Receiver, Publishers
    checks_digest, name = True, "us"

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.audit = Audit()
        self.origin = Origin(self.chance)
        self.receiver = self.receiver_class(self)
        self.publishers = self.publishers_class(self.origin.log, {self.name: self.audit.copied}, seed)
        self._losses, self._covers = random.Random(seed + 1), random.Random(seed + 2)

    def run(self, steps: int = 400) -> Audit:
        for _ in range(steps):
            self.step()
            self.publishers.step()
            if self._losses.random() < 0.001:
                self._lose_copies()
            if self._covers.random() < 0.005:
                self.origin.cover_anew()
        self.publishers.origin_lost()  # if it were lost now
        self.settle()
        self.audit.answers = self.publishers.answers
        return self.audit

    def step(self) -> None:
        chance, origin, receiver = self.chance.random(), self.origin, self.receiver
        if chance < 0.25:
            end = origin.log.end
            origin.write()
            self.audit.note_origin(origin.log)
            self.publishers.publish(end)
        elif chance < 0.35:
            origin.catch_up()
        elif chance < 0.40:
            origin.trim(beyond=self.chance.random() < 0.2)
            self.audit.note_origin(origin.log)
        elif chance < 0.405:
            origin.make_anew()
            self.publishers.begin_anew(origin.log)
        elif chance < 0.42:
            origin.save()
        elif chance < 0.425:
            self._roll_back()
        elif chance < 0.44:
            receiver.lead_anew(self.chance)
        elif chance < 0.46:
            receiver.wire = None
        elif chance < 0.60 and receiver.pending:
            receiver.commit()
        else:
            self.move(self.chance.randrange(3))

    def _roll_back(self) -> None:
        end = self.origin.log.end
        self.origin.roll_back()
        if self.origin.log.end != end:
            self.audit.note_roll_back(self.origin.log)
            self.receiver.wire = None  # those who served are other processes now
            self.publishers.begin_anew(self.origin.log)

    def _lose_copies(self) -> None:
        """Us is lost for ever, and another one begins in its place."""
        self.publishers.copies_lost(self.name, origin_is_whole=not self.origin.is_rolled_back)
        self.receiver.lose_all()
        self.audit.note_loss()

    def move(self, sink: int) -> None:
        """Something passes on the link; without one it is dialled, and what has ended is begun anew."""
        receiver = self.receiver
        if receiver.wire is None:
            receiver.connect(sink)
        if (wire := receiver.wire) is None:
            return
        if receiver.pull is not None and self.chance.random() < 0.3:
            receiver.told(self.origin.stream(wire.sink))
        if receiver.pull is None and not receiver.pending and receiver.wire is wire:
            receiver.look(self.origin.stream(wire.sink))
        if receiver.wire is None:
            return
        while wire.to_origin and self.chance.random() < 0.8:
            self.serve(wire, wire.to_origin.popleft())
        self.feed(wire)
        while wire.to_receiver and self.chance.random() < 0.7 and receiver.wire is wire:
            receiver.take(*self.damaged(*wire.to_receiver.popleft()))

    def damaged(self, message: Message, tail: bytes) -> tuple[Message, bytes]:
        """One in fifty frames has lost a bit."""
        if tail and self.chance.random() < 0.02:
            at = self.chance.randrange(len(tail))
            tail = tail[:at] + bytes((tail[at] ^ 1 << self.chance.randrange(8),)) + tail[at + 1 :]
        return message, tail

    # -- the origin's end ---------------------------------------------------------------------------------------------

    def serve(self, wire: Wire, message: Message) -> None:
        if isinstance(message, link.Durable):
            if wire.feed is not None and message.subscription == wire.fed:
                wire.feed.durable_through(message.through)
                self.publishers.heard(wire.sink, wire.feed, wire.incarnation)
                if wire.incarnation == self.origin.log.incarnation:
                    self.origin.held = max(self.origin.held, message.through)
            return
        wire.feed = None
        log, applied = self.origin.log, self.origin.applied[wire.sink]
        try:
            if message.incarnation != log.incarnation:
                raise SubscriptionRefused("RECREATED", "another incarnation")
            check_end(message.offset, applied, leads=wire.sink == 0)
            if self.checks_digest and message.last_offset >= log.start and message.digest:
                check_last(message.last_offset, message.digest, log.batches.get(message.last_offset, ANOTHER))
        except SubscriptionRefused as refusal:
            self.audit.diverged += refusal.name == "DIVERGED"
            wire.to_receiver.append((link.Failed(message.subscription, refusal.name, str(refusal)), b""))
        else:
            wire.feed, wire.incarnation = Feed(self.name, message.offset, WINDOW_BYTES), log.incarnation
            wire.fed = message.subscription
            self.publishers.heard(wire.sink, wire.feed, log.incarnation)

    def feed(self, wire: Wire) -> None:
        """Sends what there is under the stream's name, whichever incarnation that is by now."""
        feed, log, applied = wire.feed, self.origin.log, self.origin.applied[wire.sink]
        while feed is not None and feed.has_room and feed.offset < applied:
            batches = log.read(max(feed.offset, log.start), applied)
            if not batches and log.start <= feed.offset:
                return  # another log's offsets
            data = b"".join(batches)
            packed = pack_batches(data, columns=True)
            begin = read_header(batches[0]).base_offset if batches else log.start
            facts = begin, len(data), packed.compressed, log.start, applied, log.tree_begin(applied), packed.columns
            wire.to_receiver.append((link.Mirrored(wire.fed, log.incarnation, *facts), bytes(packed.tail)))
            feed.sent(read_header(batches[-1]).next_offset if batches else log.start, len(data))

    # -- the end ------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Nothing fails any more: the mirror becomes level, unless its origin holds other bytes than it did."""
        origin, receiver = self.origin, self.receiver
        self.damaged = lambda message, tail: (message, tail)
        origin.before = None
        origin.applied = [origin.log.end] * 3
        for _ in range(500):
            while receiver.pending:
                receiver.commit()
            mirror = receiver.mirror
            is_it = mirror is not None and mirror.state.incarnation == origin.log.incarnation
            if is_it and (mirror.diverged or mirror.partitions[0].end_offset == origin.log.end):
                break
            self.move(0)
        else:
            raise Violation(f"the mirror does not become level: {receiver.mirror}, the origin ends at {origin.log.end}")
        if receiver.mirror.diverged and not origin.is_rolled_back:
            raise Violation(f"diverged without a reason: {receiver.mirror.diverged}")
        if not origin.is_rolled_back:
            self.audit.check_begin(receiver.mirror, origin.log)


def simulate(seed: int, world: type[World] = World) -> Audit:
    """Violation, with the seed that shows it again."""
    try:
        return world(seed).run()
    except (Violation, FrameError) as error:
        raise Violation(f"seed {seed}: {error}") from error
