"""A zone of three and of five sinks, whole and real, under faults of every kind: nothing acknowledged is ever lost.

A failure names its seed; the line that it prints replays it.
"""

import os
import subprocess
import sys
from collections import Counter

import pytest

from simulation.zone import Zone

SEEDS = int(os.environ.get("SEEDS", "60"))  # `make simulate SEEDS=...` runs any number


def run(seed: int, sinks: int = 3) -> Zone:
    try:
        with Zone(seed, sinks=sinks) as zone:
            zone.run()
    except BaseException as error:
        error.add_note(f"seed {seed}: PYTHONPATH=tests:. python -m simulation.zone {seed} --sinks {sinks}")
        raise
    return zone


@pytest.mark.parametrize(("sinks", "seeds"), [(3, SEEDS), (5, SEEDS // 4)])
def test_faults_of_every_kind(sinks, seeds):
    seen: Counter[str] = Counter()
    for seed in range(seeds):
        seen += run(seed, sinks).seen
    # A simulation in which something never happens says nothing about it.
    for event in ("checkpoint_sent", "filled", "member_whole", "log_trimmed", "storage_full", "sink_failed"):
        assert seen[event] >= seeds // 10, (event, seen)
    if seeds >= 50:
        for event in ("log_damaged", "journal_tail_cut", "no_space_for_journal", "rolled back"):
            assert seen[event], (event, seen)


def test_without_faults_all_is_acknowledged():
    for seed in range(3):
        with Zone(seed, kinds=()) as zone:
            zone.run(3)
        assert zone.audit.refused == 0
        assert zone.audit.acknowledged > 20
        assert zone.audit.acknowledged == sum(bool(event.reply) for event in zone.audit.events)
        assert len(zone.audit.leaders) == 1


def test_a_seed_replays_itself_in_another_process():
    lines = set()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": "tests:."}
        command = [sys.executable, "-m", "simulation.zone", "5"]
        lines.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(lines) == 1
