"""Two zones of real sinks under faults of disks, machines and links: mirrors are what their origins wrote, for good."""

import os
from collections import Counter
from typing import Any

import pytest

from protocol import link
from protocol.records import read_header
from simulation.zone_pair import Pair
from sinkd.core import mirroring
from sinkd.shell import segments
from sinkd.shell.mirrors import Origin

SEEDS = int(os.environ.get("SEEDS", "16")) // 4  # `make simulate SEEDS=...` runs any number
AT_ONCE = 2  # seeds in one test, so that tests run beside each other
TEETH = 12  # the most seeds that a mistake is given to show itself


def run(seed: int, **options: Any) -> Pair:
    try:
        with Pair(seed, **options) as pair:
            pair.run()
    except BaseException as error:
        error.add_note(f"seed {seed}: PYTHONPATH=tests:. python -m simulation.zone_pair {seed}")
        raise
    return pair


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_faults_of_every_kind(first):
    pairs = [run(seed) for seed in range(first, min(first + AT_ONCE, SEEDS))]
    assert sum(pair.far.audit.mirrored for pair in pairs) > 5 * len(pairs)


def test_a_mirror_has_a_gap_where_retention_overtook_it():
    seen: Counter[str] = Counter()
    seeds = iter(range(9, 30))  # the first one is a seed that sees it soon
    while not seen["mirror_gap"] and (seed := next(seeds, None)) is not None:
        seen += run(seed, kinds=("far_block",)).seen
    assert seen["mirror_gap"]
    assert seen["far_block"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


def told_at_receipt(patch: pytest.MonkeyPatch) -> None:
    """An origin is told that a mirror holds for good what has only arrived."""
    take = Origin._take_batches

    def hasty(self: Origin, connection: Any, message: link.Mirrored, tail: bytes) -> None:
        take(self, connection, message, tail)
        followed = self._of(message.subscription)
        if followed is not None and followed.pull is not None:
            connection.send(link.Durable(message.subscription, followed.pull.next_offset))

    patch.setattr(Origin, "_take_batches", hasty)


def what_a_disk_has_spoilt_is_passed_on(patch: pytest.MonkeyPatch) -> None:
    """Neither end looks at checksums."""
    patch.setattr(segments, "_checked_batches", lambda data, *_: data)
    patch.setattr(mirroring, "check_batch", read_header)


MISTAKES = {
    told_at_receipt: ("far_block", "far_slow", "crash"),
    what_a_disk_has_spoilt_is_passed_on: ("spoil", "far_block", "crash"),
}
"""Each with the faults that bring it to light soonest."""


def problem(mistake: Any, seed: int) -> str:
    """What the simulation has to say of it; "" if nothing."""
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        try:
            run(seed, kinds=MISTAKES[mistake])
        except Exception as error:  # noqa: BLE001  # whatever it is, it was noticed
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_the_simulation_has_teeth(mistake):
    assert any(problem(mistake, seed) for seed in range(TEETH))
