"""Public keys of users as NATS writes them, and the signatures that prove them.

    "U" and 55 more = base32( 0xA0 | Ed25519 public key, 32 bytes | CRC-16/XMODEM of both, little-endian )

A client that has such a key signs the nonce of INFO, the text as it stands there, and sends the signature as base64.

Source: github.com/nats-io/nkeys, `strkey.go`; nats-server `server/auth.go` and `server/nkey.go`.
"""

import base64
import binascii
import re
from typing import Final

from fastcrc import crc16

_USER_PREFIX: Final = 20 << 3
_KEY_BYTES: Final = 32
_NKEY_CHARACTERS: Final = 56
_URL_SAFE: Final = re.compile(r"[A-Za-z0-9_-]{86}")  # 64 bytes
_PLAIN: Final = re.compile(r"[A-Za-z0-9+/]{86}==")


def user_key(nkey: str) -> bytes:
    """The Ed25519 public key in a user's public nkey; ValueError if it is none, or has a character mistyped."""
    try:
        raw = base64.b32decode(nkey)
    except (binascii.Error, ValueError) as error:
        raise ValueError("is not base32") from error
    if len(nkey) != _NKEY_CHARACTERS or raw[0] != _USER_PREFIX:
        raise ValueError("is not the public key of a user")
    if crc16.xmodem(raw[:-2]) != int.from_bytes(raw[-2:], "little"):
        raise ValueError("has a checksum that does not fit")
    return raw[1 : 1 + _KEY_BYTES]


def is_signed(nkey: str, nonce: str, signature: str) -> bool:
    """Whether `signature` (base64, URL-safe without padding or plain with it) is that of `nkey` over `nonce`."""
    from cryptography.exceptions import InvalidSignature  # late: few configurations have nkeys
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _signature_bytes(signature)
    if raw is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(user_key(nkey)).verify(raw, nonce.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def _signature_bytes(text: str) -> bytes | None:
    """As Go reads it: URL-safe without padding, else plain with it; line ends within count for nothing."""
    text = text.replace("\r", "").replace("\n", "")
    if _URL_SAFE.fullmatch(text):
        return base64.urlsafe_b64decode(text + "==")
    return base64.b64decode(text) if _PLAIN.fullmatch(text) else None
