"""The keeper: compares what gateways have named in beacons with what the accounts of this sink's groups hold.

    beacons ─► lines (`sinkd.core.speakers`) ─┐
    accounts, as they are now ────────────────┴─► `look` ─► gaps that are open ─┬─► reports, for `$COVERAGE`
                                                                                ├─► links to close: send it again
                                                                                └─► gap records, of what nobody has

A look is made about once a second, on every sink of the zone; whoever leads does what is to be done. What was reported
is known from the log alone (`told`), so that another one that comes to lead goes on with what was not. Times are
milliseconds of this sink's clock.

What is missing of a run, where `through` is what the log has of it:

    acknowledged, and not there               LOST       at once if a later run stands there, else after the grace
    named, its gateway speaks                 LATE       after the grace; once that is told, or has not been for half of
                                                         it, its link is closed, so that it sends again
    named, its gateway says no more           UNCLOSED   it is silent for so long, has ended, or was followed
    another chain at the same sequence        ALTERED    for good: nobody can mend it

A process that was followed has nothing more to send, but for its spool: what it had named and the log does not have is
written there as a gap record. That waits for the grace unless the next run's account says that it is so; and what is
lost in a run that goes on waits until its gateway has said that it is over. A silent gateway may come back: it is
waited for.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from protocol.coverage import ALTERED, GAP, LATE, LOST, REPAIRED, UNCLOSED, Beacon, GapReport
from protocol.gaps import GATEWAY_LOST
from protocol.gaps import LOST as LOST_RECORD
from protocol.limits import COVERAGE_ALTERED_MAX, COVERAGE_RECORDED_MAX, COVERAGE_SILENCE_MS
from sinkd.core.speakers import FOLLOWED, OVER, Line, Speaker, Speakers

RECORD_REASONS: Final = {LOST: LOST_RECORD, UNCLOSED: GATEWAY_LOST}
"""Why a gap record is written, by why its gap was reported."""

_STEPS: Final = 8  # into which the grace is divided: how exact it is
_SETTLE_MS: Final = 1_500  # this sink may be so far behind the one that leads


class Reached(NamedTuple):
    """What a group holds of a producer in a partition: up to sequence `last`, `run` from `base` on; b"" for no account.

    `marks` are (sequence, chain there); `recorded` are (run, reason) of gap records. `ended` has the sequences that the
    runs before this one came to, the oldest first: of what was behind the first of these each is there that had any.
    """

    group: int
    last: int
    run: bytes = b""
    base: int = 0
    chain: bytes = b""
    marks: Sequence[tuple[int, bytes]] = ()
    recorded: frozenset[tuple[bytes, str]] = frozenset()
    ended: Sequence[tuple[bytes, int]] = ()


Lookup: TypeAlias = Callable[[str, int, str, int], Reached | None]
"""By gateway, worker, incarnation (hexadecimal digits) and partition. None: there is no such log here, any more."""


class Close(NamedTuple):
    """The link of this worker to this group, so that it opens anew and sends again what is not there."""

    group: int
    node: str
    worker: int


class Record(NamedTuple):
    """Write into the log that so many events of that run are missing, taken in within these times."""

    group: int
    node: str
    worker: int
    stream: str
    incarnation: str
    partition: int
    run: str
    reason: str
    events: int
    from_ms: int
    to_ms: int


class Report(NamedTuple):
    """An event for `$COVERAGE`: `kind` is GAP or REPAIRED. There is one of each `id`."""

    id: str
    kind: str
    report: GapReport


class Orders(NamedTuple):
    reports: list[Report]
    closes: list[Close]
    records: list[Record]


class Key(NamedTuple):
    """What a gap is known by."""

    node: str
    worker: int
    incarnation: str
    partition: int
    run: str
    why: str

    def of_other(self, why: str) -> "Key":
        return self._replace(why=why)


class Keeper:
    """Of one sink. `open` are the gaps as of the last look; `reported` those that the log says are open."""

    def __init__(self, mesh: str, zone: str, node: str, grace_ms: int) -> None:
        self.mesh, self.zone, self.node, self.grace_ms = mesh, zone, node, grace_ms
        self.speakers = Speakers()
        self.refused: Counter[str] = Counter()
        self.open: dict[Key, GapReport] = {}
        self.reported: dict[Key, GapReport] = {}
        self._altered: dict[Key, GapReport] = {}
        self._recorded: OrderedDict[Key, None] = OrderedDict()  # told to be, latest last
        self._begun: dict[Key, GapReport] = {}  # as each open gap was when it was found
        self._recording: set[Key] = set()  # in this look: they are recorded, and that is not told yet
        self._held: dict[tuple[str, int, str, int, str], int] = {}  # of the last look: through, by line

    @property
    def silence_ms(self) -> int:
        """A gateway that has said nothing for longer does not speak any more."""
        return max(self.grace_ms, COVERAGE_SILENCE_MS)

    # -- what stands in the log ---------------------------------------------------------------------------------------

    def hear(self, beacon: Beacon, now_ms: int, *, signed: bool) -> None:
        """BeaconRefused: it counts for nothing."""
        step_ms = self.grace_ms // _STEPS
        for line in self.speakers.hear(beacon, now_ms, signed=signed):
            if not line.over:
                line.named.name(line.last_named, now_ms, step_ms)
                line.acked.name(line.acknowledged, now_ms, step_ms)

    def told(self, kind: str, report: GapReport) -> None:
        """What a sink of the zone has reported."""
        key = _key_of(report)
        if kind == REPAIRED or report.recorded:
            self.reported.pop(key, None)
            if report.recorded:
                self._recorded[key] = None
                while len(self._recorded) > COVERAGE_RECORDED_MAX:
                    self._recorded.popitem(last=False)
        else:
            self.reported[key] = report
            if report.why == ALTERED:
                self._altered.setdefault(key, report)

    def under_way(self) -> Iterator[tuple[str, int]]:
        """By stream: how much of each present run was named and was not there at the last look."""
        for speaker in self.speakers.by_name.values():
            for line in speaker.lines.values():
                yield line.row.stream, max(0, line.last_named - line.through)

    # -- looking ------------------------------------------------------------------------------------------------------

    def look(self, now_ms: int, reached: Lookup, well_since_ms: int) -> Orders:
        """What is to be done. Silence and lateness count from `well_since_ms` on: since then beacons can come."""
        orders = Orders([], [], [])
        is_patient = now_ms - well_since_ms < self.grace_ms
        self.open = dict(self._altered)
        self._recording.clear()
        for speaker in self.speakers.by_name.values():
            for line in list(speaker.all_lines()):
                is_silent = not is_patient and speaker.is_silent(now_ms, self.silence_ms)
                if line.is_settled and not is_silent:
                    continue
                has = reached(speaker.node, speaker.worker, *line.place)
                if has is None:  # of a log that is not here any more nothing is said
                    line.is_settled = True
                    continue
                _Look(self, speaker, line, has, now_ms, is_silent, is_patient, orders).judge()
            speaker.olds = [line for line in speaker.olds if not line.is_settled]
        self._forget_gone(reached)
        self._begun = {key: self.reported.get(key) or self._begun.get(key, gap) for key, gap in self.open.items()}
        if not is_patient:
            orders.reports.extend(self._due(now_ms, reached))
        return orders

    def add(self, speaker: Speaker, line: Line, why: str, first: int, last: int, now_ms: int, detail: str = "") -> None:
        """Of the look that is under way: `first` to `last` are missing."""
        key = _key(speaker, line, why)
        self.open[key] = self._report(key, line, first, last, now_ms, detail)

    def find_altered(self, speaker: Speaker, line: Line, now_ms: int) -> None:
        key = _key(speaker, line, ALTERED)
        if key not in self._altered and len(self._altered) < COVERAGE_ALTERED_MAX:
            detail = f"up to sequence {line.verified} they have the same"
            self._altered[key] = self._report(key, line, line.verified + 1, line.row.mark, now_ms, detail)
            self.open[key] = self._altered[key]

    def is_open(self, speaker: Speaker, line: Line, why: str) -> bool:
        """Whether it was so at the last look, or is by the log."""
        key = _key(speaker, line, why)
        return key in self._begun or key in self.reported

    def is_told(self, speaker: Speaker, line: Line) -> bool:
        """Whether the log says that something of it is late or lost. That is asked for then: a report comes first."""
        return any(_key(speaker, line, why) in self.reported for why in (LATE, LOST))

    def is_altered(self, speaker: Speaker, line: Line) -> bool:
        return _key(speaker, line, ALTERED) in self._altered

    def recorded(self, speaker: Speaker, line: Line, why: str, first: int, last: int, now_ms: int) -> Report | None:
        """What is told when the gap record stands in the log; None: it was."""
        key = _key(speaker, line, why)
        if key in self._recorded:
            return None
        self._recording.add(key)
        known = self.reported.get(key)
        report = self._report(key, line, known.first if known else first, known.last if known else last, now_ms, "")
        return Report(f"{_id(key)} recorded", GAP, msgspec.structs.replace(report, recorded=True))

    def _report(self, key: Key, line: Line, first: int, last: int, now_ms: int, detail: str) -> GapReport:
        return GapReport(
            mesh=self.mesh, zone=self.zone, by=self.node, time=now_ms, node=key.node, worker=key.worker,
            stream=line.row.stream, incarnation=key.incarnation, partition=key.partition, run=key.run, why=key.why,
            first=first, last=last, events=last - first + 1, detail=detail,
        )  # fmt: skip

    def note_through(self, speaker: Speaker, line: Line) -> None:
        if len(self._held) > 2 * len(self.reported) + 1_024:
            self._held.clear()
        self._held[speaker.node, speaker.worker, *line.place, line.row.run] = line.through

    def _forget_gone(self, reached: Lookup) -> None:
        """Of logs that are not here any more nothing is said."""
        for key in list(self._altered):
            if reached(*key[:4]) is None:
                del self._altered[key], self.open[key]

    def _due(self, now_ms: int, reached: Lookup) -> Iterator[Report]:
        """What the log does not say yet, or says and is so no more."""
        for key, gap in self.open.items():
            if key not in self.reported and key not in self._recorded:
                begun = self._begun[key]
                whole = msgspec.structs.replace(gap, first=begun.first, events=gap.last - begun.first + 1)
                yield Report(f"{_id(key)} {begun.first}", GAP, whole)
        for key, gap in list(self.reported.items()):
            others = [key.of_other(why) for why in (LATE, LOST, UNCLOSED)]
            if any(other in self.open or other in self._recording for other in others) or key.why == ALTERED:
                continue
            if reached(*key[:4]) is None or any(other in self._recorded for other in others):
                del self.reported[key]
            elif (key.node, key.worker) in self.speakers.by_name:  # else nothing was heard of it yet
                yield self._repaired(key, gap, now_ms)

    def _repaired(self, key: Key, gap: GapReport, now_ms: int) -> Report:
        through = self._held.get((key.node, key.worker, key.incarnation, key.partition, key.run), gap.last)
        detail = (
            "" if through >= gap.last else "its gateway names it no more: refused to who sent it, or sent otherwise"
        )
        report = msgspec.structs.replace(gap, by=self.node, time=now_ms, detail=detail)
        return Report(f"{_id(key)} {gap.first} repaired", REPAIRED, report)


class _Look:
    """At one line."""

    def __init__(
        self,
        keeper: Keeper,
        speaker: Speaker,
        line: Line,
        has: Reached,
        now_ms: int,
        is_silent: bool,
        is_patient: bool,
        orders: Orders,
    ) -> None:
        self._keeper, self._speaker, self._line, self._has, self._now_ms = keeper, speaker, line, has, now_ms
        self._is_silent, self._is_patient, self._orders = is_silent, is_patient, orders

    def judge(self) -> None:
        line = self._line
        self._compare()
        if not line.over and self._has.run == line.run and self._has.last >= line.last_named:
            line.through, line.moved_ms, line.is_settled = self._has.last, self._now_ms, True
            if self._keeper.reported:
                self._keeper.note_through(self._speaker, line)
            return
        through = self._through()
        if through != line.through:
            line.through, line.moved_ms = through, self._now_ms
        if line.over:
            self._judge_over()
        elif self._is_silent:
            self._missing(line.acknowledged, line.last_named)
        else:
            self._judge_live()
        self._keeper.note_through(self._speaker, line)

    @property
    def _is_later(self) -> bool:
        """Whether the account is that of a run behind this one: nothing of this one can come any more."""
        has, line = self._has, self._line
        return bool(has.run) and has.run != line.run and has.base >= line.row.base

    def _through(self) -> int:
        """What the log has of the run, or of what is sent again in the next one."""
        has, line = self._has, self._line
        if has.run == line.run:
            return has.last
        if not self._is_later:
            return min(has.last, line.row.base)
        if line.over == FOLLOWED and line.spool:
            return has.last
        known = next((through for run, through in has.ended if run == line.run), None)
        if known is not None:
            return known
        has_come = not has.ended or line.row.base < has.ended[0][1]  # it was before what is known, and judged then
        return has.base if has_come else line.row.base

    def _compare(self) -> None:
        """The chains, at a sequence where both know them."""
        has, line = self._has, self._line
        mark = line.row.mark
        if has.run != line.run or mark <= line.verified or self._keeper.is_altered(self._speaker, line):
            return
        chain = has.chain if mark == has.last else next((chain for at, chain in has.marks if at == mark), None)
        if chain == line.chain:
            line.verified = mark
        elif chain is not None:
            self._keeper.find_altered(self._speaker, line, self._now_ms)

    # -- a run that goes on -------------------------------------------------------------------------------------------

    def _judge_live(self) -> None:
        line, through, grace_ms = self._line, self._line.through, self._keeper.grace_ms
        line.named.name(line.last_named, self._now_ms, grace_ms // _STEPS)
        line.acked.name(line.acknowledged, self._now_ms, grace_ms // _STEPS)
        is_heard = self._now_ms - self._speaker.heard_ms < COVERAGE_SILENCE_MS
        before_ms = self._now_ms - grace_ms if is_heard and not self._is_patient else -1
        lost = line.acked.overdue(through, before_ms)
        late = min(line.named.overdue(through, before_ms), line.last_named)
        if lost:
            self._add(LOST, through + 1, lost)
        if late > max(through, lost):
            self._add(LATE, max(through, lost) + 1, late)
        long_since_ms = before_ms - grace_ms // 2
        is_long = line.acked.overdue(through, long_since_ms) or line.named.overdue(through, long_since_ms)
        if (lost or late > through) and (is_long or self._keeper.is_told(self._speaker, line)):
            self._ask()
        line.is_settled = through >= line.last_named

    def _ask(self) -> None:
        """For all of it again, unless some of it has come just now, or was asked for just now."""
        line = self._line
        if self._now_ms - max(line.moved_ms, line.asked_ms) >= self._keeper.grace_ms:
            line.asked_ms = self._now_ms
            self._orders.closes.append(Close(self._has.group, self._speaker.node, self._speaker.worker))

    # -- a run that is over -------------------------------------------------------------------------------------------

    def _judge_over(self) -> None:
        """What was named and not acknowledged goes on in the next run, if its gateway or its spool does."""
        line = self._line
        goes_on = line.over == OVER or (line.over == FOLLOWED and line.spool and line.is_followed)
        self._missing(line.acknowledged, line.acknowledged if goes_on else line.last_named)

    def _missing(self, acknowledged: int, named: int) -> None:
        """Of what is not there, what was acknowledged is lost, and the rest unclosed."""
        through, parts = self._line.through, []
        if through < acknowledged:
            parts.append((LOST, through + 1, acknowledged))
        if max(through, acknowledged) < named:
            parts.append((UNCLOSED, max(through, acknowledged) + 1, named))
        settled = [self._settle(*part) for part in parts]
        self._line.is_settled = all(settled)

    def _settle(self, why: str, first: int, last: int) -> bool:
        """Whether there is nothing left to do about it."""
        line, reason = self._line, RECORD_REASONS[why]
        if (line.run, reason) in self._has.recorded:
            report = self._keeper.recorded(self._speaker, line, why, first, last, self._now_ms)
            if report is not None:
                self._orders.reports.append(report)
            return report is None
        is_due = self._is_silent or self._over_for_ms >= _SETTLE_MS or self._keeper.is_open(self._speaker, line, why)
        if self._is_final or is_due:
            self._add(why, first, last)
        if self._is_final and (why == LOST or not line.spool):
            self._record(reason, last - first + 1)
        return False

    def _record(self, reason: str, events: int) -> None:
        line, speaker = self._line, self._speaker
        whose = self._has.group, speaker.node, speaker.worker, line.row.stream, *line.place
        self._orders.records.append(Record(*whose, line.row.run, reason, events, line.began_ms, line.said_ms))

    @property
    def _over_for_ms(self) -> int:
        return self._now_ms - self._line.over_ms if self._line.over and not self._is_patient else -1

    @property
    def _is_final(self) -> bool:
        """Whether nothing of the run can come any more. A run that is only silent may go on."""
        return bool(self._line.over) and (self._is_later or self._over_for_ms > self._keeper.grace_ms)

    def _add(self, why: str, first: int, last: int) -> None:
        self._keeper.add(self._speaker, self._line, why, first, last, self._now_ms)


def _key(speaker: Speaker, line: Line, why: str) -> Key:
    return Key(speaker.node, speaker.worker, *line.place, line.row.run, why)


def _key_of(report: GapReport) -> Key:
    return Key(report.node, report.worker, report.incarnation, report.partition, report.run, report.why)


def _id(key: Key) -> str:
    return f"{key.node}/{key.worker} {key.incarnation}/{key.partition} {key.run} {key.why}"
