"""The Merkle tree of a partition's log (`protocol.merkle`), from files that are a hundredth of the log or less.

    <base offset:020d>.leaves   of a finished segment: base offset and D of each of its batches
    tree                        how the tree was at the end of some finished segment, to go on from after a restart

Both are made anew when they are missing or wrong: the leaves from their segment, every batch of it checked, the tree
from the leaves. The leaves of the segment that is written stay in memory, within `LEAVES_KEPT_BYTES_MAX`; those that do
not, and those from before a restart, are read from its batches when they are asked for.

What is trimmed is under the root all the same: the replicated state knows how the tree was where the log begins, and
every walk starts there, or at a later place that an earlier walk has come by.

`reread` trusts no file but the segments: it reads the batches from the disk and hashes them, as for a certificate.
"""

import errno
import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import structlog

from protocol.errors import DamagedFile, LogError
from protocol.gaps import leaf_digest
from protocol.limits import LEAVES_KEPT_BYTES_MAX, LEAVES_POSITIONS_KEPT
from protocol.merkle import HASH_BYTES, Tree, grow, leaf_hash, root_of
from protocol.records import BatchHeader
from sinkd.core.formats import (
    LEAF_BYTES,
    SEGMENT_HEADER_BYTES,
    BadBytes,
    LeavesHeader,
    TreePosition,
    decode_leaves,
    decode_tree,
    encode_leaves,
    encode_tree,
)
from sinkd.shell.files import NO_SPACE, FileGone, write_atomically
from sinkd.shell.segment_files import Segment, SegmentFiles, read_bytes

if TYPE_CHECKING:
    from sinkd.shell.segments import PartitionLog, View

TREE_NAME = "tree"
_OFFSET_BYTES = LEAF_BYTES - HASH_BYTES
log = structlog.get_logger()


class Leaf(NamedTuple):
    """Of the batch at `base_offset`."""

    base_offset: int
    digest: bytes

    @property
    def hash(self) -> bytes:
        return leaf_hash(self.base_offset, self.digest)


class Reread(NamedTuple):
    """A batch as it is on the disk; its CRC was not looked at."""

    leaf: Leaf
    header: BatchHeader
    data: memoryview


def pack(base_offset: int, digest: bytes) -> bytes:
    """As it stands in a file."""
    return base_offset.to_bytes(_OFFSET_BYTES, "big") + digest


def unpack(leaves: bytes) -> Iterator[Leaf]:
    for at in range(0, len(leaves), LEAF_BYTES):
        yield Leaf(int.from_bytes(leaves[at : at + _OFFSET_BYTES], "big"), leaves[at + _OFFSET_BYTES : at + LEAF_BYTES])


def part(leaves: bytes, from_offset: int, to_offset: int) -> bytes:
    """Those of the batches whose base offsets lie in [from_offset, to_offset)."""
    count = len(leaves) // LEAF_BYTES
    begin = bisect_left(range(count), from_offset, key=lambda number: _offset_at(leaves, number))
    end = bisect_left(range(count), to_offset, key=lambda number: _offset_at(leaves, number))
    return leaves[begin * LEAF_BYTES : end * LEAF_BYTES]


def _offset_at(leaves: bytes, number: int) -> int:
    at = number * LEAF_BYTES
    return int.from_bytes(leaves[at : at + _OFFSET_BYTES], "big")


class Digests(Mapping[int, bytes]):
    """D by base offset, of leaves as they stand in a file. Asked in their order it need not search. For one thread."""

    def __init__(self, leaves: bytes) -> None:
        self._leaves, self._due = leaves, 0

    def __len__(self) -> int:
        return len(self._leaves) // LEAF_BYTES

    def __iter__(self) -> Iterator[int]:
        return (_offset_at(self._leaves, number) for number in range(len(self)))

    def __getitem__(self, base_offset: int) -> bytes:
        number = self._due
        if number >= len(self) or _offset_at(self._leaves, number) != base_offset:
            number = self.first_from(base_offset)
            if number == len(self) or _offset_at(self._leaves, number) != base_offset:
                raise KeyError(base_offset)
        self._due = number + 1
        at = number * LEAF_BYTES
        return self._leaves[at + _OFFSET_BYTES : at + LEAF_BYTES]

    def first_from(self, offset: int) -> int:
        """The number of the first leaf whose batch begins at `offset` or behind it."""
        return bisect_left(range(len(self)), offset, key=lambda number: _offset_at(self._leaves, number))

    def behind(self, base_offset: int) -> int | None:
        """Where the batch behind that one begins, if there is one."""
        number = self.first_from(base_offset + 1)
        return _offset_at(self._leaves, number) if number < len(self) else None


