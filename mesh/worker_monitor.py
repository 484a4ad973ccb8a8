"""The monitor port of a gateway with several workers: one gateway to whoever looks, made of what its workers show.

Each worker serves its pages on a socket of its own, to the supervisor. A worker that does not answer in time is left
out of the pages, and named by `/healthz`. Metrics keep their workers apart, by a label: a counter that begins anew
because a worker was started again must not look like one that fell.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gateway.core.nats_values import BadQuery, Page, Window
from mesh import worker_pages
from mesh.metrics import MonitorMetrics
from mesh.monitor import Maker, Monitor, Sources, Unavailable
from mesh.query import Query
from mesh.usage import ProcessUsage
from mesh.worker_folder import WorkerFolder
from protocol import config
from protocol.limits import WORKER_PAGE_MS_MAX

if TYPE_CHECKING:
    import aiohttp

SUPERVISOR: Final = "supervisor"  # what stands in the label where a worker's number does
_OF_THE_FIRST: Final = ("/leafz", "/gatewayz")  # every worker would say the same


class WorkerState(NamedTuple):
    """What the supervisor knows of a worker. `process_id` is None while it does not serve."""

    number: int
    process_id: int | None
    restarts: int


class _Answer(NamedTuple):
    worker: int
    status: int
    body: bytes


class SupervisorMonitor:
    """Listens on `bind`. `problem` says why not all workers serve; `states` is asked for every page."""

    def __init__(
        self,
        bind: config.Address,
        folder: WorkerFolder,
        problem: Callable[[], str | None],
        states: Callable[[], list[WorkerState]],
    ) -> None:
        self._folder, self._problem, self._states = folder, problem, states
        self._clients: dict[int, aiohttp.ClientSession] = {}
        self._usage = ProcessUsage()
        self._merging = worker_pages.Varz()
        self._address = "", 0
        pages: dict[str, Maker] = {"/varz": self._varz, "/connz": self._connz, "/accountz": self._accountz}
        pages |= {"/subsz": self._subsz, "/routez": self._routez} | {
            path: self._of_first(path) for path in _OF_THE_FIRST
        }
        self._monitor = Monitor(bind.host, bind.port, Sources(self._healthz, self._gather_metrics, pages))
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)
        PlatformCollector(registry=self._own)
        self._own.register(MonitorMetrics(self._monitor))

    async def start(self) -> tuple[str, int]:
        """Serve; the address that is listened on. OSError when it cannot be had."""
        self._address = await self._monitor.start()
        return self._address

    async def stop(self) -> None:
        await self._monitor.stop()
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    # -- asking -------------------------------------------------------------------------------------------------------

    async def _ask(self, worker: int, path: str, parameters: dict[str, str]) -> _Answer | None:
        """One worker's answer; None if there is none in time."""
        import aiohttp  # somebody has asked us by HTTP: it is loaded by now

        client = self._clients.get(worker)
        if client is None:
            timeout = aiohttp.ClientTimeout(total=WORKER_PAGE_MS_MAX / 1_000)
            connector = aiohttp.UnixConnector(self._folder.monitor(worker))
            client = self._clients[worker] = aiohttp.ClientSession(connector=connector, timeout=timeout)
        try:
            async with client.get(f"http://worker{path}", params=parameters) as response:
                return _Answer(worker, response.status, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None  # it is dead, about to be born, or hangs; `/healthz` says so

    async def _ask_all(self, path: str, parameters: dict[str, str]) -> list[_Answer]:
        """What the workers that serve answer, in their order."""
        serving = [state.number for state in self._states() if state.process_id is not None]
        answers = await asyncio.gather(*(self._ask(worker, path, parameters) for worker in serving))
        return [answer for answer in answers if answer is not None]

    async def _pages(self, path: str, parameters: dict[str, str]) -> list[Page]:
        """At least one. BadQuery, Unavailable."""
        return _read(await self._ask_all(path, parameters))

    # -- pages --------------------------------------------------------------------------------------------------------

    async def _varz(self, query: Query) -> Page:
        answers = await self._ask_all("/varz", query.changed())
        pages = _read(answers)
        shown = {answer.worker: page for answer, page in zip(answers, pages, strict=True)}
        own = self._usage.page()
        merged = self._merging.merged(shown)
        merged |= {"mem": merged["mem"] + own["mem"], "cpu": round(merged["cpu"] + own["cpu"], 1)}
        host, port = self._address
        merged |= {"http_host": host, "http_port": port, "http_base_path": "", "https_port": 0}
        merged["http_req_stats"] = dict(self._monitor.requests)
        return merged | {"workers": [_describe(state, shown.get(state.number)) for state in self._states()]}

    async def _connz(self, query: Query) -> Page:
        window = Window.of(query.integer("offset"), 1 if query.unsigned("cid") else query.integer("limit"))
        asked = query.changed(offset=0, limit=window.offset + window.limit)
        return worker_pages.connz(await self._pages("/connz", asked), window)

    async def _subsz(self, query: Query) -> Page:
        """One worker after the other: how many the first ones have says where in the next the window begins."""
        window = Window.of(query.integer("offset"), query.integer("limit"))
        answers: list[_Answer] = []
        skip, room = window
        for state in self._states():
            # nats-server takes a limit of 0 for the default
            asked = query.changed(offset=skip, limit=max(room, 1), **({} if room else {"subs": 0}))
            answer = await self._ask(state.number, "/subsz", asked)
            if answer is None:
                continue
            answers.append(answer)
            page = _read([answer])[0]
            skip, room = max(skip - page["total"], 0), room - len(page.get("subscriptions_list", ()))
        return worker_pages.subsz(_read(answers), window)

    async def _routez(self, query: Query) -> Page:
        answers = await self._ask_all("/routez", query.changed())
        return worker_pages.routez({answer.worker: page for answer, page in zip(answers, _read(answers), strict=True)})

    async def _accountz(self, query: Query) -> Page:
        return worker_pages.accountz(await self._pages("/accountz", query.changed()))

    def _of_first(self, path: str) -> Maker:
        async def make(query: Query) -> Page:
            return (await self._pages(path, query.changed()))[0]

        return make

    async def _healthz(self) -> str | None:
        """The worst: that a worker is not there, or the first complaint of one that is."""
        problem = self._problem()
        if problem is not None:
            return problem
        for worker in range(len(self._states())):
            answer = await self._ask(worker, "/healthz", {})
            if answer is None:
                return f"worker {worker}: it does not answer"
            if answer.status != 200:
                return f"worker {worker}: {msgspec.json.decode(answer.body)['error']}"
        return None

    # -- metrics ------------------------------------------------------------------------------------------------------

    async def _gather_metrics(self) -> CollectorRegistry:
        families: dict[str, Metric] = {}
        for answer in await self._ask_all("/metrics", {}):
            text = answer.body.decode()
            _merge(families, text_string_to_metric_families(text), str(answer.worker))
        _merge(families, self._own.collect(), SUPERVISOR)
        families |= {family.name: family for family in self._workers()}
        registry = CollectorRegistry()
        registry.register(_Gathered(list(families.values())))
        return registry

    def _workers(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("mesh_gateway_worker_up", "1 while the worker serves", labels=["worker"])
        restarts = CounterMetricFamily(
            "mesh_gateway_worker_restarts", "Times that the worker was started again", labels=["worker"]
        )
        for state in self._states():
            up.add_metric([str(state.number)], float(state.process_id is not None))
            restarts.add_metric([str(state.number)], state.restarts)
        yield from (up, restarts)


class _Gathered(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _merge(families: dict[str, Metric], more: Iterable[Metric], worker: str) -> None:
    """Adds the samples of `more`, with the label `worker`. Requests for pages are the supervisor's alone to count."""
    for family in more:
        if worker != SUPERVISOR and family.name.startswith("mesh_monitor_"):
            continue
        merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        for sample in family.samples:
            merged.samples.append(sample._replace(labels={"worker": worker, **sample.labels}))


def _describe(state: WorkerState, page: Page | None) -> Page:
    described: Page = {"number": state.number, "pid": state.process_id or 0, "restarts": state.restarts}
    if page is not None:
        described |= {name: page[name] for name in ("start", "connections", "subscriptions", "mem", "cpu")}
    return described


def _read(answers: list[_Answer]) -> list[Page]:
    """The pages. BadQuery: in the words of the first worker; Unavailable: there are none."""
    if not answers:
        raise Unavailable("no worker answers")
    for answer in answers:
        if answer.status != 200:
            raise BadQuery(answer.body.decode("utf-8", "replace"))
    return [msgspec.json.decode(answer.body, type=Page) for answer in answers]
