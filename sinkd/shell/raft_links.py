"""The connections between the sinks of a zone: one for each pair in each Raft group.

The sink whose name comes first dials.

    RaftPort ─ accepts, and watches all of them ─► Hello names the group ─► RaftLinks of that group

All groups share a port. A connection of its own keeps the appends of one group from waiting behind those of another.

A connection begins with `Hello` both ways and is given up after a silence, so that a peer which was stopped or cut off
is dialled anew when it is back. What was sent on a lost connection may have arrived or not: Raft starts over from what
it knows. Mutual TLS where nodes have certificates.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import structlog

from protocol.config import Address
from protocol.errors import FrameError
from protocol.frames import Frame, FrameReader, Message, Parts
from protocol.limits import (
    RAFT_BUFFER_BYTES_MAX,
    RAFT_DIAL_MS_MAX,
    RAFT_PING_INTERVAL_MS,
    RAFT_RETRY_MS_MAX,
    RAFT_RETRY_MS_MIN,
    RAFT_SILENCE_MS_MAX,
)
from sinkd.core.raft_messages import CODEC, Hello, Ping

log = structlog.get_logger()


class Port(Protocol):
    """Where links are accepted."""

    @property
    def sockets(self) -> Sequence[Any]: ...

    def close(self) -> None: ...


async def stop_listening(port: Port) -> None:
    """What it has accepted becomes a connection first: asyncio's own server, closed in that turn, would forget it."""
    if isinstance(port, asyncio.Server):
        for each in port.sockets:
            asyncio.get_running_loop().remove_reader(each)
        await asyncio.sleep(0)
    port.close()


class NodeTls(NamedTuple):
    """Both sides' contexts, and who a certificate is for: a sink of the zone, or any node of the mesh, by its zone,
    role and name (FrameError).

    `listen(make, address, context, failed)` opens a port; `failed(host, why)` is told of handshakes that fail.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    identify: Callable[[ssl.SSLObject], str]
    identify_node: Callable[[ssl.SSLObject], tuple[str, str, str]]
    listen: Callable[
        [Callable[[], asyncio.BaseProtocol], Address, ssl.SSLContext, Callable[[str, str], None]], Awaitable[Port]
    ]


class RaftPort:
    """Where the other sinks find this one. `links` are those of each group, by its number."""

    def __init__(
        self, tls: NodeTls | None, not_secured: Callable[[str, str], None], refused: Callable[[str, str, str], None]
    ) -> None:
        """`not_secured(host, why)`: a handshake has failed; `refused(host, what, why)`: a peer is not wanted."""
        self.tls, self._not_secured, self.refused = tls, not_secured, refused
        self.links: dict[int, RaftLinks] = {}
        self.connections: set[PeerConnection] = set()
        self.is_closed = False
        self._server: Port | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self, bind: Address) -> None:
        """Listens. OSError: the port cannot be had."""
        loop = asyncio.get_running_loop()
        if self.tls is not None:
            self._server = await self.tls.listen(self._accepted, bind, self.tls.server, self._not_secured)
        else:
            self._server = await loop.create_server(self._accepted, bind.host, bind.port)
        self._watching = loop.create_task(self._watch())

    def _accepted(self) -> "PeerConnection":
        return PeerConnection(self)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        if self._server is not None:
            await stop_listening(self._server)
        self.is_closed = True
        for peer in list(self.connections):
            peer.abort("closing")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(RAFT_PING_INTERVAL_MS / 1000)
            for peer in list(self.connections):
                peer.watch()

    def links_of(self, number: int) -> "RaftLinks":
        """FrameError: this sink does not run that group."""
        if number not in self.links:
            raise FrameError(f"raft link: group {number} does not run here; the file says groups = {len(self.links)}")
        return self.links[number]


class RaftLinks:
    """Those of one group.

    Calls `connected(hello, is_new)`, `received(name, frame)` and `disconnected(name)`; `hello` makes our own.
    `is_new` is False where a peer that is connected already says its Hello anew.
    """

    def __init__(
        self,
        port: RaftPort,
        node: str,
        hello: Callable[[], Hello],
        connected: Callable[[Hello, bool], None],
        received: Callable[[str, Frame], None],
        disconnected: Callable[[str], None],
    ) -> None:
        self.port, self.node, self.hello = port, node, hello
        self.connected, self.received, self.disconnected = connected, received, disconnected
        self._peers: dict[str, PeerConnection] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._addresses: dict[str, Address] = {}
        self.errors: dict[str, str] = {}  # why a peer is not connected
        port.links[hello().number] = self

    def dial(self, addresses: Mapping[str, Address]) -> None:
        """Keeps connections to these sinks, and only to these; those with a smaller name dial us."""
        self._addresses = dict(addresses)
        for name in sorted(self._dialling.keys() - addresses.keys()):  # sorted, so that a simulation replays
            self._dialling.pop(name).cancel()
        for name in sorted(addresses.keys() - self._dialling.keys()):
            if name > self.node:
                self._dialling[name] = asyncio.get_running_loop().create_task(self._keep(name))

    def send(self, name: str, frame: Parts) -> None:
        """To a connected peer; else it is lost, as on a wire that was cut."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.write(frame)

    def tell(self) -> None:
        """Our Hello has changed."""
        for peer in self._peers.values():
            peer.write(CODEC.pack_parts(self.hello()))

    def begin_anew(self) -> None:
        """Ends all connections, which are made again: each end has to say anew who it is."""
        for peer in list(self._peers.values()):
            peer.abort("it is of another group now")

    async def close(self) -> None:
        """Dials nobody any more; the connections end with the port."""
        tasks = list(self._dialling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- keeping them -------------------------------------------------------------------------------------------------

    async def _keep(self, name: str) -> None:
        pause_ms = RAFT_RETRY_MS_MIN
        while True:
            peer = PeerConnection(self.port, self, name)
            try:
                async with asyncio.timeout(RAFT_DIAL_MS_MAX / 1000):  # `wait_for` may swallow a cancellation
                    await self._dial(name, peer)
            except (OSError, TimeoutError) as error:
                self.errors[name] = str(error) or "it does not answer"
            else:
                await peer.lost
                if peer.name:
                    pause_ms = RAFT_RETRY_MS_MIN
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, RAFT_RETRY_MS_MAX)

    async def _dial(self, name: str, peer: "PeerConnection") -> None:
        address, tls = self._addresses[name], self.port.tls
        context = tls.client if tls is not None else None
        await asyncio.get_running_loop().create_connection(
            lambda: peer, address.host, address.port, ssl=context, server_hostname=address.host if context else None
        )

    # -- from connections ---------------------------------------------------------------------------------------------

    def introduced(self, peer: "PeerConnection", hello: Hello) -> None:
        """A peer has said who it is, or that something of that has changed."""
        there = self._peers.get(hello.node)
        if there is not peer:
            if there is not None:
                there.abort("another connection has taken its place")
            self._peers[hello.node] = peer
            self.errors.pop(hello.node, None)
        self.connected(hello, there is not peer)

    def ended(self, peer: "PeerConnection", why: str) -> None:
        if peer.name and self._peers.get(peer.name) is peer:
            del self._peers[peer.name]
            self.errors[peer.name] = why
            self.disconnected(peer.name)


