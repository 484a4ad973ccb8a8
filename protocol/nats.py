"""The NATS client protocol: what clients send, what a server answers.

A control line is a verb in any case, blanks, arguments separated by blanks, CR LF (or LF alone). PUB and HPUB are
followed by as many bytes as their last argument says, and CR LF:

    CONNECT {json}          PUB <subject> [reply] <size>            SUB <subject> [queue] <sid>       PING   +OK
    INFO {json}             HPUB <subject> [reply] <header> <size>  UNSUB <sid> [max]                 PONG   -ERR <text>

`ClientParser` turns bytes into events, one at a time, so that what an event changes (CONNECT switches headers on)
holds for the very next line. How the bytes were cut into reads never matters. It is as lenient as nats-server is (an
argument may begin right behind CONNECT, anything may follow PING on its line), with one difference: a control
character in a subject, a reply or a queue name is refused here, so that nothing a client sends can become a frame
elsewhere. An error is a `Complaint` (say so, go on) or a `Failure` (say so if there is a text, then close).

Source: NATS documentation, 'Client Protocol'; texts, order and silence observed on nats-server 2.15.1.
"""

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from protocol import subjects
from protocol.errors import FrameError
from protocol.limits import MAX_CONTROL_LINE_BYTES, MAX_PAYLOAD_BYTES

OK: Final = b"+OK\r\n"
PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"
LINE_END: Final = b"\r\n"
CLIENT_PROTOCOL_MAX: Final = 1  # 1: the client understands INFO at any time

UNKNOWN_OPERATION: Final = "Unknown Protocol Operation"
CONTROL_LINE_EXCEEDED: Final = "maximum control line exceeded"
PAYLOAD_VIOLATION: Final = "Maximum Payload Violation"
INVALID_SUBJECT: Final = "Invalid Subject"
INVALID_PUBLISH_SUBJECT: Final = "Invalid Publish Subject"
AUTHORIZATION_VIOLATION: Final = "Authorization Violation"
AUTHENTICATION_TIMEOUT: Final = "Authentication Timeout"
STALE_CONNECTION: Final = "Stale Connection"
CONNECTIONS_EXCEEDED: Final = "maximum connections exceeded"
SUBSCRIPTIONS_EXCEEDED: Final = "maximum subscriptions exceeded"
INVALID_CLIENT_PROTOCOL: Final = "invalid client protocol"
NO_RESPONDERS_REQUIRES_HEADERS: Final = "no responders requires headers support"


# -- what clients send ------------------------------------------------------------------------------------------------


class Connect(NamedTuple):
    """CONNECT; `argument` is for `read_connect`."""

    argument: bytes


class Publish(NamedTuple):
    """PUB or HPUB; `reply` and `header_block` are b"" where there is none."""

    subject: bytes
    reply: bytes
    header_block: bytes
    payload: bytes


class Subscribe(NamedTuple):
    """SUB; `queue` is b"" where there is none."""

    subject: bytes
    queue: bytes
    sid: bytes


class Unsubscribe(NamedTuple):
    """UNSUB; `max_messages` below 1: at once."""

    sid: bytes
    max_messages: int


class Ping(NamedTuple):
    """PING: a PONG is due."""


class Pong(NamedTuple):
    """PONG: the other side lives."""


class Complaint(NamedTuple):
    """Something is wrong with one request: answer -ERR `text`, keep the connection."""

    text: str


class Failure(NamedTuple):
    """The connection cannot go on: answer -ERR `text` if it is not None, close. `detail` is for our own log."""

    text: str | None
    detail: str


class Extension(msgspec.Struct, frozen=True):
    """An event of a protocol that is built upon this one (`protocol.routes`)."""


Event: TypeAlias = Connect | Publish | Subscribe | Unsubscribe | Ping | Pong | Complaint | Failure | Extension

_VERB = re.compile(rb"(?:(PUB|HPUB|SUB|UNSUB|-ERR)[ \t]|(CONNECT|INFO|PING|PONG|\+OK))[ \t]*", re.IGNORECASE)
_BEGINNINGS = (b"PUB ", b"HPUB ", b"SUB ", b"UNSUB ", b"-ERR ", b"CONNECT", b"INFO", b"PING", b"PONG", b"+OK")
_WITHOUT_ARGUMENT: dict[bytes, Event | None] = {b"PING": Ping(), b"PONG": Pong(), b"+OK": None}
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f]")  # all but the tab, which is a blank
_BLANKS = re.compile(rb"[ \t]+")
_BLANKS_AND_ENDS = re.compile(rb"[ \t\r\n]+")  # what stands between the arguments of SUB and UNSUB
_CARRIAGE_RETURN = 13
_SIZE_DIGITS_MAX = 9
_DETAIL_BYTES = 64


