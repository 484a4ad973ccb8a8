"""Batches that the disks of all sinks have spoilt, in the replicated state: an operator has had them given up.

All sinks of the group then have the same gap record stand in the place of each (`sinkd.shell.mending`), with the
digest of what was there. So the tree of the log stays as it is, and what is found after all can be put back: when the
sink that leads has it again, it is forgotten here.
"""

from typing import NamedTuple

from protocol.limits import DAMAGED_BATCHES_MAX
from protocol.merkle import HASH_BYTES
from protocol.streams import StreamState
from sinkd.core.commands import GiveUp
from sinkd.core.state import COVERAGE_VERSION, Damaged, PartitionState, State


class GivenUp(NamedTuple):
    """`batches` of a log were given up by the operator at `who`; with a `refusal` none was."""

    stream: StreamState | None
    partition: int
    batches: tuple[Damaged, ...] = ()
    who: str = ""
    refusal: str = ""


def give_up(state: State, number: int, request: GiveUp) -> GivenUp:
    """In group `number`; what was given up before stays as it is."""
    log = state.streams.get(request.log) or state.mirrors.get(request.log)
    if log is None or log.state.incarnation != request.incarnation:
        return GivenUp(None, request.partition, refusal=f"there is no log {request.log} of that incarnation")
    refused = GivenUp(log.state, request.partition)
    if not 0 <= request.partition < log.state.partitions or log.state.group_of(request.partition) != number:
        return refused._replace(refusal=f"partition {request.partition} of {request.log} is not in group {number}")
    partition = log.partitions[request.partition]
    trim(partition)
    partition.damaged = [one for one in partition.damaged if one.base_offset not in request.found]
    known = {one.base_offset for one in partition.damaged}
    new = [one for one in request.batches if one[0] not in known]
    for base_offset, next_offset, digest in new:
        is_there = partition.start_offset <= base_offset < next_offset <= partition.end_offset
        if not is_there or len(digest) != HASH_BYTES:
            return refused._replace(refusal=f"offsets {base_offset} to {next_offset} are no batch of {request.log}")
    if len(known) + len(new) > DAMAGED_BATCHES_MAX:
        what = f"{len(new)} batches, and {len(known)} were given up: at most {DAMAGED_BATCHES_MAX} can be"
        return refused._replace(refusal=what)
    batches = tuple(Damaged(*one, state.now_ms, request.who) for one in new)
    partition.damaged.extend(batches)
    state.version = max(state.version, COVERAGE_VERSION)
    return GivenUp(log.state, request.partition, batches, request.who)


def trim(partition: PartitionState) -> None:
    """Forgets what the log has let go of."""
    partition.damaged = [one for one in partition.damaged if one.next_offset > partition.start_offset]
