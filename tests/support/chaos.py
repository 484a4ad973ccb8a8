"""Faults at random on a zone of processes (`support.group`) under load; `make chaos` runs it, SEED replays its choices.

    seed ─► fault, victim ─► it happens ─► events are acknowledged again ─► ... ─► every sink holds the same, all of it

A fault that costs a sink its data comes only when all three are whole, and is over when they are whole again: so much a
group of three promises to bear. Faults that cost no data follow each other at once. A sink that ends by itself ends the
run: none of these faults is a reason to.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from random import Random

from support.group import GATEWAYS, Load, ProcessZone, nothing_is_lost, publishing, running

DISK_MIB = 400
DATA_SUFFIXES = (".journal", ".segment", ".index")


class Chaos:
    """`full_disk` is the sink whose data folder is a file system of its own, "" if none is."""

    def __init__(self, zone: ProcessZone, load: Load, random: Random, full_disk: str = "") -> None:
        self._zone, self._load, self._random, self._full_disk = zone, load, random, full_disk
        self._begun = time.monotonic()
        self.gaps_s: dict[str, float] = {}  # the longest without an acknowledgement, by fault

    async def run(self, duration_s: float) -> None:
        names = [name for name in FAULTS if name != "full disk" or self._full_disk]
        while time.monotonic() - self._begun < duration_s:
            await self.happen(self._random.choice(names))
            await asyncio.sleep(self._random.uniform(0, 1))

    async def happen(self, fault: str) -> float:
        """The longest time without an acknowledgement, from the fault on until events flow again, in seconds."""
        if fault in LOSSES:
            await self._zone.whole()
        at, leader = time.monotonic(), await self._zone.leader()
        victim = self._random.choice(self._zone.names)
        if fault.endswith("the leader"):
            victim = leader
        said = await FAULTS[fault](self, victim)
        await self._load.goes_on()
        gap_s = self._load.gap_s(at)
        if fault in LOSSES:
            await self._zone.whole()
            for folder in self._zone.data.values():  # what was set aside is for people to look at, and takes space
                shutil.rmtree(folder / "damaged", ignore_errors=True)
        ended = [name for name, daemon in self._zone.daemons.items() if daemon.has_ended]
        assert not ended, {name: self._zone.daemons[name].complaints[-2000:] for name in ended}
        self.gaps_s[fault] = max(gap_s, self.gaps_s.get(fault, 0.0))
        role = "leader" if victim == leader else "follower"
        acknowledged = len(self._load.acknowledged)
        print(
            f"{at - self._begun:6.1f} s  {fault} ({victim}, {role}){said and ': ' + said}; "
            f"{gap_s:.2f} s without an acknowledgement, {acknowledged} so far",
            flush=True,
        )
        return gap_s

    # -- processes ----------------------------------------------------------------------------------------------------

    async def kill(self, victim: str) -> str:
        self._zone.kill(victim)
        await self._pause(1)
        await self._zone.start(victim)
        return ""

    async def kill_all(self, _: str) -> str:
        for name in self._zone.names:
            self._zone.kill(name)
        await self._zone.start()
        return ""

    async def kill_gateway(self, _: str) -> str:
        gateway = self._random.choice(GATEWAYS)
        self._zone.kill(gateway)
        await self._zone.start_gateway(gateway)
        return gateway

    async def freeze(self, victim: str) -> str:
        duration_s = self._random.uniform(0.2, 4)
        self._zone.daemons[victim].send(signal.SIGSTOP)
        await asyncio.sleep(duration_s)
        self._zone.daemons[victim].send(signal.SIGCONT)
        return f"for {duration_s:.1f} s"

    async def terminate(self, victim: str) -> str:
        await self._zone.stop(victim)
        await self._pause(1)
        await self._zone.start(victim)
        return ""

    async def restart_one_by_one(self, _: str) -> str:
        for name in self._zone.names:
            await self._zone.whole()
            await self._zone.stop(name)
            await self._zone.start(name)
        return ""

    async def part(self, victim: str) -> str:
        from_gateways, duration_s = self._random.random() < 0.5, self._random.uniform(0.5, 4)
        with self._zone.parted(victim, from_gateways=from_gateways):
            await asyncio.sleep(duration_s)
        return f"for {duration_s:.1f} s, {'from gateways and' if from_gateways else 'only from'} sinks"

    # -- disks --------------------------------------------------------------------------------------------------------

    async def fill_disk(self, _: str) -> str:
        """All space of the one small disk is taken for a while; if its sink leads, nothing is taken meanwhile."""
        duration_s, role = self._random.uniform(1, 3), "leader" if await self._leads(self._full_disk) else "follower"
        ballast = self._zone.data[self._full_disk] / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        await self._zone.until(lambda status: bool(status[self._full_disk].get("storage_full")), "the sink notices")
        await asyncio.sleep(duration_s)
        ballast.unlink()
        await self._zone.until(lambda status: status[self._full_disk].get("storage_full") is False, "it goes on")
        return f"that of {self._full_disk}, a {role}, for {duration_s:.1f} s"

    async def _leads(self, name: str) -> bool:
        return await self._zone.leader() == name

    async def wipe(self, victim: str) -> str:
        self._zone.kill(victim)
        self._zone.wipe(victim)
        await self._pause(1)
        await self._zone.start(victim)
        return ""

    async def flip(self, victim: str) -> str:
        self._zone.kill(victim)
        file, size_bytes = self._choose_file(victim)
        data = bytearray(file.read_bytes())
        position = self._random.randrange(size_bytes)
        data[position] ^= 1 << self._random.randrange(8)
        file.write_bytes(data)
        await self._damaged(victim)
        return f"byte {position} of {size_bytes} in {file.relative_to(self._zone.data[victim])}"

    async def truncate(self, victim: str) -> str:
        self._zone.kill(victim)
        file, size_bytes = self._choose_file(victim)
        length = self._random.randrange(size_bytes)
        os.truncate(file, length)
        await self._damaged(victim)
        return f"to {length} of {size_bytes} bytes: {file.relative_to(self._zone.data[victim])}"

    async def roll_back(self, victim: str) -> str:
        """The others live on: of them is remembered what the disk held."""
        only_journal = self._random.random() < 0.5
        await self._zone.stop(victim)
        data, copy = self._zone.data[victim], self._zone.folder.path / "copy"
        shutil.copytree(data, copy)
        await self._zone.start(victim)
        await self._zone.whole()
        await self._load.goes_on(50)
        await self._zone.whole()
        self._zone.kill(victim)
        if only_journal:
            shutil.rmtree(data / "journal")
            shutil.copytree(copy / "journal", data / "journal")
        else:
            self._zone.wipe(victim)
            shutil.copytree(copy, data, dirs_exist_ok=True)
        shutil.rmtree(copy)
        await self._damaged(victim)
        return "the journal" if only_journal else "the whole folder"

    def _choose_file(self, victim: str) -> tuple[Path, int]:
        """One of the sink's files, and how much of it was written."""
        folder = self._zone.data[victim]
        files = [
            path for path in sorted(folder.rglob("*")) if path.suffix in DATA_SUFFIXES or path.name == "checkpoint"
        ]
        written = {path: len(path.read_bytes().rstrip(b"\0")) for path in files}
        return self._random.choice([(path, size_bytes) for path, size_bytes in written.items() if size_bytes])

    async def _damaged(self, victim: str) -> None:
        """Starts it and reads all that it holds: what nobody has read yet, nobody knows to be damaged."""
        await self._zone.start(victim)
        with contextlib.suppress(AssertionError, ConnectionError):
            await self._zone.contents(victim)

    async def _pause(self, most_s: float) -> None:
        await asyncio.sleep(self._random.uniform(0, most_s))


