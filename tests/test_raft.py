"""One member of a Raft group on the real library and the real journal, its peers played by the test."""

from pathlib import Path

import pysyncobj.syncobj
import pytest

from protocol.errors import FrameError
from protocol.frames import FrameReader
from protocol.limits import JOURNAL_SLICE_ENTRIES_MAX, RAFT_DOUBT_MS_MAX
from sinkd.core.doubt import votes_needed
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
    Stale,
    TimeoutNow,
    Voted,
)  # fmt: skip
from sinkd.core.replication import Diverged
from sinkd.shell.journal import Journal
from sinkd.shell.raft import CANDIDATE, FOLLOWER, LEADER, REGULAR, Member

MEMBERS = {"s1": "a:1", "s2": "b:1", "s3": "c:1"}
NO_OP = b"\x01"


class Wire:
    """Member `s1` on a clock that the test moves; what it sends is kept."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        muted: str = "",
        born: bool = True,
        is_doubtful: bool = False,
    ) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", lambda: self.now)
        self.folder, self.applied = folder, []
        self.journal = Journal.open(folder, journal_id=b"j" * 16, checkpoint=None)
        self.member = Member("s1", self.journal, 0, self._apply, Membership({}), muted=muted, is_doubtful=is_doubtful)
        if born:
            self.member.begin(MEMBERS)
            self.member.synced()
        for name in ("s2", "s3"):
            self.member.connected(name, f"journal of {name}")
        self.sent()

    def _apply(self, command: bytes, index: int, term: int) -> bytes:
        self.applied.append((bytes(command), index, term))
        return bytes(command).upper()

    def sent(self) -> list[tuple[str, object]]:
        """What it has sent since the last call, urgent things first."""
        frames = self.member.urgent + self.member.answers
        self.member.urgent.clear()
        self.member.answers.clear()
        return [(name, frame.message) for name, parts in frames for frame in FrameReader(CODEC).feed(b"".join(parts))]

    def receive(self, name: str, message: object, tail: bytes = b"") -> list[tuple[str, object]]:
        self.member.receive(name, message, tail)
        self.member.tick()
        self.journal.sync()
        self.member.synced()
        return self.sent()

    def append(
        self, prev: int, prev_term: int, *terms: int, term: int = 5, commit: int = 1, last: int = 0, sequence: int = 1
    ) -> list[tuple[str, object]]:
        """An append of leader s2 with commands that name their term."""
        commands = [REGULAR + b"of %d" % each for each in terms]
        entries = tuple((each, len(command)) for each, command in zip(terms, commands, strict=True))
        message = Append(term, 1, sequence, prev, prev_term, commit, last, entries)
        return self.receive("s2", message, b"".join(commands))

    def tick(self, seconds: float = 0.0) -> list[tuple[str, object]]:
        self.now += seconds
        self.member.tick()
        self.member.replicate()
        self.journal.sync()
        self.member.synced()
        return self.sent()

    def lead(self) -> int:
        """Has it elected; its term."""
        asked = [message for _, message in self.tick(1.0) if isinstance(message, PreVote)]
        self.receive("s2", PreVoted(asked[0].term))
        self.receive("s2", Voted(self.member.term))
        assert self.member.leads
        self.tick()
        return self.member.term

    def matched(self, name: str, index: int, *, epoch: int | None = None) -> None:
        follower = self.member.followers[name]
        self.receive(name, Reply(self.member.term, epoch or follower.epoch, 99, MATCHED, index + 1))

    def terms(self) -> list[int]:
        return [self.journal.term(index) for index in range(1, self.journal.last_index + 1)]


@pytest.fixture
def wire(tmp_path, monkeypatch):
    wire = Wire(tmp_path / "journal", monkeypatch)
    yield wire
    wire.member.destroy()


# -- following: F1 to F5 ----------------------------------------------------------------------------------------------


def test_an_old_append_deletes_nothing(wire):
    wire.append(2, 0, 5, 5, 5)
    assert wire.append(2, 0, 5) == [("s2", Reply(5, 1, 1, MATCHED, 4))]
    assert wire.append(3, 5) == [("s2", Reply(5, 1, 1, MATCHED, 4))]  # a heartbeat that was overtaken
    assert wire.terms() == [0, 0, 5, 5, 5]


def test_a_conflict_is_replaced_by_the_leaders_entries(wire):
    wire.append(2, 0, 4, 4, 4, term=4)
    assert wire.append(3, 4, 5) == [("s2", Reply(5, 1, 1, MATCHED, 5))]
    assert wire.terms() == [0, 0, 4, 5]


def test_no_more_is_committed_than_an_append_covers(wire):
    wire.append(2, 0, 4, 4, 4, term=4)  # of a leader that is gone; entry 5 is not the new leader's
    wire.append(3, 4, term=5, commit=5)
    assert wire.member.raftCommitIndex == 3
    assert [index for _, index, _ in wire.applied] == [2, 3]


def test_an_answer_says_what_matches_not_where_the_log_ends(wire):
    wire.append(2, 0, 4, 4, 4, term=4)
    assert wire.append(3, 4, term=5, sequence=7) == [("s2", Reply(5, 1, 7, MATCHED, 4))]


def test_a_mismatch_names_the_first_index_of_its_term(wire):
    wire.append(2, 0, 3, 4, 4, 4, term=4)
    assert wire.append(6, 5) == [("s2", Reply(5, 1, 1, MISMATCH, 4))]
    assert wire.append(9, 5) == [("s2", Reply(5, 1, 1, MISMATCH, 7))]


def test_what_is_behind_in_terms_is_told_so(wire):
    wire.append(2, 0, 5)
    assert wire.append(3, 5, 4, term=4) == [("s2", Stale(5))]
    assert wire.terms() == [0, 0, 5]


def test_a_leader_that_hears_of_a_higher_term_follows(wire):
    term = wire.lead()
    wire.receive("s3", Stale(term + 3))
    assert (wire.member.state, wire.member.term, wire.member.leader) == (FOLLOWER, term + 3, "")
    assert wire.journal.getVotedForNodeId() is None


def test_one_that_takes_nothing_says_why_and_leaves_its_log_alone(wire):
    wire.member.busy = "no space"
    assert wire.append(2, 0, 5) == [("s2", Reply(5, 1, 1, BUSY, 3, "no space"))]
    assert wire.append(2, 0) == [("s2", Reply(5, 1, 1, MATCHED, 3))]
    assert wire.terms() == [0, 0]


def test_two_leaders_of_a_term_are_an_error(wire):
    with pytest.raises(Diverged, match="leads in term"):
        wire.append(2, 0, term=wire.lead())


# -- leading: L1, L3, L5, L6, C2, J1 ----------------------------------------------------------------------------------


def test_an_entry_is_committed_when_a_majority_holds_it_in_this_term(wire):
    term, decided = wire.lead(), []
    wire.member.append(REGULAR + b"x", lambda *result: decided.append(result))
    index = wire.journal.last_index
    wire.tick()
    wire.receive("s2", Reply(term - 1, 1, 99, MATCHED, index + 1))  # L1: of an earlier term
    wire.receive("s4", Reply(term, 1, 99, MATCHED, index + 1))  # no member
    assert decided == []
    wire.matched("s2", index)
    assert decided == [(b"X", True)]
    assert wire.applied[-1] == (b"x", index, term)


def test_a_sink_that_is_no_member_does_not_count(wire):
    wire.lead()
    wire.member.connected("s4", "journal of s4")
    wire.member.append(REGULAR + b"x", lambda *_: None)
    wire.tick()
    wire.matched("s4", wire.journal.last_index)
    assert wire.member.raftCommitIndex < wire.journal.last_index
    wire.matched("s3", wire.journal.last_index)
    assert wire.member.raftCommitIndex == wire.journal.last_index


def test_answers_count_only_as_far_as_the_leader_has_synced_itself(wire):
    wire.lead()
    wire.member.append(REGULAR + b"x", lambda *_: None)
    index, follower = wire.journal.last_index, wire.member.followers["s2"]
    wire.member.receive("s2", Reply(wire.member.term, follower.epoch, 99, MATCHED, index + 1), b"")
    wire.member.tick()
    assert wire.member.raftCommitIndex < index
    wire.tick()
    wire.tick()
    assert wire.member.raftCommitIndex == index


def test_what_was_added_while_a_sync_was_under_way_waits_for_the_next_one(wire):
    wire.append(2, 0, 5)
    message = Append(5, 1, 2, 3, 5, 4, 4, ((5, len(REGULAR + b"of 5")),))
    promises, synced = wire.member.promises, wire.journal.synced_index  # here a sync begins
    wire.member.receive("s2", message, REGULAR + b"of 5")
    wire.member.tick()
    wire.member.synced(promises)
    assert (wire.sent(), wire.member.raftCommitIndex, wire.journal.synced_index) == ([], synced, 3)
    assert wire.tick() == [("s2", Reply(5, 1, 2, MATCHED, 5))]
    assert wire.member.raftCommitIndex == 4


def test_votes_count_once_for_each_member(wire):
    wire.receive("s2", PreVoted(wire.tick(1.0)[0][1].term))
    assert wire.member.state == CANDIDATE
    term = wire.member.term
    wire.receive("s4", Voted(term))
    wire.receive("s2", Voted(term - 1))
    assert wire.member.state == CANDIDATE
    wire.receive("s2", Voted(term))
    assert wire.member.state == LEADER


def test_of_five_two_votes_of_one_member_are_no_majority(tmp_path, monkeypatch):
    wire = Wire(tmp_path / "five", monkeypatch, born=False)
    wire.member.begin({f"s{number}": "a:1" for number in range(1, 6)})
    asked = wire.tick(1.0)
    for name in ("s2", "s2", "s3"):
        wire.receive(name, PreVoted(asked[0][1].term))
    assert wire.member.state == CANDIDATE
    for _ in range(3):
        wire.receive("s2", Voted(wire.member.term))
    assert wire.member.state == CANDIDATE
    wire.receive("s3", Voted(wire.member.term))
    assert wire.member.state == LEADER
    wire.member.destroy()


def test_what_waits_is_told_that_the_outcome_is_unknown_when_leadership_is_lost(wire):
    term, decided = wire.lead(), []
    wire.member.append(REGULAR + b"x", lambda *result: decided.append(result))
    wire.receive("s3", Stale(term + 1))
    assert decided == [(None, False)]


def test_another_entry_in_its_place_is_not_taken_for_it(wire):
    term, decided = wire.lead(), []
    wire.member.append(REGULAR + b"x", lambda *result: decided.append(result))
    index = wire.journal.last_index
    wire.append(2, 0, *[term + 1] * (index - 2), term=term + 1, commit=index)
    wire.tick()
    assert wire.applied[-1][:2] == (b"of %d" % (term + 1), index)
    assert decided == [(None, False)]


def test_a_leader_that_nobody_answers_steps_down(wire):
    wire.lead()
    wire.tick(0.9)
    assert wire.member.leads
    wire.tick(0.2)
    assert not wire.member.leads
    assert wire.member.leader == ""


def test_a_follower_that_lacks_what_it_held_is_told_what_was_seen_in_it(wire):
    term = wire.lead()
    wire.member.append(REGULAR + b"x", lambda *_: None)
    wire.matched("s2", 4)
    wire.tick()
    assert wire.member.raftCommitIndex == 4  # since its last answer: on a new connection no more than 3 is said
    lacks = Reply(term, wire.member.followers["s2"].epoch, 100, MISMATCH, 4)
    seen = [message for name, message in wire.receive("s2", lacks) if name == "s2" and isinstance(message, Seen)]
    assert seen == [Seen("journal of s2", 4)]


def test_nothing_is_forwarded(wire):
    with pytest.raises(FrameError, match="not for a member"):
        wire.member.receive("s2", object(), b"")
    wire.member._applyCommand(b"\x00pickled", None)
    wire.lead()
    last = wire.journal.last_index
    wire.tick()
    assert wire.journal.last_index == last


def test_a_follower_is_sent_a_window_at_a_time(wire):
    wire.lead()
    wire.matched("s2", wire.journal.last_index)
    wire.sent()
    for _ in range(3 * 64 * 64):
        wire.member.append(REGULAR + b"x", lambda *_: None)
    wire.member.replicate()
    appends = [message for name, message in wire.sent() if name == "s2"]
    assert len(appends) == 64
    assert all(len(append.entries) <= 64 for append in appends)
    wire.member.replicate()
    assert [name for name, _ in wire.sent() if name == "s2"] == []


# -- elections: C3, J2 ------------------------------------------------------------------------------------------------


def test_before_it_stands_a_member_asks_whether_it_would_win(wire):
    asked = wire.tick(1.0)
    assert asked == [("s2", PreVote(1, 2, 0)), ("s3", PreVote(1, 2, 0))]
    assert (wire.member.term, wire.member.state) == (0, FOLLOWER)
    wire.receive("s4", PreVoted(1))
    assert wire.member.term == 0
    sent = wire.receive("s3", PreVoted(1))
    assert sorted(sent) == [("s2", RequestVote(1, 2, 0)), ("s3", RequestVote(1, 2, 0))]


def test_votes_are_refused_while_a_leader_is_heard(wire):
    wire.append(2, 0, 5)
    assert wire.receive("s3", PreVote(9, 99, 9)) == []
    assert wire.receive("s3", RequestVote(9, 99, 9)) == []
    assert wire.member.term == 5
    assert wire.receive("s3", RequestVote(9, 99, 9, transfer=True)) == [("s3", Voted(9))]


def test_one_vote_in_a_term_and_it_is_kept(wire):
    assert wire.receive("s3", RequestVote(9, 2, 0)) == [("s3", Voted(9))]
    assert wire.receive("s2", RequestVote(9, 99, 9)) == []
    assert (wire.journal.getCurrentTerm(), wire.journal.getVotedForNodeId()) == (9, "s3")


@pytest.mark.parametrize("last", [(1, 0), (3, 4)])
def test_who_lacks_entries_gets_no_vote(wire, last):
    wire.append(2, 0, 5)
    wire.tick(0.45)  # the leader is not heard any more
    for message in (PreVote(9, *last), RequestVote(9, *last)):
        sent = wire.receive("s3", message)
        assert not [answer for _, answer in sent if isinstance(answer, PreVoted | Voted)]
    assert [answer for _, answer in wire.receive("s3", PreVote(10, 3, 5)) if isinstance(answer, PreVoted)]


def test_told_to_by_its_leader_alone_it_stands_at_once(wire):
    wire.append(2, 0, 5)
    wire.receive("s3", TimeoutNow(5))
    assert wire.member.state == FOLLOWER
    sent = wire.receive("s2", TimeoutNow(5))
    assert wire.member.state == CANDIDATE
    assert sorted(name for name, message in sent if message == RequestVote(6, 3, 5, transfer=True)) == ["s2", "s3"]


# -- muted: C5 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def muted(tmp_path, monkeypatch):
    wire = Wire(tmp_path / "journal", monkeypatch, muted="a new disk")
    yield wire
    wire.member.destroy()


def test_a_muted_member_neither_votes_nor_stands(muted):
    assert muted.tick(5.0) == []
    assert muted.receive("s3", PreVote(9, 99, 9)) == []
    assert muted.receive("s3", RequestVote(9, 99, 9)) == []
    muted.append(2, 0, 9, term=9, last=9)
    assert muted.receive("s2", TimeoutNow(9)) == []
    assert (muted.member.state, muted.member.whole_at) == (FOLLOWER, None)


def test_it_is_whole_when_it_holds_what_the_leader_had_when_it_was_first_heard(muted):
    muted.append(2, 0, 5, last=4)
    muted.append(3, 5, 5, last=6, commit=3)  # both are there, one is committed
    assert muted.member.whole_at is None
    muted.append(4, 5, last=9, commit=4)  # the leader's log has grown since: that does not matter
    assert muted.member.whole_at == (5, "s2")
    assert (muted.journal.getCurrentTerm(), muted.journal.getVotedForNodeId()) == (5, "s2")


def test_another_leader_sets_another_goal(muted):
    muted.append(2, 0, 5, last=4)
    muted.append(2, 0, 5, 5, term=6, last=6, commit=4)
    assert muted.member.whole_at is None
    muted.append(4, 5, 6, 6, term=6, last=6, commit=6)
    assert muted.member.whole_at is None  # it was not on its disk when it came
    muted.append(6, 6, term=6, last=6, commit=6)
    assert muted.member.whole_at == (6, "s2")


# -- the journal, applying: J3, J6, C1 --------------------------------------------------------------------------------


def test_a_restart_knows_nothing_of_the_commit_index(wire, monkeypatch):
    wire.append(2, 0, 5, 5, commit=4)
    assert wire.member.raftCommitIndex == 4
    wire.journal.close()
    again = Wire(wire.folder, monkeypatch, born=False)
    assert (again.member.raftCommitIndex, again.member.raftLastApplied, again.journal.last_index) == (1, 1, 4)
    again.member.destroy()


def test_a_tick_applies_a_bounded_number(wire):
    for _ in range(6):
        wire.append(wire.journal.last_index, wire.terms()[-1], *[5] * 100)
    wire.member.receive("s2", Append(5, 1, 1, 602, 5, 602, 602), b"")
    wire.member.tick()
    assert len(wire.applied) == JOURNAL_SLICE_ENTRIES_MAX
    wire.member.tick()
    assert len(wire.applied) == 2 * JOURNAL_SLICE_ENTRIES_MAX


def test_commands_are_applied_as_the_bytes_that_they_are_each_once(wire):
    wire.append(2, 0, 5, 5, commit=4)
    wire.tick()
    assert wire.applied[1:] == [(b"of 5", 3, 5), (b"of 5", 4, 5)]  # behind the list of members
    wire.append(4, 5, commit=4)
    assert len(wire.applied) == 3


def test_a_command_that_cannot_be_applied_is_not_passed_over(wire):
    def poisoned(command: bytes, index: int, term: int) -> None:
        raise FrameError("poison")

    wire.member._apply = poisoned
    with pytest.raises(FrameError, match="poison"):
        wire.append(2, 0, 5, commit=3)
    assert wire.member.raftLastApplied == 1


def test_what_waits_for_a_command_may_only_queue_so_nothing_is_applied_twice(wire):
    wire.lead()
    wire.member.append(REGULAR + b"x", lambda *_: None)
    wire.tick()
    wire.matched("s2", wire.journal.last_index)
    wire.tick()
    assert [command for command, _, _ in wire.applied].count(b"x") == 1


# -- members in doubt: C7 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "needed"),
    [(1, [1, 1]), (2, [2, 2, 2]), (3, [2, 3, 3, 3]), (4, [3, 3, 3]), (5, [3, 4, 5, 5, 5])],
)
def test_how_many_votes_elect_if_some_are_in_doubt(members, needed):
    assert [votes_needed(members, doubtful) for doubtful in range(len(needed))] == needed


def test_a_vote_in_doubt_elects_only_together_with_all_others(wire):
    (asked, *_) = [message for _, message in wire.tick(1.0) if isinstance(message, PreVote)]
    wire.receive("s2", PreVoted(asked.term, doubtful=True))
    assert wire.member.state == FOLLOWER
    wire.receive("s3", PreVoted(asked.term))
    assert wire.member.state == CANDIDATE
    wire.receive("s2", Voted(wire.member.term, doubtful=True))
    assert wire.member.state == CANDIDATE
    wire.receive("s3", Voted(wire.member.term))
    assert wire.member.state == LEADER


@pytest.fixture
def doubtful(tmp_path, monkeypatch):
    wire = Wire(tmp_path / "journal", monkeypatch, is_doubtful=True)
    yield wire
    wire.member.destroy()


def test_a_member_in_doubt_says_so_when_it_votes_and_counts_itself(doubtful):
    assert doubtful.receive("s2", PreVote(1, 2, 0)) == [("s2", PreVoted(1, doubtful=True))]
    assert doubtful.receive("s2", RequestVote(1, 2, 0)) == [("s2", Voted(1, doubtful=True))]
    (asked, *_) = [message for _, message in doubtful.tick(2.0) if isinstance(message, PreVote)]
    doubtful.receive("s2", PreVoted(asked.term))
    assert doubtful.member.state == FOLLOWER


def test_doubt_ends_with_all_that_a_leader_had(doubtful):
    doubtful.append(2, 0, 5, last=4)
    assert doubtful.member.is_doubtful
    doubtful.append(3, 5, 5, commit=4, last=9)
    doubtful.append(4, 5, commit=4, last=9)  # what is committed counts once it is synced
    assert not doubtful.member.is_doubtful
    assert not doubtful.member.muted
    assert doubtful.member.term == 5


def test_doubt_ends_with_time(doubtful):
    doubtful.now += RAFT_DOUBT_MS_MAX / 1000
    assert ("s2", PreVoted(1)) in doubtful.receive("s2", PreVote(1, 2, 0))
