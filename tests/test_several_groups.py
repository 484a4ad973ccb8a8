"""Three sinks whose zone has two Raft groups: who has what, and what one group without the other means."""

import asyncio
import json

import pytest
from support.events import fetch, replay
from support.processes import client
from support.sinks import SinkZone, zone_with_gateway

from mesh.commands.failure import Failure
from mesh.commands.sinks import Zone, change, lead
from sinkd.shell import raft

STREAMS = """
[streams.orders]
subjects = ["orders.>"]
partitions = 4
[streams.thin]
subjects = ["thin.>"]
"""
GROUPS = [0, 1, 0, 1]  # of the partitions of `orders`


async def publish(connection, first, count):
    """Events on many subjects, all acknowledged: payload → (partition, offset)."""
    payloads = [b"%d" % number for number in range(first, first + count)]
    answers = await asyncio.gather(
        *(connection.request(f"orders.{number % 50}", payload, timeout=60) for number, payload in enumerate(payloads))
    )
    acks = [json.loads(answer.data) for answer in answers]
    return {payload: (ack["partition"], ack["offset"]) for payload, ack in zip(payloads, acks, strict=True)}


async def are_there(connection, acknowledged):
    for partition in range(4):
        wanted = {offset: payload for payload, (number, offset) in acknowledged.items() if number == partition}
        shown = [event.payload async for event in replay(connection, "orders", partition=partition)]
        assert shown == [wanted[offset] for offset in range(len(wanted))], partition


def streams_of(zone, group):
    """How many streams the leader of the group knows; 0 without one."""
    leader = zone.leader_of(group)
    return len(zone.sinks[leader].replicas[group].machine.state.streams) if leader else 0


async def led(zone):
    """By different sinks, which comes about by itself, and know the streams."""
    await zone.until(lambda: "" != zone.leader_of(0) != zone.leader_of(1) != "", "the leaders are spread")
    await zone.until(lambda: streams_of(zone, 0) and streams_of(zone, 0) == streams_of(zone, 1), "both groups are led")


def said(capsys):
    """What commands have said, without the log."""
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("sink ")]


async def test_each_group_keeps_its_own_partitions_and_all_are_there_after_a_restart(tmp_path):
    async with zone_with_gateway(tmp_path, groups=2, streams=STREAMS) as (zone, _, url):
        async with client(url) as connection:
            await led(zone)
            acknowledged = await publish(connection, 0, 400)
            await are_there(connection, acknowledged)
            await zone.level()
            shown = json.loads((await connection.request("$LOG.METADATA.orders", b"", timeout=60)).data)
            leaders = [row["leader"] for row in shown["streams"][0]["partitions"]]
            assert leaders == [zone.leader_of(group) for group in GROUPS]
            asked = json.dumps({"partitions": [3, 0], "at": "latest"}).encode()
            offsets = json.loads((await connection.request("$LOG.OFFSETS.orders", asked, timeout=60)).data)["offsets"]
            counts = [[number for number, _ in acknowledged.values()].count(partition) for partition in range(4)]
            assert [(row["partition"], row["offset"]) for row in offsets] == [(3, counts[3]), (0, counts[0])]
            await zone.stop()
            for name in zone.names:
                for group, folder in enumerate((tmp_path / name, tmp_path / name / "group-1")):
                    partitions = {int(path.name) for path in folder.glob("log/orders-*/*")}
                    assert partitions == {number for number in range(4) if GROUPS[number] == group}
            await zone.start()
            await led(zone)
            acknowledged |= await publish(connection, 400, 100)
            await are_there(connection, acknowledged)
        assert len({sink.identity.group for sink in zone.sinks.values()}) == 1
        assert len({replica.folder.identity.group for sink in zone.sinks.values() for replica in sink.replicas}) == 2


async def test_a_gateway_with_an_older_file_reaches_all_groups(tmp_path):
    options = {"groups": 2, "streams": STREAMS, "groups_of_gateway": 1}
    async with zone_with_gateway(tmp_path, **options) as (zone, gateway, url), client(url) as connection:
        await led(zone)
        acknowledged = await publish(connection, 0, 100)
        assert {partition for partition, _ in acknowledged.values()} == {0, 1, 2, 3}
        assert [each.sink for each in gateway.links] == [zone.leader_of(group) for group in (0, 1)]


