"""Going by another configuration while clients are there: which of them may stay, and what each may do now.

A client whose entry is still there, word for word, notices nothing. Of the others

    its user is gone, or in another account   closed without a word, as by nats-server, so that it comes again
    its secret is another                     what it has presented is held against it; -ERR and closed if it misfits
    its permissions are others                they hold at once; subscriptions that they do not allow end, with -ERR

Above a smaller `max_connections` those that came last are closed (nats-server takes any). What has been read already is
by the rules before, what is read next by the new ones.

Source: nats-server `server/reload.go` (reloadAuthorization, maxConnOption), `server/client.go`
(processSubsOnConfigReload).
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway.core.identity import Directory, UserEntry, Verification
from gateway.core.plane_options import PlaneOptions
from gateway.core.session import NEVER_MS, Closed, Session
from protocol import nats, subjects

if TYPE_CHECKING:
    from gateway.core.plane import Plane

CHANGEABLE: Final = (
    *("users", "accounts", "no_auth_user", "maps_certificates", "auth_timeout_ms"),
    *("tls_required", "tls_verify", "tls_available"),
    *("max_connections", "max_payload_bytes", "max_control_line_bytes", "ping_interval_ms", "ping_max"),
)
"""The options of a plane that can be others while it runs."""


def changed(options: PlaneOptions, wanted: PlaneOptions) -> PlaneOptions:
    """`options`, with what may change from `wanted`."""
    return replace(options, **{name: getattr(wanted, name) for name in CHANGEABLE})


class Recheck:
    """Holds all sessions of `plane` against its new options and `directory`."""

    def __init__(self, plane: "Plane", directory: Directory) -> None:
        self._plane, self._directory = plane, directory

    def all(self) -> None:
        plane = self._plane
        for session in list(plane.sessions.values()):
            session.parser.max_payload_bytes = plane.options.max_payload_bytes
            session.parser.max_control_line_bytes = plane.options.max_control_line_bytes
            if not self._directory.is_required:  # nor need it begin with CONNECT
                session.parser.expect_connect, session.auth_due_ms = False, NEVER_MS
            if session.closing is None and not self._is_unchanged(session):
                self._look_at(session)
        there = [session for session in plane.sessions.values() if session.closing is None]
        for session in there[plane.options.max_connections :]:
            plane.refuse(session, nats.CONNECTIONS_EXCEEDED, Closed.CONNECTIONS_EXCEEDED)

    def _is_unchanged(self, session: Session) -> bool:
        """Whether it is who it was, or has yet to say who it is."""
        if session.entry is None:
            return not self._directory.is_required or session.parser.expect_connect
        return session.entry in self._directory

    def _look_at(self, session: Session) -> None:
        if session.entry is not None and not self._directory.has_name(session.user):
            self._plane.close(session, Closed.CLIENT)
            return
        if session.verifying is not None:  # whatever comes of that is held against the new users
            return
        found = self._directory.check(self._plane.credentials(session))
        if isinstance(found, Verification):
            found = _verified_before(session, found)
        if isinstance(found, Verification):
            self._plane.verify(session, replace(found, renews=True))
        else:
            self.decide(session, found)

    def decide(self, session: Session, entry: UserEntry | None) -> None:
        """It is `entry` now, or nobody."""
        plane = self._plane
        if entry is None:
            plane.refuse(session, nats.AUTHORIZATION_VIOLATION, Closed.AUTHENTICATION_FAILURE)
        elif entry.account != session.account.name:
            plane.close(session, Closed.CLIENT)
        else:
            plane.identify(session, entry)
            self._end_subscriptions(session)

    def _end_subscriptions(self, session: Session) -> None:
        for subscription in list(session.subscriptions.values()):
            pattern, queue = subscription.pattern, subscription.queue
            if not session.may_subscribe(pattern, queue):
                sid = nats.quoted(subjects.decode(subscription.sid))
                self._plane.end(subscription, f"{nats.subscription_violation(pattern, queue)} (sid {sid})")


def _verified_before(session: Session, asked: Verification) -> Verification | UserEntry:
    """The entry with the hash that has been found to fit already, if it is there."""
    known = session.entry
    same: Iterable[UserEntry] = (
        entry
        for hashed, entry in asked.candidates
        if known is not None and hashed in (known.password, known.token) and entry.user == known.user
    )
    return next(iter(same), asked)
