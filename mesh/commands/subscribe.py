"""`mesh sub`: live events, as they come, until Ctrl-C or `--count` of them."""

import asyncio
import sys

from nats.aio.msg import Msg

from mesh.commands.failure import Failure, notice
from mesh.connection import PERMISSIONS_VIOLATION, connect
from mesh.render import Form, byte_output, has_colours, message_line
from mesh.settings import ClientSettings


async def run(settings: ClientSettings, subject: str, queue: str, count: int | None, form: Form) -> None:
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    write, colours = byte_output(), has_colours(sys.stdout)
    shown = 0

    def on_notice(text: str) -> None:
        if PERMISSIONS_VIOLATION in text and not over.done():
            over.set_exception(Failure(text))
        elif PERMISSIONS_VIOLATION not in text:
            notice(text)

    async def show(message: Msg) -> None:
        nonlocal shown
        if over.done():
            return
        try:
            write(message_line(message, form, colours=colours))
            sys.stdout.flush()
        except OSError as error:  # nobody reads on
            over.set_exception(error)
            return
        shown += 1
        if shown == count:
            over.set_result(None)

    connection = await connect(settings, notice=on_notice)
    try:
        await connection.subscribe(subject, queue=queue, cb=show)
        await connection.flush()
        await over
    finally:
        await connection.close()
