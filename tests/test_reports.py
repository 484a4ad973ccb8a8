"""What the gateway says of itself, its subscriptions and its accounts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import support.gateway
from support.gateway import ENGINES, make_plane

from gateway.core import reports
from gateway.core.identity import UserEntry
from gateway.core.nats_values import BadQuery, Moment
from gateway.core.plane import Plane
from gateway.core.reports import SubszOptions

MOMENT = Moment(now_ms=61_000, wall_ms=1_700_000_000_123)
MakePlane = Callable[..., Plane]


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def make(request: pytest.FixtureRequest) -> MakePlane:
    """Makes a plane of each engine."""
    return partial(make_plane, engine=request.param)


def subsz(plane: Plane, **options: Any) -> dict[str, Any]:
    return support.gateway.page(reports.subsz(plane, SubszOptions(**options), MOMENT))


def subjects_of(shown: dict[str, Any]) -> list[str]:
    return [each["subject"] for each in shown.get("subscriptions_list", [])]


@pytest.fixture
def plane(make: MakePlane) -> Plane:
    """Two clients in `$G`, one in `ACME`."""
    plane = make()
    plane.accounts["ACME"] = plane.engine.account("ACME")
    plane.receive(plane.connect("10.0.0.1", 1, 0), b"SUB a.* 1\r\nSUB b q s\r\nUNSUB s 9\r\nPUB a.b 2\r\nhi\r\n", 0)
    plane.receive(plane.connect("10.0.0.1", 2, 0), b"SUB > 1\r\nSUB c 2\r\nUNSUB 2\r\n", 0)
    session = plane.connect("10.0.0.1", 3, 0)
    session.account = plane.accounts["ACME"]
    plane.receive(session, b"SUB a.b x\r\n", 0)
    return plane


def test_varz(make: MakePlane) -> None:
    plane = make(users=(UserEntry("u", "p"),), max_subscriptions=7, ping_interval_ms=2_000, server_version="1.2")
    session = plane.connect("10.0.0.1", 50_000, 1_000)
    plane.receive(
        session, b'CONNECT {"user":"u","pass":"p"}\r\nSUB a.* 1\r\nPUB a.b 2\r\nhi\r\nPUB z 1\r\n!\r\n', 2_000
    )
    plane.set_connect_urls(("one:4222", "two:4222"))
    varz = reports.varz(plane, started_ms=0, loaded_ms=1_000, moment=MOMENT)
    assert varz["connect_urls"] == ["one:4222", "two:4222"]
    assert (varz["start"], varz["now"], varz["uptime"]) == (
        "2023-11-14T22:12:19.123Z",
        "2023-11-14T22:13:20.123Z",
        "1m1s",
    )
    assert (varz["in_msgs"], varz["in_bytes"], varz["out_msgs"], varz["out_bytes"]) == (2, 3, 1, 2)
    assert (varz["in_client_msgs"], varz["in_client_bytes"]) == (2, 3)
    assert (varz["connections"], varz["total_connections"], varz["subscriptions"]) == (1, 1, 1)
    assert (varz["max_subscriptions"], varz["auth_required"], varz["ping_interval"]) == (7, True, 2_000_000_000)
    assert (varz["mesh_version"], varz["git_commit"], varz["slow_consumer_stats"]["clients"]) == (
        "1.2",
        "event-mesh-1.2",
        0,
    )


def test_varz_leaves_out_what_is_off(make: MakePlane) -> None:
    varz = reports.varz(make(), started_ms=0, loaded_ms=1_000, moment=MOMENT)
    assert not {"auth_required", "max_subscriptions", "connect_urls"} & set(varz)
    assert varz["config_load_time"] == "2023-11-14T22:12:20.123Z"


def test_subsz_counts(plane: Plane) -> None:
    shown = subsz(plane)
    assert (shown["num_subscriptions"], shown["num_inserts"], shown["num_removes"]) == (4, 5, 1)
    assert shown["num_cache"] == plane.forwarder.plans_cached == 1
    assert (shown["total"], shown["offset"], shown["limit"]) == (0, 0, 1024)
    assert "subscriptions_list" not in shown
    of_acme = subsz(plane, account="ACME")
    assert (of_acme["num_subscriptions"], of_acme["num_inserts"], "num_cache" in of_acme) == (1, 1, False)
    assert subsz(plane, account="NONE", subscriptions=True)["num_subscriptions"] == 0


def test_subsz_lists(plane: Plane) -> None:
    shown = subsz(plane, subscriptions=True)
    assert shown["total"] == 4
    assert shown["subscriptions_list"] == [
        {"account": "$G", "account_tag": "$G", "subject": "a.*", "sid": "1", "msgs": 1, "cid": 1},
        {
            "account": "$G",
            "account_tag": "$G",
            "subject": "b",
            "qgroup": "q",
            "sid": "s",
            "msgs": 0,
            "max": 9,
            "cid": 1,
        },
        {"account": "$G", "account_tag": "$G", "subject": ">", "sid": "1", "msgs": 0, "cid": 2},
        {"account": "ACME", "account_tag": "ACME", "subject": "a.b", "sid": "x", "msgs": 0, "cid": 3},
    ]
    assert subjects_of(subsz(plane, subscriptions=True, account="ACME")) == ["a.b"]


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [(0, 1, ["a.*"]), (1, 2, ["b", ">"]), (2, 5, [">", "a.b"]), (3, 1, ["a.b"]), (4, 9, []), (-1, 2, ["a.*", "b"])],
)
def test_subsz_windows(plane: Plane, offset: int, limit: int, expected: list[str]) -> None:
    shown = subsz(plane, subscriptions=True, offset=offset, limit=limit)
    assert (subjects_of(shown), shown["total"], shown["limit"]) == (expected, 4, limit)


def test_subsz_says_whom_a_message_would_reach(plane: Plane) -> None:
    shown = subsz(plane, subscriptions=True, test="a.b")
    assert (sorted(subjects_of(shown)), shown["total"]) == ([">", "a.*", "a.b"], 3)
    assert subjects_of(subsz(plane, subscriptions=True, test="a.b", account="ACME")) == ["a.b"]
    assert subsz(plane, subscriptions=True, test="b", limit=1)["total"] == 2


@pytest.mark.parametrize("test", ["a.*", "a..b", "a.>", "a."])
def test_subsz_tests_literal_subjects_alone(plane: Plane, test: str) -> None:
    with pytest.raises(BadQuery, match=r"^invalid test subject, must be valid publish subject: "):
        subsz(plane, test=test)


def test_accountz(plane: Plane) -> None:
    shown = reports.accountz(plane, "", started_ms=0, moment=MOMENT)
    assert shown["accounts"] == ["$G", "ACME"]
    detail = reports.accountz(plane, "$G", started_ms=0, moment=MOMENT)["account_detail"]
    assert (detail["account_name"], detail["client_connections"], detail["subscriptions"]) == ("$G", 2, 3)
    assert detail["sublist_stats"] == {"num_subscriptions": 3, "num_inserts": 4, "num_removes": 1}
    with pytest.raises(BadQuery, match=r"^Account NONE does not exist$"):
        reports.accountz(plane, "NONE", started_ms=0, moment=MOMENT)


def test_there_are_no_links(plane: Plane) -> None:
    assert reports.routez(plane, MOMENT)["routes"] == []
    assert reports.leafz(plane, MOMENT)["leafs"] == []
    gatewayz = reports.gatewayz(plane, MOMENT)
    assert (gatewayz["outbound_gateways"], gatewayz["inbound_gateways"]) == ({}, {})
