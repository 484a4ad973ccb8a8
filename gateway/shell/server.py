"""The client port: sockets on one side, the plane on the other.

A connection moves bytes and nothing else: what came goes into `Plane.receive`, then `flush` sends what piled up, with
one write per receiver however many messages of the batch were for it. Whoever queues output outside of a read (answers
of the log, replay) calls `flush` too. A connection is not read while it is paused, while its password is verified,
while it stalls for a subscriber that falls behind, or while the server stops. After a big read it waits for its next
turn: the loop would otherwise read on for as long as the client sends fast enough, and nobody else would be served.

A connection that is given up is closed for writing first, and what the client still sends is read and dropped for a
moment: a socket that is closed with unread input is reset, and then the client never sees our last words.

The write deadline: a socket that takes not one byte for that long, while something waits, is given up.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import bcrypt
import structlog

from gateway.core.identity import UserEntry, Verification
from gateway.core.plane import Plane
from gateway.core.session import Closed, Session
from protocol.limits import (
    CLIENT_BACKLOG,
    CLIENT_TICK_MS,
    CLOSE_LINGER_MS,
    PASSWORD_BYTES_MAX,
    PASSWORD_THREADS,
    READ_BYTES,
    SERVER_STOP_GRACE_MS,
    WRITE_DEADLINE_MS,
)

log = structlog.get_logger()


class ClientServer:
    """Listens on `host`:`port` (0: any free one) for `plane`; `now_ms` is the clock of all its timers."""

    def __init__(
        self,
        plane: Plane,
        *,
        host: str,
        port: int,
        now_ms: Callable[[], int],
        write_deadline_ms: int = WRITE_DEADLINE_MS,
    ) -> None:
        self.plane = plane
        self.now_ms = now_ms
        self.is_reading = True
        self._host, self._port = host, port
        self._write_deadline_ms = write_deadline_ms
        self._server: asyncio.Server | None = None
        self._connections: dict[int, _Connection] = {}
        self._blocked: set[_Connection] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._verifying: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(PASSWORD_THREADS, "password")

    async def start(self) -> tuple[str, int]:
        """Accept clients; the address that is listened on. OSError when it cannot be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), self._host, self._port, backlog=CLIENT_BACKLOG
        )
        host, port = self._server.sockets[0].getsockname()[:2]
        self.plane.listening(port)
        self._ticking = loop.create_task(self._tick())
        return host, port

    def stop_reading(self) -> None:
        """Take no more connections and no more bytes; what is under way still goes out."""
        self.is_reading = False
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections.values()):
            connection.look_at_reading()

    async def stop(self, grace_ms: int = SERVER_STOP_GRACE_MS) -> None:
        """Send what waits, for at most `grace_ms`, and close every connection."""
        self.stop_reading()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        for task in self._verifying:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for connection in list(self._connections.values()):
            self.plane.close(connection.session, Closed.SHUTDOWN)
        self.flush()
        gone = [connection.gone.wait() for connection in self._connections.values()]
        try:
            await asyncio.wait_for(asyncio.gather(*gone), grace_ms / 1_000)
        except TimeoutError:
            log.warning("connections_aborted", connections=len(self._connections))
            for connection in list(self._connections.values()):
                connection.transport.abort()
            await asyncio.gather(*[connection.gone.wait() for connection in self._connections.values()])
        if self._server is not None:
            await self._server.wait_closed()

    def flush(self) -> None:
        """Send what sessions have in `out`; close, pause and continue those that are to be."""
        while dirty := self.plane.take_dirty():
            for session in dirty:
                connection = self._connections.get(session.id)
                if connection is not None:
                    connection.update()
        for session in self.plane.take_verifications():
            self._verify(session)

    # -- called by connections ----------------------------------------------------------------------------------------

    def opened(self, connection: "_Connection") -> None:
        self._connections[connection.session.id] = connection

    def closed(self, connection: "_Connection") -> None:
        del self._connections[connection.session.id]
        self._blocked.discard(connection)
        self.plane.disconnect(connection.session)
        self.flush()

    def blocked(self, connection: "_Connection") -> None:
        """Not all of its output was taken by the socket."""
        self._blocked.add(connection)

    # -- timers and threads -------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(CLIENT_TICK_MS / 1_000)
            now_ms = self.now_ms()
            self.plane.tick(now_ms)
            for connection in list(self._blocked):
                if connection.unsent_bytes() == 0:
                    self._blocked.discard(connection)
                elif connection.made_no_progress_ms(now_ms) > self._write_deadline_ms:
                    connection.give_up()
            self.flush()

    def _verify(self, session: Session) -> None:
        if session.verifying is not None:
            task = asyncio.get_running_loop().create_task(self._run_verification(session, session.verifying))
            self._verifying.add(task)
            task.add_done_callback(self._verifying.discard)

    async def _run_verification(self, session: Session, verification: Verification) -> None:
        loop = asyncio.get_running_loop()
        entry = await loop.run_in_executor(self._threads, check_password, verification)
        self.plane.verified(session, entry, self.now_ms())
        self.flush()


