"""Several workers as one server: the links between them, in this process, and what their pages become."""

import asyncio
import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.natsraw import RawClient
from support.processes import until
from support.workers import Running, make_worker

from gateway.core.nats_values import Window
from gateway.core.session import Closed
from gateway.shell import channel_connection, peers
from mesh import worker_pages
from mesh.worker_folder import private_folder
from mesh.workers import reserved
from protocol.config import Address

CONNECT = b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n'
PING_ROUNDS = 1_000


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[list[Running]]:
    workers = [make_worker(number, 2, tmp_path) for number in range(2)]
    await asyncio.gather(*(worker.start() for worker in workers))
    yield workers
    await asyncio.gather(*(worker.stop() for worker in workers))


@contextlib.asynccontextmanager
async def connected(*workers: Running) -> AsyncIterator[list[RawClient]]:
    """A client of each."""
    async with contextlib.AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(RawClient(worker.port)) for worker in workers]
        for each in clients:
            await each.send(CONNECT + b"PING\r\n")
            await each.until(b"PONG\r\n")
        yield clients


async def told(client: RawClient, commands: bytes) -> bytes:
    """What the client sees until the PONG behind its `commands`."""
    await client.send(commands + b"PING\r\n")
    return (await client.until(b"PONG\r\n")).removesuffix(b"PONG\r\n")


# -- links ------------------------------------------------------------------------------------------------------------


async def test_clients_of_two_workers_see_each_others_messages(pair: list[Running]) -> None:
    async with connected(*pair) as (one, other):
        assert await told(one, b"SUB a.* 1\r\n") == b""
        await told(other, b"PUB a.b answer 5\r\nhello\r\nHPUB a.c 12 13\r\nNATS/1.0\r\n\r\nx\r\n")
        expected = b"MSG a.b 1 answer 5\r\nhello\r\nHMSG a.c 1 12 13\r\nNATS/1.0\r\n\r\nx\r\n"
        assert await one.until(expected[-10:]) == expected


async def test_a_request_is_answered_across_and_refused_only_if_nobody_is_there(pair: list[Running]) -> None:
    async with connected(*pair) as (service, requester):
        await told(requester, b"SUB inbox 1\r\n")
        assert b"503" in await told(requester, b"PUB work inbox 1\r\nx\r\n")
        await told(service, b"SUB work 1\r\n")
        assert await told(requester, b"PUB work inbox 1\r\nx\r\n") == b""
        assert await service.until(b"\r\nx\r\n") == b"MSG work 1 inbox 1\r\nx\r\n"
        await told(service, b"PUB inbox 4\r\ndone\r\n")
        assert await requester.until(b"done\r\n") == b"MSG inbox 1 4\r\ndone\r\n"


async def test_one_member_of_a_queue_group_gets_each_message_wherever_the_members_are(pair: list[Running]) -> None:
    async with connected(pair[0], pair[1], pair[1]) as (near, far, further):
        for member in (near, far, further):
            await told(member, b"SUB jobs crew 1\r\n")
        shares = [await told(near, b"PUB jobs 1\r\na\r\n" * 300)]
        shares += [await member.until_quiet(0.1) for member in (far, further)]
        counts = [share.count(b"\r\na\r\n") for share in shares]
        assert sum(counts) == 300
        assert min(counts) > 50, counts  # 6 standard deviations below a third
        got = await told(further, b"PUB jobs 1\r\nb\r\n" * 50)
        got += await far.until_quiet(0.1) + await near.until_quiet(0.1)
        await told(near, b"UNSUB 1\r\nPUB jobs 1\r\nc\r\n" * 50)
        got += await further.until_quiet(0.1) + await far.until_quiet(0.1)
        assert [got.count(b"\r\n%b\r\n" % each) for each in (b"b", b"c")] == [50, 50]
        assert await near.until_quiet(0.05) == b""


