"""The sink link: what a gateway, or an operator, and a sink say to each other over one connection (`protocol.frames`).

The gateway dials, says `Hello`, and the sink answers `Welcome` or `Failed` and closes. From then on both directions are
pipelined; what answers what is told by names in the frames (producer, partition and first sequence for appends, a
request number for reads), never by order alone.

    gateway → sink    Hello · Open · Append + parcel · Fetch · Offsets · Describe · ChangeContract · WatchCopies ·
                      Cancel · Ping
    sink → gateway    Welcome · Streams, Contracts, Copies (whenever they change) · Opened · Appended · Refused ·
                      Fetched + batches · OffsetsAre · Described · ContractIs · Failed · Pong
    sink → sink of another zone   Hello · Subscribe · Durable · Cancel · Ping
    ... and back                  Welcome · Streams · Mirrors · MirrorEnds · Mirrored + batches · Behind · Failed · Pong
    operator → sink   Hello · Status · ChangeMembers · Transfer · Rebuild · AcceptLoss · Scrub · GiveUp ·
                      Statement · Attest · Prove
    sink → operator   StatusIs · Certified · Attested · Done · Failed
"""

import msgspec

from protocol import frames
from protocol.contracts import Contract
from protocol.frames import Codec, Frame, FrameView, Message
from protocol.streams import StreamState

__all__ = ["KINDS", "Frame", "FrameReader", "FrameView", "Message", "pack", "pack_parts"]

LINK_VERSION = 1
MIRROR_ROLE = "sink"  # of `Hello`, of a sink of another zone
OPERATOR = "(operator)"  # who says Hello under this name is no node; none may be called so


class Hello(Message, frozen=True):
    """Who calls, and which of the zone's Raft groups (by its number) the link is about.

    `contracts`: it wants to be told the zone's contracts, which group 0 has; `mirrors`: and the mirrors that the group
    has of other zones' logs. `role` is "sink" for one of another zone, which mirrors this one's logs; `zone` is its own
    then, and the link is about all groups.
    """

    mesh: str
    zone: str
    node: str
    group: int = 0
    contracts: bool = False
    role: str = ""
    mirrors: bool = False


class Welcome(Message, frozen=True):
    """`mesh`, `zone`, `node` of the sink; `leads` is whether it takes appends; `disk` identifies its data folder.

    `leader` is the sink that leads in its opinion, "" where it does not know of one.
    """

    mesh: str
    zone: str
    node: str
    leads: bool
    disk: str
    leader: str = ""


class Streams(Message, frozen=True):
    """The committed streams of the zone, by which gateways route, as the group of this link knows them.

    Each group knows all of them; revision 0 is before any were committed.
    """

    revision: int
    streams: tuple[StreamState, ...]


class Contracts(Message, frozen=True):
    """The zone's contracts, all of them."""

    contracts: tuple[Contract, ...]


class Mirrors(Message, frozen=True):
    """The zone's mirrors of other zones' logs, all of them, as the group of this link knows them."""

    streams: tuple[StreamState, ...]


class Subscribe(Message, frozen=True):
    """Asks for the committed batches of a partition from `offset` on, and for those that come, until `Cancel`.

    `stream` is one of the zone that is asked, or as a mirror there one of another (its incarnation counts then).

    At most `window_bytes` of batches are under way beyond what `Durable` has told. `last_offset` is where the last
    batch that the mirror holds begins, -1 if it holds none or if that is a gap; `digest` is its SHA-256 from the
    attributes on.

    `once`: one frame is all that is wanted, of about `window_bytes`, to mend a segment with. With `columns` they may
    come in columns.
    """

    subscription: int
    stream: str
    incarnation: bytes
    partition: int
    offset: int
    window_bytes: int
    last_offset: int = -1
    digest: bytes = b""
    once: bool = False
    columns: bool = False


