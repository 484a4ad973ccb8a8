"""Several gateways of one zone that are linked with each other: `g00` here, the others as children of this object."""

from pathlib import Path
from typing import Any

from bench.processes import BIN, Process, free_ports
from bench.servers import Server, Setup, wait_until_linked


class _Node(Process):
    """One gateway; `mesh.toml` is in the folder above its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        folder.mkdir()
        super().__init__(_command(name), folder)


class Zone(Server):
    """`setup.nodes` gateways; they are clients' `bench.servers.NatsServer` of the same shape."""

    name = "gateway"

    def __init__(self, folder: Path, setup: Setup) -> None:
        self._names = [f"g{number:02}" for number in range(setup.nodes)]
        ports = free_ports(3 * setup.nodes)
        self._ports = [ports[3 * number : 3 * number + 3] for number in range(setup.nodes)]
        (folder / "mesh.toml").write_text(self._configuration(setup))
        self._others = [_Node(name, folder / name) for name in self._names[1:]]
        own = folder / self._names[0]
        own.mkdir()
        try:
            super().__init__(own, setup)
            for other, (client, _, _) in zip(self._others, self._ports[1:], strict=True):
                other.wait_until_it_listens(client)
            self.route_ports = [mesh for _, mesh, _ in self._ports]
            wait_until_linked(self.name, [monitor for _, _, monitor in self._ports])
        except BaseException:  # whatever it was, nobody else ends the other processes
            self.stop()
            raise

    def _configuration(self, setup: Setup) -> str:
        text = f'[mesh]\nname = "bench"\nmode = "delivery-fabric"\nrouting = "{setup.routing}"\n'
        for name, (client, mesh, monitor) in zip(self._names, self._ports, strict=True):
            text += f'\n[zones.z.gateways.{name}]\nclient = "127.0.0.1:{client}"\n'
            text += f'mesh = "127.0.0.1:{mesh}"\nmonitor = "127.0.0.1:{monitor}"\n'
        return text

    def _command(self) -> list[str]:
        self.port, _, self.monitor_port = self._ports[0]
        return _command(self._names[0])

    def port_of(self, node: int) -> int:
        return self._ports[node][0]

    def node_of(self, info: dict[str, Any]) -> int:
        return self._names.index(info["server_name"])

    def cpu_s(self) -> float:
        return super().cpu_s() + sum(other.cpu_s() for other in self._others)

    def memory_bytes(self) -> int:
        return super().memory_bytes() + sum(other.memory_bytes() for other in self._others)

    def has_ended(self) -> bool:
        return super().has_ended() or any(other.has_ended() for other in self._others)

    def stop(self) -> None:
        super().stop()
        for other in self._others:
            other.stop()


def _command(name: str) -> list[str]:
    return [str(BIN / "gateway"), "--config", "../mesh.toml", "--node", name, "--log-level", "warning"]
