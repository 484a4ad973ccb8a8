"""What of a changed configuration file a running server goes by (SIGHUP, `--signal reload`), in nats-server's words.

All or nothing: who changes one thing that needs a restart is told its name, and the server goes on as it was. Needing a
restart, where nats-server does without one: `client_advertise`, `trace` and what belongs to it, and all of `cluster`.

Not as there: what did not change is not spoken of (nats-server says `authorization users` and `accounts` each time);
clients whose user did not change stay (nats-server cuts those of a single `authorization { user, password }`);
flags hold as at the start (nats-server forgets `--name`, and then refuses).

Source: nats-server `server/reload.go` (diffOptions).
"""

from collections.abc import Iterator
from typing import Any, Final

from gateway.core.nats_values import go_duration
from mesh.nats_config_cluster import ClusterOptions
from mesh.nats_config_options import Options
from protocol.config import Config

_NEEDS_RESTART: Final = {
    "server_name": "ServerName",
    "host": "Host",
    "port": "Port",
    "client_advertise": "ClientAdvertise",
    "http_host": "HTTPHost",
    "http_port": "HTTPPort",
    "max_sub_tokens": "MaxSubTokens",
    "no_auth_user": "NoAuthUser",
    "allow_non_tls": "AllowNonTLS",
    "trace": "Trace",
    "trace_headers": "TraceHeaders",
    "max_traced_msg_len": "MaxTracedMsgLen",
    "log_size_limit": "LogSizeLimit",
    "log_max_files": "LogMaxFiles",
}
"""Fields of `Options`, and nats-server's names of them."""
_LIMITS_NEED_RESTART: Final = {
    "max_pending_bytes": "MaxPending",
    "max_subscriptions": "MaxSubs",
    "lame_duck_duration_ms": "LameDuckDuration",
    "lame_duck_grace_period_ms": "LameDuckGracePeriod",
}
_LOGGING: Final = ("debug", "logtime", "logtime_utc", "log_file", "pid_file", "ports_file_dir")
_LIMITS: Final = {
    "max_connections": "max_connections",
    "ping_interval_ms": "ping_interval",
    "ping_max": "ping_max",
    "auth_timeout_ms": "authorization timeout",
    "max_control_line_bytes": "max_control_line",
    "max_payload_bytes": "max_payload",
    "write_deadline_ms": "write_deadline",
}


def refusal(before: Options, wanted: Options, old: Config, new: Config) -> str | None:
    """What has changed, if it needs a restart. `old` and `new` are what `before` and `wanted` mean."""
    refused = "config reload not supported for"
    for field, name in _NEEDS_RESTART.items():
        was, is_now = getattr(before, field), getattr(wanted, field)
        if was != is_now and not (field == "no_auth_user" and not is_now and was not in _users(wanted)):
            return f"{refused} {name}: old={_shown(field, was)}, new={_shown(field, is_now)}"
    for field, name in _LIMITS_NEED_RESTART.items():
        was, is_now = getattr(old.limits, field), getattr(new.limits, field)
        if was != is_now:
            return f"{refused} {name}: old={_shown(field, was)}, new={_shown(field, is_now)}"
    if _without_origins(before.cluster) != _without_origins(wanted.cluster):
        return f"{refused} Cluster"
    return None


def _users(options: Options) -> list[str]:
    """Those of the file: without its user `no_auth_user` may go."""
    return [str(user.entry.get("user", "")) for user in options.identity.users]


def _without_origins(cluster: ClusterOptions) -> dict[str, Any]:
    return {name: value for name, value in vars(cluster).items() if name != "origins"}


def _shown(field: str, value: Any) -> str:
    if field.endswith("_ms"):
        return go_duration(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def told(before: Options, wanted: Options, old: Config, new: Config) -> Iterator[str]:
    """One sentence for each change. Nothing of passwords, tokens and nkeys."""
    for field in _LOGGING:
        if getattr(before, field) != getattr(wanted, field):
            yield f"Reloaded: {field} = {_shown(field, getattr(wanted, field))}"
    if old.tls_clients != new.tls_clients or new.tls_clients is not None:  # its files may be others
        yield f"Reloaded: tls = {'disabled' if new.tls_clients is None else 'enabled'}"
    if old.users != new.users:
        yield "Reloaded: authorization users"
    if old.accounts != new.accounts:
        yield "Reloaded: accounts"
    for field, name in _LIMITS.items():
        value = getattr(new.limits, field)
        if value != getattr(old.limits, field):
            yield f"Reloaded: {name} = {value // 1_000 if field == 'auth_timeout_ms' else _shown(field, value)}"
