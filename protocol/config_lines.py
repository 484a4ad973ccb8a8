"""Which line of a TOML text a key stands on.

TOML readers return values without positions. This scanner reads the text again, after a real reader has accepted it,
so it may rely on valid TOML: it splits the text into tokens and follows headers, keys, arrays and inline tables. A path
is what leads to a value in the reader's result: `("zones", "eu", "gateways")`, `("users", 0, "role")`. A path whose
tables were only implied (`zones` by the header `[zones.eu]`) gets the line of the first key that implied it.

A wrong line is worse than none: paths that do not lead to a value in the reader's result are dropped.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import tomli

Path = tuple[str | int, ...]
"""Keys of tables and indexes of arrays, from the root of the file."""

_TOKEN: Final = re.compile(
    r"""
    (?P<blank>[ \t\r]+|\#[^\n]*)
    |(?P<newline>\n)
    |(?P<string>\"{3}(?:\\[\s\S]|[^\\])*?\"{3,5}|'{3}[\s\S]*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')
    |(?P<mark>[\[\]{}=,.])
    |(?P<bare>[^\s\[\]{}=,.\#"']+)
    """,
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def locate(text: str, data: Mapping[str, Any]) -> dict[Path, int]:
    """The line (from 1) of every path in `data`, which a TOML reader has made of `text`; unknown ones are absent."""
    scanner = _Scanner(_tokens(text))
    try:
        scanner.run()
    except RecursionError:
        return {}  # nested deeper than any configuration: problems are reported without lines
    lines = scanner.implied | scanner.lines
    return {path: line for path, line in lines.items() if _leads_to_a_value(data, path)}


def _tokens(text: str) -> list[_Token]:
    tokens, line = [], 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind != "blank":
            tokens.append(_Token(kind, match[0], line))
        line += match[0].count("\n")
    tokens.append(_Token("newline", "\n", line))
    return tokens


def _leads_to_a_value(data: Any, path: Path) -> bool:
    for step in path:
        inside = step in data if isinstance(data, Mapping) else isinstance(data, list) and step in range(len(data))
        if not inside:
            return False
        data = data[step]
    return True


class _Scanner:
    """Walks the tokens once; `lines` holds what was written out, `implied` what only a longer path mentioned."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.lines: dict[Path, int] = {}
        self.implied: dict[Path, int] = {}
        self._tokens = tokens
        self._next = 0
        self._tables_made: dict[Path, int] = {}  # [[path]] → how many there are so far

    def run(self) -> None:
        table: Path = ()
        while self._next < len(self._tokens):
            if self._tokens[self._next].kind == "newline":
                self._next += 1
            elif self._tokens[self._next].text == "[":
                table = self._header()
            else:
                self._key_and_value(table)

    def _header(self) -> Path:
        line = self._tokens[self._next].line
        is_array = self._tokens[self._next + 1].text == "["
        self._next += 2 if is_array else 1
        path = self._resolved(self._keys(), but_last=is_array)
        self._next += 2 if is_array else 1
        if is_array:
            index = self._tables_made.get(path, 0)
            self._tables_made[path] = index + 1
            self._note(path, line)
            path = (*path, index)
        self._note(path, line)
        return path

    def _resolved(self, keys: Path, but_last: bool) -> Path:
        """`keys` with the index of the latest table after each that names an array of tables."""
        path: Path = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            if path in self._tables_made and not (but_last and position == len(keys) - 1):
                path = (*path, self._tables_made[path] - 1)
        return path

    def _keys(self) -> Path:
        """A dotted key, up to the `=` or `]` after it."""
        keys: list[str] = []
        while self._tokens[self._next].kind in ("bare", "string") or self._tokens[self._next].text == ".":
            token = self._tokens[self._next]
            if token.text != ".":
                keys.append(_unquoted(token))
            self._next += 1
        return tuple(keys)

    def _key_and_value(self, table: Path) -> None:
        line = self._tokens[self._next].line
        path = table + self._keys()
        self._next += 1  # the `=`
        self._note(path, line)
        self._value(path)

    def _value(self, path: Path) -> None:
        opening = self._tokens[self._next].text
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        else:
            self._scalar()

    def _scalar(self) -> None:
        while self._tokens[self._next].kind != "newline" and self._tokens[self._next].text not in (",", "]", "}"):
            self._next += 1

    def _array(self, path: Path) -> None:
        index = 0
        self._next += 1
        while self._after_commas_and_newlines().text != "]":
            self._note((*path, index), self._tokens[self._next].line)
            self._value((*path, index))
            index += 1
        self._next += 1

    def _inline_table(self, path: Path) -> None:
        self._next += 1
        while self._after_commas_and_newlines().text != "}":
            self._key_and_value(path)
        self._next += 1

    def _after_commas_and_newlines(self) -> _Token:
        while self._tokens[self._next].kind == "newline" or self._tokens[self._next].text == ",":
            self._next += 1
        return self._tokens[self._next]

    def _note(self, path: Path, line: int) -> None:
        self.lines.setdefault(path, line)
        for length in range(1, len(path)):
            self.implied.setdefault(path[:length], line)


def _unquoted(token: _Token) -> str:
    if token.kind == "bare":
        return token.text
    return next(iter(tomli.loads(f"{token.text} = 0")))
