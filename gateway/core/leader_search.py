"""Which sink of a zone a gateway tries next, in search of the one that leads.

    next ─► it leads: found
         ├► declined, naming another ─► that one is next, if it has not had its turn in this round
         ├► declined, naming none    ─► the next in turn
         └► failed: no connection, or no answer ─► the next in turn; from now on this one comes last
    lost (a link that was found) ─► a new round, in which that sink has had its turn

A round is over when every sink has had its turn: only then is there reason to pause. A sink that did not answer may
take a second to be given up each time, so those that answer come first, and no hint leads to one that does not.
"""

from collections.abc import Sequence


class LeaderSearch:
    """Knows sinks by name; what they said last stands in `report`."""

    def __init__(self, sinks: Sequence[str]) -> None:
        """`sinks`: at least one, in the order of the configuration."""
        self._sinks, self._turns = tuple(sinks), list(sinks)
        self._had_turn: set[str] = set()
        self._silent: set[str] = set()
        self._said: dict[str, str] = {}
        self._hint = ""

    @property
    def is_round_over(self) -> bool:
        return len(self._had_turn) == len(self._sinks)

    @property
    def report(self) -> str:
        """What came of each sink, in the order of the configuration."""
        return "; ".join(f"{sink}: {self._said[sink]}" for sink in self._sinks if sink in self._said)

    def next(self) -> str:
        """The sink whose turn it is; begins a new round where one is over."""
        if self.is_round_over:
            self._had_turn.clear()
        rest = [sink for sink in self._turns if sink not in self._had_turn]
        answering = [sink for sink in rest if sink not in self._silent]
        chosen = self._hint if self._hint in answering else (answering or rest)[0]
        self._had_turn.add(chosen)
        self._turns.remove(chosen)
        self._turns.append(chosen)
        return chosen

    def declined(self, sink: str, leader: str) -> None:
        """It is there and does not lead; `leader` is who does in its opinion, "" if it does not know."""
        self._silent.discard(sink)
        self._hint = leader
        self._said[sink] = f"does not lead (names {leader or 'none'})"

    def failed(self, sink: str, why: str) -> None:
        """It could not be reached, or said nothing, or nothing that helps."""
        self._silent.add(sink)
        self._said[sink] = why

    def found(self, sink: str) -> None:
        """It leads."""
        self._silent.discard(sink)
        self._said.clear()
        self._hint = ""

    def lost(self, sink: str, why: str) -> None:
        """The link to the one that was found is over: it may not lead any more, or not be there."""
        self._had_turn = {sink}
        self._silent.add(sink)
        self._said = {sink: why}
