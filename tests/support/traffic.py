"""Random scripts for a data plane: what several clients send, cut anywhere, and what happens around them meanwhile.

A script is a list of steps, each the name of a method of `support.twins.Side` with its arguments, so that a failing one
can be pasted into a test as it is printed. All chance comes from `choose(n)`, which picks one of 0..n-1.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gateway.core.identity import UserEntry
from gateway.core.session import Scope
from support.scripts import BARE, CONNECT, PEDANTIC, SILENT, USERS, VERBOSE, login

Step = tuple[Any, ...]
T = TypeVar("T")

ACCOUNT_USERS = (
    UserEntry("a", "b", account="ONE"),
    UserEntry("w", "b", account="TWO"),
    UserEntry("q", "b", account="ONE"),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing set": {},
    "little pending": {"max_pending_bytes": 1_000},
    "small lines and payloads": {"max_payload_bytes": 40, "max_control_line_bytes": 110},
    "few subscriptions": {"max_subscriptions": 3, "max_pending_bytes": 3_000},
    "few connections": {"max_connections": 3},
    "users": {"users": USERS},
    "accounts": {"users": ACCOUNT_USERS, "no_auth_user": "q"},
    "peers": {"id_step": 2},
    "peers that are sent everything": {"id_step": 2, "broadcasts": True},
    "accounts and peers, little pending": {"users": ACCOUNT_USERS, "id_step": 2, "max_pending_bytes": 3_000},
    "zones": {"id_step": 2, "zone": "eu", "zones": ("us",)},
    "zones that are sent everything": {"id_step": 2, "zone": "eu", "zones": ("us",), "broadcasts": True},
    "users, little pending": {"users": USERS, "max_pending_bytes": 2_000, "max_subscriptions": 5},
}
"""Options of a plane, by name."""

CONNECTIONS = 4
PEERS = 3  # behind them, where a setting has peers
FAR_PEER = 2  # another gateway; the others are workers of this one
Kind = tuple[str, bool, str, int]
OF_ZONE: tuple[Kind, ...] = tuple((f"peer{i}", i != FAR_PEER, "", Scope.HERE) for i in range(PEERS))
OF_ZONES: tuple[Kind, ...] = (
    ("peer0", False, "", Scope.HERE),
    ("border", False, "us", Scope.ZONE),
    ("peer0", False, "us", Scope.BORDER),
    ("peer1", False, "us", Scope.HERE),
)
"""Peers: name, whether it is near, the zone that is reached by it, and how far what it says goes."""
SUBJECTS = (
    b"a", b"a", b"a.b", b"a.b", b"a.b.c", b"b", b"b.a", b"foo", b"foo.x", b"service", b"w.open.x", b"w.secret.x",
    b"a..b", b".a", b"a.", b".", b"*", b">", b"a.*", b"*a", b"a>", b"a.>.b", b"\xff.b", b"\xc3\xa9", b"a\x00b",
    b"a\x7fb",
    b"longer." + b"x" * 104, b"_INBOX.1", b"_INBOX.2", b"$SYS.x", b"$LOG.FETCH", b"$LOG", b"$other", b"kept",
    b"kept", b"kept.a", b"kept.a", b"kept.a", b"kept.a", b"kept.bb", b"kept.governed", b"long." + b"x" * 60,
    b"act.pause", b"act.close", b"act.publish", b"act.deliver", b"act.raise", b"act.watch", b"act.routes",
    b"act.answer",
)  # fmt: skip
PATTERNS = (
    b"a", b"a", b"a.b", b"a.*", b"a.*", b"*.b", b"*", b">", b">", b"a.>", b"*.*", b"a.*.c", b"*.b.*", b"b", b"foo",
    b"foo.*",
    b"w.>", b"_INBOX.*", b"_INBOX.1", b"$SYS.>", b"kept", b"act.*", b"q.1", b"lost.>", b"service", b"answer",
    b"longer." + b"x" * 104, b"a..b", b".a", b"a.", b"a.>.b", b">.a", b"a>", b"*a", b"\xff.*", b"a\x01b",
    b"long." + b"x" * 60,
)  # fmt: skip
REPLIES = (b"", b"", b"", b"r", b"+", b"|", b"_INBOX.1", b"_INBOX.2", b"answer", b"a.b")
INBOXES = (b"_INBOX.", b"_INBOX.", b"a.", b"a.", b"a.b.", b"q.", b"w.open.", b"", b".", b"a..", b"\xff.", b"long.")
LAST_TOKENS = (b"1", b"2", b"b", b"b", b"x", b"c", b"", b"*", b">", b"\xff")
QUEUES = (b"", b"", b"", b"q", b"q", b"other", b"workers", b"v1")
SIDS = (b"1", b"2", b"3", b"4", b"5", b"x-y", b"123456789")
BLOCKS = (b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nA: b\r\n\r\n", b"any", b"")
BLOCKS += (b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n", b"NATS/1.0\r\nA: b\r\nMesh-Ack: quorum\r\n\r\n", b"\r\rNats-\r\nNats")
PAYLOADS = (b"", b"", b"hi", b"hi", b"PUB a 0\r\n\r\n", b"\r\n", b"\r", b"x" * 39, b"x" * 41, b"y" * 300, b"z" * 1_100)
SIZES = (b"-1", b"x", b"99999999", b"9999999999", b"1e3", b"", b"1048577")
LINES = (b"PING\r\n", b"PING\r\n", b"ping\n", b"PINGxyz\r\n", b"PONG\r\n", b"+OK\r\n", b"INFO {}\r\n")
WRONG = (b"-ERR 'x'\r\n",
         b"PUB a\r\n", b"PUB \r\n", b"PUB \n\r\n", b"SUB a\r\n", b"SUB \n\n", b"UNSUB \r\n", b"HELLO\r\n", b"\r\n",
         b" PING\r\n",
         b"PUB" + b" " * 70 + b"a 0\r\n\r\n", b"SUB " + b"a" * 120 + b" 1\r\n", b"RS+ $G a\r\n",
         b"CONNECT\r\n")  # fmt: skip
FLAGS = (b"verbose", b"pedantic", b"echo", b"headers", b"no_responders")
ACCOUNTS = {
    False: (b"$G",) * 7 + (b"NEW",),
    True: (b"ONE", b"ONE", b"ONE", b"TWO", b"TWO", b"$G", b"NEW"),
}  # with users?
BUSY = ((b"a", b"a.b", b"b"), (b"a", b"a.*", b"*", b"b"))  # subjects and patterns that peers have to do with most
NAMED = (
    b"", b"", b"", b"_INBOX.1", b"+ q r", b"| q", b"| q other", b"+ workers q _INBOX.1", b"+ v1 other q workers r",
    b"| z", b"+ z r", b"r", b"|", b"+", b"| nobody", b"+ +", b"+ q |", b"| " + b"n " * 200 + b"q", b"r more",
)  # fmt: skip
WEIGHTS = (b"1", b"1", b"2", b"3", b"9", b"07", b"999999999")
VERSIONS = (
    b"RSALL 2\r\n",
    b"RSSUM 1 3 00000000000000ff\r\n",
    b"RSASK 1\r\n",
    b"RSALL 3\r\nRSSUM 3 7 0000000000000000\r\n",
)
WRONG_FOR_PEERS = (
    b"RSALL x\r\n",
    b"RSSUM 1 2 ff\r\n",
    b"RMSG $G a\r\n",
    b"RS+ $G\r\n",
    b"RVIA us 2\r\nhi\r\n",
    b"RS+ $G a q\r\n",
    b"RS+ $G a q 0\r\n",
    b"RS+ $G a q x\r\n",
    b"RS- $G a q 1\r\n",
    b"RMSG $G a 9999999999\r\n",
    b"HRMSG $G a 5 4\r\nabcd\r\n",
    b'CONNECT {"version":9,"name":"x"}\r\n',
    b"PUB a 0\r\n",
)
NOISE = (b"\r", b"\n", b" ", b"\t", b"\0", b"0", b"\xff", b".", b">", b"\r\n", b"PUB ")


class Traffic:
    """An endless script."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose = choose
        self._unsent: dict[int, list[bytes]] = {}
        self.setting = self._one(tuple(SETTINGS))  # a key of `SETTINGS`
        options = SETTINGS[self.setting]
        self._kinds = OF_ZONES if "zones" in options else OF_ZONE if "id_step" in options else ()
        self._peers = len(self._kinds)

    def opening(self) -> list[Step]:
        """Everybody connects, and most say something sensible first."""
        steps: list[Step] = []
        for number in range(CONNECTIONS):
            steps += [("connect",), ("send", number, self._connect_line() + self._subscribe() + self._subscribe())]
        for number in range(self._peers):
            steps.append(("connect_peer", *self._kinds[number]))
            told = b"RSALL 1\r\nRSSUM 1 0 0000000000000000\r\n" if self._choose(4) else b""
            steps.append(("send", CONNECTIONS + number, told + b"".join(self._interest(True) for _ in range(4))))
        return steps

    def step(self) -> Step:
        number = self._choose(CONNECTIONS + self._peers)
        kind = self._choose(44)
        if kind < 27:
            return "talk", number, self._chunk(number)
        happenings: tuple[Callable[[int], Step], ...] = (
            self._drain, self._drain, self._drain, self._pause, self._resume, self._verified, self._verified,
            self._unsent_bytes,
            self._publish_own, self._deliver_own, self._answer, self._answer, self._answer_lanes,
            self._reconnect, self._tick, self._look, self._drop_some,
        )  # fmt: skip
        return happenings[kind - 27](number)

    def _one(self, choices: Sequence[T]) -> T:
        return choices[self._choose(len(choices))]

    # -- what clients send --------------------------------------------------------------------------------------------

    def _chunk(self, number: int) -> bytes:
        """What connection `number` sends next: the rest of something begun, or something new, in up to four parts."""
        if not self._unsent.get(number):
            frame = self.frame if number < CONNECTIONS else self._peer_frame
            text = b"".join(frame() for _ in range(1 + self._choose(6)))
            cuts = sorted({1 + self._choose(len(text)) for _ in range(max(0, self._choose(6) - 2))})
            self._unsent[number] = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]
        return self._unsent[number].pop(0)

    def frame(self) -> bytes:
        kind = self._choose(24)
        if kind < 13:
            frame = self._publish()
        elif kind < 17:
            frame = self._subscribe()
        elif kind < 19:
            words = [b"UNSUB", self._one(SIDS), self._one((b"", b"", b"1", b"2", b"0", b"x"))]
            frame = self._line(words)
        elif kind < 22:
            frame = self._one(LINES)
        elif self._choose(2):
            frame = self._publish() * (1 + self._choose(5))
        else:
            frame = self._one((self._connect_line, self._wrong, self._mutated))()
        return frame

    def _peer_frame(self) -> bytes:
        kind = self._choose(30)
        if kind < 10:
            return self._interest(kind < 8)
        if kind < 12:
            return self._peer_message() * (1 + self._choose(5))
        if kind < 20:
            return self._peer_message()
        if kind < 27:
            return self._one(LINES)
        return self._one(VERSIONS) if kind < 29 else self._one(WRONG_FOR_PEERS)

    def _interest(self, wanted: bool) -> bytes:
        pattern, queue = self._one(BUSY[1] if self._choose(2) else PATTERNS), self._one(QUEUES)
        words = [b"RS+" if wanted else b"RS-", self._account(), pattern, queue]
        return self._line([*words, self._one(WEIGHTS) if wanted and queue else b""])

    def _account(self) -> bytes:
        return self._one(ACCOUNTS["users" in SETTINGS[self.setting]])

    def _peer_message(self) -> bytes:
        block = self._one(BLOCKS) if self._choose(3) == 0 else None
        body = (block or b"") + self._one(PAYLOADS)
        subject = self._one(BUSY[0] if self._choose(2) else SUBJECTS)
        words = [b"RMSG" if block is None else b"HRMSG", self._account(), subject, self._one(NAMED)]
        words += [] if block is None else [b"%d" % len(block)]
        return self._line([*words, b"%d" % len(body)]) + body + b"\r\n"

    def _wrong(self) -> bytes:
        return self._one(WRONG)

    def _publish(self) -> bytes:
        block = self._one(BLOCKS) if self._choose(4) == 0 else None
        payload = self._one(PAYLOADS)
        words = [b"PUB" if block is None else b"HPUB", self._one(SUBJECTS), self._one(REPLIES)]
        words += [] if block is None else [b"%d" % len(block)]
        body = (block or b"") + payload
        size = b"%d" % len(body)
        if self._choose(40) == 0:
            size = self._one((b"0" + size, b"000" + size, *SIZES))
        return self._line([*words, size]) + body + b"\r\n"

    def _subscribe(self) -> bytes:
        return self._line([b"SUB", self._one(PATTERNS), self._one(QUEUES), self._one(SIDS)])

    def _line(self, words: list[bytes]) -> bytes:
        """`words` with what may stand between them; most often it is written as the protocol's pages have it."""
        words = [word for word in words if word]
        if self._choose(6):
            return b" ".join(words) + b"\r\n"
        words[0] = self._one((words[0], words[0].lower(), words[0].capitalize()))
        return self._one((b" ", b"  ", b"\t", b" \t ")).join(words) + self._one((b"\r\n", b"\n", b" \r\n"))

    def _connect_line(self) -> bytes:
        if self._choose(8):
            line = self._one((CONNECT, CONNECT, CONNECT, SILENT, VERBOSE, PEDANTIC, BARE))
        else:
            fields = [b'"%b":%b' % (name, self._one((b"true", b"false"))) for name in FLAGS if self._choose(2)]
            line = b"CONNECT {%b}\r\n" % b",".join([*fields, b'"name":"x"'])
        user = self._one(("", "a", "w", "w", "q", "p", "r", "r", "hashed", "hashed"))
        return login(user, line) if user else line

    def _mutated(self) -> bytes:
        text = self._publish() + self._subscribe()
        at = self._choose(len(text))
        change = self._choose(4)
        if change == 0:
            return text[:at] + text[at + 1 :]
        if change == 1:
            return text[:at] + self._one(NOISE) + text[at:]
        if change == 2:
            return text[:at] + bytes([self._choose(256)]) + text[at + 1 :]
        return text[:at] + text[self._choose(len(text)) :]

    # -- what happens around them -------------------------------------------------------------------------------------

    def _drain(self, number: int) -> Step:
        return ("drain",)

    def _pause(self, number: int) -> Step:
        return "pause", number

    def _resume(self, number: int) -> Step:
        return "resume", number

    def _verified(self, number: int) -> Step:
        return "verified", number, self._choose(3) > 0

    def _unsent_bytes(self, number: int) -> Step:
        return "unsent", number, self._one((0, 100, 450, 600, 900, 1_500, 9_000))

    def _publish_own(self, number: int) -> Step:
        block = self._one(BLOCKS) if self._choose(2) else b""
        return "publish", self._one(SUBJECTS), self._one(REPLIES), block, self._one(PAYLOADS)

    def _deliver_own(self, number: int) -> Step:
        return "deliver", number, self._one(SUBJECTS), self._one(SUBJECTS), self._one(REPLIES), self._one(PAYLOADS)

    def _answer(self, number: int) -> Step:
        """To inboxes that begin alike, for the most part."""
        waiting: list[tuple[int, bytes]] = []
        for _ in range(1 + self._choose(3)):
            begin = self._one(INBOXES)
            for _ in range(1 + self._choose(4)):
                number += self._choose(3)
                waiting.append((number, begin + self._one(LAST_TOKENS)))
        return "answer", self._choose(3), self._one((0, 0, 99, 10**15)), *waiting

    def _answer_lanes(self, number: int) -> Step:
        return "answer_lanes", self._choose(20)

    def _reconnect(self, number: int) -> Step:
        self._unsent.pop(number, None)
        return "reconnect", number, self._connect_line() + self._subscribe()

    def _tick(self, number: int) -> Step:
        return "tick", self._one((1, 1_000, 5_000, 70_000))

    def _drop_some(self, number: int) -> Step:
        return ("drop_some",)

    def _look(self, number: int) -> Step:
        return "look", self._one(SUBJECTS)
