"""`mesh config import`: a nats-server's configuration file as a mesh.toml."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from mesh import nats_config
from mesh.availability import not_available
from mesh.commands.failure import Failure, notice
from mesh.nats_config_options import Options
from mesh.nats_config_values import Findings
from protocol import config
from protocol.errors import ConfigError

_OF_THE_PROCESS: Final = {
    "debug": "--log-level debug",
    "trace": "",
    "max_traced_msg_len": "",
    "logtime": "",
    "logtime_utc": "",
    "log_file": "redirect stderr",
    "log_size_limit": "",
    "log_max_files": "",
    "pid_file": "",
    "ports_file_dir": "",
}
"""Options that say how one process runs, and what to do instead."""

_SECRET_FILE_MODE: Final = 0o600


def run(file: str, output: str | None) -> int:
    """Exit status. Failure: the file cannot be read, or the other not written."""
    findings = Findings()
    try:
        options = nats_config.load(file, nats_config.environment(), findings)
        tables = nats_config.tables(options, findings)
        text = nats_config.render(tables, list(_head(file, tables.gateway, options)))
        configuration = _checked(tables, findings)
    except OSError as error:
        raise Failure(f"{error.filename or file}: {error.strerror}") from error
    except ConfigError as error:
        click.echo("\n".join(error.problems), err=True)
        return 1
    later = [f"{output or file}: {line}" for line in not_available(configuration)]
    for line in [*findings.warnings, *findings.notices, *later]:
        notice(line)
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text)
    return 0


def _checked(tables: nats_config.Tables, findings: Findings) -> config.Config:
    """ConfigError holds all that is wrong with the file."""
    try:
        configuration = nats_config.configuration(tables)
    except ConfigError as error:
        findings.problems += error.problems
    findings.raise_problems()
    return configuration


def _head(file: str, gateway: str, options: Options) -> Iterator[str]:
    yield f"Made by `mesh config import {file}`; the comments say where each part comes from."
    yield f"Run it: gateway --config THIS_FILE --node {gateway}"
    for name, instead in _OF_THE_PROCESS.items():
        if name in options.origins:
            hint = f"; instead: {instead}" if instead else ""
            yield f"{options.origins[name]} is for one process and has no place here{hint}"
    if options.cluster.port:
        origin = options.cluster.origins["port"]
        yield f"{origin}: the other servers of the cluster have to be named here, each as [zones.local.gateways.NAME]"


def _write(output: str, text: str) -> None:
    """Readable for its owner alone, since it may hold passwords; what is there already stays."""
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _SECRET_FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise Failure(f"{output}: there is such a file already; remove it, or name another") from error
    except OSError as error:
        raise Failure(f"{Path(output)}: {error.strerror}") from error
