"""Subject rules by example, and `overlap` / `covers` against brute force over a small alphabet."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import subjects

TOKENS = ("a", "b", "*")
ALL_LITERALS = [".".join(tokens) for length in (1, 2, 3, 4) for tokens in product("abc", repeat=length)]
patterns = st.builds(
    lambda tokens, tail: ".".join([*tokens, ">"] if tail or not tokens else tokens),
    st.lists(st.sampled_from(TOKENS), max_size=3),
    st.booleans(),
)


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*.b", "a.b", True),
        ("a*.b", "ax.b", False),
        ("a*.b", "a*.b", True),
    ],
)
def test_matching(pattern, subject, expected):
    assert subjects.matches(pattern, subject) is expected


@pytest.mark.parametrize("bad", ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a.>.b", "a\r\nb", "\0"])
def test_invalid_patterns(bad):
    assert not subjects.is_valid_pattern(bad)
    assert not subjects.is_valid_subject(bad)


def test_a_wildcard_within_a_token_is_an_ordinary_character():
    assert subjects.is_valid_subject("a*.>b")
    assert not subjects.has_wildcard("a*.b>")
    assert subjects.has_wildcard("a.*")


@given(patterns, patterns)
def test_overlap_and_covers_are_what_the_literals_say(one, other):
    ones = {literal for literal in ALL_LITERALS if subjects.matches(one, literal)}
    others = {literal for literal in ALL_LITERALS if subjects.matches(other, literal)}
    assert subjects.overlap(one, other) is bool(ones & others)
    assert subjects.covers(one, other) is (others <= ones)


@given(st.binary(max_size=20))
def test_every_byte_survives(wire):
    assert subjects.encode(subjects.decode(wire)) == wire


def test_inboxes_and_system_subjects_are_not_captured():
    assert [s for s in ("_INBOX.x", "$SYS.a", "$LOG.F", "a._b", "a") if subjects.is_captured(s)] == ["a._b", "a"]
