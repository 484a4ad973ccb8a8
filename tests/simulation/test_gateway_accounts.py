"""The accounts of a gateway under faults of every kind: each row that it tells is what the log took, counted anew.

A failure names its seed; `CoveredWorld(seed).run()` replays it.
"""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from gateway.core.coverage import Account
from gateway.core.outbox import Outbox
from gateway.core.partition_outbox import Batch, PartitionOutbox
from protocol.coverage import Row
from protocol.envelope import Envelope
from protocol.records import CONTROL, read_header
from simulation import world as simulated
from simulation.audit import Violation
from simulation.world import ACTIONS, SimulatedGateway, Sink, World, definition
from sinkd.core import commands
from sinkd.core.commands import Configure
from sinkd.core.machine import Result

SEEDS = int(os.environ.get("SEEDS", "150"))
MUTANT_SEEDS = 100
COUNTS = "held", "batches", "bytes", "duplicates", "refused", "gaps"


class Spent(NamedTuple):
    """A parcel that was decided for good, as the log saw it; `batch` is None where it was refused."""

    head: Envelope
    batch: bytes | None


class Ledger:
    """All that one gateway has ever spent of sequences in one partition."""

    def __init__(self) -> None:
        self.spent: list[Spent] = []
        self.last_sequence = 0

    def add(self, head: Envelope, batch: bytes | None) -> None:
        assert head.first_sequence == self.last_sequence + 1
        self.last_sequence = head.last_sequence
        self.spent.append(Spent(head, batch))

    def check(self, row: Row) -> None:
        """A row is what the parcels from the one that began its run on came to, up to what it says is known."""
        chain, counts, sequence = bytes(32), Counter(), row.base
        chains = {sequence: chain}
        begun = [place for place, one in enumerate(self.spent) if one.head.run.hex() == row.run]
        for head, batch in self.spent[begun[0] :] if begun else ():
            if head.first_sequence > row.acknowledged:
                break
            if batch is None:
                counts["refused"] += head.sequence_count
            else:
                counts["batches"] += 1
                counts["bytes"] += len(batch)
                header = read_header(batch)
                held = 0 if header.attributes == CONTROL else header.record_count
                counts["held"] += held
                counts["gaps" if header.attributes == CONTROL else "duplicates"] += head.sequence_count - held
                span = head.first_sequence.to_bytes(8, "big") + head.sequence_count.to_bytes(4, "big")
                chain = hashlib.sha256(chain + span + hashlib.sha256(batch[21:]).digest()).digest()
            sequence = head.last_sequence
            chains[sequence] = chain
        told = {name: getattr(row, name) for name in COUNTS}
        if begun and self.spent[begun[0]].head.first_sequence != row.base + 1:
            raise Violation(f"run {row.run} began at {self.spent[begun[0]].head.first_sequence}, told {row.base} + 1")
        if sequence != row.acknowledged or told != {name: counts[name] for name in COUNTS}:
            raise Violation(f"{row} is not what the log took: {counts}, up to {sequence}")
        if row.acknowledged - row.base != row.held + row.duplicates + row.refused + row.gaps:
            raise Violation(f"{row} does not add up")
        if chains.get(row.mark, b"").hex() != row.chain:
            raise Violation(f"{row} has another chain than {chains.get(row.mark)} at its mark")
        if not row.base <= row.mark <= row.acknowledged < row.next:
            raise Violation(f"{row} is not in order")


class RecordingSink(Sink):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.ledgers: dict[tuple[bytes, int], Ledger] = {}

    def apply(self, command: bytes) -> Result:
        result = super().apply(command)
        if isinstance(result, list):
            parcels = commands.read_parcels(commands.decode(command))
            for (parcel, _), taken in zip(parcels, result, strict=True):
                head, is_appended = parcel.envelope, taken.placement is not None
                ledger = self.ledgers.setdefault((head.incarnation, head.partition), Ledger())
                is_refused = getattr(taken.answer, "reason", "") in ("WRONG_LAST_SEQUENCE", "WRONG_LAST_ID")
                if is_appended or (is_refused and head.first_sequence > ledger.last_sequence):
                    ledger.add(head, bytes(parcel.batch) if is_appended else None)
        return result


