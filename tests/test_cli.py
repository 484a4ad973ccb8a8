"""`mesh` on the command line: what it prints, how it fails, and with which exit status."""

import asyncio
import json
import os
import pty
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.cli import MESH, environment, invoked, mesh, start
from support.fakelog import FakeLog, FakeStream, fake_log
from support.natsserver import free_port, nats_server

from mesh import cli, daemon, settings
from mesh.settings import UpOptions
from protocol import publish
from protocol.errors import ConfigError


@asynccontextmanager
async def log_with(*streams: FakeStream) -> AsyncIterator[tuple[str, FakeLog]]:
    """The URL of a server with a log behind it."""
    async with nats_server() as server, fake_log(server.url, *streams) as log:
        yield server.url, log
        await log.stop()


def filled(times_ms: list[int], name: str = "orders", partitions: int = 1) -> FakeStream:
    """Event `n` of each partition at the `n`th time; subjects orders.eu and orders.us by turns."""
    stream = FakeStream(name, f"{name}.>", partitions)
    for partition in range(partitions):
        for number, when in enumerate(times_ms):
            subject = f"{name}.{'eu' if number % 2 == 0 else 'us'}"
            stream.add(subject, f"{partition}-{number}".encode(), partition=partition, timestamp_ms=when)
    return stream


HOUR_MS = 3_600_000
DAY_MS = 1_764_028_800_000  # 2025-11-25T00:00:00Z


# -- pub --------------------------------------------------------------------------------------------------------------


async def test_pub_says_where_the_event_is() -> None:
    async with log_with(FakeStream("orders", "orders.>")) as (url, log):
        ran = await invoked("-s", url, "pub", "orders.new", "hello", "-H", "Tag: a", "-H", "Tag: b")
        assert ran == (0, b"kept in orders@local: partition 0, offset 0, seq 1\n", "")
        ran = await invoked("pub", "orders.new", "--json", NATS_URL=url, stdin=b"from\n\xff stdin")
        assert json.loads(ran.out) == {
            "stream": "orders", "zone": "local", "partition": 0, "offset": 1, "seq": 2, "duplicate": False,
        }  # fmt: skip
        twice = [await invoked("pub", "orders.new", b"\xff", "-H", "Nats-Msg-Id: 7", "-s", url) for _ in range(2)]
        assert "offset 2, seq 3 (it was there already)" in twice[1].out.decode()
        records = log.streams["orders"].logs[0]
    assert [record.payload for record in records] == [b"hello", b"from\n\xff stdin", b"\xff"]
    assert b"Tag: a\r\nTag: b\r\n" in records[0].header_block


async def test_a_published_text_comes_back_byte_for_byte(tmp_path: Path) -> None:
    text = b"first\n\nsecond \xff\xfe\r\n" + b"".join(b"line %d\n" % number for number in range(3_000))
    (tmp_path / "text").write_bytes(text)
    async with log_with(FakeStream("lines", "lines.>")) as (url, _):
        ran = await mesh("pub", "lines.a", "--lines", str(tmp_path / "text"), "-s", url)
        assert ran.out.startswith(b"3003 lines kept in lines@local in "), ran
        assert (await mesh("replay", "lines", "--raw", "-s", url)).out == text
        ran = await mesh("pub", "lines.a", "--lines", "-", "--json", "-s", url, stdin=b"one\ntwo")
        assert json.loads(ran.out)["events"] == 2
        assert (await invoked("replay", "lines", "--raw", "--from", "3003", "-s", url)).out == b"one\ntwo\n"


async def test_lines_of_a_pipe_go_out_as_they_come() -> None:
    async with log_with(FakeStream("lines", "lines.>")) as (url, log):
        process = await start("pub", "lines.a", "--lines", "-", "-s", url)
        assert process.stdin is not None
        process.stdin.write(b"one\ntw")
        async with asyncio.timeout(60), log.grown:
            await log.grown.wait_for(lambda: len(log.streams["lines"].logs[0]) == 1)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")


async def test_a_refused_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"one\ntwo\nthree\nfour\n")
    async with log_with(FakeStream("lines", "lines.>")) as (url, log):
        log.refuse = lambda subject, payload: publish.TOO_LARGE if payload in (b"two", b"four") else None
        ran = await mesh("pub", "lines.a", "--lines", str(tmp_path / "text"), "-s", url)
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err == (
        f"mesh: {tmp_path}/text: line 2: refused: message size exceeds maximum allowed (400, 10054); the 1 lines before"
        " it and 1 behind it are in the log, the others are not\n"
    )


