"""Contracts: what the events on some subjects have to look like, as their publisher has promised it.

    $MESH.CONTRACT.REGISTER     {name, subjects, owner, content_type, max_bytes, schema}    → the contract in force
    $MESH.CONTRACT.REMOVE       {name, owner}                                               → the contract that was
    $MESH.CONTRACT.LIST         {}                                                          → {zone, mode, contracts}

Requests and answers are JSON; an error is `{"error": {code, name, message}}`, as of `$LOG`. A contract is known by its
name within its account, and only its owner changes or removes it. Those of one account never share a subject, so that
at most one speaks of an event. The zone's sinks keep them as replicated state; `change` is what that does, so it is
deterministic.

A subject pattern of a contract is as those of streams: literal tokens, `*`, and `>` at the end.
"""

import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from protocol import subjects
from protocol.accounts import DEFAULT_ACCOUNT
from protocol.errors import UNREADABLE, LogError
from protocol.limits import (
    CONFIG_PAYLOAD_BYTES_MAX,
    CONTRACT_BYTES_MAX,
    CONTRACT_SUBJECTS_MAX,
    CONTRACTS_BYTES_MAX,
    CONTRACTS_MAX,
    NAME_CHARACTERS_MAX,
)

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_MEDIA_TYPE = re.compile(r"[!#$&^_.+A-Za-z0-9-]+/[!#$&^_.+A-Za-z0-9-]+")


class Contract(msgspec.Struct, array_like=True, frozen=True):
    """One that is in force. `bytes_max` 0: any size, headers and payload together. `schema`: JSON text, b"" for none.

    `version` counts its registrations from 1; the last one was at `registered_ms`.
    """

    account: str
    name: str
    owner: str
    subjects: tuple[str, ...]
    content_type: str = ""
    bytes_max: int = 0
    schema: bytes = b""
    version: int = 0
    registered_ms: int = 0


class RegisterRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`owner` None: the user who asks."""

    name: str
    subjects: tuple[str, ...]
    owner: str | None = None
    content_type: str = ""
    max_bytes: int = 0
    schema: dict[str, Any] | bool | None = None


class RemoveRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    owner: str | None = None


class ListRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


Request = TypeVar("Request", RegisterRequest, RemoveRequest, ListRequest)


def read_request(kind: type[Request], body: bytes) -> Request:
    """The request in `body`, JSON. LogError CONTRACT_INVALID says what is wrong with it."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except UNREADABLE as error:
        known = ", ".join(kind.__struct_fields__) or "none"
        raise LogError("CONTRACT_INVALID", f"{error}; an object with fields among {known} is expected") from error


def contract_of(request: RegisterRequest, account: str, owner: str) -> Contract:
    """The contract that `request` asks for. LogError CONTRACT_INVALID names everything that is wrong with it.

    Whether its schema is one is for the validator to say.
    """
    problems = list(_problems(request, owner))
    schema = b"" if request.schema is None else msgspec.json.encode(request.schema)
    contract = Contract(
        account,
        request.name,
        owner,
        tuple(dict.fromkeys(request.subjects)),
        request.content_type.lower(),
        request.max_bytes,
        schema,
    )
    if not problems and _size(contract) > CONTRACT_BYTES_MAX:
        problems.append(f"it takes {_size(contract)} bytes; at most {CONTRACT_BYTES_MAX} are kept")
    if problems:
        raise LogError("CONTRACT_INVALID", "; ".join(problems))
    return contract


def _problems(request: RegisterRequest, owner: str) -> Iterable[str]:
    for what, name in (("name", request.name), ("owner", owner)):
        if not name or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
            yield f"{what} must be 1 to {NAME_CHARACTERS_MAX} printable characters, got {name[:40]!r}"
    if request.name and _NAME.fullmatch(request.name) is None:
        yield f"name {request.name[:40]!r}: letters, digits, _ and - are possible"
    if not 1 <= len(request.subjects) <= CONTRACT_SUBJECTS_MAX:
        yield f"subjects must be 1 to {CONTRACT_SUBJECTS_MAX} patterns, got {len(request.subjects)}"
    for pattern in request.subjects:
        if not subjects.is_valid_pattern(pattern):
            yield f"{pattern!r} is not a subject pattern, like orders.> or orders.*.paid"
        elif not subjects.is_captured(pattern):
            yield f"{pattern!r}: subjects that begin with _ or $ are no events, and under no contract"
    if request.content_type and _MEDIA_TYPE.fullmatch(request.content_type) is None:
        yield f"content_type {request.content_type[:40]!r} is no media type, like application/json"
    if request.schema is not None and request.content_type and not is_json(request.content_type):
        yield f"schema: it speaks of JSON, and content_type is {request.content_type!r}; write application/json or none"
    if not 0 <= request.max_bytes <= CONFIG_PAYLOAD_BYTES_MAX:
        yield f"max_bytes must be from 0 (any size) to {CONFIG_PAYLOAD_BYTES_MAX}, got {request.max_bytes}"


