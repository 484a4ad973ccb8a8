"""Gateways of several workers beside others, as programs: clients of any two processes are clients of one server.

In the zone, `gw1` and `gw2` are two workers each and `gw3` is one process; of two zones all gateways have two.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from support.cli import invoked
from support.processes import Folder, folder_at, until
from support.worker_mesh import WAIT_S, ZONE, ZONES, Mesh

EVENTS = 100
TLS = '[tls.nodes]\nca = "{0}/ca.pem"\ncert = "{0}/{{node}}.pem"\nkey = "{0}/{{node}}.key"\n'


@pytest.fixture(scope="module", params=["plain", "secured"])
def unharmed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """One that some tests share: they let it live as they found it."""
    path = tmp_path_factory.mktemp("zone")
    with folder_at(path) as folder:
        mesh = Mesh(folder, ZONE, TLS.format(path) if request.param == "secured" else "")
        if request.param == "secured":
            ran = asyncio.run(invoked("certs", "init", "--config", str(mesh.file)))
            assert ran.status == 0, ran.err
        asyncio.run(mesh.start())
        yield mesh


@pytest.fixture
async def zones(folder: Folder) -> Mesh:
    mesh = Mesh(folder, ZONES, '[links.eu.us]\nlive_rate = "100MB/s"\n')
    await mesh.start()
    return mesh


async def settle(*clients: Client) -> None:
    """Until their subscriptions are known in the zone: the PING of the first flush overtakes what waits to be sent."""
    for each in (*clients, *clients):
        await each.flush()


async def taken(subscription: Any, count: int) -> list[bytes]:
    return [(await subscription.next_msg(WAIT_S)).data for _ in range(count)]


async def done(request: Msg) -> None:
    await request.respond(b"done")


def into(names: list[Any], name: Any):
    async def note(message: Msg) -> None:
        names.append((name, message.data))

    return note


async def until_all_hear_all(clients: dict[tuple[str, int], Client], subject: str) -> None:
    """Over borders, too, where no PONG says so."""
    heard: dict[tuple[str, int], list[Any]] = {key: [] for key in clients}
    subscriptions = [await each.subscribe(subject, cb=into(heard[key], key)) for key, each in clients.items()]
    async with asyncio.timeout(WAIT_S):
        while any(len({data for _, data in each}) < len(clients) for each in heard.values()):
            for (name, worker), each in clients.items():
                await each.publish(subject, b"%b %d" % (name.encode(), worker))
            await asyncio.sleep(0.1)
    for subscription in subscriptions:
        await subscription.unsubscribe()


# -- a zone -----------------------------------------------------------------------------------------------------------


async def test_what_any_process_takes_in_reaches_the_clients_of_all_once_and_in_order(unharmed: Mesh) -> None:
    async with unharmed.clients_of_all() as clients:
        subscriptions = [await each.subscribe("news.>") for each in clients.values()]
        await settle(*clients.values())
        for (name, worker), each in clients.items():
            for event in range(EVENTS):
                await each.publish(f"news.{name}.{worker}", b"%d" % event)
        for subscription in subscriptions:
            got: dict[str, list[int]] = {}
            for _ in range(EVENTS * len(clients)):
                message = await subscription.next_msg(WAIT_S)
                got.setdefault(message.subject, []).append(int(message.data))
            assert got == {f"news.{name}.{worker}": list(range(EVENTS)) for name, worker in clients}
        await settle(*clients.values())
        assert [subscription.pending_msgs for subscription in subscriptions] == [0] * len(clients)


async def test_a_queue_group_over_all_processes_gets_each_message_once_and_members_of_the_gateway_first(
    unharmed: Mesh,
) -> None:
    async with unharmed.clients_of_all() as clients, unharmed.client("gw1", 0) as publisher:
        got: list[tuple[tuple[str, int], bytes]] = []
        members = {key: await each.subscribe("jobs", "crew", cb=into(got, key)) for key, each in clients.items()}
        await settle(*clients.values())
        for event in range(EVENTS):
            await publisher.publish("jobs", b"%d" % event)
        await until(lambda: len(got) >= EVENTS, "all of them")
        assert {key for key, _ in got} == {("gw1", 0), ("gw1", 1)}
        for key in (("gw1", 0), ("gw1", 1)):
            await members[key].unsubscribe()
        await settle(clients["gw1", 0], clients["gw1", 1])
        for event in range(EVENTS, 2 * EVENTS):
            await publisher.publish("jobs", b"%d" % event)
        await until(lambda: len(got) >= 2 * EVENTS, "all of them")
        assert {key for key, _ in got[EVENTS:]} == {("gw2", 0), ("gw2", 1), ("gw3", 0)}
        await settle(*clients.values())
        assert sorted(int(data) for _, data in got) == list(range(2 * EVENTS))


async def test_a_request_is_answered_from_any_process_and_refused_only_if_nobody_is_there(unharmed: Mesh) -> None:
    async with unharmed.clients_of_all() as clients:
        for key, service in clients.items():
            work = f"work.{key[0]}.{key[1]}"
            subscription = await service.subscribe(work, cb=done)
            await settle(service)
            for requester in clients.values():
                assert (await requester.request(work, b"", WAIT_S)).data == b"done"
            await subscription.unsubscribe()
            await settle(service)
            for requester in clients.values():
                with pytest.raises(NoRespondersError):
                    await requester.request(work, b"", WAIT_S)


async def test_clients_and_operators_see_gateways_and_workers(unharmed: Mesh) -> None:
    async with unharmed.client("gw1", 1) as connection:
        addresses = {f"127.0.0.1:{port}" for port in unharmed.clients.values()}
        urls = connection._server_info["connect_urls"]
        assert (set(urls), len(urls)) == (addresses, 3)
    page = await unharmed.page("gw1", "routez")
    links = [(route["worker"], route["remote_name"]) for route in page["routes"]]
    assert sorted(links) == [(worker, peer) for worker in (0, 1) for peer in ("gw2", "gw2/1", "gw3")]
    assert (page["num_routes"], page["missing"]) == (6, [])
    assert page["workers"] == [{"number": 0, "missing": []}, {"number": 1, "missing": []}]
    assert all(route["did_solicit"] for route in page["routes"])
    assert 'mesh_gateway_link_up{gateway="gw2/1",worker="1"} 1.0' in await unharmed.shown("gw1", "metrics")
    shown = await invoked("top", "--once", "--interval", "100ms", "--config", str(unharmed.file))
    rows = [line.split()[:3] for line in shown.lines]
    assert ["gw1/1", "gw2/1", "up"] in rows, shown
    assert ["gw3", "gw2/1", "up"] in rows, shown


async def test_a_worker_that_is_killed_is_missed_by_none_and_linked_again(folder: Folder) -> None:
    """Nothing between the others is lost, and what the lost one's clients wanted is wanted no more."""
    mesh = Mesh(folder, ZONE)
    await mesh.start()
    async with mesh.client("gw1", 0) as publisher, mesh.client("gw2", 0) as subscriber:
        heard = await subscriber.subscribe("news")
        await settle(subscriber)
        async with mesh.client("gw2", 1) as doomed:
            await doomed.subscribe("work", cb=done)
            await settle(doomed)
            assert (await publisher.request("work", b"", WAIT_S)).data == b"done"
            killed = await mesh.process_id("gw2", 1)
            os.kill(killed, signal.SIGKILL)
            for event in range(EVENTS):
                await publisher.publish("news", b"%d" % event)
            assert await taken(heard, EVENTS) == [b"%d" % event for event in range(EVENTS)]
            await until(lambda: doomed.is_closed, "its client has noticed")
        await mesh.until_linked()
        assert await mesh.process_id("gw2", 1) != killed
        with pytest.raises(NoRespondersError):
            await publisher.request("work", b"", WAIT_S)
        async with mesh.client("gw2", 1) as newcomer:
            late = await newcomer.subscribe("news")
            await settle(newcomer)
            await publisher.publish("news", b"x")
            assert await taken(late, 1) == await taken(heard, 1) == [b"x"]
    assert [await daemon.stop() for daemon in mesh.daemons.values()] == [0, 0, 0]


