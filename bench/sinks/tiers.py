"""The groups of processes that are measured, each started as a user starts it, all on 127.0.0.1.

`Zone` is a mesh of one zone: sinks `s1`, `s2`, `s3` and one gateway. `JetStream` is a cluster of nats-servers with a
stream of as many replicas. Both keep a stream `orders` with the subjects `orders.>` in files, on one partition.
"""

import json
import os
import time
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.processes import BIN, BenchError, Process, UnavailableError, free_ports
from bench.wire import connect_to
from sinkd.core.formats import records_end

STREAM: Final = "orders"
SUBJECT: Final = "orders.created"
READY_WAIT_S_MAX = 60.0
POLL_S = 0.01
ANSWER_WAIT_S_MAX = 2.0
Found = TypeVar("Found")
ZONE, ALWAYS, DEFAULT = "event mesh", "JetStream, sync always", "JetStream, default"
UNCOVERED = "event mesh, coverage off"


class Node(Process):
    """One process of a tier, and the folder that holds its data."""

    def __init__(self, name: str, command: list[str], folder: Path, port: int) -> None:
        self.name, self.folder, self.port = name, folder, port
        super().__init__(command, folder)


class Tier:
    """`size` nodes that keep events; `port` is where a client connects. Stopped and started again, it has its data."""

    name = ""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.nodes: list[Node] = []
        self.clients_ports: list[int] = []

    def start(self) -> None:
        """Returns when a client is served: an event would be acknowledged, and history read. UnavailableError."""
        raise NotImplementedError

    def leader(self) -> Node | None:
        """Who leads the stream's group, None while nobody does."""
        raise NotImplementedError

    def port(self, *, leads: bool = True) -> int:
        """Where a publisher connects; on a tier whose clients connect to nodes, to one that leads or does not."""
        raise NotImplementedError

    def end_offset(self) -> int | None:
        """How many events the stream has, None if nobody says so."""
        raise NotImplementedError

    def kept_bytes(self) -> int:
        """What the stream counts as its size."""
        raise NotImplementedError

    def processes(self) -> list[Node]:
        return self.nodes

    def sure_leader(self) -> Node:
        return wait_for(self.leader, "a leader", self.complaints)

    def follower(self) -> Node:
        """A node that does not lead. UnavailableError where there is only one."""
        leader = self.sure_leader()
        others = [node for node in self.nodes if node is not leader]
        if not others:
            raise UnavailableError(f"{self.name}: a single node has no other that could take over")
        return others[0]

    def stop(self) -> None:
        for node in self.processes():
            if not node.has_ended():
                node.stop()

    def cpu_s(self) -> float:
        return sum(node.cpu_s() for node in self.processes() if not node.has_ended())

    def complaints(self) -> str:
        return " | ".join(f"{node.name}: {node.complaints()[-300:]}" for node in self.processes())

    def check_alive(self) -> None:
        """BenchError when a process has ended by itself."""
        for node in self.processes():
            if node.has_ended():
                raise BenchError(f"{self.name}: {node.name} has ended: {node.complaints()}")


