"""What `mesh coverage` makes of what sinks say: rows, problems, and what only needs a moment."""

from typing import Any

import pytest

from mesh.covering import Groups, View, Wanted, look, streams_in

RUN, NEXT_RUN = "aa" * 8, "bb" * 8


def account(sink_last: int, **fields: Any) -> dict[str, Any]:
    nothing = {"held": 0, "batches": 0, "size_bytes": 0, "duplicates": 0, "refused": 0, "gaps": 0}
    return {
        "stream": "orders", "incarnation": "cc", "partition": 0, "node": "gw1", "worker": 0, "last": sink_last,
        "run": RUN, "base": 0, **nothing, "held": sink_last, "before": nothing, "lost": 0, "recorded": [],
    } | fields  # fmt: skip


def line(named: int, acknowledged: int, **fields: Any) -> dict[str, Any]:
    return {
        "stream": "orders", "incarnation": "cc", "partition": 0, "run": RUN, "base": 0, "acknowledged": acknowledged,
        "next": named + 1, "over": "", "verified": acknowledged, "through": acknowledged,
    } | fields  # fmt: skip


def worker(*rows: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "node": "gw1", "worker": 0, "state": "speaks", "silent_ms": 100, "signed": True, "spool": False, "unclosed": 0,
        "refused": {}, "uncovered": [], "rows": list(rows), "time_ms": 1, "processes": 0, "told": [],
    } | fields  # fmt: skip


def sink(name: str, *accounts: dict[str, Any], leads: bool = False, **fields: Any) -> dict[str, Any]:
    """One that has heard of a gateway what `workers` say, and of gaps what `gaps` say."""
    end = accounts[0]["last"] if accounts else 0
    log = {"stream": "orders", "partition": 0, "end_offset": fields.pop("end", end), "retired": False}
    covered = {
        "beacons": {f"{each['node']}/{each['worker']}": each for each in fields.pop("workers", [])},
        "gaps": fields.pop("gaps", []), "refused_beacons": {}, "accounts": list(accounts),
        "trees": [{"log": "orders", "incarnation": "cc"}], "leads": leads,
    }  # fmt: skip
    return {"node": name, "logs": [log], "mirrors": [], "coverage": covered, "digests": None} | fields


def mirror_in_us(end: int) -> Groups:
    log = {"stream": "orders@eu", "partition": 0, "end_offset": end, "retired": False}
    lag = {"origin": "eu", "stream": "orders", "partition": 0, "lag_events": 3, "lag_seconds": 1.5, "state": "tail"}
    coverage = {"beacons": {}, "gaps": [], "refused_beacons": {}, "accounts": [], "trees": [{}], "leads": True}
    one = {"node": "u1", "logs": [log], "mirrors": [lag], "coverage": coverage, "digests": None}
    return [{"u1": one}]


def looked(*sinks: dict[str, Any], us: Groups | None = None, wanted: Wanted | None = None, **options: Any) -> View:
    told: dict[str, Groups] = {"eu": [{each["node"]: each for each in sinks}]}
    if us is not None:
        told["us"] = us
    settings = {"stream": None, "known_gaps": False} | options
    stream = settings.pop("stream")
    return look(told, ["eu"], stream, lambda stream, zone: stream == "orders", wanted, **settings)


def row_of(view: View) -> dict[str, Any]:
    (row,) = view.zones["eu"]["rows"]
    found: dict[str, Any] = row
    return found


def test_what_every_sink_holds_is_covered() -> None:
    said = worker(line(10, 8, verified=8), uncovered=[{"why": "no stream", "events": 2, "bytes": 20}])
    view = looked(sink("s1", account(10), leads=True, workers=[said]), sink("s2", account(10)))
    assert (view.problems, view.open) == ([], [])
    row = row_of(view)
    assert (row["taken_in"], row["acknowledged"], row["under_way"], row["verified"]) == (10, 8, 0, 8)
    assert row["held_by"] == {"s1": 10, "s2": 10}
    assert view.zones["eu"]["uncovered"] == [{"node": "gw1", "worker": 0, "why": "no stream", "events": 2, "bytes": 20}]
    assert view.zones["eu"]["totals"]["taken_in"] == 10


