"""The sink link: what a gateway and a sink say to each other over one connection.

    u32 size of what follows   u8 version   u8 kind   u32 size of the head   head (msgpack array)   tail (raw bytes)
    (little endian)

The gateway dials, says `Hello`, and the sink answers `Welcome` or `Failed` and closes. From then on both directions are
pipelined; what answers what is told by names in the frames (producer, partition and first sequence for appends, a
request number for reads), never by order alone.

    gateway → sink    Hello · Open · Append + parcel · Fetch · Offsets · Describe · Cancel · Ping
    sink → gateway    Welcome · Streams (whenever they change) · Opened · Appended · Refused · Fetched + batches ·
                      OffsetsAre · Described · Failed · Pong
"""

import struct
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import msgspec

from protocol.errors import UNREADABLE, FrameError
from protocol.limits import LINK_FRAME_BYTES_MAX
from protocol.streams import StreamState

LINK_VERSION = 1
_PREFIX = struct.Struct("<IBBI")
_SIZE_BYTES = 4


class Message(msgspec.Struct, array_like=True, frozen=True):
    """A head. Its subclasses stand in `KINDS` by the number on the wire."""

    kind: ClassVar[int]


class Hello(Message, frozen=True):
    mesh: str
    zone: str
    node: str


class Welcome(Message, frozen=True):
    """`mesh`, `zone`, `node` of the sink; `leads` is whether it takes appends; `disk` identifies its data folder."""

    mesh: str
    zone: str
    node: str
    leads: bool
    disk: str


class Streams(Message, frozen=True):
    """The committed streams of the zone, by which gateways route."""

    revision: int
    streams: tuple[StreamState, ...]


class Open(Message, frozen=True):
    """Asks for the producer of this gateway worker; the same `nonce` gets the same epoch again.

    A gateway opens every link with a new nonce. So a copy of a batch that is still on its way from an older link is
    fenced, and `Opened` says for good what of the older links has arrived.
    """

    node: str
    worker: int
    nonce: bytes


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """How a batch ended: at `base_offset`, or refused for good (`reason`, `found`: see `Refused`).

    `crc` is the batch's own: it tells the batch from another one that was sent under the same sequence.
    """

    first_sequence: int
    crc: int
    base_offset: int
    reason: str = ""
    found: str = ""


class Reached(msgspec.Struct, array_like=True, frozen=True):
    """How far a producer has come in one partition; `answers` are the latest ones, oldest first."""

    stream: str
    incarnation: bytes
    partition: int
    last_sequence: int
    answers: tuple[Answer, ...]


class Opened(Message, frozen=True):
    """Everything of this producer that is not among `last` is not in the log, and never will be under its old epoch."""

    producer_id: int
    epoch: int
    nonce: bytes
    last: tuple[Reached, ...]


class Append(Message, frozen=True):
    """The tail is a parcel (`protocol.envelope`)."""


class Appended(Message, frozen=True):
    """Committed and fsynced: record i of the batch has offset `base_offset + i`."""

    producer_id: int
    epoch: int
    stream: str
    incarnation: bytes
    partition: int
    first_sequence: int
    base_offset: int


class Refused(Message, frozen=True):
    """Not in the log. `reason` is one of `REASONS`.

    `DUPLICATE_IDS`: `known` names the records, as (index, offset of the first). The span is not spent: the rest is sent
    again. `WRONG_LAST_SEQUENCE`, `WRONG_LAST_ID`: final, the span is spent; `found` is what the log has instead.
    `STORAGE_FULL`: nothing was tried; the batch may be given up or sent again. All others: see `REASONS`.
    """

    producer_id: int
    epoch: int
    stream: str
    incarnation: bytes
    partition: int
    first_sequence: int
    reason: str
    found: str = ""
    known: tuple[tuple[int, int], ...] = ()


REASONS = {
    "DUPLICATE_IDS": "the window knows ids of this batch",
    "WRONG_LAST_SEQUENCE": "an expectation failed",
    "WRONG_LAST_ID": "an expectation failed",
    "STORAGE_FULL": "the sink's disk is below its reserve",
    "OUT_OF_ORDER": "a sequence before this one is missing: go back to it",
    "FENCED": "a newer epoch of this producer exists: this one is over",
    "STALE_CONFIG": "the stream has changed since the revision that the gateway routed by",
    "UNKNOWN_STREAM": "no such stream, incarnation or partition",
    "NOT_LEADER": "another sink leads this group",
}


