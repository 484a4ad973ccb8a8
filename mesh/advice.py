"""What a configuration may say, and is allowed for a while, but is unwise to stay with: told, and not refused."""

from protocol.config import Config


def advice(configuration: Config) -> list[str]:
    """One line for each thing that would be better otherwise: where, what, and why."""
    unused = "mesh.buffer: nothing uses it, since every event is kept by sinks; it is for mode = 'delivery-fabric'"
    nodes = (gateway for zone in configuration.zones.values() for gateway in zone.gateways)
    has_use = any(configuration.mode_of(node) == "delivery-fabric" for node in nodes)
    lines = [unused] if configuration.mesh.buffer_bytes and not has_use else []
    guest = configuration.mesh.no_auth_user
    lines += [
        f"mesh.no_auth_user: {guest!r} has a bcrypt password, so who presents nothing is refused, as by nats-server"
        for user in configuration.users
        if guest and user.user == guest and (user.password or "").startswith("$2")
    ]
    return lines + [
        f"zones.{zone.name}.sinks: of {count} sinks no more may fail than of {count - 1}, and more have to agree on "
        "every event; have an odd number, except while one is being replaced"
        for zone in configuration.zones.values()
        if (count := len(zone.sinks)) and count % 2 == 0
    ]
