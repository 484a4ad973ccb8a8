"""Lame duck mode: a gateway that retires parts with its clients slowly, so that they do not all go elsewhere at once.

    told ──► grace period ──► connections closed one by one, over the rest of the duration ──► nobody is left

No new client is let in from the beginning on. Clients that understand it (protocol 1 and later) are told by an INFO
with `ldm`, and go elsewhere by themselves when it suits them; the others notice when they are closed. The grace period
gives several servers that retire together the time to tell all their clients, which then do not go from one to the
other. Until it is closed a client is served as ever.

Source: nats-server `server/server.go` (lameDuckMode).
"""

import asyncio
from collections.abc import Callable

import structlog

from gateway.core.session import Closed
from gateway.shell.server import ClientServer
from protocol.limits import LAME_DUCK_PAUSE_MS_MAX

_SPREAD_MS_MIN = 1_000
log = structlog.get_logger()


async def retire(
    server: ClientServer, *, duration_ms: int, grace_period_ms: int, choose: Callable[[float, float], float]
) -> None:
    """Returns when no client is left. `choose(a, b)` picks a number between `a` and `b`."""
    log.info("lame_duck_begins", clients=len(server.clients()))
    server.stop_accepting()
    server.plane.lame_duck()
    server.flush()
    if await server.wait_until_empty(grace_period_ms):
        return
    clients = server.clients()
    spread_ms = max(duration_ms - grace_period_ms, 0) or _SPREAD_MS_MIN
    pause_s = min(spread_ms / len(clients), LAME_DUCK_PAUSE_MS_MAX) / 1_000
    log.info("lame_duck_closes_clients", clients=len(clients))
    for session in clients:
        if session.closing is None:
            server.plane.close(session, Closed.SHUTDOWN)
            server.flush()
            await asyncio.sleep(choose(pause_s / 2, pause_s))
