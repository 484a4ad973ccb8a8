"""Two zones of sinks, whole and real, on disks that fail: each mirrors what the other keeps (`simulation.zone`).

    gateways ─► z: s1 s2 s3 ◄── links between zones: slow, blocked one way or both, cut ──► w: w1 w2 w3

To what `simulation.zone` has, real are here both ends of the links between zones and all that decides about mirrors.
Both zones have faults of their own mixture: machines, disks, members that do not hear each other. Nobody publishes in
w; its `$AUDIT` goes the other way.

What must hold beyond what holds in each zone: a mirror takes the very batches that its origin has committed, at the
same offsets, or a gap where retention has let go of them; what an origin is told is durable, the mirror holds for good,
whatever becomes of disks. In the end each mirror is level, and every sink of both zones reads it so from its disk.
"""

import argparse
import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

from protocol import config, limits, link
from simulation.virtual import Process
from simulation.zone import Zone
from simulation.zone_audit import is_promised
from simulation.zone_faults import KINDS, Faults
from simulation.zone_nodes import JOURNAL_FILE_BYTES, STREAMS, configuration
from simulation.zone_watch import Watch
from sinkd.shell import completing, feeds, mirrors, zone_links
from sinkd.shell.feeds import Feeds

IN_ONE_ZONE = ("add_sink", "change_members")  # faults that change the files, or wait for a gateway's
BETWEEN = ("far_cut", "far_block", "far_block", "far_slow")
FAR_INTERVALS_S = (0.1, 0.3, 1.0)
SEGMENT_BYTES = 2 * 1024
BRIEF = STREAMS.replace('"16KiB"', '"3KiB"') + 'hold_for_zones = { bytes = "5KiB", age = "1h" }\n'
SMALL = {
    "MIRROR_FRAME_BYTES": 4 * 1024,
    "MIRROR_FRAME_BYTES_MIN": 1024,
    "MIRROR_WINDOW_BYTES": 16 * 1024,
    "MIRROR_TAIL_BYTES": 8 * 1024,
    "MIRROR_TELL_MS": 200,
    "MIRROR_LOOK_MS": 50,
    "MIRROR_SILENCE_MS_MAX": 1_000,
    "MIRROR_RETRY_MS_MAX": 200,
    "LINK_DIAL_MS_MAX": 300,
    "LINK_RETRY_MS_MAX": 100,
}


class Far(Zone):
    """Zone w: beside `near` on the same loop and network, in the same folder."""

    name, segment_bytes = "w", SEGMENT_BYTES

    def __init__(self, near: "Pair", sinks: int, kinds: tuple[str, ...] | None) -> None:
        self.near, self.seed, self.trace, self.groups = near, near.seed, near.trace, near.groups
        self.rng = random.Random(near.rng.random())
        self.loop, self.network, self.disks, self.folder = near.loop, near.network, near.disks, near.folder
        self.audit = self._audit()
        self.seen, self.is_healed, self.violation = near.seen, False, None
        self.nodes, self.publishers = {}, []
        for number in range(1, sinks + 1):
            self._add_node(number)
        self.faults = Faults(self, self.rng, kinds)
        self.journal_file_bytes = self.rng.choice(JOURNAL_FILE_BYTES)
        self._stack = ExitStack()

    def begin(self) -> None:
        for node in self.nodes.values():
            self.call_later(self.rng.random(), node.start)


