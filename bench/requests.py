"""Requests and replies: runs the program that `requests.c` makes.

It is in C, since a client that takes each message in hand has to be several times faster than the servers. Asking and
answering are two processes, as two clients would be.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from bench.programs import program
from bench.servers import BenchError, Server
from bench.wire import SPREAD_S

END_WAIT_S_MAX = 60.0


class Asked(NamedTuple):
    """What the asking side saw. The quantiles are of single round trips, 0 when several were under way."""

    per_second: float
    p50_us: float
    p99_us: float
    server_ns: float  # CPU time of the server for a request and its reply


def ask(server: Server, inbox: str, seconds: float, in_flight: int) -> Asked:
    """Asks the first node for `seconds` with `in_flight` requests under way; the last one has who answers.

    `inbox` = `one`, `mux` or `own`, see requests.c.
    """
    asking = str(program("requests"))
    with _answering(server, asking):
        before_s = server.cpu_s()
        command = [asking, "ask", str(server.port), inbox, str(seconds), str(in_flight)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + END_WAIT_S_MAX)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{server.name}: requests are not all answered") from error
        cpu_s = server.cpu_s() - before_s
    if ended.returncode != 0:
        raise BenchError(f"{server.name}: {ended.stderr.strip()} (the server: {server.complaints()})")
    seen: dict[str, Any] = json.loads(ended.stdout)
    requests = int(seen["requests"])
    return Asked(requests / float(seen["seconds"]), seen["p50_ns"] / 1e3, seen["p99_ns"] / 1e3, cpu_s / requests * 1e9)


@contextmanager
def _answering(server: Server, path: str) -> Iterator[None]:
    port = server.port_of(server.setup.nodes - 1)
    answering = subprocess.Popen([path, "answer", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert answering.stdout is not None
        if answering.stdout.readline() != "ready\n":
            raise BenchError(f"{server.name}: the answering side cannot connect")
        time.sleep(SPREAD_S if server.setup.nodes > 1 else 0)
        yield
        if answering.poll() is not None:
            raise BenchError(f"{server.name}: the answering side has ended")
    finally:
        answering.kill()
        answering.communicate()
