"""A zone in one process on virtual time: its sinks, whole and real, on disks that fail, and gateways that publish.

Real are `Sink` with all that is in it (Raft, journal, segments, filling, links), and of the gateways `SinkLink` and
`Outbox`. Simulated are time, threads, connections and disks. A supervisor starts again whatever has ended; an operator
empties the disk of a sink that does not start.

The promise that is put to the test: as long as a majority of the members keep what was fsynced, nothing that was
acknowledged is lost, whatever else happens. So a disk is damaged only while all others hold all there is, or will have
it again.
"""

import argparse
import asyncio
import random
import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pysyncobj.syncobj
import structlog
from support.disk import Crash

from gateway.shell import beacons
from gateway.shell import link as gateway_link
from protocol import config, limits
from protocol.errors import DamagedFile, DataError, LogError
from simulation.audit import Violation
from simulation.disks import Disk, Disks, write_stale_bytes
from simulation.network import Network
from simulation.virtual import CURRENT, Process, VirtualExecutor, VirtualLoop
from simulation.zone_audit import ZoneAudit, is_promised
from simulation.zone_clients import Auditor, Prober, Publisher, Reader
from simulation.zone_faults import Faults
from simulation.zone_ledger import Ledger
from simulation.zone_nodes import (
    GRACE_S,
    JOURNAL_FILE_BYTES,
    SEGMENT_BYTES,
    Node,
    configuration,
    group_of,
    node_name,
    ports,
)
from simulation.zone_tampering import KINDS as TAMPERS
from simulation.zone_tampering import Tampering
from simulation.zone_watch import Watch
from sinkd.core import keeping, replication
from sinkd.shell import (
    attesting,
    digests,
    group,
    journal,
    journal_files,
    journal_recovery,
    peers,
    raft,
    raft_leader,
    raft_links,
    replica,
    scrubbing,
    sink,
    store,
)
from sinkd.shell import coverage as sink_coverage

BIRTH_S_MAX = 20.0
SETTLE_S_MAX = 40.0
ACCOUNT_S_MAX = 15.0
TWO_GROUPS_EVERY = 8  # seeds
TAMPERED_EVERY = 3  # seeds, of those with faults of all kinds
RESTARTS_MAX = 3  # of a sink that refuses to start, before its operator empties the disk


