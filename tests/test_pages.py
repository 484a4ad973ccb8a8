"""The monitoring pages beside those of the real nats-server, after the same clients have done the same things to both.

What each page of ours lacks stands in `LACKING` with the reason, what it has beside in `OWN`: a field that comes or
goes on either side is noticed here. Refusals must be the same to the letter.
"""

import asyncio
import contextlib
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from support.certificates import Authority
from support.natsraw import RawClient
from support.natsserver import free_port, nats_server

from gateway.shell.gateway import Gateway
from mesh.daemon import VERSION, Node
from protocol import config

GO = "is about the Go runtime"
NO_JETSTREAM = "there is no JetStream, its meta group and its feature flags"
NOT_COUNTED = "would cost something for each message"
SYSTEM_ACCOUNT = "there is no system account yet"
CLOSED = "they have it for closed connections alone, and ours have lost their subscriptions"
ONE_CACHE = "plans are cached by permissions, not by account"

LACKING = {
    "/varz": {
        "gomaxprocs": GO,
        "feature_flags": NO_JETSTREAM,
        "disk_io_wait_stats": NO_JETSTREAM,
        "config_digest": "the configuration has a revision, which the sinks keep",
        "system_account": SYSTEM_ACCOUNT,
    },
    "/subsz": {
        "num_cache": ONE_CACHE,  # where one account is asked for
        "num_matches": NOT_COUNTED,
        "cache_hit_rate": NOT_COUNTED,
        "max_fanout": NOT_COUNTED,
        "avg_fanout": NOT_COUNTED,
    },
    "/accountz": {
        "system_account": SYSTEM_ACCOUNT,
        "account_detail.imports": SYSTEM_ACCOUNT,
        "account_detail.sublist_stats.num_cache": ONE_CACHE,
        "account_detail.sublist_stats.num_matches": NOT_COUNTED,
        "account_detail.sublist_stats.cache_hit_rate": NOT_COUNTED,
        "account_detail.sublist_stats.max_fanout": NOT_COUNTED,
        "account_detail.sublist_stats.avg_fanout": NOT_COUNTED,
    },
    "/connz": {
        "connections[].subscriptions_list_detail[].account": CLOSED,
        "connections[].subscriptions_list_detail[].account_tag": CLOSED,
    },
}
OWN = {"/varz": {"mesh_version", "engine"}}

CONFIGURATION = """
[mesh]
name = "acme"
mode = "delivery-fabric"
[zones.eu.gateways.gw1]
client = "127.0.0.1:0"
monitor = "127.0.0.1:0"
"""
OUR_ACCOUNTS = """
[accounts.ACME]
[[users]]
user = "shop"
password = "secret"
account = "ACME"
[[users]]
user = "other"
password = "secret"
"""
THEIR_ACCOUNTS = """
accounts { ACME { users = [{ user: shop, password: secret }] } }
authorization { users = [{ user: other, password: secret }] }
"""
CONNECT = b'CONNECT {"verbose":false,"name":"me","lang":"py","version":"1","user":"hugo"}\r\nPING\r\n'
WORK = b"SUB a.* 1\r\nSUB b q s\r\nUNSUB s 9\r\nPUB a.b 2\r\nhi\r\nPING\r\n"


class Side(NamedTuple):
    """One of the two servers: where its clients connect, and how a page of it is had."""

    port: int
    http: aiohttp.ClientSession

    async def get(self, path: str) -> tuple[int, str, str, str]:
        async with self.http.get(path) as answer:
            origin = answer.headers.get("Access-Control-Allow-Origin", "")
            return answer.status, answer.content_type, origin, await answer.text()

    async def page(self, path: str) -> dict[str, Any]:
        page: dict[str, Any] = json.loads((await self.get(path))[3])
        return page


@contextlib.asynccontextmanager
async def gateway(more: str = "") -> AsyncIterator[Side]:
    configuration = config.parse(CONFIGURATION + more, "mesh.toml")
    node = Node(Gateway(configuration, "gw1", (), VERSION), None)
    try:
        await node.start()
        assert node.clients is not None
        assert node.monitored is not None
        async with aiohttp.ClientSession(f"http://127.0.0.1:{node.monitored[1]}") as http:
            yield Side(node.clients[1], http)
    finally:
        await node.stop()


@contextlib.asynccontextmanager
async def oracle(*arguments: str) -> AsyncIterator[Side]:
    monitor = free_port()
    url = f"http://127.0.0.1:{monitor}"
    async with nats_server("-m", str(monitor), *arguments) as server, aiohttp.ClientSession(url) as http:
        yield Side(server.port, http)


