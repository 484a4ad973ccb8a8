"""The keeper: what beacons name against what accounts hold, look by look; no clock but the numbers given to it."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from protocol.coverage import ALTERED, GAP, LATE, LOST, REPAIRED, UNCLOSED, Beacon, Row, Summary, Uncovered
from protocol.gaps import GATEWAY_LOST
from protocol.gaps import LOST as LOST_RECORD
from sinkd.core.keeping import Close, Keeper, Orders, Reached, Record, Report
from sinkd.core.speakers import REORDERED, REPLAYED, TOO_MANY, UNREADABLE, BeaconRefused
from sinkd.core.summaries import facts as facts_of
from sinkd.core.summaries import missing, restore, states, summaries

GRACE_MS = 10_000
LOG = "aa" * 16
RUNS = {name: bytes([number] * 8) for number, name in enumerate("ABC", 1)}


def facts(keeper: Keeper, now_ms: int, known: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    return facts_of(keeper, now_ms, known)


def chain_at(sequence: int) -> bytes:
    return sequence.to_bytes(32)


def row(run: str, base: int, acknowledged: int, named: int, **fields: Any) -> Row:
    """Of which all that is acknowledged is held, with a mark at it; `named` is the last one taken in."""
    given = {
        "stream": "orders", "incarnation": LOG, "partition": 0, "run": RUNS[run].hex() if run in RUNS else run,
        "base": base, "acknowledged": acknowledged, "mark": acknowledged, "chain": chain_at(acknowledged).hex(),
        "next": named + 1, "held": acknowledged - base, "batches": 1, "bytes": 100,
    }  # fmt: skip
    return Row(**given | fields)


def account(run: str, base: int, last: int, *recorded: tuple[str, str], **fields: Any) -> Reached:
    marks = [(at, chain_at(at)) for at in range(max(base + 1, last - 15), last + 1)]
    given = {"run": RUNS[run], "base": base, "chain": chain_at(last), "marks": marks, "ended": [(b"", base)]}
    return Reached(0, last, **given | fields, recorded=frozenset((RUNS[name], why) for name, why in recorded))


class World:
    """A keeper that is looked at every second; what it reports is told to it, as the log of a zone does."""

    def __init__(self) -> None:
        self.keeper = Keeper("acme", "eu", "s1", GRACE_MS)
        self.now_ms = 1_000_000
        self.well_since_ms = 0
        self.number = 0
        self.process = "p1"
        self.has: Reached | None = None
        self.last: dict[str, Any] = {}
        self.orders = Orders([], [], [])
        self.reports: list[tuple[str, str, int, int, bool]] = []
        self.ids: set[str] = set()
        self.closes: list[Close] = []
        self.records: list[Record] = []

    def say(self, *rows: Row, **fields: Any) -> None:
        self.number += 1
        self.keeper.hear(self.beacon(*rows, **fields), self.now_ms, signed=True)

    def beacon(self, *rows: Row, **fields: Any) -> Beacon:
        given = {
            "mesh": "acme", "zone": "eu", "node": "gw1", "worker": 0, "process": self.process, "number": self.number,
            "time": self.now_ms, "rows": rows,
        }  # fmt: skip
        return Beacon(**given | fields)

    def reached(self, node: str, worker: int, incarnation: str, partition: int) -> Reached | None:
        assert (node, incarnation, partition) == ("gw1", LOG, 0)
        return self.has

    def look(self) -> Orders:
        self.orders = self.keeper.look(self.now_ms, self.reached, self.well_since_ms)
        for report in self.orders.reports:
            self.tell(report)
        self.closes += self.orders.closes
        self.records += [one for one in self.orders.records if one not in self.records]
        return self.orders

    def tell(self, report: Report) -> None:
        assert report.id not in self.ids, f"twice: {report.id}"
        self.ids.add(report.id)
        told = report.report
        assert told.events == told.last - told.first + 1
        self.reports.append((report.kind, told.why, told.first, told.last, told.recorded))
        self.keeper.told(report.kind, told)

    def pass_by(self, seconds: int, *rows: Row, speaks: bool = True, **fields: Any) -> None:
        for _ in range(seconds):
            self.now_ms += 1_000
            if speaks:
                self.say(*rows, **fields)
            self.look()

    @property
    def open(self) -> list[tuple[str, int, int]]:
        return sorted((gap.why, gap.first, gap.last) for gap in self.keeper.open.values())


@pytest.fixture
def world() -> World:
    return World()


# -- a gateway that goes on -------------------------------------------------------------------------------------------


def test_what_is_there_in_time_is_nothing_to_speak_of(world: World) -> None:
    for named in range(10, 100, 10):
        world.has = account("A", 0, named)
        world.pass_by(1, row("A", 0, named - 5, named))
    assert (world.open, world.reports, world.closes) == ([], [], [])
    (told,) = facts(world.keeper, world.now_ms)["beacons"].values()
    assert told["rows"][0]["verified"] == 85
    assert told["state"] == "speaks"


def test_what_is_late_is_reported_within_the_grace_asked_for_again_and_repaired(world: World) -> None:
    world.has = account("A", 0, 10)
    world.pass_by(9, row("A", 0, 10, 20))
    assert (world.open, world.closes) == ([], [])
    world.pass_by(2, row("A", 0, 10, 20))
    assert world.open == [(LATE, 11, 20)]
    assert world.closes == []  # it is told first
    world.pass_by(1, row("A", 0, 10, 20))
    assert world.closes == [Close(0, "gw1", 0)]
    world.pass_by(3, row("A", 0, 10, 20))
    assert world.closes == [Close(0, "gw1", 0)]  # not again at once
    world.has = account("A", 0, 20)
    world.pass_by(1, row("A", 0, 20, 20))
    assert world.open == []
    assert world.reports == [(GAP, LATE, 11, 20, False), (REPAIRED, LATE, 11, 20, False)]
    assert world.orders.reports[0].report.detail == ""


def test_what_nobody_can_report_is_asked_for_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of reports is led by another sink, and that one does not write."""
    monkeypatch.setattr(world, "tell", lambda report: None)
    world.has = account("A", 0, 10)
    world.pass_by(14, row("A", 0, 10, 20))
    assert (world.open, world.closes) == ([(LATE, 11, 20)], [])
    world.pass_by(3, row("A", 0, 10, 20))
    assert world.closes == [Close(0, "gw1", 0)]


