"""Mirrors in the state machine, and both ends of a subscription: a prefix of the origin, or a gap that says so."""

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.streams import definition, event, state

from protocol import link
from protocol.coverage import digest_of
from protocol.engine import BEST
from protocol.errors import FrameError
from protocol.gaps import Gap, missing, read_gap
from protocol.records import encode_batch, place_batch, read_header, split_batches
from sinkd.core import commands
from sinkd.core.commands import Configure, Diverged, MakeMirror, MirroredHead, Trim
from sinkd.core.machine import Machine, Mirrored, Trimmed
from sinkd.core.mirroring import (
    RAW_BYTES_MAX,
    BadFrame,
    Feed,
    Pull,
    SubscriptionRefused,
    TokenBucket,
    check_end,
    check_last,
    pack_batches,
    unpack_batches,
)
from sinkd.core.mirrors import MirrorMade, mirror_of
from sinkd.core.retention import SegmentFacts, trims
from sinkd.core.state import MIRRORS_VERSION, STATE_VERSION

T = 1_700_000_000_000
ONE, TWO = b"1" * 16, b"2" * 16


def batch(offset: int, *payloads: bytes, epoch: int = 7) -> bytes:
    return place_batch(encode_batch([event(payload) for payload in payloads]), offset, epoch)


def make(machine: Machine, incarnation: bytes = ONE, generation: int = 0, **settings: object) -> MirrorMade:
    told = mirror_of("eu", state("orders", incarnation=incarnation, **settings))
    return machine.apply(commands.encode(commands.MIRROR, T, MakeMirror(told, generation)))


def append(machine: Machine, *batches: bytes, incarnation: bytes = ONE, name: str = "orders@eu") -> Mirrored:
    mirror = machine.state.mirrors.get(name)
    head = MirroredHead(name, incarnation, 0, mirror.last_crcs.get(0, 0) if mirror is not None else 0)
    return machine.apply(commands.encode_mirrored(T, head, b"".join(batches)))


def end(machine: Machine, name: str = "orders@eu") -> int:
    return machine.state.mirrors[name].partitions[0].end_offset


@pytest.fixture
def machine() -> Machine:
    machine = Machine()
    machine.apply(commands.encode(commands.CONFIGURE, T, Configure(1, (definition(),))))
    return machine


# -- the state machine ------------------------------------------------------------------------------------------------


def test_batches_stand_where_they_stood_in_the_origin_and_where_they_are_in_the_command(machine):
    make(machine)
    first, second = batch(0, b"a", b"b"), batch(2, b"c")
    head = MirroredHead("orders@eu", ONE, 0)
    command = commands.encode_mirrored(T, head, first + second)
    result = machine.apply(command)
    assert (result.end_offset, result.refusal) == (3, "")
    found = [command[place.position : place.position + place.header.size_bytes] for place in result.placements]
    assert found == [first, second]
    assert [(place.stream.name, place.base_offset) for place in result.placements] == [
        ("orders@eu", 0),
        ("orders@eu", 2),
    ]


@pytest.mark.parametrize("wrong", [batch(3, b"x"), batch(1, b"x"), batch(2, b"x") + batch(4, b"y")])
def test_what_does_not_join_on_is_refused_whole(machine, wrong):
    make(machine)
    append(machine, batch(0, b"a", b"b"))
    result = append(machine, wrong)
    assert (result.refusal, result.placements, end(machine)) == ("the mirror ends at offset 2", (), 2)


def test_the_same_again_has_no_effect(machine):
    make(machine)
    append(machine, batch(0, b"a"))
    assert append(machine, batch(0, b"a")).refusal == "the mirror ends at offset 1"
    assert end(machine) == 1


def test_what_follows_another_batch_at_the_same_offset_is_refused(machine):
    make(machine)
    append(machine, batch(0, b"a"))
    head = MirroredHead("orders@eu", ONE, 0, after=read_header(batch(0, b"b")).crc)
    result = machine.apply(commands.encode_mirrored(T, head, batch(1, b"c")))
    assert (result.refusal, end(machine)) == ("the mirror ends with another batch", 1)


def test_a_gap_takes_the_offsets_that_are_missing(machine):
    make(machine)
    append(machine, batch(0, b"a"))
    assert append(machine, *missing(1, 40, "trimmed", "eu"), batch(40, b"b")).end_offset == 41


