"""The configuration file as it is written: one pydantic model per table of the TOML file, key by key.

The models hold what can be said about one key alone: its form, its range, its default and its meaning (the
`description`s, from which docs/configuration.md is made). What concerns several keys is in `config_checks`; what the
programs read is `config_model`, with units in the names.

All models are frozen, strict (no text is taken for a number) and refuse unknown keys.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from protocol import limits
from protocol.accounts import DEFAULT_ACCOUNT, parse_account
from protocol.config_units import (
    Address,
    format_duration,
    format_size,
    parse_duration,
    parse_host,
    parse_name,
    parse_rate,
    parse_size,
    shown,
)
from protocol.nkeys import user_key
from protocol.subjects import is_captured, is_valid_pattern


@dataclass(frozen=True)
class Form:
    """How the reference describes the values of a key, and writes its default."""

    text: str
    write: Callable[[Any], str] = str


def _at_least_one(parse: Callable[[object], int], what: str) -> Callable[[object], int]:
    def parse_positive(value: object) -> int:
        number = parse(value)
        if number == 0:
            raise ValueError(f"must be {what}, got {shown(value)}")
        return number

    return parse_positive


def _max_payload(value: object) -> int:
    size_bytes = parse_size(value)
    if not 1 <= size_bytes <= limits.CONFIG_PAYLOAD_BYTES_MAX:
        most = format_size(limits.CONFIG_PAYLOAD_BYTES_MAX)
        raise ValueError(f"must be from 1 byte to {most}, got {shown(value)}")
    return size_bytes


def _lame_duck_duration(value: object) -> int:
    duration_ms = parse_duration(value)
    if duration_ms < limits.LAME_DUCK_DURATION_MS_MIN:
        least = format_duration(limits.LAME_DUCK_DURATION_MS_MIN)
        raise ValueError(f"must be at least {least}, got {shown(value)}")
    return duration_ms


def _gap_grace(value: object) -> int:
    duration_ms = parse_duration(value)
    if duration_ms < limits.COVERAGE_GAP_GRACE_MS_MIN:
        least = format_duration(limits.COVERAGE_GAP_GRACE_MS_MIN)
        raise ValueError(f"must be at least {least}, the time of two beacons, got {shown(value)}")
    return duration_ms


_QUOTED_SIZE = Form('size: `"64MiB"`, `"12MB"`, bytes', lambda size: f'"{format_size(size)}"')
_QUOTED_DURATION = Form('duration: `"500ms"`, `"2m"`, `"1h30m"`', lambda duration: f'"{format_duration(duration)}"')

Size = Annotated[int, PlainValidator(parse_size), _QUOTED_SIZE]
PositiveSize = Annotated[int, PlainValidator(_at_least_one(parse_size, "more than 0 bytes")), _QUOTED_SIZE]
PayloadSize = Annotated[int, PlainValidator(_max_payload), _QUOTED_SIZE]
Rate = Annotated[int, PlainValidator(parse_rate), Form('rate: `"12MB/s"`', lambda rate: f'"{format_size(rate)}"')]
Duration = Annotated[int, PlainValidator(parse_duration), _QUOTED_DURATION]
PositiveDuration = Annotated[int, PlainValidator(_at_least_one(parse_duration, "more than 0")), _QUOTED_DURATION]
LameDuckDuration = Annotated[int, PlainValidator(_lame_duck_duration), _QUOTED_DURATION]
GapGrace = Annotated[int, PlainValidator(_gap_grace), _QUOTED_DURATION]
Name = Annotated[str, PlainValidator(parse_name), Form("name: letters, digits, `_`, `-`")]
AccountName = Annotated[
    str, PlainValidator(parse_account), Form("name under `[accounts]`", lambda account: f'"{account}"')
]
Host = Annotated[str, PlainValidator(parse_host), Form('host: `"0.0.0.0"`')]
SocketAddress = Annotated[Address, PlainValidator(Address.parse), Form('address: `"host:port"`')]
Mode = Literal["event-sinks", "delivery-fabric"]
FilePath = Annotated[str, Field(min_length=1), Form('file: `"pki/ca.pem"`')]
Folder = Annotated[str, Field(min_length=1), Form('folder: `"/var/lib/sinkd"`')]


def _stream_subject(pattern: str) -> str:
    if not is_valid_pattern(pattern):
        raise ValueError(
            'must be a subject pattern such as "orders.>": tokens between dots, none empty, no white space, '
            f"`>` only at the end; got {shown(pattern)}"
        )
    if not is_captured(pattern):
        raise ValueError(f"subjects that begin with `_` or `$` are never kept in a stream, got {shown(pattern)}")
    return pattern


def _publish_pattern(pattern: str) -> str:
    if not is_valid_pattern(pattern):
        raise ValueError(f'must be a subject pattern such as "orders.>", got {shown(pattern)}')
    return pattern


def _subscribe_pattern(pattern: str) -> str:
    subject, _, queue = pattern.partition(" ")
    if not is_valid_pattern(subject) or (" " in pattern and not is_valid_pattern(queue)):
        raise ValueError(
            f'must be a subject pattern such as "orders.>", or one with a queue group: "orders.> workers"; '
            f"got {shown(pattern)}"
        )
    return pattern


_KEY: Final = re.compile(r"subject|token:[1-9][0-9]{0,3}|header:[!-9;-~]+")


def _partition_key(value: object) -> str:
    if isinstance(value, str) and _KEY.fullmatch(value):
        return value
    raise ValueError(
        f'must be "subject", "token:N" (N from 1, the N-th token of the subject) or "header:NAME", got {shown(value)}'
    )


def _user_nkey(value: object) -> str:
    if isinstance(value, str):
        try:
            user_key(value)
        except ValueError as error:
            reason = str(error)
        else:
            return value
    else:
        reason = "is no text"
    raise ValueError(
        'must be the public key of a user, "U" and 55 letters and digits, as `nk -gen user -pubout` makes it; '
        f"this one {reason}"
    )


def _all_or_list(value: object) -> object:
    """`"*"` as the list that holds it alone; anything but a list of texts is refused with both forms named."""
    if value == "*":
        return ("*",)
    if isinstance(value, list) and all(isinstance(zone, str) for zone in value):
        if "*" in value:
            raise ValueError('must be "*" (every zone) or a list of zones, not a list with "*" in it')
        return tuple(value)
    raise ValueError(f'must be "*" (every zone) or a list of zones such as ["us"], got {shown(value)}')


def _text_or_list(value: object) -> object:
    """NATS takes one text where a list is meant."""
    return [value] if isinstance(value, str) else value


def _rule_or_patterns(value: object) -> object:
    """NATS takes a subject, or a list of them, where `{ allow = [...] }` is meant."""
    return {"allow": value} if isinstance(value, str | list) else value


def _table_or_switch(value: object) -> object:
    """NATS takes `true` for a table of defaults and `false` for none."""
    if isinstance(value, bool):
        return {} if value else None
    return value


def _at_least_one_subject(value: object) -> object:
    if value == []:
        raise ValueError('must name at least one subject, such as ["orders.>"]')
    return value


_TEXTS = Form("text or list of texts")
_PATTERNS = Form("subject or list of subjects")

Text = Annotated[str, Field(min_length=1), Form("text")]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_text_or_list), Field(strict=False), _TEXTS]
PublishPatterns = Annotated[
    tuple[Annotated[str, AfterValidator(_publish_pattern)], ...],
    BeforeValidator(_text_or_list),
    Field(strict=False),
    _PATTERNS,
]
SubscribePatterns = Annotated[
    tuple[Annotated[str, AfterValidator(_subscribe_pattern)], ...],
    BeforeValidator(_text_or_list),
    Field(strict=False),
    _PATTERNS,
]
StreamSubjects = Annotated[
    tuple[Annotated[str, AfterValidator(_stream_subject)], ...],
    BeforeValidator(_at_least_one_subject),
    Field(strict=False),
    Form('list of subjects: `["orders.>"]`'),
]
PartitionKey = Annotated[
    str, PlainValidator(_partition_key), Form("`subject`, `token:N`, `header:NAME`", lambda key: f'"{key}"')
]
Nkey = Annotated[str, PlainValidator(_user_nkey), Form("public user key")]
Replicate = Annotated[
    tuple[str, ...], PlainValidator(_all_or_list), Form('`"*"` or list of zones', lambda zones: f'"{zones[0]}"')
]


class Table(BaseModel):
    """A table of the file. A validator takes long to build: there is one, of the whole `File`, and it is built late."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", defer_build=True)

    @classmethod
    def empty(cls) -> Self:
        """The table without any key, of which none is required; it takes no validator of its own."""
        return cls.model_construct()


