"""What is covered, by what the sinks of all zones say of themselves: the rows of `mesh coverage`, and what is wrong.

    beacons: what each gateway worker has taken in ─┐
    accounts of each sink: what it holds of that ───┼─► rows, gateways, logs, what is covered by nobody ─► problems
    ends of the logs, and of their mirrors ─────────┘

While events come there is always something under way. So the first look says what has to be there (`Wanted`): what was
taken in by the beacons then, and where the logs ended. Later looks only say how much of that has come.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from protocol.coverage import WHYS
from protocol.streams import mirror_name

Told = dict[str, dict[str, Any]]
Groups = list[Told]
"""Of a zone: by group and sink, what `mesh status` is told."""

_SPENT = ("held", "duplicates", "refused", "gaps")


class Place(NamedTuple):
    """A producer in a partition."""

    stream: str
    partition: int
    node: str
    worker: int

    @property
    def gateway(self) -> str:
        return f"{self.node}/{self.worker}"

    @property
    def log(self) -> str:
        return f"{self.stream}/{self.partition}"


class Wanted(NamedTuple):
    """What has to be there: of each producer's run the last sequence, of each log the end, by zone."""

    sequences: dict[tuple[str, Place], tuple[str, int, int]]  # run, base, last
    ends: dict[tuple[str, str, int], int]


class View(NamedTuple):
    """Of the mesh. `problems` say what is not covered, and where; `open` of those may only need a moment."""

    zones: dict[str, dict[str, Any]]
    problems: list[str]
    open: list[str]
    wanted: Wanted


def look(
    told: dict[str, Groups],
    zones: Iterable[str],
    stream: str | None,
    is_for: Callable[[str, str], bool],
    wanted: Wanted | None,
    *,
    known_gaps: bool,
) -> View:
    """At what these `zones` took in, of all streams or of one. `is_for(stream, zone)`: another zone gets a copy."""
    found = Wanted({}, {})
    view = View({}, [], [], wanted or found)
    for zone in zones:
        looked = _Zone(zone, told, stream, is_for)
        view.zones[zone] = looked.found(found)
        view.problems.extend(looked.problems(known_gaps=known_gaps))
        view.open.extend(looked.lacking(view.wanted))
    return view


def streams_in(told: dict[str, Groups]) -> list[str]:
    """All that the zones have themselves."""
    names = {log["stream"] for groups in told.values() for one in _answers(groups) for log in one["logs"]}
    return sorted(name for name in names if "@" not in name)


def _answers(groups: Groups) -> Iterator[dict[str, Any]]:
    return (one for group in groups for one in group.values() if "error" not in one)


