"""Accounts on a gateway with its sink: streams, answers and history of each, and nothing of another's."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import nkeys
import pytest
from nats.aio.client import Client
from support.natsraw import RawClient
from support.processes import settle

from mesh import daemon
from protocol import config

FILE = """
[mesh]
name = "acme"
[zones.home.gateways.gw1]
client = "127.0.0.1:0"
[zones.home.sinks.sink1]
link = "127.0.0.1:0"
data = {data}
[accounts.ACME]
[streams.orders]
subjects = ["orders.*"]
[streams.acme-orders]
subjects = ["orders.*"]
account = "ACME"
[[users]]
user = "plain"
password = "x"
[[users]]
user = "acme"
password = "x"
account = "ACME"
[[users]]
nkey = "{nkey}"
account = "ACME"
[[users]]
user = "reader"
password = "x"
account = "ACME"
permissions.history = ["*@home"]
[[users]]
user = "narrow"
password = "x"
account = "ACME"
permissions.history = "events-ACME"
"""
SEED = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
PAIR = nkeys.from_seed(SEED)
Connect = Callable[[str], Awaitable[Client]]


@pytest.fixture
async def node(tmp_path) -> AsyncIterator[daemon.Node]:
    node = daemon._embedded(
        config.parse(FILE.format(data=json.dumps(str(tmp_path / "data")), nkey=PAIR.public_key.decode()), "mesh.toml")
    )
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def connect(node) -> AsyncIterator[Connect]:
    clients = []

    async def as_user(user: str) -> Client:
        clients.append(await nats.connect(f"nats://127.0.0.1:{node.clients[1]}", user=user, password="x"))
        return clients[-1]

    yield as_user
    for client in clients:
        await client.close()


async def ask(client: Client, subject: str, payload: object = None) -> dict[str, Any]:
    body = b"" if payload is None else json.dumps(payload).encode()
    return json.loads((await client.request(subject, body, timeout=60)).data)


async def test_the_same_subject_goes_into_the_stream_of_the_publishers_account(connect):
    plain, acme = await connect("plain"), await connect("acme")
    assert (await ask(plain, "orders.a", 1))["stream"] == "orders"
    acks = [await ask(acme, "orders.a", number) for number in range(2)]
    assert [(ack["stream"], ack["offset"]) for ack in acks] == [("acme-orders", 0), ("acme-orders", 1)]
    catch_all = await acme.request("other", b"x", timeout=60, headers={"Nats-Msg-Id": "1"})
    assert json.loads(catch_all.data)["stream"] == "events-ACME"


async def test_a_client_with_an_nkey_is_in_its_account(node, connect, tmp_path):
    (tmp_path / "seed").write_bytes(SEED)
    client = await nats.connect(f"nats://127.0.0.1:{node.clients[1]}", nkeys_seed=str(tmp_path / "seed"))
    assert (await ask(client, "orders.a", 1))["stream"] == "acme-orders"
    await client.close()


async def test_an_answer_is_not_heard_in_another_account(connect):
    plain, acme = await connect("plain"), await connect("acme")
    elsewhere, here = await plain.subscribe("inbox"), await acme.subscribe("inbox")
    await settle(plain)
    await acme.publish("orders.a", b"x", reply="inbox")
    assert json.loads((await here.next_msg(timeout=60)).data)["stream"] == "acme-orders"
    await ask(plain, "orders.a", 1)
    assert elsewhere.pending_msgs == 0


async def test_a_user_sees_the_history_of_its_account_alone(connect):
    users = {name: await connect(name) for name in ("plain", "acme", "reader", "narrow")}
    await ask(users["acme"], "orders.a", "mine")
    seen = {
        name: {row["stream"] for row in (await ask(client, "$LOG.METADATA"))["streams"]}
        for name, client in users.items()
    }
    assert seen == {
        "plain": {"orders", "events"},
        "acme": {"acme-orders", "events-ACME"},
        "reader": {"acme-orders", "events-ACME"},
        "narrow": {"events-ACME"},
    }
    for verb, request in (("OFFSETS.acme-orders", {"at": "latest"}), ("METADATA.acme-orders", None)):
        refused = await ask(users["plain"], f"$LOG.{verb}", request)
        assert refused["error"]["name"] == "UNKNOWN_STREAM"
        assert refused["error"]["message"] == "no stream 'acme-orders'; streams are events, orders"
        assert "error" not in await ask(users["reader"], f"$LOG.{verb}", request)
        assert (await ask(users["narrow"], f"$LOG.{verb}", request))["error"]["name"] == "AUTHORIZATION_FAILED"
    fetch = json.dumps({"offset": 0}).encode()
    refused = await users["plain"].request("$LOG.FETCH.acme-orders.0", fetch, timeout=60)
    assert refused.headers["Status"] == "404"
    shown = await users["acme"].request("$LOG.FETCH.acme-orders.0", fetch, timeout=60)
    assert shown.data == b'"mine"'


async def test_a_fetch_ends_when_its_client_becomes_another_user(node, connect):
    acme = await connect("acme")
    async with RawClient(node.clients[1]) as client:
        await client.send(
            login("acme") + b"SUB inbox 1\r\nPUB $LOG.FETCH.acme-orders.0 inbox 34\r\n"
            b'{"offset": 0, "max_wait_ms":30000}\r\nPING\r\n'
        )
        assert b"PONG" in await client.until(b"PONG\r\n")
        assert node.gateway.history.requests["FETCH"] == 1
        await client.send(login("plain") + b"SUB inbox 2\r\nPING\r\n")
        await client.until(b"PONG\r\n")
        await ask(acme, "orders.a", "not for others")
        assert await client.until_quiet() == b""


def login(user: str) -> bytes:
    options = {"user": user, "pass": "x", "verbose": False, "pedantic": False, "headers": True}
    return b"CONNECT " + json.dumps(options).encode() + b"\r\n"


async def test_accounts_work_where_nothing_is_kept(tmp_path):
    text = FILE.format(data=json.dumps(str(tmp_path)), nkey=PAIR.public_key.decode()).replace(
        'name = "acme"', 'name = "acme"\nmode = "delivery-fabric"', 1
    )
    node = daemon._embedded(config.parse(text, "mesh.toml"))
    await node.start()
    async with RawClient(node.clients[1]) as client:
        await client.send(login("acme") + b"SUB a 1\r\nPUB a 1\r\nx\r\nPING\r\n")
        assert await client.until(b"PONG\r\n") == b"MSG a 1 1\r\nx\r\nPONG\r\n"
    await node.stop()
