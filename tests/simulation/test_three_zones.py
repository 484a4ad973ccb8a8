"""Zones complete each other while an origin is gone, and each rule of it is there for a reason."""

import pytest

from simulation.three_zones import Side, ThreeZones, Violation, simulate

SEEDS = 25


def test_zones_complete_each_other_with_what_one_of_them_has_for_good():
    worlds = [simulate(seed) for seed in range(SEEDS)]
    sides = [side for world in worlds for side in world.sides]
    assert sum(side.completed for side in sides) > 3 * SEEDS
    for what in ("gaps", "refused", "anew", "diverged"):  # all of it was met, and often enough to matter
        assert sum(getattr(side.audit, what) for side in sides) > SEEDS / 10, what
    assert sum(bool(side.begins_at) for side in sides) > SEEDS / 10


class OffersWhatMayBeLost(Side):
    offers_what_may_be_lost = True


class TakesOtherBytes(Side):
    peers_compare = False


class Uncommitted(ThreeZones):
    side_class = OffersWhatMayBeLost


class WithoutDigest(ThreeZones):
    side_class = TakesOtherBytes


@pytest.mark.parametrize(
    ("world", "says", "seed"),
    [(Uncommitted, "goes beyond what the zone", 4), (WithoutDigest, "is not what its origin wrote", 12)],
)
def test_without_a_rule_a_violation_is_found(world, says, seed):
    with pytest.raises(Violation, match=says):
        simulate(seed, world)
