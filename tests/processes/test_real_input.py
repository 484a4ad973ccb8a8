"""The promise of the project on real input: a text published under acknowledgement while the process is killed, again
and again, is in the log afterwards: every acknowledged line once, in order, byte for byte, by offset and by time.
"""

import asyncio
import os
import subprocess
import time
from collections import deque
from random import Random
from typing import NamedTuple

from nats.aio.client import Client
from support import corpus
from support.events import Lost, Publisher, Shown, everything, fetch, replay
from support.processes import BIN, Daemon, Folder, client, until

STREAM = "--stream", "text=text.>"
SUBJECT = "text.lines"
KILLS = 5


class Life(NamedTuple):
    """What one life of the server was sent: lines from `first` on; this many were sent, and acknowledged."""

    first: int
    sent: int
    acknowledged: int


def _random() -> Random:
    seed = int(os.environ.get("MESH_TEST_SEED") or Random().randrange(2**32))
    print(f"MESH_TEST_SEED={seed} repeats the moments of the kills")
    return Random(seed)


class Author:
    """Publishes numbered events through the deaths of the server; after each, it goes on behind the last answer."""

    def __init__(
        self, folder: Folder, payloads: list[bytes], random: Random, *, ids: bool, window: int = 1_000
    ) -> None:
        self.folder, self.payloads, self.random, self.ids, self.window = folder, payloads, random, ids, window
        stretch = len(payloads) * 9 // 10 // KILLS  # one kill in each, so that few fall into the same life
        self.kills = deque(part * stretch + random.randrange(stretch) for part in range(KILLS))
        self.offsets: list[int] = []  # of acknowledged lines, in the order of the lines
        self.lives: list[Life] = []

    async def run(self) -> Daemon:
        """Until all is acknowledged; the server that still lives."""
        daemon = await self.folder.up(*STREAM)
        while not await self._live(daemon):
            daemon.kill()
            if self.random.random() < 0.5:
                await self._die_young()
            daemon = await self.folder.up(*STREAM)
        assert len(self.lives) > 1 + KILLS // 2, f"too few deaths to mean anything: {self.lives}"
        return daemon

    async def _live(self, daemon: Daemon) -> bool:
        """One life of the server: whether all is acknowledged at its end."""
        first = len(self.offsets)
        async with client(self.folder.url) as connection:
            publisher = await Publisher(connection, SUBJECT, self.window).open()
            try:
                for number in range(first, len(self.payloads)):
                    self._perhaps_kill(daemon, number)
                    await publisher.send(
                        number, self.payloads[number], {"Nats-Msg-Id": str(number)} if self.ids else None
                    )
                await publisher.settle()
            except Lost:
                pass
        answers = publisher.answers
        assert list(answers) == list(range(first, first + len(answers))), "answers are missing, or not in order"
        self.offsets += [answer["offset"] for answer in answers.values()]
        self.lives.append(Life(first, len(publisher.sent), len(answers)))
        return len(self.offsets) == len(self.payloads)

    def _perhaps_kill(self, daemon: Daemon, number: int) -> None:
        if self.kills and number >= self.kills[0]:
            self.kills.popleft()
            asyncio.get_running_loop().call_later(self.random.random() * 0.05, daemon.process.kill)

    async def _die_young(self) -> None:
        """A server that is killed somewhere in its start."""
        daemon = self.folder.begin_up(*STREAM)
        await asyncio.sleep(self.random.random() * 0.6)
        daemon.kill()


async def test_a_text_outlives_kills_line_by_line(folder: Folder) -> None:
    """With ids a resend is exact: the log is the text, nothing more and nothing less."""
    lines = corpus.lines(30_000)
    author = Author(folder, lines, _random(), ids=True)
    begun_ms = time.time_ns() // 1_000_000
    daemon = await author.run()
    ended_ms = time.time_ns() // 1_000_000
    assert author.offsets == list(range(len(lines)))
    daemon.kill()
    daemon = await folder.up(*STREAM)
    async with client(folder.url) as connection:
        shown = await everything(connection, "text")
        assert [event.payload for event in shown] == lines
        assert [event.offset for event in shown] == author.offsets
        assert {event.subject for event in shown} == {SUBJECT}
        assert all(begun_ms <= event.timestamp_ms <= ended_ms for event in shown)
        await _read_in_odd_sizes(connection, shown)
        await _read_by_time(connection, shown)
    assert await daemon.stop() == 0
    await folder.up(*STREAM)
    _replay_by_time(folder, shown)


