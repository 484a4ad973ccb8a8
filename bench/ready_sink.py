"""A sink that has nothing to do: `python bench/ready_sink.py mesh.toml NODE`.

It leads, keeps nothing, and says of every batch at once that it is in the log. What is measured with it is the gateway.
"""

import asyncio
import sys
from pathlib import Path

import uvloop

from protocol import config, envelope, link
from protocol.streams import StreamDefinition, StreamState


class ReadyLink(asyncio.Protocol):
    """One gateway's link."""

    def __init__(self, hello: link.Welcome, streams: tuple[StreamState, ...]) -> None:
        self._welcome, self._streams = hello, streams
        self._reader = link.FrameReader()
        self._ends: dict[tuple[bytes, int], int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        answers = [self._answer(frame) for frame in self._reader.feed(data)]
        self._transport.write(b"".join(answers))  # type: ignore[attr-defined]

    def _answer(self, frame: link.Frame) -> bytes:
        message = frame.message
        if isinstance(message, link.Append):
            return b"".join(map(self._append, envelope.unpack(frame.tail)))
        if isinstance(message, link.Hello):
            return link.pack(self._welcome) + link.pack(link.Streams(1, self._streams))
        if isinstance(message, link.Open):
            return link.pack(link.Opened(1, 1, message.nonce, ()))
        return link.pack(link.Pong()) if isinstance(message, link.Ping) else b""

    def _append(self, parcel: envelope.Parcel) -> bytes:
        head = parcel.envelope
        place = head.incarnation, head.partition
        offset = self._ends.get(place, 0)
        self._ends[place] = offset + head.sequence_count
        names = head.stream, head.incarnation, head.partition, head.first_sequence
        return link.pack(link.Appended(head.producer_id, head.epoch, *names, offset))


async def _serve(configuration: config.Config, node: str) -> None:
    sink = configuration.sink(node)
    definitions = (StreamDefinition.of(each, each.name.encode()) for each in configuration.effective_streams())
    streams = tuple(each.committed(1, each.incarnation) for each in definitions)
    welcome = link.Welcome(configuration.mesh.name, sink.zone, node, True, "none")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ReadyLink(welcome, streams), sink.link.host, sink.link.port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(config.parse(Path(sys.argv[1]).read_text(), sys.argv[1]), sys.argv[2]))
