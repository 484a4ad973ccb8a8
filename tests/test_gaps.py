"""Gap records, from an outbox that is full for too long to the status message that tells a reader."""

import msgspec
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from support.fetches import take

from gateway.core.history import FetchProgress, Reader
from gateway.core.outbox import Outbox
from protocol import link
from protocol.errors import FrameError
from protocol.gaps import Gap, encode_gap, read_gap
from protocol.history import FetchRequest
from protocol.records import Event, check_batch, encode_batch, encode_control, place_batch, read_records
from protocol.streams import StreamDefinition, StreamState
from sinkd.core import commands
from sinkd.core.commands import Configure, OpenProducer
from sinkd.core.machine import Machine

GAP = Gap("outbox_overflow", 7, 1_000, 2_000)


def test_a_gap_is_a_control_batch_that_kafka_consumers_pass_over():
    batch = place_batch(encode_gap(GAP), 41, 3)
    assert check_batch(batch).record_count == 1
    assert read_gap(batch) == (41, GAP)
    assert DefaultRecordBatch(bytearray(batch)).is_control_batch
    with pytest.raises(FrameError, match="attributes 0x20"):
        list(read_records(batch))


@pytest.mark.parametrize(
    "batch",
    [
        encode_batch([Event(b"s", b"s", 1, b"", b"x")]),
        encode_control(b"\0\0\0\1", b"{}", 1),
        encode_control(b"\0\0\0\x64", b'{"reason":1}', 1),
        encode_control(b"\0\0\0\x64", b"not json", 1),
    ],
)
def test_what_is_no_gap_is_refused(batch):
    with pytest.raises(FrameError):
        read_gap(batch)


def test_a_reader_is_told_and_goes_on():
    events = [Event(b"a", b"a", 5, b"", payload) for payload in (b"1", b"2")]
    progress = FetchProgress(("orders", "eu", 0), FetchRequest(offset=0), 0, lambda subject: True)
    shown = take(progress, encode_batch(events)) + take(progress, place_batch(encode_gap(GAP), 2, 1))
    shown += take(progress, place_batch(encode_batch(events[:1]), 3, 1))
    assert [one.payload for one in shown] == [b"1", b"2", b"", b"1"]
    assert shown[2].header_block == (
        b"NATS/1.0 206 Gap\r\nLog-Gap-From: 2\r\nLog-Gap-To: 2\r\nLog-Gap-Reason: outbox_overflow\r\n"
        b"Log-Gap-Events: 7\r\n\r\n"
    )
    assert progress.next_offset == 4


def test_a_fetch_that_ends_before_a_gap_does_not_tell_of_it():
    progress = FetchProgress(("orders", "eu", 0), FetchRequest(offset=0, end_offset=2), 2, lambda subject: True)
    assert take(progress, place_batch(encode_gap(GAP), 2, 1)) == []
    assert progress.is_done


def test_a_client_without_headers_gets_an_empty_message_for_a_gap():
    progress = FetchProgress(("orders", "eu", 0), FetchRequest(offset=0), 0, None)
    (told,) = progress.take(encode_gap(GAP), [Reader(b"MSG in 1 ", False, 1)])
    assert (told.data, told.records, told.carried_bytes, progress.next_offset) == (b"MSG in 1 0\r\n\r\n", 1, 0, 1)


def test_what_a_full_outbox_gave_up_stands_in_the_log_as_one_gap_in_its_place():
    answers: list[tuple[str, bytes]] = []
    outbox, machine = Outbox("eu", lambda account, reply, answer: answers.append((reply, answer))), Machine()
    stream, opened = _configured(machine)
    outbox.set_streams([stream])
    for number in range(4):  # fills what the stream may hold, and one event more
        taken = outbox.publish("$G", "orders.a", "", b"", bytes(1000), 10, 5_000 + number)
    assert taken == (False, False)
    for number in range(3):
        assert outbox.publish("$G", "orders.a", "", b"", b"late", 10, 6_000 + number, gives_up=True) == (False, True)
    assert outbox.publish("$G", "orders.a", "inbox", b"", b"asks", 10, 6_500, gives_up=True) == (True, True)
    assert msgspec.json.decode(answers.pop()[1])["error"]["err_code"] == 10167
    outbox.link_up(opened)
    _carry(outbox, machine)
    assert outbox.publish("$G", "orders.a", "", b"", b"after", 20, 7_000, gives_up=True) == (False, True)
    _carry(outbox, machine)
    assert outbox.is_empty
    assert outbox.size_bytes == 0
    assert outbox.counters.given_up == 3
    batches = machine.placed
    assert read_gap(batches[-2])[1] == Gap("outbox_overflow", 3, 6_000, 6_002)
    assert [record.payload for record in read_records(batches[-1])] == [b"after"]
    assert sum(len(list(read_records(batch))) for batch in batches[:-2]) == 4
    assert machine.state.streams["orders"].partitions[0].end_offset == 6
    assert machine.state.producers[1].progress[b"i" * 16, 0].last_sequence == 8


def _configured(machine: Machine) -> tuple[StreamState, link.Opened]:
    definition = StreamDefinition(
        name="orders", incarnation=b"i" * 16, subjects=("orders.>",), partitions=1, key="subject", ack="quorum",
        reply="always", dedup_window_ms=1000, dedup_ids_max=10, outbox_bytes=4000, outbox_overflow="gap",
        outbox_stall_ms=1000, retention_age_ms=0, retention_bytes=0,
    )  # fmt: skip
    machine.apply(commands.encode(commands.CONFIGURE, 1, Configure(1, (definition,))))
    machine.placed = []
    opened = machine.apply(commands.encode(commands.OPEN, 1, OpenProducer("gw1", 0, b"n")))
    return machine.stream_states()[0], opened


def _carry(outbox: Outbox, machine: Machine) -> None:
    """Everything from the outbox into the machine, and the answers back, until nothing moves."""
    reader = link.FrameReader()
    while True:
        outbox.flush(1_000)
        frames = outbox.take_frames()
        if not frames:
            return
        for frame in reader.feed(b"".join(frames)):
            (taken,) = machine.apply(commands.encode_append(1, [frame.tail]))
            machine.placed.append(frame.tail[-taken.placement.header.size_bytes :])
            outbox.appended(taken.answer)
