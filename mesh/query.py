"""The parameters behind the `?` of a monitoring page, read as nats-server reads them.

A parameter that is missing or empty has its default; of several with one name the first counts; what nobody knows is
ignored. What cannot be read is a BadQuery in nats-server's words, which end in those of Go's `strconv`.

Source: nats-server `server/monitor.go` (decodeBool, decodeInt, decodeUint64, decodeState, decodeSubs); Go `strconv`.
"""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from gateway.core.nats_values import BadQuery

if TYPE_CHECKING:
    from gateway.core.connections import State

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"", "0", "f", "F", "FALSE", "false", "False"})
_STATES: Final[dict[str, "State"]] = {"": "open", "open": "open", "closed": "closed", "any": "any", "all": "any"}
_SIGNED: Final = re.compile(r"[+-]?[0-9]+")
_UNSIGNED: Final = re.compile(r"[0-9]+")
_DIGITS_MAX: Final = 20  # of 64 bits


class Query:
    """`values`: by name, the first of each."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def changed(self, **values: int) -> dict[str, str]:
        """The parameters, to be handed on with other `values`."""
        return {**self._values, **{name: str(value) for name, value in values.items()}}

    def text(self, name: str) -> str:
        return self._values.get(name, "")

    def boolean(self, name: str) -> bool:
        text = self.text(name)
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise _refusal("boolean", name, "ParseBool", text)

    def integer(self, name: str) -> int:
        """64 bits with a sign."""
        return self._number(name, _SIGNED, range(-(2**63), 2**63), ("int", "Atoi"))

    def unsigned(self, name: str) -> int:
        """64 bits without one."""
        return self._number(name, _UNSIGNED, range(2**64), ("uint64", "ParseUint"))

    def state(self) -> "State":
        """Which connections."""
        text = self.text("state")
        try:
            return _STATES[text.lower()]
        except KeyError:
            raise BadQuery(f"Error decoding state for {text}") from None

    def subscriptions(self) -> tuple[bool, bool]:
        """Whether subscriptions are to be listed, and whether with details."""
        detail = self.text("subs").lower() == "detail"
        return (False, True) if detail else (self.boolean("subs"), False)

    def _number(self, name: str, form: re.Pattern[str], allowed: range, words: tuple[str, str]) -> int:
        text = self.text(name)
        if not text:
            return 0
        if form.fullmatch(text) is None:
            raise _refusal(words[0], name, words[1], text)
        digits = text.lstrip("+-").lstrip("0") or "0"
        number = int(digits) if len(digits) <= _DIGITS_MAX else allowed.stop
        if text[0] == "-":
            number = -number
        if number not in allowed:
            raise _refusal(words[0], name, words[1], text, "value out of range")
        return number


def _refusal(kind: str, name: str, function: str, text: str, why: str = "invalid syntax") -> BadQuery:
    quoted = json.dumps(text, ensure_ascii=False)
    return BadQuery(f"Error decoding {kind} for '{name}': strconv.{function}: parsing {quoted}: {why}")
