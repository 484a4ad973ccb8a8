"""The compiled forwarder does what its reference does: the same scripts on both, the same state after every step.

`FUZZ=20` in the environment makes it twenty times as many scripts; `make fuzz` runs them on a build with sanitizers.
"""

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gateway import ENGINES
from support.scripts import AUTHORIZED_SCRIPTS, BARE, CONNECT, PEDANTIC, SCRIPTS, SILENT, VERBOSE
from support.traffic import SETTINGS, Step, Traffic
from support.twins import Side, run_on_both

from gateway.core import engine

pytestmark = pytest.mark.skipif(engine.COMPILED is None, reason="the compiled forwarder was not built")

FUZZ = int(os.environ.get("FUZZ", "1"))
STEPS = 60
SEEDS_PER_TEST = 100


@pytest.mark.parametrize("block", range(6 * FUZZ))
def test_random_scripts(block: int) -> None:
    for seed in range(block * SEEDS_PER_TEST, (block + 1) * SEEDS_PER_TEST):
        traffic = Traffic(random.Random(seed).randrange)
        steps = [*traffic.opening(), *(traffic.step() for _ in range(STEPS))]
        try:
            run_on_both(traffic.setting, steps)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


@st.composite
def scripts(draw: st.DrawFn) -> tuple[str, list[Step]]:
    traffic = Traffic(lambda count: draw(st.integers(0, count - 1)))
    return traffic.setting, [*traffic.opening(), *(traffic.step() for _ in range(draw(st.integers(0, 12))))]


@settings(max_examples=60 * FUZZ)
@given(script=scripts())
def test_generated_scripts(script: tuple[str, list[Step]]) -> None:
    """Fewer than the random ones, and not as long: but what fails here is made small before it is shown."""
    run_on_both(*script)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_of_the_differential_test(name: str) -> None:
    run_on_both("nothing set", [("connect",), *(("send", 0, chunk) for chunk in SCRIPTS[name])])


@pytest.mark.parametrize("name", AUTHORIZED_SCRIPTS)
def test_scripts_of_the_differential_test_with_users(name: str) -> None:
    sent: list[Step] = [("send", 0, chunk) for chunk in AUTHORIZED_SCRIPTS[name]]
    run_on_both("users", [("connect",), *sent, ("verified", 0, True)])


# -- every split of every frame ---------------------------------------------------------------------------------------