@pytest.mark.parametrize(("name", "incarnation"), [("orders@eu", TWO), ("orders@us", ONE), ("orders", ONE)])
def test_batches_for_another_incarnation_or_no_mirror_are_refused(machine, name, incarnation):
    make(machine)
    assert append(machine, batch(0, b"a"), name=name, incarnation=incarnation).refusal
    assert end(machine) == 0


def test_an_origin_made_anew_begins_a_new_mirror_and_the_old_one_stays(machine):
    make(machine)
    append(machine, batch(0, b"a", b"b"))
    make(machine, TWO)
    assert (end(machine), end(machine, "orders@eu~1")) == (0, 2)
    old, new = machine.state.mirrors["orders@eu~1"], machine.state.mirrors["orders@eu"]
    assert (old.state.name, old.state.retired, new.generation) == ("orders@eu~1", True, 2)
    assert append(machine, batch(2, b"c"), incarnation=ONE).refusal


def test_an_incarnation_that_was_left_does_not_come_back(machine):
    make(machine)
    make(machine, TWO)
    assert not make(machine, ONE).changed
    assert machine.state.mirrors["orders@eu"].state.incarnation == TWO
    assert list(machine.state.mirrors) == ["orders@eu", "orders@eu~1"]


def test_another_group_takes_over_what_group_0_has_decided_and_no_older_word(machine):
    other = Machine(number=1)
    told = mirror_of("eu", state("orders", incarnation=TWO, groups=2, partitions=2))
    other.apply(commands.encode(commands.MIRROR, T, MakeMirror(told, 2)))
    older = msgspec.structs.replace(told, incarnation=ONE)
    assert not other.apply(commands.encode(commands.MIRROR, T, MakeMirror(older, 1))).changed
    assert other.state.mirrors["orders@eu"].state == told
    assert [number for _, number, _ in other.partitions()] == told.partitions_of(1)


def test_settings_of_the_origin_are_taken_over_in_place(machine):
    make(machine)
    append(machine, batch(0, b"a"))
    assert make(machine, retention_age_ms=5).changed
    assert not make(machine, retention_age_ms=5).changed
    assert (machine.state.mirrors["orders@eu"].state.retention_age_ms, end(machine)) == (5, 1)


def test_a_mirror_that_has_diverged_takes_nothing_more(machine):
    make(machine)
    machine.apply(commands.encode(commands.DIVERGED, T, Diverged("orders@eu", ONE, 0, "other bytes")))
    assert append(machine, batch(0, b"a")).refusal == "the mirror has diverged from its origin"
    make(machine, TWO)
    assert append(machine, batch(0, b"a"), incarnation=TWO).end_offset == 1


def test_a_mirror_is_trimmed_by_its_name_and_incarnation(machine):
    make(machine)
    append(machine, batch(0, b"a", b"b"))
    assert machine.apply(commands.encode(commands.TRIM, T, Trim("orders@eu", TWO, 0, 1))) is None
    result = machine.apply(commands.encode(commands.TRIM, T, Trim("orders@eu", ONE, 0, 1)))
    assert isinstance(result, Trimmed)
    assert result.start_offset == 1


def test_mirrors_survive_in_a_snapshot_which_who_knows_of_none_does_not_read(machine):
    assert machine.state.version == STATE_VERSION
    make(machine)
    append(machine, batch(0, b"a"))
    machine.apply(commands.encode(commands.DIVERGED, T, Diverged("orders@eu", ONE, 0, "why")))
    again = Machine(machine.snapshot())
    assert again.state == machine.state
    assert again.state.version == MIRRORS_VERSION


def test_streams_are_not_touched_by_mirrors_and_the_other_way_round(machine):
    make(machine)
    machine.apply(commands.encode(commands.CONFIGURE, T, Configure(2, ())))
    assert machine.state.streams["orders"].state.retired
    assert not machine.state.mirrors["orders@eu"].state.retired


# -- the receiving end ------------------------------------------------------------------------------------------------


def frame(
    *batches: bytes, start_offset: int = 0, incarnation: bytes = ONE, columns: bool = True
) -> tuple[link.Mirrored, bytes]:
    data = b"".join(batches)
    tail, compressed, in_columns = pack_batches(data, columns=columns)
    offset = read_header(data).base_offset if data else start_offset
    facts = offset, len(data), compressed, start_offset, 100, -1, in_columns
    return link.Mirrored(1, incarnation, *facts), bytes(tail)


def test_what_repeats_itself_is_compressed_and_what_does_not_passes_as_it_is():
    packed = pack_batches(b"all the same " * 100, columns=True)
    assert (packed.compressed, packed.columns) == (True, False)
    assert len(packed.tail) < 200
    assert pack_batches(b"x", columns=True) == (b"x", False, False)


