"""`copy_rate` of a running sink: SIGHUP lets go what it held back, and says what of the file it cannot take."""

import contextlib
import os
import signal
from pathlib import Path

from support.processes import folder_at, until
from support.zones import TwoZones

RATE = '[links.eu.us]\ncopy_rate = "20kB/s"'
EVENTS, EVENT_BYTES = 60, 30_000  # for which the rate would need 90 s


async def test_a_sink_takes_another_rate_and_names_the_rest(tmp_path: Path) -> None:
    zones = TwoZones(tmp_path, more=RATE)
    file = tmp_path / "mesh.toml"
    file.write_text(zones.text("eu"))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(zones.stop)
        folder = stack.enter_context(folder_at(tmp_path))
        origin = folder.run("sinkd", "--config", "mesh.toml", "--node", "e1")
        await origin.serving()
        gateway = await zones.gateway()
        stack.push_async_callback(gateway.close)
        await gateway.append(*(os.urandom(EVENT_BYTES) for _ in range(EVENTS)))
        await zones.start("u1")
        await zones.until(lambda: zones.row().get("state") == "limited", "limited")
        assert zones.end("u1") < EVENTS

        file.write_text(zones.text("eu").replace("20kB/s", "often"))
        origin.send(signal.SIGHUP)
        await until(lambda: "configuration_not_reloaded" in origin.complaints, "it names what is wrong")
        file.write_text(zones.text("eu").replace("20kB/s", "0").replace("1MiB", "2MiB", 1))
        origin.send(signal.SIGHUP)
        await until(lambda: "configuration_reloaded" in origin.complaints, "it has taken it")
        await zones.until(lambda: zones.end("u1") == EVENTS, "level")
        said = origin.complaints
        assert "links.eu.us.copy_rate" in said.partition("configuration_reloaded")[2]
        assert "what=zones.eu.sinks.e1" in said
        assert await origin.stop() == 0
