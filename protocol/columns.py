"""Record batches in columns: what is alike in all records stands together, so that it compresses well.

Between the texts of a batch stand numbers, about seven bytes for each record: lengths, a time, an offset. They fit with
nothing around them, and cut the texts apart; where lines of 70 bytes were a quarter of their size once compressed, the
numbers were a tenth more. Apart from the texts, and with what follows from the rest left out, they are a hundredth.

    u32 batches   5 x u32 bytes of each column but the first and the last (little endian), then the columns:
    heads     the 61 bytes in front of each batch's records; first of all heads their first byte, then their second, ...
    times     for each record a varint: its timestamp delta, less that of the record before it in its batch
    keys      its key's length, varint
    values    its value's length, varint
    rests     how many bytes stand behind its value (its headers), varint
    texts     its key, then what stands behind its value
    payloads  its value

What follows from that is left out: the length of a record, its attributes (0), and its offset delta, which counts up.
The numbers are varints as records have them (`protocol.records`).

What has been taken apart and put together again is the same, byte for byte. So batches are taken apart only if all of
their records are laid out as our encoder does it; whoever is not sure leaves them as they are.
"""

import struct
from itertools import accumulate, pairwise
from typing import Final

from protocol.errors import FrameError
from protocol.records import HEADER_BYTES, Cursor, put_varint

COLUMNS: Final = 6  # behind the heads
TIME_DELTA_END: Final = 2**62  # either way; so the difference of two has 64 bits at most
_DIRECTORY: Final = struct.Struct("<6I")
_LENGTH: Final = struct.Struct(">i")
_LENGTH_AT, _COUNT_AT = 8, 57


class _NotOurs(Exception):
    """These batches are not laid out as our encoder does it."""


def take_apart(batches: bytes | memoryview) -> bytes | None:
    """Whole batches, back to back, in columns. None: they cannot be, or would not become smaller."""
    heads: list[bytes] = []
    columns = [bytearray() for _ in range(COLUMNS)]
    data, position = bytes(batches), 0
    try:
        while position < len(data):
            end = position + _batch_bytes(data, position)
            heads.append(data[position : position + HEADER_BYTES])
            _take_records(Cursor(data, position + HEADER_BYTES, end), _records(heads[-1]), columns)
            position = end
    except (FrameError, _NotOurs):
        return None
    directory = _DIRECTORY.pack(len(heads), *map(len, columns[:-1]))
    turned = b"".join(heads)
    turned = b"".join(turned[place::HEADER_BYTES] for place in range(HEADER_BYTES))
    whole = b"".join((directory, turned, *columns))
    return whole if len(whole) < len(data) else None


def _batch_bytes(data: bytes, position: int) -> int:
    left = len(data) - position
    if left >= HEADER_BYTES:
        size_bytes = _LENGTH.unpack_from(data, position + _LENGTH_AT)[0] + _LENGTH_AT + _LENGTH.size
        if HEADER_BYTES <= size_bytes <= left:
            return int(size_bytes)
    raise _NotOurs


def _records(head: bytes) -> int:
    return int(_LENGTH.unpack_from(head, _COUNT_AT)[0])


def _take_records(cursor: Cursor, count: int, columns: list[bytearray]) -> None:
    """The records of one batch go into the columns."""
    times, keys, values, rests, texts, payloads = columns
    batch_end, before_ms = cursor.end, 0
    for index in range(count):
        begin = cursor.position
        end = cursor.enter_record()
        at_ms, _ = cursor.number(), cursor.number()
        key, value, rest = cursor.chunk(), cursor.chunk(), cursor.data[cursor.position : end]
        if not -TIME_DELTA_END < at_ms < TIME_DELTA_END:
            raise _NotOurs
        if _record(index, at_ms, key, value, rest) != cursor.data[begin:end]:
            raise _NotOurs
        put_varint(times, at_ms - before_ms)
        for column, text in (keys, key), (values, value), (rests, rest):
            put_varint(column, len(text))
        texts += key + rest
        payloads += value
        before_ms, cursor.position, cursor.end = at_ms, end, batch_end
    if cursor.position != batch_end:
        raise _NotOurs


def _record(index: int, at_ms: int, key: bytes, value: bytes, rest: bytes) -> bytes:
    record = bytearray(1)
    put_varint(record, at_ms)
    put_varint(record, index)
    for text in key, value:
        put_varint(record, len(text))
        record += text
    length = bytearray()
    put_varint(length, len(record) + len(rest))
    return bytes(length + record + rest)


def put_together(columns: bytes | memoryview, size_bytes: int) -> bytes:
    """The `size_bytes` of batches that were taken apart. FrameError: these are no columns of so much."""
    try:
        return _put_together(bytes(columns), size_bytes)
    except (FrameError, struct.error) as error:
        raise FrameError(f"columns that do not make {size_bytes} bytes of batches") from error


def _put_together(data: bytes, size_bytes: int) -> bytes:
    batches, *sizes = _DIRECTORY.unpack_from(data)
    ends = [*accumulate(sizes, initial=_DIRECTORY.size + batches * HEADER_BYTES), len(data)]
    if ends[-2] > len(data):
        raise FrameError("its columns are longer than it is")
    heads = data[_DIRECTORY.size : ends[0]]
    columns = [Cursor(data, begin, end) for begin, end in pairwise(ends)]
    out = bytearray()
    for number in range(batches):
        head = heads[number::batches]
        out += head
        before_ms = 0
        for index in range(_records(head)):
            before_ms = _put_record(out, index, before_ms, columns)
            if len(out) > size_bytes:
                raise FrameError("it makes more")
    if len(out) != size_bytes or any(column.position != column.end for column in columns):
        raise FrameError("it makes less, or something is left")
    return bytes(out)


def _put_record(out: bytearray, index: int, before_ms: int, columns: list[Cursor]) -> int:
    """The next record goes to `out`; its timestamp delta."""
    times, keys, values, rests, texts, payloads = columns
    at_ms = before_ms + times.number()
    if not -TIME_DELTA_END < at_ms < TIME_DELTA_END:
        raise FrameError("a time that nobody takes apart")
    key, value, rest = _text(texts, keys), _text(payloads, values), _text(texts, rests)
    out += _record(index, at_ms, key, value, rest)
    return at_ms


def _text(column: Cursor, lengths: Cursor) -> bytes:
    """The next text of `column`, as long as the next number says."""
    length = lengths.number()
    if not 0 <= length <= column.end - column.position:
        raise FrameError("a text that is not there")
    column.position += length
    return column.data[column.position - length : column.position]
