"""What a gateway writes into the audit stream: who came, and what was refused.

    plane, history, links ─► AuditTrail ─► Summary (`protocol.audit`) ─► Outbox ─► `$AUDIT`, as any event
                                                                     └─► the log line, where no sink keeps it

Nothing here waits. What has no room in the stream's part of the outbox becomes a gap there, and is counted.
"""

from collections import Counter
from collections.abc import Callable

import structlog

from gateway.core.outbox import Outbox
from gateway.core.session import Closed, Session
from protocol import audit

log = structlog.get_logger()

_FAILURES = (Closed.AUTHENTICATION_FAILURE, Closed.AUTHENTICATION_TIMEOUT, Closed.TLS_HANDSHAKE)


class AuditTrail:
    """Of one gateway worker. `written` counts events by kind, `lost` those that became gaps."""

    def __init__(
        self,
        outbox: Outbox,
        zone: str,
        node: str,
        now_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        kept: Callable[[], None],
    ) -> None:
        """`kept` is called when the outbox has taken something; the two clocks as everywhere."""
        self._outbox, self._zone, self._node = outbox, zone, node
        self._now_ms, self._wall_ms, self._kept = now_ms, wall_ms, kept
        self.summary = audit.Summary()
        self.written: Counter[str] = Counter()
        self.lost = 0

    # -- clients ------------------------------------------------------------------------------------------------------

    def client_connected(self, session: Session) -> None:
        what = " ".join(part for part in (session.options.lang, session.options.version, session.name) if part)
        self._note(audit.CLIENT_CONNECTED, session, what=what)

    def client_closed(self, session: Session) -> None:
        """It says something if the client never came in."""
        if session.closing in _FAILURES:
            why = f"{session.closing}: {session.closing_detail}" if session.closing_detail else str(session.closing)
            self._note(
                audit.AUTHENTICATION_FAILED, session, claimed=session.options.user or session.options.nkey, why=why
            )

    def permission_refused(self, session: Session, what: str) -> None:
        self._note(audit.PERMISSION_REFUSED, session, what=what, why="permissions of the user")

    def history_refused(self, session: Session, stream: str) -> None:
        self._note(audit.HISTORY_REFUSED, session, what=f"read {stream}", why="permissions of the user")

    def _note(self, kind: str, session: Session, *, claimed: str = "", what: str = "", why: str = "") -> None:
        account = session.account.name if session.connected else ""
        self.note(kind, session.client_ip, user=claimed or session.user, account=account, what=what, why=why)

    # -- all ----------------------------------------------------------------------------------------------------------

    def note(self, kind: str, source: str, *, user: str = "", account: str = "", what: str = "", why: str = "") -> None:
        """Something has happened that came from the address `source`."""
        event = audit.Event(
            time=self._wall_ms(), zone=self._zone, node=self._node, kind=kind, source=source, account=account,
            user=audit.plain(user), what=audit.plain(what), why=audit.plain(why),
        )  # fmt: skip
        if (written := self.summary.note(event, self._now_ms())) is not None:
            self._write(written)

    def tick(self) -> None:
        """As often as minutes are to end in time."""
        for event in self.summary.due(self._now_ms()):
            self._write(event)

    def finish(self) -> None:
        """There is no other tick."""
        for event in self.summary.rest():
            self._write(event)

    def _write(self, event: audit.Event) -> None:
        self.written[event.kind] += 1
        stream = self._outbox.routes.by_name.get(audit.STREAM)
        if stream is None:
            fields = {"time_ms": event.time, "user": event.user, "account": event.account, "source": event.source}
            log.info("audit", kind=event.kind, what=event.what, why=event.why, times=event.times, **fields)
            return
        self.lost += not self._outbox.has_room(stream)
        self._outbox.publish(
            audit.ACCOUNT, event.subject, "", b"", event.encoded(), self._now_ms(), event.time, gives_up=True
        )
        self._kept()
