"""The bench of the sink tier measures what it says: sane rows of all tiers, exact checks. Speed is never asserted."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.programs import program
from bench.report import Result
from bench.sinks import driver, report, tiers
from bench.sinks.rows import Metric, Row, Settings, rows
from bench.sinks.tiers import ALWAYS, DEFAULT, ZONE

TOP = Path(__file__).parent.parent


def test_rows_of_all_tiers_and_the_section_about_them(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    ended = subprocess.run(
        [sys.executable, "-m", "bench", "--group", "sinks", "--sinks", "1", "--replicas", "1", "--rounds", "1",
         "--seconds", "0.2", "--history-bytes", "1MiB", "--restart-bytes", "1MiB",
         "--rows", "ack-128,history-1k",
         "--results", str(results), "--write", str(page)],
        cwd=TOP, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    kept = {row["key"]: row for row in json.loads(results.read_text())}
    assert [row["missing"] for row in kept.values()] == [{}] * 2
    for row in rows():
        if (result := kept.get(f"sinks/{row.key}")) is None:
            continue
        for kind in row.contenders:
            values = result["values"][kind.name]
            expected = {metric.key for metric in row.metrics if kind is tiers.Zone or metric.key not in OURS_ALONE}
            assert expected <= set(values)
            assert all(value > 0 for name, (value,) in values.items() if name not in OURS_ALONE)
    assert f"| {rows()[0].title} | " in page.read_text()
    assert "1 sinks, 1 replicas" in page.read_text()


OURS_ALONE = {"journal", "segments"}


# -- the load generators ----------------------------------------------------------------------------------------------

Answer = Callable[[int, str], bytes]
"""Of a fake server: the frames that answer publish number n with this reply subject."""


@contextmanager
def fake_server(answer: Answer, seen: list[bytes] | None = None) -> Iterator[int]:
    """Speaks just enough of the protocol to one client; yields its port. Payloads are added to `seen`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener, answer, [] if seen is None else seen))
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            thread.join(10)
            assert not thread.is_alive()


def serve(listener: socket.socket, answer: Answer, seen: list[bytes]) -> None:
    connection, _ = listener.accept()
    published = 0
    with connection, connection.makefile("rb") as lines:
        connection.sendall(b"INFO {}\r\n")
        try:
            while words := lines.readline().split():
                if words[0] == b"PING":
                    connection.sendall(b"PONG\r\n")
                if words[0] == b"PUB":
                    seen.append(lines.read(int(words[-1]) + 2)[:-2])
                    connection.sendall(answer(published, words[2].decode()))
                    published += 1
        except ConnectionError:
            return  # the program has seen enough


def message(subject: str, payload: bytes) -> bytes:
    return f"MSG {subject} 1 {len(payload)}\r\n".encode() + payload + b"\r\n"


def acknowledged(number: int, inbox: str) -> bytes:
    return message(inbox, b'{"stream":"orders", "seq":%d}' % (number + 1))


def refused(number: int, inbox: str) -> bytes:
    return message(inbox, b'{"error":{"code":503},"stream":"orders","seq":0}')


def third(otherwise: Answer) -> Answer:
    """`otherwise` answers every third publish, the others are acknowledged."""
    return lambda number, inbox: (otherwise if number % 3 == 2 else acknowledged)(number, inbox)


def acks(port: int, *, patience_ms: int = 0) -> "subprocess.CompletedProcess[str]":
    command = [str(program("acks")), str(port), "orders.x", "100", "2", "10", "30", "0", str(patience_ms)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_acknowledgements_are_counted() -> None:
    with fake_server(acknowledged) as port:
        seen = json.loads(acks(port).stdout)
    assert (seen["published"], seen["acked"], seen["refused"], seen["given_up"]) == (30, 30, 0, 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (refused, "not the acknowledgement of its event"),
        (lambda number, inbox: acknowledged(number + 1, inbox), "not the acknowledgement of its event"),
        (lambda number, inbox: acknowledged(number, inbox) * 2, "acknowledged twice"),
        (lambda number, inbox: message(inbox, b"{}"), "not the acknowledgement of its event"),
    ],
)
def test_a_publish_without_its_acknowledgement_does_not_count(wrong: Answer, said: str) -> None:
    with fake_server(third(wrong)) as port:
        ended = acks(port)
    assert ended.returncode == 1
    assert said in ended.stderr


def test_a_publisher_with_patience_goes_on_behind_what_is_refused_or_not_answered() -> None:
    with fake_server(third(refused)) as port:
        seen = json.loads(acks(port, patience_ms=10_000).stdout)
    assert (seen["acked"], seen["refused"], seen["given_up"]) == (20, 10, 0)
    assert "503" in seen["last_refusal"]
    with fake_server(third(lambda number, inbox: b"")) as port:
        seen = json.loads(acks(port, patience_ms=50).stdout)
    assert (seen["acked"], seen["refused"], seen["given_up"]) == (20, 0, 10)
    assert seen["longest_gap_ns"] > 0


def fetched(offset: int, payload: bytes) -> bytes:
    headers = b"NATS/1.0\r\nLog-Offset: %d\r\n\r\n" % offset
    sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
    return b"HMSG _INBOX.benchmark 1 " + sizes + b"\r\n" + headers + payload + b"\r\n"


