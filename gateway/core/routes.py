"""Which stream and partition an event belongs to, by the zone's committed streams.

Named streams never overlap, so at most one of them takes a subject; what none takes goes to the catch-all, if there is
one. The answer for a subject is kept until the streams change, in a bounded cache; only a key that stands in a header
has to be looked up per event.
"""

from collections.abc import Iterable

from protocol import subjects
from protocol.limits import ROUTE_PLANS_MAX
from protocol.partitions import partition_of
from protocol.streams import StreamState


class StreamRoutes:
    """Subject → stream; subject and headers → key and partition."""

    def __init__(self, streams: Iterable[StreamState] = ()) -> None:
        active = [stream for stream in streams if not stream.retired]
        self._named = [stream for stream in active if not stream.is_catch_all]
        self._catch_all = next((stream for stream in active if stream.is_catch_all), None)
        self.by_name = {stream.name: stream for stream in active}
        self._plans: dict[str, tuple[StreamState, bytes, int] | None] = {}

    def plan(self, subject: str, header_block: bytes) -> tuple[StreamState, bytes, int] | None:
        """(stream, key, partition) of an event, or None where no stream takes it."""
        try:
            plan = self._plans[subject]
        except KeyError:
            plan = self._make(subject)
        if plan is None or not header_block or not plan[0].key.startswith("header:"):
            return plan
        return plan[0], *place(plan[0], subject, header_block)

    def _make(self, subject: str) -> tuple[StreamState, bytes, int] | None:
        if len(self._plans) >= ROUTE_PLANS_MAX:
            self._plans.clear()
        stream = next((stream for stream in self._named if stream.takes(subject)), self._catch_all)
        plan = None if stream is None else (stream, *place(stream, subject, b""))
        self._plans[subject] = plan
        return plan


def place(stream: StreamState, subject: str, header_block: bytes) -> tuple[bytes, int]:
    """(key, partition) of an event in `stream`."""
    kind, _, name = stream.key.partition(":")
    key = _header(header_block, name) if kind == "header" else b""
    key = key or _subject_key(stream.key, subject)
    return key, partition_of(key, stream.partitions)


def _subject_key(rule: str, subject: str) -> bytes:
    """The key by `subject` or `token:N` (from 1); a missing token, like a missing header, falls back to the subject."""
    kind, _, which = rule.partition(":")
    tokens = subject.split(".")
    if kind == "token" and int(which) <= len(tokens):
        return subjects.encode(tokens[int(which) - 1])
    return subjects.encode(subject)


def _header(block: bytes, name: str) -> bytes:
    prefix = name.encode() + b":"
    for line in block.split(b"\r\n")[1:]:
        if line.startswith(prefix):
            return line[len(prefix) :].strip(b" \t")
    return b""
