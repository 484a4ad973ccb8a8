"""`$LOG` requests and answers: each mistake is named, and nothing that was stored can forge or break an answer."""

import base64
import email.parser
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import headers
from protocol.errors import LOG_ERRORS, LogError
from protocol.history import (
    FetchRequest,
    MetadataRequest,
    OffsetsRequest,
    end_of_batch,
    error_headers,
    error_json,
    log_lines,
    partition_number,
    read_request,
    shown_headers,
    stream_and_zone,
)
from protocol.records import Record

# -- requests ---------------------------------------------------------------------------------------------------------


def test_an_empty_body_is_an_empty_request():
    assert read_request(MetadataRequest, b"") == MetadataRequest()


def test_defaults_of_a_fetch():
    request = read_request(FetchRequest, b'{"offset": 7}')
    assert request == FetchRequest(offset=7, max_records=1_000, max_bytes=1024 * 1024, max_wait_ms=0)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "exactly one of offset and timestamp"),
        (b'{"offset": 1, "timestamp": 2}', "exactly one of offset and timestamp"),
        (b'{"offset": -1}', "offset must be from 0 to 9223372036854775807, got -1"),
        (b'{"offset": 9223372036854775808}', "offset must be from 0"),
        (b'{"timestamp": -5}', "timestamp must be from 0"),
        (b'{"offset": 0, "end_offset": -1}', "end_offset must be from 0"),
        (b'{"offset": 0, "max_records": 0}', "max_records must be from 1 to 2147483647, got 0"),
        (b'{"offset": 0, "max_bytes": 0}', "max_bytes must be from 1 to 1073741824, got 0"),
        (b'{"offset": 0, "max_bytes": 1073741825}', "max_bytes must be from 1 to 1073741824, got 1073741825"),
        (b'{"offset": 0, "max_wait_ms": 60001}', "max_wait_ms must be from 0 to 60000, got 60001"),
        (b'{"offset": 0, "filter": "a..b"}', "filter 'a..b' is not a subject pattern, like orders.>"),
        (b'{"offset": 0, "filter": ""}', "filter '' is not a subject pattern"),
        (b'{"offset": -1, "max_records": 0}', "got -1; max_records"),
        (b'{"offset": "7"}', "Expected `int | null`, got `str`.*fields are offset, timestamp"),
        (b'{"offset": 1.5}', "Expected `int | null`"),
        (b'{"offset": true}', "Expected `int | null`"),
        (b'{"ofset": 1}', "unknown field 'ofset'; did you mean 'offset'"),
        (b'{"whatever": 1}', "unknown field 'whatever'; known are offset, timestamp"),
        (b"[]", "Expected `object`, got `array`"),
        (b"7", "Expected `object`"),
        (b'{"offset": ', "the request is not JSON"),
        (b'{"offset": 1} x', "the request is not JSON"),
        (b'{"filter": "\xff"}', "the request is not JSON"),
        (b'{"\xff": 1}', "the request is not JSON"),
        (b"[" * 100_000, "the request is not JSON"),
    ],
)
def test_what_is_wrong_with_a_fetch_is_named(body, says):
    with pytest.raises(LogError, match=says) as caught:
        read_request(FetchRequest, body)
    assert (caught.value.name, caught.value.status) == ("INVALID_REQUEST", 400)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{}", "missing required field `at`"),
        (b'{"at": "tomorrow"}', "Invalid enum value 'tomorrow'"),
        (b'{"at": "timestamp"}', "timestamp and until need one, others none"),
        (b'{"at": "until"}', "timestamp and until need one"),
        (b'{"at": "latest", "timestamp": 3}', "others none"),
        (b'{"at": "timestamp", "timestamp": 18446744073709551616}', "timestamp must be from -9223372036854775808"),
        (b'{"at": "latest", "partitions": [18446744073709551616]}', "partitions must be from 0 to 2147483647"),
        (b'{"at": "latest", "partitions": [-1]}', "partitions must be from 0 to 2147483647, got -1"),
        (b'{"at": "latest", "partitions": [' + b"0," * 1_024 + b"0]}", "partitions must be at most 1024, got 1025"),
        (b'{"at": "latest", "partition": [0]}', "unknown field 'partition'; did you mean 'partitions'"),
    ],
)
def test_what_is_wrong_with_offsets_is_named(body, says):
    with pytest.raises(LogError, match=says):
        read_request(OffsetsRequest, body)


def test_offsets_of_chosen_partitions():
    request = read_request(OffsetsRequest, b'{"at": "until", "timestamp": 5, "partitions": [2, 0]}')
    assert (request.partitions, request.timestamp) == ((2, 0), 5)


@given(st.binary(max_size=80), st.sampled_from((FetchRequest, OffsetsRequest, MetadataRequest)))
def test_any_body_is_read_or_refused_by_name(body, kind):
    try:
        request = read_request(kind, body)
    except LogError as refusal:
        answer = headers.parse(error_headers(refusal))
    else:
        answer = headers.Headers(400, "INVALID_REQUEST", ()) if isinstance(request, kind) else None
    assert answer is not None
    assert answer[:2] == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(("token", "number"), [("0", 0), ("999999999", 999_999_999)])
def test_a_partition_in_a_subject(token, number):
    assert partition_number(token) == number


@pytest.mark.parametrize("token", ["", "-1", "x", "1.5", "\u0661", "\u00b2", "1000000000", "9" * 4_000])
def test_what_is_no_partition_in_a_subject(token):
    assert partition_number(token) is None


def test_a_log_of_another_zone():
    assert stream_and_zone("orders", "eu") == ("orders", "eu")
    assert stream_and_zone("orders@us", "eu") == ("orders", "us")


# -- answers ----------------------------------------------------------------------------------------------------------


