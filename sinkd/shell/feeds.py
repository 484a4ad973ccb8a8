"""The origin's end of a link from another zone: sends committed batches to the mirrors there.

    Subscribe ─► may that zone have it? is it the same log? ─► a `Feed` (`sinkd.core.mirroring`)
    one loop:    the next feed with something to send ─► read, pack ─► the pair's rate ─► Mirrored
    once a second, for each feed: Behind

One frame is made at a time, for whichever feed is due: what nodes say of what they hold (`$COVERAGE`) first, then those
at the tail, the others in turn. So a mirror that catches up takes what the live ones leave, and the memory of a link is
that of its windows.

Any sink of a zone serves: what it has applied is committed. Only the leader of a group says that a mirror goes beyond
the log. What a mirror holds for good is told to the leader, whose retention keeps the rest (`sinkd.shell.holding`).

What is mirrored here itself is served too: to zones that lack what its origin does not give them any more, and to an
origin that has lost it. Who wants to know what that is, is told once a second (`MirrorEnds`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import structlog

from protocol import coverage, link
from protocol.errors import DamagedFile, FrameError, LogError
from protocol.limits import (
    MIRROR_FRAME_BYTES,
    MIRROR_FRAME_BYTES_MIN,
    MIRROR_LINK_BYTES_MAX,
    MIRROR_PACE_MS,
    MIRROR_SILENCE_MS_MAX,
    MIRROR_TAIL_BYTES,
    MIRROR_TELL_MS,
)
from protocol.link import Message
from protocol.records import CONTROL, read_header, split_batches
from sinkd.core.mirroring import Feed, Packed, SubscriptionRefused, TokenBucket, check_end, check_last, pack_batches
from sinkd.shell.store import Partition, Store

if TYPE_CHECKING:
    from sinkd.shell.link_server import LinkServer

log = structlog.get_logger()


class _Served:
    """A feed and the log that it is fed from."""

    def __init__(self, asked: link.Subscribe, feed: Feed, server: "LinkServer", partition: Partition) -> None:
        self.asked, self.feed, self.server, self.partition = asked, feed, server, partition
        self.turn = 0  # when it was served last
        self.is_first = partition.stream.account == coverage.ACCOUNT
        self.waiter: asyncio.Future[None] | None = None

    @property
    def number(self) -> int:
        return self.asked.subscription

    @property
    def store(self) -> Store:
        return self.server.store

    @property
    def has_more(self) -> bool:
        return self.feed.offset < self.partition.high_watermark

    @property
    def is_at_tail(self) -> bool:
        return self.store.bytes_from(self.partition, self.feed.offset) <= MIRROR_TAIL_BYTES


class Feeds:
    """Those of one link, from zone `zone`."""

    def __init__(
        self,
        siblings: Mapping[int, "LinkServer"],
        zone: str,
        bucket: TokenBucket,
        send: Callable[[Message, bytes | memoryview], None],
        may_write: Callable[[], Awaitable[object]],
        refused: Callable[[str], None],
        silent: Callable[[], None],
        *,
        tells_ends: bool = False,
    ) -> None:
        """`siblings` has the groups of this sink; `refused(why)` is told of what that zone may not have, and `silent`
        is called when nothing was heard of it for too long.

        `tells_ends`: the other end wants to know what mirrors there are here, and how long they are.
        """
        self._tells_ends = tells_ends
        self._told_ends: link.MirrorEnds | None = None
        self._siblings, self._zone, self._bucket = siblings, zone, bucket
        self._send, self._may_write, self._refused, self._silent = send, may_write, refused, silent
        self._served: dict[int, _Served] = {}
        self._wake = asyncio.Event()
        self._turns = self._silent_ms = 0
        self._is_limited = False

    # -- subscriptions ------------------------------------------------------------------------------------------------

    async def subscribe(self, asked: link.Subscribe) -> None:
        """Begins a feed, or says why not; or sends what is wanted once."""
        try:
            if asked.once:
                await self._give(asked)
                return
            served = await self._begin(asked)
        except SubscriptionRefused as error:
            log.info("mirror_refused", zone=self._zone, stream=asked.stream, partition=asked.partition, why=str(error))
            self._send(link.Failed(asked.subscription, error.name, str(error)), b"")
        else:
            self._served[asked.subscription] = served
            self._wake.set()

    async def _begin(self, asked: link.Subscribe) -> _Served:
        server, partition = self._find(asked)
        group = server.group
        if group.member.muted:
            raise SubscriptionRefused("NOT_CAUGHT_UP", f"sink {server.node} is being filled: {group.member.muted}")
        is_origin = not partition.stream.is_mirror
        check_end(asked.offset, partition.high_watermark, leads=group.leads and is_origin)
        if asked.last_offset >= partition.start_offset and asked.digest:
            batches = await server.store.read(partition, asked.last_offset, 1)
            last = next(iter(split_batches(batches)))
            if is_origin or read_header(last).attributes != CONTROL:  # else this zone lacks what it is compared by
                check_last(asked.last_offset, asked.digest, last)
        feed = Feed(self._zone, asked.offset, asked.window_bytes)
        if is_origin:
            server.holding.note(feed, asked.incarnation, asked.partition)
        return _Served(asked, feed, server, partition)

    async def _give(self, asked: link.Subscribe) -> None:
        """One frame, to a sink that mends a segment. What is bad here is mended later: that sink may be asked for it.

        LogError, SubscriptionRefused: why there is none.
        """
        server, partition = self._find(asked)
        if server.group.member.muted:
            raise SubscriptionRefused("NOT_CAUGHT_UP", f"sink {server.node} is being filled")
        bytes_max = min(asked.window_bytes, self._frame_bytes)
        batches = await server.store.read(partition, asked.offset, bytes_max, for_peer=True)
        if not batches:
            raise SubscriptionRefused("NOT_CAUGHT_UP", f"the log ends at offset {asked.offset} here")
        packed = await self._pack(asked, batches)
        begins_at, _ = _span(batches, asked.offset)
        self._send_packed(asked, partition, begins_at, len(batches), packed)

    def _find(self, asked: link.Subscribe) -> "tuple[LinkServer, Partition]":
        machine = self._siblings[0].machine
        stream = machine.state.streams.get(asked.stream)
        if "@" in asked.stream:  # each zone has its own names for what is over
            stream = machine.mirror_of_incarnation(asked.incarnation)
        if stream is None or not 0 <= asked.partition < stream.state.partitions:
            raise SubscriptionRefused("UNKNOWN_STREAM", f"no stream {asked.stream!r} with partition {asked.partition}")
        state = stream.state
        if not state.is_for(self._zone) and self._zone != state.mirrored[1]:
            what = f"stream {asked.stream} is replicated to {', '.join(state.replicate) or 'no zone'}"
            self._refused(f"{what}; zone {self._zone} has asked for it")
            raise SubscriptionRefused("NOT_REPLICATED", what)
        if state.incarnation != asked.incarnation:
            what = f"stream {asked.stream} has incarnation {state.incarnation.hex()}, not {asked.incarnation.hex()}"
            raise SubscriptionRefused("RECREATED", what)
        group = state.group_of(asked.partition)
        server = self._siblings.get(group)
        if server is None or server.machine.log(state.name) is None:
            raise SubscriptionRefused("NOT_CAUGHT_UP", f"group {group} has not learnt of stream {asked.stream} here")
        return server, server.store.partition(state.name, asked.partition)

    def heard(self) -> None:
        """Anything: whoever is cut off has mirrors of which nobody knows any more how they are."""
        self._silent_ms = 0

    def durable(self, message: link.Durable) -> None:
        """FrameError: it was never sent."""
        served = self._served.get(message.subscription)
        if served is None:  # cancelled meanwhile
            return
        served.feed.durable_through(message.through)
        stream = served.partition.stream
        if not stream.is_mirror:
            served.server.holding.note(served.feed, stream.incarnation, served.partition.number)
        self._wake.set()

    def cancel(self, subscription: int) -> None:
        served = self._served.pop(subscription, None)
        if served is None:
            return
        served.server.holding.ended(served.feed, served.partition.stream.incarnation, served.partition.number)
        if served.waiter is not None:
            served.waiter.cancel()

    # -- sending ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        telling = asyncio.get_running_loop().create_task(self._tell())
        try:
            while True:
                served = self._next()
                if served is not None:
                    await self._serve(served)
                    continue
                for each in self._served.values():
                    self._watch(each)
                await self._wake.wait()
                self._wake.clear()
        finally:
            telling.cancel()
            for number in list(self._served):
                self.cancel(number)

    def _next(self) -> _Served | None:
        under_way_bytes = sum(each.feed.under_way_bytes for each in self._served.values())
        due = [each for each in self._served.values() if each.has_more and each.feed.has_room]
        if not due or under_way_bytes >= MIRROR_LINK_BYTES_MAX:
            return None
        return min(due, key=lambda each: (not each.is_first, not each.is_at_tail, each.turn))

    def _watch(self, served: _Served) -> None:
        """Has the loop woken when the log grows."""
        if served.has_more or (served.waiter is not None and not served.waiter.done()):
            return
        served.waiter = asyncio.get_running_loop().create_future()
        served.waiter.add_done_callback(lambda _: self._wake.set())
        served.partition.waiters.add(served.waiter)

    async def _serve(self, served: _Served) -> None:
        self._turns += 1
        served.turn = self._turns
        partition, feed = served.partition, served.feed
        offset = max(feed.offset, partition.start_offset)
        try:
            batches = await served.store.read(partition, offset, self._frame_bytes)
        except LogError as error:
            if error.name != "OFFSET_OUT_OF_RANGE":  # what is damaged here: silence, and the mirror asks another sink
                raise
            return  # trimmed meanwhile: once more
        except (DamagedFile, OSError) as error:
            served.server.failed(error)
            raise
        packed = await self._pack(served.asked, batches)
        if self._served.get(served.number) is not served:
            return
        begins_at, next_offset = _span(batches, offset)
        self._send_packed(served.asked, partition, begins_at, len(batches), packed)
        feed.sent(next_offset, len(batches))

    async def _pack(self, asked: link.Subscribe, batches: bytes | memoryview) -> Packed:
        """As they go over the link, when they may."""
        pack = partial(pack_batches, batches, columns=asked.columns)
        packed = await asyncio.get_running_loop().run_in_executor(None, pack)
        await self._pace(len(packed.tail))
        await self._may_write()
        return packed

    def _send_packed(
        self, asked: link.Subscribe, partition: Partition, begins_at: int, raw_bytes: int, packed: Packed
    ) -> None:
        tree = partition.replicated.tree
        message = link.Mirrored(
            asked.subscription, partition.stream.incarnation, begins_at, raw_bytes, packed.compressed,
            partition.start_offset, partition.high_watermark, tree.begin_offset if tree is not None else -1,
            packed.columns,
        )  # fmt: skip
        self._send(message, packed.tail)

    @property
    def _frame_bytes(self) -> int:
        """No more than a quarter of a second's worth, so that what is at the tail need not wait long."""
        rate = self._bucket.bytes_per_second
        return min(MIRROR_FRAME_BYTES, max(MIRROR_FRAME_BYTES_MIN, rate // 4)) if rate else MIRROR_FRAME_BYTES

    async def _pace(self, size_bytes: int) -> None:
        """Until so much may go to that zone; a rate that changes meanwhile is looked at again."""
        loop, rate = asyncio.get_running_loop(), self._bucket.bytes_per_second
        wait_s = self._bucket.wait_s(size_bytes, loop.time())
        self._is_limited, until = wait_s > 0, loop.time() + wait_s
        while self._bucket.bytes_per_second == rate:
            left_s = until - loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(min(left_s, MIRROR_PACE_MS / 1000))

    async def _tell(self) -> None:
        while True:
            self._tell_ends()
            await asyncio.sleep(MIRROR_TELL_MS / 1000)
            self._silent_ms += MIRROR_TELL_MS
            if self._silent_ms > MIRROR_SILENCE_MS_MAX:
                self._silent()
            for served in list(self._served.values()):
                try:
                    self._send(await self._behind(served), b"")
                except LogError:  # trimmed meanwhile
                    continue

    def _tell_ends(self) -> None:
        ends = link.MirrorEnds(
            tuple(
                link.MirrorEnd(
                    state.name, state.incarnation, number, held.start_offset, held.end_offset,
                    number in server.machine.state.mirrors[state.name].diverged,
                )
                for server in self._siblings.values()
                for state, number, held in server.machine.partitions()
                if state.is_mirror
            )
        )  # fmt: skip
        if self._tells_ends and ends != self._told_ends:
            self._told_ends = ends
            self._send(ends, b"")

    async def _behind(self, served: _Served) -> link.Behind:
        partition, durable = served.partition, served.feed.durable
        offset = max(durable, partition.start_offset)
        if offset >= partition.high_watermark:
            return link.Behind(served.number, partition.high_watermark, 0, -1)
        first = read_header(await served.store.read(partition, offset, 1))
        size_bytes = served.store.bytes_from(partition, offset)
        oldest_ms = first.base_timestamp_ms
        return link.Behind(served.number, partition.high_watermark, size_bytes, oldest_ms, self._is_limited)


def _span(batches: bytes | memoryview, offset: int) -> tuple[int, int]:
    """(offset of the first batch, offset behind the last); FrameError: they are none."""
    begins_at = next_offset = offset
    for position, batch in enumerate(split_batches(batches)):
        header = read_header(batch)
        begins_at = header.base_offset if not position else begins_at
        next_offset = header.next_offset
    if next_offset < offset:
        raise FrameError(f"batches end at {next_offset}, before {offset}")
    return begins_at, next_offset
