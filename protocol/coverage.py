"""Coverage: what gateways say that they took in, and what sinks say that they hold. Events that nodes write into the
stream `$COVERAGE`, for sinks, operators and auditors to compare.

    gateway ── batches, in sequence ──► sink      each chains their digests, by itself
       └────── beacons ──► `$COVERAGE` ◄── gaps, roots ──┘

The *digest* D of a batch is SHA-256 over its bytes from the attributes on: those never change. The *chain* of a
producer (gateway worker) in one partition begins with 32 zero bytes and takes in each batch that the log took, in turn:

    chain' = SHA-256(chain ‖ u64 first sequence ‖ u32 number of sequences ‖ D)        (big endian)

It begins anew with a *run*: eight random bytes that the gateway makes for each partition when it begins to send there,
after its start and whenever the log knows less than it had acknowledged. The envelope of the batch that begins a run
names it; its `base` is the sequence before the first. An account is equal in gateway and sink if run, base, sequence
and chain are; so that there is a sequence which both know the chain at, the gateway *marks* a batch about once a second
(in its envelope), and the sinks keep the chain at the latest marks.

An event is signed over its JSON as it stands in the log: header `Coverage-Signature`, base64 of what the key of the
node's certificate made (`protocol.signing`; over `SIGNED_PREFIX` and the payload), header `Coverage-Signer`, base64 of
that certificate (DER). Without certificates (`insecure`, loopback) both are absent: a claim, no proof.
"""

import base64
import hashlib
import struct
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import msgspec

from protocol import headers
from protocol.errors import FrameError

STREAM: Final = "$COVERAGE"
SUBJECTS: Final = (f"{STREAM}.>",)
ACCOUNT: Final = STREAM
"""Whose stream it is: nobody's, for no account that is declared has such a name."""

BEACON: Final = "beacon"
GAP: Final = "gap"
REPAIRED: Final = "repaired"
ROOTS: Final = "roots"
SUMMARY: Final = "summary"
REPORTS: Final = (GAP, REPAIRED, ROOTS, SUMMARY)
"""Kinds; an event stands on subject `$COVERAGE.<kind>.<node>`."""

SIGNATURE_HEADER: Final = "Coverage-Signature"
SIGNER_HEADER: Final = "Coverage-Signer"
SIGNED_PREFIX: Final = b"event mesh coverage 1\n"

VERSION: Final = 1
RUN_BYTES: Final = 8
CHAIN_START: Final = bytes(32)
SEQUENCES_MAX: Final = 2**32 - 1  # of one batch: the chain counts them in 32 bits
_DIGEST_FROM: Final = 21  # the attributes of a batch
_SPAN: Final = struct.Struct(">QI")


def digest_of(batch: bytes | memoryview) -> bytes:
    """D of a batch, 32 bytes: of what never changes in it."""
    return hashlib.sha256(memoryview(batch)[_DIGEST_FROM:]).digest()


def chained(chain: bytes, first_sequence: int, sequence_count: int, digest: bytes) -> bytes:
    """The chain behind the batch that spans those sequences."""
    return hashlib.sha256(chain + _SPAN.pack(first_sequence, sequence_count) + digest).digest()


class Signed(NamedTuple):
    """What stands beside a payload: the signature, and the certificate (DER) of the node that made it."""

    signature: bytes
    certificate: bytes


Sign: TypeAlias = Callable[[bytes], Signed]
"""Signs a payload as a node."""


def header_block(signed: Signed | None) -> bytes:
    """The headers of an event; none where it is not signed."""
    if signed is None:
        return b""
    fields = (SIGNATURE_HEADER, signed.signature), (SIGNER_HEADER, signed.certificate)
    return headers.build((name, base64.b64encode(value).decode()) for name, value in fields)


