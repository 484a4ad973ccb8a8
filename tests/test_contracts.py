"""Contracts by themselves: what may be registered, whose it is, and which events keep one."""

import msgspec
import pytest
from support.gateway import ENGINES, Hooks, PlaneClient, make_plane

from gateway.core.contracts import Contracts, compile_schema
from gateway.core.identity import Permissions, UserEntry
from protocol import contracts, limits
from protocol.contracts import Contract, RegisterRequest
from protocol.errors import LogError
from sinkd.core import commands
from sinkd.core.commands import ChangeContract
from sinkd.core.machine import ContractChanged, Machine
from sinkd.core.state import State

ORDERS = Contract("$G", "orders", "shop", ("orders.>",))
SCHEMA = b'{"type":"object","required":["id"],"properties":{"id":{"type":"integer"}}}'


def request(**fields) -> RegisterRequest:
    return msgspec.convert({"name": "orders", "subjects": ["orders.>"], "owner": "shop"} | fields, RegisterRequest)


# -- what may be registered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": ""}, "name must be 1 to 128"),
        ({"name": "a b"}, "name 'a b': letters, digits"),
        ({"subjects": []}, "subjects must be 1 to 100 patterns, got 0"),
        ({"subjects": ["a..b"]}, "'a..b' is not a subject pattern"),
        ({"subjects": ["$SYS.>"]}, "'$SYS.>': subjects that begin with _ or $"),
        ({"content_type": "json"}, "content_type 'json' is no media type"),
        ({"content_type": "text/plain", "schema": {}}, "schema: it speaks of JSON, and content_type is 'text/plain'"),
        ({"max_bytes": -1}, "max_bytes must be from 0"),
        ({"schema": {"description": "x" * limits.CONTRACT_BYTES_MAX}}, "at most 65536 are kept"),
    ],
)
def test_what_is_wrong_with_a_contract_is_said(fields, problem):
    with pytest.raises(LogError) as caught:
        contracts.contract_of(request(**fields), "$G", "shop")
    assert caught.value.name == "CONTRACT_INVALID"
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (b'{"minimum":"x"}', 'schema: /minimum: "x" is not of type "number"'),
        (b'{"$ref":"http://127.0.0.1:1/x"}', "Retrieval is disabled"),
        (b'{"$ref":"file:///etc/hostname"}', "Retrieval is disabled"),
        (b'{"pattern":"(?<=a)b"}', 'is not a "regex"'),
    ],
)
def test_a_bad_schema_is_named(schema, problem):
    with pytest.raises(LogError) as caught:
        compile_schema(schema)
    assert problem in str(caught.value)
    assert caught.value.name == "CONTRACT_INVALID"


# -- whose it is ------------------------------------------------------------------------------------------------------


def refusal(present, wanted, *, removes=False) -> str:
    with pytest.raises(LogError) as caught:
        contracts.change(present, wanted, removes=removes, now_ms=5)
    return caught.value.name


def test_the_owner_alone_changes_and_removes_a_contract():
    present: dict = {}
    first = contracts.change(present, ORDERS, removes=False, now_ms=5)
    assert (first.version, first.registered_ms) == (1, 5)
    assert contracts.change(present, ORDERS, removes=False, now_ms=6) == first
    thief = msgspec.structs.replace(ORDERS, owner="thief")
    assert refusal(present, thief) == refusal(present, thief, removes=True) == "CONTRACT_OWNER"
    wider = msgspec.structs.replace(ORDERS, subjects=("orders.>", "returns"))
    assert contracts.change(present, wider, removes=False, now_ms=7).version == 2
    assert contracts.change(present, ORDERS, removes=True, now_ms=8).version == 2
    assert not present
    assert refusal(present, ORDERS, removes=True) == "CONTRACT_UNKNOWN"


def test_contracts_of_one_account_share_no_subject():
    present: dict = {}
    contracts.change(present, ORDERS, removes=False, now_ms=5)
    other = Contract("$G", "new", "shop", ("orders.*.paid",))
    assert refusal(present, other) == "CONTRACT_OVERLAP"
    contracts.change(present, msgspec.structs.replace(other, account="ACME"), removes=False, now_ms=5)
    assert len(present) == 2


def test_there_are_so_many_and_no_more(monkeypatch):
    present: dict = {}
    monkeypatch.setattr(contracts, "CONTRACTS_MAX", 2)
    for name in ("a", "b"):
        contracts.change(present, Contract("$G", name, "shop", (name,)), removes=False, now_ms=5)
    assert refusal(present, Contract("$G", "c", "shop", ("c",))) == "CONTRACT_QUOTA"
    contracts.change(present, Contract("$G", "b", "shop", ("b", "c")), removes=False, now_ms=5)
    monkeypatch.setattr(contracts, "CONTRACTS_BYTES_MAX", 100)
    large = Contract("$G", "b", "shop", ("b",), schema=b'"' + b"x" * 100 + b'"')
    assert refusal(present, large) == "CONTRACT_QUOTA"


