"""What stands in `$AUDIT`, as an operator reads it."""

import asyncio
import json
import time
from typing import Any

from nats.aio.client import Client

from protocol.audit import STREAM


async def audited(operator: Client, kind: str = ">", log: str = STREAM) -> list[dict[str, Any]]:
    """The events of this kind that are in the log by now; none while no sink leads, or no such log is there yet."""
    inbox = await operator.subscribe(operator.new_inbox())
    request = json.dumps({"offset": 0, "filter": f"{STREAM}.{kind}"}).encode()
    await operator.publish(f"$LOG.FETCH.{log}.0", request, reply=inbox.subject)
    events: list[dict[str, Any]] = []
    while "Status" not in (message := await inbox.next_msg(timeout=60)).headers:
        assert message.headers["Nats-Subject"] == f"{STREAM}.{json.loads(message.data)['kind']}"
        events.append(json.loads(message.data))
    status = message.headers["Status"], message.headers.get("Description")
    assert status in (("204", "EOB"), ("503", "LEADER_NOT_AVAILABLE")), dict(message.headers)
    await inbox.unsubscribe()
    return events


async def until_audited(operator: Client, kind: str, count: int = 1, within_s: float = 60) -> list[dict[str, Any]]:
    """The same, when there are so many."""
    end = time.monotonic() + within_s
    while len(events := await audited(operator, kind)) < count:
        assert time.monotonic() < end, f"{len(events)} of {count} events {kind}: {await audited(operator)}"
        await asyncio.sleep(0.02)
    return events
