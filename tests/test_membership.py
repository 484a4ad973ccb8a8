"""Who is a member: the last list in the log, whether it is committed or not."""

import pytest

from sinkd.core.membership import Membership, problem_of_change

ONE, TWO, THREE = {"s1": "a:1"}, {"s1": "a:1", "s2": "b:1"}, {"s1": "a:1", "s2": "b:1", "s3": "c:1"}


def test_a_list_counts_from_the_moment_it_stands_in_the_log():
    membership = Membership(ONE)
    assert membership.members == ONE
    assert not membership.is_changing
    membership.appended(7, TWO)
    assert membership.members == TWO
    assert membership.is_changing
    membership.applied(6)
    assert membership.is_changing
    membership.applied(7)
    assert membership.members == TWO
    assert not membership.is_changing


def test_a_list_that_is_truncated_is_void():
    membership = Membership(ONE)
    membership.appended(7, TWO)
    membership.truncated(8)
    assert membership.members == TWO
    membership.truncated(7)
    assert membership.members == ONE


def test_lists_behind_each_other_are_applied_one_by_one():
    membership = Membership(ONE)
    membership.appended(7, TWO)
    membership.appended(9, THREE)
    membership.applied(8)
    membership.truncated(9)
    assert membership.members == TWO
    assert not membership.is_changing


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        (TWO, THREE, ""),
        (THREE, TWO, ""),
        (ONE, THREE, "this would add 2 and remove 0"),
        (TWO, {"s1": "a:1", "s4": "d:1"}, "this would add 1 and remove 1"),
        (TWO, TWO, "this would add 0 and remove 0"),
        (ONE, {}, "the last sink of a group cannot be removed"),
    ],
)
def test_one_at_a_time(before, after, problem):
    assert problem in problem_of_change(before, after)
    assert bool(problem) == bool(problem_of_change(before, after))
