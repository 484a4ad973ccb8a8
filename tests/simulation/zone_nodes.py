"""The machines of a simulated zone: each with a disk and a sink, which is started again when it has ended."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple, Protocol

from protocol import config
from protocol.errors import DamagedFile, DataError
from simulation.audit import Violation
from simulation.disks import Disk, Disks
from simulation.network import Network
from simulation.virtual import Process, VirtualLoop
from simulation.zone_audit import WALL_MS, ZoneAudit
from sinkd.core.birth import ACTIVE
from sinkd.shell.journal import Journal
from sinkd.shell.replica import Replica
from sinkd.shell.sink import Sink

if TYPE_CHECKING:
    from simulation.zone_faults import Faults
    from simulation.zone_tampering import Tampering

GRACE_S = 2.0
JOURNAL_FILE_BYTES = (16 * 1024, 16 * 1024, 64 * 1024)  # one of these
SEGMENT_BYTES = 8 * 1024
STREAMS = """
[streams.orders]
subjects = ["orders.>"]
outbox = { bytes = "64KiB" }
[streams.metrics]
subjects = ["metrics.*"]
partitions = 2
key = "token:2"
[streams.brief]
subjects = ["brief"]
retention = { bytes = "16KiB" }
"""
SUBJECTS = ("orders.new", "orders.paid", "metrics.cpu", "metrics.disk", "metrics.net", "brief")


def ports(zone: str, number: int) -> tuple[int, int]:
    """Of the links to gateways and to other sinks."""
    number += 0 if zone == "z" else 100
    return 6000 + number, 7000 + number


def node_name(zone: str, number: int) -> str:
    return f"s{number}" if zone == "z" else f"{zone}{number}"


def configuration(folder: Path, zones: dict[str, int], groups: int, streams: str = STREAMS) -> config.Config:
    """`zones` has so many sinks each; the gateways are in zone z."""
    lines = ['[mesh]\nname = "m"\nmode = "event-sinks"\ncatch_all = false\n[limits]\nmax_payload = "16KiB"']
    lines.append(f'[coverage]\ngap_grace = "{GRACE_S:.0f}s"')
    for number in range(2):
        addresses = f'client = "127.0.0.1:{4000 + number}"\nmesh = "127.0.0.1:{5000 + number}"'
        lines.append(f"[zones.z.gateways.gw{number}]\n{addresses}")
    for zone, count in zones.items():
        lines.append(f"[zones.{zone}]\ngroups = {groups}")
        for number in range(1, count + 1):
            name, (link, raft) = node_name(zone, number), ports(zone, number)
            addresses = f'link = "127.0.0.1:{link}"\nraft = "127.0.0.1:{raft}"'
            lines.append(f'[zones.{zone}.sinks.{name}]\n{addresses}\ndata = "{folder / name}"')
    return config.parse("\n".join(lines) + streams, "mesh.toml")


class World(Protocol):
    """What the parts of a zone know of it."""

    loop: VirtualLoop
    network: Network
    disks: Disks
    audit: ZoneAudit
    configuration: config.Config
    groups: int
    journal_file_bytes: int
    segment_bytes: int
    rng: Random
    seed: int
    seen: Counter[str]
    violation: BaseException | None
    nodes: dict[str, "Node"]
    is_healed: bool
    faults: "Faults"
    tampering: "Tampering"

    def ended(self, node: "Node", why: Exception | None) -> None: ...


class Told(NamedTuple):
    """What a member has said last that it may not forget: its vote, and how far its log matches its leader's."""

    vote_term: int = 0
    candidate: str = ""
    journal: bytes = b""
    term: int = 0
    matched: int = 0


@dataclass
class Part:
    """What a machine has of one Raft group."""

    durable_index: int = 0  # of its journal
    held_index: int = 0  # of what is committed, it once held so much durably
    told: Told = field(default_factory=Told)


def group_of(path: Path | str) -> int:
    """Whose folder it lies in."""
    return next((int(name.removeprefix("group-")) for name in Path(path).parts if name.startswith("group-")), 0)