class Zone(Tier):
    name = ZONE
    tables = ""  # of the file, beside nodes and stream

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__(folder, size)
        self.names = [f"s{number}" for number in range(1, size + 1)]
        ports = free_ports(3 * size + 2)
        self._client, self._gateway_monitor = ports[:2]
        self._ports = {name: ports[2 + 3 * at : 5 + 3 * at] for at, name in enumerate(self.names)}
        self._gateway: Node | None = None
        (folder / "mesh.toml").write_text(self._configuration())

    def _configuration(self) -> str:
        text = '[mesh]\nname = "bench"\n\n'
        text += f'[zones.z.gateways.gw]\nclient = "127.0.0.1:{self._client}"\n'
        text += f'monitor = "127.0.0.1:{self._gateway_monitor}"\n'
        for name, (link, raft, monitor) in self._ports.items():
            text += f'\n[zones.z.sinks.{name}]\nlink = "127.0.0.1:{link}"\nmonitor = "127.0.0.1:{monitor}"\n'
            text += f'raft = "127.0.0.1:{raft}"\ndata = "{self.folder / name / "data"}"\n'
        return text + f'\n[streams.{STREAM}]\nsubjects = ["{STREAM}.>"]\nack = "quorum"\n{self.tables}'

    def start(self) -> None:
        is_new = not self.nodes
        self.nodes = [
            self._node(name, ["sinkd", "--log-level", "warning"], self._ports[name][2]) for name in self.names
        ]
        self._gateway = self._node("gw", ["gateway", "--log-level", "warning"], self._client)
        self._gateway.wait_until_it_listens(self._client)
        wait_for(self.end_offset, "an answer of the log", self.complaints)
        if is_new:
            wait_for(self._is_whole, "all sinks in health", self.complaints)

    def _is_whole(self) -> bool:
        return all(is_healthy(node.port) for node in self.nodes)

    def _node(self, name: str, command: list[str], port: int) -> Node:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        path = str(BIN / command[0])
        return Node(name, [path, "--config", "../mesh.toml", "--node", name, *command[1:]], folder, port)

    def processes(self) -> list[Node]:
        return [*self.nodes, *([self._gateway] if self._gateway else [])]

    def leader(self) -> Node | None:
        described = self._described()
        name = described["leader"] if described else ""
        return next((node for node in self.nodes if node.name == name and not node.has_ended()), None)

    def _described(self) -> dict[str, Any] | None:
        """What the log says of its one partition."""
        answer = ask(self._client, f"$LOG.METADATA.{STREAM}")
        found: dict[str, Any] | None = answer["streams"][0]["partitions"][0] if answer else None
        return found

    def port(self, *, leads: bool = True) -> int:
        return self._client

    def end_offset(self) -> int | None:
        described = self._described()
        return described["high_watermark"] if described else None

    def kept_bytes(self) -> int:
        described = wait_for(self._described, "an answer of the log", self.complaints)
        return int(described["size_bytes"])

    def journal_bytes(self) -> list[int]:
        """By sink: what its journal has taken since the folder was made, zeros made ahead not counted."""
        return [_end_of_journal(node.folder / "data" / "journal") for node in self.nodes]

    def segments_bytes(self) -> list[int]:
        """By sink: the size of all segments and indexes."""
        return [files_bytes(node.folder / "data" / "log") for node in self.nodes]

    def unflushed_bytes(self) -> int:
        """Of the sink that is furthest behind: committed, not in segments yet."""
        return int(max(metric(node.port, "mesh_sink_hot_bytes") or 0 for node in self.nodes if not node.has_ended()))


class UncoveredZone(Zone):
    """Without digests, accounts, trees and beacons."""

    name = UNCOVERED
    tables = "[coverage]\nenabled = false\n"


class JetStream(Tier):
    """Of servers `n1`, `n2`, `n3`."""

    name = DEFAULT
    sync_interval = ""

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__(folder, size)
        self.names = [f"n{number}" for number in range(1, size + 1)]
        ports = free_ports(2 * size)
        self._clients = dict(zip(self.names, ports[:size], strict=True))
        self._routes = dict(zip(self.names, ports[size:], strict=True))

    def _configuration(self, name: str) -> str:
        sync = f", sync_interval: {self.sync_interval}" if self.sync_interval else ""
        text = f"server_name: {name}\nlisten: 127.0.0.1:{self._clients[name]}\n"
        text += f'jetstream {{ store_dir: "{self.folder / name / "data"}"{sync} }}\n'
        if self.size > 1:
            routes = ", ".join(f"nats-route://127.0.0.1:{port}" for port in self._routes.values())
            text += f"cluster {{ name: bench, listen: 127.0.0.1:{self._routes[name]}, routes: [{routes}] }}\n"
        return text

    def start(self) -> None:
        is_new = not self.nodes
        self.nodes = [self._node(name) for name in self.names]
        for node in self.nodes:
            node.wait_until_it_listens(node.port)
        if is_new:
            wait_for(self._create, "a stream", self.complaints)
        wait_for(self.leader if is_new else self.end_offset, "an answer of the stream", self.complaints)
        if is_new:
            wait_for(self._is_whole, "all replicas", self.complaints)

    def _node(self, name: str) -> Node:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "nats.conf").write_text(self._configuration(name))
        return Node(name, [str(BIN / "nats-server"), "-c", "nats.conf"], folder, self._clients[name])

    def _create(self) -> bool:
        config = {"name": STREAM, "subjects": [f"{STREAM}.>"], "storage": "file", "num_replicas": self.size}
        answer = self._api(f"STREAM.CREATE.{STREAM}", json.dumps(config).encode())
        return answer is not None and "config" in answer

    def _api(self, what: str, body: bytes = b"") -> dict[str, Any] | None:
        for node in self.nodes:
            if not node.has_ended() and (answer := ask(node.port, f"$JS.API.{what}", body)) is not None:
                return answer
        return None

    def _info(self) -> dict[str, Any] | None:
        answer = self._api(f"STREAM.INFO.{STREAM}")
        return answer if answer is not None and "state" in answer else None

    def _is_whole(self) -> bool:
        replicas = ((self._info() or {}).get("cluster") or {}).get("replicas", [])
        return bool(sum(replica["current"] for replica in replicas) == self.size - 1)

    def leader(self) -> Node | None:
        info = self._info()
        if info is None:
            return None
        name = (info.get("cluster") or {}).get("leader", "") if self.size > 1 else self.names[0]
        return next((node for node in self.nodes if node.name == name and not node.has_ended()), None)

    def port(self, *, leads: bool = True) -> int:
        return (self.sure_leader() if leads else self.follower()).port

    def end_offset(self) -> int | None:
        info = self._info()
        return int(info["state"]["last_seq"]) if info and (self.size == 1 or info["cluster"].get("leader")) else None

    def kept_bytes(self) -> int:
        info = wait_for(self._info, "an answer of the stream", self.complaints)
        return int(info["state"]["bytes"])


