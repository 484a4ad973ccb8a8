"""The compiled forwarder, built with sanitizers, goes through random scripts: nothing out of bounds, nothing undefined.

`make fuzz` does the same for as long as one likes. This is a part of it that is short enough for every run.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from support import sanitizers

from gateway.core import engine

SCRIPTS = 150
MISTAKE = """
import ctypes, pathlib, sys
from support.fuzz import use_extension
use_extension(pathlib.Path(sys.argv[1]))
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
ctypes.memset(malloc(8) + 8, 0, 64)
"""


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if engine.COMPILED is None:
        pytest.skip("the compiled forwarder was not built")
    if missing := sanitizers.missing():
        pytest.skip(missing)
    return sanitizers.build(tmp_path_factory.mktemp("sanitized"))


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=sanitizers.environment(), capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("limits", [[], ["--small-limits"]], ids=["limits of production", "small limits"])
def test_random_scripts(extension: Path, limits: list[str]) -> None:
    done = run("-m", "support.fuzz", "--extension", str(extension), "--seeds", "0", str(SCRIPTS), *limits)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SCRIPTS} scripts" in done.stdout


def test_a_mistake_would_be_seen(extension: Path) -> None:
    """The sanitizers are there and watch: without them all of the above would pass just as well."""
    done = run("-c", MISTAKE, str(extension))
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