class _Connection(asyncio.Protocol):
    """One client socket. Its session is there from `connection_made` on."""

    transport: asyncio.Transport
    session: Session

    def __init__(self, server: ClientServer) -> None:
        self._server = server
        self._plane = server.plane
        self._reads = True
        self._stall: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None  # it is finished with, but for the client's reading of it
        self._taken_bytes = 0  # by the transport, since the start
        self._sent_bytes = 0  # of these, by the socket, when it was last looked at
        self._progress_ms = 0
        self.gone = asyncio.Event()

    # -- from the loop ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        peer = self.transport.get_extra_info("peername") or ("", 0)
        self.session = self._plane.connect(str(peer[0]), int(peer[1]), self._server.now_ms())
        self.session.measure_unsent = self.unsent_bytes
        self._server.opened(self)
        log.debug("connection_opened", connection=self.session.id, ip=peer[0], port=peer[1])
        if not self._server.is_reading:
            self._plane.close(self.session, Closed.SHUTDOWN)
        self._server.flush()

    def data_received(self, data: bytes) -> None:
        has_more = self._plane.receive(self.session, data, self._server.now_ms())
        self._server.flush()
        if has_more or self.session.stall_ms or len(data) >= READ_BYTES:
            self._begin_stall()

    def connection_lost(self, error: Exception | None) -> None:
        for timer in (self._stall, self._linger):
            if timer is not None:
                timer.cancel()
        self._log_closed(error)
        self._server.closed(self)
        self.gone.set()

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
        reads = (
            self._server.is_reading
            and not session.paused
            and session.verifying is None
            and self._stall is None
            and not self.transport.is_closing()
        )
        if reads == self._reads:
            return
        self._reads = reads
        if not reads:
            self.transport.pause_reading()
            return
        self.transport.resume_reading()
        if self._plane.receive(session, b"", self._server.now_ms()):
            self._begin_stall()

    def unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size()

    def made_no_progress_ms(self, now_ms: int) -> int:
        """How long the socket has taken nothing."""
        sent_bytes = self._taken_bytes - self.unsent_bytes()
        if sent_bytes > self._sent_bytes:
            self._sent_bytes, self._progress_ms = sent_bytes, now_ms
        return now_ms - self._progress_ms

    def give_up(self) -> None:
        """The write deadline is over."""
        detail = f"{self.unsent_bytes()} B were not taken in time"
        self._plane.close(self.session, Closed.SLOW_DEADLINE, flushes=False, detail=detail)
        self.transport.abort()

    # -- parts --------------------------------------------------------------------------------------------------------

    def _send(self, out: bytes) -> None:
        if self.transport.is_closing() or self._linger is not None:
            return
        if self.session.unsent_bytes == 0:
            self._sent_bytes, self._progress_ms = self._taken_bytes, self._server.now_ms()
        self.transport.write(out)
        self._taken_bytes += len(out)
        self.session.unsent_bytes = self.unsent_bytes()
        if self.session.unsent_bytes:
            self._server.blocked(self)

    def _finish(self) -> None:
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self._linger = asyncio.get_running_loop().call_later(CLOSE_LINGER_MS / 1_000, self.transport.close)
        self.transport.resume_reading()
        try:
            self.transport.write_eof()
        except OSError:
            self.transport.close()  # the client was faster

    def _begin_stall(self) -> None:
        stall_ms, self.session.stall_ms = self.session.stall_ms, 0
        if self._stall is None and self.session.closing is None:
            self._stall = asyncio.get_running_loop().call_later(stall_ms / 1_000, self._end_stall)
            self.look_at_reading()

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
        else:
            log.debug("connection_closed", **facts)


def check_password(verification: Verification) -> UserEntry | None:
    """Whose bcrypt hash fits. Takes a good part of a second per hash: never in the loop."""
    secret = verification.secret.encode("utf-8", "surrogatepass")
    if len(secret) > PASSWORD_BYTES_MAX or b"\0" in secret:
        return None
    for hashed, entry in verification.candidates:
        try:
            if bcrypt.checkpw(secret, hashed.encode()):
                return entry
        except ValueError:
            log.error("password_hash_unusable", user=entry.user)
    return None
