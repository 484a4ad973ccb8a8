"""Events that go by lanes while their publisher waits: whatever becomes of them, the answer is that of the long way."""

import pytest
from support.gateway import ENGINES, PlaneClient
from support.lanes import CONNECT, EVENTS, Keeping, ack, answers, sent
from support.streams import state

from protocol import link, publish
from protocol.limits import NEVER_SENT_REFUSE_MS
from protocol.link import Opened

on_both = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)


def waiting(*numbers: int, subject: bytes = b"orders.new") -> bytes:
    """Publishes whose payload and inbox are their number; one below 0 waits for nothing."""
    return b"".join(sent(subject, b"%d" % n, b"", b"in.%d" % n if n >= 0 else b"") for n in numbers)


def refused(refusal: publish.Refusal) -> dict:
    return {"error": refusal._asdict(), "stream": "orders", "seq": 0}


def keeping(engine, *streams) -> tuple[Keeping, PlaneClient]:
    hooks = Keeping(engine, *streams)
    return hooks, PlaneClient(hooks.plane, CONNECT + b"SUB in.* 1\r\n")


@on_both
def test_only_the_first_goes_the_long_way_and_all_are_answered(engine):
    hooks, client = keeping(engine)
    got = client.send(waiting(*range(100), *[-1] * 10, *range(100, 200)))
    assert (hooks.long_way, got) == (1, b"")  # nobody has got them, and no 503: the log will answer
    hooks.carry()
    assert answers(client.take()) == {b"%d" % n: ack(n if n < 100 else n + 10) for n in range(200)}
    assert (hooks.outbox.size_bytes, hooks.outbox.counters.appended) == (0, 210)


@on_both
def test_answers_are_in_the_order_of_events(engine):
    hooks, client = keeping(engine)
    client.send(waiting(*range(50)))
    hooks.carry()
    assert list(answers(client.take())) == [b"%d" % n for n in range(50)]


