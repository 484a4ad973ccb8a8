"""`gateway` and `sinkd` as two processes that die, stop and come back at any time."""

import asyncio
import json
import signal
from pathlib import Path
from random import Random

import pytest
from nats.aio.client import Client
from support.events import Publisher, everything, fetch, published
from support.processes import Daemon, Folder, client, folder_at, free_ports, settle, until
from support.proxy import Wire

TEXT = '[streams.text]\nsubjects = ["text.>"]\nreply = "header"'
ACKNOWLEDGED = '[streams.text]\nsubjects = ["text.>"]'


async def started(folder: Folder, streams: str = TEXT, revision: int = 1) -> tuple[Daemon, Daemon]:
    """(gateway, sink), both serving and linked."""
    folder.write_config(streams, mesh=f'name = "acme"\nrevision = {revision}')
    gateway, sink = await folder.both()
    async with client(folder.url) as connection, asyncio.timeout(60):
        while not await _holds(connection, 0):  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)
    return gateway, sink


async def payloads(connection: Client, count: int) -> list[bytes]:
    """The whole log, once the sink has come (back) and it holds `count` events, or more after all."""
    async with asyncio.timeout(60):
        while not await _holds(connection, count):  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)
    return [event.payload for event in await everything(connection, "text")]


async def _holds(connection: Client, count: int) -> bool:
    end = await fetch(connection, "text", offset=0, max_records=1)
    return end.status != "503" and end.high_watermark >= count


async def publish_all(connection: Client, wanted: list[bytes], pause_s: float = 0.0) -> None:
    """Without a reply: nobody is told what becomes of them. They are taken in when this returns."""
    for number, payload in enumerate(wanted):
        await connection.publish("text.a", payload)
        if number % 100 == 99:
            await connection.flush(60)
            await asyncio.sleep(pause_s)
    await settle(connection)


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


# -- SIGKILL ----------------------------------------------------------------------------------------------------------


async def test_what_a_gateway_took_in_outlives_deaths_of_the_sink(folder: Folder) -> None:
    """Events without a reply are kept in the outbox, and stand in the log once and in order."""
    gateway, sink = await started(folder)
    random, enough = Random(), asyncio.Event()
    async with client(folder.url) as connection:
        publishing = asyncio.create_task(_publish_until(connection, enough))
        for _ in range(4):
            await asyncio.sleep(0.1 + random.random() * 0.2)
            sink.kill()  # mostly within a sync: what it wrote is in the log, and its answer never came
            sink = await folder.sinkd()
        enough.set()
        wanted = numbered(await publishing)
        assert await payloads(connection, len(wanted)) == wanted
    assert not gateway.has_ended


async def _publish_until(connection: Client, enough: asyncio.Event) -> int:
    """Publishes numbers, one by one, so that the sink is always in a sync; how many."""
    count = 0
    while not enough.is_set():
        await connection.publish("text.a", b"%d" % count)
        await connection.flush(60)
        count += 1
    await settle(connection)
    return count


async def test_an_answer_that_died_with_the_sink_comes_from_the_next_one(folder: Folder) -> None:
    """Sent to a sink and not answered: not refused, for it may be in the log; asked again when there is a sink."""
    _, sink = await started(folder, ACKNOWLEDGED)
    async with client(folder.url) as connection:
        assert (await published(connection, "text.a", b"before"))["offset"] == 0
        sink.send(signal.SIGSTOP)
        publisher = await Publisher(connection, "text.a").open()
        for number in range(50):
            await publisher.send(number, b"%d" % number)
        await settle(connection)
        await asyncio.sleep(0.5)  # they are on their way to it by then
        sink.kill()
        await asyncio.sleep(0.2)
        assert publisher.answers == {}
        await folder.sinkd()
        await publisher.settle()
        assert [answer["offset"] for answer in publisher.answers.values()] == list(range(1, 51))
        assert await payloads(connection, 51) == [b"before", *numbered(50)]


@pytest.mark.parametrize("answered", [True, False], ids=["under acknowledgement", "without a reply"])
async def test_a_lost_answer_makes_no_duplicate(folder: Folder, answered: bool) -> None:
    """The sink has the events, and the link breaks before the gateway hears of it."""
    (wire_port,) = free_ports(1)
    sink_port, folder.link_port = folder.link_port, wire_port
    folder.write_config(ACKNOWLEDGED)
    await folder.gateway()
    folder.link_port = sink_port
    folder.write_config(ACKNOWLEDGED)
    await folder.sinkd()
    async with Wire(wire_port, sink_port) as wire, client(folder.url) as connection:
        assert await payloads(connection, 0) == []
        assert (await published(connection, "text.a", b"before"))["offset"] == 0
        publisher = await Publisher(connection, "text.a").open()
        wire.swallows_answers = True
        for number in range(50):
            if answered:
                await publisher.send(number, b"%d" % number)
            else:
                await connection.publish("text.a", b"%d" % number)
        await settle(connection)
        await until(lambda: find_last(folder, b"49"), "the sink has them")
        assert publisher.answers == {}
        wire.swallows_answers = False
        wire.cut()
        await publisher.settle()
        assert [answer["offset"] for answer in publisher.answers.values()] == list(range(1, 51))[: 50 * answered]
        assert (await published(connection, "text.a", b"after"))["offset"] == 51
        assert await payloads(connection, 52) == [b"before", *numbered(50), b"after"]


