"""Committed batches, wherever they lie: in the journal at first (hot), later in segments (cold).

    note ─► hot: journal positions ─► flush: into segments, fdatasync ─► cold ─► checkpoint ─► journal files recycled

Applying a command only notes where its batches stand in the journal. A flush copies them into the partitions' segments
in lumps, on a thread; readers are served from segments up to their durable end and from the journal above it. After a
restart, commands behind the checkpoint are applied again: a batch that the segments hold already must be the same.
"""

import asyncio
import contextlib
from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog
from msgspec import structs

from protocol.errors import DamagedFile, DataError, FrameError, LogError
from protocol.gaps import leaf_digest
from protocol.limits import FLUSH_BYTES
from protocol.merkle import grow, leaf_hash
from protocol.records import CONTROL, check_batch, place_batch, read_header, read_records, split_batches
from protocol.streams import StreamState
from sinkd.core.commands import Trim
from sinkd.core.formats import TreePosition
from sinkd.core.machine import Machine, Placement
from sinkd.core.state import PartitionState
from sinkd.shell.journal import Journal, Position
from sinkd.shell.segments import PartitionLog

T = TypeVar("T")
Mend = Callable[["Partition", DamagedFile], Awaitable[str | None]]
"""Makes whole what that is about: "", or why it is not. None: no finished segment is damaged."""
log = structlog.get_logger()
COMMAND_TYPE_BYTES = 1  # stands before our bytes in every journal entry


class HotBatch(NamedTuple):
    """A committed batch in the journal: bytes [start, start + size) of the entry at `position`."""

    base_offset: int
    next_offset: int
    max_timestamp_ms: int
    base_timestamp_ms: int
    leader_epoch: int
    position: Position
    start: int
    size_bytes: int
    digest: bytes = b""  # D, if it is covered


class Partition:
    """One partition's log: its segments, its hot batches, and who waits for more."""

    def __init__(self, state: StreamState, number: int, replicated: PartitionState, log: PartitionLog) -> None:
        self.stream, self.number, self.replicated, self.log = state, number, replicated, log
        self.hot: deque[HotBatch] = deque()
        self.waiters: set[asyncio.Future[None]] = set()

    @property
    def start_offset(self) -> int:
        return self.replicated.start_offset

    @property
    def high_watermark(self) -> int:
        return self.replicated.end_offset

    @property
    def size_bytes(self) -> int:
        return self.log.size_bytes + sum(batch.size_bytes for batch in self.hot)

    def hot_from(self, offset: int) -> list[HotBatch]:
        """The hot batches from the one that holds `offset` on."""
        return list(self.hot)[max(0, bisect_right(self.hot, offset, key=lambda batch: batch.base_offset) - 1) :]


