"""Bytes between the nodes of a server: what the kernel counts on the connections to the ports where they meet.

Taken from TCP's own counters by netlink (`man 7 sock_diag`, `struct tcp_info` of linux/tcp.h), so that everything
counts, interest and PINGs too, for whichever server; without headers of TCP, without what was sent again.
"""

import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from bench.servers import BenchError, Server

_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_ESTABLISHED: Final = 1 << 1
_INET_DIAG_INFO: Final = 2
_MESSAGE: Final = struct.Struct("=IHHII")  # nlmsghdr
_PORTS: Final = struct.Struct(">HH")  # of idiag_id, 4 bytes into inet_diag_msg
_ATTRIBUTE: Final = struct.Struct("=HH")
_INET_DIAG_BYTES: Final = 72  # inet_diag_msg; attributes follow
_RECEIVED_AT: Final = 128  # tcpi_bytes_received
_DONE, _ERROR = 3, 2
_QUIET_S: Final = 0.1
_QUIET_S_MAX: Final = 10.0
_QUIET_BYTES_MAX: Final = 2_000  # digests and PINGs go on


def settled_bytes(server: Server) -> int:
    """As `bytes_between`, once hardly anything moves. BenchError: it does not come to rest."""
    deadline = time.monotonic() + _QUIET_S_MAX
    last_bytes = bytes_between(server)
    while time.monotonic() < deadline:
        time.sleep(_QUIET_S)
        now_bytes = bytes_between(server)
        if now_bytes - last_bytes <= _QUIET_BYTES_MAX * server.setup.nodes:
            return now_bytes
        last_bytes = now_bytes
    raise BenchError(f"{server.name}: the nodes do not come to rest")


def bytes_between(server: Server) -> int:
    """What all nodes together have received from each other since they were linked."""
    ports = frozenset(server.route_ports)
    return sum(
        received for family in (socket.AF_INET, socket.AF_INET6) for received in _received(family, ports)
    )  # fmt: skip


def _received(family: int, ports: frozenset[int]) -> Iterator[int]:
    """By each end of a connection to one of the ports."""
    for body in _dump(family):
        if ports.isdisjoint(_PORTS.unpack_from(body, 4)):
            continue
        at = _INET_DIAG_BYTES
        while at + _ATTRIBUTE.size <= len(body):
            length, kind = _ATTRIBUTE.unpack_from(body, at)
            if kind == _INET_DIAG_INFO:
                yield struct.unpack_from("=Q", body, at + _ATTRIBUTE.size + _RECEIVED_AT)[0]
            at += max(_aligned(length), _ATTRIBUTE.size)


def _dump(family: int) -> Iterator[bytes]:
    """Every established TCP connection of this machine, as inet_diag_msg with its attributes."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:  # NETLINK_SOCK_DIAG
        request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), _ESTABLISHED)
        head = _MESSAGE.pack(_MESSAGE.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
        netlink.sendto(head + request, (0, 0))
        while True:
            data, at = netlink.recv(1 << 20), 0
            while at + _MESSAGE.size <= len(data):
                length, kind, *_ = _MESSAGE.unpack_from(data, at)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise BenchError("the kernel tells nothing of its connections")
                yield data[at + _MESSAGE.size : at + length]
                at += _aligned(length)


def _aligned(size: int) -> int:
    return (size + 3) & ~3
