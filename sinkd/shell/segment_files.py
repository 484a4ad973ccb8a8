"""One segment file and its index: reading batches, scanning, rebuilding.

    <base offset:020d>.segment   64 bytes of header, then record batches as a Kafka broker stores them, back to back
    <base offset:020d>.index     of a finished segment; a summary and the sparse index, made anew when it is wrong
    <base offset:020d>.leaves    of a finished segment: what a Merkle tree takes of each batch (`sinkd.shell.leaves`)
    <base offset:020d>.damaged   what a segment was before it was mended, for whoever wants to see what the disk did

Every batch is checked against the offset that is due (offsets are dense) and, where its bytes are handed out or
scanned, against its CRC-32C. Kafka's CRC does not cover a batch's leader epoch: a flipped bit there is not seen.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from protocol.errors import DamagedFile, FrameError
from protocol.limits import LINK_FRAME_BYTES_MAX, SEGMENT_SCAN_BYTES, SEGMENT_WALK_BYTES
from protocol.records import HEADER_BYTES, BatchHeader, check_batch, read_header
from sinkd.core.blocks import NEVER_MAXIMUM_MS, NEVER_MINIMUM_MS, BlockIndex
from sinkd.core.formats import (
    INDEX_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    BadBytes,
    IndexHeader,
    SegmentHeader,
    decode_index,
    decode_index_header,
    decode_segment_header,
    encode_index,
    encode_segment_header,
)
from sinkd.shell.files import SharedFile, read_at, write_atomically

log = structlog.get_logger()

SEGMENT_SUFFIX = ".segment"
INDEX_SUFFIX = ".index"
LEAVES_SUFFIX = ".leaves"
ASIDE_SUFFIX = ".damaged"


@dataclass(eq=False)
class Segment:
    """What memory holds of every segment; the last one grows. Offsets, bytes (header included), ms."""

    path: Path
    base_offset: int
    next_offset: int
    size_bytes: int
    minimum_ms: int = NEVER_MINIMUM_MS
    maximum_ms: int = NEVER_MAXIMUM_MS

    @property
    def index_path(self) -> Path:
        return self.path.with_suffix(INDEX_SUFFIX)

    @property
    def leaves_path(self) -> Path:
        return self.path.with_suffix(LEAVES_SUFFIX)

    @property
    def aside_path(self) -> Path:
        return self.path.with_suffix(ASIDE_SUFFIX)

    def is_full(self, batch_bytes: int, segment_bytes: int) -> bool:
        """Whether a batch of that size belongs into a new segment; an empty one takes a batch of any size."""
        return self.next_offset > self.base_offset and self.size_bytes + batch_bytes > segment_bytes

    def note(self, header: BatchHeader) -> None:
        """A batch stands at its end."""
        self.next_offset = header.next_offset
        self.size_bytes += header.size_bytes
        self.minimum_ms = min(self.minimum_ms, header.base_timestamp_ms)
        self.maximum_ms = max(self.maximum_ms, header.max_timestamp_ms)


class OpenSegment(SharedFile):
    """The descriptor and the index of a segment that is read or written."""

    def __init__(self, path: Path, descriptor: int, index: BlockIndex) -> None:
        super().__init__(path, descriptor)
        self.index = index


class SegmentFiles:
    """Makes, opens and indexes the segment files of one partition."""

    def __init__(self, folder: Path, incarnation: bytes, partition: int) -> None:
        self.folder, self.incarnation, self.partition = folder, incarnation, partition

    def create(self, base_offset: int, *, begins_anew: bool = False) -> tuple[Segment, OpenSegment]:
        """A new, empty segment, durable with its header: a segment on disk always has a whole one."""
        path = self.folder / f"{base_offset:020d}{SEGMENT_SUFFIX}"
        header = SegmentHeader(self.incarnation, self.partition, base_offset, int(begins_anew))
        write_atomically(path, encode_segment_header(header))
        segment = Segment(path, base_offset, base_offset, SEGMENT_HEADER_BYTES)
        return segment, OpenSegment(path, os.open(path, os.O_RDWR | os.O_CLOEXEC), BlockIndex())

    def open_last(self, path: Path, durable_end: int) -> tuple[Segment, OpenSegment]:
        """The segment that is written, scanned whole. A bad tail above `durable_end` is cut, or DamagedFile."""
        opened = self._open(path, os.O_RDWR)
        segment = Segment(path, _base_offset(path), _base_offset(path), SEGMENT_HEADER_BYTES)
        try:
            self._check_header(opened)
            try:
                self._scan(segment, opened, os.fstat(opened.descriptor).st_size)
            except DamagedFile as damage:
                if segment.next_offset < durable_end:
                    raise
                self._cut(segment, opened, damage)
            os.fsync(opened.descriptor)  # what was found counts as durable from now on
        except BaseException:  # whatever it was, the descriptor is nobody's now
            opened.retire()
            raise
        return segment, opened

    def summary(self, path: Path) -> Segment:
        """A finished segment, from the head of its index; scanned, and its index written anew, if that is wrong."""
        size_bytes = path.stat().st_size
        segment = Segment(path, _base_offset(path), 0, size_bytes)
        try:
            header = self._check_index(decode_index_header(_read_file(segment.index_path, INDEX_HEADER_BYTES)), segment)
        except BadBytes as error:
            segment, opened = self._rebuild(path, str(error))
            opened.retire()
            return segment
        segment.next_offset = header.next_offset
        segment.minimum_ms, segment.maximum_ms = header.minimum_ms, header.maximum_ms
        return segment

    def open_finished(self, segment: Segment) -> OpenSegment:
        """A finished segment for reading. DamagedFile: its header is wrong. FileNotFoundError: it was trimmed."""
        try:
            header, entries = decode_index(_read_file(segment.index_path))
            self._check_index(header, segment)
        except BadBytes as error:
            return self._rebuild(segment.path, str(error))[1]
        opened = self._open(segment.path, os.O_RDONLY)
        opened.index = BlockIndex(entries)
        try:
            self._check_header(opened)
        except DamagedFile:
            opened.retire()
            raise
        return opened

    @contextmanager
    def opened_alone(self, segment: Segment) -> Iterator[OpenSegment]:
        """Without its index, for one reader. DamagedFile: its header is wrong. FileNotFoundError: it was trimmed."""
        opened = self._open(segment.path, os.O_RDONLY)
        try:
            self._check_header(opened)
            yield opened
        finally:
            opened.retire()

    def begins_anew(self, segment: Segment) -> bool:
        """Whether this one was made by `create(begins_anew=True)`. DamagedFile: its header is wrong."""
        with self.opened_alone(segment) as opened:
            return bool(self._check_header(opened).begins_anew)

    def write_index(self, segment: Segment, index: BlockIndex) -> None:
        """The index file of a segment that is finished and fsynced."""
        header = IndexHeader(
            self.incarnation,
            self.partition,
            segment.base_offset,
            segment.next_offset,
            segment.size_bytes,
            segment.minimum_ms,
            segment.maximum_ms,
        )
        write_atomically(segment.index_path, encode_index(header, index.entries()))

    def _open(self, path: Path, flags: int) -> OpenSegment:
        return OpenSegment(path, os.open(path, flags | os.O_CLOEXEC), BlockIndex())

    def _check_header(self, opened: OpenSegment) -> SegmentHeader:
        expected = SegmentHeader(self.incarnation, self.partition, _base_offset(opened.path))
        try:
            header = decode_segment_header(read_at(opened.descriptor, SEGMENT_HEADER_BYTES, 0))
        except BadBytes as error:
            raise DamagedFile(str(opened.path), 0, str(error)) from error
        if header._replace(begins_anew=0) != expected:
            what = f"it is of {_describe(header)}, here should be {_describe(expected)}"
            raise DamagedFile(str(opened.path), 0, what)
        return header

    def _check_index(self, header: IndexHeader, segment: Segment) -> IndexHeader:
        """BadBytes unless the index is of this segment as it stands."""
        expected = (self.incarnation, self.partition, segment.base_offset, segment.size_bytes)
        if (*header[:3], header.segment_bytes) != expected:
            raise BadBytes("index: it is of another segment, or of the segment at another size")
        return header

    def _scan(self, segment: Segment, opened: OpenSegment, end: int) -> None:
        """Notes all batches up to byte `end`; DamagedFile at the first bad one, with all before it noted."""
        for position, header in read_batches(opened, segment.size_bytes, end, segment.base_offset, check=True):
            opened.index.note(header, position)
            segment.note(header)

    def _rebuild(self, path: Path, reason: str) -> tuple[Segment, OpenSegment]:
        opened = self._open(path, os.O_RDONLY)
        log.warning("segment_index_rebuilt", file=str(path), reason=reason)
        segment = Segment(path, _base_offset(path), _base_offset(path), SEGMENT_HEADER_BYTES)
        try:
            self._check_header(opened)
            self._scan(segment, opened, os.fstat(opened.descriptor).st_size)
            self.write_index(segment, opened.index)
        except BaseException:  # whatever it was, the descriptor is nobody's now
            opened.retire()
            raise
        return segment, opened

    def _cut(self, segment: Segment, opened: OpenSegment, damage: DamagedFile) -> None:
        cut_bytes = os.fstat(opened.descriptor).st_size - segment.size_bytes
        os.ftruncate(opened.descriptor, segment.size_bytes)
        log.warning(
            "segment_tail_cut",
            file=str(opened.path),
            position=segment.size_bytes,
            bytes=cut_bytes,
            end_offset=segment.next_offset,
            reason=str(damage),
        )


class _Window:
    """A stretch of a file in memory, read anew when what is asked for is not in it."""

    def __init__(self, descriptor: int, end: int, chunk_bytes: int) -> None:
        self._descriptor, self._end, self._chunk_bytes = descriptor, end, chunk_bytes
        self._data, self._position = b"", 0

    def bytes_at(self, position: int, size_bytes: int) -> memoryview:
        """Fewer than `size_bytes` only at the end. Positions must not go back."""
        at = position - self._position
        if at + size_bytes > len(self._data):
            size = min(max(size_bytes, self._chunk_bytes), self._end - position)
            self._data, self._position, at = read_at(self._descriptor, size, position), position, 0
        return memoryview(self._data)[at : at + size_bytes]


def read_batches(
    opened: OpenSegment, position: int, end: int, offset: int, *, check: bool
) -> Iterator[tuple[int, BatchHeader]]:
    """(position, header) of the batches from byte `position`, where `offset` is due, to byte `end`.

    With `check` every batch is read whole and its CRC verified. Without it only headers are read, and the caller checks
    what is handed out. DamagedFile at the first batch that is not what it should be.
    """
    if check:
        yield from ((at, header) for at, header, _ in read_bytes(opened, position, end, offset, check=True))
        return
    window = _Window(opened.descriptor, end, SEGMENT_WALK_BYTES)
    while position < end:
        header = _header_at(opened, window, position, end, offset)
        yield position, header
        position += header.size_bytes
        offset = header.next_offset


def read_bytes(
    opened: OpenSegment, position: int, end: int, offset: int, *, check: bool
) -> Iterator[tuple[int, BatchHeader, memoryview]]:
    """As `read_batches`, with the batches themselves; without `check` whoever knows their digests compares those."""
    window = _Window(opened.descriptor, end, SEGMENT_SCAN_BYTES)
    while position < end:
        header = _header_at(opened, window, position, end, offset)
        data = window.bytes_at(position, header.size_bytes)
        if check:
            try:
                check_batch(data)
            except FrameError as error:
                raise DamagedFile(str(opened.path), position, str(error)) from error
        yield position, header, data
        position += header.size_bytes
        offset = header.next_offset


def _header_at(opened: OpenSegment, window: _Window, position: int, end: int, offset: int) -> BatchHeader:
    """Of the batch that is due at `offset`. DamagedFile."""
    try:
        header = read_header(window.bytes_at(position, HEADER_BYTES))
        if header.size_bytes > min(end - position, LINK_FRAME_BYTES_MAX):
            raise FrameError(f"record batch: {header.size_bytes} bytes where {end - position} are left")
        check_offset(header, offset)
    except FrameError as error:
        raise DamagedFile(str(opened.path), position, str(error)) from error
    return header


def check_offset(header: BatchHeader, offset: int) -> None:
    """FrameError unless the batch stands where it is due."""
    if header.base_offset != offset:
        raise FrameError(f"record batch: it is at offset {header.base_offset}, {offset} is due")


def orphans(folder: Path) -> list[Path]:
    """Files beside a segment that is gone: a crash came in the midst of a trim."""
    beside = [*folder.glob("*" + INDEX_SUFFIX), *folder.glob("*" + LEAVES_SUFFIX)]
    return [path for path in beside if not path.with_suffix(SEGMENT_SUFFIX).exists()]


def _base_offset(path: Path) -> int:
    return int(path.stem)


def _describe(header: SegmentHeader) -> str:
    return f"incarnation {header.incarnation.hex()}, partition {header.partition}, base offset {header.base_offset}"


def _read_file(path: Path, size_bytes: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size_bytes)
    except FileNotFoundError as error:
        raise BadBytes("index: there is none") from error
