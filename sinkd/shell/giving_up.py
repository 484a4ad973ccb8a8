"""How readers go on where the disks of all sinks have spoilt the same: by the word of an operator, `mesh repair`.

    look:     the leader reads its finished segments, mends what others have, and tells which batches nobody has
    give up:  what the operator was shown, and is so still ─► GIVE_UP, replicated (`sinkd.core.damage`)
              ─► each sink writes the segments anew that it cannot mend, with the same gap records in the same places

What the operator accepts is that readers get a `206 Gap` there instead of an error. Nothing more is lost by it: who has
gap records goes on looking for the batches, and puts them back (`sinkd.shell.scrubbing`).
"""

import contextlib
from typing import TYPE_CHECKING, Any

import structlog

from protocol import link
from protocol.errors import LogError
from sinkd.core import commands
from sinkd.core.damage import GivenUp
from sinkd.shell.group import UnknownOutcome
from sinkd.shell.store import Partition

if TYPE_CHECKING:
    from sinkd.shell.replica import Replica

log = structlog.get_logger()


class GivingUp:
    """Of one Raft group of a sink."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica

    async def answer(self, asked: link.GiveUp, who: str) -> list[dict[str, Any]]:
        """What nobody has of a partition, a row for each batch; those among `asked.offsets` are given up.

        `who` is the address that asked for it. LogError LEADER_NOT_AVAILABLE: another one leads; UNKNOWN_STREAM,
        UNKNOWN_PARTITION; STORAGE_ERROR, INVALID_REQUEST: it cannot be done.
        """
        replica = self._replica
        if not replica.group.leads:
            raise LogError("LEADER_NOT_AVAILABLE", f"another sink leads: {replica.group.leader or 'not known which'}")
        partition = replica.store.partition(asked.stream, asked.partition)
        missing = await replica.scrubber.missing(partition)
        wanted = tuple(one[:3] for one in missing if one[0] in asked.offsets)
        if wanted:
            await self._give_up(partition, wanted, who)
        given_up = {one.base_offset for one in partition.replicated.damaged}
        return [
            {"first": first, "last": end - 1, "digest": digest.hex(), "why": why, "given_up": first in given_up}
            for first, end, digest, why in missing
        ]

    async def _give_up(self, partition: Partition, batches: tuple[tuple[int, int, bytes], ...], who: str) -> None:
        stream = partition.stream
        request = commands.GiveUp(stream.name, stream.incarnation, partition.number, batches, who)
        result = await self._replica.group.submit(commands.GIVE_UP, request)
        assert isinstance(result, GivenUp)
        if result.refusal:
            raise LogError("INVALID_REQUEST", result.refusal)

    async def found(self, partition: Partition, offsets: list[int]) -> None:
        """Batches that were given up are whole here. If this sink leads, the group forgets that they were."""
        if not self._replica.group.leads:
            return
        stream = partition.stream
        request = commands.GiveUp(stream.name, stream.incarnation, partition.number, (), "", tuple(offsets))
        with contextlib.suppress(LogError, UnknownOutcome):  # the next round tries again
            await self._replica.group.submit(commands.GIVE_UP, request)
            log.info("batches_found_again", log=stream.name, partition=partition.number, offsets=offsets)

    def decided(self, result: GivenUp) -> None:
        """By the group: what is bad here is written anew."""
        if result.stream is None or not result.batches:
            return
        offsets = [one.base_offset for one in result.batches]
        log.warning(
            "batches_given_up", log=result.stream.name, partition=result.partition, offsets=offsets, by=result.who
        )
        partition = self._replica.store.incarnation(result.stream.incarnation, result.partition)
        self._replica.scrubber.given_up(partition, offsets)
