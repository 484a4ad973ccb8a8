"""Audit: who connected, was refused, or changed something. Events that nodes write into the stream `$AUDIT`.

    something happens ─► Event ─► Summary ─┬─ the first of its source: written at once
                                           └─ what it repeats: one event with `times`, when the minute is over

An event is one JSON object, on subject `$AUDIT.<kind>`; docs/security.md says what its fields and kinds mean.

Whoever is refused may try again as often as it likes, so what is written has a bound that no client can move. A
*source* is a kind of event, a user as far as it is proven, and an address. In each minute the first event of a source
is written, then what it repeats as one event, with the latest of them in its fields. A node tells so many sources
apart; what is done by more than those is counted, in one event of kind `suppressed`.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

import msgspec

from protocol.limits import AUDIT_SOURCES_MAX, AUDIT_TEXT_CHARACTERS_MAX, AUDIT_WINDOW_MS

STREAM: Final = "$AUDIT"
SUBJECTS: Final = (f"{STREAM}.>",)
ACCOUNT: Final = STREAM
"""Whose stream it is: nobody's, for no account that is declared has such a name."""

CLIENT_CONNECTED: Final = "client_connected"
AUTHENTICATION_FAILED: Final = "authentication_failed"
PERMISSION_REFUSED: Final = "permission_refused"
HISTORY_REFUSED: Final = "history_refused"
LINK_REFUSED: Final = "link_refused"
CONFIGURATION_CHANGED: Final = "configuration_changed"
CONFIGURATION_REFUSED: Final = "configuration_refused"
CONFIGURATION_DIFFERS: Final = "configuration_differs"
MEMBERSHIP_CHANGED: Final = "membership_changed"
LEADERSHIP_MOVED: Final = "leadership_moved"
REBUILD_BEGUN: Final = "rebuild_begun"
REBUILD_ENDED: Final = "rebuild_ended"
SEGMENT_MENDED: Final = "segment_mended"
LOSS_ACCEPTED: Final = "loss_accepted"
REPLICA_DIFFERS: Final = "replica_differs"
BEACON_REFUSED: Final = "beacon_refused"
SUPPRESSED: Final = "suppressed"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What happened at `time` (ms since 1970), as `node` of `zone` saw it. "" where there is nothing to say.

    `user` and `account` are who did it; of failed authentications what it claimed to be. `source` (`from` in JSON) is
    the address that it came from. `times` is how often, if this stands for several.
    """

    time: int
    zone: str
    node: str
    kind: str
    user: str = ""
    account: str = ""
    source: str = msgspec.field(default="", name="from")
    what: str = ""
    why: str = ""
    times: int = 1

    @property
    def subject(self) -> str:
        return f"{STREAM}.{self.kind}"

    def encoded(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)


def plain(text: str) -> str:
    """`text` as far as it fits into a field, whatever a client has put into it."""
    readable = text[:AUDIT_TEXT_CHARACTERS_MAX].encode("utf-8", "backslashreplace").decode()
    return readable[:AUDIT_TEXT_CHARACTERS_MAX]


class _Repeated:
    """What a source has done since its first event in this minute, which is over at `until_ms`."""

    __slots__ = ("last", "times", "until_ms")

    def __init__(self, until_ms: int) -> None:
        self.until_ms, self.times = until_ms, 0
        self.last: Event | None = None


class Summary:
    """Decides which events of one node are written. Times are milliseconds of a clock that does not jump."""

    def __init__(self) -> None:
        self._sources: OrderedDict[tuple[str, str, str, str], _Repeated] = OrderedDict()
        self._too_many = _Repeated(0)
        self.summed = self.suppressed = 0

    @property
    def is_open(self) -> bool:
        """Whether a minute is under way, so that `due` may have something to say later."""
        return bool(self._sources) or self._too_many.last is not None

    def note(self, event: Event, now_ms: int) -> Event | None:
        """`event` if it is to be written now."""
        user = "" if event.kind == AUTHENTICATION_FAILED else event.user
        key = event.kind, event.account, user, event.source
        repeated = self._sources.get(key)
        if repeated is not None:
            self.summed += 1
        elif len(self._sources) < AUDIT_SOURCES_MAX:
            self._sources[key] = _Repeated(now_ms + AUDIT_WINDOW_MS)
            return event
        else:
            repeated = self._too_many
            repeated.until_ms = repeated.until_ms or now_ms + AUDIT_WINDOW_MS
            self.suppressed += 1
        repeated.times += 1
        repeated.last = event
        return None

    def due(self, now_ms: int) -> Iterator[Event]:
        """What is to be written of minutes that are over."""
        while self._sources:
            key, repeated = next(iter(self._sources.items()))
            if now_ms < repeated.until_ms:
                break
            del self._sources[key]
            if repeated.last is not None:
                self._sources[key] = _Repeated(now_ms + AUDIT_WINDOW_MS)
                yield msgspec.structs.replace(repeated.last, times=repeated.times)
        if self._too_many.last is not None and now_ms >= self._too_many.until_ms:
            yield self._summed_up(self._too_many)
            self._too_many = _Repeated(0)

    def rest(self) -> Iterator[Event]:
        """What is to be written when there will be no other time."""
        for repeated in self._sources.values():
            if repeated.last is not None:
                yield msgspec.structs.replace(repeated.last, times=repeated.times)
        if self._too_many.last is not None:
            yield self._summed_up(self._too_many)
        self._sources.clear()
        self._too_many = _Repeated(0)

    def _summed_up(self, repeated: _Repeated) -> Event:
        assert repeated.last is not None
        what = f"events of more than {AUDIT_SOURCES_MAX} sources in a minute, the last one {repeated.last.kind}"
        last = repeated.last
        return Event(time=last.time, zone=last.zone, node=last.node, kind=SUPPRESSED, what=what, times=repeated.times)
