"""The supervisor of a gateway with several workers: N processes of the same program on one client port.

    supervisor ─┬─ stdin: orders, and as long as it is open, "I am there" ──► worker 0 ─┐
                │  stdout: one report, "I serve" or why not          ◄──────            ├─ client port (SO_REUSEPORT)
                │  monitor-0.sock: pages                             ◄──────            │  peer-<n>.sock: one another
                └─ ...                                                       worker N-1 ┘

It carries no messages: it holds the client port (bound, not listened on, so that nobody else gets it), starts a worker
again when one ends (after a pause that grows while it does not last), hands on SIGINT, SIGTERM, SIGUSR2 and SIGHUP,
and shows on the monitor port what the workers show. Workers live in sessions of their own: Ctrl-C reaches them through
it alone. They end when its end of their stdin is closed, by whatever end it has.

A worker that cannot start at first ends everything, and its reason is told once; later it is tried again for ever.
"""

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import structlog
import uvloop

from mesh.worker_folder import Orders, Report, WorkerFolder, private_folder
from mesh.worker_monitor import SupervisorMonitor, WorkerState
from protocol import config
from protocol.errors import MeshError
from protocol.limits import (
    WORKER_CALM_MS,
    WORKER_PAUSE_MS_MAX,
    WORKER_PAUSE_MS_MIN,
    WORKER_PORT_ATTEMPTS_MAX,
    WORKER_STOP_MS_MAX,
)

STARTING: Final = "starting"
log = structlog.get_logger()


class WorkerFailed(MeshError):
    """A worker could not start: nothing can, until its reason is gone."""


class Worker:
    """One worker: a process, and the next one when that has ended. `problem` is why it does not serve, if so."""

    def __init__(self, number: int, command: Sequence[str], orders: Orders) -> None:
        self.number = number
        self.restarts = 0
        self.problem: str | None = STARTING
        self.served: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self.ended_well = True
        self._command = command
        self._orders = orders
        self._process: asyncio.subprocess.Process | None = None
        self._ending = asyncio.Event()
        self._sent: set[signal.Signals] = set()

    @property
    def process_id(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def keep(self) -> None:
        """Runs it until `end`, or until its first process has failed: then `served` has the reason."""
        pause_ms = WORKER_PAUSE_MS_MIN
        while True:
            began_s = time.monotonic()
            self.problem = await self._live()
            if self._ending.is_set():
                return
            if not self.served.done():
                self.served.set_exception(WorkerFailed(self.problem))
                return
            if time.monotonic() - began_s >= WORKER_CALM_MS / 1_000:
                pause_ms = WORKER_PAUSE_MS_MIN
            log.warning("worker_ended", number=self.number, reason=self.problem, again_in_ms=pause_ms)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_ms / 1_000)
                return
            pause_ms = min(pause_ms * 2, WORKER_PAUSE_MS_MAX)
            self.restarts += 1

    def end(self, number: signal.Signals) -> None:
        """No process of it is started any more; the one that there is gets the signal, each of them once."""
        self._ending.set()
        if self._process is None or self._process.returncode is not None or number in self._sent:
            return
        self._sent.add(number)
        with contextlib.suppress(ProcessLookupError):  # it was faster
            self._process.send_signal(number)

    def reload(self) -> None:
        """Its process reads the file again, and so does each that comes after it."""
        self._orders = msgspec.structs.replace(self._orders, reloads=True)
        if self._process is not None and self.problem is None:  # one that only begins cannot listen yet
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    async def _live(self) -> str:
        """One process from its start to its end; how it ended."""
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, start_new_session=True
            )
        except OSError as error:
            return f"could not be started: {(error.strerror or str(error)).lower()}"
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        try:
            if self._ending.is_set():
                process.terminate()
            orders = self._orders
            with contextlib.suppress(ConnectionError):  # its end says more
                process.stdin.write(msgspec.json.encode(orders) + b"\n")
                await process.stdin.drain()
            report = _report(await process.stdout.readline())
            if report.client is not None:
                self.problem = None
                if self._orders is not orders:
                    self.reload()
                if not self.served.done():
                    self.served.set_result(report.client)
            status = await process.wait()
            self.ended_well = status in (0, -signal.SIGTERM)  # the latter: before it began, or when it was through
            return report.error or _how(status)
        finally:
            process.stdin.close()
            if process.returncode is None:  # cancelled
                process.kill()
                await process.wait()
            self._process = None


def _report(line: bytes) -> Report:
    try:
        return msgspec.json.decode(line, type=Report)
    except msgspec.MsgspecError:
        return Report()  # it ended before it had anything to say; stderr has its last words


