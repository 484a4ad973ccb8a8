"""One client socket: it moves bytes between the loop and the plane, and nothing else.

    socket ─► shared read buffer ─► Plane.receive ─► ... ─► Session.take ─► socket

What was read is acted on before the loop goes on, so all connections of a server share one read buffer
(`ClientServer.read_buffer`), and an idle connection owns none.

A connection is not read while it is paused, while its password is verified, while it stalls for a subscriber that falls
behind, or while the server stops. After a read that filled the buffer it waits for its next turn: libuv reads on, up to
32 times, for as long as the client fills the buffer, and nobody else would be served meanwhile. The same holds when the
plane stopped for the others' sake; then the connection is continued, with nothing read, in the next turn of the loop.

A connection that is given up is closed for writing first, and what the client still sends is read and dropped for a
moment: a socket that is closed with unread input is reset, and then the client never sees our last words.

The write deadline: a socket that takes not one byte for that long, while something waits, is given up; while history is
part of what waits the deadline rests, since a reader of the log may be as slow as it likes.
"""

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, cast

import structlog

from gateway.core.session import Closed, Session
from protocol.limits import CLOSE_LINGER_MS, READ_BYTES

if TYPE_CHECKING:
    from gateway.shell.server import ClientServer

log = structlog.get_logger()


