"""`mesh status` and `mesh sinks`: how the sinks of a zone are, and who of them are members of its Raft groups.

Both speak to the sinks themselves, on the `link` addresses of the configuration file, so that they work where no
gateway does; of the gateways of a zone that has several `mesh status` shows the links, which their monitors tell.
Changes are made by the leader of each group, one group after the other; what is so already is passed over, so that a
change which was interrupted can be asked for again. Where links between nodes are protected, an operator works on the
machine of a node, with that node's certificate.
"""

import asyncio
import contextlib
import itertools
import os
import ssl
from collections.abc import Iterable
from typing import Any

import click
import msgspec
from rich.table import Table

from gateway.shell.tls import explained
from mesh import terminal
from mesh.commands import links
from mesh.commands.failure import Failure, Refused
from mesh.node_tls import Expected, expected_sinks, verify
from mesh.sizes import size
from protocol import config, link
from protocol.config_units import Address

CLOSE_S_MAX = 1.0  # for a connection that has brought its answer
_ANSWERS = link.StatusIs | link.Done | link.Certified | link.Attested | link.Fetched | link.OffsetsAre
_numbers = itertools.count(1)
Told = dict[str, dict[str, Any]]  # by sink: what it says of itself in one group, or `{"error": why not}`


async def ask(
    address: Address,
    hello: link.Hello,
    question: link.Question | link.Fetch | link.Offsets,
    timeout_s: float,
    expected: Expected | None = None,
) -> link.Frame:
    """The answer of the sink at `address`; over TLS where it is `expected` to be some node.

    OSError, TimeoutError: it cannot be reached. Failure: it refuses.
    """
    async with asyncio.timeout(timeout_s):
        context = expected.context if expected is not None else None
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
        try:
            if expected is not None:
                verify(writer.get_extra_info("ssl_object"), expected.name)
            writer.write(link.pack(hello) + link.pack(question))
            frames = link.FrameReader()
            while data := await reader.read(65_536):
                for frame in frames.feed(data):
                    if isinstance(frame.message, link.Failed):
                        raise Refused(frame.message.name, frame.message.message)
                    if isinstance(frame.message, _ANSWERS):
                        return frame
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), CLOSE_S_MAX)
    raise ConnectionError("it closed the connection without an answer")


class Zone:
    """The sinks of one zone, by the configuration file."""

    def __init__(self, configuration: config.Config, zone: str | None, timeout_s: float) -> None:
        with_sinks = [name for name, one in configuration.zones.items() if one.sinks]
        if zone is not None and zone not in with_sinks:
            raise Failure(f"no zone {zone!r} with sinks; there are: {', '.join(with_sinks) or 'none'}")
        if zone is None and len(with_sinks) != 1:
            raise Failure(f"which zone? --zone one of {', '.join(with_sinks) or 'none: no zone has sinks'}")
        self.name = zone or with_sinks[0]
        self.sinks = configuration.zones[self.name].sinks
        self.gateways = configuration.zones[self.name].gateways
        self._has_links = len(self.gateways) > 1 or bool(configuration.live_zones(self.name))
        self._groups = configuration.zones[self.name].groups
        self.configuration, self._mesh = configuration, configuration.mesh.name
        self._timeout_s = timeout_s
        self._expected = expected_sinks(configuration, self.name)

    async def groups(self) -> list[Told]:
        """The status of each group, by its number: of those of the file, and of those that a sink runs all the same."""
        first = await self.status()
        count = max(self._groups, *(one.get("groups", 1) for one in first.values()))
        return [first, *await asyncio.gather(*(self.status(number) for number in range(1, count)))]

    async def links(self) -> links.Routes:
        """What gateways with a monitor say of their links; nothing where there is but one gateway."""
        return await links.ask(self.gateways.values(), self._timeout_s) if self._has_links else {}

    async def status(self, group: int = 0) -> Told:
        """What each sink says of itself in one group."""
        answers = await asyncio.gather(*(self._status(sink, group) for sink in self.sinks.values()))
        return dict(zip(self.sinks, answers, strict=True))

    async def _status(self, sink: config.Sink, group: int) -> dict[str, Any]:
        try:
            frame = await self._ask(sink, link.Status(next(_numbers)), group)
        except (OSError, TimeoutError, Failure) as error:
            return {"node": sink.name, "error": why(error)}
        answer: dict[str, Any] = msgspec.json.decode(frame.tail)
        return answer

    async def tell_leader(self, question: link.ChangeMembers | link.Transfer | link.Rebuild, group: int = 0) -> None:
        """Failure: the leader refuses, or there is none."""
        status = await self.status(group)
        leader = leader_of(status)
        if leader is None:
            states = "; ".join(
                f"{name}: {one.get('error') or one['waits'] or one['state']}" for name, one in status.items()
            )
            raise Failure(f"no sink of zone {self.name} leads{f' group {group}' if group else ''}: {states}")
        try:
            await self._ask(self.sinks[leader["node"]], question, group)
        except (OSError, TimeoutError) as error:
            raise Failure(f"sink {leader['node']}: {why(error)}; `mesh status` shows what is so") from error

    async def scrub(self, name: str, group: int) -> None:
        """Has sink `name` begin a round. OSError, TimeoutError, Failure: it does not."""
        await self._ask(self.sinks[name], link.Scrub(next(_numbers)), group)

    async def accept_loss(self, name: str, question: link.AcceptLoss, group: int, timeout_s: float) -> None:
        """Failure: sink `name` refuses, or cannot be asked."""
        try:
            await self._ask(self.sinks[name], question, group, timeout_s)
        except (OSError, TimeoutError) as error:
            raise Failure(f"sink {name}: {why(error)}; `mesh status` shows what is so") from error

    async def give_up(self, name: str, question: link.GiveUp, group: int, timeout_s: float) -> list[dict[str, Any]]:
        """What sink `name`, which leads, finds of which no sink has it. Failure: it refuses, or cannot be asked."""
        try:
            frame = await self._ask(self.sinks[name], question, group, timeout_s)
        except (OSError, TimeoutError) as error:
            raise Failure(f"sink {name}: {why(error)}; `mesh status` shows what is so") from error
        rows: list[dict[str, Any]] = msgspec.json.decode(frame.tail)
        return rows

    async def ask(
        self, name: str, question: link.Question | link.Fetch | link.Offsets, group: int, timeout_s: float = 0
    ) -> link.Frame:
        """What sink `name` answers, in the usual time unless another is given. Failure: that it does not, and why."""
        try:
            return await self._ask(self.sinks[name], question, group, timeout_s)
        except (OSError, TimeoutError, Failure) as error:
            what = "\n".join(f"sink {name}: {line}" for line in why(error).splitlines())
            raise (Refused(error.name, what) if isinstance(error, Refused) else Failure(what)) from error

    async def _ask(
        self, sink: config.Sink, question: link.Question | link.Fetch | link.Offsets, group: int, timeout_s: float = 0
    ) -> link.Frame:
        hello = link.Hello(self._mesh, self.name, link.OPERATOR, group)
        return await ask(sink.link, hello, question, timeout_s or self._timeout_s, self._expected.get(sink.name))


