"""`mesh health`: whether one node lives, and whether it is ready, for what starts and watches processes.

    live    its process answers on its monitor, whatever it answers: one that recovers a long log lives
    ready   a gateway: it is linked to the sinks that lead
            a sink:    it knows who leads, is whole (it may vote), and lacks next to nothing of what the leader has

What a sink lacks is known to the one that leads, so that one is asked too. Where it cannot be (its monitor listens on
its own machine alone, or it has just died) what the sink says of itself has to do, and the answer says so.

A container engine starts this every few seconds for every node: nothing is imported that is not needed.
"""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import tomli

from mesh.commands.failure import Failure
from protocol.config_units import Address

LAG_ENTRIES_MAX: Final = 1_000  # as many as a sink may lack that is made a member


class Node:
    """One node by its monitor. `sinks` are the monitors of the sinks of its zone, where a configuration names them."""

    def __init__(self, monitor: Address, name: str, sinks: dict[str, Address | None], timeout_s: float) -> None:
        self._monitor, self._name, self._sinks, self._timeout_s = monitor, name, sinks, timeout_s

    def live(self) -> str:
        """What to say of a process that answers. Failure: it does not."""
        status, _ = self._page(self._monitor, "/healthz")
        return f"{self._called} lives" + ("" if status == 200 else ", and is not ready")

    def ready(self) -> str:
        """What to say of a node that is ready. Failure: why it is not."""
        status, health = self._page(self._monitor, "/healthz")
        if status != 200:
            raise Failure(f"{self._called} is not ready: {health.get('error', health)}")
        _, varz = self._page(self._monitor, "/varz")
        notes = list(self._unlinked(varz))
        if notes:
            raise Failure(f"{self._called} is not ready: {'; '.join(notes)}")
        unknown = self._look_at_groups(varz["sink"]) if "sink" in varz else ""
        return f"{self._called} is ready" + unknown

    @property
    def _called(self) -> str:
        return self._name or str(self._monitor)

    def _unlinked(self, varz: dict[str, Any]) -> Iterator[str]:
        """The links of a gateway to sinks that are not open; none where it keeps nothing, or is no gateway."""
        links = varz.get("sink_links") or ([varz["sink_link"]] if "sink_link" in varz else [])
        for group, each in enumerate(links):
            if each["problem"] or not each["sink"]:
                yield f"no link to the sink that leads group {group}" + (each["problem"] and f": {each['problem']}")

    def _look_at_groups(self, sink: dict[str, Any]) -> str:
        """What could not be asked. Failure: in some group the sink is not whole, or lags."""
        unknown = ""
        for number, group in enumerate(sink.get("groups") or [sink]):
            if group["muted"]:
                raise Failure(f"{self._called} is not ready: group {number}: it is not whole: {group['muted']}")
            lag = group["commit_index"] - group["applied_index"]
            if not group["leads"] and group["leader"] in self._sinks:
                more = self._lag_by(group["leader"], number, sink["node"])
                lag = max(lag, more or 0)
                if more is None:
                    unknown = f"; sink {group['leader']}, which leads, cannot be asked what it lacks"
            if lag > LAG_ENTRIES_MAX:
                raise Failure(f"{self._called} is not ready: group {number}: it lacks {lag} entries")
        return unknown

    def _lag_by(self, leader: str, number: int, sink: str) -> int | None:
        """How many entries `sink` lacks, as `leader` knows it; None: it cannot be asked, or does not know."""
        monitor = self._sinks[leader]
        try:
            page = self._page(monitor, "/varz")[1].get("sink", {}) if monitor is not None else {}
        except Failure:
            return None
        if page.get("node") != leader:  # an address that is another process's here
            return None
        group = page["groups"][number] if "groups" in page else page
        told = (peer.get("lag_entries") for peer in group["peers"] if peer["node"] == sink)
        return next(told, None)

    def _page(self, address: Address, path: str) -> tuple[int, dict[str, Any]]:
        """Status and content. Failure: there is no answer."""
        connection = http.client.HTTPConnection(address.host, address.port, timeout=self._timeout_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, dict(json.loads(answer.read()))
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Failure(f"{self._called} does not answer on {address}: {why}") from error
        finally:
            connection.close()


def node_of(file: str, name: str, timeout_s: float) -> Node:
    """The node that the configuration in `file` calls `name`. OSError; Failure: there is none, or it has no monitor.

    The node has checked the file as a whole when it started; to do so again would take longer than all the rest.
    """
    try:
        zones = tomli.loads(Path(file).read_text("utf-8", "surrogateescape")).get("zones", {}).values()
        for zone in zones:
            nodes = {**zone.get("gateways", {}), **zone.get("sinks", {})}
            if name in nodes and "monitor" in nodes[name]:
                monitors = {sink: _monitor(keys) for sink, keys in zone.get("sinks", {}).items()}
                return Node(Address.parse(nodes[name]["monitor"]), name, monitors, timeout_s)
    except (ValueError, AttributeError, TypeError) as error:
        raise Failure(f"{file} is not a configuration; `mesh check {file}` says more") from error
    raise Failure(f"{file}: there is no node {name} with a `monitor`")


def _monitor(keys: dict[str, Any]) -> Address | None:
    return Address.parse(keys["monitor"]) if "monitor" in keys else None
