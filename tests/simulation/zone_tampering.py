"""What happens to events between a gateway and its sinks that neither can help, and what a gateway makes up.

    eat     from some moment on parcels of a partition vanish on their way, until the link is another one
    kill    the same, and then the gateway is killed with all that it holds
    forge   a parcel vanishes, and the gateway is told that it is in the log: as if the sinks had lost it since
    alter   the bytes of a parcel change on their way, and its checksum with them
    lie     a beacon counts a thousand events that nobody ever sent

Each has to be reported for what it is (`Due`), and no other gateway, partition or reason has.
"""

import random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from fastcrc import crc32

from gateway.core.coverage import Account
from gateway.core.outbox import Outbox
from gateway.core.partition_outbox import PartitionOutbox
from gateway.shell.beacons import Beacons
from protocol import envelope, link
from protocol.coverage import ALTERED, LATE, LOST, UNCLOSED, Row
from protocol.records import read_header, read_records
from simulation.zone_ledger import Due

if TYPE_CHECKING:
    from simulation.zone import Zone
    from simulation.zone_clients import Publisher

KINDS = ("eat", "kill", "forge", "alter", "lie")
INTERVALS_S = (0.3, 0.8, 2.0)
SOON_S = 2.5  # beacon, commit, look: what it may take in a zone that is well, beside the grace
MADE_UP = 1_000  # events
PADDING = b"........"


class Wanted(NamedTuple):
    kind: str
    place: tuple[bytes, int]


