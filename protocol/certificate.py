"""Certificates of coverage: what a log held, from offset to offset, and who has read all of it again and signs that.

A certificate is a JSON file in one canonical form: keys in the order of their code points, no blanks, UTF-8, nothing
escaped that need not be, integers alone, one line feed at the end. A file that is not exactly that is none, so that no
byte of one can be changed without a word; docs/coverage.md describes each field, for other verifiers.

    body        all of it but `signatures`: what a sink of the zone whose log it is signs
    log view    the body without `accounts`, `beacons` and `gaps`: what a sink of another zone, which mirrors it, signs

`signers` stand in both, with their certificates, so that who has signed cannot be changed either. `signatures` are in
the same order; a signature is over `SIGNED` and the view, and before that what `protocol.signing` puts there. One by
ECDSA counts only with the lower of its two possible values of s, or anybody could make another one of it.

`problems_of` looks at all that one can see without knowing keys or data: the form, the sums, proofs and majorities.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from protocol.errors import MeshError
from protocol.gaps import DAMAGED
from protocol.limits import CERTIFICATE_BYTES_MAX
from protocol.merkle import HASH_BYTES, check_consistency, root_of

FORMAT: Final = "event mesh certificate"
VERSION: Final = 1
SIGNED: Final = b"event mesh certificate 1\n"
_LOG_VIEW_WITHOUT: Final = ("accounts", "beacons", "gaps")


class BadCertificate(MeshError):
    """Bytes that are no certificate: they cannot even be looked at."""


class NotProved(MeshError):
    """What a certificate says is not proved; one problem per element of `problems`, each says what and where."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ZoneSinks(_Part, frozen=True, kw_only=True):
    """The sinks of a zone that are members of its Raft groups: a majority of them has to sign."""

    zone: str
    sinks: tuple[str, ...]


class Previous(_Part, frozen=True, kw_only=True):
    """Where the certificate before this one ended in a partition, and that its tree is the beginning of this one's."""

    to: int
    size: int
    root: str
    consistency: tuple[str, ...]


class Partition(_Part, frozen=True, kw_only=True):
    """The batches of [from, to), and the Merkle tree of the log, which begins at offset `begin`, at both ends.

    `control` is how many of those offsets control batches take; `damaged` offsets are of batches that the disks of all
    sinks have spoilt, and that an operator has given up: their digests are under the root, and nobody has them.
    """

    partition: int
    begin: int
    from_: int = msgspec.field(name="from")
    to: int
    from_size: int
    from_frontier: tuple[str, ...]
    size: int
    frontier: tuple[str, ...]
    root: str
    control: int
    damaged: int
    previous: Previous | None

    @property
    def frontier_from(self) -> tuple[bytes, ...]:
        return tuple(map(bytes.fromhex, self.from_frontier))

    @property
    def frontier_to(self) -> tuple[bytes, ...]:
        return tuple(map(bytes.fromhex, self.frontier))


class Sums(_Part, frozen=True, kw_only=True):
    """Of all runs of a producer before the present one, in events; batches and bytes are what was appended."""

    held: int
    batches: int
    bytes: int
    duplicates: int
    refused: int
    gaps: int


class Recorded(_Part, frozen=True, kw_only=True):
    """A gap record of the sinks at `offset`: so many events of `run` are missing."""

    run: str
    reason: str
    events: int
    offset: int


class Producer(_Part, frozen=True, kw_only=True):
    """What worker `worker` of gateway `node` has written in a partition: sequences `base` + 1 to `last` of its `run`.

    `chain` is that of `protocol.coverage` at `last`, and `marks` are (sequence, chain) of the latest that the gateway
    has marked. `beacon` is the number of the beacon that it was compared with, -1 for none. `lost` events in all are
    missing by gap records of the sinks, of which the latest are `recorded`.
    """

    node: str
    worker: int
    run: str
    base: int
    last: int
    chain: str
    held: int
    batches: int
    bytes: int
    duplicates: int
    refused: int
    gaps: int
    before: Sums
    marks: tuple[tuple[int, str], ...]
    lost: int
    recorded: tuple[Recorded, ...]
    beacon: int


