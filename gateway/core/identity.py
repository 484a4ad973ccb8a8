"""Who a client is and what it may do: users, their secrets, their permissions.

Permissions are NATS's: a list of allowed patterns denies everything else (an empty list denies all), a denied pattern
wins over an allowed one. A subscription permission may name a queue too, `"orders.* workers"`; it then speaks of queue
subscriptions only. Two rules differ from nats-server, both towards safety:

- a wildcard subscription needs an allowed pattern that covers *all* of it (nats-server lets `foo.>` pass where `foo.*`
  is allowed, and then delivers `foo.a.b`);
- an empty allow list allows nothing (nats-server ignores an empty one).

A subscription that is allowed but wide enough to meet a denied pattern is kept; what is denied is left out at delivery.

A role is a set of ready-made permissions; what a user's own permissions say takes the place of the role's, one by one:

    publisher     publishes everything; subscribes to inboxes alone, for answers
    subscriber    subscribes to everything; publishes nothing
    replayer      the same, and reads the history of every stream
    operator      everything, `$AUDIT` and `$COVERAGE` too, which nobody else reads

Who may read the history of named streams may ask for it, too: `$LOG.>` need not stand among what is allowed to be
published. Without users everybody is an operator; a user without a role may do everything but what operators alone may.

A client is known by the first of these that decides: its nkey and a signature over the nonce of INFO; the certificate
of its TLS connection, where those name users; user and password; a token. Who presents nothing at all is
`no_auth_user`, if there is one; but nobody where that has a bcrypt password: nats-server compares the hash with
itself, and so refuses. A JWT counts for nothing, as with a nats-server without operators.

Passwords and tokens are plain or bcrypt. Bcrypt is slow on purpose, so this module never computes it: `Directory.check`
hands out a `Verification`, and whoever runs threads gives the verdict back.

Source: NATS documentation, 'Authorization'; nats-server `server/client.go` (canSubscribe, pubAllowed, checkDenySub) and
`server/auth.go` (processClientOrLeafAuthentication, validateResponsePermissions).
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hmac import compare_digest
from typing import Final, NamedTuple

from gateway.core.certificates import CertificateUsers
from gateway.core.encryption import PeerCertificate
from protocol import nkeys, subjects
from protocol.accounts import DEFAULT_ACCOUNT
from protocol.config import Role
from protocol.limits import PERMISSION_VERDICTS_MAX, RESPONSES_EXPIRE_MS, RESPONSES_MAX, RESPONSES_TRACKED_MAX

_BCRYPT = re.compile(r"\$2[abxy]\$\d{2}\$.+")


def is_hash(password: str | None) -> bool:
    """Whether that is a bcrypt hash instead of the password itself."""
    return password is not None and _BCRYPT.fullmatch(password) is not None


@dataclass(frozen=True)
class Responses:
    """`allow_responses`: a service may publish to the reply subject of what it received, so often and so long."""

    messages_max: int = RESPONSES_MAX
    expire_ms: int = RESPONSES_EXPIRE_MS


@dataclass(frozen=True)
class UserEntry:
    """One user as configured, its role's permissions included (`with_role`): `user` with `password`, `token` alone, or
    `nkey` alone.

    `user` without `password` is for clients that their certificate names, and for `no_auth_user`. None for an allow
    list or `history`: all, of history what nodes write aside; but with `responses` and no role a publish allow list of
    None is empty, as in nats-server.
    """

    user: str = ""
    password: str | None = None
    token: str | None = None
    publish_allow: tuple[str, ...] | None = None
    publish_deny: tuple[str, ...] = ()
    subscribe_allow: tuple[str, ...] | None = None
    subscribe_deny: tuple[str, ...] = ()
    responses: Responses | None = None
    history: tuple[str, ...] | None = None
    nkey: str | None = None
    account: str = DEFAULT_ACCOUNT
    role: Role | None = None


# -- permissions ------------------------------------------------------------------------------------------------------

_HISTORY: Final = "$LOG.>"  # where it is asked for


class _ReadyMade(NamedTuple):
    publish_allow: tuple[str, ...] | None
    subscribe_allow: tuple[str, ...] | None
    history: tuple[str, ...] | None


_ROLES: Final[dict[Role, _ReadyMade]] = {
    "publisher": _ReadyMade(None, ("_INBOX.>",), ()),
    "subscriber": _ReadyMade((_HISTORY,), None, ()),
    "replayer": _ReadyMade((_HISTORY,), None, ("*",)),
    "operator": _ReadyMade(None, None, ("*",)),
}


def with_role(entry: UserEntry) -> UserEntry:
    """`entry` with what its role permits, where it says nothing of its own; what it denies is denied in any case."""
    if entry.role is None:
        return entry
    ready = _ROLES[entry.role]
    return replace(
        entry,
        publish_allow=ready.publish_allow if entry.publish_allow is None else entry.publish_allow,
        subscribe_allow=ready.subscribe_allow if entry.subscribe_allow is None else entry.subscribe_allow,
        history=ready.history if entry.history is None else entry.history,
    )


@dataclass(frozen=True)
class _Rule:
    pattern: str
    queue: str

    @classmethod
    def read(cls, text: str) -> "_Rule":
        pattern, _, queue = text.strip().partition(" ")
        return cls(pattern, queue.strip())


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """What matches all of a subject that one of the patterns matches, and none with an empty token.

    As `subjects.matches` for each, in a tenth of the time: every inbox that a service answers is asked about once.
    """
    return re.compile("|".join(map(_as_expression, patterns)) or r"(?!)")


def _as_expression(pattern: str) -> str:
    tokens = pattern.split(".")
    if ">" in tokens:
        tokens = tokens[: tokens.index(">") + 1]
    if not all(tokens):
        return r"(?!)"
    parts = {"*": r"[^.]+", ">": r"[^.]+(?:\.[^.]+)*"}
    return r"\.".join(parts.get(token) or re.escape(token) for token in tokens)


class Permissions:
    """What one user may do; shared by all of the user's connections."""

    def __init__(self, entry: UserEntry) -> None:
        self._publish_allow = entry.publish_allow
        if entry.responses is not None and entry.publish_allow is None and entry.role is None:
            self._publish_allow = ()
        if entry.history and self._publish_allow is not None:
            self._publish_allow += (_HISTORY,)
        self._publish_deny = entry.publish_deny
        self._is_allowed_to_publish = _any_of(self._publish_allow or ()).fullmatch
        self._is_denied_to_publish = _any_of(self._publish_deny).fullmatch
        self._subscribe_allow = None
        if entry.subscribe_allow is not None:
            self._subscribe_allow = [_Rule.read(text) for text in entry.subscribe_allow]
        self._subscribe_deny = [_Rule.read(text) for text in entry.subscribe_deny]
        self.filters = bool(self._subscribe_deny)  # whether `may_receive` can say no
        self.hears_all = self._subscribe_allow is None and not self.filters  # `may_subscribe` never says no
        self.unrestricted = self._publish_allow is None and not self._publish_deny  # `may_publish` never says no
        self._verdicts: dict[str, bool] = {}
        self.responses = entry.responses
        self._history = entry.history
        self._is_operator = entry.role == "operator"

    def may_read(self, stream: str, zone: str) -> bool:
        """Whether the history of `stream` of `zone`, the own one, may be read."""
        if stream.startswith("$") and not self._is_operator:
            return False
        own = ("*", stream, f"*@{zone}", f"{stream}@{zone}")
        return self._history is None or any(name in self._history for name in own)

    def may_publish(self, subject: str) -> bool:
        """Whether `subject` may be published to (replies allowed by `responses` aside)."""
        verdict = self._verdicts.get(subject)
        if verdict is None:
            if len(self._verdicts) >= PERMISSION_VERDICTS_MAX:
                self._verdicts.clear()
            verdict = self._verdicts[subject] = self._judge_publish(subject)
        return verdict

    def _judge_publish(self, subject: str) -> bool:
        if self._publish_allow is not None and not self._is_allowed_to_publish(subject):
            return False
        return not self._is_denied_to_publish(subject)

    def may_publish_all(self, pattern: str) -> bool:
        """Whether every subject that matches `pattern` may be published to."""
        allowed = self._publish_allow is None or any(subjects.covers(wide, pattern) for wide in self._publish_allow)
        return allowed and not any(subjects.overlap(denied, pattern) for denied in self._publish_deny)

    def may_subscribe(self, pattern: str, queue: str = "") -> bool:
        """Whether `pattern` may be subscribed to; what of it is denied is left out by `may_receive`."""
        return self._is_allowed(pattern, queue) and self.may_receive(pattern, queue)

    def _is_allowed(self, pattern: str, queue: str) -> bool:
        if self._subscribe_allow is None:
            return True
        covering = [rule for rule in self._subscribe_allow if subjects.covers(rule.pattern, pattern)]
        queues = [rule.queue for rule in covering if rule.queue]
        if queue and queues:
            return _queue_matches(queues, queue)
        return any(not rule.queue for rule in covering)

    def may_receive(self, subject: str, queue: str = "") -> bool:
        """Whether no denied pattern matches `subject`: asked for each subject that is delivered."""
        denying = [rule for rule in self._subscribe_deny if subjects.matches(rule.pattern, subject)]
        if any(not rule.queue for rule in denying):
            return False
        return not (queue and _queue_matches([rule.queue for rule in denying], queue))


