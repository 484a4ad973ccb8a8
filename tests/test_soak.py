"""The compiled forwarder under numbers that it will meet one day: memory is flat, and what has gone leaves nothing.

Nothing here is timed. Memory is compared by what malloc and Python have handed out, in the middle and at the end.
"""

from collections.abc import Iterator

import pytest
from support.memory import malloc_bytes, python_blocks, resident_bytes
from support.scripts import CONNECT, SILENT
from support.twins import Side

from gateway.core import engine
from gateway.core.session import Session
from protocol.limits import MIB, ROUTE_PLAN_BYTES_MAX, ROUTE_PLANS_MAX, TURN_BYTES_MAX

pytestmark = pytest.mark.skipif(engine.COMPILED is None, reason="the compiled forwarder was not built")


def make_side(**options: int) -> Side:
    assert engine.COMPILED is not None
    return Side(engine.COMPILED, **options)


@pytest.fixture
def side() -> Iterator[Side]:
    made = make_side()
    yield made
    made.end()


def join(side: Side, sent: bytes = CONNECT) -> Session:
    return side.join(sent)


def used_bytes() -> int:
    """What is in use, fragments aside; where malloc does not tell, all that the process has in RAM."""
    python_blocks()  # collects
    counted = malloc_bytes()
    return resident_bytes() if counted is None else counted


def test_ten_million_messages(side: Side) -> None:
    receivers = [join(side, CONNECT + b"SUB a.* 1\r\n"), join(side, CONNECT + b"SUB a.b q 1\r\n")]
    sender = join(side)
    read = b"PUB a.b 16\r\n0123456789abcdef\r\n" * 4_000 + b"HPUB a.c r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n" * 1_000

    def run(rounds: int) -> int:
        for _ in range(rounds):
            side.plane.receive(sender, read, 1)
            while side.plane.receive(sender, b"", 1):
                pass
            assert all(len(session.take()) > 100_000 for session in receivers)
            side.plane.take_dirty()
        return used_bytes()

    before = run(200)
    assert run(1_800) - before < MIB
    assert side.plane.stats.in_msgs == 10_000_000
    assert side.plane.stats.out_msgs == 10_000_000 + 8_000_000


def test_a_million_subjects_that_come_once(side: Side) -> None:
    receiver, sender = join(side, CONNECT + b"SUB _INBOX.* 1\r\n"), join(side)
    before = used_bytes()
    for first in range(0, 1_000_000, 5_000):
        side.plane.receive(sender, b"".join(b"PUB _INBOX.%d 0\r\n\r\n" % n for n in range(first, first + 5_000)), 1)
        while side.plane.receive(sender, b"", 1):
            pass
        assert receiver.take().count(b"MSG ") == 5_000
    assert side.plane.forwarder.plans_cached < 1_000
    assert used_bytes() - before < 4 * MIB


def test_a_million_inboxes_each_with_a_subscription_of_its_own(side: Side) -> None:
    """As requests do it: subscribe, be answered once, and that was it."""
    client, service = join(side), join(side)
    before = 0
    for first in range(0, 1_000_000, 2_000):
        inboxes = range(first, first + 2_000)
        side.send(0, b"".join(b"SUB _INBOX.%d %d\r\nUNSUB %d 1\r\n" % (n, n, n) for n in inboxes))
        side.send(1, b"".join(b"PUB _INBOX.%d 2\r\nhi\r\n" % n for n in inboxes))
        assert client.take().count(b"hi\r\n") == 2_000
        if first == 100_000:
            before = used_bytes()
    assert (side.plane.stats.subscriptions, client.subscriptions, service.subscriptions) == (0, {}, {})
    assert used_bytes() - before < 4 * MIB


