"""The sparse index of one segment: where its blocks begin and which times they hold; 32 bytes of memory for each.

A block is a run of whole batches of about `INDEX_INTERVAL_BYTES`. Times are taken from the batch headers: our encoder
makes `baseTimestamp` the smallest time of a batch and `maxTimestamp` the largest. Times need not rise with offsets
(every gateway has its own clock), so a search by time looks at the blocks' ranges, one after the other.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

from protocol.limits import INDEX_INTERVAL_BYTES
from protocol.records import BatchHeader
from sinkd.core.formats import IndexEntry

NEVER_MINIMUM_MS: Final = 2**63 - 1
NEVER_MAXIMUM_MS: Final = -(2**63)


class Block(NamedTuple):
    """First offset of a block, its position in the segment and the position behind it, both in bytes."""

    offset: int
    position: int
    end: int


class BlockIndex:
    """Built by noting batches in order, or from the entries of an index file."""

    def __init__(self, entries: Iterable[IndexEntry] = ()) -> None:
        self._offsets, self._positions = array("Q"), array("Q")
        self._minima, self._maxima = array("q"), array("q")
        for entry in entries:
            self._add(*entry)

    def __len__(self) -> int:
        return len(self._offsets)

    def _add(self, offset: int, position: int, minimum_ms: int, maximum_ms: int) -> None:
        self._offsets.append(offset)
        self._positions.append(position)
        self._minima.append(minimum_ms)
        self._maxima.append(maximum_ms)

    def note(self, header: BatchHeader, position: int) -> None:
        """The next batch of the segment stands at `position`."""
        minimum_ms, maximum_ms = header.base_timestamp_ms, header.max_timestamp_ms
        if not self._positions or position - self._positions[-1] >= INDEX_INTERVAL_BYTES:
            self._add(header.base_offset, position, minimum_ms, maximum_ms)
        else:
            self._minima[-1] = min(self._minima[-1], minimum_ms)
            self._maxima[-1] = max(self._maxima[-1], maximum_ms)

    @property
    def minimum_ms(self) -> int:
        """The smallest time in the segment; one that nothing is below if it is empty."""
        return min(self._minima, default=NEVER_MINIMUM_MS)

    @property
    def maximum_ms(self) -> int:
        return max(self._maxima, default=NEVER_MAXIMUM_MS)

    def entries(self) -> list[IndexEntry]:
        columns = (self._offsets, self._positions, self._minima, self._maxima)
        return [IndexEntry(*fields) for fields in zip(*columns, strict=True)]

    def holding(self, offset: int, limit: int) -> Block:
        """The block that holds `offset`; its end is at most `limit`."""
        return self._block(max(0, bisect_right(self._offsets, offset) - 1), limit)

    def reaching(self, timestamp_ms: int, limit: int) -> list[Block]:
        """The blocks with a time at or after `timestamp_ms`, below position `limit`."""
        return [
            self._block(slot, limit)
            for slot, maximum_ms in enumerate(self._maxima)
            if maximum_ms >= timestamp_ms and self._positions[slot] < limit
        ]

    def beginning_before(self, timestamp_ms: int, limit: int) -> list[Block]:
        """The blocks with a time before `timestamp_ms`, below position `limit`."""
        return [
            self._block(slot, limit)
            for slot, minimum_ms in enumerate(self._minima)
            if minimum_ms < timestamp_ms and self._positions[slot] < limit
        ]

    def _block(self, slot: int, limit: int) -> Block:
        end = self._positions[slot + 1] if slot + 1 < len(self._positions) else limit
        return Block(self._offsets[slot], self._positions[slot], min(end, limit))
