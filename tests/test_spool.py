"""The spool: from its files another process goes on where the killed one was, whatever byte it had come to.

`tests/simulation` shows that nothing is lost or doubled on the way to the log; here are the promises one by one.
"""

import pytest
from support.spools import EVENTS, ORDERS, OWNER, WALL_MS, Held, Process, held, position_of
from support.streams import state

from gateway.core.spool_format import Kind, Owner
from gateway.core.spool_recovery import Recovery
from protocol.errors import FolderInUse


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def three_batches() -> Process:
    """`orders`: a, b, c each in a batch on its way, d and e waiting."""
    process = Process()
    process.link_up()
    for payload in (b"a", b"b", b"c"):
        process.publish(payload)
        process.now_ms += 1
        process.send()
    process.outbox._partitions[b"orders", 0].not_before_ms = process.now_ms + 1_000
    for payload in (b"d", b"e"):
        process.publish(payload)
    process.write()
    return process


# -- going on ---------------------------------------------------------------------------------------------------------


def test_what_was_on_its_way_and_what_waits_comes_back():
    process = three_batches()
    process.publish(b"elsewhere", subject="other")
    process.write()
    assert held(process.outbox) == {
        "orders": ([(1, [b"a"]), (2, [b"b"]), (3, [b"c"])], [b"d", b"e"]),
        "events": ([], [b"elsewhere"]),
    }
    again = Process(process.files)
    assert held(again.outbox) == held(process.outbox)
    assert again.outbox.size_bytes == process.outbox.size_bytes
    assert held(Process(again.files).outbox) == held(process.outbox)


def test_what_has_arrived_is_not_sent_again_and_the_rest_is_in_order():
    again = Process(three_batches().files)
    again.link_up(again.reached(2, 2))
    assert held(again.outbox) == {"orders": ([], [b"c", b"d", b"e"])}
    assert again.outbox.counters.appended == 2
    again.send()
    assert held(again.outbox) == {"orders": ([(3, [b"c", b"d", b"e"])], [])}


def test_what_is_committed_is_forgotten():
    process = three_batches()
    process.appended(1)
    process.appended(2)
    process.write()
    assert held(Process(process.files).outbox) == {"orders": ([(3, [b"c"])], [b"d", b"e"])}


def test_a_batch_that_was_taken_back_and_sent_anew_is_on_its_way_once():
    process = three_batches()
    process.outbox.link_down(process.now_ms)
    process.link_up()
    process.outbox._partitions[b"orders", 0].not_before_ms = 0
    process.send()
    process.write()
    wanted = {"orders": ([(1, [b"a", b"b", b"c", b"d", b"e"])], [])}
    assert held(process.outbox) == wanted
    assert held(Process(process.files).outbox) == wanted


def test_ids_are_known_again():
    process = Process()
    process.publish(b"once", reply="r1", Nats_Msg_Id="id")
    process.write()
    again = Process(process.files)
    again.publish(b"twice", reply="r2", Nats_Msg_Id="id")
    assert held(again.outbox) == {"orders": ([], [b"once"])}
    again.link_up()
    again.send()
    again.appended(1, 7)
    assert again.answers["r2"]["seq"] == 8
    assert again.answers["r2"]["duplicate"]


def test_an_id_that_is_on_its_way_is_known_too():
    process = Process()
    process.link_up()
    process.publish(b"once", Nats_Msg_Id="id")
    process.send()
    process.write()
    again = Process(process.files)
    again.publish(b"twice", Nats_Msg_Id="id")
    assert held(again.outbox) == {"orders": ([(1, [b"once"])], [])}


def test_an_expectation_is_kept_with_its_event():
    process = Process()
    process.publish(b"if", Nats_Expected_Last_Sequence="4")
    process.publish(b"then")
    process.write()
    again = Process(process.files)
    again.link_up()
    again.send()
    assert held(again.outbox)["orders"][0][0] == (1, [b"if"])


def test_a_gap_that_grows_is_noted_as_it_is_last():
    small = state("orders", outbox_bytes=200)
    process = Process(streams=(small, EVENTS))
    for number in range(6):
        process.outbox.publish("$G", "orders.new", "", b"", b"%d" % number, 10_000, WALL_MS + number, gives_up=True)
        process.write()
    assert held(process.outbox) == {"orders": ([], [b"0", b"1", b"gap 4"])}
    again = Process(process.files)
    assert held(again.outbox) == held(process.outbox)
    (partition,) = again.outbox._partitions.values()
    assert (partition.pending[-1].gap.from_ms, partition.pending[-1].gap.to_ms) == (WALL_MS + 2, WALL_MS + 5)


def test_events_of_a_stream_that_went_have_moved():
    process = Process()
    for payload in (b"a", b"b"):
        process.publish(payload)
    process.write()
    process.outbox.set_streams([EVENTS])
    process.write()
    assert held(process.outbox) == {"events": ([], [b"a", b"b"])}
    assert held(Process(process.files, [EVENTS]).outbox) == held(process.outbox)


