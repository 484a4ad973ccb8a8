"""What peers are told of interest and what they make of it: together, in versions, again when something was lost."""

import itertools
from collections.abc import Callable

import pytest
from support.gateway import ENGINES, make_plane
from support.peers import Client, Silent

from gateway.core.interest import Interest
from gateway.core.session import Session
from protocol import routes
from protocol.limits import INTEREST_CONFIRM_MS, INTEREST_SLICE_MAX


class Zone:
    """Gateways 0 and 1, and the link between them; `loses` says of a line that it is lost on its way."""

    def __init__(self, engine) -> None:
        self.planes = [make_plane(Silent(), engine, has_gateways=True) for _ in range(2)]
        self.loses: Callable[[bytes], bool] = lambda line: False
        self.sent: list[bytes] = []  # lines of interest that 1 was sent
        self.links: list[Session] = [
            plane.connect_peer(f"gw{1 - i}", 0, near=False) for i, plane in enumerate(self.planes)
        ]
        self.settle()

    def settle(self) -> list[bytes]:
        """Until nothing moves; the lines with RS that gateway 1 was sent."""
        self.sent = []
        for plane in self.planes:
            plane.tell_peers()
        while any(link.queued_bytes or plane.has_more for link, plane in zip(self.links, self.planes, strict=True)):
            self.turn()
        return self.sent

    def turn(self) -> None:
        for here in (0, 1):
            lines = [line for line in self.links[here].take().splitlines(keepends=True) if not self.loses(line)]
            self.sent += [line for line in lines if here == 0 and line.startswith(b"RS")]
            data = b"".join(lines)
            while self.planes[1 - here].receive(self.links[1 - here], data, 0):
                data = b""
        for plane in self.planes:
            if plane.has_more:
                plane.do_more()

    def learned(self):
        """What gateway 1 knows of gateway 0."""
        return self.planes[1].peers.links[self.links[1]].learned

    def wanted(self) -> set[tuple[str, str, int]]:
        """(pattern, queue, weight) that gateway 1 takes gateway 0 to want."""
        return {(each.pattern, each.queue, each.weight) for each in self.links[1].subscriptions.values()}


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def zone(request: pytest.FixtureRequest) -> Zone:
    return Zone(request.param)


def changes(lines: list[bytes]) -> list[bytes]:
    return [line.strip() for line in lines if line.startswith((b"RS+", b"RS-"))]


# -- telling ----------------------------------------------------------------------------------------------------------


def test_a_pattern_is_told_once_however_many_want_it(zone: Zone) -> None:
    clients = [Client(zone.planes[0]) for _ in range(3)]
    for client in clients:
        client.send(b"SUB a 1\r\nSUB a 2\r\nSUB a.* q 3\r\n")
    assert changes(zone.settle()) == [b"RS+ $G a", b"RS+ $G a.* q 3"]
    clients[0].send(b"UNSUB 1\r\nUNSUB 2\r\n")
    assert changes(zone.settle()) == []


def test_what_was_given_back_at_once_is_never_told(zone: Zone) -> None:
    client = Client(zone.planes[0])
    client.send(b"SUB a 1\r\nSUB b q 2\r\nUNSUB 1\r\nUNSUB 2\r\nSUB c 3\r\n")
    assert changes(zone.settle()) == [b"RS+ $G c"]


def test_what_nobody_wanted_is_told_with_the_read_and_the_size_of_a_group_with_the_next_tick(zone: Zone) -> None:
    plane, link = zone.planes[0], zone.links[0]
    first, second = Client(plane), Client(plane)
    first.send(b"SUB a q 1\r\n")
    plane.take_dirty()
    assert link.take() == b"RS+ $G a q 1\r\n"
    second.send(b"SUB a q 1\r\nSUB a q 2\r\n")
    plane.take_dirty()
    assert link.take() == b""
    plane.tick(100)
    assert link.take() == b"RS+ $G a q 3\r\n"


