"""What a fetch shows of a batch, taken apart again."""

import sys
from typing import NamedTuple

from gateway.core.history import FetchProgress, Reader

READER = Reader(b"HMSG in 1 ", True, sys.maxsize)


class Shown(NamedTuple):
    header_block: bytes
    payload: bytes


def messages(data: bytes) -> list[Shown]:
    """The HMSG frames in `data`."""
    shown = []
    while data:
        line, _, data = data.partition(b"\r\n")
        header_bytes, total_bytes = map(int, line.removeprefix(READER.opening).split(b" "))
        shown.append(Shown(data[:header_bytes], data[header_bytes:total_bytes]))
        assert data[total_bytes : total_bytes + 2] == b"\r\n"
        data = data[total_bytes + 2 :]
    return shown


def take(fetch: FetchProgress, batch: bytes) -> list[Shown]:
    (frames,) = fetch.take(batch, [READER])
    shown = messages(frames.data)
    assert frames.records == len(shown)
    assert frames.carried_bytes == sum(len(one.header_block) + len(one.payload) for one in shown)
    return shown
