"""A sink: opens its data folder, brings its group up, and keeps the log in order until it is told to stop.

    data folder ─► checkpoint ─► state machine ─► segments (what the checkpoint knows) ─► journal (what came after)
                                                                                             │ applied again
                                                                                             ▼
             the group is there (`sinkd.shell.peers`) ─► who leads proposes the configuration ─► links are accepted

Alone in its zone, a sink serves when it has applied its journal. In a group it listens at once: its peers need it to
elect a leader, and gateways ask it who leads. Damage to journal or checkpoint ends a sink that is alone; in a group
what is damaged is set aside, and the sink is filled by its peers, without a vote until it is whole.

Housekeeping, once a second or when sixteen megabytes wait: hot batches go into segments, the disk is looked at, a spare
journal file is prepared, retention is proposed; and when a journal file's worth has been written since the last
checkpoint, the next one is written and the journal is cut. Where there is no space for that, it waits for space: the
journal holds everything meanwhile, and nothing new is taken.
"""

import asyncio
import contextlib
import dataclasses
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from protocol import config, limits
from protocol.errors import DamagedFile, LogError
from protocol.streams import StreamDefinition
from sinkd.core import commands
from sinkd.core.birth import ACTIVE
from sinkd.core.machine import Configured, Machine, Trimmed
from sinkd.core.replication import Phase
from sinkd.core.retention import trims
from sinkd.shell import checkpoint as checkpoints
from sinkd.shell.checkpoint import Checkpoint
from sinkd.shell.files import NO_SPACE
from sinkd.shell.filling import Filling
from sinkd.shell.folder import DataFolder, Identity
from sinkd.shell.group import Group, UnknownOutcome
from sinkd.shell.journal import Journal
from sinkd.shell.link_server import LinkServer
from sinkd.shell.operating import Operator
from sinkd.shell.peers import UNBORN, Peers
from sinkd.shell.raft_links import NodeTls
from sinkd.shell.store import Store

