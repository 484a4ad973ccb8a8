"""The spool's folder: whose it is, what a full or failing disk does, and starts that die at any system call."""

import errno
import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.disk import Crash, DyingProcess, flip
from support.spools import EVENTS, ORDERS, OWNER, WALL_MS, held, position_of

from gateway.core.outbox import Outbox
from gateway.core.spool_format import Kind, Owner
from gateway.shell import spool
from gateway.shell.spool import SpoolFolder
from protocol import publish
from protocol.errors import DataError, FolderInUse, FolderUnusable
from protocol.limits import SPOOL_DISK_RESERVE_BYTES


class Gateway:
    """What `gateway.shell.gateway.Gateway` does with a spool."""

    def __init__(self, path: Path, owner: Owner = OWNER, workers: int = 1) -> None:
        self.answers: dict[str, dict] = {}
        self.folder = SpoolFolder(path, owner, workers, self.answer)
        self.outbox = Outbox("eu", self.answer, spool=self.folder.spool, answer_when_kept=self.folder.hold)

    def open(self) -> "Gateway":
        self.folder.open(self.outbox, [ORDERS, EVENTS], 10_000, WALL_MS)
        self.outbox.link_down(10_000)
        return self

    def answer(self, account: str, reply: str, body: bytes) -> None:
        self.answers[reply] = json.loads(body)

    def publish(self, payload: bytes, reply: str = "") -> None:
        self.outbox.publish("$G", "orders.new", reply, b"", payload, 10_000, WALL_MS)

    def die(self) -> None:
        """SIGKILL: the lock is free, and what was not written is gone."""
        for descriptor in (self.folder._file, self.folder._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self.folder._file = self.folder._lock = -1


def names(path: Path) -> list[str]:
    return sorted(each.name for each in (path / "0").iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "spool"


def with_events(path: Path, *payloads: bytes) -> Gateway:
    gateway = Gateway(path).open()
    for payload in payloads:
        gateway.publish(payload)
    assert gateway.folder.write()
    return gateway


# -- life -------------------------------------------------------------------------------------------------------------


def test_a_logged_answer_leaves_when_the_event_is_written(path):
    gateway = Gateway(path).open()
    gateway.publish(b"a", "r1")
    assert gateway.answers == {}
    assert gateway.folder.write()
    assert gateway.answers["r1"]["ack"] == "logged"
    gateway.die()
    again = Gateway(path).open()
    assert held(again.outbox) == {"orders": ([], [b"a"])}
    assert again.folder.varz() == {
        "bytes": again.folder.size_bytes, "events": 1, "events_restored": 1, "events_lost": 0, "shut": 0,
    }  # fmt: skip
    again.folder.close()


def test_an_answer_that_promises_nothing_does_not_wait(path):
    gateway = Gateway(path).open()
    gateway.outbox.publish("$G", "orders.new", "r1", b"NATS/1.0\r\nNats-TTL: 1\r\n\r\n", b"", 10_000, WALL_MS)
    assert gateway.answers["r1"]["error"]["err_code"] == 10166
    gateway.folder.close()


def test_a_stop_leaves_files_only_where_something_is_held(path):
    Gateway(path).open().folder.close()
    assert names(path) == ["lock"]
    gateway = with_events(path, b"a")
    gateway.folder.close()
    assert len(names(path)) == 2


def test_files_are_private(path):
    gateway = with_events(path, b"a")
    assert [each.stat().st_mode & 0o077 for each in (path, path / "0", *(path / "0").iterdir())][1:] == [0, 0, 0]
    gateway.folder.close()


def test_two_processes_do_not_share_it(path):
    gateway = Gateway(path).open()
    with pytest.raises(FolderInUse, match="spool/0 is in use by another process"):
        Gateway(path).open()
    gateway.folder.close()
    Gateway(path).open().folder.close()


def test_another_nodes_files_are_refused_and_left_alone(path):
    with_events(path, b"a").die()
    before = names(path)
    other = Gateway(path, Owner("acme", "eu", "gw2", 0))
    with pytest.raises(FolderInUse, match="is the spool of worker 0 of gw1"):
        other.open()
    other.folder.close()
    assert names(path) == before


def test_events_of_a_worker_that_is_no_more_are_not_forgotten(path):
    one = Gateway(path, Owner("acme", "eu", "gw1", 1), workers=2).open()
    one.publish(b"a")
    one.folder.write()
    one.die()
    with pytest.raises(DataError, match="start it with workers = 2 until they are in the log"):
        Gateway(path).open()
    for number in (0, 1):
        Gateway(path, Owner("acme", "eu", "gw1", number), workers=2).open().die()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderUnusable, match="file/0: not a directory"):
        Gateway(tmp_path / "file").open()


def test_a_file_of_a_later_version_is_refused(path):
    with_events(path, b"a").die()
    flip(path / "0" / "0000000000000001.spool", 8, 0x02)
    gateway = Gateway(path)
    with pytest.raises(DataError, match="version 3, ours is 1"):
        gateway.open()
    gateway.folder.close()


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_go_when_what_stands_in_them_is_gone(path, monkeypatch):
    monkeypatch.setattr(spool, "SPOOL_FILE_BYTES", 1_000)
    gateway = Gateway(path).open()
    for number in range(100):
        gateway.publish(b"%d" % number)
        gateway.folder.write()
    files = len(names(path))
    assert files > 10
    gateway.die()
    again = Gateway(path).open()
    assert held(again.outbox) == {"orders": ([], [b"%d" % number for number in range(100)])}
    (partition,) = again.outbox._partitions.values()
    again.outbox._refuse_pending(partition, list(partition.pending)[:95], publish.NO_LEADER)
    for _ in range(3):
        again.folder.write()
        again.publish(b"x")
    assert len(names(path)) < 5
    again.die()
    assert len(held(Gateway(path).open().outbox)["orders"][1]) == 5 + 2


def test_one_event_that_stays_does_not_keep_the_files_behind_it(path, monkeypatch):
    monkeypatch.setattr(spool, "SPOOL_FILE_BYTES", 1_000)
    gateway = with_events(path, b"stays")
    (partition,) = gateway.outbox._partitions.values()
    for number in range(200):
        gateway.publish(b"%d" % number)
        gateway.folder.write()
        gateway.outbox._refuse_pending(partition, list(partition.pending)[1:], publish.NO_LEADER)
        assert gateway.folder.size_bytes < 2 * gateway.outbox.size_bytes + 6 * 1_000
    gateway.folder.write()
    gateway.die()
    assert held(Gateway(path).open().outbox) == {"orders": ([], [b"stays"])}


def test_what_is_damaged_is_set_aside_and_reported(path):
    with_events(path, b"a", b"b", b"c").die()
    file = path / "0" / "0000000000000001.spool"
    damaged = file.read_bytes()
    flip(file, position_of(damaged, Kind.EVENT, 2) + 10)
    damaged = file.read_bytes()
    with capture_logs() as logs:
        again = Gateway(path).open()
    (report,) = [one for one in logs if one["event"] == "spool_damaged"]
    assert "0000000000000001.spool, byte " in report["problems"][0]
    assert "the CRC-32C of a record is wrong" in report["problems"][0]
    assert held(again.outbox) == {"orders": ([], [b"gap 1"])}
    assert again.folder.lost_events == 1
    assert names(path) == ["0000000000000001.spool.damaged", "0000000000000002.spool", "lock"]
    assert (path / "0" / "0000000000000001.spool.damaged").read_bytes() == damaged
    again.die()
    assert held(Gateway(path).open().outbox) == {"orders": ([], [b"gap 1"])}


@pytest.mark.parametrize("held_before", [0, 3])
def test_a_start_that_dies_at_any_system_call_loses_nothing(path, held_before, monkeypatch):
    payloads = [b"%d" % number for number in range(held_before)]
    with_events(path, *payloads).die()
    wanted = {"orders": ([], payloads)} if payloads else {}
    for call in range(1, 100):
        gateway = Gateway(path)
        try:
            with DyingProcess(call).running():
                gateway.open()
        except Crash:
            gateway.die()
            survivor = Gateway(path).open()
            assert held(survivor.outbox) == wanted, call
            survivor.die()
        else:
            gateway.die()
            assert call > 3
            return
    raise AssertionError("it never got through")


# -- disks that are full ----------------------------------------------------------------------------------------------


class FullDisk:
    """pwrite writes some of it, and then there is no space."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self._write = os.pwrite
        self._calls = 0
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, file: int, data: bytes, position: int) -> int:
        self._calls += 1
        if not self.is_full:
            return self._write(file, data, position)
        if self._calls % 2:
            return self._write(file, data[:10], position)
        raise OSError(errno.ENOSPC, "No space left on device")


def test_on_a_full_disk_nothing_leaves_until_it_is_written(path, monkeypatch):
    gateway = with_events(path, b"before")
    disk = FullDisk(monkeypatch)
    disk.is_full = True
    gateway.publish(b"during", "r1")
    assert not gateway.folder.write()
    assert gateway.answers == {}
    assert gateway.folder.problem == "cannot be written: no space left on device"
    gateway.publish(b"refused", "r2")
    assert gateway.answers["r2"]["error"]["err_code"] == 10167
    assert not gateway.outbox.has_room(ORDERS)
    gateway.folder.look_at_disk()
    assert gateway.folder.problem
    disk.is_full = False
    gateway.folder.look_at_disk()
    assert gateway.folder.problem is None
    assert gateway.answers["r1"]["ack"] == "logged"
    gateway.publish(b"after", "r3")
    gateway.folder.write()
    gateway.die()
    assert held(Gateway(path).open().outbox) == {"orders": ([], [b"before", b"during", b"after"])}


def test_half_a_write_is_torn_and_was_promised_to_nobody(path, monkeypatch):
    gateway = with_events(path, b"before")
    FullDisk(monkeypatch).is_full = True
    gateway.publish(b"during", "r1")
    for _ in range(3):
        gateway.folder.write()
    gateway.die()
    monkeypatch.undo()
    assert held(Gateway(path).open().outbox) == {"orders": ([], [b"before"])}


def test_with_little_space_left_it_takes_nothing_more_and_empties_itself(path, monkeypatch):
    gateway = with_events(path, b"before")
    real = spool.shutil.disk_usage
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda path: real(path)._replace(free=SPOOL_DISK_RESERVE_BYTES - 1))
    gateway.folder.look_at_disk()
    assert "less than the 67108864 of the reserve" in gateway.folder.problem
    gateway.publish(b"refused", "r1")
    assert gateway.answers["r1"]["error"]["err_code"] == 10167
    (partition,) = gateway.outbox._partitions.values()
    gateway.outbox._refuse_pending(partition, list(partition.pending), publish.NO_LEADER)
    assert gateway.folder.write()
    monkeypatch.undo()
    gateway.folder.look_at_disk()
    assert gateway.folder.problem is None
    gateway.folder.close()
    assert names(path) == ["lock"]


def test_where_no_further_file_can_be_made_the_present_one_goes_on(path, monkeypatch):
    monkeypatch.setattr(spool, "SPOOL_FILE_BYTES", 500)
    gateway = Gateway(path).open()

    def refuse(path: Path) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool, "_made", refuse)
        for number in range(10):
            gateway.publish(b"%d" % number)
            assert gateway.folder.write()
    assert len(names(path)) == 2
    gateway.publish(b"x")
    gateway.folder.write()
    assert len(names(path)) == 3
    gateway.folder.close()


def test_a_start_on_a_full_disk_says_so_and_loses_nothing(path, monkeypatch):
    with_events(path, b"a").die()
    FullDisk(monkeypatch).is_full = True
    gateway = Gateway(path)
    with pytest.raises(FolderUnusable, match="spool/0: no space left on device"):
        gateway.open()
    gateway.folder.close()
    monkeypatch.undo()
    assert held(Gateway(path).open().outbox) == {"orders": ([], [b"a"])}
