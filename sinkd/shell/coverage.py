"""Coverage, at a sink: follows `$COVERAGE`, has the keeper compare it with the accounts here, and does what that asks.

    the local log of `$COVERAGE` ─► who says so? ─► `sinkd.core.keeping` ◄── accounts of all groups here
                                        │                    │
              refused: counted, audited ┘                    ├─► this sink leads the group of `$COVERAGE`: reports
                                                             └─► it leads the group of the partition: closes links,
                                                                 writes gap records

Every sink of the zone keeps, so that any of them can go on. Where nodes have certificates (`[tls.nodes]`), an event
counts if the node that it is of has signed it: a gateway its beacons, a sink of this zone what sinks say. Without
certificates events are claims.

A keeper that starts reads the last 25 minutes of the log; in them are summaries of all that is older and still matters,
which whoever leads writes every ten minutes. Where there are none, it reads an hour.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec
import structlog

from protocol import coverage
from protocol.coverage import Beacon, GapReport, Roots, Signed, Summary
from protocol.errors import UNREADABLE, DamagedFile, FrameError, LogError, SignatureError
from protocol.gaps import Gap
from protocol.limits import (
    COVERAGE_BACK_MS,
    COVERAGE_BACK_MS_MAX,
    COVERAGE_HEAR_MAX,
    COVERAGE_LOOK_MS,
    COVERAGE_NOTES_MAX,
    COVERAGE_READ_BYTES,
    COVERAGE_SUMMARY_MS,
)
from protocol.node_names import GATEWAY, SINK, NodeName
from protocol.records import CONTROL, Record, read_header, read_records, split_batches
from sinkd.core import speakers, summaries
from sinkd.core.commands import RecordGap
from sinkd.core.keeping import Keeper, Orders
from sinkd.core.keeping import Record as ToRecord
from sinkd.core.raft_messages import Note
from sinkd.core.speakers import BeaconRefused
from sinkd.shell import accounting
from sinkd.shell.accounting import Accounts
from sinkd.shell.group import UnknownOutcome
from sinkd.shell.notes import Noted, Notes
from sinkd.shell.store import Partition

if TYPE_CHECKING:
    from sinkd.shell.replica import Replica
    from sinkd.shell.sink import Sink

WORKER: Final = 1  # of the producer that this sink is in `$COVERAGE`; that of `$AUDIT` is 0
_SIGNATURE_REASONS: Final = {"out of date": speakers.EXPIRED, "mesh": speakers.MESH}  # others are forged
Said = TypeVar("Said", Beacon, GapReport, Summary, Roots)
log = structlog.get_logger()


class Signing(Protocol):
    """What this sink signs with, and what it checks others' signatures by."""

    def sign(self, payload: bytes) -> Signed:
        """As this node."""

    def verify(self, payload: bytes, signed: Signed, at_ms: int) -> NodeName:
        """The node of this mesh that said so at that time. SignatureError: nobody did."""


