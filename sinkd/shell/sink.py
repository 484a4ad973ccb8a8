"""A sink: opens its data folder, brings its Raft groups up, and keeps them in order until it is told to stop.

    data folder ─► a `Replica` of each group ─► links are accepted
                   journal, state machine, segments, peers, housekeeping

What the groups share is here: the data folder's lock, the ports, the thread that writes, the disk and its reserve. A
replica that can no longer be trusted ends the process: another start is the one way to look at all of it anew.

Alone in its zone, a sink serves when it has applied its journals. In a group it listens at once: its peers need it to
elect a leader, and gateways ask it who leads. Damage to journal or checkpoint ends a sink that is alone; in a group
what is damaged is set aside, and the sink is filled by its peers, without a vote until it is whole.

A sink runs the groups of its file, and those that its data folder knows.
"""

import asyncio
import contextlib
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from protocol import config, limits
from protocol.coverage import STREAM as COVERAGE_STREAM
from protocol.errors import DamagedFile, FrameError
from protocol.streams import StreamDefinition
from sinkd.core.commands import Configure
from sinkd.core.machine import Machine
from sinkd.core.mirroring import TokenBucket
from sinkd.core.raft_messages import Note
from sinkd.shell.attesting import Attesting
from sinkd.shell.audit import AuditNotes
from sinkd.shell.coverage import Coverage, Signing
from sinkd.shell.digests import Comparing
from sinkd.shell.folder import DataFolder, Identity
from sinkd.shell.group import Group, UnknownOutcome
from sinkd.shell.journal import Journal
from sinkd.shell.link_server import LinkServer
from sinkd.shell.mirrors import Mirroring
from sinkd.shell.raft_links import NodeTls, Port, RaftPort, stop_listening
from sinkd.shell.rebuilding import Rebuilding
from sinkd.shell.replica import Replica
from sinkd.shell.store import Store

