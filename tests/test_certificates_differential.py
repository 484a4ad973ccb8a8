"""Which user a certificate names: the same certificates to the real nats-server (`verify_and_map`) and to ours."""

import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from support.certificates import Authority
from support.gateway import serve_in_thread
from support.natsraw import nats_server

from gateway.core.identity import UserEntry
from gateway.shell.tls import ClientTls
from protocol.config import TlsClients

WAIT_S_MAX = 60.0
CN, ORG, OU, L = (
    NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.LOCALITY_NAME,
)  # fmt: skip
DC, C, SERIAL, EMAIL = (
    NameOID.DOMAIN_COMPONENT, NameOID.COUNTRY_NAME, NameOID.SERIAL_NUMBER, NameOID.EMAIL_ADDRESS,
)  # fmt: skip

USERS = (
    "ada@acme.example",
    "shop.acme.example",
    "spiffe://acme/shop",
    "CN=till,OU=sales,O=acme",
    "o=acme, cn=desk ,OU=sales",
    "CN=plus+L=here,O=acme",
    "CN=text,OU=a+OU=b,O=acme",
    "CN=comma\\, inc",
    "CN=é",
    "SERIALNUMBER=7,CN=serial",
    "CN=mailed,O=acme",
    "O=acme,DC=com,CN=domain,DC=acme",
    "CN=last,O=acme,DC=com,DC=acme",
    "CN=with password",
    "just a name",
    "C=DE,CN=land",
)
"""Each may publish to a subject of its own, so that one sees who somebody is."""


def subject(*attributes: tuple[x509.ObjectIdentifier, str] | list[tuple[x509.ObjectIdentifier, str]]) -> x509.Name:
    """A name in the order of the certificate; a list is one part with several attributes."""
    return x509.Name(
        [
            x509.RelativeDistinguishedName(
                [x509.NameAttribute(*attribute) for attribute in (part if isinstance(part, list) else [part])]
            )
            for part in attributes
        ]
    )


Certificate = tuple[x509.Name, tuple[x509.GeneralName, ...]]
CERTIFICATES: dict[str, Certificate] = {
    "an address": (subject((CN, "x")), (x509.RFC822Name("ada@acme.example"),)),
    "a host": (subject((CN, "x")), (x509.DNSName("other.example"), x509.DNSName("shop.acme.example"))),
    "a uri": (subject((CN, "x")), (x509.UniformResourceIdentifier("spiffe://acme/shop"),)),
    "an address before a host": (
        subject((ORG, "acme"), (OU, "sales"), (CN, "till")),
        (x509.DNSName("shop.acme.example"), x509.RFC822Name("ada@acme.example")),
    ),
    "a host in capitals": (subject((CN, "x")), (x509.DNSName("SHOP.acme.example"),)),
    "a host of nobody, and a subject": (subject((ORG, "acme"), (OU, "sales"), (CN, "till")), (x509.DNSName("x"),)),
    "subject": (subject((ORG, "acme"), (OU, "sales"), (CN, "till")), ()),
    "subject in another order": (subject((CN, "till"), (ORG, "acme"), (OU, "sales")), ()),
    "subject in another case": (subject((ORG, "ACME"), (OU, "sales"), (CN, "till")), ()),
    "part of a subject": (subject((ORG, "acme"), (CN, "till")), ()),
    "more than a subject": (subject((C, "DE"), (ORG, "acme"), (OU, "sales"), (CN, "till")), ()),
    "loosely written": (subject((ORG, "acme"), (OU, "sales"), (CN, "desk")), ()),
    "several attributes in a part": (subject((ORG, "acme"), [(L, "here"), (CN, "plus")]), ()),
    "the same in parts of their own": (subject((ORG, "acme"), (L, "here"), (CN, "plus")), ()),
    "two units, as text": (subject((ORG, "acme"), (OU, "a"), (OU, "b"), (CN, "text")), ()),
    "two units, the other way": (subject((ORG, "acme"), (OU, "b"), (OU, "a"), (CN, "text")), ()),
    "two units in a part": (subject((ORG, "acme"), [(OU, "a"), (OU, "b")], (CN, "text")), ()),
    "escaped": (subject((CN, "comma, inc")), ()),
    "not ascii": (subject((CN, "é")), ()),
    "serial number": (subject((CN, "serial"), (SERIAL, "7")), ()),
    "serial number first": (subject((SERIAL, "7"), (CN, "serial")), ()),
    "a type without a name": (subject((EMAIL, "x@y"), (ORG, "acme"), (CN, "mailed")), ()),
    "domain components": (subject((DC, "com"), (DC, "acme"), (ORG, "acme"), (CN, "domain")), ()),
    "domain components, scattered": (subject((DC, "acme"), (CN, "domain"), (DC, "com"), (ORG, "acme")), ()),
    "domain components, as text": (
        subject((EMAIL, "x@y"), (DC, "com"), (DC, "acme"), (ORG, "acme"), (CN, "first"), (CN, "last")),
        (),
    ),
    "with a password": (subject((CN, "with password")), ()),
    "a common name that is a user's name": (subject((CN, "just a name")), ()),
    "country": (subject((CN, "land"), (C, "DE")), ()),
    "nobody": (subject((CN, "nobody")), ()),
}
ANSWERS: dict[str, dict[str, str]] = {
    "nothing": {},
    "password": {"user": "whoever", "pass": "secret"},
    "wrong password": {"user": "CN=with password", "pass": "x"},
}


