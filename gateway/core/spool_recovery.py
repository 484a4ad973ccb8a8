"""From the files of a spool to the partitions of an outbox, as the process that was killed has left them.

Files are taken in their order. A partition's live entries are those that were noted and not noted as gone; its batches
on their way are those noted as sent, without the ones that a later batch made void by taking their sequences.

What is damaged is never guessed, for an event must not be in the log twice:

- An event whose payload alone is damaged is one that is missing; its number is known, and so its place.
- Where the rest of a file cannot be read, it may have said that entries were sent, or gone. What was held until then is
  *doubtful*, unless a later record speaks of it: that an entry was sent in a batch, or the entry once more.
- Numbers that are missing behind such a place belong to events that stood there.

All of these become gaps, where the events would have stood. One that is in a batch on its way becomes a gap only if the
sink says that the batch has not arrived.
"""

from typing import Final, NamedTuple

import msgspec

from gateway.core.partition_outbox import Batch, Entry, PartitionOutbox
from gateway.core.spool_format import FileReader, Head, Kind, Owner, Record, read_event, read_gap, read_partition
from protocol.errors import UNREADABLE, FolderInUse
from protocol.gaps import Gap
from protocol.publish import PublishHeaders, read_publish_headers
from protocol.records import Event
from protocol.streams import StreamState

REASON: Final = "spool_damaged"


class Restored(NamedTuple):
    """A partition with the numbers of its entries, and the one that comes next."""

    partition: PartitionOutbox
    numbers: dict[Entry, int]
    next_number: int


class _Sent(NamedTuple):
    first_sequence: int
    first: int
    last: int
    crc: int


