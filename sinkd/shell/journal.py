"""The journal: everything that Raft promised, in one ordered, checksummed, fsynced stream of records.

PySyncObj sees a list of entries `(command, index, term)` and a term with a vote; on disk both are records of the same
stream (`sinkd.core.formats`), so that no crash can reorder them. Commands stay in the files: memory holds 20 bytes for
each entry, and a command is read, and its checksum verified, when somebody looks at it. Only those that were added last
are at hand as they were given: a leader applies a command, and sends it to each follower, soon after it was added.

    add, setCurrentTerm, deleteEntriesFrom ─► pwrite at once ─► sync(): fdatasync, then a SYNCED mark
    checkpoint written ─► cut(index): files that hold only older entries are recycled
    leader's checkpoint written ─► reset(index): the next file begins behind it, all older ones are recycled

One thread adds. `sync` may run on another one meanwhile: it covers what was added before it began, and `synced_index`
says how far that goes. `cut`, `reset` and `roll_early` may run on another one while nothing is added. `read` works from
any thread, any time.

A write or an fdatasync that has failed is final (the kernel may have dropped the pages and forgotten it): `failed` is
set and every later add and sync raises, until the process has ended and read the journal anew.

What PySyncObj must not do with its journal, and why, stands with `clear`, `deleteEntriesTo` and `setRaftCommitIndex`.
"""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, overload

from protocol.errors import DamagedFile
from protocol.limits import (
    JOURNAL_FILE_BYTES,
    JOURNAL_FILE_BYTES_MIN,
    JOURNAL_RECENT_BYTES,
    JOURNAL_ROLL_EARLY_PART,
    JOURNAL_SLICE_BYTES_MAX,
    JOURNAL_SLICE_ENTRIES_MAX,
    LINK_FRAME_BYTES_MAX,
    VOTED_FOR_BYTES_MAX,
)
from sinkd.core.entries import EntryTable, RecentCommands
from sinkd.core.formats import (
    MARK_BYTES,
    RECORD_ALIGNMENT_BYTES,
    RECORD_HEADER_BYTES,
    BadBytes,
    Checkpoint,
    JournalHeader,
    Kind,
    decode_record,
    encode_record,
    record_size,
)
from sinkd.shell.files import FileGone, make_folder, read_at
from sinkd.shell.journal_files import JournalFile, JournalFiles, vote_payload
from sinkd.shell.journal_recovery import Recovered, recover

NO_OP: Final = b"\x01"  # PySyncObj's command for 'nothing'


class Position(NamedTuple):
    """Where a command stands: file number, position of its first byte in that file, length in bytes."""

    file: int
    position: int
    length: int


class JournalEntry:
    """What PySyncObj takes for the tuple `(command, index, term)`; the command is read when it is looked at."""

    __slots__ = ("_command", "_journal", "index", "length", "term")

    def __init__(self, journal: "Journal", index: int, term: int, length: int) -> None:
        self._journal, self.index, self.term, self.length = journal, index, term, length
        self._command: bytes | None = None

    @property
    def command(self) -> bytes:
        """DamagedFile: the bytes are not those that were added. IndexError: cut or void meanwhile."""
        if self._command is None:
            self._command = self._journal.command(self.index, self.term)
        return self._command

    @overload
    def __getitem__(self, item: int) -> bytes | int: ...

    @overload
    def __getitem__(self, item: slice) -> tuple[bytes | int, ...]: ...

    def __getitem__(self, item: int | slice) -> bytes | int | tuple[bytes | int, ...]:
        if item == 1:
            return self.index
        if item == 2:
            return self.term
        return (self.command, self.index, self.term)[item]

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[bytes | int]:
        return iter((self.command, self.index, self.term))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple | JournalEntry) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # equal to tuples, whose hash would need the command


