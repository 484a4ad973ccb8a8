"""Mirrors of other zones' logs, as the replicated state machine keeps them.

The mirror of zone eu's `orders` is the log `orders@eu`: the same batches at the same offsets, under the incarnation of
the origin. It is a log like any other, with partitions of its own in the groups of this zone, but what it holds was
decided elsewhere: batches are taken at exactly the offsets that they bring and behind the very batch that they follow
at the origin, or not at all. So whoever leads here, and
however often the same is sent, a mirror is a prefix of its origin, or says where it is not: a gap record (a control
batch, `protocol.gaps`) spans exactly the offsets that are missing.

An origin that was made anew has another incarnation. The mirror of the old one stays, read-only, as `orders@eu~1` (the
next as `~2`), and a new one begins. An incarnation that was left never comes back: an origin's sink that lags says the
old one for a while. Where the origin holds other bytes under the same incarnation, the partition is marked as diverged
and takes nothing more.

A mirror of a log that is covered has a tree of its own (`sinkd.core.accounts`).

Mirrors are made in group 0; the other groups of the zone take over what is there, with its generation.
"""

from typing import NamedTuple

import msgspec

from protocol.errors import FrameError
from protocol.gaps import leaf_digest
from protocol.merkle import HASH_BYTES
from protocol.records import BatchHeader, read_header
from protocol.streams import StreamState, mirror_name
from sinkd.core import accounts
from sinkd.core.commands import Diverged, MakeMirror, MirroredHead
from sinkd.core.state import MIRRORS_VERSION, Mirror, PartitionState, State


class MirrorMade(NamedTuple):
    """`mirror` is in force: it was made, made anew, or has its origin's present settings."""

    mirror: Mirror
    changed: bool


class Joined(NamedTuple):
    """Batches for a mirror were decided: it ends at `end_offset` now. `batches` are (position in the body, header),
    `digests` their D if the mirror is covered, else empty. With a `refusal` none was taken.
    """

    stream: StreamState | None
    partition: int
    end_offset: int
    batches: tuple[tuple[int, BatchHeader], ...] = ()
    refusal: str = ""
    digests: tuple[bytes, ...] = ()


def make(state: State, request: MakeMirror) -> MirrorMade:
    """Makes a mirror, or makes it anew for an origin that was; what is in force already has no effect."""
    name, told = request.state.name, request.state
    present = state.mirrors.get(name)
    if present is None:
        return _begin(state, request, 1)
    if told.incarnation == present.state.incarnation:
        wanted = msgspec.structs.replace(told, groups=present.state.groups)
        changed, present.state = wanted != present.state, wanted
        accounts.follow(state, present)
        return MirrorMade(present, changed)
    if (request.generation and request.generation <= present.generation) or was_left(state, told):
        return MirrorMade(present, changed=False)
    old_name = f"{name}~{present.generation}"
    present.state = msgspec.structs.replace(present.state, name=old_name, retired=True)
    state.mirrors[old_name] = present
    return _begin(state, request, present.generation + 1)


def _begin(state: State, request: MakeMirror, generation: int) -> MirrorMade:
    told = request.state
    if not request.generation:  # group 0 decides
        told = msgspec.structs.replace(told, groups=state.groups)
    partitions = [PartitionState(ids={}) for _ in range(told.partitions)]
    mirror = Mirror(told, partitions, request.generation or generation, {}, {})
    state.mirrors[told.name] = mirror
    state.version = max(state.version, MIRRORS_VERSION)
    accounts.follow(state, mirror)
    return MirrorMade(mirror, changed=True)


def was_left(state: State, told: StreamState) -> bool:
    """Whether the origin has had the incarnation of `told` and has another one now."""
    return any(
        mirror.state.incarnation == told.incarnation
        for name, mirror in state.mirrors.items()
        if name.startswith(told.name + "~")
    )


def append(state: State, number: int, head: MirroredHead, batches: memoryview) -> Joined:
    """Takes `batches`, which stand back to back, where they belong; in group `number`.

    FrameError: they are no batches, which whoever proposed them has checked.
    """
    mirror = state.mirrors.get(head.name)
    if mirror is None or mirror.state.incarnation != head.incarnation:
        return Joined(None, head.partition, 0, refusal="another incarnation of the origin is mirrored")
    if not 0 <= head.partition < mirror.state.partitions or mirror.state.group_of(head.partition) != number:
        return Joined(None, head.partition, 0, refusal="the partition is in another group")
    partition = mirror.partitions[head.partition]
    refused = Joined(mirror.state, head.partition, partition.end_offset)
    if head.partition in mirror.diverged:
        return refused._replace(refusal="the mirror has diverged from its origin")
    found, end_offset = _joining(batches, partition.end_offset)
    if not found:
        return refused._replace(refusal=f"the mirror ends at offset {partition.end_offset}")
    if not _follows(mirror, head):
        return refused._replace(refusal="the mirror ends with another batch")
    digests = [b""] * len(found)
    told = head.digests if len(head.digests) == len(found) * HASH_BYTES else b""
    for number, (position, header) in enumerate(found):
        if header.base_offset == head.tree_begin:
            accounts.begin(state, partition, head.tree_begin)
        if partition.tree is not None:
            batch = batches[position : position + header.size_bytes]
            digests[number] = told[number * HASH_BYTES :][:HASH_BYTES] or leaf_digest(header, batch)
            accounts.place_mirrored(partition.tree, header, digests[number], batch)
    partition.end_offset = end_offset
    mirror.last_crcs[head.partition] = found[-1][1].crc
    return Joined(mirror.state, head.partition, end_offset, found, digests=tuple(digests))


def _follows(mirror: Mirror, head: MirroredHead) -> bool:
    """Whether the mirror's last batch is the one that those of `head` follow at the origin."""
    return head.after == mirror.last_crcs.get(head.partition, 0)


def _joining(batches: memoryview, end_offset: int) -> tuple[tuple[tuple[int, BatchHeader], ...], int]:
    """(position, header) of each batch and the offset behind the last; none if one does not stand where it is due."""
    found: list[tuple[int, BatchHeader]] = []
    position = 0
    while position < len(batches):
        header = read_header(batches, position)
        if position + header.size_bytes > len(batches):
            raise FrameError(f"mirrored batches: {len(batches) - position} bytes of {header.size_bytes}")
        if header.base_offset != end_offset:
            return (), end_offset
        found.append((position, header))
        position, end_offset = position + header.size_bytes, header.next_offset
    return tuple(found), end_offset


def diverge(state: State, request: Diverged) -> bool:
    """Marks a partition of a mirror, which takes nothing more then; whether it was not marked yet."""
    mirror = state.mirrors.get(request.name)
    if mirror is None or mirror.state.incarnation != request.incarnation or request.partition in mirror.diverged:
        return False
    mirror.diverged[request.partition] = request.why
    return True


def mirror_of(origin: str, stream: StreamState) -> StreamState:
    """The mirror of zone `origin`'s `stream`, as it is proposed."""
    return msgspec.structs.replace(stream, name=mirror_name(stream.name, origin))