def test_what_is_under_way_needs_a_moment_and_later_events_do_not_prolong_it() -> None:
    first = looked(
        sink("s1", account(7), leads=True, workers=[worker(line(10, 7))]), sink("s2", account(5)), us=mirror_in_us(6)
    )
    assert first.problems == []
    assert first.open == [
        "zone eu: orders/0: 3 events of gw1/0 are under way",
        "zone eu: orders/0: sink s2 lacks 5 events of gw1/0",
        "zone us: orders@eu/0: offsets 6 to 6 are not there",
    ]
    assert (row_of(first)["taken_in"], row_of(first)["under_way"]) == (10, 3)
    later = sink("s1", account(12), leads=True, workers=[worker(line(99, 12))])
    assert looked(later, sink("s2", account(10)), us=mirror_in_us(7), wanted=first.wanted).open == []


def test_copies_of_other_zones_stand_beside_their_lag() -> None:
    view = looked(sink("s1", account(9), leads=True, workers=[worker(line(9, 9))]), us=mirror_in_us(9))
    (log,) = view.zones["eu"]["logs"]
    assert log["copies"] == {"us": {"end_offset": 9, "lag_events": 3, "lag_seconds": 1.5, "state": "tail"}}
    assert view.open == []
    nothing = looked(sink("s1", account(9), leads=True, workers=[worker(line(9, 9))]), us=[{"u1": {"error": "down"}}])
    assert nothing.open == ["zone us: orders@eu/0: there is no mirror, or no sink can be asked"]


def test_all_runs_of_a_worker_count() -> None:
    before = {"held": 5, "batches": 5, "size_bytes": 5, "duplicates": 1, "refused": 2, "gaps": 0}
    has = account(20, base=8, held=12, before=before, lost=4)
    said = worker(line(20, 20, base=8))
    row = row_of(looked(sink("s1", has, leads=True, workers=[said]), known_gaps=True))
    assert (row["taken_in"], row["held"], row["duplicates"], row["refused"], row["lost"]) == (24, 17, 1, 2, 4)
    assert row["acknowledged"] == 20
    new_run = worker(line(23, 20, base=20, run=NEXT_RUN))  # of which nothing has come yet
    row = row_of(looked(sink("s1", has, leads=True, workers=[new_run])))
    assert (row["taken_in"], row["under_way"], row["acknowledged"]) == (27, 3, 20)


LOG = {"stream": "orders", "partition": 0, "end_offset": 10, "retired": False}
GAP = {
    "stream": "orders", "partition": 0, "node": "gw1", "worker": 0, "why": "unclosed", "first": 11, "last": 13,
    "events": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"gaps": [GAP]}, "zone eu: orders/0: unclosed: 3 events of gw1/0 (11 to 13): the gateway ended without"),
        ({"workers": [worker(line(10, 10), state="silent", silent_ms=12_000)]}, "zone eu: gw1/0 is silent for 12 s"),
        ({"workers": []}, "zone eu: orders/0: gw1/0 has written there, and no beacon of it says what it took in"),
        (
            {"digests": {"differing": [
                {"log": "orders@eu", "partition": 0, "node": "u1", "zone": "us", "why": "other roots"}
            ]}},
            "zone eu: orders@eu/0 on sink u1 of zone us differs from s1: other roots",
        ),
        ({"accounts": [account(10, lost=2)]}, "zone eu: orders/0: 2 events of gw1/0 are not held: gap records stand"),
        ({"damaged": ["/x/orders-cc/0/0.segment: damaged at byte 5"]}, "zone eu: sink s1: /x/orders-cc/0/0.segment"),
        ({"suspected": ["orders/0: its root"]}, "zone eu: sink s1: orders/0: its root"),
        ({"logs": [LOG | {"given_up": [[3, 4]]}]}, "zone eu: orders/0: offsets 3 to 4 are damaged on all sinks"),
    ],
)  # fmt: skip
def test_what_is_not_covered_is_a_line(changed: dict[str, Any], problem: str) -> None:
    accounts = changed.pop("accounts", [account(10)])
    one = sink("s1", *accounts, leads=True, **({"workers": [worker(line(10, 10))]} | changed))
    (found,) = looked(one).problems
    assert found.startswith(problem)


