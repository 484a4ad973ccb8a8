"""Who of this zone holds the link to which other zone, and what the others are told of it. No I/O, no clock.

    eu-gw2 ──┐                    ┌── us-gw2       One link for each pair of zones, between the gateways that hold it.
             ├─ eu-gw1 ══ us-gw1 ─┤                Those lead their zones' other gateways to the other zone, on a
    eu-gw3 ──┘                    └── us-gw3       channel of the links that there are anyway.

A gateway of several workers is several here: each may hold a link, and leads the others of its gateway, too.

Of two zones, the gateways of the one whose name comes first dial. Where nobody leads there, each of them waits for
those that come before it by `routes.rank`, a second for each that is linked, and then dials the other zone's gateways
one after the other, until one takes the link or somebody else has it. Who has dialled while a gateway that comes before
it did so too gives its link up. A gateway that is dialled by a second one of the same zone takes the new link for the
old one's: the first may have gone without a word.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.core.channels import Channels
from protocol.limits import GATEWAY_RETRY_MS_MAX, GATEWAY_TAKEOVER_MS, PEER_RETRY_MS_MIN
from protocol.routes import rank

_NEVER: Final = -1


class _Dial:
    """What is under way to a zone. `since_ms`: how long nobody leads there, as far as one knows."""

    def __init__(self, gateways: list[str]) -> None:
        self.gateways = gateways
        self.attempts = 0
        self.is_under_way = False
        self.since_ms = _NEVER
        self.again_ms = 0
        self.pause_ms = PEER_RETRY_MS_MIN


class Zones:
    """Those with which `zone` exchanges live events, with their gateways; we are its gateway `name`.

    Names are those of `routes.peer_name`.
    """

    def __init__(self, zone: str, name: str, zones: Mapping[str, Sequence[str]]) -> None:
        self.links: dict[str, Channels] = {}  # to gateways of ours, and workers beside us
        self.borders: dict[str, Channels] = {}  # those that we hold, by zone
        self._zone, self._name = zone, name
        self.dials = {  # by zone that it is ours to dial
            other: _Dial(sorted(gateways, key=lambda each: rank(zone, other, each)))
            for other, gateways in zones.items()
            if zone < other
        }

    # -- what is there ------------------------------------------------------------------------------------------------

    def linked(self, link: Channels, now_ms: int) -> None:
        """A gateway of ours is there."""
        self.links[link.name] = link
        for zone in self.borders:
            link.offer(zone, now_ms)

    def unlinked(self, link: Channels) -> None:
        """The link to it has ended."""
        if self.links.get(link.name) is link:
            del self.links[link.name]

    def opened(self, border: Channels, now_ms: int) -> None:
        """We hold a link to a zone; one that we held before has been closed."""
        self.borders[border.border] = border
        for link in self.links.values():
            link.offer(border.border, now_ms)

    def closed(self, border: Channels) -> None:
        """We hold that link no more."""
        if self.borders.get(border.border) is border:
            del self.borders[border.border]
            for link in self.links.values():
                link.withdraw(border.border)

    def holders(self, zone: str) -> list[str]:
        """The gateways of ours that lead to `zone`, the one that we use first."""
        found = [name for name, link in self.links.items() if zone in link.leads_to]
        own = [self._name] if zone in self.borders else []
        return own + sorted(found, key=lambda each: rank(self._zone, zone, each))

    # -- dialling -----------------------------------------------------------------------------------------------------

    def due(self, now_ms: int) -> list[tuple[str, str]]:
        """Which zones to dial now, and which gateway there; `dialled` says how it ended."""
        found = []
        for zone, dial in self.dials.items():
            if dial.is_under_way:
                continue
            if self.holders(zone):
                dial.since_ms = _NEVER
                continue
            if dial.since_ms == _NEVER:
                dial.since_ms = now_ms
            own = rank(self._zone, zone, self._name)
            before = sum(rank(self._zone, zone, name) < own for name in self.links)
            if now_ms >= max(dial.since_ms + before * GATEWAY_TAKEOVER_MS, dial.again_ms):
                dial.is_under_way = True
                found.append((zone, dial.gateways[dial.attempts % len(dial.gateways)]))
        return found

    def dialled(self, zone: str, now_ms: int, jitter: float, *, was_open: bool) -> None:
        """What was `due` has failed, or has ended. `jitter` from 0 to 1."""
        dial = self.dials[zone]
        dial.is_under_way = False
        dial.attempts += 1
        dial.pause_ms = PEER_RETRY_MS_MIN if was_open else min(dial.pause_ms * 2, GATEWAY_RETRY_MS_MAX)
        dial.again_ms = now_ms + int(dial.pause_ms * (0.5 + jitter / 2))

    def superfluous(self) -> list[Channels]:
        """Links that we have dialled and a gateway that comes before us holds, too."""
        own = [(zone, rank(self._zone, zone, self._name)) for zone in self.borders if zone in self.dials]
        return [
            self.borders[zone]
            for zone, ours in own
            if any(rank(self._zone, zone, name) < ours for name in self.holders(zone))
        ]
