"""Distinct subscriptions on all nodes at once, until a message for the last of them gets through from everywhere.

One connection on each node sends all its SUBs at once. Meanwhile another one on each publishes, every few
milliseconds, to the last subject of every other node: all agree when each of these has come through. Both servers tell
their interest in order, so the last one stands for all; that it does is proven afterwards, outside the time that
counts: each node publishes to every subject of the others, and exactly these messages have to arrive.
"""

import re
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

from bench.servers import BenchError, Server
from bench.wire import barrier, connect

PROBE_S = 0.005
AGREE_S_MAX = 60.0
SILENCE_S_MAX = 20.0
READ_BYTES = 1 << 20
_CHUNK = 2_000  # publishes at a time, while what comes of them is read
_PROBE = re.compile(rb"MSG bench\.i\.\d\d\.\d{6} \d{7} 2\r\n(\d\d)\r\n")


class Interests:
    """`each` subscriptions of one connection on every node; `tell` sends them."""

    def __init__(self, server: Server, each: int) -> None:
        self._server, self._each, self._nodes = server, each, range(server.setup.nodes)
        self._subscribers: list[socket.socket] = []
        self._probers: list[socket.socket] = []

    @contextmanager
    def connected(self) -> Iterator[None]:
        with ExitStack() as stack:
            for node in self._nodes:
                for connections in (self._subscribers, self._probers):
                    connections.append(stack.enter_context(closing(connect(self._server, node=node))))
            yield

    def tell(self) -> float:
        """Seconds until all nodes know of all subscriptions. BenchError: they do not."""
        began_s = time.monotonic()
        with ThreadPoolExecutor(len(self._nodes)) as pool:
            sending = [pool.submit(self._subscribers[node].sendall, self._subscriptions(node)) for node in self._nodes]
            missing = {(here, there) for here in self._nodes for there in self._nodes if here != there}
            deadline = began_s + AGREE_S_MAX
            while missing:
                for here, there in missing:
                    self._probers[here].sendall(b"PUB %b 2\r\n%02d\r\n" % (_subject(there, self._each - 1), here))
                missing -= self._arrived()
                if time.monotonic() > deadline:
                    raise BenchError(f"{self._server.name}: nodes do not hear of each other's interest: {missing}")
            for sent in sending:
                sent.result()
        return time.monotonic() - began_s

    def prove(self) -> None:
        """Every node reaches every subscription of the others, once. BenchError."""
        for connection in self._subscribers + self._probers:
            barrier(connection)  # takes away the probes that are still on their way, too
        for here in self._nodes:
            for there in self._nodes:
                if here != there:
                    self._prove_way(here, there)

    def _prove_way(self, here: int, there: int) -> None:
        expected = len(b"MSG %b 1000000 2\r\n00\r\n" % _subject(there, 0))
        for first in range(0, self._each, _CHUNK):
            numbers = range(first, min(first + _CHUNK, self._each))
            frames = [b"PUB %b 2\r\n%02d\r\n" % (_subject(there, number), here) for number in numbers]
            self._probers[here].sendall(b"".join(frames))
            came, wanted_bytes = bytearray(), expected * len(numbers)
            while len(came) < wanted_bytes:
                came = bytearray((came + self._receive(there)).replace(b"PING\r\n", b""))
            subjects = re.findall(rb"MSG (\S+)", came)
            if len(came) != wanted_bytes or subjects != [_subject(there, number) for number in numbers]:
                raise BenchError(f"{self._server.name}: {len(subjects)} messages for {len(numbers)} subscriptions")

    def _receive(self, node: int) -> bytes:
        if not select.select([self._subscribers[node]], [], [], SILENCE_S_MAX)[0]:
            raise BenchError(f"{self._server.name}: not every subscription is known to the others")
        return self._subscribers[node].recv(READ_BYTES)

    def _subscriptions(self, node: int) -> bytes:
        lines = [b"SUB %b %07d\r\n" % (_subject(node, number), 1_000_000 + number) for number in range(self._each)]
        return b"".join(lines)

    def _arrived(self) -> set[tuple[int, int]]:
        """Ways on which a probe has come."""
        ready, _, _ = select.select(self._subscribers, [], [], PROBE_S)
        came = {self._subscribers.index(connection): connection.recv(READ_BYTES) for connection in ready}
        return {(int(here), there) for there, data in came.items() for here in _PROBE.findall(data)}


def _subject(node: int, number: int) -> bytes:
    return b"bench.i.%02d.%06d" % (node, number)
