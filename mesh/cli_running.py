"""How a command of `mesh` that talks to a mesh is run, and what it reads from stdin."""

import importlib
import os
import sys
from collections.abc import Coroutine
from typing import Any, Final

import click

from mesh.cli_options import client_settings
from mesh.commands.failure import Failure
from protocol.errors import MeshError

_STDIN_BYTES_MAX: Final = 64 * 1024 * 1024  # no server takes a larger event


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs it; what a person can do something about becomes a Failure."""
    import asyncio

    from nats import errors

    try:
        asyncio.run(coroutine)
    except BrokenPipeError:
        raise
    except MeshError as error:
        raise Failure(str(error)) from error
    except errors.Error as error:
        raise Failure(str(error).removeprefix("nats: ")) from error
    except OSError as error:
        raise Failure(os_error(error)) from error


def load(name: str, *, without: str) -> None:
    """Imports `name`, which would load all of `without` where it is installed, for something that we do not ask of it.

    That would be a large part of the time that a process takes to start.
    """
    if name not in sys.modules and without not in sys.modules:
        sys.modules[without] = None  # type: ignore[assignment]  # what the import system takes for: there is none
        try:
            importlib.import_module(name)
        finally:
            del sys.modules[without]


def load_client(context: click.Context) -> None:
    """nats-py, which needs aiohttp for WebSockets alone."""
    if not any(url.strip().lower().startswith("ws") for url in client_settings(context).server.split(",")):
        load("nats.aio.client", without="aiohttp")


def os_error(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def body_of(given: str | None) -> bytes:
    if given is not None and given != "-":
        return os.fsencode(given)
    stdin = sys.stdin.buffer
    if given is None and stdin.isatty():
        raise click.UsageError("no BODY: give one ('' for an empty event), or - to type it and end with Ctrl-D")
    body = stdin.read(_STDIN_BYTES_MAX + 1)
    if len(body) > _STDIN_BYTES_MAX:
        raise Failure(f"stdin: more than {_STDIN_BYTES_MAX} bytes are not one event (--lines -?)")
    return body
