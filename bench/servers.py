"""The processes that are measured: each started as a user starts it, with an equivalent configuration.

`Gateway` runs `gateway --config FILE --node gw`, `NatsServer` runs `nats-server -c FILE`, `Relay` runs `bench.relay`.
They are neither pinned to CPUs nor given priorities; all limits are the defaults, which are the same (nats-server's).
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.keys import write_keys
from bench.processes import BIN, POLL_S, BenchError, Process, UnavailableError, free_ports

__all__ = ["POLL_S", "BenchError", "Gateway", "NatsServer", "Relay", "Server", "Setup", "UnavailableError"]

COUNT_WAIT_S_MAX = 5.0
ROUTES_WAIT_S_MAX = 20.0


@dataclass(frozen=True)
class Setup:
    """What a row needs of a server's configuration.

    `nodes` above 1: workers of one gateway, or nats-servers in a cluster. Publishers are on the first of them,
    subscribers on the last. `routing` is between gateways of a zone, see `bench.mesh`.
    """

    permissions: bool = False
    tls: bool = False
    nodes: int = 1
    routing: str = "interest"


USER, PASSWORD = "bench", "secret"
PUBLISH_ALLOW = ("bench.>", "svc.*", "_INBOX.>")
PUBLISH_DENY = ("bench.private.>", "*.secret")
SUBSCRIBE_ALLOW = ("bench.>", "svc.*", "_INBOX.>")
SUBSCRIBE_DENY = ("bench.private.>",)


class Server(Process):
    """A process that listens on 127.0.0.1:`port`. `wire` says what its connections speak: `nats` or `relay`."""

    name = ""
    wire = "nats"

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.setup = setup
        self.port, self.monitor_port = free_ports(2)
        self.route_ports: list[int] = []  # where the nodes listen for each other
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        super().__init__(self._command(), folder)
        try:
            self.wait_until_it_listens(self.port)
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        raise NotImplementedError

    def port_of(self, node: int) -> int:
        """Where that one of the nodes may be met; `node_of` says whether it was."""
        return self.port

    def node_of(self, info: dict[str, Any]) -> int:
        """Which of the nodes has greeted a client with INFO."""
        return 0

    def messages_in(self) -> int:
        """What it counts itself."""
        return int(page(self.monitor_port, "varz")["in_msgs"])


def page(monitor_port: int, name: str) -> dict[str, Any]:
    """What a server tells about itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{monitor_port}/{name}", timeout=30) as answer:
        values: dict[str, Any] = json.load(answer)
    return values


def wait_until_linked(name: str, monitor_ports: list[int]) -> None:
    """UnavailableError: the nodes do not find each other, each of them all others."""
    deadline = time.monotonic() + ROUTES_WAIT_S_MAX
    for port in monitor_ports:
        while len({route["remote_name"] for route in page(port, "routez")["routes"]}) < len(monitor_ports) - 1:
            if time.monotonic() > deadline:
                raise UnavailableError(f"{name}: the nodes do not all find each other")
            time.sleep(POLL_S)


class Gateway(Server):
    name = "gateway"

    def _command(self) -> list[str]:
        (self._folder / "mesh.toml").write_text(self._configuration())
        return [str(BIN / "gateway"), "--config", "mesh.toml", "--node", "gw"]

    def node_of(self, info: dict[str, Any]) -> int:
        return (int(info["client_id"]) - 1) % self.setup.nodes  # the workers number their clients in turn

    def _configuration(self) -> str:
        parts = [
            '[mesh]\nname = "bench"\nmode = "delivery-fabric"',
            f'[zones.z.gateways.gw]\nclient = "127.0.0.1:{self.port}"\nmonitor = "127.0.0.1:{self.monitor_port}"',
        ]
        if self.setup.nodes > 1:
            parts[-1] += f"\nworkers = {self.setup.nodes}"
        if self.setup.permissions:
            publish = f"allow = {_listed(PUBLISH_ALLOW)}, deny = {_listed(PUBLISH_DENY)}"
            subscribe = f"allow = {_listed(SUBSCRIBE_ALLOW)}, deny = {_listed(SUBSCRIBE_DENY)}"
            parts.append(
                f'[[users]]\nuser = "{USER}"\npassword = "{PASSWORD}"\n'
                f"permissions = {{ publish = {{ {publish} }}, subscribe = {{ {subscribe} }} }}"
            )
        if self.setup.tls:
            write_keys(self._folder)
            parts.append('[tls.clients]\ncert = "cert.pem"\nkey = "key.pem"')
        return "\n\n".join(parts) + "\n"