def test_a_link_is_closed_once_in_a_grace_and_not_while_events_come(world: World) -> None:
    world.has = account("A", 0, 10)
    world.pass_by(40, row("A", 0, 10, 20))
    assert len(world.closes) == 3
    world.closes.clear()
    for last in range(11, 20):
        world.has = account("A", 0, last)
        world.pass_by(3, row("A", 0, 10, 20))
    assert world.closes == []
    assert world.reports == [(GAP, LATE, 11, 20, False)]  # one report, though it shrinks
    assert world.open == [(LATE, 20, 20)]


def test_what_was_acknowledged_and_is_not_there_is_lost_and_recorded_when_its_run_is_over(world: World) -> None:
    world.has = account("A", 0, 10)
    world.pass_by(12, row("A", 0, 20, 30))
    assert world.open == [(LATE, 21, 30), (LOST, 11, 20)]
    assert not world.orders.records
    assert world.closes == [Close(0, "gw1", 0)]
    world.has = account("B", 10, 15)  # it has opened anew, and what waited came in another run
    world.pass_by(1, row("A", 0, 20, 30, is_over=True), row("B", 10, 15, 15))
    assert world.open == [(LOST, 11, 20)]
    (record,) = world.orders.records
    assert (record.run, record.reason, record.events) == (RUNS["A"].hex(), LOST_RECORD, 10)
    assert (record.node, record.stream, record.incarnation, record.partition) == ("gw1", "orders", LOG, 0)
    world.has = account("B", 10, 15, ("A", LOST_RECORD))
    world.pass_by(3, row("B", 10, 15, 15))
    assert (world.open, world.orders.records) == ([], [])
    assert world.reports == [(GAP, LOST, 11, 20, False), (GAP, LATE, 21, 30, False), (GAP, LOST, 11, 20, True)]
    assert world.keeper.reported == {}


