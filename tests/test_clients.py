"""Official clients of other languages, unchanged: the same tour on the real nats-server and on Event Mesh.

What the steps show stands in tests/clients/README.md.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from support.toolchains import BuildError, ToolchainMissing, program

BIN = Path(sys.executable).parent
START_WAIT_S_MAX = 30.0
TOUR_WAIT_S_MAX = 60.0

STEPS = {
    "core": (
        *("connect", "publish-subscribe", "wildcard-token", "wildcard-tail", "queue-group", "request-reply"),
        *("no-responders", "headers", "headers-multi", "echo-off", "unsubscribe-max", "flush-rtt", "drain"),
        *("verbose-pedantic", "payload-max", "payload-too-large"),
    ),
    "log": ("puback", "duplicate", "wrong-stream", "wrong-sequence", "fetch", "out-of-range"),
}


@dataclass(frozen=True)
class Tour:
    """A client's program: its folder below tests/clients, and the steps that the client has no call for."""

    folder: str
    arguments: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()

    def steps(self, name: str) -> list[str]:
        return [step for step in STEPS[name] if step not in self.without]


CLIENTS = {
    "nats.py-classic": Tour("python_classic", without=frozenset({"headers-multi"})),
    "nats.py-new": Tour("python_new", without=frozenset({"unsubscribe-max", "verbose-pedantic"})),
    "nats.go": Tour("go"),
    "nats.js": Tour("js", ("transport-node",)),
    "nats.js-2": Tour("js", ("nats",)),
    "nats.rs": Tour("rust", without=frozenset({"verbose-pedantic"})),
    "nats.java": Tour("java"),
    "nats.c": Tour("c"),
}


Found = TypeVar("Found")


def _await(process: "subprocess.Popen[bytes]", log: Path, find: Callable[[], Found | None]) -> Found:
    """What `find` finds once `process` is ready; the test fails when it ends first or takes too long."""
    until_s = time.monotonic() + START_WAIT_S_MAX
    while (found := find()) is None:
        if process.poll() is not None or time.monotonic() > until_s:
            pytest.fail(f"{process.args!r} is not ready (exit code {process.returncode}):\n{log.read_text()}")
        time.sleep(0.02)
    return found


def _serve(command: list[str], folder: Path, find: Callable[[str], str | None]) -> Iterator[str]:
    """Runs a server until the tests are done with it; `find` reads its address from what it has printed."""
    log = folder / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, cwd=folder) as process:
        try:
            yield _await(process, log, lambda: find(log.read_text()))
        finally:
            process.terminate()
            try:
                process.wait(timeout=START_WAIT_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("nats-server")

    def find(_printed: str) -> str | None:
        ports = [path.read_text() for path in folder.glob("*.ports")]
        return json.loads(ports[0])["nats"][0] if ports and ports[0].endswith("}") else None

    command = [str(BIN / "nats-server"), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(folder)]
    yield from _serve(command, folder, find)


@pytest.fixture(scope="module")
def event_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("event-mesh")

    def find(printed: str) -> str | None:
        found = re.search(r"client\W.*?(nats://[\w.:\[\]-]+:\d+)", printed)
        return found.group(1) if found else None

    command = [str(BIN / "mesh"), "up", "--client", "127.0.0.1:0", "--monitor", "127.0.0.1:0"]
    yield from _serve([*command, "--data", str(folder / "data"), "--stream", "orders=orders.>"], folder, find)


def _take(client: str, tour: str, url: str) -> None:
    try:
        command = program(CLIENTS[client].folder)
    except ToolchainMissing as reason:
        pytest.skip(str(reason))
    except BuildError as reason:
        pytest.fail(str(reason), pytrace=False)
    arguments = [*command, *CLIENTS[client].arguments, url, tour]
    done = subprocess.run(arguments, capture_output=True, check=False, timeout=TOUR_WAIT_S_MAX, text=True)
    if done.returncode != 0:
        pytest.fail(f"{client}: {done.stderr.strip()}\n{done.stdout}", pytrace=False)
    assert done.stdout.splitlines() == [f"ok {step}" for step in CLIENTS[client].steps(tour)]


@pytest.mark.parametrize("server", ["nats_server", "event_mesh"])
@pytest.mark.parametrize("client", CLIENTS)
def test_core_tour(client: str, server: str, request: pytest.FixtureRequest) -> None:
    _take(client, "core", request.getfixturevalue(server))


@pytest.mark.parametrize("client", CLIENTS)
def test_log_tour(client: str, event_mesh: str) -> None:
    _take(client, "log", event_mesh)