def test_the_machine_keeps_them_and_its_snapshot_does():
    machine = Machine()
    result = machine.apply(commands.encode(commands.CONTRACT, 7, ChangeContract(ORDERS)))
    assert isinstance(result, ContractChanged)
    assert (result.contract.version, result.contract.registered_ms, result.refusal) == (1, 7, None)
    thief = msgspec.structs.replace(ORDERS, owner="thief")
    refused = machine.apply(commands.encode(commands.CONTRACT, 8, ChangeContract(thief, True)))
    assert isinstance(refused, ContractChanged)
    assert refused.refusal is not None
    assert refused.refusal.name == "CONTRACT_OWNER"
    again = Machine(machine.snapshot())
    assert again.state.contracts == {("$G", "orders"): result.contract}


def test_a_checkpoint_from_before_there_were_contracts_is_read():
    fields = msgspec.msgpack.decode(Machine().snapshot())
    before = fields[: State.__struct_fields__.index("contracts")]
    assert Machine(msgspec.msgpack.encode(before)).state.contracts == {}


@pytest.mark.parametrize(
    ("entry", "pattern", "may"),
    [
        (UserEntry("a"), "orders.>", True),
        (UserEntry("a", publish_allow=("orders.*",)), "orders.>", False),
        (UserEntry("a", publish_allow=("orders.>",)), "orders.*.paid", True),
        (UserEntry("a", publish_deny=("orders.secret",)), "orders.>", False),
        (UserEntry("a", publish_deny=("returns",)), "orders.>", True),
    ],
)
def test_who_may_publish_all_of_it(entry, pattern, may):
    assert Permissions(entry).may_publish_all(pattern) is may


# -- which events keep one --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "block", "payload", "reason"),
    [
        ({}, b"", b"anything", None),
        ({"bytes_max": 5}, b"", b"12345", None),
        ({"bytes_max": 5}, b"", b"123456", "size"),
        ({"bytes_max": 30}, b"NATS/1.0\r\nA: b\r\n\r\n", b"1" * 13, "size"),
        ({"content_type": "text/plain"}, b"", b"no header", None),
        ({"content_type": "text/plain"}, b"NATS/1.0\r\ncontent-type: Text/Plain; charset=x\r\n\r\n", b"", None),
        ({"content_type": "text/plain"}, b"NATS/1.0\r\nContent-Type: text/html\r\n\r\n", b"", "content_type"),
        ({"content_type": "application/json"}, b"", b"[1, 2]", None),
        ({"content_type": "application/json"}, b"", b"", "not_json"),
        ({"content_type": "application/x+json"}, b"", b"[" * 100_000, "not_json"),
        ({"content_type": "application/json"}, b"", b'"\xff"', "not_json"),
        ({"schema": SCHEMA}, b"", b'{"id": 1}', None),
        ({"schema": SCHEMA}, b"", b'{"id": "secret"}', "schema"),
        ({"schema": SCHEMA}, b"", b"{}", "schema"),
        ({"schema": b"false"}, b"", b"{}", "schema"),
        ({"schema": b'{"enum":[1]}'}, b"", b"[" * 900 + b"]" * 900, "schema"),  # the validator gives up
    ],
)
def test_what_breaks_a_contract(fields, block, payload, reason):
    known = Contracts("enforce")
    known.told([msgspec.structs.replace(ORDERS, **fields)])
    found = known.check("$G", "orders.1", block, payload)
    assert (found and found.reason) == reason
    assert found is None or "secret" not in found.text
    assert known.check("$G", "other", block, payload) is None
    assert known.check("ACME", "orders.1", block, payload) is None


def test_a_schema_that_is_none_lets_nothing_pass():
    known = Contracts("enforce")
    known.told([msgspec.structs.replace(ORDERS, schema=b'{"type":"objct"}')])
    for _ in range(2):
        found = known.check("$G", "orders.1", b"", b"{}")
        assert found is not None
        assert found.text.startswith("schema: ")


def test_what_is_told_takes_the_place_of_what_was():
    known = Contracts("warn")
    assert not known.governs("$G", "orders.1")
    known.told([ORDERS])
    assert known.governs("$G", "orders.1")
    known.told([])
    assert not known.governs("$G", "orders.1")


def test_until_they_are_known_everything_waits_where_they_are_enforced():
    assert [Contracts(mode).governs("$G", "a") for mode in ("off", "warn", "enforce")] == [False, False, True]


def test_where_they_are_off_nothing_is_asked():
    known = Contracts("off")
    known.told([ORDERS])
    assert not known.governs("$G", "orders.1")


class Governing(Hooks):
    """Subjects below `orders` are under a contract, which allows what begins with `good`."""

    def governs(self, account, subject):
        return subject.startswith("orders.")

    def admits(self, session, subject, reply, header_block, payload):
        return payload.startswith(b"good")


@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_gets_what_is_not_admitted(engine):
    hooks = Governing()
    plane = make_plane(hooks, engine)
    client = PlaneClient(plane, b'CONNECT {"verbose":false}\r\n')
    client.send(b"SUB > 1\r\n")
    for _ in range(3):  # the third time the route of the subject is in the cache
        got = client.send(b"PUB orders.1 3\r\nbad\r\nPUB orders.1 4\r\ngood\r\nPUB other 3\r\nbad\r\n")
        assert got == b"MSG orders.1 1 4\r\ngood\r\nMSG other 1 3\r\nbad\r\n"
    assert [payload for *_, payload in hooks.captured] == [b"good", b"bad"] * 3
