"""Accounts of a simulated zone: what is injected between gateways and sinks is reported for what it is, and soon, and
nothing else is. `test_zone.py` has the same among faults of all kinds.
"""

import os

import pytest

from protocol.coverage import ALTERED, LATE, LOST, UNCLOSED
from simulation.coverage_mistakes import BUSY_RUN_S, MISTAKES, Busy, Spoilt, problem
from simulation.zone import Zone

SEEDS = int(os.environ.get("SEEDS", "20")) // 10  # `make simulate SEEDS=...` runs any number
TEETH = 12  # the most seeds that a mistake is given to show itself
REPORTED = {"eat": LATE, "kill": UNCLOSED, "forge": LOST, "alter": ALTERED, "lie": LOST}


def run(seed: int, zone: type[Zone] = Zone, seconds: float = 3.0, **options) -> Zone:
    try:
        with zone(seed, groups=1 + seed % 2, **options) as world:
            world.run(seconds)
    except BaseException as error:
        error.add_note(f"seed {seed}, {options}")
        raise
    return world


@pytest.mark.parametrize("kind", REPORTED)
def test_what_is_injected_is_reported_within_the_grace(kind):
    """The ledger waits for each report until its time is over."""
    zones = [run(seed, kinds=(), tampers=(kind,)) for seed in range(SEEDS)]
    ledgers = [zone.audit.ledger for zone in zones]
    assert sum(len(ledger.due) for ledger in ledgers) >= SEEDS
    whys = {report.why for ledger in ledgers for _, report in ledger.reports}
    assert whys <= {REPORTED[kind], LATE}  # of what waits behind it, too
    assert REPORTED[kind] in whys


def test_what_was_altered_is_reported_also_where_publishers_never_pause():
    """By the chain at a mark: a sink is never just where a beacon says the chain."""
    zones = [run(seed, Busy, BUSY_RUN_S, kinds=(), tampers=("alter",)) for seed in range(max(1, SEEDS // 2))]
    assert {report.why for zone in zones for _, report in zone.audit.ledger.reports} >= {ALTERED}


def test_without_a_fault_nothing_is_reported():
    for seed in range(SEEDS):
        zone = run(seed, kinds=(), tampers=())
        ledger = zone.audit.ledger
        assert ledger.reports == []
        assert ledger.beacons > 5
        assert zone.audit.statements > 0
        assert ledger.roots > 0


def test_nothing_is_stated_that_a_disk_has_spoilt():
    zones = [run(seed, Spoilt, kinds=("spoil", "transfer")) for seed in range(1, 1 + SEEDS)]
    assert sum(zone.seen["spoil"] for zone in zones) > 0
    assert sum(zone.audit.statements for zone in zones) > SEEDS


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_the_simulation_has_teeth(mistake):
    assert any(problem(mistake, seed) for seed in range(TEETH))
