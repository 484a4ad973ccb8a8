"""Users, permissions and accounts of a nats.conf, in the form of our `[[users]]`.

nats-server's rules that are not obvious, kept here:

- default permissions are for the users of their block that have none of their own; `permissions: {}` is one's own;
- `publish: "a.>"`, `publish: ["a.>"]` and `publish: { allow: "a.>" }` mean the same;
- an empty list allows everything, as if it were not there (our own `allow = []` allows nothing);
- `allow_responses` without an allow list denies all other publishing;
- negative `max` and `expires` of `allow_responses` mean without limit, 0 means the default.

Source: nats-server `server/opts.go`, parseAuthorization, parseAccounts, parseUsers, parseUserPermissions.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from mesh.nats_config_reader import Node, Tree
from mesh.nats_config_values import (
    Findings,
    Lacking,
    Origin,
    Wrong,
    described,
    duration_ms,
    each_key,
    integer,
    nodes,
    only,
    origin,
    seconds_ms,
    table,
    text,
    texts,
)
from protocol import limits
from protocol.accounts import DEFAULT_ACCOUNT
from protocol.config_units import format_duration, parse_name, shown
from protocol.subjects import is_valid_pattern

WITHOUT_LIMIT: Final = 2**31 - 1
_AUTH_TIMEOUT_MS_USUAL: Final = 60_000  # above it, nats-server suspects a mistake
_SYSTEM_ACCOUNT: Final = "$SYS"

_ACCOUNT_LACKS: Final = {
    "nkey": Lacking("an account with a key (JWT authentication)"),
    "imports": Lacking("importing between accounts"),
    "exports": Lacking("exporting to other accounts"),
    "jetstream": Lacking("JetStream", only(False, "disabled", "disable", {})),
    "mappings": Lacking("subject mapping"),
    "maps": Lacking("subject mapping"),
    "limits": Lacking("limits of an account"),
    "msg_trace": Lacking("message tracing"),
    "trace_dest": Lacking("message tracing"),
}
_AUTHORIZATION_LACKS: Final = {
    "auth_callout": Lacking("authorization by a service (auth callout)"),
    "auth_hook": Lacking("authorization by a service (auth callout)"),
    "proxy_required": Lacking("demanding a proxy of clients", only(False)),
}


@dataclass
class User:
    """`entry` has the keys of our `[[users]]`, `origins` say where they come from."""

    place: Origin
    entry: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    has_permissions: bool = False

    def put(self, ours: str, value: Any, came_from: Origin) -> None:
        self.entry[ours] = value
        self.origins[ours] = came_from


@dataclass
class Identity:
    """Who may connect. `single` is the one user, or token, of `authorization { user, password }`."""

    users: list[User] = field(default_factory=list)
    single: User | None = None
    accounts: dict[str, Origin] = field(default_factory=dict)
    auth_timeout_ms: int | None = None
    auth_timeout_origin: Origin | None = None


def read_identity(tree: Tree, findings: Findings) -> Identity:
    """From the keys `authorization` and `accounts` of the whole file."""
    identity = Identity()
    for key, node in tree.items():
        with findings.collecting():
            match key.lower():
                case "authorization":
                    _Authorization(identity, findings).read(key, node)
                case "accounts":
                    _read_accounts(identity, key, node, findings)
    _one_kind_of_users(identity, findings)
    return identity


def _one_kind_of_users(identity: Identity, findings: Findings) -> None:
    if identity.single is not None and identity.users:
        kind = "token" if "token" in identity.single.entry else "single user/pass"
        also = "accounts" if identity.accounts else "a users array"
        findings.problems.append(identity.single.place.render(f"can not have a {kind} and {also}"))


# -- authorization ----------------------------------------------------------------------------------------------------


class _Authorization:
    def __init__(self, identity: Identity, findings: Findings) -> None:
        self._identity, self._findings = identity, findings
        self._single: User | None = None
        self._users: list[User] = []
        self._has_users = False
        self._is_variable = False  # such as `PASS: secret`, for `$PASS` in the users
        self._defaults: tuple[dict[str, Any], Origin] | None = None

    def read(self, key: str, node: Node) -> None:
        self._single = User(origin(key, node))
        credentials = {"user": "user", "username": "user", "pass": "password", "password": "password", "token": "token"}
        handlers = dict.fromkeys(credentials, self._credential) | {
            "timeout": self._timeout,
            "users": self._take_users,
            **dict.fromkeys(("default_permission", "default_permissions", "permissions"), self._default_permissions),
            **{name: lacking.take for name, lacking in _AUTHORIZATION_LACKS.items()},
        }
        self._names = credentials
        each_key(table(key, node), handlers, self._findings)
        self._finish()

    def _credential(self, key: str, node: Node) -> None:
        value = text(key, node)
        if value and self._single is not None:
            self._single.put(self._names[key.lower()], value, origin(key, node))
            self._is_variable = self._is_variable or node.used

    def _timeout(self, key: str, node: Node) -> None:
        timeout_ms = seconds_ms(key, node)
        if timeout_ms > _AUTH_TIMEOUT_MS_USUAL:
            self._findings.warnings.append(
                origin(key, node).render(
                    f"{format_duration(timeout_ms)} is long, consider keeping it under 60 seconds; a duration without "
                    'quotes, 1m for "1m", is a number of seconds'
                )
            )
        self._identity.auth_timeout_ms = timeout_ms
        self._identity.auth_timeout_origin = origin(key, node)

    def _take_users(self, key: str, node: Node) -> None:
        self._has_users = True
        self._users = read_users(key, node, self._findings)

    def _default_permissions(self, key: str, node: Node) -> None:
        self._defaults = read_permissions(key, node, self._findings), origin(key, node)

    def _finish(self) -> None:
        single = self._single
        assert single is not None
        if "token" in single.entry and len(single.entry) > 1:
            raise Wrong(single.place, "cannot have a user/pass and a token")
        if set(single.entry) == {"password"}:  # nats-server would let everybody in
            if not self._is_variable:
                raise Wrong(single.origins["password"], "a password without a user")
        elif single.entry:
            if self._has_users:
                kind = "token" if "token" in single.entry else "single user/pass"
                raise Wrong(single.place, f"can not have a {kind} and a users array")
            self._identity.single = single
        if self._defaults is not None:
            _apply_defaults(self._users, *self._defaults)
            if not self._users:
                self._findings.notices.append(
                    self._defaults[1].render("has no effect, as in nats-server: it is for `users` without their own")
                )
        self._identity.users += self._users


def _apply_defaults(users: list[User], permissions: dict[str, Any], came_from: Origin) -> None:
    for user in users:
        if not user.has_permissions and permissions:
            user.put("permissions", permissions, came_from)


# -- accounts ---------------------------------------------------------------------------------------------------------


def _read_accounts(identity: Identity, key: str, node: Node, findings: Findings) -> None:
    if isinstance(node.value, list):  # names alone
        for each in node.value:
            with findings.collecting():
                _declare(identity, text(key, each), origin(key, each))
        return
    for name, account in table(key, node).items():
        if account.used:  # a variable that is used elsewhere
            continue
        with findings.collecting():
            _declare(identity, name, origin(name, account))
            _read_account(identity, name, account, findings)


def _declare(identity: Identity, name: str, came_from: Origin) -> None:
    if name == DEFAULT_ACCOUNT:
        raise Wrong(came_from, f"{shown(name)} is a Reserved Account")
    if name == _SYSTEM_ACCOUNT:
        raise Wrong(came_from, "the system account is not available in this version; remove it")
    if name in identity.accounts:
        raise Wrong(came_from, f"Duplicate Account Entry: {name}")
    try:
        parse_name(name)
    except ValueError as error:
        raise Wrong(came_from, f"{error}; other names of accounts are not available in this version") from None
    identity.accounts[name] = came_from


def _read_account(identity: Identity, name: str, node: Node, findings: Findings) -> None:
    users: list[User] = []
    defaults: list[tuple[dict[str, Any], Origin]] = []

    def take_users(key: str, value: Node) -> None:
        users.extend(read_users(key, value, findings))

    def take_defaults(key: str, value: Node) -> None:
        defaults.append((read_permissions(key, value, findings), origin(key, value)))

    handlers = {
        "users": take_users,
        "default_permissions": take_defaults,
        **{key: lacking.take for key, lacking in _ACCOUNT_LACKS.items()},
    }
    each_key(table(name, node), handlers, findings)
    for permissions, came_from in defaults:
        _apply_defaults(users, permissions, came_from)
    for user in users:
        user.put("account", name, origin(name, node))
    identity.users += users


# -- users ------------------------------------------------------------------------------------------------------------


def read_users(key: str, node: Node, findings: Findings) -> list[User]:
    """Every user of a list that can be used; what is wrong with others is noted."""
    users = []
    for each in nodes(key, node):
        with findings.collecting():
            users.append(_read_user(each, findings))
    return users


def _read_user(node: Node, findings: Findings) -> User:
    user = User(Origin(str(node.place), ""))
    names = {"nkey": "nkey", "user": "user", "username": "user", "pass": "password", "password": "password"}

    def credential(key: str, value: Node) -> None:
        if written := text(key, value):
            user.put(names[key.lower()], written, origin(key, value))

    def permissions(key: str, value: Node) -> None:
        user.has_permissions = True
        if found := read_permissions(key, value, findings):
            user.put("permissions", found, origin(key, value))

    handlers = dict.fromkeys(names, credential) | {
        **dict.fromkeys(("permission", "permissions", "authorization"), permissions),
        **dict.fromkeys(("allowed_connection_types", "connection_types", "clients"), _connection_types),
        "proxy_required": Lacking("demanding a proxy of a user", only(False)).take,
    }
    if not isinstance(node.value, dict):
        raise Wrong(node.place, f"expected user entry to be a map/struct, got {described(node)}")
    each_key(node.value, handlers, findings)
    if "nkey" in user.entry and ("user" in user.entry or "password" in user.entry):
        raise Wrong(node.place, "nkey users do not take usernames or passwords")
    if "nkey" not in user.entry and "user" not in user.entry:
        raise Wrong(node.place, "user entry requires a user")
    return user


def _connection_types(key: str, node: Node) -> None:
    """We have one type of connection; a user that may not use it would be locked out."""
    types = [each.upper() for each in texts(key, node)]
    if types and "STANDARD" not in types:
        raise Wrong(origin(key, node), f"connections of type {', '.join(types)} are not available in this version")


# -- permissions ------------------------------------------------------------------------------------------------------


def read_permissions(key: str, node: Node, findings: Findings) -> dict[str, Any]:
    """What our `permissions` says for a map of nats-server's; empty: everything is allowed."""
    found: dict[str, Any] = {}

    def publish(name: str, value: Node) -> None:
        found["publish"] = _read_rule(name, value, findings, queues=False)

    def subscribe(name: str, value: Node) -> None:
        found["subscribe"] = _read_rule(name, value, findings, queues=True)

    def responses(name: str, value: Node) -> None:
        if isinstance(value.value, bool):
            found["allow_responses"] = _responses() if value.value else None
        else:
            found["allow_responses"] = _read_responses(name, value, findings)

    handlers = {
        **dict.fromkeys(("pub", "publish", "import"), publish),
        **dict.fromkeys(("sub", "subscribe", "export"), subscribe),
        **dict.fromkeys(("publish_allow_responses", "allow_responses"), responses),
    }
    each_key(table(key, node), handlers, findings)
    if found.get("allow_responses"):
        found["publish"] = {"allow": []} | found.get("publish", {})
    return {name: rule for name, rule in found.items() if rule}


