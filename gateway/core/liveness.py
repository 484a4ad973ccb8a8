"""Which connections are due for a PING, are stale, or took too long to authenticate.

After CONNECT the first PING comes early (it measures the round trip); from then on one per interval, unless the client
was heard within it. A client that leaves `ping_max` PINGs unanswered is stale. The next time that each session needs a
look stands in a heap; an entry that the session has meanwhile outrun is skipped when it comes up.

Source: nats-server `server/client.go` (processPingTimer, setFirstPingTimer).
"""

import heapq
from collections.abc import Callable, Iterator
from enum import Enum

from gateway.core.plane_options import PlaneOptions
from gateway.core.session import NEVER_MS, Session
from protocol.limits import FIRST_PING_MS

_ROUND_TRIP_INTERVAL_MS = 3_600_000
_JITTER_FRACTION = 5


class Due(Enum):
    """What has to happen to a session now."""

    PING = "ping"
    STALE = "stale"
    AUTHENTICATION_TIMEOUT = "authentication timeout"


class Liveness:
    """The timers of all sessions, on a clock that comes in as `now_ms`."""

    def __init__(self, sessions: dict[int, Session], choose: Callable[[int], int]) -> None:
        """`go_by` is due before anything else."""
        self._sessions = sessions
        self._choose = choose
        self._heap: list[tuple[int, int]] = []

    def go_by(self, options: PlaneOptions) -> None:
        """What is scheduled stays; the next time is by these."""
        self._ping_interval_ms = options.ping_interval_ms
        self._ping_max = options.ping_max
        self._auth_timeout_ms = options.auth_timeout_ms

    def opened(self, session: Session, now_ms: int, must_authenticate: bool) -> None:
        """The connection is there; CONNECT is not."""
        session.ping_due_ms = now_ms + self._ping_interval_ms
        session.auth_due_ms = now_ms + self._auth_timeout_ms if must_authenticate else NEVER_MS
        self._schedule(session)

    def connected(self, session: Session, now_ms: int) -> None:
        """CONNECT was accepted."""
        wait_ms = min(self._ping_interval_ms, FIRST_PING_MS)
        jitter_ms = self._choose(wait_ms // _JITTER_FRACTION) if wait_ms >= _JITTER_FRACTION else 0
        session.ping_due_ms = now_ms + wait_ms + jitter_ms
        session.auth_due_ms = NEVER_MS
        self._schedule(session)

    def heard(self, session: Session, now_ms: int) -> None:
        """A PONG came."""
        session.pings_out = 0
        if session.ping_sent_ms != NEVER_MS:
            session.rtt_ms = now_ms - session.ping_sent_ms

    def due(self, now_ms: int) -> Iterator[tuple[Session, Due]]:
        """The sessions that something has to happen to; a session that is to be pinged counts as pinged."""
        while self._heap and self._heap[0][0] <= now_ms:
            due_ms, session_id = heapq.heappop(self._heap)
            session = self._sessions.get(session_id)
            if session is None or session.due_ms != due_ms or session.closing is not None:
                continue
            if NEVER_MS < session.auth_due_ms <= now_ms:
                yield session, Due.AUTHENTICATION_TIMEOUT
                continue
            if session.ping_due_ms <= now_ms:
                session.ping_due_ms = now_ms + self._ping_interval_ms
                if self._must_ping(session, now_ms):
                    yield session, self._ping(session, now_ms)
            self._schedule(session)

    def _must_ping(self, session: Session, now_ms: int) -> bool:
        if session.paused:
            return False
        measured = session.ping_sent_ms != NEVER_MS and now_ms - session.ping_sent_ms <= _ROUND_TRIP_INTERVAL_MS
        return not measured or now_ms - session.last_heard_ms >= self._ping_interval_ms

    def _ping(self, session: Session, now_ms: int) -> Due:
        if session.pings_out + 1 > self._ping_max:
            return Due.STALE
        session.pings_out += 1
        session.ping_sent_ms = now_ms
        return Due.PING

    def _schedule(self, session: Session) -> None:
        due_ms = session.ping_due_ms
        if session.auth_due_ms != NEVER_MS:
            due_ms = min(due_ms, session.auth_due_ms)
        session.due_ms = due_ms
        heapq.heappush(self._heap, (due_ms, session.id))
