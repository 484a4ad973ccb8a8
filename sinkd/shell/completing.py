"""What other zones say that they mirror, and which of them each mirror here goes on from (`sinkd.core.completing`)."""

from typing import TYPE_CHECKING

from protocol import link
from protocol.streams import StreamState
from sinkd.core.completing import Offer, source_of
from sinkd.core.state import Mirror

if TYPE_CHECKING:
    from sinkd.shell.mirrors import Origin
    from sinkd.shell.sink import Sink


class Completing:
    """Of one sink; `origins` are the zones that it is linked to, or tries to be."""

    def __init__(self, sink: "Sink", origins: "dict[str, Origin]") -> None:
        self._sink, self._origins = sink, origins
        self._told: dict[str, dict[tuple[bytes, int], link.MirrorEnd]] = {}
        self._refused: dict[tuple[str, bytes, int], link.MirrorEnd] = {}  # what that zone had when it did not give it

    def told(self, zone: str, message: link.MirrorEnds) -> None:
        """What `zone` has."""
        self._told[zone] = {(end.incarnation, end.partition): end for end in message.ends}

    def lost(self, zone: str) -> None:
        """There is no link to it any more: nobody can be asked for what it has."""
        self._told.pop(zone, None)

    def has_told(self, zone: str) -> bool:
        return zone in self._told

    def refused(self, zone: str, incarnation: bytes, partition: int) -> None:
        """It has another log under this incarnation, or no leave to give it: not asked again while it has the same."""
        told = self._told.get(zone, {}).get((incarnation, partition))
        if told is not None:
            self._refused[zone, incarnation, partition] = told

    def end_at(self, zone: str, incarnation: bytes, partition: int) -> int | None:
        """Where the mirror of that zone ends; None where it has not said so."""
        told = self._told.get(zone, {}).get((incarnation, partition))
        return told.end_offset if told is not None else None

    def source(self, mirror: Mirror, partition: int) -> str:
        """The zone to pull from, "" if none."""
        state = mirror.state
        offers = self._offers(state, partition)
        origin, is_over = self._origins.get(state.mirrored[1]), "~" in state.name
        end_offset = mirror.partitions[partition].end_offset
        if origin is None or is_over or not origin.has(state.incarnation):
            return source_of(end_offset, offers, is_over=is_over)
        begins_at = origin.begins_at.get((state.incarnation, partition), 0)
        return source_of(end_offset, offers, origin=origin.zone.name, begins_at=begins_at)

    def is_elsewhere(self, state: StreamState, partition: int, offset: int) -> bool:
        """Whether another zone than the origin has what stands at `offset`."""
        offers = self._offers(state, partition)
        return any(offer.start_offset <= offset < offer.end_offset for offer in offers)

    def _offers(self, state: StreamState, partition: int) -> list[Offer]:
        """What is brought back comes from the zone that was asked for, as that has it."""
        rebuild = self._sink.machine.state.rebuild
        is_brought_back = rebuild is not None and not rebuild.ended_ms and state.incarnation in rebuild.incarnations
        only = rebuild.source if rebuild is not None and is_brought_back else ""
        ends = ((zone, told.get((state.incarnation, partition))) for zone, told in self._told.items())
        return [
            Offer(zone, end.start_offset, end.end_offset)
            for zone, end in ends
            if end is not None and (zone == only if only else self._may_be_asked(zone, end))
        ]

    def _may_be_asked(self, zone: str, end: link.MirrorEnd) -> bool:
        return not end.diverged and self._refused.get((zone, end.incarnation, end.partition)) != end