class Accounts(_Part, frozen=True, kw_only=True):
    """Of a partition, since its tree began: who has written it. `statement` is the id under which its group said so.

    `control` offsets are taken by control batches; `unaccounted` events are of producers that give no account.
    """

    partition: int
    statement: str
    control: int
    unaccounted: int
    producers: tuple[Producer, ...]


class SignedBeacon(_Part, frozen=True, kw_only=True):
    """A beacon as it stands in `$COVERAGE` (`protocol.coverage`), in base64 all three."""

    payload: str
    signature: str
    signer: str


class GapRecord(_Part, frozen=True, kw_only=True):
    """A control batch of [from, to): it takes `offsets` offsets, and says that `events` are missing, and why.

    Those that stand in the place of a batch that was spoilt, with reason `damaged`, are no control batches of the log.
    One that is no gap record of the mesh has an empty `reason`.
    """

    partition: int
    offset: int
    offsets: int
    reason: str
    events: int
    from_ms: int
    to_ms: int
    source: str


class Signer(_Part, frozen=True, kw_only=True):
    """Sink `node` of `zone`, and its certificate (DER, base64)."""

    zone: str
    node: str
    certificate: str


class Certificate(_Part, frozen=True, kw_only=True):
    """Of all partitions of a stream's log in `zone`; `time` is when it was made, ms since 1970.

    `previous` is the SHA-256 of the file of the one before it, "" for none.
    """

    format: str = FORMAT
    version: int = VERSION
    mesh: str
    zone: str
    stream: str
    incarnation: str
    time: int
    zones: tuple[ZoneSinks, ...]
    partitions: tuple[Partition, ...]
    accounts: tuple[Accounts, ...]
    beacons: tuple[SignedBeacon, ...]
    gaps: tuple[GapRecord, ...]
    previous: str
    signers: tuple[Signer, ...] = ()
    signatures: tuple[str, ...] = ()


class Stated(_Part, frozen=True, kw_only=True):
    """What the leader of a partition's group says of it, for a certificate of all `partitions` of the stream.

    `members` are those of the group; `mirrored_in` are the other zones that are to have the log.
    """

    incarnation: str
    mirrored_in: tuple[str, ...]
    partitions: int
    members: tuple[str, ...]
    partition: Partition
    accounts: Accounts
    gaps: tuple[GapRecord, ...]


# -- bytes ------------------------------------------------------------------------------------------------------------


def encode(certificate: Certificate) -> bytes:
    """The file."""
    return canonical(msgspec.to_builtins(certificate))


def canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted") + b"\n"


def decode(data: bytes) -> Certificate:
    """BadCertificate: it is no certificate of this version. NotProved: it is not in its canonical form."""
    if len(data) > CERTIFICATE_BYTES_MAX:
        raise BadCertificate(f"{len(data)} bytes; a certificate has at most {CERTIFICATE_BYTES_MAX}")
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadCertificate(f"no certificate: {error}") from error
    if head.format != FORMAT or head.version != VERSION:
        what = f"{head.format!r} of version {head.version}; this program reads {FORMAT!r} of version {VERSION}"
        raise BadCertificate(f"no certificate: {what}")
    try:
        certificate = msgspec.json.decode(data, type=Certificate)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadCertificate(f"no certificate: {error}") from error
    again = encode(certificate)
    if again != data:
        at = next((n for n, (one, other) in enumerate(zip(data, again, strict=False)) if one != other), len(again))
        raise NotProved([f"byte {at}: it is not in the canonical form of a certificate, so it was changed"])
    return certificate


class _Head(msgspec.Struct):
    format: str
    version: int


def file_hash(data: bytes) -> str:
    """What a certificate says of the one before it."""
    return hashlib.sha256(data).hexdigest()


def signed_by_origin(certificate: Certificate) -> bytes:
    """The bytes that a sink of the zone signs, and before them `SIGNED`."""
    body = msgspec.to_builtins(certificate)
    del body["signatures"]
    return SIGNED + canonical(body)


def signed_by_mirror(certificate: Certificate) -> bytes:
    """... and one of another zone."""
    body = msgspec.to_builtins(certificate)
    for name in ("signatures", *_LOG_VIEW_WITHOUT):
        del body[name]
    return SIGNED + canonical(body)