async def test_a_leader_that_goes_holds_up_its_own_group_alone(tmp_path, monkeypatch):
    async with (
        zone_with_gateway(tmp_path, groups=2, streams=STREAMS) as (zone, gateway, url),
        client(url) as connection,
    ):
        await led(zone)
        acknowledged = await publish(connection, 0, 100)
        gone = zone.leader_of(1)
        await asyncio.wait_for(gateway.linked(), 60)
        monkeypatch.setattr(raft, "ELECTION_S_MIN", 5.0)  # all run in one process: that this is held up for a moment
        monkeypatch.setattr(raft, "ELECTION_S_MAX", 10.0)  # is no leader's silence
        leads, connects = zone.leader, gateway.links[0].connects
        term = zone.sinks[leads].group.term
        more, _ = await asyncio.gather(publish(connection, 100, 300), zone.stop(gone))
        acknowledged |= more | await publish(connection, 400, 50)
        await are_there(connection, acknowledged)
        assert zone.leader_of(1) not in ("", gone)
        assert (zone.leader, zone.sinks[leads].group.term, gateway.links[0].connects) == (leads, term, connects)


async def test_leaders_are_spread_anew_when_a_sink_has_come_back(tmp_path):
    """A rolling restart would pile them up. Until then an operator's choice stands."""
    async with zone_with_gateway(tmp_path, groups=2, streams=STREAMS) as (zone, _, _):
        await led(zone)
        chosen = zone.leader_of(0)
        replica = zone.sinks[chosen].replicas[1]
        looked_at = replica._spread_at  # before it leads: it may look at once
        await lead(Zone(zone.file(), "eu", 2.0), chosen, 1)
        await zone.until(lambda: replica._spread_at != looked_at, "it was looked whether another should lead")
        assert zone.leader_of(1) == chosen
        other = next(name for name in zone.names if name != chosen)
        await zone.stop(other)
        assert (zone.leader_of(0), zone.leader_of(1)) == (chosen, chosen)
        await zone.start(other)
        await led(zone)
        assert zone.leader_of(0) == chosen


async def test_a_group_goes_elsewhere_when_its_leader_comes_to_lead_another(tmp_path):
    async with zone_with_gateway(tmp_path, groups=2, streams=STREAMS) as (zone, _, _):
        await led(zone)
        replica = zone.sinks[zone.leader_of(1)].replicas[1]
        replica.group.member._is_transferred = False  # as if it had simply been elected
        await zone.until(lambda: replica._spread_at[0], "it was looked whether another should lead")
        chosen = zone.leader_of(1)
        await lead(Zone(zone.file(), "eu", 30.0), chosen, 0)
        await led(zone)
        assert zone.leader_of(0) == chosen


async def test_a_group_without_a_leader_is_told_apart(tmp_path):
    async with (
        zone_with_gateway(tmp_path, groups=2, streams=STREAMS) as (zone, gateway, url),
        client(url) as connection,
    ):
        await led(zone)
        acknowledged = await publish(connection, 0, 100)
        for name in zone.names[:2]:  # their replicas of group 1 hear and say nothing any more
            links = zone.sinks[name].replicas[1].peers.links
            links.dial({})
            links.send = lambda *_: None
        await zone.until(lambda: not zone.leader_of(1), "group 1 has no leader")
        await zone.until(lambda: "leads group 1" in (gateway.health() or ""), "the gateway says so")
        assert any("group 1 has no leader" in (sink.health() or "") for sink in zone.sinks.values())
        keys = {partition: f"orders.{number % 50}" for number, (partition, _) in enumerate(acknowledged.values())}
        for partition, group in enumerate(GROUPS):
            fetched = await fetch(connection, "orders", partition, offset=0)
            assert fetched.status == ("503" if group == 1 else "204"), (partition, fetched)
            assert ("leads group 1" in fetched.headers.get("Log-Error", "")) == (group == 1)
            if group == 0:
                ack = json.loads((await connection.request(keys[partition], b"more", timeout=60)).data)
                assert ack["partition"] == partition


