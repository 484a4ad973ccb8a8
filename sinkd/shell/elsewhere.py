"""Batches that no sink of the zone has whole, from sinks of other zones that hold the same log.

    an own log ─► zones that mirror it        a mirror ─► the zone whose log it is, then others that mirror it too
    each sink there in turn:  Hello ─► Welcome ─► Subscribe, `once` ─► Mirrored: the batch that is asked for, and more
                                                                  └─► Failed: why it has none

The link is one of its own, as a mirror's, under the same rights: what another zone may not mirror it is not given
either, and it comes at the rate that copies have. It stands while a segment is mended. What comes is only material:
whoever mends looks at its CRC, its place and its digest (`sinkd.shell.scrubbing`).
"""

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import msgspec

from protocol import config, link
from protocol.errors import FrameError, LogError
from protocol.gaps import TRIMMED, read_gap
from protocol.limits import ELSEWHERE_BYTES, ELSEWHERE_MS_MAX, LINK_DIAL_MS_MAX, MIRROR_LOOK_MS
from protocol.records import CONTROL, read_header, split_batches
from protocol.streams import StreamState, mirror_name
from sinkd.core.mirroring import unpack_batches
from sinkd.shell.zone_links import ZoneLink, dial, explained

if TYPE_CHECKING:
    from sinkd.shell.sink import Sink


class Elsewhere:
    """The other zones, for whoever mends a segment. One thing is asked at a time; `close` when it is mended."""

    def __init__(self, sink: "Sink") -> None:
        self._sink = sink
        self._links: dict[str, _Asked] = {}  # by zone

    def zones(self, stream: StreamState) -> list[str]:
        """Those that may have what `stream` holds, best first."""
        others, own = self._sink.other_zones, self._sink.zone.name
        origin = stream.mirrored[1] if stream.is_mirror else own
        mirroring = [zone for zone in others if stream.is_for(zone) and zone != origin]
        return [origin, *mirroring] if origin in others else mirroring

    async def pull(self, zone: str, stream: StreamState, partition: int, offset: int) -> tuple[str, bytes]:
        """(sink, whole batches from the one that holds `offset`). LogError: no sink of that zone has them."""
        name = self._name_there(zone, stream)
        asked = link.Subscribe(0, name, stream.incarnation, partition, offset, ELSEWHERE_BYTES, once=True, columns=True)
        held = self._links.get(zone)
        sinks = list(self._sink.zone_named(zone).sinks.values())
        if held is not None:  # the one that has answered goes on
            sinks.sort(key=lambda sink: sink.name != held.link.sink)
        problem = f"zone {zone} has no sinks"
        for sink in sinks:
            try:
                return sink.name, await self._ask(zone, sink, asked)
            except (LogError, OSError, FrameError) as error:
                problem = f"sink {sink.name} of zone {zone}: {explained(error)}"
        raise LogError("LEADER_NOT_AVAILABLE", problem)

    def _name_there(self, zone: str, stream: StreamState) -> str:
        """How that zone calls it: with `@` in it, the incarnation counts."""
        if not stream.is_mirror:
            return mirror_name(stream.name, self._sink.zone.name)
        name, origin = stream.mirrored
        return name if zone == origin and "~" not in stream.name else stream.name

    async def _ask(self, zone: str, sink: config.Sink, asked: link.Subscribe) -> bytes:
        held = self._links.get(zone)
        if held is None or held.link.sink != sink.name or held.link.lost.done():
            if held is not None:
                held.link.abort()
            held = self._links[zone] = _Asked(self._sink, zone, sink)
            async with asyncio.timeout(LINK_DIAL_MS_MAX / 1000):
                await dial(self._sink, sink, held.link)
        return await held.ask(asked)

    def close(self) -> None:
        """The links end."""
        for held in self._links.values():
            held.link.abort()
        self._links.clear()


class _Asked:
    """A link to one sink of another zone, and what is asked on it at this moment."""

    def __init__(self, sink: "Sink", zone: str, other: config.Sink) -> None:
        self._sink, self._zone = sink, zone
        self.link = ZoneLink(other.name, self._take, self._bad)
        self._numbers = itertools.count(1)
        self._subscription = 0
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked: link.Subscribe | None = None

    async def ask(self, asked: link.Subscribe) -> bytes:
        """LogError: it has not got that, or does not answer. FrameError: its answer is none."""
        self._subscription = next(self._numbers)
        self._asked = msgspec.structs.replace(asked, subscription=self._subscription)
        self._answer = asyncio.get_running_loop().create_future()
        if self.link.is_welcome:
            self.link.send(self._asked)
        try:
            return await self._answered_in_time()
        finally:
            self._subscription = 0  # what comes later is for nobody

    async def _answered_in_time(self) -> bytes:
        for _ in range(ELSEWHERE_MS_MAX // MIRROR_LOOK_MS):
            waits: set[asyncio.Future[Any]] = {self._answer, self.link.lost}
            await asyncio.wait(waits, timeout=MIRROR_LOOK_MS / 1000, return_when=asyncio.FIRST_COMPLETED)
            if self._answer.done():
                return self._answer.result()
            if self.link.lost.done():
                raise LogError("LEADER_NOT_AVAILABLE", self.link.lost.result())
            self.link.watch()
        self.link.abort()
        raise LogError("LEADER_NOT_AVAILABLE", f"no answer within {ELSEWHERE_MS_MAX} ms")

    def _take(self, connection: ZoneLink, frame: link.FrameView) -> None:
        message = frame.message
        if isinstance(message, link.Welcome):
            if (message.zone, message.node) != (self._zone, connection.sink):
                connection.end(f"calls itself {message.node} of zone {message.zone}")
                return
            connection.is_welcome = True
            if self._asked is not None:
                connection.send(self._asked)
        elif isinstance(message, link.Failed):
            if not message.request:
                connection.end(f"refused the link: {message.message}")
            elif message.request == self._subscription and not self._answer.done():
                self._answer.set_exception(LogError("LEADER_NOT_AVAILABLE", message.message))
        elif isinstance(message, link.Mirrored) and message.subscription == self._subscription:
            self._answered(message, frame.tail)

    def _answered(self, message: link.Mirrored, tail: bytes | memoryview) -> None:
        if self._answer.done() or self._asked is None:
            return
        try:
            if message.incarnation != self._asked.incarnation:
                raise FrameError("it has sent batches of another incarnation")
            data = bytes(unpack_batches(message, tail))
            for batch in split_batches(data):
                check_is_there(batch)
        except FrameError as error:
            self._answer.set_exception(error)
        else:
            self._answer.set_result(data)

    def _bad(self, connection: ZoneLink, error: FrameError) -> None:
        self._sink.audit.link_refused(connection.host, f"link to sink {connection.sink}", str(error))
        connection.end(str(error))


def check_is_there(batch: memoryview) -> None:
    """FrameError: it says that this sink's log lacks what is asked for."""
    if read_header(batch).attributes == CONTROL and read_gap(batch)[1].reason == TRIMMED:
        raise FrameError("it lacks that too: a gap stands there")
