"""The sink's files as bytes: golden vectors, round trips, and decoders that take nothing for granted."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkd.core.formats import (
    BadBytes,
    Checkpoint,
    IndexEntry,
    IndexHeader,
    JournalHeader,
    JournalRecord,
    Kind,
    LeavesHeader,
    SegmentHeader,
    TreePosition,
    decode_checkpoint,
    decode_index,
    decode_index_header,
    decode_journal_header,
    decode_leaves,
    decode_record,
    decode_segment_header,
    decode_tree,
    encode_checkpoint,
    encode_index,
    encode_journal_header,
    encode_leaves,
    encode_record,
    encode_segment_header,
    encode_tree,
    find_synced_beyond,
    journal_seed,
    record_size,
    records_end,
)

VECTORS = json.loads((Path(__file__).parent / "data" / "vectors" / "storage.json").read_text())
JOURNAL_ID = bytes(range(16))

u64 = st.integers(0, 2**64 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
u32 = st.integers(0, 2**32 - 1)
ids = st.binary(min_size=16, max_size=16)


def vectors(name: str) -> list[object]:
    found = [pytest.param(vector["fields"], bytes.fromhex(vector["hex"]), id=vector["what"]) for vector in VECTORS
             if vector["format"] == name]  # fmt: skip
    assert found
    return found


def crc32c(data: bytes) -> int:
    """Bit by bit, after RFC 3720 B.4; an implementation that shares nothing with the one in use."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# -- golden vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "data"), vectors("journal header"))
def test_journal_header(fields, data):
    header = JournalHeader(**{**fields, "journal_id": bytes.fromhex(fields["journal_id"])})
    assert encode_journal_header(header) == data
    assert decode_journal_header(data) == header


@pytest.mark.parametrize(("fields", "data"), vectors("journal record"))
def test_journal_record(fields, data):
    journal_id, payload = bytes.fromhex(fields["journal_id"]), bytes.fromhex(fields["payload"])
    position, kind, term, index = fields["position"], fields["kind"], fields["term"], fields["index"]
    seed = journal_seed(journal_id, fields["number"])
    assert b"".join(encode_record(seed, position, kind, term, index, payload)) == data
    assert decode_record(data, 0, position, seed) == JournalRecord(kind, term, index, len(payload), len(data))
    # What docs/wire-formats.md says the checksum is over.
    covered = journal_id + fields["number"].to_bytes(8, "little") + position.to_bytes(8, "little") + data[4:]
    assert int.from_bytes(data[:4], "little") == crc32c(covered)


@pytest.mark.parametrize(("fields", "data"), vectors("segment header"))
def test_segment_header(fields, data):
    header = SegmentHeader(**{**fields, "incarnation": bytes.fromhex(fields["incarnation"])})
    assert encode_segment_header(header) == data
    assert decode_segment_header(data) == header


@pytest.mark.parametrize(("fields", "data"), vectors("index"))
def test_index(fields, data):
    entries = [IndexEntry(*entry) for entry in fields.pop("entries")]
    header = IndexHeader(**{**fields, "incarnation": bytes.fromhex(fields["incarnation"])})
    assert encode_index(header, entries) == data
    assert decode_index(data) == (header, entries)
    assert decode_index_header(data[:80]) == header


@pytest.mark.parametrize(("fields", "data"), vectors("leaves"))
def test_leaves(fields, data):
    rows = fields.pop("leaves")
    leaves = b"".join(offset.to_bytes(8, "big") + bytes.fromhex(digest) for offset, digest in rows)
    header = LeavesHeader(**{**fields, "incarnation": bytes.fromhex(fields["incarnation"])})
    assert encode_leaves(header, leaves) == data
    assert decode_leaves(data) == (header, leaves)


@pytest.mark.parametrize(("fields", "data"), vectors("tree"))
def test_tree(fields, data):
    incarnation, partition = bytes.fromhex(fields.pop("incarnation")), fields.pop("partition")
    position = TreePosition(**{**fields, "frontier": tuple(bytes.fromhex(one) for one in fields["frontier"])})
    assert encode_tree(incarnation, partition, position) == data
    assert decode_tree(data) == (incarnation, partition, position)


