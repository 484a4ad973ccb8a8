"""nats-server's command line: its flags, in Go's syntax, on top of the options of a file.

    -p 4222   -p=4222   --p 4222   --port=4222   -D   -D=false        `--`, or the first argument without `-`, ends them

Flags override the file, in the order in which they are given. A flag for something that we have not is refused by name
when it asks for it. Texts of errors are nats-server's, or rather those of Go's `flag` package.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from mesh import nats_config_cluster
from mesh.nats_config_options import Options, TlsOptions
from mesh.nats_config_values import Findings, Origin
from protocol.config_units import shown
from protocol.errors import MeshError

Kind = Literal["bool", "int", "text"]
Value = bool | int | str

_INTEGER: Final = re.compile(r"[-+]?[0-9][0-9a-zA-Z_]*")
_OCTAL: Final = re.compile(r"([-+]?)0([0-7_]+)")
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_JETSTREAM: Final = "JetStream"
_SYSLOG: Final = "logging to syslog"


class FlagError(MeshError):
    """A command line that cannot be read."""


class Flag(NamedTuple):
    """`field` is one of `Options`; `lacks` says what the flag asks for that we have not."""

    kind: Kind
    field: str = ""
    lacks: str = ""


FLAGS: Final[dict[str, Flag]] = {
    **dict.fromkeys(("h", "help", "v", "version", "help_tls", "t"), Flag("bool")),
    **dict.fromkeys(("c", "config", "sl", "signal"), Flag("text")),
    **dict.fromkeys(("p", "port"), Flag("int", "port")),
    **dict.fromkeys(("n", "name", "server_name"), Flag("text", "server_name")),
    **dict.fromkeys(("a", "addr", "net"), Flag("text", "host")),
    "client_advertise": Flag("text", "client_advertise"),
    **dict.fromkeys(("D", "debug"), Flag("bool", "debug")),
    **dict.fromkeys(("V", "VV", "trace"), Flag("bool", "trace")),
    **dict.fromkeys(("DV", "DVV"), Flag("bool", "debug trace")),
    **dict.fromkeys(("T", "logtime"), Flag("bool", "logtime")),
    "logtime_utc": Flag("bool", "logtime_utc"),
    "user": Flag("text", "username"),
    "pass": Flag("text", "password"),
    "auth": Flag("text", "token"),
    **dict.fromkeys(("m", "http_port"), Flag("int", "http_port")),
    **dict.fromkeys(("ms", "https_port"), Flag("int", lacks="monitoring over HTTPS")),
    **dict.fromkeys(("P", "pid"), Flag("text", "pid_file")),
    "ports_file_dir": Flag("text", "ports_file_dir"),
    **dict.fromkeys(("l", "log"), Flag("text", "log_file")),
    "log_size_limit": Flag("int", "log_size_limit"),
    **dict.fromkeys(("s", "syslog"), Flag("bool", lacks=_SYSLOG)),
    **dict.fromkeys(("r", "remote_syslog"), Flag("text", lacks=_SYSLOG)),
    "max_traced_msg_len": Flag("int", "max_traced_msg_len"),
    "profile": Flag("int", lacks="a profiling port"),
    **dict.fromkeys(("routes", "cluster", "cluster_listen", "cluster_advertise", "cluster_name"), Flag("text")),
    "no_advertise": Flag("bool"),
    "connect_retries": Flag("int"),  # we do not give up
    **dict.fromkeys(("tls", "tlsverify"), Flag("bool")),
    **dict.fromkeys(("tlscert", "tlskey", "tlscacert"), Flag("text")),
    **dict.fromkeys(("js", "jetstream"), Flag("bool", lacks=_JETSTREAM)),
    **dict.fromkeys(("sd", "store_dir"), Flag("text")),  # asks for nothing without -js
}

USAGE: Final = """
Usage: nats-server [options]

Server Options:
    -a, --addr, --net <host>         Bind to host address (default: 0.0.0.0)
    -p, --port <port>                Use port for clients (default: 4222)
    -n, --name
        --server_name <server_name>  Server name (default: gw1)
    -P, --pid <file>                 File to store PID
    -m, --http_port <port>           Use port for http monitoring
    -c, --config <file>              Configuration file
    -t                               Test configuration and exit
    -sl,--signal <signal>=<pid>      Send signal to nats-server process (ldm, stop, quit, term, reopen)
                                     <pid> can be either a PID (e.g. 1) or the path to a PID file
        --client_advertise <string>  Client URL to advertise to other servers
        --ports_file_dir <dir>       Creates a ports file in the specified directory (<executable_name>_<pid>.ports).

Logging Options:
    -l, --log <file>                 File to redirect log output
    -T, --logtime                    Timestamp log entries (default: true)
        --logtime_utc                Timestamps in UTC instead of local timezone (default: false)
    -D, --debug                      Enable debugging output
    -V, --trace                      Trace the raw protocol
    -VV                              The same: there is no system account to be traced as well
    -DV                              Debug and trace
    -DVV                             The same
        --max_traced_msg_len <len>   Maximum printable length for traced messages (default: unlimited)
        --log_size_limit <limit>     Logfile size limit (default: none)

Authorization Options:
        --user <user>                User required for connections
        --pass <password>            Password required for connections
        --auth <token>               Authorization token required for connections

TLS Options:
        --tls                        Enable TLS, do not verify clients (default: false)
        --tlscert <file>             Server certificate file
        --tlskey <file>              Private key for server certificate
        --tlsverify                  Enable TLS, verify client certificates
        --tlscacert <file>           Client certificate CA for verification

