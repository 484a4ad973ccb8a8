"""How much memory is in use, counted where it is handed out: what a leak in compiled code cannot hide from."""

import ctypes
import gc
import sys
from pathlib import Path


class _MallocInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost")
    ]  # fmt: skip


def python_blocks() -> int:
    """Objects and parts of objects that Python's allocator has handed out, after a collection."""
    gc.collect()
    return sys.getallocatedblocks()


def malloc_bytes() -> int | None:
    """What malloc has handed out and not got back; None where the C library does not tell."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return None
    mallinfo2.restype = _MallocInfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def resident_bytes() -> int:
    """The memory of this process that is in RAM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say VmRSS")