def test_much_that_cannot_be_compressed_passes_as_it_is_by_its_samples():
    noise, text = os.urandom(300_000), b"all the same " * 23_000
    assert pack_batches(memoryview(noise), columns=True) == (noise, False, False)
    for data in (text, text + noise, noise + text):
        packed = pack_batches(data, columns=True)
        assert packed.compressed
        assert len(packed.tail) < len(data) * 0.6
        assert unpack_batches(link.Mirrored(1, ONE, 0, len(data), True, 0, 1), packed.tail) == data


def lines(begin: int, count: int) -> bytes:
    """A batch of short lines of which no two are the same."""
    taken = [
        event(b"%d GET /orders/%d" % (number * number, number), timestamp_ms=T + number) for number in range(count)
    ]
    return place_batch(encode_batch(taken), begin, 1)


def test_lines_go_in_columns_to_whoever_knows_them_and_take_less():
    batches = lines(2, 500), lines(502, 300)
    (plain, more), (columns, less) = frame(*batches, columns=False), frame(*batches)
    assert (plain.columns, columns.columns) == (False, True)
    assert len(less) < 0.7 * len(more)
    for message, tail in (plain, more), (columns, less):
        assert Pull("eu", ONE, 2).take(message, tail) == (b"".join(batches), 802)


@given(st.data())
def test_columns_that_were_damaged_are_refused_or_make_the_same_batches(data):
    batch = lines(2, 20)
    message, tail = frame(batch)
    assert message.columns
    damaged = bytearray(tail)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] ^= data.draw(st.integers(1, 255))
        else:
            del damaged[at:]
            break
    pull = Pull("eu", ONE, 2)
    try:
        taken, after = pull.take(message, bytes(damaged))
    except BadFrame:
        assert pull.next_offset == 2
    else:
        assert (place_batch(taken, 2, 1), after) == (batch, 22)  # the term is under no checksum


@pytest.mark.parametrize("payload", [b"x", b"x" * 5_000])
def test_batches_that_join_on_are_taken_as_they_are(payload):
    pull = Pull("eu", ONE, 2)
    batches = batch(2, payload, payload), batch(4, payload)
    data, after = pull.take(*frame(*batches))
    assert pull.last_crc == read_header(batches[1]).crc
    assert (bytes(data), after, pull.next_offset) == (b"".join(batches), 5, 5)


def test_what_the_origin_let_go_of_becomes_a_gap():
    pull = Pull("eu", ONE, 2)
    data, after = pull.take(*frame(batch(10, b"x"), start_offset=10))
    gap, rest = split_batches(data)
    assert (read_gap(gap), read_header(gap).next_offset) == ((2, Gap("trimmed", 8, 0, 0, "eu")), 10)
    assert (bytes(rest), after, pull.gaps) == (batch(10, b"x"), 11, 1)


def test_all_of_it_gone_is_a_gap_up_to_where_the_origin_begins():
    pull = Pull("eu", ONE, 2)
    data, after = pull.take(*frame(start_offset=10))
    assert (read_gap(data)[1].events, after) == (8, 10)


def test_a_gap_that_the_origin_has_itself_is_taken_like_any_batch():
    (gap,) = missing(0, 5, "trimmed", "ap")
    pull = Pull("eu", ONE, 0)
    assert bytes(pull.take(*frame(gap, batch(5, b"x")))[0]) == gap + batch(5, b"x")


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


def wrong_frames():
    good, tail = frame(batch(2, b"x" * 500))
    replace = msgspec.structs.replace
    plain = batch(2, b"x" * 500)
    raw = replace(good, compressed=False)
    many = lines(2, 50)
    columns, packed = frame(many)
    apart = BEST.take_apart(many)
    yield "incarnation", replace(good, incarnation=TWO), tail
    yield "inflated", replace(good, raw_bytes=good.raw_bytes + 1), tail
    yield "inflated", good, b"no zstd at all"
    yield "inflated", replace(raw, raw_bytes=3), plain
    yield "size", replace(good, raw_bytes=RAW_BYTES_MAX + 1), tail
    yield "size", replace(columns, raw_bytes=RAW_BYTES_MAX + 1), packed
    yield "inflated", columns, packed[:-1]
    yield "inflated", columns, b"no zstd at all"
    yield "inflated", replace(columns, columns=False), packed
    yield "columns", replace(columns, raw_bytes=columns.raw_bytes + 1), packed
    yield "columns", replace(columns, raw_bytes=10), packed
    yield "columns", replace(columns, compressed=False), packed
    yield "columns", replace(columns, compressed=False), apart[:-1]
    yield "columns", replace(good, columns=True), tail
    yield "crc", replace(columns, compressed=False), flipped(apart)
    yield "crc", raw, flipped(plain)
    yield "crc", replace(raw, raw_bytes=len(plain) - 1), plain[:-1]
    yield "offset", *frame(batch(3, b"x"))
    yield "offset", *frame(batch(1, b"x"))
    yield "offset", *frame(batch(2, b"x"), batch(4, b"y"))


