"""`/connz`: the connections of a gateway, those that are there and the last ones that were closed.

A page is made of *snapshots*, one per connection, taken in turns; so sorting sees what does not move. A closed
connection leaves its last snapshot behind, packed into a few hundred bytes, in a ring of `MONITOR_CLOSED_MAX`.

Filters and sort orders are those of nats-server. Differences: an account that is not there gives an empty list (there:
`null`, and no server id); a closed connection has lost its subscriptions already; a list of connections with their
subscriptions shows `MONITOR_LIST_MAX` subscriptions at most; of a client certificate only the subject is shown.

Source: nats-server `server/monitor.go` (Connz), `monitor_sort_opts.go`, `ring.go`.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Final, Literal

import msgspec

from gateway.core.encryption import Encryption
from gateway.core.nats_values import BadQuery, Building, Moment, Page, Window, duration, go_duration, paced, readable
from gateway.core.plane import Plane
from gateway.core.session import NEVER_MS, Session, Subscription
from protocol.accounts import DEFAULT_ACCOUNT
from protocol.limits import MONITOR_CLOSED_CHARACTERS_MAX, MONITOR_CLOSED_MAX, MONITOR_LIST_MAX

State = Literal["open", "closed", "any"]
_TOKEN_SHOWN: Final = "[REDACTED]"
_PLAIN: Final = Encryption(version="", cipher="", first=False)


class Connection(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The snapshot of one connection. `stopped_ms` and `reason` are those of its end, if it has ended."""

    id: int
    ip: str
    port: int
    started_ms: int
    last_activity_ms: int
    rtt_ms: int
    pending_bytes: int
    in_msgs: int
    out_msgs: int
    in_bytes: int
    out_bytes: int
    subscriptions: int
    name: str
    lang: str
    version: str
    user: str
    account: str
    tls_version: str
    tls_cipher: str
    tls_first: bool
    tls_subject: str
    stopped_ms: int = NEVER_MS
    reason: str = ""

    def lived_ms(self, now_ms: int) -> int:
        return (now_ms if self.stopped_ms == NEVER_MS else self.stopped_ms) - self.started_ms


@dataclass(frozen=True)
class ConnzOptions:
    """What is asked of `/connz`. `auth`: show users and accounts. `id` 0: all of them.

    `merges`: the page will be merged with those of other workers; the first `limit`, with what they were sorted by.
    """

    sort: str = ""
    auth: bool = False
    subscriptions: bool = False
    detail: bool = False
    offset: int = 0
    limit: int = 0
    id: int = 0
    state: State = "open"
    user: str = ""
    account: str = ""
    merges: bool = False


class ClosedConnections:
    """The last connections that were closed, oldest first."""

    def __init__(self, capacity: int = MONITOR_CLOSED_MAX) -> None:
        self._packed: deque[bytes] = deque(maxlen=capacity)

    def add(self, session: Session, now_ms: int) -> None:
        """The socket of `session` is gone."""
        self._packed.append(msgspec.msgpack.encode(_snapshot(session, MONITOR_CLOSED_CHARACTERS_MAX, now_ms)))

    def __len__(self) -> int:
        return len(self._packed)

    def all(self) -> Generator[None, None, list[Connection]]:
        return (yield from paced(list(self._packed), _unpack))


_unpack = msgspec.msgpack.Decoder(Connection).decode

_SORTS: Final = {  # by which column, and whether the largest comes first
    "cid": ("id", False),
    "start": ("started_ms", False),
    "subs": ("subscriptions", True),
    "pending": ("pending_bytes", True),
    "msgs_to": ("out_msgs", True),
    "msgs_from": ("in_msgs", True),
    "bytes_to": ("out_bytes", True),
    "bytes_from": ("in_bytes", True),
    "last": ("last_activity_ms", True),
    "idle": ("last_activity_ms", False),
    "uptime": ("", False),
    "stop": ("stopped_ms", True),
    "reason": ("reason", False),
    "rtt": ("rtt_ms", True),
}
_ONLY_CLOSED: Final = ("stop", "reason")


def connz(plane: Plane, closed: ClosedConnections, options: ConnzOptions, moment: Moment) -> Building:
    """The page. BadQuery at the first turn."""
    sort = options.sort or "cid"
    if sort not in _SORTS:
        raise BadQuery(f"invalid sorting option: {sort}")
    if sort in _ONLY_CLOSED and options.state != "closed":
        raise BadQuery(f"sort by {sort} only valid on closed connections")
    window = Window.of(options.offset, 1 if options.id else options.limit)
    if options.merges:
        window = Window(0, options.limit)
    total, found = yield from _find(plane, closed, options)
    _sort(found, sort, moment.now_ms)
    shown = yield from paced(window.of_list(found), lambda connection: _describe(connection, options, moment))
    if options.subscriptions or options.detail:
        yield from _add_subscriptions(plane, shown, options.detail)
    page: Page = {
        "server_id": plane.options.server_id,
        "now": moment.today(),
        "num_connections": len(shown),
        "total": total,
        "offset": window.offset,
        "limit": window.limit,
        "connections": shown,
    }
    if options.merges:
        keys = [_sort_key(each, sort, moment.now_ms) for each in window.of_list(found)]
        page |= {"keys": keys, "largest_first": _SORTS[sort][1]}
    return page


def _sort_key(connection: Connection, sort: str, now_ms: int) -> tuple[int | str, int]:
    """By these the connections of several workers are in the order that `_sort` has for those of one."""
    if sort == "uptime":
        return connection.lived_ms(now_ms), -connection.id
    return getattr(connection, _SORTS[sort][0]), connection.id


