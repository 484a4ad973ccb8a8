"""`mesh top`'s figures: what two looks at a mesh, a moment apart, say of it. No I/O.

A look has, by node, the page `/varz` of each gateway's monitor and what each sink says of itself in each Raft group, or
`{"error": why not}`. Counters become rates between two looks. One that has gone back, since its process began anew, has
no rate at this moment, and neither has one of a node that could not be asked before: None.
"""

from typing import Any, NamedTuple

Told = dict[str, dict[str, Any]]
"""By name: what a node says, or `{"error": why not}`."""

_RATES = {
    "msgs_in": "in_msgs",
    "msgs_out": "out_msgs",
    "bytes_in": "in_bytes",
    "bytes_out": "out_bytes",
}


class Look(NamedTuple):
    """What there was to be seen at `at_s`, in seconds of a clock that does not jump; `groups` by number."""

    at_s: float
    varz: Told
    routes: Told
    groups: list[Told]


def figures(before: Look, now: Look) -> dict[str, Any]:
    """Plain values for JSON; docs/cli.md names them."""
    seconds = now.at_s - before.at_s
    return {
        "gateways": {name: _gateway(before.varz.get(name, {}), page, seconds) for name, page in now.varz.items()},
        "links": now.routes,
        "groups": [{name: _sink(told, one) for name, one in told.items()} for told in now.groups],
        "logs": _logs(before, now, seconds),
    }


def _gateway(before: dict[str, Any], page: dict[str, Any], seconds: float) -> dict[str, Any]:
    if "error" in page:
        return {"error": page["error"]}
    rates = {f"{name}_per_s": _rate(before.get(key), page[key], seconds) for name, key in _RATES.items()}
    counted = {name: page[name] for name in ("connections", "subscriptions", "slow_consumers")}
    return {**counted, **rates, "mem": page["mem"], "cpu": page["cpu"]}


def _sink(told: Told, one: dict[str, Any]) -> dict[str, Any]:
    if "error" in one:
        return {"error": one["error"]}
    leader = next((each for each in told.values() if each.get("state") == "leader"), None)
    lags = {peer["node"]: peer.get("lag_entries") for peer in leader["peers"]} if leader is not None else {}
    lag = 0 if one is leader else lags.get(one["node"])
    return {name: one[name] for name in ("state", "term", "commit_index", "muted", "free_bytes")} | {"lag_entries": lag}


def _logs(before: Look, now: Look, seconds: float) -> list[dict[str, Any]]:
    """Each log by its furthest sink; `retained` is what can be read of it."""
    ends_before = _ends(before.groups)
    rows = []
    for (stream, partition), log in sorted(_ends(now.groups).items()):
        last = ends_before.get((stream, partition))
        rows.append(
            {
                "stream": stream,
                "partition": partition,
                "end_offset": log["end_offset"],
                "retained": log["end_offset"] - log["start_offset"],
                "bytes": log["bytes"],
                "events_per_s": _rate(last["end_offset"] if last else None, log["end_offset"], seconds),
            }
        )
    return rows


def _ends(groups: list[Told]) -> dict[tuple[str, int], dict[str, Any]]:
    furthest: dict[tuple[str, int], dict[str, Any]] = {}
    for told in groups:
        for one in told.values():
            for log in one.get("logs", ()):
                key = log["stream"], log["partition"]
                if key not in furthest or log["end_offset"] > furthest[key]["end_offset"]:
                    furthest[key] = log
    return furthest


def _rate(before: int | None, now: int, seconds: float) -> float | None:
    if before is None or now < before or seconds <= 0:
        return None
    return round((now - before) / seconds, 1)
