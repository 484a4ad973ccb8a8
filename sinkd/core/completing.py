"""From which zone the mirror of a partition goes on: its origin, or one that holds more of the same log.

Zones tell each other what they hold of others' logs, committed and fsynced (`protocol.link.MirrorEnds`). So the longest
mirror of an incarnation is known, and never is one made longer than what some zone's group had for good.

    the origin answers, and has what comes next ─► the origin
    it does not, or has let go of that          ─► the zone with the longest mirror that has it
    the incarnation is over                     ─► the same; where nobody has what comes next, what is nearest

Whether both hold the same bytes is found out as for an origin, by the digest of the last batch. Where they do not,
nothing is taken; but only its origin can say that a mirror has diverged from it.
"""

from collections.abc import Collection
from typing import NamedTuple


class Offer(NamedTuple):
    """Zone `zone` holds [start_offset, end_offset) of the partition, under the incarnation that it is about."""

    zone: str
    start_offset: int
    end_offset: int


def source_of(
    end_offset: int, offers: Collection[Offer], *, origin: str = "", begins_at: int = 0, is_over: bool = False
) -> str:
    """The zone to pull from behind `end_offset`, "" if nobody has more.

    `origin` is the zone whose log it is if it answers, and `begins_at` where its history is known to begin. `is_over`:
    no zone writes this incarnation any more, so that what nobody offers now is gone.
    """
    joining = [offer for offer in offers if offer.start_offset <= end_offset < offer.end_offset]
    if origin and (begins_at <= end_offset or not joining):
        return origin
    if joining:
        return max(joining, key=lambda offer: (offer.end_offset, offer.zone)).zone
    beyond = [offer for offer in offers if offer.end_offset > end_offset] if is_over else []
    return min(beyond, key=lambda offer: (offer.start_offset, offer.zone)).zone if beyond else ""
