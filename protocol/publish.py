"""What a publisher may ask of the log with headers, and what the log answers: JetStream's words.

A publish that carries one of the headers below is answered by the log, whatever the stream's `reply` says. Names are
case-sensitive, the first of several counts, as in nats-server. A header that asks for a guarantee which we do not give
is refused with JetStream's own error, never ignored: its publisher would rely on what nobody does.

Source: NATS ADR-1, ADR-22; texts and codes observed on nats-server 2.15.1. `Mesh-Ack` is ours: logged, quorum, geo.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from protocol.streams import sequence_of

ACK_LEVELS = ("logged", "quorum", "geo")


class Refusal(NamedTuple):
    """An error answer: this publish is not in the log and never will be."""

    code: int
    err_code: int
    description: str


class PublishHeaders(NamedTuple):
    """What the header block of a publish asks for; `asks` is whether it asks for anything."""

    asks: bool = False
    msg_id: bytes | None = None
    expect_stream: bytes | None = None
    expect_last_sequence: int | None = None
    expect_last_id: bytes | None = None
    ack: str | None = None
    refusal: Refusal | None = None


OUTBOX_FULL = Refusal(429, 10167, "too many requests")
TOO_LARGE = Refusal(400, 10054, "message size exceeds maximum allowed")
WRONG_STREAM = Refusal(400, 10060, "expected stream does not match")
NO_LEADER = Refusal(503, 10077, "no sink leads this stream: not in the log")
RETIRED = Refusal(503, 10077, "the stream was taken out of the configuration: not in the log")
STORAGE_FULL = Refusal(503, 10077, "storage full: the sink's disk is below its reserve")
CONTRACTS_UNKNOWN = Refusal(503, 20002, "no sink has told this gateway the contracts yet, which it enforces")

_UNAVAILABLE: dict[bytes, Refusal] = {
    b"Nats-TTL": Refusal(400, 10166, "per-message TTL is disabled"),
    b"Nats-Rollup": Refusal(500, 10111, "rollup not permitted"),
    b"Nats-Incr": Refusal(400, 10168, "message counters is disabled"),
    b"Nats-Batch-Id": Refusal(400, 10174, "atomic publish is disabled"),
    b"Nats-Schedule": Refusal(400, 10188, "message schedules is disabled"),
    b"Nats-Expected-Last-Subject-Sequence": Refusal(
        400, 10003, "Nats-Expected-Last-Subject-Sequence is not kept here: use Nats-Expected-Last-Sequence"
    ),
}
_PREFIXES = (b"\r\nNats-", b"\r\nMesh-Ack:")


def wrong_last_sequence(found: str) -> Refusal:
    return Refusal(400, 10071, f"wrong last sequence: {found}")


def wrong_last_id(found: str) -> Refusal:
    return Refusal(400, 10070, f"wrong last msg ID: {found}")


SPENT_CODES = frozenset({wrong_last_sequence("").err_code, wrong_last_id("").err_code})
"""Of refusals that the log itself has decided: they have spent a sequence."""


def breaks_contract(name: str, what: str) -> Refusal:
    """`mesh.contracts = "enforce"`. The number is ours: JetStream's begin with 10."""
    return Refusal(400, 20001, f"breaks contract {name}: {what}")


def several_partitions(header: str, stream: str, partitions: int) -> Refusal:
    return Refusal(400, 10003, f"{header} needs a stream of one partition; {stream} has {partitions}")


def too_few_zones(stream: str, wanted: int, others: Sequence[str]) -> Refusal:
    """`geo` needs `wanted` other zones; those that keep the stream are `others`."""
    if not others:
        return Refusal(400, 10003, f"geo is not available: no other zone keeps {stream}")
    return Refusal(400, 10003, f"geo needs {wanted} other zones that keep {stream}; there is {', '.join(others)}")


def may_ask(block: bytes) -> bool:
    """Whether `block` may ask something of the log: most do not, and this is seen at a glance."""
    return any(prefix in block for prefix in _PREFIXES)


