"""What `$LOG` asks of a gateway that keeps its latest events in memory (`gateway.core.ring`): the answers of sinks.

It stands where `SinkLinks`, and the `SinkLink` of a partition, stand in a gateway whose events are kept. The ring is
addressed by the gateway's name: `events@eu-gw1`.
"""

import asyncio
from collections.abc import Sequence

from gateway.core.ring import Ring, Rings
from gateway.shell.links import DescribedPartition
from protocol import link
from protocol.errors import LogError
from protocol.limits import LINK_FETCH_BYTES_MAX
from protocol.streams import StreamState

_TERM = 0  # nobody ever takes over


class RingLog:
    """All rings of the gateway `node`."""

    problem = None  # it is always there

    def __init__(self, node: str, rings: Rings) -> None:
        self._node, self._rings = node, rings
        self._by_stream = {ring.state.name: ring for ring in rings.by_account.values()}
        self._more, self._waits = asyncio.Event(), 0

    def streams(self) -> dict[str, StreamState]:
        return {name: ring.state for name, ring in self._by_stream.items()}

    def of(self, stream: StreamState, partition: int) -> "RingLog":
        return self

    def kept(self) -> None:
        """Events have come: who waits at the end goes on."""
        if self._waits:
            self._more.set()
            self._more = asyncio.Event()

    async def fetch(self, stream: str, partition: int, offset: int, bytes_max: int, wait_ms: int) -> link.FrameView:
        """A `Fetched` with its batches. LogError: as a sink's."""
        ring = self._ring(stream, partition)
        data = ring.read(offset, min(bytes_max, LINK_FETCH_BYTES_MAX))
        if not data and wait_ms:
            await self._wait(wait_ms)
            data = ring.read(offset, min(bytes_max, LINK_FETCH_BYTES_MAX))
        return link.FrameView(link.Fetched(0, ring.start_offset, ring.end_offset), data)

    async def _wait(self, wait_ms: int) -> None:
        self._waits += 1
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self._more.wait()
        except TimeoutError:
            pass
        finally:
            self._waits -= 1

    def _ring(self, stream: str, partition: int) -> Ring:
        if partition != 0:
            raise LogError("UNKNOWN_PARTITION", f"stream {stream} has partition 0 alone, not {partition}")
        return self._by_stream[stream]

    async def offsets(
        self, stream: StreamState, partitions: Sequence[int], at: str, timestamp_ms: int
    ) -> list[tuple[int, int, int]]:
        """As of `SinkLinks`."""
        return [(number, *_offset(self._ring(stream.name, number), at, timestamp_ms)) for number in partitions]

    async def describe(self, streams: Sequence[StreamState]) -> list[tuple[StreamState, list[DescribedPartition]]]:
        """As of `SinkLinks`; the gateway itself leads."""
        return [(state, [self._described(self._by_stream[state.name])]) for state in streams]

    def _described(self, ring: Ring) -> DescribedPartition:
        facts = link.PartitionDescription(0, ring.start_offset, ring.end_offset, ring.size_bytes)
        return DescribedPartition(facts, self._node, _TERM)


def _offset(ring: Ring, at: str, timestamp_ms: int) -> tuple[int, int]:
    if at == "timestamp":
        return ring.offset_for_time(timestamp_ms)
    if at == "until":
        return ring.offset_until_time(timestamp_ms), -1
    return ring.start_offset if at == "earliest" else ring.end_offset, -1