def test_the_inbox_of_a_request_is_told_before_the_request(zone: Zone) -> None:
    """Both came in one read: who answers at once must find it wanted."""
    service, requester = Client(zone.planes[1]), Client(zone.planes[0])
    service.send(b"SUB work 1\r\n")
    zone.settle()
    requester.send(b"SUB inbox 1\r\nPUB work inbox 0\r\n\r\nUNSUB 1\r\n")
    assert zone.links[0].queued_bytes
    assert zone.links[0].take() == b"RS+ $G inbox\r\nRMSG $G work inbox 0\r\n\r\n"


def test_many_are_told_in_slices_and_changes_in_between(zone: Zone) -> None:
    count = 3 * INTEREST_SLICE_MAX
    client = Client(zone.planes[0])
    client.send(b"".join(b"SUB a.%d %d\r\n" % (number, number) for number in range(count)))
    while zone.planes[0].receive(client.session, b"", 0):
        pass
    zone.planes[0].tell_peers()
    for number, plane in enumerate(zone.planes):
        plane.disconnect(zone.links[number])
    zone.links = [plane.connect_peer(f"gw{1 - i}", 0, near=False) for i, plane in enumerate(zone.planes)]
    first = zone.links[0].queued_bytes
    assert first < 40 * INTEREST_SLICE_MAX
    assert zone.planes[0].has_more
    client.send(b"UNSUB 0\r\nUNSUB %d\r\nSUB new 1000000\r\n" % (count - 1))
    waits = Client(zone.planes[0])
    assert waits.send(b"SUB late 1\r\nPING\r\n") == b""
    zone.turn()
    assert waits.take() == b""
    zone.settle()
    assert waits.take() == b"PONG\r\n"
    assert zone.wanted() == {(f"a.{number}", "", 1) for number in range(1, count - 1)} | {
        ("new", "", 1),
        ("late", "", 1),
    }
    assert zone.learned().repairs == 0


# -- what is lost -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [b"RS+ $G a\r\n", b"RS- $G old\r\n", b"RS+ $G b q 1\r\n"])
def test_a_change_that_was_lost_is_found_and_told_again(zone: Zone, lost: bytes) -> None:
    client, sender = Client(zone.planes[0]), Client(zone.planes[1])
    client.send(b"SUB old 1\r\n")
    zone.settle()
    zone.loses = lambda line: line == lost
    client.send(b"SUB a 2\r\nSUB b q 3\r\nUNSUB 1\r\n")
    zone.settle()
    right = {("a", "", 1), ("b", "q", 1)}
    assert zone.wanted() != right
    zone.loses = lambda line: False
    zone.planes[0].ping_peer(zone.links[0], 0)
    zone.settle()
    assert zone.wanted() == right
    assert (zone.learned().repairs, zone.learned().is_stale) == (1, False)
    sender.send(b"PUB a 0\r\n\r\n")
    zone.settle()
    assert client.take() == b"MSG a 2 0\r\n\r\n"


def test_who_has_missed_something_is_sent_everything_until_all_is_told_again(zone: Zone) -> None:
    client, sender = Client(zone.planes[0]), Client(zone.planes[1])
    sender.send(b"SUB inbox 1\r\n")
    zone.settle()
    zone.loses = lambda line: line.startswith((b"RS+", b"RSALL", b"RSASK"))
    assert client.send(b"SUB a 2\r\nPING\r\n") == b""
    zone.settle()
    assert client.take() == b"PONG\r\n"
    assert sender.send(b"PUB a inbox 0\r\n\r\nPUB b inbox 0\r\n\r\n") == b""  # no 503, either
    zone.settle()
    assert client.take() == b"MSG a 2 inbox 0\r\n\r\n"
    zone.loses = lambda line: False
    zone.planes[0].ping_peer(zone.links[0], 0)
    zone.settle()
    assert not zone.learned().is_stale
    assert b"NATS/1.0 503" in sender.send(b"PUB b inbox 0\r\n\r\n")


