"""The audit stream: what is summed up, what sinks write of what they have seen change, and that it is there once."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import nats
import pytest
from support.audits import audited, until_audited
from support.sinks import LinkedGateway, SinkZone, zone_with_gateway

from protocol import audit, config, link
from protocol.limits import AUDIT_NOTE_MS_MAX, AUDIT_SOURCES_MAX, AUDIT_WINDOW_MS
from sinkd.core.raft_messages import Note

# -- the bound --------------------------------------------------------------------------------------------------------


def event(kind: str = audit.PERMISSION_REFUSED, **fields: Any) -> audit.Event:
    return audit.Event(**{"time": 7, "zone": "eu", "node": "gw1", "kind": kind, "source": "10.0.0.1"} | fields)


def test_the_first_of_a_source_is_written_and_what_it_repeats_when_the_minute_is_over() -> None:
    summary = audit.Summary()
    assert summary.note(event(what="a"), 0) == event(what="a")
    assert [summary.note(event(what=what, time=8), 10) for what in "bc"] == [None, None]
    assert list(summary.due(AUDIT_WINDOW_MS - 1)) == []
    assert list(summary.due(AUDIT_WINDOW_MS)) == [event(what="c", time=8, times=2)]
    assert summary.note(event(what="d"), AUDIT_WINDOW_MS + 1) is None  # it goes on in the next minute
    assert list(summary.due(2 * AUDIT_WINDOW_MS)) == [event(what="d", times=1)]
    assert list(summary.due(3 * AUDIT_WINDOW_MS)) == []  # a minute without it: the source is forgotten
    assert not summary.is_open
    assert summary.note(event(what="e"), 3 * AUDIT_WINDOW_MS) == event(what="e")
    assert summary.summed == 3


def test_sources_differ_by_kind_address_and_whom_they_have_proven_to_be() -> None:
    summary = audit.Summary()
    written = [
        event(), event(audit.HISTORY_REFUSED), event(source="10.0.0.2"), event(user="a"), event(user="b"),
        event(user="a", account="ACME"), event(audit.AUTHENTICATION_FAILED, user="c"),
    ]  # fmt: skip
    assert [summary.note(each, 0) for each in written] == written
    assert summary.note(event(audit.AUTHENTICATION_FAILED, user="claims to be another each time"), 0) is None


def test_no_more_sources_than_the_bound_are_told_apart() -> None:
    summary = audit.Summary()
    for number in range(AUDIT_SOURCES_MAX + 5):
        written = summary.note(event(source=str(number)), 0)
        assert (written is not None) == (number < AUDIT_SOURCES_MAX)
    (suppressed,) = summary.due(AUDIT_WINDOW_MS)
    assert (suppressed.kind, suppressed.times, suppressed.source) == (audit.SUPPRESSED, 5, "")
    assert summary.suppressed == 5
    assert summary.note(event(source="another"), AUDIT_WINDOW_MS) is not None


def test_what_is_left_is_summed_up_at_the_end() -> None:
    summary = audit.Summary()
    for _ in range(3):
        summary.note(event(), 0)
    assert list(summary.rest()) == [event(times=2)]
    assert list(summary.rest()) == []


@pytest.mark.parametrize("text", ["\udcff" * 300, "é" * 300, "a\r\nb", "x" * 10_000])
def test_whatever_a_client_says_fits_into_a_field(text: str) -> None:
    written = event(user=audit.plain(text)).encoded()
    assert len(json.loads(written)["user"]) <= 256
    assert msgspec.json.decode(written, type=audit.Event).user == audit.plain(text)


# -- what sinks see ---------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def zone_and_operator(folder, **options) -> AsyncIterator[tuple[SinkZone, nats.NATS]]:
    async with zone_with_gateway(folder, **options) as (zone, _, url):
        operator = await nats.connect(url)
        yield zone, operator
        await operator.close()


async def test_configuration_and_members_are_read_back_and_stand_there_once(tmp_path):
    """... though every sink has seen them, and another one leads each time."""
    async with zone_and_operator(tmp_path) as (zone, operator):
        (changed,) = await until_audited(operator, "configuration_changed")
        assert (changed["what"], changed["why"]) == ("revision 1 is in force, 4 streams", "was 0")
        assert changed["zone"] == "eu"
        assert changed["node"] in zone.names
        for _ in range(2):
            old = zone.leader
            to = next(name for name in zone.names if name != old)
            await ask(zone, old, to)
            await zone.until(lambda to=to: zone.leader == to, "it is handed over")
        moved = await until_audited(operator, "leadership_moved", 2)
        assert moved[1]["what"] == f"group 0: from {old} to {to}"
        assert {each["from"] for each in moved} == {"127.0.0.1"}
        await zone.until(lambda: not any(sink.audit.waiting for sink in zone.sinks.values()), "nothing waits")
        assert await audited(operator, "configuration_changed") == [changed]


async def ask(zone: SinkZone, leader: str, to: str) -> None:
    """As `mesh sinks lead` does, over the leader's link."""
    gateway = await LinkedGateway.of(zone._addresses[leader][0])
    gateway.send(link.Hello("acme", "eu", link.OPERATOR))
    gateway.send(link.Transfer(1, to))
    await asyncio.wait_for(gateway.get(link.Done), 60)
    await gateway.close()


