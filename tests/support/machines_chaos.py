"""Faults at random on two zones of machines (`support.machines`) under load; `make chaos-zones` runs it.

    seed ─► fault, victim ─► it happens ─► both zones acknowledge, events cross ─► ... ─► both hold both logs, whole

Each zone has three sinks, which have a backlog of the other's logs to copy under a bound, and so catch up meanwhile.
None of these faults costs a node its data. SEED replays the choices of a run.
"""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from random import Random

from nats.aio.client import Client

from support.group import Load
from support.machines import (
    BACKLOG_BYTES,
    GATEWAYS,
    WAIT_S,
    Machines,
    Side,
    all_is_in_both,
    keep_backlog,
    other,
    publishing,
    running,
    until_events_cross,
)
from support.processes import client

COPY_BYTES_PER_S = 100_000
BACKLOG_PART = 0.6  # of what can be copied while the faults last
SLOW_BYTES_PER_S = 20e3
SILENCE_S = 0.5, 8.0  # some end before anybody gives a link up, some later


class Chaos:
    def __init__(self, zones: Machines, loads: Mapping[str, Load], random: Random) -> None:
        self._zones, self._loads, self._random = zones, loads, random
        self._begun = time.monotonic()
        self.happened: dict[str, int] = {}

    async def run(self, duration_s: float) -> None:
        while time.monotonic() - self._begun < duration_s:
            fault = self._random.choice(list(FAULTS))
            at_s = time.monotonic() - self._begun
            said = await FAULTS[fault](self)
            for load in self._loads.values():
                await load.goes_on(within_s=WAIT_S)
            await self._events_cross()
            self.happened[fault] = self.happened.get(fault, 0) + 1
            gone_s = time.monotonic() - self._begun - at_s
            acknowledged = {zone: len(load.acknowledged) for zone, load in self._loads.items()}
            print(f"{at_s:6.1f} s  {fault}: {said}; well again after {gone_s:.1f} s, {acknowledged} so far", flush=True)

    async def _events_cross(self) -> None:
        """Between any gateway of one zone and any of the other."""
        here, there = (self._random.choice(names) for names in GATEWAYS.values())
        async with client(self._zones.url(here)) as near, client(self._zones.url(there)) as far:
            await until_events_cross(await Side(near, here).subscribe(), await Side(far, there).subscribe())

    # -- processes ----------------------------------------------------------------------------------------------------

    async def kill_gateway(self) -> str:
        victim = self._random.choice(self._zones.gateways)
        self._zones.kill(victim)
        await asyncio.sleep(self._random.uniform(0, 2))
        await self._zones.start(victim)
        return victim

    async def kill_leader(self) -> str:
        """Whoever leads there mirrors, and is mirrored."""
        return await self._kill_leaders(self._random.choice(list(GATEWAYS)))

    async def kill_leaders(self) -> str:
        return await self._kill_leaders(*GATEWAYS)

    async def _kill_leaders(self, *zones: str) -> str:
        victims = [await self._zones.leader(zone) for zone in zones]
        for victim in victims:
            self._zones.kill(victim)
        await asyncio.sleep(self._random.uniform(0, 3))
        await self._zones.start(*victims)
        return " and ".join(victims)

    # -- cables -------------------------------------------------------------------------------------------------------

    async def unplug_gateway(self) -> str:
        return await self._unplug(self._random.choice(self._zones.gateways))

    async def unplug_leader(self) -> str:
        return await self._unplug(await self._zones.leader(self._random.choice(list(GATEWAYS))))

    async def _unplug(self, victim: str) -> str:
        self._zones.unplug(victim)
        try:
            return f"{victim}, {await self._while()}"
        finally:
            self._zones.plug(victim)

    async def unheard(self) -> str:
        """One node is not heard by another one of its zone, and hears that one."""
        zone = self._random.choice(list(GATEWAYS))
        node, by = self._random.sample([*GATEWAYS[zone], *self._zones.sinks[zone]], 2)
        with self._zones.networks[zone].unheard(node, by):
            return f"{node} by {by}, {await self._while()}"

    # -- between the zones --------------------------------------------------------------------------------------------

    async def cut(self) -> str:
        for wire in self._zones.wires.values():
            wire.cut()
        return "each connection"

    async def part(self) -> str:
        """Whole, or what one zone answers to those that the other one has opened."""
        wires, answers_only = list(self._zones.wires.values()), self._random.random() < 0.5
        if answers_only:
            zone = self._random.choice(list(GATEWAYS))
            wires = [wire for name, wire in self._zones.wires.items() if self._zones.zone_of(name) == zone]
        for wire in wires:
            wire.hold(answers_only=answers_only)
        try:
            what = f"answers of {zone} to {other(zone)}" if answers_only else "both ways"
            return f"{what}, {await self._while()}"
        finally:
            for wire in wires:
                wire.let_go()

    async def slow(self) -> str:
        before = {wire: wire.bytes_per_s for wire in self._zones.wires.values()}
        for wire in before:
            wire.bytes_per_s = SLOW_BYTES_PER_S
        try:
            return f"{SLOW_BYTES_PER_S:.0f} bytes a second, {await self._while()}"
        finally:
            for wire, bytes_per_s in before.items():
                wire.bytes_per_s = bytes_per_s

    async def _while(self) -> str:
        duration_s = self._random.uniform(*SILENCE_S)
        await asyncio.sleep(duration_s)
        return f"for {duration_s:.1f} s"


