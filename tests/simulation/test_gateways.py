"""Gateways of one zone and of several, simulated: what clients see of each other under faults, and without a rule.

A failure names its seed; the line that it prints replays it.
"""

import os
import subprocess
import sys

import pytest

from simulation.gateways import SEVERAL_ZONES, run
from simulation.gateways_mistakes import MISTAKES, problem

SEEDS = int(os.environ.get("SEEDS", "80"))  # `make simulate SEEDS=...` runs any number
SEEDS_OF_ZONES = int(os.environ.get("SEEDS", "20"))
AT_ONCE = 20  # seeds in one test, so that tests run beside each other


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_each_event_reaches_who_it_should_once(first: int) -> None:
    for seed in range(first, min(first + AT_ONCE, SEEDS)):
        run(seed)


@pytest.mark.parametrize("first", range(0, SEEDS_OF_ZONES, AT_ONCE))
def test_it_crosses_each_border_once_and_reaches_who_it_should_there(first: int) -> None:
    for seed in range(first, min(first + AT_ONCE, SEEDS_OF_ZONES)):
        run(SEVERAL_ZONES + seed)


def test_a_run_sees_what_it_is_about() -> None:
    """A simulation in which something never happens says nothing about it."""
    seen = run(1).audit.counted
    for seed in (*range(2, 12), 12, 14):
        seen += run(seed).audit.counted
    expected = {"delivered", "due", "groups", "groups at another worker", "refused", "rounds with prefixes", "tables"}
    assert {name for name, count in seen.items() if count} >= expected, seen
    for seed in range(SEVERAL_ZONES, SEVERAL_ZONES + 8):
        seen += run(seed).audit.counted
    assert {"crossed", "links given up", "tables of zones"} <= seen.keys(), seen
    assert seen["repairs"] > 10


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_the_simulation_has_teeth(mistake) -> None:
    assert problem(mistake, MISTAKES[mistake])


def test_a_seed_replays_itself_in_another_process() -> None:
    lines = set()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": "tests:."}
        command = [sys.executable, "-m", "simulation.gateways", "7"]
        lines.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(lines) == 1
