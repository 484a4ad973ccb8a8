"""TLS on the client port: certificates and rules from the configuration, and connections that encrypt.

    socket ─► shared read buffer ─► incoming ─► SSLObject ─► shared buffer of plain text ─► Plane.receive
    socket ◄─ outgoing ◄─ SSLObject ◄─ Session.take

As in nats-server the client is greeted in plain text (INFO with `tls_required`) and then makes the handshake. With
`first` the handshake comes before INFO, or, with `first_fallback`, INFO comes when a client has sent nothing for so
long; with `allow_non_tls` the first byte of a client tells whether it wants one. Who sends anything else, or does not
finish within `timeout`, is closed without a word.

The handshake, decryption and encryption run in the loop, on memory alone: a handshake with an elliptic-curve key takes
less than a millisecond. OpenSSL writes one record of 16 KiB per call, whatever it is given, and its buffers between us
and it never shrink: they are given pieces, so that a connection that was busy once stays small.

Certificates are read in `gateway.shell.certificates`, which a port without TLS need not load.

Source: nats-server `server/server.go` (createClientEx), RFC 8446.
"""

import asyncio
import contextlib
import ssl
from enum import Enum, auto
from typing import TYPE_CHECKING

import structlog

from gateway.core.encryption import Encryption
from gateway.core.session import Closed
from gateway.shell.connection import Connection
from protocol.config import TlsClients
from protocol.errors import ConfigError
from protocol.limits import READ_BYTES, TLS_PIECE_BYTES, TLS_RECORD_BYTES

if TYPE_CHECKING:
    from gateway.shell.server import ClientServer

CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Forward secrecy and authenticated encryption only; TLS 1.3 has no others."""

_HANDSHAKE_RECORD = 22
"""The first byte of a ClientHello's record."""

log = structlog.get_logger()


class ClientTls:
    """`[tls.clients]`, ready for handshakes. ConfigError: a file that is of no use, with what would be right."""

    def __init__(self, settings: TlsClients) -> None:
        from gateway.shell.certificates import file_problems

        self.first = settings.first
        self.first_fallback_ms = settings.first_fallback_ms
        self.verifies = settings.verify or settings.map
        self.allows_plain = settings.allow_non_tls
        self.timeout_ms = settings.timeout_ms
        if problems := file_problems("tls.clients", settings.cert, settings.key, settings.ca):
            raise ConfigError(problems)
        self.context = _context(settings, verifies=self.verifies)


