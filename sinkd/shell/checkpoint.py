"""The checkpoint: the state machine's state at one Raft index, in one file that is replaced as a whole.

A crash leaves the old one or the new one, never a part. It is written after the segments that it speaks of were
fsynced, and the journal is cut only after it is durable. There is no second copy to fall back to: an older state with a
journal that was cut behind the newer one would have a hole.
"""

from pathlib import Path
from typing import Final

from protocol.errors import DamagedFile
from sinkd.core.formats import BadBytes, Checkpoint, decode_checkpoint, encode_checkpoint
from sinkd.shell.files import remove_temporary_files, write_atomically

__all__ = ["FILE_NAME", "Checkpoint", "read", "write"]

FILE_NAME: Final = "checkpoint"


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Replaces the checkpoint in `folder`; durable when this returns. OSError leaves the old one as it was."""
    write_atomically(folder / FILE_NAME, encode_checkpoint(checkpoint))


def read_with_bytes(folder: Path) -> tuple[Checkpoint, bytes] | None:
    """The checkpoint in `folder` with the bytes of its file, as a leader sends them to a member that needs it.

    DamagedFile: it cannot be trusted, the process must end.
    """
    path = folder / FILE_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return decode_checkpoint(data), data
    except BadBytes as error:
        raise DamagedFile(str(path), 0, str(error)) from error


def read(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`, None if there is none. DamagedFile: it cannot be trusted, the process must end.

    Removes what a crash left of one that was being written.
    """
    remove_temporary_files(folder)
    found = read_with_bytes(folder)
    return found[0] if found is not None else None
