"""Who is subscribed to a subject, held against `protocol.subjects.matches`: the sublists of both engines."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.gateway import ENGINES

from gateway.core import engine
from gateway.core.engine import Engine
from gateway.core.identity import Permissions, UserEntry
from gateway.core.session import Session, Subscription
from gateway.core.sublist import Sublist
from protocol import nats, subjects

token = st.sampled_from(["a", "b", "c", "*", ">", "a*", ""])
subject = st.lists(st.sampled_from(["a", "b", "c", "*", ">", "a*", ""]), min_size=1, max_size=5).map(".".join)
pattern = st.lists(token, min_size=1, max_size=5).map(".".join).filter(subjects.is_valid_pattern)
queue = st.sampled_from(["", "", "q", "r"])


class Space:
    """The sublist of one account, and a session to be subscribed in it."""

    def __init__(self, engine: Engine, entry: UserEntry | None = None) -> None:
        self._engine = engine
        account = engine.account("A")
        self.sublist: Sublist[Subscription] = account.sublist
        self.session: Session = engine.session(1, "10.0.0.1", 1, nats.ClientParser(), account, 0)
        self.session.permissions = Permissions(entry or UserEntry())

    def entry(self, pattern: str, queue: str = "") -> Subscription:
        return self._engine.subscription(self.session, pattern, queue, b"1")


@pytest.fixture(params=ENGINES, ids=lambda each: each.name)
def space(request: pytest.FixtureRequest) -> Space:
    return Space(request.param)


class Subscriptions(RuleBasedStateMachine):
    """Inserts and removes in any order; matches agree with a plain list of entries."""

    chosen: Engine

    def __init__(self) -> None:
        super().__init__()
        self.space = Space(self.chosen)
        self.sublist = self.space.sublist
        self.entries: list[Subscription] = []

    @rule(pattern=pattern, queue=queue)
    def insert(self, pattern: str, queue: str) -> None:
        entry = self.space.entry(pattern, queue)
        self.entries.append(entry)
        self.sublist.insert(entry)

    @rule(choice=st.integers(0, 1000))
    def remove(self, choice: int) -> None:
        if self.entries:
            self.sublist.remove(self.entries.pop(choice % len(self.entries)))

    @rule(subject=subject)
    def match(self, subject: str) -> None:
        routable = all(subject.split("."))
        expected = [entry for entry in self.entries if routable and subjects.matches(entry.pattern, subject)]
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

    def teardown(self) -> None:
        for entry in self.entries:
            self.sublist.remove(entry)
        assert list(self.sublist) == []


class OnReference(Subscriptions):
    chosen = engine.REFERENCE


class OnCompiled(Subscriptions):
    chosen = engine.COMPILED or engine.REFERENCE


once = settings(max_examples=60, stateful_step_count=30, deadline=None)
OnReference.TestCase.settings = OnCompiled.TestCase.settings = once
TestReference = OnReference.TestCase
TestCompiled = pytest.mark.skipif(engine.COMPILED is None, reason="the compiled forwarder was not built")(
    OnCompiled.TestCase
)


def test_nothing_is_left_when_all_have_gone(space: Space) -> None:
    sublist = space.sublist
    entries = [space.entry("a.b.c"), space.entry("a.*.>"), space.entry("a.b.c", "q"), space.entry(">")]
    for entry in entries:
        sublist.insert(entry)
    for entry in entries:
        sublist.remove(entry)
    assert (list(sublist), sublist.count, sublist.match("a.b.c")) == ([], 0, ((), ()))


@pytest.mark.parametrize("present", [[], ["a.b.c"], ["a.*.>", "a.*.b.>"], ["a.*"]])
@pytest.mark.parametrize("absent", [("a.b.c", ""), ("a.b.c", "q"), ("a.*.>", ""), ("a.*.>", "q"), ("a.*.b", "")])
def test_what_is_not_in_cannot_be_taken_out(space: Space, present: list[str], absent: tuple[str, str]) -> None:
    for pattern in present:
        space.sublist.insert(space.entry(pattern))
    with pytest.raises((KeyError, TypeError)):
        space.sublist.remove(space.entry(*absent))
    assert sorted(entry.pattern for entry in space.sublist) == sorted(present)


def test_a_subject_with_an_empty_token_reaches_nobody(space: Space) -> None:
    space.sublist.insert(space.entry(">"))
    assert [space.sublist.match(subject).plain for subject in ("a..b", ".a", "a.", "")] == [()] * 4


def test_the_generation_moves_with_every_subscription(space: Space) -> None:
    one, other = space.entry("a"), space.entry("*")
    seen = {space.sublist.generation}
    for change in (space.sublist.insert, space.sublist.remove):
        for entry in (one, other):
            change(entry)
            seen.add(space.sublist.generation)
    assert len(seen) == 5


@pytest.mark.parametrize("last", ["*", ">"])
def test_a_deep_subject_is_matched(space: Space, last: str) -> None:
    deep = space.entry(".".join(["*"] * 1_023 + [last]))
    space.sublist.insert(deep)
    assert space.sublist.match(".".join(["a"] * 1_024)).plain == (deep,)
    assert space.sublist.match(".".join(["a"] * 1_023)).plain == ()


def test_any_bytes_may_stand_in_a_token(space: Space) -> None:
    entries = [space.entry(subjects.decode(wire)) for wire in (b"\xff.*", b"\xff.\xc3", b"\xc3\xa9.>")]
    for entry in entries:
        space.sublist.insert(entry)
    assert set(space.sublist.match(subjects.decode(b"\xff.\xc3")).plain) == {entries[0], entries[1]}
    assert space.sublist.match("é.x").plain == (entries[2],)


@pytest.mark.parametrize("each", ENGINES, ids=lambda each: each.name)
def test_what_may_not_be_received_is_left_out(each: Engine) -> None:
    space = Space(each, UserEntry("u", "p", subscribe_deny=("a.secret", "a.half q")))
    for entry in (space.entry("a.*"), space.entry("a.*", "q"), space.entry("a.secret")):
        space.sublist.insert(entry)
    assert space.sublist.match("a.secret") == ((), ())
    found: list[Any] = [space.sublist.match("a.open"), space.sublist.match("a.half")]
    assert [(len(plain), len(queues)) for plain, queues in found] == [(1, 1), (1, 0)]
