"""What the sinks of a zone write into the audit stream: what changed, who asked for it, and links that were refused.

    a command is applied, on every sink ───────┐
    an operator asks, a link is refused, here ─┴─► `sinkd.shell.notes` ─► `$AUDIT`

The id of what was applied is its place in the Raft log, the same on every sink, so whoever comes to lead goes on. Notes
that are old when they are made are given up: after a restart those are the old entries of the journal, which were
written when they were new.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import structlog

from protocol import audit
from protocol.errors import UNREADABLE
from protocol.limits import AUDIT_NOTES_MAX
from sinkd.core.commands import MembersAre
from sinkd.core.damage import GivenUp
from sinkd.core.machine import Configured, LossAccepted
from sinkd.core.membership import Members
from sinkd.core.raft_messages import Note
from sinkd.core.rebuilding import RebuildChanged, described
from sinkd.shell.group import Change
from sinkd.shell.notes import Noted, Notes

if TYPE_CHECKING:
    from sinkd.shell.sink import Sink

log = structlog.get_logger()


class AuditNotes:
    """Of one sink. `written` counts what it has appended, by kind; `lost` what it had to give up."""

    def __init__(self, sink: "Sink") -> None:
        self._sink = sink
        self._notes = Notes(sink, audit.STREAM, 0, AUDIT_NOTES_MAX)
        self._summary = audit.Summary()
        self._asked_by = ""

    @property
    def written(self) -> Counter[str]:
        return self._notes.written

    @property
    def lost(self) -> int:
        return self._notes.lost

    @property
    def waiting(self) -> int:
        """How many are not in the log yet."""
        return self._notes.waiting

    # -- what there is to note ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def asked_by(self, source: str) -> Iterator[None]:
        """What is applied meanwhile was asked for by somebody at this address."""
        self._asked_by = source
        try:
            yield
        finally:
            self._asked_by = ""

    def applied(self, group: int, change: Change) -> None:
        """A command has changed the configuration or the members; every sink of the group notes the same."""
        result, at = change.result, f"{group}:{change.log_index}:{change.time_ms}".encode()
        if isinstance(result, Configured) and group == 0 and result.revision != change.revision_before:
            streams = sum(not state.retired for state in self._sink.machine.stream_states())
            what, why = f"revision {result.revision} is in force, {streams} streams", f"was {change.revision_before}"
            self._add(at, self._event(audit.CONFIGURATION_CHANGED, change.time_ms, what=what, why=why))
        elif isinstance(result, MembersAre) and (what := _changes(change.members_before, result)):
            source, what = self._asked_by, f"group {group}: {what}"
            self._add(at, self._event(audit.MEMBERSHIP_CHANGED, change.time_ms, source=source, what=what))
        elif isinstance(result, RebuildChanged) and result.rebuild is not None and not result.refusal:
            kind = audit.REBUILD_ENDED if result.rebuild.ended_ms else audit.REBUILD_BEGUN
            what = described(result.rebuild)
            self._add(at, self._event(kind, change.time_ms, source=self._asked_by, what=what))
        elif isinstance(result, LossAccepted):
            what = f"group {group}: goes on with what {', '.join(result.members)} held"
            why = f"members were {', '.join(change.members_before)}"
            self._add(at, self._event(audit.LOSS_ACCEPTED, change.time_ms, source=result.who, what=what, why=why))
        elif isinstance(result, GivenUp) and result.stream is not None and result.batches:
            offsets = ", ".join(f"{one.base_offset} to {one.next_offset - 1}" for one in result.batches)
            what, why = f"{result.stream.name}/{result.partition}: offsets {offsets}", "no sink has them whole any more"
            self._add(at, self._event(audit.LOSS_ACCEPTED, change.time_ms, source=result.who, what=what, why=why))

    def configuration_problems(self, sink: str, revision: int, in_force: int, problems: tuple[str, ...]) -> None:
        """The file of `sink` (this one: "") is not in force, or not all of it. Said once within the window."""
        kind = audit.CONFIGURATION_REFUSED if revision > in_force else audit.CONFIGURATION_DIFFERS
        what = f"revision {revision} of the file of {sink or self._sink.node.name}, {in_force} is in force"
        why = "; ".join(problems)
        self._add_own(f"{what}: {why}", self._event(kind, self._sink.now_ms(), what=what, why=why))

    def leadership_moved(self, group: int, to: str, source: str) -> None:
        """An operator has asked for it."""
        what = f"group {group}: from {self._sink.node.name} to {to or 'the member that is furthest'}"
        event = self._event(audit.LEADERSHIP_MOVED, self._sink.now_ms(), source=source, what=what)
        self._add_own(f"{event.time}: {what}", event)

    def segment_mended(self, what: str, why: str) -> None:
        """Something that this disk had spoilt is whole again."""
        event = self._event(audit.SEGMENT_MENDED, self._sink.now_ms(), what=what, why=why)
        self._add_own(f"{event.time}: {what}", event)

    def replica_differs(self, log: str, source: str, why: str) -> None:
        """A sink holds other bytes than what the log has committed: `source`, "" for this one."""
        what = f"{log}: {source or f'sink {self._sink.node.name}'}"
        event = self._event(audit.REPLICA_DIFFERS, self._sink.now_ms(), what=what, why=why)
        self._add_own(f"{event.time}: differs {what}", event)

    def link_refused(self, host: str, what: str, why: str) -> None:
        self._refused(audit.LINK_REFUSED, host, what, why)

    def beacon_refused(self, node: str, what: str, why: str) -> None:
        """What stands in `$COVERAGE` as that of `node` is not taken for it."""
        self._refused(audit.BEACON_REFUSED, audit.plain(node), what, why)

    def _refused(self, kind: str, source: str, what: str, why: str) -> None:
        event = self._event(kind, self._sink.now_ms(), source=source, what=what, why=why)
        if (first := self._summary.note(event, self._clock_ms())) is not None:
            self._add_refused(first)
        self._notes.wake()

    def _add_refused(self, event: audit.Event) -> None:
        self._add_own(f"{event.time}: {event.kind} {event.source} {event.times}", event)

    def _event(self, kind: str, time_ms: int, *, source: str = "", what: str, why: str = "") -> audit.Event:
        node, what, why = self._sink.node, audit.plain(what), audit.plain(why)
        return audit.Event(time=time_ms, zone=node.zone, node=node.name, kind=kind, source=source, what=what, why=why)

    def _add_own(self, id: str, event: audit.Event) -> None:
        self._notes.add_own(id, _noted(event))

    def _add(self, id: bytes, event: audit.Event) -> None:
        self._notes.add(id, _noted(event))

    def take(self, note: Note) -> None:
        """What another sink knows."""
        try:
            event = msgspec.json.decode(note.event, type=audit.Event)
        except UNREADABLE as error:
            log.warning("audit_note_unreadable", error=str(error))
        else:
            self._add(note.id, event)

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._notes.run(self._sum_up, lambda: self._summary.is_open)

    def _sum_up(self) -> None:
        for event in self._summary.due(self._clock_ms()):
            self._add_refused(event)

    def _clock_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)


def _noted(event: audit.Event) -> Noted:
    return Noted(event.time, event.subject, event.encoded())


def _changes(before: Members, now: MembersAre) -> str:
    """What became of the members, in words."""
    names = {name for name, _ in now.members}
    if not before:
        return ""  # the group has begun
    parts = [f"added {name}" for name in sorted(names - before.keys())]
    parts += [f"removed {name}" for name in sorted(before.keys() - names)]
    return ", ".join(parts)
