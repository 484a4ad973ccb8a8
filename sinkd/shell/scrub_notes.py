"""What a scrubber has found and done, for the audit stream."""

from sinkd.shell.audit import AuditNotes
from sinkd.shell.store import Partition


class ScrubNotes:
    """Of one replica (`sinkd.shell.scrubbing.Tells`)."""

    def __init__(self, audit: AuditNotes) -> None:
        self._audit = audit

    def mended(self, partition: Partition, base_offset: int, pulled: dict[str, int]) -> None:
        came = "; ".join(f"{size_bytes} bytes came from {source}" for source, size_bytes in pulled.items())
        self._audit.segment_mended(
            f"{_named(partition)}: segment from offset {base_offset}", f"the disk had spoilt it; {came}"
        )

    def lost(self, partition: Partition, offsets: list[int]) -> None:
        what = f"{_named(partition)}: gap records stand at {', '.join(map(str, offsets))}"
        self._audit.segment_mended(what, "the disks of all sinks had spoilt that, and an operator has given it up")

    def differs(self, partition: Partition, source: str, why: str) -> None:
        self._audit.replica_differs(_named(partition), source, why)


def _named(partition: Partition) -> str:
    return f"{partition.stream.name}/{partition.number}"
