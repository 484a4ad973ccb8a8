"""Scripts for raw connections: what a client sends, in chunks, with its name. See tests/test_differential.py."""

from gateway.core.identity import Responses, UserEntry

BCRYPT_OF_SECRET = "$2b$04$l9jb0H/KGH2erVlcvlsS0uJ6OL8y67l8ynbJfnTlbTFO5hTh2p4Uy"

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1}\r\n'
VERBOSE = CONNECT.replace(b'"verbose":false', b'"verbose":true')
PEDANTIC = CONNECT.replace(b'"pedantic":false', b'"pedantic":true')
SILENT = CONNECT.replace(b"{", b'{"echo":false,')
BARE = b'CONNECT {"verbose":false,"pedantic":false}\r\n'

SCRIPTS: dict[str, tuple[bytes, ...]] = {
    "ping": (CONNECT + b"PING\r\n", b"PING\r\nPONG\r\n"),
    "no connect is verbose and pedantic": (b"SUB foo 1\r\nPUB foo 2\r\nhi\r\nPUB foo..x 0\r\n\r\n",),
    "empty connect": (b"CONNECT {}\r\nPUB a..b 0\r\n\r\n",),
    "connect twice drops subscriptions": (CONNECT + b"SUB a 1\r\n" + VERBOSE + b"PUB a 0\r\n\r\nPING\r\n",),
    "connect without blanks": (b'connect{"verbose":true}\nPING\n',),
    "connect with names in any case, and null": (b'CONNECT {"VERBOSE":false,"Pedantic":null}\r\nPUB a. 0\r\n\r\n',),
    "connect null": (b"CONNECT null\r\nPING\r\n",),
    "connect array": (b"CONNECT []\r\nPING\r\n",),
    "connect bad json": (b'CONNECT {"a"\r\nPING\r\n',),
    "connect wrong type": (b'CONNECT {"verbose":"x"}\r\n',),
    "connect no argument": (b"CONNECT\r\n{}\r\nPING\r\n",),
    "connect deep": (b"CONNECT " + b"[" * 4000 + b"\r\n",),
    "connect protocol": (b'CONNECT {"protocol":2}\r\n',),
    "connect negative protocol": (b'CONNECT {"protocol":-1}\r\n',),
    "connect account": (b'CONNECT {"account":"x"}\r\n',),
    "no responders without headers": (b'CONNECT {"no_responders":true}\r\n',),
    "no responders": (CONNECT + b"SUB inbox.* 7\r\nPUB svc inbox.1 0\r\n\r\nPUB svc other 0\r\n\r\n",),
    "no responders despite max": (CONNECT + b"SUB i 1\r\nUNSUB 1 1\r\n" + b"PUB s i 0\r\n\r\n" * 2,),
    "no responders, echo off": (SILENT + b"SUB > 1\r\nPUB a r 0\r\n\r\n",),
    "request to a service": (CONNECT + b"SUB r 1\r\nSUB s 2\r\nPUB s r 2\r\nhi\r\n",),
    "unknown verb": (CONNECT + b"FOO\r\nPING\r\n",),
    "unknown verb without line end": (CONNECT + b"PUBX",),
    "verb cut": (CONNECT + b"PU", b"B a 0\r\n\r", b"\nPI", b"NG\r", b"\n"),
    "leading blank": (CONNECT + b" PING\r\n",),
    "empty line": (CONNECT + b"\r\n",),
    "lower case": (
        CONNECT + b"sub a 1\r\npub a 2\r\nhi\r\nunsub 1\r\nping\r\npong\r\n",
        b"hpub a 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    ),
    "blanks": (CONNECT + b"SUB \t a   \t 1  \r\nPUB   a \t 2 \r\nhi\r\nUNSUB\t1\r\n",),
    "line feed alone": (CONNECT + b"SUB a 1\nPUB a 2\nhi\r\nPING\n",),
    "anything after ping": (CONNECT + b"PINGxyz\r\npong  j\r\n+OKxx\r\n+ok\r\nPING\r\n",),
    "a client's -ERR": (CONNECT + b"-ERR 'x'\r\n",),
    "-ERR without a blank": (CONNECT + b"-ERR\r\nPING\r\n",),
    "a client's INFO": (CONNECT + b"INFO {}\r\nINFO{}\r\nPING\r\n",),
    "a client's bad INFO": (CONNECT + b"INFO x\r\nPING\r\n",),
    "route verbs": (CONNECT + b"RS+ $G a\r\n",),
    "pub one argument": (CONNECT + b"PUB foo\r\n",),
    "pub no argument": (CONNECT + b"PUB \r\nPING\r\n",),
    "pub four arguments": (CONNECT + b"PUB a b c 4\r\n",),
    "pub negative": (CONNECT + b"PUB a -1\r\n",),
    "pub ten digits": (CONNECT + b"PUB a 9999999999\r\n",),
    "pub not a number": (CONNECT + b"PUB a x\r\n",),
    "pub too large": (CONNECT + b"PUB a 1048577\r\nxx",),
    "pub without line end behind": (CONNECT + b"PUB a 2\r\nhixx",),
    "pub with a carriage return only": (CONNECT + b"PUB a 2\r\nhi\rx",),
    "pub payload longer than said": (CONNECT + b"SUB a 1\r\nPUB a 2\r\nhi there\r\nPING\r\n",),
    "pub payload cut": (CONNECT + b"SUB a 1\r\nPUB a 5\r\nhe", b"ll", b"o\r", b"\nPUB a 0\r\n", b"\r\n"),
    "pub to wildcards": (
        CONNECT + b"SUB a.* 1\r\nSUB a.> 2\r\nSUB > 3\r\nPUB a.* 1\r\n1\r\n",
        b"PUB a.> 1\r\n2\r\nPUB * 1\r\n3\r\n",
    ),
    "pub with empty tokens": (
        CONNECT + b"SUB > 1\r\nPUB a..b 0\r\n\r\n",
        b"PUB .a 0\r\n\r\nPUB a. 0\r\n\r\nPUB . 0\r\n\r\n",
    ),
    "pedantic": (
        PEDANTIC + b"SUB > 1\r\nPUB a.* 1\r\n1\r\nPUB a..b 1\r\n2\r\n",
        b"PUB a>b.*c 1\r\n3\r\nHPUB > 1 1\r\n4\r\n",
    ),
    "verbose": (VERBOSE + b"SUB a 1\r\nPUB a 0\r\n\r\nUNSUB 1\r\nUNSUB 1\r\nPING\r\nPONG\r\nSUB a..b 2\r\n",),
    "control line": (CONNECT + b"PUB " + b"a" * 5000 + b" 0\r\n\r\n",),
    "control line without end": (CONNECT + b"PUB " + b"a" * 5000,),
    "control line just fits": (CONNECT + b"SUB " + b"a" * 4094 + b" 1\r\nPING\r\n",),
    "control line just does not": (CONNECT + b"SUB " + b"a" * 4095 + b" 1\r\nPING\r\n",),
    "control line cut, just fits": (CONNECT + b"SUB " + b"a" * 4094, b" 1\r", b"\nPING\r\n"),
    "no control line behind ping": (
        CONNECT + b"PING" + b" " * 9000 + b"\r\n",
        b"PUB" + b" " * 9000 + b"a 0\r\n\r\nPING\r\n",
    ),
    "sub bad subjects": (
        CONNECT + b"SUB a..b 1\r\nSUB >.a 2\r\nSUB .a 3\r\nSUB a. 4\r\n",
        b"SUB a>b.*c 5\r\nPUB a>b.*c 0\r\n\r\n",
    ),
    "sub one argument": (CONNECT + b"SUB a\r\n",),
    "sub four arguments": (CONNECT + b"SUB a b c d\r\n",),
    "sub twice with one sid": (VERBOSE + b"SUB a 1\r\nSUB b 1\r\nPUB b 0\r\n\r\nPUB a 0\r\n\r\n",),
    "sub with a carriage return as a blank": (CONNECT + b"SUB a\rq 1\r\nPUB a 0\r\n\r\n",),
    "unsub unknown": (VERBOSE + b"UNSUB 9\r\nUNSUB 9 3\r\n",),
    "unsub no argument": (CONNECT + b"UNSUB \r\nPING\r\n",),
    "unsub three arguments": (CONNECT + b"UNSUB 1 2 3\r\nPING\r\n",),
    "unsub max": (CONNECT + b"SUB a 1\r\nUNSUB 1 2\r\n" + b"PUB a 0\r\n\r\n" * 3,),
    "unsub max already reached": (CONNECT + b"SUB a 1\r\n" + b"PUB a 0\r\n\r\n" * 2 + b"UNSUB 1 2\r\nPUB a 0\r\n\r\n",),
    "unsub max raised": (CONNECT + b"SUB a 1\r\nUNSUB 1 1\r\nUNSUB 1 2\r\n" + b"PUB a 0\r\n\r\n" * 3,),
    "unsub max not a number": (CONNECT + b"SUB a 1\r\nUNSUB 1 x\r\nPUB a 0\r\n\r\n",),
    "hpub": (CONNECT + b"SUB a 1\r\nHPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\nHPUB a r 12 12\r\nNATS/1.0\r\n\r\n\r\n",),
    "hpub without header bytes": (CONNECT + b"SUB a 1\r\nHPUB a r 0 2\r\nhi\r\n",),
    "hpub with any bytes": (CONNECT + b"SUB a 1\r\nHPUB a 3 5\r\nabcde\r\n",),
    "hpub header above total": (CONNECT + b"HPUB a 5 4\r\nabcd\r\n",),
    "hpub two arguments": (CONNECT + b"HPUB a 5\r\n",),
    "hpub five arguments": (CONNECT + b"HPUB a b c 5 5\r\n",),
    "hpub without headers": (BARE + b"HPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\n",),
    "hpub too large": (CONNECT + b"HPUB a 5 1048577\r\n",),
    "echo off": (SILENT + b"SUB a 1\r\nSUB a q 2\r\nPUB a 0\r\n\r\nPING\r\n",),
    "queue": (CONNECT + b"SUB a q 1\r\nSUB a r 2\r\nSUB a 3\r\nPUB a 0\r\n\r\n",),
    "queue over wildcards": (
        CONNECT + b"SUB a.* q 1\r\nUNSUB 1 1\r\nSUB a.b q 2\r\nUNSUB 2 1\r\n",
        b"PUB a.b 0\r\n\r\n" * 3,
    ),
    "any bytes in subjects": (CONNECT + b"SUB \xff\xfe.* 1\r\nPUB \xff\xfe.\xc3\x28 0\r\n\r\nPUB \xc3\xa9 0\r\n\r\n",),
}  # fmt: skip


def login(user: str, connect: bytes = VERBOSE, password: str = "b") -> bytes:
    return connect.replace(b"{", f'{{"user":"{user}","pass":"{password}",'.encode())


AUTHORIZED_SCRIPTS: dict[str, tuple[bytes, ...]] = {
    "ping first": (b"PING\r\n",),
    "wrong password": (login("a", password="x") + b"PING\r\n",),
    "unknown user": (login("nobody"),),
    "no credentials": (CONNECT,),
    "token": (CONNECT.replace(b"{", b'{"auth_token":"t",'),),
    "junk": (b"X",),
    "junk with a c": (b"CX",),
    "bcrypt": (login("hashed", password="secret") + b"PING\r\n" + b"SUB a 1\r\nPUB a 0\r\n\r\n",),
    "bcrypt, wrong": (login("hashed", password="wrong") + b"PING\r\n",),
    "login twice": (login("a") + b"PING\r\n" + login("a", password="x") + b"PING\r\n",),
    "publish": (
        login("a") + b"SUB foo.* 1\r\nPUB foo.x 0\r\n\r\nPUB foo.bad 0\r\n\r\nPUB bar 0\r\n\r\nPUB foo. 0\r\n\r\n",
        b'PUB f"\\\xffo\xc3\xa9 0\r\n\r\nPUB \xc3\xa9 0\r\n\r\nHPUB bar 1 1\r\nx\r\nPUB foo.* 0\r\n\r\n',
    ),
    "publish, pedantic": (login("a", PEDANTIC) + b"PUB foo..a 0\r\n\r\n",),
    "publish denied to a request": (login("a") + b"SUB _INBOX.a 1\r\nPUB bar _INBOX.a 0\r\n\r\n",),
    "subscribe": (
        login("a") + b"SUB foo.x 1\r\nSUB foo.* 2\r\nSUB foo.bad 3\r\nSUB bar 4\r\n",
        b"SUB foo..a 5\r\nSUB > 6\r\n",
    ),
    "subscribe with queues": (
        login("a") + b"SUB q.1 1\r\nSUB q.1 workers 2\r\nSUB q.1 others 3\r\n",
        b"SUB q.1 v.one 4\r\nSUB q.1 v.one.two 5\r\n",
        b"SUB foo.x workers 6\r\nSUB d one 7\r\nSUB d two 8\r\nSUB d 9\r\n",
    ),
    "subscribe wide, receive less": (
        login("w") + b"SUB w.> 1\r\nSUB w.secret.> 2\r\nSUB w.secret.* 3\r\nSUB w.*.x 4\r\nSUB w.secret.x 5\r\n",
        b"PUB w.secret.x 1\r\n1\r\nPUB w.open.x 1\r\n2\r\nPUB w.secret 1\r\n3\r\n",
    ),
    "queue only": (login("q") + b"SUB foo 1\r\nSUB foo v1 2\r\nSUB foo v2 3\r\nPUB foo 0\r\n\r\n",),
    "one allowed publish": (login("p") + b"SUB foo 1\r\nPUB foo 0\r\n\r\nPUB bar 0\r\n\r\nPUB foo reply 0\r\n\r\n",),
    "responses": (
        login("r") + b"SUB service 1\r\nPUB answer 0\r\n\r\nPUB service answer 0\r\n\r\n",
        b"PUB answer 0\r\n\r\n" * 3,
    ),
    "subscriptions": (login("w") + b"".join(b"SUB w.%d %d\r\n" % (n, n) for n in range(6)) + b"SUB w.1 1\r\n",),
}  # fmt: skip

USERS = (
    UserEntry("a", "b", None, ("foo.*", "é"), ("foo.bad",), ("foo.*", "q.* workers", "q.* v.*", "_INBOX.>", "d"),
              ("foo.bad", "d two")),
    UserEntry("w", "b", None, None, (), ("w.>",), ("w.secret.>",)),
    UserEntry("q", "b", None, None, (), ("foo v1",)),
    UserEntry("p", "b", None, ("foo",)),
    UserEntry("r", "b", None, ("service",), (), None, (), Responses(2, 60_000)),
    UserEntry("hashed", BCRYPT_OF_SECRET),
)  # fmt: skip

CONFIGURATION = (  # the same for nats-server
    """
    max_subscriptions: 5
    authorization { users = [
      {user: a, password: b, permissions: {
        publish: {allow: ["foo.*", "é"], deny: ["foo.bad"]},
        subscribe: {allow: ["foo.*", "q.* workers", "q.* v.*", "_INBOX.>", "d"], deny: ["foo.bad", "d two"]}}}
      {user: w, password: b, permissions: {subscribe: {allow: ["w.>"], deny: ["w.secret.>"]}}}
      {user: q, password: b, permissions: {subscribe: {allow: ["foo v1"]}}}
      {user: p, password: b, permissions: {publish: foo}}
      {user: r, password: b, permissions: {publish: service, allow_responses: {max: 2, expires: "60s"}}}
      {user: hashed, password: "HASH"}
    ] }
    """.replace("HASH", BCRYPT_OF_SECRET)
)
