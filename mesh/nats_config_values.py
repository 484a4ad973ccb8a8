"""Reading values out of a nats.conf: their types as nats-server wants them, and a list of all that is wrong.

A function here takes a `Node` and its key and returns the value in our units, or raises `Wrong`. `Findings` collects
what was wrong, so that a file's problems are reported all at once.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Final, NamedTuple

from mesh.nats_config_reader import Node, Place, Tree
from protocol.config_units import named, shown
from protocol.errors import ConfigError

_PLACE: Final = re.compile(r"[^\n]*?:([0-9]+):([0-9]+): ")
_DURATION: Final = re.compile(r"[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+")
_DURATION_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS_NS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6} | {
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DURATION_NS_MAX: Final = 2**63 - 1  # as Go holds them


class Origin(NamedTuple):
    """What a part of the configuration comes from: a place in a file, or a flag of the command line, and its name."""

    place: str
    key: str

    def __str__(self) -> str:
        return f"{self.place} {self.key}" if self.key else self.place

    def render(self, text: str) -> str:
        return f"{self.place}: {self.key}: {text}" if self.key else f"{self.place}: {text}"


def origin(key: str, node: Node) -> Origin:
    return Origin(str(node.place), key)


class Wrong(Exception):
    """A value that cannot be used, and why."""

    def __init__(self, where: Origin | Place, text: str) -> None:
        super().__init__(where.render(text) if isinstance(where, Origin) else f"{where}: {text}")


@dataclass
class Findings:
    """`problems` keep a server from starting, `warnings` (nats-server's own) and `notices` (ours) do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        try:
            yield
        except Wrong as wrong:
            self.problems.append(str(wrong))

    def raise_problems(self) -> None:
        if self.problems:
            raise ConfigError(sorted(self.problems, key=_by_place))


def _by_place(problem: str) -> tuple[int, int]:
    """Those of a file in its order, others before them."""
    match = _PLACE.match(problem)
    return (int(match[1]), int(match[2])) if match else (0, 0)


Handlers = Mapping[str, Callable[[str, Node], None]]


def each_key(tree: Tree, handlers: Handlers, findings: Findings) -> None:
    """Calls the handler of every key, in the order of the file; unknown keys are problems, variables' names aside."""
    for key, node in tree.items():
        handler = handlers.get(key.lower())
        with findings.collecting():
            if handler is not None:
                handler(key, node)
            elif not node.used:
                raise Wrong(node.place, f"unknown field {shown(key)}{_did_you_mean(key, handlers)}")


def _did_you_mean(key: str, known: Handlers) -> str:
    close = difflib.get_close_matches(key.lower(), known, n=1)
    return f"; did you mean {named(close[0])}?" if close else ""


# -- types ------------------------------------------------------------------------------------------------------------


def text(key: str, node: Node) -> str:
    if isinstance(node.value, str):
        return node.value
    hint = "; put it in quotes" if isinstance(node.value, int | float | datetime) else ""
    raise Wrong(origin(key, node), f"must be a text, got {described(node)}{hint}")


def boolean(key: str, node: Node) -> bool:
    if isinstance(node.value, bool):
        return node.value
    raise Wrong(origin(key, node), f"must be true or false, got {described(node)}")


def integer(key: str, node: Node) -> int:
    if isinstance(node.value, int) and not isinstance(node.value, bool):
        return node.value
    raise Wrong(origin(key, node), f"must be a whole number such as 100, 64k or 1MB, got {described(node)}")


def table(key: str, node: Node) -> Tree:
    if isinstance(node.value, dict):
        return node.value
    raise Wrong(origin(key, node), f"must be a map {{ ... }}, got {described(node)}")


def nodes(key: str, node: Node) -> list[Node]:
    if isinstance(node.value, list):
        return node.value
    raise Wrong(origin(key, node), f"must be a list [ ... ], got {described(node)}")


def texts(key: str, node: Node) -> list[str]:
    """One text, or a list of them."""
    if isinstance(node.value, list):
        return [text(key, each) for each in node.value]
    if isinstance(node.value, str):
        return [node.value]
    raise Wrong(origin(key, node), f"must be a text or a list of texts, got {described(node)}")


def duration_ms(key: str, node: Node) -> int:
    """From a text as Go writes durations ("1m30s"), rounded up to a millisecond; negative ones are below 0."""
    try:
        return parse_go_duration(text(key, node))
    except ValueError as error:
        raise Wrong(origin(key, node), str(error)) from None


def seconds_ms(key: str, node: Node) -> int:
    """From a number of seconds, or a duration."""
    if isinstance(node.value, float) or (isinstance(node.value, int) and not isinstance(node.value, bool)):
        return _rounded_up(Fraction(node.value) * 1000)
    return duration_ms(key, node)


def parse_go_duration(written: str) -> int:
    """Milliseconds, rounded up away from zero. Source: Go, `time.ParseDuration`."""
    if written in ("0", "+0", "-0"):
        return 0
    if _DURATION.fullmatch(written):
        total_ns = sum(
            Fraction(number.rstrip(".")) * _UNITS_NS[unit] for number, unit in _DURATION_PART.findall(written)
        )
        if total_ns <= _DURATION_NS_MAX:
            total_ms = _rounded_up(Fraction(total_ns) / 10**6)
            return -total_ms if written.startswith("-") else total_ms
    raise ValueError(f'must be a duration such as "500ms", "30s" or "2m", got {shown(written)}')


def _rounded_up(number: Fraction) -> int:
    return math.ceil(number) if number > 0 else math.floor(number)


def listen(key: str, node: Node) -> tuple[str, int]:
    """Host ("" where none is given) and port, from a port alone or "host:port"; a port of -1 is any free one."""
    if isinstance(node.value, int) and not isinstance(node.value, bool):
        return "", node.value
    written = text(key, node)
    try:
        return split_host_port(written)
    except ValueError as error:
        raise Wrong(origin(key, node), str(error)) from None


def split_host_port(written: str) -> tuple[str, int]:
    """Source: Go, `net.SplitHostPort`; an IPv6 host stands in brackets and is returned without them."""
    host, colon, port = written.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed):
        raise ValueError(f'must be a port or "host:port", got {shown(written)}')
    if not re.fullmatch(r"[-+]?[0-9]{1,9}", port):
        raise ValueError(f"must have a number as port, got {shown(written)}")
    return host[1:-1] if bracketed else host, int(port)


def described(node: Node) -> str:
    match node.value:
        case dict():
            return "a map"
        case list():
            return "a list"
        case datetime():
            return "a date"
        case value:
            return shown(value)


# -- what there is no counterpart for ---------------------------------------------------------------------------------


class Lacking(NamedTuple):
    """A key that nats-server has and we have not. Where `neutral` holds for its value, it asks for nothing."""

    what: str
    neutral: Callable[[Node], bool] = lambda node: node.value in ({}, [])

    def take(self, key: str, node: Node) -> None:
        if not self.neutral(node):
            raise Wrong(origin(key, node), f"{self.what} is not available in this version; remove {named(key)}")


def only(*values: object) -> Callable[[Node], bool]:
    """For `Lacking.neutral`: whether the value is one of these, whatever the case of its letters."""

    def is_one(node: Node) -> bool:
        value = node.value.lower() if isinstance(node.value, str) else node.value
        return any(type(value) is type(other) and value == other for other in values)

    return is_one
