"""Sizes as people read them; apart from what needs a connection, whose library takes a while to load."""


def size(size_bytes: int) -> str:
    """For people: 1234567 → 1.2 MiB."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
