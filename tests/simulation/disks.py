"""Disks of simulated machines: real folders, and a record of what of them has not been fsynced.

All file calls of a `Process` go to the disk of its machine. It knows, for every file, what each sector held when it was
last fsynced, and for every folder, which names were made, changed and removed since its last fsync. A power cut takes
back any of the sectors and the later part of any folder's changes. A process may die within any call, half way through
a write; a disk may be full, or fail an fsync and forget what it was given.

A process that is dead reaches no file: what its `finally` blocks do is not done.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

from support.disk import SECTOR_BYTES, Crash

from simulation.virtual import CURRENT, Process
from sinkd.core.formats import (
    JOURNAL_HEADER_BYTES,
    BadBytes,
    JournalHeader,
    Kind,
    decode_journal_header,
    encode_journal_header,
    encode_record,
    find_synced_beyond,
    journal_seed,
    records_end,
)
from sinkd.shell.files import write_at
from sinkd.shell.folder import DataFolder

FREE_BYTES = 1 << 40
REAL = {
    name: getattr(os, name)
    for name in (
        "open", "close", "pwritev", "pwrite", "fsync", "fdatasync", "ftruncate", "replace", "unlink", "mkdir",
    )
}  # fmt: skip


class _Open(NamedTuple):
    disk: "Disk"
    process: Process
    inode: int
    path: Path


class _Unsynced:
    """Of one file: how long it was, and what its sectors held, at its last fsync."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.sectors: dict[int, bytes] = {}


class _Change(NamedTuple):
    """A name that was made, replaced or removed; `kept` is the old file."""

    folder: Path
    undo: Callable[[], None]
    kept: Path | None


class Damage(NamedTuple):
    """`is_hidden`: what was lost looks as if it had never been there, to whoever has nothing but these files."""

    what: str
    is_hidden: bool


def _is_hidden(path: Path, start: int) -> bool:
    """Whether no mark in a journal's file, as it is now, says that its bytes from `start` on were synced."""
    data = path.read_bytes()
    if path.suffix != ".journal" or start < JOURNAL_HEADER_BYTES:
        return False
    try:
        header = decode_journal_header(data)
    except BadBytes:
        return False
    return find_synced_beyond(data, start, header.number, journal_seed(header.journal_id, header.number)) is None


def _end(path: Path, data: bytes) -> int:
    """Where what the file says ends. Behind that may lie zeros, and what a journal's file held in earlier lives."""
    try:
        return records_end(data) if path.suffix == ".journal" else len(data.rstrip(b"\0"))
    except BadBytes:
        return JOURNAL_HEADER_BYTES


def write_stale_bytes(descriptor: int, start: int, end: int) -> None:
    """In place of zeros, where a journal's file is made anew: as if its last life had been the newest file's there.

    Without this, few files would be recycled in the short time of a simulation.
    """
    folder = Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent
    newest = max(folder.glob("*.journal"), default=None)
    header = JournalHeader(bytes(16), 0, end, 1, 0) if newest is None else decode_journal_header(newest.read_bytes())
    write_at(descriptor, [_stale_bytes(header, end)[start:end]], start)


def _stale_bytes(header: JournalHeader, size_bytes: int) -> bytes:
    seed, index = journal_seed(header.journal_id, header.number), header.first_index
    data = bytearray(encode_journal_header(header))
    records: tuple[tuple[int, int, int, bytes], ...] = ((Kind.VOTE, 1, 0, b""),)
    while len(data) < size_bytes:
        for record in records:
            data += b"".join(encode_record(seed, len(data), *record))
        synced = Kind.SYNCED, len(data), header.number, b""
        records = (Kind.ENTRY, 1, index, b"stale" * (index % 90)), (Kind.TRUNCATE, 0, index, b""), synced
        index += 1
    return bytes(data)


