"""A gateway's link to its sink, against a sink that only knows how to say hello."""

import asyncio

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
