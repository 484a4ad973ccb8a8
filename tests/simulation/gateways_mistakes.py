"""Rules of the gateways' mesh, each left out: what `simulation.gateways` has to notice.

    PYTHONPATH=tests:. .venv/bin/python -m simulation.gateways_mistakes --seeds 100

prints, for every one, in how many of so many seeds it does.
"""

import argparse
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gateway.core import engine, forwarding
from gateway.core.channels import Channels
from gateway.core.forwarding import Forwarder, Receivers, _Message
from gateway.core.interest import Interest, Learned
from gateway.core.peers import Peers, Table
from gateway.core.session import Scope, Session, Subscription
from gateway.core.sublist import Result
from gateway.core.zones import Zones
from protocol import routes, subjects
from simulation import gateways

Patch = pytest.MonkeyPatch


def a_digest_that_does_not_fit_is_not_minded(patch: Patch) -> None:
    check = Learned.check

    def trusting(self: Learned, digest: routes.Digest) -> bool:
        check(self, digest)
        self.is_whole = True
        return False

    patch.setattr(Learned, "check", trusting)


def a_gateway_that_holds_something_else_is_not_stale(patch: Patch) -> None:
    check = Learned.check

    def trusting(self: Learned, digest: routes.Digest) -> bool:
        asks = check(self, digest)
        self.is_whole = True
        return asks

    patch.setattr(Learned, "check", trusting)


def a_table_takes_nothing_back(patch: Patch) -> None:
    begin = Learned.begin

    def begins(self: Learned, epoch: int) -> None:
        begin(self, epoch)
        self.before = set()

    patch.setattr(Learned, "begin", begins)


def what_comes_from_a_peer_is_passed_on(patch: Patch) -> None:
    arrive = Forwarder._arrive

    def passing_on(self: Forwarder, peer: Session, event: routes.RouteMessage) -> None:
        arrive(self, peer, event)
        if event.reply:  # once, so that it ends
            message = _Message(event.subject, b"", event.header_block, event.payload)
            for other in Receivers.of(peer.account.sublist.match(subjects.decode(event.subject))).peers:
                if other is not peer:
                    self._put_route(other, peer.account, [], message, None)

    patch.setattr(Forwarder, "_arrive", passing_on)


def every_group_that_is_there_gets_what_comes_from_a_peer(patch: Patch) -> None:
    arrive = Forwarder._arrive

    def naming_all(self: Forwarder, peer: Session, event: routes.RouteMessage) -> None:
        account, subject, reply, _, header_block, payload = msgspec.structs.astuple(event)
        arrive(self, peer, routes.RouteMessage(account, subject, reply, (b"q", b"crew"), header_block, payload))

    patch.setattr(Forwarder, "_arrive", naming_all)


def members_elsewhere_are_asked_like_those_here(patch: Patch) -> None:
    of = Receivers.of

    def alike(result: Result[Subscription], sender: Session | None = None) -> Receivers:
        receivers = of(result, sender)
        groups = tuple(group._replace(members=group.members + group.far, far=()) for group in receivers.groups)
        return receivers._replace(groups=groups)

    patch.setattr(Receivers, "of", alike)


def a_peer_that_is_silent_is_trusted(patch: Patch) -> None:
    patch.setattr(Peers, "doubt", lambda self, peer: None)


def a_pong_waits_for_nobody(patch: Patch) -> None:
    patch.setattr(Peers, "_knows", lambda self, mark: True)


def a_new_peer_is_taken_to_want_nothing(patch: Patch) -> None:
    def never(self: Learned, is_stale: bool) -> None:
        self.is_stale = False

    patch.setattr(Learned, "set_stale", never)


def a_peer_that_is_sent_everything_counts_as_a_responder(patch: Patch) -> None:
    send = Learned._send_everything
    patch.setattr(Learned, "_send_everything", lambda self, mark, weight: send(self, mark, 1))


def sizes_of_groups_are_not_told(patch: Patch) -> None:
    change = Interest.change

    def once(self: Interest, key: Any, by: int) -> None:
        before = self._counts.get(key, 0)
        if before and before + by and key[2]:
            self._counts[key] = before + by
        else:
            change(self, key, by)

    patch.setattr(Interest, "change", once)


def prefixes_stand_for_groups_too(patch: Patch) -> None:
    weight = Interest.weight
    patch.setattr(Interest, "weight", lambda self, key: weight(self, key) * (not self._below or not key[2]))


