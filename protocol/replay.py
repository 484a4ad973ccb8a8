"""History on its way to a reader: from record batches to the NATS messages that show their events.

    batches + window ─► frames ─► HMSG <inbox> <sid> <sizes>    Log-… headers, the publisher's headers    payload

`frames` is a hot loop: the reference is here, its compiled twin in `_records.pyx`, and `protocol.engine` says which of
them runs. What a message looks like is in `protocol.history`.
"""

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

from protocol.history import shown_headers
from protocol.records import iterate_records, split_batches

OFFSET_MAX = 2**63 - 1

Passes = Callable[[bytes], bool]
"""passes(subject): whether events on it are shown. Asked once for a run of events on one subject."""


class Window(NamedTuple):
    """What of a log a reader still takes: offsets from `offset` to before `end_offset`, and so many records and bytes.

    `bytes_max` counts header blocks as shown, and payloads. With `shows_one` the first event is shown however large.
    """

    offset: int
    end_offset: int
    records_max: int
    bytes_max: int
    shows_one: bool


class Frames(NamedTuple):
    """`records` messages as they go to the client's socket.

    `size_bytes` is what the window counts; `carried_bytes` what the messages carry, which is less where they have no
    headers. All before `next_offset` was looked at; `is_full`: the window takes nothing more.
    """

    data: bytes
    records: int
    size_bytes: int
    carried_bytes: int
    next_offset: int
    is_full: bool


def frames(
    batches: bytes | memoryview, window: Window, opening: bytes, headed: bool, log_lines: bytes, passes: Passes | None
) -> Frames:
    """The messages that show what of `batches`, which stand back to back, is in `window`.

    FrameError: a batch that is reached is not what our encoder makes.

    `opening` is what a message begins with: `HMSG <subject> <sid> `, or MSG for a client without headers (not
    `headed`). `log_lines` are the header lines that say which log it is; without `passes` all subjects are shown.
    """
    out = bytearray()
    records = size_bytes = carried_bytes = 0
    next_offset, asked, shown = window.offset, None, True
    is_full = False
    for record in chain.from_iterable(map(iterate_records, split_batches(batches))):
        if record.offset < next_offset:
            continue
        if records >= window.records_max or record.offset >= window.end_offset:
            is_full = True
            break
        if passes is not None and record.subject != asked:
            asked, shown = record.subject, passes(record.subject)
        if shown:
            block = shown_headers(log_lines, record)
            total = len(block) + len(record.payload)
            if (records or not window.shows_one) and size_bytes + total > window.bytes_max:
                is_full = True
                break
            out += message(opening, block if headed else b"", record.payload)
            records += 1
            size_bytes += total
            carried_bytes += total if headed else len(record.payload)
        next_offset = record.offset + 1
    return Frames(bytes(out), records, size_bytes, carried_bytes, next_offset, is_full)


def message(opening: bytes, header_block: bytes, payload: bytes) -> bytes:
    """One message that begins with `opening`; without a header block that is a MSG's."""
    sizes = b"%d %d" % (len(header_block), len(header_block) + len(payload)) if header_block else b"%d" % len(payload)
    return b"%b%b\r\n%b%b\r\n" % (opening, sizes, header_block, payload)
