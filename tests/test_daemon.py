"""A node as it is put together from its configuration: where it listens, what its monitor says."""

import aiohttp

from gateway.shell.gateway import Gateway
from mesh.daemon import VERSION, Node
from protocol import config
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
    for alone in (Node(Gateway(configuration, "gw1", None, VERSION), None), Node(None, Sink(configuration, "sink1"))):
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
