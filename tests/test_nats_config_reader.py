"""The reader of nats-server's configuration format, beside the real one: the same files, the same values."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import natscheck

from mesh import nats_config_reader as reader
from protocol import limits
from protocol.errors import ConfigError


def _plain(value: Any) -> Any:
    if isinstance(value, reader.Node):
        return _plain(value.value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _parse(text: str, **environment: str) -> Any:
    return _plain(reader.parse(text, "nats.conf", environment))


def _problem(text: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        reader.parse(text, "nats.conf", environment)
    return caught.value.problems[0]


# -- values -----------------------------------------------------------------------------------------------------------


def test_a_file_of_everything() -> None:
    text = """
    # a comment
    port: 4222  // another
    ratio = 2.5; debug yes
    name "a\\tb\\x41", other 'as \\n it is'
    bare: nats://h:1
    born 2020-01-02T03:04:05Z
    list [1, two
      3.5 , { x: 1 }]
    map { y: -7, inner { z: 1k } }
    block (
one
two
)
    """
    assert _parse(text) == {
        "port": 4222,
        "ratio": 2.5,
        "debug": True,
        "name": "a\tbA",
        "other": "as \\n it is",
        "bare": "nats://h:1",
        "born": datetime.fromisoformat("2020-01-02T03:04:05Z"),
        "list": [1, "two", 3.5, {"x": 1}],
        "map": {"y": -7, "inner": {"z": 1000}},
        "block": "\none\ntwo\n",
    }


@pytest.mark.parametrize(
    ("written", "number"),
    [("1k", 10**3), ("1kb", 2**10), ("2KiB", 2**11), ("1m", 10**6), ("1MB", 2**20), ("1gi", 2**30), ("1T", 10**12)],
)
def test_numbers_may_have_a_suffix(written: str, number: int) -> None:
    assert _parse(f"a: {written}") == {"a": number}


def test_places_are_of_keys_and_of_values_in_a_list() -> None:
    tree = reader.parse("a: 1\n  b: [ x\n y ]", "nats.conf", {})

    assert str(tree["b"].place) == "nats.conf:2:3"
    assert isinstance(tree["b"].value, list)
    assert [str(each.place) for each in tree["b"].value] == ["nats.conf:2:8", "nats.conf:3:2"]


def test_json_is_taken_too() -> None:
    assert _parse('{"port": 4222, "tls": {"verify": true}}') == {"port": 4222, "tls": {"verify": True}}


# -- variables and includes -------------------------------------------------------------------------------------------


def test_a_variable_is_a_key_around_it_or_one_of_the_environment() -> None:
    text = "x: 1\nmap { x: 2, here: $x, deeper { there: $x } }\ntop: $x\nenv: $PORT\nlist: $MANY"

    assert _parse(text, PORT="4222", MANY="[a, b]") == {
        "x": 1,
        "map": {"x": 2, "here": 2, "deeper": {"there": 2}},
        "top": 1,
        "env": 4222,
        "list": ["a", "b"],
    }


def test_a_bcrypt_hash_needs_no_quotes() -> None:
    assert _parse("pass: $2a$11$abc") == {"pass": "$2a$11$abc"}


def test_variables_that_cannot_be_had_are_named() -> None:
    assert _problem("a: 1\nb: $nope") == "nats.conf:2:5: variable reference for 'nope' can not be found"
    assert "refers to itself" in _problem("a: $A", A="$B", B="$A")
    assert "could not be parsed" in _problem("a: $A", A="[1")


def test_includes_are_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "nats.conf").write_text("port: 1\ntop { include './parts/a.conf' }\ninclude parts/b.conf")
    (tmp_path / "parts/a.conf").write_text("include b.conf\nx: 1")
    (tmp_path / "parts/b.conf").write_text("y: 2")

    tree = reader.read(str(tmp_path / "nats.conf"), {})

    assert _plain(tree) == {"port": 1, "top": {"y": 2, "x": 1}, "y": 2}
    assert str(tree["y"].place) == f"{tmp_path}/parts/b.conf:1:1"


def test_files_that_include_themselves_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("include b.conf")
    (tmp_path / "b.conf").write_text("x: 1\ninclude ./a.conf")

    with pytest.raises(ConfigError, match=r"b\.conf:2:9: .*it includes itself"):
        reader.read(str(tmp_path / "a.conf"), {})


def test_a_file_that_is_not_there_is_named_with_who_wants_it(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("include nope.conf")

    with pytest.raises(ConfigError, match=r"a\.conf:1:9: error parsing include file 'nope.conf': .*No such file"):
        reader.read(str(tmp_path / "a.conf"), {})


# -- where nats-server is silent --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a { b: 1, c }", "1:11: the key 'c' has no value"),
        ("a", "1:1: the key 'a' has no value"),
        ("a: 1kbb", "1:1: expected integer, but got '1kbb'"),
        ("a: 9999999999g", "1:1: integer '9999999999g' is out of the range"),
        ("a: 2020-13-02T03:04:05Z", "expected Zulu formatted DateTime"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, problem: str) -> None:
    assert problem.partition(": ")[2] in _problem(text)


def test_nesting_has_a_bound() -> None:
    deep = limits.NATS_CONFIG_DEPTH_MAX + 1

    assert "nested" in _problem("a: " + "[" * deep + "]" * deep)


# -- beside the real one ----------------------------------------------------------------------------------------------

DIRECTED = [
    "a: [1]",
    "a: [1 ]",
    "a: 1e3k",
    "a: 5k5",
    "a: (\nfoo\n)\n",
    "a: (\nfoo)\n)",
    "a: 1 / b: 2",
    "a: [/x]",
    "a: {/x: 1}",
    "a: $PATH",
    "b: 4\n c: {d: $b}",
    "a: 0.0000001 \n b: 100000000000000000000.5 \n c: 1234567890123456789012.0 \n d: 0.000001 \n e: -0.0",
    "a: 9223372036854775807",
    "a\n: 3",
    "a {b {c [ {d: 1}, [2, 3 ] ]}}",
    "a: [1,,2]",
    'é: "ü\\xc3\\xa9\\xff"',
    'a: "\\xzz"',
    'a: "\\q"',
    "a: x'y",
    'a: "unterminated',
    'a: "<&>\u2028"',
    "a: b # c",
    "a: # c",
    "# c\na: 1",
    "include 5",
    "a: include",
    "a: 5_000",
    "=:",
    "a: 1\x00 b: 2",
    "a: 1\u0663",
    "a\u00a0: x",
    "a: -5kbq",
    "a: .5",
]
TOKENS = st.sampled_from(
    [
        *("a", "b", ":", "=", " ", "\n", "{", "}", "[", "]", ",", ";", "#", "//", "/", '"', "'", "\\", "(", "\n)\n"),
        *("1", "12k", "2Mb", "3.5", "1.2.3.4:55", "-", "-7", "2020-01-02T03:04:05Z", "true", "off", "$a", "$2a$1"),
        *("\t", "\r\n", "include ", ".", '"s"', "'t'", "a: 1", "b: {", "c: [ ", " ]", " }", "<", "\x00", "\u00a0"),
        *("é", "\\x41"),
    ]
)


def _compare(folder: Path, body: str) -> None:
    text = natscheck.anything(body)
    file = folder / "z.conf"
    theirs = natscheck.check(file, text)
    try:
        ours = reader.digest(reader.parse(text, str(file), os.environ))
    except ConfigError as error:
        place, _, problem = error.problems[0].removeprefix(f"{file}:").partition(": ")
        if "has no value" in problem:
            assert theirs.status == 1, theirs.stderr
        elif theirs.error:
            assert (int(place.partition(":")[0]), problem) == (theirs.line, theirs.error)
        else:
            assert theirs.status == 1, theirs.stderr
    else:
        # A key that is none of nats-server's is found later there: the text itself was right.
        assert theirs.digest == ours or "unknown field" in theirs.stderr, theirs.stderr


@pytest.mark.parametrize("body", DIRECTED)
def test_directed_files_are_read_as_nats_server_reads_them(tmp_path: Path, body: str) -> None:
    _compare(tmp_path, body)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.lists(TOKENS, max_size=14))
def test_any_file_is_read_as_nats_server_reads_it(tmp_path: Path, tokens: list[str]) -> None:
    _compare(tmp_path, "".join(tokens))
