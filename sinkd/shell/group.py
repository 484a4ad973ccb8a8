"""One Raft group of this sink: drives the member, batches what arrives, and answers when it is committed and fsynced.

    submit ─► pending ─► doTick: into the journal ─► fdatasync (thread) ─► doTick: committed, applied ─► answers

While an fdatasync runs, appends pile up in `pending`, and the next one serves them all: group commit without a timer.
Nothing ticks meanwhile, so whatever the next tick counts as held by this member is on its disk.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import structlog

from protocol.envelope import Envelope
from protocol.errors import LogError
from protocol.limits import COMMAND_BYTES_TARGET, LINK_FRAME_BYTES_MAX
from protocol.link import Appended, Refused
from sinkd.core import commands
from sinkd.core.machine import Machine, Result, Taken
from sinkd.shell.journal import Journal
from sinkd.shell.raft import Member
from sinkd.shell.store import Store

TICK_INTERVAL_S = 0.1
TICK_BYTES_MAX = LINK_FRAME_BYTES_MAX
COMMAND_OVERHEAD_BYTES = 64 * 1024  # of the records around a tick's commands, and of the other commands
log = structlog.get_logger()


class UnknownOutcome(Exception):
    """Leadership was lost, or this sink stopped, before the command was seen to commit: it may be in the log or not."""


class _Append(NamedTuple):
    head: Envelope
    parcel: bytes
    answer: Callable[[Appended | Refused], None]


class Group:
    """Call `run()` in a task; an exception from it (disk or state machine have failed) is the end of this sink."""

    def __init__(
        self, node: str, journal: Journal, machine: Machine, store: Store, applied_index: int, now_ms: Callable[[], int]
    ) -> None:
        self._journal, self._machine, self._store, self._now_ms = journal, machine, store, now_ms
        self._member = Member(node, journal, applied_index, self._apply)
        self._appends: deque[_Append] = deque()
        self._commands: deque[tuple[bytes, asyncio.Future[Result]]] = deque()
        self._decided: list[Callable[[], None]] = []
        self._waiting: set[asyncio.Future[Result]] = set()
        self._wake = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._syncer = ThreadPoolExecutor(1, "journal-sync")
        self._cut: tuple[int, asyncio.Future[None]] | None = None
        self._stopping = self._has_ended = False
        self._pending_bytes = 0
        self.no_space = False
        self.commands_committed = 0
        self.syncs = 0

    # -- what the link and the daemon ask for -------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        return self._member.is_caught_up and not self._stopping

    @property
    def term(self) -> int:
        return int(self._member.raftCurrentTerm)

    @property
    def applied_index(self) -> int:
        return int(self._member.raftLastApplied)

    @property
    def applied_terms(self) -> tuple[int, int]:
        """The terms of the last applied entry and of the one before it."""
        position = self.applied_index - self._journal.first_index
        last = self._journal[position]
        return last.term, self._journal[position - 1].term if position else 0

    async def caught_up(self) -> None:
        """Until this member leads and has applied everything of earlier terms."""
        await self._caught_up.wait()

    def append(self, head: Envelope, parcel: bytes, answer: Callable[[Appended | Refused], None]) -> None:
        """Takes a checked parcel with envelope `head`; `answer` is called once it is committed and fsynced or refused.

        It is not called if leadership is lost first.
        """
        self._appends.append(_Append(head, parcel, answer))
        self._pending_bytes += len(parcel)
        self._wake.set()

    async def submit(self, kind: int, body: commands.Configure | commands.OpenProducer | commands.Trim) -> Result:
        """The result of a command once it is committed, fsynced and applied. UnknownOutcome: see there.

        LogError STORAGE_ERROR: there is no room for it, and nothing was done.
        """
        if self._has_ended:
            raise UnknownOutcome("this sink has stopped")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._commands.append((commands.encode(kind, self._now_ms(), body), future))
        self._wake.set()
        return await future

    async def cut(self, index: int) -> None:
        """Lets the journal forget the entries below `index`, between two syncs. The caller's checkpoint is durable."""
        self._cut = index, asyncio.get_running_loop().create_future()
        self._wake.set()
        await self._cut[1]

    def stop(self) -> None:
        """Finishes what was handed over, then `run()` returns."""
        self._stopping = True
        self._wake.set()

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ticks until `stop()`. OSError, DamagedFile, FrameError: this sink can no longer be trusted and must end."""
        loop = asyncio.get_running_loop()
        try:
            while not self._stopping or self._has_work():
                if not self._has_work():
                    await self._wait_for_work()
                if not self._journal.room(self._tick_bytes):
                    await loop.run_in_executor(self._syncer, self._make_room)
                self._hand_over()
                self._member.doTick(0)
                self._answer()
                if self._journal.dirty:
                    self.syncs += 1
                    await loop.run_in_executor(self._syncer, self._journal.sync)
                if self._cut is not None:
                    await loop.run_in_executor(self._syncer, self._journal.cut, self._cut[0])
                    if not self._cut[1].done():
                        self._cut[1].set_result(None)
                    self._cut = None
                if not self._caught_up.is_set() and self._member.is_caught_up:
                    log.info("group_leads", term=self.term, applied_index=self.applied_index)
                    self._caught_up.set()
        finally:
            self._has_ended = True
            self._syncer.shutdown()
            self._give_up()

    def close(self) -> None:
        self._member.destroy()

    def _has_work(self) -> bool:
        """Whether the next tick can do something: take what is pending, commit what was synced, apply what remains."""
        return bool(
            self._appends or self._commands or self._cut or self._journal.last_index > self._member.raftLastApplied
        )

    async def _wait_for_work(self) -> None:
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), TICK_INTERVAL_S)
        except TimeoutError:
            return

    def _hand_over(self) -> None:
        """Moves what is pending into commands of about a megabyte; only a leader that knows its log does."""
        if not self._member.is_caught_up:
            return
        has_room = not self.no_space or self._journal.room(COMMAND_OVERHEAD_BYTES)
        while self._commands:
            command, future = self._commands.popleft()
            if has_room:
                self._waiting.add(future)
                self._member.append(command, partial(self._settle, future))
            elif not future.done():
                future.set_exception(LogError("STORAGE_ERROR", "storage full: there is no room in the journal"))
        left_bytes = self._tick_bytes
        while self._appends and left_bytes >= len(self._appends[0].parcel):
            taken = self._take_appends()
            left_bytes -= sum(len(append.parcel) for append in taken)
            if self.no_space:
                self._refuse(taken)
            else:
                self._append_command(taken)

    @property
    def _tick_bytes(self) -> int:
        """What one tick may add to the journal: less than a file, so that one spare is enough."""
        return min(self._pending_bytes, TICK_BYTES_MAX) + COMMAND_OVERHEAD_BYTES

    def _make_room(self) -> None:
        """On the syncer's thread: the journal's next file, before it is needed. Without it nothing is appended."""
        try:
            self._journal.prepare_spare(self._tick_bytes)
            self.no_space = False
        except OSError as error:
            log.warning("no_space_for_journal", error=str(error))
            self.no_space = True

    def _take_appends(self) -> list[_Append]:
        taken = [self._appends.popleft()]
        size_bytes = len(taken[0].parcel)
        while self._appends and size_bytes + len(self._appends[0].parcel) <= COMMAND_BYTES_TARGET:
            taken.append(self._appends.popleft())
            size_bytes += len(taken[-1].parcel)
        self._pending_bytes -= size_bytes
        return taken

    def _refuse(self, taken: list[_Append]) -> None:
        for head, _, answer in taken:
            names = head.stream, head.incarnation, head.partition
            answer(Refused(head.producer_id, head.epoch, *names, head.first_sequence, "STORAGE_FULL"))

    def _append_command(self, taken: list[_Append]) -> None:
        command = commands.encode_append(self._now_ms(), (append.parcel for append in taken))

        def decided(result: list[Taken], committed: bool) -> None:
            if committed:  # else silence: the gateway sends again to whoever leads then
                answers = zip(taken, result, strict=True)
                self._decided += [partial(append.answer, one.answer) for append, one in answers]

        self._member.append(command, decided)

    def _settle(self, future: asyncio.Future[Result], result: Result, committed: bool) -> None:
        def settle() -> None:
            self._waiting.discard(future)
            if future.done():
                return
            if committed:
                future.set_result(result)
            else:
                future.set_exception(UnknownOutcome("leadership changed before the command was committed"))

        self._decided.append(settle)

    def _apply(self, data: bytes, index: int, term: int) -> Result:
        result = self._machine.apply(data)
        self.commands_committed += 1
        if isinstance(result, list):
            for taken in result:
                if taken.placement is not None:
                    self._store.note(taken.placement, index, term)
        return result

    def _answer(self) -> None:
        self._store.wake_readers()
        decided, self._decided = self._decided, []
        for answer in decided:
            answer()

    def _give_up(self) -> None:
        pending = [future for _, future in self._commands]
        for future in [*pending, *self._waiting]:
            if not future.done():
                future.set_exception(UnknownOutcome("this sink has stopped"))
