"""The data plane without a socket: bytes in, output and hook calls out."""

import re
from typing import Any

import pytest
import support.gateway
from support.gateway import ENGINES, Hooks, PlaneClient

from gateway.core.engine import Engine
from gateway.core.identity import UserEntry
from gateway.core.plane import Plane
from gateway.core.session import Closed, Session
from protocol.limits import DROP_AT_ONCE_MAX

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1,"name":"me"}\r\n'
ECHO_OFF = CONNECT.replace(b"{", b'{"echo":false,')


@pytest.fixture(autouse=True, params=ENGINES, ids=lambda engine: engine.name)
def _engine(request: pytest.FixtureRequest) -> None:
    """Every test here runs on the reference and on its compiled twin."""
    global engine_in_use
    engine_in_use = request.param


engine_in_use: Engine = ENGINES[0]


def make_plane(hooks: Hooks | None = None, **options: Any) -> Plane:
    return support.gateway.make_plane(hooks, engine_in_use, **options)


class Client(PlaneClient):
    def __init__(self, plane: Plane, connect: bytes = CONNECT) -> None:
        super().__init__(plane, connect)


# -- routing ----------------------------------------------------------------------------------------------------------


def test_a_message_reaches_each_subscription_once() -> None:
    plane = make_plane()
    one, other, sender = Client(plane), Client(plane), Client(plane)
    one.send(b"SUB a.* 1\r\nSUB a.b 2\r\n")
    other.send(b"SUB > x\r\n")
    assert sender.send(b"PUB a.b reply 2\r\nhi\r\n") == b""
    assert sorted(one.take().split(b"hi\r\n")) == [b"", b"MSG a.b 1 reply 2\r\n", b"MSG a.b 2 reply 2\r\n"]
    assert other.take() == b"MSG a.b x reply 2\r\nhi\r\n"
    assert (plane.stats.in_msgs, plane.stats.out_msgs, plane.stats.in_bytes, plane.stats.out_bytes) == (1, 3, 2, 6)
    assert (one.session.out_msgs, one.session.out_bytes, sender.session.in_msgs) == (2, 4, 1)


def test_one_member_of_each_group_gets_a_message_and_all_have_their_share() -> None:
    plane = make_plane()
    clients = [Client(plane, b"") for _ in range(3)]
    for client in clients:
        client.send(b"SUB a first 1\r\n")
    clients[0].send(b"SUB a second 2\r\n")
    sender = Client(plane, b"")
    shares = [0, 0, 0]
    for _ in range(300):
        sender.send(b"PUB a 0\r\n\r\n")
        outputs = [client.take() for client in clients]
        assert outputs[0].count(b"MSG a 2 ") == 1
        got = [output.count(b"MSG a 1 ") for output in outputs]
        assert sorted(got) == [0, 0, 1]
        shares[got.index(1)] += 1
    assert min(shares) > 60


def test_a_group_skips_the_sender_without_echo() -> None:
    plane = make_plane()
    sender, other = Client(plane, ECHO_OFF), Client(plane)
    sender.send(b"SUB a q 1\r\n")
    other.send(b"SUB a q 2\r\n")
    assert sender.send(b"PUB a 0\r\n\r\n" * 3) == b""
    assert other.take().count(b"MSG a 2 0\r\n") == 3