def leader_of(told: Told) -> dict[str, Any] | None:
    return next((one for one in told.values() if one.get("state") == "leader"), None)


def why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return explained(error)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


async def status(zone: Zone, as_json: bool) -> None:
    """Prints it; Failure at the end if any sink is not well."""
    groups, routes = await asyncio.gather(zone.groups(), zone.links())
    if as_json:
        others = {"groups": groups} if len(groups) > 1 else {}
        gateways = {"gateways": routes} if routes else {}
        click.echo(msgspec.json.encode({"zone": zone.name, "sinks": groups[0], **others, **gateways}))
    else:
        _print(zone, groups, routes)
    unwell = _unwell(groups)
    if unwell:
        raise Failure("\n".join(unwell))


def _print(zone: Zone, groups: list[Told], routes: links.Routes) -> None:
    console = terminal.console()
    for number, told in enumerate(groups):
        console.print(_headline(f"zone {zone.name}" + _of(number, groups), told), highlight=False, markup=False)
        console.print(_members(told))
        console.print()
    for line in _differing(groups[0]):
        console.print(line, highlight=False, markup=False)
    console.print(_logs(groups))
    if routes:
        console.print()
        console.print(links.table(routes))


def _of(number: int, groups: list[Told]) -> str:
    return f", group {number}" if len(groups) > 1 else ""


def _unwell(groups: list[Told]) -> list[str]:
    """What is wrong with a sink is said once, with the first group that has it."""
    lines: dict[tuple[str, str], str] = {}
    for number, told in enumerate(groups):
        for name, one in told.items():
            if problem := _problem(one):
                lines.setdefault((name, problem), f"{name}{_of(number, groups) if number else ''}: {problem}")
    return list(lines.values())


def _problem(one: dict[str, Any]) -> str:
    for key in ("error", "waits", "last_error", "muted", "busy"):
        if one.get(key):
            return str(one[key])
    return "storage full" if one["storage_full"] else "; ".join([*one["damaged"], *one.get("suspected", ())])


def _headline(group: str, told: Told) -> str:
    leader = leader_of(told)
    if leader is None:
        return f"{group}: no leader"
    members = ", ".join(leader["members"])
    return f"{group}: sink {leader['node']} leads in term {leader['term']}; members {members}"


def _differing(told: Told) -> Iterable[str]:
    """What of the sinks' files is not in force."""
    for one in told.values():
        for problem in one.get("configuration_problems", ()):
            yield f"{one['node']}: {problem}"


