"""Values of a nats.conf: durations and addresses as Go reads them, types with clear words."""

import pytest

from mesh import nats_config_reader as reader
from mesh import nats_config_values as values


def _node(written: str) -> reader.Node:
    return reader.parse(f"key: {written}", "nats.conf", {})["key"]


@pytest.mark.parametrize(
    ("written", "time_ms"),
    [
        ("0", 0),
        ("1ms", 1),
        ("1.5s", 1500),
        ("1h2m3s4ms", 3_723_004),
        ("100us", 1),  # rounded up: nothing becomes for ever
        ("1ns", 1),
        ("-1m", -60_000),
        (".5s", 500),
        ("1.s", 1000),
    ],
)
def test_durations_are_gos(written: str, time_ms: int) -> None:
    assert values.parse_go_duration(written) == time_ms


@pytest.mark.parametrize("written", ["", "5", "5x", "s", "1d", "1 s", "--1s", "99999999999h"])
def test_what_go_does_not_take_for_a_duration_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        values.parse_go_duration(written)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("4222", ("", 4222)),
        ("-1", ("", -1)),
        ('"a.example:4222"', ("a.example", 4222)),
        ("0.0.0.0:-1", ("0.0.0.0", -1)),
        ('":4222"', ("", 4222)),
        ('"[::1]:4222"', ("::1", 4222)),
    ],
)
def test_listen_takes_a_port_or_host_and_port(written: str, address: tuple[str, int]) -> None:
    assert values.listen("key", _node(written)) == address


@pytest.mark.parametrize("written", ['"localhost"', '"::1:4222"', '"a:b"', "true", "[1 ]"])
def test_what_is_no_address_is_refused(written: str) -> None:
    with pytest.raises(values.Wrong, match=r"^nats.conf:1:1: key: must"):
        values.listen("key", _node(written))


def test_types_are_asked_for_in_clear_words() -> None:
    with pytest.raises(values.Wrong, match='must be a whole number such as 100, 64k or 1MB, got "abc"'):
        values.integer("key", _node("abc"))
    with pytest.raises(values.Wrong, match="must be a text, got 12; put it in quotes"):
        values.text("key", _node("12"))
    with pytest.raises(values.Wrong, match="must be true or false, got 1"):
        values.boolean("key", _node("1"))


def test_unknown_keys_are_problems_unless_they_are_variables() -> None:
    tree = reader.parse("unused: 1\nused: 2\nport: $used\nprot: 3", "nats.conf", {})
    findings = values.Findings()

    values.each_key(tree, {"port": lambda key, node: None}, findings)

    assert findings.problems == [
        'nats.conf:1:1: unknown field "unused"',
        "nats.conf:4:1: unknown field \"prot\"; did you mean 'port'?",
    ]
