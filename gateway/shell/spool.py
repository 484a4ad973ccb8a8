"""The spool's folder: one of each worker of a gateway, in which its outbox survives that the process is killed.

    <spool>/<worker>/lock                     an exclusive flock for as long as the process lives
                     <number>.spool           files of records (gateway.core.spool), in the order of their numbers
                     <number>.spool.damaged   what could not be read, and what stood beside it: for people, never read

Once per turn of the event loop all that the outbox did is written with one write(2), and only then what it promises
leaves: answers, batches. That survives the end of the process by whatever means. Nothing is fsynced: a loss of power,
or of the operating system, may take what was written last.

A start reads all files and writes what they hold into a new one, whole or not at all (by its name), before it removes
them. A stop that leaves nothing in the outbox leaves no file.

When nothing can be written, or the disk is nearly full, the outbox is shut as if it were full. What was taken and not
written waits, with its answers, and is tried again: a write begins where the last good one ended, so half a one does no
harm.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from gateway.core.acks import Answer
from gateway.core.outbox import Outbox
from gateway.core.spool import Spool
from gateway.core.spool_format import Head, Owner, pack_head
from gateway.core.spool_recovery import Recovery, Restored
from protocol.errors import DamagedFile, DataError, FolderInUse, FolderUnusable, FrameError
from protocol.limits import SPOOL_DISK_RESERVE_BYTES, SPOOL_FILE_BYTES, SPOOL_FILES_SLACK, SPOOL_MOVE_BYTES
from protocol.streams import StreamState

SUFFIX: Final = ".spool"
DAMAGED: Final = ".damaged"
TEMPORARY: Final = ".tmp"
LOCK: Final = "lock"
log = structlog.get_logger()


class SpoolFolder:
    """`open`, then `write` after whatever the outbox did; `close` is due in any case.

    `hold` is what the outbox is given for answers that may leave only when all is written.
    """

    def __init__(self, folder: Path, owner: Owner, workers: int, answer: Answer) -> None:
        """The part of `folder` that is the worker's in `owner`; there are `workers` of them."""
        self.path = folder / str(owner.worker)
        self.spool = Spool()
        self.problem: str | None = None  # why nothing can be written, or nothing more should be
        self.restored_events = self.lost_events = 0
        self._owner, self._workers, self._answer = owner, workers, answer
        self._held: list[tuple[str, str, bytes]] = []
        self._sizes: dict[int, int] = {}  # bytes of each file, oldest first; the last one is being written
        self._lock = self._file = -1
        self._outbox: Outbox | None = None

    @property
    def size_bytes(self) -> int:
        return sum(self._sizes.values())

    def varz(self) -> dict[str, int]:
        """What is shown of it: numbers, so that those of several workers can be added up."""
        return {
            "bytes": self.size_bytes,
            "events": self.spool.events,
            "events_restored": self.restored_events,
            "events_lost": self.lost_events,
            "shut": int(self.problem is not None),
        }

    def hold(self, account: str, reply: str, answer: bytes) -> None:
        self._held.append((account, reply, answer))

    # -- life ---------------------------------------------------------------------------------------------------------

    def open(self, outbox: Outbox, streams: Iterable[StreamState], now_ms: int, time_ms: int) -> None:
        """Gives `outbox` what the files hold. Its provisional `streams` get the identities that the files know.

        FolderInUse: a process has it, or it is another node's. FolderUnusable: it cannot be made or written. DataError:
        a later version has written it, or it holds events of workers that are no more. OSError: it cannot be read.
        """
        self._outbox = outbox
        _refuse_left_workers(self.path.parent, self._workers)
        self._lock = _locked(self.path)
        files = _files(self.path)
        recovery = self._read(files, now_ms, time_ms)
        known = {stream.name: stream for stream in recovery.streams}
        outbox.set_streams([known.get(stream.name, stream) for stream in streams])
        restored = recovery.partitions()
        self.lost_events = recovery.lost_events
        for path in files.values() if recovery.problems else ():
            shutil.copyfile(path, f"{path}{DAMAGED}")
        try:
            self._begin_with(restored, max(files, default=0) + 1)
        except OSError as error:
            raise FolderUnusable(f"spool folder {self.path}: {(error.strerror or str(error)).lower()}") from error
        for each in restored:
            outbox.restore(each.partition)
        _remove(files.values())
        self._report(recovery.problems)

    def close(self) -> None:
        """Leaves no file where nothing is held."""
        if self._file >= 0:
            os.close(self._file)
            if not self.spool.events and not self.spool.finish():
                _remove(self._name(number) for number in self._sizes)
        if self._lock >= 0:
            os.close(self._lock)
        self._file = self._lock = -1

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self) -> bool:
        """Writes what the outbox did and lets the answers go; False where that failed: nothing else may leave then."""
        data = self.spool.finish()
        if data:
            try:
                self._append(data)
            except OSError as error:
                self._shut(f"cannot be written: {(error.strerror or str(error)).lower()}")
                return False
            self.spool.written()
            self._give_up_files()
        held, self._held = self._held, []
        for answer in held:
            self._answer(*answer)
        return True

    def look_at_disk(self) -> None:
        """Shuts the outbox while the disk is nearly full, or nothing can be written."""
        if not self.write():
            return
        free_bytes = shutil.disk_usage(self.path).free
        if free_bytes < SPOOL_DISK_RESERVE_BYTES:
            self._shut(
                f"{free_bytes} bytes are free on its disk, less than the {SPOOL_DISK_RESERVE_BYTES} of the reserve"
            )
        elif self.problem is not None:
            log.info("spool_is_well", folder=str(self.path))
            self.problem = None
            if self._outbox is not None:
                self._outbox.is_shut = False

    def _shut(self, problem: str) -> None:
        if self.problem is None:
            log.error("spool_is_shut", folder=str(self.path), reason=problem)
        self.problem = problem
        if self._outbox is not None:
            self._outbox.is_shut = True

    def _append(self, data: bytearray) -> None:
        number = self.spool.file
        position = self._sizes[number]
        _write_at(self._file, data, position)
        self._sizes[number] = position + len(data)

    def _give_up_files(self) -> None:
        """All that there was is written: removes what is needed no more, goes on to the next file when one is full."""
        spool = self.spool
        for number in list(self._sizes)[:-1]:
            if spool.held(number) or not _remove([self._name(number)]):
                break
            del self._sizes[number]
        if self._sizes[spool.file] >= SPOOL_FILE_BYTES:
            self._begin(spool.file + 1)
        held_bytes = self._outbox.size_bytes if self._outbox is not None else 0
        oldest = next(iter(self._sizes))
        if self.size_bytes > 2 * held_bytes + SPOOL_FILES_SLACK * SPOOL_FILE_BYTES and oldest != spool.file:
            spool.move(oldest, SPOOL_MOVE_BYTES)

    def _begin(self, number: int) -> None:
        """The next file. Where none can be made the present one goes on, and it is tried again after the next write."""
        head = pack_head(Head(self._owner, is_whole=False))
        path = self._name(number)
        try:
            file = _made(path)
            try:
                _write_at(file, head, 0)
            except OSError:
                os.close(file)
                path.unlink()
                raise
        except OSError as error:
            log.warning("spool_file_not_made", file=str(path), reason=(error.strerror or str(error)).lower())
            return
        self._go_on(file, number, len(head))

    def _go_on(self, file: int, number: int, size_bytes: int) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._sizes[number] = file, size_bytes
        self.spool.begin(number)

    # -- at a start ---------------------------------------------------------------------------------------------------

    def _read(self, files: dict[int, Path], now_ms: int, time_ms: int) -> Recovery:
        recovery = Recovery(self._owner, now_ms, time_ms)
        before = None
        for number, path in files.items():
            if before is not None and number != before + 1:
                recovery.damaged(f"{path}: the file before it is missing")
            try:
                recovery.read(str(path), path.read_bytes(), is_last=number == max(files))
            except FrameError as error:
                raise DamagedFile(str(path), 0, str(error)) from error
            before = number
        return recovery

    def _begin_with(self, restored: list[Restored], number: int) -> None:
        """A file that begins with all that is held; it has its name when all of it is there."""
        path = self._name(number)
        temporary = path.with_name(path.name + TEMPORARY)
        head, file = pack_head(Head(self._owner, is_whole=True)), _made(temporary)
        self._go_on(file, number, len(head))
        for each in restored:
            self.restored_events += len(each.numbers)
            self.spool.restore(*each)
        data = head + self.spool.finish()
        _write_at(file, data, 0)
        os.fsync(file)  # what it replaces may have been on the disk for long
        temporary.replace(path)
        self.spool.written()
        self._sizes[number] = len(data)

    def _report(self, problems: list[str]) -> None:
        if problems:
            kept = f"files before and after it are kept as *{SUFFIX}{DAMAGED}"
            log.error("spool_damaged", problems=problems, lost_events=self.lost_events, kept=kept)
        if self.restored_events:
            log.info("spool_restored", folder=str(self.path), events=self.restored_events)

    def _name(self, number: int) -> Path:
        return self.path / f"{number:016x}{SUFFIX}"


