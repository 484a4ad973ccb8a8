"""Gateways that lie, as processes with certificates of their own: what they make up is named, and who is honest is not.

What is dropped on its way, and a gateway killed with all that it holds, are in `test_coverage_view.py`.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from support import lying_gateway
from support.cli import mesh
from support.processes import Folder, client, folder_at, free_ports

WAIT_S = 90.0
EVENTS = 50


def write(folder: Folder) -> dict[str, str]:
    """`mesh.toml` of a sink and two gateways, with certificates; the gateways' URLs."""
    ports = iter(free_ports(5))
    pki = folder.path / "pki"
    lines = ['[mesh]\nname = "acme"', '[streams.orders]\nsubjects = ["orders.>"]', '[coverage]\ngap_grace = "2s"']
    lines += [f'[tls.nodes]\nca = "{pki}/ca.pem"\ncert = "{pki}/{{node}}.pem"\nkey = "{pki}/{{node}}.key"']
    lines += ["[zones.eu.sinks.s1]", f'link = "127.0.0.1:{next(ports)}"', 'data = "s1"', 'disk_reserve = "1MiB"']
    urls = {}
    for name in ("gw1", "gw2"):
        address = f"127.0.0.1:{next(ports)}"
        urls[name] = f"nats://{address}"
        lines += [f"[zones.eu.gateways.{name}]", f'client = "{address}"', f'mesh = "127.0.0.1:{next(ports)}"']
    (folder.path / "mesh.toml").write_text("\n".join(lines))
    return urls


async def start(folder: Folder, how: str) -> dict[str, str]:
    """A sink, honest gateway gw1, and gw2, which lies; who publishes there. All is acknowledged when it returns."""
    urls = write(folder)
    file = ("--config", "mesh.toml", "--node")
    ran = await mesh("certs", "init", "--config", str(folder.path / "mesh.toml"))
    assert ran.status == 0, ran.err
    await folder.run("sinkd", *file, "s1").serving()
    await folder.run("gateway", *file, "gw1").serving()
    await folder.run(*lying_gateway.command(how, *file, "gw2")).serving()
    for url in urls.values():
        async with client(url) as connection:
            asked = (connection.request("orders.new", b"%d" % number, timeout=60) for number in range(EVENTS))
            answers = [json.loads(answer.data) for answer in await asyncio.gather(*asked)]
            assert all("error" not in answer for answer in answers)
    return urls


async def until_said(folder: Folder, is_so: Any) -> tuple[int, dict[str, Any], str]:
    """Exit status of `mesh coverage`, what it says of zone eu, and its words on stderr."""
    async with asyncio.timeout(WAIT_S):
        while True:
            ran = await mesh("coverage", "orders", "--json", "--config", str(folder.path / "mesh.toml"))
            zone: dict[str, Any] = json.loads(ran.out)["zones"]["eu"]
            if is_so(zone):
                return ran.status, zone, ran.err


async def test_what_a_beacon_makes_up_is_reported_of_who_signed_it(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        await start(folder, "more")
        status, zone, said = await until_said(folder, lambda zone: zone["gaps"])
        (gap,) = zone["gaps"]
        assert (gap["node"], gap["why"], gap["stream"]) == ("gw2", "lost", "orders")
        assert (gap["first"], gap["last"]) == (EVENTS + 1, EVENTS + lying_gateway.MADE_UP)
        assert status == 1
        assert "gw2" in said
        assert "gw1" not in said


async def test_a_beacon_that_another_gateway_has_signed_counts_for_nothing(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        await start(folder, "gw1")
        _, zone, _ = await until_said(folder, lambda zone: zone["refused_beacons"].get("node", 0) > 1)
        assert zone["gaps"] == []
        assert [each["node"] for each in zone["gateways"]] == ["gw1"]  # nobody has heard of the other one
