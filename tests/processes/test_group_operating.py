"""`mesh status` and `mesh sinks` on real sinks: what they show, what they change, and how they refuse."""

import asyncio
import json
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from support.cli import Ran, invoked, mesh
from support.group import ProcessZone, leader_of, nothing_is_lost, publishing, running


async def asked(zone: ProcessZone, *words: str, run: Callable[..., Awaitable[Ran]] = invoked) -> Ran:
    return await run(*words, "--config", str(zone.folder.path / "mesh.toml"), "--timeout", "30s")


async def shown(zone: ProcessZone) -> dict[str, dict[str, Any]]:
    sinks: dict[str, dict[str, Any]] = json.loads((await asked(zone, "status", "--json")).out)["sinks"]
    return sinks


async def scraped(zone: ProcessZone, name: str) -> dict[str, float]:
    """The metrics `mesh_sink_raft_*` of sink `name` and group 0, without that beginning, other labels included."""
    url = f"http://127.0.0.1:{zone.monitor[name]}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        found = re.findall(r'^mesh_sink_raft_(\w+){group="0"(\S*)} (\S+)$', await answer.text(), re.MULTILINE)
    return {name + f"{{{labels[1:]}}}" * bool(labels): float(value) for name, labels, value in found}


def rows(ran: Ran) -> dict[str, list[str]]:
    """The rows of the table of sinks, by sink."""
    return {line.split()[0]: line.split() for line in ran.lines if line[:1] == "s" and line[1:2].isdigit()}


