"""Segments whose bytes went bad on the disk: found by reading them again, and made whole from what peers hold.

    finished segments ─► read from the disk at a bounded rate, every batch checked ─► bad ─┐
    a fetch meets bad bytes ───────────────────────────────────────────────────────────────┴─► mend, then read again

    mend:  own batches as far as they are good ┐
           each bad one, as another sends it   ┴─► new file, fsynced ─► the bad one is set aside ─► the new one is there

Replicas hold the same bytes at the same places, and so do mirrors: the new file is as long as the old one. Only what is
bad crosses the network, from a sink of the zone or else from one of another zone (`sinkd.shell.elsewhere`). Serving
goes on. What nobody has stays as it is, a fact in log and metrics: it is never served, and a fetch that asks for it
fails by name. Only finished segments are mended: damage to the one that is written, to the
journal or to a checkpoint ends the sink, which its peers then fill.

A page cache hides what the disk has become, so the pages of a segment are dropped before it is read again. How often a
disk errs without a word: Bairavasundaram et al., An Analysis of Data Corruption in the Storage Stack (FAST 2008).
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog

from protocol.errors import DamagedFile, FrameError, LogError
from protocol.limits import (
    LINK_FRAME_BYTES_MAX,
    PULL_BYTES,
    SCRUB_BEGIN_MS,
    SCRUB_ROUND_MS_MIN,
    SEGMENT_SCAN_BYTES,
)
from protocol.records import HEADER_BYTES, check_batch, read_header, split_batches
from protocol.streams import StreamState
from sinkd.core.formats import SEGMENT_HEADER_BYTES, SegmentHeader, encode_segment_header
from sinkd.shell.elsewhere import Elsewhere
from sinkd.shell.files import NO_SPACE, SharedFile, read_at, temporary_of, write_at
from sinkd.shell.segment_files import Segment, SegmentFiles, check_offset, read_batches
from sinkd.shell.store import Partition, Store

Pull = Callable[[str, StreamState, int, int, int], Awaitable[tuple[int, bytes]]]
"""(sink, stream, partition, offset, most bytes) → (start offset, whole batches); LogError: it has none."""

log = structlog.get_logger()


class Progress(NamedTuple):
    """Of the round that is under way, or of the last one: bytes that it has read, of so many; rounds that ended."""

    read_bytes: int
    of_bytes: int
    rounds: int
    is_under_way: bool


class Scrubber:
    """Of one replica. `damaged` names the files that are bad now, `mended` counts those that are whole again."""

    def __init__(
        self,
        store: Store,
        writer: Executor,
        pull: Pull,
        sources: Callable[[], list[str]],
        tell_mended: Callable[[Partition, int, dict[str, int]], None],
        rate_bytes: int,
        elsewhere: Elsewhere,
    ) -> None:
        """`sources` names the peers that may be asked, best first; then sinks `elsewhere` are.

        `tell_mended` gets partition, base offset and how many bytes came from whom. `rate_bytes` a second are read, by
        a round that was asked for as fast as it can; 0: by no other.
        """
        self._store, self._writer, self._pull, self._sources = store, writer, pull, sources
        self._elsewhere = elsewhere
        self._tell_mended, self._rate_bytes = tell_mended, rate_bytes
        self._mending = asyncio.Lock()
        self._due: dict[str, tuple[Partition, DamagedFile]] = {}  # by file
        self._wake, self._is_asked = asyncio.Event(), False
        self.damaged: dict[str, str] = {}  # by file: what is wrong
        self.progress = Progress(0, 0, 0, False)
        self.read_bytes = self.found = self.mended = 0

    # -- rounds -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begins a round now, or has the one that is under way not wait any more."""
        self._is_asked = True
        self._wake.set()

    async def run(self) -> None:
        """Rounds without end. OSError: this disk fails."""
        loop = asyncio.get_running_loop()
        due_at = loop.time() + SCRUB_BEGIN_MS / 1000
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_at if self._rate_bytes else None):
                    await self._wake.wait()
            self._wake.clear()
            await self._mend_due()
            if self._is_asked or (self._rate_bytes and loop.time() >= due_at):
                await self._round()
                self._is_asked = False
                due_at = loop.time() + SCRUB_ROUND_MS_MIN / 1000

    async def _round(self) -> None:
        work = [(each, segment) for each in self._store.partitions for segment in each.log.finished()]
        of_bytes, rounds = sum(segment.size_bytes for _, segment in work), self.progress.rounds
        self.progress = Progress(0, of_bytes, rounds, True)
        for partition, segment in work:
            await self._mend_due()
            await self._look_at(partition, segment)
            self.progress = self.progress._replace(read_bytes=self.progress.read_bytes + segment.size_bytes)
        self.progress = self.progress._replace(rounds=rounds + 1, is_under_way=False)
        if work:
            log.info("scrubbed", group=self._store.group, bytes=of_bytes, segments=len(work), damaged=len(self.damaged))

    async def _look_at(self, partition: Partition, segment: Segment) -> None:
        try:
            await self._check(partition, segment, paced=True)
        except DamagedFile as damage:
            await self.mend(partition, damage)
        else:
            self.damaged.pop(str(segment.path), None)

    async def _check(self, partition: Partition, segment: Segment, *, paced: bool) -> None:
        """DamagedFile: some of it is bad."""
        batches = checked(partition.log.files, segment)
        is_read = False
        while not is_read:
            try:
                is_read, read_bytes = await self._store.on_reader(lambda: _some_of(batches))
            except FileNotFoundError:
                if segment not in partition.log.finished():
                    return  # trimmed meanwhile
                raise DamagedFile(str(segment.path), 0, "it is gone") from None
            self.read_bytes += read_bytes
            if paced and not self._is_asked:
                await asyncio.sleep(read_bytes / self._rate_bytes)

    # -- mending ------------------------------------------------------------------------------------------------------

    async def mend_later(self, partition: Partition, damage: DamagedFile) -> str | None:
        """As `mend`, but it waits for nothing."""
        if all(str(segment.path) != damage.file for segment in partition.log.finished()):
            return None
        if damage.file not in self.damaged:  # else the peer that asks may be one that was asked for it in vain
            self._due[damage.file] = partition, damage
            self._wake.set()
        return "it has to be mended first"

    async def _mend_due(self) -> None:
        while self._due:
            _, due = self._due.popitem()
            await self.mend(*due)

    async def mend(self, partition: Partition, damage: DamagedFile) -> str | None:
        """Makes the finished segment whole that `damage` is about: "", or why it cannot be. None: it is about none."""
        segment = next((one for one in partition.log.finished() if str(one.path) == damage.file), None)
        if segment is None:
            return None
        async with self._mending:
            try:
                await self._check(partition, segment, paced=False)
            except DamagedFile as found:
                try:
                    return await self._mend(partition, segment, found)
                except asyncio.CancelledError:  # who has met it waits no more: it is mended all the same
                    self._due[damage.file] = partition, damage
                    self._wake.set()
                    raise
            return ""  # mended by another one meanwhile, or trimmed

    async def _mend(self, partition: Partition, segment: Segment, damage: DamagedFile) -> str:
        if damage.file not in self.damaged:
            self.found += 1
            self.damaged[damage.file] = str(damage)
            log.error("segment_damaged", error=str(damage), consequence="its peers are asked for what is bad")
        pulled: dict[str, int] = {}
        try:
            problem, pulled = await self._write_anew(partition, segment)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            problem = str(error)
        if problem:
            log.error("segment_not_mended", file=damage.file, error=problem)
            return problem
        self.mended += 1
        self.damaged.pop(damage.file, None)
        log.info("segment_mended", file=damage.file, pulled_bytes=sum(pulled.values()), sources=list(pulled))
        self._tell_mended(partition, segment.base_offset, pulled)
        return ""

    async def _write_anew(self, partition: Partition, segment: Segment) -> tuple[str, dict[str, int]]:
        """(why that cannot be done or "", bytes that others have sent, by who has)."""
        begins_anew = segment.base_offset == partition.log.start_offset
        copy = Copy(partition.log.files, segment, begins_anew=begins_anew)
        try:
            while not copy.is_complete:
                if not await self._store.on_reader(copy.take_own) and (problem := await self._pulled(copy, partition)):
                    return problem, {}
            await asyncio.get_running_loop().run_in_executor(self._writer, copy.put_in_place, partition.log.put)
            return "", copy.pulled
        finally:
            copy.close()
            self._elsewhere.close()

    async def _pulled(self, copy: "Copy", partition: Partition) -> str:
        """Brings the copy at least one batch further by what another sink has; why that cannot be done, or ""."""
        problem = "no other sink is there to ask"
        place = partition.stream, partition.number, copy.offset
        for name in self._sources():
            for bytes_max in (PULL_BYTES, 1):  # there may be damage behind the batch that is wanted
                try:
                    _, data = await self._pull(name, *place, bytes_max)
                    await self._store.on_reader(partial(copy.take, data, name))
                except (LogError, FrameError) as error:
                    problem = f"{name}: {error}"
                else:
                    return ""
        for zone in self._elsewhere.zones(partition.stream):
            try:
                name, data = await self._elsewhere.pull(zone, *place)
                await self._store.on_reader(partial(copy.take, data, f"{name} of zone {zone}"))
            except (LogError, FrameError) as error:
                problem = f"{problem}; {error}"
            else:
                return ""
        return f"offset {copy.offset}: {problem}"


