"""What is published beside the generators of `bench`: random bytes, real text, at a pace, and one by one."""

import os
import re
import socket
import sysconfig
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Final

from bench.processes import BenchError
from bench.sinks.tiers import SUBJECT
from bench.wire import connect_to
from bench.zones.pairs import Pair

CHUNK: Final = 500  # events that are sent before the answers to those before them are looked for
TICK_S: Final = 0.01
READ_BYTES: Final = 1 << 18
_INBOX: Final = b"_INBOX.zones"
_ANSWER: Final = re.compile(rb"H?MSG _INBOX\.watch [^\r]*?(\d+)\r\n")
_LINE_BYTES_MIN: Final = 60  # as lines of logs have


def random_events(count: int, size_bytes: int) -> Iterator[bytes]:
    """Nothing of it can be compressed."""
    return (os.urandom(size_bytes) for _ in range(count))


def text_events(total_bytes: int) -> list[bytes]:
    """Long lines of text that people have written: the sources of Python's library, in the order of their files."""
    lines: list[bytes] = []
    left = total_bytes
    library = Path(sysconfig.get_path("stdlib"))
    for file in (*sorted(library.glob("*.py")), *sorted(library.glob("*/*.py"))):
        for line in file.read_bytes().splitlines():
            if len(line) >= _LINE_BYTES_MIN:
                lines.append(line)
                left -= len(line)
                if left <= 0:
                    return lines
    raise BenchError(f"Python's library has {left} bytes of text too few")


def publish_all(pair: Pair, events: Iterable[bytes]) -> int:
    """How many there were; each is acknowledged. BenchError."""
    count = answered = 0
    with _Connection(pair.port()) as connection:
        todo = iter(events)
        while chunk := list(islice(todo, CHUNK)):
            connection.publish(chunk)
            answered = connection.take(count)  # those of the chunk before
            count += len(chunk)
        while answered < count:
            answered = connection.take(count)
    return count


class _Connection:
    """Publishes with a reply subject, and counts the answers."""

    def __init__(self, port: int) -> None:
        self._socket: socket.socket = connect_to(port, b"SUB %b 1\r\n" % _INBOX)
        self._rest, self.answers = b"", 0

    def __enter__(self) -> "_Connection":
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def publish(self, events: list[bytes], head: bytes = b"") -> None:
        verb = b"HPUB" if head else b"PUB"
        sizes = b"%d " % len(head) if head else b""
        line = b"%b %b %b %b%%d\r\n" % (verb, SUBJECT.encode(), _INBOX, sizes)
        self._socket.sendall(b"".join(line % (len(head) + len(event)) + head + event + b"\r\n" for event in events))

    def take(self, wanted: int) -> int:
        """Reads until so many were answered; how many were. BenchError: one is no acknowledgement."""
        while self.answers < wanted:
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise BenchError("the connection of a publisher was closed")
            lines = (self._rest + data).split(b"\r\n")
            self._rest = lines.pop()
            for line in lines:
                if line.startswith(b"{"):
                    if b'"error"' in line:
                        raise BenchError(f"not acknowledged: {line.decode(errors='replace')}")
                    self.answers += 1
                elif line == b"PING":
                    self._socket.sendall(b"PONG\r\n")
        return self.answers


def publish_paced(pair: Pair, per_second: int, size_bytes: int, seconds: float) -> list[tuple[float, int]]:
    """When how many had been published: (monotonic seconds, events in all), a tick apart. Each is acknowledged."""
    each, ticks = round(per_second * TICK_S), round(seconds / TICK_S)
    bodies = [os.urandom(size_bytes) for _ in range(each)]
    sent: list[tuple[float, int]] = []
    with _Connection(pair.port()) as connection:
        begin = time.monotonic()
        for number in range(ticks):
            time.sleep(max(0.0, begin + number * TICK_S - time.monotonic()))
            sent.append((time.monotonic(), (number + 1) * each))
            connection.publish(bodies)
            connection.take(max(0, number - 100) * each)
        connection.take(ticks * each)
    return sent


def p50_ms(pair: Pair, ack: str, count: int) -> float:
    """Of one publish after the other, which asks for this acknowledgement. BenchError: it got another."""
    head = b"NATS/1.0\r\nMesh-Ack: %b\r\n\r\n" % ack.encode()
    times = []
    with _Connection(pair.port()) as connection:
        for number in range(count):
            begin = time.monotonic()
            connection.publish([b"x" * 128], head)
            connection.take(number + 1)
            times.append((time.monotonic() - begin) * 1e3)
    return median(times)


class Watch:
    """Asks for the same again and again, over one connection; for how many events a copy has."""

    def __init__(self, port: int, subject: str, found: bytes) -> None:
        """`found` is a pattern whose group has the number."""
        self._socket = connect_to(port, b"SUB _INBOX.watch 1\r\n")
        self._ask = b"PUB %b _INBOX.watch 0\r\n\r\n" % subject.encode()
        self._found = re.compile(found)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def look(self) -> int:
        """0 while there is no copy. BenchError: no answer."""
        self._socket.sendall(self._ask)
        data = b""
        while (head := _ANSWER.search(data)) is None or len(data) < head.end() + int(head[1]):
            came = self._socket.recv(READ_BYTES)
            if not came:
                raise BenchError("whoever is asked for its copy has closed the connection")
            data += came
        if b"PING\r\n" in data:
            self._socket.sendall(b"PONG\r\n")
        found = self._found.search(data)
        return int(found[1]) if found is not None else 0


def lag_ms(sent: list[tuple[float, int]], seen: list[tuple[float, int]]) -> list[float]:
    """At each look: the age of the oldest event that was published and not seen, 0 if all were."""
    found, at = [], 0
    for when, count in seen:
        while at < len(sent) and sent[at][1] <= count:
            at += 1
        found.append(max(0.0, (when - sent[at][0]) * 1e3) if at < len(sent) and sent[at][0] < when else 0.0)
    return found