def workers_are_asked_like_other_gateways(patch: Patch) -> None:
    begin = Channels.__init__
    patch.setattr(Channels, "__init__", lambda self, *given, **named: begin(self, *given, **named | {"near": False}))


# -- between zones ----------------------------------------------------------------------------------------------------


def what_comes_over_a_border_goes_anywhere(patch: Patch) -> None:
    reaches = forwarding._reaches

    def everywhere(sender: Session | None, receiver: Session) -> bool:
        if sender is not None and sender.scope is Scope.ZONE:
            return receiver is not sender and not receiver.spare
        return reaches(sender, receiver)

    patch.setattr(forwarding, "_reaches", everywhere)


def all_ways_to_a_zone_are_used(patch: Patch) -> None:
    patch.setattr(Peers, "_choose", lambda self, zone: None)


def nobody_gives_a_second_link_up(patch: Patch) -> None:
    patch.setattr(Zones, "superfluous", lambda self: [])


def members_of_other_zones_are_asked_like_those_of_ours(patch: Patch) -> None:
    of = Receivers.of

    def alike(result: Result[Subscription], sender: Session | None = None) -> Receivers:
        receivers = of(result, sender)
        groups = tuple(group._replace(far=group.beyond + group.far, beyond=()) for group in receivers.groups)
        return receivers._replace(groups=groups)

    patch.setattr(Receivers, "of", alike)


def other_zones_hear_only_of_the_clients_of_the_holder(patch: Patch) -> None:
    place = Peers._place

    def alone(self: Peers, peer: Session) -> tuple[Table | None, Interest | None]:
        table, relay = place(self, peer)
        return table, relay if peer.zone else None

    patch.setattr(Peers, "_place", alone)


def a_border_that_was_lost_is_still_led_to(patch: Patch) -> None:
    def closed(self: Zones, border: Channels) -> None:
        if self.borders.get(border.border) is border:
            del self.borders[border.border]

    patch.setattr(Zones, "closed", closed)


def a_worker_is_not_told_where_the_one_beside_it_leads(patch: Patch) -> None:
    offer = Channels.offer

    def offers(self: Channels, zone: str, now_ms: int) -> None:
        if not self.main.near:
            offer(self, zone, now_ms)

    patch.setattr(Channels, "offer", offers)


MISTAKES: dict[Callable[[Patch], None], int] = {
    a_digest_that_does_not_fit_is_not_minded: 3,
    a_gateway_that_holds_something_else_is_not_stale: 3,
    a_table_takes_nothing_back: 7,
    what_comes_from_a_peer_is_passed_on: 0,
    every_group_that_is_there_gets_what_comes_from_a_peer: 0,
    members_elsewhere_are_asked_like_those_here: 0,
    a_peer_that_is_silent_is_trusted: 3,
    a_pong_waits_for_nobody: 3,
    a_new_peer_is_taken_to_want_nothing: 3,
    a_peer_that_is_sent_everything_counts_as_a_responder: 5,
    sizes_of_groups_are_not_told: 0,
    prefixes_stand_for_groups_too: 6,
    workers_are_asked_like_other_gateways: 12,
    what_comes_over_a_border_goes_anywhere: 1003,
    all_ways_to_a_zone_are_used: 1002,
    nobody_gives_a_second_link_up: 1003,
    members_of_other_zones_are_asked_like_those_of_ours: 1000,
    other_zones_hear_only_of_the_clients_of_the_holder: 1000,
    a_border_that_was_lost_is_still_led_to: 1002,
    a_worker_is_not_told_where_the_one_beside_it_leads: 1001,
}
"""Each with the first seed that notices it; a change of the simulation changes those, and this program finds them."""


def problem(mistake: Callable[[Patch], None], seed: int) -> str:
    """What the simulation has to say of it; "" if nothing."""
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        try:
            gateways.run(seed, engine.REFERENCE)
        except Exception as error:  # noqa: BLE001  # whatever it is, it was noticed
            return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for mistake in MISTAKES:
        if arguments.only in mistake.__name__:
            begin = gateways.SEVERAL_ZONES * (MISTAKES[mistake] >= gateways.SEVERAL_ZONES)
            seeds = range(begin, begin + arguments.seeds)
            found = {seed: text for seed in seeds if (text := problem(mistake, seed))}
            first = next(iter(found), None)
            what = "" if first is None else f"seed {first}: {found[first].splitlines()[0][:110]}"
            name = mistake.__name__.replace("_", " ")
            print(f"| {name} | {len(found)} of {arguments.seeds} | {what} |", flush=True)


if __name__ == "__main__":
    main()
