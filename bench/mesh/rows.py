"""What is measured of gateways among themselves: the rows of the table, each with its goal."""

import time
from dataclasses import replace

from bench.mesh.interests import Interests
from bench.mesh.links import bytes_between, settled_bytes
from bench.requests import ask
from bench.rows import WARM_UP_PART, Metric, Row, Values
from bench.servers import Server, Setup
from bench.standing import steady_memory_bytes
from bench.stream import Stream, measure
from bench.traffic import Traffic

INTERESTS = 100_000
GROWTH_NODES = (2, 4, 8, 16)
GROWTH_INTERESTS = 1_000  # of each gateway
IDLE_S = 2.0
TWO, THREE = Setup(nodes=2), Setup(nodes=3)


def rows() -> list[Row]:
    """All of them, in the order of the table."""
    fan = Stream(Traffic(16), receivers=9, spreads=True)
    return [
        _stream("across-16", "publisher on one gateway, subscriber on the other, 16 B", Stream(Traffic(16)), TWO),
        _stream("across-128", "publisher on one gateway, subscriber on the other, 128 B", Stream(Traffic(128)), TWO),
        Row("trip", "round trip between two gateways, idle",
            (Metric("p50", "us", "p50", 1), Metric("p99", "us", "p99", 1)), _round_trip, TWO),
        _stream("fan-out", "fan-out over three gateways to three subscribers each, 16 B, deliveries", fan, THREE),
        Row("interests", f"{INTERESTS:,} distinct interests across three gateways", _INTERESTS, _interests, THREE),
        *(
            Row(f"bytes-{routing}", f"three gateways, routing {routing}, 128 B", _BYTES, _bytes,
                replace(THREE, routing=routing), rounds_max=1)
            for routing in ("interest", "broadcast")
        ),
        *(
            Row(f"grow-{nodes}", f"{nodes} gateways, {GROWTH_INTERESTS:,} interests each", _GROWTH, _growth,
                Setup(nodes=nodes), rounds_max=1)
            for nodes in GROWTH_NODES
        ),
    ]  # fmt: skip


def _stream(key: str, title: str, stream: Stream, setup: Setup) -> Row:
    def run(server: Server, seconds: float) -> Values:
        measure(server, stream, seconds * WARM_UP_PART)
        rate = measure(server, stream, seconds)
        return {"rate": rate.per_second, "cpu": rate.server_ns}

    return Row(key, title, (Metric("rate", "/s", goal=3),), run, setup)


def _round_trip(server: Server, seconds: float) -> Values:
    ask(server, "one", seconds * WARM_UP_PART, 1)
    asked = ask(server, "one", seconds, 1)
    return {"p50": asked.p50_us, "p99": asked.p99_us, "cpu": asked.server_ns}


_INTERESTS = (
    Metric("time", "ms", "until all agree", 1),
    Metric("memory", "MB", "memory of all", 1),
    Metric("grown", "MB", "memory of all, more than before"),
    Metric("sent", "MB", "bytes sent between gateways", 1),
    Metric("used", "ms", "CPU time of all"),
)


def _interests(server: Server, seconds: float) -> Values:
    interests = Interests(server, INTERESTS // server.setup.nodes)
    before_bytes = steady_memory_bytes(server)
    with interests.connected():
        sent_bytes, used_s = bytes_between(server), server.cpu_s()
        agreed_s = interests.tell()
        values = {"time": agreed_s * 1e3, "sent": (settled_bytes(server) - sent_bytes) / 1e6}
        values["used"] = (server.cpu_s() - used_s) * 1e3
        memory_bytes = steady_memory_bytes(server)
        interests.prove()
    return values | {"memory": memory_bytes / 1e6, "grown": (memory_bytes - before_bytes) / 1e6}


_BYTES = (
    Metric("far", "B", "sent between gateways per event for a subscriber on another one"),
    Metric("near", "B", "sent between gateways per event for a subscriber on the publisher's own"),
)


def _bytes(server: Server, seconds: float) -> Values:
    values = {}
    for key, is_near in (("far", False), ("near", True)):
        before_bytes = settled_bytes(server)
        rate = measure(server, Stream(Traffic(128), spreads=is_near), seconds)
        values[key] = round((settled_bytes(server) - before_bytes) / rate.messages, 1)
    return values


_GROWTH = (
    Metric("sent", "kB", "sent per gateway until all agree"),
    Metric("used", "ms", "CPU time per gateway until all agree"),
    Metric("idle-sent", "B", "sent per gateway and second when nothing happens"),
    Metric("idle-used", "ms", "CPU time per gateway and second when nothing happens"),
)


def _growth(server: Server, seconds: float) -> Values:
    nodes = server.setup.nodes
    interests = Interests(server, GROWTH_INTERESTS)
    with interests.connected():
        sent_bytes, used_s = bytes_between(server), server.cpu_s()
        interests.tell()
        sent_bytes, used_s = settled_bytes(server) - sent_bytes, server.cpu_s() - used_s
        idle_bytes, idle_s = bytes_between(server), server.cpu_s()
        time.sleep(IDLE_S)
        idle_bytes, idle_s = bytes_between(server) - idle_bytes, server.cpu_s() - idle_s
    return {
        "sent": sent_bytes / nodes / 1e3,
        "used": used_s / nodes * 1e3,
        "idle-sent": idle_bytes / nodes / IDLE_S,
        "idle-used": idle_s / nodes / IDLE_S * 1e3,
    }
