"""What gateways have said in their beacons: the latest of each worker, run by run, and which beacons are not taken.

    beacon ─► its number rises within its process? ─► rows ─► a line for each run: what it names, and since when
                   └─ no: replayed or reordered

A *line* is one run of a worker in a partition. The latest is its present one; those before stay as long as something
of them may be missing. A run is over when the gateway says so (`OVER`: the log knew less than it had acknowledged),
when the process has said its last word (`ENDED`), or when another process has taken its place (`FOLLOWED`).
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from protocol.coverage import Beacon, Row
from protocol.errors import MeshError
from protocol.limits import COVERAGE_LINES_MAX, COVERAGE_SPEAKERS_MAX

UNREADABLE: Final = "unreadable"
UNSIGNED: Final = "unsigned"
FORGED: Final = "forged"
EXPIRED: Final = "expired"
MESH: Final = "mesh"
ROLE: Final = "role"
NODE: Final = "node"
REPLAYED: Final = "replayed"
REORDERED: Final = "reordered"
TOO_MANY: Final = "too_many"
REASONS: Final = {
    UNREADABLE: "it is not what a node of this version writes",
    UNSIGNED: "it is not signed, and nodes have certificates",
    FORGED: "the signature is not of these bytes, or not by a certificate of the mesh's authority",
    EXPIRED: "the certificate was not valid at its time",
    MESH: "it is of another mesh",
    ROLE: "the certificate is not that of a node that may say such a thing",
    NODE: "the certificate is that of another node",
    REPLAYED: "it stood in the log before, or its process has been followed by another",
    REORDERED: "later ones of its process came before it",
    TOO_MANY: f"{COVERAGE_SPEAKERS_MAX} workers have spoken already",
}

OVER: Final = "over"
ENDED: Final = "ended"
FOLLOWED: Final = "followed"

_NUMBERS_KEPT: Final = 256  # of beacons, to tell a replayed one from one out of order
_PROCESSES_KEPT: Final = 64  # that were followed by another
_TARGETS_MAX: Final = 16  # within the grace, and of those that are late the oldest

Place = tuple[str, int]
"""(incarnation, partition)"""


class BeaconRefused(MeshError):
    """A beacon, or another event of the stream, is not taken for what it says; `reason` is one of REASONS."""

    def __init__(self, reason: str, what: str = "") -> None:
        super().__init__(what or REASONS[reason])
        self.reason = reason


class Targets:
    """Sequences that were named, and when: those that are not reached in time are overdue."""

    def __init__(self) -> None:
        self._named: deque[tuple[int, int]] = deque()

    def name(self, sequence: int, now_ms: int, step_ms: int) -> None:
        """At most one in each `step_ms` is kept: a later one stands for it soon."""
        if self._named:
            last, at_ms = self._named[-1]
            if sequence <= last or now_ms - at_ms < step_ms or len(self._named) >= _TARGETS_MAX:
                return
        self._named.append((sequence, now_ms))

    def overdue(self, through: int, before_ms: int) -> int:
        """The last one that was named before that and is above `through`; 0 for none."""
        while self._named and self._named[0][0] <= through:
            self._named.popleft()
        return max((sequence for sequence, at_ms in self._named if at_ms <= before_ms), default=0)


class Line:
    """A run of a worker in a partition. `row` is the latest that was said of it, at `said_ms` by that one's clock."""

    def __init__(self, row: Row, process: str, began_ms: int) -> None:
        """ValueError: the run or the chain is no hexadecimal number."""
        self.process, self.began_ms = process, began_ms
        self.run, self.chain = bytes.fromhex(row.run), bytes.fromhex(row.chain)
        self.row = row
        self.said_ms = began_ms
        self.acknowledged = row.acknowledged  # the most that was ever said
        self.named, self.acked = Targets(), Targets()
        self.verified = row.base  # up to here gateway and sinks had the same chain
        self.through = row.base  # as it was looked last
        self.is_settled = False  # nothing of it is missing, and nothing was said since
        self.moved_ms = self.asked_ms = 0  # when more of it had come, and when the link was closed for it
        self.over = ""
        self.over_ms = 0
        self.spool = False
        self.is_followed = False  # the worker names another run there

    @property
    def place(self) -> Place:
        return self.row.incarnation, self.row.partition

    @property
    def last_named(self) -> int:
        return max(self.row.next - 1, self.acknowledged)

    def say(self, row: Row, said_ms: int) -> None:
        """ValueError as above."""
        self.chain = bytes.fromhex(row.chain)
        self.row, self.said_ms = row, said_ms
        self.acknowledged = max(self.acknowledged, row.acknowledged)
        self.is_settled = False

    def end(self, how: str, now_ms: int) -> None:
        if not self.over:
            self.over_ms = now_ms
        self.over = how
        self.is_settled = False


