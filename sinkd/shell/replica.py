"""This sink's part of one Raft group: its journal, its state machine, its segments, and what keeps them in order.

    group folder ─► checkpoint ─► state machine ─► segments (what the checkpoint knows) ─► journal (what came after)
                                                                                             │ applied again
                                                                                             ▼
                                         the group is there (`sinkd.shell.peers`) ─► who leads proposes the streams

A sink has one for each group of its zone. They share the process's port, disk and writer, and nothing else.

Housekeeping, once a second or when sixteen megabytes wait: hot batches go into segments, a spare journal file is
prepared, retention is proposed; and when a journal file's worth has been written since the last checkpoint, the next
one is written and the journal is cut. Where there is no space for that, it waits for space: the journal holds
everything meanwhile, and nothing new is taken.
"""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from protocol import limits
from protocol.errors import DamagedFile, LogError, Superseded
from protocol.frames import Parts
from protocol.streams import StreamState
from sinkd.core import commands
from sinkd.core.accounts import Stated
from sinkd.core.birth import ACTIVE
from sinkd.core.damage import GivenUp
from sinkd.core.machine import Machine, Trimmed
from sinkd.core.replication import Follower, Phase
from sinkd.core.retention import trims
from sinkd.core.spreading import better_leader
from sinkd.shell import checkpoint as checkpoints
from sinkd.shell.checkpoint import Checkpoint
from sinkd.shell.configuring import Configuring
from sinkd.shell.elsewhere import Elsewhere
from sinkd.shell.files import NO_SPACE
from sinkd.shell.filling import Filling
from sinkd.shell.folder import GroupFolder, boot_id
from sinkd.shell.giving_up import GivingUp
from sinkd.shell.group import Change, Group, UnknownOutcome
from sinkd.shell.holding import Holding
from sinkd.shell.journal import Journal
from sinkd.shell.link_server import LinkServer
from sinkd.shell.operating import Operator
from sinkd.shell.peers import UNBORN, Peers
from sinkd.shell.raft_links import RaftPort
from sinkd.shell.scrub_notes import ScrubNotes
from sinkd.shell.scrubbing import Scrubber
from sinkd.shell.store import Store

if TYPE_CHECKING:
    from sinkd.shell.sink import Sink

GROUP_ID_BYTES = 16
HAND_OVER_S_MAX = 1.5
log = structlog.get_logger()