def signed_in(block: bytes) -> Signed | None:
    """What an event's headers say of who signed it. FrameError: one of the two is missing, or is no base64."""
    if not block:
        return None
    found = headers.parse(block)
    texts = found.get(SIGNATURE_HEADER), found.get(SIGNER_HEADER)
    if texts == (None, None):
        return None
    if None in texts:
        raise FrameError(f"of {SIGNATURE_HEADER} and {SIGNER_HEADER} there is one alone; expected both")
    try:
        return Signed(*(base64.b64decode(text or "", validate=True) for text in texts))
    except ValueError as error:
        raise FrameError(f"{SIGNATURE_HEADER} and {SIGNER_HEADER} must be base64: {error}") from error


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a gateway worker says of one partition. Counts are those of the run; hashes are in hexadecimal digits.

    `acknowledged` is the last sequence whose outcome is known to it: of those from `base` on it holds that
    acknowledged - base = held + duplicates + refused + gaps (events). `mark` is a sequence not above it, `chain` the
    chain there. `next` is the sequence that the next event would get, were nothing refused: next - 1 - acknowledged
    are under way or wait. `batches` and `bytes` are what was appended.
    """

    stream: str
    incarnation: str
    partition: int
    run: str
    base: int
    acknowledged: int
    mark: int
    chain: str
    next: int
    held: int
    batches: int
    bytes: int
    duplicates: int = 0
    refused: int = 0
    gaps: int = 0
    is_over: bool = False
    """The run is over, and another one began: the log knew less than what was acknowledged."""


class Uncovered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Events that no partition accounts for, since the worker began, by why: `delivery-fabric`, `no stream`,
    or `not covered` with the stream's name. They are counted, never covered.
    """

    why: str
    events: int
    bytes: int
    stream: str = ""


class Beacon(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What gateway `node` of `zone` says at `time` (ms since 1970), the `number`th time since it began as `process`.

    `rows` are of the partitions that have changed since the beacon before, or of all if it is `whole` (the first one,
    one in each minute, and the last, which is `closing`). `refused` counts what was refused before it got a sequence,
    by NATS's or JetStream's error code. `spool`: what is under way outlives the process.
    """

    version: int = VERSION
    mesh: str
    zone: str
    node: str
    worker: int
    process: str
    number: int
    time: int
    rows: tuple[Row, ...] = ()
    uncovered: tuple[Uncovered, ...] = ()
    refused: dict[str, int] = {}
    whole: bool = False
    closing: bool = False
    spool: bool = False


class GapReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the sinks of a zone lack of what gateway `node` has named (kind `gap`), or have after all (`repaired`).

    `why` is one of WHYS. `first` to `last` are sequences of `run`, at most so many `events`. `time` is when the sink
    `by` saw it; `recorded`: a gap record with that reason stands in the log.
    """

    version: int = VERSION
    mesh: str
    zone: str
    by: str
    time: int
    node: str
    worker: int
    stream: str
    incarnation: str
    partition: int
    run: str
    why: str
    first: int
    last: int
    events: int
    detail: str = ""
    recorded: bool = False


LATE: Final = "late"
LOST: Final = "lost"
ALTERED: Final = "altered"
UNCLOSED: Final = "unclosed"
WHYS: Final = {
    LATE: "the gateway has taken it in and named it, and it has not come within gap_grace; it is asked for again",
    LOST: "the gateway has an acknowledgement for it, and the log does not hold it",
    ALTERED: "gateway and sinks have other digests for it",
    UNCLOSED: "the gateway ended without a last beacon, with this under way",
}


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """The Merkle root of the `size` batches of a log between two offsets; `log` as `orders@eu`.

    Where the tree began depends on when the stream was covered, in each zone by itself.
    """

    log: str
    incarnation: str
    partition: int
    begin_offset: int
    size: int
    end_offset: int
    root: str


class Roots(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What sink `node` has of the logs that it holds, own and mirrored, as far as it has read them from its disk."""

    version: int = VERSION
    mesh: str
    zone: str
    node: str
    time: int
    roots: tuple[Root, ...] = ()


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A run of which something may be missing, though it is over since `since` (ms since 1970), as `how` says."""

    row: Row
    how: str
    since: int
    spool: bool


class Summary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the sinks of a zone know of a gateway worker at `time`, for those that start later: sink `by` says so.

    `beacon` is the latest, with the present row of each partition; it was heard at `heard`. `ended` are runs before
    those, `processes` those that were followed by others, `unclosed` of them without a last beacon. `gaps` are reported
    and open.
    """

    version: int = VERSION
    mesh: str
    zone: str
    by: str
    time: int
    heard: int
    beacon: Beacon
    signed: bool = False
    ended: tuple[Ended, ...] = ()
    processes: tuple[str, ...] = ()
    unclosed: int = 0
    gaps: tuple[GapReport, ...] = ()