def test_a_run_is_judged_by_the_one_behind_it_also_when_that_is_over_by_then(world: World) -> None:
    world.has = account("A", 0, 10)
    world.pass_by(1, row("A", 0, 10, 10))
    ended = [(b"", 0), (RUNS["A"], 10), (RUNS["B"], 20)]
    world.has = account("C", 20, 21, ended=ended)  # 11 to 20 of A were lost, and 21 to 25 of B, which began at 11
    world.pass_by(1, row("A", 0, 20, 20, is_over=True), row("B", 10, 25, 25, is_over=True), row("C", 20, 21, 21))
    world.pass_by(1, row("C", 20, 21, 21))
    assert world.open == [(LOST, 11, 20), (LOST, 21, 25)]
    assert sorted((each.run, each.events) for each in world.orders.records) == [
        (RUNS["A"].hex(), 10), (RUNS["B"].hex(), 5),
    ]  # fmt: skip


def test_a_run_that_no_beacon_has_named_may_have_been_in_between(world: World) -> None:
    world.has = account("A", 0, 20)
    world.pass_by(1, row("A", 0, 20, 20))
    world.pass_by(1, row("A", 0, 25, 25))  # so it was told, and the log ends at 20; then 25 came in B, which was short
    world.process, world.number = "p2", 0
    world.has = account("C", 28, 29, ended=[(RUNS["A"], 20), (RUNS["B"], 28)])
    world.pass_by(20, row("C", 28, 29, 29))
    assert [(record.reason, record.run, record.events) for record in world.records] == [(LOST, RUNS["A"].hex(), 5)]


def test_of_a_run_of_which_nothing_ever_came_all_is_missing(world: World) -> None:
    world.has = account("A", 0, 10)
    world.pass_by(1, row("A", 0, 10, 10))
    world.process, world.number = "p2", 0
    world.say(row("B", 10, 10, 15))
    world.process, world.number = "p3", 0
    world.has = account("C", 30, 31, ended=[(b"", 0), (RUNS["A"], 10), (b"D" * 8, 30)])
    world.pass_by(20, row("C", 30, 31, 31))
    assert [(each.reason, each.run, each.events) for each in world.records] == [(GATEWAY_LOST, RUNS["B"].hex(), 5)]


def test_what_was_before_all_that_is_known_is_not_missed(world: World) -> None:
    """Accounts begin anew where a stream is covered again, and of many runs the oldest are forgotten."""
    world.say(row("A", 0, 10, 15))
    world.process, world.number = "p2", 0
    world.has = account("C", 30, 31, ended=[(RUNS["B"], 30)])
    world.pass_by(20, row("C", 30, 31, 31))
    assert (world.records, world.reports) == ([], [])


def test_another_chain_at_a_mark_is_altered_for_good(world: World) -> None:
    world.has = account("A", 0, 20)
    world.pass_by(2, row("A", 0, 10, 20))
    world.pass_by(20, row("A", 0, 20, 20, chain=chain_at(7).hex()))
    assert world.open == [(ALTERED, 11, 20)]
    assert world.reports == [(GAP, ALTERED, 11, 20, False)]
    assert (world.closes, world.orders.records) == ([], [])
    assert world.keeper.open[next(iter(world.keeper.open))].detail == "up to sequence 10 they have the same"


def test_a_mark_that_the_sink_no_longer_knows_proves_nothing(world: World) -> None:
    world.has = account("A", 0, 100, marks=[])
    world.pass_by(2, row("A", 0, 10, 100, chain=chain_at(7).hex()))
    assert world.open == []
    (told,) = facts(world.keeper, world.now_ms)["beacons"].values()
    assert told["rows"][0]["verified"] == 0


def test_what_its_publishers_were_refused_is_named_no_more(world: World) -> None:
    world.has = account("A", 0, 10)
    world.pass_by(12, row("A", 0, 10, 20))
    world.pass_by(1, row("A", 0, 10, 10))
    assert world.open == []
    assert world.reports == [(GAP, LATE, 11, 20, False), (REPAIRED, LATE, 11, 20, False)]
    assert world.orders.reports[0].report.detail.startswith("its gateway names it no more")


