"""The limit: a program that copies what publishers send to every subscriber, and understands nothing of it.

It runs the gateway's event loop and reads as the gateway reads; what the gateway does more slowly than the relay is
the price of the protocol. A connection says in its first byte what it is, `P` publisher or `S` subscriber, and gets one
byte back. The generators' window bounds what waits in here.
"""

import asyncio
import sys
from typing import cast

import uvloop

BUFFER_BYTES = 256 * 1024


class _Connection(asyncio.BufferedProtocol):
    def __init__(self, subscribers: set[asyncio.Transport]) -> None:
        self._subscribers = subscribers
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._greeted = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        if self._greeted:
            if self._subscribers:
                data = bytes(self._view[:nbytes])
                for subscriber in self._subscribers:
                    subscriber.write(data)
            return
        self._greeted = True
        assert self._transport is not None
        if self._buffer[0:1] == b"S":
            self._subscribers.add(self._transport)
        self._transport.write(b"+")

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._subscribers.discard(self._transport)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    subscribers: set[asyncio.Transport] = set()
    server = await loop.create_server(lambda: _Connection(subscribers), "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
