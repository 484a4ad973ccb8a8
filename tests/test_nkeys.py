"""Public keys of users and signatures over a nonce, against the nkeys library that clients use."""

import base64

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.nkeys import is_signed, user_key

PAIR = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))
PUBLIC = PAIR.public_key.decode()
NONCE = "pX0LduPfOB9DoZ4"


def signature(nonce: str = NONCE) -> bytes:
    return PAIR.sign(nonce.encode())


def test_a_public_key_is_read_as_the_library_wrote_it() -> None:
    assert user_key(PUBLIC) == base64.b32decode(PUBLIC)[1:33]


@given(st.integers(0, 55), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_a_mistyped_key_is_none(position: int, letter: str) -> None:
    mistyped = PUBLIC[:position] + letter + PUBLIC[position + 1 :]
    if mistyped != PUBLIC:
        with pytest.raises(ValueError, match=r"public key of a user|checksum"):
            user_key(mistyped)


@pytest.mark.parametrize("prefix", [nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_SERVER])
def test_keys_of_others_than_users_are_refused(prefix: int) -> None:
    other = nkeys.from_seed(nkeys.encode_seed(bytes(32), prefix)).public_key.decode()
    with pytest.raises(ValueError, match="not the public key of a user"):
        user_key(other)


@pytest.mark.parametrize("text", ["", "U", PUBLIC.lower(), PUBLIC[:-8], PUBLIC + "A" * 8, "é" * 56, "\0" * 56])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base32|public key"):
        user_key(text)


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=15, max_size=15))
def test_a_signature_holds_for_its_nonce_alone_in_both_alphabets(nonce: str) -> None:
    signed = signature(nonce)
    for text in (base64.urlsafe_b64encode(signed).rstrip(b"=").decode(), base64.b64encode(signed).decode()):
        assert is_signed(PUBLIC, nonce, text)
        assert not is_signed(PUBLIC, nonce[1:], text)
    assert is_signed(PUBLIC, nonce, base64.b64encode(signed).decode() + "\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "é" * 86,
        base64.b64encode(signature()[:63]).decode(),
        base64.b64encode(signature() + b"x").decode(),
        base64.b64encode(bytes(64)).decode(),
        base64.urlsafe_b64encode(b"\xff" * 64).decode(),
    ],
)
def test_what_is_no_signature_is_refused(text: str) -> None:
    assert not is_signed(PUBLIC, NONCE, text)