async def test_a_sink_that_is_removed_and_added_is_read_back_with_who_asked(tmp_path):
    async with zone_and_operator(tmp_path) as (zone, operator):
        leader = zone.sinks[zone.leader].links.operator
        gone = next(name for name in zone.names if name != zone.leader)
        await leader.change_members("", gone, "10.0.0.8")
        peer = lambda: next(peer for peer in leader.status()["peers"] if peer["node"] == gone)  # noqa: E731
        await zone.until(lambda: peer().get("lag_entries") == 0 and peer()["phase"] == "replicate", "it is whole")
        await leader.change_members(gone, "", "10.0.0.9")
        removed, added = await until_audited(operator, "membership_changed", 2)
        assert (removed["what"], removed["from"]) == (f"group 0: removed {gone}", "10.0.0.8")
        assert (added["what"], added["from"]) == (f"group 0: added {gone}", "10.0.0.9")


async def test_files_that_are_not_in_force_are_read_back(tmp_path):
    """That of the leader, which has proposed it, and that of a follower, which has told the leader."""
    async with zone_and_operator(tmp_path) as (zone, operator):
        first, second = (name for name in zone.names if name != zone.leader)
        streams = '[streams.orders]\nsubjects = ["orders.>"]\nretention.bytes = "1GiB"'
        split = '[streams.orders]\nsubjects = ["orders.>"]\npartitions = 2'
        await zone.stop(first)
        await zone.start(first, file=zone.file(streams=streams))
        (differs,) = await until_audited(operator, "configuration_differs")
        assert differs["node"] == first
        assert differs["what"] == f"revision 1 of the file of {first}, 1 is in force"
        assert "streams.orders: revision 1, which is in force, has it otherwise" in differs["why"]
        await zone.stop(second)
        await zone.start(second, file=zone.file(revision=2, streams=split))
        (refused,) = await until_audited(operator, "configuration_refused")
        assert refused["node"] == zone.leader
        assert refused["what"] == f"revision 2 of the file of {second}, 1 is in force"
        assert "never changes in place" in refused["why"]


async def test_a_gateway_whose_file_is_older_than_what_is_in_force_reports_it(tmp_path):
    async with zone_with_gateway(tmp_path) as (zone, gateway, url):
        await zone.until(lambda: gateway.outbox.revision == 1, "the gateway knows what is in force")
        assert gateway.not_in_force == []
        first = next(name for name in zone.names if name != zone.leader)
        streams = '[streams.bills]\nsubjects = ["bills.>"]\n[streams.orders]\nsubjects = ["orders.new"]'
        await zone.stop(first)
        await zone.start(first, file=zone.file(revision=2, streams=streams))
        in_force = "revision 2, which is in force, has it"
        problems = [f"streams.bills: {in_force} too", f"streams.orders: {in_force} otherwise"]
        await zone.until(lambda: gateway.not_in_force == problems, "it has noticed")
        operator = await nats.connect(url)
        await zone.until(lambda: gateway.audit.written["configuration_differs"] == 1, "it has written it down")
        told = await until_audited_by(operator, "gw1", "configuration_differs")
        assert (told["what"], told["why"]) == (
            "revision 1 of the file of gw1, 2 is in force",
            "; ".join(problems),
        )
        await operator.close()


async def until_audited_by(operator: nats.NATS, node: str, kind: str) -> dict[str, Any]:
    """The first event of this kind that this node has written."""
    for count in range(1, 10):
        found = [each for each in await until_audited(operator, kind, count) if each["node"] == node]
        if found:
            return found[0]
    raise AssertionError(f"{node} has written none")


async def test_links_that_a_sink_refuses_are_read_back(tmp_path):
    async with zone_and_operator(tmp_path) as (zone, operator):
        for _ in range(3):
            for name in zone.names:
                reader, writer = await asyncio.open_connection("127.0.0.1", zone._addresses[name][0])
                writer.write(b"garbage" * 10)
                await reader.read()
                writer.close()
        events = await until_audited(operator, "link_refused", 3)
        assert {(each["node"], each["from"], each["times"]) for each in events} == {
            (name, "127.0.0.1", 1) for name in zone.names
        }


async def test_notes_wait_for_a_leader_and_are_bounded(tmp_path):
    zone = SinkZone(tmp_path)
    await zone.start("s1")
    try:
        notes = zone.sinks["s1"].audit
        now_ms = zone.sinks["s1"].now_ms()
        for number in range(300):
            notes.take(Note(b"%d" % number, event(time=now_ms).encoded()))
        notes.take(Note(b"old", event(time=now_ms - AUDIT_NOTE_MS_MAX - 1).encoded()))
        notes.take(Note(b"bad", b"{}"))
        assert (notes.waiting, notes.lost) == (256, 44)
    finally:
        await zone.stop()


# -- the stream itself ------------------------------------------------------------------------------------------------


def test_its_retention_is_the_files_to_say_and_nothing_else_of_it() -> None:
    text = '[mesh]\nname = "m"\nmode = "delivery-fabric"\n[zones.z.gateways.g]\nclient = "127.0.0.1:0"\n'
    plain, tuned = (config.parse(text + more, "x").audit for more in ("", '[audit]\nretention = { age = "7d" }'))
    assert (plain.retention_age_ms, plain.retention_bytes) == (365 * 86_400_000, 1 << 30)
    assert (tuned.retention_age_ms, tuned.retention_bytes) == (7 * 86_400_000, 1 << 30)
    assert (plain.subjects, plain.partitions, plain.account) == (("$AUDIT.>",), 1, "$AUDIT")
