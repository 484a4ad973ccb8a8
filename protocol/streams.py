"""A stream as the zone's sinks have committed it: what gateways route by and readers are told.

The configuration file *proposes* streams; the replicated state holds them, with the revision of their last change and
an incarnation: random bytes made with the stream, so that a stream made again is never taken for the old one.

The zone's Raft groups share its partitions. Which group a partition belongs to is settled when its stream is made, by
the number of groups that the zone has then: the partitions of a stream go round the groups, and each stream begins
with another one, so that streams of one partition are spread too.

Two streams are in no file, and only nodes write them: `$AUDIT` (`protocol.audit`) and `$COVERAGE`
(`protocol.coverage`). They are proposed, made and kept like all others. Their accounts are such that nobody can be in,
so that no client's event ever belongs to them.

A mirror of another zone's log is a `StreamState` too. Its name says whose: `orders@eu`, and `orders@eu~1` for the first
of the incarnations that the origin no longer has (`sinkd.core.mirrors`).
"""

import zlib
from typing import Final

import msgspec

from protocol import audit, coverage, subjects
from protocol.accounts import DEFAULT_ACCOUNT
from protocol.config import Stream
from protocol.limits import GEO_TIMEOUT_MS, HOLD_AGE_MS, HOLD_BYTES

NODE_ACCOUNTS: Final = frozenset({audit.ACCOUNT, coverage.ACCOUNT})
"""Of the streams that nodes write."""


class _Stream(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What the two below begin with on the wire."""

    name: str
    incarnation: bytes
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


class StreamDefinition(_Stream, array_like=True, frozen=True, kw_only=True):
    """What the configuration says of a stream; `key`, `ack`, `reply` and the rest as it has them.

    `incarnation` is what the stream gets if it is new.
    """

    account: str = DEFAULT_ACCOUNT
    replicate: tuple[str, ...] = ("*",)
    hold_age_ms: int = HOLD_AGE_MS
    hold_bytes: int = HOLD_BYTES
    geo_zones: int = 1
    geo_timeout_ms: int = GEO_TIMEOUT_MS
    geo_on_timeout: str = "silent"
    covered: bool = False

    @classmethod
    def of(cls, stream: Stream, incarnation: bytes) -> "StreamDefinition":
        """What the file says of `stream`."""
        fields = {name: getattr(stream, name) for name in cls.__struct_fields__ if name != "incarnation"}
        return cls(incarnation=incarnation, **fields)

    def committed(self, revision: int, incarnation: bytes, groups: int = 1) -> "StreamState":
        """The stream as `revision` puts it in force; `groups` are those of the zone when it was made."""
        fields = msgspec.structs.asdict(self) | {"incarnation": incarnation, "groups": groups}
        return StreamState(revision=revision, **fields)


class StreamState(_Stream, array_like=True, frozen=True, kw_only=True):
    """A stream in force since `revision`; its partitions are shared by `groups` Raft groups.

    One that has left the configuration is `retired`: it takes no events, its history stays readable. One that is
    `covered` is accounted for (`protocol.coverage`).
    """

    revision: int
    retired: bool = False
    account: str = DEFAULT_ACCOUNT
    groups: int = 1
    replicate: tuple[str, ...] = ("*",)
    hold_age_ms: int = HOLD_AGE_MS
    hold_bytes: int = HOLD_BYTES
    geo_zones: int = 1
    geo_timeout_ms: int = GEO_TIMEOUT_MS
    geo_on_timeout: str = "silent"
    covered: bool = False

    def group_of(self, partition: int) -> int:
        """The number of the Raft group that has this partition; a mirror that is left stays where it was."""
        name = self.name.partition("~")[0]
        return 0 if self.groups == 1 else (zlib.crc32(name.encode()) + partition) % self.groups

    def partitions_of(self, group: int) -> list[int]:
        """The partitions that this group has."""
        return [number for number in range(self.partitions) if self.group_of(number) == group]

    @property
    def is_mirror(self) -> bool:
        return "@" in self.name

    @property
    def mirrored(self) -> tuple[str, str]:
        """(name, zone) of the log that this is a mirror of."""
        name, _, zone = self.name.partition("@")
        return name, zone.partition("~")[0]

    def is_for(self, zone: str) -> bool:
        """Whether another zone, `zone`, gets a copy of the log."""
        return self.replicate == ("*",) or zone in self.replicate

    @property
    def is_catch_all(self) -> bool:
        return self.subjects == (">",)

    def takes(self, account: str, subject: str) -> bool:
        """Whether an event of `account` on `subject` belongs to this stream, the catch-all's leftovers aside."""
        return (
            not self.retired
            and self.account == account
            and any(subjects.matches(pattern, subject) for pattern in self.subjects)
        )


def mirror_name(stream: str, zone: str) -> str:
    """How the mirror of `zone`'s `stream` is called."""
    return f"{stream}@{zone}"


def sequence_of(offset: int, partition: int, partitions: int) -> int:
    """JetStream's `seq` for an event: offset + 1 on one partition, unique and rising per key on several."""
    return offset * partitions + partition + 1
