"""A real text, the same on every run of one interpreter: the source of the standard library, line by line."""

import sysconfig
from itertools import islice
from pathlib import Path

_ELSEWHERE = {"site-packages", "dist-packages", "test", "tests", "idlelib"}  # not there on every machine
_ODD_LINES = (bytes(range(10)) + bytes(range(11, 256)), b"\r", b"\0", b"\xff\xfe", b"PUB a 1\r", "é→𝄞".encode())


def lines(count: int) -> list[bytes]:
    """At least `count` lines without their line feeds: lines that hold odd bytes, then files in the order of names.

    No line is left out, whatever it holds, and no file is cut, so the last line belongs to a whole file.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    taken = list(_ODD_LINES)
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        if not _ELSEWHERE.intersection(path.relative_to(root).parts):
            taken += path.read_bytes().split(b"\n")
        if len(taken) >= count:
            return taken
    raise AssertionError(f"the standard library has only {len(taken)} lines, {count} are needed")


def some_lines(count: int) -> list[bytes]:
    """Exactly `count` lines."""
    return list(islice(lines(count), count))
