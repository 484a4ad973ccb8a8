"""The tour of nats-py in its classic API (`nats.aio.client.Client`, `nats.connect`). The steps: see ../README.md."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import MaxPayloadError, NoRespondersError
from nats.js.errors import BadRequestError

PATIENCE_S = 10.0
MAX_PAYLOAD_BYTES = 1024 * 1024

Step = Callable[["Tour"], Awaitable[None]]


def expect(actual: object, wanted: object, what: str) -> None:
    if actual != wanted:
        raise AssertionError(f"{what}: wanted {wanted!r}, got {actual!r}")


async def take(subscription: Subscription, count: int) -> list[Msg]:
    return [await subscription.next_msg(timeout=PATIENCE_S) for _ in range(count)]


async def settle(nc: Client) -> None:
    """Waits until the server, and where it is several workers each of them, knows all that `nc` has sent.

    The PING of this client's flush overtakes what waits to be sent, so an echo has to come first; but an echo says only
    that one worker knows of a subscription, and the PONG that all do.
    """
    inbox = nc.new_inbox()
    echo = await nc.subscribe(inbox)
    await nc.publish(inbox, b"settled")
    await take(echo, 1)
    await nc.flush()
    await echo.unsubscribe()


async def refused(publish: Awaitable[object]) -> int | None:
    """The JetStream error code that a publish was refused with."""
    try:
        ack = await publish
    except BadRequestError as error:
        return error.err_code
    raise AssertionError(f"wanted a refusal, got {ack!r}")


class Tour:
    """A connection under test, a second one that stands for everybody else, and what the log steps remember."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.nc = Client()
        self.other = Client()
        self.tag = os.urandom(6).hex()
        self.first_offset = 0
        self.published: list[bytes] = []

    async def open(self) -> None:
        await self.nc.connect(self.url, allow_reconnect=False)
        self.other = await nats.connect(self.url, allow_reconnect=False)

    async def close(self) -> None:
        await self.nc.close()
        await self.other.close()

    async def connect(self) -> None:
        expect(self.nc.is_connected, True, "connected")
        expect(self.nc.max_payload, MAX_PAYLOAD_BYTES, "max_payload")

    async def publish_subscribe(self) -> None:
        subscription = await self.nc.subscribe("tour.hello")
        await settle(self.nc)
        payloads = [b"one", b"", bytes(range(256))]
        for payload in payloads:
            await self.other.publish("tour.hello", payload)
        expect([message.data for message in await take(subscription, 3)], payloads, "payloads")
        await subscription.unsubscribe()

    async def matched(self, pattern: str, published: list[str], wanted: list[str]) -> None:
        subscription = await self.nc.subscribe(pattern)
        await settle(self.nc)
        for subject in published:
            await self.other.publish(subject, subject.encode())
        messages = await take(subscription, len(wanted))
        expect([message.subject for message in messages], wanted, f"subjects of {pattern}")
        expect([message.data.decode() for message in messages], wanted, f"payloads of {pattern}")
        await subscription.unsubscribe()

    async def wildcard_token(self) -> None:
        wanted = ["tour.star.a.end", "tour.star.last.end"]
        strangers = ["tour.star.a.b.end", "tour.star.a.other", "tour.star.end"]
        await self.matched("tour.star.*.end", [wanted[0], *strangers, wanted[1]], wanted)

    async def wildcard_tail(self) -> None:
        wanted = ["tour.tail.a", "tour.tail.a.b.c", "tour.tail.last"]
        await self.matched("tour.tail.>", ["tour.tail", wanted[0], "tour.other.a", *wanted[1:]], wanted)

    async def queue_group(self) -> None:
        members = [await nats.connect(self.url) for _ in range(3)]
        subscriptions = [await member.subscribe("tour.work", queue="workers") for member in members]
        for member in members:
            await settle(member)
        for number in range(100):
            await self.other.publish("tour.work", str(number).encode())
        await settle(self.other)
        for member in members:
            await settle(member)
        shares = [await take(subscription, subscription.pending_msgs) for subscription in subscriptions]
        expect(sorted(int(message.data) for share in shares for message in share), list(range(100)), "work done")
        expect(all(shares), True, "every member got some")
        for member in members:
            await member.close()

    async def request_reply(self) -> None:
        async def answer(message: Msg) -> None:
            await message.respond(b"pong:" + message.data)

        service = await self.other.subscribe("tour.service", cb=answer)
        await settle(self.other)
        for question in (b"a", b"b", b"c"):
            reply = await self.nc.request("tour.service", question, timeout=PATIENCE_S)
            expect(reply.data, b"pong:" + question, "answer")
        await service.unsubscribe()

    async def no_responders(self) -> None:
        try:
            reply = await self.nc.request("tour.nobody", b"?", timeout=PATIENCE_S)
        except NoRespondersError:
            return
        raise AssertionError(f"wanted no responders, got {reply.data!r}")

    async def headers(self) -> None:
        subscription = await self.nc.subscribe("tour.headers")
        await settle(self.nc)
        headers = {"Trace-Id": "Abc: 1, 2", "trace-id": "lower"}
        await self.other.publish("tour.headers", b"with", headers=headers)
        (message,) = await take(subscription, 1)
        expect((message.data, message.headers), (b"with", headers), "message")
        await subscription.unsubscribe()

    async def echo_off(self) -> None:
        silent = await nats.connect(self.url, no_echo=True)
        subscription = await silent.subscribe("tour.echo")
        await silent.publish("tour.echo", b"own")
        # What the other side has received shows that the server is done with all that went before it.
        mark = await self.other.subscribe("tour.mark")
        await settle(self.other)
        await silent.publish("tour.mark", b"here")
        await take(mark, 1)
        await mark.unsubscribe()
        await self.other.publish("tour.echo", b"foreign")
        (message,) = await take(subscription, 1)
        expect(message.data, b"foreign", "first message")
        await silent.close()

    async def unsubscribe_max(self) -> None:
        seen: list[bytes] = []

        async def note(message: Msg) -> None:
            seen.append(message.data)

        subscription = await self.nc.subscribe("tour.max", cb=note)
        await subscription.unsubscribe(limit=3)
        after = await self.nc.subscribe("tour.max")
        await settle(self.nc)
        for number in range(5):
            await self.other.publish("tour.max", str(number).encode())
        await take(after, 5)
        expect(seen, [b"0", b"1", b"2"], "messages before the limit")
        await after.unsubscribe()

    async def flush_rtt(self) -> None:
        await self.nc.flush(timeout=10)
        expect(0 < await self.nc.rtt() < 5, True, "round trip below five seconds")

    async def drain(self) -> None:
        seen: list[bytes] = []

        async def note(message: Msg) -> None:
            seen.append(message.data)

        leaving = await nats.connect(self.url)
        await leaving.subscribe("tour.drain", cb=note)
        await settle(leaving)
        for number in range(500):
            await self.other.publish("tour.drain", str(number).encode())
        await settle(self.other)
        await leaving.drain()
        expect(seen == [str(number).encode() for number in range(500)], True, f"all messages handled ({len(seen)})")
        expect(leaving.is_closed, True, "closed after draining")

    async def verbose_pedantic(self) -> None:
        careful = await nats.connect(self.url, verbose=True, pedantic=True)
        subscription = await careful.subscribe("tour.verbose")
        await careful.publish("tour.verbose", b"hello")
        (message,) = await take(subscription, 1)
        expect(message.data, b"hello", "payload")
        await settle(careful)
        await careful.close()

    async def payload_max(self) -> None:
        subscription = await self.nc.subscribe("tour.large")
        await settle(self.nc)
        payload = bytes(range(256)) * (MAX_PAYLOAD_BYTES // 256)
        await self.other.publish("tour.large", payload)
        (message,) = await take(subscription, 1)
        expect(message.data == payload, True, "payload is equal")
        await subscription.unsubscribe()

    async def payload_too_large(self) -> None:
        try:
            await self.nc.publish("tour.large", bytes(MAX_PAYLOAD_BYTES + 1))
        except MaxPayloadError:
            return
        raise AssertionError("a payload above max_payload was accepted")

    async def puback(self) -> None:
        js = self.nc.jetstream(timeout=PATIENCE_S)
        sequences = []
        for number in range(3):
            payload = f"{self.tag}-{number}".encode()
            ack = await js.publish("orders.created", payload, headers={"Shop": f"north {number}"})
            expect((ack.stream, bool(ack.duplicate)), ("orders", False), "acknowledgement")
            sequences.append(ack.seq)
            self.published.append(payload)
        expect(sequences, [sequences[0], sequences[0] + 1, sequences[0] + 2], "sequences")
        self.first_offset = sequences[0] - 1

    async def duplicate(self) -> None:
        js = self.nc.jetstream(timeout=PATIENCE_S)
        payload = f"{self.tag}-once".encode()
        headers = {"Nats-Msg-Id": self.tag}
        first = await js.publish("orders.created", payload, headers=headers)
        again = await js.publish("orders.created", payload, headers=headers)
        expect((bool(first.duplicate), bool(again.duplicate)), (False, True), "duplicate")
        expect(again.seq, first.seq, "sequence of the duplicate")
        self.published.append(payload)

    async def wrong_stream(self) -> None:
        js = self.nc.jetstream(timeout=PATIENCE_S)
        expect(await refused(js.publish("orders.created", b"no", stream="invoices")), 10060, "error code")

    async def wrong_sequence(self) -> None:
        js = self.nc.jetstream(timeout=PATIENCE_S)
        last = self.first_offset + len(self.published)
        wrong = {"Nats-Expected-Last-Sequence": str(last + 1000)}
        expect(await refused(js.publish("orders.created", b"no", headers=wrong)), 10071, "error code")
        payload = f"{self.tag}-expected".encode()
        ack = await js.publish("orders.created", payload, headers={"Nats-Expected-Last-Sequence": str(last)})
        expect(ack.seq, last + 1, "sequence")
        self.published.append(payload)

    async def ask(self, request: dict[str, int]) -> Subscription:
        inbox = self.nc.new_inbox()
        subscription = await self.nc.subscribe(inbox)
        await self.nc.publish("$LOG.FETCH.orders.0", json.dumps(request).encode(), reply=inbox)
        return subscription

    async def fetch(self) -> None:
        answers = await self.ask({"offset": self.first_offset, "max_records": 10})
        for index, payload in enumerate(self.published):
            (message,) = await take(answers, 1)
            headers = message.headers or {}
            expect(message.data, payload, "payload")
            expect(headers.get("Log-Stream"), "orders", "Log-Stream")
            expect(headers.get("Log-Partition"), "0", "Log-Partition")
            expect(headers.get("Log-Offset"), str(self.first_offset + index), "Log-Offset")
            expect(headers.get("Nats-Subject"), "orders.created", "Nats-Subject")
            expect(bool(headers.get("Log-Zone")), True, "Log-Zone is there")
            expect(int(headers.get("Log-Timestamp", "0")) > 0, True, "Log-Timestamp is there")
            if index < 3:
                expect(headers.get("Shop"), f"north {index}", "the publisher's own header")
        (end,) = await take(answers, 1)
        headers = end.headers or {}
        expect((headers.get("Status"), headers.get("Description")), ("204", "EOB"), "status")
        next_offset = str(self.first_offset + len(self.published))
        expect(headers.get("Log-Next-Offset"), next_offset, "Log-Next-Offset")
        expect(headers.get("Log-High-Watermark"), next_offset, "Log-High-Watermark")
        expect(headers.get("Log-Start-Offset"), "0", "Log-Start-Offset")
        await answers.unsubscribe()

    async def out_of_range(self) -> None:
        answers = await self.ask({"offset": self.first_offset + 1_000_000, "max_records": 10})
        (message,) = await take(answers, 1)
        headers = message.headers or {}
        status = (headers.get("Status"), headers.get("Description"))
        expect(status, ("416", "OFFSET_OUT_OF_RANGE"), "status")
        await answers.unsubscribe()


TOURS: dict[str, tuple[Step, ...]] = {
    "core": (
        Tour.connect,
        Tour.publish_subscribe,
        Tour.wildcard_token,
        Tour.wildcard_tail,
        Tour.queue_group,
        Tour.request_reply,
        Tour.no_responders,
        Tour.headers,
        Tour.echo_off,
        Tour.unsubscribe_max,
        Tour.flush_rtt,
        Tour.drain,
        Tour.verbose_pedantic,
        Tour.payload_max,
        Tour.payload_too_large,
    ),
    "log": (Tour.puback, Tour.duplicate, Tour.wrong_stream, Tour.wrong_sequence, Tour.fetch, Tour.out_of_range),
}


async def main(url: str, name: str) -> int:
    tour = Tour(url)
    await tour.open()
    step_name = "open"
    try:
        for step in TOURS[name]:
            step_name = step.__name__.replace("_", "-")
            await step(tour)
            print(f"ok {step_name}", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, the step has failed and the tour ends with 1
        print(f"FAILED {step_name}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        await tour.close()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2])))