def read_publish_headers(block: bytes) -> PublishHeaders:
    """What `block` (a whole NATS header block, or b"") asks of the log."""
    if not may_ask(block):
        return PublishHeaders()
    fields = _fields(block)
    refusal = next((refusal for name, refusal in _UNAVAILABLE.items() if name in fields), None)
    sequence, bad_sequence = _sequence(fields.get(b"Nats-Expected-Last-Sequence"))
    ack, bad_ack = _ack(fields.get(b"Mesh-Ack"))
    headers = PublishHeaders(
        msg_id=fields.get(b"Nats-Msg-Id") or None,
        expect_stream=fields.get(b"Nats-Expected-Stream") or None,
        expect_last_sequence=sequence,
        expect_last_id=fields.get(b"Nats-Expected-Last-Msg-Id") or None,
        ack=ack,
        refusal=refusal or bad_sequence or bad_ack,
    )
    return headers._replace(asks=any(field is not None for field in headers[1:]))


def _fields(block: bytes) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in block.split(b"\r\n")[1:]:
        name, separator, value = line.partition(b":")
        if separator:
            fields.setdefault(name, value.strip(b" \t"))
    return fields


def _sequence(value: bytes | None) -> tuple[int | None, Refusal | None]:
    if value is None:
        return None, None
    if value.isdigit() and len(value) <= 20 and int(value) < 2**64:
        return int(value), None
    what = f"Nats-Expected-Last-Sequence must be a number of 64 bits, got {_shown(value)}"
    return None, Refusal(400, 10003, what)


def _ack(value: bytes | None) -> tuple[str | None, Refusal | None]:
    if value is None:
        return None, None
    text = value.decode("utf-8", "replace")
    if text in ACK_LEVELS:
        return text, None
    return None, Refusal(400, 10003, f"Mesh-Ack must be one of {', '.join(ACK_LEVELS)}, got {_shown(value)}")


def _shown(value: bytes) -> str:
    return repr(value[:40].decode("utf-8", "replace"))


# -- answers ----------------------------------------------------------------------------------------------------------


def pub_ack(
    stream: str,
    zone: str,
    partition: int,
    partitions: int,
    offset: int,
    *,
    duplicate: bool = False,
    copies: Sequence[str] | None = None,
) -> bytes:
    """The PubAck of an event that is committed and fsynced at `offset`.

    `copies`, for one that was to be acknowledged `geo`: the other zones that hold it too; none: not in time.
    """
    answer: dict[str, str | int | bool] = {"stream": stream, "seq": sequence_of(offset, partition, partitions)}
    if duplicate:
        answer["duplicate"] = True
    where = {"domain": zone, "partition": partition, "offset": offset, "zone": zone}
    return msgspec.json.encode(answer | where | ({} if copies is None else _geo(copies)))


def _geo(copies: Sequence[str]) -> dict[str, object]:
    return {"ack": "geo", "zones": list(copies)} if copies else {"ack": "quorum", "geo": False}


class AckForm(NamedTuple):
    """What the PubAcks of one partition have in common: `begin`, seq, `middle`, offset, `end`."""

    begin: bytes
    middle: bytes
    end: bytes
    partition: int
    partitions: int

    def ack(self, offset: int) -> bytes:
        """As `pub_ack`, of an event that nobody has sent before."""
        seq = sequence_of(offset, self.partition, self.partitions)
        return b"%b%d%b%d%b" % (self.begin, seq, self.middle, offset, self.end)


def ack_form(
    stream: str, zone: str, partition: int, partitions: int, *, copies: Sequence[str] | None = None
) -> AckForm:
    """For many PubAcks of one partition; `copies` as in `pub_ack`."""
    stream_json, zone_json = msgspec.json.encode(stream), msgspec.json.encode(zone)
    middle = b',"domain":%b,"partition":%d,"offset":' % (zone_json, partition)
    end = b',"zone":%b' % zone_json + (b"}" if copies is None else b"," + msgspec.json.encode(_geo(copies))[1:])
    return AckForm(b'{"stream":%b,"seq":' % stream_json, middle, end, partition, partitions)


def logged_ack(stream: str, zone: str, partition: int) -> bytes:
    """The PubAck of a stream with `ack = "logged"`: in the outbox and on its way; its offset is not known yet."""
    return msgspec.json.encode(
        {"stream": stream, "seq": 0, "domain": zone, "partition": partition, "zone": zone, "ack": "logged"}
    )


def error_answer(stream: str, refusal: Refusal) -> bytes:
    """The error answer to a publish."""
    return msgspec.json.encode({"error": refusal._asdict(), "stream": stream, "seq": 0})