class PeerConnection(asyncio.BufferedProtocol):
    """Moves bytes. `expected` is whom we dialled for these `links`; who dialled us says for which group."""

    def __init__(self, port: RaftPort, links: RaftLinks | None = None, expected: str = "") -> None:
        self._port, self._links, self._expected = port, links, expected
        self._reader = FrameReader(CODEC)
        self._transport: asyncio.Transport | None = None
        self._silent_watches = 0
        self._why = ""
        self.name = ""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._port.is_closed:  # it was accepted, or dialled, before
            self._transport.abort()
            return
        self._port.connections.add(self)
        if self._links is not None:
            self.write(CODEC.pack_parts(self._links.hello()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._port.connections.discard(self)
        if self._links is not None:
            self._links.ended(self, self._why or str(exc or "closed by the peer"))
        if not self.lost.done():
            self.lost.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._silent_watches = 0
        try:
            for message, tail in self._reader.took(nbytes):
                self._take(Frame(message, bytes(tail)))
        except FrameError as error:
            peer = self.name or self._expected
            log.warning("raft_link_refused", peer=peer, error=str(error))
            address = self._transport.get_extra_info("peername") if self._transport is not None else None
            host = str(address[0]) if isinstance(address, tuple) else ""
            self._port.refused(host, f"link {'to' if self._expected else 'from'} sink {peer}".rstrip(), str(error))
            self.abort(str(error))

    def _take(self, frame: Frame) -> None:
        message: Message = frame.message
        if isinstance(message, Hello):
            if self._links is None:
                self._links = self._port.links_of(message.number)
                self.write(CODEC.pack_parts(self._links.hello()))
            self._introduce(message, self._links)
        elif not self.name or self._links is None:
            raise FrameError(f"raft link: {type(message).__name__} before Hello")
        elif not isinstance(message, Ping):
            self._links.received(self.name, frame)

    def _introduce(self, hello: Hello, links: RaftLinks) -> None:
        own = links.hello()
        ours, theirs = (own.mesh, own.zone, own.number), (hello.mesh, hello.zone, hello.number)
        if ours != theirs:
            raise FrameError(f"raft link: group {theirs} speaks to group {ours}")
        if hello.node == own.node or self._expected not in ("", hello.node) or self.name not in ("", hello.node):
            raise FrameError(f"raft link: a peer calls itself {hello.node}, {self._expected or 'another'} was expected")
        if self._port.tls is not None and self._transport is not None:
            certified = self._port.tls.identify(self._transport.get_extra_info("ssl_object"))
            if certified != hello.node:
                raise FrameError(f"raft link: {hello.node} has the certificate of {certified}")
        self.name = hello.node
        links.introduced(self, hello)

    def watch(self) -> None:
        """Counted in calls, not by the clock: when this process was held up, what waits to be read is no silence."""
        if self._silent_watches * RAFT_PING_INTERVAL_MS >= RAFT_SILENCE_MS_MAX:
            self.abort(f"silent for {RAFT_SILENCE_MS_MAX} ms")
            return
        self._silent_watches += 1
        if self._links is not None:  # Hello comes first
            self.write(CODEC.pack_parts(Ping()))

    def write(self, frame: Parts) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.writelines(frame)
        if self._transport.get_write_buffer_size() > RAFT_BUFFER_BYTES_MAX:
            self.abort("it does not take what it is sent")

    def abort(self, why: str) -> None:
        if self._transport is not None:
            self._why = why
            self._transport.abort()