async def test_more_groups_are_for_new_streams_and_cannot_be_taken_back(tmp_path):
    zone = SinkZone(tmp_path, streams=STREAMS)
    await zone.start()
    try:
        await zone.led()
        await zone.stop()
        zone.groups = 2
        more = STREAMS + '[streams.wide]\nsubjects = ["wide.>"]\npartitions = 2\n'
        await zone.start(file=zone.file(revision=2, streams=more))
        await led(zone)
        revisions = lambda: {each.machine.state.revision for sink in zone.sinks.values() for each in sink.replicas}  # noqa: E731
        await zone.until(lambda: revisions() == {2}, "it is adopted")
        states = zone.sinks["s1"].machine.stream_states()
        others = ("events", "$AUDIT", "$COVERAGE")
        groups = {state.name: state.groups for state in states if state.name not in others}
        assert groups == {"orders": 1, "thin": 1, "wide": 2}
        await zone.stop()
        zone.groups = 1
        await zone.start(file=zone.file(revision=3, streams=more))
        await led(zone)  # what is there is run
        problem = "groups: partitions of wide are in group 1, the proposal says groups = 1; write at least 2"
        await zone.until(lambda: problem in zone.sinks[zone.leader].config_problems, "the file is refused")
    finally:
        await zone.stop()


async def test_a_sink_whose_file_is_older_says_that_it_runs_too_few_groups(tmp_path):
    zone = SinkZone(tmp_path, count=1, groups=2)
    await zone.start()
    await zone.stop()
    zone.groups = 1
    (tmp_path / "s1" / "group-1").rename(tmp_path / "elsewhere")
    await zone.start(file=zone.file(revision=1))
    try:
        assert "this sink runs 1: give it the newer file and start it again" in zone.sinks["s1"].config_problems[-1]
    finally:
        await zone.stop()


async def test_a_sink_takes_the_place_of_another_in_every_group(tmp_path, capsys):
    async with zone_with_gateway(tmp_path, groups=2, streams=STREAMS) as (zone, _, url), client(url) as connection:
        acknowledged = await publish(connection, 0, 200)
        file = zone.file([*zone.names, "s4"])
        await zone.stop()
        await zone.start(*zone.names, "s4", file=file)
        await led(zone)
        operator = Zone(file, "eu", 2.0)
        await operator_until_filled(operator)
        await zone.sinks[zone.leader_of(0)].links.operator.change_members("s4", "")  # interrupted before the rest
        capsys.readouterr()
        await change(operator, "s4", "s1")
        assert said(capsys) == [
            "sink s1 is no member of group 0 of zone eu any more",
            "sink s4 is a member of group 1 of zone eu",
            "sink s1 is no member of group 1 of zone eu any more",
        ]
        with pytest.raises(Failure, match="sink s4 is a member already"):
            await change(operator, "s4", "s1")
        await lead(operator, "s4", 1)
        with pytest.raises(Failure, match="zone eu has no group 2: it has 2, from 0 on"):
            await lead(operator, "s4", 2)
        assert said(capsys) == ["sink s4 leads group 1 of zone eu"]
        await zone.stop("s1")
        assert zone.leader_of(1) == "s4"
        told = await operator.groups()
        assert [sorted(one["s4"]["members"]) for one in told] == [["s2", "s3", "s4"]] * 2
        assert [one["s2"]["number"] for one in told] == [0, 1]
        await lead(operator, "s2", None)  # the gateway does not know s4
        assert said(capsys) == [f"sink s2 leads group {group} of zone eu" for group in (0, 1)]
        await are_there(connection, acknowledged | await publish(connection, 200, 100))


async def operator_until_filled(operator):
    """s4 lacks nothing in any group, and might vote."""
    async with asyncio.timeout(60):
        while True:
            lacks = [
                (peer.get("lag_entries"), peer.get("muted"))
                for told in await operator.groups()
                for one in told.values()
                for peer in one.get("peers", ())
                if one.get("state") == "leader" and peer["node"] == "s4"
            ]
            if lacks == [(0, "")] * 2:
                return
            await asyncio.sleep(0.05)
