"""Users, their secrets and their permissions. What nats-server does too: tests/test_differential.py."""

import pytest

from gateway.core.identity import (
    EVERYTHING,
    AnswerableReplies,
    Directory,
    Permissions,
    Responses,
    UserEntry,
    Verification,
)
from protocol.limits import PERMISSION_VERDICTS_MAX, RESPONSES_TRACKED_MAX


@pytest.mark.parametrize(
    ("allow", "deny", "allowed", "denied"),
    [
        (None, (), ["a", "a.b"], []),
        ((), (), [], ["a", "a.b"]),
        (("a.*",), (), ["a.b", "a.*"], ["a", "a.b.c", "b", "a."]),
        (None, ("a.>",), ["a", "b"], ["a.b", "a.b.c"]),
        (("a.>",), ("a.b",), ["a.c", "a.b.c"], ["a.b", "a"]),
    ],
)
def test_publish(allow: tuple[str, ...] | None, deny: tuple[str, ...], allowed: list[str], denied: list[str]) -> None:
    permissions = Permissions(UserEntry(publish_allow=allow, publish_deny=deny))
    for _ in range(2):  # the second time from the cache
        assert [subject for subject in allowed + denied if permissions.may_publish(subject)] == allowed


@pytest.mark.parametrize(
    ("allow", "deny", "allowed", "denied"),
    [
        (None, (), [">", "a q"], []),
        ((), (), [], ["a", "a q"]),
        (("a.*",), (), ["a.b", "a.*", "a.b q"], ["a.>", "*.b", ">", "a"]),
        (("a.>",), ("a.b",), ["a.*", "a.>", "a.c"], ["a.b", "a.b q"]),
        (("a.>",), ("a.b.>",), ["a.b", "a.>"], ["a.b.>", "a.b.*", "a.b.c"]),
        (("a v1",), (), ["a v1"], ["a", "a v2"]),
        (("a", "a v1"), (), ["a", "a v1"], ["a v2"]),
        (("a v.*",), (), ["a v.1"], ["a v.1.2", "a v"]),
        (("a.*", "b"), ("a.* q",), ["a.b", "a.b r", "b q"], ["a.b q"]),
    ],
)
def test_subscribe(allow: tuple[str, ...] | None, deny: tuple[str, ...], allowed: list[str], denied: list[str]) -> None:
    permissions = Permissions(UserEntry(subscribe_allow=allow, subscribe_deny=deny))
    assert [text for text in allowed + denied if permissions.may_subscribe(*text.split())] == allowed


def test_what_is_denied_is_not_received_through_a_wide_subscription() -> None:
    permissions = Permissions(UserEntry(subscribe_deny=("a.secret.>", "a.work q")))
    assert permissions.may_subscribe("a.>")
    assert permissions.may_receive("a.open")
    assert not permissions.may_receive("a.secret.x")
    assert permissions.may_receive("a.work")
    assert not permissions.may_receive("a.work", "q")
    assert permissions.may_receive("a.work", "r")


def test_verdicts_are_kept_within_a_bound() -> None:
    permissions = Permissions(UserEntry(publish_allow=("a.*",)))
    for number in range(PERMISSION_VERDICTS_MAX + 10):
        assert permissions.may_publish(f"a.{number}")
    assert len(permissions._verdicts) <= PERMISSION_VERDICTS_MAX


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_reply_may_be_answered_so_often_and_so_long() -> None:
    replies = AnswerableReplies(Responses(2, 1_000))
    replies.received(b"r", 0)
    replies.received(b"s", 0)
    assert [replies.take(b"r", 1_000) for _ in range(3)] == [True, True, False]
    assert [replies.take(b"s", 1_001), replies.take(b"other", 0)] == [False, False]


def test_replies_without_a_limit_in_number() -> None:
    replies = AnswerableReplies(Responses(-1, 1_000))
    replies.received(b"r", 0)
    assert all(replies.take(b"r", 999) for _ in range(100))


def test_remembered_replies_are_bounded_and_the_oldest_go_first() -> None:
    replies = AnswerableReplies(Responses(1, 1_000))
    for number in range(RESPONSES_TRACKED_MAX + 5):
        replies.received(b"%d" % number, 0)
    assert not replies.take(b"0", 0)
    assert replies.take(b"%d" % (RESPONSES_TRACKED_MAX + 4), 0)


# -- users ------------------------------------------------------------------------------------------------------------

PLAIN = UserEntry("plain", "secret")
HASHED = UserEntry("hashed", "$2b$04$abc")
TOKEN = UserEntry(token="token")
HASHED_TOKENS = (UserEntry(token="$2a$04$one"), UserEntry(token="$2y$04$two"))
DIRECTORY = Directory((PLAIN, HASHED, TOKEN, *HASHED_TOKENS))


def test_plain_secrets_are_compared_at_once() -> None:
    assert DIRECTORY.check("plain", "secret", "") is PLAIN
    assert DIRECTORY.check("", "", "token") is TOKEN
    for user, password, token in [("plain", "x", ""), ("plain", "", "token"), ("nobody", "secret", ""), ("", "", "")]:
        assert DIRECTORY.check(user, password, token) is None


def test_hashed_secrets_are_handed_out() -> None:
    assert DIRECTORY.check("hashed", "x", "") == Verification("x", (("$2b$04$abc", HASHED),))
    assert DIRECTORY.check("", "", "x") == Verification(
        "x", (("$2a$04$one", HASHED_TOKENS[0]), ("$2y$04$two", HASHED_TOKENS[1]))
    )


def test_without_users_nobody_has_to_say_who_he_is() -> None:
    assert not Directory(()).is_required
    assert DIRECTORY.is_required
    assert EVERYTHING.may_publish("a")
    assert EVERYTHING.may_subscribe(">", "q")
    assert DIRECTORY.permissions(PLAIN) is DIRECTORY.permissions(PLAIN)
