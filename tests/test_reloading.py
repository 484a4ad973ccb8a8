"""A plane that goes by other options while clients are there."""

from dataclasses import replace
from typing import Any

import pytest
from support.gateway import ENGINES, Hooks, PlaneClient, make_plane

from gateway.core.engine import Engine
from gateway.core.identity import UserEntry
from gateway.core.plane import Plane
from gateway.core.reloading import changed
from gateway.core.session import Closed

ADA, BOB = UserEntry("ada", "a"), UserEntry("bob", "b")
VIOLATION = b"-ERR 'Authorization Violation'\r\n"


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


def reload(plane: Plane, **options: Any) -> None:
    plane.reload(replace(plane.options, **options), 0)


def client(plane: Plane, user: str = "", password: str = "", **others: str) -> PlaneClient:
    said = {"user": user, "pass": password} | others
    presented = "".join(f',"{name}":"{value}"' for name, value in said.items() if value)
    return PlaneClient(plane, b'CONNECT {"verbose":false%b}\r\n' % presented.encode())


def answer(one: PlaneClient) -> bytes:
    return one.send(b"PING\r\n")


def test_whose_user_is_the_same_notices_nothing(engine: Engine) -> None:
    plane = make_plane(engine=engine, users=(ADA, BOB))
    ada = client(plane, "ada", "a")
    ada.send(b"SUB x 1\r\n")
    permissions = ada.session.permissions
    reload(plane, users=(UserEntry("eve", "e"), ADA), max_connections=1)
    assert ada.take() == b""
    assert ada.session.permissions is permissions
    assert ada.send(b"PUB x 0\r\n\r\n") == b"MSG x 1 0\r\n\r\n"


def test_whose_user_is_gone_or_elsewhere_is_closed_without_a_word(engine: Engine) -> None:
    plane = make_plane(engine=engine, users=(ADA, BOB))
    ada, bob = client(plane, "ada", "a"), client(plane, "bob", "b")
    reload(plane, users=(replace(ADA, account="A"),))
    for one in (ada, bob):
        assert (one.session.closing, one.take()) == (Closed.CLIENT, b"")
    assert client(plane, "ada", "a").session.account.name == "A"
    assert client(plane, "bob", "b").session.closing is Closed.AUTHENTICATION_FAILURE
    reload(plane, users=())
    assert [session.closing for session in plane.sessions.values()][2] is Closed.CLIENT
    assert answer(client(plane)) == b"PONG\r\n"


def test_what_was_presented_is_held_against_the_new_secret(engine: Engine) -> None:
    token = UserEntry(token="t")
    plane = make_plane(engine=engine, users=(ADA, BOB, token))
    ada, bob, third = client(plane, "ada", "a"), client(plane, "bob", "b"), client(plane, auth_token="t")
    reload(plane, users=(replace(ADA, password="other"), BOB, UserEntry(token="T")))
    assert (ada.take(), ada.session.closing) == (VIOLATION, Closed.AUTHENTICATION_FAILURE)
    assert (third.take(), third.session.closing) == (VIOLATION, Closed.AUTHENTICATION_FAILURE)
    assert answer(bob) == b"PONG\r\n"


def test_who_came_without_credentials_needs_them_when_there_are_users(engine: Engine) -> None:
    plane = make_plane(engine=engine)
    nobody, ada, silent = client(plane), client(plane, "ada", "a"), PlaneClient(plane, b"")
    reload(plane, users=(ADA,))
    assert nobody.take() == silent.take() == VIOLATION
    assert (ada.session.user, answer(ada)) == ("ada", b"PONG\r\n")
    waits = PlaneClient(plane, b"")  # it has yet to say who it is
    reload(plane, users=(ADA, BOB))
    assert waits.send(b'CONNECT {"verbose":true,"user":"bob","pass":"b"}\r\n') == b"+OK\r\n"


def test_who_has_said_nothing_yet_need_not_when_there_are_no_users_any_more(engine: Engine) -> None:
    plane = make_plane(engine=engine, users=(ADA,), auth_timeout_ms=1_000)
    silent = PlaneClient(plane, b"")
    reload(plane, users=())
    plane.tick(1_000)
    assert (silent.session.closing, answer(silent)) == (None, b"PONG\r\n")


def test_subscriptions_that_are_not_allowed_any_more_end(engine: Engine) -> None:
    hooks = Hooks()
    plane = make_plane(hooks, engine, users=(ADA, BOB))
    ada, bob = client(plane, "ada", "a"), client(plane, "bob", "b")
    ada.send(b"SUB x.> 1\r\nSUB y q 2\r\nSUB x.a 3\r\nPUB x.a 0\r\n\r\n")
    reload(plane, users=(replace(ADA, subscribe_allow=("x.a",), publish_deny=("z",)), BOB))
    assert ada.take() == (
        b'-ERR \'Permissions Violation for Subscription to "x.>" (sid "1")\'\r\n'
        b'-ERR \'Permissions Violation for Subscription to "y" using queue "q" (sid "2")\'\r\n'
    )
    assert hooks.refusals == ["subscribe to x.>", "subscribe to y q"]
    assert ada.send(b"PUB x.a 0\r\n\r\nPUB z 0\r\n\r\n").startswith(b"MSG x.a 3 0\r\n\r\n-ERR 'Permissions Violation")
    assert bob.send(b"PUB x.b 0\r\n\r\nPUB y 0\r\n\r\nPING\r\n") == b"PONG\r\n"
    assert ada.take() == b""


