"""Congestion control on links that do not leave the machine; the twin of `unpace` in `gateway.shell.connection`."""

import asyncio
import contextlib
import socket


def unpace(transport: asyncio.Transport) -> None:
    """Takes BBR from a connection within this machine: it paces what is sent by timers, and nothing is in its way here.

    Where another algorithm is in use, or none can be set, nothing changes.
    """
    local, remote = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    if not isinstance(local, tuple) or not isinstance(remote, tuple) or local[0] != remote[0]:
        return
    connected = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):  # systems without TCP_CONGESTION have no BBR either
        if connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).startswith(b"bbr"):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
