"""`/connz`: which connections are shown, in which order, with what."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import support.gateway
from support.gateway import ENGINES, make_plane

from gateway.core.connections import ClosedConnections, ConnzOptions, connz
from gateway.core.encryption import Encryption, PeerCertificate
from gateway.core.identity import UserEntry
from gateway.core.nats_values import BadQuery, Moment
from gateway.core.plane import Plane
from gateway.core.session import Closed, Session
from protocol.limits import MONITOR_CLOSED_CHARACTERS_MAX, MONITOR_LIST_MAX

MOMENT = Moment(now_ms=11_000, wall_ms=1_700_000_000_000)
MakePlane = Callable[..., Plane]


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def make(request: pytest.FixtureRequest) -> MakePlane:
    """Makes a plane of each engine."""
    return partial(make_plane, engine=request.param)


def page(plane: Plane, closed: ClosedConnections | None = None, **options: Any) -> dict[str, Any]:
    """What `/connz` says, all turns taken."""
    return support.gateway.page(connz(plane, closed or ClosedConnections(), ConnzOptions(**options), MOMENT))


def cids(shown: dict[str, Any]) -> list[int]:
    return [connection["cid"] for connection in shown["connections"]]


def joined(plane: Plane, data: bytes = b"", now_ms: int = 1_000) -> Session:
    session = plane.connect("10.0.0.1", 50_000, now_ms)
    while plane.receive(session, data, now_ms):
        data = b""
    return session


def leave(plane: Plane, closed: ClosedConnections, session: Session, now_ms: int = 5_000) -> None:
    plane.disconnect(session)
    closed.add(session, now_ms)


def test_one_connection(make: MakePlane) -> None:
    plane = make(users=(UserEntry("u", "p"),))
    connect = b'CONNECT {"user":"u","pass":"p","name":"me","lang":"python3","version":"2.0","verbose":false}\r\n'
    session = joined(plane, connect, 1_000)
    plane.receive(session, b"SUB a.* 1\r\nSUB b q s\r\nUNSUB s 9\r\nPUB a.b 2\r\nhi\r\n", 2_000)
    shown = page(plane)
    assert list(shown) == ["server_id", "now", "num_connections", "total", "offset", "limit", "connections"]
    assert (shown["num_connections"], shown["total"], shown["offset"], shown["limit"]) == (1, 1, 0, 1024)
    assert shown["connections"] == [
        {
            "cid": 1,
            "kind": "Client",
            "type": "nats",
            "ip": "10.0.0.1",
            "port": 50_000,
            "start": "2023-11-14T22:13:10.000Z",
            "last_activity": "2023-11-14T22:13:11.000Z",
            "rtt": "0s",
            "uptime": "10s",
            "idle": "9s",
            "pending_bytes": session.pending_bytes,
            "in_msgs": 1,
            "out_msgs": 1,
            "in_bytes": 2,
            "out_bytes": 2,
            "subscriptions": 2,
            "name": "me",
            "lang": "python3",
            "version": "2.0",
        }
    ]
    assert session.pending_bytes > 0  # nobody has taken INFO


def test_users_and_accounts_are_shown_when_asked_for(make: MakePlane) -> None:
    plane = make(users=(UserEntry("u", "p"), UserEntry("", None, token="secret")))
    joined(plane, b'CONNECT {"user":"u","pass":"p"}\r\n')
    joined(plane, b'CONNECT {"auth_token":"secret"}\r\n')
    assert not [name for each in page(plane)["connections"] for name in each if name in ("authorized_user", "name_tag")]
    shown = page(plane, auth=True)["connections"]
    assert [each["authorized_user"] for each in shown] == ["u", "[REDACTED]"]
    assert [(each.get("account"), each["name_tag"]) for each in shown] == [(None, "$G")] * 2
    assert cids(page(plane, user="u")) == [1]
    assert (cids(page(plane, user="nobody")), page(plane, user="nobody")["total"]) == ([], 2)


def test_encryption(make: MakePlane) -> None:
    plane, closed = make(), ClosedConnections()
    certificate = PeerCertificate(emails=(), dns_names=(), uris=(), subject="CN=shop,O=ACME")
    for peer in (None, certificate):
        joined(plane).tls = Encryption("1.3", "TLS_AES_128_GCM_SHA256", first=peer is None, certificate=peer)
    shown = page(plane, auth=True)["connections"]
    assert [(each["tls_version"], each["tls_cipher_suite"]) for each in shown] == [
        ("1.3", "TLS_AES_128_GCM_SHA256")
    ] * 2
    assert [each.get("tls_first") for each in shown] == [True, None]
    assert [each.get("tls_peer_certs") for each in shown] == [None, [{"subject": "CN=shop,O=ACME"}]]
    assert not [each for each in page(plane)["connections"] if "tls_peer_certs" in each]
    leave(plane, closed, plane.sessions[2])
    assert page(plane, closed, state="closed")["connections"][0]["tls_version"] == "1.3"


def test_connections_of_an_account(make: MakePlane) -> None:
    plane = make()
    closed = ClosedConnections()
    acme = plane.accounts["ACME"] = plane.engine.account("ACME")
    for session in (joined(plane), joined(plane)):
        session.account = acme
    joined(plane)
    leave(plane, closed, plane.sessions[1])
    shown = page(plane, closed, account="ACME", state="any", auth=True)
    assert (cids(shown), shown["total"]) == ([1, 2], 2)
    assert [each["account"] for each in shown["connections"]] == ["ACME", "ACME"]
    assert page(plane, account="NONE")["connections"] == []


def test_subscriptions(make: MakePlane) -> None:
    plane = make()
    joined(plane, b"SUB a.* 1\r\nSUB b q s\r\nUNSUB s 9\r\nSUB \xff 3\r\n")
    joined(plane)
    first, second = page(plane, subscriptions=True)["connections"]
    assert first["subscriptions_list"] == ["a.*", "b", "�"]
    assert "subscriptions_list" not in second
    (first, _) = page(plane, detail=True)["connections"]
    assert first["subscriptions_list_detail"] == [
        {"subject": "a.*", "sid": "1", "msgs": 0, "cid": 1},
        {"subject": "b", "qgroup": "q", "sid": "s", "msgs": 0, "max": 9, "cid": 1},
        {"subject": "�", "sid": "3", "msgs": 0, "cid": 1},
    ]


def test_a_flood_of_subscriptions_is_not_all_shown(make: MakePlane) -> None:
    plane = make()
    for _ in range(2):
        joined(
            plane, b'CONNECT {"verbose":false}\r\n' + b"".join(b"SUB a %d\r\n" % n for n in range(MONITOR_LIST_MAX - 1))
        )
    first, second = page(plane, detail=True)["connections"]
    assert len(first["subscriptions_list_detail"]) == MONITOR_LIST_MAX - 1
    assert len(second["subscriptions_list_detail"]) == 1
    assert second["subscriptions"] == MONITOR_LIST_MAX - 1


def test_windows(make: MakePlane) -> None:
    plane = make()
    for _ in range(5):
        joined(plane)
    shown = page(plane, offset=1, limit=3)
    assert (cids(shown), shown["num_connections"], shown["total"], shown["limit"]) == ([2, 3, 4], 3, 5, 3)
    assert cids(page(plane, offset=9)) == []
    shown = page(plane, id=4, limit=3)
    assert (cids(shown), shown["limit"], shown["total"]) == ([4], 1, 5)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("", [1, 2, 3]),
        ("cid", [1, 2, 3]),
        ("start", [1, 2, 3]),
        ("uptime", [3, 2, 1]),
        ("idle", [2, 1, 3]),
        ("last", [3, 1, 2]),
        ("subs", [2, 1, 3]),
        ("pending", [2, 3, 1]),
        ("msgs_from", [3, 1, 2]),
        ("bytes_from", [1, 3, 2]),
        ("msgs_to", [2, 1, 3]),
        ("bytes_to", [2, 1, 3]),
        ("rtt", [3, 1, 2]),
    ],
)
def test_sorting(make: MakePlane, sort: str, order: list[int]) -> None:
    plane = make()
    sessions = [joined(plane, now_ms=now_ms) for now_ms in (1_000, 2_000, 3_000)]
    columns = {
        "last_activity_ms": (5_000, 4_000, 6_000),
        "in_msgs": (5, 1, 9),
        "in_bytes": (9, 1, 5),
        "out_msgs": (5, 9, 1),
        "out_bytes": (5, 9, 1),
        "rtt_ms": (2, 1, 3),
    }
    for name, values in columns.items():
        for session, value in zip(sessions, values, strict=True):
            setattr(session, name, value)
    plane.receive(sessions[0], b"SUB a 1\r\n", 3_000)
    plane.receive(sessions[1], b"SUB a 1\r\nSUB b 2\r\n", 3_000)
    sessions[0].last_activity_ms, sessions[1].last_activity_ms = 5_000, 4_000
    for session, size in zip(sessions, (1, 9, 5), strict=True):
        session.take()
        session.write(b"x" * size)
    assert cids(page(plane, sort=sort)) == order


def test_closed_connections_are_remembered(make: MakePlane) -> None:
    plane, closed = make(), ClosedConnections()
    first = joined(plane, b'CONNECT {"name":"gone","lang":"go","user":"me"}\r\nSUB a 1\r\nPUB a 2\r\nhi\r\n', 1_000)
    joined(plane)
    leave(plane, closed, first, 8_000)
    assert cids(page(plane, closed)) == [2]
    shown = page(plane, closed, state="closed", auth=True)
    (gone,) = shown["connections"]
    assert (shown["total"], gone["cid"], gone["reason"], gone["stop"]) == (
        1,
        1,
        "Client Closed",
        "2023-11-14T22:13:17.000Z",
    )
    assert (gone["uptime"], gone["idle"]) == ("7s", "7s")
    assert (gone["name"], gone["lang"], gone["authorized_user"]) == ("gone", "go", "me")
    assert (gone["in_msgs"], gone["out_bytes"], gone["pending_bytes"]) == (1, 2, 0)
    assert cids(page(plane, closed, state="any")) == [1, 2]
    assert cids(page(plane, closed, state="any", id=1)) == [1]
    assert cids(page(plane, closed, id=1)) == []


def test_closed_connections_are_sorted_by_their_end(make: MakePlane) -> None:
    plane, closed = make(), ClosedConnections()
    for reason, now_ms in ((Closed.STALE, 5_000), (Closed.CLIENT, 7_000), (Closed.PROTOCOL_VIOLATION, 6_000)):
        session = joined(plane)
        plane.close(session, reason)
        leave(plane, closed, session, now_ms)
    assert cids(page(plane, closed, state="closed", sort="stop")) == [2, 3, 1]
    assert cids(page(plane, closed, state="closed", sort="reason")) == [2, 3, 1]
    assert cids(page(plane, closed, state="closed", sort="uptime")) == [1, 3, 2]


def test_the_ring_of_closed_connections_is_bounded(make: MakePlane) -> None:
    plane, closed = make(), ClosedConnections(3)
    for _ in range(5):
        leave(plane, closed, joined(plane, b'CONNECT {"name":"%b"}\r\n' % (b"x" * 1_000)))
    shown = page(plane, closed, state="closed")
    assert (cids(shown), shown["total"], len(closed)) == ([3, 4, 5], 3, 3)
    assert {len(each["name"]) for each in shown["connections"]} == {MONITOR_CLOSED_CHARACTERS_MAX}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sort": "size"}, "invalid sorting option: size"),
        ({"sort": "stop"}, "sort by stop only valid on closed connections"),
        ({"sort": "reason", "state": "any"}, "sort by reason only valid on closed connections"),
    ],
)
def test_nonsense_is_refused(make: MakePlane, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadQuery) as refusal:
        page(make(), **options)
    assert str(refusal.value) == text
