"""One fetch: which events are shown, and when it is over."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fetches import READER, Shown, take
from support.streams import event

from gateway.core.history import FetchProgress, Reader, read_chunk
from protocol import headers
from protocol.errors import FrameError
from protocol.gaps import Gap, encode_gap
from protocol.history import FetchRequest
from protocol.limits import FETCH_SCAN_BYTES_MAX, FETCH_TURN_BYTES
from protocol.records import encode_batch, place_batch

SUBJECTS = (b"orders.new", b"orders.paid", b"secret.new")


def batch(base_offset: int, count: int, size_bytes: int = 1) -> bytes:
    """Records whose payload begins with their offset, on SUBJECTS in turn."""
    offsets = range(base_offset, base_offset + count)
    events = [
        event(b"%d" % offset + b"." * (size_bytes - 1), SUBJECTS[offset % 3], timestamp_ms=offset) for offset in offsets
    ]
    return place_batch(encode_batch(events), base_offset, 1)


def progress(offset: int = 0, **fields: object) -> FetchProgress:
    request = FetchRequest(offset=offset, **fields)
    return FetchProgress(("orders", "eu", 0), request, offset, lambda subject: not subject.startswith("secret"))


def offsets(shown: list[Shown]) -> list[int]:
    return [int(headers.parse(one.header_block).get("Log-Offset")) for one in shown]


def test_what_stands_before_the_offset_is_passed_over():
    fetch = progress(4)
    assert offsets(take(fetch, batch(0, 8))) == [4, 6, 7]
    assert (fetch.next_offset, fetch.is_done) == (8, False)


def test_a_shown_event_is_as_it_was_published():
    (shown,) = take(progress(1), batch(0, 2))
    assert shown.payload == b"1"
    found = headers.parse(shown.header_block)
    assert (found.get("Nats-Subject"), found.get("Log-Timestamp")) == ("orders.paid", "1")


def test_what_the_reader_may_not_see_or_did_not_ask_for_is_passed_over():
    fetch = progress(filter="orders.new")
    assert offsets(take(fetch, batch(0, 9))) == [0, 3, 6]
    assert fetch.next_offset == 9
    fetch = progress(filter="secret.>")
    assert offsets(take(fetch, batch(0, 9))) == []
    assert (fetch.next_offset, fetch.is_done) == (9, False)


def test_it_ends_with_the_number_of_records_that_was_asked_for():
    fetch = progress(max_records=3)
    assert offsets(take(fetch, batch(0, 9))) == [0, 1, 3]
    assert (fetch.next_offset, fetch.is_done) == (4, True)


@pytest.mark.parametrize(
    ("end_offset", "shown"), [(0, []), (1, [0]), (3, [0, 1]), (4, [0, 1, 3]), (9, [0, 1, 3, 4, 6, 7])]
)
def test_it_ends_before_the_end_offset(end_offset, shown):
    fetch = progress(end_offset=end_offset)
    assert offsets([] if fetch.is_done else take(fetch, batch(0, 9))) == shown
    assert (fetch.next_offset, fetch.is_done) == (end_offset, True)


def test_an_end_in_a_later_batch():
    fetch = progress(end_offset=12)
    assert len(offsets(take(fetch, batch(0, 9)))) == 6
    assert not fetch.is_done
    assert offsets(take(fetch, batch(9, 9))) == [9, 10]
    assert fetch.is_done


def test_it_ends_before_the_event_that_would_be_too_much():
    one = len(next(iter(take(progress(), batch(0, 1, 100)))).header_block) + 100
    fetch = progress(max_bytes=2 * one)
    assert offsets(take(fetch, batch(0, 9, 100))) == [0]  # orders.paid is a byte longer than orders.new
    assert (fetch.next_offset, fetch.is_done) == (1, True)
    fetch = progress(max_bytes=2 * one + 1)
    assert offsets(take(fetch, batch(0, 9, 100))) == [0, 1]
    assert (fetch.next_offset, fetch.is_done) == (3, True)


def test_the_first_event_is_shown_however_large():
    fetch = progress(max_bytes=1)
    assert offsets(take(fetch, batch(0, 3, 5_000))) == [0]
    assert fetch.next_offset == 1


def test_what_was_looked_at_counts_even_if_nothing_is_shown():
    data = batch(0, 9)
    fetch = progress(filter="nothing")
    assert take(fetch, data) == []
    assert fetch.scanned_bytes == len(data)


@given(
    st.integers(0, 30),
    st.integers(1, 40),
    st.integers(1, 2_000),
    st.none() | st.integers(0, 40),
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
)
def test_readers_that_go_on_where_a_fetch_ended_miss_nothing(start, max_records, max_bytes, end_offset, sizes):
    """However the log is cut into batches and the reading into fetches."""
    batches, position = [], 0
    for size in sizes:
        batches.append(batch(position, size, 10))
        position += size
    seen, offset = [], start
    for _ in range(100):
        fetch = progress(offset, max_records=max_records, max_bytes=max_bytes, end_offset=end_offset)
        for one in batches:
            if not fetch.is_done:
                seen += offsets(take(fetch, one))
        assert fetch.records <= max_records
        assert fetch.records <= 1 or fetch.size_bytes <= max_bytes
        if fetch.next_offset == offset:
            break
        offset = fetch.next_offset
    end = position if end_offset is None else min(end_offset, position)
    assert seen == [number for number in range(start, end) if number % 3 != 2]


def test_subjects_are_asked_about_once():
    asked: list[str] = []

    def may_show(subject: str) -> bool:
        asked.append(subject)
        return subject != "secret.new"

    fetch = FetchProgress(("orders", "eu", 0), FetchRequest(offset=0), 0, may_show)
    assert offsets(take(fetch, batch(0, 9))) == [0, 1, 3, 4, 6, 7]
    assert asked == ["orders.new", "orders.paid", "secret.new"]


def test_a_reader_of_everything_is_not_asked_about():
    fetch = FetchProgress(("orders", "eu", 0), FetchRequest(offset=0), 0, None)
    assert offsets(take(fetch, batch(0, 3))) == [0, 1, 2]
    fetch = FetchProgress(("orders", "eu", 0), FetchRequest(offset=0, filter="orders.*"), 0, None)
    assert offsets(take(fetch, batch(0, 3))) == [0, 1]


def test_where_it_goes_on_is_known_beforehand_where_it_will():
    batches = [batch(0, 9), batch(9, 3)]
    whole = read_chunk(b"".join(batches))
    assert progress(max_records=13).goes_on_at(whole) == 12
    assert progress(max_records=12).goes_on_at(whole) is None
    assert progress(max_bytes=len(b"".join(batches))).goes_on_at(whole) is None
    assert progress(end_offset=12).goes_on_at(whole) is None
    assert progress().goes_on_at(read_chunk(b"")) is None
    fetch = progress(max_records=13)
    take(fetch, batches[0])
    assert fetch.goes_on_at(read_chunk(batches[1])) == 12
    take(fetch, batches[1])
    assert (fetch.next_offset, fetch.is_done) == (12, False)


def test_several_readers_get_the_same_events_each_in_its_own_words():
    fetch = FetchProgress(("orders", "eu", 0), FetchRequest(offset=0, max_records=3), 0, None)
    limited, plain = READER._replace(messages_max=2), Reader(b"MSG in 2 ", False, sys.maxsize)
    few, bare = fetch.take(batch(0, 9), [limited, plain])
    assert (few.records, bare.records) == (2, 3)
    assert bare.data == b"MSG in 2 1\r\n0\r\nMSG in 2 1\r\n1\r\nMSG in 2 1\r\n2\r\n"
    assert (bare.carried_bytes, fetch.next_offset, fetch.records, fetch.is_done) == (3, 3, 3, True)


def test_small_batches_are_shown_together_and_a_gap_by_itself(gap):
    small, large = [batch(n, 1) for n in range(4)], batch(5, 1, FETCH_TURN_BYTES)
    chunk = read_chunk(b"".join([*small[:3], gap(3), small[3], large]))
    assert [bytes(turn) for turn in chunk.turns] == [b"".join(small[:3]), gap(3), small[3], large]
    assert (chunk.records, chunk.next_offset, chunk.size_bytes) == (6, 6, sum(map(len, chunk.turns)))
    assert read_chunk(b"".join(small)).turns == [b"".join(small)]
    assert read_chunk(b"") == ([], 0, 0, 0)


@pytest.fixture
def gap():
    return lambda offset: place_batch(encode_gap(Gap("lost", 1, 0, 0)), offset, 1)


@pytest.mark.parametrize("cut", [1, 60, 61, 100])
def test_a_torn_chunk_is_refused(cut):
    with pytest.raises(FrameError, match="record batch"):
        read_chunk(batch(0, 2) + batch(2, 9)[:cut])


def test_only_who_looks_for_events_among_others_ends_because_much_was_looked_at():
    everything = FetchProgress(("orders", "eu", 0), FetchRequest(offset=0, max_bytes=1 << 30), 0, None)
    some = progress(filter="nothing")
    for fetch in (everything, some):
        take(fetch, batch(0, 9))
    assert not everything.has_scanned_enough(FETCH_SCAN_BYTES_MAX)
    assert not some.has_scanned_enough()
    assert some.has_scanned_enough(FETCH_SCAN_BYTES_MAX)