def _read_rule(key: str, node: Node, findings: Findings, *, queues: bool) -> dict[str, list[str]]:
    rule: dict[str, list[str]] = {}

    def subjects(name: str, value: Node) -> None:
        patterns = [_pattern(name, value, written, queues=queues) for written in texts(name, value)]
        if patterns:
            rule[name.lower() if value is not node else "allow"] = patterns
        elif value is node or name.lower() == "allow":
            findings.notices.append(
                origin(name, value).render("an empty list allows everything in nats-server, and so it does here")
            )

    if isinstance(node.value, dict):
        each_key(node.value, {"allow": subjects, "deny": subjects}, findings)
    else:
        subjects(key, node)
    return rule


def _pattern(key: str, node: Node, written: str, *, queues: bool) -> str:
    if is_valid_pattern(written):
        return written
    words = written.split()
    if queues and len(words) == 2 and all(map(is_valid_pattern, words)):
        return " ".join(words)
    raise Wrong(origin(key, node), f"subject {shown(written)} is not a valid subject")


def _responses(
    messages_max: int = limits.RESPONSES_MAX, expires_ms: int = limits.RESPONSES_EXPIRE_MS
) -> dict[str, Any]:
    return {"max": messages_max, "expires": format_duration(expires_ms)}


def _read_responses(key: str, node: Node, findings: Findings) -> dict[str, Any]:
    found: dict[str, int] = {}

    def messages_max(name: str, value: Node) -> None:
        if number := integer(name, value):
            found["messages_max"] = WITHOUT_LIMIT if number < 0 else number

    def expires(name: str, value: Node) -> None:
        if time_ms := duration_ms(name, value):
            found["expires_ms"] = limits.CONFIG_DURATION_MS_MAX if time_ms < 0 else time_ms

    handlers = {
        **dict.fromkeys(("max", "max_msgs", "max_messages", "max_responses"), messages_max),
        **dict.fromkeys(("expires", "expiration", "ttl"), expires),
    }
    each_key(table(key, node), handlers, findings)
    return _responses(**found)
