"""From a nats.conf to our configuration: the one reader for the `nats-server` entry and for `mesh config import`.

    nats.conf ──nats_config_reader─▶ tree ──nats_config_options─▶ Options ──tables─▶ Tables ──┬─ configuration ─▶ Config
                                                                     ▲                        └─ render ─▶ mesh.toml
                                                         flags of the command line

`Tables` is what a mesh.toml would say, and where each part of it came from. The entry builds the `Config` from it, the
import writes it as a file; reading that file gives the same `Config`. The mesh has one zone, `local`, with one gateway,
and keeps nothing (`delivery-fabric`), as nats-server does without JetStream.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mesh import nats_config_reader as reader
from mesh.nats_config_identity import WITHOUT_LIMIT, User
from mesh.nats_config_options import Options, TlsOptions, default_auth_timeout_ms, read_options
from mesh.nats_config_values import Findings, Origin, split_host_port
from protocol.config import Config
from protocol.config_build import build
from protocol.config_checks import check
from protocol.config_lines import Path
from protocol.config_problems import Problem, dotted
from protocol.config_units import format_duration, format_size, parse_name
from protocol.errors import ConfigError

MESH: Final = "local"
ZONE: Final = "local"
GATEWAY: Final = "gw1"
DEFAULT_HOST: Final = "0.0.0.0"
DEFAULT_PORT: Final = 4222

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_NO_LIMIT: Final = "no limit in nats-server"
_OURS: Final = Origin("", "")
_UNESCAPED_CONTROLS: Final = {code: f"\\u{code:04x}" for code in (0x7F, *range(0x80, 0xA0), 0x2028, 0x2029)}


@dataclass
class Tables:
    """`data` is what a mesh.toml would say; `origins` maps paths in it to where they came from."""

    gateway: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path, Origin] = field(default_factory=dict)

    def put(self, path: tuple[str, ...], value: Any, came_from: Origin = _OURS) -> None:
        """Sets one key, its tables are made as needed."""
        table = self.data
        for step in path[:-1]:
            table = table.setdefault(step, {})
        table[path[-1]] = value
        if came_from is not _OURS:
            self.origins[path] = came_from

    def origin_of(self, path: Path) -> tuple[Origin, Path] | None:
        """Of a path, or of the nearest thing around it that has one, with the rest of the path."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]], path[length:]
        return None


def load(file: str, environment: Mapping[str, str], findings: Findings) -> Options:
    """The options in a file. ConfigError: it is not in nats-server's format; OSError: it cannot be read."""
    tree = reader.read(file, environment)
    options = read_options(tree, file, findings)
    options.config_digest = reader.digest(tree)
    return options


def configuration(tables: Tables) -> Config:
    """The configuration; ConfigError holds all that is wrong, each with the place in the nats.conf or the flag."""
    checked, problems = check(tables.data)
    if problems:
        raise ConfigError([_say(problem, tables) for problem in problems])
    return build(checked)


def _say(problem: Problem, tables: Tables) -> str:
    found = tables.origin_of(problem.path)
    if found is None:
        return ": ".join(part for part in (dotted(problem.path), problem.text) if part)
    came_from, rest = found
    return came_from.render(": ".join(part for part in (dotted(rest), problem.text) if part))


# -- options to tables ------------------------------------------------------------------------------------------------


def tables(options: Options, findings: Findings) -> Tables:
    """What our file would say. `findings` gets what it cannot say."""
    made = Tables(gateway=_gateway_name(options, findings))
    made.put(("mesh", "name"), options.cluster.name or MESH, options.cluster.origins.get("name", _OURS))
    made.put(("mesh", "mode"), "delivery-fabric")
    if options.no_auth_user:
        made.put(("mesh", "no_auth_user"), options.no_auth_user, options.origins["no_auth_user"])
    _put_limits(made, options)
    _put_gateway(made, options, findings)
    _put_cluster(made, options, findings)
    _put_users(made, options, findings)
    if options.tls is not None:
        _put_tls(made, options, options.tls)
    return made


def _gateway_name(options: Options, findings: Findings) -> str:
    if not options.server_name:
        return GATEWAY
    try:
        return parse_name(options.server_name)
    except ValueError as error:
        text = f"{error}; other names are not available in this version"
        findings.problems.append(options.origins["server_name"].render(text))
        return GATEWAY


