"""The files of a journal: made ahead, begun, recycled.

    recycled ─┐                       header, first VOTE, fsync
    new ──────┴─► zeroed: `spare` ─────────────────────────────► <number:016x>.journal ─► recycled or unlinked

A file is written full of zeros and fsynced before it is used, so that an fdatasync of an entry never has to write
metadata (measured: 2.5 times the throughput of a growing file) and a full disk shows before an entry needs the room.
It gets its number only after its header and first record were fsynced and the file before it is fsynced whole: in a
journal on disk only the last file can have a torn tail.
"""

import os
import threading
from pathlib import Path
from typing import Final

from protocol.limits import ZERO_CHUNK_BYTES
from sinkd.core.formats import (
    JOURNAL_HEADER_BYTES,
    MARK_BYTES,
    JournalHeader,
    Kind,
    encode_journal_header,
    encode_record,
    journal_seed,
    record_size,
)
from sinkd.shell.files import SharedFile, rename, sync_folder, unlink, write_at

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
        """Of all files, spare included."""
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
        # Until it has its number, its name is the spare's: whoever made the next one meanwhile would zero this one.
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
            record = encode_record(file.seed, JOURNAL_HEADER_BYTES, Kind.VOTE, term, index, payload)
            write_at(descriptor, [encode_journal_header(header._replace(file_bytes=file_bytes)), *record], 0)
            os.fdatasync(descriptor)
            rename(self.folder / SPARE_NAME, file.path)
            self._spare = None
        self._by_number[file.number] = file
        return file, JOURNAL_HEADER_BYTES + record_size(len(payload))

    def _make(self, size_bytes: int) -> int:
        path, flags = self.folder / SPARE_NAME, os.O_RDWR | os.O_CLOEXEC
        if self._recycled and size_bytes == self.file_bytes:
            rename(self.folder / RECYCLED_NAME, path)
            self._recycled = False
        else:
            flags |= os.O_CREAT | os.O_EXCL
        descriptor = os.open(path, flags, 0o600)
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
            # A file that somebody still reads must not be zeroed under him.
            if closed and not self._recycled and file.file_bytes == self.file_bytes:
                rename(file.path, self.folder / RECYCLED_NAME)
                self._recycled = True
            else:
                unlink(file.path)

    def remove_leftovers(self) -> None:
        """What a crash left: spare and recycled files hold nothing. Call it before anything is made."""
        for name in (SPARE_NAME, RECYCLED_NAME):
            if (self.folder / name).exists():
                unlink(self.folder / name)

    def close(self) -> None:
        for file in self._by_number.values():
            file.retire()
        with self._making:
            if self._spare:
                os.close(self._spare[0])
                self._spare = None
