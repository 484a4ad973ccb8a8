"""Which forwarder runs: the compiled one where it was built, else its reference, which does the same more slowly.

`mesh --version` tells which it is; a gateway that runs on the reference says so in its log.
"""

from typing import Final, NamedTuple

from gateway.core.forwarding import Forwarder
from gateway.core.lanes import Lane, Room
from gateway.core.session import Account, Session, Subscription
from protocol.nats import ClientParser


class Engine(NamedTuple):
    """What a plane and its outbox are made of; the classes of both engines have the reference's interface."""

    name: str
    forwarder: type[Forwarder]
    session: type[Session]
    subscription: type[Subscription]
    account: type[Account]
    lane: type[Lane]
    room: type[Room]
    parser: type[ClientParser] = ClientParser


def _compiled() -> Engine | None:
    try:
        from gateway.core import _forwarding as twin
    except ImportError:  # built without a C compiler
        return None
    return Engine("compiled", twin.Forwarder, twin.Session, twin.Subscription, twin.Account, twin.Lane, twin.Room)


REFERENCE: Final = Engine("reference", Forwarder, Session, Subscription, Account, Lane, Room)
COMPILED: Final = _compiled()
BEST: Final = COMPILED or REFERENCE