class Journal:
    """Open with `Journal.open`; hand to PySyncObj in place of its own journal."""

    def __init__(self, files: JournalFiles, recovered: Recovered) -> None:
        self._files = files
        self._entries: EntryTable = recovered.entries
        self._recent = RecentCommands(JOURNAL_RECENT_BYTES)
        self._term, self._voted_for = recovered.term, recovered.voted_for
        self._end = recovered.end
        self._active: JournalFile
        self._adding = threading.Lock()  # what a sync covers, and its mark, stand between two records
        self._unsynced_bytes = 0
        self._has_unsynced_vote = self._failed = False
        self._synced_index = self._covered_index = 0  # on the disk; what the sync that is under way covers

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        journal_id: bytes,
        file_bytes: int = JOURNAL_FILE_BYTES,
        checkpoint: Checkpoint | None,
    ) -> "Journal":
        """The journal in `folder`, which is made if it is not there. Cuts a torn tail, with a warning in the log.

        `checkpoint` = (index A, its term, the term of A - 1): entries below A - 1 are forgotten, and A - 1 and A are
        presented even when their files are gone, since PySyncObj wants the last applied entry and the one before it.
        A checkpoint from the leader (`installed_over`) has the journal begun anew behind it, if it is not yet.
        DamagedFile: bytes that were synced are wrong or missing, or the journal ends before A (it was rolled back).
        """
        if file_bytes < JOURNAL_FILE_BYTES_MIN or file_bytes % RECORD_ALIGNMENT_BYTES or len(journal_id) != 16:
            raise ValueError(f"journal files of {file_bytes} bytes, id of {len(journal_id)} bytes")
        make_folder(folder)
        recovered = recover(folder, journal_id)
        files = JournalFiles(folder, journal_id, file_bytes, recovered.files)
        journal = cls(files, recovered)
        try:
            _check_against(checkpoint, recovered, folder)
            files.take_leftovers()
            if recovered.files:
                journal._continue(recovered)
                if recovered.begins_in:
                    files.drop_before(recovered.begins_in)
            else:
                journal._begin(1, 0)
            if checkpoint is not None:
                journal._adopt(checkpoint)
            journal._synced_index = journal.last_index
        except BaseException:  # whatever it was, the descriptors are nobody's now
            journal.close()
            raise
        return journal

    # -- adding -------------------------------------------------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Writes an entry to the page cache. ValueError: not the next index, or too large. OSError: see `failed`."""
        if idx != self._entries.next_index:
            raise ValueError(f"entry {idx} cannot be added, {self._entries.next_index} is next")
        if len(command) > LINK_FRAME_BYTES_MAX:
            raise ValueError(f"a command of {len(command)} bytes; {LINK_FRAME_BYTES_MAX} is the most")
        position = self._write(Kind.ENTRY, term, idx, command)
        self._entries.append(term, self._active.number, position, len(command))
        self._recent.append(idx, command)

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Makes the entries from position `entryFrom` (in this list) on void. The first entry cannot be."""
        if entryFrom < 1:
            raise ValueError(f"position {entryFrom} cannot be truncated: the journal's first entry stays")
        if entryFrom < len(self._entries):
            index = self._entries.first_index + entryFrom
            self._write(Kind.TRUNCATE, 0, index)
            with self._adding:
                self._entries.truncate(index)
                self._synced_index = min(self._synced_index, index - 1)
                self._covered_index = min(self._covered_index, index - 1)
            self._recent.truncate(index)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Term and vote, in the same stream as the entries. They hold once `sync` has returned."""
        record = vote_payload(term, votedForNodeId)
        if len(record[2]) > VOTED_FOR_BYTES_MAX:
            raise ValueError(f"a node id of {len(record[2])} bytes; {VOTED_FOR_BYTES_MAX} is the most")
        self._write(Kind.VOTE, *record)
        self._has_unsynced_vote = True
        self._term, self._voted_for = term, votedForNodeId

    def sync(self) -> None:
        """Blocks until everything that was added before is on the disk. OSError is final, see `failed`."""
        self._check_usable()
        with self._adding:
            if not self._unsynced_bytes:
                return
            file, end, self._covered_index = self._active, self._end, self.last_index
            self._unsynced_bytes, self._has_unsynced_vote = 0, False
        try:
            os.fdatasync(file.descriptor)
            with self._adding:
                self._synced_index = self._covered_index
                if file is self._active:
                    self._mark(end)
        except OSError:
            self._failed = True
            raise

    def close_in_order(self) -> None:
        """Everything is on the disk, and the mark that says so. Blocks. OSError: see `failed`."""
        self.sync()
        os.fdatasync(self._active.descriptor)

    def trust(self) -> None:
        """Counts all that was added as synced, though it is not: `fsync = "interval"`."""
        self._synced_index = self.last_index

    @property
    def synced_index(self) -> int:
        """The last entry that is on the disk, with all before it."""
        return self._synced_index

    @property
    def has_unsynced_vote(self) -> bool:
        """Whether term or vote changed since the last `sync` began."""
        return self._has_unsynced_vote

    @property
    def dirty(self) -> bool:
        """Whether something was added since the last `sync` began."""
        return self._unsynced_bytes > 0

    @property
    def unsynced_bytes(self) -> int:
        """How much was added since the last `sync` began."""
        return self._unsynced_bytes

    @property
    def failed(self) -> bool:
        """Whether a write or an fdatasync has failed: what is on the disk is unknown, nothing can be added."""
        return self._failed

    def _write(self, kind: Kind, term: int, index: int, payload: bytes = b"") -> int:
        """Appends a record; its position in the active file."""
        self._check_usable()
        size_bytes = record_size(len(payload))
        with self._adding:
            try:
                if not self._active.fits(self._end, size_bytes):
                    self._roll(size_bytes)
                position = self._end
                record = encode_record(self._active.seed, position, kind, term, index, payload)
                self._active.write(record, position)
            except OSError:
                self._failed = True
                raise
            self._end += size_bytes
            self._unsynced_bytes += size_bytes
        return position

    def _mark(self, synced: int) -> None:
        """Says that everything up to byte `synced` is on the disk, if a mark behind this one will fit too."""
        if self._active.fits(self._end, MARK_BYTES):
            record = encode_record(self._active.seed, self._end, Kind.SYNCED, synced, self._active.number)
            self._active.write(record, self._end)
            self._end += MARK_BYTES

    @property
    def is_nearly_full(self) -> bool:
        """Whether `roll_early` is due: little of the file is free, and there is a next one."""
        free = self._active.file_bytes - self._end
        return free < self._active.file_bytes // JOURNAL_ROLL_EARLY_PART and bool(self._files.spare_bytes)

    def roll_early(self) -> None:
        """Goes on in the next file at a moment when nobody waits; within `add` the event loop would. Blocks."""
        self._check_usable()
        try:
            self._roll(0)
        except OSError:
            self._failed = True
            raise
        self._unsynced_bytes, self._has_unsynced_vote = 0, False
        self._synced_index = self.last_index

    def _roll(self, record_bytes: int) -> None:
        """Goes on in a new file. The old one is fsynced first: only the last file may have a torn tail."""
        os.fdatasync(self._active.descriptor)
        self._begin(self._active.number + 1, self._end, record_bytes)

    def _begin(self, number: int, previous_end: int, record_bytes: int = 0) -> None:
        header = JournalHeader(self._files.journal_id, number, 0, self._entries.next_index, previous_end)
        size_bytes = self._files.size_for(record_bytes, self._voted_for)
        self._active, self._end = self._files.begin(header, (self._term, self._voted_for), size_bytes)

    def _check_usable(self) -> None:
        if self._failed:
            raise OSError(errno.EIO, "an earlier write to the journal failed; end the process", str(self._files.folder))

    # -- room ---------------------------------------------------------------------------------------------------------

    def room(self, size_bytes: int) -> bool:
        """Whether a command of so many bytes fits without making a file: where it ends or in the spare."""
        record_bytes = record_size(size_bytes)
        fits = self._active.fits(self._end, record_bytes)
        return fits or self._files.spare_bytes >= self._files.size_for(record_bytes, self._voted_for)

    def prepare_spare(self, size_bytes: int = 0) -> None:
        """Makes the file that comes next, ahead of need; at once if it is there. Blocks; may run on a thread any time.

        With `size_bytes`, one that holds a command of that size. OSError (disk full): nothing has changed or failed.
        """
        self._files.prepare_spare(self._files.size_for(record_size(size_bytes), self._voted_for))

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def cut(self, index: int) -> None:
        """Forgets the entries below `index`; files that hold only such ones are recycled, oldest first.

        Only when a checkpoint at `index + 1` or behind it is durable. Blocks. ValueError: beyond the journal's end.
        """
        if index > self.last_index:
            raise ValueError(f"the journal cannot be cut at entry {index}, it ends at {self.last_index}")
        if index <= self.first_index:
            return
        keep, _ = self._entries.place(index)
        self._entries.forget(index)
        self._recent.forget(index)
        self._files.drop_before(keep)

    def reset(self, index: int, term: int, previous_term: int) -> None:
        """Begins anew behind entry `index`, for which a checkpoint from the leader stands that is durable. Blocks.

        The checkpoint says `installed_over`: `last_index` as it was synced before. So a crash anywhere in here is
        finished by the next `open` (rule J5). Term and vote stay. ValueError: what is here goes up to the checkpoint
        or beyond it already, and may have been promised. OSError is final, but for the first of a full disk.
        """
        self._check_usable()
        if index <= self.last_index and (index < self.first_index or self._entries.term(index) == term):
            raise ValueError(f"the journal holds entry {index} of term {term}, or was cut behind it")
        self.prepare_spare()
        if index <= self.last_index:  # entries that were never committed; the checkpoint's are others
            self._write(Kind.TRUNCATE, 0, index)
        try:
            os.fdatasync(self._active.descriptor)
            self._entries = EntryTable(index + 1)
            self._recent.truncate(0)
            self._begin(self._active.number + 1, self._end)
            self._unsynced_bytes, self._has_unsynced_vote = 0, False
        except OSError:
            self._failed = True
            raise
        self._files.drop_before(self._active.number)
        self._prepend(index, term, previous_term)
        self._synced_index = self.last_index

    def clear(self) -> None:
        raise RuntimeError("PySyncObj may not clear the journal: a crash before its next add would leave it empty")

    def deleteEntriesTo(self, entryTo: int) -> None:
        raise RuntimeError("PySyncObj's compaction is off: the flush loop cuts the journal behind its checkpoint")

    # -- looking ------------------------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, item: int) -> JournalEntry: ...

    @overload
    def __getitem__(self, item: slice) -> list[JournalEntry]: ...

    def __getitem__(self, item: int | slice) -> JournalEntry | list[JournalEntry]:
        """An entry, or a bounded list of them: a slice may be shorter than asked for, and never counts from the end."""
        if isinstance(item, slice):
            return self._slice(item)
        count = len(self._entries)
        if not -count <= item < count:
            raise IndexError(f"position {item} of {count} entries")
        return self._entry(self._entries.first_index + item % count)

    def _slice(self, item: slice) -> list[JournalEntry]:
        if item.step not in (None, 1):
            raise ValueError(f"a slice of the journal in steps of {item.step}")
        start = max(0, item.start or 0)
        stop = min(len(self._entries), start + JOURNAL_SLICE_ENTRIES_MAX)
        if item.stop is not None:
            stop = min(stop, item.stop)
        taken: list[JournalEntry] = []
        size_bytes = 0
        for index in range(self._entries.first_index + start, self._entries.first_index + stop):
            size_bytes += self._entries.length(index)
            if taken and size_bytes > JOURNAL_SLICE_BYTES_MAX:
                break
            taken.append(self._entry(index))
        return taken

    def _entry(self, index: int) -> JournalEntry:
        return JournalEntry(self, index, self._entries.term(index), self._entries.length(index))

    def __len__(self) -> int:
        return len(self._entries)

    def term(self, index: int) -> int:
        """The term of entry `index`. IndexError: the journal does not hold it."""
        return self._entries.term(index)

    def length(self, index: int) -> int:
        """Bytes of the command of entry `index`. IndexError: the journal does not hold it."""
        return self._entries.length(index)

    def command(self, index: int, term: int) -> bytes:
        """The command of entry `index`, checked. IndexError: the journal has no such entry of that term.

        DamagedFile: its bytes are not those that were added.
        """
        number, position = self._entries.place(index)
        if self._entries.term(index) != term:
            raise IndexError(f"entry {index} of term {term} is void, the journal has one of another term")
        if number == 0:
            return NO_OP
        recent = self._recent.get(index)
        if recent is not None:
            return recent
        length = self._entries.length(index)
        file = self._file(number)
        with file.reading() as descriptor:
            data = read_at(descriptor, record_size(length), position)
        try:
            record = decode_record(data, 0, position, file.seed)
        except BadBytes as error:
            raise DamagedFile(str(file.path), position, str(error)) from error
        if record is None or record[:4] != (Kind.ENTRY, term, index, length):
            raise DamagedFile(str(file.path), position, f"entry {index} of term {term} should be here")
        return data[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + length]

    def head(self, index: int, size_bytes: int) -> bytes:
        """The first bytes of the command of entry `index`, unchecked: enough to see of what kind it is.

        IndexError: the journal has no such entry.
        """
        number, position = self._entries.place(index)
        if number == 0:
            return NO_OP[:size_bytes]
        recent = self._recent.get(index)
        if recent is not None:
            return recent[:size_bytes]
        with self._file(number).reading() as descriptor:
            return read_at(descriptor, min(size_bytes, self._entries.length(index)), position + RECORD_HEADER_BYTES)

    def locate(self, index: int) -> Position:
        """Where the command of entry `index` stands, for `read`. IndexError: not in the journal's files."""
        number, position = self._entries.place(index)
        if number == 0:
            raise IndexError(f"entry {index} stands in no file, only its term is known")
        return Position(number, position + RECORD_HEADER_BYTES, self._entries.length(index))

    def read(self, position: Position, start: int, length: int) -> bytes:
        """Bytes `start` to `start + length` of a command, from any thread; unchecked, the CRC is over all of it.

        FileGone (an OSError): cut meanwhile, the bytes are elsewhere. DamagedFile: the file has become shorter.
        """
        if start < 0 or length < 0 or start + length > position.length:
            raise ValueError(f"bytes {start} to {start + length} of a command of {position.length}")
        file = self._file(position.file)
        with file.reading() as descriptor:
            data = read_at(descriptor, length, position.position + start)
        if len(data) != length:
            raise DamagedFile(str(file.path), position.position + start, f"{len(data)} bytes are left of {length}")
        return data

    def _file(self, number: int) -> JournalFile:
        file = self._files.get(number)
        if file is None:
            raise FileGone(errno.ESTALE, "the journal was cut behind this file", f"{number:016x}.journal")
        return file

    # -- term, vote, commit index -------------------------------------------------------------------------------------

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> str | None:
        return self._voted_for

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Not kept: one that is ahead of a journal that lost its tail would have a new leader acknowledge thin air."""

    def getRaftCommitIndex(self) -> int:
        """What is surely committed: the checkpoint's entry (the second one here), or entry 1."""
        first = self.first_index
        return min(first + 1, self.last_index) if first > 1 else 1

    def onOneSecondTimer(self) -> None:
        """PySyncObj's journal writes its commit index here; ours keeps none."""

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def journal_id(self) -> bytes:
        return self._files.journal_id

    @property
    def folder(self) -> Path:
        return self._files.folder

    @property
    def first_index(self) -> int:
        return self._entries.first_index

    @property
    def last_index(self) -> int:
        """`first_index - 1` while the journal is empty."""
        return self._entries.next_index - 1

    @property
    def size_bytes(self) -> int:
        """Of all files on the disk, spare and recycled one included."""
        return self._files.size_bytes

    @property
    def file_count(self) -> int:
        return len(self._files)

    # -- opening and closing ------------------------------------------------------------------------------------------

    def _continue(self, recovered: Recovered) -> None:
        """What was found counts from now on, so it has to be durable: it may stand in the page cache only."""
        self._active = recovered.files[-1]
        os.fdatasync(self._active.descriptor)
        if not recovered.ends_with_mark:
            self._mark(self._end)

    def _adopt(self, checkpoint: Checkpoint) -> None:
        names = checkpoint.index, checkpoint.term, checkpoint.previous_term
        if _is_superseded(self._entries, checkpoint):
            self.reset(*names)
        else:
            self._prepend(*names)
            self.cut(checkpoint.index - 1)

    def _prepend(self, index: int, term: int, previous_term: int) -> None:
        """The two entries that the library looks at before the first one that stands in a file."""
        for missing, its_term in ((index, term), (index - 1, previous_term)):
            if 1 <= missing < self._entries.first_index:
                self._entries.prepend(its_term, len(NO_OP))

    def close(self) -> None:
        """Closes the files, without a sync."""
        self._files.close()

    def _destroy(self) -> None:
        self.close()


