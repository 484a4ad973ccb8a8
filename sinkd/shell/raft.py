"""PySyncObj, held to the rules that make it a safe Raft: our journal, our transport, a thin subclass.

The library is pinned and not forked. Three places are ours: the journal (`sinkd.shell.journal`: ordered, checksummed,
fsynced), the transport below, and `Member`, which overrides the private methods that apply commands and compact.
A private method `__x` of SyncObj is overridden under its mangled name `_SyncObj__x`.

Rules of note here:

- Commands are raw bytes, never pickled. Applying one never fails: an exception leaves `doTick` and the process ends.
- The library's own compaction is off. Our checkpoint is written by the flush loop, then the journal is cut.
- The commit index is not stored: it is found again from the journal (the group of one commits all of it, fsynced).
- With one member, everything in the journal must be fsynced before the next tick counts it: `Group` sees to that.
- What waits for a command is told `unknown outcome` when leadership changes, never left waiting.
"""

from collections.abc import Callable
from typing import Any, Final

import pysyncobj.syncobj
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from protocol.limits import COMMAND_BYTES_TARGET, LINK_FRAME_BYTES_MAX
from sinkd.shell.journal import Journal

REGULAR: Final = b"\x00"  # the library's command type byte before our bytes
LEADER: Final = 2

_create_stock_journal = pysyncobj.syncobj.createJournal


def _create_journal(journal: Any) -> Any:
    return journal if isinstance(journal, Journal) else _create_stock_journal(journal)


pysyncobj.syncobj.createJournal = _create_journal


class GroupTransport(Transport):  # type: ignore[misc]  # the library has no types
    """The transport of a group of one: there is nobody to connect to, and a message to anybody is a bug."""

    def __init__(self) -> None:
        super().__init__(None, None, [])

    @property
    def ready(self) -> bool:
        return True

    def waitReady(self) -> None:
        return

    def addNode(self, node: Node) -> None:
        raise RuntimeError(f"a group of one has no member {node.id}")

    def dropNode(self, node: Node) -> None:
        raise RuntimeError(f"a group of one has no member {node.id}")

    def send(self, node: Node, message: Any) -> bool:
        raise RuntimeError(f"a group of one has no member {node.id}")

    def destroy(self) -> None:
        return


class Member(SyncObj):  # type: ignore[misc]  # the library has no types
    """This sink's member of a Raft group.

    `apply(command, index, term)` is called once for every committed command, in order, from within `doTick`.
    """

    def __init__(
        self, node: str, journal: Journal, applied_index: int, apply: Callable[[bytes, int, int], Any]
    ) -> None:
        """`applied_index` is the index that the state machine's checkpoint stands for, 0 without one."""
        self._apply = apply
        self._journal = journal
        configuration = SyncObjConf(
            autoTick=False,
            commandsWaitLeader=False,
            useFork=False,
            appendEntriesUseBatch=False,
            appendEntriesBatchSizeBytes=max(COMMAND_BYTES_TARGET, LINK_FRAME_BYTES_MAX) * 2,
            raftMinTimeout=0.4,
            raftMaxTimeout=0.8,
            appendEntriesPeriod=0.1,
            leaderFallbackTimeout=1,
            journalFile=journal,
        )
        super().__init__(Node(node), [], configuration, transport=GroupTransport())
        if applied_index:
            self._SyncObj__raftLastApplied = applied_index
        # Alone there is nobody whose heartbeat to wait for.
        self._SyncObj__raftElectionDeadline = 0

    @property
    def leads(self) -> bool:
        return bool(self._SyncObj__raftState == LEADER)

    @property
    def is_caught_up(self) -> bool:
        """Whether this leader has applied everything up to the first entry of its own term."""
        no_op_index = self._SyncObj__noopIDx
        return self.leads and no_op_index is not None and self.raftLastApplied >= no_op_index

    def append(self, command: bytes, decided: Callable[[Any, bool], None]) -> None:
        """Hands over a command; a later `doTick` calls `decided(result, committed)`, which must only queue."""
        self._applyCommand(REGULAR + command, lambda result, error: decided(result, error == FAIL_REASON.SUCCESS))

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        if command[:1] != REGULAR:
            return None
        index = self.raftLastApplied + 1
        entry = self._journal[index - self._journal.first_index]
        return self._apply(command[1:], index, entry.term)

    def _SyncObj__tryLogCompaction(self) -> None:
        """Ours is done by the flush loop, outside of the tick."""
