"""The way between two zones: passes bytes on later, no faster than a rate, and counts them.

    python relay.py PORT TO_PORT DELAY_MS BYTES_PER_SECOND COUNTS

A rate of 0 is none. Each direction of a connection is a pipe: what comes leaves when what came before has left at the
rate, and arrives `DELAY_MS` after that. It takes what the pipe holds and a mebibyte more; then the sender waits, as
before a router whose buffer is full. `COUNTS` is a file of two u64: bytes towards TO_PORT, and back.
"""

import asyncio
import mmap
import struct
import sys
from collections import deque
from pathlib import Path
from typing import Final, cast

import uvloop

READ_BYTES: Final = 32 * 1024
QUEUE_BYTES: Final = 1 << 20
UNLIMITED_BYTES: Final = 16 << 20


class Counts:
    """Bytes that were passed on, by direction; in a file that others may look at."""

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 16)
        self._values = [0, 0]

    def add(self, direction: int, size_bytes: int) -> None:
        self._values[direction] += size_bytes
        struct.pack_into("<Q", self._map, 8 * direction, self._values[direction])


def read_counts(file: Path) -> tuple[int, int]:
    """(towards the port behind it, back)."""
    towards, back = struct.unpack("<QQ", file.read_bytes())
    return towards, back


class _End(asyncio.BufferedProtocol):
    """One end of a connection; what comes goes to `other`, through the pipe."""

    def __init__(self, counts: Counts, direction: int, delay_s: float, rate: float) -> None:
        self._counts, self._direction, self._delay_s, self._rate = counts, direction, delay_s, rate
        self._queue_bytes_max = QUEUE_BYTES + int(rate * delay_s) if rate else UNLIMITED_BYTES
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes, self._free_at = 0, 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._other_is_full = False
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        self.transport.set_write_buffer_limits(QUEUE_BYTES)
        self.connected.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other._other_is_full = True

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other._other_is_full = False
            self.other._pass_on()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + (nbytes / self._rate if self._rate else 0)
        self._waiting.append((self._free_at + self._delay_s, bytes(self._view[:nbytes])))
        self._waiting_bytes += nbytes
        if self._waiting_bytes > self._queue_bytes_max and self.transport is not None:
            self.transport.pause_reading()
        if self._timer is None:
            self._pass_on()

    def _pass_on(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waiting and self._waiting[0][0] <= now and not self._other_is_full:
            _, data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._counts.add(self._direction, len(data))
            if self.other is not None and self.other.transport is not None:
                self.other.transport.write(data)
        if self._waiting_bytes <= self._queue_bytes_max and self.transport is not None:
            self.transport.resume_reading()
        if self._waiting and not self._other_is_full:
            self._timer = loop.call_at(self._waiting[0][0], self._pass_on)


async def serve(port: int, to_port: int, delay_s: float, rate: float, counts: Counts) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def connect(near: _End) -> None:
        await near.connected
        assert near.transport is not None
        near.transport.pause_reading()
        far = _End(counts, 1, delay_s, rate)
        far.other, near.other = near, far
        try:
            await loop.create_connection(lambda: far, "127.0.0.1", to_port)
        except OSError:
            near.transport.abort()
        else:
            near.transport.resume_reading()

    def accept() -> _End:
        near = _End(counts, 0, delay_s, rate)
        task = loop.create_task(connect(near))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return near

    server = await loop.create_server(accept, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


async def _main(port: int, to_port: int, delay_s: float, rate: float, counts: Path) -> None:
    await serve(port, to_port, delay_s, rate, Counts(counts))


if __name__ == "__main__":
    at, to, delay_ms, bytes_per_s, where = sys.argv[1:]
    uvloop.run(_main(int(at), int(to), float(delay_ms) / 1000, float(bytes_per_s), Path(where)))
