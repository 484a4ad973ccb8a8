"""One plane on each engine, going through the same steps: after every one of them the two must be in the same state."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from gateway.core import engine
from gateway.core.engine import Engine
from gateway.core.lanes import Lane, Replies
from gateway.core.plane import Plane, PlaneOptions
from gateway.core.session import Closed, Scope, Session, Subscription
from protocol import engine as record_engine
from protocol import routes, subjects
from protocol.publish import ack_form
from support.scripts import CONNECT
from support.traffic import SETTINGS, Step

_DETAIL_OF_ITS_CUTS = "line begins with"  # names as much of the line as happens to be there


class Boom(Exception):
    """What a hook raises on `act.raise`."""


LANE_BYTES_MAX = 1_500  # so little that lanes are often full
ACKS = ack_form("orders", "eu", 1, 3)


class Side:
    """A plane with hooks that remember, and that do on `act.…` what hooks may do in the middle of a read."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.sessions: list[Session] = []
        self.kept_prefix = "kept"
        self.lanes: dict[str, Lane] = {}
        self.waiting: list[Replies] = []  # whose events have left their lane
        self.kept_some = False
        self.now_ms = 0
        self.plane = Plane(PlaneOptions("SERVER", "test", **options), self, random.Random(1).randrange, engine)

    # -- hooks --------------------------------------------------------------------------------------------------------

    def keeps(self, account: str, subject: str) -> bool:
        return subject.startswith((self.kept_prefix, "act", "\udcff"))

    def governs(self, account: str, subject: str) -> bool:
        return subject.endswith(".governed")

    def admits(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        self.log.append(("admits", session.id, subject, reply, header_block, payload))
        return not payload.endswith(b"0")

    def capture(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        self.log.append(("capture", session.id, subject, reply, header_block, payload))
        if subject in self.lanes:
            self._open(self.lanes[subject])
        plane = self.plane
        match subject:
            case "act.pause":
                plane.pause(session)
            case "act.close":
                plane.close(session, Closed.SHUTDOWN)
            case "act.publish":
                plane.publish("a.b", reply, header_block, payload)
            case "act.deliver":
                plane.deliver(session, "a.b", "shown", reply, header_block, payload)
            case "act.watch":
                plane.watch(session, "a.b", lambda: self._lost(session))
            case "act.routes":
                self.kept_prefix = "a" if self.kept_prefix == "kept" else "kept"
                plane.routes_changed()
            case "act.raise":
                raise Boom
        return subject == "act.answer"

    def lane(self, account: str, subject: str) -> tuple[Lane, bytes] | None:
        """Some of what is kept has lanes, of every kind; a captured event opens its lane."""
        if not subject.startswith("kept"):
            return None
        if subject not in self.lanes:
            lane = self.lanes[subject] = self.plane.engine.lane(self.plane.engine.room())
            lane.room.bytes_max = LANE_BYTES_MAX
            lane.answers, lane.takes_headers = subject != "kept.bb", subject != "kept.bb"
            if subject == "kept.a":
                self._open(lane)
        return self.lanes[subject], subject.encode()

    def _open(self, lane: Lane) -> None:
        """What it has taken so far is looked at."""
        if lane.builder is not None and lane.builder.count:
            self.log.append(("batch", lane.builder.size_bytes, lane.builder.seal()))
        if lane.replies is not None:
            self.log.append(("waiting", lane.replies.items()))
            self.waiting.append(lane.replies)
        lane.room.used_bytes = 0
        lane.builder, lane.replies = record_engine.BEST.builder(), lane.new_replies()

    def wall_ms(self) -> int:
        return 1_000 + self.now_ms

    def kept(self) -> None:
        self.kept_some = True

    def service(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> None:
        self.log.append(("service", session.id, subject, reply, header_block, payload))
        if reply:
            self.plane.deliver(session, reply, "served", "", header_block, payload)

    def session_admitted(self, session: Session) -> None:
        self.log.append(("admitted", session.id))

    def refused(self, session: Session, what: str) -> None:
        self.log.append(("refused", session.id, what))

    def session_renewed(self, session: Session) -> None:
        self.log.append(("renewed", session.id))

    def session_closed(self, session: Session) -> None:
        self.log.append(("closed", session.id))

    def _lost(self, session: Session) -> None:
        self.log.append(("lost", session.id))
        self.plane.publish("lost.a", "", b"", b"lost")

    def nonce(self) -> bytes:
        return b"nonce-bytes"

    # -- steps --------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        self.sessions.append(self.plane.connect("10.0.0.1", 50_000 + len(self.sessions), self.now_ms))

    def join(self, sent: bytes) -> Session:
        """A client that has sent `sent` and taken what it was answered."""
        self.connect()
        self.send(len(self.sessions) - 1, sent)
        self.sessions[-1].take()
        return self.sessions[-1]

    def connect_peer(self, name: str, near: bool, zone: str = "", scope: Scope = Scope.HERE) -> None:
        self.sessions.append(self.plane.connect_peer(name, self.now_ms, near=near, zone=zone, scope=scope))

    def reconnect(self, number: int, data: bytes) -> bytes:
        """The connection is lost and made again; the last of the old one's output."""
        old = self.sessions[number]
        self.plane.disconnect(old)
        if old.peer:
            self.sessions[number] = self.plane.connect_peer(
                old.peer, self.now_ms, near=old.near, zone=old.zone, scope=old.scope
            )
            return old.take()
        self.sessions[number] = self.plane.connect("10.0.0.2", 60_000, self.now_ms)
        if self.sessions[number].closing is None:
            self.send(number, data)
        return old.take()

    def send(self, number: int, data: bytes) -> str:
        """As the shell does it: from a buffer that is used again afterwards, until nothing is left to do."""
        self.now_ms += bool(data)
        session, buffer = self.sessions[number], bytearray(data)
        try:
            more = self.plane.receive(session, memoryview(buffer), self.now_ms)
            buffer[:] = b"#" * len(buffer)
            while more:
                more = self.plane.receive(session, b"", self.now_ms)
        except Boom:
            return "raised"
        return ""

    def talk(self, number: int, data: bytes) -> object:
        """`send` for clients that connect again when they were thrown out."""
        if self.sessions[number].closing is not None:
            return self.reconnect(number, CONNECT + b"SUB > 1\r\n")
        return self.send(number, data)

    def pause(self, number: int) -> None:
        self.plane.pause(self.sessions[number])

    def resume(self, number: int) -> str:
        self.plane.resume(self.sessions[number])
        return self.send(number, b"")

    def verified(self, number: int, is_known: bool) -> str:
        session = self.sessions[number]
        if session.verifying is None:
            return "nothing to verify"
        entry = session.verifying.candidates[0][1] if is_known else None
        try:
            self.plane.verified(session, entry, self.now_ms)
        except Boom:
            return "raised"
        return self.send(number, b"")

    def unsent(self, number: int, size_bytes: int) -> None:
        session = self.sessions[number]
        session.unsent_bytes = size_bytes
        session.measure_unsent = lambda: size_bytes // 2

    def publish(self, subject: bytes, reply: bytes, header_block: bytes, payload: bytes) -> int:
        return self.plane.publish(subjects.decode(subject), subjects.decode(reply), header_block, payload)

    def answer(self, which: int, base_offset: int, *waiting: tuple[int, bytes]) -> None:
        """An account gets PubAcks."""
        replies = self.plane.engine.lane(self.plane.engine.room()).new_replies()
        for each in waiting:
            replies.add(*each)
        accounts = list(self.plane.accounts)
        self.plane.answer(accounts[which % len(accounts)], replies, ACKS, base_offset)

    def answer_lanes(self, base_offset: int) -> None:
        """Who waits for what has gone by lanes gets PubAcks."""
        waiting, self.waiting = self.waiting, []
        for replies in waiting:
            self.plane.answer("", replies, ACKS, base_offset)

    def deliver(self, number: int, route: bytes, show: bytes, reply: bytes, payload: bytes) -> int:
        wire = [subjects.decode(subject) for subject in (route, show, reply)]
        return self.plane.deliver(self.sessions[number], wire[0], wire[1], wire[2], b"", payload)

    def tick(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.plane.tick(self.now_ms)

    def drop_some(self) -> bool:
        """What is left of closed sessions with many subscriptions, turn by turn."""
        if self.plane.has_more:
            self.plane.do_more()
        return self.plane.has_more

    def look(self, subject: bytes) -> list[Any]:
        """Who is subscribed, in order, and who has interest."""
        text = subjects.decode(subject)
        seen: list[Any] = [self.plane.has_interest(session, text) for session in self.sessions]
        for account in self.plane.accounts.values():
            plain, queues = account.sublist.match(text)
            seen += [list(map(_name, plain)), [list(map(_name, members)) for members in queues]]
        return seen

    def drain(self) -> list[Any]:
        """What the shell would take away."""
        verifications = [session.id for session in self.plane.take_verifications()]
        stalls = [session.stall_ms for session in self.sessions]
        for session in self.sessions:
            session.stall_ms = 0
        dirty = sorted(session.id for session in self.plane.take_dirty())
        kept, self.kept_some = self.kept_some, False
        return [dirty, verifications, stalls, kept, *(session.take() for session in self.sessions)]

    def end(self) -> None:
        """All are gone: nothing of them may be left in memory."""
        for lane in self.lanes.values():
            lane.builder = lane.replies = None
        self.waiting.clear()
        for session in self.sessions:
            self.plane.disconnect(session)
        while self.drop_some():
            pass

    def state(self) -> dict[str, Any]:
        accounts = self.plane.accounts
        return {
            "sessions": [_state(session) for session in self.sessions],
            "stats": dict(vars(self.plane.stats)),
            "log": self.log,
            "lanes": {subject: _lane(lane) for subject, lane in self.lanes.items()},
            "accounts": {name: _subscriptions(account.sublist) for name, account in accounts.items()},
            "watches": [list(account.watches) for account in accounts.values()],
        }


def _name(subscription: Subscription) -> tuple[Any, ...]:
    session = subscription.session
    return session.id, session.near, subscription.sid, subscription.pattern, subscription.queue, subscription.weight


def _lane(lane: Lane) -> list[Any]:
    builder, replies = lane.builder, lane.replies
    waiting = None if replies is None else (len(replies), replies.size_bytes, replies.items())
    return [lane.taken, lane.room.used_bytes, builder is None or (builder.count, builder.size_bytes), waiting]


def _subscriptions(sublist: Any) -> list[Any]:
    return [sublist.count, sublist.inserts, sublist.removes, *sorted(map(_name, sublist))]


def _state(session: Session) -> list[Any]:
    detail = "" if session.closing_detail.startswith(_DETAIL_OF_ITS_CUTS) else session.closing_detail
    own = [
        (sid, each.pattern, each.queue, each.weight, each.max_messages, each.received, each.closed)
        for sid, each in session.subscriptions.items()
    ]
    return [
        session.id, session.closing, detail, session.flushes, session.connected, session.info_sent, session.user,
        session.entry,
        session.paused, session.dirty, session.stall_ms, session.verifying, session.options, session.queued_bytes,
        session.account.name, session.peer, session.zone, session.spare, session.interest_mark,
        session.unsent_bytes, session.in_msgs, session.in_bytes, session.out_msgs, session.out_bytes,
        session.dropped_msgs, session.unwanted_msgs,
        session.last_activity_ms, session.last_heard_ms, session.pings_out, own, _learned(session),
    ]  # fmt: skip


def _learned(session: Session) -> list[Any]:
    learned = session.learned
    if learned is None:
        return []
    digest = learned.digest & routes.DIGEST_MASK
    return [learned.count, learned.sequence, digest, learned.is_stale, sorted(learned.before or ())]


def _differences(reference: Any, compiled: Any, where: str = "") -> Iterator[str]:
    if isinstance(reference, dict) and isinstance(compiled, dict) and reference.keys() == compiled.keys():
        for name in reference:
            yield from _differences(reference[name], compiled[name], f"{where}.{name}")
    elif isinstance(reference, list) and isinstance(compiled, list) and len(reference) == len(compiled):
        for position, pair in enumerate(zip(reference, compiled, strict=True)):
            yield from _differences(*pair, f"{where}[{position}]")
    elif reference != compiled:
        yield f"{where} is {compiled!r}, should be {reference!r}"


def run_on_both(setting: str, steps: Iterable[Step]) -> None:
    """AssertionError where the compiled engine does something else than the reference."""
    assert engine.COMPILED is not None
    reference, compiled = (Side(each, **SETTINGS[setting]) for each in (engine.REFERENCE, engine.COMPILED))
    try:
        for step in [*steps, ("drain",)]:
            name, *arguments = step
            expected, got = (getattr(side, name)(*arguments) for side in (reference, compiled))
            assert got == expected, step
            before, after = reference.state(), compiled.state()
            assert after == before, f"after {step}: {list(_differences(before, after))}"
    finally:
        compiled.end()
