"""Accounts as somebody would keep them who sees each committed command; gateways and sinks are held against them.

    commands, as the first sink applies them ─► runs, chains, counts; trees ─┬─ accounts and trees of sinks
                                                                             ├─ rows of beacons, when they are written
                                                                             └─ reports of gaps, when committed

A row that counts what is not committed, a chain or a root that is not that of the committed batches, an alarm without
a reason: each is a violation. In the end whatever a beacon has named is in the log, or in a gap record, and each gap
that was reported was repaired or recorded.

Digests, chains and trees are computed here anew, from RFC 9162 and docs/wire-formats.md; nothing is shared with the
code that is tested.
"""

import hashlib
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from protocol import certificate, envelope
from protocol.coverage import (
    ALTERED,
    BEACON,
    GAP,
    LATE,
    LOST,
    REPAIRED,
    ROOTS,
    UNCLOSED,
    Beacon,
    GapReport,
    Roots,
    Row,
)
from protocol.link import Opened, Refused
from protocol.records import CONTROL, Record, read_header
from simulation.audit import Violation
from sinkd.core import commands
from sinkd.core.commands import OpenProducer, RecordGap
from sinkd.core.machine import GapRecorded, Machine, Taken
from sinkd.core.state import Tree

START = bytes(32)
SPENT = ("WRONG_LAST_SEQUENCE", "WRONG_LAST_ID")
LAG_S = 1.5  # what a sink that is well may be behind the first one that applies
Place = tuple[bytes, int]  # incarnation, partition


def is_true(claim: object, otherwise: str) -> None:
    if not claim:
        raise Violation(otherwise)


def digest(batch: bytes) -> bytes:
    return hashlib.sha256(batch[21:]).digest()


def root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, over hashes of leaves."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + root(leaves[:half]) + root(leaves[half:])).digest()


class Counts(NamedTuple):
    held: int = 0
    batches: int = 0
    size_bytes: int = 0
    duplicates: int = 0
    refused: int = 0
    gaps: int = 0


@dataclass
class Run:
    """What is committed of it: `at` has chain and counts behind each batch, `when` the moment."""

    who: tuple[str, int]
    place: Place
    base: int
    through: int
    at: dict[int, tuple[bytes, Counts]] = field(default_factory=dict)
    when: dict[int, float] = field(default_factory=dict)

    def through_at(self, moment: float) -> int:
        return max((sequence for sequence, when in self.when.items() if when <= moment), default=self.base)


@dataclass
class Named:
    """What beacons that stand in the log have named of a run, and of which process."""

    process: str
    row: Row
    named: int = 0
    acknowledged: int = 0
    since: dict[int, float] = field(default_factory=dict)  # sequence → when a beacon that named it was written


@dataclass
class Due:
    """A fault that has to be reported as this `why` of that gateway and partition, by then."""

    what: str
    node: str
    why: str
    place: Place
    since: float
    until: float


