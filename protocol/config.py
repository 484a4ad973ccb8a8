"""The configuration: one TOML file describes the mesh, and every process gets the same file and its own name.

    text ──TOML reader──▶ tables ──config_schema──▶ File ──config_checks──▶ File without problems ──▶ Config
              │                       (key by key)           (keys together)                    (config_model)
              └─ config_lines: which line is which key

A file is checked whole, before anything starts, and `ConfigError` holds everything that is wrong with it: one line per
problem, with file, line, key, what is wrong and what would be right.

Everybody knows what a configuration is, few read one: what reading takes is imported by those who do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from protocol import limits
from protocol.config_model import (
    Ack,
    Config,
    Gateway,
    Limits,
    Link,
    Mesh,
    Mode,
    Reply,
    Responses,
    Role,
    Sink,
    Stream,
    TlsClients,
    TlsNodes,
    User,
    Zone,
)
from protocol.config_units import Address, format_duration, format_size, named, parse_duration, parse_size
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from protocol.config_problems import Problem

__all__ = [
    "Ack",
    "Address",
    "Config",
    "Gateway",
    "Limits",
    "Link",
    "Mesh",
    "Mode",
    "Reply",
    "Responses",
    "Role",
    "Sink",
    "Stream",
    "TlsClients",
    "TlsNodes",
    "User",
    "Zone",
    "embedded",
    "format_duration",
    "format_size",
    "parse",
    "parse_duration",
    "parse_size",
]


def parse(text: str, file: str) -> Config:
    """The configuration in `text`, which was read from `file`; ConfigError holds all problems, in order of lines."""
    from protocol.config_build import build
    from protocol.config_checks import check
    from protocol.config_lines import locate

    data = _read_toml(text, file)
    checked, problems = check(data)
    if problems:
        lines = locate(text, data)
        problems.sort(key=lambda problem: problem.line(lines))
        raise ConfigError([problem.render(file, lines) for problem in problems])
    return build(checked)


def _read_toml(text: str, file: str) -> dict[str, Any]:
    import tomli

    if len(text) > limits.CONFIG_CHARACTERS_MAX:
        raise ConfigError(
            [f"{file}: is {len(text)} characters long; a configuration has at most {limits.CONFIG_CHARACTERS_MAX}"]
        )
    try:
        return tomli.loads(text.removeprefix("\ufeff"))  # the mark that some editors put first
    except tomli.TOMLDecodeError as error:
        raise ConfigError([f"{file}:{error.lineno}:{error.colno}: not TOML: {error.msg}"]) from error
    except ValueError as error:  # from int(): the one thing that the reader does not name itself
        raise ConfigError([f"{file}: not a configuration: a number in it has thousands of digits"]) from error
    except RecursionError as error:
        raise ConfigError([f"{file}: not a configuration: lists or tables are nested too deep"]) from error


def embedded(
    *,
    client: Address,
    monitor: Address | None,
    data: str,
    mode: str,
    streams: Mapping[str, Sequence[str]],
    disk_reserve_bytes: int | None = None,
    contracts: str = "off",
    buffer_bytes: int = 0,
) -> Config:
    """What `mesh up` runs without a file: mesh and zone `local`, gateway `gw1` and, unless delivery-fabric, `sink1`.

    The rules of files hold; ConfigError names the flag where a file's problems name a key. Its revision is 0: there is
    no file to count in, and what the process was started with is the newest there is.
    """
    from protocol.config_build import build
    from protocol.config_checks import check

    gateway: dict[str, Any] = {"client": str(client)}
    if monitor is not None:
        gateway["monitor"] = str(monitor)
    zone: dict[str, Any] = {"gateways": {"gw1": gateway}}
    if mode != "delivery-fabric":
        sink: dict[str, Any] = {"link": "127.0.0.1:0", "data": data}
        if disk_reserve_bytes is not None:
            sink["disk_reserve"] = disk_reserve_bytes
        zone["sinks"] = {"sink1": sink}
    checked, problems = check(
        {
            "mesh": {"name": "local", "mode": mode, "contracts": contracts, "buffer": buffer_bytes},
            "zones": {"local": zone},
            "streams": {name: {"subjects": list(subjects)} for name, subjects in streams.items()},
        }
    )
    if problems:
        raise ConfigError(
            [f"{_flag(problem)}: {problem.text.replace(_EMBEDDED_GATEWAY, '--')}" for problem in problems]
        )
    configuration = build(checked)
    return replace(configuration, mesh=replace(configuration.mesh, revision=0))


_EMBEDDED_GATEWAY: Final = "zones.local.gateways.gw1."


def _flag(problem: "Problem") -> str:
    """The option of `mesh up` that a problem comes from."""
    from protocol.config_problems import dotted

    match problem.path:
        case ("streams", str(name), *_):
            return f"--stream {name}" if name.isprintable() else f"--stream {named(name)}"
        case ("mesh", "mode"):
            return "--mode"
        case ("zones", _, _, _, "client" | "monitor" | "data" as key):
            return f"--{key}"
        case path:
            return dotted(path)
