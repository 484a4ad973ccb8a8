"""Connections of the load generators: blocking sockets after the handshake."""

import json
import socket
import ssl
import time
from collections.abc import Mapping
from types import MappingProxyType

from bench.servers import PASSWORD, USER, BenchError, Server

WAIT_S_MAX = 120.0
MEET_S_MAX = 20.0
SPREAD_S = 0.3  # in which the nodes of a cluster learn from each other what a client was promised
READ_BYTES = 64 * 1024


def connect(
    server: Server, commands: bytes = b"", *, subscribes: bool = False, node: int | None = None
) -> socket.socket:
    """A connection whose `commands` have been carried out. To the relay, `subscribes` alone says what it is.

    `node`: to which of several; None: the last one for who subscribes, else the first.
    """
    if server.wire == "relay":
        return _relayed(server.port, subscribes)
    user = {"user": USER, "pass": PASSWORD} if server.setup.permissions else {}
    if server.setup.nodes == 1:
        return connect_to(server.port, commands, tls=server.setup.tls, user=user)
    node = (server.setup.nodes - 1 if subscribes else 0) if node is None else node
    connection = _introduced(_met(server, node), commands, user)
    time.sleep(SPREAD_S if subscribes else 0)
    return connection


def connect_to(
    port: int, commands: bytes = b"", *, tls: bool = False, user: Mapping[str, str] = MappingProxyType({})
) -> socket.socket:
    """A NATS connection whose `commands` have been carried out."""
    connection = _connected(port)
    read_until(connection, b"\r\n")  # INFO
    return _introduced(_encrypted(connection) if tls else connection, commands, user)


def _met(server: Server, node: int) -> socket.socket:
    """A connection to that node, on which nothing was said yet: with one port for all of them, after some tries."""
    deadline = time.monotonic() + MEET_S_MAX
    while time.monotonic() < deadline:
        connection = _connected(server.port_of(node))
        if server.node_of(json.loads(read_until(connection, b"\r\n")[len("INFO ") :])) == node:
            return connection
        connection.close()
    raise BenchError(f"{server.name}: no connection came to node {node}")


def _introduced(connection: socket.socket, commands: bytes, user: Mapping[str, str]) -> socket.socket:
    options: dict[str, object] = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
    options |= {"lang": "bench", "version": "1", "protocol": 0, **user}  # no INFO but the first
    connection.sendall(f"CONNECT {json.dumps(options)}\r\n".encode() + commands)
    barrier(connection)
    return connection


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _relayed(port: int, subscribes: bool) -> socket.socket:
    connection = _connected(port)
    connection.sendall(b"S" if subscribes else b"P")
    if connection.recv(1) != b"+":
        raise BenchError("the relay does not answer")
    return connection


def barrier(connection: socket.socket) -> bytes:
    """Everything sent before has been carried out; what came before the PONG. BenchError for an -ERR."""
    connection.sendall(b"PING\r\n")
    came = read_until(connection, b"PONG\r\n")
    if came.startswith(b"-ERR"):
        raise BenchError(came.partition(b"\r\n")[0].decode())
    return came[: -len(b"PONG\r\n")]


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Bytes up to `end`, with it; nothing may come behind it."""
    came = bytearray()
    while not came.endswith(end):
        data = connection.recv(READ_BYTES)
        if not data:
            raise BenchError(f"the server closed a connection; its last words: {bytes(came[-200:])!r}")
        came += data
    return bytes(came)


def _encrypted(connection: socket.socket) -> socket.socket:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection)