def test_a_tree_that_lacks_hashes_is_none():
    frontier = (b"\1" * 32, b"\2" * 32)
    with pytest.raises(BadBytes, match="64 bytes of hashes for 2, and 4 leaves"):
        decode_tree(encode_tree(JOURNAL_ID, 3, TreePosition(0, 9, 4, frontier)))


@pytest.mark.parametrize(("fields", "data"), vectors("checkpoint"))
def test_checkpoint(fields, data):
    checkpoint = Checkpoint(**{**fields, "state": bytes.fromhex(fields["state"])})
    assert encode_checkpoint(checkpoint) == data
    assert decode_checkpoint(data) == checkpoint


@pytest.mark.parametrize(("fields", "data"), vectors("checkpoint 1"))
def test_a_checkpoint_of_version_1_is_one_of_its_own(fields, data):
    checkpoint = Checkpoint(**{**fields, "state": bytes.fromhex(fields["state"])})
    assert decode_checkpoint(data) == checkpoint
    assert checkpoint.installed_over == 0


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["what"])
def test_checksums_of_heads_and_checkpoints_are_crc32c_of_all_before_them(vector):
    data = bytes.fromhex(vector["hex"])
    if vector["format"] == "journal record":
        return  # seeded; see above
    end = {"index": 80, "leaves": 64}.get(vector["format"], len(data))
    assert int.from_bytes(data[end - 4 : end], "little") == crc32c(data[: end - 4])


# -- round trips and damage -------------------------------------------------------------------------------------------

DECODERS = {
    "journal header": decode_journal_header,
    "segment header": decode_segment_header,
    "index": decode_index,
    "leaves": decode_leaves,
    "tree": decode_tree,
    "checkpoint": decode_checkpoint,
    "checkpoint 1": decode_checkpoint,
    "journal record": lambda data: decode_record(data, 0, 136, journal_seed(JOURNAL_ID, 2)),
}


@pytest.mark.parametrize("vector", [one for one in VECTORS if one["fields"].get("position", 136) == 136],
                         ids=lambda vector: vector["what"])  # fmt: skip
def test_every_flipped_bit_and_every_cut_is_found(vector):
    data, decode = bytes.fromhex(vector["hex"]), DECODERS[vector["format"]]
    decode(data)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadBytes):
            decode(bytes(damaged))
    for size in range(1, len(data)):
        with pytest.raises(BadBytes):
            decode(data[:size])


@given(ids, u64, u64, st.sampled_from(Kind), u64, u64, st.binary(max_size=100), st.binary(max_size=50))
def test_a_record_comes_back_only_from_its_own_place(journal_id, number, position, kind, term, index, payload, before):
    seed = journal_seed(journal_id, number)
    record = b"".join(encode_record(seed, position, kind, term, index, payload))
    assert len(record) == record_size(len(payload))
    assert len(record) % 8 == 0
    found = decode_record(before + record, len(before), position, seed)
    assert found == JournalRecord(kind, term, index, len(payload), len(record))
    for other_seed, other_position in (
        (journal_seed(journal_id, number ^ 1), position),
        (seed, position ^ 8),
    ):
        with pytest.raises(BadBytes):
            decode_record(record, 0, other_position, other_seed)


def test_zeros_are_the_end_of_the_records():
    assert decode_record(bytes(100), 8, 8, 1) is None
    assert decode_record(b"", 0, 8, 1) is None


@given(ids, st.integers(0, 2**32 - 1), u64, u64, u64, i64, i64, st.lists(st.builds(IndexEntry, u64, u64, i64, i64)))
def test_an_index_comes_back(incarnation, partition, base, following, size, minimum, maximum, entries):
    header = IndexHeader(incarnation, partition, base, following, size, minimum, maximum)
    assert decode_index(encode_index(header, entries)) == (header, entries)


@given(u64, u64, u64, st.binary())
def test_a_checkpoint_comes_back(index, term, previous_term, state):
    checkpoint = Checkpoint(index, term, previous_term, state)
    assert decode_checkpoint(encode_checkpoint(checkpoint)) == checkpoint


