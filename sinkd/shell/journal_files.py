"""The files of a journal: made ahead, begun, recycled.

    made anew, zeros ─┐            header, first VOTE, fsync
    `recycled` ───────┴─► `spare` ───────────────────────────► <number:016x>.journal ─► `recycled` or unlinked

A file is written full of zeros and fsynced when it is made, so that an fdatasync of an entry never has to write
metadata (measured: 2.5 times the throughput of a growing file) and a full disk shows before an entry needs the room.
When nothing in it is needed any more, it is used again as it lies, under a higher number: to fill it with zeros once
more would be a third of all that a sink writes. So behind the records of a file lie zeros, or *stale bytes* of its
earlier lives. Why no stale record can come back:

- Checksums begin with a seed made of the journal's id and the file's number, and with the position. A number is used
  once, and is higher than all before it. The seeds of two numbers differ for sure (a CRC-32 finds every change within
  32 bits in a row), and then so do the checksums of the same bytes. A file that was left over by a process that has
  ended is kept only if its header names a number that was begun, or is zeros.
- Other bytes, from the middle of an old record, pass by a chance of one in 2^32, as do those of a torn write.
- Bytes of *this* life can lie behind the end after a crash only: a later page was kept, an earlier one lost. Before
  anything is added, recovery overwrites all that lies behind the end with zeros, and syncs them.

Every write goes on with zeros to the end of its page. So the kernel need not read that page first, where a recycled
file is not in memory any more (measured: 0.05 instead of 0.4 to 0.7 ms for 100 KB); and other bytes right behind the
last record tell of a write that was torn.

A file gets its number only after its header and first record were fsynced and the file before it is fsynced whole: in a
journal on disk only the last file can have a torn tail.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.limits import ZERO_CHUNK_BYTES
from sinkd.core.formats import (
    JOURNAL_HEADER_BYTES,
    JOURNAL_PAGE_BYTES,
    MARK_BYTES,
    BadBytes,
    JournalHeader,
    Kind,
    decode_journal_header,
    encode_journal_header,
    encode_record,
    journal_seed,
    record_size,
)
from sinkd.shell.files import SharedFile, read_at, rename, sync_folder, unlink, write_at

SPARE_NAME: Final = "spare"
RECYCLED_NAME: Final = "recycled"
_ZEROS: Final = bytes(ZERO_CHUNK_BYTES)


class JournalFile(SharedFile):
    """One numbered file, open for reading and writing; `seed` is where its checksums begin."""

    def __init__(self, path: Path, descriptor: int, number: int, seed: int, file_bytes: int) -> None:
        super().__init__(path, descriptor)
        self.number, self.seed, self.file_bytes = number, seed, file_bytes

    def fits(self, position: int, size_bytes: int) -> bool:
        """Whether a record of that size fits at `position` and leaves room for the SYNCED mark behind it."""
        return position + size_bytes + MARK_BYTES <= self.file_bytes

    def write(self, record: Sequence[bytes], position: int) -> None:
        """The record at `position`, and zeros behind it to the end of its page. OSError: what is there is unknown."""
        end = position + sum(map(len, record))
        zeros = min(-end % JOURNAL_PAGE_BYTES, self.file_bytes - end)
        write_at(self.descriptor, [*record, _ZEROS[:zeros]], position)


def vote_payload(term: int, voted_for: str | None) -> tuple[int, int, bytes]:
    """(term, index, payload) of the VOTE record."""
    return (term, 0, b"") if voted_for is None else (term, 1, voted_for.encode())


def write_zeros(descriptor: int, start: int, end: int) -> None:
    """Zeros over bytes `start` to `end`; not synced."""
    while start < end:
        size_bytes = min(ZERO_CHUNK_BYTES, end - start)
        write_at(descriptor, [_ZEROS[:size_bytes]], start)
        start += size_bytes


class JournalFiles:
    """The numbered files of one journal, oldest first, and at most one spare and one recycled file beside them.

    `prepare_spare` may run on a thread of its own while the others are called.
    """

    def __init__(self, folder: Path, journal_id: bytes, file_bytes: int, files: list[JournalFile]) -> None:
        self.folder, self.file_bytes = folder, file_bytes
        self.journal_id = journal_id
        self._by_number = {file.number: file for file in files}
        self._making = threading.Lock()
        self._spare: tuple[int, int] | None = None  # descriptor, size in bytes
        self._recycled = False

    def get(self, number: int) -> JournalFile | None:
        return self._by_number.get(number)

    def __len__(self) -> int:
        return len(self._by_number)

    @property
    def spare_bytes(self) -> int:
        """Size of the spare file, 0 without one."""
        spare = self._spare
        return spare[1] if spare else 0

    @property
    def size_bytes(self) -> int:
        """Of all files, spare and recycled one included."""
        files = sum(file.file_bytes for file in list(self._by_number.values()))
        return files + self.spare_bytes + (self.file_bytes if self._recycled else 0)

    # -- making and beginning -----------------------------------------------------------------------------------------

    def size_for(self, record_bytes: int, voted_for: str | None) -> int:
        """The size of a file whose first record after the vote has `record_bytes`."""
        vote_bytes = record_size(len(vote_payload(0, voted_for)[2]))
        return max(self.file_bytes, JOURNAL_HEADER_BYTES + vote_bytes + record_bytes + MARK_BYTES)

    def prepare_spare(self, size_bytes: int) -> None:
        """Has a spare of at least `size_bytes` when it returns. OSError (disk full) leaves all as it was."""
        with self._making:
            self._have_spare(size_bytes)

    def _have_spare(self, size_bytes: int) -> tuple[int, int]:
        if self._spare is None or self._spare[1] < size_bytes:
            self._drop_spare()
            self._spare = self._make(size_bytes), size_bytes
        return self._spare

    def begin(self, header: JournalHeader, vote: tuple[int, str | None], size_bytes: int) -> tuple[JournalFile, int]:
        """Makes the spare (one is made if need be) the file `header.number`; durable, with the position behind VOTE.

        `header.file_bytes` is filled in here. The file before it must be fsynced already.
        """
        # Until it has its number, its name is the spare's: whoever made the next one meanwhile would take this one.
        with self._making:
            descriptor, file_bytes = self._have_spare(size_bytes)
            file = JournalFile(
                self.folder / f"{header.number:016x}.journal",
                descriptor,
                header.number,
                journal_seed(self.journal_id, header.number),
                file_bytes,
            )
            term, index, payload = vote_payload(*vote)
            head = encode_journal_header(header._replace(file_bytes=file_bytes))
            vote_head, *rest = encode_record(file.seed, JOURNAL_HEADER_BYTES, Kind.VOTE, term, index, payload)
            file.write((head + vote_head, *rest), 0)
            os.fdatasync(descriptor)
            rename(self.folder / SPARE_NAME, file.path)
            self._spare = None
        self._by_number[file.number] = file
        return file, JOURNAL_HEADER_BYTES + record_size(len(payload))

    def _make(self, size_bytes: int) -> int:
        path = self.folder / SPARE_NAME
        if self._recycled and size_bytes == self.file_bytes:
            descriptor = os.open(self.folder / RECYCLED_NAME, os.O_RDWR | os.O_CLOEXEC)
            rename(self.folder / RECYCLED_NAME, path)
            self._recycled = False
            return descriptor
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_zeros(descriptor, 0, size_bytes)
            os.fsync(descriptor)
            sync_folder(self.folder)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        return descriptor

    def _drop_spare(self) -> None:
        if self._spare:
            descriptor, _ = self._spare
            self._spare = None
            os.close(descriptor)
            unlink(self.folder / SPARE_NAME)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def drop_before(self, number: int) -> None:
        """Recycles or unlinks the files below `number`, oldest first: a crash in between leaves no hole."""
        for old in sorted(other for other in self._by_number if other < number):
            file = self._by_number.pop(old)
            closed = file.retire()
            # A file that somebody still reads must not be written to under him.
            if closed and not self._recycled and file.file_bytes == self.file_bytes:
                rename(file.path, self.folder / RECYCLED_NAME)
                self._recycled = True
            else:
                unlink(file.path)

    def take_leftovers(self) -> None:
        """Keeps or removes the spare and the recycled file that an earlier process left. Before anything is made."""
        spare = self._open_leftover(SPARE_NAME)
        if spare is not None:
            self._spare = spare, self.file_bytes
        recycled = self._open_leftover(RECYCLED_NAME)
        if recycled is not None:
            os.close(recycled)
            self._recycled = True

    def _open_leftover(self, name: str) -> int | None:
        path = self.folder / name
        if not path.exists():
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        is_whole = os.fstat(descriptor).st_size == self.file_bytes
        if is_whole and self._is_of_before(read_at(descriptor, JOURNAL_HEADER_BYTES, 0)):
            return descriptor
        os.close(descriptor)
        unlink(path)
        return None

    def _is_of_before(self, head: bytes) -> bool:
        """Whether a file that begins so can hold no record of a number that is still to come."""
        if not head.strip(b"\0"):
            return True
        try:
            header = decode_journal_header(head)
        except BadBytes:
            return False
        return header.journal_id == self.journal_id and header.number <= max(self._by_number, default=0)

    def close(self) -> None:
        for file in self._by_number.values():
            file.retire()
        with self._making:
            if self._spare:
                os.close(self._spare[0])
                self._spare = None
