"""Sizes, rates, durations, addresses and names: what reads, what is refused, and that what is written reads back."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.config_units import (
    Address,
    format_duration,
    format_size,
    parse_duration,
    parse_host,
    parse_name,
    parse_rate,
    parse_size,
    shown,
)

ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        ("64MiB", 64 * 1024**2),
        ("10GiB", 10 * 1024**3),
        ("12MB", 12_000_000),
        ("1 TB", 1000**4),
        ("5kB", 5000),
        ("7B", 7),
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        (0, 0),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_sizes_that_read(value: object, size_bytes: int) -> None:
    assert parse_size(value) == size_bytes


@pytest.mark.parametrize("value", ["64 Mo", "-1", -1, 1.5, "1.5MiB", True, None, "", "64mib", "9999999TiB", 2**63, [1]])
def test_sizes_that_do_not(value: object) -> None:
    with pytest.raises(ValueError, match=r'^must be a size such as "64MiB"'):
        parse_size(value)


def test_rates_have_a_time() -> None:
    assert parse_rate("12MB/s") == 12_000_000
    assert parse_rate("0") == parse_rate(0) == 0
    for value in ("12MB", "12MB/m", 5, False, "fast/s", None):
        with pytest.raises(ValueError, match=r'^must be a rate such as "12MB/s"'):
            parse_rate(value)


@pytest.mark.parametrize(
    ("value", "duration_ms"),
    [
        ("1ms", 1),
        ("30s", 30_000),
        ("2m", 120_000),
        ("24h", 86_400_000),
        ("7d", 604_800_000),
        ("1h30m", 5_400_000),
        ("0", 0),
        (0, 0),
        ("0s", 0),
    ],
)
def test_durations_that_read(value: object, duration_ms: int) -> None:
    assert parse_duration(value) == duration_ms


@pytest.mark.parametrize("value", ["5", 5, "5 s", "-5s", "1.5h", "soon", "", False, None, 0.5])
def test_durations_that_do_not(value: object) -> None:
    with pytest.raises(ValueError, match=r'^must be a duration such as "500ms"'):
        parse_duration(value)


def test_a_duration_has_an_end() -> None:
    assert parse_duration("36500d") == limits.CONFIG_DURATION_MS_MAX
    with pytest.raises(ValueError, match=r'^must be at most 36500d, got "36501d"$'):
        parse_duration("36501d")


@given(st.integers(0, 2**63 - 1))
def test_a_written_size_reads_back(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.integers(0, limits.CONFIG_DURATION_MS_MAX))
def test_a_written_duration_reads_back(duration_ms: int) -> None:
    assert parse_duration(format_duration(duration_ms)) == duration_ms


def test_written_forms_are_short() -> None:
    assert [format_size(size) for size in (0, 1000, 65_536, 10 * 1024**3)] == ["0", "1000B", "64KiB", "10GiB"]
    assert [format_duration(ms) for ms in (0, 90_000, 86_400_000, 172_800_000)] == ["0", "90s", "24h", "2d"]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("eu-gw1:4222", "eu-gw1", 4222),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:65535", "::1", 65_535),
        ("my_service.local:80", "my_service.local", 80),
    ],
)
def test_addresses_that_read(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert address == Address(host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "value",
    ["eu-gw1", ":4222", "eu-gw1:", "eu-gw1:65536", "eu-gw1:-1", "::1:80", "[::1]", "a b:1", "[x]:1", "x:٣", 4222, None],
)
def test_addresses_that_do_not(value: object) -> None:
    with pytest.raises(ValueError, match=r'^must be "host:port" with a port from 0 to 65535'):
        Address.parse(value)


def test_loopback_is_what_only_this_machine_reaches() -> None:
    assert all(Address(host, 1).is_loopback for host in ("localhost", "127.0.0.1", "127.8.8.8", "::1"))
    assert not any(Address(host, 1).is_loopback for host in ("0.0.0.0", "::", "10.0.0.1", "eu-gw1"))


def test_hosts_stand_without_a_port() -> None:
    assert parse_host("0.0.0.0") == "0.0.0.0"
    assert parse_host("[::]") == parse_host("::") == "::"
    for value in ("0.0.0.0:4222", "", "[host]", 5):
        with pytest.raises(ValueError, match="without a port"):
            parse_host(value)


def test_names() -> None:
    assert parse_name("eu-gw_1") == "eu-gw_1"
    for value in ("", "a.b", "a b", "$AUDIT", "é", "x" * 129, 5, "a\n"):
        with pytest.raises(ValueError, match="a name consists of 1 to 128 letters"):
            parse_name(value)


@given(ANYTHING)
def test_whatever_is_written_there_the_answer_is_a_value_or_a_sentence(value: object) -> None:
    for parse in (parse_size, parse_rate, parse_duration, parse_host, parse_name, Address.parse):
        try:
            parse(value)
            answer = ""
        except ValueError as error:
            answer = str(error)
        assert "\n" not in answer


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("a", '"a"'),
        ('say "hi"\n', '"say \\"hi\\"\\u000a"'),
        ("x" * 100, '"' + "x" * 60 + '…"'),
        ([1], "a list"),
        ({}, "a table"),
        (2**64, "a number of more than 64 bits"),
        (0.5, "0.5"),
        (None, "nothing"),
        (datetime.date(2024, 1, 1), "a date"),
    ],
)
def test_values_are_quoted_on_one_short_line(value: object, text: str) -> None:
    assert shown(value) == text
