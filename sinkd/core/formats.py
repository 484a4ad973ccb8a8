"""The sink's files as bytes: journal records, segment headers, indexes, leaves of trees, checkpoints.

Pure encoders and decoders; the shells beside them own the files. Every file begins with a magic and a version, integers
are little endian (record batches inside segments and commands keep Kafka's big endian) and everything is covered by a
CRC-32C. The layouts are written down in docs/wire-formats.md, with golden vectors in tests/data/vectors/storage.json.

Journal records carry a checksum that is *seeded* with the journal's random id, the number of their file and their
position in it. So the old bytes of a recycled file, a record copied elsewhere, and a payload that looks like a record
are all told from a record that was written here.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from fastcrc import crc32

VERSION: Final = 1
JOURNAL_MAGIC: Final = b"MESHJRNL"
SEGMENT_MAGIC: Final = b"MESHSEGM"
INDEX_MAGIC: Final = b"MESHINDX"
LEAVES_MAGIC: Final = b"MESHLEAF"
TREE_MAGIC: Final = b"MESHTREE"
CHECKPOINT_MAGIC: Final = b"MESHCKPT"

Buffer = bytes | bytearray | memoryview


class BadBytes(ValueError):
    """Bytes that are not what the format says. A shell that knows the file makes a DamagedFile or a cut of it."""


# -- journal ----------------------------------------------------------------------------------------------------------

JOURNAL_HEADER_BYTES: Final = 64
RECORD_HEADER_BYTES: Final = 32
RECORD_ALIGNMENT_BYTES: Final = 8
MARK_BYTES: Final = RECORD_HEADER_BYTES  # a SYNCED record has no payload
JOURNAL_PAGE_BYTES: Final = 4096  # behind a record are zeros up to the next multiple, until another one stands there

_JOURNAL_HEADER = struct.Struct("<8sI16sQQQQI")  # magic, version, journal, number, size, first index, previous end, crc
_RECORD_HEADER = struct.Struct("<IIIIQQ")  # crc, payload length, kind, 0, term, index
_RECORD_TAIL = struct.Struct("<QIIIQQ")  # position in the file, then the header without its crc: what the crc is over
_MARK_FIELDS = struct.Struct("<I12xQ")  # crc, how far it was synced


class Kind(IntEnum):
    """What a journal record says. The comments give the meaning of its fields: term, index, payload."""

    ENTRY = 1  # a Raft entry: its term, its index, its command
    VOTE = 2  # the current term; index 1 and the node id if a vote was given in it, else 0 and nothing
    TRUNCATE = 3  # term 0; all entries from `index` on are void
    SYNCED = 4  # everything was fsynced up to byte `term` of journal file `index`


class JournalHeader(NamedTuple):
    """Head of a journal file, fsynced before the file gets its name.

    `first_index` is the index that the next entry had when the file was begun; `previous_end` the position (in bytes)
    where the records of the file before it end, all of them fsynced by then.
    """

    journal_id: bytes
    number: int
    file_bytes: int
    first_index: int
    previous_end: int


class JournalRecord(NamedTuple):
    """A checked record; the payload stands behind its header, `length` bytes; `size_bytes` includes the padding."""

    kind: int
    term: int
    raft_index: int
    length: int
    size_bytes: int


def encode_journal_header(header: JournalHeader) -> bytes:
    journal_id, number, file_bytes, first_index, previous_end = header
    fields = (JOURNAL_MAGIC, VERSION, journal_id, number, file_bytes, first_index, previous_end)
    return _with_crc(_JOURNAL_HEADER.pack(*fields, 0)[:-4])


def decode_journal_header(data: Buffer) -> JournalHeader:
    """The header in the first 64 bytes of `data`; BadBytes if it is none."""
    _check_head(data, _JOURNAL_HEADER.size, JOURNAL_MAGIC, "journal header")
    _, _, journal_id, number, file_bytes, first_index, previous_end, _ = _JOURNAL_HEADER.unpack_from(data)
    return JournalHeader(journal_id, number, file_bytes, first_index, previous_end)


def journal_seed(journal_id: bytes, number: int) -> int:
    """Where the checksums of the records in file `number` of this journal begin."""
    return crc32.iscsi(journal_id + struct.pack("<Q", number))


def record_size(length: int) -> int:
    """Bytes that a record with a payload of `length` bytes takes in a file."""
    return RECORD_HEADER_BYTES + length + -length % RECORD_ALIGNMENT_BYTES


def encode_record(
    seed: int, position: int, kind: int, term: int, index: int, payload: bytes = b""
) -> tuple[bytes, bytes, bytes]:
    """Header, payload and padding of the record that will stand at `position` of the file with that `seed`."""
    padding = bytes(-len(payload) % RECORD_ALIGNMENT_BYTES)
    crc = crc32.iscsi(_RECORD_TAIL.pack(position, len(payload), kind, 0, term, index), seed)
    crc = crc32.iscsi(padding, crc32.iscsi(payload, crc))
    return _RECORD_HEADER.pack(crc, len(payload), kind, 0, term, index), payload, padding


def decode_record(data: Buffer, at: int, position: int, seed: int) -> JournalRecord | None:
    """The record at byte `at` of `data`, which stands at `position` of its file; None where zeros say 'no more'.

    BadBytes for anything that `encode_record` did not write at this position of this file.
    """
    head = bytes(data[at : at + RECORD_HEADER_BYTES])
    if not head.strip(b"\0"):
        return None
    if len(head) < RECORD_HEADER_BYTES:
        raise BadBytes(f"a record of {len(head)} bytes, its header alone has {RECORD_HEADER_BYTES}")
    crc, length, kind, reserved, term, index = _RECORD_HEADER.unpack(head)
    size_bytes = record_size(length)
    if at + size_bytes > len(data):
        raise BadBytes(f"a record of {size_bytes} bytes where {len(data) - at} are left")
    expected = crc32.iscsi(_RECORD_TAIL.pack(position, length, kind, reserved, term, index), seed)
    expected = crc32.iscsi(memoryview(data)[at + RECORD_HEADER_BYTES : at + size_bytes], expected)
    if crc != expected:
        raise BadBytes(f"a record's CRC-32C is {expected:08x}, it says {crc:08x}")
    return JournalRecord(kind, term, index, length, size_bytes)


def records_end(data: Buffer) -> int:
    """Where the records of a journal's file (all of `data`) end, for whoever only looks: a torn tail is not told from
    damage. BadBytes: it has no header.
    """
    header = decode_journal_header(data)
    seed, position = journal_seed(header.journal_id, header.number), JOURNAL_HEADER_BYTES
    try:
        while (record := decode_record(data, position, position, seed)) is not None:
            position += record.size_bytes
    except BadBytes:
        pass
    return position


def find_synced_beyond(data: bytes, start: int, number: int, seed: int) -> int | None:
    """How far a SYNCED mark behind byte `start` says that this file (all of `data`) was fsynced, if beyond `start`.

    This is what tells damage from a torn tail: bytes below the answer were on the disk once. There may be a whole file
    of other bytes, marks of the file's earlier lives among them; only what names this one is looked at closely.
    """
    beyond = None
    for found in _mark_pattern(number).finditer(data, start):
        at = found.start() - 4
        if at % RECORD_ALIGNMENT_BYTES == 0:
            crc, synced = _MARK_FIELDS.unpack_from(data, at)
            tail = _RECORD_TAIL.pack(at, 0, Kind.SYNCED, 0, synced, number)
            if synced > (beyond or start) and crc == crc32.iscsi(tail, seed):
                beyond = synced
    return beyond


def _mark_pattern(number: int) -> re.Pattern[bytes]:
    """Bytes 4 to 31 of a mark of that file, whatever it says was synced. Only what cannot overlap is consumed."""
    return re.compile(rb"\0\0\0\0\x04\0\0\0(?=\0\0\0\0.{8}" + re.escape(struct.pack("<Q", number)) + b")", re.DOTALL)


# -- segments ---------------------------------------------------------------------------------------------------------

SEGMENT_HEADER_BYTES: Final = 64
_SEGMENT_HEADER = struct.Struct("<8sI16sIQI16xI")  # magic, version, incarnation, partition, base, begins anew, 0, crc


class SegmentHeader(NamedTuple):
    """Head of a segment; record batches follow it, back to back, the first one at `base_offset`.

    `begins_anew` is 1 where the log begins at this offset whatever lies before it: that is on its way out.
    """

    incarnation: bytes
    partition: int
    base_offset: int
    begins_anew: int = 0


def encode_segment_header(header: SegmentHeader) -> bytes:
    return _with_crc(_SEGMENT_HEADER.pack(SEGMENT_MAGIC, VERSION, *header, 0)[:-4])


def decode_segment_header(data: Buffer) -> SegmentHeader:
    """The header in the first 64 bytes of `data`; BadBytes if it is none."""
    _check_head(data, _SEGMENT_HEADER.size, SEGMENT_MAGIC, "segment header")
    return SegmentHeader(*_SEGMENT_HEADER.unpack_from(data)[2:-1])


# -- indexes ----------------------------------------------------------------------------------------------------------

INDEX_HEADER_BYTES: Final = 80
_INDEX_HEADER = struct.Struct("<8sI16sIQQQqqII")
_INDEX_ENTRY = struct.Struct("<QQqq")


class IndexHeader(NamedTuple):
    """What one wants to know of a finished segment without opening it. Times are ms, over all of its records."""

    incarnation: bytes
    partition: int
    base_offset: int
    next_offset: int
    segment_bytes: int
    minimum_ms: int
    maximum_ms: int


class IndexEntry(NamedTuple):
    """One block of a segment: its first batch's offset and position, the smallest and largest time (ms) within."""

    offset: int
    position: int
    minimum_ms: int
    maximum_ms: int