async def test_status_of_a_whole_group_and_of_one_that_lacks_a_sink(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        async with publishing(zone):
            pass
        leader = leader_of(await zone.whole())
        well = await asked(zone, "status", run=mesh)  # as a process of its own, once
        assert (well.status, well.err) == (0, "")
        assert well.lines[0].startswith(f"zone eu: sink {leader} leads in term ")
        assert well.lines[0].endswith("members s1, s2, s3")
        assert {name: row[1] for name, row in rows(well).items()} == {
            name: "leader" if name == leader else "follower" for name in zone.names
        }
        (log,) = [line.split() for line in well.lines if line.startswith("orders/0")]
        assert log[1] == "0"
        assert log[2] == log[3] == log[4] != "0"
        followers = [name for name in zone.names if name != leader]
        metrics = await scraped(zone, leader)
        assert metrics['state{state="leader"}'] == metrics["leader_known"] == 1
        assert {metrics[f'peer_connected{{sink="{name}"}}'] for name in followers} == {1}
        async with asyncio.timeout(60):  # beacons and audit events go on
            while any(metrics[f'peer_lag_entries{{sink="{name}"}}'] for name in followers):
                metrics = await scraped(zone, leader)
        metrics = await scraped(zone, followers[0])
        assert (metrics['state{state="leader"}'], metrics['state{state="follower"}']) == (0, 1)
        assert not [name for name in metrics if name.startswith("peer_lag_entries")]

        gone = next(name for name in zone.names if name != leader)
        zone.kill(gone)
        await zone.until(lambda status: bool(_peer(status, leader, gone)["error"]), "the leader has dialled it in vain")
        unwell = await asked(zone, "status")
        assert unwell.status == 1
        assert unwell.err == f"mesh: {gone}: Connection refused\n"
        assert rows(unwell)[gone][:2] == [gone, "down"]
        as_json = await asked(zone, "status", "--json")
        assert as_json.status == 1
        told = json.loads(as_json.out)
        assert told["zone"] == "eu"
        assert told["sinks"][gone] == {"node": gone, "error": "Connection refused"}
        peer = _peer(told["sinks"], leader, gone)
        assert (peer["connected"], peer["member"]) == (False, True)
        assert (await scraped(zone, leader))[f'peer_connected{{sink="{gone}"}}'] == 0

        other = next(name for name in zone.names if name not in (leader, gone))
        zone.kill(other)
        await zone.until(lambda status: status[leader].get("state") != "leader", "the last one leads no more")
        alone = await asked(zone, "status")
        assert (alone.status, alone.lines[0]) == (1, "zone eu: no leader")
        refused = await asked(zone, "sinks", "lead", leader)
        assert refused.status == 1
        assert "no sink of zone eu leads: " in refused.err
        assert f"{gone}: Connection refused" in refused.err


def _peer(status: dict[str, dict[str, Any]], name: str, other: str) -> dict[str, Any]:
    """What `name` says of its link to `other`."""
    peers: list[dict[str, Any]] = status[name]["peers"]
    return next(peer for peer in peers if peer["node"] == other)


async def test_the_fields_are_those_that_the_page_lists(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    documented, of_coverage = _fields(page, "a sink"), _fields(page, "`coverage`")
    async with running(tmp_path) as zone:
        leader = (await shown(zone))[await zone.leader()]
        assert {"peers", "logs"} < leader.keys()
        fields = {name for name in leader if name not in ("peers", "logs")}
        for table in ("peers", "logs"):
            fields |= {f"{table}[].{name}" for one in leader[table] for name in one}
    assert documented == fields
    assert of_coverage == {*leader["coverage"], "beacons[].rows"}


def _fields(page: str, whose: str) -> set[str]:
    table = page.partition(f"| field of {whose} |")[2].partition("\n\n")[0]
    return set(re.findall(r"`([a-z_]+|[a-z]+\[\]\.[a-z_]+)`", "\n".join(row[0] for row in _rows(table))))


def _rows(section: str) -> list[list[str]]:
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]


async def test_a_data_folder_that_is_deleted_under_load_is_filled_again(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        async with publishing(zone) as load:
            await load.goes_on(250)
            leader, victim = await zone.leader(), await zone.follower()
            shutil.rmtree(zone.data[victim])
            assert await zone.daemons[victim].ended() == 1  # it notices by itself, and says what is missing
            assert str(zone.data[victim]) in zone.daemons[victim].complaints.splitlines()[-1]
            down = await asked(zone, "status")
            assert down.err == f"mesh: {victim}: Connection refused\n"
            wire = zone.wires[min(leader, victim), max(leader, victim)]
            wire.hold()  # the other follower tells it of the group; only the leader can make it whole
            await zone.start(victim)
            why = "its disk was empty when the group was there already: it is being filled"
            await zone.until(lambda status: status[victim].get("muted") == why, "it knows that there is a group")
            muted = await asked(zone, "status")
            assert (muted.status, muted.err) == (1, f"mesh: {victim}: {why}\n")
            (line,) = [line for line in muted.lines if line.startswith(victim)]
            assert f"muted: {why}" in line
            assert (await scraped(zone, victim))["muted"] == 1
            wire.let_go()
            await zone.whole()
            assert (await scraped(zone, victim))["muted"] == 0
            whole = await asked(zone, "status")
            assert (whole.status, whole.err) == (0, "")
            for ran in (down, muted, whole):
                print(ran.out.decode(), ran.err, "exit status", ran.status)
        await nothing_is_lost(zone, load)


async def test_a_sink_whose_disk_is_full_is_named(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        victim = await zone.follower()
        await zone.stop(victim)
        file = tmp_path / f"{victim}.toml"
        reserve_mib = shutil.disk_usage(tmp_path).free // 2**20 * 2
        file.write_text(file.read_text().replace('disk_reserve = "1MiB"', f'disk_reserve = "{reserve_mib}MiB"'))
        await zone.start(victim)
        await zone.until(lambda status: bool(status[victim].get("busy")), "it lacks space")
        full = await asked(zone, "status")
        assert full.status == 1
        assert full.err == f"mesh: {victim}: its disk is below its reserve\n"
        assert (await shown(zone))[victim]["storage_full"]


async def test_members_come_and_go_and_leadership_moves(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        async with publishing(zone) as load:
            await _refused(zone, "sink s9 is not connected to the leader: it has never been seen", "add", "s9")
            await _refused(zone, "sink s9 is no member; members are s1, s2, s3", "remove", "s9")
            await _refused(zone, "sink s1 is a member already", "add", "s1")
            await _refused(zone, "member s9 is not connected", "lead", "s9")
            await _refused(zone, "no zone 'us' with sinks; there are: eu", "lead", "s1", "--zone", "us")

            to = await zone.follower()
            assert (await asked(zone, "sinks", "lead", to)).lines == [f"sink {to} leads zone eu"]
            assert await zone.leader() == to

            zone.names.append("s4")  # every node is to know of it
            zone.write_files()
            for name in ("s1", "s2", "s3"):
                await zone.stop(name)
                await zone.start(name)
                await zone.until(lambda status: bool(status[name].get("leader")), "it is back")  # noqa: B023
            await zone.start("s4")
            await zone.until(lambda status: _lag(status, "s4") == 0 and not status["s4"]["muted"], "s4 is filled")
            joining = await asked(zone, "status")
            assert rows(joining)["s4"][1] == "joining"
            leader = await zone.leader()
            replaced = await asked(zone, "sinks", "replace", leader, "s4")  # the leader itself: it hands over first
            assert replaced.lines == [
                "sink s4 is a member of zone eu",
                f"sink {leader} is no member of zone eu any more",
            ]
            assert sorted((await shown(zone))["s4"]["members"]) == sorted({"s1", "s2", "s3", "s4"} - {leader})
            await zone.stop(leader)
            zone.names.remove(leader)
            zone.write_files()
            for name in zone.names:
                await zone.stop(name)
                await zone.start(name)
                await zone.until(lambda status: bool(status[name].get("leader")), "it is back")  # noqa: B023
            await load.goes_on()
            # Four were members for a moment, three are: two of them go on without the third.
            zone.kill(zone.names[0])
            await load.goes_on()
            await zone.start(zone.names[0])
            await zone.whole()
            assert (await asked(zone, "sinks", "remove", "s4")).status == 0
            await zone.until(lambda status: status["s4"].get("member") is False, "it knows")
            assert (await asked(zone, "sinks", "add", "s4")).status == 0
        await nothing_is_lost(zone, load)


def _lag(status: dict[str, dict[str, Any]], name: str) -> int | None:
    """Entries that `name` lacks, as the leader knows it."""
    leading = [one for one in status.values() if one.get("state") == "leader"]
    lags = [peer.get("lag_entries") for one in leading for peer in one["peers"] if peer["node"] == name]
    return lags[0] if lags else None


async def _refused(zone: ProcessZone, why: str, *words: str) -> None:
    ran = await asked(zone, "sinks", *words)
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err == f"mesh: {why}\n"


async def test_a_group_that_has_lost_two_of_three_disks_goes_on_when_an_operator_accepts_it(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        async with publishing(zone) as load:
            refused = await asked(zone, "repair", "--accept-loss", "--yes")
            assert (refused.status, refused.out) == (1, b"")
            assert "there is nothing to repair" in refused.err
            survivor = await zone.leader()
            lost = [name for name in zone.names if name != survivor]
            for name in lost:
                zone.kill(name)
                zone.wipe(name)
            await zone.until(lambda status: status[survivor].get("state") != "leader", "it leads no more")
            for name in lost:
                await zone.start(name)
            await zone.until(lambda status: sum(_are_muted(status[survivor])) == 2, "it knows that two are lost")
            before = await asked(zone, "repair", "--accept-loss")
            assert f"Sink {survivor} holds most, and has read all of it" in before.out.decode(), before
            assert before.lines[-1] == "Nothing was done. With --yes it is."
            repaired = await asked(zone, "repair", "--accept-loss", "--yes", run=mesh)
            assert repaired.status == 0, repaired
            assert repaired.lines[-1] == f"sink {survivor} leads zone eu, and is its only member"
            await load.goes_on()
            for name in lost:  # by themselves they begin anew, and are filled
                await zone.until(lambda status: _lag(status, name) == 0 and not status[name]["muted"], "it is filled")  # noqa: B023
                added = await asked(zone, "sinks", "add", name)
                assert added.lines == [f"sink {name} is a member of zone eu"], added
            await load.goes_on()
        await zone.whole()
        gaps = await mesh("gaps", "orders", "--server", zone.url("gw1"))
        (gap,) = gaps.lines
        assert gap.endswith(": an unknown number of events, accepted_loss")


def _are_muted(one: dict[str, Any]) -> list[bool]:
    return [bool(peer.get("muted")) for peer in one["peers"]]
