"""The configuration as the programs read it: frozen, checked, units in the names.

`protocol.config.parse` makes a `Config` from a file; the keys of the file and their meanings are in `config_schema`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from protocol.accounts import DEFAULT_ACCOUNT
from protocol.config_units import Address
from protocol.errors import ConfigError

Mode = Literal["event-sinks", "delivery-fabric"]
Ack = Literal["logged", "quorum", "geo"]
Reply = Literal["always", "header"]
Role = Literal["publisher", "subscriber", "replayer", "operator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    name: str
    revision: int
    mode: Mode
    routing: Literal["broadcast", "interest"]
    catch_all: bool
    buffer_bytes: int
    insecure: bool
    contracts: Literal["off", "warn", "enforce"]
    no_auth_user: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`max_subscriptions` 0 means no limit."""

    max_payload_bytes: int
    max_control_line_bytes: int
    max_connections: int
    max_subscriptions: int
    max_subscription_tokens: int
    max_pending_bytes: int
    write_deadline_ms: int
    ping_interval_ms: int
    ping_max: int
    auth_timeout_ms: int
    lame_duck_duration_ms: int
    lame_duck_grace_period_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Addresses are what others dial; `bind` gives where the node listens."""

    name: str
    zone: str
    client: Address
    mesh: Address | None
    monitor: Address | None
    listen: str | None
    workers: int
    spool: str

    def bind(self, address: Address) -> Address:
        """Where to listen so that `address`, one of this node's, can be dialled."""
        return Address(self.listen or address.host, address.port)

    def links_at(self, worker: int) -> Address:
        """What other gateways dial to reach that worker: `mesh` for the first, then the ports behind it.

        Only for a gateway that has `mesh`, as each does that is to be linked with others.
        """
        assert self.mesh is not None  # the configuration was checked
        return Address(self.mesh.host, self.mesh.port + worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """Addresses are what others dial; `bind` gives where the node listens. `data` is a folder."""

    name: str
    zone: str
    link: Address
    raft: Address | None
    monitor: Address | None
    kafka: Address | None
    listen: str | None
    data: str
    disk_reserve_bytes: int
    fsync: Literal["always", "interval"]
    scrub_rate_bytes_per_second: int

    def bind(self, address: Address) -> Address:
        """Where to listen so that `address`, one of this node's, can be dialled."""
        return Address(self.listen or address.host, address.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """`mode` is None where the mesh's holds; `kept_by` is the zone that keeps the events of one without sinks."""

    name: str
    groups: int
    gateways: dict[str, Gateway]
    sinks: dict[str, Sink]
    kept_by: str | None
    mode: Mode | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What passes between two zones; a rate of 0 means no limit."""

    zones: tuple[str, str]
    live: bool = True
    live_rate_bytes_per_second: int = 0
    copy_rate_bytes_per_second: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """`key` is `subject`, `token:N` or `header:NAME`; `replicate` is `("*",)` for every zone.

    One that is `covered` is accounted for (`protocol.coverage`): all are, or none.

    Retention of 0 is for ever, a deduplication window of 0 is none.
    """

    name: str
    account: str
    subjects: tuple[str, ...]
    partitions: int
    key: str
    ack: Ack
    reply: Reply
    replicate: tuple[str, ...]
    retention_age_ms: int
    retention_bytes: int
    hold_age_ms: int
    hold_bytes: int
    dedup_window_ms: int
    dedup_ids_max: int
    outbox_bytes: int
    outbox_overflow: Literal["gap", "block"]
    outbox_stall_ms: int
    geo_zones: int
    geo_timeout_ms: int
    geo_on_timeout: Literal["silent", "degrade"]
    covered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """`stream` is what nodes write of what they took in and hold (`protocol.coverage`), whether in use or not."""

    enabled: bool
    gap_grace_ms: int
    stream: Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """Leave to publish `max` answers on a request's reply subject within `expires_ms`."""

    max: int
    expires_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One of `password` (with `user`), `token` and `nkey` is set, or `user` alone. A rule that is None was not given.

    Entries of `subscribe_*` are a subject, or a subject and a queue group with a space between.
    """

    account: str
    user: str | None
    password: str | None = field(repr=False)
    token: str | None = field(repr=False)
    nkey: str | None
    role: Role | None
    publish_allow: tuple[str, ...] | None
    publish_deny: tuple[str, ...] | None
    subscribe_allow: tuple[str, ...] | None
    subscribe_deny: tuple[str, ...] | None
    allow_responses: Responses | None
    history: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsClients:
    """Files of the client port, PEM. `map`: a client is the user that its certificate names.

    `first_fallback_ms` 0: with `first` nobody is greeted before the handshake.
    """

    cert: str
    key: str
    ca: str | None
    verify: bool
    first: bool
    first_fallback_ms: int
    map: bool
    timeout_ms: int
    allow_non_tls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsNodes:
    """Files of the links between nodes, PEM; `{node}` stands for the node's name."""

    ca: str
    cert: str
    key: str

    def of(self, node: str) -> "TlsNodes":
        """The same for one node, its name in its place."""
        ca, cert, key = (path.replace("{node}", node) for path in (self.ca, self.cert, self.key))
        return TlsNodes(ca=ca, cert=cert, key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole mesh. `accounts` are those declared, the default one aside.

    `streams` are the named ones; `catch_all` is `events` as tuned, whether in use or not, `account_catch_alls` those of
    the accounts. `audit` is what nodes write of who did what (`protocol.audit`).
    """

    mesh: Mesh
    limits: Limits
    zones: dict[str, Zone]
    links: tuple[Link, ...]
    accounts: tuple[str, ...]
    streams: dict[str, Stream]
    catch_all: Stream
    account_catch_alls: tuple[Stream, ...]
    audit: Stream
    coverage: Coverage
    users: tuple[User, ...]
    tls_clients: TlsClients | None
    tls_nodes: TlsNodes | None

    def gateway(self, node: str) -> Gateway:
        """The gateway of that name; ConfigError names those that exist."""
        gateways = {name: gateway for zone in self.zones.values() for name, gateway in zone.gateways.items()}
        if node not in gateways:
            raise self._no_node("gateway", node, gateways)
        return gateways[node]

    def sink(self, node: str) -> Sink:
        """The sink of that name; ConfigError names those that exist."""
        sinks = {name: sink for zone in self.zones.values() for name, sink in zone.sinks.items()}
        if node not in sinks:
            raise self._no_node("sink", node, sinks)
        return sinks[node]

    def zone_of(self, node: str) -> Zone:
        """The zone of a gateway or sink; ConfigError names the nodes that exist."""
        for zone in self.zones.values():
            if node in zone.gateways or node in zone.sinks:
                return zone
        raise self._no_node("node", node, self._kinds())

    def mode_of(self, node: str) -> Mode:
        """The mode that a gateway or sink runs in."""
        return self.zone_of(node).mode or self.mesh.mode

    def link(self, one: str, other: str) -> Link:
        """What passes between two zones, whichever is named first; without an entry, everything."""
        found = (link for link in self.links if set(link.zones) == {one, other})
        return next(found, Link(zones=(one, other)))

    def live_zones(self, zone: str) -> tuple[str, ...]:
        """Those with which `zone` exchanges live events: they have gateways, and no link forbids it."""
        others = (other for name, other in self.zones.items() if name != zone and other.gateways)
        return tuple(other.name for other in others if self.link(zone, other.name).live)

    def effective_streams(self) -> tuple[Stream, ...]:
        """The named streams in the order of the file, then the catch-alls if they are in use."""
        catch_alls = (self.catch_all, *self.account_catch_alls) if self.mesh.catch_all else ()
        return (*self.streams.values(), *catch_alls)

    def kept_streams(self) -> tuple[Stream, ...]:
        """All that the sinks keep: the effective streams, and those that are in no file."""
        of_nodes = (self.audit, self.coverage.stream) if self.coverage.enabled else (self.audit,)
        return (*self.effective_streams(), *of_nodes)

    def all_accounts(self) -> tuple[str, ...]:
        """The default account, then those declared."""
        return (DEFAULT_ACCOUNT, *self.accounts)

    def _kinds(self) -> dict[str, str]:
        return dict(self._nodes())

    def _nodes(self) -> Iterator[tuple[str, str]]:
        for zone in self.zones.values():
            yield from ((name, "gateway") for name in zone.gateways)
            yield from ((name, "sink") for name in zone.sinks)

    def _no_node(
        self, kind: str, node: str, there: dict[str, Gateway] | dict[str, Sink] | dict[str, str]
    ) -> ConfigError:
        known = ", ".join(there) or "none"
        other = self._kinds().get(node)
        known_as = f"'{node}' is a {other}, not a {kind}" if other else f"there is no {kind} '{node}'"
        return ConfigError([f"{known_as}; {kind}s of mesh '{self.mesh.name}': {known}"])
