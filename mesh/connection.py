"""The connection to a gateway: nats-py's client, told to keep what its own parser drops.

nats-py shows a header block as a dict: of several values under one name the last is left, and bytes that are not UTF-8
are replaced. `Connection` keeps the block itself beside that dict, and subjects survive byte for byte. It overrides two
methods that nats-py does not document; `tests/test_connection.py` notices when they change.

Connecting fails at once and with one sentence; nats-py alone would try for two minutes.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nkeys import NkeysError

from mesh.settings import ClientSettings
from protocol import subjects
from protocol.errors import MeshError
from protocol.limits import CLIENT_ABANDON_MS

_SCHEMES = ("nats", "tls", "ws", "wss")
PERMISSIONS_VIOLATION = "permissions violation"  # as nats-py spells what the server says


class ConnectError(MeshError):
    """There is no connection: nobody listens, or we are not let in. Trying again is the caller's choice."""


class Headers(dict[str, str]):
    """nats-py's view of a header block, with the block itself beside it."""

    block: bytes = b""


class HeaderPairs(dict[str, str]):
    """Headers to publish in which a name may come several times."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = list(pairs)
        super().__init__(self._pairs)

    def items(self) -> Any:  # nats-py writes a header line for each of these, and looks at nothing else
        return self._pairs


class Connection(Client):
    """A nats-py client whose messages have `Headers`, and subjects as `protocol.subjects.decode` gives them."""

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, Any] | None = None
    ) -> None:
        """nats-py's. MaxPayloadError for headers and payload together: a server closes the connection for that."""
        if headers and len(payload) + _block_bytes(headers) > self.max_payload:
            raise errors.MaxPayloadError
        await super().publish(subject, payload, reply, headers)

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        parsed = await super()._process_headers(headers)
        if not headers:
            return parsed
        kept = Headers(parsed or {})
        kept.block = bytes(headers)
        return kept

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return self.msg_class(
            subject=subjects.decode(subject),
            reply=subjects.decode(reply),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )


def _block_bytes(headers: dict[str, Any]) -> int:
    """The size of the header block that nats-py makes of `headers`, or a little more."""
    return len("NATS/1.0\r\n\r\n") + sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers.items())


def too_large(payload: bytes, headers: dict[str, Any] | None, limit: int) -> str:
    """What to tell a person whose event met a MaxPayloadError."""
    with_headers = f" and {_block_bytes(headers)} of headers" if headers and len(payload) <= limit else ""
    return f"{len(payload)} bytes{with_headers} are more than the server takes (max_payload: {limit})"


async def connect(
    settings: ClientSettings, *, reconnects: bool = True, notice: Callable[[str], None] = lambda text: None
) -> Connection:
    """A connection to the first of the servers that lets us in. ConnectError when none does.

    With `reconnects` nats-py re-establishes it for ever when it is lost. `notice` is called with a sentence when the
    connection is lost or found again, and when the server reports an error.
    """
    servers = [server.strip() for server in settings.server.split(",") if server.strip()]
    _check_schemes(servers)
    connection = Connection()
    watcher = _Watcher(connection, len(servers), notice)
    try:
        async with asyncio.timeout(settings.timeout_ms / 1000 * max(1, len(servers))):
            await connection.connect(
                servers=servers,
                name="mesh",
                connect_timeout=settings.timeout_ms / 1000,  # type: ignore[arg-type]  # seconds, whole or not
                allow_reconnect=reconnects,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type]
                error_cb=watcher.on_error,
                disconnected_cb=watcher.on_lost,
                reconnected_cb=watcher.on_found,
                **_credentials(settings),
            )
    except (OSError, TimeoutError, ValueError, errors.Error, NkeysError) as error:
        watcher.silent = True
        await _abandon(connection)
        raise ConnectError(_cannot_connect(settings, error)) from error
    watcher.connected = True
    return connection