class Mesh(Table):
    """The mesh as a whole."""

    name: Name = Field(
        default="",
        description="Name of the mesh; certificates and data folders carry it.",
        json_schema_extra={"default": "required"},
    )
    revision: int = Field(default=1, ge=1, description="Raise it with every change of the file.")
    mode: Mode = Field(
        default="event-sinks",
        description="`event-sinks` keeps every event in logs; `delivery-fabric` delivers only. A zone may override it.",
    )
    routing: Literal["broadcast", "interest"] = Field(
        default="interest", description="How gateways pass events to each other: to all, or where somebody subscribed."
    )
    catch_all: bool = Field(default=True, description="The stream `events` keeps what no other stream takes.")
    buffer: Size = Field(
        default=0,
        description="Delivery-fabric: memory for each gateway's latest events, read as `events@GATEWAY`; 0 = none.",
    )
    insecure: bool = Field(default=False, description="Allow links between nodes beyond loopback without TLS.")
    contracts: Literal["off", "warn", "enforce"] = Field(
        default="off", description="What happens to events that break their contract."
    )
    no_auth_user: Text | None = Field(
        default=None, description="Name (or nkey) among `[[users]]`: who presents no credentials is that user."
    )


class Limits(Table):
    """What one client may ask for; names and defaults are nats-server's."""

    max_payload: PayloadSize = Field(default=limits.MAX_PAYLOAD_BYTES, description="Largest event, headers included.")
    max_control_line: PositiveSize = Field(default=limits.MAX_CONTROL_LINE_BYTES, description="Longest protocol line.")
    max_connections: int = Field(default=limits.MAX_CONNECTIONS, ge=1, description="Clients at a time, of each worker.")
    max_subscriptions: int = Field(default=0, ge=0, description="Subscriptions of one connection; 0 = no limit.")
    max_subscription_tokens: int = Field(
        default=limits.SUBJECT_TOKENS_MAX,
        ge=1,
        le=limits.SUBJECT_TOKENS_MAX,
        description="Tokens of a subject that is subscribed to.",
    )
    max_pending: PositiveSize = Field(
        default=limits.MAX_PENDING_BYTES, description="Bytes that may wait for a slow client before it is cut."
    )
    write_deadline: PositiveDuration = Field(
        default=limits.WRITE_DEADLINE_MS, description="A client that takes nothing for so long is cut."
    )
    ping_interval: PositiveDuration = Field(
        default=limits.PING_INTERVAL_MS, description="Time between PINGs to a client."
    )
    ping_max: int = Field(
        default=limits.PINGS_OUTSTANDING_MAX, ge=1, description="PINGs without answer before it is cut."
    )
    auth_timeout: PositiveDuration = Field(
        default=limits.AUTH_TIMEOUT_MS, description="Time for CONNECT after the greeting."
    )
    lame_duck_duration: LameDuckDuration = Field(
        default=limits.LAME_DUCK_DURATION_MS,
        description="A gateway in lame duck mode parts with its clients over so long.",
    )
    lame_duck_grace_period: Duration = Field(
        default=limits.LAME_DUCK_GRACE_PERIOD_MS, description="... and waits so long before it begins to."
    )