def test_a_receiver_without_headers_gets_the_payload_alone() -> None:
    plane = make_plane()
    with_headers, without = Client(plane), Client(plane, b'CONNECT {"verbose":false}\r\n')
    for client in (with_headers, without):
        client.send(b"SUB a 1\r\n")
    with_headers.send(b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n")
    assert without.take() == b"MSG a 1 2\r\nhi\r\n"
    assert plane.stats.out_bytes == 16


def test_a_subscription_ends_with_its_maximum_in_the_middle_of_a_batch() -> None:
    plane = make_plane()
    receiver, sender = Client(plane), Client(plane)
    receiver.send(b"SUB a 1\r\nSUB a 2\r\nUNSUB 1 2\r\n")
    sender.send(b"PUB a 0\r\n\r\n" * 3)
    out = receiver.take()
    assert (out.count(b"MSG a 1 "), out.count(b"MSG a 2 ")) == (2, 3)
    assert plane.stats.subscriptions == plane.accounts["$G"].sublist.count == 1


# -- hooks ------------------------------------------------------------------------------------------------------------


def test_capture_sees_events_of_clients_as_they_came() -> None:
    hooks = Hooks()
    client = Client(make_plane(hooks))
    client.send(b"PUB a 1\r\nx\r\nPUB _INBOX.1 1\r\ny\r\nPUB $other 1\r\nz\r\nPUB a..b 0\r\n\r\nPUB a\0 0\r\n\r\n")
    client.send(b"HPUB \xff.b r 12 13\r\nNATS/1.0\r\n\r\n!\r\n")
    assert hooks.captured == [("a", "", b"", b"x"), ("\udcff.b", "r", b"NATS/1.0\r\n\r\n", b"!")]


def test_system_subjects_are_served_and_never_routed_or_captured() -> None:
    hooks = Hooks()
    client = Client(make_plane(hooks))
    client.send(b"SUB > 1\r\nSUB $LOG.> 2\r\n")
    assert (
        client.send(b"PUB $LOG.FETCH.s.0 r 2\r\n{}\r\nPUB $SYS 0\r\n\r\nPUB $LOGS.x 0\r\n\r\n")
        == b"MSG $LOGS.x 1 0\r\n\r\n"
    )
    assert hooks.served == [("$LOG.FETCH.s.0", "r", b"", b"{}"), ("$SYS", "", b"", b"")]
    assert hooks.captured == []


def test_no_503_when_the_log_will_answer() -> None:
    hooks = Hooks()
    client = Client(make_plane(hooks))
    client.send(b"SUB r 1\r\n")
    assert client.send(b"PUB a r 0\r\n\r\n").startswith(b"HMSG r 1 33 33\r\nNATS/1.0 503\r\n")
    hooks.answers = True
    assert client.send(b"PUB a r 0\r\n\r\n") == b""


def test_a_closed_session_is_reported_once() -> None:
    hooks = Hooks()
    plane = make_plane(hooks)
    client = Client(plane)
    client.send(b"SUB a 1\r\nNONSENSE\r\n")
    assert (client.session.closing, client.session.flushes) == (Closed.PROTOCOL_VIOLATION, True)
    assert (plane.stats.subscriptions, hooks.closed) == (0, [])
    assert client.send(b"PING\r\n") == b""
    plane.disconnect(client.session)
    plane.disconnect(client.session)
    assert hooks.closed == [client.session]
    assert (plane.stats.connections, plane.stats.total_connections) == (0, 1)


# -- messages of the mesh itself --------------------------------------------------------------------------------------


def test_our_own_publish_is_routed_and_not_captured() -> None:
    hooks = Hooks()
    plane = make_plane(hooks)
    client = Client(plane, ECHO_OFF)
    client.send(b"SUB a.* 1\r\nSUB a.* q 2\r\n")
    assert plane.publish("a.b", "", b"", b"hi") == 2
    assert plane.publish("nobody", "", b"", b"") == 0
    assert client.take() == b"MSG a.b 1 2\r\nhi\r\nMSG a.b 2 2\r\nhi\r\n"
    assert hooks.captured == []


def test_deliver_goes_to_one_session_and_shows_another_subject() -> None:
    plane = make_plane()
    reader, other = Client(plane), Client(plane)
    reader.send(b"SUB inbox.* 1\r\nUNSUB 1 2\r\n")
    other.send(b"SUB > 1\r\n")
    assert plane.has_interest(reader.session, "inbox.7")
    for expected in (1, 1, 0):
        assert plane.deliver(reader.session, "inbox.7", "orders.new", "", b"NATS/1.0\r\n\r\n", b"hi") == expected
    assert reader.take() == b"HMSG orders.new 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n" * 2
    assert not plane.has_interest(reader.session, "inbox.7")
    assert other.take() == b""


def test_no_responders_reaches_only_those_who_asked_for_it() -> None:
    plane = make_plane()
    asked, not_asked = Client(plane), Client(plane, b'CONNECT {"verbose":false,"headers":true}\r\n')
    for client in (asked, not_asked):
        client.send(b"SUB r 1\r\n")
        plane.no_responders(client.session, "r")
    assert asked.take() == b"HMSG r 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    assert not_asked.take() == b""


# -- flow -------------------------------------------------------------------------------------------------------------


def test_a_paused_session_stops_between_two_events_and_goes_on_where_it_was() -> None:
    hooks = Hooks()
    plane = make_plane(hooks)
    client = Client(plane)
    capture = hooks.capture

    def pause_after_first(session: Session, *event: object) -> bool:
        if len(hooks.captured) == 1:
            plane.pause(session)
        return capture(session, *event)  # type: ignore[arg-type]

    hooks.capture = pause_after_first  # type: ignore[method-assign]
    client.send(b"PUB a 1\r\n1\r\nPUB a 1\r\n2\r\nPUB a 1\r\n3\r\nPUB a 1\r\n")
    assert [payload for *_, payload in hooks.captured] == [b"1", b"2"]
    client.send(b"4\r\n")
    plane.publish("x", "", b"", b"")
    assert len(hooks.captured) == 2
    plane.take_dirty()
    plane.resume(client.session)
    assert plane.take_dirty() == [client.session]
    client.send(b"")
    assert [payload for *_, payload in hooks.captured] == [b"1", b"2", b"3", b"4"]


def test_deliveries_to_a_paused_session_go_on() -> None:
    plane = make_plane()
    client = Client(plane)
    client.send(b"SUB a 1\r\n")
    plane.pause(client.session)
    assert plane.publish("a", "", b"", b"") == 1
    assert client.take() == b"MSG a 1 0\r\n\r\n"


def test_a_slow_consumer_is_cut_at_its_limit_and_counted_and_its_sender_stalls_before() -> None:
    plane = make_plane(max_pending_bytes=1000)
    slow, sender = Client(plane), Client(plane)
    slow.send(b"SUB a 1\r\n")
    slow.session.measure_unsent = lambda: 450
    slow.session.unsent_bytes = 450
    sender.send(b"PUB a 10\r\n0123456789\r\n")
    assert sender.session.stall_ms == 0
    sender.send(b"PUB a 100\r\n" + b"x" * 100 + b"\r\n")
    assert sender.session.stall_ms > 0
    assert (slow.session.closing, plane.stats.stalled_clients) == (None, 1)
    sender.send(b"PUB a 300\r\n" + b"x" * 300 + b"\r\n" + b"PUB a 0\r\n\r\n")
    sender.send(b"PUB a 900\r\n" + b"x" * 900 + b"\r\n" + b"PUB a 0\r\n\r\n")
    assert (slow.session.closing, slow.session.flushes, slow.session.take()) == (Closed.SLOW_PENDING, False, b"")
    assert (plane.stats.slow_consumers, plane.stats.subscriptions) == (1, 0)


def test_what_is_pending_is_measured_before_somebody_is_cut() -> None:
    plane = make_plane(max_pending_bytes=1000)
    client = Client(plane)
    client.send(b"SUB a 1\r\n")
    client.session.unsent_bytes = 990  # as it was at the last write; the socket has taken all since
    client.session.measure_unsent = lambda: 0
    plane.publish("a", "", b"", b"x" * 100)
    assert (client.session.closing, client.session.stall_ms, client.session.unsent_bytes) == (None, 0, 0)


def test_a_session_is_dirty_once_per_batch() -> None:
    plane = make_plane()
    client = Client(plane)
    plane.take_dirty()
    client.send(b"SUB a 1\r\n" + b"PUB a 0\r\n\r\n" * 5)
    assert plane.take_dirty() == [client.session]
    assert plane.take_dirty() == []


# -- limits -----------------------------------------------------------------------------------------------------------


def test_above_the_maximum_a_connection_is_told_and_not_let_in() -> None:
    hooks = Hooks()
    plane = make_plane(hooks, max_connections=1)
    first = Client(plane)
    session = plane.connect("10.0.0.2", 1, 0)
    assert re.fullmatch(rb"INFO \{.*\} \r\n-ERR 'maximum connections exceeded'\r\n", session.take())
    assert session.closing == Closed.CONNECTIONS_EXCEEDED
    plane.disconnect(session)
    assert (plane.stats.connections, plane.stats.total_connections, hooks.closed) == (1, 2, [session])
    plane.disconnect(first.session)
    assert plane.connect("10.0.0.2", 1, 0).closing is None


def test_subscriptions_are_bounded_in_number_and_depth() -> None:
    client = Client(make_plane(max_subscriptions=2))
    assert client.send(b"SUB a 1\r\nSUB b 2\r\nSUB c 3\r\n") == b"-ERR 'maximum subscriptions exceeded'\r\n"
    assert client.send(b"UNSUB 1\r\nSUB c 3\r\n") == b""
    deep = b".".join([b"a"] * 1025)
    assert client.send(b"UNSUB 3\r\nSUB %b 4\r\n" % deep).endswith(b", too many tokens'\r\n")


# -- timers -----------------------------------------------------------------------------------------------------------


def test_pings_come_early_once_then_per_interval_and_an_unanswered_client_is_stale() -> None:
    plane = make_plane(ping_interval_ms=10_000, ping_max=2)
    client = Client(plane)
    sent = []
    for now_ms in range(0, 40_000, 500):
        plane.tick(now_ms)
        if out := client.take():
            sent.append((now_ms, out))
    assert sent == [(2_000, b"PING\r\n"), (12_000, b"PING\r\n"), (22_000, b"-ERR 'Stale Connection'\r\n")]
    assert (client.session.closing, plane.stats.stale_connections) == (Closed.STALE, 1)


def test_a_client_that_is_heard_is_not_pinged_and_one_that_answers_lives() -> None:
    plane = make_plane(ping_interval_ms=10_000, ping_max=2)
    client = Client(plane)
    pings = 0
    for now_ms in range(0, 200_000, 500):
        plane.tick(now_ms)
        if client.take():
            pings += 1
            client.send(b"PONG\r\n", now_ms + 40)
        if now_ms > 100_000 and now_ms % 5_000 == 0:
            client.send(b"PUB a 0\r\n\r\n", now_ms)
    assert client.session.closing is None
    assert client.session.rtt_ms == 40
    assert 8 <= pings <= 12


def test_the_timers_of_a_paused_session_rest() -> None:
    plane = make_plane(ping_interval_ms=1_000, ping_max=1)
    client = Client(plane)
    plane.pause(client.session)
    for now_ms in range(0, 60_000, 500):
        plane.tick(now_ms)
    assert (client.take(), client.session.closing) == (b"", None)
    plane.resume(client.session)
    plane.tick(61_000)
    assert client.take() == b"PING\r\n"


def test_who_does_not_authenticate_in_time_is_told_and_closed() -> None:
    plane = make_plane(auth_timeout_ms=2_000, users=(UserEntry("u", "p"),))
    silent, known = Client(plane, b""), Client(plane, b'CONNECT {"user":"u","pass":"p"}\r\n')
    for now_ms in range(0, 2_500, 500):
        plane.tick(now_ms)
    assert silent.take() == b"-ERR 'Authentication Timeout'\r\n"
    assert silent.session.closing == Closed.AUTHENTICATION_TIMEOUT
    assert (known.session.closing, known.session.user) == (None, "u")


# -- identity -------------------------------------------------------------------------------------------------------

MEMBERS = (UserEntry("a", "p", account="A"), UserEntry("b", "p", account="B"), UserEntry("guest", account="A"))


def login(user: str) -> bytes:
    return b'CONNECT {"user":"%b","pass":"p","verbose":false}\r\n' % user.encode()


def test_events_are_captured_with_the_account_of_their_publisher() -> None:
    hooks = Hooks()
    plane = make_plane(hooks, users=MEMBERS, accounts=("EMPTY",))
    assert list(plane.accounts) == ["$G", "EMPTY", "A", "B"]
    client = Client(plane, login("b"))
    asked: set[tuple[str, str]] = set()
    hooks.keeps = lambda account, subject: asked.add((account, subject)) or True  # type: ignore[func-returns-value]
    client.send(b"PUB s 0\r\n\r\n")
    assert asked == {("B", "s")}
    assert client.session.account is plane.accounts["B"]


def test_our_own_publish_stays_in_the_account_that_it_names() -> None:
    plane = make_plane(users=MEMBERS)
    a, b = Client(plane, login("a")), Client(plane, login("b"))
    for client in (a, b):
        client.send(b"SUB s 1\r\n")
    assert [plane.publish("s", "", b"", b"x", account) for account in ("A", "B", "")] == [1, 1, 0]
    assert (a.take(), b.take()) == (b"MSG s 1 1\r\nx\r\n",) * 2


def test_a_client_that_says_anew_who_it_is_is_reported() -> None:
    hooks = Hooks()
    plane = make_plane(hooks, users=MEMBERS)
    client = Client(plane, login("a"))
    assert hooks.renewed == []
    client.send(login("b"))
    assert hooks.renewed == [client.session]


def test_who_is_let_in_without_connect_has_time_as_long_as_it_says_nothing() -> None:
    plane = make_plane(auth_timeout_ms=2_000, users=MEMBERS, no_auth_user="guest")
    silent, plain, late = Client(plane, b""), Client(plane, b""), Client(plane, b"")
    assert plain.send(b"SUB s 1\r\nPUB s 1\r\nx\r\n") == b"+OK\r\n+OK\r\nMSG s 1 1\r\nx\r\n"
    assert (plain.session.user, plain.session.account.name) == ("guest", "A")
    assert late.send(b"P") == b""
    for now_ms in range(0, 2_500, 500):
        plane.tick(now_ms)
    assert silent.take() == b"-ERR 'Authentication Timeout'\r\n"
    assert (plain.take(), plain.session.closing) == (b"", None)


# -- passwords --------------------------------------------------------------------------------------------------------

HASHED = UserEntry("h", "$2b$12$notcomputedhere", subscribe_allow=("a",))


def test_nothing_is_acted_on_until_a_password_is_verified() -> None:
    hooks = Hooks()
    plane = make_plane(hooks, users=(HASHED,))
    client = Client(plane, b'CONNECT {"user":"h","pass":"x","verbose":false}\r\nSUB a 1\r\nSUB b 2\r\nPUB a 0\r\n\r\n')
    assert (client.take(), hooks.captured) == (b"", [])
    assert plane.take_verifications() == [client.session]
    assert plane.take_verifications() == []
    verification = client.session.verifying
    assert verification is not None
    assert (verification.secret, verification.candidates) == ("x", (("$2b$12$notcomputedhere", HASHED),))
    plane.verified(client.session, HASHED, 0)
    assert client.take() == b"-ERR 'Permissions Violation for Subscription to \"b\"'\r\nMSG a 1 0\r\n\r\n"
    assert client.session.entry is HASHED


@pytest.mark.parametrize("gone", [False, True])
def test_a_refused_password_closes_and_a_late_verdict_does_no_harm(gone: bool) -> None:
    plane = make_plane(users=(HASHED,))
    client = Client(plane, b'CONNECT {"user":"h","pass":"x"}\r\nPING\r\n')
    if gone:
        plane.disconnect(client.session)
    plane.verified(client.session, None, 0)
    assert client.take() == (b"" if gone else b"-ERR 'Authorization Violation'\r\n")
    assert client.session.closing == (Closed.CLIENT if gone else Closed.AUTHENTICATION_FAILURE)


def test_a_session_with_very_many_subscriptions_is_forgotten_turn_by_turn() -> None:
    plane = make_plane()
    many, sender = Client(plane), Client(plane)
    more = 2 * DROP_AT_ONCE_MAX + 1
    for sid in range(more):
        many.send(b"SUB a %d\r\n" % sid)
    plane.close(many.session, Closed.CLIENT)
    plane.disconnect(many.session)
    assert (plane.has_more, plane.stats.subscriptions) == (True, more)
    sender.send(b"SUB r 1\r\n")
    assert b"503" in sender.send(b"PUB a r 0\r\n\r\n")
    turns = 0
    while plane.has_more:
        plane.do_more()
        turns += 1
    assert (turns, plane.stats.subscriptions, many.session.out_msgs) == (3, 1, 0)