def _is_superseded(entries: EntryTable, checkpoint: Checkpoint) -> bool:
    """Whether these are the entries that a checkpoint from the leader takes the place of: `reset` was not finished."""
    index = checkpoint.index
    if not checkpoint.installed_over or entries.next_index <= min(checkpoint.installed_over, index - 1):
        return False
    return entries.next_index <= index or (entries.first_index <= index and entries.term(index) != checkpoint.term)


def _check_against(checkpoint: Checkpoint | None, recovered: Recovered, folder: Path) -> None:
    """The witness: what the checkpoint knows must be in the journal, or have been cut from it. DamagedFile if not."""
    entries = recovered.entries
    first_file = str(recovered.files[0].path if recovered.files else folder)
    is_installed = checkpoint is not None and checkpoint.installed_over and entries.first_index == checkpoint.index + 1
    if recovered.begins_in and not is_installed:
        what = f"it begins at entry {entries.first_index}, the files before it end before that: entries are missing"
        raise DamagedFile(str(folder / f"{recovered.begins_in:016x}.journal"), 0, what)
    if checkpoint is None:
        if entries.first_index != 1:
            raise DamagedFile(first_file, 0, f"it begins at entry {entries.first_index}, and there is no checkpoint")
        return
    index, terms = checkpoint.index, (checkpoint.term, checkpoint.previous_term)
    if _is_superseded(entries, checkpoint):
        return  # to be begun anew behind the checkpoint
    if entries.next_index <= index:
        last_file = str(recovered.files[-1].path if recovered.files else folder)
        what = f"the journal ends at entry {entries.next_index - 1}, the checkpoint knows {index}: it was rolled back"
        raise DamagedFile(last_file, recovered.end, what)
    if entries.first_index > index + 1:
        what = f"it begins at entry {entries.first_index}, the checkpoint ends at {index}: files are missing"
        raise DamagedFile(first_file, 0, what)
    for known, term in zip((index, index - 1), terms, strict=True):
        if known >= entries.first_index and entries.term(known) != term:
            number, position = entries.place(known)
            what = f"entry {known} is of term {entries.term(known)}, the checkpoint says {term}"
            raise DamagedFile(str(folder / f"{number:016x}.journal"), position, what)