class Gateway(Table):
    """A gateway: the node that clients connect to. Addresses are those that others dial."""

    client: SocketAddress = Field(description="NATS clients connect here.")
    mesh: SocketAddress | None = Field(
        default=None,
        description="Other gateways connect here, and to the ports behind it with several `workers`; required with two "
        "gateways or more.",
    )
    monitor: SocketAddress | None = Field(
        default=None, description="HTTP: `/healthz`, `/varz`, `/metrics`. Unset: none."
    )
    listen: Host | None = Field(
        default=None, description="Host that the sockets bind to, where it differs from the dialled one; ports stay."
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=limits.WORKERS_MAX,
        description="Processes on the client port; each has the `limits` and the outbox for itself.",
    )
    spool: str = Field(
        default="",
        description="A folder of this gateway alone: what its outbox holds outlives the process, `kill -9` too. "
        "Empty: memory only.",
    )


class Sink(Table):
    """A sink daemon: the node that keeps logs. Addresses are those that others dial."""

    link: SocketAddress = Field(description="Gateways connect here.")
    raft: SocketAddress | None = Field(
        default=None, description="Other sinks of the zone connect here; required with two sinks or more."
    )
    monitor: SocketAddress | None = Field(
        default=None, description="HTTP: `/healthz`, `/varz`, `/metrics`. Unset: none."
    )
    kafka: SocketAddress | None = Field(default=None, description="Kafka consumers connect here.")
    listen: Host | None = Field(
        default=None, description="Host that the sockets bind to, where it differs from the dialled one; ports stay."
    )
    data: Folder = Field(description="Folder of the logs; relative to the folder that the process was started in.")
    disk_reserve: Size = Field(
        default=limits.DISK_RESERVE_BYTES, description="Space that stays free: below it new events are refused."
    )
    fsync: Literal["always", "interval"] = Field(
        default="always",
        description="`always`: acknowledged means synced to disk; `interval`: faster, a power cut loses some.",
    )
    scrub_rate: Rate = Field(
        default=limits.SCRUB_RATE_BYTES,
        description="How fast old segments are read again, to find what the disk has spoilt; 0 = only by `mesh scrub`.",
    )