def payloads(count: int) -> list[bytes]:
    """What `acks` publishes as its first events."""
    seen: list[bytes] = []
    with fake_server(acknowledged, seen) as port:
        command = [str(program("acks")), str(port), "orders.x", "64", "1", "10", str(count), "0", "0"]
        subprocess.run(command, capture_output=True, check=True, timeout=60)
    return seen


END = b"NATS/1.0 204 EOB\r\nLog-Next-Offset: 3\r\n\r\n"
END = b"HMSG _INBOX.benchmark 1 %d %d\r\n%b\r\n" % (len(END), len(END), END)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda events: events, ""),
        (lambda events: [*events[:1], *events[2:]], "not the next event"),
        (lambda events: [*events, events[-1]], "not the next event"),
        (lambda events: events[:2], "events are missing"),
        (lambda events: [*events[:2], events[2].replace(b"a text", b"a Text")], "not the payload"),
    ],
)
def test_history_counts_only_if_it_is_what_was_published(
    change: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    published = payloads(3)
    assert len(set(published)) == 3
    events = [fetched(offset, payload) for offset, payload in enumerate(published)]
    with fake_server(lambda number, inbox: b"".join(change(events)) + END) as port:
        command = [str(program("history")), "fetch", str(port), "orders", "64", "0", "3"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, said in ended.stderr) == (1 if said else 0, True)


def pulled(number: int, payload: bytes) -> bytes:
    reply = b"$JS.ACK.orders.c.1.%d.1.0.0" % (number + 1)
    return b"MSG orders.x 1 %b %d\r\n%b\r\n" % (reply, len(payload), payload)


def test_a_reader_of_jetstream_asks_again_for_what_a_new_cluster_has_lost() -> None:
    events = b"".join(pulled(number, payload) for number, payload in enumerate(payloads(3)))

    def answer(number: int, inbox: str) -> bytes:  # the first request for a consumer is lost, and the first two pulls
        return {1: message(inbox, b'{"name":"c"}') * 2, 4: events}.get(number, b"")

    with fake_server(answer) as port:
        command = [str(program("history")), "pull", str(port), "orders", "64", "0", "3"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["seconds"] < 4  # twice 2 s of silence are not in it


# -- what is made of the figures --------------------------------------------------------------------------------------


def result(ours: list[float], always: list[float], default: list[float]) -> Result:
    made = Result("sinks/r", "2026-01-01", "ours 1", "2", 1.0, 0.0, setting=driver.described(Settings()))
    for name, values in ((ZONE, ours), (ALWAYS, always), (DEFAULT, default)):
        for value in values:
            made.add(name, {"v": value})
    return made


@pytest.mark.parametrize(
    ("metric", "ours", "always", "default", "expected"),
    [
        (Metric("v", "/s", goals={ALWAYS: 8, DEFAULT: 5}), [80, 79, 81], [10], [16], "yes"),
        (Metric("v", "/s", goals={ALWAYS: 8, DEFAULT: 5}), [80], [10], [17], "no"),
        (Metric("v", "/s", goals={ALWAYS: 8, DEFAULT: 5}), [79], [10], [10], "no"),
        (Metric("v", "/s", goals={ALWAYS: 8, DEFAULT: 5}), [80], [10], [], "not measured"),
        (Metric("v", "us", goals={ALWAYS: 1}), [10], [10], [1], "yes"),
        (Metric("v", "us", goals={ALWAYS: 1}), [11], [10], [99], "no"),
        (Metric("v", "s", bound=3), [3], [9], [], "yes"),
        (Metric("v", "s", bound=3), [4], [9], [], "no"),
        (Metric("v", "part", bound=0.8), [0.8], [], [], "yes"),
        (Metric("v", "part", bound=0.8), [0.7], [], [], "no"),
        (Metric("v", "s", bound=3), [], [9], [], "not measured"),
        (Metric("v", "s"), [1], [9], [], ""),
    ],
)
def test_verdicts(metric: Metric, ours: list[float], always: list[float], default: list[float], expected: str) -> None:
    assert report.verdict(metric, result(ours, always, default)) == expected


def test_the_section_names_what_is_missing_and_what_bounds_a_row() -> None:
    row = Row("r", "some work", (Metric("v", "/s", goals={ALWAYS: 8}),), run=lambda tier, settings: {})
    how: dict[str, object] = {"window": 1, "patience_ms": 1}
    slow, absent = result([1e6], [1e6], [5e5]), result([], [1e6], [1e6])
    absent.missing[ZONE] = "gw does not start"
    text = report.section([row], {"sinks/r": slow}, how)
    assert "| some work | 1.00 M/s | 1.00 M/s | 1.00 (1.00..1.00) | 500 k/s | 2.00 (2.00..2.00) | at least 8 of" in text
    assert "- **some work**: not looked into yet." in text
    assert "| some work | n/a: gw does not start | 1.00 M/s |" in report.section([row], {"sinks/r": absent}, how)
    assert report.section([row], {}, how) == ""


def test_rows_have_keys_of_their_own() -> None:
    keys = [row.key for row in rows()]
    assert len(set(keys)) == len(keys)


def test_data_in_memory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(tiers.BenchError, match="is in memory"):
        driver.check_folder(Path("/dev/shm"))
    driver.check_folder(Path("/var/tmp"))
