"""Who is subscribed to a subject: a table of literal patterns, and a trie of tokens for those with wildcards.

Most patterns are literal (every inbox is), and for them one lookup says all. Every level of the trie is one token of a
pattern; `*` and `>` have places of their own beside the literal tokens, so a wildcard that is *published* to is an
ordinary token. Matching walks the trie depth first, what is literal before what is a wildcard, with a list of the nodes
that are still to be looked at: no recursion, so the depth of a pattern costs no stack. This order is the one in which
receivers get a message and queue members are picked.

`accepts` takes entries out of a result, which is how permissions become part of a cached route instead of a check per
message. Results are cached by `gateway.core.forwarding`, until the generation moves on.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from protocol import subjects


class Entry(Protocol):
    """What can be subscribed: a pattern (valid by `subjects.is_valid_pattern`) and a queue name, "" for none."""

    pattern: str
    queue: str


E = TypeVar("E", bound=Entry)


class Result(NamedTuple, Generic[E]):
    """All of `plain` get a message, and one of each group in `queues`."""

    plain: tuple[E, ...]
    queues: tuple[tuple[E, ...], ...]


_NOBODY: Result[Any] = Result((), ())


class _Node(Generic[E]):
    """The entries of one pattern, and in the trie what follows its last token."""

    __slots__ = ("children", "plain", "queues", "rest", "star")

    def __init__(self) -> None:
        self.children: dict[str, _Node[E]] = {}
        self.star: _Node[E] | None = None
        self.rest: _Node[E] | None = None
        self.plain: dict[E, None] = {}
        self.queues: dict[str, dict[E, None]] = {}

    def is_empty(self) -> bool:
        return not (self.plain or self.queues or self.children or self.star or self.rest)

    def add(self, entry: E) -> None:
        if entry.queue:
            self.queues.setdefault(entry.queue, {})[entry] = None
        else:
            self.plain[entry] = None

    def discard(self, entry: E) -> None:
        if not entry.queue:
            del self.plain[entry]
            return
        del self.queues[entry.queue][entry]
        if not self.queues[entry.queue]:
            del self.queues[entry.queue]

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
    """The subscriptions of one account. `generation` changes with every insert and remove."""

    def __init__(self, accepts: Callable[[E, str], bool] | None = None) -> None:
        self._literals: dict[str, _Node[E]] = {}
        self._root: _Node[E] = _Node()
        self._accepts = accepts
        self.count = 0
        self.inserts = 0
        self.removes = 0

    @property
    def generation(self) -> int:
        return self.inserts + self.removes

    def insert(self, entry: E) -> None:
        """Add `entry`; it must not be in yet."""
        if subjects.has_wildcard(entry.pattern):
            node = self._root
            for token in entry.pattern.split("."):
                child = node.child(token)
                if child is None:
                    child = _Node()
                    node.set_child(token, child)
                node = child
        else:
            node = self._literals.setdefault(entry.pattern, _Node())
        node.add(entry)
        self.count += 1
        self.inserts += 1

    def remove(self, entry: E) -> None:
        """Take out `entry`; KeyError if it is not in."""
        if subjects.has_wildcard(entry.pattern):
            self._remove_wildcard(entry)
        else:
            node = self._literals[entry.pattern]
            node.discard(entry)
            if node.is_empty():
                del self._literals[entry.pattern]
        self.count -= 1
        self.removes += 1

    def _remove_wildcard(self, entry: E) -> None:
        path = [self._root]
        tokens = entry.pattern.split(".")
        for token in tokens:
            child = path[-1].child(token)
            if child is None:
                raise KeyError(entry.pattern)
            path.append(child)
        path[-1].discard(entry)
        for token, parent, node in zip(reversed(tokens), reversed(path[:-1]), reversed(path[1:]), strict=True):
            if not node.is_empty():
                break
            parent.set_child(token, None)

    def match(self, subject: str) -> Result[E]:
        """Who gets a message on the literal `subject`; nobody when a token of it is empty."""
        nodes = []
        literal = self._literals.get(subject)
        if literal is not None:
            nodes.append(literal)
        if not self._root.is_empty():
            nodes += self._find(subject.split("."))
        return self._collect(nodes, subject)

    def _find(self, tokens: list[str]) -> list[_Node[E]]:
        if not all(tokens):
            return []
        found: list[_Node[E]] = []
        stack = [(self._root, 0)]
        while stack:
            node, depth = stack.pop()
            if depth == len(tokens):
                found.append(node)
                continue
            if node.rest is not None:
                found.append(node.rest)
            if node.star is not None:
                stack.append((node.star, depth + 1))
            if (child := node.children.get(tokens[depth])) is not None:
                stack.append((child, depth + 1))
        return found

    def _collect(self, nodes: list[_Node[E]], subject: str) -> Result[E]:
        plain: list[E] = []
        queues: dict[str, list[E]] = {}
        for node in nodes:
            plain += self._accepted(node.plain, subject)
            for queue, members in node.queues.items():
                kept = self._accepted(members, subject)
                if kept:
                    queues.setdefault(queue, []).extend(kept)
        if not plain and not queues:
            return _NOBODY
        return Result(tuple(plain), tuple(tuple(members) for members in queues.values()))

    def _accepted(self, entries: Iterable[E], subject: str) -> list[E]:
        accepts = self._accepts
        return [entry for entry in entries if accepts is None or accepts(entry, subject)]

    def __iter__(self) -> Iterator[E]:
        stack = [self._root, *self._literals.values()]
        while stack:
            node = stack.pop()
            yield from node.plain
            for members in node.queues.values():
                yield from members
            stack += node.children.values()
            stack += [child for child in (node.star, node.rest) if child is not None]
