"""PySyncObj, held to the rules that make it a safe Raft: our journal, our messages, a thin subclass.

The library is pinned and not forked. It keeps the states, elects, counts matches, commits and applies. Ours are the
journal (`sinkd.shell.journal`), the messages (`sinkd.core.raft_messages`), how entries pass from a leader to a follower
(`sinkd.core.replication`), pre-votes, muted members, checkpoints and who is a member. A private method `__x` of SyncObj
is overridden under its mangled name `_SyncObj__x`.

What the library may do and what not, by the names of the rules that its holes gave rise to:

- F1-F4  It sees only appends that fit the log, with a commit index that the append itself covers; we answer.
- F5     Who is behind in terms is told so, and follows.
- L1-L5  Answers count by term, member and tag; one vote for each member and term.
- L6     Nothing is forwarded: who does not lead takes no commands.
- J1     What says that this member holds something (votes, answers) leaves after an fdatasync that began behind it. A
         leader's appends leave at once: its followers' answers count only up to what it has synced itself. Nobody
         takes for committed, and applies, what is not on its own disk (`synced`).
- J3     The commit index is not stored: it is found again from the checkpoint, then from the leader.
- C1     Commands are raw bytes, never pickled. Applying one never fails: an exception ends the process.
- C2     What waits for a command is told `unknown outcome` when leadership is lost, never left waiting.
- C3     Before it stands, a member asks whether it would win. Votes are refused while a leader is heard.
- C4     What is sent is bounded by a window for each follower.
- C5     A muted member neither votes nor stands until it holds all that a leader held which was elected without it.
- C6     What was known of a follower is void when it comes back with another journal.
- C7     Votes of members that may have lost the end of their journals count less (`sinkd.core.doubt`).

Its own compaction is off: checkpoints are written by the sink's housekeeping, then the journal is cut.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from pysyncobj import SyncObjConf

from protocol.errors import DamagedFile, FrameError
from protocol.frames import Message, Parts
from protocol.limits import (
    COMMAND_BYTES_TARGET,
    JOURNAL_SLICE_BYTES_MAX,
    JOURNAL_SLICE_ENTRIES_MAX,
    LINK_FRAME_BYTES_MAX,
    RAFT_DOUBT_MS_MAX,
)
from sinkd.core import commands
from sinkd.core.commands import MembersAre
from sinkd.core.doubt import votes_needed
from sinkd.core.formats import BadBytes, Checkpoint, decode_checkpoint
from sinkd.core.membership import Membership
from sinkd.core.raft_messages import (
    BUSY,
    CODEC,
    MATCHED,
    MISMATCH,
    Append,
    PreVote,
    PreVoted,
    Reply,
    RequestVote,
    Seen,
    Snapshot,
    Stale,
    TimeoutNow,
    Voted,
)
from sinkd.core.replication import Diverged, Follower, Mismatch, Pieces, commands_of, fit
from sinkd.shell.journal import Journal
from sinkd.shell.raft_leader import HEARTBEAT_S, Leadership
from sinkd.shell.raft_library import Library, NoSockets, Wire, clock, peer

REGULAR: Final = b"\x00"  # the library's command type byte before our bytes
FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
STATES: Final = {FOLLOWER: "follower", CANDIDATE: "candidate", LEADER: "leader"}
ELECTION_S_MIN, ELECTION_S_MAX = 0.4, 0.8
TICK_S: Final = 0.05  # the library looks at the time so often, if there is nothing else to do for it
FALLBACK_S: Final = 1.0  # a leader that no majority has answered for so long steps down
log = structlog.get_logger()


class Member(Library):
    """This sink's member of a Raft group.

    Between two ticks: `receive` what has come, `tick`, `append` what is new, `replicate`, send `urgent`. When a sync of
    the journal has ended, `synced` is called, and `answers` are sent; ticks go on meanwhile. `apply(command, index,
    term)` is called once for every committed command, in order, from within `tick`.
    """

    def __init__(
        self,
        node: str,
        journal: Journal,
        applied_index: int,
        apply: Callable[[memoryview, int, int], Any],
        membership: Membership,
        *,
        muted: str = "",
        is_doubtful: bool = False,
        checkpoint: Callable[[], tuple[Checkpoint, bytes] | None] = lambda: None,
    ) -> None:
        """`applied_index` is the index that the state machine's checkpoint stands for, 0 without one.

        `checkpoint` gives the latest durable one with its file's bytes; `muted` is why this member may not vote,
        `is_doubtful` whether it may lack what it was seen to hold.
        """
        self._apply, self._journal, self._membership = apply, journal, membership
        self._checkpoint, self.muted = checkpoint, muted
        self.checkpoints_sent = 0
        self.arrivals = 0  # of sinks that were connected while this one led
        self.name = node
        self.urgent: list[tuple[str, Parts]] = []  # may leave before the sync
        self.answers: list[tuple[str, Parts]] = []  # say that something is held: it is on the disk
        self._promises: list[tuple[str, Message]] = []  # answers that wait for a sync
        self.offered: Checkpoint | None = None  # the leader's, which this member lacks the log for
        self.busy = ""  # why no more commands than `busy_takes_bytes` can be taken in an append
        self.busy_takes_bytes = 0
        self._leadership: Leadership | None = None
        self._peers: dict[str, str] = {}  # connected: name → journal id
        self._seen: dict[str, Seen] = {}  # what each peer was seen to hold of what is committed
        self._pending: dict[int, tuple[int, Callable[[Any, bool], None]]] = {}
        self._known_commit = 0  # what leaders have said to be committed, of what is here
        self._ticked_at = float("-inf")
        self._is_credited = False  # a follower was found to hold more: there may be something to commit
        self._doubts_until = clock() + RAFT_DOUBT_MS_MAX / 1000 if is_doubtful else 0.0
        self._prevotes: dict[str, bool] = {}  # who would vote, and whether in doubt
        self._votes: dict[str, bool] = {}
        self._heard_at = float("-inf")
        self._is_transferred = False
        self._pieces = Pieces()
        self._target: tuple[tuple[str, int], int] | None = None
        self.whole_at: tuple[int, str] | None = None  # (term, leader) that this muted member has caught up with
        configuration = SyncObjConf(
            autoTick=False,
            commandsWaitLeader=False,
            useFork=False,
            appendEntriesUseBatch=False,
            appendEntriesBatchSizeBytes=max(COMMAND_BYTES_TARGET, LINK_FRAME_BYTES_MAX) * 2,
            raftMinTimeout=ELECTION_S_MIN,
            raftMaxTimeout=ELECTION_S_MAX,
            appendEntriesPeriod=HEARTBEAT_S,
            leaderFallbackTimeout=FALLBACK_S,
            journalFile=journal,
            onStateChanged=self._state_changed,
        )
        super().__init__(peer(node), [], configuration, transport=Wire(self._library_sends))
        self._poller = NoSockets()
        if applied_index:
            self._SyncObj__raftLastApplied = applied_index
        self._deadline = clock() + self._election_timeout()
        self._set_members()
        if len(self.members) == 1:  # alone there is nobody whose heartbeat to wait for
            self._deadline = clock()

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def state(self) -> int:
        state: int = self._SyncObj__raftState
        return state

    @property
    def term(self) -> int:
        term: int = self._SyncObj__raftCurrentTerm
        return term

    @property
    def is_doubtful(self) -> bool:
        """Whether this member may lack the end of its journal, and others may know (`sinkd.core.doubt`)."""
        return self._doubts_until > 0 and clock() < self._doubts_until

    @property
    def leads(self) -> bool:
        state: int = self._SyncObj__raftState
        return state == LEADER

    @property
    def is_caught_up(self) -> bool:
        """Whether this leader has applied everything up to the first entry of its own term."""
        state: int = self._SyncObj__raftState
        no_op_index: int | None = self._SyncObj__noopIDx
        return state == LEADER and no_op_index is not None and self.raftLastApplied >= no_op_index

    @property
    def is_leaving(self) -> bool:
        """Whether leadership is being handed over: nothing new is taken meanwhile."""
        return self._leadership is not None and self._leadership.is_leaving

    @property
    def was_asked_to_lead(self) -> bool:
        """Whether the leader before it has handed over to it, and no other sink has come since."""
        return self._is_transferred

    @property
    def leader(self) -> str:
        """Whom this member believes to lead, "" if nobody."""
        node = self._SyncObj__raftLeader
        return str(node.id) if node is not None else ""

    @property
    def members(self) -> Mapping[str, str]:
        return self._membership.members

    @property
    def is_member(self) -> bool:
        return self.name in self._membership.members

    @property
    def is_changing(self) -> bool:
        """Whether a change of the members is under way."""
        return self._membership.is_changing

    @property
    def followers(self) -> Mapping[str, Follower]:
        """The leader's peers that have been connected in its leadership, members or not."""
        return self._leadership.followers if self._leadership is not None else {}

    @property
    def has_more(self) -> bool:
        """Whether the next tick has something to commit or to apply, or a follower is to be sent more."""
        applied = self._SyncObj__raftLastApplied
        if self._is_credited or self._SyncObj__raftCommitIndex > applied:
            return True
        if self._leadership is None:
            return False
        return self._leadership.has_more() or (len(self.members) == 1 and self._journal.last_index > applied)

    def _to_send(self) -> tuple[Checkpoint, bytes] | None:
        self.checkpoints_sent += 1
        return self._checkpoint()

    def held_index(self) -> int | None:
        """The first entry that a follower which is being given a checkpoint will need."""
        return self._leadership.held_index() if self._leadership is not None else None

    # -- peers --------------------------------------------------------------------------------------------------------

    def connected(self, name: str, journal: str) -> None:
        """A connection to sink `name`, which holds the journal of that id, was made: what was on its way is lost."""
        self._peers[name] = journal
        self._SyncObj__onNodeConnected(peer(name))
        if name in self._seen:
            self._send(name, self._seen[name])
        if self._leadership is not None:
            self.arrivals += 1
            self._is_transferred = False
            self._leadership.connected(name, journal)

    def disconnected(self, name: str) -> None:
        if self._peers.pop(name, None) is not None:
            self._SyncObj__onNodeDisconnected(peer(name))
            if self._leadership is not None:
                self._leadership.disconnected(name)

    def receive(self, name: str, message: Message, tail: bytes) -> None:
        """A message of sink `name`. FrameError: nothing that a member would send."""
        if isinstance(message, Append):
            self._take_append(name, message, tail)
        elif isinstance(message, Reply):
            self._take_reply(name, message)
        elif isinstance(message, PreVote):
            self._take_prevote(name, message)
        elif isinstance(message, PreVoted):
            self._take_prevoted(name, message)
        elif isinstance(message, RequestVote):
            self._take_request_vote(name, message)
        elif isinstance(message, Voted):
            self._take_voted(name, message)
        elif isinstance(message, Stale):
            self._follow_term(message.term)
        elif isinstance(message, Seen):
            self._take_seen(name, message)
        elif isinstance(message, TimeoutNow):
            self._take_timeout_now(name, message)
        elif isinstance(message, Snapshot):
            self._take_snapshot(name, message, tail)
        else:
            raise FrameError(f"raft link: {type(message).__name__} is not for a member")

    def notes_only(self, message: Message) -> bool:
        """Whether this is an answer that only raises what a follower is known to hold: nothing is written or sent."""
        return isinstance(message, Reply) and message.outcome == MATCHED and message.term == self.term

    def _take_seen(self, name: str, message: Seen) -> None:
        """A witness. DamagedFile: what it saw is no longer here, and so this journal was rolled back."""
        last = self._journal.last_index
        if message.journal == self._journal.journal_id.hex() and message.index > last:
            what = f"the journal ends at entry {last}, sink {name} saw {message.index} in it: it was rolled back"
            raise DamagedFile(str(self._journal.folder), 0, what)

    def _send(self, name: str, message: Message, *tail: bytes) -> None:
        if name in self._peers:
            self.urgent.append((name, CODEC.pack_parts(message, *tail)))

    def _promise(self, name: str, message: Message) -> None:
        self._promises.append((name, message))

    def _answer(self, name: str, message: Message) -> None:
        if name in self._peers:
            self.answers.append((name, CODEC.pack_parts(message)))

    def _library_sends(self, name: str, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "request_vote":
            last = message["last_log_index"], message["last_log_term"]
            self._promise(name, RequestVote(message["term"], *last, self._is_transferred))
        elif kind == "response_vote":
            self._deadline = clock() + self._election_timeout()
            self._promise(name, Voted(message["term"], self.is_doubtful))
        # F3: `next_node_idx` says what the library believes to match; what really does is answered by us.

    # -- the tick -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Commits, applies, stands for election when it is time to; what is to be sent is in `urgent`, `answers`."""
        now = clock()
        if self.state != LEADER and now >= self._deadline:
            self._ask_prevotes()
        if self._leadership is not None:
            self._leadership.go_on_transferring(now)
        is_standing = self._SyncObj__raftElectionDeadline < now
        if self.has_more or is_standing or now - self._ticked_at >= TICK_S:
            self._ticked_at = now
            self._is_credited = False
            self.doTick(0)

    @property
    def promises(self) -> int:
        """How many answers wait for a sync that has not begun or not ended."""
        return len(self._promises)

    def synced(self, promises: int | None = None) -> None:
        """The journal was synced: what is on the disk counts, and the first `promises` answers may leave, or all."""
        kept = len(self._promises) if promises is None else promises
        leaving, self._promises = self._promises[:kept], self._promises[kept:]
        for name, message in leaving:
            self._answer(name, message)
        self._credit()
        commit = min(self._known_commit, self._journal.synced_index)
        if commit > int(self.raftCommitIndex):
            self._SyncObj__raftCommitIndex = commit

    @staticmethod
    def _election_timeout() -> float:
        return random.uniform(ELECTION_S_MIN, ELECTION_S_MAX)

    def _state_changed(self, old: int, new: int) -> None:
        if new == LEADER:
            self._doubts_until = 0.0
            self._deadline = float("inf")
            self._leadership = Leadership(
                self.name, self.term, self._journal, lambda: int(self.raftCommitIndex), self._to_send, self._send
            )
            for name, journal in self._peers.items():
                self._leadership.connected(name, journal)
        elif old == LEADER:
            self._deadline = clock() + self._election_timeout()
            self._leadership = None
            self._drop_pending()
        self._prevotes, self._votes = {}, {}
        log.info("raft_state", node=self.name, state=STATES[new], term=self.term)

    def _drop_pending(self) -> None:
        pending, self._pending = self._pending, {}
        for _, decided in pending.values():
            decided(None, False)

    def _follow_term(self, term: int) -> None:
        """F5: a higher term is there."""
        if term <= self.term:
            return
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__raftLeader = None
        self._SyncObj__setState(FOLLOWER)
        self._deadline = clock() + self._election_timeout()

    # -- elections ----------------------------------------------------------------------------------------------------

    def _ask_prevotes(self) -> None:
        self._deadline = clock() + self._election_timeout()
        self._is_transferred = False
        if self.muted or not self.is_member:
            return
        if len(self.members) == 1:
            self._stand()
            return
        self._prevotes = {}
        last = self._journal.last_index
        for name in self.members:
            if name != self.name:
                self._send(name, PreVote(self.term + 1, last, self._journal.term(last)))

    def _stand(self) -> None:
        """The library's next tick begins an election."""
        self._votes = {}
        self._SyncObj__raftElectionDeadline = 0

    def _take_prevote(self, name: str, message: PreVote) -> None:
        if message.term <= self.term:
            self._promise(name, Stale(self.term))
        elif self._may_vote(name) and not self._hears_leader() and self._is_up_to_date(message):
            self._promise(name, PreVoted(message.term, self.is_doubtful))

    def _take_prevoted(self, name: str, message: PreVoted) -> None:
        if self.state == LEADER or message.term != self.term + 1 or name not in self.members or self.muted:
            return
        self._prevotes[name] = message.doubtful
        if self._are_enough(self._prevotes):
            self._prevotes = {}
            self._stand()

    def _take_request_vote(self, name: str, message: RequestVote) -> None:
        if not self._may_vote(name) or (self._hears_leader() and not message.transfer):
            return
        last = {"last_log_index": message.last_index, "last_log_term": message.last_term}
        self._SyncObj__onMessageReceived(peer(name), {"type": "request_vote", "term": message.term, **last})

    def _take_voted(self, name: str, message: Voted) -> None:
        if self.state != CANDIDATE or message.term != self.term or name not in self.members or name in self._votes:
            return
        self._votes[name] = message.doubtful
        if self._are_enough(self._votes):
            for voter in self._votes:  # the library counts to a majority, and has heard of none of them yet
                self._SyncObj__onMessageReceived(peer(voter), {"type": "response_vote", "term": message.term})

    def _are_enough(self, votes: Mapping[str, bool]) -> bool:
        """Whether these and its own elect this member."""
        doubtful = sum(votes.values()) + self.is_doubtful
        return len(votes) + 1 >= votes_needed(len(self.members), doubtful)

    def _may_vote(self, name: str) -> bool:
        return name in self.members and self.is_member and not self.muted

    def _hears_leader(self) -> bool:
        return self.state == LEADER or clock() - self._heard_at < ELECTION_S_MIN

    def _is_up_to_date(self, message: PreVote) -> bool:
        last = self._journal.last_index
        return (message.last_term, message.last_index) >= (self._journal.term(last), last)

    def transfer(self, name: str = "") -> str:
        """Hands leadership to member `name`, or to the one that holds most; why not, or "" if it was begun."""
        if self._leadership is None:
            return f"sink {self.name} does not lead"
        return self._leadership.transfer(name, self.members, clock())

    def _take_timeout_now(self, name: str, message: TimeoutNow) -> None:
        asked = message.term == self.term and name == self.leader and self.state == FOLLOWER
        if asked and self.is_member and not self.muted:
            self._is_transferred = True
            self._deadline = clock() + self._election_timeout()
            self._stand()

    # -- leading ------------------------------------------------------------------------------------------------------

    def append(self, entry: bytes, decided: Callable[[Any, bool], None]) -> None:
        """Adds `REGULAR` and a command; a later tick calls `decided(result, committed)`, which must only queue.

        Leaders only.
        """
        index, term = self._journal.last_index + 1, self.term
        self._journal.add(entry, index, term)
        self._pending[index] = term, decided
        self._note_members(index, entry)

    def replicate(self) -> None:
        """Sends followers what is new to them; see `Leadership`."""
        if self._leadership is not None:
            self._leadership.replicate(clock())

    def _SyncObj__sendAppendEntries(self) -> None:
        """C4: ours, after every tick."""
        self._SyncObj__newAppendEntriesTime = float("inf")

    def _take_reply(self, name: str, message: Reply) -> None:
        self._follow_term(message.term)
        if self._leadership is None or message.term != self.term:  # L1
            return
        self._leadership.replied(name, message, clock())
        follower = self._leadership.followers.get(name)
        if follower is not None and follower.match_index:
            seen = Seen(follower.journal, min(follower.match_index, int(self.raftCommitIndex)))
            self._seen[name] = seen
            if message.outcome == MISMATCH and message.next_index <= seen.index:
                self._send(name, seen)  # what is committed since it was connected: it was rolled back by that
        self._credit()

    def _credit(self) -> None:
        """Tells the library what members hold, as far as this leader holds it on its own disk too."""
        if self._leadership is None:
            return
        followers, synced = self._leadership.followers, self._journal.synced_index
        matches, heard = self._SyncObj__raftMatchIndex, self._SyncObj__lastResponseTime
        for node in self._SyncObj__otherNodes:
            follower = followers.get(node.id)
            if follower is None:
                continue
            match, matched = min(follower.match_index, synced), matches[node]
            if match != matched:
                self._is_credited |= match > matched
                matches[node] = match
            if follower.heard_at > heard.get(node, 0.0):
                heard[node] = follower.heard_at

    # -- following ----------------------------------------------------------------------------------------------------

    def _take_append(self, name: str, message: Append, tail: bytes) -> None:
        if self._is_stale(name, message.term):
            return
        terms = [term for term, _ in message.entries]
        commit = max(int(self.raftCommitIndex), self._known_commit)
        found = fit(self._journal, commit, message.prev_index, message.prev_term, terms)
        is_too_busy = self.busy and message.entries and len(tail) > self.busy_takes_bytes
        if isinstance(found, Mismatch) or is_too_busy:
            self._heard(name, message.term)
            next_index = found.next_index if isinstance(found, Mismatch) else self._journal.last_index + 1
            self._refuse_append(name, message, next_index)
            return
        try:
            new = commands_of(message, tail, found.start)
        except ValueError as error:
            raise FrameError(f"raft link: {error}") from error
        first = found.prev_index + 1
        is_truncating = bool(new) and first <= self._journal.last_index
        entries = [(command, first + number, terms[found.start + number]) for number, command in enumerate(new)]
        self._known_commit = max(self._known_commit, min(message.commit_index, found.matched))  # F2
        commit_index = min(self._known_commit, self._journal.synced_index)
        self._heard(name, message.term, entries, found.prev_index, commit_index)
        if is_truncating:
            self._membership.truncated(first)
            self._set_members()
        for command, index, _ in entries:
            self._note_members(index, command)
        self._reply(name, message, MATCHED, found.matched + 1)
        self._look_whether_whole(name, message, found.matched)

    def _is_stale(self, name: str, term: int) -> bool:
        if term < self.term:
            self._promise(name, Stale(self.term))
            return True
        if term == self.term and self.leads:
            raise Diverged(f"sink {name} leads in term {term}, and so does {self.name}")
        return False

    def _heard(
        self,
        name: str,
        term: int,
        entries: list[tuple[bytes, int, int]] = [],  # noqa: B006  # it is not kept
        prev_index: int | None = None,
        commit_index: int | None = None,
    ) -> None:
        """Feeds the library an append that fits its log: at its end without entries, or where they are new (F1)."""
        prev = self._journal.last_index if prev_index is None else prev_index
        self._heard_at = clock()
        self._deadline = self._heard_at + self._election_timeout()
        self._SyncObj__onMessageReceived(
            peer(name),
            {
                "type": "append_entries",
                "term": term,
                "commit_index": int(self.raftCommitIndex) if commit_index is None else commit_index,
                "prevLogIdx": prev,
                "prevLogTerm": self._journal.term(prev),
                "entries": entries,
            },
        )

    def _reply(self, name: str, message: Append, outcome: int, next_index: int, why: str = "") -> None:
        self._promise(name, Reply(self.term, message.epoch, message.sequence, outcome, next_index, why))

    def _refuse_append(self, name: str, message: Append, next_index: int) -> None:
        if self.offered is not None and message.prev_index > self._journal.last_index:
            self._reply(name, message, BUSY, next_index, f"fills its log up to entry {self.offered.index}")
        elif self.busy:
            self._reply(name, message, BUSY, next_index, self.busy)
        else:
            self._reply(name, message, MISMATCH, next_index)

    def _look_whether_whole(self, name: str, message: Append, matched: int) -> None:
        """C5: how far this leader's log went when it was first heard is how far a muted member has to get.

        One in doubt, too.
        """
        if not self.muted and not self.is_doubtful:
            return
        key = name, message.term
        if self._target is None or self._target[0] != key:
            self._target = key, message.last_index
        if min(matched, int(self.raftCommitIndex)) < self._target[1] or self.whole_at is not None:
            return
        self._doubts_until = 0.0
        if self.muted:
            self._SyncObj__setCurrentTerm(message.term, name)
            self.whole_at = message.term, name

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _take_snapshot(self, name: str, message: Snapshot, tail: bytes) -> None:
        if self._is_stale(name, message.term):
            return
        self._heard(name, message.term)
        data = self._pieces.take(name, message, tail)
        if data is None:
            return
        try:
            saved = decode_checkpoint(data)
        except BadBytes as error:
            log.warning("checkpoint_refused", sender=name, error=str(error))
            return
        journal = self._journal
        holds = journal.first_index <= saved.index <= journal.last_index and journal.term(saved.index) == saved.term
        if saved.index > int(self.raftCommitIndex) and not holds:
            self.offered = saved

    def install(self, saved: Checkpoint) -> None:
        """Goes on from a checkpoint that is durable, as are the segments that it speaks of. Between two ticks.

        The journal was reset to it (`Journal.reset`), the state machine restored.
        """
        self._SyncObj__raftCommitIndex = saved.index
        self._SyncObj__raftLastApplied = saved.index
        self._drop_pending()
        self.offered = None

    def replace_membership(self, membership: Membership) -> None:
        self._membership = membership
        self._set_members()

    # -- members ------------------------------------------------------------------------------------------------------

    def begin(self, members: Mapping[str, str]) -> None:
        """The first entry of a new group, the same in every journal: its members. Durable when this returns."""
        first = 2  # behind the library's own
        if self._journal.last_index >= first:  # an earlier attempt
            self._journal.deleteEntriesFrom(first - self._journal.first_index)
            self._membership.truncated(first)
        command = commands.encode(commands.MEMBERS, 0, MembersAre(tuple(sorted(members.items()))))
        self._journal.add(REGULAR + command, first, 0)
        self._note_members(first, REGULAR + command)
        self._journal.sync()

    def go_on_alone(self, command: bytes) -> None:
        """Adds a command by which this sink is the only member, in a term that nobody has led. Nobody leads now.

        Blocks, between two ticks; durable when this returns. The next tick stands for election, and wins.
        """
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__setCurrentTerm(self.term + 1, self.name)
        index, entry = self._journal.last_index + 1, REGULAR + command
        self._journal.add(entry, index, self.term)
        self._note_members(index, entry)
        self._journal.sync()
        self.muted, self.whole_at, self._target = "", None, None
        self._deadline = clock()

    def _note_members(self, index: int, entry: bytes) -> None:
        if entry[:1] == REGULAR and commands.members_in(entry[1:3]):
            self._membership.appended(index, commands.read_members(memoryview(entry)[1:]))
            self._set_members()

    def _set_members(self) -> None:
        """The library's set of other members, in place, and what a leader keeps for each."""
        others = {peer(name) for name in self.members if name != self.name}
        there = self._SyncObj__otherNodes
        for node in there - others:
            there.discard(node)
        for node in others - there:
            there.add(node)
            self._SyncObj__raftNextIndex[node] = 1
            self._SyncObj__raftMatchIndex[node] = 0
            self._SyncObj__lastResponseTime[node] = clock()
        self._credit()

    # -- applying -----------------------------------------------------------------------------------------------------

    def _SyncObj__applyLogEntries(self) -> bool:
        """C1: ours, a bounded part of what is committed. Nothing is to be sent for it."""
        journal, first = self._journal, self._SyncObj__raftLastApplied + 1
        last = min(self._SyncObj__raftCommitIndex, journal.last_index, first + JOURNAL_SLICE_ENTRIES_MAX - 1)
        size_bytes = 0
        for index in range(first, last + 1):
            term = journal.term(index)
            command = journal.command(index, term)
            self._apply_entry(command, index, term)
            self._SyncObj__raftLastApplied = index
            size_bytes += len(command)
            if size_bytes >= JOURNAL_SLICE_BYTES_MAX:
                break
        return False

    def _apply_entry(self, command: bytes, index: int, term: int) -> None:
        if command[:1] == REGULAR:
            result = self._apply(memoryview(command)[1:], index, term)
            pending = self._pending.pop(index, None)
            if pending is not None:
                pending[1](result, pending[0] == term)
        self._membership.applied(index)

    def _checkCommandsToApply(self) -> None:
        """L6: commands do not come through the library's queue."""
