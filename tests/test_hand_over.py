"""History handed to a subscription as whole messages: the same as if each had been delivered. On both engines."""

import pytest
from support.gateway import ENGINES, PlaneClient, make_plane

from gateway.core.session import Closed
from protocol import nats
from protocol.replay import message

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n'
BLOCK = b"NATS/1.0\r\nA: b\r\n\r\n"
on_both = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)


def client(engine, **options):
    plane = make_plane(engine=engine, **options)
    reader = PlaneClient(plane, CONNECT)
    reader.send(b"SUB in 1\r\n")
    return plane, reader, reader.session


def frames(*payloads: bytes) -> tuple[bytes, int, int]:
    data = b"".join(message(b"HMSG in 1 ", BLOCK, payload) for payload in payloads)
    return data, len(payloads), sum(len(BLOCK) + len(payload) for payload in payloads)


def hand_over(plane, session, *payloads: bytes) -> int:
    (receiver,) = plane.receivers(session, "in")
    return plane.hand_over(receiver, *frames(*payloads))


@on_both
def test_it_is_as_if_each_message_had_been_delivered(engine):
    plane, reader, session = client(engine)
    other, one_by_one, delivered = client(engine)
    assert hand_over(plane, session, b"1", b"", b"three") == 3
    for payload in (b"1", b"", b"three"):
        assert other.deliver(delivered, "in", "in", "", BLOCK, payload) == 1
    assert plane.take_dirty() == [session]
    assert reader.take() == one_by_one.take()
    for counter in ("out_msgs", "out_bytes"):
        assert getattr(session, counter) == getattr(delivered, counter) > 0
        assert getattr(plane.stats, counter) == getattr(other.stats, counter) > 0
    assert session.subscriptions[b"1"].received == 3


@on_both
def test_a_subscription_ends_with_the_last_message_that_it_asked_for(engine):
    plane, reader, session = client(engine)
    reader.send(b"UNSUB 1 2\r\n")
    assert hand_over(plane, session, b"1") == 1
    assert plane.has_interest(session, "in")
    assert hand_over(plane, session, b"2") == 1
    assert plane.receivers(session, "in") == []


@on_both
def test_nothing_is_handed_to_who_is_gone(engine):
    plane, reader, session = client(engine)
    (receiver,) = plane.receivers(session, "in")
    assert plane.hand_over(receiver, b"", 0, 0) == 0
    plane.close(session, Closed.SHUTDOWN)
    assert plane.hand_over(receiver, *frames(b"1")) == 0
    plane, reader, session = client(engine)
    (receiver,) = plane.receivers(session, "in")
    reader.send(b"UNSUB 1\r\n")
    assert plane.hand_over(receiver, *frames(b"1")) == 0
    assert (reader.take(), session.out_msgs) == (b"", 0)


@on_both
def test_a_reader_with_more_than_its_limit_pending_is_cut(engine):
    plane, _, session = client(engine, max_pending_bytes=1_000)
    assert hand_over(plane, session, bytes(400)) == 1
    assert session.closing is None
    assert hand_over(plane, session, bytes(400), bytes(400)) == 2
    assert session.closing is Closed.SLOW_PENDING


def test_messages_are_those_of_the_protocol():
    assert message(b"MSG in 1 ", b"", b"x") == b"MSG in 1" + nats.message_tail(b"", b"x")
    assert message(b"HMSG in 1 ", BLOCK, b"x") == b"HMSG in 1" + nats.header_message_tail(b"", BLOCK, b"x")


@on_both
def test_much_at_once_is_handed_on_as_it_is_and_what_follows_does_not_change_it(engine):
    plane, reader, session = client(engine)
    data, count, size_bytes = frames(bytes(40_000))
    before = bytes(bytearray(data))
    (receiver,) = plane.receivers(session, "in")
    assert plane.hand_over(receiver, data, count, size_bytes) == 1
    assert reader.send(b"PING\r\n").startswith(before + b"PONG\r\n")
    assert data == before
