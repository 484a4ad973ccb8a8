"""A gateway with a spool as a process: killed under load, and what it acknowledged is in the log once."""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from random import Random

from support.events import Lost, Publisher, everything, published
from support.processes import Daemon, Folder, client, until

LOGGED = '[streams.text]\nsubjects = ["text.>"]\nack = "logged"\noutbox = { bytes = "32MiB" }'
SPOOL = 'spool = "spool"'


def spool_files(folder: Folder, worker: int = 0) -> list[Path]:
    return sorted((folder.path / "spool" / str(worker)).glob("*.spool*"))


async def load(folder: Folder, publishers: list[Publisher], gateway: Daemon, answers: int, sizes: int) -> None:
    """Publishes with a `logged` acknowledgement each, as fast as it goes; kills the gateway after so many answers."""
    first = sum(len(each.sent) for each in publishers)
    async with client(folder.url) as connection:
        publisher = await Publisher(connection, "text.a", window=2_000).open()
        publishers.append(publisher)
        killing = asyncio.create_task(kill(gateway, publisher, answers))
        with contextlib.suppress(Lost):
            for number in range(first, first + 1_000_000):
                await publisher.send(number, b"%d" % number + bytes(sizes))
        await killing


async def kill(gateway: Daemon, publisher: Publisher, answers: int) -> None:
    await until(lambda: len(publisher.answers) >= answers, "it acknowledges", 60)
    gateway.kill()


async def check(folder: Folder, publishers: list[Publisher]) -> None:
    """All that was acknowledged is in the log, nothing twice, nothing unknown, in order."""
    acknowledged = {number for each in publishers for number in each.acknowledged}
    sent = {number for each in publishers for number in each.sent}
    await until_empty(folder)
    async with client(folder.url) as connection:
        log = await everything(connection, "text")
    numbers = [int(event.payload.rstrip(b"\0")) for event in log if event.subject == "text.a"]
    assert [number for number, count in Counter(numbers).items() if count > 1] == []
    assert sorted(acknowledged - set(numbers)) == []
    assert set(numbers) <= sent
    assert numbers == sorted(numbers)
    assert len(acknowledged) >= 500


async def until_empty(folder: Folder) -> None:
    async with asyncio.timeout(60):
        while (await folder.varz())["spool"]["events"]:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)


async def test_what_was_acknowledged_without_a_sink_outlives_the_gateway(folder: Folder) -> None:
    folder.write_config(LOGGED, gateway=SPOOL)
    sink = await folder.sinkd()
    gateway = await folder.gateway()
    async with client(folder.url) as connection:
        assert (await published(connection, "text.first", b"0"))["ack"] == "logged"
    sink.kill()
    publishers: list[Publisher] = []
    for _ in range(2):
        await load(folder, publishers, gateway, 2_000, sizes=100)
        gateway = await folder.gateway()
        assert (await folder.varz())["spool"]["events_restored"] >= sum(len(each.acknowledged) for each in publishers)
    await folder.sinkd()
    await check(folder, publishers)
    assert await gateway.stop() == 0
    assert spool_files(folder) == []


async def test_killed_at_any_moment_it_sends_again_what_has_not_arrived_and_nothing_else(folder: Folder) -> None:
    """The sink is there: batches are on their way, arrived or not, and answers too."""
    folder.write_config(LOGGED, gateway=SPOOL)
    await folder.sinkd()
    gateway = await folder.gateway()
    publishers: list[Publisher] = []
    random = Random()
    for _ in range(3):
        await load(folder, publishers, gateway, random.randint(200, 3_000), sizes=random.choice([0, 1_000, 20_000]))
        gateway = await folder.gateway()
    await check(folder, publishers)
    assert await gateway.stop() == 0
    assert spool_files(folder) == []


async def test_a_stop_without_a_sink_keeps_what_is_left(folder: Folder) -> None:
    folder.write_config(LOGGED, gateway=SPOOL)
    gateway = await folder.gateway()
    async with client(folder.url) as connection:
        assert (await published(connection, "text.a", b"kept"))["ack"] == "logged"
    assert await gateway.stop() == 0
    assert "outbox_kept" in gateway.complaints
    gateway = await folder.gateway()
    assert "spool_restored" in gateway.complaints
    await folder.sinkd()
    await until_empty(folder)
    async with client(folder.url) as connection:
        assert [event.payload for event in await everything(connection, "text")] == [b"kept"]


async def test_one_process_has_a_spool(folder: Folder) -> None:
    folder.write_config(LOGGED, gateway=SPOOL)
    await folder.gateway()
    folder.client_port, folder.monitor_port = folder.sink_monitor_port, 0
    folder.write_config(LOGGED, gateway=SPOOL)
    second = folder.run("gateway", "--config", "mesh.toml", "--node", "gw1")
    assert await second.ended() == 1
    assert "spool/0 is in use by another process" in second.complaints


async def test_each_worker_has_a_spool_of_its_own(folder: Folder) -> None:
    folder.write_config(LOGGED, gateway=f"{SPOOL}\nworkers = 2")
    gateway = await folder.gateway()
    wanted = set()
    for number in range(40):
        async with client(folder.url) as connection:
            assert (await published(connection, "text.a", b"%d" % number))["ack"] == "logged"
        wanted.add(b"%d" % number)
    assert all(spool_files(folder, worker) for worker in (0, 1))
    workers = [worker["pid"] for worker in (await folder.varz())["workers"]]
    gateway.kill()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "its workers end")

    folder.write_config(LOGGED, gateway=SPOOL)
    one = folder.run("gateway", "--config", "mesh.toml", "--node", "gw1")
    assert await one.ended() == 1
    assert "holds events of worker 1, and this gateway has 1: start it with workers = 2" in one.complaints

    folder.write_config(LOGGED, gateway=f"{SPOOL}\nworkers = 2")
    await folder.gateway()
    await folder.sinkd()
    async with asyncio.timeout(60):  # the workers come up one after the other
        while (await folder.varz())["spool"]["events_restored"] < 40:  # noqa: ASYNC110 - some are the audit stream's
            await asyncio.sleep(0.05)
    await until_empty(folder)
    async with client(folder.url) as connection:
        assert {event.payload for event in await everything(connection, "text")} == wanted
