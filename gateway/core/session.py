"""One client connection as the data plane sees it, its subscriptions, and the account that they live in.

A session goes one way: connected → (verifying) → ready → closing. `closing` holds the reason from the moment on that
the connection is given up: nothing more is read from it or delivered to it, and what is in its output is still sent
unless `flushes` is false. Times are milliseconds of the clock that the plane is given.

These classes hold; what happens to them is decided by `gateway.core.forwarding` (messages) and `gateway.core.plane`
(everything else). They are the reference of the classes of the same names in the compiled forwarder.
"""

from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import NamedTuple

from gateway.core.identity import EVERYTHING, AnswerableReplies, Permissions, UserEntry, Verification
from gateway.core.sublist import Sublist
from protocol import nats

NEVER_MS = -1


class Closed(StrEnum):
    """Why a connection ended, in nats-server's words (they show in `/connz` and in logs)."""

    CLIENT = "Client Closed"
    SHUTDOWN = "Server Shutdown"
    AUTHENTICATION_TIMEOUT = "Authentication Timeout"
    AUTHENTICATION_FAILURE = "Authentication Failure"
    SLOW_PENDING = "Slow Consumer (Pending Bytes)"
    SLOW_DEADLINE = "Slow Consumer (Write Deadline)"
    STALE = "Stale Connection"
    PROTOCOL_VIOLATION = "Protocol Violation"
    BAD_CLIENT_PROTOCOL = "Bad Client Protocol Version"
    NO_RESPONDERS_REQUIRES_HEADERS = "No Responders Requires Headers"
    CONNECTIONS_EXCEEDED = "Maximum Connections Exceeded"
    PAYLOAD_EXCEEDED = "Maximum Message Payload Exceeded"
    CONTROL_LINE_EXCEEDED = "Maximum Control Line Exceeded"
    TLS_HANDSHAKE = "TLS Handshake Failure"


class Scope(IntEnum):
    """How far what a session publishes goes. Between gateways it goes on exactly where it has not been yet."""

    ANYWHERE = 0  # a client's
    HERE = 1  # a message of our zone, from a peer: to our own clients
    ZONE = 2  # one of another zone, from the other end of its border link: to our zone
    BORDER = 3  # one for another zone, from a gateway of ours: over our border link


class Subscription:
    """One SUB of one session. `max_messages` 0: no limit; `received` counts deliveries.

    `weight`: of a peer's, how many members of the queue group are behind it; 0: nobody is known to be, it is sent what
    it is sent because everything is.
    """

    __slots__ = ("account", "closed", "max_messages", "pattern", "queue", "received", "session", "sid", "weight")

    def __init__(
        self, session: "Session", pattern: str, queue: str, sid: bytes, account: "Account | None" = None
    ) -> None:
        self.session = session
        self.account = account or session.account  # a peer's are in many
        self.pattern = pattern
        self.queue = queue
        self.sid = sid
        self.max_messages = 0
        self.received = 0
        self.weight = 1
        self.closed = False


class Watch(NamedTuple):
    """`lost` is called once, when `session` has no subscription any more that matches the literal `subject`."""

    account: "Account"
    session: "Session"
    subject: str
    lost: Callable[[], object]


class Account:
    """A space of subjects: who is subscribed in it is reached from it, and from nowhere else.

    `watches`: who wants to know when a subject has lost its last subscription.
    """

    __slots__ = ("name", "sublist", "watches")

    def __init__(self, name: str) -> None:
        self.name = name
        self.watches: dict[str, list[Watch]] = {}
        self.sublist: Sublist[Subscription] = Sublist(_accepts)


def _accepts(subscription: Subscription, subject: str) -> bool:
    """What a user may not receive is left out of the route, however wide the subscription is."""
    session = subscription.session
    return not session.permissions.filters or session.permissions.may_receive(subject, subscription.queue)


