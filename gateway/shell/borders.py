"""What goes over a link between zones: compressed, and no more of it in a second than is allowed.

    lines ──────────────────────────────┐
    messages ─► wait, while a rate holds ─► zstd, flushed with every piece ─► transport
                them back

What waits counts as unsent of the link's sessions, so that above the bound of what may be pending messages for the
other zone are dropped and counted, and nobody else is slowed. Lines do not wait, but are counted: what is said of
interest, and the answers to PING.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import zstandard

from gateway.core.reports import WireBytes
from protocol.errors import FrameError
from protocol.limits import GATEWAY_INFLATE_BYTES, GATEWAY_PACE_MS, GATEWAY_WINDOW_BYTES_MAX

_LEVEL: Final = 1
_BURST_MS: Final = 100  # of what was not used, so much may go at once


class Transport(Protocol):
    """What this asks of one."""

    def write(self, data: bytes) -> None: ...


class BorderStream:
    """Both ways of one link. `rate_bytes` in a second, 0 for no bound; `now_ms` is a clock."""

    def __init__(self, transport: Transport, rate_bytes: int, now_ms: Callable[[], int], compresses: bool) -> None:
        self.plain_in = self.wire_in = self.plain_out = self.wire_out = 0  # bytes
        self.waiting_bytes = 0
        self._transport, self.rate_bytes, self._now_ms = transport, rate_bytes, now_ms
        self._deflate = zstandard.ZstdCompressor(level=_LEVEL).compressobj() if compresses else None
        self._inflate = (
            zstandard.ZstdDecompressor(max_window_size=GATEWAY_WINDOW_BYTES_MAX).decompressobj() if compresses else None
        )
        self._waiting: deque[bytes] = deque()
        self._credit_bytes = 0.0
        self._credited_ms = now_ms()
        self._timer: asyncio.TimerHandle | None = None
        self._received = b""

    @property
    def counted(self) -> WireBytes:
        """What went over it until now."""
        return WireBytes(self.plain_in, self.wire_in, self.plain_out, self.wire_out)

    # -- out ----------------------------------------------------------------------------------------------------------

    def write(self, lines: list[bytes], messages: list[bytes]) -> None:
        """Frames: those that go now, and those that wait for their turn."""
        if lines:
            self._put(b"".join(lines))
        if messages:
            self._waiting.append(b"".join(messages))
            self.waiting_bytes += len(self._waiting[-1])
        self._go_on()

    def _go_on(self) -> None:
        """Sends what may be sent now."""
        while self._waiting and self._has_credit():
            piece = self._waiting.popleft()
            self.waiting_bytes -= len(piece)
            self._put(piece)
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATEWAY_PACE_MS / 1_000, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._go_on()

    def _has_credit(self) -> bool:
        """A token bucket that may be overdrawn by one piece, and is filled again before the next."""
        if not self.rate_bytes:
            return True
        now_ms = self._now_ms()
        most = self.rate_bytes * _BURST_MS / 1_000
        earned = self.rate_bytes * (now_ms - self._credited_ms) / 1_000
        self._credit_bytes, self._credited_ms = min(most, self._credit_bytes + earned), now_ms
        return self._credit_bytes > 0

    def _put(self, data: bytes) -> None:
        self.plain_out += len(data)
        if self._deflate is not None:
            data = self._deflate.compress(data) + self._deflate.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        self.wire_out += len(data)
        self._credit_bytes -= len(data)
        self._transport.write(data)

    def close(self) -> None:
        """Nothing more is sent."""
        self._waiting.clear()
        self.waiting_bytes = 0
        if self._timer is not None:
            self._timer.cancel()

    # -- in -----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview, hand_on: Callable[[bytes], bool]) -> bool:
        """Hands on what was sent, a little at a time; whether that has stopped, and is to be called again with b"".

        FrameError: it is not what was agreed on.
        """
        self.wire_in += len(data)
        self._received += bytes(data)
        has_more = hand_on(b"")
        while self._received and not has_more:
            piece, self._received = self._received[:GATEWAY_INFLATE_BYTES], self._received[GATEWAY_INFLATE_BYTES:]
            has_more = hand_on(self._inflated(piece))
        return has_more

    def _inflated(self, piece: bytes) -> bytes:
        if self._inflate is not None:
            try:
                piece = self._inflate.decompress(piece)
            except zstandard.ZstdError as error:
                raise FrameError(f"what comes cannot be decompressed: {error}") from error
        self.plain_in += len(piece)
        return piece
