"""What chance does to a simulated zone: to its machines, their disks, the ways between them, and who its members are.

Each seed has a mixture of its own: a few kinds of faults, more or less often. So there are seeds in which everything
happens at once, and seeds in which one thing happens a hundred times while the zone works hard.
"""

import random
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import LogError
from simulation.zone_nodes import Node
from sinkd.shell.group import UnknownOutcome

if TYPE_CHECKING:
    from simulation.zone import Zone

KINDS = (
    "crash", "crash_in_call", "power", "power_of_all", "stop", "pause", "partition", "cut", "slow_way", "slow_disk",
    "full_disk", "failing_fsync", "damage", "damage_journal_end", "spoil", "wipe", "worst_moment", "roll_back",
    "replace_gateway", "transfer", "change_members",
    "deaf_leader", "set_back", "add_sink",
)  # fmt: skip
JOURNAL_END_BYTES = 600
WORST_POWER_CUT_EVERY = 5  # seeds
INTERVALS_S = (0.03, 0.08, 0.2, 0.5)


class Faults:
    """`kinds` are those that may happen, by default some that the seed chooses."""

    def __init__(self, zone: "Zone", rng: random.Random, kinds: tuple[str, ...] | None = None) -> None:
        self.zone, self.rng = zone, rng
        chosen = tuple(rng.sample(KINDS, rng.choice((2, 4, 8, len(KINDS)))))
        if zone.seed % WORST_POWER_CUT_EVERY == 0:
            chosen += ("worst_power_cut",)
        self.kinds = chosen if kinds is None else kinds
        self.interval_s = rng.choice(INTERVALS_S)
        self._is_armed = False
        self.copied_index: dict[str, list[int]] = {}  # where the journals ended of which there are copies
        self.added: str | None = None  # the sink that the file did not name at first
        self.removed: str | None = None  # the sink that is, or may be, no member

    def begin(self) -> None:
        if self.kinds:
            self.zone.call_later(self.rng.expovariate(1 / self.interval_s), self._happen)

    def _happen(self) -> None:
        if self.zone.is_healed:
            return
        if self.rng.random() < 0.5:
            self._strike()
        else:
            self._is_armed = True
        self.begin()

    def _strike(self) -> None:
        if self.zone.is_healed:
            return
        name = self.rng.choice(self.kinds)
        node = self.rng.choice(list(self.zone.nodes.values()))
        self.zone.log(f"{name} {node.name}")
        self.zone.seen[name] += 1
        getattr(self, name)(node)

    def something_happened(self) -> None:
        """An answer was given, a leader elected, a checkpoint written: a good moment for what is to come."""
        if self._is_armed:
            self._is_armed = False
            self.zone.call_later(self.rng.choice((0.0, 0.001, 0.01)) * self.rng.random(), self._strike)

    def crash(self, node: Node) -> None:
        if node.is_up:
            node.kill()
            self.zone.restart_later(node)

    def crash_in_call(self, node: Node) -> None:
        node.disk.dies_in_calls = self.rng.randint(1, 40)

    def power(self, node: Node) -> None:
        node.kill()
        node.disk.power_cut()
        self.zone.restart_later(node)

    def power_of_all(self, node: Node) -> None:
        for each in self.zone.nodes.values():
            self.power(each)

    def _some_group(self) -> int:
        return self.rng.randrange(self.zone.groups) if self.zone.groups > 1 else 0

    def stop(self, node: Node) -> None:
        if node.is_running:
            node.process.run(node.stop)

    def pause(self, node: Node) -> None:
        process = node.process
        if process is not None and not process.is_paused:
            process.pause()
            self.zone.call_later(self.rng.choice((0.05, 0.4, 1.0, 2.0)), process.go_on)

    def partition(self, node: Node) -> None:
        """From and to all others, or one way only, or one other only."""
        others = [name for name in (*self.zone.nodes, *(p.name for p in self.zone.publishers)) if name != node.name]
        if self.rng.random() < 0.4:
            others = [self.rng.choice(others)]
        way = self.rng.choice(("to", "from", "both", "both"))
        ways = [(node.name, name) for name in others] * (way != "from")
        ways += [(name, node.name) for name in others] * (way != "to")
        for each in ways:
            self.zone.network.block(*each)
        self.zone.call_later(self.rng.choice((0.2, 0.7, 1.5)), lambda: self._unblock(ways))

    def deaf_leader(self, node: Node) -> None:
        """Others take what it sends and it hears no answer; then it takes more, alone, until it gives up."""
        leader = self.zone.leader(self._some_group())
        if leader is None or self.zone.network.blocked:
            return
        others = [name for name in self.zone.nodes if name != leader.name]
        hearing = [(name, leader.name) for name in others]
        speaking = [(leader.name, name) for name in others]
        for way in hearing:
            self.zone.network.block(*way)

        def strike() -> None:
            if not self.zone.is_healed:
                for way in speaking:
                    self.zone.network.block(*way)

        self.zone.call_later(self.rng.choice((0.1, 0.2, 0.4)), strike)
        self.zone.call_later(self.rng.choice((0.9, 1.2, 1.6)), lambda: self._unblock(hearing + speaking))

    def _unblock(self, ways: list[tuple[str, str]]) -> None:
        for each in ways:
            self.zone.network.unblock(*each)

    def cut(self, node: Node) -> None:
        self.zone.network.cut(node.name, self.rng.choice([*self.zone.nodes, *(p.name for p in self.zone.publishers)]))

    def slow_way(self, node: Node) -> None:
        other = self.rng.choice(list(self.zone.nodes))
        self.zone.network.slow_s[node.name, other] = self.rng.choice((0.02, 0.2, 0.6))
        slow_s = self.zone.network.slow_s
        self.zone.call_later(self.rng.choice((0.5, 2.0)), lambda: slow_s.pop((node.name, other), None))

    def slow_disk(self, node: Node) -> None:
        process = node.process
        if process is not None:
            process.job_ms_max = self.rng.choice((10, 100, 500))
            self.zone.call_later(self.rng.choice((0.3, 1.0)), lambda: setattr(process, "job_ms_max", node.job_ms_max))

    def full_disk(self, node: Node) -> None:
        node.disk.is_full = True
        self.zone.call_later(self.rng.choice((0.2, 1.0, 2.0)), lambda: setattr(node.disk, "is_full", False))

    def failing_fsync(self, node: Node) -> None:
        node.disk.fails_fsyncs = 1

    def damage(self, node: Node) -> None:
        self._damage(node, node.disk.files())

    def damage_journal_end(self, node: Node) -> None:
        group = self._some_group()
        self._damage(node, node.disk.files(_folder(group) + "journal/*.journal")[-1:])

    def _damage(self, node: Node, files: list[Path]) -> None:
        if files and self._may_lose(node):
            node.kill()
            damage = node.disk.damage(files)
            node.has_hidden_loss = node.has_hidden_loss or damage.is_hidden
            self.zone.log(f"{node.name}: {damage.what}")
            self.zone.restart_later(node)

    def spoil(self, node: Node) -> None:
        """A disk errs while it is used; what is written no more is bad from now on."""
        segments = node.disk.files("*.segment")
        last = {path.parent: path for path in segments}
        files = [path for path in segments if path != last[path.parent]]
        if node.is_running and files and self._may_lose(node):
            damage = node.disk.damage(files)
            node.has_hidden_loss = node.has_hidden_loss or damage.is_hidden
            self.zone.log(f"{node.name}: {damage.what}")

    def wipe(self, node: Node) -> None:
        if self._may_lose(node):
            node.kill()
            node.disk.wipe()
            self.zone.restart_later(node)

    def _may_lose(self, node: Node) -> bool:
        """Whether a majority keeps what it has if this one's disk is damaged; then it counts as damaged."""
        others = [other for other in self.zone.nodes.values() if other is not node and not other.is_whole]
        if self.removed is not None or len(others) >= (len(self.zone.nodes) - 1) // 2:
            return False
        running = [each for each in self.zone.nodes.values() if each.is_running]
        node.damaged_at = [
            max(audit.last_index, *(each.replica(group).journal.last_index for each in running), 0)
            for group, audit in enumerate(self.zone.audit.groups)
        ]
        return True

    def worst_moment(self, node: Node) -> None:
        """As many as may be lag behind; one of the others loses its disk, and the rest of them stop for a while."""
        leader, others = (
            self.zone.leader(self._some_group()),
            [other for other in self.zone.nodes.values() if other is not node],
        )
        if leader is None or leader is node or self.removed is not None:
            return
        late = [other for other in others if other is not leader][: (len(others)) // 2]
        stopping = [other for other in others if other not in late]
        ways = [(other.name, each.name) for each in late for other in self.zone.nodes.values() if other not in late]
        ways += [(each, other) for other, each in ways]
        for way in ways:
            self.zone.network.block(*way)

        def strike() -> None:
            if self.zone.is_healed:
                return  # all ways are open
            self.wipe(node)
            for each in stopping:
                self.pause(each)
            self._unblock(ways)
            self.zone.network.cut(late[0].name, node.name)

        self.zone.call_later(self.rng.uniform(0.05, 0.5), strike)

    def worst_power_cut(self, node: Node) -> None:
        """As many as may be lag behind; then all lose power, one of the others the end of its journal too, and whoever
        could tell comes back last.
        """
        group = self._some_group()
        leader, others = self.zone.leader(group), [other for other in self.zone.nodes.values() if other is not node]
        if leader is None or leader is node or self.removed is not None or self.zone.network.blocked:
            return
        late = [other.name for other in others if other is not leader][: len(others) // 2]
        ways = [(name, other) for name in late for other in self.zone.nodes if other not in late]
        ways += [(other, name) for name, other in ways]
        for way in ways:
            self.zone.network.block(*way)

        def strike() -> None:
            self._unblock(ways)
            if self.zone.is_healed or not self._may_lose(node):
                return
            for each in self.zone.nodes.values():
                each.kill()
                each.disk.power_cut()
                is_last = each is not node and each.name not in late
                self.zone.call_later(2.0 if is_last else 0.2 * self.rng.random(), each.start)
            if files := node.disk.files(_folder(group) + "journal/*.journal"):  # it had a journal already
                damage = node.disk.damage(files[-1:], JOURNAL_END_BYTES)
                node.has_hidden_loss = node.has_hidden_loss or damage.is_hidden
                self.zone.log(f"{node.name}: {damage.what}")

        self.zone.call_later(self.rng.uniform(0.05, 0.5), strike)

    def roll_back(self, node: Node) -> None:
        """The journal is what it was some time ago, all else is as it is now: its checkpoint knows better.

        Without such a witness nobody can tell (`docs/promises.md`).
        """
        if node.is_running and node.disk.backup.exists():
            group = self._some_group()
            if self.copied_index[node.name][group] < node.replica(group).checkpoint_index and self._may_lose(node):
                node.kill()
                node.disk.roll_back(_folder(group) + "journal")
                self.zone.seen["rolled back"] += 1
                self.zone.restart_later(node)
        elif node.is_running:
            assert node.sink is not None
            self.copied_index[node.name] = [replica.journal.last_index for replica in node.sink.replicas]
            node.disk.copy()

    def set_back(self, node: Node) -> None:
        """All of its folder is what it was some time ago, identity and all: only what its peers saw tells.

        So all of them hold all that it did, and have come as far in terms: none is left with which it could elect
        a leader that lacks something.
        """
        if not (node.is_running and node.disk.backup.exists()):
            self.roll_back(node)
            return
        others = [each for each in self.zone.nodes.values() if each is not node]
        have_all = all(
            each.is_running
            and each.parts[group].durable_index >= node.parts[group].durable_index
            and each.replica(group).group.term >= node.replica(group).group.term
            for each in others
            for group in range(self.zone.groups)
        )
        if have_all and self._may_lose(node):
            node.kill()
            node.disk.roll_back()
            node.has_hidden_loss = True
            self.zone.seen["set back"] += 1
            self.zone.restart_later(node)

    def replace_gateway(self, node: Node) -> None:
        self.rng.choice(self.zone.publishers).replace()

    def transfer(self, node: Node) -> None:
        group = self._some_group()
        for leader in self.zone.nodes.values():
            if self.zone.leads(leader, group) and not leader.process.is_paused:
                leader.process.run(leader.replica(group).group.member.transfer)

    # -- members ------------------------------------------------------------------------------------------------------

    def change_members(self, node: Node) -> None:
        """One is taken out, if all are whole; or comes in again."""
        if not self._are_led():
            return
        if self.removed is None and all(each.is_whole for each in self.zone.nodes.values()):
            self.removed = node.name
            self._change_all("", node.name)
        elif self.removed is not None:
            self._change_all(self.removed, "")

    def add_sink(self, node: Node) -> None:
        """A new one is put into the files, all are started again with these; it becomes a member when it is full."""
        if not self._are_led():
            return
        if self.added is None:
            self.added = self.zone.grow()
            for each in self.zone.nodes.values():
                self.zone.call_later(self.rng.random(), lambda each=each: self.stop(each))
            for publisher in self.zone.publishers:
                self.zone.call_later(self.rng.random(), publisher.replace)
        elif self._may_grow():
            self._change_all(self.added, "")

    def _may_grow(self) -> bool:
        """Until the new one is whole it is a member more that cannot vote: all others have to be able to."""
        others = [each for each in self.zone.nodes.values() if each.name != self.added]
        return self.removed is None and all(each.is_whole for each in others)

    def _are_led(self) -> bool:
        return all(leader is not None and not leader.process.is_paused for leader in self.zone.leaders())

    def _change_all(self, add: str, remove: str) -> None:
        """In each group, where it is not so."""
        for group, leader in enumerate(self.zone.leaders()):
            members = leader.replica(group).group.member.members if leader is not None else {}
            if leader is not None and add not in members and (not remove or remove in members):
                leader.process.spawn(self._change(leader, group, add, remove))

    async def _change(self, leader: Node, group: int, add: str, remove: str) -> None:
        try:
            await leader.replica(group).links.operator.change_members(add, remove)
        except (LogError, UnknownOutcome) as error:
            self.zone.log(f"members not changed: {error}")
            return
        self.zone.seen["member_added" if add else "member_removed"] += 1
        self.zone.log(f"members of group {group}: +{add} -{remove}")

    def bring_members_back(self) -> None:
        """After the faults, until all are members."""
        for group, leader in enumerate(self.zone.leaders()):
            members = leader.replica(group).group.member.members if leader is not None else {}
            missing = sorted(self.zone.nodes.keys() - members.keys())
            if leader is not None and missing and all(self.zone.nodes[name].may_vote for name in members):
                leader.process.spawn(self._change(leader, group, missing[0], ""))
        self.zone.call_later(0.5, self.bring_members_back)


def _folder(group: int) -> str:
    """Of a group, below the data folder."""
    return f"group-{group}/" if group else ""