class Zone(Table):
    """A zone: nodes close to each other, with logs of their own."""

    groups: int = Field(
        default=1, ge=1, le=limits.GROUPS_MAX, description="Raft groups that share the partitions of new streams."
    )
    kept_by: str | None = Field(
        default=None, description="For a zone without sinks: the zone whose logs keep its events."
    )
    mode: Mode | None = Field(default=None, description="Overrides `mesh.mode` for this zone.")
    gateways: dict[str, Gateway] = Field(default={}, description="The gateways of the zone, by name.")
    sinks: dict[str, Sink] = Field(
        default={},
        description="The sinks of the zone, by name, 7 at most; 3 survive the loss of 1, 5 of 2.",
    )


class Link(Table):
    """What passes between a pair of zones."""

    live: bool = Field(default=True, description="Pass live events between the two zones.")
    live_rate: Rate = Field(default=0, description="Bound for live events, each way, compressed; 0 = none.")
    copy_rate: Rate = Field(default=0, description="Bound for the copying of logs; 0 = no limit.")


class Retention(Table):
    """How long a log is kept."""

    age: Duration = Field(default=0, description="Events older than this may go; 0 = for ever.")
    bytes: Size = Field(default=0, description="The oldest go when a partition is larger; 0 = no bound.")


class Hold(Table):
    """How long events outlive retention for a zone that lags."""

    age: Duration = Field(
        default=limits.HOLD_AGE_MS, description="Events that another zone still lacks stay for so long."
    )
    bytes: Size = Field(default=limits.HOLD_BYTES, description="... and up to this size of a partition.")


class Dedup(Table):
    """How publishers' message ids (`Nats-Msg-Id`) are remembered."""

    window: Duration = Field(
        default=limits.DEDUP_WINDOW_MS, description="An id is known for so long; 0 = no deduplication."
    )
    ids_max: int = Field(
        default=limits.DEDUP_IDS_MAX, ge=1, le=limits.DEDUP_IDS_CEILING, description="Ids remembered per partition."
    )


class Outbox(Table):
    """What waits in a gateway for the sinks."""

    bytes: PositiveSize = Field(
        default=limits.OUTBOX_BYTES_MAX, description="Memory for events on their way to the sinks."
    )
    overflow: Literal["gap", "block"] = Field(
        default="gap",
        description="When full: after `stall` leave a recorded gap, or make publishers wait without limit.",
    )
    stall: Duration = Field(
        default=limits.OUTBOX_STALL_MS, description="How long a publisher is made to wait before a gap."
    )


