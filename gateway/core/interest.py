"""What peers are told that somebody wants: our own clients, or whoever is behind us; and what a peer has told.

Interest is the number of subscriptions to one pattern (and queue group) in one account. Peers are told of a pattern
once, however many have subscribed to it, and of a group how many members it has: they spread messages by that.

    subscribe, unsubscribe ─► Interest.change ─┄ collected ┄─► Interest.take ─► RS+, RS- ─► Learned.change
                              Interest.entries ─► RSALL, RS+ ..., RSSUM ─────────────────► Learned.begin, check

Changes are collected, and told together: what was subscribed and given back in between is never told, and a group that
only has become larger or smaller waits for a tick. The rest is urgent (`is_urgent`).

*Version.* Each table that is told whole has an epoch, each set of changes a sequence number, and what both sides then
hold a digest: the sum of the hashes of all entries, so that the order does not matter. It goes with every PING. Whoever
finds that it holds something else asks for everything again, and takes the other to want everything meanwhile. When a
table comes, what was known stays until all of it is there: only then is dropped what is not in it.

*Prefixes.* Above `INTEREST_PATTERNS_MAX` patterns peers are told 'everything below this first token' where most of them
are, and if that does not help, 'everything in this account'. More crosses then than is wanted, and no requester hears
that there are no responders below that. Never for queue groups: a group without a member would be asked.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from gateway.core.engine import Engine
from gateway.core.forwarding import Forwarder
from gateway.core.session import Account, Session, Subscription
from protocol import routes, subjects
from protocol.limits import INTEREST_PATTERNS_MAX

Key = tuple[str, str, str]
"""Account, pattern, queue ("" for plain subscriptions)."""

_EVERYTHING: Final = ">"
# Keys of what is no interest that a peer has told: such a key begins with an account.
_STALE: Final = b"> "
_BROADCAST: Final = b"* "


class Interest:
    """That of our own clients, of our zone, or of another one. `digest` is that of what was told last."""

    def __init__(self) -> None:
        self.digest = 0
        self.is_urgent = False  # somebody wants what nobody has wanted before, or the other way round
        self._counts: dict[Key, int] = {}
        self._told: dict[Key, int] = {}  # of what has changed since: what was told
        self._patterns = 0  # of plain subscriptions
        self._patterns_told = 0
        self._below: set[tuple[str, str]] = set()  # (account, first token) below which everything is wanted; or ""

    @property
    def has_changed(self) -> bool:
        return bool(self._told)

    @property
    def prefixes(self) -> list[tuple[str, str]]:
        """(account, pattern) of what stands for the many patterns below it."""
        return sorted((account, f"{token}.>" if token else _EVERYTHING) for account, token in self._below)

    def change(self, key: Key, by: int) -> None:
        """One subscription more (1) or less (-1); of a queue group as many as there are."""
        before = self._counts.get(key, 0)
        count = before + by
        if before and count and not key[2]:
            self._counts[key] = count
            return
        told = self._told.get(key)
        if told is None:
            told = self._told[key] = self.weight(key)
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]
        if not key[2]:
            self._patterns += by
            self._patterns_told += by * (not self._is_below(key))
        self.is_urgent = self.is_urgent or bool(told) != bool(self.weight(key))

    def weight(self, key: Key) -> int:
        """What peers are to be told of it: 0 for nothing."""
        count = self._counts.get(key, 0)
        account, pattern, queue = key
        if queue:
            return count
        if not self._below:
            return 1 if count else 0
        token, dot, rest = pattern.partition(".")
        if (account, "") in self._below:
            return int(pattern == _EVERYTHING)
        if dot and (account, token) in self._below:
            return int(rest == _EVERYTHING)
        return min(count, 1)

    def _is_below(self, key: Key) -> bool:
        if not self._below:
            return False
        token, dot, _ = key[1].partition(".")
        return (key[0], "") in self._below or (bool(dot) and (key[0], token) in self._below)

    def entries(self) -> list[Key]:
        """All that peers are told; `weight` says how much of it."""
        prefixes: list[Key] = [(account, pattern, "") for account, pattern in self.prefixes]
        return [key for key in dict.fromkeys([*prefixes, *self._counts]) if self.weight(key)]

    def take(self) -> list[bytes] | None:
        """Lines for what has changed since the last call; None: all is to be told anew, prefixes were put in or out."""
        if self._patterns_told > INTEREST_PATTERNS_MAX:
            self._summarize()
        elif self._below and self._patterns < INTEREST_PATTERNS_MAX // 2:
            self._below.clear()
        else:
            return self._take_changes()
        self._told.clear()
        self.is_urgent = False
        entries = self.entries()
        self._patterns_told = sum(not queue for _, _, queue in entries)
        digests = [routes.digest_of(routes.interest_key(*key), self.weight(key)) for key in entries]
        self.digest = sum(digests) & routes.DIGEST_MASK
        return None

    def _take_changes(self) -> list[bytes]:
        lines = []
        for key, told in self._told.items():
            weight = self.weight(key)
            if weight != told:
                wire = routes.interest_key(*key)
                lines.append(routes.interest_line(wire, weight))
                self.digest += routes.digest_of(wire, weight) if weight else 0
                self.digest -= routes.digest_of(wire, told) if told else 0
        self.digest &= routes.DIGEST_MASK
        self._told.clear()
        self.is_urgent = False
        return lines

    def _summarize(self) -> None:
        """Puts prefixes in the place of patterns, those with most of them first, until half as many are left."""
        below: Counter[tuple[str, str]] = Counter()
        whole: Counter[str] = Counter()
        for account, pattern, queue in self._counts:
            token, dot, _ = pattern.partition(".")
            if not queue and not self._is_below((account, pattern, queue)):
                whole[account] += 1
                if dot and token != "*":
                    below[account, token] += 1
        left = self._patterns_told
        for prefix, count in below.most_common():
            if left <= INTEREST_PATTERNS_MAX // 2 or count == 1:
                break
            self._below.add(prefix)
            whole[prefix[0]] -= count - 1
            left -= count - 1
        for account, count in whole.most_common():
            if left <= INTEREST_PATTERNS_MAX // 2 or count == 1:
                break
            self._below = {prefix for prefix in self._below if prefix[0] != account} | {(account, "")}
            left -= count - 1


class Learned:
    """That of one peer, as subscriptions under its session.

    `is_whole`: it is known to be all of it. `is_stale`: it may want more than is known, and is sent everything.

    `sequence`, `digest`, `before`, `changed`: for the compiled forwarder, which takes plain RS+ as `change` does.
    """

    def __init__(
        self,
        peer: Session,
        engine: Engine,
        forwarder: Forwarder,
        accounts: Mapping[str, Account],
        account: Callable[[str], Account],
        changed: Callable[[Subscription, int], None] | None,
    ) -> None:
        """`changed(subscription, by)` is told of everything more or less that it wants, with the weight of that."""
        self.is_whole = self.is_stale = False
        self.count = 0
        self.repairs = 0  # times that something else was found than there should be
        self._peer, self._engine, self._forwarder = peer, engine, forwarder
        self._accounts, self._account, self.changed = accounts, account, changed
        self._epoch = self.sequence = self.digest = 0
        self.before: set[bytes] | None = None  # while a table comes: what was known, and was not in it yet

    def change(self, interest: routes.Interest) -> None:
        """Somebody behind the peer wants something, or does not want it any more."""
        key = b" ".join((interest.account, interest.pattern, interest.queue))
        known = self._peer.subscriptions.get(key)
        self.sequence += 1
        if self.before is not None:
            self.before.discard(key)
        if interest.weight == (0 if known is None else known.weight):
            return
        if known is not None:
            self._drop(known)
        if interest.weight:
            account = self._account(interest.account.decode())
            pattern, queue = subjects.decode(interest.pattern), subjects.decode(interest.queue)
            self._add(self._engine.subscription(self._peer, pattern, queue, key, account), interest.weight)
            self.count += 1
            self.digest += routes.digest_of(key, interest.weight)

    def begin(self, epoch: int) -> None:
        """What comes now is all that it wants."""
        self._epoch = epoch
        self.before = {key for key in self._peer.subscriptions if not key.startswith((_STALE, _BROADCAST))}

    def check(self, digest: routes.Digest) -> bool:
        """Whether it should be asked for everything again: what is known is not what it should be.

        Not when all of it has come just now: what makes it wrong may be wrong for ever, and nobody should be kept busy
        by that. The next digest will come.
        """
        ends = self.before is not None and digest.epoch == self._epoch
        if self.before is not None and ends:
            for key in self.before:
                self._drop(self._peer.subscriptions[key])
            self.before, self.sequence = None, digest.sequence
        held = self._epoch, self.sequence, self.digest & routes.DIGEST_MASK
        self.is_whole = held == (digest.epoch, digest.sequence, digest.digest)
        self.repairs += not self.is_whole
        return not self.is_whole and not ends

    def set_stale(self, is_stale: bool) -> None:
        """Whether it is taken to want everything. Then nobody is told that there are no responders."""
        if is_stale == self.is_stale:
            return
        self.is_stale = is_stale
        if is_stale:
            self._send_everything(_STALE, 1)
        else:
            for key in [key for key in self._peer.subscriptions if key.startswith(_STALE)]:
                self._forget(self._peer.subscriptions[key])

    def broadcast(self) -> None:
        """It is sent everything, wanted or not."""
        self._send_everything(_BROADCAST, 0)

    def _send_everything(self, mark: bytes, weight: int) -> None:
        for name, account in self._accounts.items():
            everything = self._engine.subscription(self._peer, _EVERYTHING, "", mark + name.encode(), account)
            self._add(everything, weight)

    def _add(self, subscription: Subscription, weight: int) -> None:
        subscription.weight = weight
        self._peer.subscriptions[subscription.sid] = subscription
        self._forwarder.insert(subscription)
        if self.changed is not None:
            self.changed(subscription, weight)

    def _drop(self, subscription: Subscription) -> None:
        self.count -= 1
        self.digest -= routes.digest_of(subscription.sid, subscription.weight)
        self._forget(subscription)

    def _forget(self, subscription: Subscription) -> None:
        del self._peer.subscriptions[subscription.sid]
        if self.changed is not None:
            self.changed(subscription, -subscription.weight)
        self._forwarder.remove(subscription)
