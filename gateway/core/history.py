"""One fetch of history: which of the pulled batches' events a reader is shown, and when the fetch is over."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from protocol import history, subjects
from protocol.engine import BEST, Show
from protocol.errors import FrameError
from protocol.gaps import read_gap
from protocol.history import FetchRequest
from protocol.limits import FETCH_SCAN_BYTES_MAX, FETCH_TURN_BYTES, PERMISSION_VERDICTS_MAX
from protocol.records import CONTROL, read_header
from protocol.replay import OFFSET_MAX, Frames, Window, message


class Reader(NamedTuple):
    """A subscription that is shown events: what its messages begin with, and how many more it takes at most."""

    opening: bytes  # HMSG <subject> <sid>, or MSG if it is not `headed`, with a space behind it
    headed: bool
    messages_max: int


class Chunk(NamedTuple):
    """What was pulled from a sink at a time: `turns` are what is shown without a pause.

    A turn is a control batch, or event batches that stand back to back: with small ones it is not the batch that costs.
    """

    turns: list[memoryview]
    records: int
    size_bytes: int
    next_offset: int  # behind all of it; 0 if it is empty


def read_chunk(data: bytes | memoryview) -> Chunk:
    """The batches that stand back to back in `data`. FrameError: these are none."""
    view, turns = memoryview(data), []
    begin = position = records = next_offset = 0
    while position < len(view):
        header = read_header(view, position)
        end = position + header.size_bytes
        if end > len(view):
            raise FrameError(f"record batch: {len(view) - position} bytes of {header.size_bytes}")
        if position > begin and (header.attributes == CONTROL or end - begin > FETCH_TURN_BYTES):
            turns.append(view[begin:position])
            begin = position
        if header.attributes == CONTROL:
            turns.append(view[begin:end])
            begin = end
        position, next_offset, records = end, header.next_offset, records + header.record_count
    if position > begin:
        turns.append(view[begin:])
    return Chunk(turns, records, len(view), next_offset)


class FetchProgress:
    """Feed it the turns of chunks with `take` until `is_done`, or until the high watermark is reached.

    At least one event is shown, however large, if there is one in the range that passes the filter.
    """

    def __init__(
        self,
        log: tuple[str, str, int],
        request: FetchRequest,
        offset: int,
        may_show: Callable[[str], bool] | None,
        frames: Show = BEST.frames,
    ) -> None:
        """`log` is (stream, zone, partition); `may_show(subject)` is whether the reader may subscribe to it.

        None: the reader may subscribe to everything.
        """
        self._request, self._may_show, self._frames = request, may_show, frames
        self._log_lines = history.log_lines(*log)
        self._end_offset = OFFSET_MAX if request.end_offset is None else request.end_offset
        self._passes = None if may_show is None and request.filter is None else self._may_pass
        self._verdicts: dict[bytes, bool] = {}
        self.next_offset = offset
        self.records = self.size_bytes = self.scanned_bytes = 0
        self.is_done = offset >= self._end_offset

    def take(self, batches: bytes | memoryview, readers: Sequence[Reader]) -> list[Frames]:
        """What of `batches`, one of `turns`, each reader is sent; `next_offset` moves behind all that was looked at.

        There is at least one reader. FrameError: a batch is not what our encoder makes.
        """
        if self._passes is not None:
            self.scanned_bytes += len(batches)
        if read_header(batches).attributes == CONTROL:
            return self._take_gap(batches, readers)
        request = self._request
        window = Window(
            self.next_offset,
            self._end_offset,
            request.max_records - self.records,
            max(0, request.max_bytes - self.size_bytes),
            not self.records,
        )
        shown = []
        for opening, headed, most in readers:
            wanted = window._replace(records_max=min(window.records_max, most))
            shown.append(self._frames(batches, wanted, opening, headed, self._log_lines, self._passes))
        furthest = max(shown, key=lambda frames: frames.next_offset)
        self.records += furthest.records
        self.size_bytes += furthest.size_bytes
        self.next_offset = furthest.next_offset
        self.is_done = furthest.is_full or self._ends_at(self.next_offset)
        return shown

    def goes_on_at(self, chunk: Chunk) -> int | None:
        """The offset behind `chunk`, which is next, if by its size it is not the last; else None."""
        is_last = (
            self.records + chunk.records >= self._request.max_records
            or self.size_bytes + chunk.size_bytes >= self._request.max_bytes
            or self.has_scanned_enough(chunk.size_bytes)
        )
        return None if is_last or not chunk.turns or chunk.next_offset >= self._end_offset else chunk.next_offset

    def has_scanned_enough(self, more_bytes: int = 0) -> bool:
        """Whether one that looks for events among others ends here, `more_bytes` further on."""
        return self._passes is not None and self.scanned_bytes + more_bytes >= FETCH_SCAN_BYTES_MAX

    def _take_gap(self, batch: bytes | memoryview, readers: Sequence[Reader]) -> list[Frames]:
        offset, gap = read_gap(batch)
        last = read_header(batch).next_offset - 1
        if last < self.next_offset or self._ends_at(offset):
            self.is_done = self._ends_at(max(offset, self.next_offset))
            return [Frames(b"", 0, 0, 0, self.next_offset, False)] * len(readers)
        self.next_offset = last + 1
        self.is_done = self._ends_at(self.next_offset)
        block = history.gap_headers(offset, last, gap.reason, gap.events)
        shown = []
        for opening, headed, most in readers:
            told = message(opening, block if headed else b"", b"") if most else b""
            size_bytes = len(block) if told and headed else 0
            shown.append(Frames(told, 1 if told else 0, len(block), size_bytes, self.next_offset, False))
        return shown

    def _ends_at(self, offset: int) -> bool:
        return self.records >= self._request.max_records or offset >= self._end_offset

    def _may_pass(self, wire_subject: bytes) -> bool:
        verdict = self._verdicts.get(wire_subject)
        if verdict is None:
            subject = subjects.decode(wire_subject)
            wanted = self._request.filter is None or subjects.matches(self._request.filter, subject)
            verdict = wanted and (self._may_show is None or self._may_show(subject))
            if len(self._verdicts) >= PERMISSION_VERDICTS_MAX:
                self._verdicts.clear()
            self._verdicts[wire_subject] = verdict
        return verdict
