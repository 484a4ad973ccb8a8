"""A verifier of certificates as somebody else would write it: from docs/coverage.md alone, with nothing of ours."""

import base64
import hashlib
import json
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

PREFIX, CERTIFICATE = b"event mesh coverage 1\n", b"event mesh certificate 1\n"
P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def root_of(frontier: list[bytes]) -> bytes:
    root = frontier[-1] if frontier else sha(b"")
    for left in frontier[-2::-1]:
        root = sha(b"\1" + left + root)
    return root


def signer(der: bytes, authority: x509.Certificate, at_ms: int) -> tuple[str, ec.EllipticCurvePublicKey]:
    """(path of its URI, key)"""
    leaf = x509.load_der_x509_certificate(der)
    leaf.verify_directly_issued_by(authority)
    for one in (leaf, authority):
        assert one.not_valid_before_utc.timestamp() <= at_ms / 1000 <= one.not_valid_after_utc.timestamp()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    parts = urlsplit(uri)
    assert parts.scheme == "mesh"
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return parts.netloc + parts.path, key


def low(signature: bytes) -> bool:
    """Whether s of a DER signature is the lower one; the integers stand one behind the other."""
    r_bytes = signature[3]
    s = int.from_bytes(signature[6 + r_bytes :], "big")
    return s <= P256 // 2


def verify(file: Path, ca: Path, segments: list[Path]) -> None:
    """AssertionError, ValueError or InvalidSignature: not proved. `segments` are those of partition 0, in order."""
    data = file.read_bytes()
    shown = json.loads(data)
    assert canonical(shown) == data
    assert (shown["format"], shown["version"]) == ("event mesh certificate", 1)
    authority = x509.load_pem_x509_certificate(ca.read_bytes())
    for one, accounts in zip(shown["partitions"], shown["accounts"], strict=True):
        frontier = [bytes.fromhex(each) for each in one["frontier"]]
        assert len(frontier) == one["size"].bit_count()
        assert root_of(frontier).hex() == one["root"]
        held = 0
        for producer in accounts["producers"]:
            counts = [producer[name] for name in ("held", "duplicates", "refused", "gaps")]
            assert producer["last"] - producer["base"] == sum(counts)
            held += producer["held"] + producer["before"]["held"]
        assert one["to"] - one["begin"] == held + accounts["control"] + accounts["unaccounted"]
    beacons(shown, authority)
    signatures(shown, authority)
    if segments:
        assert root_of_data(shown["partitions"][0], segments) == shown["partitions"][0]["root"]


def beacons(shown: dict, authority: x509.Certificate) -> None:
    told = []
    for one in shown["beacons"]:
        payload, signature, der = (base64.b64decode(one[name]) for name in ("payload", "signature", "signer"))
        beacon = json.loads(payload)
        name, key = signer(der, authority, beacon["time"])
        assert name == f"{shown['mesh']}/{shown['zone']}/gateway/{beacon['node']}"
        key.verify(signature, PREFIX + payload, ec.ECDSA(hashes.SHA256()))
        told.append(beacon)
    for accounts in shown["accounts"]:
        for producer in accounts["producers"]:
            if producer["beacon"] >= 0:
                rows = told[producer["beacon"]]["rows"]
                (row,) = (row for row in rows if (row["stream"], row["run"]) == (shown["stream"], producer["run"])
                          and row["partition"] == accounts["partition"])  # fmt: skip
                chains = {**dict(producer["marks"]), producer["last"]: producer["chain"], producer["base"]: "00" * 32}
                assert row["base"] == producer["base"]
                assert row["acknowledged"] <= producer["last"]
                assert chains[row["mark"]] == row["chain"]


def signatures(shown: dict, authority: x509.Certificate) -> None:
    view = {name: value for name, value in shown.items() if name != "signatures"}
    log = {name: value for name, value in view.items() if name not in ("accounts", "beacons", "gaps")}
    signed = set()
    for one, text in zip(shown["signers"], shown["signatures"], strict=True):
        name, key = signer(base64.b64decode(one["certificate"]), authority, shown["time"])
        assert name == f"{shown['mesh']}/{one['zone']}/sink/{one['node']}"
        content = canonical(view if one["zone"] == shown["zone"] else log)
        signature = base64.b64decode(text)
        assert low(signature)
        key.verify(signature, PREFIX + CERTIFICATE + content, ec.ECDSA(hashes.SHA256()))
        signed.add((one["zone"], one["node"]))
    for zone in shown["zones"]:
        assert 2 * sum((zone["zone"], sink) in signed for sink in zone["sinks"]) > len(zone["sinks"])


def root_of_data(partition: dict, segments: list[Path]) -> str:
    frontier, size = [bytes.fromhex(each) for each in partition["from_frontier"]], partition["from_size"]
    for path in segments:
        data, at = path.read_bytes(), 64
        while at < len(data):
            end = at + 12 + int.from_bytes(data[at + 8 : at + 12], "big")
            offset = int.from_bytes(data[at : at + 8], "big")
            if partition["from"] <= offset < partition["to"]:
                leaf = sha(b"\0" + offset.to_bytes(8, "big") + sha(data[at + 21 : end]))
                for bit in range(64):
                    if not size >> bit & 1:
                        break
                    leaf = sha(b"\1" + frontier.pop() + leaf)
                frontier.append(leaf)
                size += 1
            at = end
    assert size == partition["size"]
    return root_of(frontier).hex()
