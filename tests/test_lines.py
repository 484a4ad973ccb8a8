"""`mesh.lines`: the lines of files and pipes, whatever their bytes and however they arrive."""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import lines
from mesh.lines import LineTooLong, read_lines, size_bytes


async def collect(file: str) -> list[bytes]:
    return [line async for line in read_lines(file)]


def expected(text: bytes) -> list[bytes]:
    parts = text.split(b"\n")
    return parts if parts[-1] else parts[:-1]


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"\xff\x00", b"long " * 5])).map(b"".join), st.integers(1, 9))
def test_any_chunking_of_a_file_gives_the_same_lines(text: bytes, chunk_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(lines, "LINES_CHUNK_BYTES", chunk_bytes)
        file = Path(folder) / "text"
        file.write_bytes(text)
        assert asyncio.run(collect(str(file))) == expected(text)


async def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    file = tmp_path / "pipe"
    os.mkfifo(file)
    reading, writing = os.open(file, os.O_RDONLY | os.O_NONBLOCK), os.open(file, os.O_WRONLY)
    source = read_lines(str(file))
    os.write(writing, b"one\ntw")
    assert await anext(source) == b"one"
    second = asyncio.create_task(anext(source))
    await asyncio.sleep(0.05)
    assert not second.done()
    os.write(writing, b"o\nthree")
    assert await second == b"two"
    os.close(writing)
    assert [line async for line in source] == [b"three"]
    os.close(reading)


async def test_a_line_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_LINE_BYTES_MAX", 100)
    monkeypatch.setattr(lines, "LINES_CHUNK_BYTES", 10)
    file = tmp_path / "text"
    file.write_bytes(b"a\nb\n" + bytes(200))
    with pytest.raises(LineTooLong) as caught:
        await collect(str(file))
    assert caught.value.number == 2


async def test_devices_and_missing_files(tmp_path: Path) -> None:
    assert await collect("/dev/null") == []
    assert size_bytes("/dev/null") is None
    with pytest.raises(FileNotFoundError):
        await collect(str(tmp_path / "missing"))


async def test_a_folder_is_no_file_of_lines(tmp_path):
    with pytest.raises(IsADirectoryError, match="give a file of lines"):
        [line async for line in read_lines(str(tmp_path))]
