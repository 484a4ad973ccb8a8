"""What the trace says: the same scripts to the real nats-server, and to our client port with the traced engine.

What is made equal before comparing: numbers of connections, the order in which several subscriptions get one message or
end, and 'Invalid Publish Subject', which nats-server says twice when a read ends between a line and its payload.
"""

import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gateway import PlaneClient, make_plane, serve_in_thread
from support.natsraw import NATS_SERVER, started_port
from support.scripts import AUTHORIZED_SCRIPTS, CONFIGURATION, SCRIPTS, USERS
from test_differential import scripts

from gateway.core.tracing import Trace, traced, without_secrets

WAIT_S_MAX = 60.0
_ENDS = re.compile(r" <-> \[DELSUB ")
_MESSAGE = re.compile(r" ->> \[H?MSG ")
_PAYLOAD = re.compile(r" ->> MSG_PAYLOAD: ")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
BY_CHANCE = {"queue over wildcards"}  # which member of the group gets what
INVALID_PUBLISH = " ->> [-ERR Invalid Publish Subject]"


def _escaped(control: re.Match[str]) -> str:
    return f"\\x{ord(control[0]):02x}"


class Theirs:
    """The real nats-server, tracing into a file."""

    def __init__(self, port: int, file: Path) -> None:
        self.port, self._file = port, file

    def lines(self) -> list[str]:
        found = self._file.read_bytes().decode("utf-8", "backslashreplace").split("\n")[:-1]
        return [_CONTROL.sub(_escaped, line.partition("[TRC] ")[2]) for line in found if "[TRC] " in line]


class Ours:
    """Our client port, with the traced engine."""

    def __init__(self, port: int, said: list[str]) -> None:
        self.port, self._said = port, said

    def lines(self) -> list[str]:
        return list(self._said)


class Pair(NamedTuple):
    theirs: Theirs
    ours: Ours


@contextmanager
def pair(configuration: str = "", trace: tuple[int, bool] = (0, False), **options: object) -> Iterator[Pair]:
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder, "server.conf"), Path(folder, "log")
        more = f"\nmax_traced_msg_len: {trace[0]}\n" + "trace_headers: true\n" * trace[1]
        file.write_text(configuration + more)
        command = [NATS_SERVER, "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", folder, "-c", file, "-V", "-l", log]
        process = subprocess.Popen(command)
        try:
            engine = traced(Trace(said.append, *trace))
            with serve_in_thread(engine=engine, **options) as port:
                yield Pair(Theirs(started_port(Path(folder), process), log), Ours(port, said))
        finally:
            process.terminate()
            process.wait(WAIT_S_MAX)


@pytest.fixture(scope="module")
def plain() -> Iterator[Pair]:
    with pair() as both:
        yield both


@pytest.fixture(scope="module")
def authorized() -> Iterator[Pair]:
    with pair(CONFIGURATION, users=USERS, max_subscriptions=5) as both:
        yield both


@pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - BY_CHANCE))
def test_traces_as_nats_server_does(plain: Pair, name: str) -> None:
    assert_same(plain, SCRIPTS[name])


@pytest.mark.parametrize("name", AUTHORIZED_SCRIPTS)
def test_traces_what_is_authorized_as_nats_server_does(authorized: Pair, name: str) -> None:
    assert_same(authorized, AUTHORIZED_SCRIPTS[name])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=scripts())
def test_traces_generated_scripts_as_nats_server_does(plain: Pair, script: tuple[bytes, ...]) -> None:
    assert_same(plain, script)


SECRETS = (
    b'{"user":"a","pass":"p"}',
    b'{"pass" : "p q" , "passport":"x","auth_token":"t","auth_token_x":1}',
    b'{"nkey":"U","sig":"s","proxy_sig":"p","my_sig":"kept","design":"kept"}',
    b'{"user":"pass","name":"a,pass=b}","jwt":"kept"}',
    b'{"pass":"","auth_token":null,"passpass":{"pass":"x"},"sig": "with \\" quote"}',
    b"pass: x\tsig=y;nkey=z pass:",
    b'{"name":"\xff\xc3\xa9","lang":"l","version":"1","user":""u"}',
)


@pytest.mark.parametrize("argument", SECRETS)
def test_keeps_the_secrets_that_nats_server_keeps(plain: Pair, argument: bytes) -> None:
    assert_same(plain, (b"CONNECT " + argument + b"\r\nPING\r\n",))


