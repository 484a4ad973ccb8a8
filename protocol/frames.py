"""Frames: how every link between nodes cuts its bytes into messages.

    u32 size of what follows   u8 version   u8 kind   u32 size of the head   head (msgpack array)   tail (raw bytes)
    (little endian)

A link is a `Codec`: its name for errors, its version, and the class of message for each kind.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import msgspec

from protocol.errors import UNREADABLE, FrameError
from protocol.limits import LINK_FRAME_BYTES_MAX

_PREFIX = struct.Struct("<IBBI")
_SIZE_BYTES = 4


class Message(msgspec.Struct, array_like=True, frozen=True):
    """A head. A codec gives its subclasses their number on the wire."""

    kind: ClassVar[int]


class Frame(NamedTuple):
    message: Message
    tail: bytes


class Codec:
    """The messages of one kind of link, by their number on the wire; a message class belongs to one codec."""

    def __init__(self, name: str, version: int, kinds: Mapping[int, type[Message]]) -> None:
        self.name, self.version, self.kinds = name, version, kinds
        for kind, message_class in kinds.items():
            message_class.kind = kind
        self.decoders = {kind: msgspec.msgpack.Decoder(message_class) for kind, message_class in kinds.items()}

    def pack(self, message: Message, *tail: bytes | memoryview) -> bytes:
        """The frame of `message`; its tail may come in parts."""
        head = msgspec.msgpack.encode(message)
        size = _PREFIX.size - _SIZE_BYTES + len(head) + sum(map(len, tail))
        return b"".join((_PREFIX.pack(size, self.version, message.kind, len(head)), head, *tail))


class FrameReader:
    """Bytes in any chunks in, frames out. FrameError ends the connection."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
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
        if version != self._codec.version:
            raise FrameError(f"{self._codec.name}: version {version}, ours is {self._codec.version}")
        if size > LINK_FRAME_BYTES_MAX:
            raise FrameError(f"{self._codec.name}: a frame of {size} bytes, at most {LINK_FRAME_BYTES_MAX} are allowed")
        end = position + _SIZE_BYTES + int(size)
        return end if end <= len(self._buffer) else None

    def _read(self, position: int, end: int) -> Frame:
        _, _, kind, head_bytes = _PREFIX.unpack_from(self._buffer, position)
        decoder = self._codec.decoders.get(kind)
        head = position + _PREFIX.size
        if decoder is None or head + head_bytes > end:
            raise FrameError(f"{self._codec.name}: kind {kind} with a head of {head_bytes} bytes")
        with memoryview(self._buffer) as view:  # a slice of it would be copied twice
            parts = bytes(view[head : head + head_bytes]), bytes(view[head + head_bytes : end])
        try:
            message = decoder.decode(parts[0])
        except UNREADABLE as error:
            raise FrameError(f"{self._codec.name}: {self._codec.kinds[kind].__name__}: {error}") from error
        return Frame(message, parts[1])
