"""Leaves that do not lead to the root that their log has committed, because a segment was altered and its leaves lost.

The leaves beside a segment are made anew from it when they are gone or wrong. If the segment had been altered by then,
with right CRCs, they are those of something else, and the root over all of them shows it, though not where. So the
batches of another sink are hashed, segment by segment; where its leaves are others, they take the place of those here.
If they lead to the committed root then, they are the committed ones, and the segments are mended by them as any other
(`sinkd.shell.mending`). If not, all stays as it was: the other sink may be the one that is wrong.

This moves a whole log between two sinks. It happens where two files of one disk were changed in the same way.
"""

from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from protocol.errors import DamagedFile, FrameError, LogError
from protocol.gaps import leaf_digest
from protocol.merkle import root_of
from protocol.records import check_batch, split_batches
from sinkd.core.formats import LEAF_BYTES
from sinkd.shell.leaves import leaves_of, pack, write_if_there_is_space, write_leaves
from sinkd.shell.segment_files import Segment
from sinkd.shell.store import Partition, Store, tree_start

Asker = Callable[[int], Awaitable[tuple[str, bytes]]]
"""offset → (who has sent them, whole batches from the one that holds it). LogError, FrameError: it has none."""

log = structlog.get_logger()


async def _go_on(leaves_bytes: int) -> None:
    """Without a pause."""


async def problem_of(store: Store, partition: Partition, pause: Callable[[int], Awaitable[None]] = _go_on) -> str:
    """How the root of what segments and journal have, each leaf read, is not the committed one; "" if it is.

    `pause` is waited for behind each segment, with the bytes of its leaves. LogError, DamagedFile, FrameError: it
    cannot be known.
    """
    if (covered := partition.replicated.tree) is None:
        return ""
    await store.on_reader(partition.log.tree.forget)
    size = 0
    for segment in partition.log.finished():
        if segment.next_offset > max(tree_start(partition).offset, covered.begin_offset):
            at = await store.tree_at(partition, segment.next_offset)
            await pause(LEAF_BYTES * (at.size - size))
            size = at.size
    tree, end_offset = partition.replicated.tree, partition.high_watermark
    if tree is None:
        return ""
    committed, found = root_of(tree.frontier), root_of((await store.tree_at(partition, end_offset)).frontier)
    if found == committed or partition.replicated.tree is not tree:  # or another history is here now
        return ""
    return f"its root at offset {end_offset} is {found.hex()}, {committed.hex()} was committed"


async def correct(store: Store, partition: Partition, askers: list[Asker]) -> list[Segment]:
    """The segments whose leaves were corrected, which are to be mended by them; none if nobody leads to the root."""
    for ask in askers:
        before: list[tuple[Segment, bytes]] = []
        try:
            for segment in partition.log.finished():
                own = await store.on_reader(partial(leaves_of, partition.log.files, segment))
                others = await _leaves_of_other(ask, segment)
                if others != own:
                    before.append((segment, own))
                    await store.on_reader(partial(_write, partition, segment, others))
            if before and not await problem_of(store, partition):
                return [segment for segment, _ in before]
        except (LogError, FrameError, DamagedFile, FileNotFoundError) as error:
            log.warning("leaves_not_corrected", log=partition.stream.name, error=str(error))
        for segment, own in before:
            await store.on_reader(partial(_write, partition, segment, own))
        await store.on_reader(partition.log.tree.forget)
    return []


def _write(partition: Partition, segment: Segment, leaves: bytes) -> None:
    """Where there is no space for it, all is as it was."""
    write_if_there_is_space(lambda: write_leaves(partition.log.files, segment, leaves))


async def _leaves_of_other(ask: Asker, segment: Segment) -> bytes:
    """Those of the segment, by the batches of another sink. LogError, FrameError: it has not got all."""
    leaves, offset = bytearray(), segment.base_offset
    while offset < segment.next_offset:
        _, data = await ask(offset)
        begin = offset
        for batch in split_batches(data):
            header = check_batch(batch)
            if header.base_offset == offset < segment.next_offset:
                leaves += pack(offset, leaf_digest(header, batch))
                offset = header.next_offset
        if offset == begin:
            raise FrameError(f"no batch at offset {offset}")
    return bytes(leaves)