class Coverage:
    """Of one sink. `run()` and `notes.run()` in tasks."""

    def __init__(self, sink: "Sink", grace_ms: int, signing: Signing | None) -> None:
        """`signing` is None where nodes have no certificates."""
        self._sink, self._grace_ms, self._signing = sink, grace_ms, signing
        self.notes = Notes(sink, coverage.STREAM, WORKER, COVERAGE_NOTES_MAX)
        self.heard_roots: Callable[[Roots], None] = lambda roots: None
        self._keepers(b"")
        self._well_since_ms = 0
        self._is_well = False
        self._summary_slot = 0
        self._recording: set[ToRecord] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.links_closed = self.gaps_recorded = 0

    def _keepers(self, incarnation: bytes) -> None:
        """One that knows nothing, for that incarnation of the stream."""
        sink = self._sink
        self.keeper = Keeper(sink.mesh, sink.node.zone, sink.node.name, self._grace_ms)
        self._incarnation, self._offset = incarnation, -1
        self._is_live = False  # it has read what was there when it began
        self._back_ms, self._summaries = COVERAGE_BACK_MS, 0

    # -- writing ------------------------------------------------------------------------------------------------------

    def publish(self, id: str, kind: str, event: msgspec.Struct, time_ms: int, *, own: bool = False) -> None:
        """Writes `event` into `$COVERAGE`, once for each `id`; `own`: no other sink knows of it."""
        payload = msgspec.json.encode(event)
        signed = self._signing.sign(payload) if self._signing is not None else None
        subject = f"{coverage.STREAM}.{kind}.{self._sink.node.name}"
        note = Noted(time_ms, subject, payload, coverage.header_block(signed))
        if own:
            self.notes.add_own(id, note)
        else:
            self.notes.add(id.encode(), note)

    def take(self, note: Note) -> None:
        """What another sink would have written, while this one leads."""
        self.notes.add(note.id, Noted(note.time_ms, note.subject, note.event, note.block))

    # -- following ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                home = self.notes.home()
                if home is None or not await self._follow(home[0], home[1].incarnation):
                    await asyncio.sleep(COVERAGE_LOOK_MS / 1000)
        finally:
            for task in self._tasks:
                task.cancel()

    async def _follow(self, replica: "Replica", incarnation: bytes) -> bool:
        """Reads what there is, looks, and waits for more, a second at most. False: it could not be read."""
        if incarnation != self._incarnation:
            self._keepers(incarnation)
        try:
            partition = replica.store.partition(coverage.STREAM, 0)
            if self._offset < 0:
                self._offset = await self._beginning(replica, partition)
            while self._offset < partition.high_watermark:
                await self._read(replica, partition)
            if not self._is_live and not self._summaries and self._back_ms < COVERAGE_BACK_MS_MAX:
                self._keepers(incarnation)
                self._back_ms = COVERAGE_BACK_MS_MAX
                return True
            self._is_live = True
            self._look(replica)
            await replica.store.wait_for_more(partition, self._offset, COVERAGE_LOOK_MS)
            if partition.high_watermark > self._offset:
                await asyncio.sleep(COVERAGE_LOOK_MS / 1000)  # a look each second is enough
        except LogError as error:
            if error.name == "OFFSET_OUT_OF_RANGE":  # trimmed meanwhile, or this sink was filled anew
                self._keepers(b"")
            else:
                log.warning("coverage_unreadable", error=str(error))
            return False
        except (DamagedFile, FrameError, OSError) as error:
            log.error("log_unreadable", error=str(error))
            replica.fail(error)
            return False
        return True

    async def _beginning(self, replica: "Replica", partition: Partition) -> int:
        """So long before the end of the log, which may be long ago."""
        end = partition.high_watermark
        if end == partition.start_offset:
            return end
        (*_, batch) = split_batches(await replica.store.read(partition, end - 1, 1))
        latest_ms = min(read_header(batch).max_timestamp_ms, self._sink.now_ms())
        found = await replica.store.offset_for_time(partition, latest_ms - self._back_ms)
        return max(found[0], partition.start_offset) if found is not None else partition.start_offset

    async def _read(self, replica: "Replica", partition: Partition) -> None:
        data = await replica.store.read(partition, self._offset, COVERAGE_READ_BYTES)
        for batch in split_batches(data):
            header = read_header(batch)
            if header.attributes != CONTROL:
                for number, record in enumerate(read_records(batch), 1):
                    if record.offset >= self._offset:
                        self._hear(record)
                    if number % COVERAGE_HEAR_MAX == 0:
                        await asyncio.sleep(0)
            self._offset = max(self._offset, header.base_offset + header.last_offset_delta + 1)
            await asyncio.sleep(0)

    # -- hearing ------------------------------------------------------------------------------------------------------

    def _hear(self, record: Record) -> None:
        """One event. What it says counts for nothing if it is refused."""
        now_ms = min(record.timestamp_ms, self._sink.now_ms()) if not self._is_live else self._sink.now_ms()
        _, _, rest = record.subject.decode("utf-8", "replace").partition(".")
        kind, _, node = rest.partition(".")
        try:
            self._take(kind, record, now_ms)
        except BeaconRefused as refused:
            self.keeper.refused[refused.reason] += 1
            if self._is_live:
                log.warning("beacon_refused", node=node, kind=kind, reason=refused.reason, why=str(refused))
                self._sink.audit.beacon_refused(
                    node, f"{kind} at offset {record.offset}: {refused.reason}", str(refused)
                )

    def _take(self, kind: str, record: Record, now_ms: int) -> None:
        """BeaconRefused"""
        if kind == coverage.BEACON:
            beacon = self._read_as(Beacon, record)
            is_signed = self._check(record, beacon.mesh, NodeName("", beacon.zone, GATEWAY, beacon.node), beacon.time)
            self.keeper.hear(beacon, now_ms, signed=is_signed)
        elif kind in (coverage.GAP, coverage.REPAIRED):
            report = self._read_as(GapReport, record)
            self._check(record, report.mesh, NodeName("", report.zone, SINK, report.by), report.time)
            self.keeper.told(kind, report)
        elif kind == coverage.SUMMARY:
            summary = self._read_as(Summary, record)
            self._check(record, summary.mesh, NodeName("", summary.zone, SINK, summary.by), summary.time)
            if not self._is_live:
                self._summaries += 1
                summaries.restore(self.keeper, summary)
        elif kind == coverage.ROOTS:
            roots = self._read_as(Roots, record)
            self._check(record, roots.mesh, NodeName("", roots.zone, SINK, roots.node), roots.time)
            if self._is_live:
                self.heard_roots(roots)
        else:
            raise BeaconRefused(speakers.UNREADABLE, f"an event of kind {kind!r}")

    def _read_as(self, kind: type[Said], record: Record) -> Said:
        try:
            said = msgspec.json.decode(record.payload, type=kind)
        except UNREADABLE as error:
            raise BeaconRefused(speakers.UNREADABLE, str(error)) from error
        if said.version != coverage.VERSION:
            raise BeaconRefused(speakers.UNREADABLE, f"version {said.version}, ours is {coverage.VERSION}")
        return said

    def _check(self, record: Record, mesh: str, claimed: NodeName, time_ms: int) -> bool:
        """Whether it is signed, by whom it claims to be of; without certificates it need not be. BeaconRefused"""
        if mesh != self._sink.mesh:
            raise BeaconRefused(speakers.MESH, f"it is of mesh {mesh}, this is {self._sink.mesh}")
        if claimed.role == SINK and claimed.zone != self._sink.node.zone:
            raise BeaconRefused(speakers.NODE, f"it is of a sink of zone {claimed.zone}")
        if self._signing is None:
            return False
        try:
            signed = coverage.signed_in(record.header_block)
            if signed is None:
                raise BeaconRefused(speakers.UNSIGNED)
            signer = self._signing.verify(record.payload, signed, time_ms)
        except FrameError as error:
            raise BeaconRefused(speakers.UNSIGNED, str(error)) from error
        except SignatureError as error:
            raise BeaconRefused(_SIGNATURE_REASONS.get(error.reason, speakers.FORGED), str(error)) from error
        if signer.role != claimed.role:
            raise BeaconRefused(speakers.ROLE, f"{signer} has signed it, a {claimed.role} was due")
        if signer[1:] != claimed[1:]:
            raise BeaconRefused(speakers.NODE, f"{signer} has signed it, and it claims to be of {claimed.node}")
        return True

    # -- looking, and what is to be done then -------------------------------------------------------------------------

    def _look(self, home: "Replica") -> None:
        now_ms = self._sink.now_ms()
        is_well = bool(home.group.leader) and not any(
            replica.is_being_filled or replica.group.member.muted for replica in self._sink.replicas
        )
        if is_well and not self._is_well:
            self._well_since_ms = now_ms
        self._is_well = is_well
        if is_well:
            accounts = Accounts(self._sink.replicas)
            self._carry_out(self.keeper.look(now_ms, accounts.reached, self._well_since_ms), now_ms)
            self._sum_up(now_ms)

    def _carry_out(self, orders: Orders, now_ms: int) -> None:
        if self.notes.leads:
            for id, kind, report in orders.reports:
                if report.why and kind == coverage.GAP:
                    log.warning("coverage_gap", node=report.node, stream=report.stream, partition=report.partition,
                                why=report.why, events=report.events, recorded=report.recorded)  # fmt: skip
                self.publish(id, kind, msgspec.structs.replace(report, time=now_ms), now_ms)
        for group, node, worker in dict.fromkeys(orders.closes):
            replica = self._sink.replicas[group]
            if replica.group.leads:
                self.links_closed += replica.links.close_link_of(node, worker)
        for record in orders.records:
            if self._sink.replicas[record.group].group.leads and record not in self._recording:
                self._recording.add(record)
                task = self._sink.main.watch(self._record(record))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _record(self, record: ToRecord) -> None:
        """Writes the gap record; what does not succeed is tried again at the next look."""
        request = RecordGap(
            record.node, record.worker, record.stream, bytes.fromhex(record.incarnation), record.partition,
            bytes.fromhex(record.run), record.reason,
        )  # fmt: skip
        gap = Gap(record.reason, record.events, record.from_ms, record.to_ms, record.node)
        try:
            done = await self._sink.replicas[record.group].group.record_gap(request, gap)
            self.gaps_recorded += done.placement is not None
            log.warning("gap_recorded", node=record.node, worker=record.worker, stream=record.stream,
                        partition=record.partition, reason=record.reason, events=record.events,
                        refusal=done.refusal)  # fmt: skip
        except (LogError, UnknownOutcome) as error:
            log.info("gap_not_recorded", stream=record.stream, partition=record.partition, error=str(error))
        finally:
            self._recording.discard(record)

    def _sum_up(self, now_ms: int) -> None:
        """Every ten minutes, whoever leads then."""
        slot = now_ms // COVERAGE_SUMMARY_MS
        if slot == self._summary_slot or not self.notes.leads:
            return
        if self._summary_slot:
            for summary in summaries.summaries(self.keeper, now_ms):
                name = f"{summary.beacon.node}/{summary.beacon.worker}"
                self.publish(f"summary {name} {slot}", coverage.SUMMARY, summary, now_ms)
        self._summary_slot = slot

    # -- how it is ----------------------------------------------------------------------------------------------------

    def status(self, replica: "Replica") -> dict[str, Any]:
        """What `mesh coverage` is told: accounts and trees are those of one group; docs/cli.md names the fields."""
        return {
            **summaries.facts(self.keeper, self._sink.now_ms(), self._sink.has_gateway),
            "accounts": accounting.accounts(replica),
            "trees": accounting.trees(replica),
            "gap_grace_ms": self._grace_ms,
            "leads": self.notes.leads,
            "waiting": self.notes.waiting,
        }

    @property
    def refused(self) -> Counter[str]:
        """Events of the stream that counted for nothing, by reason, since the start."""
        return self.keeper.refused