async def test_a_text_without_ids_outlives_kills(folder: Folder) -> None:
    """Without ids what was not acknowledged is sent again, and may be there twice; what was acknowledged is not."""
    lines = corpus.some_lines(20_000)
    author = Author(folder, lines, _random(), ids=False)
    await author.run()
    async with client(folder.url) as connection:
        log = [event.payload for event in await everything(connection, "text")]
    assert [log[offset] for offset in author.offsets] == lines
    position = 0
    for life, following in zip(author.lives, [*author.lives[1:], None], strict=True):
        end = author.offsets[following.first] if following is not None else len(log)
        kept = log[position:end]
        assert life.acknowledged <= len(kept) <= life.sent, (
            "acknowledged events are missing, or events came from nowhere"
        )
        assert kept == lines[life.first : life.first + len(kept)]
        position = end


async def test_large_events_outlive_kills_while_files_are_rolled_and_recycled(folder: Folder) -> None:
    """Several journal files, segments and checkpoints: 64 MiB each, and events of half a mebibyte."""
    random = _random()
    payloads = [bytes([number % 256]) * 7 + random.randbytes(600_000 - number) for number in range(300)]
    author = Author(folder, payloads, random, ids=True, window=8)
    daemon = await author.run()
    assert author.offsets == list(range(len(payloads)))
    assert (folder.data / "checkpoint").exists()
    assert len(folder.files(".segment")) > 1
    await until(lambda: len(folder.files(".journal")) < 4, "journal files are recycled behind a checkpoint")
    async with client(folder.url) as connection:
        assert [event.payload async for event in replay(connection, "text", max_bytes=8_000_000)] == payloads
    assert await daemon.stop() == 0


async def _read_in_odd_sizes(connection: Client, shown: list[Shown]) -> None:
    """Fetches of one record, of one byte, across batches, far and near."""
    offset = 0
    for max_records, max_bytes in (
        (1, 1),
        (2, 3_000),
        (997, 1_048_576),
        (10_000, 99_991),
        (1, 8_388_608),
        (77_777, 8_388_608),
    ):
        fetched = await fetch(connection, "text", offset=offset, max_records=max_records, max_bytes=max_bytes)
        count = len(fetched.events)
        assert 1 <= count <= max_records
        assert fetched.events == shown[offset : offset + count]
        assert fetched.next_offset == offset + count
        offset = fetched.next_offset
    for start in (0, 1, 50_000, len(shown) - 1):
        fetched = await fetch(connection, "text", offset=start, end_offset=start + 3)
        assert fetched.events == shown[start : start + 3]


def _middle(shown: list[Shown]) -> tuple[int, int, list[Shown]]:
    """From T of a middle line until U of a later one, and what was published in [T, U)."""
    begin, end = shown[len(shown) // 2].timestamp_ms, shown[len(shown) * 3 // 4].timestamp_ms
    expected = [event for event in shown if begin <= event.timestamp_ms < end]
    assert 1_000 < len(expected) < len(shown)
    return begin, end, expected


async def _read_by_time(connection: Client, shown: list[Shown]) -> None:
    begin, end, expected = _middle(shown)
    first = await fetch(connection, "text", timestamp=begin, max_records=1)
    assert first.events == expected[:1]
    found = [
        event
        async for event in replay(connection, "text", offset=expected[0].offset)
        if begin <= event.timestamp_ms < end
    ]
    assert found == expected


def _replay_by_time(folder: Folder, shown: list[Shown]) -> None:
    """The same by the command that a person would use."""
    begin, end, expected = _middle(shown)
    command = [
        BIN / "mesh",
        "replay",
        "text",
        "--from",
        f"@{begin}",
        "--until",
        f"@{end}",
        "--raw",
        "--server",
        folder.url,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout.split(b"\n")[:-1] == [event.payload for event in expected]
