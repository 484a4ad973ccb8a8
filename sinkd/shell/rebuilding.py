"""Brings this zone's old logs back from a zone that mirrors them (`sinkd.core.rebuilding`): `mesh zones rebuild`.

    an operator asks the leader ─► what has zone us of ours? ─► BeginRebuild: the logs are made, empty and read-only
                                                                │ pulled like any mirror (`sinkd.shell.mirrors`)
                                     EndRebuild, audited ◄──────┘ all is here that zone us has

That a rebuild is under way is replicated. So it goes on by itself, whichever sink is killed, whoever leads.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog

from protocol.errors import LogError
from protocol.limits import MIRROR_LOOK_MS
from protocol.streams import StreamState
from sinkd.core import commands
from sinkd.core.commands import BeginRebuild, EndRebuild, MakeMirror
from sinkd.core.rebuilding import RebuildChanged, described, missing_logs
from sinkd.core.state import PartitionState, Rebuild
from sinkd.shell.group import UnknownOutcome

if TYPE_CHECKING:
    from sinkd.shell.mirrors import Origin
    from sinkd.shell.sink import Sink

_LINK_WAIT_MS_MAX: Final = 3_000  # less than an operator waits for an answer
log = structlog.get_logger()


class Rebuilding:
    """Of one sink."""

    def __init__(self, sink: "Sink") -> None:
        self._sink = sink
        self._seen: tuple[int, float, int] = (0, 0.0, 0)  # the rebuild, when it was seen first, how much was here then

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(MIRROR_LOOK_MS / 1000)
            try:
                await self._take_over()
                await self._end()
            except (LogError, UnknownOutcome) as error:  # another leads now
                log.info("rebuild_not_driven", error=str(error))

    async def _take_over(self) -> None:
        """What group 0 has made, in the other groups that are led here."""
        for replica in self._sink.replicas[1:]:
            for mirror in list(self._sink.machine.state.mirrors.values()) if replica.group.leads else ():
                is_own = mirror.state.mirrored[1] == self._sink.zone.name
                if is_own and mirror.state.name not in replica.machine.state.mirrors:
                    await replica.group.submit(commands.MIRROR, MakeMirror(mirror.state, mirror.generation))

    async def _end(self) -> None:
        rebuild = self._sink.machine.state.rebuild
        if rebuild is None or rebuild.ended_ms or not self._sink.group.leads:
            return
        partitions = self._partitions(rebuild)
        completing = self._sink.mirroring.completing
        for state, number, held in partitions:
            wanted = completing.end_at(rebuild.source, state.incarnation, number)
            if wanted is None or held.end_offset < wanted:
                return
        events = sum(held.end_offset - held.start_offset for _, _, held in partitions)
        size_bytes = sum(self._size_bytes(state, number) for state, number, _ in partitions)
        await self._sink.group.submit(commands.END_REBUILD, EndRebuild(rebuild.begun_ms, events, size_bytes))
        log.info("rebuild_ended", source=rebuild.source, events=events, size_bytes=size_bytes)

    def _partitions(self, rebuild: Rebuild) -> list[tuple[StreamState, int, PartitionState]]:
        """All that are brought back, as far as they are here."""
        return [
            (mirror.state, number, self._held(mirror.state, number))
            for mirror in self._sink.machine.state.mirrors.values()
            if mirror.state.incarnation in rebuild.incarnations
            for number in range(mirror.state.partitions)
        ]

    def _held(self, state: StreamState, number: int) -> PartitionState:
        """As the partition's group has it; nothing while that has not taken it over, or does not run here."""
        group, replicas = state.group_of(number), self._sink.replicas
        there = replicas[group].machine.log(state.name) if group < len(replicas) else None
        return there.partitions[number] if there is not None else PartitionState(ids={})

    def _size_bytes(self, state: StreamState, number: int) -> int:
        """LogError: the partition's group has not taken it over yet, or does not run here."""
        group, replicas = state.group_of(number), self._sink.replicas
        if group >= len(replicas):
            raise LogError("UNKNOWN_PARTITION", f"group {group} does not run on this sink: give it the newer file")
        return replicas[group].store.incarnation(state.incarnation, number).size_bytes

    # -- what an operator asks for ------------------------------------------------------------------------------------

    async def begin(self, source: str, asked_by: str) -> None:
        """Begins, or goes on with one that is under way from the same zone.

        LogError INVALID_REQUEST says why not; LEADER_NOT_AVAILABLE: another sink leads.
        """
        sink = self._sink
        if not sink.group.leads:
            raise LogError("LEADER_NOT_AVAILABLE", f"another sink leads: {sink.group.leader or 'not known which'}")
        if source not in sink.mirroring.origins:
            known = ", ".join(sink.mirroring.origins) or "none"
            raise LogError("INVALID_REQUEST", f"no other zone {source!r} keeps logs; there are: {known}")
        rebuild, replaces = sink.machine.state.rebuild, ""
        if rebuild is not None and not rebuild.ended_ms:
            if rebuild.source == source:
                return
            present = sink.mirroring.origins.get(rebuild.source)
            if present is not None and present.leads:
                raise LogError("INVALID_REQUEST", f"a rebuild from zone {rebuild.source} is under way")
            replaces = rebuild.source  # which is gone as well
        told = (await self._linked(source)).mirrors
        self._check(source, told)
        with sink.audit.asked_by(asked_by):
            logs = missing_logs(sink.machine.state, sink.zone.name, told)
            body = BeginRebuild(sink.zone.name, source, logs, replaces)
            changed = await sink.group.submit(commands.BEGIN_REBUILD, body)
        assert isinstance(changed, RebuildChanged)
        if changed.refusal or changed.rebuild is None:
            raise LogError("INVALID_REQUEST", changed.refusal)
        log.info("rebuild_begun", what=described(changed.rebuild))

    async def _linked(self, source: str) -> "Origin":
        """The link to the sink that leads there. LogError: there is none within a while."""
        origin = self._sink.mirroring.origins[source]
        loop = asyncio.get_running_loop()
        until = loop.time() + _LINK_WAIT_MS_MAX / 1000
        while not origin.is_told:
            if loop.time() > until:
                why = origin.problem or "none of its sinks leads"
                raise LogError("INVALID_REQUEST", f"zone {source} cannot be asked what it has: {why}")
            origin.go_to_leader()
            await asyncio.sleep(MIRROR_LOOK_MS / 1000)
        return origin

    def _check(self, source: str, told: tuple[StreamState, ...]) -> None:
        """LogError: there is nothing to bring back; it says what there is."""
        state, zone = self._sink.machine.state, self._sink.zone.name
        if not any(stream.mirrored[1] == zone for stream in told):
            raise LogError("INVALID_REQUEST", f"zone {source} holds no log of zone {zone}")
        if missing_logs(state, zone, told):
            return
        here = {stream.incarnation for stream in told if stream.mirrored[1] == zone}
        logs = [each for each in (*state.streams.values(), *state.mirrors.values()) if each.state.incarnation in here]
        found = ", ".join(sorted(f"{each.state.name} ({self._events(each.state)} events)" for each in logs))
        raise LogError("INVALID_REQUEST", f"zone {zone} still has all that zone {source} mirrors of it: {found}")

    def _events(self, state: StreamState) -> int:
        held = [self._held(state, number) for number in range(state.partitions)]
        return sum(each.end_offset - each.start_offset for each in held)

    # -- how it is ----------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any] | None:
        """Of the latest rebuild, for JSON; times in ms, `seconds_left` -1 where it is not known."""
        rebuild = self._sink.machine.state.rebuild
        if rebuild is None:
            return None
        partitions, completing = self._partitions(rebuild), self._sink.mirroring.completing
        ends = [completing.end_at(rebuild.source, state.incarnation, number) for state, number, _ in partitions]
        held = sum(each.end_offset for _, _, each in partitions)
        wanted = sum(end or 0 for end in ends)
        source = self._sink.mirroring.origins.get(rebuild.source)
        return {
            "source": rebuild.source,
            "problem": source.problem if source is not None and not rebuild.ended_ms else "",
            "begun_ms": rebuild.begun_ms,
            "ended_ms": rebuild.ended_ms,
            "logs": sorted({state.name for state, _, _ in partitions}),
            "held_offsets": held,
            "wanted_offsets": max(held, wanted),
            "seconds_left": 0 if rebuild.ended_ms else self._seconds_left(rebuild, held, wanted),
            "events": rebuild.events,
            "bytes": rebuild.size_bytes,
        }

    def _seconds_left(self, rebuild: Rebuild, held: int, wanted: int) -> float:
        now = asyncio.get_running_loop().time()
        if self._seen[0] != rebuild.begun_ms:
            self._seen = rebuild.begun_ms, now, held
        _, since, held_then = self._seen
        came = held - held_then
        return round((wanted - held) * (now - since) / came, 1) if came > 0 else -1
