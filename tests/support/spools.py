"""Outboxes with a spool, and what is held in them, for tests that kill their process."""

import json
from collections.abc import Iterable

from gateway.core.outbox import Outbox
from gateway.core.spool import Spool
from gateway.core.spool_format import FileReader, Head, Kind, Owner, pack_head
from gateway.core.spool_recovery import Recovery
from protocol.link import Answer, Appended, Opened, Reached
from protocol.streams import StreamState
from support.streams import state

OWNER = Owner("acme", "eu", "gw1", 0)
WALL_MS = 1_700_000_000_000
ORDERS, EVENTS = state("orders", ack="logged"), state("events", subjects=(">",), reply="header")

Held = dict[str, tuple[list[tuple[int, list[bytes]]], list[bytes]]]
"""By stream: batches on their way as (first sequence, payloads), then payloads that wait; a gap is b'gap N'."""


def held(outbox: Outbox) -> Held:
    def shown(entries: Iterable) -> list[bytes]:
        return [b"gap %d" % one.gap.events if one.gap is not None else one.event.payload for one in entries]

    return {
        partition.stream.name: (
            [(batch.first_sequence, shown(batch.entries)) for batch in partition.in_flight],
            shown(partition.pending),
        )
        for partition in outbox._partitions.values()
        if partition.pending or partition.in_flight
    }


class Process:
    """A gateway's outbox with its spool, in files that are bytes."""

    def __init__(
        self, files: dict[int, bytes] | None = None, streams: Iterable[StreamState] = (ORDERS, EVENTS)
    ) -> None:
        self.recovery = Recovery(OWNER, 10_000, WALL_MS)
        old = files or {}
        for number, data in old.items():
            self.recovery.read(f"file {number}", data, is_last=number == max(old))
        self.answers: dict[str, dict] = {}
        self.held_answers: list[str] = []
        self.spool = Spool()
        self.spool.begin(max(old, default=0) + 1)
        self.outbox = Outbox("eu", self.answer, spool=self.spool, answer_when_kept=self.hold)
        self.outbox.set_streams(streams)
        self.now_ms, self.epoch = 10_000, 0
        self.outbox.link_down(self.now_ms)
        for each in self.recovery.partitions():
            self.spool.restore(*each)
            self.outbox.restore(each.partition)
        self.files = {self.spool.file: pack_head(Head(OWNER, is_whole=True))}
        self.write()

    def answer(self, account: str, reply: str, body: bytes) -> None:
        self.answers[reply] = json.loads(body)

    def hold(self, account: str, reply: str, body: bytes) -> None:
        self.held_answers.append(reply)

    def publish(self, payload: bytes, subject: str = "orders.new", reply: str = "", **headers: str) -> None:
        block = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        header_block = f"NATS/1.0\r\n{block}\r\n".encode() if headers else b""
        self.outbox.publish("$G", subject, reply, header_block, payload, self.now_ms, WALL_MS)

    def link_up(self, *reached: Reached) -> None:
        self.epoch += 1
        self.outbox.link_up(Opened(1, self.epoch, b"n%d" % self.epoch, reached))

    def send(self) -> None:
        """Batches that may leave do so."""
        self.now_ms += 1
        self.outbox.flush(self.now_ms)
        self.outbox.take_frames()

    def appended(self, first_sequence: int, base_offset: int = 0, stream: str = "orders") -> None:
        self.outbox.appended(Appended(1, self.epoch, stream, stream.encode(), 0, first_sequence, base_offset))

    def write(self) -> None:
        self.files[self.spool.file] += self.spool.finish()
        self.spool.written()

    def next_file(self) -> None:
        self.write()
        self.spool.begin(self.spool.file + 1)
        self.files[self.spool.file] = pack_head(Head(OWNER, is_whole=False))

    def reached(self, last_sequence: int, batches: int = 0, stream: str = "orders") -> Reached:
        """What the sink says that has got the first `batches` of those on their way."""
        flying = list(self.outbox._partitions[stream.encode(), 0].in_flight)[:batches]
        answers = tuple(Answer(batch.first_sequence, batch.crc, 100) for batch in flying)
        return Reached(stream, stream.encode(), 0, last_sequence, answers)


def position_of(data: bytes, kind: Kind, number: int) -> int:
    """Where the record of this kind and number begins in a file that is whole."""
    reader = FileReader(data)
    reader.head()
    position = reader.position
    for record in reader.records():
        if (record.kind, record.number) == (kind, number):
            return position
        position = reader.position
    raise LookupError((kind, number))
