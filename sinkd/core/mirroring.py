"""How a mirror follows its origin: both ends of a subscription, without I/O.

    receiving zone's leader                                        any sink of the origin
    Pull: from the mirror's end ── Subscribe (digest of its last batch) ──► refusal, or a Feed
          checks, appends        ◄── Mirrored (batches) ──────────────────  while the window has room
          committed and fsynced  ── Durable ─────────────────────────────►  room again; retention may let go

A `Pull` takes batches only where they join on: what is missing at the origin by then is a gap record in their place. A
frame that is wrong in any way leaves the mirror as it was, and ends the link; its reason is counted.

Batches go over the link in columns (`protocol.columns`), compressed; what the mirror takes are the origin's own bytes.
What cannot be taken apart is only compressed, and what does not become smaller passes as it is.

A digest is SHA-256 over a batch from its attributes on: the bytes that never change.
"""

from collections import deque
from typing import Final, NamedTuple

import zstandard

from protocol.engine import BEST
from protocol.errors import FrameError, MeshError
from protocol.gaps import TRIMMED, leaf_digest, missing, read_gap
from protocol.limits import BATCH_BYTES_MAX, MIRROR_FRAME_BYTES
from protocol.link import Mirrored
from protocol.records import CONTROL, check_batch, read_header, split_batches

_LEVEL: Final = 3
_SAMPLES, _SAMPLE_BYTES, _SAMPLE_LEVEL = 4, 16 * 1024, 1
_WORTH: Final = 0.95  # what becomes no smaller than this part is not worth the time of both ends
RAW_BYTES_MAX: Final = max(BATCH_BYTES_MAX, MIRROR_FRAME_BYTES) + 64 * 1024


class BadFrame(FrameError):
    """A frame of an origin that must not reach the mirror; `reason` is one of REASONS."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class SubscriptionRefused(MeshError):
    """`name` is one of `protocol.link.SUBSCRIPTION_REFUSALS`."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(what)
        self.name = name


REASONS: Final = {
    "incarnation": "it is of another incarnation than what was subscribed to",
    "inflated": "it cannot be decompressed, or to another size than it says",
    "columns": "its columns cannot be put together, or to another size than it says",
    "size": "it is larger than any frame may be",
    "crc": "a batch is no batch, or its bytes are not those that its sender had",
    "offset": "a batch does not stand where it is due",
    "unreadable": "it is no frame of the link",
}


class Packed(NamedTuple):
    """What goes over the link, and what `Mirrored` says of it."""

    tail: bytes | memoryview
    compressed: bool = False
    columns: bool = False


def pack_batches(batches: bytes | memoryview, *, columns: bool) -> Packed:
    """In columns, if the other end knows them, and compressed; what does not become smaller passes as it is.

    That costs most to find out, so of much a few samples are looked at first.
    """
    if len(batches) > 2 * _SAMPLES * _SAMPLE_BYTES:
        view, step = memoryview(batches), len(batches) // _SAMPLES
        sample = b"".join(view[at : at + _SAMPLE_BYTES] for at in range(0, step * _SAMPLES, step))
        if len(zstandard.ZstdCompressor(level=_SAMPLE_LEVEL).compress(sample)) > _WORTH * len(sample):
            return Packed(batches)
    apart = BEST.take_apart(batches) if columns else None
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(batches if apart is None else apart)
    return Packed(packed, compressed=True, columns=apart is not None) if len(packed) < len(batches) else Packed(batches)


def unpack_batches(message: Mirrored, tail: bytes | memoryview) -> bytes | memoryview:
    """The batches of a frame. BadFrame: it does not hold what it says."""
    if not 0 <= message.raw_bytes <= RAW_BYTES_MAX:
        raise BadFrame("size", f"{message.raw_bytes} bytes of batches, at most {RAW_BYTES_MAX} are allowed")
    data = _inflate(message, tail) if message.compressed else tail
    if message.columns:
        try:
            return BEST.put_together(data, message.raw_bytes)
        except FrameError as error:
            raise BadFrame("columns", str(error)) from error
    if len(data) != message.raw_bytes:
        raise BadFrame("inflated", f"{len(data)} bytes of batches, the frame says {message.raw_bytes}")
    return data


def _inflate(message: Mirrored, tail: bytes | memoryview) -> bytes:
    """What the frame says of itself comes first: what would be too much is not inflated."""
    try:
        is_bounded = 0 <= zstandard.frame_content_size(tail) <= message.raw_bytes
        return zstandard.ZstdDecompressor().decompress(tail) if is_bounded else b""
    except zstandard.ZstdError as error:
        raise BadFrame("inflated", f"a frame that is not zstd: {error}") from error


