"""The gateway's end of the link to one Raft group of its zone's sinks: finds the sink that leads it and keeps the link
to that one, sends the outbox's frames, asks for history.

run: dial ─► Hello ─► Welcome, Streams ─► Open ─► Opened: the outbox may send
      ▲                  │ does not lead              │ lost, refused, or silent for too long
      ├──────────────────┴────────────────────────────┘ the next sink, at once (`gateway.core.leader_search`)
      └──────── a pause, growing to half a second, when all have been tried

A sink that is stopped or cut off keeps its connections, and new ones to it may even be accepted: only silence tells. So
dialling, greeting and an open link have their limits, which together let a gateway reach a new leader within three
seconds of the end of the old one.
"""

import asyncio
import itertools
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar, cast

import structlog

from gateway.core.leader_search import LeaderSearch
from gateway.core.outbox import Outbox
from gateway.shell.connection import unpace
from gateway.shell.tls import explained
from protocol import link
from protocol.contracts import Contract
from protocol.errors import FrameError, LogError
from protocol.limits import (
    LINK_DIAL_MS_MAX,
    LINK_PING_INTERVAL_MS,
    LINK_REQUEST_MS_MAX,
    LINK_RETRY_MS_MAX,
    LINK_SILENCE_MS_MAX,
)
from protocol.link import Message
from protocol.streams import StreamState

RETRY_MS_MIN = 20
Dial = Callable[[Callable[[], asyncio.BaseProtocol]], Awaitable[tuple[asyncio.BaseTransport, asyncio.BaseProtocol]]]
Answer = TypeVar("Answer", bound=Message)
log = structlog.get_logger()


class SinkDial(NamedTuple):
    """A sink by its name, and what connects a protocol to it. OSError: it cannot be reached, or is another."""

    name: str
    dial: Dial


