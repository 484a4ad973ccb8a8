"""Certificates and keys in files, and what a certificate says of its owner: the part that needs `cryptography`.

Only who has TLS configured imports it: `cryptography.x509` alone takes a good part of a daemon's start.
"""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.core.encryption import PeerCertificate

log = structlog.get_logger()


def file_problems(table: str, cert: str, key: str, ca: str | None) -> list[str]:
    """What is wrong with the files of `table`, one line each; a certificate that is out of date is only logged."""
    problems: list[str] = []
    certificates = _read(f"{table}.cert", cert, problems, _certificates)
    private_key = _read(f"{table}.key", key, problems, _private_key)
    if ca is not None:
        _read(f"{table}.ca", ca, problems, _certificates)
    if certificates and private_key is not None:
        if private_key.public_key() != certificates[0].public_key():
            problems.append(
                f"{table}.key: {key} is not the key of the first certificate in {cert}; "
                "write the key that it was made with, and the node's certificate before those of authorities"
            )
        _log_dates(cert, certificates[0])
    return problems


def _read(key: str, file: str, problems: list[str], read: Callable[[bytes], Any]) -> Any:
    try:
        return read(Path(file).read_bytes())
    except OSError as error:
        problems.append(f"{key}: {file}: {(error.strerror or str(error)).lower()}")
    except ValueError as error:
        problems.append(f"{key}: {file}: {error}")
    return None


def _certificates(content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise ValueError("holds no certificate; expected PEM with BEGIN CERTIFICATE") from error


def _private_key(content: bytes) -> Any:
    try:
        return load_pem_private_key(content, None)
    except TypeError as error:
        raise ValueError("the key is encrypted with a passphrase; expected one without") from error
    except ValueError as error:
        raise ValueError("holds no private key; expected PEM with BEGIN PRIVATE KEY") from error


def _log_dates(file: str, certificate: x509.Certificate) -> None:
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        log.warning("certificate_out_of_date", file=file, begins=begins.isoformat(), ends=ends.isoformat())


def peer_certificate(der: bytes) -> PeerCertificate | None:
    """The names in a certificate; None for one with parts that cannot be read: it names nobody."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = _alternative_names(certificate)
        return PeerCertificate(
            emails=tuple(names.get_values_for_type(x509.RFC822Name)),
            dns_names=tuple(names.get_values_for_type(x509.DNSName)),
            uris=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
            subject=certificate.subject.rfc4514_string(),
        )
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        log.warning("client_certificate_unreadable", error=str(error))
        return None


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])
