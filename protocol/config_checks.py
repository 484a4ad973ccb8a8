"""What several keys of a configuration must agree on.

`check` validates a whole file and finds every mistake at once, also when single keys are wrong: those are taken out and
noted as *broken*, and the rules here look at what remains. A rule that says 'there is no ...' keeps silent where the
missing thing may only be broken, so that one mistake is not reported twice.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from protocol import audit, coverage, limits
from protocol.accounts import DEFAULT_ACCOUNT
from protocol.config_lines import Path
from protocol.config_problems import Problem, did_you_mean, dotted, explain, listed
from protocol.config_schema import File, Gateway, Sink, Stream, Zone
from protocol.config_units import Address, format_duration, format_size, named, parse_name, shown
from protocol.subjects import is_captured, is_valid_pattern, overlap

CATCH_ALL: Final = "events"
"""The stream that keeps what no other stream takes."""


def catch_all_of(account: str) -> str:
    """The name of the stream that keeps what no other stream of `account` takes."""
    return CATCH_ALL if account == DEFAULT_ACCOUNT else f"{CATCH_ALL}-{account}"


RECORD_OVERHEAD_BYTES_MAX: Final = 1024
"""What a record batch adds to subject and payload of its one record, generously."""

_NODE_STREAMS: Final = (audit.STREAM, coverage.STREAM)
_PRUNE_ROUNDS_MAX: Final = 16  # each takes at least one table out, and tables are nested less deep than that


class View(NamedTuple):
    """The file without what was wrong in it, the paths at which something was left out, and the tables as read."""

    file: File
    broken: frozenset[Path]
    data: Mapping[str, Any]

    def is_whole(self, *path: str | int) -> bool:
        """Whether nothing at, above or below `path` was left out."""
        return not any(path[: len(other)] == other[: len(path)] for other in self.broken)

    def catch_alls(self) -> dict[str, str]:
        """The account of every catch-all, by the name of the stream."""
        accounts = (DEFAULT_ACCOUNT, *_tables(self.data, "accounts"))
        return {catch_all_of(account): account for account in accounts}

    def mode_of(self, zone: Zone) -> str:
        return zone.mode or self.file.mesh.mode

    def nodes(self) -> Iterator[tuple[Path, Gateway | Sink]]:
        """Every gateway and sink with its path."""
        for name, zone in self.file.zones.items():
            for node, gateway in zone.gateways.items():
                yield ("zones", name, "gateways", node), gateway
            for node, sink in zone.sinks.items():
                yield ("zones", name, "sinks", node), sink

    def zones_with_sinks(self) -> set[str]:
        return {name for name, zone in self.file.zones.items() if zone.sinks}

    def is_zone(self, name: str) -> bool:
        """Whether the file has that zone, or has it in a form too broken to tell more."""
        return name in self.file.zones or not self.is_whole("zones", name)

    def may_have_sinks(self, name: str) -> bool:
        return name in self.zones_with_sinks() or not self.is_whole("zones", name, "sinks")


def check(data: Mapping[str, Any]) -> tuple[File, list[Problem]]:
    """The file that `data` describes and all that is wrong with it; with problems, the file lacks the broken parts."""
    file, broken, problems = _validate(data)
    view = View(file, broken, data)
    for rule in RULES:
        problems.extend(rule(view))
    return file, problems


def _validate(data: Mapping[str, Any]) -> tuple[File, frozenset[Path], list[Problem]]:
    """Validate key by key; take out what is wrong until the rest is a file. Only the first round finds new mistakes."""
    problems: list[Problem] = []
    broken: set[Path] = set()
    remaining = dict(data)
    for _ in range(_PRUNE_ROUNDS_MAX):
        try:
            return File.model_validate(remaining), frozenset(broken), problems
        except ValidationError as error:
            problems = problems or explain(error)
            for details in error.errors(include_url=False, include_context=False):
                path = details["loc"][:-1] if details["type"] == "missing" else details["loc"]
                if not any(path[: len(other)] == other for other in broken):
                    remaining, removed = _without(remaining, path)
                    broken.add(removed)
    return File(), frozenset({()}), problems


def _without(data: dict[str, Any], path: Path) -> tuple[dict[str, Any], Path]:
    """A copy of `data` without the innermost key of a table on the way along `path`, and the path of that key.

    Entries of lists are never taken out, the whole list is: the paths of the entries behind would change.
    """
    steps: list[str | int] = []
    key_depth = 0
    value: Any = data
    for step in path:
        is_key = isinstance(value, dict) and step in value
        if not is_key and not (isinstance(value, list) and step in range(len(value))):
            break
        steps.append(step)
        value = value[step]
        key_depth = len(steps) if is_key else key_depth
    return _copy_without(data, steps[:key_depth]), tuple(steps[:key_depth])


def _copy_without(value: Any, steps: list[str | int]) -> Any:
    if not steps:
        return value
    changed = value.copy()
    if len(steps) == 1:
        del changed[steps[0]]
    else:
        changed[steps[0]] = _copy_without(value[steps[0]], steps[1:])
    return changed


# -- names ------------------------------------------------------------------------------------------------------------


def names_are_well_formed(view: View) -> Iterator[Problem]:
    if not view.file.mesh.name and view.is_whole("mesh", "name"):
        yield Problem(("mesh", "name"), 'is missing; for example name = "acme"')
    others: list[Path] = [(kind, name) for kind in ("accounts", "streams") for name in _tables(view.data, kind)]
    for path in [*_zones_as_written(view), *_nodes_as_written(view), *others]:
        try:
            parse_name(path[-1])
        except ValueError as error:
            yield Problem(path, str(error))


def zones_and_nodes_have_names_of_their_own(view: View) -> Iterator[Problem]:
    taken: dict[str | int, Path] = {path[-1]: path for path in _zones_as_written(view)}
    for path in _nodes_as_written(view):
        first = taken.setdefault(path[-1], path)
        if first != path:
            yield Problem(
                path, f"the name {named(path[-1])} is taken by {dotted(first)}; zones and nodes share one space"
            )


def _zones_as_written(view: View) -> list[Path]:
    """Names are checked in what was read, so that a node with a broken key keeps its name."""
    return [("zones", name) for name in _tables(view.data, "zones")]


def _nodes_as_written(view: View) -> list[Path]:
    return [
        ("zones", zone, kind, node)
        for zone, table in _tables(view.data, "zones").items()
        for kind in ("gateways", "sinks")
        for node in _tables(table, kind)
    ]


def _tables(data: object, key: str) -> Mapping[str, Any]:
    """The table at `key`, or an empty one where something else stands."""
    value = data.get(key) if isinstance(data, Mapping) else None
    return value if isinstance(value, Mapping) else {}


# -- zones and nodes --------------------------------------------------------------------------------------------------


def there_are_zones_with_nodes(view: View) -> Iterator[Problem]:
    if not view.file.zones and view.is_whole("zones"):
        yield Problem((), "there are no zones; a mesh needs at least one: [zones.NAME.gateways.NODE]")
    for name, zone in view.file.zones.items():
        if not zone.gateways and not zone.sinks and view.is_whole("zones", name):
            yield Problem(("zones", name), "has neither gateways nor sinks; add some or remove the zone")


def zones_without_sinks_are_kept_by_another(view: View) -> Iterator[Problem]:
    for name, zone in view.file.zones.items():
        path: Path = ("zones", name, "kept_by")
        if zone.kept_by is None:
            if view.mode_of(zone) == "event-sinks" and not view.may_have_sinks(name) and view.is_whole(*path):
                yield Problem(
                    ("zones", name),
                    'has no sinks to keep its events: add sinks, or kept_by = "ZONE", or mode = "delivery-fabric"',
                )
        elif zone.sinks:
            yield Problem(path, "the zone has sinks of its own; remove kept_by, or the sinks")
        elif zone.kept_by == name:
            yield Problem(path, "must name another zone, not the zone itself")
        elif not view.is_zone(zone.kept_by):
            yield Problem(path, f"there is no zone {named(zone.kept_by)}{did_you_mean(zone.kept_by, view.file.zones)}")
        elif not view.may_have_sinks(zone.kept_by):
            there = listed(sorted(view.zones_with_sinks())) or "none"
            yield Problem(path, f"the zone {named(zone.kept_by)} has no sinks either; zones with sinks: {there}")


def neighbours_can_reach_each_other(view: View) -> Iterator[Problem]:
    gateways = [(path, node) for path, node in view.nodes() if isinstance(node, Gateway)]
    for path, gateway in gateways:
        if len(gateways) > 1 and gateway.mesh is None and view.is_whole(*path, "mesh"):
            yield Problem(path, "mesh is missing: with two gateways or more, each needs an address for the others")
    for name, zone in view.file.zones.items():
        for node, sink in zone.sinks.items():
            path = ("zones", name, "sinks", node)
            if len(zone.sinks) > 1 and sink.raft is None and view.is_whole(*path, "raft"):
                yield Problem(path, "raft is missing: with two sinks or more, each needs an address for the others")


def spools_have_something_to_keep(view: View) -> Iterator[Problem]:
    for name, zone in view.file.zones.items():
        for node, gateway in zone.gateways.items():
            if gateway.spool and view.mode_of(zone) == "delivery-fabric":
                path = ("zones", name, "gateways", node, "spool")
                yield Problem(path, 'mode = "delivery-fabric" keeps no events; remove spool')


def groups_are_not_too_large(view: View) -> Iterator[Problem]:
    """Even numbers are unwise, but needed while a sink is replaced (`mesh.advice`)."""
    for name, table in _tables(view.data, "zones").items():
        if (count := len(_tables(table, "sinks"))) > limits.SINKS_MAX:
            yield Problem(
                ("zones", name, "sinks"),
                f"must be at most {limits.SINKS_MAX} sinks, got {count}: each of them writes every event",
            )


def workers_have_ports_of_their_own(view: View) -> Iterator[Problem]:
    for path, node in view.nodes():
        if not isinstance(node, Gateway) or node.mesh is None or node.workers == 1:
            continue
        if node.mesh.port == 0:
            ports = f"each of workers = {node.workers} has a port, from this one on"
            yield Problem((*path, "mesh"), f"must not be port 0: {ports}, and others have to know it")
        elif (last := node.mesh.port + node.workers - 1) > limits.PORT_MAX:
            ports = f"each worker has a port, from that of mesh ({node.mesh.port}) on"
            yield Problem((*path, "workers"), f"{ports}, and port {last} is above {limits.PORT_MAX}; lower one of them")


def no_address_is_given_twice(view: View) -> Iterator[Problem]:
    """A node cannot listen twice on one port; what other nodes dial leads to one node only."""
    same: dict[tuple[Path, Path], Address] = {}  # two ranges of ports have many in common: one is named
    dialled: dict[Address, Path] = {}
    of_clients: list[tuple[Path, Address]] = []
    for path, node in view.nodes():
        bound: dict[Address, Path] = {}
        for key, address in (*_addresses(node), *_of_workers(node)):
            here = (*path, key)
            other = bound.setdefault(Address(node.listen or address.host, address.port), here)
            if key not in ("mesh", "link", "raft"):
                of_clients.append((here, address))
            elif other == here:
                other = dialled.setdefault(address, here)
            same.setdefault((here, other), address)
    for here, address in of_clients:
        if (other := dialled.get(address, here))[:-1] != here[:-1]:
            same.setdefault((here, other), address)
    for (here, other), address in same.items():
        if other != here and address.port != 0:
            yield Problem(here, f"{address} is already the address of {dotted(other)}{_ports(view, here, other)}")


def _of_workers(node: Gateway | Sink) -> list[tuple[str, Address]]:
    """Where workers of a gateway listen for others, the first aside."""
    if not isinstance(node, Gateway) or node.mesh is None or not node.mesh.port:
        return []
    last = min(node.mesh.port + node.workers, limits.PORT_MAX + 1)
    return [("mesh", Address(node.mesh.host, port)) for port in range(node.mesh.port + 1, last)]


def _ports(view: View, *paths: Path) -> str:
    """The reason why an address is that of a gateway, where it stands nowhere in the file."""
    nodes = dict(view.nodes())
    several = [path for path in paths if path[-1] == "mesh" and _of_workers(nodes[path[:-1]])]
    return f": each worker of {several[0][-2]} has a port, from that of mesh on" if several else ""


def _addresses(node: Gateway | Sink) -> list[tuple[str, Address]]:
    keys = ("client", "mesh", "monitor") if isinstance(node, Gateway) else ("link", "raft", "monitor", "kafka")
    return [(key, getattr(node, key)) for key in keys if getattr(node, key) is not None]


def links_beyond_loopback_are_protected(view: View) -> Iterator[Problem]:
    if (
        view.file.mesh.insecure
        or view.file.tls.nodes
        or not (view.is_whole("tls", "nodes") and view.is_whole("mesh", "insecure"))
    ):
        return
    open_links = [
        ((*path, key), address)
        for path, node in view.nodes()
        for key, address in _addresses(node)
        if key in ("mesh", "link", "raft")
        and not (address.is_loopback and (node.listen is None or Address(node.listen, 0).is_loopback))
    ]
    if open_links:
        path, address = open_links[0]
        more = f" (and {len(open_links) - 1} more)" if len(open_links) > 1 else ""
        yield Problem(
            path,
            f"{address}{more} can be reached from other machines, but links between nodes are not protected: add "
            "[tls.nodes] with ca, cert and key, or allow it with insecure = true in [mesh]",
        )


def links_join_two_zones(view: View) -> Iterator[Problem]:
    seen: dict[frozenset[str], Path] = {}
    for one, others in view.file.links.items():
        if not view.is_zone(one):
            yield Problem(("links", one), f"there is no zone {named(one)}{did_you_mean(one, view.file.zones)}")
        for other in others:
            path: Path = ("links", one, other)
            if not view.is_zone(other):
                yield Problem(path, f"there is no zone {named(other)}{did_you_mean(other, view.file.zones)}")
            elif one == other:
                yield Problem(path, "a link joins two zones, not one with itself")
            elif seen.setdefault(frozenset({one, other}), path) != path:
                yield Problem(path, f"{dotted(seen[frozenset({one, other})])} is the same link; give it once")


# -- limits and streams -----------------------------------------------------------------------------------------------


def sizes_fit_into_each_other(view: View) -> Iterator[Problem]:
    payload_bytes = view.file.limits.max_payload
    path: Path = ("limits", "max_payload")
    if payload_bytes > view.file.limits.max_pending:
        pending = format_size(view.file.limits.max_pending)
        yield Problem(path, f"must not be above max_pending ({pending}), got {format_size(payload_bytes)}")
    keeps = any(view.mode_of(zone) == "event-sinks" for zone in view.file.zones.values())
    payload_bytes_max = limits.BATCH_BYTES_MAX - RECORD_OVERHEAD_BYTES_MAX - view.file.limits.max_control_line
    if keeps and payload_bytes > payload_bytes_max:
        yield Problem(
            path,
            f"must be at most {payload_bytes_max} bytes where events are kept (an event and its subject fit into one "
            f"record batch of {format_size(limits.BATCH_BYTES_MAX)}), got {format_size(payload_bytes)}",
        )
    for name, stream in view.file.streams.items():
        if stream.outbox.bytes < payload_bytes:
            yield Problem(
                ("streams", name, "outbox", "bytes"),
                f"must be at least limits.max_payload ({format_size(payload_bytes)}), or the largest event never "
                f"fits; got {format_size(stream.outbox.bytes)}",
            )


def there_are_not_too_many_streams(view: View) -> Iterator[Problem]:
    if (accounts := len(view.file.accounts)) > limits.ACCOUNTS_MAX:
        yield Problem(("accounts",), f"must be at most {limits.ACCOUNTS_MAX} accounts, got {accounts}")
    catch_alls = view.catch_alls().keys() if view.file.mesh.catch_all and accounts else set()
    if (streams := len(catch_alls | view.file.streams.keys())) > limits.STREAMS_MAX:
        counted = " (each account has a catch-all)" if accounts else ""
        yield Problem(("streams",), f"must be at most {limits.STREAMS_MAX} streams, got {streams}{counted}")
    if (patterns := len(_patterns(view))) > limits.STREAM_SUBJECTS_MAX:
        yield Problem(
            ("streams",), f"must be at most {limits.STREAM_SUBJECTS_MAX} subjects of all streams, got {patterns}"
        )


def catch_alls_are_only_tuned(view: View) -> Iterator[Problem]:
    for name, account in view.catch_alls().items():
        path: Path = ("streams", name)
        stream = view.file.streams.get(name)
        if stream is None:
            continue
        what = f"{named(name)} is the catch-all" + ("" if name == CATCH_ALL else f" of account {named(account)}")
        if not view.file.mesh.catch_all:
            yield Problem(path, f"{what}, which mesh.catch_all = false turns off; remove one of them")
        if stream.subjects is not None or not view.is_whole(*path, "subjects"):
            yield Problem(
                (*path, "subjects"),
                f"{what} and takes what no other stream takes; remove subjects, or choose another name",
            )
        if stream.reply == "always":
            yield Problem(
                (*path, "reply"),
                'must be "header": a catch-all that answers every publish would answer requests meant for services',
            )
        if "account" in stream.model_fields_set and stream.account != account:
            yield Problem((*path, "account"), f"{what}: remove account, or write {shown(account)}")


def named_streams_have_subjects(view: View) -> Iterator[Problem]:
    for name, stream in _named_streams(view):
        path: Path = ("streams", name, "subjects")
        if stream.subjects is None and view.is_whole(*path):
            yield Problem(("streams", name), 'subjects is missing; for example subjects = ["orders.>"]')
        for position, pattern in enumerate(stream.subjects or ()):
            if pattern == ">":
                yield Problem(
                    (*path, position),
                    f'">" belongs to the catch-all: set catch_all = true in [mesh], tune it in [streams.{CATCH_ALL}]',
                )


def streams_do_not_overlap(view: View) -> Iterator[Problem]:
    """One problem per pattern, naming the first that it meets."""
    patterns = _patterns(view)
    if len(patterns) > limits.STREAM_SUBJECTS_MAX:
        return  # reported already, and the pairs would be too many
    accounts = {name: table.get("account", DEFAULT_ACCOUNT) for name, table in _stream_tables(view)}
    for index, (name, path, pattern) in enumerate(patterns):
        for other, other_path, other_pattern in patterns[:index]:
            if name != other and accounts[name] == accounts[other] and overlap(pattern, other_pattern):
                yield Problem(
                    path,
                    f"{shown(pattern)} overlaps {shown(other_pattern)} of {dotted(other_path[:-1])}: an event would "
                    f"belong to two streams, {named(name)} and {named(other)}",
                )
                break


def _patterns(view: View) -> list[tuple[str, Path, str]]:
    """(stream, path, pattern) of every good pattern of a named stream, from what was read."""
    catch_alls = view.catch_alls()
    return [
        (name, ("streams", name, "subjects", position), pattern)
        for name, stream in _stream_tables(view)
        if name not in catch_alls and isinstance(stream.get("subjects"), list)
        for position, pattern in enumerate(stream["subjects"])
        if isinstance(pattern, str) and pattern != ">" and is_valid_pattern(pattern) and is_captured(pattern)
    ]


def _stream_tables(view: View) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, table in _tables(view.data, "streams").items():
        if isinstance(table, Mapping):
            yield name, table


def _named_streams(view: View) -> list[tuple[str, Stream]]:
    catch_alls = view.catch_alls()
    return [(name, stream) for name, stream in view.file.streams.items() if name not in catch_alls]


def copies_go_to_zones_with_sinks(view: View) -> Iterator[Problem]:
    for name, stream in view.file.streams.items():
        path: Path = ("streams", name, "replicate")
        for zone in stream.replicate:
            if zone == "*":
                continue
            if not view.is_zone(zone):
                yield Problem(path, f"there is no zone {named(zone)}{did_you_mean(zone, view.file.zones)}")
            elif not view.may_have_sinks(zone):
                there = listed(sorted(view.zones_with_sinks())) or "none"
                yield Problem(path, f"the zone {named(zone)} has no sinks to hold a copy; zones with sinks: {there}")


def geo_has_zones_to_ask(view: View) -> Iterator[Problem]:
    keepers = view.zones_with_sinks()
    for name, stream in view.file.streams.items():
        path: Path = ("streams", name, "ack")
        copies = keepers if stream.replicate == ("*",) else keepers & set(stream.replicate)
        if stream.ack != "geo" or not (view.is_whole("zones") and view.is_whole("streams", name, "replicate")):
            continue
        if not any(len(copies - {origin}) >= stream.geo.zones for origin in keepers):
            wanted = "another zone" if stream.geo.zones == 1 else f"{stream.geo.zones} other zones"
            yield Problem(
                path,
                f'"geo" needs {wanted} with sinks that replicate names; zones with sinks: '
                f'{listed(sorted(keepers)) or "none"}. Add zones, or use ack = "quorum"',
            )


# -- users and TLS ----------------------------------------------------------------------------------------------------


def accounts_are_declared(view: View) -> Iterator[Problem]:
    if () in view.broken or ("accounts",) in view.broken:
        return
    declared = {DEFAULT_ACCOUNT, *_tables(view.data, "accounts")}
    named_by: list[tuple[Path, str]] = [
        *((("users", index, "account"), user.account) for index, user in enumerate(view.file.users)),
        *((("streams", name, "account"), stream.account) for name, stream in view.file.streams.items()),
    ]
    for path, account in named_by:
        if account not in declared:
            yield Problem(
                path,
                f"there is no account {named(account)}: add [accounts.{account}]{did_you_mean(account, declared)}",
            )


def users_have_one_way_to_prove_themselves(view: View) -> Iterator[Problem]:
    for index, user in enumerate(view.file.users):
        ways = [key for key in ("password", "token", "nkey") if getattr(user, key) is not None]
        path: Path = ("users", index)
        if not all(view.is_whole(*path, key) for key in ("user", "password", "token", "nkey")):
            continue
        if not ways and user.user is not None:
            if not _may_lack_a_password(view, user.user):
                yield Problem(
                    path,
                    "password is missing; a user has none only where its certificate (map = true in [tls.clients]) or "
                    "no_auth_user in [mesh] names it",
                )
        elif len(ways) != 1:
            there = f"both {' and '.join(ways)}" if ways else "none of them"
            yield Problem(path, f"must have exactly one of password (with user), token and nkey; it has {there}")
        elif ways == ["password"] and user.user is None:
            yield Problem(path, "user is missing: a password belongs to a name")
        elif ways != ["password"] and user.user is not None:
            yield Problem((*path, "user"), f"goes with a password only; remove it, or the {ways[0]}")


def _may_lack_a_password(view: View, name: str) -> bool:
    clients = view.file.tls.clients
    return (clients is not None and clients.map) or name == view.file.mesh.no_auth_user or not view.is_whole("tls")


def no_two_users_are_the_same(view: View) -> Iterator[Problem]:
    """Whatever their accounts: it is the name that a client gives, not the account."""
    seen: dict[tuple[str, str], int] = {}
    for index, user in enumerate(view.file.users):
        for key in ("user", "token", "nkey"):
            value = getattr(user, key)
            if value is not None and seen.setdefault((key, value), index) != index:
                which = "a token" if key == "token" else shown(value)
                yield Problem(("users", index, key), f"{which} that users[{seen[key, value]}] has already")


def who_says_nothing_is_a_user(view: View) -> Iterator[Problem]:
    name = view.file.mesh.no_auth_user
    known = [user.user or user.nkey or "" for user in view.file.users if user.token is None]
    if name is not None and name not in known and view.is_whole("users"):
        yield Problem(
            ("mesh", "no_auth_user"), f"there is no user {named(name)} in [[users]]{did_you_mean(name, known)}"
        )


def history_names_streams(view: View) -> Iterator[Problem]:
    accounts = view.catch_alls() | {name: stream.account for name, stream in _named_streams(view)}
    streams = {*accounts, *_NODE_STREAMS}
    for index, user in enumerate(view.file.users):
        for position, log in enumerate(user.permissions.history or ()):
            path: Path = ("users", index, "permissions", "history", position)
            name, at, zone = log.partition("@")
            if name != "*" and name not in streams and view.is_whole("streams", name):
                yield Problem(path, f"there is no stream {named(name)}{did_you_mean(name, streams)}")
            elif at and not view.is_zone(zone):
                yield Problem(path, f"there is no zone {named(zone)}{did_you_mean(zone, view.file.zones)}")
            elif name in _NODE_STREAMS and user.role != "operator" and view.is_whole("users", index, "role"):
                yield Problem(path, f'{named(name)} is for operators alone: remove it, or write role = "operator"')
            elif accounts.get(name, user.account) != user.account:
                yield Problem(path, f"{named(name)} is of account {named(accounts[name])}, not of the user's")


def client_certificates_have_an_authority(view: View) -> Iterator[Problem]:
    clients, path = view.file.tls.clients, ("tls", "clients")
    if clients is None:
        return
    if clients.verify and clients.ca is None and view.is_whole(*path, "ca"):
        yield Problem((*path, "verify"), "needs ca: the authorities that client certificates come from")
    if clients.map and not clients.verify and view.is_whole(*path, "verify"):
        yield Problem((*path, "map"), "needs verify = true: a certificate that nobody has checked names nobody")
    if (
        clients.first
        and clients.allow_non_tls
        and not clients.first_fallback
        and view.is_whole(*path, "first_fallback")
    ):
        yield Problem(
            (*path, "allow_non_tls"),
            "cannot be with first = true: a client that waits for the greeting would never get it; remove one of them, "
            'or set first_fallback to a time such as "50ms"',
        )
    if clients.first_fallback and not clients.first and view.is_whole(*path, "first"):
        yield Problem((*path, "first_fallback"), "needs first = true: without it every client is greeted at once")


def lame_ducks_have_time(view: View) -> Iterator[Problem]:
    grace_ms, duration_ms = view.file.limits.lame_duck_grace_period, view.file.limits.lame_duck_duration
    if grace_ms >= duration_ms:
        yield Problem(
            ("limits", "lame_duck_grace_period"),
            f"must be below lame_duck_duration ({format_duration(duration_ms)}), got {format_duration(grace_ms)}",
        )


RULES: Final = (
    names_are_well_formed,
    zones_and_nodes_have_names_of_their_own,
    there_are_zones_with_nodes,
    zones_without_sinks_are_kept_by_another,
    neighbours_can_reach_each_other,
    groups_are_not_too_large,
    spools_have_something_to_keep,
    workers_have_ports_of_their_own,
    no_address_is_given_twice,
    links_beyond_loopback_are_protected,
    links_join_two_zones,
    sizes_fit_into_each_other,
    there_are_not_too_many_streams,
    catch_alls_are_only_tuned,
    named_streams_have_subjects,
    streams_do_not_overlap,
    copies_go_to_zones_with_sinks,
    geo_has_zones_to_ask,
    accounts_are_declared,
    users_have_one_way_to_prove_themselves,
    who_says_nothing_is_a_user,
    no_two_users_are_the_same,
    history_names_streams,
    client_certificates_have_an_authority,
    lame_ducks_have_time,
)
