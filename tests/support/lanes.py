"""A plane with an outbox behind it and a sink that takes everything: for events that go by lanes, and their answers."""

import json

from gateway.core.lanes import Lane
from gateway.core.outbox import Outbox
from gateway.core.session import Session
from protocol import engine as record_engine
from protocol import envelope, link, publish
from protocol.link import Appended, Opened, Refused
from protocol.records import Event
from protocol.streams import StreamState
from support.gateway import Hooks, make_plane
from support.streams import state

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'
BLOCK = b"NATS/1.0\r\nA: b\r\n\r\n"
ID = b"NATS/1.0\r\nNats-Msg-Id: %d\r\n\r\n"
ORDERS = state("orders", outbox_bytes=20_000_000)
EVENTS = state("events", subjects=(">",), reply="header", outbox_bytes=20_000_000)


class Keeping(Hooks):
    """Hooks with an outbox, and with a sink that takes everything; what goes the long way is counted."""

    def __init__(self, engine, *streams: StreamState) -> None:
        super().__init__()
        self.long_way = self.kept_reads = 0
        self.answered: list[str] = []  # one by one
        self.now_ms = self.clock_ms = 1_000
        self.outbox = Outbox("eu", self.answer, answer_many=self.answer_many, engine=engine)
        self.outbox.set_streams(streams or (ORDERS, EVENTS))
        self.outbox.link_up(Opened(1, 1, b"n", ()))
        self.log: list[Event] = []  # of all streams, as the sink took them
        self.plane = make_plane(self, engine)

    def keeps(self, account: str, subject: str) -> bool:
        return self.outbox.routes.plan(account, subject, b"") is not None

    def capture(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        self.long_way += 1
        event = session.account.name, subject, reply, header_block, payload
        answers, has_room = self.outbox.publish(*event, self.now_ms, self.clock_ms)
        if not has_room:
            self.plane.pause(session)
        return answers

    def answer(self, account: str, reply: str, answer: bytes) -> None:
        self.answered.append(reply)
        self.plane.publish(reply, "", b"", answer, account)

    def answer_many(self, *many) -> None:
        self.plane.answer(*many)

    def lane(self, account: str, subject: str) -> tuple[Lane, bytes] | None:
        return self.outbox.lane(account, subject)

    def wall_ms(self) -> int:
        return self.clock_ms

    def kept(self) -> None:
        self.kept_reads += 1

    def carry(self) -> None:
        """Everything into the log, and the answers back."""
        self.now_ms += 1
        while not self.outbox.is_empty:
            for head, batch in self.batches():
                self.outbox.appended(self.take(head, batch))

    def batches(self) -> list[tuple[envelope.Envelope, memoryview]]:
        self.outbox.flush(self.now_ms)
        data = b"".join(self.outbox.take_frames())
        frames = list(link.FrameReader().feed(data))
        return [(head, batch) for frame in frames for head, batch, _ in envelope.unpack(frame.tail)]

    def take(self, head: envelope.Envelope, batch: memoryview) -> Appended:
        base, records = len(self.log), record_engine.BEST.read_records(batch)
        self.log += [Event(r.subject, r.key, r.timestamp_ms, r.header_block, r.payload) for r in records]
        return Appended(head.producer_id, head.epoch, *_names(head), base)

    def refuse(self, head: envelope.Envelope, reason: str) -> None:
        self.outbox.refused(Refused(head.producer_id, head.epoch, *_names(head), reason), self.now_ms)


def _names(head: envelope.Envelope) -> tuple[str, bytes, int, int]:
    return head.stream, head.incarnation, head.partition, head.first_sequence


def answers(got: bytes) -> dict[bytes, dict]:
    """By the last token of the inbox; whatever else came is left out."""
    lines = got.split(b"\r\n")
    heads = [line.split(b" ")[1].rpartition(b".")[2] for line in lines if line.startswith(b"MSG in.")]
    return dict(zip(heads, [json.loads(line) for line in lines if line.startswith(b"{")], strict=True))


def ack(offset: int, stream: str = "orders") -> dict:
    return json.loads(publish.pub_ack(stream, "eu", 0, 1, offset))


def sent(subject: bytes, payload: bytes, block: bytes = b"", reply: bytes = b"") -> bytes:
    words = subject + (b" " + reply if reply else b"")
    if block:
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (words, len(block), len(block) + len(payload), block, payload)
    return b"PUB %b %d\r\n%b\r\n" % (words, len(payload), payload)
