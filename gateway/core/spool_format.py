"""The bytes of a spool file: a head that says whose it is, then records; docs/wire-formats.md has the layout.

A record's fixed part has a CRC of its own. So of a record whose payload is damaged it is still known what it was and
where it belongs, and what stands behind it is found. SENT and GONE have no payload.

Files are written at their end alone, and a process that is killed leaves a beginning of what it wrote: a file that ends
within a record, or has nothing but zeros from there on (as a loss of power leaves them), is *torn*, anything else that
cannot be read is *damage*.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import fastcrc
import msgspec

from protocol.errors import FrameError
from protocol.gaps import Gap
from protocol.records import Event
from protocol.streams import StreamState

MAGIC = b"MESHSPOL"
VERSION = 1
_PREFIX = struct.Struct("<8sII")  # magic, version, size of the head in bytes
_CRC = struct.Struct("<I")
_RECORD = struct.Struct("<IIIHHIIQQQ")
_crc = fastcrc.crc32.iscsi


class Kind(IntEnum):
    PARTITION = 1
    EVENT = 2
    GAP = 3
    SENT = 4
    GONE = 5


class Owner(msgspec.Struct, array_like=True, frozen=True):
    """Whose file it is, as the sinks know its producer."""

    mesh: str
    zone: str
    node: str
    worker: int


class Head(msgspec.Struct, array_like=True, frozen=True):
    """`is_whole`: the file begins with all that was held then, and no file before it counts any more."""

    owner: Owner
    is_whole: bool


class Record(NamedTuple):
    """`partition` is how its file calls the partition. `payload` is None where it is damaged.

    PARTITION: what it is called from here on. EVENT, GAP: the entry `number`; it was entry `sequence` of the partition
    `mark` before, unless that is 0. SENT: entries `number` to `last_number` as one batch, from `sequence` on, with the
    CRC `mark`. GONE: the same entries need not be held any more.
    """

    kind: Kind
    partition: int
    number: int
    last_number: int
    sequence: int
    mark: int
    payload: bytes | None


def pack_head(head: Head) -> bytes:
    """What a file begins with."""
    body = msgspec.msgpack.encode(head)
    data = _PREFIX.pack(MAGIC, VERSION, len(body)) + body
    return data + _CRC.pack(_crc(data))


def pack(
    kind: Kind,
    partition: int,
    payload: bytes = b"",
    *,
    number: int = 0,
    last_number: int = 0,
    sequence: int = 0,
    mark: int = 0,
) -> bytes:
    """The bytes of a record."""
    numbers = number, last_number, sequence
    head = _RECORD.pack(0, _crc(payload), len(payload), kind, 0, partition, mark, *numbers)[_CRC.size :]
    return b"".join((_CRC.pack(_crc(head)), head, payload))


def pack_partition(reference: int, stream: StreamState, number: int) -> bytes:
    return pack(Kind.PARTITION, reference, msgspec.msgpack.encode((stream, number)))


def pack_entry(partition: int, number: int, content: Event | Gap, *, before: tuple[int, int] = (0, 0)) -> bytes:
    """`before`: the partition and number that it had."""
    kind, (mark, sequence) = Kind.GAP if isinstance(content, Gap) else Kind.EVENT, before
    payload = msgspec.msgpack.encode(content)
    return pack(kind, partition, payload, number=number, last_number=number, sequence=sequence, mark=mark)


_head_decoder = msgspec.msgpack.Decoder(Head)
_partition_decoder = msgspec.msgpack.Decoder(tuple[StreamState, int])
_event_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes, int, bytes, bytes])
_gap_decoder = msgspec.msgpack.Decoder(Gap)


def read_partition(payload: bytes) -> tuple[StreamState, int]:
    return _partition_decoder.decode(payload)


def read_event(payload: bytes) -> Event:
    return Event(*_event_decoder.decode(payload))


def read_gap(payload: bytes) -> Gap:
    return _gap_decoder.decode(payload)


class FileReader:
    """Reads one file; `position` is up to where it could be read, `problem` why it ends there, if it does.

    With a problem `is_torn` tells whether a process that was killed may have left it like that.
    """

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.position = 0
        self.problem = ""
        self.is_torn = False

    def head(self) -> Head | None:
        """Whose it is and what it begins with; None with a problem. FrameError: a later version has written it."""
        data = self._data
        if len(data) < _PREFIX.size:
            self._tear("it ends within its head")
            return None
        magic, version, size = _PREFIX.unpack_from(data)
        end = _PREFIX.size + size
        if magic != MAGIC:
            self._stop("it does not begin as a spool file")
            return None
        if version != VERSION:
            raise FrameError(f"spool file of version {version}, ours is {VERSION}")
        if end + _CRC.size > len(data):
            self._tear("it ends within its head")
            return None
        if _crc(data[:end]) != _CRC.unpack_from(data, end)[0]:
            self._stop("the CRC-32C of its head is wrong")
            return None
        self.position = end + _CRC.size
        return _head_decoder.decode(data[_PREFIX.size : end])

    def records(self) -> Iterator[Record]:
        """Behind `head`: what can be read."""
        while self.position < len(self._data):
            record = self._next()
            if record is None:
                return
            yield record

    def _next(self) -> Record | None:
        data, position = self._data, self.position
        payload = position + _RECORD.size
        if payload > len(data):
            self._tear("it ends within a record")
            return None
        crc, payload_crc, size, kind, _, partition, mark, *numbers = _RECORD.unpack_from(data, position)
        if _crc(data[position + _CRC.size : payload]) != crc or kind not in Kind.__members__.values():
            self._stop("the CRC-32C of a record is wrong")
            return None
        if payload + size > len(data):
            self._tear("it ends within a record")
            return None
        self.position = payload + size
        body = bytes(data[payload : payload + size])
        number, last_number, sequence = numbers
        whole = body if _crc(body) == payload_crc else None
        return Record(Kind(kind), partition, number, last_number, sequence, mark, whole)

    def _tear(self, problem: str) -> None:
        self.problem, self.is_torn = problem, True

    def _stop(self, problem: str) -> None:
        """Zeros up to the end are what a file has that grew, and whose contents were not written."""
        self.problem = problem
        self.is_torn = not any(self._data[self.position :])