class Hashes(Sequence[bytes]):
    """Leaf hashes, back to back in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data) // HASH_BYTES

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> "Hashes": ...
    def __getitem__(self, number: int | slice) -> "bytes | Hashes":
        if isinstance(number, slice):
            return Hashes(b"".join(self[one] for one in range(*number.indices(len(self)))))
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._data[number * HASH_BYTES : (number + 1) * HASH_BYTES]


class Written:
    """The leaves of the segment that is written, from some offset on. Noted by one thread, read by any."""

    def __init__(self, from_offset: int) -> None:
        self._known = from_offset, bytearray()

    def note(self, base_offset: int, next_offset: int, digest: bytes) -> None:
        if len(self._known[1]) >= LEAVES_KEPT_BYTES_MAX:
            self.begin_at(next_offset)
        else:
            self._known[1].extend(pack(base_offset, digest))

    def begin_at(self, offset: int) -> None:
        """What comes before is not known."""
        self._known = offset, bytearray()

    def known(self) -> tuple[int, bytes]:
        """(from which offset on, leaves)."""
        from_offset, leaves = self._known
        return from_offset, bytes(leaves)


# -- of one segment ---------------------------------------------------------------------------------------------------


def write_leaves(files: SegmentFiles, segment: Segment, leaves: bytes) -> None:
    """The leaves file of a segment that is finished and fsynced."""
    names = files.incarnation, files.partition, segment.base_offset, segment.next_offset, segment.size_bytes
    write_atomically(segment.leaves_path, encode_leaves(LeavesHeader(*names), leaves))


def kept_leaves(files: SegmentFiles, segment: Segment) -> bytes:
    """Those in the file of a finished segment. BadBytes: it has none, or they are wrong."""
    header, leaves = decode_leaves(_read_file(segment.leaves_path))
    names = files.incarnation, files.partition, segment.base_offset, segment.next_offset, segment.size_bytes
    if header != LeavesHeader(*names):
        raise BadBytes("leaves: they are of another segment, or of the segment at another size")
    return leaves


def leaves_of(files: SegmentFiles, segment: Segment) -> bytes:
    """Of a finished segment. DamagedFile: it has none, and cannot be read. FileNotFoundError: it was trimmed."""
    try:
        return kept_leaves(files, segment)
    except BadBytes as error:
        reason = str(error)
    with files.opened_alone(segment) as opened:
        found = read_bytes(opened, SEGMENT_HEADER_BYTES, segment.size_bytes, segment.base_offset, check=True)
        leaves = b"".join(pack(header.base_offset, leaf_digest(header, data)) for _, header, data in found)
    if segment.path.exists():
        log.info("segment_leaves_written", file=str(segment.leaves_path), reason=reason)
        write_if_there_is_space(lambda: write_leaves(files, segment, leaves))
    return leaves


def write_if_there_is_space(write: Callable[[], None]) -> None:
    """What can be made anew may be missing."""
    try:
        write()
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise


def _read_file(path: Path) -> bytes:
    name = path.suffix.lstrip(".") or path.name
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadBytes(f"{name}: there is none") from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise BadBytes(f"{name}: the disk cannot read it") from error


# -- of a log ---------------------------------------------------------------------------------------------------------


class LogTree:
    """The tree of one `PartitionLog`. Its methods are for threads that read; they wait for each other.

    `start` is how the tree was where the log begins, by the replicated state. All of them raise LogError
    OFFSET_OUT_OF_RANGE for offsets that the segments do not hold or between which no batch ends, DamagedFile for bytes
    that are wrong.
    """

    def __init__(self, owner: "PartitionLog") -> None:
        self._log = owner
        self._walking = threading.Lock()
        self._saved: TreePosition | None = None  # as in the file
        self._is_read = False
        self._latest: TreePosition | None = None
        self._passed: deque[TreePosition] = deque(maxlen=LEAVES_POSITIONS_KEPT)  # ends of finished segments

    def position_at(self, start: TreePosition, to_offset: int) -> TreePosition:
        """The tree when the log ended at `to_offset`."""
        with self._walking:
            here = self._nearest(start, to_offset)
            while here.offset < to_offset:
                here = self._walked(here, to_offset)
            self._latest = here
            if self._passed:
                self._save(self._passed[-1])
            return here

    def forget(self) -> None:
        """The next walk begins where the log does, whatever an earlier one has come by."""
        with self._walking:
            self._is_read, self._saved, self._latest = True, None, None
            self._passed.clear()

    def root_at(self, start: TreePosition, to_offset: int) -> tuple[int, bytes]:
        """(number of leaves, root) then."""
        position = self.position_at(start, to_offset)
        return position.size, root_of(position.frontier)

    def tree(self, start: TreePosition, to_offset: int) -> Tree:
        """For proofs: with all leaves from `start` to `to_offset`; 32 bytes of memory for each."""
        parts = []
        for leaves, _ in self.leaves(start.offset, to_offset):
            parts += [leaf.hash for leaf in unpack(leaves)]
        return Tree(start.frontier, start.size, Hashes(b"".join(parts)))

    def leaves(self, from_offset: int, to_offset: int) -> Iterator[tuple[bytes, int]]:
        """(leaves, the offset behind them), one segment's at a time."""
        here = from_offset
        while here < to_offset:
            found, end = self._some(here, to_offset)
            yield found, end
            here = end

    def _some(self, here: int, to_offset: int) -> tuple[bytes, int]:
        """The leaves from `here` on that the segment there has, and where they end; tried again if it is trimmed."""
        while True:
            view = self._log.view(here, to_offset)
            segment = view.holding(here)
            end = min(to_offset, view.end_offset if segment is view.segments[-1] else segment.next_offset)
            try:
                if segment is view.segments[-1]:
                    found = self._of_written(view, segment, here, end)
                else:
                    found = self._of_finished(segment, here, end)
            except (FileGone, FileNotFoundError):
                if self._log.start_offset == view.start_offset:
                    raise
                continue
            if not found or _offset_at(found, 0) != here:
                raise LogError("OFFSET_OUT_OF_RANGE", f"{self._log.folder}: no batch begins at offset {here}")
            return found, end

    def _of_finished(self, segment: Segment, here: int, end: int) -> bytes:
        leaves = leaves_of(self._log.files, segment)
        if end < segment.next_offset and not part(leaves, end, end + 1):
            raise self._not_an_end(end)
        return part(leaves, here, end)

    def _of_written(self, view: "View", segment: Segment, here: int, end: int) -> bytes:
        """Of the segment that was written when `view` was taken."""
        known_from, known = self._log.written.known()
        if here >= known_from:
            if end < view.end_offset and not part(known, end, end + 1):
                raise self._not_an_end(end)
            return part(known, here, end)
        found, reached = bytearray(), here
        for header, data in self._log.batches_from(view, segment, here, min(end, known_from)):
            found += pack(header.base_offset, leaf_digest(header, data))
            reached = header.next_offset
        if reached < end:
            return bytes(found) + self._of_written(view, segment, reached, end)
        if reached > end:
            raise self._not_an_end(end)
        return bytes(found)

    def _not_an_end(self, offset: int) -> LogError:
        return LogError("OFFSET_OUT_OF_RANGE", f"{self._log.folder}: no batch ends at offset {offset}")

    def _walked(self, here: TreePosition, to_offset: int) -> TreePosition:
        """One segment further, at most."""
        leaves, end = self._some(here.offset, to_offset)
        frontier, size = list(here.frontier), here.size
        for at in range(0, len(leaves), LEAF_BYTES):
            leaf = Leaf(_offset_at(leaves, at // LEAF_BYTES), leaves[at + _OFFSET_BYTES : at + LEAF_BYTES])
            grow(frontier, size, leaf.hash)
            size += 1
        reached = TreePosition(here.begin_offset, end, size, tuple(frontier))
        is_last = not self._passed or self._passed[-1].offset < end
        if is_last and any(segment.next_offset == end for segment in self._log.finished()):
            self._passed.append(reached)
        return reached

    def _nearest(self, start: TreePosition, to_offset: int) -> TreePosition:
        """The last place at or before `to_offset` that is known."""
        if not self._is_read:
            self._is_read, self._saved = True, self._load()
        known = [
            one
            for one in (self._saved, self._latest, *self._passed)
            if one is not None and one.begin_offset == start.begin_offset
        ]
        fitting = [one for one in known if start.offset < one.offset <= to_offset and one.size > start.size]
        return max((start, *fitting), key=lambda one: one.offset)

    def _load(self) -> TreePosition | None:
        try:
            incarnation, partition, position = decode_tree(_read_file(self._log.folder / TREE_NAME))
        except BadBytes:
            return None
        return (
            position if (incarnation, partition) == (self._log.files.incarnation, self._log.files.partition) else None
        )

    def _save(self, position: TreePosition) -> None:
        if self._saved is not None and self._saved[:2] >= position[:2]:
            return
        self._saved, files = position, self._log.files
        data = encode_tree(files.incarnation, files.partition, position)
        write_if_there_is_space(lambda: write_atomically(self._log.folder / TREE_NAME, data))

    # -- from the disk ------------------------------------------------------------------------------------------------

    def reread(self, from_offset: int, to_offset: int) -> Iterator[Reread]:
        """The batches of [from_offset, to_offset), from the disk anew: what a cache has is dropped.

        DamagedFile names the segment, and the byte in it. FileNotFoundError: it was trimmed.
        """
        here = from_offset
        while here < to_offset:
            view = self._log.view(here, to_offset)
            segment = view.holding(here)
            end = min(to_offset, view.end_offset if segment is view.segments[-1] else segment.next_offset)
            yield from _from_disk(self._log.files, segment, here, end)
            here = end


def _from_disk(files: SegmentFiles, segment: Segment, from_offset: int, to_offset: int) -> Iterator[Reread]:
    with files.opened_alone(segment) as opened:
        os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size_bytes, reached = os.fstat(opened.descriptor).st_size, from_offset
        try:
            found = read_bytes(opened, SEGMENT_HEADER_BYTES, size_bytes, segment.base_offset, check=False)
            while reached < to_offset and (batch := next(found, None)) is not None:
                _, header, data = batch
                if header.base_offset >= reached:
                    yield Reread(Leaf(header.base_offset, leaf_digest(header, data)), header, data)
                    reached = header.next_offset
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise DamagedFile(str(segment.path), 0, f"behind offset {reached} the disk cannot read it") from error
        if reached != to_offset:
            raise DamagedFile(str(segment.path), size_bytes, f"it ends at offset {reached}, {to_offset} is due")
