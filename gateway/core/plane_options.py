"""What a data plane is made with: what an operator sets, and what capture, history and the shell plug in."""

from dataclasses import dataclass
from typing import Protocol

from gateway.core.identity import UserEntry
from gateway.core.lanes import Lane
from gateway.core.session import Session
from protocol import routes
from protocol.limits import (
    AUTH_TIMEOUT_MS,
    MAX_CONNECTIONS,
    MAX_CONTROL_LINE_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_PENDING_BYTES,
    PING_INTERVAL_MS,
    PINGS_OUTSTANDING_MAX,
    SUBJECT_TOKENS_MAX,
)


@dataclass(frozen=True)
class PlaneOptions:
    """What an operator sets. `max_subscriptions` (per connection) 0: no limit. `server_version` is our own.

    `no_auth_user` is the name or nkey of one of the users; with `maps_certificates` certificates name users. `tls_*` go
    into INFO; with `tls_required` or `tls_available` the shell makes a handshake and then calls `secured`.
    `has_gateways`: other gateways of the zone are peers; with `broadcasts` each of them is sent all messages. `zone` is
    our own, `zones` are those with which it exchanges live events. Clients are numbered from `first_id` on in steps of
    `id_step`: of that many workers of the gateway, this is the one of number `first_id` - 1.
    """

    server_id: str
    server_name: str
    host: str = "127.0.0.1"
    port: int = 4222
    server_version: str = ""
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    max_control_line_bytes: int = MAX_CONTROL_LINE_BYTES
    max_connections: int = MAX_CONNECTIONS
    max_subscriptions: int = 0
    max_subscription_tokens: int = SUBJECT_TOKENS_MAX
    max_pending_bytes: int = MAX_PENDING_BYTES
    ping_interval_ms: int = PING_INTERVAL_MS
    ping_max: int = PINGS_OUTSTANDING_MAX
    auth_timeout_ms: int = AUTH_TIMEOUT_MS
    users: tuple[UserEntry, ...] = ()
    accounts: tuple[str, ...] = ()
    no_auth_user: str = ""
    maps_certificates: bool = False
    first_id: int = 1
    id_step: int = 1
    tls_required: bool = False
    tls_verify: bool = False
    tls_available: bool = False
    has_gateways: bool = False
    zone: str = ""
    zones: tuple[str, ...] = ()
    broadcasts: bool = False

    @property
    def peer_name(self) -> str:
        """What other workers and gateways call this one."""
        return routes.peer_name(self.server_name, self.first_id - 1)


class Hooks(Protocol):
    """What capture, history and the shell plug in. Calls come in the middle of a batch; none may block."""

    def keeps(self, account: str, subject: str) -> bool:
        """Whether `capture` wants the events on `subject`. When that changes, `Plane.routes_changed` is due."""

    def governs(self, account: str, subject: str) -> bool:
        """Whether `admits` wants to see the events on `subject`. When that changes, `routes_changed` is due."""

    def admits(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        """Whether an event may pass; if not, its publisher has been told."""

    def capture(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        """An event of a client, after its live delivery. Returns whether the log will answer `reply`: then no 503."""

    def lane(self, account: str, subject: str) -> tuple[Lane, bytes] | None:
        """Where events that ask nothing go past `capture`, and their key; None: `capture` wants all of them."""

    def wall_ms(self) -> int:
        """The wall clock's time, for events that go by a lane."""

    def kept(self) -> None:
        """In the read that ends now, lanes have taken something."""

    def service(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> None:
        """A publish to one of `subjects.SYSTEM_TOKENS`, instead of routing it."""

    def session_admitted(self, session: Session) -> None:
        """The client of `session` has said who it is, and may come in."""

    def refused(self, session: Session, what: str) -> None:
        """The client of `session` has no leave to do this."""

    def session_renewed(self, session: Session) -> None:
        """The client of `session` says anew who it is; what it asked for was another user's."""

    def session_closed(self, session: Session) -> None:
        """The socket of `session` is gone."""

    def nonce(self) -> bytes:
        """`NONCE_BYTES` that nobody can predict, for a client to sign."""
