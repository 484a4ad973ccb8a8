"""`mesh coverage` before, during and after faults: events that are dropped on their way, a gateway that is killed."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

from support.cli import mesh, start
from support.processes import Folder, client, free_ports

from protocol import envelope, link

WAIT_S = 90.0
MORE = '[streams.orders]\nsubjects = ["orders.>"]\n[coverage]\ngap_grace = "2s"'


class Sieve:
    """Between gateways and a sink: while it `drops`, batches for `orders` go no further, and nobody is told."""

    def __init__(self, port: int, to_port: int) -> None:
        self._port, self._to_port = port, to_port
        self.drops, self.dropped = False, 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Sieve":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            sink_reader, sink_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
        else:
            with contextlib.suppress(OSError, asyncio.CancelledError):  # which is how it ends
                passing = self._pass_on(reader, sink_writer, self._sifted()), self._pass_on(sink_reader, writer, bytes)
                await asyncio.gather(*passing)
            sink_writer.transport.abort()
        writer.transport.abort()
        self._tasks.discard(task)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sift: Callable[[bytes], bytes]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(sift(data))
                await writer.drain()
        writer.transport.abort()

    def _sifted(self) -> Callable[[bytes], bytes]:
        frames = link.FrameReader()

        def sift(data: bytes) -> bytes:
            passed = []
            for frame in frames.feed(data):
                is_of_orders = isinstance(frame.message, link.Append) and any(
                    parcel.envelope.stream == "orders" for parcel in envelope.unpack(frame.tail)
                )
                if self.drops and is_of_orders:
                    self.dropped += 1
                else:
                    passed.append(link.pack(frame.message, frame.tail))
            return b"".join(passed)

        return sift


@contextlib.asynccontextmanager
async def sieved(folder: Folder) -> AsyncIterator[Sieve]:
    """A sink, and a file `gateway.toml` by which a gateway finds it behind a sieve."""
    folder.write_config(MORE)
    (port,) = free_ports(1)
    text = (folder.path / "mesh.toml").read_text()
    (folder.path / "gateway.toml").write_text(text.replace(f":{folder.link_port}", f":{port}"))
    async with Sieve(port, folder.link_port) as sieve:
        await folder.sinkd()
        yield sieve


async def begin_gateway(folder: Folder) -> Any:
    gateway = folder.run("gateway", "--config", "gateway.toml", "--node", "gw1")
    await gateway.serving()
    return gateway


async def publish(folder: Folder, count: int) -> None:
    """Nobody waits for an answer."""
    async with client(folder.url) as connection:
        for number in range(count):
            await connection.publish("orders.new", b"%d" % number)
        await connection.flush()


async def view(folder: Folder, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, what it says to machines of zone eu, and what on stderr."""
    ran = await mesh("coverage", "orders", "--json", "--config", str(folder.path / "mesh.toml"), *arguments)
    zone: dict[str, Any] = json.loads(ran.out)["zones"]["eu"]
    return ran.status, zone, ran.err


async def until_viewed(
    folder: Folder, is_so: Callable[[int, dict[str, Any]], object], *arguments: str
) -> tuple[int, dict[str, Any], str]:
    async with asyncio.timeout(WAIT_S):
        while True:
            status, zone, said = await view(folder, *arguments)
            if is_so(status, zone):
                return status, zone, said


async def test_what_is_dropped_on_its_way_is_missed_asked_for_and_covered_again(folder: Folder) -> None:
    async with sieved(folder) as sieve:
        await begin_gateway(folder)
        await publish(folder, 100)
        _, zone, _ = await until_viewed(folder, lambda status, zone: status == 0 and zone["totals"]["held"] == 100)
        assert zone["totals"]["taken_in"] == 100
        sieve.drops = True
        await publish(folder, 20)
        status, zone, said = await until_viewed(folder, lambda status, zone: zone["gaps"])
        assert status == 1
        (gap,) = zone["gaps"]
        assert (gap["why"], gap["events"], gap["node"]) == ("late", 20, "gw1")
        assert "zone eu: orders/0: late: 20 events of gw1/0 (101 to 120): the gateway has taken it in" in said
        assert sieve.dropped
        sieve.drops = False
        _, zone, _ = await until_viewed(folder, lambda status, zone: status == 0)
        assert (zone["totals"]["held"], zone["gaps"], zone["totals"]["lost"]) == (120, [], 0)


async def test_a_gateway_that_is_killed_with_a_full_outbox_leaves_a_bound_and_then_a_gap_record(folder: Folder) -> None:
    async with sieved(folder) as sieve:
        gateway = await begin_gateway(folder)
        await publish(folder, 100)
        await until_viewed(folder, lambda status, zone: status == 0 and zone["totals"]["held"] == 100)
        sieve.drops = True
        await publish(folder, 50)
        await until_viewed(folder, lambda status, zone: zone["totals"]["under_way"] == 50)  # it has named them
        gateway.kill()
        sieve.drops = False
        status, zone, said = await until_viewed(folder, lambda status, zone: zone["gateways"][0]["state"] == "silent")
        status, zone, said = await until_viewed(
            folder, lambda status, zone: [gap["why"] for gap in zone["gaps"]] == ["unclosed"]
        )
        assert (status, zone["gaps"][0]["events"]) == (1, 50)
        assert "gw1/0 is silent for" in said
        assert "unclosed: 50 events of gw1/0 (101 to 150)" in said
        await begin_gateway(folder)
        status, zone, said = await until_viewed(folder, lambda status, zone: zone["totals"]["lost"] == 50)
        status, zone, said = await until_viewed(folder, lambda status, zone: not zone["gaps"])
        assert (status, zone["totals"]["taken_in"], zone["totals"]["held"]) == (1, 150, 100)
        assert said == "mesh: zone eu: orders/0: 50 events of gw1/0 are not held: gap records stand for them\n"
        assert (await view(folder, "--known-gaps"))[0] == 0
        shown = await mesh("replay", "orders", "--server", folder.url, "--count", "101")
        assert "gateway_lost" in shown.err
        for_people = await mesh("coverage", "--config", str(folder.path / "mesh.toml"))
        assert for_people.status == 1
        assert "50 lost" in for_people.lines[0]
        assert any(row.startswith("orders/0  gw1/0") for row in for_people.lines)


async def test_it_is_watched_until_somebody_ends_it(folder: Folder) -> None:
    folder.write_config(MORE)
    await folder.sinkd()
    watching = await start("coverage", "orders", "--watch", "--json", "--config", str(folder.path / "mesh.toml"))
    assert watching.stdout is not None
    async with asyncio.timeout(WAIT_S):
        looks = [json.loads(await watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        await watching.communicate()
    assert [set(look) for look in looks] == [{"covered", "problems", "zones"}] * 3
    assert watching.returncode == 130


async def test_what_cannot_be_asked_for_is_bad_input(folder: Folder) -> None:
    folder.write_config(MORE)
    file = str(folder.path / "mesh.toml")
    await folder.sinkd()
    for arguments, why in (
        (("--config", "nowhere.toml"), "nowhere.toml: No such file or directory"),
        (("--config", file, "--zone", "us"), "no zone 'us' with sinks; there are: eu"),
        (("bills", "--config", file), "no stream 'bills'; streams are $AUDIT, $COVERAGE, events, orders"),
    ):
        ran = await mesh("coverage", *arguments)
        assert (ran.status, ran.err) == (2, f"mesh: {why}\n")
