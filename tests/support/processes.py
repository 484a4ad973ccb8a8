"""Our daemons as real processes: started as a person starts them, killed as a machine kills them.

`Daemon` is one process; what it prints goes into files: nothing blocks, and the last words of a killed one are there.
`Folder` holds what several daemons share: data, `mesh.toml`, ports.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import nats
from nats.aio.client import Client

BIN = Path(sys.executable).parent
START_WAIT_S_MAX = 90.0
STOP_WAIT_S_MAX = 90.0
POLL_S = 0.01
PORTS = range(10_000, 32_000)  # below those that the kernel gives to outgoing connections
_given: set[int] = set()


async def until(true: Callable[[], bool], what: str, wait_s: float = 60.0) -> None:
    """Waits until `true()`; AssertionError says `what` did not come about."""
    deadline = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < deadline, f"not within {wait_s} s: {what}"
        await asyncio.sleep(POLL_S)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has, and no other worker of this test run: who is killed comes back on its own.

    Nor has an earlier call given them, as long as there are others: what a test asks for bit by bit is not in use yet.
    """
    ports: list[int] = []
    chosen = Random()
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = len(PORTS) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = PORTS[worker * share : (worker + 1) * share]  # in a row: who has workers takes the ports behind one, too
    while len(ports) < count:
        port = chosen.choice(own)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports and port not in _given:
                ports.append(port)
    _given.update(ports)
    if len(_given) > len(own) // 2:
        _given.clear()
    return ports


class Daemon:
    """A process of ours. Its first line on stdout says that it serves."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        command = [str(BIN / arguments[0]), *arguments[1:]]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    @property
    def printed(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def complaints(self) -> str:
        """What it wrote on stderr: log lines, last words."""
        return self._err.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    async def serving(self) -> str:
        """Its first line, once it serves."""
        await until(lambda: "\n" in self.printed or self.has_ended, "it serves", START_WAIT_S_MAX)
        assert "\n" in self.printed, f"ended with {self.process.returncode}: {self.complaints}"
        return self.printed.partition("\n")[0]

    async def ended(self, wait_s: float = STOP_WAIT_S_MAX) -> int:
        """Its exit status; that of a signal is negative."""
        await until(lambda: self.has_ended, f"it ends; {self.complaints[-2000:]}", wait_s)
        return int(self.process.returncode)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and it is gone."""
        self.process.kill()
        self.process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return await self.ended()

    def memory_bytes(self) -> int:
        """Resident at this moment."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Folder:
    """A folder in which daemons run; the ones that are left at the end are killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.daemons: list[Daemon] = []
        self.client_port, self.monitor_port, self.link_port, self.sink_monitor_port = free_ports(4)

    def run(self, *arguments: str) -> Daemon:
        daemon = Daemon(self.path, list(arguments))
        self.daemons.append(daemon)
        return daemon

    async def up(self, *options: str) -> Daemon:
        """`mesh up` on this folder's ports and data; it serves when this returns."""
        daemon = self.begin_up(*options)
        assert json.loads(await daemon.serving())["client"] == self.url
        return daemon

    def begin_up(self, *options: str) -> Daemon:
        addresses = "--client", f"127.0.0.1:{self.client_port}", "--monitor", f"127.0.0.1:{self.monitor_port}"
        reserve = () if "--disk-reserve" in options else ("--disk-reserve", "1MiB")
        return self.run("mesh", "up", "--json", *addresses, *reserve, *options)

    async def gateway(self) -> Daemon:
        daemon = self.run("gateway", "--config", "mesh.toml", "--node", "gw1")
        await daemon.serving()
        return daemon

    async def sinkd(self) -> Daemon:
        daemon = self.run("sinkd", "--config", "mesh.toml", "--node", "sink1")
        await daemon.serving()
        return daemon

    async def both(self) -> tuple[Daemon, Daemon]:
        """Gateway and sink, started side by side."""
        gateway, sink = await asyncio.gather(self.gateway(), self.sinkd())
        return gateway, sink

    def write_config(self, more: str = "", *, mesh: str = 'name = "acme"\nrevision = 1', gateway: str = "") -> None:
        """`mesh.toml` of one gateway and one sink; `more` are further tables, `gateway` further keys of it."""
        (self.path / "mesh.toml").write_text(
            f"""
            [mesh]
            {mesh}
            [zones.eu.gateways.gw1]
            client = "127.0.0.1:{self.client_port}"
            monitor = "127.0.0.1:{self.monitor_port}"
            {gateway}
            [zones.eu.sinks.sink1]
            link = "127.0.0.1:{self.link_port}"
            monitor = "127.0.0.1:{self.sink_monitor_port}"
            data = "mesh-data"
            disk_reserve = "1MiB"
            {more}
            """
        )

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.client_port}"

    @property
    def data(self) -> Path:
        return self.path / "mesh-data"

    def files(self, suffix: str) -> list[Path]:
        """Files of the data folder by name, oldest first: `.journal`, `.log`."""
        return sorted(self.data.rglob(f"*{suffix}"))

    async def varz(self, port: int | None = None) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port or self.monitor_port}/varz") as answer,
        ):
            values: dict[str, Any] = await answer.json()
            return values

    def close(self) -> None:
        for daemon in self.daemons:
            if not daemon.has_ended:
                with contextlib.suppress(ProcessLookupError):
                    daemon.send(signal.SIGCONT)
                daemon.kill()
        tracebacks = [daemon.complaints for daemon in self.daemons if "Traceback" in daemon.complaints]
        assert not tracebacks, tracebacks[0]


@contextlib.contextmanager
def folder_at(path: Path) -> Iterator[Folder]:
    folder = Folder(path)
    try:
        yield folder
    finally:
        folder.close()


async def settle(connection: Client, wait_s: int = 60) -> None:
    """Until what it sent has been acted on, everywhere: the PING of the first flush overtakes what waits to be sent."""
    await connection.flush(wait_s)
    await connection.flush(wait_s)


@contextlib.asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[Client]:
    """A nats-py client that looks for no other connection when it has lost this one, and complains to nobody."""

    async def ignore(*_: object) -> None:
        return

    settings = {"allow_reconnect": False, "error_cb": ignore, "connect_timeout": 30, "pending_size": 64 * 1024 * 1024}
    connection = await nats.connect(url, **(settings | options))
    try:
        yield connection
    finally:
        with contextlib.suppress(ConnectionError):  # its server has gone, and there was something to send
            await connection.close()