async def test_pub_without_acknowledgement_and_to_nobody() -> None:
    async with log_with(FakeStream("orders", "orders.>")) as (url, log):
        assert await invoked("pub", "orders.new", "x", "--no-ack", "-s", url) == (0, b"", "")
        ran = await invoked("pub", "orders.new", "x", "--no-ack", "--count", "3", "-s", url)
        assert ran.out.startswith(b"3 events sent in ")
        ran = await invoked("pub", "elsewhere", "x", "-s", url)
        assert (ran.status, ran.err) == (
            1,
            "mesh: refused: no stream keeps this subject and nobody subscribes to it (--no-ack?)\n",
        )
        assert len(log.streams["orders"].logs[0]) == 4
        ran = await invoked("pub", "orders.new", "-s", url, stdin=bytes(1_048_577))
        assert (ran.status, ran.err) == (
            1,
            "mesh: 1048577 bytes are more than the server takes (max_payload: 1048576)\n",
        )


def read_terminal(descriptor: int) -> bytes:
    """What was written to it until all writers have gone, which a terminal tells as an I/O error."""
    shown = b""
    while True:
        try:
            shown += os.read(descriptor, 65_536)
        except OSError:
            os.close(descriptor)
            return shown


async def test_a_progress_bar_on_a_terminal_only(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"line\n" * 20_000)
    async with log_with(FakeStream("lines", "lines.>")) as (url, _):
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            str(MESH), "pub", "lines.a", "--lines", str(tmp_path / "text"), "-s", url,
            stdout=asyncio.subprocess.PIPE, stderr=theirs, env=environment(TERM="xterm"),
        )  # fmt: skip
        os.close(theirs)
        showing = asyncio.create_task(asyncio.to_thread(read_terminal, ours))
        out, _ = await process.communicate()
        shown = await showing
    assert out.startswith(b"20000 lines kept")
    assert b"%" in shown


# -- sub --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def publishing(url: str) -> AsyncIterator[None]:
    """Someone publishes the same event again and again."""

    async def publish_on() -> None:
        while True:
            await mesh("pub", "live.a", "hello", "--no-ack", "-H", "Tag: a", "-s", url)

    task = asyncio.create_task(publish_on())
    try:
        async with asyncio.timeout(60):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_sub_shows_live_events() -> None:
    async with nats_server() as server, publishing(server.url):
        ran = await mesh("sub", "live.>", "--count", "2", "--json", "-s", server.url)
    expected = {"subject": "live.a", "headers": {"Tag": ["a"]}, "data": "hello"}
    assert (ran.status, ran.err, [json.loads(line) for line in ran.lines]) == (0, "", [expected, expected])


async def test_sub_ends_with_ctrl_c() -> None:
    async with nats_server() as server, publishing(server.url):
        process = await start("sub", "live.>", "--raw", "-s", server.url)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"hello\n"
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


async def test_sub_without_permission(tmp_path: Path) -> None:
    (tmp_path / "server.conf").write_text(
        'authorization { users = [ { user: u, password: p, permissions: { subscribe: "x" } } ] }'
    )
    async with nats_server("-c", str(tmp_path / "server.conf")) as server:
        ran = await invoked("sub", "secret", NATS_URL=server.url, NATS_USER="u", NATS_PASSWORD="p")
    assert (ran.status, ran.err) == (1, 'mesh: permissions violation for subscription to "secret"\n')


# -- replay -----------------------------------------------------------------------------------------------------------


async def test_replay_for_people_and_machines() -> None:
    async with log_with(filled([DAY_MS, DAY_MS + 1])) as (url, _):
        ran = await mesh("replay", "orders@local", "-s", url, TZ="UTC")
        assert ran.lines == [
            "0  2025-11-25T00:00:00.000+00:00  orders.eu  0-0",
            "1  2025-11-25T00:00:00.001+00:00  orders.us  0-1",
        ]
        (first, _) = (await invoked("--json", "replay", "orders", "-s", url)).lines
        assert json.loads(first) == {
            "stream": "orders", "zone": "local", "partition": 0, "offset": 0, "timestamp": DAY_MS,
            "subject": "orders.eu", "headers": {}, "data": "0-0",
        }  # fmt: skip


async def replayed(url: str, *arguments: str) -> list[str]:
    ran = await invoked("replay", "orders", "--raw", *arguments, "-s", url)
    assert ran.status == 0, ran.err
    return ran.lines


