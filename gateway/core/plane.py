"""The data plane of one gateway worker: who is connected, who may do what, and the way of every message.

    bytes ─► Forwarder ─┬─ ordinary messages ─► output of their receivers
                        └─ everything else ─► Plane ─┬─ CONNECT ─► Directory ─► (verification) ─► ready
                                                     ├─ SUB, UNSUB ─► the account's subscriptions
                                                     └─ special subjects ─► hooks.capture, hooks.service, 503

A batch of bytes goes in by `receive`, effects pile up: output in the sessions, sessions to look at in `take_dirty()`,
passwords to verify in `take_verifications()`. Nothing here waits, sends or looks at a clock.

This is the policy: Python, and the same above both forwarders (`gateway.core.engine` chooses). Each event of a session
is acted on before the next one is parsed, so a session that is paused, closed or being verified stops between two
events, and what came behind waits.

Source: nats-server `server/client.go`; differences are named where they are, and in `protocol.nats` and `identity`.
"""

from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, Final

from gateway.core.encryption import Encryption
from gateway.core.engine import BEST, Engine
from gateway.core.forwarding import Kind
from gateway.core.greeting import PROTOCOL_VERSION, info
from gateway.core.identity import AnswerableReplies, Credentials, Directory, UserEntry, Verification
from gateway.core.lanes import Lane, Replies
from gateway.core.liveness import Due, Liveness
from gateway.core.peers import Peers
from gateway.core.plane_options import Hooks, PlaneOptions
from gateway.core.reloading import Recheck
from gateway.core.session import NEVER_MS, Account, Closed, Scope, Session, Subscription, Watch
from protocol import headers, nats, routes, subjects
from protocol.accounts import DEFAULT_ACCOUNT
from protocol.errors import FrameError
from protocol.limits import (
    DROP_AT_ONCE_MAX,
    ROUTE_LINE_BYTES_MAX,
    STALL_MS,
    SUBJECT_TOKENS_MAX,
)
from protocol.publish import AckForm

_SEEDS: Final = 2**32 - 1

__all__ = ["PROTOCOL_VERSION", "Hooks", "Plane", "PlaneOptions"]