async def test_what_a_pong_confirms_is_never_missed(pair: list[Running]) -> None:
    """SUB and PING here, and when the PONG is there, PUB over there: a thousand times with a subject of its own."""
    async with connected(*pair) as (subscriber, publisher):
        got = b""
        for number in range(PING_ROUNDS):
            got += await told(subscriber, b"SUB once.%d %d\r\n" % (number, number))
            await publisher.send(b"PUB once.%d 1\r\nx\r\n" % number)
        got += await subscriber.until_quiet()
    wanted = b"".join(b"MSG once.%d %d 1\r\nx\r\n" % (number, number) for number in range(PING_ROUNDS))
    assert got.replace(b"PONG\r\n", b"").replace(b"PING\r\n", b"") == wanted  # its first PING comes late


async def test_a_link_that_is_lost_is_made_again_and_everything_is_told_anew(pair: list[Running]) -> None:
    async with connected(*pair) as (one, other):
        await told(one, b"SUB a 1\r\n")
        peers_seen = pair[0].plane.peers
        first = peers_seen.sessions["test/1"]
        pair[0].plane.close(first, Closed.SLOW_DEADLINE, flushes=False)
        pair[0].server.flush()
        await until(
            lambda: first not in peers_seen.sessions.values() and peers_seen.agreed(near=True) == 1,
            "another link is up",
        )
        await told(other, b"PUB a 1\r\nx\r\n")
        assert await one.until(b"x\r\n") == b"MSG a 1 1\r\nx\r\n"


async def test_a_worker_that_leaves_takes_its_interest_along_and_the_next_one_of_its_number_is_a_peer(
    pair: list[Running], tmp_path: Path
) -> None:
    async with connected(*pair) as (requester, service):
        await told(service, b"SUB work 1\r\n")
        await told(requester, b"SUB inbox 1\r\nSUB news 2\r\n")
        await pair[1].stop()
        await until(lambda: pair[0].links.missing == [1], "the link is gone")
        assert b"503" in await told(requester, b"PUB work inbox 1\r\nx\r\n")
        pair[1] = await make_worker(1, 2, tmp_path).start()
        async with connected(pair[1]) as (publisher,):
            await told(publisher, b"PUB news 1\r\nx\r\n")
            assert await requester.until(b"x\r\n") == b"MSG news 2 1\r\nx\r\n"


async def test_three_workers_pass_nothing_on(tmp_path: Path) -> None:
    """One hop: each of the others gets a message once, from where it came in."""
    workers = [make_worker(number, 3, tmp_path) for number in range(3)]
    await asyncio.gather(*(worker.start() for worker in workers))
    async with connected(*workers) as clients:
        for each in clients:
            await told(each, b"SUB a 1\r\n")
        for number, each in enumerate(clients):
            await each.send(b"PUB a 1\r\n%d\r\n" % number)
        for each in clients:
            got = await each.until_quiet(0.1)
            assert sorted(got.split(b"\r\n")[1::2]) == [b"0", b"1", b"2"]
    await asyncio.gather(*(worker.stop() for worker in workers))


