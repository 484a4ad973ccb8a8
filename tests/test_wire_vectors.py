"""Golden vectors of what travels: record batch, columns, envelope, sink link, Raft command. Both directions meet them.

In `fields`, byte strings stand as base64 and structures inside others as arrays, as on the wire. `older` ones are read,
and no longer written: what has come since has its default.
"""

import json
import struct
from pathlib import Path

import msgspec
import pytest
from support.batches import on_both

from protocol import envelope, link
from protocol.coverage import digest_of
from protocol.frames import FrameReader
from protocol.gaps import DAMAGED, Gap, encode_gap, lost_batch, read_gap
from protocol.records import Event, check_batch, encode_batch, place_batch, read_records
from sinkd.core import commands
from sinkd.core.raft_messages import CODEC

VECTORS = Path(__file__).parent / "data" / "vectors"


def vectors(file: str) -> list[object]:
    rows = json.loads((VECTORS / file).read_text())
    return [pytest.param(row, bytes.fromhex(row["hex"]), id=row.get("what") or row["name"]) for row in rows]


def build(structure: type, fields: dict[str, object]) -> msgspec.Struct:
    assert list(fields) == list(structure.__struct_fields__)
    return msgspec.convert(list(fields.values()), structure)


@pytest.mark.parametrize(("row", "data"), vectors("record_batch.json"))
def test_record_batch(row, data):
    if "gap" in row:
        gap, offsets = Gap(**row["gap"]), row.get("offsets", 1)
        batch = encode_gap(gap, offsets)
        if gap.reason == DAMAGED:
            batch = lost_batch(row["base_offset"], row["base_offset"] + offsets, bytes.fromhex(gap.digest), gap.to_ms,
                               gap.source)  # fmt: skip
        assert read_gap(data) == (row["base_offset"], Gap(**row["gap"]))
    else:
        events = [
            Event(one["subject"].encode(), one["key"].encode(), one["timestamp_ms"], one["header_block"].encode(),
                  one["payload"].encode())
            for one in row["events"]
        ]  # fmt: skip
        batch = encode_batch(events)
        assert [record[1:] for record in read_records(data)] == [
            (event.timestamp_ms, event.key, event.subject, event.header_block, event.payload) for event in events
        ]
        assert [record.offset for record in read_records(data)] == [
            row["base_offset"] + delta for delta in range(len(events))
        ]
    assert place_batch(batch, row["base_offset"], row["leader_epoch"]) == data
    check_batch(data)


@on_both
@pytest.mark.parametrize(("row", "data"), vectors("columns.json"))
def test_columns(codec, row, data):
    batches = bytes.fromhex(row["batches"])
    assert codec.take_apart(batches) == data
    assert codec.put_together(data, len(batches)) == batches


@pytest.mark.parametrize(("row", "data"), vectors("envelope.json"))
def test_envelope(row, data):
    head, batch = build(envelope.Envelope, row["fields"]), bytes.fromhex(row["batch"])
    assert row.get("older") or envelope.pack(head, batch) == data
    assert list(envelope.unpack(data)) == [(head, batch, len(data) - len(batch))]
    head_bytes, batch_bytes = struct.unpack_from("<II", data)
    assert (8 + head_bytes + batch_bytes, batch_bytes) == (len(data), len(batch))
    assert msgspec.msgpack.decode(data[8 : 8 + head_bytes])[0] == envelope.ENVELOPE_VERSION


@pytest.mark.parametrize(("row", "data"), vectors("link.json"))
def test_link(row, data):
    structure, tail = link.KINDS[row["kind"]], bytes.fromhex(row["tail"])
    assert structure.__name__ == row["name"]
    message = build(structure, row["fields"])
    assert row.get("older") or link.pack(message, tail) == data
    assert list(link.FrameReader().feed(data)) == [(message, tail)]
    size, version, kind, head_bytes = struct.unpack_from("<IBBI", data)
    assert (size, version, kind) == (len(data) - 4, 1, row["kind"])
    assert len(data) == 10 + head_bytes + len(tail)


def test_every_kind_of_link_frame_has_a_vector():
    assert {row["kind"] for row in json.loads((VECTORS / "link.json").read_text())} == set(link.KINDS)


@pytest.mark.parametrize(("row", "data"), vectors("raft.json"))
def test_raft_link(row, data):
    structure, tail = CODEC.kinds[row["kind"]], bytes.fromhex(row["tail"])
    assert structure.__name__ == row["name"]
    message = build(structure, row["fields"])
    assert row.get("older") or CODEC.pack(message, tail) == data
    assert list(FrameReader(CODEC).feed(data)) == [(message, tail)]


def test_every_kind_of_raft_frame_has_a_vector():
    assert {row["kind"] for row in json.loads((VECTORS / "raft.json").read_text())} == set(CODEC.kinds)


@pytest.mark.parametrize(("row", "data"), vectors("command.json"))
def test_command(row, data):
    command = commands.decode(data)
    assert (command.kind, command.time_ms) == (row["kind"], row["time_ms"])
    assert struct.unpack_from("<BBQ", data) == (1, row["kind"], row["time_ms"])
    if "parcels" in row:
        parcels = [bytes.fromhex(parcel) for parcel in row["parcels"]]
        digests = [bytes.fromhex(digest) for digest in row.get("digests", ())]
        if digests:
            assert commands.encode_digested(row["time_ms"], parcels, digests) == data
            assert digests == [digest_of(envelope.batch_of(parcel)) for parcel in parcels]
        else:
            assert commands.encode_append(row["time_ms"], parcels) == data
        read = list(commands.read_parcels(command))
        assert [digest for _, digest in read] == (digests or [b""] * len(parcels))
        for parcel, _ in read:
            at = commands.BODY_POSITION + parcel.batch_position
            assert data[at : at + len(parcel.batch)] == parcel.batch
    elif "batches" in row:
        structure, batches = getattr(commands, row["name"]), bytes.fromhex(row["batches"])
        head = build(structure, row["head"])
        encode = {
            commands.MIRRORED: commands.encode_mirrored,
            commands.LOSS: commands.encode_loss,
            commands.RECORD_GAP: commands.encode_record_gap,
        }
        assert row.get("older") or encode[row["kind"]](row["time_ms"], head, batches) == data
        read, begin = commands.read_head(command, structure)
        assert (read, bytes(command.body[begin:])) == (head, batches)
    else:
        structure = getattr(commands, row["name"])
        body = build(structure, row["fields"])
        assert row.get("older") or commands.encode(row["kind"], row["time_ms"], body) == data
        assert msgspec.msgpack.decode(command.body, type=structure) == body
