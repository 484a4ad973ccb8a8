"""What a keeper knows, as plain values: for operators, and as events of `$COVERAGE` that a later start goes on from."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgspec

from protocol.coverage import GAP, Beacon, Ended, GapReport, Summary
from protocol.limits import COVERAGE_STATUS_ROWS_MAX
from sinkd.core.keeping import Keeper
from sinkd.core.speakers import ENDED, FOLLOWED, OVER, BeaconRefused, Line, Speaker

CLOSED, REMOVED, SILENT, SPEAKS = "closed", "removed", "silent", "speaks"
STATES = (SPEAKS, SILENT, CLOSED, REMOVED)
Known = Callable[[str], bool]
"""Whether the configuration has a gateway of that name."""


# -- for operators ----------------------------------------------------------------------------------------------------


def facts(keeper: Keeper, now_ms: int, known: Known) -> dict[str, Any]:
    """For JSON; docs/cli.md names the fields."""
    speakers = [each for _, each in sorted(keeper.speakers.by_name.items()) if each.beacon is not None]
    rows_max = COVERAGE_STATUS_ROWS_MAX // max(len(speakers), 1)
    return {
        "beacons": {
            speaker.name: {"state": state_of(keeper, speaker, now_ms, known), **_speaker(speaker, now_ms, rows_max)}
            for speaker in speakers
        },
        "rows_left_off": sum(max(0, len(each.lines) + len(each.olds) - rows_max) for each in speakers),
        "gaps": [msgspec.to_builtins(gap) for _, gap in sorted(keeper.open.items())],
        "refused_beacons": dict(sorted(keeper.refused.items())),
    }


def states(keeper: Keeper, now_ms: int, known: Known) -> Counter[str]:
    """How many workers are in each of STATES."""
    return Counter(state_of(keeper, each, now_ms, known) for each in keeper.speakers.by_name.values())


def missing(keeper: Keeper, now_ms: int, known: Known) -> Counter[str]:
    """Events of open gaps, by why; but of gateways that were removed."""
    found: Counter[str] = Counter()
    for key, gap in keeper.open.items():
        speaker = keeper.speakers.by_name.get((key.node, key.worker))
        if speaker is None or state_of(keeper, speaker, now_ms, known) != REMOVED:
            found[gap.why] += gap.events
    return found


def state_of(keeper: Keeper, speaker: Speaker, now_ms: int, known: Known) -> str:
    """CLOSED: it has said its last word; SILENT: it has not, and says nothing; REMOVED: nor will it ever."""
    if speaker.uttered.closing:
        return CLOSED
    if not speaker.is_silent(now_ms, keeper.silence_ms):
        return SPEAKS
    return SILENT if known(speaker.node) else REMOVED


def _speaker(speaker: Speaker, now_ms: int, rows_max: int) -> dict[str, Any]:
    beacon = speaker.beacon
    assert beacon is not None
    return {
        "node": speaker.node,
        "worker": speaker.worker,
        **speaker.uttered._asdict(),
        "silent_ms": max(0, now_ms - speaker.heard_ms),
        "processes": len(speaker.processes),
        "unclosed": speaker.unclosed,
        "told": sorted(speaker.told),
        "refused": beacon.refused,
        "uncovered": msgspec.to_builtins(beacon.uncovered),
        "rows": [_line(line) for line in islice(speaker.all_lines(), rows_max)],
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
    """Takes up what it says of a worker, beside what was heard of it already. BeaconRefused: it cannot be so."""
    beacon: Beacon = summary.beacon
    ended = [_ended(each, summary.time) for each in summary.ended]
    if (beacon.node, beacon.worker) not in keeper.speakers.by_name:
        keeper.hear(beacon, summary.heard, signed=summary.signed)
    speaker = keeper.speakers.by_name[beacon.node, beacon.worker]
    known = {(line.place, line.run) for line in speaker.all_lines()}
    for line in ended:
        if (line.place, line.run) not in known:
            line.is_followed = line.place in speaker.lines
            speaker.olds.append(line)
        speaker.told.add(f"{line.row.stream}/{line.row.partition}")
    processes = (*summary.processes, *speaker.processes)
    speaker.processes = [each for each in dict.fromkeys(processes) if each != speaker.uttered.process]
    speaker.unclosed = max(speaker.unclosed, summary.unclosed)
    for gap in summary.gaps:
        keeper.told(GAP, gap)


def _ended(ended: Ended, said_ms: int) -> Line:
    """BeaconRefused: it cannot be so."""
    if ended.how not in (OVER, ENDED, FOLLOWED):
        raise BeaconRefused("unreadable", f"summary: a run is over by {ended.how!r}")
    try:
        line = Line(ended.row, "", said_ms)
    except ValueError as error:
        raise BeaconRefused("unreadable", f"summary: {error}") from error
    line.end(ended.how, ended.since)
    line.spool = ended.spool
    return line