class Node:
    """One machine with its sink, which is started again when it has ended."""

    def __init__(self, zone: World, name: str, disk: Disk) -> None:
        self.zone, self.name, self.disk = zone, name, disk
        self.life = 0
        self.process: Process | None = None
        self.sink: Sink | None = None
        self.parts = [Part() for _ in range(zone.groups)]
        self.refusals = 0
        self.damaged_at: list[int] | None = (
            None  # what groups had committed when its disk was damaged, until it is whole
        )
        self.has_hidden_loss = False  # which no checksum shows: only who saw what it held can tell
        self.job_ms_max = zone.rng.choice((0.5, 0.5, 5, 30))
        self.skew_ms = zone.rng.choice((0, 0, -300, 300))

    @property
    def who(self) -> str:
        return f"{self.name}/{self.life}"

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.is_alive

    def start(self) -> None:
        if self.is_up:
            return
        self.life += 1
        self.stopping = self.zone.loop.create_future()
        self.process = Process(self.name, self.zone.loop, self.job_ms_max)
        self.process.spawn(self._live(self.process))

    async def _live(self, process: Process) -> None:
        self.sink = Sink(
            self.zone.configuration,
            self.name,
            now_ms=lambda: WALL_MS + self.skew_ms + int(self.zone.loop.now * 1000),
            journal_file_bytes=self.zone.journal_file_bytes,
            segment_bytes=self.zone.segment_bytes,
        )
        why: Exception | None = None
        try:
            await self.sink.start()
            self.refusals = 0
            await asyncio.wait({self.sink.failed, self.stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self.sink.failed.done():
                error = self.sink.failed.result()
                why = error if isinstance(error, Exception) else Violation(repr(error))
        except (DataError, OSError) as error:
            self.refusals += isinstance(error, DamagedFile)
            why = error
        try:
            await self.sink.stop()
        except Exception as error:
            if not process.is_alive:
                raise  # it was killed, and this is what is left of it
            why = error
        self.zone.ended(self, why)

    def stop(self) -> None:
        """As its administrator does: it may take its time."""
        if not self.stopping.done():
            self.stopping.set_result(None)

    def kill(self) -> None:
        """Nothing of the process is left; what it wrote is in the system's hands."""
        if self.process is not None:
            process, self.process, self.sink = self.process, None, None
            process.is_alive = False
            process.kill()
            self.zone.disks.close_all(process)
            self.zone.network.died(process)

    def replica(self, group: int) -> Replica:
        assert self.sink is not None
        return self.sink.replicas[group]

    def replica_with(self, key: tuple[bytes, int]) -> Replica | None:
        """That which has opened this partition: incarnation of the stream, number."""
        assert self.sink is not None
        return next((replica for replica in self.sink.replicas if key in replica.store._partitions), None)

    def note_held(self, group: int, journal: Journal) -> None:
        """What is committed is never truncated: what it held of that once it still holds, if its disk does."""
        part, audit = self.parts[group], self.zone.audit.groups[group]
        entries = audit.entries
        index = min(part.durable_index, audit.last_index, journal.last_index)
        while index > max(part.held_index, journal.first_index - 1):
            if index in entries and entries[index][0] == journal.term(index):
                break
            index -= 1
        part.held_index = max(part.held_index, index)

    @property
    def is_whole(self) -> bool:
        """Whether it holds what it promised to hold."""
        if self.damaged_at is not None and self.is_running:
            lacks = any(
                self.replica(group).group.applied_index < min(index, self.zone.audit.groups[group].last_index)
                for group, index in enumerate(self.damaged_at)  # the rest was truncated
            )
            if self.may_vote and not lacks and not self.disk.has_damage:
                self.damaged_at, self.has_hidden_loss = None, False
        return self.damaged_at is None

    @property
    def may_vote(self) -> bool:
        if not self.is_running:
            return False
        assert self.sink is not None
        identities = [replica.folder.identity for replica in self.sink.replicas]
        return all(identity.state == ACTIVE and not identity.muted for identity in identities)

    @property
    def is_running(self) -> bool:
        return self.is_up and self.sink is not None and bool(self.sink.replicas)