async def test_workers_of_two_files_that_differ_are_not_linked_and_say_so(folder: Folder) -> None:
    mesh = Mesh(folder, {"gw1": ("eu", 2), "gw2": ("eu", 1)})
    for name, text in (("gw1", mesh.text), ("gw2", mesh.text.replace("workers = 2", "workers = 3"))):
        (folder.path / f"{name}.toml").write_text(text)
        mesh.daemons[name] = folder.run("gateway", "--config", f"{name}.toml", "--node", name)
    await asyncio.gather(*(daemon.serving() for daemon in mesh.daemons.values()))
    said = "gw1 runs as workers = 2, the file of gw2 says 3"
    await until(lambda: all(said in daemon.complaints for daemon in mesh.daemons.values()), "both say it")
    assert 'mesh_gateway_links_refused_total{reason="workers"}' in await mesh.shown("gw2", "metrics")
    assert (await mesh.page("gw2", "routez"))["missing"] == ["gw1", "gw1/1", "gw1/2"]


# -- zones ------------------------------------------------------------------------------------------------------------


async def test_each_event_crosses_once_and_another_process_takes_over_when_the_one_that_links_zones_is_killed(
    zones: Mesh,
) -> None:
    async with zones.clients_of_all(allow_reconnect=True, reconnect_time_wait=0.05, max_reconnect_attempts=-1) as all_:
        await until_all_hear_all(all_, "warm")
        subscriptions = [await each.subscribe("news") for each in all_.values()]
        members = [await all_[key].subscribe("news", "crew") for key in all_ if key[0].startswith("us")]
        await settle(*all_.values())
        await until_all_hear_all(all_, "warm")
        for each in all_.values():
            for event in range(EVENTS):
                await each.publish("news", b"%d" % event)
        for subscription in subscriptions:
            assert sorted(map(int, await taken(subscription, 8 * EVENTS))) == sorted(list(range(EVENTS)) * 8)
        await until(lambda: sum(member.pending_msgs for member in members) >= 8 * EVENTS, "one of the group")
        await settle(*all_.values())
        assert [subscription.pending_msgs for subscription in subscriptions] == [0] * 8
        assert sum(member.pending_msgs for member in members) == 8 * EVENTS

        name, worker = await zones.holder("eu")
        os.kill(await zones.process_id(name, worker), signal.SIGKILL)
        await zones.until_linked()
        await until_all_hear_all(all_, "again")
    assert [await daemon.stop() for daemon in zones.daemons.values()] == [0] * 4


async def test_a_rate_that_is_changed_is_taken_by_all_workers_and_by_those_that_come_later(zones: Mesh) -> None:
    gateway = zones.daemons["eu1"]
    zones.file.write_text(zones.text.replace("100MB/s", "50MB/s"))
    gateway.send(signal.SIGHUP)

    def taken_by() -> int:
        lines = gateway.complaints.splitlines()
        return sum("configuration_reloaded" in line and "links.eu.us.live_rate" in line for line in lines)

    await until(lambda: taken_by() == 2, "both workers have taken it")
    os.kill(await zones.process_id("eu1", 1), signal.SIGKILL)
    await until(lambda: taken_by() == 3, "the new one has taken it")