INCARNATION_BYTES = 16
GROUP_ID_BYTES = 16
HAND_OVER_S_MAX = 1.5
log = structlog.get_logger()


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Sink:
    """`await start()`, then watch `failed`; `await stop()` in any case."""

    def __init__(
        self,
        configuration: config.Config,
        node: str,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
        journal_file_bytes: int = limits.JOURNAL_FILE_BYTES,
        segment_bytes: int = limits.SEGMENT_BYTES,
        embedded: bool = False,
        tls: NodeTls | None = None,
    ) -> None:
        """`embedded`: only this process's gateway is served, by `connect`; no port is opened.

        `tls` is for the links to gateways and to other sinks.
        """
        self._configuration, self.node = configuration, configuration.sink(node)
        self._zone, self._tls = configuration.zone_of(node), tls
        self.is_alone = len(self._zone.sinks) == 1
        self.peers: Peers | None = None
        self._being_filled: asyncio.Task[None] | None = None
        self._proposing: asyncio.Task[None] | None = None
        self.filling: Filling | None = None
        self._now_ms, self._embedded = now_ms, embedded
        self._journal_file_bytes, self._segment_bytes = journal_file_bytes, segment_bytes
        self._writer = ThreadPoolExecutor(1, "log-write")
        self._running: asyncio.Task[None] | None = None  # the group
        self._keeping_house: asyncio.Task[None] | None = None
        self._listener: asyncio.Server | None = None
        self._folder: DataFolder | None = None
        self.checkpoint_index = 0
        self.free_bytes = 0
        self._was_full = self._no_space = False
        self.last_error = ""
        self.config_problems: tuple[str, ...] = ()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """DataError, OSError: the data folder cannot be used as it is; nothing was changed in it."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._open)
        self._running = self._watch(self.group.run())
        if self.is_alone:
            await self._until_caught_up()
            await self._propose()
        else:
            await self._join()
        self._report_space()
        self._keeping_house = self._watch(self._keep_house())
        if not self._embedded:
            bind, context = self.node.bind(self.node.link), self._tls.server if self._tls is not None else None
            self._listener = await loop.create_server(self.links.accept, bind.host, bind.port, ssl=context)
        log.info("sink_ready", node=self.node.name, folder=self.node.data, streams=len(self.machine.state.streams))

    async def _join(self) -> None:
        assert self._folder is not None
        self.peers = Peers(
            self._configuration.mesh.name, self._zone, self.node, self._folder, self.group, self.store,
            self._take_proposal, self._fail, self._tls,
        )  # fmt: skip
        self.filling = Filling(self.peers, self.store, self._writer, self._sources)
        await self.peers.start()

    def _open(self) -> None:
        mesh, zone, node = self._configuration.mesh.name, self.node.zone, self.node.name
        self._folder = folder = DataFolder.open(Path(self.node.data), mesh=mesh, zone=zone, node=node)
        try:
            if self.is_alone and folder.identity.state != ACTIVE:
                folder.update(group=secrets.token_hex(GROUP_ID_BYTES), state=ACTIVE, muted="")
            try:
                self._open_log(folder)
            except DamagedFile as error:
                if self.is_alone:
                    raise
                _set_aside(folder, error)
                self._open_log(folder)
            has_spare = self._make_spare()
        except BaseException:
            folder.close()
            raise
        self.free_bytes = folder.free_bytes()
        born = folder.identity.state == ACTIVE
        self.group = Group(
            node, self.journal, self.machine, self.store, self.checkpoint_index, self._now_ms,
            alone=str(self.node.raft or self.node.link) if self.is_alone else "",
            fsync_interval_ms=limits.FSYNC_INTERVAL_MS if self.node.fsync == "interval" else 0,
            muted=folder.identity.muted if born else UNBORN,
            checkpoint=partial(checkpoints.read_with_bytes, folder.path),
            send=self._send, changed=self._leadership_changed, offered=self._checkpoint_offered,
            unmute=partial(folder.update, muted=""), unmuted=self._tell_peers,
        )  # fmt: skip
        self.group.no_space = not has_spare
        self.links = LinkServer(
            (mesh, zone, node), folder.disk_id.hex(), self.group, self.machine, self.store, Operator(self),
            self.is_storage_full, self._fail,
            self._tls.identify_node if self._tls is not None else None,
        )  # fmt: skip

    def _open_log(self, folder: DataFolder) -> None:
        """Checkpoint, journal and segments, as they were left. DamagedFile: they contradict each other."""
        saved = checkpoints.read(folder.path)
        self.machine = Machine(saved.state if saved is not None else None)
        self.journal = Journal.open(
            folder.journal_folder,
            journal_id=folder.journal_id,
            file_bytes=self._journal_file_bytes,
            checkpoint=saved,
        )
        try:
            is_new = saved is None and not len(self.journal) and not folder.identity.muted
            if is_new and not self.is_alone and folder.identity.state == ACTIVE:
                what = "it is empty, and its owner is a member of a group: it was taken away"
                raise DamagedFile(str(folder.journal_folder), 0, what)
            if is_new and any(folder.log_folder.glob("*/*/*.segment")):
                what = "there are segments, but neither journal nor checkpoint: they were taken away; bring them back"
                raise DamagedFile(str(folder.log_folder), 0, what)
            self.store = Store(self.journal, folder.log_folder, self.machine, self._segment_bytes)
        except BaseException:
            self.journal.close()
            raise
        self.checkpoint_index = saved.index if saved is not None else 0

    def _send(self, name: str, frame: bytes) -> None:
        if self.peers is not None:
            self.peers.links.send(name, frame)

    def _tell_peers(self) -> None:
        """What they know of this sink has changed: whole again, it may fill others."""
        if self.peers is not None:
            self.peers.links.tell()

    async def _until_caught_up(self) -> None:
        caught_up = asyncio.get_running_loop().create_task(self.group.caught_up())
        waits: set[asyncio.Future[Any]] = {caught_up, self.failed}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            caught_up.cancel()
            raise self.failed.result()

    async def stop(self) -> None:
        """Finishes what was taken in, makes it durable in segments and a checkpoint, and closes everything."""
        if self._listener is not None:
            self._listener.close()
        if self._running is None:  # it never opened; what it had is closed
            self._writer.shutdown()
            return
        if not self.is_alone:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.group.hand_over(), HAND_OVER_S_MAX)
        await self.links.close()
        for task in (self._keeping_house, self._being_filled, self._proposing):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        try:
            if not self.failed.done():
                await self._save()
        finally:
            self.group.stop()
            await asyncio.wait({self._running})
            if self.peers is not None:
                await self.peers.close()
            self._set_damaged_log_aside()
            await asyncio.get_running_loop().run_in_executor(self._writer, self._close)
            self._writer.shutdown()

    def _set_damaged_log_aside(self) -> None:
        """In a group: what has turned out to be damaged while it ran is filled anew by peers at the next start."""
        error = self.failed.result() if self.failed.done() else None
        if self.is_alone or self._folder is None or not isinstance(error, DamagedFile):
            return
        _set_aside(self._folder, error)
        error.is_set_aside = True

    def _close(self) -> None:
        self.store.close()
        self.group.close()
        self.journal.close()
        if self._folder is not None:
            self._folder.close()

    def connect(self, sock: socket.socket) -> asyncio.Task[object]:
        """Serves a link on a connected socket: how a gateway in the same process reaches its sink."""
        loop = asyncio.get_running_loop()
        return loop.create_task(loop.connect_accepted_socket(self.links.accept, sock))

    def _watch(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.last_error = str(error) or type(error).__name__
        log.error("sink_failed", node=self.node.name, error=self.last_error)
        if isinstance(error, DamagedFile) and not self.is_alone:
            self.group.halt()
        if not self.failed.done():
            self.failed.set_result(error)

    # -- the group ----------------------------------------------------------------------------------------------------

    def _leadership_changed(self) -> None:
        self.links.leadership_changed()
        if self.group.member.is_caught_up and not self.is_alone:
            self._start_proposing(self._propose())

    def _checkpoint_offered(self) -> None:
        """The leader says that this sink lacks what its journal no longer has."""
        if self._being_filled is None or self._being_filled.done():
            self._being_filled = self._watch(self._fill())

    async def _fill(self) -> None:
        while (saved := self.group.member.offered) is not None:
            self.group.begin_filling(f"fills its log up to entry {saved.index}")
            log.info("filling", node=self.node.name, index=saved.index)
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
        await self._flush()
        await self.filling.fill(saved)
        await self._flush()
        is_newest = self.group.member.offered is saved
        if is_newest and await self.group.install(saved, partial(self._write_installed, saved)):
            self.checkpoint_index = saved.index
            self.links.streams_changed()
            log.info("filled", node=self.node.name, index=saved.index, pulled_bytes=self.filling.pulled_bytes)

    def _write_installed(self, saved: Checkpoint) -> None:
        """Between two ticks, on the journal's thread."""
        assert self._folder is not None
        over = dataclasses.replace(saved, installed_over=self.journal.last_index)
        checkpoints.write(self._folder.path, over)
        self.journal.reset(saved.index, saved.term, saved.previous_term)
        checkpoints.write(self._folder.path, dataclasses.replace(saved, installed_over=0))  # it is a witness again

    def _sources(self) -> list[str]:
        """Whom to pull from: the leader has all of it for sure."""
        assert self.peers is not None
        leader = self.group.leader
        whole = [hello.node for hello in self.peers.hellos.values() if hello.state == ACTIVE and not hello.muted]
        return sorted(whole, key=lambda name: (name != leader, name))

    # -- configuration ------------------------------------------------------------------------------------------------

    def _definitions(self) -> tuple[StreamDefinition, ...]:
        return tuple(
            StreamDefinition.of(stream, secrets.token_bytes(INCARNATION_BYTES))
            for stream in self._configuration.effective_streams()
        )

    def _start_proposing(self, work: Coroutine[None, None, None]) -> None:
        async def propose() -> None:
            try:
                await work
            except (LogError, UnknownOutcome) as error:  # whoever leads next proposes again
                log.info("configuration_not_proposed", error=str(error))

        self._proposing = self._watch(propose())

    @property
    def identity(self) -> Identity:
        assert self._folder is not None
        return self._folder.identity

    @property
    def sinks(self) -> tuple[str, ...]:
        """The sinks of the zone, by the file."""
        return tuple(self._zone.sinks)

    def _take_proposal(self, revision: int, streams: tuple[StreamDefinition, ...]) -> None:
        if self.group.leads and revision > self.machine.state.revision:
            self._start_proposing(self._commit_configuration(commands.Configure(revision, streams)))

    def _compare_configuration(self) -> None:
        """In a group: tells the leader of a newer file; reports what of this one is not in force."""
        revision, in_force = self._configuration.mesh.revision, self.machine.state.revision
        if self.peers is None or not self.group.leader:
            return
        if revision > in_force and not self.group.leads:
            self.peers.propose(self.group.leader, revision, self._definitions())
        elif revision <= in_force:
            self.config_problems = tuple(self.machine.differences(commands.Configure(revision, self._definitions())))

    async def _propose(self) -> None:
        """Proposes the file's streams. What is refused, or superseded by a newer revision, is reported and not run."""
        definitions = self._definitions()
        revision = self._configuration.mesh.revision
        if not revision:  # no file: what this process was started with is the newest there is
            revision = self.machine.state.revision + bool(self._differs(definitions))
        await self._commit_configuration(commands.Configure(revision, definitions))
        if not self.machine.state.members:  # from a time when a sink was always alone
            await self.group.submit(commands.MEMBERS, commands.MembersAre(tuple(self.group.member.members.items())))

    async def _commit_configuration(self, proposal: commands.Configure) -> None:
        result = await self.group.submit(commands.CONFIGURE, proposal)
        assert isinstance(result, Configured)
        self.config_problems = result.problems
        for problem in result.problems:
            log.warning("configuration_not_in_force", problem=problem, revision_in_force=result.revision)
        self.links.streams_changed()

    def _differs(self, definitions: tuple[StreamDefinition, ...]) -> bool:
        return bool(self.machine.differences(commands.Configure(0, definitions)))

    # -- housekeeping -------------------------------------------------------------------------------------------------

    def is_storage_full(self) -> bool:
        """Whether appends are refused: the disk is below its reserve, or lacked space for something."""
        return self.free_bytes < self.node.disk_reserve_bytes or self.group.no_space or self._no_space

    async def _keep_house(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.store.wants_flush.wait(), limits.FLUSH_INTERVAL_MS / 1000)
            self.store.wants_flush.clear()
            await asyncio.get_running_loop().run_in_executor(self._writer, self._look_at_disk)
            self._report_space()
            if self.is_storage_full():
                self._let_another_lead()
            self._compare_configuration()
            if self.peers is not None:
                self.peers.dial()
            await self._retain()  # first, for it may free what the others need
            await self._save(checkpoint=self.journal.file_count > 1)

    def _look_at_disk(self) -> None:
        """On the writer's thread."""
        assert self._folder is not None
        self.free_bytes = self._folder.free_bytes()
        self.group.is_below_reserve = self.free_bytes < self.node.disk_reserve_bytes
        if self.free_bytes >= self._journal_file_bytes:
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

    async def _save(self, *, checkpoint: bool = True) -> None:
        """Hot batches into segments, then a checkpoint. Lack of space is no failure: the journal has it all."""
        if self._being_filled is not None and not self._being_filled.done():
            return  # it writes into the same segments
        try:
            await self._flush()
            if checkpoint:
                await self._write_checkpoint()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            if not self._no_space:
                log.warning("no_space_for_segments", error=str(error))
            self._no_space = True
        else:
            self._no_space = False

    def _let_another_lead(self) -> None:
        """What this leader has no space for, another may have."""
        member = self.group.member
        able = [
            f
            for f in member.followers.values()
            if f.name in member.members and f.phase is Phase.REPLICATE and not f.why
        ]
        if self.group.leads and able:
            best = max(able, key=lambda follower: (follower.match_index, follower.name))
            log.warning("leaves_leading", node=self.node.name, to=best.name, reason="storage full")
            member.transfer(best.name)

    def _report_space(self) -> None:
        if self.is_storage_full() == self._was_full:
            return
        self._was_full = not self._was_full
        facts = {"free_bytes": self.free_bytes, "reserve_bytes": self.node.disk_reserve_bytes}
        if self._was_full:
            log.error("storage_full", consequence="appends are refused until there is space", **facts)
        else:
            log.info("storage_available", consequence="appends are taken again", **facts)

    async def _flush(self) -> None:
        work = self.store.hot_batches()
        if work:
            await asyncio.get_running_loop().run_in_executor(self._writer, self.store.copy_to_segments, work)
            self.store.forget_hot(work)

    async def _write_checkpoint(self) -> None:
        """State as of now, then everything that it knows of into segments, then the checkpoint, then the cut."""
        index = self.group.applied_index
        if index <= self.checkpoint_index:
            return
        term, previous_term = self.group.applied_terms
        saved = Checkpoint(index, term, previous_term, self.machine.snapshot())
        await self._flush()
        assert self._folder is not None
        await asyncio.get_running_loop().run_in_executor(self._writer, checkpoints.write, self._folder.path, saved)
        await self.group.cut(min(index - 1, self._held_index(index - 1)))
        self.checkpoint_index = index
        log.info("checkpoint_written", index=index, state_bytes=len(saved.state))

    def _held_index(self, index: int) -> int:
        """The journal keeps what a sink that is being filled will need next, as long as it has not grown too long."""
        held = self.group.member.held_index()
        if held is None or self.journal.file_count > limits.JOURNAL_FILES_HELD_MAX:
            return index
        return max(held - 1, self.journal.first_index)

    async def _retain(self) -> None:
        """Proposes the trims that retention asks for, then removes the segments that lie below."""
        if not self.group.leads:
            return
        for partition in self.store.partitions:
            place = partition.stream, partition.number, partition.start_offset
            request = trims(*place, partition.log.facts(), self._now_ms())
            if request is None:
                continue
            try:
                result = await self.group.submit(commands.TRIM, request)
            except (LogError, UnknownOutcome) as error:
                log.warning("log_not_trimmed", stream=partition.stream.name, error=str(error))
                break
            if isinstance(result, Trimmed):
                log.info(
                    "log_trimmed", stream=result.stream.name, partition=result.partition, start=result.start_offset
                )
        await asyncio.get_running_loop().run_in_executor(self._writer, self.store.trim)

    @property
    def listening(self) -> tuple[str, int] | None:
        """Where links are accepted, if anywhere but in this process."""
        if self._listener is None:
            return None
        host, port = self._listener.sockets[0].getsockname()[:2]
        return str(host), int(port)

    def varz(self) -> dict[str, object]:
        """What `/varz` says of this sink."""
        return {
            "node": self.node.name,
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
            "free_bytes": self.free_bytes,
            "storage_full": self.is_storage_full(),
            "revision": self.machine.state.revision,
            "configuration_problems": list(self.config_problems),
            "last_error": self.last_error,
        }

    def health(self) -> str | None:
        """What is wrong, or None."""
        if self.failed.done():
            return f"sink {self.node.name}: {self.last_error}"
        if not self.is_alone and not self.group.leader:
            why = self.links.operator.why_nobody_leads()
            return f"sink {self.node.name}: its group has no leader" + (f": {why}" if why else "")
        if self.is_storage_full():
            reserve = self.node.disk_reserve_bytes
            return f"sink {self.node.name}: storage full: {self.free_bytes} bytes free, {reserve} are kept in reserve"
        return None


def _set_aside(folder: DataFolder, error: DamagedFile) -> None:
    aside = folder.set_aside(str(error), Path(error.file))
    log.error("log_damaged", error=str(error), set_aside=str(aside), consequence="peers will fill this sink")
