"""Raft commands: what the replicated state machine is asked to do, as bytes.

    u8 version   u8 kind   u64 leader's time, ms (little endian)   body

`APPEND` carries parcels (`protocol.envelope`) back to back, so that the batches in it keep the bytes that the gateway
made and can later be read straight from the journal. So does `MIRRORED`, whose body is

    u32 size of the head (little endian)   head (msgpack)   batches, back to back, at their offsets

So do `LOSS`, whose batch is the gap record of all logs of the group, and `RECORD_GAP`, whose batch is one. The other
bodies are one msgpack value.

Of covered logs, `DIGESTED` takes the place of `APPEND`: in front of the parcels it has the digest of each one's batch,
which the leader has made of what it was sent, so that the other members need not (`protocol.coverage`).

    u32 number of parcels (little endian)   32 bytes of each   parcels
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from protocol import envelope
from protocol.contracts import Contract
from protocol.envelope import Parcel
from protocol.errors import UNREADABLE, FrameError
from protocol.merkle import HASH_BYTES
from protocol.streams import StreamDefinition, StreamState

COMMAND_VERSION = 1
CONFIGURE, OPEN, APPEND, TRIM, MEMBERS, ADOPT, CONTRACT, MIRROR, MIRRORED, DIVERGED = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
BEGIN_REBUILD, END_REBUILD = 11, 12
LOSS = 13
RECORD_GAP, STATEMENT = 14, 15
GIVE_UP = 16
DIGESTED = 17
_PREFIX = struct.Struct("<BBQ")
_HEAD_SIZE = struct.Struct("<I")
_COUNT = struct.Struct("<I")
BODY_POSITION = _PREFIX.size


class Configure(msgspec.Struct, array_like=True, frozen=True):
    """The streams of the zone from `revision` on. Streams that are not in it are retired.

    The partitions of those that are new are shared by the first `groups` Raft groups of the zone.
    """

    revision: int
    streams: tuple[StreamDefinition, ...]
    groups: int = 1


class Adopt(msgspec.Struct, array_like=True, frozen=True):
    """What group 0 has committed as `revision`, for another group: streams are configured in one place."""

    revision: int
    streams: tuple[StreamState, ...]
    groups: int


class OpenProducer(msgspec.Struct, array_like=True, frozen=True):
    node: str
    worker: int
    nonce: bytes


class Trim(msgspec.Struct, array_like=True, frozen=True):
    """History below `to_offset` is over. There the tree of a log that is covered had `size` leaves and that `frontier`.

    Size -1: it has none, or whoever proposes this does not know it.
    """

    stream: str
    incarnation: bytes
    partition: int
    to_offset: int
    size: int = -1
    frontier: tuple[bytes, ...] = ()


class MembersAre(msgspec.Struct, array_like=True, frozen=True):
    """The members of the group from now on: (name, address of its raft port)."""

    members: tuple[tuple[str, str], ...]


class ChangeContract(msgspec.Struct, array_like=True, frozen=True):
    """`contract` is in force from now on, or, if `removes`, the one of its name is no longer. For group 0 alone."""

    contract: Contract
    removes: bool = False


class MakeMirror(msgspec.Struct, array_like=True, frozen=True):
    """Another zone's log is mirrored from now on: `state` is its stream as it is there, but for its name and groups.

    `generation` 0 is proposed to group 0, which decides; the other groups are told what it has decided.
    """

    state: StreamState
    generation: int = 0


class MirroredHead(msgspec.Struct, array_like=True, frozen=True):
    """Which mirror's partition the batches are for, and the CRC of the batch that they follow there; 0 for none.

    The origin's tree began at `tree_begin`; -1: there is none, or its offset is not told. `digests` are those of the
    batches, one behind the other, if the leader has made them.
    """

    name: str
    incarnation: bytes
    partition: int
    after: int = 0
    tree_begin: int = -1
    digests: bytes = b""


class Diverged(msgspec.Struct, array_like=True, frozen=True):
    """The origin of a mirror's partition holds other bytes than the mirror."""

    name: str
    incarnation: bytes
    partition: int
    why: str


class BeginRebuild(msgspec.Struct, array_like=True, frozen=True):
    """Old logs of this `zone` come back from zone `source`, which calls them as in `logs`. For group 0 alone.

    A rebuild that is under way is refused, unless it `replaces` that from this zone.
    """

    zone: str
    source: str
    logs: tuple[StreamState, ...]
    replaces: str = ""


class EndRebuild(msgspec.Struct, array_like=True, frozen=True):
    """The rebuild that began at `begun_ms` has brought back all that there was. For group 0 alone."""

    begun_ms: int
    events: int
    size_bytes: int


class AcceptLoss(msgspec.Struct, array_like=True, frozen=True):
    """`members` go on without the others, with what they hold: an operator has accepted it, at address `who`."""

    members: tuple[tuple[str, str], ...]
    who: str


class RecordGap(msgspec.Struct, array_like=True, frozen=True):
    """Events of that `run` are missing for good: a gap record with that `reason` is appended, once for each of both.

    The run is the one of worker `worker` of gateway `node` in that partition (`protocol.coverage`).
    """

    node: str
    worker: int
    stream: str
    incarnation: bytes
    partition: int
    run: bytes
    reason: str


class MakeStatement(msgspec.Struct, array_like=True, frozen=True):
    """What the group says of that partition, a mirror's too, is kept under `statement_id` (random bytes)."""

    log: str
    incarnation: bytes
    partition: int
    statement_id: bytes


