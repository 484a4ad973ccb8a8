"""What a process takes of the machine, as `/varz` shows it."""

import os
import resource
import sys
import time
from typing import Final

from gateway.core.nats_values import Page

CPU_WINDOW_S: Final = 1.0  # `cpu` is the mean of at least so long


class ProcessUsage:
    """What this process takes of the machine, under nats-server's names: bytes, cores, and per cent of one core."""

    def __init__(self) -> None:
        self._looked_s, self._used_s = time.monotonic(), time.process_time()
        self._percent = 0.0

    def page(self) -> Page:
        now_s, used_s = time.monotonic(), time.process_time()
        if now_s - self._looked_s >= CPU_WINDOW_S:
            self._percent = round(100 * (used_s - self._used_s) / (now_s - self._looked_s), 1)
            self._looked_s, self._used_s = now_s, used_s
        return {"mem": _resident_bytes(), "cores": _cores(), "cpu": self._percent}


def _resident_bytes() -> int:
    """At the moment where Linux tells, else the most there ever was."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
