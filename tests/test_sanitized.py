"""The compiled twins, built with sanitizers, go through random scripts and batches: nothing out of bounds or undefined.

`make fuzz` does the same for as long as one likes. This is a part of it that is short enough for every run.
"""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest
from support import sanitizers

from gateway.core import engine

SCRIPTS = 80
RECORD_SEEDS = 4
MISTAKE = """
import ctypes, pathlib, sys
from support.fuzz import use_extensions
use_extensions(pathlib.Path(sys.argv[1]))
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
ctypes.memset(malloc(8) + 8, 0, 64)
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Built once, by the worker that is here first."""
    if engine.COMPILED is None:
        pytest.skip("the compiled twins were not built")
    if missing := sanitizers.missing():
        pytest.skip(missing)
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "sanitized"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            sanitizers.build(folder)
            (folder / "built").touch()
    return folder


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=sanitizers.environment(), capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("limits", [[], ["--small-limits"]], ids=["limits of production", "small limits"])
def test_random_scripts(build: Path, limits: list[str]) -> None:
    done = run("-m", "support.fuzz", "--extensions", str(build), "--seeds", "0", str(SCRIPTS), *limits)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SCRIPTS} scripts" in done.stdout


def test_record_batches(build: Path) -> None:
    tests = "test_batches_of_real_lines_sound_and_damaged", "test_columns_of_real_lines_sound_and_damaged"
    seeds = [f"tests/test_record_twins.py::{test}[{seed}]" for test in tests for seed in range(RECORD_SEEDS)]
    done = run("-m", "support.fuzz", "--extensions", str(build), *seeds)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{2 * RECORD_SEEDS} passed" in done.stdout


def test_a_mistake_would_be_seen(build: Path) -> None:
    """The sanitizers are there and watch: without them all of the above would pass just as well."""
    done = run("-c", MISTAKE, str(build))
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
