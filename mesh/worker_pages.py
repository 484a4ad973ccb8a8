"""How the pages of several workers become one page of one gateway: by values alone.

Counters are added up, lists are merged in the order that each already has. What describes the gateway is the same with
every worker, and taken from the one that has been up for longest.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.core.nats_values import Page, Window

_VARZ_SUMS: Final = ("mem", "cpu", "connections", "subscriptions", "spool")
_VARZ_COUNTERS: Final = (
    "total_connections",
    *("in_msgs", "in_bytes", "out_msgs", "out_bytes"),
    *("in_client_msgs", "in_client_bytes", "out_client_msgs", "out_client_bytes"),
    *("slow_consumers", "stale_connections", "stalled_clients", "slow_consumer_stats", "stale_connection_stats"),
)
_SUBSZ_SUMS: Final = ("num_subscriptions", "num_cache", "num_inserts", "num_removes", "total")
_ACCOUNT_SUMS: Final = ("client_connections", "subscriptions", "sublist_stats")


class Varz:
    """`/varz` of all workers. Its counters never fall: what processes that have ended had counted, as far as a page of
    theirs was seen, stays in the sums."""

    def __init__(self) -> None:
        self._last: dict[int, Page] = {}  # by the number of a worker
        self._ended: list[Page] = []  # one at most

    def merged(self, pages: Mapping[int, Page]) -> Page:
        """Of the `pages` that there are now, by the number of their worker; at least one."""
        for number, page in pages.items():
            last = self._last.get(number)
            if last is not None and last["start"] != page["start"]:
                self._ended = [_sums([*self._ended, last], _VARZ_COUNTERS)]
            self._last[number] = page
        oldest = min(pages.values(), key=lambda page: str(page["start"]))
        counted = _sums([*self._last.values(), *self._ended], _VARZ_COUNTERS)
        return oldest | _sums(list(pages.values()), _VARZ_SUMS) | counted


def connz(pages: Sequence[Page], window: Window) -> Page:
    """`/connz` of the `window` of all connections; each page has the first of its own, up to the window's end."""
    keyed = [pair for page in pages for pair in zip(page["keys"], page["connections"], strict=True)]
    keyed.sort(key=lambda pair: pair[0], reverse=pages[0]["largest_first"])
    shown = window.of_list([connection for _, connection in keyed])
    merged = {name: value for name, value in pages[0].items() if name not in ("keys", "largest_first")}
    return merged | {
        "num_connections": len(shown),
        "total": sum(page["total"] for page in pages),
        "offset": window.offset,
        "limit": window.limit,
        "connections": shown,
    }


def subsz(pages: Sequence[Page], window: Window) -> Page:
    """`/subsz`; each page has its part of the window, and they follow each other."""
    shown = [subscription for page in pages for subscription in page.get("subscriptions_list", ())]
    merged = {name: value for name, value in pages[0].items() if name != "subscriptions_list"}
    merged |= _sums(pages, _SUBSZ_SUMS) | {"offset": window.offset, "limit": window.limit}
    return merged | ({"subscriptions_list": shown} if shown else {})


def routez(pages: Mapping[int, Page]) -> Page:
    """`/routez`: the links of all, each with the number of its worker; under `workers`, to whom each has none.

    `missing` are all to which any has none; who leads to other zones is said by the first.
    """
    first = next(iter(pages.values()))
    routes = [{"worker": number, **route} for number, page in pages.items() for route in page["routes"]]
    merged = first | {"num_routes": len(routes), "routes": routes}
    if "missing" in first:
        merged["missing"] = list(dict.fromkeys(name for page in pages.values() for name in page["missing"]))
        merged["workers"] = [{"number": number, "missing": page["missing"]} for number, page in pages.items()]
    return merged


def accountz(pages: Sequence[Page]) -> Page:
    """`/accountz`: the names, or what there is to say of one account."""
    details = [page["account_detail"] for page in pages if "account_detail" in page]
    if not details:
        return pages[0]
    return pages[0] | {"account_detail": details[0] | _sums(details, _ACCOUNT_SUMS)}


def _sums(pages: Sequence[Page], names: Sequence[str]) -> Page:
    return {name: _sum([page[name] for page in pages if name in page]) for name in names if name in pages[0]}


def _sum(values: list[Any]) -> Any:
    """Numbers are added up, tables value by value."""
    if not isinstance(values[0], dict):
        return round(sum(values), 1) if isinstance(values[0], float) else sum(values)
    return {name: _sum([value[name] for value in values]) for name in values[0]}