class Zone:
    """`with Zone(seed) as zone: zone.run()`: a birth, a time of faults, and the peace after it."""

    name, segment_bytes = "z", SEGMENT_BYTES

    def __init__(
        self,
        seed: int,
        *,
        sinks: int = 3,
        groups: int = 0,
        kinds: tuple[str, ...] | None = None,
        tampers: tuple[str, ...] | None = None,
        trace: bool = False,
    ) -> None:
        """Without `groups` the seed says how many Raft groups there are; without `tampers`, what becomes of parcels."""
        self.seed, self.trace = seed, trace
        self.groups = groups or (2 if seed % TWO_GROUPS_EVERY == TWO_GROUPS_EVERY - 1 else 1)
        self.rng = random.Random(seed)
        self.loop = VirtualLoop(self.rng)
        self.audit = self._audit()
        self.loop.network = self.network = Network(self.loop, self.rng)
        self.disks = Disks(self.rng, self._died)
        self.folder = Path(tempfile.mkdtemp(prefix="zone-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.seen: Counter[str] = Counter()
        self.is_healed = False
        self.violation: BaseException | None = None
        self.nodes: dict[str, Node] = {}
        for number in range(1, sinks + 1):
            self._add_node(number)
        self.configuration = self._configuration()
        self.faults = Faults(self, self.rng, kinds)
        chosen = TAMPERS if seed % TAMPERED_EVERY == 1 and kinds is None else ()
        self.tampering = Tampering(self, chosen if tampers is None else tampers, is_calm=kinds == ())
        self.journal_file_bytes = self.rng.choice(JOURNAL_FILE_BYTES)
        self.pace = self.rng.choice((1, 2, 4))
        self.publishers: list[Publisher] = []
        self._stack = ExitStack()

    def _audit(self) -> ZoneAudit:
        ledger = Ledger(lambda: self.loop.now, GRACE_S)
        ledger.has_erred = lambda name: self.nodes[name].disk.damages > 0
        return ZoneAudit(self.groups, ledger, lambda name: self.nodes[name].skew_ms)

    def _configuration(self) -> config.Config:
        return configuration(self.folder, {"z": len(self.nodes)}, self.groups)

    def _add_node(self, number: int) -> Node:
        name = node_name(self.name, number)
        self.disks.by_machine[name] = disk = Disk(self.folder / name, self.rng)
        self.nodes[name] = node = Node(self, name, disk)
        for port in ports(self.name, number):
            self.network.hosts["127.0.0.1", port] = name
        return node

    def grow(self) -> str:
        """A machine more; the files name its sink from now on, for whoever is started. The name."""
        node = self._add_node(len(self.nodes) + 1)
        node.damaged_at = [0] * self.groups  # it may not vote yet, as if it had lost what it never had
        self.configuration = self._configuration()
        node.start()
        return node.name

    def __enter__(self) -> "Zone":
        for patch in _patches(self):
            self._stack.enter_context(patch)
        self._stack.enter_context(self.disks.in_use())
        structlog.configure(processors=[self._note], cache_logger_on_first_use=False)
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.kill()
        self._stack.close()
        structlog.reset_defaults()
        shutil.rmtree(self.folder)

    def watches(self) -> list[Any]:
        """Patches that have the audits hear of what goes on."""
        return Watch(self).patches()

    def _note(self, logger: Any, method: str, event: dict[str, Any]) -> Any:
        process = CURRENT.get()
        self.seen[event["event"]] += 1
        if not event["event"].startswith("link_"):
            self.faults.something_happened()
        if self.trace:
            print(f"{self.loop.now:9.4f} {process.name if process else '-':4} {event}")
        raise structlog.DropEvent

    def log(self, what: str) -> None:
        if self.trace:
            print(f"{self.loop.now:9.4f} ===> {what}")

    # -- processes end ------------------------------------------------------------------------------------------------

    def _died(self, process: Process) -> None:
        """Within a call; its machine tidies up in a moment."""
        node = self.nodes[process.name]
        self.loop.call_soon(self._bury, node, process, context=self.network.nowhere)

    def _bury(self, node: Node, process: Process) -> None:
        if node.process is process:
            node.kill()
            self.restart_later(node)

    def ended(self, node: Node, why: Exception | None) -> None:
        """By itself. Disks may be the reason, mistakes of ours may not."""
        self.log(f"{node.who} ended: {why!r}")
        if why is not None and not isinstance(why, DataError | OSError):
            self.violation = self.violation or why
        self.seen["ended"] += 1
        self.loop.call_soon(self._after_end, node, node.process, context=self.network.nowhere)

    def _after_end(self, node: Node, process: Process) -> None:
        if node.process is not process:
            return
        node.kill()
        if node.refusals > RESTARTS_MAX:
            if node.damaged_at is None:
                self.violation = Violation(f"{node.who} does not start, and its disk was never damaged")
            self.log(f"{node.name}: its operator empties the disk")
            node.disk.wipe()
            node.refusals = 0
        self.restart_later(node)

    def restart_later(self, node: Node) -> None:
        self.call_later(self.rng.choice((0.05, 0.3, 1.0, 2.5)) * self.rng.random(), node.start)

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self, seconds: float = 3.0) -> None:
        for node in self.nodes.values():
            self.call_later(self.rng.random(), node.start)
        self.publishers = [Publisher(self, f"gw{number}") for number in range(2)]
        self.reader = Reader(self)
        if self.rng.random() < 0.8:  # else there are faults while the group is being born, too
            self._until(BIRTH_S_MAX, lambda: all(self.leaders()), "no group is born")
        self.call_later(0, self._publish)
        self.call_later(0, Prober(self).begin)
        self.auditor = Auditor(self)
        self.call_later(0, self.auditor.begin)
        self._begin_faults()
        self._go_on(self.loop.now + seconds)
        self.heal()
        self._settle()
        while not self._compare_logs():
            self._settle()
        self.audit.settled((publisher.name, publisher.life) for publisher in self.publishers)
        self._account()

    def _account(self) -> None:
        """Whatever was named by gateways is in the log by now, or is missing for a reason that stands there."""
        ledger = self.audit.ledger
        living = {publisher.process_name for publisher in self.publishers}
        lacks = lambda: "\n".join(ledger.unsettled(living))  # noqa: E731
        self._until(self.loop.now + ACCOUNT_S_MAX, lambda: not lacks(), "it is not accounted for", lacks)
        for publisher in self.publishers:
            publisher.check_accounts()
        asked = self.auditor.ask_all()
        self._until(self.loop.now + 5, lambda: all(task.done() for task in asked), "nothing is stated")

    def _begin_faults(self) -> None:
        self.faults.begin()
        self.tampering.begin()

    def _settle(self) -> None:
        self._until(self.loop.now + SETTLE_S_MAX, self._is_settled, "it does not settle", self._why_unsettled)

    def call_later(self, delay: float, work: Any) -> None:
        self.loop.call_later(delay, work, context=self.network.nowhere)

    def _go_on(self, moment: float, is_over: Any = lambda: False) -> None:
        self.loop.run_until(moment, lambda: self._has_failed() or is_over())
        if self._has_failed():
            raise self.violation or self._loop_error()

    def _has_failed(self) -> bool:
        reading = self.reader.process.tasks[0]
        if reading.done():
            self.violation = self.violation or reading.exception()
        if self.loop.errors:
            self.loop.errors = [one for one in self.loop.errors if _is_serious(one)]
        return self.violation is not None or bool(self.loop.errors)

    def _loop_error(self) -> BaseException:
        context = self.loop.errors[0]
        error = context.get("exception")
        return error if error is not None else Violation(str(context))

    def _until(self, moment: float, reached: Any, what: str, why: Any = lambda: "") -> None:
        while not reached():
            if self.loop.now >= moment:
                raise Violation(f"{what} by {moment:.1f} s: {why()}")
            self._go_on(self.loop.now + 0.1)

    def leader(self, group: int = 0) -> Node | None:
        return next((node for node in self.nodes.values() if self.leads(node, group)), None)

    def leaders(self) -> list[Node | None]:
        """Of each group."""
        return [self.leader(group) for group in range(self.groups)]

    @staticmethod
    def leads(node: Node, group: int) -> bool:
        return node.is_running and node.replica(group).group.leads

    # -- traffic ------------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        if self.is_healed:
            return
        self.rng.choice(self.publishers).publish(self.rng.choice((1, 1, 2, 5, 20)))
        self.call_later(self.rng.choice((0.001, 0.01, 0.05, 0.1)) * self.pace, self._publish)

    # -- the end ------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        self.log("heal")
        self.is_healed = True
        self.network.open()
        for node in self.nodes.values():
            node.disk.is_full, node.disk.fails_fsyncs, node.disk.dies_in_calls = False, 0, 0
            if node.process is not None:
                node.process.job_ms_max = node.job_ms_max
                node.process.go_on()
        self.faults.bring_members_back()

    def _why_unsettled(self) -> str:
        parts = []
        for node in self.nodes.values():
            if not node.is_running:
                parts.append(f"{node.who} is not up")
                continue
            keys = (
                "state",
                "leader",
                "term",
                "commit_index",
                "applied_index",
                "last_index",
                "muted",
                "waits",
                "busy",
                "filling",
            )
            for each in node.sink.replicas:
                status = each.links.operator.status()
                told = {key: status[key] for key in keys}
                parts.append(f"{node.who}, group {each.number}: {told} {status['peers']}")
        for publisher in self.publishers:
            problems = [each.problem for each in publisher.links]
            parts.append(f"{publisher.name}: {publisher.outbox.size_bytes} bytes wait, {problems}")
        return "\n".join(parts)

    def _is_settled(self) -> bool:
        """All is sent, all sinks are whole and equal."""
        if not all(publisher.outbox.is_empty for publisher in self.publishers):
            return False
        if not all(node.is_running and (node.is_whole or node.disk.has_damage) for node in self.nodes.values()):
            return False
        whole = all(node.may_vote for node in self.nodes.values())
        return whole and all(self._is_group_settled(group) for group in range(self.groups)) and self._are_spread()

    def _is_group_settled(self, number: int) -> bool:
        replicas = [node.replica(number) for node in self.nodes.values()]
        applied = {one.group.applied_index for one in replicas} | {one.journal.last_index for one in replicas}
        members = all(len(one.group.member.members) == len(replicas) for one in replicas)
        is_led = any(one.group.leads for one in replicas)
        return members and applied == {self.audit.groups[number].last_index} and is_led

    def _are_spread(self) -> bool:
        """Leaders are on different sinks, but where somebody has chosen one for better reasons."""
        leaders = self.leaders()
        members = [leader.replica(group).group.member for group, leader in enumerate(leaders) if leader is not None]
        return len(set(leaders)) == self.groups or any(member.was_asked_to_lead for member in members)

    def _compare_logs(self) -> bool:
        """Reads all that every sink has. One that finds its disk damaged has to be filled: False."""
        for node in self.nodes.values():
            process = node.process
            task = process.spawn(self._compare_log(node))
            ended = lambda: task.done() or not process.is_alive  # noqa: B023, E731
            self._until(self.loop.now + 5, ended, f"{node.who} cannot be read")
            if not task.done():
                return False  # somebody else has met damage in it
            error = task.exception()
            if isinstance(error, DamagedFile) and not node.is_whole:
                self.seen["damage found by a reader"] += 1
                process.run(node.replica(group_of(error.file)).fail, error)
                node.damaged_at = [each.last_index for each in self.audit.groups]
                self._until(self.loop.now + 5, lambda: not process.is_alive, f"{node.who} does not end")  # noqa: B023
                return False
            task.result()
        return True

    async def _compare_log(self, node: Node) -> None:
        assert node.sink is not None
        for key, log in list(self.audit.logs.items()):  # audit events may still come
            while (part := node.replica_with(key)) is None:  # noqa: ASYNC110  it has not got that far
                await asyncio.sleep(0.01)
            audit = self.audit.groups[part.number]
            while part.group.applied_index < audit.last_index:  # noqa: ASYNC110  what is audited meanwhile
                await asyncio.sleep(0.01)
            partition = part.store._partitions[key]
            end = log[-1].next_offset
            is_promised(partition.high_watermark == end, f"{node.who} ends at {partition.high_watermark}, not {end}")
            offset = partition.start_offset
            while offset < end:
                offset = max(offset, partition.start_offset)  # retention goes on
                try:
                    data = await part.store.read(partition, offset, 1 << 20)
                except LogError:
                    is_promised(partition.start_offset > offset, f"{node.who} cannot read at {offset}")
                    continue
                offset = self.audit.check_batches(node.who, key, data)


def _is_serious(context: dict[str, Any]) -> bool:
    error = context.get("exception")
    return not isinstance(error, Crash) and "never retrieved" not in context["message"]


def _patches(zone: Zone) -> list[Any]:
    """Time, chance, threads; sizes so small that files roll, checkpoints are written and windows fill all the time."""
    rng, loop = zone.rng, zone.loop
    page_bytes = (8, 512, 4096)[zone.seed // 3 % 3]  # 8: stale bytes of recycled files begin right behind the records
    patch = mock.patch.object
    small = [
        patch(group, "COMMAND_OVERHEAD_BYTES", 2 * 1024),
        patch(group, "SYNC_AT_ONCE_BYTES", zone.seed % 3 // 2 * 400),
        patch(limits, "FLUSH_INTERVAL_MS", rng.choice((200, 200, 2_000))),
        patch(limits, "JOURNAL_FILES_HELD_MAX", 4),
        patch(journal, "JOURNAL_RECENT_BYTES", 4 * 1024),
        *(patch(module, "JOURNAL_PAGE_BYTES", page_bytes) for module in (journal_files, journal_recovery)),
        patch(journal_files, "write_zeros", write_stale_bytes if zone.seed % 2 else journal_files.write_zeros),
        patch(peers, "PULL_BYTES", 8 * 1024),
        patch(scrubbing, "PULL_BYTES", 8 * 1024),
        patch(scrubbing, "SCRUB_BEGIN_MS", 500),
        patch(scrubbing, "SCRUB_ROUND_MS_MIN", 2_000),
        patch(raft_leader, "SNAPSHOT_PIECE_BYTES", 2 * 1024),
        patch(raft_leader, "APPEND_ENTRIES_MAX", rng.choice((1, 1, 2, 8))),
        patch(replication, "WINDOW_APPENDS", 4),
        patch(raft, "RAFT_DOUBT_MS_MAX", 15_000),
    ]
    soon = [
        patch(module, name, value)
        for module, names in (
            (gateway_link, {"PING_INTERVAL": 50, "SILENCE": 500, "DIAL": 200, "RETRY": 100}),
            (raft_links, {"PING_INTERVAL": 100, "SILENCE": 600, "DIAL": 300, "RETRY": 200}),
        )
        for key, value in names.items()
        for name in [name for name in vars(module) if f"_{key}_MS" in name and not name.endswith("_MIN")]
    ]
    chance = [
        patch(raft, "random", rng),
        patch(pysyncobj.syncobj, "monotonicTime", loop.time),
        patch(replica, "boot_id", lambda: str(zone.disks.by_machine[CURRENT.get().name].boots)),
        patch(sink.secrets, "token_hex", lambda size: rng.randbytes(size).hex()),
        patch(sink.secrets, "token_bytes", rng.randbytes),
    ]
    threads = [patch(module, "ThreadPoolExecutor", VirtualExecutor) for module in (group, store, sink)]
    coverage = [
        patch(beacons, "BEACON_INTERVAL_MS", 200),
        patch(beacons, "BEACON_SILENCE_MS_MAX", 1_000),
        patch(beacons, "BEACON_WHOLE_MS", 3_000),
        patch(keeping, "COVERAGE_SILENCE_MS", 1_500),
        patch(sink_coverage, "COVERAGE_LOOK_MS", 200),
        patch(attesting, "ATTESTED_MS_MAX", 0),  # else what was whole may be stated although it was spoilt since
        patch(digests, "DIGEST_INTERVAL_MS", 1_500),
        patch(sink_coverage, "COVERAGE_SUMMARY_MS", 2_000),
        patch(sink_coverage, "COVERAGE_BACK_MS", 10_000),
    ]
    return [*small, *soon, *coverage, *chance, *threads, *zone.watches()]


def main() -> None:
    """Replays one seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--sinks", type=int, default=3)
    parser.add_argument("--groups", type=int, default=0, help="else as the seed has it")
    parser.add_argument("--trace", action="store_true", help="print every fault and every line of the sinks' logs")
    arguments = parser.parse_args()
    with Zone(arguments.seed, sinks=arguments.sinks, groups=arguments.groups, trace=arguments.trace) as zone:
        zone.run()
    audit = zone.audit
    for number, each in enumerate(audit.groups):
        print(f"seed {arguments.seed}, group {number}: {len(each.entries)} entries in {len(each.leaders)} terms")
    print(f"{len(audit.events)} events, {audit.acknowledged} acknowledged, {audit.refused} refused")
    print(f"{zone.loop.callbacks} callbacks in {zone.loop.now:.6f} s")


if __name__ == "__main__":
    main()