async def test_replay_from_until() -> None:
    times = [DAY_MS + hour * HOUR_MS for hour in (1, 3, 2, 4, 3, 5)]  # clocks of several gateways
    async with log_with(filled(times)) as (url, _):
        assert await replayed(url, "--from", "4") == ["0-4", "0-5"]
        assert await replayed(url, "--from", "1", "--until", "3") == ["0-1", "0-2"]
        assert await replayed(url, "--from", "latest") == []
        assert await replayed(url, "--until", "99", "--filter", "orders.us") == ["0-1", "0-3", "0-5"]
        assert await replayed(url, "--count", "2") == ["0-0", "0-1"]
        between = ("--from", "2025-11-25T02:00:00Z", "--until", "2025-11-25T04:00:00Z")
        assert await replayed(url, *between) == ["0-1", "0-2", "0-4"]
        assert await replayed(url, "--from", f"@{DAY_MS + 4 * HOUR_MS}") == ["0-3", "0-5"]
        assert await replayed(url, "--from", "1m") == []
        assert await replayed(url, "--until", "1m") == [f"0-{number}" for number in range(6)]
        ran = await mesh("replay", "orders", "--from", "2025-11-25T05:00", "-s", url, TZ="UTC")
        assert ran.err == "mesh: 2025-11-25T05:00 has no time zone; it is taken as 2025-11-25T05:00:00+00:00\n"


async def test_replay_of_several_partitions() -> None:
    async with log_with(filled([DAY_MS, DAY_MS + 1], partitions=2)) as (url, _):
        assert await replayed(url) == ["0-0", "0-1", "1-0", "1-1"]
        assert await replayed(url, "--partition", "1", "--from", "1") == ["1-1"]
        assert (await invoked("replay", "orders", "-s", url)).lines[2].startswith("1/0  ")
        ran = await invoked("replay", "orders", "--from", "1", "-s", url)
        assert (ran.status, ran.err) == (1, "mesh: an offset belongs to one partition: add --partition (0 to 1)\n")
        ran = await invoked("replay", "orders", "--partition", "2", "-s", url)
        assert (ran.status, ran.err) == (1, "mesh: orders has partitions 0 to 1, not 2\n")


async def test_replay_names_what_is_not_there() -> None:
    stream = filled([DAY_MS, DAY_MS + 1, DAY_MS + 2])
    stream.start_offsets[0] = 1
    async with log_with(stream) as (url, _):
        for offset in ("0", "4"):
            ran = await invoked("replay", "orders", "--from", offset, "-s", url)
            assert ran == (1, b"", f"mesh: offset {offset} does not exist: orders/0 holds 1 to 3 (exclusive)\n")
        ran = await invoked("replay", "order", "-s", url)
        assert ran == (1, b"", "mesh: no stream 'order'; streams are orders\n")


async def test_replay_tells_of_gaps() -> None:
    stream = filled([DAY_MS] * 3)
    stream.gaps[1] = (1, "outbox full")
    async with log_with(stream) as (url, _):
        ran = await invoked("replay", "orders", "--raw", "-s", url)
        assert ran.lines == ["0-0", "0-2"]
        assert ran.err == "mesh: gap: 1 event is missing at offset 1 of orders/0: outbox full\n"
        follow = await invoked("replay", "orders", "--raw", "--follow", "--count", "2", "-s", url)
        assert follow == ran


async def test_replay_follows() -> None:
    async with log_with(filled([DAY_MS], partitions=2)) as (url, _):
        process = await start("replay", "orders", "--follow", "--raw", "-s", url)
        assert process.stdout is not None
        first = {await process.stdout.readline(), await process.stdout.readline()}
        assert first == {b"0-0\n", b"1-0\n"}
        await invoked("pub", "orders.new", "news", "-s", url)
        assert await process.stdout.readline() == b"news\n"
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


async def test_nobody_reads_on() -> None:
    async with log_with(filled([DAY_MS] * 20_000)) as (url, _):
        process = await start("replay", "orders", "-s", url)
        assert process.stdout is not None
        await process.stdout.readline()
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # asyncio has no other way
        assert process.stderr is not None
        assert (await process.wait(), await process.stderr.read()) == (141, b"")


# -- streams ----------------------------------------------------------------------------------------------------------


