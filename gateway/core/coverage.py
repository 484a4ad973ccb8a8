"""The gateway's accounts: of each partition what it took in, what became of it, and the chain of what the log took.

    PartitionOutbox ─ formed, appended, spent, reached ─► Account ─ once a second ─► Row ─► beacon (shell/beacons.py)

What a run, a chain and a mark are says `protocol.coverage`. An account begins a run with the first batch that is formed
once the link has told how far the log has got. It takes in outcomes in sequence order; one that comes ahead of an older
batch's waits for that. What the log is found to know, when a link is open anew, is either what is accounted for, and
the run goes on, or something else (the log has lost what it had acknowledged; another gateway had the same name): then
the run is over, which the next beacon says, and another one begins.

A row says the chain at a sequence at which the sinks know it too: at the latest mark, if there has been one since the
row before; else nothing was formed since, and the sinks know it at the last sequence.

Each batch is hashed once: while its answer is awaited, so that nobody waits for the hash; else when that is there.

What no account is kept of is counted as that, by why (`Uncovered`).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from protocol.coverage import CHAIN_START, STREAM, Row, Uncovered, chained, digest_of
from protocol.limits import RUNS_OVER_KEPT
from protocol.streams import StreamState

if TYPE_CHECKING:
    from gateway.core.partition_outbox import Batch, PartitionOutbox

NOT_COVERED: Final = "not covered"
NO_STREAM: Final = "no stream"
DELIVERY_FABRIC: Final = "delivery-fabric"
NewRun: TypeAlias = Callable[[], bytes]


class Unaccounted:
    """Stands for the account of a partition that is not covered: it counts what is appended."""

    __slots__ = ("bytes", "events", "stream")

    def __init__(self, stream: str = "") -> None:
        self.stream, self.events, self.bytes = stream, 0, 0

    def formed(self, first_sequence: int) -> bool:
        """A batch is formed; whether it is to be marked."""
        return False

    def run_of(self, first_sequence: int) -> bytes:
        """The run that the batch at this sequence begins, or b""."""
        return b""

    def hash(self, batch: "Batch") -> None:
        """The batch is on its way, and there is time."""

    def appended(self, batch: "Batch") -> None:
        """The log has taken the batch."""
        self.events += batch.events
        self.bytes += len(batch.data)

    def spent(self, batch: "Batch") -> None:
        """An expectation has failed: the batch's sequences are spent."""

    def unknown(self, batch: "Batch") -> None:
        """What became of the batch will never be known."""

    def taken_back(self, next_sequence: int, *, is_marked: bool) -> None:
        """The batches from `next_sequence` on are not in the log, and are formed anew."""

    def reached(self, last_sequence: int) -> None:
        """A link is open anew, everything that it told is settled, and the log knows us up to there."""

    def take_rows(self, next_sequence: int, *, whole: bool, closing: bool) -> Iterator[Row]:
        """For a beacon: what has changed since the one before, or all; `closing` is the last one."""
        return iter(())


