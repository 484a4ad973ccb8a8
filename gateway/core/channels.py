"""One connection between two gateways: what is said on it of these two, and of zones to which one of them leads.

    bytes ─► frames ─► Channels.receive ─► a session of the plane for each channel ─► Channels.take ─► frames ─► bytes

Each channel is a peer of the plane, with interest of its own. Interest that was told comes before messages that were
made later, whichever channels the two are on: who answers a message must find the inbox wanted. So lines about interest
have an output of their own, which goes first.
"""

from collections.abc import Callable
from functools import partial

from gateway.core.plane import Plane
from gateway.core.session import Closed, Scope, Session
from protocol import nats, routes
from protocol.errors import FrameError
from protocol.routes import Side

Key = tuple[Side, str]


def _nothing(session: Session) -> None:
    pass


class Channels:
    """`name` is the gateway at the other end, `border` its zone where that is another one.

    `added(session)` and `removed(session)` are told of channels, this first: `main`.
    """

    def __init__(
        self,
        plane: Plane,
        name: str,
        now_ms: int,
        *,
        border: str = "",
        ip: str = "",
        port: int = 0,
        added: Callable[[Session], None] = _nothing,
        removed: Callable[[Session], None] = _nothing,
    ) -> None:
        self.name, self.border = name, border
        self.sessions: dict[Key, Session] = {}  # by the side that we write
        self._plane, self._address, self._added, self._removed = plane, (ip, port), added, removed
        self._lines: dict[Key, bytearray] = {}
        self._rest = b""  # of what was received: frames that have not been looked at
        self._piece_bytes = 0  # what is still to come of the frame that has begun
        self._current: tuple[Key, Session | None] = ((Side.GATEWAYS, ""), None)  # whose frame that is
        self._unfinished: Session | None = None  # it has stopped for the others' sake
        self.main = self._open((Side.GATEWAYS, ""), border, Scope.ZONE if border else Scope.HERE, now_ms)

    def _open(self, key: Key, zone: str, scope: Scope, now_ms: int) -> Session:
        ip, port = self._address
        write = partial(self._write, key)
        session = self._plane.connect_peer(
            self.name, now_ms, near=False, zone=zone, scope=scope, write=write, ip=ip, port=port
        )
        self.sessions[key] = session
        self._added(session)
        return session

    def _close(self, key: Key) -> None:
        session = self.sessions.pop(key, None)
        self._lines.pop(key, None)
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
            self._lines[key] = bytearray()
            self._plane.forwarder.touch(self.main)

    # -- out ----------------------------------------------------------------------------------------------------------

    def _write(self, key: Key, session: Session, data: bytes) -> None:
        if data:  # an empty frame ends a channel
            self._lines.setdefault(key, bytearray()).extend(data)
            self._plane.forwarder.touch(session)

    def take_lines(self) -> list[bytes]:
        """Frames that go first."""
        lines, self._lines = self._lines, {}
        return [part for key, data in lines.items() for part in routes.frames(*key, bytes(data))]

    def take_messages(self) -> list[bytes]:
        """Frames that may wait, and let others of `take_lines` go before them."""
        waiting = [(key, session) for key, session in self.sessions.items() if session.queued_bytes]
        return [part for key, session in waiting for part in routes.frames(*key, session.take())]

    # -- in -----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview, now_ms: int) -> bool:
        """Acts on what has come; whether it is to be called again soon, with b"", for more of the same."""
        data = self._rest + bytes(data) if self._rest else data
        if self._unfinished is not None and self._plane.receive(self._unfinished, b"", now_ms):
            self._rest = bytes(data)
            return True
        self._unfinished, self._rest = None, b""
        try:
            at = self._act(memoryview(data), now_ms)
        except FrameError as error:
            self.fail(str(error))
            return False
        self._rest = bytes(data[at:])
        return self._unfinished is not None

    def fail(self, why: str) -> None:
        """What comes is of no use: the other end is told, and the connection given up."""
        self._write((Side.GATEWAYS, ""), self.main, nats.error_line(why))
        self._plane.close(self.main, Closed.PROTOCOL_VIOLATION, detail=why)

    def _act(self, data: memoryview, now_ms: int) -> int:
        """How much of it has been acted on."""
        at = 0
        while at < len(data) and self.main.closing is None and self._unfinished is None:
            if not self._piece_bytes:
                head = routes.read_frame_head(bytes(data[at : at + routes.FRAME_HEAD_BYTES_MAX]))
                if head is None:
                    break
                at += head.size_bytes
                self._begin(head, now_ms)
                continue
            piece = data[at : at + self._piece_bytes]
            at += len(piece)
            self._piece_bytes -= len(piece)
            self._hand_over(piece, now_ms)
        return at

    def _begin(self, head: routes.FrameHead, now_ms: int) -> None:
        ours = {Side.SENDER: Side.RECEIVER, Side.RECEIVER: Side.SENDER}.get(head.side, head.side)
        key = ours, head.zone
        self._piece_bytes = head.piece_bytes
        if ours is Side.RECEIVER and not self.border and head.zone in self._plane.options.zones:
            if not head.piece_bytes:
                self._close(key)
            elif key not in self.sessions:
                self._open(key, head.zone, Scope.HERE, now_ms)
        self._current = key, self.sessions.get(key)

    def _hand_over(self, piece: memoryview, now_ms: int) -> None:
        """A channel that is not there may have been until just now: what comes on it is for nobody."""
        key, session = self._current
        if session is None or self.sessions.get(key) is not session:
            return
        if self._plane.receive(session, piece, now_ms):
            self._unfinished = session
        elif session.closing is not None and session is not self.main:
            self._plane.close(self.main, session.closing, flushes=False, detail=session.closing_detail)