words = st.sampled_from(
    [b'"', b"pass", b"auth_token", b"sig", b"nkey", b"proxy_", b"x", b":", b"=", b" ", b"\t", b",", b"}", b"_", b"{"]
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.lists(words, min_size=1, max_size=12).map(b"".join).filter(bytes.strip), min_size=1))
def test_keeps_generated_secrets_as_nats_server_does(plain: Pair, lines: list[bytes]) -> None:
    """Each line is a CONNECT of its own, which ends its connection."""
    for line in lines[:3]:
        assert_same(plain, (b"CONNECT{" + line + b"\r\n",))


CARRYING = (
    b'CONNECT {"verbose":false,"headers":true,"name":"n"}\r\nSUB a 1\r\nSUB b.* q 2\r\nUNSUB 1 2\r\n',
    b'PUB a 26\r\nabcdefghijklmnopqrstuvwxyz\r\nPUB b.c a 5\r\n\xff"\x00\xc3\xa9\r\n',
    b"HPUB a 22 25\r\nNATS/1.0\r\nKey: val\r\n\r\nabc\r\nHPUB b.c r 12 12\r\nNATS/1.0\r\n\r\n\r\nPUB a 1\r\nx\r\n",
    b"PUB b.c 10\r\n0123456789\r\nPUB b.c 11\r\n0123456789a\r\nPUB b.c 0\r\n\r\n",
)


@pytest.mark.parametrize("trace", [(0, False), (10, False), (0, True), (10, True), (1, False)])
def test_shows_as_much_of_a_message_as_nats_server_does(trace: tuple[int, bool]) -> None:
    with pair(trace=trace) as both:
        assert_same(both, CARRYING)


# -- by itself --------------------------------------------------------------------------------------------------------


def test_a_session_from_its_beginning_to_its_end() -> None:
    said: list[str] = []
    plane = make_plane(engine=traced(Trace(said.append)))
    client = PlaneClient(plane, b'CONNECT {"verbose":true,"user":"ada","pass":"p","lang":"py","version":"2"}\r\n')
    client.send(b"SUB a 1\r\nPUB  a  2\r\nhi\r\nPING\r\n")
    plane.disconnect(client.session)

    first = "10.0.0.1:50000 - cid:1"
    name = f'{first} - "v2:py" - "$G/user:ada"'
    connect = '{"verbose":true,"user":"ada","pass":"[REDACTED]","lang":"py","version":"2"}'
    assert said == [
        f"{first} - <<- [CONNECT {connect}]",
        f"{name} - ->> [OK]",
        f"{name} - <<- [SUB a 1]",
        f"{name} - ->> [OK]",
        f"{name} - <<- [PUB a  2]",
        f'{name} - <<- MSG_PAYLOAD: ["hi"]',
        f"{name} - ->> [OK]",
        f"{name} - ->> [MSG a 1 2]",
        f'{name} - ->> MSG_PAYLOAD: ["hi"]',
        f"{name} - <<- [PING]",
        f"{name} - ->> [PONG]",
        f"{name} - <-> [DELSUB 1]",
    ]


def test_a_subscription_ends_after_its_last_message() -> None:
    said: list[str] = []
    client = PlaneClient(make_plane(engine=traced(Trace(said.append))), b'CONNECT {"verbose":true}\r\n')
    client.send(b"SUB a q 1\r\nUNSUB 1 1\r\n")
    said.clear()
    client.send(b"PUB a 1\r\nx\r\nSUB b 2\r\nUNSUB 2\r\n")
    assert [line.partition("cid:1 - ")[2] for line in said] == [
        "<<- [PUB a 1]",
        '<<- MSG_PAYLOAD: ["x"]',
        "->> [OK]",
        "->> [MSG a 1 1]",
        '->> MSG_PAYLOAD: ["x"]',
        "<-> [DELSUB 1]",
        "<<- [SUB b 2]",
        "->> [OK]",
        "<<- [UNSUB 2]",
        "->> [OK]",
        "<-> [DELSUB 2]",
    ]


