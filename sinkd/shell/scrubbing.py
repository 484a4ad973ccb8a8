"""Segments whose bytes went bad on the disk: found by reading them again, and made whole from what others hold.

    finished segments ─► read from the disk at a bounded rate, every batch checked ─► bad ─┐
    a fetch meets bad bytes ───────────────────────────────────────────────────────────────┴─► mend, then read again

Replicas hold the same bytes at the same places, and so do mirrors. Only what is bad crosses the network, from a sink of
the zone or else from one of another zone (`sinkd.shell.elsewhere`); `sinkd.shell.mending` says what is good, and makes
the new file. Serving goes on. What nobody has stays as it is, a fact in log and metrics: it is never served, and a
fetch that asks for it fails by name, until an operator has gap records stand in its place (`sinkd.shell.giving_up`).
Then each round looks whether another sink has the batches again.

Only finished segments are mended: damage to the one that is written, to the journal or to a checkpoint ends the sink,
which its peers then fill.

A page cache hides what the disk has become, so the pages of a segment are dropped before it is read again. How often a
disk errs without a word: Bairavasundaram et al., An Analysis of Data Corruption in the Storage Stack (FAST 2008).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple, Protocol

import structlog

from protocol.errors import DamagedFile, FrameError, LogError
from protocol.limits import PULL_BYTES, SCRUB_BEGIN_MS, SCRUB_ROUND_MS_MIN, SEGMENT_SCAN_BYTES
from protocol.streams import StreamState
from sinkd.core.formats import BadBytes
from sinkd.core.state import Damaged
from sinkd.shell.correcting import Asker, correct, problem_of
from sinkd.shell.elsewhere import Elsewhere
from sinkd.shell.files import NO_SPACE
from sinkd.shell.leaves import Digests, kept_leaves, leaves_of
from sinkd.shell.mending import AlteredBatch, Copy, LostThere, WrongBatch, checked, holds
from sinkd.shell.segment_files import Segment
from sinkd.shell.store import Partition, Store

Pull = Callable[[str, StreamState, int, int, int], Awaitable[tuple[int, bytes]]]
"""(sink, stream, partition, offset, most bytes) → (start offset, whole batches); LogError: it has none."""

log = structlog.get_logger()


class Progress(NamedTuple):
    """Of the round that is under way, or of the last one: bytes that it has read, of so many; rounds that ended."""

    read_bytes: int
    of_bytes: int
    rounds: int
    is_under_way: bool


class Tells(Protocol):
    """Who is told what was found and done."""

    def mended(self, partition: Partition, base_offset: int, pulled: dict[str, int]) -> None:
        """A segment is whole again; so many bytes came from whom."""

    def lost(self, partition: Partition, offsets: list[int]) -> None:
        """Gap records stand in the place of the batches that begin there."""

    def differs(self, partition: Partition, source: str, why: str) -> None:
        """`source`, "" for this sink's own disk, has a whole batch that is another one than what was committed."""


