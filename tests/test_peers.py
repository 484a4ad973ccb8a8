"""Two planes that are peers of each other, without sockets: what one is told, the other's clients see."""

import re
from collections.abc import Callable

import pytest
from support.gateway import ENGINES, make_plane
from support.peers import CONNECT, Client, Silent
from support.scripts import login

from gateway.core.engine import Engine
from gateway.core.identity import UserEntry
from gateway.core.plane import Plane
from gateway.core.session import Session


class Pair:
    """Workers 1 and 2 of two, and the link between them, which moves bytes when `settle` is called.

    Not `near`: each is another gateway to the other.
    """

    def __init__(self, engine: Engine, *, near: bool = True, broadcasts: bool = False) -> None:
        self.near = near
        options = {"id_step": 2, "max_pending_bytes": 1 << 20, "max_payload_bytes": 1 << 16, "broadcasts": broadcasts}
        self.planes = [make_plane(Silent(), engine, first_id=i, **options) for i in (1, 2)]
        self.links: list[Session] = []
        self.connect()

    def connect(self) -> None:
        self.links = [plane.connect_peer(f"worker {2 - i}", 0, near=self.near) for i, plane in enumerate(self.planes)]

    def cut(self) -> None:
        for plane, link in zip(self.planes, self.links, strict=True):
            plane.disconnect(link)

    def settle(self, now_ms: int = 0) -> bytes:
        """Moves what waits on the link until nothing does; what worker 2 was sent, digests aside."""
        sent = b""
        for plane in self.planes:
            plane.tell_peers()
        while any(link.queued_bytes for link in self.links):
            for here, there in ((0, 1), (1, 0)):
                data = self.links[here].take()
                sent += data if here == 0 else b""
                while self.planes[there].receive(self.links[there], data, now_ms):
                    data = b""
            for plane in self.planes:
                if plane.has_more:
                    plane.do_more()
        return re.sub(rb"RSSUM .*\r\n", b"", sent)


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def pair(request: pytest.FixtureRequest) -> Pair:
    pair = Pair(request.param)
    pair.settle()
    return pair


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def gateways(request: pytest.FixtureRequest) -> Pair:
    pair = Pair(request.param, near=False)
    pair.settle()
    return pair


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def broadcasting(request: pytest.FixtureRequest) -> Pair:
    pair = Pair(request.param, near=False, broadcasts=True)
    pair.settle()
    return pair


@pytest.fixture
def clients(pair: Pair) -> tuple[Client, Client]:
    return Client(pair.planes[0]), Client(pair.planes[1])


def test_ids_of_clients_are_apart(pair: Pair) -> None:
    assert [Client(pair.planes[i]).session.id for i in (0, 0, 1, 1)] == [1, 3, 2, 4]


@pytest.mark.parametrize(
    ("publish", "shown"),
    [
        (b"PUB a.b 2\r\nhi\r\n", b"MSG a.b 7 2\r\nhi\r\n"),
        (b"PUB a.b inbox.1 2\r\nhi\r\n", b"MSG a.b 7 inbox.1 2\r\nhi\r\n"),
        (b"PUB a.b + 2\r\nhi\r\n", b"MSG a.b 7 + 2\r\nhi\r\n"),
        (b"PUB a.b | 2\r\nhi\r\n", b"MSG a.b 7 | 2\r\nhi\r\n"),
        (b"HPUB a.b 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", b"HMSG a.b 7 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"),
        (b"HPUB a.b r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", b"HMSG a.b 7 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"),
    ],
)
def test_a_message_crosses_as_it_is(pair: Pair, clients: tuple[Client, Client], publish: bytes, shown: bytes) -> None:
    sender, receiver = clients
    receiver.send(b"SUB a.* 7\r\n")
    pair.settle()
    assert sender.send(publish) == b""
    pair.settle()
    assert receiver.take() == shown


