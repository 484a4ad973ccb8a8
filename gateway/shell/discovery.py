"""Links between gateways that are in no file: each is given a few addresses, and hears of the rest.

    gw3 ── dials a given address ──► gw1        HELLO both ways, with where each takes links and whom it knows; the
     │                                          connection ends then: it has only introduced the two
     ├──── dials gw2, of which gw1 knew ──► gw2
     └──── ...and gw1 tells gw2 of gw3, in the same way

Who knows another's name and address links with it as gateways of a file do (`gateway.shell.gateway_links`): the one
whose name comes first dials, and keeps at it. A gateway that learns of another one introduces itself to it, and tells
those that it knows. Given addresses are tried until somebody answers, and all known ones are asked again now and then,
so that parts of a mesh that have forgotten each other meet again. Who has had no link for long is forgotten; and who is
met at the address of another one has taken its place.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, cast

import msgspec
import structlog

from gateway.shell.gateway_links import GatewayConnection, GatewayLinks
from gateway.shell.server import ClientServer
from protocol.config import Address, Gateway
from protocol.errors import FrameError
from protocol.limits import (
    GATEWAY_FORGET_MS,
    GATEWAY_HELLO_BYTES_MAX,
    GATEWAY_HELLO_MS_MAX,
    GATEWAY_KNOWN_MAX,
    GATEWAY_MEET_AGAIN_MS,
    GATEWAY_MEETINGS_MAX,
    GATEWAY_RETRY_MS_MAX,
    GATEWAY_WAIT_MS_MAX,
    PEER_RETRY_MS_MIN,
)
from protocol.routes import HELLO_VERSION, Hello, Meeting

_EVERYWHERE: Final = ("", "0.0.0.0", "::")
_LOOK_S: Final = 0.5
_POLL_S: Final = 0.01
log = structlog.get_logger()


class Cluster(NamedTuple):
    """Where others may be; what they are told to dial, None for what is bound; whether clients are told of them."""

    routes: Sequence[Address]
    advertised: Address | None = None
    tells_clients: bool = True


class Introduced(FrameError):
    """The two know each other now; a connection for nothing else ends."""


class DiscoveredLinks(GatewayLinks):
    """As `GatewayLinks`, of a zone whose gateways find each other by `cluster`."""

    def __init__(
        self,
        server: ClientServer,
        own: Hello,
        node: Gateway,
        cluster: Cluster,
        jitter: Callable[[], float],
        audit: Callable[[str, str, str], None],
    ) -> None:
        super().__init__(server, own, node, (), {}, None, jitter, audit)
        self._cluster = cluster
        self._keeping: dict[str, asyncio.Task[None]] = {}  # by name: of those that are ours to dial
        self._introducing: dict[Address, asyncio.Task[None]] = {}
        self._met: set[Address] = set()  # somebody has answered there
        self._own_addresses: set[Address] = set()  # this gateway has
        self._missed_since: dict[str, float] = {}

    async def start(self) -> None:
        """Returns when whoever is at the given addresses is linked, or after `GATEWAY_WAIT_MS_MAX`. OSError."""
        if self._listener is None:
            await self.listen()
        self._own_addresses.add(self.takes_links_at)
        await super().start()
        loop = asyncio.get_running_loop()
        for address in self._cluster.routes:
            self._introduce(address, until_met=True)
        self._tasks.append(loop.create_task(self._look_after()))
        deadline_s = loop.time() + GATEWAY_WAIT_MS_MAX / 1_000
        while self._has_to_wait() and loop.time() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    def _has_to_wait(self) -> bool:
        unknown = set(self._cluster.routes) - self._met
        return bool(unknown) or self.server.plane.peers.agreed(near=False) < len(self.others)

    @property
    def takes_links_at(self) -> Address:
        """What others are told to dial."""
        told = self._cluster.advertised or self.bind
        return Address(told.host, told.port if told.port > 0 else self.port)

    @property
    def port(self) -> int:
        """Where links are taken, once `listen` has returned."""
        return self.bind.port or int(cast(asyncio.Server, self._listener).sockets[0].getsockname()[1])

    def opened_to_clients(self) -> None:
        """The port of clients is known now, where it is any free one."""
        if not self._node.client.port:
            self._meet_again()
            self._tell_clients()

    async def stop(self) -> None:
        self._tasks += [*self._keeping.values(), *self._introducing.values()]
        await super().stop()

    # -- meeting ------------------------------------------------------------------------------------------------------

    def hello(self, connection: GatewayConnection) -> Hello:
        """With where we are and whom we know."""
        clients = Address(self._node.client.host, self.server.plane.port) if self._cluster.tells_clients else ""
        known = _fitting(str(other.mesh) for other in self.others.values())
        meeting = Meeting(str(self.takes_links_at), str(clients), known, isinstance(connection, _Introduction))
        return msgspec.structs.replace(self.own, meeting=meeting)

    def check(self, connection: GatewayConnection, hello: Hello) -> None:
        """Introduced, besides LinkRefused."""
        own, meeting = self.own, hello.meeting
        if isinstance(connection, _Introduction) and connection.address in self._cluster.routes:
            self._met.add(connection.address)
        if hello.server_id == own.server_id:
            if isinstance(connection, _Introduction) and len(self._own_addresses) < GATEWAY_KNOWN_MAX:
                self._own_addresses.add(connection.address)
            raise Introduced(f"{own.node} has dialled itself")
        is_ours = (hello.version, hello.mesh, hello.zone) == (HELLO_VERSION, own.mesh, own.zone)
        if is_ours and isinstance(meeting, Meeting) and hello.node != own.node:
            self._learn(connection, hello.node, meeting)
        super().check(connection, hello)
        if isinstance(connection, _Introduction) or (isinstance(meeting, Meeting) and meeting.introduces):
            raise Introduced(f"{own.node} and {hello.node} know each other")

    def refuse(self, connection: GatewayConnection, error: FrameError) -> None:
        """An introduction has just come to its end."""
        if not isinstance(error, Introduced) and not isinstance(connection, _Introduction):
            super().refuse(connection, error)
        elif not isinstance(error, Introduced):
            log.warning("gateway_not_met", reason=str(error))

    def _learn(self, connection: GatewayConnection, name: str, meeting: Meeting) -> None:
        """FrameError: addresses that are none."""
        host = str((connection.transport.get_extra_info("peername") or ("",))[0])
        links, clients = _seen_from(host, meeting.links), _seen_from(host, meeting.clients)
        known = [_parsed(address) for address in meeting.known[:GATEWAY_KNOWN_MAX]]
        before = self.others.get(name)
        if before is not None and before.mesh == links:
            self.others[name] = dataclasses.replace(before, client=clients)
            self._tell_clients()
        elif self._has_room(name):
            self._join(name, links, clients)
        for address in known:
            if all(other.mesh != address for other in self.others.values()):
                self._introduce(address)

    def _has_room(self, name: str) -> bool:
        if name in self.others or len(self.others) < GATEWAY_KNOWN_MAX:
            return True
        log.warning("gateway_not_met", gateway=name, reason=f"{GATEWAY_KNOWN_MAX} others are known already")
        return False

    def _join(self, name: str, links: Address, clients: Address) -> None:
        """There is another one, or it has moved."""
        for gone in [name, *(other.name for other in self.others.values() if other.mesh == links)]:
            self._forget(gone)
        other = Gateway(
            name=name, zone=self.own.zone, client=clients, mesh=links, monitor=None, listen=None, workers=1, spool=""
        )
        told = [each.mesh for each in self.others.values() if each.mesh is not None]
        self.others[name] = other
        log.info("gateway_met", gateway=name, links=str(links), clients=str(clients))
        if self.own.node < name:
            self._keeping[name] = asyncio.get_running_loop().create_task(self._keep(name, links))
        for address in [links, *told]:
            self._introduce(address)

    def _forget(self, name: str) -> None:
        if self.others.pop(name, None) is not None:
            self._missed_since.pop(name, None)
            self.errors.pop(name, None)
            if (task := self._keeping.pop(name, None)) is not None:
                task.cancel()

    def _introduce(self, address: Address, *, until_met: bool = False) -> None:
        """Dials once, or until somebody answers, to say who we are and to hear who is there."""
        if address in self._introducing or address in self._own_addresses:
            return
        if len(self._introducing) >= GATEWAY_MEETINGS_MAX and not until_met:
            return  # whoever it is, is asked again later, if anybody still knows of it
        task = asyncio.get_running_loop().create_task(self._meet(address, until_met))
        self._introducing[address] = task
        task.add_done_callback(lambda _: self._introducing.pop(address, None))

    async def _meet(self, address: Address, until_met: bool) -> None:
        pause_ms = PEER_RETRY_MS_MIN
        while True:
            connection = _Introduction(self, address)
            try:
                async with asyncio.timeout(GATEWAY_HELLO_MS_MAX / 1_000):
                    await self._dial(address, connection)
                    await connection.lost.wait()
            except (OSError, TimeoutError) as error:
                log.debug("gateway_not_met", address=str(address), reason=str(error) or "it does not answer")
            if address in self._met or not until_met:
                return
            await asyncio.sleep(pause_ms * (0.5 + self._jitter() / 2) / 1_000)
            pause_ms = min(pause_ms * 2, GATEWAY_RETRY_MS_MAX)

    # -- now and then -------------------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        loop = asyncio.get_running_loop()
        again_s = loop.time()
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = loop.time()
            for name in list(self.others):
                if name in self.links:
                    self._missed_since.pop(name, None)
                elif now_s - self._missed_since.setdefault(name, now_s) >= GATEWAY_FORGET_MS / 1_000:
                    log.info("gateway_forgotten", gateway=name)
                    self._forget(name)
            if now_s - again_s >= GATEWAY_MEET_AGAIN_MS / 1_000 * (1 + self._jitter()):
                again_s = now_s
                self._meet_again()

    def _meet_again(self) -> None:
        for address in {*self._cluster.routes, *(other.mesh for other in self.others.values() if other.mesh)}:
            self._introduce(address)


class _Introduction(GatewayConnection):
    """One that we have dialled to meet whoever is at `address`, and for nothing else."""

    __slots__ = ("address",)

    def __init__(self, links: DiscoveredLinks, address: Address) -> None:
        super().__init__(links, "")
        self.address = address


def _fitting(addresses: Iterable[str]) -> tuple[str, ...]:
    """As many as half a HELLO has room for: all of them, unless they are names of hosts of unusual length."""
    fitting: list[str] = []
    room_bytes = GATEWAY_HELLO_BYTES_MAX // 2
    for address in addresses:
        room_bytes -= len(address) + len('"",')
        if room_bytes < 0:
            break
        fitting.append(address)
    return tuple(fitting)


def _parsed(address: str) -> Address:
    try:
        return Address.parse(address)
    except ValueError as error:
        raise FrameError(f"the peer's HELLO has no address in {address!r:.80}: {error}") from error


def _seen_from(host: str, address: str) -> Address:
    """As it can be dialled from here; `host` is where the peer's connection comes from. Port 0 where there is none."""
    if not address:
        return Address(host, 0)
    found = _parsed(address)
    return Address(host, found.port) if found.host in _EVERYWHERE else found
