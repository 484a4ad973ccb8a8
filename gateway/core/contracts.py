"""Whether events keep the contracts of their subjects (`protocol.contracts`).

    route plan: is the subject under a contract? ─ no ─► nothing more is asked, as long as the plan holds
                          │ yes
                          ▼
    each event: size ─► Content-Type ─► JSON ─► schema ─► None, or the first Violation

An event without a `Content-Type` header is taken to be of the contract's type; one that names another breaks it. Where
that type is JSON, or a schema is given, the payload has to be a JSON text.

Schemas are compiled when their first event comes. They came from outside: nothing is fetched for a `$ref`, and patterns
are matched in linear time.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from protocol import subjects
from protocol.contracts import Contract, is_json
from protocol.errors import UNREADABLE, LogError
from protocol.limits import CONTRACT_PLANS_MAX, CONTRACT_REASON_CHARACTERS_MAX

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError

Mode = Literal["off", "warn", "enforce"]
Reason = Literal["size", "content_type", "not_json", "schema"]


class Violation(NamedTuple):
    """What is wrong with an event, for its publisher; `text` shows no value of the payload."""

    contract: Contract
    reason: Reason
    text: str


class Contracts:
    """Those of the zone, as this gateway knows them, and what it does about them: `mode`."""

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode
        self.known: tuple[Contract, ...] | None = None  # until the sinks have told them
        self._by_account: dict[str, list[Contract]] = {}
        self._plans: dict[tuple[str, str], Contract | None] = {}
        self._validators: dict[bytes, Callable[[Any], str]] = {}

    def told(self, contracts: Iterable[Contract]) -> None:
        """These are in force from now on, and no others."""
        self.known = tuple(contracts)
        self._plans.clear()
        self._by_account = {}
        for contract in self.known:
            self._by_account.setdefault(contract.account, []).append(contract)
        schemas = {contract.schema for contract in self.known}
        self._validators = {schema: one for schema, one in self._validators.items() if schema in schemas}

    @property
    def are_missing(self) -> bool:
        """They are to be enforced, and nobody has told them yet: nothing can be let through."""
        return self.mode == "enforce" and self.known is None

    def governs(self, account: str, subject: str) -> bool:
        """Whether events on `subject` have to be checked."""
        return self.mode != "off" and (self.are_missing or self.of(account, subject) is not None)

    def of(self, account: str, subject: str) -> Contract | None:
        """The contract of a subject."""
        key = account, subject
        try:
            return self._plans[key]
        except KeyError:
            candidates = self._by_account.get(account, ())
            found = next((one for one in candidates if any(subjects.matches(p, subject) for p in one.subjects)), None)
            if len(self._plans) >= CONTRACT_PLANS_MAX:
                self._plans.clear()
            self._plans[key] = found
            return found

    def check(self, account: str, subject: str, header_block: bytes, payload: bytes) -> Violation | None:
        """What is wrong with the event, if it is under a contract and breaks that."""
        contract = self.of(account, subject)
        if contract is None:
            return None
        size_bytes = len(header_block) + len(payload)
        if 0 < contract.bytes_max < size_bytes:
            return Violation(contract, "size", f"{size_bytes} bytes, at most {contract.bytes_max} are agreed")
        given = _content_type(header_block) if contract.content_type else ""
        if given and given != contract.content_type:
            text = f"Content-Type is {given[:80]!r}, {contract.content_type!r} is agreed"
            return Violation(contract, "content_type", text)
        if contract.schema or is_json(contract.content_type):
            return self._check_json(contract, payload)
        return None

    def _check_json(self, contract: Contract, payload: bytes) -> Violation | None:
        try:
            value = msgspec.json.decode(payload)
        except UNREADABLE as error:
            return Violation(contract, "not_json", f"not JSON: {error}")
        problem = self._validator(contract.schema)(value) if contract.schema else ""
        return Violation(contract, "schema", problem) if problem else None

    def _validator(self, schema: bytes) -> Callable[[Any], str]:
        validator = self._validators.get(schema)
        if validator is None:
            try:
                validator = compile_schema(schema)
            except LogError as error:  # it was one where it was registered, with another version of the validator
                problem = str(error)
                validator = lambda value: problem  # noqa: E731
            self._validators[schema] = validator
        return validator


def compile_schema(schema: bytes) -> Callable[[Any], str]:
    """What says what is wrong with a decoded JSON value, or "". LogError CONTRACT_INVALID: it is no schema."""
    from jsonschema_rs import RegexOptions, ValidationError, validator_for  # few gateways need it, and it is large

    decoded, linear = msgspec.json.decode(schema), RegexOptions()
    try:
        validator_for(decoded, offline=True, pattern_options=linear)
    except (ValidationError, ValueError) as error:
        what = _where(error) + error.message if isinstance(error, ValidationError) else str(error)
        raise LogError("CONTRACT_INVALID", f"schema: {what[:CONTRACT_REASON_CHARACTERS_MAX]}") from error
    compiled = validator_for(decoded, mask="the value", offline=True, pattern_options=linear)

    def problem(value: Any) -> str:
        try:
            if compiled.is_valid(value):
                return ""
            error = next(compiled.iter_errors(value))
        except ValueError as failure:  # it is nested too deeply for the validator
            return f"cannot be checked: {failure}"
        return (_where(error) + error.message)[:CONTRACT_REASON_CHARACTERS_MAX]

    return problem


def _where(error: "ValidationError") -> str:
    path = "".join(f"/{step}" for step in error.instance_path)
    return f"{path}: " if path else ""


def _content_type(block: bytes) -> str:
    """The media type that a header block names, in lower case and without parameters; "" if it names none."""
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon and name.lower() == b"content-type":
            return value.partition(b";")[0].strip().decode("utf-8", "replace").lower()
    return ""
