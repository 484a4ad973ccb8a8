"""A mirror goes on from another zone where its origin is gone or has let go, but never beyond what a zone holds."""

import contextlib

import pytest
from support.zones import MIRROR, TwoZones

from protocol.records import CONTROL, read_header
from sinkd.core import commands
from sinkd.core.commands import Trim
from sinkd.core.completing import Offer, source_of

SHORT, LONG, LATE = Offer("ap", 0, 50), Offer("cn", 0, 90), Offer("za", 60, 95)


@pytest.mark.parametrize(
    ("end", "offers", "options", "expected"),
    [
        (40, [], {}, ""),
        (40, [SHORT, LONG], {}, "cn"),
        (40, [SHORT, LATE], {}, "ap"),
        (50, [SHORT], {}, ""),
        (50, [SHORT, LATE], {}, ""),  # the origin may come back, and have what is missing
        (50, [SHORT, LATE], {"is_over": True}, "za"),
        (40, [SHORT, LATE], {"is_over": True}, "ap"),
        (60, [LATE], {}, "za"),
        (95, [SHORT, LONG, LATE], {"is_over": True}, ""),
        (40, [LONG], {"origin": "eu"}, "eu"),
        (40, [LONG], {"origin": "eu", "begins_at": 41}, "cn"),
        (40, [LATE], {"origin": "eu", "begins_at": 41}, "eu"),  # there it becomes a gap
        (90, [LONG], {"origin": "eu", "begins_at": 90}, "eu"),
    ],
)
def test_the_zone_that_a_mirror_goes_on_from(end, offers, options, expected):
    assert source_of(end, offers, **options) == expected
    assert source_of(end, offers[::-1], **options) == expected


@contextlib.asynccontextmanager
async def three(folder):
    zones = TwoZones(folder, third=True)
    await zones.start()
    try:
        yield zones
    finally:
        await zones.stop()


async def longer_in_ap(zones: TwoZones) -> list[bytes]:
    """us was away when the second half came; ap has it all."""
    gateway = await zones.gateway()
    await gateway.append(*(b"%d" % number for number in range(20)))
    await zones.level()
    await zones.stop("u1")
    await gateway.append(*(b"more %d" % number for number in range(20)))
    await zones.level("a1")
    await gateway.close()
    return await zones.batches("e1", "orders")


def following(zones: TwoZones) -> list[str]:
    """The zones that us pulls the log from."""
    incarnation = zones.sinks["e1"].machine.log("orders").state.incarnation
    return [name for name, each in zones.sinks["u1"].mirroring.origins.items() if each.followed(incarnation, 0)]


async def test_while_the_origin_is_gone_the_longest_mirror_completes_the_others(tmp_path):
    async with three(tmp_path) as zones:
        expected = await longer_in_ap(zones)
        await zones.stop("e1")
        await zones.start("u1")
        await zones.until(lambda: zones.end("u1") == 40, "completed from ap", 60)
        assert await zones.batches("u1", MIRROR) == expected
        await zones.until(lambda: zones.row()["state"] == "stalled", "nobody has more")
        assert "sink e1" in zones.row()["why"]
        await zones.start("e1")
        gateway = await zones.gateway()
        await gateway.append(b"after")
        await zones.until(lambda: zones.end("u1") == zones.end("a1") == 41, "back to the origin", 60)
        await zones.until(lambda: following(zones) == ["eu"] and zones.row()["state"] == "tail", "from it alone", 60)
        await gateway.close()


async def test_what_the_origin_has_let_go_of_comes_from_a_zone_that_has_it(tmp_path, monkeypatch):
    async with three(tmp_path) as zones:
        gateway = await zones.gateway()
        await gateway.append(*(b"%d" % number for number in range(20)))
        await zones.level()
        own, origin = zones.sinks["u1"].mirroring, zones.sinks["e1"]
        await zones.until(lambda: own.completing.has_told("ap"), "ap has said what it has", 60)
        with monkeypatch.context() as full:  # as while the disk of us is nearly full
            full.setattr(own.origins["eu"], "_has_space", lambda: False)
            full.setattr(own.origins["ap"], "_has_space", lambda: False)
            await zones.until(lambda: zones.row()["state"] == "stalled", "us stands still", 60)
            await gateway.append(*(b"more %d" % number for number in range(20)))
            await zones.level("a1")
            expected = await zones.batches("e1", "orders")
            incarnation = origin.machine.log("orders").state.incarnation
            await zones.until(lambda: own.completing.end_at("ap", incarnation, 0) == 40, "ap has said so", 60)
            await origin.group.submit(commands.TRIM, Trim("orders", incarnation, 0, 35))
        await zones.level()
        held = await zones.batches("u1", MIRROR)
        assert held == expected
        assert own.origins["eu"].begins_at == {(incarnation, 0): 35}
        assert not any(read_header(batch).attributes == CONTROL for batch in held)
        await gateway.append(b"after")
        await zones.level()
        await zones.until(lambda: following(zones) == ["eu"], "back to the origin", 60)
        await gateway.close()
