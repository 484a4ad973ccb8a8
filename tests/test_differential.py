"""Byte for byte: the same script over a raw socket to the real nats-server and to our client port.

What is made equal before comparing: INFO (other ids), the order in which several subscriptions get one message, which
of them gets the 503, and 'Invalid Publish Subject', which nats-server says twice when a read ends between a line and
its payload.

Known differences, left out of the scripts: control characters inside subjects (refused here), sizes with leading zeros
(rewritten here), CONNECT behind SUB (whether nats-server forgets the subscription depends on its caches), replies under
nats-server's internal prefixes, MSG verbs from clients.
"""

import re
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gateway import serve_in_thread
from support.natsraw import nats_server
from support.scripts import (
    AUTHORIZED_SCRIPTS,
    BARE,
    CONFIGURATION,
    CONNECT,
    PEDANTIC,
    SCRIPTS,
    SILENT,
    USERS,
    VERBOSE,
)

WAIT_S_MAX = 60.0
INVALID_PUBLISH = b"-ERR 'Invalid Publish Subject'\r\n"


class Pair(NamedTuple):
    """The ports of nats-server and of ours."""

    theirs: int
    ours: int


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with nats_server() as theirs, serve_in_thread() as ours:
        yield Pair(theirs, ours)


@pytest.fixture(scope="module")
def authorized_pair() -> Iterator[Pair]:
    with nats_server(CONFIGURATION) as theirs, serve_in_thread(users=USERS, max_subscriptions=5) as ours:
        yield Pair(theirs, ours)


@pytest.mark.parametrize("name", SCRIPTS)
def test_answers_as_nats_server_does(pair: Pair, name: str) -> None:
    assert_same(pair, SCRIPTS[name])


def test_limits_tokens_of_subscriptions_as_nats_server_does() -> None:
    subjects = (b"a.b.c", b"a.b.c.d", b"a.b.*.>", b"a.>", b"a...", b"\xff.b.c.d", b"a.b.c", b"d.e.f")
    subscribe = b"".join(b"SUB %b %d\r\n" % (subject, sid) for sid, subject in enumerate(subjects))
    with (
        nats_server("max_sub_tokens: 3\nmax_subscriptions: 4") as theirs,
        serve_in_thread(max_subscription_tokens=3, max_subscriptions=4) as ours,
    ):
        pair = Pair(theirs, ours)
        for connect in (CONNECT, VERBOSE, PEDANTIC):
            assert_same(pair, (connect + subscribe + b"PUB a.b.c.d 0\r\n\r\nPING\r\n",))
        answer = talk(ours, (CONNECT + subscribe,))
    assert b"-ERR 'Permissions Violation for Subscription to \"a.b.c.d\", too many tokens'\r\n" in answer


@pytest.mark.parametrize("name", AUTHORIZED_SCRIPTS)
def test_authorizes_as_nats_server_does(authorized_pair: Pair, name: str) -> None:
    assert_same(authorized_pair, AUTHORIZED_SCRIPTS[name])


def test_first_info_has_the_fields_that_nats_server_sends(pair: Pair) -> None:
    theirs, ours = info_names(pair.theirs), info_names(pair.ours)
    assert theirs - ours == {b"api_lvl", b"xkey"}  # JetStream's and a cluster's
    assert ours - theirs == set()


# -- generated scripts ------------------------------------------------------------------------------------------------

SUBJECTS = (b"a", b"a.b", b"a.*", b"a.>", b"*", b">", b"a..b", b".a", b"b.c.d", b"*.b", b"a.b.c", b"\xc3\xa9", b"a>")
blanks = st.sampled_from([b" ", b" ", b" ", b"\t", b"  ", b" \t "])
line_end = st.sampled_from([b"\r\n", b"\r\n", b"\n"])
subject = st.sampled_from(SUBJECTS)
sid = st.sampled_from([b"1", b"2", b"3", b"x-y"])
flag = st.sampled_from([b"true", b"false"])


@st.composite
def connect_line(draw: st.DrawFn) -> bytes:
    names = draw(st.sets(st.sampled_from([b"verbose", b"pedantic", b"echo", b"headers", b"no_responders"])))
    fields = [b'"%b":%b' % (name, draw(flag)) for name in sorted(names)]
    return b"CONNECT {%b}\r\n" % b",".join(fields)


