"""A bit flips in the same segment on all sinks of a zone while it is read and published to; nothing is lost."""

import asyncio
import json
import os
from pathlib import Path

from nats.aio.client import Client
from support import cli
from support.audits import audited, until_audited
from support.disk import flip
from support.events import Publisher, Shown, everything, fetch
from support.processes import Folder, client, folder_at, free_ports, until

EVENTS, EVENT_BYTES = 160, 500_000
SPOILT_AT = 30_000_000
SINKS = {"eu": ("eu1", "eu2", "eu3"), "us": ("us1",)}


def write_file(folder: Folder, zones: dict[str, tuple[str, ...]]) -> None:
    ports = iter(free_ports(9))
    lines = ['[mesh]\nname = "acme"', '[streams.orders]\nsubjects = ["orders.>"]']
    for zone, names in zones.items():
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
        write_file(folder, SINKS)
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
            async with asyncio.timeout(60):  # sinks write it down when they have mended
                while not await is_mended_by(connection, "from sink us1 of zone us"):  # noqa: ASYNC110 - not our state
                    await asyncio.sleep(0.1)
            assert not any(daemon.has_ended for daemon in sinks.values())


async def test_what_is_bad_everywhere_is_given_up_by_an_operator_and_readers_go_on(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        write_file(folder, {"eu": SINKS["eu"]})
        sinks = {name: folder.run("sinkd", "--config", "mesh.toml", "--node", name) for name in SINKS["eu"]}
        await asyncio.gather(*(daemon.serving() for daemon in sinks.values()))
        await folder.run("gateway", "--config", "mesh.toml", "--node", "gw").serving()
        async with client(folder.url) as connection:
            publisher = await Publisher(connection, "orders.new").open()
            for number in range(EVENTS):
                await publisher.send(number, os.urandom(EVENT_BYTES))
            await publisher.settle()
            await until(lambda: all(finished(folder, name) for name in sinks), "a segment is finished everywhere")
            for name in sinks:
                flip(finished(folder, name)[0], SPOILT_AT)
            refused = await fetch(connection, "orders", offset=SPOILT_AT // EVENT_BYTES - 1)
            assert refused.status == "500", refused
            asked = "repair", "--accept-loss", "orders", "0", "--config", f"{tmp_path}/mesh.toml"
            (row,) = json.loads((await cli.mesh(*asked, "--yes", "--json")).out)
            assert row["given_up"]
            load = asyncio.create_task(keep_publishing(publisher))
            events, gaps = await events_and_gaps(connection)
            await load
            assert gaps == [(row["first"], row["last"], "damaged")]
            lost = range(row["first"], row["last"] + 1)
            assert [event.offset for event in events[: EVENTS - len(lost)]] == [
                one for one in range(EVENTS) if one not in lost
            ]
            offsets = {answer["offset"]: number for number, answer in publisher.answers.items()}
            assert all(publisher.sent[offsets[event.offset]] == event.payload for event in events)
            (accepted,) = await until_audited(connection, "loss_accepted")
            assert accepted["what"] == f"orders/0: offsets {row['first']} to {row['last']}"
            status = json.loads((await cli.mesh("status", "--config", f"{tmp_path}/mesh.toml", "--json")).out)
            logs = [log for one in status["sinks"].values() for log in one["logs"]]
            told = [log["given_up"] for log in logs if log["stream"] == "orders"]
            assert told == [[[row["first"], row["last"]]]] * len(sinks)
            assert not any(daemon.has_ended for daemon in sinks.values())


async def is_mended_by(connection: Client, why: str) -> bool:
    return any(line["why"].endswith(why) for line in await audited(connection, "segment_mended"))


async def events_and_gaps(connection: Client) -> tuple[list[Shown], list[tuple[int, int, str]]]:
    """All that a reader is told."""
    events: list[Shown] = []
    gaps, offset, high_watermark = [], 0, 1
    while offset < high_watermark:
        fetched = await fetch(connection, "orders", offset=offset)
        events += fetched.events
        if fetched.status == "206":
            first, last = (int(fetched.headers[f"Log-Gap-{name}"]) for name in ("From", "To"))
            gaps.append((first, last, fetched.headers["Log-Gap-Reason"]))
            offset = last + 1
        else:
            assert fetched.status == "204", fetched
            offset, high_watermark = fetched.next_offset, fetched.high_watermark
    return events, gaps


async def keep_publishing(publisher: Publisher) -> None:
    for number in range(EVENTS, EVENTS + 50):
        await publisher.send(number, b"goes on %d" % number)
    await publisher.settle()
    assert len(publisher.acknowledged) == EVENTS + 50
