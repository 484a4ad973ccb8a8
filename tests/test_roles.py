"""Roles on a gateway with its sink, by the official client: what each may do, and what it is told when it may not."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from support.audits import audited, until_audited
from support.natsraw import RawClient
from support.processes import settle

from mesh import daemon
from mesh.log_reader import LogReader, Partition
from protocol import config
from protocol.errors import LogError

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
[streams.secrets]
subjects = ["secrets.*"]
"""
USERS = {
    "publisher": 'role = "publisher"',
    "subscriber": 'role = "subscriber"',
    "replayer": 'role = "replayer"',
    "operator": 'role = "operator"',
    "elsewhere": 'role = "operator"\naccount = "ACME"',
    "nobody": "",
    "narrow": 'role = "publisher"\npermissions = { publish = "orders.*", history = "orders", subscribe = ">" }',
    "denied": 'role = "subscriber"\npermissions = { subscribe = { deny = "secrets.*" } }',
    "service": 'role = "subscriber"\npermissions.allow_responses = true',
    "writer": 'role = "publisher"\npermissions.allow_responses = true',
    "blind": 'role = "operator"\npermissions.history = "orders"',
}
Connect = Callable[[str], Awaitable[Client]]


@pytest.fixture
async def node(tmp_path) -> AsyncIterator[daemon.Node]:
    users = "".join(f'[[users]]\nuser = "{name}"\npassword = "x"\n{more}\n' for name, more in USERS.items())
    node = daemon._embedded(config.parse(FILE.format(data=json.dumps(str(tmp_path / "data"))) + users, "mesh.toml"))
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def connect(node) -> AsyncIterator[Connect]:
    connections = []

    async def by_name(name: str) -> Client:
        async def noted(error: Exception) -> None:
            errors.append(str(error))

        errors: list[str] = []
        url = f"nats://127.0.0.1:{node.clients[1]}"
        connection = await nats.connect(url, user=name, password="x", error_cb=noted, allow_reconnect=False)
        connection.told = errors
        connections.append(connection)
        return connection

    yield by_name
    for connection in connections:
        await connection.close()


async def told(client: Any) -> list[str]:
    """The errors that the client was told, all it has sent being acted on."""
    await settle(client)
    errors, client.told[:] = list(client.told), []
    return errors


async def subscribes(client: Client, subject: str) -> bool:
    subscription = await client.subscribe(subject)
    errors = await told(client)
    assert errors in ([], [f'nats: permissions violation for subscription to "{subject.lower()}"']), errors
    if not errors:
        await subscription.unsubscribe()
    return not errors


async def publishes(client: Client, subject: str) -> bool:
    await client.publish(subject, b"x")
    errors = await told(client)
    assert errors in ([], [f'nats: permissions violation for publish to "{subject.lower()}"']), errors
    return not errors


async def reads(client: Client, stream: str) -> bool:
    answer = json.loads((await client.request(f"$LOG.METADATA.{stream}", b"", timeout=60)).data)
    assert answer.get("error", {}).get("name") in (None, "AUTHORIZATION_FAILED"), answer
    return "error" not in answer


@pytest.mark.parametrize(
    ("user", "may_subscribe", "may_publish", "may_read"),
    [
        ("publisher", "_INBOX.x", "orders.a secrets.a $MESH.CONTRACT.x", ""),
        ("subscriber", "_INBOX.x orders.* secrets.a >", "", ""),
        ("replayer", "_INBOX.x orders.* secrets.a >", "", "orders secrets events"),
        (
            "operator",
            "_INBOX.x orders.* secrets.a >",
            "orders.a secrets.a $MESH.CONTRACT.x",
            "orders secrets events $AUDIT",
        ),
        ("nobody", "_INBOX.x orders.* secrets.a >", "orders.a secrets.a $MESH.CONTRACT.x", "orders secrets events"),
        ("narrow", "_INBOX.x orders.* secrets.a >", "orders.a", "orders"),
        ("denied", "_INBOX.x orders.* >", "", ""),
        ("writer", "_INBOX.x", "orders.a secrets.a $MESH.CONTRACT.x", ""),
        ("blind", "_INBOX.x orders.* secrets.a >", "orders.a secrets.a $MESH.CONTRACT.x", "orders"),
    ],
)
async def test_each_role_may_what_it_is_for_and_nothing_else(connect, user, may_subscribe, may_publish, may_read):
    client = await connect(user)
    subjects = ("_INBOX.x", "orders.*", "secrets.a", ">")
    assert [each for each in subjects if await subscribes(client, each)] == may_subscribe.split()
    subjects = ("orders.a", "secrets.a", "$MESH.CONTRACT.x", "$AUDIT.client_connected", "$COVERAGE.x")
    assert [each for each in subjects if await publishes(client, each)] == may_publish.split()
    streams = ("orders", "secrets", "events", "$AUDIT")
    assert [each for each in streams if await reads(client, each)] == may_read.split()


