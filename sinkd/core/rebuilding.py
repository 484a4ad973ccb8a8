"""A zone that has lost all of its disks gets its old logs back, as another zone mirrors them.

Its sinks began anew, so its streams have other incarnations. What the other zone holds of the old ones is brought back
beside them, read-only: `orders@eu~1` in eu itself, at the same offsets; several incarnations in the order in which they
were. From then on they are mirrors like others of an incarnation that is over (`sinkd.core.completing`).

One rebuild is under way at a time, and replicated: whoever leads goes on with it. It ends when all is here that the
other zone has.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from protocol.streams import StreamState, mirror_name
from sinkd.core import accounts
from sinkd.core.commands import BeginRebuild, EndRebuild
from sinkd.core.state import REBUILD_VERSION, Mirror, PartitionState, Rebuild, State


class RebuildChanged(NamedTuple):
    """`rebuild` has begun, or has ended; with a `refusal` nothing has changed."""

    rebuild: Rebuild | None
    refusal: str = ""


def missing_logs(state: State, zone: str, offered: Iterable[StreamState]) -> tuple[StreamState, ...]:
    """Of the mirrors that another zone has: those of logs of `zone` that are not here, in the order in which they were.

    The newest of them has no number in its name.
    """
    here = {log.state.incarnation for log in (*state.streams.values(), *state.mirrors.values())}
    lost = [told for told in offered if told.mirrored[1] == zone and told.incarnation not in here]
    return tuple(sorted(lost, key=_age))


def _age(told: StreamState) -> tuple[str, bool, int]:
    name, _, number = told.name.partition("~")
    return name, not number, int(number or 0)


def begin(state: State, request: BeginRebuild) -> RebuildChanged:
    """Makes what is to be brought back; in group 0, which decides their names. The other groups take them over."""
    under_way = state.rebuild
    if under_way is not None and not under_way.ended_ms and under_way.source != request.replaces:
        return RebuildChanged(under_way, f"a rebuild from zone {under_way.source} is under way")
    logs = missing_logs(state, request.zone, request.logs)
    if not logs:
        return RebuildChanged(under_way, "nothing is to be brought back any more")
    for told in logs:
        name = _free_name(state, mirror_name(told.mirrored[0], request.zone))
        made = msgspec.structs.replace(told, name=name, retired=True, groups=state.groups)
        mirror = Mirror(made, [PartitionState(ids={}) for _ in range(told.partitions)], 1, {}, {})
        state.mirrors[name] = mirror
        accounts.follow(state, mirror)
    state.rebuild = Rebuild(request.source, [log.incarnation for log in logs], state.now_ms)
    state.version = max(state.version, REBUILD_VERSION)
    return RebuildChanged(state.rebuild)


def _free_name(state: State, name: str) -> str:
    return next(
        free for number in range(1, len(state.mirrors) + 2) if (free := f"{name}~{number}") not in state.mirrors
    )


def end(state: State, request: EndRebuild) -> RebuildChanged:
    """All of it is here, as whoever leads has seen."""
    rebuild = state.rebuild
    if rebuild is None or rebuild.ended_ms or rebuild.begun_ms != request.begun_ms:
        return RebuildChanged(rebuild, "it is not under way")
    ended = {"ended_ms": state.now_ms, "events": request.events, "size_bytes": request.size_bytes}
    state.rebuild = msgspec.structs.replace(rebuild, **ended)
    return RebuildChanged(state.rebuild)


def described(rebuild: Rebuild) -> str:
    """In words, for who reads the audit log."""
    logs = f"{len(rebuild.incarnations)} logs from zone {rebuild.source}"
    if not rebuild.ended_ms:
        return logs
    seconds = (rebuild.ended_ms - rebuild.begun_ms) / 1000
    return f"{logs}: {rebuild.events} events, {rebuild.size_bytes} bytes in {seconds:.1f} s"