class ClientParser:
    """Bytes of one client in, events out.

    The owner sets `expect_connect` (anything but CONNECT is an authorization violation, unless `lets_in` lets the
    client in without), `headers` (HPUB is allowed) and `pedantic` (complain about subjects that are not literal) as
    they become known. After a `Failure` there are no more events.
    """

    _verb = _VERB
    _beginnings: tuple[bytes, ...] = _BEGINNINGS

    def __init__(
        self,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        max_control_line_bytes: int = MAX_CONTROL_LINE_BYTES,
    ) -> None:
        self.max_payload_bytes = max_payload_bytes
        self.max_control_line_bytes = max_control_line_bytes
        self.expect_connect = False
        self.lets_in: Callable[[], bool] | None = None
        self.headers = False
        self.pedantic = True
        self._data = b""
        self._at = 0
        self._partial = bytearray()  # the beginning of a line or payload that is not complete yet
        self._needed_bytes = 0  # no look at `_partial` before it is this long
        self._publish = _NO_PUBLISH
        self._after_line: Event | None = None
        self._read: Callable[[], Event | None] = self._read_line

    def receive(self, data: bytes) -> None:
        """Take in what came; then call `next_event` until it returns None."""
        if self._at < len(self._data):
            self._keep(self._data[self._at :], 0)
            self._data, self._at = b"", 0
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed_bytes:
                return
            data = bytes(self._partial)
            self._partial.clear()
        self._data, self._at = data, 0

    def next_event(self) -> Event | None:
        """The next event, or None when more bytes are needed."""
        while self._at < len(self._data):
            event = self._read()
            if event is not None:
                return event
        return None

    def wanted_bytes(self) -> int:
        """How much of what comes next is one piece of protocol, once `next_event` has returned None.

        0: a new line begins. Above 0: so many bytes complete a payload. Below 0: everything up to a line feed.
        """
        if self._read == self._read_payload:
            return self._publish[3] + 2 - len(self._partial)
        return 0 if self._read == self._read_line and not self._partial else -1

    @property
    def buffered_bytes(self) -> int:
        """What was received and is not part of an event yet."""
        return len(self._partial) + len(self._data) - self._at

    # -- states: each consumes something, or keeps an incomplete beginning and waits for more ---------------------

    def _read_line(self) -> Event | None:
        data, at = self._data, self._at
        if self.expect_connect and data[at] not in b"Cc" and not (self.lets_in is not None and self.lets_in()):
            return self._fail(AUTHORIZATION_VIOLATION, "the first line is not CONNECT")
        match = self._verb.match(data, at)
        if match is None:
            return self._read_beginning()
        verb = match[0].strip().upper()
        start = match.end()
        if verb in _WITHOUT_ARGUMENT:
            self._at, self._after_line, self._read = start, _WITHOUT_ARGUMENT[verb], self._skip_line
            return None
        end = data.find(b"\n", start + 1)  # an argument has at least one byte, whatever it is
        line_end = end if end >= 0 else len(data)
        argument_end = line_end - (data[line_end - 1] == _CARRIAGE_RETURN)
        if argument_end - start > self.max_control_line_bytes:
            return self._fail(CONTROL_LINE_EXCEEDED, f"{verb.decode()} with more than {self.max_control_line_bytes} B")
        if end < 0:
            self._keep(verb + b" " + data[start:], 0)  # blanks before an argument do not pile up
            return None
        self._at = end + 1
        return self._argument(verb, data[start : max(argument_end, start + 1)])

    def _read_beginning(self) -> Event | None:
        start = self._data[self._at :]
        if len(start) < len(b"CONNECT") and any(verb.startswith(start.upper()) for verb in self._beginnings):
            self._keep(start, 0)
            return None
        return self._fail(UNKNOWN_OPERATION, f"line begins with {start[:_DETAIL_BYTES]!r}")

    def _skip_line(self) -> Event | None:
        """The rest of a line whose verb has no argument counts for nothing, and is not kept."""
        end = self._data.find(b"\n", self._at)
        if end < 0:
            self._at = len(self._data)
            return None
        self._at, self._read = end + 1, self._read_line
        return self._after_line

    def _read_payload(self) -> Event | None:
        data, start = self._data, self._at
        subject, reply, header_bytes, size_bytes, refused = self._publish
        end = start + size_bytes
        if data[end : end + 2] != b"\r\n":
            if len(data) > end and data[end : end + 2] != b"\r":
                return self._fail(UNKNOWN_OPERATION, "a payload is not followed by CR LF")
            self._keep(data[start:], size_bytes + 1)
            return None
        self._at, self._read, self._publish = end + 2, self._read_line, _NO_PUBLISH
        if refused:
            return None
        header_end = start + header_bytes
        return self._published(subject, reply, data[start:header_end], data[header_end:end])

    def _read_nothing(self) -> Event | None:
        self._at = len(self._data)
        return None

    def _published(self, subject: bytes, reply: bytes, header_block: bytes, payload: bytes) -> Event:
        return Publish(subject, reply, header_block, payload)

    # -- arguments ------------------------------------------------------------------------------------------------

    def _argument(self, verb: bytes, argument: bytes) -> Event | None:
        return _ARGUMENTS[verb](self, argument)

    def _connect(self, argument: bytes) -> Event | None:
        return Connect(argument)

    def _info(self, argument: bytes) -> Event | None:
        try:
            given = msgspec.json.decode(argument)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            given = argument
        if given is None or isinstance(given, dict):
            return None
        return self._fail(None, "INFO without a JSON object")

    def _error(self, argument: bytes) -> Event | None:
        return self._fail(None, f"the client reports an error: {argument[:_DETAIL_BYTES]!r}")

    def _pub(self, argument: bytes) -> Event | None:
        words, unclean = _words(argument)
        if len(words) == 3:
            subject, reply, size = words
        elif len(words) == 2:
            (subject, size), reply = words, b""
        else:
            return self._fail(None, f"PUB takes two or three arguments: {argument[:_DETAIL_BYTES]!r}")
        return self._expect_payload(subject, reply, 0, _size(size), unclean)

    def _hpub(self, argument: bytes) -> Event | None:
        if not self.headers:
            return self._fail(None, "message headers not supported")
        words, unclean = _words(argument)
        if len(words) == 4:
            subject, reply, header_size, size = words
        elif len(words) == 3:
            (subject, header_size, size), reply = words, b""
        else:
            return self._fail(None, f"HPUB takes three or four arguments: {argument[:_DETAIL_BYTES]!r}")
        header_bytes, size_bytes = _size(header_size), _size(size)
        if header_bytes < 0 or header_bytes > size_bytes >= 0:
            return self._fail(None, f"HPUB with a bad header size: {argument[:_DETAIL_BYTES]!r}")
        return self._expect_payload(subject, reply, header_bytes, size_bytes, unclean)

    def _expect_payload(
        self, subject: bytes, reply: bytes, header_bytes: int, size_bytes: int, unclean: bool
    ) -> Event | None:
        if size_bytes < 0:
            return self._fail(None, "a publish with a bad size")
        if size_bytes > self.max_payload_bytes:
            return self._fail(PAYLOAD_VIOLATION, f"{size_bytes} B announced, {self.max_payload_bytes} B allowed")
        self._publish = (subject, reply, header_bytes, size_bytes, unclean)
        self._read = self._read_payload
        if unclean or (self.pedantic and not subjects.is_valid_subject(subjects.decode(subject))):
            return Complaint(INVALID_PUBLISH_SUBJECT)
        return None

    def _sub(self, argument: bytes) -> Event | None:
        words = [word for word in _BLANKS_AND_ENDS.split(argument) if word]
        if len(words) not in (2, 3):
            return self._fail(None, f"SUB takes two or three arguments: {argument[:_DETAIL_BYTES]!r}")
        if _CONTROL.search(b" ".join(words)):
            return Complaint(INVALID_SUBJECT)
        return Subscribe(words[0], words[1] if len(words) == 3 else b"", words[-1])

    def _unsub(self, argument: bytes) -> Event | None:
        words = [word for word in _BLANKS_AND_ENDS.split(argument) if word]
        if len(words) not in (1, 2):
            return self._fail(None, f"UNSUB takes one or two arguments: {argument[:_DETAIL_BYTES]!r}")
        return Unsubscribe(words[0], _size(words[1]) if len(words) == 2 else -1)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _keep(self, beginning: bytes, needed_bytes: int) -> None:
        self._at = len(self._data)
        self._partial[:] = beginning
        self._needed_bytes = needed_bytes

    def _fail(self, text: str | None, detail: str) -> Failure:
        self._read = self._read_nothing
        self._at = len(self._data)
        return Failure(text, detail)


