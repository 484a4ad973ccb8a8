"""The sink's end of the links to gateways: takes appends into the group, serves history and facts about the log.

One `LinkConnection` per gateway worker and Raft group: its Hello names the group. Appends go there and are answered
when they are committed and fsynced; reads are tasks of their own, so that one which waits at the high watermark holds
nobody up. When the gateway does not take what it asked for, reads wait for it (`pause_writing`); what it may have
outstanding is bounded.

A sink of another zone, which mirrors this one's logs, comes to the same port: `sinkd.shell.feeds`.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import cast

import msgspec
import structlog

from protocol import envelope, link
from protocol.contracts import whose
from protocol.coverage import RUN_BYTES, SEQUENCES_MAX
from protocol.errors import DamagedFile, FrameError, LogError
from protocol.gaps import DAMAGED, read_gap
from protocol.limits import FETCH_WAIT_MS_MAX, LINK_FETCH_BYTES_MAX, LINK_REQUESTS_MAX, MIRROR_SILENCE_MS_MAX
from protocol.link import MIRROR_ROLE, OPERATOR, Message
from protocol.records import CONTROL, check_batch
from protocol.streams import StreamState
from sinkd.core import commands
from sinkd.core.commands import OpenProducer
from sinkd.core.machine import ContractChanged, Machine
from sinkd.core.mirroring import TokenBucket
from sinkd.shell.feeds import Feeds
from sinkd.shell.group import Group, UnknownOutcome
from sinkd.shell.holding import Holding
from sinkd.shell.operating import Operator
from sinkd.shell.pacing import unpace
from sinkd.shell.store import Partition, Store

_TOO_MANY = f"{LINK_REQUESTS_MAX} requests of this gateway are under way; ask again when some are answered"
_FEEDING = -1  # the request number of what feeds a mirror; requests have none below 0
log = structlog.get_logger()


class LinkServer:
    """The links about one Raft group; `siblings` has those about each group of this sink, by its number."""

    def __init__(
        self,
        names: tuple[str, str, str],
        disk_id: str,
        group: Group,
        machine: Machine,
        store: Store,
        operator: Operator,
        storage_full: Callable[[], bool],
        failed: Callable[[BaseException], None],
        link_refused: Callable[[str, str, str], None],
        siblings: Mapping[int, "LinkServer"],
        holding: Holding,
        bucket_of: Callable[[str], TokenBucket],
        identify: Callable[[ssl.SSLObject], tuple[str, str, str]] | None = None,
    ) -> None:
        """`names`: mesh, zone, node of this sink. `failed` is told of damage, which ends the sink.
        `link_refused(host, what, why)` is told of links that are not wanted.

        `bucket_of(zone)` limits what another zone is sent (FrameError: there is no such zone), `holding` knows what it
        has got. `identify` says whose certificate a peer has shown (zone, role, node), where links are secured.
        """
        self.mesh, self.zone, self.node = names
        self.disk_id, self.group, self.machine, self.store = disk_id, group, machine, store
        self.operator, self.storage_full, self.failed = operator, storage_full, failed
        self.siblings, self.identify, self.link_refused = siblings, identify, link_refused
        self.holding, self.bucket_of = holding, bucket_of
        holding.changed = self._copies_changed
        self.connections: set[LinkConnection] = set()
        self.is_closed = False
        self.appends = self.fetches = self.refused_full = 0

    def accept(self) -> "LinkConnection":
        """It is about this group, until it says something else."""
        return LinkConnection(self)

    def streams_changed(self) -> None:
        """Tells every gateway the streams and contracts that are in force now."""
        for connection in self.connections:
            connection.send_streams()

    def leadership_changed(self) -> None:
        """Who has come for the leader goes to look for the new one."""
        if not self.group.leads:
            for connection in list(self.connections):
                if connection.wants_leader:
                    connection.close()

    def close_link_of(self, node: str, worker: int) -> int:
        """That gateway worker opens a link anew, and sends again what is not in the log; how many were closed."""
        found = [connection for connection in self.connections if connection.producer == (node, worker)]
        for connection in found:
            log.warning("link_closed_to_send_again", gateway=node, worker=worker, group=self.machine.number)
            connection.close()
        return len(found)

    def _copies_changed(self, incarnation: bytes, partition: int) -> None:
        for connection in self.connections:
            connection.send_copies(incarnation, partition)

    async def close(self) -> None:
        self.is_closed = True
        tasks = [task for connection in self.connections for task in connection.close()]
        await asyncio.gather(*tasks, return_exceptions=True)


class LinkConnection(asyncio.BufferedProtocol):
    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._reader = link.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._gateway = ""
        self._wants_contracts = self._wants_mirrors = False
        self._watched: dict[tuple[bytes, int], Partition] = {}  # whose copies the gateway waits for
        self._feeds: Feeds | None = None  # of a sink of another zone
        self.producer: tuple[str, int] | None = None  # that it has opened: gateway and worker

    # -- asyncio.BufferedProtocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport by name, only by what they can.
        self._transport = cast(asyncio.Transport, transport)
        if self._server.is_closed:  # it was accepted before
            self._transport.abort()
            return
        unpace(self._transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        self._may_write.set()
        for task in self._tasks.values():
            task.cancel()
        if self.producer is not None:
            log.info("link_closed", gateway=self._gateway, error=str(exc) if exc else None)

    @property
    def wants_leader(self) -> bool:
        return self._feeds is None

    @property
    def _host(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else ""

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._reader.took(nbytes):
                self._take(frame)
        except FrameError as error:
            log.warning("link_refused", gateway=self._gateway, error=str(error))
            self._server.link_refused(self._host, f"link from gateway {self._gateway}".rstrip(), str(error))
            self._send(link.Failed(0, "INVALID_REQUEST", str(error)))
            self.close()

    def close(self) -> list[asyncio.Task[None]]:
        """Closes the link; the tasks that it returns are being cancelled."""
        if self._transport is not None:
            self._transport.close()
        for task in self._tasks.values():
            task.cancel()
        return list(self._tasks.values())

    # -- frames -------------------------------------------------------------------------------------------------------

    def _take(self, frame: link.FrameView) -> None:
        message = frame.message
        if isinstance(message, link.Hello):
            self._hello(message)
        elif not self._gateway:
            raise FrameError(f"sink link: {type(message).__name__} before Hello")
        elif self._feeds is not None:
            self._take_of_mirror(message, self._feeds)
        elif isinstance(message, link.Append):
            self._append(bytes(frame.tail))
        elif isinstance(message, link.WatchCopies):
            self._watch_copies(message)
        elif isinstance(message, link.Ping):
            self._send(link.Pong())
        elif isinstance(message, link.Open):
            self._start(0, partial(self._open, message))
        elif isinstance(message, link.Fetch):
            self._start(message.request, partial(self._fetch, message))
        elif isinstance(message, link.Offsets):
            self._start(message.request, partial(self._offsets, message))
        elif isinstance(message, link.Describe):
            self._start(message.request, partial(self._describe, message))
        elif isinstance(message, link.ChangeContract):
            self._start(message.request, partial(self._change_contract, message))
        elif isinstance(message, link.Question):
            self._start(message.request, partial(self._operate, message))
        elif isinstance(message, link.Cancel):
            task = self._tasks.get(message.request)
            if task is not None:
                task.cancel()
        else:
            raise FrameError(f"sink link: a gateway does not send {type(message).__name__}")

    def _belong_to(self, group: int) -> None:
        """FrameError: this sink does not run that group."""
        siblings = self._server.siblings
        if group not in siblings:
            raise FrameError(f"group {group} does not run on sink {self._server.node}; its file says {len(siblings)}")
        self._server.connections.discard(self)
        self._server = siblings[group]
        self._server.connections.add(self)

    def _hello(self, message: link.Hello) -> None:
        self._belong_to(message.group)
        server = self._server
        is_mirror = message.role == MIRROR_ROLE
        if message.mesh != server.mesh or (message.zone == server.zone) == is_mirror:
            asked = f"{message.mesh}/{message.zone}"
            what = f"to mirror {asked}, its own zone" if is_mirror else f"not of {asked}"
            raise FrameError(f"this is sink {server.node} of {server.mesh}/{server.zone}, {what}")
        self._check_certificate(message)
        self._gateway = message.node
        self._wants_contracts, self._wants_mirrors = message.contracts, message.mirrors
        if is_mirror:
            self._begin_feeding(message)
        names, group = (server.mesh, server.zone, server.node), server.group
        self._send(link.Welcome(*names, group.leads, server.disk_id, group.leader))
        self.send_streams()

    def _check_certificate(self, message: link.Hello) -> None:
        """FrameError: it is not that of the node that it calls itself; a mirror's must say sink, and its zone, too."""
        identify = self._server.identify
        if identify is None or self._transport is None or message.node == OPERATOR:
            return
        zone, role, node = identify(self._transport.get_extra_info("ssl_object"))
        if node != message.node:
            raise FrameError(f"{message.node} has shown the certificate of {node}")
        if message.role and (zone, role) != (message.zone, message.role):
            raise FrameError(f"{message.node} of zone {message.zone} has shown the certificate of a {role} of {zone}")

    # -- a sink of another zone ---------------------------------------------------------------------------------------

    def _begin_feeding(self, hello: link.Hello) -> None:
        """FrameError: there is no such zone."""
        server, zone = self._server, hello.zone
        bucket = server.bucket_of(zone)
        refused = partial(server.link_refused, self._host, f"mirror in zone {zone}")
        self._feeds = Feeds(
            server.siblings, zone, bucket, self._send, self._may_write.wait, refused, self._silent,
            tells_ends=hello.mirrors,
        )  # fmt: skip
        self._start(_FEEDING, self._feeds.run)

    def _silent(self) -> None:
        log.warning("mirror_silent", sink=self._gateway, limit_ms=MIRROR_SILENCE_MS_MAX)
        if self._transport is not None:
            self._transport.abort()

    def _take_of_mirror(self, message: Message, feeds: Feeds) -> None:
        feeds.heard()
        if isinstance(message, link.Subscribe):
            self._start(message.subscription, partial(feeds.subscribe, message))
        elif isinstance(message, link.Durable):
            feeds.durable(message)
        elif isinstance(message, link.Cancel):
            feeds.cancel(message.request)
        elif isinstance(message, link.Ping):
            self._send(link.Pong())
        else:
            raise FrameError(f"sink link: a mirror does not send {type(message).__name__}")

    # -- streams ------------------------------------------------------------------------------------------------------

    def send_streams(self) -> None:
        if self._gateway:
            machine = self._server.machine
            self._send(link.Streams(machine.state.revision, machine.stream_states()))
            if self._wants_contracts and machine.number == 0:
                self._send(link.Contracts(tuple(machine.state.contracts.values())))
            if self._wants_mirrors and machine.state.mirrors:
                self._send(link.Mirrors(machine.mirror_states()))

    def _watch_copies(self, message: link.WatchCopies) -> None:
        place = message.incarnation, message.partition
        try:
            self._watched[place] = self._server.store.incarnation(*place)
        except LogError:  # the stream was made anew meanwhile: nobody copies the old one
            return
        self.send_copies(*place)

    def send_copies(self, incarnation: bytes, partition: int) -> None:
        """How far other zones hold a partition, if the gateway wants to know."""
        watched = self._watched.get((incarnation, partition))
        if watched is not None:
            copies = self._server.holding.copies(incarnation, partition)
            self._send(link.Copies(incarnation, partition, watched.start_offset, copies))

    def _append(self, parcel: bytes) -> None:
        self._server.appends += 1
        head = _checked(parcel)
        refusal = None
        if not self._server.group.leads:
            refusal = "NOT_LEADER"
        elif self._server.storage_full():
            refusal, self._server.refused_full = "STORAGE_FULL", self._server.refused_full + 1
        if refusal is None:
            self._server.group.append(head, parcel, self._send)
            return
        names = head.stream, head.incarnation, head.partition
        self._send(link.Refused(head.producer_id, head.epoch, *names, head.first_sequence, refusal))

    async def _open(self, message: link.Open) -> None:
        request = OpenProducer(message.node, message.worker, message.nonce)
        opened = await self._server.group.submit(commands.OPEN, request)
        assert isinstance(opened, link.Opened)
        self.producer = message.node, message.worker
        log.info("link_opened", gateway=self._gateway)
        self._send(opened)

    async def _fetch(self, message: link.Fetch) -> None:
        store, partition = self._server.store, self._server.store.partition(message.stream, message.partition)
        self._server.fetches += 1
        await store.wait_for_more(partition, message.offset, min(message.wait_ms, FETCH_WAIT_MS_MAX))
        batches = await store.read(partition, message.offset, min(message.bytes_max, LINK_FETCH_BYTES_MAX))
        await self._may_write.wait()
        self._send(link.Fetched(message.request, partition.start_offset, partition.high_watermark), batches)

    async def _offsets(self, message: link.Offsets) -> None:
        rows = []
        for number in message.partitions:
            partition = self._server.store.partition(message.stream, number)
            offset, timestamp_ms = await self._offset(partition, message)
            rows.append((number, offset, timestamp_ms))
        self._send(link.OffsetsAre(message.request, tuple(rows)))

    async def _offset(self, partition: Partition, message: link.Offsets) -> tuple[int, int]:
        if message.at == "earliest":
            return partition.start_offset, -1
        if message.at == "latest":
            return partition.high_watermark, -1
        if message.at == "until":
            return await self._server.store.offset_until_time(partition, message.timestamp_ms), -1
        if message.at == "timestamp":
            return await self._server.store.offset_for_time(partition, message.timestamp_ms) or (-1, -1)
        raise FrameError(f"sink link: offsets at {message.at!r}")

    async def _describe(self, message: link.Describe) -> None:
        group = self._server.group
        if message.stream:
            self._server.store.stream(message.stream)
        rows = tuple(
            (stream.state, tuple(self._descriptions(stream.state)))
            for stream in (*self._server.machine.state.streams.values(), *self._server.machine.state.mirrors.values())
            if message.stream in ("", stream.state.name)
        )
        self._send(link.Described(message.request, group.term, self._server.node, rows))

    def _descriptions(self, state: StreamState) -> Iterator[link.PartitionDescription]:
        for number in state.partitions_of(self._server.machine.number):
            partition = self._server.store.partition(state.name, number)
            ends = partition.start_offset, partition.high_watermark
            yield link.PartitionDescription(number, *ends, partition.size_bytes)

    async def _change_contract(self, message: link.ChangeContract) -> None:
        if self._server.machine.number != 0:
            raise FrameError("sink link: contracts are kept by group 0")
        changing = commands.ChangeContract(message.contract, message.removes)
        changed = await self._server.group.submit(commands.CONTRACT, changing)
        assert isinstance(changed, ContractChanged)
        if changed.refusal is not None:
            raise changed.refusal
        log.info("contract_changed", gateway=self._gateway, name=whose(changed.contract), removed=message.removes)
        self._send(link.ContractIs(message.request, changed.contract))

    async def _operate(self, message: link.Question) -> None:
        operator = self._server.operator
        if isinstance(message, link.Status):
            self._send(link.StatusIs(message.request), msgspec.json.encode(operator.status()))
            return
        if isinstance(message, link.GiveUp):
            rows = await operator.give_up(message, self._host)
            self._send(link.StatusIs(message.request), msgspec.json.encode(rows))
            return
        if isinstance(message, link.Statement | link.Attest | link.Prove):
            self._send(*await operator.certify(message))
            return
        if isinstance(message, link.Transfer):
            operator.transfer(message.to, self._host)
        elif isinstance(message, link.Rebuild):
            await operator.rebuild(message.source, self._host)
        elif isinstance(message, link.AcceptLoss):
            await operator.accept_loss(message, self._host)
        elif isinstance(message, link.Scrub):
            operator.scrub()
        else:
            await operator.change_members(message.add, message.remove, self._host)
        self._send(link.Done(message.request))

    # -- requests as tasks --------------------------------------------------------------------------------------------

    def _start(self, request: int, serve: Callable[[], Awaitable[None]]) -> None:
        if request in self._tasks:
            raise FrameError(f"sink link: request {request} is under way already")
        if len(self._tasks) >= LINK_REQUESTS_MAX and request:  # the producer's is none of them
            self._send(link.Failed(request, "THROTTLING_QUOTA_EXCEEDED", _TOO_MANY))
            return
        task = asyncio.get_running_loop().create_task(self._guard(request, serve))
        self._tasks[request] = task
        task.add_done_callback(lambda _: self._tasks.pop(request, None))

    async def _guard(self, request: int, serve: Callable[[], Awaitable[None]]) -> None:
        """Answers a request that fails by name; damage is answered, then ends the sink."""
        try:
            await serve()
        except LogError as error:
            self._send(link.Failed(request, error.name, str(error), dict(error.details)))
        except UnknownOutcome as error:
            self._send(link.Failed(request, "LEADER_NOT_AVAILABLE", str(error)))
        except FrameError as error:
            self._send(link.Failed(request, "INVALID_REQUEST", str(error)))
        except (DamagedFile, OSError) as error:
            log.error("log_unreadable", error=str(error))
            self._send(link.Failed(request, "STORAGE_ERROR", f"sink {self._server.node}: {error}"))
            self._server.failed(error)

    def _send(self, message: Message, tail: bytes | memoryview = b"") -> None:
        if self._transport is not None:
            self._transport.writelines(link.pack_parts(message, tail))


