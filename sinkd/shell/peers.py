"""The other sinks of the zone, as one Raft group sees them: who they are, how it began, and what they hold for it.

raft link ─► Hello ─► birth (`sinkd.core.birth`)        ─► Raft's messages go to the group
          ─► Pull, Pulled: committed batches, for one that has to be filled
          ─► Propose: a newer configuration, Note: an audit event, for the one that leads
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Coroutine
from functools import partial

import structlog

from protocol import config
from protocol.errors import DamagedFile, LogError, Superseded
from protocol.frames import Frame
from protocol.limits import PULL_BYTES, PULL_MS_MAX
from protocol.streams import StreamState
from sinkd.core.birth import ACTIVE, CHOSEN, next_step
from sinkd.core.commands import Configure
from sinkd.core.raft_messages import CODEC, Held, Hello, Note, Propose, Pull, Pulled
from sinkd.shell.folder import GroupFolder
from sinkd.shell.group import Group
from sinkd.shell.raft_links import RaftLinks, RaftPort
from sinkd.shell.store import Store

_OURS = Pull, Pulled, Propose, Note, Held
UNBORN = "its group has not begun yet"
NEW_DISK = "its disk was empty when the group was there already: it is being filled"
log = structlog.get_logger()


class Peers:
    """Of group `number`. `proposed` is called with another sink and what it proposes, `noted` with a note."""

    def __init__(
        self,
        mesh: str,
        zone: config.Zone,
        node: config.Sink,
        number: int,
        port: RaftPort,
        folder: GroupFolder,
        group: Group,
        store: Store,
        proposed: Callable[[str, Propose], None],
        noted: Callable[[Note], None],
        held: Callable[[Held], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._mesh, self._zone, self._node, self._number = mesh, zone, node, number
        self._folder, self._group, self._store = folder, group, store
        self._proposed, self._noted, self._held, self._failed = proposed, noted, held, failed
        self.hellos: dict[str, Hello] = {}
        self.links = RaftLinks(port, node.name, self.hello, self._connected, self._received, self._disconnected)
        self._numbers = itertools.count(1)
        self._pulls: dict[int, tuple[str, asyncio.Future[Frame]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_being_born = False
        self.waits = ""  # what the birth of the group waits for

    def hello(self) -> Hello:
        identity = self._folder.identity
        return Hello(
            mesh=self._mesh,
            zone=self._zone.name,
            number=self._number,
            node=self._node.name,
            group=identity.group,
            state=identity.state,
            muted=identity.muted,
            disk=identity.disk_id,
            journal=identity.journal_id,
            configured=tuple(sorted(self._zone.sinks)),
            address=str(self._node.raft or ""),
            succeeds=tuple(identity.succeeds.split()),
        )

    def start(self) -> None:
        """The port listens."""
        self.dial()
        self._go_on_being_born()

    def dial(self) -> None:
        """To every sink of the file, and to members that only the group knows."""
        addresses = {name: config.Address.parse(text) for name, text in self._group.member.members.items() if text}
        addresses |= {name: sink.raft for name, sink in self._zone.sinks.items() if sink.raft is not None}
        addresses.pop(self._node.name, None)
        self.links.dial(addresses)

    async def close(self) -> None:
        await self.links.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- from the links -----------------------------------------------------------------------------------------------

    def _connected(self, hello: Hello, is_new: bool) -> None:
        identity = self._folder.identity
        if identity.group and identity.group in hello.succeeds and not self._group.leader:
            self._failed(Superseded(str(self._folder.path), hello.node))
            return
        if hello.group in identity.succeeds.split():
            return  # it will hear of it, and come back empty
        if identity.group and hello.group and hello.group != identity.group:
            log.error(
                "foreign_group",
                number=self._number,
                peer=hello.node,
                its_group=hello.group,
                our_group=identity.group,
                consequence="it is not taken for a member; give one of the two an empty data folder",
            )
            self.waits = f"sink {hello.node} holds data of another group"
            return
        self.hellos[hello.node] = hello
        if is_new:
            self._group.peer_connected(hello.node, hello.journal)
        self._go_on_being_born()

    def _disconnected(self, name: str) -> None:
        if self.hellos.pop(name, None) is not None:
            self._group.peer_lost(name)
        for asked, future in self._pulls.values():
            if asked == name and not future.done():
                future.set_exception(LogError("LEADER_NOT_AVAILABLE", f"the link to sink {name} was lost"))

    def _received(self, name: str, frame: Frame) -> None:
        message = frame.message
        if name not in self.hellos:
            return
        if not isinstance(message, _OURS):  # most are for the member
            self._group.take(name, frame)
        elif isinstance(message, Pull):
            self._start(self._serve(name, message))
        elif isinstance(message, Pulled):
            _, future = self._pulls.get(message.request, (name, None))
            if future is not None and not future.done():
                future.set_result(frame)
        elif isinstance(message, Propose):
            self._proposed(name, message)
        elif isinstance(message, Note):
            self._noted(message)
        elif isinstance(message, Held):
            self._held(message)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def propose(self, leader: str, proposal: Configure) -> None:
        """Tells the leader of a newer configuration."""
        message = Propose(proposal.revision, proposal.streams, proposal.groups)
        self.links.send(leader, CODEC.pack_parts(message))

    # -- birth --------------------------------------------------------------------------------------------------------

    def _go_on_being_born(self) -> None:
        if self._folder.identity.state == ACTIVE or self._is_being_born:
            return
        self._is_being_born = True
        self._start(self._be_born())

    async def _be_born(self) -> None:
        """Steps as far as what is known allows."""
        try:
            await self._take_steps()
        finally:
            self._is_being_born = False

    async def _take_steps(self) -> None:
        loop = asyncio.get_running_loop()
        while self._folder.identity.state != ACTIVE:
            step = next_step(self.hello(), self.hellos)
            self.waits = step.waits
            if step.waits:
                return
            group = step.group or secrets.token_hex(16)
            # What was set aside since it has chosen is lost to it; who chooses only now begins with nothing anyhow.
            muted = NEW_DISK if step.is_late else self._folder.identity.muted if step.state == ACTIVE else ""
            if step.state == CHOSEN:
                hellos = (self.hello(), *self.hellos.values())
                members = {hello.node: hello.address for hello in hellos}
                await self._group.between_ticks(partial(self._group.member.begin, members))
            identity = partial(self._folder.update, group=group, state=step.state, muted=muted)
            await loop.run_in_executor(None, identity)
            if step.state == ACTIVE:
                self._group.member.muted = muted
            log.info(
                "group_birth", node=self._node.name, number=self._number, state=step.state, group=group, muted=muted
            )
            self.links.tell()

    def begin_anew(self) -> None:
        """The group is another one now: nothing that was said before counts."""
        self.links.begin_anew()

    # -- pulls --------------------------------------------------------------------------------------------------------

    async def pull(
        self, name: str, stream: StreamState, partition: int, offset: int, bytes_max: int = PULL_BYTES
    ) -> tuple[int, bytes]:
        """(start offset, whole batches from the one that holds `offset`) of sink `name`; LogError: it has none."""
        number = next(self._numbers)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._pulls[number] = name, future
        try:
            message = Pull(number, stream.name, stream.incarnation, partition, offset, bytes_max)
            self.links.send(name, CODEC.pack_parts(message))
            frame = await asyncio.wait_for(future, PULL_MS_MAX / 1000)
        except TimeoutError as error:
            raise LogError("LEADER_NOT_AVAILABLE", f"sink {name} does not answer a pull") from error
        finally:
            del self._pulls[number]
        pulled = frame.message
        assert isinstance(pulled, Pulled)
        if pulled.problem:
            raise LogError("LEADER_NOT_AVAILABLE", f"sink {name}: {pulled.problem}")
        return pulled.start_offset, frame.tail

    async def _serve(self, name: str, asked: Pull) -> None:
        start_offset, problem = 0, ""
        batches: bytes | memoryview = b""
        try:
            partition = self._store.incarnation(asked.incarnation, asked.partition)
            start_offset = partition.start_offset
            if asked.offset >= partition.high_watermark:
                problem = f"{asked.stream} partition {asked.partition} ends at {partition.high_watermark} here"
            else:
                offset = max(asked.offset, start_offset)
                batches = await self._store.read(partition, offset, asked.bytes_max, for_peer=True)
        except LogError as error:
            problem = str(error)
        except (DamagedFile, OSError) as error:
            problem = f"its log cannot be read: {error}"
            self._failed(error)
        self.links.send(name, CODEC.pack_parts(Pulled(asked.request, start_offset, problem), batches))
