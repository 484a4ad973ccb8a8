"""What a simulated zone has promised, and whether it is true: entries, leaders, batches, answers, and what is read.

The audit knows every entry that any sink has ever applied. A later one of the same index has to be the same, a state
after it too; so a committed entry that was lost shows as soon as another one takes its place.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastcrc import crc32

from protocol import coverage
from protocol.audit import CONFIGURATION_CHANGED, MEMBERSHIP_CHANGED, STREAM
from protocol.records import CONTROL, check_batch, place_batch, read_header, read_records
from simulation.audit import Violation
from simulation.zone_ledger import Ledger
from sinkd.core.machine import GapRecorded, Machine, Mirrored, Placement, Taken, Trimmed

SNAPSHOT_EVERY = 8  # entries
WALL_MS = 1_700_000_000_000


@dataclass(eq=False)
class Event:
    """One publish of one connection of one gateway."""

    number: int
    connection: tuple[str, int, int]  # gateway, which life of it, connection
    reply: str
    answer: dict[str, Any] | None = None
    places: list[tuple[tuple[bytes, int], int]] = field(default_factory=list)
    is_lost: bool = False  # its gateway was told that it is in the log, and it is not


def is_promised(promise: object, broken: str) -> None:
    if not promise:
        raise Violation(broken)


class Placed(NamedTuple):
    base_offset: int
    next_offset: int
    data: bytes


class GroupAudit:
    """What one Raft group has promised."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[int, int]] = {}  # index → term, CRC-32C
        self.last_index = 0  # of these
        self._states: dict[int, tuple[str, int]] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self.leaders: dict[int, str] = {}

    def leads(self, term: int, who: str) -> None:
        there = self.leaders.setdefault(term, who)
        is_promised(there == who, f"two leaders in term {term}: {there} and {who}")

    def votes(self, name: str, term: int, candidate: str) -> None:
        """The vote of sink `name` has left it."""
        there = self._votes.setdefault((name, term), candidate)
        is_promised(there == candidate, f"{name} votes in term {term} for {there} and for {candidate}")

    def applied(self, who: str, index: int, term: int, data: bytes) -> bool:
        """Sink `who` has applied entry `index`; whether it is the first to do so."""
        entry = term, crc32.iscsi(data)
        known = self.entries.get(index)
        is_promised(known in (None, entry), f"{who} applies another entry {index} {entry}, others {known}")
        self.entries[index] = entry
        self.last_index = max(self.last_index, index)
        return known is None

    def state(self, who: str, index: int, machine: Machine) -> None:
        """The state of `who` right after it has applied entry `index`, one of SNAPSHOT_EVERY."""
        state = crc32.iscsi(machine.snapshot())
        first, known = self._states.setdefault(index, (who, state))
        is_promised(state == known, f"after entry {index}, {who} has another state than {first}")