def _put_limits(made: Tables, options: Options) -> None:
    """What was not given, or given as 0, has our default, which is nats-server's."""
    origins = options.origins
    for name in ("max_payload", "max_control_line", "max_pending"):
        if size_bytes := getattr(options, name):
            value = format_size(size_bytes) if size_bytes > 0 else size_bytes
            made.put(("limits", name), value, origins[name])
    if options.max_connections:
        number = options.max_connections if options.max_connections > 0 else WITHOUT_LIMIT
        made.put(("limits", "max_connections"), number, _maybe_unlimited(number, origins["max_connections"]))
    if options.max_subscriptions > 0:
        made.put(("limits", "max_subscriptions"), options.max_subscriptions, origins["max_subscriptions"])
    if options.max_sub_tokens:
        made.put(("limits", "max_subscription_tokens"), options.max_sub_tokens, origins["max_sub_tokens"])
    if options.ping_max:
        made.put(("limits", "ping_max"), options.ping_max, origins["ping_max"])
    for name in ("ping_interval", "write_deadline"):
        if time_ms := getattr(options, f"{name}_ms"):
            made.put(("limits", name), _duration(time_ms), origins[f"{name}_ms"])
    for name in ("lame_duck_duration", "lame_duck_grace_period"):
        if (time_ms := getattr(options, f"{name}_ms")) is not None:
            made.put(("limits", name), _duration(time_ms), origins[f"{name}_ms"])
    identity = options.identity
    if identity.auth_timeout_ms and identity.auth_timeout_origin is not None:
        made.put(("limits", "auth_timeout"), _duration(identity.auth_timeout_ms), identity.auth_timeout_origin)
    elif options.tls is not None:
        made.put(("limits", "auth_timeout"), _duration(default_auth_timeout_ms(options)), options.tls.origin)


def _maybe_unlimited(number: int, came_from: Origin) -> Origin:
    return came_from._replace(key=f"{came_from.key} ({_NO_LIMIT})") if number == WITHOUT_LIMIT else came_from


def _duration(time_ms: int) -> str:
    return format_duration(time_ms) if time_ms >= 0 else f"-{format_duration(-time_ms)}"


def _put_gateway(made: Tables, options: Options, findings: Findings) -> None:
    at = ("zones", ZONE, "gateways", made.gateway)
    origins = options.origins
    if "server_name" in origins:
        made.origins[at] = origins["server_name"]
    host, port = options.host or DEFAULT_HOST, _port(options.port or DEFAULT_PORT)
    came_from = origins.get("port") or origins.get("host") or _OURS
    advertised = _advertised(options, port, findings)
    made.put((*at, "client"), _address(advertised or host, port), came_from)
    if advertised is not None:
        made.put((*at, "listen"), host, origins["client_advertise"])
    if options.http_port:
        monitor_host = options.http_host or host
        if advertised is not None and monitor_host != host:
            findings.problems.append(
                origins["http_host"].render("another host than the clients' is not available with client_advertise")
            )
        made.put((*at, "monitor"), _address(monitor_host, _port(options.http_port)), origins["http_port"])


def _put_cluster(made: Tables, options: Options, findings: Findings) -> None:
    """Where other servers connect. Which those are is in no file: see `gateway.shell.discovery`."""
    cluster = options.cluster
    cluster.check(findings)
    if not cluster.port:
        return
    at, came_from = ("zones", ZONE, "gateways", made.gateway), cluster.origins["port"]
    host = cluster.host or DEFAULT_HOST
    table = made.data["zones"][ZONE]["gateways"][made.gateway]
    if "listen" in table and table["listen"] != host:
        findings.problems.append(
            came_from.render("another host than the clients' is not available with client_advertise")
        )
    made.put((*at, "mesh"), _address(host, _port(cluster.port)), came_from)
    made.put(("mesh", "insecure"), True, came_from)


def _advertised(options: Options, port: int, findings: Findings) -> str | None:
    """The host that `client_advertise` names; another port than the real one cannot be said."""
    if not options.client_advertise:
        return None
    written, came_from = options.client_advertise, options.origins["client_advertise"]
    host, advertised_port = written, port
    if ":" in written.rpartition("]")[2]:
        try:
            host, advertised_port = split_host_port(written)
        except ValueError as error:
            findings.problems.append(came_from.render(str(error)))
    if advertised_port not in (port, 0, -1):
        findings.problems.append(
            came_from.render(f"another port than the clients' ({port}) is not available in this version")
        )
    return host.strip("[]")


