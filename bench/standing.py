"""What only stands there: idle connections and subscriptions that nothing is published to."""

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from bench.servers import Server
from bench.wire import barrier, connect

SUBSCRIPTIONS_EACH = 100_000  # of one connection
STEP_S = 0.5
STEADY_S_MAX = 10.0
STEADY_PART = 0.01


def allow_many_files() -> None:
    """As many open files as this process and its children may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def idle_connections(server: Server, count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(closing(connect(server)))
        yield


class Others:
    """Connections with subscriptions on subjects of their own, `other.0`, `other.1`, ...; more may be added."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stack = ExitStack()
        self._connections: list[socket.socket] = []
        self.count = 0

    def __enter__(self) -> "Others":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def grow_to(self, count: int, pattern: str = "other.{}") -> None:
        """Until there are `count`; `pattern` has the place of the number."""
        while self.count < count:
            index, taken = divmod(self.count, SUBSCRIPTIONS_EACH)
            if index == len(self._connections):
                self._connections.append(self._stack.enter_context(closing(connect(self._server))))
            more = min(count - self.count, SUBSCRIPTIONS_EACH - taken)
            numbers = range(self.count, self.count + more)
            lines = [f"SUB {pattern.format(number)} {number}\r\n" for number in numbers]
            self._connections[index].sendall("".join(lines).encode())
            barrier(self._connections[index])
            self.count += more


@contextmanager
def others(server: Server, count: int, pattern: str = "other.{}") -> Iterator[None]:
    with Others(server) as standing:
        standing.grow_to(count, pattern)
        yield


def steady_memory_bytes(server: Server) -> int:
    """Resident memory, once it changes no more."""
    deadline = time.monotonic() + STEADY_S_MAX
    last_bytes = server.memory_bytes()
    while time.monotonic() < deadline:
        time.sleep(STEP_S)
        now_bytes = server.memory_bytes()
        if abs(now_bytes - last_bytes) <= STEADY_PART * last_bytes:
            return now_bytes
        last_bytes = now_bytes
    return last_bytes
