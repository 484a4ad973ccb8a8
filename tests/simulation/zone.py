"""A zone in one process on virtual time: its sinks, whole and real, on disks that fail, and gateways that publish.

Real are `Sink` with all that is in it (Raft, journal, segments, filling, links), and of the gateways `SinkLink` and
`Outbox`. Simulated are time, threads, connections and disks. A supervisor starts again whatever has ended; an operator
empties the disk of a sink that does not start.

The promise that is put to the test: as long as a majority of the members keep what was fsynced, nothing that was
acknowledged is lost, whatever else happens. So a disk is damaged only while all others hold all there is, or will have
it again.
"""

import argparse
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

from gateway.core.outbox import Outbox
from gateway.shell.link import SinkDial, SinkLink
from protocol import config, limits, link
from protocol.errors import DamagedFile, DataError
from simulation.audit import Violation
from simulation.disks import Disk, Disks
from simulation.network import Network
from simulation.virtual import CURRENT, Process, VirtualExecutor, VirtualLoop
from simulation.zone_audit import ZoneAudit
from sinkd.core import replication
from sinkd.core.birth import ACTIVE
from sinkd.shell import group, journal, peers, raft, raft_leader, sink, store
from sinkd.shell.group import Group
from sinkd.shell.raft import LEADER, Member
from sinkd.shell.sink import Sink

WALL_MS = 1_700_000_000_000
JOURNAL_FILE_BYTES = 16 * 1024
SEGMENT_BYTES = 8 * 1024
BIRTH_S_MAX = 20.0
SETTLE_S_MAX = 40.0
RESTARTS_MAX = 3  # of a sink that refuses to start, before its operator empties the disk
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


def configuration(folder: Path, count: int) -> config.Config:
    lines = ['[mesh]\nname = "m"\nmode = "event-sinks"\ncatch_all = false\n[limits]\nmax_payload = "16KiB"']
    for number in range(2):
        ports = f'client = "127.0.0.1:{4000 + number}"\nmesh = "127.0.0.1:{5000 + number}"'
        lines.append(f"[zones.z.gateways.gw{number}]\n{ports}")
    for number in range(1, count + 1):
        ports = f'link = "127.0.0.1:{6000 + number}"\nraft = "127.0.0.1:{7000 + number}"'
        lines.append(f'[zones.z.sinks.s{number}]\n{ports}\ndata = "{folder / f"s{number}"}"')
    return config.parse("\n".join(lines) + STREAMS, "mesh.toml")


class Node:
    """One machine with its sink, which is started again when it has ended."""

    def __init__(self, zone: "Zone", name: str, disk: Disk) -> None:
        self.zone, self.name, self.disk = zone, name, disk
        self.life = 0
        self.process: Process | None = None
        self.sink: Sink | None = None
        self.refusals = 0
        self.damaged_at: int | None = None  # what had been committed when its disk was damaged, until it is whole
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
        self.process = Process(self.name, self.zone.loop)
        self.process.spawn(self._live(self.process))

    async def _live(self, process: Process) -> None:
        self.sink = Sink(
            self.zone.configuration,
            self.name,
            now_ms=lambda: WALL_MS + self.skew_ms + int(self.zone.loop.now * 1000),
            journal_file_bytes=JOURNAL_FILE_BYTES,
            segment_bytes=SEGMENT_BYTES,
        )
        why: Exception | None = None
        try:
            await self.sink.start()
            self.refusals = 0
            error = await self.sink.failed
            why = error if isinstance(error, Exception) else Violation(repr(error))
        except (DataError, OSError) as error:
            self.refusals += isinstance(error, DataError)
            why = error
        try:
            await self.sink.stop()
        except (DataError, OSError) as error:
            why = error
        self.zone.ended(self, why)

    async def stop(self) -> None:
        assert self.sink is not None
        await self.sink.stop()
        self.zone.ended(self, None)

    def kill(self) -> None:
        """Nothing of the process is left; what it wrote is in the system's hands."""
        if self.process is not None:
            process, self.process, self.sink = self.process, None, None
            process.is_alive = False
            process.kill()
            self.zone.disks.close_all(process)
            self.zone.network.died(process)

    @property
    def is_whole(self) -> bool:
        """Whether it holds what it promised to hold."""
        if self.damaged_at is not None and self.is_up and self.is_running:
            assert self.sink is not None
            identity = self.sink.identity
            whole = identity.state == ACTIVE and not identity.muted
            if whole and self.sink.group.applied_index >= self.damaged_at and not self.disk.has_damage:
                self.damaged_at = None
        return self.damaged_at is None

    @property
    def is_running(self) -> bool:
        return self.is_up and self.sink is not None and hasattr(self.sink, "links")


