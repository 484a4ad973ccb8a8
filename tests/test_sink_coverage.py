"""Coverage at sinks, over real sockets and files: a gateway says what it took in, sinks say what they have of it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from support.certificates import Authority, Pair
from support.sinks import LinkedGateway, SinkZone

from mesh.node_signing import NodeSigning
from protocol import coverage, envelope, link, signing
from protocol.config import TlsNodes
from protocol.coverage import CHAIN_START, Beacon, Row, Signed, chained, digest_of, header_block
from protocol.gaps import read_gap
from protocol.node_names import NodeName
from protocol.records import CONTROL, Event, Record, encode_batch, read_header, read_records, split_batches
from sinkd.core import speakers
from sinkd.shell.sink import Sink, wall_clock_ms

GRACE_S = 2
FILE = f'[streams.orders]\nsubjects = ["orders.>"]\n[coverage]\ngap_grace = "{GRACE_S}s"'


class Gateway:
    """One that says what it is told to say. It chains what it sends to `orders`."""

    def __init__(self, linked: LinkedGateway) -> None:
        self.linked = linked
        self.number, self.process = 0, os.urandom(4).hex()

    @classmethod
    async def of(cls, zone: SinkZone) -> "Gateway":
        return cls(await (await zone.gateway()).open())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.linked, name)

    async def reopen(self, zone: SinkZone) -> None:
        """After its link was closed: the log says how far it is, and another run begins there."""
        self.linked = await (await zone.gateway()).open()

    def begin(self) -> None:
        """A run, at the end of what the log has."""
        self.run, self.base, self.chain, self.held = os.urandom(8), self.linked.sequence, CHAIN_START, 0

    async def publish(self, *payloads: bytes, count: bool = True) -> None:
        """Each as a batch, the last one marked; with `count` it takes them for acknowledged."""
        for payload in payloads:
            batch = encode_batch([Event(b"orders.a", b"orders.a", 5_000, b"", payload)])
            self.linked.sequence += 1
            sequence = self.linked.sequence
            await self.append(self.linked.stream, sequence, batch, self.run if sequence == self.base + 1 else b"")
            if count:
                self.chain = chained(self.chain, sequence, 1, digest_of(batch))
                self.held += 1

    async def append(self, stream: Any, sequence: int, batch: bytes, run: bytes = b"") -> None:
        head = envelope.Envelope(
            producer_id=self.opened.producer_id, epoch=self.opened.epoch, stream=stream.name, partition=0,
            incarnation=stream.incarnation, first_sequence=sequence, sequence_count=1,
            revision=stream.revision, run=run, mark=True,
        )  # fmt: skip
        self.linked.send(link.Append(), envelope.pack(head, batch))
        answer = (await self.linked.get(link.Appended, link.Refused)).message
        assert isinstance(answer, link.Appended), answer

    def row(self, **fields: Any) -> Row:
        """All that it published is acknowledged, and nothing waits."""
        acknowledged = self.base + self.held
        given = {
            "stream": "orders", "incarnation": self.linked.stream.incarnation.hex(), "partition": 0,
            "run": self.run.hex(), "base": self.base, "acknowledged": acknowledged, "mark": acknowledged,
            "chain": self.chain.hex(), "next": acknowledged + 1, "held": self.held, "batches": self.held, "bytes": 1,
        }  # fmt: skip
        return Row(**given | fields)

    def beacon(self, *rows: Row, **fields: Any) -> Beacon:
        self.number += 1
        given = {
            "mesh": "acme", "zone": "eu", "node": "gw1", "worker": 0, "process": self.process, "number": self.number,
            "time": wall_clock_ms(), "rows": rows,
        }  # fmt: skip
        return Beacon(**given | fields)

    async def say(self, zone: SinkZone, payload: bytes, block: bytes = b"", kind: str = "beacon") -> None:
        """By a link of its own, as another process would."""
        other = await zone.gateway()
        other.send(link.Open("gw1", 7, os.urandom(16)))
        opened = (await other.get(link.Opened)).message
        last = max((r.last_sequence for r in opened.last if r.stream == coverage.STREAM), default=0)
        leader = zone.sinks[zone.leader]
        stream = leader.machine.state.streams[coverage.STREAM].state
        speaker = Gateway(other)
        other.opened = opened
        subject = f"{coverage.STREAM}.{kind}.gw1".encode()
        await speaker.append(stream, last + 1, encode_batch([Event(subject, subject, wall_clock_ms(), block, payload)]))
        await other.close()

    async def tell(self, zone: SinkZone, *rows: Row, **fields: Any) -> None:
        await self.say(zone, msgspec.json.encode(self.beacon(*rows, **fields)))


@contextlib.asynccontextmanager
async def zone_of(folder: Path, count: int = 1) -> AsyncIterator[SinkZone]:
    zone = SinkZone(folder, count, streams=FILE)
    await zone.start()
    try:
        await zone.led()
        yield zone
    finally:
        await zone.stop()


async def records(sink: Sink, stream: str) -> list[tuple[Record, bytes]]:
    """All that stands in a log, with the batch of each."""
    partition = sink.store.partition(stream, 0)
    found: list[tuple[Record, bytes]] = []
    while (at := found[-1][0].offset + 1 if found else 0) < partition.high_watermark:
        for batch in split_batches(await sink.store.read(partition, at, 1 << 20)):
            if read_header(batch).attributes == CONTROL:
                found.append((Record(read_gap(batch)[0], 0, b"", b"gap", b"", b""), bytes(batch)))
            else:
                found += [(record, bytes(batch)) for record in read_records(batch)]
    return found


async def reports(sink: Sink) -> list[tuple[str, str, int, int, bool]]:
    """What the log says of gaps: kind, why, first and last sequence, whether it is recorded."""
    said = []
    for record, _ in await records(sink, coverage.STREAM):
        kind = record.subject.decode().split(".")[1]
        if kind in (coverage.GAP, coverage.REPAIRED):
            report = msgspec.json.decode(record.payload, type=coverage.GapReport)
            assert record.subject.decode() == f"$COVERAGE.{kind}.{report.by}"
            said.append((kind, report.why, report.first, report.last, report.recorded))
    return said


async def reported(zone: SinkZone, sink: Sink, count: int) -> None:
    """Until so many reports are written, and read again."""
    for _ in range(1_200):
        if len(await reports(sink)) >= count:
            break
        await asyncio.sleep(0.05)
    end = sink.store.partition(coverage.STREAM, 0).high_watermark
    await zone.until(lambda: sink.coverage._offset >= end, "it has read that")


def told(sink: Sink) -> dict[str, Any]:
    status: dict[str, Any] = sink.links.operator.status()["coverage"]
    return status


async def test_what_was_acknowledged_is_found_in_the_accounts_of_every_sink(tmp_path: Path) -> None:
    async with zone_of(tmp_path, 3) as zone:
        gateway = await Gateway.of(zone)
        gateway.begin()
        await gateway.publish(b"a", b"b", b"c")
        await gateway.tell(zone, gateway.row(), refused={"10167": 2})
        await zone.until(lambda: all(told(sink)["beacons"] for sink in zone.sinks.values()), "all have heard it")
        await zone.until(
            lambda: all(told(sink)["beacons"]["gw1/0"]["rows"][0]["verified"] == 3 for sink in zone.sinks.values()),
            "all have compared the chains",
        )
        for sink in zone.sinks.values():
            status = told(sink)
            (said,) = status["beacons"].values()
            assert (said["state"], said["signed"], said["refused"]) == ("speaks", False, {"10167": 2})
            assert (status["gaps"], status["refused_beacons"]) == ([], {})
            account = next(each for each in status["accounts"] if each["stream"] == "orders")
            assert (account["node"], account["worker"], account["last"]) == ("gw1", 0, 3)
            assert (account["held"], account["run"], account["chain"]) == (3, gateway.run.hex(), gateway.chain.hex())
            tree = next(each for each in status["trees"] if each["log"] == "orders")
            assert (tree["end_offset"], tree["size"], tree["control"]) == (3, 3, 0)
        await gateway.close()


async def test_what_does_not_come_is_reported_once_asked_for_again_and_repaired(tmp_path: Path) -> None:
    async with zone_of(tmp_path, 3) as zone:
        gateway = await Gateway.of(zone)
        gateway.begin()
        await gateway.publish(b"a")
        late = gateway.row(next=4)
        closed = 0
        async with asyncio.timeout(60):
            while not closed:
                await gateway.tell(zone, late)
                closed = sum(sink.coverage.links_closed for sink in zone.sinks.values())
        with pytest.raises(ConnectionError):
            await gateway.get(link.Pong)
        await gateway.close()
        await gateway.reopen(zone)
        await gateway.publish(b"b", b"c")
        leader = zone.sinks[zone.leader]
        await gateway.tell(zone, gateway.row())
        await reported(zone, leader, 2)
        assert await reports(leader) == [("gap", "late", 2, 3, False), ("repaired", "late", 2, 3, False)]
        assert told(leader)["gaps"] == []
        await gateway.close()


async def test_what_was_acknowledged_and_lost_becomes_a_gap_record(tmp_path: Path) -> None:
    async with zone_of(tmp_path) as zone:
        sink = zone.sinks["s1"]
        gateway = await Gateway.of(zone)
        gateway.begin()
        await gateway.publish(b"a")
        over = gateway.row(acknowledged=4, held=4, mark=1, next=5)  # it takes three more for acknowledged
        async with asyncio.timeout(60):
            while not told(sink)["gaps"]:
                await gateway.tell(zone, over)
        assert [(gap["why"], gap["first"], gap["last"]) for gap in told(sink)["gaps"]] == [("lost", 2, 4)]
        with pytest.raises(ConnectionError):
            await gateway.get(link.Pong)
        await gateway.close()
        await gateway.reopen(zone)
        gateway.begin()
        await gateway.publish(b"b")
        await gateway.tell(zone, msgspec.structs.replace(over, is_over=True), gateway.row())
        await reported(zone, sink, 2)
        contents = await records(sink, "orders")
        assert [record.payload or record.subject for record, _ in contents] == [b"a", b"b", b"gap"]
        _, gap = read_gap(contents[-1][1])
        assert (gap.reason, gap.events, gap.source) == ("lost", 3, "gw1")
        assert await reports(sink) == [("gap", "lost", 2, 4, False), ("gap", "lost", 2, 4, True)]
        account = next(each for each in told(sink)["accounts"] if each["stream"] == "orders")
        assert (account["lost"], account["recorded"][0]["reason"]) == (3, "lost")
        assert told(sink)["gaps"] == []
        await gateway.close()


async def test_a_gateway_that_dies_is_unclosed_and_its_events_are_recorded_when_it_is_back(tmp_path: Path) -> None:
    """... though the sink is started anew meanwhile, and has to read back what was said."""
    async with zone_of(tmp_path) as zone:
        gateway = await Gateway.of(zone)
        gateway.begin()
        await gateway.publish(b"a")
        await gateway.tell(zone, gateway.row(next=6))
        await gateway.close()
        sink = zone.sinks["s1"]
        await zone.until(lambda: "gw1/0" in told(sink)["beacons"], "it is heard")
        await zone.until(lambda: told(sink)["beacons"]["gw1/0"]["state"] == "silent", "it is silent")
        await reported(zone, sink, 2)
        assert [(gap["why"], gap["first"], gap["last"]) for gap in told(sink)["gaps"]] == [("unclosed", 2, 5)]
        await zone.stop("s1")
        await zone.start("s1")
        await zone.led()
        sink = zone.sinks["s1"]
        again = await Gateway.of(zone)
        again.begin()
        await again.publish(b"b")
        await again.tell(zone, again.row())
        await zone.until(lambda: sink.coverage.gaps_recorded, "it is recorded")
        await zone.until(lambda: not told(sink)["gaps"], "it is known to be recorded")
        contents = await records(sink, "orders")
        assert [record.payload or record.subject for record, _ in contents] == [b"a", b"b", b"gap"]
        assert read_gap(contents[-1][1])[1].reason == "gateway_lost"
        assert told(sink)["beacons"]["gw1/0"]["unclosed"] == 1
        await reported(zone, sink, 3)
        assert await reports(sink) == [
            ("gap", "late", 2, 5, False), ("gap", "unclosed", 2, 5, False), ("gap", "unclosed", 2, 5, True),
        ]  # fmt: skip
        await again.close()


async def test_summaries_say_what_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkd.shell.coverage.COVERAGE_SUMMARY_MS", 1_000)
    async with zone_of(tmp_path) as zone:
        gateway = await Gateway.of(zone)
        gateway.begin()
        await gateway.publish(b"a")
        row = gateway.row()
        await gateway.tell(zone, row, closing=True, whole=True)
        sink = zone.sinks["s1"]
        await zone.until(lambda: sink.coverage.notes.written["summary"] >= 2, "summaries are written")
        monkeypatch.setattr("sinkd.shell.coverage.COVERAGE_BACK_MS", 500)
        await zone.stop("s1")
        await zone.start("s1")
        sink = zone.sinks["s1"]
        await zone.until(lambda: told(sink)["beacons"], "it has read one")
        partition = sink.store.partition(coverage.STREAM, 0)
        assert await sink.coverage._beginning(sink.main, partition) > 0  # the beacon itself was not read
        (known,) = told(sink)["beacons"].values()
        assert known["state"] == "closed"
        assert [each["run"] for each in known["rows"]] == [row.run]
        await gateway.close()


# -- who says so ------------------------------------------------------------------------------------------------------


class Signs:
    """What a node of `pair` would sign with."""

    def __init__(self, pair: Pair) -> None:
        certificate = x509.load_pem_x509_certificate(pair.cert.read_bytes())
        self._key, self._der = load_pem_private_key(pair.key.read_bytes(), None), certificate.public_bytes(Encoding.DER)

    def __call__(self, payload: bytes) -> bytes:
        return header_block(Signed(signing.sign(payload, self._key), self._der))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def zone(tmp_path: Path, authority: Authority) -> AsyncIterator[SinkZone]:
    """A sink that has a certificate to sign with."""
    own = authority.node("s1", "mesh://acme/eu/sink/s1")
    settings = TlsNodes(ca=str(authority.cert), cert=str(own.cert), key=str(own.key))
    async with zone_of(tmp_path / "zone") as zone:
        sink = zone.sinks["s1"]
        sink.coverage._signing = NodeSigning(settings, NodeName("acme", "eu", "sink", "s1"))
        yield zone


async def test_what_gateways_have_signed_is_taken_and_the_sink_signs_its_reports(
    zone: SinkZone, authority: Authority
) -> None:
    signs = Signs(authority.node("gw1", "mesh://acme/eu/gateway/gw1"))
    sink, gateway = zone.sinks["s1"], await Gateway.of(zone)
    gateway.begin()
    await gateway.publish(b"a")
    await gateway.close()
    async with asyncio.timeout(60):
        while not sink.coverage.keeper.reported:
            payload = msgspec.json.encode(gateway.beacon(gateway.row(next=3)))
            await gateway.say(zone, payload, signs(payload))
    assert told(sink)["beacons"]["gw1/0"]["signed"] is True
    assert told(sink)["refused_beacons"] == {}
    (report,) = [each for each, _ in await records(sink, coverage.STREAM) if each.subject == b"$COVERAGE.gap.s1"]
    signed = coverage.signed_in(report.header_block)
    known = signing.read_authorities(authority.cert.read_bytes())
    assert str(signing.verify(report.payload, *signed, known, "acme", wall_clock_ms())) == "mesh://acme/eu/sink/s1"


async def test_what_nobody_may_say_is_refused_by_name_counted_and_audited(
    zone: SinkZone, authority: Authority, tmp_path: Path
) -> None:
    sink, gateway = zone.sinks["s1"], await Gateway.of(zone)
    gateway.begin()
    await gateway.close()
    own = Signs(authority.node("gw1", "mesh://acme/eu/gateway/gw1"))
    (tmp_path / "other").mkdir()
    foreign = Signs(Authority(tmp_path / "other").node("gw1", "mesh://acme/eu/gateway/gw1"))
    other_mesh = Signs(authority.node("gw1b", "mesh://other/eu/gateway/gw1"))
    other_node = Signs(authority.node("gw2", "mesh://acme/eu/gateway/gw2"))
    a_sink = Signs(authority.node("gw1s", "mesh://acme/eu/sink/gw1"))
    said = msgspec.json.encode(gateway.beacon(gateway.row()))
    await gateway.say(zone, said, own(said))
    long_ago = msgspec.json.encode(gateway.beacon(gateway.row(), time=1_000))
    elsewhere = msgspec.json.encode(gateway.beacon(gateway.row(), mesh="other"))
    fresh = msgspec.json.encode(gateway.beacon(gateway.row()))
    lying = msgspec.json.encode(gateway.beacon(gateway.row(acknowledged=3, next=4)))
    report = msgspec.json.encode(
        coverage.GapReport(
            mesh="acme", zone="eu", by="gw1", time=wall_clock_ms(), node="gw1", worker=0, stream="orders",
            incarnation="00", partition=0, run="00", why="late", first=1, last=1, events=1,
        )
    )  # fmt: skip
    cases = [
        (said, own(said), "beacon", speakers.REPLAYED),
        (fresh, b"", "beacon", speakers.UNSIGNED),
        (fresh, b"NATS/1.0\r\nCoverage-Signer: AAAA\r\n\r\n", "beacon", speakers.UNSIGNED),
        (fresh, own(fresh + b" "), "beacon", speakers.FORGED),
        (fresh, foreign(fresh), "beacon", speakers.FORGED),
        (fresh, other_mesh(fresh), "beacon", speakers.MESH),
        (fresh, other_node(fresh), "beacon", speakers.NODE),
        (fresh, a_sink(fresh), "beacon", speakers.ROLE),
        (long_ago, own(long_ago), "beacon", speakers.EXPIRED),
        (elsewhere, own(elsewhere), "beacon", speakers.MESH),
        (lying, own(lying), "beacon", speakers.UNREADABLE),
        (b"{}", own(b"{}"), "beacon", speakers.UNREADABLE),
        (fresh, own(fresh), "bacon", speakers.UNREADABLE),
        (report, own(report), "gap", speakers.ROLE),
    ]
    for number, (payload, block, kind, reason) in enumerate(cases, 1):
        before = sink.coverage.refused[reason]
        await gateway.say(zone, payload, block, kind)
        await zone.until(lambda: sink.coverage.refused.total() == number, f"case {number} is refused")  # noqa: B023
        assert sink.coverage.refused[reason] == before + 1, (number, sink.coverage.refused)
    assert told(sink)["beacons"]["gw1/0"]["number"] == 1
    assert told(sink)["gaps"] == []
    await zone.until(lambda: sink.audit.written["beacon_refused"], "it is audited")
    await gateway.say(zone, fresh, own(fresh))
    await zone.until(lambda: told(sink)["beacons"]["gw1/0"]["number"] > 1, "what is right is taken still")


async def test_what_a_sink_says_of_its_own_stands_in_the_log_once_and_all_hear_it(tmp_path: Path) -> None:
    async with zone_of(tmp_path, 3) as zone:
        heard: list[tuple[str, str]] = []
        for name, sink in zone.sinks.items():
            sink.coverage.heard_roots = lambda roots, name=name: heard.append((name, roots.node))  # type: ignore[misc]
            await zone.until(lambda sink=sink: sink.coverage._is_live, "it has read what was there")
        for name, sink in zone.sinks.items():
            roots = coverage.Roots(mesh="acme", zone="eu", node=name, time=sink.now_ms())
            sink.coverage.publish("roots 1", coverage.ROOTS, roots, sink.now_ms(), own=True)
        await zone.until(lambda: not any(sink.coverage.notes.waiting for sink in zone.sinks.values()), "it is written")
        await zone.until(lambda: len(heard) >= 9, "all have heard of all")
        assert sorted(heard) == [(one, other) for one in zone.names for other in zone.names]
        subjects = [record.subject for record, _ in await records(zone.sinks["s1"], coverage.STREAM)]
        assert sorted(subjects) == [f"$COVERAGE.roots.{name}".encode() for name in zone.names]
