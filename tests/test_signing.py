"""Signatures over what nodes say: who said it, and each reason why nobody did."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID
from support.certificates import Authority, Pair

from mesh import authority as mesh_authority
from mesh.node_signing import NodeSigning
from protocol import coverage, signing
from protocol.config import TlsNodes
from protocol.coverage import Signed, header_block, signed_in
from protocol.errors import ConfigError, FrameError, SignatureError
from protocol.node_names import NodeName

NODE = NodeName("acme", "eu", "gateway", "eu-gw1")
PAYLOAD = b'{"version":1}'
HOUR_MS = 3_600_000


def now_ms() -> int:
    return int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)


def der(pair: Pair) -> bytes:
    return x509.load_pem_x509_certificate(pair.cert.read_bytes()).public_bytes(Encoding.DER)


def signed(pair: Pair, payload: bytes = PAYLOAD, prefix: bytes = coverage.SIGNED_PREFIX) -> Signed:
    key = load_pem_private_key(pair.key.read_bytes(), None)
    return Signed(signing.sign(payload, key, prefix), der(pair))


def verified(by: Signed, *authorities: Authority, payload: bytes = PAYLOAD, at_ms: int | None = None) -> NodeName:
    known = [each for one in authorities for each in signing.read_authorities(one.cert.read_bytes())]
    return signing.verify(payload, *by, known, "acme", now_ms() if at_ms is None else at_ms)


def refused(by: Signed, *authorities: Authority, payload: bytes = PAYLOAD, at_ms: int | None = None) -> tuple[str, str]:
    with pytest.raises(SignatureError) as caught:
        verified(by, *authorities, payload=payload, at_ms=at_ms)
    assert caught.value.reason in signing.REASONS
    return caught.value.reason, str(caught.value)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def by(authority: Authority) -> Signed:
    return signed(authority.node("eu-gw1", str(NODE)))


def test_the_node_of_the_certificate_has_said_it(authority: Authority, by: Signed, tmp_path: Path) -> None:
    assert verified(by, authority) == NODE
    assert verified(by, Authority(tmp_path, "other"), authority) == NODE  # one of several authorities


def test_another_payload_or_purpose_or_signature_is_refused(authority: Authority, by: Signed) -> None:
    told = f"{NODE} has not signed this: the signature does not fit"
    assert refused(by, authority, payload=PAYLOAD + b" ") == (signing.SIGNATURE, told)
    assert refused(by._replace(signature=b""), authority) == (signing.SIGNATURE, told)
    for_more = signed(authority.node("eu-gw1", str(NODE)), prefix=b"something else\n")
    assert refused(for_more, authority) == (signing.SIGNATURE, told)
    another_key = signed(authority.node("eu-gw2", str(NODE)))
    assert refused(by._replace(signature=another_key.signature), authority) == (signing.SIGNATURE, told)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_every_byte_of_signature_and_certificate_counts(authority: Authority, by: Signed) -> None:
    for field in Signed._fields:
        whole = getattr(by, field)
        for position in range(len(whole)):
            for change in (0x01, 0x80, 0xFF):
                bad = bytearray(whole)
                bad[position] ^= change
                refused(by._replace(**{field: bytes(bad)}), authority)
        refused(by._replace(**{field: whole[:-1]}), authority)


def test_a_certificate_is_written_in_one_way_alone(authority: Authority) -> None:
    """A signature whose last bit is 0 could also be one that says so of its last bit: BIT STRINGs are like that."""
    while (by := signed(authority.node("eu-gw1", str(NODE)))).certificate[-1] & 1:
        pass
    signature = x509.load_der_x509_certificate(by.certificate).signature
    position = len(by.certificate) - len(signature) - 1
    assert by.certificate[position] == 0
    other = by.certificate[:position] + b"\x01" + by.certificate[position + 1 :]
    assert x509.load_der_x509_certificate(other).signature == signature
    told = "the certificate cannot be read: its signature is not in DER"
    assert refused(by._replace(certificate=other), authority) == (signing.CERTIFICATE, told)


def test_a_certificate_of_another_authority_is_refused(authority: Authority, by: Signed, tmp_path: Path) -> None:
    told = f"the certificate of {NODE} was not signed by an authority of the mesh"
    assert refused(by, Authority(tmp_path, "other")) == (signing.AUTHORITY, told)
    assert refused(by) == (signing.AUTHORITY, told)  # none is known
    same_name = Authority(tmp_path)  # another key
    assert refused(by, same_name) == (signing.AUTHORITY, told)


def test_a_node_is_no_authority(authority: Authority) -> None:
    gateway = authority.node("eu-gw1", str(NODE))
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    issuer = x509.load_pem_x509_certificate(gateway.cert.read_bytes())
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "eu-gw9")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("mesh://acme/eu/gateway/eu-gw9")]), False
        )
        .sign(load_pem_private_key(gateway.key.read_bytes(), None), hashes.SHA256())
    )
    by = Signed(signing.sign(PAYLOAD, key), forged.public_bytes(Encoding.DER))
    assert refused(by, authority)[0] == signing.AUTHORITY


def test_what_was_out_of_date_then_is_refused(authority: Authority, by: Signed) -> None:
    for at_ms in (now_ms() - 2 * HOUR_MS, now_ms() + 2 * HOUR_MS, 0, 2**63):
        reason, told = refused(by, authority, at_ms=at_ms)
        assert reason == signing.OUT_OF_DATE
        assert told.startswith(f"the authority that signed the certificate of {NODE} is valid from ")
        assert told.endswith(f", not at {at_ms} ms since 1970")


def test_a_certificate_that_ends_before_its_authority_is_refused_then() -> None:
    root, key = mesh_authority.make("acme"), ec.generate_private_key(ec.SECP256R1())
    by = signing.sign(PAYLOAD, key), issued(root.key, root.certificate.subject, key.public_key())
    assert signing.verify(PAYLOAD, *by, [root.certificate], "acme", now_ms()) == NODE
    with pytest.raises(SignatureError, match=f"the certificate of {NODE} is valid from ") as caught:
        signing.verify(PAYLOAD, *by, [root.certificate], "acme", now_ms() + HOUR_MS)
    assert caught.value.reason == signing.OUT_OF_DATE


def test_who_is_no_node_or_of_another_mesh_is_refused(authority: Authority) -> None:
    other = signed(authority.node("other", "mesh://other/eu/gateway/eu-gw1"))
    told = "the certificate is that of mesh://other/eu/gateway/eu-gw1, expected a node of mesh acme"
    assert refused(other, authority) == (signing.MESH, told)
    assert refused(signed(authority.client("shop")), authority)[0] == signing.NAME
    assert refused(signed(authority.node("two", str(NODE), str(NODE) + "2")), authority)[0] == signing.NAME
    assert refused(signed(authority.node("odd", "mesh://acme/eu/client/x")), authority)[0] == signing.NAME


def test_what_is_no_certificate_is_refused(authority: Authority, by: Signed) -> None:
    for certificate in (b"", b"hello", by.certificate + b"\0", authority.cert.read_bytes()):
        assert refused(by._replace(certificate=certificate), authority)[0] == signing.CERTIFICATE
    with pytest.raises(SignatureError, match="no certificate of an authority"):
        signing.read_authorities(b"hello")


# -- keys -------------------------------------------------------------------------------------------------------------


def issued(authority_key: ec.EllipticCurvePrivateKey, name: x509.Name, public: object) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")]))
        .issuer_name(name)
        .public_key(public)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(minutes=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(NODE))]), False)
    )
    return builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_keys_of_all_kinds_that_certificates_have_sign() -> None:
    root = mesh_authority.make("acme")
    keys = (
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    )
    for key in keys:
        certificate = issued(root.key, root.certificate.subject, key.public_key())
        signature = signing.sign(PAYLOAD, key)
        arguments = certificate, [root.certificate], "acme", now_ms()
        assert signing.verify(PAYLOAD, signature, *arguments) == NODE
        with pytest.raises(SignatureError, match="the signature does not fit"):
            signing.verify(PAYLOAD, signature[:-1] + bytes([signature[-1] ^ 1]), *arguments)


def test_keys_that_cannot_sign_are_named() -> None:
    root, key = mesh_authority.make("acme"), x25519.X25519PrivateKey.generate()
    with pytest.raises(TypeError, match="X25519PrivateKey; expected EC, RSA or Ed25519"):
        signing.sign(PAYLOAD, key)
    certificate = issued(root.key, root.certificate.subject, key.public_key())
    with pytest.raises(SignatureError, match="X25519PublicKey; expected EC, RSA or Ed25519"):
        signing.verify(PAYLOAD, b"", certificate, [root.certificate], "acme", now_ms())


# -- headers, files ---------------------------------------------------------------------------------------------------


def test_headers_bring_back_what_was_signed(by: Signed) -> None:
    assert signed_in(header_block(by)) == by
    assert signed_in(header_block(None)) is None
    assert signed_in(b"NATS/1.0\r\nOther: 1\r\n\r\n") is None
    for bad in (
        b"NATS/1.0\r\nCoverage-Signature: aaaa\r\n\r\n",
        b"NATS/1.0\r\nCoverage-Signer: aaaa\r\n\r\n",
        b"NATS/1.0\r\nCoverage-Signature: aaaa\r\nCoverage-Signer: a-b_\r\n\r\n",
        b"no headers",
    ):
        with pytest.raises(FrameError):
            signed_in(bad)


def test_renewed_files_are_taken_up_and_bad_ones_are_not(authority: Authority, tmp_path: Path) -> None:
    pair = authority.node("eu-gw1", str(NODE))
    own = NodeSigning(TlsNodes(ca=str(authority.cert), cert=str(pair.cert), key=str(pair.key)), NODE)
    first = own.sign(PAYLOAD)
    assert first.certificate == der(pair)
    assert own.verify(PAYLOAD, first, now_ms()) == NODE
    authority.node("eu-gw1", str(NODE))  # into the same files
    second = own.sign(PAYLOAD)
    assert second.certificate == der(pair) != first.certificate
    assert own.verify(PAYLOAD, second, now_ms()) == own.verify(PAYLOAD, first, now_ms()) == NODE
    whole = pair.key.read_bytes()
    pair.key.write_bytes(b"")
    assert own.sign(PAYLOAD).certificate == second.certificate
    pair.key.write_bytes(whole)
    with pytest.raises(ConfigError, match="this node is mesh://acme/eu/sink/eu-gw1"):
        NodeSigning(
            TlsNodes(ca=str(authority.cert), cert=str(pair.cert), key=str(pair.key)), NODE._replace(role="sink")
        )
