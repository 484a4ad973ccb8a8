"""The load generators that are written in C, made from their sources when they are first needed."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from bench.processes import UnavailableError

HERE = Path(__file__).parent


@cache
def program(name: str) -> Path:
    """The program made of `bench/<name>.c`. UnavailableError without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler (cc) for the load generators")
    target = Path(_folder().name) / name
    made = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-o", str(target), str(HERE / f"{name}.c")],
        capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode != 0:
        raise UnavailableError(f"{name}.c cannot be compiled: {made.stderr}")
    return target


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Goes with the process."""
    return tempfile.TemporaryDirectory(prefix="bench-")
