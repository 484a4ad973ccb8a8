"""The parameters of the monitoring pages."""

import pytest

from gateway.core.nats_values import BadQuery
from mesh.query import Query


def test_what_is_missing_or_empty_has_its_default() -> None:
    for query in (Query({}), Query(dict.fromkeys(("a", "state", "subs"), ""))):
        assert (query.text("a"), query.boolean("a"), query.integer("a"), query.unsigned("a")) == ("", False, 0, 0)
        assert (query.state(), query.subscriptions()) == ("open", (False, False))


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_true(text: str) -> None:
    assert Query({"auth": text}).boolean("auth")


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false(text: str) -> None:
    assert not Query({"auth": text}).boolean("auth")


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("+7", 7), ("-7", -7), ("-9223372036854775808", -(2**63)), ("0" * 5_000 + "1", 1)]
)
def test_integers(text: str, number: int) -> None:
    assert Query({"limit": text}).integer("limit") == number


def test_the_largest_number() -> None:
    assert Query({"cid": str(2**64 - 1)}).unsigned("cid") == 2**64 - 1


@pytest.mark.parametrize(("text", "state"), [("open", "open"), ("CLOSED", "closed"), ("any", "any"), ("All", "any")])
def test_states(text: str, state: str) -> None:
    assert Query({"state": text}).state() == state


def test_subscriptions() -> None:
    assert Query({"subs": "1"}).subscriptions() == (True, False)
    assert Query({"subs": "Detail"}).subscriptions() == (False, True)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("integer", text) for text in ("x", "1.5", "1_0", " 1", "+", str(2**63), "9" * 5_000)]
    + [("unsigned", text) for text in ("x", "-1", "+1", str(2**64))]
    + [("boolean", "yes"), ("boolean", "2")],
)
def test_nonsense_is_refused(kind: str, text: str) -> None:
    with pytest.raises(BadQuery, match=r"^Error decoding "):
        getattr(Query({"p": text}), kind)("p")