def find_last(folder: Folder, payload: bytes) -> bool:
    """Whether a record with `payload` as its value is in a segment."""
    return any(bytes([2 * len(payload)]) + payload in path.read_bytes() for path in folder.files(".segment"))


async def test_without_a_sink_a_publisher_is_told_so_and_the_event_is_never_in_the_log(folder: Folder) -> None:
    _, sink = await started(folder, ACKNOWLEDGED)
    async with client(folder.url) as connection:
        assert (await published(connection, "text.a", b"before"))["offset"] == 0
        sink.kill()
        async with asyncio.timeout(60):  # what the gateway sent before it knows may be in the log: never refused
            while (await fetch(connection, "text", offset=0)).status != "503":  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        await connection.publish("text.a", b"nobody waits for me")
        begun = asyncio.get_running_loop().time()
        answer = await published(connection, "text.a", b"never")
        assert asyncio.get_running_loop().time() - begun > 4
        assert (answer["error"]["code"], answer["error"]["err_code"]) == (503, 10077)
        at_once = await published(connection, "text.a", b"never either")
        assert at_once["error"]["err_code"] == 10077
        assert (await fetch(connection, "text", offset=0)).headers["Description"] == "LEADER_NOT_AVAILABLE"
        await folder.sinkd()
        assert await payloads(connection, 2) == [b"before", b"nobody waits for me"]
        assert (await published(connection, "text.a", b"after"))["offset"] == 2
        assert await payloads(connection, 3) == [b"before", b"nobody waits for me", b"after"]


async def test_the_sink_outlives_deaths_of_the_gateway(folder: Folder) -> None:
    """Everything acknowledged is there; of the rest, what was sent, in order."""
    gateway, sink = await started(folder, ACKNOWLEDGED)
    acknowledged: list[bytes] = []
    for life in range(3):
        async with client(folder.url) as connection:
            publisher = await Publisher(connection, "text.a", window=200).open()
            for number in range(200):
                await publisher.send(number, b"%d/%d" % (life, number))
            await until(lambda: len(publisher.answers) > 50, "answers")  # noqa: B023 - it ends before the next life
            gateway.kill()
        offsets = {answer["offset"]: publisher.sent[number] for number, answer in publisher.answers.items()}
        gateway = await folder.gateway()
        async with client(folder.url) as connection:
            log = await payloads(connection, 0)
        assert all(log[offset] == payload for offset, payload in offsets.items())
        new = log[len(acknowledged) :]
        assert new == [b"%d/%d" % (life, number) for number in range(len(new))]
        acknowledged = log
    assert not sink.has_ended


# -- SIGTERM ----------------------------------------------------------------------------------------------------------


async def test_stopping_gateway_then_sink_loses_nothing_that_was_taken_in(folder: Folder) -> None:
    gateway, sink = await started(folder)
    wanted = numbered(20_000)
    async with client(folder.url) as connection:
        await publish_all(connection, wanted)
        assert await gateway.stop() == 0
    assert await sink.stop() == 0
    await folder.both()
    async with client(folder.url) as connection:
        assert await payloads(connection, len(wanted)) == wanted


async def test_a_sink_that_stops_under_load_loses_nothing(folder: Folder) -> None:
    gateway, sink = await started(folder)
    wanted = numbered(10_000)
    async with client(folder.url) as connection:
        publishing = asyncio.create_task(publish_all(connection, wanted, 0.01))
        for _ in range(2):
            await asyncio.sleep(0.2)
            assert await sink.stop() == 0
            sink = await folder.sinkd()
        await publishing
        assert await payloads(connection, len(wanted)) == wanted
    assert await gateway.stop() == 0


async def test_a_gateway_that_stops_while_the_sink_is_away_waits_for_it(folder: Folder) -> None:
    """It finds the sink at a port where it is, is not, and is again: to start one takes longer on some machines."""
    (wire_port,) = free_ports(1)
    sink_port, folder.link_port = folder.link_port, wire_port
    folder.write_config(TEXT)
    gateway = await folder.gateway()
    folder.link_port = sink_port
    folder.write_config(TEXT)
    await folder.sinkd()
    async with client(folder.url) as connection:
        async with Wire(wire_port, sink_port):
            assert await payloads(connection, 0) == []
        await publish_all(connection, numbered(100))
        gateway.send(signal.SIGTERM)
        await until(lambda: "stopping" in gateway.complaints, "it begins to stop")
        async with Wire(wire_port, sink_port):
            assert await gateway.ended() == 0
    await folder.gateway()
    async with client(folder.url) as connection:
        assert await payloads(connection, 100) == numbered(100)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
