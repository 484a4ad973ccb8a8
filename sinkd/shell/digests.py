"""Replicas of a log are compared, once a minute: what this disk has with what the group has committed, and roots with
those that other sinks tell, of the zone and of others (`sinkd.core.digests`).

    tree of each log that is covered, here at its end ─┬─ is it the committed one? no: this disk has something else
                                                       └─► Roots ─► `$COVERAGE` ─► the other sinks of the zone
    `$COVERAGE@zone`, as it is mirrored here ─► Roots of sinks of other zones       compare, too

What differs is named, in status, metrics and the audit log, and the scrubber is asked for a round: that reads leaves
and segments again, and finds which of both sides it is. The other side hears of the same, and does so too.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from protocol import coverage
from protocol.coverage import Root, Roots
from protocol.errors import UNREADABLE, DamagedFile, FrameError, LogError, SignatureError
from protocol.limits import COVERAGE_READ_BYTES, DIGEST_INTERVAL_MS
from protocol.merkle import root_of
from protocol.node_names import SINK
from protocol.records import CONTROL, Record, read_header, read_records, split_batches
from sinkd.core.digests import Comparable, Difference, Digests, Place, place_of
from sinkd.shell.store import Partition

if TYPE_CHECKING:
    from sinkd.shell.coverage import Signing
    from sinkd.shell.replica import Replica
    from sinkd.shell.sink import Sink

log = structlog.get_logger()
_ROOTS_SUBJECT = f"{coverage.STREAM}.{coverage.ROOTS}.".encode()


class Comparing:
    """Of one sink."""

    def __init__(self, sink: "Sink", signing: "Signing | None") -> None:
        self._sink, self._signing = sink, signing
        self.digests = Digests()
        self._read_to: dict[bytes, int] = {}  # of other zones' `$COVERAGE`, by incarnation
        self._compared_ms = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(DIGEST_INTERVAL_MS / 1000)
            await self.look()

    def heard(self, roots: Roots) -> None:
        """What a sink of this zone has told."""
        if roots.node != self._sink.node.name:
            self.digests.hear(roots)

    async def look(self) -> None:
        """Compares all that can be, and tells what there is."""
        await self._hear_other_zones()
        found: dict[Place, tuple[Replica, Partition, Comparable]] = {}
        roots = []
        for replica in self._sink.replicas:
            if replica.is_being_filled or replica.group.member.muted:
                continue
            for partition in replica.store.partitions:
                root = await self._root(replica, partition)
                if root is not None:
                    roots.append(root)
                    here = Comparable(root.begin_offset, root.end_offset)
                    found[place_of(root)] = replica, partition, here
        await self._compare(found)
        self._tell(roots)
        self._compared_ms = self._sink.now_ms()

    async def _root(self, replica: "Replica", partition: Partition) -> Root | None:
        """Of what is here; None where it says nothing to others, or cannot be read."""
        tree, stream = partition.replicated.tree, partition.stream
        if tree is None or tree.trimmed or not tree.size:
            return None
        end_offset, committed = partition.high_watermark, root_of(tree.frontier)
        try:
            at = await replica.store.tree_at(partition, end_offset)
        except (LogError, DamagedFile, FrameError, FileNotFoundError) as error:  # trimmed, filled anew, or damaged
            log.info("root_not_known", log=stream.name, partition=partition.number, error=str(error))
            return None
        root = root_of(at.frontier)
        if partition.replicated.tree is not tree:  # it was filled meanwhile: another history may be here now
            return None
        if root != committed:
            replica.scrubber.suspect(partition, f"its root at offset {end_offset} is {root.hex()}, "
                                     f"{committed.hex()} was committed")  # fmt: skip
        name = stream.name if stream.is_mirror else f"{stream.name}@{self._sink.node.zone}"
        return Root(
            log=name, incarnation=stream.incarnation.hex(), partition=partition.number, begin_offset=tree.begin_offset,
            size=at.size, end_offset=end_offset, root=root.hex(),
        )  # fmt: skip

    async def _compare(self, found: "dict[Place, tuple[Replica, Partition, Comparable]]") -> None:
        here = {place: comparable for place, (_, _, comparable) in found.items()}
        for speaker, root in self.digests.due(here):
            replica, partition, _ = found[place_of(root)]
            try:
                at = await replica.store.tree_at(partition, root.end_offset)
            except (LogError, DamagedFile, FrameError, FileNotFoundError):  # trimmed, or no batch ends there
                continue
            difference = self.digests.compare(speaker, root, at.size, root_of(at.frontier).hex())
            if difference is not None:
                self._name(replica, difference)

    def _name(self, replica: "Replica", difference: Difference) -> None:
        speaker, name = difference.speaker, f"{difference.log}/{difference.partition}"
        source = f"sink {speaker.node}" + (f" of zone {speaker.zone}" if speaker.zone != self._sink.node.zone else "")
        log.error("replica_differs", log=difference.log, partition=difference.partition, source=source,
                  why=difference.why)  # fmt: skip
        self._sink.audit.replica_differs(name, source, difference.why)
        replica.scrubber.begin()

    def _tell(self, roots: list[Root]) -> None:
        sink, now_ms = self._sink, self._sink.now_ms()
        for number, part in enumerate(self.digests.news(roots)):
            event = Roots(mesh=sink.mesh, zone=sink.node.zone, node=sink.node.name, time=now_ms, roots=part)
            sink.coverage.publish(f"roots {now_ms} {number}", coverage.ROOTS, event, now_ms, own=True)

    # -- other zones --------------------------------------------------------------------------------------------------

    async def _hear_other_zones(self) -> None:
        for replica in self._sink.replicas:
            for mirror in list(replica.machine.state.mirrors.values()):
                name, zone = mirror.state.mirrored
                is_one = name == coverage.STREAM and "~" not in mirror.state.name
                if is_one and 0 in mirror.state.partitions_of(replica.number):
                    await self._hear(replica, replica.store.incarnation(mirror.state.incarnation, 0), zone)

    async def _hear(self, replica: "Replica", partition: Partition, zone: str) -> None:
        """What has come since the last look; the first time what comes from now on."""
        key, end_offset = partition.stream.incarnation, partition.high_watermark
        offset = self._read_to.setdefault(key, end_offset)
        try:
            while offset < end_offset:
                for batch in split_batches(await replica.store.read(partition, offset, COVERAGE_READ_BYTES)):
                    header = read_header(batch)
                    if header.attributes != CONTROL:
                        for record in read_records(batch):
                            self._take(record, zone)
                    offset = header.next_offset
        except (LogError, DamagedFile) as error:
            log.info("roots_unreadable", zone=zone, error=str(error))
            offset = end_offset
        self._read_to[key] = offset

    def _take(self, record: Record, zone: str) -> None:
        if not bytes(record.subject).startswith(_ROOTS_SUBJECT):
            return
        try:
            roots = msgspec.json.decode(record.payload, type=Roots)
        except UNREADABLE as error:
            log.warning("roots_refused", zone=zone, why=str(error))
            return
        if problem := self._problem(record, roots, zone):
            log.warning("roots_refused", zone=zone, node=roots.node, why=problem)
            self._sink.audit.beacon_refused(roots.node, f"roots of zone {zone}", problem)
        else:
            self.digests.hear(roots)

    def _problem(self, record: Record, roots: Roots, zone: str) -> str:
        """Why it does not count, "" if it does: who says so, and who has signed it."""
        if (roots.version, roots.mesh, roots.zone) != (coverage.VERSION, self._sink.mesh, zone):
            return f"version {roots.version}, of {roots.mesh}/{roots.zone}"
        if self._signing is None:
            return ""
        try:
            signed = coverage.signed_in(bytes(record.header_block))
            if signed is None:
                return "it is not signed"
            signer = self._signing.verify(bytes(record.payload), signed, roots.time)
        except (FrameError, SignatureError) as error:
            return str(error)
        is_its = (signer.zone, signer.role, signer.node) == (zone, SINK, roots.node)
        return "" if is_its else f"{signer} has signed it, and it claims to be of {roots.node}"

    # -- how it is ----------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """For operators; docs/cli.md names them."""
        return {
            "compared_ms": self._compared_ms,
            "differing": [
                {
                    "zone": one.speaker.zone, "node": one.speaker.node, "log": one.log, "partition": one.partition,
                    "end_offset": one.end_offset, "why": one.why,
                }
                for one in self.digests.differing.values()
            ],
        }  # fmt: skip