class Replica:
    """Of group `number`, in `sink`. `open` on the writer's thread, then `run`, `join` in a group; `stop` in the end."""

    def __init__(self, sink: "Sink", number: int, folder: GroupFolder) -> None:
        self.number, self.folder, self._sink = number, folder, sink
        self.peers: Peers | None = None
        self.filling: Filling | None = None
        self.holding = Holding(sink.other_zones, self._tell_soon)
        self.giving_up = GivingUp(self)
        self._tells_soon = False
        self._running: asyncio.Task[None] | None = None  # the group
        self._keeping_house: asyncio.Task[None] | None = None
        self._scrubbing: asyncio.Task[None] | None = None
        self._being_filled: asyncio.Task[None] | None = None
        self.checkpoint_index = 0
        self._lacks_space = False  # for segments or a checkpoint
        self._spread_at: tuple[int, int, tuple[str, ...]] = (0, 0, ())  # for which it was looked who should lead

    # -- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """DataError, OSError: the folder cannot be used as it is; nothing was changed in it."""
        sink, folder, node = self._sink, self.folder, self._sink.node
        if sink.is_alone and folder.identity.state != ACTIVE:
            folder.update(group=secrets.token_hex(GROUP_ID_BYTES), state=ACTIVE, muted="")
        try:
            self._open_log()
        except DamagedFile as error:
            if sink.is_alone:
                raise
            self.set_aside(error)
            self._open_log()
        has_spare = self._make_spare()
        born, is_doubtful = folder.identity.state == ACTIVE, self._is_doubtful()
        if not is_doubtful:
            self._note_boot()
        self.group = Group(
            node.name, self.journal, self.machine, self.store, self.checkpoint_index, sink.now_ms,
            alone=str(node.raft or node.link) if sink.is_alone else "",
            fsync_interval_ms=limits.FSYNC_INTERVAL_MS if node.fsync == "interval" else 0,
            may_block=not sink.is_embedded,
            muted=folder.identity.muted if born else UNBORN, is_doubtful=is_doubtful,
            checkpoint=partial(checkpoints.read_with_bytes, folder.path),
            send=self._send, changed=self._leadership_changed, offered=self._checkpoint_offered,
            unmute=partial(folder.update, muted=""), unmuted=self._tell_peers, configured=self._configured,
            seen=self._seen,
        )  # fmt: skip
        self.group.no_space = not has_spare
        zone = self.machine if self.number == 0 else sink.main.machine
        self.configuring = Configuring(
            self.group, self.machine, zone, sink.in_file, self.watch, sink.audit.configuration_problems
        )
        self.links = LinkServer(
            (sink.mesh, node.zone, node.name), folder.disk_id.hex(), self.group, self.machine, self.store,
            Operator(sink, self), sink.is_storage_full, self.fail, sink.audit.link_refused,
            sink.links_by_group, self.holding, sink.bucket_of, sink.identify_node,
        )  # fmt: skip
        sink.links_by_group[self.number] = self.links
        rate_bytes = node.scrub_rate_bytes_per_second
        tells = ScrubNotes(sink.audit)
        self.scrubber = Scrubber(
            self.store, sink.writer, self._pull, self._sources, Elsewhere(sink), tells, self.giving_up.found, rate_bytes
        )
        if not sink.is_alone or sink.other_zones:
            self.store.mend, self.store.mend_later = self.scrubber.mend, self.scrubber.mend_later

    def _is_doubtful(self) -> bool:
        """Whether the machine has been started anew since the journal was written, and it was not closed in order."""
        return not self._sink.is_alone and self.folder.identity.boot not in ("", boot_id())

    def _note_boot(self) -> None:
        """The journal is written in this run of the machine, and nothing that stands in it is in doubt."""
        if not self._sink.is_alone and self.folder.identity.boot != boot_id():
            self.folder.update(boot=boot_id())

    def _open_log(self) -> None:
        """Checkpoint, journal and segments, as they were left. DamagedFile: they contradict each other."""
        folder = self.folder
        saved = checkpoints.read(folder.path)
        self.machine = Machine(saved.state if saved is not None else None, self.number)
        self.journal = Journal.open(
            folder.journal_folder,
            journal_id=folder.journal_id,
            file_bytes=self._sink.journal_file_bytes,
            checkpoint=saved,
        )
        try:
            is_new = saved is None and not len(self.journal) and not folder.identity.muted
            if is_new and not self._sink.is_alone and folder.identity.state == ACTIVE:
                what = "it is empty, and its owner is a member of a group: it was taken away"
                raise DamagedFile(str(folder.journal_folder), 0, what)
            if is_new and any(folder.log_folder.glob("*/*/*.segment")):
                what = "there are segments, but neither journal nor checkpoint: they were taken away; bring them back"
                raise DamagedFile(str(folder.log_folder), 0, what)
            self.store = Store(self.journal, folder.log_folder, self.machine, self._sink.segment_bytes)
        except BaseException:  # whatever it was, nobody would close the journal any more
            self.journal.close()
            raise
        self.checkpoint_index = saved.index if saved is not None else 0

    def run(self) -> None:
        """Applies the journal, and takes part in the group."""
        self._running = self.watch(self.group.run())

    def meet(self, port: RaftPort) -> None:
        """Has the other sinks find this replica at `port`."""
        sink = self._sink
        self.peers = Peers(
            sink.mesh, sink.zone, sink.node, self.number, port, self.folder, self.group, self.store,
            self.configuring.take, sink.take_note, self.holding.take, self.fail,
        )  # fmt: skip
        self.filling = Filling(self.peers, self.store, sink.writer, self._sources)

    def dial(self) -> None:
        """The port listens: the group may begin, or go on."""
        assert self.peers is not None
        self.peers.start()

    def keep_house(self) -> None:
        """From now on."""
        self._keeping_house = self.watch(self._keep_house())
        self._scrubbing = self.watch(self.scrubber.run())

    async def leave(self) -> None:
        """Another one leads, if one can; then no more is taken, and only the group goes on."""
        if not self._sink.is_alone:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.group.hand_over(), HAND_OVER_S_MAX)
        await self.links.close()
        for task in (self._scrubbing, self._keeping_house, self._being_filled):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._being_filled is not None:
            with contextlib.suppress(UnknownOutcome):  # a checkpoint that is being installed is there, or never will be
                await self.group.between_ticks(lambda: None)
        await self.configuring.close()

    async def stop(self) -> None:
        """Ends the group. What it holds is on the disk."""
        self.group.stop()
        if self._running is not None:
            await asyncio.wait({self._running})
        if self.peers is not None:
            await self.peers.close()

    def close(self) -> None:
        """The files; on the writer's thread."""
        self.store.close()
        if not self._sink.is_alone and not self._sink.failed.done() and not self.group.member.is_doubtful:
            with contextlib.suppress(OSError):  # then it is in doubt after the next start of the machine
                self.journal.close_in_order()
                self.folder.update(boot="")
        self.group.close()
        self.journal.close()

    def set_aside(self, error: DamagedFile) -> None:
        """Journal and checkpoint, to be filled anew by peers at the next start; of a group that is over, all."""
        if isinstance(error, Superseded):
            aside = self.folder.leave_group(str(error))
        else:
            aside = self.folder.set_aside(str(error), Path(error.file))
        log.error("log_damaged", error=str(error), set_aside=str(aside), consequence="peers will fill this sink")

    def fail(self, error: BaseException) -> None:
        """This sink can no longer be trusted."""
        self._sink.fail(error, self)

    def watch(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """A task whose failure is the sink's."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    # -- the group ----------------------------------------------------------------------------------------------------

    def _send(self, name: str, frame: Parts) -> None:
        if self.peers is not None:
            self.peers.links.send(name, frame)

    def _tell_peers(self) -> None:
        """What they know of this sink has changed: whole again, it may fill others."""
        if self.peers is not None:
            self.peers.links.tell()

    def _leadership_changed(self) -> None:
        self.holding.leads(self.group.leads)
        self.links.leadership_changed()
        if not self._sink.is_alone:
            self.configuring.propose_soon()

    def _seen(self, change: Change) -> None:
        """The group has carried out what operators decide."""
        self._sink.audit.applied(self.number, change)
        if isinstance(change.result, GivenUp):
            self.giving_up.decided(change.result)
        elif isinstance(change.result, Stated) and change.result.statement is not None:
            self._sink.attesting.remember(self, change.result.statement)

    def _configured(self) -> None:
        """Streams were committed, or came with a checkpoint."""
        self.links.streams_changed()
        if self.number == 0:
            self._sink.streams_changed()

    def _checkpoint_offered(self) -> None:
        """The leader says that this sink lacks what its journal no longer has."""
        if not self.is_being_filled:
            self._being_filled = self.watch(self._fill())

    async def _fill(self) -> None:
        while (saved := self.group.member.offered) is not None:
            self.group.begin_filling(f"fills its log up to entry {saved.index}")
            log.info("filling", node=self._sink.node.name, group=self.number, index=saved.index)
            try:
                await self._fill_up_to(saved)
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                log.warning("no_space_to_be_filled", error=str(error))
                self.group.begin_filling("no space to be filled")
                await asyncio.sleep(limits.FLUSH_INTERVAL_MS / 1000)

    async def _fill_up_to(self, saved: Checkpoint) -> None:
        """Unless a newer checkpoint comes meanwhile."""
        assert self.filling is not None
        await self.flush()
        await self.filling.fill(saved)
        await self.flush()
        is_newest = self.group.member.offered is saved
        if is_newest and await self.group.install(saved, partial(self._write_installed, saved)):
            self.checkpoint_index = saved.index
            self._configured()
            pulled_bytes = self.filling.pulled_bytes
            log.info(
                "filled", node=self._sink.node.name, group=self.number, index=saved.index, pulled_bytes=pulled_bytes
            )

    def _write_installed(self, saved: Checkpoint) -> None:
        """Between two ticks, on the journal's thread."""
        over = dataclasses.replace(saved, installed_over=self.journal.last_index)
        checkpoints.write(self.folder.path, over)
        self.journal.reset(saved.index, saved.term, saved.previous_term)
        checkpoints.write(self.folder.path, dataclasses.replace(saved, installed_over=0))  # it is a witness again

    def _sources(self) -> list[str]:
        """Whom to pull from: the leader has all of it for sure."""
        leader, hellos = self.group.leader, self.peers.hellos.values() if self.peers is not None else ()
        whole = [hello.node for hello in hellos if hello.state == ACTIVE and not hello.muted]
        return sorted(whole, key=lambda name: (name != leader, name))

    async def _pull(
        self, name: str, stream: StreamState, partition: int, offset: int, bytes_max: int
    ) -> tuple[int, bytes]:
        assert self.peers is not None
        return await self.peers.pull(name, stream, partition, offset, bytes_max)

    @property
    def is_being_filled(self) -> bool:
        """Whether it lacks what its leader's journal no longer has."""
        return self._being_filled is not None and not self._being_filled.done()

    # -- housekeeping -------------------------------------------------------------------------------------------------

    @property
    def lacks_space(self) -> bool:
        """For its journal, or for something else that it wanted to write."""
        return self.group.no_space or self._lacks_space

    async def _keep_house(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.FLUSH_INTERVAL_MS / 1000):
                    await self.store.wants_flush.wait()
            self.store.wants_flush.clear()
            await asyncio.get_running_loop().run_in_executor(self._sink.writer, self._look_at_disk)
            self._sink.report_space()
            if self._sink.is_storage_full():
                self._let_another_lead()
            else:
                self._spread()
            self.configuring.compare(self.peers)
            if self.peers is not None:
                self.peers.dial()
            self._tell_what_is_held(again=True)
            await self.retain()  # first, for it may free what the others need
            await self.save(checkpoint=self.journal.file_count > 1)

    def _tell_soon(self) -> None:
        """Not each word of each mirror by itself, but publishers wait for it."""
        if not self._tells_soon and self.peers is not None:
            self._tells_soon = True
            asyncio.get_running_loop().call_later(limits.HELD_TELL_MS / 1000, self._tell_what_is_held)

    def _tell_what_is_held(self, *, again: bool = False) -> None:
        """The leader, what other zones have got."""
        self._tells_soon = False
        self.holding.leads(self.group.leads)
        if not self.group.leads and self.peers is not None and self.group.leader:
            self.holding.tell(self.group.leader, self.peers.links.send, again=again)

    def _look_at_disk(self) -> None:
        """On the writer's thread."""
        free_bytes = self._sink.look_at_disk()
        if not self.group.member.is_doubtful:
            self._note_boot()
        self.group.is_below_reserve = free_bytes < self._sink.node.disk_reserve_bytes
        if free_bytes >= self._sink.journal_file_bytes:
            self.group.no_space = not self._make_spare()

    def _make_spare(self) -> bool:
        """The journal's next file, ahead of need; whether there was space for it."""
        try:
            self.journal.prepare_spare()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            return False
        return True

    def _let_another_lead(self) -> None:
        """What this leader has no space for, another may have."""
        member, able = self.group.member, self._able()
        if self.group.leads and able:
            best = max(able, key=lambda follower: (follower.match_index, follower.name))
            log.warning("leaves_leading", node=member.name, group=self.number, to=best.name, reason="storage full")
            member.transfer(best.name)

    def _able(self) -> list[Follower]:
        """Members that could lead instead of this one."""
        member = self.group.member
        return [
            f
            for f in member.followers.values()
            if f.name in member.members and f.phase is Phase.REPLICATE and not f.why
        ]

    def _spread(self) -> None:
        """Has another sink lead this group, if this one leads too many of the zone's."""
        leaders = {replica.number: replica.group.leader for replica in self._sink.replicas}
        member, able = self.group.member, [follower.name for follower in self._able()]
        now = self.group.term, member.arrivals, tuple(leaders.values())
        is_due = self.group.leads and now != self._spread_at and len(able) + 1 == len(member.members)
        if not is_due or not all(leaders.values()):
            return
        self._spread_at = now
        to = "" if member.was_asked_to_lead else better_leader(self.number, leaders, able)
        if to:
            log.info("leaves_leading", node=member.name, group=self.number, to=to, reason="it leads fewer groups")
            member.transfer(to)

    async def save(self, *, checkpoint: bool = True) -> None:
        """Hot batches into segments, then a checkpoint. Lack of space is no failure: the journal has it all."""
        if self.is_being_filled:
            return  # it writes into the same segments
        try:
            await self.flush()
            if checkpoint:
                await self._write_checkpoint()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            if not self._lacks_space:
                log.warning("no_space_for_segments", error=str(error))
            self._lacks_space = True
        else:
            self._lacks_space = False

    async def flush(self) -> None:
        """Hot batches into segments."""
        work = self.store.hot_batches()
        if work:
            await asyncio.get_running_loop().run_in_executor(self._sink.writer, self.store.copy_to_segments, work)
            self.store.forget_hot(work)

    async def _write_checkpoint(self) -> None:
        """State as of now, then everything that it knows of into segments, then the checkpoint, then the cut."""
        index = self.group.applied_index
        if index <= self.checkpoint_index:
            return
        term, previous_term = self.group.applied_terms
        saved = Checkpoint(index, term, previous_term, self.machine.snapshot())
        await self.flush()
        write = partial(checkpoints.write, self.folder.path, saved)
        await asyncio.get_running_loop().run_in_executor(self._sink.writer, write)
        await self.group.cut(min(index - 1, self._held_index(index - 1)))
        self.checkpoint_index = index
        log.info("checkpoint_written", group=self.number, index=index, state_bytes=len(saved.state))

    def _held_index(self, index: int) -> int:
        """The journal keeps what a sink that is being filled will need next, as long as it has not grown too long."""
        held = self.group.member.held_index()
        if held is None or self.journal.file_count > limits.JOURNAL_FILES_HELD_MAX:
            return index
        return max(held - 1, self.journal.first_index)

    async def retain(self) -> None:
        """Proposes the trims that retention asks for, then removes the segments that lie below."""
        if not self.group.leads:
            return
        for partition in self.store.partitions:
            is_held = self._sink.attesting.holds(partition.stream.incarnation, partition.number)
            if is_held and not self._sink.is_storage_full():
                continue  # until it is certified
            place = partition.stream, partition.number, partition.start_offset
            held_through = self.holding.through(partition.stream, partition.number)
            request = trims(*place, partition.log.facts(), self._sink.now_ms(), held_through)
            if request is None:
                continue
            try:
                result = await self.group.submit(commands.TRIM, await self.store.with_tree(request))
            except (LogError, UnknownOutcome) as error:
                log.warning("log_not_trimmed", stream=partition.stream.name, error=str(error))
                break
            if isinstance(result, Trimmed):
                log.info(
                    "log_trimmed", stream=result.stream.name, partition=result.partition, start=result.start_offset
                )
        await asyncio.get_running_loop().run_in_executor(self._sink.writer, self.store.trim)

    # -- how it is ----------------------------------------------------------------------------------------------------

    def varz(self) -> dict[str, object]:
        """What `/varz` says of it."""
        return {
            "leads": self.group.leads,
            "leader": self.group.leader,
            "term": self.group.term,
            "commit_index": self.group.commit_index,
            "applied_index": self.group.applied_index,
            "last_index": self.journal.last_index,
            "checkpoint_index": self.checkpoint_index,
            "muted": self.group.member.muted,
            "peers": self.links.operator.peers(),
            "journal_bytes": self.journal.size_bytes,
            "revision": self.machine.state.revision,
        }

    def problem(self) -> str | None:
        """Why nobody leads, if so."""
        if self._sink.is_alone or self.group.leader:
            return None
        whose = f"group {self.number}" if self.number else "its group"
        why = self.links.operator.why_nobody_leads()
        return f"{whose} has no leader" + (f": {why}" if why else "")
