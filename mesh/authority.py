"""A certificate authority for one mesh: a key and a certificate in files, and what it signs for the mesh's nodes.

    <ca>.pem, <ca>.key ──signs──► <node's cert>, <node's key>       the paths are those of [tls.nodes]

The authority's key stands beside its certificate, with the ending `.key`; no node needs it. A node's certificate
carries the URI that `mesh.node_tls` checks, and the hosts of the node's addresses for tools that look at host names.

A file appears whole or not at all, and keys can be read by their owner alone. Renewing keeps a node's key, so that one
file is replaced, in one step: a node that reads it at any moment finds a pair that fits.
"""

import datetime
import ipaddress
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.node_tls import name_of
from protocol.config import Config, TlsNodes
from protocol.errors import ConfigError

AUTHORITY_DAYS: Final = 3650
CLOCKS_DIFFER: Final = datetime.timedelta(minutes=5)  # a certificate begins so much earlier, for nodes that lag
_COMMON_NAME_CHARACTERS_MAX: Final = 64  # by X.520

Certificate = x509.Certificate
Key = Any
"""A private key, of any kind that `cryptography` signs with."""


class Signer(NamedTuple):
    """Who signs."""

    certificate: Certificate
    key: Key


def key_file(settings: TlsNodes) -> str:
    """Where the authority's key is. ConfigError: its certificate's path tells of no place for it."""
    if "{node}" in settings.ca:
        raise ConfigError([f"tls.nodes.ca: {settings.ca}: one authority is one file; write a path without {{node}}"])
    key = str(Path(settings.ca).with_suffix(".key"))
    if key == settings.ca:
        raise ConfigError([f"tls.nodes.ca: {settings.ca}: its key would have the same name; write a path with .pem"])
    return key


def node_files(configuration: Config) -> dict[str, TlsNodes]:
    """The files of every node, by its name. ConfigError: there are none, or two of them are one file."""
    if configuration.tls_nodes is None:
        raise ConfigError(["tls.nodes: the file has no such table; write ca, cert and key with {node} in their paths"])
    zones = configuration.zones.values()
    files = {node: configuration.tls_nodes.of(node) for zone in zones for node in (*zone.gateways, *zone.sinks)}
    owners = {configuration.tls_nodes.ca: "the authority", key_file(configuration.tls_nodes): "the authority's key"}
    problems = []
    for node, own in files.items():
        for key, path in (("cert", own.cert), ("key", own.key)):
            if path in owners:
                problems.append(
                    f"tls.nodes.{key}: {path} would be that of {node} and of {owners[path]}; write {{node}}"
                )
            owners[path] = node
    if problems:
        raise ConfigError(problems)
    return files


def make(mesh: str) -> Signer:
    """A new authority, which signs nothing but nodes."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name(f"{mesh} mesh authority")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Signer(certificate, key)


def load(settings: TlsNodes) -> Signer:
    """The authority that there is. ConfigError: its files are missing, or of no use."""
    certificate, key = read_certificate(settings.ca), read_key(key_file(settings))
    if key.public_key() != certificate.public_key():
        raise ConfigError([f"{key_file(settings)} is not the key of {settings.ca}"])
    if certificate.not_valid_after_utc <= now():
        raise ConfigError(
            [f"{settings.ca} expired {certificate.not_valid_after_utc}; `mesh certs init --force` makes anew"]
        )
    return Signer(certificate, key)


def new_key() -> Key:
    """For a node."""
    return ec.generate_private_key(ec.SECP256R1())


def sign(signer: Signer, configuration: Config, node: str, key: Key, days: int) -> Certificate:
    """For `node`, whose key is `key`; it ends with the authority's own, if that is sooner."""
    alternatives = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(str(name_of(configuration, node))), *_hosts(configuration, node)]
    )
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    ends = signer.certificate.not_valid_after_utc
    builder = _builder(_common_name(node), signer.certificate.subject, key.public_key(), days, ends)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(authority, critical=False)
        .sign(signer.key, hashes.SHA256())
    )


def _hosts(configuration: Config, node: str) -> Iterable[x509.GeneralName]:
    zone = configuration.zone_of(node)
    if node in zone.gateways:
        gateway = zone.gateways[node]
        addresses = gateway.client, gateway.mesh, gateway.monitor
    else:
        sink = zone.sinks[node]
        addresses = sink.link, sink.raft, sink.monitor
    for host in dict.fromkeys(address.host for address in addresses if address is not None and address.host):
        try:
            yield x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            yield x509.DNSName(host.encode("idna").decode())


def _builder(
    subject: x509.Name, issuer: x509.Name, public: Any, days: int, ends_max: datetime.datetime | None = None
) -> x509.CertificateBuilder:
    begins, ends = now() - CLOCKS_DIFFER, now() + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends if ends_max is None else min(ends, ends_max))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_COMMON_NAME_CHARACTERS_MAX])])


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def now() -> datetime.datetime:
    """Certificates have whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


# -- files ------------------------------------------------------------------------------------------------------------


def read_certificate(file: str) -> Certificate:
    """The first one in a file. ConfigError: there is none."""
    try:
        return x509.load_pem_x509_certificates(Path(file).read_bytes())[0]
    except OSError as error:
        raise ConfigError([f"{file}: {(error.strerror or str(error)).lower()}"]) from error
    except ValueError as error:
        raise ConfigError([f"{file}: holds no certificate; expected PEM with BEGIN CERTIFICATE"]) from error


def read_key(file: str) -> Key:
    """ConfigError: there is none that can be read without a passphrase."""
    try:
        return load_pem_private_key(Path(file).read_bytes(), None)
    except OSError as error:
        raise ConfigError([f"{file}: {(error.strerror or str(error)).lower()}"]) from error
    except (TypeError, ValueError) as error:
        raise ConfigError([f"{file}: holds no private key without a passphrase"]) from error


def write_key(file: str, key: Key) -> None:
    """OSError: it cannot be written."""
    _write(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)


def write_certificate(file: str, certificate: Certificate) -> None:
    """OSError: it cannot be written."""
    _write(file, certificate.public_bytes(Encoding.PEM), 0o644)


def _write(file: str, content: bytes, mode: int) -> None:
    """In one step, whatever was there; folders that are missing are made."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(made, path)
    except BaseException:  # whatever it was, no half-written key stays behind
        made.unlink(missing_ok=True)
        raise