def test_another_version_is_named():
    data = encode_segment_header(SegmentHeader(JOURNAL_ID, 1, 2))
    with pytest.raises(BadBytes, match="version 2; this program writes and reads version 1"):
        decode_segment_header(data[:8] + b"\x02" + data[9:])
    with pytest.raises(BadBytes, match="begins with b'MESHSEGM', not with b'MESHJRNL'"):
        decode_journal_header(data)


# -- marks behind bad bytes -------------------------------------------------------------------------------------------


def mark(position: int, synced: int, number: int = 2, seed_number: int = 2) -> bytes:
    return b"".join(encode_record(journal_seed(JOURNAL_ID, seed_number), position, Kind.SYNCED, synced, number))


def file_with(marks: dict[int, bytes]) -> bytes:
    data = bytearray(b"\xff" * 4096)
    for position, one in marks.items():
        data[position : position + len(one)] = one
    return bytes(data)


@pytest.mark.parametrize(
    ("marks", "found"),
    [
        ({}, None),
        ({800: mark(800, 800)}, 800),
        ({800: mark(800, 800), 1600: mark(1600, 1600)}, 1600),
        ({800: mark(800, 300)}, None),  # it speaks of what lies before the bad bytes
        ({200: mark(200, 200)}, None),
        ({804: mark(804, 804)}, None),  # records are aligned
        ({800: mark(808, 800)}, None),  # of another place
        ({800: mark(800, 800, seed_number=1)}, None),  # of an older life of the file
        ({800: mark(800, 800, number=1)}, None),  # it speaks of another file
        ({4072: mark(4072, 4072)[:24]}, None),
        ({4064: mark(4064, 4064)}, 4064),
        ({792: mark(792, 792)[:16], 800: mark(800, 800)}, 800),  # half of another one in front of it
        ({796: mark(796, 900), 824: mark(824, 820)[:8], 832: mark(832, 832)}, 832),
    ],
)
def test_a_mark_is_a_witness_only_for_what_it_says(marks, found):
    assert find_synced_beyond(file_with(marks), 400, 2, journal_seed(JOURNAL_ID, 2)) == found


@given(st.lists(st.sampled_from([mark(0, 1), mark(8, 16), bytes(4), b"\4\0\0\0", b"\2\0\0\0"]), max_size=40))
def test_whatever_stands_in_front_of_a_mark_it_is_found(before):
    data = b"".join(before)
    data += bytes(-len(data) % 8)
    assert find_synced_beyond(data + mark(len(data), 1000), 0, 2, journal_seed(JOURNAL_ID, 2)) == 1000


@given(st.integers(1, 2**32 - 2), ids, st.sampled_from(Kind), u64, u64, st.binary(max_size=40))
def test_a_record_of_an_earlier_life_passes_for_sure_not(number, journal_id, kind, term, index, payload):
    """A CRC finds every change within 32 bits in a row: the seeds of two files differ, and so do their checksums."""
    record = b"".join(encode_record(journal_seed(journal_id, number), 64, kind, term, index, payload))
    for later in (number + 1, number ^ 1 << 31, 2**32 - 1):
        with pytest.raises(BadBytes, match="CRC-32C"):
            decode_record(record, 0, 64, journal_seed(journal_id, later))


# -- where the records end --------------------------------------------------------------------------------------------


def test_records_end_at_the_first_that_does_not_pass():
    header = JournalHeader(JOURNAL_ID, 2, 4096, 1, 0)
    seed = journal_seed(JOURNAL_ID, 2)
    data = encode_journal_header(header) + b"".join(encode_record(seed, 64, Kind.ENTRY, 1, 1, b"payload"))
    end = len(data)
    assert end == 64 + record_size(7)
    for behind in (b"", bytes(100), b"stale bytes", mark(end, end, seed_number=1)):
        assert records_end(data + behind) == end
    assert records_end(data + mark(end, end)) == end + 32
    with pytest.raises(BadBytes):
        records_end(bytes(4096))
