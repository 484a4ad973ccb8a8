"""`$LOG` and PubAcks on a gateway with its sink in this process: what a requester is told when something is wrong."""

import asyncio
import json
from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client

from gateway.shell.history import HistoryService
from gateway.shell.link import SinkLink
from mesh import daemon
from protocol import config


@pytest.fixture
async def node(tmp_path) -> AsyncIterator[daemon.Node]:
    address = config.Address.parse("127.0.0.1:0")
    streams = {"orders": ["orders.>"]}
    node = daemon._embedded(
        config.embedded(client=address, monitor=None, data=str(tmp_path), mode="event-sinks", streams=streams)
    )
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def client(node) -> AsyncIterator[Client]:
    connection = await nats.connect(f"nats://127.0.0.1:{node.clients[1]}")
    yield connection
    await connection.close()


async def test_a_request_that_meets_a_bug_of_ours_is_answered(client, monkeypatch, capsys):
    async def fails(self, session, name):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(HistoryService, "_metadata", fails)
    answer = json.loads((await client.request("$LOG.METADATA", b"", timeout=60)).data)
    assert answer["error"]["name"] == "UNKNOWN_SERVER_ERROR"
    assert "ZeroDivisionError" in capsys.readouterr().out
    monkeypatch.undo()
    assert json.loads((await client.request("$LOG.METADATA", b"", timeout=60)).data)["zone"] == "local"


async def test_no_answer_is_ever_delivered_on_a_system_subject(client):
    everything = await client.subscribe(">")
    await client.publish("orders.a", b"asks", reply="$LOG.METADATA")
    ack = json.loads((await client.request("orders.b", b"asks too", timeout=60)).data)
    assert ack["offset"] == 1
    seen = [(await everything.next_msg(timeout=60)).subject for _ in range(3)]
    assert seen[:2] == ["orders.a", "orders.b"]
    assert seen[2].startswith("_INBOX.")


async def test_a_fetch_that_waits_ends_with_the_subscription_that_it_would_answer(node, client):
    inbox = await client.subscribe("inbox")
    await client.publish("$LOG.FETCH.orders.0", b'{"offset": 0, "max_wait_ms": 60000}', reply="inbox")
    await client.request("$LOG.METADATA", b"", timeout=60)
    waiting = [task for tasks in node.gateway.history._tasks.values() for task in tasks]
    assert [task.done() for task in waiting] == [False]
    await inbox.unsubscribe()
    await asyncio.wait(waiting, timeout=60)
    assert waiting[0].cancelled()
    assert not any(node.gateway.history._tasks.values())
    assert not node.gateway.plane.accounts["$G"].watches


async def test_the_next_chunk_is_asked_for_while_the_last_one_is_shown(node, client, monkeypatch):
    """And nothing is read twice, or left over, whether the fetch ends with a chunk or within one.

    A gateway where as many chunks as may be are read ahead already asks for each only when it can be shown.
    """
    seen: list[tuple[str, int]] = []
    fetch, hand_over = SinkLink.fetch, HistoryService._hand_over

    def asked(self, stream, partition, offset, *rest):
        seen.append(("asks", offset))
        return fetch(self, stream, partition, offset, *rest)

    def shown(self, *arguments):
        seen.append(("shows", arguments[-1].next_offset))
        return hand_over(self, *arguments)

    monkeypatch.setattr("gateway.shell.history.FETCH_CHUNK_BYTES", 1)  # a batch
    monkeypatch.setattr(SinkLink, "fetch", asked)
    monkeypatch.setattr(HistoryService, "_hand_over", shown)
    for number in range(4):
        await client.request("orders.a", b"%d" % number, timeout=60)
    assert (await history(client, max_records=9)) == [b"0", b"1", b"2", b"3"]
    batches = [("shows", number) for number in range(4)]
    assert [each for each in seen if each[0] == "shows"] == batches
    assert seen.index(("asks", 1)) < seen.index(("shows", 0))
    assert sorted(number for what, number in seen if what == "asks") == [0, 1, 2, 3, 4]
    seen.clear()
    assert (await history(client, max_records=2)) == [b"0", b"1"]
    assert seen == [("asks", 0), ("asks", 1), ("shows", 0), ("shows", 1)]
    assert not node.gateway.history._ahead
    seen.clear()
    monkeypatch.setattr("gateway.shell.history.FETCHES_AHEAD_MAX", 0)
    assert (await history(client, max_records=2)) == [b"0", b"1"]
    assert seen == [("asks", 0), ("shows", 0), ("asks", 1), ("shows", 1)]


async def history(client: Client, **request: int) -> list[bytes]:
    inbox = await client.subscribe(client.new_inbox())
    await client.publish("$LOG.FETCH.orders.0", json.dumps({"offset": 0, **request}).encode(), reply=inbox.subject)
    payloads = []
    while "Status" not in (message := await inbox.next_msg(timeout=60)).headers:
        payloads.append(message.data)
    return payloads
