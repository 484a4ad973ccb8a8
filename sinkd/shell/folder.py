"""The data folder of a sink: whose it is, and that only one process uses it.

    identity.json   whose it is, written when the folder is empty: mesh, zone, node, and two random ids; which group
                    it was born into (`sinkd.core.birth`), and why its owner may not vote, if it may not
    lock            an exclusive flock for as long as the process lives; holds its process id for the error message
    journal/        sinkd.shell.journal
    log/            sinkd.shell.segments, one folder for each stream incarnation and partition
    checkpoint      sinkd.shell.checkpoint
    damaged/        what was set aside, by number: journal and checkpoint of a member that its peers fill again
    group-1/        the same, without a lock, for Raft group 1 of the zone; group-2/ and so on

What stands in the folder itself is group 0's. Once made, a group's folder is used, whatever the file says later: only
a configuration that is committed can say that a group is needed no more.

The disk id makes a wiped disk another disk, and the journal id makes bytes of another journal foreign.
"""

import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

import msgspec
from fastcrc import crc32

from protocol.errors import UNREADABLE, DamagedFile, FolderInUse, FolderUnusable
from sinkd.shell.files import TEMPORARY_SUFFIX, make_folder, read_at, sync_folder, write_at, write_atomically

VERSION: Final = 3
IDENTITY_NAME: Final = "identity.json"
LOCK_NAME: Final = "lock"
GROUP_PREFIX: Final = "group-"
_FORMAT: Final = "event-mesh data folder"
# Names that a folder may hold without belonging to anybody: ours from a start that crashed, and a file system's own.
_NOBODYS: Final = frozenset({LOCK_NAME, IDENTITY_NAME + TEMPORARY_SUFFIX, "lost+found"})
_ID_BYTES: Final = 16
_ASIDE_MAX: Final = 2  # folders with damaged files that are kept


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of identity.json; `crc32c` is over the other fields in their order, each on a line.

    Version 1 ended with `journal_id`: such a folder belongs to a sink that was alone. Version 2 ended with `muted`.
    `succeeds` are the groups that `group` took the place of, with blanks between. `boot` is the run of the machine in
    which the journal is being written, "" if it was closed in order.
    """

    format: str
    version: int
    mesh: str
    zone: str
    node: str
    disk_id: str
    journal_id: str
    group: str = ""
    state: str = ""
    muted: str = ""
    succeeds: str = ""
    boot: str = ""
    crc32c: str = ""

    def check(self) -> str:
        fields: tuple[object, ...] = (self.format, self.version, self.mesh, self.zone, self.node)
        fields += (self.disk_id, self.journal_id)
        if self.version > 1:
            fields += (self.group, self.state, self.muted)
        if self.version > 2:
            fields += (self.succeeds, self.boot)
        lines = "".join(f"{field}\n" for field in fields)
        return f"{crc32.iscsi(lines.encode()):08x}"


def boot_id() -> str:
    """The run of this machine, "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class GroupFolder:
    """What a sink keeps of one Raft group."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path, self.identity = path, identity

    @property
    def journal_folder(self) -> Path:
        return self.path / "journal"

    @property
    def log_folder(self) -> Path:
        return self.path / "log"

    @property
    def journal_id(self) -> bytes:
        return bytes.fromhex(self.identity.journal_id)

    @property
    def disk_id(self) -> bytes:
        return bytes.fromhex(self.identity.disk_id)

    def update(self, **fields: str) -> None:
        """Changes `group`, `state`, `muted`, `succeeds`, `boot` or the ids; durable when this returns."""
        identity = msgspec.structs.replace(self.identity, version=VERSION, crc32c="", **fields)
        self.identity = _written(self.path, identity)

    def set_aside(self, reason: str, damaged: Path | None = None) -> Path:
        """Moves journal and checkpoint away, to be made anew; their owner may not vote until it is whole again.

        First that is made durable, with new ids, so that a crash leaves either nothing done or a member that neither
        votes nor is taken for what it was. Segments stay, for what is in them was committed; but for those of the
        partition that the file (or folder) `damaged` belongs to.
        """
        self.update(muted=reason, disk_id=secrets.token_hex(_ID_BYTES), journal_id=secrets.token_hex(_ID_BYTES))
        asides = self.path / "damaged"
        numbers = sorted(int(path.name) for path in asides.glob("[0-9]*"))
        aside = asides / str(numbers[-1] + 1 if numbers else 1)
        make_folder(aside)
        for path in (self.journal_folder, self.path / "checkpoint"):
            if path.exists():
                os.replace(path, aside / path.name)
        partition = damaged if damaged is None or damaged.is_dir() else damaged.parent
        if partition is not None and self.log_folder in partition.parents:
            os.replace(partition, aside / "-".join(partition.relative_to(self.log_folder).parts))
            sync_folder(partition.parent)
        sync_folder(aside)
        sync_folder(self.path)
        for old in numbers[: max(0, len(numbers) + 1 - _ASIDE_MAX)]:
            shutil.rmtree(asides / str(old))
        return aside

    def leave_group(self, reason: str) -> Path:
        """Moves all of the log away, too, and belongs to no group: the folder is empty but for its identity.

        A crash in between leaves a member that may not vote, and will be told again that its group is over.
        """
        aside = self.set_aside(reason)
        if self.log_folder.exists():
            os.replace(self.log_folder, aside / self.log_folder.name)
            sync_folder(aside)
            sync_folder(self.path)
        self.update(group="", state="", muted="", succeeds="")
        return aside


class DataFolder(GroupFolder):
    """A locked data folder, which is also that of group 0; `DataFolder.open` opens it, until the process ends."""

    def __init__(self, path: Path, lock: int, identity: Identity) -> None:
        super().__init__(path, identity)
        self._lock: int | None = lock

    @classmethod
    def open(cls, path: Path, *, mesh: str, zone: str, node: str) -> "DataFolder":
        """Locks the folder of this node, made and given an identity if it is absent or empty.

        FolderInUse: a process has it, or it is somebody else's. FolderUnusable: it is a file, or cannot be made.
        DamagedFile: its identity cannot be read.
        """
        try:
            make_folder(path)
        except OSError as error:
            what = f"{error.strerror}; give a folder that can be written, or one that can be made"
            raise FolderUnusable(f"data folder {path} cannot be made: {what}") from error
        _refuse_foreign(path)
        lock = _lock(path)
        try:
            os.ftruncate(lock, 0)
            write_at(lock, [f"{os.getpid()}\n".encode()], 0)
            identity = _identity(path, mesh, zone, node)
            folder = cls(path, lock, identity)
            if identity.version == 1:
                folder.update(group=secrets.token_hex(_ID_BYTES), state="active")
        except BaseException:  # whatever it was, the lock is nobody's now
            os.close(lock)
            raise
        return folder

    @property
    def groups(self) -> int:
        """Up to which number there are folders of groups."""
        numbers = [path.name.removeprefix(GROUP_PREFIX) for path in self.path.glob(f"{GROUP_PREFIX}*")]
        return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)

    def of_group(self, number: int) -> GroupFolder:
        """The folder of that group, made if it is missing. Errors as of `open`."""
        if number == 0:
            return self
        path, own = self.path / f"{GROUP_PREFIX}{number}", self.identity
        make_folder(path)
        _refuse_foreign(path)
        return GroupFolder(path, _identity(path, own.mesh, own.zone, own.node))

    def free_bytes(self) -> int:
        """What is left on the disk for us."""
        return shutil.disk_usage(self.path).free

    def close(self) -> None:
        """Gives the lock back. The lock file stays: removing it would let two processes hold two of that name."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _refuse_foreign(path: Path) -> None:
    """Before anything is written into the folder: it is ours, or there is nothing in it."""
    names = {entry.name for entry in path.iterdir()}
    foreign = sorted(names - _NOBODYS)
    if foreign and IDENTITY_NAME not in names:
        raise FolderInUse(
            f"{path} is not a data folder of a sink: it has no {IDENTITY_NAME} and holds {', '.join(foreign[:3])}; "
            "give an empty or a new folder with --data"
        )


