"""One Raft group of this sink: drives the member, batches what arrives, and answers when it is committed and fsynced.

    submit ─► pending ─┐                       ┌─► a leader's appends leave at once
    peers' messages ───┴─► tick ─► into the journal ─► fdatasync (thread) ─► votes and answers leave ─► ...
                            └─► committed, applied ─► answers to gateways

While an fdatasync runs, ticks go on: what comes is written and sent on at once, and the next one serves it all: group
commit without a timer. A few bytes on a disk that is quick are synced at once, without the thread: to hand over to it
and back takes longer, and more of the processor, than such a sync.

Whatever a tick counts as held by this member is on its disk all the same: `Member` looks at what was synced. Only where
nobody else's word is needed, in a group of one, a tick waits for it. And all other work on the journal
(`between_ticks`, a new file) is done while nothing ticks and nothing is unsynced.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import structlog

from protocol.envelope import Envelope
from protocol.errors import FrameError, LogError
from protocol.frames import Frame, Parts
from protocol.gaps import Gap, encode_gap
from protocol.limits import COMMAND_BYTES_TARGET, LINK_FRAME_BYTES_MAX
from protocol.link import Appended, Refused
from sinkd.core import commands
from sinkd.core.accounts import Stated
from sinkd.core.appending import append_command, mirrored_command
from sinkd.core.commands import MembersAre
from sinkd.core.damage import GivenUp
from sinkd.core.formats import Checkpoint
from sinkd.core.machine import (
    Configured,
    ContractChanged,
    GapRecorded,
    LossAccepted,
    Machine,
    Mirrored,
    Result,
    Taken,
)
from sinkd.core.membership import Members, Membership, problem_of_change
from sinkd.core.mirrors import MirrorMade
from sinkd.core.rebuilding import RebuildChanged
from sinkd.shell.files import NO_SPACE
from sinkd.shell.journal import Journal
from sinkd.shell.raft import REGULAR, TICK_S, Member
from sinkd.shell.store import Store

TICK_BYTES_MAX = LINK_FRAME_BYTES_MAX
SYNC_AT_ONCE_BYTES = 16 * 1024
SYNC_AT_ONCE_S = 0.005  # if the last sync took no longer: nothing else runs meanwhile
COMMAND_OVERHEAD_BYTES = 64 * 1024  # of the records around a tick's commands, and of the other commands
log = structlog.get_logger()


class UnknownOutcome(Exception):
    """Leadership was lost, or this sink stopped, before the command was seen to commit: it may be in the log or not."""


class _Append(NamedTuple):
    head: Envelope
    parcel: bytes
    answer: Callable[[Appended | Refused], None]


class _Command(NamedTuple):
    kind: int
    data: bytes
    done: asyncio.Future[Result]


class Change(NamedTuple):
    """What the command at `log_index` has done that operators have asked for; `time_ms` is the state's then."""

    log_index: int
    time_ms: int
    result: Configured | MembersAre | RebuildChanged | LossAccepted | GivenUp | Stated
    revision_before: int
    members_before: Members


