"""Two Raft groups in a zone of processes: whose leader is killed does not hold up the other, and nothing is lost."""

import asyncio
import contextlib
import itertools
import json
import time
from pathlib import Path

from nats.aio.client import Client
from nats.errors import Error
from support.cli import invoked
from support.events import fetch
from support.group import ProcessZone, leader_of, running
from support.processes import POLL_S, client, until

PARTITIONS = 4
GROUP = [0, 1, 0, 1]  # of each partition of `orders`
WRITERS = 12


class Writers:
    """Each publishes on a subject of its own, one event at a time, again until it is acknowledged."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self.is_over = False
        self.places: dict[bytes, tuple[int, int]] = {}  # payload → (partition, offset)
        self.times: dict[int, list[float]] = {0: [time.monotonic()], 1: [time.monotonic()]}  # of each group's answers
        self.tasks = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]

    async def _write(self, writer: int) -> None:
        for number in itertools.count():
            if self.is_over:
                return
            payload = b"%d/%d" % (writer, number)
            answer = await self._publish(f"orders.{writer}", payload)
            self.places[payload] = answer["partition"], answer["offset"]
            self.times[GROUP[answer["partition"]]].append(time.monotonic())
            await asyncio.sleep(POLL_S)

    async def _publish(self, subject: str, payload: bytes) -> dict[str, int]:
        while True:
            with contextlib.suppress(Error, TimeoutError):
                message = await self._connection.request(
                    subject, payload, 2.0, headers={"Nats-Msg-Id": payload.decode()}
                )
                answer: dict[str, int] = json.loads(message.data)
                if "offset" in answer:
                    return answer
            await asyncio.sleep(POLL_S)

    async def go_on(self, count: int = 100) -> None:
        """Until each group has acknowledged so many more events."""
        wanted = {group: len(times) + count for group, times in self.times.items()}
        await until(lambda: all(len(self.times[group]) >= wanted[group] for group in wanted), "both go on")

    def longest_gap(self, group: int, since: float) -> tuple[float, float]:
        """When it began and ended."""
        times = [since, *(at for at in self.times[group] if at > since)]
        return max(itertools.pairwise(times), key=lambda gap: gap[1] - gap[0])

    async def finish(self) -> None:
        self.is_over = True
        async with asyncio.timeout(60):
            await asyncio.gather(*self.tasks)


async def leader(zone: ProcessZone, group: int) -> str:
    deadline = time.monotonic() + 60
    while not (name := leader_of(await zone.status(group))):
        assert time.monotonic() < deadline, f"nobody leads group {group}"
        await asyncio.sleep(POLL_S)
    return name


async def are_level(zone: ProcessZone) -> None:
    """All sinks have applied the same, in both groups."""
    deadline = time.monotonic() + 60
    for group in (0, 1):
        while len({one.get("applied_index") for one in (await zone.status(group)).values()}) > 1:
            assert time.monotonic() < deadline, f"group {group} is not level"
            await asyncio.sleep(POLL_S)


async def moved(zone: ProcessZone) -> str:
    """Who leads group 1 now, by an operator's hand, and neither did before nor leads group 0."""
    deadline = time.monotonic() + 60
    while (of_0 := await leader(zone, 0)) == (of_1 := await leader(zone, 1)):
        assert time.monotonic() < deadline, "the leaders do not spread by themselves"
        await asyncio.sleep(POLL_S)
    to = next(name for name in zone.names if name not in (of_0, of_1))
    file = str(zone.folder.path / "mesh.toml")
    ran = await invoked("sinks", "lead", to, "--group", "1", "--config", file, "--timeout", "30s")
    assert ran.lines == [f"sink {to} leads group 1 of zone eu"]
    return to


async def test_the_leader_of_one_group_is_killed(tmp_path: Path) -> None:
    again = {"allow_reconnect": True, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.05}
    async with running(tmp_path, groups=2, partitions=PARTITIONS) as zone:
        async with client(zone.url("gw1"), **again) as connection:
            writers = Writers(connection)
            victim = await moved(zone)
            await writers.go_on()
            killed_at = time.monotonic()
            zone.kill(victim)
            await writers.go_on()
            begin, end = writers.longest_gap(1, killed_at)
            meanwhile = sum(begin < at < end for at in writers.times[0])
            print(f"group 1 acknowledged nothing for {end - begin:.3f} s, group 0 meanwhile {meanwhile} events")
            assert meanwhile > 10
            assert await leader(zone, 1) != victim
            await zone.start(victim)
            await writers.go_on()
            await writers.finish()
            await are_there(connection, writers.places)
        await are_level(zone)
        status = await invoked("status", "--config", str(tmp_path / "mesh.toml"), "--timeout", "30s")
        assert [line.partition(": ")[0] for line in status.lines if line.startswith("zone ")] == [
            "zone eu, group 0",
            "zone eu, group 1",
        ]
        rows = [line.split() for line in status.lines if line.startswith("orders/")]
        assert [int(row[1]) for row in rows] == GROUP
        ends = [1 + max(offset for number, offset in writers.places.values() if number == n) for n in range(PARTITIONS)]
        assert [row[3:6] for row in rows] == [[str(end)] * 3 for end in ends]


async def are_there(connection: Client, places: dict[bytes, tuple[int, int]]) -> None:
    """Every acknowledged event at its offset, and nothing else."""
    for partition in range(PARTITIONS):
        wanted = {offset: payload for payload, (number, offset) in places.items() if number == partition}
        log = await log_of(connection, partition)
        assert log == [wanted[offset] for offset in range(len(wanted))], partition


async def log_of(connection: Client, partition: int) -> list[bytes]:
    """Its payloads. Who leads may change meanwhile: with the killed sink back, leaders spread again."""
    deadline = time.monotonic() + 60
    log: list[bytes] = []
    while True:
        fetched = await fetch(connection, "orders", partition, offset=len(log))
        log += [event.payload for event in fetched.events]
        if fetched.status == "204" and len(log) == fetched.high_watermark:
            return log
        assert time.monotonic() < deadline, fetched.headers
        await asyncio.sleep(POLL_S)