class _Zone:
    """What one zone took in."""

    def __init__(
        self, name: str, told: dict[str, Groups], stream: str | None, is_for: Callable[[str, str], bool]
    ) -> None:
        self._name, self._told, self._stream, self._is_for = name, told, stream, is_for
        self._groups = told[name]
        self._sinks = list(self._groups[0])
        self._down = {sink: one["error"] for sink, one in self._groups[0].items() if "error" in one}
        self._keeper = self._best_keeper()
        self._accounts = self._accounts_by_place()
        self._lines = self._present_lines()
        self.rows = [self._row(place) for place in sorted({*self._lines, *self._accounts})]
        self.logs = list(self._logs())

    def _best_keeper(self) -> dict[str, Any]:
        """That of the sink that writes reports, or else of the one that has heard most."""
        answers = [one["coverage"] for one in self._groups[0].values() if one.get("coverage")]
        nothing: dict[str, Any] = {"beacons": {}, "gaps": [], "refused_beacons": {}, "trees": []}

        def heard(one: dict[str, Any]) -> tuple[bool, int]:
            return one["leads"], max((each["time_ms"] for each in one["beacons"].values()), default=0)

        return max(answers, key=heard, default=nothing)

    def _wants(self, stream: str) -> bool:
        return self._stream is None or stream == self._stream

    def _accounts_by_place(self) -> dict[Place, dict[str, dict[str, Any]]]:
        """By producer and partition, each sink's; of streams as they are now."""
        found: dict[Place, dict[str, dict[str, Any]]] = {}
        for group in self._groups:
            for sink, one in group.items():
                for account in one.get("coverage", {}).get("accounts", ()):
                    place = Place(account["stream"], account["partition"], account["node"], account["worker"])
                    if self._wants(place.stream) and (account["run"] or account["lost"]):
                        found.setdefault(place, {})[sink] = account
        return found

    def _present_lines(self) -> dict[Place, dict[str, Any]]:
        """What each worker says of its present run."""
        incarnations = {
            (tree["log"], tree["incarnation"])
            for one in _answers(self._groups)
            for tree in one.get("coverage", {}).get("trees", ())
        }
        found: dict[Place, dict[str, Any]] = {}
        for worker in self._keeper["beacons"].values():
            for line in worker["rows"]:
                is_present = line["over"] in ("", "ended") and (line["stream"], line["incarnation"]) in incarnations
                if is_present and self._wants(line["stream"]):
                    found[Place(line["stream"], line["partition"], worker["node"], worker["worker"])] = line
        return found

    def _row(self, place: Place) -> dict[str, Any]:
        accounts, line = self._accounts.get(place, {}), self._lines.get(place)
        best = max(accounts.values(), key=lambda one: one["last"], default=None)
        lost = best["lost"] if best is not None else 0
        row: dict[str, Any] = place._asdict() | {name: _total(best, name) for name in (*_SPENT, "batches")}
        row |= {"bytes": _total(best, "size_bytes"), "lost": lost}
        spent = sum(row[name] for name in _SPENT)
        under_way = max(0, line["next"] - 1 - max(_through(best, line), line["base"])) if line is not None else 0
        return row | {
            "taken_in": spent + lost + under_way,
            "acknowledged": _before(best, line) + line["acknowledged"] - line["base"] if line is not None else None,
            "under_way": under_way,
            "verified": line["verified"] - line["base"] if line is not None else None,
            "held_by": {sink: _total(accounts.get(sink), "held") for sink in self._sinks if sink not in self._down},
            "by_sink": place.node in self._sinks,
        }

    def _logs(self) -> Iterator[dict[str, Any]]:
        """Each log of the zone: where it ends on each sink, and in each other zone that gets a copy."""
        ends = _ends(self._groups)
        lags = {zone: _lags(groups, self._name) for zone, groups in self._told.items()}
        for (stream, partition), by_sink in sorted(ends.items()):
            if "@" in stream or not self._wants(stream):
                continue
            copies: dict[str, Any] = {}
            for zone, groups in self._told.items():
                if zone != self._name and self._is_for(stream, zone):
                    mirrored = _ends(groups).get((mirror_name(stream, self._name), partition), {})
                    lag = lags[zone].get((stream, partition), {})
                    copies[zone] = {
                        "end_offset": max(mirrored.values(), default=None),
                        "lag_events": lag.get("lag_events"),
                        "lag_seconds": lag.get("lag_seconds"),
                        "state": lag.get("state", ""),
                    }
            spoilt = {tuple(span) for one in _answers(self._groups) for log in one["logs"]
                      if (log["stream"], log["partition"]) == (stream, partition)
                      for span in log.get("given_up", ())}  # fmt: skip
            yield {
                "stream": stream, "partition": partition, "ends": by_sink, "copies": copies,
                "damaged": sorted(spoilt),
            }  # fmt: skip

    # -- what comes of it ---------------------------------------------------------------------------------------------

    def found(self, wanted: Wanted) -> dict[str, Any]:
        """For people and machines; adds what has to be there by this look to `wanted`."""
        for place, line in self._lines.items():
            wanted.sequences[self._name, place] = line["run"], line["base"], line["next"] - 1
        for log in self.logs:
            wanted.ends[self._name, log["stream"], log["partition"]] = max(log["ends"].values(), default=0)
        workers = self._keeper["beacons"].values()
        said = ("node", "worker", "state", "silent_ms", "signed", "spool", "unclosed", "refused")
        uncovered = [
            {"node": worker["node"], "worker": worker["worker"], **row}
            for worker in workers
            for row in worker["uncovered"]
            if self._stream is None or row.get("stream") == self._stream
        ]
        counted = (*_SPENT, "lost", "taken_in", "under_way", "batches", "bytes")
        return {
            "rows": self.rows,
            "logs": self.logs,
            "gateways": [{name: worker[name] for name in said} for worker in workers],
            "uncovered": uncovered,
            "gaps": self._gaps(),
            "refused_beacons": self._keeper["refused_beacons"],
            "sinks": self._sinks,
            "down": self._down,
            "totals": {name: sum(row[name] for row in self.rows) for name in counted},
        }

    def _gaps(self) -> list[dict[str, Any]]:
        return [gap for gap in self._keeper["gaps"] if self._wants(gap["stream"])]

    def problems(self, *, known_gaps: bool) -> Iterator[str]:
        """What time alone does not mend."""
        for sink, why in self._down.items():
            yield f"zone {self._name}: sink {sink} cannot be asked what it holds: {why}"
        if not any(one.get("coverage", {}).get("trees") for one in _answers(self._groups)):
            yield f"zone {self._name}: no accounts are kept there (coverage.enabled), or no sink can be asked"
        if left_off := self._keeper.get("rows_left_off"):
            yield f"zone {self._name}: {left_off} rows of beacons do not fit into an answer: nothing is known of them"
        for gap in self._gaps():
            whose = self._keeper["beacons"].get(f"{gap['node']}/{gap['worker']}", {})
            if known_gaps and whose.get("state") == "removed":
                continue
            where = f"zone {self._name}: {gap['stream']}/{gap['partition']}"
            which = f"{gap['events']} events of {gap['node']}/{gap['worker']} ({gap['first']} to {gap['last']})"
            yield f"{where}: {gap['why']}: {which}: {WHYS[gap['why']]}"
        for worker in self._keeper["beacons"].values():
            if worker["state"] == "silent":
                seconds = worker["silent_ms"] // 1000
                name = f"{worker['node']}/{worker['worker']}"
                yield f"zone {self._name}: {name} is silent for {seconds} s: what it took in since is not known"
        yield from self._differing()
        yield from self._damaged(known_gaps=known_gaps)
        yield from self._problems_of_rows(known_gaps=known_gaps)

    def _differing(self) -> Iterator[str]:
        """Replicas whose roots are not the same (`sinkd.shell.digests`)."""
        for one in _answers(self._groups[:1]):
            for other in (one.get("digests") or {}).get("differing", ()):
                if self._wants(other["log"].partition("@")[0]):
                    what = f"{other['log']}/{other['partition']} on sink {other['node']} of zone {other['zone']}"
                    yield f"zone {self._name}: {what} differs from {one['node']}: {other['why']}"

    def _damaged(self, *, known_gaps: bool) -> Iterator[str]:
        """What disks have spoilt: nobody has mended it, or an operator has given it up (`sinkd.shell.giving_up`)."""
        for group in self._groups:
            for sink, one in group.items():
                for problem in (*one.get("damaged", ()), *one.get("suspected", ())):
                    if self._stream is None or f"/{self._stream}-" in problem or f"{self._stream}/" in problem:
                        yield f"zone {self._name}: sink {sink}: {problem}"
        for log in self.logs:
            for first, last in () if known_gaps else log["damaged"]:
                where = f"zone {self._name}: {log['stream']}/{log['partition']}"
                yield f"{where}: offsets {first} to {last} are damaged on all sinks: gap records stand for them"

    def _problems_of_rows(self, *, known_gaps: bool) -> Iterator[str]:
        for row in self.rows:
            place = Place(row["stream"], row["partition"], row["node"], row["worker"])
            where = f"zone {self._name}: {place.log}"
            if (missing := row["gaps"] + row["lost"]) and not known_gaps:
                yield f"{where}: {missing} events of {place.gateway} are not held: gap records stand for them"
            if place not in self._lines and not row["by_sink"] and place.gateway not in self._keeper["beacons"]:
                yield f"{where}: {place.gateway} has written there, and no beacon of it says what it took in"

    def _untold(self) -> Iterator[str]:
        """Producers that speak, and not of what they have written: they began to a moment ago, or hide it."""
        for row in self.rows:
            place = Place(row["stream"], row["partition"], row["node"], row["worker"])
            worker = self._keeper["beacons"].get(place.gateway)
            if place in self._lines or worker is None or worker["processes"] or place.log in worker["told"]:
                continue
            yield f"zone {self._name}: {place.log}: {place.gateway} has written there, and its beacons do not say so"

    def lacking(self, wanted: Wanted) -> Iterator[str]:
        """What has to be there and is not, yet."""
        for (zone, place), (run, base, last) in wanted.sequences.items():
            if zone != self._name:
                continue
            accounts = self._accounts.get(place, {})
            lacks = {
                sink: _lacking(accounts.get(sink), run, base, last) for sink in self._sinks if sink not in self._down
            }
            where, fewest = f"zone {zone}: {place.log}", min(lacks.values(), default=0)
            if fewest:
                yield f"{where}: {fewest} events of {place.gateway} are under way"
            for sink, count in lacks.items():
                if count > fewest:
                    yield f"{where}: sink {sink} lacks {count} events of {place.gateway}"
        yield from self._untold()
        yield from self._lacking_copies(wanted)

    def _lacking_copies(self, wanted: Wanted) -> Iterator[str]:
        for log in self.logs:
            end = wanted.ends.get((self._name, log["stream"], log["partition"]), 0)
            for zone, copy in log["copies"].items():
                where = f"zone {zone}: {mirror_name(log['stream'], self._name)}/{log['partition']}"
                if copy["end_offset"] is None:
                    yield f"{where}: there is no mirror, or no sink can be asked"
                elif copy["end_offset"] < end:
                    yield f"{where}: offsets {copy['end_offset']} to {end - 1} are not there"


