"""What is replicated: plain values, in one tree that a checkpoint holds whole.

Everything here is bounded: producers by the gateways of the mesh, answers kept per producer and partition by
`PRODUCER_RESULTS_KEPT`, deduplication ids by their stream's window and number, accounts by their marks. Nothing grows
with the log, but for the frontier of its tree: one hash for each bit of its number of batches.
"""

import msgspec

from protocol.contracts import Contract, Key
from protocol.link import Answer
from protocol.streams import StreamState

STATE_VERSION = 1
MIRRORS_VERSION = 2  # of a state that has mirrors: who knows of none must not lose them
REBUILD_VERSION = 3  # the same, of a rebuild
COVERAGE_VERSION = 4  # the same, of trees, accounts and statements


class Tree(msgspec.Struct, array_like=True):
    """The Merkle tree (`protocol.merkle`) over the `size` batches of a log from `begin_offset` to its end.

    Of those offsets control batches take `control`. Of a mirror `trimmed` are under gap records of its own, which its
    origin does not have: if there are any, or the trees began at different offsets, roots say nothing about each other.
    """

    begin_offset: int
    size: int = 0
    frontier: list[bytes] = []
    control: int = 0
    trimmed: int = 0


class TreeStart(msgspec.Struct, array_like=True, frozen=True):
    """How the tree of a log was at `offset`, where what is left of the log began when that was trimmed."""

    offset: int
    size: int
    frontier: tuple[bytes, ...]


class Damaged(msgspec.Struct, array_like=True, frozen=True):
    """The batch of offsets [base, next), with that D, has been spoilt by all disks that held it.

    The operator at address `who` has accepted it at `time_ms`: a gap record may stand in its place.
    """

    base_offset: int
    next_offset: int
    digest: bytes
    time_ms: int
    who: str


class Totals(msgspec.Struct, array_like=True):
    """What sequences came to, in events, and what was appended."""

    held: int = 0
    batches: int = 0
    size_bytes: int = 0
    duplicates: int = 0
    refused: int = 0
    gaps: int = 0


class Account(msgspec.Struct, array_like=True):
    """What a producer's `run` came to in a partition, from behind sequence `base` up to the last one of its `Progress`.

    `last sequence` - `base` = `held` + `duplicates` + `refused` + `gaps`, in events; `batches` of `size_bytes` were
    appended. `marks` are (sequence, chain there), the oldest first. `before` is of all earlier runs, `ended` the latest
    of them as (run, sequence that it came to).
    """

    run: bytes
    base: int
    chain: bytes
    held: int = 0
    batches: int = 0
    size_bytes: int = 0
    duplicates: int = 0
    refused: int = 0
    gaps: int = 0
    marks: list[tuple[int, bytes]] = []
    before: Totals = msgspec.field(default_factory=Totals)
    ended: list[tuple[bytes, int]] = []


class Recorded(msgspec.Struct, array_like=True, frozen=True):
    """A gap record of the sinks at `offset`: of that `run` so many `events` are missing, for that `reason`."""

    run: bytes
    reason: str
    events: int
    offset: int


class StatedAccount(msgspec.Struct, array_like=True, frozen=True):
    """A producer's account in a statement, None if it speaks of none; `lost` events in all are `recorded` as missing.

    Of what is recorded the latest are told.
    """

    node: str
    worker: int
    last_sequence: int
    account: Account | None
    recorded: tuple[Recorded, ...]
    lost: int


class Statement(msgspec.Struct, array_like=True, frozen=True):
    """What a group has said of a log's partition, of offsets [start, end), when it was asked under `statement_id`."""

    statement_id: bytes
    log: str
    incarnation: bytes
    partition: int
    time_ms: int
    start_offset: int
    end_offset: int
    tree: Tree
    accounts: tuple[StatedAccount, ...]