def _sort(connections: list[Connection], sort: str, now_ms: int) -> None:
    """Of those that tie, by their times above all, the older is the older."""
    column, largest_first = _SORTS[sort]
    connections.sort(key=attrgetter("id"), reverse=largest_first or sort == "uptime")
    if sort == "uptime":
        connections.sort(key=lambda connection: connection.lived_ms(now_ms))
    elif column != "id":
        connections.sort(key=attrgetter(column), reverse=largest_first)


def _find(
    plane: Plane, closed: ClosedConnections, options: ConnzOptions
) -> Generator[None, None, tuple[int, list[Connection]]]:
    """How many there are of the account and state, and those of them that pass the other filters."""
    there: list[Connection] = []
    if options.state != "closed":
        sessions = [each for each in plane.sessions.values() if options.account in ("", each.account.name)]
        there += yield from paced(sessions, _snapshot)
    if options.state != "open":
        gone = yield from closed.all()
        there += [each for each in gone if options.account in ("", each.account)]
    found = there
    if options.id:
        found = [each for each in found if each.id == options.id]
    if options.user:
        found = [each for each in found if each.user == options.user]
    return len(there), found


def _snapshot(session: Session, characters_max: int | None = None, stopped_ms: int = NEVER_MS) -> Connection:
    options, tls = session.options, session.tls if isinstance(session.tls, Encryption) else _PLAIN
    user = session.user or options.user or (_TOKEN_SHOWN if options.token else "")
    name, lang, version, user = (text[:characters_max] for text in (options.name, options.lang, options.version, user))
    return Connection(
        id=session.id,
        ip=session.client_ip,
        port=session.client_port,
        started_ms=session.started_ms,
        last_activity_ms=session.last_activity_ms,
        rtt_ms=session.rtt_ms,
        pending_bytes=session.pending_bytes if stopped_ms == NEVER_MS else 0,
        in_msgs=session.in_msgs,
        out_msgs=session.out_msgs,
        in_bytes=session.in_bytes,
        out_bytes=session.out_bytes,
        subscriptions=len(session.subscriptions),
        name=name,
        lang=lang,
        version=version,
        user=user,
        account=session.account.name,
        tls_version=tls.version,
        tls_cipher=tls.cipher,
        tls_first=tls.first,
        tls_subject=tls.certificate.subject if tls.certificate is not None and stopped_ms == NEVER_MS else "",
        stopped_ms=stopped_ms,
        reason=str(session.closing or "") if stopped_ms != NEVER_MS else "",
    )


def _describe(connection: Connection, options: ConnzOptions, moment: Moment) -> Page:
    lived_ms = connection.lived_ms(moment.now_ms)
    end_ms = connection.started_ms + lived_ms
    page: Page = {
        "cid": connection.id,
        "kind": "Client",
        "type": "nats",
        "ip": connection.ip,
        "port": connection.port,
        "start": moment.date(connection.started_ms),
        "last_activity": moment.date(connection.last_activity_ms),
    }
    if connection.stopped_ms != NEVER_MS:
        page |= {"stop": moment.date(connection.stopped_ms), "reason": connection.reason}
    page |= {
        "rtt": go_duration(max(connection.rtt_ms, 0)),
        "uptime": duration(lived_ms),
        "idle": duration(end_ms - connection.last_activity_ms),
        "pending_bytes": connection.pending_bytes,
        "in_msgs": connection.in_msgs,
        "out_msgs": connection.out_msgs,
        "in_bytes": connection.in_bytes,
        "out_bytes": connection.out_bytes,
        "subscriptions": connection.subscriptions,
    }
    texts: dict[str, str | bool] = {
        "name": connection.name,
        "lang": connection.lang,
        "version": connection.version,
        "tls_version": connection.tls_version,
        "tls_cipher_suite": connection.tls_cipher,
        "tls_first": connection.tls_first,
    }
    if options.auth:
        other = connection.account if connection.account != DEFAULT_ACCOUNT else ""
        tag = connection.account if connection.stopped_ms == NEVER_MS else other
        texts |= {"authorized_user": connection.user, "account": other, "name_tag": tag}
        if connection.tls_subject:
            page["tls_peer_certs"] = [{"subject": connection.tls_subject}]
    return page | {name: text for name, text in texts.items() if text}


def _add_subscriptions(plane: Plane, shown: list[Page], detail: bool) -> Generator[None, None, None]:
    left = MONITOR_LIST_MAX
    for page in shown:
        session = plane.sessions.get(page["cid"])
        if session is None or not left:
            continue
        subscriptions = list(islice(session.subscriptions.values(), left))
        left -= len(subscriptions)
        if subscriptions and detail:
            page["subscriptions_list_detail"] = yield from paced(subscriptions, describe_subscription)
        elif subscriptions:
            page["subscriptions_list"] = yield from paced(subscriptions, lambda each: readable(each.pattern))


def describe_subscription(subscription: Subscription) -> Page:
    """One subscription in a list of details."""
    page: Page = {"subject": readable(subscription.pattern)}
    if subscription.queue:
        page["qgroup"] = readable(subscription.queue)
    page |= {"sid": subscription.sid.decode("utf-8", "replace"), "msgs": subscription.received}
    if subscription.max_messages:
        page["max"] = subscription.max_messages
    return page | {"cid": subscription.session.id}
