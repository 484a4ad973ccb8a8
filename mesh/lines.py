"""Lines of a file or of stdin, as bytes, read without holding up the event loop.

Regular files are read with aiofiles. Pipes and terminals are read when they have something: a thread that waits there
could not be stopped by Ctrl-C.
"""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from typing import Final

import aiofiles

from protocol.errors import MeshError
from protocol.limits import CONFIG_PAYLOAD_BYTES_MAX, LINES_CHUNK_BYTES

STDIN: Final = "-"
_LINE_BYTES_MAX: Final = CONFIG_PAYLOAD_BYTES_MAX  # no server takes more


class LineTooLong(MeshError):
    """A line of more bytes than any server takes; `number` counts from 0."""

    def __init__(self, number: int) -> None:
        super().__init__(f"more than {_LINE_BYTES_MAX} bytes")
        self.number = number


def size_bytes(file: str) -> int | None:
    """Of a regular file; None where it is not known. OSError if there is none."""
    status = os.fstat(0) if file == STDIN else os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; give a file of lines", file)
    return status.st_size if stat.S_ISREG(status.st_mode) else None


async def read_lines(file: str) -> AsyncIterator[bytes]:
    """The lines of `file` (`-` for stdin) without their line feeds; a last line need not have one.

    OSError; LineTooLong.
    """
    number, rest = 0, b""
    async for chunk in _chunks(file):
        *lines, last = chunk.split(b"\n")
        if lines:
            lines[0] = rest + lines[0]
            rest = b""
        rest += last
        for line in lines:
            yield line
        number += len(lines)
        if len(rest) > _LINE_BYTES_MAX:
            raise LineTooLong(number)
    if rest:
        yield rest


def _chunks(file: str) -> AsyncIterator[bytes]:
    if size_bytes(file) is not None:
        return _file_chunks(0 if file == STDIN else file)
    return _pipe_chunks(file)


async def _file_chunks(file: str | int) -> AsyncIterator[bytes]:
    async with aiofiles.open(file, "rb", closefd=file != 0) as source:
        while chunk := await source.read(LINES_CHUNK_BYTES):
            yield chunk


async def _pipe_chunks(file: str) -> AsyncIterator[bytes]:
    descriptor = 0 if file == STDIN else os.open(file, os.O_RDONLY)
    try:
        while chunk := await _read_ready(descriptor):
            yield chunk
    finally:
        if descriptor:
            os.close(descriptor)


async def _read_ready(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    except PermissionError:  # a device that is always ready, like /dev/null
        return os.read(descriptor, LINES_CHUNK_BYTES)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, LINES_CHUNK_BYTES)