class Geo(Table):
    """Acknowledgement by other zones, for `ack = "geo"`."""

    zones: int = Field(default=1, ge=1, description="Other zones that must have the event on disk.")
    timeout: PositiveDuration = Field(
        default=limits.GEO_TIMEOUT_MS, description="How long they may take, from when the own zone has the event."
    )
    on_timeout: Literal["silent", "degrade"] = Field(
        default="silent", description='Then: no answer (the outcome is unknown), or one that says `"geo": false`.'
    )


class Stream(Table):
    """A stream: the subjects of one account that are kept together in one log per zone."""

    account: AccountName = Field(
        default=DEFAULT_ACCOUNT, description="Whose events it takes. Never changes while the stream lives."
    )
    subjects: StreamSubjects | None = Field(
        default=None,
        description="Patterns of the subjects it takes; no two streams of an account may share one.",
        json_schema_extra={"default": "required, except for `events`"},
    )
    partitions: int = Field(
        default=1, ge=1, le=limits.PARTITIONS_MAX, description="Never changes while the stream lives."
    )
    key: PartitionKey = Field(default="subject", description="What decides the partition. Never changes either.")
    ack: Literal["logged", "quorum", "geo"] = Field(
        default="quorum",
        description="What an acknowledgement promises: in the gateway's outbox; synced on a majority of the zone's "
        "sinks; also on disk in another zone.",
    )
    reply: Literal["always", "header"] | None = Field(
        default=None,
        description="Which publishes with a reply subject are answered: all, or those with a publish header.",
        json_schema_extra={"default": '`"always"`; `events`: `"header"`'},
    )
    replicate: Replicate = Field(default=("*",), description="Zones that get a copy of the log.")
    retention: Retention = Field(default_factory=Retention.empty)
    hold_for_zones: Hold = Field(default_factory=Hold.empty)
    dedup: Dedup = Field(default_factory=Dedup.empty)
    outbox: Outbox = Field(default_factory=Outbox.empty)
    geo: Geo = Field(default_factory=Geo.empty)


class AuditRetention(Table):
    """How long the audit stream is kept."""

    age: Duration = Field(default=limits.AUDIT_AGE_MS, description="Events older than this may go; 0 = for ever.")
    bytes: Size = Field(
        default=limits.AUDIT_BYTES, description="The oldest go when they take up more in a zone; 0 = no bound."
    )


class Audit(Table):
    """The stream `$AUDIT`, into which the nodes write who did what; see [security.md](security.md#audit)."""

    retention: AuditRetention = Field(default_factory=AuditRetention.empty)


class CoverageRetention(Table):
    """How long the stream `$COVERAGE` is kept."""

    age: Duration = Field(default=limits.COVERAGE_AGE_MS, description="Events older than this may go; 0 = for ever.")
    bytes: Size = Field(
        default=limits.COVERAGE_BYTES, description="The oldest go when they take up more in a zone; 0 = no bound."
    )


class Coverage(Table):
    """Accounts of what gateways took in and sinks hold, in the stream `$COVERAGE`; see [coverage.md](coverage.md)."""

    enabled: bool = Field(default=True, description="Keep accounts of all streams, and trees of their logs.")
    gap_grace: GapGrace = Field(
        default=limits.COVERAGE_GAP_GRACE_MS,
        description="What a gateway has named and the sinks lack for so long is reported, and asked for again.",
    )
    retention: CoverageRetention = Field(default_factory=CoverageRetention.empty)


class PublishRule(Table):
    """Subjects that may, and that may not, be published to."""

    allow: PublishPatterns | None = Field(default=None, description="Only these. Unset: all.")
    deny: PublishPatterns | None = Field(default=None, description="Not these, whatever `allow` says.")


class SubscribeRule(Table):
    """Subjects, alone or with a queue group (`"orders.> workers"`), that may, and that may not, be subscribed to."""

    allow: SubscribePatterns | None = Field(default=None, description="Only these. Unset: all.")
    deny: SubscribePatterns | None = Field(default=None, description="Not these, whatever `allow` says.")


