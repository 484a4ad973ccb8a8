"""A gateway's client side alone, in this process: a plane and its client port, with hooks that remember."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvloop

from gateway.core import engine
from gateway.core.engine import Engine
from gateway.core.nats_values import Building
from gateway.core.plane import Plane, PlaneOptions
from gateway.core.session import Session
from gateway.shell.server import ClientServer
from gateway.shell.tls import ClientTls


@dataclass
class Hooks:
    """Remembers its calls. `answers`: whether the log answers what it captures."""

    answers: bool = False
    captured: list[tuple[str, str, bytes, bytes]] = field(default_factory=list)
    served: list[tuple[str, str, bytes, bytes]] = field(default_factory=list)
    renewed: list[Session] = field(default_factory=list)
    closed: list[Session] = field(default_factory=list)
    admitted: list[Session] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def keeps(self, account: str, subject: str) -> bool:
        return True

    def governs(self, account: str, subject: str) -> bool:
        return False

    def admits(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        return True

    def capture(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        self.captured.append((subject, reply, header_block, payload))
        return self.answers

    def lane(self, account: str, subject: str) -> None:
        return None

    def wall_ms(self) -> int:
        return 0

    def kept(self) -> None:
        pass

    def service(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> None:
        self.served.append((subject, reply, header_block, payload))

    def nonce(self) -> bytes:
        return b"nonce-bytes"

    def session_admitted(self, session: Session) -> None:
        self.admitted.append(session)

    def refused(self, session: Session, what: str) -> None:
        self.refusals.append(what)

    def session_renewed(self, session: Session) -> None:
        self.renewed.append(session)

    def session_closed(self, session: Session) -> None:
        self.closed.append(session)


ENGINES = [engine.REFERENCE] if engine.COMPILED is None else [engine.REFERENCE, engine.COMPILED]


def make_plane(hooks: Hooks | None = None, engine: Engine = engine.BEST, **options: Any) -> Plane:
    """A plane whose chances always fall the same way."""
    return Plane(PlaneOptions("SERVER", "test", **options), hooks or Hooks(), lambda number: 0, engine)


class PlaneClient:
    """A session of `plane`, of which it has sent `connect`, with what it has got."""

    def __init__(self, plane: Plane, connect: bytes) -> None:
        self.plane = plane
        self.session: Session = plane.connect("10.0.0.1", 50_000, 0)
        self.take()
        if connect:
            self.send(connect)

    def send(self, data: bytes, now_ms: int = 0) -> bytes:
        self.plane.receive(self.session, data, now_ms)
        return self.take()

    def take(self) -> bytes:
        return self.session.take()


def page(building: Building) -> dict[str, Any]:
    """What a page of the monitor says, all its turns taken."""
    while True:
        try:
            next(building)
        except StopIteration as end:
            made: dict[str, Any] = end.value
            return made


@dataclass
class Served:
    """What `serve` runs."""

    plane: Plane
    server: ClientServer
    hooks: Hooks
    port: int

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def serve(
    *, write_deadline_ms: int = 10_000, port: int = 0, tls: ClientTls | None = None, **options: Any
) -> AsyncIterator[Served]:
    """A client port on 127.0.0.1; `options` are those of `PlaneOptions`."""
    hooks = Hooks()
    plane = make_plane(hooks, **options)
    server = ClientServer(
        plane,
        host="127.0.0.1",
        port=port,
        now_ms=lambda: time.monotonic_ns() // 1_000_000,
        write_deadline_ms=write_deadline_ms,
        tls=tls,
    )
    _, bound = await server.start()
    try:
        yield Served(plane, server, hooks, bound)
    finally:
        await server.stop()


@contextlib.contextmanager
def serve_in_thread(**options: Any) -> Iterator[int]:
    """The same in a thread of its own, for tests that block; the port. Its loop is the one of production."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="gateway")
    thread.start()
    serving = serve(**options)
    try:
        served = asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result(60)
        try:
            yield served.port
        finally:
            asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