def test_a_move_that_is_cut_leaves_each_event_in_one_place():
    process = Process()
    for payload in (b"a", b"b", b"c"):
        process.publish(payload)
    process.write()
    (before,) = process.files.values()
    process.outbox.set_streams([EVENTS])
    process.write()
    (data,) = process.files.values()
    for size in range(len(before), len(data) + 1):
        again = Process({1: data[:size]})
        payloads = [payload for flying, waiting in held(again.outbox).values() for payload in waiting]
        assert sorted(payloads) == [b"a", b"b", b"c"], size


def test_a_write_that_is_cut_at_any_byte_leaves_what_was_held_before_or_after():
    """A prefix of the file is the state after its last whole record."""
    process = Process()
    process.link_up()
    states: list[tuple[int, Held]] = []

    def note() -> None:
        process.write()
        states.append((len(process.files[1]), held(process.outbox)))

    note()
    for number in range(4):
        process.publish(b"%d" % number + bytes(20 * number), Nats_Msg_Id=f"id {number}")
        note()
        process.now_ms += 1
        process.send()
        note()
    for sequence in (1, 2):
        process.appended(sequence)
        note()
    process.publish(b"last", subject="other")
    note()
    data = process.files[1]
    for size in range(states[0][0], len(data) + 1):
        again = Process({1: data[:size]})
        assert again.recovery.problems == []
        assert held(again.outbox) == max(one for one in states if one[0] <= size)[1], size


def test_a_head_that_is_cut_at_any_byte_is_no_damage():
    """The process was killed when it began another file."""
    process = three_batches()
    process.next_file()
    head = process.files[2]
    for size in range(len(head) + 1):
        assert held(Process({1: process.files[1], 2: head[:size]}).outbox) == held(process.outbox)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_needed_as_long_as_an_entry_in_it_is_held():
    process = three_batches()
    process.next_file()
    process.publish(b"f")
    process.write()
    assert (process.spool.held(1), process.spool.held(2), process.spool.events) == (5, 1, 6)
    for sequence in (1, 2, 3):
        process.appended(sequence)
    assert (process.spool.held(1), process.spool.held(2)) == (2, 1)


def test_what_is_moved_from_an_old_file_needs_it_no_more():
    process = three_batches()
    process.next_file()
    process.publish(b"f")
    process.spool.move(1, 1 << 20)
    whole = process.files[2] + bytes(process.spool.finish())
    for size in range(len(process.files[2]), len(whole)):  # cut: the old file is still there
        again = Process({1: process.files[1], 2: whole[:size]})
        assert held(again.outbox)["orders"][0] == held(process.outbox)["orders"][0]
        assert held(again.outbox)["orders"][1][:2] == [b"d", b"e"]
    process.write()
    assert process.spool.held(1) == 0
    assert held(Process({2: process.files[2]}).outbox) == held(process.outbox)


def test_a_move_has_a_bound():
    process = Process()
    for number in range(100):
        process.publish(b"%d" % number)
    process.next_file()
    process.spool.move(1, 1_000)
    assert 80 < process.spool.held(1) < 95


def test_what_was_taken_back_stands_before_what_waits_though_a_file_that_said_so_is_gone():
    """A batch of the second file alone still looks as if it were on its way."""
    process = Process()
    process.link_up()
    process.publish(b"a")
    process.send()
    process.next_file()
    process.publish(b"b")
    process.now_ms += 1
    process.send()
    process.outbox.link_down(process.now_ms)
    process.link_up()
    assert held(process.outbox) == {"orders": ([], [b"a", b"b"])}
    process.next_file()
    process.spool.move(1, 1 << 20)
    process.write()
    again = Process({number: process.files[number] for number in (2, 3)})
    assert held(again.outbox) == {"orders": ([], [b"a", b"b"])}


def test_a_file_that_is_whole_makes_those_before_it_void():
    process = three_batches()
    again = Process(process.files)
    again.link_up(again.reached(3, 3))
    again.write()
    assert held(Process({1: process.files[1], **again.files}).outbox) == {"orders": ([], [b"d", b"e"])}


def test_a_file_of_another_node_is_refused():
    process = three_batches()
    for owner in (Owner("other", "eu", "gw1", 0), Owner("acme", "us", "gw1", 0), Owner("acme", "eu", "gw1", 1)):
        with pytest.raises(
            FolderInUse, match="file 1 is the spool of worker 0 of gw1 in zone eu of mesh acme, this is"
        ):
            Recovery(owner, 0, 0).read("file 1", process.files[1], is_last=True)


# -- damage -----------------------------------------------------------------------------------------------------------


