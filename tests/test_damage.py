"""Batches that an operator has given up, in the replicated state; and what nobody but a sink may say of damage."""

import msgspec
import pytest
from support.sinks import SinkZone
from support.streams import definition, state
from test_sink_group import running as running_zone

from protocol import envelope, link
from protocol.coverage import digest_of
from protocol.gaps import lost_batch
from protocol.limits import DAMAGED_BATCHES_MAX
from protocol.records import Event, encode_batch, place_batch
from sinkd.core import commands
from sinkd.core.commands import Configure, GiveUp, MakeMirror, MirroredHead, Trim
from sinkd.core.damage import GivenUp
from sinkd.core.machine import Machine
from sinkd.core.mirroring import SubscriptionRefused, check_last
from sinkd.core.mirrors import mirror_of
from sinkd.core.state import COVERAGE_VERSION, Damaged

T = 1_700_000_000_000
D = bytes(range(32))
WHO = "192.0.2.7"


def batch(offset: int, *payloads: bytes) -> bytes:
    return place_batch(encode_batch([Event(b"o", b"o", 1, b"", one) for one in payloads]), offset, 7)


@pytest.fixture
def machine() -> Machine:
    """With `orders@eu`, which holds offsets 0 to 9."""
    machine = Machine()
    machine.apply(commands.encode(commands.CONFIGURE, T, Configure(1, (definition(),))))
    told = mirror_of("eu", state("orders", covered=True))
    machine.apply(commands.encode(commands.MIRROR, T, MakeMirror(told, 0)))
    head = MirroredHead("orders@eu", told.incarnation, 0, 0)
    machine.apply(commands.encode_mirrored(T, head, batch(0, *[b"x"] * 5) + batch(5, *[b"y"] * 5)))
    return machine


def give_up(machine: Machine, *batches: tuple[int, int, bytes], **changes: object) -> GivenUp:
    fields = {"log": "orders@eu", "incarnation": machine.state.mirrors["orders@eu"].state.incarnation, "partition": 0}
    request = GiveUp(**(fields | {"batches": batches, "who": WHO} | changes))
    return machine.apply(commands.encode(commands.GIVE_UP, T + 5, request))


def damaged(machine: Machine) -> list[Damaged]:
    return machine.state.mirrors["orders@eu"].partitions[0].damaged


def test_what_is_given_up_is_known_with_who_and_when_and_changes_no_tree(machine):
    tree = msgspec.to_builtins(machine.state.mirrors["orders@eu"].partitions[0].tree)
    result = give_up(machine, (0, 5, D))
    assert result.batches == (Damaged(0, 5, D, T + 5, WHO),)
    assert (result.stream.name, result.partition, result.who, result.refusal) == ("orders@eu", 0, WHO, "")
    assert damaged(machine) == list(result.batches)
    assert msgspec.to_builtins(machine.state.mirrors["orders@eu"].partitions[0].tree) == tree
    assert machine.state.version == COVERAGE_VERSION
    assert Machine(machine.snapshot()).state == machine.state


def test_once_more_it_stays_as_it_was(machine):
    give_up(machine, (0, 5, D))
    assert give_up(machine, (0, 5, D[::-1]), (5, 10, D), who="another").batches == (
        Damaged(5, 10, D, T + 5, "another"),
    )
    assert [one.who for one in damaged(machine)] == [WHO, "another"]


@pytest.mark.parametrize(
    ("batches", "changes", "refusal"),
    [
        ([(0, 11, D)], {}, "offsets 0 to 11 are no batch of orders@eu"),
        ([(5, 5, D)], {}, "offsets 5 to 5 are no batch"),
        ([(0, 5, D), (-1, 2, D)], {}, "offsets -1 to 2 are no batch"),
        ([(0, 5, b"short")], {}, "offsets 0 to 5 are no batch"),
        ([(0, 5, D)], {"log": "orrders"}, "there is no log orrders of that incarnation"),
        ([(0, 5, D)], {"incarnation": b"?" * 16}, "there is no log orders@eu of that incarnation"),
        ([(0, 5, D)], {"partition": 7}, "partition 7 of orders@eu is not in group 0"),
    ],
)
def test_what_cannot_be_is_refused_whole(machine, batches, changes, refusal):
    result = give_up(machine, *batches, **changes)
    assert refusal in result.refusal
    assert (result.batches, damaged(machine)) == ((), [])


