"""The links to peers, as the plane sees them: who is told what, who waits until it is known, and who is stale.

Peers are the other workers of this gateway, the other gateways of its zone, and gateways of other zones. What they are
told, and what is known of them, is in `gateway.core.interest`.

    what peers want ─► Learned ─┬──────────────► the sublist: what they are sent
                                └─► a `Table`     of what others are told

    with whom                              they are told                   what they tell is added to
    workers, gateways of the zone          what our own clients want       what the zone wants
    the other end of a border link         what our zone wants             what its zone wants
    a gateway that leads to a zone         nothing                         nothing more
    a gateway that we lead to a zone       what that zone wants            (it tells nothing)

Where several links lead to one zone, all but one are spare, so that nothing crosses twice: one that is heard comes
first, of those our own border link, then who has the lowest `rank`.

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
from functools import partial
from itertools import islice
from typing import NamedTuple

from gateway.core.engine import Engine
from gateway.core.forwarding import Forwarder
from gateway.core.interest import Interest, Key, Learned
from gateway.core.session import Account, Scope, Session, Subscription
from protocol import nats, routes
from protocol.limits import INTEREST_CONFIRM_MS, INTEREST_SLICE_MAX


class _Held(NamedTuple):
    session: Session
    mark: int
    until_ms: int


class Table:
    """Interest that some peers are told. `marks` counts how often something was told of it, `told` the changes."""

    def __init__(self) -> None:
        self.interest = Interest()
        self.links: dict[Link, None] = {}
        self.marks = self.told = 0


class Link:
    """What is between us and one peer. `learned` is what it wants, `table` what it is told (None: nothing).

    `write` takes lines for it that say something of interest, and what has to come no later than those. `pieces` takes
    what it says on other channels (None: it has no others).
    """

    __slots__ = (
        *("answered_by", "confirmed", "epoch", "learned", "pieces", "pinged", "pings", "pongs", "rest"),
        *("session", "table", "write"),
    )

    def __init__(
        self,
        session: Session,
        learned: Learned,
        table: Table | None,
        write: Callable[[bytes], None],
        pieces: Callable[[routes.Piece], None] | None,
    ) -> None:
        self.session, self.learned, self.table, self.write, self.pieces = session, learned, table, write, pieces
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
    """All links. Without `expected` ones nothing is counted. `account(name)` is the account of that name.

    `name` and `zone` are our own; with `has_borders` there are other zones.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        engine: Engine,
        accounts: Mapping[str, Account],
        account: Callable[[str], Account],
        *,
        name: str,
        expected: bool,
        broadcasts: bool,
        zone: str = "",
        has_borders: bool = False,
    ) -> None:
        self.sessions: dict[str, Session] = {}  # workers, and gateways of the zone
        self.borders: dict[str, Session] = {}  # by zone: the other ends of border links
        self.links: dict[Session, Link] = {}
        self.own = Table()
        self.of_zone = Table()
        self.of_zones: dict[str, Table] = {}
        self._name, self._zone, self._has_borders = name, zone, has_borders
        self._relays: dict[Session, Interest] = {}  # by peer: to what its interest is added
        self._forwarder, self._engine = forwarder, engine
        self._accounts, self._account = accounts, account
        self._expected, self._broadcasts = expected, broadcasts
        self._held: list[_Held] = []
        self._telling: dict[Link, None] = {}  # links with a rest

    def agreed(self, *, near: bool) -> int:
        """How many workers (`near`), or processes of other gateways, have told all that they want and confirmed what
        they were told first."""
        links = (link for link in self.own.links if link.session.near is near)
        return sum(link.confirmed >= 0 and link.learned.is_whole for link in links)

    def add(
        self,
        peer: Session,
        write: Callable[[bytes], None] | None = None,
        pieces: Callable[[routes.Piece], None] | None = None,
    ) -> None:
        """A link is up: the peer is told what it is to know. One of the same name that still stands is given up by it.

        `write` (None: as everything else) and `pieces` as in `Link`.
        """
        self.flush()
        table, relay = self._place(peer)
        if relay is not None:
            self._relays[peer] = relay
        changed = None if relay is None else self.changed
        learned = peer.learned = Learned(peer, self._engine, self._forwarder, self._accounts, self._account, changed)
        write = write or partial(self._forwarder.write, peer)
        link = self.links[peer] = Link(peer, learned, table, write, pieces)
        link.write(routes.connect_line(self._name, peer.zone))
        if peer.scope is not Scope.BORDER:
            learned.set_stale(True)
            if self._broadcasts and not peer.near:
                learned.broadcast()
        if peer.zone:
            self._choose(peer.zone)
        if table is not None:
            table.links[link] = None
            self._tell_all(link, table)

    def _place(self, peer: Session) -> tuple[Table | None, Interest | None]:
        """What it is told, and to what its interest is added: see the top of this module."""
        if not peer.zone:
            self.sessions[peer.peer] = peer
            return self.own, self.of_zone.interest if self._has_borders else None
        if peer.scope is Scope.ZONE:
            self.borders[peer.zone] = peer
            table = self.of_zones[peer.zone] = Table()
            return self.of_zone, table.interest
        return (self.of_zones[peer.zone] if peer.scope is Scope.BORDER else None), None

    def remove(self, peer: Session) -> list[Session]:
        """A link is gone; whose PONG is due now."""
        if self.sessions.get(peer.peer) is peer:
            del self.sessions[peer.peer]
        if self.borders.get(peer.zone) is peer:
            del self.borders[peer.zone], self.of_zones[peer.zone]
        link, peer.learned = self.links.pop(peer, None), None
        if link is not None:
            self._telling.pop(link, None)
            if link.table is not None:
                link.table.links.pop(link, None)
        if not peer.subscriptions:
            self._relays.pop(peer, None)
        if peer.zone:
            self._choose(peer.zone)
        return self._release()

    def leading(self, zone: str) -> list[str]:
        """Who of our zone links it with `zone`, that first by which messages go."""
        return [self._name if each.scope is Scope.ZONE else each.peer for each in self._ways(zone)]

    def _choose(self, zone: str) -> None:
        """By which link messages for `zone` go from now on."""
        for number, session in enumerate(self._ways(zone)):
            session.spare = number > 0
        self._forwarder.invalidate()

    def _ways(self, zone: str) -> list[Session]:
        leading = [link for link in self.links.values() if self._leads(link.session, zone)]
        leading.sort(key=lambda each: (each.is_silent, *self._place_of_way(each.session)))
        return [link.session for link in leading]

    def _leads(self, peer: Session, zone: str) -> bool:
        return peer.zone == zone and peer.scope is not Scope.BORDER and peer.closing is None

    def _place_of_way(self, peer: Session) -> tuple[bool, int]:
        return peer.scope is not Scope.ZONE, routes.rank(self._zone, peer.zone, peer.peer)

    # -- telling ------------------------------------------------------------------------------------------------------

    def tell(self, subscription: Subscription, change: int) -> int:
        """One subscription more (`change` 1) or less (-1); the mark that peers have to confirm for it."""
        if not self._expected:
            return 0
        own, key = self.own.interest, (subscription.account.name, subscription.pattern, subscription.queue)
        own.change(key, change)
        if self._has_borders:
            self.of_zone.interest.change(key, change)
        if own.is_urgent or self.of_zone.interest.is_urgent:
            self._forwarder.interest_waits = True
        return self.own.marks + own.has_changed

    def changed(self, subscription: Subscription, change: int) -> None:
        """A peer wants something more (`change` is its weight) or less."""
        peer = subscription.session
        relay = self._relays.get(peer)
        if relay is None or not change:
            return
        relay.change((subscription.account.name, subscription.pattern, subscription.queue), change)
        if relay.is_urgent:
            self._forwarder.interest_waits = True
        if not peer.subscriptions and peer not in self.links:
            del self._relays[peer]

    def flush(self) -> None:
        """Tells what has changed."""
        self._forwarder.interest_waits = False
        for table in (self.own, self.of_zone, *self.of_zones.values()):
            if table.interest.has_changed:
                self._tell_changes(table)

    def _tell_changes(self, table: Table) -> None:
        table.marks += 1
        lines = table.interest.take()
        if lines is None:
            for link in table.links:
                self._tell_all(link, table)
            return
        table.told += len(lines)
        joined = b"".join(lines)
        for link in table.links:
            link.write(joined)

    def _tell_all(self, link: Link, table: Table) -> None:
        link.epoch += 1
        link.rest = deque(table.interest.entries())
        self._telling[link] = None
        link.write(routes.table_line(link.epoch))
        self._tell_more(link, table.interest, link.rest)

    def _tell_more(self, link: Link, interest: Interest, rest: deque[Key]) -> None:
        weights = [(key, interest.weight(key)) for key in islice(rest, INTEREST_SLICE_MAX)]
        for _ in weights:
            rest.popleft()
        lines = [routes.interest_line(routes.interest_key(*key), weight) for key, weight in weights if weight]
        link.write(b"".join(lines))
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
            if link.rest is not None and link.table is not None:
                self._tell_more(link, link.table.interest, link.rest)

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
            link.write(routes.again_line(event.epoch))
        self._judge(link)

    def again(self, peer: Session, event: routes.Again) -> None:
        """RSASK; one that was sent before what has been told whole since is not heard."""
        link = self.links[peer]
        if event.epoch == link.epoch and link.rest is None and link.table is not None:
            self.flush()
            self._tell_all(link, link.table)

    def doubt(self, peer: Session) -> None:
        """It was not heard for long: it is stale until it answers."""
        link = self.links.get(peer)
        if link is not None and not link.is_silent:
            self.ping(peer)
            link.answered_by = link.pings + (link.rest is not None)  # a table ends with PING
            self._judge(link)
            if peer.zone:
                self._choose(peer.zone)

    def _judge(self, link: Link) -> None:
        if link.session.closing is None and link.session.scope is not Scope.BORDER:
            link.learned.set_stale(link.is_silent or not link.learned.is_whole)

    def take_piece(self, peer: Session, piece: routes.Piece) -> None:
        """RVIA or RFOR."""
        link = self.links.get(peer)
        if link is not None and link.pieces is not None:
            link.pieces(piece)

    # -- PING and PONG ------------------------------------------------------------------------------------------------

    def hold(self, session: Session, now_ms: int) -> bool:
        """Whether the PONG that `session` asks for has to wait."""
        self.flush()
        mark = session.interest_mark
        if self._knows(mark):
            return False
        self._held.append(_Held(session, mark, now_ms + INTEREST_CONFIRM_MS))
        for link in self.own.links:
            asked = link.rest is not None or (link.pinged and link.pinged[-1] >= mark)  # the end of a table is a PING
            if link.confirmed < mark and not asked:
                self._ping(link)
        return True

    def confirmed(self, peer: Session) -> list[Session]:
        """A PONG came from a peer; whose PONG is due now."""
        link = self.links.get(peer)
        if link is None or not link.pinged:
            return []
        was_silent = link.is_silent
        link.pongs += 1
        link.confirmed = link.pinged.popleft()
        self._judge(link)
        if was_silent and peer.zone and not link.is_silent:
            self._choose(peer.zone)
        return self._release()

    def answer(self, peer: Session) -> None:
        """A PING came from a peer: all before it has been acted on, and told on."""
        self.flush()
        link = self.links.get(peer)
        if link is not None:
            link.write(nats.PONG)

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
            for link in self.own.links:
                if link.confirmed < mark:
                    self.doubt(link.session)
        return [held.session for held in overdue]

    def _ping(self, link: Link) -> None:
        link.pings += 1
        table = link.table
        if table is None:
            link.pinged.append(0)
            link.write(nats.PING)
        else:
            link.pinged.append(table.marks)
            link.write(routes.digest_line(link.epoch, table.told, table.interest.digest) + nats.PING)

    def _knows(self, mark: int) -> bool:
        return mark == 0 or all(link.confirmed >= mark for link in self.own.links)

    def _release(self) -> list[Session]:
        due = [held.session for held in self._held if self._knows(held.mark)]
        if due:
            self._held = [held for held in self._held if not self._knows(held.mark)]
        return due
