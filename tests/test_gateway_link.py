"""A gateway's link to its zone's sinks, against sinks on loopback that lead or not, change, hang, or fall silent."""

import asyncio
import contextlib
import time

import pytest
from support.processes import free_ports, until
from support.streams import state

from gateway.shell.gateway import Gateway
from gateway.shell.history import _partition_row
from gateway.shell.link import SinkDial, SinkLink
from gateway.shell.links import SinkLinks
from protocol import config, link
from protocol.errors import LogError


class FakeSink:
    """Says what it is told to say. `hangs`: takes connections and what they bring, and says nothing."""

    def __init__(self, name: str, *, leads: bool = False, leader: str = "", calls_itself: str = "") -> None:
        self.name, self.leads, self.leader, self.calls_itself = name, leads, leader, calls_itself or name
        self.hangs = self.hangs_up = False
        self.made = 0
        self.nonces: list[bytes] = []
        self.streams_revision = 0
        self.connections: set[Connection] = set()

    async def __aenter__(self):
        self.server = await asyncio.get_running_loop().create_server(lambda: Connection(self), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception):
        self.server.close()
        self.close()
        await self.server.wait_closed()

    def close(self):
        for connection in self.connections:
            connection.transport.close()

    def say(self, message: link.Message):
        for connection in self.connections:
            connection.transport.write(link.pack(message))

    @property
    def dial(self) -> SinkDial:
        return dial(self.name, self.port)


class Connection(asyncio.Protocol):
    def __init__(self, sink: FakeSink) -> None:
        self.sink, self.reader = sink, link.FrameReader()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.sink.made += 1
        self.sink.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.sink.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        for frame in self.reader.feed(data):
            if not self.sink.hangs:
                self.take(frame.message)

    def take(self, message: link.Message) -> None:
        sink = self.sink
        if isinstance(message, link.Hello):
            welcome = link.Welcome("mesh", "local", sink.calls_itself, sink.leads, "disk", sink.leader)
            self.transport.write(link.pack(welcome) + link.pack(link.Streams(sink.streams_revision, ())))
        elif isinstance(message, link.Open):
            sink.nonces.append(message.nonce)
            if sink.hangs_up:
                self.transport.close()
            self.transport.write(link.pack(link.Opened(1, len(sink.nonces), message.nonce, ())))
        elif isinstance(message, link.Ping):
            self.transport.write(link.pack(link.Pong()))


class NotingOutbox:
    """Stands for the outbox: remembers what the link has told it."""

    def __init__(self) -> None:
        self.is_up = False
        self.times_told = 0

    def link_up(self, opened: link.Opened, group: int) -> None:
        self.is_up = True

    def link_down(self, now_ms: int, group: int) -> None:
        self.is_up = False

    def streams_told(self, message: link.Streams, group: int) -> None:
        self.times_told += 1

    def take_frames(self, group: int) -> list[bytes]:
        return []

    def refused(self, refused: link.Refused, now_ms: int) -> None:
        pass


def dial(name: str, port: int) -> SinkDial:
    loop = asyncio.get_running_loop()
    return SinkDial(name, lambda factory: loop.create_connection(factory, "127.0.0.1", port))


@contextlib.asynccontextmanager
async def running(*dials: SinkDial):
    """A link that is kept while the block runs."""
    nonces = (b"%016d" % number for number in range(1_000_000))
    sink_link = SinkLink(
        dials,
        link.Hello("mesh", "local", "gw1"),
        lambda: link.Open("gw1", 0, next(nonces)),
        NotingOutbox(),
        lambda: time.monotonic_ns() // 1_000_000,
        lambda: None,
    )
    task = asyncio.create_task(sink_link.run())
    try:
        yield sink_link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def three(**leading: bool):
    async with FakeSink("a") as a, FakeSink("b") as b, FakeSink("c") as c:
        for sink in (a, b, c):
            sink.leads = leading.get(sink.name, False)
        yield a, b, c


async def up(sink_link: SinkLink, sink: FakeSink) -> float:
    """Waits for a link to `sink`; seconds that it took."""
    began = time.monotonic()
    await until(lambda: sink_link.sink == sink.name, f"a link to {sink.name}")
    return time.monotonic() - began


# -- finding the leader -----------------------------------------------------------------------------------------------


async def test_the_named_leader_is_asked_next():
    async with three(c=True) as (a, b, c), running(a.dial, b.dial, c.dial) as sink_link:
        a.leader = "c"
        await up(sink_link, c)
        assert (a.made, b.made, c.made) == (1, 0, 1)
        assert (sink_link.connects, sink_link.failed_attempts, sink_link.problem) == (2, 1, None)


