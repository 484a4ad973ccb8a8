"""From publish to log, exactly once or refused: hundreds of seeds of faults, and mistakes that the audit has to see.

A failure names its seed; `World(seed).run()` replays it.
"""

import os
from collections import Counter
from typing import Any

import msgspec
import pytest

from gateway.core.lanes import Replies
from gateway.core.outbox import Outbox
from gateway.core.partition_outbox import Batch, Entry, PartitionOutbox, Run
from gateway.core.spool import Spool
from gateway.core.spool_format import Record
from gateway.core.spool_recovery import _Place, _Sent
from protocol.envelope import Parcel
from simulation.audit import Violation
from simulation.world import SimulatedGateway, Sink, World
from sinkd.core import machine
from sinkd.core.machine import Machine, Result, Taken
from sinkd.core.state import PartitionState

SEEDS = int(os.environ.get("SEEDS", "200"))  # `make simulate SEEDS=...` runs any number
MUTANT_SEEDS = 200  # the most that a mistake is given to show itself


def run(seed: int, *, calm: bool = False, spool: bool = False) -> World:
    world = World(seed, calm=calm, spool=spool)
    try:
        world.run()
    except Exception as error:
        error.add_note(f"seed {seed}: World({seed}, calm={calm}, spool={spool}).run()")
        raise
    return world


def test_faults_of_every_kind():
    seen, lives, given_up, awaited_by_lane = Counter(), 0, 0, 0
    for seed in range(SEEDS):
        world = run(seed)
        seen += world.audit.seen
        lives += world.life
        awaited_by_lane += world.awaited_by_lane
        given_up += sum(publish.is_given_up for publish in world.audit.publishes)
    # A simulation in which something never happens says nothing about it.
    assert lives > SEEDS
    assert given_up > SEEDS
    assert awaited_by_lane > 5 * SEEDS
    rare = {"FENCED", "DUPLICATE_IDS", "OUT_OF_ORDER", "STALE_CONFIG", "STORAGE_FULL", "NOT_LEADER"}
    for outcome in rare | {"taken", "WRONG_LAST_SEQUENCE", "WRONG_LAST_ID"}:
        assert seen[outcome] >= SEEDS // 10, (outcome, seen)


def test_without_faults_everything_is_taken():
    for seed in range(20):
        world = run(seed, calm=True)
        assert not world.audit.seen.keys() & {"FENCED", "STORAGE_FULL", "NOT_LEADER", "STALE_CONFIG"}
        assert all(log for key, log in world.audit.logs.items() if key[0] == "orders")


def test_what_is_in_a_spool_outlives_the_gateway():
    seeds = max(SEEDS // 6, 1)
    worlds = [run(seed, spool=True) for seed in range(seeds)]
    disks = [world.spool_disk for world in worlds]
    assert sum(world.life for world in worlds) > 1.5 * seeds
    assert sum(disk.restored for disk in disks) > 10 * seeds
    assert sum(disk.moves for disk in disks) > seeds // 2
    for disk in disks:
        disk.write(0)
        disk.write(0)  # the first one may have begun another file
        assert len(disk.files) == 1
        assert disk.spool.events == 0


def test_a_seed_replays_itself():
    one, again = run(7), run(7)
    assert one.sink.machine.snapshot() == again.sink.machine.snapshot()
    assert one.audit.logs.keys() == again.audit.logs.keys()
    assert [publish.answers for publish in one.audit.publishes] == [
        publish.answers for publish in again.audit.publishes
    ]


# -- mistakes that it must see ----------------------------------------------------------------------------------------


def any_sequence_is_taken(patch: pytest.MonkeyPatch) -> None:
    append = Machine._append

    def lenient(self: Machine, parcel: Parcel, digest: bytes) -> Taken:
        envelope = parcel.envelope
        producer = self.state.producers.get(envelope.producer_id)
        progress = producer and producer.progress.get((envelope.incarnation, envelope.partition))
        if progress:
            progress.last_sequence = envelope.first_sequence - 1
        return append(self, parcel, digest)

    patch.setattr(Machine, "_append", lenient)


def old_epochs_are_not_fenced(patch: pytest.MonkeyPatch) -> None:
    append = Machine._append

    def lenient(self: Machine, parcel: Parcel, digest: bytes) -> Taken:
        producer = self.state.producers.get(parcel.envelope.producer_id)
        epoch = producer.epoch if producer else 0
        return append(self, parcel._replace(envelope=msgspec.structs.replace(parcel.envelope, epoch=epoch)), digest)

    patch.setattr(Machine, "_append", lenient)


def links_share_a_nonce(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "nonce", lambda _, life: b"%016d" % life)


def answers_come_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    hand_over = Sink.hand_over

    def hasty(self: Sink) -> None:
        before = len(self.handed)
        hand_over(self)
        ahead = Machine(self.machine.snapshot())
        for index, (command, decided) in enumerate(self.handed):
            result = ahead.apply(command)
            if index >= before:
                decided(result)
                self.handed[index] = command, ignore

    def ignore(_: Result) -> None:
        return

    patch.setattr(Sink, "hand_over", hasty)


def ids_are_not_known(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PartitionState, "find", lambda *_: None)


def expectations_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine, "_failed_expectation", lambda *_: None)