def _port(port: int) -> int:
    return 0 if port == -1 else port


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _put_users(made: Tables, options: Options, findings: Findings) -> None:
    for account, came_from in options.identity.accounts.items():
        made.put(("accounts", account), {}, came_from)
    users = list(options.identity.users)
    single = _single_user(options)
    if single is not None and users:
        findings.notices.append(single.place.render("has no effect, as in nats-server: the file has users"))
    elif single is not None:
        users.append(single)
    if not users:
        return
    made.data["users"] = [user.entry for user in users]
    for index, user in enumerate(users):
        made.origins["users", index] = user.place
        for key, origin in user.origins.items():
            made.origins["users", index, key] = origin


def _single_user(options: Options) -> User | None:
    """The one user, or token, of the file or the flags; a token wins, as in nats-server."""
    of_file = options.identity.single
    values = {key: of_file.entry.get(key, "") if of_file else "" for key in ("user", "password", "token")}
    origins = dict(of_file.origins) if of_file else {}
    for key, name in (("user", "username"), ("password", "password"), ("token", "token")):
        if name in options.origins:
            values[key], origins[key] = getattr(options, name), options.origins[name]
    keys = ["token"] if values["token"] else [key for key in ("user", "password") if values[key]]
    if not keys:
        return None
    user = User(origins[keys[0]])
    for key in keys:
        user.put(key, values[key], origins[key])
    return user


def _put_tls(made: Tables, options: Options, tls: TlsOptions) -> None:
    at = ("tls", "clients")
    made.origins[at] = tls.origin
    names = {"cert_file": "cert", "key_file": "key", "ca_file": "ca", "verify": "verify", "map": "map"}
    for theirs, ours in (names | {"handshake_first": "first"}).items():
        if value := getattr(tls, theirs):
            made.put((*at, ours), value, tls.origins.get(theirs, tls.origin))
    if tls.first_fallback_ms:
        came_from = tls.origins.get("handshake_first", tls.origin)
        made.put((*at, "first_fallback"), _duration(tls.first_fallback_ms), came_from)
    if tls.timeout_ms:
        made.put((*at, "timeout"), _duration(tls.timeout_ms), tls.origins.get("timeout_ms", tls.origin))
    if options.allow_non_tls:
        made.put((*at, "allow_non_tls"), True, options.origins["allow_non_tls"])


# -- tables to text ---------------------------------------------------------------------------------------------------


def render(made: Tables, head: Sequence[str] = ()) -> str:
    """The tables as TOML; comments say where each part came from. `head` are comment lines at the top."""
    lines = [f"# {line}".rstrip() for line in head]
    for name in ("mesh", "limits"):
        if name in made.data:
            lines += ["", f"[{name}]", *_keys(made, (name,), made.data[name])]
    at = ("zones", ZONE, "gateways", made.gateway)
    table = made.data["zones"][ZONE]["gateways"][made.gateway]
    lines += ["", _with_origin(f"[{dotted(at)}]", made.origins.get(at)), *_keys(made, at, table)]
    for account in made.data.get("accounts", {}):
        path = ("accounts", account)
        lines += ["", _with_origin(f"[{dotted(path)}]", made.origins.get(path))]
    for index, user in enumerate(made.data.get("users", ())):
        header = _with_origin("[[users]]", made.origins.get(("users", index)))
        lines += ["", header, *_keys(made, ("users", index), user)]
    if "tls" in made.data:
        clients: Path = ("tls", "clients")
        header = _with_origin("[tls.clients]", made.origins.get(clients))
        lines += ["", header, *_keys(made, clients, made.data["tls"]["clients"])]
    return "\n".join(lines).lstrip("\n") + "\n"


def _keys(made: Tables, at: Path, table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        came_from = made.origins.get((*at, key))
        for path, leaf in _leaves((key,), value):
            yield _with_origin(f"{'.'.join(map(_key, path))} = {_toml(leaf)}", came_from)


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Tables within tables as dotted keys: `permissions.publish.allow = [...]`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves((*path, key), inner)
    else:
        yield path, value


def _with_origin(line: str, came_from: Origin | None) -> str:
    return f"{line}  # {_one_line(str(came_from))}" if came_from is not None else line


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml(key)


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False).translate(_UNESCAPED_CONTROLS)


def environment() -> Mapping[str, str]:
    """That of this process."""
    return os.environ
