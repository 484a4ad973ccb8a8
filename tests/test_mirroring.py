"""Two zones over real sockets and files: `us` holds what `eu` keeps, byte for byte, or a gap that says what is not."""

import asyncio
import contextlib
import inspect
import os
import shutil
import ssl

import msgspec
import pytest
from support.certificates import Authority
from support.sinks import LinkedGateway
from support.streams import event, state
from support.zones import MIRROR, TwoZones

from protocol import link
from protocol.gaps import read_gap
from protocol.records import encode_batch
from sinkd.core import commands
from sinkd.core.commands import Trim
from sinkd.core.mirroring import unpack_batches
from sinkd.shell import feeds


@contextlib.asynccontextmanager
async def running(folder, *names, **options):
    zones = TwoZones(folder, **options)
    await zones.start(*names)
    try:
        yield zones
    finally:
        await zones.stop()


async def test_a_mirror_is_its_origin_byte_for_byte_and_follows_it(tmp_path):
    async with running(tmp_path) as zones:
        gateway = await zones.gateway()
        await gateway.append(*(b"%d" % number for number in range(50)))
        await zones.level()
        await gateway.append(b"one more", b"x" * 300_000)
        await zones.level()
        assert await zones.batches("u1", MIRROR) == await zones.batches("e1", "orders")
        mirror, origin = zones.sinks["u1"].machine.log(MIRROR), zones.sinks["e1"].machine.log("orders")
        assert mirror.state.incarnation == origin.state.incarnation
        await zones.until(lambda: zones.row()["state"] == "tail" and not zones.row()["lag_events"], "tail")
        own = zones.sinks["u1"].mirroring.origins["eu"]
        assert 0 < own.wire_bytes < own.raw_bytes
        await gateway.close()


async def test_a_mirror_goes_on_where_it_was_after_a_restart_of_either_side(tmp_path):
    async with running(tmp_path) as zones:
        gateway = await zones.gateway()
        await gateway.append(*(b"%d" % number for number in range(20)))
        await zones.level()
        await zones.stop("u1")
        await gateway.append(*(b"more %d" % number for number in range(20)))
        await zones.start("u1")
        await zones.level()
        await gateway.close()
        await zones.stop("e1")
        await zones.until(lambda: zones.row()["state"] == "stalled", "stalled")
        await zones.start("e1")
        gateway = await zones.gateway()
        await gateway.append(b"last")
        await zones.level()
        assert await zones.batches("u1", MIRROR) == await zones.batches("e1", "orders")
        await gateway.close()


async def test_what_ends_before_it_has_begun_is_closed(tmp_path):
    async with running(tmp_path) as zones:
        origin, work = zones.sinks["u1"].mirroring.origins["eu"], asyncio.sleep(0)
        before = set(origin._tasks)
        origin._start(work)
        for task in origin._tasks - before:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED


async def test_another_leader_goes_on_with_the_mirror(tmp_path):
    async with running(tmp_path, sinks=3) as zones:
        gateway = await zones.gateway()
        await gateway.append(*(b"%d" % number for number in range(20)))
        await zones.level()
        await zones.stop(zones.leader)
        await gateway.append(*(b"more %d" % number for number in range(20)))
        await zones.level()
        expected = await zones.batches("e1", "orders")
        for name in zones.sinks.keys() - {"e1"}:
            assert await zones.batches(name, MIRROR) == expected
        await gateway.close()


async def test_a_sink_that_was_wiped_gets_the_mirror_from_its_peers(tmp_path):
    async with running(tmp_path, sinks=3) as zones:
        gateway = await zones.gateway()
        await gateway.append(*(b"x" * 40_000 for _ in range(40)))
        await zones.level()
        wiped = next(name for name in zones.zones["us"] if name != zones.leader)
        await zones.stop(wiped)
        await gateway.append(*(b"y" * 40_000 for _ in range(40)))
        await zones.level()
        await zones.until(lambda: zones.sinks[zones.leader].journal.first_index > 1, "the journal is cut")
        zones.wipe(wiped)
        await zones.start(wiped)
        await zones.until(lambda: not zones.sinks[wiped].group.member.muted, "whole")
        await zones.level()
        assert await zones.batches(wiped, MIRROR) == await zones.batches("e1", "orders")
        await gateway.close()


