"""The data plane: what clients send in, what clients get out. The reference; its compiled twin has the same interface.

    bytes ─► ClientParser ─► event ─┬─ PUB: permission ─► Sublist ─► `out` of every receiver
                                    │                  └► hooks.capture, hooks.service, 503
                                    ├─ SUB, UNSUB ─► Sublist
                                    └─ CONNECT ─► Directory ─► (verification) ─► ready

A batch of bytes goes in by `receive`, effects pile up: output in `Session.out`, sessions to look at in `take_dirty()`,
passwords to verify in `take_verifications()`. Nothing here waits, sends or looks at a clock.

A subject's receivers, with everything that permissions leave out, are one cached `Result` of the sublist. Each event of
a session is acted on before the next one is parsed, so a session that is paused, closed or being verified stops between
two events, and what came behind stays in its parser.

Source: nats-server `server/client.go`; differences are named where they are, and in `protocol.nats` and `identity`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.core.identity import AnswerableReplies, Directory, UserEntry, Verification
from gateway.core.liveness import Due, Liveness
from gateway.core.session import Closed, Session, Subscription
from gateway.core.sublist import Sublist
from protocol import headers, nats, subjects
from protocol.errors import FrameError
from protocol.limits import (
    AUTH_TIMEOUT_MS,
    MAX_CONNECTIONS,
    MAX_CONTROL_LINE_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_PENDING_BYTES,
    PING_INTERVAL_MS,
    PINGS_OUTSTANDING_MAX,
    STALL_MS,
    SUBJECT_TOKENS_MAX,
)

PROTOCOL_VERSION: Final = "2.12.0"
"""The nats-server release whose client protocol this is: clients unlock features by it."""


@dataclass(frozen=True)
class PlaneOptions:
    """What an operator sets. `max_subscriptions` (per connection) 0: no limit. `server_version` is our own."""

    server_id: str
    server_name: str
    host: str = "127.0.0.1"
    port: int = 4222
    server_version: str = ""
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    max_control_line_bytes: int = MAX_CONTROL_LINE_BYTES
    max_connections: int = MAX_CONNECTIONS
    max_subscriptions: int = 0
    max_pending_bytes: int = MAX_PENDING_BYTES
    ping_interval_ms: int = PING_INTERVAL_MS
    ping_max: int = PINGS_OUTSTANDING_MAX
    auth_timeout_ms: int = AUTH_TIMEOUT_MS
    users: tuple[UserEntry, ...] = ()


@dataclass
class Stats:
    """Counters under nats-server's `/varz` names; payload and header bytes, not frames."""

    in_msgs: int = 0
    out_msgs: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    slow_consumers: int = 0
    stale_connections: int = 0
    stalled_clients: int = 0
    connections: int = 0
    total_connections: int = 0
    subscriptions: int = 0


