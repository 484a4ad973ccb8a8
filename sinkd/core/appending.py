"""Commands that append: of covered logs with the digests of their batches, made once by whoever leads.

A digest is SHA-256 over nearly all of a batch, the dearest thing that a sink does with it. The leader makes it of what
the gateway sent, which the gateway's beacon is held against; what the others have on their disks is hashed again where
that is read again (scrubbing, certificates).
"""

from collections.abc import Sequence

import msgspec

from protocol.coverage import digest_of
from protocol.envelope import Envelope, batch_of
from protocol.gaps import leaf_digest
from protocol.records import read_header, split_batches
from sinkd.core import commands
from sinkd.core.commands import MirroredHead
from sinkd.core.state import State


def append_command(
    state: State, time_ms: int, heads: Sequence[Envelope], parcels: Sequence[bytes], before: bytes = b""
) -> bytes:
    """The command that appends `parcels`, with these envelopes, with the bytes `before` in front of it."""
    streams = (state.streams.get(head.stream) for head in heads)
    if not any(stream is not None and stream.state.covered for stream in streams):
        return commands.encode_append(time_ms, parcels, before)
    return commands.encode_digested(time_ms, parcels, [digest_of(batch_of(parcel)) for parcel in parcels], before)


def mirrored_command(state: State, time_ms: int, head: MirroredHead, batches: bytes | memoryview) -> bytes:
    """The command that appends `batches`, whole and checked, to the mirror of `head`."""
    mirror = state.mirrors.get(head.name)
    if mirror is not None and mirror.state.covered:
        digests = (leaf_digest(read_header(batch), batch) for batch in split_batches(batches))
        head = msgspec.structs.replace(head, digests=b"".join(digests))
    return commands.encode_mirrored(time_ms, head, batches)
