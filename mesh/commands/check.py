"""`mesh check`: whether a configuration is right, with everything that is wrong at once."""

import json
from pathlib import Path

import click

from mesh.advice import advice
from mesh.availability import not_available
from mesh.commands.failure import Failure, notice
from protocol import config
from protocol.errors import ConfigError


def run(file: str, as_json: bool) -> int:
    """Exit status. Failure: the file cannot be read."""
    try:
        text = Path(file).read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error
    try:
        configuration = config.parse(text, file)
    except ConfigError as error:
        if as_json:
            click.echo(json.dumps({"file": file, "ok": False, "problems": error.problems}))
        else:
            click.echo("\n".join(error.problems), err=True)
        return 1
    later, better = not_available(configuration), advice(configuration)
    counts = _counts(configuration)
    if as_json:
        click.echo(json.dumps({"file": file, "ok": True, **counts, "not_available": later, "advice": better}))
        return 0
    for line in [*later, *better]:
        notice(f"{file}: {line}")
    click.echo(f"{file}: ok: " + ", ".join(_counted(number, noun) for noun, number in counts.items()))
    return 0


def _counts(configuration: config.Config) -> dict[str, int]:
    zones = configuration.zones.values()
    return {
        "zones": len(configuration.zones),
        "gateways": sum(len(zone.gateways) for zone in zones),
        "sinks": sum(len(zone.sinks) for zone in zones),
        "streams": len(configuration.effective_streams()),
        "users": len(configuration.users),
    }


def _counted(number: int, plural: str) -> str:
    return f"{number} {plural.removesuffix('s') if number == 1 else plural}"
