"""The parser of what clients send, and the lines that a server sends.

Whether they are nats-server's is shown in tests/test_differential.py.
"""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripts import SCRIPTS

from protocol import nats
from protocol.errors import FrameError
from protocol.nats import Complaint, Connect, Failure, Ping, Pong, Publish, Subscribe, Unsubscribe


def parse(*chunks: bytes, **settings: bool | int) -> list[nats.Event]:
    parser = nats.ClientParser()
    parser.headers, parser.pedantic = True, False
    for name, value in settings.items():
        setattr(parser, name, value)
    events = []
    for chunk in chunks:
        parser.receive(chunk)
        while (event := parser.next_event()) is not None:
            events.append(event)
    return events


def test_every_verb_becomes_its_event() -> None:
    text = (
        b'CONNECT {"a":1}\r\nPING\r\nPONG\r\n+OK\r\nSUB a.* 1\r\nSUB b workers s2\r\nUNSUB 1\r\nUNSUB 1 5\r\n'
        b"PUB a 2\r\nhi\r\nPUB a r 0\r\n\r\nHPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\nHPUB a r 3 3\r\nabc\r\n"
    )
    assert parse(text) == [
        Connect(b'{"a":1}'),
        Ping(),
        Pong(),
        Subscribe(b"a.*", b"", b"1"),
        Subscribe(b"b", b"workers", b"s2"),
        Unsubscribe(b"1", -1),
        Unsubscribe(b"1", 5),
        Publish(b"a", b"", b"", b"hi"),
        Publish(b"a", b"r", b"", b""),
        Publish(b"a", b"", b"NATS/1.0\r\n\r\n", b"hi"),
        Publish(b"a", b"r", b"abc", b""),
    ]


@given(
    text=st.lists(st.sampled_from([chunk for script in SCRIPTS.values() for chunk in script]), max_size=3).map(
        b"".join
    ),
    cuts=st.lists(st.integers(0, 12_000), max_size=12),
)
def test_how_bytes_are_cut_makes_no_difference(text: bytes, cuts: list[int]) -> None:
    positions = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[start:end] for start, end in itertools.pairwise(positions)]
    assert without_detail(parse(*chunks)) == without_detail(parse(text))


@pytest.mark.parametrize("name", SCRIPTS)
def test_byte_by_byte_makes_no_difference(name: str) -> None:
    text = b"".join(SCRIPTS[name])
    assert without_detail(parse(*(bytes([byte]) for byte in text))) == without_detail(parse(text))


def without_detail(events: list[nats.Event]) -> list[nats.Event]:
    """What a detail quotes depends on how much has come, and only our log shows it."""
    return [Failure(event.text, "") if isinstance(event, Failure) else event for event in events]


@given(st.binary(max_size=300))
def test_any_bytes_give_events_and_no_exception(junk: bytes) -> None:
    for event in parse(junk, b"\r\nPING\r\n"):
        assert isinstance(event, tuple)


@pytest.mark.parametrize("character", [chr(code) for code in range(32) if chr(code) not in "\t\n\r"])
@pytest.mark.parametrize("line", ["PUB a{}b 2", "PUB a r{}r 2", "HPUB a{}b 0 2", "HPUB a{} r 0 2"])
def test_control_characters_in_a_publish_are_refused_and_the_payload_skipped(line: str, character: str) -> None:
    events = parse(line.format(character).encode() + b"\r\nhi\r\nPING\r\n")
    assert events == [Complaint("Invalid Publish Subject"), Ping()]


@pytest.mark.parametrize("line", [b"PUB \r a 2", b"PUB a\rb 2", b"PUB \n a 2"])
def test_line_ends_in_a_publish_are_refused(line: bytes) -> None:
    assert parse(line + b"\r\nhi\r\nPING\r\n") == [Complaint("Invalid Publish Subject"), Ping()]


@pytest.mark.parametrize("line", [b"SUB a\0b 1", b"SUB a\x0bb 1", b"SUB a q\x01 1", b"SUB a q 1\x1f"])
def test_control_characters_in_a_subscription_are_refused(line: bytes) -> None:
    assert parse(line + b"\r\nPING\r\n") == [Complaint("Invalid Subject"), Ping()]