def _how(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


class Supervisor:
    """All workers of one gateway. `start`, then `until_over`; `stop` is due in any case."""

    def __init__(self, gateway: config.Gateway, orders: Orders, folder: WorkerFolder, command: Sequence[str]) -> None:
        """`command` starts this program once more; options are added to it."""
        count = gateway.workers
        self.workers = [
            Worker(number, [*command, "--worker", f"{number}/{count}", "--run-dir", str(folder.path)], orders)
            for number in range(count)
        ]
        self.monitor: SupervisorMonitor | None = None
        if gateway.monitor is not None:
            bind = gateway.bind(gateway.monitor)
            self.monitor = SupervisorMonitor(bind, folder, self.problem, self.states)
        self._phase: str | None = STARTING
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self.clients: tuple[str, int] | None = None
        self.monitored: tuple[str, int] | None = None

    async def start(self) -> None:
        """Returns when all workers serve, or when they are to end. WorkerFailed, OSError: it cannot run."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGUSR2, self._on_retire)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        if self.monitor is not None:
            self.monitored = await self.monitor.start()
        self._tasks = [loop.create_task(worker.keep()) for worker in self.workers]
        everybody = asyncio.gather(*(worker.served for worker in self.workers))
        if await self._unless_stopping(everybody):
            self.clients = everybody.result()[0]
            self._phase = None

    async def until_over(self) -> None:
        """Until a signal has come that stops them, or, after one that retires them, the last has ended."""
        ended = asyncio.gather(*self._tasks)
        if await self._unless_stopping(ended):
            ended.result()  # an error here is a bug of ours

    async def _unless_stopping(self, wait: asyncio.Future[Any]) -> bool:
        """Whether `wait` is over, rather than that a signal has come to stop everything."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        over: set[asyncio.Future[Any]] = {wait, stopping}
        await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        return wait.done()

    async def stop(self) -> int:
        """Ends what still runs; exit status 1 where a worker did not end well."""
        self._phase = "stopping"
        for worker in self.workers:
            worker.end(signal.SIGTERM)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=WORKER_STOP_MS_MAX / 1_000)
            for task in late:
                log.error("worker_killed", reason=f"it did not end within {WORKER_STOP_MS_MAX} ms")
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.monitor is not None:
            await self.monitor.stop()
        return int(not all(worker.ended_well for worker in self.workers))

    def problem(self) -> str | None:
        """Why not all workers serve, or None; what is wrong with one that does it says by itself."""
        if self._phase is not None:
            return self._phase
        return next((f"worker {each.number}: {each.problem}" for each in self.workers if each.problem), None)

    def states(self) -> list[WorkerState]:
        """In the order of their numbers."""
        return [
            WorkerState(each.number, None if each.problem else each.process_id, each.restarts) for each in self.workers
        ]

    # -- signals ------------------------------------------------------------------------------------------------------

    def _on_stop(self, number: signal.Signals) -> None:
        """Drain; the second time, end at once: what was acknowledged is safe all the same."""
        log.info("stopping", signal=number.name)
        again, self._phase = self._stopping.is_set(), "stopping"
        self._stopping.set()
        for worker in self.workers:
            worker.end(signal.SIGKILL if again else signal.SIGTERM)

    def _on_reload(self) -> None:
        for worker in self.workers:
            worker.reload()

    def _on_retire(self) -> None:
        log.info("retiring", signal="SIGUSR2")
        self._phase = "retiring"
        for worker in self.workers:
            worker.end(signal.SIGUSR2)


# -- running ----------------------------------------------------------------------------------------------------------


def run(gateway: config.Gateway, orders: Orders, started: Callable[[Supervisor], None]) -> int:
    """Runs the workers of `gateway` until a signal ends them; exit status. WorkerFailed, OSError: they cannot start."""
    command = [sys.executable, *sys.orig_argv[1:]]
    return uvloop.run(_supervise(gateway, orders, command, started))


async def _supervise(
    gateway: config.Gateway, orders: Orders, command: Sequence[str], started: Callable[[Supervisor], None]
) -> int:
    with private_folder() as folder, reserved(gateway.bind(gateway.client)) as port:
        supervisor = Supervisor(gateway, msgspec.structs.replace(orders, client_port=port), folder, command)
        try:
            await supervisor.start()
            if supervisor.clients is not None:
                started(supervisor)
            await supervisor.until_over()
        finally:
            status = await supervisor.stop()
        return status


@contextlib.contextmanager
def reserved(address: config.Address) -> Iterator[int]:
    """Holds the port of `address` (0: any free one) for processes that share it; which one it is.

    Nobody can tell two owners of a shared port apart, so it is first asked for alone: that fails where another listens,
    though it would share. Then it is bound once more, to be shared, until the end of the context.
    """
    with contextlib.ExitStack() as held:
        attempts = 1 if address.port else WORKER_PORT_ATTEMPTS_MAX
        while True:
            attempts -= 1
            try:
                port = _reserve(address, held)
                break
            except OSError as error:
                held.close()
                if not attempts:
                    reason = (error.strerror or str(error)).lower()
                    raise OSError(error.errno, f"cannot listen on {address} for clients: {reason}") from error
        yield port


def _reserve(address: config.Address, held: contextlib.ExitStack) -> int:
    """All addresses behind the name, with one port."""
    port = address.port
    found = socket.getaddrinfo(address.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, place in found:
        with _bound(family, (place[0], port, *place[2:]), socket.SO_REUSEADDR) as alone:
            port = alone.getsockname()[1]
        place = place[0], port, *place[2:]
        try:
            held.enter_context(_bound(family, place, socket.SO_REUSEPORT))
        except OSError:  # connections that have ended not long ago are in the way of a stricter hold
            held.enter_context(_bound(family, place, socket.SO_REUSEPORT, socket.SO_REUSEADDR))
    return port


def _bound(family: int, place: tuple[Any, ...], *options: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(place)
    except OSError:
        made.close()
        raise
    return made
