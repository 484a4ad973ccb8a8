"""The data folder: one process, one owner, and an identity that is given once."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from itertools import product

import pytest
from fastcrc import crc32
from support.disk import Crash, DyingProcess, flip

from protocol.errors import DamagedFile, FolderInUse, FolderUnusable
from sinkd.shell.folder import DataFolder

OWNER = {"mesh": "acme", "zone": "eu", "node": "eu-sink1"}


def test_a_new_folder_gets_an_identity_and_keeps_it(tmp_path):
    path = tmp_path / "var" / "data"
    folder = DataFolder.open(path, **OWNER)
    identity = folder.identity
    assert (identity.mesh, identity.zone, identity.node) == ("acme", "eu", "eu-sink1")
    assert len(folder.journal_id) == len(folder.disk_id) == 16
    assert folder.journal_folder.parent == folder.log_folder.parent == path
    assert folder.free_bytes() > 0
    (path / "journal").mkdir()
    folder.close()
    folder.close()
    folder = DataFolder.open(path, **OWNER)
    assert folder.identity == identity
    folder.close()
    other = DataFolder.open(tmp_path / "other", **OWNER)
    assert other.disk_id != folder.disk_id
    assert other.journal_id != folder.journal_id
    other.close()


def test_a_second_user_is_refused_by_process_id(tmp_path):
    folder = DataFolder.open(tmp_path, **OWNER)
    message = f"data folder {tmp_path} is in use by process {os.getpid()}; stop it or give another --data"
    with pytest.raises(FolderInUse, match=re.escape(message)):
        DataFolder.open(tmp_path, **OWNER)
    folder.close()
    DataFolder.open(tmp_path, **OWNER).close()


def test_the_lock_ends_with_its_process_however_it_ends(tmp_path):
    script = (
        "import pathlib, sys\n"
        "from sinkd.shell.folder import DataFolder\n"
        "folder = DataFolder.open(pathlib.Path(sys.argv[1]), mesh='acme', zone='eu', node='eu-sink1')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(FolderInUse, match=f"process {process.pid};"):
            DataFolder.open(tmp_path, **OWNER)
        process.kill()
    DataFolder.open(tmp_path, **OWNER).close()


@pytest.mark.parametrize("other", [{"mesh": "other"}, {"zone": "us"}, {"node": "eu-sink2"}])
def test_a_folder_of_another_node_is_refused(tmp_path, other):
    DataFolder.open(tmp_path, **OWNER).close()
    with pytest.raises(FolderInUse, match="belongs to node eu-sink1 in zone eu of mesh acme, this is node"):
        DataFolder.open(tmp_path, **{**OWNER, **other})
    DataFolder.open(tmp_path, **OWNER).close()


def test_somebody_elses_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(FolderInUse, match=r"has no identity\.json and holds thesis\.tex"):
        DataFolder.open(tmp_path, **OWNER)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_root_of_a_new_file_system_counts_as_empty(tmp_path):
    (tmp_path / "lost+found").mkdir()
    DataFolder.open(tmp_path, **OWNER).close()


def test_a_first_start_that_died_anywhere_can_be_repeated(tmp_path):
    for last_call in range(1, 30):
        path = tmp_path / str(last_call)
        with DyingProcess(last_call).running() as process, suppress(Crash):
            DataFolder.open(path, **OWNER).close()
        DataFolder.open(path, **OWNER).close()
        if process.calls < last_call:
            break
    assert 5 < last_call < 29


def test_a_damaged_identity_is_refused(tmp_path):
    DataFolder.open(tmp_path, **OWNER).close()
    path = tmp_path / "identity.json"
    right = path.read_bytes()
    for position, mask in product(range(len(right)), (0x02, 0x80)):
        path.write_bytes(right)
        flip(path, position, mask)
        with pytest.raises(DamagedFile, match=re.escape(str(path))):
            DataFolder.open(tmp_path, **OWNER)
    path.write_bytes(right.replace(b'"version": 3', b'"version": 4'))
    with pytest.raises(DamagedFile, match="version 4; this program reads"):
        DataFolder.open(tmp_path, **OWNER)


@pytest.mark.parametrize(("path", "what"), [("a-file", "File exists"), ("a-file/below", "File exists|Not a directory")])
def test_a_path_where_no_folder_can_be_is_refused_in_words(tmp_path, path, what):
    (tmp_path / "a-file").write_text("here already")
    with pytest.raises(FolderUnusable, match=f"data folder .*{path} cannot be made: ({what}); give a folder"):
        DataFolder.open(tmp_path / path, mesh="acme", zone="eu", node="sink1")


def test_what_changes_in_an_identity_is_durable(tmp_path):
    folder = DataFolder.open(tmp_path, **OWNER)
    assert (folder.identity.group, folder.identity.state, folder.identity.muted) == ("", "", "")
    folder.update(group="abc", state="chosen")
    folder.update(state="active", muted="why")
    folder.close()
    folder = DataFolder.open(tmp_path, **OWNER)
    assert (folder.identity.group, folder.identity.state, folder.identity.muted) == ("abc", "active", "why")
    folder.close()


def test_a_folder_of_version_1_belongs_to_a_sink_that_was_alone(tmp_path):
    DataFolder.open(tmp_path, **OWNER).close()
    path = tmp_path / "identity.json"
    fields = json.loads(path.read_bytes())
    old = {name: fields[name] for name in ("format", "mesh", "zone", "node", "disk_id", "journal_id")} | {"version": 1}
    lines = [old[name] for name in ("format", "version", "mesh", "zone", "node", "disk_id", "journal_id")]
    text = "".join(f"{line}\n" for line in lines)
    old["crc32c"] = f"{crc32.iscsi(text.encode()):08x}"
    path.write_text(json.dumps(old))
    folder = DataFolder.open(tmp_path, **OWNER)
    assert folder.identity.version == 3
    assert folder.identity.state == "active"
    assert folder.identity.group
    assert folder.identity.journal_id == fields["journal_id"]
    folder.close()


def test_setting_aside_mutes_first_and_leaves_the_segments(tmp_path):
    for last_call in range(1, 30):
        path = tmp_path / str(last_call)
        folder = DataFolder.open(path, **OWNER)
        folder.update(group="abc", state="active")
        before = folder.identity
        for name in ("journal/1.journal", "log/1.segment", "checkpoint"):
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text(name)
        with DyingProcess(last_call).running() as process, suppress(Crash):
            folder.set_aside("a flipped bit")
        folder.close()
        after = DataFolder.open(path, **OWNER)
        moved = [name for name in ("journal/1.journal", "checkpoint") if not (path / name).exists()]
        assert (path / "log/1.segment").exists()
        if after.identity.muted:
            assert after.identity.journal_id != before.journal_id
            assert after.identity.disk_id != before.disk_id
        else:
            assert moved == []
        after.close()
        if process.calls < last_call:
            break
    assert 4 < last_call < 29
    assert moved == ["journal/1.journal", "checkpoint"]
    assert (path / "damaged/1/journal/1.journal").read_text() == "journal/1.journal"


def test_only_the_last_damaged_files_are_kept(tmp_path):
    folder = DataFolder.open(tmp_path, **OWNER)
    asides = [folder.set_aside(f"the {number}. time") for number in (1, 2, 3, 4)]
    assert [path.name for path in asides] == ["1", "2", "3", "4"]
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["3", "4"]
    folder.close()


def test_the_segments_of_a_damaged_partition_are_set_aside_too(tmp_path):
    folder = DataFolder.open(tmp_path, **OWNER)
    for name in ("orders-ab/0/0.segment", "orders-ab/1/0.segment"):
        (folder.log_folder / name).parent.mkdir(parents=True)
        (folder.log_folder / name).write_text(name)
    aside = folder.set_aside("a flipped bit", folder.log_folder / "orders-ab/0/0.segment")
    assert (aside / "orders-ab-0/0.segment").read_text() == "orders-ab/0/0.segment"
    assert not (folder.log_folder / "orders-ab/0").exists()
    assert (folder.log_folder / "orders-ab/1/0.segment").exists()
    folder.close()


def test_each_group_has_a_folder_and_an_identity_of_its_own(tmp_path):
    folder = DataFolder.open(tmp_path, **OWNER)
    assert folder.groups == 1
    assert folder.of_group(0) is folder
    other = folder.of_group(2)
    assert (other.path, folder.groups) == (tmp_path / "group-2", 3)
    assert other.log_folder == tmp_path / "group-2" / "log"
    ids = {each.disk_id for each in (folder, other)} | {each.journal_id for each in (folder, other)}
    assert len(ids) == 4
    other.update(group="00ff", state="active")
    assert folder.identity.group == ""
    other.journal_folder.mkdir()
    other.set_aside("its journal is damaged")
    assert (tmp_path / "group-2" / "damaged" / "1" / "journal").is_dir()
    assert folder.identity.muted == ""
    folder.close()
    again = DataFolder.open(tmp_path, **OWNER)
    assert again.of_group(2).identity == other.identity
    again.close()


def test_a_folder_of_a_group_that_is_not_one_is_refused(tmp_path):
    folder = DataFolder.open(tmp_path, **OWNER)
    (tmp_path / "group-1").mkdir()
    (tmp_path / "group-1" / "holiday.jpg").touch()
    with pytest.raises(FolderInUse, match=r"group-1 is not a data folder of a sink: .* holds holiday\.jpg"):
        folder.of_group(1)
    folder.close()
    other = DataFolder.open(tmp_path / "elsewhere", **{**OWNER, "node": "eu-sink2"})
    other.of_group(1)
    (tmp_path / "group-1" / "holiday.jpg").unlink()
    (tmp_path / "group-1").rmdir()
    (tmp_path / "elsewhere" / "group-1").rename(tmp_path / "group-1")
    other.close()
    folder = DataFolder.open(tmp_path, **OWNER)
    with pytest.raises(FolderInUse, match="belongs to node eu-sink2"):
        folder.of_group(1)
    folder.close()