class Uttered(NamedTuple):
    """What is to be known of a worker's latest beacon, beside its rows."""

    zone: str
    process: str
    number: int
    time_ms: int
    closing: bool
    spool: bool
    signed: bool


class Speaker:
    """A gateway worker, as its beacons have it."""

    def __init__(self, node: str, worker: int) -> None:
        self.node, self.worker = node, worker
        self.uttered = Uttered("", "", 0, 0, closing=False, spool=False, signed=False)
        self.heard_ms = 0
        self.lines: dict[Place, Line] = {}
        self.olds: list[Line] = []
        self.processes: list[str] = []  # that were followed
        self.numbers: deque[int] = deque(maxlen=_NUMBERS_KEPT)
        self.beacon: Beacon | None = None  # the latest; its rows may be some only
        self.unclosed = 0  # processes that were followed without a last word
        self.told: set[str] = set()  # logs that it has spoken of

    @property
    def name(self) -> str:
        return f"{self.node}/{self.worker}"

    def all_lines(self) -> Iterator[Line]:
        yield from self.olds
        yield from self.lines.values()

    def is_silent(self, now_ms: int, silence_ms: int) -> bool:
        """For so long, and without a last word."""
        return not self.uttered.closing and now_ms - self.heard_ms > silence_ms

    # -- hearing ------------------------------------------------------------------------------------------------------

    def check(self, beacon: Beacon) -> None:
        """BeaconRefused: it was there before, or comes too late."""
        if beacon.process in self.processes:
            raise BeaconRefused(REPLAYED, f"process {beacon.process} has been followed by another")
        if beacon.process != self.uttered.process or beacon.number > self.uttered.number:
            return
        if beacon.number in self.numbers or beacon.number < min(self.numbers, default=0):
            raise BeaconRefused(REPLAYED, f"number {beacon.number} was there before")
        raise BeaconRefused(REORDERED, f"number {beacon.number} comes after {self.uttered.number}")

    def hear(self, beacon: Beacon, now_ms: int, *, signed: bool) -> list[Line]:
        """The lines that it is about. BeaconRefused as `check`, or UNREADABLE; then nothing has changed."""
        self.check(beacon)
        _check_rows(beacon)
        if beacon.process != self.uttered.process:
            self._follow(now_ms)
        self.uttered = Uttered(
            beacon.zone, beacon.process, beacon.number, beacon.time, beacon.closing, beacon.spool, signed
        )
        self.numbers.append(beacon.number)
        self.heard_ms, self.beacon = now_ms, beacon
        said = [self._say(row, beacon, now_ms) for row in beacon.rows]
        if beacon.closing:
            for line in self.all_lines():
                if not line.over:
                    line.end(ENDED, now_ms)
        return said

    def _follow(self, now_ms: int) -> None:
        """Another process begins: all that the one before has said stays to be looked at."""
        if self.uttered.process:
            self.processes.append(self.uttered.process)
            del self.processes[:-_PROCESSES_KEPT]
            self.unclosed += not self.uttered.closing
        self.numbers.clear()
        for line in self.all_lines():
            if line.over != OVER:
                line.end(FOLLOWED, now_ms)
        self.olds += [line for line in self.lines.values() if not line.is_settled]
        self.lines.clear()

    def _say(self, row: Row, beacon: Beacon, now_ms: int) -> Line:
        place, run = (row.incarnation, row.partition), bytes.fromhex(row.run)
        line = self.lines.get(place)
        if line is None or line.run != run:
            line = next((old for old in self.olds if old.run == run and old.place == place), None)
        if line is None:
            line = Line(row, beacon.process, beacon.time)
            if row.is_over:
                self.olds.append(line)
            else:
                self._begin(line, now_ms)
        line.spool = beacon.spool
        self.told.add(f"{row.stream}/{row.partition}")
        line.say(row, beacon.time)
        if row.is_over and line.over != OVER:
            line.end(OVER, now_ms)
            if self.lines.get(place) is line:
                self.olds.append(self.lines.pop(place))
        return line

    def _begin(self, line: Line, now_ms: int) -> None:
        """The present line of its partition from now on."""
        before = self.lines.get(line.place)
        if before is not None:
            before.end(OVER, now_ms)
            self.olds.append(before)
        for old in self.olds:
            if old.place == line.place:
                old.is_followed, old.is_settled = True, False
        self.lines[line.place] = line


