"""What the batches of a partition come to, for its certificate: by who makes one, and by who has the data and one.

frontier at `from` ─► leaf of each batch, in order ─► frontier at `to`: is it that of the certificate?
                      control batches ─► gap records, how many offsets they take
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from protocol.certificate import Certificate, GapRecord, Partition
from protocol.errors import FrameError
from protocol.gaps import is_of_damage, read_gap
from protocol.merkle import grow, root_of
from protocol.records import BatchHeader


class Found(NamedTuple):
    """What the batches of a partition came to."""

    size: int
    frontier: tuple[bytes, ...]
    control: int
    damaged: int
    gaps: tuple[GapRecord, ...]


class Growth:
    """The tree of a partition, from one of `size` leaves on, as its batches come, and what stands among them."""

    def __init__(self, partition: int, size: int, frontier: tuple[bytes, ...]) -> None:
        self._partition, self._size, self._frontier = partition, size, list(frontier)
        self._control = self._damaged = 0
        self._gaps: list[GapRecord] = []

    def take(self, leaf: bytes) -> None:
        """The next batch has that leaf hash."""
        grow(self._frontier, self._size, leaf)
        self._size += 1

    def take_all(self, leaves: Sequence[bytes]) -> None:
        """The next batches have these; as `take` for each, for whoever has very many."""
        frontier, size = self._frontier, self._size
        for leaf in leaves:
            number, here = size, leaf
            while number & 1:
                here = sha256(b"\x01" + frontier.pop() + here).digest()
                number >>= 1
            frontier.append(here)
            size += 1
        self._size = size

    def note(self, header: BatchHeader, batch: bytes | memoryview) -> None:
        """... and is a control batch."""
        if is_of_damage(header, batch):
            self._damaged += header.last_offset_delta + 1
        else:
            self._control += header.last_offset_delta + 1
        self._gaps.append(gap_record(self._partition, header, batch))

    def found(self) -> Found:
        return Found(self._size, tuple(self._frontier), self._control, self._damaged, tuple(self._gaps))


def gap_record(partition: int, header: BatchHeader, batch: bytes | memoryview) -> GapRecord:
    """What a certificate says of a control batch."""
    offsets = header.last_offset_delta + 1
    try:
        _, gap = read_gap(batch)
        told = gap.reason, gap.events, gap.from_ms, gap.to_ms, gap.source
    except FrameError:
        told = "", 0, 0, 0, ""
    reason, events, from_ms, to_ms, source = told
    return GapRecord(
        partition=partition, offset=header.base_offset, offsets=offsets, reason=reason, events=events,
        from_ms=from_ms, to_ms=to_ms, source=source,
    )  # fmt: skip


def problems_of_data(certificate: Certificate, partition: Partition, found: Found) -> list[str]:
    """What of a partition is not what its batches are."""
    where = f"partition {partition.partition}"
    problems = []
    if found.size != partition.size:
        problems.append(f"{where}: the data have {found.size - partition.from_size} batches from offset "
                        f"{partition.from_} on, the certificate {partition.size - partition.from_size}")  # fmt: skip
    elif (root := root_of(found.frontier).hex()) != partition.root:
        problems.append(f"{where}: the root of the data is {root}, that of the certificate {partition.root}: they are "
                        f"not the data that were signed")  # fmt: skip
    named = tuple(gap for gap in certificate.gaps if gap.partition == partition.partition)
    if (found.control, found.damaged, found.gaps) != (partition.control, partition.damaged, named):
        problems.append(f"{where}: the data have other control batches than the certificate names")
    return problems