@on_both
def test_a_run_behind_other_events_is_answered_with_its_own_offsets(engine):
    hooks, client = keeping(engine)
    client.send(waiting(0, 1) + sent(b"orders.new", b"id", b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n", b"in.2"))
    client.send(waiting(3, -1, 5))
    ((head, batch),) = hooks.batches()
    assert head.sequence_count == 6
    hooks.outbox.appended(hooks.take(head, batch))
    assert answers(client.take()) == {b"%d" % n: ack(n) for n in (0, 1, 2, 3, 5)}


@on_both
def test_without_room_who_waits_is_refused_at_once(engine):
    hooks, client = keeping(engine, state("orders", outbox_bytes=2_000))
    other = PlaneClient(hooks.plane, CONNECT + b"SUB in.1000 1\r\n")
    assert client.send(waiting(*range(20))) == b""
    assert client.session.paused
    assert hooks.outbox.size_bytes >= 2_000
    assert answers(other.send(waiting(1_000))) == {b"1000": refused(publish.OUTBOX_FULL)}
    while client.session.paused:
        hooks.carry()
        hooks.plane.resume(client.session)
        client.plane.receive(client.session, b"", 0)
    hooks.carry()
    told = answers(client.take())
    assert told.pop(b"1000") == refused(publish.OUTBOX_FULL)
    assert told == {b"%d" % n: ack(n) for n in range(20)}
    assert hooks.outbox.size_bytes == 0


@on_both
def test_while_the_link_is_down_nobody_waits_in_a_lane(engine):
    hooks, client = keeping(engine)
    client.send(waiting(0, -1, 1))
    assert hooks.long_way == 1
    hooks.outbox.link_down(hooks.now_ms)
    client.send(waiting(-1, 2, -1, -1, 3))
    assert hooks.long_way == 4  # 2, what comes behind it, and 3
    hooks.now_ms += NEVER_SENT_REFUSE_MS - 1
    hooks.outbox.tick(hooks.now_ms)
    assert client.take() == b""
    hooks.now_ms += 1
    hooks.outbox.tick(hooks.now_ms)
    assert answers(client.take()) == {b"%d" % n: refused(publish.NO_LEADER) for n in (0, 1, 2, 3)}
    assert answers(client.send(waiting(4))) == {b"4": refused(publish.NO_LEADER)}
    hooks.outbox.link_up(Opened(1, 2, b"n", ()))
    client.send(waiting(5, 6))
    hooks.carry()
    assert [event.payload for event in hooks.log] == [b"-1"] * 4 + [b"5", b"6"]
    assert answers(client.take()) == {b"5": ack(4), b"6": ack(5)}
    assert hooks.outbox.size_bytes == 0


@on_both
def test_when_the_disk_is_full_who_waits_is_told_and_the_others_are_sent_later(engine):
    hooks, client = keeping(engine)
    client.send(waiting(0, -1, 1, -1))
    ((head, _),) = hooks.batches()
    hooks.refuse(head, "STORAGE_FULL")
    assert answers(client.take()) == {b"%d" % n: refused(publish.STORAGE_FULL) for n in (0, 1)}
    hooks.now_ms += 1_000
    hooks.carry()
    assert [event.payload for event in hooks.log] == [b"-1", b"-1"]
    assert (client.take(), hooks.outbox.size_bytes) == (b"", 0)


@on_both
@pytest.mark.parametrize("reason", ["STALE_CONFIG", "OUT_OF_ORDER"])
def test_what_is_sent_again_is_answered_once(engine, reason):
    hooks, client = keeping(engine)
    client.send(waiting(*range(5)))
    ((head, _),) = hooks.batches()
    hooks.refuse(head, reason)
    hooks.now_ms += 1_000
    assert client.take() == b""
    hooks.carry()
    assert answers(client.take()) == {b"%d" % n: ack(n) for n in range(5)}
    assert hooks.outbox.size_bytes == 0


@on_both
def test_a_known_id_is_taken_out_from_among_runs(engine):
    hooks, client = keeping(engine)
    client.send(waiting(0) + sent(b"orders.new", b"id", b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n", b"in.1") + waiting(2, 3))
    ((head, _),) = hooks.batches()
    refused_ids = link.Refused(
        head.producer_id, head.epoch, head.stream, head.incarnation, 0, 1, "DUPLICATE_IDS", known=((1, 77),)
    )
    hooks.outbox.refused(refused_ids, hooks.now_ms)
    assert answers(client.take()) == {b"1": ack(77) | {"duplicate": True}}
    hooks.carry()
    assert answers(client.take()) == {b"0": ack(0), b"2": ack(1), b"3": ack(2)}
    assert hooks.outbox.size_bytes == 0


@on_both
@pytest.mark.parametrize("has_arrived", [True, False])
def test_after_a_lost_link_the_next_one_tells_what_became_of_them(engine, has_arrived):
    hooks, client = keeping(engine)
    client.send(waiting(*range(3)))
    ((head, batch),) = hooks.batches()
    hooks.outbox.link_down(hooks.now_ms)
    reached = ()
    if has_arrived:
        base = hooks.take(head, batch).base_offset
        known = link.Answer(1, int.from_bytes(batch[17:21], "big"), base)
        reached = (link.Reached("orders", head.incarnation, 0, 3, (known,)),)
    hooks.outbox.link_up(Opened(1, 2, b"n", reached))
    assert bool(client.take()) == has_arrived
    hooks.carry()
    assert [event.payload for event in hooks.log] == [b"0", b"1", b"2"]
    assert hooks.outbox.size_bytes == 0


@on_both
def test_who_waits_for_a_stream_that_goes_is_answered_by_the_one_that_follows(engine):
    hooks, client = keeping(engine)
    client.send(waiting(0, 1))
    hooks.outbox.set_streams([state("orders", retired=True, revision=2), EVENTS])
    hooks.plane.routes_changed()
    hooks.carry()
    assert answers(client.take()) == {b"%d" % n: ack(n, "events") for n in (0, 1)}
    client.send(waiting(2, 3))
    hooks.carry()
    assert b"}" not in client.take()  # `events` answers only who asks with a header


@on_both
def test_a_stream_that_answers_when_an_event_is_kept_answers_at_once(engine):
    hooks, client = keeping(engine, state("orders", ack="logged"))
    got = answers(client.send(waiting(-1, 0, -1, 1)))
    assert [answer["ack"] for answer in got.values()] == ["logged", "logged"]
    hooks.carry()
    assert client.take() == b""
    assert [event.payload for event in hooks.log] == [b"-1", b"0", b"-1", b"1"]


@on_both
def test_answers_on_subjects_of_the_system_go_the_long_way(engine):
    hooks, client = keeping(engine)
    asks = sent(b"orders.new", b"1", b"", b"$LOG.x")
    client.send(b"SUB $LOG.> 2\r\n" + asks + waiting(0) + asks)
    assert hooks.long_way == 3
    hooks.carry()
    assert hooks.answered == ["$LOG.x", "$LOG.x"]  # by `answer`, which lets nobody have them in a gateway


@on_both
def test_an_account_gets_its_own_answers(engine):
    hooks = Keeping(engine, state("orders", account="ONE"))
    hooks.plane.account("ONE")
    hooks.plane.account("TWO")
    publisher, stranger = (PlaneClient(hooks.plane, CONNECT) for _ in range(2))
    for client, account in ((publisher, "ONE"), (stranger, "TWO")):
        client.session.account = hooks.plane.account(account)
        client.send(b"SUB in.* 1\r\n")
    publisher.send(waiting(0, 1))
    hooks.carry()
    assert len(answers(publisher.take())) == 2
    assert stranger.take() == b""