async def test_mesh_up_drains_and_ends_at_once(folder: Folder, number: signal.Signals) -> None:
    daemon = await folder.up("--stream", "text=text.>")
    wanted = numbered(20_000)
    async with client(folder.url) as connection, client(folder.url) as idle:
        await idle.subscribe("other.>")
        await publish_all(connection, wanted)
        daemon.send(number)
        assert await daemon.ended() == 0
    await folder.up("--stream", "text=text.>")
    async with client(folder.url) as connection:
        assert await payloads(connection, len(wanted)) == wanted


async def test_a_second_ctrl_c_ends_it_whatever_it_is_doing(folder: Folder) -> None:
    """What was acknowledged is in the log all the same."""
    gateway, sink = await started(folder)
    async with client(folder.url) as connection:
        sink.send(signal.SIGSTOP)
        await publish_all(connection, [b"held"])
        gateway.send(signal.SIGINT)
        await until(lambda: "stopping" in gateway.complaints, "it takes the first one")
        assert not gateway.has_ended
        gateway.send(signal.SIGINT)
        assert await gateway.ended(8) != 0  # before it has waited for the sink


# -- configuration ----------------------------------------------------------------------------------------------------


async def test_a_stream_of_a_higher_revision_is_in_force_after_a_restart(folder: Folder) -> None:
    gateway, sink = await started(folder, ACKNOWLEDGED)
    async with client(folder.url) as connection:
        assert (await published(connection, "text.a", b"one"))["stream"] == "text"
        assert await sink.stop() == 0
        folder.write_config(
            '[streams.text]\nsubjects = ["text.>", "prose.>"]\n[streams.verse]\nsubjects = ["verse.*"]',
            mesh='name = "acme"\nrevision = 2',
        )
        sink = await folder.sinkd()
        assert await payloads(connection, 1) == [b"one"]
        assert (await published(connection, "text.a", b"two"))["offset"] == 1
        assert (await published(connection, "prose.a", b"three"))["offset"] == 2
        answer = await published(connection, "verse.a", b"roses")
        assert (answer["stream"], answer["offset"]) == ("verse", 0)
    varz = await folder.varz(folder.sink_monitor_port)
    assert (varz["sink"]["revision"], varz["sink"]["configuration_problems"]) == (2, [])
    assert not gateway.has_ended


async def test_a_file_that_cannot_be_in_force_is_reported_and_the_committed_one_runs(folder: Folder) -> None:
    gateway, sink = await started(folder, '[streams.text]\nsubjects = ["text.>"]', revision=2)
    for revision, stream, says in (
        (1, 'subjects = ["text.*"]', "has it otherwise"),
        (2, 'subjects = ["text.*"]', "has it otherwise"),
        (3, 'subjects = ["text.>"]\npartitions = 4', "never changes in place"),
        (3, 'subjects = ["text.>"]\nkey = "token:2"', "never changes in place"),
    ):
        assert await sink.stop() == 0
        folder.write_config(f"[streams.text]\n{stream}", mesh=f'name = "acme"\nrevision = {revision}')
        sink = await folder.sinkd()
        (problem,) = (await folder.varz(folder.sink_monitor_port))["sink"]["configuration_problems"]
        assert "streams.text" in problem
        assert says in problem
        assert "configuration_not_in_force" in sink.complaints
        async with client(folder.url) as connection:
            await payloads(connection, 0)
            assert (await published(connection, "text.a.b", b"deep"))["stream"] == "text"
            message = await connection.request("$LOG.METADATA.text", b"", 60)
            (committed,) = json.loads(message.data)["streams"]
            assert (committed["subjects"], len(committed["partitions"]), committed["key"]) == (["text.>"], 1, "subject")
    assert not gateway.has_ended


# -- whose sink -------------------------------------------------------------------------------------------------------


async def test_a_gateway_of_another_mesh_is_not_served(folder: Folder, tmp_path: Path) -> None:
    folder.write_config(TEXT)
    sink = await folder.sinkd()
    (tmp_path / "other").mkdir()
    with folder_at(tmp_path / "other") as other:
        other.link_port = folder.link_port
        other.write_config(TEXT, mesh='name = "other"\nrevision = 1')
        gateway = await other.gateway()
        await until(lambda: "of acme/eu" in gateway.complaints, "the gateway says why")
        async with client(other.url) as connection:
            assert (await fetch(connection, "text", offset=0)).headers["Description"] == "LEADER_NOT_AVAILABLE"
    assert not sink.has_ended
