"""A wire in a test's hands: passes bytes on between two ports, holds them, swallows one direction, or breaks."""

import asyncio
import contextlib


class Wire:
    """Listens on `port` and connects each who comes to `to_port`, both on 127.0.0.1."""

    def __init__(self, port: int, to_port: int) -> None:
        self._port, self._to_port = port, to_port
        self.swallows_answers = False
        self._passes = asyncio.Event()
        self._passes.set()
        self.swallowed_bytes = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await asyncio.sleep(0.01)  # who was accepted at the last moment is known by then
        self.let_go()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Ends every connection that there is; new ones are passed on again."""
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        """Nothing arrives any more, and nobody is told: a network that is parted. `let_go` ends it."""
        self._passes.clear()

    def let_go(self) -> None:
        """What was held goes on, as what TCP sends again."""
        self._passes.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.add(writer)
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
        else:
            self._writers.add(to_writer)
            await asyncio.gather(self._pass_on(reader, to_writer), self._pass_on(to_reader, writer, answers=True))
            await self._close(to_writer)
        await self._close(writer)
        self._connections.discard(task)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        """Until one side ends, which ends the other too."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if answers and self.swallows_answers:
                    self.swallowed_bytes += len(data)
                    continue
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._writers.discard(writer)