class Disk:
    """The disk of one machine, with the sink's folder on it."""

    def __init__(self, folder: Path, rng: Random) -> None:
        self.folder, self._rng = folder, rng
        self._trash = folder.with_name(folder.name + ".trash")
        self._trash.mkdir()
        self._numbers = 0
        self.boots = 0  # of its machine
        self.unsynced: dict[int, _Unsynced] = {}
        self.changes: list[_Change] = []
        self.is_full = False
        self.fails_fsyncs = 0  # so many of the next
        self.dies_in_calls = 0
        self.calls = 0
        self.forgotten: set[tuple[Process, int]] = set()  # files of which it has dropped what the process wrote
        self.damages = 0
        self._damaged: tuple[Path, int, int, bytes] | None = None

    # -- what processes do --------------------------------------------------------------------------------------------

    def writes(self, descriptor: int, inode: int, start: int, end: int) -> None:
        """Bytes `start` to `end` are about to change."""
        unsynced = self.unsynced.get(inode)
        if unsynced is None:
            unsynced = self.unsynced[inode] = _Unsynced(os.fstat(descriptor).st_size)
        for sector in range(start // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1):
            if sector not in unsynced.sectors:
                position = sector * SECTOR_BYTES
                if position < unsynced.size_bytes:
                    unsynced.sectors[sector] = os.pread(descriptor, SECTOR_BYTES, position)
                else:
                    unsynced.sectors[sector] = b""

    def synced(self, opened: _Open) -> None:
        self.unsynced.pop(opened.inode, None)
        for change in [change for change in self.changes if change.folder == opened.path]:
            self._forget(change)

    def changed(self, path: Path, undo: Callable[[], None], kept: Path | None = None) -> None:
        self.changes.append(_Change(path.parent, undo, kept))

    def keep(self, path: Path) -> Path:
        """Another name for a file that is about to lose its own."""
        self._numbers += 1
        kept = self._trash / str(self._numbers)
        os.link(path, kept)
        return kept

    def _forget(self, change: _Change) -> None:
        self.changes.remove(change)
        if change.kept is not None:
            REAL["unlink"](change.kept)

    # -- what happens to it -------------------------------------------------------------------------------------------

    def power_cut(self) -> None:
        """Nobody has a file open."""
        self.boots += 1
        self._lose_names()
        by_inode = {path.stat().st_ino: path for path in self._files()}
        for inode, unsynced in self.unsynced.items():
            if inode in by_inode:
                self._lose_sectors(by_inode[inode], unsynced)
        self.unsynced.clear()

    def _lose_names(self) -> None:
        kept: dict[Path, int] = {}
        for change in self.changes:
            kept[change.folder] = kept.get(change.folder, 0) + 1
        kept = {folder: self._rng.randint(0, count) for folder, count in kept.items()}
        lost: list[_Change] = []
        for change in self.changes:
            kept[change.folder] -= 1
            if kept[change.folder] < 0:
                lost.append(change)
        for change in reversed(lost):
            self._undo(change)
        self.changes.clear()
        shutil.rmtree(self._trash)
        self._trash.mkdir()

    @staticmethod
    def _undo(change: _Change) -> None:
        with suppress(FileNotFoundError):  # a folder that it was in is lost too
            try:
                change.undo()
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:  # else the old name of a folder is in use again: this came first
                    raise

    def _lose_sectors(self, path: Path, unsynced: _Unsynced) -> None:
        data = bytearray(path.read_bytes())
        if len(data) != unsynced.size_bytes and self._rng.random() < 0.5:
            data = data[: unsynced.size_bytes].ljust(unsynced.size_bytes, b"\0")
        for sector, before in unsynced.sectors.items():
            start = sector * SECTOR_BYTES
            if self._rng.random() < 0.5 and start < len(data):
                end = min(start + SECTOR_BYTES, len(data))
                data[start:end] = before.ljust(SECTOR_BYTES, b"\0")[: end - start]
        path.write_bytes(data)

    def fail_fsync(self, opened: _Open) -> None:
        """The system has dropped some of what could not be written."""
        unsynced = self.unsynced.pop(opened.inode, None)
        if unsynced is not None and opened.path.is_file():
            self._lose_sectors(opened.path, unsynced)
            self.forgotten.add((opened.process, opened.inode))

    @property
    def has_damage(self) -> bool:
        """Whether the file that was damaged last is still there, as it was left then."""
        if self._damaged is None:
            return False
        path, inode, start, data = self._damaged
        if not path.exists() or path.stat().st_ino != inode:
            return False
        now = path.read_bytes()
        return now[start : start + len(data)] == data if data else len(now) == start

    def damage(self, files: list[Path], end_bytes: int = 0) -> Damage:
        """One of these files of a stopped process is not what it was; with `end_bytes` in its last so many bytes."""
        self.damages += 1
        suffix = self._rng.choice(sorted({path.suffix for path in files}))
        path = self._rng.choice([path for path in files if path.suffix == suffix])
        data = bytearray(path.read_bytes())
        kind = self._rng.choice(("flip", "flip", "flip", "truncate", "zero"))
        used = min(_end(path, bytes(data)) or len(data), len(data))
        start = self._rng.randrange(used if self._rng.random() < 0.9 else len(data))
        if end_bytes:
            start = max(0, used - 1 - self._rng.randrange(end_bytes))
        end = start
        if kind == "flip":
            data[start] ^= 1 << self._rng.randrange(8)
            end = start + 1
        elif kind == "truncate":
            del data[start:]
        else:
            end = min(start + SECTOR_BYTES, len(data))
            data[start:end] = bytes(end - start)
        path.write_bytes(data)
        self.unsynced.pop(path.stat().st_ino, None)  # this is what the disk holds, a power cut changes nothing of it
        self._damaged = path, path.stat().st_ino, start, bytes(data[start:end])
        is_hidden = start < used and kind != "truncate" and _is_hidden(path, start)
        return Damage(f"{kind} {path.relative_to(self.folder)} at {start}, used up to {used}", is_hidden)

    def wipe(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._begin_anew()

    def copy(self) -> None:
        """An administrator's backup."""
        if self.folder.exists():
            shutil.copytree(self.folder, self.backup)

    def roll_back(self, part: str = "") -> None:
        """All of it, or the part of that name, is what it was when the copy was made, which is used up."""
        self._remove(self.folder / part)
        if (self.backup / part).exists():
            os.replace(self.backup / part, self.folder / part)
        self._remove(self.backup)
        self._begin_anew()

    @property
    def backup(self) -> Path:
        return self.folder.with_name(self.folder.name + ".backup")

    @staticmethod
    def _remove(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _begin_anew(self) -> None:
        self._damaged = None
        self.changes.clear()
        self.unsynced.clear()

    def files(self, pattern: str = "*") -> list[Path]:
        """Those that have something in them."""
        return [path for path in self._files(pattern) if path.name != "lock" and path.stat().st_size]

    def _files(self, pattern: str = "*") -> list[Path]:
        return sorted(path for path in self.folder.rglob(pattern) if path.is_file())


class Disks:
    """`disks` by the names of machines; `died(process)` is called when a process dies within a call."""

    def __init__(self, rng: Random, died: Callable[[Process], None]) -> None:
        self._rng, self._died = rng, died
        self.by_machine: dict[str, Disk] = {}
        self._open: dict[int, _Open] = {}

    @contextmanager
    def in_use(self) -> Iterator["Disks"]:
        patches = [mock.patch.object(os, name, getattr(self, "_" + name)) for name in REAL if name != "open"]
        patches.append(mock.patch.object(os, "open", self._open_file))
        patches.append(mock.patch.object(DataFolder, "free_bytes", self._free_bytes))
        for patch in patches:
            patch.start()
        try:
            yield self
        finally:
            for patch in patches:
                patch.stop()
            for descriptor in list(self._open):
                REAL["close"](descriptor)
            self._open.clear()

    def close_all(self, process: Process) -> None:
        """Its system closes what a process that has ended had open."""
        for descriptor, opened in list(self._open.items()):
            if opened.process is process:
                del self._open[descriptor]
                REAL["close"](descriptor)

    def _disk(self) -> Disk | None:
        process = CURRENT.get()
        return self.by_machine.get(process.name) if process is not None else None

    def _free_bytes(self) -> int:
        disk = self._disk()
        return 0 if disk is not None and disk.is_full else FREE_BYTES

    def _step(self, disk: Disk) -> bool:
        """Before a call that changes something: whether the process dies within it."""
        process = CURRENT.get()
        if process is None or not process.is_alive:
            raise Crash
        disk.calls += 1
        if disk.dies_in_calls:
            disk.dies_in_calls -= 1
            return not disk.dies_in_calls
        return False

    def _die(self) -> None:
        process = CURRENT.get()
        assert process is not None
        process.is_alive = False
        self._died(process)
        raise Crash

    # -- the calls ----------------------------------------------------------------------------------------------------

    def _open_file(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        disk = self._disk()
        if disk is None or dir_fd is not None:
            return REAL["open"](path, flags, mode, dir_fd=dir_fd)
        path, process = Path(path), CURRENT.get()
        if process is None or not process.is_alive:
            raise Crash
        makes = bool(flags & os.O_CREAT) and not path.exists()
        if makes and self._step(disk):
            self._die()
        if flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR  # its sectors are read before they change
        cuts = flags & os.O_TRUNC
        descriptor = REAL["open"](path, flags & ~os.O_TRUNC, mode)
        status = os.fstat(descriptor)
        opened = self._open[descriptor] = _Open(disk, process, status.st_ino, path)
        if makes:
            disk.unsynced[opened.inode] = _Unsynced(0)  # the inode may be used again
            disk.changed(path, lambda: REAL["unlink"](path))
        elif cuts and status.st_size:
            disk.writes(descriptor, opened.inode, 0, status.st_size)
            REAL["ftruncate"](descriptor, 0)
        return descriptor

    def _close(self, descriptor: int) -> None:
        process = CURRENT.get()
        if process is not None and not process.is_alive:
            return  # its system has done so
        self._open.pop(descriptor, None)
        REAL["close"](descriptor)

    def _pwritev(self, descriptor: int, buffers: Any, position: int, *flags: int) -> int:
        opened = self._open.get(descriptor)
        if opened is None:
            return REAL["pwritev"](descriptor, buffers, position, *flags)
        return self._write(opened, descriptor, b"".join(buffers), position)

    def _pwrite(self, descriptor: int, data: Any, position: int) -> int:
        opened = self._open.get(descriptor)
        if opened is None:
            return REAL["pwrite"](descriptor, data, position)
        return self._write(opened, descriptor, bytes(data), position)

    def _write(self, opened: _Open, descriptor: int, data: bytes, position: int) -> int:
        disk = opened.disk
        dies = self._step(disk)
        if disk.is_full and position + len(data) > os.fstat(descriptor).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if dies:
            data = data[: self._rng.randint(0, len(data))]
        if data:
            disk.writes(descriptor, opened.inode, position, position + len(data))
            REAL["pwrite"](descriptor, data, position)
        if dies:
            self._die()
        return len(data)

    def _fsync(self, descriptor: int) -> None:
        opened = self._open.get(descriptor)
        if opened is None:
            REAL["fsync"](descriptor)
            return
        if self._step(opened.disk):
            if self._rng.random() < 0.5:
                opened.disk.synced(opened)
            self._die()
        if opened.disk.fails_fsyncs:
            opened.disk.fails_fsyncs -= 1
            opened.disk.fail_fsync(opened)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        opened.disk.synced(opened)

    _fdatasync = _fsync

    def _ftruncate(self, descriptor: int, size_bytes: int) -> None:
        opened = self._open.get(descriptor)
        if opened is not None:
            if self._step(opened.disk):
                self._die()
            end = os.fstat(descriptor).st_size
            if end > size_bytes:
                opened.disk.writes(descriptor, opened.inode, size_bytes, end)
        REAL["ftruncate"](descriptor, size_bytes)

    def _replace(self, old: Any, new: Any) -> None:
        disk = self._disk()
        if disk is None:
            REAL["replace"](old, new)
            return
        old, new = Path(old), Path(new)
        dies = self._step(disk)
        if dies and self._rng.random() < 0.5:
            self._die()
        kept = disk.keep(new) if new.is_file() else None
        REAL["replace"](old, new)

        def undo() -> None:
            REAL["replace"](new, old)
            if kept is not None:
                REAL["replace"](kept, new)

        disk.changed(new, undo, kept)
        if dies:
            self._die()

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        disk = self._disk()
        if disk is None or dir_fd is not None:
            REAL["unlink"](path, dir_fd=dir_fd)
            return
        path = Path(path)
        dies = self._step(disk)
        if dies and self._rng.random() < 0.5:
            self._die()
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        kept = disk.keep(path)
        REAL["unlink"](path)
        disk.changed(path, lambda: REAL["replace"](kept, path), kept)
        if dies:
            self._die()

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        disk = self._disk()
        if disk is not None and self._step(disk):
            self._die()
        REAL["mkdir"](path, mode, dir_fd=dir_fd)
        if disk is not None and dir_fd is None:
            path = Path(path)
            disk.changed(path, lambda: shutil.rmtree(path))
