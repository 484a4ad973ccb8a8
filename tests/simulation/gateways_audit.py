"""What must hold for the clients of several gateways, whatever happens between those.

- An event crosses each border once at most, and only one of its own zone.

- Nobody gets an event twice, and of a queue group nobody gets one that another member has got.
- A subscription that a PONG has confirmed gets everything that is published from then on, anywhere, as long as the link
  stands on which it comes: also while ways are blocked and interest is lost.
- When all is mended: each gateway knows what the clients of all others want, and nothing else; an event reaches every
  subscriber and one member of each group, a local one if there is any, at whichever worker; who asks is told that there
  are no responders if, and only if, there are none.
"""

import re
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from gateway.core.session import Scope, Session
from protocol import subjects

if TYPE_CHECKING:
    from simulation.gateways import Gateway, Wire

_MESSAGE = re.compile(rb"MSG \S+ (\d+) (?:inbox\.\d+ )?\d+\r\n(\d+)\r\n")
_ROUTED = re.compile(rb"RMSG [^\r\n]+\r\n(\d+)\r\n")
_NOBODY = re.compile(rb"HMSG inbox\.(\d+) \d+ ")
INBOX = "inbox.*"
matches = cache(subjects.matches)  # there are few of either


class Client:
    """One client; `subscriptions` is sid → (pattern, queue), `confirmed` the sids that a PONG has confirmed."""

    def __init__(self, audit: "Audit", gateway: "Gateway", connect: bytes, now_ms: int) -> None:
        self.audit, self.gateway, self.plane = audit, gateway, gateway.plane
        self.session = self.plane.connect("10.0.0.1", 1, now_ms)
        self.subscriptions: dict[int, tuple[str, str]] = {0: (INBOX, "")}
        self.queues: dict[int, str] = {}  # of all that ever were
        self.confirmed: set[int] = set()
        self.is_here = True
        self._sid = 0
        self._pinged: deque[set[int]] = deque()
        self.say(connect + b"SUB inbox.* 0\r\n", now_ms)

    def say(self, lines: bytes, now_ms: int) -> None:
        while self.plane.receive(self.session, lines, now_ms):
            lines = b""
        self.hear(now_ms)

    def subscribe(self, pattern: str, queue: str) -> bytes:
        self._sid += 1
        self.subscriptions[self._sid], self.queues[self._sid] = (pattern, queue), queue
        return f"SUB {pattern} {queue} {self._sid}\r\n".encode()

    def unsubscribe(self, sid: int) -> bytes:
        del self.subscriptions[sid]
        self.confirmed.discard(sid)
        return b"UNSUB %d\r\n" % sid

    def ping(self) -> bytes:
        self._pinged.append(set(self.subscriptions))
        return b"PING\r\n"

    def hear(self, now_ms: int) -> None:
        data = self.session.take()
        for sid, number in _MESSAGE.findall(data):
            self.audit.delivered(self, int(sid), int(number))
        for number in _NOBODY.findall(data):
            self.audit.refused.add(int(number))
        for _ in range(data.count(b"PONG\r\n")):
            confirmed = (self._pinged.popleft() & self.subscriptions.keys()) - self.confirmed
            self.confirmed |= confirmed
            self.audit.just_confirmed += [(self, sid) for sid in sorted(confirmed)]
        if data.count(b"PING\r\n"):
            self.say(b"PONG\r\n", now_ms)

    def wants(self, subject: str) -> list[tuple[int, str]]:
        """(sid, queue) of what matches."""
        own = self.subscriptions.items()
        return [(sid, queue) for sid, (pattern, queue) in own if matches(pattern, subject)]


@dataclass
class Event:
    """`due`: who must get it, each with the link that it comes by (None: it is at the same gateway)."""

    number: int
    subject: str
    origin: "Gateway"
    is_quiet: bool
    due: "list[tuple[Client, int, Wire | None]]" = field(default_factory=list)
    groups: dict[str, list[Client]] = field(default_factory=dict)


