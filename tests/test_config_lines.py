"""Which line a key stands on: known examples, and texts in which every number is its own line."""

from collections.abc import Iterator
from typing import Any

import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.config_lines import Path, locate


def located(text: str) -> dict[Path, int]:
    return locate(text, tomli.loads(text))


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
    else:
        for step, inside in items:
            yield from leaves(inside, (*path, step))


def test_headers_keys_and_implied_tables() -> None:
    lines = located('# comment\n[zones.eu.gateways.gw1]\nclient = "x"\n\n[zones.eu]\ngroups = 1\n')
    assert lines == {
        ("zones",): 2,
        ("zones", "eu"): 5,  # its own header, not the one that implied it
        ("zones", "eu", "gateways"): 2,
        ("zones", "eu", "gateways", "gw1"): 2,
        ("zones", "eu", "gateways", "gw1", "client"): 3,
        ("zones", "eu", "groups"): 6,
    }


def test_tables_in_arrays_are_counted() -> None:
    lines = located(
        "[[users]]\na = 1\n[users.more]\nb = 1\n[[users]]\n[users.more]\nb = 2\n[[users.keys]]\n[[users.keys]]\n"
    )
    assert lines["users",] == 1
    assert lines["users", 0, "more", "b"] == 4
    assert lines["users", 1] == 5
    assert lines["users", 1, "more", "b"] == 7
    assert lines["users", 1, "keys", 1] == 9


def test_values_over_several_lines() -> None:
    text = (
        'a = """\nnot = 1\n[nor this]"""\n'
        'b = [\n  "x", # ] and , and }\n  { c = 1, d = [2,\n 3] },\n]\n'
        "'e \"f\"' = 0\n"
        '"g\\u0041".h = 0\n'
    )
    assert located(text) == {
        ("a",): 1,
        ("b",): 4,
        ("b", 0): 5,
        ("b", 1): 6,
        ("b", 1, "c"): 6,
        ("b", 1, "d"): 6,
        ("b", 1, "d", 0): 6,
        ("b", 1, "d", 1): 7,
        ('e "f"',): 9,
        ("gA",): 10,
        ("gA", "h"): 10,
    }


def test_windows_line_ends_count_once() -> None:
    assert located("a = 1\r\n\r\nb = 2\r\n") == {("a",): 1, ("b",): 3}


def test_paths_that_lead_nowhere_are_dropped() -> None:
    assert locate("a = 1\nb = [1, 2]\n", {"b": [1]}) == {("b",): 2, ("b", 0): 2}


def test_nesting_beyond_reason_gives_no_lines() -> None:
    assert locate("a = " + "[" * 100_000 + "]" * 100_000, {"a": []}) == {}


class Writer:
    """Writes TOML in which every number is the line that it stands on."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.keys = 0

    @property
    def line(self) -> int:
        return self.text.count("\n") + 1

    def key(self) -> str:
        self.keys += 1
        form = self.draw(
            st.sampled_from(["k{}", '"k {} = [#"', "'k.{}'", '"k\\"\\u00e9{}"', "{}", "a{}.b", "a{} . 'c'"])
        )
        return form.format(self.keys)

    def value(self, depth: int) -> None:
        kinds = ["number", "text"] + (["array", "table"] if depth else [])
        match self.draw(st.sampled_from(kinds)):
            case "number":
                self.text += str(self.line)
            case "text":
                texts = [
                    '"#"',
                    "'='",
                    '"""\n] "" \\""""',
                    "'''\n[x]\n''''",
                    '""',
                    "1979-05-27 07:32:00",
                    "-1.5e3",
                    '"\\\\"',
                ]
                self.text += self.draw(st.sampled_from(texts))
            case "array":
                self.text += "["
                for _ in range(self.draw(st.integers(0, 3))):
                    self.text += self.draw(st.sampled_from(["", " ", "\n", " # ]\n\n"]))
                    self.value(depth - 1)
                    self.text += self.draw(st.sampled_from([",", "\n,", " , # [\n"]))
                self.text += "]"
            case _:
                self.text += "{ "
                for position in range(self.draw(st.integers(0, 3))):
                    self.text += (", " if position else "") + self.key() + " = "
                    self.value(depth - 1)
                self.text += " }"

    def statement(self) -> None:
        match self.draw(st.sampled_from(["pair", "pair", "table", "array", "blank"])):
            case "pair":
                self.text += self.key() + self.draw(st.sampled_from(["=", " = ", "\t= "]))
                self.value(2)
            case "table":
                self.text += f"[ {self.key()} ]"
            case "array":
                self.text += self.draw(st.sampled_from(["[[t]]", "[[t.u]]", "[[ t . 'v' ]]"]))
            case _:
                self.text += self.draw(st.sampled_from(["", "  # x = 1", "# [t]"]))
        self.text += self.draw(st.sampled_from(["\n", "\r\n", " # end\n"]))


@st.composite
def documents(draw: st.DrawFn) -> str:
    writer = Writer(draw)
    for _ in range(draw(st.integers(0, 12))):
        writer.statement()
    return writer.text


@settings(max_examples=300)
@given(documents())
def test_every_value_has_its_line_and_it_is_the_right_one(text: str) -> None:
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return  # [[t]] after [[t.u]]: not a text that the scanner is asked about
    lines = locate(text, data)
    for path, value in leaves(data):
        if path:
            assert path in lines
        if isinstance(value, int):
            assert lines[path] == value
