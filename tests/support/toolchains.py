"""Programs in other languages, built for tests.

`program("go")` builds tests/clients/go and returns the command that runs it. What is built or downloaded goes to
~/.cache/event-mesh-tests/<folder> (or below $XDG_CACHE_HOME): a second run finds it there, from whatever checkout. Two
things can go wrong, with different consequences for the test that asked:

    ToolchainMissing   the compiler, the interpreter or its registry cannot be had here: the test skips, with the reason
    BuildError         all is there and the program does not build: the test fails

Each step of a builder that only fetches other people's packages is a `_download`; every other one is a `_build`.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "clients"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "event-mesh-tests"

DOWNLOAD_WAIT_S_MAX = 240
BUILD_WAIT_S_MAX = 600


class ToolchainMissing(Exception):
    """Something that the program needs cannot be had on this machine."""


class BuildError(Exception):
    """The program does not build with a toolchain that is there."""


def program(folder: str) -> tuple[str, ...]:
    """The command that runs tests/clients/<folder>. Raises ToolchainMissing, BuildError."""
    outcome = _attempt(folder)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@functools.cache
def _attempt(folder: str) -> tuple[str, ...] | ToolchainMissing | BuildError:
    """Once in a session, also when it fails: a registry that cannot be reached takes its time to say so."""
    cache = CACHE / folder
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(cache.with_suffix(".lock")):
            return _BUILDERS[folder](SOURCES / folder, cache)
    except (ToolchainMissing, BuildError) as problem:
        return problem


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two test sessions build one after the other."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path, wait_s: float, environment: dict[str, str]) -> str | None:
    """Why `command` failed, its last words; None when it did not."""
    name = " ".join(command[:3])
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=wait_s,
            check=False,
        )
    except FileNotFoundError:
        return f"{command[0]} not found"
    except subprocess.TimeoutExpired:
        return f"{name} took longer than {wait_s:.0f} s"
    if done.returncode == 0:
        return None
    return f"{name} failed with {done.returncode}: {done.stdout.decode(errors='replace').strip()[-2000:]}"


def _download(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    if problem := _run(command, folder, DOWNLOAD_WAIT_S_MAX, environment or {}):
        raise ToolchainMissing(" ".join(problem.split())[:400])  # one line of the test's summary


def _build(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    if problem := _run(command, folder, BUILD_WAIT_S_MAX, environment or {}):
        raise BuildError(problem)


def _tool(name: str, version_arguments: str, least: tuple[int, ...], toolchain: str) -> str:
    """The path of a tool that is at least of version `least`."""
    path = shutil.which(name)
    if path is None:
        raise ToolchainMissing(f"{toolchain} toolchain not found: no {name} on the path")
    said = subprocess.run([path, *version_arguments.split()], capture_output=True, check=False, timeout=60)
    plain = re.sub(rb"\x1b\[[\d;]*m", b"", said.stdout + said.stderr)  # Maven colours even this
    found = re.search(rb"\d+(\.\d+)*", plain)
    version = tuple(int(part) for part in found.group().split(b".")) if found else ()
    if said.returncode != 0 or version < least:
        words = ".".join(map(str, version)) or "not usable"
        raise ToolchainMissing(
            f"{toolchain} toolchain too old: {path} is {words}, {'.'.join(map(str, least))} is needed"
        )
    return path


@contextmanager
def _once_for(cache: Path, *inputs: Path) -> Iterator[bool]:
    """True inside when the cache was not yet filled from exactly these inputs."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    stamp = cache / "filled-from"
    if stamp.exists() and stamp.read_text() == digest:
        yield False
        return
    stamp.unlink(missing_ok=True)
    yield True
    stamp.write_text(digest)


def _python_classic(source: Path, _cache: Path) -> tuple[str, ...]:
    return sys.executable, str(source / "tour.py")


