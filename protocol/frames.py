"""Frames: how every link between nodes cuts its bytes into messages.

    u32 size of what follows   u8 version   u8 kind   u32 size of the head   head (msgpack array)   tail (raw bytes)
    (little endian)

A link is a `Codec`: its name for errors, its version, and the class of message for each kind.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, NamedTuple, TypeAlias

import msgspec

from protocol.errors import UNREADABLE, FrameError
from protocol.limits import LINK_BLOCK_BYTES, LINK_FRAME_BYTES_MAX, LINK_READ_BYTES

_PREFIX = struct.Struct("<IBBI")
_SIZE_BYTES = 4


class Message(msgspec.Struct, array_like=True, frozen=True):
    """A head. A codec gives its subclasses their number on the wire."""

    kind: ClassVar[int]


Parts: TypeAlias = list[bytes | memoryview]
"""A frame to be sent, in the parts that it is made of: what is large is not copied."""


class Frame(NamedTuple):
    message: Message
    tail: bytes


class FrameView(NamedTuple):
    """A frame whose tail may be a view of what was read, which stays as it is."""

    message: Message
    tail: bytes | memoryview


class Codec:
    """The messages of one kind of link, by their number on the wire; a message class belongs to one codec."""

    def __init__(self, name: str, version: int, kinds: Mapping[int, type[Message]]) -> None:
        self.name, self.version, self.kinds = name, version, kinds
        for kind, message_class in kinds.items():
            message_class.kind = kind
        self.decoders = {kind: msgspec.msgpack.Decoder(message_class) for kind, message_class in kinds.items()}

    def pack(self, message: Message, *tail: bytes | memoryview) -> bytes:
        """The frame of `message`; its tail may come in parts."""
        return b"".join(self.pack_parts(message, *tail))

    def pack_parts(self, message: Message, *tail: bytes | memoryview) -> Parts:
        """The same, in parts."""
        head = msgspec.msgpack.encode(message)
        size = _PREFIX.size - _SIZE_BYTES + len(head) + sum(map(len, tail))
        return [_PREFIX.pack(size, self.version, message.kind, len(head)) + head, *tail]


class FrameReader:
    """Bytes in any chunks in, frames out. FrameError ends the connection.

    What a socket has is read into `room`, and `took` says what that completes. Small frames share one block, and their
    tails are copies. What is larger gets a block of its own, and its tail is a view of that: a megabyte of history is
    copied once, by the kernel.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._shared = self._block = memoryview(bytearray(LINK_READ_BYTES))
        self._held_bytes = 0  # at the start of the block
        self._due_bytes = _PREFIX.size  # nothing can be made of fewer

    def room(self) -> memoryview:
        """Where the next bytes belong; there is always some."""
        return self._block[self._held_bytes :]

    def took(self, count: int) -> Iterable[FrameView]:
        """Every frame that the `count` bytes complete which stand in `room` now."""
        self._held_bytes += count
        if self._held_bytes < self._due_bytes and self._held_bytes < len(self._block):
            return ()
        return self._whole_frames()

    def _whole_frames(self) -> Iterator[FrameView]:
        position = 0
        try:
            while (end := self._frame_end(position)) is not None:
                yield self._read(position, end)
                position = end
        finally:
            self._keep_from(position)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Every frame that `data` completes, for whoever is given bytes."""
        rest = memoryview(data)
        while rest:
            room = self.room()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            rest = rest[count:]
            for frame in self.took(count):
                yield Frame(frame.message, bytes(frame.tail))

    def _keep_from(self, position: int) -> None:
        """Puts what is not taken yet to where the rest of its frame has room."""
        if position == self._held_bytes:  # mostly
            self._block, self._held_bytes = self._shared, 0
            return
        rest = self._block[position : self._held_bytes]
        block = self._block_for_rest(len(rest))
        if position or block is not self._block:
            block[: len(rest)] = rest
        self._block, self._held_bytes = block, len(rest)

    def _block_for_rest(self, held_bytes: int) -> memoryview:
        if self._due_bytes <= len(self._shared):
            return self._shared
        if self._block is not self._shared and held_bytes < len(self._block):
            return self._block
        # A size is quickly claimed: beyond a common one, no more than twice what has come.
        return memoryview(bytearray(min(self._due_bytes, max(LINK_BLOCK_BYTES, 2 * held_bytes))))

    def _frame_end(self, position: int) -> int | None:
        held_bytes = self._held_bytes - position
        if held_bytes < _PREFIX.size:
            self._due_bytes = _PREFIX.size
            return None
        size, version, _, _ = _PREFIX.unpack_from(self._block, position)
        if version != self._codec.version:
            raise FrameError(f"{self._codec.name}: version {version}, ours is {self._codec.version}")
        if size > LINK_FRAME_BYTES_MAX:
            raise FrameError(f"{self._codec.name}: a frame of {size} bytes, at most {LINK_FRAME_BYTES_MAX} are allowed")
        self._due_bytes = _SIZE_BYTES + int(size)
        return position + self._due_bytes if self._due_bytes <= held_bytes else None

    def _read(self, position: int, end: int) -> FrameView:
        _, _, kind, head_bytes = _PREFIX.unpack_from(self._block, position)
        decoder = self._codec.decoders.get(kind)
        head = position + _PREFIX.size
        tail = head + head_bytes
        if decoder is None or tail > end:
            raise FrameError(f"{self._codec.name}: kind {kind} with a head of {head_bytes} bytes")
        try:
            message = decoder.decode(self._block[head:tail])
        except UNREADABLE as error:
            raise FrameError(f"{self._codec.name}: {self._codec.kinds[kind].__name__}: {error}") from error
        rest = self._block[tail:end]
        return FrameView(message, bytes(rest) if self._block is self._shared else rest)
