"""What a process does not import when it starts: most of a start is imports, and processes are started often."""

import re
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from support.cli import mesh
from support.processes import Folder, folder_at, free_ports

# Modules, not packages: what was looked for and not found is in the list that Python prints, too.
MONITOR = {"aiohttp.client", "prometheus_client.exposition"}
OF_NO_DAEMON = MONITOR | {"cryptography.x509", "bcrypt._bcrypt", "rich.text", "nats.js.client"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """Daemons, and commands, that say on stderr what they import."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with folder_at(tmp_path) as opened:
        opened.write_config()
        yield opened


def imported(said: str) -> set[str]:
    names = set(re.findall(r"^import time: .*\| +(\S+)$", said, re.MULTILINE))
    assert "mesh.cli" in names, "what is looked for would be seen"
    return names


async def test_a_gateway_has_nothing_of_sinks(folder: Folder) -> None:
    names = imported((await folder.gateway()).complaints)
    assert "gateway.shell.gateway" in names
    assert sorted(names & (OF_NO_DAEMON | {"sinkd.core", "pysyncobj.syncobj", "cryptography.exceptions"})) == []


async def test_a_sink_has_nothing_of_gateways(folder: Folder) -> None:
    names = imported((await folder.sinkd()).complaints)
    assert "sinkd.shell.sink" in names
    assert sorted(names & (OF_NO_DAEMON | {"gateway.shell", "gateway.core.plane"})) == []


async def test_both_at_once_have_what_they_need(folder: Folder) -> None:
    names = imported((await folder.up()).complaints)
    assert {"gateway.shell.gateway", "sinkd.shell.sink"} <= names
    assert sorted(names & OF_NO_DAEMON) == []


async def test_who_looks_at_the_monitor_has_it_loaded(folder: Folder) -> None:
    daemon = await folder.up()
    url = f"http://127.0.0.1:{folder.monitor_port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert "mesh_monitor_requests_total" in await answer.text()
    assert imported(daemon.complaints) >= MONITOR


async def test_the_version_needs_little(folder: Folder) -> None:
    ran = await mesh("--version")
    assert ran.out.startswith(b"mesh ")
    assert (
        sorted(
            imported(ran.err)
            & (OF_NO_DAEMON | {"asyncio.base_events", "structlog.dev", "pydantic.main", "cryptography.exceptions"})
        )
        == []
    )


async def test_a_client_has_no_more_than_a_client_needs(folder: Folder) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    ran = await mesh("pub", "--server", nobody, "--timeout", "50ms", "orders.1", "paid")
    names = imported(ran.err)
    assert "nats.js.client" in names
    assert sorted(names & (MONITOR | {"rich.text", "structlog.dev", "pydantic.main"})) == []
    websocket = await mesh("pub", "--server", f"ws://{nobody}", "--timeout", "50ms", "orders.1", "paid")
    assert "aiohttp.client" in imported(websocket.err)
