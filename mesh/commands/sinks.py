"""`mesh status` and `mesh sinks`: how the sinks of a zone are, and who of them are members of its group.

Both speak to the sinks themselves, on the `link` addresses of the configuration file, so that they work where no
gateway does. Changes are made by the leader: a sink that does not lead names the one that does. Where links between
nodes are protected, an operator works on the machine of a node, with that node's certificate.
"""

import asyncio
import itertools
import os
import ssl
import sys
from collections.abc import Iterable
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from gateway.shell.tls import explained
from mesh.commands.failure import Failure
from mesh.node_tls import Expected, expected_sinks, verify
from mesh.render import size
from protocol import config, link
from protocol.config_units import Address

_WIDTH_WITHOUT_TERMINAL = 1_000  # nothing is cut for a file or a pipe
_numbers = itertools.count(1)


async def ask(
    address: Address,
    hello: link.Hello,
    question: link.Status | link.ChangeMembers | link.Transfer,
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
                        raise Failure(frame.message.message)
                    if isinstance(frame.message, link.StatusIs | link.Done):
                        return frame
        finally:
            writer.close()
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
        self._hello = link.Hello(configuration.mesh.name, self.name, link.OPERATOR)
        self._timeout_s = timeout_s
        self._expected = expected_sinks(configuration, self.name)

    async def status(self) -> dict[str, dict[str, Any]]:
        """What each sink says of itself, or `{"error": why not}`."""
        answers = await asyncio.gather(*(self._status(sink) for sink in self.sinks.values()))
        return dict(zip(self.sinks, answers, strict=True))

    async def _status(self, sink: config.Sink) -> dict[str, Any]:
        try:
            frame = await self._ask(sink, link.Status(next(_numbers)))
        except (OSError, TimeoutError, Failure) as error:
            return {"node": sink.name, "error": _why(error)}
        answer: dict[str, Any] = msgspec.json.decode(frame.tail)
        return answer

    async def tell_leader(self, question: link.ChangeMembers | link.Transfer) -> None:
        """Failure: the leader refuses, or there is none."""
        status = await self.status()
        leaders = [name for name, one in status.items() if one.get("state") == "leader"]
        if not leaders:
            why = "; ".join(
                f"{name}: {one.get('error') or one['waits'] or one['state']}" for name, one in status.items()
            )
            raise Failure(f"no sink of zone {self.name} leads: {why}")
        try:
            await self._ask(self.sinks[leaders[0]], question)
        except (OSError, TimeoutError) as error:
            raise Failure(f"sink {leaders[0]}: {_why(error)}; `mesh status` shows what is so") from error

    async def _ask(self, sink: config.Sink, question: link.Status | link.ChangeMembers | link.Transfer) -> link.Frame:
        return await ask(sink.link, self._hello, question, self._timeout_s, self._expected.get(sink.name))


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return explained(error)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


async def status(zone: Zone, as_json: bool) -> None:
    """Prints it; Failure at the end if any sink is not well."""
    told = await zone.status()
    if as_json:
        click.echo(msgspec.json.encode({"zone": zone.name, "sinks": told}))
    else:
        console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
        for line in _headline(zone.name, told):
            console.print(line, highlight=False, markup=False)
        console.print(_members(told))
        console.print()
        console.print(_logs(told))
    unwell = [f"{name}: {problem}" for name, one in told.items() if (problem := _problem(one))]
    if unwell:
        raise Failure("\n".join(unwell))


def _problem(one: dict[str, Any]) -> str:
    for key in ("error", "waits", "last_error", "muted", "busy"):
        if one.get(key):
            return str(one[key])
    return "storage full" if one["storage_full"] else ""


def _headline(zone: str, told: dict[str, dict[str, Any]]) -> Iterable[str]:
    leader = next((one for one in told.values() if one.get("state") == "leader"), None)
    if leader is None:
        yield f"zone {zone}: no leader"
        return
    members = ", ".join(leader["members"])
    yield f"zone {zone}: sink {leader['node']} leads in term {leader['term']}; members {members}"
    for one in told.values():
        for problem in one.get("configuration_problems", ()):
            yield f"{one['node']}: {problem}"


def _members(told: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SINK", "STATE"):
        table.add_column(name, no_wrap=True)
    for name in ("TERM", "COMMITTED", "APPLIED", "LAG", "CHECKPOINT", "JOURNAL", "FREE"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("FSYNC", no_wrap=True)
    table.add_column("REMARKS", overflow="fold")
    leader = next((one for one in told.values() if one.get("state") == "leader"), None)
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


def _logs(told: dict[str, dict[str, Any]]) -> Table:
    """A row for each partition, a column for each sink's end."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("LOG", no_wrap=True)
    table.add_column("FROM", justify="right", no_wrap=True)
    up = {name: one for name, one in told.items() if "error" not in one}
    for name in up:
        table.add_column(f"END ON {name}", justify="right", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    logs = {name: {(log["stream"], log["partition"]): log for log in one["logs"]} for name, one in up.items()}
    for key in sorted({key for there in logs.values() for key in there}):
        rows = [there.get(key) for there in logs.values()]
        some = [row for row in rows if row is not None]
        ends = ["-" if row is None else str(row["end_offset"]) for row in rows]
        start = min(row["start_offset"] for row in some)
        largest = max(row["bytes"] for row in some)
        table.add_row(f"{key[0]}/{key[1]}", str(start), *ends, size(largest))
    return table


async def change(zone: Zone, add: str, remove: str) -> None:
    """Adds one sink, removes one, or first the one, then the other."""
    if add:
        await zone.tell_leader(link.ChangeMembers(next(_numbers), add, ""))
        click.echo(f"sink {add} is a member of zone {zone.name}")
    if remove:
        await _remove(zone, remove)
        click.echo(f"sink {remove} is no member of zone {zone.name} any more")


async def _remove(zone: Zone, remove: str) -> None:
    """A leader hands over before it goes, so the next one is asked again."""
    attempts = 10
    for attempt in range(attempts):
        try:
            await zone.tell_leader(link.ChangeMembers(next(_numbers), "", remove))
        except Failure as failure:
            if "hands over first" not in failure.message and "no sink of zone" not in failure.message:
                raise
            if attempt == attempts - 1:
                raise
            await asyncio.sleep(0.5)
        else:
            return


async def lead(zone: Zone, to: str) -> None:
    """Moves leadership and waits until it is there."""
    await zone.tell_leader(link.Transfer(next(_numbers), to))
    for _ in range(20):
        told = await zone.status()
        leaders = [name for name, one in told.items() if one.get("state") == "leader"]
        if to in leaders:
            click.echo(f"sink {to} leads zone {zone.name}")
            return
        await asyncio.sleep(0.1)
    raise Failure(f"sink {to} did not take over; {', '.join(leaders) or 'nobody'} leads")
