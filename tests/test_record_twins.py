"""The compiled record batches do what their reference does: the same results, the same errors word for word.

`FUZZ=20` in the environment makes it twenty times as many; `make fuzz` runs it on a build with sanitizers.
"""

import os
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import fastcrc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import events
from support.corpus import some_lines

from protocol import engine, history
from protocol.engine import Engine
from protocol.errors import FrameError
from protocol.records import Event, place_batch
from protocol.replay import OFFSET_MAX, Window

pytestmark = pytest.mark.skipif(engine.COMPILED is None, reason="the compiled record batches were not built")

FUZZ = int(os.environ.get("FUZZ", "1"))
NUMBERS = (
    b"\x00",
    b"\x01",
    b"\x03",
    b"\x7e",
    b"\x7f",
    b"\x80\x00",
    b"\xff" * 9 + b"\x01",
    b"\xff" * 9 + b"\x02",
    b"\xff" * 10,
)
"""Varints that damage puts where it likes: 0, -1, -2, 63, -64, a long 0, the least of 64 bits, and two too long."""
windows = st.builds(
    Window,
    offset=st.integers(0, 12),
    end_offset=st.integers(0, 12) | st.just(OFFSET_MAX),
    records_max=st.integers(0, 9),
    bytes_max=st.integers(0, 3_000),
    shows_one=st.booleans(),
)


@cache
def real_lines() -> list[bytes]:
    return some_lines(2_000)


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except (FrameError, ValueError) as error:
        return type(error), str(error)


def same(call: Callable[[Engine], Any]) -> Any:
    """What `call` comes to, on both the same."""
    assert engine.COMPILED is not None
    reference, compiled = outcome(call, engine.REFERENCE), outcome(call, engine.COMPILED)
    assert compiled == reference
    return reference


def read_and_show(batch: bytes, window: Window, headed: bool, hides: bytes) -> None:
    opening, lines = (b"HMSG in 7 " if headed else b"MSG in 7 "), history.log_lines("orders", "eu", 0)
    same(lambda codec: list(codec.read_records(batch)))
    same(lambda codec: codec.frames(batch, window, opening, headed, lines, None))
    same(
        lambda codec: codec.frames(memoryview(batch), window, opening, headed, lines, lambda subject: subject != hides)
    )


def take_apart_and_put_together(batches: bytes, damage: Callable[[bytes], bytes]) -> None:
    """And what becomes of columns that were damaged on their way."""
    apart = same(lambda codec: codec.take_apart(batches))
    if apart is not None:
        assert same(lambda codec: codec.put_together(apart, len(batches))) == batches
        hurt = damage(apart)
        same(lambda codec: codec.put_together(hurt, len(batches)))
        same(lambda codec: codec.put_together(apart, len(batches) - 1))


def sealed(batch: bytes) -> bytes:
    """With a size and a CRC that are right, so that nothing but records can be wrong."""
    batch = batch[:8] + (len(batch) - 12).to_bytes(4, "big") + batch[12:]
    return batch[:17] + fastcrc.crc32.iscsi(batch[21:]).to_bytes(4, "big") + batch[21:]


def damaged(batch: bytes, pick: Callable[[int], int]) -> bytes:
    """One piece of it changed: a byte, a run taken out or doubled, or a number put in its place."""
    at, size = pick(len(batch) + 1), pick(4)
    match pick(5):
        case 0:
            return batch[:at] + bytes((pick(256),)) + batch[at + 1 :]
        case 1:
            return batch[:at] + batch[at + size :]
        case 2:
            return batch[:at] + batch[at : at + size] + batch[at:]
        case 3:
            return batch[:at] + NUMBERS[pick(len(NUMBERS))] + batch[at + size :]
        case _:
            return batch[:at]


def damaged_records(batch: bytes, pick: Callable[[int], int]) -> bytes:
    return sealed(batch[:61] + damaged(batch[61:], pick)) if len(batch) >= 61 else batch


@settings(max_examples=50 * FUZZ)
@given(st.lists(events, max_size=8), windows, st.booleans(), st.integers(0, 9))
def test_what_is_encoded_and_shown(taken: list[Event], window: Window, headed: bool, base_offset: int) -> None:
    batch = same(lambda codec: codec.encode_batch(taken))
    if taken:
        read_and_show(place_batch(batch, base_offset, 1), window, headed, taken[0].subject)


@settings(max_examples=50 * FUZZ)
@given(st.lists(events, min_size=1, max_size=4), windows, st.booleans(), st.data())
def test_damaged_batches(taken: list[Event], window: Window, headed: bool, data: st.DataObject) -> None:
    batch = engine.REFERENCE.encode_batch(taken)
    for _ in range(data.draw(st.integers(1, 3))):
        damage = damaged_records if data.draw(st.booleans()) else damaged
        batch = damage(batch, lambda count: data.draw(st.integers(0, count - 1)))
    read_and_show(batch, window, headed, taken[0].subject)


@pytest.mark.parametrize("seed", range(40 * FUZZ))
def test_batches_of_real_lines_sound_and_damaged(seed: int) -> None:
    """Header blocks, keys and payloads of the lines of real files, among them odd ones."""
    chance = random.Random(seed)
    lines = real_lines()
    taken = [_event(lines, chance) for _ in range(chance.randrange(1, 20))]
    batch = same(lambda codec: codec.encode_batch(taken))
    window = Window(chance.randrange(4), chance.choice((OFFSET_MAX, 10)), 30, chance.choice((2_000, 1_000_000)), True)
    for _ in range(8):
        read_and_show(batch, window, chance.random() < 0.8, taken[0].subject)
        batch = chance.choice((damaged, damaged_records, damaged_records))(batch, chance.randrange)


@pytest.mark.parametrize("seed", range(40 * FUZZ))
def test_columns_of_real_lines_sound_and_damaged(seed: int) -> None:
    chance = random.Random(seed)
    lines = real_lines()
    taken = [_event(lines, chance) for _ in range(chance.randrange(16, 40))]
    begin_ms = 0 if chance.random() < 0.5 else 1_700_000_000_000
    taken = [event._replace(timestamp_ms=begin_ms + number // 3) for number, event in enumerate(taken)]
    sound = engine.REFERENCE.encode_batch(taken)
    batches = sound * chance.randrange(1, 4)
    for _ in range(8):
        take_apart_and_put_together(batches, lambda columns: damaged(columns, chance.randrange))
        batches = chance.choice((damaged, damaged_records))(sound, chance.randrange) + sound


def _event(lines: list[bytes], chance: random.Random) -> Event:
    def line() -> bytes:
        return chance.choice((lines[chance.randrange(8)], chance.choice(lines)))

    headers = b"".join(
        chance.choice((b"%b: %b\r\n", b"%b:%b\r\n", b"Log-%b: %b\r\n", b"A%.0b: %b\r\n")) % (line(), line())
        for _ in range(chance.randrange(4))
    )
    block = b"NATS/1.0\r\n%b\r\n" % headers if headers else chance.choice((b"", b"", line()))
    return Event(chance.choice((b"a.b", b"a.c", line())), line(), chance.randrange(2**41), block, line())
