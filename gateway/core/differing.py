"""What a gateway's file says otherwise than others: than the streams in force, than the files of other gateways.

A mesh has one configuration, and each node its own copy of the file, which may be an older one. Nothing of what is said
here decides anything: the streams in force are those that the sinks have committed, and for the rest each node goes by
its own file. It is reported on both sides: by sinks, and by each of two gateways that differ.

Gateways compare digests, one for each part of the file, so that a report names the part. In none of them is what a node
has for itself alone (folders, sockets), nor passwords and tokens: where links are plain, anybody could guess at them.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from protocol.config import Config
from protocol.streams import StreamState

_PRIVATE: Final = frozenset({"listen", "spool", "data", "disk_reserve_bytes", "fsync", "scrub_rate_bytes_per_second"})
_SECRETS: Final = frozenset({"password", "token"})
_DIGEST_BYTES: Final = 8


def stream_differences(own: Iterable[StreamState], committed: Iterable[StreamState], revision: int) -> list[str]:
    """Sentences about streams of the file that those of `revision`, which is in force, are not like."""
    ours = {stream.name: _content(stream) for stream in own}
    theirs = {stream.name: _content(stream) for stream in committed if not stream.retired}
    in_force = f"revision {revision}, which is in force,"
    return [
        f"streams.{name}: {in_force} "
        + ("does not have it" if name not in theirs else "has it otherwise" if name in ours else "has it too")
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _content(stream: StreamState) -> StreamState:
    """What the file decides."""
    return msgspec.structs.replace(stream, incarnation=b"", revision=0, groups=1)


def digests(configuration: Config) -> dict[str, str]:
    """Of each part of the file that all nodes of a mesh share, in hexadecimal digits."""
    parts = {
        "mesh": dataclasses.replace(configuration.mesh, revision=0),
        "limits": configuration.limits,
        "zones": configuration.zones,
        "links": configuration.links,
        "accounts": configuration.accounts,
        "streams": configuration.kept_streams(),
        "coverage": configuration.coverage,
        "users": configuration.users,
    }
    return {name: _digest(part) for name, part in parts.items()}


def _digest(part: Any) -> str:
    text = msgspec.json.encode(_shared(msgspec.to_builtins(part)), order="deterministic")
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).hexdigest()


def _shared(value: Any) -> Any:
    """Without what each node has for itself, and without secrets."""
    if isinstance(value, dict):
        return {key: _shared(part) for key, part in value.items() if key not in _PRIVATE | _SECRETS}
    return [_shared(part) for part in value] if isinstance(value, (list, tuple)) else value


def differing_parts(own: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of the parts that two gateways have otherwise; none where one of them does not say."""
    return [name for name, digest in own.items() if other.get(name, digest) != digest]
