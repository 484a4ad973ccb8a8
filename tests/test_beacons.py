"""Beacons: what a gateway says of what it took in, when, and who has said it."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from nats.aio.client import Client
from support.certificates import Authority
from support.events import everything, readable
from support.gateways import gateways_of, url_of, zone_text
from support.processes import client, settle, until
from support.sinks import SinkZone
from support.streams import state

from gateway.core.outbox import Outbox
from gateway.shell.beacons import Beacons, Speaker, Unkept
from gateway.shell.gateway import Gateway
from mesh.daemon import dial_sinks
from mesh.node_signing import NodeSigning
from protocol import config, coverage, envelope, limits, link
from protocol.config import TlsNodes
from protocol.coverage import Beacon, Row, Signed, Uncovered, signed_in
from protocol.envelope import Envelope
from protocol.errors import SignatureError
from protocol.limits import BEACON_INTERVAL_MS, BEACON_SILENCE_MS_MAX
from protocol.link import Answer, Appended, Opened, Reached, Refused
from protocol.node_names import NodeName
from protocol.records import read_records
from protocol.streams import StreamState

ORDERS = state("orders", covered=True)
BEACONS = state(
    coverage.STREAM, subjects=coverage.SUBJECTS, reply="header", account=coverage.ACCOUNT, outbox_bytes=100_000
)
WALL_MS = 1_700_000_000_000
SPEAKER = Speaker("acme", "eu", "gw1", 0, "cafe", spool=False)


class Bench:
    """An outbox and its beacons; a log that takes what it is sent when it is told to, and remembers the beacons."""

    def __init__(self, *streams: StreamState, sign: coverage.Sign | None = None, keeps_log: bool = True) -> None:
        self.now_ms, self.epoch, self.runs = 10_000, 0, 0
        self.unkept = Unkept(0, 0)
        self.outbox = Outbox("eu", lambda account, reply, body: None, new_run=self.new_run)
        self.outbox.set_streams(streams or (ORDERS, BEACONS))
        self.outbox.link_down(self.now_ms)
        self.beacons = Beacons(
            self.outbox, SPEAKER, sign, lambda: self.unkept, lambda: self.now_ms, lambda: WALL_MS + self.now_ms,
            lambda: None, keeps_log=keeps_log,
        )  # fmt: skip
        self.heads: list[Envelope] = []  # what was sent, and is not answered
        self.offset = 0

    def new_run(self) -> bytes:
        self.runs += 1
        return self.runs.to_bytes(8, "big")

    def link_up(self, *reached: Reached) -> None:
        self.epoch += 1
        self.outbox.link_up(Opened(1, self.epoch, b"n%d" % self.epoch, reached))

    def link_down(self) -> None:
        self.outbox.link_down(self.now_ms)
        self.heads.clear()

    def publish(self, payload: bytes = b"x", subject: str = "orders.new", **headers: str) -> None:
        block = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        header_block = f"NATS/1.0\r\n{block}\r\n".encode() if headers else b""
        self.outbox.publish("$G", subject, "", header_block, payload, self.now_ms, WALL_MS)

    def send(self) -> list[Envelope]:
        """What is ready leaves; heads of `orders`."""
        self.now_ms += 2
        self.outbox.flush(self.now_ms)
        frames = link.FrameReader().feed(b"".join(self.outbox.take_frames()))
        self.parcels = [parcel for frame in frames for parcel in envelope.unpack(frame.tail)]
        self.heads += [parcel.envelope for parcel in self.parcels]
        return [parcel.envelope for parcel in self.parcels if parcel.envelope.stream == "orders"]

    def appended(self, head: Envelope) -> None:
        self.offset += 1
        names = head.stream, head.incarnation, head.partition
        self.outbox.appended(Appended(head.producer_id, head.epoch, *names, head.first_sequence, self.offset))

    def refused(self, head: Envelope, reason: str) -> None:
        names = head.stream, head.incarnation, head.partition
        self.outbox.refused(Refused(head.producer_id, head.epoch, *names, head.first_sequence, reason), self.now_ms)

    def commit(self) -> list[Envelope]:
        """All that waits leaves and is taken; heads of `orders`."""
        taken = []
        while sent := self.send() or self.heads:
            taken += [head for head in self.heads if head.stream == "orders"]
            heads, self.heads = self.heads, []
            for head in heads:
                self.appended(head)
            del sent
        return taken

    def told(self) -> list[Beacon]:
        """The beacons that leave now, all in the log at once."""
        self.send()
        found = []
        for parcel in self.parcels:
            if parcel.envelope.stream == coverage.STREAM:
                self.records = list(read_records(parcel.batch))
                found += [msgspec.json.decode(record.payload, type=Beacon) for record in self.records]
                self.heads.remove(parcel.envelope)
                self.appended(parcel.envelope)
        return found

    def tick(self, after_ms: int = BEACON_INTERVAL_MS) -> list[Beacon]:
        self.now_ms += after_ms
        self.beacons.tick()
        return self.told()


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.link_up()
    return made


# -- when -------------------------------------------------------------------------------------------------------------


def test_one_a_second_if_something_has_changed_else_one_in_five(bench: Bench) -> None:
    bench.publish()
    bench.commit()
    written = [0, *[len(bench.tick(100)) for _ in range(60)]]
    numbers = [at for at, count in enumerate(written) for _ in range(count)]
    assert numbers == [1, 1 + BEACON_SILENCE_MS_MAX // BEACON_INTERVAL_MS * 10]
    assert (bench.beacons.written["whole"], bench.beacons.written["changes"]) == (1, 1)
    for _ in range(50):
        bench.publish()
        bench.commit()
        assert len(bench.tick(100)) <= 1
    assert 4 <= bench.beacons.written["changes"] - 1 <= 6


def test_a_whole_one_each_minute_has_all_rows_and_the_others_what_has_changed() -> None:
    metrics = state("metrics", covered=True)
    bench = Bench(ORDERS, metrics, BEACONS)
    bench.link_up()
    bench.publish()
    bench.publish(subject="metrics.x")
    bench.commit()
    (first,) = bench.tick(0)
    assert (first.whole, [row.stream for row in first.rows]) == (True, ["orders", "metrics"])
    assert bench.tick() == []
    bench.publish(subject="metrics.x")
    bench.commit()
    (second,) = bench.tick()
    assert (second.whole, [row.stream for row in second.rows]) == (False, ["metrics"])
    beacons = [beacon for _ in range(60) for beacon in bench.tick()]
    assert [len(beacon.rows) for beacon in beacons if beacon.whole] == [2]
    assert (second.mesh, second.zone, second.node, second.worker, second.process) == SPEAKER[:5]
    numbers = [first.number, second.number, *[beacon.number for beacon in beacons]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert beacons[-1].time > WALL_MS + 60_000


def test_none_while_the_link_is_down_and_then_one_that_says_where_everything_stands(bench: Bench) -> None:
    bench.publish()
    bench.commit()
    bench.tick()
    bench.publish()
    (head,) = bench.send()
    bench.link_down()
    for _ in range(100):
        assert bench.tick() == []
    assert bench.outbox.is_empty_but("orders")  # none waits, either
    bench.link_up(Reached("orders", b"orders", 0, 1, ()))
    assert bench.send()[0].first_sequence == head.first_sequence == 2
    (beacon,) = bench.tick()
    (row,) = beacon.rows
    assert (beacon.whole, row.acknowledged, row.next) == (True, 1, 3)


def test_none_into_a_stream_that_is_not_there_or_full(bench: Bench) -> None:
    bench.publish()
    bench.commit()
    bench.outbox.set_streams([ORDERS])
    assert bench.tick() == []
    bench.outbox.set_streams([ORDERS, msgspec.structs.replace(BEACONS, outbox_bytes=0)])
    assert bench.tick() == []
    bench.outbox.set_streams([ORDERS, BEACONS])
    assert len(bench.tick()) == 1


def test_a_last_one_is_whole_and_nothing_comes_behind_it(bench: Bench) -> None:
    bench.publish()
    bench.commit()
    bench.tick()
    bench.publish()
    bench.send()  # and it is not answered
    assert bench.beacons.close()
    (last,) = bench.told()
    (row,) = last.rows
    assert (last.closing, last.whole, row.acknowledged, row.next) == (True, True, 1, 3)
    assert not bench.beacons.close()
    assert [bench.tick() for _ in range(10)] == [[]] * 10


def test_a_last_one_needs_a_link(bench: Bench) -> None:
    bench.link_down()
    assert not bench.beacons.close()


def test_what_has_no_room_in_one_is_told_in_several(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.shell.beacons.BEACON_ROWS_MAX", 2)
    wide = state("wide", partitions=5, key="token:2", covered=True)
    bench.outbox.set_streams([wide, BEACONS])
    for number in range(40):
        bench.publish(subject=f"wide.{number}")
    bench.commit()
    beacons = bench.tick()
    assert [len(beacon.rows) for beacon in beacons] == [2, 2, 1]
    assert not any(beacon.whole for beacon in beacons)
    assert bench.beacons.close()
    assert [(beacon.closing, beacon.whole) for beacon in bench.told()] == [
        (False, False),
        (False, False),
        (True, False),
    ]


def test_the_largest_one_fits_into_a_batch() -> None:
    row = Row(
        stream="s" * limits.NAME_CHARACTERS_MAX, incarnation="a" * 32, partition=1023, run="a" * 16, base=2**62,
        acknowledged=2**62, mark=2**62, chain="a" * 64, next=2**62, held=2**62, batches=2**62, bytes=2**62,
    )  # fmt: skip
    size_bytes = limits.BEACON_ROWS_MAX * len(msgspec.json.encode(row))
    assert size_bytes < limits.BATCH_BYTES_MAX - limits.MIB


# -- what it says -----------------------------------------------------------------------------------------------------


def test_the_first_batch_names_the_run_whenever_it_is_sent_and_one_a_second_is_marked(bench: Bench) -> None:
    bench.publish()
    (first,) = bench.send()
    assert (first.run, first.mark, first.first_sequence) == (b"\0" * 7 + b"\1", True, 1)
    bench.link_down()
    bench.link_up()
    (again,) = bench.send()
    assert (again.run, again.mark) == (first.run, True)
    bench.appended(again)
    bench.heads.clear()
    heads = []
    for _ in range(6):
        bench.publish()
        heads += bench.commit()
    assert [(head.run, head.mark) for head in heads] == [(b"", False)] * 6
    bench.tick()
    bench.publish()
    (head,) = bench.commit()
    assert head.mark
    (beacon,) = bench.tick()
    assert beacon.rows[0].mark == head.last_sequence == 8


def test_a_row_says_the_chain_at_the_latest_mark_then_at_the_end(bench: Bench) -> None:
    for payload in (b"a", b"b", b"c"):
        bench.publish(payload)
        bench.commit()
    (row,) = bench.tick()[0].rows
    assert (row.base, row.acknowledged, row.mark, row.next, row.held, row.batches) == (0, 3, 1, 4, 3, 3)
    (end,) = bench.tick()[0].rows
    assert (end.acknowledged, end.mark) == (3, 3)
    assert msgspec.structs.replace(end, mark=1, chain=row.chain) == row
    assert bench.tick() == []


def test_what_is_under_way_and_what_waits_stands_between_acknowledged_and_next(bench: Bench) -> None:
    bench.publish()
    bench.commit()
    bench.publish()
    bench.send()
    for _ in range(3):
        bench.publish()  # it waits: with one in flight a batch lingers
    (row,) = bench.outbox.coverage_rows(whole=True)
    assert (row.acknowledged, row.next) == (1, 6)


def test_refused_for_good_is_spent_and_counted_in_the_row_and_the_rest_by_code(bench: Bench) -> None:
    bench.publish(b"a", Nats_Expected_Last_Sequence="7")
    (head,) = bench.send()
    bench.refused(head, "WRONG_LAST_SEQUENCE")
    bench.heads.clear()
    bench.publish(b"b", Nats_Rollup="all")
    bench.publish(b"c")
    bench.commit()
    (beacon,) = bench.tick()
    (row,) = beacon.rows
    assert (row.acknowledged, row.held, row.refused, row.batches) == (2, 1, 1, 1)
    assert beacon.refused == {"10111": 1}


def test_a_log_that_has_lost_something_ends_the_run_and_the_next_begins_behind_what_is_left(bench: Bench) -> None:
    for payload in (b"a", b"b", b"c"):
        bench.publish(payload)
        bench.commit()
    bench.tick()
    bench.link_down()
    bench.link_up(Reached("orders", b"orders", 0, 1, ()))  # of three
    bench.publish(b"d")
    (head,) = bench.commit()
    assert (head.first_sequence, head.run) == (2, b"\0" * 7 + b"\2")
    old, new = bench.tick()[0].rows
    assert (old.is_over, old.run, old.base, old.acknowledged, old.mark, old.next) == (True, "0" * 15 + "1", 0, 3, 3, 4)
    assert (new.is_over, new.run, new.base, new.acknowledged, new.held) == (False, "0" * 15 + "2", 1, 2, 1)
    assert bench.outbox.accounts.runs_over == 1
    assert not any(row.is_over for beacon in [*bench.tick(), *bench.tick()] for row in beacon.rows)


def test_what_another_gateway_of_our_name_has_done_ends_the_run_and_names_what_nobody_knows(bench: Bench) -> None:
    bench.publish(b"a")
    bench.commit()
    bench.publish(b"b")
    bench.send()
    bench.link_down()
    other = Answer(2, 12345, 7)
    bench.link_up(Reached("orders", b"orders", 0, 5, (other,)))
    (old,) = bench.outbox.coverage_rows(whole=False)
    assert (old.is_over, old.acknowledged, old.next) == (True, 1, 3)
    bench.publish(b"c")
    (head,) = bench.commit()
    assert (head.first_sequence, head.run) == (6, b"\0" * 7 + b"\2")


def test_answers_that_come_before_older_ones_wait_for_them(bench: Bench) -> None:
    heads = []
    for payload in (b"a", b"b", b"c"):
        bench.publish(payload)
        heads += bench.send()
    for head in (heads[1], heads[2]):
        bench.appended(head)
    (row,) = bench.outbox.coverage_rows(whole=True)
    assert (row.acknowledged, row.held, row.chain) == (0, 0, "0" * 64)
    bench.appended(heads[0])
    (row,) = bench.outbox.coverage_rows(whole=True)
    assert (row.acknowledged, row.held, row.mark) == (3, 3, 1)


def test_given_up_events_are_gaps(bench: Bench) -> None:
    small = msgspec.structs.replace(ORDERS, outbox_bytes=1)
    bench.outbox.set_streams([small, BEACONS])
    bench.publish(b"a")
    for _ in range(4):
        bench.outbox.publish("$G", "orders.new", "", b"", b"lost", bench.now_ms, WALL_MS, gives_up=True)
    (row,) = bench.outbox.coverage_rows(whole=True) or [None]
    assert row is None  # nothing was formed yet
    bench.send()
    (row,) = bench.outbox.coverage_rows(whole=True)
    assert (row.acknowledged, row.next) == (0, 6)
    for head in bench.heads:
        bench.appended(head)
    bench.heads.clear()
    bench.commit()
    (row,) = bench.outbox.coverage_rows(whole=True)
    assert (row.acknowledged, row.held, row.gaps, row.batches) == (5, 1, 4, 2)


def test_a_stream_that_comes_to_be_covered_is_accounted_for_from_the_next_batch_on(bench: Bench) -> None:
    plain = msgspec.structs.replace(ORDERS, covered=False)
    bench.outbox.set_streams([plain, BEACONS])
    bench.publish(b"a")
    assert bench.commit()[0].run == b""
    for payload in (b"b", b"c"):
        bench.publish(payload)
        bench.send()
    assert [(row.why, row.stream, row.events) for row in bench.beacons.uncovered()] == [("not covered", "orders", 1)]
    bench.outbox.set_streams([ORDERS, BEACONS])
    bench.publish(b"d")
    ((head),) = bench.send()
    assert (head.first_sequence, head.run != b"", head.mark) == (4, True, True)
    bench.link_down()
    bench.link_up(Reached("orders", b"orders", 0, 1, ()))  # b and c come again, under the run
    (again, *_) = bench.send()
    assert (again.first_sequence, again.sequence_count, again.run != head.run, again.run != b"") == (2, 3, True, True)
    bench.outbox.set_streams([plain, BEACONS])
    assert bench.outbox.coverage_rows(whole=True) == []


def test_rows_of_streams_that_are_gone_are_told_once_more_and_then_never(bench: Bench) -> None:
    bench.publish()
    bench.commit()
    bench.tick()
    bench.publish()
    bench.commit()
    bench.outbox.set_streams([BEACONS])
    assert len(bench.tick()[0].rows) == 1
    beacons = [beacon for _ in range(70) for beacon in bench.tick()]
    assert any(beacon.whole for beacon in beacons)
    assert not any(beacon.rows for beacon in beacons)


def test_what_no_stream_takes_has_a_row_of_its_own(bench: Bench) -> None:
    bench.unkept = Unkept(3, 30)
    (beacon,) = bench.tick()
    assert beacon.uncovered == (Uncovered(why="no stream", events=3, bytes=30),)
    assert bench.tick() == []
    bench.unkept = Unkept(4, 40)
    (beacon,) = bench.tick()
    assert beacon.uncovered == (Uncovered(why="no stream", events=4, bytes=40),)
    fabric = Bench(keeps_log=False)
    fabric.unkept = Unkept(1, 2)
    assert fabric.beacons.uncovered() == (Uncovered(why="delivery-fabric", events=1, bytes=2),)


def test_beacons_are_not_accounted_for_themselves(bench: Bench) -> None:
    for _ in range(20):
        bench.tick()
    assert bench.outbox.coverage_rows(whole=True) == []
    assert bench.beacons.uncovered() == ()


def test_each_is_signed_over_its_bytes() -> None:
    signed: list[bytes] = []

    def sign(payload: bytes) -> Signed:
        signed.append(payload)
        return Signed(b"signature", b"certificate")

    bench = Bench(sign=sign)
    bench.link_up()
    assert len(bench.tick()) == 1
    (record,) = bench.records
    assert (record.subject, record.payload) == (b"$COVERAGE.beacon.gw1", signed[0])
    assert signed_in(record.header_block) == Signed(b"signature", b"certificate")


def test_who_reads_it_in_the_log_can_tell_who_has_said_it(tmp_path: Path) -> None:
    name = NodeName("acme", "eu", "gateway", "gw1")
    authority = Authority(tmp_path)
    pair = authority.node("gw1", str(name))
    node = NodeSigning(TlsNodes(ca=str(authority.cert), cert=str(pair.cert), key=str(pair.key)), name)
    bench = Bench(sign=node.sign)
    bench.link_up()
    bench.tick()
    (record,) = bench.records
    signed, now_ms = signed_in(record.header_block), time.time_ns() // 1_000_000
    assert signed is not None
    assert node.verify(record.payload, signed, now_ms) == name
    with pytest.raises(SignatureError, match="the signature does not fit"):
        node.verify(record.payload.replace(b'"number":1', b'"number":2'), signed, now_ms)


def test_an_account_hashes_each_batch_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    digest_of = coverage.digest_of
    monkeypatch.setattr(
        "gateway.core.coverage.digest_of", lambda batch: (hashed.append(len(batch)), digest_of(batch))[1]
    )
    for _ in range(100):
        bench.publish()
    bench.send()
    bench.link_down()
    bench.link_up()
    bench.commit()
    assert len(hashed) == 1
    bench.publish()
    bench.send()
    bench.outbox.hash_sent()
    assert len(hashed) == 2  # while its answer is awaited
    bench.commit()
    assert len(hashed) == 2


# -- a whole gateway --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def gateway_of(zone: SinkZone) -> AsyncIterator[tuple[Gateway, Client]]:
    """A process of gateway gw1, and a client of it."""
    configuration = zone.file()
    own = dataclasses.replace(configuration.zones["eu"].gateways["gw1"], client=config.Address("127.0.0.1", 0))
    zones = {"eu": dataclasses.replace(configuration.zones["eu"], gateways={"gw1": own})}
    configuration = dataclasses.replace(configuration, zones=zones)
    gateway = Gateway(configuration, "gw1", dial_sinks(configuration, own), "test")
    host, port = await gateway.start()
    try:
        await asyncio.wait_for(gateway.linked(), 60)
        async with client(f"nats://{host}:{port}") as connection:
            yield gateway, connection
    finally:
        await gateway.stop()


@pytest.fixture
async def zone(tmp_path: Path) -> AsyncIterator[SinkZone]:
    made = SinkZone(tmp_path)
    await made.start()
    try:
        await made.led()
        yield made
    finally:
        await made.stop()


async def beacons_in(connection: Client) -> list[Beacon]:
    await readable(connection, coverage.STREAM)
    events = await everything(connection, coverage.STREAM)
    mine = [event for event in events if event.subject == "$COVERAGE.beacon.gw1"]
    return [msgspec.json.decode(event.payload, type=Beacon) for event in mine]


def accounts_in(zone: SinkZone) -> dict[str, tuple[str, int, int, str, int]]:
    """(run, base, last sequence, chain, held) of gw1 in each stream, as the sink that leads has them."""
    state = zone.sinks[zone.leader].machine.state
    progress = next(each for each in state.producers.values() if each.node == "gw1").progress
    names = {stream.state.incarnation: stream.state.name for stream in state.streams.values()}
    found = {names[incarnation]: each for (incarnation, _), each in progress.items()}
    return {
        name: (
            each.account.run.hex(),
            each.account.base,
            each.last_sequence,
            each.account.chain.hex(),
            each.account.held,
        )
        for name, each in found.items()
        if each.account is not None
    }


async def test_a_gateway_says_at_its_end_what_the_sinks_have_of_it(zone: SinkZone) -> None:
    async with gateway_of(zone) as (_, connection):
        for number in range(20):
            await connection.request("orders.new", b"%d" % number, timeout=60)
    accounts = accounts_in(zone)
    async with gateway_of(zone) as (_, connection):
        await connection.request("orders.new", b"another", timeout=60)
        beacons = await beacons_in(connection)
        async with asyncio.timeout(60):
            while "orders" not in {row.stream for row in beacons[-1].rows} or beacons[-1].closing:
                await asyncio.sleep(0.1)
                beacons = await beacons_in(connection)
    (last,) = [each for each in beacons if each.closing]
    told = {row.stream: (row.run, row.base, row.mark, row.chain, row.held) for row in last.rows}
    assert told == accounts
    assert told["orders"][4] == 20
    assert "$AUDIT" in told  # the client has come
    assert [row.next - 1 - row.acknowledged for row in last.rows] == [0, 0]
    assert len({beacon.process for beacon in beacons}) == 2
    (row,) = [row for row in beacons[-1].rows if row.stream == "orders"]
    assert (row.base, row.acknowledged, row.run != told["orders"][0]) == (20, 21, True)
    run, base, last_sequence, _, held = accounts_in(zone)["orders"]
    assert (run, base, last_sequence, held) == (row.run, 20, 21, 1)


async def test_no_client_can_write_what_a_gateway_says(zone: SinkZone) -> None:
    """Not as a publish, nor as an answer, nor by a stream of its own: nobody may, operators included."""
    async with gateway_of(zone) as (gateway, connection):
        errors: list[str] = []

        async def failed(error: Exception) -> None:
            errors.append(str(error))

        connection._error_cb = failed
        forged = msgspec.json.encode(
            Beacon(mesh="acme", zone="eu", node="gw1", worker=0, process="x", number=9, time=1)
        )
        for subject in ("$COVERAGE.beacon.gw1", "$COVERAGE", "$COVERAGE.x"):
            await connection.publish(subject, forged)
        await connection.publish("orders.new", b"x", reply="$COVERAGE.beacon.gw1")  # its PubAck
        await connection.publish("orders.new", b"x", reply="$COVERAGE.beacon.gw1", headers={"Nats-Msg-Id": "1"})
        await connection.request("orders.new", b"behind them", timeout=60)
        assert len([text for text in errors if "permissions violation" in text]) == 3
        await until(lambda: sum(gateway.beacons.written.values()) >= 2, "two beacons")
        processes = {beacon.process for beacon in await beacons_in(connection)}
        assert processes == {gateway.beacons._speaker.process}
        live = await connection.subscribe("$COVERAGE.>")
        everything_live = await connection.subscribe(">")
        await until(lambda: sum(gateway.beacons.written.values()) >= 3, "three beacons", 60)
        assert live.pending_msgs == everything_live.pending_msgs == 0


async def test_a_gateway_whose_sinks_are_gone_does_not_wait_for_a_last_word(zone: SinkZone) -> None:
    async with gateway_of(zone) as (gateway, connection):
        await connection.request("orders.new", b"x", timeout=60)
        await zone.stop()
        await until(lambda: not gateway.outbox.is_linked(gateway.outbox.routes.by_name[coverage.STREAM]), "no link")
    assert gateway.beacons.written["closing"] == 0


async def test_what_no_log_takes_is_counted_where_it_is_published(tmp_path: Path) -> None:
    text = zone_text(("g1",))
    async with gateways_of(text, ("g1",)) as (gateway,), client(url_of(config.parse(text, "x"), "g1")) as connection:
        for subject in ("a.b", "a.b", "_INBOX.x.y", "$MESH.x"):
            await connection.publish(subject, b"1234567")
        await settle(connection)
        assert gateway.beacons.uncovered() == (Uncovered(why="delivery-fabric", events=2, bytes=14),)
        assert gateway.beacons.written == {}
