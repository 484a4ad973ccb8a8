"""Gateways as planes, on a virtual network and clock: what their clients see of each other under faults.

    PYTHONPATH=tests:. .venv/bin/python -m simulation.gateways 4711

Seeds below 1,000 have one zone, the others two or three. In three of sixteen some gateways are two workers: each is a
process like any other here, only that a queue group's members beside it are as near as its own.

Real are the planes, with the forwarder of either engine, the channels of links, and the choice of who links a zone to
another. Modelled after the shells (`gateway.shell.gateway_links`) are the links: two byte streams that deliver pieces
after any time, in order; a way may be blocked, so that everything on it waits; a link may be cut, which each end
notices when it likes, and lose what is on its way. In a zone the gateway whose name comes first dials anew. What TCP
never does, happens to interest alone: a line is lost, or comes behind later ones.

A run has rounds. In each, clients come, go, subscribe, unsubscribe and publish, and there are faults; then all is
mended, and when nothing moves any more, each gateway must know what the others want. Then everybody publishes, and
every event must reach who it should. `simulation.gateways_audit` says what must hold before that.
"""

import argparse
import random
import re
from collections import deque

import pytest
from support.gateway import ENGINES
from support.peers import CONNECT, Silent

from gateway.core import interest
from gateway.core.channels import Channels, Part
from gateway.core.engine import Engine
from gateway.core.plane import Plane, PlaneOptions
from gateway.core.session import Scope, Session
from gateway.core.zones import Zones
from protocol import routes
from protocol.limits import GATEWAY_PING_INTERVAL_MS, GATEWAY_SILENCE_MS_MAX, GATEWAY_STALE_MS, INTEREST_CONFIRM_MS
from simulation.gateways_audit import Audit, Client, matches

TICK_MS = 100
STEP_MS = 25
ROUNDS, STEPS = 2, 60
SETTLE_MS_MAX = 20_000
SEVERAL_ZONES = 1_000
WITH_WORKERS = (9, 12, 14)  # of sixteen seeds
SUBJECTS = ("a.a", "a.b", "a.c", "b.c", "b.d", "c.d.e", *(f"d.{number}" for number in range(12)))
PATTERNS = (*SUBJECTS, *SUBJECTS, "a.*", "a.>", "*.c", "b.*", ">", "c.>", "e", "e.f")
QUEUES = ("", "", "", "q", "q", "crew")
_SPOILT = re.compile(rb"RS(\+|-|ALL|ASK) ")


class Wire:
    """One connection; `ends` are gateways, the one that dials first. `ways[i]` leads to end i."""

    def __init__(self, world: "World", ends: "tuple[Gateway, Gateway]") -> None:
        self.world, self.ends = world, ends
        self.is_border = ends[0].zone != ends[1].zone
        self.is_near = ends[0].node == ends[1].node
        self.sessions: list[Channels | None] = [None, None]
        self.was_open = self.is_over = False
        self.ways: list[deque[tuple[int, bytes]]] = [deque(), deque()]
        self.silent_watches = [0, 0]
        self.waits_to_open = [0, 1]
        self.is_cut = False

    def open(self, end: int) -> None:
        """That end has heard HELLO."""
        here, there, now_ms = self.ends[end], self.ends[1 - end], self.world.now_ms
        self.waits_to_open.remove(end)
        if self.is_border:
            before = here.borders.get(there.zone)
            if before is not None:
                before.lose(before.ends.index(here))
            self.sessions[end] = channels = Channels(here.plane, there.name, now_ms, border=there.zone)
            here.borders[there.zone] = self
            here.zones.opened(channels, now_ms)
            self.was_open = self.was_open or end == 0
            return
        before = here.wires.get(there.name)
        self.sessions[end] = channels = Channels(here.plane, there.name, now_ms, near=self.is_near)
        here.wires[there.name] = self
        here.zones.linked(channels, now_ms)
        if before is not None:
            before.lose(before.ends.index(here))

    def lose(self, end: int) -> None:
        """That end gives it up, or notices that it is gone."""
        here, there = self.ends[end], self.ends[1 - end]
        channels, self.sessions[end] = self.sessions[end], None
        self.is_cut = True
        if channels is not None:
            here.zones.closed(channels) if self.is_border else here.zones.unlinked(channels)
            channels.end()
        wires, name = (here.borders, there.zone) if self.is_border else (here.wires, there.name)
        if wires.get(name) is self:
            del wires[name]

    def send(self, end: int) -> None:
        """What that end has to say is on its way."""
        channels = self.sessions[end]
        parts = [] if channels is None else channels.take_lines() + channels.take_messages()
        if parts and not self.is_cut:
            way, choose = self.ways[1 - end], self.world.rng
            if self.is_border:
                self.world.audit.crosses(self.ends[end], self.ends[1 - end], b"".join(data for _, data in parts))
            data = self.world.spoilt(parts)
            at = choose.randrange(len(data) + 1)
            for piece in (data[:at], data[at:]):
                arrives_ms = self.world.now_ms + choose.choice((0, 0, 1, 3, 20))
                way.append((max(arrives_ms, way[-1][0] if way else 0), piece))

    def arrive(self, end: int) -> bool:
        """Hands over what has come for that end; whether there was anything."""
        session, way, names = self.sessions[end], self.ways[end], (self.ends[1 - end].name, self.ends[end].name)
        moved = False
        while session is not None and way and way[0][0] <= self.world.now_ms and names not in self.world.blocked:
            data, moved = way.popleft()[1], True
            self.silent_watches[end] = 0
            while session.receive(data, self.world.now_ms):
                data = b""
            if session.main.closing is not None:
                raise AssertionError(
                    f"{self.ends[end].name} closes a link: {session.main.closing}, {session.main.closing_detail}"
                )
        return moved

    def watch(self, end: int) -> None:
        """As `GatewayConnection.watch`."""
        session, silent_ms = self.sessions[end], self.silent_watches[end] * GATEWAY_PING_INTERVAL_MS
        if session is None:
            return
        if silent_ms >= GATEWAY_SILENCE_MS_MAX:
            self.lose(end)
            return
        self.silent_watches[end] += 1
        for channel in session.sessions.values():
            if silent_ms >= GATEWAY_STALE_MS:
                self.ends[end].plane.peers.doubt(channel)
            self.ends[end].plane.ping_peer(channel, self.world.now_ms)