def test_a_stream_that_is_gone_is_not_missed(world: World) -> None:
    world.has = account("A", 0, 10)
    world.pass_by(12, row("A", 0, 10, 20))
    world.has = None
    world.pass_by(3, row("A", 0, 10, 20))
    assert (world.open, world.keeper.reported) == ([], {})
    assert world.reports == [(GAP, LATE, 11, 20, False)]


def test_while_beacons_cannot_come_nothing_counts_as_late_or_silent(world: World) -> None:
    world.has = account("A", 0, 10)
    world.say(row("A", 0, 10, 20))
    world.now_ms += 60_000
    world.well_since_ms = world.now_ms
    world.pass_by(9, speaks=False)
    assert (world.open, world.reports) == ([], [])
    world.pass_by(2, speaks=False)
    assert world.open == [(UNCLOSED, 11, 20)]


# -- gateways that end ------------------------------------------------------------------------------------------------


def test_one_that_is_silent_is_unclosed_with_a_bound_and_is_waited_for(world: World) -> None:
    world.has = account("A", 0, 10)
    world.say(row("A", 0, 10, 25))
    world.pass_by(11, speaks=False)
    assert world.open == [(UNCLOSED, 11, 25)]
    world.pass_by(600, speaks=False)
    assert world.orders.records == []
    assert world.reports == [(GAP, UNCLOSED, 11, 25, False)]
    world.has = account("A", 0, 30)  # it was only cut off
    world.pass_by(1, row("A", 0, 25, 30))
    assert world.open == []
    assert world.reports[1:] == [(REPAIRED, UNCLOSED, 11, 25, False)]


def test_one_that_died_and_came_back_without_a_spool_has_lost_what_it_had(world: World) -> None:
    world.has = account("A", 0, 10)
    world.say(row("A", 0, 10, 25))
    world.process, world.number = "p2", 0
    world.pass_by(1)  # the new process has published nothing yet
    assert (world.open, world.orders.records) == ([], [])
    world.pass_by(2)
    assert world.open == [(UNCLOSED, 11, 25)]
    world.pass_by(6)
    assert world.orders.records == []
    world.pass_by(3)
    (record,) = world.orders.records
    assert (record.run, record.reason, record.events) == (RUNS["A"].hex(), GATEWAY_LOST, 15)
    world.has = account("A", 0, 10, ("A", GATEWAY_LOST))
    world.pass_by(3)
    assert (world.open, world.orders.records) == ([], [])
    assert world.reports == [(GAP, UNCLOSED, 11, 25, False), (GAP, UNCLOSED, 11, 25, True)]
    (told,) = facts(world.keeper, world.now_ms)["beacons"].values()
    assert (told["unclosed"], told["process"], told["rows"]) == (1, "p2", [])


def test_when_the_next_run_has_begun_it_is_known_at_once(world: World) -> None:
    world.has = account("A", 0, 10)
    world.say(row("A", 0, 10, 25))
    world.process, world.number = "p2", 0
    world.has = account("B", 12, 14, ended=[(b"", 0), (RUNS["A"], 12)])  # two more had come
    world.pass_by(1, row("B", 12, 14, 14))
    assert world.open == [(UNCLOSED, 13, 25)]
    assert [record.events for record in world.orders.records] == [13]


def test_with_a_spool_it_comes_again(world: World) -> None:
    world.has = account("A", 0, 10)
    world.say(row("A", 0, 10, 25), spool=True)
    world.process, world.number = "p2", 0
    world.pass_by(12, spool=True)
    assert (world.open, world.orders.records) == ([(UNCLOSED, 11, 25)], [])
    world.has = account("B", 10, 25)
    world.pass_by(2, row("B", 10, 25, 25), spool=True)
    assert world.open == []
    assert world.reports == [(GAP, UNCLOSED, 11, 25, False), (REPAIRED, UNCLOSED, 11, 25, False)]


def test_one_that_says_its_last_word_is_closed(world: World) -> None:
    world.has = account("A", 0, 25)
    world.say(row("A", 0, 25, 25), closing=True, whole=True)
    world.pass_by(60, speaks=False)
    assert (world.open, world.reports) == ([], [])
    (told,) = facts(world.keeper, world.now_ms)["beacons"].values()
    assert told["state"] == "closed"


