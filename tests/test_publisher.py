"""`mesh.publisher`: every event once and in order, whatever happens to connections, answers and outboxes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.fakelog import FakeLog, FakeStream, fake_log
from support.natsserver import NatsServer, nats_server
from support.processes import settle, until

from mesh import publisher as module
from mesh.connection import ConnectError, Connection, connect
from mesh.publisher import PubAck, Publisher, PublishError
from mesh.settings import ClientSettings
from protocol import publish
from protocol.publish import Refusal


class Rig:
    def __init__(self, publisher: Publisher, log: FakeLog, server: NatsServer, acks: list[PubAck]) -> None:
        self.publisher, self.log, self.server, self.acks = publisher, log, server, acks

    @property
    def kept(self) -> list[bytes]:
        (stream,) = self.log.streams.values()
        return [record.payload for record in stream.logs[0]]

    async def send(self, first: int, end: int) -> None:
        for number in range(first, end):
            await self.publisher.publish("orders.new", b"%d" % number)


@asynccontextmanager
async def rig(answer_ms: int = 5_000, give_up_ms: int = 10_000) -> AsyncIterator[Rig]:
    acks: list[PubAck] = []
    async with nats_server() as server, fake_log(server.url, FakeStream("orders", "orders.>")) as log:
        settings = ClientSettings(server=server.url)
        publisher = Publisher(
            lambda: connect(settings, reconnects=False), acks.append, answer_ms=answer_ms, give_up_ms=give_up_ms
        )
        await publisher.open()
        yield Rig(publisher, log, server, acks)
        await publisher.close()
        await log.stop()


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def test_events_are_acknowledged_in_the_order_of_the_log() -> None:
    async with rig() as it:
        await it.send(0, 2_000)
        await it.publisher.drain()
        assert it.kept == numbers(2_000)
        assert [(ack.number, ack.offset) for ack in it.acks] == [(n, n) for n in range(2_000)]
        assert it.acks[0] == PubAck(0, "orders", "local", 0, 0, 1, False)
        assert it.publisher.out_of_order == 0


async def test_the_window_bounds_what_is_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUBLISH_WINDOW_EVENTS", 10)
    async with rig() as it:
        it.log.silent_acks = 1_000
        sending = asyncio.create_task(it.send(0, 100))
        await until(lambda: len(it.kept) >= 10, "the window is full")
        await asyncio.sleep(0.1)
        assert it.kept == numbers(10)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_lost_answers_are_asked_for_again() -> None:
    async with rig(answer_ms=2_000) as it:
        it.log.silent_acks = 7
        await it.send(0, 50)
        await it.publisher.drain()
        assert it.kept == numbers(50)
        assert [ack.number for ack in it.acks if ack.duplicate] == list(range(7))


async def test_lost_events_are_sent_again_before_the_later_ones() -> None:
    async with rig(answer_ms=2_000) as it:
        it.log.lost = 20  # the whole window, as when a gateway dies
        await it.send(0, 20)
        await it.publisher.drain()
        assert it.kept == numbers(20)


async def test_an_event_that_stands_too_late_is_counted() -> None:
    async with rig(answer_ms=2_000) as it:
        it.log.lost = 1  # no gateway loses one from the middle; the publisher would say so
        await it.send(0, 10)
        await it.publisher.drain()
        assert it.kept == [*numbers(10)[1:], b"0"]
        assert it.publisher.out_of_order == 1


async def test_a_server_that_dies_under_way() -> None:
    async with rig() as it:
        dial = it.publisher._dial

        async def behind_the_log() -> Connection:  # else some events meet nobody, and later ones the log
            await it.log.is_back()
            return await dial()

        it.publisher._dial = behind_the_log
        for first in range(0, 3_000, 1_000):
            await it.send(first, first + 1_000)
            await it.server.stop()
            await it.server.start()
        await it.publisher.drain()
        assert it.kept == numbers(3_000)
        assert sorted(ack.number for ack in it.acks) == list(range(3_000))


async def test_a_server_that_stays_away_is_given_up() -> None:
    async with rig(answer_ms=500, give_up_ms=3_000) as it:
        await it.send(0, 3)
        await it.publisher.drain()
        await it.server.stop()
        with pytest.raises(PublishError, match="connection refused") as caught:
            await it.send(3, 2_000)
        assert (caught.value.number, caught.value.in_doubt) == (3, True)
        await it.server.start()


async def test_silence_is_given_up() -> None:
    async with rig(answer_ms=100, give_up_ms=300) as it:
        it.log.lost = 1_000
        await it.send(0, 3)
        with pytest.raises(PublishError, match="no acknowledgement came") as caught:
            await it.publisher.drain()
        assert (caught.value.number, caught.value.in_doubt) == (0, True)


async def test_a_full_outbox_is_waited_for_if_the_order_can_be_kept() -> None:
    async with rig() as it:
        refusals = 30

        def refuse(subject: str, payload: bytes) -> Refusal | None:
            nonlocal refusals
            refusals -= payload not in numbers(5)
            return publish.OUTBOX_FULL if refusals >= 0 and payload not in numbers(5) else None

        it.log.refuse = refuse
        await it.send(0, 15)
        await it.publisher.drain()
        assert it.kept == numbers(15)


async def test_one_refusal_among_accepted_events_stops() -> None:
    async with rig() as it:
        it.log.refuse = lambda subject, payload: publish.OUTBOX_FULL if payload == b"3" else None
        await it.send(0, 10)
        with pytest.raises(PublishError, match=r"refused: too many requests \(429, 10167\)") as caught:
            await it.publisher.drain()
        assert (caught.value.number, caught.value.in_doubt) == (3, False)
        assert len(it.kept) == 3 + caught.value.later


async def test_what_can_never_be_kept_is_refused_at_once() -> None:
    async with rig() as it:
        it.log.refuse = lambda subject, payload: publish.WRONG_STREAM
        await it.send(0, 1)
        with pytest.raises(PublishError, match="expected stream does not match"):
            await it.publisher.drain()


async def test_a_subject_that_nobody_keeps() -> None:
    async with rig() as it:
        await it.publisher.publish("other", b"x")
        with pytest.raises(PublishError, match="no stream keeps this subject and nobody subscribes to it"):
            await it.publisher.drain()


async def test_an_answer_of_a_service_is_no_acknowledgement() -> None:
    async with rig() as it:
        service = await connect(ClientSettings(server=it.server.url))

        async def answer(message: object) -> None:
            for reply in (b"hello", b"[1]", b'{"status": "done"}'):
                await message.respond(reply)  # type: ignore[attr-defined]

        await service.subscribe("orders.>", cb=answer)
        await settle(service)
        await it.send(0, 5)
        await it.publisher.drain()
        assert [ack.offset for ack in it.acks] == list(range(5))
        await service.close()


async def test_an_event_that_is_too_large_leaves_the_others() -> None:
    async with rig() as it:
        await it.send(0, 3)
        with pytest.raises(PublishError, match="2000000 bytes are more than the server takes") as caught:
            await it.publisher.publish("orders.new", bytes(2_000_000))
        assert (caught.value.number, caught.value.in_doubt) == (3, False)
        assert it.kept == numbers(3)


async def test_an_event_that_is_too_large_with_its_headers_is_refused_before_it_is_sent() -> None:
    async with rig() as it:
        await it.send(0, 1)
        with pytest.raises(PublishError, match=r"1048576 bytes and \d+ of headers are more than the server takes"):
            await it.publisher.publish("orders.new", bytes(1_048_576))
        await it.send(1, 2)
        await it.publisher.drain()
        assert it.kept == numbers(2)


async def test_own_ids_and_several_values_of_a_header() -> None:
    async with rig() as it:
        for _ in range(2):
            await it.publisher.publish("orders.new", b"x", [("Nats-Msg-Id", "mine"), ("Tag", "a"), ("Tag", "b")])
        await it.publisher.drain()
        assert [ack.duplicate for ack in it.acks] == [False, True]
        (record,) = it.log.streams["orders"].logs[0]
        assert record.header_block == b"NATS/1.0\r\nNats-Msg-Id: mine\r\nTag: a\r\nTag: b\r\n\r\n"


async def test_nobody_to_connect_to() -> None:
    settings = ClientSettings(server="127.0.0.1:1")
    publisher = Publisher(lambda: connect(settings, reconnects=False), lambda ack: None)
    with pytest.raises(ConnectError):
        await publisher.open()
    await publisher.close()