class Publisher:
    """A gateway with some connections of clients that publish."""

    def __init__(self, zone: "Zone", name: str) -> None:
        self.zone, self.name = zone, name
        self.life = 0
        self.start()

    def start(self) -> None:
        self.life += 1
        self.process = Process(self.name, self.zone.loop)
        self.process.run(self._start)

    def _start(self) -> None:
        zone = self.zone
        self.outbox = Outbox("z", self._answered)
        self.incarnations: dict[str, bytes] = {}
        dials = [
            SinkDial(name, lambda factory, at=at.link: zone.loop.create_connection(factory, at.host, at.port))
            for name, at in zone.configuration.zones["z"].sinks.items()
        ]
        opening = lambda: link.Open(self.name, 0, zone.rng.randbytes(16))  # noqa: E731
        hello = link.Hello("m", "z", self.name)
        self.link = SinkLink(dials, hello, opening, self.outbox, self.now_ms, self._flush)
        self.process.spawn(self.link.run())
        self._tick()

    def kill(self) -> None:
        self.process.is_alive = False
        self.process.kill()
        self.zone.network.died(self.process)

    def now_ms(self) -> int:
        return int(self.zone.loop.now * 1000)

    def _tick(self) -> None:
        self.outbox.tick(self.now_ms())
        self._flush()
        self.zone.loop.call_later(0.02, self._tick)

    def _flush(self) -> None:
        self.outbox.flush(self.now_ms())
        self.link.send_outbox()

    def publish(self, count: int) -> None:
        self.process.run(self._publish, count)

    def _publish(self, count: int) -> None:
        rng = self.zone.rng
        for _ in range(count):
            subject = rng.choice(SUBJECTS)
            plan = self.outbox.routes.plan("$G", subject, b"")
            if plan is None or not self.outbox.has_room(plan[0]):
                continue  # the connection waits
            event = self.zone.audit.published((self.name, self.life, rng.randrange(2)), asks=rng.random() < 0.8)
            payload = b"%d " % event.number + b"." * rng.choice((0, 10, 100, 1_000))
            self.outbox.publish("$G", subject, event.reply, b"", payload, self.now_ms(), WALL_MS + self.now_ms())
        self._flush()

    def _answered(self, account: str, reply: str, body: bytes) -> None:
        incarnations = {stream.name: stream.incarnation for stream in self.outbox.routes.by_name.values()}
        self.zone.audit.answered(reply, body, incarnations)


