"""Runs a gateway, a sink, or one of each in one process (`mesh up`), until a signal or a failure ends them.

SIGINT and SIGTERM drain: no more is taken from clients, what was taken goes into the log, files are closed in order. A
second signal ends the process at once; what was acknowledged is safe all the same. SIGUSR2 makes a gateway part with
its clients slowly (`gateway.shell.lame_duck`) and then drains. SIGHUP has the file read again (`mesh.reloading`).

Processes are started often, by tests too, and most of a start is imports: the code of gateways, of sinks, and of TLS
between nodes is imported where it is known that it will run (`tests/test_imports.py`).
"""

import asyncio
import contextlib
import gc
import io
import json
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvloop

from gateway.core.nats_values import Page
from mesh import logs
from mesh.advice import advice
from mesh.availability import not_available
from mesh.memory import keep_freed_blocks
from mesh.monitor import Maker, Monitor, Sources
from mesh.query import Query
from mesh.reloading import Reloading
from mesh.settings import UpOptions, program_version
from mesh.usage import ProcessUsage
from mesh.worker_folder import Orders
from protocol import config
from protocol.errors import ConfigError, DamagedFile, DataError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gateway.core.engine import Engine
    from gateway.shell.discovery import Cluster
    from gateway.shell.gateway import Gateway
    from gateway.shell.gateway_links import LinkTls
    from gateway.shell.link import Dial, SinkDial
    from mesh.pages import GatewayPages
    from protocol.coverage import Sign
    from sinkd.shell.sink import Sink

VERSION = program_version()
REFILLS_MAX = 3  # in the life of one process
log = structlog.get_logger()


class Node:
    """What runs in this process: a gateway, a sink, or both, and their monitor.

    The monitor is there first and goes last, so that who probes it hears why there is no service yet, or no longer.
    """

    def __init__(
        self,
        gateway: "Gateway | None",
        sink: "Sink | None",
        *,
        monitor_path: str = "",
        reloading: Reloading | None = None,
    ) -> None:
        """With `monitor_path` the pages are shown on that socket, to a supervisor that merges those of several.

        `reloading` is for SIGHUP; None where no file is run by.
        """
        self.gateway, self.sink, self.reloading = gateway, sink, reloading
        self._usage = ProcessUsage()
        self._pages = _pages(gateway, merges=bool(monitor_path)) if gateway is not None else None
        self._not_serving: str | None = "starting"
        self.monitor: Monitor | None = None
        self._monitor_address: config.Address | None = None
        own = gateway.node if gateway is not None else sink.node if sink is not None else None
        if own is not None and own.monitor is not None:
            self._monitor_address = bind = own.bind(own.monitor)
            pages: dict[str, Maker] = {"/varz": self.varz}
            if self._pages is not None:
                pages |= self._pages.by_path()
            sources = Sources(self.health, self.metrics, pages)
            self.monitor = Monitor(bind.host, bind.port, sources, path=monitor_path)
        self._sink_is_up = False
        self.retiring: asyncio.Task[None] | None = None  # lame duck mode
        self.clients: tuple[str, int] | None = None
        self.monitored: tuple[str, int] | None = None

    async def start(self) -> None:
        """DataError, OSError: it cannot run; `stop` is due all the same."""
        if self.monitor is not None:
            with _naming("monitoring", self._monitor_address):
                self.monitored = await self.monitor.start()
        if self.sink is not None:
            self._not_serving = f"recovering the log in {self.sink.node.data}"
            await self.sink.start()
            self._sink_is_up = True
            self._not_serving = "starting"
        if self.gateway is not None:
            if (mesh := self.gateway.mesh) is not None:
                with _naming("other gateways", mesh.bind):
                    await mesh.listen()
            with _naming("clients", self.gateway.node.bind(self.gateway.node.client)):
                self.clients = await self.gateway.start()
            if self.sink is not None:
                await self.gateway.linked()
        self._not_serving = None

    async def stop(self) -> None:
        """Gateway first, so that what it holds still reaches the sink."""
        if self.retiring is not None:
            self.retiring.cancel()
            await asyncio.gather(self.retiring, return_exceptions=True)
        self._not_serving = "stopping"
        if self.gateway is not None:
            await self.gateway.stop(drain=self.sink is None or not self.sink.failed.done())
        if self.sink is not None:
            await self.sink.stop()
        if self.monitor is not None:
            await self.monitor.stop()

    def health(self) -> str | None:
        """Why this process does not serve, or what is wrong with it; None where all is well."""
        if self._not_serving is not None:
            return self._not_serving
        parts = (self.sink, self.gateway)
        return next((problem for part in parts if part is not None and (problem := part.health())), None)

    def metrics(self) -> "CollectorRegistry":
        """Of this process, of its monitor, and of those parts that have started."""
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

        from mesh.metrics import GatewayMetrics, MonitorMetrics, SinkMetrics

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        if self.monitor is not None:
            registry.register(MonitorMetrics(self.monitor))
        if self.sink is not None and self._sink_is_up:
            registry.register(SinkMetrics(self.sink))
        if self.gateway is not None and self.clients is not None:
            registry.register(GatewayMetrics(self.gateway))
        return registry

    def varz(self, query: Query) -> Page:
        """`/varz`: the gateway under nats-server's names, the process and the monitor too, the sink under its own."""
        page: Page = {"version": VERSION}
        if self._pages is not None:
            page |= self._pages.varz()
        page |= self._usage.page()
        if self.monitor is not None and self.monitored is not None:
            host, port = self.monitored
            page |= {"http_host": host, "http_port": port, "http_base_path": "", "https_port": 0}
            page["http_req_stats"] = dict(self.monitor.requests)
        if self.sink is not None and self._not_serving is None:
            page["sink"] = self.sink.varz()
        return page


