"""What the sink's files share: whole writes, atomic files, and descriptors that threads may read while others close.

A file name is durable only when its folder was fsynced; every function here that makes, renames or removes a name does
that before it returns.
"""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

TEMPORARY_SUFFIX = ".tmp"
NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})  # of a write: nothing is lost, it may be tried again


class FileGone(OSError):
    """The file was retired meanwhile: what stood in it has moved on (journal to segment) or was trimmed."""


class SharedFile:
    """A descriptor that any thread may read while its owner retires it: it is closed when the last reader is done.

    Without this, a number that was closed and given out anew would let a late reader read another file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._readers = 0
        self._retired = False
        self._lock = threading.Lock()

    @property
    def descriptor(self) -> int:
        """For the owner, who alone knows that the file is not retired."""
        return self._descriptor

    def acquire(self) -> int:
        """The descriptor, which stays open until `release`. FileGone if the file was retired."""
        with self._lock:
            if self._retired:
                raise FileGone(f"{self.path} is no longer read from here")
            self._readers += 1
            return self._descriptor

    def release(self) -> None:
        with self._lock:
            self._readers -= 1
            if self._retired and not self._readers:
                os.close(self._descriptor)

    @contextmanager
    def reading(self) -> Iterator[int]:
        descriptor = self.acquire()
        try:
            yield descriptor
        finally:
            self.release()

    def retire(self) -> bool:
        """No new readers from now on; whether the descriptor is closed already (nobody is reading)."""
        with self._lock:
            if not self._retired:
                self._retired = True
                if not self._readers:
                    os.close(self._descriptor)
            return not self._readers


def read_at(descriptor: int, size_bytes: int, position: int) -> bytes:
    """`size_bytes` from `position`, fewer only where the file ends."""
    data = os.pread(descriptor, size_bytes, position)
    if len(data) == size_bytes or not data:
        return data
    parts = [data]  # a signal or a very large read can make it short
    while size_bytes > (read := sum(map(len, parts))):
        data = os.pread(descriptor, size_bytes - read, position + read)
        if not data:
            break
        parts.append(data)
    return b"".join(parts)


def write_at(descriptor: int, buffers: Sequence[bytes], position: int) -> None:
    """All of `buffers`, one behind the other, at `position`. OSError leaves an unknown part of it written."""
    size_bytes = sum(map(len, buffers))
    written = os.pwritev(descriptor, buffers, position)
    if written == size_bytes:
        return
    rest = memoryview(b"".join(buffers))
    while written < size_bytes:
        written += os.pwrite(descriptor, rest[written:], position + written)


def write_atomically(path: Path, data: bytes) -> None:
    """`path` holds either what it held before or all of `data`, whatever happens; durable when this returns."""
    temporary = temporary_of(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_at(descriptor, [data], 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    rename(temporary, path)


def temporary_of(path: Path) -> Path:
    """Under which name a file is written that will have the name `path`."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def rename(old: Path, new: Path) -> None:
    """Give a file of the same folder another name, replacing what has it; durable when this returns."""
    os.replace(old, new)
    sync_folder(new.parent)


def unlink(path: Path) -> None:
    """Remove a name if it is there; durable when this returns."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def remove_temporary_files(folder: Path) -> None:
    """What a crash left of `write_atomically`: never renamed, so never part of anything."""
    for path in folder.glob("*" + TEMPORARY_SUFFIX):
        unlink(path)


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each durable in its own parent.

    One that is there already may be from a start that was killed before it could see to that.
    """
    if folder.is_dir():
        with suppress(PermissionError):  # of a parent that is not ours: who may not read it has not made the folder
            sync_folder(folder.parent)
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