class Mirrored(Message, frozen=True):
    """The tail is whole batches back to back, `raw_bytes` of them, in one zstd frame if it is `compressed`.

    With `columns` they were taken apart before that (`protocol.columns`): then `raw_bytes` is what they are together.

    `offset` is that of the first; below `start_offset` the origin has no history. Without batches all of it is gone.
    The log's Merkle tree began at `tree_begin`; -1: it has none.
    """

    subscription: int
    incarnation: bytes
    offset: int
    raw_bytes: int
    compressed: bool
    start_offset: int
    high_watermark: int
    tree_begin: int = -1
    columns: bool = False


class Durable(Message, frozen=True):
    """All below `through` is committed and fsynced by the group of the one who mirrors."""

    subscription: int
    through: int


class Behind(Message, frozen=True):
    """Once a second: how much the log holds beyond what is durable in the mirror, and how old the first event of it is.

    `size_bytes` is an estimate within one segment; `oldest_ms` is -1 where nothing is missing. `limited`: a rate holds
    it back.
    """

    subscription: int
    high_watermark: int
    size_bytes: int
    oldest_ms: int
    limited: bool = False


class MirrorEnd(msgspec.Struct, array_like=True, frozen=True):
    """A sink has [start_offset, end_offset) of the mirror `stream`, committed by its group."""

    stream: str
    incarnation: bytes
    partition: int
    start_offset: int
    end_offset: int
    diverged: bool = False


class MirrorEnds(Message, frozen=True):
    """What this sink's zone mirrors of other zones, all of it; once a second, if it has changed."""

    ends: tuple[MirrorEnd, ...]


class WatchCopies(Message, frozen=True):
    """Asks how far other zones hold a partition for good: `Copies` at once, and whenever that changes on this link."""

    incarnation: bytes
    partition: int


class Copies(Message, frozen=True):
    """By zone, below which offset it holds a partition for good; zones that have not spoken are not there.

    Of what is below `start_offset` nothing is said: where the log had let go of it first, a mirror holds a gap.
    """

    incarnation: bytes
    partition: int
    start_offset: int
    zones: tuple[tuple[str, int], ...]


class Open(Message, frozen=True):
    """Asks for the producer of this gateway worker; the same `nonce` gets the same epoch again.

    A gateway opens every link with a new nonce. So a copy of a batch that is still on its way from an older link is
    fenced, and `Opened` says for good what of the older links has arrived.
    """

    node: str
    worker: int
    nonce: bytes


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """How a batch ended: at `base_offset`, or refused for good (`reason`, `found`: see `Refused`).

    `crc` is the batch's own: it tells the batch from another one that was sent under the same sequence.
    """

    first_sequence: int
    crc: int
    base_offset: int
    reason: str = ""
    found: str = ""


class Reached(msgspec.Struct, array_like=True, frozen=True):
    """How far a producer has come in one partition; `answers` are the latest ones, oldest first."""

    stream: str
    incarnation: bytes
    partition: int
    last_sequence: int
    answers: tuple[Answer, ...]


class Opened(Message, frozen=True):
    """Everything of this producer that is not among `last` is not in the log, and never will be under its old epoch."""

    producer_id: int
    epoch: int
    nonce: bytes
    last: tuple[Reached, ...]


class Append(Message, frozen=True):
    """The tail is a parcel (`protocol.envelope`)."""


class Appended(Message, frozen=True):
    """Committed and fsynced: record i of the batch has offset `base_offset + i`."""

    producer_id: int
    epoch: int
    stream: str
    incarnation: bytes
    partition: int
    first_sequence: int
    base_offset: int


class Refused(Message, frozen=True):
    """Not in the log. `reason` is one of `REASONS`.

    `DUPLICATE_IDS`: `known` names the records, as (index, offset of the first). The span is not spent: the rest is sent
    again. `WRONG_LAST_SEQUENCE`, `WRONG_LAST_ID`: final, the span is spent; `found` is what the log has instead.
    `STORAGE_FULL`: nothing was tried; the batch may be given up or sent again. All others: see `REASONS`.
    """

    producer_id: int
    epoch: int
    stream: str
    incarnation: bytes
    partition: int
    first_sequence: int
    reason: str
    found: str = ""
    known: tuple[tuple[int, int], ...] = ()


