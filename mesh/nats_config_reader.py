"""nats-server's configuration format, second half: from items (`nats_config_lexer`) to a tree of values with places.

A value is a text, boolean, number, date, list or map; each knows where it stands, so that whoever reads the tree can
say `nats.conf:3:7`. `$NAME` is the value of a key that was read before in this map or one around it, else of an
environment variable, which is read as a value too. `include` puts the keys of another file in its place; its path is
relative to the file that includes it.

Source: nats-server's `conf/parse.go` (2.15). Where that one goes on in silence we refuse: keys without a value,
suffixes that are none (`1kbb`), numbers that leave 64 bits by their suffix, files that include each other for ever.
"""

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from mesh.nats_config_lexer import Item, Kind, items
from protocol import limits
from protocol.errors import ConfigError

Scalar = str | bool | int | float | datetime

_BCRYPT_WITHOUT_DOLLAR: Final = "2a$"  # so that a hash needs no quotes
_INTEGER: Final = re.compile(r"(-?[0-9]+)([a-zA-Z]*)")
_FLOAT: Final = re.compile(r"-?[0-9]+\.[0-9]+")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_ENVIRONMENT_KEY: Final = "pk"
_MULTIPLIERS: Final[dict[str, int]] = {"": 1} | {
    letter + unit: base**power
    for power, letter in enumerate("kmgtpe", 1)
    for unit, base in (("", 1000), ("b", 1024), ("i", 1024), ("ib", 1024))
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was read; a line of 0 is unknown (from the environment)."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(slots=True)
class Node:
    """A value. `place` is that of its key, or its own in a list. `used` tells that a variable refers to it."""

    value: "Scalar | list[Node] | dict[str, Node]"
    place: Place
    used: bool = False


Tree = dict[str, Node]


def read(file: str, environment: Mapping[str, str]) -> Tree:
    """The tree of the file at that path; ConfigError with the place of what is wrong, OSError if it cannot be read."""
    return _Reader(file, environment, (file,)).read(_load(file))


def parse(text: str, file: str, environment: Mapping[str, str]) -> Tree:
    """The tree of `text`, which was read from `file`."""
    return _Reader(file, environment, (file,)).read(text)


def digest(tree: Tree) -> str:
    """What `nats-server -t` prints behind the name of a file that is right: SHA-256 of the tree as Go's JSON."""
    return "sha256:" + hashlib.sha256((_go_json(tree) + "\n").encode()).hexdigest()


def _load(file: str) -> str:
    data = Path(file).read_bytes()
    if len(data) > limits.CONFIG_CHARACTERS_MAX:
        raise ConfigError([f"{file}: is larger than {limits.CONFIG_CHARACTERS_MAX} bytes"])
    return data.decode("utf-8", "surrogateescape")


@dataclass
class _Reader:
    """Reads one file. `chain` are the files that include it; `variables` the environment variables being read."""

    file: str
    environment: Mapping[str, str]
    chain: tuple[str, ...]
    variables: tuple[str, ...] = ()
    keys: list[Item] = field(default_factory=list)
    contexts: list[list[Node] | Tree] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)  # where the open lists and maps begin
    key_counts: list[int] = field(default_factory=list)  # how many keys waited for a value then
    lonely: list[Item] = field(default_factory=list)  # keys without a value

    def read(self, text: str) -> Tree:
        tree: Tree = {}
        self.contexts.append(tree)
        before: Item | None = None
        for item in items(text):
            if item.kind is Kind.END:
                # A single brace may stand at the end, for files that look like JSON.
                if before is not None and before.kind is Kind.KEY and before.value != "}":
                    self.lonely.append(before)
                if self.lonely:
                    raise ConfigError([self._said(key, f"the key '{key.value}' has no value") for key in self.lonely])
                return tree
            self._take(item)
            before = item
        raise AssertionError("the items of a text end with END or ERROR")

    def _take(self, item: Item) -> None:
        match item.kind:
            case Kind.ERROR:
                raise self._wrong(item, item.value)
            case Kind.KEY:
                self.keys.append(item)
            case Kind.MAP_START | Kind.LIST_START:
                self._open({} if item.kind is Kind.MAP_START else [], item)
            case Kind.MAP_END | Kind.LIST_END:
                self._close()
            case Kind.VARIABLE:
                self._set(Node(self._variable(item), self._place(item)))
            case Kind.INCLUDE:
                self._include(item)
            case kind:
                try:
                    value = _SCALARS[kind](item.value)
                except ValueError as error:
                    raise self._wrong(item, str(error)) from None
                self._set(Node(value, self._place(item)))

    def _open(self, context: list[Node] | Tree, item: Item) -> None:
        if len(self.contexts) > limits.NATS_CONFIG_DEPTH_MAX:
            raise self._wrong(item, f"lists and maps are nested more than {limits.NATS_CONFIG_DEPTH_MAX} deep")
        self.contexts.append(context)
        self.places.append(Place(self.file, item.line, item.column - 1))  # of the brace or bracket
        self.key_counts.append(len(self.keys))

    def _close(self) -> None:
        closed = self.contexts.pop()
        before = self.key_counts.pop()
        self.lonely += self.keys[before:]  # nats-server would now take one of them for the key of the map
        del self.keys[before:]
        self._set(Node(closed, self.places.pop()))

    def _set(self, node: Node) -> None:
        context = self.contexts[-1]
        if isinstance(context, list):
            context.append(node)
        else:
            key = self.keys.pop()
            node.place = self._place(key)
            context[key.value] = node

    def _place(self, item: Item) -> Place:
        return Place(self.file, item.line, item.column)

    def _wrong(self, item: Item, text: str) -> ConfigError:
        return ConfigError([self._said(item, text)])

    def _said(self, item: Item, text: str) -> str:
        return f"{self._place(item)}: {text}"

    # -- variables and other files ------------------------------------------------------------------------------------

    def _variable(self, item: Item) -> "Scalar | list[Node] | Tree":
        name = item.value
        if name.startswith(_BCRYPT_WITHOUT_DOLLAR):
            return "$" + name
        for context in reversed(self.contexts):
            if isinstance(context, dict) and name in context:
                context[name].used = True
                return context[name].value
        if name in self.variables:
            raise self._wrong(item, f"variable reference for '{name}' could not be parsed: it refers to itself")
        if name not in self.environment:
            raise self._wrong(item, f"variable reference for '{name}' can not be found")
        return self._from_environment(item)

    def _from_environment(self, item: Item) -> "Scalar | list[Node] | Tree":
        name = item.value
        reader = _Reader(f"${name}", self.environment, self.chain, (*self.variables, name))
        try:
            tree = reader.read(f"{_ENVIRONMENT_KEY}={self.environment[name]}")
        except ConfigError as error:
            problem = error.problems[0]
            raise self._wrong(item, f"variable reference for '{name}' could not be parsed: {problem}") from None
        if _ENVIRONMENT_KEY not in tree:
            raise self._wrong(item, f"variable reference for '{name}' can not be found")
        return tree[_ENVIRONMENT_KEY].value

    def _include(self, item: Item) -> None:
        # Joined even where the path is absolute, as nats-server does.
        file = posixpath.normpath(f"{posixpath.dirname(self.file) or '.'}/{item.value}")
        if file in self.chain or len(self.chain) > limits.NATS_CONFIG_DEPTH_MAX:
            raise self._wrong(item, f"error parsing include file '{item.value}': it includes itself")
        try:
            tree = _Reader(file, self.environment, (*self.chain, file)).read(_load(file))
        except OSError as error:
            raise self._wrong(item, f"error parsing include file '{item.value}': {file}: {error.strerror}") from error
        context = self.contexts[-1]
        assert isinstance(context, dict)  # the lexer takes `include` for a keyword where a key may stand alone
        context.update(tree)


