"""How the streams of the zone get into force in each of its Raft groups.

    a sink's file ─► group 0: Configure, proposed by its leader ─► the committed streams, with their incarnations
                                                                     │ every sink has applied them
                                                                     ▼
                     group 1, 2, ...: Adopt, proposed by its leader, who has them from its own group 0

So there is one place in which streams are made, and a group that was cut off meanwhile finds out by itself: who leads
it looks whether group 0 is ahead. Whoever leads group 0 proposes its file's streams; a follower whose file is newer
tells the leader of it. What contradicts the committed configuration is reported, and not in force.
"""

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from protocol.errors import LogError
from sinkd.core import commands
from sinkd.core.commands import Adopt, Configure
from sinkd.core.machine import Configured, Machine
from sinkd.core.raft_messages import Propose
from sinkd.shell.group import Group, UnknownOutcome
from sinkd.shell.peers import Peers

log = structlog.get_logger()


class Configuring:
    """Of one group, whose state is `machine`; `zone` is that of group 0, which may be the same.

    `in_file()` is what the file proposes. `watch(work)` makes a task of it, whose failure is the sink's.
    `differs(sink, revision, in force, problems)` is told what of whose file is not in force, when that has changed.
    "" is this sink.
    """

    def __init__(
        self,
        group: Group,
        machine: Machine,
        zone: Machine,
        in_file: Callable[[], Configure],
        watch: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        differs: Callable[[str, int, int, tuple[str, ...]], None],
    ) -> None:
        self._differs = differs
        self._group, self._machine, self._zone, self._in_file, self._watch = group, machine, zone, in_file, watch
        self._tasks: set[asyncio.Task[None]] = set()
        self.problems: tuple[str, ...] = ()  # what of this sink's file is not in force

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def propose_soon(self) -> None:
        """This sink leads now, or group 0 has gone ahead."""
        if self._group.leads:
            self._start(self.propose())

    def take(self, sink: str, told: Propose) -> None:
        """What another sink's file says."""
        if self._group.leads and told.revision > self._machine.state.revision:
            self._start(self._configure(Configure(told.revision, told.streams, told.groups), sink))

    def compare(self, peers: Peers | None) -> None:
        """In group 0 of several sinks: tells the leader of a newer file; notes what of this one is not in force."""
        if peers is None or not self._group.leader or self._machine is not self._zone:
            return
        proposal, in_force = self._in_file(), self._machine.state.revision
        if proposal.revision > in_force and not self._group.leads:
            peers.propose(self._group.leader, proposal)
        elif proposal.revision <= in_force:
            self._note("", proposal.revision, in_force, tuple(self._machine.differences(proposal)))

    async def propose(self) -> None:
        """LogError, UnknownOutcome: somebody else leads, and proposes."""
        if self._machine is self._zone:
            await self._configure(self._from_file())
        else:
            await self._adopt()
        if not self._machine.state.members:  # from a time when a sink was always alone
            members = tuple(self._group.member.members.items())
            await self._group.submit(commands.MEMBERS, commands.MembersAre(members))

    def _from_file(self) -> Configure:
        """Without a file, what this process was started with is the newest there is."""
        proposal, state = self._in_file(), self._machine.state
        if proposal.revision:
            return proposal
        differs = bool(self._machine.differences(proposal))
        return Configure(state.revision + differs, proposal.streams, proposal.groups)

    async def _configure(self, proposal: Configure, sink: str = "") -> None:
        result = await self._group.submit(commands.CONFIGURE, proposal)
        assert isinstance(result, Configured)
        self._note(sink, proposal.revision, result.revision, result.problems)
        for problem in result.problems:
            log.warning("configuration_not_in_force", problem=problem, revision_in_force=result.revision)

    def _note(self, sink: str, revision: int, in_force: int, problems: tuple[str, ...]) -> None:
        if problems and problems != self.problems:
            self._differs(sink, revision, in_force, problems)
        self.problems = problems

    async def _adopt(self) -> None:
        while (revision := self._zone.state.revision) > self._machine.state.revision:
            told = Adopt(revision, self._zone.stream_states(), self._zone.state.groups)
            await self._group.submit(commands.ADOPT, told)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        async def propose() -> None:
            try:
                await work
            except (LogError, UnknownOutcome) as error:  # whoever leads next proposes again
                log.info("configuration_not_proposed", group=self._machine.number, error=str(error))

        task = self._watch(propose())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