def test_a_message_crosses_once_however_many_want_it(pair: Pair, clients: tuple[Client, Client]) -> None:
    sender, receiver = clients
    other = Client(pair.planes[1])
    receiver.send(b"SUB a.* 1\r\nSUB a.b 2\r\n")
    other.send(b"SUB > 3\r\n")
    pair.settle()
    sender.send(b"PUB a.b 2\r\nhi\r\n")
    assert pair.settle() == b"RMSG $G a.b 2\r\nhi\r\n"
    assert sorted(receiver.take().split(b"hi\r\n")) == [b"", b"MSG a.b 1 2\r\n", b"MSG a.b 2 2\r\n"]
    assert other.take() == b"MSG a.b 3 2\r\nhi\r\n"


def test_nothing_crosses_that_nobody_wants(pair: Pair, clients: tuple[Client, Client]) -> None:
    sender, receiver = clients
    receiver.send(b"SUB a 1\r\nSUB a 2\r\nUNSUB 1\r\n")
    assert pair.settle() == b""
    sender.send(b"PUB a 0\r\n\r\n")
    assert pair.settle() == b"RMSG $G a 0\r\n\r\n"
    receiver.send(b"UNSUB 2\r\n")
    pair.settle()
    sender.send(b"PUB a 0\r\n\r\nPUB b 0\r\n\r\n")
    assert pair.settle() == b""


