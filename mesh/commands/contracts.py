"""`mesh contracts`: which there are, whether something keeps one, and their registration.

A file holds one contract as JSON, as `$MESH.CONTRACT.REGISTER` takes it (docs/contracts.md).
"""

from pathlib import Path
from typing import Any

import click
import msgspec
from nats.errors import NoRespondersError, TimeoutError
from rich.table import Table

from gateway.core.contracts import Contracts, compile_schema
from mesh import terminal
from mesh.commands.failure import Failure
from mesh.connection import Connection, connect
from mesh.render import local_time
from mesh.settings import ClientSettings
from mesh.sizes import size
from protocol.accounts import DEFAULT_ACCOUNT
from protocol.contracts import Contract, RegisterRequest, contract_of, read_request
from protocol.errors import LogError


async def show(settings: ClientSettings, as_json: bool) -> None:
    """Prints those of the own account."""
    listed = await _ask(settings, "LIST", {})
    if as_json:
        click.echo(msgspec.json.encode(listed))
        return
    click.echo(f"zone {listed['zone']}: {_MODES[listed['mode']]}")
    if listed["contracts"]:
        console = terminal.console()
        console.print(_table(listed["contracts"]))


_MODES = {
    "off": "contracts are not checked (mesh.contracts = 'off')",
    "warn": "events that break a contract are counted and logged (mesh.contracts = 'warn')",
    "enforce": "events that break a contract are refused (mesh.contracts = 'enforce')",
}


def _table(contracts: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("CONTRACT", "OWNER"):
        table.add_column(name, no_wrap=True)
    table.add_column("SUBJECTS", overflow="fold")
    table.add_column("CONTENT TYPE", no_wrap=True)
    table.add_column("AT MOST", justify="right", no_wrap=True)
    table.add_column("SCHEMA", no_wrap=True)
    table.add_column("VERSION", justify="right", no_wrap=True)
    table.add_column("REGISTERED", no_wrap=True)
    for one in contracts:
        most = size(one["max_bytes"]) if one["max_bytes"] else "-"
        table.add_row(
            one["name"], one["owner"], ", ".join(one["subjects"]), one["content_type"] or "-", most,
            "no" if one["schema"] is None else "yes", str(one["version"]), local_time(one["registered_ms"]),
        )  # fmt: skip
    return table


async def register(settings: ClientSettings, file: str, owner: str | None, as_json: bool) -> None:
    """Puts the contract in `file` in force."""
    request = _read(file)
    if owner is not None:
        request = msgspec.structs.replace(request, owner=owner)
    fields = {name: value for name, value in msgspec.structs.asdict(request).items() if value is not None}
    answer = await _ask(settings, "REGISTER", fields)
    if as_json:
        click.echo(msgspec.json.encode(answer))
    else:
        click.echo(f"contract {answer['name']} of {answer['owner']} is in force, version {answer['version']}")


async def remove(settings: ClientSettings, name: str, owner: str | None, as_json: bool) -> None:
    answer = await _ask(settings, "REMOVE", {"name": name} | ({"owner": owner} if owner is not None else {}))
    if as_json:
        click.echo(msgspec.json.encode(answer))
    else:
        click.echo(f"contract {answer['name']} of {answer['owner']} is in force no longer")


async def check_file(file: str) -> None:
    """Says that the contract in `file` can be registered, as far as that can be known here; Failure if it cannot."""
    request = _read(file)
    try:
        contract = contract_of(request, DEFAULT_ACCOUNT, request.owner or "(who registers it)")
        if contract.schema:
            compile_schema(contract.schema)
    except LogError as error:
        raise Failure(f"{file}: {error}") from error
    click.echo(f"{file}: a contract for {', '.join(contract.subjects)}")


async def check_event(settings: ClientSettings, subject: str, headers: list[tuple[str, str]], payload: bytes) -> None:
    """Says whether the event keeps the contract of its subject; Failure if it does not. Nothing is published."""
    listed = await _ask(settings, "LIST", {})
    known = Contracts("enforce")
    known.told(_contract(one) for one in listed["contracts"])
    contract = known.of(DEFAULT_ACCOUNT, subject)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    block = f"NATS/1.0\r\n{lines}\r\n".encode() if headers else b""
    violation = known.check(DEFAULT_ACCOUNT, subject, block, payload)
    if violation is not None:
        raise Failure(f"breaks contract {violation.contract.name}: {violation.text}")
    if contract is None:
        click.echo(f"{subject} is under no contract")
    else:
        click.echo(f"keeps contract {contract.name} of {contract.owner}")


def _contract(row: dict[str, Any]) -> Contract:
    """As if the own account were the default one."""
    request = msgspec.convert({name: row[name] for name in RegisterRequest.__struct_fields__}, RegisterRequest)
    return contract_of(request, DEFAULT_ACCOUNT, row["owner"])


def _read(file: str) -> RegisterRequest:
    try:
        return read_request(RegisterRequest, Path(file).read_bytes())
    except LogError as error:
        raise Failure(f"{file}: {error}") from error


async def _ask(settings: ClientSettings, verb: str, fields: dict[str, Any]) -> Any:
    """The gateway's answer. Failure: it refuses, or does not know of contracts."""
    connection = await connect(settings)
    try:
        return await _answer(connection, f"$MESH.CONTRACT.{verb}", fields, settings.timeout_ms / 1000)
    finally:
        await connection.close()


async def _answer(connection: Connection, subject: str, fields: dict[str, Any], timeout_s: float) -> Any:
    try:
        message = await connection.request(subject, msgspec.json.encode(fields), timeout=timeout_s)
    except NoRespondersError as error:
        raise Failure("this server knows nothing of contracts") from error
    except TimeoutError as error:
        raise Failure(f"no answer within {timeout_s:g} s") from error
    answer = msgspec.json.decode(message.data)
    if "error" in answer:
        raise Failure(f"{answer['error']['name']}: {answer['error']['message']}")
    return answer