@pytest.fixture
async def sides() -> AsyncIterator[tuple[Side, Side]]:
    """Ours and theirs. One client is there and has worked, one without CONNECT, and three have left."""
    async with contextlib.AsyncExitStack() as stack:
        both = await stack.enter_async_context(gateway()), await stack.enter_async_context(oracle())
        async with RawClient(both[0].port):
            pass  # as theirs has been looked at, to see whether it listens
        for side in both:
            worker = await stack.enter_async_context(RawClient(side.port))
            await worker.send(CONNECT + WORK)
            await worker.until(b"PONG\r\nMSG a.b 1 2\r\nhi\r\nPONG\r\n")
            silent = await stack.enter_async_context(RawClient(side.port))
            await silent.send(b"SUB foo 1\r\n")
            await silent.until(b"+OK\r\n")
            async with RawClient(side.port) as bad:
                await bad.send(b"SUB z 1\r\nBAD\r\n")
                await bad.until_closed()
            async with RawClient(side.port) as leaving:
                await leaving.send(CONNECT.replace(b'"me"', b'"gone"'))
                await leaving.until(b"PONG\r\n")
            await closed(side, 3)
        yield both


async def closed(side: Side, count: int) -> None:
    """Until that many have left. Their sockets go when both ends have let go of them."""
    async with asyncio.timeout(60):
        while (await side.page("/connz?state=closed"))["total"] < count:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)


