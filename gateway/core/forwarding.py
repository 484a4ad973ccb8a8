"""The forwarder: from what a client sends to the output of everybody who gets it. The reference of the compiled twin.

    bytes ─► ClientParser ─► event ─┬─ publish ─► route plan ─┬─ ordinary ─► output of every receiver
                                    │                         └─ special ──► policy.special
                                    └─ anything else ──────────────────────► policy.act

A *route plan* says everything about a subject that does not change from message to message: whether it is special (not
permitted, a system subject, kept by a stream) and who gets it, permissions considered. It is made once for each account
and set of permissions, kept in a cache that is bounded in entries and bytes, and holds until a subscription is added or
removed: a plan remembers the generation that it was made in, so that nothing has to be searched when that moves on.

The twin does the ordinary case (a plain PUB or HPUB, complete in what was read) in place and without Python objects, a
plain SUB or UNSUB without asking where nothing is limited, and hands everything else to the same parser and the same
policy. What it does must be what is written here.

Peers are other workers or gateways: what they want stands in the same sublist, under sessions with a `peer` name. To
each goes a message once, however many want it there, and it names the queue groups whose member is to be found there.
All members of a group behind workers of the same gateway (`near`) have the same chance, as with one server; other
gateways of the zone are asked only where nobody here can have it, and other zones (`Session.zone`) where nobody of the
zone can. What comes from a peer goes on where it has not been yet (`Session.scope`). A peer that is sent everything,
wanted there or not, has a subscription of weight 0: it gets a message like others, but is not counted among those who
got it, since nobody may be there. What our own clients want peers hear before the next message: it may be a request,
and its answer wanted.

An event that a stream keeps, and that asks nothing more of the log, goes to everybody who gets it and into a lane
(`gateway.core.lanes`), which the plan names; what the lane does not take is special. When such events are in the log,
`answer` tells those who wait for it.

Fairness: one call of `receive` stops after `TURN_BYTES_MAX` bytes of work and says that there is more; the parser
(here) or the session (in the twin) keeps the rest. What is copied counts by its size, what Python acts on as
`TURN_EVENT_BYTES`.

Queue groups: the member is picked by a xorshift generator (Marsaglia, 'Xorshift RNGs', 2003), the same in both twins.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol

from gateway.core.identity import Permissions
from gateway.core.lanes import Lane, Replies
from gateway.core.session import Account, Scope, Session, Subscription
from gateway.core.sublist import Result
from protocol import nats, publish, routes, subjects
from protocol.limits import (
    MAX_PENDING_BYTES,
    ROUTE_PLAN_BYTES_MAX,
    ROUTE_PLANS_MAX,
    TURN_BYTES_MAX,
    TURN_EVENT_BYTES,
)
from protocol.publish import AckForm

__all__ = ["Account", "Forwarder", "Kind", "Plan", "Plans", "Policy", "Session", "Stats", "Subscription"]

_MASK = 0xFFFF_FFFF


class Kind:
    """What makes a subject special for a publisher, as bits. 0 is an ordinary one. `&` of an `IntFlag` takes 1 µs."""

    DENIED = 1
    SYSTEM = 2
    KEPT = 4
    GOVERNED = 8  # by a contract


class Stats:
    """Counters under nats-server's `/varz` names; payload and header bytes, not frames."""

    def __init__(self) -> None:
        self.in_msgs = 0
        self.out_msgs = 0
        self.in_bytes = 0
        self.out_bytes = 0
        self.unkept_msgs = 0  # events that no log takes
        self.unkept_bytes = 0
        self.slow_consumers = 0
        self.stale_connections = 0
        self.stalled_clients = 0
        self.connections = 0
        self.total_connections = 0
        self.subscriptions = 0
        self.dropped_for_peers = 0