# -- values -----------------------------------------------------------------------------------------------------------


def _integer(text: str) -> int:
    match = _INTEGER.fullmatch(text)
    if match is None or match[2].lower() not in _MULTIPLIERS:
        raise ValueError(f"expected integer, but got '{text}'")
    if len(match[1]) <= 20:
        number = int(match[1]) * _MULTIPLIERS[match[2].lower()]
        if -(2**63) <= number < 2**63:
            return number
    raise ValueError(f"integer '{text}' is out of the range")


def _float(text: str) -> float:
    if not _FLOAT.fullmatch(text):
        raise ValueError(f"expected float, but got '{text}'")
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"float '{text}' is out of the range")
    return number


def _date(text: str) -> datetime:
    try:
        if _DATE.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass  # a day or an hour that does not exist: the message below
    raise ValueError(f"expected Zulu formatted DateTime, but got '{text}'")


_SCALARS: Final[dict[Kind, Callable[[str], Scalar]]] = {
    Kind.TEXT: str,
    Kind.BOOLEAN: lambda text: text.lower() in ("true", "yes", "on"),
    Kind.INTEGER: _integer,
    Kind.FLOAT: _float,
    Kind.DATE: _date,
}


# -- Go's JSON --------------------------------------------------------------------------------------------------------


def _go_json(value: Any) -> str:
    match value:
        case Node():
            return _go_json(value.value)
        case dict():
            return "{" + ",".join(f"{_go_text(key)}:{_go_json(value[key])}" for key in sorted(value)) + "}"
        case list():
            return "[" + ",".join(map(_go_json, value)) + "]"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return _go_float(value)
        case datetime():
            return f'"{value:%Y-%m-%dT%H:%M:%SZ}"'
        case _:
            return _go_text(value)


def _go_text(text: str) -> str:
    readable = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    quoted = json.dumps(readable, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        quoted = quoted.replace(character, f"\\u{ord(character):04x}")
    return quoted


def _go_float(number: float) -> str:
    """The shortest digits that read as the same, with an exponent below 1e-6 and from 1e21 on."""
    if number == 0:
        return "-0" if math.copysign(1, number) < 0 else "0"
    mantissa, _, exponent = f"{number!r}".partition("e")
    if exponent or not 1e-6 <= abs(number) < 1e21:
        digits, power = _digits(number)
        if -7 < power < 21:
            return _plain(digits, power, number < 0)
        head = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        return f"{'-' if number < 0 else ''}{head}e{'-' if power < 0 else '+'}{abs(power):d}"
    return mantissa.removesuffix(".0")


def _digits(number: float) -> tuple[str, int]:
    """Significant digits and the power of ten of the first one."""
    mantissa, _, exponent = f"{abs(number)!r}".partition("e")
    whole, _, part = mantissa.partition(".")
    digits = (whole + part).lstrip("0")
    leading = len(whole) - 1 if whole != "0" else -1 - (len(part) - len(part.lstrip("0")))
    return digits.rstrip("0") or "0", leading + int(exponent or 0)


def _plain(digits: str, power: int, negative: bool) -> str:
    if power < 0:
        text = "0." + "0" * (-power - 1) + digits
    elif len(digits) <= power + 1:
        text = digits + "0" * (power + 1 - len(digits))
    else:
        text = digits[: power + 1] + "." + digits[power + 1 :]
    return ("-" if negative else "") + text