def test_what_is_found_again_is_forgotten(machine):
    give_up(machine, (0, 5, D), (5, 10, D))
    result = give_up(machine, found=(0, 7))
    assert (result.batches, [one.base_offset for one in damaged(machine)]) == ((), [5])


def test_there_is_a_bound(machine):
    partition = machine.state.mirrors["orders@eu"].partitions[0]
    partition.end_offset = 2 * DAMAGED_BATCHES_MAX
    many = [(offset, offset + 1, D) for offset in range(DAMAGED_BATCHES_MAX)]
    assert not give_up(machine, *many).refusal
    assert f"at most {DAMAGED_BATCHES_MAX} can be" in give_up(machine, (DAMAGED_BATCHES_MAX, 1_030, D)).refusal


def test_what_the_log_lets_go_of_is_forgotten(machine):
    give_up(machine, (0, 5, D), (5, 10, D))
    mirror = machine.state.mirrors["orders@eu"]
    machine.apply(commands.encode(commands.TRIM, T, Trim("orders@eu", mirror.state.incarnation, 0, 5)))
    assert [one.base_offset for one in damaged(machine)] == [5]
    assert "offsets 0 to 5 are no batch" in give_up(machine, (0, 5, D)).refusal


def test_a_gap_record_in_the_place_of_a_batch_is_no_divergence():
    """The mirror still has the batch; or its origin has another one under that digest."""
    was, gap = batch(5, b"a", b"b"), lost_batch(5, 7, digest_of(batch(5, b"a", b"b")), T, WHO)
    check_last(5, digest_of(was), gap)
    with pytest.raises(SubscriptionRefused, match=r"is \w+ here"):
        check_last(5, digest_of(batch(5, b"a", b"c")), gap)


def test_the_tree_of_a_mirror_that_pulls_a_gap_record_is_that_of_its_origin():
    trees = []
    first, second = batch(0, *[b"x"] * 5), batch(5, *[b"y"] * 5)
    for batches in ((first, second), (first, lost_batch(5, 10, digest_of(second), T, WHO))):
        machine = Machine()
        told = mirror_of("eu", state("orders", covered=True))
        machine.apply(commands.encode(commands.MIRROR, T, MakeMirror(told, 0)))
        head = MirroredHead("orders@eu", told.incarnation, 0, 0)
        assert not machine.apply(commands.encode_mirrored(T, head, b"".join(batches))).refusal
        tree = machine.state.mirrors["orders@eu"].partitions[0].tree
        trees.append((tree.size, tree.frontier, tree.trimmed))
    assert trees[0] == trees[1]


async def test_a_gateway_says_nothing_of_damage(tmp_path):
    """Else it could have a digest of its own choice be a leaf."""
    async with running_zone(SinkZone(tmp_path, count=1)) as zone:
        gateway = await (await zone.gateway()).open()
        gateway.sequence += 1
        head = envelope.Envelope(
            producer_id=gateway.opened.producer_id, epoch=gateway.opened.epoch, stream="orders", partition=0,
            incarnation=gateway.stream.incarnation, first_sequence=1, sequence_count=1,
            revision=gateway.stream.revision,
        )  # fmt: skip
        gateway.send(link.Append(), envelope.pack(head, lost_batch(0, 1, D, T, WHO)))
        failed = (await gateway.get(link.Failed)).message
        assert "a gap record of damage, which no gateway has seen" in failed.message

        await gateway.close()
