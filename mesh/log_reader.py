"""`$LOG` requests over a nats-py connection: one question, its answers, and asking again when none comes.

Every request has an inbox of its own, which is given up with it; a gateway stops a fetch whose inbox is gone. A request
is asked again, unchanged, when the connection was lost under it, when nothing came in time, and when the log says that
it has no leader at the moment. All of a fetch that was cut short is dropped, so nothing is seen twice and nothing is
missed. On a standing connection it gives up after CLIENT_RETRY_MS; a connection that is away is waited for as long as
nats-py looks for it.

Source: `protocol.history`.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh.connection import PERMISSIONS_VIOLATION, Headers
from protocol import subjects
from protocol.errors import LOG_ERRORS, LogError, MeshError
from protocol.limits import (
    CLIENT_ANSWER_MS,
    CLIENT_FETCH_BYTES,
    CLIENT_RETRY_MS,
    CLIENT_RETRY_PAUSE_MS,
    CLIENT_WATCH_MS,
    FETCH_RECORDS_DEFAULT,
)

RETRIABLE: Final = frozenset({"LEADER_NOT_AVAILABLE", "THROTTLING_QUOTA_EXCEEDED"})
_STREAM_NAME = re.compile(r"[$A-Za-z0-9_-]+(@[A-Za-z0-9_-]+(~[0-9]+)?)?")
_OURS = frozenset({"Log-Stream", "Log-Zone", "Log-Partition", "Log-Offset", "Log-Timestamp", "Nats-Subject"})
_ORIGINAL = "Original-"
_END_OF_BATCH, _GAP, _NO_RESPONDERS = "204", "206", "503"
_ERROR_FIELDS = frozenset({"code", "name", "message"})


class NoAnswer(MeshError):
    """The log said nothing for CLIENT_RETRY_MS on a standing connection. Nothing was changed: ask again."""


class Partition(NamedTuple):
    """A log: a partition of `stream`, which is a name (`orders`: the own zone's) or `name@zone`."""

    stream: str
    partition: int = 0


class Record(NamedTuple):
    """An event as the log holds it. `timestamp` is in ms since 1970; `headers` are the publisher's own."""

    stream: str
    zone: str
    partition: int
    offset: int
    timestamp: int
    subject: str
    headers: dict[str, list[str]]
    value: bytes


class Gap(NamedTuple):
    """The log says that `events` events are missing, and why; it takes offsets `first` to `last` (inclusive).

    After an accepted loss nobody knows how many there were: 0.
    """

    first: int
    last: int
    events: int
    reason: str

    @property
    def how_many(self) -> str:
        """`events` in words."""
        if not self.events:
            return "an unknown number of events"
        return f"{self.events} event" + "s" * (self.events != 1)


class FetchResult(NamedTuple):
    """`next_offset` is where to go on; the log holds `start_offset` to `high_watermark` (exclusive)."""

    records: list[Record]
    next_offset: int
    high_watermark: int
    start_offset: int
    gaps: tuple[Gap, ...] = ()


class OffsetAndTimestamp(NamedTuple):
    """`timestamp` in ms is that of the record at `offset`."""

    offset: int
    timestamp: int


class PartitionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`high_watermark` is the offset that the next event will get.

    Where nobody leads the partition `leader` is None, `error` says so, and the numbers that follow are -1.
    """

    partition: int
    error: str = ""
    leader: str | None = None
    leader_epoch: int = 0
    log_start_offset: int
    high_watermark: int
    size_bytes: int = 0


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    stream: str
    zone: str
    subjects: tuple[str, ...]
    partitions: tuple[PartitionInfo, ...]
    key: str = "subject"
    ack: str = "quorum"
    reply: str = "always"
    retired: bool = False


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    zone: str
    streams: tuple[StreamInfo, ...]


class LogReader:
    """Asks the log over `connection`, which stays the caller's."""

    def __init__(self, connection: Client) -> None:
        self.connection = connection

    async def metadata(self, stream: str | None = None) -> Metadata:
        """What streams there are, or what `stream` is. LogError UNKNOWN_STREAM, NO_LOG, ...; NoAnswer."""
        subject = "$LOG.METADATA" if stream is None else f"$LOG.METADATA.{_checked(stream)}"
        return msgspec.convert(await self._ask_json(subject, {}), Metadata)

    async def partitions(self, stream: str, needed: int | None = None) -> tuple[PartitionInfo, ...]:
        """Those of `stream`, when the one that is `needed`, or each, has a leader. LogError LEADER_NOT_AVAILABLE."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + CLIENT_RETRY_MS / 1000
        while True:
            (info,) = (await self.metadata(stream)).streams
            missing = (row for row in info.partitions if row.error and needed in (None, row.partition))
            problem = next(missing, None)
            if problem is None:
                return info.partitions
            if clock() >= give_up_at:
                raise LogError(problem.error, f"nobody leads partition {problem.partition} of {stream}")
            await asyncio.sleep(CLIENT_RETRY_PAUSE_MS / 1000)

    async def offsets(
        self, stream: str, at: str, timestamp: int | None = None, partitions: Sequence[int] | None = None
    ) -> dict[int, OffsetAndTimestamp]:
        """By partition; `at` is earliest, latest, timestamp or until, the last two of `timestamp` (ms).

        timestamp: the first record at or after it, offset -1 where there is none. until: an offset below which lies
        every record before it. LogError, NoAnswer.
        """
        request = {"at": at, "timestamp": timestamp, "partitions": partitions}
        request = {name: value for name, value in request.items() if value is not None}
        answer = await self._ask_json(f"$LOG.OFFSETS.{_checked(stream)}", request)
        return {row["partition"]: OffsetAndTimestamp(row["offset"], row["timestamp"]) for row in answer["offsets"]}

    async def fetch(
        self,
        partition: Partition,
        *,
        offset: int | None = None,
        timestamp: int | None = None,
        max_records: int = FETCH_RECORDS_DEFAULT,
        max_bytes: int = CLIENT_FETCH_BYTES,
        max_wait_ms: int = 0,
        end_offset: int | None = None,
        filter: str | None = None,
    ) -> FetchResult:
        """Records from `offset`, or from the first one at or after `timestamp` (ms).

        Waits up to `max_wait_ms` at the high watermark; below it at least one record comes, however large, unless
        `filter` (a subject pattern) leaves none. `end_offset` is exclusive. LogError, NoAnswer.
        """
        request = {
            "offset": offset,
            "timestamp": timestamp,
            "max_records": max_records,
            "max_bytes": max_bytes,
            "max_wait_ms": max_wait_ms,
            "end_offset": end_offset,
            "filter": filter,
        }
        body = json.dumps({name: value for name, value in request.items() if value is not None}).encode()
        subject = f"$LOG.FETCH.{_checked(partition.stream)}.{partition.partition}"
        messages = await self._ask(subject, body, max_wait_ms)
        return _fetch_result(messages)

    async def read(
        self, partition: Partition, offset: int, end_offset: int, *, filter: str | None = None
    ) -> AsyncGenerator[FetchResult, None]:
        """What lies from `offset` to `end_offset` (exclusive), in order, a fetch at a time and one read ahead.

        LogError, NoAnswer; the latter too when the log does not reach `end_offset`.
        """
        task: asyncio.Task[FetchResult] | None = None
        try:
            while offset < end_offset:
                task = task or self._fetch_task(partition, offset, end_offset, filter)
                result = await task
                task = None
                if result.next_offset <= offset:
                    raise NoAnswer(f"{partition.stream}/{partition.partition} ends at {offset}, before {end_offset}")
                offset = result.next_offset
                if offset < end_offset:
                    task = self._fetch_task(partition, offset, end_offset, filter)
                if result.records or result.gaps:
                    yield result
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)  # its error would have been raised when it is due

    def _fetch_task(
        self, partition: Partition, offset: int, end_offset: int, filter: str | None
    ) -> asyncio.Task[FetchResult]:
        fetch = self.fetch(partition, offset=offset, end_offset=end_offset, max_wait_ms=1_000, filter=filter)
        return asyncio.get_running_loop().create_task(fetch)

    # -- one question, asked until there is an answer -----------------------------------------------------------------

    async def _ask_json(self, subject: str, request: Mapping[str, Any]) -> dict[str, Any]:
        (message,) = await self._ask(subject, json.dumps(request).encode(), 0)
        answer: dict[str, Any] = json.loads(message.data)
        return answer

    async def _ask(self, subject: str, body: bytes, wait_ms: int) -> list[Msg]:
        """All messages of the answer. LogError when it is one; NoAnswer."""
        loop = asyncio.get_running_loop()
        give_up_at: float | None = None
        while True:
            await self._until_connected()
            question = _Question(self.connection, subject)
            try:
                return await question.ask(body, wait_ms)
            except _ConnectionLost:
                give_up_at = None
                continue
            except (_Silence, LogError) as error:
                if isinstance(error, LogError) and error.name not in RETRIABLE:
                    raise
                give_up_at = give_up_at or loop.time() + CLIENT_RETRY_MS / 1000
                if loop.time() >= give_up_at:
                    raise (error if isinstance(error, LogError) else NoAnswer(f"no answer to {subject}")) from error
            await asyncio.sleep(CLIENT_RETRY_PAUSE_MS / 1000)

    async def _until_connected(self) -> None:
        while not self.connection.is_connected:
            if self.connection.is_closed:
                raise errors.ConnectionClosedError
            await asyncio.sleep(CLIENT_WATCH_MS / 1000)


class _ConnectionLost(Exception):
    """The answer cannot come any more."""


class _Silence(Exception):
    """The next message of the answer did not come in time."""


class _Question:
    """One request under way and what has come of its answer."""

    def __init__(self, connection: Client, subject: str) -> None:
        self._connection, self._subject = connection, subject
        self._is_fetch = subject.startswith("$LOG.FETCH.")
        self._messages: list[Msg] = []
        self._error_before = connection.last_error
        self._ended = asyncio.Event()

    async def ask(self, body: bytes, wait_ms: int) -> list[Msg]:
        # Nothing may be dropped on our side: the request's max_bytes bounds what comes.
        inbox = self._connection.new_inbox()
        lost_before = self._connection.stats["reconnects"]
        subscription = await self._connection.subscribe(
            inbox, cb=self._take, pending_msgs_limit=0, pending_bytes_limit=0
        )
        try:
            await self._connection.publish(self._subject, body, reply=inbox)
            await self._wait(inbox, lost_before, wait_ms)
        finally:
            await _give_up(subscription)
        _raise_error(self._messages[-1], self._connection)
        return self._messages

    async def _take(self, message: Msg) -> None:
        self._messages.append(message)
        status = (message.headers or {}).get("Status")
        if not self._is_fetch or status not in (None, _GAP):
            self._ended.set()

    async def _wait(self, inbox: str, lost_before: int, wait_ms: int) -> None:
        loop = asyncio.get_running_loop()
        received, silent_since = 0, loop.time()
        while not self._ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), CLIENT_WATCH_MS / 1000)
                return
            if self._connection.stats["reconnects"] != lost_before or not self._connection.is_connected:
                raise _ConnectionLost
            self._raise_denial(inbox)
            if len(self._messages) != received:
                received, silent_since = len(self._messages), loop.time()
            if loop.time() - silent_since > (wait_ms + CLIENT_ANSWER_MS) / 1000:
                raise _Silence

    def _raise_denial(self, inbox: str) -> None:
        """A request that this user may not send is refused with an error of the connection, not with an answer."""
        if self._connection.last_error is self._error_before:
            return
        error = str(self._connection.last_error).lower()
        if PERMISSIONS_VIOLATION in error and (self._subject.lower() in error or inbox.lower() in error):
            raise LogError("AUTHORIZATION_FAILED", error.removeprefix("nats: "))


async def _give_up(subscription: Subscription) -> None:
    # On a connection that is closed or draining it is given up already.
    with suppress(errors.ConnectionClosedError, errors.ConnectionDrainingError, errors.BadSubscriptionError):
        await subscription.unsubscribe()


def _checked(stream: str) -> str:
    if not _STREAM_NAME.fullmatch(stream):
        what = "letters, digits, _ and -, and @ZONE behind it for another zone's log"
        raise LogError("UNKNOWN_STREAM", f"{stream!r} is not the name of a stream: {what}")
    return stream


# -- reading answers --------------------------------------------------------------------------------------------------


def _raise_error(message: Msg, connection: Client) -> None:
    headers = message.headers or {}
    status = headers.get("Status")
    if status == _END_OF_BATCH:
        return
    if status is not None:
        if status == _NO_RESPONDERS and "Log-Error" not in headers:
            where = connection.connected_url.netloc.rpartition("@")[2] if connection.connected_url else "this server"
            raise LogError("NO_LOG", f"nobody answers for the log at {where}: is it an Event Mesh gateway?")
        details = {
            name.removeprefix("Log-").lower().replace("-", "_"): value
            for name, value in headers.items()
            if name.startswith("Log-") and name != "Log-Error"
        }
        raise _log_error(headers.get("Description", ""), headers.get("Log-Error", ""), details)
    if message.data.startswith(b'{"error":'):
        error = json.loads(message.data)["error"]
        details = {name: value for name, value in error.items() if name not in _ERROR_FIELDS}
        raise _log_error(error["name"], error["message"], details)


def _log_error(name: str, message: str, details: Mapping[str, int | str]) -> LogError:
    details = {key: _number_or_text(value) for key, value in details.items()}
    if name not in LOG_ERRORS:  # of a newer server
        return LogError("INVALID_REQUEST", f"{name}: {message}", **details)
    return LogError(name, message, **details)


def _number_or_text(value: int | str) -> int | str:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _fetch_result(messages: list[Msg]) -> FetchResult:
    ends = messages[-1].headers or {}
    records: list[Record] = []
    gaps: list[Gap] = []
    for message in messages[:-1]:
        if (message.headers or {}).get("Status") == _GAP:
            gaps.append(_gap(message.headers or {}))
        else:
            records.append(_record(message))
    return FetchResult(
        records,
        int(ends["Log-Next-Offset"]),
        int(ends["Log-High-Watermark"]),
        int(ends["Log-Start-Offset"]),
        tuple(gaps),
    )


def _gap(headers: Mapping[str, str]) -> Gap:
    return Gap(
        int(headers["Log-Gap-From"]),
        int(headers["Log-Gap-To"]),
        int(headers.get("Log-Gap-Events", "0")),
        headers.get("Log-Gap-Reason", ""),
    )


def _record(message: Msg) -> Record:
    ours: dict[str, str] = {}
    theirs: dict[str, list[str]] = {}
    for name, value in _fields(message):
        if name in _OURS:
            ours.setdefault(name, value)
        else:
            theirs.setdefault(name.removeprefix(_ORIGINAL), []).append(value)
    return Record(
        ours["Log-Stream"],
        ours["Log-Zone"],
        int(ours["Log-Partition"]),
        int(ours["Log-Offset"]),
        int(ours["Log-Timestamp"]),
        ours["Nats-Subject"],
        theirs,
        message.data,
    )


def header_lists(message: Msg) -> dict[str, list[str]]:
    """All headers of a live message: every value under its name, in order where the connection is one of ours."""
    found: dict[str, list[str]] = {}
    for name, value in _fields(message):
        found.setdefault(name, []).append(value)
    return found


def _fields(message: Msg) -> Sequence[tuple[str, str]]:
    """A publisher may have sent lines that are no headers; they are passed over, as nats-py does."""
    headers = message.headers
    if not isinstance(headers, Headers):
        return list((headers or {}).items())
    lines = subjects.decode(headers.block).split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines)
    return [(name, value.strip(" \t")) for name, colon, value in pairs if colon]
