"""Who is subscribed to a subject, held against `protocol.subjects.matches`."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.core.sublist import Sublist
from protocol import subjects


@dataclass(eq=False)
class Entry:
    pattern: str
    queue: str = ""


token = st.sampled_from(["a", "b", "c", "*", ">", "a*", ""])
subject = st.lists(st.sampled_from(["a", "b", "c", "*", ">", "a*"]), min_size=1, max_size=5).map(".".join)
pattern = st.lists(token, min_size=1, max_size=5).map(".".join).filter(subjects.is_valid_pattern)
queue = st.sampled_from(["", "", "q", "r"])


class Subscriptions(RuleBasedStateMachine):
    """Inserts and removes in any order; matches agree with a plain list of entries."""

    def __init__(self) -> None:
        super().__init__()
        self.sublist: Sublist[Entry] = Sublist()
        self.entries: list[Entry] = []

    @rule(pattern=pattern, queue=queue)
    def insert(self, pattern: str, queue: str) -> None:
        entry = Entry(pattern, queue)
        self.entries.append(entry)
        self.sublist.insert(entry)

    @rule(choice=st.integers(0, 1000))
    def remove(self, choice: int) -> None:
        if self.entries:
            self.sublist.remove(self.entries.pop(choice % len(self.entries)))

    @rule(subject=subject)
    def match(self, subject: str) -> None:
        expected = [entry for entry in self.entries if subjects.matches(entry.pattern, subject)]
        result = self.sublist.match(subject)
        assert set(result.plain) == {entry for entry in expected if not entry.queue}
        assert len(result.plain) == len(set(result.plain))
        groups = {members[0].queue: set(members) for members in result.queues}
        assert len(groups) == len(result.queues)
        assert groups == {
            name: {entry for entry in expected if entry.queue == name} for name in {e.queue for e in expected} - {""}
        }

    @invariant()
    def counts(self) -> None:
        assert self.sublist.count == len(self.entries) == len(list(self.sublist))
        assert set(self.sublist) == set(self.entries)


Subscriptions.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestSubscriptions = Subscriptions.TestCase


def test_nothing_is_left_when_all_have_gone() -> None:
    sublist: Sublist[Entry] = Sublist()
    entries = [Entry("a.b.c"), Entry("a.*.>"), Entry("a.b.c", "q"), Entry(">")]
    for entry in entries:
        sublist.insert(entry)
    for entry in entries:
        sublist.remove(entry)
    assert sublist._root.is_empty()
    with pytest.raises(KeyError):
        sublist.remove(entries[0])


def test_a_subject_with_an_empty_token_reaches_nobody() -> None:
    sublist: Sublist[Entry] = Sublist()
    sublist.insert(Entry(">"))
    assert [sublist.match(subject).plain for subject in ("a..b", ".a", "a.", "")] == [()] * 4


def test_the_generation_moves_with_every_subscription() -> None:
    sublist: Sublist[Entry] = Sublist()
    one, other = Entry("a"), Entry("*")
    seen = {sublist.generation}
    for change in (sublist.insert, sublist.remove):
        for entry in (one, other):
            change(entry)
            seen.add(sublist.generation)
    assert len(seen) == 5


def test_a_deep_subject_is_matched() -> None:
    sublist: Sublist[Entry] = Sublist()
    deep = Entry(".".join(["*"] * 1024))
    sublist.insert(deep)
    assert sublist.match(".".join(["a"] * 1024)).plain == (deep,)


def test_what_is_not_accepted_is_left_out() -> None:
    sublist = Sublist[Entry](lambda entry, subject: subject != "a.secret")
    sublist.insert(Entry("a.*"))
    sublist.insert(Entry("a.*", "q"))
    assert sublist.match("a.secret") == ((), ())
    assert [len(part) for part in sublist.match("a.open")] == [1, 1]
