"""Options of the `mesh` command line: how values are read, and the global ones, which every command takes.

They may stand before or after the subcommand; the later one counts, then the environment, then the default.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from mesh.settings import DEFAULT_SERVER, DEFAULT_TIMEOUT_MS, ClientSettings
from protocol import subjects
from protocol.config_units import format_duration, parse_duration

Command = TypeVar("Command", bound=Callable[..., Any])


class Parsed(click.ParamType[Any]):
    """An option read by a function that raises ValueError with what would be right."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (colon and name.strip()):
        raise ValueError(f"must be 'Name: value', got {text!r}")
    return name.strip(), value.strip()


def publishable(subject: str) -> str:
    if not subjects.is_valid_subject(subject):
        raise ValueError(f"{subject!r} is not a subject to publish to: words with dots between, no wildcards or blanks")
    return subject


def pattern(subject: str) -> str:
    if not subjects.is_valid_pattern(subject):
        raise ValueError(f"{subject!r} is not a subject pattern, like orders.> or orders.*.paid")
    return subject


# -- global options ---------------------------------------------------------------------------------------------------

_GLOBAL: Final[tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...]] = (
    (
        ("--server", "-s"),
        "NATS_URL",
        {"metavar": "URL", "help": f"Gateway, or several with commas. [{DEFAULT_SERVER}]"},
    ),
    (("--user",), "NATS_USER", {"metavar": "NAME", "help": "User; without --password, a token."}),
    (("--password",), "NATS_PASSWORD", {"metavar": "TEXT", "help": "Password."}),
    (("--token",), "NATS_TOKEN", {"metavar": "TEXT", "help": "Token."}),
    (("--creds",), "NATS_CREDS", {"metavar": "FILE", "help": "User credentials (JWT and seed)."}),
    (("--nkey",), "NATS_NKEY", {"metavar": "FILE", "help": "NKey seed."}),
    (("--tlscert",), "NATS_CERT", {"metavar": "FILE", "help": "Certificate, PEM."}),
    (("--tlskey",), "NATS_KEY", {"metavar": "FILE", "help": "Key of the certificate, PEM."}),
    (("--tlsca",), "NATS_CA", {"metavar": "FILE", "help": "Authorities that the server is checked against, PEM."}),
    (("--tlsfirst",), "", {"is_flag": True, "help": "TLS before the server says anything."}),
    (
        ("--timeout",),
        "NATS_TIMEOUT",
        {
            "type": Parsed("duration", parse_duration),
            "metavar": "TIME",
            "help": f"To connect, and for an answer. [{format_duration(DEFAULT_TIMEOUT_MS)}]",
        },
    ),
    (("--json",), "", {"is_flag": True, "help": "Output for machines."}),
)


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Keeps a global option that was given; one behind the subcommand comes later and wins."""
    if value and option.name is not None:
        context.ensure_object(dict)[option.name] = value


def global_options(*, on_group: bool) -> Callable[[Command], Command]:
    """On the group they read the environment and stand in its help, on a subcommand they are accepted."""

    def decorate(command: Command) -> Command:
        for names, variable, settings in reversed(_GLOBAL):
            extra = {"envvar": variable or None, "show_envvar": bool(variable)} if on_group else {"hidden": True}
            command = click.option(*names, expose_value=False, callback=_remember, default=None, **(settings | extra))(
                command
            )
        return command

    return decorate


def _given(context: click.Context) -> dict[str, Any]:
    given: dict[str, Any] = context.ensure_object(dict)
    return given


def wants_json(context: click.Context) -> bool:
    return bool(_given(context).get("json"))


def client_settings(context: click.Context) -> ClientSettings:
    given = {name: value for name, value in _given(context).items() if name != "json"}
    renamed = {"tlscert": "tls_cert", "tlskey": "tls_key", "tlsca": "tls_ca", "tlsfirst": "tls_first"}
    fields = {renamed.get(name, name): value for name, value in given.items()}
    if "timeout" in fields:
        fields["timeout_ms"] = fields.pop("timeout")
    if bool(fields.get("tls_cert")) != bool(fields.get("tls_key")):
        raise click.UsageError("--tlscert and --tlskey belong together: give both or none")
    return ClientSettings(**fields)