def is_json(content_type: str) -> bool:
    """Whether it is a media type (without parameters) of JSON texts."""
    return content_type.lower() in ("application/json", "text/json") or content_type.lower().endswith("+json")


def shown(contract: Contract) -> dict[str, Any]:
    """The contract as JSON has it in requests and answers."""
    schema = msgspec.json.decode(contract.schema) if contract.schema else None
    return {
        "name": contract.name,
        "owner": contract.owner,
        "subjects": contract.subjects,
        "content_type": contract.content_type,
        "max_bytes": contract.bytes_max,
        "schema": schema,
        "version": contract.version,
        "registered_ms": contract.registered_ms,
    }


# -- the contracts of a zone ------------------------------------------------------------------------------------------

Key = tuple[str, str]
"""(account, name)"""


def change(present: dict[Key, Contract], wanted: Contract, *, removes: bool, now_ms: int) -> Contract:
    """Puts `wanted` into `present`, or takes out the one of its name; the contract in force now, or that was.

    LogError CONTRACT_UNKNOWN, CONTRACT_OWNER, CONTRACT_OVERLAP, CONTRACT_QUOTA: nothing has changed.
    """
    key = wanted.account, wanted.name
    old = present.get(key)
    if old is None and removes:
        known = ", ".join(name for account, name in present if account == wanted.account) or "none"
        raise LogError("CONTRACT_UNKNOWN", f"there is no contract {wanted.name!r}; there are: {known}")
    if old is not None and old.owner != wanted.owner:
        what = f"contract {wanted.name!r} is {old.owner!r}'s: {wanted.owner!r} cannot change it"
        raise LogError("CONTRACT_OWNER", what)
    if old is not None and removes:
        return present.pop(key)
    if old is not None and old == msgspec.structs.replace(wanted, version=old.version, registered_ms=old.registered_ms):
        return old  # its publisher says so again, as it may at every start
    others = [contract for other, contract in present.items() if other != key]
    _check_overlap(others, wanted)
    _check_quota(others, wanted)
    version = 1 if old is None else old.version + 1
    present[key] = msgspec.structs.replace(wanted, version=version, registered_ms=now_ms)
    return present[key]


def _check_overlap(others: Iterable[Contract], wanted: Contract) -> None:
    for other in others:
        for theirs in other.subjects if other.account == wanted.account else ():
            for ours in wanted.subjects:
                if subjects.overlap(ours, theirs):
                    whom = f"contract {other.name!r}, which is {other.owner!r}'s"
                    raise LogError("CONTRACT_OVERLAP", f"{ours!r} shares subjects with {theirs!r} of {whom}")


def _check_quota(others: list[Contract], wanted: Contract) -> None:
    if len(others) >= CONTRACTS_MAX:
        raise LogError("CONTRACT_QUOTA", f"there are {len(others)} contracts; at most {CONTRACTS_MAX} are kept")
    size_bytes = sum(map(_size, others)) + _size(wanted)
    if size_bytes > CONTRACTS_BYTES_MAX:
        what = f"all contracts would take {size_bytes} bytes; at most {CONTRACTS_BYTES_MAX} are kept"
        raise LogError("CONTRACT_QUOTA", what)


def _size(contract: Contract) -> int:
    return len(msgspec.msgpack.encode(contract))


def whose(contract: Contract) -> str:
    """Its name, with its account where that is not the default one."""
    return contract.name if contract.account == DEFAULT_ACCOUNT else f"{contract.account}/{contract.name}"