def test_gap_records_that_are_known_are_no_problem() -> None:
    has = account(10, lost=2, gaps=1, held=9)
    one = sink("s1", has, leads=True, workers=[worker(line(10, 10))])
    assert len(looked(one).problems) == 1
    assert looked(one, known_gaps=True).problems == []


def test_what_was_given_up_is_told_of_its_log_and_may_be_known() -> None:
    spoilt = sink("s1", account(10), leads=True, workers=[worker(line(10, 10))], logs=[LOG | {"given_up": [[3, 4]]}])
    (log,) = looked(spoilt).zones["eu"]["logs"]
    assert log["damaged"] == [(3, 4)]
    assert looked(spoilt, known_gaps=True).problems == []
    other = sink("s1", account(10), leads=True, workers=[worker(line(10, 10))], damaged=["/x/bills-cc/0/0.segment: x"])
    assert looked(other, stream="orders").problems == []
    assert len(looked(other).problems) == 1


def test_what_is_unclosed_of_a_gateway_that_was_removed_is_a_known_gap() -> None:
    removed = worker(line(13, 10), state="removed", silent_ms=99_000)
    one = sink("s1", account(13), leads=True, workers=[removed], gaps=[GAP])
    assert len(looked(one).problems) == 1
    assert looked(one, known_gaps=True).problems == []


def test_a_sink_that_cannot_be_asked_is_a_problem_and_others_are_asked() -> None:
    one = sink("s1", account(10), leads=True, workers=[worker(line(10, 10))])
    view = looked(one, {"node": "s2", "error": "Connection refused"})
    assert view.problems == ["zone eu: sink s2 cannot be asked what it holds: Connection refused"]
    assert row_of(view)["held_by"] == {"s1": 10}
    all_down = looked({"node": "s1", "error": "Connection refused"})
    assert len(all_down.problems) == 2
    assert all_down.zones["eu"]["rows"] == []


def test_what_sinks_write_themselves_needs_no_beacon() -> None:
    one = sink("s1", account(10, node="s1"), leads=True)
    assert looked(one).problems == []
    assert row_of(looked(one))["by_sink"] is True


def test_a_gateway_that_does_not_say_what_it_has_written_gets_a_moment() -> None:
    """It may have begun to just now. Of what its earlier processes wrote it need not speak."""
    one = sink("s1", account(10), leads=True, workers=[worker()])
    assert looked(one).open == ["zone eu: orders/0: gw1/0 has written there, and its beacons do not say so"]
    for fields in ({"processes": 1}, {"told": ["orders/0"]}):
        assert looked(sink("s1", account(10), leads=True, workers=[worker(**fields)])).open == []


def test_what_does_not_fit_into_an_answer_is_not_covered() -> None:
    one = sink("s1", account(10), leads=True, workers=[worker(line(10, 10))])
    one["coverage"]["rows_left_off"] = 7
    assert len(looked(one).problems) == 1


def test_one_stream_alone() -> None:
    one = sink("s1", account(10), account(4, stream="bills"), leads=True, workers=[worker(line(10, 10))])
    assert [row["stream"] for row in looked(one, stream="orders").zones["eu"]["rows"]] == ["orders"]
    assert looked(one, stream="orders").problems == []
    assert streams_in({"eu": [{"s1": one}], "us": mirror_in_us(1)}) == ["orders"]


def test_the_sink_that_reports_is_believed() -> None:
    behind = sink("s2", account(10), workers=[worker(line(3, 3))])
    leads = sink("s1", account(10), leads=True, workers=[worker(line(10, 10))])
    assert row_of(looked(behind, leads))["acknowledged"] == 10
