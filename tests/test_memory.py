"""Freed blocks stay with the process, so that the next one does not have its pages mapped anew."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from mesh.memory import keep_freed_blocks

if sys.argv[1] == "kept" and not keep_freed_blocks():
    sys.exit("no glibc")
def work():
    blocks = [bytes(bytearray(1 << 20)) for _ in range(5)]

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


def test_blocks_of_a_megabyte_are_used_again():
    assert page_faults("kept") < 1_000 < page_faults("as it is")
