"""The links between gateways, as `mesh status` and `mesh top` show them: each gateway's own view, from its monitor."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table

from mesh.sizes import size
from protocol import config
from protocol.routes import node_of, peer_name

if TYPE_CHECKING:
    import aiohttp

Routes = dict[str, dict[str, Any]]
"""By gateway: its `/routez`, or `{"error": why not}`."""


async def ask(gateways: Iterable[config.Gateway], timeout_s: float) -> Routes:
    """What each gateway that has a monitor says of its links."""
    import aiohttp  # slow to load, and not needed where there is but one gateway

    asked = [gateway for gateway in gateways if gateway.monitor is not None]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session:
        pages = await asyncio.gather(*(page(session, str(gateway.monitor), "routez") for gateway in asked))
    return {gateway.name: told for gateway, told in zip(asked, pages, strict=True)}


async def page(session: "aiohttp.ClientSession", address: str, path: str) -> dict[str, Any]:
    """That page of a monitor, or `{"error": why not}`."""
    import aiohttp

    try:
        async with session.get(f"http://{address}/{path}") as response:
            answer: dict[str, Any] = msgspec.json.decode(await response.read())
            return answer
    except TimeoutError:
        return {"error": "no answer in time"}
    except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
        return {"error": str(error)}


def table(told: Routes) -> Table:
    """A row for each gateway, or worker of one, and each peer of its zone, and for each other zone."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("GATEWAY", "PEER", "LINK"):
        shown.add_column(name, no_wrap=True)
    for name in ("ROUND TRIP", "INTEREST", "MESSAGES IN", "OUT", "BYTES IN", "OUT", "DROPPED", "UNWANTED"):
        shown.add_column(name, justify="right", no_wrap=True)
    for gateway, routez in told.items():
        if "error" in routez:
            shown.add_row(gateway, "", f"unknown: {routez['error']}", *[""] * 8)
            continue
        zones = routez.get("zones", {})
        for route in routez["routes"]:
            zone = f" ({route['zone']})" if route["zone"] in zones else ""
            own = peer_name(gateway, route.get("worker", 0))
            shown.add_row(own, route["remote_name"] + zone, *_cells(route))
        for each in routez.get("workers") or [{"number": 0, "missing": routez.get("missing", ())}]:
            for peer in each["missing"]:
                shown.add_row(peer_name(gateway, each["number"]), peer, "down", *[""] * 8)
        for zone, leading in zones.items():
            if gateway not in map(node_of, leading):
                shown.add_row(gateway, f"({zone})", f"by {leading[0]}" if leading else "down", *[""] * 8)
    return shown


def _cells(route: dict[str, Any]) -> list[str]:
    messages = str(route["in_msgs"]), str(route["out_msgs"])
    sizes = size(route["in_bytes"]), size(route["out_bytes"])
    dropped = str(route["dropped"]["behind"]), str(route["dropped"]["unwanted"])
    state = "stale" if route["stale"] else "up"
    return [state, route["rtt"] or "?", str(route["subscriptions"]), *messages, *sizes, *dropped]