def signed_by(certificate: Certificate, zone: str) -> bytes:
    return signed_by_origin(certificate) if zone == certificate.zone else signed_by_mirror(certificate)


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def from_base64(text: str) -> bytes:
    """ValueError: it is not what `to_base64` makes of any bytes."""
    data = base64.b64decode(text, validate=True)
    if to_base64(data) != text:
        raise ValueError("base64 with bits that say nothing")
    return data


# -- what can be seen -------------------------------------------------------------------------------------------------


def problems_of(certificate: Certificate, *, is_signed: bool = True) -> list[str]:
    """What of it cannot be so, whoever has signed it; before that: whatever signatures it will have."""
    found = [*_form(certificate, is_signed=is_signed)]
    if found:
        return found
    for partition, accounts in zip(certificate.partitions, certificate.accounts, strict=True):
        where = f"partition {partition.partition}"
        found += [f"{where}: {what}" for what in (*_ends(partition), *_sums(partition, accounts))]
        found += [f"{where}: {what}" for what in _previous(partition)]
    found += _gaps(certificate)
    return [*found, *_majorities(certificate)] if is_signed or certificate.signers else found


def _form(certificate: Certificate, *, is_signed: bool) -> Iterator[str]:
    numbers = [one.partition for one in certificate.partitions]
    if not numbers or numbers != list(range(len(numbers))):
        yield f"partitions are {numbers}; expected all of them, from 0 on"
    if [one.partition for one in certificate.accounts] != numbers:
        yield "accounts: expected those of each partition, in order"
    if not _is_hash(certificate.incarnation, 16) or (certificate.previous and not _is_hash(certificate.previous)):
        yield "incarnation and previous must be 16 and 32 bytes, in hexadecimal digits"
    if len(certificate.signatures) != (len(certificate.signers) if is_signed else 0):
        yield f"{len(certificate.signers)} signers and {len(certificate.signatures)} signatures"
    for partition in certificate.partitions:
        hashes = [*partition.from_frontier, *partition.frontier, partition.root]
        if partition.previous is not None:
            hashes += [partition.previous.root, *partition.previous.consistency]
        if not all(map(_is_hash, hashes)):
            yield f"partition {partition.partition}: hashes must have 32 bytes, in hexadecimal digits"
        if (partition.previous is not None) != bool(certificate.previous):
            yield f"partition {partition.partition}: the certificate before this one is named here, or above, not both"
    numbers_in = list(_numbers(msgspec.to_builtins(certificate)))
    if min(numbers_in) < 0:
        yield "a number is negative"
    if max(numbers_in) >= 1 << 63:
        yield "a number is too large for anything that is counted"


def _is_hash(text: str, size_bytes: int = HASH_BYTES) -> bool:
    return len(text) == 2 * size_bytes and all(digit in "0123456789abcdef" for digit in text)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one) if key != "beacon" or one != -1 else ()
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)


def _ends(one: Partition) -> Iterator[str]:
    if not one.begin <= one.from_ <= one.to:
        yield f"offsets {one.from_} to {one.to} of a tree that begins at {one.begin}"
    for name, size, frontier in (("from", one.from_size, one.from_frontier), ("to", one.size, one.frontier)):
        if len(frontier) != size.bit_count():
            yield f"at `{name}` a frontier of {len(frontier)} hashes is not that of {size} leaves"
    if not 0 <= one.size - one.from_size <= one.to - one.from_ or one.from_size > one.from_ - one.begin:
        yield f"{one.from_size} and {one.size} leaves for offsets {one.begin}, {one.from_} and {one.to}"
    if (one.from_size == one.size) != (one.from_ == one.to) or (one.from_size == 0) != (one.from_ == one.begin):
        yield f"{one.from_size} and {one.size} leaves for offsets {one.begin}, {one.from_} and {one.to}"
    if root_of(one.frontier_to).hex() != one.root:
        yield "the root is not that of the frontier"
    if one.control + one.damaged > one.to - one.from_:
        yield f"{one.control} and {one.damaged} of {one.to - one.from_} offsets are of control batches, or spoilt"


