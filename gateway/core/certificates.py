"""Which user a client's certificate names: nats-server's `verify_and_map`.

The names of a certificate are tried in this order, and the first that is a user's decides:

    alternative names: e-mail addresses, DNS names, URIs   as they are
    subject, as a distinguished name                       parsed, types in any case; then its parts in any order
    subject, as text                                       "CN=...,OU=...,O=...", in the order of Go's crypto/x509/pkix,
                                                           with and without domain components behind it

Source: nats-server `server/auth.go` (checkClientTLSCertSubject) and `internal/ldap/dn.go`; RFC 4514.
"""

import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from gateway.core.encryption import PeerCertificate

Attributes: TypeAlias = list[tuple[str, str]]
"""One relative distinguished name as it is written: (type in capitals, value) of each attribute, mostly one."""
Part: TypeAlias = tuple[int, frozenset[tuple[str, str]]]
"""The same as it is compared: how many attributes it has, and which."""

_TYPE_NAMES: Final = {"2.5.4.5": "SERIALNUMBER", "2.5.4.17": "POSTALCODE"}  # RFC 4514 has no names for them
_TEXT_ORDER: Final = ("SERIALNUMBER", "CN", "POSTALCODE", "STREET", "ST", "L", "OU", "O", "C")
_KNOWN_TYPES: Final = frozenset((*_TEXT_ORDER, "DC"))
_LAST_ONE_COUNTS: Final = ("SERIALNUMBER", "CN")
_ESCAPED: Final = ',+"\\<>;'
_SPECIAL: Final = frozenset(bytes([byte]) for byte in b' "#+,;<=>\\')
_HEX: Final = frozenset(string.hexdigits.encode())


@dataclass(frozen=True)
class _Names:
    """What a certificate calls its owner. `subject` is None where it has types that nobody could write as a name."""

    alternative_names: tuple[str, ...]
    subject: tuple[Part, ...] | None
    subject_texts: tuple[str, ...]

    @classmethod
    def of(cls, certificate: PeerCertificate) -> "_Names":
        written = parse_distinguished_name(certificate.subject) or []
        rdns = [[(_TYPE_NAMES.get(kind, kind), value) for kind, value in rdn] for rdn in written]
        is_known = all(kind in _KNOWN_TYPES for rdn in rdns for kind, _ in rdn)
        return cls(
            (*certificate.emails, *certificate.dns_names, *certificate.uris),
            _parts(rdns) if rdns and is_known else None,
            tuple(_subject_texts(rdns)),
        )


def _parts(rdns: Iterable[Attributes]) -> tuple[Part, ...]:
    return tuple((len(rdn), frozenset(rdn)) for rdn in rdns)


def _subject_texts(rdns: list[Attributes]) -> Iterable[str]:
    values: dict[str, list[str]] = {}
    for rdn in reversed(rdns):
        for kind, value in rdn:
            values.setdefault(kind, []).append(value)
    for kind in _LAST_ONE_COUNTS:
        if kind in values:
            del values[kind][:-1]
    text = ",".join(
        "+".join(f"{kind}={_escape(value)}" for value in values[kind]) for kind in _TEXT_ORDER if kind in values
    )
    if "DC" in values:
        yield ",".join([text, *(f"DC={value}" for value in values["DC"])])
    yield text


def _escape(value: str) -> str:
    last = len(value) - 1
    return "".join(
        f"\\{character}"
        if character in _ESCAPED or (index == 0 and character in " #") or (index == last and character == " ")
        else character
        for index, character in enumerate(value)
    )


class CertificateUsers:
    """Finds the user, among those of these names, that a certificate means."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        parsed = ((name, parse_distinguished_name(name)) for name in sorted(self._names))
        self._subjects = {name: _parts(rdns) for name, rdns in parsed if rdns}

    def find(self, certificate: PeerCertificate) -> str | None:
        """The user's name, or None."""
        names = _Names.of(certificate)
        found = next((name for name in names.alternative_names if name in self._names), None)
        if found is None and names.subject is not None:
            found = _find_subject(self._subjects, names.subject)
        return found or next((text for text in names.subject_texts if text in self._names), None)


def _find_subject(subjects: Mapping[str, tuple[Part, ...]], wanted: tuple[Part, ...]) -> str | None:
    for name, subject in subjects.items():
        if subject == wanted:
            return name
    parts = Counter(wanted)
    return next((name for name, subject in subjects.items() if Counter(subject) == parts), None)


def parse_distinguished_name(text: str) -> list[Attributes] | None:
    """`CN=shop,OU=sales + L=here` in its parts; None for what is no distinguished name, as most names of users."""
    rdns: list[Attributes] = []
    attributes: Attributes = []
    kind, value, trailing_blanks = "", bytearray(), 0
    data = text.encode("utf-8", "surrogatepass")
    at = 0
    while at < len(data):
        byte, at = data[at : at + 1], at + 1
        if byte == b"\\":
            unescaped = _unescape(data[at : at + 2])
            if unescaped is None:
                return None
            value += unescaped
            at, trailing_blanks = at + (1 if data[at : at + 1] in _SPECIAL else 2), 0
        elif byte == b"=":
            kind, value, trailing_blanks = _read(value, trailing_blanks), bytearray(), 0
            if data[at : at + 1] == b"#":
                return None  # a value in BER
        elif byte in (b",", b"+"):
            if not kind:
                return None
            attributes.append((kind.upper(), _read(value, trailing_blanks)))
            kind, value, trailing_blanks = "", bytearray(), 0
            if byte == b",":
                rdns.append(attributes)
                attributes = []
        elif byte != b" " or value:
            value += byte
            trailing_blanks = trailing_blanks + 1 if byte == b" " else 0
    if value:
        if not kind:
            return None
        rdns.append([*attributes, (kind.upper(), _read(value, trailing_blanks))])
    return rdns


def _unescape(data: bytes) -> bytes | None:
    """What a backslash stands for with the two bytes behind it: a special character, or two hexadecimal digits."""
    if data[:1] in _SPECIAL:
        return data[:1]
    return bytes.fromhex(data.decode()) if len(data) == 2 and set(data) <= _HEX else None


def _read(value: bytearray, trailing_blanks: int) -> str:
    return value[: len(value) - trailing_blanks].decode("utf-8", "replace")
