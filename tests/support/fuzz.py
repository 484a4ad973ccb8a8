"""Fuzz the twins outside of pytest, on a build and with limits of one's own: `python -m support.fuzz --help`.

The limits and the extensions are read when the gateway is imported, so this module sets them first and imports then.
"""

import argparse
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

import pytest

from protocol import limits

EXTENSIONS = ("protocol._records", "gateway.core._forwarding")
SMALL_LIMITS = {
    "ROUTE_PLANS_MAX": 64,
    "ROUTE_PLAN_BYTES_MAX": 2_000,
    "TURN_BYTES_MAX": 3_000,
    "TURN_EVENT_BYTES": 300,
    "DROP_AT_ONCE_MAX": 1,
}
"""So small that every script meets them."""


def use_extensions(folder: Path) -> None:
    """Make the compiled modules those that were built below `folder`."""
    for name in EXTENSIONS:  # a module comes behind those that it is made of
        package, _, last = name.rpartition(".")
        [path] = folder.rglob(f"{package.replace('.', '/')}/{last}.*.so")
        spec = importlib.util.spec_from_file_location(name, path, loader=ExtensionFileLoader(name, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        setattr(importlib.import_module(package), last, module)


def use_small_limits() -> None:
    for name, value in SMALL_LIMITS.items():
        setattr(limits, name, value)


def fuzz(first: int, last: int, steps_max: int) -> int:
    """Run the scripts of these seeds on both twins; how many failed. Each failure is printed with its seed."""
    from support.traffic import Traffic
    from support.twins import run_on_both

    failed = 0
    for seed in range(first, last):
        traffic = Traffic(random.Random(seed).randrange)
        steps = [*traffic.opening(), *(traffic.step() for _ in range(steps_max))]
        try:
            run_on_both(traffic.setting, steps)
        except AssertionError as error:
            failed += 1
            print(f"seed {seed}, {traffic.setting}: {str(error)[:2_000]}", flush=True)
    return failed


def _again_with_sanitizers(arguments: Sequence[str]) -> int:
    from support import sanitizers

    if missing := sanitizers.missing():
        print(missing)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        sanitizers.build(Path(folder))
        command = [sys.executable, "-m", "support.fuzz", *arguments, "--extensions", folder]
        return subprocess.run(command, env=sanitizers.environment(), check=False).returncode


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="support.fuzz", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 1_000), metavar=("FIRST", "LAST"))
    parser.add_argument("--steps", type=int, default=60, help="of each script")
    parser.add_argument("--small-limits", action="store_true", help="so small that every script meets them")
    parser.add_argument(
        "--extensions", type=Path, help="a folder with a build of the compiled twins, instead of the installed ones"
    )
    parser.add_argument("--sanitize", action="store_true", help="build it with sanitizers, and use that")
    parser.add_argument("tests", nargs="*", help="instead of random scripts, these tests: arguments of pytest")
    given = parser.parse_args(arguments)
    if given.sanitize:
        return _again_with_sanitizers([each for each in arguments if each != "--sanitize"])
    if given.small_limits:
        use_small_limits()
    if given.extensions is not None:
        use_extensions(given.extensions)
    if given.tests:
        return int(pytest.main(given.tests))
    started_s = time.monotonic()
    failed = fuzz(*given.seeds, given.steps)
    count = given.seeds[1] - given.seeds[0]
    print(f"{count} scripts of {given.steps} steps in {time.monotonic() - started_s:.1f} s, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
