"""The replicated state machine: each promise to producers, each rule of configuration, and that it is deterministic."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.streams import definition, event, parcel

from protocol import envelope
from protocol.errors import FrameError
from protocol.gaps import ACCEPTED_LOSS, Gap, encode_gap, read_gap
from protocol.limits import PRODUCER_RESULTS_KEPT
from protocol.link import Answer, Appended, Opened, Reached, Refused
from protocol.records import encode_batch, read_header
from protocol.streams import StreamDefinition
from sinkd.core import commands
from sinkd.core.commands import Configure, OpenProducer, Trim
from sinkd.core.machine import Configured, Machine, Taken, Trimmed

T = 1_700_000_000_000
ORDERS, WIDE = definition("orders"), definition("wide", partitions=3)


def configure(machine: Machine, revision: int, *streams: StreamDefinition) -> Configured:
    return machine.apply(commands.encode(commands.CONFIGURE, T, Configure(revision, streams)))


def open_producer(machine: Machine, nonce: bytes = b"n", node: str = "gw", worker: int = 0) -> Opened:
    return machine.apply(commands.encode(commands.OPEN, T, OpenProducer(node, worker, nonce)))


def append(machine: Machine, *parcels: bytes, at_ms: int = T) -> list[Taken]:
    return machine.apply(commands.encode_append(at_ms, parcels))


def answer(machine: Machine, one: bytes, at_ms: int = T) -> Appended | Refused:
    (taken,) = append(machine, one, at_ms=at_ms)
    assert isinstance(taken.answer, Appended) or taken.placement is None
    return taken.answer


@pytest.fixture
def machine() -> Machine:
    machine = Machine()
    configure(machine, 1, ORDERS, WIDE)
    open_producer(machine)
    return machine


def ends(machine: Machine, stream: str = "orders") -> list[int]:
    return [partition.end_offset for partition in machine.state.streams[stream].partitions]


def test_an_accepted_loss_is_a_gap_at_the_end_of_each_log_and_changes_the_members(machine):
    append(machine, parcel(1, b"a", b"b"))
    gap = encode_gap(Gap(ACCEPTED_LOSS, 0, 0, T, "192.0.2.7"))
    command = commands.encode_loss(T, commands.AcceptLoss((("s1", "s1:6334"),), "192.0.2.7"), gap)
    assert commands.members_in(command)
    assert commands.read_members(command) == {"s1": "s1:6334"}
    accepted = machine.apply(command)
    assert (accepted.members, accepted.who, machine.state.members) == ({"s1": "s1:6334"}, "192.0.2.7", accepted.members)
    placed = [(each.stream.name, each.partition, each.base_offset) for each in accepted.placements]
    assert placed == [("orders", 0, 2), ("wide", 0, 0), ("wide", 1, 0), ("wide", 2, 0)]
    assert (ends(machine), ends(machine, "wide")) == ([3], [1, 1, 1])
    for each in accepted.placements:
        assert read_gap(command[each.position : each.position + each.header.size_bytes])[1].events == 0
    # Its gateway goes on behind what was lost: the answer says where the log is now.
    assert open_producer(machine, b"m").last[0].last_sequence == 2


# -- sequences --------------------------------------------------------------------------------------------------------


def test_batches_get_offsets_one_behind_the_other(machine):
    first, second = append(machine, parcel(1, b"a", b"b"), parcel(3, b"c"))
    assert first.answer == Appended(1, 1, "orders", b"orders", 0, 1, 0)
    assert second.answer == Appended(1, 1, "orders", b"orders", 0, 3, 2)
    assert ends(machine) == [3]


def test_a_placement_says_where_the_batch_stands_in_its_command(machine):
    command = commands.encode_append(T, [parcel(1, b"a"), parcel(2, b"b", b"c")])
    for taken, payloads in zip(machine.apply(command), ([b"a"], [b"b", b"c"]), strict=True):
        place = taken.placement
        batch = command[place.position : place.position + place.header.size_bytes]
        assert batch == encode_batch([event(payload) for payload in payloads])
        assert (place.stream.name, place.partition, place.header) == ("orders", 0, read_header(batch))


def test_partitions_count_for_themselves(machine):
    wide = {"stream": "wide", "incarnation": b"wide"}
    append(machine, parcel(1, b"a", b"b", **wide, partition=0), parcel(1, b"c", **wide, partition=2), parcel(1, b"d"))
    assert (ends(machine, "wide"), ends(machine)) == ([2, 0, 1], [1])


def test_a_batch_ahead_of_its_turn_changes_nothing(machine):
    refused = answer(machine, parcel(2, b"b"))
    assert (refused.reason, refused.found) == ("OUT_OF_ORDER", "1")
    append(machine, parcel(1, b"a"))
    refused = answer(machine, parcel(5, b"e"))
    assert (refused.reason, refused.found, ends(machine)) == ("OUT_OF_ORDER", "2", [1])


def test_what_is_known_gets_its_first_answer_again(machine):
    first = answer(machine, parcel(1, b"a", b"b"))
    append(machine, parcel(3, b"c"))
    (again,) = append(machine, parcel(1, b"a", b"b"))
    assert (again.answer, again.placement, ends(machine)) == (first, None, [3])


def test_another_batch_under_a_known_sequence_gets_no_answer_that_is_not_its_own(machine):
    append(machine, parcel(1, b"a", b"b"))
    for other in (parcel(1, b"a"), parcel(1, b"a", b"x"), parcel(2, b"b")):
        assert answer(machine, other).reason == "OUT_OF_ORDER"
    assert ends(machine) == [2]


def test_answers_are_kept_for_as_many_batches_as_can_be_in_flight(machine):
    for sequence in range(1, PRODUCER_RESULTS_KEPT + 3):
        append(machine, parcel(sequence, b"%d" % sequence))
    assert answer(machine, parcel(2, b"2")).reason == "OUT_OF_ORDER"
    (again,) = append(machine, parcel(3, b"3"))
    assert again.answer.base_offset == 2


def test_a_batch_may_hold_fewer_records_than_its_span(machine):
    append(machine, parcel(1, b"a", sequence_count=5))
    assert (ends(machine), answer(machine, parcel(6, b"b")).base_offset) == ([1], 1)


@pytest.mark.parametrize(
    "fields",
    [{"stream": "nobody"}, {"incarnation": b"older"}, {"partition": 1}, {"partition": -1}],
)
def test_a_place_that_does_not_exist_is_refused(machine, fields):
    assert answer(machine, parcel(1, b"a", **fields)).reason == "UNKNOWN_STREAM"
    assert open_producer(machine).last == ()


# -- producers --------------------------------------------------------------------------------------------------------


def test_the_same_nonce_gets_the_same_epoch(machine):
    assert open_producer(machine) == Opened(1, 1, b"n", ())
    assert answer(machine, parcel(1, b"a")).base_offset == 0


def test_a_new_nonce_fences_the_old_epoch_and_tells_how_far_it_came(machine):
    append(machine, parcel(1, b"a", b"b"), parcel(3, b"c", expect_last_sequence=9), parcel(4, b"d"))
    opened = open_producer(machine, b"other")
    crcs = [read_header(encode_batch([event(one) for one in batch])).crc for batch in ([b"a", b"b"], [b"c"], [b"d"])]
    answers = Answer(1, crcs[0], 0), Answer(3, crcs[1], -1, "WRONG_LAST_SEQUENCE", "2"), Answer(4, crcs[2], 2)
    assert opened == Opened(1, 2, b"other", (Reached("orders", b"orders", 0, 4, answers),))
    for late in (parcel(4, b"d"), parcel(5, b"e")):
        assert answer(machine, late).reason == "FENCED"
    assert answer(machine, parcel(5, b"e", epoch=2)).base_offset == 3


def test_what_is_known_is_answered_under_a_newer_epoch_too(machine):
    first = answer(machine, parcel(1, b"a"))
    open_producer(machine, b"other")
    (again,) = append(machine, parcel(1, b"a", epoch=2))
    assert (again.answer, again.placement) == (msgspec.structs.replace(first, epoch=2), None)


def test_gateways_and_workers_are_producers_of_their_own(machine):
    ids = [open_producer(machine, b"n", *who).producer_id for who in (("gw", 1), ("other", 0), ("gw", 0), ("gw", 1))]
    assert ids == [2, 3, 1, 2]
    assert answer(machine, parcel(1, b"a", producer_id=2)).base_offset == 0
    assert answer(machine, parcel(1, b"a")).base_offset == 1
    assert answer(machine, parcel(1, b"a", producer_id=9)).reason == "FENCED"


# -- ids --------------------------------------------------------------------------------------------------------------


def with_ids(first_sequence: int, *ids: bytes | None, **fields: object) -> bytes:
    known = tuple((index, one) for index, one in enumerate(ids) if one is not None)
    payloads = [b"%d.%d" % (first_sequence, index) for index in range(len(ids))]
    return parcel(first_sequence, *payloads, ids=known, **fields)


def test_a_batch_with_known_ids_is_refused_whole_and_spends_nothing(machine):
    append(machine, with_ids(1, b"a", None, b"b"))
    refused = answer(machine, with_ids(4, b"c", b"b", b"a"))
    assert (refused.reason, refused.known, ends(machine)) == ("DUPLICATE_IDS", ((1, 2), (2, 0)), [3])
    assert answer(machine, with_ids(4, b"c")).base_offset == 3


def test_the_window_ends(machine):
    append(machine, with_ids(1, b"a"))
    assert answer(machine, with_ids(2, b"a"), T + 119_999).reason == "DUPLICATE_IDS"
    assert answer(machine, with_ids(2, b"a"), T + 120_000).base_offset == 1
    assert answer(machine, with_ids(3, b"a"), T + 120_001).known == ((0, 1),)


def test_time_does_not_go_back_with_a_leaders_clock(machine):
    append(machine, with_ids(1, b"a"), at_ms=T + 100_000)
    append(machine, with_ids(2, b"b"), at_ms=T - 500_000)
    assert answer(machine, with_ids(3, b"b"), T + 219_999).reason == "DUPLICATE_IDS"
    assert answer(machine, with_ids(3, b"b"), T + 220_000).base_offset == 2


def test_ids_are_bounded_in_number():
    machine = Machine()
    configure(machine, 1, definition("orders", dedup_ids_max=2))
    open_producer(machine)
    append(machine, with_ids(1, b"a", b"b", b"c"))
    assert list(machine.state.streams["orders"].partitions[0].ids) == [b"b", b"c"]
    assert answer(machine, with_ids(4, b"a")).base_offset == 3
    assert answer(machine, with_ids(5, b"c")).known == ((0, 2),)


def test_old_ids_are_let_go(machine):
    for number in range(50):
        append(machine, with_ids(number + 1, b"%d" % number), at_ms=T + number * 60_000)
    assert list(machine.state.streams["orders"].partitions[0].ids) == [b"48", b"49"]


def test_ids_are_known_per_partition(machine):
    wide = {"stream": "wide", "incarnation": b"wide"}
    append(machine, with_ids(1, b"a", **wide))
    assert answer(machine, with_ids(1, b"a", **wide, partition=1)).base_offset == 0
    assert answer(machine, with_ids(1, b"a")).base_offset == 0


# -- expectations -----------------------------------------------------------------------------------------------------


def test_an_expected_last_sequence_is_the_end_of_the_log(machine):
    assert answer(machine, parcel(1, b"a", expect_last_sequence=0)).base_offset == 0
    assert answer(machine, parcel(2, b"b", expect_last_sequence=1)).base_offset == 1
    refused = answer(machine, parcel(3, b"c", expect_last_sequence=1))
    assert (refused.reason, refused.found) == ("WRONG_LAST_SEQUENCE", "2")


def test_an_expected_last_id_is_that_of_the_last_event(machine):
    append(machine, with_ids(1, b"a", b"b"))
    refused = answer(machine, parcel(3, b"c", expect_last_id=b"a"))
    assert (refused.reason, refused.found) == ("WRONG_LAST_ID", "b")
    assert answer(machine, with_ids(4, b"c", expect_last_id=b"b")).base_offset == 2
    append(machine, with_ids(5, b"d", None))
    assert answer(machine, parcel(7, b"e", expect_last_id=b"d")).found == ""


def test_an_expectation_that_fails_is_final_and_spent(machine):
    refused = answer(machine, parcel(1, b"a", expect_last_sequence=1))
    append(machine, parcel(2, b"b"))
    # The log now is what the first attempt expected; its repetition is refused all the same.
    assert answer(machine, parcel(1, b"a", expect_last_sequence=1)) == refused
    assert ends(machine) == [1]


def test_ids_go_before_expectations(machine):
    append(machine, with_ids(1, b"a"))
    assert answer(machine, with_ids(2, b"a", expect_last_sequence=7)).reason == "DUPLICATE_IDS"


def test_what_was_refused_for_its_expectation_leaves_no_id(machine):
    assert answer(machine, with_ids(1, b"a", expect_last_sequence=7)).reason == "WRONG_LAST_SEQUENCE"
    assert answer(machine, with_ids(2, b"a", expect_last_sequence=0)).base_offset == 0


# -- configuration ----------------------------------------------------------------------------------------------------


def streams(machine: Machine) -> dict[str, tuple[int, bool]]:
    return {state.name: (state.revision, state.retired) for state in machine.stream_states()}


def test_a_higher_revision_is_taken_whole(machine):
    changed = definition("orders", reply="header")
    assert configure(machine, 5, changed, definition("new")) == Configured(5)
    assert streams(machine) == {"orders": (5, False), "wide": (5, True), "new": (5, False)}
    assert machine.state.streams["orders"].state.reply == "header"


def test_a_stream_that_did_not_change_keeps_its_revision_and_incarnation(machine):
    configure(machine, 2, definition("orders", incarnation=b"proposed anew"), WIDE)
    assert streams(machine) == {"orders": (1, False), "wide": (1, False)}
    assert machine.state.streams["orders"].state.incarnation == b"orders"


@pytest.mark.parametrize(("field", "value"), [("partitions", 2), ("key", "token:2"), ("account", "ACME")])
def test_what_never_changes_in_place_refuses_the_whole_proposal(machine, field, value):
    before = machine.snapshot()
    found = configure(machine, 2, definition("orders", **{field: value}), definition("new"))
    assert found.revision == 1
    (problem,) = found.problems
    assert f"streams.orders.{field}" in problem
    assert "make a stream of another name" in problem
    assert machine.snapshot() == before


def test_the_same_or_an_older_revision_changes_nothing_and_says_what_differs(machine):
    before = machine.snapshot()
    assert configure(machine, 1, ORDERS, WIDE) == Configured(1)
    found = configure(machine, 1, definition("orders", reply="header"), definition("new"))
    assert found == Configured(1, (
        "streams.new: revision 1, which is in force, does not have it",
        "streams.orders: revision 1, which is in force, has it otherwise",
        "streams.wide: revision 1, which is in force, has it too",
    ))  # fmt: skip
    configure(machine, 0)
    assert machine.snapshot() == before


def test_an_older_revision_of_a_changed_stream_is_refused(machine):
    configure(machine, 2, definition("orders", reply="header"), WIDE)
    refused = answer(machine, parcel(1, b"a", revision=1))
    assert (refused.reason, refused.found) == ("STALE_CONFIG", "2")
    assert answer(machine, parcel(1, b"a", revision=2)).base_offset == 0
    assert answer(machine, parcel(1, b"w", stream="wide", incarnation=b"wide", revision=1)).base_offset == 0


def test_a_retired_stream_takes_nothing_and_comes_back_as_it_was(machine):
    append(machine, with_ids(1, b"a"))
    configure(machine, 2, WIDE)
    assert answer(machine, parcel(2, b"b", revision=2)).reason == "STALE_CONFIG"
    # What was taken before is still known.
    (again,) = append(machine, with_ids(1, b"a"))
    assert again.answer.base_offset == 0
    configure(machine, 3, definition("orders", incarnation=b"proposed anew"), WIDE)
    assert streams(machine)["orders"] == (3, False)
    assert answer(machine, with_ids(2, b"a", revision=3)).known == ((0, 0),)
    assert answer(machine, parcel(2, b"b", revision=3)).base_offset == 1


def test_a_stream_that_stays_retired_keeps_the_revision_that_retired_it(machine):
    configure(machine, 2, WIDE)
    configure(machine, 3, WIDE)
    assert streams(machine)["orders"] == (2, True)


# -- trims ------------------------------------------------------------------------------------------------------------


def trim(machine: Machine, to_offset: int, incarnation: bytes = b"orders") -> Trimmed | None:
    return machine.apply(commands.encode(commands.TRIM, T, Trim("orders", incarnation, 0, to_offset)))


def test_a_trim_moves_the_start_forward_within_the_log(machine):
    append(machine, parcel(1, b"a", b"b", b"c"))
    for to_offset, start_offset in ((2, 2), (1, 2), (9, 3)):
        assert trim(machine, to_offset).start_offset == start_offset
    assert answer(machine, parcel(4, b"d", expect_last_sequence=3)).base_offset == 3


def test_a_trim_of_another_incarnation_is_nothing(machine):
    assert trim(machine, 1, b"older") is None
    assert machine.apply(commands.encode(commands.TRIM, T, Trim("nobody", b"", 0, 1))) is None


# -- what cannot be understood ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"\x01\x03", "2 bytes"),
        (b"\x02\x03" + bytes(8), "version 2, ours is 1"),
        (b"\x01\x7f" + bytes(8), "unknown kind 127"),
        (b"\x01\x01" + bytes(8) + b"\xc1", "Configure"),
        (b"\x01\x02" + bytes(8) + b"\x93\xa1\xff\x00\xc4\x00", "OpenProducer"),
        (b"\x01\x04" + bytes(8) + b"\x90", "Trim"),
        (b"\x01\x03" + bytes(8) + b"\x01", "append envelope"),
    ],
)
def test_a_command_that_cannot_be_understood_is_named(machine, data, says):
    with pytest.raises(FrameError, match=says):
        machine.apply(data)


def test_a_state_that_cannot_be_understood_is_named(machine):
    with pytest.raises(FrameError, match="state"):
        Machine(b"\xc1")
    machine.state.version = 9
    with pytest.raises(FrameError, match="state of version 9, ours are 1 to 4"):
        Machine(machine.snapshot())


# -- determinism ------------------------------------------------------------------------------------------------------

ids = st.sampled_from((None, b"a", b"b", b"c"))
appends = st.builds(
    lambda sequence, chosen, fields: with_ids(sequence, *chosen, **fields),
    st.integers(1, 12),
    st.lists(ids, min_size=1, max_size=3),
    st.fixed_dictionaries(
        {"epoch": st.integers(1, 3), "revision": st.integers(1, 4)},
        optional={"expect_last_sequence": st.integers(0, 3), "expect_last_id": st.sampled_from((b"a", b"b"))},
    ),
)
some_commands = st.one_of(
    st.builds(
        lambda at, parcels: commands.encode_append(at, parcels), st.integers(0, 300_000), st.lists(appends, max_size=3)
    ),
    st.builds(
        lambda nonce: commands.encode(commands.OPEN, 0, OpenProducer("gw", 0, nonce)),
        st.sampled_from((b"n", b"m", b"o")),
    ),
    st.builds(
        lambda revision, streams: commands.encode(commands.CONFIGURE, 0, Configure(revision, tuple(streams))),
        st.integers(0, 4),
        st.sampled_from(
            ([ORDERS, WIDE], [WIDE], [ORDERS], [definition("orders", reply="header")], [definition("wide")])
        ),
    ),
    st.builds(lambda to: commands.encode(commands.TRIM, 0, Trim("orders", b"orders", 0, to)), st.integers(0, 9)),
)


@given(st.lists(some_commands, max_size=25), st.integers(0, 25))
def test_the_same_commands_give_the_same_bytes_also_from_a_snapshot_on(history, cut):
    setup = [
        commands.encode(commands.CONFIGURE, 0, Configure(1, (ORDERS, WIDE))),
        commands.encode(commands.OPEN, 0, OpenProducer("gw", 0, b"n")),
    ]
    one, other = Machine(), Machine()
    for command in setup + history[:cut]:
        assert one.apply(command) == other.apply(command)
    restored = Machine(one.snapshot())
    for command in history[cut:]:
        assert one.apply(command) == other.apply(command) == restored.apply(command)
    assert one.snapshot() == other.snapshot() == restored.snapshot()
    assert Machine(one.snapshot()).state == one.state


@given(st.lists(appends, max_size=20))
def test_offsets_are_dense_and_ids_are_unique(parcels):
    machine, expected, seen = Machine(), 0, set()
    configure(machine, 1, ORDERS)
    open_producer(machine)
    for one in parcels:
        ((found,),) = [append(machine, one)]
        if found.placement is not None:
            assert found.placement.base_offset == expected
            expected += found.placement.header.record_count
            (head,) = [parcel.envelope for parcel in envelope.unpack(one)]
            fresh = [message_id for _, message_id in head.ids]
            assert not seen & set(fresh)
            seen |= set(fresh)
    assert ends(machine) == [expected]
