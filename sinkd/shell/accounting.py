"""What this sink's groups hold of each producer: for the keeper to compare with beacons, and for operators to read."""

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from protocol.limits import COVERAGE_STATUS_ROWS_MAX
from protocol.merkle import root_of
from sinkd.core.accounts import ended_runs
from sinkd.core.keeping import Keeper, Reached
from sinkd.core.state import Account, Producer, Progress
from sinkd.core.state import Stream as LoggedStream

if TYPE_CHECKING:
    from sinkd.shell.replica import Replica

OUTCOMES: Final = ("held", "duplicates", "refused", "gaps")
LOST: Final = "lost"
UNDER_WAY: Final = "under_way"
_COUNTS: Final = ("held", "batches", "size_bytes", "duplicates", "refused", "gaps")


class Accounts:
    """As they are now: to be made anew for each look."""

    def __init__(self, replicas: "list[Replica]") -> None:
        self._replicas = replicas
        self._logs: dict[str, LoggedStream] = {}
        self._producers: list[dict[tuple[str, int], Producer]] = []
        for replica in replicas:
            state = replica.machine.state
            self._logs |= {log.state.incarnation.hex(): log for log in state.streams.values()}
            self._producers.append({(each.node, each.worker): each for each in state.producers.values()})

    def reached(self, node: str, worker: int, incarnation: str, partition: int) -> Reached | None:
        """`sinkd.core.keeping.Lookup`"""
        log = self._logs.get(incarnation)
        if log is None or not 0 <= partition < log.state.partitions:
            return None
        group = log.state.group_of(partition)
        if group >= len(self._replicas) or not log.state.covered:
            return None
        producer = self._producers[group].get((node, worker))
        progress = producer.progress.get((log.state.incarnation, partition)) if producer is not None else None
        return _reached(group, progress) if progress is not None else Reached(group, 0)


def _reached(group: int, progress: Progress) -> Reached:
    recorded = frozenset((each.run, each.reason) for each in progress.recorded)
    account = progress.account
    if account is None:
        return Reached(group, progress.last_sequence, recorded=recorded)
    return Reached(
        group, progress.last_sequence, account.run, account.base, account.chain, account.marks, recorded,
        ended_runs(account),
    )  # fmt: skip


# -- for operators ----------------------------------------------------------------------------------------------------


def accounts(replica: "Replica") -> list[dict[str, Any]]:
    """Of each producer in each partition of this group that is covered, so far as they fit into an answer.

    docs/cli.md names the fields.
    """
    state = replica.machine.state
    names = {log.state.incarnation: log.state for log in state.streams.values()}
    found = (
        {
            "stream": names[incarnation].name,
            "incarnation": incarnation.hex(),
            "partition": partition,
            "node": producer.node,
            "worker": producer.worker,
            "last": progress.last_sequence,
            **_account(progress.account),
            "lost": progress.lost,
            "recorded": [
                {"run": each.run.hex(), "reason": each.reason, "events": each.events, "offset": each.offset}
                for each in progress.recorded
            ],
        }
        for _, producer in sorted(state.producers.items())
        for (incarnation, partition), progress in sorted(producer.progress.items())
        if incarnation in names and names[incarnation].covered
    )
    return list(islice(found, COVERAGE_STATUS_ROWS_MAX))


def _account(account: Account | None) -> dict[str, Any]:
    if account is None:
        return {"run": ""}
    return {
        "run": account.run.hex(),
        "base": account.base,
        "chain": account.chain.hex(),
        **{name: getattr(account, name) for name in _COUNTS},
        "before": {name: getattr(account.before, name) for name in _COUNTS},
    }


def trees(replica: "Replica") -> list[dict[str, Any]]:
    """Of each log of this group that is covered, mirrors too."""
    return [
        {
            "log": log.name,
            "incarnation": log.incarnation.hex(),
            "partition": number,
            "begin_offset": partition.tree.begin_offset,
            "end_offset": partition.end_offset,
            "size": partition.tree.size,
            "control": partition.tree.control,
            "root": root_of(partition.tree.frontier).hex(),
        }
        for log, number, partition in replica.machine.partitions()
        if partition.tree is not None
    ]


def outcomes(replicas: "list[Replica]", keeper: Keeper) -> dict[tuple[str, str], int]:
    """What became of events that gateways took in, by stream: as accounts have it, and what is named and not there."""
    found: dict[tuple[str, str], int] = {}
    for replica in replicas:
        state = replica.machine.state
        names = {log.state.incarnation: log.state.name for log in state.streams.values() if log.state.covered}
        for name in names.values():
            for outcome in (*OUTCOMES, LOST, UNDER_WAY):
                found.setdefault((name, outcome), 0)
        for producer in state.producers.values():
            for (incarnation, _), progress in producer.progress.items():
                if incarnation in names:
                    found[names[incarnation], LOST] += progress.lost
                    for part in (progress.account, progress.account.before) if progress.account is not None else ():
                        for outcome in OUTCOMES:
                            found[names[incarnation], outcome] += getattr(part, outcome)
    for stream, events in keeper.under_way():
        if (stream, UNDER_WAY) in found:
            found[stream, UNDER_WAY] += events
    return found