class Tampered(Outbox):
    """An outbox, and whoever sits on its links. `wanted` is done to the next parcel of that place."""

    def __init__(self, publisher: "Publisher", *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.publisher, self.tampering = publisher, publisher.zone.tampering
        self.wanted: Wanted | None = None
        self.eaten: dict[tuple[bytes, int], tuple[float, Due | None]] = {}  # since when, by place
        self.altered: dict[tuple[bytes, int, int], Due | None] = {}  # by place and sequence, not answered yet

    def take_frames(self, group: int = 0) -> list[bytes]:
        frames = super().take_frames(group)
        if self.wanted is None and not self.eaten:
            return frames
        return [kept for frame in frames if (kept := self._pass(frame)) is not None]

    def _pass(self, data: bytes) -> bytes | None:
        (frame,) = link.FrameReader().feed(data)
        if not isinstance(frame.message, link.Append):
            return data
        (parcel,) = envelope.unpack(frame.tail)
        place = parcel.envelope.incarnation, parcel.envelope.partition
        if place in self.eaten:
            return None
        if self.wanted is None or self.wanted.place != place:
            return data
        kind, self.wanted = self.wanted.kind, None
        if kind == "forge":
            self.publisher.process.run(self.publisher.zone.loop.call_soon, self._forge, parcel)
            return None
        altered = _altered(bytes(parcel.batch))
        if altered is None:
            return data
        self.altered[*place, parcel.envelope.first_sequence] = self.tampering.altered(self.publisher, place)
        return link.pack(link.Append(), envelope.pack(parcel.envelope, altered))

    def _forge(self, parcel: envelope.Parcel) -> None:
        """The gateway believes that it is in the log."""
        head, place = parcel.envelope, (parcel.envelope.incarnation, parcel.envelope.partition)
        partition = self._partitions.get(place)
        if partition is None or not any(each.first_sequence == head.first_sequence for each in partition.in_flight):
            return
        if self._way_of(partition).producer == (head.producer_id, head.epoch):
            self.tampering.forged(self.publisher, partition, parcel)
            names = head.producer_id, head.epoch, head.stream, head.incarnation, head.partition, head.first_sequence
            self.appended(link.Appended(*names, 0))

    def appended(self, message: link.Appended) -> None:
        self.altered.pop((message.incarnation, message.partition, message.first_sequence), None)
        super().appended(message)

    def link_down(self, now_ms: int, group: int = 0) -> None:
        for place in list(self.eaten):
            if place not in self._partitions or self._partitions[place].group == group:
                self.tampering.eaten_again(*self.eaten.pop(place))
        for due in self.altered.values():  # no answer: the gateway will never know what became of it
            self.tampering.void(due)
        self.altered.clear()
        super().link_down(now_ms, group)


class Lying(Beacons):
    """`lies` about the next row of that place."""

    def __init__(self, publisher: "Publisher", *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.publisher = publisher
        self.lies: tuple[bytes, int] | None = None

    def _say(self, rows: list[Row], now_ms: int, *, whole: bool, closing: bool) -> None:
        place = self.lies
        if place is not None:
            is_it = lambda row: place == (bytes.fromhex(row.incarnation), row.partition)  # noqa: E731
            rows = [self._made_up(row) if is_it(row) else row for row in rows]
        super()._say(rows, now_ms, whole=whole, closing=closing)

    def _made_up(self, row: Row) -> Row:
        self.publisher.zone.tampering.lied(self.publisher, row)
        self.lies = None
        more = {name: getattr(row, name) + MADE_UP for name in ("acknowledged", "held", "next")}
        return msgspec.structs.replace(row, **more)


class Tampering:
    """In a zone; `is_calm` says that nothing else fails there: then all of it is reported soon."""

    def __init__(self, zone: "Zone", kinds: tuple[str, ...], *, is_calm: bool) -> None:
        self.zone, self.kinds, self.is_calm = zone, kinds, is_calm
        self.rng = random.Random(zone.seed + 1)
        self.interval_s = self.rng.choice(INTERVALS_S)
        self._lies: set[tuple[str, str]] = set()  # process, run

    def begin(self) -> None:
        if self.kinds and not self.zone.is_healed:
            self.zone.call_later(self.rng.expovariate(1 / self.interval_s), self._happen)

    def _happen(self) -> None:
        if self.zone.is_healed:
            return
        kind, publisher = self.rng.choice(self.kinds), self.rng.choice(self.zone.publishers)
        places = [
            place
            for place, partition in publisher.outbox._partitions.items()
            if isinstance(partition.account, Account) and partition.account.run and partition.stream.name[0] != "$"
        ]
        if places and publisher.outbox.wanted is None and not publisher.outbox.eaten:
            place = self.rng.choice(places)
            self.zone.log(f"{kind} {publisher.name} {place[0].hex()[:8]}/{place[1]}")
            self.zone.seen[kind] += 1
            getattr(self, kind)(publisher, place)
        self.begin()

    def _due(self, what: str, publisher: "Publisher", place: tuple[bytes, int], why: str) -> Due | None:
        if not self.is_calm:
            return None
        now, ledger = self.zone.loop.now, self.zone.audit.ledger
        due = Due(what, publisher.name, why, place, now, now + ledger.grace_s + SOON_S)
        ledger.due.append(due)
        return due

    def void(self, due: Due | None) -> None:
        ledger = self.zone.audit.ledger
        if due in ledger.due and not ledger.is_reported(due):
            ledger.due.remove(due)

    # -- what happens -------------------------------------------------------------------------------------------------

    def eat(self, publisher: "Publisher", place: tuple[bytes, int]) -> None:
        due = self._due("eat", publisher, place, LATE) if self.kinds == ("eat",) else None
        publisher.outbox.eaten[place] = self.zone.loop.now, due
        publisher.publish_to_all()

    def eaten_again(self, since: float, due: Due | None) -> None:
        """The link is another one. If it was not closed for what is late, but sooner, nothing need be said of it."""
        if self.zone.loop.now - since < self.zone.audit.ledger.grace_s:
            self.void(due)

    def kill(self, publisher: "Publisher", place: tuple[bytes, int]) -> None:
        self.eat(publisher, place)
        life = publisher.life
        self.zone.call_later(self.rng.uniform(0.5, 1.5), lambda: self._kill(publisher, life, place))

    def _kill(self, publisher: "Publisher", life: int, place: tuple[bytes, int]) -> None:
        if publisher.life == life:
            ledger, account = self.zone.audit.ledger, publisher.outbox._partitions[place].account
            assert isinstance(account, Account)
            named = ledger.named.get((publisher.name, place, account.run))
            run = ledger.runs.get(account.run)
            through = run.through if run is not None else account.base
            if place in publisher.outbox.eaten and named is not None and named.named > through:
                self._due("kill", publisher, place, UNCLOSED)
            publisher.replace()

    def forge(self, publisher: "Publisher", place: tuple[bytes, int]) -> None:
        publisher.outbox.wanted = Wanted("forge", place)
        publisher.publish_to_all()

    def forged(self, publisher: "Publisher", partition: PartitionOutbox, parcel: envelope.Parcel) -> None:
        account, ledger = partition.account, self.zone.audit.ledger
        assert isinstance(account, Account)
        ledger.forged.add(account.run)
        for record in read_records(parcel.batch) if read_header(parcel.batch).attributes == 0 else ():
            self.zone.audit.events[int(record.payload.split(b" ", 1)[0])].is_lost = True
        self._due("forge", publisher, (partition.stream.incarnation, partition.number), LOST)
        links = [(publisher.name, name) for name in self.zone.nodes]
        self.zone.call_later(0.05, lambda: [self.zone.network.cut(*each) for each in links])

    def alter(self, publisher: "Publisher", place: tuple[bytes, int]) -> None:
        publisher.outbox.wanted = Wanted("alter", place)
        publisher.publish_to_all()

    def altered(self, publisher: "Publisher", place: tuple[bytes, int]) -> Due | None:
        account = publisher.outbox._partitions[place].account
        assert isinstance(account, Account)
        altered = self.zone.audit.ledger.altered
        if account.run in altered:
            return None  # which is said once of each run
        altered.add(account.run)
        return self._due("alter", publisher, place, ALTERED)

    def lie(self, publisher: "Publisher", place: tuple[bytes, int]) -> None:
        publisher.beacons.lies = place
        publisher.publish_to_all()

    def lied(self, publisher: "Publisher", row: Row) -> None:
        ledger, place = self.zone.audit.ledger, (bytes.fromhex(row.incarnation), row.partition)
        is_new = (publisher.process_name, row.run) not in self._lies
        self._lies.add((publisher.process_name, row.run))
        ledger.liars.add(publisher.process_name)
        if is_new:  # what is missing of a run is told once, until it is there
            self._due("lie", publisher, place, LOST)


def _altered(batch: bytes) -> bytes | None:
    """Another batch of the same size, in a byte that nothing depends on; None if it has none."""
    at = batch.find(PADDING)
    if at < 0:
        return None
    data = bytearray(batch)
    data[at] ^= 1
    data[17:21] = crc32.iscsi(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)
