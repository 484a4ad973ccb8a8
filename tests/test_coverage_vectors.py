"""Golden vectors of what nodes write into `$COVERAGE`: JSON in both directions, chains, and what is signed."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol import coverage
from protocol.coverage import Beacon, GapReport, Roots, Signed, Summary, chained, header_block, signed_in

VECTORS = json.loads((Path(__file__).parent / "data" / "vectors" / "coverage.json").read_text())
KINDS: dict[str, Any] = {
    coverage.BEACON: Beacon,
    coverage.GAP: GapReport,
    coverage.REPAIRED: GapReport,
    coverage.ROOTS: Roots,
    coverage.SUMMARY: Summary,
}


@pytest.mark.parametrize("row", VECTORS["events"], ids=lambda row: row["what"])
def test_an_event_is_the_same_in_both_directions(row: dict[str, Any]) -> None:
    event = msgspec.convert(row["event"], KINDS[row["kind"]])
    assert msgspec.json.encode(event).decode() == row["payload"]
    assert msgspec.json.decode(row["payload"], type=KINDS[row["kind"]]) == event


def test_there_is_one_of_each_kind() -> None:
    assert {row["kind"] for row in VECTORS["events"]} == KINDS.keys() == {coverage.BEACON, *coverage.REPORTS}


@pytest.mark.parametrize("row", VECTORS["chains"], ids=lambda row: row["what"])
def test_a_chain_goes_on(row: dict[str, Any]) -> None:
    chain, digest = bytes.fromhex(row["chain"]), bytes.fromhex(row["digest"])
    assert chained(chain, row["first_sequence"], row["sequences"], digest).hex() == row["behind"]


def test_headers_say_who_has_signed() -> None:
    assert coverage.SIGNED_PREFIX == b"event mesh coverage 1\n"
    block = header_block(Signed(b"\x01\x02", b"\x03"))
    assert block == b"NATS/1.0\r\nCoverage-Signature: AQI=\r\nCoverage-Signer: Aw==\r\n\r\n"
    assert signed_in(block) == Signed(b"\x01\x02", b"\x03")
    assert header_block(None) == b""
    assert signed_in(b"") is None