FRAMES = (
    b"PUB a 0\r\n\r\n", b"PUB a 2\r\nhi\r\n", b"PUB a r 2\r\nhi\r\n", b"PUB a 10\r\n0123456789\r\n",
    b"PUB a.b _INBOX.1 0\r\n\r\n",
    b"PUB nobody r 1\r\nx\r\n", b"PUB a 02\r\nhi\r\n", b"PUB  a 2\r\nhi\r\n", b"PUB a\t2\r\nhi\r\n",
    b"PUB a 2 \r\nhi\r\n",
    b"PUB a 2\nhi\r\n", b"pub a 2\r\nhi\r\n", b"PUB a 2\r\nhixx", b"PUB a 2\r\nhi\rx", b"PUB a -1\r\n",
    b"PUB a b c 4\r\n",
    b"PUB a..b 2\r\nhi\r\n", b"PUB a\x00b 2\r\nhi\r\n", b"PUB a\xff 2\r\nhi\r\n", b"PUB \n\r\n", b"PUB a 2\r\n\r\n\r\n",
    b"PUB kept r 2\r\nhi\r\n", b"PUB $SYS.x r 2\r\nhi\r\n", b"PUB act.pause 0\r\n\r\nPUB a 1\r\n1\r\n",
    b"PUB act.raise 0\r\n\r\nPUB a 1\r\n1\r\n", b"PUB act.close 0\r\n\r\nPUB a 1\r\n1\r\n",
    b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", b"HPUB a r 12 12\r\nNATS/1.0\r\n\r\n\r\n", b"HPUB a r 0 2\r\nhi\r\n",
    b"HPUB a 5 4\r\nabcd\r\n", b"HPUB a 3 5\r\nabcde\r\n", b"hpub a 012 0014\r\nNATS/1.0\r\n\r\nhi\r\n",
    b"SUB b 7\r\nPUB b 0\r\n\r\n", b"SUB b q 7\r\nPUB b 0\r\n\r\n", b"SUB a.* q 8\r\n", b"sub \t b  q\t7 \r\n",
    b"SUB b\rq 7\r\n",
    b"SUB a..b 7\r\n", b"SUB >.a 7\r\n", b"SUB a>.b 7\r\n", b"SUB a 1\r\n", b"SUB a b c d\r\n", b"SUB a\r\n",
    b"SUB a\x01 7\r\n",
    b"UNSUB 1\r\nPUB a 0\r\n\r\n", b"UNSUB 1 2\r\nPUB a 0\r\n\r\nPUB a 0\r\n\r\nPUB a 0\r\n\r\n", b"UNSUB 9\r\n",
    b"UNSUB 1 x\r\n",
    b"UNSUB \r\nPING\r\n", b"UNSUB 1 2 3\r\n", b"PING\r\n", b"ping\n", b"PINGxyz\r\nPONG\r\n", b"PONG\r\n", b"+OK\r\n",
    b"INFO {}\r\n",
    b"INFO x\r\n", b"-ERR 'x'\r\n", b"HELLO\r\n", b"\r\n", b" PING\r\n", VERBOSE, PEDANTIC, b"CONNECT {\r\n",
    b"CONNECT\r\n{}\r\n",
)  # fmt: skip
PEER_FRAMES = (
    b"RMSG $G a 0\r\n\r\n", b"RMSG $G a 2\r\nhi\r\n", b"RMSG $G a r 2\r\nhi\r\n", b"RMSG $G a | q 2\r\nhi\r\n",
    b"RMSG $G a + q r 2\r\nhi\r\n", b"RMSG $G a + nobody other q _INBOX.1 2\r\nhi\r\n", b"RMSG $G a + + 0\r\n\r\n",
    b"RMSG $G a | nobody 2\r\nhi\r\n", b"RMSG $G a + 0\r\n\r\n", b"RMSG $G a | 0\r\n\r\n",
    b"RMSG $G a | " + b"n " * 140 + b"q 2\r\nhi\r\n", b"RMSG $G a |  q 2\r\nhi\r\n", b"RMSG $G a b c 2\r\nhi\r\n",
    b"HRMSG $G a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", b"HRMSG $G a r 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    b"HRMSG $G a | q 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", b"HRMSG $G a + other q r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
    b"HRMSG $G a r 0 2\r\nhi\r\n", b"HRMSG $G a 3 2\r\nhi\r\n", b"HRMSG $G a 2\r\nhi\r\n",
    b"RMSG NEW a 2\r\nhi\r\nRMSG $G a 2\r\nhi\r\n", b"rmsg $G a 02\r\nhi\r\n",
    b"RMSG $G a.b 2\r\nhi\r\nRMSG $G a 2\r\nhi\r\nRMSG $G a 2\r\nhi\r\n", b"RMSG $G a..b 2\r\nhi\r\n",
    b"RMSG $G 2\r\nhi\r\n", b"RMSG $G a 2 \r\nhi\r\n", b"RMSG $G a 2\r\nhixx", b"RMSG $G a -2\r\n", b"RMSG \r\n",
    b"RMSG $G a 1000000000\r\n", b"RMSG $G a 99999999\r\n", b"RMSG $G " + b"a" * 66_000 + b" 0\r\n\r\n",
    b"RS+ $G a\r\nRMSG $G a 2\r\nhi\r\n", b"RS+ $G a q 3\r\nRS+ $G a q 4\r\nRS- $G a q\r\n", b"RS- $G a\r\n",
    b"RS+ $G a q\r\n", b"RS+ $G a q 0\r\n", b"RS- $G a q 2\r\n", b"RS+ $G a b c d\r\n", b"PING\r\n", b"PUB a 0\r\n",
)  # fmt: skip
CONNECTS = {
    "plain": CONNECT,
    "verbose": VERBOSE,
    "pedantic": PEDANTIC,
    "without echo": SILENT,
    "bare": BARE,
    "none": b"",
}
AROUND = b"SUB a 1\r\nSUB a.* q 2\r\nSUB > 3\r\n"
LONG = 400  # B; what is longer is not cut everywhere
BEHIND = b"PUB a 1\r\n!\r\nPING\r\n"


