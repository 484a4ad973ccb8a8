"""Signatures: what a node says, for others to check whenever they read it.

    payload ─► sign(key of the node) ─► signature ┐
    certificate of the node, DER ─────────────────┴─► verify(authorities of the mesh, time) ─► NodeName: who said it

A signature is made with the key of the node's certificate of `[tls.nodes]`, over a prefix that says what it is about
(`protocol.coverage.SIGNED_PREFIX`) and the payload, so that it is of no use for anything else that the key may sign:

    key        signature
    EC         ECDSA with SHA-256, DER
    RSA        PKCS #1 v1.5 with SHA-256
    Ed25519    Ed25519

It counts if an authority of the mesh has signed the certificate, both were valid at the time that the payload says, and
the certificate is for one node, of this mesh. Whether that node may say such a thing is for the caller to decide.

This needs `cryptography`, which takes long to load: only who has certificates imports it.
"""

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from protocol.coverage import SIGNED_PREFIX
from protocol.errors import FrameError, SignatureError
from protocol.node_names import NodeName, node_named

Authorities: TypeAlias = tuple[x509.Certificate, ...]
Key: TypeAlias = Any
"""A private key of one of the kinds above."""

CERTIFICATE: Final = "certificate"
AUTHORITY: Final = "authority"
OUT_OF_DATE: Final = "out of date"
NAME: Final = "name"
MESH: Final = "mesh"
SIGNATURE: Final = "signature"
REASONS: Final = {
    CERTIFICATE: "the certificate cannot be read",
    AUTHORITY: "no authority of the mesh has signed the certificate",
    OUT_OF_DATE: "the certificate, or its authority's, was not valid at that time",
    NAME: "the certificate is for no node, or for several",
    MESH: "the certificate is for a node of another mesh",
    SIGNATURE: "the signature is not of that payload by that key",
}
"""`SignatureError.reason`."""


def sign(payload: bytes, key: Key, prefix: bytes = SIGNED_PREFIX) -> bytes:
    """The signature of `key`. TypeError: it is of another kind."""
    data = prefix + payload
    signature: bytes
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(data, ec.ECDSA(SHA256()))
    elif isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(data, padding.PKCS1v15(), SHA256())
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        signature = key.sign(data)
    else:
        raise TypeError(f"a key of kind {type(key).__name__}; expected EC, RSA or Ed25519")
    return signature


def verify(
    payload: bytes,
    signature: bytes,
    certificate: bytes,
    authorities: Iterable[x509.Certificate],
    mesh: str,
    at_ms: int,
    prefix: bytes = SIGNED_PREFIX,
) -> NodeName:
    """The node of `mesh` that said `payload` at `at_ms` (ms since 1970), by its `certificate` (DER).

    SignatureError says why nobody did.
    """
    leaf = _read(certificate)
    name = _name_in(leaf)
    _check_authority(leaf, name, authorities, at_ms)
    if name.mesh != mesh:
        raise SignatureError(MESH, f"the certificate is that of {name}, expected a node of mesh {mesh}")
    _check_dates(leaf, f"the certificate of {name}", at_ms)
    try:
        _check_signature(leaf, signature, prefix + payload)
    except InvalidSignature as error:
        raise SignatureError(SIGNATURE, f"{name} has not signed this: the signature does not fit") from error
    return name


def read_authorities(pem: bytes) -> Authorities:
    """The certificates of a file such as that of `tls.nodes.ca`. SignatureError: it holds none."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        what = "no certificate of an authority; expected PEM with BEGIN CERTIFICATE"
        raise SignatureError(CERTIFICATE, what) from error


_UNREADABLE: Final = (
    ValueError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)


def _read(certificate: bytes) -> x509.Certificate:
    """The authority's signature is the one part that it does not sign itself: there is one way to write it."""
    try:
        leaf = x509.load_der_x509_certificate(certificate)
        is_canonical = certificate.endswith(b"\x00" + leaf.signature)  # a BIT STRING of whole bytes: 0 are unused
    except _UNREADABLE as error:
        raise SignatureError(CERTIFICATE, f"the certificate cannot be read: {error}; expected X.509, DER") from error
    if not is_canonical:
        raise SignatureError(CERTIFICATE, "the certificate cannot be read: its signature is not in DER")
    return leaf


def _name_in(leaf: x509.Certificate) -> NodeName:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return node_named(names.get_values_for_type(x509.UniformResourceIdentifier))
    except x509.ExtensionNotFound as error:
        raise SignatureError(NAME, "the certificate names nobody: it has no alternative names") from error
    except FrameError as error:
        raise SignatureError(NAME, str(error)) from error
    except _UNREADABLE as error:
        raise SignatureError(CERTIFICATE, f"the certificate's names cannot be read: {error}") from error


def _check_authority(
    leaf: x509.Certificate, name: NodeName, authorities: Iterable[x509.Certificate], at_ms: int
) -> None:
    """Of several of the same key, as one that was renewed, any that was valid then will do."""
    problem = SignatureError(AUTHORITY, f"the certificate of {name} was not signed by an authority of the mesh")
    for authority in authorities:
        try:
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        try:
            _check_dates(authority, f"the authority that signed the certificate of {name}", at_ms)
        except SignatureError as error:
            problem = error
        else:
            return
    raise problem


def _check_dates(certificate: x509.Certificate, whose: str, at_ms: int) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins.timestamp() <= at_ms // 1000 <= ends.timestamp():
        what = f"{whose} is valid from {begins.isoformat()} to {ends.isoformat()}, not at {at_ms} ms since 1970"
        raise SignatureError(OUT_OF_DATE, what)


def _check_signature(leaf: x509.Certificate, signature: bytes, data: bytes) -> None:
    """InvalidSignature. SignatureError: the key is of a kind that nothing is signed with."""
    try:
        key = leaf.public_key()
    except _UNREADABLE as error:
        raise SignatureError(CERTIFICATE, f"the certificate's key cannot be read: {error}") from error
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, data, ec.ECDSA(SHA256()))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, data, padding.PKCS1v15(), SHA256())
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, data)
    else:
        raise SignatureError(CERTIFICATE, f"its key is of kind {type(key).__name__}; expected EC, RSA or Ed25519")
