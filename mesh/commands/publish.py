"""`mesh pub`: one event, or one per line of a text, acknowledged unless told otherwise."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from nats import errors

from mesh.commands.failure import Failure
from mesh.connection import Connection, HeaderPairs, connect, too_large
from mesh.lines import STDIN, LineTooLong, read_lines, size_bytes
from mesh.publisher import PubAck, Publisher, PublishError
from mesh.settings import ClientSettings

if TYPE_CHECKING:
    from rich.progress import Progress

_PROGRESS_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """`lines` is a file, or `-` for stdin; without it `body` is published `count` times."""

    subject: str
    body: bytes
    lines: str | None
    headers: tuple[tuple[str, str], ...]
    count: int
    acknowledged: bool
    json: bool


class _Tally:
    """What was sent and what came of it."""

    def __init__(self, options: PublishOptions) -> None:
        self._options = options
        self._started = time.monotonic()
        self.sent = self.sent_bytes = self.acknowledged = self.duplicates = 0
        self.last: PubAck | None = None

    def count(self, payload: bytes) -> None:
        self.sent += 1
        self.sent_bytes += len(payload) + 1

    def on_ack(self, ack: PubAck) -> None:
        self.acknowledged += 1
        self.duplicates += ack.duplicate
        self.last = ack

    def report(self) -> None:
        done = self.acknowledged if self._options.acknowledged else self.sent
        seconds = time.monotonic() - self._started
        rate = done / seconds if seconds else 0.0
        if self._options.json:
            summary = {"events": done, "acknowledged": self._options.acknowledged, "seconds": round(seconds, 3)}
            place = {"stream": self.last.stream, "zone": self.last.zone} if self.last else {}
            click.echo(json.dumps(summary | {"events_per_second": round(rate, 1)} | place))
            return
        noun = "lines" if self._options.lines is not None else "events"
        where = f" in {self.last.stream}@{self.last.zone}" if self.last else ""
        what = "kept" if self._options.acknowledged else "sent"
        click.echo(f"{done} {noun} {what}{where} in {seconds:.2f} s ({rate:,.0f} a second)")


async def run(settings: ClientSettings, options: PublishOptions) -> None:
    tally = _Tally(options)
    many = options.lines is not None or options.count > 1
    with _progress(options, tally, many):
        if options.acknowledged:
            await _acknowledged(settings, options, tally)
        else:
            await _unacknowledged(settings, options, tally)
    if many:
        tally.report()
    elif tally.last is not None:
        _print_ack(tally.last, options)
    elif options.json:
        click.echo(json.dumps({"subject": options.subject, "acknowledged": False}))


async def _payloads(options: PublishOptions) -> AsyncGenerator[bytes, None]:
    if options.lines is None:
        for _ in range(options.count):
            yield options.body
        return
    async for line in read_lines(options.lines):
        yield line


async def _acknowledged(settings: ClientSettings, options: PublishOptions, tally: _Tally) -> None:
    publisher = Publisher(lambda: connect(settings, reconnects=False), tally.on_ack, answer_ms=settings.timeout_ms)
    await publisher.open()
    try:
        async with aclosing(_payloads(options)) as payloads:
            async for payload in payloads:
                await publisher.publish(options.subject, payload, options.headers)
                tally.count(payload)
        await publisher.drain()
    except PublishError as error:
        raise Failure(_which(options, error)) from error
    except LineTooLong as error:
        await _drain(publisher, options)
        raise Failure(_which(options, PublishError(error.number, str(error)))) from error
    finally:
        await publisher.close()
    if publisher.out_of_order:
        raise Failure(f"all events are in the log, but {publisher.out_of_order} of them stand out of order")


async def _drain(publisher: Publisher, options: PublishOptions) -> None:
    try:
        await publisher.drain()
    except PublishError as error:
        raise Failure(_which(options, error)) from error


def _which(options: PublishOptions, error: PublishError) -> str:
    """The failure as the person sees it: which line, and what is in the log."""
    if options.lines is None and options.count == 1:
        return f"{error}; it may be in the log" if error.in_doubt else str(error)
    noun = "line" if options.lines is not None else "event"
    behind = f" and {error.later} behind it" if error.later else ""
    rest = "of the others nothing is known" if error.in_doubt else "the others are not"
    return (
        f"{_place(options, error.number)}: {error}; the {error.number} {noun}s before it{behind} are in the log, {rest}"
    )


def _place(options: PublishOptions, number: int) -> str:
    """Which event that is; `number` counts from 0, people from 1."""
    if options.lines is None:
        return f"event {number + 1}"
    file = "" if options.lines == STDIN else f"{options.lines}: "
    return f"{file}line {number + 1}"


async def _unacknowledged(settings: ClientSettings, options: PublishOptions, tally: _Tally) -> None:
    connection = await connect(settings, reconnects=False)
    try:
        async with aclosing(_payloads(options)) as payloads:
            async for payload in payloads:
                await _send(connection, options, payload, tally.sent)
                tally.count(payload)
        await connection.flush()
    except LineTooLong as error:
        raise Failure(f"{_place(options, error.number)}: {error}") from error
    except (errors.ConnectionClosedError, errors.FlushTimeoutError) as error:
        raise Failure(f"the connection was lost: how many of {tally.sent} events arrived is not known") from error
    finally:
        await connection.close()


async def _send(connection: Connection, options: PublishOptions, payload: bytes, number: int) -> None:
    headers = HeaderPairs(options.headers) if options.headers else None
    try:
        await connection.publish(options.subject, payload, headers=headers)
    except errors.MaxPayloadError as error:
        message = too_large(payload, headers, connection.max_payload)
        raise Failure(f"{_place(options, number)}: {message}") from error


def _print_ack(ack: PubAck, options: PublishOptions) -> None:
    fields = ack._asdict()
    del fields["number"]
    if options.json:
        click.echo(json.dumps(fields))
        return
    offset = f", offset {ack.offset}" if ack.offset is not None else ""
    seen = " (it was there already)" if ack.duplicate else ""
    click.echo(f"kept in {ack.stream}@{ack.zone}: partition {ack.partition}{offset}, seq {ack.seq}{seen}")


@contextmanager
def _progress(options: PublishOptions, tally: _Tally, many: bool) -> Iterator[None]:
    """A bar on stderr while it lasts, if that is a terminal."""
    if not many or not sys.stderr.isatty() or options.json:
        yield
        return
    known = size_bytes(options.lines) if options.lines is not None else options.count * (len(options.body) + 1)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.fields[done]}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=known, done="")
        refreshing = asyncio.get_running_loop().create_task(_refresh(progress, bar, tally))
        try:
            yield
        finally:
            refreshing.cancel()


async def _refresh(progress: "Progress", bar: object, tally: _Tally) -> None:
    while True:
        done = tally.acknowledged or tally.sent
        progress.update(bar, completed=tally.sent_bytes, done=f"{done:,}")  # type: ignore[arg-type]
        await asyncio.sleep(_PROGRESS_S)