class _Place:
    """What the files say of one partition; `entries` by number."""

    def __init__(self, stream: StreamState, number: int) -> None:
        self.stream, self.number = stream, number
        self.entries: dict[int, Entry] = {}
        self.batches: list[_Sent] = []
        self.doubtful: set[int] = set()
        self.next_number = 1

    def put(self, number: int, entry: Entry) -> None:
        self.entries[number] = entry
        self.doubtful.discard(number)
        self.next_number = max(self.next_number, number + 1)

    def sent(self, record: Record) -> None:
        """A batch stays in question as long as an entry of it is held. One that is noted again changes nothing."""
        batch = _Sent(record.sequence, record.number, record.last_number, record.mark)
        self.doubtful.difference_update(range(batch.first, batch.last + 1) if self.doubtful else ())
        if batch not in self.batches:
            self.batches = [
                old for old in self.batches if old.first_sequence < batch.first_sequence and self._holds(old)
            ]
            self.batches.append(batch)

    def gone(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            self.entries.pop(number, None)
            self.doubtful.discard(number)

    def _holds(self, batch: _Sent) -> bool:
        return any(number in self.entries for number in range(batch.first, batch.last + 1))


class Recovery:
    """`read` every file, oldest first, then take `partitions`. `time_ms` is the wall clock's, `now_ms` the outbox's."""

    def __init__(self, owner: Owner, now_ms: int, time_ms: int) -> None:
        self._owner, self._now_ms, self._time_ms = owner, now_ms, time_ms
        self._places: dict[tuple[bytes, int], _Place] = {}
        self._named: dict[int, _Place] = {}  # as the present file calls them
        self.problems: list[str] = []  # what is damaged, and where
        self.lost_events = 0  # that became gaps; known when `partitions` was called

    @property
    def streams(self) -> list[StreamState]:
        """Those that the files speak of, as they were last."""
        return list({place.stream.name: place.stream for place in self._places.values()}.values())

    def read(self, name: str, data: bytes, *, is_last: bool) -> None:
        """Takes what the file `name` has to say.

        FolderInUse: it is another node's. FrameError: a later version has written it.
        """
        reader = FileReader(data)
        head = reader.head()
        if head is not None:
            self._check(name, head)
            self._read(reader)
        if reader.problem and not (reader.is_torn and is_last):
            self.damaged(f"{name}, byte {reader.position}: {reader.problem}")

    def damaged(self, problem: str) -> None:
        """Here something cannot be read: a file, or the rest of one."""
        self.problems.append(problem)
        for place in self._places.values():
            place.doubtful.update(place.entries)

    def _check(self, name: str, head: Head) -> None:
        if head.owner != self._owner:
            theirs, ours = (_who(owner) for owner in (head.owner, self._owner))
            raise FolderInUse(f"{name} is the spool of {theirs}, this is {ours}; give another folder")
        if head.is_whole:
            self._places.clear()
            self.problems.clear()

    def _read(self, reader: FileReader) -> None:
        self._named = {}
        for record in reader.records():
            try:
                problem = self._take(record)
            except UNREADABLE as error:
                problem = f"a record of kind {record.kind.name}: {error}"
            if problem:
                reader.problem, reader.is_torn = problem, False
                return

    def partitions(self) -> list[Restored]:
        """The partitions that hold something."""
        return [self._restore(place) for place in self._places.values() if place.entries]

    # -- records ------------------------------------------------------------------------------------------------------

    def _take(self, record: Record) -> str:
        """Returns why nothing behind it can be understood, if so."""
        if record.kind is Kind.PARTITION:
            return self._name(record)
        place = self._named.get(record.partition)
        if place is None:
            return f"a record of partition {record.partition}, which was not named"
        if record.kind is Kind.SENT:
            place.sent(record)
        elif record.kind is Kind.GONE:
            place.gone(record.number, record.last_number)
        else:
            self._add(place, record)
        return ""

    def _name(self, record: Record) -> str:
        if record.payload is None:
            return "the CRC-32C of a partition is wrong"
        stream, number = read_partition(record.payload)
        place = self._places.setdefault((stream.incarnation, number), _Place(stream, number))
        place.stream = stream
        self._named[record.partition] = place
        return ""

    def _add(self, place: _Place, record: Record) -> None:
        if self.problems and place.next_number > 1:
            for missing in range(place.next_number, record.number):
                place.put(missing, self._missing())
        place.put(record.number, self._entry(record))
        before = self._named.get(record.mark)
        if record.sequence and before is not None:
            before.gone(record.sequence, record.sequence)

    def _entry(self, record: Record) -> Entry:
        if record.payload is None:
            return self._missing()
        if record.kind is Kind.GAP:
            return self._gap(read_gap(record.payload))
        event = read_event(record.payload)
        headers = read_publish_headers(event.header_block) if event.header_block else PublishHeaders()
        return Entry(event, headers, self._now_ms)

    def _missing(self) -> Entry:
        return self._gap(Gap(REASON, 1, self._time_ms, self._time_ms))

    def _gap(self, gap: Gap) -> Entry:
        return Entry(Event(b"", b"", gap.to_ms, b"", b""), PublishHeaders(), self._now_ms, gap)

    # -- at the end ---------------------------------------------------------------------------------------------------

    def _restore(self, place: _Place) -> Restored:
        doubtful = set(place.doubtful)
        for number in doubtful:
            place.entries[number] = self._given_up(place.entries[number])
        partition = PartitionOutbox(place.stream, place.number, 1)
        numbers: dict[Entry, int] = {}
        for sent in place.batches:
            if any(number not in doubtful and number < sent.first for number in place.entries):
                break  # what is on its way stands before what waits: this batch was taken back
            wanted = [number for number in range(sent.first, sent.last + 1) if number in place.entries]
            entries = self._joined(place, wanted, numbers)
            if entries:
                partition.hold(Batch(sent.first_sequence, [*entries], b"", sent.crc))
        for entry in self._joined(place, sorted(place.entries), numbers):
            partition.add(entry)
        return Restored(partition, numbers, place.next_number)

    def _given_up(self, entry: Entry) -> Entry:
        if entry.gap is not None:
            return entry
        return self._gap(Gap(REASON, 1, entry.event.timestamp_ms, entry.event.timestamp_ms))

    def _joined(self, place: _Place, wanted: list[int], numbers: dict[Entry, int]) -> list[Entry]:
        """Takes these entries out of `place`, in order; events that are missing side by side become one gap."""
        entries: list[Entry] = []
        for number in wanted:
            entry = place.entries.pop(number)
            if _is_lost(entry):
                self.lost_events += entry.sequences
                if entries and _is_lost(entries[-1]):
                    _grow(entries[-1], entry)
                    continue
            entries.append(entry)
            numbers[entry] = number
        return entries


def _who(owner: Owner) -> str:
    return f"worker {owner.worker} of {owner.node} in zone {owner.zone} of mesh {owner.mesh}"


def _is_lost(entry: Entry) -> bool:
    return entry.gap is not None and entry.gap.reason == REASON


def _grow(entry: Entry, other: Entry) -> None:
    one, two = entry.gap, other.gap
    if one is not None and two is not None:
        times = {"from_ms": min(one.from_ms, two.from_ms), "to_ms": max(one.to_ms, two.to_ms)}
        entry.gap = msgspec.structs.replace(one, events=one.events + two.events, **times)
