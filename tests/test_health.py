"""`mesh health`: whether a node lives or is ready, by what its monitor answers."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.cli import Ran, invoked, mesh
from support.processes import Folder, folder_at

GROUP = {"leads": True, "leader": "s1", "commit_index": 5_000, "applied_index": 5_000, "muted": "", "peers": []}
FOLLOWS = GROUP | {"leads": False, "applied_index": 4_990}
WELL = {"status": "ok"}


class Monitor:
    """What one node's monitor answers: `health`, with 503 if it holds an error, and `varz`."""

    def __init__(self, health: dict[str, Any], varz: dict[str, Any]) -> None:
        pages = {"/healthz": (503 if "error" in health else 200, health), "/varz": (200, varz)}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, page = pages[self.path]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(page).encode())

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Zone:
    """A configuration of sinks and gateways by their monitors."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "mesh.toml"
        self._file.write_text('[mesh]\nname = "acme"\n')
        self._monitors: list[Monitor] = []

    def add(self, kind: str, name: str, varz: dict[str, Any], health: dict[str, Any] = WELL) -> str:
        """Its address."""
        self._monitors.append(Monitor(health, varz))
        self.name(kind, name, self._monitors[-1].address)
        return self._monitors[-1].address

    def sink(self, name: str, *groups: dict[str, Any], health: dict[str, Any] = WELL) -> None:
        page = {"node": name, **groups[0]} | ({"groups": list(groups)} if len(groups) > 1 else {})
        self.add("sinks", name, {"sink": page}, health)

    def name(self, kind: str, name: str, address: str) -> None:
        with self._file.open("a") as file:
            file.write(f'[zones.eu.{kind}.{name}]\nmonitor = "{address}"\n')

    async def health(self, name: str, *options: str) -> Ran:
        return await invoked("health", "--config", str(self._file), "--node", name, *options)

    def close(self) -> None:
        for monitor in self._monitors:
            monitor.close()


@pytest.fixture
def zone(tmp_path: Path) -> Iterator[Zone]:
    made = Zone(tmp_path)
    yield made
    made.close()


def leads(lag: int, sink: str = "s2") -> dict[str, Any]:
    return GROUP | {"peers": [{"node": "s3"}, {"node": sink, "lag_entries": lag}]}


async def is_ready(zone: Zone, name: str) -> bool:
    ran = await zone.health(name)
    assert ran.status == 0 or "is not ready" in ran.err, ran
    return ran.status == 0


async def test_a_sink_that_leads_is_ready(zone: Zone) -> None:
    zone.sink("s1", GROUP)
    ran = await zone.health("s1")
    assert (ran.status, ran.out) == (0, b"s1 is ready\n")


@pytest.mark.parametrize(("lag", "ready"), [(0, True), (1_000, True), (1_001, False)])
async def test_what_a_sink_lacks_is_asked_of_the_one_that_leads(zone: Zone, lag: int, ready: bool) -> None:
    zone.sink("s1", leads(lag))
    zone.sink("s2", FOLLOWS)
    assert await is_ready(zone, "s2") == ready


async def test_each_group_is_looked_at(zone: Zone) -> None:
    zone.sink("s1", leads(0), leads(5_000))
    zone.sink("s2", FOLLOWS, FOLLOWS)
    ran = await zone.health("s2")
    assert (ran.status, ran.err) == (1, "mesh: s2 is not ready: group 1: it lacks 5000 entries\n")


async def test_a_sink_that_applies_what_it_has_is_not_ready(zone: Zone) -> None:
    zone.sink("s1", leads(0))
    zone.sink("s2", FOLLOWS | {"applied_index": 3_999})
    assert not await is_ready(zone, "s2")


async def test_a_sink_that_is_not_whole_is_not_ready(zone: Zone) -> None:
    zone.sink("s1", leads(0))
    zone.sink("s2", FOLLOWS | {"muted": "its disk was lost"})
    ran = await zone.health("s2")
    assert (ran.status, ran.err) == (1, "mesh: s2 is not ready: group 0: it is not whole: its disk was lost\n")


async def test_a_leader_that_cannot_be_asked_is_told(zone: Zone) -> None:
    """Nobody is there, or the address is that of another sink on this machine."""
    zone.sink("s2", FOLLOWS)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    zone.name("sinks", "s1", nobody)
    ran = await zone.health("s2")
    assert (ran.status, ran.out) == (0, b"s2 is ready; sink s1, which leads, cannot be asked what it lacks\n")
    zone.sink("s3", FOLLOWS | {"leader": "s4"})
    other = zone.add("sinks", "elsewhere", {"sink": {"node": "s3", **leads(9_000, "s3")}})
    zone.name("sinks", "s4", other)
    ran = await zone.health("s3")
    assert (ran.status, ran.out) == (0, b"s3 is ready; sink s4, which leads, cannot be asked what it lacks\n")


async def test_what_a_node_says_of_itself_comes_first(zone: Zone) -> None:
    zone.sink("s1", GROUP, health={"status": "unavailable", "error": "its group has no leader"})
    ran = await zone.health("s1")
    assert (ran.status, ran.err) == (1, "mesh: s1 is not ready: its group has no leader\n")
    ran = await zone.health("s1", "--live")
    assert (ran.status, ran.out) == (0, b"s1 lives, and is not ready\n")


LINKED = {"sink": "s1", "connects": 1, "attempts_failed": 0, "problem": ""}


@pytest.mark.parametrize(
    ("varz", "said"),
    [
        ({"sink_link": LINKED}, ""),
        ({"sink_link": LINKED, "sink_links": [LINKED, LINKED]}, ""),
        ({}, ""),  # delivery-fabric: it keeps nothing
        ({"sink_link": LINKED | {"sink": ""}}, "no link to the sink that leads group 0"),
        (
            {"sink_link": LINKED, "sink_links": [LINKED, LINKED | {"problem": "nobody leads"}]},
            "no link to the sink that leads group 1: nobody leads",
        ),
    ],
)
async def test_a_gateway_is_ready_when_it_is_linked(zone: Zone, varz: dict[str, Any], said: str) -> None:
    zone.add("gateways", "gw1", varz)
    ran = await zone.health("gw1")
    assert ran.status == (1 if said else 0)
    assert ran.err == (f"mesh: gw1 is not ready: {said}\n" if said else "")


async def test_who_does_not_answer_does_not_live(zone: Zone) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ran = await invoked("health", "--live", "--monitor", address, "--timeout", "100ms")
    assert (ran.status, ran.err) == (1, f"mesh: {address} does not answer on {address}: timed out\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no node gw1 with a `monitor`"),
        ("[zones.eu.gateways.gw1]", "there is no node gw1 with a `monitor`"),
        ("zones = 1", "is not a configuration"),
        ('[zones.eu.gateways.gw1]\nmonitor = "here"', "is not a configuration"),
        ("[", "is not a configuration"),
    ],
)
async def test_a_file_of_no_use_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mesh.toml").write_text(text)
    ran = await invoked("health", "--config", str(tmp_path / "mesh.toml"), "--node", "gw1")
    assert ran.status == 1
    assert "mesh.toml" in ran.err
    assert said in ran.err


async def test_a_file_needs_a_name() -> None:
    for options in (("--config", "mesh.toml"), ("--node", "gw1")):
        ran = await invoked("health", *options)
        assert (ran.status, "belong together" in ran.err) == (2, True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with folder_at(tmp_path) as opened:
        yield opened


async def test_real_nodes_are_asked(folder: Folder) -> None:
    folder.write_config()
    gateway, _ = await folder.both()
    for node in ("gw1", "sink1"):
        ran = await mesh("health", "--config", str(folder.path / "mesh.toml"), "--node", node)
        assert (ran.status, ran.out.decode()) == (0, f"{node} is ready\n"), ran.err
    gateway.kill()
    ran = await invoked("health", "--live", "--config", str(folder.path / "mesh.toml"), "--node", "gw1")
    assert ran.status == 1
