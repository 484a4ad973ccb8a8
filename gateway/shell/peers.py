"""The links between the workers of one gateway: N processes on one client port that act as one server.

    worker 0 ◄── worker 1        Each listens on a socket in a folder that is theirs alone, and calls those with lower
        ▲ ▲          ▲           numbers; a caller's socket has a name too, which says who calls. Links that are lost
        │ └──────────┤           are made again, by the one that made them before.
        └───────── worker 2

What goes over them is the plane's business, and the same as between gateways (`gateway.core.channels`): a worker that
links the zone to another leads the others there. Nobody else reaches the sockets, so there is no HELLO.

A worker that begins opens its client port only when it knows what the others' clients want, and they what its own will:
at that moment it has none. It waits for a bounded time, since a worker that cannot begin must not hold up the rest.

A gateway that stops reads no more from clients but from peers until they have said all that they had: a worker that
has drained closes its links for writing, and leaves when the others have done so too.
"""

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.core.session import Closed
from gateway.core.zones import Zones
from gateway.shell.channel_connection import ChannelConnection
from gateway.shell.server import ClientServer
from protocol.limits import (
    GATEWAY_PING_INTERVAL_MS,
    PEER_BYE_MS_MAX,
    PEER_RETRY_MS_MAX,
    PEER_RETRY_MS_MIN,
    PEER_WAIT_MS_MAX,
)
from protocol.routes import peer_name

_POLL_S: Final = 0.01
_CALLER: Final = re.compile(r"/peer-(\d{1,3})-to-\d{1,3}\.sock")
log = structlog.get_logger()


@dataclass(frozen=True)
class Worker:
    """Which of the `count` workers of a gateway a process is, by `number` from 0; all of them share the rest.

    `client_port` 0: the configured one. `folder` is where the sockets between them are, and nobody else can reach them.
    """

    number: int = 0
    count: int = 1
    server_id: str = ""
    client_port: int = 0
    folder: str = ""

    def listens_at(self, number: int) -> str:
        """The socket on which the worker `number` waits for others."""
        return f"{self.folder}/peer-{number}.sock"

    def calls_from(self, called: int) -> str:
        """The socket from which this worker calls the worker `called`."""
        return f"{self.folder}/peer-{self.number}-to-{called}.sock"


ALONE: Final = Worker()