class ZoneAudit:
    """Hears of everything, believes nothing. `origin` is the audit of the other zone, whose logs this one mirrors."""

    origin: "ZoneAudit | None" = None

    def __init__(self, groups: int, ledger: Ledger, skew_ms: Callable[[str], int]) -> None:
        """`skew_ms` says how far the clock of a sink is off."""
        self.ledger, self._skew_ms = ledger, skew_ms
        self.starts: dict[tuple[bytes, int], int] = {}  # what retention has let go of
        self.mirrored = self.gaps = 0  # batches
        self.groups = [GroupAudit() for _ in range(groups)]
        self.events: list[Event] = []
        self._by_reply: dict[str, Event] = {}
        self.logs: dict[tuple[bytes, int], list[Placed]] = defaultdict(list)
        self.own: set[tuple[bytes, int]] = set()  # those that are no mirrors
        self._noted_changes: set[tuple[int, str]] = set()
        self._last_of_connection: dict[tuple[Any, ...], int] = {}
        self.acknowledged = self.refused = self.reads = self.probes = self.statements = 0

    def applied(self, group: int, who: str, index: int, term: int, data: bytes, result: Any) -> None:
        """Sink `who` has applied entry `index` of a group."""
        if not self.groups[group].applied(who, index, term, data):
            return
        self.ledger.applied(group, data, result)
        for taken in result if isinstance(result, list) else ():
            assert isinstance(taken, Taken)
            if taken.placement is not None:
                self._committed(taken.placement, data, term)
        if isinstance(result, GapRecorded) and result.placement is not None:
            self._committed(result.placement, data, term)
        if isinstance(result, Trimmed):
            self.starts[result.stream.incarnation, result.partition] = result.start_offset
        for placement in result.placements if isinstance(result, Mirrored) else ():
            self._copied(placement, data)

    # -- the log ------------------------------------------------------------------------------------------------------

    def _committed(self, placement: Placement, command: bytes, term: int) -> None:
        key = placement.stream.incarnation, placement.partition
        self.own.add(key)
        log = self.logs[key]
        end = log[-1].next_offset if log else 0
        is_promised(placement.base_offset == end, f"a batch at offset {placement.base_offset}, the log ends at {end}")
        batch = command[placement.position : placement.position + placement.header.size_bytes]
        check_batch(batch)
        placed = place_batch(batch, end, term)
        for record in read_records(placed) if placement.header.attributes != CONTROL else ():
            if placement.stream.name == STREAM:
                self._noted(json.loads(record.payload))
            elif placement.stream.name == coverage.STREAM:
                self.ledger.heard(record, self._skew_ms, WALL_MS)
            else:
                self._stored(key, record.offset, int(record.payload.split(b" ", 1)[0]))
        log.append(Placed(end, end + placement.header.last_offset_delta + 1, placed))
        self.ledger.placed(key, end, placed)

    def _copied(self, placement: Placement, command: bytes) -> None:
        """A batch of a mirror is the very one that its origin has there, or a gap where that has nothing any more."""
        assert self.origin is not None
        key = placement.stream.incarnation, placement.partition
        log = self.logs[key]
        base, end = placement.base_offset, placement.header.next_offset
        where = f"offset {base} of {placement.stream.name}/{placement.partition}"
        is_promised(base == (log[-1].next_offset if log else 0), f"{where} is no end of the mirror")
        batch = command[placement.position : placement.position + placement.header.size_bytes]
        self.mirrored += 1
        known = {placed.base_offset: placed.data for placed in self.origin.logs.get(key, ())}
        if placement.header.attributes == CONTROL and known.get(base) != batch:
            self.gaps += 1
            starts = self.origin.starts.get(key, 0)
            is_promised(end <= starts, f"{where}: a gap up to {end}, its origin begins at {starts}")
        else:
            is_promised(known.get(base) == batch, f"{where} is not what its origin wrote")
        log.append(Placed(base, end, batch))
        self.ledger.placed(key, base, batch)

    def is_durable(self, key: tuple[bytes, int], through: int) -> bool:
        """Whether the mirror holds all below, for good."""
        return through <= (self.logs[key][-1].next_offset if self.logs.get(key) else 0)

    def lacks(self) -> list[str]:
        """What of its origin's logs it has not got."""
        logs = self.origin.logs if self.origin is not None else {}
        ends = {key: logs[key][-1].next_offset for key in logs if key in self.origin.own}
        return [
            f"{key[0].hex()[:8]}/{key[1]} up to {end}" for key, end in ends.items() if not self.is_durable(key, end)
        ]

    def _noted(self, event: dict[str, Any]) -> None:
        """What every sink has seen is written by one of them, once."""
        if event["kind"] in (CONFIGURATION_CHANGED, MEMBERSHIP_CHANGED):
            what = event["time"], event["what"]
            is_promised(what not in self._noted_changes, f"{what} is in the audit stream a second time")
            self._noted_changes.add(what)

    def _stored(self, key: tuple[bytes, int], offset: int, number: int) -> None:
        event = self.events[number]
        is_promised(not event.places, f"{event} is in the log a second time, at {key} {offset}")
        refused = event.answer is not None and "error" in event.answer
        is_promised(not refused, f"{event} was refused, and is in the log")
        order = *key, event.connection
        before = self._last_of_connection.get(order, -1)
        is_promised(before < number, f"{event} stands behind {before}")
        self._last_of_connection[order] = number
        event.places.append((key, offset))

    def check_batches(self, who: str, key: tuple[bytes, int], data: bytes) -> int:
        """Batches that `who` hands out are the committed ones; the offset behind them.

        Byte for byte but for the leader epoch, which neither CRC nor digest covers: a disk may have spoilt it.
        """
        known = {placed.base_offset: placed for placed in self.logs.get(key, ())}
        position, end = 0, 0
        while position < len(data):
            header = read_header(data, position)
            batch = data[position : position + header.size_bytes]
            placed = known.get(header.base_offset)
            is_promised(
                placed is not None and _without_epoch(batch) == _without_epoch(placed.data),
                f"{who} hands out another batch at {header.base_offset}",
            )
            position += header.size_bytes
            end = header.next_offset
        self.reads += 1
        return end

    # -- answers ------------------------------------------------------------------------------------------------------

    def published(self, connection: tuple[str, int, int], *, asks: bool) -> Event:
        number = len(self.events)
        event = Event(number, connection, f"_INBOX.{number}" if asks else "")
        self.events.append(event)
        if asks:
            self._by_reply[event.reply] = event
        return event

    def answered(self, reply: str, body: bytes, incarnations: dict[str, bytes]) -> None:
        event, answer = self._by_reply[reply], json.loads(body)
        is_promised(event.answer is None, f"a second answer {answer} to {event}")
        event.answer = answer
        if event.is_lost:
            return
        if "error" in answer:
            self.refused += 1
            is_promised(not event.places, f"{event} was refused, and is in the log")
            return
        self.acknowledged += 1
        place = (incarnations[answer["stream"]], answer["partition"]), answer["offset"]
        is_promised(event.places == [place], f"{event} was acknowledged at {place}, no sink has applied that")

    # -- at the end ---------------------------------------------------------------------------------------------------

    def settled(self, living: Iterable[tuple[str, int]]) -> None:
        """Gateways of these names and lives have sent all that they had."""
        for event in self.events:
            if event.connection[:2] in set(living):
                done = event.is_lost or event.places or (event.answer is not None and "error" in event.answer)
                is_promised(done, f"lost: {event}")


def _without_epoch(batch: bytes) -> bytes:
    return place_batch(batch, read_header(batch).base_offset, 0)
