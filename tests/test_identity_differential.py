"""Who is let in, as whom, and into which account: the same conversations with the real nats-server and with ours.

A known difference is left out: a second CONNECT of somebody who was let in as `no_auth_user`, to whom nats-server has
given that user's own credentials: it adds to those, and ours to what the client has said.
"""

import base64
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import nkeys
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gateway import ENGINES, serve_in_thread
from support.natsraw import nats_server

from gateway.core.identity import Responses, UserEntry

WAIT_S_MAX = 60.0
PAIR = nkeys.from_seed(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER))
OTHER = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))
NKEY, OTHERS = PAIR.public_key.decode(), OTHER.public_key.decode()
HASH = "$2a$04$W20lqxmqQwz91bOnW2PF9.eZfc4k7bvEDiEbUUqNmHpi.8O4AjEJS"  # of nothing that is tried here

Script = Callable[[dict[str, Any]], bytes]


class Servers(NamedTuple):
    """The ports of nats-server and of ours."""

    theirs: int
    ours: int


def connect(**fields: object) -> Script:
    line = b"CONNECT " + json.dumps({"verbose": False, "pedantic": False, **fields}).encode() + b"\r\nPING\r\n"
    return lambda info: line


def signed(
    pair: nkeys.KeyPair = PAIR, nkey: str = NKEY, *, alphabet: str = "url", nonce: str = "", **fields: object
) -> Script:
    def script(info: dict[str, Any]) -> bytes:
        signature = pair.sign((nonce or info["nonce"]).encode())
        if alphabet == "url":
            text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
        else:
            text = base64.b64encode(signature).decode()
        return connect(nkey=nkey, sig=text, **fields)(info)

    return script


def raw(*lines: bytes) -> Script:
    return lambda info: b"".join(lines)


def also(*scripts: Script) -> Script:
    return lambda info: b"".join(script(info) for script in scripts)


# -- the servers ------------------------------------------------------------------------------------------------------

GUEST, BOB = UserEntry("guest", "x"), UserEntry("bob", "y")
MESHES: dict[str, tuple[str, dict[str, Any]]] = {
    "nkeys": (
        f"authorization {{ users = [ {{nkey: {NKEY}, permissions: {{publish: a}}}}, {{user: bob, password: y}} ] }}",
        {"users": (UserEntry(nkey=NKEY, publish_allow=("a",)), BOB)},
    ),
    "guest": (
        "no_auth_user: guest\nauthorization { users = [ {user: guest, password: x, permissions: {publish: a}}, "
        f"{{user: bob, password: y}}, {{user: hashed, password: '{HASH}'}} ] }}",
        {
            "users": (UserEntry("guest", "x", publish_allow=("a",)), BOB, UserEntry("hashed", HASH)),
            "no_auth_user": "guest",
        },
    ),
    "guest without password": (
        "no_auth_user: guest\nauthorization { users = [ {user: guest}, {user: bob, password: y} ] }",
        {"users": (UserEntry("guest"), BOB), "no_auth_user": "guest"},
    ),
    "guest with a hash": (
        f"no_auth_user: guest\nauthorization {{ users = [ {{user: guest, password: '{HASH}'}}, "
        "{user: bob, password: y} ] }",
        {"users": (UserEntry("guest", HASH), BOB), "no_auth_user": "guest"},
    ),
    "nkey guest": (
        f"no_auth_user: {NKEY}\nauthorization {{ users = [ {{nkey: {NKEY}}}, {{user: bob, password: y}} ] }}",
        {"users": (UserEntry(nkey=NKEY), BOB), "no_auth_user": NKEY},
    ),
    "token": ("authorization { token: t }", {"users": (UserEntry(token="t"),)}),
    "nobody": ("", {}),
    "responses": (
        "authorization { users = [ {user: bob, password: y, permissions: {allow_responses: true}} ] }",
        {"users": (UserEntry("bob", "y", responses=Responses()),)},
    ),
}


@pytest.fixture(scope="module")
def meshes() -> Iterator[Callable[[str], Servers]]:
    """Both servers for one of `MESHES`, started when they are first asked for."""
    running: dict[str, Servers] = {}
    with ExitStack() as stack:

        def of(name: str) -> Servers:
            if name not in running:
                configuration, options = MESHES[name]
                theirs = stack.enter_context(nats_server(configuration))
                running[name] = Servers(theirs, stack.enter_context(serve_in_thread(**options)))
            return running[name]

        yield of