class Group:
    """Call `run()` in a task; an exception from it (disk or state machine have failed) is the end of this sink.

    `send(name, frame)` reaches a peer; `changed()` is called when this sink begins or ceases to lead.
    """

    def __init__(
        self,
        node: str,
        journal: Journal,
        machine: Machine,
        store: Store,
        applied_index: int,
        now_ms: Callable[[], int],
        *,
        alone: str = "",
        fsync_interval_ms: int = 0,
        may_block: bool = True,
        muted: str = "",
        is_doubtful: bool = False,
        checkpoint: Callable[[], tuple[Checkpoint, bytes] | None] = lambda: None,
        send: Callable[[str, Parts], None] = lambda name, frame: None,
        changed: Callable[[], None] = lambda: None,
        unmute: Callable[[], None] = lambda: None,
        unmuted: Callable[[], None] = lambda: None,
        offered: Callable[[], None] = lambda: None,
        configured: Callable[[], None] = lambda: None,
        seen: Callable[[Change], None] = lambda change: None,
    ) -> None:
        """`alone` is the address of a sink that is the only one of its zone: it needs no list of members to begin.

        With `fsync_interval_ms` answers do not wait for an fdatasync, which comes so often: a power cut may cost what
        was acknowledged since. Votes wait for theirs all the same. `may_block` is whether nobody else is on this event
        loop who must not wait for a disk that is suddenly slow. `muted` is why this member may not vote,
        `is_doubtful` whether it may lack what it was seen to hold;
        `unmute` makes durable that it may (it blocks, and runs on a thread), then `unmuted` is called. `checkpoint`
        gives the latest durable one with its file's bytes; `offered` says that the leader has sent its own
        (`member.offered`), `configured` that streams or contracts were committed, and `seen` is told of what changed
        streams or members.
        """
        self._journal, self._machine, self._store, self._now_ms = journal, machine, store, now_ms
        self._send, self._changed, self._offered, self._configured = send, changed, offered, configured
        self._unmute, self._unmuted, self._seen = unmute, unmuted, seen
        membership = self._membership(applied_index, {node: alone} if alone else {})
        self.member = Member(
            node, journal, applied_index, self._apply, membership, muted=muted, is_doubtful=is_doubtful,
            checkpoint=checkpoint,
        )  # fmt: skip
        self._inbound: deque[tuple[str, Frame | str | None]] = deque()  # a journal id: connected; None: disconnected
        self._appends: deque[_Append] = deque()
        self._commands: deque[_Command] = deque()
        self._decided: list[Callable[[], None]] = []
        self._waiting: set[asyncio.Future[Result]] = set()
        self._waker: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle
        self._caught_up, self._follows = asyncio.Event(), asyncio.Event()
        self._syncer = ThreadPoolExecutor(1, "journal-sync")
        self._between: deque[tuple[Callable[[], None], Callable[[], None], asyncio.Future[None]]] = deque()
        self._seen_offer: Checkpoint | None = None
        self._stopping = self._has_ended = self._led = self._halted = False
        self._may_block = may_block
        self._fsync_interval_s, self._synced_at = fsync_interval_ms / 1000, 0.0
        self._pending_bytes = self._inbound_bytes = 0
        self._is_filling = False
        self._is_ticking = True  # else something else is done with the journal
        self._syncing: asyncio.Future[None] | None = None
        self._sync_failure: BaseException | None = None
        self._sync_s = 0.0  # how long the last one took
        self.no_space = self.is_below_reserve = False
        self.commands_committed = self.losses_accepted = 0
        self.syncs = 0

    def _membership(self, applied_index: int, alone: Members) -> Membership:
        """The members by the checkpoint and by what stands behind it in the journal."""
        membership = Membership(self._machine.state.members or alone)
        for index in range(max(applied_index + 1, self._journal.first_index), self._journal.last_index + 1):
            head = self._journal.head(index, len(REGULAR) + 2)
            if head[:1] == REGULAR and commands.members_in(head[1:]):
                command = self._journal.command(index, self._journal.term(index))[1:]
                membership.appended(index, commands.read_members(command))
        return membership

    # -- what the link and the daemon ask for -------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether appends are taken here."""
        return self.member.is_caught_up and not self.member.is_leaving and not self._stopping

    @property
    def leader(self) -> str:
        """The sink that is believed to lead, "" if none."""
        return self.member.leader

    @property
    def term(self) -> int:
        return self.member.term

    @property
    def applied_index(self) -> int:
        return int(self.member.raftLastApplied)

    @property
    def commit_index(self) -> int:
        return int(self.member.raftCommitIndex)

    @property
    def applied_terms(self) -> tuple[int, int]:
        """The terms of the last applied entry and of the one before it."""
        position = self.applied_index - self._journal.first_index
        last = self._journal[position]
        return last.term, self._journal[position - 1].term if position else 0

    async def caught_up(self) -> None:
        """Until this member leads and has applied everything of earlier terms."""
        await self._caught_up.wait()

    async def hand_over(self) -> None:
        """Another member leads before this one goes, if one can, so that publishers hardly notice."""
        if self.leads and not self.member.transfer():
            self._wake()
            await self._follows.wait()

    def append(self, head: Envelope, parcel: bytes, answer: Callable[[Appended | Refused], None]) -> None:
        """Takes a checked parcel with envelope `head`; `answer` is called once it is committed and fsynced or refused.

        It is not called if leadership is lost first.
        """
        self._appends.append(_Append(head, parcel, answer))
        self._pending_bytes += len(parcel)
        self._wake()

    async def submit(
        self,
        kind: int,
        body: commands.Configure
        | commands.Adopt
        | commands.OpenProducer
        | commands.Trim
        | commands.MembersAre
        | commands.ChangeContract
        | commands.MakeMirror
        | commands.Diverged
        | commands.BeginRebuild
        | commands.EndRebuild
        | commands.MakeStatement
        | commands.GiveUp,
    ) -> Result:
        """The result of a command once it is committed, fsynced and applied. UnknownOutcome: see there.

        LogError LEADER_NOT_AVAILABLE, STORAGE_ERROR: nothing was done.
        """
        self._check_leading()
        return await self._queue(kind, commands.encode(kind, self._now_ms(), body))

    def append_mirrored(self, head: commands.MirroredHead, batches: bytes | memoryview) -> asyncio.Future[Result]:
        """Hands over checked batches for a mirror, in the order of the calls; the future is as `submit`, a `Mirrored`.

        UnknownOutcome, LogError: as for `submit`, at once.
        """
        self._check_leading()
        command = mirrored_command(self._machine.state, self._now_ms(), head, batches)
        return self._queue(commands.MIRRORED, command)

    async def record_gap(self, head: commands.RecordGap, gap: Gap) -> GapRecorded:
        """Appends a gap record to a log, unless that is recorded already; the rest is as for `submit`."""
        self._check_leading()
        command = commands.encode_record_gap(self._now_ms(), head, encode_gap(gap))
        result = await self._queue(commands.RECORD_GAP, command)
        assert isinstance(result, GapRecorded)
        return result

    def _check_leading(self) -> None:
        if self._has_ended:
            raise UnknownOutcome("this sink has stopped")
        if not self.leads:
            raise LogError("LEADER_NOT_AVAILABLE", f"another sink leads: {self.leader or 'not known which'}")

    def _queue(self, kind: int, data: bytes) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._commands.append(_Command(kind, data, future))
        self._pending_bytes += len(data)
        self._wake()
        return future

    async def change_members(self, members: Members) -> None:
        """Adds or removes one member. LogError INVALID_REQUEST: not so, or not now; see `submit` too."""
        problem = problem_of_change(self.member.members, members)
        if problem:
            raise LogError("INVALID_REQUEST", problem)
        await self.submit(commands.MEMBERS, commands.MembersAre(tuple(sorted(members.items()))))

    async def between_ticks(self, work: Callable[[], None], then: Callable[[], None] = lambda: None) -> None:
        """Runs `work`, which may block, on the journal's thread while nothing ticks; then `then` on the loop.

        UnknownOutcome: the group ended first.
        """
        if self._has_ended:
            raise UnknownOutcome("this sink has stopped")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._between.append((work, then, done))
        self._wake()
        await done

    async def cut(self, index: int) -> None:
        """Lets the journal forget the entries below `index`. The caller's checkpoint is durable."""
        await self.between_ticks(lambda: self._journal.cut(index))

    def halt(self) -> None:
        """Says nothing more to anybody: what this sink holds has turned out to be damaged."""
        self._halted = True
        self._wake()

    def stop(self) -> None:
        """Finishes what was handed over, then `run()` returns."""
        self._stopping = True
        self._wake()

    # -- being filled -------------------------------------------------------------------------------------------------

    def begin_filling(self, what: str) -> None:
        """Takes no entries until `install`: its log is being filled from its peers."""
        self._is_filling = True
        self.member.busy, self.member.busy_takes_bytes = what, 0

    async def install(self, saved: Checkpoint, write: Callable[[], None]) -> bool:
        """Goes on from a checkpoint whose segments are all here; `write` makes it durable and resets the journal.

        False: what this member holds has gone beyond it meanwhile. OSError of a full disk: it may be tried again.
        """
        installed = False
        failure: OSError | None = None

        def work() -> None:
            nonlocal installed, failure
            try:
                if saved.index > self.commit_index:
                    write()
                    installed = True
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                failure = error

        def then() -> None:
            if failure is not None:
                return
            self._is_filling = False
            self.member.offered = self._seen_offer = None
            if installed:
                self._machine.restore(saved.state)
                self._store.restored()
                self.member.install(saved)
                self.member.replace_membership(Membership(self._machine.state.members))

        await self.between_ticks(work, then)
        if failure is not None:
            raise failure
        return installed

    # -- peers --------------------------------------------------------------------------------------------------------

    def peer_connected(self, name: str, journal: str) -> None:
        """A new connection to a sink that holds the journal of that id."""
        self._arrived(name, journal)

    def peer_lost(self, name: str) -> None:
        self._arrived(name, None)

    def take(self, name: str, frame: Frame) -> None:
        """A message of another member."""
        if self._is_ticking and not self._inbound and self.member.notes_only(frame.message):
            self._receive(name, frame)  # most do not change what is to be done: a step for each would be half of all
            if self.member.has_more:
                self._wake()
            return
        self._inbound_bytes += len(frame.tail)
        self._arrived(name, frame)

    def _arrived(self, name: str, what: Frame | str | None) -> None:
        self._inbound.append((name, what))
        self._wake()

    def _take_in(self) -> None:
        taken_bytes = 0
        while self._inbound and taken_bytes < TICK_BYTES_MAX:
            name, what = self._inbound.popleft()
            taken_bytes += len(what.tail) if isinstance(what, Frame) else 0
            if isinstance(what, Frame):
                self._inbound_bytes -= len(what.tail)
                self._receive(name, what)
            elif what is None:
                self.member.disconnected(name)
            else:
                self.member.connected(name, what)

    def _receive(self, name: str, frame: Frame) -> None:
        try:
            self.member.receive(name, *frame)
        except FrameError as error:
            log.warning("raft_message_refused", node=self.member.name, sender=name, error=str(error))

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ticks until `stop()`. OSError, DamagedFile, FrameError: this sink can no longer be trusted and must end."""
        self._beat()
        try:
            while not self._halted:
                is_idle = not self._has_work() and self._sync_failure is None
                if is_idle and self._stopping and self._syncing is None:
                    break
                if is_idle:
                    await self._wait_for_work()
                if self._sync_failure is not None:
                    raise self._sync_failure
                await self._step()
        finally:
            self._has_ended = True
            self._timer.cancel()
            self._syncer.shutdown()
            self._give_up()

    async def _step(self) -> None:
        """One tick with what comes before and behind it, in the order that makes Raft's promises true."""
        loop, member = asyncio.get_running_loop(), self.member
        if not self._journal.room(self._tick_bytes):
            await loop.run_in_executor(self._syncer, self._make_room)
        if not self._is_filling:
            member.busy, member.busy_takes_bytes = self._lacks()
        self._take_in()
        if member.offered is not self._seen_offer:
            self._seen_offer = member.offered
            self._offered()
        self._hand_over()
        member.replicate()
        self._send_all(member.urgent)
        self._sync()
        if self._between or member.whole_at is not None or self._journal.is_nearly_full or len(member.members) == 1:
            self._is_ticking = False
            await self._settle_journal()
            await self._work_between()
            self._is_ticking = True
        member.tick()
        self._answer()
        self._send_all(member.urgent)
        self._sync()
        self._look_whether_leading()

    # -- the journal's thread -----------------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Begins a sync, unless one is under way: the next one serves all that comes meanwhile."""
        if self._syncing is not None or self._sync_failure is not None:
            return
        if not (self._journal.dirty or self.member.promises):
            return
        loop = asyncio.get_running_loop()
        if self._journal.dirty and self._is_sync_due(loop.time()):
            self.syncs += 1
            self._synced_at = loop.time()
            is_short = self._journal.unsynced_bytes <= SYNC_AT_ONCE_BYTES and self._sync_s <= SYNC_AT_ONCE_S
            if is_short and self._may_block:
                self._sync_at_once()
            else:
                self._syncing = loop.run_in_executor(self._syncer, self._journal.sync)
                self._syncing.add_done_callback(partial(self._synced, self.member.promises))
        else:
            self._journal.trust()
            self._leave(self.member.promises)

    def _sync_at_once(self) -> None:
        try:
            self._journal.sync()
        except OSError as error:
            self._sync_failure = error
        else:
            self._sync_s = asyncio.get_running_loop().time() - self._synced_at
            self._leave(self.member.promises)

    def _synced(self, promises: int, sync: asyncio.Future[None]) -> None:
        """A sync has ended that began behind the first `promises` answers."""
        self._syncing = None
        self._sync_s = asyncio.get_running_loop().time() - self._synced_at
        self._sync_failure = sync.exception()
        if self._has_ended:  # a disk that failed elsewhere has ended it meanwhile
            return
        if self._sync_failure is None:
            self._leave(promises)
            self._sync()
        if self._has_work() or self._sync_failure is not None or self._stopping:
            self._wake()

    def _leave(self, promises: int) -> None:
        if not self._halted:
            self.member.synced(promises)
            self._send_all(self.member.answers)

    async def _settle_journal(self) -> None:
        """Waits until all that was added is on the disk, if it is to be."""
        while self._syncing is not None:
            await asyncio.wait({self._syncing})
        if self._sync_failure is not None:
            raise self._sync_failure

    async def _work_between(self) -> None:
        """What must not be done while a tick adds to the journal."""
        loop, member = asyncio.get_running_loop(), self.member
        if self._halted:
            return
        if self._journal.is_nearly_full:
            await loop.run_in_executor(self._syncer, self._journal.roll_early)
        if member.whole_at is not None:
            await loop.run_in_executor(self._syncer, self._unmute)
            who = {"node": member.name, "group": self._machine.number}
            log.info("member_whole", was=member.muted, term=member.term, **who)
            member.muted, member.whole_at = "", None
            self._unmuted()
        while self._between:
            work, then, done = self._between.popleft()
            await loop.run_in_executor(self._syncer, work)
            then()
            if not done.done():
                done.set_result(None)

    def _lacks(self) -> tuple[str, int]:
        """Why this member takes no more from a leader, and what it takes all the same: trims, which make space."""
        if self.no_space and not self._journal.room(self._tick_bytes):
            return "no space for its journal", 0
        return ("its disk is below its reserve", COMMAND_OVERHEAD_BYTES) if self.is_below_reserve else ("", 0)

    def _is_sync_due(self, now: float) -> bool:
        return self._journal.has_unsynced_vote or now - self._synced_at >= self._fsync_interval_s

    def _send_all(self, frames: list[tuple[str, Parts]]) -> None:
        if frames:
            for name, frame in frames:
                self._send(name, frame)
            frames.clear()

    def _look_whether_leading(self) -> None:
        leads = self.member.is_caught_up
        if leads == self._led:
            return
        self._led = leads
        who = {"node": self.member.name, "group": self._machine.number, "term": self.term}
        if leads:
            log.info("group_leads", applied_index=self.applied_index, **who)
            self._caught_up.set()
            self._follows.clear()
        else:
            log.info("group_follows", **who)
            self._caught_up.clear()
            self._follows.set()
            self._drop_unsent()
        self._changed()

    def _drop_unsent(self) -> None:
        """Leadership is over: gateways send again to whoever leads then, commands were never tried."""
        self._appends.clear()
        self._pending_bytes = 0
        while self._commands:
            done = self._commands.popleft().done
            if not done.done():
                done.set_exception(LogError("LEADER_NOT_AVAILABLE", "another sink leads now"))

    def close(self) -> None:
        self.member.destroy()

    def _has_work(self) -> bool:
        """Whether the next tick can do something: take what is pending, commit what was synced, apply what remains."""
        mine = bool(self._appends or self._commands) and self.member.is_caught_up and not self.member.is_leaving
        return mine or bool(self._inbound or self._between or self.member.has_more)

    async def _wait_for_work(self) -> None:
        """Until something comes, or the next tick is due."""
        self._waker = asyncio.get_running_loop().create_future()
        await self._waker

    def _beat(self) -> None:
        """One timer for all ticks: one for each wait would cost more than most steps."""
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._beat)
        self._wake()

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def _hand_over(self) -> None:
        """Moves what is pending into commands of about a megabyte; only a leader that knows its log does."""
        if not (self._appends or self._commands) or not self.member.is_caught_up or self.member.is_leaving:
            return
        has_room = not self.no_space or self._journal.room(COMMAND_OVERHEAD_BYTES)
        left_bytes = self._tick_bytes
        while self._commands and left_bytes >= len(self._commands[0].data):
            command = self._commands.popleft()
            left_bytes -= len(command.data)
            self._pending_bytes -= len(command.data)
            self._hand_over_command(command, has_room and (command.kind != commands.MIRRORED or not self.no_space))
        while self._appends and left_bytes >= len(self._appends[0].parcel):
            taken = self._take_appends()
            left_bytes -= sum(len(append.parcel) for append in taken)
            if self.no_space:
                self._refuse(taken)
            else:
                self._append_command(taken)

    def _hand_over_command(self, command: _Command, has_room: bool) -> None:
        if command.done.done():
            return
        if not has_room:
            error = LogError("STORAGE_ERROR", "storage full: there is no room in the journal")
            command.done.set_exception(error)
        elif command.kind == commands.MEMBERS and self.member.is_changing:
            error = LogError("INVALID_REQUEST", "another change of the members is under way; try again")
            command.done.set_exception(error)
        else:
            self._waiting.add(command.done)
            self.member.append(REGULAR + command.data, partial(self._settle, command.done))

    @property
    def _tick_bytes(self) -> int:
        """What one tick may add to the journal: less than a file, so that one spare is enough."""
        pending_bytes = self._pending_bytes + self._inbound_bytes
        return min(pending_bytes, TICK_BYTES_MAX) + COMMAND_OVERHEAD_BYTES

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
        heads, parcels = [append.head for append in taken], [append.parcel for append in taken]
        entry = append_command(self._machine.state, self._now_ms(), heads, parcels, REGULAR)

        def decided(result: list[Taken], committed: bool) -> None:
            if committed:  # else silence: the gateway sends again to whoever leads then
                answers = zip(taken, result, strict=True)
                self._decided += [partial(append.answer, one.answer) for append, one in answers]

        self.member.append(entry, decided)

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

    def _apply(self, data: memoryview, index: int, term: int) -> Result:
        state = self._machine.state
        revision, members = state.revision, state.members
        result = self._machine.apply(data)
        self.commands_committed += 1
        if isinstance(result, list):
            for taken in result:
                if taken.placement is not None:
                    self._store.note(taken.placement, index, term)
        elif isinstance(result, Mirrored | LossAccepted):
            self.losses_accepted += isinstance(result, LossAccepted)
            for placement in result.placements:
                self._store.note(placement, index, term)
        elif isinstance(result, GapRecorded):
            if result.placement is not None:
                self._store.note(result.placement, index, term)
        elif isinstance(result, (Configured, ContractChanged, MirrorMade, RebuildChanged)):
            self._store.renew()
            self._decided.append(self._configured)
        if isinstance(result, Configured | MembersAre | RebuildChanged | LossAccepted | GivenUp | Stated):
            self._decided.append(partial(self._seen, Change(index, state.now_ms, result, revision, members)))
        return result

    def _answer(self) -> None:
        self._store.wake_readers()
        decided, self._decided = self._decided, []
        for answer in decided:
            answer()

    def _give_up(self) -> None:
        pending = {command.done for command in self._commands} | self._waiting
        for future in pending:
            if not future.done():
                future.set_exception(UnknownOutcome("this sink has stopped"))
        for _, _, done in self._between:
            if not done.done():
                done.set_exception(UnknownOutcome("this sink has stopped"))
