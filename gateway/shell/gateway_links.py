"""The links between gateways. In a zone each is linked with each; between zones there is one link.

    eu-gw1 ──dials──► eu-gw2        Of two, the one whose name comes first dials, and dials again when the link is lost,
       └────dials──► eu-gw3 ◄──┘    after a pause that grows and has jitter. Mutual TLS where nodes have certificates.

A gateway of several workers is as many peers: each of them listens on a port of its own, dials as said, and has links
of its own (`protocol.routes.peer_name`), so that there is one hop from any process to any other. Both ends must agree
on how many there are. Of two zones any two processes may have the one link.

A link begins with HELLO both ways (`protocol.routes`). Until that was checked, nothing else is listened to; a peer of
another mesh, zone or version, by another's name or with another's certificate hears why and is gone, and no other link
notices. From then on what comes is the plane's (`gateway.core.channels`), like what a worker of the same gateway says.

Which gateway links its zone to another is for `gateway.core.zones` to say; how, for `gateway.shell.borders`.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple, Protocol

import structlog

from gateway.core.channels import Part
from gateway.core.differing import differing_parts
from gateway.core.reports import LinksReport
from gateway.core.session import Closed, Session
from gateway.core.zones import Zones
from gateway.shell.borders import BorderStream
from gateway.shell.channel_connection import ChannelConnection
from gateway.shell.connection import unpace
from gateway.shell.server import ClientServer
from gateway.shell.tls import explained
from protocol.config import Address, Gateway
from protocol.errors import FrameError
from protocol.limits import (
    GATEWAY_HELLO_BYTES_MAX,
    GATEWAY_HELLO_MS_MAX,
    GATEWAY_PING_INTERVAL_MS,
    GATEWAY_REFUSALS_TOLD_MAX,
    GATEWAY_RETRY_MS_MAX,
    GATEWAY_WAIT_MS_MAX,
    PEER_RETRY_MS_MIN,
)
from protocol.routes import HELLO_VERSION, ZSTD, Hello, RefusedByPeer, hello_line, peer_name, read_hello

_POLL_S: Final = 0.01
_LOOK_S: Final = 0.05  # between two looks at whether a zone is to be dialled
log = structlog.get_logger()


class Port(Protocol):
    """Where links are accepted."""

    def close(self) -> None: ...


class LinkTls(NamedTuple):
    """Both sides' contexts, and which gateway, of which zone, a certificate is for (FrameError: none).

    `listen(make, address, context, failed)` opens a port; `failed(host, why)` is told of handshakes that fail.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    identify: Callable[[ssl.SSLObject], tuple[str, str]]
    listen: Callable[
        [Callable[[], asyncio.BaseProtocol], Address, ssl.SSLContext, Callable[[str, str], None]], Awaitable[Port]
    ]


class LinkRefused(FrameError):
    """A link that is not wanted. `kind` is what it is counted under."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Process(NamedTuple):
    """One of a gateway's workers, or its only one."""

    gateway: Gateway
    worker: int

    @property
    def address(self) -> Address:
        """What to dial."""
        return self.gateway.links_at(self.worker)


def _processes(gateways: Iterable[Gateway]) -> dict[str, Process]:
    """All of them, by what they are called."""
    found = (Process(gateway, worker) for gateway in gateways for worker in range(gateway.workers))
    return {peer_name(process.gateway.name, process.worker): process for process in found}


@dataclass(frozen=True)
class FarZone:
    """Another zone: its gateways, and how much may go there in a second (0: as much as there is)."""

    gateways: Mapping[str, Gateway]
    rate_bytes: int = 0