class Policy(Protocol):
    """What the forwarder asks for. Calls come in the middle of a read."""

    def kind(self, session: Session, subject: str) -> int:
        """What is special about `subject` when `session` publishes to it."""

    def lane(self, session: Session, subject: str) -> tuple[Lane, bytes] | None:
        """The lane for events on a subject that is kept and nothing else, and their key."""

    def wall_ms(self) -> int:
        """The time for events of this read."""

    def kept(self) -> None:
        """Lanes have taken something in this read."""

    def account(self, name: str) -> Account:
        """The account of that name."""

    def act(self, session: Session, event: nats.Event) -> None:
        """Anything but a publish."""

    def subscribed(self, subscription: Subscription) -> None:
        """An ordinary SUB was acted on while `Forwarder.tells_peers`."""

    def special(self, session: Session, event: nats.Publish, kind: int) -> None:
        """A publish to a special subject; it is counted already."""

    def unanswered(self, session: Session, reply: str, subject: str) -> None:
        """Nobody got a message with a reply subject."""

    def exhausted(self, subscription: Subscription) -> None:
        """It has got as many messages as it asked for."""

    def tell_peers(self) -> None:
        """A message goes to a peer while `Forwarder.interest_waits`."""

    def falls_behind(self, session: Session, sender: Session | None) -> None:
        """More than `stall_bytes` wait for `session`, as far as one can tell without measuring."""


class Group(NamedTuple):
    """The members of one queue group among those who get a message.

    Each tuple with weights: our own clients and workers of the same gateway, other gateways of the zone, other zones.
    """

    queue: str
    members: tuple[Subscription, ...]
    far: tuple[Subscription, ...]
    beyond: tuple[Subscription, ...] = ()


class Receivers(NamedTuple):
    """Who gets a message: clients, one of each group, and peers.

    `peers`: those where somebody is subscribed plainly. `uncounted`: those that are sent it though nobody may be.
    """

    plain: tuple[Subscription, ...]
    groups: tuple[Group, ...]
    peers: tuple[Session, ...]
    uncounted: tuple[Session, ...] = ()

    @classmethod
    def of(cls, result: Result[Subscription], sender: Session | None = None) -> "Receivers":
        """Those of `result` that a message of `sender` may go to."""
        reached = [each for each in result.plain if _reaches(sender, each.session)]
        routed = [subscription for subscription in reached if subscription.session.peer]
        peers = dict.fromkeys(subscription.session for subscription in routed if subscription.weight)
        uncounted = dict.fromkeys(each.session for each in routed if each.session not in peers)
        plain = tuple(subscription for subscription in reached if not subscription.session.peer)
        return cls(plain, tuple(_groups(result, sender)), tuple(peers), tuple(uncounted))


def _reaches(sender: Session | None, receiver: Session) -> bool:
    """Whether a message of `sender` (None: one of our own) may go to `receiver`."""
    scope = Scope.ANYWHERE if sender is None else sender.scope
    if scope == Scope.ANYWHERE:
        return not receiver.spare
    if scope == Scope.HERE:
        return not receiver.peer
    if scope == Scope.ZONE:
        return not receiver.zone
    return sender is not None and receiver.scope == Scope.ZONE and receiver.zone == sender.zone


def _groups(result: Result[Subscription], sender: Session | None) -> Iterator[Group]:
    for entries in result.queues:
        members = [member for member in entries if _reaches(sender, member.session)]
        own = tuple(member for member in members if not member.session.peer)
        near = tuple(member for member in members if member.session.peer and member.session.near)
        routed = [member for member in members if member.session.peer and not member.session.near]
        far = tuple(member for member in routed if not member.session.zone)
        beyond = tuple(member for member in routed if member.session.zone)
        if members:
            yield Group(entries[0].queue, own + near, far, beyond)


class Plan(NamedTuple):
    """What holds for every message on one subject; see the top of this module."""

    kind: int
    receivers: Receivers
    generation: int
    lane: tuple[Lane, bytes] | None = None
    is_unkept: bool = False  # an event on it is in no log