class Pair(Zone):
    """Zone z, where gateways publish; `far` is the other one."""

    segment_bytes = SEGMENT_BYTES

    def __init__(self, seed: int, *, sinks: int = 3, kinds: tuple[str, ...] | None = None, trace: bool = False) -> None:
        super().__init__(seed, sinks=sinks, groups=1, kinds=kinds, trace=trace)
        self.far = Far(self, 3, kinds)
        self.configuration = self.far.configuration = self._both()
        self.audit.origin, self.far.audit.origin = self.far.audit, self.audit
        self.zones: dict[str, Zone] = {"z": self, "w": self.far}
        between = self.rng.sample(BETWEEN, self.rng.choice((1, 2, 4))) if kinds is None else kinds
        for zone in self.zones.values():
            zone.faults.kinds = tuple(each for each in zone.faults.kinds if each in _LOCAL and each not in IN_ONE_ZONE)
        self.far.faults.kinds = tuple(each for each in self.far.faults.kinds if each != "replace_gateway")
        self.between = tuple(each for each in between if each in BETWEEN)
        self.far_interval_s = self.rng.choice(FAR_INTERVALS_S)

    def _both(self) -> config.Config:
        return configuration(self.folder, {"z": len(self.nodes), "w": len(self.far.nodes)}, self.groups, BRIEF)

    def __enter__(self) -> "Pair":
        super().__enter__()
        for patch in (*_patches(), *Watch(self.far).patches(), self._watch_of_what_is_told()):
            self._stack.enter_context(patch)
        return self

    def __exit__(self, *what: object) -> None:
        for node in self.far.nodes.values():
            node.kill()
        super().__exit__(*what)

    # -- both zones ---------------------------------------------------------------------------------------------------

    def _note(self, logger: Any, method: str, event: dict[str, Any]) -> Any:
        if not event["event"].startswith("link_"):
            self.far.faults.something_happened()
        return super()._note(logger, method, event)

    def _died(self, process: Process) -> None:
        super()._died(process) if process.name in self.nodes else self.far._died(process)

    def _begin_faults(self) -> None:
        super()._begin_faults()
        self.far.faults.begin()
        if self.between:
            self._come_between()

    def run(self, seconds: float = 3.0) -> None:
        self.far.begin()
        super().run(seconds)

    def heal(self) -> None:
        super().heal()
        self.far.heal()

    def _has_failed(self) -> bool:
        self.violation = self.violation or self.far.violation
        return super()._has_failed()

    def _is_settled(self) -> bool:
        zones_are = super()._is_settled() and self.far._is_settled()
        return zones_are and not any(zone.audit.lacks() for zone in self.zones.values())

    def _why_unsettled(self) -> str:
        lacks = [f"mirrors in {name} lack {zone.audit.lacks()}" for name, zone in self.zones.items()]
        stalled = [
            f"{node.who}: {row}"
            for zone in self.zones.values()
            for node in zone.nodes.values()
            if node.is_running and node.sink is not None
            for row in node.sink.mirroring.rows()
        ]
        return "\n".join((super()._why_unsettled(), self.far._why_unsettled(), *lacks, *stalled))

    def _compare_logs(self) -> bool:
        self.far.reader = self.reader  # what has failed there has failed
        return super()._compare_logs() and self.far._compare_logs()

    # -- between them -------------------------------------------------------------------------------------------------

    def _come_between(self) -> None:
        if self.is_healed:
            return
        self.call_later(self.rng.expovariate(1 / self.far_interval_s), self._come_between)
        kind = self.rng.choice(self.between)
        self.log(kind)
        self.seen[kind] += 1
        getattr(self, kind)()

    def _ways(self) -> list[tuple[str, str]]:
        there = [(one, other) for one in self.nodes for other in self.far.nodes]
        back = [(other, one) for one, other in there]
        return self.rng.choice((there, back, there + back))

    def far_cut(self) -> None:
        self.network.cut(self.rng.choice(list(self.nodes)), self.rng.choice(list(self.far.nodes)))

    def far_block(self) -> None:
        ways = self._ways()
        for way in ways:
            self.network.block(*way)
        unblock: Callable[[], None] = lambda: [self.network.unblock(*way) for way in ways] and None  # noqa: E731
        self.call_later(self.rng.choice((0.1, 0.5, 1.5)), unblock)

    def far_slow(self) -> None:
        ways, slow_s = self._ways(), self.network.slow_s
        for way in ways:
            slow_s[way] = self.rng.choice((0.02, 0.2))
        quicken: Callable[[], None] = lambda: [slow_s.pop(way, None) for way in ways] and None  # noqa: E731
        self.call_later(self.rng.choice((0.3, 1.0)), quicken)

    def _watch_of_what_is_told(self) -> Any:
        """What a mirror has called durable, it holds."""
        durable = Feeds.durable

        def watched(feeds: Feeds, message: link.Durable) -> None:
            served = feeds._served.get(message.subscription)
            if served is not None:
                key = served.partition.stream.incarnation, served.partition.number
                audit, what = self.zones[feeds._zone].audit, f"durable through {message.through} of {key[0].hex()[:8]}"
                self.watch._look(is_promised, audit.is_durable(key, message.through), f"{what} was told, it is not")
            durable(feeds, message)

        return mock.patch.object(Feeds, "durable", watched)

    def watches(self) -> list[Any]:
        self.watch = Watch(self)
        return self.watch.patches()


_LOCAL = (*KINDS, "worst_power_cut")


def _patches() -> list[Any]:
    modules = (mirrors, feeds, completing, zone_links)
    small = [
        mock.patch.object(module, name, value)
        for module in modules
        for name, value in SMALL.items()
        if hasattr(module, name)
    ]
    return [*small, mock.patch.object(limits, "HELD_TELL_MS", 1)]


def main() -> None:
    """Replays one seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--trace", action="store_true", help="print every fault and every line of the sinks' logs")
    arguments = parser.parse_args()
    with Pair(arguments.seed, trace=arguments.trace) as pair:
        pair.run()
    for name, zone in pair.zones.items():
        audit = zone.audit
        print(f"zone {name}: {len(audit.groups[0].entries)} entries, {audit.mirrored} mirrored, {audit.gaps} gaps")
    print(f"{len(pair.audit.events)} events, {pair.audit.acknowledged} acknowledged, {pair.audit.refused} refused")
    print(f"{pair.loop.callbacks} callbacks in {pair.loop.now:.6f} s")


if __name__ == "__main__":
    main()
