"""The links that sinks dial to sinks of other zones: to mirror their logs, and to mend their own from them."""

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from protocol import config, link
from protocol.errors import FrameError
from protocol.limits import LINK_DIAL_MS_MAX, MIRROR_LOOK_MS, MIRROR_SILENCE_MS_MAX
from protocol.link import MIRROR_ROLE, Message
from sinkd.shell.pacing import unpace

if TYPE_CHECKING:
    from sinkd.shell.sink import Sink


async def dial(own: "Sink", sink: config.Sink, connection: "ZoneLink") -> None:
    """Says Hello. OSError, FrameError: it cannot be reached, or is another."""
    tls, loop = own.tls, asyncio.get_running_loop()
    context = tls.client if tls is not None else None
    transport, _ = await loop.create_connection(lambda: connection, sink.link.host, sink.link.port, ssl=context)
    if tls is not None:
        peer, expected = tls.identify_node(transport.get_extra_info("ssl_object")), (sink.zone, "sink", sink.name)
        if peer != expected:
            transport.abort()
            raise FrameError(f"the peer is {'/'.join(peer)}, expected {'/'.join(expected)}")
    connection.send(link.Hello(own.mesh, own.zone.name, own.node.name, role=MIRROR_ROLE, mirrors=True))


class ZoneLink(asyncio.BufferedProtocol):
    """Moves bytes; `lost` gets the reason when it is over."""

    def __init__(
        self,
        sink: str,
        take: Callable[["ZoneLink", link.FrameView], None],
        bad: Callable[["ZoneLink", FrameError], None],
    ) -> None:
        """`take` is given every frame, `bad` what ends the link."""
        self.sink, self._take, self._bad = sink, take, bad
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = link.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._silent_looks = 0
        self.is_welcome = self.leads = False
        self.leader = ""  # in its opinion

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport by name, only by what they can.
        self._transport = cast(asyncio.Transport, transport)
        unpace(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.end(f"the link was lost: {explained(exc) if exc else 'closed by the sink'}")

    @property
    def host(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else ""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._silent_looks = 0
        try:
            for frame in self._reader.took(nbytes):
                if self.lost.done():
                    return
                self._take(self, frame)
        except FrameError as error:
            self._bad(self, error)

    def watch(self) -> None:
        """Counted in calls, not by the clock: when this process was held up, what waits to be read is no silence."""
        if self._silent_looks * MIRROR_LOOK_MS >= MIRROR_SILENCE_MS_MAX:
            self.end(f"silent for {MIRROR_SILENCE_MS_MAX} ms")
        self._silent_looks += 1
        self.send(link.Ping())

    def send(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(link.pack(message))

    def end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def explained(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no connection within {LINK_DIAL_MS_MAX} ms"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
