"""What PySyncObj takes for granted, replaced: its clock, its journal, its names of nodes, its sockets, its timers.

Three of the library's globals are set when this is imported: its clock, how it makes a journal, and that it must not
wake a loop of its own, which does not run. `sinkd.shell.raft` builds on the library as it is after that.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pysyncobj.syncobj
from fastcrc import crc32
from pysyncobj import SyncObj
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from sinkd.shell.journal import Journal, JournalEntry

_create_stock_journal = pysyncobj.syncobj.createJournal


def _create_journal(journal: Any) -> Any:
    return journal if isinstance(journal, Journal) else _create_stock_journal(journal)


pysyncobj.syncobj.createJournal = _create_journal
pysyncobj.syncobj.PIPE_NOTIFIER_ENABLED = False  # it wakes the library's own loop, which does not run
pysyncobj.syncobj.monotonicTime = time.monotonic  # its own has a function around, and it asks several times in a tick


def clock() -> float:
    """Seconds, the library's own clock: a simulation replaces both in one place."""
    return float(pysyncobj.syncobj.monotonicTime())


class Peer(Node):  # type: ignore[misc]  # the library has no types
    """A member's name as the library's node. Its hash is the same in every process: a simulation has to replay."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._hash = crc32.iscsi(name.encode())

    def __hash__(self) -> int:
        return self._hash


@cache
def peer(name: str) -> Peer:
    """The node of that name: a few in the life of a process, asked for with every message."""
    return Peer(name)


class NoSockets:
    """The library's poller: with every tick it asks the kernel about sockets, of which it has none here."""

    def poll(self, timeout: float) -> None:
        return


class Wire(Transport):  # type: ignore[misc]  # the library has no types
    """Where the library's messages go: to `Member`, which makes its own of them."""

    def __init__(self, sends: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__(None, None, [])
        self.sends = sends

    @property
    def ready(self) -> bool:
        return True

    def waitReady(self) -> None:
        return

    def addNode(self, node: Node) -> None:
        return

    def dropNode(self, node: Node) -> None:
        return

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self.sends(node.id, message)
        return True

    def destroy(self) -> None:
        return


class Library(SyncObj):  # type: ignore[misc]  # the library has no types
    """The library with how it looks at its journal, and with what it is to leave to others."""

    _journal: Journal

    def _SyncObj__getCurrentLogIndex(self) -> int:
        """The library's, without an object for the entry: it asks with every message and tick."""
        return self._journal.last_index

    def _SyncObj__getCurrentLogTerm(self) -> int:
        return self._journal.term(self._journal.last_index)

    def _SyncObj__getEntries(
        self, fromIDx: int | None, count: int | None = None, maxSizeBytes: int | None = None
    ) -> list[JournalEntry]:
        """The library's, likewise: it looks at the first entry's index with every question."""
        first = self._journal.first_index
        if fromIDx is None or fromIDx < first:
            return []
        return self._journal[fromIDx - first : None if count is None else fromIDx - first + count]

    def _SyncObj__generateRaftTimeout(self) -> float:
        """Never: whether it is time to stand is decided in `tick` alone, where pre-votes come first."""
        return float("inf")

    def _SyncObj__tryLogCompaction(self) -> None:
        """Ours is done by the sink's housekeeping, outside of the tick."""
