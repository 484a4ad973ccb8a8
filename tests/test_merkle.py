"""Merkle trees: against a direct reading of RFC 9162's recursive definitions, and its proofs against what is forged."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import merkle

LEAVES = [merkle.leaf_hash(10 * number, hashlib.sha256(bytes([number])).digest()) for number in range(70)]


def defined_root(leaves: list[bytes]) -> bytes:
    """MTH(D[n]) as section 2.1.1 has it."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + defined_root(leaves[:split]) + defined_root(leaves[split:])).digest()


@given(st.integers(0, 70), st.integers(0, 70))
def test_a_root_is_the_rfcs_however_much_is_known_by_the_frontier_alone(size: int, trimmed: int) -> None:
    trimmed = min(trimmed, size)
    frontier = merkle.frontier_of(LEAVES[:trimmed])
    tree = merkle.Tree(frontier, trimmed, LEAVES[trimmed:size])
    assert tree.root() == merkle.root_of(merkle.frontier_of(LEAVES[:size])) == defined_root(LEAVES[:size])


@given(st.integers(1, 70), st.data())
def test_a_leaf_is_proved_and_no_other_one(size: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, size - 1))
    trimmed = data.draw(st.integers(0, number))
    tree = merkle.Tree(merkle.frontier_of(LEAVES[:trimmed]), trimmed, LEAVES[trimmed:size])
    try:
        path = tree.inclusion(number)
    except merkle.Trimmed:
        assert trimmed
        return
    root = defined_root(LEAVES[:size])
    assert merkle.check_inclusion(LEAVES[number], number, size, path, root)
    assert not merkle.check_inclusion(LEAVES[-1 - number], number, size, path, root)
    assert not merkle.check_inclusion(LEAVES[number], number + 1, size, path, root)
    assert not merkle.check_inclusion(LEAVES[number], number, size, [*path, root], root)
    for place in range(len(path)):
        assert not merkle.check_inclusion(LEAVES[number], number, size, path[:place] + path[place + 1 :], root)


@given(st.integers(0, 70), st.integers(0, 70), st.data())
def test_a_beginning_is_proved_and_no_other_one(first: int, second: int, data: st.DataObject) -> None:
    first, second = sorted((first, second))
    path = merkle.Tree([], 0, LEAVES[:second]).consistency(first)
    roots = defined_root(LEAVES[:first]), defined_root(LEAVES[:second])
    assert merkle.check_consistency(first, roots[0], second, roots[1], path)
    assert first == second or not merkle.check_consistency(first, roots[1], second, roots[1], path)
    assert first == second or first == 0 or not merkle.check_consistency(first, roots[0], second, roots[0], path)
    assert not merkle.check_consistency(first, roots[0], second, roots[1], [*path, roots[1]])
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        assert not merkle.check_consistency(first, roots[0], second, roots[1], path[:place] + path[place + 1 :])
    assert not merkle.check_consistency(second + 1, roots[1], second, roots[1], [])


def test_a_frontier_has_a_hash_for_each_bit_of_its_size() -> None:
    with pytest.raises(ValueError, match="a frontier of 1 hashes is not that of 3 leaves"):
        merkle.Tree(LEAVES[:1], 3, [])


def test_leaves_that_are_gone_are_not_proved() -> None:
    tree = merkle.Tree(merkle.frontier_of(LEAVES[:5]), 5, LEAVES[5:9])
    with pytest.raises(merkle.Trimmed, match="the first 5 are gone"):
        tree.inclusion(2)
    with pytest.raises(merkle.Trimmed):
        tree.root(3)
    assert tree.root(8) == defined_root(LEAVES[:8])
