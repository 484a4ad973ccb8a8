"""What the supervisor of a gateway's workers and each of them tell each other: `Orders` and `Report`; and a private
folder for their sockets.

    peer-*.sock        the workers talk to each other (gateway/shell/peers.py)
    monitor-<n>.sock   worker n shows its pages here, to the supervisor

Orders go through the worker's stdin, as one line of JSON: the configuration holds secrets, and a disk is no place for a
second copy. It is handed on as it was read, so that a worker which is started again later runs by the same one as the
others.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

_SOCKET_BYTES_MAX: Final = 103  # of a socket's path, on the system that allows least
_LONGEST_NAME: Final = "peer-255-to-254.sock"


class Orders(msgspec.Struct, frozen=True):
    """What a worker has to know and its command line does not say. `configuration` is the content of `file`.

    `reloads`: the file was to be read again since, for what may change in a process.
    """

    file: str
    configuration: bytes
    server_id: str
    client_port: int
    reloads: bool = False


class Report(msgspec.Struct, frozen=True):
    """A worker's only line: where it serves clients, or why it does not."""

    client: tuple[str, int] | None = None
    error: str = ""


class WorkerFolder:
    """Where the sockets at `path` are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def monitor(self, worker: int) -> str:
        """The socket on which `worker` shows its pages."""
        return str(self.path / f"monitor-{worker}.sock")

    def remove(self) -> None:
        """Take the folder away, if it is still there."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextlib.contextmanager
def private_folder() -> Iterator[WorkerFolder]:
    """A new folder that nobody else may enter, until the end of the context. OSError: there is no place for one."""
    folder = WorkerFolder(Path(tempfile.mkdtemp(prefix="event-mesh-")))
    try:
        if len(os.fsencode(folder.path / _LONGEST_NAME)) > _SOCKET_BYTES_MAX:
            raise OSError(f"{folder.path.parent} is too long a path for sockets: let TMPDIR name another folder")
        yield folder
    finally:
        folder.remove()
