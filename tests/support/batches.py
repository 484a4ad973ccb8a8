"""Record batches for tests: events of every kind, batches whose records contradict themselves, and both codecs."""

import struct

import fastcrc
import pytest
from hypothesis import strategies as st

from protocol import engine
from protocol.records import Event, check_batch

ENGINES = [engine.REFERENCE] if engine.COMPILED is None else [engine.REFERENCE, engine.COMPILED]
on_both = pytest.mark.parametrize("codec", ENGINES, ids=lambda codec: codec.name)

names = st.text(st.characters(blacklist_characters=":\r\n", blacklist_categories=("Cs",)), min_size=1, max_size=12)
values = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), max_size=20)
plain_blocks = st.lists(st.tuples(names, values), min_size=1, max_size=5).map(
    lambda pairs: b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in pairs) + b"\r\n"
)
times = st.integers(0, 2**45)
events = st.builds(
    Event,
    subject=st.binary(min_size=1, max_size=30),
    key=st.binary(max_size=30),
    timestamp_ms=times,
    header_block=st.one_of(st.just(b""), plain_blocks, st.binary(min_size=1, max_size=60)),
    payload=st.binary(max_size=300),
)


# -- batches whose CRC is right, whatever their records are ----------------------------------------------------------


def varint(value: int) -> bytes:
    value = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes((value,))


def text(value: bytes) -> bytes:
    return varint(len(value)) + value


SUBJECT = text(b"nats-subject") + text(b"s")


def record_with(
    *, index: int = 0, time: bytes = varint(0), key: bytes = text(b"k"), value: bytes = text(b"v"),
    headers: bytes = varint(1) + SUBJECT,
) -> bytes:  # fmt: skip
    return b"\0" + time + varint(index) + key + value + headers


def batch_of(*records: bytes, base_ms: int = 1_000, behind: bytes = b"") -> bytes:
    """A batch of these records, each with its length in front; header and CRC are as they should be."""
    body, count = b"".join(records) + behind, len(records)
    head = struct.pack(">hiqqqhii", 0, count - 1, base_ms, base_ms, -1, -1, -1, count) + body
    start = struct.pack(">qiibI", 0, 49 + len(body), 0, 2, fastcrc.crc32.iscsi(head))
    batch = start + head
    check_batch(batch)
    return batch


def framed(content: bytes) -> bytes:
    return varint(len(content)) + content


NULL, WRONG = varint(-1), varint(-2)
TEN = b"\xff" * 9
MISCOUNTED = {
    "more content than its length says": (
        varint(9) + record_with(),
        "record 0, byte 71: 12 bytes, 0 are left of the record",
    ),
    "less content than its length says": (
        framed(record_with() + b"!"),
        "record 0, byte 85: 1 bytes behind its last header",
    ),
    "a negative length": (varint(-5) + record_with(), "record 0, byte 62: its length is -5, 23 bytes are left"),
    "no length at all": (varint(0), "record 0, byte 62: its length is 0, 0 bytes are left"),
    "a length beyond the batch": (varint(99) + record_with(), "record 0, byte 63: its length is 99, 23 bytes are left"),
    "a key beyond its record": (framed(record_with(key=varint(99))), "99 bytes, 18 are left of the record"),
    "a payload beyond its record": (framed(record_with(value=varint(99))), "99 bytes, 16 are left of the record"),
    "a key of a negative length": (framed(record_with(key=WRONG)), "-2 bytes, "),
    "a payload of a negative length": (framed(record_with(value=WRONG)), "-2 bytes, "),
    "a header name of a negative length": (framed(record_with(headers=varint(1) + WRONG)), "-2 bytes, "),
    "a header value of a negative length": (framed(record_with(headers=varint(1) + text(b"a") + WRONG)), "-2 bytes, "),
    "a negative number of headers": (framed(record_with(headers=varint(-1))), "record 0, byte 70: -1 headers"),
    "more headers than there are": (framed(record_with(headers=varint(2) + SUBJECT)), "it ends within a number"),
    "a number that the record ends within": (framed(b"\0\x80"), "record 0, byte 64: it ends within a number"),
    "a number of 65 bits": (
        framed(record_with(time=TEN + b"\x02")),
        "record 0, byte 73: a number of more than 64 bits",
    ),
    "a number of eleven bytes": (framed(record_with(time=TEN + b"\x81\x00")), "byte 73: a number of more than 64 bits"),
    "a time of 65 bits": (framed(record_with(time=varint(2**63 - 1))), "a time of more than 64 bits"),
    "an offset out of its order": (framed(record_with(index=1)), "offset delta 1; offsets have no holes"),
    "no headers": (framed(record_with(headers=varint(0))), "record 0 is without its nats-subject header"),
    "another first header": (
        framed(record_with(headers=varint(1) + text(b"a") + text(b""))),
        "record 0 is without its",
    ),
}
