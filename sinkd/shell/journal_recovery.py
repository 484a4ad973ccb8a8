"""Reading a journal back after a stop of any kind: what is whole, what was torn, what is damaged.

Every file but the last is known to be fsynced, and the header of the next one says where its records end: anything
wrong in it is damage. In the last file, bad bytes are damage if they lie in its head (fsynced before the file had its
number) or if a SYNCED mark behind them says that they were fsynced. Else the journal ends there: what lies behind is
the torn tail of a write that nobody was told had happened, or stale bytes of an earlier life of the file, or both. It
need not be known which: all of it is overwritten with zeros, unless it is zeros, before anything is added. That is at
most one file, and once: zeros stay until they are written over. 'Bad' includes zeros in front of other bytes, since a
crash may keep a later page and lose an earlier one. Damage to stale bytes is no damage.

A file may begin behind a gap in the entries: the leader's checkpoint took the place of all before it (`Journal.reset`).
Whether there is such a checkpoint is for the caller to say; the files before that one go, if a crash has left some.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from protocol.errors import DamagedFile
from sinkd.core.entries import EntryTable
from sinkd.core.formats import (
    JOURNAL_HEADER_BYTES,
    JOURNAL_PAGE_BYTES,
    RECORD_HEADER_BYTES,
    BadBytes,
    JournalHeader,
    JournalRecord,
    Kind,
    decode_journal_header,
    decode_record,
    find_synced_beyond,
    journal_seed,
)
from sinkd.shell.files import read_at
from sinkd.shell.journal_files import JournalFile, write_zeros

log = structlog.get_logger()

_FILE_NAME: Final = re.compile(r"([0-9a-f]{16})\.journal")


@dataclass
class Recovered:
    """What the files say. `end` is the position (bytes) behind the last record of the last file."""

    files: list[JournalFile] = field(default_factory=list)
    entries: EntryTable = field(default_factory=lambda: EntryTable(1))
    term: int = 0
    voted_for: str | None = None
    end: int = 0
    ends_with_mark: bool = False
    begins_in: int = 0  # the number of the file that the entries begin in, if not in the first


def recover(folder: Path, journal_id: bytes) -> Recovered:
    """Reads all files in `folder` in order; cuts a torn tail. The caller closes `files`.

    DamagedFile: with file and position. OSError: the disk does not let us read.
    """
    recovered = Recovered()
    try:
        headers = [_open(recovered, path, number, journal_id) for number, path in _numbered(folder)]
        for position, header in enumerate(headers):
            following = headers[position + 1] if position + 1 < len(headers) else None
            _File(recovered, recovered.files[position], header).read(following)
    except BaseException:  # whatever it was, the descriptors are nobody's now
        for file in recovered.files:
            file.retire()
        raise
    return recovered


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    """(number, path) of the journal files, in order; DamagedFile where one is missing."""
    names = sorted(path.name for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name))
    expected = None
    for name in names:
        number = int(name[:16], 16)
        if expected is not None and number != expected:
            raise DamagedFile(str(folder / f"{expected:016x}.journal"), 0, f"the file is missing, {name} is there")
        yield number, folder / name
        expected = number + 1


def _open(recovered: Recovered, path: Path, number: int, journal_id: bytes) -> JournalHeader:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    size_bytes = os.fstat(descriptor).st_size
    recovered.files.append(JournalFile(path, descriptor, number, journal_seed(journal_id, number), size_bytes))
    try:
        header = decode_journal_header(read_at(descriptor, JOURNAL_HEADER_BYTES, 0))
    except BadBytes as error:
        raise DamagedFile(str(path), 0, str(error)) from error
    if header.journal_id != journal_id:
        what = f"it belongs to journal {header.journal_id.hex()}, this is {journal_id.hex()}"
        raise DamagedFile(str(path), 0, what)
    if header.number != number:
        raise DamagedFile(str(path), 0, f"its header says that it is file {header.number:016x}")
    if header.file_bytes != size_bytes:
        raise DamagedFile(str(path), min(size_bytes, header.file_bytes), f"it was made with {header.file_bytes} bytes")
    return header


class _File:
    """One pass over one file, which is read whole: its size is what bounds the memory of a recovery."""

    def __init__(self, recovered: Recovered, file: JournalFile, header: JournalHeader) -> None:
        self._recovered, self._file, self._header = recovered, file, header
        self._data = read_at(file.descriptor, file.file_bytes, 0)

    def read(self, following: JournalHeader | None) -> None:
        entries = self._recovered.entries
        if self._file is self._recovered.files[0]:
            self._recovered.entries = EntryTable(self._header.first_index)
        elif self._header.first_index > entries.next_index:  # a checkpoint took the place of what is before
            self._recovered.entries = EntryTable(self._header.first_index)
            self._recovered.begins_in = self._file.number
        elif self._header.first_index != entries.next_index:
            what = f"it was begun at entry {self._header.first_index}, the files before it end at {entries.next_index}"
            raise self._damaged(0, what)
        end = self._read_last() if following is None else self._read_whole(following)
        self._recovered.end = end

    def _read_whole(self, following: JournalHeader) -> int:
        position = JOURNAL_HEADER_BYTES
        while position < following.previous_end:
            try:
                record = self._record_at(position)
            except BadBytes as error:
                raise self._damaged(position, str(error)) from error
            position += self._take(record, position)
        if position != following.previous_end:
            raise self._damaged(position, f"the next file says that the records end at {following.previous_end}")
        return position

    def _read_last(self) -> int:
        position, why = JOURNAL_HEADER_BYTES, ""
        while not why:
            try:
                record = self._record_at(position)
            except BadBytes as error:
                why = str(error)
            else:
                position += self._take(record, position)
        if position == JOURNAL_HEADER_BYTES:
            raise self._damaged(position, f"its first record is bad: {why}")
        self._clear_behind(position, why)
        return position

    def _record_at(self, position: int) -> JournalRecord:
        record = decode_record(self._data, position, position, self._file.seed)
        if record is None:
            raise BadBytes("zeros where a record should be")
        return record

    def _clear_behind(self, position: int, why: str) -> None:
        """Zeros behind the last record, on the disk: nothing that was written there before may be read again."""
        last = len(self._data.rstrip(b"\0"))
        if last <= position:
            return
        synced = find_synced_beyond(self._data, position, self._file.number, self._file.seed)
        if synced is not None:
            raise self._damaged(position, f"{why}; a mark says that bytes up to {synced} were synced")
        descriptor = self._file.descriptor
        write_zeros(descriptor, position, last)
        os.fdatasync(descriptor)
        where = {"file": str(self._file.path), "position": position}
        if any(self._data[position : position + -position % JOURNAL_PAGE_BYTES]):  # whole writes leave zeros there
            log.warning("journal_tail_cut", reason=why, **where)
        else:
            log.info("journal_tail_cleared", bytes=last - position, **where)

    def _take(self, record: JournalRecord, position: int) -> int:
        """Notes what the record says; its size in bytes."""
        recovered, entries, index = self._recovered, self._recovered.entries, record.raft_index
        if position == JOURNAL_HEADER_BYTES and record.kind != Kind.VOTE:
            raise self._damaged(position, f"its first record is of kind {record.kind}, not a vote")
        if record.kind == Kind.ENTRY:
            if index != entries.next_index:
                raise self._damaged(position, f"entry {index} where entry {entries.next_index} should be")
            entries.append(record.term, self._file.number, position, record.length)
        elif record.kind == Kind.TRUNCATE:
            if index > entries.next_index:
                raise self._damaged(position, f"entries from {index} on are void, but {entries.next_index} is next")
            entries.truncate(index)
        elif record.kind == Kind.VOTE:
            start = position + RECORD_HEADER_BYTES
            node = self._data[start : start + record.length].decode()
            recovered.term, recovered.voted_for = record.term, node if index else None
        elif record.kind != Kind.SYNCED:
            raise self._damaged(position, f"a record of the unknown kind {record.kind}")
        recovered.ends_with_mark = record.kind == Kind.SYNCED and record.term == position  # not of a sync before it
        return record.size_bytes

    def _damaged(self, position: int, what: str) -> DamagedFile:
        return DamagedFile(str(self._file.path), position, what)