async def test_without_a_hint_they_have_their_turn_without_a_pause(monkeypatch):
    monkeypatch.setattr("gateway.shell.link.RETRY_MS_MIN", 60_000)
    async with three(c=True) as (a, b, c), running(a.dial, b.dial, c.dial) as sink_link:
        await up(sink_link, c)
        assert (a.made, b.made, c.made) == (1, 1, 1)


async def test_two_that_name_each_other_are_asked_once_a_round(monkeypatch):
    monkeypatch.setattr("gateway.shell.link.RETRY_MS_MIN", 60_000)
    async with three() as (a, b, c), running(a.dial, b.dial, c.dial) as sink_link:
        a.leader, b.leader = "b", "a"
        await until(lambda: sink_link.failed_attempts == 3, "a whole round")
        await asyncio.sleep(0.05)
        assert (a.made, b.made, c.made) == (1, 1, 1)


async def test_what_was_tried_is_told_and_rounds_are_apart():
    (nobody,), began = free_ports(1), time.monotonic()
    async with three() as (_, b, c), running(dial("a", nobody), b.dial, c.dial) as sink_link:
        b.leader = "c"
        assert sink_link.problem == "no sink of zone local leads: not connected yet"
        await until(lambda: sink_link.failed_attempts >= 3, "a whole round")
        problem = (
            "no sink of zone local leads: a: connection refused; b: does not lead (names c); c: does not lead "
            "(names none)"
        )
        assert sink_link.problem == problem
        with pytest.raises(LogError, match=r"a: connection refused; b: does not lead"):
            await sink_link.describe()
        await until(lambda: b.made >= 6, "six rounds")
        assert time.monotonic() - began > 0.6  # pauses of 20, 40, 80, 160 and 320 ms


async def test_a_sink_under_the_address_of_another_is_refused():
    async with FakeSink("b", leads=True, calls_itself="c") as b, running(b.dial) as sink_link:
        await until(lambda: sink_link.failed_attempts > 0, "an attempt")
        assert sink_link.problem == "no sink of zone local leads: b: calls itself c"


async def test_streams_of_a_sink_that_does_not_lead_are_not_believed():
    async with three(c=True) as (a, b, c), running(a.dial, b.dial, c.dial) as sink_link:
        await up(sink_link, c)
        assert sink_link._outbox.times_told == 1


# -- losing it --------------------------------------------------------------------------------------------------------


async def test_when_the_leader_closes_the_others_are_asked_at_once(monkeypatch):
    async with three(a=True) as (a, b, c), running(a.dial, b.dial, c.dial) as sink_link:
        await up(sink_link, a)
        monkeypatch.setattr("gateway.shell.link.RETRY_MS_MIN", 60_000)
        a.leads, b.leads, c.leader = False, True, "b"
        a.close()
        await up(sink_link, b)
        assert a.made == 1
        assert sink_link._outbox.is_up


async def test_a_leader_that_refuses_as_not_leading_is_left():
    async with three(a=True) as (a, b, c), running(a.dial, b.dial, c.dial) as sink_link:
        await up(sink_link, a)
        a.leads, c.leads = False, True
        a.say(link.Refused(1, 1, "orders", b"i" * 16, 0, 1, "NOT_LEADER"))
        await up(sink_link, c)


async def test_requests_under_way_fail_by_name_when_the_leader_goes():
    async with three(a=True) as (a, b, c), running(a.dial, b.dial, c.dial) as sink_link:
        await up(sink_link, a)
        asking = asyncio.create_task(sink_link.describe())
        await asyncio.sleep(0.05)
        a.close()
        with pytest.raises(LogError, match="the link to the sink was lost"):
            await asking


async def test_a_stopped_leader_is_left_for_its_silence():
    """It keeps its connection, and takes new ones: so the kernel does for a process that got SIGSTOP."""
    async with three(a=True) as (a, b, c), running(a.dial, b.dial, c.dial) as sink_link:
        await up(sink_link, a)
        a.hangs = True
        b.leader, c.leads = "a", True  # b has not noticed yet
        assert 1.5 < await up(sink_link, c) < 30  # less than 3, where nothing else runs
        assert a.made == 1


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_sink_that_does_not_answer_is_given_up_after_a_second(accepts):
    async def never(factory):
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with FakeSink("a") as a, FakeSink("b", leads=True) as b:
        a.hangs = True
        async with running(a.dial if accepts else SinkDial("a", never), b.dial) as sink_link:
            assert 0.9 < await up(sink_link, b) < 30


