"""Who is a member of a Raft group: the last list in the log, committed or not.

Members are changed one at a time (Raft dissertation, 4.1 to 4.3), so that any two majorities that follow each other
have a member in common; a list counts from the moment it stands in the log, and is void again when it is truncated.
"""

from collections.abc import Mapping
from typing import TypeAlias

Members: TypeAlias = Mapping[str, str]  # name → address of its raft port


class Membership:
    """`applied` is the list that the state machine holds, from its checkpoint."""

    def __init__(self, applied: Members) -> None:
        self._applied: Members = dict(applied)
        self._appended: list[tuple[int, Members]] = []

    @property
    def members(self) -> Members:
        return self._appended[-1][1] if self._appended else self._applied

    @property
    def is_changing(self) -> bool:
        """Whether a list stands in the log that is not applied yet."""
        return bool(self._appended)

    def appended(self, index: int, members: Members) -> None:
        self._appended.append((index, dict(members)))

    def truncated(self, index: int) -> None:
        """Entries from `index` on are void."""
        while self._appended and self._appended[-1][0] >= index:
            self._appended.pop()

    def applied(self, index: int) -> None:
        """Everything up to entry `index` was applied."""
        while self._appended and self._appended[0][0] <= index:
            self._applied = self._appended.pop(0)[1]


def problem_of_change(before: Members, after: Members) -> str:
    """Why the list may not be changed so; "" if it may."""
    added, removed = after.keys() - before.keys(), before.keys() - after.keys()
    if len(added) + len(removed) != 1:
        return f"one sink at a time is added or removed; this would add {len(added)} and remove {len(removed)}"
    if not after:
        return "the last sink of a group cannot be removed"
    return ""