def _context(settings: TlsClients, *, verifies: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS_1_2)
    try:
        context.load_cert_chain(settings.cert, settings.key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError([f"tls.clients: {settings.cert} and {settings.key} cannot be used: {error}"]) from error
    if verifies:
        context.verify_mode = ssl.CERT_REQUIRED
        if settings.ca is not None:
            context.load_verify_locations(settings.ca)
        else:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    return context


# -- connections ------------------------------------------------------------------------------------------------------


class _State(Enum):
    """What the next bytes of a client may be."""

    ANY = auto()  # a handshake or plain text: the first byte tells
    FIRST = auto()  # the first of a handshake
    HANDSHAKE = auto()
    PLAIN = auto()  # for ever
    ENCRYPTED = auto()  # for ever


class TlsConnection(Connection):
    """A client socket of a port that speaks TLS."""

    __slots__ = ("_greeting", "_has_ended", "_incoming", "_is_first", "_outgoing", "_ssl", "_state", "_tls")

    def __init__(self, server: "ClientServer", tls: ClientTls) -> None:
        super().__init__(server)
        self._tls = tls
        self._has_ended = False  # the client has said goodbye
        self._is_first = tls.first
        self._greeting: asyncio.TimerHandle | None = None  # until the client is greeted, though it has said nothing
        self._state = _State.ANY if tls.allows_plain and not tls.first else _State.FIRST
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = tls.context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    # -- from the loop ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        fallback_ms = self._tls.first_fallback_ms if self._is_first else 0
        self._server.handshake_begins(self, fallback_ms + self._tls.timeout_ms)
        if fallback_ms:
            self._greeting = asyncio.get_running_loop().call_later(fallback_ms / 1_000, self._greet)
        super().connection_made(transport)

    def buffer_updated(self, nbytes: int) -> None:
        data = self._server.read_buffer[:nbytes]
        if self._state in (_State.ANY, _State.FIRST):
            self._look_at_first_byte(data[0])
        if self._state is _State.PLAIN:
            super().buffer_updated(nbytes)
        elif self.session.closing is None:
            self._receive_encrypted(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
        self._server.handshake_over(self)
        super().connection_lost(error)

    # -- from the server ----------------------------------------------------------------------------------------------

    def update(self) -> None:
        if self._holds_info and self.session.closing is None:
            return
        super().update()

    def look_at_reading(self) -> None:
        super().look_at_reading()
        if self._has_ended and self._reads:  # all that came before the goodbye is acted on
            self._plane.close(self.session, Closed.CLIENT)

    def handshake_timed_out(self) -> None:
        """The client has not finished in time; one that has said nothing and may do without goes on in plain text."""
        if self._state is _State.ANY:
            self._go_on(_State.PLAIN, None)
        else:
            self._fail("the client has not finished the handshake in time")

    # -- handshake ----------------------------------------------------------------------------------------------------

    @property
    def _holds_info(self) -> bool:
        return self._is_first and self._state in (_State.FIRST, _State.HANDSHAKE)

    def _greet(self) -> None:
        """The client has had its time: it is not one that begins with the handshake."""
        self._greeting = None
        if self._state is _State.FIRST and self.session.closing is None:
            self._is_first = False
            self._state = _State.ANY if self._tls.allows_plain else _State.FIRST
            self.update()

    def _look_at_first_byte(self, byte: int) -> None:
        if byte == _HANDSHAKE_RECORD:
            self._state = _State.HANDSHAKE
        elif self._state is _State.ANY:
            self._go_on(_State.PLAIN, None)
        else:
            self._fail("the first bytes are those of no TLS handshake")

    def _shake_hands(self) -> bool:
        """A step of the handshake; whether it is over and all is well."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self.transport.write(self._outgoing.read())
            return False
        except ssl.SSLError as error:
            self.transport.write(self._outgoing.read())  # the alert
            self._fail(explained(error))
            return False
        self.transport.write(self._outgoing.read())
        self._go_on(_State.ENCRYPTED, _encryption(self._ssl, self._tls, first=self._is_first))
        return True

    def _go_on(self, state: _State, encryption: Encryption | None) -> None:
        self._state = state
        self._server.handshake_over(self)
        self._plane.secured(self.session, encryption, self._server.now_ms())
        self.update()

    def _fail(self, detail: str) -> None:
        self._server.handshake_over(self)
        self.session.take()  # INFO, where it comes after the handshake
        self._plane.close(self.session, Closed.TLS_HANDSHAKE, detail=detail)
        self._server.flush()

    # -- encryption ---------------------------------------------------------------------------------------------------

    def _receive_encrypted(self, data: memoryview) -> None:
        server, session, plain, count = self._server, self.session, self._server.plain_buffer, 0
        for start in range(0, len(data), TLS_PIECE_BYTES):
            self._incoming.write(data[start : start + TLS_PIECE_BYTES])
            if self._state is _State.ENCRYPTED or self._shake_hands():
                count += self._decrypt(plain[count:])
            if session.closing is not None:
                return
        has_more = self._plane.receive(session, plain[:count], server.now_ms()) if count else False
        if self._outgoing.pending:  # a key update
            self.transport.write(self._outgoing.read())
        server.flush()
        if has_more or len(data) >= READ_BYTES or session.stall_ms:
            self._begin_stall()
        elif self._has_ended:
            self.look_at_reading()
            server.flush()

    def _decrypt(self, plain: memoryview) -> int:
        """Fills `plain`, which holds more than one read can bring, with all that is whole; how much that is."""
        count, read, incoming = 0, self._ssl.read, self._incoming
        try:
            while incoming.pending or self._ssl.pending():
                got = int(read(len(plain) - count, plain[count:]))
                if not got:
                    self._has_ended = True
                    break
                count += got
        except ssl.SSLWantReadError:
            pass  # the rest of the record is under way
        except ssl.SSLError as error:
            self._plane.close(self.session, Closed.CLIENT, flushes=False, detail=explained(error))
            self._server.flush()
        return count

    def _write(self, out: bytes) -> None:
        if self._state is not _State.ENCRYPTED:
            self.transport.write(out)
            return
        view, write, encrypted = memoryview(out), self._ssl.write, []
        for start in range(0, len(out), TLS_RECORD_BYTES):
            write(view[start : start + TLS_RECORD_BYTES])
            encrypted.append(self._outgoing.read())
        self.transport.writelines(encrypted)

    def _say_goodbye(self) -> None:
        if self._state is _State.ENCRYPTED:
            with contextlib.suppress(ssl.SSLError):  # ours is written; the client's is not waited for
                self._ssl.unwrap()
            self.transport.write(self._outgoing.read())


def explained(error: ssl.SSLError) -> str:
    """Why TLS failed, without what only OpenSSL's source makes clear."""
    reason = getattr(error, "verify_message", "") or (error.reason or str(error)).lower().replace("_", " ")
    return f"TLS: {reason}"


def _encryption(secured: ssl.SSLObject, tls: ClientTls, *, first: bool) -> Encryption:
    from gateway.shell.certificates import peer_certificate

    cipher = secured.cipher()
    der = secured.getpeercert(binary_form=True) if tls.verifies else None
    return Encryption(
        version=(secured.version() or "").removeprefix("TLSv"),
        cipher=cipher_name(cipher[0] if cipher else ""),
        first=first,
        certificate=None if der is None else peer_certificate(der),
    )


def cipher_name(name: str) -> str:
    """The name that IANA and nats-server give to what OpenSSL calls `name`: they differ for TLS 1.2."""
    if name.startswith("TLS_"):
        return name
    exchange, _, cipher = (
        name.replace("-", "_")
        .replace("AES128", "AES_128")
        .replace("AES256", "AES_256")
        .partition("_RSA_" if "-RSA-" in name else "_ECDSA_")
    )
    signature = "RSA" if "-RSA-" in name else "ECDSA"
    hashed = "_SHA256" if cipher.endswith("POLY1305") else ""
    return f"TLS_{exchange}_{signature}_WITH_{cipher}{hashed}"
