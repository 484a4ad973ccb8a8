"""How the leaders of a zone's groups come to be on different sinks: who leads two more than another hands one over.

It is looked at once in a leadership, when all members follow, and only where an election made the leader: an operator,
or a leader that had to go, has chosen with better reasons than numbers. Group 0 stays where it is.
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
