"""Logs every operation of the client protocol, in and out, in the words of nats-server (`-V`, `trace: true`).

    127.0.0.1:4711 - cid:5 - "v1:py:app" - "$G/user:ada" - <<- [PUB foo 5]
    127.0.0.1:4711 - cid:5 - "v1:py:app" - "$G/user:ada" - <<- MSG_PAYLOAD: ["hello"]

`traced` makes an engine of the reference classes that say what passes them: the parser what comes in, the session the
messages that go out, the forwarder the other lines that go out and the subscriptions that end. Nothing is traced in
the compiled forwarder, which so pays nothing for it; who traces runs on the reference.

As in nats-server neither INFO nor its own 503 shows, a payload without a byte has no line, and passwords, tokens,
nkeys and signatures of CONNECT are replaced. Not as there: control characters and bytes that are not UTF-8 are escaped
outside of payloads too, so that a client cannot write lines of its own into the log; of a message whose header a client
does not understand no header is shown (nats-server shows as much of the payload).

Source: nats-server `server/client.go` (traceMsgInternal, traceOp, removeSecretsFromTrace, processConnect).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from gateway.core.engine import REFERENCE, Engine
from gateway.core.forwarding import Forwarder
from gateway.core.session import Account, Session, Subscription
from protocol import nats, subjects

IN: Final = "<<-"
OUT: Final = "->>"
BOTH: Final = "<->"

# The words of Go's `removeSecretsFromTrace`, without what stands before a name and does not change what is found.
_BLANK: Final = rb"[\t\n\f\r ]*"
_VALUE: Final = rb'"?' + _BLANK + rb"[:=]" + _BLANK + rb'"?([^",\r\n}]*)'
_SECRETS_BY_PREFIX: Final = re.compile(rb"(?:auth_token|pass)[^\t\n\f\r ]*?" + _VALUE)
_SECRETS_BY_NAME: Final = re.compile(rb"(?<![A-Za-z0-9_])(?:proxy_sig|nkey|sig)" + _VALUE)
_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), 127)}  # a tab stays
_PREAMBLE_END_BYTES: Final = 4  # CR LF CR LF behind a header block, which is not shown


@dataclass(frozen=True)
class Trace:
    """`say` gets one line without its end. `payload_bytes_max` 0: all of a payload; `headers_only`: nothing else."""

    say: Callable[[str], object]
    payload_bytes_max: int = 0
    headers_only: bool = False

    def operation(self, label: str, way: str, *words: bytes) -> None:
        """`words` as they stand on the wire."""
        self.say(f"{label} - {way} [{' '.join(map(_shown, words))}]")

    def payload(self, label: str, way: str, header_block: bytes, payload: bytes) -> None:
        """What a message carries."""
        content = header_block + payload
        size_bytes = len(content)
        if self.headers_only:
            content, size_bytes = header_block, len(header_block) - _PREAMBLE_END_BYTES
        if size_bytes <= 0:
            return
        limit = self.payload_bytes_max
        is_cut = 0 < limit < size_bytes
        quoted = nats.quoted(subjects.decode(content[: limit if is_cut else size_bytes]))
        shown = quoted[:-1] + '..."' if is_cut else quoted
        self.say(f"{label} - {way} MSG_PAYLOAD: [{shown}]")


def without_secrets(argument: bytes) -> bytes:
    """The argument of a CONNECT, with `[REDACTED]` for what proves who somebody is."""
    for pattern in (_SECRETS_BY_PREFIX, _SECRETS_BY_NAME):
        argument = pattern.sub(_redacted, argument)
    return argument


def _redacted(match: re.Match[bytes]) -> bytes:
    return match[0][: match.start(1) - match.start()] + b"[REDACTED]"


def _shown(word: bytes) -> str:
    return word.decode("utf-8", "backslashreplace").translate(_ESCAPED)


class TracedParser(nats.ClientParser):
    """What a client sends. `session` is set by the session that it belongs to."""

    session: "TracedSession"

    def next_event(self) -> nats.Event | None:
        event = super().next_event()
        if isinstance(event, nats.Ping | nats.Pong):
            self.session.tell(IN, b"PING" if isinstance(event, nats.Ping) else b"PONG")
        return event

    def _argument(self, verb: bytes, argument: bytes) -> nats.Event | None:
        if verb not in (b"INFO", b"-ERR"):
            self.session.tell(IN, verb, without_secrets(argument) if verb == b"CONNECT" else argument)
        return super()._argument(verb, argument)

    def _published(self, subject: bytes, reply: bytes, header_block: bytes, payload: bytes) -> nats.Event:
        self.session.trace.payload(self.session.label, IN, header_block, payload)
        return super()._published(subject, reply, header_block, payload)


class TracedSession(Session):
    """A client, with the name that its lines begin with: it is longer once the client has said who it is."""

    trace: ClassVar[Trace]

    def __init__(
        self, id: int, client_ip: str, client_port: int, parser: nats.ClientParser, account: Account, now_ms: int
    ) -> None:
        super().__init__(id, client_ip, client_port, parser, account, now_ms)
        if isinstance(parser, TracedParser):
            parser.session = self
        host = f"[{client_ip}]" if ":" in client_ip else client_ip
        self._label = f"{host}:{client_port} - cid:{id}"
        self._is_introduced = False

    @property
    def label(self) -> str:
        if self.connected and not self._is_introduced:
            self._is_introduced = True
            self._label += "".join(f" - {nats.quoted(part)}" for part in (self._program(), self._owner()) if part)
        return self._label

    def _program(self) -> str:
        options = self.options
        return ":".join(
            part for part in (options.version and f"v{options.version}", options.lang, options.name) if part
        )

    def _owner(self) -> str:
        options = self.options
        if options.nkey:
            return f"{self.account.name}/nkey:{options.nkey}"
        if options.user:
            return f"{self.account.name}/user:{options.user}"
        return f"{self.account.name}/token" if options.token and not options.jwt else ""

    def tell(self, way: str, *words: bytes) -> None:
        """One operation."""
        self.trace.operation(self.label, way, *words)

    def write(self, data: bytes) -> None:
        """Whole messages: what is not one goes through the forwarder's `write`."""
        super().write(data)
        if not self.peer:
            self._tell_messages(data)

    def answer(self, line: bytes) -> None:
        """A line that is no message, or the 503 of the gateway."""
        super().write(line)
        verb, _, text = line.removesuffix(nats.LINE_END).partition(b" ")
        if verb == b"-ERR":
            self.tell(OUT, verb, text.removeprefix(b"'").removesuffix(b"'"))
        elif verb in (b"+OK", b"PING", b"PONG"):
            self.tell(OUT, verb.removeprefix(b"+"))

    def _tell_messages(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            line_end = data.index(nats.LINE_END, at)
            line = data[at:line_end]
            words = line.split(b" ")
            header_bytes = int(words[-2]) if words[0] == b"HMSG" else 0
            start = line_end + len(nats.LINE_END)
            end = start + int(words[-1])
            self.tell(OUT, line)
            self.trace.payload(self.label, OUT, data[start : start + header_bytes], data[start + header_bytes : end])
            at = end + len(nats.LINE_END)


class TracedForwarder(Forwarder):
    """What the gateway says that is no message, and subscriptions that end."""

    def write(self, session: Session, line: bytes) -> None:
        if not isinstance(session, TracedSession) or session.peer:
            super().write(session, line)
            return
        session.answer(line)
        self.touch(session)

    def remove(self, subscription: Subscription) -> None:
        session = subscription.session
        if isinstance(session, TracedSession) and not session.peer:
            session.tell(BOTH, b"DELSUB", subscription.sid)
        super().remove(subscription)


def traced(trace: Trace) -> Engine:
    """An engine that tells `trace` all that passes it."""
    session = type("TracedSession", (TracedSession,), {"trace": trace})
    return REFERENCE._replace(name="traced", session=session, forwarder=TracedForwarder, parser=TracedParser)