@st.composite
def publish_line(draw: st.DrawFn) -> bytes:
    verb = draw(st.sampled_from([b"PUB", b"PUB", b"pub", b"HPUB"]))
    block = draw(st.sampled_from([b"", b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nA: b\r\n\r\n"])) if verb == b"HPUB" else b""
    payload = b"%d" % draw(st.integers(0, 10**9)) + draw(st.sampled_from([b"", b"PUB a 0\r\n\r\n", b"\r\n"]))
    words = [verb, draw(subject), *draw(st.sampled_from([[], [], [b"a"], [b"reply"]]))]
    words += [b"%d" % len(block)] if verb == b"HPUB" else []
    words += [b"%d" % (len(block) + len(payload))]
    return draw(blanks).join(words) + draw(line_end) + block + payload + b"\r\n"


@st.composite
def subscribe_line(draw: st.DrawFn) -> bytes:
    number = draw(sid)
    words = [b"SUB", draw(subject), *draw(st.sampled_from([[], [b"q" + number]])), number]
    return draw(blanks).join(words) + draw(line_end)


@st.composite
def unsubscribe_line(draw: st.DrawFn) -> bytes:
    words = [b"UNSUB", draw(sid), *draw(st.sampled_from([[], [b"1"], [b"2"], [b"0"]]))]
    return draw(blanks).join(words) + draw(line_end)


malformed = st.sampled_from(
    [
        b"PUB a\r\n",
        b"PUB a x\r\n",
        b"PUB a 3\r\nab\r\n",
        b"SUB a\r\n",
        b"UNSUB\r\n",
        b"HELLO\r\n",
        b"\r\n",
        b"HPUB a 9 3\r\n",
    ]
)
line = st.one_of(
    publish_line(), publish_line(), subscribe_line(), subscribe_line(), unsubscribe_line(),
    st.sampled_from([b"PING\r\n", b"ping\n", b"PONG\r\n", b"+OK\r\n"]),
)  # fmt: skip


@st.composite
def scripts(draw: st.DrawFn) -> tuple[bytes, ...]:
    """Lines, perhaps a bad one among them, cut anywhere, perhaps ended early."""
    lines = draw(st.lists(line, min_size=1, max_size=12))
    if draw(st.integers(0, 3)) == 0:
        lines.insert(draw(st.integers(0, len(lines))), draw(malformed))
    connects = draw(st.sampled_from([CONNECT, VERBOSE, PEDANTIC, BARE, SILENT, b""])) + draw(
        st.just(b"") | connect_line()
    )
    text = connects + b"".join(lines)
    cuts = sorted(draw(st.sets(st.integers(1, len(text)), max_size=4)))
    if draw(st.integers(0, 4)) == 0 and cuts:
        text = text[: cuts[-1]]
    return tuple(text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=scripts())
def test_answers_generated_scripts_as_nats_server_does(pair: Pair, script: tuple[bytes, ...]) -> None:
    assert_same(pair, script)


# -- comparing --------------------------------------------------------------------------------------------------------


def assert_same(pair: Pair, script: tuple[bytes, ...]) -> None:
    assert normalised(talk(pair.ours, script)) == normalised(talk(pair.theirs, script))


def talk(port: int, script: tuple[bytes, ...]) -> bytes:
    """All that the server sends after its first INFO, until it closes because we have nothing more to say."""
    with socket.create_connection(("127.0.0.1", port), WAIT_S_MAX) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = bytearray()
        while b"\n" not in received:
            received += connection.recv(65_536)
        try:
            for chunk in script:
                connection.sendall(chunk)
                time.sleep(0.0005)  # so that most chunks are reads of their own
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has closed before it heard all
        _read_to_end(connection, received)
    return bytes(received).partition(b"\n")[2]


def _read_to_end(connection: socket.socket, received: bytearray) -> None:
    try:
        while data := connection.recv(65_536):
            received += data
    except ConnectionError:
        pass  # closed with something of ours unread


def normalised(answer: bytes) -> list[bytes]:
    """The frames of `answer`: those of one message in alphabetical order, INFO without what differs."""
    answer = re.sub(rb"INFO \{.*?\} \r\n", b"INFO\r\n", answer)
    answer = re.sub(rb"(HMSG \S+) \S+ (\d+ \d+\r\nNATS/1.0 503)", rb"\1 sid \2", answer)
    frames = list(_frames(answer))
    ordered: list[bytes] = []
    run: list[bytes] = []
    for frame in frames:
        if run and _content(frame) != _content(run[0]):
            ordered += sorted(run)
            run = []
        if frame != INVALID_PUBLISH or not run:
            run.append(frame)
    return ordered + sorted(run)


def _content(frame: bytes) -> bytes:
    """What the frames of one message have in common: subject and payload; for other frames, themselves."""
    words = frame.split(b"\r\n", 1)[0].split(b" ")
    if words[0] not in (b"MSG", b"HMSG"):
        return frame
    payload = frame.split(b"\r\n", 1)[1]
    return words[1] + payload[-2 - _payload_bytes(words) :]


def _payload_bytes(words: list[bytes]) -> int:
    return int(words[-1]) - (int(words[-2]) if words[0] == b"HMSG" else 0)


def _frames(answer: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(answer):
        end = answer.find(b"\r\n", position) + 2
        if end < 2:
            end = len(answer)
        elif answer.startswith((b"MSG ", b"HMSG "), position):
            end += int(answer[position:end].split()[-1]) + 2
        yield answer[position:end]
        position = end


def info_names(port: int) -> set[bytes]:
    with socket.create_connection(("127.0.0.1", port), WAIT_S_MAX) as connection:
        return set(re.findall(rb'"(\w+)":', connection.recv(65_536)))
