"""Serves `$LOG` to clients: pulls batches from the sink and shows their events, no faster than the reader takes them.

A request is a task. The next chunk is pulled while little is queued for the connection, so a slow reader waits and is
never cut for what it asked for; a reader that has gone or says anew who it is, and an inbox that has lost its last
subscription, end the task at once. Where more is to come, the sink reads the next chunk while
this one is shown; a few requests of a gateway do so at a time: with many, each chunk ahead is memory, and none of them
gets faster. Answers go only to a subscription of the connection that asked. A user reads streams of its account alone;
others are not there for it. Other zones' logs are read from the mirrors that this zone keeps.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import structlog

from gateway.core.history import FetchProgress, Reader, read_chunk
from gateway.core.plane import Plane
from gateway.core.session import Session, Subscription
from gateway.shell.link import SinkLink
from gateway.shell.links import DescribedPartition, SinkLinks
from gateway.shell.ring import RingLog
from protocol import history, link, subjects
from protocol.errors import FrameError, LogError
from protocol.history import FetchRequest, MetadataRequest, OffsetsRequest, read_request, stream_and_zone
from protocol.limits import (
    FETCH_CHUNK_BYTES,
    FETCH_CHUNKS_BYTES_MAX,
    FETCH_PENDING_PART,
    FETCH_QUEUE_BYTES_MAX,
    FETCHES_AHEAD_MAX,
    FETCHES_PER_CONNECTION_MAX,
)
from protocol.streams import NODE_ACCOUNTS, StreamState

PACE_S = 0.005
log = structlog.get_logger()


class HistoryService:
    """One per gateway. `sinks` is None where this zone keeps no log, or what stands in their place.

    `zone` is the own one, which a log is of; of a ring it is the gateway itself.
    """

    def __init__(
        self,
        plane: Plane,
        sinks: SinkLinks | RingLog | None,
        zone: str,
        flush: Callable[[Session], None],
        refused: Callable[[Session, str], None],
        streams: Callable[[], Mapping[str, StreamState]],
        pending_bytes_max: int,
    ) -> None:
        """`refused(session, stream)` is told who has asked for a log that its user may not read.

        `streams()` has every stream, by name: those of other accounts are not there for a session.
        `flush(session)` sends what is queued for it, and lets it be slow to take that.
        """
        self._plane, self._sinks, self._zone, self._flush, self._refused = plane, sinks, zone, flush, refused
        self._streams = streams
        self._queued_bytes_max = min(pending_bytes_max // FETCH_PENDING_PART, FETCH_QUEUE_BYTES_MAX)
        self._tasks: dict[int, dict[asyncio.Task[None], str]] = {}  # of each session: task → reply subject
        self._ahead: set[asyncio.Task[link.FrameView]] = set()  # chunks that are read before they can be shown
        self.requests = {"FETCH": 0, "OFFSETS": 0, "METADATA": 0, "other": 0}
        self.records_shown = 0

    def request(self, session: Session, subject: str, reply: str, body: bytes) -> None:
        """Takes what a client has published on `$LOG.>`. Without a reply subject there is nobody to answer."""
        if not reply:
            log.debug("log_request_without_reply", subject=subject, connection=session.id)
            return
        verb = subject.split(".")[1]
        counted = verb if verb in self.requests else "other"  # a label that clients can choose would have no bound
        self.requests[counted] += 1
        serve, fail = (self._fetch, self._fail_stream) if verb == "FETCH" else (self._facts, self._fail_json)
        tasks = self._tasks.setdefault(session.id, {})
        if len(tasks) >= FETCHES_PER_CONNECTION_MAX:
            self._end_unheard(session, tasks)
        if len(tasks) >= FETCHES_PER_CONNECTION_MAX:
            message = f"{len(tasks)} requests of this connection are under way; wait for one of them"
            fail(session, reply, LogError("THROTTLING_QUOTA_EXCEEDED", message))
            return
        work = partial(serve, session, subject, reply, body)
        task = asyncio.get_running_loop().create_task(self._guard(session, work, partial(fail, session, reply)))
        watch = self._plane.watch(session, reply, task.cancel)  # nobody will hear the rest
        tasks[task] = reply
        task.add_done_callback(lambda done: tasks.pop(done, None))
        task.add_done_callback(lambda _: self._plane.unwatch(watch))

    def _end_unheard(self, session: Session, tasks: dict[asyncio.Task[None], str]) -> None:
        """Ends requests that nobody has ever been subscribed to the answers of, before they have begun to wait."""
        for task, reply in list(tasks.items()):
            if not self._plane.has_interest(session, reply):
                del tasks[task]
                task.cancel()

    def session_ended(self, session: Session) -> None:
        """Who asked in this session is gone, or may be somebody else from now on."""
        for task in self._tasks.pop(session.id, ()):
            task.cancel()

    async def close(self) -> None:
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _guard(
        self, session: Session, work: Callable[[], Awaitable[None]], fail: Callable[[LogError], None]
    ) -> None:
        try:
            await work()
        except LogError as error:
            fail(error)
        except FrameError as error:
            log.error("log_batch_unreadable", error=str(error))
            fail(LogError("CORRUPT_MESSAGE", str(error)))
        except Exception:  # a bug of ours: the log has it, and the requester is not left waiting
            log.exception("log_request_failed")
            fail(LogError("UNKNOWN_SERVER_ERROR", "the gateway has failed at this request; its log says how"))
        finally:
            self._flush(session)

    def _fail_stream(self, session: Session, reply: str, error: LogError) -> None:
        self._plane.deliver(session, reply, reply, "", history.error_headers(error), b"")

    def _fail_json(self, session: Session, reply: str, error: LogError) -> None:
        self._plane.deliver(session, reply, reply, "", b"", history.error_json(error))

    def _log_of(self, session: Session, name: str) -> tuple[StreamState, SinkLinks | RingLog]:
        """The stream of the log `name` and the links, if there is one here and this user may read it."""
        stream, zone = stream_and_zone(name, self._zone)
        if self._sinks is None:
            raise LogError("NO_LOG", f"zone {self._zone} runs as delivery-fabric: it keeps no log")
        if not session.permissions.may_read(stream, zone.partition("~")[0]):
            self._refused(session, name)
            raise LogError("AUTHORIZATION_FAILED", f"this user may not read the history of {name}")
        if zone != self._zone:
            return self._mirror(session, name, zone), self._sinks
        return self._stream(session, stream, self._sinks), self._sinks

    def _mirrors(self, session: Session) -> dict[str, StreamState]:
        """Those that belong to the account of this session, or to all."""
        if not isinstance(self._sinks, SinkLinks):
            return {}
        allowed = {session.account.name, *NODE_ACCOUNTS}
        return {name: state for name, state in self._sinks.mirrors.items() if state.account in allowed}

    def _mirror(self, session: Session, name: str, zone: str) -> StreamState:
        mirrors = self._mirrors(session)
        if name not in mirrors:
            whose = "ring" if isinstance(self._sinks, RingLog) else "zone"
            known = f"; other zones' logs here are {', '.join(sorted(mirrors))}" if mirrors else ""
            what = f"no log {name!r} of {zone!r} is kept here; this {whose} is {self._zone!r}{known}"
            raise LogError("UNKNOWN_STREAM", what)
        return mirrors[name]

    def _names(self, state: StreamState) -> tuple[str, str]:
        """Stream and zone as answers say them; of a mirror that is left the zone is `eu~1`."""
        name, _, zone = state.name.partition("@")
        return name, zone or self._zone

    def _stream(self, session: Session, name: str, sinks: SinkLinks | RingLog) -> StreamState:
        streams, own = self._streams(), session.account.name
        stream = streams.get(name)
        if stream is not None and (stream.account == own or stream.account in NODE_ACCOUNTS):
            return stream
        if stream is None and (problem := sinks.problem) is not None:  # it may be new
            raise LogError("LEADER_NOT_AVAILABLE", problem)
        known = ", ".join(sorted(each.name for each in streams.values() if each.account == own)) or "none"
        raise LogError("UNKNOWN_STREAM", f"no stream {name!r}; streams are {known}")

    # -- $LOG.FETCH ---------------------------------------------------------------------------------------------------

    async def _fetch(self, session: Session, subject: str, reply: str, body: bytes) -> None:
        tokens = subject.split(".")
        partition = history.partition_number(tokens[-1])
        if len(tokens) != 4 or partition is None:
            raise LogError("UNKNOWN_REQUEST", f"{subject}: expected $LOG.FETCH.<stream>.<partition>")
        stream, sinks = self._log_of(session, tokens[2])
        request = read_request(FetchRequest, body)
        offset = request.offset
        if offset is None:
            offset = await self._offset_at(sinks, stream, partition, request.timestamp or 0)
        may_show = None if session.permissions.hears_all else session.may_subscribe
        progress = FetchProgress((*self._names(stream), partition), request, offset, may_show)
        ends = await self._show(
            session, sinks.of(stream, partition), reply, (stream.name, partition), request, progress
        )
        if ends is not None:
            end = history.end_of_batch(progress.next_offset, ends.high_watermark, ends.start_offset)
            self._plane.deliver(session, reply, reply, "", end, b"")

    async def _offset_at(
        self, sinks: SinkLinks | RingLog, stream: StreamState, partition: int, timestamp_ms: int
    ) -> int:
        """The first offset at or after the time, or the high watermark where there is none yet."""
        for at in ("timestamp", "latest"):
            ((_, offset, _),) = await sinks.offsets(stream, (partition,), at, timestamp_ms)
            if offset >= 0:
                return offset
        raise LogError("OFFSET_OUT_OF_RANGE", f"{stream.name} partition {partition} has no offsets")

    async def _show(
        self,
        session: Session,
        sink: SinkLink | RingLog,
        reply: str,
        log_name: tuple[str, int],
        request: FetchRequest,
        progress: FetchProgress,
    ) -> link.Fetched | None:
        """Shows events until the fetch is over; the ends of the log then, or None if nobody is subscribed."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + request.max_wait_ms / 1000
        ahead: asyncio.Task[link.FrameView] | None = None
        try:
            while self._plane.has_interest(session, reply):  # it was never there, or the request is cancelled with it
                waits = not progress.is_done and not progress.records
                wait_ms = max(0, int((deadline - clock()) * 1000)) if waits else 0
                chunk_bytes = min(self._chunk_bytes(session), request.max_bytes)
                if ahead is None:
                    frame = await sink.fetch(*log_name, progress.next_offset, chunk_bytes, wait_ms)
                else:
                    frame = await ahead
                    self._ahead.remove(ahead)
                    ahead = None
                assert isinstance(frame.message, link.Fetched)
                chunk = read_chunk(frame.tail)
                after = progress.goes_on_at(chunk)
                is_room = len(self._ahead) < FETCHES_AHEAD_MAX
                if after is not None and after < frame.message.high_watermark and is_room:
                    ahead = asyncio.ensure_future(sink.fetch(*log_name, after, chunk_bytes, 0))
                    self._ahead.add(ahead)
                for batches in chunk.turns:
                    if not self._hand_over(session, reply, batches, progress):
                        return None
                    self._flush(session)
                    if progress.is_done:
                        break
                    await self._pace(session)
                at_end = progress.next_offset >= frame.message.high_watermark
                if progress.is_done or progress.has_scanned_enough() or (at_end and not frame.tail):
                    return frame.message
            return None
        finally:
            if ahead is not None:
                self._ahead.remove(ahead)
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    def _chunk_bytes(self, session: Session) -> int:
        """How much is pulled at a time: what all requests of a connection hold of the log together is bounded."""
        requests = len(self._tasks.get(session.id, ())) or 1
        return min(FETCH_CHUNK_BYTES, FETCH_CHUNKS_BYTES_MAX // requests)

    def _hand_over(self, session: Session, reply: str, batches: memoryview, progress: FetchProgress) -> bool:
        """Shows what of `batches` is to be shown; False: nobody is subscribed any more."""
        receivers = self._plane.receivers(session, reply)
        if not receivers:
            return False
        shown = progress.take(batches, [_reader(receiver, reply) for receiver in receivers])
        for receiver, frames in zip(receivers, shown, strict=True):
            self.records_shown += self._plane.hand_over(receiver, frames.data, frames.records, frames.carried_bytes)
        return True

    async def _pace(self, session: Session) -> None:
        """Lets others go first, and the reader take what is queued for it."""
        pause_s: float = 0
        while True:  # the transport tells no one when it has sent a part
            await asyncio.sleep(pause_s)
            if session.pending_bytes <= self._queued_bytes_max:
                return
            pause_s = PACE_S

    # -- $LOG.METADATA, $LOG.OFFSETS ----------------------------------------------------------------------------------

    async def _facts(self, session: Session, subject: str, reply: str, body: bytes) -> None:
        tokens = subject.split(".")
        if tokens[1] == "METADATA" and len(tokens) <= 3:
            read_request(MetadataRequest, body)
            answer = await self._metadata(session, tokens[2] if len(tokens) == 3 else "")
        elif tokens[1] == "OFFSETS" and len(tokens) == 3:
            answer = await self._offsets(session, tokens[2], read_request(OffsetsRequest, body))
        else:
            known = "$LOG.METADATA[.<stream>], $LOG.OFFSETS.<stream>, $LOG.FETCH.<stream>.<partition>"
            raise LogError("UNKNOWN_REQUEST", f"{subject}: there are {known}")
        self._plane.deliver(session, reply, reply, "", b"", msgspec.json.encode(answer))

    async def _metadata(self, session: Session, name: str) -> dict[str, Any]:
        if name:
            streams = [self._log_of(session, name)[0]]
        else:
            known = (*self._streams().values(), *self._mirrors(session).values())
            streams = [each for each in known if self._is_shown(session, each)]
        described = await self._sinks.describe(streams) if self._sinks is not None else []
        rows = [_stream_row(state, self._names(state), partitions) for state, partitions in described]
        return {"zone": self._zone, "streams": rows}

    def _is_shown(self, session: Session, stream: StreamState) -> bool:
        name, zone = self._names(stream)
        is_own = stream.account == session.account.name
        return is_own and session.permissions.may_read(name, zone.partition("~")[0])

    async def _offsets(self, session: Session, name: str, request: OffsetsRequest) -> dict[str, Any]:
        stream, sinks = self._log_of(session, name)
        partitions = range(stream.partitions) if request.partitions is None else request.partitions
        answer = await sinks.offsets(stream, partitions, request.at, request.timestamp or 0)
        rows = [dict(zip(("partition", "offset", "timestamp"), row, strict=True)) for row in answer]
        name, zone = self._names(stream)
        return {"stream": name, "zone": zone, "offsets": rows}


def _reader(subscription: Subscription, subject: str) -> Reader:
    headed = subscription.session.options.headers
    verb, most = b"HMSG" if headed else b"MSG", sys.maxsize
    if subscription.max_messages:
        most = subscription.max_messages - subscription.received
    return Reader(b"%b %b %b " % (verb, subjects.encode(subject), subscription.sid), headed, most)


def _stream_row(state: StreamState, names: tuple[str, str], partitions: list[DescribedPartition]) -> dict[str, Any]:
    stream, zone = names
    return {
        "stream": stream,
        "zone": zone,
        "subjects": state.subjects,
        "key": state.key,
        "ack": state.ack,
        "reply": state.reply,
        "retired": state.retired,
        "partitions": [_partition_row(partition) for partition in partitions],
    }


def _partition_row(partition: DescribedPartition) -> dict[str, Any]:
    """Without a leader as Kafka has it: an error of this partition alone, and -1 for what only the leader knows."""
    facts, leader, term = partition
    row: dict[str, Any] = {
        "partition": facts.partition,
        "leader": leader or None,
        "leader_epoch": term,
        "log_start_offset": facts.start_offset,
        "high_watermark": facts.high_watermark,
        "size_bytes": facts.size_bytes,
    }
    return row if leader else row | {"error": "LEADER_NOT_AVAILABLE"}
