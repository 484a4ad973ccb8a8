"""A node as it is put together from its configuration: where it listens, what its monitor says."""

import asyncio

import aiohttp
import pytest

from gateway.shell.gateway import Gateway
from mesh import daemon
from mesh.daemon import VERSION, Node
from protocol import config
from protocol.errors import DamagedFile
from sinkd.shell.sink import Sink

# Names that nobody can resolve: whoever listens on them, not on `listen`, does not start.
FILE = """
    [mesh]
    name = "acme"
    insecure = true
    [zones.eu.gateways.gw1]
    client = "gw1.invalid:0"
    monitor = "gw1.invalid:0"
    listen = "127.0.0.1"
    [zones.eu.sinks.sink1]
    link = "sink1.invalid:0"
    monitor = "sink1.invalid:0"
    listen = "127.0.0.1"
    data = "{folder}"
    disk_reserve = "0"
"""


async def test_every_socket_of_a_node_is_bound_to_listen(tmp_path):
    configuration = config.parse(FILE.format(folder=tmp_path), "mesh.toml")
    for alone in (Node(Gateway(configuration, "gw1", (), VERSION), None), Node(None, Sink(configuration, "sink1"))):
        try:
            await alone.start()
            sockets = [alone.clients, alone.sink.listening if alone.sink is not None else None]
            assert [host for host, _ in filter(None, sockets)] == ["127.0.0.1"]
            host, port = alone.monitored
            assert host == "127.0.0.1"
            async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}/healthz") as answer:
                assert await answer.json() == {"status": "ok"}
        finally:
            await alone.stop()


async def test_who_probes_a_node_hears_why_it_does_not_serve(tmp_path, monkeypatch):
    configuration = config.parse(FILE.format(folder=tmp_path), "mesh.toml")
    sink = Sink(configuration, "sink1")
    node = Node(None, sink)
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    def slowly(step):
        async def run():
            begun.set()
            await may_go_on.wait()
            begun.clear()
            may_go_on.clear()
            await step()

        return run

    monkeypatch.setattr(sink, "start", slowly(sink.start))
    monkeypatch.setattr(sink, "stop", slowly(sink.stop))
    starting = asyncio.ensure_future(node.start())
    await asyncio.wait_for(begun.wait(), 60)
    host, port = node.monitored
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:

        async def get(path):
            async with session.get(path) as answer:
                return answer.status, await answer.json()

        expected = {"status": "unavailable", "error": f"recovering the log in {tmp_path}"}
        assert await get("/healthz") == (503, expected)
        assert "sink" not in (await get("/varz"))[1]
        may_go_on.set()
        await asyncio.wait_for(starting, 60)
        assert await get("/healthz") == (200, {"status": "ok"})
        assert (await get("/varz"))[1]["sink"]["node"] == "sink1"
        stopping = asyncio.ensure_future(node.stop())
        await asyncio.wait_for(begun.wait(), 60)
        assert await get("/healthz") == (503, {"status": "unavailable", "error": "stopping"})
    may_go_on.set()
    await asyncio.wait_for(stopping, 60)


class Damaged:
    """A node whose sink finds its log damaged; `aside`: it can be filled by others."""

    def __init__(self, *, aside):
        self.gateway, self.sink, self.retiring, self.reloading, self._aside = None, self, None, None, aside
        self.failed = asyncio.get_running_loop().create_future()

    async def start(self):
        self.failed.set_result(DamagedFile("0.segment", 7, "a flipped bit"))

    async def stop(self):
        self.failed.result().is_set_aside = self._aside


@pytest.mark.parametrize(("aside", "starts"), [(True, 4), (False, 1)])
async def test_a_sink_with_a_damaged_log_starts_again_where_others_can_fill_it(aside, starts):
    started = []
    with pytest.raises(DamagedFile, match="a flipped bit"):
        await daemon._serve(lambda: Damaged(aside=aside), started.append)
    assert len(started) == starts