async def test_what_a_hanging_sink_is_said_to_have_done():
    async def never(factory):
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with FakeSink("b") as b:
        b.hangs = True
        async with running(SinkDial("a", never), b.dial) as sink_link:
            await until(lambda: sink_link.failed_attempts == 2, "a whole round")
            expected = "a: no connection within 1000 ms; b: silent for 1000 ms"
            assert sink_link.problem == f"no sink of zone local leads: {expected}"


# -- one sink, within a gateway ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def gateway(sink: FakeSink, tmp_path):
    anywhere = config.Address("127.0.0.1", 0)
    configuration = config.embedded(client=anywhere, monitor=None, data=str(tmp_path), mode="event-sinks", streams={})
    made = Gateway(configuration, "gw1", [sink.dial], "test")
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def test_every_link_is_opened_with_a_nonce_of_its_own(tmp_path):
    """The sink fences what older links still carry by it; the outbox relies on that."""
    async with FakeSink("sink1", leads=True) as sink:
        sink.hangs_up = True
        async with gateway(sink, tmp_path):
            await until(lambda: len(sink.nonces) >= 3, "three links")
        assert len(set(sink.nonces)) == len(sink.nonces)
        assert all(len(nonce) == 16 for nonce in sink.nonces)


async def test_a_process_that_was_held_up_does_not_take_that_for_silence_of_the_sink(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.shell.link.LINK_PING_INTERVAL_MS", 20)
    monkeypatch.setattr("gateway.shell.link.LINK_SILENCE_MS_MAX", 100)
    async with FakeSink("sink1", leads=True) as sink, gateway(sink, tmp_path) as running_gateway:
        await asyncio.wait_for(running_gateway.linked(), 60)
        for _ in range(3):
            await asyncio.sleep(0.05)
            time.sleep(0.2)  # noqa: ASYNC251  # nothing runs meanwhile
        await asyncio.sleep(0.05)
        assert sink.made == 1


async def test_a_silent_sink_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.shell.link.LINK_PING_INTERVAL_MS", 20)
    monkeypatch.setattr("gateway.shell.link.LINK_SILENCE_MS_MAX", 100)
    async with FakeSink("sink1", leads=True) as sink, gateway(sink, tmp_path) as running_gateway:
        await asyncio.wait_for(running_gateway.linked(), 60)
        sink.hangs = True
        await until(lambda: sink.made >= 2, "another link")
        assert running_gateway.health() == "no sink of zone local leads: sink1: silent for 100 ms"


class DescribingLink:
    """Stands for the link to a group: says this of each stream, or fails."""

    def __init__(self, answer: link.Described | LogError) -> None:
        self._answer = answer

    async def describe(self, stream: str) -> link.Described:
        if isinstance(self._answer, LogError):
            raise self._answer
        return self._answer


SPREAD = state("orders", partitions=4, groups=2)
LOST = LogError("LEADER_NOT_AVAILABLE", "no sink of zone local leads group 1")


def described(*partitions: int) -> link.Described:
    rows = tuple(link.PartitionDescription(number, 1, 5, 100) for number in partitions)
    return link.Described(1, 7, "s1", ((SPREAD, rows),))


async def describe(*answers: link.Described | LogError) -> list[dict[str, object]]:
    links = SinkLinks(0, (), link.Hello("mesh", "local", "gw1"), None, None, None, None)
    links._links = [DescribingLink(answer) for answer in answers]
    ((_, partitions),) = await links.describe([SPREAD])
    return [_partition_row(partition) for partition in partitions]


@pytest.mark.parametrize("other", [LOST, described()], ids=["no leader", "has not learnt of the stream"])
async def test_where_a_group_does_not_answer_its_partitions_alone_are_marked(other):
    led = SPREAD.partitions_of(0)
    assert len(led) == 2
    rows = await describe(described(*led), other)
    assert [row["partition"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        ends = row["log_start_offset"], row["high_watermark"], row["size_bytes"]
        seen = row["leader"], row["leader_epoch"], *ends, row.get("error")
        here = row["partition"] in led
        assert seen == (("s1", 7, 1, 5, 100, None) if here else (None, -1, -1, -1, -1, "LEADER_NOT_AVAILABLE"))


@pytest.mark.parametrize(
    ("answers", "says"),
    [((LOST, LOST), "leads group 1"), ((described(0), LogError("UNKNOWN_STREAM", "no stream 'a'")), "no stream 'a'")],
)
async def test_where_no_group_answers_or_one_refuses_so_is_the_question(answers, says):
    with pytest.raises(LogError, match=says):
        await describe(*answers)