def test_dots(side: Side) -> None:
    """A mebibyte of dots is a subject that nobody can be subscribed to, and not the only one of its kind."""
    side = make_side(max_control_line_bytes=4 * MIB)
    join(side, CONNECT + b"SUB > 1\r\nSUB *.*.> 2\r\n")
    before = used_bytes()
    for subject in (b"." * MIB, b"a." * (MIB // 2), b".a" * (MIB // 2), b"*." * (MIB // 2), b"x" * MIB):
        for line in (b"PUB %b 0\r\n\r\n", b"SUB %b 9\r\n", b"SUB %b q 9\r\n"):
            side.send(0, line % subject)
        side.send(0, b"UNSUB 9\r\n")
    assert side.sessions[0].closing is None
    side.sessions[0].take()
    side.send(0, b"PUB a.b.c 0\r\n\r\n" * 3)
    assert side.sessions[0].take().count(b"MSG a.b.c ") == 6
    assert used_bytes() - before < 16 * MIB
    side.end()


def test_a_hundred_thousand_receivers_of_one_subject(side: Side) -> None:
    receivers = [join(side) for _ in range(100)]
    for number in range(100):
        side.send(number, b"".join(b"SUB news %d\r\n" % n for n in range(1_000)))
    sender = join(side)
    turns = 1 + side.plane.receive(sender, b"PUB news 2\r\nhi\r\n" * 10, 1)
    while side.plane.receive(sender, b"", 1):
        turns += 1
    assert turns >= 10 * 100_000 * len(b"MSG news 1 2\r\nhi\r\n") // (100_000 * 25 + TURN_BYTES_MAX)
    assert [session.take().count(b"MSG") for session in receivers] == [10_000] * 100


def test_plans_with_many_receivers_take_no_more_than_they_may(side: Side) -> None:
    sender = join(side, SILENT + b"".join(b"SUB > %d\r\n" % n for n in range(1_000)))
    before = used_bytes()
    for first in range(0, 20_000, 100):
        side.plane.receive(sender, b"".join(b"PUB s.%d 0\r\n\r\n" % n for n in range(first, first + 100)) * 2, 1)
        while side.plane.receive(sender, b"", 1):
            pass
    assert side.plane.forwarder.plans_cached <= ROUTE_PLANS_MAX
    assert used_bytes() - before < 1.5 * ROUTE_PLAN_BYTES_MAX


def test_two_hundred_thousand_subscriptions_of_one_connection(side: Side) -> None:
    """Being rid of them takes many short turns, not one long one."""
    join(side)
    before = used_bytes()
    for first in range(0, 200_000, 2_000):
        side.send(0, b"".join(b"SUB flood.%d.> %d\r\n" % (n, n) for n in range(first, first + 2_000)))
    sublist = side.plane.accounts["$G"].sublist
    assert sublist.count == 200_000
    side.plane.disconnect(side.sessions[0])
    largest, turns = 0, 0
    while side.plane.has_more:
        count = sublist.count
        side.plane.do_more()
        largest, turns = max(largest, count - sublist.count), turns + 1
    assert sublist.count == side.plane.stats.subscriptions == 0
    assert largest * 20 < 200_000
    side.sessions.clear()
    side.plane.take_dirty()
    assert used_bytes() - before < 2 * MIB


def test_thirty_thousand_connections_come_and_go(side: Side) -> None:
    def run(count: int) -> int:
        for _ in range(count):
            session = side.plane.connect("10.0.0.1", 1, side.now_ms)
            side.plane.receive(
                session, CONNECT + b"SUB a.* 1\r\nSUB b q 2\r\nPUB a.b r 2\r\nhi\r\nPUB b 1", side.now_ms
            )
            side.plane.disconnect(session)
            side.now_ms += 6  # ten thousand a minute
        side.plane.tick(side.now_ms)
        side.plane.take_dirty()
        return used_bytes()

    before = run(15_000)
    assert run(15_000) - before < MIB
    assert (side.plane.stats.connections, side.plane.stats.subscriptions) == (0, 0)


@pytest.mark.parametrize(
    ("setup", "line", "most"),
    [
        (CONNECT, "PUB s.{n} 0\r\n\r\n", 1_000),
        (CONNECT, "PUB s.{n} r 0\r\n\r\n", 500),
        (CONNECT + b"SUB > 1\r\n", "PUB _INBOX.{n} 0\r\n\r\n", 4_000),
        (SILENT + b"".join(b"SUB > %d\r\n" % n for n in range(1_000)), "PUB s 0\r\n\r\n", 500),
        (SILENT + b"".join(b"SUB > q %d\r\n" % n for n in range(1_000)), "PUB s 0\r\n\r\n", 500),
        (CONNECT, "pub s 0\r\n\r\n", 500),
    ],
    ids=["new subjects", "new requests", "new inboxes", "silent receivers", "silent group", "lower case"],
)
def test_a_turn_ends_though_little_is_copied(side: Side, setup: bytes, line: str, most: int) -> None:
    """What one read makes the gateway do is cut into turns of about a millisecond, whatever takes the time."""
    sender = join(side, setup)
    read = "".join(line.format(n=n) for n in range(5_000)).encode()
    more = side.plane.receive(sender, read, 1)
    counts = [sender.in_msgs]
    while more:
        more = side.plane.receive(sender, b"", 1)
        counts.append(sender.in_msgs - sum(counts))
        sender.take()
    assert sum(counts) == 5_000
    assert 0 < max(counts) <= most


@pytest.mark.parametrize(("line", "most"), [("SUB s.{n} {n}\r\n", 1_000), ("SUB {n}.*" + ".a" * 200 + " {n}\r\n", 50)])
def test_a_turn_ends_among_subscriptions(side: Side, line: str, most: int) -> None:
    subscriber = join(side)
    read = "".join(line.format(n=n) for n in range(2_000)).encode()
    more, count = side.plane.receive(subscriber, read, 1), 0
    while more:
        assert len(subscriber.subscriptions) - count <= most
        count = len(subscriber.subscriptions)
        more = side.plane.receive(subscriber, b"", 1)
    assert len(subscriber.subscriptions) == 2_000
