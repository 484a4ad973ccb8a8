"""A stream as the zone's sinks have committed it: what gateways route by and readers are told.

The configuration file *proposes* streams; the replicated state holds them, with the revision of their last change and
an incarnation: random bytes made with the stream, so that a stream made again is never taken for the old one.
"""

import msgspec

from protocol import subjects


class StreamState(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """`key` is `subject`, `token:N` or `header:NAME`; `ack` and `reply` as in the configuration.

    A stream that has left the configuration is `retired`: it takes no events, its history stays readable.
    """

    name: str
    incarnation: bytes
    revision: int
    subjects: tuple[str, ...]
    partitions: int
    key: str
    ack: str
    reply: str
    dedup_window_ms: int
    dedup_ids_max: int
    outbox_bytes: int
    outbox_overflow: str
    outbox_stall_ms: int
    retention_age_ms: int
    retention_bytes: int
    retired: bool = False

    @property
    def is_catch_all(self) -> bool:
        return self.subjects == (">",)

    def takes(self, subject: str) -> bool:
        """Whether an event on `subject` belongs to this stream, the catch-all's leftovers aside."""
        return not self.retired and any(subjects.matches(pattern, subject) for pattern in self.subjects)


def sequence_of(offset: int, partition: int, partitions: int) -> int:
    """JetStream's `seq` for an event: offset + 1 on one partition, unique and rising per key on several."""
    return offset * partitions + partition + 1