@pytest.mark.parametrize(("reason", "message", "tail"), list(wrong_frames()))
def test_a_wrong_frame_is_named_and_takes_nothing(reason, message, tail):
    pull = Pull("eu", ONE, 2)
    with pytest.raises(BadFrame) as caught:
        pull.take(message, tail)
    assert (caught.value.reason, pull.next_offset) == (reason, 2)


# -- the origin's end -------------------------------------------------------------------------------------------------


def test_a_feed_waits_for_what_is_durable_at_the_other_end():
    feed = Feed("us", 0, 100)
    feed.sent(3, 60)
    assert feed.has_room
    feed.sent(6, 60)
    assert not feed.has_room
    feed.durable_through(2)
    assert not feed.has_room
    feed.durable_through(3)
    assert (feed.has_room, feed.durable, feed.under_way_bytes) == (True, 3, 60)
    with pytest.raises(FrameError, match="durable through 9, sent was up to 6"):
        feed.durable_through(9)


def test_only_a_leader_says_that_a_mirror_goes_beyond_the_log():
    check_end(5, 5, leads=True)
    for leads, name in (True, "DIVERGED"), (False, "NOT_CAUGHT_UP"):
        with pytest.raises(SubscriptionRefused) as caught:
            check_end(6, 5, leads=leads)
        assert caught.value.name == name


def test_another_last_batch_is_told_with_both_digests_and_its_place_in_the_log_does_not_matter():
    ours, theirs = batch(4, b"x"), batch(4, b"y")
    check_last(4, digest_of(ours), place_batch(ours, 9, 3))
    with pytest.raises(SubscriptionRefused) as caught:
        check_last(4, digest_of(theirs), ours)
    assert digest_of(ours).hex() in str(caught.value)
    assert digest_of(theirs).hex() in str(caught.value)


def test_a_bucket_lets_pass_its_rate_and_a_tenth_of_a_second_at_once():
    bucket = TokenBucket(1_000)
    assert bucket.wait_s(100, 50.0) == 0
    waits = [bucket.wait_s(100, 50.0) for _ in range(5)]
    assert waits == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert bucket.wait_s(100, 60.0) == 0
    assert TokenBucket(0).wait_s(10**9, 0.0) == 0


def test_a_rate_that_changes_forgives_what_is_owed():
    bucket = TokenBucket(100)
    assert [bucket.wait_s(1_000, 50.0) for _ in range(2)] == pytest.approx([0, 9.9])
    bucket.change(1_000)
    assert [bucket.wait_s(1_000, 50.0) for _ in range(2)] == pytest.approx([0, 0.9])
    bucket.change(0)
    assert bucket.wait_s(10**9, 50.0) == 0


# -- retention --------------------------------------------------------------------------------------------------------

SEGMENTS = [SegmentFacts(n * 10, n * 10 + 10, 100, T + n) for n in range(4)]


@pytest.mark.parametrize(
    ("held_through", "hold_age_ms", "hold_bytes", "to_offset"),
    [
        (None, 10**9, 10**9, 30),  # no other zone
        (40, 10**9, 10**9, 30),
        (20, 10**9, 10**9, 10),  # its last batch stays
        (15, 10**9, 10**9, 10),
        (0, 10**9, 10**9, None),
        (0, 0, 10**9, 30),  # too old to be held
        (0, 10**9, 250, 20),  # ... or too much
    ],
)
def test_retention_keeps_what_a_zone_lacks_within_bounds(held_through, hold_age_ms, hold_bytes, to_offset):
    stream = state(retention_age_ms=1, hold_age_ms=hold_age_ms, hold_bytes=hold_bytes)
    trim = trims(stream, 0, 0, SEGMENTS, T + 1_000, held_through)
    assert (trim.to_offset if trim else None) == to_offset
