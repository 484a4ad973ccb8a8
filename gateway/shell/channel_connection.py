"""A connection to a peer, another worker or another gateway: it moves the bytes of all channels that are on it.

    socket ─► Channels.receive ─► ... ─► Channels.take_lines, take_messages ─► socket

The main session is the connection's, as that of a client is; channels to zones come and go beside it. What is said goes
out at once, not at the end of the turn as with clients: what a client of ours does because of something that it sees
comes behind the interest that others were told of before.

A peer that is silent is sent everything until it answers, since it may want more by now; a link that is silent for long
is given up, so that a peer that was stopped or cut off is linked anew when it is back.
"""

import asyncio
from typing import TYPE_CHECKING, cast

import structlog

from gateway.core.channels import Channels, Part
from gateway.core.session import Closed, Session
from gateway.shell.connection import Connection
from protocol.limits import GATEWAY_PING_INTERVAL_MS, GATEWAY_SILENCE_MS_MAX, GATEWAY_STALE_MS, READ_BYTES
from protocol.routes import pieces

if TYPE_CHECKING:
    from gateway.shell.server import ClientServer

log = structlog.get_logger()


class ChannelConnection(Connection):
    """One link. `channels` are there from `begin_channels` on."""

    __slots__ = ("_silent_watches", "channels")

    channels: Channels

    def __init__(self, server: "ClientServer") -> None:
        super().__init__(server)
        self._silent_watches = 0

    def open_transport(self, transport: asyncio.BaseTransport) -> None:
        """First of all."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        self.transport.set_write_buffer_limits(high=0)

    def begin_channels(self, name: str, *, border: str = "", near: bool = False, ip: str = "", port: int = 0) -> None:
        """The peer is known; see `Channels`."""
        self.channels = Channels(
            self._plane,
            name,
            self._server.now_ms(),
            border=border,
            near=near,
            ip=ip,
            port=port,
            added=self._added,
            removed=self._removed,
        )
        self.session = self.channels.main

    def _added(self, session: Session) -> None:
        session.measure_unsent = self._unsent_bytes
        self._server.opened(self, session)

    def _removed(self, session: Session) -> None:
        self._server.released(session)

    def buffer_updated(self, nbytes: int) -> None:
        """As any connection, with less between: each call counts where a message comes alone."""
        self._silent_watches = 0
        server = self._server
        has_more = self._receive(server.read_buffer[:nbytes])
        server.flush()
        if has_more or nbytes >= READ_BYTES or self.session.stall_ms:
            self._begin_stall()

    def connection_lost(self, error: Exception | None) -> None:
        self.channels.end()
        super().connection_lost(error)

    # -- in and out ---------------------------------------------------------------------------------------------------

    def _receive(self, data: bytes | memoryview) -> bool:
        return self.channels.receive(data, self._server.now_ms())

    def update(self) -> None:
        channels = self.channels
        if channels.lines or len(channels.sessions) > 1:
            self._say()
        super().update()

    def _say(self) -> None:
        """What is more than messages of the one session, and those behind it."""
        lines, messages = self.channels.take_lines(), self.channels.take_messages()
        if not (lines or messages) or self._linger is not None or self.transport.is_closing():
            return
        self._write_parts(lines, messages)
        self._look_at_unsent(sum(len(data) for _, data in lines + messages))

    def _write_parts(self, lines: list[Part], messages: list[Part]) -> None:
        self.transport.writelines([part for key, data in lines + messages for part in pieces(*key, data)])

    def _look_at_unsent(self, written_bytes: int) -> None:
        in_transport = self.transport.get_write_buffer_size()
        if in_transport or self._is_blocked:
            self._note_unsent(written_bytes, in_transport)
        unsent_bytes = self._unsent_bytes()
        for session in self.channels.sessions.values():
            session.unsent_bytes = unsent_bytes

    def _unsent_bytes(self) -> int:
        """What waits behind the sessions."""
        return self.transport.get_write_buffer_size()

    def watch(self) -> None:
        """Every `GATEWAY_PING_INTERVAL_MS`; `ClientServer.flush` is due.

        Counted in calls, not by the clock: when this process was held up, what waits to be read is no silence.
        """
        silent_ms = self._silent_watches * GATEWAY_PING_INTERVAL_MS
        if silent_ms >= GATEWAY_SILENCE_MS_MAX:
            detail = f"silent for {GATEWAY_SILENCE_MS_MAX} ms"
            self._plane.close(self.session, Closed.STALE, flushes=False, detail=detail)
            return
        self._silent_watches += 1
        for session in self.channels.sessions.values():
            if silent_ms >= GATEWAY_STALE_MS:
                self._plane.peers.doubt(session)
            self._plane.ping_peer(session, self._server.now_ms())

    def closed_by(self, error: Exception | None) -> dict[str, str]:
        """Why the link is over, for the log."""
        reason, detail = self.session.closing or Closed.CLIENT, self.session.closing_detail
        return {"reason": str(reason), "detail": detail or (str(error) if error is not None else "")}