def encode_index(header: IndexHeader, entries: Sequence[IndexEntry]) -> bytes:
    head = _with_crc(_INDEX_HEADER.pack(INDEX_MAGIC, VERSION, *header, len(entries), 0)[:-4])
    return head + _with_crc(b"".join(_INDEX_ENTRY.pack(*entry) for entry in entries))


def decode_index_header(data: Buffer) -> IndexHeader:
    """The header in the first 80 bytes of an index file; BadBytes if it is none. It has a CRC of its own."""
    _check_head(data, _INDEX_HEADER.size, INDEX_MAGIC, "index header")
    return IndexHeader(*_INDEX_HEADER.unpack_from(data)[2:9])


def decode_index(data: Buffer) -> tuple[IndexHeader, list[IndexEntry]]:
    """A whole index file; BadBytes if any of it is wrong."""
    header = decode_index_header(data)
    count = _INDEX_HEADER.unpack_from(data)[9]
    body = bytes(data[INDEX_HEADER_BYTES:])
    if len(body) != count * _INDEX_ENTRY.size + 4:
        raise BadBytes(f"index: {len(body)} bytes behind the header for {count} entries")
    _check_crc(body, "index entries")
    return header, [IndexEntry(*fields) for fields in _INDEX_ENTRY.iter_unpack(body[:-4])]


