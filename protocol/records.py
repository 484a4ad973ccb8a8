"""Kafka record batches, version 2: how events are stored, replicated and handed to readers.

A gateway encodes events once; from then on the batch is immutable and only two fields change, both outside its CRC: the
base offset (known when the batch is committed) and the partition leader epoch (the Raft term).

    offset  size  field (big endian)                    ours
    0       i64   baseOffset                            0 until committed
    8       i32   batchLength, bytes after this field
    12      i32   partitionLeaderEpoch                  0 until committed
    16      i8    magic                                 2
    17      u32   CRC-32C of everything from byte 21 on
    21      i16   attributes                            0: uncompressed, create time; 0x20: a control batch
    23      i32   lastOffsetDelta                       records - 1; of a control batch what it spans, less 1
    27      i64   baseTimestamp, ms                     the *smallest* of the batch
    35      i64   maxTimestamp, ms
    43      i64   producerId                            -1: the envelope around the batch identifies it
    51      i16   producerEpoch                         -1
    53      i32   baseSequence                          -1
    57      i32   records
    61            records: varint length, i8 attributes, varlong timestamp delta, varint offset delta,
                  key, value (each varint length or -1, bytes), varint header count, headers (key, value)

An event becomes a record so: key = partition key, value = payload, headers = first `nats-subject`, then the NATS
headers in their order. A NATS header block that is not made of plain `Name: value` lines in UTF-8 is kept whole, as the
one header `nats-header-block`; either way the block comes back byte for byte.

Source: Kafka documentation, 'Message Format'; KIP-98.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import fastcrc

from protocol.errors import FrameError

HEADER_BYTES = 61
MAGIC = 2
CONTROL = 0x20  # the attribute of a batch that holds no events
SUBJECT_HEADER = b"nats-subject"
RAW_BLOCK_HEADER = b"nats-header-block"
STATUS_LINE = b"NATS/1.0\r\n"

_HEADER = struct.Struct(">qiibIhiqqqhii")
_CRC_FROM = 21
_LENGTH_FROM = 12


class Event(NamedTuple):
    """What a gateway took in: subject, partition key, time in ms, the NATS header block (b"" without), payload."""

    subject: bytes
    key: bytes
    timestamp_ms: int
    header_block: bytes
    payload: bytes


class Record(NamedTuple):
    """An event as it stands in a log, at `offset`."""

    offset: int
    timestamp_ms: int
    key: bytes
    subject: bytes
    header_block: bytes
    payload: bytes


class BatchHeader(NamedTuple):
    """The fixed part of a batch; `size_bytes` is the whole batch, `next_offset` the offset behind its last record."""

    base_offset: int
    size_bytes: int
    leader_epoch: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    record_count: int

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1


# -- encoding ---------------------------------------------------------------------------------------------------------


def record_bytes_max(subject: bytes, key: bytes, header_block: bytes, payload: bytes) -> int:
    """An upper bound, in bytes, of what such an event adds to a batch."""
    # Every header line costs its text and at most two 5-byte lengths; a line has at least 3 bytes ("a: ").
    return len(subject) + len(key) + len(payload) + 5 * len(header_block) + 96


class BatchBuilder:
    """A record batch in the making. `size_bytes` is the sum of its events' `record_bytes_max`.

    The reference keeps the events; its twin encodes each when it is added.
    """

    def __init__(self) -> None:
        self.count = self.size_bytes = 0
        self._events: list[Event] = []

    def add(self, subject: bytes, key: bytes, timestamp_ms: int, header_block: bytes, payload: bytes) -> None:
        """One more event, behind those that are there."""
        self._events.append(Event(subject, key, timestamp_ms, header_block, payload))
        self.count += 1
        self.size_bytes += record_bytes_max(subject, key, header_block, payload)

    def seal(self) -> bytes:
        """The batch of all that was added, at least one event, at base offset 0. The builder is empty then."""
        events, self._events, self.count, self.size_bytes = self._events, [], 0, 0
        return encode_batch(events)


def encode_batch(events: Sequence[Event]) -> bytes:
    """The record batch of `events`, in order, at base offset 0. ValueError: there is none."""
    if not events:
        raise ValueError("a record batch holds at least one event")
    base_timestamp_ms = min(event.timestamp_ms for event in events)
    max_timestamp_ms = max(event.timestamp_ms for event in events)
    records = []
    for delta, event in enumerate(events):
        places = delta, event.timestamp_ms - base_timestamp_ms
        records.append(_encode_record(*places, event.key, event.payload, _record_headers(event)))
    return _seal(records, 0, base_timestamp_ms, max_timestamp_ms)


def encode_control(key: bytes, value: bytes, timestamp_ms: int, offsets: int = 1) -> bytes:
    """A control batch of one record: it takes so many offsets and holds no event, and Kafka consumers pass over it."""
    return _seal([_encode_record(0, 0, key, value, [])], CONTROL, timestamp_ms, timestamp_ms, offsets)


def _seal(
    records: Sequence[bytearray], attributes: int, base_timestamp_ms: int, max_timestamp_ms: int, offsets: int = 0
) -> bytes:
    body = bytearray(HEADER_BYTES)
    for record in records:
        put_varint(body, len(record))
        body += record
    _HEADER.pack_into(
        body, 0, 0, len(body) - _LENGTH_FROM, 0, MAGIC, 0, attributes, (offsets or len(records)) - 1,
        base_timestamp_ms, max_timestamp_ms, -1, -1, -1, len(records),
    )  # fmt: skip
    struct.pack_into(">I", body, 17, fastcrc.crc32.iscsi(memoryview(body)[_CRC_FROM:]))
    return bytes(body)


def place_batch(batch: bytes | bytearray | memoryview, base_offset: int, leader_epoch: int) -> bytes:
    """`batch` as it stands in a log: at `base_offset`, written in term `leader_epoch`. Its CRC stays valid."""
    placed = bytearray(batch)
    struct.pack_into(">q", placed, 0, base_offset)
    struct.pack_into(">i", placed, 12, leader_epoch & 0x7FFFFFFF)
    return bytes(placed)


def _encode_record(
    offset_delta: int, timestamp_delta_ms: int, key: bytes, value: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> bytearray:
    record = bytearray(1)  # attributes: none are defined for a record
    put_varint(record, timestamp_delta_ms)
    put_varint(record, offset_delta)
    _put_bytes(record, key)
    _put_bytes(record, value)
    put_varint(record, len(headers))
    for name, value in headers:
        _put_bytes(record, name)
        _put_bytes(record, value)
    return record


def _record_headers(event: Event) -> list[tuple[bytes, bytes]]:
    headers = [(SUBJECT_HEADER, event.subject)]
    if event.header_block:
        plain = _plain_headers(event.header_block)
        headers += [(RAW_BLOCK_HEADER, event.header_block)] if plain is None else plain
    return headers


def _plain_headers(block: bytes) -> list[tuple[bytes, bytes]] | None:
    """The (name, value) pairs of `block` if it can be rebuilt from them byte for byte, else None."""
    if not block.startswith(STATUS_LINE) or not block.endswith(b"\r\n\r\n") or not _is_utf8(block):
        return None
    headers = []
    for line in block[len(STATUS_LINE) : -4].split(b"\r\n"):
        name, separator, value = line.partition(b": ")
        if not separator or not name or b":" in name:
            return None
        headers.append((name, value))
    # A first header of this name would be taken for the marker when it is read back.
    return None if headers[0][0] == RAW_BLOCK_HEADER else headers


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _put_bytes(out: bytearray, data: bytes) -> None:
    put_varint(out, len(data))
    out += data


def put_varint(out: bytearray, value: int) -> None:
    """Zig-zag varint, as Protocol Buffers have it."""
    value = value << 1 if value >= 0 else (-value << 1) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


# -- decoding ---------------------------------------------------------------------------------------------------------


def read_header(data: bytes | memoryview, position: int = 0) -> BatchHeader:
    """The header of the batch at `position` of `data`. FrameError if no batch of ours can begin there."""
    if len(data) - position < HEADER_BYTES:
        raise FrameError(f"record batch: {len(data) - position} bytes, the header alone has {HEADER_BYTES}")
    fields = _HEADER.unpack_from(data, position)
    base_offset, length, epoch, magic, crc, attributes, last_delta, base_ms, max_ms, _, _, _, count = fields
    if magic != MAGIC:
        raise FrameError(f"record batch: magic is {magic}, ours is {MAGIC}")
    size_bytes = length + _LENGTH_FROM
    is_span = attributes == CONTROL and count == 1 and last_delta >= 0
    if size_bytes < HEADER_BYTES or count < 1 or (last_delta != count - 1 and not is_span):
        raise FrameError(f"record batch: length {length}, {count} records, last offset delta {last_delta}")
    return BatchHeader(base_offset, size_bytes, epoch, crc, attributes, last_delta, base_ms, max_ms, count)


def check_batch(data: bytes | memoryview) -> BatchHeader:
    """The header of `data`, which must be exactly one whole batch with a right CRC; else FrameError."""
    header = read_header(data)
    if header.size_bytes != len(data):
        raise FrameError(f"record batch: {len(data)} bytes, its header says {header.size_bytes}")
    crc = fastcrc.crc32.iscsi(memoryview(data)[_CRC_FROM:])
    if crc != header.crc:
        raise FrameError(f"record batch: CRC-32C is {crc:08x}, its header says {header.crc:08x}")
    return header


def split_batches(data: bytes | memoryview) -> Iterator[memoryview]:
    """The batches that stand back to back in `data`."""
    view, position = memoryview(data), 0
    while position < len(view):
        size_bytes = read_header(view, position).size_bytes
        if position + size_bytes > len(view):
            raise FrameError(f"record batch: {len(view) - position} bytes of {size_bytes}")
        yield view[position : position + size_bytes]
        position += size_bytes


def iterate_records(batch: bytes | memoryview) -> Iterator[Record]:
    """The records of one checked batch, in offset order, each read when it is asked for.

    FrameError names the record and the byte where the batch stops to be what our encoder makes: the CRC says that the
    bytes are those of the sender, not that the sender can be trusted to have counted right.
    """
    header = read_header(batch)
    if header.attributes:
        raise FrameError(f"record batch: attributes {header.attributes:#x}; those of events are 0")
    for index, (offset, timestamp_ms, key, value, headers) in enumerate(_read_raw(bytes(batch), header)):
        if not headers or headers[0][0] != SUBJECT_HEADER:
            raise FrameError(f"record batch: record {index} is without its {SUBJECT_HEADER.decode()} header")
        yield Record(offset, timestamp_ms, key, headers[0][1], _header_block(headers[1:]), value)


def read_records(batch: bytes | memoryview) -> list[Record]:
    """All of them, or FrameError."""
    return list(iterate_records(batch))


def read_control(batch: bytes | memoryview) -> tuple[int, int, bytes, bytes]:
    """(offset, time in ms, key, value) of a control batch."""
    header = read_header(batch)
    if header.attributes != CONTROL:
        raise FrameError(f"record batch: attributes {header.attributes:#x}; those of a control batch are {CONTROL:#x}")
    (raw, *others) = _read_raw(bytes(batch), header)
    if others:
        raise FrameError(f"record batch: {1 + len(others)} records; a control batch has one")
    return raw.offset, raw.timestamp_ms, raw.key, raw.value


class _Raw(NamedTuple):
    offset: int
    timestamp_ms: int
    key: bytes
    value: bytes
    headers: list[tuple[bytes, bytes]]


def _read_raw(data: bytes, header: BatchHeader) -> Iterator[_Raw]:
    if header.size_bytes != len(data):
        raise FrameError(f"record batch: {len(data)} bytes, its header says {header.size_bytes}")
    cursor = Cursor(data)
    for cursor.index in range(header.record_count):
        yield _read_record(cursor, header)
    if cursor.position != len(data):
        raise FrameError(f"record batch: {len(data) - cursor.position} bytes behind its last record")


def _read_record(cursor: "Cursor", header: BatchHeader) -> _Raw:
    end = cursor.enter_record()
    timestamp_ms = header.base_timestamp_ms + cursor.number()
    if not -(2**63) <= timestamp_ms < 2**63:
        raise cursor.error("a time of more than 64 bits")
    offset_delta = cursor.number()
    if offset_delta != cursor.index:
        raise cursor.error(f"offset delta {offset_delta}; offsets have no holes")
    key, value = cursor.chunk(), cursor.chunk()
    count = cursor.number()
    if count < 0:
        raise cursor.error(f"{count} headers")
    headers = [(cursor.chunk(), cursor.chunk()) for _ in range(count)]
    if cursor.position != end:
        raise cursor.error(f"{end - cursor.position} bytes behind its last header")
    cursor.end = len(cursor.data)
    return _Raw(header.base_offset + offset_delta, timestamp_ms, key, value, headers)


class Cursor:
    """Where in a batch we are: in record `index`, which ends at `end`. Nothing is read beyond that."""

    def __init__(self, data: bytes, position: int = HEADER_BYTES, end: int | None = None) -> None:
        self.data, self.position, self.end, self.index = data, position, len(data) if end is None else end, 0

    def error(self, what: str) -> FrameError:
        return FrameError(f"record batch: record {self.index}, byte {self.position}: {what}")

    def enter_record(self) -> int:
        """Behind length and attributes; where the record ends."""
        length = self.number()
        if not 1 <= length <= len(self.data) - self.position:
            raise self.error(f"its length is {length}, {len(self.data) - self.position} bytes are left")
        self.end = self.position + length
        self.position += 1
        return self.end

    def number(self) -> int:
        """A zig-zag varint of at most 64 bits."""
        value = shift = 0
        while True:
            if self.position >= self.end:
                raise self.error("it ends within a number")
            byte = self.data[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            if value >= 2**64 or (byte >= 0x80 and shift == 63):
                raise self.error("a number of more than 64 bits")
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7

    def chunk(self) -> bytes:
        """Bytes behind their length; -1 is Kafka's null, and empty to us."""
        length = self.number()
        if not -1 <= length <= self.end - self.position:
            raise self.error(f"{length} bytes, {self.end - self.position} are left of the record")
        if length == -1:
            return b""
        self.position += length
        return self.data[self.position - length : self.position]


def _header_block(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    if not headers:
        return b""
    if headers[0][0] == RAW_BLOCK_HEADER:
        return headers[0][1]
    return STATUS_LINE + _lines(headers) + b"\r\n"


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)
