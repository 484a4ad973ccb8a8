"""`$LOG`: history over plain NATS request-reply, with Kafka's names.

    $LOG.METADATA[.<stream>]            → JSON
    $LOG.OFFSETS.<stream>               {partitions, at: earliest|latest|timestamp|until, timestamp}      → JSON
    $LOG.FETCH.<stream>.<partition>     {offset | timestamp, max_records, max_bytes, max_wait_ms, end_offset, filter}
                                        → messages on the inbox, then one status message

In METADATA a partition whose group has no leader has `"leader": null`, `"error": "LEADER_NOT_AVAILABLE"` and -1 for
what only a leader knows; where no group that was asked has one, the request fails.

Each message of a fetch shows the event's payload and headers; what the log says of it stands in headers before them:

    Log-Stream Log-Zone Log-Partition Log-Offset Log-Timestamp Nats-Subject

A publisher's own headers of these names come back as `Original-<name>`, and its own status line as `Original-Status`,
so that nothing can be forged. A block that is not made of plain lines (clients read line ends, blanks and colons in
many ways) comes back as `Original-Header-Block`, in base64.

The answer ends with `204 EOB` (Log-Next-Offset, Log-High-Watermark, Log-Start-Offset) or with an error:
`NATS/1.0 <status> <NAME>` and `Log-Error: <what is wrong and what would be right>`.

Where events are known to be missing, a status message `206 Gap` stands among the others, with Log-Gap-From, Log-Gap-To
(offsets, inclusive), Log-Gap-Reason and Log-Gap-Events; the reader goes on behind it.

`<stream>` is the own zone's log, `<stream>@<zone>` another's. Times are integer milliseconds since 1970.
"""

import base64
import difflib
import re
from typing import Any, Literal, TypeVar

import msgspec

from protocol import subjects
from protocol.errors import UNREADABLE, LogError
from protocol.limits import (
    FETCH_BYTES_DEFAULT,
    FETCH_BYTES_MAX,
    FETCH_RECORDS_DEFAULT,
    FETCH_WAIT_MS_MAX,
    PARTITIONS_MAX,
)
from protocol.records import STATUS_LINE, Record

_OURS = (b"log-", b"nats-subject:", b"original-", b"status:", b"description:")
_PLAIN_BLOCK = re.compile(rb"NATS/1\.0([ -~]*)\r\n((?:[!-9;-~]+:[^\x00\r\n]*\r\n)*)\r\n")


class FetchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to begin (exactly one of `offset`, `timestamp`) and when to stop; `end_offset` is exclusive."""

    offset: int | None = None
    timestamp: int | None = None
    max_records: int = FETCH_RECORDS_DEFAULT
    max_bytes: int = FETCH_BYTES_DEFAULT
    max_wait_ms: int = 0
    end_offset: int | None = None
    filter: str | None = None


class OffsetsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without `partitions`: all of the stream."""

    at: Literal["earliest", "latest", "timestamp", "until"]
    partitions: tuple[int, ...] | None = None
    timestamp: int | None = None


class MetadataRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


Request = TypeVar("Request", FetchRequest, OffsetsRequest, MetadataRequest)


def read_request(kind: type[Request], body: bytes) -> Request:
    """The request in `body` (JSON; empty is `{}`). LogError INVALID_REQUEST says which field is wrong and how."""
    try:
        request = msgspec.json.decode(body or b"{}", type=kind)
    except UNREADABLE as error:
        raise LogError("INVALID_REQUEST", _what_is_wrong(kind, body, error)) from error
    if isinstance(request, FetchRequest):
        _check_fetch(request)
    if isinstance(request, OffsetsRequest):
        _check_offsets(request)
    return request


def _what_is_wrong(kind: type[Any], body: bytes, error: Exception) -> str:
    fields = kind.__struct_fields__
    known = ", ".join(fields) or "none"
    try:
        given = msgspec.json.decode(body or b"{}")
    except UNREADABLE:
        return f"the request is not JSON: {error}; an object with fields among {known} is expected"
    for name in given if isinstance(given, dict) else ():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            return f"unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known are {known}")
    return f"{error}; fields are {known}"


def _check_fetch(request: FetchRequest) -> None:
    problems = []
    if (request.offset is None) == (request.timestamp is None):
        problems.append("exactly one of offset and timestamp says where to begin")
    bounds: dict[str, tuple[int | None, int, int]] = {
        "offset": (request.offset, 0, 2**63 - 1),
        "timestamp": (request.timestamp, 0, 2**63 - 1),
        "end_offset": (request.end_offset, 0, 2**63 - 1),
        "max_records": (request.max_records, 1, 2**31 - 1),
        "max_bytes": (request.max_bytes, 1, FETCH_BYTES_MAX),
        "max_wait_ms": (request.max_wait_ms, 0, FETCH_WAIT_MS_MAX),
    }
    for name, (value, least, most) in bounds.items():
        if value is not None and not least <= value <= most:
            problems.append(f"{name} must be from {least} to {most}, got {value}")
    if request.filter is not None and not subjects.is_valid_pattern(request.filter):
        problems.append(f"filter {request.filter!r} is not a subject pattern, like orders.> or orders.*.paid")
    if problems:
        raise LogError("INVALID_REQUEST", "; ".join(problems))


