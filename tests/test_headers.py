"""NATS header blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import headers
from protocol.errors import FrameError

names = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1)
values = st.text(st.characters(codec="utf-8", exclude_characters="\r\n")).map(lambda text: text.strip(" \t"))


@given(st.lists(st.tuples(names, values)), st.integers(100, 999))
def test_what_is_built_is_read_back(fields: list[tuple[str, str]], status: int) -> None:
    block = headers.build(fields, status=status, description="Some words")
    assert headers.parse(block) == headers.Headers(status, "Some words", tuple(fields))


def test_order_case_and_repetition_are_kept() -> None:
    block = headers.build([("B", "1"), ("a", "2"), ("B", "3")])
    assert block == b"NATS/1.0\r\nB: 1\r\na: 2\r\nB: 3\r\n\r\n"
    parsed = headers.parse(block)
    assert (parsed.get("B"), parsed.get("b"), parsed.status, parsed.description) == ("1", None, 0, "")


def test_blanks_around_values_do_not_count() -> None:
    assert headers.parse(b"NATS/1.0 503 \r\nA:b\r\nC: \t d \r\n\r\n") == headers.Headers(
        503, "", (("A", "b"), ("C", "d"))
    )


def test_no_responders_is_nats_servers_block() -> None:
    block = headers.no_responders(b"some.subject")
    assert headers.parse(block) == headers.Headers(503, "", (("Nats-Subject", "some.subject"),))
    assert block == b"NATS/1.0 503\r\nNats-Subject: some.subject\r\n\r\n"  # byte for byte nats-server's


@pytest.mark.parametrize(
    "block", [b"", b"NATS/1.0\r\n", b"HTTP/1.0\r\n\r\n", b"NATS/1.0 x\r\n\r\n", b"NATS/1.0\r\nA\r\n\r\n"]
)
def test_what_is_no_header_block_is_refused(block: bytes) -> None:
    with pytest.raises(FrameError):
        headers.parse(block)


@pytest.mark.parametrize(
    "field", [("", "x"), ("a b", "x"), ("a:", "x"), ("a\r", "x"), ("é", "x"), ("a", "x\r\nb: y"), ("a", "\n")]
)
def test_what_would_not_come_back_is_not_built(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        headers.build([field])
    with pytest.raises(ValueError, match="description"):
        headers.build(description="x\r\ny")
