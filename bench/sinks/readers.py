"""Reads history as an application in Python does: `mesh.client` on one side, nats-py's ordered consumer on the other.

Both stand on nats-py. Events are counted, with their sizes and their order; each reader is a process of its own.
"""

import asyncio
import time

import nats

from bench.children import Child
from bench.processes import BenchError
from bench.sinks.tiers import STREAM, SUBJECT, Tier, Zone
from mesh.client import Partition, connect

POLL_RECORDS_MAX = 5_000
SILENCE_S_MAX = 30.0


def read_in_python(tier: Tier, payload_bytes: int, count: int) -> float:
    """Events a second. BenchError unless they are the events 0 to `count` - 1."""
    port, reading = tier.port(), _read_zone if isinstance(tier, Zone) else _read_jetstream
    child = Child(lambda: asyncio.run(reading(port, payload_bytes, count)))
    try:
        return count / float(child.result())
    finally:
        child.end()


async def _read_zone(port: int, payload_bytes: int, count: int) -> float:
    partition = Partition(STREAM, 0)
    async with await connect(f"nats://127.0.0.1:{port}") as consumer:
        consumer.assign([partition])
        began_s, expected = time.monotonic(), 0
        await consumer.seek_to_beginning(partition)
        while expected < count:
            polled = await consumer.poll(timeout_ms=int(SILENCE_S_MAX * 1e3), max_records=POLL_RECORDS_MAX)
            if not polled:
                raise BenchError(f"{expected} of {count} events have come, and then nothing")
            for record in polled[partition]:
                _check(record.offset, len(record.value), expected, payload_bytes)
                expected += 1
        return time.monotonic() - began_s


async def _read_jetstream(port: int, payload_bytes: int, count: int) -> float:
    connection = await nats.connect(f"nats://127.0.0.1:{port}")
    try:
        began_s, expected = time.monotonic(), 0
        subscription = await connection.jetstream().subscribe(SUBJECT, ordered_consumer=True)
        async for message in subscription.messages:
            sequence = int(message.reply.split(".")[5])
            _check(sequence - 1, len(message.data), expected, payload_bytes)
            expected += 1
            if expected == count:
                break
        if expected < count:
            raise BenchError(f"{expected} of {count} events have come, and then nothing")
        return time.monotonic() - began_s
    finally:
        await connection.close()


def _check(number: int, size_bytes: int, expected: int, expected_bytes: int) -> None:
    if number != expected or size_bytes != expected_bytes:
        raise BenchError(f"event {number} of {size_bytes} B has come instead of {expected} of {expected_bytes} B")