def what_had_arrived_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "_settle", lambda *_: None)


def a_lost_link_counts_as_never_sent(patch: pytest.MonkeyPatch) -> None:
    link_down = Outbox.link_down

    def forgetful(self: Outbox, now_ms: int) -> None:
        link_down(self, now_ms)
        for partition in self._partitions.values():
            partition.take_back()

    patch.setattr(Outbox, "link_down", forgetful)


def sequences_are_not_taken_back(patch: pytest.MonkeyPatch) -> None:
    take_back = PartitionOutbox.take_back

    def wasteful(self: PartitionOutbox) -> int:
        next_sequence = self.next_sequence
        count = take_back(self)
        self.next_sequence = next_sequence
        return count

    patch.setattr(PartitionOutbox, "take_back", wasteful)


def refused_batches_are_not_sent_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "_rewind_if_settled", lambda *_: None)


def events_come_back_in_reverse(patch: pytest.MonkeyPatch) -> None:
    take_back = PartitionOutbox.take_back

    def careless(self: PartitionOutbox) -> int:
        for batch in self.in_flight:
            batch.entries.reverse()
        return take_back(self)

    patch.setattr(PartitionOutbox, "take_back", careless)


def who_waits_in_a_run_is_forgotten_with_its_batch(patch: pytest.MonkeyPatch) -> None:
    split = Run.split

    def forgetful(self: Run, batch: bytes | None = None) -> list[Entry]:
        self.waiting = Replies()
        return split(self, batch)

    patch.setattr(Run, "split", forgetful)


def answers_of_a_run_are_counted_from_its_batch(patch: pytest.MonkeyPatch) -> None:
    acknowledge_batch = Outbox._acknowledge_batch

    def careless(self: Outbox, partition: PartitionOutbox, batch: Batch, base_offset: int) -> None:
        batch.entries.sort(key=lambda held: isinstance(held, Entry))
        acknowledge_batch(self, partition, batch, base_offset)

    patch.setattr(Outbox, "_acknowledge_batch", careless)


def lanes_take_who_waits_while_the_link_is_down(patch: pytest.MonkeyPatch) -> None:
    append = PartitionOutbox.append

    def hopeful(self: PartitionOutbox, *event: Any, opens: bool, takes_replies: bool) -> None:
        append(self, *event, opens=opens, takes_replies=True)

    patch.setattr(PartitionOutbox, "append", hopeful)
    patch.setattr(PartitionOutbox, "split_runs", lambda *_, **__: None)


def moved_events_are_overtaken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "_destination", lambda self, plan, *_: (self._partition(plan[0], plan[2]), plan[1]))


def answers_leave_before_they_are_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        SimulatedGateway, "_spooled", lambda self, spool: Outbox("zone", self.world.audit.answered, spool=spool)
    )


def batches_are_not_noted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spool, "sent", lambda *_: None)


def what_is_gone_is_not_noted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spool, "_note_gone", lambda self: self._gone.clear())


def files_go_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spool, "held", lambda self, file: 0)


def old_batches_void_nothing(patch: pytest.MonkeyPatch) -> None:
    def lenient(self: _Place, record: Record) -> None:
        self.batches.append(_Sent(record.sequence, record.number, record.last_number, record.mark))

    patch.setattr(_Place, "sent", lenient)


@pytest.mark.parametrize(
    "mistake",
    [
        answers_leave_before_they_are_kept,
        batches_are_not_noted,
        what_is_gone_is_not_noted,
        files_go_too_early,
        old_batches_void_nothing,
    ],
)
def test_the_simulation_sees_mistakes_of_a_spool(mistake, monkeypatch):
    mistake(monkeypatch)
    with pytest.raises(Violation):
        run_all(MUTANT_SEEDS, spool=True)


@pytest.mark.parametrize(
    "mistake",
    [
        any_sequence_is_taken,
        old_epochs_are_not_fenced,
        links_share_a_nonce,
        answers_come_before_the_commit,
        ids_are_not_known,
        expectations_are_not_looked_at,
        what_had_arrived_is_sent_again,
        a_lost_link_counts_as_never_sent,
        sequences_are_not_taken_back,
        refused_batches_are_not_sent_again,
        events_come_back_in_reverse,
        who_waits_in_a_run_is_forgotten_with_its_batch,
        answers_of_a_run_are_counted_from_its_batch,
        lanes_take_who_waits_while_the_link_is_down,
        moved_events_are_overtaken,
    ],
)
def test_the_simulation_has_teeth(mistake, monkeypatch):
    mistake(monkeypatch)
    with pytest.raises(Violation):
        run_all(MUTANT_SEEDS)


def run_all(seeds: int, *, spool: bool = False) -> None:
    for seed in range(seeds):
        World(seed, spool=spool).run()
