"""Networks of the kernel's for nodes that are processes, with cables that a test can pull. Linux, root.

    this process ══ cable ══ hub: a bridge, alone in its network namespace ─┬─ cable ─ node, in a namespace of its own
                                                                            └─ cable ─ node, in a namespace of its own

A node reaches this process and the other nodes of its network, nothing else: between two networks nothing passes but
what this process relays (`support.proxy`). Whoever has lost its cable hears nothing any more and is told nothing: no
reset, no end of a connection, which processes on loopback can never see. One way is cut by an address of hardware that
nobody has, so no firewall has to be there; and as the bridge is not in the namespace of this machine, that of the
machine does not judge what passes it.
"""

import contextlib
import ipaddress
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from random import Random
from typing import Self

ADDRESSES = ipaddress.ip_network("198.18.0.0/15")  # for tests of networks, by RFC 2544: nobody's machine is there
NOBODY = "02:00:00:00:00:01"


class NetworkRefused(Exception):
    """Namespaces or links cannot be made here; the text says why."""


class Network:
    """`name`, at most four letters, is part of the names of all that is made; so is the number of this process."""

    def __init__(self, name: str, nodes: Sequence[str]) -> None:
        self._interface = f"em{os.getpid()}{name}"  # at most 15 characters
        self._nodes = list(nodes)

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def _make(self) -> None:
        """NetworkRefused."""
        hosts = (str(host) for host in _free_subnet().hosts())
        self.host = next(hosts)
        self.address = dict(zip(self._nodes, hosts, strict=False))
        hub = self._interface
        _ip([f"netns add {namespace}" for namespace in (hub, *map(self._namespace, self._nodes))])
        _ip([f"link add {hub} type veth peer name host netns {hub}", f"addr add {self.host}/24 dev {hub}"])
        _ip([f"link set {hub} up"])
        for node, address in self.address.items():
            own = self._namespace(node)
            _ip([f"link add cable type veth peer name {node} netns {hub}"], own)
            _ip(["link set lo up", f"addr add {address}/24 dev cable", "link set cable up"], own)
        ends = ("host", *self._nodes)
        _ip(["link add hub type bridge", "link set hub up"], hub)
        _ip([f"link set {end} master hub up" for end in ends], hub)

    def _remove(self) -> None:
        """Whatever there is of it; what runs in there keeps its own namespace until it has ended."""
        for command in (f"link del {self._interface}", *(f"netns del {each}" for each in self._namespaces())):
            with contextlib.suppress(NetworkRefused):
                _ip([command])

    def _namespaces(self) -> list[str]:
        return [self._interface, *map(self._namespace, self._nodes)]

    def _namespace(self, node: str) -> str:
        return f"{self._interface}-{node}"

    def command(self, node: str) -> tuple[str, ...]:
        """What to put before a command that shall run there; the process is that of the command."""
        return shutil.which("nsenter") or "nsenter", f"--net=/run/netns/{self._namespace(node)}"

    def unplug(self, node: str) -> None:
        """Nothing gets to it or away from it, and nobody is told."""
        _ip([f"link set {node} down"], self._interface)

    def plug(self, node: str) -> None:
        _ip([f"link set {node} up"], self._interface)

    @contextlib.contextmanager
    def unheard(self, node: str, by: str) -> Iterator[None]:
        """What `node` says does not get to `by`; the other way is open."""
        own = self._namespace(node)
        _ip([f"neigh replace {self.address[by]} lladdr {NOBODY} dev cable nud permanent"], own)
        try:
            yield
        finally:
            _ip([f"neigh del {self.address[by]} dev cable"], own)


def _free_subnet() -> ipaddress.IPv4Network:
    """One that no interface of this machine is in."""
    taken = _output(["ip", "-4", "-o", "addr"])
    subnets = list(ADDRESSES.subnets(new_prefix=24))
    chosen = Random()
    while f" {str(subnet := chosen.choice(subnets)).rpartition('.')[0]}." in taken:
        continue
    assert isinstance(subnet, ipaddress.IPv4Network)
    return subnet


def _ip(commands: Sequence[str], namespace: str = "") -> None:
    """NetworkRefused."""
    where = ["-n", namespace] if namespace else []
    _output(["ip", *where, "-batch", "-"], "\n".join(commands))


def _output(command: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError as error:
        raise NetworkRefused(f"{command[0]} not found") from error
    if done.returncode:
        raise NetworkRefused(f"{' '.join(command)}: {done.stderr.strip()} ({text!r})")
    return done.stdout
