"""The batches of a certified log as they lie in files: a sink's data folder, or segments that were copied from one.

Every folder in which there are segments of the log is one copy of a partition, and each is looked at from the first
offset of the certificate to the last. All that is needed of a batch is its place and its digest: bytes are read in
large chunks by one thread, while another hashes what was read before (`hashlib` lets go of the interpreter meanwhile).
"""

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from protocol.certificate import Certificate, Partition
from protocol.certified_data import Found, Growth
from protocol.errors import FrameError
from protocol.gaps import leaf_digest
from protocol.limits import LINK_FRAME_BYTES_MAX
from protocol.records import CONTROL, HEADER_BYTES, read_header

_CHUNK_BYTES = 4 << 20
_SEGMENT_HEADER = struct.Struct("<8sI16sIQ")  # magic, version, incarnation, partition, base offset, of 64 bytes
_SEGMENT_HEADER_BYTES = 64
_HEADER = struct.Struct(">qi9xhi")  # base offset, length behind it, attributes, last offset delta
_OFFSET = struct.Struct(">Q")
_LENGTH_FROM, _DIGEST_FROM = 12, 21
_MAGIC, _VERSION = b"MESHSEGM", 1


class DataProblem(Exception):
    """The data are not what was certified, or not all of it; what, and where."""


class Segment(NamedTuple):
    base_offset: int
    path: Path


class Copy(NamedTuple):
    """Of a partition, in one folder; segments in the order of their offsets."""

    folder: Path
    partition: int
    segments: tuple[Segment, ...]


def copies_in(folder: Path, certificate: Certificate) -> list[Copy]:
    """Of the log that is certified, below `folder`, whatever it is called. OSError."""
    incarnation = bytes.fromhex(certificate.incarnation)
    found: dict[tuple[Path, int], list[Segment]] = {}
    for path in sorted(folder.rglob("*.segment")):
        with path.open("rb") as file:
            head = file.read(_SEGMENT_HEADER.size)
        if len(head) == _SEGMENT_HEADER.size:
            magic, version, its, partition, base_offset = _SEGMENT_HEADER.unpack(head)
            if (magic, version, its) == (_MAGIC, _VERSION, incarnation):
                found.setdefault((path.parent, partition), []).append(Segment(base_offset, path))
    return [Copy(*place, tuple(sorted(segments))) for place, segments in sorted(found.items())]


def look_at(copy: Copy, partition: Partition) -> tuple[Found, int]:
    """(what its batches come to, bytes that were read). DataProblem: they are not all there. OSError."""
    growth = Growth(partition.partition, partition.from_size, partition.frontier_from)
    offset, read_bytes = partition.from_, 0
    if offset == partition.to:
        return growth.found(), 0
    if not copy.segments or copy.segments[0].base_offset > offset:
        begins = copy.segments[0].base_offset if copy.segments else "none"
        raise DataProblem(f"{copy.folder}: the data begin at offset {begins}, the certificate at {offset}")
    last = max(number for number, one in enumerate(copy.segments) if one.base_offset <= offset)
    for segment in copy.segments[last:]:
        if offset >= partition.to:
            break
        if segment.base_offset > offset:
            raise DataProblem(f"{segment.path}: begins at offset {segment.base_offset}, {offset} is due")
        offset, size_bytes = _take(segment, offset, partition.to, growth)
        read_bytes += size_bytes
    if offset != partition.to:
        raise DataProblem(f"{copy.folder}: the data end at offset {offset}, the certificate at {partition.to}")
    return growth.found(), read_bytes


def _take(segment: Segment, offset: int, to_offset: int, growth: Growth) -> tuple[int, int]:
    """(offset behind the last batch that was taken, bytes): of those from `offset` on to before `to_offset`."""
    due, rest, read_bytes, position = segment.base_offset, b"", 0, _SEGMENT_HEADER_BYTES
    pack, unpack = _OFFSET.pack, _HEADER.unpack_from
    for chunk in _chunks(segment.path):
        data = rest + chunk if rest else chunk
        view, at, end, leaves = memoryview(data), 0, len(data), []
        read_bytes += len(chunk)
        while end - at >= HEADER_BYTES and due < to_offset:
            base_offset, length, attributes, last_delta = unpack(data, at)
            batch_end = at + _LENGTH_FROM + length
            if not HEADER_BYTES <= batch_end - at <= LINK_FRAME_BYTES_MAX:
                raise DataProblem(f"{segment.path}: byte {position + at}: a batch of {batch_end - at} bytes")
            if base_offset != due:
                raise DataProblem(f"{segment.path}: byte {position + at}: offset {base_offset} where {due} is due")
            if batch_end > end:
                break
            due += last_delta + 1
            if base_offset >= offset:
                if attributes & CONTROL:
                    digest = _control(segment, position + at, view[at:batch_end], growth)
                else:
                    digest = sha256(view[at + _DIGEST_FROM : batch_end]).digest()
                leaves.append(sha256(b"\x00" + pack(base_offset) + digest).digest())
            at = batch_end
        growth.take_all(leaves)
        if due >= to_offset:  # behind it a batch may just be being written
            return due, read_bytes
        rest, position = data[at:], position + at
    if rest:
        raise DataProblem(f"{segment.path}: byte {position}: it ends within a batch")
    return due, read_bytes


def _control(segment: Segment, position: int, batch: memoryview, growth: Growth) -> bytes:
    """D of a control batch, which is noted."""
    try:
        header = read_header(batch)
        growth.note(header, batch)
        return leaf_digest(header, batch)
    except FrameError as error:
        raise DataProblem(f"{segment.path}: byte {position}: {error}") from error


def _chunks(path: Path) -> Iterator[bytes]:
    """What stands behind a segment's header, each part read while the one before it is looked at."""
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:
        file.seek(_SEGMENT_HEADER_BYTES)
        coming = reader.submit(_read, file)
        while data := coming.result():
            coming = reader.submit(_read, file)
            yield data


def _read(file: BinaryIO) -> bytes:
    return file.read(_CHUNK_BYTES)
