"""The `mesh` command as a person runs it: a process with arguments, stdin and an environment."""

import asyncio
import os
import sys
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from mesh.cli import cli

MESH = Path(sys.executable).parent / "mesh"
_WAIT_S_MAX = 60


class Ran(NamedTuple):
    status: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


def environment(**more: str) -> dict[str, str]:
    """Ours without what would change the command's behaviour, and with `more`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NATS_")} | more


async def start(
    *arguments: str | bytes, stdin: int = asyncio.subprocess.PIPE, **more: str
) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        str(MESH), *arguments, stdin=stdin, stdout=pipe, stderr=pipe, env=environment(**more)
    )  # fmt: skip


async def mesh(*arguments: str | bytes, stdin: bytes = b"", **more: str) -> Ran:
    process = await start(*arguments, **more)
    try:
        async with asyncio.timeout(_WAIT_S_MAX):
            out, err = await process.communicate(stdin)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Ran(process.returncode, out, err.decode())


async def invoked(*arguments: str | bytes, stdin: bytes = b"", **more: str) -> Ran:
    """The same within this process and its time zone, which is much faster; files of stdin and signals need `mesh`."""
    variables: dict[str, str | None] = {name: None for name in os.environ if name.startswith("NATS_")}
    words = [word if isinstance(word, str) else os.fsdecode(word) for word in arguments]
    result = await asyncio.to_thread(
        CliRunner().invoke, cli, words, input=stdin, env=variables | more, prog_name="mesh"
    )  # fmt: skip
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout_bytes, result.stderr)
