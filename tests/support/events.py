"""What an application does, with nats-py and nothing of ours: publish under acknowledgement, read history."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, Error

ANSWER_WAIT_S_MAX = 60.0


class Lost(Exception):
    """The connection ended; what was not answered is in the log or not."""


class Publisher:
    """Publishes numbered events with at most `window` of them unanswered; `answers` are PubAcks by number."""

    def __init__(self, connection: Client, subject: str, window: int = 1_000) -> None:
        self._connection, self._subject, self._window = connection, subject, window
        self._inbox = connection.new_inbox()
        self._moved = asyncio.Event()
        self.sent: dict[int, bytes] = {}
        self.answers: dict[int, dict[str, Any]] = {}

    async def open(self) -> "Publisher":
        await self._connection.subscribe(f"{self._inbox}.*", cb=self._take, pending_msgs_limit=0)
        return self

    async def _take(self, message: Msg) -> None:
        self.answers[int(message.subject.rpartition(".")[2])] = json.loads(message.data)
        self._moved.set()

    @property
    def acknowledged(self) -> dict[int, dict[str, Any]]:
        return {number: answer for number, answer in self.answers.items() if "error" not in answer}

    async def send(self, number: int, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends when the window has room. Lost."""
        await self._until_unanswered(self._window - 1)
        self.sent[number] = payload
        try:
            await self._connection.publish(self._subject, payload, f"{self._inbox}.{number}", headers)
        except ConnectionClosedError as error:
            raise Lost from error

    async def settle(self) -> None:
        """Until everything is answered. Lost."""
        await self._until_unanswered(0)

    async def _until_unanswered(self, most: int) -> None:
        async with asyncio.timeout(ANSWER_WAIT_S_MAX):
            while len(self.sent) - len(self.answers) > most:
                if self._connection.is_closed:
                    raise Lost
                self._moved.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._moved.wait(), 0.05)


class Shown(NamedTuple):
    """One event of the history."""

    offset: int
    timestamp_ms: int
    subject: str
    payload: bytes


class Fetched(NamedTuple):
    """The events of one fetch; `status` and `headers` are those of the message that ended it."""

    events: list[Shown]
    status: str
    headers: dict[str, str]

    @property
    def next_offset(self) -> int:
        return int(self.headers["Log-Next-Offset"])

    @property
    def high_watermark(self) -> int:
        return int(self.headers["Log-High-Watermark"])


async def fetch(connection: Client, stream: str, partition: int = 0, **request: int | str) -> Fetched:
    """One `$LOG.FETCH`."""
    events: list[Shown] = []
    inbox = connection.new_inbox()
    subscription = await connection.subscribe(inbox, pending_msgs_limit=0, pending_bytes_limit=0)
    try:
        await connection.publish(f"$LOG.FETCH.{stream}.{partition}", json.dumps(request).encode(), inbox)
        while True:
            message = await subscription.next_msg(ANSWER_WAIT_S_MAX)
            headers = message.headers or {}
            if "Log-Offset" not in headers:
                return Fetched(events, headers["Status"], headers)
            place = int(headers["Log-Offset"]), int(headers["Log-Timestamp"])
            events.append(Shown(*place, headers["Nats-Subject"], message.data))
    finally:
        with contextlib.suppress(Error):  # the connection is gone, and the subscription with it
            await subscription.unsubscribe()


async def replay(connection: Client, stream: str, *, offset: int = 0, **request: int | str) -> AsyncIterator[Shown]:
    """Everything from `offset` to the high watermark, a fetch at a time."""
    while True:
        fetched = await fetch(connection, stream, offset=offset, **request)
        assert fetched.status == "204", fetched
        for event in fetched.events:
            yield event
        offset = fetched.next_offset
        if offset >= fetched.high_watermark:
            return


async def everything(connection: Client, stream: str) -> list[Shown]:
    return [event async for event in replay(connection, stream)]


async def readable(connection: Client, stream: str) -> None:
    """Once its log can be read: a gateway finds its sink a moment after both serve."""
    while (await fetch(connection, stream, offset=0, max_records=1)).status == "503":  # noqa: ASYNC110 - not our state
        await asyncio.sleep(0.02)


async def published(connection: Client, subject: str, payload: bytes = b"", **headers: str) -> dict[str, Any]:
    """The log's answer to one publish."""
    message = await connection.request(subject, payload, ANSWER_WAIT_S_MAX, headers=headers or None)
    answer: dict[str, Any] = json.loads(message.data)
    return answer