def shape(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where there is what type of value: `connections[].cid` is a number."""
    if isinstance(value, dict):
        yield path, "object"
        for name, inner in value.items():
            yield from shape(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        yield path, "list"
        for inner in value:
            yield from shape(inner, f"{path}[]")
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        yield path, "number" if is_number else type(value).__name__


PAGES = [
    "/varz",
    "/connz",
    "/connz?auth=1&subs=1",
    "/connz?subs=detail&state=any",
    "/connz?state=closed&auth=true",
    "/subsz",
    "/subscriptionsz?subs=1&acc=$G",
    "/subsz?test=a.b&subs=1",
    "/routez?subs=detail",
    "/gatewayz?accs=1",
    "/leafz?subs=1",
    "/accountz",
    "/accountz?acc=$G",
    "/healthz",
    "/healthz?details=1",
]


def missing_fields(ours: dict[str, str], theirs: dict[str, str]) -> set[str]:
    """Fields that only they have; not what lies within one of these."""
    fields = theirs.keys() - ours.keys()
    return {field for field in fields if not any(re.match(re.escape(other) + r"[.\[]", field) for other in fields)}


async def test_fields_and_types(sides: tuple[Side, Side]) -> None:
    missing: dict[str, set[str]] = {}
    for path in PAGES:
        page = path.partition("?")[0].replace("/subscriptionsz", "/subsz")
        ours, theirs = [dict(shape(await side.page(path))) for side in sides]
        assert ours.keys() - theirs.keys() == OWN.get(page, set()), path
        both = ours.keys() & theirs.keys()
        assert {field: ours[field] for field in both} == {field: theirs[field] for field in both}, path
        missing.setdefault(page, set()).update(missing_fields(ours, theirs))
    assert {page: fields for page, fields in missing.items() if fields} == {
        page: set(reasons) for page, reasons in LACKING.items()
    }


SAME_WORDS = [
    *(
        f"/connz?{query}"
        for query in ("subs=2", "limit=abc", "limit=1e3", "offset=x", "sort=foo", "sort=stop", "auth=x")
    ),
    *(f"/connz?{query}" for query in ("state=foo", "cid=abc", "cid=-1", "cid=18446744073709551616", "sort=reason")),
    "/connz?limit=9223372036854775808",
    "/connz?limit=%22%C3%A9",
    *(f"/subsz?{query}" for query in ("subs=detail", "limit=x", "offset=x", "test=foo.*", "test=fo..o", "test=a.>")),
    "/routez?subs=q",
    "/gatewayz?accs=x",
    "/leafz?subs=detail",
    "/accountz?acc=NOPE",
    *(f"/healthz?{query}" for query in ("js-enabled-only=x", "js-enabled=true", "js-server-only=1", "js-meta-only=1")),
    *(
        f"/healthz?{query}"
        for query in ("account=foo", "stream=foo", "consumer=foo", "account=foo&stream=x", "details=1")
    ),
    "/healthz?stream=foo&details=1",
    "/healthz",
    "/nothing",
]


async def test_answers_that_are_the_same_to_the_letter(sides: tuple[Side, Side]) -> None:
    ours, theirs = sides
    for path in SAME_WORDS:
        assert await ours.get(path) == await theirs.get(path), path


SAME_CONNECTIONS = [
    "", "sort=subs", "sort=msgs_from", "sort=idle", "sort=uptime", "sort=last", "state=closed&sort=stop", "state=ANY",
    "state=any&sort=start", "limit=1", "limit=-1", "limit=0", "offset=1", "offset=-1",
    "offset=9", "offset=1&limit=1&sort=subs", "user=hugo&auth=1", "user=hugo&state=closed", "acc=$G", "acc=NONE",
    "filter_subject=a.b", "callback=f", "cid=0",
]  # fmt: skip


async def test_the_same_connections_in_the_same_order(sides: tuple[Side, Side]) -> None:
    names = ("num_connections", "total", "offset", "limit")
    columns = ("name", "lang", "version", "in_msgs", "out_msgs", "in_bytes", "out_bytes", "authorized_user", "name_tag")
    for query in SAME_CONNECTIONS:
        ours, theirs = [await side.page(f"/connz?{query}") for side in sides]
        assert [ours[name] for name in names] == [theirs[name] for name in names], query
        rows = [[[each.get(name) for name in columns] for each in page["connections"] or ()] for page in (ours, theirs)]
        assert rows[0] == rows[1], query


async def test_the_same_subscriptions(sides: tuple[Side, Side]) -> None:
    for query in ("test=a.b", "test=foo", "test=b", "test=x"):
        rows = []
        for side in sides:
            shown = (await side.page(f"/subsz?subs=1&{query}")).get("subscriptions_list", [])
            rows.append([{name: value for name, value in each.items() if name != "cid"} for each in shown])
        assert rows[0] == rows[1], query


async def test_the_same_accounts(tmp_path: Path) -> None:
    file = tmp_path / "nats.conf"
    file.write_text(THEIR_ACCOUNTS)
    columns = ("authorized_user", "account", "name_tag", "subscriptions")
    async with contextlib.AsyncExitStack() as stack:
        both = (
            await stack.enter_async_context(gateway(OUR_ACCOUNTS)),
            await stack.enter_async_context(oracle("-c", str(file))),
        )
        seen = []
        for side in both:
            for user, patterns in (("shop", b"SUB q 1\r\n"), ("other", b"SUB q 1\r\nSUB > 2\r\n")):
                client = await stack.enter_async_context(RawClient(side.port))
                connect = b'CONNECT {"verbose":false,"user":"%b","pass":"secret"}\r\n' % user.encode()
                await client.send(connect + patterns + b"PING\r\n")
                await client.until(b"PONG\r\n")
            shown = []
            for query in ("auth=1", "auth=1&acc=ACME", "acc=$G", "auth=1&user=shop"):
                page = await side.page(f"/connz?{query}")
                shown.append((page["total"], [[each.get(name) for name in columns] for each in page["connections"]]))
            found = (await side.page("/subsz?subs=1&test=q&acc=ACME"))["subscriptions_list"]
            account = (await side.page("/accountz?acc=ACME"))["account_detail"]
            names = set((await side.page("/accountz"))["accounts"]) - {"$SYS"}
            assert (await side.page("/varz"))["auth_required"] is True
            seen.append((shown, [each["account"] for each in found], account["client_connections"], names))
        assert seen[0] == seen[1]


async def test_the_same_encryption(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, person = authority.server, authority.client("ada")
    ours = f'[tls.clients]\ncert = "{server.cert}"\nkey = "{server.key}"\nca = "{authority.cert}"\nverify = true\n'
    file = tmp_path / "nats.conf"
    file.write_text(
        f'tls {{ cert_file: "{server.cert}", key_file: "{server.key}", ca_file: "{authority.cert}", verify: true }}'
    )
    context = ssl.create_default_context(cafile=str(authority.cert))
    context.load_cert_chain(person.cert, person.key)
    seen = []
    async with gateway(ours) as gateway_side, oracle("-c", str(file)) as oracle_side:
        for side in (gateway_side, oracle_side):
            async with RawClient(side.port) as client:
                await client.writer.start_tls(context, server_hostname="localhost")
                await client.send(b'CONNECT {"verbose":false}\r\nPING\r\n')
                await client.until(b"PONG\r\n")
                (shown,) = (await side.page("/connz?auth=1"))["connections"]
                varz = await side.page("/varz")
            seen.append(
                [
                    shown["tls_version"],
                    shown["tls_cipher_suite"][:4],
                    shown["tls_peer_certs"][0]["subject"],  # theirs lists the authority too
                ]
                + [varz.get(name) for name in ("tls_required", "tls_verify", "tls_timeout", "auth_required")]
            )
    assert seen[0] == seen[1] == ["1.3", "TLS_", "CN=ada", True, True, 2, None]


async def test_nats_top_shows_us(sides: tuple[Side, Side]) -> None:
    program = shutil.which("nats-top")
    if program is None:
        pytest.skip("nats-top is not on the path")
    ours = sides[0]
    port = str((await ours.page("/varz"))["http_port"])
    command = [program, "-s", "127.0.0.1", "-m", port, "-o", "-", "-l", ","]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert re.search(rb"^In:,Msgs:,1,Bytes:,2,", out, re.MULTILINE)
    assert re.search(rb"^127\.0\.0\.1:\d+,2,me,2,0,1,1,2,2,py,1,", out, re.MULTILINE)
