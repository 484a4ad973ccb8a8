"""The links to peers, as the plane sees them: who is told what, who waits until it is known, and who is stale.

Peers are the other workers of this gateway, or the other gateways of its zone. What they are told, and what is known of
them, is in `gateway.core.interest`.

A client that has subscribed and then sends PING may take the PONG as a promise: what is published from now on,
anywhere, reaches it. So its PONG waits until every peer has confirmed what it was told up to that subscription, by
answering a PING of ours that was sent behind it; for `INTEREST_CONFIRM_MS` at most.

A peer is *stale* while it may want more than is known: until it has told everything for the first time, after it was
silent for long or has left a client waiting for that PONG, and while what it told is not what its digest says. It is
sent everything then. Each gateway does so with one that it does not hear, so the promise holds for a client behind a
link that is blocked: who does not hear of its subscription has not heard of anything for a while. Who was silent is
stale until it has answered a PING that was sent since.

Changes are told before anything that could be answered: a message to a peer (`Forwarder.interest_waits`), a PONG.
"""

from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import NamedTuple

from gateway.core.engine import Engine
from gateway.core.forwarding import Forwarder
from gateway.core.interest import Interest, Key, Learned
from gateway.core.session import Account, Session
from protocol import nats, routes
from protocol.limits import INTEREST_CONFIRM_MS, INTEREST_SLICE_MAX


class _Held(NamedTuple):
    session: Session
    mark: int
    until_ms: int


class Link:
    """What is between us and one peer. `learned` is what it wants."""

    __slots__ = ("answered_by", "confirmed", "epoch", "learned", "pinged", "pings", "pongs", "rest", "session")

    def __init__(self, session: Session, learned: Learned) -> None:
        self.session, self.learned = session, learned
        self.epoch = 0
        self.rest: deque[Key] | None = None  # of a table: what was not sent yet
        self.pings = self.pongs = 0
        self.pinged: deque[int] = deque()  # what PONGs, when they come, will have confirmed
        self.confirmed = -1
        self.answered_by = 0  # stale, whatever it has told, until so many PONGs have come

    @property
    def is_silent(self) -> bool:
        """It was not heard for long, and has not answered since."""
        return self.pongs < self.answered_by


