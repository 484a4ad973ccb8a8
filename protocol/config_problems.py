"""What is wrong with a configuration, in words: one `Problem` per mistake.

pydantic finds what is wrong with single keys; `explain` says it in the file's own terms (keys, texts, tables) and adds
what would be right. Values of secret keys are never repeated.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Final, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from protocol.config_lines import Path
from protocol.config_schema import File, Form
from protocol.config_units import named, shown

_SECRET_KEYS: Final = frozenset({"password", "token"})
_LISTED_MAX: Final = 20
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


class Problem(NamedTuple):
    """`text` is wrong with the value at `path`; `at`, if it is another place, is where its line is looked up."""

    path: Path
    text: str
    at: Path | None = None

    def render(self, file: str, lines: Mapping[Path, int]) -> str:
        """`mesh.toml:12: streams.orders.partitions: must be at least 1, got 0`; what is unknown is left out."""
        line = self.line(lines)
        place = f"{file}:{line}" if line else file
        return ": ".join(part for part in (place, dotted(self.path), self.text) if part)

    def line(self, lines: Mapping[Path, int]) -> int:
        """The line of the key, or of the nearest table around it; 0 if there is none."""
        path = self.path if self.at is None else self.at
        for length in range(len(path), 0, -1):
            if path[:length] in lines:
                return lines[path[:length]]
        return 0


def dotted(path: Path) -> str:
    """`path` as one would write it: `users[0].role`, keys quoted where TOML wants it."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _BARE_KEY.fullmatch(step) else shown(step))
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or else what there is to choose from."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1)
    if close:
        return f"; did you mean {named(close[0])}?"
    return f"; known: {listed(choices)}" if choices else ""


def listed(words: Iterable[str]) -> str:
    """`a, b, c`, cut short where it gets long."""
    words = [word if _BARE_KEY.fullmatch(word) else named(word) for word in words]
    return ", ".join(words[:_LISTED_MAX]) + (
        f" and {len(words) - _LISTED_MAX} more" if len(words) > _LISTED_MAX else ""
    )


def explain(error: ValidationError) -> list[Problem]:
    """Every mistake that pydantic found, in its order."""
    return [_problem(details) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails) -> Problem:
    path = details["loc"]
    context = details.get("ctx", {})
    got = "" if path and path[-1] in _SECRET_KEYS else f", got {shown(details['input'])}"
    match details["type"]:
        case "extra_forbidden":
            return _unknown_key(path)
        case "missing":
            return Problem(path, f"is missing ({_form(path)})")
        case "value_error":
            return Problem(path, str(context["error"]))
        case "literal_error":
            return Problem(path, f"must be {context['expected']}{got}".replace("'", '"'))
        case "greater_than_equal":
            return Problem(path, f"must be at least {context['ge']}{got}")
        case "less_than_equal":
            return Problem(path, f"must be at most {context['le']}{got}")
        case kind if kind in _WANTED:
            return Problem(path, f"must be {_WANTED[kind]}{got}")
        case _:
            return Problem(path, details["msg"][:1].lower() + details["msg"][1:] + got)


_WANTED: Final = {
    "int_type": "a whole number",
    "string_type": "a text in quotes",
    "string_too_short": "a text with something in it",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a table",
    "dict_type": "a table",
}


def _unknown_key(path: Path) -> Problem:
    table = _table_at(path[:-1])
    key = str(path[-1])
    return Problem(path[:-1], f"unknown key {named(key)}{did_you_mean(key, table.model_fields)}", at=path)


def _form(path: Path) -> str:
    """How the value of a key is written, from the schema."""
    field = _table_at(path[:-1]).model_fields[str(path[-1])]
    return next(mark.text for mark in field.metadata if isinstance(mark, Form)).replace("`", "")


def _table_at(path: Path) -> type[BaseModel]:
    """The model of the table that a path leads to: keys of tables by name, of maps and lists whatever they are."""
    kind: Any = File
    for step in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _plain(kind.model_fields[str(step)].annotation)
        else:
            kind = _plain(get_args(kind)[1 if get_origin(kind) is dict else 0])
    table: type[BaseModel] = kind
    return table


def _plain(kind: Any) -> Any:
    """A type without `| None` and without annotations."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if isinstance(kind, UnionType):
        return _plain(next(part for part in get_args(kind) if part is not NoneType))
    return kind
