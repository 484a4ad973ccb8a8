"""Three `sinkd` and two `gateway`s as processes, under faults and load: everything acknowledged is on every sink, once.

`make chaos` does the same at random and for long, with more faults (`tests/support/chaos.py`). That all sinks restart
one after the other under load is in `test_group_operating.py`.
"""

from pathlib import Path
from random import Random

import pytest
from support.chaos import FAULTS, Chaos, small_disk
from support.group import nothing_is_lost, publishing, running

GAP_S_MAX = 15.0  # without an acknowledgement: 2 or 3 where nothing else runs; who is not found again has none at all
OF_THE_LEADER = [fault for fault in FAULTS if fault.endswith("of the leader")]
SEED = 7


async def test_publishers_hardly_notice_that_the_leader_goes(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        async with publishing(zone) as load:
            chaos = Chaos(zone, load, Random(SEED))
            for fault in OF_THE_LEADER:
                await zone.whole()
                assert await chaos.happen(fault) < GAP_S_MAX, fault
        await nothing_is_lost(zone, load)


async def test_a_disk_that_is_lost_or_damaged_costs_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        async with publishing(zone) as load:
            chaos = Chaos(zone, load, Random(SEED))
            for fault in ("flipped bit", "rolled back", "wiped disk"):
                await chaos.happen(fault)
        await nothing_is_lost(zone, load)


async def test_a_full_disk_stops_its_sink_alone(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as problem:
        if problem:
            pytest.skip(f"a small file system cannot be mounted here: {problem}")
        async with running(tmp_path, {"s3": tmp_path / "small"}) as zone:
            async with publishing(zone) as load:
                await Chaos(zone, load, Random(SEED), "s3").happen("full disk")
            await nothing_is_lost(zone, load)
