"""The real nats-server as a process of its own, on a port of its own."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.processes import free_ports

BINARY = Path(sys.executable).parent / "nats-server"


def free_port() -> int:
    return free_ports(1)[0]


class NatsServer:
    """`start` and `stop` may be called again and again: the port stays the same."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            str(BINARY), "-a", "127.0.0.1", "-p", str(self.port), *self._arguments,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(6_000):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            await writer.wait_closed()
            return
        raise RuntimeError(f"nats-server does not listen on port {self.port}")

    async def stop(self) -> None:
        """At once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@asynccontextmanager
async def nats_server(*arguments: str) -> AsyncIterator[NatsServer]:
    server = NatsServer(*arguments)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
