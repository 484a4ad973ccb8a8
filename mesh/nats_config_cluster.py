"""The cluster of a nats-server: the map `cluster` of its file and the flags that go with it.

Gateways that run under the name `nats-server` form a mesh (`gateway.shell.discovery`). What tunes nats-server's own
routes and changes nothing of what clients see is taken; encryption, passwords and permissions of routes are refused.

Source: nats-server `server/opts.go` (parseCluster, overrideCluster, RoutesFromStr).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from mesh.nats_config_reader import Node
from mesh.nats_config_values import (
    Findings,
    Handlers,
    Lacking,
    Origin,
    Wrong,
    boolean,
    each_key,
    integer,
    listen,
    only,
    origin,
    split_host_port,
    table,
    text,
    texts,
)
from protocol.config import Address
from protocol.config_units import shown

_TUNES: Final[Callable[[Node], bool]] = lambda node: True  # noqa: E731
_PASSWORDS: Final = "a password between the servers of a cluster is not available in this version"
_NO_PORT: Final = "solicited routes require cluster capabilities, e.g. --cluster"

_LACKS: Final = {
    "authorization": Lacking("a password between the servers of a cluster"),
    "tls": Lacking("TLS between the servers of a cluster"),
    "permissions": Lacking("permissions between the servers of a cluster"),
    "accounts": Lacking("a route of its own for an account"),
    "compression": Lacking(
        "compression within a cluster", only("off", "disabled", "disable", "not supported", "accept", False)
    ),
    **dict.fromkeys(
        ("connect_retries", "connect_backoff", "pool_size", "ping_interval", "write_deadline", "write_timeout"),
        Lacking("", _TUNES),
    ),
}


@dataclass
class ClusterOptions:
    """`port`: 0 is none, and there is no cluster then; -1 any free one. `routes` are where other servers may be."""

    host: str = ""
    port: int = 0
    name: str = ""
    advertise: str = ""
    no_advertise: bool = False
    routes: list[Address] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)

    def put(self, name: str, value: Any, came_from: Origin) -> None:
        """Sets a field, and where it came from."""
        setattr(self, name, value)
        self.origins[name] = came_from

    def check(self, findings: Findings) -> None:
        """What does not go together."""
        if self.routes and not self.port:
            findings.problems.append(self.origins["routes"].render(_NO_PORT))
        if self.advertise:
            try:
                self.advertised()
            except ValueError as error:
                findings.problems.append(self.origins["advertise"].render(str(error)))

    def advertised(self) -> Address | None:
        """What other servers are told to dial, where that is not what is bound. ValueError."""
        if not self.advertise:
            return None
        if ":" not in self.advertise.rpartition("]")[2]:
            return Address(self.advertise.strip("[]"), self.port)
        return Address(*split_host_port(self.advertise))


def read_cluster(key: str, node: Node, findings: Findings, cluster: ClusterOptions) -> None:
    """The map `cluster`, into `cluster`."""

    def put(name: str, read: Callable[[str, Node], Any]) -> Callable[[str, Node], None]:
        return lambda key, node: cluster.put(name, read(key, node), origin(key, node))

    def take_listen(key: str, node: Node) -> None:
        host, port = listen(key, node)
        cluster.put("host", host, origin(key, node))
        cluster.put("port", port, origin(key, node))

    handlers: Handlers = {
        "name": put("name", text),
        "listen": take_listen,
        "port": put("port", integer),
        **dict.fromkeys(("host", "net"), put("host", text)),
        "routes": put("routes", _routes),
        **dict.fromkeys(("cluster_advertise", "advertise"), put("advertise", text)),
        "no_advertise": put("no_advertise", boolean),
        **{name: lacking.take for name, lacking in _LACKS.items()},
    }
    each_key(table(key, node), handlers, findings)


def _routes(key: str, node: Node) -> list[Address]:
    try:
        return [route_address(url) for url in texts(key, node)]
    except ValueError as error:
        raise Wrong(origin(key, node), str(error)) from None


def override(cluster: ClusterOptions, name: str, value: Any, came_from: Origin) -> None:
    """What a flag says. ValueError: it cannot be."""
    match name:
        case "cluster" | "cluster_listen":
            address = route_address(value) if value else Address("", 0)
            cluster.put("host", address.host, came_from)
            cluster.put("port", address.port, came_from)
        case "routes":
            cluster.put("routes", [route_address(url.strip()) for url in value.split(",") if url.strip()], came_from)
        case "cluster_name" | "cluster_advertise" | "no_advertise":
            cluster.put(name.removeprefix("cluster_"), value, came_from)


def route_address(url: str) -> Address:
    """Of `nats://host:port`, whatever the scheme. ValueError."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    if parts.username is not None:
        raise ValueError(_PASSWORDS)
    return Address(*_host_and_port(parts.netloc, url))


def _host_and_port(netloc: str, url: str) -> tuple[str, int]:
    try:
        return split_host_port(netloc)
    except ValueError:
        raise ValueError(f'must be a URL such as "nats://10.0.0.1:6222", got {shown(url)}') from None