class Zone:
    """`with Zone(seed) as zone: zone.run()`: a birth, a time of faults, and the peace after it."""

    def __init__(
        self, seed: int, *, sinks: int = 3, faults: dict[str, float] | None = None, trace: bool = False
    ) -> None:
        self.seed, self.trace = seed, trace
        self.rng = random.Random(seed)
        self.audit = ZoneAudit()
        self.loop = VirtualLoop(self.rng)
        self.loop.network = self.network = Network(self.loop, self.rng)
        self.disks = Disks(self.rng, self._died)
        self.folder = Path(tempfile.mkdtemp(prefix="zone-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.configuration = configuration(self.folder, sinks)
        self.faults = FAULTS if faults is None else faults
        self.seen: Counter[str] = Counter()
        self.is_healed = False
        self.violation: BaseException | None = None
        self.nodes: dict[str, Node] = {}
        for name, at in self.configuration.zones["z"].sinks.items():
            self.disks.by_machine[name] = disk = Disk(self.folder / name, self.rng)
            self.nodes[name] = Node(self, name, disk)
            self.network.hosts[at.link.host, at.link.port] = name
            self.network.hosts[at.raft.host, at.raft.port] = name
        self._stack = ExitStack()

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

    def _note(self, logger: Any, method: str, event: dict[str, Any]) -> Any:
        process = CURRENT.get()
        self.seen[event["event"]] += 1
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
        self.loop.call_later(self.rng.uniform(0.05, 1.0), node.start, context=self.network.nowhere)

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self, seconds: float = 6.0) -> None:
        for node in self.nodes.values():
            self.loop.call_later(self.rng.random(), node.start, context=self.network.nowhere)
        self.publishers = [Publisher(self, f"gw{number}") for number in range(2)]
        self._until(BIRTH_S_MAX, lambda: any(self._leads(node) for node in self.nodes.values()), "no group is born")
        self._call_later(0, self._publish)
        self._call_later(0, self._fault)
        self._go_on(self.loop.now + seconds)
        self.heal()
        self._settle()
        while not self._compare_logs():
            self._settle()
        self.audit.settled((publisher.name, publisher.life) for publisher in self.publishers)

    def _settle(self) -> None:
        self._until(self.loop.now + SETTLE_S_MAX, self._is_settled, "it does not settle", self._why_unsettled)

    def _call_later(self, delay: float, work: Any) -> None:
        self.loop.call_later(delay, work, context=self.network.nowhere)

    def _go_on(self, moment: float, is_over: Any = lambda: False) -> None:
        self.loop.run_until(moment, lambda: self._has_failed() or is_over())
        if self._has_failed():
            raise self.violation or self._loop_error()

    def _has_failed(self) -> bool:
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

    @staticmethod
    def _leads(node: Node) -> bool:
        return node.is_running and node.sink.group.leads

    # -- traffic ------------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        if self.is_healed:
            return
        self.rng.choice(self.publishers).publish(self.rng.choice((1, 1, 2, 5, 20)))
        self._call_later(self.rng.choice((0.001, 0.01, 0.05, 0.1)), self._publish)

    # -- faults -------------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        if self.is_healed or not self.faults:
            return
        (name,) = self.rng.choices(list(self.faults), list(self.faults.values()))
        node = self.rng.choice(list(self.nodes.values()))
        self.log(f"{name} {node.name}")
        self.seen[name] += 1
        getattr(self, name)(node)
        self._call_later(self.rng.choice((0.02, 0.1, 0.3, 0.6)), self._fault)

    def crash(self, node: Node) -> None:
        if node.is_up:
            node.kill()
            self.restart_later(node)

    def crash_in_call(self, node: Node) -> None:
        node.disk.dies_in_calls = self.rng.randint(1, 40)

    def power(self, node: Node) -> None:
        node.kill()
        node.disk.power_cut()
        self.restart_later(node)

    def power_of_all(self, node: Node) -> None:
        for each in self.nodes.values():
            self.power(each)

    def stop(self, node: Node) -> None:
        if node.is_running:
            node.process.spawn(node.stop())

    def pause(self, node: Node) -> None:
        process = node.process
        if process is not None and not process.is_paused:
            process.pause()
            self._call_later(self.rng.choice((0.05, 0.5, 1.5, 3.0)), process.go_on)

    def partition(self, node: Node) -> None:
        """From and to all others, or one way only, or one other only."""
        others = [name for name in (*self.nodes, *(p.name for p in self.publishers)) if name != node.name]
        if self.rng.random() < 0.4:
            others = [self.rng.choice(others)]
        way = self.rng.choice(("to", "from", "both", "both"))
        ways = [(node.name, name) for name in others] * (way != "from")
        ways += [(name, node.name) for name in others] * (way != "to")
        for each in ways:
            self.network.block(*each)
        self._call_later(self.rng.choice((0.2, 1.0, 3.0)), lambda: self._unblock(ways))

    def _unblock(self, ways: list[tuple[str, str]]) -> None:
        for each in ways:
            self.network.unblock(*each)

    def cut(self, node: Node) -> None:
        self.network.cut(node.name, self.rng.choice([*self.nodes, *(p.name for p in self.publishers)]))

    def slow_way(self, node: Node) -> None:
        other = self.rng.choice(list(self.nodes))
        self.network.slow_s[node.name, other] = self.rng.choice((0.02, 0.2, 0.6))
        self._call_later(self.rng.choice((0.5, 2.0)), lambda: self.network.slow_s.pop((node.name, other), None))

    def slow_disk(self, node: Node) -> None:
        if node.process is not None:
            node.process.job_ms_max = self.rng.choice((10, 100, 500))
            self._call_later(self.rng.choice((0.3, 1.0)), lambda process=node.process: _quick(process))

    def full_disk(self, node: Node) -> None:
        node.disk.is_full = True
        self._call_later(self.rng.choice((0.2, 1.0, 2.0)), lambda: setattr(node.disk, "is_full", False))

    def failing_fsync(self, node: Node) -> None:
        node.disk.fails_fsyncs = 1

    def damage(self, node: Node) -> None:
        if self._may_lose(node):
            node.kill()
            self.log(f"{node.name}: {node.disk.damage()}")
            self.restart_later(node)

    def wipe(self, node: Node) -> None:
        if self._may_lose(node):
            node.kill()
            node.disk.wipe()
            self.restart_later(node)

    def _may_lose(self, node: Node) -> bool:
        """Whether a majority keeps what it has if this one's disk is damaged; then it counts as damaged."""
        others = [other for other in self.nodes.values() if other is not node and not other.is_whole]
        if len(others) >= (len(self.nodes) - 1) // 2:
            return False
        node.damaged_at = self.audit.last_index
        return True

    def replace_gateway(self, node: Node) -> None:
        publisher = self.rng.choice(self.publishers)
        publisher.kill()
        publisher.start()

    def transfer(self, node: Node) -> None:
        for leader in self.nodes.values():
            if self._leads(leader) and not leader.process.is_paused:
                leader.process.run(leader.sink.group.member.transfer)

    # -- the end ------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        self.log("heal")
        self.is_healed = True
        self.network.open()
        for node in self.nodes.values():
            node.disk.is_full, node.disk.fails_fsyncs, node.disk.dies_in_calls = False, 0, 0
            if node.process is not None:
                node.process.job_ms_max = 0.5
                node.process.go_on()

    def _why_unsettled(self) -> str:
        parts = []
        for node in self.nodes.values():
            if not node.is_running:
                parts.append(f"{node.who} is not up")
                continue
            status = node.sink.links.operator.status()
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
            parts.append(f"{node.who} " + str({key: status[key] for key in keys}) + f" {status['peers']}")
        for publisher in self.publishers:
            parts.append(f"{publisher.name}: {publisher.outbox.size_bytes} bytes wait, {publisher.link.problem}")
        return "\n".join(parts)

    def _is_settled(self) -> bool:
        """All is sent, all sinks are whole and equal."""
        if not all(publisher.outbox.is_empty for publisher in self.publishers):
            return False
        if not all(node.is_running and (node.is_whole or node.disk.has_damage) for node in self.nodes.values()):
            return False
        sinks = [node.sink for node in self.nodes.values()]
        whole = all(one.identity.state == ACTIVE and not one.identity.muted for one in sinks)
        applied = {one.group.applied_index for one in sinks} | {one.journal.last_index for one in sinks}
        return whole and len(applied) == 1 and any(one.group.leads for one in sinks)

    def _compare_logs(self) -> bool:
        """Reads all that every sink has. One that finds its disk damaged has to be filled: False."""
        for node in self.nodes.values():
            task = node.process.spawn(self._compare_log(node))
            self._until(self.loop.now + 5, task.done, f"{node.who} cannot be read")
            error = task.exception()
            if isinstance(error, DamagedFile) and not node.is_whole:
                self.seen["damage found by a reader"] += 1
                node.process.run(node.sink._fail, error)
                node.damaged_at = self.audit.last_index
                self._until(self.loop.now + 5, lambda node=node: node.sink is None, f"{node.who} does not end")
                return False
            task.result()
        return True

    async def _compare_log(self, node: Node) -> None:
        assert node.sink is not None
        for key, log in self.audit.logs.items():
            partition = node.sink.store._partitions[key]
            end = log[-1].next_offset
            self.audit.is_promised(
                partition.high_watermark == end, f"{node.who} ends at {partition.high_watermark}, not {end}"
            )
            offset = partition.start_offset
            while offset < end:
                data = await node.sink.store.read(partition, offset, 1 << 20)
                offset = self.audit.check_batches(node.who, key, data)


def _quick(process: Process) -> None:
    process.job_ms_max = 0.5


def _is_serious(context: dict[str, Any]) -> bool:
    error = context.get("exception")
    return not isinstance(error, Crash) and "never retrieved" not in context["message"]


def _patches(zone: Zone) -> list[Any]:
    """Time, chance, threads; sizes so small that files roll, checkpoints are written and windows fill all the time."""
    rng, loop = zone.rng, zone.loop
    patch = mock.patch.object
    small = [
        patch(group, "COMMAND_OVERHEAD_BYTES", 2 * 1024),
        patch(limits, "FLUSH_INTERVAL_MS", 200),
        patch(limits, "JOURNAL_FILES_HELD_MAX", 4),
        patch(journal, "JOURNAL_RECENT_BYTES", 4 * 1024),
        patch(peers, "PULL_BYTES", 8 * 1024),
        patch(raft_leader, "SNAPSHOT_PIECE_BYTES", 2 * 1024),
        patch(raft_leader, "APPEND_ENTRIES_MAX", 8),
        patch(replication, "WINDOW_APPENDS", 4),
    ]
    chance = [
        patch(raft, "random", rng),
        patch(pysyncobj.syncobj, "monotonicTime", loop.time),
        patch(sink.secrets, "token_hex", lambda size: rng.randbytes(size).hex()),
        patch(sink.secrets, "token_bytes", rng.randbytes),
    ]
    threads = [patch(module, "ThreadPoolExecutor", VirtualExecutor) for module in (group, store, sink)]
    return [*small, *chance, *threads, *_watches(zone)]


def _watches(zone: Zone) -> list[Any]:
    """The audit hears of what members do."""
    apply, state_changed = Group._apply, Member._state_changed

    def applied(self: Group, data: bytes, index: int, term: int) -> Any:
        result = apply(self, data, index, term)
        who = zone.nodes[self.member.name].who
        try:
            zone.audit.applied(who, index, term, data, result)
            zone.audit.state(who, index, self._machine)
        except Violation as violation:
            zone.violation = zone.violation or violation
        return result

    def changed(self: Member, old: int, new: int) -> None:
        state_changed(self, old, new)
        if new == LEADER:
            try:
                zone.audit.leads(self.term, zone.nodes[self.name].who)
            except Violation as violation:
                zone.violation = zone.violation or violation

    return [mock.patch.object(Group, "_apply", applied), mock.patch.object(Member, "_state_changed", changed)]


FAULTS = {
    "crash": 3, "crash_in_call": 3, "power": 3, "power_of_all": 0.5, "stop": 1, "pause": 3, "partition": 4, "cut": 2,
    "slow_way": 2, "slow_disk": 2, "full_disk": 1, "failing_fsync": 1, "damage": 1.5, "wipe": 1, "replace_gateway": 0.5,
    "transfer": 1,
}  # fmt: skip


def main() -> None:
    """Replays one seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--sinks", type=int, default=3)
    parser.add_argument("--trace", action="store_true", help="print every fault and every line of the sinks' logs")
    arguments = parser.parse_args()
    with Zone(arguments.seed, sinks=arguments.sinks, trace=arguments.trace) as zone:
        zone.run()
    audit = zone.audit
    print(f"seed {arguments.seed}: {len(audit.entries)} entries in {len(audit.leaders)} terms")
    print(f"{len(audit.events)} events, {audit.acknowledged} acknowledged, {audit.refused} refused")
    print(f"{zone.loop.callbacks} callbacks in {zone.loop.now:.6f} s")


if __name__ == "__main__":
    main()
