"""One worker of a gateway with several: a gateway in a process that a supervisor has started (`mesh.workers`).

stdin holds its orders, and says by its end that the supervisor is gone, by whatever end: then the worker drains and
ends too. stdout gets one report. The supervisor's signals count once: it is the one who knows when patience is over.
SIGHUP, which it hands on, has the file read again, for what may change in a process (`mesh.reloading`); a worker that
is started after one does so at its start.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
import uvloop

from gateway.shell.gateway import Gateway
from gateway.shell.peers import Worker
from mesh.daemon import VERSION, Node, dial_sinks, gateway_signs, link_tls, load, on_retire
from mesh.reloading import Reloading
from mesh.worker_folder import Orders, Report, WorkerFolder
from protocol.errors import MeshError
from protocol.limits import WORKER_ORDERS_BYTES_MAX

_STDIN = 0
log = structlog.get_logger()


def run(node: str, number: int, count: int, folder_path: str) -> int:
    """Runs worker `number` of `count` of the gateway `node` until it is told to end; exit status."""
    folder = WorkerFolder(Path(folder_path))
    try:
        orders = msgspec.json.decode(sys.stdin.buffer.readline(WORKER_ORDERS_BYTES_MAX), type=Orders)
        configuration = load(orders.file, orders.configuration)
        worker = Worker(number, count, orders.server_id, orders.client_port, folder_path)

        def make() -> Node:
            settings = configuration.gateway(node)
            sinks, sign = dial_sinks(configuration, settings), gateway_signs(configuration, settings)
            tls = link_tls(configuration, node)
            gateway = Gateway(configuration, node, sinks, VERSION, worker=worker, link_tls=tls, sign=sign)
            reloading = Reloading(orders.file, configuration, gateway.zone, "live_rate", load, gateway.take_rates)
            if orders.reloads:
                reloading.reload()
            return Node(gateway, None, monitor_path=folder.monitor(number), reloading=reloading)

        return uvloop.run(_serve(make, folder))
    except (MeshError, ValueError, OSError) as error:
        _say(Report(error=str(error)))
        return 1


def _say(report: Report) -> None:
    try:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        log.warning("report_unheard", reason="the supervisor is gone")


async def _serve(make: Callable[[], Node], folder: WorkerFolder) -> int:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    is_orphan = asyncio.Event()

    def look_at_supervisor() -> None:
        if not os.read(_STDIN, 1):
            loop.remove_reader(_STDIN)
            log.warning("stopping", reason="the supervisor is gone")
            is_orphan.set()
            stopping.set()

    loop.add_reader(_STDIN, look_at_supervisor)
    node = make()
    if node.reloading is not None:
        loop.add_signal_handler(signal.SIGHUP, node.reloading.reload)
    try:
        await node.start()
        loop.add_signal_handler(signal.SIGUSR2, on_retire, node, stopping)
        _say(Report(client=node.clients))
        await stopping.wait()
    finally:
        loop.remove_reader(_STDIN)
        await node.stop()
        if is_orphan.is_set():
            folder.remove()
    return 0
