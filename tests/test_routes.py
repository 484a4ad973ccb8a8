"""Which stream, key and partition an event gets."""

from hypothesis import given
from hypothesis import strategies as st
from support.streams import state

from gateway.core.routes import StreamRoutes, place
from protocol.limits import STREAM_PLAN_CHARACTERS_MAX, STREAM_PLANS_MAX
from protocol.partitions import partition_of

ORDERS = state("orders", subjects=("orders.>", "returns.*"))
METRICS = state("metrics", partitions=4, key="token:2")
USERS = state("users", partitions=8, key="header:User")
EVENTS = state("events", subjects=(">",), partitions=2)


def block(*lines: bytes) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def stream_of(routes: StreamRoutes, subject: str, account: str = "$G") -> str | None:
    plan = routes.plan(account, subject, b"")
    return plan[0].name if plan else None


def test_named_streams_go_before_the_catch_all_whatever_their_order():
    for streams in ((EVENTS, ORDERS), (ORDERS, EVENTS)):
        routes = StreamRoutes(streams)
        assert stream_of(routes, "orders.new") == "orders"
        assert stream_of(routes, "returns.late") == "orders"
        assert stream_of(routes, "returns.late.again") == "events"
        assert stream_of(routes, "orders") == "events"


def test_without_a_catch_all_other_subjects_are_not_kept():
    routes = StreamRoutes((ORDERS,))
    assert routes.plan("$G", "metrics.cpu", b"") is None
    assert routes.plan("$G", "metrics.cpu", b"") is None  # from the cache, too
    assert StreamRoutes().plan("$G", "a", b"") is None


def test_streams_take_events_of_their_account_alone():
    of_acme = state("acme-orders", subjects=("orders.*",), account="ACME")
    rest_of_acme = state("events-ACME", subjects=(">",), account="ACME")
    routes = StreamRoutes((of_acme, EVENTS, rest_of_acme, ORDERS))
    for _ in range(2):  # the second time from the cache
        assert stream_of(routes, "orders.new") == "orders"
        assert stream_of(routes, "orders.new", "ACME") == "acme-orders"
        assert stream_of(routes, "other") == "events"
        assert stream_of(routes, "other", "ACME") == "events-ACME"
        assert stream_of(routes, "orders.new", "EMPTY") is None
    accounts = {name: stream.account for name, stream in routes.every.items()}
    assert accounts == {"acme-orders": "ACME", "events": "$G", "events-ACME": "ACME", "orders": "$G"}


def test_a_retired_stream_takes_nothing():
    routes = StreamRoutes((state("orders", retired=True), EVENTS))
    assert stream_of(routes, "orders.new") == "events"
    assert list(routes.by_name) == ["events"]
    assert StreamRoutes((state("events", subjects=(">",), retired=True),)).plan("$G", "a", b"") is None


def test_the_key_is_the_subject_a_token_or_a_header():
    routes = StreamRoutes((ORDERS, METRICS, USERS))
    assert routes.plan("$G", "orders.new", b"")[1:] == (b"orders.new", 0)
    assert routes.plan("$G", "metrics.cpu.eu", b"")[1] == b"cpu"
    assert routes.plan("$G", "users.login", block(b"Colour: blue", b"User:  anna\t", b"User: bert"))[1] == b"anna"


def test_a_missing_token_or_header_falls_back_to_the_subject():
    deep = state("metrics", key="token:3", partitions=4)
    assert place(deep, "metrics.cpu", b"")[0] == b"metrics.cpu"
    for header_block in (b"", block(b"Colour: blue"), block(b"user: anna"), block(b"User:"), block(b"X-User: a")):
        assert StreamRoutes((USERS,)).plan("$G", "users.login", header_block)[1] == b"users.login"


def test_a_header_is_looked_at_for_every_event():
    routes = StreamRoutes((USERS,))
    keys = [routes.plan("$G", "users.login", block(b"User: %d" % number))[1] for number in range(20)]
    assert keys == [b"%d" % number for number in range(20)]
    assert routes.plan("$G", "users.login", b"")[1] == b"users.login"


@given(st.text(st.characters(codec="utf-8", exclude_characters=". \0\r\n\t"), min_size=1, max_size=8))
def test_an_event_goes_where_its_key_goes(token):
    stream, key, number = StreamRoutes((METRICS,)).plan("$G", f"metrics.{token}", b"")
    assert (key, number) == (token.encode(), partition_of(token.encode(), 4))
    assert (key, number) == place(stream, f"metrics.{token}", b"")


def test_bytes_that_are_no_utf_8_survive_in_the_key():
    assert StreamRoutes((ORDERS,)).plan("$G", "orders.\udcff", b"")[1] == b"orders.\xff"


def test_the_cache_is_bounded():
    routes = StreamRoutes((EVENTS,))
    for number in range(STREAM_PLANS_MAX + 10):
        assert routes.plan("$G", f"a.{number}", b"") is not None
    assert len(routes._plans) <= STREAM_PLANS_MAX


def test_the_cache_is_bounded_for_long_subjects_too():
    routes = StreamRoutes((EVENTS,))
    long = "a." * (STREAM_PLAN_CHARACTERS_MAX // 8)
    for number in range(6):
        assert stream_of(routes, f"{long}{number}") == "events"
        assert sum(len(subject) for _, subject in routes._plans) <= STREAM_PLAN_CHARACTERS_MAX
    assert stream_of(routes, long * 5 + "x") == "events"
    assert all(len(subject) < len(long) * 2 for _, subject in routes._plans)
