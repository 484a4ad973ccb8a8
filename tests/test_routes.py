"""Which stream, key and partition an event gets."""

from hypothesis import given
from hypothesis import strategies as st
from support.streams import state

from gateway.core.routes import StreamRoutes, place
from protocol.limits import ROUTE_PLANS_MAX
from protocol.partitions import partition_of

ORDERS = state("orders", subjects=("orders.>", "returns.*"))
METRICS = state("metrics", partitions=4, key="token:2")
USERS = state("users", partitions=8, key="header:User")
EVENTS = state("events", subjects=(">",), partitions=2)


def block(*lines: bytes) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def stream_of(routes: StreamRoutes, subject: str) -> str | None:
    plan = routes.plan(subject, b"")
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
    assert routes.plan("metrics.cpu", b"") is None
    assert routes.plan("metrics.cpu", b"") is None  # from the cache, too
    assert StreamRoutes().plan("a", b"") is None


def test_a_retired_stream_takes_nothing():
    routes = StreamRoutes((state("orders", retired=True), EVENTS))
    assert stream_of(routes, "orders.new") == "events"
    assert list(routes.by_name) == ["events"]
    assert StreamRoutes((state("events", subjects=(">",), retired=True),)).plan("a", b"") is None


def test_the_key_is_the_subject_a_token_or_a_header():
    routes = StreamRoutes((ORDERS, METRICS, USERS))
    assert routes.plan("orders.new", b"")[1:] == (b"orders.new", 0)
    assert routes.plan("metrics.cpu.eu", b"")[1] == b"cpu"
    assert routes.plan("users.login", block(b"Colour: blue", b"User:  anna\t", b"User: bert"))[1] == b"anna"


def test_a_missing_token_or_header_falls_back_to_the_subject():
    deep = state("metrics", key="token:3", partitions=4)
    assert place(deep, "metrics.cpu", b"")[0] == b"metrics.cpu"
    for header_block in (b"", block(b"Colour: blue"), block(b"user: anna"), block(b"User:"), block(b"X-User: a")):
        assert StreamRoutes((USERS,)).plan("users.login", header_block)[1] == b"users.login"


def test_a_header_is_looked_at_for_every_event():
    routes = StreamRoutes((USERS,))
    keys = [routes.plan("users.login", block(b"User: %d" % number))[1] for number in range(20)]
    assert keys == [b"%d" % number for number in range(20)]
    assert routes.plan("users.login", b"")[1] == b"users.login"


@given(st.text(st.characters(codec="utf-8", exclude_characters=". \0\r\n\t"), min_size=1, max_size=8))
def test_an_event_goes_where_its_key_goes(token):
    stream, key, number = StreamRoutes((METRICS,)).plan(f"metrics.{token}", b"")
    assert (key, number) == (token.encode(), partition_of(token.encode(), 4))
    assert (key, number) == place(stream, f"metrics.{token}", b"")


def test_bytes_that_are_no_utf_8_survive_in_the_key():
    assert StreamRoutes((ORDERS,)).plan("orders.\udcff", b"")[1] == b"orders.\xff"


def test_the_cache_is_bounded():
    routes = StreamRoutes((EVENTS,))
    for number in range(ROUTE_PLANS_MAX + 10):
        assert routes.plan(f"a.{number}", b"") is not None
    assert len(routes._plans) <= ROUTE_PLANS_MAX