# -- trees ------------------------------------------------------------------------------------------------------------

LEAVES_HEADER_BYTES: Final = 64
LEAF_BYTES: Final = 40
_LEAVES_HEADER = struct.Struct(
    "<8sI16sIQQQII"
)  # magic, version, incarnation, partition, three of the header, count, crc
_TREE_HEADER = struct.Struct("<8sI16sIQQQI")  # magic, version, incarnation, partition, three of the position, hashes


class LeavesHeader(NamedTuple):
    """Of which finished segment the leaves are, and how large it was; behind it `LEAF_BYTES` for each of its batches.

    A leaf is what the tree hashes (`protocol.merkle`): base offset (big endian) and D.
    """

    incarnation: bytes
    partition: int
    base_offset: int
    next_offset: int
    segment_bytes: int


class TreePosition(NamedTuple):
    """The Merkle tree of a log that begins at `begin_offset`, when the log ended at `offset`: of `size` batches."""

    begin_offset: int
    offset: int
    size: int
    frontier: tuple[bytes, ...]


def encode_leaves(header: LeavesHeader, leaves: bytes | bytearray) -> bytes:
    head = _with_crc(_LEAVES_HEADER.pack(LEAVES_MAGIC, VERSION, *header, len(leaves) // LEAF_BYTES, 0)[:-4])
    return head + _with_crc(bytes(leaves))


def decode_leaves(data: Buffer) -> tuple[LeavesHeader, bytes]:
    """(header, leaves) of a whole file; BadBytes if any of it is wrong."""
    _check_head(data, LEAVES_HEADER_BYTES, LEAVES_MAGIC, "leaves header")
    fields = _LEAVES_HEADER.unpack_from(data)
    body = bytes(data[LEAVES_HEADER_BYTES:])
    if len(body) != fields[-2] * LEAF_BYTES + 4:
        raise BadBytes(f"leaves: {len(body)} bytes behind the header for {fields[-2]} leaves")
    _check_crc(body, "leaves")
    return LeavesHeader(*fields[2:-2]), body[:-4]


def encode_tree(incarnation: bytes, partition: int, position: TreePosition) -> bytes:
    numbers = position.begin_offset, position.offset, position.size, len(position.frontier)
    head = _TREE_HEADER.pack(TREE_MAGIC, VERSION, incarnation, partition, *numbers)
    return _with_crc(head + b"".join(position.frontier))


def decode_tree(data: bytes) -> tuple[bytes, int, TreePosition]:
    """(incarnation, partition, position) of a whole file; BadBytes if any of it is wrong."""
    _check_magic(data, _TREE_HEADER.size + 4, TREE_MAGIC, "tree")
    _check_crc(data, "tree")
    _, _, incarnation, partition, begin_offset, offset, size, count = _TREE_HEADER.unpack_from(data)
    body = data[_TREE_HEADER.size : -4]
    if len(body) != 32 * count or count != size.bit_count():
        raise BadBytes(f"tree: {len(body)} bytes of hashes for {count}, and {size} leaves")
    frontier = tuple(body[at : at + 32] for at in range(0, len(body), 32))
    return incarnation, partition, TreePosition(begin_offset, offset, size, frontier)


# -- checkpoints ------------------------------------------------------------------------------------------------------

CHECKPOINT_VERSION: Final = 2
_CHECKPOINT_HEADERS: Final = {  # magic, version, index, term, previous term, (installed over,) bytes of state
    1: struct.Struct("<8sIQQQQ"),
    2: struct.Struct("<8sIQQQQQ"),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state machine's `state` after entry `index` (of `term`); `previous_term` is the term of the entry before.

    `installed_over` is 0 for a checkpoint of one's own. One that came from the leader takes the place of a journal that
    ends before it: then it is the last entry which that journal surely has, until the journal begins behind `index`.
    """

    index: int
    term: int
    previous_term: int
    state: bytes
    installed_over: int = 0


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    names = checkpoint.index, checkpoint.term, checkpoint.previous_term, checkpoint.installed_over
    header = _CHECKPOINT_HEADERS[CHECKPOINT_VERSION]
    head = header.pack(CHECKPOINT_MAGIC, CHECKPOINT_VERSION, *names, len(checkpoint.state))
    return _with_crc(head + checkpoint.state)


def decode_checkpoint(data: bytes) -> Checkpoint:
    """A whole checkpoint file; BadBytes if any of it is wrong."""
    version = int.from_bytes(data[8:12], "little")
    header = _CHECKPOINT_HEADERS.get(version, _CHECKPOINT_HEADERS[CHECKPOINT_VERSION])
    versions = tuple(_CHECKPOINT_HEADERS)
    _check_magic(data, header.size + 4, CHECKPOINT_MAGIC, "checkpoint", versions)
    _, _, index, term, previous_term, *rest = header.unpack_from(data)
    _check_crc(data, "checkpoint")
    state = data[header.size : -4]
    if len(state) != rest[-1]:
        raise BadBytes(f"checkpoint: {len(state)} bytes of state, its header says {rest[-1]}")
    return Checkpoint(index, term, previous_term, state, rest[0] if version > 1 else 0)


# -- what they share --------------------------------------------------------------------------------------------------


def _with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", crc32.iscsi(data))


def _check_head(data: Buffer, size_bytes: int, magic: bytes, what: str) -> None:
    _check_magic(data, size_bytes, magic, what)
    _check_crc(bytes(data[:size_bytes]), what)


def _check_magic(
    data: Buffer, size_bytes: int, magic: bytes, what: str, versions: tuple[int, ...] = (VERSION,)
) -> None:
    if len(data) < size_bytes:
        raise BadBytes(f"{what}: {len(data)} bytes of at least {size_bytes}")
    if bytes(data[:8]) != magic:
        raise BadBytes(f"{what}: begins with {bytes(data[:8])!r}, not with {magic!r}")
    version = int.from_bytes(data[8:12], "little")
    if version not in versions:
        raise BadBytes(f"{what}: version {version}; this program writes and reads version {versions[-1]}")


def _check_crc(data: bytes, what: str) -> None:
    crc = crc32.iscsi(memoryview(data)[:-4])
    stored = int.from_bytes(data[-4:], "little")
    if crc != stored:
        raise BadBytes(f"{what}: CRC-32C is {crc:08x}, it says {stored:08x}")