@pytest.mark.parametrize("part", [b"RSALL", b"RSSUM", b"RSASK", b"RS+"])
def test_what_repairs_may_be_lost_itself(zone: Zone, part: bytes) -> None:
    client = Client(zone.planes[0])
    lines = itertools.count()
    zone.loses = lambda line: line.startswith(b"RS+") or (line.startswith(part) and next(lines) < 3)
    client.send(b"SUB a 1\r\nSUB b 2\r\n")
    zone.settle()
    for now_ms in range(10):
        zone.planes[0].ping_peer(zone.links[0], now_ms)
        zone.settle()
        if now_ms == 1:
            zone.loses = lambda line: line.startswith(part) and next(lines) < 3
    assert zone.wanted() == {("a", "", 1), ("b", "", 1)}
    assert not zone.learned().is_stale


def test_changes_in_another_order_leave_something_else_that_is_found(zone: Zone) -> None:
    client = Client(zone.planes[0])
    client.send(b"SUB a 1\r\n")
    zone.planes[0].tell_peers()
    first = zone.links[0].take()
    client.send(b"UNSUB 1\r\nSUB b 2\r\n")
    zone.planes[0].tell_peers()
    second = zone.links[0].take()
    zone.planes[1].receive(zone.links[1], second + first, 0)
    assert zone.wanted() == {("a", "", 1), ("b", "", 1)}
    zone.planes[0].ping_peer(zone.links[0], 0)
    zone.settle()
    assert zone.wanted() == {("b", "", 1)}


# -- who is not heard -------------------------------------------------------------------------------------------------


def test_a_silent_gateway_is_sent_everything_until_it_answers_what_was_asked_since(zone: Zone) -> None:
    client, sender = Client(zone.planes[0]), Client(zone.planes[1])
    sender.send(b"SUB inbox 1\r\n")
    zone.settle()
    zone.planes[1].ping_peer(zone.links[1], 0)
    early = zone.links[1].take()
    zone.planes[0].receive(zone.links[0], early, 0)
    answer = zone.links[0].take()
    client.send(b"SUB a 1\r\n")
    zone.planes[1].peers.doubt(zone.links[1])
    zone.planes[1].receive(zone.links[1], answer, 0)  # it was on its way for long, and says nothing of what is new
    assert sender.send(b"PUB a inbox 0\r\n\r\n") == b""
    zone.settle()
    assert client.take() == b"MSG a 1 inbox 0\r\n\r\n"
    assert b"NATS/1.0 503" in sender.send(b"PUB b inbox 0\r\n\r\n")


def test_who_leaves_a_client_waiting_is_stale_until_it_answers(zone: Zone) -> None:
    client, requester = Client(zone.planes[0]), Client(zone.planes[0])
    requester.send(b"SUB inbox 1\r\n")
    zone.settle()
    assert client.send(b"SUB a 1\r\nPING\r\n", now_ms=0) == b""
    assert b"NATS/1.0 503" in requester.send(b"PUB b inbox 0\r\n\r\n")
    zone.planes[0].tick(INTEREST_CONFIRM_MS)
    assert client.take() == b"PONG\r\n"
    assert requester.send(b"PUB c inbox 0\r\n\r\n") == b""
    zone.settle()
    assert b"NATS/1.0 503" in requester.send(b"PUB c inbox 0\r\n\r\n")
    assert client.send(b"SUB c 3\r\nPING\r\n") == b""


# -- prefixes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.core.interest.INTEREST_PATTERNS_MAX", 20)


def subscribe(*patterns: str, first: int = 0) -> bytes:
    return b"".join(b"SUB %b %d\r\n" % (each.encode(), number) for number, each in enumerate(patterns, first))