class Account:
    """Of one partition of a covered stream. `run` is b"" while none has begun."""

    __slots__ = (
        "_digests", "_early", "_is_marked_anew", "_mark_due", "_new_run", "_over", "_place", "_told", "_unknown",
        "acknowledged", "base", "batches", "bytes", "chain", "duplicates", "gaps", "held", "mark", "refused", "run",
    )  # fmt: skip

    def __init__(self, stream: StreamState, number: int, new_run: NewRun) -> None:
        self._place = stream.name, stream.incarnation.hex(), number
        self._new_run = new_run
        self.run = b""
        self._over: list[Row] = []  # of runs that are over, and no beacon has said so yet
        self._mark_due = True
        self._begin(b"", 0)

    def _begin(self, run: bytes, base: int) -> None:
        self.run, self.base, self.acknowledged = run, base, base
        self.chain, self.mark = CHAIN_START, (base, CHAIN_START)
        self.held = self.batches = self.bytes = self.duplicates = self.refused = self.gaps = 0
        self._digests: dict[int, bytes] = {}  # of batches on their way, by first sequence
        self._early: dict[int, tuple[Batch, bool]] = {}  # by first sequence: ahead of older batches' outcomes
        self._is_marked_anew = False
        self._unknown = 0  # the last sequence of which nothing will be known
        self._told: Row | None = None

    # -- what becomes of batches: see `Unaccounted` -------------------------------------------------------------------

    def formed(self, first_sequence: int) -> bool:
        if not self.run:
            self._begin(self._new_run(), first_sequence - 1)
        is_marked, self._mark_due = self._mark_due, False
        return is_marked

    def run_of(self, first_sequence: int) -> bytes:
        return self.run if first_sequence == self.base + 1 else b""

    def hash(self, batch: "Batch") -> None:
        if batch.first_sequence > self.acknowledged and self.run:
            self._digests[batch.first_sequence] = digest_of(batch.data)

    def appended(self, batch: "Batch") -> None:
        self._settle(batch, is_spent=False)

    def spent(self, batch: "Batch") -> None:
        self._settle(batch, is_spent=True)

    def unknown(self, batch: "Batch") -> None:
        self._unknown = batch.first_sequence + batch.sequences - 1

    def _settle(self, batch: "Batch", *, is_spent: bool) -> None:
        """Outcomes of an older run, which this process or one before it has sent, are not of this account."""
        ahead = batch.first_sequence - self.acknowledged
        if ahead == 1:
            self._take(batch, is_spent)
            while self._early and (after := self._early.pop(self.acknowledged + 1, None)) is not None:
                self._take(*after)
        elif ahead > 1 and self.run:
            self._early[batch.first_sequence] = batch, is_spent

    def _take(self, batch: "Batch", is_spent: bool) -> None:
        if not self.run:
            return
        sequences = batch.sequences
        digest = self._digests.pop(batch.first_sequence, None)
        if is_spent:
            self.refused += sequences
        else:
            self.chain = chained(self.chain, batch.first_sequence, sequences, digest or digest_of(batch.data))
            self.batches += 1
            self.bytes += len(batch.data)
            if batch.is_gap:
                self.gaps += sequences
            else:
                self.held += batch.records
                self.duplicates += sequences - batch.records
        self.acknowledged += sequences
        if batch.is_marked:
            self.mark, self._is_marked_anew = (self.acknowledged, self.chain), True

    def taken_back(self, next_sequence: int, *, is_marked: bool) -> None:
        self._mark_due = self._mark_due or is_marked
        self._digests.clear()
        if self.run and next_sequence <= self.base:  # what was formed before the stream was covered comes again
            self.end()

    def reached(self, last_sequence: int) -> None:
        if self.run and last_sequence != self.acknowledged:
            self.end()

    def end(self) -> None:
        """The run is over. Nobody need hear of one of which nobody has heard, here or there."""
        if self.run and (self._told is not None or self.acknowledged > self.base or self._unknown):
            row = self._row(max(self.acknowledged, self._unknown) + 1)
            self._over = [*self._over, msgspec.structs.replace(row, is_over=True)][-RUNS_OVER_KEPT:]
        self._begin(b"", 0)
        self._mark_due = True

    # -- what is said of it -------------------------------------------------------------------------------------------

    def take_rows(self, next_sequence: int, *, whole: bool, closing: bool) -> Iterator[Row]:
        over, self._over = self._over, []
        yield from over
        if not self.run:
            return
        if closing and next_sequence == self.acknowledged + 1:
            self._is_marked_anew = False  # where the log ends now it ends for good
        row = self._row(next_sequence)
        self._is_marked_anew, self._mark_due = False, True
        if whole or row != self._told:
            self._told = row
            yield row

    def _row(self, next_sequence: int) -> Row:
        stream, incarnation, partition = self._place
        mark, chain = self.mark if self._is_marked_anew else (self.acknowledged, self.chain)
        return Row(
            stream=stream, incarnation=incarnation, partition=partition, run=self.run.hex(), base=self.base,
            acknowledged=self.acknowledged, mark=mark, chain=chain.hex(), next=next_sequence, held=self.held,
            batches=self.batches, bytes=self.bytes, duplicates=self.duplicates, refused=self.refused, gaps=self.gaps,
        )  # fmt: skip


NOBODY: Final = Unaccounted()
"""Of partitions outside an outbox."""


class Accounts:
    """Of all partitions of an outbox. `new_run` makes eight random bytes."""

    def __init__(self, new_run: NewRun) -> None:
        self._new_run = new_run
        self.runs_over = 0  # that ended because the log knew otherwise, so far as beacons have said so
        self._unaccounted: dict[str, Unaccounted] = {}

    def of(self, stream: StreamState, number: int) -> Account | Unaccounted:
        """The account of a partition, which begins now."""
        if stream.covered:
            return Account(stream, number, self._new_run)
        return self._unaccounted.setdefault(stream.name, Unaccounted(stream.name))

    def follow(self, partition: "PartitionOutbox") -> None:
        """The settings of its stream are others. What is not covered any more is forgotten, by sinks too."""
        if partition.stream.covered != isinstance(partition.account, Account):
            partition.account = self.of(partition.stream, partition.number)

    def rows(self, partitions: "Iterable[PartitionOutbox]", *, whole: bool, closing: bool = False) -> list[Row]:
        """What the next beacon says of them: what has changed, or all; of streams that are gone what has changed."""
        rows = [
            row
            for partition in partitions
            for row in partition.account.take_rows(
                partition.next_waiting_sequence, whole=whole and not partition.is_gone, closing=closing
            )
        ]
        self.runs_over += sum(row.is_over for row in rows)
        return rows

    def uncovered(self) -> list[Uncovered]:
        """Events in streams of which no accounts are kept, but `$COVERAGE`, by stream."""
        counted = (each for name, each in sorted(self._unaccounted.items()) if name != STREAM and each.events)
        return [
            Uncovered(why=NOT_COVERED, events=each.events, bytes=each.bytes, stream=each.stream) for each in counted
        ]
