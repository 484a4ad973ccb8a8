"""How the leaders of a zone's groups come to be on different sinks: who leads two more than another hands one over.

It is looked at when all members follow: once in a leadership, and again whenever a sink has come back, so that a
rolling restart does not leave all groups to the sinks that were restarted first. Who leads because an operator, or a
leader that had to go, has chosen it is left alone until then: they have better reasons than numbers. Group 0 stays
where it is.
"""

from collections import Counter
from collections.abc import Collection, Mapping


def better_leader(number: int, leaders: Mapping[int, str], able: Collection[str]) -> str:
    """Which of the `able` followers should lead group `number` instead; "" if none.

    `leaders` has who leads each group, by its number. Groups that look at the same moment choose different sinks.
    """
    led = Counter(leaders.values())
    names = sorted(able)
    fewer = [name for name in names if led[name] + 2 <= led[leaders[number]]]
    if not number or not fewer:
        return ""
    return min(fewer, key=lambda name: (led[name], (names.index(name) - number) % len(names)))