def test_several_messages_in_one_piece_are_traced_one_by_one() -> None:
    said: list[str] = []
    plane = make_plane(engine=traced(Trace(said.append)))
    client = PlaneClient(plane, b'CONNECT {"verbose":false}\r\nSUB a 1\r\n')
    said.clear()

    frames = b"MSG a 1 1\r\nx\r\nHMSG a 1 12 14\r\nNATS/1.0\r\n\r\n\r\n\r\nMSG a 1 0\r\n\r\n"
    plane.hand_over(client.session.subscriptions[b"1"], frames, 3, 15)

    assert client.take() == frames
    assert [line.removeprefix("10.0.0.1:50000 - cid:1 - ") for line in said] == [
        "->> [MSG a 1 1]",
        '->> MSG_PAYLOAD: ["x"]',
        "->> [HMSG a 1 12 14]",
        '->> MSG_PAYLOAD: ["NATS/1.0\\r\\n\\r\\n\\r\\n"]',
        "->> [MSG a 1 0]",
    ]


def test_a_client_cannot_write_lines_of_its_own() -> None:
    said: list[str] = []
    client = PlaneClient(make_plane(engine=traced(Trace(said.append))), b"")
    client.send(b"CONNECT {}\r[1] [INF] forged \x1b[31m \xff\n")
    assert said[0].endswith(r"<<- [CONNECT {}\x0d[1] [INF] forged \x1b[31m \xff]")


def test_peers_are_not_traced() -> None:
    said: list[str] = []
    plane = make_plane(engine=traced(Trace(said.append)), id_step=2)
    peer = plane.connect_peer("w2", 0, near=True)
    plane.receive(peer, b'CONNECT {"version":4,"name":"w2"}\r\nRS+ $G a\r\n', 0)
    plane.publish("a", "", b"", b"x")
    assert peer.take().endswith(b"RMSG $G a 1\r\nx\r\n")
    plane.disconnect(peer)
    assert said == []


def test_names_an_address_of_ipv6_as_go_does() -> None:
    said: list[str] = []
    plane = make_plane(engine=traced(Trace(said.append)))
    session = plane.connect("::1", 5, 0)
    plane.receive(session, b"PING\r\n", 0)
    assert said == ["[::1]:5 - cid:1 - <<- [PING]", "[::1]:5 - cid:1 - ->> [PONG]"]


def test_what_proves_an_identity_is_replaced() -> None:
    assert without_secrets(b'{"pass":"a","sig":"b"}') == b'{"pass":"[REDACTED]","sig":"[REDACTED]"}'


# -- comparing --------------------------------------------------------------------------------------------------------


def assert_same(both: Pair, script: tuple[bytes, ...]) -> None:
    traces = [Trail(server, script) for server in both]
    deadline = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < deadline:  # what is said before the end of the connection is there; DELSUBs may follow
        theirs, ours = (trace.lines() for trace in traces)
        if ours == theirs:
            break
        time.sleep(0.01)
    assert ours == theirs


class Trail:
    """What `server` says of a connection that is made here; its number and port may have been another's before."""

    def __init__(self, server: Theirs | Ours, script: tuple[bytes, ...]) -> None:
        self._server, self._before = server, len(server.lines())
        self._own_port = talk(server.port, script)

    def lines(self) -> list[str]:
        return normalised(self._server.lines()[self._before :], self._own_port)


def talk(port: int, script: tuple[bytes, ...]) -> int:
    """Says it and hears all; the port that it was said from."""
    with socket.create_connection(("127.0.0.1", port), WAIT_S_MAX) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        own_port: int = connection.getsockname()[1]
        try:
            connection.recv(65_536)
            for chunk in script:
                connection.sendall(chunk)
                time.sleep(0.0005)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        except OSError:
            pass  # the server has closed before it heard all
    return own_port


def normalised(lines: list[str], own_port: int) -> list[str]:
    own = [re.sub(r"^\S+ - cid:\d+", "CLIENT", line) for line in lines if line.startswith(f"127.0.0.1:{own_port} - ")]
    units: list[str] = []
    for line in own:
        if _PAYLOAD.search(line) and units:
            units[-1] += "\n" + line
        elif not (INVALID_PUBLISH in line and units and INVALID_PUBLISH in units[-1]):
            units.append(line)
    ordered: list[str] = []
    run: list[str] = []
    for unit in units:
        if run and not any(kind.search(unit) and kind.search(run[0]) for kind in (_MESSAGE, _ENDS)):
            ordered += sorted(run)
            run = []
        run.append(unit)
    return ordered + sorted(run)
