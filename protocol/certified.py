"""Whether a certificate proves what it says: its form (`protocol.certificate`), and who stands for it.

    signers ─► an authority of the mesh, valid at the certificate's time ─► role sink, of the zone and name that it says
                                                                            └─► its signature of what it saw
    beacons ─► the same, role gateway ─► the account that is said to have been compared with it

What is in the log itself is compared by `protocol.certified_data`.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from protocol.certificate import (
    Certificate,
    NotProved,
    Producer,
    SignedBeacon,
    from_base64,
    problems_of,
    signed_by,
)
from protocol.coverage import Beacon, Row, Signed
from protocol.errors import UNREADABLE, SignatureError
from protocol.node_names import GATEWAY, SINK, NodeName
from protocol.signing import SIGNATURE, Authorities
from protocol.signing import verify as verify_signature

_ORDERS = {  # of the groups that keys for ECDSA are in (SEC 2)
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    "secp521r1": int(
        "01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA"
        "51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409",
        16,
    ),
}


Verify: TypeAlias = Callable[[bytes, Signed, int], NodeName]
"""The node of the mesh that has signed a payload at that time (ms). SignatureError: nobody has."""


def verifier(authorities: Authorities, mesh: str) -> Verify:
    return lambda payload, signed, at_ms: verify_signature(payload, *signed, authorities, mesh, at_ms)


def check(certificate: Certificate, verify: Verify) -> None:
    """NotProved: all that is wrong."""
    problems = problems_of(certificate)
    if not problems:
        problems = [*problems_of_content(certificate, verify), *_signatures(certificate, verify)]
    if problems:
        raise NotProved(problems)


def problems_of_content(certificate: Certificate, verify: Verify) -> list[str]:
    """What of the beacons is wrong, and of accounts that are said to have been compared with them."""
    problems, beacons = [], []
    for number, signed in enumerate(certificate.beacons):
        try:
            beacons.append(read_beacon(certificate, signed, verify))
        except NotProved as error:
            problems += [f"beacon {number}: {what}" for what in error.problems]
    if problems:
        return problems
    for accounts in certificate.accounts:
        for producer in accounts.producers:
            whose = f"partition {accounts.partition}: worker {producer.worker} of gateway {producer.node}"
            if producer.beacon >= len(beacons):
                problems.append(f"{whose}: compared with beacon {producer.beacon}, there are {len(beacons)}")
            elif producer.beacon >= 0:
                found = _compared(certificate, accounts.partition, producer, beacons[producer.beacon])
                problems += [f"{whose}: {what}" for what in found]
    return problems


# -- signatures -------------------------------------------------------------------------------------------------------


def _signatures(certificate: Certificate, verify: Verify) -> Iterator[str]:
    views = {zone: signed_by(certificate, zone) for zone in {signer.zone for signer in certificate.signers}}
    for signer, text in zip(certificate.signers, certificate.signatures, strict=True):
        who = f"sink {signer.node} of zone {signer.zone}"
        try:
            der, signature = from_base64(signer.certificate), from_base64(text)
        except ValueError as error:
            yield f"{who}: certificate and signature must be base64: {error}"
            continue
        try:
            if low_s(signature, der) != signature:
                raise SignatureError(SIGNATURE, "of two signatures that fit, it is the one that is not allowed")
            name = verify(views[signer.zone], Signed(signature, der), certificate.time)
        except SignatureError as error:
            yield f"{who}: {error}"
            continue
        if name != NodeName(certificate.mesh, signer.zone, SINK, signer.node):
            yield f"{who}: the certificate is that of {name}"


def low_s(signature: bytes, certificate: bytes) -> bytes:
    """The signature, or if it is by ECDSA that of two which fit, in DER, which has the lower s.

    SignatureError: it cannot be read.
    """
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise SignatureError(SIGNATURE, f"the certificate cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return signature
    order = _ORDERS.get(key.curve.name)
    if order is None:
        raise SignatureError(SIGNATURE, f"a key on curve {key.curve.name}; expected one of {', '.join(_ORDERS)}")
    try:
        r, s = decode_dss_signature(signature)
    except ValueError as error:
        raise SignatureError(SIGNATURE, f"the signature is no DER: {error}") from error
    return encode_dss_signature(r, min(s, order - s) if s < order else s)


# -- beacons ----------------------------------------------------------------------------------------------------------


def read_beacon(certificate: Certificate, signed: SignedBeacon, verify: Verify) -> Beacon:
    """NotProved: no gateway of the zone has said it."""
    try:
        payload, signature, signer = map(from_base64, (signed.payload, signed.signature, signed.signer))
        beacon = msgspec.json.decode(payload, type=Beacon)
        name = verify(payload, Signed(signature, signer), beacon.time)
    except (ValueError, *UNREADABLE, SignatureError) as error:
        raise NotProved([str(error)]) from error
    expected = NodeName(certificate.mesh, certificate.zone, GATEWAY, beacon.node)
    if name != expected or (beacon.mesh, beacon.zone) != (certificate.mesh, certificate.zone):
        raise NotProved([f"it is signed by {name}, and says that it is of {beacon.mesh}/{beacon.zone}/{beacon.node}"])
    return beacon


def row_of(certificate: Certificate, partition: int, producer: Producer, beacon: Beacon) -> Row | None:
    """What the beacon says of that producer's present run."""
    place = certificate.stream, certificate.incarnation, partition, producer.run
    if (beacon.node, beacon.worker) != (producer.node, producer.worker):
        return None
    rows = (row for row in beacon.rows if (row.stream, row.incarnation, row.partition, row.run) == place)
    return next(rows, None)


def is_comparable(producer: Producer, row: Row) -> bool:
    """Whether a row of the producer's run speaks of it at a sequence where it has a chain, not after its end."""
    if row.run != producer.run or row.acknowledged > producer.last:
        return False
    return row.mark in {row.base, producer.last, *(sequence for sequence, _ in producer.marks)}


def _compared(certificate: Certificate, partition: int, producer: Producer, beacon: Beacon) -> Iterator[str]:
    row = row_of(certificate, partition, producer, beacon)
    if row is None:
        yield "the beacon says nothing of it"
        return
    if row.base != producer.base:
        yield f"the beacon's run begins behind sequence {row.base}, the account's behind {producer.base}"
    if row.acknowledged > producer.last:
        yield f"the beacon has acknowledgements up to sequence {row.acknowledged}, the account goes to {producer.last}"
    chains = {**dict(producer.marks), producer.last: producer.chain}
    if row.mark not in chains and row.mark != row.base:
        yield f"the beacon has its chain at sequence {row.mark}, where the account has none"
    elif row.mark != row.base and chains[row.mark] != row.chain:
        yield f"gateway and sinks have other digests up to sequence {row.mark}"
