"""Disks that fail: flipped bytes, processes that die between two system calls, power that goes before an fsync."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

CHANGING_CALLS = ("pwritev", "pwrite", "fdatasync", "fsync", "replace", "unlink", "ftruncate")
SECTOR_BYTES = 512


def flip(path: Path, position: int, mask: int = 0x01) -> None:
    """Change bits of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


class Crash(BaseException):
    """The process died here."""


class DyingProcess:
    """Counts the system calls that change the disk; dies in the one with number `last_call`, having done half of it."""

    def __init__(self, last_call: int) -> None:
        self.calls, self._last_call = 0, last_call

    @contextmanager
    def running(self) -> Iterator["DyingProcess"]:
        patches = [mock.patch.object(os, name, self._counted(getattr(os, name))) for name in CHANGING_CALLS]
        for patch in patches:
            patch.start()
        try:
            yield self
        finally:
            for patch in patches:
                patch.stop()

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            self.calls += 1
            if self.calls < self._last_call:
                return call(*arguments, **keywords)
            if self.calls == self._last_call and call.__name__ == "pwritev":
                descriptor, buffers, position = arguments
                data = b"".join(buffers)
                call(descriptor, [data[: len(data) // 2]], position)
            raise Crash

        return counted


class PowerFailure:
    """Remembers, for every sector that was written, what of it is surely on the disk (fsynced)."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._durable: dict[int, dict[int, bytes]] = {}  # inode → sector → bytes as last synced

    @contextmanager
    def watching(self) -> Iterator["PowerFailure"]:
        write, fdatasync, fsync = os.pwritev, os.fdatasync, os.fsync

        def watched_write(descriptor: int, buffers: list[bytes], position: int) -> int:
            sectors = self._durable.setdefault(os.fstat(descriptor).st_ino, {})
            end = position + sum(map(len, buffers))
            with open(f"/proc/self/fd/{descriptor}", "rb") as before:
                for sector in range(position // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1):
                    if sector not in sectors:
                        before.seek(sector * SECTOR_BYTES)
                        sectors[sector] = before.read(SECTOR_BYTES)
            return write(descriptor, buffers, position)

        def synced(call: Callable[[int], None]) -> Callable[[int], None]:
            def watched_sync(descriptor: int) -> None:
                call(descriptor)
                self._durable.pop(os.fstat(descriptor).st_ino, None)

            return watched_sync

        with (
            mock.patch.object(os, "pwritev", watched_write),
            mock.patch.object(os, "fdatasync", synced(fdatasync)),
            mock.patch.object(os, "fsync", synced(fsync)),
        ):
            yield self

    def strike(self, folder: Path) -> None:
        """Some of the sectors that were not synced are lost, others have made it."""
        for path in folder.rglob("*"):
            sectors = self._durable.get(path.stat().st_ino, {}) if path.is_file() else {}
            with open(path, "r+b") if sectors else open(os.devnull, "r+b") as file:
                for sector, durable in sectors.items():
                    if self._random.random() < 0.5:
                        file.seek(sector * SECTOR_BYTES)
                        size = min(SECTOR_BYTES, path.stat().st_size - sector * SECTOR_BYTES)
                        file.write(durable.ljust(size, b"\0"))
