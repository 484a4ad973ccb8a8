"""Users, their secrets and their permissions. What nats-server does too: tests/test_differential.py."""

import base64

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.encryption import PeerCertificate
from gateway.core.identity import (
    EVERYTHING,
    AnswerableReplies,
    Credentials,
    Directory,
    Permissions,
    Responses,
    UserEntry,
    Verification,
)
from protocol import subjects
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


def test_leave_to_answer_takes_the_place_of_leave_to_publish() -> None:
    assert not Permissions(UserEntry(responses=Responses())).may_publish("a")
    assert not Permissions(UserEntry(responses=Responses(), publish_deny=("z",))).may_publish("a")
    assert Permissions(UserEntry(responses=Responses(), publish_allow=("a",))).may_publish("a")


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
    assert DIRECTORY.check(Credentials("plain", "secret")) is PLAIN
    assert DIRECTORY.check(Credentials(token="token")) is TOKEN
    for presented in (
        Credentials("plain", "x"),
        Credentials("plain", "", "token"),
        Credentials("nobody", "secret"),
        Credentials(password="secret"),
        Credentials(nkey=PUBLIC),
        Credentials(),
    ):
        assert DIRECTORY.check(presented) is None


def test_hashed_secrets_are_handed_out() -> None:
    assert DIRECTORY.check(Credentials("hashed", "x")) == Verification("x", (("$2b$04$abc", HASHED),))
    assert DIRECTORY.check(Credentials(token="x")) == Verification(
        "x", (("$2a$04$one", HASHED_TOKENS[0]), ("$2y$04$two", HASHED_TOKENS[1]))
    )


def test_where_nobody_has_a_name_the_token_alone_counts() -> None:
    assert Directory((TOKEN,)).check(Credentials("anybody", "x", "token")) is TOKEN


# -- nkeys ------------------------------------------------------------------------------------------------------------

PAIR = nkeys.from_seed(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER))
OTHER = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))
PUBLIC, OTHERS = PAIR.public_key.decode(), OTHER.public_key.decode()
SIGNER = UserEntry(nkey=PUBLIC, account="ACME")
WITH_NKEYS = Directory((SIGNER, PLAIN))


def signature(pair: nkeys.KeyPair, nonce: str = "nonce") -> str:
    return base64.urlsafe_b64encode(pair.sign(nonce.encode())).rstrip(b"=").decode()


def test_an_nkey_is_proved_by_a_signature_over_the_nonce_of_this_connection() -> None:
    assert WITH_NKEYS.wants_signatures
    assert not DIRECTORY.wants_signatures
    assert WITH_NKEYS.check(Credentials(nkey=PUBLIC, signature=signature(PAIR), nonce="nonce")) is SIGNER
    for presented in (
        Credentials(nkey=PUBLIC, nonce="nonce"),
        Credentials(nkey=PUBLIC, signature=signature(PAIR), nonce="another"),
        Credentials(nkey=PUBLIC, signature=signature(OTHER), nonce="nonce"),
        Credentials(nkey=OTHERS, signature=signature(OTHER), nonce="nonce"),
        Credentials("plain", "secret", nkey=OTHERS),  # an nkey decides alone, where there are some
    ):
        assert WITH_NKEYS.check(presented) is None
    assert WITH_NKEYS.check(Credentials("plain", "secret")) is PLAIN
    assert DIRECTORY.check(Credentials("plain", "secret", nkey=OTHERS)) is PLAIN  # and counts for nothing elsewhere


_tokens = st.lists(st.sampled_from(["a", "b.", "*", ">", "a+", "", "\n", "x"]), min_size=1, max_size=4).map(".".join)


@given(allow=st.lists(_tokens, max_size=3), deny=st.lists(_tokens, max_size=2), subject=_tokens)
def test_permissions_to_publish_are_what_their_patterns_match(allow: list[str], deny: list[str], subject: str) -> None:
    def matches(patterns: list[str]) -> bool:
        return all(subject.split(".")) and any(subjects.matches(pattern, subject) for pattern in patterns)

    permissions = Permissions(UserEntry("u", publish_allow=tuple(allow), publish_deny=tuple(deny)))
    assert permissions.may_publish(subject) == (matches(allow) and not matches(deny))


# -- who says nothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [None, "secret"])
def test_who_presents_nothing_is_no_auth_user_whatever_the_password(password: str | None) -> None:
    guest = UserEntry("guest", password)
    directory = Directory((guest, PLAIN), "guest")
    assert directory.check(Credentials()) is guest
    assert directory.check(Credentials(nkey=PUBLIC, signature="x")) is guest
    assert directory.without_connect() is guest
    assert directory.is_required
    assert not directory.asks
    for presented in (
        Credentials("plain"),
        Credentials("plain", "x"),
        Credentials(password="x"),
        Credentials(token="x"),
    ):
        assert directory.check(presented) is None
    assert directory.check(Credentials("plain", "secret")) is PLAIN


def test_nobody_is_a_no_auth_user_with_a_bcrypt_password_by_saying_nothing() -> None:
    directory = Directory((UserEntry("guest", "$2b$04$abc"), PLAIN), "guest")
    assert directory.check(Credentials()) is None
    assert directory.without_connect() is None
    assert not directory.asks  # as nats-server's INFO
    assert isinstance(directory.check(Credentials("guest", "secret")), Verification)


def test_an_nkey_as_no_auth_user_needs_no_signature_but_connect() -> None:
    directory = Directory((SIGNER, PLAIN), PUBLIC)
    assert directory.check(Credentials()) is SIGNER
    assert directory.check(Credentials(nkey=PUBLIC, signature="whatever")) is SIGNER
    assert directory.without_connect() is None
    assert directory.check(Credentials("plain", "secret")) is PLAIN
    assert directory.check(Credentials("plain")) is None


# -- certificates -----------------------------------------------------------------------------------------------------


def test_the_certificate_says_who_it_is_and_a_password_counts_beside_it() -> None:
    shop, named = UserEntry("shop.acme.com"), UserEntry("CN=till,O=acme", "secret")
    directory = Directory((shop, named), "shop.acme.com", maps_certificates=True)
    certificate = PeerCertificate((), ("other", "shop.acme.com"), (), "CN=x")
    assert directory.check(Credentials(certificate=certificate)) is shop
    assert directory.check(Credentials("whoever", certificate=certificate)) is shop
    assert directory.check(Credentials("whoever", "x", certificate=certificate)) is None
    till = PeerCertificate((), (), (), "CN=till,O=acme")
    assert directory.check(Credentials(password="secret", certificate=till)) is named
    assert directory.check(Credentials(certificate=till)) is None
    assert directory.check(Credentials("shop.acme.com", certificate=PeerCertificate((), (), (), "CN=z"))) is None
    assert directory.check(Credentials("shop.acme.com")) is None
    assert directory.check(Credentials()) is None
    assert directory.without_connect() is None


def test_without_users_nobody_has_to_say_who_he_is() -> None:
    assert not Directory(()).is_required
    assert DIRECTORY.is_required
    assert EVERYTHING.may_publish("a")
    assert EVERYTHING.may_subscribe(">", "q")
    assert DIRECTORY.permissions(PLAIN) is DIRECTORY.permissions(PLAIN)
