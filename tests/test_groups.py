"""Which Raft group has which partition, and how groups other than 0 learn of streams: the parts that do no I/O."""

import msgspec
import pytest
from support.streams import definition, parcel, state

from protocol.link import Appended, Refused
from protocol.streams import StreamState
from sinkd.core import commands
from sinkd.core.commands import Adopt, Configure, OpenProducer
from sinkd.core.machine import Configured, Machine
from sinkd.core.spreading import better_leader

WIDE, THIN = definition("wide", partitions=4), definition("thin")


def configure(machine: Machine, revision: int, groups: int, *streams: object) -> Configured:
    return machine.apply(commands.encode(commands.CONFIGURE, 1, Configure(revision, streams, groups)))


def adopt(machine: Machine, other: Machine) -> Configured:
    told = Adopt(other.state.revision, other.stream_states(), other.state.groups)
    return machine.apply(commands.encode(commands.ADOPT, 1, told))


@pytest.fixture
def pair() -> tuple[Machine, Machine]:
    """The machines of groups 0 and 1, with a stream that is spread over both and a producer in each."""
    machines = Machine(), Machine(number=1)
    configure(machines[0], 1, 2, WIDE, THIN)
    adopt(machines[1], machines[0])
    for machine in machines:
        machine.apply(commands.encode(commands.OPEN, 1, OpenProducer("gw", 0, b"n")))
    return machines


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_the_partitions_of_a_stream_go_round_the_groups(groups):
    stream = state("wide", partitions=2 * groups, groups=groups)
    owners = [stream.group_of(number) for number in range(stream.partitions)]
    assert sorted(owners) == sorted([*range(groups)] * 2)
    assert {number for group in range(groups) for number in stream.partitions_of(group)} == set(range(2 * groups))


def test_streams_of_one_partition_are_spread():
    owners = [state(f"stream{number}", groups=4).group_of(0) for number in range(400)]
    assert min(owners.count(group) for group in range(4)) > 50


def test_where_a_partition_is_never_changes():
    """What is on disks relies on it."""
    assert [state("orders", partitions=4, groups=3).group_of(number) for number in range(4)] == [2, 0, 1, 2]
    assert state("orders", partitions=4).group_of(3) == 0


def test_a_stream_from_before_there_were_groups_is_in_group_0():
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(state("orders", partitions=4, groups=3)))
    fields = fields[: StreamState.__struct_fields__.index("groups")]
    older = msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=StreamState)
    assert older.partitions_of(0) == [0, 1, 2, 3]


def test_every_group_knows_all_streams_and_takes_what_is_its_own(pair):
    assert pair[0].stream_states() == pair[1].stream_states()
    assert pair[1].state.revision == 1
    for number in range(4):
        append = parcel(1, b"x", stream="wide", incarnation=b"wide", partition=number)
        answers = [machine.apply(commands.encode_append(2, [append]))[0].answer for machine in pair]
        owner = pair[0].state.streams["wide"].state.group_of(number)
        assert isinstance(answers[owner], Appended)
        assert isinstance(answers[1 - owner], Refused)
        assert answers[1 - owner].reason == "UNKNOWN_STREAM"
    mine = [{(stream.name, number) for stream, number, _ in machine.partitions()} for machine in pair]
    assert len(mine[0]) + len(mine[1]) == 5
    assert not mine[0] & mine[1]


def test_what_is_adopted_is_adopted_once_and_follows_the_configuration(pair):
    append = parcel(
        1, b"x", stream="wide", incarnation=b"wide", partition=pair[0].state.streams["wide"].state.partitions_of(1)[0]
    )
    pair[1].apply(commands.encode_append(2, [append]))
    before = pair[1].snapshot()
    adopt(pair[1], pair[0])
    assert pair[1].snapshot() == before
    configure(pair[0], 2, 2, definition("wide", partitions=4, ack="logged"), definition("more"))
    assert adopt(pair[1], pair[0]) == Configured(2)
    assert pair[1].stream_states() == pair[0].stream_states()
    assert pair[1].state.streams["thin"].state.retired
    assert sum(partition.end_offset for partition in pair[1].state.streams["wide"].partitions) == 1
    assert Machine(pair[1].snapshot(), 1).state == pair[1].state


def test_more_groups_are_for_new_streams_only():
    machine = Machine()
    configure(machine, 1, 1, WIDE)
    assert configure(machine, 2, 2, WIDE, THIN, definition("new", partitions=2)) == Configured(2)
    groups = {stream.name: stream.groups for stream in machine.stream_states()}
    assert groups == {"wide": 1, "thin": 2, "new": 2}
    assert machine.stream_states()[0].revision == 1  # nothing has changed for it
    assert machine.differences(Configure(2, (WIDE, THIN, definition("new", partitions=2)), 2)) == []
    assert machine.differences(Configure(2, (WIDE, THIN, definition("new", partitions=2)), 1)) == [
        "groups: revision 2, which is in force, has 2"
    ]


def test_groups_in_which_something_is_cannot_go(pair):
    machine = pair[0]
    refused = configure(machine, 2, 1, WIDE, THIN)
    assert refused == Configured(
        1, ("groups: partitions of wide are in group 1, the proposal says groups = 1; write at least 2",)
    )
    assert machine.state.groups == 2
    retired = configure(machine, 2, 1, THIN)  # its history is still there
    assert retired.problems == refused.problems
    assert configure(machine, 2, 5, WIDE, THIN) == Configured(2)
    assert configure(machine, 3, 2, WIDE, THIN) == Configured(3)  # nothing was made meanwhile
    assert machine.state.groups == 2


def test_who_leads_too_many_groups_hands_one_over_and_all_of_them_to_different_sinks():
    everywhere = {0: "s1", 1: "s1", 2: "s1", 3: "s1"}
    assert [better_leader(number, everywhere, ["s2", "s3"]) for number in range(4)] == ["", "s3", "s2", "s3"]
    assert better_leader(1, {0: "s1", 1: "s1"}, ["s3", "s2"]) == "s3"
    assert better_leader(1, {0: "s1", 1: "s1", 2: "s3"}, ["s2", "s3"]) == "s2"
    assert better_leader(1, {0: "s2", 1: "s1", 2: "s1"}, ["s2"]) == ""  # that would only turn it round
    assert better_leader(1, {0: "s1", 1: "s1"}, []) == ""
