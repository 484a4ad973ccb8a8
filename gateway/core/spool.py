"""The spool: what the outbox does, as records of files from which another process can go on after this one was killed.

    outbox ─► Spool.add · sent · gone ─► out ─► a file ─► (SIGKILL) ─► gateway.core.spool_recovery ─► outbox

An event is noted when it is taken, a batch when it gets its sequences and before it leaves, and that an event is gone
when its outcome is known. So the files say at any prefix of theirs which events were held, and which of them were on
their way under which sequences: the state in which a gateway has just lost its link. What the sink then says of its
producer settles the rest as it does after any loss of a link, and every event is in the log once.

The entries of a partition are numbered in their order; a number stays with its entry when that is written again, and
means the same entry in all files. Files are given up oldest first, when no entry that stands in them is held any more;
one that lives on in an old file is written again, so that one slow partition does not keep the rest of that file.

Only the bytes are made here; `gateway.shell.spool` writes them.
"""

from typing import NamedTuple

from gateway.core.partition_outbox import Batch, Entry, PartitionOutbox
from gateway.core.spool_format import Kind, pack, pack_entry, pack_partition

_Key = tuple[bytes, int]  # incarnation of the stream, number of the partition


class _Kept(NamedTuple):
    partition: PartitionOutbox
    number: int
    file: int


class Spool:
    """`out` is what waits to be written to the file numbered `file`; `written` says that it is there."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.file = 0
        self._kept: dict[Entry, _Kept] = {}
        self._held: dict[int, int] = {}  # entries by the file that they stand in
        self._next: dict[_Key, int] = {}
        self._references: dict[_Key, int] = {}  # of the partitions that `file` has named so far
        self._gaps: dict[Entry, PartitionOutbox] = {}  # that have grown since they were noted
        self._gone: dict[Entry, _Kept] = {}  # and not noted as gone yet

    @property
    def events(self) -> int:
        """How many entries the files hold that are still needed."""
        return len(self._kept)

    def held(self, file: int) -> int:
        """How many entries stand in `file` that are still needed."""
        return self._held.get(file, 0)

    # -- what the outbox does -----------------------------------------------------------------------------------------

    def add(self, partition: PartitionOutbox, entry: Entry) -> None:
        """The entry is at the end of the partition; or it is a gap there that has grown.

        One that has just left another partition has moved: that is one record, for a write may be cut between two.
        """
        if entry not in self._kept:
            key = _key(partition)
            number = self._next.get(key, 1)
            self._next[key] = number + 1
            self._keep(partition, entry, number, self._gone.pop(entry, None))
        elif entry.gap is not None:
            self._gaps[entry] = partition

    def sent(self, partition: PartitionOutbox, batch: Batch) -> None:
        """The batch has its sequences and is to leave. Batches from them on that were sent before it are void."""
        self._note_gaps()
        ends = batch.entries[0], batch.entries[-1]
        first, last = (self._kept[held].number for held in ends if isinstance(held, Entry))
        self.out += pack(
            Kind.SENT,
            self._reference(partition),
            number=first,
            last_number=last,
            sequence=batch.first_sequence,
            mark=batch.crc,
        )

    def gone(self, entry: Entry) -> None:
        """The outcome of the entry is known, and those who wait for it are told."""
        kept = self._gone[entry] = self._kept.pop(entry)
        self._gaps.pop(entry, None)
        self._held[kept.file] -= 1

    # -- files --------------------------------------------------------------------------------------------------------

    def restore(self, partition: PartitionOutbox, numbers: dict[Entry, int], next_number: int) -> None:
        """Notes anew what was recovered, under the numbers that it has had."""
        self._next[_key(partition)] = next_number
        for entry in partition.entries():
            self._keep(partition, entry, numbers[entry])
        self._note_batches(partition)

    def move(self, file: int, bytes_max: int) -> None:
        """Notes anew, for the file that is written now, what is still needed of the oldest one: about `bytes_max`."""
        partitions = {}
        while self.held(file) and len(self.out) < bytes_max:
            entry, kept = next(iter(self._kept.items()))  # they stand in the order of their files
            del self._kept[entry]
            self._held[file] -= 1
            self._keep(kept.partition, entry, kept.number)
            partitions[_key(kept.partition)] = kept.partition
        for partition in partitions.values():
            self._note_batches(partition)

    def finish(self) -> bytearray:
        """All that is to be written."""
        self._note_gaps()
        self._note_gone()
        return self.out

    def written(self) -> None:
        """What `finish` returned is in the file."""
        self.out = bytearray()

    def begin(self, file: int) -> None:
        """Goes on in another file; all is written that there was to write."""
        self._held = {number: count for number, count in self._held.items() if count}
        self._references.clear()
        self.file = file

    # -- parts --------------------------------------------------------------------------------------------------------

    def _keep(self, partition: PartitionOutbox, entry: Entry, number: int, before: _Kept | None = None) -> None:
        self._kept[entry] = _Kept(partition, number, self.file)
        self._held[self.file] = self._held.get(self.file, 0) + 1
        place = (self._reference(before.partition), before.number) if before is not None else (0, 0)
        self.out += pack_entry(self._reference(partition), number, entry.gap or entry.event, before=place)

    def _reference(self, partition: PartitionOutbox) -> int:
        """By which number `file` calls the partition; it is named there first."""
        key = _key(partition)
        reference = self._references.get(key)
        if reference is None:
            reference = self._references[key] = len(self._references)
            self.out += pack_partition(reference, partition.stream, partition.number)
        return reference

    def _note_batches(self, partition: PartitionOutbox) -> None:
        for batch in partition.in_flight:
            if batch.entries:
                self.sent(partition, batch)

    def _note_gaps(self) -> None:
        for entry, partition in self._gaps.items():
            self.out += pack_entry(self._reference(partition), self._kept[entry].number, entry.gap or entry.event)
        self._gaps.clear()

    def _note_gone(self) -> None:
        """Entries side by side in one record."""
        ranges: list[tuple[PartitionOutbox, int, int]] = []
        for kept in self._gone.values():
            partition, first, last = ranges[-1] if ranges else (None, 0, 0)
            if partition is kept.partition and last + 1 == kept.number:
                ranges[-1] = kept.partition, first, kept.number
            else:
                ranges.append((kept.partition, kept.number, kept.number))
        for partition, first, last in ranges:
            self.out += pack(Kind.GONE, self._reference(partition), number=first, last_number=last)
        self._gone.clear()


def _key(partition: PartitionOutbox) -> _Key:
    return partition.stream.incarnation, partition.number