async def test_the_groups_of_a_zone_share_the_partitions_of_a_mirror(tmp_path):
    async with running(tmp_path, stream="partitions = 4", groups=2) as zones:
        gateway = await zones.gateway()
        await gateway.append(b"1", b"2")
        replicas = zones.sinks["u1"].replicas

        def ends() -> dict[int, list[int]]:
            """Of each group, those of the partitions that it has."""
            mirrors = [replica.machine.state.mirrors.get(MIRROR) for replica in replicas]
            return {
                number: [mirror.partitions[each].end_offset for each in mirror.state.partitions_of(number)]
                for number, mirror in enumerate(mirrors)
                if mirror is not None
            }

        await zones.until(lambda: sum(map(sum, ends().values())) == 2, "both events are in the mirror")
        assert [len(found) for found in ends().values()] == [2, 2]
        rows = zones.sinks["u1"].mirroring.rows()
        found = {row["partition"]: row["group"] for row in rows if row["stream"] == MIRROR}
        assert found.keys() == {0, 1, 2, 3}
        assert set(found.values()) == {0, 1}
        await gateway.close()


async def test_what_the_origin_let_go_of_is_a_gap(tmp_path):
    async with running(tmp_path, "e1") as zones:
        gateway = await zones.gateway()
        await gateway.append(*(b"%d" % number for number in range(20)))
        origin = zones.sinks["e1"]
        incarnation = origin.machine.log("orders").state.incarnation
        await origin.group.submit(commands.TRIM, Trim("orders", incarnation, 0, 15))
        await zones.start("u1")
        await zones.level()
        gap, *rest = await zones.batches("u1", MIRROR)
        offset, what = read_gap(gap)
        assert (offset, what.reason, what.events, what.source) == (0, "trimmed", 15, "eu")
        assert rest == await zones.batches("e1", "orders")
        assert zones.sinks["u1"].mirroring.origins["eu"].gaps == 1
        await gateway.append(b"more")
        await zones.level()
        await gateway.close()


async def test_an_origin_made_anew_is_mirrored_anew_and_the_old_log_stays_readable(tmp_path):
    async with running(tmp_path) as zones:
        gateway = await zones.gateway()
        await gateway.append(b"old 1", b"old 2")
        await zones.level()
        old = await zones.batches("u1", MIRROR)
        await gateway.close()
        await zones.stop("e1")
        zones.wipe("e1")
        await zones.start("e1")
        gateway = await zones.gateway()
        await gateway.append(b"new")
        await zones.level()
        assert await zones.batches("u1", MIRROR) == await zones.batches("e1", "orders")
        assert await zones.batches("u1", MIRROR + "~1") == old
        assert zones.row(MIRROR + "~1")["state"] == "recreated"
        await zones.stop("u1")  # its folder is found again under the other name
        await zones.start("u1")
        await zones.level()
        assert await zones.batches("u1", MIRROR + "~1") == old
        await gateway.close()


async def test_an_origin_that_holds_less_under_the_same_incarnation_has_diverged(tmp_path):
    async with running(tmp_path) as zones:
        gateway = await zones.gateway()
        await gateway.append(b"1")
        await zones.level()
        await gateway.close()
        await zones.stop("e1")
        zones.folder.joinpath("copy").mkdir()
        zones.folder.joinpath("e1").rename(zones.folder / "copy" / "e1")
        shutil.copytree(zones.folder / "copy" / "e1", zones.folder / "e1")
        await zones.start("e1")
        gateway = await zones.gateway()
        await gateway.append(b"2", b"3")
        await zones.level()
        await gateway.close()
        await zones.stop("e1")
        held = await zones.batches("u1", MIRROR)
        zones.wipe("e1")
        zones.folder.joinpath("copy", "e1").rename(zones.folder / "e1")
        await zones.start("e1")
        await zones.until(lambda: zones.row()["state"] == "diverged", "diverged")
        assert zones.row()["why"] == "the mirror ends at offset 3, the log at 1"
        gateway = await zones.gateway()
        await gateway.append(b"other 2", b"other 3", b"other 4")
        assert await zones.batches("u1", MIRROR) == held
        await gateway.close()