class PartitionState(msgspec.Struct, array_like=True):
    """Offsets [start, end) exist. `ids` maps deduplication ids to (offset, time ms), oldest first.

    A log that is covered has a `tree`; once it was trimmed, its `tree_start` too. `damaged` are in no order.
    """

    start_offset: int = 0
    end_offset: int = 0
    last_id: bytes = b""
    ids: dict[bytes, tuple[int, int]] = {}
    tree: Tree | None = None
    tree_start: TreeStart | None = None
    damaged: list[Damaged] = []

    def find(self, message_id: bytes, now_ms: int, window_ms: int) -> int | None:
        """The offset under which the window knows `message_id`."""
        known = self.ids.get(message_id)
        return known[0] if known is not None and known[1] + window_ms > now_ms else None

    def remember(self, message_id: bytes, offset: int, now_ms: int) -> None:
        self.ids.pop(message_id, None)
        self.ids[message_id] = (offset, now_ms)

    def forget(self, now_ms: int, window_ms: int, ids_max: int) -> None:
        """Drops what is older than the window or too much; the dictionary's order is the order of age."""
        stale: list[bytes] = []
        for message_id, (_, time_ms) in self.ids.items():
            if time_ms + window_ms > now_ms and len(self.ids) - len(stale) <= ids_max:
                break
            stale.append(message_id)
        for message_id in stale:
            del self.ids[message_id]


class Progress(msgspec.Struct, array_like=True):
    """How far a producer is in one partition, and its latest answers, oldest first.

    `account` is there if the log is covered and the producer names its runs. The latest of what is known to be missing
    is `recorded`; `lost` are the events of all of it.
    """

    last_sequence: int = 0
    answers: list[Answer] = []
    account: Account | None = None
    recorded: list[Recorded] = []
    lost: int = 0


class Producer(msgspec.Struct, array_like=True):
    producer_id: int
    node: str
    worker: int
    epoch: int
    nonce: bytes
    progress: dict[tuple[bytes, int], Progress] = {}


class Stream(msgspec.Struct, array_like=True):
    state: StreamState
    partitions: list[PartitionState]


class Mirror(Stream, array_like=True):
    """Of another zone's log (`sinkd.core.mirrors`); `generation` counts the incarnations that its origin has had.

    `diverged` says of a partition why it takes nothing more; `last_crcs` has the CRC of each one's last batch.
    """

    generation: int = 1
    diverged: dict[int, str] = {}
    last_crcs: dict[int, int] = {}


class Rebuild(msgspec.Struct, array_like=True):
    """Old `incarnations` of this zone's logs come back from zone `source`; `ended_ms` is 0 while they do.

    When it has ended `events` and `size_bytes` are what came.
    """

    source: str
    incarnations: list[bytes]
    begun_ms: int
    ended_ms: int = 0
    events: int = 0
    size_bytes: int = 0


class State(msgspec.Struct, array_like=True):
    """`now_ms` is the latest time of any command: it never goes back, whatever the leaders' clocks do.

    `members` are the sinks of the group, with the addresses of their raft ports. `groups` is how many Raft groups share
    the partitions of streams that are made under `revision`. `contracts` are those of the zone, in group 0. `mirrors`
    are those of other zones' logs, by their names (`orders@eu`). `rebuild` is the latest one, in group 0. The latest
    `statements` are kept, oldest first.
    """

    version: int = STATE_VERSION
    now_ms: int = 0
    revision: int = 0
    streams: dict[str, Stream] = {}
    producers: dict[int, Producer] = {}
    members: dict[str, str] = {}
    groups: int = 1
    contracts: dict[Key, Contract] = {}
    mirrors: dict[str, Mirror] = {}
    rebuild: Rebuild | None = None
    statements: list[Statement] = []

    def producer_of(self, node: str, worker: int) -> Producer | None:
        return next((p for p in self.producers.values() if (p.node, p.worker) == (node, worker)), None)

    def made_producer_of(self, node: str, worker: int) -> Producer:
        """The same; a new one, which nobody has opened, if it is not known yet."""
        producer = self.producer_of(node, worker)
        if producer is None:
            producer = Producer(len(self.producers) + 1, node, worker, 0, b"", {})
            self.producers[producer.producer_id] = producer
        return producer
