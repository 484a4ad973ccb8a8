"""How far a partition of a mirror is behind its origin, by what the origin has told.

In seconds it is the age of the oldest event that is not held yet. While the origin says nothing it may have taken in
more since its last word, so the lag of a mirror that was level then is the time since: a bound, never too small.
"""

from typing import Any

from protocol.limits import MIRROR_TAIL_BYTES, MIRROR_TELL_MS
from protocol.link import Behind, Mirrored

STATES = ("tail", "catching-up", "limited", "stalled", "gap", "diverged", "recreated")  # that a mirror may be in
SILENT_MS = 3 * MIRROR_TELL_MS  # an origin that has not spoken for so long may have more than it has told


class Lag:
    def __init__(self) -> None:
        self.stalled = ""  # why nothing comes
        self._high_watermark, self._size_bytes, self._oldest_ms = 0, 0, -1
        self._heard_ms = 0
        self._is_limited = self._ends_in_gap = False
        self._bytes_per_second = 0.0
        self._taken_bytes, self._since_ms = 0, 0

    def told(self, message: Behind, now_ms: int) -> None:
        """Once a second."""
        self._high_watermark = message.high_watermark
        self._size_bytes, self._oldest_ms, self._is_limited = message.size_bytes, message.oldest_ms, message.limited
        if self._since_ms and now_ms > self._since_ms:
            latest = self._taken_bytes * 1000 / (now_ms - self._since_ms)
            self._bytes_per_second = (self._bytes_per_second or latest) * 0.7 + latest * 0.3
        self._heard_ms = self._since_ms = now_ms
        self._taken_bytes = 0

    def took(self, message: Mirrored, has_gap: bool, now_ms: int) -> None:
        """Batches have come."""
        self._high_watermark = max(self._high_watermark, message.high_watermark)
        self._ends_in_gap = has_gap and not message.raw_bytes
        self._heard_ms = now_ms
        self._taken_bytes += message.raw_bytes

    def state(self, end_offset: int) -> str:
        """Of a partition that is subscribed to; its mirror ends at `end_offset`."""
        if self._high_watermark > end_offset and self._is_limited:
            return "limited"
        if self._high_watermark > end_offset and self._size_bytes > MIRROR_TAIL_BYTES:
            return "catching-up"
        return "gap" if self._ends_in_gap else "tail"

    def facts(self, end_offset: int, now_ms: int) -> dict[str, Any]:
        """Lag in events, bytes and seconds, and how many seconds are left at the present pace (-1: not known)."""
        events = max(0, self._high_watermark - end_offset)
        size_bytes = self._size_bytes if events else 0
        behind_ms = now_ms - self._oldest_ms if events and self._oldest_ms >= 0 else 0
        if self._heard_ms and now_ms - self._heard_ms > SILENT_MS:
            behind_ms = max(behind_ms, now_ms - self._heard_ms)
        left = size_bytes / self._bytes_per_second if self._bytes_per_second else -1
        return {
            "lag_events": events,
            "lag_bytes": size_bytes,
            "lag_seconds": max(0, behind_ms) / 1000,
            "seconds_left": round(left, 1) if events else 0,
        }
