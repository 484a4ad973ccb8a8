"""An asyncio event loop on virtual time, in which processes live, are stopped for a while, and die.

Nothing here waits: the loop takes the next callback and sets its clock to when that was due. What was started within a
`Process` belongs to it (a context variable, which tasks and callbacks inherit): when it is paused, its callbacks pile
up; when it dies, they are dropped, wherever they stand. What would run on a thread runs at a later moment of virtual
time, all at once: long enough for everything else to happen in between.

The order of callbacks follows from their times and from the seed alone, so a seed replays itself.
"""

import asyncio
import contextlib
import heapq
import inspect
import random
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

from support.disk import Crash

CURRENT: ContextVar["Process | None"] = ContextVar("process", default=None)
TASKS_SEEN_MAX = 200  # before those that are done are forgotten


class Process:
    """What can be stopped and killed: its tasks, and callbacks that wait for it to go on."""

    def __init__(self, name: str, loop: "VirtualLoop", job_ms_max: float = 0.5) -> None:
        """`job_ms_max` is how long what runs on a thread may take."""
        self.name, self._loop, self.job_ms_max = name, loop, job_ms_max
        self.is_alive = True
        self.is_paused = False
        self.held: list[events.Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.rng = random.Random(loop.rng.random())
        self.context = copy_context()
        self.context.run(CURRENT.set, self)

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Calls `work` as this process."""
        return self.context.copy().run(work, *arguments)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._loop.create_task(work, context=self.context.copy())

    def pause(self) -> None:
        self.is_paused = True

    def go_on(self) -> None:
        self.is_paused = False
        self._loop.ready.extend(self.held)
        self.held.clear()

    def kill(self) -> None:
        """Nothing of it runs any more but `finally` blocks, which reach nothing outside of it."""
        self.is_alive = False
        self.held.clear()
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False
                with contextlib.suppress(Exception, Crash):  # of a `finally`
                    self.context.copy().run(_close, task.get_coro())
        self.tasks.clear()

    def add_task(self, task: asyncio.Task[Any]) -> None:
        if len(self.tasks) > TASKS_SEEN_MAX:
            self.tasks = [task for task in self.tasks if not task.done()]
        self.tasks.append(task)


def _close(work: Coroutine[Any, Any, Any]) -> None:
    """And what it was to await, if it has not begun: else Python warns that nobody did."""
    awaited = [each for each in inspect.getcoroutinelocals(work).values() if inspect.iscoroutine(each)]
    has_begun = inspect.getcoroutinestate(work) != inspect.CORO_CREATED
    work.close()
    for each in () if has_begun else awaited:
        each.close()


class VirtualExecutor:
    """Stands for a ThreadPoolExecutor. One with a single worker does one thing after the other."""

    def __init__(self, max_workers: int = 0, thread_name_prefix: str = "") -> None:
        self.is_single = max_workers == 1
        self.free_at = 0.0
        self.is_shut = False
        self.waiting: list[Callable[[], None]] = []

    def shutdown(self, wait: bool = True) -> None:
        """What was handed over is done before this returns."""
        self.is_shut = True
        for job in list(self.waiting):
            job()


class VirtualLoop(asyncio.AbstractEventLoop):
    """`network` makes connections; `died(process)` is called when one has died within a job."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.ready: deque[events.Handle] = deque()
        self.errors: list[dict[str, Any]] = []
        self.network: Any = None
        self.callbacks = 0
        self._timers: list[tuple[float, int, events.Handle]] = []
        self._number = 0
        self._anywhere = VirtualExecutor()

    # -- time ---------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def run_until(self, moment: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Everything up to that moment; `is_over` is asked between callbacks of different times."""
        events._set_running_loop(self)
        try:
            while not is_over():
                while self.ready:
                    self._run(self.ready.popleft())
                if not self._timers or self._timers[0][0] > moment:
                    self.now = max(self.now, moment)
                    return
                when, _, handle = heapq.heappop(self._timers)
                self.now = max(self.now, when)
                self._run(handle)
        finally:
            events._set_running_loop(None)

    def _run(self, handle: events.Handle) -> None:
        if handle._cancelled:
            return
        process = handle._context.get(CURRENT)
        if process is None or (process.is_alive and not process.is_paused):
            self.callbacks += 1
            handle._run()
        elif process.is_alive:
            process.held.append(handle)

    # -- callbacks ----------------------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> events.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> events.TimerHandle:
        handle = events.TimerHandle(when, callback, args, self, context)
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, handle))
        return handle

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        process = (context or copy_context()).get(CURRENT)
        if process is not None:
            process.add_task(task)
        return task

    # -- threads ------------------------------------------------------------------------------------------------------

    def run_in_executor(
        self, executor: VirtualExecutor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """`func` runs at once, at a later moment; its result comes later still."""
        executor, process = executor or self._anywhere, CURRENT.get()
        if executor.is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = self.create_future()
        assert process is not None
        slow_s = process.job_ms_max / 1000
        begins = max(self.now, executor.free_at if executor.is_single else 0.0) + process.rng.random() * slow_s
        ends = begins + process.rng.random() * slow_s / 4
        if executor.is_single:
            executor.free_at = ends

        def job() -> None:
            if job not in executor.waiting:
                return  # done by `shutdown`
            executor.waiting.remove(job)
            try:
                result, error = func(*args), None
            except Exception as raised:  # noqa: BLE001  # whatever it is goes to whoever waits
                result, error = None, raised
            self.call_at(max(ends, self.now), _settle, future, result, error)

        executor.waiting.append(job)
        self.call_at(begins, job)
        return future

    # -- connections --------------------------------------------------------------------------------------------------

    async def create_server(self, protocol_factory, host=None, port=None, **options: Any) -> Any:
        return self.network.listen(protocol_factory, host, port)

    async def create_connection(self, protocol_factory, host=None, port=None, **options: Any) -> Any:
        return await self.network.connect(protocol_factory, host, port)

    # -- what asyncio asks for ----------------------------------------------------------------------------------------

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        process = CURRENT.get()
        if process is None or process.is_alive:
            self.errors.append(context)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