class Gateway:
    """A process that is up: its plane, its clients, the wire to each other of its zone, and those to other zones.

    `node` is the gateway of which it is a worker, or which it is.
    """

    def __init__(self, name: str, zone: str, plane: Plane, zones: Zones) -> None:
        self.name, self.zone, self.plane, self.zones = name, zone, plane, zones
        self.node = routes.node_of(name)
        self.clients: list[Client] = []
        self.wires: dict[str, Wire] = {}
        self.borders: dict[str, Wire] = {}

    def link_to(self, other: "Gateway") -> Session | None:
        wire = self.wires.get(other.name)
        channels = None if wire is None else wire.sessions[wire.ends.index(self)]
        return None if channels is None else channels.main


class World:
    """A run of one seed. `faults` False: nothing ever goes wrong."""

    def __init__(self, seed: int, *, faults: bool = True, engine: Engine | None = None) -> None:
        self.rng = random.Random(seed)
        self.engine = engine or ENGINES[seed % 8 != 0 and len(ENGINES) - 1]
        self.faults = faults
        self.routing = self.rng.choice(("interest", "interest", "broadcast"))
        self.now_ms = 0
        self.blocked: set[tuple[str, str]] = set()  # (from, to)
        self.spoils = 0.0  # the part of lines of interest that are lost or change places
        self.wires: list[Wire] = []
        self.audit = Audit()
        self.gateways: dict[str, Gateway] = {}
        self.zone_of = self._choose_zones(1 if seed < SEVERAL_ZONES else 2 + (seed % 4 == 3))
        if seed % 16 in WITH_WORKERS:
            self._add_workers()
        self.names = list(self.zone_of)
        for name in self.names:
            self._begin(name)

    def _choose_zones(self, count: int) -> dict[str, str]:
        """The zone of each gateway."""
        if count == 1:
            return {f"gw{number}": "eu" for number in range(self.rng.choice((2, 3, 3, 4)))}
        zones = {zone: range(self.rng.choice((1, 2, 2, 3))) for zone in ("eu", "us", "asia")[:count]}
        return {f"{zone}{number}": zone for zone, numbers in zones.items() for number in numbers}

    def _add_workers(self) -> None:
        """The first gateway has two, and others may."""
        two = list(self.zone_of)[:1] + [name for name in self.zone_of if self.rng.random() < 0.5]
        self.zone_of |= {routes.peer_name(name, 1): self.zone_of[name] for name in dict.fromkeys(two)}

    # -- the whole run ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        for _ in range(ROUNDS):
            for _ in range(STEPS):
                self._act()
                self._pass(self.rng.randrange(2 * STEP_MS))
            self._mend()
            self._settle()
            self.audit.interest(self.gateways)
            self._publish_everywhere()
            self._pass(200)
            self.audit.round_is_over()

    def _publish_everywhere(self) -> None:
        for gateway in self.gateways.values():
            asker = self._new_client(gateway)
            for subject in (*self.rng.sample(SUBJECTS, 8), "nobody"):
                self.audit.published(self.gateways, asker, subject, self.now_ms, is_quiet=True)
            self._flush(gateway)

    def _mend(self) -> None:
        self.blocked.clear()
        self.spoils = 0.0
        for name in self.names:
            if name not in self.gateways:
                self._begin(name)

    def _settle(self) -> None:
        """Until all are linked and nothing but PINGs has moved for a while."""
        until_ms = self.now_ms + SETTLE_MS_MAX
        calm_ms = 0
        while calm_ms < 2 * GATEWAY_PING_INTERVAL_MS:
            if self.now_ms > until_ms:
                raise AssertionError(f"it does not settle: {self.audit.state(self.gateways)}")
            self._pass(50)
            calm_ms = calm_ms + 50 if all(map(self._is_settled, self.gateways.values())) else 0

    def _is_settled(self, gateway: Gateway) -> bool:
        """It is linked with its zone and led to each other one by one link, and knows what is wanted there."""
        links = list(gateway.plane.peers.links.values())
        zones = sorted(zone for zone in set(self.zone_of.values()) if zone != gateway.zone)
        led = sorted(
            link.session.zone for link in links if link.session.zone and link.session.scope is not Scope.BORDER
        )
        is_linked = len(gateway.wires) == list(self.zone_of.values()).count(gateway.zone) - 1
        if any(wire.is_cut for wire in (*gateway.wires.values(), *gateway.borders.values())):
            return False  # nobody has noticed yet: that takes longer than it has to be calm
        return is_linked and led == zones and not any(link.learned.is_stale or link.confirmed < 0 for link in links)

    # -- what happens -------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        happenings = [self._subscribe] * 6 + [self._unsubscribe] * 3 + [self._publish] * 9 + [self._come_and_go] * 2
        if self.faults:
            happenings += [
                self._block,
                self._block,
                self._silence,
                self._cut,
                self._spoil,
                self._spoil,
                self._end_or_begin,
                self._unblock,
            ]
        self.rng.choice(happenings)()

    def _somebody(self) -> Client | None:
        clients = [client for gateway in self.gateways.values() for client in gateway.clients]
        return self.rng.choice(clients) if clients else None

    def _subscribe(self) -> None:
        client = self._somebody()
        if client is not None:
            self._subscribe_by(client)

    def _subscribe_by(self, client: Client) -> None:
        lines = b""
        for _ in range(self.rng.choice((1, 1, 3))):
            lines += client.subscribe(self.rng.choice(PATTERNS), self.rng.choice(QUEUES))
        if self.rng.random() < 0.7:
            lines += client.ping()
        self._say(client, lines)

    def _unsubscribe(self) -> None:
        client = self._somebody()
        if client is not None and client.subscriptions:
            self._say(client, client.unsubscribe(self.rng.choice(sorted(client.subscriptions))))

    def _publish(self) -> None:
        client = self._somebody()
        if client is not None:
            for _ in range(self.rng.choice((1, 1, 4))):
                self.audit.published(self.gateways, client, self.rng.choice(SUBJECTS), self.now_ms)
            self._flush(client.gateway)

    def _come_and_go(self) -> None:
        client = self._somebody()
        if client is None or self.rng.random() < 0.6:
            self._new_client(self.gateways[self.rng.choice(sorted(self.gateways))] if self.gateways else None)
        else:
            client.gateway.clients.remove(client)
            self.audit.has_gone(client)
            client.plane.disconnect(client.session)
            self._flush(client.gateway)

    def _block(self) -> None:
        one, other = self.rng.sample(self.names, 2)
        self.blocked.add((one, other))
        if self.rng.random() < 0.5:
            self.blocked.add((other, one))
        if self.rng.random() < 0.5 and one in self.gateways:
            for client in self.gateways[one].clients[:3]:
                self._subscribe_by(client)
            self._pass(self.rng.choice((300, 1_200, 1_200, 2_500)))

    def _silence(self) -> None:
        """One is not heard by another, and its client has a PONG all the same: so it must be sent everything."""
        one, other = (self.gateways.get(name) for name in self.rng.sample(self.names, 2))
        if one is None or other is None or not one.clients or not other.clients:
            return
        self.blocked.add((one.name, other.name))
        subject, client = self.rng.choice(SUBJECTS), self.rng.choice(one.clients)
        self._say(client, client.subscribe(subject, "") + client.ping())
        self._pass(INTEREST_CONFIRM_MS + 2 * TICK_MS)
        self.audit.published(self.gateways, self.rng.choice(other.clients), subject, self.now_ms)
        event = self.audit.events[-1]
        self._flush(other)
        self._pass(2 * STEP_MS)
        if (other.name, one.name) not in self.blocked:
            self.audit.has_come(event, client)
        self.blocked.discard((one.name, other.name))

    def _unblock(self) -> None:
        self.blocked.clear()
        self.spoils = 0.0

    def _cut(self) -> None:
        wires = [wire for wire in self.wires if not wire.is_cut]
        if wires:
            wire = self.rng.choice(wires)
            wire.is_cut = True
            if self.rng.random() < 0.5:
                wire.ways[0].clear()
            if self.rng.random() < 0.5:
                wire.lose(self.rng.randrange(2))

    def _spoil(self) -> None:
        self.spoils = self.rng.choice((0.1, 0.5))

    def _end_or_begin(self) -> None:
        name = self.rng.choice(self.names)
        if name not in self.gateways:
            self._begin(name)
            return
        gateway = self.gateways.pop(name)
        for client in gateway.clients:
            self.audit.has_gone(client)
        for wire in self.wires:
            if gateway in wire.ends:
                wire.is_cut = True
                wire.sessions[wire.ends.index(gateway)] = None

    # -- gateways and clients -----------------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        zone, others = self.zone_of[name], dict[str, list[str]]()
        for other, its in self.zone_of.items():
            if its != zone:
                others.setdefault(its, []).append(other)
        node = routes.node_of(name)
        options = PlaneOptions(
            node,
            node,
            has_gateways=True,
            broadcasts=self.routing == "broadcast",
            zone=zone,
            zones=tuple(others),
            first_id=1 + (name != node),
            id_step=1 + (routes.peer_name(node, 1) in self.zone_of),
        )
        choose = random.Random(self.rng.random()).randrange
        plane = Plane(options, Silent(), choose, self.engine)
        self.gateways[name] = Gateway(name, zone, plane, Zones(zone, name, others))
        for _ in range(2):
            self._new_client(self.gateways[name])

    def _new_client(self, gateway: Gateway | None) -> Client | None:
        if gateway is None:
            return None
        client = Client(self.audit, gateway, CONNECT, self.now_ms)
        gateway.clients.append(client)
        self._flush(gateway)
        return client

    def _say(self, client: Client, lines: bytes) -> None:
        client.say(lines, self.now_ms)
        self._flush(client.gateway)

    def spoilt(self, parts: list[Part]) -> bytes:
        """Parts, without some lines of interest, or with them behind all others; one that has lost all is left out."""
        in_time, late = list[bytes](), list[bytes]()
        for key, data in parts:
            kept, later = self.spoil(data)
            if kept or not data:
                in_time += routes.pieces(*key, kept)
            if later:
                late += routes.pieces(*key, later)
        return b"".join(in_time + late)

    def spoil(self, data: bytes) -> tuple[bytes, bytes]:
        """What stays, and what comes later; never a digest: without that nothing can be noticed."""
        if not self.spoils:
            return data, b""
        kept, late = list[bytes](), list[bytes]()
        for line in data.splitlines(keepends=True):
            if _SPOILT.match(line) is None or self.rng.random() >= self.spoils:
                kept.append(line)
            elif self.rng.random() < 0.5:
                late.append(line)
        return b"".join(kept), b"".join(late)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _pass(self, wait_ms: int) -> None:
        """Time passes, and what has to happen by then does."""
        end_ms = self.now_ms + wait_ms
        while self.now_ms < end_ms:
            before_ms = self.now_ms
            self.now_ms = min(end_ms, before_ms - before_ms % STEP_MS + STEP_MS)
            if self.now_ms // TICK_MS > before_ms // TICK_MS:
                for gateway in self.gateways.values():
                    gateway.plane.tick(self.now_ms)
                self._redial()
            if self.now_ms // GATEWAY_PING_INTERVAL_MS > before_ms // GATEWAY_PING_INTERVAL_MS:
                for wire in self.wires:
                    wire.watch(0)
                    wire.watch(1)
                self._give_up_superfluous()
            self._move()

    def _move(self) -> None:
        moved = list(self.gateways.values())
        while moved:
            for gateway in moved:
                self._flush(gateway)
            moved = [wire.ends[end] for wire in self.wires for end in (0, 1) if wire.ways[end] and wire.arrive(end)]
            self._react()

    def _react(self) -> None:
        """Somebody elsewhere has waited for a subscription to be confirmed, and publishes at once."""
        confirmed, self.audit.just_confirmed = self.audit.just_confirmed, []
        for client, sid in confirmed:
            others = [other for one in self.gateways.values() if one is not client.gateway for other in one.clients]
            if client.is_here and sid in client.subscriptions and others and self.rng.random() < 0.7:
                pattern = client.subscriptions[sid][0]
                subject = self.rng.choice([each for each in SUBJECTS if matches(pattern, each)] or ["nobody"])
                publisher = self.rng.choice(others)
                self.audit.published(self.gateways, publisher, subject, self.now_ms)
                self._flush(publisher.gateway)

    def _flush(self, gateway: Gateway) -> None:
        plane = gateway.plane
        while plane.has_more:
            plane.do_more()
        while plane.take_dirty():
            for client in gateway.clients:
                client.hear(self.now_ms)
            for wire in [*gateway.wires.values(), *gateway.borders.values()]:
                wire.send(wire.ends.index(gateway))

    def _redial(self) -> None:
        """Who has noticed that a link is gone dials; an end that has not, hears of it when it likes."""
        for wire in [wire for wire in self.wires if wire.is_cut]:
            for end in (0, 1):
                if wire.sessions[end] is not None and self.rng.random() < 0.3:
                    wire.lose(end)
            wire.waits_to_open.clear()
            if wire.is_border and wire.sessions[0] is None and not wire.is_over:
                wire.is_over = True
                here, there = wire.ends
                here.zones.dialled(there.zone, self.now_ms, self.rng.random(), was_open=wire.was_open)
        self.wires = [wire for wire in self.wires if not wire.is_cut or any(wire.sessions)]
        for wire in self.wires:
            for end in list(wire.waits_to_open):
                self._open(wire, end)
        linked = {(wire.ends[0].name, wire.ends[1].name) for wire in self.wires if not wire.is_cut}
        for number, name in enumerate(self.names):
            for other in self.names[number + 1 :]:
                one, two = self.gateways.get(name), self.gateways.get(other)
                if one is None or two is None or other in one.wires or (name, other) in linked:
                    continue
                if one.zone != two.zone:
                    continue
                if not {(name, other), (other, name)} & self.blocked and self.rng.random() < 0.5:
                    wire = Wire(self, (one, two))
                    self.wires.append(wire)
                    for end in self.rng.sample((0, 1), self.rng.choice((1, 2))):  # the rest has it later
                        self._open(wire, end)

        for gateway in self.gateways.values():
            for zone, name in gateway.zones.due(self.now_ms):
                self._dial(gateway, zone, name)

    def _dial(self, gateway: Gateway, zone: str, name: str) -> None:
        """A link between zones is tried."""
        other = self.gateways.get(name)
        if other is None or {(gateway.name, name), (name, gateway.name)} & self.blocked or self.rng.random() < 0.3:
            gateway.zones.dialled(zone, self.now_ms, self.rng.random(), was_open=False)
            return
        wire = Wire(self, (gateway, other))
        self.wires.append(wire)
        for end in self.rng.sample((0, 1), self.rng.choice((1, 2))):
            self._open(wire, end)

    def _give_up_superfluous(self) -> None:
        for gateway in self.gateways.values():
            for channels in gateway.zones.superfluous():
                gateway.borders[channels.border].lose(0)
                self.audit.counted["links given up"] += 1

    def _open(self, wire: Wire, end: int) -> None:
        """And somebody there publishes at once."""
        wire.open(end)
        gateway = wire.ends[end]
        if gateway.clients:
            self.audit.published(
                self.gateways, self.rng.choice(gateway.clients), self.rng.choice(SUBJECTS), self.now_ms
            )
        self._flush(gateway)


def run(seed: int, engine: Engine | None = None) -> World:
    """A failure names its seed. One in four is without faults, one in five has prefixes in the place of patterns."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            if seed % 5 == 1:
                patch.setattr(interest, "INTEREST_PATTERNS_MAX", 6)
            world = World(seed, faults=seed % 4 != 0, engine=engine)
            world.run()
    except BaseException as error:  # a Ctrl-C too has to say where it was; raised again
        error.add_note(f"seed {seed}: PYTHONPATH=tests:. python -m simulation.gateways {seed}")
        raise
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    arguments = parser.parse_args()
    for seed in range(arguments.first, arguments.first + arguments.count):
        print(f"seed {seed}: {run(seed).audit.summary()}", flush=True)


if __name__ == "__main__":
    main()
