"""A gateway of two workers, as processes: one server to its clients, its log, its tools and whoever stops it."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as RequestTimeoutError
from support.events import Publisher, everything, published
from support.natsraw import RawClient
from support.processes import Daemon, Folder, client, folder_at, settle, until
from support.workers import CONNECTS_MAX, client_of

STREAMS = '[streams.orders]\nsubjects = ["orders.>"]\n[streams.text]\nsubjects = ["text.>"]\nreply = "header"'
FABRIC = 'name = "acme"\nrevision = 1\nmode = "delivery-fabric"'
TOURS = Path(__file__).parents[1] / "clients"
TOUR_WAIT_S_MAX = 60.0


def write_config(folder: Folder, more: str = STREAMS, *, keeps: bool = True) -> None:
    folder.write_config(more, gateway="workers = 2", **({} if keeps else {"mesh": FABRIC}))


@pytest.fixture
async def gateway(folder: Folder) -> Daemon:
    """With a sink."""
    write_config(folder)
    running, _ = await folder.both()
    await until_healthy(folder)
    return running


@pytest.fixture
async def fabric(folder: Folder) -> Daemon:
    """It keeps nothing."""
    write_config(folder, "", keeps=False)
    return await folder.gateway()


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """One without a sink that some tests share: they let it live as they found it."""
    with folder_at(tmp_path_factory.mktemp("unharmed")) as shared:
        write_config(shared, "", keeps=False)
        asyncio.run(shared.gateway())
        yield shared


@contextlib.asynccontextmanager
async def one_of_each(folder: Folder, **options: Any) -> AsyncIterator[tuple[Client, Client]]:
    """A client of worker 0 and one of worker 1."""
    async with client_of(folder.url, 0, 2, **options) as zero, client_of(folder.url, 1, 2, **options) as one:
        yield zero, one


async def get(folder: Folder, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{folder.monitor_port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def page(folder: Folder, path: str) -> dict[str, Any]:
    status, text = await get(folder, path)
    assert status == 200, text
    shown: dict[str, Any] = json.loads(text)
    return shown


async def until_healthy(folder: Folder) -> None:
    async with asyncio.timeout(60):
        while (await get(folder, "/healthz"))[0] != 200:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


async def workers(folder: Folder) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = (await page(folder, "/varz"))["workers"]
    return shown


async def done(request: Msg) -> None:
    await request.respond(b"done")


async def until_nobody_works(requester: Client) -> None:
    """A client that has left is gone when its worker reads that: what was sent before may still have gone to it."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(RequestTimeoutError):
                with pytest.raises(NoRespondersError):
                    await requester.request("work", b"", 0.2)
                return


@contextlib.asynccontextmanager
async def raw_of(folder: Folder, worker: int) -> AsyncIterator[RawClient]:
    """A client by hand that the worker of that number serves."""
    for _ in range(CONNECTS_MAX):
        async with RawClient(folder.client_port) as made:
            if int(str(made.info["client_id"])) % 2 == (worker + 1) % 2:
                await made.send(b'CONNECT {"verbose":false}\r\n')
                yield made
                return
    raise AssertionError(f"no connection of {CONNECTS_MAX} came to worker {worker}")


def run_folder(process_id: int) -> Path:
    """The one with the sockets of a worker."""
    found = re.search(r"--run-dir\0(\S+?)\0", Path(f"/proc/{process_id}/cmdline").read_text())
    assert found is not None
    return Path(found[1])