class Connection(asyncio.BufferedProtocol):
    """One client socket. Its session is there from `connection_made` on.

    `_taken_bytes`, `_sent_bytes` and `_history_bytes` are positions in its output, counted from the moment on that the
    socket last refused some: how much the transport has taken, how much of that the socket, and up to where history
    goes.
    """

    __slots__ = (
        "_history_bytes",
        "_is_blocked",
        "_linger",
        "_plane",
        "_progress_ms",
        "_reads",
        "_sent_bytes",
        "_server",
        "_stall",
        "_taken_bytes",
        "session",
        "transport",
    )

    transport: asyncio.Transport
    session: Session

    def __init__(self, server: "ClientServer") -> None:
        self._server = server
        self._plane = server.plane
        self._reads = True
        self._stall: asyncio.Handle | None = None
        self._linger: asyncio.TimerHandle | None = None  # it is finished with, but for the client's reading of it
        self._is_blocked = False
        self._taken_bytes = self._sent_bytes = self._history_bytes = 0
        self._progress_ms = 0

    # -- from the loop ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        peer = self.transport.get_extra_info("peername") or ("", 0)
        self.session = self._plane.connect(str(peer[0]), int(peer[1]), self._server.now_ms())
        self.session.measure_unsent = self.transport.get_write_buffer_size
        unpace(self.transport)
        self._server.opened(self)
        log.debug("connection_opened", connection=self.session.id, ip=peer[0], port=peer[1])
        if not self._server.is_reading:
            self._plane.close(self.session, Closed.SHUTDOWN)
        self._server.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        server, session = self._server, self.session
        has_more = self._receive(server.read_buffer[:nbytes])
        server.flush()
        if has_more or nbytes >= READ_BYTES or session.stall_ms:
            self._begin_stall()

    def connection_lost(self, error: Exception | None) -> None:
        for timer in (self._stall, self._linger):
            if timer is not None:
                timer.cancel()
        self._log_closed(error)
        self.session.measure_unsent = None
        self._server.closed(self)

    # -- from the server ----------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Do what the session asks for: send, read or not, close."""
        session = self.session
        if session.queued_bytes:
            self._send(session.take())
        if session.closing is None:
            self.look_at_reading()
        elif not session.flushes:
            self.transport.abort()
        elif self._linger is None and not self.transport.is_closing():
            self._finish()

    def look_at_reading(self) -> None:
        """Read, unless something speaks against it; go on with what came before the pause."""
        session = self.session
        reads = not session.paused and session.verifying is None and self._stall is None
        reads = reads and (self._server.is_reading or bool(session.peer))
        if reads == self._reads or self.transport.is_closing():
            return
        if not reads:
            self._reads = False
            self.transport.pause_reading()
            return
        has_more = self._receive(b"")
        if has_more or session.stall_ms:
            self._begin_stall()
        elif not session.paused and session.verifying is None:
            self._reads = True
            self.transport.resume_reading()

    def check_progress(self, now_ms: int, deadline_ms: int) -> bool:
        """Whether the socket is still blocked; it is given up when it has taken nothing for `deadline_ms`."""
        unsent_bytes = self.session.unsent_bytes = self.transport.get_write_buffer_size()
        self._is_blocked = unsent_bytes > 0
        sent_bytes = self._taken_bytes - unsent_bytes
        if sent_bytes > self._sent_bytes or sent_bytes < self._history_bytes:
            self._sent_bytes, self._progress_ms = sent_bytes, now_ms
        if self._is_blocked and now_ms - self._progress_ms > deadline_ms:
            detail = f"{unsent_bytes} B were not taken in time"
            self._plane.close(self.session, Closed.SLOW_DEADLINE, flushes=False, detail=detail)
            self.transport.abort()
        return self._is_blocked

    def sent_history(self) -> None:
        """What waits now ends with history: the write deadline rests until the socket has taken that."""
        self._history_bytes = self._taken_bytes

    # -- parts --------------------------------------------------------------------------------------------------------

    def _receive(self, data: bytes | memoryview) -> bool:
        """As `Plane.receive`."""
        return self._plane.receive(self.session, data, self._server.now_ms())

    def _send(self, out: bytes) -> None:
        transport = self.transport
        if self._linger is not None or transport.is_closing():
            return
        self._write(out)
        unsent_bytes = transport.get_write_buffer_size()
        if unsent_bytes or self._is_blocked:
            self._note_unsent(len(out), unsent_bytes)

    def _write(self, out: bytes) -> None:
        self.transport.write(out)

    def _note_unsent(self, written_bytes: int, unsent_bytes: int) -> None:
        self.session.unsent_bytes = unsent_bytes
        if self._is_blocked:
            self._taken_bytes += written_bytes
            return
        self._is_blocked = True
        self._taken_bytes, self._sent_bytes, self._history_bytes = unsent_bytes, 0, 0
        self._progress_ms = self._server.now_ms()
        self._server.blocked(self)

    def _finish(self) -> None:
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self._say_goodbye()
        self._linger = asyncio.get_running_loop().call_later(CLOSE_LINGER_MS / 1_000, self.transport.close)
        self.transport.resume_reading()
        try:
            self.transport.write_eof()
        except OSError:
            self.transport.close()  # the client was faster

    def _say_goodbye(self) -> None:
        """What the encryption has to say at the end."""

    def _begin_stall(self) -> None:
        """Reads no more until the next turn of the loop, or until a subscriber was given time."""
        session = self.session
        stall_ms, session.stall_ms = session.stall_ms, 0
        if self._stall is not None or session.closing is not None:
            return
        loop = asyncio.get_running_loop()
        if stall_ms:
            self._stall = loop.call_later(stall_ms / 1_000, self._end_stall)
        else:
            self._stall = loop.call_soon(self._end_stall)
        if self._reads:
            self._reads = False
            self.transport.pause_reading()

    def _end_stall(self) -> None:
        self._stall = None
        self.look_at_reading()
        self._server.flush()

    def _log_closed(self, error: Exception | None) -> None:
        session = self.session
        reason = session.closing or Closed.CLIENT
        facts = {"connection": session.id, "ip": session.client_ip, "name": session.name, "reason": str(reason)}
        if session.closing_detail or error is not None:
            facts["detail"] = session.closing_detail or str(error)
        if reason in (Closed.SLOW_PENDING, Closed.SLOW_DEADLINE):
            log.warning("slow_consumer", **facts)
        elif reason in (Closed.AUTHENTICATION_FAILURE, Closed.AUTHENTICATION_TIMEOUT):
            log.warning("authentication_failed", user=session.options.user, **facts)
        elif reason is Closed.TLS_HANDSHAKE:
            log.info("tls_handshake_failed", **facts)
        else:
            log.debug("connection_closed", **facts)


def unpace(transport: asyncio.Transport) -> None:
    """Takes BBR from a connection that does not leave this machine.

    BBR spreads what is sent over the round trip that it measures, by timers; within one machine there is no queue to be
    kept short by that, and it halves the throughput. Where another algorithm is in use, or none can be set, nothing
    changes.
    """
    local, remote = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    if not isinstance(local, tuple) or not isinstance(remote, tuple) or local[0] != remote[0]:
        return
    client = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):  # systems without TCP_CONGESTION have no BBR either
        if client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).startswith(b"bbr"):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
