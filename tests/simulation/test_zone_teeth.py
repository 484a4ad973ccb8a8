"""The simulation of a zone notices it when a rule is left out."""

import pytest

from simulation.zone_mistakes import MISTAKES, SEEN, problem

SEEDS = 24  # the most that a mistake is given to show itself


@pytest.mark.parametrize("mistake", SEEN, ids=lambda mistake: mistake.__name__)
def test_the_simulation_has_teeth(mistake):
    assert any(problem(mistake, seed, MISTAKES[mistake]) for seed in range(SEEDS))