async def _abandon(connection: Connection) -> None:
    """Closes what did not become a connection, as far as nats-py has begun it."""
    if connection._flush_queue is not None:
        with contextlib.suppress(TimeoutError):  # after a handshake that failed, asyncio never says that it has closed
            await asyncio.wait_for(connection.close(), CLIENT_ABANDON_MS / 1000)


class _Watcher:
    """nats-py's callbacks. While it connects for the first time, the last server's failure ends the attempt."""

    def __init__(self, connection: Connection, servers: int, notice: Callable[[str], None]) -> None:
        self.connected = self.silent = False
        self._connection, self._servers, self._notice, self._failures = connection, servers, notice, 0

    async def on_error(self, error: Exception) -> None:
        if self.silent:
            return
        if not self.connected:
            self._failures += 1
            if self._failures >= self._servers:
                raise error
        elif isinstance(error, errors.SlowConsumerError):
            self._notice(f"an event on {error.subject} was dropped: events come faster than they are taken")
        elif not isinstance(error, (OSError, errors.UnexpectedEOF, TimeoutError)):
            self._notice(str(error).removeprefix("nats: "))

    async def on_lost(self) -> None:
        if self.connected and self._connection.is_reconnecting:
            self._notice("the connection was lost; connecting again")

    async def on_found(self) -> None:
        self._notice("connected again")


def _check_schemes(servers: list[str]) -> None:
    """nats-py would take an address of another protocol for one of NATS, and wait for what never comes."""
    for server in servers:
        scheme = urlsplit(server).scheme if "://" in server else _SCHEMES[0]
        if scheme not in _SCHEMES:
            shown = without_secrets(server)
            expected = ", ".join(f"{each}://" for each in _SCHEMES)
            raise ConnectError(
                f"cannot connect to {shown}: {scheme}:// is no address of NATS clients; write {expected}"
            )


def _credentials(settings: ClientSettings) -> dict[str, Any]:
    """What nats-py's connect() takes for `settings`. OSError, ValueError: a file that is of no use."""
    for file in (settings.creds, settings.nkey, settings.tls_ca, settings.tls_cert, settings.tls_key):
        if file is not None:
            _check_file(file, is_creds=file == settings.creds)
    options: dict[str, Any] = {"tls_handshake_first": settings.tls_first}
    if settings.user and settings.password is None and settings.token is None:
        options["token"] = settings.user  # as the `nats` command has it: a user alone is a token
    else:
        options |= {"user": settings.user, "password": settings.password, "token": settings.token}
    if settings.creds:
        options["user_credentials"] = settings.creds
    if settings.nkey:
        options["nkeys_seed"] = settings.nkey
    if settings.tls_ca or settings.tls_cert or settings.tls_first:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_cert:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
        options["tls"] = context
    return options


def _check_file(file: str, *, is_creds: bool) -> None:
    content = Path(file).read_bytes()
    # nats-py would look for the JWT for ever.
    if is_creds and not (b"BEGIN NATS USER JWT" in content and b"BEGIN USER NKEY SEED" in content):
        raise ValueError(f"{file}: not a credentials file, which holds a NATS USER JWT and a USER NKEY SEED")


def _cannot_connect(settings: ClientSettings, error: Exception) -> str:
    shown = ", ".join(without_secrets(server) for server in settings.server.split(","))
    what = _reason(error)
    hint = ""
    if isinstance(error, ConnectionRefusedError):
        hint = "; is `mesh up` running? (--server, NATS_URL)"
    elif "authorization" in what.lower():
        hint = " (--user and --password, --token, --creds or --nkey say who you are)"
    return f"cannot connect to {shown}: {what}{hint}"


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error).removeprefix("nats: ").strip("'") or f"{type(error).__name__} (--creds, --nkey)"


def without_secrets(server: str) -> str:
    """The address without the user and password that it may hold."""
    parts = urlsplit(server.strip() if "://" in server else f"nats://{server.strip()}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
