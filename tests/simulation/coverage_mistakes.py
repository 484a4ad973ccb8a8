"""Rules of coverage, each left out: what the simulation of a zone has to notice.

    PYTHONPATH=tests:. .venv/bin/python -m simulation.coverage_mistakes --seeds 24

prints, for every one, in how many of so many seeds it does: the table in docs/testing.md.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from gateway.core.coverage import Account
from gateway.core.partition_outbox import Batch, PartitionOutbox
from protocol.certified_data import Found
from simulation.zone import Zone
from sinkd.core import accounts, keeping
from sinkd.core.certifying import partition_of
from sinkd.core.speakers import Speaker
from sinkd.core.state import Statement
from sinkd.shell.attesting import Attesting
from sinkd.shell.coverage import Coverage
from sinkd.shell.link_server import LinkServer
from sinkd.shell.replica import Replica

Patch = pytest.MonkeyPatch
BUSY_S = 0.05  # between two events of a partition: a fourth of the time between beacons
BUSY_RUN_S = 6.0  # longer than a report may take


def a_statement_is_made_from_the_tree_in_memory(patch: Patch) -> None:
    async def from_memory(self: Attesting, replica: Replica, statement: Statement) -> Any:
        partition, tree = replica.store.incarnation(statement.incarnation, statement.partition), statement.tree
        from_offset = max(statement.start_offset, tree.begin_offset)
        begins = await replica.store.tree_at(partition, from_offset)
        await self._in_segments(replica, partition, statement.end_offset)
        found = Found(tree.size, tuple(tree.frontier), tree.control, 0, ())
        return partition_of(statement.partition, begins, statement.end_offset, found), found

    patch.setattr(Attesting, "_own", from_memory)


def a_batch_counts_before_it_is_acknowledged(patch: Patch) -> None:
    form = PartitionOutbox.form

    def hasty(self: PartitionOutbox) -> Batch:
        batch = form(self)
        self.account.appended(batch)
        return batch

    patch.setattr(PartitionOutbox, "form", hasty)


def a_run_goes_on_although_the_log_knows_less(patch: Patch) -> None:
    patch.setattr(Account, "reached", lambda self, last_sequence: None)


def chains_are_not_compared(patch: Patch) -> None:
    patch.setattr(keeping._Look, "_compare", lambda self: None)


def sinks_keep_no_marks(patch: Patch) -> None:
    patch.setattr(accounts, "_mark", lambda account, envelope: None)


def what_is_named_has_no_time_to_come(patch: Patch) -> None:
    begin = keeping.Keeper.__init__

    def hasty(self: keeping.Keeper, mesh: str, zone: str, node: str, grace_ms: int) -> None:
        begin(self, mesh, zone, node, grace_ms // 10)

    patch.setattr(keeping.Keeper, "__init__", hasty)


def nothing_is_asked_for_again(patch: Patch) -> None:
    patch.setattr(LinkServer, "close_link_of", lambda self, node, worker: 0)


def what_is_lost_is_not_recorded(patch: Patch) -> None:
    async def idle(self: Coverage, record: Any) -> None:
        return

    patch.setattr(Coverage, "_record", idle)


def a_gateway_that_was_followed_is_forgotten(patch: Patch) -> None:
    def forgetful(self: Speaker, now_ms: int) -> None:
        self.numbers.clear()
        self.lines.clear()

    patch.setattr(Speaker, "_follow", forgetful)


class Spoilt(Zone):
    """Many small segments, so that there is something to spoil."""

    segment_bytes = 1024


class Busy(Zone):
    """Publishers that never pause: no partition ends where any beacon says the chain."""

    def _publish(self) -> None:
        if not self.is_healed:
            for publisher in self.publishers:
                publisher.publish_to_all()
            self.call_later(BUSY_S, self._publish)


class Setting(NamedTuple):
    """In which a mistake comes to light soonest: faults of the zone, and between gateways and sinks."""

    kinds: tuple[str, ...] = ()
    tampers: tuple[str, ...] = ()
    groups: int = 1
    seconds: float = 3.0
    zone: type[Zone] = Zone


MISTAKES: dict[Callable[[Patch], None], Setting] = {
    a_statement_is_made_from_the_tree_in_memory: Setting(("spoil", "transfer"), seconds=6.0, zone=Spoilt),
    a_batch_counts_before_it_is_acknowledged: Setting(("crash", "cut", "partition")),
    a_run_goes_on_although_the_log_knows_less: Setting(tampers=("forge",)),
    chains_are_not_compared: Setting(tampers=("alter",)),
    sinks_keep_no_marks: Setting(tampers=("alter",), seconds=BUSY_RUN_S, zone=Busy),
    what_is_named_has_no_time_to_come: Setting(tampers=("eat",)),
    nothing_is_asked_for_again: Setting(tampers=("eat",)),
    what_is_lost_is_not_recorded: Setting(tampers=("kill", "forge")),
    a_gateway_that_was_followed_is_forgotten: Setting(tampers=("kill",)),
}


def problem(mistake: Callable[[Patch], None], seed: int) -> str:
    """What the simulation has to say of it; "" if nothing."""
    setting = MISTAKES[mistake]
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        try:
            with setting.zone(seed, groups=setting.groups, kinds=setting.kinds, tampers=setting.tampers) as zone:
                zone.run(setting.seconds)
        except Exception as error:  # noqa: BLE001  # whatever it is, it was noticed
            return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for mistake in MISTAKES:
        if arguments.only in mistake.__name__:
            found = [(seed, text) for seed in range(arguments.seeds) if (text := problem(mistake, seed))]
            name = mistake.__name__.replace("_", " ")
            first = f"{found[0][0]}: {found[0][1].splitlines()[0][:120]}" if found else ""
            print(f"| {name} | {len(found)} of {arguments.seeds} | {first} |", flush=True)


if __name__ == "__main__":
    main()