class Peers:
    """All links. Without `expected` ones nothing is counted. `account(name)` is the account of that name."""

    def __init__(
        self,
        forwarder: Forwarder,
        engine: Engine,
        accounts: Mapping[str, Account],
        account: Callable[[str], Account],
        *,
        expected: bool,
        broadcasts: bool,
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self.links: dict[Session, Link] = {}
        self.interest = Interest()
        self._forwarder, self._engine = forwarder, engine
        self._accounts, self._account = accounts, account
        self._expected, self._broadcasts = expected, broadcasts
        self._marks = 0  # times that interest was told
        self._told = 0  # changes of it
        self._held: list[_Held] = []
        self._telling: dict[Link, None] = {}  # links with a rest

    @property
    def agreed(self) -> int:
        """How many peers have told all that they want, and confirmed what they were told first."""
        return sum(link.confirmed >= 0 and link.learned.is_whole for link in self.links.values())

    def add(self, peer: Session) -> None:
        """A link is up: the peer is told everything. A link of the same name that still stands is given up by it."""
        self.flush()
        learned = Learned(peer, self._engine, self._forwarder, self._accounts, self._account)
        self.sessions[peer.peer], self.links[peer] = peer, Link(peer, learned)
        if not peer.near:
            learned.set_stale(True)
            if self._broadcasts:
                learned.broadcast()
        self._tell_all(self.links[peer])

    def remove(self, peer: Session) -> list[Session]:
        """A link is gone; whose PONG is due now."""
        if self.sessions.get(peer.peer) is peer:
            del self.sessions[peer.peer]
        link = self.links.pop(peer, None)
        if link is not None:
            self._telling.pop(link, None)
        return self._release()

    # -- telling ------------------------------------------------------------------------------------------------------

    def tell(self, account: Account, pattern: str, queue: str, change: int) -> int:
        """One subscription more (`change` 1) or less (-1); the mark that peers have to confirm for it."""
        if not self._expected:
            return 0
        self.interest.change((account.name, pattern, queue), change)
        self._forwarder.interest_waits = self.interest.is_urgent
        return self._marks + self.interest.has_changed

    def flush(self) -> None:
        """Tells what has changed."""
        self._forwarder.interest_waits = False
        if not self.interest.has_changed:
            return
        self._marks += 1
        changes = self.interest.take()
        if changes is None:
            for link in self.links.values():
                self._tell_all(link)
            return
        self._told += len(changes)
        lines = b"".join(routes.interest_line(*key, self.interest.weight(key)) for key in changes)
        for link in self.links.values():
            self._forwarder.write(link.session, lines)

    def _tell_all(self, link: Link) -> None:
        link.epoch += 1
        link.rest = deque(self.interest.entries())
        self._telling[link] = None
        self._forwarder.write(link.session, routes.table_line(link.epoch))
        self._tell_more(link, link.rest)

    def _tell_more(self, link: Link, rest: deque[Key]) -> None:
        weights = [(key, self.interest.weight(key)) for key in islice(rest, INTEREST_SLICE_MAX)]
        for _ in weights:
            rest.popleft()
        lines = [routes.interest_line(*key, weight) for key, weight in weights if weight]
        self._forwarder.write(link.session, b"".join(lines))
        if not rest:
            link.rest = None
            del self._telling[link]
            self._ping(link)

    @property
    def has_rest(self) -> bool:
        """Whether there is more to tell of what is told whole: `tell_rest` is due, turn by turn."""
        return bool(self._telling)

    def tell_rest(self) -> None:
        """A slice for each that has not been told all."""
        self.flush()
        for link in list(self._telling):
            if link.rest is not None:
                self._tell_more(link, link.rest)

    # -- learning -----------------------------------------------------------------------------------------------------

    def learn(self, peer: Session, event: routes.Interest) -> None:
        """RS+ or RS-."""
        self.links[peer].learned.change(event)

    def begin(self, peer: Session, event: routes.Table) -> None:
        """RSALL."""
        self.links[peer].learned.begin(event.epoch)

    def check(self, peer: Session, event: routes.Digest) -> None:
        """RSSUM: asks for everything again where it does not fit."""
        link = self.links[peer]
        if link.learned.check(event):
            self._forwarder.write(peer, routes.again_line(event.epoch))
        self._judge(link)

    def again(self, peer: Session, event: routes.Again) -> None:
        """RSASK; one that was sent before what has been told whole since is not heard."""
        link = self.links[peer]
        if event.epoch == link.epoch and link.rest is None:
            self.flush()
            self._tell_all(link)

    def doubt(self, peer: Session) -> None:
        """It was not heard for long: it is stale until it answers."""
        link = self.links.get(peer)
        if link is not None and not link.is_silent:
            self.ping(peer)
            link.answered_by = link.pings + (link.rest is not None)  # a table ends with PING
            self._judge(link)

    def _judge(self, link: Link) -> None:
        if link.session.closing is None:
            link.learned.set_stale(link.is_silent or not link.learned.is_whole)

    # -- PING and PONG ------------------------------------------------------------------------------------------------

    def hold(self, session: Session, now_ms: int) -> bool:
        """Whether the PONG that `session` asks for has to wait."""
        self.flush()
        mark = session.interest_mark
        if self._knows(mark):
            return False
        self._held.append(_Held(session, mark, now_ms + INTEREST_CONFIRM_MS))
        for link in self.links.values():
            asked = link.rest is not None or (link.pinged and link.pinged[-1] >= mark)  # the end of a table is a PING
            if link.confirmed < mark and not asked:
                self._ping(link)
        return True

    def confirmed(self, peer: Session) -> list[Session]:
        """A PONG came from a peer; whose PONG is due now."""
        link = self.links.get(peer)
        if link is None or not link.pinged:
            return []
        link.pongs += 1
        link.confirmed = link.pinged.popleft()
        self._judge(link)
        return self._release()

    def awaits(self, peer: Session) -> bool:
        """Whether a PING of ours is on its way to it, or its PONG back."""
        link = self.links.get(peer)
        return link is not None and bool(link.pinged)

    def ping(self, peer: Session) -> None:
        """Ask whether it is there."""
        self.flush()
        link = self.links.get(peer)
        if link is not None and link.rest is None:
            self._ping(link)

    def overdue(self, now_ms: int) -> list[Session]:
        """Who has waited for long enough; peers that have made them wait are stale."""
        overdue = [held for held in self._held if held.until_ms <= now_ms]
        if overdue:
            self._held = [held for held in self._held if held.until_ms > now_ms]
            mark = max(held.mark for held in overdue)
            for link in self.links.values():
                if not link.session.near and link.confirmed < mark:
                    self.doubt(link.session)
        return [held.session for held in overdue]

    def _ping(self, link: Link) -> None:
        link.pings += 1
        link.pinged.append(self._marks)
        digest = routes.digest_line(link.epoch, self._told, self.interest.digest)
        self._forwarder.write(link.session, digest + nats.PING)

    def _knows(self, mark: int) -> bool:
        return mark == 0 or all(link.confirmed >= mark for link in self.links.values())

    def _release(self) -> list[Session]:
        due = [held.session for held in self._held if self._knows(held.mark)]
        if due:
            self._held = [held for held in self._held if not self._knows(held.mark)]
        return due