def test_what_it_could_not_bring_in_before_its_last_word_is_recorded(world: World) -> None:
    world.has = account("A", 0, 20)
    world.say(row("A", 0, 20, 25), closing=True, whole=True)
    world.pass_by(3, speaks=False)
    assert (world.open, world.orders.records) == ([(UNCLOSED, 21, 25)], [])
    world.pass_by(8, speaks=False)
    assert [(record.reason, record.events) for record in world.orders.records] == [(GATEWAY_LOST, 5)]


def test_one_that_is_in_the_configuration_no_more_is_removed_when_it_is_silent(world: World) -> None:
    world.has = account("A", 0, 10)
    world.say(row("A", 0, 10, 25))
    (told,) = facts(world.keeper, world.now_ms, lambda name: False)["beacons"].values()
    assert told["state"] == "speaks"
    world.pass_by(12, speaks=False)
    (told,) = facts(world.keeper, world.now_ms, lambda name: name != "gw1")["beacons"].values()
    assert told["state"] == "removed"
    assert states(world.keeper, world.now_ms, lambda name: False) == {"removed": 1}
    assert world.open == [(UNCLOSED, 11, 25)]
    assert missing(world.keeper, world.now_ms, lambda name: False) == {}
    assert missing(world.keeper, world.now_ms, lambda name: True) == {UNCLOSED: 15}


def test_two_workers_speak_for_themselves(world: World) -> None:
    world.has = account("A", 0, 10)
    world.pass_by(3, row("A", 0, 10, 10))
    world.keeper.hear(world.beacon(row("A", 0, 10, 20), worker=1, number=1), world.now_ms, signed=True)
    for _ in range(11):
        world.pass_by(1, row("A", 0, 10, 10))
    assert [(key.worker, key.why) for key in world.keeper.open] == [(1, UNCLOSED)]
    told = facts(world.keeper, world.now_ms)["beacons"]
    assert {name: one["state"] for name, one in told.items()} == {"gw1/0": "speaks", "gw1/1": "silent"}


# -- beacons that count for nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"number": 3}, REPLAYED),
        ({"number": 2}, REPLAYED),
        ({"number": 4}, REORDERED),
        ({"process": "p0", "number": 9}, REPLAYED),
        ({"number": 6, "rows": (row("A", 5, 4, 10),)}, UNREADABLE),
        ({"number": 6, "rows": (row("A", 0, 10, 9),)}, UNREADABLE),
        ({"number": 6, "rows": (row("A", 0, 10, 20, mark=11),)}, UNREADABLE),
        ({"number": 6, "rows": (row("A", 0, 10, 20, held=9),)}, UNREADABLE),
        ({"number": 6, "rows": (row("zz", 0, 10, 20),)}, UNREADABLE),
        ({"number": 6, "rows": (row("A", 0, 10, 20, chain="0"),)}, UNREADABLE),
    ],
)
def test_what_is_replayed_or_out_of_order_or_contradicts_itself_is_refused_by_name(
    world: World, fields: dict[str, Any], reason: str
) -> None:
    world.has = account("A", 0, 10)
    world.process = "p0"
    world.say(row("A", 0, 5, 10))
    world.process, world.number = "p1", 2
    for number in (2, 3, 5):
        world.number = number - 1
        world.say(row("A", 0, 10, 10))
    before = facts(world.keeper, world.now_ms)
    beacon = msgspec.structs.replace(world.beacon(row("A", 0, 10, 99)), **fields)
    with pytest.raises(BeaconRefused) as refused:
        world.keeper.hear(beacon, world.now_ms, signed=True)
    assert refused.value.reason == reason
    assert facts(world.keeper, world.now_ms) == before


def test_speakers_and_lines_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkd.core.speakers.COVERAGE_SPEAKERS_MAX", 2)
    monkeypatch.setattr("sinkd.core.speakers.COVERAGE_LINES_MAX", 3)
    world.has = account("A", 0, 10)
    world.say(row("A", 0, 10, 10))
    world.say(node="gw2", closing=True)
    world.say(node="gw3")  # gw2 has ended, and nothing of it is missing
    assert [node for node, _ in world.keeper.speakers.by_name] == ["gw1", "gw3"]
    for fields in ({"node": "gw4"}, {"rows": tuple(row("A", 0, 1, 1, partition=number) for number in range(4))}):
        with pytest.raises(BeaconRefused) as refused:
            world.say(**fields)
        assert refused.value.reason == TOO_MANY


