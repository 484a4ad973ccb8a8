"""What travels around a record batch on its way to the log: who sends it, which sequences it spans, what it expects.

A batch is immutable, so everything that may change between two attempts to send it, or that readers need not see,
stands outside, in its envelope. An envelope and its batch stay together through the sink link and the Raft command.

    u32 size of the envelope   u32 size of the batch   envelope (msgpack array, its version first)   batch
    (little endian)

A *sequence* numbers the events of one producer and partition, from 1, without holes. A batch may hold fewer records
than its span of sequences: what was found to be a duplicate is taken out and its sequence stays spent.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from protocol.errors import UNREADABLE, FrameError

ENVELOPE_VERSION = 1
_SIZES = struct.Struct("<II")


class Envelope(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """`stream` and `incarnation` name the log, `revision` the configuration that the gateway routed by.

    `run` begins an account at this batch, and `mark` has the sinks remember the chain behind it (`protocol.coverage`).
    `ids` are the batch's deduplication ids as (record index, id). `expect_last_sequence` (JetStream's stream sequence:
    offset + 1) and `expect_last_id` make the batch conditional; such a batch holds one record.
    """

    version: int = ENVELOPE_VERSION
    producer_id: int
    epoch: int
    stream: str
    incarnation: bytes
    partition: int
    first_sequence: int
    sequence_count: int
    revision: int
    ids: tuple[tuple[int, bytes], ...] = ()
    expect_last_sequence: int | None = None
    expect_last_id: bytes | None = None
    run: bytes = b""
    mark: bool = False

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + self.sequence_count - 1


class Parcel(NamedTuple):
    """An envelope with its batch; `batch_position` is where the batch begins in the bytes they were read from."""

    envelope: Envelope
    batch: memoryview
    batch_position: int


def pack(envelope: Envelope, batch: bytes | memoryview) -> bytes:
    """The bytes of a parcel."""
    head = msgspec.msgpack.encode(envelope)
    return b"".join((_SIZES.pack(len(head), len(batch)), head, batch))


def batch_of(parcel: bytes) -> memoryview:
    """The batch of a parcel that is whole and stands alone."""
    return memoryview(parcel)[_SIZES.size + _SIZES.unpack_from(parcel)[0] :]


_decoder = msgspec.msgpack.Decoder(Envelope)


def unpack(data: bytes | memoryview, position: int = 0) -> Iterator[Parcel]:
    """The parcels that stand back to back in `data` from `position` on. FrameError for anything else."""
    view = memoryview(data)
    while position < len(view):
        if position + _SIZES.size > len(view):
            raise FrameError("append envelope: it ends within its sizes")
        head_bytes, batch_bytes = _SIZES.unpack_from(view, position)
        head = position + _SIZES.size
        batch = head + head_bytes
        position = batch + batch_bytes
        if position > len(view):
            raise FrameError(f"append envelope: {len(view) - head} bytes of {head_bytes + batch_bytes}")
        try:
            envelope = _decoder.decode(view[head:batch])
        except UNREADABLE as error:
            raise FrameError(f"append envelope: {error}") from error
        if envelope.version != ENVELOPE_VERSION:
            raise FrameError(f"append envelope: version {envelope.version}, ours is {ENVELOPE_VERSION}")
        yield Parcel(envelope, view[batch:position], batch)
