"""The receiving end between zones: whoever leads a group here pulls what its mirrors lack from a sink of the origin.

    dial a sink of the origin ─► Hello ─► Welcome, Streams ─► mirrors are made (group 0), or taken over (the others)
          ▲                                                   │ for each partition whose group this sink leads
          │ lost, silent, a bad frame: the next sink          ▼
          └────────────────────────────────────────── Subscribe ─► Mirrored ─► the group ─► Durable

Only the word of a sink that leads makes a mirror, or makes one anew: one that was left behind with an old disk may say
what is long over. What is there already is pulled from any sink.

One link to each origin, for all partitions that are led here. What was sent twice, or arrives when another sink has
taken over, does not join on and is refused by the state machine (`sinkd.core.mirrors`); then, as after any failure, the
partition is subscribed to anew from where its mirror ends. Where the disk becomes full, mirrors stop before own writes.

A zone also says what it mirrors itself. While the origin of a log cannot be asked, or has let go of what comes next,
it is pulled from whoever has most of it (`sinkd.core.completing`): the same link, the same checks.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
import structlog

from protocol import config, link
from protocol.coverage import digest_of
from protocol.errors import FrameError, LogError
from protocol.limits import (
    LINK_DIAL_MS_MAX,
    LINK_RETRY_MS_MAX,
    MIRROR_LOOK_MS,
    MIRROR_RETRY_MS_MAX,
    MIRROR_SPACE_PART,
    MIRROR_WINDOW_BYTES,
)
from protocol.records import CONTROL, read_header, split_batches
from protocol.streams import StreamState
from sinkd.core import commands
from sinkd.core.commands import Diverged, MakeMirror, MirroredHead
from sinkd.core.machine import Mirrored, Result
from sinkd.core.mirroring import BadFrame, Pull
from sinkd.core.mirrors import mirror_of, was_left
from sinkd.core.state import Mirror
from sinkd.shell.completing import Completing
from sinkd.shell.group import UnknownOutcome
from sinkd.shell.lag import Lag
from sinkd.shell.zone_links import ZoneLink, dial, explained

if TYPE_CHECKING:
    from sinkd.shell.replica import Replica
    from sinkd.shell.sink import Sink

PAUSE_MS_MIN = 50
log = structlog.get_logger()


class Mirroring:
    """Of one sink: an `Origin` for each other zone that keeps logs, by its name."""

    def __init__(self, sink: "Sink", zones: list[config.Zone]) -> None:
        self._sink = sink
        self.origins: dict[str, Origin] = {}
        self.completing = Completing(sink, self.origins)
        for zone in zones:
            self.origins[zone.name] = Origin(sink, zone, self.completing)

    async def run(self) -> None:
        """Until it is cancelled."""
        await asyncio.gather(*(origin.run() for origin in self.origins.values()))

    # -- how it is ----------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """How each mirrored partition is that is led here."""
        return [
            {"group": replica.number, **self._row(mirror, number)}
            for replica in self._sink.replicas
            if replica.group.leads
            for mirror in replica.machine.state.mirrors.values()
            for number in mirror.state.partitions_of(replica.number)
        ]

    def _row(self, mirror: Mirror, number: int) -> dict[str, Any]:
        state, held, zone = mirror.state, mirror.partitions[number], mirror.state.mirrored[1]
        name = {"origin": zone, "stream": state.name, "partition": number}
        ends = {"start_offset": held.start_offset, "end_offset": held.end_offset}
        of_origin = self.origins[zone].followed(state.incarnation, number) if zone in self.origins else None
        source, followed = self._pulled(state.incarnation, number)
        lag = followed.lag if followed is not None else of_origin.lag if of_origin is not None else Lag()
        facts = lag.facts(held.end_offset, self._sink.now_ms())
        if of_origin is not None:  # where another zone stands in for it, what that has is not all
            told = of_origin.lag.facts(held.end_offset, self._sink.now_ms())
            facts["lag_seconds"] = max(facts["lag_seconds"], told["lag_seconds"])
        what, why = self._state(mirror, number, source, followed)
        return name | ends | facts | {"state": what, "why": why}

    def _pulled(self, incarnation: bytes, number: int) -> "tuple[str, _Followed | None]":
        """The zone that it comes from at this moment, "" for none."""
        for zone, origin in self.origins.items():
            followed = origin.followed(incarnation, number)
            if followed is not None and followed.subscription:
                return zone, followed
        return "", None

    def _state(self, mirror: Mirror, number: int, source: str, followed: "_Followed | None") -> tuple[str, str]:
        """(one of STATES, why)."""
        state, zone, end_offset = mirror.state, mirror.state.mirrored[1], mirror.partitions[number].end_offset
        if number in mirror.diverged:
            return "diverged", mirror.diverged[number]
        what = followed.lag.state(end_offset) if followed is not None else ""
        is_over, origin = "~" in state.name, self.origins.get(zone)
        if what in ("catching-up", "limited") and source != zone:
            return what, f"zone {source} has more of it" + (f"; {origin.problem}" if origin and origin.problem else "")
        if is_over:
            return "recreated", "its origin was made anew"
        if what and source == zone:
            return what, ""
        if origin is None:
            return "stalled", f"the file names no zone {zone} with sinks"
        of_origin = origin.followed(state.incarnation, number)
        return "stalled", origin.problem or (of_origin.lag.stalled if of_origin is not None else "not subscribed yet")


class _Followed:
    """A partition of a mirror that is led here; `subscription` is 0 while there is none."""

    def __init__(self, replica: "Replica", stream: StreamState, number: int) -> None:
        self.replica, self.stream, self.number = replica, stream, number
        self.subscription, self.retry_at = 0, 0.0
        self.pull: Pull | None = None
        self.is_asking = False
        self.lag = Lag()

    def head(self, after: int, tree_begin: int) -> MirroredHead:
        """Of batches that follow one with this CRC, of an origin whose tree began there."""
        return MirroredHead(self.stream.name, self.stream.incarnation, self.number, after, tree_begin)


class Origin:
    """Another zone, as this sink follows it."""

    def __init__(self, sink: "Sink", zone: config.Zone, completing: Completing) -> None:
        self._sink, self.zone, self._completing = sink, zone, completing
        self._sinks = itertools.cycle(zone.sinks.values())
        self._streams: tuple[StreamState, ...] = ()
        self.mirrors: tuple[StreamState, ...] = ()  # that it has of other zones' logs
        self.begins_at: dict[tuple[bytes, int], int] = {}  # of logs that it has let go of more than is here
        self._followed: dict[tuple[bytes, int], _Followed] = {}
        self._proposing: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._connection: ZoneLink | None = None
        self.problem, self._next_sink = "not connected yet", ""
        self.refused: Counter[str] = Counter()  # bad frames, by reason
        self.gaps = self.wire_bytes = self.raw_bytes = 0

    # -- the link -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        pause_ms = PAUSE_MS_MIN
        try:
            while True:
                if self._leading():
                    pause_ms = PAUSE_MS_MIN if await self._try(self._choose()) else pause_ms * 2
                await asyncio.sleep(min(pause_ms, MIRROR_RETRY_MS_MAX) / 1000)
        finally:
            for task in self._tasks:
                task.cancel()

    def _choose(self) -> config.Sink:
        """The one that is said to lead, if that is to be asked, or the next."""
        name, self._next_sink = self._next_sink, ""
        return self.zone.sinks.get(name) or next(self._sinks)

    def _leading(self) -> "list[Replica]":
        return [replica for replica in self._sink.replicas if replica.group.leads]

    async def _try(self, sink: config.Sink) -> bool:
        """One link from its beginning to its end; whether it was welcome."""
        connection = ZoneLink(sink.name, self._take, self._bad_frame)
        try:
            async with asyncio.timeout(LINK_DIAL_MS_MAX / 1000):
                await dial(self._sink, sink, connection)
        except (OSError, FrameError) as error:
            self.problem = f"sink {sink.name}: {explained(error)}"
            return False
        try:
            await self._keep(connection)
        finally:
            connection.abort()
            self._connection, self.mirrors = None, ()
            self._completing.lost(self.zone.name)
            for followed in self._followed.values():
                followed.subscription = 0
        self.problem = f"sink {sink.name}: {connection.lost.result()}"
        if connection.is_welcome:
            log.info("origin_link_down", zone=self.zone.name, sink=sink.name, reason=connection.lost.result())
        return connection.is_welcome

    async def _keep(self, connection: ZoneLink) -> None:
        """Until the link is lost, or no group is led here any more."""
        while not connection.lost.done():
            if not self._leading():
                connection.end("no group is led by this sink")
                break
            if connection.is_welcome:
                self._look(connection)
            await asyncio.wait({connection.lost}, timeout=MIRROR_LOOK_MS / 1000)
            connection.watch()

    def _take(self, connection: ZoneLink, frame: link.FrameView) -> None:
        message = frame.message
        if isinstance(message, link.Mirrored):
            self._take_batches(connection, message, frame.tail)
        elif isinstance(message, link.Behind):
            if (followed := self._of(message.subscription)) is not None:
                followed.lag.told(message, self._sink.now_ms())
        elif isinstance(message, link.Welcome):
            self._welcomed(connection, message)
        elif isinstance(message, link.Streams):
            self._streams = message.streams
            self._look(connection)
        elif isinstance(message, link.Mirrors):
            self.mirrors = message.streams
        elif isinstance(message, link.MirrorEnds):
            self._completing.told(self.zone.name, message)
            self._look(connection)
        elif isinstance(message, link.Failed):
            self._failed(connection, message)
        elif not isinstance(message, link.Pong):
            raise FrameError(f"sink link: a sink does not send {type(message).__name__} to a mirror")

    def _welcomed(self, connection: ZoneLink, message: link.Welcome) -> None:
        if (message.zone, message.node) != (self.zone.name, connection.sink):
            connection.end(f"calls itself {message.node} of zone {message.zone}")
            return
        connection.is_welcome = True
        connection.leads, connection.leader = message.leads, message.leader
        self._connection, self.problem = connection, ""
        log.info("origin_link_up", zone=self.zone.name, sink=connection.sink)

    def _of(self, subscription: int) -> _Followed | None:
        return next((each for each in self._followed.values() if each.subscription == subscription), None)

    # -- what is to be mirrored ---------------------------------------------------------------------------------------

    def _look(self, connection: ZoneLink) -> None:
        """Makes the mirrors that there should be, and subscribes to what is led here."""
        wanted: dict[tuple[bytes, int], tuple[Replica, StreamState]] = {}
        for stream in self._streams:
            if stream.is_for(self._sink.zone.name):
                for replica in self._leading():
                    self._propose_mirror(connection, replica, stream)
        for replica in self._leading():
            for state, number in self._pulled(replica):
                wanted[state.incarnation, number] = replica, state
        for key in self._followed.keys() - wanted.keys():
            self._leave(connection, self._followed.pop(key))
        for key, (replica, state) in wanted.items():
            followed = self._followed.get(key)
            if followed is None or followed.replica is not replica or followed.stream.name != state.name:
                if followed is not None:
                    self._leave(connection, followed)
                followed = self._followed[key] = _Followed(replica, state, key[1])
            self._follow(connection, followed)

    def _pulled(self, replica: "Replica") -> Iterator[tuple[StreamState, int]]:
        """The partitions of mirrors that `replica` has and that go on from this zone."""
        for mirror in replica.machine.state.mirrors.values():
            for number in mirror.state.partitions_of(replica.number):
                if number not in mirror.diverged and self._completing.source(mirror, number) == self.zone.name:
                    yield mirror.state, number

    def has(self, incarnation: bytes) -> bool:
        """Whether it can be asked for its own log of this incarnation."""
        own = self._sink.zone.name
        is_up = self._connection is not None
        return is_up and any(each.incarnation == incarnation and each.is_for(own) for each in self._streams)

    @property
    def leads(self) -> bool:
        """Whether the sink at the other end leads group 0, so that it knows for sure what its zone has."""
        return self._connection is not None and self._connection.leads

    @property
    def is_told(self) -> bool:
        """Whether such a sink has said what its zone mirrors, if anything."""
        return self.leads and self._completing.has_told(self.zone.name)

    def go_to_leader(self) -> None:
        """The next link is to the sink that is said to lead there."""
        if self._connection is not None and not self._connection.leads:
            self._next_sink = self._connection.leader
            self._connection.end(f"sink {self._next_sink or '?'} is asked, which leads")

    def _propose_mirror(self, connection: ZoneLink, replica: "Replica", stream: StreamState) -> None:
        """If the group has not got it as it should be."""
        wanted = mirror_of(self.zone.name, stream)
        present = replica.machine.state.mirrors.get(wanted.name)
        if replica.number == 0:
            request = MakeMirror(wanted)
            is_there = _is_as(present, wanted) or was_left(replica.machine.state, wanted)
        else:
            decided = self._sink.machine.state.mirrors.get(wanted.name)
            if decided is None:
                return
            request = MakeMirror(decided.state, decided.generation)
            is_there = present is not None and (
                present.state == decided.state or present.generation > decided.generation
            )
        key = wanted.name, replica.number
        if not is_there and replica.number == 0 and not connection.leads:
            self._next_sink = connection.leader
            connection.end(f"a stream is not known as this sink has it; sink {self._next_sink or '?'} leads")
        elif not is_there and key not in self._proposing:
            self._proposing.add(key)
            self._start(self._make(replica, request), partial(self._proposing.discard, key))

    async def _make(self, replica: "Replica", request: MakeMirror) -> None:
        await replica.group.submit(commands.MIRROR, request)
        log.info("mirror_made", mirror=request.state.name, incarnation=request.state.incarnation.hex())

    # -- following a partition ----------------------------------------------------------------------------------------

    def _follow(self, connection: ZoneLink, followed: _Followed) -> None:
        now = asyncio.get_running_loop().time()
        if not self._has_space():
            self._leave(connection, followed)
            followed.lag.stalled = "the disk is nearly full"
        elif not followed.subscription and not followed.is_asking and now >= followed.retry_at:
            followed.is_asking = True
            done = partial(setattr, followed, "is_asking", False)
            self._start(self._subscribe(connection, followed), done)

    def _has_space(self) -> bool:
        reserve_bytes = self._sink.node.disk_reserve_bytes
        enough = reserve_bytes + reserve_bytes // MIRROR_SPACE_PART
        return self._sink.free_bytes >= enough and not self._sink.is_storage_full()

    async def _subscribe(self, connection: ZoneLink, followed: _Followed) -> None:
        """From where the mirror ends. What is still under way from an older subscription makes this one begin anew."""
        store = followed.replica.store
        partition = store.incarnation(followed.stream.incarnation, followed.number)
        end, last_offset, digest = partition.high_watermark, -1, b""
        mirror = followed.replica.machine.state.mirrors[followed.stream.name]
        last_crc = mirror.last_crcs.get(followed.number, 0)
        if end > partition.start_offset:
            (*_, batch) = split_batches(await store.read(partition, end - 1, 1))
            header = read_header(batch)
            if header.attributes != CONTROL:
                last_offset, digest = header.base_offset, digest_of(batch)
        if connection.lost.done():
            return
        followed.pull = Pull(self.zone.name, followed.stream.incarnation, end, last_crc)
        followed.subscription = next(self._numbers)
        followed.lag.stalled = ""
        name, zone = followed.stream.mirrored
        place = (
            name if zone == self.zone.name else followed.stream.name,
            followed.stream.incarnation,
            followed.number,
            end,
        )
        asked = link.Subscribe(followed.subscription, *place, MIRROR_WINDOW_BYTES, last_offset, digest, columns=True)
        connection.send(asked)

    def _leave(self, connection: ZoneLink, followed: _Followed) -> None:
        if followed.subscription:
            connection.send(link.Cancel(followed.subscription))
            followed.subscription = 0

    def _pause(self, connection: ZoneLink, followed: _Followed, why: str) -> None:
        """Subscribes anew in a moment."""
        self._leave(connection, followed)
        followed.lag.stalled = why
        followed.retry_at = asyncio.get_running_loop().time() + LINK_RETRY_MS_MAX / 1000

    def _take_batches(self, connection: ZoneLink, message: link.Mirrored, tail: bytes | memoryview) -> None:
        followed = self._of(message.subscription)
        if followed is None or followed.pull is None:  # cancelled meanwhile
            return
        due, gaps, after = followed.pull.next_offset, followed.pull.gaps, followed.pull.last_crc
        if message.start_offset > due and self._completing.is_elsewhere(followed.stream, followed.number, due):
            self.begins_at[followed.stream.incarnation, followed.number] = message.start_offset
            self._leave(connection, followed)
            return
        data, _ = followed.pull.take(message, tail)
        self.wire_bytes += len(tail)
        self.raw_bytes += message.raw_bytes
        followed.lag.took(message, followed.pull.gaps > gaps, self._sink.now_ms())
        if followed.pull.gaps > gaps:
            self.gaps += followed.pull.gaps - gaps
            log.warning("mirror_gap", mirror=followed.stream.name, partition=followed.number, to=message.offset)
        if not data:
            return
        try:
            future = followed.replica.group.append_mirrored(followed.head(after, message.tree_begin), data)
        except (LogError, UnknownOutcome) as error:
            self._pause(connection, followed, str(error))
        else:
            future.add_done_callback(partial(self._appended, connection, followed, message.subscription))

    def _appended(
        self, connection: ZoneLink, followed: _Followed, subscription: int, future: asyncio.Future[Result]
    ) -> None:
        """What was taken is committed and fsynced by the group here, or was refused."""
        if future.cancelled():
            return
        error = future.exception()
        result = None if error is not None else future.result()
        if followed.subscription != subscription:
            return
        if isinstance(result, Mirrored) and not result.refusal:
            connection.send(link.Durable(subscription, result.end_offset))
        else:
            self._pause(connection, followed, str(error or cast(Mirrored, result).refusal))

    def _failed(self, connection: ZoneLink, message: link.Failed) -> None:
        if not message.request:
            connection.end(f"refused the link: {message.message}")
            return
        followed = self._of(message.request)
        if followed is None:
            return
        followed.subscription = 0  # it never began
        self._pause(connection, followed, message.message)
        if message.name == "DIVERGED" and followed.stream.mirrored[1] == self.zone.name:
            request = Diverged(followed.stream.name, followed.stream.incarnation, followed.number, message.message)
            log.error("mirror_diverged", mirror=request.name, partition=request.partition, why=request.why)
            self._start(self._mark(followed, request))
        elif followed.stream.mirrored[1] != self.zone.name:
            self._completing.refused(self.zone.name, followed.stream.incarnation, followed.number)
        elif message.name == "NOT_CAUGHT_UP" and not any(each.subscription for each in self._followed.values()):
            connection.end(message.message)

    async def _mark(self, followed: _Followed, request: Diverged) -> None:
        await followed.replica.group.submit(commands.DIVERGED, request)

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[None, None, None], then: Callable[[], None] = lambda: None) -> None:
        async def guarded() -> None:
            try:
                await work
            except (LogError, UnknownOutcome) as error:  # another leads now, or it is looked at again
                log.info("mirror_not_followed", zone=self.zone.name, error=str(error))
            finally:
                then()

        task = self._sink.main.watch(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # which has not begun if the task was cancelled at once

    def _bad_frame(self, connection: ZoneLink, error: FrameError) -> None:
        """The mirror is as it was; the link ends."""
        reason = error.reason if isinstance(error, BadFrame) else "unreadable"
        self.refused[reason] += 1
        log.warning("mirrored_frame_refused", zone=self.zone.name, sink=connection.sink, reason=reason, why=str(error))
        self._sink.audit.link_refused(connection.host, f"link to sink {connection.sink}", str(error))
        connection.end(str(error))

    # -- how it is ----------------------------------------------------------------------------------------------------

    def followed(self, incarnation: bytes, partition: int) -> _Followed | None:
        return self._followed.get((incarnation, partition))


def _is_as(present: Mirror | None, wanted: StreamState) -> bool:
    """Whether the mirror is in force with its origin's present settings; its groups are its own."""
    if present is None:
        return False
    return present.state == msgspec.structs.replace(wanted, groups=present.state.groups)