def _sums(one: Partition, accounts: Accounts) -> Iterator[str]:
    held = 0
    for producer in accounts.producers:
        spent = producer.held + producer.duplicates + producer.refused + producer.gaps
        held += producer.held + producer.before.held
        whose = f"worker {producer.worker} of gateway {producer.node}"
        if producer.last - producer.base != spent:
            yield (
                f"{whose}: sequences {producer.base + 1} to {producer.last} are {producer.last - producer.base} events "
                f"taken in; held, duplicates, refused and gaps are {spent}"
            )
        if producer.lost < sum(recorded.events for recorded in producer.recorded):
            yield f"{whose}: more is recorded as lost than {producer.lost} events"
    offsets = one.to - one.begin
    if offsets != held + accounts.control + accounts.unaccounted:
        yield (
            f"{offsets} offsets; {held} events held, {accounts.control} offsets of control batches and "
            f"{accounts.unaccounted} events without account are {held + accounts.control + accounts.unaccounted}"
        )
    if accounts.control < one.control:
        yield f"{accounts.control} offsets of control batches in all, {one.control} of them from {one.from_} on"
    names = [(producer.node, producer.worker) for producer in accounts.producers]
    if len(set(names)) != len(names):
        yield "a producer is there twice"


def _previous(one: Partition) -> Iterator[str]:
    before = one.previous
    if before is None:
        return
    if before.to > one.to:
        yield f"the certificate before this one went to offset {before.to}, this one goes to {one.to}"
    path = [bytes.fromhex(hash_) for hash_ in before.consistency]
    ends = before.size, bytes.fromhex(before.root), one.size, bytes.fromhex(one.root)
    if not check_consistency(*ends, path):
        yield f"the tree of the certificate before this one, of {before.size} leaves, is not the beginning of this one"


def _gaps(certificate: Certificate) -> Iterator[str]:
    ends = {one.partition: (one.from_, one.to) for one in certificate.partitions}
    control, damaged = dict.fromkeys(ends, 0), dict.fromkeys(ends, 0)
    reached = {number: begin for number, (begin, _) in ends.items()}
    for gap in certificate.gaps:
        if gap.partition not in ends or not reached[gap.partition] <= gap.offset < ends[gap.partition][1]:
            yield f"partition {gap.partition}: a control batch at offset {gap.offset} that is not of the log, or twice"
            continue
        (damaged if gap.reason == DAMAGED else control)[gap.partition] += gap.offsets
        reached[gap.partition] = gap.offset + gap.offsets
    for one in certificate.partitions:
        named = control[one.partition], damaged[one.partition]
        if named != (one.control, one.damaged):
            yield (
                f"partition {one.partition}: {named[0]} offsets of control batches and {named[1]} that are spoilt are "
                f"named, there are {one.control} and {one.damaged}"
            )


def _majorities(certificate: Certificate) -> Iterator[str]:
    """Whose signatures there would have to be, if all are good."""
    sinks = {one.zone: set(one.sinks) for one in certificate.zones}
    if certificate.zone not in sinks or len(sinks) != len(certificate.zones):
        yield f"zones: expected zone {certificate.zone} and others, each once"
    for zone, members in sinks.items():
        signed = {signer.node for signer in certificate.signers if signer.zone == zone}
        if not signed <= members:
            yield f"zone {zone}: {', '.join(sorted(signed - members))} has signed and is none of its sinks"
        if 2 * len(signed & members) <= len(members):
            yield f"zone {zone}: {len(signed & members)} of {len(members)} sinks have signed, no majority"
    names = [(signer.zone, signer.node) for signer in certificate.signers]
    if len(set(names)) != len(names):
        yield "a sink has signed twice"
    if strange := sorted({zone for zone, _ in names} - sinks.keys()):
        yield f"sinks of zone {strange[0]} have signed, which is not named"


class Proof(_Part, frozen=True, kw_only=True):
    """That the batch which holds `offset` is the leaf of that `number` under the `root` of the first `size`, by `path`.

    `batch` is the batch itself, as it stands in the log (base64). Of a log that was certified, root and size are those
    of the certificate.
    """

    log: str
    incarnation: str
    partition: int
    offset: int
    base_offset: int
    digest: str
    number: int
    size: int
    root: str
    path: tuple[str, ...]
    batch: str


class Consistency(_Part, frozen=True, kw_only=True):
    """That the tree of the first `before` leaves is the beginning of that of `size`, by `path`."""

    before: int
    size: int
    path: tuple[str, ...]