EVERYTHING = Permissions(UserEntry(role="operator"))


def _queue_matches(rules: Iterable[str], queue: str) -> bool:
    """A queue rule is a name, or a pattern for names with dots in them."""
    return any(rule == queue or (subjects.has_wildcard(rule) and subjects.covers(rule, queue)) for rule in rules)


class AnswerableReplies:
    """The reply subjects that one connection may still publish to, under `allow_responses`.

    When there are too many, the oldest is forgotten for each new one: as they all expire after the same time, it is the
    one that would have expired first.
    """

    def __init__(self, rule: Responses) -> None:
        self._rule = rule
        self._replies: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # reply → (messages left, until when in ms)

    def received(self, reply: bytes, now_ms: int) -> None:
        """A message with `reply` was delivered to the connection."""
        self._replies[reply] = (self._rule.messages_max, now_ms + self._rule.expire_ms)
        self._replies.move_to_end(reply)
        if len(self._replies) > RESPONSES_TRACKED_MAX:
            self._replies.popitem(last=False)

    def take(self, subject: bytes, now_ms: int) -> bool:
        """Whether the connection may publish to `subject` once more; counts it if so."""
        left, until_ms = self._replies.pop(subject, (0, 0))
        if left == 0 or now_ms > until_ms:
            return False
        if left != 1:
            self._replies[subject] = (left - 1, until_ms)  # a rule of -1 counts down for ever: no limit
        return True


