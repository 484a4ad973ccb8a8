"""The processes that are measured: each started as a user starts it, with an equivalent configuration.

`Gateway` runs `gateway --config FILE --node gw`, `NatsServer` runs `nats-server -c FILE`, `Relay` runs `bench.relay`.
They are neither pinned to CPUs nor given priorities; all limits are the defaults, which are the same (nats-server's).
"""

import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.keys import write_keys
from bench.processes import BIN, POLL_S, BenchError, Process, UnavailableError, free_ports

__all__ = ["POLL_S", "BenchError", "Gateway", "NatsServer", "Relay", "Server", "Setup", "UnavailableError"]

COUNT_WAIT_S_MAX = 5.0


@dataclass(frozen=True)
class Setup:
    """What a row needs of a server's configuration."""

    permissions: bool = False
    tls: bool = False


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

    def messages_in(self) -> int:
        """What it counts itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor_port}/varz", timeout=30) as answer:
            values: dict[str, Any] = json.load(answer)
        return int(values["in_msgs"])


class Gateway(Server):
    name = "gateway"

    def _command(self) -> list[str]:
        (self._folder / "mesh.toml").write_text(self._configuration())
        return [str(BIN / "gateway"), "--config", "mesh.toml", "--node", "gw"]

    def _configuration(self) -> str:
        parts = [
            '[mesh]\nname = "bench"\nmode = "delivery-fabric"',
            f'[zones.z.gateways.gw]\nclient = "127.0.0.1:{self.port}"\nmonitor = "127.0.0.1:{self.monitor_port}"',
        ]
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
