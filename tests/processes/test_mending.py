"""A bit flips in the same segment on all sinks of a zone while it is read and published to; nothing is lost."""

import asyncio
import os
from pathlib import Path

from support.audits import audited
from support.disk import flip
from support.events import Publisher, everything
from support.processes import Folder, client, folder_at, free_ports, until

EVENTS, EVENT_BYTES = 160, 500_000
SPOILT_AT = 30_000_000
SINKS = {"eu": ("eu1", "eu2", "eu3"), "us": ("us1",)}


def write_file(folder: Folder) -> None:
    ports = iter(free_ports(9))
    lines = ['[mesh]\nname = "acme"', '[streams.orders]\nsubjects = ["orders.>"]']
    for zone, names in SINKS.items():
        for name in names:
            lines += [f"[zones.{zone}.sinks.{name}]", f'link = "127.0.0.1:{next(ports)}"', f'data = "{name}"']
            lines += [f'raft = "127.0.0.1:{next(ports)}"'] if len(names) > 1 else []
            lines += ['disk_reserve = "1MiB"']
    lines += ["[zones.eu.gateways.gw]", f'client = "127.0.0.1:{folder.client_port}"']
    lines += [f'mesh = "127.0.0.1:{next(ports)}"']
    (folder.path / "mesh.toml").write_text("\n".join(lines))


def finished(folder: Folder, name: str) -> list[Path]:
    return sorted((folder.path / name / "log").glob("orders*/0/*.segment"))[:-1]


async def test_what_is_bad_on_all_sinks_of_a_zone_comes_from_another_one_while_it_is_served(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        write_file(folder)
        names = [name for names in SINKS.values() for name in names]
        sinks = {name: folder.run("sinkd", "--config", "mesh.toml", "--node", name) for name in names}
        await asyncio.gather(*(daemon.serving() for daemon in sinks.values()))
        await folder.run("gateway", "--config", "mesh.toml", "--node", "gw").serving()
        async with client(folder.url) as connection:
            publisher = await Publisher(connection, "orders.new").open()
            for number in range(EVENTS):
                await publisher.send(number, os.urandom(EVENT_BYTES))
            await publisher.settle()
            await until(lambda: all(finished(folder, name) for name in names), "a segment is finished everywhere")
            for name in SINKS["eu"]:
                flip(finished(folder, name)[0], SPOILT_AT)
            load = asyncio.create_task(keep_publishing(publisher))
            events = await everything(connection, "orders")
            await load
            assert [event.offset for event in events[:EVENTS]] == list(range(EVENTS))
            offsets = {answer["offset"]: number for number, answer in publisher.answers.items()}
            assert all(publisher.sent[offsets[event.offset]] == event.payload for event in events)
            mended = await audited(connection, "segment_mended")
            assert any(line["why"].endswith("from sink us1 of zone us") for line in mended), mended
            assert not any(daemon.has_ended for daemon in sinks.values())


async def keep_publishing(publisher: Publisher) -> None:
    for number in range(EVENTS, EVENTS + 50):
        await publisher.send(number, b"goes on %d" % number)
    await publisher.settle()
    assert len(publisher.acknowledged) == EVENTS + 50
