"""Connections between the machines of a simulated zone: what TCP promises, and every way in which it is of no use.

Bytes of a direction arrive in order, in any pieces, after any time. A direction between two machines may be blocked:
what is under way waits (it is sent again when the direction is open), connections stay, nobody is told. A connection
may be cut: what was on its way is lost, and each end hears of it, unless a block keeps that from it too.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from simulation.virtual import CURRENT, Process, VirtualLoop

HIGH_WATER_BYTES, LOW_WATER_BYTES = 64 * 1024, 16 * 1024
CONNECT_S_MAX = 0.005


class Direction:
    """One way of a connection: pieces of bytes, None is its end; `to` gets them."""

    def __init__(self, network: "Network", sender: "SimulatedTransport", to: "SimulatedTransport") -> None:
        self.network, self.sender, self.to = network, sender, to
        # Of its own: in which order a process writes to several connections at once may depend on a set.
        self.rng = random.Random(network.rng.random())
        self.pieces: deque[bytes | None] = deque()
        self.size_bytes = 0
        self.arrives_at = 0.0
        self.is_scheduled = False

    def put(self, data: bytes | None) -> None:
        self.pieces.append(data)
        self.size_bytes += len(data or b"")
        self.schedule()

    def schedule(self) -> None:
        """Has the first piece arrive, if the way is open and it is not on its way already."""
        if self.is_scheduled or not self.pieces or self.network.is_blocked(self.sender.machine, self.to.machine):
            return
        loop = self.network.loop
        self.arrives_at = max(self.arrives_at, loop.now + self._delay())
        self.is_scheduled = True
        loop.call_at(self.arrives_at, self._arrive, context=self.network.nowhere)

    def _delay(self) -> float:
        slow_s = self.network.slow_s.get((self.sender.machine, self.to.machine), 0.0) * self.rng.random()
        return slow_s + 0.0001 + self.network.far_s * self.rng.random() ** 4

    def _arrive(self) -> None:
        self.is_scheduled = False
        if self.network.is_blocked(self.sender.machine, self.to.machine):
            return
        parts: list[bytes] = []
        while self.pieces and self.pieces[0] is not None:
            parts.append(self.pieces.popleft() or b"")
        data = b"".join(parts)
        if len(data) > 1 and self.rng.random() < 0.05:
            count = self.rng.randrange(1, len(data))
            self.pieces.appendleft(data[count:])
            data = data[:count]
        if data:
            self.to.deliver(data)
            self.size_bytes -= len(data)
            self.sender.was_taken(self)
        elif self.pieces:
            self.pieces.clear()
            self.to.end(None)
        self.schedule()

    def lose(self) -> None:
        """Any end of what is under way is lost."""
        count = self.rng.randint(0, len(self.pieces))
        while len(self.pieces) > count:
            self.size_bytes -= len(self.pieces.pop() or b"")


class SimulatedTransport(asyncio.Transport):
    """One end of a connection; `process` has it."""

    def __init__(self, network: "Network", process: Process, machine: str) -> None:
        super().__init__()
        self.network, self.process, self.machine = network, process, machine
        self.protocol: asyncio.Protocol | asyncio.BufferedProtocol
        self.out: Direction
        self.other: SimulatedTransport
        self._is_closing = self._is_gone = self._is_reading_paused = False

    # -- for the protocol ---------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._is_closing or self._is_gone or not data:
            return
        self.out.put(bytes(data))
        if self.out.size_bytes > HIGH_WATER_BYTES and not self._is_reading_paused:
            self._is_reading_paused = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return self.out.size_bytes

    def is_closing(self) -> bool:
        return self._is_closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def close(self) -> None:
        if not self._is_closing and self.process.is_alive:
            self.out.put(None)
            self.end(None)

    def abort(self) -> None:
        if not self._is_closing and self.process.is_alive:
            self.out.lose()
            self.close()

    # -- for the network ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.call(self.protocol.connection_made, self)

    def deliver(self, data: bytes) -> None:
        self.call(self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        if not self._is_gone and not self._is_closing:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        protocol = self.protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            protocol.data_received(data)
            return
        while data:
            room = protocol.get_buffer(len(data))
            count = min(len(room), len(data))
            room[:count] = data[:count]
            protocol.buffer_updated(count)
            data = data[count:]

    def was_taken(self, direction: Direction) -> None:
        if self._is_reading_paused and direction.size_bytes < LOW_WATER_BYTES:
            self._is_reading_paused = False
            self.call(self._resume)

    def _resume(self) -> None:
        if not self._is_gone:
            self.protocol.resume_writing()

    def end(self, error: Exception | None) -> None:
        self._is_closing = True
        self.network.transports.pop(self, None)
        self.call(self._end, error)

    def _end(self, error: Exception | None) -> None:
        if not self._is_gone:
            self._is_gone = True
            self.protocol.connection_lost(error)
            if self.process.is_alive and not self.other._is_closing:
                self.out.put(None)

    def call(self, work: Callable[..., None], *arguments: Any) -> None:
        self.network.loop.call_soon(work, *arguments, context=self.process.context.copy())


class Listener:
    def __init__(self, network: "Network", process: Process, address: tuple[str, int], factory: Any) -> None:
        self.network, self.process, self.address, self.factory = network, process, address, factory

    def close(self) -> None:
        if self.network.listeners.get(self.address) is self:
            del self.network.listeners[self.address]


class Network:
    """Machines are known by the names of their processes."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        self.loop, self.rng = loop, rng
        self.nowhere = Context()
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.transports: dict[SimulatedTransport, None] = {}
        self.blocked: set[tuple[str, str]] = set()
        self.slow_s: dict[tuple[str, str], float] = {}
        self.far_s = rng.choice((0.001, 0.005, 0.03))
        self.hosts: dict[tuple[str, int], str] = {}

    def is_blocked(self, sender: str, to: str) -> bool:
        return (sender, to) in self.blocked

    # -- for the loop -------------------------------------------------------------------------------------------------

    def listen(self, factory: Any, host: str, port: int) -> Listener:
        process = CURRENT.get()
        assert process is not None
        if (host, port) in self.listeners:
            raise OSError(98, "address in use")
        self.listeners[host, port] = listener = Listener(self, process, (host, port), factory)
        return listener

    async def connect(self, factory: Any, host: str, port: int) -> tuple[SimulatedTransport, asyncio.Protocol]:
        process = CURRENT.get()
        assert process is not None
        machine = self.hosts[host, port]
        await asyncio.sleep(self.rng.random() * CONNECT_S_MAX)
        while self.is_blocked(process.name, machine) or self.is_blocked(machine, process.name):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # until whoever dials gives up; a system tries again too
        listener = self.listeners.get((host, port))
        if listener is None:
            raise ConnectionRefusedError(111, "connection refused")
        ours = SimulatedTransport(self, process, process.name)
        theirs = SimulatedTransport(self, listener.process, machine)
        ours.other, theirs.other = theirs, ours
        ours.out, theirs.out = Direction(self, ours, theirs), Direction(self, theirs, ours)
        ours.protocol = factory()
        self.transports[ours] = self.transports[theirs] = None
        theirs.call(self._accept, listener, theirs)
        ours.protocol.connection_made(ours)
        return ours, ours.protocol

    def _accept(self, listener: Listener, transport: SimulatedTransport) -> None:
        transport.protocol = listener.factory()
        transport.protocol.connection_made(transport)

    # -- what chance does ---------------------------------------------------------------------------------------------

    def block(self, sender: str, to: str) -> None:
        self.blocked.add((sender, to))

    def open(self) -> None:
        """All ways are open again, and quick."""
        self.blocked.clear()
        self.slow_s.clear()
        for transport in list(self.transports):
            transport.out.schedule()

    def unblock(self, sender: str, to: str) -> None:
        self.blocked.discard((sender, to))
        for transport in list(self.transports):
            transport.out.schedule()

    def cut(self, one: str, other: str) -> None:
        """Connections between two machines break."""
        for transport in list(self.transports):
            if {transport.machine, transport.other.machine} == {one, other} and transport in self.transports:
                transport.out.lose()
                transport.other.out.lose()
                transport.out.put(None)
                transport.other.out.put(None)

    def died(self, process: Process) -> None:
        """Its system closes its connections; any end of what it wrote is lost."""
        for listener in list(self.listeners.values()):
            if listener.process is process:
                listener.close()
        for transport in list(self.transports):
            if transport.process is process:
                del self.transports[transport]
                transport.out.lose()
                transport.out.put(None)
