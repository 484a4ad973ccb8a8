"""What the commands are told by options and the environment, as plain frozen values."""

import platform
from dataclasses import dataclass, field
from typing import Final

DEFAULT_SERVER: Final = "nats://127.0.0.1:4222"
DEFAULT_TIMEOUT_MS: Final = 5_000
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """How to reach a gateway. Names and meanings are those of the `nats` command.

    `server` is one address or several with commas between. `user` without `password` is a token. `creds`, `nkey` and
    `tls_*` name files. `timeout_ms` bounds the connecting and one wait for an answer.
    """

    server: str = DEFAULT_SERVER
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    creds: str | None = None
    nkey: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    tls_first: bool = False
    timeout_ms: int = DEFAULT_TIMEOUT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What `mesh up` runs: addresses are `HOST:PORT`, `streams` maps names to subject patterns.

    The rest is as in the configuration.
    """

    client: str
    monitor: str
    data: str
    mode: str
    streams: dict[str, tuple[str, ...]]
    disk_reserve_bytes: int | None
    contracts: str
    buffer_bytes: int
    log_level: str
    log_format: str
    json: bool


def program_version() -> str:
    from importlib.metadata import version

    return version("event-mesh")


def data_plane() -> str:
    """Which implementation of the hot loops this process runs: forwarding, and record batches."""
    from gateway.core import engine
    from protocol import engine as records

    if engine.COMPILED is not None and records.COMPILED is not None:
        return "compiled"
    return "reference (pure Python, slow: built without a C compiler)"


def python_version() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"