class Responses(Table):
    """Leave to answer requests on their reply subject, whatever `publish` says."""

    max: int = Field(default=limits.RESPONSES_MAX, ge=1, description="Answers to one request.")
    expires: PositiveDuration = Field(default=limits.RESPONSES_EXPIRE_MS, description="How long the leave lasts.")


class Permissions(Table):
    """What a user may do. As in NATS, `publish = "a.>"` and `publish = ["a.>"]` mean `publish.allow = ["a.>"]`."""

    publish: Annotated[PublishRule | None, BeforeValidator(_rule_or_patterns)] = None
    subscribe: Annotated[SubscribeRule | None, BeforeValidator(_rule_or_patterns)] = None
    allow_responses: Annotated[Responses | None, BeforeValidator(_table_or_switch)] = Field(
        default=None, description="Leave to answer requests: `true`, or a table with `max` and `expires`."
    )
    history: Texts | None = Field(
        default=None,
        description="Streams whose history may be read; `*` = all; `$AUDIT` and `$COVERAGE` for operators "
        "alone. Unset: by role.",
    )


class User(Table):
    """A user: `user` with `password`, or `token`, or `nkey`. Without users everybody may do everything."""

    account: AccountName = Field(default=DEFAULT_ACCOUNT, description="Whose subjects the user publishes and hears.")
    user: Text | None = Field(
        default=None,
        description="Name, with `password`; alone, where certificates name users or `mesh.no_auth_user` does.",
    )
    password: Text | None = Field(default=None, description="In the clear, or its bcrypt hash (`$2b$...`).")
    token: Text | None = Field(default=None, description="In the clear, or its bcrypt hash.")
    nkey: Nkey | None = Field(default=None, description="Public key of a user who signs with the private one.")
    role: Literal["publisher", "subscriber", "replayer", "operator"] | None = Field(
        default=None,
        description="Ready-made permissions; what `permissions` gives takes their place. Unset: everything but "
        "`$AUDIT` and `$COVERAGE`. See [security.md](security.md#users-and-roles).",
    )
    permissions: Permissions = Field(default_factory=Permissions.empty)


class Account(Table):
    """An account: a space of subjects of its own, apart from all others; `"$G"` is always there. It has no keys yet."""


class TlsClients(Table):
    """TLS on the port of NATS clients."""

    cert: FilePath = Field(description="Certificate chain, PEM.")
    key: FilePath = Field(description="Its private key, PEM.")
    ca: FilePath | None = Field(default=None, description="Authorities that client certificates are checked against.")
    verify: bool = Field(default=False, description="Demand a certificate of every client; needs `ca`.")
    first: bool = Field(default=False, description="TLS before the greeting, not after it.")
    first_fallback: Duration = Field(
        default=0, description="With `first`: who has said nothing for so long is greeted all the same; 0 = nobody."
    )
    map: bool = Field(default=False, description="The certificate says which user a client is; needs `verify`.")
    timeout: PositiveDuration = Field(default=limits.TLS_TIMEOUT_MS, description="Time for the handshake.")
    allow_non_tls: bool = Field(default=False, description="Let clients without TLS in, too; not with `first` alone.")


class TlsNodes(Table):
    """Mutual TLS between the nodes of the mesh; `{node}` in a path stands for the node's name."""

    ca: FilePath = Field(description="The authority of the mesh, PEM.")
    cert: FilePath = Field(description="Certificate that names the node, PEM.")
    key: FilePath = Field(description="Its private key, PEM.")


class Tls(Table):
    """TLS towards clients and between nodes."""

    clients: TlsClients | None = None
    nodes: TlsNodes | None = None


class File(Table):
    """The whole file."""

    mesh: Mesh = Field(default_factory=Mesh.empty)
    limits: Limits = Field(default_factory=Limits.empty)
    zones: dict[str, Zone] = {}
    links: dict[str, dict[str, Link]] = {}
    accounts: dict[str, Account] = {}
    streams: dict[str, Stream] = {}
    audit: Audit = Field(default_factory=Audit.empty)
    coverage: Coverage = Field(default_factory=Coverage.empty)
    users: Annotated[tuple[User, ...], Field(strict=False)] = ()
    tls: Tls = Field(default_factory=Tls.empty)
