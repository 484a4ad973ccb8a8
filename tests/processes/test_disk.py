"""Disks that are full, damaged, torn or somebody else's: a clear refusal or nothing lost, never a false answer."""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from nats.aio.client import Client
from support.events import Publisher, Shown, everything, fetch, published, readable
from support.processes import Daemon, Folder, client, folder_at, until

STREAM = "--stream", "text=text.>"
MIB = 1024 * 1024


def flip(path: Path, position: int) -> None:
    """One bit of a file that may be open elsewhere."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, position)[0]
        os.pwrite(descriptor, bytes([byte ^ 0x10]), position)
    finally:
        os.close(descriptor)


def find(folder: Folder, suffix: str, what: bytes) -> tuple[Path, int]:
    """(file, position) of the first occurrence of `what` in files of the data folder."""
    for path in folder.files(suffix):
        position = path.read_bytes().find(what)
        if position >= 0:
            return path, position
    raise AssertionError(f"no {suffix} file holds {what!r}")


async def keep(folder: Folder, *payloads: bytes) -> None:
    """Publishes under acknowledgement, one at a time, so that each is synced for itself."""
    async with client(folder.url) as connection:
        for payload in payloads:
            assert "error" not in await published(connection, "text.a", payload)


async def kept(folder: Folder) -> list[bytes]:
    """All events; what was acknowledged and torn off the journal becomes a gap record after a while, which is none."""
    payloads: list[bytes] = []
    offset, high_watermark = 0, 1
    async with client(folder.url) as connection:
        while offset < high_watermark:
            fetched = await fetch(connection, "text", offset=offset)
            payloads += [event.payload for event in fetched.events]
            if fetched.status == "206":
                offset = int(fetched.headers["Log-Gap-To"]) + 1
            else:
                assert fetched.status == "204", fetched
                offset, high_watermark = fetched.next_offset, fetched.high_watermark
    return payloads


async def refused(daemon: Daemon, *words: str) -> None:
    """It ends with status 1, serves nothing, and says why in one line that holds `words`."""
    assert await daemon.ended() == 1
    assert daemon.printed == ""
    line = last_word(daemon)
    assert all(word in line for word in words), line


def last_word(daemon: Daemon) -> str:
    """The one line on stderr that is no log line: the last."""
    *log, last = daemon.complaints.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in log), daemon.complaints
    assert re.match("(mesh|gateway|sinkd): ", last), last
    return last


# -- torn and damaged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [b"", Random(7).randbytes(3_000)], ids=["ends early", "garbled"])
async def test_a_torn_last_write_is_cut_and_what_was_acknowledged_is_there(folder: Folder, junk: bytes) -> None:
    first = await folder.up(*STREAM)
    await keep(folder, b"one", b"two")
    first.kill()
    second = await folder.up(*STREAM)
    await keep(folder, b"torn " * 200)
    second.kill()
    journal, position = find(folder, ".journal", b"torn " * 200)
    with journal.open("r+b") as file:  # power went before this write and all behind it were on the disk
        file.seek(position + 400)
        file.write(junk + bytes(journal.stat().st_size - position - 400 - len(junk)))
    third = await folder.up(*STREAM)
    assert "journal_tail_cut" in third.complaints
    assert str(journal.relative_to(folder.path)) in third.complaints
    assert await kept(folder) == [b"one", b"two"]
    await keep(folder, b"three")
    third.kill()
    fourth = await folder.up(*STREAM)
    assert "journal_tail_cut" not in fourth.complaints
    assert await kept(folder) == [b"one", b"two", b"three"]


async def test_a_damaged_byte_in_the_journal_is_refused(folder: Folder) -> None:
    daemon = await folder.up(*STREAM)
    await keep(folder, b"precious " * 50, b"behind it")
    daemon.kill()
    journal, position = find(folder, ".journal", b"precious " * 50)
    flip(journal, position + 77)
    for _ in range(2):  # it does not get better by trying again
        await refused(folder.begin_up(*STREAM), str(journal.relative_to(folder.path)), "damaged at byte")
    flip(journal, position + 77)
    await folder.up(*STREAM)
    assert await kept(folder) == [b"precious " * 50, b"behind it"]


async def test_a_damaged_byte_in_a_file_beside_the_logs_is_refused(folder: Folder) -> None:
    daemon = await folder.up(*STREAM)
    await keep(folder, b"one")
    assert await daemon.stop() == 0
    for name in ("checkpoint", "identity.json"):
        file = folder.data / name
        flip(file, file.stat().st_size * 2 // 3)
        await refused(folder.begin_up(*STREAM), str(file.relative_to(folder.path)), "damaged at byte")
        flip(file, file.stat().st_size * 2 // 3)
    await folder.up(*STREAM)
    assert await kept(folder) == [b"one"]


async def test_a_damaged_byte_in_a_segment_is_refused(folder: Folder) -> None:
    daemon = await folder.up(*STREAM)
    await keep(folder, b"one", b"precious " * 50, b"three")
    assert await daemon.stop() == 0
    segment, position = find(folder, ".segment", b"precious " * 50)
    flip(segment, position + 77)
    await refused(folder.begin_up(*STREAM), str(segment.relative_to(folder.path)), "damaged at byte")


async def test_damage_under_a_running_server_is_answered_and_ends_it(folder: Folder) -> None:
    """Never wrong bytes: the reader is told, and the process ends with a line that names the file."""
    daemon = await folder.up(*STREAM)
    await keep(folder, b"one", b"precious " * 50, b"three")
    assert await daemon.stop() == 0
    daemon = await folder.up(*STREAM)
    segment, position = find(folder, ".segment", b"precious " * 50)
    async with client(folder.url) as connection:
        flip(segment, position + 77)
        fetched = await fetch(connection, "text", offset=1)
        assert fetched.events == []
        assert (fetched.status, fetched.headers["Description"]) == ("500", "STORAGE_ERROR")
        assert str(segment.relative_to(folder.path)) in fetched.headers["Log-Error"]
    assert await daemon.ended() == 1
    assert str(segment.relative_to(folder.path)) in last_word(daemon)


async def test_damage_under_a_separate_sink_ends_the_sink_alone(folder: Folder) -> None:
    folder.write_config('[streams.text]\nsubjects = ["text.>"]')
    gateway, sink = await folder.both()
    await keep(folder, b"one", b"precious " * 50, b"three")
    assert await sink.stop() == 0
    sink = await folder.sinkd()
    segment, position = find(folder, ".segment", b"precious " * 50)
    async with client(folder.url) as connection:
        await _once_there(connection)
        flip(segment, position + 77)
        assert (await fetch(connection, "text", offset=0)).headers["Description"] == "STORAGE_ERROR"
        assert await sink.ended() == 1
        assert (await fetch(connection, "text", offset=0)).headers["Description"] == "LEADER_NOT_AVAILABLE"
        flip(segment, position + 77)
        await folder.sinkd()
        assert [event.payload for event in await _once_there(connection)] == [b"one", b"precious " * 50, b"three"]
    assert not gateway.has_ended


async def _once_there(connection: Client) -> list[Shown]:
    await readable(connection, "text")
    return await everything(connection, "text")


# -- full -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Folder]:
    """Data on a disk of 200 MiB: two journal files of 64 MiB, and a ballast of 40 MiB that can be thrown off."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with (disk / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, 40 * MIB)
        (disk / "data").mkdir()
        (tmp_path / "mesh-data").symlink_to(disk / "data")
        with folder_at(tmp_path) as made:
            yield made
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("reserve", ["1KiB", "16MiB"], ids=["to the last byte", "to the reserve"])
async def test_a_full_disk_stops_acknowledgements_with_an_error(small_disk: Folder, reserve: str) -> None:
    """And what was acknowledged is there, what was refused is not, and with space it goes on without a restart."""
    options = *STREAM, "--disk-reserve", reserve
    daemon = await small_disk.up(*options)
    async with client(small_disk.url) as connection:
        publisher = await _fill(connection)
        refusals = [answer["error"] for answer in publisher.answers.values() if "error" in answer]
        assert {(refusal["code"], refusal["err_code"]) for refusal in refusals} == {(503, 10077)}
        await until(lambda: "storage_full" in daemon.complaints, "it says so in its log")  # once a second it looks
        assert (await small_disk.varz())["sink"]["storage_full"] is True
        numbers = list(publisher.acknowledged)
        assert await _numbers(connection) == numbers
        assert await daemon.stop() == 0  # a stop and a start on the full disk
        daemon = await small_disk.up(*options)
    async with client(small_disk.url) as connection:
        assert await _numbers(connection) == numbers
        assert (await published(connection, "text.a", b"still full"))["error"]["err_code"] == 10077
        await connection.publish("text.a", b"patience")
        (small_disk.path / "disk" / "ballast").unlink()
        while "error" in (answer := await published(connection, "text.a", b"at last")):
            assert answer["error"]["err_code"] == 10077
            await asyncio.sleep(0.05)
        payloads = [event.payload for event in await everything(connection, "text")]
        assert [payload[0] for payload in payloads[: len(numbers)]] == numbers
        assert payloads[len(numbers) :] == [b"patience", b"at last"]
    assert await daemon.stop() == 0


