"""The gateway called by the name `nats-server`: as a process, and its command line beside the real one's."""

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import nats
import pytest
from support import natsconf
from support.certificates import Authority
from support.natsraw import RawClient
from support.natsserver import BINARY
from support.processes import free_ports, settle, until

from mesh import nats_config_cluster, nats_config_identity, nats_config_options, nats_server, nats_server_flags
from mesh.nats_config_reader import Tree
from mesh.nats_config_values import Findings, Handlers, each_key

_CONNECTION = re.compile(r"127\.0\.0\.1:\d+ - cid:\d+")
GATEWAY = Path(sys.executable).parent / "gateway"
_LINE = re.compile(r"\[\d+\] \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} \[(INF|WRN|ERR|DBG|FTL|TRC)\] .+")


class _Server:
    def __init__(self, folder: Path, *arguments: str, program: Path = GATEWAY) -> None:
        link = folder / "nats-server"
        link.unlink(missing_ok=True)
        link.symlink_to(program)
        self._stderr = folder / "stderr"
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen([str(link), *arguments], cwd=folder, stderr=stderr)

    @property
    def lines(self) -> list[str]:
        return self._stderr.read_text().splitlines()

    def has(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    async def ready(self) -> None:
        await until(lambda: self.has("Server is ready") or self.process.poll() is not None, "it is ready")
        assert self.process.poll() is None, self.lines

    @property
    def traced(self) -> list[str]:
        """What the trace says of clients, whichever they are; not the server's PING, two seconds after CONNECT."""
        found = (_CONNECTION.sub("CLIENT", line) for line in self.lines if "[TRC] 127.0.0.1" in line)
        return [line.partition("[TRC] ")[2] for line in found if not line.endswith(("->> [PING]", "<<- [PONG]"))]

    def address(self, of: str = "Listening for client connections on ") -> str:
        (line,) = (line for line in self.lines if of in line)
        return line.partition(of)[2]

    async def ended(self) -> int:
        await until(lambda: self.process.poll() is not None, "it ends")
        return self.process.wait()


@contextmanager
def _running(folder: Path, *arguments: str, program: Path = GATEWAY) -> Iterator[_Server]:
    server = _Server(folder, *arguments, program=program)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


async def _says_without_credentials(address: str) -> bytes:
    reader, writer = await asyncio.open_connection(*address.split(":"))
    try:
        await reader.readline()  # INFO
        writer.write(b"CONNECT {}\r\nPING\r\n")
        return await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()


# -- a process --------------------------------------------------------------------------------------------------------


async def test_it_runs_a_nats_servers_file_and_is_sent_signals(tmp_path: Path) -> None:
    (tmp_path / "nats.conf").write_text(
        'port: 1, host: 127.0.0.1, http: "127.0.0.1:-1"\nauthorization { user: a, pass: b }\n'
        'pid_file: "n.pid", ports_file_dir: "."\nserver_name: of-the-file'
    )
    with _running(tmp_path, "-c", "nats.conf", "-p", "-1", "-name", "n1", "-D") as server:
        await server.ready()

        connection = await nats.connect(f"nats://a:b@{server.address()}")
        subscription = await connection.subscribe("x")
        await connection.publish("x", b"hello")
        assert (await subscription.next_msg(60)).data == b"hello"
        await connection.close()
        assert await _says_without_credentials(server.address()) == b"-ERR 'Authorization Violation'\r\n"

        pid = server.process.pid
        ports = json.loads((tmp_path / f"nats-server_{pid}.ports").read_text())
        assert ports == {
            "nats": [f"nats://{server.address()}"],
            "monitoring": [f"http://{server.address('Starting http monitor on ')}"],
        }
        assert (tmp_path / "n.pid").read_text() == str(pid)
        assert all(_LINE.fullmatch(line) for line in server.lines), server.lines
        assert server.has("[INF]   Name:     n1")
        assert server.has("[WRN] Plaintext passwords detected, use nkeys or bcrypt")

        assert nats_server.main(["--signal", f"quit={tmp_path}/n.pid"]) == 0
        assert await server.ended() == 0
        assert server.has('[INF] Trapped "interrupt" signal')
        assert server.lines[-1].endswith("[INF] Server Exiting..")
        assert not (tmp_path / f"nats-server_{pid}.ports").exists()


async def test_its_log_goes_to_a_file_that_can_be_opened_again(tmp_path: Path) -> None:
    with _running(tmp_path, "-a", "127.0.0.1", "-p", "-1", "-l", "n.log", "-T=false") as server:
        log = tmp_path / "n.log"
        await until(lambda: log.exists() and "Server is ready" in log.read_text(), "it is ready")
        log.rename(tmp_path / "old.log")

        assert nats_server.main([f"-sl=reopen={server.process.pid}"]) == 0

        await until(lambda: log.exists() and "File log re-opened" in log.read_text(), "the log is open again")
        assert log.read_text() == f"[{server.process.pid}] [INF] File log re-opened\n"
        server.process.send_signal(signal.SIGHUP)
        no_file = (
            "[ERR] Failed to reload server configuration: can only reload config when a file is provided using -c or"
        )
        await until(lambda: no_file in log.read_text(), "it says that there is no file to take anew")
        assert server.lines == []


_BEFORE = """
max_payload: 1000
authorization { users: [
    {user: a, password: a}, {user: b, password: b}, {user: c, password: c}, {user: d, password: d}
] }
"""
_AFTER = """
max_payload: 2000, ping_interval: "1m30s", log_file: "n.log", pid_file: "n.pid", ports_file_dir: "."
authorization { timeout: 5, users: [
    {user: a, password: a}, {user: b, password: other}, {user: c, password: c, permissions: { subscribe: x }}
] }
tls { cert_file: "CERT", key_file: "KEY" }
"""


async def test_a_changed_file_is_taken_anew_as_by_nats_server(tmp_path: Path) -> None:
    pair = Authority(tmp_path).server
    after = _AFTER.replace("CERT", str(pair.cert)).replace("KEY", str(pair.key))
    found = []
    for program in (BINARY, GATEWAY):
        folder = tmp_path / program.name
        folder.mkdir()
        (folder / "nats.conf").write_text(_BEFORE)
        with _running(folder, "-c", "nats.conf", "-a", "127.0.0.1", "-p", "-1", program=program) as server:
            found.append(await _reloaded(server, folder, after))
    theirs, ours = found
    assert ours == theirs


async def _reloaded(server: _Server, folder: Path, after: str) -> dict[str, object]:
    """What clients and the log say when the file becomes `after`, and then something that needs a restart."""
    await server.ready()
    port, log, found = int(server.address().rpartition(":")[2]), folder / "n.log", dict[str, object]()
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(RawClient(port)) for name in "abcd"}
        for name, client in clients.items():
            await client.send(b'CONNECT {"verbose":false,"user":"%b","pass":"%b"}\r\n' % (name.encode(), name.encode()))
            await client.send(b"SUB x 1\r\nSUB y 2\r\nPING\r\n")
            await client.until(b"PONG\r\n")

        (folder / "nats.conf").write_text(after)
        assert nats_server.main(["--signal", f"reload={server.process.pid}"]) == 0

        await until(lambda: log.exists() and "Reloaded server configuration" in log.read_text(), "it is taken")
        found["b"], found["d"] = await clients["b"].until_closed(), await clients["d"].until_closed()
        for name in "ac":
            await clients[name].send(b"PING\r\n")
            found[name] = await clients[name].until(b"PONG\r\n")
        await clients["a"].send(b"PUB x 1500\r\n%b\r\nPING\r\n" % (b"x" * 1500))
        found["payload"] = await clients["a"].until(b"PONG\r\n")
        async with RawClient(port) as late:
            found["info"] = late.info["max_payload"], late.info["tls_required"]
        (folder / "nats.conf").write_text(f"max_subscriptions: 7\n{after}")
        server.process.send_signal(signal.SIGHUP)
        await until(lambda: "Failed to reload" in log.read_text(), "it says that it cannot")
        (folder / "nats.conf").write_text(after.replace("n.pid", "none/n.pid"))
        server.process.send_signal(signal.SIGHUP)
        no_pid_file = "[ERR] Failed to write pidfile: open none/n.pid: no such file or directory"
        await until(lambda: no_pid_file in log.read_text(), "it says so, and takes the rest")
    sentences = [line.partition("] [")[2] for line in (*server.lines, *log.read_text().splitlines())]
    found["log"] = sorted({line for line in sentences if "eload" in line and line != _EVERY_TIME})
    files = set(os.listdir(folder))
    found["files"] = "n.pid" in files, f"nats-server_{server.process.pid}.ports" in files
    return found


