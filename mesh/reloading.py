"""SIGHUP: the file is read again. What can change in a running process is taken from it, the rest is named.

    SIGHUP ─► file ─► wrong: named, nothing changes
                └───► compared with what the process goes by ─► rates between zones: taken, at once
                                                              └► all else: named, with what it takes

A rate changes in place: nobody else has to agree, and nothing is held for it. Streams are committed by the zone's sinks
under a revision; what nodes have opened, or have told each other of themselves, stays as it is until they start again.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import structlog

from protocol.config import Config, Link
from protocol.errors import ConfigError

_UNIT = re.compile(r"_(bytes|ms)$")
_BY_REVISION = "it takes a higher mesh.revision, and sinks that are started with it"
_BY_RESTART = "it takes a restart"
log = structlog.get_logger()


class Reloading:
    """Of a process of `zone` that goes by `running`, which was read from `file`."""

    def __init__(
        self,
        file: str,
        running: Config,
        zone: str,
        rate: Literal["copy_rate", "live_rate"],
        load: Callable[[str, bytes], Config],
        take: Callable[[Config], None],
    ) -> None:
        """`load` is what reads the file (ConfigError), `take` goes by the rates in another configuration.

        `rate` is the one that is this node's business.
        """
        self._file, self._running, self._zone, self._rate = file, running, zone, rate
        self._load, self._take = load, take

    def reload(self) -> None:
        """What came of it is in the log."""
        try:
            wanted = self._load(self._file, Path(self._file).read_bytes())
        except (ConfigError, OSError) as error:
            problems = error.problems if isinstance(error, ConfigError) else [f"{self._file}: {error.strerror}"]
            for problem in problems:
                log.error("configuration_not_reloaded", problem=problem)
            return
        before, self._running = self._running, dataclasses.replace(self._running, links=_links(self._running, wanted))
        self._take(self._running)
        for name in different(self._running, wanted):
            why = _BY_REVISION if name.startswith("streams.") else _BY_RESTART
            log.warning("configuration_not_taken", what=name, why=why)
        log.info("configuration_reloaded", file=self._file, taken=self._changed(before))

    def _changed(self, before: Config) -> list[str]:
        """The rates of this node that are others now."""
        field, zone = f"{self._rate}_bytes_per_second", self._zone
        return [
            f"links.{zone}.{other}.{self._rate}"
            for other in before.zones
            if getattr(before.link(zone, other), field) != getattr(self._running.link(zone, other), field)
        ]


def _links(running: Config, wanted: Config) -> tuple[Link, ...]:
    """Those of `running`, with the rates of `wanted`."""
    pairs = {frozenset(link.zones): link.zones for link in (*running.links, *wanted.links)}
    return tuple(dataclasses.replace(wanted.link(*pair), live=running.link(*pair).live) for pair in pairs.values())


def different(running: Config, wanted: Config) -> list[str]:
    """What is not the same in two configurations, by name: never the values, which may be secrets."""
    ours, theirs, nothing = dict(_parts(running)), dict(_parts(wanted)), object()
    return sorted(name for name in ours | theirs if ours.get(name, nothing) != theirs.get(name, nothing))


def _parts(configuration: Config) -> Iterator[tuple[str, object]]:
    for part in (configuration.mesh, configuration.limits):
        for field in dataclasses.fields(part):
            yield f"{type(part).__name__.lower()}.{_UNIT.sub('', field.name)}", getattr(part, field.name)
    for zone in configuration.zones.values():
        yield f"zones.{zone.name}", dataclasses.replace(zone, gateways={}, sinks={})
        for gateway in zone.gateways.values():
            yield f"zones.{zone.name}.gateways.{gateway.name}", gateway
        for sink in zone.sinks.values():
            yield f"zones.{zone.name}.sinks.{sink.name}", sink
    for link in configuration.links:
        one, other = sorted(link.zones)
        yield f"links.{one}.{other}", dataclasses.replace(link, zones=(one, other))
    streams = (*configuration.streams.values(), configuration.catch_all, *configuration.account_catch_alls)
    for stream in (*streams, configuration.audit, configuration.coverage.stream):
        yield f"streams.{stream.name}", stream
    yield "coverage", (configuration.coverage.enabled, configuration.coverage.gap_grace_ms)
    yield "accounts", configuration.accounts
    yield "users", configuration.users
    yield "tls.clients", configuration.tls_clients
    yield "tls.nodes", configuration.tls_nodes