@pytest.mark.parametrize("connect", CONNECTS)
def test_every_split_of_every_frame(connect: str) -> None:
    before: list[Step] = [
        ("connect",),
        ("connect",),
        ("send", 0, CONNECTS[connect] + AROUND),
        ("send", 1, CONNECT + AROUND),
    ]
    for frame in FRAMES:
        for parts in _splits(frame) if connect == "plain" else _cuts(frame):
            run_on_both(
                "nothing set", [*before, *(("send", 0, part) for part in parts), ("send", 0, BEHIND), ("resume", 0)]
            )


@pytest.mark.parametrize("near", [True, False])
def test_every_split_of_every_frame_of_a_peer(near: bool) -> None:
    before: list[Step] = [
        ("connect",),
        ("connect_peer", "first", near),
        ("connect_peer", "second", near),
        ("send", 0, CONNECT + AROUND + b"SUB a other 4\r\nSUB a q 5\r\n"),
        ("send", 2, b"RS+ $G a q 2\r\nRS+ $G *\r\n"),
    ]
    behind: list[Step] = [("send", 1, b"RMSG $G a 1\r\n!\r\nPING\r\n"), ("send", 0, b"PUB a 0\r\n\r\n" * 5)]
    for frame in PEER_FRAMES:
        for parts in _splits(frame) if len(frame) < LONG else ([frame], [frame[:LONG], frame[LONG:]]):
            run_on_both("peers", [*before, *(("send", 1, part) for part in parts), *behind])


@pytest.mark.parametrize("each", ENGINES, ids=lambda each: each.name)
def test_how_it_was_cut_never_matters(each: engine.Engine) -> None:
    for frame in FRAMES:
        whole = _outputs(each, [frame])
        for parts in _splits(frame):
            assert _outputs(each, parts) == whole, (frame, parts)


def _splits(frame: bytes) -> Iterator[list[bytes]]:
    """In two everywhere, around every single byte, and byte by byte."""
    yield from _cuts(frame)
    for at in range(len(frame)):
        yield [frame[:at], frame[at : at + 1], frame[at + 1 :]]
    yield [frame[at : at + 1] for at in range(len(frame))]


def _cuts(frame: bytes) -> Iterator[list[bytes]]:
    return ([frame[:at], frame[at:]] for at in range(len(frame)))


def _outputs(each: engine.Engine, parts: list[bytes]) -> list[object]:
    side = Side(each)
    for number in range(2):
        side.connect()
        side.send(number, CONNECT + AROUND)
    side.drain()
    for part in parts:
        side.send(0, part)
    side.resume(0)
    outputs = [session.take() for session in side.sessions]
    side.end()
    return [*outputs, side.log]


@pytest.mark.parametrize("setting", SETTINGS)
def test_many_messages_in_one_read(setting: str) -> None:
    traffic = Traffic(random.Random(setting).randrange)
    traffic.setting = setting
    steps = [
        *traffic.opening(),
        *(("send", number, b"".join(traffic.frame() for _ in range(300))) for number in (0, 1, 2)),
    ]
    run_on_both(traffic.setting, steps)
