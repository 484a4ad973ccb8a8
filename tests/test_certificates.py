"""Which user a certificate names: the order of its names, and distinguished names however they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.certificates import CertificateUsers, parse_distinguished_name
from gateway.core.encryption import PeerCertificate


def certificate(subject: str = "", emails: str = "", dns: str = "", uris: str = "") -> PeerCertificate:
    return PeerCertificate(tuple(emails.split()), tuple(dns.split()), tuple(uris.split()), subject)


def test_addresses_go_before_hosts_hosts_before_uris_and_all_before_the_subject() -> None:
    users = ["a@acme.com", "host.acme.com", "urn:shop", "CN=shop"]
    whole = certificate("CN=shop", "x@acme.com a@acme.com", "x host.acme.com", "urn:x urn:shop")
    for position, name in enumerate(users):
        assert CertificateUsers(users[position:]).find(whole) == name
    assert CertificateUsers(["someone"]).find(whole) is None
    assert CertificateUsers(users).find(certificate()) is None


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("CN=shop,OU=sales,O=acme", "CN=shop,OU=sales,O=acme"),
        ("cn=shop, ou=sales , o=acme", "CN=shop,OU=sales,O=acme"),
        ("O=acme,CN=shop,OU=sales", "CN=shop,OU=sales,O=acme"),
        ("O=acme,DC=com,CN=shop,DC=acme", "CN=shop,O=acme,DC=acme,DC=com"),
        ("CN=shop+OU=sales,O=acme", "OU=sales+CN=shop,O=acme"),
        ("CN=shop\\, the first", "CN=shop\\, the first"),
        ("CN=shop\\2c the first", "CN=shop\\, the first"),
        ("CN=Caf\\C3\\A9", "CN=Café"),
        ("CN=\\ x\\ ", "CN=\\ x\\ "),
        ("SERIALNUMBER=7,CN=x", "2.5.4.5=7,CN=x"),
        ("CN=shop,O=acme", "1.2.840.113549.1.9.1=x@y,O=acme,CN=shop"),  # as text, without what has no name
        ("CN=shop,OU=a+OU=b,O=acme,C=DE", "CN=shop,OU=b,OU=a,C=DE,O=acme"),
        ("CN=last,O=acme", "CN=last,CN=first,O=acme"),
        ("CN=shop,O=acme,DC=com,DC=acme", "2.5.4.65=alias,DC=acme,DC=com,CN=shop,O=acme"),
    ],
)
def test_a_subject_is_the_same_however_it_is_written(user: str, subject: str) -> None:
    assert CertificateUsers([user]).find(certificate(subject)) == user


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("CN=shop,O=acme", "CN=Shop,O=acme"),
        ("CN=shop", "CN=shop,O=acme"),
        ("CN=shop,O=acme,O=acme", "CN=shop,O=acme"),
        ("CN=shop,OU=a,OU=b", "CN=shop,OU=a,OU=a"),
        ("CN=#04", "CN=#04"),
        ("shop", "CN=shop"),
    ],
)
def test_other_subjects_are_others(user: str, subject: str) -> None:
    assert CertificateUsers([user]).find(certificate(subject)) is None


def test_the_very_subject_goes_before_one_in_another_order() -> None:
    users = CertificateUsers(["A=1,B=2", "CN=a,O=b", "O=b,CN=a"])
    assert users.find(certificate("O=b,CN=a")) == "O=b,CN=a"
    assert users.find(certificate("CN=a,O=b")) == "CN=a,O=b"


@pytest.mark.parametrize("text", ["shop", "a@acme.com", ",", "CN=x,y", "=x", "CN=\\", "CN=\\1", "CN=\\zz", "CN=a+,O=b"])
def test_what_is_no_distinguished_name(text: str) -> None:
    assert parse_distinguished_name(text) is None


@given(st.text('CNO=,+\\ #"0aéx', max_size=20))
def test_any_name_is_read_or_none(text: str) -> None:
    rdns = parse_distinguished_name(text)
    assert rdns is None or all(kind for rdn in rdns for kind, _ in rdn)