class Pull:
    """The receiving end for one partition; `next_offset` is what it takes next, `origin` the zone it comes from.

    `last_crc` is the CRC of the batch before that, 0 for none.
    """

    def __init__(self, origin: str, incarnation: bytes, next_offset: int, last_crc: int = 0) -> None:
        self._origin, self._incarnation = origin, incarnation
        self.next_offset, self.last_crc = next_offset, last_crc
        self.gaps = 0

    def take(self, message: Mirrored, tail: bytes | memoryview) -> tuple[bytes | memoryview, int]:
        """(what is to be appended, offset behind it). BadFrame: nothing of it is taken."""
        if message.incarnation != self._incarnation:
            raise BadFrame("incarnation", "batches of another incarnation than was subscribed to")
        data = self._cut(unpack_batches(message, tail))
        begins_at, end, crc = self._checked(data, message)
        gaps: list[bytes] = []
        if begins_at > self.next_offset:
            if begins_at > message.start_offset and message.start_offset <= self.next_offset:
                raise BadFrame("offset", f"a batch at offset {begins_at}, {self.next_offset} is due")
            gaps = missing(self.next_offset, begins_at, TRIMMED, self._origin)
        if gaps and not data:
            crc = read_header(gaps[-1]).crc
        self.next_offset, self.last_crc = end, crc
        self.gaps += len(gaps)
        return (b"".join((*gaps, data)) if gaps else data), end

    def _cut(self, data: bytes | memoryview) -> bytes | memoryview:
        """Of a gap that begins in front of what is due, the rest: a zone that completes another may lack more."""
        try:
            header = read_header(data) if data else None
            if header is None or header.attributes != CONTROL:
                return data
            if not header.base_offset < self.next_offset < header.next_offset:
                return data
            first = memoryview(data)[: header.size_bytes]
            check_batch(first)
            _, gap = read_gap(first)
        except FrameError as error:
            raise BadFrame("crc", str(error)) from error
        rest = missing(self.next_offset, header.next_offset, gap.reason, gap.source)
        return b"".join((*rest, memoryview(data)[header.size_bytes :]))

    def _checked(self, data: bytes | memoryview, message: Mirrored) -> tuple[int, int, int]:
        """Where the batches begin, the offset behind the last and its CRC; without batches the origin's start."""
        begins_at = end = max(message.start_offset, self.next_offset)
        crc = self.last_crc
        is_first = True
        try:
            for batch in split_batches(data):
                header = check_batch(batch)
                if is_first:
                    begins_at = end = header.base_offset
                    is_first = False
                if header.base_offset != end or header.base_offset < self.next_offset:
                    raise BadFrame("offset", f"a batch at offset {header.base_offset}, {self.next_offset} is due")
                end, crc = header.next_offset, header.crc
        except BadFrame:
            raise
        except FrameError as error:
            raise BadFrame("crc", str(error)) from error
        return begins_at, end, crc


class Feed:
    """The origin's end of a subscription: `offset` is sent next; `durable` is what the mirror holds for good."""

    def __init__(self, zone: str, offset: int, window_bytes: int) -> None:
        self.zone, self.offset, self.durable = zone, offset, offset
        self._window_bytes = window_bytes
        self._under_way: deque[tuple[int, int]] = deque()  # (offset behind it, bytes)
        self.under_way_bytes = 0

    @property
    def has_room(self) -> bool:
        """One frame may go beyond the window, or a large batch would never pass."""
        return self.under_way_bytes < self._window_bytes

    def sent(self, next_offset: int, size_bytes: int) -> None:
        self.offset = next_offset
        self._under_way.append((next_offset, size_bytes))
        self.under_way_bytes += size_bytes

    def durable_through(self, offset: int) -> None:
        """FrameError: it was never sent."""
        if offset > self.offset:
            raise FrameError(f"durable through {offset}, sent was up to {self.offset}")
        self.durable = max(self.durable, offset)
        while self._under_way and self._under_way[0][0] <= offset:
            self.under_way_bytes -= self._under_way.popleft()[1]


def check_end(offset: int, high_watermark: int, *, leads: bool) -> None:
    """SubscriptionRefused: a mirror that ends at `offset` goes beyond the log, as this sink has it.

    Only the leader can be sure that it diverges: others may not have come so far.
    """
    if offset <= high_watermark:
        return
    what = f"the mirror ends at offset {offset}, the log at {high_watermark}"
    raise SubscriptionRefused("DIVERGED" if leads else "NOT_CAUGHT_UP", what)


def check_last(last_offset: int, digest: bytes, batch: bytes | memoryview) -> None:
    """SubscriptionRefused: the log holds another batch where the mirror's last one stands."""
    here = leaf_digest(read_header(batch), batch)
    if here != digest:
        what = f"the batch at offset {last_offset} is {here.hex()} here, {digest.hex()} in the mirror"
        raise SubscriptionRefused("DIVERGED", what)


class TokenBucket:
    """Bytes per second, a tenth of a second's worth at a time; 0 is no limit. Times are seconds of any clock."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = 0.0

    def change(self, bytes_per_second: int) -> None:
        """From now on; nothing is owed for what has left."""
        self.bytes_per_second, self._free_at = bytes_per_second, 0.0

    def wait_s(self, size_bytes: int, now: float) -> float:
        """How long to wait before `size_bytes` may leave; they are counted. What waits when the rate changes may go."""
        if not self.bytes_per_second:
            return 0.0
        begin = max(self._free_at, now - 0.1)
        self._free_at = begin + size_bytes / self.bytes_per_second
        return max(0.0, begin - now)
