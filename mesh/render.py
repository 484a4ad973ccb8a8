"""How events look: for people one line each with nothing that a terminal would obey, for machines JSON, or raw bytes.

Raw output is the payload and a line feed and nothing else, so that lines which were published come back as the file
they were.
"""

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import IO, Any, Literal

from nats.aio.msg import Msg

from mesh.log_reader import Record, header_lists
from protocol import subjects

Form = Literal["human", "json", "raw"]

_DIM, _SUBJECT, _PLAIN = b"\x1b[2m", b"\x1b[36m", b"\x1b[0m"


def has_colours(stream: IO[str]) -> bool:
    """Only a terminal has, and only if its owner did not set NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(data: bytes) -> str:
    """Text on one line: control characters and bytes that are not UTF-8 are written as escapes."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def local_time(timestamp_ms: int) -> str:
    """RFC 3339 in local time, as `--from` takes it."""
    return datetime.fromtimestamp(timestamp_ms / 1000).astimezone().isoformat(timespec="milliseconds")


def _line(*columns: tuple[str, bytes], colours: bool) -> bytes:
    if not colours:
        return "  ".join(text for text, _ in columns).encode("utf-8", "replace") + b"\n"
    coloured = (colour + text.encode("utf-8", "replace") + (_PLAIN if colour else b"") for text, colour in columns)
    return b"  ".join(coloured) + b"\n"


def _json_line(fields: dict[str, Any]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # bytes that are not UTF-8, in a subject or header
        return json.dumps(fields).encode() + b"\n"


def _data(payload: bytes) -> dict[str, str]:
    try:
        return {"data": payload.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(payload).decode()}


def record_line(record: Record, form: Form, *, colours: bool = False, partitions: bool = False) -> bytes:
    """`partitions`: the offset is shown with its partition before it, as `2/17`."""
    if form == "raw":
        return record.value + b"\n"
    if form == "json":
        fields = {name: getattr(record, name) for name in Record._fields if name != "value"}
        return _json_line(fields | _data(record.value))
    offset = f"{record.partition}/{record.offset}" if partitions else str(record.offset)
    return _line(
        (offset, b""),
        (local_time(record.timestamp), _DIM),
        (printable(subjects.encode(record.subject)), _SUBJECT),
        (printable(record.value), b""),
        colours=colours,
    )


def message_line(message: Msg, form: Form, *, colours: bool = False) -> bytes:
    """A live event; its time is when it came here."""
    if form == "raw":
        return message.data + b"\n"
    if form == "json":
        fields: dict[str, Any] = {"subject": message.subject, "headers": header_lists(message)}
        if message.reply:
            fields["reply"] = message.reply
        return _json_line(fields | _data(message.data))
    return _line(
        (local_time(time.time_ns() // 1_000_000), _DIM),
        (printable(subjects.encode(message.subject)), _SUBJECT),
        (printable(message.data), b""),
        colours=colours,
    )


def byte_output() -> Callable[[bytes], object]:
    """Writes bytes to stdout, behind everything that was printed."""
    sys.stdout.flush()
    return sys.stdout.buffer.write