class Plans:
    """The route plans of one account for one set of permissions."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._plans: dict[bytes, Plan] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._plans)

    def find(self, subject: bytes, generation: int) -> Plan | None:
        plan = self._plans.get(subject)
        return plan if plan is not None and plan.generation == generation else None

    def keep(self, subject: bytes, plan: Plan) -> None:
        plain, groups, peers, uncounted = plan.receivers
        count = len(plain) + len(peers) + len(uncounted)
        count += sum(len(group.members) + len(group.far) + len(group.beyond) for group in groups)
        size_bytes = len(subject) + 8 * count
        if len(self._plans) >= ROUTE_PLANS_MAX or self._bytes + size_bytes > ROUTE_PLAN_BYTES_MAX:
            self.clear()
        if size_bytes <= ROUTE_PLAN_BYTES_MAX:
            self._plans[subject] = plan
            self._bytes += size_bytes

    def clear(self) -> None:
        self._plans, self._bytes = {}, 0


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
            session.write(b"HMSG %b %b%b" % (self.subject, subscription.sid, self._headed_tail))
            return len(self.header_block) + len(self.payload)
        if not self._plain_tail:
            self._plain_tail = nats.message_tail(self.reply, self.payload)
        session.write(b"MSG %b %b%b" % (self.subject, subscription.sid, self._plain_tail))
        return len(self.payload)


class Forwarder:
    """All messages of one gateway worker. `seed` (not 0) begins the choice of queue members."""

    def __init__(self, policy: Policy, seed: int, stall_bytes: int = MAX_PENDING_BYTES) -> None:
        self.stats = Stats()
        self.keeps_events = True  # False: no subject is `Kind.KEPT`, and the policy need not be asked
        self.keeps_log = True  # False: what is `Kind.KEPT` is in no log
        self.asks_to_subscribe = False  # True: the policy acts on every SUB and UNSUB, however ordinary
        self.tells_peers = False  # True: of an ordinary SUB it suffices that the policy is told
        self.interest_waits = False  # peers have to hear what our clients want before they get another message
        self._policy = policy
        self._stall_bytes = stall_bytes
        self._random = seed & _MASK or 1
        self.dirty: list[Session] = []  # what `take_dirty` takes
        self._plans: dict[tuple[Account, Permissions, Scope, str], Plans] = {}
        self._epoch = 0
        self._now_ms = 0
        self._turn_bytes = 0
        self._wall_ms: int | None = None  # of this read, once it was asked for
        self._keeps = False  # lanes have taken something in this read

    # -- sessions -----------------------------------------------------------------------------------------------------

    def write(self, session: Session, line: bytes) -> None:
        """Something for the client of `session` that is not a message."""
        session.write(line)
        self.touch(session)

    def touch(self, session: Session) -> None:
        """The shell has to look at `session`."""
        if not session.dirty:
            session.dirty = True
            self.dirty.append(session)

    def take_dirty(self) -> list[Session]:
        """The sessions that were touched since the last call."""
        taken, self.dirty = self.dirty, []
        for session in taken:
            session.dirty = False
        return taken

    def receive(self, session: Session, data: bytes | bytearray | memoryview, now_ms: int) -> bool:
        """Act on what `session` has sent, with `data` b"" on what was left; whether it stopped for the others' sake."""
        self._now_ms = now_ms
        if session.closing is not None:
            return False
        self._turn_bytes, self._wall_ms = 0, None
        session.parser.receive(bytes(data))
        try:
            return self._proceed(session)
        finally:
            if self._keeps:
                self._keeps = False
                self._policy.kept()

    def _proceed(self, session: Session) -> bool:
        parser = session.parser
        while session.closing is None and session.verifying is None and not session.paused:
            if self._turn_bytes > TURN_BYTES_MAX:
                return True
            event = parser.next_event()
            if event is None:
                return False
            self._turn_bytes += TURN_EVENT_BYTES
            if isinstance(event, nats.Publish):
                self._publish(session, event)
            elif isinstance(event, routes.RouteMessage):
                self._arrive(session, event)
            else:
                self._policy.act(session, event)
        return False

    # -- subscriptions ------------------------------------------------------------------------------------------------

    def insert(self, subscription: Subscription) -> None:
        """Deliver to it from now on, in its account."""
        subscription.account.sublist.insert(subscription)

    def remove(self, subscription: Subscription) -> None:
        """Deliver nothing more to it."""
        subscription.closed = True
        subscription.account.sublist.remove(subscription)

    def invalidate(self, gone: Collection[Permissions] = ()) -> None:
        """Something else that plans depend on has changed, like what the log keeps; nobody has what is `gone`."""
        self._epoch += 1
        for key in [key for key in self._plans if key[1] in gone]:
            del self._plans[key]

    @property
    def plans_cached(self) -> int:
        """How many route plans are held at the moment, of all accounts and permissions."""
        return sum(map(len, self._plans.values()))

    # -- messages -----------------------------------------------------------------------------------------------------

    def route(
        self,
        account: Account,
        sender: Session | None,
        subject: bytes,
        reply: bytes,
        header_block: bytes,
        payload: bytes,
    ) -> int:
        """Deliver to all plain subscriptions of `account` and one member of each queue group. How many got it."""
        if sender is None:
            receivers = Receivers.of(account.sublist.match(subjects.decode(subject)))
        else:
            receivers = self._plan(sender, subject).receivers
        return self._send(receivers, account, sender, _Message(subject, reply, header_block, payload))

    def answer(self, account: Account, replies: Replies, form: AckForm, base_offset: int) -> None:
        """Route a PubAck to each who waits: event `number` stands at `base_offset` + `number`."""
        for number, reply in replies.items():
            self.route(account, None, reply, b"", b"", form.ack(base_offset + number))

    def deliver(
        self, receivers: list[Subscription], subject: bytes, reply: bytes, header_block: bytes, payload: bytes
    ) -> int:
        """To these subscriptions, whatever they are subscribed to, with `subject` shown. How many got it."""
        message = _Message(subject, reply, header_block, payload)
        return sum(self._put(subscription, message, None) for subscription in receivers)

    def hand_over(self, subscription: Subscription, frames: bytes, count: int, size_bytes: int) -> int:
        """`count` whole messages for one subscription, `size_bytes` of headers and payloads. How many it got."""
        session = subscription.session
        if not count or subscription.closed or session.closing is not None:
            return 0
        session.write(frames)
        session.out_msgs += count
        session.out_bytes += size_bytes
        session.last_activity_ms = self._now_ms
        self.stats.out_msgs += count
        self.stats.out_bytes += size_bytes
        subscription.received += count
        if subscription.received == subscription.max_messages:
            self._policy.exhausted(subscription)
        self.touch(session)
        if session.queued_bytes + session.unsent_bytes > self._stall_bytes:
            self._policy.falls_behind(session, None)
        return count

    def _publish(self, session: Session, event: nats.Publish) -> None:
        subject, reply, header_block, payload = event
        size_bytes = len(header_block) + len(payload)
        session.in_msgs += 1
        session.in_bytes += size_bytes
        session.last_heard_ms = session.last_activity_ms = self._now_ms
        self.stats.in_msgs += 1
        self.stats.in_bytes += size_bytes
        plan = self._plan(session, subject)
        if plan.is_unkept:
            self.stats.unkept_msgs += 1
            self.stats.unkept_bytes += size_bytes
        if plan.kind and (plan.lane is None or not self._keep(plan.lane, event)):
            self._policy.special(session, event, plan.kind)
            return
        if session.options.verbose:
            self.write(session, nats.OK)
        message = _Message(subject, reply, header_block, payload)
        receivers = self._send(plan.receivers, session.account, session, message)
        answered = plan.kind and plan.lane is not None and plan.lane[0].answers
        if receivers == 0 and reply and not answered:
            self._policy.unanswered(session, subjects.decode(reply), subjects.decode(subject))

    def _keep(self, way: tuple[Lane, bytes], event: nats.Publish) -> bool:
        """Whether the lane takes the event, so that nothing about it is special any more."""
        lane, key = way
        subject, reply, header_block, payload = event
        if lane.builder is None:
            return False
        if header_block and (not lane.takes_headers or publish.may_ask(header_block)):
            return False
        if self._wall_ms is None:
            self._wall_ms = self._policy.wall_ms()
        taken = lane.take(subject, key, self._wall_ms, header_block, payload, reply)
        self._keeps |= taken
        return taken

    def _plan(self, session: Session, wire_subject: bytes) -> Plan:
        account = session.account
        generation = account.sublist.generation + self._epoch
        plans = self._plans_of(session)
        plan = plans.find(wire_subject, generation)
        if plan is None:
            subject = subjects.decode(wire_subject)
            kind = self._policy.kind(session, subject)
            lane = self._policy.lane(session, subject) if kind == Kind.KEPT else None
            is_unkept = wire_subject[:1] not in (b"$", b"_") and kind in ((0,) if self.keeps_log else (0, Kind.KEPT))
            receivers = Receivers.of(account.sublist.match(subject), session)
            plan = Plan(kind, receivers, generation, lane, is_unkept)
            plans.keep(wire_subject, plan)
        return plan

    def _plans_of(self, session: Session) -> Plans:
        key = session.account, session.permissions, session.scope, session.zone
        plans = self._plans.get(key)
        if plans is None:
            plans = self._plans[key] = Plans(session.account)
        return plans

    def _arrive(self, peer: Session, event: routes.RouteMessage) -> None:
        """A message from a peer: to plain subscribers, and to one member of each group that it names, in its scope."""
        message = _Message(event.subject, event.reply, event.header_block, event.payload)
        peer.in_msgs += 1
        peer.in_bytes += len(event.header_block) + len(event.payload)
        peer.last_activity_ms = self._now_ms
        peer.account = self._policy.account(event.account.decode())
        receivers = self._plan(peer, event.subject).receivers
        named = frozenset(map(subjects.decode, event.queues))
        receivers = receivers._replace(groups=tuple(group for group in receivers.groups if group.queue in named))
        peer.unwanted_msgs += self._send(receivers, peer.account, peer, message) == 0

    def _send(self, receivers: Receivers, account: Account, sender: Session | None, message: _Message) -> int:
        silent = None if sender is None or sender.options.echo else sender
        count = 0
        for subscription in receivers.plain:
            if subscription.session is not silent:
                count += self._put(subscription, message, sender)
        named: dict[Session, list[bytes]] = {peer: [] for peer in receivers.peers + receivers.uncounted}
        for group in receivers.groups:
            chosen = self._choose(group.members, silent) or self._choose(group.far, silent)
            chosen = chosen or self._choose(group.beyond, silent)
            if chosen is None:
                continue
            if chosen.session.peer:
                named.setdefault(chosen.session, []).append(subjects.encode(group.queue))
            else:
                count += self._put(chosen, message, sender)
        for peer, queues in named.items():
            is_sent = self._put_route(peer, account, queues, message, sender)
            count += is_sent and (bool(queues) or peer not in receivers.uncounted)
        return count

    def _choose(self, members: tuple[Subscription, ...], silent: Session | None) -> Subscription | None:
        """One of `members`, picked by weight; if that cannot get the message, the next one that can."""
        if not members:
            return None
        at = self._pick(sum(member.weight for member in members))
        first = 0
        while at >= members[first].weight:
            at -= members[first].weight
            first += 1
        for subscription in members[first:] + members[:first]:
            session = subscription.session
            if session is not silent and session.closing is None and not subscription.closed:
                return subscription
        return None

    def _put_route(
        self, peer: Session, account: Account, queues: list[bytes], message: _Message, sender: Session | None
    ) -> bool:
        """To a peer, unless that is too far behind: then it is counted as dropped."""
        if peer.closing is not None:
            return False
        wire_account = account.name.encode()
        frame = routes.message(
            wire_account, message.subject, message.reply, queues, message.header_block, message.payload
        )
        self._turn_bytes += len(frame)
        if peer.queued_bytes + peer.unsent_bytes > self._stall_bytes:
            self._policy.falls_behind(peer, sender)
            if peer.queued_bytes + peer.unsent_bytes + len(frame) > 2 * self._stall_bytes:
                self.stats.dropped_for_peers += 1
                peer.dropped_msgs += 1
                return True
        if self.interest_waits:
            self._policy.tell_peers()
        peer.out_msgs += 1
        peer.out_bytes += len(message.header_block) + len(message.payload)
        peer.last_activity_ms = self._now_ms
        self.write(peer, frame)
        return True

    def _pick(self, count: int) -> int:
        if count == 1:
            return 0
        x = self._random
        x ^= x << 13 & _MASK
        x ^= x >> 17
        x ^= x << 5 & _MASK
        self._random = x
        return x % count

    def _put(self, subscription: Subscription, message: _Message, sender: Session | None) -> bool:
        session = subscription.session
        if subscription.closed or session.closing is not None:
            return False
        queued_bytes = session.queued_bytes
        size_bytes = message.put(subscription)
        self._turn_bytes += session.queued_bytes - queued_bytes
        session.out_msgs += 1
        session.out_bytes += size_bytes
        session.last_activity_ms = self._now_ms
        self.stats.out_msgs += 1
        self.stats.out_bytes += size_bytes
        subscription.received += 1
        if subscription.received == subscription.max_messages:
            self._policy.exhausted(subscription)
        if session.answerable is not None and message.reply:
            session.answerable.received(message.reply, self._now_ms)
        self.touch(session)
        if session.queued_bytes + session.unsent_bytes > self._stall_bytes:
            self._policy.falls_behind(session, sender)
        return True