def is_there(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


# -- clients ----------------------------------------------------------------------------------------------------------


async def test_clients_of_two_workers_are_clients_of_one_server(unharmed: Folder) -> None:
    async with one_of_each(unharmed) as (zero, one):
        assert zero._server_info["server_id"] == one._server_info["server_id"]
        heard = await one.subscribe("news.*")
        await settle(one)
        await zero.publish("news.a", b"hello", headers={"a": "b"})
        message = await heard.next_msg(60)
        assert (message.subject, message.data, message.headers) == ("news.a", b"hello", {"a": "b"})

        with pytest.raises(NoRespondersError):
            await zero.request("work", b"", 60)
        served: list[int] = []

        def serve(name: int) -> Callable[[Any], Any]:
            async def answer(request: Any) -> None:
                served.append(name)
                await request.respond(b"%d" % name)

            return answer

        for name, member in enumerate((zero, one)):
            await member.subscribe("work", "crew", cb=serve(name))
            await settle(member)
        answers = [await requester.request("work", b"", 60) for requester in (zero, one) for _ in range(50)]
        assert [int(answer.data) for answer in answers] == served
        assert len(served) == 100  # one member each


async def test_what_a_pong_confirms_is_never_missed(unharmed: Folder) -> None:
    """By hand: nats-py's `flush` sends its PING before what waits."""
    async with raw_of(unharmed, 0) as zero, raw_of(unharmed, 1) as one:
        for number in range(1_000):
            there, here = (zero, one) if number % 2 else (one, zero)
            await here.send(b"SUB once.%d 1\r\nPING\r\n" % number)
            assert await here.until(b"PONG\r\n") == b"PONG\r\n"
            await there.send(b"PUB once.%d 1\r\nx\r\n" % number)
            assert await here.until(b"x\r\n") == b"MSG once.%d 1 1\r\nx\r\n" % number
            await here.send(b"UNSUB 1\r\n")


@pytest.mark.parametrize("tour", ["core", "log"])
async def test_an_official_client_takes_its_tour(folder: Folder, gateway: Daemon, tour: str) -> None:
    """nats-py, unchanged; which of its connections meet which worker is chance."""
    command = [sys.executable, TOURS / "python_classic" / "tour.py", folder.url, tour]
    for _ in range(3 if tour == "core" else 1):
        ended = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = await asyncio.wait_for(ended.communicate(), TOUR_WAIT_S_MAX)
        assert ended.returncode == 0, (out + err).decode()


# -- the log ----------------------------------------------------------------------------------------------------------


async def test_every_event_is_in_the_log_once_and_in_the_order_of_its_connection(
    folder: Folder, gateway: Daemon
) -> None:
    """Two with acknowledgement, two without a reply, on both workers; history is read through both, too."""
    async with one_of_each(folder) as pair, one_of_each(folder) as others:
        publishers = [await Publisher(each, f"orders.{name}").open() for name, each in enumerate(pair)]
        for number in range(2_000):
            for publisher in publishers:
                await publisher.send(number, b"%d" % number)
            for name, other in enumerate(others):
                await other.publish(f"text.{name}", b"%d" % number)
        for publisher in publishers:
            await publisher.settle()
            assert len(publisher.acknowledged) == 2_000
        for other in others:
            await settle(other)
        for stream in ("orders", "text"):
            async with asyncio.timeout(60):
                while len(events := await everything(pair[0], stream)) < 4_000:  # noqa: ASYNC110 - another process's
                    await asyncio.sleep(0.05)
            assert events == await everything(pair[1], stream)
            assert len(events) == 4_000
            for name in range(2):
                mine = [int(event.payload) for event in events if event.subject == f"{stream}.{name}"]
                assert mine == list(range(2_000))


async def test_events_of_a_worker_that_is_killed_are_in_the_log_at_most_once_and_acknowledged_ones_are(
    folder: Folder, gateway: Daemon
) -> None:
    victim = (await workers(folder))[1]["pid"]
    async with client_of(folder.url, 1, 2) as doomed, client_of(folder.url, 0, 2) as survivor:
        publisher = await Publisher(doomed, "orders.a", window=100).open()
        with contextlib.suppress(Exception):  # however its end shows
            for number in range(100_000):
                await publisher.send(number, b"%d" % number)
                if number == 3_000:
                    os.kill(victim, signal.SIGKILL)
        acknowledged = set(publisher.acknowledged)
        assert len(acknowledged) >= 2_900
        await published(survivor, "orders.b", b"after")
        kept = [int(event.payload) for event in await everything(survivor, "orders") if event.subject == "orders.a"]
    assert kept == sorted(set(kept))
    assert acknowledged <= set(kept)


# -- life and death ---------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_killed_is_made_again_and_the_others_are_unharmed(
    folder: Folder, fabric: Daemon
) -> None:
    reconnected = asyncio.Event()

    async def back() -> None:
        reconnected.set()

    again = {"allow_reconnect": True, "reconnected_cb": back, "reconnect_time_wait": 0.01, "max_reconnect_attempts": -1}
    before = await workers(folder)
    async with client_of(folder.url, 0, 2) as safe, client_of(folder.url, 1, 2, **again) as moved:
        heard = await moved.subscribe("news")
        mine = await safe.subscribe("mine")
        await moved.subscribe("work", cb=done)
        await settle(moved)
        os.kill(before[1]["pid"], signal.SIGKILL)
        await until(reconnected.is_set, "the client is back")
        await settle(moved)
        for number in range(100):
            await safe.publish("news", b"%d" % number)
        assert [int((await heard.next_msg(60)).data) for _ in range(100)] == list(range(100))
        await moved.publish("mine", b"x")
        assert (await mine.next_msg(60)).data == b"x"
        assert safe.is_connected
        await moved.close()
        await until_nobody_works(safe)
        await until_healthy(folder)
        async with client_of(folder.url, 1, 2) as newcomer:
            await newcomer.publish("mine", b"y")
            assert (await mine.next_msg(60)).data == b"y"
    after = await workers(folder)
    assert after[0]["pid"] == before[0]["pid"]
    assert [each["restarts"] for each in after] == [0, 1]
    assert 'mesh_gateway_worker_restarts_total{worker="1"} 1.0' in (await get(folder, "/metrics"))[1]
    assert "worker_ended" in fabric.complaints