class Hooks(Protocol):
    """What capture, history and the shell plug in. Calls come in the middle of a batch; none may block."""

    def capture(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        """An event of a client, after its live delivery. Returns whether the log will answer `reply`: then no 503."""

    def service(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> None:
        """A publish to one of `subjects.SYSTEM_TOKENS`, instead of routing it."""

    def session_closed(self, session: Session) -> None:
        """The socket of `session` is gone."""


class _Message:
    """One message on its way to several receivers; what all of them get alike is put together once."""

    __slots__ = ("_headed_tail", "_plain_tail", "header_block", "payload", "reply", "subject")

    def __init__(self, subject: bytes, reply: bytes, header_block: bytes, payload: bytes) -> None:
        self.subject = subject
        self.reply = reply
        self.header_block = header_block
        self.payload = payload
        self._plain_tail = b""
        self._headed_tail = b""

    def put(self, subscription: Subscription) -> int:
        """Appends the frame for `subscription` to its output; the bytes of header and payload it carries."""
        session = subscription.session
        if self.header_block and session.options.headers:
            if not self._headed_tail:
                self._headed_tail = nats.header_message_tail(self.reply, self.header_block, self.payload)
            session.out += b"HMSG %b %b%b" % (self.subject, subscription.sid, self._headed_tail)
            return len(self.header_block) + len(self.payload)
        if not self._plain_tail:
            self._plain_tail = nats.message_tail(self.reply, self.payload)
        session.out += b"MSG %b %b%b" % (self.subject, subscription.sid, self._plain_tail)
        return len(self.payload)


class Plane:
    """All sessions of one gateway worker. `choose(n)` picks 0..n-1: queue members and timer jitter."""

    def __init__(self, options: PlaneOptions, hooks: Hooks, choose: Callable[[int], int]) -> None:
        self.options = options
        self.stats = Stats()
        self.sessions: dict[int, Session] = {}
        self.sublist: Sublist[Subscription] = Sublist(_accepts)
        self._hooks = hooks
        self._choose = choose
        self._directory = Directory(options.users)
        self._liveness = Liveness(
            self.sessions,
            ping_interval_ms=options.ping_interval_ms,
            ping_max=options.ping_max,
            auth_timeout_ms=options.auth_timeout_ms,
            choose=choose,
        )
        self._now_ms = 0
        self._dirty: list[Session] = []
        self._verifications: list[Session] = []
        self.port = options.port
        self._stall_bytes = options.max_pending_bytes // 4 * 3
        self._actions: dict[type, Callable[[Session, Any], None]] = {
            nats.Publish: self._publish,
            nats.Subscribe: self._subscribe,
            nats.Unsubscribe: self._unsubscribe,
            nats.Ping: self._ping,
            nats.Pong: self._pong,
            nats.Connect: self._connect,
            nats.Complaint: self._complain,
            nats.Failure: self._fail,
        }

    # -- connections --------------------------------------------------------------------------------------------------

    def listening(self, port: int) -> None:
        """The port that INFO names, where 0 was configured."""
        self.port = port

    def connect(self, client_ip: str, client_port: int, now_ms: int) -> Session:
        """A client has connected; INFO stands in its `out`. Above `max_connections` it is already closing."""
        options = self.options
        self._now_ms = now_ms
        self.stats.total_connections += 1
        parser = nats.ClientParser(options.max_payload_bytes, options.max_control_line_bytes)
        parser.expect_connect = self._directory.is_required
        session = Session(self.stats.total_connections, client_ip, client_port, parser, now_ms)
        self._send(session, nats.info_line(self._info(session)))
        if len(self.sessions) >= options.max_connections:
            self._refuse(session, nats.CONNECTIONS_EXCEEDED, Closed.CONNECTIONS_EXCEEDED)
            return session
        self.sessions[session.id] = session
        self.stats.connections += 1
        self._liveness.opened(session, now_ms, self._directory.is_required)
        return session

    def receive(self, session: Session, data: bytes, now_ms: int) -> None:
        """Act on what `session` has sent. With `data` b"": on what was left when it was paused or being verified."""
        self._now_ms = now_ms
        if session.closing is None:
            session.parser.receive(data)
            self._proceed(session)

    def tick(self, now_ms: int) -> None:
        """Send due PINGs, close what is stale or not authenticated in time. As often as timers should be exact."""
        self._now_ms = now_ms
        for session, due in self._liveness.due(now_ms):
            if due is Due.PING:
                self._send(session, nats.PING)
            elif due is Due.STALE:
                self.stats.stale_connections += 1
                self._refuse(session, nats.STALE_CONNECTION, Closed.STALE)
            else:
                self._refuse(session, nats.AUTHENTICATION_TIMEOUT, Closed.AUTHENTICATION_TIMEOUT)

    def close(self, session: Session, reason: Closed, *, flushes: bool = True, detail: str = "") -> None:
        """Give the connection up; the shell sends what is in `out` (unless not `flushes`) and closes the socket."""
        if session.closing is not None:
            return
        session.closing, session.closing_detail, session.flushes = reason, detail, flushes
        self._drop_subscriptions(session)
        if not flushes:
            session.out = bytearray()
        if reason in (Closed.SLOW_PENDING, Closed.SLOW_DEADLINE):
            self.stats.slow_consumers += 1
        self._touch(session)

    def disconnect(self, session: Session) -> None:
        """The socket is gone."""
        self.close(session, Closed.CLIENT, flushes=False)
        session.verifying = None
        if self.sessions.pop(session.id, None) is not None:
            self.stats.connections -= 1
            self._hooks.session_closed(session)

    def pause(self, session: Session) -> None:
        """Read nothing more from `session`, not even what has come already; its timers rest, deliveries go on."""
        session.paused = True
        self._touch(session)

    def resume(self, session: Session) -> None:
        """Undo `pause`. The shell continues it (`receive` with b"") when it takes the dirty sessions: not in here."""
        session.paused = False
        session.pings_out = 0
        self._touch(session)

    def take_dirty(self) -> list[Session]:
        """The sessions that have output, are closing, or were paused or resumed since the last call."""
        taken, self._dirty = self._dirty, []
        for session in taken:
            session.dirty = False
        return taken

    # -- messages of the mesh itself ----------------------------------------------------------------------------------

    def publish(self, subject: str, reply: str, header_block: bytes, payload: bytes) -> int:
        """Route a message of our own, like a PubAck: as any publish, but never captured. How many got it."""
        message = _Message(subjects.encode(subject), subjects.encode(reply), header_block, payload)
        return self._route(None, subject, message)

    def deliver(self, session: Session, route: str, show: str, reply: str, header_block: bytes, payload: bytes) -> int:
        """To those subscriptions of `session` that match `route`, showing `show` as the subject. How many got it."""
        message = _Message(subjects.encode(show), subjects.encode(reply), header_block, payload)
        receivers = self._own_receivers(session, route)
        for subscription in receivers:
            self._deliver(subscription, message)
        return len(receivers)

    def has_interest(self, session: Session, route: str) -> bool:
        """Whether `session` has a subscription that matches `route`."""
        return bool(self._own_receivers(session, route))

    def no_responders(self, session: Session, reply: str, subject: str = "") -> None:
        """Tell a requester that nobody answers `subject`, if it asked for that. Not counted against a maximum."""
        if not session.options.no_responders:
            return
        for subscription in self.sublist.match(reply).plain:
            if subscription.session is session and not subscription.closed:
                block = headers.no_responders(subjects.encode(subject)) if subject else headers.build(status=503)
                tail = nats.header_message_tail(b"", block, b"")
                self._send(session, b"HMSG %b %b%b" % (subjects.encode(reply), subscription.sid, tail))
                return

    def _own_receivers(self, session: Session, route: str) -> list[Subscription]:
        result = self.sublist.match(route)
        own = [subscription for subscription in result.plain if subscription.session is session]
        for group in result.queues:
            own += [subscription for subscription in group if subscription.session is session][:1]
        return own

    # -- publishing ---------------------------------------------------------------------------------------------------

    def _publish(self, session: Session, event: nats.Publish) -> None:
        wire_subject, wire_reply, header_block, payload = event
        size_bytes = len(header_block) + len(payload)
        self._count_in(session, size_bytes)
        subject = subjects.decode(wire_subject)
        if not session.permissions.may_publish(subject) and not session.may_answer(wire_subject, self._now_ms):
            self._send(session, nats.error_line(nats.publish_violation(subject)))
            return
        if session.options.verbose:
            self._send(session, nats.OK)
        if subject[0] == "$" and subject.partition(".")[0] in subjects.SYSTEM_TOKENS:
            self._hooks.service(session, subject, subjects.decode(wire_reply), header_block, payload)
            return
        receivers = self._route(session, subject, _Message(wire_subject, wire_reply, header_block, payload))
        answered = False
        if subjects.is_captured(subject) and _is_routable(subject):
            answered = self._hooks.capture(session, subject, subjects.decode(wire_reply), header_block, payload)
        if receivers == 0 and wire_reply and not answered:
            self.no_responders(session, subjects.decode(wire_reply), subject)

    def _route(self, sender: Session | None, subject: str, message: _Message) -> int:
        """Deliver to all plain subscriptions and one member of each queue group. How many got it."""
        result = self.sublist.match(subject)
        silent = None if sender is None or sender.options.echo else sender
        receivers = 0
        for subscription in result.plain:
            if subscription.session is not silent and not subscription.closed:
                self._deliver(subscription, message, sender)
                receivers += 1
        for group in result.queues:
            first = self._choose(len(group)) if len(group) > 1 else 0
            for subscription in group[first:] + group[:first]:
                if subscription.session is not silent and not subscription.closed:
                    self._deliver(subscription, message, sender)
                    receivers += 1
                    break
        return receivers

    def _deliver(self, subscription: Subscription, message: _Message, sender: Session | None = None) -> None:
        if subscription.closed:
            return
        session = subscription.session
        size_bytes = message.put(subscription)
        session.out_msgs += 1
        session.out_bytes += size_bytes
        session.last_activity_ms = self._now_ms
        self.stats.out_msgs += 1
        self.stats.out_bytes += size_bytes
        subscription.received += 1
        if subscription.received == subscription.max_messages:
            self._drop(subscription)
        if session.answerable is not None and message.reply:
            session.answerable.received(message.reply, self._now_ms)
        if not session.dirty:
            self._touch(session)
        if len(session.out) + session.unsent_bytes > self._stall_bytes:
            self._falls_behind(session, sender)

    def _falls_behind(self, session: Session, sender: Session | None) -> None:
        pending_bytes = session.pending_bytes
        if pending_bytes <= self._stall_bytes:
            return
        if pending_bytes > self.options.max_pending_bytes:
            detail = f"{pending_bytes} B pending, {self.options.max_pending_bytes} B allowed"
            self.close(session, Closed.SLOW_PENDING, flushes=False, detail=detail)
        elif sender is not None and not sender.stall_ms:
            sender.stall_ms = STALL_MS
            self.stats.stalled_clients += 1

    def _count_in(self, session: Session, size_bytes: int) -> None:
        session.in_msgs += 1
        session.in_bytes += size_bytes
        session.last_heard_ms = session.last_activity_ms = self._now_ms
        self.stats.in_msgs += 1
        self.stats.in_bytes += size_bytes

    # -- subscriptions ------------------------------------------------------------------------------------------------

    def _subscribe(self, session: Session, event: nats.Subscribe) -> None:
        session.last_heard_ms = session.last_activity_ms = self._now_ms
        pattern, queue = subjects.decode(event.subject), subjects.decode(event.queue)
        problem = self._subscription_problem(session, pattern, queue, event.sid)
        if problem is not None:
            self._send(session, nats.error_line(problem))
            return
        if event.sid not in session.subscriptions:
            subscription = Subscription(session, pattern, queue, event.sid)
            session.subscriptions[event.sid] = subscription
            self.sublist.insert(subscription)
            self.stats.subscriptions += 1
        if session.options.verbose:
            self._send(session, nats.OK)

    def _subscription_problem(self, session: Session, pattern: str, queue: str, sid: bytes) -> str | None:
        if not session.may_subscribe(pattern, queue):
            return nats.subscription_violation(pattern, queue)
        if pattern.count(".") >= SUBJECT_TOKENS_MAX:
            return nats.too_many_tokens(pattern)
        if 0 < self.options.max_subscriptions <= len(session.subscriptions):
            return nats.SUBSCRIPTIONS_EXCEEDED
        if sid not in session.subscriptions and not subjects.is_valid_pattern(pattern):
            return nats.INVALID_SUBJECT
        return None

    def _unsubscribe(self, session: Session, event: nats.Unsubscribe) -> None:
        session.last_heard_ms = session.last_activity_ms = self._now_ms
        subscription = session.subscriptions.get(event.sid)
        if subscription is not None:
            if event.max_messages > subscription.received:
                subscription.max_messages = event.max_messages
            else:
                self._drop(subscription)
        if session.options.verbose:
            self._send(session, nats.OK)

    def _drop(self, subscription: Subscription) -> None:
        subscription.closed = True
        del subscription.session.subscriptions[subscription.sid]
        self.sublist.remove(subscription)
        self.stats.subscriptions -= 1

    def _drop_subscriptions(self, session: Session) -> None:
        for subscription in list(session.subscriptions.values()):
            self._drop(subscription)

    # -- the connection itself ----------------------------------------------------------------------------------------

    def _connect(self, session: Session, event: nats.Connect) -> None:
        try:
            session.options = nats.read_connect(event.argument, session.options)
        except FrameError as error:
            self.close(session, Closed.PROTOCOL_VIOLATION, detail=str(error))
            return
        self._drop_subscriptions(session)  # of an earlier CONNECT: they were another user's
        if not self._directory.is_required:
            self._admit(session, None)
            return
        options = session.options
        found = self._directory.check(options.user, options.password, options.token)
        if isinstance(found, Verification):
            session.verifying = found
            self._verifications.append(session)
            self._touch(session)
        else:
            self._decide(session, found)

    def take_verifications(self) -> list[Session]:
        """Sessions whose `verifying` somebody has to run (bcrypt, slow) and to answer by `verified`."""
        taken, self._verifications = self._verifications, []
        return taken

    def verified(self, session: Session, entry: UserEntry | None, now_ms: int) -> None:
        """The verdict on `session.verifying`: who it is, or None. What the client has sent since is acted on."""
        self._now_ms = now_ms
        if session.closing is not None or session.verifying is None:
            return
        session.verifying = None
        self._decide(session, entry)
        self._touch(session)
        self._proceed(session)

    def _decide(self, session: Session, entry: UserEntry | None) -> None:
        if entry is None:
            self._refuse(session, nats.AUTHORIZATION_VIOLATION, Closed.AUTHENTICATION_FAILURE)
        else:
            self._admit(session, entry)

    def _admit(self, session: Session, entry: UserEntry | None) -> None:
        options = session.options
        if entry is not None:
            session.entry, session.user = entry, entry.user
            session.permissions = self._directory.permissions(entry)
            rule = session.permissions.responses
            session.answerable = None if rule is None else AnswerableReplies(rule)
        if options.account or options.new_account:  # naming an account here is long gone, and an error
            self._refuse(session, nats.AUTHORIZATION_VIOLATION, Closed.AUTHENTICATION_FAILURE)
            return
        session.connected = True
        session.parser.expect_connect = False
        session.parser.headers = options.headers
        session.parser.pedantic = options.pedantic
        self._liveness.connected(session, self._now_ms)
        if not 0 <= options.protocol <= nats.CLIENT_PROTOCOL_MAX:
            self._refuse(session, nats.INVALID_CLIENT_PROTOCOL, Closed.BAD_CLIENT_PROTOCOL)
        elif options.no_responders and not options.headers:
            self._refuse(session, nats.NO_RESPONDERS_REQUIRES_HEADERS, Closed.NO_RESPONDERS_REQUIRES_HEADERS)
        elif options.verbose:
            self._send(session, nats.OK)

    def _ping(self, session: Session, event: nats.Ping) -> None:
        session.last_heard_ms = self._now_ms
        self._send(session, nats.PONG)
        if session.connected and not session.info_sent:
            session.info_sent = True
            if session.options.protocol >= nats.CLIENT_PROTOCOL_MAX:
                self._send(session, nats.info_line(self._info(session) | {"connect_info": True}))

    def _pong(self, session: Session, event: nats.Pong) -> None:
        self._liveness.heard(session, self._now_ms)

    def _complain(self, session: Session, event: nats.Complaint) -> None:
        self._send(session, nats.error_line(event.text))

    def _fail(self, session: Session, event: nats.Failure) -> None:
        reason = _REASONS.get(event.text or "", Closed.PROTOCOL_VIOLATION)
        if event.text is None:
            self.close(session, reason, detail=event.detail)
        else:
            self._refuse(session, event.text, reason, event.detail)

    def _refuse(self, session: Session, text: str, reason: Closed, detail: str = "") -> None:
        self._send(session, nats.error_line(text))
        self.close(session, reason, detail=detail)

    def _proceed(self, session: Session) -> None:
        next_event, actions = session.parser.next_event, self._actions
        while session.closing is None and session.verifying is None and not session.paused:
            event = next_event()
            if event is None:
                return
            actions[type(event)](session, event)

    def _send(self, session: Session, line: bytes) -> None:
        session.out += line
        if not session.dirty:
            self._touch(session)

    def _touch(self, session: Session) -> None:
        if not session.dirty:
            session.dirty = True
            self._dirty.append(session)

    def _info(self, session: Session) -> dict[str, Any]:
        options = self.options
        info: dict[str, Any] = {
            "server_id": options.server_id,
            "server_name": options.server_name,
            "version": PROTOCOL_VERSION,
            "proto": 1,
            "git_commit": f"event-mesh-{options.server_version}".rstrip("-"),
            "go": "",
            "host": options.host,
            "port": self.port,
            "headers": True,
        }
        if self._directory.is_required:
            info["auth_required"] = True
        return info | {
            "max_payload": options.max_payload_bytes,
            "client_id": session.id,
            "client_ip": session.client_ip,
        }


_REASONS = {
    nats.AUTHORIZATION_VIOLATION: Closed.AUTHENTICATION_FAILURE,
    nats.PAYLOAD_VIOLATION: Closed.PAYLOAD_EXCEEDED,
    nats.CONTROL_LINE_EXCEEDED: Closed.CONTROL_LINE_EXCEEDED,
}


def _accepts(subscription: Subscription, subject: str) -> bool:
    """What a user may not receive is left out of the route, however wide the subscription is."""
    return subscription.session.permissions.may_receive(subject, subscription.queue)


def _is_routable(subject: str) -> bool:
    """Whether any pattern can match `subject`: one with an empty token reaches nobody, not even the log."""
    return bool(subject) and subject[0] != "." and subject[-1] != "." and ".." not in subject