class GatewayLinks:
    """Those of one process to `others` of its zone, and to other zones. `jitter()` is a random number from 0 to 1.

    `links` and what is counted of them have the `peer_name` of the other end; `refused` counts links that were not
    wanted, by reason; `errors` says why there is none to a peer.
    """

    def __init__(
        self,
        server: ClientServer,
        own: Hello,
        node: Gateway,
        others: Iterable[Gateway],
        far: Mapping[str, FarZone],
        tls: LinkTls | None,
        jitter: Callable[[], float],
        audit: Callable[[str, str, str], None],
        differs: Callable[[str, str], None] = lambda what, why: None,
    ) -> None:
        """`far` are the zones to pass live events to; `audit(host, what, why)` is told of links that were refused,
        `differs(what, why)` of gateways whose files are not like ours.
        """
        self.server, self.own, self.tls = server, own, tls
        self.others = {gateway.name: gateway for gateway in others}
        self.far = dict(far)
        self._far_peers = {name: _processes(zone.gateways.values()) for name, zone in far.items()}
        self.zones = Zones(own.zone, own.peer, {name: list(peers) for name, peers in self._far_peers.items()})
        self.links: dict[str, GatewayConnection] = {}
        self.borders: dict[str, GatewayConnection] = {}  # by zone
        self.pending: set[GatewayConnection] = set()
        self.refused: Counter[str] = Counter()
        self.errors: dict[str, str] = {}
        self.differing: dict[str, str] = {}  # by gateway: what of its file is not as ours
        self._node, self._jitter, self._audit, self._differs = node, jitter, audit, differs
        self._listener: Port | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._dropped_before: Counter[tuple[str, str]] = Counter()  # on links that are gone
        self._told: dict[str, str] = {}  # by host: the last refusal, so that it is logged once

    def take_rates(self, rates: Mapping[str, int]) -> None:
        """How many bytes in a second may go to each zone from now on; 0: as much as there is."""
        for zone, rate_bytes in rates.items():
            self.far[zone] = replace(self.far[zone], rate_bytes=rate_bytes)
            connection = self.borders.get(zone)
            if connection is not None and connection.border is not None:
                connection.border.rate_bytes = rate_bytes

    @property
    def peers(self) -> dict[str, Process]:
        """The processes of the other gateways of this zone."""
        return _processes(self.others.values())

    @property
    def missing(self) -> list[str]:
        """The peers to which there is no link."""
        return [name for name in self.peers if name not in self.links]

    @property
    def dropped(self) -> Counter[tuple[str, str]]:
        """Messages that got no further, by peer and why: `behind` (it was) or `unwanted` (here, of its messages)."""
        counts = Counter({(name, why): 0 for name in self.peers for why in ("behind", "unwanted")})
        counts.update(self._dropped_before)
        for link in [*self.links.values(), *self.borders.values()]:
            counts.update(link.dropped())
        return counts

    def report(self) -> LinksReport:
        """For `reports.routez`."""
        streams = {zone: border.border for zone, border in self.borders.items() if border.border is not None}
        return LinksReport(self.missing, {zone: stream.counted for zone, stream in streams.items()})

    async def start(self) -> None:
        """Returns when all others are linked and have told what they want, or after `GATEWAY_WAIT_MS_MAX`.

        OSError: see `listen`.
        """
        loop = asyncio.get_running_loop()
        if self._listener is None:
            await self.listen()
        peers = self.peers
        dialled = [name for name, process in peers.items() if process.gateway.name > self.own.node]
        self._tasks = [loop.create_task(self._keep(name, peers[name].address)) for name in dialled]
        self._tasks.append(loop.create_task(self._watch()))
        self._tasks.append(loop.create_task(self._reach_zones(loop.time() + GATEWAY_WAIT_MS_MAX / 1_000)))
        self._tell_clients()
        deadline_s = loop.time() + GATEWAY_WAIT_MS_MAX / 1_000
        while self.server.plane.peers.agreed(near=False) < len(peers):
            if loop.time() >= deadline_s:
                log.warning("gateways_missing", gateways=self.missing, waited_ms=GATEWAY_WAIT_MS_MAX)
                return
            await asyncio.sleep(_POLL_S)

    @property
    def bind(self) -> Address:
        """Where the others find this process."""
        return self._node.bind(self._node.links_at(self.own.worker))

    async def listen(self) -> None:
        """Takes links from now on. OSError: the address cannot be had."""
        if self.tls is not None:
            self._listener = await self.tls.listen(self._accepted, self.bind, self.tls.server, self._not_secured)
        else:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(self._accepted, self.bind.host, self.bind.port)

    def _accepted(self) -> "GatewayConnection":
        return GatewayConnection(self, "")

    async def stop(self) -> None:
        """Takes and makes no more links; those that there are, are closed by the server, with its connections."""
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.pending):
            connection.transport.abort()

    # -- keeping them -------------------------------------------------------------------------------------------------

    async def _keep(self, name: str, address: Address) -> None:
        """Keeps the link to a peer that is ours to dial."""
        pause_ms = PEER_RETRY_MS_MIN
        while True:
            if await self._was_open(name, address):
                pause_ms = PEER_RETRY_MS_MIN
            await asyncio.sleep(pause_ms * (0.5 + self._jitter() / 2) / 1_000)
            pause_ms = min(pause_ms * 2, GATEWAY_RETRY_MS_MAX)

    async def _was_open(self, name: str, address: Address) -> bool:
        """Dials, and returns when there is no link any more; whether there was one."""
        connection = GatewayConnection(self, name)
        try:
            async with asyncio.timeout(GATEWAY_HELLO_MS_MAX / 1_000):
                await self._dial(address, connection)
        except TimeoutError:
            self.failed(name, "it does not answer")
        except OSError as error:
            self.failed(name, explained(error) if isinstance(error, ssl.SSLError) else str(error))
        else:
            await connection.lost.wait()
        return bool(connection.name)

    async def _reach_zones(self, begin_s: float) -> None:
        """Links this zone to others, where that is ours to do; from `begin_s` on, or as soon as all are here."""
        loop = asyncio.get_running_loop()
        under_way = set[asyncio.Task[None]]()
        while self.missing and loop.time() < begin_s:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        try:
            while self.zones.dials:
                for zone, name in self.zones.due(self.server.now_ms()):
                    task = loop.create_task(self._reach(zone, name))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                await asyncio.sleep(_LOOK_S)
        finally:
            for task in under_way:
                task.cancel()

    def opened_to_clients(self) -> None:
        """Clients can connect now."""

    async def _reach(self, zone: str, name: str) -> None:
        was_open = await self._was_open(name, self._far_peers[zone][name].address)
        self.zones.dialled(zone, self.server.now_ms(), self._jitter(), was_open=was_open)

    async def _dial(self, address: Address, connection: "GatewayConnection") -> None:
        context = self.tls.client if self.tls is not None else None
        name = address.host if context is not None else None
        await asyncio.get_running_loop().create_connection(
            lambda: connection, address.host, address.port, ssl=context, server_hostname=name
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(GATEWAY_PING_INTERVAL_MS / 1_000)
            for link in [*self.links.values(), *self.borders.values()]:
                link.watch()
            for channels in self.zones.superfluous():
                self.server.plane.close(channels.main, Closed.CLIENT, flushes=False, detail="another gateway has one")
            self.server.flush()

    def _tell_clients(self) -> None:
        """Where else they can go: to us, and to every gateway that is there; not before there is another one."""
        plane, own = self.server.plane, Address(self._node.client.host, self.server.plane.port)
        linked = dict.fromkeys(link.node for link in self.links.values())  # by whichever of its processes
        others = [client for node in linked if (client := self.others[node].client).port]
        if others or plane.connect_urls:
            plane.set_connect_urls(tuple(str(address) for address in (own, *others) if address.port))
            self.server.flush()

    # -- called by connections ----------------------------------------------------------------------------------------

    def hello(self, connection: "GatewayConnection") -> Hello:
        """What is said on it."""
        return self.own

    def compare(self, hello: Hello) -> None:
        """Reports a gateway whose file is not like ours, again when what differs has changed."""
        own, node = self.own, hello.node
        parts = differing_parts(own.digests, hello.digests)
        if not parts:
            self.differing.pop(node, None)
            return
        what = f"{', '.join(parts)} in the file of {node}, revision {hello.revision}"
        if self.differing.get(node) != what:
            self.differing[node] = what
            self._differs(what, f"the file of {own.node}, revision {own.revision}, says otherwise")
            log.warning("configuration_differs", gateway=node, parts=parts, revision=hello.revision, own=own.revision)

    def check(self, connection: "GatewayConnection", hello: Hello) -> None:
        """LinkRefused: it is not a link that we want."""
        own, node = self.own, hello.node
        if hello.version != HELLO_VERSION:
            raise LinkRefused("version", f"{node} speaks version {hello.version} of HELLO, this is {HELLO_VERSION}")
        if hello.mesh != own.mesh:
            raise LinkRefused("mesh", f"{node} is of mesh {hello.mesh}, {own.node} of mesh {own.mesh}")
        if hello.zone != own.zone and hello.zone not in self.far:
            raise LinkRefused("zone", f"{node} is of zone {hello.zone}, {own.node} of zone {own.zone}")
        if node == own.node:
            raise LinkRefused("name", f"another gateway is called {node}, too")
        known = self.others if hello.zone == own.zone else self.far[hello.zone].gateways
        if node not in known:
            raise LinkRefused("name", f"the file of {own.node} has no gateway {node} in zone {hello.zone}")
        if not 0 <= hello.worker < hello.workers:
            raise LinkRefused("workers", f"{node} is worker {hello.worker} of {hello.workers}")
        if hello.zone == own.zone and known[node].workers != hello.workers:
            says = f"the file of {own.node} says {known[node].workers}"
            raise LinkRefused("workers", f"{node} runs as workers = {hello.workers}, {says}")
        if connection.expected not in ("", hello.peer):
            raise LinkRefused("name", f"{hello.peer} answers where {connection.expected} should be")
        if not connection.expected and own.zone < hello.zone:
            raise LinkRefused("zone", f"zone {own.zone} dials zone {hello.zone}, not the other way round")
        self._check_certificate(connection, hello)
        there = self.links.get(hello.peer)
        if there is not None and there.server_id != hello.server_id:
            raise LinkRefused("name", f"another gateway is called {hello.peer}, too, and linked to {own.peer}")

    def _check_certificate(self, connection: "GatewayConnection", hello: Hello) -> None:
        if self.tls is None:
            return
        try:
            certified, node = self.tls.identify(connection.transport.get_extra_info("ssl_object"))
        except FrameError as error:
            raise LinkRefused("certificate", str(error)) from error
        if (certified, node) != (hello.zone, hello.node):
            whose = node if certified == hello.zone else f"{node} of zone {certified}"
            raise LinkRefused("certificate", f"{hello.node} has shown the certificate of {whose}")

    def opening(self, connection: "GatewayConnection", zone: str) -> None:
        """It will be a link to `zone`: one that there is, is given up."""
        before = self.borders.get(zone)
        if before is not None:
            self.closed(before)
            before.channels.end()
            before.transport.abort()

    def opened(self, connection: "GatewayConnection") -> None:
        self.errors.pop(connection.name, None)
        zone, now_ms = connection.channels.border, self.server.now_ms()
        log.info("gateway_link_up", gateway=connection.name, zone=zone or self.own.zone, tls=self.tls is not None)
        if zone:
            self.borders[zone] = connection
            self.zones.opened(connection.channels, now_ms)
            return
        before = self.links.get(connection.name)
        if before is not None:  # the same process, which has seen the end of it already
            self.server.plane.close(before.session, Closed.CLIENT, flushes=False, detail="linked anew")
        self.links[connection.name] = connection
        self.zones.linked(connection.channels, now_ms)
        self._tell_clients()

    def closed(self, connection: "GatewayConnection") -> None:
        zone = connection.channels.border
        if zone:
            self.zones.closed(connection.channels)
            if self.borders.get(zone) is connection:
                del self.borders[zone]
            return
        self.zones.unlinked(connection.channels)
        if self.links.get(connection.name) is connection:
            del self.links[connection.name]
            self._tell_clients()

    def ended(self, counts: Counter[tuple[str, str]]) -> None:
        """A channel has, on which so much was dropped."""
        self._dropped_before.update(counts)

    def refuse(self, connection: "GatewayConnection", error: FrameError) -> None:
        """A link is not wanted, by us or by the peer."""
        kind = error.kind if isinstance(error, LinkRefused) else "protocol"
        if isinstance(error, RefusedByPeer):
            kind = "by_peer"
        host = str((connection.transport.get_extra_info("peername") or [""])[0])
        if connection.expected:
            self.errors[connection.expected] = str(error)
        self._note_refusal(kind, host, str(error), connection.expected)

    def _not_secured(self, host: str, why: str) -> None:
        """A peer has shown no certificate of use, or does not like ours."""
        self._note_refusal("tls", host, why)

    def _note_refusal(self, kind: str, host: str, why: str, expected: str = "") -> None:
        """Counts it, and writes it down; the same from the same peer is logged once."""
        self.refused[kind] += 1
        self._audit(host, f"link {'to' if expected else 'from'} gateway {expected}".rstrip(), why)
        peer = expected or host
        if self._told.get(peer) != why:
            if len(self._told) >= GATEWAY_REFUSALS_TOLD_MAX:
                self._told.clear()
            self._told[peer] = why
            log.warning("gateway_link_refused", peer=peer, kind=kind, reason=why)

    def failed(self, name: str, why: str) -> None:
        """There is no link to a peer that we have dialled."""
        if self.errors.get(name) != why:
            self.errors[name] = why
            log.info("gateway_link_fails", gateway=name, reason=why)


class GatewayConnection(ChannelConnection):
    """One link. `expected` is whom we have dialled, "" for nobody; `name` is "" until the peer has said who it is.

    `node` is its gateway. Channels are there from then on; between zones `border`, too.
    """

    __slots__ = (
        *("_greeting", "_late", "_links", "border", "expected", "lost", "name", "node"),
        "server_id",
    )

    def __init__(self, links: GatewayLinks, expected: str) -> None:
        super().__init__(links.server)
        self._links, self.expected = links, expected
        self.name = self.node = self.server_id = ""
        self.border: BorderStream | None = None
        self.lost = asyncio.Event()
        self._greeting = b""
        self._late: asyncio.TimerHandle | None = None

    # -- from the loop ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.open_transport(transport)
        self._links.pending.add(self)
        unpace(self.transport)
        self.transport.write(hello_line(self._links.hello(self)))
        self._late = asyncio.get_running_loop().call_later(GATEWAY_HELLO_MS_MAX / 1_000, self._is_late)

    def buffer_updated(self, nbytes: int) -> None:
        if self.name:
            super().buffer_updated(nbytes)
        elif not self.transport.is_closing():
            self._greet(bytes(self._server.read_buffer[:nbytes]))

    def connection_lost(self, error: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        self._links.pending.discard(self)
        if self.name:
            self._links.closed(self)
            super().connection_lost(error)
            if self.border is not None:
                self.border.close()
        elif self.expected and self.expected not in self._links.errors:
            self._links.failed(self.expected, str(error or "closed by the peer"))
        self.lost.set()

    # -- before it is a peer ------------------------------------------------------------------------------------------

    def _greet(self, data: bytes) -> None:
        line, end, rest = (self._greeting + data).partition(b"\r\n")
        try:
            if len(line) > GATEWAY_HELLO_BYTES_MAX:
                raise LinkRefused("protocol", f"the peer says no HELLO within {GATEWAY_HELLO_BYTES_MAX} B")
            if not end:
                self._greeting = line
                return
            hello = read_hello(line)
            self._links.check(self, hello)
        except FrameError as error:
            self._refuse(error)
        else:
            self._begin(hello, rest)

    def _begin(self, hello: Hello, rest: bytes) -> None:
        assert self._late is not None
        self._late.cancel()
        self._links.pending.discard(self)
        self.name, self.node, self.server_id, self._greeting = hello.peer, hello.node, hello.server_id, b""
        ip, port = (self.transport.get_extra_info("peername") or ("", 0))[:2]
        zone = hello.zone if hello.zone != self._links.own.zone else ""
        if zone:
            self._links.opening(self, zone)
            rate_bytes = self._links.far[zone].rate_bytes
            self.border = BorderStream(self.transport, rate_bytes, self._server.now_ms, hello.compression == ZSTD)
        self._links.compare(hello)
        self.begin_channels(hello.peer, border=zone, ip=ip, port=port)
        self._links.opened(self)
        has_more = self._receive(rest)
        self._server.flush()
        if has_more or self.session.stall_ms:
            self._begin_stall()

    def _removed(self, session: Session) -> None:
        self._links.ended(self._dropped_on(session))
        super()._removed(session)

    def _unsent_bytes(self) -> int:
        return super()._unsent_bytes() + (0 if self.border is None else self.border.waiting_bytes)

    def _refuse(self, error: FrameError) -> None:
        self._links.refuse(self, error)
        if not isinstance(error, RefusedByPeer):
            self.transport.write(b"-ERR '%b'\r\n" % str(error).encode("ascii", "backslashreplace"))
        self.transport.close()

    def _is_late(self) -> None:
        self._refuse(LinkRefused("protocol", f"the peer says no HELLO within {GATEWAY_HELLO_MS_MAX} ms"))

    # -- from then on -------------------------------------------------------------------------------------------------

    def _receive(self, data: bytes | memoryview) -> bool:
        if self.border is None:
            return self.channels.receive(data, self._server.now_ms())
        try:
            return self.border.receive(data, partial(self.channels.receive, now_ms=self._server.now_ms()))
        except FrameError as error:
            self.channels.fail(str(error))
            return False

    def update(self) -> None:
        if self.border is not None:
            self._say()
        super().update()

    def _write_parts(self, lines: list[Part], messages: list[Part]) -> None:
        if self.border is not None:  # it has one channel
            self.border.write([data for _, data in lines], [data for _, data in messages])
        else:
            super()._write_parts(lines, messages)

    def dropped(self) -> Counter[tuple[str, str]]:
        """As `GatewayLinks.dropped`."""
        counts = Counter[tuple[str, str]]()
        for session in self.channels.sessions.values():
            counts.update(self._dropped_on(session))
        return counts

    def _dropped_on(self, session: Session) -> Counter[tuple[str, str]]:
        return Counter({(self.name, "behind"): session.dropped_msgs, (self.name, "unwanted"): session.unwanted_msgs})

    def _log_closed(self, error: Exception | None) -> None:
        log.info("gateway_link_down", gateway=self.name, **self.closed_by(error))