async def _fill(connection: Client) -> Publisher:
    """Publishes events of half a mebibyte, their number in the first byte, until thirty are refused."""
    publisher = await Publisher(connection, "text.a", window=8).open()
    for number in range(250):
        await publisher.send(number, bytes([number]) * 500_000)
        if len(publisher.answers) - len(publisher.acknowledged) > 30:
            break
    else:
        raise AssertionError("the disk was never full")
    await publisher.settle()
    return publisher


async def _numbers(connection: Client) -> list[int]:
    return [event.payload[0] for event in await everything(connection, "text")]


async def test_a_reserve_that_is_not_there_refuses_from_the_start(folder: Folder) -> None:
    daemon = await folder.up(*STREAM, "--disk-reserve", "1000TiB")
    async with client(folder.url) as connection:
        for _ in range(3):
            assert (await published(connection, "text.a", b"no"))["error"]["err_code"] == 10077
        assert await everything(connection, "text") == []
    assert await daemon.stop() == 0


# -- somebody else's --------------------------------------------------------------------------------------------------


async def test_a_second_process_on_the_same_folder_is_refused(folder: Folder, tmp_path: Path) -> None:
    first = await folder.up(*STREAM)
    await keep(folder, b"one")
    second = folder.run("mesh", "up", "--client", "127.0.0.1:0", "--monitor", "127.0.0.1:0")
    await refused(second, "mesh-data", f"in use by process {first.process.pid}")
    await keep(folder, b"two")
    assert await kept(folder) == [b"one", b"two"]
    assert await first.stop() == 0
    third = await folder.up(*STREAM)  # the lock of a process that is gone holds nobody up
    third.kill()
    await folder.up(*STREAM)


