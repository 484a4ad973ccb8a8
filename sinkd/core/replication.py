"""The rules by which entries pass from a leader to a follower (Raft, figure 2), held outside of the library.

Both ends are plain values here. `fit` is the follower's: what of an append is new to a log, so that the library, which
truncates whatever stands behind an append's first entry, is only ever given appends that fit (rules F1, F2, F4).
`Follower` is the leader's: what it knows of one follower, and which answers it may still believe (rules L1 to L4).

    PROBE ─ MATCHED ─► REPLICATE ─ MISMATCH, BUSY, connect ─► PROBE
      │ nothing to send from: the journal begins later
      ▼
    SNAPSHOT ─ MATCHED ─► REPLICATE

Every move to PROBE or SNAPSHOT begins a new epoch: answers to what was sent before may raise `match_index`, for what a
follower said it holds it does hold, but they no longer say from where to send.
"""

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple, Protocol

from sinkd.core.raft_messages import BUSY, MATCHED, Append, Reply, Snapshot

WINDOW_BYTES: Final = 8 * 1024 * 1024  # of commands that a follower was sent and has not answered
WINDOW_APPENDS: Final = 64


class Log(Protocol):
    """What the rules ask of a journal."""

    @property
    def first_index(self) -> int: ...

    @property
    def last_index(self) -> int: ...

    def term(self, index: int) -> int: ...


class Diverged(Exception):
    """A committed entry is not the leader's: one of the two is damaged beyond what checksums show. End the process."""


class Fit(NamedTuple):
    """Entries from position `start` of the append go behind entry `prev_index`; then the log matches to `matched`."""

    start: int
    prev_index: int
    matched: int


class Mismatch(NamedTuple):
    """The log lacks what the append continues; `next_index` is where to try again (rule F4)."""

    next_index: int


def fit(log: Log, commit_index: int, prev_index: int, prev_term: int, terms: Sequence[int]) -> Fit | Mismatch:
    """What of an append with entries of `terms` behind (`prev_index`, `prev_term`) is new to `log`.

    Diverged: it contradicts an entry that is committed here.
    """
    if prev_index > log.last_index:
        return Mismatch(log.last_index + 1)
    if prev_index >= log.first_index and log.term(prev_index) != prev_term:
        if prev_index <= commit_index:
            raise Diverged(
                f"entry {prev_index} is committed with term {log.term(prev_index)}, the leader has {prev_term}"
            )
        return Mismatch(_first_of_term(log, commit_index, prev_index))
    matched = prev_index + len(terms)
    for position, term in enumerate(terms):
        index = prev_index + 1 + position
        if index > log.last_index:
            return Fit(position, index - 1, matched)
        if index < log.first_index or log.term(index) == term:
            continue
        if index <= commit_index:
            raise Diverged(f"entry {index} is committed with term {log.term(index)}, the leader has {term}")
        return Fit(position, index - 1, matched)
    # Nothing is new. What stands behind it may be the leader's too: it stays (an older append overtaken by a newer).
    return Fit(len(terms), log.last_index, matched)


def _first_of_term(log: Log, commit_index: int, index: int) -> int:
    """The first index of the term of entry `index`, above what is committed."""
    term = log.term(index)
    while index - 1 > max(commit_index, log.first_index) and log.term(index - 1) == term:
        index -= 1
    return index