_NO_PUBLISH: tuple[bytes, bytes, int, int, bool] = (b"", b"", 0, 0, False)

_ARGUMENTS: dict[bytes, Callable[[ClientParser, bytes], Event | None]] = {
    b"CONNECT": ClientParser._connect,
    b"INFO": ClientParser._info,
    b"-ERR": ClientParser._error,
    b"PUB": ClientParser._pub,
    b"HPUB": ClientParser._hpub,
    b"SUB": ClientParser._sub,
    b"UNSUB": ClientParser._unsub,
}


def _words(argument: bytes) -> tuple[list[bytes], bool]:
    """The arguments of a publish, and whether a control character stands among them."""
    if _CONTROL.search(argument) is None:
        return argument.split(), False
    return [word for word in _BLANKS.split(argument) if word], True


def _size(word: bytes) -> int:
    """A number of at most nine digits, -1 for anything else."""
    return int(word) if word.isdigit() and len(word) <= _SIZE_DIGITS_MAX else -1


class ConnectOptions(msgspec.Struct, frozen=True):
    """What a client asks for in CONNECT. The defaults hold until it has sent one, as with telnet."""

    verbose: bool = True
    pedantic: bool = True
    echo: bool = True
    headers: bool = False
    no_responders: bool = False
    protocol: int = 0
    user: str = ""
    password: str = msgspec.field(default="", name="pass")
    token: str = msgspec.field(default="", name="auth_token")
    nkey: str = ""
    signature: str = msgspec.field(default="", name="sig")
    jwt: str = ""
    tls_required: bool = False
    name: str = ""
    lang: str = ""
    version: str = ""
    account: str = ""
    new_account: bool = False


