"""How a group goes on of which too few members are whole: with what one of them holds, by the word of an operator.

Such a group has stopped, and never goes on by itself: what is left of its log may be a part of it. Where the other
disks are lost for good, `mesh repair --accept-loss` asks the member that holds most:

    read all that it holds ─► new id of the group, durable ─► LOSS in the journal, durable ─► it leads, alone

- All that its journal holds counts, committed or not: more was acknowledged, if anything.
- LOSS (`sinkd.core.commands`) makes it the only member, and puts a gap record at the end of each log: behind what was
  there, for applying it comes last. It is one entry: there are gap records if and only if the group goes on.
- The new id comes first. Whatever still belongs to the old group cannot vote here, nor be voted for; when it hears
  that its group was succeeded, it puts its log aside and is filled (`Superseded`). A crash between the two steps leaves
  a group that still has stopped, and is repaired once more.
"""

import asyncio
import secrets
from typing import TYPE_CHECKING

import structlog

from protocol.errors import DataError, FrameError, LogError
from protocol.gaps import ACCEPTED_LOSS, Gap, encode_gap
from protocol.limits import GROUPS_SUCCEEDED_MAX, LINK_FETCH_BYTES_MAX
from protocol.link import AcceptLoss
from protocol.records import check_batch, split_batches
from sinkd.core import commands
from sinkd.core.birth import ACTIVE

if TYPE_CHECKING:
    from sinkd.shell.replica import Replica
    from sinkd.shell.sink import Sink

GROUP_ID_BYTES = 16
GOES_ON_S_MAX = 10.0  # to be elected by nobody but itself, and to apply its journal
log = structlog.get_logger()


class Repair:
    """Of one Raft group of a sink."""

    def __init__(self, sink: "Sink", replica: "Replica") -> None:
        self._sink, self._replica = sink, replica

    async def accept_loss(self, asked: AcceptLoss, who: str) -> None:
        """Returns when this sink leads; with `only_check`, when it has read all that it would go on with.

        `who` is the address that asked for it. LogError INVALID_REQUEST: not so, or not now; STORAGE_ERROR: what it
        holds is damaged. Nothing was done then.
        """
        self._refuse(self._problem(asked))
        await self._read_all()
        if not asked.only_check:
            await self._go_on(asked, who)

    def _problem(self, asked: AcceptLoss) -> str:
        """Why it cannot be done; "" if it can."""
        node, peers, group = self._sink.node.name, self._replica.peers, self._replica.group
        members = group.member.members
        if peers is None:
            return f"sink {node} is the only one of its zone: there are no others to go on without"
        if group.leader:
            return f"the group goes on: sink {group.leader} leads it"
        if self._replica.folder.identity.state != ACTIVE:
            return f"the group of sink {node} has not begun: {peers.waits}"
        if not group.member.is_member:
            return f"sink {node} is no member; members are {', '.join(sorted(members))}"
        if not self._replica.links.operator.too_few():
            return "enough members are up and whole: the group goes on by itself"
        if self._replica.is_being_filled:
            return f"sink {node} is being filled, and holds a part of a log"
        return self._problem_of_others(asked, set(peers.hellos)) or self._problem_of_end(asked)

    def _problem_of_others(self, asked: AcceptLoss, connected: set[str]) -> str:
        others = self._replica.group.member.members.keys() - {self._sink.node.name}
        unknown = sorted(others - connected - set(asked.gone))
        if unknown:
            return f"sink {self._sink.node.name} is not connected to {', '.join(unknown)}, which may hold more"
        there = sorted(connected & set(asked.gone))
        return f"{', '.join(there)}: said to be gone, and connected to sink {self._sink.node.name}" if there else ""

    def _problem_of_end(self, asked: AcceptLoss) -> str:
        journal = self._replica.journal
        term = journal.term(journal.last_index) if len(journal) else 0
        if (term, journal.last_index) == (asked.last_term, asked.last_index):
            return ""
        return f"the journal of sink {self._sink.node.name} ends at entry {journal.last_index} of term {term} now"

    @staticmethod
    def _refuse(problem: str) -> None:
        if problem:
            raise LogError("INVALID_REQUEST", problem)

    async def _read_all(self) -> None:
        """Every batch that is known to be committed, and every entry of the journal, checked."""
        store = self._replica.store
        try:
            for partition in store.partitions:
                offset = partition.start_offset
                while offset < partition.high_watermark:
                    data = await store.read(partition, offset, LINK_FETCH_BYTES_MAX)
                    for batch in split_batches(data):
                        offset = check_batch(batch).next_offset
            await self._read_journal()
        except (DataError, FrameError) as error:
            raise LogError("STORAGE_ERROR", f"sink {self._sink.node.name}: {error}") from error

    async def _read_journal(self) -> None:
        """DamagedFile: where."""
        journal, damage = self._replica.journal, []

        def read() -> None:
            try:
                for index in range(journal.first_index, journal.last_index + 1):
                    journal.command(index, journal.term(index))
            except DataError as error:
                damage.append(error)

        await self._replica.group.between_ticks(read)
        if damage:
            raise damage[0]

    async def _go_on(self, asked: AcceptLoss, who: str) -> None:
        node, folder, group = self._sink.node, self._replica.folder, self._replica.group
        now_ms = self._sink.now_ms()
        loss = commands.AcceptLoss(((node.name, group.member.members[node.name]),), who)
        command = commands.encode_loss(now_ms, loss, encode_gap(Gap(ACCEPTED_LOSS, 0, 0, now_ms, who)))
        succeeds = [*folder.identity.succeeds.split(), folder.identity.group][-GROUPS_SUCCEEDED_MAX:]
        problems: list[str] = []

        def work() -> None:
            problems.append(self._problem(asked))
            if not problems[0]:
                folder.update(group=secrets.token_hex(GROUP_ID_BYTES), succeeds=" ".join(succeeds), muted="")
                group.member.go_on_alone(command)

        def then() -> None:
            if not problems[0] and self._replica.peers is not None:
                self._replica.peers.begin_anew()

        await group.between_ticks(work, then)
        self._refuse(problems[0])
        log.warning(
            "loss_accepted", node=node.name, group=self._replica.number, index=asked.last_index, by=who, gone=asked.gone
        )
        try:
            await asyncio.wait_for(group.caught_up(), GOES_ON_S_MAX)
        except TimeoutError as error:
            what = f"sink {node.name} goes on alone, and still applies its journal: `mesh status` says when it leads"
            raise LogError("LEADER_NOT_AVAILABLE", what) from error
