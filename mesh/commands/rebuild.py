"""`mesh zones rebuild`: asks the leader of a zone that lost its disks to bring its old logs back, and watches it.

The sinks go on by themselves, so a command that was interrupted can be given again: it watches what is under way.
"""

import asyncio
import itertools
from typing import Any, Final

import click
import msgspec

from mesh.commands.failure import Failure, notice
from mesh.commands.sinks import Zone
from mesh.sizes import size
from protocol import link

_LOOK_S: Final = 0.5
_numbers = itertools.count(1)


async def run(zone: Zone, source: str, as_json: bool) -> None:
    """Returns when all is back, and says what that is. Failure: it cannot be done, or the zone has forgotten it."""
    await zone.tell_leader(link.Rebuild(next(_numbers), source))
    said = ""
    while True:
        facts = await _facts(zone)
        if facts is not None and facts["source"] != source:
            raise Failure(f"zone {zone.name} is being rebuilt from zone {facts['source']}")
        if facts is not None and facts["ended_ms"]:
            break
        line = _progress(zone.name, facts)
        if line != said:
            notice(line)
            said = line
        await asyncio.sleep(_LOOK_S)
    click.echo(msgspec.json.encode(facts) if as_json else _summary(facts))


async def _facts(zone: Zone) -> dict[str, Any] | None:
    """None while nobody leads."""
    told = await zone.status()
    return next((one["rebuild"] for one in told.values() if one.get("rebuild")), None)


def _progress(zone: str, facts: dict[str, Any] | None) -> str:
    if facts is None:
        return f"no sink of zone {zone} leads; it goes on when one does"
    held, wanted = facts["held_offsets"], facts["wanted_offsets"]
    left = f", {facts['seconds_left']:.0f} s left" if facts["seconds_left"] >= 0 else ""
    problem = f"; zone {facts['source']}: {facts['problem']}" if facts["problem"] else ""
    return f"{held} of {wanted} offsets are back from zone {facts['source']}{left}{problem}"


def _summary(facts: dict[str, Any]) -> str:
    seconds = (facts["ended_ms"] - facts["begun_ms"]) / 1000
    what = f"{facts['events']} events, {size(facts['bytes'])}, from zone {facts['source']} in {seconds:.1f} s"
    return f"{', '.join(facts['logs'])}: {what}"