REASONS = {
    "DUPLICATE_IDS": "the window knows ids of this batch",
    "WRONG_LAST_SEQUENCE": "an expectation failed",
    "WRONG_LAST_ID": "an expectation failed",
    "STORAGE_FULL": "the sink's disk is below its reserve",
    "OUT_OF_ORDER": "a sequence before this one is missing: go back to it",
    "FENCED": "a newer epoch of this producer exists: this one is over",
    "STALE_CONFIG": "the stream has changed since the revision that the gateway routed by",
    "UNKNOWN_STREAM": "this group has no such stream, incarnation or partition",
    "NOT_LEADER": "another sink leads this group",
}


SUBSCRIPTION_REFUSALS = {
    "UNKNOWN_STREAM": "the zone has no such stream or partition",
    "NOT_REPLICATED": "`replicate` of the stream does not name the zone that asks",
    "RECREATED": "the stream has another incarnation",
    "NOT_CAUGHT_UP": "this sink does not hold so much yet: another one may",
    "DIVERGED": "the log holds other bytes than the mirror, or fewer",
}


class Fetch(Message, frozen=True):
    """Whole batches from the one that holds `offset` on; at the high watermark the sink waits at most `wait_ms`."""

    request: int
    stream: str
    partition: int
    offset: int
    bytes_max: int
    wait_ms: int


class Fetched(Message, frozen=True):
    """The tail is the batches back to back; empty at the high watermark."""

    request: int
    start_offset: int
    high_watermark: int


class Offsets(Message, frozen=True):
    """Asks for an offset of each of `partitions`; `at` is one of earliest, latest, timestamp, until.

    `timestamp`: of the first record at or after `timestamp_ms`, or none. `until`: behind the last record before it.
    """

    request: int
    stream: str
    partitions: tuple[int, ...]
    at: str
    timestamp_ms: int = 0


class OffsetsAre(Message, frozen=True):
    """(partition, offset, timestamp of the record there in ms or -1); offset -1 where there is no such record."""

    request: int
    offsets: tuple[tuple[int, int, int], ...]


class Describe(Message, frozen=True):
    """Asks for every stream, or for one, with those of its partitions that the group of this link has."""

    request: int
    stream: str = ""


class PartitionDescription(msgspec.Struct, array_like=True, frozen=True):
    partition: int
    start_offset: int
    high_watermark: int
    size_bytes: int


class Described(Message, frozen=True):
    request: int
    term: int
    leader: str
    streams: tuple[tuple[StreamState, tuple[PartitionDescription, ...]], ...]


class Failed(Message, frozen=True):
    """A request that cannot be served; `name` as in `protocol.errors.LOG_ERRORS`. Request 0: the connection itself.

    For a subscription `name` is one of `SUBSCRIPTION_REFUSALS`.
    """

    request: int
    name: str
    message: str
    details: dict[str, int | str] = msgspec.field(default_factory=dict)


class ChangeContract(Message, frozen=True):
    """Asks the leader of group 0 to put `contract` in force, or to take out the one of its name."""

    request: int
    contract: Contract
    removes: bool = False


class ContractIs(Message, frozen=True):
    """It is in force now, or it was until now."""

    request: int
    contract: Contract


class Cancel(Message, frozen=True):
    """Nobody waits for this request any more."""

    request: int


class Ping(Message, frozen=True):
    pass


class Pong(Message, frozen=True):
    pass


class Status(Message, frozen=True):
    """Asks how the sink and its group are."""

    request: int


class StatusIs(Message, frozen=True):
    """The tail is a JSON object; docs/cli.md says what is in it."""

    request: int


class ChangeMembers(Message, frozen=True):
    """Asks the leader to add one sink to the group, or to remove one; the other name is ""."""

    request: int
    add: str
    remove: str


class Transfer(Message, frozen=True):
    """Asks the leader to hand over to sink `to`, "" for whoever holds most."""

    request: int
    to: str