class JetStreamAlways(JetStream):
    name = ALWAYS
    sync_interval = "always"


# -- asking them ------------------------------------------------------------------------------------------------------


def wait_for(attempt: Callable[[], Found | None], what: str, complaints: Callable[[], str]) -> Found:
    """What `attempt` returns once that is neither None nor False. UnavailableError."""
    deadline = time.monotonic() + READY_WAIT_S_MAX
    while True:
        value = attempt()
        if value is not None and value is not False:
            return value
        if time.monotonic() > deadline:
            raise UnavailableError(f"no sign of {what} for {READY_WAIT_S_MAX:g} s ({complaints()})")
        time.sleep(POLL_S)


def ask(port: int, subject: str, body: bytes = b"") -> dict[str, Any] | None:
    """The JSON that answers a request. None: nobody is there, nobody answers, or not in JSON."""
    try:
        with connect_to(port, b"SUB _INBOX.ask 1\r\n") as connection, connection.makefile("rb") as answers:
            connection.settimeout(ANSWER_WAIT_S_MAX)
            connection.sendall(b"PUB %b _INBOX.ask %d\r\n%b\r\n" % (subject.encode(), len(body), body))
            while (words := answers.readline().split()) and words[0] == b"PING":
                pass
            payload = answers.read(int(words[-1])) if words and words[0] == b"MSG" else b"null"
    except (OSError, BenchError):
        return None
    answer = json.loads(payload)
    return answer if isinstance(answer, dict) and "error" not in answer else None


def is_healthy(monitor_port: int) -> bool:
    """Whether a node's /healthz says so."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{monitor_port}/healthz", timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:  # a refusal (503) among them
        return False


def metric(port: int, name: str) -> float | None:
    """A value of /metrics, None if it is not there (yet)."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.rpartition(" ")
        if key == name:
            return float(value)
    return None


# -- their files ------------------------------------------------------------------------------------------------------


def files_bytes(folder: Path) -> int:
    """Sizes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _end_of_journal(folder: Path) -> int:
    """Files are equally large, numbered from 1 in hex."""
    last = max(folder.glob("*.journal"))
    return (int(last.stem, 16) - 1) * last.stat().st_size + records_end(last.read_bytes())


def forget_cached(folder: Path) -> None:
    """Pages of the files below leave the kernel's cache, as far as they are on disk: needs no privilege."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def is_in_memory(folder: Path) -> bool:
    """Whether `folder` is on a file system without a disk."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [str(parent) for parent in (folder.resolve(), *folder.resolve().parents)]
    kinds = {point: kind for point, kind in mounts if point in above}  # the last mount on a point counts
    return kinds[max(kinds, key=len)] in ("tmpfs", "ramfs")
