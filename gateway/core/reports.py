"""What a gateway shows of itself under nats-server's monitoring names: `/varz`, `/connz`, `/subsz`.

Only what exists here is shown. Durations come from the clock of the plane, dates from `wall_ms` (milliseconds since
1970, at `now_ms`).

Source: nats-server `server/monitor.go` (Varz, Connz, Subsz).
"""

from datetime import UTC, datetime
from itertools import islice
from typing import Any

from gateway.core.plane import PROTOCOL_VERSION, Plane
from gateway.core.session import NEVER_MS, Session
from protocol.limits import MONITOR_LIST_DEFAULT

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))


def varz(plane: Plane, *, started_ms: int, now_ms: int, wall_ms: int) -> dict[str, object]:
    """The server and its counters. nats-server gives `ping_interval` in nanoseconds and `auth_timeout` in seconds."""
    options, stats = plane.options, plane.stats
    return {
        "server_id": options.server_id,
        "server_name": options.server_name,
        "version": PROTOCOL_VERSION,
        "mesh_version": options.server_version,
        "proto": 1,
        "host": options.host,
        "port": plane.port,
        "auth_required": bool(options.users),
        "max_connections": options.max_connections,
        "max_subscriptions": options.max_subscriptions,
        "max_payload": options.max_payload_bytes,
        "max_control_line": options.max_control_line_bytes,
        "max_pending": options.max_pending_bytes,
        "ping_interval": options.ping_interval_ms * 1_000_000,
        "ping_max": options.ping_max,
        "auth_timeout": options.auth_timeout_ms / 1_000,
        "start": _date(wall_ms - now_ms + started_ms),
        "now": _date(wall_ms),
        "uptime": duration(now_ms - started_ms),
        "connections": stats.connections,
        "total_connections": stats.total_connections,
        "subscriptions": stats.subscriptions,
        "in_msgs": stats.in_msgs,
        "in_bytes": stats.in_bytes,
        "out_msgs": stats.out_msgs,
        "out_bytes": stats.out_bytes,
        "slow_consumers": stats.slow_consumers,
        "stale_connections": stats.stale_connections,
        "stalled_clients": stats.stalled_clients,
    }


def connz(plane: Plane, *, now_ms: int, wall_ms: int, limit: int = MONITOR_LIST_DEFAULT) -> dict[str, object]:
    """The connections, oldest first, at most `limit` of them."""
    shown = [_connection(session, now_ms, wall_ms) for session in islice(plane.sessions.values(), limit)]
    return {
        "server_id": plane.options.server_id,
        "now": _date(wall_ms),
        "num_connections": len(shown),
        "total": len(plane.sessions),
        "offset": 0,
        "limit": limit,
        "connections": shown,
    }


def _connection(session: Session, now_ms: int, wall_ms: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "cid": session.id,
        "kind": "Client",
        "type": "nats",
        "ip": session.client_ip,
        "port": session.client_port,
        "start": _date(wall_ms - now_ms + session.started_ms),
        "last_activity": _date(wall_ms - now_ms + session.last_activity_ms),
        "uptime": duration(now_ms - session.started_ms),
        "idle": duration(now_ms - session.last_activity_ms),
        "pending_bytes": session.pending_bytes,
        "in_msgs": session.in_msgs,
        "out_msgs": session.out_msgs,
        "in_bytes": session.in_bytes,
        "out_bytes": session.out_bytes,
        "subscriptions": len(session.subscriptions),
        "paused": session.paused,
    }
    if session.rtt_ms != NEVER_MS:
        shown["rtt"] = f"{session.rtt_ms}ms"
    texts = {
        "name": session.options.name,
        "lang": session.options.lang,
        "version": session.options.version,
        "authorized_user": session.user,
    }
    return shown | {name: text for name, text in texts.items() if text}


def subsz(plane: Plane, *, wall_ms: int, limit: int = MONITOR_LIST_DEFAULT) -> dict[str, object]:
    """The subscriptions, at most `limit` of them, and what the sublist counts."""
    sublist = plane.accounts["$G"].sublist
    shown = []
    for subscription in islice(sublist, limit):
        detail: dict[str, object] = {"subject": subscription.pattern}
        if subscription.queue:
            detail["qgroup"] = subscription.queue
        detail["sid"] = subscription.sid.decode("utf-8", "replace")
        detail["msgs"] = subscription.received
        if subscription.max_messages:
            detail["max"] = subscription.max_messages
        shown.append(detail | {"cid": subscription.session.id})
    return {
        "server_id": plane.options.server_id,
        "now": _date(wall_ms),
        "num_subscriptions": sublist.count,
        "num_cache": plane.forwarder.plans_cached,
        "num_inserts": sublist.inserts,
        "num_removes": sublist.removes,
        "total": sublist.count,
        "offset": 0,
        "limit": limit,
        "subscriptions_list": shown,
    }


def duration(elapsed_ms: int) -> str:
    """`elapsed_ms` as nats-server writes it: 1d2h3m4s, from the first unit that is not zero."""
    seconds = elapsed_ms // 1_000
    text = ""
    for unit, size in _UNITS:
        count, seconds = divmod(seconds, size)
        if count or text:
            text += f"{count}{unit}"
    return f"{text}{seconds}s"


def _date(since_1970_ms: int) -> str:
    moment = datetime.fromtimestamp(since_1970_ms / 1_000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
