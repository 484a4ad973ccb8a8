"""Certificates for tests: a certificate authority of an hour, and what it signs for servers, clients and nodes."""

import datetime
import ipaddress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_HOUR = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """Files, PEM: a certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """Signs for whom it is asked to; all files go into `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Test {name}")])
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.cert = folder / f"{name}.pem"
        self.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    @cached_property
    def server(self) -> Pair:
        """For `localhost` and `127.0.0.1`."""
        names = x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return self.issue("server", names, usages=[ExtendedKeyUsageOID.SERVER_AUTH])

    def client(self, name: str, *alternatives: x509.GeneralName, subject: x509.Name | None = None) -> Pair:
        """For a client whose common name is `name`, or with another `subject`."""
        return self.issue(name, alternatives, subject=subject, usages=[ExtendedKeyUsageOID.CLIENT_AUTH])

    def node(self, name: str, *uris: str) -> Pair:
        """For a node of a mesh, which dials and is dialled."""
        names = tuple(x509.UniformResourceIdentifier(uri) for uri in uris)
        return self.issue(name, names, usages=[ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])

    def issue(
        self,
        name: str,
        alternatives: tuple[x509.GeneralName, ...],
        *,
        usages: list[x509.ObjectIdentifier],
        subject: x509.Name | None = None,
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._name, key)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        pair = Pair(self._folder / f"{name}-cert.pem", self._folder / f"{name}-key.pem")
        pair.cert.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _HOUR)
        .not_valid_after(now + _HOUR)
    )
