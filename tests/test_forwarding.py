"""What a forwarder keeps in memory and lets go of, and what holds when somebody raises in the middle: both engines."""

import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.gateway import ENGINES
from support.memory import malloc_bytes, python_blocks
from support.scripts import CONNECT, SILENT
from support.twins import Boom, Side

from gateway.core import engine, forwarding
from gateway.core.engine import Engine
from gateway.core.session import Closed, Session
from protocol import limits, subjects

ROUNDS = 20


@pytest.fixture(params=ENGINES, ids=lambda each: each.name)
def each(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture
def side(each: Engine) -> Iterator[Side]:
    made = Side(each)
    yield made
    made.end()


def join(side: Side, sent: bytes = CONNECT) -> Session:
    return side.join(sent)


# -- route plans ------------------------------------------------------------------------------------------------------


def small_limits(each: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Entries and bytes that plans may take. The reference is slow, so it gets smaller ones."""
    if each is engine.REFERENCE:
        monkeypatch.setattr(forwarding, "ROUTE_PLANS_MAX", 500)
        monkeypatch.setattr(forwarding, "ROUTE_PLAN_BYTES_MAX", 80_000)
        return 500, 80_000
    return limits.ROUTE_PLANS_MAX, limits.ROUTE_PLAN_BYTES_MAX


def publish_twice(side: Side, number: int, count: int) -> None:
    """To `count` subjects: what comes again soon is kept."""
    for first in range(0, count, 100):
        side.send(number, b"".join(b"PUB s.%d 0\r\n\r\n" % n for n in range(first, min(first + 100, count))) * 2)


def test_plans_are_bounded_in_number(side: Side, each: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    entries_max, _ = small_limits(each, monkeypatch)
    join(side)
    publish_twice(side, 0, entries_max * 2)
    assert entries_max // 4 < side.plane.forwarder.plans_cached <= entries_max


def test_plans_are_bounded_in_bytes(side: Side, each: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    entries_max, bytes_max = small_limits(each, monkeypatch)
    join(side, SILENT)
    receivers = bytes_max * 10 // entries_max // 8
    side.send(0, b"".join(b"SUB > %d\r\n" % n for n in range(receivers)))
    publish_twice(side, 0, entries_max // 4)
    assert 0 < side.plane.forwarder.plans_cached * receivers * 8 <= bytes_max


def test_plans_that_are_renewed_are_bounded_too(side: Side, each: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were small when they were kept; then very many subscribe."""
    entries_max, bytes_max = small_limits(each, monkeypatch)
    join(side, SILENT)
    count, receivers = entries_max // 8, bytes_max * 20 // entries_max // 8
    publish_twice(side, 0, count)
    assert side.plane.forwarder.plans_cached > count // 2
    side.send(0, b"".join(b"SUB > %d\r\n" % n for n in range(receivers)))
    publish_twice(side, 0, count)
    assert 0 < side.plane.forwarder.plans_cached * receivers * 8 <= bytes_max


def test_no_message_goes_by_a_plan_of_before(side: Side) -> None:
    """Subscriptions come and go between any two messages; each message reaches who is subscribed at its time."""
    chance = random.Random(1)
    patterns = [f"{a}.{b}" for a in ("a", "b", "*") for b in ("x", "y", "*", ">")] + ["a", "b", "*", ">"]
    routes = [f"{a}.{b}" for a in "ab" for b in "xyz"] + ["a", "b", "c"]
    receiver = join(side)
    join(side)
    subscribed: dict[int, str] = {}
    for number in range(3_000):
        choice = chance.randrange(3)
        if choice == 0 and len(subscribed) < 12:
            subscribed[number] = chance.choice(patterns)
            side.send(0, f"SUB {subscribed[number]} {number}\r\n".encode())
        elif choice == 1 and subscribed:
            gone = chance.choice(list(subscribed))
            del subscribed[gone]
            side.send(0, b"UNSUB %d\r\n" % gone)
        else:
            subject = chance.choice(routes)
            side.send(1, f"PUB {subject} 0\r\n\r\n".encode())
            got = sorted(int(line.split()[2]) for line in receiver.take().split(b"\r\n") if line)
            assert got == sorted(sid for sid, pattern in subscribed.items() if subjects.matches(pattern, subject))


def test_a_plan_that_could_not_be_made_is_not_used(each: Engine) -> None:
    """Whoever decides what is kept raises while a plan is made: it must not be used for another subject."""
    side = Side(each)
    keeps, armed = side.keeps, [False]

    def raising(account: str, subject: str) -> bool:
        if subject == "boom" and armed[0]:
            raise Boom
        return keeps(account, subject)

    side.keeps = raising  # type: ignore[method-assign]
    receiver, _ = join(side, CONNECT + b"SUB a 1\r\n"), join(side)
    for armed[0] in (True, False):
        for _ in range(3):
            assert side.send(1, b"PUB a 0\r\n\r\n") == ""
            assert side.send(1, b"PUB boom 0\r\n\r\n") == ("raised" if armed[0] else "")
    assert receiver.take() == b"MSG a 1 0\r\n\r\n" * 6
    side.end()


# -- output -----------------------------------------------------------------------------------------------------------


def test_output_is_what_was_written_however_it_grew(side: Side) -> None:
    session = join(side)
    chance = random.Random(2)
    for _ in range(20):
        pieces = [chance.randbytes(chance.choice((0, 1, 10, 600, 5_000, 300_000))) for _ in range(chance.randrange(12))]
        for piece in pieces:
            session.write(piece)
        assert session.queued_bytes == sum(map(len, pieces))
        assert session.take() == b"".join(pieces)
        assert (session.queued_bytes, session.take()) == (0, b"")


def test_what_was_taken_as_dirty_stays_as_it_is(side: Side) -> None:
    session = join(side)
    side.plane.take_dirty()
    nothing = side.plane.take_dirty()
    side.send(0, b"PING\r\n")
    assert (nothing, side.plane.take_dirty()) == ([], [session])


def test_nothing_is_delivered_to_a_subscription_that_has_ended(side: Side) -> None:
    session = join(side, CONNECT + b"SUB a 1\r\nSUB b 2\r\n")
    ended, open_one = session.subscriptions[b"1"], session.subscriptions[b"2"]
    side.send(0, b"UNSUB 1\r\n")
    assert side.plane.forwarder.deliver([ended, open_one], b"x", b"", b"", b"hi") == 1
    assert session.take() == b"MSG x 2 2\r\nhi\r\n"


# -- somebody raises --------------------------------------------------------------------------------------------------


def in_capture(side: Side) -> bytes:
    return b"PUB act.raise 0\r\n\r\n"


def in_service(side: Side) -> bytes:
    def raising(*_: Any) -> None:
        raise Boom

    side.service = raising  # type: ignore[method-assign]
    return b"PUB $SYS.x 0\r\n\r\n"


def in_watcher(side: Side) -> bytes:
    def raising() -> None:
        raise Boom

    side.send(0, b"SUB once 7\r\nUNSUB 7 1\r\n")
    side.plane.watch(side.sessions[0], "once", raising)
    return b"PUB once 0\r\n\r\n"


def in_measuring(side: Side) -> bytes:
    calls = iter([Boom])

    def raising() -> int:
        for error in calls:
            raise error
        return 0

    side.sessions[1].measure_unsent = raising
    side.sessions[1].unsent_bytes = 10**9
    return b"PUB a 0\r\n\r\n"


@pytest.mark.parametrize("arm", [in_capture, in_service, in_watcher, in_measuring])
@pytest.mark.parametrize("behind", [b"PUB a 1\r\n1\r\n", b"PUB  a 1\r\n1\r\n", b"PUB a 1\r\n"])
def test_what_stands_behind_a_message_that_somebody_raised_at_is_acted_on(
    each: Engine, arm: Callable[[Side], bytes], behind: bytes
) -> None:
    side = Side(each)
    for _ in range(2):
        join(side, CONNECT + b"SUB a 1\r\n")
    bad = arm(side)
    for session in side.sessions:
        session.take()
    before = side.plane.stats.in_msgs
    assert side.send(0, b"PUB a 1\r\n0\r\n" * 2 * (arm is not in_measuring) + bad + behind) == "raised"
    side.send(0, b"" if behind.endswith(b"1\r\n1\r\n") else b"1\r\n")
    side.send(0, b"PUB a 1\r\n2\r\n")
    assert [line for line in side.sessions[0].take().split(b"\r\n") if line in (b"1", b"2")] == [b"1", b"2"]
    assert side.plane.stats.in_msgs - before == side.sessions[0].in_msgs == (3 if arm is in_measuring else 5)
    assert (side.sessions[0].closing, side.sessions[1].closing) == (None, None)
    side.end()
    assert side.plane.accounts["$G"].sublist.count == side.plane.stats.subscriptions == 0


def test_callbacks_may_use_the_forwarder_that_calls_them(side: Side) -> None:
    """A watcher publishes to very many subjects in the middle of a delivery, whose plan is thrown out meanwhile."""
    receiver = join(side, CONNECT + b"SUB > 1\r\nSUB a 2\r\nUNSUB 2 1\r\nSUB * 3\r\n")
    sender = join(side)
    plane = side.plane

    def lost() -> None:
        for n in range(400):
            wire = b"other.%d" % (n // 2)
            plane.forwarder.route(sender.account, sender, wire, b"", b"", b"")

    plane.watch(receiver, "a", lambda: None)
    watch = plane.watch(receiver, "a", lost)
    plane.has_interest = lambda *_: False  # type: ignore[method-assign]
    side.send(1, b"PUB a 2\r\nhi\r\n" * 2)
    out = receiver.take()
    assert (out.count(b"MSG a 1 2\r\nhi\r\n"), out.count(b"MSG a 3 2\r\nhi\r\n"), out.count(b"MSG a 2 ")) == (2, 2, 1)
    assert out.count(b"MSG other.") == 400
    plane.unwatch(watch)


# -- lifetimes --------------------------------------------------------------------------------------------------------


def leave(side: Side, session: Session) -> None:
    side.plane.disconnect(session)


def fall_behind(side: Side, session: Session) -> None:
    session.unsent_bytes = 10**9
    session.measure_unsent = lambda: 10**9
    side.plane.publish("a", "", b"", b"")
    assert session.closing is Closed.SLOW_PENDING
    side.plane.disconnect(session)


def say_nonsense(side: Side, session: Session) -> None:
    side.plane.receive(session, b"NONSENSE\r\nPUB a 0\r\n", 0)
    side.plane.disconnect(session)


def be_paused(side: Side, session: Session) -> None:
    side.plane.pause(session)
    side.plane.receive(session, b"PUB a 0\r\n\r\n" * 100, 0)
    side.plane.disconnect(session)


def be_watched(side: Side, session: Session) -> None:
    side.plane.watch(session, "a", lambda: None)
    side.plane.disconnect(session)


@pytest.mark.parametrize("end", [leave, fall_behind, say_nonsense, be_paused, be_watched])
def test_nothing_of_a_connection_is_left(side: Side, end: Callable[[Side, Session], None]) -> None:
    """Though plans for the subjects it was subscribed to are kept, and another session has just used them."""
    join(side)
    session = join(side, CONNECT + b"SUB a 1\r\nSUB a.* 2\r\nSUB a q 3\r\nUNSUB 3 100\r\n")
    for number in (0, 1):
        side.send(number, b"PUB a r 0\r\n\r\nPUB a.b 0\r\n\r\n" * 3)
    parser = weakref.ref(session.parser)
    end(side, session)
    side.sessions.pop()
    side.plane.take_dirty()
    if side.plane.engine is engine.REFERENCE:  # its plans let go when they are renewed
        side.send(0, b"PUB a r 0\r\n\r\nPUB a.b 0\r\n\r\n")
    del session
    python_blocks()  # collects
    assert parser() is None


def test_a_plane_is_gone_with_its_last_connection(each: Engine) -> None:
    side = Side(each)
    join(side, CONNECT + b"SUB a 1\r\nPUB a 0\r\n\r\n" * 2)
    side.end()
    gone = weakref.ref(side.sessions.pop().parser)
    plane = weakref.ref(side.plane)
    del side
    python_blocks()
    assert (gone(), plane()) == (None, None)


def one_round(side: Side) -> None:
    """Everything that makes, keeps or gives up something, for a few clients of their own."""
    clients = [join(side, CONNECT + b"SUB a.* 1\r\nSUB a q 2\r\nSUB > 3\r\nUNSUB 3 5\r\n") for _ in range(4)]
    side.send(0, b"".join(b"PUB a.%d r 2\r\nhi\r\nHPUB a 3 5\r\nabcde\r\n" % (n // 2) for n in range(200)))
    side.send(1, b"PUB  a 0\r\n\r\nPUB $SYS.x r 0\r\n\r\nPUB kept 3\r\nx\r\n")
    side.send(2, b"PUB act.raise 0\r\n\r\nPING\r\nPUB act.watch 0\r\n\r\nUNSUB 1\r\nSUB a..b 3\r\n")
    side.send(0, b"".join(b"PUB kept.a a.%d 0\r\n\r\n" % n for n in range(200)))
    side.capture(clients[0], "kept.a", "", b"", b"")  # the batch goes, and who waits for it is known
    side.answer_lanes(7)
    clients[3].unsent_bytes = 10**9
    clients[3].measure_unsent = lambda: 10**9
    side.plane.publish("a.b", "", b"", b"x" * 5_000)
    side.end()
    side.drain()
    side.tick(10 * limits.PING_INTERVAL_MS)  # timers forget whom they were for
    side.sessions.clear()
    side.log.clear()


def test_nothing_leaks(each: Engine) -> None:
    side = Side(each)
    for _ in range(ROUNDS):  # the interpreter gets used to it
        one_round(side)
    blocks, size_bytes = python_blocks(), malloc_bytes()
    for _ in range(ROUNDS):
        one_round(side)
    assert python_blocks() - blocks < 2 * ROUNDS
    if size_bytes is not None:
        assert (malloc_bytes() or 0) - size_bytes < 4_096 * ROUNDS