class Session:
    """The state of one connection. Others than the plane and its shell read it only, and call the `may_*` methods.

    `write` and `take` are its output. `unsent_bytes` is what the shell has taken and the socket has not: an upper bound
    that it renews whenever it writes, and that `measure_unsent` makes exact where it matters.
    """

    def __init__(
        self, id: int, client_ip: str, client_port: int, parser: nats.ClientParser, account: Account, now_ms: int
    ) -> None:
        self.id = id
        self.client_ip = client_ip
        self.client_port = client_port
        self.parser = parser
        self.account = account  # of a peer: that of its last message
        self.subscriptions: dict[bytes, Subscription] = {}
        self.peer = ""  # the name of the gateway worker on the other side, "" for a client
        self.near = False  # the peer is a worker of this gateway
        self.scope = Scope.ANYWHERE
        self.zone = ""  # of a peer: the other zone that is reached by it, "" for one of ours
        self.spare = False  # of a peer: another one leads to the same zone, and nothing is sent by this one
        self.learned: object | None = None  # of a peer: the `interest.Learned` of what it wants
        self.interest_mark = 0  # how much interest peers had been told when the client last subscribed

        self.options = nats.ConnectOptions()
        self.connected = False  # a CONNECT was accepted
        self.info_sent = False  # the INFO that follows the first PONG
        self.nonce = ""  # what a client with an nkey has to sign
        self.tls: object | None = None  # what the shell knows of the encryption, for reports
        self.verifying: Verification | None = None
        self.entry: UserEntry | None = None  # None where no users are configured
        self.user = ""
        self.permissions: Permissions = EVERYTHING
        self.answerable: AnswerableReplies | None = None

        self._out = bytearray()
        self.unsent_bytes = 0
        self.measure_unsent: Callable[[], int] | None = None
        self.dirty = False  # the shell has to look at it
        self.paused = False  # nothing is read or parsed until it is resumed
        self.stall_ms = 0  # how long the shell should wait before it reads again, because a subscriber falls behind
        self.closing: Closed | None = None
        self.closing_detail = ""
        self.flushes = True

        self.in_msgs = 0
        self.in_bytes = 0
        self.out_msgs = 0
        self.out_bytes = 0
        self.dropped_msgs = 0  # of a peer: messages for it that were dropped, since it was too far behind
        self.unwanted_msgs = 0  # of a peer: messages from it that reached nobody here
        self.started_ms = now_ms
        self.last_activity_ms = now_ms
        self.last_heard_ms = now_ms
        self.due_ms = 0
        self.ping_due_ms = 0
        self.auth_due_ms = NEVER_MS
        self.pings_out = 0
        self.ping_sent_ms = NEVER_MS
        self.rtt_ms = NEVER_MS

    @property
    def name(self) -> str:
        """What the client calls itself, "" if nothing."""
        return self.options.name

    # -- output -------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Append to the output."""
        self._out += data

    def take(self) -> bytes:
        """The output; it is the taker's now."""
        taken = bytes(self._out)
        self._out.clear()
        return taken

    @property
    def queued_bytes(self) -> int:
        """The output that nobody has taken yet."""
        return len(self._out)

    @property
    def pending_bytes(self) -> int:
        """What waits to be sent to the client, measured now."""
        if self.measure_unsent is not None:
            self.unsent_bytes = self.measure_unsent()
        return self.queued_bytes + self.unsent_bytes

    # -- rights -------------------------------------------------------------------------------------------------------

    def may_publish(self, subject: str) -> bool:
        """Whether the permissions allow to publish on `subject` (replies under `allow_responses` aside)."""
        return self.permissions.may_publish(subject)

    def may_subscribe(self, pattern: str, queue: str = "") -> bool:
        """Whether the permissions allow a subscription to `pattern`; what is read must pass `may_receive` too."""
        return self.permissions.may_subscribe(pattern, queue)

    def may_receive(self, subject: str) -> bool:
        """Whether a message on the literal `subject` may be shown to a plain subscription that covers it."""
        return self.permissions.may_receive(subject)

    def may_answer(self, subject: bytes, now_ms: int) -> bool:
        """Whether `subject` is the reply subject of a message that the client may still answer; counts the answer."""
        return self.answerable is not None and self.answerable.take(subject, now_ms)
