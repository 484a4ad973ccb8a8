"""What a keeper knows, as plain values: for operators, and as events of `$COVERAGE` that a later start goes on from."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from protocol.coverage import GAP, Beacon, Ended, GapReport, Summary
from sinkd.core.keeping import Keeper
from sinkd.core.speakers import ENDED, FOLLOWED, OVER, BeaconRefused, Line, Speaker

CLOSED, SILENT, SPEAKS = "closed", "silent", "speaks"
STATES = (SPEAKS, SILENT, CLOSED)


# -- for operators ----------------------------------------------------------------------------------------------------


def facts(keeper: Keeper, now_ms: int) -> dict[str, Any]:
    """For JSON; docs/cli.md names the fields."""
    return {
        "beacons": {
            speaker.name: _speaker(speaker, keeper, now_ms)
            for _, speaker in sorted(keeper.speakers.by_name.items())
            if speaker.beacon is not None
        },
        "gaps": [msgspec.to_builtins(gap) for _, gap in sorted(keeper.open.items())],
        "refused_beacons": dict(sorted(keeper.refused.items())),
    }


def states(keeper: Keeper, now_ms: int) -> Counter[str]:
    """How many workers are in each of STATES."""
    return Counter(state_of(each, now_ms, keeper.silence_ms) for each in keeper.speakers.by_name.values())


def state_of(speaker: Speaker, now_ms: int, silence_ms: int) -> str:
    """CLOSED: it has said its last word; SILENT: it has not, and says nothing."""
    if speaker.uttered.closing:
        return CLOSED
    return SILENT if speaker.is_silent(now_ms, silence_ms) else SPEAKS


def _speaker(speaker: Speaker, keeper: Keeper, now_ms: int) -> dict[str, Any]:
    beacon = speaker.beacon
    assert beacon is not None
    return {
        "node": speaker.node,
        "worker": speaker.worker,
        **speaker.uttered._asdict(),
        "state": state_of(speaker, now_ms, keeper.silence_ms),
        "silent_ms": max(0, now_ms - speaker.heard_ms),
        "unclosed": speaker.unclosed,
        "refused": beacon.refused,
        "uncovered": msgspec.to_builtins(beacon.uncovered),
        "rows": [_line(line) for line in speaker.all_lines()],
    }


def _line(line: Line) -> dict[str, Any]:
    """Its row, and what this sink makes of it."""
    said = {name: getattr(line.row, name) for name in line.row.__struct_fields__}
    return said | {"over": line.over, "through": line.through, "verified": line.verified}


# -- for a later start ------------------------------------------------------------------------------------------------


def summaries(keeper: Keeper, now_ms: int) -> Iterator[Summary]:
    """One for each worker."""
    gaps: dict[tuple[str, int], list[GapReport]] = {}
    for key, gap in keeper.reported.items():
        gaps.setdefault((key.node, key.worker), []).append(gap)
    for place, speaker in keeper.speakers.by_name.items():
        if speaker.beacon is not None:
            rows = tuple(line.row for line in speaker.lines.values())
            yield Summary(
                mesh=keeper.mesh, zone=keeper.zone, by=keeper.node, time=now_ms, heard=speaker.heard_ms,
                beacon=msgspec.structs.replace(speaker.beacon, rows=rows, whole=True), signed=speaker.uttered.signed,
                ended=tuple(
                    Ended(row=line.row, how=line.over, since=line.over_ms, spool=line.spool) for line in speaker.olds
                ),
                processes=tuple(speaker.processes), unclosed=speaker.unclosed, gaps=tuple(gaps.get(place, ())),
            )  # fmt: skip


def restore(keeper: Keeper, summary: Summary) -> None:
    """Takes up what it says of a worker of which nothing was heard yet. BeaconRefused: it cannot be so."""
    beacon: Beacon = summary.beacon
    if (beacon.node, beacon.worker) in keeper.speakers.by_name:
        return
    keeper.hear(beacon, summary.heard, signed=summary.signed)
    speaker = keeper.speakers.by_name[beacon.node, beacon.worker]
    for ended in summary.ended:
        if ended.how not in (OVER, ENDED, FOLLOWED):
            raise BeaconRefused("unreadable", f"summary: a run is over by {ended.how!r}")
        try:
            line = Line(ended.row, "", summary.time)
        except ValueError as error:
            raise BeaconRefused("unreadable", f"summary: {error}") from error
        line.end(ended.how, ended.since)
        line.spool = ended.spool
        line.is_followed = line.place in speaker.lines
        speaker.olds.append(line)
    speaker.processes, speaker.unclosed = list(summary.processes), summary.unclosed
    for gap in summary.gaps:
        keeper.told(GAP, gap)