@pytest.mark.usefixtures("few")
def test_above_the_limit_prefixes_stand_for_patterns_and_groups_stay(zone: Zone) -> None:
    client, sender = Client(zone.planes[0]), Client(zone.planes[1])
    client.send(subscribe(*(f"many.{number}" for number in range(18)), "few.1", "few.2"))
    client.send(b"SUB many.1 q 100\r\nSUB *.x 101\r\nSUB many 102\r\n")
    zone.settle()
    assert zone.wanted() == {
        *(("many.>", "", 1), ("few.1", "", 1), ("few.2", "", 1), ("many.1", "q", 1), ("*.x", "", 1), ("many", "", 1))
    }
    sender.send(b"PUB many.7 0\r\n\r\nPUB many.x.y 0\r\n\r\nPUB few.3 0\r\n\r\n")
    zone.settle()
    assert client.take() == b"MSG many.7 7 0\r\n\r\n"
    assert zone.links[0].unwanted_msgs == 1
    client.send(b"SUB many.more 200\r\nUNSUB 3\r\nSUB many.> 201\r\n")
    assert changes(zone.settle()) == []
    client.send(b"".join(b"UNSUB %d\r\n" % number for number in range(3, 18)))
    zone.settle()
    patterns = {pattern for pattern, _, _ in zone.wanted()}
    assert patterns == {"many.0", "many.1", "many.2", "few.1", "few.2", "*.x", "many", "many.more", "many.>"}
    assert zone.learned().repairs == 0


@pytest.mark.usefixtures("few")
def test_where_prefixes_do_not_help_everything_of_the_account_is_wanted(zone: Zone) -> None:
    client = Client(zone.planes[0])
    client.send(subscribe(*(f"user{number}.x" for number in range(21))) + b"SUB a q 100\r\n")
    zone.settle()
    assert zone.wanted() == {(">", "", 1), ("a", "q", 1)}
    client.send(subscribe("b", "c.d", first=200))
    assert changes(zone.settle()) == []
    zone.planes[0].close(client.session, client.session.closing or "gone")
    zone.settle()
    assert zone.wanted() == set()


@pytest.mark.usefixtures("few")
def test_the_digest_is_right_after_any_changes() -> None:
    """As `take` keeps it, and as it is made from all entries."""
    interest = Interest()
    keys = [("A", f"{token}.{number}", queue) for token in "xyz" for number in range(12) for queue in ("", "q")]
    steps = [(key, 1) for key in keys] + [(key, -1) for key in keys[::-1]]
    for number, (key, by) in enumerate(steps):
        interest.change(key, by)
        if number % 5 == 0:
            interest.take()
            interest.take()
        if number == len(keys):
            assert interest.prefixes
    interest.take()
    assert (interest.digest, interest.entries(), interest.prefixes) == (0, [], [])


# -- on the wire ------------------------------------------------------------------------------------------------------


def test_versions_on_the_wire() -> None:
    parser = routes.RouteParser(100, 200)
    parser.receive(b"RSALL 1\r\nRSSUM 1 2 bcbd0e8928b16549\r\nRSASK 9\r\n")
    assert [parser.next_event() for _ in range(3)] == [
        routes.Table(1),
        routes.Digest(1, 2, 0xBCBD0E8928B16549),
        routes.Again(9),
    ]
    assert routes.digest_of(b"$G a.b ", 1) == 0xBCBD0E8928B16549
    assert routes.digest_of(b"$G a.* crew", 3) == 0x5066CFD8D7B4727C
    lines = routes.table_line(1), routes.digest_line(1, 2, 255), routes.again_line(9)
    assert lines == (b"RSALL 1\r\n", b"RSSUM 1 2 00000000000000ff\r\n", b"RSASK 9\r\n")


@pytest.mark.parametrize("line", [b"RSALL", b"RSALL x", b"RSALL 1 2", b"RSSUM 1 2", b"RSSUM 1 2 xyz", b"RSASK -1"])
def test_a_version_that_is_none_ends_the_link(zone: Zone, line: bytes) -> None:
    zone.planes[1].receive(zone.links[1], line + b" \r\n", 0)
    assert zone.links[1].closing is not None