async def test_a_folder_of_another_mesh_is_refused(folder: Folder) -> None:
    folder.write_config()
    daemon = await folder.sinkd()
    assert await daemon.stop() == 0
    await refused(folder.begin_up(), "mesh-data", "acme", "local")
    folder.write_config(mesh='name = "other"\nrevision = 1')
    await refused(folder.run("sinkd", "--config", "mesh.toml", "--node", "sink1"), "mesh-data", "acme", "other")


async def test_a_folder_with_other_files_is_refused_and_left_alone(folder: Folder) -> None:
    folder.data.mkdir()
    (folder.data / "thesis.txt").write_text("mine")
    await refused(folder.begin_up(), "mesh-data", "thesis.txt")
    assert [path.name for path in folder.data.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("which", ["client", "monitor"])
async def test_a_port_in_use_is_one_clear_line(folder: Folder, tmp_path: Path, which: str) -> None:
    first = await folder.up(*STREAM)
    await keep(folder, b"one")
    ports = {"client": 0, "monitor": 0} | {which: getattr(folder, f"{which}_port")}
    addresses = [part for name, port in ports.items() for part in (f"--{name}", f"127.0.0.1:{port}")]
    second = folder.run("mesh", "up", "--data", "elsewhere", *addresses)
    await refused(second, str(ports[which]), "in use")
    assert await kept(folder) == [b"one"]
    assert await first.stop() == 0