def test_what_is_denied_now_is_left_out_of_routes_that_were_made_before(engine: Engine) -> None:
    plane = make_plane(engine=engine, users=(ADA, BOB))
    ada, bob = client(plane, "ada", "a"), client(plane, "bob", "b")
    ada.send(b"SUB x.> 1\r\n")
    for _ in range(3):  # so often that a plan of it is kept
        bob.send(b"PUB x.secret 0\r\n\r\nPUB x.open 0\r\n\r\n")
    assert ada.take().count(b"x.secret") == 3
    reload(plane, users=(replace(ADA, subscribe_deny=("x.secret",)), BOB))
    bob.send(b"PUB x.secret 0\r\n\r\nPUB x.open 0\r\n\r\n")
    assert ada.take() == b"MSG x.open 1 0\r\n\r\n"


def test_plans_of_permissions_that_nobody_has_are_forgotten(engine: Engine) -> None:
    plane = make_plane(engine=engine, users=(ADA, BOB))
    ada, bob = client(plane, "ada", "a"), client(plane, "bob", "b")
    for one in (ada, bob, ada, bob):
        one.send(b"PUB x 0\r\n\r\n")
    assert plane.forwarder.plans_cached == 2
    reload(plane, users=(replace(ADA, publish_deny=("y",)), BOB))
    assert plane.forwarder.plans_cached == 1
    assert answer(ada) == answer(bob) == b"PONG\r\n"


def test_a_hash_in_the_place_of_the_password_is_verified_and_nothing_acted_on_meanwhile(engine: Engine) -> None:
    plane = make_plane(engine=engine, users=(ADA, BOB))
    ada, bob = client(plane, "ada", "a"), client(plane, "bob", "b")
    hashed = tuple(UserEntry(name, "$2b$04$" + name) for name in ("ada", "bob"))
    reload(plane, users=hashed)
    assert answer(ada) == b""
    first, second = plane.take_verifications()
    plane.verified(first, hashed[0], 0)
    plane.verified(second, None, 0)
    assert ada.take() == b"PONG\r\n"  # and no +OK, nor another greeting
    assert bob.take() == VIOLATION
    reload(plane, users=(replace(hashed[0], publish_deny=("x",)),))
    assert plane.take_verifications() == []  # it has fitted already
    assert ada.send(b"PUB x 0\r\n\r\n").startswith(b"-ERR 'Permissions Violation")


def test_a_verdict_that_comes_after_the_users_have_changed_counts_for_nothing(engine: Engine) -> None:
    hashed = UserEntry("ada", "$2b$04$ada")
    plane = make_plane(engine=engine, users=(hashed,))
    kept, refused = client(plane, "ada", "a"), client(plane, "ada", "wrong")
    first, second = plane.take_verifications()
    reload(plane, users=(ADA,))
    plane.verified(first, hashed, 0)
    plane.verified(second, hashed, 0)
    assert answer(kept) == b"PONG\r\n"
    assert refused.take() == VIOLATION


def test_limits_hold_at_once(engine: Engine) -> None:
    plane = make_plane(engine=engine)
    clients = [client(plane) for _ in range(3)]
    reload(plane, max_payload_bytes=10, max_control_line_bytes=100, max_connections=2)
    assert clients[2].take() == b"-ERR 'maximum connections exceeded'\r\n"
    assert clients[2].session.closing is Closed.CONNECTIONS_EXCEEDED
    assert clients[0].send(b"PUB x 11\r\n") == b"-ERR 'Maximum Payload Violation'\r\n"
    assert clients[1].send(b"PUB %b 0\r\n" % (b"x" * 200)) == b"-ERR 'maximum control line exceeded'\r\n"
    plane.disconnect(clients[0].session)
    assert b'"max_payload":10,' in plane.connect("10.0.0.2", 1, 0).take()


def test_timers_are_those_of_the_new_options_from_their_next_time_on(engine: Engine) -> None:
    plane = make_plane(engine=engine, ping_interval_ms=1_000)
    one = client(plane)
    reload(plane, ping_interval_ms=5_000, ping_max=1)
    plane.tick(1_000)
    assert one.take() == b"PING\r\n"
    plane.tick(5_999)
    assert one.take() == b""
    plane.tick(6_000)
    assert one.session.closing is Closed.STALE


def test_what_cannot_change_does_not() -> None:
    options = make_plane().options
    wanted = replace(options, server_name="other", max_pending_bytes=1, max_payload_bytes=5, users=(ADA,))
    assert changed(options, wanted) == replace(options, max_payload_bytes=5, users=(ADA,))
