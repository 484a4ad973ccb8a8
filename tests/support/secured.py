"""A zone of three sinks and a gateway in this process, with certificates of nodes: what they say is signed."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.shell.gateway import Gateway
from mesh import node_signing, node_tls
from mesh.daemon import dial_sinks, gateway_signs
from protocol import config
from sinkd.shell.sink import Sink
from support.certificates import Authority
from support.sinks import FILE_BYTES, SinkZone

STREAMS = '[streams.orders]\nsubjects = ["orders.>"]'


class SecuredZone(SinkZone):
    """Files of nodes are `<folder>/<node>-cert.pem` and so on, the authority's is `ca`, the whole file `toml`."""

    def __init__(self, folder: Path, streams: str = STREAMS, **options: object) -> None:
        self.authority = Authority(folder)
        self.ca = self.authority.cert
        files = f'ca = "{self.ca}"\ncert = "{folder}/{{node}}-cert.pem"\nkey = "{folder}/{{node}}-key.pem"'
        super().__init__(folder, streams=f"{streams}\n[tls.nodes]\n{files}", **options)  # type: ignore[arg-type]
        for name in self.names:
            self.authority.node(name, f"mesh://acme/eu/sink/{name}")
        self.authority.node("gw1", "mesh://acme/eu/gateway/gw1")

    @property
    def toml(self) -> str:
        """Where the configuration stands, for commands."""
        path = self.folder / "mesh.toml"
        path.write_text(self.text())
        return str(path)

    async def start(self, *names: str, file: config.Config | None = None) -> None:
        for name in names or self.names:
            configuration = file or self.file()
            sink = Sink(
                configuration, name, journal_file_bytes=FILE_BYTES, segment_bytes=FILE_BYTES,
                tls=node_tls.for_sink(configuration, name), signing=node_signing.signing_of(configuration, name),
            )  # fmt: skip
            self.sinks[name] = sink
            await sink.start()


@contextlib.asynccontextmanager
async def secured(folder: Path, **options: object) -> AsyncIterator[tuple[SecuredZone, str]]:
    """(zone, url): it is led, and the gateway is linked to who leads."""
    zone = SecuredZone(folder, **options)  # type: ignore[arg-type]
    configuration = zone.file()
    eu = configuration.zones["eu"]
    own = dataclasses.replace(eu.gateways["gw1"], client=config.Address("127.0.0.1", 0))
    configuration = dataclasses.replace(configuration, zones={"eu": dataclasses.replace(eu, gateways={"gw1": own})})
    gateway = Gateway(
        configuration, "gw1", dial_sinks(configuration, own), "test", sign=gateway_signs(configuration, own)
    )
    await zone.start()
    try:
        await zone.led()
        host, port = await gateway.start()
        await asyncio.wait_for(gateway.linked(), 60)
        yield zone, f"nats://{host}:{port}"
    finally:
        await gateway.stop()
        await zone.stop()