class Scrubber:
    """Of one replica. `damaged` names the files that are bad now, `mended` counts those that are whole again."""

    def __init__(
        self,
        store: Store,
        writer: Executor,
        pull: Pull,
        sources: Callable[[], list[str]],
        elsewhere: Elsewhere,
        tells: Tells,
        found: Callable[[Partition, list[int]], Awaitable[None]],
        rate_bytes: int,
    ) -> None:
        """`sources` names the peers that may be asked, best first; then sinks `elsewhere` are. `found` is told of
        batches that were given up and are there, by offset. `rate_bytes` a second are read, by a round that was asked
        for as fast as it can; 0: by no other.
        """
        self._found = found
        self._store, self._writer, self._pull, self._sources = store, writer, pull, sources
        self._elsewhere, self._tells, self._rate_bytes = elsewhere, tells, rate_bytes
        self._mending = asyncio.Lock()
        self._due: dict[str, tuple[Partition, DamagedFile]] = {}  # by file
        self._wake, self._is_asked = asyncio.Event(), False
        self.damaged: dict[str, str] = {}  # by file: what is wrong
        self.suspected: dict[tuple[bytes, int], str] = {}  # logs whose root is not the committed one: which it is
        self.progress = Progress(0, 0, 0, False)
        self.read_bytes = self.found = self.mended = self.altered = self.refused = 0

    # -- rounds -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begins a round now, or has the one that is under way not wait any more."""
        self._is_asked = True
        self._wake.set()

    def suspect(self, partition: Partition, why: str) -> None:
        """What is here of a log is not what was committed, and nobody knows where: the next round finds out."""
        self._suspect(partition, why)
        self.begin()

    def _suspect(self, partition: Partition, why: str) -> None:
        key = partition.stream.incarnation, partition.number
        if key not in self.suspected:
            log.error("replica_differs", log=partition.stream.name, partition=partition.number, why=why)
            self._tells.differs(partition, "", why)
        self.suspected[key] = f"{partition.stream.name}/{partition.number}: {why}"

    async def run(self) -> None:
        """Rounds without end. OSError: this disk fails."""
        loop = asyncio.get_running_loop()
        due_at = loop.time() + SCRUB_BEGIN_MS / 1000
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_at if self._rate_bytes else None):
                    await self._wake.wait()
            self._wake.clear()
            await self._mend_due()
            if self._is_asked or (self._rate_bytes and loop.time() >= due_at):
                await self._round()
                self._is_asked = False
                due_at = loop.time() + SCRUB_ROUND_MS_MIN / 1000

    async def _round(self) -> None:
        work = [(each, segment) for each in self._store.partitions for segment in each.log.finished()]
        of_bytes, rounds = sum(segment.size_bytes for _, segment in work), self.progress.rounds
        self.progress = Progress(0, of_bytes, rounds, True)
        for partition, segment in work:
            await self._mend_due()
            if segment in partition.log.finished():  # not trimmed, nor written anew
                await self._look_at(partition, segment)
            self.progress = self.progress._replace(read_bytes=self.progress.read_bytes + segment.size_bytes)
        for partition in self._store.partitions:
            await self._compare(partition)
        await self._mend_due()
        self.progress = self.progress._replace(rounds=rounds + 1, is_under_way=False)
        if work:
            log.info("scrubbed", group=self._store.group, bytes=of_bytes, segments=len(work), damaged=len(self.damaged))

    async def _look_at(self, partition: Partition, segment: Segment) -> None:
        try:
            gaps = await self._check(partition, segment, paced=True)
        except DamagedFile as damage:
            await self.mend(partition, damage)
            return
        self.damaged.pop(str(segment.path), None)
        if gaps and await self._is_found_again(partition, gaps):
            gaps = await self._restored(partition, segment)
        if found := [offset for offset in _lost(partition, segment) if offset not in gaps]:
            await self._found(partition, found)

    async def _check(self, partition: Partition, segment: Segment, *, paced: bool) -> list[int]:
        """The offsets at which gap records stand in the place of batches. DamagedFile: some of it is bad."""
        digests, gaps = await self._digests(partition, segment), list[int]()
        batches = checked(partition.log.files, segment, digests, gaps)
        is_read = False
        while not is_read:
            try:
                is_read, read_bytes = await self._store.on_reader(lambda: _some_of(batches))
            except FileNotFoundError:
                if segment not in partition.log.finished():
                    return gaps  # trimmed meanwhile, or written anew
                raise DamagedFile(str(segment.path), 0, "it is gone") from None
            self.read_bytes += read_bytes
            if paced:
                await self._pause(read_bytes)
        tree = partition.replicated.tree
        if not digests and tree is not None and segment.base_offset >= tree.begin_offset:
            with contextlib.suppress(FileNotFoundError):
                await self._store.on_reader(partial(leaves_of, partition.log.files, segment))
        return gaps

    async def _pause(self, read_bytes: int) -> None:
        """As long as so much may take, unless somebody waits for the round."""
        if not self._is_asked:
            await asyncio.sleep(read_bytes / self._rate_bytes)

    async def _compare(self, partition: Partition) -> None:
        """Looks whether all leaves, read again, lead to the committed root; corrects them if not."""
        try:
            why = await problem_of(self._store, partition, self._pause)
        except (LogError, DamagedFile, FrameError, FileNotFoundError) as error:  # trimmed, or damaged, which was said
            log.info("root_not_known", log=partition.stream.name, partition=partition.number, error=str(error))
            return
        if not why:
            self.suspected.pop((partition.stream.incarnation, partition.number), None)
            return
        self._suspect(partition, why)
        for segment in await correct(self._store, partition, self._askers(partition)):
            what = "its leaves were corrected"
            self._due[str(segment.path)] = partition, DamagedFile(str(segment.path), 0, what)
            self.suspected.pop((partition.stream.incarnation, partition.number), None)
        self._elsewhere.close()

    async def _digests(self, partition: Partition, segment: Segment) -> Digests:
        """What the log has committed of a segment's batches, as far as the leaves beside it can be read."""

        def read() -> Digests:
            try:
                return Digests(kept_leaves(partition.log.files, segment))
            except BadBytes:
                return Digests(b"")

        return await self._store.on_reader(read)

    # -- mending ------------------------------------------------------------------------------------------------------

    async def mend_later(self, partition: Partition, damage: DamagedFile) -> str | None:
        """As `mend`, but it waits for nothing."""
        if all(str(segment.path) != damage.file for segment in partition.log.finished()):
            return None
        if damage.file not in self.damaged:  # else the peer that asks may be one that was asked for it in vain
            self._due[damage.file] = partition, damage
            self._wake.set()
        return "it has to be mended first"

    def given_up(self, partition: Partition, offsets: list[int]) -> None:
        """An operator has: the segments that hold these offsets are written anew, where they are bad."""
        for segment in partition.log.finished():
            if any(segment.base_offset <= offset < segment.next_offset for offset in offsets):
                what = "some of it was given up"
                self._due[str(segment.path)] = partition, DamagedFile(str(segment.path), 0, what)
        self._wake.set()

    async def _mend_due(self) -> None:
        while self._due:
            _, due = self._due.popitem()
            await self.mend(*due)

    async def mend(self, partition: Partition, damage: DamagedFile) -> str | None:
        """Makes the finished segment whole that `damage` is about: "", or why it cannot be. None: it is about none."""
        segment = self._at(partition, damage.file)
        if segment is None:
            return None
        async with self._mending:
            segment = self._at(partition, damage.file)  # it may have been written anew meanwhile
            if segment is None:
                return ""
            try:
                await self._check(partition, segment, paced=False)
            except DamagedFile as found:
                try:
                    return await self._mend(partition, segment, found)
                except asyncio.CancelledError:  # who has met it waits no more: it is mended all the same
                    self._due[damage.file] = partition, damage
                    self._wake.set()
                    raise
            return ""  # mended by another one meanwhile, or trimmed

    @staticmethod
    def _at(partition: Partition, file: str) -> Segment | None:
        return next((one for one in partition.log.finished() if str(one.path) == file), None)

    async def _mend(self, partition: Partition, segment: Segment, damage: DamagedFile) -> str:
        if damage.file not in self.damaged:
            self._note_damage(partition, damage)
        problem = await self._write_anew(partition, segment)
        if problem:
            log.error("segment_not_mended", file=damage.file, error=problem)
            return problem
        self.mended += 1
        self.damaged.pop(damage.file, None)
        return ""

    def _note_damage(self, partition: Partition, damage: DamagedFile) -> None:
        self.found += 1
        self.damaged[damage.file] = str(damage)
        log.error("segment_damaged", error=str(damage), consequence="others are asked for what is bad")
        if isinstance(damage, AlteredBatch):
            self.altered += 1
            self._tells.differs(partition, "", str(damage))

    async def _write_anew(self, partition: Partition, segment: Segment, *, restores: bool = False) -> str:
        """Why that cannot be done, or ""."""
        digests = await self._digests(partition, segment)
        copy = Copy(partition.log, segment, digests, _lost(partition, segment), restores=restores)
        try:
            while not copy.is_complete:
                if not await self._store.on_reader(copy.take_own):
                    problem = await self._others(copy, partition, restores=restores)
                    if problem:
                        return problem
            await asyncio.get_running_loop().run_in_executor(self._writer, copy.put_in_place)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            return str(error)
        finally:
            copy.close()
            self._elsewhere.close()
        pulled_bytes, sources = sum(copy.pulled.values()), list(copy.pulled)
        log.info("segment_mended", file=str(segment.path), pulled_bytes=pulled_bytes, sources=sources)
        if copy.pulled:
            self._tells.mended(partition, segment.base_offset, copy.pulled)
        if copy.given_up and not restores:
            log.error("segment_has_lost", file=str(segment.path), offsets=copy.given_up)
            self._tells.lost(partition, copy.given_up)
        return ""

    async def _others(self, copy: Copy, partition: Partition, *, restores: bool = False) -> str:
        """Brings the copy at least one batch further, by what others have or are known not to have; why not, or ""."""
        problem, gap = await self._pulled(copy, partition)
        if not problem or copy.give_up():
            return ""
        if restores and await self._store.on_reader(copy.keep_gap):
            return ""
        if gap is not None:
            with contextlib.suppress(FrameError):
                await self._store.on_reader(partial(copy.take, *gap, gaps=True))
                return ""
        return f"offset {copy.offset}: {problem}"

    async def _pulled(self, copy: Copy, partition: Partition) -> tuple[str, tuple[bytes, str] | None]:
        """Brings the copy at least one batch further by what another sink has.

        (why that cannot be done, or "", the gap record that somebody has instead and who that is).
        """
        problems, gap = [], None
        for ask in self._askers(partition):
            source, data = "", b""
            try:
                source, data = await ask(copy.offset)
                await self._store.on_reader(partial(copy.take, data, source))
            except LostThere as error:
                problems.append(f"{source}: {error}")
                gap = data, source
            except WrongBatch as error:
                problems.append(f"{source}: {error}")
                self._refuse(partition, source, error)
            except (LogError, FrameError) as error:
                problems.append(f"{source}: {error}" if source else str(error))
            else:
                return "", None
        return "; ".join(problems) or "no other sink is there to ask", gap

    def _refuse(self, partition: Partition, source: str, error: WrongBatch) -> None:
        self.refused += 1
        log.error("batch_refused", stream=partition.stream.name, partition=partition.number, source=source,
                  error=str(error))  # fmt: skip
        self._tells.differs(partition, source, str(error))

    def _askers(self, partition: Partition) -> list[Asker]:
        """Each that may be asked, in turn."""
        peers = [partial(self._ask_peer, partition, name) for name in self._sources()]
        zones = [partial(self._ask_zone, partition, zone) for zone in self._elsewhere.zones(partition.stream)]
        return [*peers, *zones]

    async def _ask_peer(self, partition: Partition, name: str, offset: int) -> tuple[str, bytes]:
        place = partition.stream, partition.number, offset
        try:
            _, data = await self._pull(name, *place, PULL_BYTES)
        except LogError:  # there may be damage behind the batch that is wanted
            _, data = await self._pull(name, *place, 1)
        return f"sink {name}", data

    async def _ask_zone(self, partition: Partition, zone: str, offset: int) -> tuple[str, bytes]:
        name, data = await self._elsewhere.pull(zone, partition.stream, partition.number, offset)
        return f"sink {name} of zone {zone}", data

    # -- what was given up --------------------------------------------------------------------------------------------

    async def missing(self, partition: Partition) -> list[tuple[int, int, bytes, str]]:
        """Mends what can be, and tells what cannot: (base offset, next offset, D or b"", why not) of batches that no
        sink has whole that can be asked.

        LogError STORAGE_ERROR: it is not known where they end.
        """
        found: list[tuple[int, int, bytes, str]] = []
        for segment in partition.log.finished():
            try:
                await self._check(partition, segment, paced=False)
            except DamagedFile as damage:
                if await self.mend(partition, damage):
                    found += await self._missing(partition, segment)
        return found

    async def _missing(self, partition: Partition, segment: Segment) -> list[tuple[int, int, bytes, str]]:
        digests = await self._digests(partition, segment)
        found = []
        async with self._mending:
            copy = Copy(partition.log, segment, digests, _lost(partition, segment))
            try:
                while not copy.is_complete:
                    if await self._store.on_reader(copy.take_own):
                        continue
                    problem, base_offset = await self._others(copy, partition), copy.offset
                    if not problem:
                        continue
                    next_offset = copy.next_offset()
                    if next_offset is None:
                        what = f"{segment.path}: where the batch at offset {base_offset} ends is not known any more"
                        raise LogError("STORAGE_ERROR", what)
                    found.append((base_offset, next_offset, digests[base_offset], problem))
                    copy.pass_over(next_offset)
            finally:
                copy.close()
                self._elsewhere.close()
        return found

    async def _is_found_again(self, partition: Partition, gaps: list[int]) -> bool:
        """Whether another sink has a batch of which gap records stand here."""
        try:
            for offset in gaps:
                gap = bytes(await self._store.on_reader(partial(partition.log.read, offset, 1)))
                for ask in self._askers(partition):
                    with contextlib.suppress(LogError, FrameError):
                        source, data = await ask(offset)
                        if holds(data, gap):
                            log.info("batch_found_again", offset=offset, source=source)
                            return True
        except (DamagedFile, LogError):  # trimmed, or bad once more: the next round sees
            return False
        finally:
            self._elsewhere.close()
        return False

    async def _restored(self, partition: Partition, segment: Segment) -> list[int]:
        """Puts back what others have; the gap records that are left."""
        async with self._mending:
            if segment in partition.log.finished() and not await self._write_anew(partition, segment, restores=True):
                self.mended += 1
        anew = self._at(partition, str(segment.path))
        try:
            return await self._check(partition, anew, paced=False) if anew is not None else []
        except DamagedFile:  # the next round sees
            return list(_lost(partition, segment))


def _lost(partition: Partition, segment: Segment) -> dict[int, Damaged]:
    """Batches of the segment that were given up, by base offset."""
    within = range(segment.base_offset, segment.next_offset)
    return {lost.base_offset: lost for lost in partition.replicated.damaged if lost.base_offset in within}


def _some_of(batches: Iterator[int]) -> tuple[bool, int]:
    """(whether that was all, bytes) of about as many batches as one read takes."""
    read_bytes = 0
    for size_bytes in batches:
        read_bytes += size_bytes
        if read_bytes >= SEGMENT_SCAN_BYTES:
            return False, read_bytes
    return True, read_bytes