def test_one_member_of_each_group_gets_a_message(pair: Pair, clients: tuple[Client, Client]) -> None:
    sender, receiver = clients
    receiver.send(b"SUB a q 1\r\nSUB a q 2\r\nSUB a other 3\r\n")
    pair.settle()
    for number in range(20):
        sender.send(b"PUB a r%d 0\r\n\r\n" % number)
        assert pair.settle() == b"RMSG $G a + q other r%d 0\r\n\r\n" % number
        got = receiver.take()
        assert got.count(b"MSG a 1 ") + got.count(b"MSG a 2 ") == 1
        assert got.count(b"MSG a 3 ") == 1
    sender.send(b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n")
    assert pair.settle() == b"HRMSG $G a | q other 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
    assert receiver.take().count(b"\r\n\r\nhi\r\n") == 2


def test_a_message_that_many_groups_want_goes_to_one_member_of_each(pair: Pair, clients: tuple[Client, Client]) -> None:
    """More than one frame has room for without being taken apart word by word."""
    sender, receiver = clients
    other = Client(pair.planes[0])
    subscribe = b"".join(b"SUB a group-number-%d %d\r\n" % (number, number) for number in range(60))
    receiver.send(subscribe)
    other.send(subscribe)
    pair.settle()
    sender.send(b"PUB a 0\r\n\r\n")
    pair.settle()
    far, near = receiver.take(), other.take()
    shown = re.findall(rb"MSG a (\d+) 0\r\n\r\n", far + near)
    assert sorted(map(int, shown)) == list(range(60))
    assert len(far) > 100
    assert len(near) > 100


def test_all_members_behind_workers_of_one_gateway_have_the_same_share(
    pair: Pair, clients: tuple[Client, Client]
) -> None:
    """Here 1 and there 3 of them, two of those under another pattern; 8 standard deviations are allowed."""
    here, there = clients
    here.send(b"SUB a q 0\r\n")
    there.send(b"SUB a q 1\r\nSUB * q 2\r\nSUB * q 3\r\n")
    pair.settle()
    for sender in (here, there):
        got = b""
        for _ in range(40):
            got += sender.send(b"PUB a 0\r\n\r\n" * 100)
            pair.settle()
            got += here.take() + there.take()
        shares = [got.count(b"MSG a %d " % sid) for sid in range(4)]
        assert sum(shares) == 4_000
        assert all(abs(share - 1_000) < 8 * 27.4 for share in shares), shares


def test_peers_hear_how_many_members_a_group_has(pair: Pair, clients: tuple[Client, Client]) -> None:
    member = clients[0]
    for told, said in (
        (b"RS+ $G a q 1\r\n", b"SUB a q 1\r\n"),
        (b"RS+ $G a q 2\r\n", b"SUB a q 2\r\n"),
        (b"RS+ $G a q 1\r\n", b"UNSUB 1\r\n"),
        (b"RS- $G a q\r\n", b"UNSUB 2\r\n"),
    ):
        member.send(said)
        assert pair.settle() == told
    member.send(b"SUB a q 1\r\nSUB a q 2\r\nSUB a 3\r\nSUB a 4\r\n")
    pair.settle()
    pair.cut()
    pair.connect()
    assert b"RS+ $G a q 2\r\nRS+ $G a\r\n" in pair.settle()


def test_a_member_that_has_gone_is_not_asked_any_more(pair: Pair, clients: tuple[Client, Client]) -> None:
    """The frame that names its group is on its way already: another member there gets it, or nobody."""
    sender, receiver = clients
    receiver.send(b"SUB a q 1\r\nSUB a q 2\r\n")
    pair.settle()
    sender.send(b"PUB a 0\r\n\r\n")
    receiver.send(b"UNSUB 1\r\n")
    pair.settle()
    assert receiver.take() == b"MSG a 2 0\r\n\r\n"
    sender.send(b"PUB a 0\r\n\r\n")
    receiver.send(b"UNSUB 2\r\n")
    pair.settle()
    assert receiver.take() == b""


def test_members_of_another_gateway_are_asked_when_there_are_none_here(gateways: Pair) -> None:
    sender, local, remote = Client(gateways.planes[0]), Client(gateways.planes[0]), Client(gateways.planes[1])
    remote.send(b"SUB a q 1\r\nSUB a q 2\r\n")
    gateways.settle()
    sender.send(b"PUB a 0\r\n\r\n")
    assert gateways.settle() == b"RMSG $G a | q 0\r\n\r\n"
    local.send(b"SUB a q 9\r\n")
    gateways.settle()
    remote.take()
    sender.send(b"PUB a 0\r\n\r\n" * 50)
    assert gateways.settle() == b""
    assert (local.take(), remote.take()) == (b"MSG a 9 0\r\n\r\n" * 50, b"")


def test_a_group_whose_only_local_member_does_not_hear_itself_is_served_elsewhere(pair: Pair) -> None:
    sender = Client(pair.planes[0], CONNECT.replace(b"{", b'{"echo":false,'))
    receiver = Client(pair.planes[1])
    sender.send(b"SUB a q 1\r\n")
    receiver.send(b"SUB a q 2\r\n")
    pair.settle()
    assert sender.send(b"PUB a 0\r\n\r\n") == b""
    pair.settle()
    assert receiver.take() == b"MSG a 2 0\r\n\r\n"


def test_no_responders_is_claimed_only_when_nobody_answers_anywhere(pair: Pair, clients: tuple[Client, Client]) -> None:
    requester, service = clients
    requester.send(b"SUB inbox 1\r\n")
    service.send(b"SUB svc q 5\r\n")
    pair.settle()
    assert requester.send(b"PUB svc inbox 2\r\nhi\r\n") == b""
    pair.settle()
    assert service.take() == b"MSG svc 5 inbox 2\r\nhi\r\n"
    service.send(b"PUB inbox 3\r\nyes\r\n")
    pair.settle()
    assert requester.take() == b"MSG inbox 1 3\r\nyes\r\n"
    service.send(b"UNSUB 5\r\n")
    pair.settle()
    assert b"NATS/1.0 503" in requester.send(b"PUB svc inbox 2\r\nhi\r\n")


def test_a_message_of_a_peer_is_not_passed_on_and_not_captured(pair: Pair, clients: tuple[Client, Client]) -> None:
    sender, receiver = clients
    sender.send(b"SUB a 1\r\n")
    receiver.send(b"SUB a 1\r\n")
    pair.settle()
    sender.send(b"PUB a 0\r\n\r\n")
    pair.settle()
    assert (sender.take(), receiver.take()) == (b"", b"MSG a 1 0\r\n\r\n")
    assert not pair.links[0].queued_bytes


def test_interest_goes_with_the_link_and_comes_back_with_it(pair: Pair, clients: tuple[Client, Client]) -> None:
    sender, receiver = clients
    receiver.send(b"SUB a 1\r\nSUB b q 2\r\n")
    pair.settle()
    pair.cut()
    sender.send(b"PUB a 0\r\n\r\n")
    receiver.send(b"SUB c 3\r\n")
    pair.connect()
    pair.settle()
    sender.send(b"PUB a 0\r\n\r\nPUB b 0\r\n\r\nPUB c 0\r\n\r\n")
    pair.settle()
    assert receiver.take() == b"MSG a 1 0\r\n\r\nMSG b 2 0\r\n\r\nMSG c 3 0\r\n\r\n"


def test_a_pong_waits_until_peers_know_of_the_subscription(pair: Pair, clients: tuple[Client, Client]) -> None:
    _, receiver = clients
    assert receiver.send(b"PING\r\n") == b"PONG\r\n"
    assert receiver.send(b"SUB a 1\r\nPING\r\n") == b""
    pair.settle()
    assert receiver.take() == b"PONG\r\n"
    assert receiver.send(b"PING\r\nPING\r\n") == b"PONG\r\nPONG\r\n"


@pytest.mark.parametrize("end", ["time", "link"])
def test_a_pong_does_not_wait_for_ever(pair: Pair, clients: tuple[Client, Client], end: str) -> None:
    _, receiver = clients
    assert receiver.send(b"SUB a 1\r\nPING\r\n", now_ms=1_000) == b""
    release: dict[str, Callable[[], None]] = {"time": lambda: pair.planes[1].tick(2_000), "link": pair.cut}
    pair.planes[1].tick(1_999)
    assert receiver.take() == b""
    release[end]()
    assert receiver.take().startswith(b"PONG\r\n")  # the plane's first own PING may be due too


def test_a_peer_that_falls_behind_loses_messages_that_are_counted_and_keeps_its_link(
    pair: Pair, clients: tuple[Client, Client]
) -> None:
    sender, receiver = clients
    receiver.send(b"SUB a 1\r\n")
    pair.settle()
    payload = bytes(1 << 16)
    publish = b"PUB a %d\r\n%b\r\n" % (len(payload), payload)
    plane, link = pair.planes[0], pair.links[0]
    sent = 0
    while not plane.stats.dropped_for_peers:
        sent += 1
        more = plane.receive(sender.session, publish, 0)
        while more:
            more = plane.receive(sender.session, b"", 0)
    assert link.queued_bytes <= plane.options.max_pending_bytes
    assert link.dropped_msgs == plane.stats.dropped_for_peers
    assert (link.closing, sender.session.stall_ms > 0) == (None, True)
    pair.settle()
    assert receiver.take().count(b"MSG a 1 ") == sent - 1


def test_a_peer_of_another_version_is_refused(pair: Pair) -> None:
    link = pair.planes[0].connect_peer("old", 0, near=True)
    pair.planes[0].receive(link, b'CONNECT {"version":0,"name":"old"}\r\n', 0)
    assert link.closing is not None
    assert "version 0" in link.closing_detail


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_messages_of_several_accounts_on_one_link_stay_apart(engine: Engine) -> None:
    """Each has one subscriber to the same subject, so their route plans differ in nothing else."""
    users = tuple(UserEntry(name, "b", account=name) for name in ("ONE", "TWO"))
    plane = make_plane(Silent(), engine, id_step=2, users=users)
    link = plane.connect_peer("worker 1", 0, near=True)
    one, two = (Client(plane, login(name, CONNECT)) for name in ("ONE", "TWO"))
    assert (one.send(b"SUB a 1\r\nSUB a q 2\r\n"), two.send(b"SUB a 1\r\nSUB a q 2\r\n")) == (b"", b"")
    for number in range(3):
        plane.receive(link, b"RMSG ONE a 1\r\n1\r\nRMSG TWO a | q 1\r\n2\r\nRMSG NEW a 1\r\n3\r\n" * 2, number)
    assert one.take() == b"MSG a 1 1\r\n1\r\n" * 6
    assert two.take() == b"MSG a 1 1\r\n2\r\nMSG a 2 1\r\n2\r\n" * 6


def test_another_gateway_is_sent_everything_until_it_has_told_what_it_wants(gateways: Pair) -> None:
    """And nobody is told meanwhile that there are no responders: one may be there."""
    sender, receiver = Client(gateways.planes[0]), Client(gateways.planes[1])
    gateways.cut()
    sender.send(b"SUB inbox 9\r\n")
    assert b"NATS/1.0 503" in sender.send(b"PUB work inbox 0\r\n\r\n")
    receiver.send(b"SUB work 1\r\nSUB work crew 2\r\n")
    gateways.connect()
    assert sender.send(b"PUB work inbox 0\r\n\r\nPUB other inbox 0\r\n\r\n") == b""
    assert b"RMSG $G work inbox 0\r\n\r\nRMSG $G other inbox 0\r\n\r\n" in gateways.settle()
    assert receiver.take() == b"MSG work 1 inbox 0\r\n\r\n"
    assert b"NATS/1.0 503" in sender.send(b"PUB other inbox 0\r\n\r\n")
    assert gateways.settle() == b""


def test_everything_is_broadcast_and_dropped_where_nobody_wants_it(broadcasting: Pair) -> None:
    sender, receiver = Client(broadcasting.planes[0]), Client(broadcasting.planes[1])
    receiver.send(b"SUB a 1\r\n")
    broadcasting.settle()
    sender.send(b"PUB a 0\r\n\r\nPUB b 0\r\n\r\nHPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n")
    sent = b"RMSG $G a 0\r\n\r\nRMSG $G b 0\r\n\r\nHRMSG $G a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
    assert broadcasting.settle() == sent
    assert receiver.take() == b"MSG a 1 0\r\n\r\nHMSG a 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
    link = broadcasting.links[1]
    assert (link.in_msgs, link.unwanted_msgs) == (3, 1)


def test_a_broadcast_is_for_one_member_of_a_group_a_local_one_first(broadcasting: Pair) -> None:
    sender, receiver = Client(broadcasting.planes[0]), Client(broadcasting.planes[1])
    receiver.send(b"SUB a q 1\r\nSUB a q 2\r\nSUB a 3\r\n")
    broadcasting.settle()
    sender.send(b"PUB a 0\r\n\r\n")
    assert broadcasting.settle() == b"RMSG $G a | q 0\r\n\r\n"
    assert sorted(receiver.take().split(b"0\r\n\r\n")) in (
        [b"", b"MSG a 1 ", b"MSG a 3 "],
        [b"", b"MSG a 2 ", b"MSG a 3 "],
    )
    local = Client(broadcasting.planes[0])
    local.send(b"SUB a q 9\r\n")
    sender.send(b"PUB a 0\r\n\r\n" * 20)
    assert b"RMSG $G a 0\r\n\r\n" * 20 in broadcasting.settle()
    assert (local.take(), receiver.take()) == (b"MSG a 9 0\r\n\r\n" * 20, b"MSG a 3 0\r\n\r\n" * 20)


def test_who_is_sent_everything_is_no_responder(broadcasting: Pair) -> None:
    """But one that wants it is, plainly or as a member of a group, and one that has not told yet may be."""
    sender, receiver = Client(broadcasting.planes[0]), Client(broadcasting.planes[1])
    sender.send(b"SUB inbox 9\r\n")
    broadcasting.settle()
    asks = b"PUB work inbox 0\r\n\r\n"
    assert b"NATS/1.0 503" in sender.send(asks)
    assert broadcasting.settle() == b"RMSG $G work inbox 0\r\n\r\n"
    for sid, wants in ((1, b"SUB work 1\r\n"), (2, b"SUB work q 2\r\n")):
        receiver.send(wants)
        broadcasting.settle()
        assert sender.send(asks) == b""
        receiver.send(b"UNSUB %d\r\n" % sid)
        broadcasting.settle()
        assert b"NATS/1.0 503" in sender.send(asks)
    broadcasting.cut()
    assert b"NATS/1.0 503" in sender.send(asks)
    broadcasting.connect()
    assert sender.send(asks) == b""


def test_a_slow_client_does_not_slow_the_link_to_another_gateway(gateways: Pair, pair: Pair) -> None:
    """But that to a worker of the same gateway, whose publishers are ours."""
    for two, is_slowed in ((gateways, False), (pair, True)):
        sender, receiver = Client(two.planes[0]), Client(two.planes[1])
        receiver.send(b"SUB a 1\r\n")
        two.settle()
        for _ in range(10):
            sender.send(b"PUB a 60000\r\n%b\r\n" % bytes(60_000))
            two.settle()
        assert receiver.session.queued_bytes > 1 << 19
        assert (two.links[1].stall_ms > 0) == is_slowed


def test_a_round_trip_is_measured_when_no_other_answer_is_awaited(gateways: Pair) -> None:
    plane, link = gateways.planes[0], gateways.links[0]
    plane.ping_peer(link, 1_000)
    plane.ping_peer(link, 1_005)
    assert gateways.settle(1_010) == b"PING\r\n"
    assert link.rtt_ms == 10
    Client(plane).send(b"SUB a 1\r\nPING\r\n", now_ms=2_000)
    plane.ping_peer(link, 2_000)
    assert gateways.settle(2_500).count(b"PING\r\n") == 1
    assert link.rtt_ms == 10


def settle_all(planes: list[Plane], links: dict[tuple[int, int], Session]) -> None:
    """Until nobody has anything to say. `links[here, there]` is what `here` says to `there`."""
    for plane in planes:
        plane.tell_peers()
    while any(link.queued_bytes for link in links.values()):
        for (here, there), link in links.items():
            planes[there].receive(links[there, here], link.take(), 0)


def test_three_gateways_hand_a_message_to_each_once_and_no_further() -> None:
    for engine in ENGINES:
        planes = [make_plane(Silent(), engine, has_gateways=True) for _ in range(3)]
        pairs = [(0, 1), (0, 2), (1, 2)]
        links = {
            (here, there): planes[here].connect_peer(f"gw{there}", 0, near=False)
            for pair in pairs
            for here, there in (pair, pair[::-1])
        }

        settle_all(planes, links)
        clients = [Client(plane) for plane in planes]
        for client in clients:
            client.send(b"SUB a 1\r\nSUB a crew 2\r\n")
        settle_all(planes, links)
        own = clients[0].send(b"PUB a 0\r\n\r\n")
        settle_all(planes, links)
        got = [own, *(client.take() for client in clients[1:])]
        assert [each.count(b"MSG a 1 0\r\n\r\n") for each in got] == [1, 1, 1]
        assert [each.count(b"MSG a 2 0\r\n\r\n") for each in got] == [1, 0, 0]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_two_gateways_of_two_workers_are_one_hop_from_each_other(engine: Engine) -> None:
    """Each process gets a message once; members at either worker of the gateway come first, with the same chance."""
    names = ["a", "a/1", "b", "b/1"]
    options = {"has_gateways": True, "id_step": 2}
    planes = [make_plane(Silent(), engine, first_id=1 + number % 2, **options) for number in range(4)]
    links = {
        (here, there): planes[here].connect_peer(names[there], 0, near=names[here][0] == names[there][0])
        for here in range(4)
        for there in range(4)
        if here != there
    }

    settle_all(planes, links)
    assert [(plane.peers.agreed(near=True), plane.peers.agreed(near=False)) for plane in planes] == [(1, 2)] * 4
    clients = [Client(plane) for plane in planes]
    for client in clients:
        client.send(b"SUB a 1\r\nSUB jobs crew 2\r\n")
    settle_all(planes, links)
    got = [clients[0].send(b"PUB a 0\r\n\r\n" + b"PUB jobs 0\r\n\r\n" * 100)]
    settle_all(planes, links)
    got += [client.take() for client in clients[1:]]
    assert [each.count(b"MSG a 1 0\r\n\r\n") for each in got] == [1] * 4
    shares = [each.count(b"MSG jobs 2 0\r\n\r\n") for each in got]
    assert sum(shares[:2]) == 100
    assert min(shares[:2]) > 20
    assert shares[2:] == [0, 0]
    for client in clients[:2]:
        client.send(b"UNSUB 2\r\n")
    settle_all(planes, links)
    clients[0].send(b"PUB jobs 0\r\n\r\n" * 100)
    settle_all(planes, links)
    shares = [client.take().count(b"MSG jobs 2 0\r\n\r\n") for client in clients]
    assert (shares[:2], sum(shares[2:]), min(shares[2:]) > 20) == ([0, 0], 100, True)