async def test_interest_dies_with_its_worker(folder: Folder, fabric: Daemon) -> None:
    victim = (await workers(folder))[1]["pid"]
    async with client_of(folder.url, 0, 2) as requester, client_of(folder.url, 1, 2) as service:
        await service.subscribe("work", cb=done)
        await settle(service)
        assert (await requester.request("work", b"", 60)).data == b"done"
        os.kill(victim, signal.SIGKILL)
        await until(lambda: service.is_closed, "its client has noticed")
        await until_nobody_works(requester)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_drains_all_workers(folder: Folder, gateway: Daemon, number: signal.Signals) -> None:
    """Without a reply: what both have taken in is in the log, and nobody is left."""
    processes = [each["pid"] for each in await workers(folder)]
    async with one_of_each(folder) as pair:
        for each in pair:
            for event in range(5_000):
                await each.publish("text.a", b"%d" % event)
            await published(each, "orders.a")  # so all before it is taken in
        gateway.send(number)
        assert await gateway.ended() == 0, gateway.complaints
    assert not any(is_there(process) for process in processes)
    await folder.gateway()
    async with client(folder.url) as reader:
        assert len(await everything(reader, "text")) == 10_000


async def test_workers_end_with_their_supervisor_whatever_its_end(folder: Folder, fabric: Daemon) -> None:
    processes = [each["pid"] for each in await workers(folder)]
    sockets = run_folder(processes[0])
    assert sockets.exists()
    fabric.kill()
    await until(lambda: not any(is_there(process) for process in processes), "they have ended")
    assert not sockets.exists()


async def test_a_gateway_that_retires_sends_its_clients_away_and_ends(folder: Folder) -> None:
    write_config(folder, '[limits]\nlame_duck_grace_period = "200ms"\nlame_duck_duration = "30s"', keeps=False)
    retiring = await folder.gateway()
    told: list[bool] = []

    async def lame() -> None:
        told.append(True)

    async with one_of_each(folder, lame_duck_mode_cb=lame) as pair:
        for each in pair:
            await settle(each)
        retiring.send(signal.SIGUSR2)
        await until(lambda: all(each.is_closed for each in pair), "all clients are closed")
    assert await retiring.ended() == 0
    assert len(told) == 2


async def test_what_cannot_start_says_so_once(folder: Folder) -> None:
    write_config(folder, '[tls.clients]\ncert = "none.pem"\nkey = "none.key"', keeps=False)
    refused = folder.run("gateway", "--config", "mesh.toml", "--node", "gw1")
    assert await refused.ended() == 1
    assert refused.complaints.count("none.pem") == 1, refused.complaints
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", folder.client_port))
        taken.listen()
        write_config(folder, "", keeps=False)
        refused = folder.run("gateway", "--config", "mesh.toml", "--node", "gw1")
        assert await refused.ended() == 1
    address = f"127.0.0.1:{folder.client_port}"
    assert refused.complaints == f"mesh: cannot listen on {address} for clients: address already in use\n"


