"""The links of a gateway to the Raft groups that share its zone's partitions: a `SinkLink` for each, by its number.

    Outbox ─► take_frames(group) ─► SinkLink ─► the sink that leads this group
    $LOG   ─► the group of the partition

Each link is lost and found by itself. What is asked about several partitions goes to the groups that have them, and
their answers become one; a group without a leader fails what asks for its partitions, and nothing else.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from gateway.core.outbox import Outbox
from gateway.shell.link import SinkDial, SinkLink
from protocol import link
from protocol.contracts import Contract
from protocol.errors import LogError
from protocol.streams import StreamState


class DescribedPartition(NamedTuple):
    """Without a leader ("") term and facts are -1: the group has none, or it has not learnt of the stream yet."""

    facts: link.PartitionDescription
    leader: str
    term: int


class SinkLinks:
    """Reads raise LogError, as those of a link do."""

    def __init__(
        self,
        groups: int,
        sinks: Sequence[SinkDial],
        hello: link.Hello,
        opening: Callable[[], link.Open],
        outbox: Outbox,
        now_ms: Callable[[], int],
        changed: Callable[[], None],
        contracts: Callable[[Sequence[Contract]], None] = lambda contracts: None,
    ) -> None:
        """To the first `groups` of the zone; `reach` adds others. The rest is what each `SinkLink` is given."""

        def make(number: int) -> SinkLink:
            named = msgspec.structs.replace(hello, group=number, mirrors=number == 0)  # which has all of them
            return SinkLink(sinks, named, opening, outbox, now_ms, changed, contracts)

        self._make = make
        self._links = [make(number) for number in range(groups)]
        self._tasks: list[asyncio.Task[None]] = []
        self._wants_more = asyncio.Event()

    def __getitem__(self, group: int) -> SinkLink:
        return self._links[group]

    def __iter__(self) -> Iterator[SinkLink]:
        return iter(self._links)

    @property
    def mirrors(self) -> dict[str, StreamState]:
        """Those of other zones' logs that the zone keeps, by name (`orders@eu`)."""
        return self._links[0].mirrors

    @property
    def problem(self) -> str | None:
        """Why there is no link to some group; None while all are open."""
        problems = [problem for each in self._links if (problem := each.problem) is not None]
        return "; ".join(problems) or None

    async def run(self) -> None:
        """Keeps the links until it is cancelled. A link's end by itself is a bug, and ends all."""
        try:
            while True:
                self._tasks += [asyncio.ensure_future(each.run()) for each in self._links[len(self._tasks) :]]
                self._wants_more.clear()
                more = asyncio.ensure_future(self._wants_more.wait())
                done, _ = await asyncio.wait({more, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
                more.cancel()
                for task in done:
                    task.result()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def opened(self) -> None:
        """Until each link has been open once."""
        for each in self._links:
            await each.opened.wait()

    def reach(self, groups: int) -> None:
        """So many groups have partitions: the file of this gateway may be older than that of the sinks."""
        if groups > len(self._links):
            self._links += [self._make(number) for number in range(len(self._links), groups)]
            self._wants_more.set()

    def send_outbox(self) -> None:
        """Sends what the outbox has made ready."""
        for each in self._links:
            each.send_outbox()

    # -- questions ----------------------------------------------------------------------------------------------------

    def of(self, stream: StreamState, partition: int) -> SinkLink:
        """The link to the group that has this partition."""
        return self._links[stream.group_of(partition)]

    async def offsets(
        self, stream: StreamState, partitions: Sequence[int], at: str, timestamp_ms: int
    ) -> list[tuple[int, int, int]]:
        """Rows of `OffsetsAre` for these partitions, in their order."""
        asked: dict[int, list[int]] = {}
        for number in partitions:
            asked.setdefault(stream.group_of(number), []).append(number)
        rows: list[tuple[int, int, int]] = []
        for group, numbers in asked.items():
            rows += (await self._links[group].offsets(stream.name, tuple(numbers), at, timestamp_ms)).offsets
        by_number = {row[0]: row for row in rows}
        return [by_number[number] for number in partitions]

    async def describe(self, streams: Sequence[StreamState]) -> list[tuple[StreamState, list[DescribedPartition]]]:
        """These streams, as they are now, each with all of its partitions.

        LogError LEADER_NOT_AVAILABLE if no group answers that has any of them.
        """
        asked = {stream.group_of(number) for stream in streams for number in range(stream.partitions)}
        name = streams[0].name if len(streams) == 1 else ""
        states = {stream.name: stream for stream in streams}
        found: dict[str, list[DescribedPartition]] = {stream.name: [] for stream in streams}
        for answer in await self._described(sorted(asked), name):
            for state, rows in answer.streams:
                if state.name in found:
                    states[state.name] = state
                    found[state.name] += [DescribedPartition(row, answer.leader, answer.term) for row in rows]
        return [(states[name], _all(states[name], found[name])) for name in found]

    async def _described(self, groups: Sequence[int], stream: str) -> list[link.Described]:
        """The answers of those that have a leader."""
        answers: list[link.Described] = []
        problem: LogError | None = None
        for group in groups:
            try:
                answers.append(await self._links[group].describe(stream))
            except LogError as error:
                if error.name != "LEADER_NOT_AVAILABLE":
                    raise
                problem = error
        if problem is not None and not answers:
            raise problem
        return answers


def _all(state: StreamState, partitions: list[DescribedPartition]) -> list[DescribedPartition]:
    known = {each.facts.partition: each for each in partitions}
    return [known.get(number) or _unled(number) for number in range(state.partitions)]


def _unled(number: int) -> DescribedPartition:
    return DescribedPartition(link.PartitionDescription(number, -1, -1, -1), "", -1)
