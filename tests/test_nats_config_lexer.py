"""The lexer: its items and places. That they are nats-server's is shown in test_nats_config_reader."""

import pytest

from mesh.nats_config_lexer import Kind, items


def _kinds(text: str) -> list[tuple[Kind, str]]:
    return [(item.kind, item.value) for item in items(text)]


@pytest.mark.parametrize(
    "text", ["port: 4222", "port = 4222", "port 4222", "port:4222;", '"port": 4222,', "{port: 4222}"]
)
def test_a_key_and_its_value_can_be_written_in_many_ways(text: str) -> None:
    assert _kinds(text) == [(Kind.KEY, "port"), (Kind.INTEGER, "4222"), (Kind.END, "")]


def test_places_are_those_of_the_text_in_bytes_from_one() -> None:
    found = [(item.value, item.line, item.column) for item in items('a: é, b: {c: "x"}\n  d: 1')]

    assert ("a", 1, 1) in found
    assert ("b", 1, 8) in found  # é is two bytes
    assert ("c", 1, 12) in found
    assert ("d", 2, 3) in found


def test_what_is_wrong_is_the_last_item_with_its_place() -> None:
    *_, last = items("a: 1\nb: [1, , 2]\nc: 3")

    assert last == (Kind.ERROR, "Unexpected array value terminator ','.", 2, 8)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("true", Kind.BOOLEAN),
        ("OFF", Kind.BOOLEAN),
        ("truex", Kind.TEXT),
        ("12", Kind.INTEGER),
        ("12k", Kind.INTEGER),
        ("12kB", Kind.INTEGER),
        ("12kx", Kind.TEXT),
        ("-12", Kind.INTEGER),
        ("1.5", Kind.FLOAT),
        ("1.2.3.4:4222", Kind.TEXT),
        ("2020-01-02T03:04:05Z", Kind.DATE),
        ("$x", Kind.VARIABLE),
        ("'$x'", Kind.TEXT),
    ],
)
def test_the_form_of_a_value_says_its_kind(value: str, kind: Kind) -> None:
    assert [each for each, _ in _kinds(f"a: {value}\n")] == [Kind.KEY, kind, Kind.END]


def test_include_is_a_keyword_only_before_white_space() -> None:
    assert _kinds("include 'a.conf'\n") == [(Kind.INCLUDE, "a.conf"), (Kind.END, "")]
    assert _kinds("include: a.conf\n")[0] == (Kind.KEY, "include")


def test_a_line_feed_at_the_very_beginning_moves_no_column() -> None:
    assert next(iter(items("\na: 1")))[2:] == (2, 1)
