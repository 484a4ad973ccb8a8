"""How entries pass from a leader to a follower: what of an append is new to a log, and which answers count."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkd.core.raft_messages import BUSY, MATCHED, MISMATCH, Append, Reply, Snapshot
from sinkd.core.replication import WINDOW_APPENDS, Diverged, Fit, Follower, Mismatch, Phase, Pieces, commands_of, fit


class Terms(NamedTuple):
    """A log: the terms of its entries from `first_index` on."""

    terms: tuple[int, ...]
    first_index: int = 1

    @property
    def last_index(self) -> int:
        return self.first_index + len(self.terms) - 1

    def term(self, index: int) -> int:
        return self.terms[index - self.first_index]


LOG = Terms((1, 1, 1, 2, 2, 3))


# -- a follower: rules F1 and F4 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prev", "terms", "found"),
    [
        ((6, 3), (3,), Fit(0, 6, 7)),  # new at the end
        ((6, 3), (), Fit(0, 6, 6)),
        ((3, 1), (2, 2), Fit(2, 6, 5)),  # all there: an older append, which truncates nothing
        ((2, 1), (), Fit(0, 6, 2)),  # an old heartbeat
        ((4, 2), (2, 3, 3), Fit(2, 6, 7)),  # some of it is there
        ((4, 2), (4, 4), Fit(0, 4, 6)),  # a real conflict
        ((4, 2), (2, 4), Fit(1, 5, 6)),
        ((9, 3), (3,), Mismatch(7)),  # beyond the end
        ((6, 4), (4,), Mismatch(6)),  # the first index of the conflicting term
        ((5, 3), (4,), Mismatch(4)),
    ],
)
def test_only_what_is_new_is_taken(prev, terms, found):
    assert fit(LOG, 1, *prev, terms) == found


def test_a_hint_lies_above_what_is_committed():
    assert fit(Terms((1, 1, 2, 2, 2)), 3, 5, 3, ()) == Mismatch(4)


@pytest.mark.parametrize(("prev", "terms"), [((3, 2), ()), ((2, 1), (1, 3))])
def test_what_is_committed_is_never_truncated(prev, terms):
    with pytest.raises(Diverged, match="is committed"):
        fit(LOG, 4, *prev, terms)


def test_entries_before_the_logs_begin_are_committed_and_match():
    assert fit(Terms((2, 3), 10), 10, 7, 1, (1, 1, 2, 3, 3)) == Fit(4, 11, 12)


some_terms = st.lists(st.integers(1, 3), min_size=1, max_size=8)


@given(some_terms, some_terms, st.data())
def test_an_append_makes_the_log_the_leaders_up_to_its_end(ours, theirs, data):
    log, leader = Terms(tuple(sorted(ours))), tuple(sorted(theirs))
    prev = data.draw(st.integers(1, len(leader)))
    terms = leader[prev : prev + data.draw(st.integers(0, 4))]
    found = fit(log, 0, prev, leader[prev - 1], terms)
    if isinstance(found, Mismatch):
        assert 1 <= found.next_index <= log.last_index + 1
        return
    after = log.terms[: found.prev_index] + terms[found.start :]
    assert after[prev - 1 : prev + len(terms)] == leader[prev - 1 : prev + len(terms)]
    assert found.matched == prev + len(terms)
    if log.terms[prev : prev + len(terms)] == terms:
        assert after == log.terms


# -- a leader: rules L2 to L4, C4, C6 ---------------------------------------------------------------------------------


def reply(follower: Follower, outcome: int, next_index: int, *, epoch: int | None = None, sequence: int = 99) -> Reply:
    return Reply(5, follower.epoch if epoch is None else epoch, sequence, outcome, next_index)


def connected(end: int = 10, journal: str = "j") -> Follower:
    follower = Follower("s2", end + 1)
    follower.connected(journal, end)
    return follower


def test_it_is_probed_from_the_end_then_sent_as_much_as_its_window_holds():
    follower = connected()
    assert follower.next_index == 11
    follower.sent(11, 100, 0.0)
    assert not follower.may_send()
    follower.replied(reply(follower, MATCHED, 12), 11, 1.0)
    assert follower.phase is Phase.REPLICATE
    for index in range(12, 12 + WINDOW_APPENDS):
        assert follower.may_send()
        follower.sent(index, 1, 1.0)
    assert not follower.may_send()
    follower.replied(reply(follower, MATCHED, 13, sequence=2), 200, 1.0)
    assert follower.may_send()


def test_a_late_answer_raises_what_matches_and_does_not_lower_what_is_sent_next():
    follower = connected()
    old = follower.epoch
    follower.restart(9)
    follower.replied(reply(follower, MATCHED, 6, epoch=old), 10, 1.0)
    assert (follower.match_index, follower.next_index) == (5, 9)
    follower.replied(reply(follower, MISMATCH, 3, epoch=old), 10, 1.0)  # a reset of an older epoch
    assert follower.next_index == 9
    follower.replied(reply(follower, MATCHED, 4), 10, 1.0)
    assert (follower.match_index, follower.next_index) == (5, 9)


def test_a_hint_is_held_between_what_is_known_and_the_end():
    follower = connected()
    follower.replied(reply(follower, MATCHED, 6), 10, 1.0)
    for hint, expected in ((0, 6), (3, 6), (8, 8), (99, 11)):
        follower.replied(reply(follower, MISMATCH, hint), 10, 1.0)
        assert follower.next_index == expected
    fresh = connected()
    fresh.replied(reply(fresh, MISMATCH, 0), 10, 1.0)
    assert fresh.next_index == 2  # entry 1 is the same everywhere


def test_more_than_the_leader_has_is_not_believed():
    follower = connected()
    follower.replied(reply(follower, MATCHED, 13), 10, 1.0)
    assert follower.match_index == 0


def test_a_new_connection_goes_on_behind_what_matches_and_from_the_end_if_nothing_does():
    follower = connected()
    follower.replied(reply(follower, MATCHED, 6), 10, 1.0)
    follower.connected("j", 20)
    assert follower.next_index == 6
    fresh = connected()
    fresh.connected("j", 20)
    assert fresh.next_index == 21


def test_with_another_journal_nothing_is_known_and_old_answers_do_not_count():
    follower = connected()
    follower.replied(reply(follower, MATCHED, 6), 10, 1.0)
    old = follower.epoch
    follower.connected("another", 10)
    assert (follower.match_index, follower.next_index) == (0, 11)
    follower.replied(reply(follower, MATCHED, 9, epoch=old), 10, 1.0)
    assert follower.match_index == 0
    follower.replied(reply(follower, MATCHED, 4), 10, 1.0)
    assert follower.match_index == 3


def test_one_that_is_busy_gets_heartbeats_alone_until_it_can_take_something():
    follower = connected()
    follower.sent(11, 100, 0.0)
    follower.replied(reply(follower, BUSY, 11), 11, 1.0)
    assert not follower.may_send()
    follower.beat(2.0)
    follower.replied(reply(follower, MATCHED, 11), 11, 2.0)
    assert follower.may_send()


# -- pieces -----------------------------------------------------------------------------------------------------------


def piece(start: int, size_bytes: int = 6, *, epoch: int = 1) -> Snapshot:
    return Snapshot(5, epoch, 1, 40, 4, start, size_bytes)


def test_pieces_in_their_order_are_a_file():
    pieces = Pieces()
    assert pieces.take("s1", piece(0), b"abc") is None
    assert pieces.take("s1", piece(3), b"def") == b"abcdef"
    assert pieces.take("s1", piece(3), b"def") is None


@pytest.mark.parametrize(
    ("sender", "second"),
    [("s2", piece(3)), ("s1", piece(3, epoch=2)), ("s1", piece(4)), ("s1", piece(2))],
)
def test_pieces_out_of_turn_are_none(sender, second):
    pieces = Pieces()
    pieces.take("s1", piece(0), b"abc")
    assert pieces.take(sender, second, b"def") is None


def test_an_append_says_how_long_its_commands_are():
    append = Append(1, 1, 1, 5, 1, 3, 8, ((1, 2), (1, 3)))
    assert commands_of(append, b"abcde", 0) == [b"ab", b"cde"]
    assert commands_of(append, b"abcde", 1) == [b"cde"]
    with pytest.raises(ValueError, match="5 bytes of commands has 4"):
        commands_of(append, b"abcd", 0)