async def test_workers_share_a_port_that_the_kernel_has_chosen(folder: Folder) -> None:
    folder.client_port = 0
    write_config(folder, "", keeps=False)
    running = await folder.gateway()
    found = re.search(r"client 127\.0\.0\.1:(\d+)", running.printed)
    assert found is not None
    folder.client_port = int(found[1])
    assert folder.client_port > 0
    async with one_of_each(folder):
        pass


# -- what tools see ---------------------------------------------------------------------------------------------------


async def test_pages_show_one_server(folder: Folder, fabric: Daemon) -> None:
    async with one_of_each(folder, name="a") as (zero, one), client_of(folder.url, 1, 2, name="b") as third:
        for number, each in enumerate((zero, one, third)):
            for subscription in range(number + 2):
                await each.subscribe(f"s.{number}.{subscription}")
            await each.publish("nobody", b"x" * (number + 1))
            await settle(each)
        ids = [each.client_id for each in (zero, one, third)]

        varz = await page(folder, "/varz")
        assert (varz["connections"], varz["subscriptions"], varz["in_msgs"], varz["in_bytes"]) == (3, 9, 3, 6)
        assert sorted(each["connections"] for each in varz["workers"]) == [1, 2]

        connz = await page(folder, "/connz")
        assert (connz["num_connections"], connz["total"]) == (3, 3)
        assert [each["cid"] for each in connz["connections"]] == sorted(ids)
        largest = await page(folder, "/connz?sort=subs&limit=2&subs=1")
        assert [each["cid"] for each in largest["connections"]] == [ids[2], ids[1]]
        assert [len(each["subscriptions_list"]) for each in largest["connections"]] == [4, 3]
        last = await page(folder, "/connz?sort=bytes_from&offset=2&limit=5")
        assert [each["cid"] for each in last["connections"]] == [ids[0]]
        assert (await page(folder, f"/connz?cid={ids[1]}"))["connections"][0]["name"] == "a"
        assert await get(folder, "/connz?sort=nothing") == (400, "invalid sorting option: nothing")

        subsz = await page(folder, "/subsz?subs=1")
        assert (subsz["num_subscriptions"], subsz["total"], len(subsz["subscriptions_list"])) == (9, 9, 9)
        some = [
            (await page(folder, f"/subsz?subs=1&offset={at}&limit=2"))["subscriptions_list"] for at in range(0, 9, 2)
        ]
        assert [each for part in some for each in part] == subsz["subscriptions_list"]
        (only,) = (await page(folder, "/subsz?subs=1&test=s.1.0"))["subscriptions_list"]
        assert only["subject"] == "s.1.0"

        detail = (await page(folder, "/accountz?acc=$G"))["account_detail"]
        assert (detail["client_connections"], detail["subscriptions"]) == (3, 9)
        assert (await page(folder, "/routez"))["num_routes"] == 0

        _, metrics = await get(folder, "/metrics")
        rows = dict(re.findall(r'^mesh_gateway_connections\{worker="(\d)"\} (\S+)$', metrics, re.MULTILINE))
        assert sum(float(value) for value in rows.values()) == 3
        documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
        assert not [
            name for name in re.findall(r"^# TYPE (\S+)", metrics, re.MULTILINE) if f"`{name}`" not in documented
        ]


async def test_health_is_that_of_the_worst_worker(folder: Folder, fabric: Daemon) -> None:
    assert await get(folder, "/healthz") == (200, '{"status":"ok"}')
    victim = (await workers(folder))[0]["pid"]
    os.kill(victim, signal.SIGSTOP)
    status, text = await get(folder, "/healthz")
    assert (status, "worker 0: it does not answer" in text) == (503, True)
    varz = await page(folder, "/varz")  # of the others
    assert [("mem" in each) for each in varz["workers"]] == [False, True]
    os.kill(victim, signal.SIGCONT)
    await until_healthy(folder)
