"""Mutual TLS between the nodes of a mesh: `[tls.nodes]` of the configuration, ready for use.

Every node has a certificate of the mesh's own authority, in which a URI among the alternative names says who it is:

    mesh://<mesh>/<zone>/<gateway or sink>/<node>

Both sides of a link verify: that the authority has signed, and that the other one is who it should be. Host names and
addresses in certificates do not matter, so nodes may move. The authority must be for this mesh alone: who has any
certificate of it with such a URI is that node.

Files that are renewed are taken up at the next handshake: each begins with a look at whether they are others. New ones
that are of no use are logged, and the old ones stay. Links that stand keep what they were made with.
"""

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.shell.certificates import file_problems, peer_certificate
from gateway.shell.gateway_links import LinkTls
from gateway.shell.tls import CIPHERS_1_2
from mesh import tls_port
from protocol import config
from protocol.config import TlsNodes
from protocol.errors import ConfigError, FrameError
from protocol.node_names import NodeName, node_named
from sinkd.shell.raft_links import NodeTls

Connected = tuple[asyncio.BaseTransport, asyncio.BaseProtocol]
log = structlog.get_logger()


def name_of(configuration: config.Config, node: str) -> NodeName:
    """ConfigError: there is no such node."""
    zone = configuration.zone_of(node)
    return NodeName(configuration.mesh.name, zone.name, "sink" if node in zone.sinks else "gateway", node)


def name_in(der: bytes) -> NodeName:
    """The node that a certificate is for. FrameError: it is for none, or for several."""
    certificate = peer_certificate(der)
    return node_named(certificate.uris if certificate is not None else ())


def peer_name(secured: ssl.SSLObject) -> NodeName:
    """Who is at the other end of a link. FrameError: nobody who has shown a certificate of a node."""
    der = secured.getpeercert(binary_form=True)
    if der is None:
        raise FrameError("the peer has shown no certificate")
    return name_in(der)


class Contexts(NamedTuple):
    """What one node accepts links with, and dials with."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def contexts(settings: TlsNodes, own: NodeName) -> Contexts:
    """ConfigError: files that are of no use, or whose certificate is another node's, with what would be right."""
    files = settings.of(own.node)
    check_files(files, own)
    return Contexts(
        _NodeContext(ssl.PROTOCOL_TLS_SERVER, files, own), _NodeContext(ssl.PROTOCOL_TLS_CLIENT, files, own)
    )


def check_files(files: TlsNodes, own: NodeName) -> None:
    """ConfigError: they are of no use, or the certificate is another node's, with what would be right."""
    problems = file_problems("tls.nodes", files.cert, files.key, files.ca)
    if not problems:
        problems = _certificate_problems(files.cert, own)
    if problems:
        raise ConfigError(problems)


def _certificate_problems(file: str, own: NodeName) -> list[str]:
    certificate = x509.load_pem_x509_certificates(Path(file).read_bytes())[0]
    try:
        found = name_in(certificate.public_bytes(Encoding.DER))
    except FrameError as error:
        return [f"tls.nodes.cert: {file}: {error}; this node is {own}"]
    return [] if found == own else [f"tls.nodes.cert: {file}: the certificate is that of {found}, this node is {own}"]


class _NodeContext(ssl.SSLContext):
    """A context whose handshakes are made with the files as they are then."""

    def __new__(cls, protocol: int, files: TlsNodes, own: NodeName) -> "_NodeContext":
        return super().__new__(cls, protocol)

    def __init__(self, protocol: int, files: TlsNodes, own: NodeName) -> None:
        self._files, self._own = files, own
        self._seen = files_state(files)
        self._renewed: ssl.SSLContext | None = None  # instead of this one, since the files were renewed
        _prepare(self, files)

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """Where every handshake begins, as a server and as a client."""
        if (seen := files_state(self._files)) != self._seen:
            self._seen = seen
            self._take_up()
        if self._renewed is not None:
            return self._renewed.wrap_bio(*arguments, **named)
        return super().wrap_bio(*arguments, **named)

    def _take_up(self) -> None:
        try:
            check_files(self._files, self._own)
            context = ssl.SSLContext(self.protocol)
            _prepare(context, self._files)
        except ConfigError as error:
            log.error("certificates_not_renewed", problems=error.problems)
        else:
            self._renewed = context
            log.info("certificates_renewed", file=self._files.cert)


