"""HELLO and pieces of channels between gateways: golden vectors, and what is no piece."""

import json
from pathlib import Path

import pytest

from protocol import nats, routes
from protocol.limits import ROUTE_PIECE_BYTES_MAX
from protocol.routes import Piece, Side

ROWS = json.loads((Path(__file__).parent / "data" / "vectors" / "gateway_link.json").read_text())


def events(data: bytes, *, takes_pieces: bool = True) -> list[nats.Event]:
    parser = routes.RouteParser(100, 200, takes_pieces=takes_pieces)
    parser.receive(data)
    return list(iter(parser.next_event, None))


@pytest.mark.parametrize("row", [row for row in ROWS if "fields" in row], ids=lambda row: row["what"])
def test_hello_is_what_the_vectors_say(row) -> None:
    """Those of earlier versions are read, and not written any more."""
    hello = routes.Hello(**row["fields"])
    assert routes.read_hello(bytes.fromhex(row["hex"]).rstrip()) == hello
    assert (routes.hello_line(hello) == bytes.fromhex(row["hex"])) == ("reads" not in row)
    assert hello.peer == ("eu-gw1" if "reads" in row else "eu-gw1/1")


@pytest.mark.parametrize("row", [row for row in ROWS if "piece" in row], ids=lambda row: row["what"])
def test_pieces_are_what_the_vectors_say(row) -> None:
    data, side = bytes.fromhex(row["hex"]), Side(row["side"].encode())
    assert b"".join(routes.pieces(side, row["zone"], row["piece"].encode())) == data
    if side is not Side.GATEWAYS:
        assert events(data + b"PING\r\n") == [Piece(side, row["zone"], row["piece"].encode()), nats.Ping()]
        assert events(data[:-1]) == []


def test_what_is_long_stands_in_several_pieces() -> None:
    """Longer than a payload may be: that is another limit."""
    data = bytes(range(256)) * 8_192 + b"x"  # twice what a piece may hold
    parts = routes.pieces(Side.SENDER, "us", data)
    assert [len(piece) for piece in parts[1::3]] == [ROUTE_PIECE_BYTES_MAX, ROUTE_PIECE_BYTES_MAX, 1]
    assert b"".join(event.data for event in events(b"".join(parts))) == data


def test_a_message_behind_a_piece_is_a_message() -> None:
    data = b"RFOR us 2\r\nhi\r\nRMSG $G a 1\r\nx\r\n"
    assert events(data) == [Piece(Side.RECEIVER, "us", b"hi"), routes.RouteMessage(b"$G", b"a", b"", (), b"", b"x")]


@pytest.mark.parametrize("line", [b"RVIA us 1048577", b"RVIA us -1", b"RVIA us x", b"RFOR 2", b"RFOR us eu 2"])
def test_what_is_no_piece_is_refused(line: bytes) -> None:
    [failure] = events(line + b"\r\n")
    assert failure == nats.Failure(None, f"{line[:4].decode()} with bad arguments, or where there is but one channel")


def test_there_is_no_channel_in_a_channel() -> None:
    [failure] = events(b"RVIA us 2\r\nhi\r\n", takes_pieces=False)
    assert isinstance(failure, nats.Failure)