def _refuse_left_workers(folder: Path, workers: int) -> None:
    """DataError: events wait here for workers that the gateway has no more; nobody else may send them."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.isdigit() and int(path.name) >= workers and any(path.glob(f"*{SUFFIX}")):
            raise DataError(
                f"{path} holds events of worker {path.name}, and this gateway has {workers}: start it with workers = "
                f"{int(path.name) + 1} until they are in the log, or take the folder away"
            )


def _locked(path: Path) -> int:
    """The folder, made where it is missing, with its lock held."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FolderUnusable(f"spool folder {path}: {(error.strerror or str(error)).lower()}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise FolderInUse(
            f"spool folder {path} is in use by another process; stop it or give another folder"
        ) from error
    return lock


def _files(path: Path) -> dict[int, Path]:
    """By number, oldest first. What was not finished is removed."""
    for unfinished in path.glob(f"*{SUFFIX}{TEMPORARY}"):
        unfinished.unlink()
    return {int(file.stem, 16): file for file in sorted(path.glob(f"*{SUFFIX}"))}


def _made(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def _write_at(file: int, data: bytes | bytearray, position: int) -> None:
    """All of `data`. OSError leaves an unknown part of it written."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, position)
        rest, position = rest[written:], position + written


def _remove(paths: Iterable[Path]) -> bool:
    """Whether all of them are gone, in this order."""
    for path in paths:
        try:
            path.unlink()
        except OSError as error:
            log.warning("spool_file_not_removed", file=str(path), reason=(error.strerror or str(error)).lower())
            return False
    return True