class Audit:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.refused: set[int] = set()  # requests without responders
        self.counted: Counter[str] = Counter()
        self.just_confirmed: list[tuple[Client, int]] = []
        self._looked_at = 0
        self._has_prefixes = False
        self._got: set[tuple[Client, int, int]] = set()  # client, sid, event
        self._got_by_group: dict[tuple[str, int], Client] = {}
        self._crossed: set[tuple[int, str]] = set()  # event, to which zone

    def published(
        self, gateways: "dict[str, Gateway]", client: Client, subject: str, now_ms: int, *, is_quiet: bool = False
    ) -> None:
        event = Event(len(self.events), subject, client.gateway, is_quiet)
        self.events.append(event)
        for gateway in gateways.values():
            is_far = gateway.zone != client.gateway.zone
            wire = client.gateway.wires.get(gateway.name)
            stands = gateway is client.gateway or (wire is not None and gateway.wires.get(client.gateway.name) is wire)
            if is_quiet if is_far else stands:
                self._expect(event, gateway, None if is_far or gateway is client.gateway else wire)
        number = b"%d" % event.number
        client.say(b"PUB %b inbox.%b %d\r\n%b\r\n" % (subject.encode(), number, len(number), number), now_ms)

    def _expect(self, event: Event, gateway: "Gateway", wire: "Wire | None") -> None:
        for other in gateway.clients:
            for sid, queue in other.wants(event.subject):
                if queue:
                    event.groups.setdefault(queue, []).append(other)
                elif event.is_quiet or sid in other.confirmed:
                    event.due.append((other, sid, wire))

    def crosses(self, here: "Gateway", there: "Gateway", data: bytes) -> None:
        """What a gateway sends over its link to another zone."""
        for number in map(int, _ROUTED.findall(data)):
            if self.events[number].origin.zone != here.zone:
                raise AssertionError(f"event {number} is passed on from {here.zone} to {there.zone}")
            if (number, there.zone) in self._crossed:
                raise AssertionError(f"event {number} crosses from {here.zone} to {there.zone} twice")
            self._crossed.add((number, there.zone))
            self.counted["crossed"] += 1

    def delivered(self, client: Client, sid: int, number: int) -> None:
        self.counted["delivered"] += 1
        subject, queue = self.events[number].subject, client.queues[sid]
        if (client, sid, number) in self._got:
            raise AssertionError(f"event {number} on {subject} twice for one subscription at {client.gateway.name}")
        self._got.add((client, sid, number))
        if queue and (queue, number) in self._got_by_group:
            raise AssertionError(f"event {number} on {subject} twice in group {queue}, at {client.gateway.name}")
        if queue:
            self._got_by_group[queue, number] = client

    def has_gone(self, client: Client) -> None:
        client.is_here = False

    def round_is_over(self) -> None:
        """Everything that was on its way has come, or never will."""
        for event in self.events[self._looked_at :]:
            self._check(event)
        self._looked_at = len(self.events)

    def _check(self, event: Event) -> None:
        for due in event.due:
            self._check_due(event, *due)
        if event.is_quiet:
            self._check_quiet(event)

    def has_come(self, event: Event, client: Client) -> None:
        """What of it is due to this client, before the round is over."""
        for due in event.due:
            if due[0] is client:
                self._check_due(event, *due)

    def _check_due(self, event: Event, client: Client, sid: int, wire: "Wire | None") -> None:
        stands = client.is_here and sid in client.subscriptions and (wire is None or not wire.is_cut)
        self.counted["due"] += stands
        if stands and (client, sid, event.number) not in self._got:
            where = f"from {event.origin.name} to {client.gateway.name}"
            raise AssertionError(f"event {event.number} on {event.subject} does not come, {where}")

    def _check_quiet(self, event: Event) -> None:
        for queue, members in event.groups.items():
            chosen = self._got_by_group.get((queue, event.number))
            if chosen is None:
                raise AssertionError(f"event {event.number} on {event.subject} reaches nobody of {queue}")
            is_local = [member.gateway.node == event.origin.node for member in members]
            if any(is_local) and chosen.gateway.node != event.origin.node:
                raise AssertionError(f"event {event.number} goes to {chosen.gateway.name} before a local member")
            is_of_zone = [member.gateway.zone == event.origin.zone for member in members]
            if any(is_of_zone) and chosen.gateway.zone != event.origin.zone:
                raise AssertionError(f"event {event.number} goes to {chosen.gateway.name} before a member of its zone")
            self.counted["groups"] += 1
            self.counted["groups at another worker"] += any(is_local) and chosen.gateway is not event.origin
        nobody = not event.due and not event.groups
        is_refused = event.number in self.refused
        if is_refused != nobody and not (nobody and self._has_prefixes):
            raise AssertionError(f"no responders for {event.subject}: {is_refused}, should be {nobody}")
        self.counted["refused"] += is_refused

    def interest(self, gateways: "dict[str, Gateway]") -> None:
        """Each knows of each other what that one's clients want, or the prefixes that stand for it."""
        peers = [gateway.plane.peers for gateway in gateways.values()]
        tables = [table for each in peers for table in (each.own, each.of_zone, *each.of_zones.values())]
        self._has_prefixes = any(table.interest.prefixes for table in tables)
        self.counted["rounds with prefixes"] += self._has_prefixes
        links = [link for gateway in gateways.values() for link in gateway.plane.peers.links.values()]
        self.counted["repairs"] += sum(link.learned.repairs for link in links)
        for gateway in gateways.values():
            truth = self._truth(gateway)
            for other in gateways.values():
                session = other.link_to(gateway)
                if session is None:
                    continue
                known = _known(session)
                if known != truth:
                    raise AssertionError(f"{other.name} takes {gateway.name} to want {known}, it wants {truth}")
                self.counted["tables"] += 1
            self._interest_of_zones(gateway, gateways)

    def _interest_of_zones(self, gateway: "Gateway", gateways: "dict[str, Gateway]") -> None:
        """What it knows of other zones; where prefixes stand for patterns it may be more than is wanted."""
        for session in gateway.plane.peers.links:
            if not session.zone or session.scope is Scope.BORDER:
                continue
            clients = [client for one in gateways.values() if one.zone == session.zone for client in one.clients]
            counts = Counter(wanted for client in clients for wanted in client.subscriptions.values())
            truth = {wanted: count if wanted[1] else 1 for wanted, count in counts.items()}
            known = _known(session)
            if self._has_prefixes:
                wide = [pattern for pattern, queue in known if not queue]
                truth = {key: 1 for key in truth if key[1] or not any(matches(each, key[0]) for each in wide)}
                known = {key: known[key] and 1 for key in truth if key in known}
            if known != truth:
                raise AssertionError(f"{gateway.name} takes zone {session.zone} to want {known}, it wants {truth}")
            self.counted["tables of zones"] += 1

    def _truth(self, gateway: "Gateway") -> dict[tuple[str, str], int]:
        counts = Counter(wanted for client in gateway.clients for wanted in client.subscriptions.values())
        prefixes = [prefix for _, prefix in gateway.plane.peers.own.interest.prefixes]
        told = {(prefix, ""): 1 for prefix in prefixes}
        for (pattern, queue), count in counts.items():
            if queue or not any(matches(prefix, pattern) for prefix in prefixes):
                told[pattern, queue] = count if queue else 1
        return told

    def state(self, gateways: "dict[str, Gateway]") -> list[tuple[str, str, bool, int]]:
        """What each has of each link: gateway, peer, whether it is stale, what it has confirmed."""
        links = [(gateway.name, link) for gateway in gateways.values() for link in gateway.plane.peers.links.values()]
        return [(name, link.session.peer, link.learned.is_stale, link.confirmed) for name, link in links]

    def summary(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counted.items()))
        return f"{len(self.events)} events, {counts}"


def _known(session: Session) -> dict[tuple[str, str], int]:
    """What a peer is taken to want: (pattern, queue) → weight."""
    own = session.subscriptions.items()
    return {(each.pattern, each.queue): each.weight for key, each in own if not key.startswith(b"* ")}
