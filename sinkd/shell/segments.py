"""The cold form of a partition's log: segments of record batches, exactly as a Kafka broker stores them.

One thread appends and syncs; any number of others read, which never see what is not fsynced yet:

    start_offset ── finished segments (fsynced, indexed) ── active segment ── end_offset ── append_end
                    readers                                                   fsynced       written

A lock guards the list of segments and the indexes, never a read or a write. Finished segments cost a summary in memory;
the descriptors and indexes of the few that are read last are kept at hand.

Its Merkle tree is `PartitionLog.tree` (`sinkd.shell.leaves`).

The log of a sink that others fill can begin anew, further on: see `PartitionLog.begin_at`.

A replay after a restart asks `batch_crc_at` whether a batch is here and equal, and appends only at `append_end`.
"""

import errno
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

from protocol.errors import DamagedFile, DataError, FrameError, LogError
from protocol.gaps import is_of_damage, leaf_digest
from protocol.limits import SEGMENTS_OPEN_MAX
from protocol.records import HEADER_BYTES, BatchHeader, check_batch, place_batch, read_header, split_batches
from sinkd.core.blocks import Block
from sinkd.core.retention import SegmentFacts
from sinkd.shell.files import (
    NO_SPACE,
    FileGone,
    make_folder,
    read_at,
    remove_temporary_files,
    rename,
    unlink,
    write_at,
)
from sinkd.shell.leaves import LogTree, Written, write_if_there_is_space, write_leaves
from sinkd.shell.segment_files import (
    SEGMENT_SUFFIX,
    OpenSegment,
    Segment,
    SegmentFiles,
    check_offset,
    orphans,
    read_batches,
    read_bytes,
)

T = TypeVar("T")


class View(NamedTuple):
    """The log as one reader sees it: the segments, the offset behind the last batch, bytes of the last segment."""

    segments: tuple[Segment, ...]
    start_offset: int
    end_offset: int
    last_bytes: int

    def limit(self, segment: Segment) -> int:
        return self.last_bytes if segment is self.segments[-1] else segment.size_bytes

    def holding(self, offset: int) -> Segment:
        return self.segments[bisect_right(self.segments, offset, key=lambda segment: segment.base_offset) - 1]