# -- starting anew ----------------------------------------------------------------------------------------------------


def test_a_keeper_goes_on_from_summaries(world: World) -> None:
    """What it reported is not reported again; what it waits for, it waits for still."""
    world.has = account("A", 0, 10)
    uncovered = (Uncovered(why="no stream", events=3, bytes=30),)
    world.say(row("A", 0, 10, 25), uncovered=uncovered)
    world.pass_by(12, speaks=False)
    world.process, world.number = "p2", 0
    world.pass_by(1, spool=False)
    assert world.open == [(UNCLOSED, 11, 25)]
    (summary,) = summaries(world.keeper, world.now_ms)
    read = msgspec.json.decode(msgspec.json.encode(summary), type=Summary)
    assert read == summary
    known = facts(world.keeper, world.now_ms)["beacons"]
    world.keeper = Keeper("acme", "eu", "s2", GRACE_MS)
    restore(world.keeper, read)
    restore(world.keeper, read)  # what is known already is not put back
    for line in world.keeper.speakers.by_name["gw1", 0].all_lines():
        line.through = line.verified = 10
    assert facts(world.keeper, world.now_ms)["beacons"] == known
    world.well_since_ms = world.now_ms
    world.pass_by(12)
    assert [record.events for record in world.orders.records] == [15]
    world.has = account("A", 0, 10, ("A", GATEWAY_LOST))
    world.pass_by(2)
    assert world.reports == [(GAP, UNCLOSED, 11, 25, False), (GAP, UNCLOSED, 11, 25, True)]
    with pytest.raises(BeaconRefused):
        world.say(process="p1", number=50)


def test_what_was_altered_stays_so_after_a_start(world: World) -> None:
    world.has = account("A", 0, 10)
    world.pass_by(11, row("A", 0, 10, 10, chain=chain_at(7).hex()))
    (summary,) = summaries(world.keeper, world.now_ms)
    world.keeper = Keeper("acme", "eu", "s2", GRACE_MS)
    restore(world.keeper, summary)
    world.has = account("B", 10, 12)
    world.pass_by(12, row("B", 10, 12, 12))
    assert world.open == [(ALTERED, 1, 10)]
    world.has = None
    world.pass_by(1, row("B", 10, 12, 12))
    assert world.open == []


def test_a_summary_adds_to_what_was_heard_since_the_start(world: World) -> None:
    """The log is read from some time on, and a beacon may stand there before the first summary."""
    world.has = account("A", 0, 10)
    world.say(row("A", 0, 10, 25))
    world.process, world.number = "p2", 5
    world.pass_by(3, row("B", 12, 14, 14))
    (summary,) = summaries(world.keeper, world.now_ms)
    world.keeper = Keeper("acme", "eu", "s2", GRACE_MS)
    world.say(row("B", 12, 14, 14))
    restore(world.keeper, summary)
    restore(world.keeper, summary)
    speaker = world.keeper.speakers.by_name["gw1", 0]
    assert [line.row.run for line in speaker.all_lines()] == [RUNS["A"].hex(), RUNS["B"].hex()]
    assert (speaker.processes, speaker.unclosed) == (["p1"], 1)
    world.has = account("B", 12, 14)
    world.pass_by(1, row("B", 12, 14, 14))
    assert [record.events for record in world.orders.records] == [13]


@pytest.mark.parametrize("field", ["how", "row"])
def test_a_summary_that_cannot_be_is_refused(world: World, field: str) -> None:
    world.has = account("A", 0, 10)
    world.say(row("A", 0, 10, 25))
    world.process, world.number = "p2", 0
    world.say()
    (summary,) = summaries(world.keeper, world.now_ms)
    (ended,) = summary.ended
    wrong = {"how": "otherwise"} if field == "how" else {"row": row("no", 0, 10, 25)}
    bad = msgspec.structs.replace(summary, ended=(msgspec.structs.replace(ended, **wrong),))
    with pytest.raises(BeaconRefused):
        restore(Keeper("acme", "eu", "s2", GRACE_MS), bad)
