"""The options of a nats-server: what its configuration file and its flags say, in one object.

`read_options` fills it from a file; the command line (`nats_server_flags`) overrides parts of it; `nats_config` makes
our configuration of it. Names, defaults and meanings are nats-server's (`server/opts.go`); None and 0 mean that the
default holds. `origins` says for each field where its value came from.

What nats-server can do and we cannot is a `Lacking`: refused by name, unless its value asks for nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.nats_config_cluster import ClusterOptions, read_cluster
from mesh.nats_config_identity import Identity, read_identity
from mesh.nats_config_reader import Node, Tree
from mesh.nats_config_values import (
    Findings,
    Lacking,
    Origin,
    Wrong,
    boolean,
    described,
    duration_ms,
    each_key,
    integer,
    listen,
    only,
    origin,
    parse_go_duration,
    seconds_ms,
    table,
    text,
)
from protocol import limits

_JETSTREAM: Final = "JetStream"
_ROUTES: Final = "a cluster of nats-servers"
_OPERATORS: Final = "JWT authentication"
_SYSTEM: Final = "the system account"
_NEVER: Final[Callable[[Node], bool]] = lambda node: False  # noqa: E731
_ANY: Final[Callable[[Node], bool]] = lambda node: True  # noqa: E731  # it tunes what we do not have

_LACKS: Final = {
    "mappings": Lacking("subject mapping"),
    "maps": Lacking("subject mapping"),
    "default_sentinel": Lacking(_OPERATORS, only("")),
    "https": Lacking("monitoring over HTTPS", only(0)),
    "https_port": Lacking("monitoring over HTTPS", only(0)),
    "http_base_path": Lacking("a base path of monitoring", only("", "/")),
    "gateway": Lacking("a super-cluster of nats-servers"),
    "leaf": Lacking("leaf nodes"),
    "leafnodes": Lacking("leaf nodes"),
    "store_dir": Lacking(_JETSTREAM, _ANY),  # where JetStream would keep its files, if it were on
    "storedir": Lacking(_JETSTREAM, _ANY),
    "jetstream": Lacking(_JETSTREAM, only(False, "disabled", "disable")),
    "default_js_domain": Lacking(_JETSTREAM),
    "syslog": Lacking("logging to syslog", only(False)),
    "remote_syslog": Lacking("logging to syslog", only("")),
    "prof_port": Lacking("a profiling port", only(0)),
    "prof_block_rate": Lacking("a profiling port", only(0)),
    "proxy_protocol": Lacking("the PROXY protocol", only(False)),
    "proxies": Lacking("trusting proxies"),
    "ocsp": Lacking("OCSP", only(False)),
    "ocsp_cache": Lacking("OCSP", only(False)),
    "write_timeout": Lacking("another policy for slow consumers than to close", only("default", "close")),
    "operator": Lacking(_OPERATORS),
    "operators": Lacking(_OPERATORS),
    "roots": Lacking(_OPERATORS),
    "root": Lacking(_OPERATORS),
    "root_operators": Lacking(_OPERATORS),
    "root_operator": Lacking(_OPERATORS),
    "resolver": Lacking(_OPERATORS),
    "account_resolver": Lacking(_OPERATORS),
    "accounts_resolver": Lacking(_OPERATORS),
    "resolver_tls": Lacking(_OPERATORS),
    "resolver_preload": Lacking(_OPERATORS),
    "resolver_pinned_accounts": Lacking(_OPERATORS),
    "trusted": Lacking(_OPERATORS),
    "trusted_keys": Lacking(_OPERATORS),
    "system_account": Lacking(_SYSTEM, only("$sys", "")),
    "system": Lacking(_SYSTEM, only("$sys", "")),
    "no_system_account": Lacking(_SYSTEM, _ANY),
    "no_system": Lacking(_SYSTEM, _ANY),
    "no_sys_acc": Lacking(_SYSTEM, _ANY),
    "no_header_support": Lacking("a server without headers", only(False)),
    "disable_sublist_cache": Lacking("a server without route cache", _ANY),
    "no_sublist_cache": Lacking("a server without route cache", _ANY),
    "connect_error_reports": Lacking(_ROUTES, _ANY),
    "reconnect_error_reports": Lacking(_ROUTES, _ANY),
    "websocket": Lacking("WebSocket"),
    "ws": Lacking("WebSocket"),
    "mqtt": Lacking("MQTT"),
    "server_tags": Lacking("tags of a server"),
    "server_metadata": Lacking("metadata of a server"),
    "feature_flags": Lacking("a feature flag"),
    "no_fast_producer_stall": Lacking("not slowing fast producers down", only(False)),
    "max_closed_clients": Lacking("a limit of closed connections that are remembered"),
}
_TLS_LACKS: Final = {
    "insecure": Lacking("", _ANY),  # concerns a server only where it is the client
    "verify_cert_and_check_known_urls": Lacking("checking the URLs of clients", only(False)),
    "allow_insecure_cipher_suites": Lacking("insecure cipher suites", only(False)),
    "cipher_suites": Lacking("choosing cipher suites", _NEVER),
    "curve_preferences": Lacking("choosing curves", _NEVER),
    "connection_rate_limit": Lacking("a limit of handshakes", only(0)),
    "pinned_certs": Lacking("pinning certificates"),
    "cert_store": Lacking("the certificate store of Windows"),
    "cert_match_by": Lacking("the certificate store of Windows"),
    "cert_match": Lacking("the certificate store of Windows"),
    "ca_certs_match": Lacking("the certificate store of Windows"),
    "cert_match_skip_invalid": Lacking("the certificate store of Windows"),
    "ocsp_peer": Lacking("OCSP", only(False)),
    "min_version": Lacking("another lowest version than TLS 1.2", only("1.2")),
}
_INT32_MAX: Final = 2**31 - 1
_UINT8_MAX: Final = 2**8 - 1
_FIRST_FALLBACK_MS: Final = 50  # nats-server's `auto`


@dataclass
class TlsOptions:
    origin: Origin
    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    verify: bool = False
    map: bool = False
    timeout_ms: int = 0
    handshake_first: bool = False
    first_fallback_ms: int = 0
    origins: dict[str, Origin] = field(default_factory=dict)


@dataclass
class Options:
    """Sizes in bytes. `port` and `http_port`: 0 is the default, -1 any free one."""

    host: str = ""
    port: int = 0
    server_name: str = ""
    client_advertise: str = ""
    http_host: str = ""
    http_port: int = 0
    max_payload: int = 0
    max_control_line: int = 0
    max_pending: int = 0
    max_connections: int = 0
    max_subscriptions: int = 0
    max_sub_tokens: int = 0
    ping_interval_ms: int = 0
    ping_max: int = 0
    write_deadline_ms: int = 0
    lame_duck_duration_ms: int | None = None
    lame_duck_grace_period_ms: int | None = None
    username: str = ""
    password: str = ""
    token: str = ""
    identity: Identity = field(default_factory=Identity)
    no_auth_user: str = ""
    tls: TlsOptions | None = None
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    allow_non_tls: bool = False
    debug: bool = False
    trace: bool = False
    trace_headers: bool = False
    max_traced_msg_len: int = 0
    logtime: bool = True
    logtime_utc: bool = False
    log_file: str = ""
    log_size_limit: int = 0
    log_max_files: int = 0
    pid_file: str = ""
    ports_file_dir: str = ""
    config_file: str = ""
    config_digest: str = ""
    origins: dict[str, Origin] = field(default_factory=dict)

    def put(self, name: str, value: Any, came_from: Origin) -> None:
        """Sets a field, and where it came from."""
        setattr(self, name, value)
        self.origins[name] = came_from


def read_options(tree: Tree, file: str, findings: Findings) -> Options:
    """What the file says; `findings` gets all that is wrong with it."""
    options = Options(config_file=file)
    if not tree:
        findings.warnings.append(f"{file}: config has no values or is empty")
    each_key(tree, _Handlers(options, findings).by_key(), findings)
    options.identity = read_identity(tree, findings)
    return options


class _Handlers:
    """What each key of the top level does."""

    def __init__(self, options: Options, findings: Findings) -> None:
        self._options, self._findings = options, findings

    def by_key(self) -> dict[str, Callable[[str, Node], None]]:
        put = self._put
        return {
            **{key: lacking.take for key, lacking in _LACKS.items()},
            **dict.fromkeys(("authorization", "accounts"), lambda key, node: None),  # read by read_identity
            "listen": self._listen("host", "port"),
            "port": put("port", integer),
            **dict.fromkeys(("host", "net"), put("host", text)),
            "server_name": put("server_name", text),
            "client_advertise": put("client_advertise", text),
            "http": self._listen("http_host", "http_port"),
            **dict.fromkeys(("http_port", "monitor_port"), put("http_port", integer)),
            "max_payload": put("max_payload", _size_32),
            "max_control_line": put("max_control_line", _size_32),
            "max_pending": put("max_pending", integer),
            **dict.fromkeys(("max_connections", "max_conn"), put("max_connections", _or_without_limit)),
            **dict.fromkeys(("max_subscriptions", "max_subs"), put("max_subscriptions", integer)),
            **dict.fromkeys(("max_sub_tokens", "max_subscription_tokens"), put("max_sub_tokens", _tokens)),
            "ping_interval": self._duration("ping_interval_ms"),
            "ping_max": put("ping_max", integer),
            "write_deadline": self._duration("write_deadline_ms"),
            "lame_duck_duration": put("lame_duck_duration_ms", duration_ms),
            "lame_duck_grace_period": put("lame_duck_grace_period_ms", duration_ms),
            "no_auth_user": put("no_auth_user", text),
            "tls": self._tls,
            "cluster": self._cluster,
            "allow_non_tls": put("allow_non_tls", boolean),
            "debug": put("debug", boolean),
            **dict.fromkeys(("trace", "trace_verbose"), put("trace", boolean)),
            "trace_headers": self._trace_headers,
            "max_traced_msg_len": put("max_traced_msg_len", integer),
            "logtime": put("logtime", boolean),
            "logtime_utc": put("logtime_utc", boolean),
            **dict.fromkeys(("logfile", "log_file"), put("log_file", text)),
            **dict.fromkeys(("logfile_size_limit", "log_size_limit"), put("log_size_limit", integer)),
            **dict.fromkeys(("logfile_max_num", "log_max_num"), put("log_max_files", integer)),
            **dict.fromkeys(("pidfile", "pid_file"), put("pid_file", text)),
            "ports_file_dir": put("ports_file_dir", text),
        }

    def _put(self, name: str, read: Callable[[str, Node], Any]) -> Callable[[str, Node], None]:
        def take(key: str, node: Node) -> None:
            self._options.put(name, read(key, node), origin(key, node))

        return take

    def _listen(self, host_name: str, port_name: str) -> Callable[[str, Node], None]:
        def take(key: str, node: Node) -> None:
            host, port = listen(key, node)
            self._options.put(host_name, host, origin(key, node))
            self._options.put(port_name, port, origin(key, node))

        return take

    def _duration(self, name: str) -> Callable[[str, Node], None]:
        """A number is taken for seconds, as in nats-servers of old."""

        def take(key: str, node: Node) -> None:
            if isinstance(node.value, int) and not isinstance(node.value, bool):
                warning = f'{node.place}: invalid use of field "{key}": {key} should be converted to a duration'
                self._findings.warnings.append(warning)
                self._options.put(name, node.value * 1000, origin(key, node))
            else:
                self._options.put(name, duration_ms(key, node), origin(key, node))

        return take

    def _trace_headers(self, key: str, node: Node) -> None:
        for name in ("trace", "trace_headers"):
            self._options.put(name, boolean(key, node), origin(key, node))

    def _cluster(self, key: str, node: Node) -> None:
        read_cluster(key, node, self._findings, self._options.cluster)

    def _tls(self, key: str, node: Node) -> None:
        self._options.put("tls", read_tls(key, node, self._findings), origin(key, node))


def _size_32(key: str, node: Node) -> int:
    size_bytes = integer(key, node)
    if size_bytes > _INT32_MAX:
        raise Wrong(node.place, f"{key} value is too big")
    return size_bytes


def _tokens(key: str, node: Node) -> int:
    number = integer(key, node)
    if not 0 < number <= _UINT8_MAX:
        raise Wrong(node.place, f"{key} value {'is too big' if number > 0 else 'can not be negative'}")
    return number


def _or_without_limit(key: str, node: Node) -> int:
    return integer(key, node) or -1


# -- TLS --------------------------------------------------------------------------------------------------------------


def read_tls(key: str, node: Node, findings: Findings) -> TlsOptions:
    """The map `tls`."""
    tls = TlsOptions(origin=origin(key, node))

    def put(name: str, read: Callable[[str, Node], Any]) -> Callable[[str, Node], None]:
        def take(key: str, node: Node) -> None:
            setattr(tls, name, read(key, node))
            tls.origins[name] = origin(key, node)

        return take

    def verify_and_map(key: str, node: Node) -> None:
        tls.map = boolean(key, node)
        tls.verify = tls.verify or tls.map
        tls.origins["map"] = tls.origins["verify"] = origin(key, node)

    def handshake_first(key: str, node: Node) -> None:
        tls.handshake_first, tls.first_fallback_ms = _handshake_first(key, node)
        tls.origins["handshake_first"] = origin(key, node)

    def several(key: str, node: Node) -> None:
        tls.cert_file = tls.key_file = key  # so that they are not reported as missing, too
        Lacking("a choice of several certificates").take(key, node)

    handlers = {
        "cert_file": put("cert_file", text),
        "key_file": put("key_file", text),
        "ca_file": put("ca_file", text),
        "verify": put("verify", lambda key, node: boolean(key, node) or tls.map),
        "verify_and_map": verify_and_map,
        **dict.fromkeys(("certs", "certificates"), several),
        "timeout": put("timeout_ms", seconds_ms),
        **dict.fromkeys(("handshake_first", "first", "immediate"), handshake_first),
        **{name: lacking.take for name, lacking in _TLS_LACKS.items()},
    }
    each_key(table(key, node), handlers, findings)
    return tls


def _handshake_first(key: str, node: Node) -> tuple[bool, int]:
    """Whether the handshake comes first, and after how many milliseconds of silence the greeting does; 0: never."""
    if isinstance(node.value, bool):
        return node.value, 0
    written = node.value.lower() if isinstance(node.value, str) else ""
    if written in ("true", "on", "false", "off"):
        return written in ("true", "on"), 0
    if written in ("auto", "auto_fallback"):
        return True, _FIRST_FALLBACK_MS
    try:
        return True, max(0, parse_go_duration(text(key, node)))
    except (ValueError, Wrong):
        kinds = 'true, false, auto or a duration such as "300ms"'
        raise Wrong(origin(key, node), f"must be {kinds}, got {described(node)}") from None


# -- what the command line gives --------------------------------------------------------------------------------------


def default_auth_timeout_ms(options: Options) -> int:
    """Time for CONNECT where nothing else is said: with TLS a second longer than the handshake may take."""
    if options.tls is None:
        return limits.AUTH_TIMEOUT_MS
    return (options.tls.timeout_ms or limits.TLS_TIMEOUT_MS) + 1000
