"""Errors, named by consequence.

    MeshError
    ├── ConfigError            the configuration is wrong: nothing starts until it is corrected
    ├── DataError              bytes on a disk are not what was written: the process refuses to serve them
    │   ├── DamagedFile        with file and position
    │   │   └── Superseded     its Raft group goes on without it
    │   ├── FolderInUse        another process holds the data folder, or the folder belongs to another node
    │   └── FolderUnusable     there is none at that path, and none can be made
    ├── FrameError             a peer sent what the protocol does not allow: close that connection
    ├── SignatureError         something that is signed does not prove who has said it: it does not count
    └── LogError               a request to the log that cannot be served: answer it by name, keep the connection

Every message says what is wrong, where, and what would be right.
"""

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: strings that are no UTF-8, nesting without end."""


class MeshError(Exception):
    """Root of what the mesh raises on purpose; anything else is a bug."""


class ConfigError(MeshError):
    """All that is wrong with a configuration, one problem per element of `problems`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(MeshError):
    """Files that cannot be trusted or used; the process must end."""


class DamagedFile(DataError):
    """Bytes at `position` (in bytes) of `file` fail their checksum or contradict a witness."""

    def __init__(self, file: str, position: int, what: str) -> None:
        super().__init__(f"{file}: damaged at byte {position}: {what}")
        self.file = file
        self.position = position
        self.is_set_aside = False  # it was, and the sink's peers will fill what is missing


class Superseded(DamagedFile):
    """The Raft group that the files of this sink belong to goes on without them: an operator has accepted that."""

    def __init__(self, folder: str, by: str) -> None:
        super().__init__(folder, 0, "")
        self.args = (f"{folder}: its group is over: sink {by} has gone on with what it held, and fills this one",)


class FolderInUse(DataError):
    """The data folder is locked by a running process or belongs to another node."""


class FolderUnusable(DataError):
    """There is no data folder at that path, and none can be made."""


class FrameError(MeshError):
    """Bytes that are not a frame of the protocol in question; the connection is closed."""


class SignatureError(MeshError):
    """Nobody has said that, as far as can be proved; `reason` is one of `protocol.signing.REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LogError(MeshError):
    """A request that the log refuses, with Kafka's error name and number where Kafka has one.

    `status` is the three-digit code of a NATS status header; `details` go into headers or JSON beside the message.
    """

    def __init__(self, name: str, message: str, **details: int | str) -> None:
        super().__init__(message)
        self.name = name
        self.code, self.status = LOG_ERRORS[name]
        self.details = details


LOG_ERRORS: dict[str, tuple[int, int]] = {
    "UNKNOWN_SERVER_ERROR": (-1, 500),
    "OFFSET_OUT_OF_RANGE": (1, 416),
    "CORRUPT_MESSAGE": (2, 500),
    "UNKNOWN_STREAM": (3, 404),
    "UNKNOWN_PARTITION": (3, 404),
    "LEADER_NOT_AVAILABLE": (5, 503),
    "AUTHORIZATION_FAILED": (29, 403),
    "INVALID_REQUEST": (42, 400),
    "STORAGE_ERROR": (56, 500),
    "THROTTLING_QUOTA_EXCEEDED": (89, 429),
    "UNKNOWN_REQUEST": (42, 404),
    "NO_LOG": (5, 503),
    "CONTRACT_INVALID": (42, 400),
    "CONTRACT_OVERLAP": (42, 409),
    "CONTRACT_OWNER": (29, 403),
    "CONTRACT_UNKNOWN": (42, 404),
    "CONTRACT_QUOTA": (44, 429),
}
"""Name → (Kafka error code, NATS status code). Source: Kafka protocol guide, 'Error Codes'."""
