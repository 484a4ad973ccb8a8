"""Contracts in a running gateway: serves `$MESH.CONTRACT`, and acts on events that break theirs.

    REGISTER, REMOVE ─► checked here ─► link to group 0 ─► the machine ─► told to all gateways of the zone
    LIST ─► what this gateway knows
    an event that breaks its contract ─► counted, logged; with `enforce` nobody gets it, and its publisher is told

A violation is logged at most once in ten seconds for each contract, with how many there have been since.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from gateway.core.contracts import Contracts, Mode, Violation, compile_schema
from gateway.core.plane import Plane
from gateway.core.session import Session
from gateway.shell.link import SinkLink
from gateway.shell.links import SinkLinks
from protocol import contracts, history, publish
from protocol.contracts import Contract, ListRequest, RegisterRequest, RemoveRequest, read_request, whose
from protocol.errors import LogError
from protocol.limits import CONTRACT_LOG_INTERVAL_MS, CONTRACT_REQUESTS_MAX
from protocol.publish import Refusal

PREFIX = "$MESH.CONTRACT."
log = structlog.get_logger()


class ContractService:
    """One per gateway. `sinks` stays None where the zone keeps no log: then there are no contracts.

    `changed()` is called when other subjects are under contracts than before; `flush(session)` sends what is queued.
    """

    def __init__(
        self,
        plane: Plane,
        mode: Mode,
        zone: str,
        changed: Callable[[], None],
        flush: Callable[[Session], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._plane, self._zone, self._changed, self._flush, self._now_ms = plane, zone, changed, flush, now_ms
        self.contracts = Contracts(mode)
        self.sinks: SinkLinks | None = None
        self._known = asyncio.Event()
        self._tasks: dict[int, set[asyncio.Task[None]]] = {}  # of each session
        self._logged: dict[str, tuple[int, int]] = {}  # contract → when its next line is due, violations since the last
        self.violations: dict[tuple[str, str, str], int] = {}  # (account, contract, reason) → how many

    # -- events -------------------------------------------------------------------------------------------------------

    def told(self, known: Sequence[Contract]) -> None:
        """By a sink: these are the zone's."""
        if self.contracts.known == tuple(known):
            return
        self.contracts.told(known)
        present = {(contract.account, contract.name) for contract in known}
        self.violations = {key: count for key, count in self.violations.items() if key[:2] in present}
        self._logged = {}
        self._known.set()
        self._changed()

    async def wait(self, seconds: float) -> None:
        """Until the contracts are known, if they are to be enforced; no longer than this."""
        if self.contracts.are_missing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._known.wait()

    def refusal(self, session: Session, subject: str, header_block: bytes, payload: bytes) -> Refusal | None:
        """Why the event must not pass. One that breaks its contract is counted and logged in any case."""
        if self.contracts.are_missing:
            return publish.CONTRACTS_UNKNOWN
        violation = self.contracts.check(session.account.name, subject, header_block, payload)
        if violation is None:
            return None
        self._note(session, subject, violation)
        if self.contracts.mode == "warn":
            return None
        return publish.breaks_contract(violation.contract.name, violation.text)

    def _note(self, session: Session, subject: str, violation: Violation) -> None:
        contract, now_ms = violation.contract, self._now_ms()
        key = contract.account, contract.name, violation.reason
        self.violations[key] = self.violations.get(key, 0) + 1
        due_ms, count = self._logged.get(whose(contract), (now_ms, 0))
        if now_ms < due_ms:
            self._logged[whose(contract)] = due_ms, count + 1
            return
        self._logged[whose(contract)] = now_ms + CONTRACT_LOG_INTERVAL_MS, 0
        log.warning(
            "contract_broken",
            contract=whose(contract), subject=subject, user=session.user, connection=session.id,
            problem=violation.text, refused=self.contracts.mode == "enforce", since_the_last_line=count + 1,
        )  # fmt: skip

    # -- requests -----------------------------------------------------------------------------------------------------

    def request(self, session: Session, subject: str, reply: str, body: bytes) -> None:
        """Takes what a client has published on `$MESH.CONTRACT.>`. Without a reply subject nobody is answered."""
        tasks = self._tasks.setdefault(session.id, set())
        if len(tasks) >= CONTRACT_REQUESTS_MAX:
            what = f"{len(tasks)} requests of this connection are under way; wait for one of them"
            self._answer(session, reply, history.error_json(LogError("THROTTLING_QUOTA_EXCEEDED", what)))
            return
        task = asyncio.get_running_loop().create_task(self._guard(session, subject, reply, body))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def session_ended(self, session: Session) -> None:
        """What it asked for may be carried out; nobody hears of it."""
        for task in self._tasks.pop(session.id, ()):
            task.cancel()

    async def close(self) -> None:
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _guard(self, session: Session, subject: str, reply: str, body: bytes) -> None:
        try:
            answer = msgspec.json.encode(await self._serve(session, subject, body))
        except LogError as error:
            answer = history.error_json(error)
        except Exception:  # a bug of ours: the log has it, and the requester is not left waiting
            log.exception("contract_request_failed")
            what = "the gateway has failed at this request; its log says how"
            answer = history.error_json(LogError("UNKNOWN_SERVER_ERROR", what))
        self._answer(session, reply, answer)
        self._flush(session)

    def _answer(self, session: Session, reply: str, answer: bytes) -> None:
        if reply:
            self._plane.deliver(session, reply, reply, "", b"", answer)

    async def _serve(self, session: Session, subject: str, body: bytes) -> dict[str, Any]:
        verb = subject.removeprefix(PREFIX)
        if verb == "LIST":
            read_request(ListRequest, body)
            return self._list(session)
        if verb == "REGISTER":
            wanted = self._registration(session, read_request(RegisterRequest, body))
            return contracts.shown(await self._group_0().change_contract(wanted, removes=False))
        if verb == "REMOVE":
            request = read_request(RemoveRequest, body)
            gone = Contract(session.account.name, request.name, _owner(session, request.owner), ())
            return contracts.shown(await self._group_0().change_contract(gone, removes=True))
        raise LogError("UNKNOWN_REQUEST", f"{subject}: there are {PREFIX}REGISTER, {PREFIX}REMOVE, {PREFIX}LIST")

    def _list(self, session: Session) -> dict[str, Any]:
        """Those of the session's account."""
        known = self.contracts.known
        if known is None:
            why = self._group_0().problem or "the sinks have not told the contracts yet"
            raise LogError("LEADER_NOT_AVAILABLE", why)
        rows = [contracts.shown(one) for one in known if one.account == session.account.name]
        return {"zone": self._zone, "mode": self.contracts.mode, "contracts": rows}

    def _registration(self, session: Session, request: RegisterRequest) -> Contract:
        owner = _owner(session, request.owner)
        contract = contracts.contract_of(request, session.account.name, owner)
        for pattern in contract.subjects:
            if not session.permissions.may_publish_all(pattern):
                what = f"{owner!r} may not publish to all of {pattern!r}, and so not say what is published there"
                raise LogError("AUTHORIZATION_FAILED", what)
        if contract.schema:
            compile_schema(contract.schema)
        return contract

    def _group_0(self) -> SinkLink:
        if self.sinks is None:
            raise LogError("NO_LOG", f"zone {self._zone} runs as delivery-fabric: no sinks are there to keep contracts")
        return self.sinks[0]


def _owner(session: Session, given: str | None) -> str:
    """Whose contract it is. Where there are users, that of the one who asks, operators aside; else it is believed."""
    if session.entry is None:
        if not given:
            raise LogError("CONTRACT_INVALID", "owner: say whose the contract is; this mesh has no users to tell it by")
        return given
    own = session.user or "(token)"
    if session.entry.role == "operator":
        return given or own
    if given not in (None, own):
        raise LogError("CONTRACT_OWNER", f"owner: {given!r} is not the user who asks, which is {own!r}")
    return own
