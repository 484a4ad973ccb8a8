"""Certificates as an auditor has them: programs under mutual TLS, two zones, all by the command line.

The segments are what `SEGMENT_BYTES` makes them, so one that is finished takes 64 MiB of events.
"""

import asyncio
import json
import os
from pathlib import Path

from support.cli import Ran, mesh
from support.disk import flip
from support.events import Publisher
from support.processes import Daemon, Folder, client, folder_at, free_ports, until

EVENTS, EVENT_BYTES = 150, 500_000
SINKS = {"eu": ("e1", "e2", "e3"), "us": ("u1",)}
CERTIFY = ("coverage", "certify", "orders", "--config", "mesh.toml", "--zone", "eu", "-o")


class Mesh:
    """Its file, certificates and data folders are in `folder`."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.sinks = folder, {}  # type: Folder, dict[str, Daemon]
        ports = iter(free_ports(12))
        lines = ['[mesh]\nname = "acme"', '[streams.orders]\nsubjects = ["orders.>"]']
        pki = folder.path / "pki"
        lines += [f'[tls.nodes]\nca = "{pki}/ca.pem"\ncert = "{pki}/{{node}}.pem"\nkey = "{pki}/{{node}}.key"']
        for zone, names in SINKS.items():
            for name in names:
                lines += [f"[zones.{zone}.sinks.{name}]", f'link = "127.0.0.1:{next(ports)}"', f'data = "{name}"']
                lines += [f'raft = "127.0.0.1:{next(ports)}"'] if len(names) > 1 else []
                lines += ['disk_reserve = "1MiB"', "scrub_rate = 0"]  # so that nobody is there before the certificate
        lines += ["[zones.eu.gateways.gw]", f'client = "127.0.0.1:{folder.client_port}"']
        lines += [f'mesh = "127.0.0.1:{next(ports)}"']
        (folder.path / "mesh.toml").write_text("\n".join(lines))

    async def start(self) -> None:
        ran = await self.run("certs", "init", "--config", "mesh.toml")
        assert ran.status == 0, ran.err
        for name in (name for names in SINKS.values() for name in names):
            self.begin(name)
        await asyncio.gather(*(daemon.serving() for daemon in self.sinks.values()))
        await self.folder.run("gateway", "--config", "mesh.toml", "--node", "gw").serving()

    def begin(self, name: str) -> Daemon:
        self.sinks[name] = self.folder.run("sinkd", "--config", "mesh.toml", "--node", name)
        return self.sinks[name]

    async def run(self, *arguments: str) -> Ran:
        """Files, and data of sinks, are those of the folder."""
        words = list(arguments)
        for number, word in enumerate(words):
            if word.endswith((".json", ".pem", ".toml")) or (number and words[number - 1] == "--data"):
                words[number] = str(self.folder.path / word)
        return await mesh(*words)

    async def roles(self) -> tuple[str, str, str]:
        """The sink that leads in eu, and the two others: without a leader there is no certificate for a moment."""
        told = json.loads((await self.run("status", "--config", "mesh.toml", "--zone", "eu", "--json")).out)["sinks"]
        others = [name for name, one in told.items() if one["state"] == "follower"]
        (leader,) = told.keys() - set(others)
        return leader, others[0], others[1]

    async def certify(self, file: str, *more: str) -> Ran:
        return await self.run(*CERTIFY, file, *more)

    async def verify(self, file: str, *more: str) -> Ran:
        return await self.run("coverage", "verify", file, "--ca", "pki/ca.pem", *more)

    def segments(self, name: str) -> list[Path]:
        return sorted((self.folder.path / name / "log").glob("orders*/0/*.segment"))


async def test_an_auditor_is_shown_what_two_zones_hold_and_whatever_is_changed_is_seen(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        it = Mesh(folder)
        await it.start()
        async with client(folder.url) as connection:
            publisher = await Publisher(connection, "orders.new").open()
            for number in range(EVENTS):
                await publisher.send(number, os.urandom(EVENT_BYTES))
            await publisher.settle()
            await until(lambda: all(len(it.segments(name)) > 1 for name in it.sinks), "a segment is finished on all")
            await proved_and_forged(it)
            leader, erring, other = await it.roles()
            await a_sink_whose_disk_erred(it, erring)
            await a_leader_whose_disk_erred(it, leader)
            for number in range(EVENTS, EVENTS + 10):
                await publisher.send(number, os.urandom(1_000))
            await publisher.settle()
        ran = await it.certify("second.json", "--previous", "first.json")
        assert ran.status == 0, ran.err
        ran = await it.verify("second.json", "--previous", "first.json", "--data", "e1")
        assert (ran.status, ran.lines[-1]) == (0, "proved"), ran.err
        assert not any(daemon.has_ended for daemon in it.sinks.values())
        await a_majority_is_needed(it, leader, erring, other)


async def proved_and_forged(it: Mesh) -> None:
    ran = await it.certify("first.json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.lines[0].endswith("signed by eu: e1, e2, e3; us: u1")
    for data in ((), *(("--data", name) for name in it.sinks), ("--server", "u1", "--config", "mesh.toml")):
        ran = await it.verify("first.json", *data, "--json")
        assert (ran.status, json.loads(ran.out)["proved"]) == (0, True), ran.err
    text = (it.folder.path / "first.json").read_text()
    assert f'"held":{EVENTS}' in text
    (it.folder.path / "forged.json").write_text(text.replace(f'"held":{EVENTS}', f'"held":{EVENTS - 1}'))
    ran = await it.verify("forged.json")
    assert (ran.status, "held, duplicates, refused and gaps are" in ran.err) == (1, True)
    (it.folder.path / "cut.json").write_text(text[: len(text) // 2])
    assert (await it.verify("cut.json")).status == 2
    place = "orders", "0", "77", "--config", "mesh.toml", "--zone", "eu", "--certificate", "first.json"
    ran = await it.run("coverage", "prove", *place, "-o", "proof.json")
    assert (ran.status, f"event on orders.new, {EVENT_BYTES} bytes" in ran.out.decode()) == (0, True), ran.err
    assert (await it.verify("first.json", "--proof", "proof.json")).status == 0


async def a_sink_whose_disk_erred(it: Mesh, erring: str) -> None:
    """It does not sign, names the segment, and is whole again soon after."""
    path = it.segments(erring)[0]
    flip(path, 30_000_000)
    ran = await it.verify("first.json", "--data", erring)
    assert (ran.status, "the root of the data is" in ran.err) == (1, True)
    ran = await it.certify("without.json")
    assert ran.status == 0, ran.err
    assert f"zone eu: sink {erring}: partition 0 of orders: the batch at offset" in ran.err
    assert f"its disk has spoilt {path.relative_to(it.folder.path)}" in ran.err
    signers = ", ".join(sorted({"e1", "e2", "e3"} - {erring}))
    assert ran.lines[0].endswith(f"signed by eu: {signers}; us: u1")
    await until(path.with_suffix(".damaged").exists, "it is mended")
    assert (await it.verify("first.json", "--data", erring)).status == 0
    ran = await it.certify("whole.json")
    assert ran.lines[0].endswith("signed by eu: e1, e2, e3; us: u1"), ran.err


async def a_leader_whose_disk_erred(it: Mesh, leader: str) -> None:
    """Others say what was stated, and sign; by then it may be whole again, and sign too."""
    path = it.segments(leader)[0]
    flip(path, 30_000_000)
    ran = await it.certify("led.json")
    assert ran.status == 0, ran.err
    assert (await it.verify("led.json", "--data", "u1")).status == 0
    await until(path.with_suffix(".damaged").exists, "it is mended")
    assert (await it.verify("led.json", "--data", leader)).status == 0


async def a_majority_is_needed(it: Mesh, leader: str, one: str, other: str) -> None:
    it.sinks[other].kill()
    ran = await it.certify("third.json", "--previous", "second.json")
    assert ran.status == 0, ran.err
    assert f"mesh: zone eu: sink {other}: " in ran.err
    ran = await it.verify("third.json")
    signers = ", ".join(sorted((leader, one)))
    assert f"signed in zone eu by 2 of 3 sinks: {signers}" in ran.out.decode()
    ran = await it.certify("fourth.json", "--mirrors", "")
    assert ran.lines[0].endswith(f"signed by eu: {signers}"), ran.err
    it.sinks["u1"].kill()
    ran = await it.certify("fifth.json")
    assert ran.status == 1
    assert "zone us: nobody says who its sinks are: sink u1: " in ran.err
    it.sinks[one].kill()
    ran = await it.certify("sixth.json", "--mirrors", "")
    assert ran.status == 1
    nobody = "mesh: nobody leads group 0 of zone eu"  # which it knows soon
    assert ran.err.startswith((nobody, f"mesh: sink {leader}: "))
    assert not (it.folder.path / "sixth.json").exists()
