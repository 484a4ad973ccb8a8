"""bench/ measures what it says: sane rows from both servers, exact counting, loud failures. Speed is never asserted."""

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import report
from bench.mesh.links import bytes_between
from bench.report import Result
from bench.rows import Metric, Row, rows
from bench.traffic import Traffic

TOP = Path(__file__).parent.parent


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=TOP, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("key", "work", "servers"),
    [
        ("1to1-128", "1:1, 128 B", ("gateway", "nats-server", "relay")),
        ("across-128", "workers 2: 1:1 across, 128 B", ("gateway", "nats-server")),
    ],
)
def test_a_row_of_all_servers_and_the_page_of_it(tmp_path: Path, key: str, work: str, servers: tuple[str, ...]) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    once = "--rows", key, "--rounds", "1", "--seconds", "0.1"
    ended = run("-m", "bench", *once, "--results", str(results), "--write", str(page))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (row,) = json.loads(results.read_text())
    assert row["missing"] == {}
    for server in servers:
        (rate,), (cpu,) = row["values"][server]["rate"], row["values"][server]["cpu"]
        assert 1_000 < rate < 100_000_000
        assert 0 <= cpu < 1_000_000
    assert f"| {work} | " in page.read_text()


def test_a_row_of_several_gateways_and_the_section_of_it(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    once = "--group", "mesh", "--rows", "grow-2", "--rounds", "1"
    ended = run("-m", "bench", *once, "--results", str(results), "--write", str(page))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (row,) = json.loads(results.read_text())
    assert row["missing"] == {}
    for server in ("gateway", "nats-server"):
        (sent_kb,) = row["values"][server]["sent"]
        assert 20 < sent_kb < 60  # a thousand times `RS+ $G bench.i.00.000000` and its end, and little else
    assert "| 2 gateways, 1,000 interests each: sent per gateway until all agree | " in page.read_text()


def test_bytes_between_nodes_are_counted_on_their_links_alone() -> None:
    with ExitStack() as opened:
        links, clients = (opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        server = SimpleNamespace(route_ports=[links.getsockname()[1]])
        for listener, size in ((links, 1_234), (clients, 99)):
            ends = [socket.create_connection(listener.getsockname()), listener.accept()[0]]
            for end in ends:
                opened.enter_context(end)
            for here, there in (ends, reversed(ends)):
                here.sendall(b"x" * size)
                assert len(there.recv(size, socket.MSG_WAITALL)) == size
        assert bytes_between(server) == 2 * 1_234


LOSSY = """
import socket
from bench.servers import BenchError
from bench.stream import Stream, measure
from bench.traffic import Traffic
from bench import stream
from bench.children import Child

stream.SILENCE_S_MAX = 2.0
listener = socket.create_server(("127.0.0.1", 0))

def relay():
    ends = {}
    for _ in range(2):
        end, _ = listener.accept()
        ends[end.recv(1)] = end
        end.sendall(b"+")
    lost = LOST
    while data := ends[b"P"].recv(65536):
        ends[b"S"].sendall(data[:len(data) - lost] if lost >= 0 else data + b"x" * -lost)
        lost = 0
    ends[b"P"].close()
    ends[b"S"].recv(1)
    return 0

class Server:
    name, wire, port = "lossy", "relay", listener.getsockname()[1]
    cpu_s = staticmethod(lambda: 0.0)
    complaints = staticmethod(lambda: "")

relaying = Child(relay)
try:
    print("counts", measure(Server(), Stream(Traffic(16)), 0.2).messages > 0)
except BenchError as error:
    print("fails:", error)
relaying.result()
"""


@pytest.mark.parametrize(
    ("lost", "said"), [(0, "counts True"), (1, "have come, and then nothing"), (-1, "have come instead of")]
)
def test_a_run_that_loses_or_invents_a_byte_does_not_count(lost: int, said: str) -> None:
    ended = run("-c", LOSSY.replace("LOST", str(lost)))
    assert said in ended.stdout, ended.stderr


# -- frames -----------------------------------------------------------------------------------------------------------


def test_frames() -> None:
    assert Traffic(3).published("a.b") == b"PUB a.b 3\r\nxxx\r\n"
    assert Traffic(3).delivered("a.b") == b"MSG a.b 1 3\r\nxxx\r\n"
    headers = b"NATS/1.0\r\nA: b\r\n\r\n"
    assert Traffic(3, headers=headers).published("a") == b"HPUB a 18 21\r\n" + headers + b"xxx\r\n"
    assert Traffic(3, headers=headers).delivered("a") == b"HMSG a 1 18 21\r\n" + headers + b"xxx\r\n"


def test_chunks_hold_whole_frames_and_say_how_many() -> None:
    endless = Traffic(16, ("a", "b", "c"))
    ((chunk, messages),) = endless.chunks(1_000)
    assert messages == chunk.count(b"PUB")
    assert len(chunk) == messages * endless.published_bytes
    once = Traffic(16, [f"s.{number:03}" for number in range(1_000)], once=True)
    parts = once.chunks(1_000)
    assert sum(messages for _, messages in parts) == 1_000
    assert b"".join(chunk for chunk, _ in parts) == b"".join(once.published(subject) for subject in once.subjects)


# -- what is made of the figures --------------------------------------------------------------------------------------


def result(ours: list[float], theirs: list[float]) -> Result:
    made = Result("r", "2026-01-01", "ours 1", "2", 1.0, 0.0)
    for server, values in (("gateway", ours), ("nats-server", theirs)):
        for value in values:
            made.add(server, {"v": value})
    return made


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "expected"),
    [
        (Metric("v", "/s", goal=2), [30, 20, 10], [10, 10, 10], "yes"),
        (Metric("v", "/s", goal=2), [19, 30, 10], [10, 10, 10], "no"),
        (Metric("v", "us", goal=1), [10], [10], "yes"),
        (Metric("v", "us", goal=1), [11], [10], "no"),
        (Metric("v", "x", goal=1.2, is_absolute=True), [1.1], [0.5], "yes"),
        (Metric("v", "x", goal=1.2, is_absolute=True), [1.3], [9.0], "no"),
        (Metric("v", "/s"), [1], [10], ""),
        (Metric("v", "/s", goal=2), [], [10], "not measured"),
    ],
)
def test_verdicts_stand_on_medians(metric: Metric, ours: list[float], theirs: list[float], expected: str) -> None:
    assert report.verdict(metric, result(ours, theirs)) == expected


def test_the_page_names_what_is_missing_and_what_bounds_a_row() -> None:
    row = Row("r", "some work", (Metric("v", "/s", goal=2),), run=lambda server, seconds: {})
    slow, absent = result([1e6], [1e6]), result([], [1e6])
    absent.missing["gateway"] = "gateway does not start"
    assert "| some work | 1.00 M/s | 1.00 M/s | 1.00 (1.00..1.00) | at least 2 | no |" in report.page(
        [row], {"r": slow}
    )
    assert "- **some work**: not looked into yet." in report.page([row], {"r": slow})
    assert "| some work | n/a: gateway does not start | 1.00 M/s |" in report.page([row], {"r": absent})
    assert "Every row reaches its goal." in report.page([row], {"r": result([2e6], [1e6])})


def test_rows_have_keys_of_their_own() -> None:
    keys = [row.key for row in rows()]
    assert len(set(keys)) == len(keys)


def test_results_come_back_as_they_were_kept(tmp_path: Path) -> None:
    kept = {"r": result([1.5, 2.5], [3.0])}
    report.keep(kept, tmp_path / "results.json")
    assert report.load(tmp_path / "results.json") == kept
    assert report.load(tmp_path / "none.json") == {}