class PeerLinks:
    """The links of one worker. `jitter()` is a random number from 0 to 1; `zones` is told of them, if there are any."""

    def __init__(
        self, server: ClientServer, worker: Worker, jitter: Callable[[], float], zones: Zones | None = None
    ) -> None:
        self._server, self._worker, self._jitter, self._zones = server, worker, jitter, zones
        self._listener: asyncio.Server | None = None
        self._calling: list[asyncio.Task[None]] = []
        self._links: set[_PeerConnection] = set()

    @property
    def missing(self) -> list[int]:
        """The workers to which there is no link."""
        there = {link.number for link in self._links}
        return [number for number in range(self._worker.count) if number != self._worker.number and number not in there]

    async def start(self) -> None:
        """Returns when all others are linked and know what they have to, or after `PEER_WAIT_MS_MAX`."""
        loop = asyncio.get_running_loop()
        path = self._worker.listens_at(self._worker.number)
        _unlink(path)  # of a worker of this number that was killed
        self._listener = await loop.create_unix_server(lambda: _PeerConnection(self, self._server, None), path)
        self._calling = [loop.create_task(self._keep(number)) for number in range(self._worker.number)]
        self._calling.append(loop.create_task(self._watch()))
        deadline_s = loop.time() + PEER_WAIT_MS_MAX / 1_000
        while self._server.plane.peers.agreed(near=True) < self._worker.count - 1:
            if loop.time() >= deadline_s:
                log.warning("peers_missing", workers=self.missing, waited_ms=PEER_WAIT_MS_MAX)
                return
            await asyncio.sleep(_POLL_S)

    async def finish(self) -> None:
        """No more is said to the others; returns when they have nothing more to say, or after `PEER_BYE_MS_MAX`."""
        self._stop_calling()
        for link in list(self._links):
            link.say_goodbye()
        heard = asyncio.gather(*(link.heard_all.wait() for link in self._links))
        try:
            await asyncio.wait_for(heard, PEER_BYE_MS_MAX / 1_000)
        except TimeoutError:
            log.warning("peers_silent", waited_ms=PEER_BYE_MS_MAX)

    async def stop(self) -> None:
        """Takes no more links; those that there are, are closed by the server, with its connections."""
        self._stop_calling()
        await asyncio.gather(*self._calling, return_exceptions=True)

    def _stop_calling(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in self._calling:
            task.cancel()

    async def _keep(self, number: int) -> None:
        """Keeps the link to a worker with a lower number."""
        pause_ms = PEER_RETRY_MS_MIN
        while True:
            try:
                connection = await self._call(number)
            except OSError:  # it has not begun yet, or not again
                pause_ms = min(pause_ms * 2, PEER_RETRY_MS_MAX)
            else:
                await connection.lost.wait()
                pause_ms = PEER_RETRY_MS_MIN
            await asyncio.sleep(pause_ms * (0.5 + self._jitter() / 2) / 1_000)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(GATEWAY_PING_INTERVAL_MS / 1_000)
            for link in list(self._links):
                link.watch()
            self._server.flush()

    async def _call(self, number: int) -> "_PeerConnection":
        """OSError: it does not listen."""
        loop = asyncio.get_running_loop()
        own = self._worker.calls_from(number)
        with contextlib.ExitStack() as opened:
            caller = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            caller.setblocking(False)
            _unlink(own)
            caller.bind(own)
            await loop.sock_connect(caller, self._worker.listens_at(number))
            _, connection = await loop.create_unix_connection(
                lambda: _PeerConnection(self, self._server, number), sock=caller
            )
            opened.pop_all()
        return connection

    # -- called by connections ----------------------------------------------------------------------------------------

    def opened(self, link: "_PeerConnection") -> None:
        self._links.add(link)
        if self._zones is not None:
            self._zones.linked(link.channels, self._server.now_ms())
        log.info("peer_link_up", number=link.number)

    def closed(self, link: "_PeerConnection") -> None:
        self._links.discard(link)
        if self._zones is not None:
            self._zones.unlinked(link.channels)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class _PeerConnection(ChannelConnection):
    """One link. `number` is None until the caller's socket has told it."""

    __slots__ = ("_has_said_all", "_links", "heard_all", "lost", "number")

    def __init__(self, links: PeerLinks, server: ClientServer, number: int | None) -> None:
        super().__init__(server)
        self._links = links
        self.number = number
        self._has_said_all = False
        self.heard_all, self.lost = asyncio.Event(), asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.open_transport(transport)
        if self.number is None:
            found = _CALLER.search(str(transport.get_extra_info("peername")))
            self.number = int(found[1]) if found is not None else -1
        self.begin_channels(peer_name(self._plane.options.server_name, self.number), near=True)
        if self.number < 0 or not self._server.is_reading:
            self._plane.close(self.session, Closed.SHUTDOWN, flushes=False)
        else:
            self._links.opened(self)
        self._server.flush()

    def eof_received(self) -> bool:
        """Whether the link stays open: while this worker stops, until it has said all that it had, too."""
        self.heard_all.set()
        return not self._server.is_reading

    def connection_lost(self, error: Exception | None) -> None:
        self._links.closed(self)
        super().connection_lost(error)
        self.heard_all.set()
        self.lost.set()

    def say_goodbye(self) -> None:
        """What waits is still sent; what comes is still read."""
        if not self.transport.is_closing():
            self.update()
            self._has_said_all = True
            with contextlib.suppress(OSError):  # the other was faster
                self.transport.write_eof()

    def update(self) -> None:
        if not self._has_said_all:
            super().update()
            return
        self.channels.take_lines()
        self.channels.take_messages()
        if self.session.closing is not None:
            self.transport.close()

    def _log_closed(self, error: Exception | None) -> None:
        log.info("peer_link_down", number=self.number, **self.closed_by(error))
