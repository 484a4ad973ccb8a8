"""What a configuration may say, and is allowed for a while, but is unwise to stay with: told, and not refused."""

from protocol.config import Config


def advice(configuration: Config) -> list[str]:
    """One line for each thing that would be better otherwise: where, what, and why."""
    return [
        f"zones.{zone.name}.sinks: of {count} sinks no more may fail than of {count - 1}, and more have to agree on "
        "every event; have an odd number, except while one is being replaced"
        for zone in configuration.zones.values()
        if (count := len(zone.sinks)) and count % 2 == 0
    ]