async def test_a_refused_reader_is_told_by_log_and_the_refusal_is_audited(connect):
    operator, client = await connect("operator"), await connect("narrow")
    for _ in range(3):
        with pytest.raises(LogError, match="this user may not read the history of secrets") as refused:
            await LogReader(client).metadata("secrets")
        assert refused.value.name == "AUTHORIZATION_FAILED"
    (event,) = await until_audited(operator, "history_refused")  # the others are summed up within a minute
    shown = {name: event[name] for name in ("zone", "node", "user", "account", "from", "what", "why", "times")}
    assert shown == {
        "zone": "home", "node": "gw1", "user": "narrow", "account": "$G", "from": "127.0.0.1", "what": "read secrets",
        "why": "permissions of the user", "times": 1,
    }  # fmt: skip


async def test_an_operator_of_any_account_reads_back_who_was_refused_what(node, connect):
    """... and what one source repeats is written once a minute, and when the gateway stops."""
    operator, publisher = await connect("elsewhere"), await connect("publisher")
    for number in range(5):
        assert not await subscribes(publisher, f"forbidden.{number}")
    async with RawClient(node.clients[1]) as eve:
        await eve.send(b'CONNECT {"user": "eve", "pass": "no"}\r\n')
        assert b"-ERR 'Authorization Violation'" in await eve.until_closed()
    (refused,) = await until_audited(operator, "permission_refused")
    assert (refused["user"], refused["what"], refused["times"]) == ("publisher", "subscribe to forbidden.0", 1)
    (failed,) = await until_audited(operator, "authentication_failed")
    assert (failed["user"], failed["account"], failed["why"]) == ("eve", "", "Authentication Failure")
    connected = await audited(operator, "client_connected")
    assert [(each["user"], each["account"]) for each in connected] == [("elsewhere", "ACME"), ("publisher", "$G")]
    assert "python3" in connected[0]["what"]
    node.gateway.audit.finish()
    again = (await until_audited(operator, "permission_refused", 2))[1]
    assert (again["what"], again["times"]) == ("subscribe to forbidden.4", 4)


async def test_the_history_that_a_role_reads_is_shown(connect):
    publisher, replayer = await connect("writer"), await connect("replayer")
    for subject in ("orders.a", "secrets.a"):
        assert "seq" in json.loads((await publisher.request(subject, b"x", timeout=60)).data)
    for stream in ("orders", "secrets"):
        result = await LogReader(replayer).fetch(Partition(stream, 0), offset=0)
        assert [record.value for record in result.records] == [b"x"]


async def test_a_subscriber_answers_only_where_it_is_let(connect):
    requester, service = await connect("operator"), await connect("service")

    async def answer(message) -> None:
        await message.respond(b"done")

    await service.subscribe("work", cb=answer)
    await settle(service)
    assert (await requester.request("work", b"", timeout=60)).data == b"done"
    assert not await publishes(service, "work")


async def test_nothing_of_the_audit_stream_is_heard_live(connect):
    operator, listener, other = [await connect(name) for name in ("operator", "operator", "publisher")]
    heard = [await listener.subscribe(subject) for subject in ("$AUDIT.>", ">")]
    await settle(listener)
    assert not await subscribes(other, "x")
    await until_audited(operator, "permission_refused")
    await other.publish("end", b"")
    assert (await heard[1].next_msg(60)).subject == "end"
    assert [each.pending_msgs for each in heard] == [0, 0]
