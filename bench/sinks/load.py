"""Runs the load generators in C: `acks` publishes and counts acknowledgements, `history` reads."""

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from bench.processes import BenchError
from bench.programs import program
from bench.sinks.tiers import STREAM, SUBJECT, Tier

END_WAIT_S_MAX = 60.0
FILL_S_MAX = 3600.0
FILL_WINDOW = 4096


@dataclass(frozen=True)
class Acked:
    """What a publisher saw. Times are 0 where they were not kept."""

    published: int
    events: int  # acknowledged
    refused: int
    given_up: int  # not answered in time
    late: int  # ... and acknowledged after all
    per_second: float
    p50_us: float
    p99_us: float
    longest_gap_s: float  # between two acknowledgements
    cpu_ns: float  # of all processes of the tier, for an event
    last_refusal: str


class Publishing:
    """A publisher under way; `result` waits for its end."""

    def __init__(
        self, tier: Tier, payload_bytes: int, window: int, seconds: float,
        *, count: int = 0, first: int = 0, patience_ms: int = 0, leads: bool = True,
    ) -> None:  # fmt: skip
        self._tier, self._seconds, self._cpu_s = tier, seconds, tier.cpu_s()
        words = [tier.port(leads=leads), SUBJECT, payload_bytes, window, seconds, count, first, patience_ms]
        command = [str(program("acks")), *(str(word) for word in words)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def result(self) -> Acked:
        seen = _end_of(self._process, self._seconds + END_WAIT_S_MAX, self._tier)
        events = int(seen["acked"])
        if not events:
            raise BenchError(f"{self._tier.name}: nothing was acknowledged ({seen['last_refusal']})")
        return Acked(
            published=int(seen["published"]),
            events=events,
            refused=int(seen["refused"]),
            given_up=int(seen["given_up"]),
            late=int(seen["late"]),
            per_second=events / float(seen["seconds"]),
            p50_us=seen["p50_ns"] / 1e3,
            p99_us=seen["p99_ns"] / 1e3,
            longest_gap_s=seen["longest_gap_ns"] / 1e9,
            cpu_ns=max(0.0, self._tier.cpu_s() - self._cpu_s) / events * 1e9,
            last_refusal=str(seen["last_refusal"]),
        )

    def end(self) -> None:
        """At once, unless its result was taken."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def publish(tier: Tier, payload_bytes: int, window: int, seconds: float, *, first: int = 0) -> Acked:
    """Publishes for `seconds`; events are numbered from `first`. BenchError unless each is acknowledged."""
    publishing = Publishing(tier, payload_bytes, window, seconds, first=first)
    try:
        return publishing.result()
    finally:
        publishing.end()


def fill(tier: Tier, payload_bytes: int, count: int) -> Acked:
    """Publishes the events 0 to `count` - 1, all of which the tier holds in the end."""
    publishing = Publishing(tier, payload_bytes, FILL_WINDOW, FILL_S_MAX, count=count)
    try:
        acked = publishing.result()
    finally:
        publishing.end()
    if acked.events != count:
        raise BenchError(f"{tier.name}: {acked.events} of {count} events after {FILL_S_MAX:g} s")
    return acked


def read(tier: Tier, how: str, payload_bytes: int, count: int, *, first: int = 0) -> float:
    """Events a second of one reader in C. `how` = `fetch`, `push` or `pull`, see history.c. Every byte is checked."""
    words = [how, tier.port(), STREAM, payload_bytes, first, count]
    process = subprocess.Popen(
        [str(program("history")), *(str(word) for word in words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return count / float(_end_of(process, FILL_S_MAX, tier)["seconds"])


def _end_of(process: "subprocess.Popen[str]", wait_s: float, tier: Tier) -> dict[str, Any]:
    """The JSON that it prints. BenchError when it fails or does not end."""
    try:
        printed, said = process.communicate(timeout=wait_s)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise BenchError(f"{tier.name}: a load generator does not end") from error
    if process.returncode != 0:
        raise BenchError(f"{tier.name}: {said.strip()} ({tier.complaints()})")
    seen: dict[str, Any] = json.loads(printed)
    return seen