# -- users ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client presents; "" where it presents nothing. `signature` is over `nonce`, the one that INFO gave it.

    `certificate` is None without TLS, or where no certificate was asked for.
    """

    user: str = ""
    password: str = ""
    token: str = ""
    nkey: str = ""
    signature: str = ""
    nonce: str = ""
    certificate: PeerCertificate | None = None

    @property
    def are_absent(self) -> bool:
        return not (self.user or self.password or self.token)


@dataclass(frozen=True)
class Verification:
    """`secret` has to be compared with these bcrypt hashes, in order; the first that fits says who it is.

    `renews`: the client is in already, and may stay if one fits.
    """

    secret: str
    candidates: tuple[tuple[str, UserEntry], ...]
    renews: bool = False


class Directory:
    """All users of a gateway. Without users everybody is let in and may do everything.

    `no_auth_user` is the name or nkey of one of them, or "". With `maps_certificates` it is the client's certificate
    that says which of the named users a client is. Users that were in the directory `before`, and are the same word for
    word, keep their permissions and what is cached by these.
    """

    def __init__(
        self,
        users: tuple[UserEntry, ...],
        no_auth_user: str = "",
        *,
        maps_certificates: bool = False,
        before: "Directory | None" = None,
    ) -> None:
        self._by_name = {entry.user: entry for entry in users if entry.user}
        self._by_nkey = {entry.nkey: entry for entry in users if entry.nkey is not None}
        self._with_token = [entry for entry in users if entry.token is not None]
        known = before._permissions if before is not None else {}
        self._permissions: dict[UserEntry, Permissions]
        self._permissions = {entry: known.get(entry) or Permissions(entry) for entry in users}
        self._no_auth_user = no_auth_user
        guest = self._by_name.get(no_auth_user)
        self._guest = None if guest is None or is_hash(guest.password) else guest
        self._certificate_users = CertificateUsers(self._by_name) if maps_certificates and self._by_name else None

    def __contains__(self, entry: UserEntry) -> bool:
        return entry in self._permissions

    def has_name(self, name: str) -> bool:
        """Whether `name` is that of a user or its nkey; "" is that of whoever has a token."""
        return name in self._by_name or name in self._by_nkey or (not name and bool(self._with_token))

    def permissions_gone(self, now: "Directory") -> list[Permissions]:
        """Those of users that are in this directory, and no longer the same in the one that there is `now`."""
        return [permissions for entry, permissions in self._permissions.items() if entry not in now]

    @property
    def is_required(self) -> bool:
        """Whether clients have to say who they are, be it by saying nothing."""
        return bool(self._permissions)

    @property
    def asks(self) -> bool:
        """Whether INFO tells clients that they need credentials."""
        return self.is_required and not self._no_auth_user

    @property
    def wants_signatures(self) -> bool:
        """Whether INFO carries a nonce."""
        return bool(self._by_nkey)

    def without_connect(self) -> UserEntry | None:
        """Who a client is that begins with something else than CONNECT, if that is anybody."""
        return None if self._certificate_users is not None else self._guest

    def permissions(self, entry: UserEntry) -> Permissions:
        return self._permissions[entry]

    def check(self, presented: Credentials) -> UserEntry | Verification | None:
        """Who that is: a user at once, a `Verification` to run, or None for nobody."""
        nkey = presented.nkey or (self._no_auth_user if presented.are_absent else "")
        if nkey in self._by_nkey or (presented.nkey and self._by_nkey):
            return self._check_nkey(nkey, presented)
        if self._certificate_users is not None:
            return self._check_certificate(self._certificate_users, presented)
        if presented.are_absent and self._no_auth_user in self._by_name:
            return self._guest
        if presented.user and self._by_name:
            entry = self._by_name.get(presented.user)
            return None if entry is None else _compare(presented.password, [(entry.password or "", entry)])
        tokens = [(entry.token or "", entry) for entry in self._with_token]
        return _compare(presented.token, tokens) if presented.token else None

    def _check_nkey(self, nkey: str, presented: Credentials) -> UserEntry | None:
        entry = self._by_nkey.get(nkey)
        if nkey == self._no_auth_user or nkeys.is_signed(nkey, presented.nonce, presented.signature):
            return entry
        return None

    def _check_certificate(self, users: CertificateUsers, presented: Credentials) -> UserEntry | Verification | None:
        """A user that has a password too must give it."""
        name = None if presented.certificate is None else users.find(presented.certificate)
        if name is None:
            return None
        entry = self._by_name[name]
        return _compare(presented.password, [(entry.password or "", entry)])


def _compare(secret: str, expected: Iterable[tuple[str, UserEntry]]) -> UserEntry | Verification | None:
    hashed = []
    for right, entry in expected:
        if is_hash(right):
            hashed.append((right, entry))
        elif compare_digest(right.encode("utf-8", "surrogatepass"), secret.encode("utf-8", "surrogatepass")):
            return entry
    return Verification(secret, tuple(hashed)) if hashed else None