async def test_what_is_not_replicated_is_not_mirrored_and_who_asks_is_refused_and_audited(tmp_path):
    async with running(tmp_path, stream="replicate = []") as zones:
        gateway = await zones.gateway()
        await gateway.append(b"1")
        await zones.until(lambda: zones.row("$AUDIT@eu"), "the audit log is mirrored")
        assert zones.end("u1") == -1
        asking = await LinkedGateway.of(zones.links["e1"], link.Hello("acme", "us", "u1", role="sink"))
        asking.send(link.Subscribe(1, "orders", gateway.stream.incarnation, 0, 0, 1_000))
        refused = (await asking.get(link.Failed)).message
        assert (refused.request, refused.name) == (1, "NOT_REPLICATED")
        await asking.close()
        await zones.until(lambda: zones.sinks["e1"].audit.written["link_refused"], "audited")
        await gateway.close()


@pytest.mark.parametrize(
    ("zone", "says"), [("eu", "to mirror acme/eu, its own zone"), ("mars", "mesh acme has no zone mars")]
)
async def test_a_mirror_of_no_other_zone_is_refused(tmp_path, zone, says):
    async with running(tmp_path, "e1") as zones:
        asking = await LinkedGateway.of(zones.links["e1"], link.Hello("acme", zone, "u1", role="sink"))
        assert says in (await asking.get(link.Failed)).message.message
        await asking.close()


async def test_a_sink_of_another_zone_may_only_mirror(tmp_path):
    async with running(tmp_path, "e1") as zones:
        asking = await LinkedGateway.of(zones.links["e1"], link.Hello("acme", "us", "u1", role="sink"))
        asking.send(link.Open("u1", 0, b"n" * 16))
        assert "a mirror does not send Open" in (await asking.get(link.Failed)).message.message
        await asking.close()


async def test_retention_waits_for_a_zone_that_has_not_got_it(tmp_path):
    # The events of this gateway are from 1970.
    stream = 'retention = { bytes = "1KiB" }\nhold_for_zones = { age = "876000h" }'
    async with running(tmp_path, "e1", stream=stream) as zones:
        gateway = await zones.gateway()
        for _ in range(10):
            await gateway.append(b"x" * 100_000)
        origin = zones.sinks["e1"]
        await origin.main.flush()
        await origin.main.retain()
        assert origin.machine.log("orders").partitions[0].start_offset == 0
        await zones.start("u1")
        await zones.level()
        await zones.until(lambda: origin.machine.log("orders").partitions[0].start_offset, "trimmed")
        assert zones.sinks["u1"].mirroring.origins["eu"].gaps == 0  # it got all, whatever it lets go of itself
        await gateway.close()


async def test_batches_come_in_columns_to_who_asks_for_it_and_as_ever_to_who_does_not(tmp_path):
    """A sink from before columns does not ask."""
    async with running(tmp_path, "e1") as zones:
        gateway = await zones.gateway()
        await gateway.append(*(b"event %d" % number for number in range(40)))
        asking = await LinkedGateway.of(zones.links["e1"], link.Hello("acme", "us", "u1", role=link.MIRROR_ROLE))
        for columns in False, True:
            for once in False, True:
                place = "orders", gateway.stream.incarnation, 0, 0, 1_000_000
                asking.send(link.Subscribe(1, *place, once=once, columns=columns))
                frame = await asking.get(link.Mirrored)
                assert frame.message.columns is columns
                batches = await zones.batches("e1", "orders")
                assert bytes(unpack_batches(frame.message, frame.tail)) == b"".join(batches)
                asking.send(link.Cancel(1))
        await asking.close()
        await gateway.close()


async def test_a_copy_rate_holds_copies_back_and_says_so(tmp_path):
    async with running(tmp_path, more='[links.eu.us]\ncopy_rate = "150KB/s"') as zones:
        gateway = await zones.gateway()
        await gateway.append(*(os.urandom(50_000) for _ in range(6)))
        is_limited = lambda row: row.get("state") == "limited" and row["lag_events"] > 0  # noqa: E731
        await zones.until(lambda: is_limited(zones.row()), "limited")
        await zones.level()
        await gateway.close()


class FakeOrigin:
    """Stands where sink e1 should be, and answers a subscription with what a test has made."""

    def __init__(self, message: link.Mirrored, tail: bytes) -> None:
        self._message, self._tail = message, tail
        self.heard: list[link.Message] = []
        self.links = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.links += 1
        frames = link.FrameReader()
        while data := await reader.read(65_536):
            for frame in frames.feed(data):
                self.heard.append(frame.message)
                if isinstance(frame.message, link.Hello):
                    streams = (state("orders", incarnation=b"1" * 16),)
                    writer.write(link.pack(link.Welcome("acme", "eu", "e1", True, "")))
                    writer.write(link.pack(link.Streams(1, streams)))
                elif isinstance(frame.message, link.Subscribe):
                    number = frame.message.subscription
                    writer.write(link.pack(msgspec.structs.replace(self._message, subscription=number), self._tail))
        writer.close()


