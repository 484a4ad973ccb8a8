"""How the C library keeps memory: freed blocks of batches and commands stay with the process.

By default glibc takes every block above 128 KiB from the system and gives it back, and gives back the end of the heap
whenever it is free. What passes here by the hundred each second has half a megabyte, or one: each time the
system would have to find, clear and map its pages (measured: to read a frame of 1 MiB took 2.8 ms, and takes 0.16 ms).
"""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
MMAP_THRESHOLD_BYTES: Final = 32 * 1024 * 1024  # the most that glibc takes
TRIM_THRESHOLD_BYTES: Final = 64 * 1024 * 1024  # what may stay with the process although it is free


def keep_freed_blocks() -> bool:
    """Whether the C library has taken it: glibc does, others have no such call."""
    library = ctypes.CDLL(None)
    try:
        mallopt = library.mallopt
    except AttributeError:
        return False
    taken = [mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES), mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)]
    return all(taken)
