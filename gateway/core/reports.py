"""What a gateway shows of itself on the monitor port, under nats-server's names and in its shapes.

    /varz       the server and its counters         /routez, /gatewayz, /leafz   links, of which there are none
    /subsz      subscriptions, and who would match   /accountz                    the accounts
    /connz      see `gateway.core.connections`

Only what exists is shown; tests/test_reports.py names every field of nats-server's that is left out, and why. Nothing
that a page says is counted for it on the way of a message: no `num_matches`, no fan-out.

Source: nats-server `server/monitor.go` (Varz, Subsz, Routez, Gatewayz, Leafz, Accountz).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from gateway.core.connections import describe_subscription
from gateway.core.nats_values import BadQuery, Building, Moment, Page, Window, duration, go_duration, paced
from gateway.core.plane import PROTOCOL_VERSION, Plane
from gateway.core.session import NEVER_MS, Account, Session, Subscription
from protocol import subjects
from protocol.routes import node_of


@dataclass(frozen=True)
class SubszOptions:
    """What is asked of `/subsz`. `test`: only those that a message on this literal subject would reach."""

    subscriptions: bool = False
    offset: int = 0
    limit: int = 0
    test: str = ""
    account: str = ""


def varz(plane: Plane, *, started_ms: int, loaded_ms: int, moment: Moment) -> Page:
    """The server and its counters; `loaded_ms`: since when it goes by its configuration.

    nats-server gives `ping_interval` in nanoseconds and `auth_timeout` in seconds.
    """
    options, stats = plane.options, plane.stats
    page: Page = {
        "server_id": options.server_id,
        "server_name": options.server_name,
        "version": PROTOCOL_VERSION,
        "mesh_version": options.server_version,
        "engine": plane.engine.name,
        "proto": 1,
        "git_commit": f"event-mesh-{options.server_version}".rstrip("-"),
        "go": "",
        "host": options.host,
        "port": plane.port,
    }
    if options.users:
        page["auth_required"] = True
    if plane.connect_urls:
        page["connect_urls"] = list(plane.connect_urls)
    page["max_connections"] = options.max_connections
    if options.max_subscriptions:
        page["max_subscriptions"] = options.max_subscriptions
    page |= {
        "ping_interval": options.ping_interval_ms * 1_000_000,
        "ping_max": options.ping_max,
        "auth_timeout": options.auth_timeout_ms / 1_000,
        "max_control_line": options.max_control_line_bytes,
        "max_payload": options.max_payload_bytes,
        "max_pending": options.max_pending_bytes,
        "cluster": {},
        "gateway": {},
        "leaf": {},
        "mqtt": {},
        "websocket": {},
        "jetstream": {},
        "start": moment.date(started_ms),
        "now": moment.today(),
        "uptime": duration(moment.now_ms - started_ms),
        "config_load_time": moment.date(loaded_ms),
        "connections": stats.connections,
        "total_connections": stats.total_connections,
        "routes": 0,
        "remotes": 0,
        "leafnodes": 0,
    }
    for name in ("in_msgs", "in_bytes", "out_msgs", "out_bytes"):
        direction, _, unit = name.partition("_")
        page[name] = page[f"{direction}_client_{unit}"] = getattr(stats, name)
    return page | {
        "slow_consumers": stats.slow_consumers,
        "stale_connections": stats.stale_connections,
        "stalled_clients": stats.stalled_clients,
        "subscriptions": stats.subscriptions,
        "slow_consumer_stats": _by_kind(stats.slow_consumers),
        "stale_connection_stats": _by_kind(stats.stale_connections),
    }


def _by_kind(clients: int) -> Page:
    return {"clients": clients, "routes": 0, "gateways": 0, "leafs": 0}


def subsz(plane: Plane, options: SubszOptions, moment: Moment) -> Building:
    """What the sublists count, and, if it is asked for, the subscriptions. BadQuery at the first turn."""
    test, window = options.test, Window.of(options.offset, options.limit)
    if test and (not all(test.split(".")) or subjects.has_wildcard(test)):
        raise BadQuery(f"invalid test subject, must be valid publish subject: {test}")
    accounts = [each for each in plane.accounts.values() if options.account in ("", each.name)]
    page: Page = {"server_id": plane.options.server_id, "now": moment.today(), **_sublist_stats(plane, accounts)}
    if not options.account:
        page["num_cache"] = plane.forwarder.plans_cached
    total, chosen = 0, list[Subscription]()
    if options.subscriptions and test:
        found = [each for account in accounts for each in _matching(account, test)]
        total, chosen = len(found), window.of_list(found)
    elif options.subscriptions:
        total = sum(_count(plane, account) for account in accounts)
        chosen = _choose(plane, options.account, window)
    page |= {"total": total, "offset": window.offset, "limit": window.limit}
    shown = yield from paced(chosen, _describe_with_account)
    return page | ({"subscriptions_list": shown} if shown else {})


def _count(plane: Plane, account: Account) -> int:
    """Subscriptions of our own clients: what those of other workers want stands beside them, and is theirs to show."""
    wanted = (each for peer in plane.peers.links for each in peer.subscriptions.values())
    return account.sublist.count - sum(each.account is account for each in wanted)


def _sublist_stats(plane: Plane, accounts: list[Account]) -> Page:
    return {
        "num_subscriptions": sum(_count(plane, account) for account in accounts),
        "num_inserts": sum(account.sublist.inserts for account in accounts),
        "num_removes": sum(account.sublist.removes for account in accounts),
    }


def _matching(account: Account, subject: str) -> list[Subscription]:
    result = account.sublist.match(subject)
    found = [*result.plain, *(each for group in result.queues for each in group)]
    return [each for each in found if not each.session.peer]


def _choose(plane: Plane, account: str, window: Window) -> list[Subscription]:
    """Those of a window, by connection and in the order of subscription: what is skipped is hardly looked at."""
    skip, chosen = window.offset, list[Subscription]()
    for session in plane.sessions.values():
        if account not in ("", session.account.name):
            continue
        count = len(session.subscriptions)
        if skip < count:
            end = skip + window.limit - len(chosen)
            chosen += islice(session.subscriptions.values(), skip, end)
        skip = max(skip - count, 0)
        if len(chosen) == window.limit:
            break
    return chosen


def _describe_with_account(subscription: Subscription) -> Page:
    name = subscription.session.account.name
    return {"account": name, "account_tag": name, **describe_subscription(subscription)}


class WireBytes(NamedTuple):
    """What went over a link between zones since it is up: as it is, and as it was compressed."""

    plain_in: int
    wire_in: int
    plain_out: int
    wire_out: int


@dataclass(frozen=True)
class LinksReport:
    """`missing`: peers of the zone without a link; `borders`: by zone that this process links its own with."""

    missing: Sequence[str] = ()
    borders: Mapping[str, WireBytes] = field(default_factory=dict)


def routez(plane: Plane, moment: Moment, links: LinksReport | None = None) -> Page:
    """Links to other gateways. Those between workers are a matter of this gateway, and not shown.

    `missing` and `zones` are our own: who leads to each other zone, that first which this process uses. Names are those
    of `protocol.routes.peer_name`.
    """
    options = plane.options
    page: Page = {"server_id": options.server_id, "server_name": options.server_name, "now": moment.today()}
    peers = [peer for peer in plane.peers.sessions.values() if not peer.near]
    routes = [_route(plane, peer, moment) for peer in peers]
    for zone, peer in plane.peers.borders.items():
        wire = None if links is None else links.borders.get(zone)
        routes.append(_route(plane, peer, moment) | ({"wire": wire._asdict()} if wire is not None else {}))
    page |= {"num_routes": len(routes), "routes": routes}
    if links is not None:
        page["missing"] = list(links.missing)
    if options.zones:
        page["zones"] = {zone: plane.peers.leading(zone) for zone in options.zones}
    return page


def _route(plane: Plane, peer: Session, moment: Moment) -> Page:
    """nats-server's fields; `zone`, `stale`, `interest_repairs` and `dropped` are our own."""
    own = plane.options.zone, plane.options.server_name
    dials = own < (peer.zone or plane.options.zone, node_of(peer.peer))
    learned = plane.peers.links[peer].learned
    on_link = [each for each in plane.peers.links if each.peer == peer.peer]  # with its channels to zones
    return {
        "rid": -peer.id,
        "remote_name": peer.peer,
        "zone": peer.zone or plane.options.zone,
        "did_solicit": dials,
        "is_configured": dials,
        "ip": peer.client_ip,
        "port": peer.client_port,
        "start": moment.date(peer.started_ms),
        "last_activity": moment.date(peer.last_activity_ms),
        "rtt": go_duration(peer.rtt_ms) if peer.rtt_ms != NEVER_MS else "",
        "uptime": duration(moment.now_ms - peer.started_ms),
        "idle": duration(moment.now_ms - peer.last_activity_ms),
        "pending_size": peer.pending_bytes,
        "in_msgs": peer.in_msgs,
        "out_msgs": peer.out_msgs,
        "in_bytes": peer.in_bytes,
        "out_bytes": peer.out_bytes,
        "subscriptions": learned.count,
        "stale": learned.is_stale,
        "interest_repairs": learned.repairs,
        "dropped": {
            "behind": sum(each.dropped_msgs for each in on_link),
            "unwanted": sum(each.unwanted_msgs for each in on_link),
        },
    }


