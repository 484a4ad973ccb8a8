"""A wire in a test's hands: passes bytes on between two ports, later, slowly, one way only, or not at all.

Kernels may lack netem, so this stands in for it above TCP: a connection that is held keeps what it has got, as one
whose segments are lost does, and what has waited comes in order.
"""

import asyncio
import contextlib

READ_BYTES = 65_536
HELD_PIECES = 64  # read and not passed on yet, of each direction of a connection; then its sender waits


class Wire:
    """Listens on `port` of `host` and connects each who comes to `to_port` of `to_host`.

    What comes is passed on after `delay_s`, and in each direction of a connection `bytes_per_s` (0: without a limit).
    """

    def __init__(
        self,
        port: int,
        to_port: int,
        *,
        host: str = "127.0.0.1",
        to_host: str = "127.0.0.1",
        delay_s: float = 0.0,
        bytes_per_s: float = 0.0,
    ) -> None:
        self.address, self._to_address = (host, port), (to_host, to_port)
        self.delay_s, self.bytes_per_s = delay_s, bytes_per_s
        self.swallows_answers = False
        self._passes = {answers: asyncio.Event() for answers in (False, True)}
        self.let_go()
        self.swallowed_bytes = 0
        self.passed_bytes = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._connected, *self.address)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await asyncio.sleep(0.01)  # who was accepted at the last moment is known by then
        self.delay_s = self.bytes_per_s = 0.0
        self.let_go()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Ends every connection that there is; new ones are passed on again."""
        for writer in self._writers:
            writer.transport.abort()

    def hold(self, *, answers_only: bool = False) -> None:
        """Nothing arrives any more, and nobody is told: a network that is parted, or that passes one way only.

        `let_go` ends it.
        """
        for answers, passes in self._passes.items():
            if answers or not answers_only:
                passes.clear()

    def let_go(self) -> None:
        """What was held goes on, as what TCP sends again."""
        for passes in self._passes.values():
            passes.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.add(writer)
        try:
            to_reader, to_writer = await asyncio.open_connection(*self._to_address)
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
        clock, waiting = asyncio.get_running_loop().time, asyncio.Queue[tuple[float, bytes]](HELD_PIECES)
        carrying = asyncio.create_task(self._carry(waiting, writer, self._passes[answers]))
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if answers and self.swallows_answers:
                    self.swallowed_bytes += len(data)
                else:
                    await waiting.put((clock() + self.delay_s, data))
        await waiting.put((0.0, b""))
        await carrying
        writer.transport.abort()

    async def _carry(
        self, waiting: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter, passes: asyncio.Event
    ) -> None:
        """Until b"" comes. What the other end does not take any more is thrown away: it has gone, or was cut off."""
        clock = asyncio.get_running_loop().time
        while (due := await waiting.get())[1]:
            due_s, data = due
            await asyncio.sleep(max(0.0, due_s - clock()))
            await passes.wait()
            if writer.transport.is_closing():
                continue
            with contextlib.suppress(OSError):
                writer.write(data)
                self.passed_bytes += len(data)
                await writer.drain()
            if self.bytes_per_s:
                await asyncio.sleep(len(data) / self.bytes_per_s)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._writers.discard(writer)
