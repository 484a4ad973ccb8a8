"""The client port: listens, keeps the connections of `gateway.shell.connection`, and runs what they share.

Whoever queues output outside of a read (answers of the log, replay) calls `flush`; it sends what piled up, with one
write per receiver however many messages of a batch were for it.
"""

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from gateway.core.identity import UserEntry, Verification
from gateway.core.plane import Plane
from gateway.core.session import Closed, Session
from gateway.shell.connection import Connection
from gateway.shell.tls import ClientTls, TlsConnection
from protocol.limits import (
    CLIENT_BACKLOG,
    CLIENT_TICK_MS,
    PASSWORD_BYTES_MAX,
    PASSWORD_THREADS,
    PLAIN_BYTES,
    READ_BYTES,
    READ_SLACK_BYTES,
    SERVER_STOP_GRACE_MS,
    WRITE_DEADLINE_MS,
)

_EVERYWHERE: Final = {"0.0.0.0": "::", "::": "0.0.0.0"}  # either means both, as in nats-server
_NO_SUCH_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # a machine without IPv6, or without IPv4
log = structlog.get_logger()


class ClientServer:
    """Listens on `host`:`port` (0: any free one) for `plane`; `now_ms` is the clock of all its timers.

    The hosts `0.0.0.0` and `::` both stand for all addresses of the machine, those of the other family too.

    With `tls` the plane must have been made with the options of INFO that fit (`tls_required`, ...). With `shares_port`
    other processes of this user may listen there too: each new connection is one's of them.
    """

    def __init__(
        self,
        plane: Plane,
        *,
        host: str,
        port: int,
        now_ms: Callable[[], int],
        write_deadline_ms: int = WRITE_DEADLINE_MS,
        tls: ClientTls | None = None,
        shares_port: bool = False,
    ) -> None:
        self.plane = plane
        self.now_ms = now_ms
        self.is_reading = True
        self.read_buffer = memoryview(bytearray(READ_BYTES + READ_SLACK_BYTES))[:READ_BYTES]  # of all connections
        self.plain_buffer = memoryview(bytearray(PLAIN_BYTES + READ_SLACK_BYTES))[
            :PLAIN_BYTES
        ]  # what TLS has decrypted
        self._tls = tls
        self._host, self._port, self._shares_port = host, port, shares_port
        self._write_deadline_ms = write_deadline_ms
        self._listeners: list[asyncio.Server] = []
        self._connections: dict[int, Connection] = {}
        self._blocked: set[Connection] = set()
        self._handshakes: dict[TlsConnection, int] = {}  # until when
        self._all_gone: asyncio.Event | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._doing_more: asyncio.Handle | None = None
        self._verifying: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(PASSWORD_THREADS, "password")

    async def start(self) -> tuple[str, int]:
        """Accept clients; the address that is listened on. OSError when it cannot be had."""
        host, port = await self._listen(self._host, self._port)
        if other := _EVERYWHERE.get(self._host):
            try:
                await self._listen(other, port)
            except OSError as error:
                if error.errno not in _NO_SUCH_FAMILY:
                    self.stop_accepting()
                    raise
        self.plane.listening(port)
        self._ticking = asyncio.get_running_loop().create_task(self._tick())
        return host, port

    async def _listen(self, host: str, port: int) -> tuple[str, int]:
        shared = self._shares_port or None
        listener = await asyncio.get_running_loop().create_server(
            self._connection, host, port, backlog=CLIENT_BACKLOG, reuse_port=shared
        )
        self._listeners.append(listener)
        host, port = listener.sockets[0].getsockname()[:2]
        return host, port

    def _connection(self) -> Connection:
        return Connection(self) if self._tls is None else TlsConnection(self, self._tls)

    def go_by(self, tls: ClientTls | None, write_deadline_ms: int) -> None:
        """For connections that come from now on; the deadline for all. The plane's options have to fit."""
        self._tls, self._write_deadline_ms = tls, write_deadline_ms

    def stop_accepting(self) -> None:
        """Take no more connections; those that there are go on."""
        for listener in self._listeners:
            listener.close()

    def clients(self) -> list[Session]:
        """All that are connected, peers aside."""
        return [connection.session for connection in self._connections.values() if not connection.session.peer]

    async def wait_until_empty(self, wait_ms: int) -> bool:
        """Whether the last client has gone within `wait_ms`."""
        deadline_ms = self.now_ms() + wait_ms
        while self.clients() and self.now_ms() < deadline_ms:  # noqa: ASYNC110  not the last connection: peers stay
            await asyncio.sleep(min(CLIENT_TICK_MS, wait_ms) / 1_000)
        return not self.clients()

    def stop_reading(self) -> None:
        """Take no more connections and no more bytes; what is under way still goes out."""
        self.is_reading = False
        self.stop_accepting()
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
        await self._wait_until_gone(grace_ms)
        for listener in self._listeners:
            await listener.wait_closed()

    async def _wait_until_gone(self, grace_ms: int) -> None:
        self._all_gone = asyncio.Event()
        if not self._connections:
            return
        try:
            await asyncio.wait_for(self._all_gone.wait(), grace_ms / 1_000)
        except TimeoutError:
            log.warning("connections_aborted", connections=len(self._connections))
            for connection in list(self._connections.values()):
                connection.transport.abort()
            await self._all_gone.wait()

    def flush(self) -> None:
        """Send what sessions have in `out`; close, pause and continue those that are to be."""
        connections, forwarder, goes_on = self._connections, self.plane.forwarder, True
        while goes_on:
            for session in self.plane.take_dirty():
                connection = connections.get(session.id)
                if connection is not None:
                    connection.update()
            goes_on = bool(forwarder.dirty) or forwarder.interest_waits  # because of one of those
        for session in self.plane.take_verifications():
            self._verify(session)
        if self.plane.has_more and self._doing_more is None:
            self._doing_more = asyncio.get_running_loop().call_soon(self._do_more)

    def _do_more(self) -> None:
        self._doing_more = None
        self.plane.do_more()
        self.flush()

    def flush_history(self, session: Session) -> None:
        """The same, after history was queued for `session`: it is not cut for being slow to take that."""
        self.flush()
        connection = self._connections.get(session.id)
        if connection is not None:
            connection.sent_history()

    # -- called by connections ----------------------------------------------------------------------------------------

    def opened(self, connection: Connection, session: Session | None = None) -> None:
        """`session`: another one that it has beside its own."""
        self._connections[(session or connection.session).id] = connection

    def released(self, session: Session) -> None:
        """It has that one no more."""
        self._connections.pop(session.id, None)

    def closed(self, connection: Connection) -> None:
        self.released(connection.session)
        self._blocked.discard(connection)
        self.plane.disconnect(connection.session)
        self.flush()
        if self._all_gone is not None and not self._connections:
            self._all_gone.set()

    def blocked(self, connection: Connection) -> None:
        """Not all of its output was taken by the socket."""
        self._blocked.add(connection)

    def handshake_begins(self, connection: TlsConnection, timeout_ms: int) -> None:
        self._handshakes[connection] = self.now_ms() + timeout_ms

    def handshake_over(self, connection: TlsConnection) -> None:
        self._handshakes.pop(connection, None)

    # -- timers and threads -------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(CLIENT_TICK_MS / 1_000)
            now_ms = self.now_ms()
            self.plane.tick(now_ms)
            for greeted, until_ms in list(self._handshakes.items()):
                if now_ms >= until_ms:
                    greeted.handshake_timed_out()
            for connection in list(self._blocked):
                if not connection.check_progress(now_ms, self._write_deadline_ms):
                    self._blocked.discard(connection)
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


def check_password(verification: Verification) -> UserEntry | None:
    """Whose bcrypt hash fits. Takes a good part of a second per hash: never in the loop."""
    import bcrypt

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
