"""The NATS client protocol by hand: the real nats-server as a process, and a socket that shows every byte."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NATS_SERVER = Path(sys.executable).parent / "nats-server"
START_WAIT_S_MAX = 60.0
INFO = re.compile(rb"INFO (\{.*?\}) ?\r\n")


@contextlib.contextmanager
def nats_server(configuration: str = "") -> Iterator[int]:
    """Runs the real nats-server on 127.0.0.1; its client port."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "server.conf"
        file.write_text(configuration)
        command = [NATS_SERVER, "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", folder, "-c", file]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield started_port(Path(folder), process)
        finally:
            process.terminate()
            process.wait(START_WAIT_S_MAX)


def started_port(folder: Path, process: "subprocess.Popen[bytes]") -> int:
    """The client port that the server has written into `folder`, once it has."""
    deadline = time.monotonic() + START_WAIT_S_MAX
    while time.monotonic() < deadline and process.poll() is None:
        for file in folder.glob("*.ports"):
            with contextlib.suppress(ValueError, KeyError):  # half written
                return int(json.loads(file.read_text())["nats"][0].rpartition(":")[2])
        time.sleep(0.01)
    raise RuntimeError(f"nats-server did not start: exit status {process.poll()}")


class RawClient:
    """`async with RawClient(port) as client`: INFO is read already, `info` holds it.

    A server's PING, which comes two seconds after CONNECT, is not shown unless it is what a test is about.
    """

    def __init__(self, port: int, *, shows_pings: bool = False) -> None:
        self._port, self._shows_pings = port, shows_pings
        self.info: dict[str, object] = {}
        self.received = bytearray()
        self.is_closed = False

    async def __aenter__(self) -> "RawClient":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.info = json.loads((await self.reader.readline())[5:])
        return self

    async def __aexit__(self, *problem: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def send(self, *chunks: bytes) -> None:
        """One write, and one turn of the loop, per chunk; a server that has closed already is no error."""
        for chunk in chunks:
            with contextlib.suppress(ConnectionError):
                self.writer.write(chunk)
                await self.writer.drain()

    async def until(self, end: bytes, wait_s: float = 60.0) -> bytes:
        """All that came since the last call, up to `end` at the earliest."""
        async with asyncio.timeout(wait_s):
            while end not in self.received and await self._more():
                pass
        assert end in self.received, bytes(self.received)
        return self._take()

    async def until_closed(self, wait_s: float = 60.0) -> bytes:
        """All that came since the last call, up to the end of the connection."""
        async with asyncio.timeout(wait_s):
            while await self._more():
                pass
        return self._take()

    async def until_quiet(self, quiet_s: float = 0.2) -> bytes:
        """All that came since the last call, until nothing comes for `quiet_s` or the connection ends."""
        with contextlib.suppress(TimeoutError):
            while await asyncio.wait_for(self._more(), quiet_s):
                pass
        return self._take()

    async def _more(self) -> bool:
        try:
            data = await self.reader.read(65_536)
        except ConnectionError:
            data = b""
        self.received += data
        self.is_closed = not data
        return bool(data)

    def _take(self) -> bytes:
        taken = bytes(self.received)
        self.received.clear()
        return taken if self._shows_pings else taken.replace(b"\nPING\r\n", b"\n").removeprefix(b"PING\r\n")
