"""Load generators are forked processes: they inherit connections that are ready, and answer with one JSON value."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from bench.servers import BenchError

LIFE_S_MAX = 300  # then the kernel ends it: nothing waits for ever


class Child:
    """Runs `function` in a process of its own; what it returns has to be JSON."""

    def __init__(self, function: Callable[[], Any]) -> None:
        read_end, write_end = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read_end)
            _run(function, write_end)
        os.close(write_end)
        self._answer = os.fdopen(read_end, "rb")
        self.cpu_s = 0.0  # known after `result`

    def result(self) -> Any:
        """Waits for it. BenchError says what went wrong in it."""
        with self._answer as pipe:
            answer = pipe.read()
        _, status, usage = os.wait4(self.pid, 0)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            raise BenchError(answer.decode(errors="replace") or f"a load generator ended with status {code}")
        return json.loads(answer)

    def end(self) -> None:
        """At once, unless its result was taken."""
        if not self._answer.closed:
            self._answer.close()
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _run(function: Callable[[], Any], write_end: int) -> None:
    """Never returns: what stands above it on the stack belongs to the parent."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.alarm(LIFE_S_MAX)
        answer = json.dumps(function())
        status = 0
    except BenchError as error:
        answer = str(error)
    except BaseException:  # noqa: BLE001, the parent raises it: this process has no other way to tell
        answer = traceback.format_exc()
    finally:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(answer.encode())
        os._exit(status)