def gatewayz(plane: Plane, moment: Moment) -> Page:
    """Links of the gateway protocol: none."""
    empty: Page = {"outbound_gateways": {}, "inbound_gateways": {}}
    return {"server_id": plane.options.server_id, "now": moment.today(), **empty}


def leafz(plane: Plane, moment: Moment) -> Page:
    """Leaf nodes: none."""
    return {"server_id": plane.options.server_id, "now": moment.today(), "leafnodes": 0, "leafs": []}


def accountz(plane: Plane, name: str, *, started_ms: int, moment: Moment) -> Page:
    """The names of all accounts, or what there is to say of the one called `name`. BadQuery: there is none."""
    page: Page = {"server_id": plane.options.server_id, "now": moment.today()}
    if not name:
        return page | {"accounts": list(plane.accounts)}
    account = plane.accounts.get(name)
    if account is None:
        raise BadQuery(f"Account {name} does not exist")
    detail = {
        "account_name": name,
        "update_time": moment.date(started_ms),
        "expired": False,
        "complete": True,
        "jetstream_enabled": False,
        "leafnode_connections": 0,
        "client_connections": sum(session.account is account for session in plane.sessions.values()),
        "subscriptions": _count(plane, account),
        "name_tag": name,
        "sublist_stats": _sublist_stats(plane, [account]),
    }
    return page | {"account_detail": detail}
