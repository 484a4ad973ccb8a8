"""One fetch of history: which of the pulled batches' events a reader is shown, and when the fetch is over."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from protocol import history, subjects
from protocol.gaps import read_gap
from protocol.history import FetchRequest
from protocol.records import CONTROL, Record, read_header, read_records


class Shown(NamedTuple):
    """A message for the reader: its header block and payload."""

    header_block: bytes
    payload: bytes


class FetchProgress:
    """Feed it batches with `take` until `is_done`, or until the high watermark is reached.

    At least one event is shown, however large, if there is one in the range that passes the filter.
    """

    def __init__(
        self,
        log: tuple[str, str, int],
        request: FetchRequest,
        offset: int,
        may_show: Callable[[str], bool],
    ) -> None:
        """`log` is (stream, zone, partition); `may_show(subject)` is whether the reader may subscribe to it."""
        self._log, self._request, self._may_show = log, request, may_show
        self.next_offset = offset
        self.records = self.size_bytes = self.scanned_bytes = 0
        self.is_done = request.end_offset is not None and offset >= request.end_offset

    def take(self, batch: bytes | memoryview) -> Iterator[Shown]:
        """What of `batch` is shown; `next_offset` moves behind everything that was looked at."""
        self.scanned_bytes += len(batch)
        if read_header(batch).attributes == CONTROL:
            yield from self._take_gap(batch)
            return
        for record in read_records(batch):
            if record.offset < self.next_offset:
                continue
            if self._ends_at(record.offset):
                return
            if self._passes(record):
                shown = Shown(history.record_headers(*self._log, record), record.payload)
                size_bytes = len(shown.header_block) + len(shown.payload)
                if self.records and self.size_bytes + size_bytes > self._request.max_bytes:
                    self.is_done = True
                    return
                self.records += 1
                self.size_bytes += size_bytes
                self.next_offset = record.offset + 1
                yield shown
            self.next_offset = record.offset + 1
        self._ends_at(self.next_offset)

    def _take_gap(self, batch: bytes | memoryview) -> Iterator[Shown]:
        offset, gap = read_gap(batch)
        if offset >= self.next_offset and not self._ends_at(offset):
            self.next_offset = offset + 1
            yield Shown(history.gap_headers(offset, offset, gap.reason, gap.events), b"")
            self._ends_at(self.next_offset)

    def _ends_at(self, offset: int) -> bool:
        end_offset = self._request.end_offset
        self.is_done = self.records >= self._request.max_records or (end_offset is not None and offset >= end_offset)
        return self.is_done

    def _passes(self, record: Record) -> bool:
        subject = subjects.decode(record.subject)
        wanted = self._request.filter is None or subjects.matches(self._request.filter, subject)
        return wanted and self._may_show(subject)