def _lock(path: Path) -> int:
    lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = read_at(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        message = f"data folder {path} is in use by process {holder}; stop it or give another --data"
        raise FolderInUse(message) from error
    return lock


def _read_identity(path: Path) -> Identity | None:
    file = path / IDENTITY_NAME
    try:
        identity = msgspec.json.decode(file.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise DamagedFile(str(file), 0, str(error)) from error
    if not 1 <= identity.version <= VERSION or identity.format != _FORMAT:
        what = f"{identity.format!r} version {identity.version}; this program reads {_FORMAT!r} up to version {VERSION}"
        raise DamagedFile(str(file), 0, what)
    if identity.crc32c != identity.check():
        raise DamagedFile(str(file), 0, f"its CRC-32C is {identity.check()}, it says {identity.crc32c}")
    return identity


def _identity(path: Path, mesh: str, zone: str, node: str) -> Identity:
    """Whose the folder is: this node's, or it is refused."""
    identity = _read_identity(path) or _write_identity(path, mesh, zone, node)
    if (identity.mesh, identity.zone, identity.node) != (mesh, zone, node):
        raise FolderInUse(
            f"data folder {path} belongs to node {identity.node} in zone {identity.zone} of mesh "
            f"{identity.mesh}, this is node {node} in zone {zone} of mesh {mesh}; give another --data"
        )
    return identity


def _write_identity(path: Path, mesh: str, zone: str, node: str) -> Identity:
    ids = secrets.token_hex(_ID_BYTES), secrets.token_hex(_ID_BYTES)
    return _written(path, Identity(_FORMAT, VERSION, mesh, zone, node, *ids))


def _written(path: Path, identity: Identity) -> Identity:
    identity = msgspec.structs.replace(identity, crc32c=identity.check())
    write_atomically(path / IDENTITY_NAME, msgspec.json.format(msgspec.json.encode(identity)) + b"\n")
    return identity