def _python_new(source: Path, cache: Path) -> tuple[str, ...]:
    """These packages need Python 3.13; the tests themselves may run on an older one."""
    requirements = source / "requirements.txt"
    python = cache / "venv" / "bin" / "python"
    with _once_for(cache, requirements) as empty:
        if empty:
            _download([_python_of_at_least((3, 13)), "-m", "venv", "--clear", str(cache / "venv")], cache)
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--retries", "1", "install", "-q"]
            _download([*pip, "--require-hashes", "-r", str(requirements)], cache)
    return str(python), str(source / "tour.py")


def _python_of_at_least(least: tuple[int, int]) -> str:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    on_path = [shutil.which(f"python3.{minor}") for minor in range(least[1], least[1] + 3)]
    for candidate in [sys.executable, *filter(None, on_path), *map(str, sorted(pyenv.glob("3.*/bin/python")))]:
        check = f"import sys, venv; sys.exit(sys.version_info < {least})"
        if subprocess.run([candidate, "-c", check], capture_output=True, check=False, timeout=60).returncode == 0:
            return candidate
    raise ToolchainMissing(f"no Python {least[0]}.{least[1]} or later found")


def _go(source: Path, cache: Path) -> tuple[str, ...]:
    go = _tool("go", "version", (1, 21), "Go")
    _download([go, "mod", "download"], source)
    _build([go, "build", "-mod=readonly", "-o", str(cache / "tour"), "."], source)
    return (str(cache / "tour"),)


def _rust(source: Path, cache: Path) -> tuple[str, ...]:
    cargo = _tool("cargo", "--version", (1, 89), "Rust")
    rustc = _tool("rustc", "--version", (1, 89), "Rust")
    about = subprocess.run([rustc, "-vV"], capture_output=True, check=True, timeout=60, text=True).stdout
    host = about.partition("host: ")[2].partition("\n")[0]
    _download([cargo, "fetch", "--locked", "--target", host], source, {"CARGO_NET_RETRY": "1"})
    _build([cargo, "build", "--locked", "--offline"], source, {"CARGO_TARGET_DIR": str(cache)})
    return (str(cache / "debug" / "tour"),)


def _js(source: Path, cache: Path) -> tuple[str, ...]:
    node = _tool("node", "--version", (20,), "JavaScript")
    npm = _tool("npm", "--version", (8,), "JavaScript")
    manifest, lock = source / "package.json", source / "package-lock.json"
    with _once_for(cache, manifest, lock) as empty:
        if empty:
            shutil.copy(manifest, cache)
            shutil.copy(lock, cache)
            _download([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"], cache)
    shutil.copy(source / "tour.mjs", cache)  # a module looks for node_modules beside itself
    return node, str(cache / "tour.mjs")


def _java(source: Path, cache: Path) -> tuple[str, ...]:
    java = _tool("java", "-version", (17,), "Java")
    javac = _tool("javac", "-version", (17,), "Java")
    maven = _tool("mvn", "-version", (3, 6), "Java")
    library = cache / "lib"
    with _once_for(cache, source / "pom.xml") as empty:
        if empty:
            shutil.rmtree(library, ignore_errors=True)
            copy = ["dependency:copy-dependencies", f"-DoutputDirectory={library}"]
            _download([maven, "-q", "-B", "-f", str(source / "pom.xml"), *copy], cache)
    _build([javac, "--release", "17", "-cp", f"{library}/*", "-d", str(cache / "classes"), "Tour.java"], source)
    return java, "-cp", f"{cache / 'classes'}:{library}/*", "Tour"


def _c(source: Path, cache: Path) -> tuple[str, ...]:
    compiler = _tool("cc", "--version", (), "C")
    (cache / "probe.c").write_text("#include <nats/nats.h>\n")
    if _run([compiler, "-E", "probe.c"], cache, BUILD_WAIT_S_MAX, {}):
        raise ToolchainMissing("C library not found: no nats/nats.h (Debian: libnats-dev)")
    options = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"]
    _build([compiler, *options, "-o", str(cache / "tour"), "tour.c", "-lnats"], source)
    return (str(cache / "tour"),)


_BUILDERS: dict[str, Callable[[Path, Path], tuple[str, ...]]] = {
    "python_classic": _python_classic,
    "python_new": _python_new,
    "go": _go,
    "rust": _rust,
    "js": _js,
    "java": _java,
    "c": _c,
}