def read_connect(argument: bytes, before: ConnectOptions) -> ConnectOptions:
    """The options of a CONNECT on top of those of an earlier one. Names in any case, null is 'not given'.

    FrameError when it is not a JSON object or a value has the wrong type: the connection is closed without a word.
    """
    try:
        given: Any = msgspec.json.decode(argument.decode("utf-8", "replace"))
        if given is None:
            return before
        if not isinstance(given, dict):
            raise FrameError("CONNECT without a JSON object")
        merged = msgspec.to_builtins(before)
        merged.update((name.lower(), value) for name, value in given.items() if value is not None)
        return msgspec.convert(merged, ConnectOptions)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
        raise FrameError(f"CONNECT with bad JSON: {error}") from error


# -- what a server sends ----------------------------------------------------------------------------------------------


def info_line(fields: dict[str, Any]) -> bytes:
    """INFO with `fields`, in their order."""
    return b"INFO " + msgspec.json.encode(fields) + b" \r\n"


def error_line(text: str) -> bytes:
    """-ERR with one of the texts above, or a permissions violation."""
    return b"-ERR '" + subjects.encode(text) + b"'\r\n"


def publish_violation(subject: str) -> str:
    return f"Permissions Violation for Publish to {quoted(subject)}"


def subscription_violation(subject: str, queue: str) -> str:
    using = f" using queue {quoted(queue)}" if queue else ""
    return f"Permissions Violation for Subscription to {quoted(subject)}{using}"


def too_many_tokens(subject: str) -> str:
    return f"Permissions Violation for Subscription to {quoted(subject)}, too many tokens"


def message_tail(reply: bytes, payload: bytes) -> bytes:
    """What follows `MSG <subject> <sid>`, the same for every receiver of a message."""
    if reply:
        return b" %b %d\r\n%b\r\n" % (reply, len(payload), payload)
    return b" %d\r\n%b\r\n" % (len(payload), payload)


def header_message_tail(reply: bytes, header_block: bytes, payload: bytes) -> bytes:
    """What follows `HMSG <subject> <sid>`, the same for every receiver of a message."""
    header_bytes = len(header_block)
    size_bytes = header_bytes + len(payload)
    if reply:
        return b" %b %d %d\r\n%b%b\r\n" % (reply, header_bytes, size_bytes, header_block, payload)
    return b" %d %d\r\n%b%b\r\n" % (header_bytes, size_bytes, header_block, payload)


_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}


def quoted(text: str) -> str:
    """`text` as Go's %q writes it, which clients see in permission violations."""
    return '"' + "".join(map(_quoted_character, text)) + '"'


def _quoted_character(character: str) -> str:
    code = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, see `subjects.decode`
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
