"""Eyes on the members of a simulated zone: Raft's own invariants, looked at in the moment in which they could break.

What is lost in the end was first promised by too few, voted for twice, or truncated. Each of these shows long before,
and in far more seeds, than an event that is missing.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

from simulation.audit import Violation
from simulation.virtual import CURRENT
from simulation.zone_audit import SNAPSHOT_EVERY, GroupAudit, is_promised
from simulation.zone_nodes import group_of
from sinkd.core.raft_messages import MISMATCH, Append, PreVoted, Reply, RequestVote, Voted
from sinkd.shell.folder import GroupFolder
from sinkd.shell.group import Group
from sinkd.shell.journal import Journal
from sinkd.shell.raft import LEADER, Member

if TYPE_CHECKING:
    from simulation.zone import Zone
    from simulation.zone_nodes import Node

RESTARTS_MAX = 6  # twice what was ever seen


class Watch:
    """`patches()` has the zone's audit hear of what members do; a broken promise becomes `zone.violation`."""

    def __init__(self, zone: "Zone") -> None:
        self.zone, self.audit = zone, zone.audit
        self._said: dict[
            tuple[str, int], list[tuple[str, Any]]
        ] = {}  # (to whom, what), to leave with a member's answers
        self._append: Append | None = None  # that is being taken
        self._restarts: dict[tuple[int, str, str], tuple[int, int]] = {}  # of a leader with a follower: term, how many

    def patches(self) -> list[Any]:
        patched = mock.patch.object
        return [
            patched(Group, "_apply", self._around(Group._apply, self._applied)),
            patched(Group, "_send_all", self._before(Group._send_all, self._answers_leave)),
            patched(Member, "__init__", self._around(Member.__init__, self._begun)),
            patched(Member, "tick", self._around(Member.tick, self._ticked)),
            patched(Member, "connected", self._around(Member.connected, self._connected)),
            patched(Member, "_take_append", self._committing(self._appending(Member._take_append))),
            patched(Member, "synced", self._committing(Member.synced)),
            patched(Member, "_take_reply", self._take_reply(Member._take_reply)),
            patched(Member, "_answer", self._before(Member._answer, self._answering)),
            patched(Member, "_state_changed", self._around(Member._state_changed, self._state_changed)),
            patched(GroupFolder, "set_aside", self._before(GroupFolder.set_aside, self._setting_aside)),
            patched(Journal, "deleteEntriesFrom", self._before(Journal.deleteEntriesFrom, self._truncating)),
            patched(Journal, "sync", self._around(Journal.sync, self._journal_synced)),
            patched(Journal, "reset", self._around(Journal.reset, self._synced)),
            patched(Journal, "_continue", self._around(Journal._continue, self._synced)),
        ]

    def _look(self, look: Callable[..., None], *arguments: Any, **options: Any) -> None:
        process = CURRENT.get()
        if process is not None and process.name not in self.zone.nodes:
            return  # of another zone
        try:
            look(*arguments, **options)
        except Violation as violation:
            self.zone.violation = self.zone.violation or violation

    def _around(self, method: Callable[..., Any], look: Callable[..., None]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            self._look(look, result, *arguments, **options)
            return result

        return watched

    def _before(self, method: Callable[..., Any], look: Callable[..., None]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            self._look(look, *arguments)
            return method(*arguments)

        return watched

    # -- what is looked at --------------------------------------------------------------------------------------------

    def _applied(self, result: Any, group: Group, data: bytes, index: int, term: int) -> None:
        number = group._machine.number
        audit, who = self.audit.groups[number], self.zone.nodes[group.member.name].who
        is_new = index not in audit.entries
        self.audit.applied(number, who, index, term, data, result)
        if index % SNAPSHOT_EVERY == 0:
            audit.state(who, index, group._machine)
            self.audit.ledger.look_at(who, group._machine)
        if is_new:
            members = group.member.members
            holding = [name for name in members if self._holds(self.zone.nodes[name], number, index, term)]
            durable = len(holding) > len(members) // 2
            is_promised(durable, f"{who} applies entry {index} of term {term}, durable on {holding} only")

    @staticmethod
    def _holds(node: "Node", number: int, index: int, term: int) -> bool:
        """Whether the entry is on its disk, or was when the disk was whole."""
        if node.damaged_at is not None and node.damaged_at[number]:
            return True
        durable_index = node.parts[number].durable_index
        if node.is_running and index <= durable_index:
            journal = node.replica(number).journal
            inside = journal.first_index <= index <= journal.last_index
            return index < journal.first_index or (inside and journal.term(index) == term)
        return index <= durable_index

    def _state_changed(self, _: None, member: Member, old: int, new: int) -> None:
        if new != LEADER:
            return
        audit, who, journal = self._audit(member), self.zone.nodes[member.name].who, member._journal
        last = audit.last_index
        audit.leads(member.term, who)
        is_promised(journal.last_index >= last, f"{who} leads without entry {last}, which is committed")
        if last >= journal.first_index:
            term = audit.entries[last][0]
            is_promised(journal.term(last) == term, f"{who} leads with another entry {last}")

    def _truncating(self, journal: Journal, position: int) -> None:
        node, first, number = self._node(), journal.first_index + position, group_of(journal.folder)
        for index in range(first, journal.last_index + 1):
            known = self.audit.groups[number].entries.get(index)
            committed = known is not None and known[0] == journal.term(index)
            is_promised(not committed, f"{node.who} truncates entry {index}, which is committed")
        if first <= journal.last_index:
            self._look_what_for(node, journal, first)
        part = node.parts[number]
        part.durable_index = min(part.durable_index, first - 1)

    def _look_what_for(self, node: "Node", journal: Journal, first: int) -> None:
        """Only what contradicts an append goes, and never what its leader was told is here."""
        told = node.parts[group_of(journal.folder)].told
        counts = told.journal == journal.journal_id and told.term == journal.getCurrentTerm()
        is_promised(
            not counts or told.matched < first,
            f"{node.who} truncates entry {first}, and has said in term {told.term} that it has {told.matched}",
        )
        if self._append is not None:
            position = first - 1 - self._append.prev_index
            entries = self._append.entries[position : position + 1]
            contradicts = bool(entries) and entries[0][0] != journal.term(first)
            is_promised(contradicts, f"{node.who} truncates entry {first}, which no append contradicts")

    def _setting_aside(self, folder: GroupFolder, reason: str, *arguments: Any) -> None:
        node = self._node()
        was_damaged = node.damaged_at is not None
        is_promised(was_damaged, f"{node.who} sets aside what was never damaged: {reason}")

    def _journal_synced(self, _: None, journal: Journal) -> None:
        node, process = self._node(), CURRENT.get()
        written = process, os.fstat(journal._active.descriptor).st_ino
        is_promised(written not in node.disk.forgotten, f"{node.who} goes on after an fsync that has failed")
        self._synced(None, journal)

    def _synced(self, _: None, journal: Journal, *arguments: Any) -> None:
        node = self._node()
        number = group_of(journal.folder)
        node.note_held(number, journal)
        node.parts[number].durable_index = journal.last_index

    def _audit(self, member: Member) -> GroupAudit:
        return self.audit.groups[group_of(member._journal.folder)]

    def _node(self) -> "Node":
        process = CURRENT.get()
        assert process is not None
        return self.zone.nodes[process.name]

    # -- what is believed ---------------------------------------------------------------------------------------------

    def _appending(self, method: Callable[..., None]) -> Callable[..., None]:
        def watched(member: Member, name: str, message: Append, tail: bytes) -> None:
            self._append = message
            try:
                method(member, name, message, tail)
            finally:
                self._append = None

        return watched

    def _committing(self, method: Callable[..., None]) -> Callable[..., None]:
        def watched(member: Member, *arguments: Any) -> None:
            before = int(member.raftCommitIndex)
            method(member, *arguments)
            for index in range(before + 1, int(member.raftCommitIndex) + 1):
                self._look(self._look_at_committed, member, index)

        return watched

    def _look_at_committed(self, member: Member, index: int) -> None:
        """What a follower takes for committed is what others applied, or what its leader has."""
        known, leader = self._audit(member).entries.get(index), self.zone.nodes.get(member.leader)
        term, number = known[0] if known is not None else None, group_of(member._journal.folder)
        if term is None and leader is not None and self.zone.leads(leader, number):
            replica = leader.replica(number)
            journal, is_ours = replica.journal, replica.group.term == member.term
            is_there = is_ours and journal.first_index <= index <= journal.last_index
            term = journal.term(index) if is_there else None
        own = member._journal.term(index)
        who = self.zone.nodes[member.name].who
        is_promised(
            term in (None, own), f"{who} takes entry {index} of term {own} for committed, which is of term {term}"
        )

    def _take_reply(self, method: Callable[..., None]) -> Callable[..., None]:
        def watched(member: Member, name: str, message: Reply) -> None:
            before, epoch = self._matched(member, name), self._epoch(member, name)
            method(member, name, message)
            self._look(self._look_at_belief, member, name, before)
            if message.outcome == MISMATCH and self._epoch(member, name) != epoch:
                self._look(self._look_at_restarts, member, name)

        return watched

    def _connected(self, _: None, member: Member, name: str, journal: str) -> None:
        self._restarts.pop((group_of(member._journal.folder), member.name, name), None)
        self._look_at_belief(member, name, 0)

    def _look_at_restarts(self, member: Member, name: str) -> None:
        """To find where two logs part takes a few attempts in a term, not one for every append that was on its way."""
        key = group_of(member._journal.folder), member.name, name
        term, count = self._restarts.get(key, (member.term, 0))
        count = count + 1 if term == member.term else 1
        self._restarts[key] = member.term, count
        who = self.zone.nodes[member.name].who
        is_promised(count <= RESTARTS_MAX, f"{who} starts over with {name} for the {count}th time")

    @staticmethod
    def _epoch(member: Member, name: str) -> int:
        return member.followers[name].epoch if name in member.followers else 0

    @staticmethod
    def _matched(member: Member, name: str) -> int:
        return member.followers[name].match_index if name in member.followers else 0

    def _look_at_belief(self, member: Member, name: str, before: int) -> None:
        """What leader `member` believes that `name` holds, that one holds, durably: entries behind `before`."""
        matched, node = self._matched(member, name), self.zone.nodes[name]
        if matched <= before or not node.is_running or node.has_hidden_loss:
            return
        number, ours = group_of(member._journal.folder), member._journal
        theirs, durable_index = node.replica(number).journal, node.parts[number].durable_index
        if theirs.journal_id.hex() != member._peers.get(name) or node.replica(number).group.term > member.term:
            return  # the connection is of an earlier life of its disk; it follows a later leader
        who = f"{self.zone.nodes[member.name].who} believes that {node.who} holds entry"
        is_promised(matched <= durable_index, f"{who} {matched}, it holds {durable_index}")
        for index in range(max(before + 1, ours.first_index, theirs.first_index), matched + 1):
            terms = ours.term(index), theirs.term(index)
            is_promised(terms[0] == terms[1], f"{who} {index} of term {terms[0]}, it has one of {terms[1]}")

    # -- votes --------------------------------------------------------------------------------------------------------

    def _begun(self, _: None, member: Member, *arguments: Any, **options: Any) -> None:
        """A vote that has left is remembered, unless the member is muted for what its disk has lost."""
        node = self.zone.nodes[member.name]
        told = node.parts[group_of(member._journal.folder)].told
        vote = (member.term, member._journal.getVotedForNodeId())
        is_bound = told.candidate and not member.muted and not node.has_hidden_loss
        # A muted member that is whole again holds to the leader of the term, for whom it had not voted.
        led = self._audit(member).leaders.get(told.vote_term, "").partition("/")[0]
        is_promised(
            not is_bound or member.term > told.vote_term or vote in (told[:2], (told.vote_term, led)),
            f"{node.who} voted in term {told.vote_term} for {told.candidate}, and remembers {vote}",
        )

    def _ticked(self, _: None, member: Member) -> None:
        """Whoever may vote has all that is committed and that it ever held."""
        node = self.zone.nodes[member.name]
        number = group_of(member._journal.folder)
        node.note_held(number, member._journal)
        held_index = node.parts[number].held_index
        may_vote = member.is_member and not member.muted and not node.has_hidden_loss
        last = member._journal.last_index
        is_promised(
            not may_vote or last >= held_index,
            f"{node.who} may vote and ends at entry {last}, it once held {held_index}, which is committed",
        )

    def _answering(self, member: Member, name: str, message: Any) -> None:
        if isinstance(message, Voted | RequestVote | PreVoted) or (isinstance(message, Reply) and not message.outcome):
            key = self.zone.nodes[member.name].who, group_of(member._journal.folder)
            self._said.setdefault(key, []).append((name, message))

    def _answers_leave(self, group: Group, frames: Any) -> None:
        if frames is not group.member.answers:
            return
        node = self.zone.nodes[group.member.name]
        for to, message in self._said.pop((node.who, group._machine.number), ()):
            self._says(node, to, message, group)

    def _says(self, node: "Node", to: str, message: Any, group: Group) -> None:
        number = group._machine.number
        if isinstance(message, Reply):
            self._says_matched(node, to, message, node.replica(number).journal)
            return
        muted, part = node.replica(number).folder.identity.muted, node.parts[number]
        is_promised(not muted, f"{node.who} takes part in an election, and is muted: {muted}")
        if not isinstance(message, PreVoted):
            candidate = to if isinstance(message, Voted) else node.name
            self.audit.groups[number].votes(node.name, message.term, candidate)
            part.told = part.told._replace(vote_term=message.term, candidate=candidate)

    def _says_matched(self, node: "Node", to: str, message: Reply, journal: Journal) -> None:
        """What a follower says it has of its leader's log, it has."""
        number = group_of(journal.folder)
        part, matched = node.parts[number], message.next_index - 1
        told = part.told
        is_new = (told.journal, told.term) != (journal.journal_id, message.term)
        before = 0 if is_new else told.matched
        part.told = told._replace(journal=journal.journal_id, term=message.term, matched=max(matched, before))
        leader = self.zone.nodes[to]
        if not self.zone.leads(leader, number) or leader.replica(number).group.term != message.term:
            return
        theirs = leader.replica(number).journal
        for index in range(max(before + 1, journal.first_index, theirs.first_index), matched + 1):
            same = index <= theirs.last_index and theirs.term(index) == journal.term(index)
            is_promised(same, f"{node.who} says that it has entry {index} of its leader, and has another")