class Rebuild(Message, frozen=True):
    """Asks the leader of group 0 to bring back from zone `source` what that mirrors of this zone's old logs."""

    request: int
    source: str


class Scrub(Message, frozen=True):
    """Asks a sink to read all finished segments of its group again, now, and to have peers mend what is bad."""

    request: int


class AcceptLoss(Message, frozen=True):
    """Asks a member of a group that has stopped to read all it holds, and, unless `only_check`, to go on with it alone.

    Its journal ends with entry `last_index` of `last_term`: that is what the operator was shown. `gone` are members
    that cannot be asked and never will be.
    """

    request: int
    last_term: int
    last_index: int
    gone: tuple[str, ...]
    only_check: bool


class GiveUp(Message, frozen=True):
    """Asks the leader which batches of a partition no sink has whole, of a mirror too: `StatusIs`, with an array.

    Those that begin at one of `offsets` become gap records on all sinks.
    """

    request: int
    stream: str
    partition: int
    offsets: tuple[int, ...] = ()


class Statement(Message, frozen=True):
    """Asks the leader what its group says of a partition, to be kept under `statement_id` (16 random bytes).

    The answer is `Certified` with a `protocol.certificate.Stated`: it has read the partition again from its disk. If
    that has spoilt it (STORAGE_ERROR), any other member answers the same of what was kept under that id.
    """

    request: int
    stream: str
    partition: int
    statement_id: bytes


class Attest(Message, frozen=True):
    """Asks a sink whether `certificate`, without signatures, says what it has on its disk, and if it `signs`, to sign.

    The certificate names the sink among its signers then. Answered with `Attested`, or `Failed` with what differs.
    """

    request: int
    certificate: bytes
    signs: bool


class Prove(Message, frozen=True):
    """Asks for a proof from the tree of a log when that ended at `end_offset`, -1 for now: `Certified` with JSON.

    With an `offset`: that its batch is in it (`protocol.certificate.Proof`). Else: that the tree of the first `size`
    leaves is its beginning (`Consistency`).
    """

    request: int
    stream: str
    partition: int
    end_offset: int
    offset: int = -1
    size: int = -1


Question = Status | ChangeMembers | Transfer | Rebuild | Scrub | AcceptLoss | GiveUp | Statement | Attest | Prove
"""What an operator may ask of a sink."""


class Done(Message, frozen=True):
    """What a request asked for is so."""

    request: int


class Certified(Message, frozen=True):
    """The tail is JSON."""

    request: int


class Attested(Message, frozen=True):
    """`certificate` (DER) is the sink's; `signature` is that of `protocol.certificate`, if it was asked to sign."""

    request: int
    certificate: bytes
    signature: bytes


KINDS: dict[int, type[Message]] = {
    1: Hello,
    2: Welcome,
    3: Streams,
    4: Open,
    5: Opened,
    6: Append,
    7: Appended,
    8: Refused,
    9: Fetch,
    10: Fetched,
    11: Offsets,
    12: OffsetsAre,
    13: Describe,
    14: Described,
    15: Failed,
    16: Cancel,
    17: Ping,
    18: Pong,
    19: Status,
    20: StatusIs,
    21: ChangeMembers,
    22: Transfer,
    23: Done,
    24: Contracts,
    25: ChangeContract,
    26: ContractIs,
    27: Mirrors,
    28: Subscribe,
    29: Mirrored,
    30: Durable,
    31: Behind,
    32: MirrorEnds,
    33: Rebuild,
    34: WatchCopies,
    35: Copies,
    36: AcceptLoss,
    37: Scrub,
    40: GiveUp,
    41: Statement,
    42: Attest,
    43: Prove,
    44: Certified,
    45: Attested,
}
_CODEC = Codec("sink link", LINK_VERSION, KINDS)
pack = _CODEC.pack
pack_parts = _CODEC.pack_parts


class FrameReader(frames.FrameReader):
    """The sink link's bytes in any chunks in, frames out."""

    def __init__(self) -> None:
        super().__init__(_CODEC)