async def test_streams() -> None:
    trimmed = filled([DAY_MS] * 3, "sales", partitions=2)
    trimmed.start_offsets[1] = 2
    async with log_with(filled([DAY_MS]), trimmed) as (url, _):
        table = (await invoked("streams", "-s", url)).lines
        assert [line.split() for line in table] == [
            ["STREAM", "SUBJECTS", "PARTITION", "EARLIEST", "LATEST", "EVENTS", "SIZE", "ACK", "REPLY"],
            ["orders@local", "orders.>", "0", "0", "1", "1", "3", "B", "quorum", "always"],
            ["sales@local", "sales.>", "0", "0", "3", "3", "9", "B", "quorum", "always"],
            ["1", "2", "3", "1", "9", "B"],
        ]
        found = json.loads((await invoked("streams", "sales", "--json", "-s", url)).out)["streams"]
        assert [row["log_start_offset"] for row in found[0]["partitions"]] == [0, 2]


# -- connecting -------------------------------------------------------------------------------------------------------


async def test_one_clear_line_when_nobody_listens() -> None:
    port = free_port()
    for arguments in (("pub", "a", "x"), ("sub", "a"), ("replay", "a"), ("streams",)):
        ran = await invoked(*arguments, NATS_URL=f"127.0.0.1:{port}")
        expected = f"mesh: cannot connect to nats://127.0.0.1:{port}: connection refused; is `mesh up` running?"
        assert ran == (1, b"", f"{expected} (--server, NATS_URL)\n")


async def test_options_before_and_after_and_from_the_environment() -> None:
    async with nats_server("--user", "u", "--pass", "p") as server:
        before = ("--server", server.url, "--user", "u", "--password", "p", "pub", "a", "x", "--no-ack")
        after = ("pub", "a", "x", "--no-ack", "--server", server.url, "--user", "u", "--password", "p")
        assert (await invoked(*before)).status == 0
        assert (await invoked(*after, NATS_URL="127.0.0.1:1")).status == 0
        assert (await invoked("--user", "wrong", *after)).status == 0
        variables = {"NATS_URL": server.url, "NATS_USER": "u", "NATS_PASSWORD": "p"}
        assert (await invoked("pub", "a", "x", "--no-ack", **variables)).status == 0
        ran = await invoked("pub", "a", "x", "--no-ack", "--password", "wrong", **variables)
        assert ran.status == 1
        assert "Authorization Violation" in ran.err
        assert ran.err.count("\n") == 1


# -- without a server -------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.cli, arguments, prog_name="mesh")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_version() -> None:
    assert run("--version") == run("version")
    status, out, _ = run("version")
    assert status == 0
    assert out.startswith(f"mesh {settings.program_version()}, CPython 3.")
    assert out.endswith(f"data plane: {settings.data_plane()}\n")
    assert json.loads(run("version", "--json")[1])["version"] == settings.program_version()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["pubb"], "Did you mean 'pub'?"),
        (["replay", "a", "--form", "1"], "Did you mean"),
        (["replay", "a", "--from", "soon"], "is not one of: earliest, latest, an offset"),
        (["replay", "a", "--follow", "--until", "5"], "--until has no place beside it"),
        (["replay", "a", "--raw", "--json"], "--raw and --json exclude each other"),
        (["replay", "a", "--filter", "a..b"], "is not a subject pattern"),
        (["pub", "a b", "x"], "is not a subject to publish to"),
        (["pub", "a.*", "x"], "is not a subject to publish to"),
        (["pub", "a", "x", "-H", "no colon"], "must be 'Name: value'"),
        (["pub", "a", "x", "--lines", "-"], "BODY and --count have no place beside it"),
        (["pub", "a", "x", "--count", "2", "-H", "nats-msg-id: 1"], "one Nats-Msg-Id for several events"),
        (["streams", "--timeout", "5"], 'must be a duration such as "500ms"'),
        (["streams", "--tlscert", "x"], "--tlscert and --tlskey belong together"),
        (["up", "--stream", "orders"], "must be NAME=SUBJECTS"),
        (["up", "--stream", "a=a.>", "--stream", "a=b.>"], "--stream a is given twice"),
        (["up", "--client", "4222"], 'must be "host:port"'),
        (["up", "--mode", "fast"], "is not one of 'event-sinks', 'delivery-fabric'"),
        (["gateway", "--node", "a"], "Missing option '--config'"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], what: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert what in err