def test_an_event_whose_payload_is_damaged_becomes_a_gap_in_its_place():
    process = three_batches()
    data = process.files[1]
    damaged = flipped(data, position_of(data, Kind.EVENT, 4) + 60)
    again = Process({1: damaged})
    assert held(again.outbox) == {"orders": ([(1, [b"a"]), (2, [b"b"]), (3, [b"c"])], [b"gap 1", b"e"])}
    assert again.recovery.lost_events == 1


@pytest.mark.parametrize(
    ("arrived", "waiting"), [(1, [b"b", b"c", b"d", b"e"]), (0, [b"gap 1", b"b", b"c", b"d", b"e"])]
)
def test_one_that_was_on_its_way_becomes_a_gap_only_if_it_has_not_arrived(arrived, waiting):
    data = three_batches().files[1]
    again = Process({1: flipped(data, position_of(data, Kind.EVENT, 1) + 60)})
    again.link_up(again.reached(arrived, arrived))
    assert held(again.outbox) == {"orders": ([], waiting)}


def test_where_the_rest_of_a_file_cannot_be_read_what_was_held_is_doubtful():
    """The rest may have said that it was sent, or gone: it is not sent a second time."""
    process = three_batches()
    data = process.files[1]
    process.publish(b"f")
    process.write()
    again = Process({1: flipped(process.files[1], len(data) + 10)})
    assert "byte " in again.recovery.problems[0]
    assert held(again.outbox) == {"orders": ([(1, [b"gap 1"]), (2, [b"gap 1"]), (3, [b"gap 1"])], [b"gap 2"])}
    assert again.recovery.lost_events == 5
    again.link_up(again.reached(2, 2))
    assert held(again.outbox) == {"orders": ([], [b"gap 1", b"gap 2"])}


def test_what_later_files_say_is_not_in_doubt():
    process = three_batches()
    process.next_file()
    process.publish(b"lost")
    process.next_file()
    process.publish(b"f")
    process.outbox._partitions[b"orders", 0].not_before_ms = 0
    process.appended(1)
    process.send()
    process.write()
    assert held(process.outbox)["orders"][0][-1] == (4, [b"d", b"e", b"lost", b"f"])
    files = dict(process.files)
    files[2] = flipped(files[2], len(files[2]) - 30)  # the record's fixed part is whole
    assert Process(files).recovery.lost_events == 1
    files[2] = flipped(process.files[2], len(files[2]) - 60)
    again = Process(files)
    flying, waiting = held(again.outbox)["orders"]
    assert flying == [(2, [b"gap 1"]), (3, [b"gap 1"]), (4, [b"d", b"e", b"gap 1", b"f"])]
    assert waiting == []


def test_a_missing_file_leaves_as_many_gaps_as_numbers_are_missing():
    process = three_batches()
    process.next_file()
    for payload in (b"x", b"y", b"z"):
        process.publish(payload)
    process.next_file()
    process.publish(b"f")
    process.write()
    recovery = Recovery(OWNER, 0, WALL_MS)
    recovery.read("1", process.files[1], is_last=False)
    recovery.damaged("2 is missing")
    recovery.read("3", process.files[3], is_last=True)
    (restored,) = recovery.partitions()
    gaps = [entry.gap.events if entry.gap is not None else entry.event.payload for entry in restored.partition.pending]
    assert gaps == [5, b"f"]
    assert recovery.lost_events == 8


def test_zeros_at_the_end_are_torn_and_in_between_are_damage():
    process = three_batches()
    data = process.files[1]
    assert held(Process({1: data + bytes(500)}).outbox) == held(process.outbox)
    assert Process({1: data + bytes(500) + b"x"}).recovery.problems
    process.next_file()
    process.write()
    assert Process({1: data + bytes(500), 2: process.files[2]}).recovery.problems


@pytest.mark.parametrize("seed", range(40))
def test_one_wrong_bit_anywhere_loses_nothing_without_a_gap_and_doubles_nothing(seed):
    """Each event is there as it was, or counted as missing; or it is known that the rest was not read."""
    process = three_batches()
    process.appended(1)
    process.write()
    data = process.files[1]
    position = (seed * len(data)) // 40
    again = Process({1: flipped(data, position)})
    flying, waiting = held(again.outbox).get("orders", ([], []))
    shown = [payload for _, payloads in flying for payload in payloads] + waiting
    events = [payload for payload in shown if not payload.startswith(b"gap")]
    missing = sum(int(payload.split()[1]) for payload in shown if payload.startswith(b"gap"))
    assert events == sorted(set(events))
    assert set(events) <= {b"b", b"c", b"d", b"e"}
    assert len(events) + missing >= 4 or again.recovery.problems


def test_streams_are_known_by_what_the_files_say():
    process = three_batches()
    assert [stream for stream in Process(process.files).recovery.streams if stream.name == "orders"] == [ORDERS]
