"""Publishing under acknowledgement: every event is in the log once, in the order in which it was given.

Each event carries an id of its own (`Nats-Msg-Id`) and up to PUBLISH_WINDOW_EVENTS are on their way. An answer ends an
event's journey. When the connection is lost, or no answer comes in time, *all* that is unanswered is sent again, oldest
first and with the same ids: the log knows those it has and keeps the others in order.

Why the order holds: a gateway takes the events of a connection in order, so what the log has of the window is always
its beginning, and the rest follows. Two things would break that, and both are kept out. nats-py sends what it had
buffered when it reconnects, *before* we could repeat what was lost; so the connections here never reconnect, and a new
one begins empty. And an event may be refused (outbox full) while a later one is accepted; so after a refusal nothing
new is sent until all that is on its way is answered. If everything from the first refused event on was refused for a
passing reason, it is sent again; otherwise the publisher stops and says which event is missing.

Source: design, section 4 ('An error answer means: not in the log, and it never will be. Silence means unknown').
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh.connection import PERMISSIONS_VIOLATION, ConnectError, HeaderPairs, too_large
from protocol.errors import MeshError
from protocol.limits import (
    CLIENT_RETRY_PAUSE_MS,
    CLIENT_WATCH_MS,
    PUBLISH_GIVE_UP_MS,
    PUBLISH_WINDOW_BYTES,
    PUBLISH_WINDOW_EVENTS,
)

MSG_ID: Final = "Nats-Msg-Id"
_PASSING: Final = frozenset({429, 503})  # outbox full, no leader, storage full
_STARTING: Final = {"code": 503, "description": "no stream keeps this subject at the moment"}
_NOBODY: Final = {
    "error": {"code": 404, "description": "no stream keeps this subject and nobody subscribes to it (--no-ack?)"}
}


class PublishError(MeshError):
    """Event `number` (from 0) was not acknowledged; all before it are in the log, and `later` of those behind it.

    `in_doubt`: whether it and others behind it are in the log is not known. Otherwise they are not.
    """

    def __init__(self, number: int, message: str, later: int = 0, *, in_doubt: bool = False) -> None:
        super().__init__(message)
        self.number, self.later, self.in_doubt = number, later, in_doubt


class PubAck(NamedTuple):
    """Event `number` is in the log. `offset` is None where the stream answers before it is known (`ack = "logged"`)."""

    number: int
    stream: str
    zone: str
    partition: int
    offset: int | None
    seq: int
    duplicate: bool


class _Event:
    """One unanswered event. `attempts` counts how often it was sent."""

    __slots__ = ("attempts", "headers", "payload", "refusal", "subject")

    def __init__(self, subject: str, payload: bytes, headers: HeaderPairs) -> None:
        self.subject, self.payload, self.headers = subject, payload, headers
        self.attempts = 0
        self.refusal: dict[str, Any] | None = None


class Publisher:
    """`dial` makes a connection that does not reconnect; `on_ack` is called for every event, as answers come."""

    def __init__(
        self,
        dial: Callable[[], Awaitable[Client]],
        on_ack: Callable[[PubAck], None],
        *,
        answer_ms: int = 5_000,
        give_up_ms: int = PUBLISH_GIVE_UP_MS,
    ) -> None:
        self._dial, self._on_ack = dial, on_ack
        self._answer_s, self._give_up_s = answer_ms / 1000, max(give_up_ms, answer_ms) / 1000
        self._run = secrets.token_urlsafe(12)
        self._connection: Client | None = None
        self._inbox = ""
        self._events: dict[int, _Event] = {}  # unanswered or refused, oldest first
        self._window_bytes = 0
        self._next = 0
        self._last_acked = -1
        self._changed = asyncio.Event()
        self._last: dict[tuple[str, int], tuple[int, int]] = {}
        self._progress_at = 0.0
        self.out_of_order = 0  # events that do not stand where they were given

    async def open(self) -> None:
        """ConnectError."""
        await self._connect()

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def publish(self, subject: str, payload: bytes, headers: Sequence[tuple[str, str]] = ()) -> int:
        """Sends it when there is room and returns its number. PublishError (of an earlier event too), ConnectError."""
        await self._wait_until(
            lambda: (
                len(self._events) < PUBLISH_WINDOW_EVENTS
                and (not self._events or self._window_bytes + len(payload) <= PUBLISH_WINDOW_BYTES)
            )
        )
        number, self._next = self._next, self._next + 1
        if not any(name == MSG_ID for name, _ in headers):
            headers = [*headers, (MSG_ID, f"{self._run}-{number}")]
        event = _Event(subject, payload, HeaderPairs(headers))
        if not self._events:
            self._progress_at = asyncio.get_running_loop().time()
        self._events[number] = event
        self._window_bytes += len(payload)
        try:
            await self._send(number, event)
        except PublishError:
            await self.drain()  # this one was never sent; those before it are on their way
            raise
        return number

    async def drain(self) -> None:
        """Waits until every event is answered. PublishError, ConnectError."""
        await self._wait_until(lambda: not self._events)

    # -- sending ------------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        self._connection = await self._dial()
        self._inbox = self._connection.new_inbox()
        await self._connection.subscribe(
            f"{self._inbox}.*", cb=self._on_answer, pending_msgs_limit=0, pending_bytes_limit=0
        )

    async def _send(self, number: int, event: _Event) -> None:
        assert self._connection is not None
        event.attempts += 1
        try:
            await self._connection.publish(
                event.subject, event.payload, reply=f"{self._inbox}.{number}", headers=event.headers
            )
        except (OSError, errors.ConnectionClosedError, errors.OutboundBufferLimitError):
            self._changed.set()  # a connection that was lost is noticed and made anew by who waits
        except errors.MaxPayloadError as error:
            self._forget(number)
            raise PublishError(number, too_large(event.payload, event.headers, self._connection.max_payload)) from error
        except (errors.Error, UnicodeEncodeError) as error:
            self._forget(number)
            raise PublishError(number, str(error).removeprefix("nats: ")) from error

    async def _send_all_again(self) -> None:
        for number, event in list(self._events.items()):
            event.refusal = None
            await self._send(number, event)

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _on_answer(self, message: Msg) -> None:
        number = int(message.subject.rpartition(".")[2])
        event = self._events.get(number)
        if event is None:
            return  # an answer to an earlier attempt came first
        answer = _read_answer(message)
        if answer is None:
            return  # a subscriber answered; the log will do so too
        if "error" in answer:
            # A subject that was kept a moment ago is kept again once its gateway has found its sink.
            is_starting = answer is _NOBODY and self._last_acked >= 0
            event.refusal = _STARTING if is_starting else answer["error"]
        else:
            self._accept(number, answer)
        self._changed.set()

    def _accept(self, number: int, answer: dict[str, Any]) -> None:
        self._forget(number)
        self._last_acked = max(self._last_acked, number)
        self._progress_at = asyncio.get_running_loop().time()
        offset, partition = answer.get("offset"), answer.get("partition", 0)
        ack = PubAck(
            number,
            answer["stream"],
            answer.get("zone") or answer.get("domain") or "",
            partition,
            offset,
            answer["seq"],
            bool(answer.get("duplicate")),
        )
        if offset is not None:
            self._check_order((ack.stream, partition), number, offset)
        self._on_ack(ack)

    def _check_order(self, log: tuple[str, int], number: int, offset: int) -> None:
        """The event that was given last stands last, as far as answers have come."""
        last_number, last_offset = self._last.get(log, (-1, -1))
        self.out_of_order += offset != last_offset and (number > last_number) != (offset > last_offset)
        self._last[log] = max((number, offset), (last_number, last_offset))

    def _forget(self, number: int) -> None:
        self._window_bytes -= len(self._events.pop(number).payload)

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def _wait_until(self, enough: Callable[[], bool]) -> None:
        while True:
            if any(event.refusal for event in self._events.values()):
                await self._settle()
            elif enough() and (not self._events or self._is_connected()):
                return
            else:
                await self._step()

    def _is_connected(self) -> bool:
        return self._connection is not None and self._connection.is_connected

    async def _step(self) -> None:
        """Until an answer comes; sends again what the loss of the connection or of time has made doubtful."""
        loop = asyncio.get_running_loop()
        resend_at = loop.time() + self._answer_s
        self._changed.clear()
        while self._is_connected():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), CLIENT_WATCH_MS / 1000)
                return
            self._raise_denial()
            if loop.time() >= resend_at:
                self._check_patience("no acknowledgement came")
                break
        else:
            await self._reconnect()
        await self._send_all_again()

    async def _reconnect(self) -> None:
        if not self._events:
            self._progress_at = asyncio.get_running_loop().time()
        while True:
            try:
                return await self._connect()
            except ConnectError as error:
                self._check_patience(str(error))
            await asyncio.sleep(CLIENT_RETRY_PAUSE_MS / 1000)

    async def _settle(self) -> None:
        """After a refusal: when all is answered, sends the refused again, or raises PublishError."""
        while any(event.refusal is None for event in self._events.values()):
            await self._step()
            if not any(event.refusal for event in self._events.values()):
                return  # everything was sent again
        first, event = next(iter(self._events.items()))
        reason = _refusal_text(event)
        later = self._next - first - len(self._events)
        passing = all((event.refusal or {}).get("code") in _PASSING for event in self._events.values())
        if later or not passing:
            raise PublishError(first, reason, later, in_doubt=self._is_in_doubt())
        self._check_patience(reason)
        await asyncio.sleep(CLIENT_RETRY_PAUSE_MS / 1000)
        await self._send_all_again()

    def _check_patience(self, reason: str) -> None:
        waited_s = asyncio.get_running_loop().time() - self._progress_at
        if waited_s >= self._give_up_s:
            number = next(iter(self._events), self._next)
            raise PublishError(number, f"{reason} for {waited_s:.0f} s", in_doubt=self._is_in_doubt())

    def _is_in_doubt(self) -> bool:
        """An error answer says that its attempt is not in the log; of an earlier attempt it says nothing."""
        return any(event.refusal is None or event.attempts > 1 for event in self._events.values())

    def _raise_denial(self) -> None:
        assert self._connection is not None
        error = str(self._connection.last_error or "")
        if PERMISSIONS_VIOLATION in error and self._events:
            raise PublishError(next(iter(self._events)), error.removeprefix("nats: "), in_doubt=len(self._events) > 1)


def _read_answer(message: Msg) -> dict[str, Any] | None:
    """The log's answer; None for what is not one."""
    if (message.headers or {}).get("Status") == "503":
        return _NOBODY
    try:
        answer = json.loads(message.data)
    except ValueError:
        return None
    if not isinstance(answer, dict):
        return None
    if isinstance(answer.get("error"), dict) and "code" in answer["error"]:
        return answer
    return answer if "stream" in answer and "seq" in answer else None


def _refusal_text(event: _Event) -> str:
    refusal = event.refusal or {}
    text = f"refused: {refusal.get('description', 'without a reason')}"
    if "err_code" in refusal:
        text += f" ({refusal['code']}, {refusal['err_code']})"
    return text
