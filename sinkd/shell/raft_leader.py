"""A leadership: from its beginning to its end, what a leader knows of its followers and sends them.

Followers are all sinks that are connected, members or not: one that is not (yet) a member is filled like the others,
but what it holds does not count. The rules for each follower stand in `sinkd.core.replication`.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

import structlog

from protocol.frames import Message
from protocol.limits import COMMAND_BYTES_TARGET, MIB
from sinkd.core.formats import Checkpoint
from sinkd.core.raft_messages import Append, Reply, Snapshot, TimeoutNow
from sinkd.core.replication import Follower, Phase
from sinkd.shell.journal import Journal

HEARTBEAT_S: Final = 0.1
TRANSFER_S: Final = 1.0
APPEND_ENTRIES_MAX: Final = 64
SNAPSHOT_PIECE_BYTES: Final = MIB
log = structlog.get_logger()


class Send(Protocol):
    def __call__(self, name: str, message: Message, *tail: bytes) -> None: ...


class _Transfer(NamedTuple):
    name: str
    until: float


class Leadership:
    """Of `term`, by the sink that has `journal`. `send(name, message, *tail)` reaches a connected peer."""

    def __init__(
        self,
        node: str,
        term: int,
        journal: Journal,
        commit_index: Callable[[], int],
        checkpoint: Callable[[], tuple[Checkpoint, bytes] | None],
        send: Send,
    ) -> None:
        self.node, self.term, self._journal = node, term, journal
        self._commit_index, self._checkpoint, self._send = commit_index, checkpoint, send
        self._connected: set[str] = set()
        self._transfer: _Transfer | None = None
        self.followers: dict[str, Follower] = {}

    @property
    def is_leaving(self) -> bool:
        """Whether it is being handed over: nothing new is taken meanwhile."""
        return self._transfer is not None

    def connected(self, name: str, journal: str) -> None:
        end = self._journal.last_index
        if name not in self.followers:
            self.followers[name] = Follower(name, end + 1)
        self._connected.add(name)
        self.followers[name].connected(journal, end)

    def disconnected(self, name: str) -> None:
        self._connected.discard(name)

    def replied(self, name: str, message: Reply, now: float) -> None:
        if name in self.followers:
            self.followers[name].replied(message, self._journal.last_index, now)

    def held_index(self) -> int | None:
        """The first entry that a follower which is being given a checkpoint will need."""
        held = [
            f.snapshot[0] for f in self.followers.values() if f.phase is Phase.SNAPSHOT and f.name in self._connected
        ]
        return min(held, default=None)

    # -- sending ------------------------------------------------------------------------------------------------------

    def replicate(self, now: float) -> None:
        """Sends each follower what is new to it, as far as its window allows, or a heartbeat when one is due."""
        for name in sorted(self._connected):
            follower = self.followers[name]
            while follower.next_index <= self._journal.last_index and follower.may_send():
                if not self._send_entries(follower, now):
                    break
            if now - follower.sent_at >= HEARTBEAT_S:
                self._send_heartbeat(follower, now)

    def has_more(self) -> bool:
        """Whether a connected follower may be sent something that it lacks."""
        last = self._journal.last_index
        for name in self._connected:
            follower = self.followers[name]
            if follower.next_index <= last and follower.may_send():
                return True
        return False

    def _send_entries(self, follower: Follower, now: float) -> bool:
        """Whether an append was sent: not if the follower needs a checkpoint."""
        first = follower.next_index
        if first - 1 < self._journal.first_index:
            self._send_checkpoint(follower, now)
            return False
        entries: list[tuple[int, int]] = []
        commands: list[bytes] = []
        size_bytes = 0
        journal = self._journal
        for index in range(first, min(journal.last_index + 1, first + APPEND_ENTRIES_MAX)):
            term, length = journal.term(index), journal.length(index)
            if entries and size_bytes + length > COMMAND_BYTES_TARGET:
                break
            entries.append((term, length))
            commands.append(journal.command(index, term))
            size_bytes += length
        sequence = follower.sent(first + len(entries) - 1, size_bytes, now)
        head = self._append(follower, sequence, first - 1, self._journal.term(first - 1), tuple(entries))
        self._send(follower.name, head, *commands)
        return True

    def _append(
        self, follower: Follower, sequence: int, prev: int, prev_term: int, entries: tuple[tuple[int, int], ...] = ()
    ) -> Append:
        ends = self._commit_index(), self._journal.last_index
        return Append(self.term, follower.epoch, sequence, prev, prev_term, *ends, entries)

    def _send_heartbeat(self, follower: Follower, now: float) -> None:
        prev = follower.next_index - 1
        if follower.phase is Phase.SNAPSHOT:
            self._send(follower.name, self._append(follower, follower.beat(now), *follower.snapshot))
        elif prev < self._journal.first_index:
            self._send_checkpoint(follower, now)
        else:
            head = self._append(follower, follower.beat(now), prev, self._journal.term(prev))
            self._send(follower.name, head)

    def _send_checkpoint(self, follower: Follower, now: float) -> None:
        """The follower lacks entries that the journal no longer has."""
        found = self._checkpoint()
        if found is None:
            raise RuntimeError(f"the journal begins at {self._journal.first_index}, and there is no checkpoint")
        saved, data = found
        follower.restart(saved.index + 1, Phase.SNAPSHOT)
        follower.snapshot = saved.index, saved.term
        log.info("checkpoint_sent", node=self.node, to=follower.name, index=saved.index, size_bytes=len(data))
        for start in range(0, len(data), SNAPSHOT_PIECE_BYTES):
            names = follower.epoch, follower.beat(now), saved.index, saved.term
            head = Snapshot(self.term, *names, start, len(data))
            self._send(follower.name, head, data[start : start + SNAPSHOT_PIECE_BYTES])

    # -- handing over -------------------------------------------------------------------------------------------------

    def transfer(self, name: str, members: Mapping[str, str], now: float) -> str:
        """Begins to hand over to member `name`, or to the one that holds most; "" or why it cannot."""
        others = [self.followers[other] for other in self._connected if other in members and name in ("", other)]
        if not others:
            return f"member {name} is not connected" if name else "no other member is connected"
        chosen = max(others, key=lambda follower: (follower.match_index, follower.name))
        self._transfer = _Transfer(chosen.name, now + TRANSFER_S)
        return ""

    def go_on_transferring(self, now: float) -> None:
        """Once the chosen one holds all, it is told to stand; if that takes too long, all is as before."""
        if self._transfer is None:
            return
        follower = self.followers[self._transfer.name]
        if now > self._transfer.until:
            self._transfer = None
        elif follower.match_index == self._journal.last_index:
            self._send(follower.name, TimeoutNow(self.term))