INCARNATION_BYTES = 16
log = structlog.get_logger()


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Sink:
    """`await start()`, then watch `failed`; `await stop()` in any case.

    `replicas` are those of its groups, by their numbers; `main` is that of group 0, where streams are made.
    """

    main: Replica

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
        signing: Signing | None = None,
    ) -> None:
        """`embedded`: only this process's gateway is served, by `connect`; no port is opened.

        `tls` is for the links to gateways and to other sinks, `signing` for what it writes into `$COVERAGE`.
        """
        self._configuration, self.node = configuration, configuration.sink(node)
        self.mesh, self.zone, self.tls = configuration.mesh.name, configuration.zone_of(node), tls
        self.is_alone = len(self.zone.sinks) == 1
        self.now_ms, self.is_embedded = now_ms, embedded
        self.journal_file_bytes, self.segment_bytes = journal_file_bytes, segment_bytes
        self.writer = ThreadPoolExecutor(1, "log-write")
        self.replicas: list[Replica] = []
        self.links_by_group: dict[int, LinkServer] = {}
        self._buckets: dict[str, TokenBucket] = {}  # by zone
        self.audit = AuditNotes(self)
        self.attesting = Attesting(self, signing)
        self.coverage = Coverage(self, configuration.coverage.gap_grace_ms, signing)
        self.comparing = Comparing(self, signing)
        self.coverage.heard_roots = self.comparing.heard
        self.mirroring = Mirroring(self, [configuration.zones[name] for name in self.other_zones])
        self.rebuilding = Rebuilding(self)
        self._mirroring: asyncio.Task[None] | None = None
        self._rebuilding: asyncio.Task[None] | None = None
        self._auditing: asyncio.Task[None] | None = None
        self._noting: asyncio.Task[None] | None = None
        self._covering: asyncio.Task[None] | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._port: RaftPort | None = None
        self._listener: Port | None = None
        self._folder: DataFolder | None = None
        self.free_bytes = 0
        self._was_full = False
        self.last_error = ""
        self._failed_replica: Replica | None = None
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """DataError, OSError: the data folder cannot be used as it is; nothing was changed in it."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.writer, self._open)
        for replica in self.replicas:
            replica.run()
        if self.is_alone:
            await self._serve_alone()
        else:
            await self._meet()
        self.report_space()
        for replica in self.replicas:
            replica.keep_house()
        self._auditing = self.main.watch(self.audit.run())
        self._noting = self.main.watch(self.coverage.notes.run())
        self._covering = self.main.watch(self.coverage.run())
        self._comparing = self.main.watch(self.comparing.run())
        self._mirroring = self.main.watch(self.mirroring.run())
        self._rebuilding = self.main.watch(self.rebuilding.run())
        if not self.is_embedded:
            self._listener = await self._listen()
        streams = len(self.machine.state.streams)
        log.info("sink_ready", node=self.node.name, folder=self.node.data, streams=streams, groups=len(self.replicas))

    async def _listen(self) -> Port:
        bind = self.node.bind(self.node.link)
        if self.tls is None:
            return await asyncio.get_running_loop().create_server(self.links.accept, bind.host, bind.port)
        refused = partial(self._not_secured, "link from a gateway")
        return await self.tls.listen(self.links.accept, bind, self.tls.server, refused)

    def take_note(self, note: Note) -> None:
        """What another sink would have written into a stream whose group this one leads."""
        if note.stream == COVERAGE_STREAM:
            self.coverage.take(note)
        else:
            self.audit.take(note)

    def _not_secured(self, what: str, host: str, why: str) -> None:
        """A peer has shown no certificate of use, or does not like ours."""
        log.warning("link_refused", host=host, what=what, error=why)
        self.audit.link_refused(host, what, why)

    async def _meet(self) -> None:
        """The other sinks of the zone."""
        assert self.node.raft is not None
        self._port = RaftPort(self.tls, partial(self._not_secured, "link from a sink"), self.audit.link_refused)
        for replica in self.replicas:
            replica.meet(self._port)
        await self._port.start(self.node.bind(self.node.raft))
        for replica in self.replicas:
            replica.dial()

    async def _serve_alone(self) -> None:
        for replica in self.replicas:
            await self._until_caught_up(replica)
            await replica.configuring.propose()

    def _open(self) -> None:
        self._folder = folder = DataFolder.open(
            Path(self.node.data), mesh=self.mesh, zone=self.node.zone, node=self.node.name
        )
        opened: list[Replica] = []
        try:
            for number in range(max(self.zone.groups, folder.groups)):
                replica = Replica(self, number, folder.of_group(number))
                if number == 0:
                    self.main = replica
                replica.open()
                opened.append(replica)
        except BaseException:
            for replica in opened:
                replica.close()
            folder.close()
            raise
        self.free_bytes = folder.free_bytes()
        self.replicas = opened

    async def _until_caught_up(self, replica: Replica) -> None:
        caught_up = asyncio.get_running_loop().create_task(replica.group.caught_up())
        waits: set[asyncio.Future[Any]] = {caught_up, self.failed}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            caught_up.cancel()
            raise self.failed.result()

    async def stop(self) -> None:
        """Finishes what was taken in, makes it durable in segments and a checkpoint, and closes everything."""
        if self._listener is not None:
            await stop_listening(self._listener)
        if not self.replicas:  # it never opened; what it had is closed
            self.writer.shutdown()
            return
        for task in (self._comparing, self._covering, self._noting, self._auditing, self._mirroring, self._rebuilding):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await asyncio.gather(*(replica.leave() for replica in self.replicas))
        try:
            for replica in self.replicas:
                if not self.failed.done():
                    with contextlib.suppress(UnknownOutcome):  # its group has failed meanwhile: `failed` says why
                        await replica.save()
        finally:
            for replica in self.replicas:
                await replica.stop()
            if self._port is not None:
                await self._port.close()
            self._set_damaged_log_aside()
            await asyncio.get_running_loop().run_in_executor(self.writer, self._close)
            self.writer.shutdown()

    def _set_damaged_log_aside(self) -> None:
        """In a group: what has turned out to be damaged while it ran is filled anew by peers at the next start."""
        error = self.failed.result() if self.failed.done() else None
        if self.is_alone or self._failed_replica is None or not isinstance(error, DamagedFile):
            return
        self._failed_replica.set_aside(error)
        error.is_set_aside = True

    def _close(self) -> None:
        for replica in self.replicas:
            replica.close()
        if self._folder is not None:
            self._folder.close()

    def connect(self, sock: socket.socket) -> asyncio.Task[object]:
        """Serves a link on a connected socket: how a gateway in the same process reaches its sink."""
        loop = asyncio.get_running_loop()
        return loop.create_task(loop.connect_accepted_socket(self.links.accept, sock))

    def fail(self, error: BaseException, replica: Replica) -> None:
        """A replica can no longer be trusted: `failed` says so."""
        self.last_error = str(error) or type(error).__name__
        log.error("sink_failed", node=self.node.name, group=replica.number, error=self.last_error)
        if isinstance(error, DamagedFile) and not self.is_alone:
            replica.group.halt()
        if not self.failed.done():
            self._failed_replica = replica
            self.failed.set_result(error)

    # -- what its groups share ----------------------------------------------------------------------------------------

    def in_file(self) -> Configure:
        """What the file proposes; its streams get these incarnations if they are new."""
        streams = tuple(
            StreamDefinition.of(stream, secrets.token_bytes(INCARNATION_BYTES))
            for stream in self._configuration.kept_streams()
        )
        return Configure(self._configuration.mesh.revision, streams, self.zone.groups)

    def streams_changed(self) -> None:
        """In group 0; the others follow. Alone, a sink does so one after the other when it starts."""
        for replica in () if self.is_alone else self.replicas[1:]:
            replica.configuring.propose_soon()

    @property
    def other_zones(self) -> list[str]:
        """Those that keep logs."""
        zones = self._configuration.zones
        return [name for name, zone in zones.items() if zone.sinks and name != self.zone.name]

    def zone_named(self, name: str) -> config.Zone:
        """Of the file. KeyError: it names none so."""
        return self._configuration.zones[name]

    def bucket_of(self, zone: str) -> TokenBucket:
        """What limits the copies that a zone is sent. FrameError: there is no such zone."""
        if zone not in self._buckets:
            if zone not in self._configuration.zones:
                raise FrameError(f"mesh {self.mesh} has no zone {zone}")
            rate = self._configuration.link(self.zone.name, zone).copy_rate_bytes_per_second
            self._buckets[zone] = TokenBucket(rate)
        return self._buckets[zone]

    def take_rates(self, configuration: config.Config) -> None:
        """Limits copies as another configuration says."""
        self._configuration = configuration
        for zone, bucket in self._buckets.items():
            rate = configuration.link(self.zone.name, zone).copy_rate_bytes_per_second
            if rate != bucket.bytes_per_second:
                bucket.change(rate)

    def has_gateway(self, name: str) -> bool:
        """Whether the configuration has one of that name."""
        return any(name in zone.gateways for zone in self._configuration.zones.values())

    @property
    def identify_node(self) -> Callable[[ssl.SSLObject], tuple[str, str, str]] | None:
        """Says whose certificate a gateway has shown, where links are secured."""
        return self.tls.identify_node if self.tls is not None else None

    def look_at_disk(self) -> int:
        """On the writer's thread: how many bytes are free."""
        assert self._folder is not None
        self.free_bytes = self._folder.free_bytes()
        return self.free_bytes

    def is_storage_full(self) -> bool:
        """Whether appends are refused: the disk is below its reserve, or lacked space for something."""
        return self.free_bytes < self.node.disk_reserve_bytes or any(each.lacks_space for each in self.replicas)

    def report_space(self) -> None:
        """In the log, when it has changed."""
        if self.is_storage_full() == self._was_full:
            return
        self._was_full = not self._was_full
        facts = {"free_bytes": self.free_bytes, "reserve_bytes": self.node.disk_reserve_bytes}
        if self._was_full:
            log.error("storage_full", consequence="appends are refused until there is space", **facts)
        else:
            log.info("storage_available", consequence="appends are taken again", **facts)

    # -- group 0, the only one of most zones --------------------------------------------------------------------------

    @property
    def group(self) -> Group:
        return self.main.group

    @property
    def machine(self) -> Machine:
        return self.main.machine

    @property
    def journal(self) -> Journal:
        return self.main.journal

    @property
    def store(self) -> Store:
        return self.main.store

    @property
    def links(self) -> LinkServer:
        return self.main.links

    @property
    def identity(self) -> Identity:
        return self.main.folder.identity

    @property
    def checkpoint_index(self) -> int:
        return self.main.checkpoint_index

    # -- how it is ----------------------------------------------------------------------------------------------------

    @property
    def config_problems(self) -> tuple[str, ...]:
        """What of this sink's file is not in force."""
        wanted, here = self.machine.state.groups, len(self.replicas)
        if here >= wanted:
            return self.main.configuring.problems
        missing = f"groups: {wanted} are in force, this sink runs {here}: give it the newer file and start it again"
        return (*self.main.configuring.problems, missing)

    @property
    def listening(self) -> tuple[str, int] | None:
        """Where links are accepted, if anywhere but in this process."""
        if self._listener is None:
            return None
        host, port = self._listener.sockets[0].getsockname()[:2]
        return str(host), int(port)

    def varz(self) -> dict[str, object]:
        """What `/varz` says of this sink: of group 0 beside what is the sink's, of the others in `groups`."""
        page = {"node": self.node.name, **self.main.varz()} | {
            "free_bytes": self.free_bytes,
            "storage_full": self.is_storage_full(),
            "configuration_problems": list(self.config_problems),
            "last_error": self.last_error,
        }
        if len(self.replicas) > 1:
            page["groups"] = [replica.varz() for replica in self.replicas]
        return page

    def health(self) -> str | None:
        """What is wrong, or None."""
        if self.failed.done():
            return f"sink {self.node.name}: {self.last_error}"
        for replica in self.replicas:
            if problem := replica.problem():
                return f"sink {self.node.name}: {problem}"
        if self.is_storage_full():
            reserve = self.node.disk_reserve_bytes
            return f"sink {self.node.name}: storage full: {self.free_bytes} bytes free, {reserve} are kept in reserve"
        return None