def _pages(gateway: "Gateway", *, merges: bool) -> "GatewayPages":
    from mesh.pages import GatewayPages

    return GatewayPages(gateway, merges=merges)


@contextlib.contextmanager
def _naming(purpose: str, address: config.Address | None) -> Iterator[None]:
    """Lets an address that cannot be had be named in the error, with what it is for."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).rpartition("): ")[2]  # the loop tells the address in its own way
        raise OSError(error.errno, f"cannot listen on {address} for {purpose}: {reason.lower()}") from error


# -- commands ---------------------------------------------------------------------------------------------------------


def run_up(options: UpOptions) -> int:
    """`mesh up`. ConfigError, DataError, OSError: it could not start."""
    logs.configure(options.log_level, options.log_format)
    configuration = config.embedded(
        client=config.Address.parse(options.client),
        monitor=config.Address.parse(options.monitor),
        data=options.data,
        mode=options.mode,
        streams=options.streams,
        disk_reserve_bytes=options.disk_reserve_bytes,
        contracts=options.contracts,
        buffer_bytes=options.buffer_bytes,
    )
    if problems := not_available(configuration):
        raise ConfigError(problems)
    return _run(lambda: _embedded(configuration), lambda node: _print_up(options, configuration, node))


def run_gateway(file: str, node: str) -> int:
    """`gateway --config FILE --node NODE`."""
    from gateway.shell.gateway import Gateway, new_server_id

    content = Path(file).read_bytes()
    configuration = load(file, content)
    gateway = configuration.gateway(node)
    if gateway.workers > 1:
        return _run_workers(gateway, Orders(file, content, new_server_id(), gateway.client.port))

    def make() -> Node:
        sinks, tls = dial_sinks(configuration, gateway), link_tls(configuration, node)
        sign = gateway_signs(configuration, gateway)
        made = Gateway(configuration, node, sinks, VERSION, link_tls=tls, sign=sign)
        reloading = Reloading(file, configuration, made.zone, "live_rate", load, made.take_rates)
        return Node(made, None, reloading=reloading)

    return _run(make, lambda running: _print_node("gateway", node, client=running.clients, monitor=running.monitored))


def _run_workers(gateway: config.Gateway, orders: Orders) -> int:
    from mesh import workers

    def started(running: workers.Supervisor) -> None:
        _print_node("gateway", gateway.name, client=running.clients, monitor=running.monitored)

    return workers.run(gateway, orders, started)


def run_sinkd(file: str, node: str) -> int:
    """`sinkd --config FILE --node NODE`."""
    from sinkd.shell.sink import Sink

    configuration = load(file, Path(file).read_bytes())

    def make() -> Node:
        tls = signing = None
        if configuration.tls_nodes is not None:
            from mesh import node_signing, node_tls

            tls, signing = node_tls.for_sink(configuration, node), node_signing.signing_of(configuration, node)
        made = Sink(configuration, node, tls=tls, signing=signing)
        reloading = Reloading(file, configuration, made.zone.name, "copy_rate", load, made.take_rates)
        return Node(None, made, reloading=reloading)

    return _run(
        make,
        lambda running: _print_node(
            "sinkd", node, link=running.sink.listening if running.sink else None, monitor=running.monitored
        ),
    )


def run_configured(
    configuration: config.Config,
    node: str,
    engine: "Engine",
    made: Callable[[Node], None],
    started: Callable[[Node], None],
    cluster: "Cluster | None" = None,
) -> int:
    """A gateway of a configuration at hand that keeps nothing; `made` is called before it listens, `started` then.

    `cluster` says how it finds others.
    """
    from gateway.shell.gateway import Gateway

    def make() -> Node:
        running = Node(Gateway(configuration, node, (), VERSION, engine=engine, cluster=cluster), None)
        made(running)
        return running

    return _run(make, started)


def load(file: str, content: bytes) -> config.Config:
    """The configuration in `content`, which is that of `file`. ConfigError: it is wrong, or not available yet."""
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape").read()
    configuration = config.parse(text, file)
    problems = [f"{file}: {problem}" for problem in not_available(configuration)]
    if problems:
        raise ConfigError(problems)
    for line in advice(configuration):
        log.warning("configuration_unwise", advice=line)
    return configuration


def _embedded(configuration: config.Config) -> Node:
    from gateway.shell.gateway import Gateway
    from gateway.shell.link import SinkDial

    if configuration.mesh.mode == "delivery-fabric":
        return Node(Gateway(configuration, "gw1", (), VERSION), None)
    from sinkd.shell.sink import Sink

    sink = Sink(configuration, "sink1", embedded=True)

    async def dial(factory: Callable[[], asyncio.BaseProtocol]) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """The same link as between machines, over a pair of connected sockets."""
        ours, theirs = socket.socketpair()
        await sink.connect(theirs)
        return await asyncio.get_running_loop().create_connection(factory, sock=ours)

    return Node(Gateway(configuration, "gw1", (SinkDial("sink1", dial),), VERSION), sink)


def dial_sinks(configuration: config.Config, gateway: config.Gateway) -> "tuple[SinkDial, ...]":
    """How to reach the sinks of the gateway's zone, or of the zone that keeps its events.

    ConfigError: certificates of `[tls.nodes]` are of no use.
    """
    from gateway.shell.link import SinkDial

    if configuration.mode_of(gateway.name) == "delivery-fabric":
        return ()
    keeper = configuration.zones[configuration.zones[gateway.zone].kept_by or gateway.zone]
    if configuration.tls_nodes is None:
        return tuple(SinkDial(sink.name, _plain(sink.link)) for sink in keeper.sinks.values())
    from mesh import node_tls

    own = node_tls.name_of(configuration, gateway.name)
    context = node_tls.contexts(configuration.tls_nodes, own).client
    return tuple(
        SinkDial(sink.name, partial(node_tls.connect, sink.link, context, node_tls.name_of(configuration, sink.name)))
        for sink in keeper.sinks.values()
    )


def gateway_signs(configuration: config.Config, gateway: config.Gateway) -> "Sign | None":
    """How a gateway signs what it says of what it took in; None where nothing is kept, or links are plain.

    ConfigError: certificates of `[tls.nodes]` are of no use.
    """
    if configuration.tls_nodes is None or configuration.mode_of(gateway.name) == "delivery-fabric":
        return None
    from mesh import node_signing

    signing = node_signing.signing_of(configuration, gateway.name)
    return signing.sign if signing is not None else None


def link_tls(configuration: config.Config, node: str) -> "LinkTls | None":
    """What links to other gateways need. ConfigError: certificates of `[tls.nodes]` are of no use."""
    if configuration.tls_nodes is None:
        return None
    from mesh import node_tls

    return node_tls.for_gateway(configuration, node)


def _plain(address: config.Address) -> "Dial":
    async def dial(factory: Callable[[], asyncio.BaseProtocol]) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        return await asyncio.get_running_loop().create_connection(factory, address.host, address.port)

    return dial


# -- running ----------------------------------------------------------------------------------------------------------


def _run(make: Callable[[], Node], started: Callable[[Node], None]) -> int:
    keep_freed_blocks()
    return uvloop.run(_serve(make, started))


async def _serve(make: Callable[[], Node], started: Callable[[Node], None]) -> int:
    """Exit status: 0 after a signal, 1 when the sink has failed.

    A sink that finds its log damaged starts again, with what is damaged set aside, to be filled by the others of its
    group; not for ever, for a disk that goes on damaging what it is given is of no use.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, loop, number, stopping)
    for _ in range(REFILLS_MAX):
        try:
            return await _serve_once(make(), stopping, started)
        except DamagedFile as error:
            if stopping.is_set() or not error.is_set_aside:
                raise
            log.warning("starting_again", damage=str(error))
    return await _serve_once(make(), stopping, started)