FAULTS: dict[str, Callable[[Chaos, str], Coroutine[None, None, str]]] = {
    "SIGKILL": Chaos.kill,
    "SIGKILL of the leader": Chaos.kill,
    "SIGKILL of all": Chaos.kill_all,
    "SIGKILL of a gateway": Chaos.kill_gateway,
    "SIGSTOP": Chaos.freeze,
    "SIGSTOP of the leader": Chaos.freeze,
    "SIGTERM": Chaos.terminate,
    "SIGTERM of the leader": Chaos.terminate,
    "rolling restart": Chaos.restart_one_by_one,
    "partition": Chaos.part,
    "partition of the leader": Chaos.part,
    "full disk": Chaos.fill_disk,
    "wiped disk": Chaos.wipe,
    "flipped bit": Chaos.flip,
    "truncated file": Chaos.truncate,
    "rolled back": Chaos.roll_back,
}
LOSSES = {"wiped disk", "flipped bit", "truncated file", "rolled back"}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """Makes `folder` a file system of its own until the end; "" or why that cannot be done here."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    try:
        yield mounted.stderr.decode().strip() if mounted.returncode else ""
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", str(folder)], check=True)


async def main(seed: int, duration_s: float, path: Path) -> None:
    disk = path / "small"
    with small_disk(disk) as problem:
        if problem:
            print(f"no full disks: {problem}")
        async with running(path, {} if problem else {"s3": disk}) as zone:
            async with publishing(zone) as load:
                chaos = Chaos(zone, load, Random(seed), "" if problem else "s3")
                await chaos.run(duration_s)
            length = await nothing_is_lost(zone, load)
    print(f"{length} events acknowledged, each on every sink, once and in order; {load.repeated} were published again")
    for fault, gap_s in sorted(chaos.gaps_s.items()):
        print(f"{gap_s:8.2f} s at most without an acknowledgement: {fault}")


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