class Store:
    """All partitions of a Raft group. Only its `flush` and the reads leave the event loop's thread."""

    def __init__(self, journal: Journal, log_folder: Path, machine: Machine, segment_bytes: int) -> None:
        """Opens the segments of every partition that `machine` (from the checkpoint) knows."""
        self._journal, self._log_folder, self._machine = journal, log_folder, machine
        self._segment_bytes = segment_bytes
        self._partitions: dict[tuple[bytes, int], Partition] = {}
        self._reader = ThreadPoolExecutor(2, "log-read")
        self._woken: dict[tuple[bytes, int], None] = {}  # in the order of the log, so that a simulation replays
        self.group = machine.number
        self.hot_bytes = 0
        self.wants_flush = asyncio.Event()
        self.mend: Mend | None = None  # of a finished segment, where there are peers; `mend_later` does not wait for it
        self.mend_later: Mend | None = None
        for state, number, replicated in machine.partitions():
            self._open(state, number, replicated, replicated.end_offset)

    def _open(self, state: StreamState, number: int, replicated: PartitionState, durable_end: int) -> Partition:
        name = state.name.partition("~")[0]  # a mirror that is left keeps its folder under its new name
        folder = self._log_folder / f"{name}-{state.incarnation.hex()}" / str(number)
        log = PartitionLog.open(
            folder,
            incarnation=state.incarnation,
            partition=number,
            segment_bytes=self._segment_bytes,
            durable_end=durable_end,
            first_offset=replicated.start_offset,
        )
        partition = Partition(state, number, replicated, log)
        self._partitions[state.incarnation, number] = partition
        return partition

    def close(self) -> None:
        self._reader.shutdown()
        for partition in self._partitions.values():
            partition.log.close()

    def partition(self, name: str, number: int) -> Partition:
        """LogError UNKNOWN_STREAM, UNKNOWN_PARTITION."""
        state = self.stream(name)
        if not 0 <= number < state.partitions:
            known = f"partitions 0 to {state.partitions - 1}"
            raise LogError("UNKNOWN_PARTITION", f"stream {name} has {known}, not {number}")
        if (group := state.group_of(number)) != self.group:
            raise LogError("UNKNOWN_PARTITION", f"partition {number} of {name} is in group {group} of this zone")
        return self._known(state, number)

    def stream(self, name: str) -> StreamState:
        """The stream, or the mirror of another zone's. LogError UNKNOWN_STREAM."""
        stream = self._machine.log(name)
        if stream is None:
            state = self._machine.state
            known = ", ".join(sorted((*state.streams, *state.mirrors))) or "none"
            raise LogError("UNKNOWN_STREAM", f"no stream {name!r}; streams are {known}")
        return stream.state

    def _known(self, state: StreamState, number: int) -> Partition:
        partition = self._partitions.get((state.incarnation, number))
        if partition is None:
            stream = self._machine.log(state.name)
            assert stream is not None
            partition = self._open(state, number, stream.partitions[number], 0)
        return partition

    def incarnation(self, incarnation: bytes, number: int) -> Partition:
        """The partition of whatever has this incarnation, under whatever name. LogError UNKNOWN_STREAM."""
        for state, partition, _ in self._machine.partitions():
            if (state.incarnation, partition) == (incarnation, number):
                return self._known(state, number)
        raise LogError("UNKNOWN_STREAM", f"no stream here has incarnation {incarnation.hex()} and partition {number}")

    def renew(self) -> None:
        """Streams have changed: partitions that are open know them as they are now."""
        for state, number, _ in self._machine.partitions():
            known = self._partitions.get((state.incarnation, number))
            if known is not None:
                known.stream = state

    def log_of(self, state: StreamState, number: int) -> PartitionLog:
        """The segments of a partition that the state machine may not know yet: for one that is being filled."""
        known = self._partitions.get((state.incarnation, number))
        return known.log if known is not None else self._open(state, number, PartitionState(ids={}), 0).log

    def restored(self) -> None:
        """The state machine has become another one: what is hot is void, everything that it knows is in segments."""
        self.hot_bytes = 0
        for state, number, replicated in self._machine.partitions():
            self.log_of(state, number)
            partition = self._partitions[state.incarnation, number]
            partition.stream, partition.replicated = state, replicated
            partition.hot.clear()
            self._woken[state.incarnation, number] = None

    # -- from apply ---------------------------------------------------------------------------------------------------

    def note(self, placement: Placement, index: int, term: int) -> None:
        """A batch was committed by the entry at `index`. DamagedFile: the segments contradict the journal."""
        partition = self._known(placement.stream, placement.partition)
        header, base_offset = placement.header, placement.base_offset
        next_offset = base_offset + header.last_offset_delta + 1
        if placement.stream.is_mirror:
            term = header.leader_epoch  # the same bytes as in the origin
        self._woken[placement.stream.incarnation, placement.partition] = None
        if next_offset <= partition.log.end_offset:
            # What lies below the log's start was trimmed, or was let go when a sink that is being filled began anew.
            is_here = base_offset >= partition.log.start_offset
            is_same = not is_here or partition.log.batch_crc_at(base_offset) == header.crc
            if not is_same and not partition.log.is_given_up(base_offset):
                what = f"offset {base_offset} holds another batch than the journal's entry {index}"
                raise DamagedFile(str(partition.log.folder), 0, what)
            return
        end = partition.hot[-1].next_offset if partition.hot else partition.log.end_offset
        if base_offset != end:
            what = f"the segments end at offset {end}, the journal's entry {index} continues at {base_offset}"
            raise DamagedFile(str(partition.log.folder), 0, what)
        start = COMMAND_TYPE_BYTES + placement.position
        times = header.max_timestamp_ms, header.base_timestamp_ms
        position = self._journal.locate(index)
        hot = HotBatch(
            base_offset, next_offset, *times, term, position, start, header.size_bytes, placement.digest
        )  # fmt: skip
        partition.hot.append(hot)
        self.hot_bytes += header.size_bytes
        if self.hot_bytes >= FLUSH_BYTES:
            self.wants_flush.set()

    def wake_readers(self) -> None:
        """After a tick: whoever waits at the high watermark of a partition that has grown may go on."""
        for key in self._woken:
            partition = self._partitions[key]
            waiters, partition.waiters = partition.waiters, set()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        self._woken.clear()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def wait_for_more(self, partition: Partition, offset: int, wait_ms: int) -> None:
        """Until the high watermark is above `offset`, at most `wait_ms`."""
        if partition.high_watermark > offset or wait_ms <= 0:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        partition.waiters.add(waiter)
        try:
            await asyncio.wait_for(waiter, wait_ms / 1000)
        except TimeoutError:
            return
        finally:
            partition.waiters.discard(waiter)

    async def read(
        self, partition: Partition, offset: int, bytes_max: int, *, for_peer: bool = False
    ) -> bytes | memoryview:
        """Whole committed batches from the one that holds `offset` on, at least one; b"" at the high watermark.

        What is bad is never served: mended first where that can be, but not while a peer waits that may mend its own.
        LogError OFFSET_OUT_OF_RANGE, STORAGE_ERROR. DamagedFile: it is in no place where it could be mended.
        """
        start_offset, high_watermark = partition.start_offset, partition.high_watermark
        if not start_offset <= offset <= high_watermark:
            raise LogError(
                "OFFSET_OUT_OF_RANGE",
                f"offset {offset} of {partition.stream.name} partition {partition.number} does not exist; "
                f"the log holds {start_offset} to {high_watermark} (exclusive)",
                start_offset=start_offset,
                high_watermark=high_watermark,
            )
        if offset == high_watermark:
            return b""
        mend = self.mend_later if for_peer else self.mend
        return await self._run(lambda hot: self._read(partition, hot, offset, bytes_max), partition, offset, mend)

    def bytes_from(self, partition: Partition, offset: int) -> int:
        """How many bytes lie at and behind `offset`; an estimate within the segment that holds it."""
        size_bytes = sum(batch.size_bytes for batch in partition.hot if batch.next_offset > offset)
        for segment in partition.log.facts():
            count = segment.next_offset - segment.base_offset
            if segment.next_offset > offset and count:
                size_bytes += segment.size_bytes * (segment.next_offset - max(offset, segment.base_offset)) // count
        return size_bytes

    async def offset_for_time(self, partition: Partition, timestamp_ms: int) -> tuple[int, int] | None:
        """(offset, time) of the first record at or after `timestamp_ms`."""
        return await self._run(lambda hot: self._find_time(partition, hot, timestamp_ms), partition, 0, self.mend)

    async def offset_until_time(self, partition: Partition, timestamp_ms: int) -> int:
        """An offset below which every record before `timestamp_ms` lies: behind the last batch that holds one."""

        def find(hot: list[HotBatch]) -> int:
            for batch in reversed(hot):
                if batch.base_timestamp_ms < timestamp_ms:
                    return batch.next_offset
            return max(partition.log.offset_until_time(timestamp_ms), partition.start_offset)

        return await self._run(find, partition, 0, self.mend)

    async def _run(
        self, work: Callable[[list[HotBatch]], T], partition: Partition, offset: int, mend: Mend | None
    ) -> T:
        """Runs `work` on a thread with the hot batches of this moment.

        Hot batches move into segments meanwhile, and their journal file may be written anew behind the reader's back.
        What it then reads fails its checksum, and the second look finds it in the segments. What is bad there is mended
        first, where there are peers to mend it from. LogError STORAGE_ERROR: they cannot.
        """
        with contextlib.suppress(FrameError, OSError, DamagedFile):
            return await self.on_reader(partial(work, partition.hot_from(offset)))
        try:
            return await self.on_reader(partial(work, partition.hot_from(offset)))
        except DamagedFile as damage:
            problem = await mend(partition, damage) if mend is not None else None
            if problem is None:
                raise
            if problem:
                raise LogError("STORAGE_ERROR", f"{damage}; {problem}") from damage
        return await self.on_reader(partial(work, partition.hot_from(offset)))

    async def on_reader(self, work: Callable[[], T]) -> T:
        """On a thread that reads."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)

    def _read(self, partition: Partition, hot: list[HotBatch], offset: int, bytes_max: int) -> bytes | memoryview:
        if not hot or offset < hot[0].base_offset:
            return partition.log.read(offset, bytes_max)
        parts: list[bytes] = []
        size_bytes = 0
        for batch in hot:
            if parts and size_bytes + batch.size_bytes > bytes_max:
                break
            parts.append(self.read_hot(batch))
            size_bytes += batch.size_bytes
        return b"".join(parts)

    def read_hot(self, batch: HotBatch) -> bytes:
        """The batch as it will stand in its segment. FrameError: these are not its bytes (any more)."""
        data = self._journal.read(batch.position, batch.start, batch.size_bytes)
        check_batch(data)
        return place_batch(data, batch.base_offset, batch.leader_epoch)

    def _find_time(self, partition: Partition, hot: list[HotBatch], timestamp_ms: int) -> tuple[int, int] | None:
        for batch in self._batches_from_time(partition, hot, timestamp_ms):
            if read_header(batch).attributes == CONTROL:
                continue
            for record in read_records(batch):
                if record.timestamp_ms >= timestamp_ms and record.offset >= partition.start_offset:
                    return record.offset, record.timestamp_ms
        return None

    def _batches_from_time(self, partition: Partition, hot: list[HotBatch], timestamp_ms: int) -> Iterator[bytes]:
        """Batches among which the first record at or after `timestamp_ms` is, earliest first."""
        cold = partition.log.offset_for_time(timestamp_ms)
        if cold is not None:
            yield from (bytes(batch) for batch in split_batches(partition.log.read(cold, 1)))
        yield from (self.read_hot(batch) for batch in hot if batch.max_timestamp_ms >= timestamp_ms)

    # -- trees --------------------------------------------------------------------------------------------------------

    async def tree_at(self, partition: Partition, end_offset: int) -> TreePosition:
        """The Merkle tree of the partition when it ended at `end_offset`, of what segments and journal have.

        LogError INVALID_REQUEST: it is not covered, or not there; OFFSET_OUT_OF_RANGE, STORAGE_ERROR as in `read`.
        """
        start = tree_start(partition)
        if not start.offset <= end_offset <= partition.high_watermark:
            raise LogError("INVALID_REQUEST", f"the tree of {_named(partition)} is known from offset {start.offset} to "
                           f"{partition.high_watermark}, not at {end_offset}")  # fmt: skip
        return await self._run(lambda hot: self._tree_at(partition, start, hot, end_offset), partition, 0, self.mend)

    def _tree_at(self, partition: Partition, start: TreePosition, hot: list[HotBatch], end_offset: int) -> TreePosition:
        cold_end = min([end_offset, *(batch.base_offset for batch in hot[:1])])
        here = partition.log.tree.position_at(start, max(cold_end, start.offset))
        frontier, size, offset = list(here.frontier), here.size, here.offset
        for batch in hot:
            if here.offset <= batch.base_offset < end_offset:
                leaf = leaf_hash(batch.base_offset, batch.digest or self._leaf_digest(batch))
                grow(frontier, size, leaf)
                size, offset = size + 1, batch.next_offset
        if offset != end_offset:
            raise LogError("OFFSET_OUT_OF_RANGE", f"no batch of {_named(partition)} ends at offset {end_offset}")
        return TreePosition(here.begin_offset, offset, size, tuple(frontier))

    def _leaf_digest(self, batch: HotBatch) -> bytes:
        data = self.read_hot(batch)
        return leaf_digest(read_header(data), data)

    async def with_tree(self, trim: Trim) -> Trim:
        """The trim with how the tree is there, so that what goes stays under the root.

        If that cannot be found out, because of damage that no peer could mend, the history goes all the same.
        """
        partition = self.incarnation(trim.incarnation, trim.partition)
        tree = partition.replicated.tree
        if tree is None or trim.to_offset <= tree.begin_offset:
            return trim
        try:
            at = await self.tree_at(partition, trim.to_offset)
        except (LogError, DamagedFile) as error:
            log.warning("trimmed_without_tree", log=_named(partition), offset=trim.to_offset, error=str(error))
            return trim
        return structs.replace(trim, size=at.size, frontier=at.frontier)

    # -- moving to segments -------------------------------------------------------------------------------------------

    def hot_batches(self) -> list[tuple[Partition, list[HotBatch]]]:
        """What a flush has to copy, as of now."""
        return [(partition, list(partition.hot)) for partition in self._partitions.values() if partition.hot]

    def copy_to_segments(self, work: list[tuple[Partition, list[HotBatch]]]) -> None:
        """On the writer's thread: `work` into segments, durable when this returns."""
        for partition, batches in work:
            partition.log.keeps_leaves = partition.replicated.tree is not None
            for batch in batches:
                if batch.base_offset >= partition.log.append_end:
                    self._copy(partition.log, batch)
            partition.log.sync()

    def _copy(self, log: PartitionLog, batch: HotBatch) -> None:
        data = self._journal.read(batch.position, batch.start, batch.size_bytes)
        try:
            log.append(data, batch.base_offset, batch.leader_epoch, batch.digest)  # which checks it
        except DamagedFile:
            raise
        except DataError as error:
            raise DamagedFile(str(self._journal.folder), batch.position.position, str(error)) from error

    def forget_hot(self, work: list[tuple[Partition, list[HotBatch]]]) -> None:
        """What `copy_to_segments` has made durable is read from there from now on.

        Two flushes may have copied the same (housekeeping's and one before a fill), or a fill has made it void.
        """
        for partition, batches in work:
            while partition.hot and partition.hot[0].next_offset <= batches[-1].next_offset:
                self.hot_bytes -= partition.hot.popleft().size_bytes

    def trim(self) -> None:
        """On the writer's thread: removes segments that lie wholly below their partition's start."""
        for partition in list(self._partitions.values()):
            partition.log.trim(partition.start_offset)

    @property
    def partitions(self) -> list[Partition]:
        return list(self._partitions.values())


def tree_start(partition: Partition) -> TreePosition:
    """The tree where the partition's log begins. LogError INVALID_REQUEST: it is not covered, or that is not known."""
    tree, start, begins_at = partition.replicated.tree, partition.replicated.tree_start, partition.start_offset
    if tree is None:
        raise LogError("INVALID_REQUEST", f"{_named(partition)} is not covered")
    if begins_at <= tree.begin_offset:
        return TreePosition(tree.begin_offset, tree.begin_offset, 0, ())
    if start is None or start.offset != begins_at:
        what = (
            f"what was trimmed of {_named(partition)} below offset {begins_at} is not known: segments were damaged then"
        )
        raise LogError("STORAGE_ERROR", what)
    return TreePosition(tree.begin_offset, start.offset, start.size, start.frontier)


def _named(partition: Partition) -> str:
    return f"partition {partition.number} of {partition.stream.name}"