FAULTS: dict[str, Callable[[Chaos], Coroutine[None, None, str]]] = {
    "SIGKILL of a gateway": Chaos.kill_gateway,
    "SIGKILL of a zone's leader": Chaos.kill_leader,
    "SIGKILL of both leaders": Chaos.kill_leaders,
    "a gateway's cable is out": Chaos.unplug_gateway,
    "a leader's cable is out": Chaos.unplug_leader,
    "one is not heard": Chaos.unheard,
    "the zones' links are cut": Chaos.cut,
    "the zones are parted": Chaos.part,
    "the way between zones is slow": Chaos.slow,
}


async def connected(zones: Machines, opened: contextlib.AsyncExitStack) -> dict[str, Client]:
    """To a gateway of each zone."""
    return {zone: await opened.enter_async_context(client(zones.url(names[0]))) for zone, names in GATEWAYS.items()}


async def main(seed: int, duration_s: float, path: Path) -> None:
    async with contextlib.AsyncExitStack() as opened:
        zones = await opened.enter_async_context(
            running(path, sinks=3, copy_rate=f"{COPY_BYTES_PER_S // 1_000}kB/s", delay_s=0.02, bytes_per_s=5e6)
        )
        loads = {}
        for zone, (first, *others) in GATEWAYS.items():
            ways = [first, *others], [*others, first]
            loads[zone] = await opened.enter_async_context(publishing(zones, *ways, writers=4))
        for zone, reader in (await connected(zones, opened)).items():
            backlog_bytes = BACKLOG_PART * duration_s * COPY_BYTES_PER_S
            await keep_backlog(reader, loads[zone], int(backlog_bytes / BACKLOG_BYTES))
        chaos = Chaos(zones, loads, Random(seed))
        await chaos.run(duration_s)
        for load in loads.values():
            await load.finish()
        counts = await all_is_in_both(await connected(zones, opened), loads)  # the first ones may be gone
    print(f"{counts} events acknowledged, each once and at its offset in both zones")
    for fault, count in sorted(chaos.happened.items()):
        print(f"{count:4}  {fault}")


if __name__ == "__main__":
    chosen = int(os.environ.get("SEED") or Random().randrange(1_000_000))
    print(f"SEED={chosen}", flush=True)
    place = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        asyncio.run(main(chosen, float(os.environ.get("CHAOS_SECONDS") or 120), place))
    except BaseException:
        print(f"SEED={chosen}; what the processes wrote is in {place}", file=sys.stderr)
        raise
    shutil.rmtree(place)