async def test_a_wrong_frame_ends_the_link_is_counted_and_leaves_the_mirror_as_it_was(tmp_path):
    batch = encode_batch([event(b"x")])
    bad = batch[:-1] + b"\0"
    origin = FakeOrigin(link.Mirrored(0, b"1" * 16, 0, len(bad), False, 0, 1), bad)
    server = await asyncio.start_server(origin.serve, "127.0.0.1", 0)
    zones = TwoZones(tmp_path)
    zones.dialled["e1"] = server.sockets[0].getsockname()[1]
    try:
        await zones.start("u1")
        own = zones.sinks["u1"].mirroring.origins["eu"]
        await zones.until(lambda: own.refused["crc"] >= 2 and origin.links >= 2, "refused, and dialled anew")
        assert zones.end("u1") == 0
        assert not any(isinstance(message, link.Durable) for message in origin.heard)
        assert all(message.columns for message in origin.heard if isinstance(message, link.Subscribe))
    finally:
        await zones.stop()
        server.close()
        await server.wait_closed()


def secured(folder) -> tuple[Authority, str]:
    """An authority with certificates of both sinks, and the lines of a file that uses them."""
    authority = Authority(folder)
    for zone, node in (("eu", "e1"), ("us", "u1")):
        authority.node(node, f"mesh://acme/{zone}/sink/{node}")
    files = f'cert = "{folder}/{{node}}-cert.pem"\nkey = "{folder}/{{node}}-key.pem"'
    return authority, f'[tls.nodes]\nca = "{authority.cert}"\n{files}'


async def test_sinks_of_two_zones_know_each_other_by_their_certificates(tmp_path):
    authority, more = secured(tmp_path)
    async with running(tmp_path, more=more) as zones:
        await zones.until(lambda: zones.row("$AUDIT@eu").get("state") == "tail", "a mirror over TLS")
        authority.node("gateway", "mesh://acme/us/gateway/u1")
        authority.node("other", "mesh://acme/ap/sink/u1")
        for cert, says in (("gateway", "a gateway of us"), ("other", "a sink of ap")):
            context = ssl.create_default_context(cafile=str(authority.cert))
            context.check_hostname = False
            context.load_cert_chain(tmp_path / f"{cert}-cert.pem", tmp_path / f"{cert}-key.pem")
            reader, writer = await asyncio.open_connection("127.0.0.1", zones.links["e1"], ssl=context)
            writer.write(link.pack(link.Hello("acme", "us", "u1", role="sink")))
            frame = next(link.FrameReader().feed(await asyncio.wait_for(reader.read(65_536), 60)))
            assert frame.message.message == f"u1 of zone us has shown the certificate of {says}"
            writer.close()


async def test_a_sink_that_is_not_who_it_should_be_is_not_mirrored(tmp_path):
    _, more = secured(tmp_path)
    async with running(tmp_path, "e1", more=more) as zones:
        zones.zones["eu"] = ["e2"]  # what us knows: another sink at the same place
        zones.links["e2"] = zones.dialled["e2"] = zones.links["e1"]
        zones._rafts["e2"] = zones._rafts["e1"]
        await zones.start("u1")
        own = zones.sinks["u1"].mirroring.origins["eu"]
        await zones.until(lambda: "expected eu/sink/e2" in own.problem, "refused by name")
        assert own.problem == "sink e2: the peer is eu/sink/e1, expected eu/sink/e2"
        assert not zones.sinks["u1"].machine.state.mirrors


async def test_a_mirror_that_is_cut_off_without_a_word_is_given_up(tmp_path, monkeypatch):
    """Else what it held when it was last heard of would count for ever."""
    monkeypatch.setattr(feeds, "MIRROR_TELL_MS", 20)
    monkeypatch.setattr(feeds, "MIRROR_SILENCE_MS_MAX", 100)
    async with running(tmp_path, "e1") as zones:
        mirror = await LinkedGateway.of(zones.links["e1"], link.Hello("acme", "us", "u1", role="sink"))
        with pytest.raises(ConnectionError):
            await mirror.get(link.Fetched)
        assert not any(connection._feeds for connection in zones.sinks["e1"].links.connections)
        await mirror.close()
