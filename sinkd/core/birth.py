"""How a group begins, and how a sink finds out that it is too late for that.

A group is born once, when every sink that the file names is up and empty: the first by name chooses the group's
incarnation, the others take it over, and each begins its journal with the same entry, the list of members. A sink is
`active` when it has seen all of them choose; only then does it vote.

    "" (unborn) ─ all are here, none is active ─► chosen ─ all have chosen, or one is active ─► active
        └──────── one is active: the group exists, this disk is new to it ──► active, muted

So where one is active, all had chosen, and a sink without an incarnation has lost its disk or is new: it neither votes
nor stands until it holds what the group has (muted, rule C5). While none is active nobody has voted, so nothing was
promised that a disk wiped meanwhile could have forgotten.

A group that another one has succeeded is over: who still holds data of it will give them up when it hears of that.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from sinkd.core.raft_messages import Hello

UNBORN: Final = ""
CHOSEN: Final = "chosen"
ACTIVE: Final = "active"


class Step(NamedTuple):
    """What to do now. `state` is the new one; `group` "" asks for a new incarnation; else `waits` says for what."""

    state: str = UNBORN
    group: str = ""
    is_late: bool = False
    waits: str = ""


def next_step(own: Hello, hellos: Mapping[str, Hello]) -> Step:
    """What a sink that is not active does, given what the connected others last said."""
    over = {group for hello in hellos.values() for group in hello.succeeds}
    hellos = {name: hello for name, hello in hellos.items() if hello.group not in over}
    others = [name for name in own.configured if name != own.node]
    active = [hello for hello in hellos.values() if hello.state == ACTIVE]
    groups = sorted({hello.group for hello in (own, *hellos.values()) if hello.group})
    if len(groups) > 1:
        return Step(waits=f"the sinks hold data of {len(groups)} groups: {_whose((own, *hellos.values()))}")
    if active:
        return Step(ACTIVE, active[0].group, is_late=own.state == UNBORN)
    missing = [name for name in others if name not in hellos]
    if missing:
        return Step(waits=f"the group begins when all its sinks are up; missing: {', '.join(missing)}")
    differing = [name for name in others if set(hellos[name].configured) != set(own.configured)]
    if differing:
        return Step(waits=f"the files of {', '.join(differing)} name other sinks than this one's")
    if own.state == CHOSEN:
        unborn = [name for name in others if hellos[name].state == UNBORN]
        return Step(waits=f"{', '.join(unborn)} not yet chosen") if unborn else Step(ACTIVE, own.group)
    if groups or own.node == min(own.configured):
        return Step(CHOSEN, groups[0] if groups else "")
    return Step(waits=f"{min(own.configured)} chooses the group")


def _whose(hellos: tuple[Hello, ...]) -> str:
    return ", ".join(f"{hello.node} {hello.group or '(none)'}" for hello in hellos)
