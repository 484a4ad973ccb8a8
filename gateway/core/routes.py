"""Which stream and partition an event belongs to, by the zone's committed streams.

A stream takes events of one account. Its named streams never overlap, so at most one of them takes a subject; what none
takes goes to the account's catch-all, if there is one. The answer for a subject is kept until the streams change, in a
cache that is bounded in entries and characters; only a key that stands in a header has to be looked up per event.
"""

from collections.abc import Iterable
from typing import TypeAlias

from protocol import subjects
from protocol.limits import STREAM_PLAN_CHARACTERS_MAX, STREAM_PLANS_MAX
from protocol.partitions import partition_of
from protocol.streams import StreamState

Plan: TypeAlias = tuple[StreamState, bytes, int]
"""(stream, key, partition)"""


class StreamRoutes:
    """Account and subject → stream; subject and headers → key and partition.

    `by_name` has the streams in force, `every` has retired ones too. `groups` Raft groups of the zone have partitions.
    """

    def __init__(self, streams: Iterable[StreamState] = ()) -> None:
        every = tuple(streams)
        active = [stream for stream in every if not stream.retired]
        self._named = [stream for stream in active if not stream.is_catch_all]
        self._catch_alls = {stream.account: stream for stream in active if stream.is_catch_all}
        self.by_name = {stream.name: stream for stream in active}
        self.every = {stream.name: stream for stream in every}
        self.groups = max((stream.groups for stream in every), default=1)
        self._plans: dict[tuple[str, str], Plan | None] = {}
        self._characters = 0

    def plan(self, account: str, subject: str, header_block: bytes) -> Plan | None:
        """Where an event goes, or None where no stream takes it."""
        try:
            plan = self._plans[account, subject]
        except KeyError:
            plan = self._make(account, subject)
        if plan is None or not header_block or not plan[0].key.startswith("header:"):
            return plan
        return plan[0], *place(plan[0], subject, header_block)

    def _make(self, account: str, subject: str) -> Plan | None:
        stream = next((stream for stream in self._named if stream.takes(account, subject)), None)
        stream = stream or self._catch_alls.get(account)
        plan = None if stream is None else (stream, *place(stream, subject, b""))
        if len(subject) <= STREAM_PLAN_CHARACTERS_MAX:
            self._keep((account, subject), plan)
        return plan

    def _keep(self, key: tuple[str, str], plan: Plan | None) -> None:
        characters = len(key[1])
        if len(self._plans) >= STREAM_PLANS_MAX or self._characters + characters > STREAM_PLAN_CHARACTERS_MAX:
            self._plans.clear()
            self._characters = 0
        self._plans[key] = plan
        self._characters += characters


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
