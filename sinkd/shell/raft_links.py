"""The connections between the sinks of a zone: one for each pair, dialled by the one whose name comes first.

A connection begins with `Hello` both ways and is given up after a silence, so that a peer which was stopped or cut off
is dialled anew when it is back. What was sent on a lost connection may have arrived or not: Raft starts over from what
it knows. Mutual TLS where nodes have certificates.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import structlog

from protocol.config import Address
from protocol.errors import FrameError
from protocol.frames import Frame, FrameReader, Message
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


class NodeTls(NamedTuple):
    """Both sides' contexts, and who a certificate is for: a sink of the zone, or any node of the mesh (FrameError)."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    identify: Callable[[ssl.SSLObject], str]
    identify_node: Callable[[ssl.SSLObject], str]


class RaftLinks:
    """Calls `connected(hello, is_new)`, `received(name, frame)` and `disconnected(name)`; `hello` makes our own.

    `is_new` is False where a peer that is connected already says its Hello anew.
    """

    def __init__(
        self,
        node: str,
        hello: Callable[[], Hello],
        connected: Callable[[Hello, bool], None],
        received: Callable[[str, Frame], None],
        disconnected: Callable[[str], None],
        tls: NodeTls | None = None,
    ) -> None:
        self.node, self.hello, self.tls = node, hello, tls
        self.connected, self.received, self.disconnected = connected, received, disconnected
        self._peers: dict[str, PeerConnection] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._addresses: dict[str, Address] = {}
        self._all: set[PeerConnection] = set()
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self.errors: dict[str, str] = {}  # why a peer is not connected

    async def start(self, bind: Address) -> None:
        """Listens. OSError: the port cannot be had."""
        loop = asyncio.get_running_loop()
        context = self.tls.server if self.tls is not None else None
        self._server = await loop.create_server(lambda: PeerConnection(self), bind.host, bind.port, ssl=context)
        self._watching = loop.create_task(self._watch())

    def dial(self, addresses: Mapping[str, Address]) -> None:
        """Keeps connections to these sinks, and only to these; those with a smaller name dial us."""
        self._addresses = dict(addresses)
        for name in sorted(self._dialling.keys() - addresses.keys()):  # sorted, so that a simulation replays
            self._dialling.pop(name).cancel()
        for name in sorted(addresses.keys() - self._dialling.keys()):
            if name > self.node:
                self._dialling[name] = asyncio.get_running_loop().create_task(self._keep(name))

    def send(self, name: str, frame: bytes) -> None:
        """To a connected peer; else it is lost, as on a wire that was cut."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.write(frame)

    def tell(self) -> None:
        """Our Hello has changed."""
        for peer in self._peers.values():
            peer.write(CODEC.pack(self.hello()))

    async def close(self) -> None:
        tasks = list(self._dialling.values())
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for peer in list(self._all):
            peer.abort("closing")

    # -- keeping them -------------------------------------------------------------------------------------------------

    async def _keep(self, name: str) -> None:
        pause_ms = RAFT_RETRY_MS_MIN
        while True:
            peer = PeerConnection(self, name)
            try:
                await asyncio.wait_for(self._dial(name, peer), RAFT_DIAL_MS_MAX / 1000)
            except (OSError, TimeoutError) as error:
                self.errors[name] = str(error) or "it does not answer"
            else:
                await peer.lost
                if peer.name:
                    pause_ms = RAFT_RETRY_MS_MIN
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, RAFT_RETRY_MS_MAX)

    async def _dial(self, name: str, peer: "PeerConnection") -> None:
        address, context = self._addresses[name], self.tls.client if self.tls is not None else None
        await asyncio.get_running_loop().create_connection(
            lambda: peer, address.host, address.port, ssl=context, server_hostname=address.host if context else None
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(RAFT_PING_INTERVAL_MS / 1000)
            for peer in list(self._all):
                peer.watch()

    # -- from connections ---------------------------------------------------------------------------------------------

    def opened(self, peer: "PeerConnection") -> None:
        self._all.add(peer)

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
        self._all.discard(peer)
        if peer.name and self._peers.get(peer.name) is peer:
            del self._peers[peer.name]
            self.errors[peer.name] = why
            self.disconnected(peer.name)


class PeerConnection(asyncio.Protocol):
    """Moves bytes. `expected` is whom we dialled, "" if it dialled us."""

    def __init__(self, links: RaftLinks, expected: str = "") -> None:
        self._links, self._expected = links, expected
        self._reader = FrameReader(CODEC)
        self._transport: asyncio.Transport | None = None
        self._silent_watches = 0
        self._why = ""
        self.name = ""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._links.opened(self)
        self.write(CODEC.pack(self._links.hello()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._links.ended(self, self._why or str(exc or "closed by the peer"))
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._silent_watches = 0
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except FrameError as error:
            log.warning("raft_link_refused", peer=self.name or self._expected, error=str(error))
            self.abort(str(error))

    def _take(self, frame: Frame) -> None:
        message: Message = frame.message
        if isinstance(message, Hello):
            self._introduce(message)
        elif not self.name:
            raise FrameError(f"raft link: {type(message).__name__} before Hello")
        elif not isinstance(message, Ping):
            self._links.received(self.name, frame)

    def _introduce(self, hello: Hello) -> None:
        own = self._links.hello()
        ours, theirs = (own.mesh, own.zone, own.number), (hello.mesh, hello.zone, hello.number)
        if ours != theirs:
            raise FrameError(f"raft link: group {theirs} speaks to group {ours}")
        if hello.node == own.node or self._expected not in ("", hello.node) or self.name not in ("", hello.node):
            raise FrameError(f"raft link: a peer calls itself {hello.node}, {self._expected or 'another'} was expected")
        if self._links.tls is not None and self._transport is not None:
            certified = self._links.tls.identify(self._transport.get_extra_info("ssl_object"))
            if certified != hello.node:
                raise FrameError(f"raft link: {hello.node} has the certificate of {certified}")
        self.name = hello.node
        self._links.introduced(self, hello)

    def watch(self) -> None:
        """Counted in calls, not by the clock: when this process was held up, what waits to be read is no silence."""
        if self._silent_watches * RAFT_PING_INTERVAL_MS >= RAFT_SILENCE_MS_MAX:
            self.abort(f"silent for {RAFT_SILENCE_MS_MAX} ms")
            return
        self._silent_watches += 1
        self.write(CODEC.pack(Ping()))

    def write(self, frame: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(frame)
        if self._transport.get_write_buffer_size() > RAFT_BUFFER_BYTES_MAX:
            self.abort("it does not take what it is sent")

    def abort(self, why: str) -> None:
        if self._transport is not None:
            self._why = why
            self._transport.abort()
