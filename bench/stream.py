"""One-way traffic: publishers send chunks of ready-made frames, one process counts what all receivers get.

Pacing. A publisher sends as fast as the server reads (blocking sockets: the server's own back-pressure), and keeps a
window: what is published and not yet received by the slowest receiver stays below `WINDOW_BYTES`. So nobody is cut as a
slow consumer, and a server is measured at what it delivers, not at what it can pile up. The window is the same for all
servers; half of it would give the same rates.

Proof. The time ends when the last byte has come that the publishers' messages make. Then one more message is sent and
each connection does PING/PONG: the bytes of each receiver must be exactly those expected and end with that message,
whole. A lost, doubled or torn message, a cut connection or a silence fails the run loudly.
"""

import mmap
import select
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from enum import IntEnum
from types import TracebackType
from typing import Self

from bench.children import Child
from bench.servers import COUNT_WAIT_S_MAX, POLL_S, BenchError, Server
from bench.traffic import CHUNK_BYTES, SUBJECT, SUBSCRIPTION_ID, Traffic
from bench.wire import SPREAD_S, barrier, connect, read_until

WINDOW_BYTES = 16 * 1024 * 1024  # of one receiver
WINDOWS_BYTES = 128 * 1024 * 1024  # of all receivers together
RECEIVE_BYTES = 1024 * 1024
SILENCE_S_MAX = 30.0
WAIT_S = 0.0002
PACED_TICK_S = 0.001