class Fetch(Message, frozen=True):
    """Whole batches from the one that holds `offset` on; at the high watermark the sink waits at most `wait_ms`."""

    request: int
    stream: str
    partition: int
    offset: int
    bytes_max: int
    wait_ms: int


class Fetched(Message, frozen=True):
    """The tail is the batches back to back; empty at the high watermark."""

    request: int
    start_offset: int
    high_watermark: int


class Offsets(Message, frozen=True):
    """Asks for an offset of each of `partitions`; `at` is one of earliest, latest, timestamp, until.

    `timestamp`: of the first record at or after `timestamp_ms`, or none. `until`: behind the last record before it.
    """

    request: int
    stream: str
    partitions: tuple[int, ...]
    at: str
    timestamp_ms: int = 0


class OffsetsAre(Message, frozen=True):
    """(partition, offset, timestamp of the record there in ms or -1); offset -1 where there is no such record."""

    request: int
    offsets: tuple[tuple[int, int, int], ...]


class Describe(Message, frozen=True):
    """Asks for every stream with its partitions, or for one."""

    request: int
    stream: str = ""


class PartitionDescription(msgspec.Struct, array_like=True, frozen=True):
    partition: int
    start_offset: int
    high_watermark: int
    size_bytes: int


class Described(Message, frozen=True):
    request: int
    term: int
    leader: str
    streams: tuple[tuple[StreamState, tuple[PartitionDescription, ...]], ...]


class Failed(Message, frozen=True):
    """A request that cannot be served; `name` as in `protocol.errors.LOG_ERRORS`. Request 0: the connection itself."""

    request: int
    name: str
    message: str
    details: dict[str, int | str] = {}


class Cancel(Message, frozen=True):
    """Nobody waits for this request any more."""

    request: int


class Ping(Message, frozen=True):
    pass


class Pong(Message, frozen=True):
    pass


KINDS: dict[int, type[Message]] = {
    1: Hello,
    2: Welcome,
    3: Streams,
    4: Open,
    5: Opened,
    6: Append,
    7: Appended,
    8: Refused,
    9: Fetch,
    10: Fetched,
    11: Offsets,
    12: OffsetsAre,
    13: Describe,
    14: Described,
    15: Failed,
    16: Cancel,
    17: Ping,
    18: Pong,
}
for _kind, _class in KINDS.items():
    _class.kind = _kind
_DECODERS = {kind: msgspec.msgpack.Decoder(message_class) for kind, message_class in KINDS.items()}


class Frame(NamedTuple):
    message: Message
    tail: bytes


def pack(message: Message, tail: bytes | memoryview = b"") -> bytes:
    """The frame of `message`."""
    head = msgspec.msgpack.encode(message)
    size = _PREFIX.size - _SIZE_BYTES + len(head) + len(tail)
    return b"".join((_PREFIX.pack(size, LINK_VERSION, message.kind, len(head)), head, tail))


class FrameReader:
    """Bytes in any chunks in, frames out. FrameError ends the connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Every frame that `data` completes."""
        self._buffer += data
        position = 0
        try:
            while (end := self._frame_end(position)) is not None:
                yield self._read(position, end)
                position = end
        finally:
            del self._buffer[:position]

    def _frame_end(self, position: int) -> int | None:
        if len(self._buffer) - position < _PREFIX.size:
            return None
        size, version, _, _ = _PREFIX.unpack_from(self._buffer, position)
        if version != LINK_VERSION:
            raise FrameError(f"sink link: version {version}, ours is {LINK_VERSION}")
        if size > LINK_FRAME_BYTES_MAX:
            raise FrameError(f"sink link: a frame of {size} bytes, at most {LINK_FRAME_BYTES_MAX} are allowed")
        end = position + _SIZE_BYTES + int(size)
        return end if end <= len(self._buffer) else None

    def _read(self, position: int, end: int) -> Frame:
        _, _, kind, head_bytes = _PREFIX.unpack_from(self._buffer, position)
        decoder = _DECODERS.get(kind)
        head = position + _PREFIX.size
        if decoder is None or head + head_bytes > end:
            raise FrameError(f"sink link: kind {kind} with a head of {head_bytes} bytes")
        try:
            message = decoder.decode(bytes(self._buffer[head : head + head_bytes]))
        except UNREADABLE as error:
            raise FrameError(f"sink link: {KINDS[kind].__name__}: {error}") from error
        return Frame(message, bytes(self._buffer[head + head_bytes : end]))