async def test_a_worker_that_is_silent_is_sent_everything_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has told what it wants, nothing, and says nothing more."""
    for module in (peers, channel_connection):
        monkeypatch.setattr(module, "GATEWAY_PING_INTERVAL_MS", 20)
    monkeypatch.setattr(channel_connection, "GATEWAY_STALE_MS", 60_000)
    monkeypatch.setattr(peers, "PEER_WAIT_MS_MAX", 10)
    worker = await make_worker(0, 2, tmp_path).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(f"{tmp_path}/peer-1-to-0.sock")
        silent.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(silent, f"{tmp_path}/peer-0.sock")
        await loop.sock_sendall(silent, b"RSALL 1\r\nRSSUM 1 0 0000000000000000\r\nPONG\r\n")
        links = worker.plane.peers.links
        await until(lambda: [link.learned.is_stale for link in links.values()] == [False], "it has told all")
        async with connected(worker) as (publisher,):
            assert b"503" in await told(publisher, b"SUB inbox 1\r\nPUB work inbox 0\r\n\r\n")
            monkeypatch.setattr(channel_connection, "GATEWAY_STALE_MS", 200)
            await until(lambda: [link.learned.is_stale for link in links.values()] == [True], "it is not heard")
            await publisher.send(b"PUB work inbox 1\r\nx\r\n")
            sent = b""
            while b"RMSG $G work inbox 1\r\nx\r\n" not in sent:
                sent += await asyncio.wait_for(loop.sock_recv(silent, 4_096), 60)
        monkeypatch.setattr(channel_connection, "GATEWAY_SILENCE_MS_MAX", 400)
        await until(lambda: worker.links.missing == [1], "it is given up")
    await worker.stop()


async def test_what_was_taken_before_a_stop_reaches_the_clients_of_the_other(pair: list[Running]) -> None:
    async with connected(*pair) as (subscriber, publisher):
        await told(subscriber, b"SUB a 1\r\n")
        payload = b"x" * 1_000
        await told(publisher, b"PUB a 1000\r\n%s\r\n" % payload * 2_000)
        await asyncio.gather(*(worker.stop() for worker in pair))
        assert (await subscriber.until_closed()).count(payload) == 2_000


async def test_a_worker_does_not_wait_for_ever_for_one_that_never_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PEER_WAIT_MS_MAX", 50)
    worker = await make_worker(1, 2, tmp_path).start()
    assert worker.links.missing == [0]
    async with connected(worker) as (client,):
        assert await told(client, b"SUB a 1\r\nPUB a 1\r\nx\r\n") == b"MSG a 1 1\r\nx\r\n"
    await worker.stop()


# -- what the supervisor holds ----------------------------------------------------------------------------------------


def listener(port: int, *, shares: bool) -> socket.socket:
    with contextlib.ExitStack() as opened:
        made = opened.enter_context(socket.socket())
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        made.bind(("127.0.0.1", port))
        made.listen()
        opened.pop_all()
        return made


def test_a_reserved_port_is_for_those_that_share_it() -> None:
    with reserved(Address("127.0.0.1", 0)) as port:
        assert port > 0
        with pytest.raises(OSError, match="in use"):
            listener(port, shares=False)
        with listener(port, shares=True), listener(port, shares=True):
            pass


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_another_listens_on_is_refused_though_it_would_share_it(shares: bool) -> None:
    with listener(0, shares=shares) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        refusal = pytest.raises(OSError, match=f"cannot listen on {address} for clients: address already in use")
        with refusal, reserved(address):
            pass


def test_the_folder_is_private_and_does_not_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with private_folder() as folder:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        Path(folder.monitor(0)).touch()
    assert not folder.path.exists()
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(long))
    with pytest.raises(OSError, match="let TMPDIR name another folder"), private_folder():
        pass
    assert list(long.iterdir()) == []


# -- pages ------------------------------------------------------------------------------------------------------------


def test_varz_adds_up_what_counts_and_describes_the_gateway_by_its_oldest_worker() -> None:
    pages: dict[int, dict[str, Any]] = {
        0: {"start": "2026-02-02", "in_msgs": 5, "cpu": 0.4, "slow_consumer_stats": {"clients": 1}, "max_payload": 7},
        1: {"start": "2026-01-01", "in_msgs": 6, "cpu": 0.7, "slow_consumer_stats": {"clients": 2}, "max_payload": 7},
    }
    assert worker_pages.Varz().merged(pages) == {
        "start": "2026-01-01",
        "in_msgs": 11,
        "cpu": 1.1,
        "slow_consumer_stats": {"clients": 3},
        "max_payload": 7,
    }


def test_counters_of_varz_do_not_fall_when_a_worker_ends_and_another_takes_its_place() -> None:
    varz = worker_pages.Varz()

    def sums(**pages: tuple[str, int]) -> tuple[int, int]:
        made = varz.merged(
            {
                int(name[1:]): {
                    "start": start,
                    "in_msgs": count,
                    "connections": 2,
                    "slow_consumer_stats": {"clients": count},
                }
                for name, (start, count) in pages.items()
            }
        )
        assert made["slow_consumer_stats"] == {"clients": made["in_msgs"]}
        return made["in_msgs"], made["connections"]

    assert sums(w0=("1", 5), w1=("2", 6)) == (11, 4)
    assert sums(w1=("2", 7)) == (12, 2)  # the first has ended
    assert sums(w0=("3", 1), w1=("2", 7)) == (13, 4)
    assert sums(w0=("4", 2), w1=("5", 0)) == (15, 4)
    assert sums(w0=("4", 3), w1=("5", 0)) == (16, 4)


@pytest.mark.parametrize(("largest_first", "expected"), [(False, ["a", "c", "d", "b"]), (True, ["b", "d", "c", "a"])])
def test_connz_is_sorted_and_cut_after_merging(largest_first: bool, expected: list[str]) -> None:
    mine: dict[str, Any] = {"keys": [[1, 1], [4, 3]], "connections": ["a", "b"], "total": 12}
    other: dict[str, Any] = {"keys": [[2, 2], [2, 4]], "connections": ["c", "d"], "total": 20}
    pages = [{"largest_first": largest_first, **page} for page in (mine, other)]
    whole = worker_pages.connz(pages, Window(0, 10))
    assert whole == {"num_connections": 4, "total": 32, "offset": 0, "limit": 10, "connections": expected}
    assert worker_pages.connz(pages, Window(1, 2))["connections"] == expected[1:3]


def test_subsz_puts_lists_behind_each_other_and_shows_none_where_none_is_asked_for() -> None:
    page = {"num_subscriptions": 2, "num_cache": 1, "num_inserts": 3, "num_removes": 1, "total": 2, "offset": 5}
    merged = worker_pages.subsz(
        [{**page, "subscriptions_list": [1, 2]}, {**page, "subscriptions_list": [3]}], Window(0, 4)
    )
    assert merged["subscriptions_list"] == [1, 2, 3]
    assert (merged["num_subscriptions"], merged["total"], merged["offset"], merged["limit"]) == (4, 4, 0, 4)
    assert "subscriptions_list" not in worker_pages.subsz([page, page], Window(0, 4))


def test_routez_puts_links_behind_each_other_with_their_worker_and_says_who_misses_whom() -> None:
    pages = {
        0: {"server_id": "S", "num_routes": 1, "routes": [{"remote_name": "gw2"}], "missing": ["gw2/1"], "zones": {}},
        1: {"server_id": "S", "num_routes": 0, "routes": [], "missing": ["gw2", "gw2/1"], "zones": {}},
    }
    assert worker_pages.routez(pages) == {
        "server_id": "S",
        "num_routes": 1,
        "routes": [{"worker": 0, "remote_name": "gw2"}],
        "missing": ["gw2/1", "gw2"],
        "workers": [{"number": 0, "missing": ["gw2/1"]}, {"number": 1, "missing": ["gw2", "gw2/1"]}],
        "zones": {},
    }
    alone = {"server_id": "S", "num_routes": 0, "routes": []}
    assert worker_pages.routez({0: alone, 1: alone}) == alone


def test_accountz_adds_up_the_detail_of_one_account() -> None:
    detail = {"account_name": "A", "client_connections": 2, "sublist_stats": {"num_inserts": 3}}
    names = {"accounts": ["$G", "A"]}
    assert worker_pages.accountz([names, names]) == names
    merged = worker_pages.accountz([{"account_detail": detail}, {"account_detail": detail}])
    assert merged == {
        "account_detail": {"account_name": "A", "client_connections": 4, "sublist_stats": {"num_inserts": 6}}
    }
