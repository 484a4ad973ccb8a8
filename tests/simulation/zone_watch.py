"""Eyes on the members of a simulated zone: Raft's own invariants, looked at in the moment in which they could break.

What is lost in the end was first promised by too few, voted for twice, or truncated. Each of these shows long before,
and in far more seeds, than an event that is missing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from simulation.audit import Violation
from simulation.virtual import CURRENT
from sinkd.core.raft_messages import RequestVote, Voted
from sinkd.shell.group import Group
from sinkd.shell.journal import Journal
from sinkd.shell.raft import LEADER, Member

if TYPE_CHECKING:
    from simulation.zone import Zone
    from simulation.zone_nodes import Node


class Watch:
    """`patches()` has the zone's audit hear of what members do; a broken promise becomes `zone.violation`."""

    def __init__(self, zone: "Zone") -> None:
        self.zone, self.audit = zone, zone.audit
        self._votes: dict[str, list[tuple[int, str]]] = {}  # that are to leave with a member's answers

    def patches(self) -> list[Any]:
        patched = mock.patch.object
        return [
            patched(Group, "_apply", self._around(Group._apply, self._applied)),
            patched(Group, "_send_all", self._before(Group._send_all, self._answers_leave)),
            patched(Member, "_answer", self._before(Member._answer, self._answering)),
            patched(Member, "_state_changed", self._around(Member._state_changed, self._state_changed)),
            patched(Journal, "deleteEntriesFrom", self._before(Journal.deleteEntriesFrom, self._truncating)),
            patched(Journal, "sync", self._around(Journal.sync, self._synced)),
            patched(Journal, "reset", self._around(Journal.reset, self._synced)),
            patched(Journal, "_continue", self._around(Journal._continue, self._synced)),
        ]

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except Violation as violation:
            self.zone.violation = self.zone.violation or violation

    def _around(self, method: Callable[..., Any], look: Callable[..., None]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            result = method(*arguments)
            with self._watching():
                look(result, *arguments)
            return result

        return watched

    def _before(self, method: Callable[..., Any], look: Callable[..., None]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            with self._watching():
                look(*arguments)
            return method(*arguments)

        return watched

    # -- what is looked at --------------------------------------------------------------------------------------------

    def _applied(self, result: Any, group: Group, data: bytes, index: int, term: int) -> None:
        is_new = index not in self.audit.entries
        who = self.zone.nodes[group.member.name].who
        self.audit.applied(who, index, term, data, result)
        self.audit.state(who, index, group._machine)
        if is_new:
            members = group.member.members
            holding = [name for name in members if self._holds(self.zone.nodes[name], index, term)]
            durable = len(holding) > len(members) // 2
            self.audit.is_promised(durable, f"{who} applies entry {index} of term {term}, durable on {holding} only")

    @staticmethod
    def _holds(node: "Node", index: int, term: int) -> bool:
        """Whether the entry is on its disk, or was when the disk was whole."""
        if node.damaged_at is not None:
            return True
        if node.is_running and node.sink is not None and index <= node.durable_index:
            journal = node.sink.journal
            inside = journal.first_index <= index <= journal.last_index
            return index < journal.first_index or (inside and journal.term(index) == term)
        return index <= node.durable_index

    def _state_changed(self, _: None, member: Member, old: int, new: int) -> None:
        if new != LEADER:
            return
        who, journal, last = self.zone.nodes[member.name].who, member._journal, self.audit.last_index
        self.audit.leads(member.term, who)
        self.audit.is_promised(journal.last_index >= last, f"{who} leads without entry {last}, which is committed")
        if last >= journal.first_index:
            term = self.audit.entries[last][0]
            self.audit.is_promised(journal.term(last) == term, f"{who} leads with another entry {last}")

    def _truncating(self, journal: Journal, position: int) -> None:
        node, first = self._node(), journal.first_index + position
        for index in range(first, journal.last_index + 1):
            known = self.audit.entries.get(index)
            committed = known is not None and known[0] == journal.term(index)
            self.audit.is_promised(not committed, f"{node.who} truncates entry {index}, which is committed")
        node.durable_index = min(node.durable_index, first - 1)

    def _synced(self, _: None, journal: Journal, *arguments: Any) -> None:
        self._node().durable_index = journal.last_index

    def _node(self) -> "Node":
        process = CURRENT.get()
        assert process is not None
        return self.zone.nodes[process.name]

    # -- votes --------------------------------------------------------------------------------------------------------

    def _answering(self, member: Member, name: str, message: Any) -> None:
        if isinstance(message, Voted):
            self._votes.setdefault(self.zone.nodes[member.name].who, []).append((message.term, name))
        elif isinstance(message, RequestVote):
            self._votes.setdefault(self.zone.nodes[member.name].who, []).append((message.term, member.name))

    def _answers_leave(self, group: Group, frames: Any) -> None:
        if frames is group.member.answers:
            name = group.member.name
            for term, candidate in self._votes.pop(self.zone.nodes[name].who, ()):
                self.audit.votes(name, term, candidate)