def test_after_a_failure_nothing_more_is_said() -> None:
    events = parse(b"NONSENSE\r\nPING\r\n", b"PING\r\n")
    assert [type(event) for event in events] == [Failure]


def test_only_connect_is_taken_while_it_is_expected() -> None:
    assert parse(b"PING\r\n", expect_connect=True)[0][0] == "Authorization Violation"
    assert parse(b"connect {}\r\n", expect_connect=True) == [Connect(b"{}")]


def test_headers_are_refused_without_a_word_until_they_are_agreed() -> None:
    (event,) = parse(b"HPUB a 1 1\r\nx\r\n", headers=False)
    assert event == Failure(None, "message headers not supported")


def test_limits_hold_exactly() -> None:
    assert parse(b"PUB a 3\r\nabc\r\n", max_payload_bytes=3) == [Publish(b"a", b"", b"", b"abc")]
    assert parse(b"PUB a 4\r\n", max_payload_bytes=3)[0][0] == "Maximum Payload Violation"
    assert parse(b"SUB abc 1\r\n", max_control_line_bytes=5) == [Subscribe(b"abc", b"", b"1")]
    assert parse(b"SUB abcd 1", max_control_line_bytes=5)[0][0] == "maximum control line exceeded"


def test_what_is_buffered_is_bounded_whatever_comes() -> None:
    parser = nats.ClientParser(max_control_line_bytes=100)
    for chunk in (b"PUB" + b" " * 5000, b"\t" * 5000, b"a"):
        parser.receive(chunk)
        assert parser.next_event() is None
        assert parser.buffered_bytes < 100
    parser.receive(b" 0\r\n\r\nPING" + b"x" * 5000)
    while parser.next_event() is not None:
        pass
    assert parser.buffered_bytes == 0


def test_what_comes_behind_an_event_waits_until_it_is_asked_for() -> None:
    parser = nats.ClientParser()
    parser.receive(b"PING\r\nPO")
    assert parser.next_event() == Ping()
    parser.receive(b"NG\r\nPING\r\n")
    assert [parser.next_event(), parser.next_event(), parser.next_event()] == [Pong(), Ping(), None]


# -- CONNECT ----------------------------------------------------------------------------------------------------------


def test_connect_options_add_up() -> None:
    first = nats.read_connect(b'{"verbose":false,"USER":"u","pass":"p","unknown":[1]}', nats.ConnectOptions())
    second = nats.read_connect(b'{"pass":null,"auth_token":"t","protocol":1}', first)
    assert (second.verbose, second.pedantic, second.user, second.password) == (False, True, "u", "p")
    assert (second.token, second.protocol) == ("t", 1)
    assert nats.read_connect(b"null", second) == second


@pytest.mark.parametrize("argument", [b"", b"{", b"[]", b"1", b'{"verbose":1}', b'{"user":5}', b"[" * 4000, b"{} {}"])
def test_bad_connect_is_a_frame_error(argument: bytes) -> None:
    with pytest.raises(FrameError):
        nats.read_connect(argument, nats.ConnectOptions())


@given(st.binary(max_size=100))
def test_any_connect_argument_is_read_or_refused(argument: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert isinstance(nats.read_connect(argument, nats.ConnectOptions()), nats.ConnectOptions)


# -- what a server sends ----------------------------------------------------------------------------------------------


def test_violations_are_quoted_as_go_does() -> None:
    assert nats.publish_violation('a"\\\x07\t\x01\u00e9\udcff\u200b\U000e0001\x7f') == (
        'Permissions Violation for Publish to "a\\"\\\\\\a\\t\\x01\u00e9\\xff\\u200b\\U000e0001\\x7f"'
    )
    assert nats.subscription_violation("a", "q") == 'Permissions Violation for Subscription to "a" using queue "q"'


def test_message_tails() -> None:
    assert nats.message_tail(b"", b"hi") == b" 2\r\nhi\r\n"
    assert nats.message_tail(b"r", b"") == b" r 0\r\n\r\n"
    assert nats.header_message_tail(b"r", b"NATS/1.0\r\n\r\n", b"hi") == b" r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