_EVERY_TIME = "INF] Reloaded: accounts"  # in nats-server


async def test_an_address_that_is_taken_is_a_fatal_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with _running(tmp_path, "-a", "127.0.0.1", "-p", str(port)) as server:
            assert await server.ended() == 1

    assert f"[FTL] cannot listen on 127.0.0.1:{port} for clients: address already in use" in server.lines[-1]


async def test_one_token_of_the_command_line(tmp_path: Path) -> None:
    with _running(tmp_path, "--addr=127.0.0.1", "--port=-1", "--auth", "secret") as server:
        await server.ready()
        connection = await nats.connect(f"nats://secret@{server.address()}")
        await connection.close()


async def test_two_servers_form_a_cluster_by_flags_and_by_a_file(tmp_path: Path) -> None:
    seed, other = (tmp_path / name for name in ("seed", "other"))
    for folder in (seed, other):
        folder.mkdir()
    (port,) = free_ports(1)
    flags = "--addr=127.0.0.1", "--port=-1"
    with _running(seed, *flags, "--cluster", f"nats://127.0.0.1:{port}", "--cluster_name", "acme") as first:
        (other / "nats.conf").write_text(
            f'cluster {{ name: acme, listen: "127.0.0.1:-1", routes: ["nats://127.0.0.1:{port}"] }}'
        )
        with _running(other, *flags, "-c", "nats.conf") as second:
            await first.ready()
            await second.ready()
            assert first.address("Listening for route connections on ") == f"127.0.0.1:{port}"
            here, there = [await nats.connect(f"nats://{each.address()}") for each in (first, second)]
            await until(lambda: len(here.discovered_servers) == len(there.discovered_servers) == 1, "they are linked")
            got = await there.subscribe("news")
            await settle(there)
            await here.publish("news", b"first")
            assert (await got.next_msg(60)).data == b"first"
            await here.close()
            await there.close()


