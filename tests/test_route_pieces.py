"""HELLO and frames between gateways: golden vectors, and what is no frame."""

import json
from pathlib import Path

import pytest

from protocol import routes
from protocol.errors import FrameError
from protocol.limits import ROUTE_FRAME_BYTES_MAX
from protocol.routes import FrameHead, Side

ROWS = json.loads((Path(__file__).parent / "data" / "vectors" / "gateway_link.json").read_text())


def test_hello_is_what_the_vector_says() -> None:
    [row] = [row for row in ROWS if "fields" in row]
    hello = routes.Hello(**row["fields"])
    assert routes.hello_line(hello) == bytes.fromhex(row["hex"])
    assert routes.read_hello(bytes.fromhex(row["hex"]).rstrip()) == hello


@pytest.mark.parametrize("row", [row for row in ROWS if "piece" in row], ids=lambda row: row["what"])
def test_frames_are_what_the_vectors_say(row) -> None:
    data, piece = bytes.fromhex(row["hex"]), row["piece"].encode()
    assert b"".join(routes.frames(Side(row["side"]), row["zone"], piece)) == data
    head = routes.read_frame_head(data)
    assert head == FrameHead(len(data) - len(piece), len(piece), Side(row["side"]), row["zone"])
    assert data[head.size_bytes :] == piece
    assert [routes.read_frame_head(data[:size]) for size in range(head.size_bytes)] == [None] * head.size_bytes


def test_what_is_long_stands_in_several_frames() -> None:
    data = bytes(range(256)) * 8_192  # twice what a frame may hold
    parts = routes.frames(Side.GATEWAYS, "", data + b"x")
    assert [len(piece) for piece in parts[1::2]] == [ROUTE_FRAME_BYTES_MAX, ROUTE_FRAME_BYTES_MAX, 1]
    assert b"".join(parts[1::2]) == data + b"x"


@pytest.mark.parametrize(
    "data", [b"\x01\x00\x10\x00\x00\x00", b"\x01\x00\x00\x00\x03\x00", b"\x01\x00\x00\x00\x01\x81"]
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    """Too long, about nothing, with a name that is too long."""
    with pytest.raises(FrameError, match="no frame begins with"):
        routes.read_frame_head(data)