def _some_of(batches: Iterator[int]) -> tuple[bool, int]:
    """(whether that was all, bytes) of about as many batches as one read takes."""
    read_bytes = 0
    for size_bytes in batches:
        read_bytes += size_bytes
        if read_bytes >= SEGMENT_SCAN_BYTES:
            return False, read_bytes
    return True, read_bytes


def checked(files: SegmentFiles, segment: Segment) -> Iterator[int]:
    """Reads a finished segment from the disk: the bytes of each batch. DamagedFile. FileNotFoundError: it is gone."""
    with files.opened_alone(segment) as opened:
        os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size_bytes, offset = os.fstat(opened.descriptor).st_size, segment.base_offset
        try:
            for _, header in read_batches(opened, SEGMENT_HEADER_BYTES, size_bytes, offset, check=True):
                offset = header.next_offset
                yield header.size_bytes
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise DamagedFile(str(segment.path), 0, f"behind offset {offset} the disk cannot read it") from error
        if (size_bytes, offset) != (segment.size_bytes, segment.next_offset):
            what = f"it ends at offset {offset}, byte {size_bytes}: {segment.next_offset}, {segment.size_bytes} are due"
            raise DamagedFile(str(segment.path), size_bytes, what)


class Copy:
    """A finished segment written anew beside the old file. Its methods are for threads, one at a time."""

    def __init__(self, files: SegmentFiles, segment: Segment, *, begins_anew: bool) -> None:
        self._segment = segment
        self.offset, self._position = segment.base_offset, SEGMENT_HEADER_BYTES
        self.pulled: dict[str, int] = {}  # bytes, by who has sent them
        flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC  # if it is gone, there is nothing of it to take
        self._old = SharedFile(segment.path, os.open(segment.path, flags, 0o600))
        path = temporary_of(segment.path)
        self._new = SharedFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        header = SegmentHeader(files.incarnation, files.partition, segment.base_offset, int(begins_anew))
        write_at(self._new.descriptor, [encode_segment_header(header)], 0)

    @property
    def is_complete(self) -> bool:
        return self.offset >= self._segment.next_offset

    def take_own(self) -> bool:
        """Takes the good batches of the old file from here on; whether there was one."""
        good, next_offset = self._good(self._own(LINK_FRAME_BYTES_MAX))
        self._append(good, next_offset)
        return bool(good)

    def _own(self, size_bytes: int) -> bytes:
        """So many bytes of the old file from here on, or fewer; b"" where the disk cannot read them."""
        size_bytes = min(size_bytes, self._segment.size_bytes - self._position)
        try:
            with self._old.reading() as descriptor:
                return read_at(descriptor, size_bytes, self._position)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""

    def _good(self, data: bytes) -> tuple[memoryview, int]:
        """(the batches that `data` begins with, as long as they are good and where they are due, the next offset)."""
        view, end, offset = memoryview(data), 0, self.offset
        with contextlib.suppress(FrameError):
            while len(view) - end >= HEADER_BYTES and offset < self._segment.next_offset:
                header = read_header(view, end)
                check_offset(header, offset)
                check_batch(view[end : end + header.size_bytes])
                end, offset = end + header.size_bytes, header.next_offset
        return view[:end], offset

    def take(self, data: bytes, source: str) -> None:
        """Takes what `source` sent, up to where the old file is good again. FrameError: not the batches due."""
        before = self.offset
        for batch in split_batches(data):
            header = check_batch(batch)
            if header.next_offset <= self.offset:
                continue
            if self.is_complete or (self.offset > before and self._own(len(batch)) == batch):
                break  # what comes next is in the next segment here, or good
            check_offset(header, self.offset)
            self._append(batch, header.next_offset)
            self.pulled[source] = self.pulled.get(source, 0) + len(batch)
        if self.offset == before:
            raise FrameError(f"no batch for offset {before}")

    def _append(self, batches: memoryview, next_offset: int) -> None:
        end = self._position + len(batches)
        due = self._segment.next_offset, self._segment.size_bytes
        if next_offset > due[0] or end > due[1] or (next_offset == due[0] and end != due[1]):
            raise FrameError(
                f"batches to offset {next_offset}, byte {end}: the segment ends at {due[0]}, byte {due[1]}"
            )
        with self._new.reading() as descriptor:
            write_at(descriptor, [bytes(batches)], self._position)
        self.offset, self._position = next_offset, end

    def put_in_place(self, put: Callable[[Segment, Path], None]) -> None:
        """Durable, then in the place of the old one. On the writer's thread."""
        with self._new.reading() as descriptor:
            os.fsync(descriptor)
        put(self._segment, self._new.path)

    def close(self) -> None:
        """In any case; a thread may still be at it, if nobody waits for it any more."""
        self._old.retire()
        self._new.retire()
        self._new.path.unlink(missing_ok=True)