@dataclass(frozen=True)
class Stream:
    """Who sends what to whom. Every receiver gets every message, or with `queue` one of them does."""

    traffic: Traffic
    publishers: int = 1
    receivers: int = 1
    subscription: str = SUBJECT
    queue: str = ""
    spreads: bool = False  # receivers are on all nodes in turn, not on the last one
    rate: float = 0.0  # messages per second of all publishers; 0 = as fast as possible

    @property
    def copies(self) -> int:
        """Deliveries of one message."""
        return 1 if self.queue else self.receivers

    @property
    def window_bytes(self) -> int:
        return min(WINDOW_BYTES, WINDOWS_BYTES // max(1, self.receivers))


@dataclass(frozen=True)
class Rate:
    """What came of it. `messages` are deliveries, or what was published when nobody receives."""

    messages: int
    seconds: float
    server_cpu_s: float
    generators_cpu_s: float

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds

    @property
    def server_ns(self) -> float:
        """CPU time of the server for one message; several CPUs may work on it at once."""
        return self.server_cpu_s / self.messages * 1e9


class _Flag(IntEnum):
    STOP = 0  # publishers shall finish
    ARRIVED = 1  # the receivers have everything
    PROOF_SENT = 2  # the message behind the last one is out
    FAILED = 3  # somebody gave up


class _Shared:
    """Numbers that parent and children see at once, in shared memory."""

    def __init__(self, publishers: int, receivers: int) -> None:
        memory = mmap.mmap(-1, 8 * (len(_Flag) + 3 * publishers + receivers))
        view = memoryview(memory).cast("q")
        self._flags, parts = view[: len(_Flag)], view[len(_Flag) :]
        self.sent, self.began_ns = parts[:publishers], parts[publishers : 2 * publishers]
        self.finished, self.received = parts[2 * publishers : 3 * publishers], parts[3 * publishers :]

    def set(self, flag: _Flag) -> None:
        self._flags[flag] = 1

    def is_set(self, flag: _Flag) -> bool:
        return self._flags[flag] != 0


class Running:
    """A stream under way: leaving it early ends its processes."""

    def __init__(self, server: Server, stream: Stream, seconds: float) -> None:
        self._server, self._stream, self._seconds = server, stream, seconds
        self._shared = _Shared(stream.publishers, stream.receivers)
        self._stack = ExitStack()
        self._children: list[Child] = []
        self._cpu_s = 0.0
        self._counted = 0

    @property
    def _is_counted(self) -> bool:
        """Nobody receives: the server's own count has to do."""
        return not self._stream.receivers and self._server.wire == "nats"

    def __enter__(self) -> Self:
        stream, shared = self._stream, self._shared
        group = f" {stream.queue}" if stream.queue else ""
        subscribe = f"SUB {stream.subscription}{group} {SUBSCRIPTION_ID}\r\n".encode()
        connections = [
            self._stack.enter_context(closing(connect(self._server, subscribe, subscribes=True, node=node)))
            for node in self._nodes()
        ]
        sources = [self._stack.enter_context(closing(connect(self._server))) for _ in range(stream.publishers)]
        chunks = _chunks_of(stream)
        self._counted = self._server.messages_in() if self._is_counted else 0
        self._cpu_s = self._server.cpu_s()
        if connections:
            receiver = _Receiver(self._server, stream, shared, connections)
            self._children.append(Child(_telling(shared, receiver.run)))
        for index, source in enumerate(sources):
            publisher = _Publisher(self._server, stream, shared, source, index, chunks, self._seconds)
            self._children.append(Child(_telling(shared, publisher.run)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._shared.set(_Flag.FAILED)
        self._stack.close()
        for child in self._children:
            child.end()

    def _nodes(self) -> list[int | None]:
        """Of each receiver, see `connect`."""
        if not self._stream.spreads:
            return [None] * self._stream.receivers
        return [index % self._server.setup.nodes for index in range(self._stream.receivers)]

    def stop(self) -> None:
        """Let the publishers come to an end before their time is over."""
        self._shared.set(_Flag.STOP)

    def result(self) -> Rate:
        """Waits for all of them. BenchError: a message is missing or too many, a connection was cut."""
        ends_ns, problems = [], []
        for child in self._children:
            try:
                ends_ns.append(child.result())
            except BenchError as error:
                problems.append(str(error))
        if problems:
            words = self._server.complaints() or "it says nothing"
            raise BenchError(f"{self._server.name}: {'; '.join(problems)} (the server: {words})")
        server_cpu_s = self._server.cpu_s() - self._cpu_s
        sent = sum(self._shared.sent)
        if self._is_counted:
            _check_count(self._server, self._counted + sent)
        return Rate(
            messages=sent * (self._stream.copies if self._stream.receivers else 1),
            seconds=(max(ends_ns) - min(self._shared.began_ns)) / 1e9,
            server_cpu_s=server_cpu_s,
            generators_cpu_s=sum(child.cpu_s for child in self._children),
        )


def measure(server: Server, stream: Stream, seconds: float) -> Rate:
    """Publishes for `seconds` (a traffic of `once`: all of it) and waits until everything has come."""
    with Running(server, stream, seconds) as running:
        return running.result()


def _chunks_of(stream: Stream) -> list[tuple[bytes, int]]:
    chunk_bytes = min(CHUNK_BYTES, stream.window_bytes // 4)
    if stream.rate:
        per_tick = stream.rate / stream.publishers * PACED_TICK_S / 2
        chunk_bytes = max(1, int(per_tick)) * stream.traffic.published_bytes
    return stream.traffic.chunks(chunk_bytes)


def _telling(shared: _Shared, function: Callable[[], int]) -> Callable[[], int]:
    """`function`, of whose failure the other processes learn."""

    def run() -> int:
        try:
            return function()
        except BaseException:
            shared.set(_Flag.FAILED)
            raise

    return run


def _check_count(server: Server, sent: int) -> None:
    """The server's own count, which may come a moment later."""
    deadline = time.monotonic() + COUNT_WAIT_S_MAX
    while (counted := server.messages_in()) != sent:
        if time.monotonic() > deadline:
            raise BenchError(f"{server.name} counts {counted} messages of {sent}")
        time.sleep(POLL_S)


# -- in the children --------------------------------------------------------------------------------------------------


@dataclass
class _Publisher:
    server: Server
    stream: Stream
    shared: _Shared
    source: socket.socket
    index: int
    chunks: list[tuple[bytes, int]]
    seconds: float

    def run(self) -> int:
        """Sends; nanoseconds of the clock when the server had carried it out."""
        self.shared.began_ns[self.index] = time.monotonic_ns()
        for _ in self._rounds():
            for chunk, messages in self.chunks:
                if not self._may_go_on():
                    break
                self.source.sendall(chunk)
                self.shared.sent[self.index] += messages
        self._finish()
        ended_ns = time.monotonic_ns()
        self.shared.finished[self.index] = 1
        if self.index == 0 and self.stream.receivers:
            self._prove()
        return ended_ns

    def _rounds(self) -> "range | _Endless":
        return range(1) if self.stream.traffic.once else _Endless(self)

    def ends(self) -> bool:
        began_ns = self.shared.began_ns[self.index]
        return bool(self.shared.is_set(_Flag.STOP) or time.monotonic_ns() - began_ns > self.seconds * 1e9)

    def _may_go_on(self) -> bool:
        """Waits for the window and, with a rate, for the time of the next chunk."""
        while not self._window_is_open() or self._is_early():
            if self.shared.is_set(_Flag.FAILED) or (self.shared.is_set(_Flag.STOP) and self.stream.rate):
                return False
            time.sleep(PACED_TICK_S / 2 if self.stream.rate else WAIT_S)
        return not self.shared.is_set(_Flag.FAILED)

    def _window_is_open(self) -> bool:
        received = self.shared.received
        if not len(received):
            return True
        arrived_bytes = sum(received) if self.stream.queue else min(received)
        size_bytes = self.stream.traffic.delivered_bytes if self.server.wire == "nats" else (
            self.stream.traffic.published_bytes
        )  # fmt: skip
        return sum(self.shared.sent) * size_bytes - arrived_bytes < self.stream.window_bytes

    def _is_early(self) -> bool:
        if not self.stream.rate:
            return False
        passed_s = (time.monotonic_ns() - self.shared.began_ns[self.index]) / 1e9
        return bool(self.shared.sent[self.index] > passed_s * self.stream.rate / self.stream.publishers)

    def _finish(self) -> None:
        if self.server.wire == "nats":
            barrier(self.source)
            return
        self.source.shutdown(socket.SHUT_WR)
        while self.source.recv(1):
            pass

    def _prove(self) -> None:
        while not self.shared.is_set(_Flag.ARRIVED):
            if self.shared.is_set(_Flag.FAILED):
                return
            time.sleep(WAIT_S)
        if self.server.wire == "nats":
            self.source.sendall(self.stream.traffic.published(self.stream.traffic.subjects[0]))
            barrier(self.source)
            time.sleep(SPREAD_S if self.server.setup.nodes > 1 else 0)
        self.shared.set(_Flag.PROOF_SENT)


@dataclass
class _Endless:
    """Rounds until the publisher's time is over."""

    publisher: _Publisher

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> None:
        if self.publisher.ends() or self.publisher.shared.is_set(_Flag.FAILED):
            raise StopIteration


@dataclass
class _Receiver:
    server: Server
    stream: Stream
    shared: _Shared
    connections: list[socket.socket]
    buffer: bytearray = field(default_factory=lambda: bytearray(RECEIVE_BYTES))

    def run(self) -> int:
        """Counts until all has come; nanoseconds of the clock at that moment."""
        total_bytes, ended_ns = 0, time.monotonic_ns()
        expected_bytes = None
        indexes = {connection.fileno(): index for index, connection in enumerate(self.connections)}
        poller = select.epoll()
        for number in indexes:
            poller.register(number, select.EPOLLIN)
        while expected_bytes is None or total_bytes < expected_bytes:
            for number, _ in poller.poll(0.05):
                total_bytes += self._receive(indexes[number])
                ended_ns = time.monotonic_ns()
            if expected_bytes is None and all(self.shared.finished):
                expected_bytes = sum(self.shared.sent) * self._size_bytes * self.stream.copies
            self._give_up_after(ended_ns, total_bytes, expected_bytes)
        self.shared.set(_Flag.ARRIVED)
        self._check(expected_bytes)
        return ended_ns

    @property
    def _size_bytes(self) -> int:
        traffic = self.stream.traffic
        return traffic.delivered_bytes if self.server.wire == "nats" else traffic.published_bytes

    def _receive(self, index: int) -> int:
        connection, came_bytes = self.connections[index], 0
        while True:
            size = connection.recv_into(self.buffer)
            if not size:
                raise BenchError(f"receiver {index} was cut after {self.shared.received[index]} B")
            came_bytes += size
            self.shared.received[index] += size
            if not (isinstance(connection, ssl.SSLSocket) and connection.pending()):
                return came_bytes

    def _give_up_after(self, last_ns: int, total_bytes: int, expected_bytes: int | None) -> None:
        if self.shared.is_set(_Flag.FAILED):
            raise BenchError("the receivers stop as well")
        if expected_bytes is not None and time.monotonic_ns() - last_ns > SILENCE_S_MAX * 1e9:
            raise BenchError(f"{total_bytes} of {expected_bytes} B have come, and then nothing for {SILENCE_S_MAX} s")

    def _check(self, expected_bytes: int) -> None:
        """The bytes of each are exactly right, and the next message comes whole."""
        while not self.shared.is_set(_Flag.PROOF_SENT):
            if self.shared.is_set(_Flag.FAILED):
                raise BenchError("the receivers stop as well")
            time.sleep(WAIT_S)
        if self.server.wire == "relay":
            if sum(self.shared.received) != expected_bytes:
                raise BenchError(f"{sum(self.shared.received)} B have come instead of {expected_bytes}")
            return
        proof = self.stream.traffic.delivered(self.stream.traffic.subjects[0])
        total_bytes, proofs = 0, 0
        for index, connection in enumerate(self.connections):
            connection.sendall(b"PING\r\n")
            rest = read_until(connection, b"PONG\r\n")[: -len(b"PONG\r\n")]
            came_bytes = self.shared.received[index] + len(rest)
            rest = rest.removesuffix(b"PING\r\n")
            proofs += rest.endswith(proof)
            pings_bytes = came_bytes % self._size_bytes  # the server's own PINGs, if any
            if pings_bytes not in (0, 6, 12):
                raise BenchError(f"receiver {index} got {came_bytes} B, which are not whole messages")
            total_bytes += came_bytes - pings_bytes
        if proofs != self.stream.copies:
            raise BenchError(f"the message behind the last one came to {proofs} receivers")
        if total_bytes != expected_bytes + proofs * len(proof):
            raise BenchError(f"{total_bytes} B have come instead of {expected_bytes + proofs * len(proof)}")
