"""Makes docs/configuration.md from the schema: `python -m mesh.config_reference > docs/configuration.md`.

Keys, forms, defaults and meanings come from `protocol.config_schema`; the introduction and the example are here.
"""

import sys
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Final, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from protocol import config_schema as schema
from protocol import limits

SECTIONS: Final[tuple[tuple[str, type[schema.Table]], ...]] = (
    ("[mesh]", schema.Mesh),
    ("[limits]", schema.Limits),
    ("[zones.ZONE]", schema.Zone),
    ("[zones.ZONE.gateways.NODE]", schema.Gateway),
    ("[zones.ZONE.sinks.NODE]", schema.Sink),
    ("[links.ZONE.ZONE]", schema.Link),
    ("[accounts.ACCOUNT]", schema.Account),
    ("[streams.STREAM]", schema.Stream),
    ("[audit]", schema.Audit),
    ("[coverage]", schema.Coverage),
    ("[[users]]", schema.User),
    ("[tls.clients]", schema.TlsClients),
    ("[tls.nodes]", schema.TlsNodes),
)

INTRODUCTION: Final = f"""\
# Configuration

<!-- Made by `python -m mesh.config_reference > docs/configuration.md`; change `protocol/config_schema.py` instead. -->

One TOML file describes the whole mesh. Every process gets the same file and its own name:

    gateway --config mesh.toml --node eu-gw1
    sinkd --config mesh.toml --node eu-sink1

`mesh check mesh.toml` reads the file as they do. A file is checked whole before anything starts: every problem is
reported at once, with file, line and key, what is wrong and what would be right. Unknown keys are problems too.

- **Sizes** are texts with a unit or numbers of bytes: `"64MiB"` and `"10GiB"` are powers of 1024, `"12MB"` is
  12,000,000 bytes. **Rates** are sizes per second: `"12MB/s"`.
- **Durations** are texts with units: `"500ms"`, `"30s"`, `"2m"`, `"24h"`, `"7d"`, `"1h30m"`. Zero needs no unit.
- **Addresses** are what others dial, `"host:port"`, IPv6 in brackets: `"[2001:db8::1]:4222"`. Port 0 is any free port.
- **Names** of meshes, zones, nodes and streams consist of up to {limits.NAME_CHARACTERS_MAX} letters, digits, `_` and
  `-`. Zones and nodes share one space of names.
- **Paths** that are not absolute start at the folder that the process was started in.

Rules that concern several keys:

- Subjects of streams never overlap, and never begin with `_` or `$`. What no stream takes goes to the catch-all stream
  `events` (`mesh.catch_all`); `[streams.events]` tunes it and has no `subjects`.
- A zone without sinks needs `kept_by`, the name of a zone that has some, or `mode = "delivery-fabric"`.
- A zone has at most {limits.SINKS_MAX} sinks. With several, each needs `raft`, and gateways find the one that leads.
  Have an odd number, except while one is being replaced: of four no more may fail than of three.
- With `groups` above 1 the partitions of a zone are shared by so many Raft groups, in each of which every sink is a
  member: each has a leader of its own, so that several sinks work at a time, and a journal of its own (128 MiB of
  disk at least). More groups come with a higher `revision` and a restart of the sinks, and are for streams that are new
  then: a partition stays in its group. A new group begins when all sinks run it; until then its partitions wait. Fewer
  are refused while a partition is in one that would go.
- Gateways are linked with each other, in a zone and between zones: each needs `mesh`. With `workers` above 1 it is the
  address of the first worker, and the next ones listen on the ports behind it: a gateway with `mesh = "gw1:6222"` and
  `workers = 4` has 6222 to 6225. No other address of that host may be one of these, and firewalls have to let them
  through. All gateways of a zone must go by the same number of workers of each: a link to one that has another number
  is refused on both sides, so `workers` is changed by restarting the zone's gateways with the new file.
- Links between nodes that other machines can reach need `[tls.nodes]`, or `mesh.insecure = true`.
- Certificates of `[tls.nodes]` say who a node is by a URI among their alternative names:
  `mesh://MESH/ZONE/gateway/NODE` or `mesh://MESH/ZONE/sink/NODE`. Host names in them do not matter.
- `ack = "geo"` needs as many other zones with sinks among `replicate` as `geo.zones` says. In a zone for which there
  are fewer, publishers are refused; so are those who ask for it by the header `Mesh-Ack: geo`.
- A user has `user` and `password`, or `token`, or `nkey`. Names, tokens and nkeys belong to one user in the whole mesh,
  whatever the accounts. `user` stands alone where the client's certificate names it (`tls.clients.map`), or where it
  is `mesh.no_auth_user`.
- Users and streams of an account other than `"$G"` name one that is declared, such as `[accounts.ACME]`. Subjects of
  two accounts have nothing to do with each other, and streams of two accounts may have the same ones. Each account has
  its own catch-all, `events-ACME`; without a table of its own it is tuned by `[streams.events]`.
- A `role` gives ready-made permissions, and each of `publish`, `subscribe`, `allow_responses` and `history` that
  `permissions` has takes the place of the role's ([security.md](security.md#users-and-roles)). `$AUDIT` and
  `$COVERAGE` are read by operators alone: no other user's `history` names them.
- With `tls.clients.map` (nats-server's `verify_and_map`) a client is the user whose name is an e-mail address, a DNS
  name or a URI among the alternative names of its certificate, or its subject: `"CN=shop,OU=sales"`.
- `max_payload` is at most `max_pending` and the `outbox.bytes` of every stream; where events are kept, an event and its
  subject fit into one record batch of {limits.BATCH_BYTES_MAX // limits.MIB} MiB.

## Changing the file of a running node

SIGHUP has a gateway or a sink read its file again. Rates between zones are taken at once: `copy_rate` by sinks,
`live_rate` by gateways. The rest stays as it was, and the log names each part of the file that has changed, with what
it takes (`configuration_not_taken`): a restart or, for streams, a higher `mesh.revision`. A file that is wrong changes
nothing (`configuration_not_reloaded`).
"""