class Ledger:
    def __init__(self, now: Callable[[], float], grace_s: float) -> None:
        self._now, self.grace_s = now, grace_s
        self.runs: dict[bytes, Run] = {}
        self.recorded: dict[bytes, dict[str, int]] = defaultdict(dict)  # by run: reason → events
        self._present: dict[tuple[Any, ...], bytes] = {}
        self._last: dict[tuple[Any, ...], int] = {}
        self._producers: dict[tuple[int, int], tuple[str, int]] = {}
        self._leaves: dict[Place, list[bytes]] = defaultdict(list)
        self._roots: dict[tuple[Place, int], bytes] = {}
        self.named: dict[tuple[str, Place, bytes], Named] = {}
        self._written: dict[tuple[str, int], float] = {}  # process, number → when
        self.open: dict[tuple[Any, ...], GapReport] = {}
        self.reports: list[tuple[float, GapReport]] = []
        self.due: list[Due] = []
        self.altered: set[bytes] = set()  # runs of which something was altered on its way
        self.forged: set[bytes] = set()  # ... and of which the gateway was told what is not so
        self.liars: set[str] = set()  # processes that say what is not so
        self.beacons = self.repaired = self.roots = 0
        self.has_erred: Callable[[str], bool] = lambda sink: False  # its disk, ever

    # -- commands -----------------------------------------------------------------------------------------------------

    def applied(self, group: int, data: bytes, result: Any) -> None:
        command = commands.decode(data)
        if isinstance(result, Opened):
            request = commands.read_body(command, OpenProducer)
            self._producers[group, result.producer_id] = request.node, request.worker
        elif command.kind in (commands.APPEND, commands.DIGESTED):
            for (parcel, _), taken in zip(commands.read_parcels(command), result, strict=True):
                self._decided(group, parcel, taken)
        elif isinstance(result, GapRecorded) and result.placement is not None and result.recorded is not None:
            request_of_gap, _ = commands.read_head(command, RecordGap)
            recorded = self.recorded[request_of_gap.run]
            is_true(request_of_gap.reason not in recorded, f"a second gap record: {request_of_gap}")
            recorded[request_of_gap.reason] = result.recorded.events

    def _decided(self, group: int, parcel: envelope.Parcel, taken: Taken) -> None:
        head = parcel.envelope
        key = group, head.producer_id, head.incarnation, head.partition
        is_new = head.first_sequence == self._last.get(key, 0) + 1
        is_spent = isinstance(taken.answer, Refused) and taken.answer.reason in SPENT
        if not is_new or (taken.placement is None and not is_spent):
            return
        self._last[key] = head.last_sequence
        if head.run and head.run != self._present.get(key):
            is_true(head.run not in self.runs, f"run {head.run.hex()} begins a second time")
            who, place = self._producers[group, head.producer_id], (head.incarnation, head.partition)
            self.runs[head.run] = Run(who, place, head.first_sequence - 1, head.first_sequence - 1)
            self._present[key] = head.run
        run = self.runs.get(self._present.get(key, b""))
        if run is not None:
            self._advance(run, head, b"" if taken.placement is None else bytes(parcel.batch))

    def _advance(self, run: Run, head: envelope.Envelope, batch: bytes) -> None:
        chain, counts = run.at.get(run.through, (START, Counts()))
        spent = head.sequence_count
        if not batch:
            counts = counts._replace(refused=counts.refused + spent)
        else:
            span = struct.pack(">QI", head.first_sequence, spent)
            chain = hashlib.sha256(chain + span + digest(batch)).digest()
            header = read_header(batch)
            counts = counts._replace(batches=counts.batches + 1, size_bytes=counts.size_bytes + len(batch))
            if header.attributes == CONTROL:
                counts = counts._replace(gaps=counts.gaps + spent)
            else:
                duplicates = counts.duplicates + spent - header.record_count
                counts = counts._replace(held=counts.held + header.record_count, duplicates=duplicates)
        run.through = head.last_sequence
        run.at[run.through], run.when[run.through] = (chain, counts), self._now()

    def placed(self, place: Place, base_offset: int, batch: bytes) -> None:
        """The batch stands there in a log now."""
        leaf = hashlib.sha256(b"\x00" + struct.pack(">Q", base_offset) + digest(batch)).digest()
        self._leaves[place].append(leaf)

    def root(self, place: Place, size: int) -> bytes:
        if (place, size) not in self._roots:
            self._roots[place, size] = root(self._leaves[place][:size])
        return self._roots[place, size]

    # -- what sinks have ----------------------------------------------------------------------------------------------

    def look_at(self, who: str, machine: Machine) -> None:
        """At the state of a sink, which may be older than what is known here."""
        for producer in machine.state.producers.values():
            for place, progress in producer.progress.items():
                account = progress.account
                if account is None:
                    continue
                where = f"{who}: the account of {producer.node} in {place[0].hex()[:8]}/{place[1]}"
                run = self.runs.get(account.run)
                is_true(run is not None, f"{where} is of a run that nobody began")
                assert run is not None
                counts = Counts(
                    account.held, account.batches, account.size_bytes, account.duplicates, account.refused, account.gaps
                )
                known = run.at.get(progress.last_sequence)
                is_true(account.base == run.base, f"{where} begins at {account.base}, not {run.base}")
                is_true(known == (account.chain, counts), f"{where} at {progress.last_sequence}: {counts}, not {known}")
                is_true(all(run.at[at][0] == chain for at, chain in account.marks), f"{where} has other marks")
        for log, number, partition in machine.partitions():
            if partition.tree is not None and partition.tree.trimmed == 0:
                self.look_at_tree(f"{who}: {log.name}/{number}", (log.incarnation, number), partition.tree)

    def look_at_tree(self, where: str, place: Place, tree: Tree) -> None:
        there = tree.frontier[-1] if tree.frontier else hashlib.sha256().digest()
        for left in reversed(tree.frontier[:-1]):
            there = hashlib.sha256(b"\x01" + left + there).digest()
        is_true(there == self.root(place, tree.size), f"{where}: another root of {tree.size} batches")

    def stated(self, where: str, place: Place, said: certificate.Partition) -> None:
        """For a certificate."""
        is_true(said.root == self.root(place, said.size).hex(), f"{where}: another root of {said.size} batches")

    # -- what gateways say --------------------------------------------------------------------------------------------

    def said(self, beacon: Beacon) -> None:
        """It is written at this moment. What it counts is committed."""
        self._written[beacon.process, beacon.number] = self._now()
        if beacon.process in self.liars:
            return
        for row in beacon.rows:
            where = f"beacon {beacon.number} of {beacon.node}: {row.stream}/{row.partition}"
            run_id = bytes.fromhex(row.run)
            run = self.runs.get(run_id)
            if run_id in self.forged:
                continue
            if run is None:
                is_true(row.acknowledged == row.base, f"{where} has {row.acknowledged}, nothing is committed")
            else:
                self._check_row(where, row, run, is_altered=run_id in self.altered)

    @staticmethod
    def _check_row(where: str, row: Row, run: Run, *, is_altered: bool) -> None:
        is_true(run.base == row.base, f"{where} begins at {row.base}, not {run.base}")
        is_true(row.acknowledged <= run.through, f"{where} has {row.acknowledged}, committed is {run.through}")
        _, counts = run.at.get(row.acknowledged, (START, Counts()))
        told = Counts(row.held, row.batches, row.bytes, row.duplicates, row.refused, row.gaps)
        is_true(told == counts, f"{where} at {row.acknowledged} counts {told}, not {counts}")
        chain, _ = run.at.get(row.mark, (START, Counts()))
        is_true(is_altered or row.chain == chain.hex(), f"{where} has another chain at {row.mark}")

    def check_account(self, node: str, run_id: bytes, acknowledged: int, chain: bytes) -> None:
        """Of a gateway that has an answer to all that it sent."""
        run = self.runs.get(run_id)
        there = (
            (run.through, run.at.get(run.through, (START, Counts()))[0]) if run is not None else (acknowledged, START)
        )
        if run_id not in self.altered | self.forged:
            is_true(there == (acknowledged, chain), f"{node} at {acknowledged} of run {run_id.hex()}, not {there[0]}")

    # -- what stands in `$COVERAGE` -----------------------------------------------------------------------------------

    def heard(self, record: Record, skew_ms: Callable[[str], int], wall_ms: int) -> None:
        kind = record.subject.split(b".")[1].decode()
        if kind == BEACON:
            self._heard_beacon(msgspec.json.decode(record.payload, type=Beacon))
        elif kind in (GAP, REPAIRED):
            report = msgspec.json.decode(record.payload, type=GapReport)
            moment = (report.time - wall_ms - skew_ms(report.by)) / 1000
            self._heard_report(kind, report, moment)
        elif kind == ROOTS:
            self._heard_roots(msgspec.json.decode(record.payload, type=Roots))

    def _heard_roots(self, roots: Roots) -> None:
        """A sink whose disk has never erred has the roots of what is committed."""
        for said in roots.roots if not self.has_erred(roots.node) else ():
            place = bytes.fromhex(said.incarnation), said.partition
            where = f"{roots.node}: {said.log}/{said.partition}"
            is_true(said.root == self.root(place, said.size).hex(), f"{where}: another root of {said.size} batches")
            self.roots += 1

    def _heard_beacon(self, beacon: Beacon) -> None:
        self.beacons += 1
        for row in beacon.rows:
            key = beacon.node, (bytes.fromhex(row.incarnation), row.partition), bytes.fromhex(row.run)
            named = self.named.setdefault(key, Named(beacon.process, row))
            named.row = row
            named.acknowledged = max(named.acknowledged, row.acknowledged)
            last = max(row.next - 1, row.acknowledged)
            if last > named.named:
                named.named = last
                named.since[last] = self._written[beacon.process, beacon.number]

    def _heard_report(self, kind: str, report: GapReport, moment: float) -> None:
        key = report.node, report.worker, report.incarnation, report.partition, report.run, report.why
        if kind == REPAIRED:
            self.repaired += 1
            is_true(key in self.open, f"repaired, and was not reported: {report}")
            del self.open[key]
            return
        self.reports.append((moment, report))
        if report.recorded:  # and with it whatever else was reported of the run
            for why in (LATE, LOST, UNCLOSED):
                self.open.pop((*key[:-1], why), None)
            return
        is_true(key not in self.open, f"reported twice: {report}")
        self.open[key] = report
        self._check_report(report, moment)

    def _check_report(self, report: GapReport, moment: float) -> None:
        """It is no false alarm."""
        place, run_id = (bytes.fromhex(report.incarnation), report.partition), bytes.fromhex(report.run)
        run, named = self.runs.get(run_id), self.named.get((report.node, place, run_id))
        is_true(named is not None, f"no beacon has named that: {report}")
        assert named is not None
        if report.why == ALTERED:
            is_true(run_id in self.altered, f"nothing of it was altered: {report}")
            return
        through = run.through_at(moment - LAG_S) if run is not None else named.row.base
        is_true(through < report.last <= named.named, f"at {moment:.2f} s {through} was there: {report}")
        if report.why == LATE:
            since = min(when for last, when in named.since.items() if last >= report.last)
            is_true(moment - since >= 0.8 * self.grace_s, f"named at {since:.2f} s, at {moment:.2f} s: {report}")

    # -- in the end ---------------------------------------------------------------------------------------------------

    def unsettled(self, living: Iterable[str]) -> list[str]:
        """What is not accounted for; `living` are the processes that go on."""
        lacks = [f"{report}" for report in self.open.values() if report.why != ALTERED and not self._is_lie(report)]
        living = set(living)
        for (node, place, run_id), named in self.named.items():
            run = self.runs.get(run_id)
            through = run.through if run is not None else named.row.base
            is_over = named.process not in living or named.row.is_over
            due = max(0, (named.acknowledged if named.process in living else named.named) - through)
            recorded = sum(self.recorded[run_id].values())
            if is_over and named.process not in self.liars and recorded != due:
                where = f"run {run_id.hex()[:8]} of {node} in {place[0].hex()[:8]}/{place[1]}"
                lacks.append(f"{where}: {due} of {named} are in no log, {recorded} in gap records: {run}")
        lacks += [f"not reported: {due}" for due in self.due if not self.is_reported(due)]
        return lacks

    def _is_lie(self, report: GapReport) -> bool:
        key = report.node, (bytes.fromhex(report.incarnation), report.partition), bytes.fromhex(report.run)
        return self.named[key].process in self.liars

    def is_reported(self, due: Due) -> bool:
        return any(
            report.node == due.node
            and report.why == due.why
            and due.place == (bytes.fromhex(report.incarnation), report.partition)
            and due.since <= moment <= due.until
            for moment, report in self.reports
        )
