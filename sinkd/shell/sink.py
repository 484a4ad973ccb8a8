"""A sink: opens its data folder, brings its group up, and keeps the log in order until it is told to stop.

    data folder ─► checkpoint ─► state machine ─► segments (what the checkpoint knows) ─► journal (what came after)
                                                                                             │ applied again
                                                                                             ▼
                                                       the configuration is proposed ─► links are accepted

Housekeeping, once a second or when four megabytes wait: hot batches go into segments, the disk is looked at, a spare
journal file is prepared, retention is proposed; and when a journal file's worth has been written since the last
checkpoint, the next one is written and the journal is cut. Where there is no space for that, it waits for space: the
journal holds everything meanwhile, and nothing new is taken.
"""

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from protocol import config, limits
from protocol.errors import DamagedFile, LogError
from protocol.streams import StreamDefinition
from sinkd.core import commands
from sinkd.core.machine import Configured, Machine, Trimmed
from sinkd.core.retention import trims
from sinkd.shell import checkpoint as checkpoints
from sinkd.shell.checkpoint import Checkpoint
from sinkd.shell.files import NO_SPACE
from sinkd.shell.folder import DataFolder
from sinkd.shell.group import Group
from sinkd.shell.journal import Journal
from sinkd.shell.link_server import LinkServer
from sinkd.shell.store import Store

INCARNATION_BYTES = 16
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
    ) -> None:
        """`embedded`: only this process's gateway is served, by `connect`; no port is opened."""
        self._configuration, self.node = configuration, configuration.sink(node)
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
        await self._until_caught_up()
        await self._propose()
        self._report_space()
        self._keeping_house = self._watch(self._keep_house())
        if not self._embedded:
            bind = self.node.bind(self.node.link)
            self._listener = await loop.create_server(self.links.accept, bind.host, bind.port)
        log.info("sink_ready", node=self.node.name, folder=self.node.data, streams=len(self.machine.state.streams))

    def _open(self) -> None:
        names = self._configuration.mesh.name, self.node.zone, self.node.name
        self._folder = folder = DataFolder.open(Path(self.node.data), mesh=names[0], zone=names[1], node=names[2])
        try:
            saved = checkpoints.read(folder.path)
            self.machine = Machine(saved.state if saved is not None else None)
            self.journal = Journal.open(
                folder.journal_folder,
                journal_id=folder.journal_id,
                file_bytes=self._journal_file_bytes,
                checkpoint=(saved.index, saved.term, saved.previous_term) if saved is not None else None,
            )
            if saved is None and not len(self.journal) and any(folder.log_folder.glob("*/*/*.segment")):
                what = "there are segments, but neither journal nor checkpoint: they were taken away; bring them back"
                raise DamagedFile(str(folder.log_folder), 0, what)
            self.store = Store(self.journal, folder.log_folder, self.machine, self._segment_bytes)
            has_spare = self._make_spare()
        except BaseException:
            folder.close()
            raise
        self.checkpoint_index = saved.index if saved is not None else 0
        self.free_bytes = folder.free_bytes()
        self.group = Group(self.node.name, self.journal, self.machine, self.store, self.checkpoint_index, self._now_ms)
        self.group.no_space = not has_spare
        self.links = LinkServer(
            names, folder.disk_id.hex(), self.group, self.machine, self.store, self.is_storage_full, self._fail
        )

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
        await self.links.close()
        if self._keeping_house is not None:
            self._keeping_house.cancel()
            await asyncio.wait({self._keeping_house})
        try:
            if not self.failed.done():
                await self._save()
        finally:
            self.group.stop()
            await asyncio.wait({self._running})
            await asyncio.get_running_loop().run_in_executor(self._writer, self._close)
            self._writer.shutdown()

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
        if not self.failed.done():
            self.failed.set_result(error)

    # -- configuration ------------------------------------------------------------------------------------------------

    async def _propose(self) -> None:
        """Proposes the file's streams. What is refused, or superseded by a newer revision, is reported and not run."""
        definitions = tuple(
            StreamDefinition.of(stream, secrets.token_bytes(INCARNATION_BYTES))
            for stream in self._configuration.effective_streams()
        )
        revision = self._configuration.mesh.revision
        if not revision:  # no file: what this process was started with is the newest there is
            revision = self.machine.state.revision + bool(self._differs(definitions))
        result = await self.group.submit(commands.CONFIGURE, commands.Configure(revision, definitions))
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
            await self._retain()  # first, for it may free what the others need
            await self._save(checkpoint=self.journal.file_count > 1)

    def _look_at_disk(self) -> None:
        """On the writer's thread."""
        assert self._folder is not None
        self.free_bytes = self._folder.free_bytes()
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
        await self.group.cut(index - 1)
        self.checkpoint_index = index
        log.info("checkpoint_written", index=index, state_bytes=len(saved.state))

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
            except LogError as error:
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
            "term": self.group.term,
            "applied_index": self.group.applied_index,
            "checkpoint_index": self.checkpoint_index,
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
        if self.is_storage_full():
            reserve = self.node.disk_reserve_bytes
            return f"sink {self.node.name}: storage full: {self.free_bytes} bytes free, {reserve} are kept in reserve"
        return None