def _checked(parcel: bytes) -> envelope.Envelope:
    """The envelope of the one parcel in `parcel`. FrameError: nothing that a gateway of ours would send."""
    parcels = list(envelope.unpack(parcel))
    if len(parcels) != 1:
        raise FrameError(f"append: {len(parcels)} parcels in one frame")
    head, batch, _ = parcels[0]
    header = check_batch(batch)
    indexes = [index for index, _ in head.ids]
    if header.attributes == CONTROL:
        if read_gap(batch)[1].reason == DAMAGED:
            raise FrameError("append: a gap record of damage, which no gateway has seen")
    elif header.attributes:
        raise FrameError(f"append: a batch with attributes {header.attributes:#x}")
    if header.last_offset_delta + 1 != header.record_count:
        raise FrameError(f"append: a gap of {header.last_offset_delta + 1} offsets; a gateway's takes one")
    if not 1 <= header.record_count <= head.sequence_count or head.first_sequence < 1:
        raise FrameError(f"append: {header.record_count} records for {head.sequence_count} sequences")
    if head.sequence_count > SEQUENCES_MAX:
        raise FrameError(f"append: {head.sequence_count} sequences in one batch, at most {SEQUENCES_MAX} are allowed")
    if len(head.run) not in (0, RUN_BYTES):
        raise FrameError(f"append: a run of {len(head.run)} bytes, {RUN_BYTES} are due")
    if indexes != sorted(set(indexes)) or any(not 0 <= index < header.record_count for index in indexes):
        raise FrameError("append: ids of records that the batch does not hold, or not in order")
    return head
