"""Which sink a gateway tries next: hints are followed, rounds end, and no order of answers makes it run in circles."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.leader_search import LeaderSearch

SINKS = ("a", "b", "c")


def test_sinks_have_their_turn_in_the_order_of_the_file():
    search, tried = LeaderSearch(SINKS), []
    while not search.is_round_over:
        tried.append(search.next())
        search.declined(tried[-1], "")
    assert tried == ["a", "b", "c"]
    assert search.report == "; ".join(f"{sink}: does not lead (names none)" for sink in SINKS)
    assert search.next() == "a"
    assert not search.is_round_over


def test_a_hint_is_followed_at_once_and_the_others_come_after_it():
    search = LeaderSearch(SINKS)
    assert search.next() == "a"
    search.declined("a", "c")
    assert search.next() == "c"
    search.declined("c", "a")  # it has just sent us here
    assert search.next() == "b"
    search.declined("b", "c")
    assert search.is_round_over
    assert search.next() == "c"  # a new round begins with the last hint


def test_a_hint_to_nobody_that_we_know_is_none():
    search = LeaderSearch(SINKS)
    search.declined(search.next(), "z")
    assert search.next() == "b"


def test_who_did_not_answer_comes_last_and_no_hint_leads_there():
    search = LeaderSearch(SINKS)
    search.failed(search.next(), "connection refused")
    search.declined(search.next(), "a")
    search.declined(search.next(), "a")
    assert search.is_round_over
    assert [search.next(), search.next(), search.next()] == ["b", "c", "a"]
    search.declined("a", "")  # it is there again
    search.declined("b", "a")
    assert search.next() == "a"


def test_a_lost_link_sends_us_to_the_others_first():
    search = LeaderSearch(SINKS)
    search.failed(search.next(), "connection refused")
    search.found(search.next())
    assert search.report == ""
    search.lost("b", "silent")
    assert search.report == "b: silent"
    assert [search.next(), search.next()] == ["c", "a"]
    assert search.is_round_over


def test_a_lone_sink_is_tried_once_a_round():
    search = LeaderSearch(("a",))
    search.found(search.next())
    search.lost("a", "closed")
    assert search.is_round_over
    assert search.next() == "a"
    search.declined("a", "a")
    assert search.is_round_over


@given(st.data())
def test_every_round_asks_every_sink_once(data):
    search, named = LeaderSearch(SINKS), st.sampled_from(["", *SINKS, "z"])
    for _ in range(data.draw(st.integers(1, 5))):
        tried = [search.next()]
        while True:
            if data.draw(st.booleans()):
                search.declined(tried[-1], data.draw(named))
            else:
                search.failed(tried[-1], "refused")
            if search.is_round_over:
                break
            tried.append(search.next())
        assert sorted(tried) == list(SINKS)
