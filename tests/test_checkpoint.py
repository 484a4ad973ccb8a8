"""The checkpoint: the old one or the new one, whole, whatever happens; a bad one is refused."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.disk import Crash, DyingProcess, flip

from protocol.errors import DamagedFile
from sinkd.shell import checkpoint
from sinkd.shell.checkpoint import Checkpoint

OLD = Checkpoint(10, 2, 1, b"old state" * 1000)
NEW = Checkpoint(20, 3, 3, b"new state" * 2000)


def test_the_newest_comes_back(tmp_path):
    assert checkpoint.read(tmp_path) is None
    for one in (OLD, NEW, Checkpoint(21, 3, 3, b"")):
        checkpoint.write(tmp_path, one)
        assert checkpoint.read(tmp_path) == one
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_process_that_dies_while_writing_leaves_the_old_or_the_new_one(tmp_path):
    found = []
    for last_call in range(1, 6):
        folder = tmp_path / str(last_call)
        folder.mkdir()
        checkpoint.write(folder, OLD)
        with DyingProcess(last_call).running(), suppress(Crash):
            checkpoint.write(folder, NEW)
        found.append(checkpoint.read(folder))
        assert [path.name for path in folder.iterdir()] == ["checkpoint"]  # nothing is left over
    assert found == [OLD, OLD, OLD, NEW, NEW]  # pwritev, fsync, replace, fsync of the folder


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, OLD)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(tmp_path, NEW)
    monkeypatch.undo()
    assert checkpoint.read(tmp_path) == OLD


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_flipped_byte_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("checkpoint")
    one = Checkpoint(10, 2, 1, b"state" * 10)
    checkpoint.write(folder, one)
    path = folder / checkpoint.FILE_NAME
    flip(path, data.draw(st.integers(0, path.stat().st_size - 1)), data.draw(st.integers(1, 255)))
    with pytest.raises(DamagedFile, match=str(path)):
        checkpoint.read(folder)


@pytest.mark.parametrize("size_bytes", [0, 7, 40, 100])
def test_a_short_one_is_refused(tmp_path, size_bytes):
    checkpoint.write(tmp_path, OLD)
    path = tmp_path / checkpoint.FILE_NAME
    path.write_bytes(path.read_bytes()[:size_bytes])
    with pytest.raises(DamagedFile, match="checkpoint: "):
        checkpoint.read(tmp_path)