def _members(told: Told) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SINK", "STATE"):
        table.add_column(name, no_wrap=True)
    for name in ("TERM", "COMMITTED", "APPLIED", "LAG", "CHECKPOINT", "JOURNAL", "FREE"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("FSYNC", no_wrap=True)
    table.add_column("REMARKS", overflow="fold")
    leader = leader_of(told)
    lags = {peer["node"]: peer.get("lag_entries") for peer in leader["peers"]} if leader is not None else {}
    for name, one in told.items():
        if "error" in one:
            table.add_row(name, "down", *[""] * 8, one["error"])
            continue
        state = one["state"] if one["member"] else "joining"
        numbers = (one["term"], one["commit_index"], one["applied_index"], _lag(one, lags.get(name)))
        sizes = size(one["journal_bytes"]), size(one["free_bytes"])
        remarks = [
            one["waits"],
            one["muted"] and f"muted: {one['muted']}",
            one["busy"],
            one["filling"],
            one["last_error"],
            *one["damaged"],
            *one.get("suspected", ()),
        ]
        table.add_row(
            name, state, *map(str, numbers), str(one["checkpoint_index"]), *sizes, one["fsync"],
            "; ".join(filter(None, remarks)),
        )  # fmt: skip
    return table


def _lag(one: dict[str, Any], lag: int | None) -> str:
    if one["state"] == "leader":
        return "0"
    return "?" if lag is None else str(lag)


def _logs(groups: list[Told]) -> Table:
    """A row for each partition, a column for each sink's end."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("LOG", no_wrap=True)
    if len(groups) > 1:
        table.add_column("GROUP", justify="right", no_wrap=True)
    table.add_column("FROM", justify="right", no_wrap=True)
    up = [name for name, one in groups[0].items() if "error" not in one]
    for name in up:
        table.add_column(f"END ON {name}", justify="right", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    ends_on: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    group_of: dict[tuple[str, int], list[str]] = {}
    for number, told in enumerate(groups):
        for name, one in told.items():
            for log in one.get("logs", ()):
                ends_on.setdefault((log["stream"], log["partition"]), {})[name] = log
                group_of[log["stream"], log["partition"]] = [str(number)] if len(groups) > 1 else []
    for key in sorted(ends_on):
        rows = [ends_on[key].get(name) for name in up]
        some = [row for row in rows if row is not None]
        ends = ["-" if row is None else str(row["end_offset"]) for row in rows]
        start = min(row["start_offset"] for row in some)
        largest = max(row["bytes"] for row in some)
        table.add_row(f"{key[0]}/{key[1]}", *group_of[key], str(start), *ends, size(largest))
    return table


async def change(zone: Zone, add: str, remove: str) -> None:
    """Adds one sink, removes one, or first the one, then the other: in each group, where it is not so already."""
    groups = await zone.groups()
    due = {number: wanted for number, told in enumerate(groups) if any(wanted := _due(told, add, remove))}
    for number, (adds, removes) in (due or {0: (add, remove)}).items():  # a sink says best why it cannot be done
        if adds:
            await zone.tell_leader(link.ChangeMembers(next(_numbers), adds, ""), number)
            click.echo(f"sink {adds} is a member of {where(zone, number, groups)}")
        if removes:
            await _remove(zone, removes, number)
            click.echo(f"sink {removes} is no member of {where(zone, number, groups)} any more")


def _due(told: Told, add: str, remove: str) -> tuple[str, str]:
    """What of it is not so yet in one group, as far as its leader says."""
    leader = leader_of(told)
    if leader is None:
        return add, remove
    return add if add not in leader["members"] else "", remove if remove in leader["members"] else ""


def where(zone: Zone, number: int, groups: list[Told]) -> str:
    return f"zone {zone.name}" if len(groups) == 1 else f"group {number} of zone {zone.name}"


async def _remove(zone: Zone, remove: str, group: int) -> None:
    """A leader hands over before it goes, so the next one is asked again."""
    attempts = 10
    for attempt in range(attempts):
        try:
            await zone.tell_leader(link.ChangeMembers(next(_numbers), "", remove), group)
        except Failure as failure:
            if "hands over first" not in failure.message and "no sink of zone" not in failure.message:
                raise
            if attempt == attempts - 1:
                raise
            await asyncio.sleep(0.5)
        else:
            return


async def lead(zone: Zone, to: str, group: int | None) -> None:
    """Moves leadership of one group, or of all, and waits until it is there."""
    groups = await zone.groups()
    if group is not None and group >= len(groups):
        raise Failure(f"zone {zone.name} has no group {group}: it has {len(groups)}, from 0 on")
    for number in range(len(groups)) if group is None else [group]:
        leader = leader_of(groups[number])
        if len(groups) == 1 or leader is None or leader["node"] != to:
            await zone.tell_leader(link.Transfer(next(_numbers), to), number)
            await _until_leading(zone, to, number)
        click.echo(f"sink {to} leads {where(zone, number, groups)}")


async def _until_leading(zone: Zone, to: str, group: int) -> None:
    leader = None
    for _ in range(20):
        leader = leader_of(await zone.status(group))
        if leader is not None and leader["node"] == to:
            return
        await asyncio.sleep(0.1)
    raise Failure(f"sink {to} did not take over; {leader['node'] if leader is not None else 'nobody'} leads")
