"""A gateway's link to its sink, against a sink that only knows how to say hello."""

import asyncio
import time

from gateway.shell.gateway import Gateway
from protocol import config, link


class Greeter(asyncio.Protocol):
    """Welcomes, notes the nonce of the Open that follows, and hangs up."""

    nonces: asyncio.Queue[bytes]

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.reader = transport, link.FrameReader()

    def data_received(self, data: bytes) -> None:
        for frame in self.reader.feed(data):
            if isinstance(frame.message, link.Hello):
                self.transport.write(link.pack(link.Welcome("mesh", "local", "sink1", True, "disk")))
            elif isinstance(frame.message, link.Open):
                self.nonces.put_nowait(frame.message.nonce)
                self.transport.close()


async def test_every_link_is_opened_with_a_nonce_of_its_own(tmp_path):
    """The sink fences what older links still carry by it; the outbox relies on that."""
    Greeter.nonces = asyncio.Queue()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Greeter, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    anywhere = config.Address("127.0.0.1", 0)
    configuration = config.embedded(client=anywhere, monitor=None, data=str(tmp_path), mode="event-sinks", streams={})

    gateway = Gateway(configuration, "gw1", lambda factory: loop.create_connection(factory, "127.0.0.1", port), "test")
    await gateway.start()
    try:
        nonces = [await asyncio.wait_for(Greeter.nonces.get(), 10) for _ in range(3)]
    finally:
        await gateway.stop()
        server.close()
        await server.wait_closed()
    assert len(set(nonces)) == 3
    assert all(len(nonce) == 16 for nonce in nonces)


class Polite(Greeter):
    """Answers every Ping, as a sink that is well."""

    made = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        Polite.made += 1

    def data_received(self, data: bytes) -> None:
        for frame in self.reader.feed(data):
            if isinstance(frame.message, link.Hello):
                self.transport.write(link.pack(link.Welcome("mesh", "local", "sink1", True, "disk")))
            elif isinstance(frame.message, link.Ping):
                self.transport.write(link.pack(link.Pong()))


async def test_a_process_that_was_held_up_does_not_take_that_for_silence_of_the_sink(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.shell.link.LINK_PING_INTERVAL_MS", 20)
    monkeypatch.setattr("gateway.shell.link.LINK_SILENCE_MS_MAX", 100)
    Polite.made = 0
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Polite, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    anywhere = config.Address("127.0.0.1", 0)
    configuration = config.embedded(client=anywhere, monitor=None, data=str(tmp_path), mode="event-sinks", streams={})

    gateway = Gateway(configuration, "gw1", lambda factory: loop.create_connection(factory, "127.0.0.1", port), "test")
    await gateway.start()
    try:
        for _ in range(3):
            await asyncio.sleep(0.05)
            time.sleep(0.2)  # noqa: ASYNC251  # nothing runs meanwhile
        await asyncio.sleep(0.05)
        assert Polite.made == 1
    finally:
        await gateway.stop()
        server.close()
        await server.wait_closed()


class Silent(Greeter):
    made: asyncio.Queue[int]

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.made.put_nowait(1)

    def data_received(self, data: bytes) -> None:
        """Says nothing to anything."""


async def test_a_silent_sink_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.shell.link.LINK_PING_INTERVAL_MS", 20)
    monkeypatch.setattr("gateway.shell.link.LINK_SILENCE_MS_MAX", 100)
    Silent.made = asyncio.Queue()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    anywhere = config.Address("127.0.0.1", 0)
    configuration = config.embedded(client=anywhere, monitor=None, data=str(tmp_path), mode="event-sinks", streams={})

    gateway = Gateway(configuration, "gw1", lambda factory: loop.create_connection(factory, "127.0.0.1", port), "test")
    await gateway.start()
    try:
        for _ in range(2):
            await asyncio.wait_for(Silent.made.get(), 5)
        assert "silent for 100 ms" in gateway.health()
    finally:
        await gateway.stop()
        server.close()
        await server.wait_closed()