def _ends(groups: Groups) -> dict[tuple[str, int], dict[str, int]]:
    found: dict[tuple[str, int], dict[str, int]] = {}
    for group in groups:
        for sink, one in group.items():
            for log in one.get("logs", ()):
                if not log["retired"]:
                    found.setdefault((log["stream"], log["partition"]), {})[sink] = log["end_offset"]
    return found


def _lags(groups: Groups, origin: str) -> dict[tuple[str, int], dict[str, Any]]:
    """How far a zone's mirrors of `origin` are behind, as the sinks say that lead there."""
    return {
        (row["stream"].partition("@")[0], row["partition"]): row
        for one in _answers(groups)
        for row in one["mirrors"]
        if row["origin"] == origin
    }


def _total(account: dict[str, Any] | None, name: str) -> int:
    """Of all runs."""
    if account is None or not account["run"]:
        return 0
    return int(account[name]) + int(account["before"][name])


def _before(account: dict[str, Any] | None, line: dict[str, Any]) -> int:
    """What the worker had spent there before this run."""
    if account is None or not account["run"]:
        return 0
    before = sum(int(account["before"][name]) for name in _SPENT)
    if account["run"] == line["run"] or account["base"] >= line["base"]:
        return before
    return before + sum(int(account[name]) for name in _SPENT)


def _through(account: dict[str, Any] | None, line: dict[str, Any]) -> int:
    """What of the run is there."""
    return int(line["next"]) - 1 - _lacking(account, line["run"], line["base"], line["next"] - 1)


def _lacking(account: dict[str, Any] | None, run: str, base: int, last: int) -> int:
    """How many sequences of the run are not there; of a run that was followed by another, gaps tell."""
    if account is None or not account["run"]:
        return last - base
    if account["run"] == run:
        return max(0, last - int(account["last"]))
    return 0 if int(account["base"]) >= base else last - base