def files_state(files: TlsNodes) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when one of the files does."""
    return tuple(map(_state_of, (files.ca, files.cert, files.key)))


def _state_of(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:  # while it is replaced; or it is gone, which the check tells
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _prepare(context: ssl.SSLContext, files: TlsNodes) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS_1_2)
    context.check_hostname = False  # the URI says who it is
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(files.cert, files.key)
        context.load_verify_locations(files.ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError([f"tls.nodes: {files.cert}, {files.key}, {files.ca} cannot be used: {error}"]) from error


def for_sink(configuration: config.Config, node: str) -> NodeTls | None:
    """What a sink's links to its peers and gateways need; None where links are plain. ConfigError: see `contexts`."""
    if configuration.tls_nodes is None:
        return None
    own = name_of(configuration, node)
    return NodeTls(*contexts(configuration.tls_nodes, own), _identifies(own), _identifies_node(own), tls_port.listen)


def for_gateway(configuration: config.Config, node: str) -> LinkTls | None:
    """What a gateway's links to other gateways need; None where links are plain. ConfigError: see `contexts`."""
    zone = configuration.zone_of(node)
    if configuration.tls_nodes is None or (len(zone.gateways) == 1 and not configuration.live_zones(zone.name)):
        return None
    own = name_of(configuration, node)
    return LinkTls(*contexts(configuration.tls_nodes, own), _identifies_gateway(own), tls_port.listen)


def _identifies_gateway(own: NodeName) -> Callable[[ssl.SSLObject], tuple[str, str]]:
    def identify(secured: ssl.SSLObject) -> tuple[str, str]:
        """Zone and name of a gateway of our mesh. FrameError: the peer is none."""
        peer = peer_name(secured)
        if (peer.mesh, peer.role) != (own.mesh, own.role):
            raise FrameError(f"the peer is {peer}, no {own.role} of mesh {own.mesh}")
        return peer.zone, peer.node

    return identify


def _identifies_node(own: NodeName) -> Callable[[ssl.SSLObject], tuple[str, str, str]]:
    def identify(secured: ssl.SSLObject) -> tuple[str, str, str]:
        """Zone, role and name of a node of our mesh. FrameError: the peer is none."""
        peer = peer_name(secured)
        if peer.mesh != own.mesh:
            raise FrameError(f"the peer is {peer}, no node of mesh {own.mesh}")
        return peer.zone, peer.role, peer.node

    return identify


def _identifies(own: NodeName) -> Callable[[ssl.SSLObject], str]:
    def identify(secured: ssl.SSLObject) -> str:
        """The name of a node of our zone and kind. FrameError: the peer is none."""
        peer = peer_name(secured)
        if peer[:3] != own[:3]:
            raise FrameError(f"the peer is {peer}, no {own.role} of zone {own.zone} of mesh {own.mesh}")
        return peer.node

    return identify


async def connect(
    address: config.Address, context: ssl.SSLContext, expected: NodeName, factory: Callable[[], asyncio.Protocol]
) -> Connected:
    """Dials a node. OSError: it cannot be reached, does not accept our certificate, or is not `expected`."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(factory, address.host, address.port, ssl=context)
    try:
        verify(transport.get_extra_info("ssl_object"), expected)
    except OSError:
        transport.abort()
        raise
    return transport, protocol


class Expected(NamedTuple):
    """Who should be at the other end, and what to dial it with."""

    name: NodeName
    context: ssl.SSLContext


def expected_sinks(configuration: config.Config, zone: str) -> dict[str, Expected]:
    """How an operator dials the sinks of `zone`: as whichever node's certificate is here; empty where links are plain.

    ConfigError: no node's is.
    """
    settings = configuration.tls_nodes
    if settings is None:
        return {}
    nodes = [node for one in configuration.zones.values() for node in (*one.sinks, *one.gateways)]
    here = next((node for node in nodes if _is_readable(settings.of(node))), None)
    if here is None:
        files = f"{settings.cert} and {settings.key}"
        raise ConfigError([f"tls.nodes: {files} can be read here for no node; be where those of one are"])
    context = contexts(settings, name_of(configuration, here)).client
    return {sink: Expected(name_of(configuration, sink), context) for sink in configuration.zones[zone].sinks}


def _is_readable(files: TlsNodes) -> bool:
    return os.access(files.cert, os.R_OK) and os.access(files.key, os.R_OK)


def verify(secured: ssl.SSLObject, expected: NodeName) -> None:
    """ConnectionError: the other end is not `expected`."""
    try:
        peer = peer_name(secured)
    except FrameError as error:
        raise ConnectionError(str(error)) from error
    if peer != expected:
        raise ConnectionError(f"the peer is {peer}, expected {expected}")
