"""Small journals: files of 4 KiB, entries whose bytes follow from their index."""

from pathlib import Path

import pytest

from protocol.errors import DamagedFile
from sinkd.core.formats import Checkpoint
from sinkd.shell.journal import Journal

JOURNAL_ID = b"0123456789abcdef"
FILE_BYTES = 4096


def reopen(folder: Path, checkpoint: tuple[int, ...] | None = None, file_bytes: int = FILE_BYTES) -> Journal:
    """`checkpoint`: its index, its term, the term before; the leader's also over which entry it was installed."""
    saved = Checkpoint(*checkpoint[:3], b"", *checkpoint[3:]) if checkpoint is not None else None
    return Journal.open(folder, journal_id=JOURNAL_ID, file_bytes=file_bytes, checkpoint=saved)


def refused(folder: Path, checkpoint: tuple[int, ...] | None = None) -> DamagedFile:
    with pytest.raises(DamagedFile) as caught:
        reopen(folder, checkpoint).close()
    return caught.value


def contents(journal: Journal) -> list[tuple[bytes, int, int]]:
    return [tuple(journal[position]) for position in range(len(journal))]


def entry(index: int, term: int = 1, size_bytes: int = 300) -> tuple[bytes, int, int]:
    return bytes([index % 251 + 1]) * size_bytes, index, term


def fill(journal: Journal, count: int, term: int = 1, size_bytes: int = 300) -> list[tuple[bytes, int, int]]:
    entries = [entry(journal.last_index + 1 + number, term, size_bytes) for number in range(count)]
    for one in entries:
        journal.add(*one)
    return entries


def numbered(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal"))