class Plane:
    """All sessions of one gateway worker. `choose(n)` picks 0..n-1: timer jitter, and where queue choices begin."""

    def __init__(
        self, options: PlaneOptions, hooks: Hooks, choose: Callable[[int], int], engine: Engine = BEST
    ) -> None:
        self.options = options
        self.engine = engine
        self.sessions: dict[int, Session] = {}
        names = (DEFAULT_ACCOUNT, *options.accounts, *(entry.account for entry in options.users))
        self.accounts: dict[str, Account] = {name: engine.account(name) for name in dict.fromkeys(names)}
        self._hooks = hooks
        self._directory = _directory(options)
        self._liveness = Liveness(self.sessions, choose)
        self._liveness.go_by(options)
        self._now_ms = 0
        self._verifications: list[Session] = []
        self._leaving: deque[Session] = deque()
        self._peers_connected = 0
        self.connect_urls: tuple[str, ...] = ()
        self.port = options.port
        self._stall_bytes = options.max_pending_bytes // 2
        self.forwarder = engine.forwarder(self, 1 + choose(_SEEDS), self._stall_bytes)
        self._has_peers = options.id_step > 1 or options.has_gateways or bool(options.zones)
        asks = options.max_subscriptions > 0 or options.max_subscription_tokens < SUBJECT_TOKENS_MAX
        self.forwarder.asks_to_subscribe = asks or self._has_peers
        self.forwarder.tells_peers = self._has_peers and not asks
        self.peers = Peers(
            self.forwarder,
            engine,
            self.accounts,
            self.account,
            name=options.peer_name,
            expected=self._has_peers,
            broadcasts=options.broadcasts,
            zone=options.zone,
            has_borders=bool(options.zones),
        )
        self.stats = self.forwarder.stats
        self._actions: dict[type, Callable[[Session, Any], None]] = {
            nats.Subscribe: self._subscribe,
            nats.Unsubscribe: self._unsubscribe,
            nats.Ping: self._ping,
            nats.Pong: self._pong,
            nats.Connect: self._connect,
            nats.Complaint: self._complain,
            nats.Failure: self._fail,
            routes.Interest: self._learn,
            routes.Table: self.peers.begin,
            routes.Digest: self.peers.check,
            routes.Again: self.peers.again,
            routes.Piece: self.peers.take_piece,
        }

    # -- connections --------------------------------------------------------------------------------------------------

    def listening(self, port: int) -> None:
        """The port that INFO names, where 0 was configured."""
        self.port = port

    def connect(self, client_ip: str, client_port: int, now_ms: int) -> Session:
        """A client has connected; INFO stands in its output. Above `max_connections` it is already closing."""
        options, self._now_ms = self.options, now_ms
        self.stats.total_connections += 1
        parser = self.engine.parser(options.max_payload_bytes, options.max_control_line_bytes)
        parser.expect_connect = self._directory.is_required
        account = self.accounts[DEFAULT_ACCOUNT]
        number = options.first_id + (self.stats.total_connections - 1) * options.id_step
        session = self.engine.session(number, client_ip, client_port, parser, account, now_ms)
        if self._directory.without_connect() is not None:
            parser.lets_in = lambda: self._lets_in(session)
        if self._directory.wants_signatures:
            session.nonce = urlsafe_b64encode(self._hooks.nonce()).rstrip(b"=").decode()
        self._send(session, nats.info_line(self._info(session, greets=True)))
        if len(self.sessions) >= options.max_connections:
            self.refuse(session, nats.CONNECTIONS_EXCEEDED, Closed.CONNECTIONS_EXCEEDED)
            self._hooks.session_closed(session)  # it never was one of `sessions`
            return session
        self.sessions[session.id] = session
        self.stats.connections += 1
        if not (options.tls_required or options.tls_available):
            self._liveness.opened(session, now_ms, self._directory.is_required)
        return session

    def secured(self, session: Session, encryption: Encryption | None, now_ms: int) -> None:
        """The handshake is over, or (None) the client goes on in plain text, as it may: its timers begin."""
        session.tls = encryption
        if session.closing is None:
            if encryption is not None and encryption.first and self.options.tls_available:
                session.take()  # who begins with the handshake is offered nothing else
                self._send(session, nats.info_line(self._info(session, greets=True) | {"tls_required": True}))
            self._liveness.opened(session, now_ms, self._directory.is_required)

    def reload(self, options: PlaneOptions, now_ms: int) -> None:
        """Go by other users, accounts and limits (`reloading.CHANGEABLE`) from now on, for those that are there too."""
        self.options, self._now_ms = options, now_ms
        for name in (*options.accounts, *(entry.account for entry in options.users)):
            self.account(name)
        before, self._directory = self._directory, _directory(options, self._directory)
        self._liveness.go_by(options)
        Recheck(self, self._directory).all()
        self.forwarder.invalidate(before.permissions_gone(self._directory))

    def connect_peer(
        self,
        name: str,
        now_ms: int,
        *,
        near: bool,
        zone: str = "",
        scope: Scope = Scope.HERE,
        write: Callable[[Session, bytes], None] | None = None,
        pieces: Callable[[routes.Piece], None] | None = None,
        ip: str = "",
        port: int = 0,
    ) -> Session:
        """A link to a peer is up; what it has to know first stands in its output. Its id is below 0.

        `zone`, `scope`: as in `Session`. `write`, `pieces`: as in `gateway.core.peers.Link`.

        `near`: it is a worker of the same gateway, so members of queue groups there are like those here; of other
        gateways they get only what nobody here can. A peer may have clients already that have asked for something:
        until it has told all that, it is taken to want everything, so that nothing is missed and nobody is told that
        there are no responders. Where messages are broadcast another gateway is sent everything afterwards, too; what
        it wants says then where queue groups have members, and whether anybody answers.
        """
        options = self.options
        parser = routes.RouteParser(options.max_payload_bytes, ROUTE_LINE_BYTES_MAX, takes_pieces=pieces is not None)
        self._peers_connected += 1
        session = self.engine.session(-self._peers_connected, ip, port, parser, self.accounts[DEFAULT_ACCOUNT], now_ms)
        session.peer, session.near, session.connected = name, near, True
        session.zone, session.scope = zone, scope
        session.options = nats.ConnectOptions(verbose=False, pedantic=False, headers=True, name=name)
        self.peers.add(session, partial(write, session) if write is not None else None, pieces)
        return session

    def ping_peer(self, peer: Session, now_ms: int) -> None:
        """See that it is there, and how long an answer takes; not while another PING of ours waits for one."""
        if not self.peers.awaits(peer):
            peer.pings_out, peer.ping_sent_ms = 1, now_ms
            self.peers.ping(peer)

    def tell_peers(self) -> None:
        """What has changed in what our clients want."""
        self.peers.flush()

    def account(self, name: str) -> Account:
        """The account of that name; a new one if there is none yet."""
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = self.engine.account(name)
        return account

    def receive(self, session: Session, data: bytes | bytearray | memoryview, now_ms: int) -> bool:
        """Act on what `session` has sent; whether it is to be called again soon, with b"", for more of the same.

        With `data` b"": on what was left then, or when the session was paused or being verified.
        """
        self._now_ms = now_ms
        return self.forwarder.receive(session, data, now_ms)

    def tick(self, now_ms: int) -> None:
        """Send due PINGs, close what is stale or not authenticated in time. As often as timers should be exact."""
        self._now_ms = now_ms
        self.peers.flush()
        self._answer_pings(self.peers.overdue(now_ms))
        for session, due in self._liveness.due(now_ms):
            if due is Due.PING:
                self._send(session, nats.PING)
            elif due is Due.STALE:
                self.stats.stale_connections += 1
                self.refuse(session, nats.STALE_CONNECTION, Closed.STALE)
            else:
                self.refuse(session, nats.AUTHENTICATION_TIMEOUT, Closed.AUTHENTICATION_TIMEOUT)

    def close(self, session: Session, reason: Closed, *, flushes: bool = True, detail: str = "") -> None:
        """Give the connection up; the shell sends its output (unless not `flushes`) and closes the socket."""
        if session.closing is not None:
            return
        session.closing, session.closing_detail, session.flushes = reason, detail, flushes
        if len(session.subscriptions) <= DROP_AT_ONCE_MAX:
            self._drop_subscriptions(session)
        else:
            self._leaving.append(session)
        if not flushes:
            session.take()
        if reason in (Closed.SLOW_PENDING, Closed.SLOW_DEADLINE):
            self.stats.slow_consumers += 1
        self._touch(session)

    def disconnect(self, session: Session) -> None:
        """The socket is gone."""
        self.close(session, Closed.CLIENT, flushes=False)
        if session.peer:
            self._answer_pings(self.peers.remove(session))
            return
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

    def set_connect_urls(self, urls: tuple[str, ...]) -> None:
        """Where clients can connect, `host:port`: they are told now, if it is news, and whenever they connect."""
        if urls != self.connect_urls:
            self.connect_urls = urls
            self._tell_clients({})

    def lame_duck(self) -> None:
        """Tell all clients that this gateway retires; one that has not been greeted yet is not told."""
        self._tell_clients({"ldm": True})

    def _tell_clients(self, news: dict[str, Any]) -> None:
        for session in self.sessions.values():
            if session.info_sent and session.options.protocol >= nats.CLIENT_PROTOCOL_MAX and session.closing is None:
                self._send(session, nats.info_line(self._info(session) | news))

    def take_dirty(self) -> list[Session]:
        """The sessions that have output, are closing, or were paused or resumed since the last call."""
        if self.forwarder.interest_waits:
            self.peers.flush()
        return self.forwarder.take_dirty()

    def routes_changed(self, *, keeps_events: bool = True, keeps_log: bool = True) -> None:
        """Other subjects are kept than before, or none at all; and in a log, or in memory alone."""
        self.forwarder.keeps_events, self.forwarder.keeps_log = keeps_events, keeps_log
        self.forwarder.invalidate()

    # -- messages of the mesh itself ----------------------------------------------------------------------------------

    def publish(self, subject: str, reply: str, header_block: bytes, payload: bytes, account: str = "") -> int:
        """Route a message of our own, like a PubAck: as any publish, but never captured. How many got it."""
        space = self.accounts[account or DEFAULT_ACCOUNT]
        wire = subjects.encode(subject), subjects.encode(reply)
        return self.forwarder.route(space, None, *wire, header_block, payload)

    def answer(self, account: str, replies: Replies, form: AckForm, base_offset: int) -> None:
        """`publish` a PubAck of `form` to each of `replies`: event `number` stands at `base_offset` + `number`."""
        self.forwarder.answer(self.accounts[account or DEFAULT_ACCOUNT], replies, form, base_offset)

    def deliver(self, session: Session, route: str, show: str, reply: str, header_block: bytes, payload: bytes) -> int:
        """To those subscriptions of `session` that match `route`, showing `show` as the subject. How many got it."""
        wire = subjects.encode(show), subjects.encode(reply)
        return self.forwarder.deliver(self._own_receivers(session, route), *wire, header_block, payload)

    def receivers(self, session: Session, route: str) -> list[Subscription]:
        """The subscriptions of `session` that `deliver` would deliver to."""
        return self._own_receivers(session, route)

    def hand_over(self, subscription: Subscription, frames: bytes, count: int, size_bytes: int) -> int:
        """`count` whole messages for a receiver, which carry `size_bytes` of headers and payloads. How many it got."""
        return self.forwarder.hand_over(subscription, frames, count, size_bytes)

    def has_interest(self, session: Session, route: str) -> bool:
        """Whether `session` has a subscription that matches `route`."""
        return bool(self._own_receivers(session, route))

    def watch(self, session: Session, subject: str, lost: Callable[[], object]) -> Watch:
        """Calls `lost` once, when no subscription of `session` matches the literal `subject` any more."""
        watch = Watch(session.account, session, subject, lost)
        session.account.watches.setdefault(subject, []).append(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """`watch` need not be called any more."""
        watches = watch.account.watches
        if watch in watches.get(watch.subject, ()):
            watches[watch.subject].remove(watch)
            if not watches[watch.subject]:
                del watches[watch.subject]

    def no_responders(self, session: Session, reply: str, subject: str = "") -> None:
        """Tell a requester that nobody answers `subject`, if it asked for that. Not counted against a maximum."""
        if not session.options.no_responders:
            return
        for subscription in session.account.sublist.match(reply).plain:
            if subscription.session is session and not subscription.closed:
                block = headers.no_responders(subjects.encode(subject)) if subject else headers.build(status=503)
                tail = nats.header_message_tail(b"", block, b"")
                self._send(session, b"HMSG %b %b%b" % (subjects.encode(reply), subscription.sid, tail))
                return

    def _own_receivers(self, session: Session, route: str) -> list[Subscription]:
        result = session.account.sublist.match(route)
        own = [subscription for subscription in result.plain if subscription.session is session]
        for group in result.queues:
            own += [subscription for subscription in group if subscription.session is session][:1]
        return own

    # -- what the forwarder asks for (gateway.core.forwarding.Policy) --------------------------------------------------

    def kind(self, session: Session, subject: str) -> int:
        kind = 0 if session.permissions.may_publish(subject) else Kind.DENIED
        first = subject.partition(".")[0] if subject[:1] == "$" else ""
        if first in subjects.SYSTEM_TOKENS:
            return kind | Kind.SYSTEM | (Kind.DENIED if first in subjects.NODE_TOKENS else 0)
        if subjects.is_captured(subject) and _is_routable(subject):
            account = session.account.name
            kind |= Kind.KEPT if self._hooks.keeps(account, subject) else 0
            kind |= Kind.GOVERNED if self._hooks.governs(account, subject) else 0
        return kind

    def lane(self, session: Session, subject: str) -> tuple[Lane, bytes] | None:
        return self._hooks.lane(session.account.name, subject)

    def wall_ms(self) -> int:
        return self._hooks.wall_ms()

    def kept(self) -> None:
        self._hooks.kept()

    def act(self, session: Session, event: nats.Event) -> None:
        self._actions[type(event)](session, event)

    def subscribed(self, subscription: Subscription) -> None:
        subscription.session.interest_mark = self.peers.tell(subscription, 1)

    def special(self, session: Session, event: nats.Publish, kind: int) -> None:
        wire_subject, wire_reply, header_block, payload = event
        subject, reply = subjects.decode(wire_subject), subjects.decode(wire_reply)
        if kind & Kind.DENIED and not session.may_answer(wire_subject, self._now_ms):
            self._send(session, nats.error_line(nats.publish_violation(subject)))
            self._hooks.refused(session, f"publish to {subject}")
            return
        if session.options.verbose:
            self._send(session, nats.OK)
        if kind & Kind.SYSTEM:
            self._hooks.service(session, subject, reply, header_block, payload)
            return
        if kind & Kind.GOVERNED and not self._hooks.admits(session, subject, reply, header_block, payload):
            return
        receivers = self.forwarder.route(session.account, session, wire_subject, wire_reply, header_block, payload)
        answered = kind & Kind.KEPT and self._hooks.capture(session, subject, reply, header_block, payload)
        if receivers == 0 and reply and not answered:
            self.no_responders(session, reply, subject)

    def unanswered(self, session: Session, reply: str, subject: str) -> None:
        self.no_responders(session, reply, subject)

    def exhausted(self, subscription: Subscription) -> None:
        self._drop(subscription)

    def falls_behind(self, session: Session, sender: Session | None) -> None:
        pending_bytes = session.pending_bytes
        if pending_bytes <= self._stall_bytes:
            return
        if pending_bytes > self.options.max_pending_bytes and not session.peer:
            detail = f"{pending_bytes} B pending, {self.options.max_pending_bytes} B allowed"
            self.close(session, Closed.SLOW_PENDING, flushes=False, detail=detail)
        elif sender is not None and not session.zone and not sender.stall_ms and (not sender.peer or sender.near):
            sender.stall_ms = STALL_MS
            self.stats.stalled_clients += 1

    # -- subscriptions ------------------------------------------------------------------------------------------------

    def _subscribe(self, session: Session, event: nats.Subscribe) -> None:
        session.last_heard_ms = session.last_activity_ms = self._now_ms
        pattern, queue = subjects.decode(event.subject), subjects.decode(event.queue)
        problem = self._subscription_problem(session, pattern, queue, event.sid)
        if problem is not None:
            self._send(session, nats.error_line(problem))
            return
        if event.sid not in session.subscriptions:
            subscription = self.engine.subscription(session, pattern, queue, event.sid)
            session.subscriptions[event.sid] = subscription
            self.forwarder.insert(subscription)
            self.stats.subscriptions += 1
            self.subscribed(subscription)
        if session.options.verbose:
            self._send(session, nats.OK)

    def _subscription_problem(self, session: Session, pattern: str, queue: str, sid: bytes) -> str | None:
        if not session.may_subscribe(pattern, queue):
            self._hooks.refused(session, f"subscribe to {pattern} {queue}".rstrip())
            return nats.subscription_violation(pattern, queue)
        if pattern.count(".") >= self.options.max_subscription_tokens:
            return nats.too_many_tokens(pattern)
        if 0 < self.options.max_subscriptions <= len(session.subscriptions):
            return nats.SUBSCRIPTIONS_EXCEEDED
        if sid not in session.subscriptions and not subjects.is_valid_pattern(pattern):
            return nats.INVALID_SUBJECT
        return None

    def _unsubscribe(self, session: Session, event: nats.Unsubscribe) -> None:
        session.last_heard_ms = session.last_activity_ms = self._now_ms
        if session.options.verbose:
            self._send(session, nats.OK)
        subscription = session.subscriptions.get(event.sid)
        if subscription is not None:
            if event.max_messages > subscription.received:
                subscription.max_messages = event.max_messages
            else:
                self._drop(subscription)

    def _drop(self, subscription: Subscription) -> None:
        session = subscription.session
        del session.subscriptions[subscription.sid]
        if session.peer:
            self.peers.changed(subscription, -subscription.weight)
            self.forwarder.remove(subscription)
            return
        self.forwarder.remove(subscription)
        self.stats.subscriptions -= 1
        self.peers.tell(subscription, -1)
        if session.account.watches:
            self._tell_watchers(session, subscription.pattern)

    def end(self, subscription: Subscription, why: str) -> None:
        """The client may have it no longer, and is told so."""
        session = subscription.session
        self._drop(subscription)
        self._send(session, nats.error_line(why))
        self._hooks.refused(session, f"subscribe to {subscription.pattern} {subscription.queue}".rstrip())

    def _tell_watchers(self, session: Session, pattern: str) -> None:
        watches = session.account.watches
        subjects_lost = [pattern] if pattern in watches else [s for s in watches if subjects.matches(pattern, s)]
        for subject in subjects_lost:
            for watch in list(watches.get(subject, ())):
                if watch not in watches.get(subject, ()):  # told, or taken back, because of one before it
                    continue
                if watch.session is session and not self.has_interest(watch.session, subject):
                    self.unwatch(watch)
                    watch.lost()

    @property
    def has_more(self) -> bool:
        """Whether something long is under way that goes on turn by turn: `do_more` is due.

        Closed sessions with very many subscriptions to forget, or peers that are told very many.
        """
        return bool(self._leaving) or self.peers.has_rest

    def do_more(self) -> None:
        """A part of that."""
        self.peers.tell_rest()
        if self._leaving:
            self._drop_some()

    def _drop_some(self) -> None:
        """Nothing is delivered to those anyway."""
        session = self._leaving[0]
        for subscription in list(islice(session.subscriptions.values(), DROP_AT_ONCE_MAX)):
            self._drop(subscription)
        if not session.subscriptions:
            self._leaving.popleft()

    def _drop_subscriptions(self, session: Session) -> None:
        for subscription in list(session.subscriptions.values()):
            if not subscription.closed:  # by what a watcher did meanwhile
                self._drop(subscription)

    # -- the connection itself ----------------------------------------------------------------------------------------

    def _connect(self, session: Session, event: nats.Connect) -> None:
        if session.peer:
            self._check_version(session, event)
            return
        try:
            session.options = nats.read_connect(event.argument, session.options)
        except FrameError as error:
            self.close(session, Closed.PROTOCOL_VIOLATION, detail=str(error))
            return
        if session.connected:
            self._drop_subscriptions(session)  # they were another user's
            self._hooks.session_renewed(session)
        if not self._directory.is_required:
            self._admit(session, None)
            return
        self._authenticate(session)

    def _authenticate(self, session: Session) -> None:
        found = self._directory.check(self.credentials(session))
        if isinstance(found, Verification):
            self.verify(session, found)
        else:
            self._decide(session, found)

    def credentials(self, session: Session) -> Credentials:
        """What the client has presented."""
        options = session.options
        return Credentials(
            user=options.user,
            password=options.password,
            token=options.token,
            nkey=options.nkey,
            signature=options.signature,
            nonce=session.nonce,
            certificate=session.tls.certificate if isinstance(session.tls, Encryption) else None,
        )

    def verify(self, session: Session, verification: Verification) -> None:
        """Have it run; until then nothing of what the client sends is acted on."""
        session.verifying = verification
        self._verifications.append(session)
        self._touch(session)

    def _check_version(self, peer: Session, event: nats.Connect) -> None:
        problem = routes.check_connect(event.argument)
        if problem:
            self.close(peer, Closed.PROTOCOL_VIOLATION, detail=problem)

    def take_verifications(self) -> list[Session]:
        """Sessions whose `verifying` somebody has to run (bcrypt, slow) and to answer by `verified`."""
        taken, self._verifications = self._verifications, []
        return taken

    def verified(self, session: Session, entry: UserEntry | None, now_ms: int) -> None:
        """The verdict on `session.verifying`: who it is, or None. What the client has sent since is acted on."""
        self._now_ms = now_ms
        verification = session.verifying
        if session.closing is not None or verification is None:
            return
        session.verifying = None
        if entry is not None and entry not in self._directory:  # the users have changed meanwhile
            self._authenticate(session)
        elif verification.renews:
            Recheck(self, self._directory).decide(session, entry)
        else:
            self._decide(session, entry)
        self._touch(session)
        self.receive(session, b"", now_ms)

    def _decide(self, session: Session, entry: UserEntry | None) -> None:
        if entry is None:
            self.refuse(session, nats.AUTHORIZATION_VIOLATION, Closed.AUTHENTICATION_FAILURE)
        else:
            self._admit(session, entry)

    def _admit(self, session: Session, entry: UserEntry | None) -> None:
        options = session.options
        if entry is not None:
            self.identify(session, entry)
        if options.account or options.new_account:  # naming an account here is long gone, and an error
            self.refuse(session, nats.AUTHORIZATION_VIOLATION, Closed.AUTHENTICATION_FAILURE)
            return
        session.connected = True
        session.parser.expect_connect, session.parser.lets_in = False, None
        session.parser.headers = options.headers
        session.parser.pedantic = options.pedantic
        self._liveness.connected(session, self._now_ms)
        if not 0 <= options.protocol <= nats.CLIENT_PROTOCOL_MAX:
            self.refuse(session, nats.INVALID_CLIENT_PROTOCOL, Closed.BAD_CLIENT_PROTOCOL)
        elif options.no_responders and not options.headers:
            self.refuse(session, nats.NO_RESPONDERS_REQUIRES_HEADERS, Closed.NO_RESPONDERS_REQUIRES_HEADERS)
        else:
            self._hooks.session_admitted(session)
            if options.verbose:
                self._send(session, nats.OK)

    def identify(self, session: Session, entry: UserEntry) -> None:
        """The client is that user."""
        session.entry, session.user = entry, entry.user or entry.nkey or ""
        session.account = self.accounts[entry.account]
        session.permissions = self._directory.permissions(entry)
        rule = session.permissions.responses
        session.answerable = None if rule is None else AnswerableReplies(rule)

    def _lets_in(self, session: Session) -> bool:
        """The client begins without CONNECT: whether `no_auth_user` lets it, as it does with telnet."""
        entry = self._directory.without_connect()
        if entry is None:
            return False
        self.identify(session, entry)
        session.connected, session.auth_due_ms = True, NEVER_MS
        session.parser.expect_connect, session.parser.lets_in = False, None
        self._hooks.session_admitted(session)
        return True

    def _ping(self, session: Session, event: nats.Ping) -> None:
        session.last_heard_ms = self._now_ms
        if session.peer:
            self.peers.answer(session)
        elif not self.peers.hold(session, self._now_ms):
            self._answer_pings([session])

    def _answer_pings(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            if session.closing is not None:
                continue
            self._send(session, nats.PONG)
            if session.connected and not session.info_sent:
                session.info_sent = True
                if session.options.protocol >= nats.CLIENT_PROTOCOL_MAX:
                    known = {"connect_info": True, "remote_account": session.account.name}
                    self._send(session, nats.info_line(self._info(session) | known))

    def _pong(self, session: Session, event: nats.Pong) -> None:
        if session.peer:
            if session.pings_out:
                self._liveness.heard(session, self._now_ms)
            self._answer_pings(self.peers.confirmed(session))
        else:
            self._liveness.heard(session, self._now_ms)

    def _learn(self, peer: Session, event: routes.Interest) -> None:
        peer.last_activity_ms = self._now_ms
        self.peers.learn(peer, event)

    def _complain(self, session: Session, event: nats.Complaint) -> None:
        self._send(session, nats.error_line(event.text))

    def _fail(self, session: Session, event: nats.Failure) -> None:
        reason = _REASONS.get(event.text or "", Closed.PROTOCOL_VIOLATION)
        if event.text is None:
            self.close(session, reason, detail=event.detail)
        else:
            self.refuse(session, event.text, reason, event.detail)

    def refuse(self, session: Session, text: str, reason: Closed, detail: str = "") -> None:
        """Tell the client why, and close."""
        self._send(session, nats.error_line(text))
        self.close(session, reason, detail=detail)

    def _send(self, session: Session, line: bytes) -> None:
        self.forwarder.write(session, line)

    def _touch(self, session: Session) -> None:
        self.forwarder.touch(session)

    def _info(self, session: Session, *, greets: bool = False) -> dict[str, Any]:
        urls = self.connect_urls
        return info(self.options, self._directory, session, port=self.port, connect_urls=urls, greets=greets)


_REASONS = {
    nats.AUTHORIZATION_VIOLATION: Closed.AUTHENTICATION_FAILURE,
    nats.PAYLOAD_VIOLATION: Closed.PAYLOAD_EXCEEDED,
    nats.CONTROL_LINE_EXCEEDED: Closed.CONTROL_LINE_EXCEEDED,
}


def _directory(options: PlaneOptions, before: Directory | None = None) -> Directory:
    return Directory(options.users, options.no_auth_user, maps_certificates=options.maps_certificates, before=before)


def _is_routable(subject: str) -> bool:
    """Whether any pattern can match `subject`: one with an empty token reaches nobody, not even the log."""
    return bool(subject) and subject[0] != "." and subject[-1] != "." and ".." not in subject