class PartitionLog:
    """The log of one partition of one stream incarnation; open it with `PartitionLog.open`."""

    def __init__(self, files: SegmentFiles, segment_bytes: int, first_offset: int) -> None:
        self.files, self._segment_bytes, self._first_offset = files, segment_bytes, first_offset
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._segments: tuple[Segment, ...] = ()
        self._active: OpenSegment | None = None
        self._opened: OrderedDict[int, OpenSegment] = OrderedDict()  # finished ones, by base offset
        self._end_offset = first_offset
        self._durable_bytes = 0  # of the active segment
        self._failed = False
        self.keeps_leaves = False  # of what is appended; else they are read from the batches when they are asked for
        self.written = Written(first_offset)
        self.tree = LogTree(self)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        incarnation: bytes,
        partition: int,
        segment_bytes: int,
        durable_end: int,
        first_offset: int = 0,
    ) -> "PartitionLog":
        """The log in `folder`, which is made if it is not there; an empty one begins at `first_offset`.

        `durable_end` is the offset up to which a checkpoint says that segments were fsynced. What is bad or missing
        below it is a DamagedFile; a bad tail above it was promised to nobody and is cut, with a warning in the log.
        So a sink that died while it was being filled, of which no checkpoint knows, opens to the longest whole prefix.
        """
        make_folder(folder)
        remove_temporary_files(folder)
        for orphan in orphans(folder):
            unlink(orphan)
        log = cls(SegmentFiles(folder, incarnation, partition), segment_bytes, first_offset)
        try:
            log._load(durable_end)
        except BaseException:  # whatever it was, the descriptors are nobody's now
            log.close()
            raise
        return log

    def _load(self, durable_end: int) -> None:
        paths = sorted(self.folder.glob("*" + SEGMENT_SUFFIX))
        segments = [self.files.summary(path) for path in paths[:-1]]
        if paths:
            last, self._active = self.files.open_last(paths[-1], durable_end)
            segments.append(last)
            self._end_offset, self._durable_bytes = last.next_offset, last.size_bytes
            self.written.begin_at(last.next_offset)
        self._segments = tuple(self._without_old(segments))
        if self._end_offset < durable_end:
            where, position = (segments[-1].path, segments[-1].size_bytes) if segments else (self.folder, 0)
            what = f"the log ends at offset {self._end_offset}, the checkpoint knows {durable_end}: it was rolled back"
            raise DamagedFile(str(where), position, what)

    def _without_old(self, segments: list[Segment]) -> list[Segment]:
        """Without those before a gap that `begin_at` has made, which go; any other gap is a DamagedFile."""
        begin = 0
        for position, (before, after) in enumerate(pairwise(segments), 1):
            if before.next_offset == after.base_offset:
                continue
            if before.next_offset > after.base_offset or not self.files.begins_anew(after):
                what = f"the segment before it ends at offset {before.next_offset}, it begins at {after.base_offset}"
                raise DamagedFile(str(after.path), 0, what)
            begin = position
        _remove(segments[:begin])
        return segments[begin:]

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, batch: bytes, base_offset: int, leader_epoch: int, digest: bytes = b"") -> None:
        """Writes `batch` at `append_end`, which `base_offset` must be; readers see it after the next `sync`.

        `digest` is its D (`protocol.coverage`), if that is known already.
        ValueError: not at the end. DataError: not a whole batch with a right CRC; nothing is written. OSError: final,
        but for one of NO_SPACE: the log is as it was, and the same batch may be tried again.
        """
        self._check_usable()
        if base_offset != self.append_end:
            raise ValueError(f"a batch at offset {base_offset} of {self.folder}, {self.append_end} is due")
        placed = place_batch(batch, base_offset, leader_epoch)
        try:
            header = check_batch(placed)
        except FrameError as error:
            raise DataError(
                f"{self.folder}: a batch for offset {base_offset} that is damaged already: {error}"
            ) from error
        try:
            self._append(placed, header, digest)
        except OSError as error:
            self._failed = self._failed or error.errno not in NO_SPACE
            raise

    def _append(self, batch: bytes, header: BatchHeader, digest: bytes) -> None:
        active = self._active
        if active is None or self._segments[-1].is_full(len(batch), self._segment_bytes):
            active = self._roll()
        segment = self._segments[-1]
        position = segment.size_bytes
        write_at(active.descriptor, [batch], position)
        with self._lock:
            active.index.note(header, position)
            segment.note(header)
        if self.keeps_leaves:
            self.written.note(header.base_offset, header.next_offset, digest or leaf_digest(header, batch))
        else:
            self.written.begin_at(header.next_offset)

    def sync(self) -> None:
        """Blocks until everything appended is on the disk; then readers may have it. OSError is final."""
        self._check_usable()
        if self._active is None or self.append_end == self._end_offset:
            return
        try:
            os.fdatasync(self._active.descriptor)
        except OSError:
            self._failed = True
            raise
        with self._lock:
            self._end_offset, self._durable_bytes = self._segments[-1].next_offset, self._segments[-1].size_bytes

    def _roll(self) -> OpenSegment:
        """Finishes the active segment, if there is one, and begins the next."""
        finished = self._finish()
        segment, active = self.files.create(self.append_end)
        with self._lock:
            if finished is not None:
                self._keep(self._segments[-1].base_offset, finished)
            self._segments += (segment,)
            self._active, self._durable_bytes = active, segment.size_bytes
        self.written.begin_at(segment.base_offset)
        return active

    def _finish(self) -> OpenSegment | None:
        """The active segment, durable and with its index: another may be made behind it."""
        self.sync()
        if self._active is not None:
            segment, (known_from, leaves) = self._segments[-1], self.written.known()
            self.files.write_index(segment, self._active.index)
            if known_from == segment.base_offset and leaves:
                write_if_there_is_space(lambda: write_leaves(self.files, segment, leaves))
        return self._active

    def _check_usable(self) -> None:
        if self._failed:
            raise OSError(errno.EIO, "an earlier write to this log failed; end the process", str(self.folder))

    def begin_at(self, offset: int) -> None:
        """Has the next batch stand at `offset`; what is here ends below it and goes. On the writer's thread.

        For a log whose older part is history no more where it is filled from. ValueError: it goes beyond `offset`.
        OSError: it may be tried again. A crash leaves the log as it was, or one that begins at `offset`.
        """
        self._check_usable()
        if offset <= self.append_end:
            if offset < self.append_end:
                raise ValueError(f"{self.folder} ends at offset {self.append_end}, it cannot begin at {offset}")
            return
        self._finish()
        segment, active = self.files.create(offset, begins_anew=True)
        with self._lock:
            dropped, self._segments = self._segments, (segment,)
            self._retire_all()
            self._active, self._durable_bytes = active, segment.size_bytes
            self._end_offset = offset
        self.written.begin_at(offset)
        _remove(dropped)

    def trim(self, to_offset: int) -> None:
        """Removes the segments wholly below `to_offset`, oldest first, never the active one. On the writer's thread."""
        with self._lock:
            dropped = [segment for segment in self._segments[:-1] if segment.next_offset <= to_offset]
            self._segments = self._segments[len(dropped) :]
            for segment in dropped:
                opened = self._opened.pop(segment.base_offset, None)
                if opened is not None:
                    opened.retire()
        _remove(dropped)

    def put(self, segment: Segment, path: Path, *, is_as_before: bool = True) -> None:
        """Has the file at `path`, of the same folder and offsets, be a finished segment, unless that was trimmed; the
        old file is set aside. On the writer's thread.

        `is_as_before`: every batch is where it was, so the index stays true. Else index and leaves are made anew.
        """
        if segment not in self.finished():
            return
        segment.aside_path.unlink(missing_ok=True)
        os.link(segment.path, segment.aside_path)
        rename(path, segment.path)
        if is_as_before:
            self._replace(segment, segment)
            return
        # Not before: without an index the damaged file could not be opened. After a crash here its size tells.
        unlink(segment.index_path)
        segment.leaves_path.unlink(missing_ok=True)
        self._replace(segment, self.files.summary(segment.path))

    def _replace(self, segment: Segment, by: Segment) -> None:
        with self._lock:
            self._segments = tuple(by if one is segment else one for one in self._segments)
            opened = self._opened.pop(segment.base_offset, None)
            if opened is not None:
                opened.retire()

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, offset: int, max_bytes: int) -> bytes | memoryview:
        """Whole, checked batches from the one that holds `offset`: at least one, else what `max_bytes` allows.

        It stops at the end of a segment, so fewer bytes do not mean the end of the log; b"" at `end_offset` does.
        LogError OFFSET_OUT_OF_RANGE. DamagedFile: bytes on the disk are wrong, none of them are returned.
        """
        return self._with_view(lambda view: self._read(view, offset, max_bytes))

    def _read(self, view: View, offset: int, max_bytes: int) -> bytes | memoryview:
        if not view.start_offset <= offset <= view.end_offset:
            raise LogError(
                "OFFSET_OUT_OF_RANGE",
                f"offset {offset} is not in the segments: {view.start_offset} to {view.end_offset} (exclusive)",
                start_offset=view.start_offset,
                end_offset=view.end_offset,
            )
        if offset == view.end_offset:
            return b""
        segment = view.holding(offset)
        with self._reading(segment) as opened:
            position, first = self._find(view, segment, opened, offset)
            size_bytes = min(max(max_bytes, first.size_bytes), view.limit(segment) - position)
            data = read_at(opened.descriptor, size_bytes, position)
            return _checked_batches(data, first.base_offset, opened.path, position)

    def _find(self, view: View, segment: Segment, opened: OpenSegment, offset: int) -> tuple[int, BatchHeader]:
        """(position, header) of the batch that holds `offset`, which must be in this segment."""
        with self._lock:
            block = opened.index.holding(offset, view.limit(segment))
        for position, header in self._headers(opened, block):
            if offset < header.next_offset:
                return position, header
        raise DamagedFile(str(opened.path), block.position, f"offset {offset} is not in the block where it is due")

    def batch_crc_at(self, base_offset: int) -> int | None:
        """The CRC field of the batch that starts at `base_offset`, written or fsynced; None if none starts there."""

        def crc(view: View) -> int | None:
            if not view.start_offset <= base_offset < view.end_offset:
                return None
            segment = view.holding(base_offset)
            with self._reading(segment) as opened:
                _, header = self._find(view, segment, opened, base_offset)
            return header.crc if header.base_offset == base_offset else None

        return self._with_view(crc, durable=False)

    def is_given_up(self, offset: int) -> bool:
        """Whether a gap record stands there in the place of a batch that all disks had spoilt. DamagedFile."""
        batch = next(iter(split_batches(self.read(offset, 1))))
        return is_of_damage(read_header(batch), batch)

    def offset_for_time(self, timestamp_ms: int) -> int | None:
        """The base offset of the first batch with a record at or after `timestamp_ms`; None if there is none.

        The first such *record* is in that batch, not necessarily at its start: the caller looks inside.
        """

        def find(view: View) -> int | None:
            for segment in view.segments:
                if segment.maximum_ms >= timestamp_ms:
                    for header in self._headers_reaching(view, segment, timestamp_ms):
                        return header.base_offset
            return None

        return self._with_view(find)

    def _headers_reaching(self, view: View, segment: Segment, timestamp_ms: int) -> Iterator[BatchHeader]:
        with self._reading(segment) as opened:
            with self._lock:
                blocks = opened.index.reaching(timestamp_ms, view.limit(segment))
            for block in blocks:
                for _, header in self._headers(opened, block):
                    if header.max_timestamp_ms >= timestamp_ms:
                        yield header

    def offset_until_time(self, timestamp_ms: int) -> int:
        """The offset behind the last batch with a record before `timestamp_ms`: all such records lie below it.

        It trusts a batch's baseTimestamp to be its smallest time, which our encoder guarantees.
        """

        def find(view: View) -> int:
            for segment in reversed(view.segments):
                if segment.minimum_ms < timestamp_ms:
                    end = self._end_of_times_before(view, segment, timestamp_ms)
                    if end is not None:
                        return end
            return view.start_offset

        return self._with_view(find)

    def _end_of_times_before(self, view: View, segment: Segment, timestamp_ms: int) -> int | None:
        with self._reading(segment) as opened:
            with self._lock:
                blocks = opened.index.beginning_before(timestamp_ms, view.limit(segment))
            for block in reversed(blocks):
                early = [
                    header for _, header in self._headers(opened, block) if header.base_timestamp_ms < timestamp_ms
                ]
                if early:
                    return early[-1].next_offset
        return None

    def _headers(self, opened: OpenSegment, block: Block) -> Iterator[tuple[int, BatchHeader]]:
        return read_batches(opened, block.position, block.end, block.offset, check=False)

    def _with_view(self, work: Callable[[View], T], *, durable: bool = True) -> T:
        """Runs `work` on the log as it is now; again, on what is left, if a trim took a segment from under it."""
        while True:
            view = self._view(durable)
            try:
                return work(view)
            except (FileGone, FileNotFoundError):
                if self.start_offset == view.start_offset:
                    raise

    def view(self, from_offset: int, to_offset: int) -> View:
        """The log as it is fsynced now. LogError OFFSET_OUT_OF_RANGE: it does not hold all of that, or it is empty."""
        view = self._view(durable=True)
        if not view.start_offset <= from_offset < to_offset <= view.end_offset:
            raise LogError(
                "OFFSET_OUT_OF_RANGE",
                f"{self.folder} holds offsets {view.start_offset} to {view.end_offset} (exclusive), "
                f"not all of {from_offset} to {to_offset}",
                start_offset=view.start_offset,
                end_offset=view.end_offset,
            )
        return view

    def batches_from(
        self, view: View, segment: Segment, from_offset: int, to_offset: int
    ) -> Iterator[tuple[BatchHeader, memoryview]]:
        """The batches of that segment in [from_offset, to_offset), each checked. DamagedFile. FileGone: trimmed."""
        with self._reading(segment) as opened:
            position, first = self._find(view, segment, opened, from_offset)
            found = read_bytes(opened, position, view.limit(segment), first.base_offset, check=True)
            for _, header, data in found:
                if header.base_offset >= to_offset:
                    return
                yield header, data

    def _view(self, durable: bool) -> View:
        with self._lock:
            segments = self._segments
            if not segments:
                return View((), self._first_offset, self._first_offset, 0)
            if durable:
                return View(segments, segments[0].base_offset, self._end_offset, self._durable_bytes)
            return View(segments, segments[0].base_offset, segments[-1].next_offset, segments[-1].size_bytes)

    # -- descriptors --------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self, segment: Segment) -> Iterator[OpenSegment]:
        opened = self._acquire(segment)
        try:
            yield opened
        finally:
            opened.release()

    def _acquire(self, segment: Segment) -> OpenSegment:
        opened = self._acquire_at_hand(segment)
        if opened is not None:
            return opened
        with self._loading:
            opened = self._acquire_at_hand(segment)  # another reader may have loaded it meanwhile
            if opened is not None:
                return opened
            opened = self.files.open_finished(segment)
            opened.acquire()
            with self._lock:
                if segment in self._segments:
                    self._keep(segment.base_offset, opened)
                else:
                    opened.retire()  # trimmed meanwhile; closed when this reader is done
            return opened

    def _acquire_at_hand(self, segment: Segment) -> OpenSegment | None:
        with self._lock:
            if self._segments and segment is self._segments[-1]:
                opened = self._active
            else:
                opened = self._opened.get(segment.base_offset)
                if opened is not None:
                    self._opened.move_to_end(segment.base_offset)
            if opened is not None:
                opened.acquire()
            return opened

    def _keep(self, base_offset: int, opened: OpenSegment) -> None:
        self._opened[base_offset] = opened
        if len(self._opened) > SEGMENTS_OPEN_MAX:
            _, oldest = self._opened.popitem(last=False)
            oldest.retire()

    def close(self) -> None:
        """Closes the files, without a sync."""
        with self._lock:
            self._retire_all()

    def _retire_all(self) -> None:
        for opened in (*self._opened.values(), *([self._active] if self._active else [])):
            opened.retire()
        self._opened.clear()

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self.files.folder

    def finished(self) -> tuple[Segment, ...]:
        """The segments that are written no more."""
        return self._segments[:-1]

    @property
    def start_offset(self) -> int:
        """The first offset that is held."""
        segments = self._segments
        return segments[0].base_offset if segments else self._first_offset

    @property
    def end_offset(self) -> int:
        """The offset behind the last batch that is fsynced."""
        return self._end_offset

    @property
    def append_end(self) -> int:
        """The offset behind the last batch that is written."""
        segments = self._segments
        return segments[-1].next_offset if segments else self._first_offset

    @property
    def size_bytes(self) -> int:
        """Of all segments, including what is not fsynced yet."""
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    def facts(self) -> list[SegmentFacts]:
        """The segments as retention looks at them, in offset order; the last one is active."""
        return [SegmentFacts(s.base_offset, s.next_offset, s.size_bytes, s.maximum_ms) for s in self._segments]


def _remove(segments: Sequence[Segment]) -> None:
    """Oldest first: a crash in between leaves no hole."""
    for segment in segments:
        segment.aside_path.unlink(missing_ok=True)
        unlink(segment.path)
        segment.leaves_path.unlink(missing_ok=True)
        unlink(segment.index_path)


def _checked_batches(data: bytes, offset: int, path: Path, position: int) -> memoryview:
    """The whole batches that `data` begins with, each verified; the first one is whole."""
    view, end = memoryview(data), 0
    try:
        while not end or len(view) - end >= HEADER_BYTES:
            header = read_header(view, end)
            if end and end + header.size_bytes > len(view):
                break
            check_batch(view[end : end + header.size_bytes])
            check_offset(header, offset)
            end, offset = end + header.size_bytes, header.next_offset
    except FrameError as error:
        raise DamagedFile(str(path), position + end, str(error)) from error
    return view[:end]
