"""What a configuration may say and this version cannot do yet: refused by name when a node starts, never ignored.

`mesh check` accepts such a file, since it is right; a node that ignored a part of it would promise what nobody keeps.
"""

from collections.abc import Iterator

from protocol.config import Config


def not_available(configuration: Config) -> list[str]:
    """One line for each thing that `configuration` asks for in vain: where, what, and what to write instead."""
    return list(_refusals(configuration))


def _refusals(configuration: Config) -> Iterator[str]:
    mesh = configuration.mesh
    for zone in configuration.zones.values() if mesh.contracts != "off" else ():
        if any(configuration.mode_of(gateway) == "delivery-fabric" for gateway in zone.gateways):
            yield f"mesh.contracts: contracts are kept by sinks, and zone {zone.name} is delivery-fabric; write 'off'"
    for gateway in (one for zone in configuration.zones.values() for one in zone.gateways.values()):
        if mesh.buffer_bytes and gateway.workers > 1:
            where = f"zones.{gateway.zone}.gateways.{gateway.name}.workers"
            yield f"{where}: with mesh.buffer each process would have other events; write 1, or mesh.buffer = '0'"