class Phase(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class _Sent(NamedTuple):
    sequence: int
    size_bytes: int


class Follower:
    """What a leader knows of one peer, in one leadership."""

    def __init__(self, name: str, next_index: int) -> None:
        self.name = name
        self.journal = ""
        self.match_index = 0
        self.next_index = next_index
        self.epoch = 1
        self.sequence = 0
        self.phase = Phase.PROBE
        self.snapshot: tuple[int, int] = 0, 0  # index and term of the checkpoint that was sent
        self.heard_at = self.sent_at = 0.0
        self.why = ""
        self._is_paused = False  # nothing but heartbeats: the last append could not be taken
        self._believed_epoch = 1  # answers of epochs before this one are of another journal
        self._in_flight: deque[_Sent] = deque()
        self._in_flight_bytes = 0

    def connected(self, journal: str, end: int) -> None:
        """A connection was made to a follower with that journal; the leader's log ends at `end`."""
        if journal != self.journal:  # C6: what the old journal held is gone
            self.journal, self.match_index = journal, 0
            self._believed_epoch = self.epoch + 1
        # L4: with nothing known, from the end: the mismatch tells where to begin.
        self.restart(self.match_index + 1 if self.match_index else end + 1)

    def restart(self, next_index: int, phase: Phase = Phase.PROBE) -> None:
        """A new epoch, in which nothing is on its way."""
        self.epoch += 1
        self.phase, self.next_index = phase, next_index
        self._is_paused = False
        self._in_flight.clear()
        self._in_flight_bytes = 0

    def may_send(self) -> bool:
        """Whether there is room for an append with entries."""
        if self.phase is Phase.REPLICATE:
            return self._in_flight_bytes < WINDOW_BYTES and len(self._in_flight) < WINDOW_APPENDS
        return self.phase is Phase.PROBE and not self._in_flight and not self._is_paused

    def sent(self, last_index: int, size_bytes: int, now: float) -> int:
        """Notes an append that ends with entry `last_index`; its sequence. Heartbeats are not noted: see `beat`."""
        self.next_index = last_index + 1
        self._in_flight.append(_Sent(self.sequence + 1, size_bytes))
        self._in_flight_bytes += size_bytes
        return self.beat(now)

    def beat(self, now: float) -> int:
        """The sequence of an append without entries."""
        self.sent_at = now
        self.sequence += 1
        return self.sequence

    def replied(self, reply: Reply, end: int, now: float) -> None:
        """Takes an answer of the current term; the leader's log ends at `end`."""
        self.heard_at = now
        if reply.outcome == MATCHED:
            self._matched(reply, end)
        elif reply.epoch == self.epoch:
            self.why = reply.why
            if reply.outcome != BUSY or self.phase is not Phase.SNAPSHOT:
                self.restart(self._clamped(reply.next_index, end))
                self._is_paused = reply.outcome == BUSY

    def _matched(self, reply: Reply, end: int) -> None:
        if reply.epoch < self._believed_epoch or reply.next_index > end + 1:
            return
        self.match_index = max(self.match_index, reply.next_index - 1)
        if reply.epoch != self.epoch:
            return
        was_entries = bool(self._in_flight) and self._in_flight[0].sequence <= reply.sequence
        self._forget_sent(reply.sequence)
        self.next_index = max(self.next_index, self.match_index + 1)
        self._is_paused = False
        if was_entries or not self.why or self.phase is Phase.SNAPSHOT:
            self.why = ""
            if self.phase is not Phase.SNAPSHOT or self.match_index >= self.snapshot[0]:
                self.phase = Phase.REPLICATE

    def _forget_sent(self, sequence: int) -> None:
        while self._in_flight and self._in_flight[0].sequence <= sequence:
            self._in_flight_bytes -= self._in_flight.popleft().size_bytes

    def _clamped(self, hint: int, end: int) -> int:
        """L3: a hint is no better than what is known. Entry 1 is the same everywhere."""
        return min(max(hint, 2, self.match_index + 1), end + 1)


class Pieces:
    """Puts the pieces of a checkpoint file together; what is out of turn begins nothing and ends nothing."""

    def __init__(self) -> None:
        self._key: tuple[str, int, int] | None = None
        self._data = bytearray()

    def take(self, sender: str, message: Snapshot, data: bytes) -> bytes | None:
        """The whole file, once this was its last piece."""
        key = sender, message.term, message.epoch
        if message.start == 0:
            self._key, self._data = key, bytearray()
        if self._key != key or len(self._data) != message.start:
            return None
        self._data += data
        if len(self._data) < message.size_bytes:
            return None
        self._key, whole = None, bytes(self._data)
        self._data = bytearray()
        return whole


def commands_of(append: Append, tail: bytes, start: int) -> list[bytes]:
    """The commands from position `start` of an append on. ValueError: the tail is not what its head says."""
    if len(append.entries) == 1 and append.entries[0][1] == len(tail):  # the usual one, and a large one
        return [tail] if start == 0 else []
    view, position, commands = memoryview(tail), 0, []
    for number, (_, length) in enumerate(append.entries):
        if number >= start:
            commands.append(bytes(view[position : position + length]))
        position += length
    if position != len(tail):
        raise ValueError(f"an append of {position} bytes of commands has {len(tail)}")
    return commands