class NatsServer(Server):
    name = "nats-server"

    def __init__(self, folder: Path, setup: Setup, seed: "NatsServer | None" = None) -> None:
        """`seed`: the first node of the cluster that this one belongs to."""
        self._others: list[NatsServer] = []
        self._cluster_port = free_ports(1)[0]
        self._seed_port = seed._cluster_port if seed is not None else self._cluster_port
        super().__init__(folder, setup)
        if seed is None:
            self._others = [NatsServer(folder / str(number), setup, self) for number in range(1, setup.nodes)]
            nodes = [self, *self._others]
            self.route_ports = [node._cluster_port for node in nodes]
            wait_until_linked(self.name, [node.monitor_port for node in nodes])

    def port_of(self, node: int) -> int:
        return self._others[node - 1].port if node else self.port

    def node_of(self, info: dict[str, Any]) -> int:
        return [self.port_of(node) for node in range(self.setup.nodes)].index(int(info["port"]))

    def cpu_s(self) -> float:
        return super().cpu_s() + sum(other.cpu_s() for other in self._others)

    def memory_bytes(self) -> int:
        return super().memory_bytes() + sum(other.memory_bytes() for other in self._others)

    def stop(self) -> None:
        for other in self._others:
            other.stop()
        super().stop()

    def _command(self) -> list[str]:
        (self._folder / "nats.conf").write_text(self._configuration())
        return [str(BIN / "nats-server"), "-c", "nats.conf"]

    def _configuration(self) -> str:
        parts = [f"listen: 127.0.0.1:{self.port}\nhttp: 127.0.0.1:{self.monitor_port}"]
        if self.setup.permissions:
            publish = f"allow: {_listed(PUBLISH_ALLOW)}, deny: {_listed(PUBLISH_DENY)}"
            subscribe = f"allow: {_listed(SUBSCRIBE_ALLOW)}, deny: {_listed(SUBSCRIBE_DENY)}"
            permissions = f"{{ publish: {{ {publish} }}, subscribe: {{ {subscribe} }} }}"
            user = f'{{ user: "{USER}", password: "{PASSWORD}", permissions: {permissions} }}'
            parts.append(f"authorization {{ users: [ {user} ] }}")
        if self.setup.nodes > 1:
            routes = f'routes: [ "nats://127.0.0.1:{self._seed_port}" ]'
            parts.append(f'cluster {{ name: bench, listen: "127.0.0.1:{self._cluster_port}", {routes} }}')
        if self.setup.tls:
            write_keys(self._folder)
            parts.append('tls { cert_file: "cert.pem", key_file: "key.pem" }')
        return "\n".join(parts) + "\n"


class Relay(Server):
    """Copies bytes and understands none of them: the distance to the limit."""

    name = "relay"
    wire = "relay"

    def _command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("relay.py").absolute()), str(self.port)]


def version_of_gateway() -> str:
    """With the engine that is in use."""
    return subprocess.run([str(BIN / "mesh"), "--version"], capture_output=True, text=True, check=True).stdout.strip()


def version_of_nats_server() -> str:
    text = subprocess.run([str(BIN / "nats-server"), "--version"], capture_output=True, text=True, check=True).stdout
    return re.sub(r"[^\d.]", "", text.strip())


def _listed(subjects: tuple[str, ...]) -> str:
    return json.dumps(list(subjects))
