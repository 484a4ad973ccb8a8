"""nats-server's configuration format, first half: from text to items (keys, values, starts and ends of maps and lists).

    key: value      key = value      key value      key { ... }      # comment, // comment      include "other.conf"

A faithful port of the state machine in nats-server's `conf/lex.go` (2.15): every state is a method that looks at the
next character and returns the state that follows. It is not tidied up, because files that nats-server takes must be
taken here, and what it refuses must be refused with the same words. Some of what that means:

- a NUL is the end of the input wherever it stands; a `/` alone between values is white space;
- `[1]` holds the *text* `1]` (a number ends at white space, `,`, `;`, `}` or the line's end, not at `]`);
- a text without quotes ends at white space, `;`, `,`, `]`, `}` and at `'`.

Positions are counted in bytes, as editors and nats-server do; undecodable bytes are carried as surrogates.
"""

from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any, Final, NamedTuple

State = Callable[[], Any] | None  # a state returns the next one; mypy has no recursive callables

_END: Final = "\0"
_SPACES: Final = frozenset(  # Go's unicode.IsSpace
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_BLANKS: Final = frozenset("\t ")
_LINE_ENDS: Final = frozenset("\n\r")
_SEPARATORS: Final = frozenset("=:")
_TERMINATORS: Final = frozenset(",;")
_NUMBER_SUFFIXES: Final = frozenset("kKmMgGtTpPeE")
_NUMBER_ENDS: Final = frozenset("\n\r\0};,\t ")
_TEXT_ENDS: Final = frozenset("\n\r\0;,]}\t ")
_BOOLEANS: Final = frozenset({"true", "false", "on", "off", "yes", "no"})
_ESCAPES: Final = {"t": "\t", "n": "\n", "r": "\r", '"': '"', "\\": "\\"}
_DATE_AFTER_YEAR: Final = "00-00T00:00:00Z"  # 0 stands for any digit


class Kind(Enum):
    ERROR = auto()
    END = auto()
    KEY = auto()
    TEXT = auto()
    BOOLEAN = auto()
    INTEGER = auto()
    FLOAT = auto()
    DATE = auto()
    LIST_START = auto()
    LIST_END = auto()
    MAP_START = auto()
    MAP_END = auto()
    VARIABLE = auto()
    INCLUDE = auto()


class Item(NamedTuple):
    """`value` is the text of a key or value, or what is wrong; `line` and `column` count from 1."""

    kind: Kind
    value: str
    line: int
    column: int


def items(text: str) -> Iterator[Item]:
    """The items of `text`; the last one is an END or an ERROR."""
    lexer = _Lexer(text)
    state: State = lexer.top
    while state is not None:
        state = state()
        yield from lexer.emitted
        lexer.emitted.clear()


class _Lexer:
    def __init__(self, text: str) -> None:
        self.emitted: list[Item] = []
        self._text = text
        self._start = self._position = self._width = 0
        self._line = 1
        self._line_start = self._item_line_start = -1  # where the line feed before the line is
        self._stack: list[State] = []
        self._parts: list[str] = []  # of a text with escapes
        self._text_state: State = None  # where to go on behind an escape

    # -- characters ---------------------------------------------------------------------------------------------------

    def _next(self) -> str:
        if self._position >= len(self._text):
            self._width = 0
            return _END
        character = self._text[self._position]
        if character == "\n":
            self._line += 1
            self._line_start = self._position
        self._width = 1
        self._position += 1
        return character

    def _back(self) -> None:
        self._position -= self._width
        self._width = 0
        if self._position < len(self._text) and self._text[self._position] == "\n":
            self._line -= 1

    def _peek(self) -> str:
        character = self._next()
        self._back()
        return character

    def _ignore(self) -> None:
        self._start = self._position
        self._item_line_start = self._line_start

    def _skip(self, state: State) -> State:
        self._ignore()
        return state

    def _pending(self) -> str:
        return self._text[self._start : self._position]

    # -- items --------------------------------------------------------------------------------------------------------

    def _emit(self, kind: Kind) -> None:
        value = self._pending()
        if self._parts:
            # Bytes that were written one by one may be one letter: \xc3\xa9
            data = ("".join(self._parts) + value).encode("utf-8", "surrogateescape")
            value = data.decode("utf-8", "surrogateescape")
            self._parts.clear()
        column = self._column(self._item_line_start, self._position) - _size_bytes(value)
        self.emitted.append(Item(kind, value, self._line, column))
        self._ignore()

    def _column(self, line_feed: int, position: int) -> int:
        return _size_bytes(self._text[line_feed + 1 : position]) + 1

    def _error(self, message: str, character: str = "") -> State:
        """`message` with `%c` for the character that is wrong."""
        text = message.replace("%c", "\\n" if character == "\n" else character)
        at = self._position - self._width  # of the character that was looked at last
        self.emitted.append(Item(Kind.ERROR, text, self._line, self._column(self._line_start, at)))
        return None

    def _end_of_input(self) -> State:
        if self._position > self._start:
            return self._error("Unexpected EOF.")
        self._emit(Kind.END)
        return None

    def _pop(self) -> State:
        return self._stack.pop()

    def _comment_behind(self, state: State) -> bool:
        """Behind a `/`: whether a second one makes it a comment, after which `state` follows."""
        if self._next() == "/":
            self._stack.append(state)
            return True
        self._back()
        return False

    def _comment(self) -> State:
        while (character := self._peek()) not in _LINE_ENDS and character != _END:
            self._next()
        self._ignore()
        return self._pop()

    # -- the top level, with or without braces around it --------------------------------------------------------------

    def top(self) -> State:
        character = self._next()
        if character in _SPACES:
            return self._skip(self.top)
        if character == "{":
            self._stack.append(self.top)
            return self._skip(self._block_start)
        return self._top_key(character, self.top, self._top_value_end)

    def _top_key(self, character: str, state: State, behind_value: State) -> State:
        """The part that the top level and a block in braces share."""
        if character == "#":
            self._stack.append(state)
            return self._comment
        if character == "/":
            return self._comment if self._comment_behind(state) else self._end_of_input()
        if character == _END:
            return self._end_of_input()
        self._back()
        self._stack.append(behind_value)
        return self._key_start

    def _top_value_end(self) -> State:
        character = self._next()
        if character == "#" or (character == "/" and self._next() == "/"):
            self._stack.append(self.top)
            return self._comment
        if character == "/":
            self._back()
            return self._top_value_end
        if character in _BLANKS:
            return self._top_value_end
        if character in _LINE_ENDS or character in _TERMINATORS or character in ("}", _END):
            return self._skip(self.top)
        return self._error(
            "Expected a top-level value to end with a new line, comment or EOF, but got '%c' instead.", character
        )

    def _block_start(self) -> State:
        character = self._next()
        if character in _SPACES:
            return self._skip(self._block_start)
        if character == "{":
            self._stack.append(self._block_end)
            return self._skip(self._block_start)
        if character == "}":
            self._ignore()
            return self._pop()
        return self._top_key(character, self._block_start, self._block_value_end)

    def _block_value_end(self) -> State:
        character = self._next()
        if character == "#" or (character == "/" and self._next() == "/"):
            self._stack.append(self._block_value_end)
            return self._comment
        if character == "/":
            self._back()
            return self._block_value_end
        if character in _BLANKS:
            return self._block_value_end
        if character in _LINE_ENDS or character in _TERMINATORS:
            return self._skip(self._block_start)
        if character == "}":
            self._back()
            return self._block_end
        return self._error(
            "Expected a block-level value to end with a new line, comment or EOF, but got '%c' instead.", character
        )

    def _block_end(self) -> State:
        character = self._next()
        if character == "#" or (character == "/" and self._next() == "/"):
            self._stack.append(self._block_start)
            return self._comment
        if character == "/":
            self._back()
            return self._block_end
        if character in _LINE_ENDS or character in _BLANKS:
            return self._block_end
        if character in _TERMINATORS:
            return self._skip(self._block_start)
        if character == "}":
            self._ignore()
            return self._pop()
        return self._error("Expected a block-level to end with a '}', but got '%c' instead.", character)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _key_start(self) -> State:
        character = self._peek()
        if character in _SEPARATORS:
            return self._error("Unexpected key separator '%c'", character)
        if character in _SPACES:
            self._next()
            return self._skip(self._key_start)
        if character in ('"', "'"):
            self._next()
            self._ignore()
            return self._quoted_key(character)
        self._ignore()
        self._next()
        return self._key

    def _quoted_key(self, quote: str) -> State:
        while (character := self._peek()) != quote:
            if character == _END:
                return self._end_of_input()
            self._next()
        self._emit(Kind.KEY)
        self._next()
        return self._skip(self._key_end)

    def _key(self) -> State:
        while True:
            character = self._peek()
            if character in _SPACES:
                return self._key_or_include(self._key_end, None)
            if character in _SEPARATORS or character == _END:
                self._emit(Kind.KEY)
                return self._key_end
            self._next()

    def _key_end(self) -> State:
        character = self._next()
        if character in _SPACES:
            return self._skip(self._key_end)
        if character in _SEPARATORS:
            return self._skip(self._value)
        if character == _END:
            self._emit(Kind.END)
            return None
        self._back()
        return self._value

    def _key_or_include(self, behind_key: State, behind_include: State) -> State:
        if self._pending().lower() == "include":
            self._ignore()
            if behind_include is not None:
                self._stack.append(behind_include)
            return self._include
        self._emit(Kind.KEY)
        return behind_key

    # -- include ------------------------------------------------------------------------------------------------------

    def _include(self) -> State:
        while (character := self._next()) in _BLANKS:
            pass
        self._start = self._position - self._width
        self._item_line_start = self._line_start
        if character in ('"', "'"):
            self._ignore()
            return self._quoted_include(character)
        wrong = {"[": "start of an array", "{": "start of a map", "(": "start of a block", "\\": "escape sequence"}
        if character in wrong:
            return self._error(f"Expected include value but found {wrong[character]}")
        if character.isdecimal() or character == "-":
            return self._error("Expected include value but found start of a number")
        if character in _LINE_ENDS:
            return self._error("Expected include value but found new line")
        self._back()
        return self._bare_include

    def _quoted_include(self, quote: str) -> State:
        while (character := self._next()) != quote:
            if character == _END:
                kind = "double quoted" if quote == '"' else "quoted"
                return self._error(f"Unexpected EOF in {kind} include")
        self._back()
        self._emit(Kind.INCLUDE)
        self._next()
        self._ignore()
        return self._pop()

    def _bare_include(self) -> State:
        while True:
            character = self._next()
            if character in _LINE_ENDS or character in _BLANKS or character in (_END, ";", "}"):
                self._back()
                self._emit(Kind.INCLUDE)
                return self._pop()
            if character == "'":
                self._back()
                self._emit(Kind.INCLUDE)
                self._next()
                self._ignore()
                return self._pop()

    # -- values -------------------------------------------------------------------------------------------------------

    def _value(self) -> State:
        character = self._next()
        if character in _BLANKS:
            return self._skip(self._value)
        if character == "[":
            self._ignore()
            self._emit(Kind.LIST_START)
            return self._list_value
        if character == "{":
            self._ignore()
            self._emit(Kind.MAP_START)
            return self._map_key_start
        if character in ("'", '"', "("):
            self._ignore()
            return {"'": self._quoted_text, '"': self._double_quoted_text, "(": self._block_text}[character]
        if character == "-":
            return self._negative_number_start
        if character.isdecimal():
            return self._number
        if character == ".":
            return self._error("Floats must start with a digit")
        if character in _LINE_ENDS:
            return self._error("Expected value but found new line")
        self._back()
        return self._bare_text

    def _list_value(self) -> State:
        character = self._next()
        if character in _SPACES:
            return self._skip(self._list_value)
        if character == "#" or (character == "/" and self._next() == "/"):
            self._stack.append(self._list_value)
            return self._comment
        if character == "/":
            self._back()
        if character in ("/", ","):
            return self._error("Unexpected array value terminator ','.")
        if character == "]":
            return self._list_end()
        self._back()
        self._stack.append(self._list_value_end)
        return self._value

    def _list_value_end(self) -> State:
        character = self._next()
        if character in _BLANKS:
            return self._skip(self._list_value_end)
        if character == "#" or (character == "/" and self._next() == "/"):
            self._stack.append(self._list_value_end)
            return self._comment
        if character == "/":
            self._back()
        if character in ("/", ",") or character in _LINE_ENDS:
            return self._skip(self._list_value)
        if character == "]":
            return self._list_end()
        return self._error(
            'Expected an array value terminator "," or an array terminator "]", but got \'%c\' instead.', character
        )

    def _list_end(self) -> State:
        self._ignore()
        self._emit(Kind.LIST_END)
        return self._pop()

    # -- maps ---------------------------------------------------------------------------------------------------------

    def _map_key_start(self) -> State:
        character = self._peek()
        if character in _SEPARATORS:
            return self._error("Unexpected key separator '%c'.", character)
        if character == "]":
            return self._error("Unexpected array end '%c' processing map.", character)
        if character == _END:
            return self._error("Unexpected EOF processing map.")
        if character in _SPACES:
            self._next()
            return self._skip(self._map_key_start)
        if character == "}":
            self._next()
            return self._map_end()
        if character in ('"', "'"):
            self._next()
            self._ignore()
            return self._quoted_map_key(character)
        if character in ("#", "/"):
            self._next()
            if character == "#" or self._comment_behind(self._map_key_start):
                if character == "#":
                    self._stack.append(self._map_key_start)
                return self._comment
        self._ignore()
        self._next()
        return self._map_key

    def _quoted_map_key(self, quote: str) -> State:
        while (character := self._peek()) != quote:
            if character == _END:
                kind = "double quoted" if quote == '"' else "quoted"
                return self._error(f"Unexpected EOF processing {kind} map key.")
            self._next()
        self._emit(Kind.KEY)
        self._next()
        return self._skip(self._map_key_end)

    def _map_key(self) -> State:
        while True:
            character = self._peek()
            if character == _END:
                return self._error("Unexpected EOF processing map key.")
            if character in _SPACES:
                return self._key_or_include(self._map_key_end, self._map_value_end)
            if character in _SEPARATORS:
                self._emit(Kind.KEY)
                return self._map_key_end
            self._next()

    def _map_key_end(self) -> State:
        character = self._next()
        if character in _SPACES:
            return self._skip(self._map_key_end)
        if character in _SEPARATORS:
            return self._skip(self._map_value)
        self._back()
        return self._map_value

    def _map_value(self) -> State:
        character = self._next()
        if character in _SPACES:
            return self._skip(self._map_value)
        if character == ",":
            return self._error('Unexpected map value terminator ",".')
        if character == "}":
            return self._map_end()
        self._back()
        self._stack.append(self._map_value_end)
        return self._value

    def _map_value_end(self) -> State:
        character = self._next()
        if character in _BLANKS:
            return self._skip(self._map_value_end)
        if character == "#" or (character == "/" and self._next() == "/"):
            self._stack.append(self._map_value_end)
            return self._comment
        if character == "/":
            self._back()
        if character == "/" or character in _TERMINATORS or character in _LINE_ENDS:
            return self._skip(self._map_key_start)
        if character == "}":
            return self._map_end()
        return self._error(
            'Expected a map value terminator "," or a map terminator "}", but got \'%c\' instead.', character
        )

    def _map_end(self) -> State:
        self._ignore()
        self._emit(Kind.MAP_END)
        return self._pop()

    # -- texts --------------------------------------------------------------------------------------------------------

    def _quoted_text(self) -> State:
        while (character := self._next()) != "'":
            if character == _END:
                return self._end_of_input()
        return self._text_with_quote_end()

    def _text_with_quote_end(self) -> State:
        self._back()
        self._emit(Kind.TEXT)
        self._next()
        self._ignore()
        return self._pop()

    def _double_quoted_text(self) -> State:
        while (character := self._next()) != '"':
            if character == "\\":
                return self._escape(self._double_quoted_text)
            if character == _END:
                return self._end_of_input()
        return self._text_with_quote_end()

    def _bare_text(self) -> State:
        while (character := self._next()) not in _TEXT_ENDS:
            if character == "\\":
                return self._escape(self._bare_text)
            if character == "'":
                return self._text_with_quote_end()
        self._back()
        if self._parts:
            self._emit(Kind.TEXT)
        elif self._pending().lower() in _BOOLEANS:
            self._emit(Kind.BOOLEAN)
        elif self._pending().startswith("$"):
            self._start += 1
            self._emit(Kind.VARIABLE)
        else:
            self._emit(Kind.TEXT)
        return self._pop()

    def _block_text(self) -> State:
        """In parentheses: up to a `)` on a line of its own."""
        while True:
            character = self._next()
            if character == _END:
                return self._error("Unexpected EOF processing block.")
            if character != ")" or self._text[self._position - 2 : self._position - 1] != "\n":
                continue
            if self._peek() in ("\n", _END):
                if self._position < len(self._text):  # at the very end the `)` stays in the text, as in nats-server
                    self._position -= 1
                self._emit(Kind.TEXT)
                self._next()
                self._ignore()
                return self._pop()

    def _escape(self, state: State) -> State:
        """Behind a backslash in a text; `state` reads on."""
        self._parts.append(self._text[self._start : self._position - 1])
        self._start = self._position
        character = self._next()
        if character == "x":
            return self._hexadecimal(state)
        if character not in _ESCAPES:
            return self._error(
                "Invalid escape character '%c'. Only the following escape characters are allowed: "
                '\\xXX, \\t, \\n, \\r, \\", \\\\.',
                character,
            )
        self._parts.append(_ESCAPES[character])
        self._start = self._position
        return state

    def _hexadecimal(self, state: State) -> State:
        for _ in range(2):
            if self._next() in _LINE_ENDS:
                return self._error("Expected two hexadecimal digits after '\\x', but hit end of line")
        digits = self._text[self._position - 2 : self._position]
        try:
            byte = bytes.fromhex(digits) if digits.isalnum() else b""
        except ValueError:
            byte = b""
        if len(byte) != 1:
            return self._error(f"Expected two hexadecimal digits after '\\x', but got '{digits}'")
        self._parts.append(byte.decode("utf-8", "surrogateescape"))
        self._start = self._position
        return state

    # -- numbers, dates, addresses ------------------------------------------------------------------------------------

    def _number(self) -> State:
        """Behind the first digit of what may still turn out to be a float, a date, an address or a text."""
        while (character := self._next()).isdecimal():
            pass
        if character == "-":
            if _size_bytes(self._text[self._start : self._position]) != 5:
                return self._error("All ISO8601 dates must be in full Zulu form.")
            return self._date_after_year
        if character == ".":
            return self._float_start
        if character in _NUMBER_SUFFIXES:
            return self._suffix
        if character not in _NUMBER_ENDS:
            return self._bare_text
        self._back()
        self._emit(Kind.INTEGER)
        return self._pop()

    def _suffix(self) -> State:
        while (character := self._next()) in "bBiI":
            pass
        self._back()
        if character in _NUMBER_ENDS:
            self._emit(Kind.INTEGER)
            return self._pop()
        return self._bare_text

    def _date_after_year(self) -> State:
        for wanted in _DATE_AFTER_YEAR:
            character = self._next()
            if wanted == "0" and not character.isdecimal():
                return self._error("Expected digit in ISO8601 datetime, but found '%c' instead.", character)
            if wanted not in ("0", character):
                return self._error(f"Expected '{wanted}' in ISO8601 datetime, but found '%c' instead.", character)
        self._emit(Kind.DATE)
        return self._pop()

    def _negative_number_start(self) -> State:
        character = self._next()
        if character == ".":
            return self._error("Floats must start with a digit, not '.'.")
        if not character.isdecimal():
            return self._error("Expected a digit but got '%c'.", character)
        return self._negative_number

    def _negative_number(self) -> State:
        while (character := self._next()).isdecimal():
            pass
        if character == ".":
            return self._float_start
        if character in _NUMBER_SUFFIXES:
            return self._suffix
        self._back()
        self._emit(Kind.INTEGER)
        return self._pop()

    def _float_start(self) -> State:
        character = self._next()
        if not character.isdecimal():
            return self._error("Floats must have a digit after the '.', but got '%c' instead.", character)
        while (character := self._next()).isdecimal():
            pass
        if character == ".":
            return self._address
        self._back()
        self._emit(Kind.FLOAT)
        return self._pop()

    def _address(self) -> State:
        """An IP address: a second dot has come."""
        while (character := self._next()).isdecimal() or character in ".:-":
            pass
        self._back()
        self._emit(Kind.TEXT)
        return self._pop()


def _size_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
