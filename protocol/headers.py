"""NATS header blocks: a status line, `Name: value` lines, an empty line, each ended by CR LF.

    NATS/1.0[ <status>[ <description>]]\\r\\n
    <Name>: <value>\\r\\n
    \\r\\n

Gateways pass blocks on as the bytes they are; they are read only where something inside is asked for. Names keep their
case and order, a name may come several times.

Source: NATS ADR-4 (headers); the no-responders status as observed on nats-server 2.15.1.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from protocol.errors import FrameError

VERSION: Final = "NATS/1.0"


class Headers(NamedTuple):
    """`status` is 0 and `description` empty where the status line has none."""

    status: int
    description: str
    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """The first value under `name`, in this very case."""
        return next((value for field, value in self.fields if field == name), None)


def build(fields: Iterable[tuple[str, str]] = (), status: int = 0, description: str = "") -> bytes:
    """The block with `fields` in order. ValueError for a name or value that would not come back the same."""
    if "\r" in description or "\n" in description:
        raise ValueError(f"a description must not hold line ends: {description!r}")
    lines = [" ".join(part for part in (VERSION, str(status or ""), description) if part)]
    for name, value in fields:
        if not name or any(not "!" <= character <= "~" or character == ":" for character in name):
            raise ValueError(f"a header name must be printable ASCII without colon and blanks: {name!r}")
        if "\r" in value or "\n" in value:
            raise ValueError(f"a header value must not hold line ends: {value!r}")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def parse(block: bytes) -> Headers:
    """The parts of `block`; blanks around a value are dropped. FrameError when it is not a header block."""
    text = block.decode("utf-8", "surrogateescape")
    if not text.startswith(VERSION) or not text.endswith("\r\n\r\n"):
        raise FrameError(f"a header block begins with {VERSION} and ends with an empty line: {block[:40]!r}")
    status_line, *lines = text[:-4].split("\r\n")
    status, _, description = status_line[len(VERSION) :].strip().partition(" ")
    if status and not (status.isascii() and status.isdigit()):
        raise FrameError(f"a status is a number, got {status!r}")
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not name or not colon:
            raise FrameError(f"a header line is 'Name: value', got {line!r}")
        fields.append((name, value.strip(" \t")))
    return Headers(int(status or 0), description.strip(), tuple(fields))


def no_responders(subject: bytes) -> bytes:
    """The block that tells a requester that nobody listens on `subject`."""
    return b"NATS/1.0 503\r\nNats-Subject: %b\r\n\r\n" % subject