class CoveredWorld(World):
    """Beacons are taken at any moment; `rows` are those that were told, by what happened to be in them."""

    def __init__(self, seed: int, *, spool: bool = False, changes: bool = True) -> None:
        self.runs = random.Random(seed)
        self.changes = changes  # revisions that cover other streams
        self.rows: Counter[str] = Counter()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulated, "Sink", RecordingSink)
            super().__init__(seed, spool=spool)

    def run(self, steps: int = 400) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ACTIONS, "beacon", 15)
            patch.setitem(ACTIONS, "hash_ahead", 10)
            patch.setattr(simulated, "Outbox", self._outbox)
            self.gateway = SimulatedGateway(self, self.life)  # with runs of its own
            super().run(steps)
        self.end()

    def _outbox(self, *arguments: Any, **named: Any) -> Outbox:
        return Outbox(*arguments, **named, new_run=lambda: self.runs.randbytes(8))

    def configure(self) -> None:
        self.revision += 1
        self.audit.streams_changed = self.revision > 1
        streams = [
            definition("orders", "orders.>", "subject", retention_bytes=self.rng.choice((0, 1)), covered=True),
            definition("metrics", "metrics.*", "token:2", covered=not self.changes or self.rng.random() < 0.6),
        ]
        keep = [stream for stream in streams if self.revision == 1 or self.rng.random() < 0.7]
        keep.append(definition("events", ">", "subject", reply="header", covered=True))
        self.sink.submit(commands.CONFIGURE, Configure(self.revision, tuple(keep)), self.configured)

    def beacon(self) -> None:
        self.check(self.gateway.outbox.coverage_rows(whole=self.rng.random() < 0.2))

    def hash_ahead(self) -> None:
        self.gateway.outbox.hash_sent()

    def check(self, rows: list[Row]) -> None:
        for row in rows:
            self.rows["all"] += 1
            for name in ("duplicates", "refused", "gaps", "is_over"):
                self.rows[name] += bool(getattr(row, name))
            self.rows["marked below its end"] += row.mark < row.acknowledged
            self.rows["under way"] += row.acknowledged + 1 < row.next
            key = bytes.fromhex(row.incarnation), row.partition
            self.sink.ledgers.setdefault(key, Ledger()).check(row)

    def end(self) -> None:
        """When all is quiet gateway and sink have the same account, and know the chain at the same sequence."""
        self.check(self.gateway.outbox.coverage_rows(whole=True))
        rows = self.gateway.outbox.coverage_rows(whole=True)  # nothing was marked since
        self.check(rows)
        producer = self.sink.machine.state.producer_of("gateway", 0)
        for row in rows:
            progress = producer.progress.get((bytes.fromhex(row.incarnation), row.partition))
            account = progress.account if progress is not None else None
            if row.acknowledged == row.base or (account is None and self.changes):
                continue  # it was begun, and its stream is retired or was not covered for a moment
            assert account is not None, row
            assert progress is not None
            there = (
                account.run.hex(), account.base, progress.last_sequence, account.chain.hex(), account.held,
                account.batches, account.size_bytes, account.duplicates, account.refused, account.gaps,
            )  # fmt: skip
            here = (row.run, row.base, row.acknowledged, row.chain, *(getattr(row, name) for name in COUNTS))
            assert (here, row.mark, row.next) == (there, row.acknowledged, row.acknowledged + 1)
            self.rows["compared with the sink's"] += 1


def run(seed: int, **settings: bool) -> CoveredWorld:
    world = CoveredWorld(seed, **settings)
    try:
        world.run()
    except BaseException as error:
        error.add_note(f"seed {seed}: CoveredWorld({seed}, **{settings}).run()")
        raise
    return world


def run_all(seeds: int) -> None:
    for seed in range(seeds):
        run(seed, changes=False)


def test_every_row_is_what_the_log_took() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        seen += run(seed, changes=seed % 2 == 0).rows
    for what in ("refused", "gaps", "marked below its end", "under way", "compared with the sink's"):
        assert seen[what] >= SEEDS / 5, (what, seen)


def test_a_gateway_that_goes_on_with_a_spool_speaks_of_its_own_runs_alone() -> None:
    worlds = [run(seed, spool=True, changes=False) for seed in range(SEEDS // 3)]
    assert sum(world.life > 1 for world in worlds) > len(worlds) / 3
    assert sum(world.rows["compared with the sink's"] for world in worlds) > len(worlds)


# -- mistakes that it must see ----------------------------------------------------------------------------------------


def counted_when_formed(patch: pytest.MonkeyPatch) -> None:
    """As if a beacon were taken before the acknowledgement."""
    form = PartitionOutbox.form

    def hasty(self: PartitionOutbox) -> Batch:
        batch = form(self)
        self.account.appended(batch)
        return batch

    patch.setattr(PartitionOutbox, "form", hasty)


def refused_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Account, "spent", lambda self, batch: None)


def an_older_hash_is_kept(patch: pytest.MonkeyPatch) -> None:
    """Of a batch that was taken back, and formed anew with other events."""

    def forgetful(self: Account, next_sequence: int, *, is_marked: bool) -> None:
        self._mark_due = self._mark_due or is_marked

    patch.setattr(Account, "taken_back", forgetful)


def the_run_is_named_once(patch: pytest.MonkeyPatch) -> None:
    run_of = Account.run_of
    named: set[bytes] = set()

    def forgetful(self: Account, first_sequence: int) -> bytes:
        found = run_of(self, first_sequence)
        is_new = found not in named
        named.add(found)
        return found if is_new else b""

    patch.setattr(Account, "run_of", forgetful)


def what_waits_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PartitionOutbox, "next_waiting_sequence", property(lambda self: self.next_sequence - 1))


@pytest.mark.parametrize(
    "mistake",
    [
        counted_when_formed,
        refused_is_forgotten,
        the_run_is_named_once,
        what_waits_is_not_counted,
        an_older_hash_is_kept,
    ],
)
def test_it_sees(mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        run_all(MUTANT_SEEDS)


def test_a_seed_replays_itself() -> None:
    assert run(5).rows == run(5).rows