EXAMPLE: Final = """\
[mesh]
name = "acme"
revision = 3

[zones.eu.gateways.eu-gw1]
client = "eu-gw1:4222"
mesh = "eu-gw1:6222"
monitor = "eu-gw1:8222"
listen = "0.0.0.0"

[zones.eu.sinks.eu-sink1]
link = "eu-sink1:6333"
raft = "eu-sink1:6334"
monitor = "eu-sink1:8223"
data = "/var/lib/sinkd"
[zones.eu.sinks.eu-sink2]
link = "eu-sink2:6333"
raft = "eu-sink2:6334"
data = "/var/lib/sinkd"
[zones.eu.sinks.eu-sink3]
link = "eu-sink3:6333"
raft = "eu-sink3:6334"
data = "/var/lib/sinkd"

[zones.us.gateways.us-gw1]
client = "us-gw1:4222"
mesh = "us-gw1:6222"
[zones.us.sinks.us-sink1]
link = "us-sink1:6333"
data = "/var/lib/sinkd"

[zones.edge]                    # gateways only: the logs of zone eu keep its events
kept_by = "eu"
[zones.edge.gateways.edge-gw1]
client = "edge-gw1:4222"
mesh = "edge-gw1:6222"

[links.eu.us]
copy_rate = "12MB/s"

[accounts.ACME]

[streams.orders]
subjects = ["orders.>"]
partitions = 4
key = "token:2"
ack = "geo"
retention = { age = "365d" }

[streams.telemetry]
subjects = ["telemetry.>"]
reply = "header"
replicate = []
retention = { age = "7d", bytes = "100GiB" }

[[users]]
user = "shop"
password = "$2b$12$Kdc0Vx4WB4XwXV9Uu4nFMuX3rUR0LzU8iAtVcW4kd4lD5aCQFqn3a"
role = "publisher"              # publishes, and hears answers; here on some subjects alone
permissions = { publish = "orders.>" }

[[users]]
account = "ACME"
nkey = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"

[tls.clients]
cert = "pki/gateway.pem"
key = "pki/gateway.key"

[tls.nodes]
ca = "pki/ca.pem"
cert = "pki/{node}.pem"
key = "pki/{node}.key"
"""


def render() -> str:
    """The whole page, as Markdown."""
    parts = [INTRODUCTION, "## A complete example\n", f"```toml\n{EXAMPLE}```\n", "## Reference\n"]
    for title, table in SECTIONS:
        parts += [f"### `{title}`\n", f"{_cell(table.__doc__)}\n"]
        if table.model_fields:
            parts.append("\n".join(_table(table)) + "\n")
    return "\n".join(parts)


def _table(table: type[schema.Table]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, field in _keys(table):
        yield f"| `{key}` | {_cell(_form(field))} | {_cell(_default(field))} | {_cell(field.description)} |"


def _keys(table: type[schema.Table], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a table that has a meaning of its own, those of tables inside it with their dotted names."""
    for key, field in table.model_fields.items():
        kind = _without_none(field.annotation)
        if get_origin(kind) is dict:
            continue  # nodes have sections of their own
        if field.description:
            yield prefix + key, field
        if isinstance(kind, type) and issubclass(kind, schema.Table):
            yield from _keys(kind, f"{prefix}{key}.")


def _form(field: FieldInfo) -> str:
    if marks := list(_marks(field)):
        return marks[0].text
    kind = _without_none(field.annotation)
    if get_origin(kind) is Literal:
        return ", ".join(f'`"{choice}"`' for choice in get_args(kind))
    return {bool: "`true`, `false`", int: "whole number", str: "text"}.get(kind, "`true`, `false` or table")


def _default(field: FieldInfo) -> str:
    if isinstance(field.json_schema_extra, dict):
        return str(field.json_schema_extra["default"])
    if field.is_required():
        return "required"
    value: Any = field.default
    if value is None:
        return "unset"
    if marks := list(_marks(field)):
        return f"`{marks[0].write(value)}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{str(value).lower()}`"


def _marks(field: FieldInfo) -> Iterator[schema.Form]:
    """The form of a field: of its type, or of its type when it is not None."""
    yield from (mark for mark in field.metadata if isinstance(mark, schema.Form))
    for part in get_args(field.annotation):
        yield from (mark for mark in getattr(part, "__metadata__", ()) if isinstance(mark, schema.Form))


def _without_none(kind: Any) -> Any:
    if isinstance(kind, UnionType) or NoneType in get_args(kind):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    return getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind


def _cell(text: str | None) -> str:
    """Text on one line, as a table's cell wants it."""
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
