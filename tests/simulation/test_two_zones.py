"""A mirror is its origin's prefix or an explicit gap, whatever happens; and each rule is there for a reason."""

import os

import pytest

from protocol import link
from protocol.records import read_header
from simulation.zones import Receiver, Violation, World, simulate
from simulation.zones_geo import Publishers
from sinkd.core import accounts, mirrors
from sinkd.core.mirroring import Pull
from sinkd.core.state import Tree

SEEDS = 60
NOT_HELD = "was acknowledged geo, and us does not hold it"


def test_mirrors_are_prefixes_of_their_origins_or_say_where_they_are_not():
    seeds = max(SEEDS, int(os.environ.get("SEEDS", "0")))  # `make simulate SEEDS=...` runs any number
    audits = [simulate(seed) for seed in range(seeds)]
    assert sum(len(batches) for audit in audits for batches in audit.took.values()) > 20 * seeds
    assert sum(audit.answers for audit in audits) > 20 * seeds
    for what in ("gaps", "refused", "anew", "diverged", "lost"):  # all of it was met, and often enough to matter
        assert sum(getattr(audit, what) for audit in audits) > seeds / 10, what


class AnyIncarnation(Pull):
    """Takes what comes under the stream's name."""

    def take(self, message, tail):
        self._incarnation = message.incarnation
        return super().take(message, tail)


class TakesAnyIncarnation(Receiver):
    pull_class = AnyIncarnation


class TellsAtReceipt(Receiver):
    tells_at_receipt = True


class BelievesAnySink(Receiver):
    any_sink_makes = True


class TellsUnseen(TellsAtReceipt):
    """Nobody looks but those who wait for what is told."""

    def _tell(self, incarnation, through):
        self.wire.to_origin.append(link.Durable(self.wire.number, through))


class AtQuorum(Publishers):
    answers_at_quorum = True


class BelievesGaps(Publishers):
    believes_gaps = True


class BelievesSequences(Publishers):
    believes_sequences = True


class WithoutIncarnation(World):
    receiver_class = TakesAnyIncarnation


class DurableAtReceipt(World):
    receiver_class = TellsAtReceipt


class ByAnySinksWord(World):
    receiver_class = BelievesAnySink


class WithoutDigest(World):
    checks_digest = False


class DurableUnseen(World):
    receiver_class = TellsUnseen


class GeoAtQuorum(World):
    publishers_class = AtQuorum


class GeoOfGaps(World):
    publishers_class = BelievesGaps


class GeoOfLostEvents(World):
    publishers_class = BelievesSequences


def found(world: type[World], first: int = 0) -> str:
    """What is seen without a rule; `first` is a seed that sees it soon."""
    for seed in range(first, first + SEEDS):
        try:
            simulate(seed, world)
        except Violation as violation:
            return str(violation)
    return ""


@pytest.mark.parametrize(
    ("world", "says", "first"),
    [
        (WithoutIncarnation, "a gap up to", 0),
        (DurableAtReceipt, "was told, the mirror ends at", 0),
        (ByAnySinksWord, "does not become level", 110),
        (WithoutDigest, NOT_HELD, 0),
        (DurableUnseen, NOT_HELD, 0),
        (GeoAtQuorum, NOT_HELD, 0),
        (GeoOfGaps, NOT_HELD, 0),
        (GeoOfLostEvents, NOT_HELD, 0),
    ],
)
def test_without_a_rule_a_violation_is_found(world, says, first):
    assert says in found(world, first)


def test_a_tree_that_does_not_know_what_its_mirror_lacks_is_found(monkeypatch):
    monkeypatch.setattr(accounts, "_is_trimmed", lambda batch: False)
    assert "the tree of orders@eu is" in found(World)


def test_a_tree_that_does_not_begin_where_that_of_its_origin_does_is_found(monkeypatch):
    monkeypatch.setattr(accounts, "begin", begins_once)
    assert "that of its origin began at" in found(World)


def begins_once(state, partition, offset):
    if partition.tree is None:
        partition.tree = Tree(offset)


def test_without_the_join_check_a_violation_is_found(monkeypatch):
    def anything(batches, end_offset):
        headers, position = [], 0
        while position < len(batches):
            header = read_header(batches, position)
            headers.append((position, header))
            position += header.size_bytes
        return tuple(headers), headers[-1][1].next_offset

    monkeypatch.setattr(mirrors, "_joining", anything)
    monkeypatch.setattr(mirrors, "_follows", lambda mirror, head: True)
    assert "in a mirror that ends at" in found(World)