class Speakers:
    """All workers that have spoken, by gateway and number; the one that was heard last stands last."""

    def __init__(self) -> None:
        self.by_name: OrderedDict[tuple[str, int], Speaker] = OrderedDict()
        self.rows_dropped = 0

    def hear(self, beacon: Beacon, now_ms: int, *, signed: bool) -> list[Line]:
        """The lines that it is about. BeaconRefused: it is not taken, and nothing has changed."""
        speaker = self.by_name.get((beacon.node, beacon.worker)) or Speaker(beacon.node, beacon.worker)
        speaker.check(beacon)
        if speaker.beacon is None:
            self._make_room()
        others = (each for each in self.by_name.values() if each is not speaker)
        room = COVERAGE_LINES_MAX - sum(len(each.lines) + len(each.olds) for each in others)
        if len(beacon.rows) > room:
            self.rows_dropped += len(beacon.rows) - max(room, 0)
            raise BeaconRefused(TOO_MANY, f"it has {len(beacon.rows)} rows, and there is room for {max(room, 0)} more")
        said = speaker.hear(beacon, now_ms, signed=signed)
        self.by_name[beacon.node, beacon.worker] = speaker
        self.by_name.move_to_end((beacon.node, beacon.worker))
        return said

    def _make_room(self) -> None:
        """For another one: whoever has said its last word longest ago is forgotten, if nothing of it is missing."""
        if len(self.by_name) < COVERAGE_SPEAKERS_MAX:
            return
        for key, speaker in self.by_name.items():
            if speaker.uttered.closing and all(line.is_settled for line in speaker.all_lines()):
                del self.by_name[key]
                return
        raise BeaconRefused(TOO_MANY)


def _check_rows(beacon: Beacon) -> None:
    for row in beacon.rows:
        where = f"row of {row.stream}/{row.partition}"
        try:
            bytes.fromhex(row.run), bytes.fromhex(row.chain)
        except ValueError as error:
            raise BeaconRefused(UNREADABLE, f"{where}: {error}") from error
        if not 0 <= row.base <= row.mark <= row.acknowledged < row.next:
            what = f"base {row.base}, mark {row.mark}, acknowledged {row.acknowledged}, next {row.next} do not rise"
            raise BeaconRefused(UNREADABLE, f"{where}: {what}")
        if row.acknowledged - row.base != row.held + row.duplicates + row.refused + row.gaps:
            what = f"{row.acknowledged - row.base} are acknowledged"
            parts = f"{row.held} held, {row.duplicates} duplicates, {row.refused} refused, {row.gaps} given up"
            raise BeaconRefused(UNREADABLE, f"{where}: {what}, and of those {parts}")
