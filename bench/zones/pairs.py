"""Two sides that a relay parts: the origin keeps `orders` in a file, the copy mirrors it.

    clients ─► origin (zone eu, server `eu`) ◄── relay ◄── copy (zone us, server `us`), which dials

`Ours` is a gateway and a sink on each side. `Theirs` is a nats-server on each side, the copy's a leaf of the origin's
in a JetStream domain of its own; the stream there is a mirror of the origin's. `Compressed` is the same with the leaf
link's compression (s2) on.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from bench.processes import BIN, free_ports
from bench.sinks.tiers import STREAM, Node, ask, wait_for
from bench.zones import relay
from bench.zones.relay import read_counts

OURS, THEIRS, COMPRESSED = "event mesh", "JetStream", "JetStream, leaf link compressed"
LINK_MBIT_S: Final = 100
RATE: Final = LINK_MBIT_S * 1e6 / 8


class Pair:
    """`delay_ms` is that of each direction; `rate` of the way between, bytes a second, 0 for none."""

    name = ""

    def __init__(self, folder: Path, delay_ms: float, rate: float) -> None:
        self.folder = folder
        self._counts = folder / "counts"
        self._counts.write_bytes(bytes(16))
        self.relay_port, self.origin_link, self.origin_port, self.copy_port, *self._more = free_ports(8)
        words = [self.relay_port, self.origin_link, delay_ms, rate, self._counts]
        command = [sys.executable, str(Path(relay.__file__).absolute()), *map(str, words)]
        self._relay = self._node("relay", command, self.relay_port)
        self.origin: list[Node] = []
        self.copy: list[Node] = []

    def _node(self, name: str, command: list[str], port: int) -> Node:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return Node(name, command, folder, port)

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Both sides, and the copy knows of its origin. UnavailableError."""
        self._relay.wait_until_it_listens(self.relay_port)
        self.start_origin()
        self.start_copy()
        wait_for(lambda: self.copied() is not None, "a copy", self.complaints)

    def start_origin(self) -> None:
        raise NotImplementedError

    def start_copy(self) -> None:
        raise NotImplementedError

    def stop_copy(self) -> None:
        for node in self.copy:
            node.stop()

    def stop(self) -> None:
        for node in (*self.copy, *self.origin, self._relay):
            if not node.has_ended():
                node.stop()

    # -- what a driver of `bench.sinks` needs -------------------------------------------------------------------------

    def port(self, *, leads: bool = True) -> int:
        """Where a publisher connects."""
        return self.origin_port

    def cpu_s(self) -> float:
        return sum(node.cpu_s() for node in (*self.origin, *self.copy) if not node.has_ended())

    def complaints(self) -> str:
        nodes = (*self.origin, *self.copy, self._relay)
        return " | ".join(f"{node.name}: {node.complaints()[-300:]}" for node in nodes)

    # -- looking ------------------------------------------------------------------------------------------------------

    def kept(self) -> int:
        """Events at the origin."""
        return wait_for(self._kept, "an answer of the origin", self.complaints)

    def _kept(self) -> int | None:
        raise NotImplementedError

    def copied(self) -> int | None:
        """Events in the copy, None while nobody says so."""
        raise NotImplementedError

    def kept_bytes(self) -> int:
        """What the origin counts as the size of its log."""
        raise NotImplementedError

    @property
    def watched(self) -> tuple[int, str, bytes]:
        """(port, request, pattern in the answer) that tell what the copy has."""
        raise NotImplementedError

    def relayed_bytes(self) -> int:
        """Both ways."""
        return sum(read_counts(self._counts))

    def moving_cpu_s(self) -> float:
        """Time on CPUs of those that copy and are copied from."""
        return sum(node.cpu_s() for node in self.moving() if not node.has_ended())

    def memory_bytes(self) -> int:
        """Resident in those that copy and are copied from."""
        return sum(node.memory_bytes() for node in self.moving() if not node.has_ended())

    def moving(self) -> list[Node]:
        """The processes that pass copies on and keep them."""
        return [*self.origin, *self.copy]


