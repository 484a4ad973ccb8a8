"""Official clients of other languages, unchanged: the same tour on the real nats-server and on Event Mesh.

What the steps show stands in tests/clients/README.md.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.natsraw import nats_server
from support.toolchains import BuildError, ToolchainMissing, program

MESH = Path(sys.executable).parent / "mesh"
START_WAIT_S_MAX = 60.0
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


@pytest.fixture(scope="module")
def oracle() -> Iterator[str]:
    """The real nats-server."""
    with nats_server() as port:
        yield f"nats://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def event_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mesh up`, as a user starts it, with the stream that the log tours need."""
    folder = tmp_path_factory.mktemp("event-mesh")
    log = folder / "log"
    command = [str(MESH), "up", "--client", "127.0.0.1:0", "--monitor", "127.0.0.1:0"]
    command += ["--data", str(folder / "data"), "--stream", "orders=orders.>"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, cwd=folder) as process:
        try:
            yield _client_address(process, log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=START_WAIT_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _client_address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The address in the line about clients that `mesh up` prints when it is ready."""
    until_s = time.monotonic() + START_WAIT_S_MAX
    while not (found := re.search(r"client.*?(nats://\S+:\d+)\s", log.read_text())):
        if process.poll() is not None or time.monotonic() > until_s:
            pytest.fail(f"mesh up is not ready (exit code {process.returncode}):\n{log.read_text()}", pytrace=False)
        time.sleep(0.02)
    return found.group(1)


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


@pytest.mark.parametrize("server", ["oracle", "event_mesh"])
@pytest.mark.parametrize("client", CLIENTS)
def test_core_tour(client: str, server: str, request: pytest.FixtureRequest) -> None:
    _take(client, "core", request.getfixturevalue(server))


@pytest.mark.parametrize("client", CLIENTS)
def test_log_tour(client: str, event_mesh: str) -> None:
    _take(client, "log", event_mesh)
