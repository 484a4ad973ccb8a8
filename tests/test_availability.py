"""What this version cannot do is refused by name when a node starts, and accepted by `mesh check`: one test a line."""

import subprocess
import sys
from pathlib import Path

import pytest

from mesh.availability import not_available
from protocol import config

NODES = """
[zones.eu.gateways.gw1]
client = "127.0.0.1:0"
mesh = "127.0.0.1:6222"
{gateway}
[zones.eu.sinks.sink1]
link = "127.0.0.1:6333"
raft = "127.0.0.1:6334"
data = "data"
{sink}
"""
PLAIN = {"mesh": "", "gateway": "", "sink": "", "more": ""}
SECOND_GATEWAY = '[zones.eu.gateways.gw2]\nclient = "127.0.0.1:0"\nmesh = "127.0.0.1:6226"'
MORE_SINKS = """
[zones.eu.sinks.sink2]
link = "127.0.0.1:6335"
raft = "127.0.0.1:6336"
data = "data2"
[zones.eu.sinks.sink3]
link = "127.0.0.1:6339"
raft = "127.0.0.1:6340"
data = "data3"
"""
SECOND_ZONE = """
[zones.us.gateways.us-gw1]
client = "127.0.0.1:0"
mesh = "127.0.0.1:6224"
[zones.us.sinks.us-sink1]
link = "127.0.0.1:6337"
raft = "127.0.0.1:6338"
data = "data3"
"""


def text(**parts: str) -> str:
    parts = PLAIN | parts
    return f'[mesh]\nname = "acme"\n{parts["mesh"]}\n' + NODES.format(**parts) + parts["more"]


@pytest.mark.parametrize("gateway", ["", 'spool = "spool"', "workers = 2"])
@pytest.mark.parametrize(
    "more", ["", SECOND_GATEWAY, SECOND_ZONE, MORE_SINKS, MORE_SINKS + '[tls.nodes]\nca = "a"\ncert = "c"\nkey = "k"']
)
@pytest.mark.parametrize("mesh", ["", 'routing = "broadcast"'])
def test_a_gateway_with_the_sinks_of_its_zone_is_available(more, gateway, mesh):
    assert not_available(config.parse(text(more=more, gateway=gateway, mesh=mesh), "mesh.toml")) == []


@pytest.mark.parametrize(
    ("parts", "refusal"),
    [
        (
            {"mesh": 'contracts = "warn"\nmode = "delivery-fabric"'},
            "mesh.contracts: contracts are kept by sinks, and zone eu is delivery-fabric; write 'off'",
        ),
        (
            {"mesh": 'buffer = "1MiB"\nmode = "delivery-fabric"', "gateway": "workers = 2"},
            "zones.eu.gateways.gw1.workers: with mesh.buffer each process would have other events; write 1",
        ),
    ],
)
def test_what_is_not_available_is_named(parts, refusal):
    problems = not_available(config.parse(text(**parts), "mesh.toml"))
    assert any(problem.startswith(refusal) for problem in problems), problems


@pytest.mark.parametrize(("command", "node"), [("gateway", "gw1"), ("sinkd", "sink1")])
def test_a_node_says_all_of_it_and_does_not_start(tmp_path, command, node):
    file = tmp_path / "mesh.toml"
    mesh = 'contracts = "warn"\nbuffer = "1MiB"\nmode = "delivery-fabric"'
    file.write_text(text(more=SECOND_ZONE, mesh=mesh, gateway="workers = 2"))
    folder = Path(sys.executable).parent

    def run(*arguments):
        return subprocess.run(
            [folder / arguments[0], *arguments[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert run("mesh", "check", "mesh.toml").returncode == 0
    ended = run(command, "--config", "mesh.toml", "--node", node)
    assert ended.returncode == 1
    assert "mesh.toml: zones.eu.gateways.gw1.workers: with mesh.buffer each process would have" in ended.stderr
    assert "mesh.toml: mesh.contracts: contracts are kept by sinks" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "data").exists()
