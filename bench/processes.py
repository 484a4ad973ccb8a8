"""A measured process: what it printed, what it used of CPU, memory and disk, and how it ends."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
START_WAIT_S_MAX = 240.0  # a nats-server reads 10 GiB of a stream before it listens
STOP_WAIT_S_MAX = 15.0
POLL_S = 0.005
PORTS = range(10_000, 32_000)  # below those that the kernel gives to outgoing connections


class BenchError(Exception):
    """A measurement that does not count: bytes were lost, a connection was cut, a process ended."""


class UnavailableError(BenchError):
    """The server refuses to start with what this row needs."""


class Process:
    """`command`, running in `folder`; what it prints goes to the file `printed` there."""

    name = ""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._printed = folder / "printed"
        with self._printed.open("ab") as printed:
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        """Time on CPUs since its start, of all its threads and of the processes that it has started and that run."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return sum(map(_cpu_s, (self.pid, *map(int, children))))

    def memory_bytes(self) -> int:
        """Resident at this moment."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def memory_bytes_max(self) -> int:
        """The most that was resident since its start."""
        (line,) = (text for text in Path(f"/proc/{self.pid}/status").read_text().splitlines() if "VmHWM" in text)
        return int(line.split()[1]) * 1024

    def written_bytes(self) -> int:
        """What it has caused to be written to disks since its start."""
        lines = Path(f"/proc/{self.pid}/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["write_bytes"])

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_WAIT_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """At once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def complaints(self) -> str:
        """The end of what it printed."""
        return self._printed.read_text(errors="replace")[-1000:].strip()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait_until_it_listens(self, port: int) -> None:
        """UnavailableError when it ends instead, or takes too long."""
        deadline = time.monotonic() + START_WAIT_S_MAX
        while True:
            if self.has_ended():
                raise UnavailableError(f"{self.name} does not start: {_last_line(self.complaints())}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"{self.name} does not listen on port {port}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(POLL_S)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment, and that the system gives to no connection that begins."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else "it says nothing"
