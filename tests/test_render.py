"""`mesh.render`: one line per event that a terminal, a machine or a file can take."""

import json
import re

import pytest
from nats.aio.msg import Msg

from mesh.log_reader import Record
from mesh.render import local_time, message_line, printable, record_line
from mesh.sizes import size

RECORD = Record("orders", "eu", 2, 17, 1_764_032_400_123, "orders.new", {"Tag": ["a", "b"]}, b"10 \xe2\x82\xac")


def test_human() -> None:
    line = record_line(RECORD, "human").decode()
    assert re.fullmatch(r"17  2025-11-25T\d\d:00:00\.123[+-]\d\d:\d\d  orders\.new  10 €\n", line)
    assert record_line(RECORD, "human", partitions=True).startswith(b"2/17  ")
    assert b"\x1b[" in record_line(RECORD, "human", colours=True)


def test_nothing_that_a_terminal_would_obey() -> None:
    nasty = RECORD._replace(subject="a.\udcff\x1b[2J", value=b"\x1b]0;x\x07\r\n\xff\x9b\xc2\x9b")
    line = record_line(nasty, "human")
    assert line.count(b"\n") == 1
    assert not set(line.decode()) & {"\x1b", "\x07", "\r", "\x9b"}
    assert printable(b"a\tb\n\xff") == "a\\tb\\n\\xff"


def test_raw_is_the_payload_and_a_line_feed() -> None:
    assert record_line(RECORD._replace(value=b"\xff\r"), "raw") == b"\xff\r\n"
    assert message_line(Msg(None, "a", data=b"x"), "raw") == b"x\n"  # type: ignore[arg-type]


def test_json() -> None:
    assert json.loads(record_line(RECORD, "json")) == {
        "stream": "orders",
        "zone": "eu",
        "partition": 2,
        "offset": 17,
        "timestamp": 1_764_032_400_123,
        "subject": "orders.new",
        "headers": {"Tag": ["a", "b"]},
        "data": "10 €",
    }
    binary = json.loads(record_line(RECORD._replace(subject="a.\udcff", value=b"\xff"), "json"))
    assert (binary["data_base64"], binary["subject"]) == ("/w==", "a.\udcff")
    live = json.loads(message_line(Msg(None, "a", "_INBOX.x", b"x", {"Tag": "a"}), "json"))  # type: ignore[arg-type]
    assert live == {"subject": "a", "reply": "_INBOX.x", "headers": {"Tag": ["a"]}, "data": "x"}


def test_a_time_can_be_given_back() -> None:
    from mesh.positions import parse_position

    assert parse_position(local_time(1_764_032_400_123), 0).value == 1_764_032_400_123


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text
