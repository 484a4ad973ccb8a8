"""Short ways from a nats.conf to what the project makes of it."""

from collections.abc import Mapping

from mesh import nats_config, nats_config_reader
from mesh.nats_config_options import Options, read_options
from mesh.nats_config_values import Findings
from protocol.config import Config
from protocol.errors import ConfigError


def options(text: str, environment: Mapping[str, str] | None = None) -> tuple[Options, Findings]:
    """What `text` says, and what is wrong with it."""
    findings = Findings()
    tree = nats_config_reader.parse(text, "nats.conf", environment or {})
    return read_options(tree, "nats.conf", findings), findings


def imported(text: str) -> tuple[nats_config.Tables, Config]:
    """Our tables and configuration of a file that is right."""
    found, findings = options(text)
    tables = nats_config.tables(found, findings)
    assert not findings.problems
    return tables, nats_config.configuration(tables)


def problems(text: str) -> list[str]:
    """All that is wrong with a file."""
    found, findings = options(text)
    tables = nats_config.tables(found, findings)
    try:
        nats_config.configuration(tables)
    except ConfigError as error:
        findings.problems += error.problems
    try:
        findings.raise_problems()
    except ConfigError as error:
        return error.problems
    return []
