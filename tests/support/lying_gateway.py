"""A gateway that lies, as a process: `command(HOW, ...)`, with the options of `gateway`. HOW is

    more    its beacons count a thousand events of `orders` as acknowledged that nobody sent
    gw1     its beacons are said to be of that gateway

It signs them with its own key, as every gateway does.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec

from gateway.shell.beacons import Beacons
from mesh.cli import gateway_main
from protocol.coverage import Row

MADE_UP = 1_000  # events
TESTS = str(Path(__file__).resolve().parent.parent)


def _made_up(row: Row) -> Row:
    if row.stream != "orders":
        return row
    more = {name: getattr(row, name) + MADE_UP for name in ("acknowledged", "held", "next")}
    return msgspec.structs.replace(row, **more)


def _lie(how: str) -> None:
    say = Beacons._say

    def lying(self: Beacons, rows: list[Row], now_ms: int, **options: Any) -> None:
        if how == "more":
            rows = [_made_up(row) for row in rows]
        else:
            self._speaker = self._speaker._replace(node=how)
        say(self, rows, now_ms, **options)

    Beacons._say = lying  # type: ignore[method-assign]


def command(how: str, *options: str) -> list[str]:
    """Of a process that has no other way to find these tests."""
    code = f"import sys; sys.path.append({TESTS!r}); from support import lying_gateway; lying_gateway.main()"
    return [sys.executable, "-c", code, how, *options]


def main() -> None:
    _lie(sys.argv.pop(1))
    gateway_main()