def _check_offsets(request: OffsetsRequest) -> None:
    problems = []
    if (request.at in ("timestamp", "until")) != (request.timestamp is not None):
        problems.append(f"at: {request.at!r} and timestamp: timestamp and until need one, others none")
    if request.timestamp is not None and not -(2**63) <= request.timestamp < 2**63:
        problems.append(f"timestamp must be from {-(2**63)} to {2**63 - 1}, got {request.timestamp}")
    partitions = request.partitions or ()
    if len(partitions) > PARTITIONS_MAX:
        problems.append(f"partitions must be at most {PARTITIONS_MAX}, got {len(partitions)}")
    elif not all(0 <= partition < 2**31 for partition in partitions):
        problems.append(f"partitions must be from 0 to {2**31 - 1}, got {', '.join(map(str, partitions))}")
    if problems:
        raise LogError("INVALID_REQUEST", "; ".join(problems))


def partition_number(token: str) -> int | None:
    """The partition that `token` of a subject names; None if it is no number from 0 to 999,999,999."""
    return int(token) if token.isascii() and token.isdecimal() and len(token) <= 9 else None


def stream_and_zone(name: str, own_zone: str) -> tuple[str, str]:
    """`orders` → (orders, own zone); `orders@eu` → (orders, eu)."""
    stream, separator, zone = name.partition("@")
    return stream, zone if separator else own_zone


# -- answers ----------------------------------------------------------------------------------------------------------


def log_lines(stream: str, zone: str, partition: int) -> bytes:
    """The header lines that say of which log a message is."""
    return f"Log-Stream: {stream}\r\nLog-Zone: {zone}\r\nLog-Partition: {partition}\r\n".encode()


def shown_headers(log_lines: bytes, record: Record) -> bytes:
    """The header block with which `record` is shown to a reader."""
    return b"%b%bLog-Offset: %d\r\nLog-Timestamp: %d\r\nNats-Subject: %b\r\n%b\r\n" % (
        STATUS_LINE,
        log_lines,
        record.offset,
        record.timestamp_ms,
        record.subject,
        _publishers_lines(record.header_block),
    )


def _publishers_lines(block: bytes) -> bytes:
    """The publisher's header lines, each ended by CR LF, with nothing left in them that could pass for ours."""
    if not block:
        return b""
    plain = _PLAIN_BLOCK.fullmatch(block)
    if plain is None:
        return b"Original-Header-Block: " + base64.b64encode(block) + b"\r\n"
    status, lines = plain.groups()
    kept = b"Original-Status:" + status + b"\r\n" if status else b""
    return kept + b"".join(
        b"Original-" + line if line.lower().startswith(_OURS) else line for line in lines.splitlines(keepends=True)
    )


def end_of_batch(next_offset: int, high_watermark: int, start_offset: int) -> bytes:
    """The header block that ends a fetch."""
    return (
        f"NATS/1.0 204 EOB\r\nLog-Next-Offset: {next_offset}\r\nLog-High-Watermark: {high_watermark}\r\n"
        f"Log-Start-Offset: {start_offset}\r\n\r\n"
    ).encode()


def gap_headers(from_offset: int, to_offset: int, reason: str, events: int) -> bytes:
    """The header block that tells a reader of missing events, at offsets `from_offset` to `to_offset` inclusive."""
    return (
        f"NATS/1.0 206 Gap\r\nLog-Gap-From: {from_offset}\r\nLog-Gap-To: {to_offset}\r\n"
        f"Log-Gap-Reason: {reason}\r\nLog-Gap-Events: {events}\r\n\r\n"
    ).encode()


def error_headers(error: LogError) -> bytes:
    """The header block that ends a fetch which failed."""
    lines = [f"NATS/1.0 {error.status} {error.name}", f"Log-Error: {_one_line(str(error))}"]
    lines += [f"Log-{name.replace('_', '-').title()}: {value}" for name, value in error.details.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace")


def error_json(error: LogError) -> bytes:
    """The JSON answer to a request that failed."""
    body = {"code": error.code, "name": error.name, "message": _one_line(str(error)), **error.details}
    return msgspec.json.encode({"error": body})


def _one_line(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode().split())