class Ours(Pair):
    name = OURS

    def start_origin(self) -> None:
        zones = {
            "eu": (self.origin_link, self.origin_port, self._more[0]),
            "us": (self._more[1], self.copy_port, self._more[2]),
        }
        for reader in zones:
            (self.folder / f"{reader}.toml").write_text(self._file(zones, reader))
        self.origin = self._side("eu", self.origin_port)

    def _file(self, zones: dict[str, tuple[int, int, int]], reader: str) -> str:
        text = '[mesh]\nname = "bench"\n'
        for zone, (link, client, mesh) in zones.items():
            where = self.relay_port if zone == "eu" and reader == "us" else link
            text += f'[zones.{zone}.sinks.{zone}1]\nlink = "127.0.0.1:{where}"\ndata = "{self.folder / zone}-data"\n'
            text += f'[zones.{zone}.gateways.g{zone}]\nclient = "127.0.0.1:{client}"\nmesh = "127.0.0.1:{mesh}"\n'
        return text + f'[streams.{STREAM}]\nsubjects = ["{STREAM}.>"]\nack = "quorum"\nreplicate = ["us"]\n'

    def _side(self, zone: str, client: int) -> list[Node]:
        options = ["--config", f"../{zone}.toml", "--log-level", "warning", "--node"]
        sink = self._node(f"{zone}1", [str(BIN / "sinkd"), *options, f"{zone}1"], 0)
        gateway = self._node(f"g{zone}", [str(BIN / "gateway"), *options, f"g{zone}"], client)
        gateway.wait_until_it_listens(client)
        return [sink, gateway]

    def start_copy(self) -> None:
        wait_for(self._kept, "an answer of the origin", self.complaints)
        self.copy = self._side("us", self.copy_port)

    def _kept(self) -> int | None:
        return self._events(self.origin_port, STREAM)

    def copied(self) -> int | None:
        return self._events(self.copy_port, f"{STREAM}@eu")

    @property
    def watched(self) -> tuple[int, str, bytes]:
        return self.copy_port, f"$LOG.METADATA.{STREAM}@eu", rb'"high_watermark":\s*(\d+)'

    def moving(self) -> list[Node]:
        return [self.origin[0], self.copy[0]]

    def kept_bytes(self) -> int:
        described = wait_for(lambda: self._described(self.origin_port, STREAM), "an answer of the log", self.complaints)
        return int(described["size_bytes"])

    @staticmethod
    def _described(port: int, log: str) -> dict[str, Any] | None:
        """What the log says of its one partition."""
        answer = ask(port, f"$LOG.METADATA.{log}")
        found: dict[str, Any] | None = answer["streams"][0]["partitions"][0] if answer and answer["streams"] else None
        return found

    def _events(self, port: int, log: str) -> int | None:
        described = self._described(port, log)
        return int(described["high_watermark"]) if described is not None else None


class Theirs(Pair):
    name, compression = THEIRS, "off"

    def start_origin(self) -> None:
        leaf = f'leafnodes {{ listen: "127.0.0.1:{self.origin_link}", compression: {self.compression} }}\n'
        self.origin = [self._server("eu", self.origin_port, leaf)]
        config = {"name": STREAM, "subjects": [f"{STREAM}.>"], "storage": "file"}
        wait_for(lambda: self._made(self.origin_port, config), "a stream", self.complaints)

    def start_copy(self) -> None:
        remote = f'remotes: [ {{ url: "nats-leaf://127.0.0.1:{self.relay_port}", compression: {self.compression} }} ]'
        self.copy = [self._server("us", self.copy_port, f"leafnodes {{ {remote} }}\n")]
        origin = {"name": STREAM, "external": {"api": "$JS.eu.API", "deliver": ""}}
        config = {"name": f"{STREAM}-eu", "mirror": origin, "storage": "file"}
        wait_for(lambda: self._made(self.copy_port, config), "a mirror", self.complaints)

    def _server(self, name: str, port: int, leaf: str) -> Node:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        text = f"server_name: {name}\nlisten: 127.0.0.1:{port}\n{leaf}"
        text += f'jetstream {{ store_dir: "{folder}-data", domain: {name} }}\n'
        (folder / "nats.conf").write_text(text)
        node = self._node(name, [str(BIN / "nats-server"), "-c", "nats.conf"], port)
        node.wait_until_it_listens(port)
        return node

    @staticmethod
    def _made(port: int, config: dict[str, Any]) -> bool:
        """It is there, or was; a server that is started again has what it had."""
        name = config["name"]
        if ask(port, f"$JS.API.STREAM.INFO.{name}") is not None:
            return True
        answer = ask(port, f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())
        return answer is not None and "config" in answer

    def _kept(self) -> int | None:
        return self._events(self.origin_port, STREAM)

    def copied(self) -> int | None:
        return self._events(self.copy_port, f"{STREAM}-eu")

    @property
    def watched(self) -> tuple[int, str, bytes]:
        return self.copy_port, f"$JS.API.STREAM.INFO.{STREAM}-eu", rb'"last_seq":\s*(\d+)'

    def kept_bytes(self) -> int:
        return int(wait_for(lambda: self._state(self.origin_port, STREAM), "an answer", self.complaints)["bytes"])

    @staticmethod
    def _state(port: int, name: str) -> dict[str, Any] | None:
        answer = ask(port, f"$JS.API.STREAM.INFO.{name}")
        found: dict[str, Any] | None = answer["state"] if answer and "state" in answer else None
        return found

    def _events(self, port: int, name: str) -> int | None:
        state = self._state(port, name)
        return int(state["last_seq"]) if state is not None else None


class Compressed(Theirs):
    name, compression = COMPRESSED, "s2_fast"
