"""Whole reads and writes over short ones, and descriptors that outlive their owner while somebody reads."""

import os
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkd.shell.files import FileGone, SharedFile, make_folder, read_at, remove_temporary_files, write_at


@given(st.lists(st.binary(max_size=50), max_size=4), st.integers(1, 7))
def test_short_reads_and_writes_are_finished(tmp_path_factory, buffers, step):
    path = tmp_path_factory.mktemp("short") / "file"
    pread, pwritev, pwrite = os.pread, os.pwritev, os.pwrite
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    data = b"".join(buffers)
    with (
        mock.patch.object(os, "pread", lambda file, size, at: pread(file, min(size, step), at)),
        mock.patch.object(os, "pwritev", lambda file, parts, at: pwritev(file, [b"".join(parts)[:step]], at)),
        mock.patch.object(os, "pwrite", lambda file, part, at: pwrite(file, part[:step], at)),
    ):
        write_at(descriptor, buffers, 3)
        assert read_at(descriptor, len(data), 3) == data
        assert read_at(descriptor, len(data) + 10, 3) == data
    os.close(descriptor)
    assert path.read_bytes()[3:] == data


def test_a_retired_file_is_closed_by_its_last_reader(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    descriptor = os.open(path, os.O_RDONLY)
    file = SharedFile(path, descriptor)
    with file.reading() as first:
        with file.reading():
            assert not file.retire()
        assert read_at(first, 3, 0) == b"abc"
        with pytest.raises(FileGone, match="no longer read"):
            file.acquire()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert file.retire()  # again does no harm


def test_a_file_that_nobody_reads_is_closed_at_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    file = SharedFile(path, os.open(path, os.O_RDONLY))
    assert file.retire()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.descriptor)


def test_folders_are_made_with_their_parents_and_left_overs_go(tmp_path):
    folder = tmp_path / "a" / "b"
    make_folder(folder)
    make_folder(folder)
    (folder / "x.tmp").touch()
    (folder / "x").touch()
    remove_temporary_files(folder)
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_a_folder_that_is_there_is_made_durable_too(tmp_path):
    (tmp_path / "a").mkdir()
    synced = []
    with mock.patch("sinkd.shell.files.sync_folder", synced.append):
        make_folder(tmp_path / "a")
        make_folder(tmp_path / "b" / "c")
    assert synced == [tmp_path, tmp_path.parent, tmp_path, tmp_path / "b"]
