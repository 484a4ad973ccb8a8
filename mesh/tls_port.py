"""A port for links between nodes with TLS, which tells whose handshake has failed, and why.

The event loop's own servers keep that to themselves: a peer whose certificate is refused is gone without a word. Here a
connection is accepted first, so that it is known from where it came, and then secured.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from gateway.shell.tls import explained
from protocol.config import Address
from protocol.limits import GATEWAY_HELLO_MS_MAX

_BACKLOG: Final = 128
_PAUSE_S: Final = 0.1  # when the process has no descriptor left


class TlsPort:
    """`make` is called for each connection that is secured; `failed(host, why)` for each that cannot be."""

    def __init__(
        self, make: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext, failed: Callable[[str, str], None]
    ) -> None:
        self._make, self._context, self._failed = make, context, failed
        self.sockets: list[socket.socket] = []
        self._securing: set[asyncio.Task[None]] = set()  # handshakes that have begun
        self._is_closed = False

    async def listen(self, bind: Address) -> None:
        """OSError: the address cannot be had."""
        loop = asyncio.get_running_loop()
        flags, kind = socket.AI_PASSIVE, socket.SOCK_STREAM
        found = await loop.getaddrinfo(bind.host or None, bind.port, type=kind, flags=flags)
        try:
            for family, _, protocol, _, address in dict.fromkeys(found):
                self._listen(socket.socket(family, kind, protocol), address)
        except OSError:
            self.close()
            raise
        for listener in self.sockets:
            self._watch(listener)

    def _listen(self, listener: socket.socket, address: Any) -> None:
        self.sockets.append(listener)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)

    def close(self) -> None:
        """Takes no more connections; those that are secured go on."""
        self._is_closed = True
        for task in self._securing:
            task.cancel()
        for listener in self.sockets:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    def _watch(self, listener: socket.socket) -> None:
        if not self._is_closed:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Without a task that could be cancelled with a connection in its hands."""
        loop = asyncio.get_running_loop()
        try:
            connection, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            loop.remove_reader(listener)
            loop.call_later(_PAUSE_S, self._watch, listener)
            return
        connection.setblocking(False)
        task = loop.create_task(self._secure(connection, str(address[0])))
        task.add_done_callback(self._securing.discard)

    async def _secure(self, connection: socket.socket, host: str) -> None:
        if self._is_closed:
            connection.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._securing.add(task)
        try:
            async with asyncio.timeout(GATEWAY_HELLO_MS_MAX / 1_000):
                await asyncio.get_running_loop().connect_accepted_socket(self._make, connection, ssl=self._context)
        except TimeoutError:
            self._failed(host, "it begins no TLS handshake in time")
        except ssl.SSLError as error:
            self._failed(host, explained(error))
        except OSError as error:
            self._failed(host, f"TLS handshake: {error or 'the peer has gone'}")


async def listen(
    make: Callable[[], asyncio.BaseProtocol],
    bind: Address,
    context: ssl.SSLContext,
    failed: Callable[[str, str], None],
) -> TlsPort:
    """A port that takes links. OSError: the address cannot be had."""
    port = TlsPort(make, context, failed)
    await port.listen(bind)
    return port
