"""One connection between processes of gateways: what is said on it of these two, and of zones to which one leads.

    bytes ─► Channels.receive ─┬─ lines and messages ─► `main`, the session of the two gateways
                               └─ pieces ─► the session of a zone        (`take_lines`, `take_messages`: the way back)

Each channel is a peer of the plane, with interest of its own. Where no zone is led to, there is the one, at no cost. A
piece of another stands between the lines of the first (`protocol.routes`): the main session stops until it was acted
on.

Interest that was told comes before messages that were made later, whichever channels the two are on: who answers a
message must find the inbox wanted. So lines about interest have an output of their own, which goes first.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from gateway.core.plane import Plane
from gateway.core.session import Closed, Scope, Session
from protocol import nats, routes
from protocol.routes import Side

Key = tuple[Side, str]
_MAIN: Final = (Side.GATEWAYS, "")
Part = tuple[Key, bytes]
"""What is said on a channel."""


def _nothing(session: Session) -> None:
    pass


class Channels:
    """`name` is the peer at the other end, `border` its zone where that is another one; `near`: of the same gateway.

    `added(session)` and `removed(session)` are told of channels, this first: `main`.
    """

    def __init__(
        self,
        plane: Plane,
        name: str,
        now_ms: int,
        *,
        border: str = "",
        near: bool = False,
        ip: str = "",
        port: int = 0,
        added: Callable[[Session], None] = _nothing,
        removed: Callable[[Session], None] = _nothing,
    ) -> None:
        self.name, self.border = name, border
        self.sessions: dict[Key, Session] = {}  # by the side that we write
        self._plane, self._address, self._added, self._removed = plane, (ip, port), added, removed
        self.lines: dict[Key, bytearray] = {}  # what goes first
        self._now_ms = now_ms
        self._near = near
        self._unfinished: Session | None = None  # the channel of a piece that has not been acted on
        self._piece = b""  # what of it the session has not had
        self.main = self._open(_MAIN, border, Scope.ZONE if border else Scope.HERE, now_ms)

    def _open(self, key: Key, zone: str, scope: Scope, now_ms: int) -> Session:
        ip, port = self._address
        write = partial(self._write, key)
        pieces = self._take if key == _MAIN else None
        near = self._near and key == _MAIN
        session = self._plane.connect_peer(
            self.name, now_ms, near=near, zone=zone, scope=scope, write=write, pieces=pieces, ip=ip, port=port
        )
        self.sessions[key] = session
        self._added(session)
        return session

    def _close(self, key: Key) -> None:
        session = self.sessions.pop(key, None)
        self.lines.pop(key, None)
        if session is not None:
            self._plane.close(session, Closed.CLIENT, flushes=False)
            self._plane.disconnect(session)
            self._removed(session)

    def end(self) -> None:
        """The connection is gone."""
        for key in list(self.sessions):
            self._close(key)

    # -- zones --------------------------------------------------------------------------------------------------------

    @property
    def leads_to(self) -> list[str]:
        """The zones that can be reached by the other end."""
        return [zone for side, zone in self.sessions if side is Side.RECEIVER]

    def offer(self, zone: str, now_ms: int) -> None:
        """This gateway leads to `zone` from now on."""
        self._open((Side.SENDER, zone), zone, Scope.BORDER, now_ms)

    def withdraw(self, zone: str) -> None:
        """It does so no more."""
        key = (Side.SENDER, zone)
        if key in self.sessions:
            self._close(key)
            self.lines[key] = bytearray()
            self._plane.forwarder.touch(self.main)

    # -- out ----------------------------------------------------------------------------------------------------------

    def _write(self, key: Key, session: Session, data: bytes) -> None:
        if data:  # an empty piece ends a channel
            self.lines.setdefault(key, bytearray()).extend(data)
            self._plane.forwarder.touch(session)

    def take_lines(self) -> list[Part]:
        """Those, and none are left."""
        lines, self.lines = self.lines, {}
        return [(key, bytes(data)) for key, data in lines.items()]

    def take_messages(self) -> list[Part]:
        """What may wait, and let others of `lines` go before it."""
        return [(key, session.take()) for key, session in self.sessions.items() if session.queued_bytes]

    # -- in -----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview, now_ms: int) -> bool:
        """Acts on what has come; whether it is to be called again soon, with b"", for more of the same."""
        main, receive, self._now_ms = self.main, self._plane.receive, now_ms
        main.paused = self._unfinished is not None  # what comes behind that waits
        has_more = receive(main, data, now_ms)
        while main.paused:
            main.paused = False
            if self._act(now_ms):
                return True
            has_more = receive(main, b"", now_ms)
        return has_more

    def _take(self, piece: routes.Piece) -> None:
        """A channel that is not there may have been until just now: what comes on it is for nobody."""
        key = (Side.SENDER if piece.side is Side.RECEIVER else Side.RECEIVER), piece.zone
        if piece.side is Side.SENDER and not self.border and piece.zone in self._plane.options.zones:
            if not piece.data:
                self._close(key)
            elif key not in self.sessions:
                self._open(key, piece.zone, Scope.HERE, self._now_ms)
        session = self.sessions.get(key)
        if session is not None:
            self._unfinished, self._piece, self.main.paused = session, piece.data, True

    def _act(self, now_ms: int) -> bool:
        """Acts on a piece; whether there is more of it."""
        session, piece, self._piece = self._unfinished, self._piece, b""
        if session is None or self._plane.receive(session, piece, now_ms):
            return session is not None
        self._unfinished = None
        if session.closing is not None and session in self.sessions.values():
            self._plane.close(self.main, session.closing, flushes=False, detail=session.closing_detail)
        return False

    def fail(self, why: str) -> None:
        """What comes is of no use: the other end is told, and the connection given up."""
        self._write(_MAIN, self.main, nats.error_line(why))
        self._plane.close(self.main, Closed.PROTOCOL_VIOLATION, detail=why)
