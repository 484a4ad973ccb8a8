"""`mesh top`: rates of what two looks have seen, and the command on running nodes."""

import asyncio
import contextlib
import json
import os
import pty
from typing import Any

from support.cli import MESH, environment, invoked
from support.processes import client, folder_at, free_ports, until

from mesh.top import Look, figures

PAGE = {
    "connections": 2, "subscriptions": 3, "slow_consumers": 0, "in_msgs": 100, "out_msgs": 200, "in_bytes": 1_000,
    "out_bytes": 2_000, "mem": 1, "cpu": 0.5,
}  # fmt: skip


def sink(name: str, state: str, end_offset: int = 0, lag: int | None = None) -> dict[str, Any]:
    return {
        "node": name, "state": state, "term": 1, "commit_index": 7, "muted": "", "free_bytes": 1,
        "peers": [{"node": "s2", "lag_entries": lag}],
        "logs": [{"stream": "orders", "partition": 0, "start_offset": 2, "end_offset": end_offset, "bytes": 5}],
    }  # fmt: skip


def look(at_s: float, varz: dict[str, Any], *groups: dict[str, Any]) -> Look:
    return Look(at_s, varz, {}, list(groups))


def test_counters_become_rates():
    later = PAGE | {"in_msgs": 150, "out_msgs": 200, "in_bytes": 2_000, "out_bytes": 2_001}
    gateway = figures(look(10, {"gw1": PAGE}), look(12, {"gw1": later}))["gateways"]["gw1"]
    rates = {name: value for name, value in gateway.items() if name.endswith("_per_s")}
    assert rates == {"msgs_in_per_s": 25, "msgs_out_per_s": 0, "bytes_in_per_s": 500, "bytes_out_per_s": 0.5}


def test_there_is_no_rate_of_a_node_that_began_anew_or_was_not_there():
    again = PAGE | {"in_msgs": 1}
    for before in ({"gw1": PAGE}, {"gw1": {"error": "no answer in time"}}, {}):
        assert figures(look(1, before), look(2, {"gw1": again}))["gateways"]["gw1"]["msgs_in_per_s"] is None
    assert figures(look(1, {}), look(2, {"gw1": {"error": "down"}}))["gateways"] == {"gw1": {"error": "down"}}


def test_sinks_lag_behind_the_leader_and_logs_are_those_of_the_furthest():
    before = {"s1": sink("s1", "leader", 10, 0)}
    now = {"s1": sink("s1", "leader", 30, 4), "s2": sink("s2", "follower", 25), "s3": {"error": "down"}}
    seen = figures(look(1, {}, before), look(3, {}, now))
    (group,) = seen["groups"]
    assert [one.get("lag_entries") for one in group.values()] == [0, 4, None]
    assert group["s3"] == {"error": "down"}
    assert seen["logs"] == [
        {"stream": "orders", "partition": 0, "end_offset": 30, "retained": 28, "bytes": 5, "events_per_s": 10.0}
    ]


def test_without_a_leader_nobody_knows_the_lag():
    assert figures(look(1, {}), look(2, {}, {"s1": sink("s1", "candidate")}))["groups"][0]["s1"]["lag_entries"] is None


async def test_it_shows_gateways_sinks_and_logs(tmp_path):
    with folder_at(tmp_path) as folder:
        folder.write_config()
        await folder.both()
        async with client(folder.url) as connection:
            await connection.request("orders.1", b"one", timeout=60, headers={"Nats-Msg-Id": "1"})
            config = "--config", str(tmp_path / "mesh.toml"), "--interval", "100ms", "--once"
            seen = json.loads((await invoked("top", *config, "--json")).out)
            assert seen["gateways"]["gw1"]["connections"] == 1
            assert seen["groups"][0]["sink1"]["state"] == "leader"
            ends = {log["stream"]: log["end_offset"] for log in seen["logs"]}
            assert ends["events"] == 1
            lines = (await invoked("top", *config)).lines
            assert [line.split()[0] for line in lines if line][:4] == ["GATEWAY", "gw1", "SINKS", "sink1"]
            assert any(line.startswith("events/0 ") for line in lines)


async def test_who_cannot_be_asked_is_named(tmp_path):
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    ran = await invoked("top", "--monitor", nobody, "--interval", "100ms", "--once")
    assert ran.status == 0
    assert "unknown: " in ran.lines[1]
    assert (await invoked("top", "--config", str(tmp_path / "no.toml"))).err.endswith("No such file or directory\n")


async def test_on_a_terminal_it_goes_on_until_it_is_interrupted():
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    command = str(MESH), "top", "--monitor", nobody, "--interval", "100ms"
    process = await asyncio.create_subprocess_exec(
        *command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM="xterm", COLUMNS="120"),
        preexec_fn=_own_terminal(theirs),
    )  # fmt: skip
    os.close(theirs)
    shown = b""

    def looks() -> int:
        nonlocal shown
        with contextlib.suppress(OSError):  # nothing is there yet
            shown += os.read(ours, 1 << 16)
        return shown.count(b"GATEWAY")

    await until(lambda: looks() >= 3, "three looks")
    os.write(ours, b"\x03")
    await asyncio.wait_for(process.wait(), 60)
    assert process.returncode == 130
    os.close(ours)


def _own_terminal(descriptor: int) -> Any:
    def take() -> None:
        os.setsid()
        import fcntl
        import termios

        fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)

    return take
