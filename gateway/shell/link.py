"""The gateway's end of the link to its zone's sink: keeps it up, sends the outbox's frames, asks for history.

run: dial ─► Hello ─► Welcome, Streams ─► Open ─► Opened: the outbox may send
      ▲                                             │ lost, refused, or silent for too long
      └───────── a pause, growing to a second ──────┘
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import structlog

from gateway.core.outbox import Outbox
from protocol import link
from protocol.errors import FrameError, LogError
from protocol.limits import LINK_PING_INTERVAL_MS, LINK_REQUEST_MS_MAX, LINK_RETRY_MS_MAX, LINK_SILENCE_MS_MAX
from protocol.link import Message

RETRY_MS_MIN = 20
Dial = Callable[[Callable[[], asyncio.Protocol]], Awaitable[tuple[asyncio.BaseTransport, asyncio.BaseProtocol]]]
Answer = TypeVar("Answer", bound=Message)
log = structlog.get_logger()


class SinkLink:
    """Reads raise LogError: what the sink said, or LEADER_NOT_AVAILABLE while there is no link."""

    def __init__(
        self,
        dial: Dial,
        hello: link.Hello,
        opening: Callable[[], link.Open],
        outbox: Outbox,
        now_ms: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        """`opening` gives every link a nonce of its own.

        `changed` is called when the sink has said something that the outbox has taken in.
        """
        self._dial, self._hello, self._opening = dial, hello, opening
        self._outbox, self._now_ms, self._changed = outbox, now_ms, changed
        self._connection: _Connection | None = None
        self._requests: dict[int, asyncio.Future[link.Frame]] = {}
        self._numbers = itertools.count(1)
        self.welcome: link.Welcome | None = None
        self.last_error = "not connected yet"
        self.connects = 0
        self.opened = asyncio.Event()  # once, for the first time

    @property
    def is_up(self) -> bool:
        return self._connection is not None and self._connection.is_open

    async def run(self) -> None:
        """Keeps the link until it is cancelled."""
        self._outbox.link_down(self._now_ms())
        pause_ms = RETRY_MS_MIN
        while True:
            try:
                was_up = await self._connect()
            except OSError as error:
                self._note(f"cannot reach the sink: {error}")
                was_up = False
            pause_ms = RETRY_MS_MIN if was_up else min(pause_ms * 2, LINK_RETRY_MS_MAX)
            await asyncio.sleep(pause_ms / 1000)

    async def _connect(self) -> bool:
        """One connection from its beginning to its end; returns whether it was opened."""
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        connection = _Connection(self._take, lost)
        await self._dial(lambda: connection)
        self._connection = connection
        self.connects += 1
        try:
            connection.send(self._hello)
            while not lost.done():
                await asyncio.wait({lost}, timeout=LINK_PING_INTERVAL_MS / 1000)
                connection.watch()
            self._note(lost.result())
            return connection.is_open
        finally:
            self._connection = None
            connection.abort()
            self._outbox.link_down(self._now_ms())
            for future in self._requests.values():
                if not future.done():
                    future.set_exception(LogError("LEADER_NOT_AVAILABLE", "the link to the sink was lost"))
            self._requests.clear()

    def _note(self, error: str) -> None:
        if error != self.last_error:
            log.warning("sink_link_down", zone=self._hello.zone, error=error)
        self.last_error = error

    # -- from the sink ------------------------------------------------------------------------------------------------

    def _take(self, connection: "_Connection", frame: link.Frame) -> None:
        message = frame.message
        if isinstance(message, link.Appended):
            self._outbox.appended(message)
        elif isinstance(message, link.Refused):
            self._outbox.refused(message, self._now_ms())
            if message.reason in ("FENCED", "NOT_LEADER"):
                connection.end(f"refused: {message.reason}: {link.REASONS[message.reason]}")
        elif isinstance(message, link.Streams):
            self._outbox.set_streams(message.streams)
        elif isinstance(message, link.Opened):
            connection.is_open = True
            self.last_error = ""
            log.info("sink_link_up", sink=self.welcome.node if self.welcome else "", epoch=message.epoch)
            self._outbox.link_up(message)
            self.opened.set()
        elif isinstance(message, link.Welcome):
            self._welcomed(connection, message)
        elif isinstance(message, link.Failed) and message.request == 0:
            connection.end(f"the sink refused the link: {message.message}")
        elif isinstance(message, (link.Fetched, link.OffsetsAre, link.Described, link.Failed)):
            self._answered(message.request, frame)
        elif not isinstance(message, link.Pong):
            raise FrameError(f"sink link: a sink does not send {type(message).__name__}")
        self._changed()

    def _welcomed(self, connection: "_Connection", message: link.Welcome) -> None:
        self.welcome = message
        if message.leads:
            connection.send(self._opening())
        else:
            connection.end(f"sink {message.node} does not lead")

    def _answered(self, request: int, frame: link.Frame) -> None:
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
        if self._connection is not None and self._outbox.frames:
            frames, self._outbox.frames = self._outbox.frames, []
            self._connection.write(frames)

    async def fetch(self, stream: str, partition: int, offset: int, bytes_max: int, wait_ms: int) -> link.Frame:
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

    async def _ask(
        self, request: link.Fetch | link.Offsets | link.Describe, answer: type[Message], wait_ms: int = 0
    ) -> link.Frame:
        connection = self._connection
        if connection is None or not connection.is_open:
            raise LogError(
                "LEADER_NOT_AVAILABLE", f"no sink of zone {self._hello.zone} is reachable: {self.last_error}"
            )
        connection.send(request)
        future: asyncio.Future[link.Frame] = asyncio.get_running_loop().create_future()
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


class _Connection(asyncio.Protocol):
    """Moves bytes; `lost` gets the reason when it is over."""

    def __init__(self, take: Callable[["_Connection", link.Frame], None], lost: asyncio.Future[str]) -> None:
        self._take, self._lost = take, lost
        self._reader = link.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._silent_watches = 0
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport by name, only by what they can.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.end(f"the link was lost: {exc or 'closed by the sink'}")

    def data_received(self, data: bytes) -> None:
        self._silent_watches = 0
        try:
            for frame in self._reader.feed(data):
                self._take(self, frame)
        except FrameError as error:
            self.end(str(error))

    def watch(self) -> None:
        """Asks whether the sink is there, and gives up on one that has been silent for too long.

        Counted in calls, one per LINK_PING_INTERVAL_MS, not by the clock: when this process was held up, an answer that
        waits to be read would look like silence.
        """
        if self._silent_watches * LINK_PING_INTERVAL_MS >= LINK_SILENCE_MS_MAX:
            self.end(f"the sink has been silent for {LINK_SILENCE_MS_MAX} ms")
        self._silent_watches += 1
        self.send(link.Ping())

    def send(self, message: Message) -> None:
        self.write([link.pack(message)])

    def write(self, frames: list[bytes]) -> None:
        if self._transport is not None:
            self._transport.writelines(frames)

    def end(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
