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
    """Bytes in any chunks in, frames out. FrameError ends the connection.

    Chunks are put together once, when the frame that they are part of is complete: frames may have a megabyte.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._chunks: list[bytes] = []
        self._held_bytes = 0
        self._due_bytes = _PREFIX.size  # nothing can be made of fewer

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Every frame that `data` completes."""
        self._chunks.append(data)
        self._held_bytes += len(data)
        if self._held_bytes < self._due_bytes:
            return
        held = data if len(self._chunks) == 1 else b"".join(self._chunks)
        position = 0
        try:
            while (end := self._frame_end(held, position)) is not None:
                yield self._read(held, position, end)
                position = end
        finally:
            rest = held[position:]
            self._chunks, self._held_bytes = [rest] if rest else [], len(rest)

    def _frame_end(self, held: bytes, position: int) -> int | None:
        if len(held) - position < _PREFIX.size:
            self._due_bytes = _PREFIX.size
            return None
        size, version, _, _ = _PREFIX.unpack_from(held, position)
        if version != self._codec.version:
            raise FrameError(f"{self._codec.name}: version {version}, ours is {self._codec.version}")
        if size > LINK_FRAME_BYTES_MAX:
            raise FrameError(f"{self._codec.name}: a frame of {size} bytes, at most {LINK_FRAME_BYTES_MAX} are allowed")
        self._due_bytes = _SIZE_BYTES + int(size)
        end = position + self._due_bytes
        return end if end <= len(held) else None

    def _read(self, held: bytes, position: int, end: int) -> Frame:
        _, _, kind, head_bytes = _PREFIX.unpack_from(held, position)
        decoder = self._codec.decoders.get(kind)
        head = position + _PREFIX.size
        tail = head + head_bytes
        if decoder is None or tail > end:
            raise FrameError(f"{self._codec.name}: kind {kind} with a head of {head_bytes} bytes")
        try:
            message = decoder.decode(memoryview(held)[head:tail])
        except UNREADABLE as error:
            raise FrameError(f"{self._codec.name}: {self._codec.kinds[kind].__name__}: {error}") from error
        return Frame(message, held[tail:end])
