"""Gateways that keep nothing, and their clients, as planes without sockets: for what they say to each other."""

from gateway.core.plane import Plane
from support.gateway import Hooks, PlaneClient

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":0}\r\n'


class Silent(Hooks):
    """Hooks of a gateway that keeps nothing."""

    def keeps(self, account: str, subject: str) -> bool:
        return False


class Client(PlaneClient):
    def __init__(self, plane: Plane, connect: bytes = CONNECT) -> None:
        super().__init__(plane, connect)