Cluster Options:
        --cluster, --cluster_listen <url>  URL where other servers connect, e.g. nats://0.0.0.0:6222
        --cluster_name <string>      Cluster name, the same on all servers (default: local)
        --routes <url, ...>          Where other servers of the cluster may be
        --cluster_advertise <string> Address that other servers are told
        --no_advertise               Do not tell other servers' clients of this one (default: false)
        --connect_retries <number>   Taken; routes are tried for ever

Common Options:
    -h, --help                       Show this message
    -v, --version                    Show version
        --help_tls                   TLS help

This is the gateway of Event Mesh under nats-server's name; it keeps nothing. Refused by name, because it is not
there yet: JetStream, syslog, profiling, https monitoring.
"""

TLS_USAGE: Final = """
TLS configuration is specified in the tls section of a configuration file:

    tls {
        cert_file:      "./certs/server-cert.pem"
        key_file:       "./certs/server-key.pem"
        ca_file:        "./certs/ca.pem"
        verify:         true      # demand a certificate of every client
        verify_and_map: true      # ... and take the user from it
        timeout:        2         # seconds for the handshake
        handshake_first: true     # TLS before the greeting; auto, "300ms": a greeting after so long without a word
    }

Cipher suites and curves are chosen by OpenSSL; the lowest version is TLS 1.2.
"""


@dataclass
class CommandLine:
    """The flags in the order given, by their names there; `rest` is what follows them."""

    given: list[tuple[str, Value]] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)

    def last(self, *names: str, default: Any = "") -> Any:
        """The value that counts of a flag with several names."""
        values = [value for name, value in self.given if name in names]
        return values[-1] if values else default


def parse(arguments: Sequence[str]) -> CommandLine:
    """Source: Go, `flag.FlagSet.parseOne`. FlagError says what Go would."""
    line = CommandLine()
    waiting = list(arguments)
    while waiting:
        argument = waiting[0]
        if len(argument) < 2 or not argument.startswith("-"):
            break
        waiting.pop(0)
        if argument == "--":
            break
        line.given.append(_parse_one(argument, waiting))
    line.rest = waiting
    return line


def _parse_one(argument: str, waiting: list[str]) -> tuple[str, Value]:
    """One flag; its value may be the first of those that are `waiting`."""
    name, equals, written = argument.removeprefix("-").removeprefix("-").partition("=")
    if not name or name.startswith("-"):
        raise FlagError(f"bad flag syntax: {argument}")
    flag = FLAGS.get(name)
    if flag is None:
        raise FlagError(f"flag provided but not defined: -{name}")
    if flag.kind == "bool":
        return name, _boolean(name, written if equals else "true")
    if not equals:
        if not waiting:
            raise FlagError(f"flag needs an argument: -{name}")
        written = waiting.pop(0)
    return name, _integer(name, written) if flag.kind == "int" else written


def _boolean(name: str, written: str) -> bool:
    if written not in _TRUE | _FALSE:
        raise FlagError(f"invalid boolean value {shown(written)} for -{name}: parse error")
    return written in _TRUE


def _integer(name: str, written: str) -> int:
    """As Go reads them: 0x10, 0b1, 0o7 and 017 too, with underscores."""
    octal = _OCTAL.fullmatch(written)
    try:
        number = int(f"{octal[1]}0o{octal[2]}" if octal else written, 0) if _INTEGER.fullmatch(written) else None
    except ValueError:
        number = None
    if number is None:
        raise FlagError(f"invalid value {shown(written)} for flag -{name}: parse error")
    if not -(2**63) <= number < 2**63:
        raise FlagError(f"invalid value {shown(written)} for flag -{name}: value out of range")
    return number


def override(options: Options, line: CommandLine, findings: Findings) -> None:
    """Puts the flags over the options; what we have not, and what is wrong, goes to `findings`."""
    for name, value in line.given:
        flag = FLAGS[name]
        came_from = Origin(f"-{name}" if len(name) <= 3 else f"--{name}", "")
        if flag.lacks and value:
            findings.problems.append(came_from.render(f"{flag.lacks} is not available in this version"))
        for wanted in flag.field.split():
            options.put(wanted, value, came_from)
        try:
            nats_config_cluster.override(options.cluster, name, value, came_from)
        except ValueError as error:
            findings.problems.append(came_from.render(str(error)))
    if any(name.startswith("tls") for name, _ in line.given):
        _override_tls(options, line, findings)


def _override_tls(options: Options, line: CommandLine, findings: Findings) -> None:
    if line.last("tls", default=True) is False:
        options.tls = None
        return
    names = {"tlscert": "cert_file", "tlskey": "key_file", "tlscacert": "ca_file", "tlsverify": "verify"}
    tls = TlsOptions(origin=Origin("--tls", ""))
    if options.tls is not None:
        tls.timeout_ms, tls.map = options.tls.timeout_ms, options.tls.map
        tls.handshake_first = options.tls.handshake_first
        tls.first_fallback_ms = options.tls.first_fallback_ms
    for flag, wanted in names.items():
        if value := line.last(flag):
            setattr(tls, wanted, value)
            tls.origins[wanted] = Origin(f"--{flag}", "")
    required = (("cert_file", "TLS Server certificate"), ("key_file", "TLS Server private key"))
    missing = [what for name, what in required if not getattr(tls, name)]
    findings.problems += [f"{what} must be present and valid" for what in missing[:1]]
    options.tls = tls