class Servers(NamedTuple):
    """The ports of nats-server and of ours."""

    theirs: int
    ours: int


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def servers(authority: Authority) -> Iterator[Servers]:
    cert, key, ca = (str(path) for path in (authority.server.cert, authority.server.key, authority.cert))
    users = [
        {"user": user, "permissions": {"publish": f"me.{number}"}} | _password(user)
        for number, user in enumerate(USERS)
    ]
    configuration = (
        f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{ca}", verify_and_map: true }}\n'
        f"authorization {{ users = {json.dumps(users, ensure_ascii=False)} }}\n"
    )
    entries = tuple(
        UserEntry(user, _password(user).get("password"), publish_allow=(f"me.{number}",))
        for number, user in enumerate(USERS)
    )
    rules = TlsClients(
        cert=cert,
        key=key,
        ca=ca,
        verify=True,
        first=False,
        map=True,
        timeout_ms=2_000,
        allow_non_tls=False,
        first_fallback_ms=0,
    )
    with (
        nats_server(configuration) as theirs,
        serve_in_thread(
            users=entries, maps_certificates=True, tls=ClientTls(rules), tls_required=True, tls_verify=True
        ) as ours,
    ):
        yield Servers(theirs, ours)


def _password(user: str) -> dict[str, str]:
    return {"password": "secret"} if user == "CN=with password" else {}


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_a_certificate_is_who_it_is_for_nats_server(authority: Authority, servers: Servers, certificate: str) -> None:
    name, alternatives = CERTIFICATES[certificate]
    pair = authority.client(re.sub(r"\W", "-", certificate), *alternatives, subject=name)
    context = ssl.create_default_context(cafile=str(authority.cert))
    context.load_cert_chain(pair.cert, pair.key)
    for answer in ANSWERS.values():
        theirs, ours = (who(port, context, answer) for port in servers)
        assert ours == theirs


def test_every_user_is_found_by_some_certificate(authority: Authority, servers: Servers) -> None:
    """So that the test above compares more than refusals."""
    found = set()
    for certificate, (name, alternatives) in CERTIFICATES.items():
        pair = authority.client("found-" + re.sub(r"\W", "-", certificate), *alternatives, subject=name)
        context = ssl.create_default_context(cafile=str(authority.cert))
        context.load_cert_chain(pair.cert, pair.key)
        found |= {who(servers.ours, context, answer) for answer in ANSWERS.values()}
    assert found == {*USERS, "nobody"} - {"just a name"}


def who(port: int, context: ssl.SSLContext, answer: dict[str, str]) -> str:
    """The user that the server takes us for, by what we may publish to; "nobody" if it closes."""
    with socket.create_connection(("127.0.0.1", port), WAIT_S_MAX) as plain:
        while b"\n" not in plain.recv(65_536):
            pass
        with context.wrap_socket(plain, server_hostname="localhost") as connection:
            connect = {"verbose": False, "pedantic": False, **answer}
            lines = [b"CONNECT " + json.dumps(connect).encode()]
            lines += [b"PUB me.%d 0\r\n" % number for number in range(len(USERS))]
            connection.sendall(b"\r\n".join([*lines, b"PING", b""]))
            received = b""
            while b"PONG" not in received and b"Authorization" not in received:
                data = connection.recv(65_536)
                assert data, received
                received += data
    if b"Authorization" in received:
        return "nobody"
    (user,) = [user for number, user in enumerate(USERS) if b'Publish to "me.%d"' % number not in received]
    return user
