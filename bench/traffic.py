"""Frames in the NATS client protocol, made before the clock starts.

A load generator sends ready-made chunks of many frames and counts bytes. All frames of one traffic have the same size,
so that bytes received say how many messages they are: a lost, doubled or torn message cannot hide.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CHUNK_BYTES = 1024 * 1024
SUBJECT = "bench.data"
SUBSCRIPTION_ID = "1"  # of every subscription that receives


@dataclass(frozen=True)
class Traffic:
    """What publishers send, round and round; `once` = every subject a single time. Subjects are equally long."""

    payload_bytes: int
    subjects: Sequence[str] = (SUBJECT,)
    headers: bytes = b""
    once: bool = False

    def published(self, subject: str) -> bytes:
        """The frame that a publisher sends."""
        payload = b"x" * self.payload_bytes
        if self.headers:
            sizes = f"{len(self.headers)} {len(self.headers) + self.payload_bytes}"
            return f"HPUB {subject} {sizes}\r\n".encode() + self.headers + payload + b"\r\n"
        return f"PUB {subject} {self.payload_bytes}\r\n".encode() + payload + b"\r\n"

    def delivered(self, subject: str) -> bytes:
        """The frame that a subscriber gets for it."""
        return self.published(subject).replace(b"PUB ", b"MSG ", 1).replace(
            subject.encode(), f"{subject} {SUBSCRIPTION_ID}".encode(), 1
        )  # fmt: skip

    @property
    def published_bytes(self) -> int:
        return len(self.published(self.subjects[0]))

    @property
    def delivered_bytes(self) -> int:
        return len(self.delivered(self.subjects[0]))

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> list[tuple[bytes, int]]:
        """Whole frames of about `chunk_bytes` together, and how many they are."""
        frames_each = max(1, chunk_bytes // self.published_bytes)
        return [(b"".join(frames), len(frames)) for frames in self._lumps(frames_each)]

    def _lumps(self, frames_each: int) -> Iterator[list[bytes]]:
        frames = [self.published(subject) for subject in self.subjects]
        if not self.once:
            repeats = -(-frames_each // len(frames))
            yield frames * repeats
            return
        for start in range(0, len(frames), frames_each):
            yield frames[start : start + frames_each]
