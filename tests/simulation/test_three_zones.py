"""Zones complete each other while an origin is gone, what was acknowledged `geo` outlives any zone, and each rule of it
is there for a reason.
"""

import os

import pytest

from protocol.link import Copies
from simulation.three_zones import Side, ThreeZones, Violation, simulate
from simulation.zones_geo import Publishers

SEEDS = max(25, int(os.environ.get("SEEDS", "0")))  # `make simulate SEEDS=...` runs any number
NOT_HELD = "was acknowledged geo, and (us|ap) does not hold it"


def test_zones_complete_each_other_with_what_one_of_them_has_for_good():
    worlds = [simulate(seed) for seed in range(SEEDS)]
    sides = [side for world in worlds for side in world.sides]
    assert sum(side.completed for side in sides) > 3 * SEEDS
    for what in ("gaps", "refused", "anew", "diverged"):  # all of it was met, and often enough to matter
        assert sum(getattr(side.audit, what) for side in sides) > SEEDS / 10, what
    assert sum(bool(side.begins_at) for side in sides) > SEEDS / 10
    assert sum(side.audit.lost for side in sides) > SEEDS / 10
    for geo_zones in (1, 2):
        waited = [world.publishers for world in worlds if world.publishers.geo_zones == geo_zones]
        assert sum(publishers.answers for publishers in waited) > 3 * SEEDS


class OffersWhatMayBeLost(Side):
    offers_what_may_be_lost = True


class TakesOtherBytes(Side):
    peers_compare = False


class Uncommitted(ThreeZones):
    side_class = OffersWhatMayBeLost


class WithoutDigest(ThreeZones):
    side_class = TakesOtherBytes


class AtQuorum(Publishers):
    answers_at_quorum = True


class OneSpeaksForAll(Publishers):
    """What the zone that has most of it holds, all that have spoken hold."""

    def _copies(self, incarnation, partition):
        copies = super()._copies(incarnation, partition)
        farthest = max((through for _, through in copies.zones), default=0)
        zones = tuple((zone, farthest) for zone, _ in copies.zones)
        return Copies(incarnation, partition, copies.start_offset, zones)


class GeoAtQuorum(ThreeZones):
    publishers_class = AtQuorum


class GeoByOneZone(ThreeZones):
    publishers_class = OneSpeaksForAll


@pytest.mark.parametrize(
    ("world", "says", "seed"),
    [
        (Uncommitted, "goes beyond what the zone", 4),
        (WithoutDigest, "is not what its origin wrote", 12),
        (GeoAtQuorum, NOT_HELD, 1),
        (GeoByOneZone, NOT_HELD, 1),
    ],
)
def test_without_a_rule_a_violation_is_found(world, says, seed):
    with pytest.raises(Violation, match=says):
        simulate(seed, world)
