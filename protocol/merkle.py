"""Merkle trees over the batches of a log: what two holders of a log compare, and what certificates quote.

A leaf is a batch, in offset order; node and leaf hashes, roots and both kinds of proof are those of RFC 9162, section
2.1 (SHA-256; leaves and nodes are told apart by a first byte). What the tree hashes as a leaf is

    u64 base offset (big endian)   D, 32 bytes (`protocol.coverage.digest_of`)

A tree that only grows need not be kept. Its *frontier* is enough to go on: the roots of the complete subtrees that its
leaves fall into from left to right, one for each bit that is set in the number of leaves. Eleven leaves:

                 8                 2      1
        ┌────────┴────────┐      ┌─┴─┐    │
        0 1 2 3   4 5 6 7        8   9    10

All functions that take leaves take their hashes (`leaf_hash`), and work on part of a tree too: on the frontier before
it and the leaves behind it, so that what a log has trimmed is still under its root.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()
_OFFSET = struct.Struct(">Q")


def leaf_hash(base_offset: int, digest: bytes) -> bytes:
    """Of the batch at `base_offset` whose unchanging bytes have that SHA-256."""
    return hashlib.sha256(b"\x00" + _OFFSET.pack(base_offset) + digest).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def grow(frontier: list[bytes], size: int, leaf: bytes) -> None:
    """`frontier`, of a tree of `size` leaves, becomes that of the tree with `leaf` behind them."""
    while size & 1:
        leaf = node_hash(frontier.pop(), leaf)
        size >>= 1
    frontier.append(leaf)


def root_of(frontier: Sequence[bytes]) -> bytes:
    """The root of the tree with that frontier."""
    if not frontier:
        return EMPTY_ROOT
    root = frontier[-1]
    for left in reversed(frontier[:-1]):
        root = node_hash(left, root)
    return root


class Trimmed(ValueError):
    """The hash of a node is asked for whose leaves are gone."""


class Tree:
    """A tree of which the first `trimmed` leaves are known by their frontier alone, and the others each."""

    def __init__(self, frontier: Sequence[bytes], trimmed: int, leaves: Sequence[bytes]) -> None:
        """ValueError: the frontier is not that of a tree of `trimmed` leaves."""
        self.size = trimmed + len(leaves)
        self._trimmed, self._leaves = trimmed, leaves
        self._known: dict[tuple[int, int], bytes] = {}  # complete subtrees left of the leaves, by [begin, end)
        ends = _frontier_ends(trimmed)
        if len(frontier) != len(ends):
            raise ValueError(f"a frontier of {len(frontier)} hashes is not that of {trimmed} leaves")
        for (begin, end), root in zip(pairwise([0, *ends]), frontier, strict=True):
            self._known[begin, end] = root

    def root(self, size: int | None = None) -> bytes:
        """Of the tree that its first `size` leaves are. Trimmed: they are not known well enough."""
        size = self.size if size is None else size
        return EMPTY_ROOT if size == 0 else self._hash(0, size)

    def inclusion(self, leaf: int, size: int | None = None) -> list[bytes]:
        """The proof that leaf number `leaf` is in the tree of the first `size` leaves (RFC 9162, 2.1.3.1). Trimmed."""
        begin, end, path = 0, self.size if size is None else size, []
        while end - begin > 1:
            middle = begin + _split(end - begin)
            if leaf < middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(begin, middle))
                begin = middle
        path.reverse()
        return path

    def consistency(self, first: int, second: int | None = None) -> list[bytes]:
        """The proof that the tree of `first` leaves is the beginning of that of `second` (2.1.4.1). Trimmed."""
        second = self.size if second is None else second
        if not 0 < first < second:
            return []
        begin, end, whole, path = 0, second, True, []
        while first != end:
            middle = begin + _split(end - begin)
            if first <= middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(begin, middle))
                begin, whole = middle, False
        if not whole:
            path.append(self._hash(begin, end))
        path.reverse()
        return path

    def _hash(self, begin: int, end: int) -> bytes:
        known = self._known.get((begin, end))
        if known is not None:
            return known
        if end - begin == 1:
            if begin < self._trimmed:
                raise Trimmed(f"leaf {begin}: the first {self._trimmed} are gone")
            return self._leaves[begin - self._trimmed]
        middle = begin + _split(end - begin)
        return node_hash(self._hash(begin, middle), self._hash(middle, end))


def frontier_of(leaves: Iterable[bytes]) -> list[bytes]:
    frontier: list[bytes] = []
    for size, leaf in enumerate(leaves):
        grow(frontier, size, leaf)
    return frontier


def check_inclusion(leaf: bytes, number: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `path` proves that `leaf` is the leaf of that number under `root` (RFC 9162, 2.1.3.2)."""
    if not 0 <= number < size:
        return False
    position, last, here = number, size - 1, leaf
    for other in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            here = node_hash(other, here)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            here = node_hash(here, other)
        position, last = position >> 1, last >> 1
    return last == 0 and here == root


def check_consistency(first: int, first_root: bytes, second: int, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether `path` proves that the first tree is the beginning of the second one (RFC 9162, 2.1.4.2)."""
    if first > second or first < 0:
        return False
    if first == second or first == 0:
        return not path and (first_root == second_root if first == second else first_root == EMPTY_ROOT)
    path = [first_root, *path] if first & (first - 1) == 0 else list(path)
    if not path:
        return False
    position, last = first - 1, second - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    here_first = here_second = path[0]
    for other in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            here_first, here_second = node_hash(other, here_first), node_hash(other, here_second)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            here_second = node_hash(here_second, other)
        position, last = position >> 1, last >> 1
    return last == 0 and here_first == first_root and here_second == second_root


def _split(size: int) -> int:
    """The largest power of two below `size`, which is 2 or more."""
    return 1 << (size - 1).bit_length() - 1


def _frontier_ends(size: int) -> list[int]:
    """Where the complete subtrees of a tree of `size` leaves end."""
    ends, end = [], 0
    for bit in reversed(range(size.bit_length())):
        if size >> bit & 1:
            end += 1 << bit
            ends.append(end)
    return ends