async def _serve_once(node: Node, stopping: asyncio.Event, started: Callable[[Node], None]) -> int:
    loop = asyncio.get_running_loop()
    if node.reloading is not None:
        loop.add_signal_handler(signal.SIGHUP, node.reloading.reload)
    try:
        await node.start()
        gc.freeze()  # what is there now stays: no full collection need look at it again
        loop.add_signal_handler(signal.SIGUSR2, on_retire, node, stopping)
        started(node)
        return await _until_over(node, stopping)
    finally:
        await node.stop()


def _on_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, stopping: asyncio.Event) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(each)  # the next one ends the process at once
    log.info("stopping", signal=number.name)
    stopping.set()


def on_retire(node: Node, stopping: asyncio.Event) -> None:
    """Begin to part with clients; `stopping` is set when they are gone."""
    log.info("retiring", signal=signal.SIGUSR2.name)
    if node.gateway is None:
        log.warning("retiring_ignored", reason="a sink has no clients to part with; SIGTERM stops it")
    elif node.retiring is None:
        node.retiring = asyncio.ensure_future(node.gateway.retire())
        node.retiring.add_done_callback(lambda done: stopping.set())


async def _until_over(node: Node, stopping: asyncio.Event) -> int:
    waits: list[Awaitable[object]] = [asyncio.ensure_future(stopping.wait())]
    if node.sink is not None:
        waits.append(node.sink.failed)
    await asyncio.wait([asyncio.ensure_future(wait) for wait in waits], return_when=asyncio.FIRST_COMPLETED)
    if node.sink is not None and node.sink.failed.done():
        raise _as_data_error(node.sink.failed.result())
    return 0


