"""Streams for tests of the cores: as configured, as committed, and parcels for them."""

import msgspec

from protocol import envelope
from protocol.records import Event, encode_batch
from protocol.streams import StreamDefinition, StreamState


def definition(name: str = "orders", **settings: object) -> StreamDefinition:
    fields: dict[str, object] = {
        "name": name, "incarnation": name.encode(), "subjects": (f"{name}.>",), "partitions": 1, "key": "subject",
        "ack": "quorum", "reply": "always", "dedup_window_ms": 120_000, "dedup_ids_max": 1_000,
        "outbox_bytes": 1_000_000, "outbox_overflow": "gap", "outbox_stall_ms": 30_000, "retention_age_ms": 0,
        "retention_bytes": 0,
    }  # fmt: skip
    return StreamDefinition(**{**fields, **settings})


def state(
    name: str = "orders", *, revision: int = 1, retired: bool = False, groups: int = 1, **settings: object
) -> StreamState:
    fields = msgspec.structs.asdict(definition(name, **settings))
    return StreamState(revision=revision, retired=retired, groups=groups, **fields)


def event(payload: bytes = b"x", subject: bytes = b"orders.new", **fields: object) -> Event:
    return Event(
        **{"subject": subject, "key": subject, "timestamp_ms": 5, "header_block": b"", "payload": payload, **fields}
    )


def parcel(first_sequence: int, *payloads: bytes, **fields: object) -> bytes:
    """A parcel of producer 1, epoch 1, for partition 0 of `orders`, unless `fields` say otherwise."""
    head: dict[str, object] = {
        "producer_id": 1, "epoch": 1, "stream": "orders", "incarnation": b"orders", "partition": 0,
        "first_sequence": first_sequence, "sequence_count": len(payloads), "revision": 1,
    }  # fmt: skip
    return envelope.pack(
        envelope.Envelope(**{**head, **fields}), encode_batch([event(payload) for payload in payloads])
    )
