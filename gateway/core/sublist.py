"""Who is subscribed to a subject: a trie of tokens with a bounded cache of results.

Every level of the trie is one token of a pattern; `*` and `>` have places of their own beside the literal tokens, so a
wildcard that is *published* to is an ordinary token. Matching walks the trie level by level with the set of nodes that
the tokens so far can have reached: no recursion, so the depth of a subject costs no stack.

A result is kept until a subscription is added or removed (the generation moves on) or the cache is full; then it starts
anew. `accepts` takes entries out of a result for good, which is how permissions become part of the cached route instead
of a check per message.
"""

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from protocol.limits import ROUTE_PLAN_CHARACTERS_MAX, ROUTE_PLANS_MAX


class Entry(Protocol):
    """What can be subscribed: a pattern (valid by `subjects.is_valid_pattern`) and a queue name, "" for none."""

    pattern: str
    queue: str


E = TypeVar("E", bound=Entry)


class Result(NamedTuple, Generic[E]):
    """All of `plain` get a message, and one of each group in `queues`. Both in order of subscription."""

    plain: tuple[E, ...]
    queues: tuple[tuple[E, ...], ...]


_NOBODY: Result[Any] = Result((), ())


class _Node(Generic[E]):
    __slots__ = ("children", "plain", "queues", "rest", "star")

    def __init__(self) -> None:
        self.children: dict[str, _Node[E]] = {}
        self.star: _Node[E] | None = None
        self.rest: _Node[E] | None = None
        self.plain: dict[E, None] = {}
        self.queues: dict[str, dict[E, None]] = {}

    def is_empty(self) -> bool:
        return not (self.plain or self.queues or self.children or self.star or self.rest)

    def child(self, token: str) -> "_Node[E] | None":
        if token == "*":
            return self.star
        return self.rest if token == ">" else self.children.get(token)

    def set_child(self, token: str, node: "_Node[E] | None") -> None:
        if token == "*":
            self.star = node
        elif token == ">":
            self.rest = node
        elif node is None:
            del self.children[token]
        else:
            self.children[token] = node


class Sublist(Generic[E]):
    """The subscriptions of one gateway. `generation` changes with every insert and remove."""

    def __init__(self, accepts: Callable[[E, str], bool] | None = None, cache_max: int = ROUTE_PLANS_MAX) -> None:
        self._root: _Node[E] = _Node()
        self._accepts = accepts
        self._cache: dict[str, Result[E]] = {}
        self._cache_max = cache_max
        self.count = 0
        self.inserts = 0
        self.removes = 0

    @property
    def generation(self) -> int:
        return self.inserts + self.removes

    @property
    def cached(self) -> int:
        return len(self._cache)

    def insert(self, entry: E) -> None:
        """Add `entry`; it must not be in yet."""
        node = self._root
        for token in entry.pattern.split("."):
            child = node.child(token)
            if child is None:
                child = _Node()
                node.set_child(token, child)
            node = child
        if entry.queue:
            node.queues.setdefault(entry.queue, {})[entry] = None
        else:
            node.plain[entry] = None
        self.count += 1
        self.inserts += 1
        self._cache = {}

    def remove(self, entry: E) -> None:
        """Take out `entry`; KeyError if it is not in."""
        path = [self._root]
        tokens = entry.pattern.split(".")
        for token in tokens:
            child = path[-1].child(token)
            if child is None:
                raise KeyError(entry.pattern)
            path.append(child)
        _remove_from(path[-1], entry)
        for token, parent, node in zip(reversed(tokens), reversed(path[:-1]), reversed(path[1:]), strict=True):
            if not node.is_empty():
                break
            parent.set_child(token, None)
        self.count -= 1
        self.removes += 1
        self._cache = {}

    def match(self, subject: str) -> Result[E]:
        """Who gets a message on the literal `subject`; nobody when a token of it is empty."""
        result = self._cache.get(subject)
        if result is not None:
            return result
        result = self._find(subject)
        if len(subject) <= ROUTE_PLAN_CHARACTERS_MAX:
            if len(self._cache) >= self._cache_max:
                self._cache = {}
            self._cache[subject] = result
        return result

    def _find(self, subject: str) -> Result[E]:
        tokens = subject.split(".")
        if not all(tokens):
            return _NOBODY
        found: list[_Node[E]] = []
        reached = [self._root]
        for token in tokens:
            following = []
            for node in reached:
                if node.rest is not None:
                    found.append(node.rest)
                if node.star is not None:
                    following.append(node.star)
                if (child := node.children.get(token)) is not None:
                    following.append(child)
            reached = following
            if not reached:
                break
        return self._collect(found + reached, subject)

    def _collect(self, nodes: list[_Node[E]], subject: str) -> Result[E]:
        accepts = self._accepts
        plain = []
        queues: dict[str, list[E]] = {}
        for node in nodes:
            plain += [entry for entry in node.plain if accepts is None or accepts(entry, subject)]
            for queue, members in node.queues.items():
                kept = [entry for entry in members if accepts is None or accepts(entry, subject)]
                if kept:
                    queues.setdefault(queue, []).extend(kept)
        if not plain and not queues:
            return _NOBODY
        return Result(tuple(plain), tuple(tuple(members) for members in queues.values()))

    def __iter__(self) -> Iterator[E]:
        stack = [self._root]
        while stack:
            node = stack.pop()
            yield from node.plain
            for members in node.queues.values():
                yield from members
            stack += node.children.values()
            stack += [child for child in (node.star, node.rest) if child is not None]


def _remove_from(node: _Node[E], entry: E) -> None:
    if not entry.queue:
        del node.plain[entry]
        return
    del node.queues[entry.queue][entry]
    if not node.queues[entry.queue]:
        del node.queues[entry.queue]