def _as_data_error(error: BaseException) -> BaseException:
    return error if isinstance(error, (DataError, OSError)) else DataError(f"the sink has failed: {error!r}")


# -- what is printed --------------------------------------------------------------------------------------------------


def _print_up(options: UpOptions, configuration: config.Config, node: Node) -> None:
    assert node.clients is not None
    client = "nats://" + _shown(node.clients)
    monitor = "http://" + _shown(node.monitored) if node.monitored is not None else None
    data = options.data if node.sink is not None else None
    if options.json:
        print(json.dumps({"client": client, "monitor": monitor, "data": data}), flush=True)
        return
    rows = [("client", client), ("monitor", monitor), ("data", data)]
    buffer_bytes = configuration.mesh.buffer_bytes if node.sink is None else 0
    kept = "what clients publish is kept" if data else "nothing is kept (delivery-fabric)"
    if buffer_bytes:
        kept = f"the latest events are kept in memory (delivery-fabric, {buffer_bytes} bytes)"
    print(f"Event Mesh {VERSION} is up: {kept}.\n")
    for name, value in rows:
        if value is not None:
            print(f"  {name:<9}{value}")
    for stream in configuration.effective_streams() if data else ():
        print(f"  {'stream':<9}{stream.name} ({', '.join(stream.subjects)})")
    server = "" if node.clients[1] == 4222 else f" --server {client}"
    subject, replay = _example(configuration)
    program = _program()
    print("\nTry next, in another terminal:\n")
    print(f"  {program} sub{server} '>'")
    print(f"  {program} pub{server} {subject} 'hello'")
    readable = data or buffer_bytes
    print(f"  {program} replay{server} {replay}" if readable else f"  curl {monitor}/varz")
    print("\nCtrl-C stops it.", flush=True)


def _program() -> str:
    """How this `mesh` can be called from a shell: by its name where that finds it, else by its path."""
    called = Path(sys.argv[0])
    found = shutil.which("mesh")
    if called.name != "mesh" or (found is not None and called.exists() and called.samefile(found)):
        return "mesh"
    return str(called)


def _example(configuration: config.Config) -> tuple[str, str]:
    """A subject to publish to and the stream that keeps it."""
    streams = configuration.effective_streams()
    stream = streams[0].name if streams else ""
    pattern = streams[0].subjects[0] if streams and streams[0].subjects != (">",) else "greetings.>"
    tokens = [token if token not in ("*", ">") else "new" for token in pattern.split(".")]
    return ".".join(tokens), stream


def _print_node(kind: str, node: str, **addresses: tuple[str, int] | None) -> None:
    shown = ", ".join(f"{name} {_shown(address)}" for name, address in addresses.items() if address is not None)
    print(f"{kind} {node} is up: {shown}", flush=True)
    sys.stdout.flush()


def _shown(address: tuple[str, int]) -> str:
    return str(config.Address(host=address[0], port=address[1]))