async def test_tls_of_the_command_line(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.server
    flags = ["--tlsverify", "--tlscert", str(pair.cert), "--tlskey", str(pair.key), "--tlscacert", str(authority.cert)]
    client = authority.client("someone")
    context = ssl.create_default_context(cafile=str(authority.cert))
    context.load_cert_chain(client.cert, client.key)
    with _running(tmp_path, "-a", "127.0.0.1", "-p", "-1", *flags) as server:
        await server.ready()
        connection = await nats.connect(f"tls://{server.address()}", tls=context)
        await connection.close()

        assert server.has("[INF] TLS required for client connections")


@pytest.mark.parametrize(
    ("flags", "file"),
    [
        (["-V"], ""),
        (["-DVV"], ""),
        (["--trace", "--max_traced_msg_len", "4"], ""),
        ([], "trace: true, max_traced_msg_len: 7"),
        (["-D"], "trace_headers: true"),
        (["-V=false"], "debug: true"),
    ],
)
async def test_the_trace_is_that_of_nats_server(tmp_path: Path, flags: list[str], file: str) -> None:
    (tmp_path / "nats.conf").write_text(f"host: 127.0.0.1, authorization {{ user: ada, pass: secret }}\n{file}")
    traced = []
    for program in (BINARY, GATEWAY):
        with _running(tmp_path, "-c", "nats.conf", "-p", "-1", *flags, program=program) as server:
            await server.ready()
            connection = await nats.connect(f"nats://ada:secret@{server.address()}", name="app")
            subscription = await connection.subscribe("orders.*")
            await connection.publish("orders.1", b'a "payload"\n', headers={"Key": "value"})
            await connection.publish("orders.2", b"")
            assert [(await subscription.next_msg(60)).subject for _ in range(2)] == ["orders.1", "orders.2"]
            await subscription.unsubscribe()
            await connection.close()
            if "-V=false" not in flags:
                await until(lambda: any("DELSUB" in line for line in server.traced), "the last line is written")
            assert all(_LINE.fullmatch(line) for line in server.lines), server.lines
            assert not server.has("secret")
            traced.append(server.traced)
        assert program == BINARY or server.has("reference, which traces") == ("-V=false" not in flags)

    theirs, ours = traced
    assert ours == theirs
    assert bool(ours) == ("-V=false" not in flags)


async def test_lame_duck_mode_by_signal(tmp_path: Path) -> None:
    with _running(tmp_path, "-a", "127.0.0.1", "-p", "-1") as server:
        await server.ready()

        assert nats_server.main(["--signal", f"ldm={server.process.pid}"]) == 0
        assert await server.ended() == 0
        assert server.has("[INF] Entering lame duck mode, stop accepting new clients")


# -- the command line, in this process --------------------------------------------------------------------------------


def _theirs(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    "line",
    ["-t", "foo", "-D foo", "-- x", "-sl foo=1", "-sl stop=x", "-sl stop=1=2", "-c nope.conf", "-t -c nope.conf"],
)
def test_errors_are_those_of_nats_server(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = _theirs(*line.split())

    assert nats_server.main(line.split()) == theirs.returncode == 1
    assert capsys.readouterr().err == theirs.stderr


def test_a_file_that_is_right_is_named_with_its_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "nats.conf"
    file.write_text("port: 4222\nmax_payload: 1MB, authorization { users: [ {user: a, password: '<ü>'} ] }")

    assert nats_server.main(["-t", "-c", str(file)]) == 0
    assert capsys.readouterr().err == _theirs("-t", "-c", str(file)).stderr


def test_warnings_let_a_check_fail_as_in_nats_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "nats.conf"
    file.write_text("\nping_interval: 5")
    theirs = _theirs("-t", "-c", str(file))

    assert nats_server.main(["-t", "-c", str(file)]) == theirs.returncode == 1
    assert capsys.readouterr().err.strip() == theirs.stderr.strip()


def test_problems_of_file_and_flags_are_said_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "nats.conf"
    file.write_text("port: x\nfoo: 1")

    assert nats_server.main(["-c", str(file), "-js"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "nats-server: -js: JetStream is not available in this version",
        f'{file}:1:1: port: must be a whole number such as 100, 64k or 1MB, got "x"',
        f'{file}:2:1: unknown field "foo"',
    ]


def test_a_wrong_flag_ends_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert nats_server.main(["-p", "abc"]) == 1

    said = capsys.readouterr()
    assert said.err == 'invalid value "abc" for flag -p: parse error\n'
    assert "Usage: nats-server [options]" in said.out


@pytest.mark.parametrize("arguments", [["-v"], ["--version"], ["version"], ["-v", "-p", "1"]])
def test_the_version_is_ours_beside_that_of_the_protocol(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert nats_server.main(arguments) == 0
    assert re.fullmatch(r"nats-server: v2\.\d+\.\d+ \(Event Mesh \S+, data plane: .+\)\n", capsys.readouterr().out)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert nats_server.main(["--help_tls"]) == nats_server.main(["help"]) == nats_server.main(["-h"]) == 0
    assert "verify_and_map" in capsys.readouterr().out


def test_a_signal_needs_its_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert nats_server.main(["-sl", "quit"]) == 1

    assert capsys.readouterr().err.splitlines() == [
        "nats-server: --signal needs the process: quit=PID, or quit=FILE with a file that -P wrote",
    ]


async def test_a_process_that_is_gone_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()

    assert nats_server.main(["-sl", f"term={process.pid}"]) == 1
    assert capsys.readouterr().err == f'nats-server: \nsignal "term" {process.pid}: no such process\n'


# -- the document -----------------------------------------------------------------------------------------------------


EVERY_MAP = """
authorization { users [ {user: a, password: b, permissions { publish { allow: x }, allow_responses { max: 1 } } } ] }
accounts { A {} }
tls { cert_file: c }
cluster { port: 1 }
"""


def test_the_document_names_every_key_and_every_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: set[str] = set()

    def recording(tree: Tree, handlers: Handlers, findings: Findings) -> None:
        keys.update(handlers)
        each_key(tree, handlers, findings)

    for module in (nats_config_options, nats_config_identity, nats_config_cluster):
        monkeypatch.setattr(module, "each_key", recording)
    natsconf.options(EVERY_MAP)
    document = (Path(__file__).parent.parent / "docs/nats-server.md").read_text()
    named = set(re.findall(r"`-{0,2}([A-Za-z_]+)`", document))

    assert len(keys) > 150
    assert keys - named == set()
    assert set(nats_server_flags.FLAGS) - named == set()
