"""A finished segment that is read again, and the file that takes the place of a damaged one.

    own batches as far as they are good ┐
    each bad one, as another sends it   ├─► new file, fsynced ─► the bad one is set aside ─► the new one is there
    what nobody has: its gap record     ┘

`digests` are those of a segment's batches as they are committed, none where that is not known.

A batch is good if its CRC is right, it stands where it is due, and its digest is the one that the log has committed:
the leaf of its Merkle tree (`sinkd.shell.leaves`), where there is one. So bytes that were altered with a right CRC are
found too, and are not taken from a sink that has them so.

The gap record of a batch that nobody has bears the digest of that batch, which stays the leaf: the tree is as before,
and what is found after all takes its place again. It has another size, so that the file has another index then.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping

from protocol.coverage import digest_of
from protocol.errors import DamagedFile, FrameError
from protocol.gaps import is_of_damage, leaf_digest, lost_batch
from protocol.limits import LINK_FRAME_BYTES_MAX, SEGMENT_SCAN_BYTES
from protocol.records import HEADER_BYTES, BatchHeader, check_batch, read_header, split_batches
from sinkd.core.formats import SEGMENT_HEADER_BYTES, SegmentHeader, encode_segment_header
from sinkd.core.state import Damaged
from sinkd.shell.files import SharedFile, read_at, temporary_of, write_at
from sinkd.shell.leaves import Digests
from sinkd.shell.segment_files import Segment, SegmentFiles, check_offset, read_bytes
from sinkd.shell.segments import PartitionLog


class AlteredBatch(DamagedFile):
    """A batch is whole, and another one than what was committed."""


class WrongBatch(FrameError):
    """A sink has sent a whole batch that is another one than what was committed."""


class LostThere(FrameError):
    """A sink has sent the gap record that it has in the place of a batch."""


def checked(files: SegmentFiles, segment: Segment, digests: Digests, gaps: list[int]) -> Iterator[int]:
    """Reads a finished segment from the disk: the bytes of each batch. `gaps` gets the offsets of those in the place of
    which gap records stand.

    DamagedFile, AlteredBatch: some of it is bad. FileNotFoundError: it is gone.
    """
    with files.opened_alone(segment) as opened:
        os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size_bytes, offset = os.fstat(opened.descriptor).st_size, segment.base_offset
        try:
            found = read_bytes(opened, SEGMENT_HEADER_BYTES, size_bytes, offset, check=True)
            for position, header, batch in found:
                if problem := _difference(header, batch, digests):
                    raise AlteredBatch(str(segment.path), position, problem)
                if is_of_damage(header, batch):
                    gaps.append(header.base_offset)
                offset = header.next_offset
                yield header.size_bytes
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise DamagedFile(str(segment.path), 0, f"behind offset {offset} the disk cannot read it") from error
        if (size_bytes, offset) != (segment.size_bytes, segment.next_offset):
            what = f"it ends at offset {offset}, byte {size_bytes}: {segment.next_offset}, {segment.size_bytes} are due"
            raise DamagedFile(str(segment.path), size_bytes, what)


def _difference(header: BatchHeader, batch: bytes | memoryview, digests: Digests) -> str:
    """What of it is not as it was committed, "" if all is."""
    if not digests:
        return ""
    committed, digest = digests.get(header.base_offset), leaf_digest(header, batch)
    if digest == committed:
        return ""
    wanted = f"{committed.hex()} was committed" if committed is not None else "none that begins there was committed"
    return f"the batch at offset {header.base_offset} is whole, and its digest {digest.hex()}: {wanted}"


class Copy:
    """A finished segment written anew beside the old file. Its methods are for threads, one at a time."""

    def __init__(
        self,
        log: PartitionLog,
        segment: Segment,
        digests: Digests,
        lost: Mapping[int, Damaged],
        *,
        restores: bool = False,
    ) -> None:
        """`lost` are the batches, by base offset, that may become gap records. `restores`: own gap records of such ones
        are not good, for others have the batches again.
        """
        self._log, self._segment, self._digests, self._lost, self._restores = log, segment, digests, lost, restores
        self.offset = segment.base_offset
        self._position = self._old_position = SEGMENT_HEADER_BYTES
        self._is_shifted = restores or bool(lost)  # batches may stand elsewhere in the file than before
        self._old_bytes: bytes | None = None
        self.pulled: dict[str, int] = {}  # bytes, by who has sent them
        self.given_up: list[int] = []  # base offsets of what became gap records
        flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC  # if it is gone, there is nothing of it to take
        self._old = SharedFile(segment.path, os.open(segment.path, flags, 0o600))
        path = temporary_of(segment.path)
        self._new = SharedFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        names = log.files.incarnation, log.files.partition, segment.base_offset
        header = SegmentHeader(*names, int(segment.base_offset == log.start_offset))
        write_at(self._new.descriptor, [encode_segment_header(header)], 0)

    @property
    def is_complete(self) -> bool:
        return self.offset >= self._segment.next_offset

    # -- own batches --------------------------------------------------------------------------------------------------

    def take_own(self) -> bool:
        """Takes the good batches of the old file from here on; whether there was one."""
        good, next_offset = self._good(self._own(LINK_FRAME_BYTES_MAX))
        if not good and self._is_shifted and self._finds_own():
            good, next_offset = self._good(self._own(LINK_FRAME_BYTES_MAX))
        self._append(good, next_offset)
        self._old_position += len(good)
        return bool(good)

    def _own(self, size_bytes: int) -> bytes:
        """So many bytes of the old file from here on, or fewer; b"" where the disk cannot read them."""
        size_bytes = min(size_bytes, max(0, self._segment.size_bytes - self._old_position))
        return self._own_at(self._old_position, size_bytes)

    def _own_at(self, position: int, size_bytes: int) -> bytes:
        try:
            with self._old.reading() as descriptor:
                return read_at(descriptor, size_bytes, position)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""

    def _finds_own(self) -> bool:
        """Whether the batch that is due stands, good, anywhere in the old file: behind what has changed its size."""
        if self._old_bytes is None:
            parts = []
            for position in range(0, self._segment.size_bytes, SEGMENT_SCAN_BYTES):
                size_bytes = min(SEGMENT_SCAN_BYTES, self._segment.size_bytes - position)
                parts.append(self._own_at(position, size_bytes).ljust(size_bytes, b"\0"))
            self._old_bytes = b"".join(parts)
        mark = self.offset.to_bytes(8, "big")
        at = self._old_bytes.find(mark, SEGMENT_HEADER_BYTES)
        while at >= 0:
            if self._good(self._own_at(at, LINK_FRAME_BYTES_MAX))[0]:
                self._old_position = at
                return True
            at = self._old_bytes.find(mark, at + 1)
        return False

    def _good(self, data: bytes) -> tuple[memoryview, int]:
        """(the batches that `data` begins with, as long as they are good and where they are due, the next offset)."""
        view, end, offset = memoryview(data), 0, self.offset
        with contextlib.suppress(FrameError):
            while len(view) - end >= HEADER_BYTES and offset < self._segment.next_offset:
                header = read_header(view, end)
                batch = view[end : end + header.size_bytes]
                check_offset(header, offset)
                check_batch(batch)
                if _difference(header, batch, self._digests) or (self._restores and is_of_damage(header, batch)):
                    break
                end, offset = end + header.size_bytes, header.next_offset
        return view[:end], offset

    # -- of others ----------------------------------------------------------------------------------------------------

    def take(self, data: bytes, source: str, *, gaps: bool = False) -> None:
        """Takes what `source` sent, up to where the old file is good again; gap records of lost batches if `gaps`.

        FrameError: not the batches that are due; WrongBatch: others than were committed; LostThere: it lacks them too.
        """
        before = self.offset
        for batch in split_batches(data):
            header = check_batch(batch)
            if header.next_offset <= self.offset:
                continue
            if self.is_complete or (self.offset > before and self._own(len(batch)) == batch):
                break  # what comes next is in the next segment here, or good
            check_offset(header, self.offset)
            if problem := self._why_not(header, batch, gaps=gaps):
                if self.offset > before:
                    break
                raise problem
            self._append(batch, header.next_offset)
            self._old_position += len(batch)
            self.pulled[source] = self.pulled.get(source, 0) + len(batch)
        if self.offset == before:
            raise FrameError(f"no batch for offset {before}")

    def _why_not(self, header: BatchHeader, batch: memoryview, *, gaps: bool) -> FrameError | None:
        if problem := _difference(header, batch, self._digests):
            return WrongBatch(problem)
        if not is_of_damage(header, batch):
            return None
        self._is_shifted = True
        return None if gaps else LostThere(f"it has lost the batch at offset {header.base_offset} too")

    def give_up(self) -> bool:
        """Has a gap record in the place of the batch that is due; whether that is allowed."""
        lost = self._lost.get(self.offset)
        if lost is None:
            return False
        self.given_up.append(self.offset)
        self._append(memoryview(gap_of(lost)), lost.next_offset)
        return True

    def keep_gap(self) -> bool:
        """Has the own gap record stay where nobody has the batch; whether there is one."""
        self._restores = False
        good, _ = self._good(self._own(LINK_FRAME_BYTES_MAX))
        if not good and self._finds_own():
            good, _ = self._good(self._own(LINK_FRAME_BYTES_MAX))
        self._restores = True
        if not good:
            return False
        header = read_header(good)
        self._append(good[: header.size_bytes], header.next_offset)
        self._old_position += header.size_bytes
        return True

    def next_offset(self) -> int | None:
        """Where the batch that is due ends, if the leaves of the segment say so."""
        if self.offset not in self._digests:
            return None
        behind = self._digests.behind(self.offset)
        return behind if behind is not None else self._segment.next_offset

    def pass_over(self, next_offset: int) -> None:
        """Goes on at that offset, to see what else is missing: the copy is of no use any more."""
        self.offset, self._is_shifted = next_offset, True

    # -- the new file -------------------------------------------------------------------------------------------------

    def _append(self, batches: memoryview, next_offset: int) -> None:
        end = self._position + len(batches)
        due = self._segment.next_offset, self._segment.size_bytes
        is_larger = not self._is_shifted and (end > due[1] or (next_offset == due[0] and end != due[1]))
        if next_offset > due[0] or is_larger:
            raise FrameError(
                f"batches to offset {next_offset}, byte {end}: the segment ends at {due[0]}, byte {due[1]}"
            )
        with self._new.reading() as descriptor:
            write_at(descriptor, [bytes(batches)], self._position)
        self.offset, self._position = next_offset, end

    def put_in_place(self) -> None:
        """Durable, then in the place of the old one. On the writer's thread."""
        with self._new.reading() as descriptor:
            os.fsync(descriptor)
        self._log.put(self._segment, self._new.path, is_as_before=not self._is_shifted)

    def close(self) -> None:
        """In any case; a thread may still be at it, if nobody waits for it any more."""
        self._old.retire()
        self._new.retire()
        self._new.path.unlink(missing_ok=True)


def holds(data: bytes, gap: bytes) -> bool:
    """Whether `data` has the batch in the place of which the batch `gap` stands. FrameError: it has no batches."""
    lost = read_header(gap)
    for batch in split_batches(data):
        header = check_batch(batch)
        if header.next_offset > lost.base_offset:
            is_there = (header.base_offset, header.next_offset) == (lost.base_offset, lost.next_offset)
            return is_there and not is_of_damage(header, batch) and digest_of(batch) == leaf_digest(lost, gap)
    return False


def gap_of(lost: Damaged) -> bytes:
    """The gap record in the place of a lost batch: the same bytes on every sink."""
    return lost_batch(lost.base_offset, lost.next_offset, lost.digest, lost.time_ms, lost.who)
