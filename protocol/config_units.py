"""The values that a configuration writes as text: sizes, rates, durations, addresses, names.

Every `parse_*` takes what the TOML reader made of a value and returns it in our unit (bytes, bytes per second,
milliseconds) or raises ValueError with a whole sentence: what would be right, and what was there instead. The
`format_*` functions write a value back in the shortest form that reads as the same.

Sizes are decimal with `kB MB GB TB` and binary with `KiB MiB GiB TiB`. Durations add up, as Go writes them: `1h30m`.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from protocol import limits

SIZE_UNITS: Final = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
DURATION_UNITS_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

_SIZE = re.compile(r"(?P<number>[0-9]{1,19}) ?(?P<unit>[kKMGT]B|[KMGT]iB|B)?")
_DURATION_PART = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)")
_DURATION = re.compile(r"(?:[0-9]{1,15}(?:ms|s|m|h|d))+")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_PORT = re.compile(r"[0-9]{1,5}")
_SHOWN_CHARACTERS_MAX: Final = 60
_HOST_CHARACTERS_MAX: Final = 253  # RFC 1035, section 2.3.4, without the length bytes
_INTEGER_MAX: Final = 2**63 - 1


def shown(value: object) -> str:
    """`value` as an error message quotes it: TOML's spelling, shortened, tables and lists by kind alone."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if abs(value) <= _INTEGER_MAX else "a number of more than 64 bits"
        case float():
            return str(value)
        case str():
            short = value if len(value) <= _SHOWN_CHARACTERS_MAX else value[:_SHOWN_CHARACTERS_MAX] + "…"
            return '"' + short.translate(_ESCAPES) + '"'
        case Mapping():
            return "a table"
        case list() | tuple():
            return "a list"
        case None:
            return "nothing"
        case _:
            return f"a {type(value).__name__}"


def named(word: object) -> str:
    """A name or key as an error message mentions it: in single quotes, on one line, shortened."""
    return "'" + shown(str(word))[1:-1] + "'"


_ESCAPES: Final = {ord('"'): '\\"', ord("\\"): "\\\\"} | {
    code: f"\\u{code:04x}" for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]
}


def parse_size(value: object) -> int:
    """Bytes, from a whole number or a text such as "64MiB"."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _INTEGER_MAX:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        size_bytes = int(match["number"]) * SIZE_UNITS[match["unit"] or "B"]
        if size_bytes <= _INTEGER_MAX:
            return size_bytes
    raise ValueError(f'must be a size such as "64MiB", "12MB" or a number of bytes, got {shown(value)}')


def parse_rate(value: object) -> int:
    """Bytes per second, from a text such as "12MB/s"; 0 or "0" is without limit."""
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    if isinstance(value, str) and value.endswith("/s"):
        try:
            return parse_size(value.removesuffix("/s"))
        except ValueError:
            pass  # the message below names the form of a rate
    raise ValueError(f'must be a rate such as "12MB/s", or "0" for no limit, got {shown(value)}')


def parse_duration(value: object) -> int:
    """Milliseconds, from a text such as "30s" or "1h30m"; 0 and "0" are the only forms without a unit."""
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    if isinstance(value, str) and _DURATION.fullmatch(value):
        duration_ms = sum(int(number) * DURATION_UNITS_MS[unit] for number, unit in _DURATION_PART.findall(value))
        if duration_ms <= limits.CONFIG_DURATION_MS_MAX:
            return duration_ms
        raise ValueError(f"must be at most {format_duration(limits.CONFIG_DURATION_MS_MAX)}, got {shown(value)}")
    raise ValueError(f'must be a duration such as "500ms", "30s", "2m", "24h" or "7d", got {shown(value)}')


def format_size(size_bytes: int) -> str:
    """The shortest binary form without a fraction: 65536 → "64KiB", 1000 → "1000B"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % SIZE_UNITS[unit] == 0:
            return f"{size_bytes // SIZE_UNITS[unit]}{unit}"
    return f"{size_bytes}B" if size_bytes else "0"


def format_duration(duration_ms: int) -> str:
    """The largest unit without a fraction: 120000 → "2m", 86400000 → "24h" (days from two on)."""
    if duration_ms == 0:
        return "0"
    if duration_ms % DURATION_UNITS_MS["d"] == 0 and duration_ms > DURATION_UNITS_MS["d"]:
        return f"{duration_ms // DURATION_UNITS_MS['d']}d"
    unit = next(unit for unit in ("h", "m", "s", "ms") if duration_ms % DURATION_UNITS_MS[unit] == 0)
    return f"{duration_ms // DURATION_UNITS_MS[unit]}{unit}"


def parse_name(value: object) -> str:
    """The name of a mesh, zone, node or stream."""
    if isinstance(value, str) and _NAME.fullmatch(value) and len(value) <= limits.NAME_CHARACTERS_MAX:
        return value
    raise ValueError(
        f"a name consists of 1 to {limits.NAME_CHARACTERS_MAX} letters, digits, `_` and `-`, got {shown(value)}"
    )


def parse_host(value: object) -> str:
    """A host name or an IP address; an IPv6 address may stand in brackets and is returned without them."""
    if isinstance(value, str):
        bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        if _is_ipv6(bare) or (bare == value and _HOST.fullmatch(value) and len(value) <= _HOST_CHARACTERS_MAX):
            return bare
    raise ValueError(f'must be a host name or an IP address without a port, such as "0.0.0.0", got {shown(value)}')


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Address:
    """Where a socket listens or is dialled; port 0 means any free port. `str()` gives what `parse` takes."""

    host: str
    port: int

    @classmethod
    def parse(cls, value: object) -> Self:
        """From "host:port", an IPv6 host in brackets; ValueError says what is right."""
        if isinstance(value, str):
            host, colon, port = value.rpartition(":")
            if colon and _PORT.fullmatch(port) and int(port) <= 65_535 and (":" not in host or host.startswith("[")):
                try:
                    return cls(parse_host(host), int(port))
                except ValueError:
                    pass  # the message below shows the whole address
        raise ValueError(f'must be "host:port" with a port from 0 to 65535 (0 = any free one), got {shown(value)}')

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it, as far as the text alone tells."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
