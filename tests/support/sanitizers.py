"""Build the compiled twins with the address and undefined-behaviour sanitizers, and run Python under their eyes."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]
# Not optimized: that takes a fifth of the time to build, and the scripts take as long.
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O0 -w"
_LIBRARIES = ("libasan.so", "libubsan.so")
_BUILD_S_MAX = 300


def missing() -> str:
    """What the machine lacks for it; "" if nothing."""
    if shutil.which(COMPILER) is None:
        return f"no C compiler: {COMPILER} is not on the PATH"
    return "" if _libraries() else f"{COMPILER} has no {' and '.join(_LIBRARIES)}"


def build(folder: Path) -> None:
    """The compiled twins with sanitizers, made below `folder`."""
    arguments = ["-q", "build_ext", "--force", "--build-lib", str(folder), "--build-temp", str(folder)]
    variables = os.environ | {"CFLAGS": FLAGS, "LDFLAGS": FLAGS}
    subprocess.run([sys.executable, "setup.py", *arguments], cwd=ROOT, env=variables, check=True, timeout=_BUILD_S_MAX)


def environment() -> dict[str, str]:
    """For a process that loads the twins: the sanitizers come before Python, and every allocation is theirs."""
    return os.environ | {
        "LD_PRELOAD": " ".join(_libraries()),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps much until it ends; tests/test_forwarding.py looks for leaks
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
    }


def _libraries() -> list[str]:
    found = []
    for name in _LIBRARIES:
        asked = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        path = asked.stdout.strip()
        if asked.returncode == 0 and Path(path).is_absolute():
            found.append(path)
    return found if len(found) == len(_LIBRARIES) else []