class GiveUp(msgspec.Struct, array_like=True, frozen=True):
    """No sink has these `batches` whole any more, (base offset, next offset, D) each: gap records stand for them.

    The operator at address `who` has accepted it. `log` may be a mirror. Those at `found` are there again after all.
    """

    log: str
    incarnation: bytes
    partition: int
    batches: tuple[tuple[int, int, bytes], ...]
    who: str
    found: tuple[int, ...] = ()


Head = TypeVar("Head", MirroredHead, AcceptLoss, RecordGap)
Body = TypeVar(
    "Body", Configure, OpenProducer, Trim, MembersAre, Adopt, ChangeContract, MakeMirror, Diverged, BeginRebuild,
    EndRebuild, MakeStatement, GiveUp,
)  # fmt: skip


class Command(NamedTuple):
    kind: int
    time_ms: int
    body: memoryview


def encode(kind: int, time_ms: int, body: msgspec.Struct) -> bytes:
    return _PREFIX.pack(COMMAND_VERSION, kind, time_ms) + msgspec.msgpack.encode(body)


def encode_append(time_ms: int, parcels: Iterable[bytes], before: bytes = b"") -> bytes:
    """The command that appends `parcels`, in order, with the bytes `before` in front of it."""
    return b"".join((before, _PREFIX.pack(COMMAND_VERSION, APPEND, time_ms), *parcels))


def encode_digested(time_ms: int, parcels: Sequence[bytes], digests: Sequence[bytes], before: bytes = b"") -> bytes:
    """The same of parcels whose batches have these digests."""
    head = before, _PREFIX.pack(COMMAND_VERSION, DIGESTED, time_ms), _COUNT.pack(len(digests))
    return b"".join((*head, *digests, *parcels))


def read_parcels(command: Command) -> Iterator[tuple[Parcel, bytes]]:
    """Of a command that appends: each parcel, and the digest of its batch, b"" where the leader has made none.

    FrameError as for `decode`.
    """
    if command.kind == APPEND:
        return ((parcel, b"") for parcel in envelope.unpack(command.body))
    digests, begin = _read_digests(command)
    return zip(envelope.unpack(command.body, begin), digests, strict=True)


def _read_digests(command: Command) -> tuple[list[bytes], int]:
    """(digests, position of the parcels in the body)"""
    try:
        (count,) = _COUNT.unpack_from(command.body)
    except struct.error as error:
        raise FrameError(f"raft command: digests: {error}") from error
    end = _COUNT.size + count * HASH_BYTES
    if end > len(command.body):
        raise FrameError(f"raft command: {count} digests in {len(command.body)} bytes")
    starts = range(_COUNT.size, end, HASH_BYTES)
    return [bytes(command.body[start : start + HASH_BYTES]) for start in starts], end


def encode_mirrored(time_ms: int, head: MirroredHead, batches: bytes | memoryview) -> bytes:
    """The command that appends `batches`, whole and checked, to a mirror."""
    return _with_batches(MIRRORED, time_ms, head, batches)


def encode_loss(time_ms: int, loss: AcceptLoss, gap: bytes) -> bytes:
    """The command with which a group goes on after a loss; `gap` is a control batch (`protocol.gaps`)."""
    return _with_batches(LOSS, time_ms, loss, gap)


def encode_record_gap(time_ms: int, head: RecordGap, gap: bytes) -> bytes:
    """The command that appends `gap`, a control batch (`protocol.gaps`) with the reason of `head`."""
    return _with_batches(RECORD_GAP, time_ms, head, gap)


def _with_batches(kind: int, time_ms: int, head: msgspec.Struct, batches: bytes | memoryview) -> bytes:
    packed = msgspec.msgpack.encode(head)
    return b"".join((_PREFIX.pack(COMMAND_VERSION, kind, time_ms), _HEAD_SIZE.pack(len(packed)), packed, batches))


def read_head(command: Command, head: type[Head]) -> tuple[Head, int]:
    """(head, position of the batches in the body). FrameError as for `decode`."""
    try:
        (size,) = _HEAD_SIZE.unpack_from(command.body)
        begin = _HEAD_SIZE.size + int(size)
        return msgspec.msgpack.decode(command.body[_HEAD_SIZE.size : begin], type=head), begin
    except (*UNREADABLE, struct.error) as error:
        raise FrameError(f"raft command: {head.__name__}: {error}") from error


def decode(data: bytes | memoryview) -> Command:
    """FrameError: not a command of this version; a state machine that meets one must stop."""
    if len(data) < BODY_POSITION:
        raise FrameError(f"raft command of {len(data)} bytes")
    version, kind, time_ms = _PREFIX.unpack_from(data)
    if version != COMMAND_VERSION:
        raise FrameError(f"raft command: version {version}, ours is {COMMAND_VERSION}")
    return Command(kind, time_ms, memoryview(data)[BODY_POSITION:])


def members_in(head: bytes) -> bool:
    """Whether a command that begins with `head` (two bytes or more) changes the members of the group."""
    return head[:2] in (bytes((COMMAND_VERSION, MEMBERS)), bytes((COMMAND_VERSION, LOSS)))


def read_members(data: bytes | memoryview) -> dict[str, str]:
    """The members by a command of which `members_in` is true. FrameError as for `decode`."""
    command = decode(data)
    if command.kind == LOSS:
        return dict(read_head(command, AcceptLoss)[0].members)
    return dict(read_body(command, MembersAre).members)


def read_body(command: Command, body: type[Body]) -> Body:
    """The body of a command that is not an append. FrameError as for `decode`."""
    try:
        return msgspec.msgpack.decode(command.body, type=body)
    except UNREADABLE as error:
        raise FrameError(f"raft command: {body.__name__}: {error}") from error
