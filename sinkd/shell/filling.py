"""How a sink gets what it lacks: segments by pulls from its peers, then the leader's checkpoint, then the journal.

    offered checkpoint ─► for each partition: pull from the own end to the checkpoint's ─► into segments, fsynced
                       ─► checkpoint durable ─► journal reset to it ─► state machine restored ─► appends go on behind it

What is pulled is committed and stands at its offset for good, so it can be kept whatever happens next: after a crash
the pulls go on where they were. Segments have no holes: a sink that is being filled serves no history beyond its end,
and gateways read from the leader. Where the leader's history begins later, so does ours.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

import structlog

from protocol.errors import DamagedFile, DataError, FrameError, LogError
from protocol.records import read_header, split_batches
from protocol.streams import StreamState
from sinkd.core.formats import Checkpoint
from sinkd.core.machine import Machine
from sinkd.core.state import PartitionState
from sinkd.shell.peers import Peers
from sinkd.shell.segments import PartitionLog
from sinkd.shell.store import Store

PAUSE_S = 0.2
log = structlog.get_logger()


class Filling:
    """Fills one sink up to one checkpoint; `held_bytes` of `wanted` is its progress."""

    def __init__(self, peers: Peers, store: Store, writer: Executor, sources: Callable[[], list[str]]) -> None:
        """`sources` names the sinks that may be asked, best first."""
        self._peers, self._store, self._writer, self._sources = peers, store, writer, sources
        self.pulled_bytes = 0
        self.now = ""

    async def fill(self, saved: Checkpoint) -> None:
        """Returns when every segment that `saved` speaks of is durable here. OSError, DamagedFile: this disk fails."""
        for stream, number, wanted in Machine(saved.state, self._store.group).partitions():
            partition = self._store.log_of(stream, number)
            if wanted.start_offset == wanted.end_offset > partition.append_end:  # all of it was trimmed
                await asyncio.get_running_loop().run_in_executor(self._writer, partition.begin_at, wanted.end_offset)
            while partition.append_end < wanted.end_offset:
                self.now = f"{stream.name}/{number}: {partition.append_end} of {wanted.end_offset}"
                await self._pull(partition, stream, number, wanted)
        self.now = ""

    async def _pull(self, partition: PartitionLog, stream: StreamState, number: int, wanted: PartitionState) -> None:
        offset = max(partition.append_end, wanted.start_offset)
        for name in self._sources():
            try:
                start_offset, data = await self._peers.pull(name, stream, number, offset)
            except LogError as error:
                log.info("pull_failed", sink=name, stream=stream.name, partition=number, error=str(error))
                continue
            loop, begins_at = asyncio.get_running_loop(), max(start_offset, wanted.start_offset)
            try:
                await loop.run_in_executor(self._writer, _keep, partition, data, wanted.end_offset, begins_at)
            except DamagedFile:
                raise
            except (FrameError, DataError) as error:
                log.warning("pulled_bad_batches", sink=name, stream=stream.name, partition=number, error=str(error))
                continue
            self.pulled_bytes += len(data)
            return
        await asyncio.sleep(PAUSE_S)


def _keep(partition: PartitionLog, data: bytes, end_offset: int, begins_at: int) -> None:
    """On the writer's thread: checked batches into the segments, durable. FrameError: not the batches that are due.

    History begins at `begins_at`: since the checkpoint was written, peers may have trimmed more, or all of it.
    """
    if begins_at >= end_offset > partition.append_end:
        partition.begin_at(end_offset)
    for batch in split_batches(data):
        header = read_header(batch)
        if header.base_offset >= end_offset or header.next_offset <= partition.append_end:
            continue
        if header.base_offset > partition.append_end:
            if header.base_offset > begins_at:
                raise FrameError(f"a batch at offset {header.base_offset} where {partition.append_end} is due")
            partition.begin_at(header.base_offset)
        partition.append(bytes(batch), header.base_offset, header.leader_epoch)
    partition.sync()
