"""The tour of nats.py's new packages, nats-core and nats-jetstream (Python 3.13). The steps: see ../README.md."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable

from nats import client, jetstream
from nats.client import Client, ClientStatus
from nats.client.errors import NoRespondersError
from nats.client.message import Headers, Message
from nats.client.subscription import Subscription
from nats.jetstream.errors import JetStreamError

PATIENCE_S = 10.0
MAX_PAYLOAD_BYTES = 1024 * 1024

Step = Callable[["Tour"], Awaitable[None]]


def expect(actual: object, wanted: object, what: str) -> None:
    if actual != wanted:
        raise AssertionError(f"{what}: wanted {wanted!r}, got {actual!r}")


async def take(subscription: Subscription, count: int) -> list[Message]:
    return [await subscription.next(timeout=PATIENCE_S) for _ in range(count)]


async def refused(publish: Awaitable[object]) -> int | None:
    """The JetStream error code that a publish was refused with."""
    try:
        ack = await publish
    except JetStreamError as error:
        return error.error_code
    raise AssertionError(f"wanted a refusal, got {ack!r}")


class Tour:
    """A connection under test, a second one that stands for everybody else, and what the log steps remember."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.tag = os.urandom(6).hex()
        self.first_offset = 0
        self.published: list[bytes] = []

    async def open(self) -> None:
        self.nc = await self.dial()
        self.other = await self.dial()
        self.js = jetstream.new(self.nc)

    async def dial(self, no_echo: bool = False) -> Client:
        return await client.connect(self.url, allow_reconnect=False, no_echo=no_echo)

    async def close(self) -> None:
        await self.nc.close()
        await self.other.close()

    async def connect(self) -> None:
        expect(self.nc.status, ClientStatus.CONNECTED, "status")
        info = self.nc.server_info
        expect(info and info.max_payload, MAX_PAYLOAD_BYTES, "max_payload")

    async def publish_subscribe(self) -> None:
        subscription = await self.nc.subscribe("tour.hello")
        await self.nc.flush()
        payloads = [b"one", b"", bytes(range(256))]
        for payload in payloads:
            await self.other.publish("tour.hello", payload)
        expect([message.data for message in await take(subscription, 3)], payloads, "payloads")
        await subscription.unsubscribe()

    async def matched(self, pattern: str, published: list[str], wanted: list[str]) -> None:
        subscription = await self.nc.subscribe(pattern)
        await self.nc.flush()
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
        members = [await self.dial() for _ in range(3)]
        subscriptions = [await member.subscribe("tour.work", queue="workers") for member in members]
        for member in members:
            await member.flush()
        for number in range(100):
            await self.other.publish("tour.work", str(number).encode())
        await self.other.flush()
        for member in members:
            await member.flush()
        shares = [await take(subscription, subscription.pending[0]) for subscription in subscriptions]
        expect(sorted(int(message.data) for share in shares for message in share), list(range(100)), "work done")
        expect(all(shares), True, "every member got some")
        for member in members:
            await member.close()

    async def request_reply(self) -> None:
        service = await self.other.subscribe("tour.service")
        await self.other.flush()
        for question in (b"a", b"b", b"c"):
            asked = asyncio.create_task(self.nc.request("tour.service", question, timeout=PATIENCE_S))
            (request,) = await take(service, 1)
            expect(bool(request.reply), True, "a reply subject")
            await self.other.publish(request.reply or "", b"pong:" + request.data)
            expect((await asked).data, b"pong:" + question, "answer")
        await service.unsubscribe()

    async def no_responders(self) -> None:
        try:
            reply = await self.nc.request("tour.nobody", b"?", timeout=PATIENCE_S)
        except NoRespondersError:
            return
        raise AssertionError(f"wanted no responders, got {reply.data!r}")

    async def headers_return(self, headers: dict[str, str | list[str]]) -> None:
        subscription = await self.nc.subscribe("tour.headers")
        await self.nc.flush()
        await self.other.publish("tour.headers", b"with", headers=headers)
        (message,) = await take(subscription, 1)
        expect((message.data, message.headers), (b"with", Headers(headers)), "message")
        await subscription.unsubscribe()

    async def headers(self) -> None:
        await self.headers_return({"Trace-Id": "Abc: 1, 2", "trace-id": "lower"})

    async def headers_multi(self) -> None:
        await self.headers_return({"Tag": ["one", "two"], "Other": "x"})

    async def echo_off(self) -> None:
        silent = await self.dial(no_echo=True)
        subscription = await silent.subscribe("tour.echo")
        await silent.flush()
        await silent.publish("tour.echo", b"own")
        await silent.flush()
        await self.other.publish("tour.echo", b"foreign")
        (message,) = await take(subscription, 1)
        expect(message.data, b"foreign", "first message")
        await silent.close()

    async def flush_rtt(self) -> None:
        await self.nc.flush(timeout=PATIENCE_S)
        expect(0 < await self.nc.rtt(timeout=PATIENCE_S) < 5, True, "round trip below five seconds")

    async def drain(self) -> None:
        leaving = await self.dial()
        subscription = await leaving.subscribe("tour.drain")
        await leaving.flush()
        for number in range(500):
            await self.other.publish("tour.drain", str(number).encode())
        await self.other.flush()
        await leaving.flush()  # this client forgets a subscription that drains at once: what is on its way must be here
        await leaving.drain()
        seen = [message.data async for message in subscription]
        expect(seen, [str(number).encode() for number in range(500)], "messages handled")
        expect(leaving.status, ClientStatus.CLOSED, "closed after draining")

    async def payload_max(self) -> None:
        subscription = await self.nc.subscribe("tour.large")
        await self.nc.flush()
        payload = bytes(range(256)) * (MAX_PAYLOAD_BYTES // 256)
        await self.other.publish("tour.large", payload)
        (message,) = await take(subscription, 1)
        expect(message.data == payload, True, "payload is equal")
        await subscription.unsubscribe()

    async def payload_too_large(self) -> None:
        """This client sends it all the same: the server says why and hangs up; its reason may be lost with the line."""
        loud = await client.connect(self.url)  # only a client that wants to reconnect tells that it was disconnected
        gone = asyncio.Event()
        reasons: list[str] = []
        loud.add_error_callback(lambda error: reasons.append(str(error)))
        loud.add_disconnected_callback(gone.set)
        await loud.publish("tour.large", bytes(MAX_PAYLOAD_BYTES + 1))
        await asyncio.wait_for(gone.wait(), PATIENCE_S)
        expect([reason for reason in reasons if "maximum payload" not in reason.lower()], [], "other reasons")
        await loud.close()

    async def puback(self) -> None:
        sequences = []
        for number in range(3):
            payload = f"{self.tag}-{number}".encode()
            ack = await self.js.publish("orders.created", payload, headers={"Shop": f"north {number}"})
            expect((ack.stream, bool(ack.duplicate)), ("orders", False), "acknowledgement")
            sequences.append(ack.sequence)
            self.published.append(payload)
        expect(sequences, [sequences[0], sequences[0] + 1, sequences[0] + 2], "sequences")
        self.first_offset = sequences[0] - 1

    async def duplicate(self) -> None:
        payload = f"{self.tag}-once".encode()
        headers = {"Nats-Msg-Id": self.tag}
        first = await self.js.publish("orders.created", payload, headers=headers)
        again = await self.js.publish("orders.created", payload, headers=headers)
        expect((bool(first.duplicate), bool(again.duplicate)), (False, True), "duplicate")
        expect(again.sequence, first.sequence, "sequence of the duplicate")
        self.published.append(payload)

    async def wrong_stream(self) -> None:
        expect(
            await refused(self.js.publish("orders.created", b"no", headers={"Nats-Expected-Stream": "invoices"})),
            10060,
            "error code",
        )

    async def wrong_sequence(self) -> None:
        last = self.first_offset + len(self.published)
        wrong = {"Nats-Expected-Last-Sequence": str(last + 1000)}
        expect(await refused(self.js.publish("orders.created", b"no", headers=wrong)), 10071, "error code")
        payload = f"{self.tag}-expected".encode()
        ack = await self.js.publish("orders.created", payload, headers={"Nats-Expected-Last-Sequence": str(last)})
        expect(ack.sequence, last + 1, "sequence")
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
            headers = message.headers or Headers({})
            expect(message.data, payload, "payload")
            expect(headers.get("Log-Stream"), "orders", "Log-Stream")
            expect(headers.get("Log-Partition"), "0", "Log-Partition")
            expect(headers.get("Log-Offset"), str(self.first_offset + index), "Log-Offset")
            expect(headers.get("Nats-Subject"), "orders.created", "Nats-Subject")
            expect(bool(headers.get("Log-Zone")), True, "Log-Zone is there")
            expect(int(headers.get("Log-Timestamp") or "0") > 0, True, "Log-Timestamp is there")
            if index < 3:
                expect(headers.get("Shop"), f"north {index}", "the publisher's own header")
        (end,) = await take(answers, 1)
        headers = end.headers or Headers({})
        expect(end.status and (end.status.code, end.status.description), ("204", "EOB"), "status")
        next_offset = str(self.first_offset + len(self.published))
        expect(headers.get("Log-Next-Offset"), next_offset, "Log-Next-Offset")
        expect(headers.get("Log-High-Watermark"), next_offset, "Log-High-Watermark")
        expect(headers.get("Log-Start-Offset"), "0", "Log-Start-Offset")
        await answers.unsubscribe()

    async def out_of_range(self) -> None:
        answers = await self.ask({"offset": self.first_offset + 1_000_000, "max_records": 10})
        (message,) = await take(answers, 1)
        status = message.status and (message.status.code, message.status.description)
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
        Tour.headers_multi,
        Tour.echo_off,
        Tour.flush_rtt,
        Tour.drain,
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
    logging.disable(logging.ERROR)  # the client logs the line that the server cuts with its whole traceback
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2])))
