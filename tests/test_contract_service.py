"""Contracts on gateways and sinks in this process: registered by a client, kept by the zone, held against events."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator

import pytest
from nats.errors import NoRespondersError
from support.processes import client, until
from support.sinks import SinkZone, zone_with_gateway

from gateway.shell import gateway as gateways
from gateway.shell.gateway import Gateway
from mesh.daemon import dial_sinks
from protocol import config, publish

ORDERS = {
    "name": "orders",
    "owner": "shop",
    "subjects": ["orders.>"],
    "max_bytes": 100,
    "schema": {"type": "object", "required": ["id"]},
}
GOOD, BAD = b'{"id": 1}', b"{}"
CATCH_ALL = '[streams.orders]\nsubjects = ["orders.>"]\n'
USERS = """
[[users]]
user = "shop"
password = "p"
[[users]]
user = "thief"
password = "p"
[[users]]
user = "boss"
password = "p"
role = "operator"
[[users]]
user = "clerk"
password = "p"
permissions = { publish = { allow = ["$MESH.>", "orders.new"] } }
"""


def zone(tmp_path, mode: str, more: str = ""):
    """One sink and a gateway."""
    return zone_with_gateway(tmp_path, count=1, streams=CATCH_ALL + more, contracts=mode)


async def ask(connection, verb: str, **fields):
    answer = await connection.request(f"$MESH.CONTRACT.{verb}", json.dumps(fields).encode(), timeout=60)
    return json.loads(answer.data)


async def error_of(connection, verb: str, **fields) -> tuple[str, str]:
    error = (await ask(connection, verb, **fields))["error"]
    return error["name"], error["message"]


async def test_what_breaks_a_contract_is_refused_where_it_is_enforced(tmp_path, capsys):
    async with zone(tmp_path, "enforce") as (_, gateway, url), client(url) as connection:
        seen = await connection.subscribe("orders.>")
        await connection.request("orders.1", BAD, timeout=60)  # under no contract yet, and its route is in the cache
        answer = await ask(connection, "REGISTER", **ORDERS)
        assert (answer["version"], answer["subjects"], answer["schema"]) == (1, ["orders.>"], ORDERS["schema"])
        refused = json.loads((await connection.request("orders.1", BAD, timeout=60)).data)["error"]
        assert (refused["code"], refused["err_code"]) == (400, publish.breaks_contract("", "").err_code)
        assert refused["description"] == 'breaks contract orders: "id" is a required property'
        too_large = json.loads((await connection.request("orders.1", b" " * 101, timeout=60)).data)["error"]
        assert "101 bytes, at most 100 are agreed" in too_large["description"]
        for _ in range(3):
            await connection.publish("orders.1", BAD)  # nobody asks for an answer
        taken = json.loads((await connection.request("orders.1", GOOD, timeout=60)).data)
        assert taken["offset"] == 1
        assert [(await seen.next_msg(timeout=60)).data for _ in range(2)] == [BAD, GOOD]
        assert gateway.contracts.violations == {("$G", "orders", "schema"): 4, ("$G", "orders", "size"): 1}
        assert gateway.outbox.counters.refused[refused["err_code"]] == 5
        assert capsys.readouterr().out.count("contract_broken") == 1
        await ask(connection, "REMOVE", name="orders", owner="shop")
        assert json.loads((await connection.request("orders.1", BAD, timeout=60)).data)["offset"] == 2
        assert not gateway.contracts.violations


async def test_a_service_does_not_see_a_request_that_breaks_a_contract(tmp_path):
    async with zone(tmp_path, "enforce") as (_, _, url), client(url) as connection:
        await ask(connection, "REGISTER", **(ORDERS | {"subjects": ["help"]}))
        with pytest.raises(NoRespondersError):
            await connection.request("help", GOOD, timeout=60)
        assert "error" in json.loads((await connection.request("help", BAD, timeout=60)).data)


async def test_with_warn_it_passes_and_is_counted(tmp_path, capsys):
    async with zone(tmp_path, "warn") as (_, gateway, url), client(url) as connection:
        await ask(connection, "REGISTER", **ORDERS)
        assert json.loads((await connection.request("orders.1", BAD, timeout=60)).data)["offset"] == 0
        assert gateway.contracts.violations == {("$G", "orders", "schema"): 1}
        assert "contract_broken" in capsys.readouterr().out


async def test_with_off_they_are_kept_and_nothing_is_checked(tmp_path):
    async with zone(tmp_path, "off") as (_, gateway, url), client(url) as connection:
        await ask(connection, "REGISTER", **ORDERS)
        assert json.loads((await connection.request("orders.1", BAD, timeout=60)).data)["offset"] == 0
        listed = await ask(connection, "LIST")
        assert (listed["mode"], [one["name"] for one in listed["contracts"]]) == ("off", ["orders"])
        assert not gateway.contracts.violations


async def test_wrong_requests_are_answered_by_name(tmp_path):
    async with zone(tmp_path, "warn") as (_, _, url), client(url) as connection:
        assert (await error_of(connection, "REGISTER", name="a"))[0] == "CONTRACT_INVALID"
        assert "unknown field" in (await error_of(connection, "REGISTER", nmae="a"))[1]
        without_owner = {key: value for key, value in ORDERS.items() if key != "owner"}
        assert "owner" in (await error_of(connection, "REGISTER", **without_owner))[1]
        name, message = await error_of(connection, "REGISTER", **(ORDERS | {"schema": {"type": "objct"}}))
        assert (name, message[:7]) == ("CONTRACT_INVALID", "schema:")
        await ask(connection, "REGISTER", **ORDERS)
        assert (await error_of(connection, "REGISTER", **(ORDERS | {"owner": "thief"})))[0] == "CONTRACT_OWNER"
        other = ORDERS | {"name": "new", "subjects": ["orders.new"]}
        assert (await error_of(connection, "REGISTER", **other))[0] == "CONTRACT_OVERLAP"
        assert (await error_of(connection, "REMOVE", name="new", owner="shop"))[0] == "CONTRACT_UNKNOWN"
        assert (await error_of(connection, "CHANGE"))[0] == "UNKNOWN_REQUEST"


async def test_where_there_are_users_the_owner_is_who_asks(tmp_path):
    async with zone(tmp_path, "warn", USERS) as (_, _, url):
        wanted = {key: value for key, value in ORDERS.items() if key != "owner"}
        async with client(url, user="shop", password="p") as shop:
            assert (await ask(shop, "REGISTER", **wanted))["owner"] == "shop"
            assert (await error_of(shop, "REGISTER", **(wanted | {"owner": "thief"})))[0] == "CONTRACT_OWNER"
        async with client(url, user="thief", password="p") as thief:
            assert (await error_of(thief, "REGISTER", **wanted))[0] == "CONTRACT_OWNER"
            assert (await error_of(thief, "REMOVE", name="orders"))[0] == "CONTRACT_OWNER"
        async with client(url, user="boss", password="p") as boss:
            assert (await error_of(boss, "REMOVE", name="orders"))[0] == "CONTRACT_OWNER"  # not its own
            assert (await ask(boss, "REMOVE", name="orders", owner="shop"))["owner"] == "shop"
        async with client(url, user="clerk", password="p") as clerk:
            fields = {"name": "new", "subjects": ["orders.*"]}
            assert (await error_of(clerk, "REGISTER", **fields))[0] == "AUTHORIZATION_FAILED"


@contextlib.asynccontextmanager
async def another_gateway(zone: SinkZone) -> AsyncIterator[tuple[Gateway, str]]:
    """Of the same file."""
    configuration = zone.file()
    eu = configuration.zones["eu"]
    own = dataclasses.replace(eu.gateways["gw1"], client=config.Address("127.0.0.1", 0))
    zones = {"eu": dataclasses.replace(eu, gateways={"gw1": own})}
    configuration = dataclasses.replace(configuration, zones=zones)
    gateway = Gateway(configuration, "gw1", dial_sinks(configuration, own), "test")
    host, port = await gateway.start()
    try:
        yield gateway, f"nats://{host}:{port}"
    finally:
        await gateway.stop(drain=False)


async def test_all_sinks_hold_them_and_who_leads_next_tells_them(tmp_path):
    async with zone_with_gateway(tmp_path, streams=CATCH_ALL, contracts="enforce") as (zone, _, url):
        async with client(url) as connection:
            await ask(connection, "REGISTER", **ORDERS)
        await zone.level()
        assert all(("$G", "orders") in sink.machine.state.contracts for sink in zone.sinks.values())
        await zone.stop(zone.leader)
        async with another_gateway(zone) as (_, second), client(second) as connection:
            assert "error" in json.loads((await connection.request("orders.1", BAD, timeout=60)).data)


async def test_a_restart_of_the_zone_keeps_them(tmp_path):
    async with zone(tmp_path, "enforce") as (sinks, gateway, url), client(url) as connection:
        await ask(connection, "REGISTER", **ORDERS)
        await sinks.stop()
        assert "error" in json.loads((await connection.request("orders.1", BAD, timeout=60)).data)  # it knows them
        await sinks.start()
        await until(lambda: all(link.is_up for link in gateway.links), "the gateway is linked again")
        assert [one["name"] for one in (await ask(connection, "LIST"))["contracts"]] == ["orders"]


async def test_until_they_are_known_nothing_passes_where_they_are_enforced(tmp_path, monkeypatch):
    monkeypatch.setattr(gateways, "CONTRACTS_WAIT_MS_MAX", 50)
    sinks = SinkZone(tmp_path, count=1, streams=CATCH_ALL, contracts="enforce")
    async with another_gateway(sinks) as (gateway, url), client(url) as connection:
        seen = await connection.subscribe("orders.>")
        refused = json.loads((await connection.request("orders.1", GOOD, timeout=60)).data)["error"]
        assert (refused["code"], refused["err_code"]) == publish.CONTRACTS_UNKNOWN[:2]
        assert (await error_of(connection, "LIST"))[0] == "LEADER_NOT_AVAILABLE"
        await sinks.start()
        try:
            await until(lambda: not gateway.contracts.contracts.are_missing, "they are told")
            assert "offset" in json.loads((await connection.request("orders.1", GOOD, timeout=60)).data)
            assert (await seen.next_msg(timeout=60)).data == GOOD
        finally:
            await sinks.stop()


async def test_a_connection_asks_so_much_and_no_more(tmp_path):
    async with zone(tmp_path, "warn") as (_, _, url), client(url) as connection:
        asked = [connection.request("$MESH.CONTRACT.REMOVE", b'{"name": "a", "owner": "b"}', 60) for _ in range(20)]
        answers = [json.loads(answer.data)["error"]["name"] for answer in await asyncio.gather(*asked)]
        assert set(answers) == {"CONTRACT_UNKNOWN", "THROTTLING_QUOTA_EXCEEDED"}
