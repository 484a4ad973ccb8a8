"""Connections of the load generators: blocking sockets after the handshake."""

import json
import socket
import ssl

from bench.servers import PASSWORD, USER, BenchError, Server

WAIT_S_MAX = 120.0
READ_BYTES = 64 * 1024


def connect(server: Server, commands: bytes = b"", *, subscribes: bool = False) -> socket.socket:
    """A connection whose `commands` have been carried out. To the relay, `subscribes` alone says what it is."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if server.wire == "relay":
        connection.sendall(b"S" if subscribes else b"P")
        if connection.recv(1) != b"+":
            raise BenchError("the relay does not answer")
        return connection
    read_until(connection, b"\r\n")  # INFO
    if server.setup.tls:
        connection = _encrypted(connection)
    options: dict[str, object] = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
    options |= {"lang": "bench", "version": "1", "protocol": 0}  # no INFO but the first
    if server.setup.permissions:
        options |= {"user": USER, "pass": PASSWORD}
    connection.sendall(f"CONNECT {json.dumps(options)}\r\n".encode() + commands)
    barrier(connection)
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