PUBLISH = raw(b"PUB a 1\r\nx\r\nPUB b 1\r\nx\r\nPING\r\n")
SCRIPTS: dict[str, Script] = {
    "nothing but connect": connect(),
    "ping first": raw(b"PING\r\n"),
    "subscribe first": raw(b"SUB a 1\r\nPUB a 1\r\nx\r\nPUB b 1\r\ny\r\nPING\r\n"),
    "info first": raw(b"INFO {}\r\nPING\r\n"),
    "junk first": raw(b"junk\r\n"),
    "ping, then connect": also(raw(b"PING\r\n"), connect(protocol=1), PUBLISH),
    "ping, then connect as another": also(raw(b"PING\r\n"), connect(user="bob", **{"pass": "y"}), PUBLISH),
    "ping, then connect as nobody": also(raw(b"PING\r\n"), connect(user="bob", **{"pass": "x"}), PUBLISH),
    "info after pong": also(connect(protocol=1), PUBLISH),
    "password": also(connect(user="bob", **{"pass": "y"}), PUBLISH),
    "wrong password": connect(user="bob", **{"pass": "x"}),
    "no password": connect(user="bob"),
    "unknown user": connect(user="eve", **{"pass": "y"}),
    "no user": connect(**{"pass": "y"}),
    "empty texts": connect(user="", auth_token="", nkey="", sig="", jwt="", **{"pass": ""}),
    "guest, by name": connect(user="guest", **{"pass": "x"}),
    "guest, without password": connect(user="guest"),
    "token": connect(auth_token="t"),
    "token beside a user": connect(auth_token="t", user="bob"),
    "token as a password": connect(user="bob", **{"pass": "t"}),
    "wrong token": connect(auth_token="T"),
    "jwt": connect(jwt="eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.e30.x", sig="x"),
    "jwt of another type": connect(jwt=5),
    "nkey of another type": connect(nkey=[1]),
    "tls_required of another type": connect(tls_required="yes"),
    "nkey without signature": connect(nkey=NKEY),
    "nkey with junk for a signature": connect(nkey=NKEY, sig="?"),
    "unknown nkey": connect(nkey=OTHERS, sig="x"),
    "unknown nkey beside a password": connect(nkey=OTHERS, user="bob", **{"pass": "y"}),
    "an account's name": connect(user="bob", account="x", **{"pass": "y"}),
    "a new account": connect(user="bob", new_account=True, **{"pass": "y"}),
    "bcrypt, wrong": connect(user="hashed", **{"pass": "wrong"}),
    "bcrypt, the hash itself": connect(user="hashed", **{"pass": HASH}),
}
SIGNED: dict[str, Script] = {
    "signed": also(signed(), PUBLISH),
    "signed in the plain alphabet": also(signed(alphabet="plain"), PUBLISH),
    "signed by another": signed(OTHER),
    "signed by one who is not known": signed(OTHER, OTHERS),
    "signed, another nonce": signed(nonce="AAAAAAAAAAAAAAA"),
    "signed, and a password": signed(user="bob", **{"pass": "y"}),
    "signed, and a wrong password": signed(user="bob", **{"pass": "x"}),
    "signed, then a password": also(signed(), connect(user="bob", nkey="", sig="", **{"pass": "y"}), PUBLISH),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("mesh", MESHES)
def test_clients_are_let_in_as_nats_server_lets_them_in(
    meshes: Callable[[str], Servers], mesh: str, script: str
) -> None:
    assert_same(meshes(mesh), SCRIPTS[script])


@pytest.mark.parametrize("script", SIGNED)
@pytest.mark.parametrize("mesh", ["nkeys", "nkey guest"])
def test_signatures_count_as_for_nats_server(meshes: Callable[[str], Servers], mesh: str, script: str) -> None:
    assert_same(meshes(mesh), SIGNED[script])


@pytest.mark.parametrize("mesh", MESHES)
def test_the_first_info_has_a_nonce_and_asks_for_credentials_as_nats_server_does(
    meshes: Callable[[str], Servers], mesh: str
) -> None:
    infos = []
    for port in meshes(mesh):
        with Client(port) as client, Client(port) as other:
            infos.append({name: client.info.get(name) for name in ("auth_required", "nonce")})
            if client.info.get("nonce"):
                assert (
                    client.info["nonce"] != other.info["nonce"] or port == meshes(mesh).ours
                )  # ours is fixed in tests
                infos[-1]["nonce"] = len(client.info["nonce"])
    theirs, ours = infos
    assert ours == theirs


names = st.sampled_from(["", "guest", "bob", "hashed", "eve"])
secrets = st.sampled_from(["", "x", "y", "t", HASH])
presented = st.fixed_dictionaries(
    {},
    optional={
        "user": names,
        "pass": secrets,
        "auth_token": secrets,
        "nkey": st.sampled_from(["", NKEY, OTHERS, "guest", "U"]),
        "sig": st.sampled_from(["", "x", "A" * 86]),
        "jwt": st.sampled_from(["", "x"]),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mesh=st.sampled_from(sorted(MESHES)), fields=presented)
def test_whatever_is_presented_counts_as_for_nats_server(
    meshes: Callable[[str], Servers], mesh: str, fields: dict[str, str]
) -> None:
    assert_same(meshes(mesh), also(connect(protocol=1, **fields), PUBLISH))


# -- accounts ---------------------------------------------------------------------------------------------------------

ACCOUNTS = f"""
    no_auth_user: nobody
    accounts {{
      A {{ users = [
        {{user: a, password: x}}
        {{user: only, password: x, permissions: {{publish: s, subscribe: "s"}}}}
      ] }}
      B {{ users = [ {{user: b, password: x}}, {{nkey: {NKEY}}}, {{user: nobody}} ] }}
      EMPTY {{ }}
    }}
    authorization {{ users = [ {{user: g, password: x}} ] }}
"""
MEMBERS = (
    UserEntry("a", "x", account="A"),
    UserEntry("only", "x", publish_allow=("s",), subscribe_allow=("s",), account="A"),
    UserEntry("b", "x", account="B"),
    UserEntry(nkey=NKEY, account="B"),
    UserEntry("nobody", account="B"),
    UserEntry("g", "x"),
)


@pytest.fixture(scope="module", params=ENGINES, ids=lambda engine: engine.name)
def accounts(request: pytest.FixtureRequest) -> Iterator[Servers]:
    options = {"engine": request.param, "users": MEMBERS, "accounts": ("A", "B", "EMPTY"), "no_auth_user": "nobody"}
    with nats_server(ACCOUNTS) as theirs, serve_in_thread(**options) as ours:
        yield Servers(theirs, ours)


def user(name: str) -> Script:
    return connect(user=name, headers=True, no_responders=True, **{"pass": "x"})


LOGINS = {"a": user("a"), "only": user("only"), "b": user("b"), "nkey": signed(), "nobody": connect(), "g": user("g")}


def test_what_is_published_in_an_account_reaches_all_of_it_and_nobody_else(accounts: Servers) -> None:
    heard = [in_turn(port, LOGINS, raw(b"SUB s 1\r\nSUB > 2\r\nSUB s q 3\r\n"), _publish) for port in accounts]
    theirs, ours = heard
    assert {name: sorted(frames(text)) for name, text in ours.items()} == {
        name: sorted(frames(text)) for name, text in theirs.items()
    }
    assert b"from-b" in ours["nkey"]
    assert b"from-b" not in ours["a"] + ours["g"]


def _publish(name: str) -> bytes:
    """Queue groups have one member here: which of several gets a message is for each server to choose."""
    payload = b"from-" + name.encode()
    return b"PUB s %d\r\n%b\r\nPUB t %d\r\n%b\r\n" % (len(payload), payload, len(payload), payload)


def test_a_request_is_answered_from_the_same_account_alone(accounts: Servers) -> None:
    heard = []
    for port in accounts:
        with Client(port) as service, Client(port) as near, Client(port) as far:
            service.say(LOGINS["a"], raw(b"SUB service 1\r\n"))
            near.say(LOGINS["a"], raw(b"SUB inbox 1\r\nPUB service inbox 1\r\nx\r\n"))
            far.say(LOGINS["b"], raw(b"SUB inbox 1\r\nPUB service inbox 1\r\nx\r\n"))
            service.say(raw(b"PUB inbox 1\r\ny\r\n"))
            heard.append([near.all(), far.all(), service.all()])
    assert heard[0] == heard[1]
    assert b"503" in heard[1][1]
    assert b"MSG inbox 1 1\r\ny" in heard[1][0]


def test_a_second_connect_moves_into_another_account_and_takes_nothing_along(accounts: Servers) -> None:
    heard = []
    for port in accounts:
        with Client(port) as mover, Client(port) as sender:
            mover.say(LOGINS["a"], raw(b"SUB s 1\r\n"))
            mover.say(LOGINS["b"], raw(b"SUB s 2\r\n"))
            sender.say(LOGINS["a"], raw(b"PUB s 1\r\na\r\n"))
            sender.say(LOGINS["b"], raw(b"PUB s 1\r\nb\r\n"))
            heard.append(mover.all())
    assert heard[0] == heard[1]
    assert b"MSG s 2 1\r\nb\r\n" in heard[1]
    assert b"\r\na\r\n" not in heard[1]


@pytest.mark.parametrize("name", [*LOGINS, "eve"])
def test_the_info_after_the_first_pong_names_the_account(accounts: Servers, name: str) -> None:
    told = []
    for port in accounts:
        with Client(port) as client:
            client.say(LOGINS.get(name, user("eve")), raw(b'CONNECT {"protocol":1}\r\n'))
            told.append(re.findall(rb'"remote_account":"[^"]*"|Authorization Violation', client.all()))
    assert told[0] == told[1]


# -- conversations ----------------------------------------------------------------------------------------------------


class Client:
    """A connection, as a context; INFO is read already."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), WAIT_S_MAX)
        self._received = bytearray()
        while b"\n" not in self._received:
            self._receive()
        line, _, rest = bytes(self._received).partition(b"\n")
        self.info: dict[str, Any] = json.loads(line[5:])
        self._received[:] = rest
        self._seen = 0

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *problem: object) -> None:
        self._socket.close()

    def say(self, *scripts: Script) -> bytes:
        """Sends, and what came until all of it has been acted on, a last PONG included."""
        before = len(self._received)
        try:
            for script in scripts:
                self._socket.sendall(script(self.info))
            self._socket.sendall(b"PING\r\n")
        except OSError:
            pass  # closed; what came before is read below
        pongs = self._received.count(b"PONG") + 1 + sum(script(self.info).count(b"PING") for script in scripts)
        while self._received.count(b"PONG") < pongs and self._receive():
            pass
        return bytes(self._received[before:])

    def all(self, *scripts: Script) -> bytes:
        """Says these last things; all that came and comes."""
        try:
            for script in (*scripts, raw(b"PING\r\n")):
                self._socket.sendall(script(self.info))
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed already
        while self._receive():
            pass
        return bytes(self._received)

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(65_536)
        except ConnectionError:
            data = b""  # closed with something of ours unread
        self._received += data
        return bool(data)


def assert_same(servers: Servers, script: Script) -> None:
    answers = []
    for port in servers:
        with Client(port) as client:
            answers.append(normalised(client.all(script)))
    theirs, ours = answers
    assert ours == theirs


def normalised(answer: bytes) -> bytes:
    def comparable(match: re.Match[bytes]) -> bytes:
        info = json.loads(match[1])
        shown = ("auth_required", "nonce", "connect_info", "remote_account")
        return b"INFO " + json.dumps({name: info.get(name) for name in shown}).encode() + b"\r\n"

    return re.sub(rb"INFO (\{.*?\}) \r\n", comparable, answer)


def in_turn(port: int, logins: dict[str, Script], first: Script, then: Callable[[str], bytes]) -> dict[str, bytes]:
    """All log in and say `first`, then each says its own in turn; what each has heard."""
    with ExitStack() as stack:
        clients = {name: stack.enter_context(Client(port)) for name in logins}
        for name, client in clients.items():
            client.say(logins[name], first)
        for name, client in clients.items():
            client.say(raw(then(name)))
        return {name: client.all() for name, client in clients.items()}


def frames(text: bytes) -> list[bytes]:
    """The frames but for those of queue groups (sid 3): which member gets a message is for each server to choose."""
    found = re.findall(rb"MSG \S+ [^3] \d+\r\n[^\r]*\r\n|-ERR [^\r]*\r\n", text)
    return [*found, b"+" * text.count(b"PONG")]
