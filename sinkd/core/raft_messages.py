"""What the members of a Raft group say to each other: frames (`protocol.frames`) on one connection for each pair.

Nothing that is received is ever unpickled. `term` is the sender's. An `Append` bears a tag (epoch, sequence) that the
follower's `Reply` gives back, so that the leader knows which of its beliefs an answer still concerns: a new epoch
begins with every connection, every mismatch and every leadership (rule L2).

    both           Hello (first, and when it changes) · Seen · Ping · Pull · Pulled + batches · Note
    leader         Append + commands · Snapshot + a piece of a checkpoint file · TimeoutNow
    follower       Reply · Stale · Propose
    candidates     PreVote · RequestVote            voters    PreVoted · Voted
"""

from typing import Final

from protocol.frames import Codec, Message
from protocol.streams import StreamDefinition

RAFT_VERSION: Final = 1

MATCHED: Final = 0  # everything before `next_index` is the leader's
MISMATCH: Final = 1  # try again from `next_index`
BUSY: Final = 2  # nothing can be taken now: `why`


class Hello(Message, frozen=True):
    """Who the sender is, as a member of the zone's Raft group `number`: a connection is about one group.

    `group` is the incarnation of the group, "" if the sender was never born into one.

    `state` is "", "chosen" or "active" (`sinkd.core.birth`); `muted` says why it neither votes nor stands. `disk` and
    `journal` identify what it holds: with a new one, what was known of it is void (rule C6). `configured` names the
    sinks of the zone in its file, `address` is where it listens. `succeeds` are the groups that this one took the place
    of, when an operator had it go on with a part of the log.
    """

    mesh: str
    zone: str
    number: int
    node: str
    group: str
    state: str
    muted: str
    disk: str
    journal: str
    configured: tuple[str, ...]
    address: str
    succeeds: tuple[str, ...] = ()


class Append(Message, frozen=True):
    """Entries `prev_index + 1` and on, as (term, bytes of its command); the tail is the commands, back to back.

    `last_index` is where the leader's log ends (what a muted member has to reach, rule C5).
    """

    term: int
    epoch: int
    sequence: int
    prev_index: int
    prev_term: int
    commit_index: int
    last_index: int
    entries: tuple[tuple[int, int], ...] = ()


class Reply(Message, frozen=True):
    """To an `Append`: MATCHED, MISMATCH or BUSY."""

    term: int
    epoch: int
    sequence: int
    outcome: int
    next_index: int
    why: str = ""


class Stale(Message, frozen=True):
    """The term of an `Append` or a `Snapshot` was over (rule F5)."""

    term: int


class PreVote(Message, frozen=True):
    """Would you vote for me in `term`? Changes nothing (Raft dissertation, 9.6)."""

    term: int
    last_index: int
    last_term: int


class PreVoted(Message, frozen=True):
    """`doubtful` as in `Voted`."""

    term: int
    doubtful: bool = False


class RequestVote(Message, frozen=True):
    """`transfer`: the leader itself asked for this election."""

    term: int
    last_index: int
    last_term: int
    transfer: bool = False


class Voted(Message, frozen=True):
    """`doubtful`: the end of the sender's journal may be missing, without a trace (`sinkd.core.doubt`)."""

    term: int
    doubtful: bool = False


class TimeoutNow(Message, frozen=True):
    """The leader hands over: stand at once."""

    term: int


class Snapshot(Message, frozen=True):
    """The tail is bytes `start` and on of a checkpoint file of `size_bytes`, which stands for entry `index`."""

    term: int
    epoch: int
    sequence: int
    index: int
    index_term: int
    start: int
    size_bytes: int


class Pull(Message, frozen=True):
    """Asks for committed batches of a partition, from the one that holds `offset` on."""

    request: int
    stream: str
    incarnation: bytes
    partition: int
    offset: int
    bytes_max: int


class Pulled(Message, frozen=True):
    """The tail is the batches; `problem` says why there are none. Below `start_offset` there is no history."""

    request: int
    start_offset: int
    problem: str = ""


class Propose(Message, frozen=True):
    """A follower's file has a newer revision than what is in force."""

    revision: int
    streams: tuple[StreamDefinition, ...]
    groups: int = 1


class Seen(Message, frozen=True):
    """What the sender saw the receiver hold of what is committed, up to entry `index` of its journal of that id."""

    journal: str
    index: int


class Note(Message, frozen=True):
    """For a stream that nodes write, from a sink that does not lead its group: an event as JSON, and its id.

    With a `subject` it is for `stream`, happened at `time_ms` and has that header block; without one it is an audit
    event, which says that itself.
    """

    id: bytes
    event: bytes
    stream: str = ""
    subject: str = ""
    time_ms: int = 0
    block: bytes = b""


class Held(Message, frozen=True):
    """Another zone, `zone`, holds all of a partition below `through`, as the sender has heard."""

    zone: str
    incarnation: bytes
    partition: int
    through: int


class Ping(Message, frozen=True):
    pass


CODEC: Final = Codec(
    "raft link",
    RAFT_VERSION,
    {
        1: Hello,
        2: Append,
        3: Reply,
        4: Stale,
        5: PreVote,
        6: PreVoted,
        7: RequestVote,
        8: Voted,
        9: TimeoutNow,
        10: Snapshot,
        11: Pull,
        12: Pulled,
        13: Propose,
        14: Ping,
        15: Seen,
        16: Note,
        17: Held,
    },
)
