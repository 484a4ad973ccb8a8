"""A zone of three and of five sinks, whole and real, under faults of every kind: nothing acknowledged is ever lost.

A failure names its seed; the line that it prints replays it.
"""

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from simulation.zone import Zone

SEEDS = int(os.environ.get("SEEDS", "30"))  # `make simulate SEEDS=...` runs any number
AT_ONCE = 15  # seeds in one test, so that tests run beside each other


def run(seed: int, sinks: int) -> None:
    try:
        with Zone(seed, sinks=sinks) as zone:
            zone.run()
    except BaseException as error:
        error.add_note(f"seed {seed}: PYTHONPATH=tests:. python -m simulation.zone {seed} --sinks {sinks}")
        raise


def _parts(sinks: int, seeds: int) -> list[Any]:
    parts = [range(first, min(first + AT_ONCE, seeds)) for first in range(0, seeds, AT_ONCE)]
    return [pytest.param(sinks, part, id=f"{sinks} sinks, seeds from {part.start}") for part in parts]


@pytest.mark.parametrize(("sinks", "seeds"), _parts(3, SEEDS) + _parts(5, SEEDS // 4))
def test_faults_of_every_kind(sinks, seeds):
    for seed in seeds:
        run(seed, sinks)


@pytest.mark.parametrize(
    ("kinds", "events", "first"),
    [
        (("damage", "crash"), {"log_damaged", "member_whole"}, 0),
        (("crash_in_call",), {"journal_tail_cut", "journal_tail_cleared"}, 3),  # torn writes, stale bytes
        (("failing_fsync", "partition"), {"sink_failed", "checkpoint_sent", "filled"}, 1),
        (("replace_gateway", "transfer"), {"log_trimmed"}, 18),
        (("full_disk",), {"no_space_for_journal", "storage_full"}, 0),
        (("spoil",), {"segment_damaged", "segment_mended"}, 0),
        (("roll_back", "set_back"), {"rolled back", "set back", "log_damaged"}, 2),
        (("add_sink",), {"member_added", "filled"}, 0),
        (("change_members",), {"member_added", "member_removed"}, 0),
    ],
    ids=lambda value: " and ".join(value) if isinstance(value, tuple) else "",
)
def test_a_fault_does_what_it_says(kinds, events, first):
    """A simulation in which something never happens says nothing about it. `first` is a seed that sees it soon."""
    seen: Counter[str] = Counter()
    seeds = iter(range(first, first + 30))
    while not events <= seen.keys() and (seed := next(seeds, None)) is not None:
        with Zone(seed, groups=1, kinds=kinds) as zone:
            zone.run()
        seen += zone.seen
    assert events <= seen.keys(), seen


def test_a_full_disk_refuses_in_every_group():
    refused, seeds = [0, 0], iter(range(2, 30))
    while not all(refused) and (seed := next(seeds, None)) is not None:
        with Zone(seed, groups=2, kinds=("full_disk",)) as zone:
            zone.run()
            for replica in (each for node in zone.nodes.values() for each in node.sink.replicas):
                refused[replica.number] += replica.links.refused_full
    assert all(refused)


def test_without_faults_all_is_acknowledged():
    for seed in range(3):
        with Zone(seed, kinds=()) as zone:
            zone.run(3)
        assert zone.audit.refused == 0
        assert zone.audit.acknowledged > 20
        assert zone.audit.acknowledged == sum(bool(event.reply) for event in zone.audit.events)
        assert [len(audit.leaders) for audit in zone.audit.groups] == [1]


def test_a_seed_replays_itself_in_another_process():
    lines = set()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": "tests:."}
        command = [sys.executable, "-m", "simulation.zone", "5"]
        lines.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(lines) == 1