def test_check(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text(
        '[mesh]\nname = "acme"\nrevision = 1\ninsecure = true\n'
        '[zones.eu.gateways.g]\nclient = "h:1"\n[zones.eu.sinks.s]\nlink = "h:2"\ndata = "/d"\n'
        "[streams.orders]\nsubjects = ['orders.>']\n"
    )
    assert run("check", str(file)) == (0, f"{file}: ok: 1 zone, 1 gateway, 1 sink, 2 streams, 0 users\n", "")
    assert json.loads(run("check", str(file), "--json")[1]) | {"not_available": []} == {
        "file": str(file), "ok": True, "zones": 1, "gateways": 1, "sinks": 1, "streams": 2, "users": 0,
        "not_available": [], "advice": [],
    }  # fmt: skip
    file.write_text('[mesh]\nname = "a b"\nrevison = 1\n')
    status, out, err = run("check", str(file))
    assert (status, out) == (1, "")
    assert len(err.splitlines()) > 1
    assert all(line.startswith(f"{file}:") for line in err.splitlines())
    assert json.loads(run("check", str(file), "--json")[1])["problems"] == err.splitlines()
    assert run("check", str(tmp_path / "none")) == (1, "", f"mesh: {tmp_path}/none: No such file or directory\n")


def test_check_says_what_is_allowed_but_unwise(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    sinks = (f'[zones.eu.sinks.s{n}]\nlink = "h{n}:1"\nraft = "h{n}:2"\ndata = "/d"\n' for n in range(4))
    file.write_text('[mesh]\nname = "acme"\ninsecure = true\n[zones.eu.gateways.g]\nclient = "h:1"\n' + "".join(sinks))
    status, out, err = run("check", str(file))
    assert (status, out) == (0, f"{file}: ok: 1 zone, 1 gateway, 4 sinks, 1 stream, 0 users\n")
    assert f"{file}: zones.eu.sinks: of 4 sinks no more may fail than of 3" in err
    assert [line[:16] for line in json.loads(run("check", str(file), "--json")[1])["advice"]] == ["zones.eu.sinks: "]
    guest = "[[users]]\nuser = 'guest'\npassword = '$2b$04$abc'\n"
    file.write_text(
        "[mesh]\nname = 'acme'\nmode = 'delivery-fabric'\nno_auth_user = 'guest'\n"
        + guest
        + "[zones.eu.gateways.g]\nclient = 'h:1'\n"
    )
    assert f"{file}: mesh.no_auth_user: 'guest' has a bcrypt password" in run("check", str(file))[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    status, out, _ = run("completion", shell)
    assert status == 0
    assert "_MESH_COMPLETE" in out


async def test_completion_completes() -> None:
    ran = await mesh(_MESH_COMPLETE="bash_complete", COMP_WORDS="mesh repl", COMP_CWORD="1")
    assert ran.out == b"plain,replay\n"


def test_up_hands_over_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[UpOptions] = []
    monkeypatch.setattr(daemon, "run_up", lambda options: seen.append(options) or 3)
    status, _, _ = run(
        "up", "--client", "0.0.0.0:1", "--stream", "orders=orders.>, returns.*", "--disk-reserve", "1MiB", "--json",
        "--contracts", "warn", "--buffer", "2MiB",
    )  # fmt: skip
    assert status == 3
    assert seen == [
        UpOptions(
            client="0.0.0.0:1",
            monitor="127.0.0.1:8222",
            data="mesh-data",
            mode="event-sinks",
            streams={"orders": ("orders.>", "returns.*")},
            disk_reserve_bytes=1_048_576,
            contracts="warn",
            buffer_bytes=2_097_152,
            log_level="info",
            log_format="text",
            json=True,
        )
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "contract.json: No such file or directory"),
        ("{", "contract.json: Input data was truncated; an object with fields among name, subjects"),
        ('{"name": "a", "subjects": [""]}', "contract.json: '' is not a subject pattern, like orders.>"),
        ('{"name": "a", "subjects": ["a"], "schema": {"type": 1}}', "contract.json: schema: /type: 1 is not valid"),
    ],
)
def test_what_is_no_contract_is_said(
    content: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("contract.json").write_text(content)
    status, out, err = run("contracts", "check", "contract.json")
    assert (status, out) == (1, "")
    assert err.startswith(f"mesh: {said}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (ConfigError(["a: wrong", "b: wrong"]), ["mesh: a: wrong", "mesh: b: wrong"]),
        (OSError(98, "address already in use"), ["mesh: address already in use"]),
        (PermissionError(13, "Permission denied", "/data"), ["mesh: /data: Permission denied"]),
    ],
)
def test_a_daemon_that_cannot_start(error: Exception, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(daemon, "run_up", fail)
    status, _, err = run("up")
    assert (status, err.splitlines()) == (1, lines)
