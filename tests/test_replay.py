"""Messages for readers from record batches: what they look like, where a window ends. On both twins."""

import pytest
from support.batches import MISCOUNTED, batch_of, framed, on_both, record_with, varint
from support.streams import event

from protocol import history
from protocol.engine import Engine
from protocol.errors import FrameError
from protocol.records import encode_batch, place_batch, read_records
from protocol.replay import OFFSET_MAX, Frames, Passes, Window

OPENING = b"HMSG in 7 "
LINES = history.log_lines("orders", "eu", 0)
ALL = Window(0, OFFSET_MAX, 1_000, 1_000_000, True)


def frames(codec: Engine, batch: bytes, window: Window = ALL, passes: Passes | None = None) -> Frames:
    return codec.frames(batch, window, OPENING, True, LINES, passes)


def offsets(data: bytes) -> list[int]:
    return [int(part.split(b"\r\n")[0]) for part in data.split(b"Log-Offset: ")[1:]]


def numbered(count: int, base_offset: int = 0, **fields: object) -> bytes:
    return place_batch(encode_batch([event(b"%d" % n, **fields) for n in range(count)]), base_offset, 1)


@on_both
def test_a_message_as_it_goes_to_the_socket(codec):
    batch = place_batch(encode_batch([event(b"hello", header_block=b"NATS/1.0\r\nA: b\r\n\r\n")]), 41, 1)
    block = (
        b"NATS/1.0\r\nLog-Stream: orders\r\nLog-Zone: eu\r\nLog-Partition: 0\r\nLog-Offset: 41\r\nLog-Timestamp: 5\r\n"
        b"Nats-Subject: orders.new\r\nA: b\r\n\r\n"
    )
    total = len(block) + 5
    line = b"HMSG in 7 %d %d\r\n" % (len(block), total)
    assert frames(codec, batch) == Frames(line + block + b"hello\r\n", 1, total, total, 42, False)
    shown = codec.frames(batch, ALL, b"MSG in 7 ", False, LINES, None)
    assert shown == Frames(b"MSG in 7 5\r\nhello\r\n", 1, total, 5, 42, False)


BLOCKS = [
    b"", b"NATS/1.0\r\nA: \r\n\r\n", b"NATS/1.0\r\nA:  b \r\nA: \xc3\xa9\r\n\r\n", b"NATS/1.0\r\nLog-Offset: 1\r\n\r\n",
    b"NATS/1.0\r\nlOG-x: 1\r\nA: b\r\n\r\n", b"NATS/1.0\r\nOriginal-a: 1\r\n\r\n", b"NATS/1.0\r\nStatus: 1\r\n\r\n",
    b"NATS/1.0\r\nNats-Subject: 1\r\n\r\n", b"NATS/1.0\r\nNats-Subject-: 1\r\n\r\n", b"NATS/1.0\r\nstatuses: 1\r\n\r\n",
    b"NATS/1.0\r\nDescription: 1\r\n\r\n", b"NATS/1.0\r\nlogs: 1\r\n\r\n", b"NATS/1.0\r\nA b: 1\r\n\r\n",
    b"NATS/1.0\r\nA: \0\r\n\r\n", b"NATS/1.0\r\nA: \r1\r\n\r\n", b"NATS/1.0\r\nA: \n1\r\n\r\n", b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0\r\n\xc3\xa9: 1\r\n\r\n", b"NATS/1.0\r\nA: \xff\r\n\r\n", b"NATS/1.0\r\nA:b\r\n\r\n", b"garbage",
]  # fmt: skip


@on_both
@pytest.mark.parametrize("block", BLOCKS)
def test_headers_are_those_that_history_shows(codec, block):
    batch = numbered(1, header_block=block)
    (record,) = read_records(batch)
    assert history.shown_headers(LINES, record) in frames(codec, batch).data


@on_both
@pytest.mark.parametrize(
    ("window", "shown", "next_offset", "is_full"),
    [
        (ALL, [10, 11, 12, 13], 14, False),
        (ALL._replace(offset=12), [12, 13], 14, False),
        (ALL._replace(offset=14), [], 14, False),
        (ALL._replace(end_offset=12), [10, 11], 12, True),
        (ALL._replace(end_offset=9), [], 0, True),
        (ALL._replace(records_max=3), [10, 11, 12], 13, True),
        (ALL._replace(records_max=0), [], 0, True),
        (ALL._replace(bytes_max=0), [10], 11, True),
        (ALL._replace(bytes_max=0, shows_one=False), [], 0, True),
    ],
)
def test_where_a_window_ends(codec, window, shown, next_offset, is_full):
    got = frames(codec, numbered(4, 10), window)
    assert (offsets(got.data), got.next_offset, got.is_full) == (shown, next_offset, is_full)
    assert got.records == len(shown)


@on_both
def test_bytes_are_counted_as_shown(codec):
    batch = numbered(4)
    one = frames(codec, batch, ALL._replace(records_max=1)).size_bytes
    for room, count in ((4 * one, 4), (4 * one - 1, 3), (one, 1)):
        assert frames(codec, batch, ALL._replace(bytes_max=room)).records == count


@on_both
def test_subjects_that_do_not_pass_are_passed_over(codec):
    names = (b"a", b"a", b"secret", b"secret", b"a", b"")
    asked: list[bytes] = []

    def passes(subject: bytes) -> bool:
        asked.append(subject)
        return subject != b"secret"

    got = frames(codec, encode_batch([event(b"x", name) for name in names]), ALL, passes)
    assert (offsets(got.data), got.next_offset) == ([0, 1, 4, 5], 6)
    assert asked == [b"a", b"secret", b"a", b""]


@on_both
def test_what_passes_raises_goes_through(codec):
    def passes(subject: bytes) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        frames(codec, numbered(1), ALL, passes)


@on_both
@pytest.mark.parametrize("what", MISCOUNTED)
def test_a_bad_record_is_refused_if_it_is_reached(codec, what):
    content, message = MISCOUNTED[what]
    with pytest.raises(FrameError, match=message):
        frames(codec, batch_of(content))


@on_both
def test_nothing_of_a_batch_is_shown_that_has_a_bad_record(codec):
    with pytest.raises(FrameError, match="record 1, byte"):
        frames(codec, batch_of(framed(record_with()), varint(-5)))


@on_both
def test_batches_that_stand_back_to_back_are_shown_as_one_after_the_other(codec):
    one, two, three = numbered(3, 10), numbered(2, 13), numbered(4, 15)
    apart = [frames(codec, batch, ALL._replace(offset=11)) for batch in (one, two, three)]
    together = frames(codec, one + two + three, ALL._replace(offset=11))
    assert together.data == b"".join(each.data for each in apart)
    assert together[1:] == (8, *(sum(each[at] for each in apart) for at in (2, 3)), 19, False)
    ended = frames(codec, one + two + three, ALL._replace(records_max=4))
    assert (offsets(ended.data), ended.next_offset, ended.is_full) == ([10, 11, 12, 13], 14, True)
    assert frames(codec, b"") == Frames(b"", 0, 0, 0, 0, False)


@on_both
@pytest.mark.parametrize("cut", [1, 60, 61, 80, -1])
def test_a_torn_batch_behind_others_is_refused_if_it_is_reached(codec, cut):
    whole, torn = numbered(2), numbered(2, 2)[:cut]
    with pytest.raises(FrameError, match="record batch"):
        frames(codec, whole + torn)
    assert frames(codec, whole + torn, ALL._replace(records_max=1)).records == 1
