"""What a simulated mesh has promised, and whether it is true: publishes, their answers, and the committed log."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.gaps import read_gap
from protocol.partitions import partition_of
from protocol.records import CONTROL, Record, check_batch, place_batch, read_records
from protocol.streams import sequence_of
from sinkd.core.machine import Placement

TERM = 3


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(eq=False)
class Publish:
    """One publish of one client; `life` counts the gateways that have borne the same name."""

    number: int
    life: int
    connection: int
    subject: str
    reply: str
    header_block: bytes
    payload: bytes
    timestamp_ms: int
    message_id: bytes | None
    expected_offset: int | None
    is_plain: bool  # nothing in its headers can make the log refuse it
    is_given_up: bool = False
    is_kept: bool = False  # in a spool
    will_be_answered: bool = False
    had_room: bool = True
    answers: list[dict] = field(default_factory=list)

    @property
    def error(self) -> dict | None:
        return next((answer["error"] for answer in self.answers if "error" in answer), None)


class Stored(NamedTuple):
    """What stands at an offset: a record, or where `publish` is None, a gap; `time_ms` is its command's."""

    record: Record | None
    publish: Publish | None
    time_ms: int


class Audit:
    """Hears of everything, believes nothing."""

    def __init__(self, *, survives: bool) -> None:
        """With `survives` gateways have a spool."""
        self.survives = survives
        self.publishes: list[Publish] = []
        self.logs: dict[tuple[str, int], list[Stored]] = defaultdict(list)
        self.streams_changed = False
        self.gap_events = 0  # that gap records in the log count
        self.seen: dict[str, int] = Counter()  # how batches ended
        self._unkept: list[Publish] = []
        self._by_payload: dict[bytes, Publish] = {}
        self._by_reply: dict[str, Publish] = {}

    def published(self, publish: Publish) -> None:
        self.publishes.append(publish)
        self._unkept.append(publish)
        self._by_payload[publish.payload] = publish
        if publish.reply:
            self._by_reply[publish.reply] = publish

    def kept(self) -> None:
        """What was published until now is in the spool."""
        for publish in self._unkept:
            publish.is_kept = True
        self._unkept.clear()

    def killed(self) -> None:
        """The gateway is gone, and with it what was not in the spool."""
        self._unkept.clear()

    # -- the log ------------------------------------------------------------------------------------------------------

    def committed(self, placement: Placement, command: bytes, time_ms: int) -> None:
        """A batch was taken: its records follow the ones before, byte for byte what was published, each for once."""
        stream, log = placement.stream, self.logs[placement.stream.name, placement.partition]
        self._is(
            placement.base_offset == len(log), "base offset {}, the log ends at {}", placement.base_offset, len(log)
        )
        batch = command[placement.position : placement.position + placement.header.size_bytes]
        check_batch(batch)
        placed = place_batch(batch, placement.base_offset, TERM)
        if placement.header.attributes == CONTROL:
            self.gap_events += read_gap(placed)[1].events
            log.append(Stored(None, None, time_ms))
            return
        for record in read_records(placed):
            self._is(record.offset == len(log), "offset {}, the log ends at {}", record.offset, len(log))
            publish = self._by_payload[record.payload]
            stands = record.subject.decode(), record.header_block, record.timestamp_ms
            self._is(stands == (publish.subject, publish.header_block, publish.timestamp_ms), "altered: {}", record)
            self._is(partition_of(record.key, stream.partitions) == placement.partition, "wrong partition: {}", record)
            self._is(publish.error is None, "{} was refused, and now it is in the log", publish)
            self._is(publish.expected_offset in (None, record.offset), "{} is at {}", publish, record.offset)
            log.append(Stored(record, publish, time_ms))
        self._no_id_twice(log, placement.header.record_count, stream.dedup_window_ms)

    def _no_id_twice(self, log: list[Stored], fresh: int, window_ms: int) -> None:
        for position in range(len(log) - fresh, len(log)):
            new = log[position]
            message_id = _id(new)
            for old in log[:position] if message_id is not None else ():
                self._is(
                    _id(old) != message_id or old.time_ms + window_ms <= new.time_ms, "an id twice: {} {}", old, new
                )

    # -- answers ------------------------------------------------------------------------------------------------------

    def answered(self, account: str, reply: str, body: bytes) -> None:
        publish, answer = self._by_reply[reply], json.loads(body)
        self._is(not publish.answers, "a second answer {} to {}", answer, publish)
        publish.answers.append(answer)
        self._is("ack" not in answer or publish.is_kept or not self.survives, "{} is not kept", publish)
        if "error" in answer:
            stored = [one for log in self.logs.values() for one in log if one.publish is publish]
            self._is(not stored, "{} was refused, but it is in the log", publish)
        elif "ack" not in answer:
            self._acknowledged(publish, answer)

    def _acknowledged(self, publish: Publish, answer: dict) -> None:
        """Right now the log holds the event at the very offset that the PubAck names."""
        log = self.logs[answer["stream"], answer["partition"]]
        self._is(answer["offset"] < len(log), "{}: the log ends at {}: {}", answer, len(log), publish)
        stored = log[answer["offset"]]
        if answer.get("duplicate"):
            same = publish.message_id is not None and _id(stored) == publish.message_id
            self._is(same, "not a duplicate: {} of {}", publish, stored)
        else:
            self._is(stored.publish is publish, "{}: another event stands there: {}, not {}", answer, stored, publish)
        partitions = PARTITIONS[answer["stream"]]
        self._is(answer["seq"] == sequence_of(answer["offset"], answer["partition"], partitions), "seq: {}", answer)

    # -- at the end ---------------------------------------------------------------------------------------------------

    def settled(self, last_life: int) -> None:
        """The link has healed and the outbox is empty: what did the living gateway's clients get?

        With a spool also: is there what earlier gateways have kept without anybody to tell the outcome to?
        """
        places = defaultdict(list)
        for key, log in self.logs.items():
            for offset, stored in enumerate(log):
                if stored.publish is not None:
                    places[stored.publish.number].append((key, offset))
        for publish in self.publishes:
            found = places[publish.number]
            self._is(len(found) <= (not publish.is_given_up), "{} is in the log at {}", publish, found)
            if publish.life == last_life:
                # A repeated id waits for the first one's answer; without room to remember that, there is silence.
                may_be_silent = publish.message_id is not None and not publish.had_room
                asked = publish.will_be_answered
                self._is(
                    len(publish.answers) == asked or (may_be_silent and not publish.answers), "answers: {}", publish
                )
            # Who waited for the outcome may have been refused, and the gateway killed before it could say so.
            promised = any("ack" in answer for answer in publish.answers) or not publish.will_be_answered
            if publish.life == last_life or (self.survives and publish.is_kept and promised):
                self._is(found or not publish.is_plain or publish.error or publish.is_given_up, "lost: {}", publish)
        given_up = sum(publish.is_given_up for publish in self.publishes)
        if last_life == 1 and not self.streams_changed:
            self._is(self.gap_events == given_up, "{} given up, {} in gaps", given_up, self.gap_events)
        self._in_order()

    def _in_order(self) -> None:
        """What one connection published stands in its order; where streams went and came, at least per subject."""
        for key, log in self.logs.items():
            last: dict[tuple[int, int, str], int] = {}
            for publish in (stored.publish for stored in log if stored.publish is not None):
                whose = publish.life, publish.connection, publish.subject if self.streams_changed else ""
                self._is(last.get(whose, -1) < publish.number, "{}: {} stands behind a later one", key, publish)
                last[whose] = publish.number

    def _is(self, promise: object, broken: str, *about: object) -> None:
        """`broken` is filled in only where it is needed: words about kept promises took most of the time."""
        if not promise:
            raise Violation(broken.format(*about))


def _id(stored: Stored) -> bytes | None:
    return stored.publish.message_id if stored.publish is not None else None


PARTITIONS = {"orders": 1, "metrics": 3, "events": 1}
