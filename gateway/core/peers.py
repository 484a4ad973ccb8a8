"""What peers are told of our clients' interest, and which clients wait until they know of it.

Peers are the other workers of this gateway, or the other gateways of its zone.

Interest is the number of our clients' subscriptions to one pattern (and queue) in one account; peers hear when it
becomes one and when it becomes none, of a queue group every number: they spread messages over its members by that. A
client that has subscribed and then sends PING may take the PONG as a promise: what is published from now on, anywhere,
reaches it. So its PONG waits until every peer has confirmed what it was told up to that subscription, by answering a
PING of ours that was sent behind it; for `INTEREST_CONFIRM_MS` at most.
"""

from collections import deque
from typing import NamedTuple

from gateway.core.forwarding import Forwarder
from gateway.core.session import Account, Session
from protocol import nats, routes
from protocol.limits import INTEREST_CONFIRM_MS


class _Held(NamedTuple):
    session: Session
    mark: int
    until_ms: int


class Peers:
    """The links to peers, as the plane sees them. Without `expected` ones nothing is counted."""

    def __init__(self, forwarder: Forwarder, *, expected: bool) -> None:
        self.sessions: dict[str, Session] = {}
        self._forwarder = forwarder
        self._expected = expected
        self._counts: dict[tuple[str, str, str], int] = {}
        self._told = 0  # changes of interest so far
        self._pinged: dict[Session, deque[int]] = {}  # what a PONG, when it comes, will have confirmed
        self._confirmed: dict[Session, int] = {}
        self._held: list[_Held] = []

    @property
    def agreed(self) -> int:
        """How many peers have confirmed what they were told first; what they want was said before that."""
        return sum(mark >= 0 for mark in self._confirmed.values())

    def add(self, peer: Session) -> None:
        """A link is up: the peer is told everything. A link of the same name that still stands is given up by it."""
        self.sessions[peer.peer] = peer
        self._pinged[peer], self._confirmed[peer] = deque(), -1
        for key, count in self._counts.items():
            self._forwarder.write(peer, routes.interest_line(*key, count))
        self._ping(peer)

    def remove(self, peer: Session) -> list[Session]:
        """A link is gone; whose PONG is due now."""
        if self.sessions.get(peer.peer) is peer:
            del self.sessions[peer.peer]
        self._pinged.pop(peer, None)
        self._confirmed.pop(peer, None)
        return self._release()

    def tell(self, account: Account, pattern: str, queue: str, change: int) -> int:
        """One subscription more (`change` 1) or less (-1); the mark that peers have to confirm for it."""
        if not self._expected:
            return 0
        key = account.name, pattern, queue
        count = self._counts.get(key, 0) + change
        if count == 0:
            del self._counts[key]
        else:
            self._counts[key] = count
        if queue or count == 0 or (count == 1 and change == 1):
            self._told += 1
            for peer in self._confirmed:
                self._forwarder.write(peer, routes.interest_line(*key, count))
        return self._told

    def hold(self, session: Session, now_ms: int) -> bool:
        """Whether the PONG that `session` asks for has to wait."""
        if self._knows(session.interest_mark):
            return False
        self._held.append(_Held(session, session.interest_mark, now_ms + INTEREST_CONFIRM_MS))
        for peer, pings in self._pinged.items():
            if self._confirmed[peer] < session.interest_mark and (not pings or pings[-1] < session.interest_mark):
                self._ping(peer)
        return True

    def confirmed(self, peer: Session) -> list[Session]:
        """A PONG came from a peer; whose PONG is due now."""
        pings = self._pinged.get(peer)
        if not pings:
            return []
        self._confirmed[peer] = pings.popleft()
        return self._release()

    def awaits(self, peer: Session) -> bool:
        """Whether a PING of ours is on its way to it, or its PONG back."""
        return bool(self._pinged.get(peer))

    def ping(self, peer: Session) -> None:
        """Ask whether it is there."""
        if peer in self._pinged:
            self._ping(peer)

    def overdue(self, now_ms: int) -> list[Session]:
        """Who has waited for long enough."""
        due = [held.session for held in self._held if held.until_ms <= now_ms]
        if due:
            self._held = [held for held in self._held if held.until_ms > now_ms]
        return due

    def _ping(self, peer: Session) -> None:
        self._pinged[peer].append(self._told)
        self._forwarder.write(peer, nats.PING)

    def _knows(self, mark: int) -> bool:
        return mark == 0 or all(confirmed >= mark for confirmed in self._confirmed.values())

    def _release(self) -> list[Session]:
        due = [held.session for held in self._held if self._knows(held.mark)]
        if due:
            self._held = [held for held in self._held if not self._knows(held.mark)]
        return due