class SinkLink:
    """Reads raise LogError: what the sink said, or LEADER_NOT_AVAILABLE while there is no link."""

    def __init__(
        self,
        sinks: Sequence[SinkDial],
        hello: link.Hello,
        opening: Callable[[], link.Open],
        outbox: Outbox,
        now_ms: Callable[[], int],
        changed: Callable[[], None],
        contracts: Callable[[Sequence[Contract]], None] = lambda contracts: None,
    ) -> None:
        """`sinks` are those of the zone, at least one; `hello` names the group. `opening` gives every link a nonce of
        its own.

        `changed` is called when the sink has said something that the outbox has taken in, `contracts` with those of the
        zone, whenever they change.
        """
        self._dials = {sink.name: sink.dial for sink in sinks}
        self._search = LeaderSearch(tuple(self._dials))
        self._hello, self._opening = hello, opening
        self._outbox, self._now_ms, self._changed, self._contracts = outbox, now_ms, changed, contracts
        self._connection: _Connection | None = None
        self._requests: dict[int, asyncio.Future[link.FrameView]] = {}
        self._numbers = itertools.count(1)
        self._last_problem: str | None = None
        self.mirrors: dict[str, StreamState] = {}  # of other zones' logs, by name (`orders@eu`)
        self.connects = 0
        self.failed_attempts = 0
        self.opened = asyncio.Event()  # once, for the first time

    @property
    def group(self) -> int:
        return self._hello.group

    @property
    def is_up(self) -> bool:
        return self._connection is not None and self._connection.is_open

    @property
    def sinks(self) -> tuple[str, ...]:
        """Those that are dialled, in the order of the configuration."""
        return tuple(self._dials)

    @property
    def sink(self) -> str:
        """The one that the link is open to, or ""."""
        return self._connection.sink if self._connection is not None and self._connection.is_open else ""

    @property
    def problem(self) -> str | None:
        """Why there is no link, with what came of each sink; None while it is open."""
        if self.is_up:
            return None
        what = f" group {self.group}" if self.group else ""
        return f"no sink of zone {self._hello.zone} leads{what}: {self._search.report or 'not connected yet'}"

    async def run(self) -> None:
        """Keeps the link until it is cancelled."""
        self._outbox.link_down(self._now_ms(), self.group)
        pause_ms = RETRY_MS_MIN
        while True:
            if await self._try(self._search.next()):
                pause_ms = RETRY_MS_MIN
            if self._search.is_round_over:
                self._note_problem()
                await asyncio.sleep(pause_ms / 1000)
                pause_ms = min(pause_ms * 2, LINK_RETRY_MS_MAX)

    async def _try(self, sink: str) -> bool:
        """One connection from its beginning to its end; whether it was opened."""
        connection = _Connection(sink, self._take, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(LINK_DIAL_MS_MAX / 1000):  # `wait_for` may swallow a cancellation
                await self._dials[sink](lambda: connection)
        except OSError as error:
            why = _explained(error)
        else:
            self.connects += 1
            why = await self._keep(connection)
        if connection.is_open:
            self._search.lost(sink, why)
            self._note_problem()
            return True
        self.failed_attempts += 1
        if connection.leader is not None:
            self._search.declined(sink, connection.leader)
        else:
            self._search.failed(sink, why)
        return False

    async def _keep(self, connection: "_Connection") -> str:
        """Greets and watches until it is lost; why it was."""
        self._connection = connection
        try:
            connection.send(self._hello)
            while not connection.lost.done():
                await asyncio.wait({connection.lost}, timeout=LINK_PING_INTERVAL_MS / 1000)
                connection.watch()
            return connection.lost.result()
        finally:
            self._connection = None
            connection.abort()
            self._outbox.link_down(self._now_ms(), self.group)
            for future in self._requests.values():
                if not future.done():
                    future.set_exception(LogError("LEADER_NOT_AVAILABLE", "the link to the sink was lost"))
            self._requests.clear()

    def _note_problem(self) -> None:
        if self.problem != self._last_problem:
            log.warning("sink_link_down", zone=self._hello.zone, group=self.group, error=self.problem)
        self._last_problem = self.problem

    # -- from the sink ------------------------------------------------------------------------------------------------

    def _take(self, connection: "_Connection", frame: link.FrameView) -> None:
        message = frame.message
        if isinstance(message, link.Appended):
            self._outbox.appended(message)
        elif isinstance(message, link.Refused):
            self._outbox.refused(message, self._now_ms())
            if message.reason in ("FENCED", "NOT_LEADER"):
                connection.end(f"refused: {message.reason}: {link.REASONS[message.reason]}")
        elif isinstance(message, link.Copies):
            self._outbox.copies_told(message, self._now_ms())
        elif isinstance(message, link.Streams):
            self._outbox.streams_told(message, self.group)
        elif isinstance(message, link.Contracts):
            self._contracts(message.contracts)
        elif isinstance(message, link.Mirrors):
            self.mirrors = {stream.name: stream for stream in message.streams}
        elif isinstance(message, link.Opened):
            connection.is_open = True
            self._search.found(connection.sink)
            self._last_problem = None
            log.info("sink_link_up", sink=connection.sink, group=self.group, epoch=message.epoch)
            self._outbox.link_up(message, self.group)
            self.opened.set()
        elif isinstance(message, link.Welcome):
            self._welcomed(connection, message)
        elif isinstance(message, link.Failed) and message.request == 0:
            connection.end(f"refused the link: {message.message}")
        elif isinstance(message, (link.Fetched, link.OffsetsAre, link.Described, link.ContractIs, link.Failed)):
            self._answered(message.request, frame)
        elif not isinstance(message, link.Pong):
            raise FrameError(f"sink link: a sink does not send {type(message).__name__}")
        self._changed()

    def _welcomed(self, connection: "_Connection", message: link.Welcome) -> None:
        if message.node != connection.sink:
            connection.end(f"calls itself {message.node}")
        elif message.leads:
            connection.is_welcome = True
            connection.send(self._opening())
        else:
            connection.leader = message.leader
            connection.end("does not lead")

    def _answered(self, request: int, frame: link.FrameView) -> None:
        future = self._requests.pop(request, None)
        if future is None or future.done():
            return
        if isinstance(frame.message, link.Failed):
            failed = frame.message
            future.set_exception(LogError(failed.name, failed.message, **failed.details))
        else:
            future.set_result(frame)

    # -- to the sink --------------------------------------------------------------------------------------------------

    def send_outbox(self) -> None:
        """Sends what the outbox has made ready."""
        if self._connection is not None and (frames := self._outbox.take_frames(self.group)):
            self._connection.write(frames)

    async def fetch(self, stream: str, partition: int, offset: int, bytes_max: int, wait_ms: int) -> link.FrameView:
        """A `Fetched` with its batches."""
        fetch = link.Fetch(next(self._numbers), stream, partition, offset, bytes_max, wait_ms)
        return await self._ask(fetch, link.Fetched, wait_ms)

    async def offsets(self, stream: str, partitions: tuple[int, ...], at: str, timestamp_ms: int) -> link.OffsetsAre:
        request = link.Offsets(next(self._numbers), stream, partitions, at, timestamp_ms)
        answer = (await self._ask(request, link.OffsetsAre)).message
        assert isinstance(answer, link.OffsetsAre)
        return answer

    async def describe(self, stream: str = "") -> link.Described:
        answer = (await self._ask(link.Describe(next(self._numbers), stream), link.Described)).message
        assert isinstance(answer, link.Described)
        return answer

    async def change_contract(self, contract: Contract, *, removes: bool) -> Contract:
        """The contract as it is in force, or was."""
        request = link.ChangeContract(next(self._numbers), contract, removes)
        answer = (await self._ask(request, link.ContractIs)).message
        assert isinstance(answer, link.ContractIs)
        return answer.contract

    async def _ask(
        self,
        request: link.Fetch | link.Offsets | link.Describe | link.ChangeContract,
        answer: type[Message],
        wait_ms: int = 0,
    ) -> link.FrameView:
        connection = self._connection
        if connection is None or not connection.is_open:
            raise LogError("LEADER_NOT_AVAILABLE", str(self.problem))
        connection.send(request)
        future: asyncio.Future[link.FrameView] = asyncio.get_running_loop().create_future()
        self._requests[request.request] = future
        try:
            frame = await asyncio.wait_for(future, (wait_ms + LINK_REQUEST_MS_MAX) / 1000)
        except (TimeoutError, asyncio.CancelledError) as error:
            self._requests.pop(request.request, None)
            connection.send(link.Cancel(request.request))
            if isinstance(error, TimeoutError):
                raise LogError(
                    "LEADER_NOT_AVAILABLE", f"no answer within {wait_ms + LINK_REQUEST_MS_MAX} ms"
                ) from error
            raise
        if not isinstance(frame.message, answer):
            raise LogError("LEADER_NOT_AVAILABLE", f"the sink answered with {type(frame.message).__name__}")
        return frame


class _Connection(asyncio.BufferedProtocol):
    """Moves bytes; `lost` gets the reason when it is over.

    `leader` is None until the sink has said that it does not lead, and whom it names instead.
    """

    def __init__(
        self, sink: str, take: Callable[["_Connection", link.FrameView], None], lost: asyncio.Future[str]
    ) -> None:
        self.sink, self._take, self.lost = sink, take, lost
        self._reader = link.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._silent_watches = 0
        self.is_welcome = self.is_open = False
        self.leader: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport by name, only by what they can.
        self._transport = cast(asyncio.Transport, transport)
        unpace(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.end(f"the link was lost: {_explained(exc) if exc else 'closed by the sink'}")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._silent_watches = 0
        try:
            for frame in self._reader.took(nbytes):
                if self.lost.done():  # what a sink says that does not lead may be old
                    return
                self._take(self, frame)
        except FrameError as error:
            self.end(str(error))

    def watch(self) -> None:
        """Asks whether the sink is there, and gives up on one that has been silent for too long.

        Counted in calls, one per LINK_PING_INTERVAL_MS, not by the clock: when this process was held up, an answer that
        waits to be read would look like silence.
        """
        limit_ms = LINK_SILENCE_MS_MAX if self.is_welcome else LINK_DIAL_MS_MAX
        if self._silent_watches * LINK_PING_INTERVAL_MS >= limit_ms:
            self.end(f"silent for {limit_ms} ms")
        self._silent_watches += 1
        self.send(link.Ping())

    def send(self, message: Message) -> None:
        self.write([link.pack(message)])

    def write(self, frames: list[bytes]) -> None:
        if self._transport is not None:
            self._transport.writelines(frames)

    def end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _explained(error: Exception) -> str:
    """What is wrong with a connection, in the system's words where the loop has only its own."""
    if isinstance(error, ssl.SSLError):
        return explained(error)
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no connection within {LINK_DIAL_MS_MAX} ms"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
