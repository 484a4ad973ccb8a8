"""The bytes of spool files: golden vectors, written and read, and what is no spool file."""

import json
import struct
from pathlib import Path

import fastcrc
import msgspec
import pytest

from gateway.core import spool_format
from gateway.core.spool_format import FileReader, Head, Kind, Owner, Record
from protocol.errors import FrameError
from protocol.gaps import Gap
from protocol.records import Event
from protocol.streams import StreamState

ROWS = json.loads((Path(__file__).parent / "data" / "vectors" / "spool.json").read_text())
HEAD = spool_format.pack_head(Head(Owner("acme", "eu", "gw1", 0), is_whole=False))
FIXED_BYTES = 48


def rows(present: str) -> list[object]:
    return [pytest.param(row, bytes.fromhex(row["hex"]), id=row["what"]) for row in ROWS if present in row]


def only_record(data: bytes) -> Record:
    reader = FileReader(HEAD + data)
    reader.head()
    (record,) = reader.records()
    assert (reader.problem, reader.position) == ("", len(HEAD + data))
    return record


@pytest.mark.parametrize(("row", "data"), rows("owner"))
def test_head(row, data):
    head = Head(Owner(**row["owner"]), row["is_whole"])
    assert spool_format.pack_head(head) == data
    assert FileReader(data).head() == head
    magic, version, size = struct.unpack_from("<8sII", data)
    assert (magic, version, 16 + size + 4) == (b"MESHSPOL", 1, len(data))
    assert struct.unpack("<I", data[-4:])[0] == fastcrc.crc32.iscsi(data[:-4])
    assert msgspec.msgpack.decode(data[16:-4]) == [list(row["owner"].values()), row["is_whole"]]


@pytest.mark.parametrize(("row", "data"), rows("kind"))
def test_record(row, data):
    crc, payload_crc, size, kind, zero, partition, mark, *numbers = struct.unpack_from("<IIIHHIIQQQ", data)
    assert crc == fastcrc.crc32.iscsi(data[4:FIXED_BYTES])
    assert payload_crc == fastcrc.crc32.iscsi(data[FIXED_BYTES:])
    assert (FIXED_BYTES + size, zero) == (len(data), 0)
    fields = {name: row[name] for name in ("number", "last_number", "sequence", "mark")}
    assert (kind, partition, [*numbers, mark]) == (row["kind"], row["partition"], list(fields.values()))
    record = only_record(data)
    assert record == Record(Kind(kind), partition, **fields, payload=data[FIXED_BYTES:])
    assert spool_format.pack(Kind(kind), partition, record.payload, **fields) == data


@pytest.mark.parametrize(("row", "data"), [*rows("event"), *rows("gap")])
def test_entry(row, data):
    record = only_record(data)
    if "event" in row:
        fields = row["event"].items()
        content = Event(**{name: value.encode() if isinstance(value, str) else value for name, value in fields})
        assert spool_format.read_event(record.payload) == content
    else:
        content = Gap(**row["gap"])
        assert spool_format.read_gap(record.payload) == content
    before = row["mark"], row["sequence"]
    assert spool_format.pack_entry(row["partition"], row["number"], content, before=before) == data


@pytest.mark.parametrize(("row", "data"), rows("stream"))
def test_partition(row, data):
    stream = msgspec.convert(row["stream"], StreamState)
    assert spool_format.read_partition(only_record(data).payload) == (stream, row["partition_number"])
    assert row.get("older") or spool_format.pack_partition(row["partition"], stream, row["partition_number"]) == data


def test_every_kind_has_a_vector():
    assert {row["kind"] for row in ROWS if "kind" in row} == set(Kind)


def test_a_later_version_is_refused_and_not_taken_for_damage():
    with pytest.raises(FrameError, match="version 2, ours is 1"):
        FileReader(HEAD[:8] + struct.pack("<I", 2) + HEAD[12:]).head()


@pytest.mark.parametrize("position", [0, 20, len(HEAD) - 1])
def test_a_wrong_byte_in_the_head_is_damage(position):
    reader = FileReader(HEAD[:position] + bytes([HEAD[position] ^ 1]) + HEAD[position + 1 :])
    assert reader.head() is None
    assert reader.problem
    assert not reader.is_torn


def test_of_a_record_whose_payload_is_wrong_the_rest_is_known():
    good = spool_format.pack_entry(7, 9, Event(b"s", b"k", 5, b"", b"payload"))
    reader = FileReader(HEAD + good[:-1] + b"X" + good)
    reader.head()
    damaged, whole = reader.records()
    assert (damaged.partition, damaged.number, damaged.payload) == (7, 9, None)
    assert whole.payload is not None
    assert not reader.problem


def test_nothing_is_read_behind_a_fixed_part_that_is_wrong():
    good = spool_format.pack(Kind.GONE, 0, number=1, last_number=2)
    reader = FileReader(HEAD + good + good[:20] + bytes([good[20] ^ 1]) + good[21:] + good)
    reader.head()
    assert len(list(reader.records())) == 1
    assert (reader.position, reader.is_torn) == (len(HEAD + good), False)