def shown(block: bytes) -> bytes:
    return shown_headers(
        log_lines("orders", "eu", 2), Record(7, 1_700_000_000_000, b"k", b"orders.new", block, b"payload")
    )


OURS = (
    ("Log-Stream", "orders"),
    ("Log-Zone", "eu"),
    ("Log-Partition", "2"),
    ("Log-Offset", "7"),
    ("Log-Timestamp", "1700000000000"),
    ("Nats-Subject", "orders.new"),
)


def test_what_the_log_says_stands_before_the_publishers_headers():
    assert headers.parse(shown(b"")) == headers.Headers(0, "", OURS)
    block = headers.build([("Colour", "blue"), ("Colour", "red"), ("colour", "")])
    theirs = (("Colour", "blue"), ("Colour", "red"), ("colour", ""))
    assert headers.parse(shown(block)) == headers.Headers(0, "", OURS + theirs)


@pytest.mark.parametrize(
    "name",
    ["Log-Offset", "log-next-offset", "LOG-X", "Nats-Subject", "nats-subject", "Status", "Description", "Log-Error"],
)
def test_forged_headers_come_back_under_another_name(name):
    found = headers.parse(shown(headers.build([(name, "forged")])))
    assert found == headers.Headers(0, "", (*OURS, (f"Original-{name}", "forged")))


def test_an_original_that_is_none_can_be_told():
    found = headers.parse(shown(headers.build([("Original-Log-Offset", "9")])))
    assert found.fields[-1] == ("Original-Original-Log-Offset", "9")


def test_a_publishers_status_is_no_status_any_more():
    found = headers.parse(shown(headers.build([("a", "b")], 204, "EOB")))
    assert found == headers.Headers(0, "", (*OURS, ("Original-Status", "204 EOB"), ("a", "b")))
    assert headers.parse(shown(b"NATS/1.0\r\n\r\n")) == headers.Headers(0, "", OURS)


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\na: b\nLog-Offset: 9\r\n\r\n",
        b"NATS/1.0\r\na: b\rLog-Offset: 9\r\n\r\n",
        b"NATS/1.0\r\n orders.forged\r\n\r\n",
        b"NATS/1.0\r\n\tLog-Offset: 9\r\n\r\n",
        b"NATS/1.0\r\nLog-Offset : 9\r\n\r\n",
        b"NATS/1.0\r\na: b\r\n\r\nLog-Offset: 9\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\n: nothing\r\n\r\n",
        b"NATS/1.0\r\na: b\0\r\n\r\n",
        b"NATS/1.0\nLog-Offset: 9\r\n\r\n",
        b"NATS/1.0 204\rEOB\r\n\r\n",
        b"NATS/1.0\r\na: b\r\n",
        b"NATS/1.0\r\n",
        b"NATS/2.0\r\na: b\r\n\r\n",
        b"\r\n\r\n",
        b"x",
    ],
)
def test_a_block_that_clients_could_read_in_two_ways_comes_back_as_one_value(block):
    found = headers.parse(shown(block))
    assert found == headers.Headers(0, "", (*OURS, ("Original-Header-Block", base64.b64encode(block).decode())))


lines = st.lists(
    st.sampled_from(
        [b"Log-Offset: 9", b"nats-subject:x", b"a: b", b" ", b"\t", b"\r\n", b"\r", b"\n", b"\0", b":", b"NATS/1.0 503",
         b"\xff", b"Status: 204", b"\x85", "\u2028".encode(), b"\x0b\x0c"]
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


@given(st.one_of(lines, st.binary(max_size=60)).map(lambda text: b"NATS/1.0\r\n" + text + b"\r\n\r\n"))
@example(b"NATS/1.0 204 EOB\r\n\r\n")
def test_nothing_stored_can_be_taken_for_ours(block):
    """Read by our own rules, and by those of a mail reader, which nats-py has used."""
    answer = shown(block)
    assert answer.startswith(b"NATS/1.0\r\n")
    assert answer.index(b"\r\n\r\n") == len(answer) - 4
    found = headers.parse(answer)
    assert (found.status, found.fields[: len(OURS)]) == (0, OURS)
    mail = email.parser.BytesParser().parsebytes(answer.removeprefix(b"NATS/1.0\r\n"))
    assert mail.get_payload() == ""
    for name, value in OURS:
        assert mail.get_all(name) == [value]
    assert not [name for name in mail if name.lower() in ("status", "description")]


def test_the_end_of_a_batch():
    assert headers.parse(end_of_batch(8, 9, 2)) == headers.Headers(
        204, "EOB", (("Log-Next-Offset", "8"), ("Log-High-Watermark", "9"), ("Log-Start-Offset", "2"))
    )


def test_an_error_says_what_range_exists():
    error = LogError("OFFSET_OUT_OF_RANGE", "offset 99\r\nis \udcff not in [2, 9)", start_offset=2, high_watermark=9)
    found = headers.parse(error_headers(error))
    assert (found.status, found.description) == (416, "OFFSET_OUT_OF_RANGE")
    assert found.fields == (
        ("Log-Error", "offset 99 is ? not in [2, 9)"), ("Log-Start-Offset", "2"), ("Log-High-Watermark", "9"),
    )  # fmt: skip
    assert json.loads(error_json(error)) == {
        "error": {
            "code": 1, "name": "OFFSET_OUT_OF_RANGE", "message": "offset 99 is ? not in [2, 9)", "start_offset": 2,
            "high_watermark": 9,
        }
    }  # fmt: skip


@pytest.mark.parametrize("name", LOG_ERRORS)
def test_every_error_has_a_status_that_clients_know(name):
    error = LogError(name, "text")
    assert headers.parse(error_headers(error)).status == error.status
    assert 400 <= error.status < 600
